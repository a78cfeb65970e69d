"""Who is in a film: tracks of faces joined to persons. Faces are not recognised: only place, size and look join tracks."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import groupby, product
from operator import itemgetter
from typing import NamedTuple

from jaxtyping import Bool, Int
import numpy as np

from mma_dfer_jax.data.faces import LEAST_AREA, Detections, Track, link
from mma_dfer_jax.data.yunet import Box
from mma_dfer_jax.errors import UserError, count

# Least overlap (intersection over union) of the last box of a person with the first of a track that continues them. Measured
# on RAVDESS: 0.68 and more between any two moments of two clips of one actor.
SAME_PLACE = 0.5
# Most mean difference, of 255, of their looks: up to 15.6 in those clips. Of the generated faces, all at one place in front
# of grounds of their own, half differ by more.
SAME_LOOK = 16.0
NO_FACES = "the pictures are taken as they are, and no face is looked for; --faces=yunet cuts faces out"
LEAST_FRAMES = 24  # about a second, or half of a shorter film: who is there for less is no person


class Person(NamedTuple):
  """Tracks of one face, in time order, never two at once."""

  number: int  # 1 is the largest, summed over time
  tracks: list[Track]

  def within(self, first: int, last: int) -> list[Track]:
    """The parts of the tracks in frames from `first` to the one before `last`, which are counted from `first`."""
    parts = []
    for track in self.tracks:
      at, until = (bisect_left(track, i, key=itemgetter(0)) for i in (first, last))
      parts.append([(i - first, box) for i, box in track[at:until]])
    return list(filter(None, parts))

  @property
  def score(self) -> float:
    """The detector's, on average."""
    return float(np.mean([box.score for track in self.tracks for _, box in track]))


def persons(detections: Detections, num_frames: int, cuts: Sequence[int] = ()) -> list[Person]:
  """All who are there for 24 frames, or half of a shorter film, numbered by size; faces far smaller than the first are left out.

  A track continues the person whose last box, of those who are not seen elsewhere at that time, it overlaps best: by half
  or more, and with a like look. Else it is a new person. So who comes back elsewhere gets a new number, and who takes the place
  of somebody that looks alike keeps theirs.
  """
  found: list[list[Track]] = []
  for _, beginning in groupby(link(detections, cuts), key=lambda track: track[0][0]):
    new = list(beginning)
    pairs = []
    for (k, tracks), (j, track) in product(enumerate(found), enumerate(new)):
      (last, box), (first, other) = tracks[-1][-1], track[0]
      if last < first and (overlap := _overlap(box, other)) >= SAME_PLACE and _alike(box, other):
        pairs.append((-overlap, k, j))
    taken: dict[int, int] = {}  # person of each new track
    for _, k, j in sorted(pairs):
      if j not in taken and k not in taken.values():
        taken[j] = k
        found[k].append(new[j])
    found += [[track] for j, track in enumerate(new) if j not in taken]
  least = min(LEAST_FRAMES, (num_frames + 1) // 2)
  there = [tracks for tracks in found if sum(track[-1][0] + 1 - track[0][0] for track in tracks) >= least]
  ranked = sorted(there, key=lambda tracks: -sum(_areas(tracks)))
  large = [tracks for tracks in ranked if np.mean(_areas(tracks)) >= LEAST_AREA * np.mean(_areas(ranked[0]))]
  return [Person(number, tracks) for number, tracks in enumerate(large, 1)]


def present(people: Iterable[Person], frames: Int[np.ndarray, "N"]) -> Bool[np.ndarray, "N"]:
  """Whether any of these persons is there in each frame: between the first and the last box of one of their tracks."""
  spans = [(track[0][0], track[-1][0]) for person in people for track in person.tracks]
  return np.any([(frames >= first) & (frames <= last) for first, last in spans], axis=0)


def check_person(person: str) -> None:
  """Raises UserError unless it is "largest", "all" or a number from 1."""
  if person not in ("largest", "all") and not (person.isascii() and person.isdecimal() and int(person)):
    choices = "choose largest, all, or a number from 1, which is the largest over time"
    raise UserError(f"person={person}: {choices}")


def chosen_persons(
  person: str, detections: Detections | None, num_frames: int, cuts: Sequence[int]
) -> list[Person | None]:
  """Who of a film is asked for: None is the largest face over time, as of "all" in a film without persons.

  Raises UserError if no face was looked for, or there is no such person.
  """
  check_person(person)
  if person == "largest":
    return [None]
  if detections is None:
    raise UserError(f"person={person}: {NO_FACES}")
  found = persons(detections, num_frames, cuts)
  if person == "all":
    return [*found] or [None]
  if int(person) > len(found):
    numbers = f"{count(len(found), 'person')} found, numbered by size over time"
    raise UserError(f"person={person}: there is no such person: {numbers}")
  return [found[int(person) - 1]]


def _areas(tracks: Sequence[Track]) -> list[float]:
  return [box.area for track in tracks for _, box in track]


def _overlap(one: Box, other: Box) -> float:
  """Intersection over union."""
  width = min(one.right, other.right) - max(one.left, other.left)
  height = min(one.bottom, other.bottom) - max(one.top, other.top)
  both = max(0.0, width) * max(0.0, height)
  return both / (one.area + other.area - both) if both else 0.0


def _alike(one: Box, other: Box) -> bool:
  if not (one.look and other.look):
    return True
  looks = [np.frombuffer(box.look, np.uint8).astype(np.float64) for box in (one, other)]
  return bool(np.abs(looks[0] - looks[1]).mean() <= SAME_LOOK)
