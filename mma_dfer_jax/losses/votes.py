"""Cross-entropy to what several people said of each clip, such as DFEW's ten votes."""

from collections.abc import Mapping
import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mma_dfer_jax import parts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(parts.LossPart):
  """Needs a data set that keeps votes. A clip without any, which a run counts at its start, has its label as its target."""

  mix: float = 1.0  # share of the votes in the target; the rest is the label
  BY_WEIGHTS: ClassVar[bool] = False  # as PyTorch with such targets
  NEEDS_VOTES: ClassVar[bool] = True

  def problems(self) -> list[str]:
    return super().problems() + self.outside(mix="[0, 1]")

  def labels(self, batch: Mapping[str, Array]) -> Int[Array, "B"]:
    """The class with most votes, the first of equal ones."""
    votes = batch["votes"]
    return jnp.where(votes.any(axis=-1), votes.argmax(axis=-1), batch["label"]).astype(batch["label"].dtype)

  def build(self, clips_per_class: Float[Array, "C"]) -> parts.Loss:
    return self

  def __call__(
    self, outputs: parts.Outputs, batch: Mapping[str, Array], weights: Float[Array, "C"] | None = None
  ) -> Float[Array, "B"]:
    """In nats; class weights act on each class's part of a clip."""
    logits = outputs.logits
    votes, truth = batch["votes"].astype(logits.dtype), jax.nn.one_hot(batch["label"], logits.shape[-1], dtype=logits.dtype)  # fmt: skip
    cast = votes.sum(axis=-1, keepdims=True)
    said = jnp.where(cast > 0, votes / jnp.maximum(cast, 1), truth)
    losses = -(self.mix * said + (1 - self.mix) * truth) * jax.nn.log_softmax(logits)
    return (losses if weights is None else losses * weights).sum(axis=-1)
