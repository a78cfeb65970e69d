"""Pretraining files, MAE-Face's, AudioMAE's and our own: checks that a file fits an encoder, and reads it."""

from collections.abc import Sequence
import math
from pathlib import Path
import re
from typing import Any

from mma_dfer_jax.errors import listed
from mma_dfer_jax.inputs import Inputs
from mma_dfer_jax.model import ModelConfig
from mma_dfer_jax.parameters import parameter_shapes
from mma_dfer_jax.weights import names
from mma_dfer_jax.weights.files import Start, Tensor, Weights, looks_like, open_weights
from mma_dfer_jax.weights.mae_dfer import open_lgi
from mma_dfer_jax.weights.positions import resize_positions

# Tensors of the pretrained autoencoders that only their training needs: MAE's and AudioMAE's decoders.
DECODER = re.compile(
  r"mask_token|decoder_pos_embed|decoder_(embed|norm|pred)\.(weight|bias)|decoder_blocks\.\d+\.(norm[12]|attn|mlp)\..+"
)
NOT_IN_SHAPES = ("heads", "mean", "std")  # fields of an encoder that our own files say besides


def open_pretrained(stream: str, path: str | Path, cfg: ModelConfig) -> Start:
  """Opens a pretraining file, with or without its decoder, for the image or audio encoder of a model.

  The table of positions is resized to the model's grid; rows of prompts are not in the file. UserError names all that is
  missing, unexpected and of the wrong shape. Source: the original's constructors, which accept any file.
  """
  rows, weights = names.encoder_rows(stream, cfg), open_weights(path)
  if not hasattr(getattr(cfg, stream), "grid"):  # the encoder has no table of positions
    return open_lgi(stream, weights, cfg)
  taken, facts = take_encoder(stream, weights, getattr(cfg, stream), cfg.inputs, rows, parameter_shapes(cfg))
  decoder = sum(1 for name in weights.tensors if DECODER.fullmatch(name))
  *first, last = facts
  return Start(stream, weights, (*first, f"{last}, {decoder} of its decoder left out", *weights.notes), taken)


def take_encoder(
  stream: str, weights: Weights, encoder: Any, inputs: Inputs, rows: Sequence[names.Row], shapes: names.Shapes
) -> tuple[dict[str, Tensor], list[str]]:
  """The parameters of an encoder, by path, from a pretraining file; and what the file is and how much of it is taken.

  Args:
    encoder: the `Config` of the encoder.
    rows: its parameters with their names in the file, the table of positions among them.
    shapes: of its parameters by path; positions may have more rows, of prompts.
  Raises:
    UserError: with all that does not fit.
  """
  path, target = weights.path, encoder.grid(stream, inputs)
  wanted = names.their_shapes(rows, shapes)
  positions = weights.shapes.get("pos_embed", ())
  patches = max(positions[1] - 1, 0) if len(positions) == 3 else 0
  # Frames are square; spectrograms of any length have the model's mel bins.
  grid = (math.isqrt(patches),) * 2 if stream == "image" else (patches // target[1], target[1])
  wanted["pos_embed"] = (1, 1 + grid[0] * grid[1] if min(grid) else -1, encoder.width)
  expected, what = {"image": "MAE-Face's", "audio": "AudioMAE's"}[stream], looks_like(weights.shapes)
  size = f"width {encoder.width}, {encoder.depth} blocks"
  _refuse_other_sizes(stream, weights, encoder)
  title = f"{path} is not {expected} pretraining file for this model ({size}); it looks like {what}"
  names.check_fit(title, weights.shapes, wanted, allowed=list(filter(DECODER.fullmatch, weights.tensors)))
  if problems := _not_in_shapes(stream, weights, encoder):
    raise listed(f"{path} was pretrained with other values than this model has", problems)
  taken = names.ours(shapes, rows, weights.tensors)
  table = next(row.path for row in rows if row.torch_names == ("pos_embed",))
  shape = (1, 1 + target[0] * target[1], encoder.width)
  taken[table] = taken[table].changed(shape, lambda array: resize_positions(array.astype("f4"), grid, target))
  resized = "positions as they are" if grid == target else f"positions resized from {grid} to {target}"
  return taken, [what, f"{len(rows)} tensors taken, {resized}"]


def _refuse_other_sizes(stream: str, weights: Weights, encoder: Any) -> None:
  """Raises UserError if a file holds a right encoder of other sizes; what else it may be is for others to say."""
  kernel, hidden = (weights.shapes.get(f"{n}.weight", ()) for n in ("patch_embed.proj", "blocks.0.mlp.fc1"))
  right = len(kernel) == 4 and len(hidden) == 2 and kernel[1] == {"image": 3, "audio": 1}[stream]
  if right and "head.weight" not in weights.shapes:
    depth = names.numbered(weights.tensors, r"blocks\.(\d+)\.")
    sizes = {"width": kernel[0], "depth": depth, "mlp_dim": hidden[0], "patch_size": kernel[2]}
    names.check_sizes(weights.path, "an encoder", sizes, encoder)


def _not_in_shapes(stream: str, weights: Weights, encoder: Any) -> list[str]:
  """What a file of ours, which a stranger may have written, says of its encoder otherwise than the config."""
  said: Any = weights.ours.get("encoder", weights.ours.get("model"))
  if isinstance(said, dict) and "encoder" not in weights.ours:
    said = said.get(stream)  # a whole model
  problems = []
  for name in NOT_IN_SHAPES if isinstance(said, dict) else ():
    there, here = said.get(name), getattr(encoder, name)
    there = tuple(there) if isinstance(there, list) else there
    if type(there) is type(here) and there != here:
      problems.append(f"{name}={there} in the file, {name}={here} in the config")
  return problems
