"""Starting from the weights of another model: a run, a model folder, or an authors' file; whatever fits is taken."""

from collections.abc import Callable, Sequence
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
  """A model whatever form it has: the workdir of a run, a model folder, an authors' .pth or .safetensors.

  Args:
    path: the folder or file.
    step: of a run: "last", "best", or a step that was kept.
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
  """The model that a run has trained; its parameters are read, all at once, when the first is asked for.

  Raises:
    UserError: if there is no such checkpoint.
  """
  run = read_run(workdir)
  model = model_of(run)
  checkpointer = Checkpointer(workdir, read_only=True)
  named = {"last": checkpointer.latest_step(), "best": checkpointer.best_step()}
  steps = {str(number): number for number in checkpointer.manager.all_steps()}
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
    "classes": run["classes"],
    "class_order": f"of the data set {run['config']['data.name']}",
    "recipe": run["recipe"],
    "tunable": run["tunable"],
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
  """Weights of another model, fitted to this one; see `training.check.Start`.

  Attributes:
    stored: the other model.
    taken: parameters of this model that come from it.
    lines: what is taken, what starts fresh and what is left out, by part.
  """

  stored: StoredModel
  taken: dict[str, Tensor]
  lines: tuple[str, ...]

  name = "init_from"

  @property
  def sha256(self) -> str:
    return self.stored.sha256

  def describe(self) -> str:
    return f"init_from: {self.stored.path}, sha256 {self.sha256[:16]}…; {'; '.join(self.lines)}"

  def read(self) -> dict[str, np.ndarray]:
    """Float32 parameters by path; tables of positions lack the rows of prompts that start fresh.

    Raises:
      UserError: if the other model is damaged, or holds values that are not finite.
    """
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
    model: that shall start.
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
  ours = parameter_shapes(model)
  theirs = [path for path in stored.tensors if not path.startswith(UNUSED)]
  for place in dict.fromkeys(path.split("/")[0] for path in (*ours, *theirs)):
    of_place = _Place(place, slots.get(place, ""), stored, model, tuple(classes))
    here, line = of_place.fitted([path for path in ours if path.startswith(f"{place}/")], ours)
    taken |= here
    lines.append(line)
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


@dataclasses.dataclass(frozen=True)
class _Place:
  """One place of the model, as "fusion", in both models; `slot` is "" if no part is chosen for it."""

  place: str
  slot: str
  stored: StoredModel
  model: ModelConfig
  classes: tuple[str, ...]

  def fitted(self, wanted: list[str], shapes: dict[str, tuple[int, ...]]) -> tuple[dict[str, Tensor], str]:
    """What is taken of the other model, and a line that says it."""
    found = {path: t for path, t in self.stored.tensors.items() if path.startswith(f"{self.place}/")}
    if self.slot and not _same_part(self.slot, self.stored.model, self.model):
      there, here = (parts.place_of(getattr(cfg, self.slot)) for cfg in (self.stored.model, self.model))
      what = f"{len(wanted)} tensors fresh" if wanted else f"{len(found)} tensors left out"
      return {}, f"{self.place}: {what}, {there} there and {here} here"
    notes = self._differences()
    if self.place == "classifier":
      found, note = self._by_class(found)
      notes += note
    if f"{self.place}/pos_embed" in found and self.slot in ("image", "audio"):
      found, note = self._positions(found)
      notes += note
    taken = {
      path: found[path] for path in wanted if path in found and self._fits(path, found[path], shapes[path])
    }
    fresh = [self._named(path, found, shapes[path]) for path in wanted if path not in taken]
    left = [path.partition("/")[2] for path in found if path not in shapes]
    notes += [f"fresh: {_few(fresh)}"] * bool(fresh and taken) + [f"left out: {_few(left)}"] * bool(left)
    count = f"{len(taken)} of {len(wanted)} tensors" if taken or not wanted else "fresh"
    return taken, ", ".join([f"{self.place}: {count}", *notes])

  def _fits(self, path: str, tensor: Tensor, shape: tuple[int, ...]) -> bool:
    if path.endswith("_encoder/pos_embed"):  # rows of fresh prompts may be missing
      return tensor.shape[2] == shape[2]
    return tensor.shape == shape

  def _named(self, path: str, found: dict[str, Tensor], shape: tuple[int, ...]) -> str:
    name = path.partition("/")[2]
    return f"{name} {found[path].shape}, not {shape}" if path in found else name

  def _differences(self) -> list[str]:
    """Settings of the part that are not the same and that shapes need not show."""
    if not self.slot:
      return []
    there, here = (parts.fields_of(getattr(cfg, self.slot)) for cfg in (self.stored.model, self.model))
    return [
      f"{k}={here[k]} instead of {there[k]}" for k in here if k not in OF_TRAINING and here[k] != there[k]
    ]

  def _by_class(self, found: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The classifier for this model's classes: as it is, reordered by name, or nothing of it."""
    theirs = self.stored.about["classes"]
    if theirs is None:
      return {}, ["the file does not say its classes: convert it with --classes to keep its classifier"]
    if tuple(theirs) == self.classes:
      return found, []
    if len(theirs) != len(self.classes):
      return {}, [f"{len(self.classes)} classes instead of {len(theirs)}"]
    if sorted(theirs) != sorted(self.classes) or parts.place_of(self.model.head) != "heads/linear":
      return {}, [f"classes {', '.join(self.classes)} instead of {', '.join(theirs)}"]
    order = [theirs.index(name) for name in self.classes]
    reordered = {
      path: _changed(tensor, tensor.shape, lambda array: array[..., order]) for path, tensor in found.items()
    }
    return reordered, [f"reordered by name, from {', '.join(theirs)}"]

  def _positions(self, found: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The encoder's table of positions for this model's grid and prompts."""
    path, stream = f"{self.place}/pos_embed", self.slot
    table = found[path]
    models = (self.stored.model, self.model)
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
    shape = (1, 1 + target[0] * target[1] + keep, table.shape[2])
    return found | {path: _changed(table, shape, fit)}, notes


def _changed(tensor: Tensor, shape: tuple[int, ...], change: Callable[[np.ndarray], np.ndarray]) -> Tensor:
  return Tensor(shape, tensor.dtype, lambda: change(tensor.read()))


def _few(names: list[str]) -> str:
  """The first names of many, for a line."""
  return " ".join(names[:3]) + f" and {len(names) - 3} more" * (len(names) > 3)
