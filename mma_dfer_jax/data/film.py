"""A video of any length as what a model is given: the whole of it, or windows of some seconds one after the other.

A video is read twice, because a face is followed over a whole window before it is cut out: `survey` keeps times, faces and
loudness, `samples` the frames of the windows that are open. Neither holds more pictures or sound than a few seconds.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
import contextlib
import dataclasses
import itertools
import math
from operator import itemgetter
import os
from typing import Any, NamedTuple

from jaxtyping import Bool, Float, Float32, Int, Int16, UInt8
import numpy as np

from mma_dfer_jax.data import media
from mma_dfer_jax.data.channels import SILENT, Heard
from mma_dfer_jax.data.faces import Detections, FaceFinder, cut, look_over
from mma_dfer_jax.data.fbank import samples_for
from mma_dfer_jax.data.frames import choose_frames, encode_frame, uneven_rate
from mma_dfer_jax.data.landmarks import STORED, OfFilms, Watcher
from mma_dfer_jax.data.persons import Person, persons, present
from mma_dfer_jax.data.pipeline import make_example
from mma_dfer_jax.errors import UserError
from mma_dfer_jax.inputs import Inputs

LOUDNESS_RATE = 20  # extremes of the sound that are kept of each second
EPSILON = 1e-6  # seconds: times of frames are sums of fractions
SHORTEST_WINDOW = 0.1  # seconds
LONGEST_STEP_BACK = 1.0  # seconds by which a picture may be earlier than the one before
LEFTOVER = 0.025  # seconds at the end of a film that are no window of their own: many files round times


class Soundtrack(NamedTuple):
  """What is remembered of a sound."""

  sample_rate: int  # Hz
  seconds: float
  extremes: Int16[np.ndarray, "E 2"]  # lowest and highest sample of every 1/20 s
  channel: str = "first"  # that was heard, one of CHANNELS
  notes: tuple[str, ...] = ()  # about its channels

  def peak(self, start: float, end: float) -> int:
    """Largest sample, of 32768, between two times in seconds; 0 where there is none."""
    first, last = math.floor(start * LOUDNESS_RATE), math.ceil(min(end, self.seconds) * LOUDNESS_RATE)
    return int(np.abs(self.extremes[first:last].astype(np.int32)).max(initial=0))


@dataclasses.dataclass(frozen=True)
class Film:
  """What is remembered of a video."""

  path: str
  times: Float[np.ndarray, "N"]  # seconds of all frames since the first, ascending
  seconds: float  # when the last frame ends
  sizes: Int[np.ndarray, "N 2"]  # height and width of the frames
  detections: Detections | None  # None: no detector looked for faces
  sound: Soundtrack | None  # None: the file has none, or less than one window of the spectrogram
  stamp: tuple[int, ...]  # which file it was, to notice another in its place
  turned: str = ""  # what its faces show of a wrong orientation
  tracks: tuple[str, ...] = ()  # which were taken, if there are several of a kind
  cuts: Sequence[int] = ()  # frames that begin a new shot; () without a detector

  @property
  def notes(self) -> tuple[str, ...]:
    """About tracks, and channels of the sound."""
    return self.tracks + (self.sound.notes if self.sound else ())


class Window(NamedTuple):
  """A part of a film: seconds, and frames (`last` is the one after its last)."""

  start: float
  end: float
  first: int
  last: int


@dataclasses.dataclass(frozen=True)
class Sample:
  """What a model is given of a window, and what it was made of."""

  window: Window
  video: UInt8[np.ndarray, "T H W 3"]
  spectrogram: Float32[np.ndarray, "F K"]
  with_face: Bool[np.ndarray, "N"] | None  # for each frame, whether a face was found; None without a detector
  faces_at_once: int | None  # the most faces in one frame; None likewise
  face_score: float  # the detector's, median over the detections of what was followed; 0 without any
  seconds_of_sound: float  # 0: there is none, and the spectrogram is the constant for a missing sound
  heard: float  # seconds of sound that the spectrogram has room for
  silent: bool  # there is sound, but all of it is 60 dB below full scale
  sample_rate: int  # of the sound, Hz; 0 if there is none
  size: tuple[int, int]  # width and height of the first frame, before a face was cut out
  changes: tuple[str, ...]  # what was done to pixels that are meant otherwise than they are stored
  turned: str  # what the film's faces show of a wrong orientation, in words
  waveform: Int16[np.ndarray, "S"]  # that the spectrogram was made of
  rates: tuple[float, float] | None  # frames a second in the densest and rarest quarter, if uneven
  notes: tuple[str, ...]  # of a whole film, as there
  person: int | None = None  # number of the one who was cut out; None: the largest face over time
  times: tuple[float, ...] = ()  # seconds of each frame of `video` since the first of the film
  # Frames of `video` without the largest person over time, in whose place another was followed.
  of_others: int = 0
  landmarks: Float32[np.ndarray, "T p 3"] | None = None  # of a model that takes points of the face
  # With `inputs.test_views` above 1: the same of each part, whose probabilities are averaged; this sample is the middle.
  views: "tuple[Sample, ...]" = ()

  @property
  def arrays(self) -> tuple[np.ndarray, ...]:
    """What the model takes, in its order."""
    points = () if self.landmarks is None else (self.landmarks,)
    return (self.video, self.spectrogram, *points)


def survey(
  path: str | os.PathLike[str], finder: FaceFinder | None = None, *, hop: float | None = None,
  channel: str = "first", progress: Callable[[float], object] = lambda seconds: None,
) -> Film:  # fmt: skip
  """Reads a video to its end, so that whatever is wrong with it is known before a model runs.

  Args:
    finder: looks for faces in every fourth frame, as in training, and in the first and the last of every hop.
    hop: seconds from one window to the next; None if there will be one window.
    channel: of the sound, one of CHANNELS.
    progress: gets the time of each frame, in seconds; what it raises ends the reading.
  Raises:
    MediaError: if the file is no video, or damaged; with a hop also if its clock jumps.
  """
  stamp = _stamp(path)
  sound = _listen(path, channel)  # a hundredth of the time of the pictures, so that damage is found soon
  times: list[float] = []
  duration = upcoming = 0.0

  def seen() -> Iterator[Any]:  # pixels if faces are looked for
    nonlocal duration, upcoming
    for picture, after in itertools.pairwise(itertools.chain(media.iterate_pictures(path), [None])):
      assert picture is not None
      step = after.time - picture.time if after else 0.0
      if hop and not -LONGEST_STEP_BACK <= step <= media.LONGEST_JUMP:
        jump = f"its pictures jump by {step:.0f} s at {picture.time:.2f} s"
        raise media.MediaError(f"{path}: is damaged: {jump}")
      upcoming = picture.time + step
      times.append(max([picture.time, *times[-1:]]))
      duration = picture.duration
      progress(picture.time)
      yield picture.pixels() if finder else picture

  def due() -> bool:
    """Whether the frame that was seen last is the first or the last of a hop."""
    around = (times[-2], times[-1], max(times[-1], upcoming))
    return hop is not None and len({math.floor((time + EPSILON) / hop) for time in around}) > 1

  looked = look_over(seen(), finder, due)
  end = media.end_of_last(times, times[-1] + duration)
  return Film(
    os.fspath(path), np.array(times), end, looked.sizes, looked.detections, sound, stamp, looked.turned,
    media.tracks_taken(path), looked.cuts,
  )  # fmt: skip


def _stamp(path: str | os.PathLike[str]) -> tuple[int, ...]:
  with contextlib.suppress(OSError, ValueError):  # reading it says what is wrong
    status = os.stat(path)
    return status.st_ino, status.st_size, status.st_mtime_ns
  return ()


def _listen(path: str | os.PathLike[str], channel: str) -> Soundtrack | None:
  heard = Heard(channel)
  extremes: list[tuple[int, int]] = []
  rest = np.zeros(0, np.int16)
  length = rate = 0

  def samples_before(twentieth: int) -> int:
    return round(twentieth * rate / LOUDNESS_RATE)

  for piece in media.iterate_sound(path, channel, heard):
    rate = piece.sample_rate
    length += len(piece.waveform)
    rest = np.concatenate([rest, piece.waveform])
    while len(rest) >= (size := samples_before(len(extremes) + 1) - samples_before(len(extremes))):
      extremes.append((rest[:size].min(), rest[:size].max()))
      rest = rest[size:]
  if not media.is_long_enough(length, rate):
    return None
  if len(rest):
    extremes.append((rest.min(), rest.max()))
  return Soundtrack(rate, length / rate, np.array(extremes, np.int16), channel, heard.notes())


def windows(film: Film, window: float | None = None, hop: float | None = None) -> list[Window]:
  """Windows that begin every `hop` seconds; the last is the first that reaches the film's end, and may be shorter.

  Less than 25 ms at the end of a film belong to the window before. A window's frames are those that begin in it; if none
  does, the one that is still shown. Without `window` and `hop`, the whole film is one.

  Raises:
    UserError: see `check_windows`.
  """
  if window is None or hop is None:
    return [Window(0.0, film.seconds, 0, len(film.times))]
  check_windows(window, hop)
  found = []
  for k in range(math.ceil(film.seconds / hop)):
    start, end = k * hop, k * hop + window
    end = end if end < film.seconds - LEFTOVER else film.seconds
    found.append(window_between(film, start, end))
    if end == film.seconds:
      break
  return found


def window_between(film: Film, start: float, end: float) -> Window:
  """The window of these seconds, with the frames that begin in it; if none does, the one that is still shown."""
  first, last = np.searchsorted(film.times, (start - EPSILON, end - EPSILON)).tolist()
  first = first if first < last else max(0, first - 1)
  return Window(start, end, first, max(last, first + 1))


def check_windows(window: float, hop: float) -> None:
  """Raises UserError unless every moment of a film lies in a window of 0.1 s or more."""
  if not SHORTEST_WINDOW <= window < math.inf or not SHORTEST_WINDOW / 10 <= hop <= window:
    raise UserError(f"window={window:g} and hop={hop:g} seconds: choose a window of at least {SHORTEST_WINDOW} s and a hop "
                    f"between {SHORTEST_WINDOW / 10} s and the window, so that nothing is left out")  # fmt: skip


def samples(
  film: Film, wanted: Sequence[Window], inputs: Inputs, finder: FaceFinder | None = None,
  persons: Sequence[Person | None] | None = None,
) -> Iterator[Sample]:  # fmt: skip
  """What the model is given of each window: what `prepare` and `make_example` would make of a clip cut out there.

  `survey` saw the film with the same finder; the windows are in the order of time. `persons` are who is cut out of each,
  None: the largest face over time. Raises MediaError while iterating, if the file is another than it was.
  """
  upcoming = deque(zip(wanted, persons or [None] * len(wanted), strict=True))
  opened = deque[OpenWindow]()
  sounds = _excerpts(film, wanted, inputs.audio_shape[0])
  changed = media.MediaError(f"{film.path}: was changed while it was read")
  if _stamp(film.path) != film.stamp:
    raise changed
  for number, picture in enumerate(media.iterate_pictures(film.path)):
    while upcoming and upcoming[0][0].first <= number:
      begun, person = upcoming.popleft()
      opened.append(OpenWindow(film, begun, inputs, finder, person))
    if takers := [window for window in opened if number in window.chosen]:
      if picture.shape[:2] != tuple(film.sizes[number]):
        raise changed
      pixels = picture.pixels()
      for window in takers:
        window.take(number, pixels, picture.changes)
    while opened and opened[0].chosen[-1] <= number:
      yield opened.popleft().sample(inputs, *next(sounds))
  if upcoming or opened or _stamp(film.path) != film.stamp:
    raise changed


class OpenWindow:
  """A window some of whose frames are still to come."""

  def __init__(
    self, film: Film, window: Window, inputs: Inputs, finder: FaceFinder | None, person: Person | None = None
  ):
    self.window, self.finder, self.person = window, finder, person
    # Points of the face are looked for in the frames that the model sees; those of training data in all, too.
    self.watcher = Watcher(finder.detector if finder else OfFilms.detector()) if inputs.points else None
    times = np.append(film.times[window.first : window.last], window.end)
    self.rates = uneven_rate(times)
    self.frames: list[Any] = [b""] * (window.last - window.first)
    self.turned, self.changes = film.turned, dict[str, None]()
    self.height, self.width = film.sizes[window.first].tolist()
    self.track = self.faces_at_once = None
    if finder is not None and film.detections is not None:
      at, until = (bisect_left(film.detections, i, key=itemgetter(0)) for i in (window.first, window.last))
      detections = [(number - window.first, boxes) for number, boxes in film.detections[at:until]]
      cuts = [cut - window.first for cut in film.cuts if window.first < cut < window.last]
      tracks = person.within(window.first, window.last) if person else None
      self.track = finder.track(detections, film.sizes[window.first : window.last], cuts, tracks)
      self.faces_at_once = max((len(boxes) for _, boxes in detections), default=0)
    number = window.last - window.first
    # Of the largest face all frames are shown, as in training; of a person those in which they are.
    self.shown = np.flatnonzero(self.track.found) if person and self.track else np.arange(number)
    self.times = np.append(times[self.shown], times[self.shown[-1] + 1])
    views = (None, *range(inputs.test_views)) if inputs.test_views > 1 else (None,)
    by_view = {view: choose_frames(inputs, len(self.shown), self.times, view=view) for view in views}
    self.seconds = {view: tuple(self.times[of].tolist()) for view, of in by_view.items()}
    chosen = np.concatenate([*by_view.values()])
    self.chosen: list[int] = np.unique(window.first + self.shown[chosen]).tolist()
    self.of_others = 0
    if self.track and not person:
      people, at = persons(detections, number, cuts), self.shown[by_view[None]]
      if len(people) > 1:
        self.of_others = int((present(people[1:], at) & ~present(people[:1], at)).sum())

  def take(self, number: int, pixels: np.ndarray, changes: Iterable[str], *, coded: bool = True) -> None:
    place = number - self.window.first
    self.changes.update(dict.fromkeys(changes))
    if self.finder is not None and self.track is not None:
      (pixels,) = cut([pixels], self.track.boxes[place][None], self.finder.size)
    self.frames[place] = encode_frame(pixels) if coded else pixels
    if self.watcher:
      self.watcher.look(number, pixels)

  def sample(
    self, inputs: Inputs, sound: np.ndarray, rate: int, seconds: float, peak: int, notes: tuple[str, ...] = ()
  ) -> Sample:
    """What the model is given: of a sound with so many seconds and this largest sample, what the spectrogram has room for."""
    room = samples_for(inputs.audio_shape[0], rate)
    waveform, heard = sound[:room].copy(), room / (rate or 1)
    if not media.is_long_enough(len(waveform), rate):
      rate, seconds = 0, 0.0
    frames = [self.frames[i] for i in self.shown]
    record: dict[str, Any] = {"frames": frames, "times": self.times, "label": 0, "clip_id": b""}
    record |= {"waveform": waveform, "sample_rate": rate, "has_audio": rate > 0}
    if self.watcher:
      faces = np.zeros(len(self.shown), STORED)
      faces[np.searchsorted(self.window.first + self.shown, self.chosen)] = self.watcher.found()
      record["faces"] = faces.tobytes()
    found, score = (self.track.found, self.track.score) if self.track else (None, 0.0)
    facts: dict[str, Any] = {"with_face": found, "face_score": score, "faces_at_once": self.faces_at_once}
    facts |= {"size": (self.width, self.height), "changes": tuple(self.changes), "rates": self.rates}
    facts |= {"waveform": waveform, "seconds_of_sound": seconds, "heard": heard, "sample_rate": rate}
    facts |= {"silent": rate > 0 and peak < SILENT, "notes": notes, "turned": self.turned}
    facts |= {"person": self.person.number if self.person else None, "of_others": self.of_others}

    def of_view(view: int | None) -> Sample:
      example = make_example(record, inputs, view=view)
      arrays: dict[str, Any] = {name: example.get(name) for name in ("video", "spectrogram", "landmarks")}
      return Sample(self.window, times=self.seconds[view], **arrays, **facts)

    middle, *views = map(of_view, self.seconds)
    return dataclasses.replace(middle, views=tuple(views))


def _excerpts(film: Film, wanted: Sequence[Window], num_rows: int) -> Iterator[tuple[Any, ...]]:
  """Of each window, whose sound is read once, what `OpenWindow.sample` takes: no more samples than so many rows need."""
  sound = film.sound or Soundtrack(0, 0.0, np.zeros((0, 2), np.int16))
  rate, room = sound.sample_rate, samples_for(num_rows, sound.sample_rate)
  pieces = media.iterate_sound(film.path, sound.channel)
  kept, position = np.zeros(0, np.int16), 0  # what was read and may be needed, and its first sample's number
  for window in wanted:
    # The sound of a whole clip may be longer than its pictures.
    alone = window.start == 0.0 and window.end == film.seconds
    end = sound.seconds if alone else min(window.end, sound.seconds)
    start, stop = round(window.start * rate), round(end * rate)
    parts, reached = [kept[max(0, start - position) :]], position + len(kept)
    position = max(start, position)
    while reached < min(stop, start + room) and (piece := next(pieces, None)):
      parts.append(piece.waveform[max(0, position - reached) :])
      reached += len(piece.waveform)
    kept = np.concatenate(parts)
    waveform, notes = kept[: max(0, min(stop, start + room) - position)], film.notes if alone else ()
    yield waveform, rate, (stop - start) / (rate or 1), sound.peak(window.start, end), notes
