"""No fusion: each stream is by itself until Joint Adaptation. The ablation "without Fusion Bottlenecks"."""

import dataclasses

from flax import nnx

from mma_dfer_jax import parts

AUTHORS = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(parts.Part):
  """Nothing happens between layers."""

  tunable: tuple[str, ...] = ()

  def problems_with(self, layers: int) -> list[str]:
    del layers
    return []

  def build(
    self, image: parts.Encoder, audio: parts.Encoder, layer: int, layers: int, *, rngs: nnx.Rngs
  ) -> parts.Apart:
    del image, audio, layer, layers, rngs
    return parts.Apart()
