"""No landmarks: the model sees pixels and sound alone, as in the paper."""

import dataclasses
from typing import Any, ClassVar

from flax import nnx

from mma_dfer_jax import parts

AUTHORS = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(parts.Part):
  """Adds nothing to the frames."""

  tunable: tuple[str, ...] = ()
  POINTS: ClassVar[int] = 0  # of the face that the model takes with every frame

  def build(self, *args: Any, **kwargs: Any) -> "NoLandmarks":
    return NoLandmarks()


class NoLandmarks(nnx.Module):
  """Has no parameters."""

  def __call__(self, joint, landmarks):
    return joint

  def beside(self, temporal, landmarks):
    return temporal()
