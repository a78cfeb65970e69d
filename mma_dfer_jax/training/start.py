"""Starting from the weights of another model: a run, a model folder, or an authors' file; whatever fits is taken."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import hashlib
import json
from pathlib import Path
from typing import Any

from flax import nnx
import numpy as np

from mma_dfer_jax import parts
from mma_dfer_jax.errors import UserError, listed
from mma_dfer_jax.model import SLOTS, ModelConfig
from mma_dfer_jax.parameters import abstract_model, flat_params, parameter_shapes, split_tunable
from mma_dfer_jax.training.checkpoints import Checkpointer, load_frozen
from mma_dfer_jax.training.run import check_same_run, model_of, read_run
from mma_dfer_jax.weights.files import StoredModel, Tensor, check_finite
from mma_dfer_jax.weights.folder import open_folder
from mma_dfer_jax.weights.mma_dfer import UNUSED, open_checkpoint
from mma_dfer_jax.weights.positions import resize_positions

# Fields of a part that change nothing of what its weights mean.
OF_TRAINING = {"name", "tunable", "drop_path", "prompt_positions"}


def open_stored(path: Path, step: int | str = "last") -> StoredModel:
  """The workdir of a run (at step "last", "best" or a number), a model folder, an authors' .pth or .safetensors.

  Raises:
    UserError: if it is none of them, or damaged.
  """
  if not path.is_dir():
    return open_checkpoint(path)
  if (path / "run.json").is_file():
    return open_run(path, step)
  if (path / "model.json").is_file():
    return open_folder(path)
  raise UserError(
    f"{path} is neither the workdir of a run (it has no run.json) nor a model folder (no model.json)"
  )


def open_run(workdir: Path, step: int | str = "last") -> StoredModel:
  """The model of a run, whose parameters are read when the first is needed; UserError if there is no such step."""
  run = read_run(workdir)
  model = model_of(run)
  checkpointer = Checkpointer(workdir, read_only=True)
  steps = {str(number): number for number in checkpointer.manager.all_steps()}
  named = {"last": checkpointer.latest_step(), "best": checkpointer.best_step()}
  checkpointer.close()
  found = (steps | named).get(str(step))
  if found is None:
    raise UserError(f"{workdir} has no checkpoint {step}; it has the steps {', '.join(steps) or 'none'}")

  @functools.cache
  def arrays() -> dict[str, np.ndarray]:
    checkpointer = Checkpointer(workdir, read_only=True)
    _, tunable, frozen = split_tunable(nnx.merge(*abstract_model(model)), run["tunable"])
    try:
      tunable, meta = checkpointer.restore_tunable(found, tunable)
    finally:
      checkpointer.close()
    check_same_run(run, meta["run"], f"{workdir}/run.json")
    states = (tunable, load_frozen(workdir, frozen))
    return {path: np.asarray(v[...]) for state in states for path, v in flat_params(state).items()}

  def tensor(path: str, shape: tuple[int, ...]) -> Tensor:
    return Tensor(shape, np.dtype(np.float32), lambda: arrays()[path])

  about = {
    "assumed": {},
    **{key: run[key] for key in ("classes", "recipe", "tunable")},
    "class_order": f"of the data set {run['config']['data.name']}",
    "precision": run["config"]["precision"],
    "sample_rates": run["data_set"]["sample_rates"],
    "source": {"run": workdir.resolve().name, "step": found, "version": run["version"]},
  }
  tensors = {path: tensor(path, shape) for path, shape in parameter_shapes(model).items()}
  return StoredModel(workdir, model, about, tensors, _sha256_of_run(workdir, run, found))


def _sha256_of_run(workdir: Path, run: dict[str, Any], step: int) -> str:
  """Changes with what the run is and with its tunable parameters; frozen ones follow from what it is."""
  what = {key: value for key, value in run["config"].items() if key == "seed" or key.startswith("model.")}
  digest = hashlib.sha256(json.dumps([run["classes"], run["starts"], what], sort_keys=True).encode())
  folder = workdir / "checkpoints" / str(step) / "tunable"
  for file in sorted(path for path in folder.rglob("*") if path.is_file()):
    digest.update(f"{file.relative_to(folder)}\0".encode())
    digest.update(file.read_bytes())
  return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class InitFrom:
  """Weights of another model, fitted to this one; see `training.check.Start`."""

  stored: StoredModel  # the other model
  taken: dict[str, Tensor]  # parameters of this model that come from it
  lines: tuple[str, ...]  # what is taken, what starts fresh and what is left out, by part

  name = "init_from"

  @property
  def sha256(self) -> str:
    return self.stored.sha256

  def describe(self) -> str:
    return f"init_from: {self.stored.path}, sha256 {self.sha256[:16]}…; {'; '.join(self.lines)}"

  def read(self) -> dict[str, np.ndarray]:
    """Float32 parameters by path, without position rows of fresh prompts; UserError if damaged or not finite."""
    self.stored.verify()
    arrays = {path: tensor.read().astype(np.float32) for path, tensor in self.taken.items()}
    check_finite(str(self.stored.path), arrays)
    return arrays


def open_init(path: str | Path, model: ModelConfig, classes: Sequence[str]) -> InitFrom:
  """Opens the weights of another model and fits them to this one, part by part.

  A part is taken if both models have the same one; within it, every tensor of the same shape is. Position tables of
  encoders are resized to another grid; their rows for prompts are taken only with the prompts themselves. A classifier
  is taken for the same class names, and reordered by name if they stand in another order.

  Args:
    path: see `open_stored`.
    model: to be started.
    classes: its class names.
  Raises:
    UserError: if a part has another number of attention heads, or nothing fits.
  """
  stored = open_stored(Path(path))
  if problems := _problems_of_heads(stored, model):
    raise listed(f"{path} cannot start this model", problems)
  taken: dict[str, Tensor] = {}
  lines = []
  slots = {place.split("/")[0]: name for name, slot in SLOTS.items() for place in slot.places}
  theirs = [path for path in stored.tensors if not path.startswith(UNUSED)]
  for place in dict.fromkeys(path.split("/")[0] for path in (*parameter_shapes(model), *theirs)):
    here, line = _fitted(place, slots.get(place, ""), stored, model, tuple(classes))
    taken |= here
    lines.append(f"{place}: {line}")
  if not taken:
    raise UserError(f"{path}: nothing of it fits this model; {'; '.join(lines)}")
  return InitFrom(stored, taken, tuple(lines))


def _problems_of_heads(stored: StoredModel, model: ModelConfig) -> list[str]:
  """Shapes are the same for any number of heads, so they are compared where the source says them."""
  assumed = {"temporal"} if "temporal.heads" in stored.about["assumed"] else set()
  assumed |= {"image", "audio"} if "heads" in stored.about["assumed"] else set()
  problems = []
  for name in SLOTS.keys() - assumed:
    there, here = (getattr(getattr(cfg, name), "heads", None) for cfg in (stored.model, model))
    if _same_part(name, stored.model, model) and there != here:
      problems.append(f"model.{name}.heads={here}, but it has {there} heads")
  return sorted(problems)


def _same_part(slot: str, one: ModelConfig, other: ModelConfig) -> bool:
  return type(getattr(one, slot)) is type(getattr(other, slot))


def _fitted(
  place: str, slot: str, stored: StoredModel, model: ModelConfig, classes: tuple[str, ...]
) -> tuple[dict[str, Tensor], str]:
  """Of a place of the model, as "fusion", and its slot, or "": the tensors that are taken, and a line about them."""
  found = {path: tensor for path, tensor in stored.tensors.items() if path.startswith(f"{place}/")}
  shapes = {path: shape for path, shape in parameter_shapes(model).items() if path.startswith(f"{place}/")}
  notes: list[str] = []
  if slot:
    there, here = (getattr(cfg, slot) for cfg in (stored.model, model))
    if type(there) is not type(here):
      what = f"{len(shapes)} tensors fresh" if shapes else f"{len(found)} tensors left out"
      return {}, f"{what}, {parts.place_of(there)} there and {parts.place_of(here)} here"
    # Settings that shapes need not show.
    before, now = parts.fields_of(there), parts.fields_of(here)
    notes = [
      f"{k}={now[k]} instead of {before[k]}" for k in now if k not in OF_TRAINING and now[k] != before[k]
    ]
  if place == "classifier":
    found, more = _by_class(found, stored.about["classes"], classes, parts.place_of(model.head))
    notes += more
  if slot in ("image", "audio") and f"{place}/pos_embed" in found:
    found, more = _with_positions(found, f"{place}/pos_embed", slot, stored.model, model)
    notes += more

  def fits(path: str) -> bool:
    rows_may_lack = slot in ("image", "audio") and path.endswith("/pos_embed")  # those of fresh prompts
    there, here = found[path].shape, shapes[path]
    return there[2] == here[2] if rows_may_lack else there == here

  taken = {path: found[path] for path in shapes if path in found and fits(path)}
  fresh = [
    path.partition("/")[2] + (f" {found[path].shape}, not {shapes[path]}" if path in found else "")
    for path in shapes
    if path not in taken
  ]
  left = [path.partition("/")[2] for path in found if path not in shapes]
  notes += [f"fresh: {_few(fresh)}"] * bool(fresh and taken) + [f"left out: {_few(left)}"] * bool(left)
  count = f"{len(taken)} of {len(shapes)} tensors" if taken or not shapes else "fresh"
  return taken, ", ".join([count, *notes])


def _by_class(
  found: Mapping[str, Tensor], theirs: Sequence[str] | None, ours: tuple[str, ...], head: str
) -> tuple[dict[str, Tensor], list[str]]:
  """The classifier for this model's classes: as it is, reordered by name, or nothing of it."""
  if theirs is None:
    return {}, ["the file does not say its classes: convert it with --classes to keep its classifier"]
  if tuple(theirs) == ours:
    return dict(found), []
  if len(theirs) != len(ours):
    return {}, [f"{len(ours)} classes instead of {len(theirs)}"]
  if sorted(theirs) != sorted(ours) or head != "heads/linear":
    return {}, [f"classes {', '.join(ours)} instead of {', '.join(theirs)}"]
  order = [theirs.index(name) for name in ours]
  reordered = {p: _changed(t, t.shape, lambda array: array[..., order]) for p, t in found.items()}
  return reordered, [f"reordered by name, from {', '.join(theirs)}"]


def _with_positions(
  found: Mapping[str, Tensor], path: str, stream: str, stored: ModelConfig, model: ModelConfig
) -> tuple[dict[str, Tensor], list[str]]:
  """With the encoder's table of positions fitted to this model's grid and prompts."""
  models = (stored, model)
  grid, target = (getattr(cfg, stream).grid(stream, cfg.inputs) for cfg in models)
  there, here = (cfg.prompts.count(cfg.layers) for cfg in models)
  keep = there if there == here and _same_part("prompts", *models) else 0
  rows = 1 + grid[0] * grid[1]

  def fit(array: np.ndarray) -> np.ndarray:
    resized = resize_positions(array[:, :rows].astype(np.float32), grid, target)
    return np.concatenate([resized, array[:, rows : rows + keep]], axis=1)

  notes = [f"positions resized from {grid} to {target}"] * (grid != target)
  notes += [f"position rows of {there} prompts left out"] * bool(there and not keep)
  notes += [f"position rows of {here} prompts fresh"] * bool(here and not keep)
  shape = (1, 1 + target[0] * target[1] + keep, found[path].shape[2])
  return {**found, path: _changed(found[path], shape, fit)}, notes


def _changed(tensor: Tensor, shape: tuple[int, ...], change: Callable[[np.ndarray], np.ndarray]) -> Tensor:
  return Tensor(shape, tensor.dtype, lambda: change(tensor.read()))


def _few(names: list[str]) -> str:
  """The first names of many, for a line."""
  return " ".join(names[:3]) + f" and {len(names) - 3} more" * (len(names) > 3)
