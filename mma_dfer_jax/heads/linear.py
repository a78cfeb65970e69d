"""The paper's classifier: one linear layer."""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mma_dfer_jax import parts

AUTHORS = (("", "our_classifier", "linear"),)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(parts.Part):
  """It has no fields of its own."""

  def build(self, width: int, num_classes: int, *, rngs: nnx.Rngs) -> "LinearHead":
    return LinearHead(width, num_classes, rngs=rngs)


class LinearHead(nnx.Linear):
  """Starts as PyTorch's, U(-1/√width, 1/√width); its parameters are `classifier/kernel` and `classifier/bias`."""

  def __init__(self, width: int, num_classes: int, *, rngs: nnx.Rngs):
    def init(key, shape, dtype=jnp.float32, **_):
      return jax.random.uniform(key, shape, dtype, -(width**-0.5), width**-0.5)

    super().__init__(width, num_classes, kernel_init=init, bias_init=init, rngs=rngs)

  def __call__(self, clip: Float[Array, "B W"]) -> parts.Outputs:  # type: ignore[override]
    return parts.Outputs(super().__call__(clip))
