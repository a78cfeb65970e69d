"""MAE's decoder: every patch attends to all others and to the class token."""

import dataclasses

from flax import nnx

from mma_dfer_jax import parts
from mma_dfer_jax.layers import TransformerBlock

# Our path, the name in MAE's and AudioMAE's files, layout.
AUTHORS = (
  ("blocks/{}/norm1", "decoder_blocks.{}.norm1", "norm"),
  ("blocks/{}/norm2", "decoder_blocks.{}.norm2", "norm"),
  ("blocks/{}/attn/qkv", "decoder_blocks.{}.attn.qkv", "linear"),
  ("blocks/{}/attn/proj", "decoder_blocks.{}.attn.proj", "linear"),
  ("blocks/{}/mlp/fc1", "decoder_blocks.{}.mlp.fc1", "linear"),
  ("blocks/{}/mlp/fc2", "decoder_blocks.{}.mlp.fc2", "linear"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(parts.Part):
  """The defaults are those of MAE for ViT-B. Source: `models_mae.py`."""

  width: int = 512
  depth: int = 8  # blocks; AudioMAE has 16
  heads: int = 16
  mlp_dim: int = 2048
  takes_class_token = True

  def problems_with(self, grid: tuple[int, int]) -> list[str]:  # type: ignore[override]
    return [f"model.decoder.width={self.width} must be a multiple of heads={self.heads}"] * (
      self.width % self.heads > 0
    )

  def build(self, grid: tuple[int, int], *, rngs: nnx.Rngs) -> nnx.List:
    """Blocks (B, N, E) -> (B, N, E) of N = 1 + L tokens."""
    sizes = self.width, self.heads, self.mlp_dim
    return nnx.List(TransformerBlock(*sizes, rngs=rngs) for _ in range(self.depth))
