"""AudioMAE's decoder: patches attend within small windows, which every other block shifts along time."""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from mma_dfer_jax import parts
from mma_dfer_jax.layers import ENCODER_EPS, LayerNorm, Mlp, mae_linear

# Our path, the name in AudioMAE's file, layout.
AUTHORS = (
  ("blocks/{}/norm1", "decoder_blocks.{}.norm1", "norm"),
  ("blocks/{}/norm2", "decoder_blocks.{}.norm2", "norm"),
  ("blocks/{}/attn/qkv", "decoder_blocks.{}.attn.qkv", "linear"),
  ("blocks/{}/attn/proj", "decoder_blocks.{}.attn.proj", "linear"),
  ("blocks/{}/attn/tau", "decoder_blocks.{}.attn.tau", "keep"),
  ("blocks/{}/attn/meta_mlp/fc1", "decoder_blocks.{}.attn.meta_mlp.fc1", "linear"),
  ("blocks/{}/attn/meta_mlp/fc2", "decoder_blocks.{}.attn.meta_mlp.fc2", "linear"),
  ("blocks/{}/mlp/fc1", "decoder_blocks.{}.mlp.fc1", "linear"),
  ("blocks/{}/mlp/fc2", "decoder_blocks.{}.mlp.fc2", "linear"),
)
BIAS_MLP = 384  # hidden units of the network that makes biases of distances
FAR = -100.0  # added to a score where two patches only came together by the shift


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(parts.Part):
  """AudioMAE's, `decoder_mode` 1; its dropout of 0.1 in the network of biases is left out."""

  width: int = 512
  depth: int = 16  # blocks
  heads: int = 16
  mlp_dim: int = 2048
  window: tuple[int, int] = (4, 4)  # patches along (time, mel)
  takes_class_token = False

  def problems(self) -> list[str]:
    found = super().problems()
    if not found and (
      len(self.window) != 2 or any(type(side) is not int or side < 1 for side in self.window)
    ):
      found.append(f"window={self.window} must be two positive whole numbers, patches along (time, mel)")
    return found

  def problems_with(self, grid: tuple[int, int]) -> list[str]:  # type: ignore[override]
    found = [f"model.decoder.width={self.width} must be a multiple of heads={self.heads}"] * (
      self.width % self.heads > 0
    )
    if any(n % side for n, side in zip(grid, self._sides(grid), strict=True)):
      found.append(
        f"model.decoder.window={self.window} must divide the grid of {grid[0]} x {grid[1]} patches"
      )
    return found

  def _sides(self, grid: tuple[int, int]) -> tuple[int, int]:
    """A side of the grid that is no longer than the window is one window."""
    return (min(grid[0], self.window[0]), min(grid[1], self.window[1]))

  def build(self, grid: tuple[int, int], *, rngs: nnx.Rngs) -> nnx.List:
    """Blocks (B, L, E) -> (B, L, E) of patches alone."""
    window = self._sides(grid)
    shift = 2 if grid[0] > window[0] else 0  # of odd blocks, along time only
    return nnx.List(WindowBlock(self, grid, window, i % 2 * shift, rngs=rngs) for i in range(self.depth))


class WindowBlock(nnx.Module):
  """A Swin V2 block: x + norm1(attn(x)), then x + norm2(mlp(x)). Source: timm's `swin_transformer_v2_cr.py`."""

  def __init__(self, cfg: Config, grid, window, shift: int, *, rngs: nnx.Rngs):
    self.grid, self.window, self.shift = grid, window, shift
    self.attn = WindowAttention(cfg.width, cfg.heads, window, rngs=rngs)
    self.norm1 = LayerNorm(cfg.width, epsilon=ENCODER_EPS, rngs=rngs)
    self.mlp = Mlp(cfg.width, cfg.mlp_dim, tanh_gelu=False, linear=mae_linear, rngs=rngs)
    self.norm2 = LayerNorm(cfg.width, epsilon=ENCODER_EPS, rngs=rngs)

  def __call__(self, x: Float[Array, "B L E"]) -> Float[Array, "B L E"]:
    b, patches, e = x.shape
    rows, columns = (n // side for n, side in zip(self.grid, self.window, strict=True))
    on_grid = jnp.roll(x.reshape(b, *self.grid, e), -self.shift, axis=1)
    windows = on_grid.reshape(b, rows, self.window[0], columns, self.window[1], e).swapaxes(2, 3)
    windows = self.attn(windows.reshape(b, rows * columns, -1, e), self._far(rows, columns))
    windows = windows.reshape(b, rows, columns, *self.window, e).swapaxes(2, 3)
    mixed = jnp.roll(windows.reshape(b, *self.grid, e), self.shift, axis=1).reshape(b, patches, e)
    x = x + self.norm1(mixed)
    return x + self.norm2(self.mlp(x))

  def _far(self, rows: int, columns: int) -> np.ndarray:
    """(W, 1, N, N): `FAR` between patches of the last windows that come from different ends of the sound."""
    wrapped = np.repeat(np.arange(self.window[0]) >= self.window[0] - self.shift, self.window[1])
    different = wrapped[:, None] != wrapped[None, :]
    last = np.repeat(np.arange(rows) == rows - 1, columns)
    return np.where(last[:, None, None] & different, np.float32(FAR), np.float32(0))[:, None]


class WindowAttention(nnx.Module):
  """Attention by cosine similarity over a learned temperature, with a learned bias of each distance."""

  def __init__(self, width: int, heads: int, window: tuple[int, int], *, rngs: nnx.Rngs):
    self.heads = heads
    self.qkv = mae_linear(width, 3 * width, rngs=rngs)
    self.proj = mae_linear(width, width, rngs=rngs)
    self.tau = nnx.Param(jnp.ones(heads))
    self.meta_mlp = DistanceMlp(heads, rngs=rngs)
    places = np.indices(window).reshape(2, -1)
    apart = places[:, :, None] - places[:, None, :]  # (2, N, N)
    self.distances = tuple(map(tuple, (np.sign(apart) * np.log1p(abs(apart))).reshape(2, -1).T.tolist()))

  def __call__(self, x: Float[Array, "B W N E"], far) -> Float[Array, "B W N E"]:
    b, w, n, e = x.shape
    q, k, v = self.qkv(x).reshape(b, w, n, 3, self.heads, -1).transpose(3, 0, 1, 4, 2, 5)
    norms = [jnp.linalg.norm(one.astype(jnp.float32), axis=-1).astype(x.dtype) for one in (q, k)]
    scores = q @ k.swapaxes(-1, -2) / jnp.maximum(norms[0][..., :, None] * norms[1][..., None, :], 1e-6)
    scores = scores / jnp.maximum(self.tau[...], 0.01)[:, None, None]
    bias = self.meta_mlp(jnp.asarray(self.distances, x.dtype)).T.reshape(self.heads, n, n)
    weights = jax.nn.softmax(scores + bias + jnp.asarray(far, x.dtype), axis=-1)  # (B, W, heads, N, N)
    return self.proj((weights @ v).swapaxes(2, 3).reshape(b, w, n, e))


class DistanceMlp(nnx.Module):
  def __init__(self, heads: int, *, rngs: nnx.Rngs):
    self.fc1, self.fc2 = mae_linear(2, BIAS_MLP, rngs=rngs), mae_linear(BIAS_MLP, heads, rngs=rngs)

  def __call__(self, distances: Float[Array, "M 2"]) -> Float[Array, "M h"]:
    return self.fc2(jax.nn.relu(self.fc1(distances)))
