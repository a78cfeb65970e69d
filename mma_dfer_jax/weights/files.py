"""Reads the tensors of weight files (.pth, .safetensors) and writes such files. Nothing in a file is executed."""

import collections
from collections.abc import Collection, Mapping
import dataclasses
import functools
import hashlib
import json
import math
from pathlib import Path
from typing import Any

from flax import traverse_util
import ml_dtypes
import numpy as np
import safetensors

from mma_dfer_jax.disk import new_file, sha256_of
from mma_dfer_jax.errors import UserError, few, listed, shown
from mma_dfer_jax.model import ModelConfig, read_model
from mma_dfer_jax.parameters import parameter_shapes, tunable_patterns
from mma_dfer_jax.progress import Progress
from mma_dfer_jax.weights.pickles import Tensor
from mma_dfer_jax.weights.places import files_of
from mma_dfer_jax.weights.sets import find_weights
from mma_dfer_jax.weights.torch_file import read_torch_file

OURS = "mma_dfer_jax"  # the key under which our files say what shapes cannot: parts, heads, classes
PARAMETERS = "model.safetensors"  # the file of a model folder with its parameters
MOST_BLOCKS = 32  # a ViT-H has so many; tracing a model takes seconds for a dozen, and minutes for a hundred
MOST = 2**16  # of any other size in a file's description of a model
_TYPES = {"F64": np.dtype("f8"), "F32": np.dtype("f4"), "F16": np.dtype("f2"), "BF16": np.dtype(ml_dtypes.bfloat16)}  # fmt: skip
_COUNTS = {kind: np.dtype(of) for kind, of in (("I64", "i8"), ("I32", "i4"), ("U8", "u1"), ("BOOL", "?"))}
# Facts that only a run knows: which parameters it trained, its precision, what its clips were like, its temperature, and
# where its class vectors are from.
OF_A_RUN = {"tunable": list, "precision": str, "sample_rates": list, "seconds_of_sound": float, "typical": dict,
            "temperature": float, "class_vectors": dict}  # fmt: skip


def held(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
  """Arrays in memory, as tensors."""
  return {name: Tensor(a.shape, a.dtype, functools.partial(np.asarray, a)) for name, a in arrays.items()}


@dataclasses.dataclass(frozen=True)
class StoredModel:
  """A whole model whose parameters are still where they are stored."""

  path: Path
  model: ModelConfig
  # `assumed` (facts that the file does not say, with reasons), `classes`, `class_order` (whose order it is), `recipe` (how
  # its data are prepared), `source` (file, sha256, epoch, as far as known), and `OF_A_RUN`.
  about: dict[str, Any]
  tensors: dict[str, Tensor] = dataclasses.field(repr=False)  # by path; `unused.NAME` are the authors' others
  sha256: str  # of the file with the parameters, or of a run's own ones

  def verify(self) -> None:
    """Raises UserError if the values of a model folder have changed since they were written."""
    file = self.path / PARAMETERS
    if file.is_file() and sha256_of(file) != self.sha256:
      raise UserError(f"{file} is damaged: its sha256 is not the one in model.json; convert the source again")

  def read(self) -> dict[str, np.ndarray]:
    """All parameters by path, in the dtype of the source; UserError if they are damaged."""
    self.verify()
    return {path: self.tensors[path].read() for path in parameter_shapes(self.model)}


@dataclasses.dataclass(frozen=True)
class Weights:
  """Tensors of a file by the authors' names, and what else the file says."""

  path: Path
  tensors: dict[str, Tensor]
  ours: dict[str, Any] = dataclasses.field(default_factory=dict)  # what this project wrote under `OURS`
  # `epoch` and `best_acc`, if it says them
  training: dict[str, Any] = dataclasses.field(default_factory=dict)
  files: tuple[Path, ...] = ()  # with the tensors; `path` may be a folder or an index
  notes: tuple[str, ...] = ()  # what was removed from names, left out, or changed; empty for ordinary files

  @property
  def shapes(self) -> dict[str, tuple[int, ...]]:
    return {name: tensor.shape for name, tensor in self.tensors.items()}

  @functools.cached_property
  def sha256(self) -> str:
    """Of the file; of several files, of their sha256 one after the other."""
    digests = [sha256_of(file) for file in self.files]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Start:
  """Weights that a run starts from, checked, but not read yet."""

  name: str  # what they are for: "init_from", "image", "audio" or "text"
  source: StoredModel | Weights
  facts: tuple[str, ...]  # what is taken and what is not, for people
  taken: dict[str, Tensor]  # by path; a table of positions may lack the rows of prompts

  @property
  def sha256(self) -> str:
    return self.source.sha256

  def describe(self) -> str:
    kinds = {"text": "class vectors", "image": "image encoder", "audio": "audio encoder"}
    what = kinds.get(self.name, self.name)
    return f"{what}: {self.source.path}, sha256 {self.sha256[:16]}…; {'; '.join(self.facts)}"

  def read(self) -> dict[str, np.ndarray]:
    """Float32 parameters by path; UserError if they are damaged or not finite."""
    if isinstance(self.source, StoredModel):
      self.source.verify()
    arrays = {path: tensor.read().astype(np.float32) for path, tensor in self.taken.items()}
    refuse_not_finite(self.source.path, [path for path, array in arrays.items() if not is_finite(array)])
    return arrays


def open_weights(path: str | Path, wanted: str | None = None) -> Weights:
  """Opens weights by their content, a file or the pieces of one; reads names and shapes. UserError if they are damaged.

  Args:
    path: a .pth or .safetensors file, an index of pieces, or a folder of Hugging Face or DeepSpeed.
    wanted: the name of one of several sets of weights in it.
  """
  path = Path(path)
  files, where = files_of(path)
  saved: dict[str, Any] = {}
  for file in files:
    held_here, ours = _open_file(file)
    if lost := [shown(name) for name, of in where.items() if of == file.name and name not in held_here]:
      raise UserError(f"{file} lacks {len(lost)} tensors that {path} says it holds: {few(lost)}")
    if twice := [shown(name) for name in held_here if name in saved]:
      raise UserError(f"{path} holds tensors in several files: {few(twice)}")
    saved |= held_here
  tensors, notes = find_weights(path, saved, wanted)
  # Shared and expanded tensors may take more memory than the file has bytes, but not much in any real file.
  claimed, size = sum(max(t.nbytes, t.span) for t in tensors.values()), sum(f.stat().st_size for f in files)
  if claimed > 2 * size + 2**26:
    sizes = f"its tensors claim {claimed:,} bytes, the file has {size:,}"
    raise UserError(f"{path} is no real checkpoint: {sizes}")
  _check_types(path, {n: str(t.dtype) for n, t in tensors.items()}, [str(t) for t in _TYPES.values()])
  training: dict[str, Any] = {}
  epoch, accuracy = saved.get("epoch"), saved.get("best_acc")
  if type(epoch) is int and 0 <= epoch < 2**53:  # a file may hold a number of any length
    training["epoch"] = epoch
  if isinstance(accuracy, Tensor) and accuracy.shape == ():
    accuracy = float(accuracy.read())
  if isinstance(accuracy, float) and math.isfinite(accuracy):
    training["best_acc"] = accuracy
  read_from = f"read from {', '.join(file.name for file in files[:3])}{', …' * (len(files) > 3)}"
  notes = [read_from] * path.is_dir() + notes
  return Weights(path, tensors, ours if isinstance(ours, dict) else {}, training, files, tuple(notes))


def _open_file(path: Path) -> tuple[dict[str, Any], Any]:
  """What one file holds, and what this project wrote into it."""
  start = b""
  if path.is_file():  # else the reader of .pth files says what is wrong
    with open(path, "rb") as file:
      start = file.read(10)
  try:
    if start[6:9] == b"\0\0{":  # a .safetensors file, under any name: the length of its header, which is JSON
      tensors, metadata = read_safetensors(path, _TYPES | _COUNTS)
      return dict(tensors), json.loads(metadata.get(OURS, "{}"))
    saved = read_torch_file(path)
    if not isinstance(saved, dict):
      kind = "a tensor" if isinstance(saved, Tensor) else getattr(saved, "name", f"a {type(saved).__name__}")
      raise UserError(f"{path} holds {kind}, not a state dict; save model.state_dict() instead")
    json.dumps(ours := saved.get(OURS))  # or it nests too deeply, or holds objects
    return saved, ours
  except UserError:
    raise
  except (TypeError, ValueError, RecursionError) as error:
    raise UserError(f"{path} has damaged notes under {OURS}: {error}") from error


def read_safetensors(path: Path, types: Mapping[str, np.dtype] = _TYPES) -> tuple[dict[str, Tensor], dict]:
  """Tensors of a .safetensors file, mapped into memory when read, and metadata; UserError if it is damaged."""
  try:
    with safetensors.safe_open(path, framework="numpy") as checked:  # all sizes and places in the file agree
      metadata = checked.metadata() or {}
    with open(path, "rb") as file:
      start = 8 + int.from_bytes(file.read(8), "little")
      header = json.loads(file.read(start - 8))
  except (safetensors.SafetensorError, ValueError, OSError) as error:
    raise UserError(f"{path} is no whole .safetensors file: {error}") from error
  header.pop("__metadata__", None)
  _check_types(path, {name: entry["dtype"] for name, entry in header.items()}, types)

  def mapped(dtype: np.dtype, shape: tuple[int, ...], offset: int) -> np.ndarray:
    try:
      empty = 0 in shape
      return np.empty(shape, dtype) if empty else np.asarray(np.memmap(path, dtype, "r", offset, shape))
    except (OSError, ValueError) as error:
      raise UserError(f"{path} has been changed since it was opened: {error}") from error

  tensors = {}
  for name, entry in header.items():
    dtype, shape, offset = types[entry["dtype"]], tuple(entry["shape"]), start + entry["data_offsets"][0]
    tensors[name] = Tensor(shape, dtype, functools.partial(mapped, dtype, shape, offset))
  return tensors, metadata


def _check_types(path: Path, types: Mapping[str, str], allowed: Collection[str]) -> None:
  """Raises UserError that names every tensor of whole numbers or truth values: weights are neither."""
  if bad := [f"{shown(name)}: {kind}" for name, kind in types.items() if kind not in allowed]:
    raise listed(f"{path} holds tensors that are no weights", bad, f"weights are {', '.join(allowed)}")


def looks_like(shapes: Mapping[str, tuple[int, ...]]) -> str:
  """What a file is, judging by names and shapes, in words for a message."""
  patch, head = shapes.get("patch_embed.proj.weight", ()), shapes.get("head.weight", ())
  if any(name.startswith(("image_encoder.", "audio_model.", "temporal_net.")) for name in shapes):
    return "an MMA-DFER checkpoint"
  if "lg_region_tokens" in shapes:
    what = f"fine-tuned to {head[0]} classes" if len(head) == 2 else "an encoder of clips"
    return f"MAE-DFER's LGI-Former, {what}"
  if any(name.endswith("embeddings.patch_embeddings.projection.weight") for name in shapes):
    return (
      "a vision transformer of Hugging Face's transformers, whose names differ; take the authors' own file"
    )
  if len(patch) != 4 or not any(name.startswith("blocks.") for name in shapes):
    return f"no vision transformer at all (its tensors are {', '.join(map(shown, list(shapes)[:3]))}, …)"
  subject, published, tuned = {
    1: ("spectrograms", "AudioMAE", "a fine-tuned AudioMAE"),
    3: ("images", "MAE-Face or MAE", "an image classifier, a ViT"),
  }.get(patch[1], (f"pictures of {patch[1]} channels", "unknown", "a classifier"))
  if any(name.startswith("decoder_") for name in shapes):
    return f"a masked autoencoder of {subject} ({published})"
  if len(head) == 2:
    known = {1000: ", as ImageNet has", 527: ", as AudioSet has"}.get(head[0], "")
    return f"{tuned} with {head[0]} classes{known}, not the self-supervised encoder"
  return f"an encoder of {subject} without a decoder"


def model_in(fields: Any, title: str, tunable: Any = ()) -> ModelConfig:
  """The model that a file, possibly a stranger's, describes; UserError if it is none, or larger than any."""
  try:
    model = read_model(fields)
    flat = traverse_util.flatten_dict(model.to_fields(), sep=".").items()
    sizes = [(name, n) for name, size in flat for n in (size if isinstance(size, tuple) else [size])]
    most = {name: MOST_BLOCKS if name.endswith(".depth") else MOST for name, _ in sizes}
    if large := [f"{name}={n}" for name, n in sizes if isinstance(n, int) and n > most[name]]:
      raise UserError(f"no such model can be built: {', '.join(large)}")
    tunable_patterns(model)
    tunable_patterns(model, tunable)
  except (TypeError, AttributeError, KeyError, ValueError, RecursionError) as error:
    raise UserError(f"{title} describes no model: {error}") from error
  return model


def is_finite(tensor: np.ndarray) -> bool:
  with np.errstate(over="ignore"):  # the model computes in float32: larger values are infinite
    return bool(np.isfinite(tensor.astype(np.float32, copy=False)).all())


def refuse_not_finite(source: Path, names: list[str]) -> None:
  """Raises UserError about tensors with infinite or undefined values: such a model answers nothing."""
  if names:
    raise listed(f"{source} holds infinite or undefined (NaN) values", names)


def write_safetensors(
  path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], source: Path
) -> str:
  """Writes a new .safetensors file, tensor by tensor, whole or (UserError) not at all; returns its sha256."""
  kinds = {dtype: kind for kind, dtype in _TYPES.items()}
  header: dict[str, Any] = {"__metadata__": dict(metadata)}
  end, bad = 0, []
  names = sorted(tensors, key=lambda name: -tensors[name].dtype.itemsize)  # all aligned
  for name in names:
    tensor, start = tensors[name], end
    end += tensor.nbytes
    header[name] = {"dtype": kinds[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
  text = json.dumps(header).encode()
  text += b" " * (-len(text) % 8)
  digest = hashlib.sha256(beginning := len(text).to_bytes(8, "little") + text)
  with new_file(path) as partial:
    with open(partial, "wb") as file, Progress(path.name, end, unit="B", bytes=True) as bar:
      file.write(beginning)
      for name in names:
        array = np.ascontiguousarray(tensors[name].read())
        bad += [name] * (not is_finite(array))
        data = array.reshape(-1).view(np.uint8).data
        digest.update(data)
        file.write(data)
        bar.update(array.nbytes)
    refuse_not_finite(source, bad)
    if sha256_of(partial) != digest.hexdigest():
      raise UserError(f"the disk returned other bytes of {path} than were written; is it damaged?")
  return digest.hexdigest()


def write_torch(
  path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any], key: str = "state_dict"
) -> None:
  """Writes a new checkpoint that the original loads: `state_dict`, `epoch`, and `about` besides; needs PyTorch."""
  import torch

  def as_torch(tensor: Tensor):
    array = np.array(tensor.read())  # torch wants to own writable memory
    if array.dtype == _TYPES["BF16"]:
      return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)

  state_dict = collections.OrderedDict((name, as_torch(tensor)) for name, tensor in tensors.items())
  checkpoint = {"epoch": about.get("epoch") or 0, key: state_dict, OURS: dict(about)}
  if about.get("best_acc") is not None:
    checkpoint["best_acc"] = torch.tensor(about["best_acc"])
  with new_file(path) as partial:
    torch.save(checkpoint, partial)
