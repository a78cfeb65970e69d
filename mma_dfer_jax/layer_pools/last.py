"""The summary after the last layer alone, the paper's way."""

import dataclasses
from typing import Any, ClassVar

from flax import nnx

from mma_dfer_jax import parts

AUTHORS = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(parts.Part):
  """Keeps no summary of the other layers."""

  tunable: tuple[str, ...] = ()
  EVERY_LAYER: ClassVar[bool] = False  # it reads the last layer's summaries alone

  def build(self, *args: Any, **kwargs: Any) -> "Last":
    return Last()


class Last(nnx.Module):
  """Has no parameters."""

  def __call__(self, image, audio):
    return image[-1], audio[-1], {}
