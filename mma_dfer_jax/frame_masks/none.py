"""No mask: every frame counts alike, as in the paper."""

import dataclasses
from typing import Any

from flax import nnx

from mma_dfer_jax import parts

AUTHORS = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(parts.Part):
  """Changes no frame."""

  tunable: tuple[str, ...] = ()

  def settled(self, frames: int, layers: int) -> "Config":
    return self

  def build(self, *args: Any, **kwargs: Any) -> "NoMask":
    return NoMask()


class NoMask(nnx.Module):
  """Has no parameters."""

  after = 0

  def __call__(self, image, joint):
    return joint, None, {}
