"""Focal loss: clips that are right already count less (Lin et al. 2017, arXiv 1708.02002)."""

from collections.abc import Mapping
import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mma_dfer_jax import parts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(parts.LossPart):
  """Class weights stay outside of the power."""

  gamma: float = 2.0  # the paper's; 1 in LDAM's code; 0 is cross-entropy

  def problems(self) -> list[str]:
    words = ", or be 0: between them the slope is infinite where a clip is surely right"
    return super().problems() + [line + words for line in self.outside(gamma="[1, 100]") if self.gamma != 0]

  def build(self, clips_per_class: Float[Array, "C"]) -> parts.Loss:
    return self

  def __call__(
    self, outputs: parts.Outputs, batch: Mapping[str, Array], weights: Float[Array, "C"] | None = None
  ) -> Float[Array, "B"]:
    """(1 - p)^gamma · -log p, in nats; p may underflow."""
    log_p = jnp.take_along_axis(jax.nn.log_softmax(outputs.logits), batch["label"][:, None], axis=-1)[:, 0]
    losses = -log_p
    if self.gamma:  # the power has no slope at 0 without an exponent
      losses = losses * (-jnp.expm1(log_p)) ** self.gamma
    return parts.weighted(losses, weights, batch["label"])
