"""Cross-entropy, the paper's loss; with label smoothing if asked for (Szegedy et al. 2016, arXiv 1512.00567)."""

from collections.abc import Mapping
import dataclasses

import jax
from jaxtyping import Array, Float
import optax

from mma_dfer_jax import parts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(parts.LossPart):
  """The paper smooths nothing."""

  label_smoothing: float = 0.0  # share of the target that is spread evenly over all classes; 0.1 is usual

  def problems(self) -> list[str]:
    share = self.label_smoothing
    wrong = isinstance(share, float) and not 0 <= share < 1
    return super().problems() + [f"label_smoothing={share} must lie in [0, 1)"] * wrong

  def build(self, clips_per_class: Float[Array, "C"]) -> parts.Loss:
    return self

  def __call__(
    self, outputs: parts.Outputs, batch: Mapping[str, Array], weights: Float[Array, "C"] | None = None
  ) -> Float[Array, "B"]:
    """In nats. PyTorch's formula: weights act within the smoothed part class by class."""
    logits, labels, share = outputs.logits, batch["label"], self.label_smoothing
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    losses = parts.weighted(losses, weights, labels)
    if share:
      of_classes = -jax.nn.log_softmax(logits)
      spread = (of_classes if weights is None else of_classes * weights).mean(axis=-1)
      losses = (1 - share) * losses + share * spread
    return losses
