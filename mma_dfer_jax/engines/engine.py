"""What can answer: an engine, the facts about its model, and `load_model`, which finds the engine for a path.

Each file of this folder is an engine; there is no registry. It has

  OPENS                                what it opens, for people
  opens(path) -> bool                  whether it opens a path; cheap
  describe(path, step, precision)      the `About` of the model there; reads no parameters; UserError if it cannot be had
                                       in that precision
  load(path, about, sharding)          the engine

and imports nothing heavy at its top. (`jax` does, for it uses the code of training: it is asked last.)
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import importlib
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from jaxtyping import Float, Float32, UInt8
import numpy as np

from mma_dfer_jax.errors import UserError, listed
from mma_dfer_jax.inputs import Inputs
from mma_dfer_jax.paths import hint

if TYPE_CHECKING:
  from mma_dfer_jax import Prediction

# Fields of `About` in the description of an exported file, beside inputs, and what each is there.
FACTS = {"streams": tuple, "classes": tuple, "class_order": str, "recipe": dict, "origin": dict, "precision": str,
         "sample_rates": tuple}  # fmt: skip
# Fields of `About` that not every training knows, with what stands for that; files keep those that are known.
IF_KNOWN: Mapping[str, Any] = {"seconds_of_sound": 0.0, "typical": {}, "temperature": 1.0}


OWN_CLASSES = "{} answers with its own classes only; others need a model with head=text, as a run or a model folder, with JAX"
NO_FRAMES = "{} keeps as many frames as it was {}; fewer need a model with frame_mask=soft, as a run or a model folder, with JAX"
NO_FEATURES = (
  "{} gives no features, only logits; load the run or the model folder that it was made of, with JAX"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class About:
  """The facts about a model that answers."""

  inputs: Inputs
  streams: tuple[str, ...]  # those of "image" and "audio" that it has an encoder for
  classes: tuple[str, ...]  # names, in the order of the logits
  class_order: str  # where that order comes from, in words
  recipe: Mapping[str, Any]  # how its training data were prepared
  origin: Mapping[str, Any]  # what to quote beside an answer: step of the run or converted file, and version
  precision: str  # of the computation, "float32" or "bfloat16"; logits are float32 in both
  fingerprint: str  # sha256 of its weights: the same fingerprint gives the same answers
  sample_rates: tuple[int, ...] = ()  # of the sounds in its training and test clips, Hz; empty if unknown
  seconds_of_sound: float = 0.0  # median of these clips; 0 if unknown
  # Between which values 90 % of its training clips lie (`DataSet.typical`), as far as known.
  typical: Mapping[str, Sequence[float]] = dataclasses.field(default_factory=dict)
  warnings: tuple[str, ...] = ()  # of every answer: what is otherwise than in its training
  temperature: float = (
    1.0  # logits / this are logits of probabilities; fitted on held-out clips, 1 if there were none
  )
  # Flat fields of its run; empty if converted.
  config: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    typical = list(self.typical.values()) if isinstance(self.typical, Mapping) else [self.typical]
    pairs = [of for of in typical if isinstance(of, list | tuple) and len(of) == 2]
    numbers = [self.temperature, *itertools.chain(*pairs)]
    known = len(pairs) == len(typical) and all(isinstance(n, int | float) and n >= 0 for n in numbers)
    if not (known and self.temperature):
      facts = f"typical={self.typical!r}, temperature={self.temperature!r}"
      raise UserError(f"the model's description is damaged: {facts}")

  @property
  def known(self) -> dict[str, Any]:
    """Those of IF_KNOWN that are known."""
    return {name: getattr(self, name) for name, unknown in IF_KNOWN.items() if getattr(self, name) != unknown}

  @property
  def step(self) -> int | None:
    """Updates that its run made before; None if it was converted."""
    return self.origin.get("step")


@dataclasses.dataclass(frozen=True, repr=False)
class Engine:
  """Answers batches of clips; `repr` gives five lines of facts. A subclass has `answer` and `parameters`."""

  about: About
  path: Path  # of the model

  @property
  def name(self) -> str:
    """As `load_model` takes it."""
    return type(self).__module__.rpartition(".")[2]

  def __call__(
    self,
    video: UInt8[np.ndarray, "B T H W 3"] | Float[np.ndarray, "B T H W 3"],
    spectrogram: Float[np.ndarray, "B F K"],
    landmarks: Float[np.ndarray, "B T p 3"] | None = None,
  ) -> Float32[np.ndarray, "B C"]:
    """Logits (B, C); UserError with everything that is wrong with the inputs.

    Args:
      video: (B, T, H, W, 3) RGB, uint8 or float in [0, 1].
      spectrogram: (B, F, K), normalised log-mel, as `mma_dfer_jax.data.fbank.spectrogram` makes it.
      landmarks: (B, T, p, 3) of a model that takes points of the face, as `mma_dfer_jax.data.landmarks.as_shown` gives them;
        None of all others.
    """
    return self.outputs(video, spectrogram, landmarks)["logits"]

  def outputs(
    self,
    video: UInt8[np.ndarray, "B T H W 3"] | Float[np.ndarray, "B T H W 3"],
    spectrogram: Float[np.ndarray, "B F K"],
    landmarks: Float[np.ndarray, "B T p 3"] | None = None,
  ) -> dict[str, np.ndarray]:
    """Logits (B, C), as "logits", and what the model's parts say besides; arguments and errors as for a call.

    A frame mask says "frame_weights" (B, T): what each frame counts, 1 on average over those that it keeps; 0: not kept. A layer
    pool says what `parts.OF_LAYERS` names.
    """
    arrays = [np.asarray(array) for array in (video, spectrogram, landmarks) if array is not None]
    check_inputs(self.about.inputs, *arrays)
    found = self.answer(*arrays)
    named = found if isinstance(found, Mapping) else {"logits": found}
    return {name: np.asarray(value) for name, value in named.items()}

  def predict(self, frames: Any, waveform: Any = None, sample_rate: Any = None, **how: Any) -> "Prediction":
    """What the model says of a clip in memory; arguments as for `predict_arrays`."""
    from mma_dfer_jax import predict_arrays  # the package's own door: an engine knows nothing of answers

    return predict_arrays(self, frames, waveform, sample_rate, **how)

  def features(
    self, frames: Any, waveform: Any = None, sample_rate: Any = None, **how: Any
  ) -> dict[str, np.ndarray]:
    """What the model makes of a clip in memory before it answers; arguments as for `predict_arrays`.

    Returns:
      float32 arrays: image (S, D), the class token of each frame; audio (E,), that of the sound; joint (S, W), both
      together frame by frame; clip (W,), what the answer is read from; logits (C,). A missing stream has none.
    """
    from mma_dfer_jax import features_of_arrays

    return features_of_arrays(self, frames, waveform, sample_rate, **how)

  def compute_features(
    self,
    video: UInt8[np.ndarray, "B T H W 3"],
    spectrogram: Float[np.ndarray, "B F K"],
    *landmarks: np.ndarray,
  ) -> dict[str, np.ndarray]:
    """The same of a batch of clips that are prepared, each array with a first axis B; UserError if this engine has none."""
    raise UserError(NO_FEATURES.format(self.path))

  def gates(self) -> dict[str, tuple[float, ...]]:
    """tanh of Fusion Bottleneck's gates by layer, "to picture" and "to sound"; empty if this engine shows none."""
    return {}

  def choosing_frames(self, by: str) -> "Engine":
    """The same model, given frames chosen by "number" or "time", however it was trained."""
    about = dataclasses.replace(self.about, inputs=dataclasses.replace(self.about.inputs, frame_choice=by))
    return dataclasses.replace(self, about=about)

  def keeping_frames(self, number: int) -> "Engine":
    """The same model, whose frame mask keeps fewer frames than in its training: faster, with a warning in every answer.

    Raises:
      UserError: if the model has no frame mask, or keeps no more frames already.
    """
    raise UserError(NO_FRAMES.format(self.path, "exported with"))

  def with_classes(self, path: str | Path, order: Sequence[str] = ()) -> "Engine":
    """The same model, answering with the classes of a file of vectors: names that it was never trained on, too.

    Args:
      path: an .npz file as `config.pretrained.text` takes it.
      order: these classes, in the order of the answers; empty: those of the file, in its order.
    Raises:
      UserError: if the model has no head that knows its classes by vectors, or the file does not fit it.
    """
    raise UserError(OWN_CLASSES.format(self.path))

  # (self, video, spectrogram[, landmarks]) -> logits, or all outputs by name, of inputs that fit.
  answer: ClassVar[Callable[..., Any]]
  parameters: ClassVar[Callable[[Any], str]]  # how many there are, or where, in words

  def __repr__(self) -> str:
    about = self.about
    origin = f" (step {about.step})" if about.step is not None else ""
    return (
      f"{type(self).__name__} of {self.path}{origin}\n  classes: {', '.join(about.classes)}\n  takes: {about.inputs}\n"
      f"  parameters: {self.parameters()}\n  precision: {about.precision}"
    )


def load_model(
  path: str | Path, *, step: int | str = "last", precision: str | None = None, engine: str | None = None,
  sharding: Any = None,
) -> Engine:  # fmt: skip
  """Opens a run's workdir, a folder of `convert`, or a file of `export`; UserError if there is no such model.

  Args:
    step: of a workdir: "last", "best" (by WAR on the test clips), or a saved step number.
    precision: of the computation, "float32", "bfloat16" or "int8"; None: as it was trained or exported, and float32 for a
      converted model. With "float32" the parameters are exactly the saved ones. "int8" needs a file of its own.
    engine: what computes, "jax", "onnxruntime", "openvino" or "stablehlo"; None: the first of them that opens the model.
    sharding: of all parameters in JAX; None: on the first device.
  """
  about = describe(path, step=step, precision=precision, engine=engine)
  return _engine_of(Path(path), engine).load(Path(path), about, sharding)


def describe(
  path: str | Path, *, step: int | str = "last", precision: str | None = None, engine: str | None = None
) -> About:
  """The facts about the model that `load_model` opens with the same arguments; reads no parameters."""
  return _engine_of(Path(path), engine).describe(Path(path), step, precision)


def _engine_of(path: Path, engine: str | None) -> Any:
  """The module of the engine for a path; UserError, with what can be opened, if there is none."""
  files = {file.stem for file in Path(__file__).parent.glob("*.py")} - {"__init__", "engine"}
  if engine not in (None, *files):
    raise UserError(f"engine={engine!r}: choose one of {', '.join(sorted(files))}")
  known: dict[str, None] = {}
  for name in sorted(files, key=lambda name: (name != engine, name == "jax", name)):
    try:
      module = importlib.import_module(f"{__package__}.{name}")
    except ImportError as error:  # only what trains needs JAX
      if path.exists():
        advice = "pip install 'mma_dfer_jax[train]'"
        raise UserError(f"{path} needs JAX, which cannot be imported ({error}): {advice}") from error
      continue
    if module.opens(path):
      if engine in (None, name):
        return module
      raise UserError(f"--engine={engine} opens {next(iter(known))}; {path} is for --engine={name}")
    known[module.OPENS] = None
  what = "is no model that can be opened" if path.exists() else "does not exist"
  if "unpack" in (packed := hint(path, folder=True)):
    what = packed
  advice = "an authors' checkpoint must be converted first: python -m mma_dfer_jax.convert"
  raise listed(f"{path} {what}; a model is", known, advice * path.is_file())


def about_of(said: Mapping[str, Any]) -> About:
  """The facts in the description of an exported file; ValueError, KeyError or TypeError if they are not there."""
  facts: dict[str, Any] = {name: kind(said[name]) for name, kind in FACTS.items()}
  inputs = Inputs(**said["inputs"] | {"audio_shape": tuple(said["inputs"]["audio_shape"])})
  facts |= {name: said[name] for name in IF_KNOWN if name in said}
  return About(inputs=inputs, fingerprint=said["sha256"], **facts)


def check_inputs(inputs: Inputs, video: np.ndarray, spectrogram: np.ndarray, *landmarks: np.ndarray) -> None:
  """Raises UserError with everything that is wrong with a batch of clips."""
  problems, arrays = [], (video, spectrogram, *landmarks)
  if len(arrays) != len(inputs.shapes):
    raise UserError(
      f"this batch cannot be answered: the model takes {', '.join(inputs.shapes)}; {len(arrays)} were given"
    )
  for points in landmarks:
    if points.dtype.kind != "f" or not np.isfinite(points).all():
      problems.append(f"landmarks must be finite floating point; they are {points.dtype}")
    if len(points) != len(video):
      problems.append(f"{len(video)} videos, {len(points)} of landmarks: give as many of each")
  if len(video) != len(spectrogram) or not len(video):
    given = f"{len(video)} videos, {len(spectrogram)} spectrograms"
    problems.append(f"{given}: give as many of each, at least one")
  for (name, shape), array in zip(inputs.shapes.items(), arrays, strict=True):
    if array.shape[1:] != shape:
      problems.append(f"{name} must be (B, {', '.join(map(str, shape))}); it is {array.shape}")
  if video.dtype != np.uint8 and not (video.dtype.kind == "f" and video.min() >= 0 and video.max() <= 1):
    given = f"{video.dtype}, {video.min()} to {video.max()}"
    problems.append(f"video must be uint8, or floating point in [0, 1]; it is {given}")
  if spectrogram.dtype.kind != "f":
    problems.append(f"spectrogram must be floating point; it is {spectrogram.dtype}")
  elif not np.isfinite(spectrogram).all():
    problems.append("spectrogram holds infinite or undefined (NaN) values")
  if problems:
    raise listed("this batch cannot be answered", problems)


def refuse_step(path: Path, step: int | str, kind: str) -> None:
  """Raises UserError if the user chose a step of a model without steps."""
  if step != "last":
    raise UserError(f"{path} is {kind}, which has no steps; leave out --step={step}")
