"""A run or a model folder, by JAX: the same program as in training."""

import dataclasses
from pathlib import Path
from typing import Any

from flax import nnx
import jax
from jax.sharding import Sharding
from jaxtyping import Array, Float, Float32, UInt8
import numpy as np

from mma_dfer_jax.disk import sha256_of
from mma_dfer_jax.engines.engine import About, check_inputs, refuse_step, summary
from mma_dfer_jax.errors import UserError
from mma_dfer_jax.model import ModelConfig
from mma_dfer_jax.parameters import PRECISIONS, abstract_model, cast, count, split_tunable, tunable_patterns
from mma_dfer_jax.training.checkpoints import Checkpointer, load_frozen
from mma_dfer_jax.training.run import check_same_run, model_of, read_run
from mma_dfer_jax.training.sharding import check_precision, keep_compiled
from mma_dfer_jax.training.steps import in_float32
from mma_dfer_jax.weights.folder import open_folder

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
  if (path / "run.json").exists():
    run = read_run(path)
    cfg, config = model_of(run), run["config"]
    facts: dict[str, Any] = {
      "classes": tuple(run["classes"]),
      "class_order": f"of the data set {config['data.name']}",
      "recipe": run["recipe"],
      "origin": {"step": _step_of(path, step), "version": run["version"]},
      "precision": precision or config["precision"],
      "fingerprint": sha256_of(path / "run.json"),
      "sample_rates": tuple(run["data_set"]["sample_rates"]),
      "config": config,
    }
  else:
    refuse_step(path, step, "a converted model")
    folder = open_folder(path)
    cfg, said = folder.model, folder.about
    facts = {
      "classes": tuple(said["classes"]),
      "class_order": said["class_order"],
      "recipe": said["recipe"],
      "origin": {"converted_from": said["source"], "version": said["version"]},
      "precision": precision or "float32",
      "fingerprint": sha256_of(path / "model.json"),
    }
  check_precision(facts["precision"])
  streams = tuple(name for name in ("image", "audio") if getattr(cfg, name).depth)
  return About(inputs=cfg.inputs, streams=streams, **facts)


def load(path: Path, about: About, sharding: Sharding | None) -> JaxEngine:
  """Opens it; what is compiled for it is kept on disk for later processes, see `keep_compiled`."""
  keep_compiled()
  if about.config:
    run = read_run(path)
    cfg = model_of(run)
    graphdef, tunable, frozen = split_tunable(nnx.merge(*abstract_model(cfg)), run["tunable"])
    checkpointer = Checkpointer(path, read_only=True)
    try:
      tunable, meta = checkpointer.restore_tunable(about.origin["step"], tunable, sharding)
    finally:
      checkpointer.close()
    check_same_run(run, meta["run"], f"{path}/run.json")
    frozen = load_frozen(path, frozen, sharding)
  else:
    folder = open_folder(path)
    cfg, values = folder.model, folder.read()
    graphdef, tunable, frozen = split_tunable(nnx.merge(*abstract_model(cfg)), tunable_patterns(cfg))

    def filled(state: nnx.State) -> nnx.State:
      return nnx.from_flat_state(
        (path, v.replace(jax.device_put(np.asarray(values["/".join(map(str, path))], np.float32), sharding)))
        for path, v in nnx.to_flat_state(state)
      )

    tunable, frozen = filled(tunable), filled(frozen)
  return JaxEngine(about, path, cfg, graphdef, cast(tunable, about.precision), cast(frozen, about.precision))


def _step_of(workdir: Path, step: int | str) -> int:
  """The saved step that a name or a number means; UserError, with all that there are, if there is none."""
  checkpointer = Checkpointer(workdir, read_only=True)
  try:
    named = {"last": checkpointer.latest_step(), "best": checkpointer.best_step()}
    steps = {str(number): number for number in checkpointer.manager.all_steps()}
  finally:
    checkpointer.close()
  found = named.get(str(step)) or steps.get(str(step))
  if found is None:
    raise UserError(f"{workdir} has no checkpoint {step!r}; it has the steps {', '.join(steps) or 'none'}")
  return found
