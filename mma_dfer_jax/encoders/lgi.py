"""MAE-DFER's LGI-Former: a whole clip at once, in regions of space and time that talk through one messenger token each.

Source: arXiv 2307.02227; sunlicai/MAE-DFER, MIT. Its files hold no positions, and pretraining's no `fc_norm`.
"""

import dataclasses
import math
from typing import ClassVar

from einops import rearrange
from flax import nnx
import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from mma_dfer_jax import parts
from mma_dfer_jax.inputs import Inputs
from mma_dfer_jax.layers import ENCODER_EPS, FlatLinear, LayerNorm, Mlp, attend, normalised

_ATTENTION = "blocks/{}/%s_attn", "blocks.{}.%s_attn"
# Our path, MAE-DFER's name, layout; an authors' file of MMA-DFER has no place for this encoder, hence no table AUTHORS.
PRETRAINED = (
  ("region_tokens", "lg_region_tokens", "keep"),
  ("patch_embed", "patch_embed.proj", "conv3d"),
  *(
    (f"{ours % use}/{leaf}", f"{theirs % use}.{name}", layout)
    for ours, theirs in [_ATTENTION]
    for use in ("first", "second", "third")
    for leaf, name, layout in [("q/bias", "q_bias", "keep"), ("v_bias", "v_bias", "keep"), ("q", "q", "linear"),
                               ("kv", "kv", "linear"), ("proj", "proj", "linear")]
  ),
  *((f"blocks/{{}}/{name}", f"blocks.{{}}.{name}", "norm")
    for name in ("first_attn_norm0", "second_attn_norm0", "third_attn_norm0", "third_attn_norm1", "norm2")),
  ("blocks/{}/mlp/fc1", "blocks.{}.mlp.fc1", "linear"),
  ("blocks/{}/mlp/fc2", "blocks.{}.mlp.fc2", "linear"),
  ("fc_norm", "fc_norm", "norm"),
)  # fmt: skip
READOUTS = ("region", "org", "all", "slots")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(parts.Part):
  """The published model's: 16 frames of 160 px are 8x10x10 tokens in 4x2x1 regions."""

  patch_size: int = 16  # pixels
  tubelet: int = 2  # frames of a token
  region: tuple[int, ...] = (2, 5, 10)  # tokens of a region along time, height and width
  width: int = 512
  depth: int = 16  # blocks
  heads: int = 8
  mlp_dim: int = 2048
  drop_path: float = 0.1  # of the last block, rising from 0
  # Mean over the messengers (region), the other tokens (org), both (all): one moment a clip, as in MAE-DFER; or over the
  # tokens of each tubelet's time (slots): as many moments, for a temporal model.
  readout: str = "region"
  mean: tuple[float, ...] = (0.485, 0.456, 0.406)  # of RGB in [0, 1]: ImageNet's
  std: tuple[float, ...] = (0.229, 0.224, 0.225)
  tunable: tuple[str, ...] = ("fc_norm/.*",)  # what pretraining files lack; MAE-DFER trains everything
  takes_prompts: ClassVar[bool] = False  # its regions have a fixed number of tokens

  def problems(self) -> list[str]:
    found = super().problems()
    if not found and self.width % self.heads:
      found.append(f"width={self.width} must be a multiple of heads={self.heads}")
    if len(self.region) != 3 or not all(type(n) is int and n > 0 for n in self.region):
      found.append(
        f"region={self.region} must be three positive whole numbers: tokens along time, height, width"
      )
    if not 0 <= self.drop_path < 1:
      found.append(f"drop_path={self.drop_path} must lie in [0, 1)")
    if self.readout not in READOUTS:
      found.append(f"readout={self.readout!r}: choose one of {', '.join(READOUTS)}")
    finite = all(math.isfinite(value) for value in (*self.mean, *self.std))
    if len(self.mean) != 3 or len(self.std) != 3 or not finite or not all(s > 0 for s in self.std):
      found.append(f"mean={self.mean}, std={self.std}: give three of each, deviations above 0")
    return found

  def problems_with(self, stream: str, inputs: Inputs) -> list[str]:  # type: ignore[override]
    if stream == "audio":
      return ["model.audio=lgi reads frames, not sound: choose mae or none"]
    found = []
    for name, pixels, cell, fields in (
      ("num_frames", inputs.num_frames, self.tubelet, ("tubelet", self.region[:1])),
      ("image_size", inputs.image_size, self.patch_size, ("patch_size", self.region[1:])),
    ):
      what = f"inputs.{name}={pixels} must be a multiple of model.image.{fields[0]}={cell}"
      if pixels % cell:
        found.append(what)
      elif wrong := [n for n in fields[1] if pixels // cell % n]:
        found.append(f"{what} times {' and '.join(map(str, wrong))}, of model.image.region={self.region}; the published "
                     "model has 16 frames of 160 pixels")  # fmt: skip
    return found

  def regions(self, inputs: Inputs) -> tuple[int, int, int]:
    """Regions along time, height and width."""
    grid = inputs.num_frames // self.tubelet, *[inputs.image_size // self.patch_size] * 2
    return tuple(n // of for n, of in zip(grid, self.region, strict=True))  # type: ignore[return-value]

  def build(self, stream: str, inputs: Inputs, num_prompts: int, *, rngs: nnx.Rngs) -> "LgiFormer":
    return LgiFormer(self, inputs, rngs=rngs)


def _linear(fan_in: int, fan_out: int, *, use_bias: bool = True, rngs: nnx.Rngs) -> nnx.Linear:
  """A linear layer initialised as MAE-DFER's: N(0, 0.02) within two deviations, zero bias."""
  init = nnx.initializers.truncated_normal(0.02)
  return FlatLinear(fan_in, fan_out, use_bias=use_bias, kernel_init=init, rngs=rngs)


def clip_positions(tokens: int, width: int) -> np.ndarray:
  """VideoMAE's table (tokens, width) float32: one running number p over time, rows and columns; even sines, odd cosines."""
  channel = np.arange(width)
  angles = np.arange(tokens)[:, None] / 10000.0 ** (channel // 2 * 2 / width)
  return np.where(channel % 2, np.cos(angles), np.sin(angles)).astype(np.float32)


class CrossAttention(nnx.Module):
  """Multi-head attention of x to y; keys have no bias."""

  def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs):
    self.heads = heads
    self.q = _linear(width, width, rngs=rngs)
    self.kv = _linear(width, 2 * width, use_bias=False, rngs=rngs)
    self.v_bias = nnx.Param(jnp.zeros(width))
    self.proj = _linear(width, width, rngs=rngs)

  def __call__(self, x: Float[Array, "B N D"], y: Float[Array, "B M D"]) -> Float[Array, "B N D"]:
    q = checkpoint_name(self.q(x), "qkv")
    k, v = jnp.split(checkpoint_name(self.kv(y), "qkv"), 2, axis=-1)
    q, k, v = (z.reshape(*z.shape[:2], self.heads, -1).swapaxes(1, 2) for z in (q, k, v + self.v_bias[...]))
    mixed = attend(q, k, v).swapaxes(1, 2)  # (B, N, heads, d)
    return checkpoint_name(self.proj(mixed.reshape(x.shape)), "proj")


class LgiBlock(nnx.Module):
  """Attention within each region, among messengers, from all tokens to messengers; then an MLP. All pre-norm."""

  def __init__(self, cfg: Config, regions: int, *, rngs: nnx.Rngs):
    self.regions = regions

    def norm():
      return LayerNorm(cfg.width, epsilon=ENCODER_EPS, rngs=rngs)

    self.first_attn_norm0, self.second_attn_norm0, self.norm2 = norm(), norm(), norm()
    self.third_attn_norm0, self.third_attn_norm1 = norm(), norm()  # of queries, of messengers
    self.first_attn = CrossAttention(cfg.width, cfg.heads, rngs=rngs)
    self.second_attn = CrossAttention(cfg.width, cfg.heads, rngs=rngs)
    self.third_attn = CrossAttention(cfg.width, cfg.heads, rngs=rngs)
    self.mlp = Mlp(cfg.width, cfg.mlp_dim, tanh_gelu=False, linear=_linear, rngs=rngs)

  def __call__(
    self, tokens: Float[Array, "B N D"], factors: Float[Array, "r B"] | None = None
  ) -> Float[Array, "B N D"]:
    """One block; factors of drop path are of region 1…R, messengers, readers, region 1…R: 2R + 2."""
    b, _, d = tokens.shape
    within, among, readers, mlp = (
      (1.0,) * 4 if factors is None else self._by_branch(factors.astype(tokens.dtype))
    )
    x = tokens.reshape(b, self.regions, -1, d)
    normal = self.first_attn_norm0(x).reshape(-1, x.shape[2], d)
    x = x + within * self.first_attn(normal, normal).reshape(x.shape)
    messengers, local = x[:, :, 0], x[:, :, 1:].reshape(b, -1, d)
    normal = self.second_attn_norm0(messengers)
    messengers = messengers + among * self.second_attn(normal, normal)
    local = local + readers * self.third_attn(self.third_attn_norm0(local), self.third_attn_norm1(messengers))
    x = jnp.concatenate([messengers[:, :, None], local.reshape(b, self.regions, -1, d)], axis=2)
    x = x + mlp * self.mlp(self.norm2(x).reshape(tokens.shape)).reshape(x.shape)
    return x.reshape(tokens.shape)

  def _by_branch(self, factors: Float[Array, "r B"]) -> tuple[Array, ...]:
    r = self.regions
    within, among, readers, mlp = jnp.split(factors, (r, r + 1, r + 2))
    return within.T[:, :, None, None], among.T[:, :, None], readers.T[:, :, None], mlp.T[:, :, None, None]


class LgiFormer(nnx.Module):
  """Its tokens are those of region after region, of each first the messenger, then (time, row, column)."""

  views = 1  # one sequence a clip

  def __init__(self, cfg: Config, inputs: Inputs, *, rngs: nnx.Rngs):
    self.width, self.cfg, self.grid = cfg.width, cfg, cfg.regions(inputs)
    self.moments = inputs.num_frames // cfg.tubelet if cfg.readout == "slots" else 1
    kernel, regions = (cfg.tubelet, cfg.patch_size, cfg.patch_size), math.prod(self.grid)
    bound = (3 * math.prod(kernel)) ** -0.5

    def uniform(key, shape, dtype=jnp.float32, **_):  # PyTorch's default
      return jax.random.uniform(key, shape, dtype, -bound, bound)

    # It holds the parameters; `embed` computes one matrix product.
    self.patch_embed = nnx.Conv(3, cfg.width, kernel, kernel_init=uniform, bias_init=uniform, rngs=rngs)
    self.region_tokens = nnx.Param(
      nnx.initializers.truncated_normal(0.02)(rngs.params(), (regions, cfg.width), jnp.float32)
    )
    self.blocks = nnx.List(LgiBlock(cfg, regions, rngs=rngs) for _ in range(cfg.depth))
    self.branches = 2 * regions + 2
    self.drop_path_rates = tuple(cfg.drop_path * i / max(cfg.depth - 1, 1) for i in range(cfg.depth))
    self.fc_norm = LayerNorm(cfg.width, epsilon=ENCODER_EPS, rngs=rngs)

  def embed(self, x: Float[Array, "B T H W 3"] | Array, prompts: None = None) -> Float[Array, "B N D"]:
    """Messenger and tokens of each region, with positions; video is uint8, or float in [0, 1]."""
    cfg, kernel, bias = self.cfg, self.patch_embed.kernel[...], self.patch_embed.bias
    assert bias is not None
    assert prompts is None
    pixels = normalised(x, cfg.mean, cfg.std).astype(kernel.dtype)
    sizes = dict(zip(("nt", "nh", "nw", "rt", "rh", "rw"), (*self.grid, *cfg.region), strict=True))
    cells = rearrange(
      pixels, "b (nt rt t) (nh rh h) (nw rw w) c -> b (nt nh nw) (rt rh rw) (t h w c)",
      t=cfg.tubelet, h=cfg.patch_size, w=cfg.patch_size, **sizes,
    )  # fmt: skip
    table = rearrange(
      clip_positions(math.prod(sizes.values()), self.width),
      "(nt rt nh rh nw rw) d -> (nt nh nw) (rt rh rw) d", **sizes,
    )  # fmt: skip
    tokens = cells @ kernel.reshape(-1, self.width) + bias[...] + jnp.asarray(table, kernel.dtype)
    b, regions, _, d = tokens.shape
    messengers = jnp.broadcast_to(self.region_tokens[...][:, None], (b, regions, 1, d))
    return jnp.concatenate([messengers, tokens], axis=2).reshape(b, -1, d)

  def summary(self, tokens: Float[Array, "B N D"]) -> Float[Array, "B S D"]:
    """The mean that the config chooses, after the last norm."""
    b, n, d = tokens.shape
    x = tokens.reshape(b, -1, n // math.prod(self.grid), d)
    match self.cfg.readout:
      case "region":
        mean = x[:, :, 0].mean(axis=1, keepdims=True)
      case "org":
        mean = x[:, :, 1:].mean(axis=(1, 2))[:, None]
      case "all":
        mean = tokens.mean(axis=1, keepdims=True)
      case _:
        nt, rt = self.grid[0], self.cfg.region[0]
        mean = x[:, :, 1:].reshape(b, nt, math.prod(self.grid[1:]), rt, -1, d).mean(axis=(2, 4))
        mean = mean.reshape(b, nt * rt, d)
    return self.fc_norm(mean)
