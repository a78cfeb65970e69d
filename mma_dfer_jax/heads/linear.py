"""The paper's classifier: one linear layer."""

import dataclasses

from flax import nnx
import jax.numpy as jnp
from jaxtyping import Array, Float

from mma_dfer_jax import parts
from mma_dfer_jax.layers import TorchLinear

AUTHORS = (("", "our_classifier", "linear"),)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(parts.Part):
  """The paper's starts as PyTorch's layers do."""

  initial: float = 0.0  # deviation of fresh weights, with a bias of 0; 0: PyTorch's way

  def problems(self) -> list[str]:
    return super().problems() + self.outside(initial="[0, 1]")

  def build(self, width: int, num_classes: int, *, rngs: nnx.Rngs) -> "LinearHead":
    head = LinearHead(width, num_classes, rngs=rngs)
    if self.initial:
      assert head.bias is not None
      draw = nnx.initializers.truncated_normal(self.initial)
      head.kernel[...], head.bias[...] = draw(rngs.params(), head.kernel.shape), jnp.zeros(num_classes)
    return head


class LinearHead(TorchLinear):
  """Its parameters are `classifier/kernel` and `classifier/bias`."""

  def __call__(self, clip: Float[Array, "B W"]) -> parts.Outputs:  # type: ignore[override]
    return parts.Outputs(super().__call__(clip))
