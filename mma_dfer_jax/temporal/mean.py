"""The mean over time: the ablation "without the Multimodal Temporal Transformer"."""

import dataclasses
from typing import ClassVar

from flax import nnx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mma_dfer_jax import parts

AUTHORS = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(parts.Part):
  """Gives every moment the same weight."""

  # W of the joint features; 0: the encoders' own width, without a projection (linear probe)
  width: int = 512
  tunable: tuple[str, ...] = ()
  MAY_BE_ZERO = ("width",)
  ATTENDS: ClassVar[bool] = False  # it takes no bias

  def build(self, moments: int, *, rngs: nnx.Rngs) -> "Mean":
    return Mean()


class Mean(nnx.Module):
  """Has no parameters."""

  def __call__(
    self, joint: Float[Array, "B S W"], bias: Float[Array, "B S"] | None = None, places: Int[Array, "B S"] | None = None,
    *, more: Float[Array, "B n W"] | None = None,
  ) -> tuple[Float[Array, "B W"], Float[Array, "B S W"]]:  # fmt: skip
    assert bias is None  # it has no attention
    read = joint if more is None else jnp.concatenate([joint, more], axis=1)
    return read.mean(axis=1), joint
