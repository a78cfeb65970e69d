"""Names and layouts: the authors' PyTorch state dict <-> our parameters, tensor by tensor.

Our parameters are a flat dict from "/"-joined paths (`fusion/3/image_down/kernel`) to arrays; theirs is a state dict
without the `module.` prefix. Each part has a table `AUTHORS` with rows of (our path, their names, layout), where {}
stands for a number. This file expands the tables for the parameters of a model.
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
from mma_dfer_jax.weights.files import Tensor

# PyTorch keeps linear weights as (out, in) and convolutions as (out, in, height, width).
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
LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}  # of modules
# The authors' module with a part's tensors; elsewhere the tables have whole names.
OWNERS = {"image_encoder": "image_encoder.", "audio_encoder": "audio_model.", "image_prompts": "image_encoder.",
          "audio_prompts": "audio_model."}  # fmt: skip


class CheckpointMismatchError(UserError):
  """A checkpoint of another model; names all tensors that are missing, unexpected or of another shape."""

  def __init__(self, title: str, missing: list[str], unexpected: list[str], wrong_shape: list[str]):
    self.missing, self.unexpected, self.wrong_shape = missing, unexpected, wrong_shape
    lines = [f"{title}:"]
    for what, names in (("missing", missing), ("unexpected", unexpected), ("wrong shape", wrong_shape)):
      lines.append(f"  {what} ({len(names)}): {', '.join(map(shown, names)) or 'none'}")
    super().__init__("\n".join(lines))


@dataclasses.dataclass(frozen=True)
class Row:
  """One of our parameters: its path, the tensors that it is made of in the authors' file, and how."""

  path: str
  torch_names: tuple[str, ...]
  layout: str

  def to_torch(self, array: np.ndarray) -> dict[str, np.ndarray]:
    """The authors' tensors of our array, by name; views of it if possible."""
    return dict(zip(self.torch_names, TO_TORCH[self.layout](array), strict=True))


def name_table(cfg: ModelConfig) -> list[Row]:
  """Every parameter of a model with its tensors in an authors' file.

  Raises:
    UserError: naming the parts that such a file cannot hold.
  """
  tables = {
    place: parts.authors_table(getattr(cfg, name)) for name, slot in SLOTS.items() for place in slot.places
  }
  tables["joint_adaptation"] = model.AUTHORS
  rows, homeless = [], set()
  for path, shape in parameter_shapes(cfg).items():
    place = next(place for place in tables if re.match(f"{place}(/|$)", path))
    if row := _row_of(path, shape, place, tables[place] or ()):
      rows.append(row)
    else:
      homeless.add(path.split("/")[0])
  if homeless:
    raise listed("an authors' file has no place for these parts of the model", sorted(homeless))
  return rows


def _row_of(path: str, shape: tuple[int, ...], place: str, table: Iterable[tuple[Any, ...]]) -> Row | None:
  """The row of one parameter; its path below the place is in the table, or its module's path is."""
  below = re.sub(f"^{place}/", "", path)
  module, _, leaf = below.rpartition("/")
  for ours, theirs, layout in table:
    whole = ours.count("/") == below.count("/") and layout in ("keep", "stack")
    if not re.fullmatch(re.escape(ours).replace(r"\{\}", r"\d+"), below if whole else module):
      continue
    numbers = range(shape[0]) if layout == "stack" else [re.findall(r"(?<=/)\d+(?=/|$)", path)]
    names = [theirs] if isinstance(theirs, str) else theirs
    ending = "" if whole else f".{LEAVES[leaf]}"
    kept = "keep" if leaf in ("bias", "scale") or layout == "norm" else layout
    filled = (name.format(*(n if isinstance(n, list) else [n])) for name in names for n in numbers)
    return Row(path, tuple(OWNERS.get(place, "") + name + ending for name in filled), kept)
  return None


def unused_shapes(cfg: ModelConfig) -> dict[str, tuple[int, ...]]:
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


def used_shapes(cfg: ModelConfig) -> dict[str, tuple[int, ...]]:
  """The shape of each tensor that takes part, by the authors' name."""
  # One zero, broadcast to every shape, costs no memory.
  zeros = {path: np.broadcast_to(np.float32(0), shape) for path, shape in parameter_shapes(cfg).items()}
  return {
    name: tensor.shape for row in name_table(cfg) for name, tensor in row.to_torch(zeros[row.path]).items()
  }


def check_fit(
  title: str,
  found: Mapping[str, tuple[int, ...]],
  wanted: Mapping[str, tuple[int, ...]],
  allowed: Collection[str] = (),
) -> None:
  """Compares the shapes in a file with the wanted ones; names in `allowed` may be there as well.

  Raises:
    CheckpointMismatchError: with everything missing, unexpected or of the wrong shape; `title` is its first line.
  """
  missing = sorted(wanted.keys() - found.keys())
  unexpected = sorted(found.keys() - wanted.keys() - set(allowed))
  wrong = [
    f"{name} {found[name]}, not {shape}"
    for name, shape in wanted.items()
    if found.get(name, shape) != tuple(shape)
  ]
  if missing or unexpected or wrong:
    raise CheckpointMismatchError(title, missing, unexpected, wrong)


def ours(row: Row, theirs: Mapping[str, Tensor], shape: tuple[int, ...]) -> Tensor:
  """A parameter of ours, made of the authors' tensors when it is read."""
  dtypes = {theirs[name].dtype for name in row.torch_names}
  if len(dtypes) > 1:
    raise UserError(f"{' and '.join(row.torch_names)} must be of one type, not {dtypes}")
  return Tensor(
    shape, dtypes.pop(), lambda: from_torch({n: theirs[n].read() for n in row.torch_names}, [row])[row.path]
  )


def from_torch(tensors: Mapping[str, np.ndarray], rows: Iterable[Row]) -> dict[str, np.ndarray]:
  """Our parameters of these rows, by path, in the dtype of the source; the shapes have been checked."""
  return {
    row.path: np.ascontiguousarray(TO_JAX[row.layout]([tensors[name] for name in row.torch_names]))
    for row in rows
  }
