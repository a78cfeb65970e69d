"""The pretrained part: a ViT encoder as masked autoencoders (MAE-Face, AudioMAE) leave it behind.

Kept apart from `model.py` so that what the paper adds can be read without attention code around it.
Letters in shapes: B examples (clips, or frames of clips), N tokens, D width, P prompts.
"""

from collections.abc import Callable

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

# LayerNorm epsilons of the original: timm's 1e-6 in the encoders, PyTorch's default in everything the paper adds.
ENCODER_EPS = 1e-6
TORCH_EPS = 1e-5

Linear = Callable[..., nnx.Linear]  # (fan_in, fan_out, *, use_bias, rngs), with a way to begin of its own


def torch_linear(fan_in: int, fan_out: int, *, use_bias: bool = True, rngs: nnx.Rngs) -> nnx.Linear:
  """A linear layer that starts as PyTorch's does: kernel and bias U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""

  def init(key, shape, dtype=jnp.float32, **_):
    return jax.random.uniform(key, shape, dtype, -(fan_in**-0.5), fan_in**-0.5)

  return nnx.Linear(fan_in, fan_out, use_bias=use_bias, kernel_init=init, bias_init=init, rngs=rngs)


def mae_linear(fan_in: int, fan_out: int, *, use_bias: bool = True, rngs: nnx.Rngs) -> nnx.Linear:
  """A linear layer that starts as in MAE: Xavier uniform, no bias. Source: `models_mae.py`, `_init_weights`."""
  init = nnx.initializers.xavier_uniform()
  return nnx.Linear(fan_in, fan_out, use_bias=use_bias, kernel_init=init, rngs=rngs)


def sine_positions(grid: tuple[int, int], width: int) -> np.ndarray:
  """MAE's position table (1 + patches, width): zeros for the class token, then sines and cosines of x and of y.

  Source: `util/pos_embed.py` of MAE. A width that is no multiple of 4 ends in zeros.
  """
  frequencies = 10000.0 ** -(np.arange(width // 4) / max(width // 4, 1))
  y, x = (axis.reshape(-1, 1) * frequencies for axis in np.indices(grid))
  table = np.zeros((1 + grid[0] * grid[1], width), np.float32)
  table[1:, : 4 * (width // 4)] = np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1)
  return table


def layer_norm(width: int, eps: float, *, rngs: nnx.Rngs) -> nnx.LayerNorm:
  """LayerNorm in two passes: the one-pass variance E[x²]-E[x]² loses the digits that parity needs."""
  return nnx.LayerNorm(width, epsilon=eps, use_fast_variance=False, rngs=rngs)


class Attention(nnx.Module):
  """Multi-head self-attention with one qkv projection, rows ordered (q, k, v), then head, then channel.

  Source: timm 0.9.16 `Attention`; the temporal transformer's `to_q`, `to_kv` are joined into the same layout.
  """

  def __init__(
    self, width: int, heads: int, head_dim: int, *, qkv_bias: bool, linear: Linear, rngs: nnx.Rngs
  ):
    self.heads = heads
    self.qkv = linear(width, 3 * heads * head_dim, use_bias=qkv_bias, rngs=rngs)
    self.proj = linear(heads * head_dim, width, rngs=rngs)

  def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
    b, n, _ = x.shape
    qkv = self.qkv(x).reshape(b, n, 3, self.heads, -1)
    # Batch dimensions lead: contracting (B, N, heads, d) directly is 3-5 times slower on CPU.
    q, k, v = qkv.transpose(2, 0, 3, 1, 4)  # 3 x (B, heads, N, d)
    weights = jax.nn.softmax(q @ k.swapaxes(-1, -2) * q.shape[-1] ** -0.5, axis=-1)  # (B, heads, N, N)
    mixed = (weights @ v).swapaxes(1, 2)  # (B, N, heads, d)
    return self.proj(mixed.reshape(b, n, -1))


class Mlp(nnx.Module):
  """Two linear layers around a GELU: exact (erf) in the encoders, tanh in the temporal transformer."""

  def __init__(self, width: int, hidden: int, *, tanh_gelu: bool, linear: Linear, rngs: nnx.Rngs):
    self.tanh_gelu = tanh_gelu
    self.fc1 = linear(width, hidden, rngs=rngs)
    self.fc2 = linear(hidden, width, rngs=rngs)

  def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
    return self.fc2(jax.nn.gelu(self.fc1(x), approximate=self.tanh_gelu))


class DropPath(nnx.Module):
  """Stochastic depth: drops a residual branch for whole examples, and scales the others by 1 / keep.

  Mode is an argument, not hidden state: without `rngs` nothing is dropped. Source: timm 0.9.16 `DropPath`.
  """

  def __init__(self, rate: float):
    self.rate = rate

  def __call__(self, x: Float[Array, "B N D"], *, rngs: nnx.Rngs | None) -> Float[Array, "B N D"]:
    if self.rate == 0.0 or rngs is None:
      return x
    keep = jax.random.bernoulli(rngs.drop_path(), 1.0 - self.rate, (x.shape[0], 1, 1))
    return x * keep / (1.0 - self.rate)


class TransformerBlock(nnx.Module):
  """Pre-norm transformer block: x + attn(norm1(x)), then x + mlp(norm2(x)); no dropout, no layer scale.

  The defaults are those of the encoders; the temporal transformer differs in five of them.
  """

  def __init__(
    self,
    width: int,
    heads: int,
    mlp_dim: int,
    *,
    head_dim: int | None = None,
    qkv_bias: bool = True,
    eps: float = ENCODER_EPS,
    tanh_gelu: bool = False,
    drop_path: float = 0.0,
    linear: Linear = mae_linear,
    rngs: nnx.Rngs,
  ):
    self.norm1 = layer_norm(width, eps, rngs=rngs)
    self.attn = Attention(
      width, heads, head_dim or width // heads, qkv_bias=qkv_bias, linear=linear, rngs=rngs
    )
    self.norm2 = layer_norm(width, eps, rngs=rngs)
    self.mlp = Mlp(width, mlp_dim, tanh_gelu=tanh_gelu, linear=linear, rngs=rngs)
    self.drop_path = DropPath(drop_path)

  def __call__(self, x: Float[Array, "B N D"], *, rngs: nnx.Rngs | None = None) -> Float[Array, "B N D"]:
    x = x + self.drop_path(self.attn(self.norm1(x)), rngs=rngs)
    return x + self.drop_path(self.mlp(self.norm2(x)), rngs=rngs)


class MaeEncoder(nnx.Module):
  """The encoder of a masked autoencoder, opened up: its blocks are called one by one from outside.

  Args:
    grid: patches along (height, width) of a frame, or (time, mel) of a spectrogram.
    channels: 3 for frames, 1 for spectrograms.
    num_prompts: tokens appended after the patches; they have rows of their own in `pos_embed`.
    drop_path: rate of the last block; the first has 0, those between lie on a line.
    input_mean: of the values that come in; it and input_std shape the fresh weights only.
  Fresh parameters start as MAE's; a pretrained file goes over them.

  Source: MAE's `models_vit.py` as called by MMA-DFER; `pos_embed` covers class token, patches and prompts.
  """

  def __init__(
    self,
    grid: tuple[int, int],
    channels: int,
    *,
    patch_size: int,
    width: int,
    depth: int,
    heads: int,
    mlp_dim: int,
    num_prompts: int,
    drop_path: float,
    input_mean: float,
    input_std: float,
    rngs: nnx.Rngs,
  ):
    patch = (patch_size, patch_size)
    self.patch_embed = nnx.Conv(channels, width, patch, strides=patch, padding="VALID", rngs=rngs)
    assert self.patch_embed.bias is not None  # it is there unless use_bias=False
    # Xavier on the flattened patch, as in MAE, and the input's normalisation folded in: MMA-DFER leaves it out, and
    # without it a fresh encoder hardly sees its input (a pretrained one brings weights of its own).
    shape = (channels * patch_size**2, width)
    flat = nnx.initializers.xavier_uniform()(rngs.params(), shape, jnp.float32) / input_std
    self.patch_embed.kernel[...] = flat.reshape(*patch, channels, width)
    self.patch_embed.bias[...] = -input_mean * flat.sum(axis=0)
    self.cls_token = nnx.Param(0.02 * rngs.params.normal((1, 1, width)))
    # The prompts' rows are N(0, 1) in the original, 28 times larger than the prompts themselves.
    prompt_rows = rngs.params.normal((num_prompts, width))
    self.pos_embed = nnx.Param(jnp.concatenate([sine_positions(grid, width), prompt_rows])[None])
    self.blocks = nnx.List(
      TransformerBlock(width, heads, mlp_dim, drop_path=drop_path * i / max(depth - 1, 1), rngs=rngs)
      for i in range(depth)
    )
    self.norm = layer_norm(width, ENCODER_EPS, rngs=rngs)

  def embed(self, x: Float[Array, "B H W C"], prompts: Float[Array, "P D"]) -> Float[Array, "B N D"]:
    """Class token, patches in row-major order and prompts, with their positions added."""
    patches = self.patch_embed(x)
    b, _, _, d = patches.shape
    cls = jnp.broadcast_to(self.cls_token[...], (b, 1, d))
    prompts = jnp.broadcast_to(prompts, (b, *prompts.shape))
    return jnp.concatenate([cls, patches.reshape(b, -1, d), prompts], axis=1) + self.pos_embed[...]
