"""Fusion Bottleneck: compress both streams, add the other's summary to each, expand, gate, add."""

import dataclasses
import re

from einops import rearrange
from flax import nnx
import jax.numpy as jnp
from jaxtyping import Array, Float

from mma_dfer_jax import parts
from mma_dfer_jax.layers import TORCH_EPS, LayerNorm, TorchLinear, gelu

AUTHORS = (  # the original keeps the sound's compression in the image encoder
  ("image_down", "image_encoder.temporal_pre.{}", "linear"),
  ("image_norm", "image_encoder.temporal_pre_norm.{}", "norm"),
  ("audio_down", "image_encoder.audio_proj_pre.{}.0", "linear"),
  ("audio_norm", "image_encoder.audio_proj_pre.{}.1", "norm"),
  ("image_up", "image_encoder.temporal_att_post.{}.0", "linear"),
  ("image_gate", "image_encoder.all_gate.{}", "keep"),
  ("audio_up", "audio_model.temporal_att_post.{}.0", "linear"),
  ("audio_gate", "audio_model.all_gate.{}", "keep"),
)
DIRECTIONS = ("both", "to_image", "to_audio", "own")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(parts.Part):
  """The paper's: in every layer, in both directions."""

  width: int = 128  # R, of the compressed tokens
  layers: str = "all"  # or "last 6", "first 3", "even", or numbers from 0: "0,2,4"
  direction: str = "both"  # or to_image, to_audio; own: each stream gets only its own code (no exchange)

  def problems(self) -> list[str]:
    found = super().problems()
    if self.direction not in DIRECTIONS:
      found.append(f"direction={self.direction!r}: choose one of {', '.join(DIRECTIONS)}")
    if not re.fullmatch(r"all|even|(first|last) [1-9]\d*|\d+(,\d+)*", str(self.layers)):
      found.append(f'layers={self.layers!r}: give all, even, "last 6", "first 3", or numbers such as "0,2,4"')
    return found

  def problems_with(self, layers: int) -> list[str]:  # type: ignore[override]
    word, _, number = self.layers.partition(" ")
    last = int(number) - 1 if number else max(map(int, re.findall(r"\d+", word)), default=0)
    return [f"model.fusion.layers={self.layers!r}, but the model has {layers} layers"] * (last >= layers)

  def acts_in(self, layer: int, layers: int) -> bool:
    """Whether there is a bottleneck in one of the model's layers."""
    word, _, number = self.layers.partition(" ")
    if number:
      return layer < int(number) if word == "first" else layer >= layers - int(number)
    return word == "all" or (layer % 2 == 0 if word == "even" else str(layer) in word.split(","))

  def build(self, image: parts.Encoder, audio: parts.Encoder, layer: int, layers: int, *, rngs: nnx.Rngs):
    acts = self.acts_in(layer, layers)
    return FusionBottleneck(self, image, audio, rngs=rngs) if acts else parts.Apart()


class FusionBottleneck(nnx.Module):
  """Cross-modal alignment. Source: paper; original `temporal_pre`, `audio_proj_pre`, `temporal_att_post`, `all_gate`.

  Every token, class token and prompts included, enters the means and the sums; audio gets the image code from before the
  fusion. Gates start at 0, so that training starts from the untouched encoders. An absent stream, or one that nothing
  flows to, has no parameters for it.
  """

  def __init__(self, cfg: Config, image: parts.Encoder, audio: parts.Encoder, *, rngs: nnx.Rngs):
    self.views = image.views
    self.exchange = cfg.direction != "own"

    def half(encoder: parts.Encoder, name: str):
      """(down, norm, up, gate) of a stream; None for what it does not need."""
      one_way = cfg.direction in ("to_image", "to_audio")
      if not encoder.width or (one_way and not (image.width and audio.width)):
        return None, None, None, None
      draws = parts.own(rngs, name)
      down = TorchLinear(encoder.width, cfg.width, rngs=draws)
      norm = LayerNorm(cfg.width, epsilon=TORCH_EPS, rngs=draws)
      if one_way and cfg.direction != f"to_{name}":
        return down, norm, None, None
      return down, norm, TorchLinear(cfg.width, encoder.width, rngs=draws), nnx.Param(jnp.zeros((1,)))

    self.image_down, self.image_norm, self.image_up, self.image_gate = half(image, "image")
    self.audio_down, self.audio_norm, self.audio_up, self.audio_gate = half(audio, "audio")

  def __call__(
    self, image: Float[Array, "BV N D"] | None, audio: Float[Array, "B M E"] | None
  ) -> tuple[Float[Array, "BV N D"] | None, Float[Array, "B M E"] | None]:
    image_code = self.image_norm(self.image_down(image)) if self.image_down else None  # (B·V, N, R)
    audio_code = self.audio_norm(self.audio_down(audio)) if self.audio_down else None  # (B, M, R)
    to_image, to_audio = image_code, audio_code
    if self.exchange and image_code is not None and audio_code is not None:
      image_summary = rearrange(image_code, "(b v) n r -> b (v n) r", v=self.views).mean(axis=1)  # (B, R)
      audio_summary = jnp.repeat(audio_code.mean(axis=1), self.views, axis=0)  # (B·V, R), clip-major
      to_image = image_code + audio_summary[:, None]
      to_audio = audio_code + image_summary[:, None]
    if image is not None and self.image_up:
      image = image + jnp.tanh(self.image_gate[...]) * gelu(self.image_up(to_image))
    if audio is not None and self.audio_up:
      audio = audio + jnp.tanh(self.audio_gate[...]) * gelu(self.audio_up(to_audio))
    return image, audio
