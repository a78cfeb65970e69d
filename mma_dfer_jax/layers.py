"""How attention, MLP, LayerNorm, GELU, drop path and pixels are computed: what all parts are built from.

Letters in shapes: B examples (clips, or frames of clips), N and M tokens, D width, L blocks, r branches of a block.
"""

from collections.abc import Callable, Sequence
import functools
import math
from typing import Any

from flax import nnx
import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8
import numpy as np

# LayerNorm epsilons of the original: timm's 1e-6 in the encoders, PyTorch's default in everything the paper adds.
ENCODER_EPS = 1e-6
TORCH_EPS = 1e-5

# What a layer keeps for its backward pass, which computes all else again.
#   none: everything that XLA chooses to keep. names: results of large matrix products. layers: only the layer's inputs.
KEPT = ("qkv", "proj", "fc1", "fc2")
REMAT: dict[str, Callable[[Callable], Callable]] = {
  "none": jax.jit,
  "names": functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.save_only_these_names(*KEPT)),
  "layers": jax.checkpoint,
}

Linear = Callable[..., nnx.Linear]  # (fan_in, fan_out, *, use_bias, rngs), with its own initialisation


class FlatLinear(nnx.Linear):
  """A linear layer over the last axis, as one product of two matrices.

  With more axes XLA's CPU backend takes 1.1 to 1.5 times as long for the gradient of the kernel at full size, and twice at
  the demo's.
  """

  def __call__(self, x: Float[Array, "... D"], out_sharding: Any = None) -> Float[Array, "... E"]:
    return super().__call__(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], -1)


class TorchLinear(FlatLinear):
  """A linear layer initialised as PyTorch's: kernel and bias U(-1/√fan_in, 1/√fan_in)."""

  def __init__(self, fan_in: int, fan_out: int, *, use_bias: bool = True, rngs: nnx.Rngs):
    def init(key, shape, dtype=jnp.float32, **_):
      return jax.random.uniform(key, shape, dtype, -(fan_in**-0.5), fan_in**-0.5)

    super().__init__(fan_in, fan_out, use_bias=use_bias, kernel_init=init, bias_init=init, rngs=rngs)


def mae_linear(fan_in: int, fan_out: int, *, use_bias: bool = True, rngs: nnx.Rngs) -> nnx.Linear:
  """A linear layer initialised as in MAE: Xavier uniform, zero bias. Source: `models_mae.py`, `_init_weights`."""
  init = nnx.initializers.xavier_uniform()
  return FlatLinear(fan_in, fan_out, use_bias=use_bias, kernel_init=init, rngs=rngs)


def sine_positions(grid: tuple[int, int], width: int) -> np.ndarray:
  """MAE's position table (1 + patches, width): zeros for the class token, then sines and cosines of x and of y.

  Source: `util/pos_embed.py` of MAE. A width that is no multiple of 4 ends in zeros.
  """
  frequencies = 10000.0 ** -(np.arange(width // 4) / max(width // 4, 1))
  y, x = (axis.reshape(-1, 1) * frequencies for axis in np.indices(grid))
  table = np.zeros((1 + grid[0] * grid[1], width), np.float32)
  table[1:, : 4 * (width // 4)] = np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1)
  return table


def at_places(x: Float[Array, "B T ..."], places: Int[Array, "B k"]) -> Float[Array, "B k ..."]:
  """The rows of each clip that are at its places."""
  index = places.reshape(*places.shape, *[1] * (x.ndim - 2))
  return jnp.take_along_axis(x, index, axis=1, mode="promise_in_bounds")


def drop_path(key: Array, rates: Sequence[float], examples: int, branches: int = 2) -> Float[Array, "L r B"]:
  """Stochastic depth: factors 0 (dropped, at its block's rate) or 1 / (1 - rate) by block, residual branch and example.

  One draw for all: one for each branch doubled the time to compile the training step. Source: timm 0.9.16 `DropPath`.
  """
  kept = 1.0 - jnp.asarray(rates, jnp.float32)[:, None, None]
  return jax.random.bernoulli(key, kept, (len(rates), branches, examples)) / kept


class Dropout:
  """Dropout by numbers from 0 to 1 (N, B), drawn before for all clips at once; None: nothing is dropped.

  One draw, as for `drop_path`: with one for each call the training step took three times as long to compile.
  """

  def __init__(self, drawn: Float[Array, "N B"] | None):
    self._left: Any = drawn

  def acts(self, rate: float) -> bool:
    return self._left is not None and rate > 0

  def __call__(self, x: Float[Array, "B ..."], rate: float) -> Float[Array, "B ..."]:
    """Numbers 0 at this rate, the others over 1 - rate; uses up as many of the drawn numbers as a clip has here."""
    if not self.acts(rate):
      return x
    here, self._left = jnp.split(self._left, [math.prod(x.shape[1:])])
    return jnp.where(here.T.reshape(x.shape) >= rate, x / (1 - rate), 0).astype(x.dtype)


def of_each_block(scales: Float[Array, "L r B"] | None, blocks: int) -> Sequence[Float[Array, "r B"] | None]:
  """The drop path factors of each block; None for all if nothing is dropped."""
  if scales is None:
    return [None] * blocks
  # Picked by a product: XLA would fuse a slice into the kernels around it, which would then differ from layer to layer
  # and be compiled one by one: 14 s instead of 10 for the training step.
  pick = functools.partial(jnp.einsum, "l,lab->ab", precision=jax.lax.Precision.HIGHEST)
  return [pick(one, scales) for one in np.eye(blocks, dtype=np.float32)]


def unit(x: Float[Array, "... D"]) -> Float[Array, "... D"]:
  """x / max(|x|, 1e-12) over the last axis; the gradient at 0 is finite."""
  return x / jnp.sqrt(jnp.maximum((x * x).sum(axis=-1, keepdims=True), 1e-24))


def normalised(
  video: UInt8[Array, "B T H W 3"] | Float[Array, "B T H W 3"], mean: Sequence[float], std: Sequence[float]
) -> Float[Array, "B T H W 3"]:
  """RGB, uint8 or float in [0, 1], normalised by channel; 0 and 1 compute nothing. Only this function divides by 255."""
  if video.dtype == jnp.uint8:
    video = video.astype(jnp.float32) / 255.0
  if not any(mean) and all(s == 1 for s in std):
    return video
  return (video - jnp.asarray(mean, video.dtype)) / jnp.asarray(std, video.dtype)


@jax.custom_vjp
def gelu(x: Array) -> Array:
  """Exact GELU, x Φ(x), that keeps only x for the backward pass: XLA would keep Φ(x) too, 2.4 GB at full size."""
  return x * (0.5 * jax.lax.erf(x * 2**-0.5) + 0.5)


def _gelu_backward(x, gradient):
  density = (2 * np.pi) ** -0.5 * jnp.exp(-0.5 * x * x)
  return (gradient * (0.5 * jax.lax.erf(x * 2**-0.5) + 0.5 + x * density),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def normalise(x: Float[Array, "... D"], eps: float) -> Float[Array, "... D"]:
  """(x - mean) / √(variance + eps) over the last axis, in float32 for any `x`; keeps only the result and 1/√….

  Two passes for the variance: E[x²] - E[x]² loses the digits that parity needs. JAX's own backward pass would keep x and
  its centred copy too, and XLA would compile a third more operations.
  """
  return _normalise(x, eps)[0]


def _normalise(x, eps):
  wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  centred = wide - wide.mean(axis=-1, keepdims=True)
  inverse = jax.lax.rsqrt((centred * centred).mean(axis=-1, keepdims=True) + eps)
  return (centred * inverse).astype(x.dtype), inverse


def _normalise_forward(x, eps):
  normal, inverse = _normalise(x, eps)
  return normal, (normal, inverse)


def _normalise_backward(eps, kept, gradient):
  normal, inverse = kept
  wide = gradient.astype(inverse.dtype)
  along = normal * (wide * normal).mean(axis=-1, keepdims=True)
  return ((inverse * (wide - wide.mean(axis=-1, keepdims=True) - along)).astype(gradient.dtype),)


normalise.defvjp(_normalise_forward, _normalise_backward)


class LayerNorm(nnx.LayerNorm):
  """Flax's LayerNorm over the last axis with scale and bias, by `normalise`."""

  def __call__(self, x: Float[Array, "... D"], *, mask: Array | None = None) -> Float[Array, "... D"]:
    assert mask is None and self.scale is not None and self.bias is not None  # noqa: PT018 # Flax allows all three
    return normalise(x, self.epsilon) * self.scale[...] + self.bias[...]


@jax.custom_vjp
def attend(
  q: Float[Array, "B h N d"], k: Float[Array, "B h M d"], v: Float[Array, "B h M d"], bias: Float[Array, "B M"] | None = None
) -> Float[Array, "B h N d"]:  # fmt: skip
  """softmax(q kᵀ / √d + bias) v for each head; keeps only its inputs for the backward pass, not the (N, M) weights.

  NVIDIA's GPUs use cuDNN's fused kernel for bfloat16, its only type, where it takes the width of a head; XLA compiles all
  other cases.
  """
  if _is_fused(q, bias):
    return _fused_attention(q, k, v)
  return attention_weights(q, k, bias) @ v


def _is_fused(q, bias) -> bool:
  width = q.shape[-1]  # cuDNN takes multiples of 8, up to 128 on all GPUs that compute in bfloat16
  takes = q.dtype == jnp.bfloat16 and width % 8 == 0 and width <= 128 and bias is None
  return jax.default_backend() == "gpu" and takes


def _fused_attention(q, k, v, even: bool = False):
  """With `even`, an odd number of tokens gets one more, which nothing attends to: JAX refuses the gradient without."""
  n, m = q.shape[2], k.shape[2]
  odd = even and (n % 2 or m % 2)
  # cuDNN takes (B, N, heads, d)
  q, k, v = (
    jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, even * (x.shape[2] % 2)), (0, 0), (0, 0))) for x in (q, k, v)
  )
  of_q, of_k = (jnp.full(q.shape[0], length, jnp.int32) if odd else None for length in (n, m))
  mixed = jax.nn.dot_product_attention(
    q, k, v, query_seq_lengths=of_q, key_value_seq_lengths=of_k, implementation="cudnn"
  )
  return mixed[:, :n].swapaxes(1, 2)


def attention_weights(
  q: Float[Array, "B h N d"], k: Float[Array, "B h M d"], bias: Float[Array, "B M"] | None = None
) -> Float[Array, "B h N M"]:
  """softmax(q kᵀ / √d + bias) of each head."""
  scores = q @ k.swapaxes(-1, -2) * q.shape[-1] ** -0.5  # (B, heads, N, M)
  return jax.nn.softmax(scores if bias is None else scores + bias[:, None, None], axis=-1)


def _attend_backward(kept, gradient):
  q, k, v, bias = kept
  if _is_fused(q, bias):
    return *jax.vjp(functools.partial(_fused_attention, even=True), q, k, v)[1](gradient), None
  weights = attention_weights(q, k, bias)
  to_weights = gradient @ v.swapaxes(-1, -2)
  to_sums = weights * (to_weights - (to_weights * weights).sum(-1, keepdims=True))
  to_scores = to_sums * q.shape[-1] ** -0.5
  to_bias = None if bias is None else to_sums.sum((1, 2))
  return to_scores @ k, to_scores.swapaxes(-1, -2) @ q, weights.swapaxes(-1, -2) @ gradient, to_bias


attend.defvjp(lambda *inputs: (attend(*inputs), inputs), _attend_backward)


class Attention(nnx.Module):
  """Multi-head self-attention; the rows of qkv are ordered by (q, k, v), then head, then channel.

  Source: timm 0.9.16 `Attention`; the temporal transformer's `to_q` and `to_kv` are joined in the same order.
  """

  def __init__(self, width: int, heads: int, inner: int, *, qkv_bias: bool, linear: Linear, rngs: nnx.Rngs):
    self.heads = heads
    self.qkv = linear(width, 3 * inner, use_bias=qkv_bias, rngs=rngs)
    self.proj = linear(inner, width, rngs=rngs)

  def __call__(
    self, x: Float[Array, "B N D"], bias: Float[Array, "B N"] | None = None
  ) -> Float[Array, "B N D"]:
    b, n, _ = x.shape
    qkv = checkpoint_name(self.qkv(x), "qkv").reshape(b, n, 3, self.heads, -1)
    # Batch dimensions lead: contracting (B, N, heads, d) directly is 3-5 times slower on CPU.
    q, k, v = qkv.transpose(2, 0, 3, 1, 4)  # 3 x (B, heads, N, d)
    mixed = attend(q, k, v, bias).swapaxes(1, 2)  # (B, N, heads, d)
    return checkpoint_name(self.proj(mixed.reshape(b, n, -1)), "proj")


class Mlp(nnx.Module):
  """Two linear layers around a GELU: exact (erf) in the encoders, tanh in the temporal transformer."""

  def __init__(self, width: int, hidden: int, *, tanh_gelu: bool, linear: Linear, rngs: nnx.Rngs):
    self.tanh_gelu = tanh_gelu
    self.fc1 = linear(width, hidden, rngs=rngs)
    self.fc2 = linear(hidden, width, rngs=rngs)

  def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
    hidden = checkpoint_name(self.fc1(x), "fc1")
    hidden = jax.nn.gelu(hidden, approximate=True) if self.tanh_gelu else gelu(hidden)
    return checkpoint_name(self.fc2(hidden), "fc2")


class TransformerBlock(nnx.Module):
  """Pre-norm transformer block: x + attn(norm1(x)), then x + mlp(norm2(x)); no dropout, no layer scale.

  The defaults are the encoders'; the temporal transformer changes five of them.
  """

  def __init__(
    self, width: int, heads: int, mlp_dim: int, *, head_dim: int | None = None, qkv_bias: bool = True,
    eps: float = ENCODER_EPS, tanh_gelu: bool = False, linear: Linear = mae_linear, rngs: nnx.Rngs,
  ):  # fmt: skip
    self.norm1 = LayerNorm(width, epsilon=eps, rngs=rngs)
    inner = heads * (head_dim or width // heads)
    self.attn = Attention(width, heads, inner, qkv_bias=qkv_bias, linear=linear, rngs=rngs)
    self.norm2 = LayerNorm(width, epsilon=eps, rngs=rngs)
    self.mlp = Mlp(width, mlp_dim, tanh_gelu=tanh_gelu, linear=linear, rngs=rngs)

  def __call__(
    self, x: Float[Array, "B N D"], branch_scale: Float[Array, "2 B"] | None = None, bias: Float[Array, "B N"] | None = None
  ) -> Float[Array, "B N D"]:  # fmt: skip
    """One block; `branch_scale` holds the factors of `drop_path`, `bias` is added to the logits of attention to each token."""
    attention, mlp = (1.0, 1.0) if branch_scale is None else branch_scale.astype(x.dtype)[:, :, None, None]
    x = x + attention * self.attn(self.norm1(x), bias)
    return x + mlp * self.mlp(self.norm2(x))


class GatedMean(nnx.Module):
  """A mean over layers in place of the last one, through a gate that starts shut; a subclass has `weights`.

  Source: ours, after FaVChat (arXiv 2503.09158).
  """

  def __init__(self):
    self.gate = nnx.Param(jnp.zeros((1,)))

  def __call__(self, of_layers: Sequence[Float[Array, "B S D"]]) -> tuple[Float[Array, "B S D"], Array, Float[Array, "B"]]:  # fmt: skip
    """The summary, the weights of the layers (B, L) or (B, S, L), and tanh of the gate."""
    summaries = jnp.stack(of_layers, axis=2)  # (B, S, L, D)
    weights = self.weights(summaries)
    gate = jnp.tanh(self.gate[...])
    of_moments = weights if weights.ndim == 3 else weights[:, None]
    mean = (of_moments[..., None] * summaries).sum(axis=2)
    said = weights, jnp.broadcast_to(gate, weights.shape[:1])
    return of_layers[-1] + gate * (mean - of_layers[-1]), *said

  weights: Callable[..., Array]  # of summaries (B, S, L, D)


class LayersAndStreams(nnx.Module):
  """A `parts.LayerPool`: each stream's mean over layers (None: the last one), and a factor for each stream (if `weighed`).

  The factors 2 softmax(phi) add up to 2 and start at 1.
  """

  def __init__(self, image: GatedMean | None, audio: GatedMean | None, *, weighed: bool):
    self.image, self.audio = image, audio
    self.phi = nnx.Param(jnp.zeros((2,))) if weighed else None

  def __call__(
    self, image: Sequence[Float[Array, "B S D"] | None], audio: Sequence[Float[Array, "B 1 E"] | None]
  ) -> tuple[Float[Array, "B S D"] | None, Float[Array, "B 1 E"] | None, dict[str, Array]]:
    said: dict[str, Array] = {}

    def of_stream(name: str, pool: GatedMean | None, of_layers: Sequence[Any], number: int) -> Any:
      summary = of_layers[-1]
      if pool is not None:
        summary, said[f"layers_of_{name}"], said[f"layer_gate_of_{name}"] = pool(of_layers)
      if self.phi is None:
        return summary
      factors = 2 * jax.nn.softmax(self.phi[...])
      said["streams"] = jnp.broadcast_to(factors, (summary.shape[0], 2))
      return factors[number] * summary

    return of_stream("image", self.image, image, 0), of_stream("audio", self.audio, audio, 1), said
