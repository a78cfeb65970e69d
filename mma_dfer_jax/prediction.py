"""What an engine answers about a video: about the whole of it, or about windows over time."""

from collections.abc import Callable, Iterable, Iterator, Mapping
import dataclasses
import functools
import itertools
import math
from pathlib import Path
from typing import Any

from jaxtyping import Float, UInt8
import numpy as np

from mma_dfer_jax.data import film, media
from mma_dfer_jax.data.channels import CHANNELS
from mma_dfer_jax.data.faces import FaceFinder, finder_of
from mma_dfer_jax.data.fbank import rate_difference
from mma_dfer_jax.data.film import Sample, Soundtrack
from mma_dfer_jax.engines.engine import About, Engine
from mma_dfer_jax.errors import UserError
from mma_dfer_jax.inputs import Inputs

GAP = 0.5  # seconds without sound that are no reason to warn
HEARD = 0.9  # share of a sound that must fit into the spectrogram, or a warning is given
# Of normalised spectrograms. Speech differs by 0.05 to 0.09 between 44.1 and 48 kHz, music by up to 0.14; speech by 0.10 to
# 0.16 between 32 and 48 kHz, by 0.14 to 0.29 between 16 and 48.
OTHER_VOICE = 0.1
MUCH_SHORTER = 0.5  # of the training clips' median sound, or
MOSTLY_PADDING = 0.4  # where that is not known, of the spectrogram: less is warned of
WIDEST_FACE, LARGEST_FACE = (
  1.25,
  4,
)  # sides of a picture to each other, and to the model's: more is no cut-out face
FEW_FACES = 0.5  # share of frames with a face below which a warning is given
THUMBNAILS = 12  # faces above the picture of a timeline
Faces = str | FaceFinder | None  # how to cut out faces, see `predict_video`


@dataclasses.dataclass(frozen=True)
class Prediction:
  """What the model says of a video, or of a window of it."""

  clip: str  # the file
  start: float  # seconds since the first picture
  end: float
  top: str  # the most probable class
  probabilities: dict[str, float]  # by class name, in the order of the logits; they add up to 1
  frames: int  # in the video or window; the model sees as many of them as in training
  frames_with_face: int | None  # None: no face was looked for, the frames were taken as they are
  faces_at_once: int | None  # the most faces in one frame; None likewise
  sound: bool  # False: the model was given the constant that stands for a missing sound
  silent: bool  # there is sound, but all of it is 60 dB below full scale
  seconds_of_sound: float
  sample_rate: int  # Hz, of the file: the spectrogram is made at this rate; 0 without sound
  warnings: tuple[str, ...]  # the reasons to trust this answer less

  @property
  def seconds(self) -> float:
    return self.end - self.start


@dataclasses.dataclass(frozen=True)
class Timeline:
  """What the model says of a film, window by window."""

  clip: str  # the file
  seconds: float  # length of the film
  window: float  # seconds that a window lasts
  hop: float  # seconds from one start to the next
  predictions: tuple[Prediction, ...]  # of all windows, in the order of time
  soundtrack: Soundtrack | None  # loudness over the whole film; None without sound
  # At which seconds the model saw what: at most 12, evenly spread.
  thumbnails: tuple[tuple[float, UInt8[np.ndarray, "H W 3"]], ...]
  warnings: tuple[str, ...] = ()  # that concern all windows


def predict_video(
  engine: Engine, file: str | Path, *, faces: Faces = "auto", face_model: str | Path | None = None,
  channel: str = "auto",
) -> Prediction:  # fmt: skip
  """What the model says of one video file, from frames over all of it (16) and the beginning of its sound (5.12 s).

  A second video compiles nothing, whatever its size. Memory does not grow with the length.

  Args:
    engine: as `load_model` opens it.
    file: any video that FFmpeg's libraries read.
    faces: "auto": cut out as in the model's training; "yunet": cut out; "none": the video is already cropped to the
      face. Or a FaceFinder; None as "none".
    face_model: YuNet's .onnx file; None: a copy that is downloaded once.
    channel: of the sound, "first", "loudest", "centre" or "mix"; "auto": as in the model's training.
  Raises:
    MediaError: if the file is no video, has no picture, or is damaged. (A UserError, whose text is for people.)
    UserError: if the face detector is needed and not there.
  """
  finder = face_finder(engine, faces, face_model)
  sample = clip_sample(engine.about.inputs, file, finder, channel=sound_channel(engine.about.recipe, channel))
  ((_, prediction),) = predict_samples(engine, [sample], 1)
  return prediction


def predict_timeline(
  engine: Engine, file: str | Path, *, window: float = 4.0, hop: float = 1.0, faces: Faces = "auto",
  face_model: str | Path | None = None, channel: str = "auto", batch_size: int = 1,
  progress: Callable[[str, float, float | None], object] = lambda doing, done, of: None,
) -> Timeline:  # fmt: skip
  """What the model says of a film over time: each window as if it were a clip of its own.

  Args:
    engine, file, faces, face_model, channel: as for `predict_video`.
    window: seconds of a window; training clips of DFEW last 2 to 5 s.
    hop: seconds from the start of one window to that of the next, at most `window`. The last window ends with the film.
    batch_size: windows given to the model at once.
    progress: gets ("look", seconds, length as declared or None), then ("predict", windows, number of windows).
  Raises:
    MediaError: if the file is no video, has no picture, or is damaged; raised before the model is asked.
    UserError: if window or hop are impossible, or the face detector is needed and not there.
  """
  film.check_windows(window, hop)
  finder, channel = face_finder(engine, faces, face_model), sound_channel(engine.about.recipe, channel)
  with media.one_clip(file):
    declared = media.declared_seconds(file)
    show = lambda seconds: progress("look", seconds, declared)  # noqa: E731
    seen = film.survey(file, finder, hop=hop, channel=channel, progress=show)
    windows = film.windows(seen, window, hop)
    number = min(THUMBNAILS, len(windows))
    pictured = {(2 * i + 1) * len(windows) // (2 * number) for i in range(number)}
    predictions, thumbnails = [], []
    samples = ((str(file), sample) for sample in film.samples(seen, windows, engine.about.inputs, finder))
    for i, (sample, prediction) in enumerate(predict_samples(engine, samples, batch_size)):
      predictions.append(prediction)
      if i in pictured:
        middle = (prediction.start + prediction.end) / 2
        thumbnails.append((middle, sample.video[len(sample.video) // 2].copy()))
      progress("predict", i + 1, len(windows))
    return Timeline(
      str(file), seen.seconds, window, hop, tuple(predictions), seen.sound, tuple(thumbnails), seen.notes
    )


def clip_sample(
  inputs: Inputs, file: str | Path, finder: FaceFinder | None, *, channel: str = "first",
  progress: Callable[[float], object] = lambda seconds: None,
) -> tuple[str, Sample]:  # fmt: skip
  """The name of a file, and what a model with these inputs is given of the whole of it; errors as predict_video.

  `progress` gets the seconds of each frame; what it raises ends the reading.
  """
  with media.one_clip(file):
    seen = film.survey(file, finder, channel=channel, progress=progress)
    (sample,) = film.samples(seen, film.windows(seen), inputs, finder)
  return str(file), sample


def predict_samples(
  engine: Engine, samples: Iterable[tuple[str, Sample]], batch_size: int
) -> Iterator[tuple[Sample, Prediction]]:
  """Answers samples, given with the names of their files; UserError if batch_size is below 1.

  All batches have one size, so that the model is compiled once; the last is filled up.
  """
  if batch_size < 1:
    raise UserError(f"batch_size={batch_size} must be at least 1")
  rest = iter(samples)
  while batch := list(itertools.islice(rest, batch_size)):
    filled = [sample for _, sample in batch] + [batch[-1][1]] * (batch_size - len(batch))
    logits = engine(np.stack([one.video for one in filled]), np.stack([one.spectrogram for one in filled]))
    for (clip, sample), row in zip(batch, logits, strict=False):
      yield sample, _prediction(engine.about, clip, sample, row)


def _prediction(about: About, clip: str, sample: Sample, logits: Float[np.ndarray, "C"]) -> Prediction:
  shifted = np.exp(logits.astype(np.float64) - logits.max())
  shares = dict(zip(about.classes, (shifted / shifted.sum()).tolist(), strict=True))
  start, end, first, last = sample.window
  return Prediction(
    clip, start, end, about.classes[int(logits.argmax())], shares, frames=last - first,
    frames_with_face=None if sample.with_face is None else int(sample.with_face.sum()),
    faces_at_once=sample.faces_at_once, sound=sample.seconds_of_sound > 0, silent=sample.silent,
    seconds_of_sound=sample.seconds_of_sound, sample_rate=sample.sample_rate, warnings=tuple(_warnings(about, sample)),
  )  # fmt: skip


def _warnings(about: About, sample: Sample) -> Iterator[str]:
  """The reasons to trust an answer less than the scores on test clips."""
  yield from sample.notes
  if "image" in about.streams:
    yield from _about_pictures(about, sample)
  if "audio" in about.streams:
    yield from _about_sound(about, sample)


def _about_pictures(about: About, sample: Sample) -> Iterator[str]:
  _, _, first, last = sample.window
  frames, (width, height), size = last - first, sample.size, about.inputs.image_size
  yield from sample.changes
  if frames < about.inputs.num_frames:
    repeated = "the last is repeated" if about.inputs.frame_choice == "number" else "some are repeated"
    yield f"only {frames} of {about.inputs.num_frames} frames: {repeated}"
  if sample.rates and about.inputs.frame_choice == "number":
    most, least = sample.rates
    yield (f"the frame rate is uneven, {most:.3g} a second in one quarter of the frames and {least:.3g} in another: frames "
           "chosen by number show some of the time too often; --frame_choice=time spreads them evenly")  # fmt: skip
  if sample.with_face is None:
    uncut = max(width, height) > WIDEST_FACE * min(width, height) or min(width, height) > LARGEST_FACE * size
    if str(about.recipe.get("faces", "none")) != "none" and uncut and max(width, height) > size:
      yield (f"pictures of {width}x{height} as they are, but the model was trained on cut-out faces: --faces=yunet cuts "
             "them out")  # fmt: skip
    return
  if sample.turned:
    yield sample.turned
  share = sample.with_face.mean()
  if not share:
    yield "no face was found: the model saw the middle of the picture"
  elif share < FEW_FACES:
    yield f"a face in only {100 * share:.0f} % of the frames"
  if (sample.faces_at_once or 0) > 1:
    yield f"up to {sample.faces_at_once} faces at once: the largest over time was followed"


def _about_sound(about: About, sample: Sample) -> Iterator[str]:
  start, end, _, _ = sample.window
  length, seconds = end - start, sample.seconds_of_sound
  if not seconds:
    new = ", which it never met in training" * (about.recipe.get("missing_sound") == "refused")
    yield f"no sound: the model was given the constant that stands for it{new}"
    return
  if about.sample_rates and sample.sample_rate not in about.sample_rates:
    difference, rate = min((rate_difference(sample.waveform, sample.sample_rate, rate, about.inputs.audio_shape), rate)
                           for rate in about.sample_rates)  # fmt: skip
    if math.isnan(difference):
      yield (f"sound at {sample.sample_rate} Hz, unlike the training clips' {rate} Hz: without SciPy nobody measures what that "
             "changes")  # fmt: skip
    if difference > OTHER_VOICE:
      rates = ", ".join(map(str, about.sample_rates))
      yield (f"sound at {sample.sample_rate} Hz, but the training clips at {rates} Hz: its spectrogram differs by "
             f"{difference:.2f} from that at {rate} Hz, and the model may take it for another voice")  # fmt: skip
  if sample.silent:
    yield "the sound is silent"
  if seconds < min(length, sample.heard) - GAP:
    yield f"only {seconds:.2f} of {length:.2f} s have sound"
  if sample.heard < HEARD * seconds:
    yield (f"only the first {sample.heard:.2f} of {seconds:.2f} s of the sound were heard, while the frames are from all of "
           f"the time: --window={max(1, math.floor(sample.heard)):g} answers part by part")  # fmt: skip
  if seconds < MUCH_SHORTER * min(about.seconds_of_sound, sample.heard):
    yield _padding(
      seconds, sample.heard, f"half of the training clips have {about.seconds_of_sound:.2f} s or more"
    )


def _padding(seconds: float, room: float, training: str) -> str:
  padded = 100 - 100 * seconds / room
  return f"only {seconds:.2f} s of sound: {padded:.0f} % of the spectrogram are padding, while {training}"


def warnings_of_windows(about: About, window: float) -> Iterator[str]:
  """What holds for all windows of so many seconds, whatever the film, if nothing is known of the training clips."""
  room = 0.015 + 0.01 * about.inputs.audio_shape[0]
  if "audio" in about.streams and not about.seconds_of_sound and window < MOSTLY_PADDING * room:
    yield _padding(
      window, room, f"clips of DFEW and MAFW fill most of it; --window={math.ceil(room) - 1:g} does, too"
    )


def sound_channel(recipe: Mapping[str, Any], channel: str) -> str:
  """Which channel of a sound is heard: the one that is named, or with "auto" that of the model's training clips."""
  of_training = str(recipe.get("sound_channel", "first"))
  if channel not in ("auto", *CHANNELS):
    raise UserError(f"channel={channel}: choose one of auto, {', '.join(CHANNELS)}")
  return channel if channel != "auto" else of_training if of_training in CHANNELS else "first"


def face_finder(engine: Engine, faces: Faces, face_model: str | Path | None) -> FaceFinder | None:
  """What cuts out faces, by the arguments of `predict_video`; loaded once for all videos."""
  if faces is None or isinstance(faces, FaceFinder):
    return faces
  recipe = tuple((key, str(engine.about.recipe.get(key, ""))) for key in ("faces", "frame_size"))
  return _kept_finder(recipe, Path(face_model) if face_model else None, faces)


_kept_finder = functools.lru_cache(maxsize=4)(lambda recipe, *how: finder_of(dict(recipe), *how))


def described(finder: FaceFinder | None) -> str:
  """How faces were cut out, in the words of a recipe."""
  return f"yunet, {finder.policy}" if finder else "none"
