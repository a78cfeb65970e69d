"""The paper's classifier: one linear layer."""

import dataclasses

from flax import nnx
from jaxtyping import Array, Float

from mma_dfer_jax import parts
from mma_dfer_jax.layers import TorchLinear

AUTHORS = (("", "our_classifier", "linear"),)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(parts.Part):
  """It has no fields of its own."""

  def build(self, width: int, num_classes: int, *, rngs: nnx.Rngs) -> "LinearHead":
    return LinearHead(width, num_classes, rngs=rngs)


class LinearHead(TorchLinear):
  """Its parameters are `classifier/kernel` and `classifier/bias`."""

  def __call__(self, clip: Float[Array, "B W"]) -> parts.Outputs:  # type: ignore[override]
    return parts.Outputs(super().__call__(clip))
