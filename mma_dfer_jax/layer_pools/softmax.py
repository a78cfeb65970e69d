"""Each stream's summary is made of all layers', with one weight for each layer. After FaVChat (arXiv 2503.09158)."""

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
  """Shallow layers carry texture and motion that the last layer's class token has lost."""

  streams: bool = False  # also learn one factor for picture and one for sound, which add up to 2
  EVERY_LAYER: ClassVar[bool] = True  # it reads the summaries after all layers

  def problems_with(self, image: int, audio: int) -> list[str]:  # type: ignore[override]
    return [parts.ONE_STREAM] * (self.streams and not (image and audio))

  def build(self, image: int, audio: int, layers: int, *, rngs: nnx.Rngs) -> LayersAndStreams:
    of_each = [Softmax(layers) if width else None for width in (image, audio)]
    return LayersAndStreams(*of_each, weighed=self.streams)


class Softmax(GatedMean):
  """Weights softmax(theta); theta starts at 0, all layers alike."""

  def __init__(self, layers: int):
    super().__init__()
    self.theta = nnx.Param(jnp.zeros((layers,)))

  def weights(self, summaries: Float[Array, "B S L D"]) -> Float[Array, "B L"]:
    weights = jax.nn.softmax(self.theta[...])
    return jnp.broadcast_to(weights, (summaries.shape[0], *weights.shape))
