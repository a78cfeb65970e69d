"""A run or a model folder, by JAX: the same program as in training."""

import dataclasses
from pathlib import Path

from flax import nnx
import jax
from jax.sharding import Sharding
from jaxtyping import Array, Float, Float32, UInt8
import numpy as np

from mma_dfer_jax.engines.engine import About, check_inputs, refuse_step, summary
from mma_dfer_jax.errors import UserError
from mma_dfer_jax.model import ModelConfig
from mma_dfer_jax.parameters import PRECISIONS, abstract_model, cast, count, split_tunable, tunable_patterns
from mma_dfer_jax.training.run import read_run
from mma_dfer_jax.training.sharding import check_precision, keep_compiled
from mma_dfer_jax.training.start import open_stored
from mma_dfer_jax.training.steps import in_float32

OPENS = "the workdir of a run (with run.json), or a folder that convert wrote (with model.json)"
MATMUL_PRECISION = "float32"  # accelerators would otherwise take TF32 or bfloat16 for float32 on their own


@dataclasses.dataclass(frozen=True, repr=False)
class JaxEngine:
  """MMA-DFER in JAX.

  Attributes:
    about: what to know of it.
    path: where it comes from.
    cfg: parts and sizes.
    graphdef, tunable, frozen: what `nnx.merge` makes the Flax module of; parameters are in `about.precision`.
  """

  about: About
  path: Path
  cfg: ModelConfig
  graphdef: nnx.GraphDef
  tunable: nnx.State
  frozen: nnx.State

  def __post_init__(self):
    object.__setattr__(self, "_logits", jax.jit(self.logits))  # compiled once for each shape

  def logits(
    self, tunable: nnx.State, frozen: nnx.State, video: Array, spectrogram: Float[Array, "B F K"]
  ) -> Float32[Array, "B C"]:
    """What is computed, to be traced; see `__call__`."""
    with jax.default_matmul_precision(MATMUL_PRECISION):
      model = nnx.merge(self.graphdef, tunable, frozen)
      return in_float32(model(video, spectrogram.astype(PRECISIONS[self.about.precision]))).logits

  def __call__(
    self,
    video: UInt8[np.ndarray, "B T H W 3"] | Float[np.ndarray, "B T H W 3"],
    spectrogram: Float[np.ndarray, "B F K"],
  ) -> Float32[np.ndarray, "B C"]:
    video, spectrogram = np.asarray(video), np.asarray(spectrogram)
    check_inputs(self.about.inputs, video, spectrogram)
    return np.asarray(self._logits(self.tunable, self.frozen, video, spectrogram))  # type: ignore[attr-defined]

  def __repr__(self) -> str:
    tunable, frozen = count(self.tunable), count(self.frozen)
    return summary(self, self.path, f"{tunable + frozen:,}, of which {tunable:,} tunable")


def opens(path: Path) -> bool:
  return (path / "run.json").exists() or (path / "model.json").exists()


def describe(path: Path, step: int | str, precision: str | None) -> About:
  if precision not in (None, *PRECISIONS):
    raise UserError(f"precision={precision!r}: choose one of {', '.join(PRECISIONS)}")
  if not (path / "run.json").exists():
    refuse_step(path, step, "a converted model")
  stored, facts = open_stored(path, step), {}
  cfg, said = stored.model, stored.about
  if (path / "run.json").exists():
    run = read_run(path)
    facts = {"config": run["config"]}
    origin = {"step": said["source"]["step"], "version": run["version"]}
  else:
    origin = {"converted_from": said["source"], "version": said["version"]}
  precision = precision or said.get("precision", "float32")
  if precision not in PRECISIONS:
    raise UserError(f"{path} was trained in {precision!r}, which is none of {', '.join(PRECISIONS)}")
  check_precision(precision)
  return About(
    inputs=cfg.inputs,
    streams=tuple(name for name in ("image", "audio") if getattr(cfg, name).depth),
    classes=tuple(said["classes"]),
    class_order=said["class_order"],
    recipe=said["recipe"],
    origin=origin,
    precision=precision,
    fingerprint=stored.sha256,
    sample_rates=tuple(said.get("sample_rates", ())),
    **facts,
  )


def load(path: Path, about: About, sharding: Sharding | None) -> JaxEngine:
  """Opens it; what is compiled for it is kept on disk for later processes, see `keep_compiled`."""
  keep_compiled()
  stored = open_stored(path, "last" if about.step is None else about.step)
  values = stored.read()
  patterns = tunable_patterns(stored.model, stored.about.get("tunable", ()))
  graphdef, *states = split_tunable(nnx.merge(*abstract_model(stored.model)), patterns)

  def filled(state: nnx.State) -> nnx.State:
    arrays = nnx.from_flat_state(
      (path, v.replace(jax.device_put(np.asarray(values["/".join(map(str, path))], np.float32), sharding)))
      for path, v in nnx.to_flat_state(state)
    )
    return cast(arrays, about.precision)

  return JaxEngine(about, path, stored.model, graphdef, *map(filled, states))
