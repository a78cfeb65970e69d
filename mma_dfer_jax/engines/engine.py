"""What answers: an engine, the facts about its model, and `load_model`, which finds the engine for a path.

An engine is a file of this folder, and nothing is registered anywhere. It has

  OPENS                                what it opens, for people
  opens(path) -> bool                  whether a path is such a thing; cheap
  describe(path, step, precision)      the `About` of the model there; reads no parameters
  load(path, about, sharding)          the engine

and imports nothing heavy at its top. (`jax` does, for it computes with what training computes with: it is asked last.)
"""

from collections.abc import Mapping
import dataclasses
import importlib
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float, Float32, UInt8
import numpy as np

from mma_dfer_jax.errors import UserError, listed
from mma_dfer_jax.inputs import Inputs


@dataclasses.dataclass(frozen=True, kw_only=True)
class About:
  """The facts about a model that answers.

  Attributes:
    inputs: sizes of what it is fed with.
    streams: which of "image" and "audio" it looks at.
    classes: names, in the order of the logits.
    class_order: where that order comes from, in words.
    recipe: how its training data were prepared.
    origin: what to quote beside an answer: the step of the run or the converted file, and the version.
    precision: of what is computed, "float32" or "bfloat16"; logits are float32 in any.
    fingerprint: sha256 of its weights: an answer stays right as long as it stays.
    sample_rates: of the sounds that it was trained and tested on, Hz; empty if that is not known.
    config: all fields of its run, flat ("data.fold"); empty if it does not come as a run.
  """

  inputs: Inputs
  streams: tuple[str, ...]
  classes: tuple[str, ...]
  class_order: str
  recipe: Mapping[str, Any]
  origin: Mapping[str, Any]
  precision: str
  fingerprint: str
  sample_rates: tuple[int, ...] = ()
  config: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def step(self) -> int | None:
    """Updates it has seen in its run; None if it was converted."""
    return self.origin.get("step")


@runtime_checkable
class Engine(Protocol):
  """Answers batches of clips, whatever computes it."""

  @property
  def about(self) -> About:
    """The facts about its model."""

  def __call__(
    self,
    video: UInt8[np.ndarray, "B T H W 3"] | Float[np.ndarray, "B T H W 3"],
    spectrogram: Float[np.ndarray, "B F K"],
  ) -> Float32[np.ndarray, "B C"]:
    """Logits (B, C).

    Args:
      video: (B, T, H, W, 3) RGB, uint8 or float in [0, 1].
      spectrogram: (B, F, K), normalised log-mel, as `mma_dfer_jax.data.fbank.spectrogram` makes it.
    Raises:
      UserError: with everything that is wrong with shapes, types and values, see `check_inputs`.
    """


def load_model(
  path: str | Path, *, step: int | str = "last", precision: str | None = None, sharding: Any = None
) -> Engine:
  """Opens a model: the workdir of a run, a model folder that `convert` wrote, or a file that `export` wrote.

  Args:
    path: of it.
    step: of a workdir: "last", "best" (by WAR on the test clips), or the number of a saved step.
    precision: of what is computed, "float32" or "bfloat16"; None: as it was trained or exported, and float32 for a
      model folder. The parameters as they were saved come with "float32".
    sharding: of all parameters in JAX; None: they are on the first device.
  Raises:
    UserError: if there is no such model.
  """
  path = Path(path)
  engine = _engine_of(path)
  return engine.load(path, engine.describe(path, step, precision), sharding)


def describe(path: str | Path, *, step: int | str = "last", precision: str | None = None) -> About:
  """The facts about what `load_model` would open; arguments and errors are the same, and nothing long is done."""
  path = Path(path)
  return _engine_of(path).describe(path, step, precision)


def _engine_of(path: Path) -> Any:
  """The module of the engine for a path; UserError, with what can be opened, if there is none."""
  files = (file.stem for file in Path(__file__).parent.glob("*.py"))
  names = sorted({*files} - {"__init__", "engine"}, key=lambda name: (name == "jax", name))
  known = []
  for name in names:
    module = importlib.import_module(f"{__package__}.{name}")
    if module.opens(path):
      return module
    known.append(module.OPENS)
  what = "no model that can be opened" if path.exists() else "not there"
  convert = "a checkpoint of the authors must be converted first: python -m mma_dfer_jax.convert"
  raise listed(f"{path} is {what}; a model is", known, convert * path.is_file())


def check_inputs(inputs: Inputs, video: np.ndarray, spectrogram: np.ndarray) -> None:
  """Raises UserError with everything that is wrong with a batch of clips."""
  problems = []
  if len(video) != len(spectrogram) or not len(video):
    problems.append(
      f"{len(video)} videos, {len(spectrogram)} spectrograms: give as many of each, at least one"
    )
  for name, array, shape in (
    ("video", video, inputs.video_shape),
    ("spectrogram", spectrogram, inputs.audio_shape),
  ):
    if array.shape[1:] != shape:
      problems.append(f"{name} must be (B, {', '.join(map(str, shape))}); it is {array.shape}")
  if video.dtype != np.uint8 and not (video.dtype.kind == "f" and video.min() >= 0 and video.max() <= 1):
    problems.append(
      f"video must be uint8, or floating point in [0, 1]; it is {video.dtype}, {video.min()} to {video.max()}"
    )
  if spectrogram.dtype.kind != "f":
    problems.append(f"spectrogram must be floating point; it is {spectrogram.dtype}")
  elif not np.isfinite(spectrogram).all():
    problems.append("spectrogram holds infinite or undefined (NaN) values")
  if problems:
    raise listed("this cannot be answered", problems)


def summary(engine: Engine, source: object, parameters: str) -> str:
  """Five lines that say what an engine is, for `repr`."""
  about, i = engine.about, engine.about.inputs
  origin = f" (step {about.step})" if about.step is not None else ""
  return "\n".join(
    [
      f"{type(engine).__name__} of {source}{origin}",
      f"  classes: {', '.join(about.classes)}",
      f"  takes: video (B, {', '.join(map(str, i.video_shape))}), spectrogram (B, {', '.join(map(str, i.audio_shape))})",
      f"  parameters: {parameters}",
      f"  precision: {about.precision}",
    ]
  )


def refuse_step(path: Path, step: int | str, kind: str) -> None:
  """Raises UserError if a step is asked of what has none."""
  if step != "last":
    raise UserError(f"{path} is {kind}, which has no steps; --step={step} cannot choose one")
