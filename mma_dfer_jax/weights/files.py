"""Files of weights: opened safely, told apart, fitted to the model, and written again.

A `Weights` holds tensors by the names of the authors' state dict; they stay in the file until they are read.
"""

import collections
from collections.abc import Mapping
import contextlib
import dataclasses
import functools
import hashlib
import json
import math
from pathlib import Path
import re
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from mma_dfer_jax.errors import UserError, listed, shown
from mma_dfer_jax.model import ModelConfig
from mma_dfer_jax.weights.names import unused_shapes
from mma_dfer_jax.weights.torch_file import StoredTensor, read_torch_file

OURS = "mma_dfer_jax"  # key under which the files that we write tell sizes and classes, which shapes cannot
FLOATING = ("float32", "float16", "bfloat16", "float64")
MOST_BLOCKS = 32  # a ViT-H has so many; tracing a model takes seconds for a dozen, and minutes for a hundred


@runtime_checkable
class Tensor(Protocol):
  """A tensor that need not be in memory yet."""

  @property
  def shape(self) -> tuple[int, ...]: ...
  @property
  def dtype(self) -> np.dtype: ...
  @property
  def nbytes(self) -> int: ...
  def read(self) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class InMemory:
  """A tensor that is there already."""

  array: np.ndarray

  @property
  def shape(self) -> tuple[int, ...]:
    return self.array.shape

  @property
  def dtype(self) -> np.dtype:
    return self.array.dtype

  @property
  def nbytes(self) -> int:
    return self.array.nbytes

  def read(self) -> np.ndarray:
    return np.ascontiguousarray(self.array)


@dataclasses.dataclass(frozen=True)
class InSafetensors:
  """A tensor of a .safetensors file."""

  path: Path
  name: str
  shape: tuple[int, ...]
  dtype: np.dtype

  @property
  def nbytes(self) -> int:
    return math.prod(self.shape) * self.dtype.itemsize

  def read(self) -> np.ndarray:
    with safetensors.safe_open(self.path, framework="numpy") as file:
      return file.get_tensor(self.name)


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
    with open(self.path, "rb") as file:
      return hashlib.file_digest(file, "sha256").hexdigest()

  def check_claims(self) -> None:
    """Raises UserError if the tensors would take far more memory than the file has bytes.

    Shared and expanded tensors may take more, but not much in any real file.
    """
    claimed = sum(max(tensor.nbytes, getattr(tensor, "span", 0)) for tensor in self.tensors.values())
    size = self.path.stat().st_size
    if claimed > 2 * size + 2**26:
      raise UserError(
        f"{self.path}: its tensors claim {claimed:,} bytes, the file has {size:,}; it is no real checkpoint"
      )


def open_weights(path: str | Path) -> Weights:
  """Opens a .pth or .safetensors file, whichever it is by content; reads names and shapes, executes nothing.

  Raises:
    UserError: if it is neither, damaged, or holds no state dict.
  """
  path = Path(path)
  found, about = _open_safetensors(path) if _is_safetensors(path) else _open_torch(path)
  tensors: dict[str, Tensor] = {}
  for name, tensor in found.items():
    plain = name.removeprefix("module.")  # DataParallel's
    if plain in tensors:
      raise UserError(f"{path}: {shown(plain)} is there with and without the prefix module.")
    tensors[plain] = tensor
  weights = Weights(path, tensors, about)
  weights.check_claims()
  return weights


def _is_safetensors(path: Path) -> bool:
  if not path.is_file():
    return False  # the reader of .pth files says what is wrong
  with open(path, "rb") as file:
    start = file.read(10)
  return start[6:9] == b"\0\0{"  # a header's length, then JSON; the name may say anything


def _open_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
  found: dict[str, Tensor] = {}
  try:
    with safetensors.safe_open(path, framework="numpy") as file:
      for name in file.keys():  # noqa: SIM118 # it is no mapping
        part = file.get_slice(name)
        found[name] = InSafetensors(path, name, tuple(part.get_shape()), _SAFETENSORS_TYPES[part.get_dtype()])
      metadata = file.metadata() or {}
    about = json.loads(metadata.get(OURS, "{}"))
  except KeyError as error:
    raise UserError(f"{path}: tensors of type {error} cannot be read") from error
  except (safetensors.SafetensorError, ValueError, OSError) as error:
    raise UserError(f"{path} is no whole .safetensors file: {error}") from error
  return found, _told({"epoch": about.get("epoch"), OURS: about} if isinstance(about, dict) else {})


_SAFETENSORS_TYPES = {
  "F64": np.dtype(np.float64),
  "F32": np.dtype(np.float32),
  "F16": np.dtype(np.float16),
  "BF16": np.dtype(ml_dtypes.bfloat16),
  **{f"I{bits}": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)},
  **{f"U{bits}": np.dtype(f"uint{bits}") for bits in (8, 16, 32, 64)},
  "BOOL": np.dtype(bool),
}


def _open_torch(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
  saved = read_torch_file(path)
  if not isinstance(saved, dict):
    raise UserError(f"{path} holds {_kind(saved)}, not a state dict; save model.state_dict() instead")
  # Where the state dict is: in MMA-DFER's checkpoints, in MAE's and AudioMAE's, or it is all there is.
  places: list[Mapping] = [saved[key] for key in ("state_dict", "model") if isinstance(saved.get(key), dict)]
  state = next(
    (place for place in [*places, saved] if any(isinstance(v, StoredTensor) for v in place.values())), None
  )
  if state is None:
    keys = ", ".join(shown(key) for key in list(saved)[:10])
    raise UserError(
      f"{path} holds no state dict: neither under state_dict nor model nor at the top; it has {keys or 'nothing'}"
    )
  others = [
    shown(name)
    for name, value in state.items()
    if not (isinstance(name, str) and isinstance(value, StoredTensor))
  ]
  if others:
    raise UserError(f"{path}: its state dict holds things that are no tensors: {', '.join(others)}")
  return dict(state), _told(saved)


def _kind(saved: object) -> str:
  return (
    "a tensor" if isinstance(saved, StoredTensor) else getattr(saved, "name", f"a {type(saved).__name__}")
  )


def _told(saved: Mapping) -> dict[str, Any]:
  """Epoch, best accuracy and our own notes, where they are what they should be."""
  epoch, accuracy, ours = saved.get("epoch"), saved.get("best_acc"), saved.get(OURS)
  if isinstance(accuracy, StoredTensor) and accuracy.shape == ():
    accuracy = float(accuracy.read())
  return {
    "epoch": epoch
    if type(epoch) is int and 0 <= epoch < 2**53
    else None,  # a file may hold a number of any length
    "best_acc": accuracy if isinstance(accuracy, float) and math.isfinite(accuracy) else None,
    OURS: ours if isinstance(ours, dict) else {},
  }


def check_floating(weights: Weights) -> None:
  """Raises UserError that names every tensor of whole numbers or truth values: weights are neither."""
  kinds = {name: tensor.dtype for name, tensor in weights.tensors.items()}
  bad = [f"{shown(name)}: {kind}" for name, kind in kinds.items() if kind.name not in FLOATING]
  if bad:
    raise listed(
      f"{weights.path} holds tensors that are no weights", bad, f"weights are {', '.join(FLOATING)}"
    )


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


def find_sizes(weights: Weights, heads: int | None) -> tuple[ModelConfig, dict[str, str]]:
  """The sizes of an MMA-DFER checkpoint from the shapes of its tensors.

  Args:
    weights: the file.
    heads: attention heads of the encoders, if the user says so.
  Returns:
    The sizes, and what had to be assumed (value and reason by name): shapes do not tell into how many heads a width
    is divided. Files written by this project say it.
  Raises:
    UserError: if sizes do not go together.
  """
  shapes = weights.shapes

  def axis(name: str, i: int, otherwise: int) -> int:
    shape = shapes.get(name, ())
    return shape[i] if len(shape) > i and 0 not in shape else otherwise  # an empty tensor may claim any size

  def numbered(pattern: str, otherwise: int) -> int:
    found = [int(match[1]) for name in shapes if (match := re.match(pattern, name))]
    count = max(found, default=otherwise - 1) + 1
    if count > MOST_BLOCKS:
      raise UserError(
        f"{weights.path} numbers its parts up to {count - 1}; no such model has more than {MOST_BLOCKS}"
      )
    return count

  paper = ModelConfig()
  width = axis("image_encoder.norm.weight", 0, paper.width)
  # What is missing in one of them the others tell.
  depth = numbered(
    r"(?:image_encoder|audio_model)\.(?:blocks|all_gate|temporal_pre)\.(\d{1,9})\b", paper.depth
  )
  stages = numbered(r"image_encoder\.learnable_prompts_progr\.(\d{1,9})$", paper.num_stages)
  prompts = axis("image_encoder.learnable_prompts_init", 0, paper.num_prompts)
  patch = max(axis("image_encoder.patch_embed.proj.weight", 2, paper.patch_size), 1)
  layer = "temporal_net.temporal_transformer.layers.0"
  inner = axis(f"{layer}.0.fn.fn.to_q.weight", 0, 512)
  image_patches = axis("image_encoder.pos_embed", 1, 1 + 14**2 + prompts) - 1 - prompts
  audio_patches = axis("audio_model.pos_embed", 1, 1 + 32 * 8 + prompts) - 1 - prompts
  ours = weights.about[OURS].get("sizes", {})
  assumed = {}
  if heads is None:
    heads = ours.get("heads")
  if heads is None:
    # ViT-Ti, S, B and L have heads of 64; smaller encoders exist in tests and demos only, with 4 heads.
    heads = {1280: 16}.get(width, width // 64 if width >= 192 and width % 64 == 0 else 4)
    assumed["heads"] = (
      f"{heads}, usual for width {width} (shapes do not tell; --heads sets it, --verify checks it)"
    )
  temporal_heads = ours.get("temporal_heads")
  if temporal_heads is None:
    temporal_heads = 8
    assumed["temporal_heads"] = "8, as in the original (shapes do not tell; --verify checks it)"
  mel_bins = ours.get("mel_bins", 128)
  try:
    cfg = ModelConfig(
      num_classes=axis("our_classifier.weight", 0, paper.num_classes),
      image_size=math.isqrt(max(image_patches, 1)) * patch,
      num_frames=axis("temporal_net.pos_embedding", 1, 1 + paper.num_frames) - 1,
      audio_shape=(max(audio_patches * patch // max(mel_bins // patch, 1), 1), mel_bins),
      patch_size=patch,
      width=width,
      depth=depth,
      heads=heads,
      mlp_dim=axis("image_encoder.blocks.0.mlp.fc1.weight", 0, paper.mlp_dim),
      prompts_per_stage=prompts // max(stages, 1),
      layers_per_stage=depth // max(stages, 1),
      bottleneck_width=axis("image_encoder.temporal_pre.0.weight", 0, paper.bottleneck_width),
      temporal_width=axis("vision_proj.weight", 0, paper.temporal_width),
      temporal_depth=numbered(
        r"temporal_net\.temporal_transformer\.layers\.(\d{1,9})\.", paper.temporal_depth
      ),
      temporal_heads=temporal_heads,
      temporal_head_dim=max(inner // max(temporal_heads, 1), 1),
      temporal_mlp_dim=axis(f"{layer}.1.fn.fn.net.0.weight", 0, paper.temporal_mlp_dim),
    )
  except (UserError, TypeError) as error:
    raise UserError(f"{weights.path} cannot be this model: {error}") from error
  return cfg, assumed


def check_finite(title: str, tensors: Mapping[str, np.ndarray]) -> None:
  """Raises UserError that names every tensor with infinite or undefined values: such a model answers nothing."""
  with np.errstate(over="ignore"):  # the model computes in float32: what is beyond it is infinite
    bad = [
      name for name, tensor in tensors.items() if not np.isfinite(tensor.astype(np.float32, copy=False)).all()
    ]
  if bad:
    raise listed(f"{title} holds infinite or undefined (NaN) values", bad)


def initial_unused(cfg: ModelConfig) -> dict[str, np.ndarray]:
  """Tensors of the authors' file that never take part, as the original initialises them."""
  rng = np.random.default_rng(0)

  def initial(name: str, shape: tuple[int, ...]) -> np.ndarray:
    if name.endswith("head.weight"):
      return (0.02 * rng.standard_normal(shape)).astype(
        np.float32
      )  # trunc_normal_(std=0.02), cut at 100 deviations
    return np.full(shape, 1 if name.endswith("norm2.weight") else 0, np.float32)

  return {name: initial(name, shape) for name, shape in unused_shapes(cfg).items()}


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> None:
  """Writes tensors under the authors' names with `module.`, and `about` as metadata."""
  named = {f"module.{name}": np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
  with new_file(path) as partial:
    safetensors.numpy.save_file(named, partial, metadata={OURS: json.dumps(about)})


def write_torch(path: Path, tensors: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> None:
  """Writes a checkpoint that the original loads: `state_dict` with `module.`, `epoch`, and `about` besides.

  Raises:
    UserError: if PyTorch is not installed.
  """
  torch = import_torch()
  bfloat16 = np.dtype(ml_dtypes.bfloat16)

  def tensor(array: np.ndarray):
    array = np.array(array)  # torch wants to own what it may write to
    if array.dtype == bfloat16:
      return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)

  state_dict = collections.OrderedDict((f"module.{name}", tensor(array)) for name, array in tensors.items())
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


@contextlib.contextmanager
def new_file(path: Path):
  """Gives the name of a file to write, which becomes `path` when it is whole and vanishes when it is not."""
  if path.exists():
    raise UserError(f"{path} exists already; choose another name or remove it")
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(f"{path.name}.partial")
  try:
    yield partial
    partial.replace(path)
  except (
    OSError,
    RuntimeError,
    safetensors.SafetensorError,
  ) as error:  # a full disk, in the words of each library
    raise UserError(f"cannot write {path}: {' '.join(str(error).split())[:300]}") from error
  finally:
    partial.unlink(missing_ok=True)
