"""Multimodal Temporal Transformer: a class token attends over the moments; there is no final norm."""

import dataclasses
from typing import Any

from flax import nnx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mma_dfer_jax import parts
from mma_dfer_jax.layers import TORCH_EPS, TorchLinear, TransformerBlock, at_places

_LAYER = "temporal_net.temporal_transformer.layers.{}"
AUTHORS = (
  ("cls_token", "temporal_net.cls_token", "keep"),
  ("pos_embed", "temporal_net.pos_embedding", "keep"),
  ("blocks/{}/norm1", f"{_LAYER}.0.fn.norm", "norm"),
  ("blocks/{}/attn/qkv", (f"{_LAYER}.0.fn.fn.to_q", f"{_LAYER}.0.fn.fn.to_kv"), "concat"),
  ("blocks/{}/attn/proj", f"{_LAYER}.0.fn.fn.to_out.0", "linear"),
  ("blocks/{}/norm2", f"{_LAYER}.1.fn.norm", "norm"),
  ("blocks/{}/mlp/fc1", f"{_LAYER}.1.fn.fn.net.0", "linear"),
  ("blocks/{}/mlp/fc2", f"{_LAYER}.1.fn.fn.net.3", "linear"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(parts.Part):
  """The paper's: one block."""

  width: int = 512  # W
  depth: int = 1  # blocks
  heads: int = 8
  head_dim: int = 64
  mlp_dim: int = 1024

  def build(self, moments: int, *, rngs: nnx.Rngs) -> "MultimodalTemporalTransformer":
    return MultimodalTemporalTransformer(self, moments, rngs=rngs)


class MultimodalTemporalTransformer(nnx.Module):
  """Source: paper; original `temporal_net` (without its `norm2`, which never runs)."""

  def __init__(self, cfg: Config, moments: int, *, rngs: nnx.Rngs):
    self.cls_token = nnx.Param(rngs.params.normal((1, 1, cfg.width)))
    self.pos_embed = nnx.Param(rngs.params.normal((1, 1 + moments, cfg.width)))
    unlike_encoders: Any = {"qkv_bias": False, "eps": TORCH_EPS, "tanh_gelu": True, "linear": TorchLinear}
    self.blocks = nnx.List(
      TransformerBlock(cfg.width, cfg.heads, cfg.mlp_dim, head_dim=cfg.head_dim, rngs=rngs, **unlike_encoders)
      for _ in range(cfg.depth)
    )

  def __call__(
    self, joint: Float[Array, "B S W"], bias: Float[Array, "B S"] | None = None, places: Int[Array, "B S"] | None = None,
    *, more: Float[Array, "B n W"] | None = None,
  ) -> tuple[Float[Array, "B W"], Float[Array, "B S W"]]:  # fmt: skip
    cls = jnp.broadcast_to(self.cls_token[...], (joint.shape[0], 1, joint.shape[-1]))
    positions = self.pos_embed[...]
    if places is not None:
      table = jnp.broadcast_to(positions, (joint.shape[0], *positions.shape[1:]))
      positions = jnp.concatenate([table[:, :1], at_places(table[:, 1:], places)], axis=1)
    tokens = jnp.concatenate([cls, joint], axis=1) + positions
    if bias is not None:
      bias = jnp.concatenate([jnp.zeros_like(bias[:, :1]), bias], axis=1).astype(tokens.dtype)
    if more is not None:
      tokens = jnp.concatenate([tokens, more], axis=1)
      bias = None if bias is None else jnp.pad(bias, ((0, 0), (0, more.shape[1])))
    for block in self.blocks:
      tokens = block(tokens, None, bias)
    return tokens[:, 0], tokens[:, 1 : 1 + joint.shape[1]]
