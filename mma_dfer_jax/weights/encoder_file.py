"""What pretraining starts from and leaves: MAE's and AudioMAE's files, and ours under the same names."""

from collections.abc import Mapping
import functools
import json
from pathlib import Path
from typing import Any

from flax import nnx
import numpy as np

from mma_dfer_jax import autoencoder, parts
from mma_dfer_jax.autoencoder import AutoencoderConfig, MaskedAutoencoder
from mma_dfer_jax.parameters import flat_params
from mma_dfer_jax.weights.files import OURS, Start, held, open_weights, write_safetensors, write_torch
from mma_dfer_jax.weights.names import Row, ours, row_of, their_shapes
from mma_dfer_jax.weights.pretrained import DECODER, take_encoder

ENCODER_FILE = "encoder.safetensors"


@functools.lru_cache(maxsize=8)
def autoencoder_shapes(cfg: AutoencoderConfig) -> dict[str, tuple[int, ...]]:
  """The parameters of an autoencoder by path, without making them."""
  state = nnx.state(nnx.eval_shape(lambda: MaskedAutoencoder(cfg, rngs=nnx.Rngs(0))))
  return {path: tuple(variable.shape) for path, variable in flat_params(state).items()}


def rows(cfg: AutoencoderConfig, place: str = "") -> list[Row]:
  """The parameters of an autoencoder, or of its "encoder" or "decoder", with their names in MAE's or AudioMAE's file."""
  found = []
  for path, shape in autoencoder_shapes(cfg).items():
    owner = path.split("/")[0]
    table = parts.authors_table(getattr(cfg, owner)) or ()
    row = row_of(path, shape, owner, (*table, *autoencoder.AUTHORS) if owner == "decoder" else table)
    assert row is not None, f"{path} has no name in such files"
    found += [row] if place in ("", owner) else []
  return found


def open_autoencoder(path: str | Path, cfg: AutoencoderConfig) -> Start:
  """Opens a file to pretrain further from: its encoder, and its decoder if that is there and fits.

  Raises:
    UserError: with all that is missing, unexpected or of another shape in the encoder.
  """
  weights, shapes = open_weights(path), autoencoder_shapes(cfg)
  taken, facts = take_encoder(cfg.stream, weights, cfg.encoder, cfg.inputs, rows(cfg, "encoder"), shapes)
  decoder = rows(cfg, "decoder")
  wanted = their_shapes(decoder, shapes)
  there = {name for name in weights.tensors if DECODER.fullmatch(name)}
  unfit = [name for name in wanted if weights.shapes.get(name) != wanted[name]]
  unfit += sorted(there - wanted.keys())
  if not there:
    facts.append("decoder fresh: the file has none")
  elif unfit:
    first = unfit[0]
    differs = (
      f"{weights.shapes.get(first, 'missing')} in the file, {wanted.get(first, 'not in this one')} here"
    )
    facts.append(f"decoder fresh: the file's is another one ({first} {differs})")
  else:
    taken |= ours(shapes, decoder, weights.tensors)
    facts.append(f"{len(decoder)} tensors of its decoder taken")
  return Start("init", weights, (*facts, *weights.notes), taken)


def write_encoder(folder: Path, cfg: AutoencoderConfig, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any], *, pth: bool) -> list[Path]:  # fmt: skip
  """Writes encoder.safetensors, and encoder.pth if asked for (needs PyTorch), as MAE names its tensors, decoder included.

  Args:
    arrays: parameters of the autoencoder by path.
    about: what the file says of the pretraining, beside sizes and heads.
  """
  theirs = {name: array for row in rows(cfg) for name, array in row.to_torch(arrays[row.path]).items()}
  said = {"stream": cfg.stream, **cfg.to_fields(), **about}
  tensors = held({name: np.ascontiguousarray(array) for name, array in theirs.items()})
  path = folder / ENCODER_FILE
  path.unlink(missing_ok=True)  # of the same run, when its report is written again
  write_safetensors(path, tensors, {"format": "mma_dfer_jax", OURS: json.dumps(said)}, folder)
  written = [path]
  if pth:
    written.append(folder / "encoder.pth")
    written[-1].unlink(missing_ok=True)
    write_torch(written[-1], tensors, {**said, "epoch": about.get("steps", 0)}, key="model")
  return written
