"""A classifier without lengths: scaled cosines between clip and classes, which `losses/ldam` needs.

Source: Cao et al. 2019 (arXiv 1906.07413), whose code normalises both and has no bias.
"""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mma_dfer_jax import parts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(parts.Part):
  """The logits are the cosines times the scale, in training and prediction."""

  scale: float = 30.0  # of the logits

  def problems(self) -> list[str]:
    return super().problems() + self.outside(scale="(0, inf)")

  def build(self, width: int, num_classes: int, *, rngs: nnx.Rngs) -> "CosineHead":
    return CosineHead(self, width, num_classes, rngs=rngs)


class CosineHead(nnx.Module):
  """Its parameter is `classifier/kernel` (W, C)."""

  def __init__(self, cfg: Config, width: int, num_classes: int, *, rngs: nnx.Rngs):
    drawn = jax.random.uniform(rngs.params(), (width, num_classes), minval=-1.0)
    self.kernel = nnx.Param(of_length_1(drawn, axis=0))
    self.scale = cfg.scale

  def __call__(self, clip: Float[Array, "B W"]) -> parts.Outputs:
    cosines = of_length_1(clip, axis=-1) @ of_length_1(self.kernel[...], axis=0)
    return parts.Outputs(self.scale * cosines)


def of_length_1(x: Array, axis: int) -> Array:
  """Vectors along an axis over their length, but no less than 1e-12; zeros stay, with a gradient."""
  squares = (x * x).sum(axis=axis, keepdims=True)
  return x / jnp.sqrt(jnp.maximum(squares, 1e-24))
