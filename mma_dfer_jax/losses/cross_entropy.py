"""Cross-entropy, the paper's loss."""

from collections.abc import Mapping
import dataclasses

from jaxtyping import Array, Float
import optax

from mma_dfer_jax import parts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """It has no fields."""

  def build(self, clips_per_class: tuple[int, ...]) -> parts.Loss:
    return cross_entropy


def cross_entropy(outputs: parts.Outputs, batch: Mapping[str, Array]) -> Float[Array, "B"]:
  """One loss for each clip, in nats."""
  return optax.softmax_cross_entropy_with_integer_labels(outputs.logits, batch["label"])
