"""Starts from the weights of another model (a run, a model folder or an authors' file): takes whatever fits."""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import hashlib
import json
from pathlib import Path

from flax import nnx
import numpy as np

from mma_dfer_jax import parts
from mma_dfer_jax.errors import UserError, few, listed
from mma_dfer_jax.model import SLOTS, ModelConfig
from mma_dfer_jax.parameters import abstract_model, flat_params, parameter_shapes, split_tunable
from mma_dfer_jax.training.checkpoints import Checkpointer, load_frozen
from mma_dfer_jax.training.run import check_same_run, model_of, read_run
from mma_dfer_jax.weights.files import Start, StoredModel, Tensor
from mma_dfer_jax.weights.folder import open_folder
from mma_dfer_jax.weights.mma_dfer import UNUSED, open_checkpoint
from mma_dfer_jax.weights.positions import resize_positions

# Fields of a part that do not change the meaning of its weights.
OF_TRAINING = {"name", "tunable", "drop_path", "prompt_positions"}


def open_stored(
  path: Path, step: int | str = "last", heads: int | None = None, wanted: str | None = None
) -> StoredModel:
  """Opens a run (at step "last", "best", or a saved number), a model folder, or what `open_checkpoint` takes."""
  if (path / "run.json").is_file():
    return open_run(path, step)
  return open_folder(path) if (path / "model.json").is_file() else open_checkpoint(path, heads, wanted)


def open_run(workdir: Path, step: int | str = "last") -> StoredModel:
  """The model that a run has trained; reading the first parameter reads all. UserError without such a checkpoint."""
  run = read_run(workdir)
  model = model_of(run)
  checkpointer = Checkpointer(workdir, read_only=True)
  steps = {str(number): number for number in checkpointer.manager.all_steps()}
  named = {"last": checkpointer.latest_step(), "best": checkpointer.best_step()}
  found = (steps | named).get(str(step))
  temperature = (
    checkpointer.temperature(found) if found is not None and run["config"].get("data.held_out") else {}
  )
  checkpointer.close()
  if found is None:
    raise UserError(f"{workdir} has no checkpoint {step}; it has the steps {', '.join(steps) or 'none'}")

  @functools.cache
  def arrays() -> dict[str, np.ndarray]:
    checkpointer = Checkpointer(workdir, read_only=True)
    _, tunable, frozen = split_tunable(nnx.merge(*abstract_model(model)), run["tunable"])
    try:
      tunable, _, meta = checkpointer.restore(found, tunable)
    finally:
      checkpointer.close()
    check_same_run(run, meta["run"], f"{workdir}/run.json")
    states = (tunable, load_frozen(workdir, frozen))
    return {path: np.asarray(v[...]) for state in states for path, v in flat_params(state).items()}

  about = {
    "assumed": {},
    "classes": run["classes"],
    "class_order": f"of the data set {run['config']['data.name']}",
    "recipe": run["recipe"],
    "tunable": run["tunable"],
    "precision": run["config"]["precision"],
    "sample_rates": run["data_set"]["sample_rates"],
    **{name: run["data_set"][name] for name in ("seconds_of_sound", "typical") if name in run["data_set"]},
    **{name: run[name] for name in ("class_vectors",) if name in run},
    **temperature,
    "source": {"run": workdir.resolve().name, "step": found, "version": run["version"]},
  }
  tensors = {
    path: Tensor(shape, np.dtype("f4"), lambda path=path: arrays()[path])  # type: ignore[misc]
    for path, shape in parameter_shapes(model).items()
  }
  # Of the run's description, which determines the frozen parameters, and of the tunable ones.
  what = {key: value for key, value in run["config"].items() if key == "seed" or key.startswith("model.")}
  digest = hashlib.sha256(json.dumps([run["classes"], run["starts"], what], sort_keys=True).encode())
  folder = workdir / "checkpoints" / str(found) / "tunable"
  for file in sorted(path for path in folder.rglob("*") if path.is_file()):
    digest.update(f"{file.relative_to(folder)}\0".encode())
    digest.update(file.read_bytes())
  return StoredModel(workdir, model, about, tensors, digest.hexdigest())


def open_init(path: str | Path, model: ModelConfig, classes: Sequence[str]) -> Start:
  """Opens the weights of another model and fits them to this one; UserError if heads differ or nothing fits.

  A part is taken if both models have the same one, and within it every tensor of the same shape. Encoders' positions
  are resized; their rows for prompts are taken with the prompts only. What has an axis of classes is reordered by their names.
  """
  stored = open_stored(Path(path))
  # Shapes are the same for any number of heads, so they are compared unless the source had to assume them.
  assumed = {"temporal"} if "temporal.heads" in stored.about["assumed"] else set()
  assumed |= {"image", "audio"} if "heads" in stored.about["assumed"] else set()
  pairs = {n: (getattr(stored.model, n), getattr(model, n)) for n in sorted(SLOTS.keys() - assumed)}
  if problems := [
    f"model.{name}.heads={here.heads}, but it has {there.heads} heads"
    for name, (there, here) in pairs.items()
    if type(there) is type(here) and getattr(there, "heads", 0) != getattr(here, "heads", 0)
  ]:
    raise listed(f"{path} cannot start this model", problems)
  slots = {place.split("/")[0]: name for name, slot in SLOTS.items() for place in slot.places}
  theirs = [path for path in stored.tensors if not path.startswith(UNUSED)]
  taken: dict[str, Tensor] = {}
  lines = []
  for place in dict.fromkeys(path.split("/")[0] for path in (*parameter_shapes(model), *theirs)):
    here, line = _fitted(place, slots.get(place, ""), stored, model, classes)
    taken |= here
    lines.append(f"{place}: {line}")
  if not taken:
    raise UserError(f"{path}: nothing of it fits this model; {'; '.join(lines)}")
  return Start("init_from", stored, (*lines, *stored.about["source"].get("notes", ())), taken)


def _fitted(
  place: str, slot: str, stored: StoredModel, model: ModelConfig, classes: Sequence[str]
) -> tuple[dict[str, Tensor], str]:
  """The tensors of one place ("fusion") that this model takes, and a line about it; joint adaptation has no slot."""
  found = {path: tensor for path, tensor in stored.tensors.items() if path.startswith(f"{place}/")}
  wanted = {path: shape for path, shape in parameter_shapes(model).items() if path.startswith(f"{place}/")}
  notes: list[str] = []
  if slot:
    there, here = getattr(stored.model, slot), getattr(model, slot)
    if type(there) is not type(here):
      what = f"{len(wanted)} tensors fresh" if wanted else f"{len(found)} tensors left out"
      return {}, f"{what}, {parts.place_of(there)} there and {parts.place_of(here)} here"
    old, new = parts.fields_of(there), parts.fields_of(here)
    notes = [f"{k}={new[k]} instead of {old[k]}" for k in new if k not in OF_TRAINING and new[k] != old[k]]
  if stored.about["classes"] is None or list(stored.about["classes"]) != list(classes):
    notes += _by_class(found, class_axes(stored.model), stored.about["classes"], classes)
  if slot in ("image", "audio") and f"{place}/pos_embed" in found:
    notes += _positions(found, f"{place}/pos_embed", slot, stored.model, model)
  taken, fresh = {}, []
  for path, shape in wanted.items():
    tensor, name = found.get(path), path.partition("/")[2]
    table = path.endswith("_encoder/pos_embed")  # may lack the rows of fresh prompts
    if tensor and (tensor.shape == shape or (table and tensor.shape[2] == shape[2])):
      taken[path] = tensor
    else:
      fresh.append(f"{name} {tensor.shape}, not {shape}" if tensor else name)
  left = [path.partition("/")[2] for path in found if path not in wanted]
  notes += [f"fresh: {few(fresh, ' ')}"] * bool(fresh and taken)
  notes += [f"left out: {few(left, ' ')}"] * bool(left)
  count = f"{len(taken)} of {len(wanted)} tensors" if taken or not wanted else "fresh"
  return taken, ", ".join([count, *notes])


def class_axes(model: ModelConfig) -> dict[str, int]:
  """Which axis is of the classes, by path of all parameters that have one."""
  more = parameter_shapes(dataclasses.replace(model, num_classes=model.num_classes + 1))
  shapes = parameter_shapes(model).items()
  return {
    path: [n == m for n, m in zip(shape, more[path], strict=True)].index(False)
    for path, shape in shapes
    if shape != more[path]
  }


def _by_class(
  found: dict[str, Tensor], axes: Mapping[str, int], theirs: Sequence[str] | None, ours: Sequence[str]
) -> list[str]:
  """Changes what has an axis of other classes to this model's: reordered by name, or nothing of it."""
  bound = [path for path in found if path in axes]
  if not bound:
    return []
  if theirs is not None and sorted(theirs) == sorted(ours):
    order = [theirs.index(name) for name in ours]
    for path in bound:
      reorder = functools.partial(np.take, indices=order, axis=axes[path])
      found[path] = found[path].changed(found[path].shape, reorder)
    return [f"reordered by name, from {', '.join(theirs)}"]
  for path in bound:
    del found[path]
  if theirs is None:
    return ["the file does not name its classes: convert it with --classes to keep its classifier"]
  if len(theirs) != len(ours):
    return [f"{len(ours)} classes instead of {len(theirs)}"]
  return [f"classes {', '.join(ours)} instead of {', '.join(theirs)}"]


def _positions(found: dict[str, Tensor], path: str, stream: str, *models: ModelConfig) -> list[str]:
  """Changes an encoder's table of positions from the first model's grid and prompts to the second's."""
  grid, target = (getattr(cfg, stream).grid(stream, cfg.inputs) for cfg in models)
  there, here = (cfg.prompts.count(cfg.layers) for cfg in models)
  same_prompts = there == here and type(models[0].prompts) is type(models[1].prompts)
  rows, keep = 1 + grid[0] * grid[1], there if same_prompts else 0

  def fit(array: np.ndarray) -> np.ndarray:
    resized = resize_positions(array[:, :rows].astype(np.float32), grid, target)
    return np.concatenate([resized, array[:, rows : rows + keep]], axis=1)

  found[path] = found[path].changed((1, 1 + target[0] * target[1] + keep, found[path].shape[2]), fit)
  notes = [f"positions resized from {grid} to {target}"] * (grid != target)
  notes += [f"position rows of {there} prompts left out"] * bool(there and not keep)
  return notes + [f"position rows of {here} prompts fresh"] * bool(here and not keep)
