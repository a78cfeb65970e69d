"""Label-distribution-aware margins: rare classes get wider ones (Cao et al. 2019, arXiv 1906.07413)."""

from collections.abc import Mapping
import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float
import optax

from mma_dfer_jax import parts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(parts.LossPart):
  """Goes with `heads/cosine`; in the paper also with class_weights=effective and reweight_from=0.8."""

  margin: float = 0.5  # of the rarest class, as a cosine
  scale: float = 30.0  # that of the head
  NEEDS_EVERY_CLASS: ClassVar[bool] = True

  def problems(self) -> list[str]:
    return super().problems() + self.outside(margin="[0, inf)", scale="(0, inf)")

  def problems_with(self, head: Any, clips: Mapping[str, int]) -> list[str]:  # type: ignore[override]
    found = super().problems_with(head, clips)
    if (name := parts.place_of(head).partition("/")[2]) != "cosine":
      found.append(
        f"loss=ldam needs the cosines of model.head=cosine, not {name}: --config=FILE:head=cosine,loss=ldam"
      )
    elif head.scale != self.scale:
      found.append(f"loss.scale={self.scale}, but model.head.scale={head.scale}: set both to the same number")
    return found

  def build(self, clips_per_class: Float[Array, "C"]) -> parts.Loss:
    rarity = clips_per_class**-0.25
    margins = self.scale * self.margin * rarity / rarity.max()

    def ldam(
      outputs: parts.Outputs, batch: Mapping[str, Array], weights: Float[Array, "C"] | None = None
    ) -> Float[Array, "B"]:
      """Cross-entropy after the target's logit has lost the margin of its class, in nats."""
      labels, logits = batch["label"], outputs.logits
      target = jnp.arange(logits.shape[-1]) == labels[:, None]
      held_back = logits - jnp.where(target, margins, 0).astype(logits.dtype)
      return parts.weighted(
        optax.softmax_cross_entropy_with_integer_labels(held_back, labels), weights, labels
      )

    return ldam
