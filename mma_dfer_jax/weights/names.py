"""Names and layouts: the authors' PyTorch state dict <-> our parameters, tensor by tensor.

Our parameters are a flat dict from "/"-joined paths (`fusion/3/image_down/kernel`) to arrays; theirs is a state dict
without the `module.` prefix. Each part has a table `AUTHORS` with rows of (our path, their names, layout), where {}
stands for a number. This file expands the tables for the parameters of a model.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
import dataclasses
import functools
from pathlib import Path
import re
from typing import Any

import numpy as np

from mma_dfer_jax import model, parts
from mma_dfer_jax.errors import UserError, listed, shown
from mma_dfer_jax.model import SLOTS, ModelConfig
from mma_dfer_jax.parameters import parameter_shapes
from mma_dfer_jax.weights.pickles import Tensor

# PyTorch keeps linear weights as (out, in) and convolutions as (out, in, [time,] height, width).
# Of each layout: from the authors' tensors to our array, and back.
LAYOUTS: dict[str, tuple[Callable[..., np.ndarray], Callable[[np.ndarray], Iterable[np.ndarray]]]] = {
  "keep": (lambda theirs: theirs[0], lambda x: [x]),
  "linear": (lambda theirs: theirs[0].T, lambda x: [x.T]),
  "conv": (lambda theirs: theirs[0].transpose(2, 3, 1, 0), lambda x: [x.transpose(3, 2, 0, 1)]),
  "conv3d": (lambda theirs: theirs[0].transpose(2, 3, 4, 1, 0), lambda x: [x.transpose(4, 3, 0, 1, 2)]),
  # to_q (q), to_kv (k, v) -> one qkv
  "concat": (lambda theirs: np.concatenate(theirs).T, lambda x: np.split(x.T, [x.shape[1] // 3])),
  "stack": (np.stack, list),  # one tensor per stage
}
Shapes = Mapping[str, tuple[int, ...]]  # of tensors by name
LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}  # of modules
# The authors' module with a part's tensors; elsewhere the tables have whole names.
OWNERS = {"image_encoder": "image_encoder.", "audio_encoder": "audio_model.", "image_prompts": "image_encoder.",
          "audio_prompts": "audio_model."}  # fmt: skip


class CheckpointMismatchError(UserError):
  """A checkpoint of another model; names all tensors that are missing, unexpected or of another shape."""


@dataclasses.dataclass(frozen=True)
class Row:
  """One of our parameters: its path, the tensors that it is made of in the authors' file, and how."""

  path: str
  torch_names: tuple[str, ...]
  layout: str

  def to_jax(self, theirs: Mapping[str, np.ndarray]) -> np.ndarray:
    """Our array, made of the authors' tensors, in their dtype; the shapes have been checked."""
    return np.ascontiguousarray(LAYOUTS[self.layout][0]([theirs[name] for name in self.torch_names]))

  def to_torch(self, array: np.ndarray) -> dict[str, np.ndarray]:
    """The authors' tensors of our array, by name; views of it if possible."""
    return dict(zip(self.torch_names, LAYOUTS[self.layout][1](array), strict=True))


def name_table(cfg: ModelConfig) -> list[Row]:
  """Every parameter with its tensors in an authors' file; UserError names parts that it cannot hold."""
  slots = [(name, place) for name, slot in SLOTS.items() for place in slot.places]
  slot_of = {place: name for name, place in slots}
  tables = {place: parts.authors_table(getattr(cfg, name)) for name, place in slots}
  tables["joint_adaptation"] = model.AUTHORS
  rows, homeless = [], set()
  for path, shape in parameter_shapes(cfg).items():
    place = next(place for place in tables if re.match(f"{place}(/|$)", path))
    if row := row_of(path, shape, place, tables[place] or ()):
      rows.append(row)
    else:
      name = slot_of.get(place, place)
      chosen = f"model.{name}={parts.place_of(getattr(cfg, name)).partition('/')[2]}, " * (place in slot_of)
      homeless.add(f"{chosen}{path.split('/')[0]}")
  if homeless:
    raise listed("an authors' file has no place for these parts of the model", sorted(homeless))
  return rows


def encoder_rows(stream: str, cfg: ModelConfig) -> list[Row]:
  """The parameters of one encoder with their names in its pretraining file."""
  place, encoder, rows = f"{stream}_encoder", getattr(cfg, stream), []
  table = parts.pretraining_table(encoder) or parts.authors_table(encoder) or ()
  for path, shape in parameter_shapes(cfg).items():
    row = row_of(path, shape, place, table) if path.startswith(f"{place}/") else None
    if row:
      theirs = tuple(name.removeprefix(OWNERS[place]) for name in row.torch_names)
      rows.append(dataclasses.replace(row, torch_names=theirs))
  return rows


def row_of(path: str, shape: tuple[int, ...], place: str, table: Iterable[tuple[Any, ...]]) -> Row | None:
  """The row of one parameter; its path below the place is in the table, or its module's path is."""
  below = re.sub(f"^{place}/", "", path)
  module, _, leaf = below.rpartition("/")
  for ours, theirs, layout in table:
    whole = layout in ("keep", "stack")  # the row is of one parameter, not of a module
    if not re.fullmatch(re.escape(ours).replace(r"\{\}", r"\d+"), below if whole else module):
      continue
    numbers = range(shape[0]) if layout == "stack" else [re.findall(r"(?<=/)\d+(?=/|$)", path)]
    names = [theirs] if isinstance(theirs, str) else theirs
    ending = "" if whole else f".{LEAVES[leaf]}"
    kept = "keep" if leaf in ("bias", "scale") or layout == "norm" else layout
    filled = (name.format(*(n if isinstance(n, list) else [n])) for name in names for n in numbers)
    return Row(path, tuple(OWNERS.get(place, "") + name + ending for name in filled), kept)
  return None


def unused_shapes(cfg: ModelConfig) -> Shapes:
  """The authors' tensors that never take part: both encoders' heads and the temporal net's `norm2`."""
  shapes: dict[str, tuple[int, ...]] = {}
  # Outputs of the heads: the original passes timm's classes as the number of heads for frames, 1000 for sound.
  for name, encoder, outputs in (("image_encoder", cfg.image, 12), ("audio_model", cfg.audio, 1000)):
    if encoder.depth:
      shapes |= {f"{name}.head.weight": (outputs, encoder.width), f"{name}.head.bias": (outputs,)}
  for i in range(getattr(cfg.temporal, "depth", 0)):
    for k in (0, 1):
      norm2 = f"temporal_net.temporal_transformer.layers.{i}.{k}.fn.norm2"
      shapes |= {f"{norm2}.{leaf}": (cfg.temporal.width,) for leaf in ("weight", "bias")}
  return shapes


def used_shapes(cfg: ModelConfig) -> Shapes:
  """The shape of each tensor that takes part, by the authors' name."""
  return their_shapes(name_table(cfg), parameter_shapes(cfg))


def their_shapes(rows: Iterable[Row], shapes: Shapes) -> dict[str, tuple[int, ...]]:
  """The shapes of the tensors in the authors' file that these parameters, of these shapes by path, are made of."""
  # One zero, broadcast to every shape, costs no memory.
  theirs = [row.to_torch(np.broadcast_to(np.float32(0), shapes[row.path])) for row in rows]
  return {name: tensor.shape for tensors in theirs for name, tensor in tensors.items()}


def size_of(shapes: Shapes, name: str, axis: int, otherwise: int = 0) -> int:
  """Of a tensor along an axis; or, without one or of an empty one, which may claim any size, something else."""
  shape = shapes.get(name, ())
  return shape[axis] if len(shape) > axis and 0 not in shape else otherwise


def numbered(names: Iterable[str], pattern: str) -> int:
  """How many of something there are, by the largest number that follows in names; 0 without any."""
  return max([int(found[1]) for name in names if (found := re.match(pattern, name))], default=-1) + 1


def check_sizes(source: Path, what: str, there: Mapping[str, int], encoder: Any) -> None:
  """Raises CheckpointMismatchError, in a sentence in place of the names of all tensors, if a file's sizes are others."""
  if differ := [name for name, size in there.items() if size != getattr(encoder, name)]:
    has = ", ".join(f"{name}={there[name]}" for name in differ)
    wants = ", ".join(f"{name}={getattr(encoder, name)}" for name in differ)
    advice = "give the config the file's sizes, or take another file"
    raise CheckpointMismatchError(
      f"{source} holds {what} of another size, {has}, but this model has {wants}: {advice}"
    )


def check_fit(title: str, found: Shapes, wanted: Shapes, allowed: Collection[str] = ()) -> None:
  """Raises CheckpointMismatchError, which begins with `title`, unless the shapes are the wanted or allowed ones."""
  others = {name: shape for name, shape in wanted.items() if found.get(name, shape) != tuple(shape)}
  problems = {
    "missing": sorted(wanted.keys() - found.keys()),
    "unexpected": sorted(found.keys() - wanted.keys() - set(allowed)),
    "wrong shape": [f"{name} {found[name]}, not {shape}" for name, shape in others.items()],
  }
  if any(problems.values()):
    lines = [f"  {what} ({len(n)}): {', '.join(map(shown, n)) or 'none'}" for what, n in problems.items()]
    raise CheckpointMismatchError("\n".join([f"{title}:", *lines]))


def ours(shapes: Shapes, rows: Iterable[Row], theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
  """Our parameters of these rows, by path, made of the authors' tensors when they are read; `shapes` by path."""
  found = {}
  for row in rows:
    read = functools.partial(lambda row: row.to_jax({n: theirs[n].read() for n in row.torch_names}), row)
    found[row.path] = Tensor(shapes[row.path], theirs[row.torch_names[0]].dtype, read)
  return found
