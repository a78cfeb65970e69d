"""What an engine answers about a video: about the whole of it, or about windows over time."""

from collections.abc import Callable, Iterable, Iterator
import dataclasses
import functools
import itertools
from pathlib import Path

from jaxtyping import Float, Float64, UInt8
import numpy as np

from mma_dfer_jax.data import film, media
from mma_dfer_jax.data.faces import FaceFinder, finder_of
from mma_dfer_jax.data.film import Sample, Soundtrack
from mma_dfer_jax.engines.engine import About, Engine
from mma_dfer_jax.errors import UserError
from mma_dfer_jax.inputs import Inputs

GAP = 0.5  # seconds without sound that are no reason to warn
HEARD = 0.9  # share of a sound that must fit into the spectrogram, or a warning is given
FEW_FACES = 0.5  # share of frames with a face below which an answer says so
THUMBNAILS = 12  # faces above the picture of a timeline
Progress = Callable[
  [str, float, float | None], object
]  # what is done, how much of it, out of how much if known


@dataclasses.dataclass(frozen=True)
class Prediction:
  """What the model says of a video, or of a window of it.

  Attributes:
    clip: the file.
    start, end: seconds since the first picture.
    top: name of the most probable class.
    probabilities: by class name, in the order of the logits; they add up to 1.
    frames: number of frames, of which the model sees as many as it was trained on.
    frames_with_face: in how many a face was found; None: nobody looked, the frames were taken as they are.
    faces_at_once: the most faces in one frame; None likewise.
    sound: whether there is sound; False: the model was given the constant that stands for a missing sound.
    silent: whether there is sound, but all of it 60 dB below full scale.
    seconds_of_sound: its length.
    sample_rate: of the sound, Hz; 0 if there is none. The model's spectrogram is that of the file's own rate.
    warnings: the reasons to trust this answer less, in words.
  """

  clip: str
  start: float
  end: float
  top: str
  probabilities: dict[str, float]
  frames: int
  frames_with_face: int | None
  faces_at_once: int | None
  sound: bool
  silent: bool
  seconds_of_sound: float
  sample_rate: int
  warnings: tuple[str, ...]

  @property
  def seconds(self) -> float:
    return self.end - self.start


@dataclasses.dataclass(frozen=True)
class Timeline:
  """What the model says of a film, window by window.

  Attributes:
    clip: the file.
    seconds: its length.
    window, hop: seconds that a window lasts, and from one start to the next.
    predictions: of all windows, in the order of time.
    soundtrack: loudness over the whole film; None without sound.
    thumbnails: seconds in the film, and (H, W, 3) uint8, what the model saw then; at most 12, evenly spread.
  """

  clip: str
  seconds: float
  window: float
  hop: float
  predictions: tuple[Prediction, ...]
  soundtrack: Soundtrack | None
  thumbnails: tuple[tuple[float, UInt8[np.ndarray, "H W 3"]], ...]

  @property
  def classes(self) -> tuple[str, ...]:
    return tuple(self.predictions[0].probabilities)

  def probabilities(self) -> Float64[np.ndarray, "W C"]:
    """(W, C) of all windows and classes."""
    return np.array([list(one.probabilities.values()) for one in self.predictions])


def predict_video(
  engine: Engine, file: str | Path, *, faces: str | FaceFinder | None = "auto", face_model: str | Path | None = None
) -> Prediction:  # fmt: skip
  """What the model says of one video file, from frames over all of it and the beginning of its sound.

  These are 16 frames and 5.12 s in the paper's model.

  A second video compiles nothing, whatever its size and length. Memory does not grow with the length.

  Args:
    engine: as `load_model` opens it.
    file: any video that FFmpeg's libraries read.
    faces: "auto": cut out as in the model's training; "yunet": cut out; "none": the video is cut already. Or a
      FaceFinder; None as "none".
    face_model: YuNet's .onnx file; None: a copy that is fetched once.
  Returns:
    probabilities, and what they were made of.
  Raises:
    MediaError: if the file is no video, has no picture, or is damaged. (A UserError, whose text is for people.)
    UserError: if the face detector is needed and cannot be had.
  """
  finder = _finder(engine, faces, face_model)
  ((_, prediction),) = predict_samples(engine, [clip_sample(engine.about.inputs, file, finder)], 1)
  return prediction


def predict_timeline(
  engine: Engine,
  file: str | Path,
  *,
  window: float = 4.0,
  hop: float = 1.0,
  faces: str | FaceFinder | None = "auto",
  face_model: str | Path | None = None,
  batch_size: int = 1,
  progress: Progress = lambda doing, done, of: None,
) -> Timeline:  # fmt: skip
  """What the model says of a film over time: each window as if it were a clip of its own.

  Args:
    engine, file, faces, face_model: as for `predict_video`.
    window: length of a window, seconds; training clips of DFEW last 2 to 5 s.
    hop: seconds from the start of one window to that of the next, at most `window`. The last window ends with the film.
    batch_size: windows given to the model at once.
    progress: is told what is done: ("look", seconds, seconds declared or None), then ("predict", windows, number of windows).
  Raises:
    MediaError: if the file is no video, has no picture, or is damaged; that is known before the model is asked.
    UserError: if window or hop cannot be, or the face detector is needed and cannot be had.
  """
  film.check_windows(window, hop)
  finder = _finder(engine, faces, face_model)
  declared = media.declared_seconds(file)
  seen = film.survey(file, finder, hop=hop, progress=lambda seconds: progress("look", seconds, declared))
  wanted = film.windows(seen, window, hop)
  number = min(THUMBNAILS, len(wanted))
  pictured = {(2 * i + 1) * len(wanted) // (2 * number) for i in range(number)}
  predictions: list[Prediction] = []
  thumbnails: list[tuple[float, np.ndarray]] = []
  samples = film.samples(seen, wanted, engine.about.inputs, finder)
  labelled = ((str(file), sample) for sample in samples)
  for i, (sample, prediction) in enumerate(predict_samples(engine, labelled, batch_size)):
    predictions.append(prediction)
    if i in pictured:
      thumbnails.append(
        ((prediction.start + prediction.end) / 2, sample.video[len(sample.video) // 2].copy())
      )
    progress("predict", i + 1, len(wanted))
  return Timeline(str(file), seen.seconds, window, hop, tuple(predictions), seen.sound, tuple(thumbnails))


def clip_sample(
  inputs: Inputs, file: str | Path, finder: FaceFinder | None,
  *, progress: Callable[[float], object] = lambda seconds: None,
) -> tuple[str, Sample]:  # fmt: skip
  """The name of a file, and what a model with these inputs is given of the whole of it; errors as predict_video.

  `progress` is told the seconds that were seen, for each frame; what it raises ends the reading.
  """
  seen = film.survey(file, finder, progress=progress)
  (sample,) = film.samples(seen, film.whole(seen), inputs, finder)
  return str(file), sample


def predict_samples(
  engine: Engine, samples: Iterable[tuple[str, Sample]], batch_size: int
) -> Iterator[tuple[Sample, Prediction]]:
  """Asks the model in batches of one size, so that it is compiled once; a last batch is filled up.

  Args:
    engine: what answers.
    samples: with the names of their files.
    batch_size: how many at once.
  Raises:
    UserError: if batch_size is below 1.
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
  probabilities = shifted / shifted.sum()
  return Prediction(
    clip=clip,
    start=sample.window.start,
    end=sample.window.end,
    top=about.classes[int(logits.argmax())],
    probabilities=dict(zip(about.classes, probabilities.tolist(), strict=True)),
    frames=sample.window.last - sample.window.first,
    frames_with_face=None if sample.with_face is None else int(sample.with_face.sum()),
    faces_at_once=sample.faces_at_once,
    sound=sample.seconds_of_sound > 0,
    silent=sample.silent,
    seconds_of_sound=sample.seconds_of_sound,
    sample_rate=sample.sample_rate,
    warnings=tuple(_warnings(about, sample)),
  )


def _warnings(about: About, sample: Sample) -> Iterator[str]:
  """The reasons to trust this answer less than what was measured on test clips."""
  if "image" in about.streams:
    yield from _warnings_of_picture(about, sample)
  if "audio" in about.streams:
    yield from _warnings_of_sound(about, sample)


def _warnings_of_picture(about: About, sample: Sample) -> Iterator[str]:
  frames = sample.window.last - sample.window.first
  if frames < about.inputs.num_frames:
    yield f"only {frames} of {about.inputs.num_frames} frames: the last is repeated"
  if sample.with_face is not None:
    share = sample.with_face.mean()
    if not share:
      yield "no face was found: the model saw the middle of the picture"
    elif share < FEW_FACES:
      yield f"a face in only {100 * share:.0f} % of the frames"
    if (sample.faces_at_once or 0) > 1:
      yield f"up to {sample.faces_at_once} faces at once: the largest over time was followed"


def _warnings_of_sound(about: About, sample: Sample) -> Iterator[str]:
  if not sample.seconds_of_sound:
    untrained = about.recipe.get("missing_sound") == "refused"
    yield "no sound: the model was given the constant that stands for it" + (
      ", which it never met in training" if untrained else ""
    )
    return
  rates = about.sample_rates
  if rates and sample.sample_rate not in rates:
    yield (
      f"sound at {sample.sample_rate} Hz, but the clips of the training at {', '.join(map(str, rates))} Hz: the model "
      "may take it for another voice"
    )
  if sample.silent:
    yield "the sound is silent"
  if sample.seconds_of_sound < min(sample.window.end - sample.window.start, sample.heard) - GAP:
    yield f"only {sample.seconds_of_sound:.2f} of {sample.window.end - sample.window.start:.2f} s have sound"
  if sample.heard < HEARD * sample.seconds_of_sound:
    yield f"only the first {sample.heard:.2f} of {sample.seconds_of_sound:.2f} s of the sound were heard"


def _finder(
  engine: Engine, faces: str | FaceFinder | None, face_model: str | Path | None
) -> FaceFinder | None:
  if faces is None or isinstance(faces, FaceFinder):
    return faces
  recipe = {key: str(value) for key, value in engine.about.recipe.items() if key in ("faces", "frame_size")}
  return _kept_finder(tuple(recipe.items()), Path(face_model) if face_model else None, faces)


@functools.lru_cache(maxsize=4)
def _kept_finder(
  recipe: tuple[tuple[str, str], ...], face_model: Path | None, faces: str
) -> FaceFinder | None:
  """The detector is loaded once for all videos."""
  return finder_of(dict(recipe), face_model, faces)


def described(finder: FaceFinder | None) -> str:
  """How faces were cut out, in the words of a recipe."""
  return f"yunet, {finder.policy}" if finder else "none"
