"""MAE's decoder: every patch attends to all others. Only pretraining needs it."""

import dataclasses

from flax import nnx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mma_dfer_jax import parts
from mma_dfer_jax.layers import ENCODER_EPS, REMAT, LayerNorm, TransformerBlock, mae_linear, sine_positions

# Our path, the name in MAE's and AudioMAE's files, layout.
AUTHORS: tuple[tuple[str, str, str], ...] = (
  ("embed", "decoder_embed", "linear"),
  ("mask_token", "mask_token", "keep"),
  ("pos_embed", "decoder_pos_embed", "keep"),
  ("blocks/{}/norm1", "decoder_blocks.{}.norm1", "norm"),
  ("blocks/{}/norm2", "decoder_blocks.{}.norm2", "norm"),
  ("blocks/{}/attn/qkv", "decoder_blocks.{}.attn.qkv", "linear"),
  ("blocks/{}/attn/proj", "decoder_blocks.{}.attn.proj", "linear"),
  ("blocks/{}/mlp/fc1", "decoder_blocks.{}.mlp.fc1", "linear"),
  ("blocks/{}/mlp/fc2", "decoder_blocks.{}.mlp.fc2", "linear"),
  ("norm", "decoder_norm", "norm"),
  ("pred", "decoder_pred", "linear"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(parts.Part):
  """The defaults are those of MAE for ViT-B; AudioMAE has 16 blocks. Source: `models_mae.py`."""

  width: int = 512
  depth: int = 8  # blocks
  heads: int = 16
  mlp_dim: int = 2048
  tunable: tuple[str, ...] = ("(?!pos_embed).*",)  # positions are sines and cosines, and stay

  def problems(self) -> list[str]:
    found = super().problems()
    if not found and self.width % self.heads:
      found.append(f"width={self.width} must be a multiple of heads={self.heads}")
    if not found and self.width % 4:
      found.append(
        f"width={self.width} must be a multiple of 4, for its positions are sines and cosines of x and y"
      )
    return found

  def problems_with(self, grid: tuple[int, int]) -> list[str]:  # type: ignore[override]
    return []

  def build(self, grid: tuple[int, int], width: int, values: int, *, rngs: nnx.Rngs) -> "Decoder":
    """A decoder of an encoder of this width; `values` are those of a patch."""
    return Decoder(self, grid, width, values, rngs=rngs)


class Decoder(nnx.Module):
  """Puts a learned token where a patch was removed, then blocks, then pixels."""

  def __init__(self, cfg: Config, grid: tuple[int, int], width: int, values: int, *, rngs: nnx.Rngs):
    self.grid = grid
    self.embed = mae_linear(width, cfg.width, rngs=rngs)
    self.mask_token = nnx.Param(0.02 * rngs.params.normal((1, 1, cfg.width)))
    self.pos_embed = nnx.Param(jnp.asarray(sine_positions(grid, cfg.width))[None])
    self.blocks = nnx.List(self.block(cfg, i, rngs) for i in range(cfg.depth))
    self.norm = LayerNorm(cfg.width, epsilon=ENCODER_EPS, rngs=rngs)
    self.pred = mae_linear(cfg.width, values, rngs=rngs)

  def block(self, cfg: Config, number: int, rngs: nnx.Rngs) -> nnx.Module:
    del number  # all are alike
    return TransformerBlock(cfg.width, cfg.heads, cfg.mlp_dim, rngs=rngs)

  def __call__(
    self, latent: Float[Array, "B N D"], restore: Int[Array, "B L"], remat: str = "none"
  ) -> Float[Array, "B L v"]:
    tokens = self.embed(latent)
    b, kept, e = len(tokens), tokens.shape[1] - 1, tokens.shape[2]
    masked = jnp.broadcast_to(self.mask_token[...], (b, restore.shape[1] - kept, e))
    patches = jnp.concatenate([tokens[:, 1:], masked], axis=1)
    patches = jnp.take_along_axis(patches, restore[:, :, None], axis=1)
    tokens = jnp.concatenate([tokens[:, :1], patches], axis=1) + self.pos_embed[...]
    tokens = self.mixed(tokens, REMAT[remat](lambda block, x: block(x)))
    return self.pred(self.norm(tokens))[:, -restore.shape[1] :]

  def mixed(self, tokens: Float[Array, "B N E"], layer) -> Float[Array, "B M E"]:
    for block in self.blocks:
      tokens = layer(block, tokens)
    return tokens
