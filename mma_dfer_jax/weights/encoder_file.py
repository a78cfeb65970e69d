"""What pretraining starts from and leaves: MAE's and AudioMAE's files, and ours under the same names."""

import functools

from flax import nnx

from mma_dfer_jax import parts
from mma_dfer_jax.autoencoder import AutoencoderConfig, MaskedAutoencoder
from mma_dfer_jax.parameters import flat_params
from mma_dfer_jax.weights.names import Row, row_of


@functools.lru_cache(maxsize=8)
def autoencoder_shapes(cfg: AutoencoderConfig) -> dict[str, tuple[int, ...]]:
  """The parameters of an autoencoder by path, without making them."""
  state = nnx.state(nnx.eval_shape(lambda: MaskedAutoencoder(cfg, rngs=nnx.Rngs(0))))
  return {path: tuple(variable.shape) for path, variable in flat_params(state).items()}


def rows(cfg: AutoencoderConfig) -> list[Row]:
  """Every parameter of an autoencoder with its tensor in MAE's or AudioMAE's file."""
  found = []
  for path, shape in autoencoder_shapes(cfg).items():
    place = path.split("/")[0]
    table = parts.authors_table(getattr(cfg, place)) or ()
    row = row_of(path, shape, place, table)
    assert row is not None, f"{path} has no name in such files"
    found.append(row)
  return found
