"""An authors' checkpoint of MMA-DFER, in and out: sizes from shapes, class names, tensors that never take part."""

import dataclasses
import functools
import json
import math
from pathlib import Path
import re
from typing import Any

import numpy as np

from mma_dfer_jax import __version__
from mma_dfer_jax.data.faces import ARCHIVE_FACES
from mma_dfer_jax.data.labels import LABEL_ORDERS, label_order
from mma_dfer_jax.errors import UserError
from mma_dfer_jax.inputs import Inputs
from mma_dfer_jax.model import ModelConfig, paper, read_model
from mma_dfer_jax.parameters import parameter_shapes
from mma_dfer_jax.weights import files, mae_dfer
from mma_dfer_jax.weights import names as of_names
from mma_dfer_jax.weights.files import OF_A_RUN, OURS, StoredModel, Tensor, Weights
from mma_dfer_jax.weights.names import Row, name_table, numbered, size_of, unused_shapes

UNUSED = "unused."  # before the authors' names of tensors that never take part
# What the authors' checkpoints were trained on; records that differ in one of these cannot be evaluated with them.
AUTHORS_RECIPE = {
  "sample_rate": "native: the file's own, never resampled",
  "sound_channel": "first",
  **ARCHIVE_FACES,
  "pixels": "face crops, Pillow's bilinear resize to image_size, divided by 255, nothing else",
  "spectrogram": "Kaldi log-mel of the first audio_shape[0] frames of 10 ms, (x + 4.2677393) / 9.1379948",
}


def recipe_of(inputs: Inputs) -> dict[str, Any]:
  """How the authors prepare data of these sizes."""
  return AUTHORS_RECIPE | inputs.to_fields() | {"audio_shape": list(inputs.audio_shape)}


def open_checkpoint(path: Path, heads: int | None = None, wanted: str | None = None) -> StoredModel:
  """An MMA-DFER checkpoint, or a fine-tuned one of MAE-DFER, as `open_weights` takes it.

  `about["classes"]` is None if it does not name its classes.

  Raises:
    CheckpointMismatchError: with everything missing, unexpected and of the wrong shape.
    UserError: if it is something else, and what it looks like.
  """
  weights = files.open_weights(path, wanted)
  of_mae_dfer = mae_dfer.MARK in weights.shapes
  if not of_mae_dfer and (what := files.looks_like(weights.shapes)) != "an MMA-DFER checkpoint":
    advice = "; give the two pretraining files as --config.pretrained.image and --config.pretrained.audio"
    what += advice * ("encoder" in what)
    raise UserError(f"{path} is not an MMA-DFER checkpoint; it looks like {what}")
  model, assumed = (mae_dfer.find_model if of_mae_dfer else find_model)(weights, heads)
  rows, shapes = (mae_dfer.rows_of if of_mae_dfer else name_table)(model), parameter_shapes(model)
  unused, ours, tensors = {} if of_mae_dfer else unused_shapes(model), weights.ours, weights.tensors
  allowed = mae_dfer.unused_in(weights) if of_mae_dfer else unused
  theirs = of_names.their_shapes(rows, shapes)
  of_names.check_fit(f"{path} does not fit the model", weights.shapes, theirs, allowed=allowed)
  classes, recipe, trained_as = (ours.get(key) for key in ("classes", "recipe", "trained_as"))
  names = classes if isinstance(classes, list) and all(isinstance(name, str) for name in classes) else []
  if classes is not None and len(names) != model.num_classes:
    raise UserError(f"{path} must name {model.num_classes} classes, as its model has, not {len(names)}")
  size = sum(file.stat().st_size for file in weights.files)
  source = {"file": path.name, "bytes": size, "sha256": weights.sha256}
  source |= (trained_as if isinstance(trained_as, dict) else {}) | weights.training
  source |= {"notes": list(weights.notes)} if weights.notes else {}
  about = {key: ours[key] for key, kind in OF_A_RUN.items() if type(ours.get(key)) is kind}
  about |= {"assumed": assumed, "source": source, "classes": None if classes is None else names}
  about["class_order"] = str(ours.get("class_order", "as the file says"))
  about["recipe"] = recipe if isinstance(recipe, dict) else recipe_of(model.inputs)
  try:
    found = of_names.ours(shapes, rows, tensors)
  except UserError as error:
    raise UserError(f"{path}: {error}") from error
  kept = {} if ours.get("unused") == "fresh" else {UNUSED + n: tensors[n] for n in unused if n in tensors}
  return StoredModel(path, model, about, found | kept, weights.sha256)


def with_classes(stored: StoredModel, classes: str | None) -> StoredModel:
  """The model with the class names of `--classes`, or its own; UserError if they are missing or do not fit."""
  outputs, known = stored.model.num_classes, stored.about["classes"]
  if classes is None:
    if known is None:
      fitting = [name for name, order in LABEL_ORDERS.items() if len(order.classes) == outputs]
      choices = " or ".join(f"--classes={name}" for name in [*fitting, "a,b,…"])
      raise UserError(f"{stored.path} has {outputs} classes and does not name them; give {choices}")
    return stored
  order = label_order(classes)
  if known not in (None, list(order.classes)):
    raise UserError(f"--classes={classes}, but {stored.path} has {', '.join(known)}")
  if len(order.classes) != outputs:
    names = f"{len(order.classes)} class names ({', '.join(order.classes)})"
    raise UserError(f"--classes={classes} gives {names}, but {stored.path} has {outputs} classes")
  named = {"classes": list(order.classes), "class_order": order.origin} if known is None else {}
  return dataclasses.replace(stored, about=stored.about | named)


def find_model(weights: Weights, heads: int | None) -> tuple[ModelConfig, dict[str, str]]:
  """The model that a file describes, or else its shapes show; and what had to be assumed, with reasons."""
  ours = weights.ours
  if "model" not in ours:
    return _from_shapes(weights, heads)
  model = files.model_in(ours["model"], str(weights.path), ours.get("tunable", ()))
  said = {f"model.{slot}": getattr(getattr(model, slot), "heads", None) for slot in ("image", "audio")}
  if other := [f"{n} for {slot}" for slot, n in said.items() if None not in (heads, n) and n != heads]:
    raise UserError(f"--heads={heads}, but {weights.path} says {', '.join(other)}")
  return model, {}


def _from_shapes(weights: Weights, heads: int | None) -> tuple[ModelConfig, dict[str, str]]:
  shapes, usual = weights.shapes, paper()
  layers = "temporal_net.temporal_transformer.layers"
  temporal, mel_bins = usual.temporal, usual.inputs.audio_shape[1]

  axis = functools.partial(size_of, shapes)

  def count(pattern: str, otherwise: int) -> int:
    if (number := numbered(shapes, pattern)) > files.MOST_BLOCKS:
      most = f"no such model has more than {files.MOST_BLOCKS}"
      raise UserError(f"{weights.path} numbers its parts up to {number - 1}; {most}")
    return number or otherwise

  width = axis("image_encoder.norm.weight", 0, usual.image.width)
  # If some blocks lack tensors, others still show the depth.
  blocks = r"(?:image_encoder|audio_model)\.(?:blocks|all_gate|temporal_pre)\.(\d{1,9})\b"
  depth = count(blocks, usual.image.depth)
  stages = count(r"image_encoder\.learnable_prompts_progr\.(\d{1,9})$", 2)
  prompts = axis("image_encoder.learnable_prompts_init", 0, 6)
  patch = max(axis("image_encoder.patch_embed.proj.weight", 2, usual.image.patch_size), 1)
  image_patches = axis("image_encoder.pos_embed", 1, 1 + 14**2 + prompts) - 1 - prompts
  audio_patches = axis("audio_model.pos_embed", 1, 1 + 32 * 8 + prompts) - 1 - prompts
  inner = axis(f"{layers}.0.0.fn.fn.to_q.weight", 0, temporal.heads * temporal.head_dim)
  assumed = {"temporal.heads": "8, as in the original (not in the shapes; --verify checks it)"}
  if heads is None:
    # ViT-Ti, S, B and L have heads of 64, ViT-H of 80; smaller encoders exist only in tests and demos, with 4 heads.
    heads = {1280: 16}.get(width, width // 64 if width >= 192 and width % 64 == 0 else 4)
    assumed["heads"] = f"{heads}, usual for width {width} (not in the shapes; --heads sets it)"
  found = {
    "inputs": {
      "image_size": math.isqrt(max(image_patches, 1)) * patch,
      "num_frames": axis("temporal_net.pos_embedding", 1, 1 + usual.inputs.num_frames) - 1,
      "audio_shape": (max(audio_patches * patch // max(mel_bins // patch, 1), 1), mel_bins),
    },
    "image": {
      "patch_size": patch, "width": width, "depth": depth, "heads": heads,
      "mlp_dim": axis("image_encoder.blocks.0.mlp.fc1.weight", 0, usual.image.mlp_dim),
    },
    "prompts": {"prompts_per_stage": prompts // max(stages, 1), "layers_per_stage": depth // max(stages, 1)},
    "fusion": {"width": axis("image_encoder.temporal_pre.0.weight", 0, usual.fusion.width)},
    "temporal": {
      "width": axis("vision_proj.weight", 0, temporal.width),
      "depth": count(rf"{re.escape(layers)}\.(\d{{1,9}})\.", temporal.depth),
      "head_dim": max(inner // temporal.heads, 1),
      "mlp_dim": axis(f"{layers}.0.1.fn.fn.net.0.weight", 0, temporal.mlp_dim),
    },
  }  # fmt: skip
  found["audio"] = found["image"]
  fields = usual.to_fields() | {"num_classes": axis("our_classifier.weight", 0, usual.num_classes)}
  fields |= {name: fields[name] | sizes for name, sizes in found.items()}
  try:
    return read_model(fields), assumed
  except UserError as error:
    raise UserError(f"{weights.path} cannot be this model: {error}") from error


def authors_tensors(stored: StoredModel) -> dict[str, Tensor]:
  """All of the authors' tensors; those that never take part come from the source or start as the original's."""
  shapes, found = of_names.used_shapes(stored.model), {}

  def theirs(row: Row, name: str) -> np.ndarray:
    return np.ascontiguousarray(row.to_torch(stored.tensors[row.path].read())[name])

  for row in name_table(stored.model):
    for name in row.torch_names:
      found[name] = Tensor(shapes[name], stored.tensors[row.path].dtype, functools.partial(theirs, row, name))
  fresh, rng = {}, np.random.default_rng(0)
  for name, shape in unused_shapes(stored.model).items():
    fresh[name] = np.full(shape, name.endswith("norm2.weight"), np.float32)
    if name.endswith("head.weight"):  # trunc_normal_(std=0.02), cut at 100 deviations
      fresh[name] = (0.02 * rng.standard_normal(shape)).astype(np.float32)
  kept = {n.removeprefix(UNUSED): t for n, t in stored.tensors.items() if n.startswith(UNUSED)}
  return found | files.held(fresh) | kept


def export(stored: StoredModel, to_torch: Path | None, to_safetensors: Path | None) -> None:
  """Writes all of the authors' tensors under their names, and beside them the facts that shapes do not show."""
  stored.verify()
  tensors = {f"module.{name}": tensor for name, tensor in authors_tensors(stored).items()}
  source, kept = stored.about["source"], ("classes", "class_order", "recipe", *OF_A_RUN)
  about = {key: stored.about[key] for key in kept if key in stored.about}
  about |= {"model": stored.model.to_fields(), "version": __version__}
  about |= {key: source.get(key) for key in ("epoch", "best_acc")}
  about["trained_as"] = {key: source[key] for key in ("run", "step") if key in source}
  about["unused"] = "kept" if any(name.startswith(UNUSED) for name in stored.tensors) else "fresh"
  about = json.loads(json.dumps(about))  # plain lists and numbers, which any reader takes
  if to_torch:
    files.write_torch(to_torch, tensors, about)
  if to_safetensors:
    files.write_safetensors(to_safetensors, tensors, {OURS: json.dumps(about)}, stored.path)
