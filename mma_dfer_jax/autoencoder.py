"""The masked autoencoder that pretrains an encoder: read `MaskedAutoencoder.__call__` beside the figure of arXiv 2111.06377.

Letters in shapes: B examples (frames or sounds), L patches, K kept, N = 1 + K, D and E widths of encoder and decoder,
v = patch² · channels values of a patch.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any, NamedTuple

from flax import nnx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mma_dfer_jax import parts
from mma_dfer_jax.errors import UserError, listed
from mma_dfer_jax.inputs import Inputs
from mma_dfer_jax.layers import ENCODER_EPS, REMAT, LayerNorm, mae_linear, sine_positions

# Our path, the name in MAE's and AudioMAE's files, layout: of the decoder around its blocks.
AUTHORS = (
  ("embed", "decoder_embed", "linear"),
  ("mask_token", "mask_token", "keep"),
  ("pos_embed", "decoder_pos_embed", "keep"),
  ("norm", "decoder_norm", "norm"),
  ("pred", "decoder_pred", "linear"),
)
STREAMS = {"image": "frames", "audio": "sounds"}  # what an encoder of each stream sees


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
  """An encoder, a decoder, and how much is hidden; construction raises UserError with everything that does not fit."""

  stream: str  # "image" or "audio"
  inputs: Inputs  # of which the sizes of a frame, or of a spectrogram, count
  encoder: Any  # Config of an encoder
  decoder: Any
  mask_ratio: float  # share of the patches that are removed; MAE 0.75, AudioMAE 0.8
  norm_pix: bool  # whether each patch of the target is normalised; both published encoders

  def __post_init__(self):
    problems = []
    if self.stream not in STREAMS:
      raise UserError(f"model.stream={self.stream!r}: choose {' or '.join(STREAMS)}")
    if not hasattr(self.encoder, "grid"):
      raise UserError(
        f"model.encoder is {parts.place_of(self.encoder)}, which has no patches to remove: choose mae"
      )
    of_encoder = self.encoder.problems_with(self.stream, self.inputs)
    problems += [line.replace(f"model.{self.stream}.", "model.encoder.") for line in of_encoder]
    problems += [f"model.{name}.width={width} must be a multiple of 4, for its positions are sines and cosines of x and y"
                 for name, width in (("encoder", self.encoder.width), ("decoder", self.decoder.width)) if width % 4]  # fmt: skip
    if not problems:
      problems += self.decoder.problems_with(self.grid)
    if not 0 < self.mask_ratio < 1:
      problems.append(f"model.mask_ratio={self.mask_ratio} must lie between 0 and 1")
    elif not problems and not 0 < self.kept < self.patches:
      what = "keeps none" if not self.kept else "removes none"
      problems.append(
        f"model.mask_ratio={self.mask_ratio} {what} of the {self.patches} patches of one of the {STREAMS[self.stream]}"
      )
    if problems:
      raise listed("this autoencoder cannot be built", problems)

  @property
  def grid(self) -> tuple[int, int]:
    return self.encoder.grid(self.stream, self.inputs)

  @property
  def patches(self) -> int:  # L
    return self.grid[0] * self.grid[1]

  @property
  def kept(self) -> int:  # K, rounded down as in MAE
    return int(self.patches * (1 - self.mask_ratio))

  def tunable(self) -> tuple[str, ...]:
    """All but both tables of positions, as in MAE."""
    blocks = (f"decoder/blocks/(?:{pattern})" for pattern in self.decoder.tunable)
    return ("encoder/(?!pos_embed).*", "decoder/(?!pos_embed|blocks/).*", *blocks)

  def to_fields(self) -> dict[str, Any]:
    of_parts = {name: parts.fields_of(getattr(self, name)) for name in ("encoder", "decoder")}
    return {"stream": self.stream, "inputs": self.inputs.to_fields(), **of_parts, "mask_ratio": self.mask_ratio,
            "norm_pix": self.norm_pix}  # fmt: skip


def read_autoencoder(fields: Mapping[str, Any]) -> AutoencoderConfig:
  """The autoencoder that a config or a file describes; UserError with everything that is wrong with it."""
  values, problems = dict(fields), []
  known = {field.name for field in dataclasses.fields(AutoencoderConfig)}
  if wrong := sorted(values.keys() ^ known):
    raise UserError(
      f"an autoencoder has the fields {', '.join(sorted(known))}; missing or unknown: {', '.join(wrong)}"
    )
  try:
    values["inputs"] = Inputs(**parts.with_tuples(values["inputs"]))
  except (UserError, TypeError, AttributeError) as error:
    problems.append(f"inputs: {error}")
  for name in ("encoder", "decoder"):
    try:
      values[name] = parts.read(f"{name}s", values[name])
    except UserError as error:
      problems.append(f"model.{name}: {error}")
  if problems:
    raise listed("this autoencoder cannot be built", problems)
  return AutoencoderConfig(**values)


class Reconstruction(NamedTuple):
  """What an autoencoder makes of a batch."""

  latent: Float[Array, "B N D"]  # the encoder's tokens after its last norm, class token first
  predicted: Float[Array, "B L v"]
  target: Float[Array, "B L v"]
  removed: Float[Array, "B L"]  # 1: removed, 0: kept


class Decoder(nnx.Module):
  """Puts a learned token where a patch was removed, then blocks, then values. Source: `models_mae.py` of MAE."""

  def __init__(self, cfg: AutoencoderConfig, values: int, *, rngs: nnx.Rngs):
    width = cfg.decoder.width
    self.takes_class_token = cfg.decoder.takes_class_token
    self.embed = mae_linear(cfg.encoder.width, width, rngs=rngs)
    self.mask_token = nnx.Param(0.02 * rngs.params.normal((1, 1, width)))
    self.pos_embed = nnx.Param(jnp.asarray(sine_positions(cfg.grid, width))[None])
    self.blocks = cfg.decoder.build(cfg.grid, rngs=rngs)
    self.norm = LayerNorm(width, epsilon=ENCODER_EPS, rngs=rngs)
    self.pred = mae_linear(width, values, rngs=rngs)

  def __call__(
    self, latent: Float[Array, "B N D"], restore: Int[Array, "B L"], remat: str = "none"
  ) -> Float[Array, "B L v"]:
    """Values of all patches in row-major order.

    Args:
      latent: the encoder's tokens after its last norm, class token first.
      restore: for each patch, where it stands among the kept patches followed by the removed ones.
      remat: what is kept for the backward pass, one of `layers.REMAT`.
    """
    tokens, patches = self.embed(latent), restore.shape[1]
    b, n, e = tokens.shape
    masked = jnp.broadcast_to(self.mask_token[...], (b, 1 + patches - n, e))
    shuffled = jnp.concatenate([tokens[:, 1:], masked], axis=1)
    on_grid = jnp.take_along_axis(shuffled, restore[:, :, None], axis=1)
    tokens = jnp.concatenate([tokens[:, :1], on_grid], axis=1) + self.pos_embed[...]
    if not self.takes_class_token:
      tokens = tokens[:, 1:]
    layer = REMAT[remat](lambda block, x: block(x))
    for block in self.blocks:
      tokens = layer(block, tokens)
    return self.pred(self.norm(tokens))[:, -patches:]


class MaskedAutoencoder(nnx.Module):
  """The encoder sees the kept patches only; the decoder restores the others. Source: `models_mae.py` of MAE."""

  def __init__(self, cfg: AutoencoderConfig, *, rngs: nnx.Rngs):
    self.cfg = cfg
    self.encoder = cfg.encoder.build(cfg.stream, cfg.inputs, 0, rngs=parts.own(rngs, "encoder"))
    channels = 3 if cfg.stream == "image" else 1
    values = channels * cfg.encoder.patch_size**2
    self.decoder = Decoder(cfg, values, rngs=parts.own(rngs, "decoder"))

  def __call__(self, x: Array, noise: Float[Array, "L B"], remat: str = "none") -> Reconstruction:
    """Removes the patches with the highest noise of each example and restores them from the others.

    Args:
      x: frames (B, 1, H, W, 3), uint8 or float in [0, 1], or spectrograms (B, F, K) float.
      noise: uniform in [0, 1); its order decides which patches are kept, and in which order the encoder sees them.
      remat: what is kept for the backward pass, one of `layers.REMAT`.
    """
    values = self.patch_values(x)  # (B, L, v)
    shuffled = jnp.argsort(noise.T, axis=1)
    restore, kept = jnp.argsort(shuffled, axis=1), shuffled[:, : self.cfg.kept]
    positions = self.encoder.pos_embed[...]
    tokens = self.encoder.project(jnp.take_along_axis(values, kept[:, :, None], axis=1))
    tokens = tokens + positions[0, 1:][kept]
    first = jnp.broadcast_to(
      self.encoder.cls_token[...] + positions[:, :1], (len(tokens), 1, tokens.shape[2])
    )
    tokens = jnp.concatenate([first, tokens], axis=1)
    layer = REMAT[remat](lambda block, x: block(x))
    for block in self.encoder.blocks:
      tokens = layer(block, tokens)
    latent = self.encoder.norm(tokens)
    predicted = self.decoder(latent, restore, remat)
    wide = predicted.astype(jnp.promote_types(predicted.dtype, jnp.float32))
    return Reconstruction(latent, wide, self.target(values), (restore >= self.cfg.kept).astype(wide.dtype))

  def patch_values(self, x: Array) -> Float[Array, "B L v"]:
    """The values of each patch in the order (row in patch, column in patch, channel), patches in row-major order."""
    images, p = self.encoder.images(x), self.cfg.encoder.patch_size
    b, (rows, columns) = len(images), self.cfg.grid
    return images.reshape(b, rows, p, columns, p, -1).swapaxes(2, 3).reshape(b, rows * columns, -1)

  def target(self, values: Float[Array, "B L v"]) -> Float[Array, "B L v"]:
    """What the decoder is to predict: with `norm_pix` each patch without its own mean and deviation (n - 1)."""
    if not self.cfg.norm_pix:
      return values
    values = (
      values - values[:, :, :1]
    )  # so that a patch of one value gives zeros, whatever rounding does to its mean
    variance = values.var(axis=-1, keepdims=True, ddof=1)
    return (values - values.mean(axis=-1, keepdims=True)) / jnp.sqrt(variance + 1e-6)

  def losses(self, made: Reconstruction) -> Float[Array, "B"]:
    """Mean square error of each example, over its removed patches."""
    of_patches = ((made.predicted - made.target) ** 2).mean(axis=-1)
    return (of_patches * made.removed).sum(axis=1) / made.removed.sum(axis=1)

  def draw_noise(self, rngs: nnx.Rngs, examples: int) -> Float[Array, "L B"]:
    return rngs.masks.uniform((self.cfg.patches, examples))


def restored(values: Float[Array, "B L v"], made: Reconstruction, norm_pix: bool) -> Float[Array, "B L v"]:
  """The examples with predicted values where patches were removed, in the scale of the input, for pictures.

  With `norm_pix` a decoder predicts no brightness or contrast: each patch gets its own, as in MAE's pictures.
  """
  predicted = made.predicted
  if norm_pix:
    deviation = jnp.sqrt(values.var(axis=-1, keepdims=True, ddof=1) + 1e-6)
    predicted = predicted * deviation + values.mean(axis=-1, keepdims=True)
  return jnp.where(made.removed[:, :, None] > 0, predicted, values)


def on_grid(values: Float[Array, "B L v"], grid: tuple[int, int], patch: int) -> Float[Array, "B H W c"]:
  """Pictures of the values of their patches."""
  images = values.reshape(len(values), *grid, patch, patch, -1).swapaxes(2, 3)
  return images.reshape(len(values), grid[0] * patch, grid[1] * patch, -1)
