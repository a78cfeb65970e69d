"""The summary after the last layer, as in the paper, but picture and sound each get a learned factor."""

import dataclasses
from typing import ClassVar

from flax import nnx

from mma_dfer_jax import parts
from mma_dfer_jax.layers import LayersAndStreams


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(parts.Part):
  """Two parameters; `softmax` and `attention` have them too, with streams=True."""

  EVERY_LAYER: ClassVar[bool] = False  # it reads the last layer's summaries alone

  def problems_with(self, image: int, audio: int) -> list[str]:  # type: ignore[override]
    return [parts.ONE_STREAM] * (not (image and audio))

  def build(self, image: int, audio: int, layers: int, *, rngs: nnx.Rngs) -> LayersAndStreams:
    return LayersAndStreams(None, None, weighed=True)
