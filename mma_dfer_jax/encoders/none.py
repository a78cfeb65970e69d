"""No encoder: the model has only the other stream. The ablations "image only" and "audio only"."""

import dataclasses
from typing import Any, ClassVar

from flax import nnx

from mma_dfer_jax import parts

AUTHORS = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(parts.Part):
  """Builds and computes nothing of this stream."""

  tunable: tuple[str, ...] = ()
  depth: ClassVar[int] = 0
  takes_prompts: ClassVar[bool] = False  # there is nothing to prompt

  def build(self, *args: Any, **kwargs: Any) -> "NoEncoder":
    return NoEncoder()


class NoEncoder(nnx.Module):
  """Its tokens and its summary are None."""

  width = views = moments = branches = 0
  blocks = drop_path_rates = ()

  def embed(self, x, prompts):
    return None

  def summary(self, tokens):
    return None
