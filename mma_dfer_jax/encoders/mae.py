"""The encoder of a masked autoencoder: MAE-Face for frames, AudioMAE for sound (a plain ViT with a class token)."""

import dataclasses
import math
from typing import ClassVar

from flax import nnx
import jax.numpy as jnp
from jaxtyping import Array, Float

from mma_dfer_jax import parts
from mma_dfer_jax.inputs import Inputs
from mma_dfer_jax.layers import ENCODER_EPS, LayerNorm, TransformerBlock, normalised, sine_positions

# Our path, timm's name, layout: in MAE-Face's and AudioMAE's files, and with a prefix in the authors' checkpoints.
AUTHORS = (
  ("cls_token", "cls_token", "keep"),
  ("pos_embed", "pos_embed", "keep"),
  ("patch_embed", "patch_embed.proj", "conv"),
  ("blocks/{}/norm1", "blocks.{}.norm1", "norm"),
  ("blocks/{}/norm2", "blocks.{}.norm2", "norm"),
  ("blocks/{}/attn/qkv", "blocks.{}.attn.qkv", "linear"),
  ("blocks/{}/attn/proj", "blocks.{}.attn.proj", "linear"),
  ("blocks/{}/mlp/fc1", "blocks.{}.mlp.fc1", "linear"),
  ("blocks/{}/mlp/fc2", "blocks.{}.mlp.fc2", "linear"),
  ("norm", "norm", "norm"),
)
# Mean and deviation of the input: ImageNet's pixels in [0, 1], and spectrograms as AudioMAE normalises them.
FRESH_INPUT = {"image": (0.45, 0.225), "audio": (0.0, 0.5)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(parts.Part):
  """ViT-B/16; the defaults are those of both pretraining files."""

  patch_size: int = 16  # pixels; of spectrograms, rows and bins
  width: int = 768
  depth: int = 12  # blocks
  heads: int = 12
  mlp_dim: int = 3072
  drop_path: float = 0.1  # of the last block, rising from 0; on while training, though the encoder is frozen
  mean: tuple[float, ...] = (0.0, 0.0, 0.0)  # of RGB in [0, 1]; MMA-DFER feeds MAE-Face without normalisation
  std: tuple[float, ...] = (1.0, 1.0, 1.0)
  prompt_positions: float = 1.0  # deviation of the prompts' fresh position rows; the original draws N(0, 1)
  tunable: tuple[str, ...] = ("pos_embed",)  # not in the figure, but trained by the released code
  takes_prompts: ClassVar[bool] = True  # with a row of `pos_embed` each

  def problems(self) -> list[str]:
    found = super().problems()
    if not found and self.width % self.heads:
      found.append(f"width={self.width} must be a multiple of heads={self.heads}")
    if not 0 <= self.drop_path < 1:
      found.append(f"drop_path={self.drop_path} must lie in [0, 1)")
    finite = all(math.isfinite(value) for value in (*self.mean, *self.std))
    if len(self.mean) != 3 or len(self.std) != 3 or not finite or not all(s > 0 for s in self.std):
      found.append(f"mean={self.mean}, std={self.std}: give three of each, deviations above 0")
    if self.prompt_positions < 0:
      found.append(f"prompt_positions={self.prompt_positions} must not be negative")
    return found

  def problems_with(self, stream: str, inputs: Inputs) -> list[str]:  # type: ignore[override]
    sizes, found = {"image_size": inputs.image_size}, []
    if stream == "audio":
      sizes = {f"audio_shape[{i}]": n for i, n in enumerate(inputs.audio_shape)}
      if (self.mean, self.std) != (Config.mean, Config.std):
        found.append("model.audio.mean and model.audio.std are for pixels only: remove them")
    return found + [
      f"inputs.{name}={n} must be a multiple of model.{stream}.patch_size={self.patch_size}"
      for name, n in sizes.items()
      if n % self.patch_size
    ]

  def grid(self, stream: str, inputs: Inputs) -> tuple[int, int]:
    """Patches along (height, width) of a frame, or (time, mel) of a spectrogram."""
    size = (inputs.image_size,) * 2 if stream == "image" else inputs.audio_shape
    return (size[0] // self.patch_size, size[1] // self.patch_size)

  def build(self, stream: str, inputs: Inputs, num_prompts: int, *, rngs: nnx.Rngs) -> "MaeEncoder":
    return MaeEncoder(self, stream, inputs, num_prompts, rngs=rngs)


class MaeEncoder(nnx.Module):
  """Starts as MAE's; a pretrained file replaces these parameters. `pos_embed` covers class token, patches and prompts.

  Source: MAE's `models_vit.py` as called by MMA-DFER.
  """

  branches = 2  # attention and MLP

  def __init__(self, cfg: Config, stream: str, inputs: Inputs, num_prompts: int, *, rngs: nnx.Rngs):
    frames = stream == "image"
    self.width, self.views = cfg.width, inputs.num_frames if frames else 1
    self.moments = self.views
    self.mean, self.std = cfg.mean, cfg.std
    channels, patch = 3 if frames else 1, (cfg.patch_size,) * 2
    self.patch_embed = nnx.Conv(channels, cfg.width, patch, strides=patch, padding="VALID", rngs=rngs)
    assert self.patch_embed.bias is not None  # it is there unless use_bias=False
    # Xavier on the flattened patch, as in MAE, with the input's normalisation folded in: MMA-DFER does not normalise, and
    # a fresh encoder would hardly see its input (pretrained weights replace these).
    mean, deviation = FRESH_INPUT[stream]
    shape = (channels * cfg.patch_size**2, cfg.width)
    flat = nnx.initializers.xavier_uniform()(rngs.params(), shape, jnp.float32) / deviation
    self.patch_embed.kernel[...] = flat.reshape(*patch, channels, cfg.width)
    self.patch_embed.bias[...] = -mean * flat.sum(axis=0)
    self.cls_token = nnx.Param(0.02 * rngs.params.normal((1, 1, cfg.width)))
    # The prompts' rows are N(0, 1) in the original, 28 times larger than the prompts themselves.
    rows = cfg.prompt_positions * rngs.params.normal((num_prompts, cfg.width))
    table = sine_positions(cfg.grid(stream, inputs), cfg.width)
    self.pos_embed = nnx.Param(jnp.concatenate([table, rows])[None])
    sizes = cfg.width, cfg.heads, cfg.mlp_dim
    self.blocks = nnx.List(TransformerBlock(*sizes, rngs=rngs) for _ in range(cfg.depth))
    self.drop_path_rates = tuple(cfg.drop_path * i / max(cfg.depth - 1, 1) for i in range(cfg.depth))
    self.norm = LayerNorm(cfg.width, epsilon=ENCODER_EPS, rngs=rngs)

  def embed(self, x: Array, prompts: Float[Array, "P D"] | None) -> Float[Array, "BV N D"]:
    """Class token, patches in row-major order and prompts, with their positions added.

    Args:
      x: video (B, T, H, W, 3), uint8 or float in [0, 1], or spectrogram (B, F, K) float.
      prompts: (P, D), the same for all sequences; None if there are none.
    """
    patches = self.patch_embed(self.images(x).astype(self.patch_embed.kernel.dtype))
    b, _, _, d = patches.shape
    tokens = [jnp.broadcast_to(self.cls_token[...], (b, 1, d)), patches.reshape(b, -1, d)]
    if prompts is not None:
      tokens.append(jnp.broadcast_to(prompts, (b, *prompts.shape)))
    return jnp.concatenate(tokens, axis=1) + self.pos_embed[...]

  def images(self, x: Array) -> Float[Array, "BV H W c"]:
    """What patches are cut from: normalised frames (B·T, H, W, 3), or spectrograms (B, F, K, 1)."""
    return normalised(x, self.mean, self.std).reshape(-1, *x.shape[2:]) if x.ndim == 5 else x[..., None]

  def project(self, values: Float[Array, "B K v"]) -> Float[Array, "B K D"]:
    """Tokens without positions of any K patches, of which each gives its v = patch² · channels values, channels last.

    The same as `patch_embed`, which takes whole pictures: pretraining removes patches before.
    """
    kernel, bias = self.patch_embed.kernel[...], self.patch_embed.bias
    assert bias is not None
    return values.astype(kernel.dtype) @ kernel.reshape(-1, self.width) + bias[...]

  def summary(self, tokens: Float[Array, "BV N D"]) -> Float[Array, "B S D"]:
    return self.norm(tokens)[:, 0].reshape(-1, self.views, self.width)
