"""No fusion: the two streams meet only in Joint Adaptation. The ablation "without Fusion Bottlenecks"."""

import dataclasses
from typing import Any

from mma_dfer_jax import parts

AUTHORS = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(parts.Part):
  """Nothing happens between layers."""

  tunable: tuple[str, ...] = ()

  def build(self, *args: Any, **kwargs: Any) -> parts.Apart:
    return parts.Apart()
