"""No adapter: the ablation "without prompts"."""

import dataclasses

from flax import nnx

from mma_dfer_jax import parts

AUTHORS = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(parts.Part):
  """Adds nothing to the stream."""

  tunable: tuple[str, ...] = ()

  def count(self, layers: int) -> int:
    return 0

  def build(self, width: int, layers: int, *, rngs: nnx.Rngs) -> "NoAdapter":
    return NoAdapter()


class NoAdapter(nnx.Module):
  """Passes the stream unchanged."""

  tokens = None

  def update(self, tokens, layer: int):
    return tokens
