"""What tensors does a file hold (.pth, .safetensors), and how are they written. Nothing in a file is executed."""

import collections
from collections.abc import Callable, Collection, Mapping
import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
import tqdm

from mma_dfer_jax.disk import new_file, sha256_of
from mma_dfer_jax.errors import UserError, listed, shown
from mma_dfer_jax.model import ModelConfig, read_model
from mma_dfer_jax.parameters import parameter_shapes, tunable_patterns
from mma_dfer_jax.weights.torch_file import StoredTensor, read_torch_file

OURS = "mma_dfer_jax"  # key under which the files that we write say what shapes cannot: parts, heads, classes
VERSION = importlib.metadata.version("mma_dfer_jax")
MOST_BLOCKS = 32  # a ViT-H has so many; tracing a model takes seconds for a dozen, and minutes for a hundred
MOST = 2**16  # of any other size of a model that a file describes
_TYPES = {
  "F64": np.dtype(np.float64),
  "F32": np.dtype(np.float32),
  "F16": np.dtype(np.float16),
  "BF16": np.dtype(ml_dtypes.bfloat16),
}


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A tensor that need not be in memory yet: `read` gives it."""

  shape: tuple[int, ...]
  dtype: np.dtype
  read: Callable[[], np.ndarray]

  @property
  def nbytes(self) -> int:
    return math.prod(self.shape) * self.dtype.itemsize


def held(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
  """Arrays that are in memory already, as tensors."""
  return {name: Tensor(a.shape, a.dtype, functools.partial(np.asarray, a)) for name, a in arrays.items()}


@dataclasses.dataclass(frozen=True)
class StoredModel:
  """A whole model whose parameters are still where they are stored.

  Attributes:
    path: of the file or folder.
    model: its parts and sizes.
    about: `assumed` (what nothing says, with reasons), `classes`, `class_order` (whose order it is), `recipe` (how its
      data are prepared), `source` (file, sha256, epoch, as far as known).
    tensors: parameters by path; `unused.NAME` are the authors' tensors that never take part.
    sha256: of the file that holds them, or of what a run has of its own.
  """

  path: Path
  model: ModelConfig
  about: dict[str, Any]
  tensors: dict[str, Tensor] = dataclasses.field(repr=False)
  sha256: str

  def verify(self) -> None:
    """Raises UserError if the values have been damaged since they were written, as far as that can be known."""

  def read(self) -> dict[str, np.ndarray]:
    """All parameters by path, in the dtype of the source; UserError if they are damaged."""
    self.verify()
    return {path: self.tensors[path].read() for path in parameter_shapes(self.model)}


@dataclasses.dataclass(frozen=True)
class Weights:
  """Tensors by the authors' names without `module.`, and what else the file says.

  Attributes:
    path: of the file.
    tensors: in the order of the file.
    about: epoch and best accuracy if the file has them; `mma_dfer_jax` if this project wrote it.
  """

  path: Path
  tensors: dict[str, Tensor]
  about: dict[str, Any]

  @property
  def shapes(self) -> dict[str, tuple[int, ...]]:
    return {name: tensor.shape for name, tensor in self.tensors.items()}

  @functools.cached_property
  def sha256(self) -> str:
    return sha256_of(self.path)

  def heads(self, slot: str) -> int | None:
    """Attention heads of a part, if the file says them; `slot` is one of `model.SLOTS`."""
    fields = self.about[OURS].get("model")
    part = fields.get(slot) if isinstance(fields, dict) else None
    return part.get("heads") if isinstance(part, dict) else None


def open_weights(path: str | Path) -> Weights:
  """Opens a .pth or .safetensors file, whichever it is by content; reads names and shapes, executes nothing.

  Raises:
    UserError: if it is neither, damaged, holds no state dict, or tensors that are no weights.
  """
  path = Path(path)
  found, about = _open_safetensors(path) if _is_safetensors(path) else _open_torch(path)
  tensors: dict[str, Tensor] = {}
  for name, tensor in found.items():
    plain = name.removeprefix("module.")  # DataParallel's
    if plain in tensors:
      raise UserError(f"{path}: {shown(plain)} is there with and without the prefix module.")
    tensors[plain] = tensor
  return Weights(path, tensors, about)


def _is_safetensors(path: Path) -> bool:
  if not path.is_file():
    return False  # the reader of .pth files says what is wrong
  with open(path, "rb") as file:
    start = file.read(10)
  return start[6:9] == b"\0\0{"  # a header's length, then JSON; the name may say anything


def _open_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
  tensors, metadata = read_safetensors(path)
  try:
    ours = json.loads(metadata.get(OURS, "{}"))
  except ValueError as error:
    raise UserError(f"{path}: its metadata are damaged: {error}") from error
  return tensors, _about({**ours, OURS: ours} if isinstance(ours, dict) else {})


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
  """Tensors of a .safetensors file, each mapped into memory when it is read, and the file's metadata.

  Raises:
    UserError: if it is damaged, or holds types that numpy does not have.
  """
  try:
    with safetensors.safe_open(path, framework="numpy") as checked:  # all sizes and places in the file agree
      metadata = checked.metadata() or {}
    with open(path, "rb") as file:
      start = 8 + int.from_bytes(file.read(8), "little")
      header = json.loads(file.read(start - 8))
  except (safetensors.SafetensorError, ValueError, OSError) as error:
    raise UserError(f"{path} is no whole .safetensors file: {error}") from error
  header.pop("__metadata__", None)
  _check_types(path, {name: entry["dtype"] for name, entry in header.items()}, _TYPES)

  def tensor(dtype: str, shape: list[int], data_offsets: list[int]) -> Tensor:
    place = (path, _TYPES[dtype], tuple(shape), start + data_offsets[0])
    return Tensor(tuple(shape), _TYPES[dtype], functools.partial(_mapped, *place))

  return {name: tensor(**entry) for name, entry in header.items()}, metadata


def _mapped(path: Path, dtype: np.dtype, shape: tuple[int, ...], offset: int) -> np.ndarray:
  if 0 in shape:
    return np.empty(shape, dtype)
  try:
    return np.asarray(np.memmap(path, dtype, "r", offset, shape))
  except (OSError, ValueError) as error:
    raise UserError(f"{path} has been changed since it was opened: {error}") from error


def _open_torch(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
  saved = read_torch_file(path)
  if not isinstance(saved, dict):
    kind = (
      "a tensor" if isinstance(saved, StoredTensor) else getattr(saved, "name", f"a {type(saved).__name__}")
    )
    raise UserError(f"{path} holds {kind}, not a state dict; save model.state_dict() instead")
  # Where the state dict is: in MMA-DFER's checkpoints, in MAE's and AudioMAE's, or it is all there is.
  places: list[Mapping] = [saved[key] for key in ("state_dict", "model") if isinstance(saved.get(key), dict)]
  state = next((p for p in [*places, saved] if any(isinstance(v, StoredTensor) for v in p.values())), None)
  if state is None:
    keys = ", ".join(shown(key) for key in list(saved)[:10])
    raise UserError(
      f"{path} holds no state dict: neither under state_dict nor model nor at the top; it has {keys or 'nothing'}"
    )
  others = [shown(n) for n, v in state.items() if not (isinstance(n, str) and isinstance(v, StoredTensor))]
  if others:
    raise UserError(f"{path}: its state dict holds things that are no tensors: {', '.join(others)}")
  # Shared and expanded tensors may take more memory than the file has bytes, but not much in any real file.
  claimed, size = sum(max(t.nbytes, t.span) for t in state.values()), path.stat().st_size
  if claimed > 2 * size + 2**26:
    raise UserError(
      f"{path}: its tensors claim {claimed:,} bytes, the file has {size:,}; it is no real checkpoint"
    )
  _check_types(path, {name: str(t.dtype) for name, t in state.items()}, [str(t) for t in _TYPES.values()])
  return {name: Tensor(t.shape, t.dtype, t.read) for name, t in state.items()}, _about(saved)


def _check_types(path: Path, types: Mapping[str, str], allowed: Collection[str]) -> None:
  """Raises UserError that names every tensor of whole numbers or truth values: weights are neither."""
  if bad := [f"{shown(name)}: {kind}" for name, kind in types.items() if kind not in allowed]:
    raise listed(f"{path} holds tensors that are no weights", bad, f"weights are {', '.join(allowed)}")


def _about(saved: Mapping) -> dict[str, Any]:
  """Epoch, best accuracy and our own notes, where they are what they should be."""
  epoch, accuracy, ours = saved.get("epoch"), saved.get("best_acc"), saved.get(OURS)
  if isinstance(accuracy, StoredTensor) and accuracy.shape == ():
    accuracy = float(accuracy.read())
  # A file may hold a number of any length.
  return {
    "epoch": epoch if type(epoch) is int and 0 <= epoch < 2**53 else None,
    "best_acc": accuracy if isinstance(accuracy, float) and math.isfinite(accuracy) else None,
    OURS: ours if isinstance(ours, dict) else {},
  }


def looks_like(shapes: Mapping[str, tuple[int, ...]]) -> str:
  """What a file is, judged by names and shapes, in words for a message."""
  if any(name.startswith(("image_encoder.", "audio_model.", "temporal_net.")) for name in shapes):
    return "an MMA-DFER checkpoint"
  patch, head = shapes.get("patch_embed.proj.weight", ()), shapes.get("head.weight", ())
  if len(patch) != 4 or not any(name.startswith("blocks.") for name in shapes):
    some = ", ".join(map(shown, list(shapes)[:3]))
    return f"no vision transformer at all (its tensors are {some}, …)"
  decoder = any(name.startswith("decoder_") for name in shapes)
  subject = {1: "spectrograms", 3: "images"}.get(patch[1], f"pictures of {patch[1]} channels")
  if decoder:
    return f"a masked autoencoder of {subject} ({ {1: 'AudioMAE', 3: 'MAE-Face or MAE'}.get(patch[1], 'unknown') })"
  if len(head) == 2:
    known = {1000: ", as ImageNet has", 527: ", as AudioSet has"}.get(head[0], "")
    tuned = {1: "a fine-tuned AudioMAE", 3: "an image classifier, a ViT"}.get(patch[1], "a classifier")
    return f"{tuned} with {head[0]} classes{known}, not the self-supervised encoder"
  return f"an encoder of {subject} without a decoder"


def model_in(fields: Any, title: str) -> ModelConfig:
  """The model that a file describes, which may be a stranger's.

  Args:
    fields: as `ModelConfig.to_fields` gives them.
    title: the file, for messages.
  Raises:
    UserError: if they are none, or describe a model larger than any.
  """
  try:
    model = read_model(fields)
  except (TypeError, AttributeError, KeyError, ValueError) as error:
    raise UserError(f"{title} describes no model: {error}") from error
  sizes = {"num_classes": model.num_classes}
  for name, part in model.to_fields().items():
    sizes |= {f"{name}.{key}": n for key, n in part.items()} if isinstance(part, dict) else {}
  large = [
    f"{name}={n}"
    for name, size in sizes.items()
    for n in (size if isinstance(size, tuple) else [size])
    if isinstance(n, int) and n > (MOST_BLOCKS if name.endswith(".depth") else MOST)
  ]
  if large:
    raise UserError(f"{title} describes no model that can be built: {', '.join(large)}")
  try:
    tunable_patterns(model)
  except (TypeError, UserError) as error:
    raise UserError(f"{title}: {error}") from error
  return model


def check_finite(title: str, tensors: Mapping[str, np.ndarray]) -> None:
  """Raises UserError that names every tensor with infinite or undefined values: such a model answers nothing."""
  if bad := [name for name, tensor in tensors.items() if not _is_finite(tensor)]:
    raise listed(f"{title} holds infinite or undefined (NaN) values", bad)


def _is_finite(tensor: np.ndarray) -> bool:
  with np.errstate(over="ignore"):  # the model computes in float32: what is beyond it is infinite
    return bool(np.isfinite(tensor.astype(np.float32, copy=False)).all())


def write_safetensors(
  path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], source: Path
) -> str:
  """Writes a new .safetensors file, one tensor in memory at a time; returns its sha256, compared with the disk's.

  Args:
    path: of the file.
    tensors: by name.
    metadata: of the file, text by name.
    source: where the tensors come from, for messages.
  Raises:
    UserError: if there is such a file, the disk does not take it or gives other bytes back, or a value is not finite;
      no file is left then.
  """
  kinds = {dtype: kind for kind, dtype in _TYPES.items()}
  header: dict[str, Any] = {"__metadata__": dict(metadata)}
  end, bad = 0, []
  names = sorted(tensors, key=lambda name: -tensors[name].dtype.itemsize)  # all aligned
  for name in names:
    start, end = end, end + tensors[name].nbytes
    shape = list(tensors[name].shape)
    header[name] = {"dtype": kinds[tensors[name].dtype], "shape": shape, "data_offsets": [start, end]}
  text = json.dumps(header).encode()
  text += b" " * (-len(text) % 8)
  digest = hashlib.sha256()
  with new_file(path) as partial:
    with open(partial, "wb") as file, tqdm.tqdm(total=end, desc=path.name, unit="B", unit_scale=True) as bar:

      def write(data: bytes | memoryview) -> None:
        digest.update(data)
        file.write(data)

      write(len(text).to_bytes(8, "little") + text)
      for name in names:
        array = np.ascontiguousarray(tensors[name].read())
        if not _is_finite(array):
          bad.append(name)
        write(array.reshape(-1).view(np.uint8).data)
        bar.update(array.nbytes)
    if bad:
      raise listed(f"{source} holds infinite or undefined (NaN) values", bad)
    if sha256_of(partial) != digest.hexdigest():
      raise UserError(f"{path} did not come back from the disk as it was written; is the disk damaged?")
  return digest.hexdigest()


def write_torch(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
  """Writes a new checkpoint that the original loads: `state_dict`, `epoch`, and `about` besides.

  Raises:
    UserError: if PyTorch is not installed, or the file cannot be written.
  """
  torch = import_torch()

  def tensor(array: np.ndarray):
    array = np.array(array)  # torch wants to own what it may write to
    if array.dtype == np.dtype(ml_dtypes.bfloat16):
      return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)

  state_dict = collections.OrderedDict((name, tensor(t.read())) for name, t in tensors.items())
  checkpoint = {"epoch": about.get("epoch") or 0, "state_dict": state_dict, OURS: dict(about)}
  if about.get("best_acc") is not None:
    checkpoint["best_acc"] = torch.tensor(about["best_acc"])
  with new_file(path) as partial:
    torch.save(checkpoint, partial)


def import_torch():
  """PyTorch, which only writing a .pth needs.

  Raises:
    UserError: if it is not installed.
  """
  try:
    import torch
  except ImportError as error:
    raise UserError(
      "writing a .pth needs PyTorch (the CPU build will do): pip install 'mma_dfer_jax[torch]'; "
      "--to_safetensors needs nothing more"
    ) from error
  return torch
