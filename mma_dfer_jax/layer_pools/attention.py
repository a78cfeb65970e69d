"""Each stream's summary is made of all layers', which a query chooses for each clip and frame. After FaVChat (arXiv 2503.09158)."""

import dataclasses
from typing import ClassVar

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mma_dfer_jax import parts
from mma_dfer_jax.layers import GatedMean, LayersAndStreams


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(parts.Part):
  """As `softmax`, but the weights depend on what is seen and heard."""

  streams: bool = False  # also learn one factor for picture and one for sound, which add up to 2
  EVERY_LAYER: ClassVar[bool] = True  # it reads the summaries after all layers

  def problems_with(self, image: int, audio: int) -> list[str]:  # type: ignore[override]
    return [parts.ONE_STREAM] * (self.streams and not (image and audio))

  def build(self, image: int, audio: int, layers: int, *, rngs: nnx.Rngs) -> LayersAndStreams:
    of_each = [Attention(width) if width else None for width in (image, audio)]
    return LayersAndStreams(*of_each, weighed=self.streams)


class Attention(GatedMean):
  """Weights softmax(n q / √D) of a layer's summary n; the query q starts at 0, all layers alike."""

  def __init__(self, width: int):
    super().__init__()
    self.query = nnx.Param(jnp.zeros((width,)))

  def weights(self, summaries: Float[Array, "B S L D"]) -> Float[Array, "B S L"]:
    return jax.nn.softmax(summaries @ self.query[...] * summaries.shape[-1] ** -0.5)
