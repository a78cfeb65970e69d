"""MAE-Face's and AudioMAE's pretraining files: checks that a file fits an encoder, and reads it."""

import math
from pathlib import Path
import re

from mma_dfer_jax.errors import UserError
from mma_dfer_jax.model import ModelConfig
from mma_dfer_jax.weights.files import Start, looks_like, open_weights
from mma_dfer_jax.weights.names import OWNERS, check_fit, name_table, ours, used_shapes
from mma_dfer_jax.weights.positions import resize_positions

# Tensors of the pretrained autoencoders that only their training needs: MAE's and AudioMAE's decoders.
DECODER = re.compile(
  r"mask_token|decoder_pos_embed|decoder_(embed|norm|pred)\.(weight|bias)|decoder_blocks\.\d+\.(norm[12]|attn|mlp)\..+"
)


def open_pretrained(stream: str, path: str | Path, cfg: ModelConfig) -> Start:
  """Opens MAE-Face's (image) or AudioMAE's (audio) pretraining file, with or without its decoder, for a model.

  The table of positions is resized to the model's grid; rows of prompts are not in the file. UserError names all that is
  missing, unexpected and of the wrong shape. Source: the original's constructors, which accept any file.
  """
  weights, encoder = open_weights(path), getattr(cfg, stream)
  rows = [row for row in name_table(cfg) if row.path.startswith(f"{stream}_encoder/")]
  used, prefix = used_shapes(cfg), OWNERS[f"{stream}_encoder"]
  wanted = {name.removeprefix(prefix): used[name] for row in rows for name in row.torch_names}
  left_out = [name for name in weights.tensors if DECODER.fullmatch(name)]
  target = encoder.grid(stream, cfg.inputs)
  positions = weights.shapes.get("pos_embed", ())
  patches = max(positions[1] - 1, 0) if len(positions) == 3 else 0
  # Frames are square; spectrograms of any length have the model's mel bins.
  grid = (math.isqrt(patches),) * 2 if stream == "image" else (patches // target[1], target[1])
  wanted["pos_embed"] = (1, 1 + grid[0] * grid[1] if min(grid) else -1, encoder.width)
  expected, what = {"image": "MAE-Face's", "audio": "AudioMAE's"}[stream], looks_like(weights.shapes)
  size = f"width {encoder.width}, {encoder.depth} blocks"
  title = f"{path} is not {expected} pretraining file for this model ({size}); it looks like {what}"
  check_fit(title, weights.shapes, wanted, allowed=left_out)
  try:  # a file of ours says its heads, but a stranger may have written it
    heads = weights.ours["model"][stream]["heads"]
  except (KeyError, TypeError):
    heads = encoder.heads
  if type(heads) is int and heads != encoder.heads:
    raise UserError(f"{path} has {heads} attention heads, model.{stream}.heads={encoder.heads}")
  taken = ours(cfg, rows, {prefix + name: tensor for name, tensor in weights.tensors.items()})
  table = f"{stream}_encoder/pos_embed"
  shape = (1, 1 + target[0] * target[1], encoder.width)
  taken[table] = taken[table].changed(shape, lambda array: resize_positions(array.astype("f4"), grid, target))
  resized = "positions as they are" if grid == target else f"positions resized from {grid} to {target}"
  facts = f"{len(rows)} tensors taken, {resized}, {len(left_out)} of its decoder left out"
  return Start(stream, weights, (what, facts, *weights.notes), taken)
