"""No auxiliary task: the model learns the classes alone, as in the paper."""

import dataclasses
from typing import Any, ClassVar

from flax import nnx

from mma_dfer_jax import parts

AUTHORS = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(parts.Part):
  """Leaves the head's answer as it is."""

  tunable: tuple[str, ...] = ()
  FACES: ClassVar[bool] = False  # whether it learns from boxes and points of faces
  weights: ClassVar[dict[str, float]] = {}  # of the terms of the loss

  def build(self, *args: Any, **kwargs: Any) -> "NoAuxiliary":
    return NoAuxiliary()


class NoAuxiliary(nnx.Module):
  """Has no parameters."""

  def __call__(self, outputs, moments, drawn=None):
    return outputs

  def draw(self, key, clips):
    return None
