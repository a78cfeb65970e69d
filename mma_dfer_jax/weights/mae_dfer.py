"""MAE-DFER's files: its LGI-Former, pretrained (with a decoder, in which nothing is taken) or fine-tuned (with a head)."""

import functools
import re
from typing import Any

from mma_dfer_jax.errors import UserError
from mma_dfer_jax.inputs import Inputs
from mma_dfer_jax.model import PAPER, ModelConfig, read_model
from mma_dfer_jax.parameters import parameter_shapes
from mma_dfer_jax.weights import names
from mma_dfer_jax.weights.files import MOST_BLOCKS, Start, Weights, looks_like
from mma_dfer_jax.weights.names import encoder_rows

MARK = "lg_region_tokens"  # no other model has it
# Besides an encoder: a classifier, the norm that means over tokens replace, and all of pretraining's decoder.
_HEAD = ("head.weight", "head.bias")
_UNUSED = re.compile(r"norm\.(weight|bias)|mask_token|encoder_to_decoder\.weight|decoder\..+")


def unused_in(weights: Weights) -> list[str]:
  """Tensors that only pretraining needs."""
  return [name for name in weights.tensors if _UNUSED.fullmatch(name)]


def open_lgi(stream: str, weights: Weights, cfg: ModelConfig) -> Start:
  """The encoder of a pretraining or fine-tuned file for a model with LGI-Former; UserError names all that does not fit.

  Pretraining files have no `fc_norm`, which is fresh then. Positions are in no file.
  """
  rows = encoder_rows(stream, cfg)
  if MARK in weights.shapes:
    names.check_sizes(weights.path, "an LGI-Former", _sizes(weights.shapes), getattr(cfg, stream))
  lacking = [row for row in rows if row.path.startswith(f"{stream}_encoder/fc_norm/")
             and not {"fc_norm.weight", "fc_norm.bias"} & weights.shapes.keys()]  # fmt: skip
  rows = [row for row in rows if row not in lacking]
  shapes, left = parameter_shapes(cfg), unused_in(weights)
  title = f"{weights.path} holds no LGI-Former for this model; it looks like {looks_like(weights.shapes)}"
  names.check_fit(title, weights.shapes, names.their_shapes(rows, shapes), allowed=[*left, *_HEAD])
  facts = [looks_like(weights.shapes), f"{len(rows)} tensors taken"]
  facts += ["fc_norm fresh, which the file does not have"] * bool(lacking)
  facts += ["its classifier left out"] * bool(weights.shapes.keys() & set(_HEAD))
  facts += [f"{len(left)} tensors of pretraining left out"] * bool(left)
  return Start(stream, weights, (*facts, *weights.notes), names.ours(shapes, rows, weights.tensors))


def _sizes(shapes: names.Shapes) -> dict[str, int]:
  """Sizes of an encoder that shapes show; 0 for what is missing."""
  axis, kernel = functools.partial(names.size_of, shapes), "patch_embed.proj.weight"
  sizes = {"width": axis(kernel, 0), "depth": names.numbered(shapes, r"blocks\.(\d{1,9})\.")}
  sizes |= {"mlp_dim": axis("blocks.0.mlp.fc1.weight", 0)}
  return sizes | {"tubelet": axis(kernel, 2), "patch_size": axis(kernel, 3)}


def rows_of(cfg: ModelConfig) -> list[names.Row]:
  """All parameters of their whole model with their names in a fine-tuned file."""
  heads = ((path, shape) for path, shape in parameter_shapes(cfg).items() if path.startswith("classifier/"))
  found = [names.row_of(path, shape, "classifier", (("", "head", "linear"),)) for path, shape in heads]
  return [*encoder_rows("image", cfg), *filter(None, found)]


def find_model(weights: Weights, heads: int | None) -> tuple[ModelConfig, dict[str, str]]:
  """Their whole model, as a fine-tuned file's shapes show it; and what had to be assumed, with reasons."""
  shapes, path = weights.shapes, weights.path
  if len(shapes.get(_HEAD[0], ())) != 2:
    raise UserError(f"{path} is MAE-DFER's encoder without a classifier, not a model that answers: give it as "
                    "--config.pretrained.image with --config=configs/mae_dfer.py")  # fmt: skip
  sizes = _sizes(shapes)
  if (depth := sizes["depth"]) > MOST_BLOCKS:
    raise UserError(f"{path} numbers its blocks up to {depth - 1}; no such model has more than {MOST_BLOCKS}")
  width, published = sizes["width"], "as published (not in the shapes)"
  assumed = {"inputs": f"every 4th of 64 frames of 160 pixels, {published}", "image.region": f"(2, 5, 10), {published}",
             "image.readout": f"region, {published}"}  # fmt: skip
  if heads is None:
    heads = width // 64 if width >= 192 and width % 64 == 0 else 4
    assumed["heads"] = f"{heads}, usual for width {width} (not in the shapes; --heads sets it)"
  fields: dict[str, Any] = {name: {"name": of} for name, of in PAPER.items()}
  fields |= {name: {"name": "none"} for name in ("audio", "prompts", "fusion")}
  fields |= {"image": {"name": "lgi", "heads": heads, **sizes}, "temporal": {"name": "mean", "width": 0},
             "inputs": Inputs(image_size=160, frame_choice="stride", test_views=2).to_fields(), "num_classes": shapes[_HEAD[0]][0]}  # fmt: skip
  try:
    return read_model(fields), assumed
  except UserError as error:
    raise UserError(f"{path} cannot be MAE-DFER's model: {error}") from error
