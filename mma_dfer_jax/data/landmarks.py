"""A face in every frame as numbers: its box and five points, found in frames as a data set keeps them, moved with crop and flip.

All are shares of the frame's width and height, from its upper left corner. A box is left, top, width, height; the points
are the eye, left in the picture, the right eye, the tip of the nose, the left and the right corner of the mouth: YuNet's order.
"""

from collections.abc import Sequence
import functools
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

from jaxtyping import Float32, Shaped, UInt8
import numpy as np

from mma_dfer_jax.data.faces import choose, link
from mma_dfer_jax.data.frames import Augmentation, move_points
from mma_dfer_jax.data.yunet import Detector, face_model

POINTS = 5
MIRRORED = [1, 0, 2, 4, 3]  # which point each becomes in a mirrored frame
# As a record keeps each frame: box and points, and whether there is a face; 29 bytes.
STORED = np.dtype([("values", "<f2", 4 + 2 * POINTS), ("face", "u1")])
LARGEST_GAP = 4  # frames between two detections of a face that are still interpolated
LEAST_LEFT = 0.5  # share of a box that a crop must keep


class Watcher:
  """Looks for the face in frames that pass by; `found` follows the one that is largest over time, as `faces.choose`."""

  def __init__(self, detector: Detector):
    self._detector = detector
    self._numbers: list[int] = []
    self._seen: list[tuple[int, list]] = []
    self._sizes: list[tuple[int, int]] = []

  def look(self, number: int, pixels: UInt8[np.ndarray, "H W 3"]) -> None:
    """Looks at the frame of this number, larger than those before."""
    self._seen.append((len(self._numbers), self._detector.detect(pixels)))
    self._numbers.append(number)
    self._sizes.append(pixels.shape[:2])

  def found(self) -> Shaped[np.ndarray, "N"]:
    """Box and points of all frames that were looked at, as `STORED`."""
    kept, numbers = np.zeros(len(self._numbers), STORED), np.array(self._numbers)
    for track in choose(link(self._seen)) if any(boxes for _, boxes in self._seen) else ():
      at, shares = [i for i, _ in track], []
      for i, box in track:
        height, width = self._sizes[i]
        pixels = [box.left, box.top, box.right - box.left, box.bottom - box.top, *box.points]
        shares.append(np.array(pixels) / ([width, height] * (2 + POINTS)))
      values = np.array(shares)
      for one, other in pairwise([*at, at[-1]]):
        last = other if numbers[other] - numbers[one] <= LARGEST_GAP else one
        for i in range(one, last + 1):
          kept["values"][i] = [np.interp(numbers[i], numbers[at], column) for column in values.T]
          kept["face"][i] = 1
    return kept


@functools.lru_cache(maxsize=2)
def detector(model: Path | None) -> Detector:
  """YuNet, kept for later calls; UserError as `face_model` if there is no such file."""
  return Detector(face_model(model))


class OfFilms:
  """The detector that finds points in films that no face is cut out of, as `prediction.face_finder` was given it."""

  file: ClassVar[Path | None] = None  # None: the public one

  @classmethod
  def detector(cls) -> Detector:
    return detector(cls.file)


def as_shown(
  stored: Shaped[np.ndarray, "T"], sizes: Sequence[tuple[int, int]], augmentation: Augmentation | None
) -> dict[str, Float32[np.ndarray, "T ..."]]:
  """What a model is told of the faces in frames that it sees.

  Args:
    stored: as `STORED`.
    sizes: height and width of each frame as it is stored.
    augmentation: what was done to the frames; None: they were stretched to the model's size.
  Returns:
    landmarks (T, 5, 3): x and y, and 1 if the point lies in the frame and the frame has a face; face_box (T, 5): left, top,
    width, height within the frame, and 1 if there is a face at least half of whose box is in it. All 0 otherwise.
  """
  values = stored["values"].astype(np.float64)
  box = np.stack([values[:, :2], values[:, :2] + values[:, 2:4]], axis=1)  # two corners
  points = np.concatenate([box, values[:, 4:].reshape(-1, POINTS, 2)], axis=1)
  if augmentation:
    points = np.stack([move_points(of, size, augmentation) for of, size in zip(points, sizes, strict=True)])
    if augmentation.flip:
      points[:, 2:] = points[:, 2:][:, MIRRORED]
  corners, points = points[:, :2], points[:, 2:]
  whole = np.stack([corners.min(axis=1), corners.max(axis=1)], axis=1)
  shown = whole.clip(0.0, 1.0)
  sides = shown[:, 1] - shown[:, 0]
  area = (whole[:, 1] - whole[:, 0]).prod(axis=-1)
  face = (stored["face"] > 0) & (area > 0) & (sides.prod(axis=-1) >= LEAST_LEFT * area)
  seen = face[:, None] & ((points >= 0) & (points <= 1)).all(axis=-1)
  return {
    "landmarks": np.where(seen[..., None], np.dstack([points, seen]), 0.0).astype(np.float32),
    "face_box": np.where(face[:, None], np.column_stack([shown[:, 0], sides, face]), 0.0).astype(np.float32),
  }
