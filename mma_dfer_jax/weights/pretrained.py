"""Does this file fit this encoder: MAE-Face's and AudioMAE's pretraining files."""

import dataclasses
import math
from pathlib import Path
import re

import numpy as np

from mma_dfer_jax.errors import UserError
from mma_dfer_jax.model import ModelConfig
from mma_dfer_jax.weights.files import Weights, check_finite, looks_like, open_weights
from mma_dfer_jax.weights.names import OWNERS, Row, check_fit, from_torch, name_table, used_shapes
from mma_dfer_jax.weights.positions import resize_positions

# Parts of the pretrained autoencoders that only training them needs: MAE's and AudioMAE's decoders.
DECODER = re.compile(
  r"mask_token|decoder_pos_embed|decoder_(embed|norm|pred)\.(weight|bias)|decoder_blocks\.\d+\.(norm[12]|attn|mlp)\..+"
)


@dataclasses.dataclass(frozen=True)
class PretrainedEncoder:
  """The file of one self-supervised encoder, checked against the model.

  Attributes:
    name: "image" or "audio".
    weights: the file.
    rows: parameters of the model that come from it, `pos_embed` among them.
    grid: patches that its table of positions is for, (height, width) or (time, mel).
    target: patches of the model.
    left_out: names of its tensors that only its decoder needs.
  """

  name: str
  weights: Weights
  rows: tuple[Row, ...]
  grid: tuple[int, int]
  target: tuple[int, int]
  left_out: tuple[str, ...]

  @property
  def sha256(self) -> str:
    return self.weights.sha256

  def describe(self) -> str:
    """One line for people."""
    resized = f"positions resized from {self.grid} to {self.target}"
    return (
      f"{self.name} encoder: {self.weights.path}, {looks_like(self.weights.shapes)}, sha256 "
      f"{self.weights.sha256[:16]}…; {len(self.rows)} tensors taken, "
      f"{resized if self.grid != self.target else 'positions as they are'}, {len(self.left_out)} of its decoder left out"
    )

  def read(self) -> dict[str, np.ndarray]:
    """Float32 parameters by path; of `pos_embed` the rows of class token and patches: prompts have rows of their own.

    Raises:
      UserError: if the file holds values that are not finite.
    """
    prefix = OWNERS[f"{self.name}_encoder"]
    tensors = {
      name: self.weights.tensors[name.removeprefix(prefix)].read().astype(np.float32)
      for row in self.rows
      for name in row.torch_names
    }
    check_finite(str(self.weights.path), tensors)
    positions = f"{prefix}pos_embed"
    tensors[positions] = resize_positions(tensors[positions], self.grid, self.target)
    return from_torch(tensors, self.rows)


def open_pretrained(stream: str, path: str | Path, cfg: ModelConfig) -> PretrainedEncoder:
  """Opens MAE-Face's (image) or AudioMAE's (audio) pretraining file and checks that it is what the model needs.

  Args:
    stream: "image" or "audio".
    path: the file as published, with or without its decoder.
    cfg: the model.
  Raises:
    CheckpointMismatchError: with all that is missing, unexpected and of the wrong shape, and what the file looks like.
    UserError: if the file cannot be read.
  Source: the original's constructors, which load both files with strict=False and accept any.
  """
  weights, encoder = open_weights(path), getattr(cfg, stream)
  rows = tuple(row for row in name_table(cfg) if row.path.startswith(f"{stream}_encoder/"))
  used, prefix = used_shapes(cfg), OWNERS[f"{stream}_encoder"]
  wanted = {name.removeprefix(prefix): used[name] for row in rows for name in row.torch_names}
  left_out = tuple(name for name in weights.tensors if DECODER.fullmatch(name))
  target = encoder.grid(stream, cfg.inputs)
  positions = weights.shapes.get("pos_embed", ())
  patches = positions[1] - 1 if len(positions) == 3 else 0
  # Frames are square; spectrograms of any length have the model's mel bins.
  grid = (math.isqrt(max(patches, 0)),) * 2 if stream == "image" else (patches // target[1], target[1])
  wanted["pos_embed"] = (1, 1 + grid[0] * grid[1], encoder.width) if min(grid) else (1, -1, encoder.width)
  expected = {"image": "MAE-Face's pretraining file", "audio": "AudioMAE's pretraining file"}[stream]
  title = (
    f"{path} is not {expected} for this model (width {encoder.width}, {encoder.depth} blocks); it looks like"
  )
  check_fit(f"{title} {looks_like(weights.shapes)}", weights.shapes, wanted, allowed=left_out)
  if weights.heads(stream) not in (None, encoder.heads):
    raise UserError(
      f"{path} has {weights.heads(stream)} attention heads, model.{stream}.heads={encoder.heads}"
    )
  return PretrainedEncoder(stream, weights, rows, grid, target, left_out)
