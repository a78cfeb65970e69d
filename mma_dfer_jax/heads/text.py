"""Similarity to one vector for each class, such as CLIP's of a sentence about it. After DFER-CLIP (arXiv 2308.13382).

The vectors come from a file, `config.pretrained.text`: see docs/weights.md.
"""

import dataclasses
import math

from flax import nnx
import jax.numpy as jnp
from jaxtyping import Array, Float

from mma_dfer_jax import parts
from mma_dfer_jax.layers import TorchLinear, unit

FROZEN_VECTORS = ("(?!vectors$).*",)
CLIP_START = 1 / 0.07  # of CLIP's learned scale


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(parts.Part):
  """The logits are scale · cosine; the vectors stay as they are, as do the sentences that they stand for."""

  embedding: int = 512  # E, of the vectors; a model of another width gets a linear layer without bias
  scale: float = 100.0  # of the cosines, CLIP's; with learn_scale the largest
  learn_scale: bool = False  # from CLIP's 1 / 0.07 on; for the first losses, which are large at 100
  tune_vectors: bool = False  # train the vectors as well
  tunable: tuple[str, ...] = FROZEN_VECTORS

  def __post_init__(self):
    super().__post_init__()
    if self.tune_vectors:
      object.__setattr__(self, "tunable", (".*",))

  def problems(self) -> list[str]:
    found = super().problems()
    found += self.outside(scale="(0, 10000]")
    if self.tune_vectors and self.tunable not in (FROZEN_VECTORS, (".*",)):
      found.append(
        f"tune_vectors=True trains all of the head, but tunable={self.tunable}: set one of the two"
      )
    return found

  def build(self, width: int, num_classes: int, *, rngs: nnx.Rngs) -> "TextHead":
    return TextHead(self, width, num_classes, rngs=rngs)


class TextHead(nnx.Module):
  """Its parameters are `classifier/vectors` (C, E) and, if needed, `classifier/proj/kernel` and `classifier/log_scale`."""

  def __init__(self, cfg: Config, width: int, num_classes: int, *, rngs: nnx.Rngs):
    self.largest = float(cfg.scale)
    # Random until a file replaces them: training refuses to start without one.
    self.vectors = nnx.Param(parts.own(rngs, "vectors").params.normal((num_classes, cfg.embedding)))
    same = width == cfg.embedding
    self.proj = (
      None if same else TorchLinear(width, cfg.embedding, use_bias=False, rngs=parts.own(rngs, "proj"))
    )
    start = math.log(min(CLIP_START, self.largest))
    self.log_scale = nnx.Param(jnp.full((1,), start)) if cfg.learn_scale else None

  def __call__(self, clip: Float[Array, "B W"]) -> parts.Outputs:
    clip = clip.astype(jnp.promote_types(clip.dtype, self.vectors.dtype))  # float32 in any precision
    cosines = unit(clip if self.proj is None else self.proj(clip)) @ unit(self.vectors[...]).T
    if self.log_scale is None:
      return parts.Outputs(self.largest * cosines)
    return parts.Outputs(jnp.exp(jnp.minimum(self.log_scale[...], math.log(self.largest))) * cosines)
