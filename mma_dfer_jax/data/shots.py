"""Where a film cuts from one shot to the next. Dissolves, fades and cuts with a blend of both pictures are not found."""

from array import array
from collections import deque
from collections.abc import Iterable, Iterator

import cv2
import numpy as np

SIDE = 16  # pixels of the small pictures that are compared
SAMPLES = 64  # rows and columns of a frame, about, that a small picture is made of
# Frames before and after a cut: all of them must differ, so that a flash of up to two frames is no cut.
REACH = 3
AROUND = 8  # frames before and after, whose usual change a cut must exceed
FEWEST = 3  # of them, or nothing is known of what is usual
# Measured, each change against the larger of its two neighbours and the median around it. Joins of RAVDESS's two 720p clips (one
# actor, one wall) are at least 5.9 of 255 and 7.1 times that; every five frames 6.5 times; joins of generated clips 5.3 times;
# joins with clips of faces alone, six frames a second, 4.1 times. Within shots: up to 1.1 of 255 at 720p; faces alone up to 30,
# but 3.3 times; generated clips, whose heads move fast, 1.7 times.
LEAST_CHANGE, TIMES_USUAL = 4.0, 4.0


class Shots:
  """Notices cuts while frames (H, W, 3) uint8 pass by; keeps four bytes of each that is not forgotten."""

  def __init__(self) -> None:
    self._changes = array("f")  # of each frame but the latest, against those before it
    self._first = 0  # number of the frame of the oldest change
    self._recent = deque[np.ndarray](maxlen=2 * REACH)  # small pictures

  def watch(self, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """The same frames."""
    for frame in frames:
      height, width, _ = frame.shape
      few = np.ascontiguousarray(frame[:: max(1, height // SAMPLES), :: max(1, width // SAMPLES)])
      self._recent.append(cv2.resize(few, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.int16))
      if len(self._recent) >= REACH:
        self._changes.append(self._change(REACH))
      yield frame

  def _change(self, after: int) -> float:
    """Least mean difference, of 255, between one of the latest `after` frames and one of the three before them."""
    before, behind = list(self._recent)[:-after][-REACH:], list(self._recent)[-after:]
    return min((float(np.abs(one - other).mean()) for one in before for other in behind), default=0.0)

  def forget(self, before: int) -> None:
    """Drops what no cut from frame `before` on depends on."""
    over = min(max(0, before - AROUND - 1 - self._first), len(self._changes))
    del self._changes[:over]
    self._first += over

  def cuts(self) -> list[int]:
    """Numbers of the frames that begin a shot, without the first frame, ascending; those before what was forgotten may be wrong."""
    latest = [self._change(after) for after in range(min(REACH - 1, len(self._recent)), 0, -1)]
    changes = np.array([*self._changes, *latest])
    found = []
    for i in np.flatnonzero(changes >= LEAST_CHANGE).tolist():
      begin = max(i - AROUND, 0 if self._first else 1)  # nothing is before the first frame
      around = np.concatenate([changes[begin:i], changes[i + 1 : i + 1 + AROUND]])
      usual = max(np.median(around), *changes[i - 1 : i], *changes[i + 1 : i + 2], 0.0)
      if len(around) >= FEWEST and changes[i] >= TIMES_USUAL * usual:
        found.append(self._first + i)
    return found
