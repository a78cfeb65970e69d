"""Names and layouts: the authors' PyTorch state dict <-> our parameters, tensor by tensor.

Our parameters are a flat dict from "/"-joined paths (`fusion/3/image_down/kernel`) to arrays; theirs is a state dict
without the `module.` prefix. Each part has a table of its own, `AUTHORS`: rows of (our path, their names, layout), where
{} stands for a number. Here they are expanded for the parameters that a model has, in both directions.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
import dataclasses
import re
from typing import Any

import numpy as np

from mma_dfer_jax import model, parts
from mma_dfer_jax.errors import UserError, listed, shown
from mma_dfer_jax.model import SLOTS, ModelConfig
from mma_dfer_jax.parameters import parameter_shapes

# How a layout changes: PyTorch keeps linear weights as (out, in) and convolutions as (out, in, height, width).
TO_JAX: dict[str, Callable[[list[np.ndarray]], np.ndarray]] = {
  "keep": lambda tensors: tensors[0],
  "linear": lambda tensors: tensors[0].T,
  "conv": lambda tensors: tensors[0].transpose(2, 3, 1, 0),
  "concat": lambda tensors: np.concatenate(tensors, axis=0).T,  # to_q (q), to_kv (k, v) -> one qkv
  "stack": np.stack,  # one tensor per stage
}
TO_TORCH: dict[str, Callable[[np.ndarray], list[np.ndarray]]] = {
  "keep": lambda array: [array],
  "linear": lambda array: [array.T],
  "conv": lambda array: [array.transpose(3, 2, 0, 1)],
  "concat": lambda array: np.split(array.T, [array.shape[1] // 3]),
  "stack": list,
}
# Of modules: the leaf of each parameter that they may have, and the layout of its weight.
LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}
# Which of the authors' modules holds the tensors of a part; elsewhere the tables give whole names.
OWNERS = {"image_encoder": "image_encoder.", "audio_encoder": "audio_model.", "image_prompts": "image_encoder.",
          "audio_prompts": "audio_model."}  # fmt: skip


class CheckpointMismatchError(UserError):
  """A checkpoint that is not the model asked for; says all that is missing, unexpected and of another shape."""

  def __init__(self, title: str, missing: list[str], unexpected: list[str], wrong_shape: list[str]):
    self.missing, self.unexpected, self.wrong_shape = missing, unexpected, wrong_shape
    lists = [("missing", missing), ("unexpected", unexpected), ("wrong shape", wrong_shape)]
    super().__init__("\n".join(
      [f"{title}:"]
      + [f"  {what} ({len(names)}): {', '.join(map(shown, names)) or 'none'}" for what, names in lists]
    ))  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Row:
  """One of our parameters: its path, the tensors it is made of in the authors' file, and how."""

  path: str
  torch_names: tuple[str, ...]
  layout: str


def name_table(cfg: ModelConfig) -> list[Row]:
  """Every parameter of a model with its origin in an authors' file; what the model lacks is not in it.

  Raises:
    UserError: naming the parts that such a file has no place for.
  """
  tables = {
    place: parts.authors_table(type(getattr(cfg, name)))  # type: ignore[arg-type] # a class is hashable
    for name, slot in SLOTS.items()
    for place in slot.places
  }
  tables["joint_adaptation"] = model.AUTHORS
  rows, homeless = [], set()
  for path, shape in parameter_shapes(cfg).items():
    place = next(place for place in tables if re.match(f"{place}(/|$)", path))
    row = _row_of(path, shape, place, tables[place] or ())
    if row is None:
      homeless.add(path.split("/")[0])
    else:
      rows.append(row)
  if homeless:
    raise listed("an authors' file has no place for these parts of the model", sorted(homeless))
  return rows


def _row_of(path: str, shape: tuple[int, ...], place: str, table: Iterable[tuple[Any, ...]]) -> Row | None:
  """The row of one parameter: by its path below its place, whole, or as the leaf of a module."""
  below = path[re.match(place, path).end() :].strip("/")  # type: ignore[union-attr]
  module, _, leaf = below.rpartition("/")
  for ours, theirs, layout in table:
    names = (theirs,) if isinstance(theirs, str) else theirs
    whole = below if ours.count("/") == below.count("/") and layout in ("keep", "stack") else module
    if not re.fullmatch(re.escape(ours).replace(r"\{\}", r"\d+"), whole):
      continue
    numbers = re.findall(r"(?<=/)\d+(?=/|$)", path)
    if layout == "stack":
      return Row(path, tuple(OWNERS[place] + names[0].format(i) for i in range(shape[0])), layout)
    ending = "" if whole == below else f".{LEAVES[leaf]}"
    kept = "keep" if leaf in ("bias", "scale") or layout == "norm" else layout
    return Row(path, tuple(OWNERS.get(place, "") + name.format(*numbers) + ending for name in names), kept)
  return None


def unused_shapes(cfg: ModelConfig) -> dict[str, tuple[int, ...]]:
  """Tensors of the authors' file that never take part: both encoders' heads and the temporal net's `norm2`."""
  shapes: dict[str, tuple[int, ...]] = {}
  # Outputs of the heads: the original hands timm's classes over as the number of heads for frames, 1000 for sound.
  for name, encoder, outputs in (("image_encoder", cfg.image, 12), ("audio_model", cfg.audio, 1000)):
    if encoder.depth:
      shapes |= {f"{name}.head.weight": (outputs, encoder.width), f"{name}.head.bias": (outputs,)}
  for i in range(getattr(cfg.temporal, "depth", 0)):
    for k in (0, 1):
      norm2 = f"temporal_net.temporal_transformer.layers.{i}.{k}.fn.norm2"
      shapes |= {f"{norm2}.{leaf}": (cfg.temporal.width,) for leaf in ("weight", "bias")}
  return shapes


def dead_elements(cfg: ModelConfig) -> int:
  """Elements that the original counts as trainable but never uses: two LayerNorms per temporal block."""
  return sum(shape[0] for name, shape in unused_shapes(cfg).items() if "norm2" in name)


def used_shapes(cfg: ModelConfig) -> dict[str, tuple[int, ...]]:
  """The shape of each tensor that takes part, by the authors' name."""
  # One zero, seen in every shape: costs no memory.
  zeros = {path: np.broadcast_to(np.float32(0), shape) for path, shape in parameter_shapes(cfg).items()}
  return {
    name: part.shape
    for row in name_table(cfg)
    for name, part in zip(row.torch_names, TO_TORCH[row.layout](zeros[row.path]), strict=True)
  }


def check_fit(
  title: str,
  found: Mapping[str, tuple[int, ...]],
  wanted: Mapping[str, tuple[int, ...]],
  allowed: Collection[str] = (),
) -> None:
  """Compares names and shapes.

  Args:
    title: first line of the message.
    found: shapes by name of a file.
    wanted: what must be there.
    allowed: names that may be there as well.
  Raises:
    CheckpointMismatchError: with everything missing, unexpected or of the wrong shape.
  """
  missing = sorted(wanted.keys() - found.keys())
  unexpected = sorted(found.keys() - wanted.keys() - set(allowed))
  wrong_shape = [
    f"{name} {found[name]}, not {shape}"
    for name, shape in wanted.items()
    if found.get(name, shape) != tuple(shape)
  ]
  if missing or unexpected or wrong_shape:
    raise CheckpointMismatchError(title, missing, unexpected, wrong_shape)


def from_torch(tensors: Mapping[str, np.ndarray], rows: Iterable[Row]) -> dict[str, np.ndarray]:
  """Our parameters of these rows, by path, in the dtype of the source; the shapes have been checked."""
  return {
    row.path: np.ascontiguousarray(TO_JAX[row.layout]([tensors[name] for name in row.torch_names]))
    for row in rows
  }


def to_torch(params: Mapping[str, np.ndarray], cfg: ModelConfig) -> dict[str, np.ndarray]:
  """The authors' tensors, by name without prefix, from ours (or from gradients or moments of ours).

  Paths that `params` lacks are left out, so that a part of the model can be named as well.
  """
  tensors: dict[str, np.ndarray] = {}
  for row in name_table(cfg):
    if row.path in params:
      parts = TO_TORCH[row.layout](np.asarray(params[row.path]))
      tensors |= {n: np.ascontiguousarray(p) for n, p in zip(row.torch_names, parts, strict=True)}
  return tensors
