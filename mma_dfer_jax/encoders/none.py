"""No encoder: the other stream is alone. The ablations "picture alone" and "sound alone"."""

import dataclasses

from flax import nnx

from mma_dfer_jax import parts
from mma_dfer_jax.inputs import Inputs

AUTHORS = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(parts.Part):
  """Nothing is built, and nothing of this stream is computed."""

  tunable: tuple[str, ...] = ()

  @property
  def depth(self) -> int:
    return 0

  def problems_with(self, stream: str, inputs: Inputs) -> list[str]:
    del stream, inputs
    return []

  def build(self, stream: str, inputs: Inputs, num_prompts: int, *, rngs: nnx.Rngs) -> "NoEncoder":
    del stream, inputs, num_prompts, rngs
    return NoEncoder()


class NoEncoder(nnx.Module):
  """Its tokens and its summary are None."""

  def __init__(self):
    self.width = self.views = self.moments = 0
    self.blocks = self.drop_path_rates = ()

  def embed(self, x, prompts):
    return None

  def summary(self, tokens):
    return None
