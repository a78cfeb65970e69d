"""A trained model that answers: opened from the workdir of a run, or from a model folder that `convert` wrote.

folder/model.json        sizes, class names, recipe of the data, source, version
folder/params/0, 1, …    all parameters, by path, in the dtype of the source
folder/unused            tensors of the source that never take part, by the authors' names
folder/conversion.json   the report: counts, digests, what was verified
"""

from collections.abc import Iterator, Mapping
import dataclasses
import json
from pathlib import Path
import sys
from typing import Any

from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
import jax
import jax.numpy as jnp
from jax.sharding import Sharding
from jaxtyping import Array, Float, UInt8
import numpy as np
import orbax.checkpoint as ocp

from mma_dfer_jax.checkpoints import Checkpointer, check_same_run, load_frozen, model_config, read_run, short
from mma_dfer_jax.config import PAPER_TUNABLE
from mma_dfer_jax.errors import UserError, listed
from mma_dfer_jax.model import ModelConfig
from mma_dfer_jax.sharding import keep_compiled
from mma_dfer_jax.torch_names import to_torch
from mma_dfer_jax.train_state import abstract_model, split_tunable
from mma_dfer_jax.verdict import digest


@dataclasses.dataclass(frozen=True)
class TrainedModel:
  """A trained MMA-DFER and what it must be fed with; call it with a batch to get logits.

  Attributes:
    graphdef, tunable, frozen: the parts that `nnx.merge` makes the Flax module of.
    cfg: sizes.
    classes: names, in the order of the logits.
    recipe: how its data were prepared.
    origin: what to quote beside an answer: the step of the run or the converted file, and the version.
    step: updates it has seen in its run; None for a converted one.
    config: all fields of its run, flat ("data.fold"); empty for a converted one.
    sample_rates: of the sounds that it was trained and tested on, Hz; empty if that is not known.
  """

  graphdef: nnx.GraphDef
  tunable: nnx.State
  frozen: nnx.State
  cfg: ModelConfig
  classes: tuple[str, ...]
  recipe: dict[str, Any]
  origin: dict[str, Any]
  step: int | None = None
  config: dict[str, Any] = dataclasses.field(default_factory=dict)
  sample_rates: tuple[int, ...] = ()

  def __post_init__(self):
    graphdef = self.graphdef

    def logits(tunable, frozen, video, spectrogram):
      with jax.default_matmul_precision("float32"):  # accelerators would else take a coarser one
        return nnx.merge(graphdef, tunable, frozen)(video, spectrogram)

    object.__setattr__(self, "_logits", jax.jit(logits))  # compiled once for each shape

  def __call__(
    self,
    video: Float[np.ndarray | Array, "B T H W 3"] | UInt8[np.ndarray | Array, "B T H W 3"],
    spectrogram: Float[np.ndarray | Array, "B F K"],
  ) -> Float[np.ndarray, "B C"]:
    """Logits (B, C) float32.

    Args:
      video: (B, T, H, W, 3) RGB, float in [0, 1] or uint8.
      spectrogram: (B, F, K) float32, normalised log-mel, as `mma_dfer_jax.data.fbank.spectrogram` makes it.
    Raises:
      ValueError: if shapes, types or values are not those.
    """
    video, spectrogram = np.asarray(video), np.asarray(spectrogram)
    if len(video) != len(spectrogram) or not len(video):
      raise ValueError(
        f"{len(video)} videos and {len(spectrogram)} spectrograms: give as many of each, at least one"
      )
    if video.dtype != np.uint8 and not (video.dtype.kind == "f" and video.min() >= 0 and video.max() <= 1):
      raise ValueError(
        f"video must be uint8, or floating point in [0, 1]; it is {video.dtype}, {video.min()} to {video.max()}"
      )
    if not np.isfinite(spectrogram).all():
      raise ValueError("the spectrogram holds infinite or undefined (NaN) values")
    pixels = jnp.asarray(video, jnp.float32) / (255.0 if video.dtype == np.uint8 else 1.0)
    logits = self._logits(self.tunable, self.frozen, pixels, jnp.asarray(spectrogram, jnp.float32))  # type: ignore[attr-defined]
    return np.asarray(logits)


def load_model(
  folder: str | Path, *, step: int | str = "last", sharding: Sharding | None = None
) -> TrainedModel:
  """Opens the model of a training workdir, or a model folder that `convert` wrote.

  What is compiled for it is kept on disk for later processes, see `keep_compiled`.

  Args:
    folder: what `mma_dfer_jax.train` was given as --workdir, or `mma_dfer_jax.convert` as --out.
    step: of a workdir: "last", "best" (by WAR), or a step that was kept.
    sharding: of all parameters; None: they are on the first device.
  Raises:
    UserError: if there is no such model.
  """
  folder = Path(folder)
  keep_compiled()
  if (folder / "run.json").exists():
    return _load_run(folder, step, sharding)
  if not (folder / "model.json").exists():
    convert = "; convert it first: python -m mma_dfer_jax.convert --model=… --out=…" * folder.is_file()
    raise UserError(
      f"{folder} is neither the workdir of a run (it has no run.json) nor a converted model (no model.json){convert}"
    )
  if step != "last":
    raise UserError(f"{folder} is a converted model, which has no steps; {step!r} cannot be chosen")
  about = read_about(folder)
  cfg = sizes_in(about, folder)
  graphdef, tunable, frozen = split_tunable(nnx.merge(*abstract_model(cfg)), PAPER_TUNABLE)
  arrays: dict[str, Array] = {}
  for params in read_shards(folder):
    check_digests(folder, to_torch(params, cfg))
    arrays |= {
      path: jax.device_put(np.asarray(array, np.float32), sharding) for path, array in params.items()
    }
  _check_complete(folder, arrays, (tunable, frozen))
  origin = {"converted_from": about["source"], "version": about["version"]}
  return TrainedModel(
    graphdef,
    _filled(tunable, arrays),
    _filled(frozen, arrays),
    cfg,
    tuple(about["classes"]),
    about["recipe"],
    origin,
  )


def _load_run(workdir: Path, step: int | str, sharding: Sharding | None) -> TrainedModel:
  run = read_run(workdir)
  checkpointer = Checkpointer(workdir, read_only=True)
  try:
    named = {"last": checkpointer.latest_step(), "best": checkpointer.best_step()}
    found = named[step] if isinstance(step, str) and step in named else step
    steps = checkpointer.manager.all_steps()
    if not isinstance(found, int) or found not in steps:
      raise UserError(
        f"{workdir} has no checkpoint {step!r}; it has the steps {', '.join(map(str, steps)) or 'none'}"
      )
    cfg = model_config(run["config"], run["classes"])
    abstract = nnx.merge(*abstract_model(cfg))
    graphdef, tunable, frozen = split_tunable(abstract, run["config"]["tunable"])
    tunable, meta = checkpointer.restore_tunable(found, tunable, sharding)
    check_same_run(run, meta["run"], f"{workdir}/run.json")
    frozen = load_frozen(workdir, frozen, sharding)
  finally:
    checkpointer.close()
  origin = {"step": found, "version": run["version"]}
  classes, recipe = tuple(run["classes"]), run["recipe"]
  rates = tuple(run["data_set"].get("sample_rates", ()))
  return TrainedModel(graphdef, tunable, frozen, cfg, classes, recipe, origin, found, run["config"], rates)


def read_about(folder: Path) -> dict[str, Any]:
  """What model.json says; UserError if it is damaged."""
  path = folder / "model.json"
  try:
    about = json.loads(path.read_text())
  except ValueError as error:
    raise UserError(f"{path} is damaged: {error}; convert the source again") from error
  expected = {"model", "classes", "class_order", "recipe", "source", "version"}
  if not isinstance(about, dict) or not expected <= about.keys():
    raise UserError(
      f"{path} is damaged: it lacks some of {', '.join(sorted(expected))}; convert the source again"
    )
  return about


def sizes_in(about: Mapping[str, Any], folder: Path) -> ModelConfig:
  """The sizes that model.json tells; UserError if they are none."""
  try:
    sizes = {**about["model"], "audio_shape": tuple(about["model"]["audio_shape"])}
    cfg = ModelConfig(**sizes)
  except (TypeError, KeyError, ValueError) as error:
    raise UserError(f"{folder}/model.json is damaged: {error}") from error
  if len(about["classes"]) != cfg.num_classes:
    raise UserError(
      f"{folder}/model.json names {len(about['classes'])} classes, the model has {cfg.num_classes}"
    )
  return cfg


def check_digests(folder: Path, tensors: Mapping[str, np.ndarray]) -> None:
  """Raises UserError that names every tensor, by the authors' name, that is not what the folder's report says.

  The checkpoint's own format does not notice every changed byte.
  """
  report = folder / "conversion.json"
  if not report.exists():
    return  # it is being written
  try:
    known = {name: tensor["sha256"] for name, tensor in json.loads(report.read_text())["tensors"].items()}
  except (ValueError, KeyError, TypeError) as error:
    raise UserError(f"{report} is damaged: {error}; convert the source again") from error
  changed = [name for name, tensor in tensors.items() if digest(tensor) != known.get(name)]
  if changed:
    raise listed(f"{folder} is damaged: tensors are not what they were", changed, "convert the source again")


def save_tree(folder: Path, tensors: Mapping[str, np.ndarray]) -> None:
  """Writes arrays by "/"-joined path with Orbax; UserError if the disk does not take them."""
  # Threads of Orbax go on complaining once the first failure has been told.
  hook, sys.unraisablehook = sys.unraisablehook, lambda error: None
  try:
    with ocp.PyTreeCheckpointer() as checkpointer:
      checkpointer.save(folder.absolute(), unflatten_dict(dict(tensors), sep="/"))
  except (OSError, ValueError, RuntimeError) as error:
    raise UserError(f"cannot write {folder}: {short(error)}") from error
  sys.unraisablehook = hook


def read_tree(folder: Path) -> dict[str, np.ndarray]:
  """Arrays by "/"-joined path, as `save_tree` wrote them; UserError if they are damaged."""
  try:
    with ocp.PyTreeCheckpointer() as checkpointer:
      return flatten_dict(checkpointer.restore(folder.absolute()), sep="/")
  except Exception as error:  # Orbax raises it bare
    raise UserError(f"cannot read {folder}: {short(error)}; convert the source again") from error


def read_shards(folder: Path) -> Iterator[dict[str, np.ndarray]]:
  """The parameters of a model folder, by path, a part at a time."""
  for shard in sorted((folder / "params").glob("*"), key=lambda path: (len(path.name), path.name)):
    yield read_tree(shard)


def _check_complete(folder: Path, arrays: Mapping[str, Any], states: tuple[nnx.State, ...]) -> None:
  wanted = {"/".join(map(str, path)): v.shape for state in states for path, v in nnx.to_flat_state(state)}
  if wanted != {path: array.shape for path, array in arrays.items()}:
    wrong = sorted(path for path in wanted.keys() | arrays.keys()
                   if path not in arrays or wanted.get(path) != arrays[path].shape)  # fmt: skip
    raise UserError(f"{folder} is damaged: {', '.join(wrong)} missing, too many or of another shape")


def _filled(state: nnx.State, arrays: Mapping[str, Array]) -> nnx.State:
  flat = nnx.to_flat_state(state)
  return nnx.from_flat_state([(path, v.replace(arrays["/".join(map(str, path))])) for path, v in flat])
