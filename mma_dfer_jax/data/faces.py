"""The face of a clip: found every few frames, followed, and cut out as a square of one size.

Only `FaceFinder` knows that a clip is read twice. Coordinates are pixels of the whole frame; boxes are left, top, right,
bottom.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import product
from operator import itemgetter
from pathlib import Path
import re
from typing import Any, NamedTuple

import cv2
from jaxtyping import Bool, Float, Int, UInt8
import numpy as np

from mma_dfer_jax.data.frames import resize
from mma_dfer_jax.data.shots import Shots
from mma_dfer_jax.data.yunet import SIDES, Box, Detector, face_model
from mma_dfer_jax.errors import UserError

POLICIES = ("follow", "union")
EVERY = 4  # frames from one detection to the next: 6 to 7.5 a second in film and television
# Measured on RAVDESS: an upright face has a score of 0.94 to 0.96, one tilted by 30 degrees 0.87 to 0.94, upside down 0.79
# to 0.91, lying on a side at most 0.88.
UPRIGHT = 0.92  # least score of a face that needs no other try
# Least mean score in another orientation, and by how much it must be above that as shown.
SURE, SURER = 0.85, 0.03
TRIED = (0, 4, 16, 64, 256)  # of the pictures that are looked at
TILT = 20.0  # degrees of the median face above which the video may be turned
MAX_GAP = 24  # frames (about a second) between two detections that are still one track
REACH = 0.8  # how far a face may go from one detection to the next, in longer sides of its box
GROWTH = 2.0  # and by what factor its box may grow or shrink
LEAST_AREA = 1 / 16  # of the main face, for another face to be followed while the main one is gone
SMOOTHING = 5.0  # frames: standard deviation of the Gaussian that centre and side are smoothed with
SLACK = 0.1  # of a side: how far smoothing may move or resize a box, so that a fast face stays in its crop
# Side of the crop / longer side of the face's box, which ends at the chin and near the hair: tight, like the crops that
# data sets come with.
MARGIN = 1.1
CROP_SIDE = 224  # pixels, as DFEW's own crops
LOOK, LOOK_SIDES = 4, 2.0  # pixels, and sides of the face's box, of what is remembered of how it looks

Track = list[tuple[int, Box]]  # one face over time: frames that it was detected in, ascending, and its boxes
Detections = list[tuple[int, list[Box]]]  # frames that were looked at, and their faces
# Of each frame: centre (x, y) and side of a square; whether it is a face.
Squares = tuple[Float[np.ndarray, "N 3"], Bool[np.ndarray, "N"]]


class FaceTrack(NamedTuple):
  """Where a clip was cut."""

  boxes: Int[np.ndarray, "N 4"]  # of each frame: a square inside of it
  # Whether the face was detected in that frame or between two detections at most 24 frames apart; else the box is that of
  # the nearest such frame, or without any the centre of the frame.
  found: Bool[np.ndarray, "N"]
  turned: str = ""  # what the pictures show of a wrong orientation, in words
  score: float = 0.0  # the detector's, median over the detections that the boxes come from

  @property
  def share(self) -> float:
    """Of the frames that have a face."""
    return float(self.found.mean())


class FaceFinder:
  """Cuts the face out of clips, as squares of `size` pixels; one per process, because it limits OpenCV to one thread.

  The policy "follow" follows the face that is largest over time and, while that is not there, the next largest; "union"
  is one box that holds all faces of all frames (the original's choice for MAFW).

  Raises:
    UserError: if there is no such policy or size, or the file is no YuNet model.
  """

  def __init__(self, model: Path, policy: str = "follow", size: int = CROP_SIDE):
    if policy not in POLICIES or size < 1:
      raise UserError(f"policy={policy!r}, size={size}: choose {' or '.join(POLICIES)}, and 1 pixel or more")
    cv2.setNumThreads(1)  # each process cuts its own clips; more threads would wait for each other
    self.policy, self.size, self.detector = policy, size, Detector(model)

  def crops(self, frames: Callable[[], Iterator[np.ndarray]]) -> tuple[Iterator[np.ndarray], FaceTrack]:
    """Finds the face of a clip, then cuts (size, size, 3) out of each frame while the result is iterated over.

    `frames` gives all frames (H, W, 3) uint8 RGB from the start; it is called twice, so that no more than two frames are
    in memory. Raises ValueError if there are none; while iterating, if their number differs the second time.
    """
    looked = look_over(frames(), self)
    track = self.track(looked.detections or [], looked.sizes, looked.cuts)
    return cut(frames(), track.boxes, self.size), track._replace(turned=looked.turned)

  def track(
    self, detections: Detections, sizes: Int[np.ndarray, "N 2"], cuts: Sequence[int] = (),
    tracks: Sequence[Track] | None = None,
  ) -> FaceTrack:  # fmt: skip
    """Where to cut a clip, from the faces of the frames that were looked at, and height and width of all frames.

    `cuts` are the frames that begin a new shot; `tracks` those of the person who is cut out, None: of the largest face.
    """
    if not any(boxes for _, boxes in detections) or tracks == []:
      middle = np.stack([sizes[:, 1] / 2, sizes[:, 0] / 2, sizes.min(axis=1)], axis=1)
      return FaceTrack(fit(middle, sizes), np.zeros(len(sizes), bool))
    followed = tracks or choose(link(detections, cuts))
    if self.policy == "follow":
      squares, found = follow(followed, len(sizes), cuts)
      squares[:, 2] *= MARGIN
    else:
      of_one = [(i, [box]) for track in tracks or () for i, box in track]
      squares, found = union(of_one or detections, len(sizes))
    score = float(np.median([box.score for track in followed for _, box in track]))
    return FaceTrack(fit(squares, sizes), found, score=score)


class Lookout:
  """Detects faces, and looks for what shows that pictures are turned: tilted faces, and faces that are surer otherwise."""

  def __init__(self, detect: Callable[[np.ndarray], list[Box]]):
    self._detect, self._seen = detect, 0
    self._tried: list[tuple[np.ndarray, float]] = []  # small pictures, and the score of their surest face
    self._tilts: list[float] = []

  def detect(self, frame: UInt8[np.ndarray, "H W 3"]) -> list[Box]:
    boxes = self._detect(frame)
    if self._seen in TRIED:
      scale = min(1.0, SIDES[0] / max(frame.shape))
      small = cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
      self._tried.append((small, _surest(boxes)))
    self._seen += 1
    self._tilts += [box.tilt for box in boxes[:1]]  # of the largest
    return [box._replace(look=self._look(frame, box)) for box in boxes]

  @staticmethod
  def _look(frame: np.ndarray, box: Box) -> bytes:
    x, y, side = box.square
    around = np.array([(x, y, side * LOOK_SIDES)])
    ((left, top, right, bottom),) = fit(around, np.array([frame.shape[:2]])).tolist()
    part = np.ascontiguousarray(frame[top:bottom, left:right])
    return cv2.resize(part, (LOOK, LOOK), interpolation=cv2.INTER_AREA).tobytes()

  def turned(self) -> str:
    """What is wrong with the orientation, in words; empty if nothing is seen of that."""
    if any(score < UPRIGHT for _, score in self._tried):
      scores = [[score for _, score in self._tried]]
      for quarter in (1, 2, 3):
        turned = (np.ascontiguousarray(np.rot90(small, -quarter)) for small, _ in self._tried)
        scores.append([_surest(self._detect(frame)) for frame in turned])
      with_face = np.array(scores)[:, np.max(scores, axis=0) > 0]
      means = with_face.mean(axis=1) if with_face.size else np.zeros(4)
      best = int(means.argmax())
      if means[best] > max(SURE, means[0] + SURER):
        return (f"faces look upright only if the pictures are turned by {90 * best} degrees clockwise: turn the "
                "video")  # fmt: skip
    tilt = float(np.median(self._tilts)) if self._tilts else 0.0
    tilted = f"faces are tilted by {round(tilt, -1):+.0f} degrees: is the video turned?"
    return tilted * (abs(tilt) > TILT)


def _surest(boxes: Sequence[Box]) -> float:
  return max((box.score for box in boxes), default=0.0)


def face_recipe(policy: str, size: int, detector: str) -> dict[str, str]:
  """What a data set's recipe says of its faces, with the detector's sha256; `finder_of` reads the other two."""
  return {"faces": f"yunet, {policy}", "frame_size": f"faces, {size} x {size}",
          "face_detector": f"sha256 {detector}"}  # fmt: skip


ARCHIVE_FACES = {"faces": "cut out by those who made the archive"}  # what a recipe says of DFEW's frames
FACES = ("auto", "yunet", "none")


def finder_of(recipe: Mapping[str, Any], model: Path | None, faces: str = "auto") -> FaceFinder | None:
  """Cuts faces as in the training of a model with this recipe; None if that took frames as they were.

  `faces` is "auto": as the recipe says, following the largest face if others cut them out; "yunet": always; or "none":
  never, for videos already cropped to the face. Raises UserError if it is something else, or YuNet is needed and missing.
  """
  if faces not in FACES:
    raise UserError(f"faces={faces}: choose one of {', '.join(FACES)}")
  of_recipe = str(recipe.get("faces", ""))
  policy = re.fullmatch(r"yunet, (\w+)", of_recipe)
  size = re.fullmatch(r"faces, (\d+) x \d+", str(recipe.get("frame_size", "")))
  if faces == "none" or (faces == "auto" and not policy and of_recipe != ARCHIVE_FACES["faces"]):
    return None
  return FaceFinder(face_model(model), policy[1] if policy else "follow", int(size[1]) if size else CROP_SIDE)


def detect_every(
  frames: Iterable[Any], detect: Callable[[Any], list[Box]], due: Callable[[], bool] = lambda: False
) -> tuple[Detections, Int[np.ndarray, "N 2"]]:
  """Faces of every fourth frame, of the last, and of those that are due; and height and width of every frame.

  `frames` are anything that has a shape (H, W, 3); `due` says whether to look at the latest, too. Raises ValueError if
  there are none.
  """
  detections: Detections = []
  sizes: list[tuple[int, int]] = []
  frame = None
  for i, frame in enumerate(frames):
    sizes.append((frame.shape[0], frame.shape[1]))
    if i % EVERY == 0 or due():
      detections.append((i, detect(frame)))
  if frame is None:
    raise ValueError("a clip without frames has no face")
  if detections[-1][0] != i:
    detections.append((i, detect(frame)))
  return detections, np.array(sizes)


class Looked(NamedTuple):
  """What is remembered of the frames of a clip or film."""

  detections: Detections | None  # None: no detector looked for faces
  sizes: Int[np.ndarray, "N 2"]  # height and width
  cuts: Sequence[int]  # frames that begin a new shot; () without a detector
  turned: str  # what faces show of a wrong orientation, in words


def look_over(
  frames: Iterable[Any], finder: FaceFinder | None, due: Callable[[], bool] = lambda: False
) -> Looked:
  """Looks for faces and cuts, if there is a finder: frames are (H, W, 3) uint8 RGB then. Else only their shape is read.

  `due` and errors as for `detect_every`.
  """
  if finder is None:
    return Looked(None, detect_every(frames, lambda frame: [], due)[1], (), "")
  lookout, shots = Lookout(finder.detector.detect), Shots()
  detections, sizes = detect_every(shots.watch(frames), lookout.detect, due)
  return Looked(detections, sizes, shots.cuts(), lookout.turned())


def link(detections: Detections, cuts: Sequence[int] = ()) -> list[Track]:
  """Tracks of all faces: each box goes to the track whose last box is nearest, if it is near enough and of like size.

  Near means up to 0.8 sides of the larger box between the centres, like means a side up to twice as long; a track that
  was not seen for more than 24 frames has ended, and so has every track at a cut.
  """
  tracks: list[Track] = []
  alive: list[int] = []
  for i, faces in detections:
    begin = max(i - MAX_GAP, *cuts[: bisect_right(cuts, i)][-1:], 0)  # of what a track may have been seen in
    alive = [k for k in alive if tracks[k][-1][0] >= begin]
    recent = [(k, *tracks[k][-1]) for k in alive]
    pairs = []
    for (k, _, last), (j, face) in product(recent, enumerate(faces)):
      (x, y, side), (face_x, face_y, face_side) = last.square, face.square
      smaller, larger = sorted((side, face_side))
      if larger <= GROWTH * smaller:
        pairs.append((float(np.hypot(x - face_x, y - face_y)) / larger, k, j))
    taken: dict[int, int] = {}  # track of each face
    for distance, k, j in sorted(pairs):
      if distance <= REACH and j not in taken and k not in taken.values():
        taken[j] = k
    for j, face in enumerate(faces):
      if j not in taken:
        alive.append(len(tracks))
        tracks.append([])
      tracks[taken.get(j, -1)].append((i, face))
  return tracks


def choose(tracks: Sequence[Track]) -> list[Track]:
  """The largest track; and where that is not, parts of the next largest, and so on: in time order, never two at once.

  After a cut the same person is a new track elsewhere in the picture. Only parts of two and more detections stand in, and
  only if their boxes are not much smaller, because a false alarm or somebody in the background is no stand-in.
  """

  def area(track: Track) -> float:
    """Summed over detections, so that a face counts for its size and for how long it is there."""
    return sum(box.area for _, box in track)

  ranked = sorted(tracks, key=area, reverse=True)
  chosen, when = ranked[:1], itemgetter(0)
  for track in ranked[1:]:
    parts = [track]
    for other in chosen:  # what of the track lies before and after it
      before = [part[: bisect_left(part, other[0][0], key=when)] for part in parts]
      after = [part[bisect_right(part, other[-1][0], key=when) :] for part in parts]
      parts = list(filter(None, before + after))
    least = LEAST_AREA * area(ranked[0]) / len(ranked[0])
    chosen += [part for part in parts if len(part) >= 2 and area(part) / len(part) >= least]
  return sorted(chosen, key=lambda track: track[0][0])


def follow(tracks: Sequence[Track], num_frames: int, cuts: Sequence[int] = ()) -> Squares:
  """A square for every frame, and whether it lies in one of the tracks: one or more, in time order, without overlap.

  Within a track: linear between detections, then smoothed. Frames between a cut and the detection next to it belong to the
  track. Elsewhere: as in the nearest frame of the same shot that has a track, or else of any.
  """
  squares, found = np.zeros((num_frames, 3)), np.zeros(num_frames, bool)
  for track in tracks:
    at, boxes = zip(*track, strict=True)
    begins, ends = ([cut for cut in cuts if abs(cut - near) <= EVERY] for near in (at[0], at[-1] + 1))
    first = max([cut for cut in begins if cut <= at[0]], default=at[0])
    last = min([cut - 1 for cut in ends if cut > at[-1]], default=at[-1])
    frames = np.arange(first, last + 1)
    known = np.array([box.square for box in boxes])
    squares[frames] = smooth(np.stack([np.interp(frames, at, column) for column in known.T], axis=1))
    found[frames] = True
  i, known = np.arange(num_frames), np.flatnonzero(found)
  after = np.searchsorted(known, i).clip(max=len(known) - 1)
  before = (after - 1).clip(min=0)
  shot = np.searchsorted(cuts, i, side="right")
  far_after, far_before = (
    np.abs(known[side] - i) + num_frames * (shot[known[side]] != shot) for side in (after, before)
  )
  return squares[np.where(far_after < far_before, known[after], known[before])], found


def smooth(squares: Float[np.ndarray, "N 3"]) -> Float[np.ndarray, "N 3"]:
  """A Gaussian over time (standard deviation 5 frames, cut at 15), that moves or resizes no square by more than a tenth.

  Point reflection continues the movement beyond both ends, so that a steady movement stays exactly as it is.
  """
  radius = round(3 * SMOOTHING)
  weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / SMOOTHING) ** 2)
  longer = np.pad(squares, ((radius, radius), (0, 0)), mode="reflect", reflect_type="odd")
  smoothed = np.stack([np.convolve(column, weights / weights.sum(), "valid") for column in longer.T], axis=1)
  slack = SLACK * squares[:, 2:]
  return np.clip(smoothed, squares - slack, squares + slack)


def union(detections: Detections, num_frames: int) -> Squares:
  """The same square for every frame, around the box that holds all faces, without a margin; returns as `follow`.

  A frame counts as found if a face was detected in it, or before and after it at most 24 frames apart.
  """
  faces = np.array([box[:4] for _, boxes in detections for box in boxes])
  left, top = faces[:, :2].min(axis=0)
  right, bottom = faces[:, 2:].max(axis=0)
  found = np.zeros(num_frames, bool)
  at = [i for i, boxes in detections if boxes]
  for one, other in zip(at, [*at[1:], at[-1]], strict=True):
    found[one : other + 1 if other - one <= MAX_GAP else one + 1] = True
  return np.tile(Box(left, top, right, bottom, 1.0).square, (num_frames, 1)), found


def fit(squares: Float[np.ndarray, "N 3"], sizes: Int[np.ndarray, "N 2"]) -> Int[np.ndarray, "N 4"]:
  """Squares as whole pixels inside of frames of these sizes: made smaller if the frame is, else moved; never padded."""
  sides = np.clip(np.rint(squares[:, 2]), 1, sizes.min(axis=1)).astype(np.int64)
  corners = np.rint(squares[:, :2] - sides[:, None] / 2).astype(np.int64)
  corners = np.clip(corners, 0, sizes[:, ::-1] - sides[:, None])
  return np.concatenate([corners, corners + sides[:, None]], axis=1)


def cut(frames: Iterable[np.ndarray], boxes: Int[np.ndarray, "N 4"], size: int) -> Iterator[np.ndarray]:
  """One crop of (size, size) for each frame; raises ValueError at the end if there are more or fewer than boxes."""
  for frame, (left, top, right, bottom) in zip(frames, boxes, strict=True):
    yield resize(np.ascontiguousarray(frame[top:bottom, left:right]), size)
