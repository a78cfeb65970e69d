"""An authors' checkpoint of MMA-DFER, in and out: sizes from shapes, class names, tensors that never take part."""

from collections.abc import Mapping
import dataclasses
import functools
import json
import math
from pathlib import Path
import re
from typing import Any

import numpy as np

from mma_dfer_jax.data.faces import ARCHIVE_FACES
from mma_dfer_jax.data.labels import LABEL_ORDERS, label_order
from mma_dfer_jax.errors import UserError, listed
from mma_dfer_jax.inputs import Inputs
from mma_dfer_jax.model import ModelConfig, paper, read_model
from mma_dfer_jax.weights.files import (
  MOST_BLOCKS,
  OURS,
  VERSION,
  StoredModel,
  Tensor,
  Weights,
  held,
  import_torch,
  looks_like,
  model_in,
  open_weights,
  write_safetensors,
  write_torch,
)
from mma_dfer_jax.weights.names import (
  TO_TORCH,
  Row,
  check_fit,
  from_torch,
  name_table,
  unused_shapes,
  used_shapes,
)

UNUSED = "unused."  # before the authors' names of tensors that never take part
# What the authors' checkpoints were trained on; what this says of a data set's records must be equal to evaluate on it.
AUTHORS_RECIPE = {
  "sample_rate": "native: the file's own, never resampled",
  "sound_channel": "first",
  **ARCHIVE_FACES,
  "frames": "face crops, Pillow's bilinear resize to image_size, divided by 255, nothing else",
  "spectrogram": "Kaldi log-mel of the first audio_shape[0] frames of 10 ms, (x + 4.2677393) / 9.1379948",
}


def recipe_of(inputs: Inputs) -> dict[str, Any]:
  """How the authors prepare data of these sizes."""
  sizes = {"image_size": inputs.image_size, "num_frames": inputs.num_frames}
  return AUTHORS_RECIPE | sizes | {"audio_shape": list(inputs.audio_shape)}


def open_checkpoint(path: Path, heads: int | None = None) -> StoredModel:
  """An MMA-DFER checkpoint, .pth or .safetensors; `about["classes"]` is None if it does not say its classes.

  Args:
    path: the file.
    heads: attention heads of the encoders; None if the file says it or the usual is meant.
  Raises:
    CheckpointMismatchError: with everything missing, unexpected and of the wrong shape.
    UserError: if it is something else, and what it looks like.
  """
  weights = open_weights(path)
  what = looks_like(weights.shapes)
  if what != "an MMA-DFER checkpoint":
    advice = "; the two pretraining files go to --config.pretrained.image and --config.pretrained.audio"
    raise UserError(
      f"{path} is not an MMA-DFER checkpoint; it looks like {what}{advice * ('encoder' in what)}"
    )
  model, assumed = find_model(weights, heads)
  unused, ours = unused_shapes(model), weights.about[OURS]
  check_fit(f"{path} does not fit the model", weights.shapes, used_shapes(model), allowed=unused)
  classes = ours.get("classes")
  if classes is not None and (not isinstance(classes, list) or len(classes) != model.num_classes):
    raise UserError(f"{path} names the classes {classes!r:.200}, but tells {model.num_classes} apart")
  source = {"file": path.name, "bytes": path.stat().st_size, "sha256": weights.sha256}
  source |= {key: weights.about[key] for key in ("epoch", "best_acc") if weights.about[key] is not None}
  recipe = ours.get("recipe")
  about = {
    "assumed": assumed,
    "classes": classes and list(map(str, classes)),
    "class_order": str(ours.get("class_order", "as the file says")),
    "recipe": recipe if isinstance(recipe, dict) else recipe_of(model.inputs),
    "source": source,
  }
  tensors = {row.path: _ours(row, weights) for row in name_table(model)}
  tensors |= {UNUSED + name: weights.tensors[name] for name in unused if name in weights.tensors}
  return StoredModel(path, model, about, tensors, weights.sha256)


def _ours(row: Row, weights: Weights) -> Tensor:
  """A parameter of ours, made when it is read."""
  theirs = {name: weights.tensors[name] for name in row.torch_names}
  if len(dtypes := {tensor.dtype for tensor in theirs.values()}) > 1:
    raise UserError(f"{weights.path}: {' and '.join(theirs)} must be of one type, not {dtypes}")

  def read() -> np.ndarray:
    return from_torch({name: tensor.read() for name, tensor in theirs.items()}, [row])[row.path]

  zeros = from_torch({name: np.broadcast_to(np.int8(0), t.shape) for name, t in theirs.items()}, [row])
  return Tensor(zeros[row.path].shape, dtypes.pop(), read)


def with_classes(stored: StoredModel, classes: str | None) -> StoredModel:
  """The same model with class names; nothing is guessed.

  Args:
    stored: a model that may know its class names.
    classes: as `--classes` takes them; None if it knows them itself.
  Raises:
    UserError: if nobody says them, or they are others, or another number.
  """
  outputs, known = stored.model.num_classes, stored.about["classes"]
  if classes is None and known is None:
    fitting = [name for name, order in LABEL_ORDERS.items() if len(order.classes) == outputs]
    choices = " or ".join(f"--classes={name}" for name in [*fitting, "a,b,…"])
    raise UserError(f"{stored.path} tells {outputs} classes apart and does not say which; give {choices}")
  if classes is None:
    return stored
  order = label_order(classes)
  if known not in (None, list(order.classes)):
    raise UserError(f"--classes={classes}, but {stored.path} has {', '.join(known)}")
  if len(order.classes) != outputs:
    names = f"{len(order.classes)} class names ({', '.join(order.classes)})"
    raise UserError(f"{names}, but {stored.path} tells {outputs} apart")
  named = {"classes": list(order.classes), "class_order": order.origin} if known is None else {}
  return dataclasses.replace(stored, about=stored.about | named)


def find_model(weights: Weights, heads: int | None) -> tuple[ModelConfig, dict[str, str]]:
  """The parts and sizes of an MMA-DFER checkpoint, from the shapes of its tensors if it does not say them.

  Args:
    weights: the file.
    heads: attention heads of the encoders, if the user says so.
  Returns:
    The model, and what had to be assumed (value and reason by name): shapes do not tell into how many heads a width
    is divided. Files written by this project say it.
  Raises:
    UserError: if sizes do not go together, or the file says other heads.
  """
  ours = weights.about[OURS]
  if "model" not in ours:
    return _from_shapes(weights, heads)
  model = model_in(ours["model"], str(weights.path))
  said = {f"model.{slot}": getattr(getattr(model, slot), "heads", None) for slot in ("image", "audio")}
  if other := [f"{n} for {slot}" for slot, n in said.items() if None not in (heads, n) and n != heads]:
    raise UserError(f"--heads={heads}, but {weights.path} says {', '.join(other)}")
  return model, {}


def _usual_heads(width: int) -> int:
  """ViT-Ti, S, B and L have heads of 64, ViT-H of 80; smaller encoders exist in tests and demos only, with 4 heads."""
  return {1280: 16}.get(width, width // 64 if width >= 192 and width % 64 == 0 else 4)


def _from_shapes(weights: Weights, heads: int | None) -> tuple[ModelConfig, dict[str, str]]:
  shapes, usual = weights.shapes, paper()

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

  width = axis("image_encoder.norm.weight", 0, usual.image.width)
  # What is missing in one of them the others tell.
  depth = numbered(
    r"(?:image_encoder|audio_model)\.(?:blocks|all_gate|temporal_pre)\.(\d{1,9})\b", usual.image.depth
  )
  stages = numbered(r"image_encoder\.learnable_prompts_progr\.(\d{1,9})$", 2)
  prompts = axis("image_encoder.learnable_prompts_init", 0, 6)
  patch = max(axis("image_encoder.patch_embed.proj.weight", 2, usual.image.patch_size), 1)
  layers, temporal = "temporal_net.temporal_transformer.layers", usual.temporal
  inner = axis(f"{layers}.0.0.fn.fn.to_q.weight", 0, temporal.heads * temporal.head_dim)
  image_patches = axis("image_encoder.pos_embed", 1, 1 + 14**2 + prompts) - 1 - prompts
  audio_patches = axis("audio_model.pos_embed", 1, 1 + 32 * 8 + prompts) - 1 - prompts
  mel_bins = usual.inputs.audio_shape[1]
  assumed = {"temporal.heads": "8, as in the original (shapes do not tell; --verify checks it)"}
  if heads is None:
    heads = _usual_heads(width)
    assumed["heads"] = (
      f"{heads}, usual for width {width} (shapes do not tell; --heads sets it, --verify checks it)"
    )
  mlp_dim = axis("image_encoder.blocks.0.mlp.fc1.weight", 0, usual.image.mlp_dim)
  encoder = {"patch_size": patch, "width": width, "depth": depth, "heads": heads, "mlp_dim": mlp_dim}
  fields = usual.to_fields()
  fields["num_classes"] = axis("our_classifier.weight", 0, usual.num_classes)
  fields["inputs"] |= {
    "image_size": math.isqrt(max(image_patches, 1)) * patch,
    "num_frames": axis("temporal_net.pos_embedding", 1, 1 + usual.inputs.num_frames) - 1,
    "audio_shape": (max(audio_patches * patch // max(mel_bins // patch, 1), 1), mel_bins),
  }
  fields["image"] |= encoder
  fields["audio"] |= encoder
  fields["prompts"] |= {
    "prompts_per_stage": prompts // max(stages, 1),
    "layers_per_stage": depth // max(stages, 1),
  }
  fields["fusion"] |= {"width": axis("image_encoder.temporal_pre.0.weight", 0, usual.fusion.width)}
  fields["temporal"] |= {
    "width": axis("vision_proj.weight", 0, temporal.width),
    "depth": numbered(rf"{re.escape(layers)}\.(\d{{1,9}})\.", temporal.depth),
    "head_dim": max(inner // temporal.heads, 1),
    "mlp_dim": axis(f"{layers}.0.1.fn.fn.net.0.weight", 0, temporal.mlp_dim),
  }
  try:
    return read_model(fields), assumed
  except UserError as error:
    raise UserError(f"{weights.path} cannot be this model: {error}") from error


def authors_tensors(stored: StoredModel) -> dict[str, Tensor]:
  """All of the authors' tensors; those that never take part come from the source or start as the original's.

  Raises:
    UserError: naming the parts that an authors' file has no place for.
  """
  shapes, found = used_shapes(stored.model), {}

  def part(row: Row, i: int) -> np.ndarray:
    return np.ascontiguousarray(TO_TORCH[row.layout](stored.tensors[row.path].read())[i])

  for row in name_table(stored.model):
    for i, name in enumerate(row.torch_names):
      found[name] = Tensor(shapes[name], stored.tensors[row.path].dtype, functools.partial(part, row, i))
  kept = {n.removeprefix(UNUSED): t for n, t in stored.tensors.items() if n.startswith(UNUSED)}
  return found | held(initial_unused(stored.model)) | kept


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


def check_exports(to_torch: Path | None, to_safetensors: Path | None) -> None:
  """Raises UserError with every reason why the files could not be written."""
  problems = [f"{file} exists already" for file in (to_torch, to_safetensors) if file and file.exists()]
  if to_torch:
    try:
      import_torch()
    except UserError as error:
      problems.append(str(error))
  if problems:
    raise listed("cannot write", problems)


def export(stored: StoredModel, to_torch: Path | None, to_safetensors: Path | None) -> None:
  """Writes all of the authors' tensors under their names, and beside them what shapes do not tell.

  Raises:
    UserError: if a file is there already, PyTorch is wanted and missing, or the model has parts that such a file cannot
      hold, named.
  """
  check_exports(to_torch, to_safetensors)
  stored.verify()
  tensors = {f"module.{name}": tensor for name, tensor in authors_tensors(stored).items()}
  source = stored.about["source"]
  about: Mapping[str, Any] = {
    "model": stored.model.to_fields(),
    **{key: stored.about[key] for key in ("classes", "class_order", "recipe")},
    **{key: source.get(key) for key in ("epoch", "best_acc")},
    "version": VERSION,
  }
  about = json.loads(json.dumps(about))  # plain lists and numbers, which any reader takes
  if to_torch:
    write_torch(to_torch, tensors, about)
  if to_safetensors:
    write_safetensors(to_safetensors, tensors, {OURS: json.dumps(about)}, stored.path)
