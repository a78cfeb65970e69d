"""MMA-DFER (arXiv 2404.09010): read `MmaDfer.__call__` beside the paper's overview figure.

Letters in shapes: B clips, T frames per clip, F spectrogram rows (10 ms each), K mel bins, N image tokens and
M audio tokens (1 class + patches + prompts), D width of the encoders, R of the Fusion Bottleneck,
W of the temporal transformer, P prompts, C classes.
"""

import dataclasses
import functools
from typing import Any

from einops import rearrange
from flax import nnx
import jax.numpy as jnp
from jaxtyping import Array, Float

from mma_dfer_jax.errors import listed
from mma_dfer_jax.vit import (
  REMAT,
  TORCH_EPS,
  LayerNorm,
  MaeEncoder,
  TransformerBlock,
  gelu,
  torch_linear,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
  """All sizes of MMA-DFER; the defaults are the paper's (ViT-B/16 encoders, 224 px, DFEW's 7 classes).

  Raises:
    UserError: on construction, with every size that does not fit.
  """

  num_classes: int = 7
  image_size: int = 224  # pixels, frames are square
  num_frames: int = 16  # per clip
  audio_shape: tuple[int, int] = (512, 128)  # spectrogram rows (10 ms) and mel bins
  patch_size: int = 16  # pixels, and rows and bins of the spectrogram
  width: int = 768
  depth: int = 12
  heads: int = 12
  mlp_dim: int = 3072
  drop_path: float = 0.1  # of the last block
  prompts_per_stage: int = 3
  layers_per_stage: int = 6
  bottleneck_width: int = 128
  temporal_width: int = 512
  temporal_depth: int = 1
  temporal_heads: int = 8
  temporal_head_dim: int = 64
  temporal_mlp_dim: int = 1024

  def __post_init__(self):
    sizes = {k: v for k, v in dataclasses.asdict(self).items() if k not in ("audio_shape", "drop_path")}
    sizes |= {f"audio_shape[{i}]": n for i, n in enumerate(self.audio_shape)}
    problems = [
      f"{k}={v} must be a positive whole number" for k, v in sizes.items() if type(v) is not int or v < 1
    ]
    if len(self.audio_shape) != 2:
      problems.append(f"audio_shape={self.audio_shape} must be (spectrogram rows, mel bins)")
    if not 0 <= self.drop_path < 1:
      problems.append(f"drop_path={self.drop_path} must lie in [0, 1)")
    divisors = {"image_size": "patch_size", "audio_shape[0]": "patch_size", "audio_shape[1]": "patch_size"}
    divisors |= {"width": "heads", "depth": "layers_per_stage"}
    if not problems:
      problems = [
        f"{k}={sizes[k]} must be a multiple of {d}={sizes[d]}"
        for k, d in divisors.items()
        if sizes[k] % sizes[d]
      ]
    if problems:
      raise listed("these model sizes do not fit", problems)

  @property
  def num_stages(self) -> int:
    return self.depth // self.layers_per_stage

  @property
  def num_prompts(self) -> int:
    return self.num_stages * self.prompts_per_stage


class ProgressivePrompts(nnx.Module):
  """Intra-modality adaptation: prompt tokens at the input, and an update added to a few of them per stage.

  Source: paper, "progressive prompts"; `learnable_prompts_init` and `learnable_prompts_progr` of the original.
  """

  def __init__(self, cfg: ModelConfig, *, rngs: nnx.Rngs):
    std = cfg.width**-0.5
    self.prompt_tokens = nnx.Param(std * rngs.params.normal((cfg.num_prompts, cfg.width)))
    self.update_tokens = nnx.Param(
      std * rngs.params.normal((cfg.num_stages, cfg.prompts_per_stage, cfg.width))
    )
    self.layers_per_stage = cfg.layers_per_stage

  def update(self, tokens: Float[Array, "B N D"], layer: int) -> Float[Array, "B N D"]:
    """Adds the update tokens of a stage to its own prompts, after the first layer of that stage only."""
    if layer % self.layers_per_stage:
      return tokens
    stage = layer // self.layers_per_stage
    num_stages, per_stage, _ = self.update_tokens.shape
    start = tokens.shape[1] - (num_stages - stage) * per_stage  # the prompts are the last tokens
    return tokens.at[:, start : start + per_stage].add(self.update_tokens[stage])


class FusionBottleneck(nnx.Module):
  """Cross-modal alignment: compress both streams, give each the other's summary, expand, gate, add.

  Every token takes part, class token and prompts included, in the means as well as in the sums; audio is given
  the image code before fusion. Gates start at 0, so that training starts from the untouched encoders.

  Source: paper, "Fusion Bottleneck"; original `temporal_pre`, `audio_proj_pre`, `temporal_att_post`, `all_gate`.
  """

  def __init__(self, cfg: ModelConfig, *, rngs: nnx.Rngs):
    self.image_down = torch_linear(cfg.width, cfg.bottleneck_width, rngs=rngs)
    self.image_norm = LayerNorm(cfg.bottleneck_width, epsilon=TORCH_EPS, rngs=rngs)
    self.image_up = torch_linear(cfg.bottleneck_width, cfg.width, rngs=rngs)
    self.image_gate = nnx.Param(jnp.zeros((1,)))
    self.audio_down = torch_linear(cfg.width, cfg.bottleneck_width, rngs=rngs)
    self.audio_norm = LayerNorm(cfg.bottleneck_width, epsilon=TORCH_EPS, rngs=rngs)
    self.audio_up = torch_linear(cfg.bottleneck_width, cfg.width, rngs=rngs)
    self.audio_gate = nnx.Param(jnp.zeros((1,)))

  def __call__(
    self, image: Float[Array, "BT N D"], audio: Float[Array, "B M D"], *, num_frames: int
  ) -> tuple[Float[Array, "BT N D"], Float[Array, "B M D"]]:
    image_code = self.image_norm(self.image_down(image))  # (B·T, N, R)
    audio_code = self.audio_norm(self.audio_down(audio))  # (B, M, R)
    image_summary = rearrange(image_code, "(b t) n r -> b (t n) r", t=num_frames).mean(axis=1)  # (B, R)
    audio_summary = jnp.repeat(audio_code.mean(axis=1), num_frames, axis=0)  # (B·T, R), clip-major
    image_update = gelu(self.image_up(image_code + audio_summary[:, None]))
    audio_update = gelu(self.audio_up(audio_code + image_summary[:, None]))
    image = image + jnp.tanh(self.image_gate[...]) * image_update
    audio = audio + jnp.tanh(self.audio_gate[...]) * audio_update
    return image, audio


def adapted_layer(
  image_block: TransformerBlock,
  audio_block: TransformerBlock,
  fusion: FusionBottleneck,
  image: Float[Array, "BT N D"],
  audio: Float[Array, "B M D"],
  image_scale: Float[Array, "2 BT"] | None,
  audio_scale: Float[Array, "2 B"] | None,
  *,
  num_frames: int,
) -> tuple[Float[Array, "BT N D"], Float[Array, "B M D"]]:
  """A block of each encoder and the Fusion Bottleneck between them; the scales are those of `drop_path`."""
  image = image_block(image, image_scale)  # ❄
  audio = audio_block(audio, audio_scale)
  return fusion(image, audio, num_frames=num_frames)  # 🔥


class JointAdaptation(nnx.Module):
  """Joint Adaptation Module: each frame's class token plus the sound's, projected to the temporal width.

  Source: paper; original `vision_proj`.
  """

  def __init__(self, cfg: ModelConfig, *, rngs: nnx.Rngs):
    self.proj = torch_linear(cfg.width, cfg.temporal_width, rngs=rngs)

  def __call__(
    self, image_cls: Float[Array, "B T D"], audio_cls: Float[Array, "B D"]
  ) -> Float[Array, "B T W"]:
    return self.proj(image_cls + audio_cls[:, None])


class MultimodalTemporalTransformer(nnx.Module):
  """Multimodal Temporal Transformer: a class token attends over the frames; there is no final norm.

  Source: paper; original `temporal_net` (its `norm2` never runs and is left out here).
  """

  def __init__(self, cfg: ModelConfig, *, rngs: nnx.Rngs):
    self.cls_token = nnx.Param(rngs.params.normal((1, 1, cfg.temporal_width)))
    self.pos_embed = nnx.Param(rngs.params.normal((1, 1 + cfg.num_frames, cfg.temporal_width)))
    self.blocks = nnx.List(
      TransformerBlock(
        cfg.temporal_width,
        cfg.temporal_heads,
        cfg.temporal_mlp_dim,
        head_dim=cfg.temporal_head_dim,
        qkv_bias=False,
        eps=TORCH_EPS,
        tanh_gelu=True,
        linear=torch_linear,
        rngs=rngs,
      )
      for _ in range(cfg.temporal_depth)
    )

  def __call__(self, joint: Float[Array, "B T W"]) -> Float[Array, "B W"]:
    cls = jnp.broadcast_to(self.cls_token[...], (joint.shape[0], 1, joint.shape[-1]))
    tokens = jnp.concatenate([cls, joint], axis=1) + self.pos_embed[...]
    for block in self.blocks:
      tokens = block(tokens)
    return tokens[:, 0]


class MmaDfer(nnx.Module):
  """MultiModal Adaptation for Dynamic Facial Expression Recognition.

  Two frozen MAE encoders run side by side; after each pair of blocks a Fusion Bottleneck lets them look at each
  other; progressive prompts adapt each of them; a transformer over time reads the joint frame features.
  """

  def __init__(self, cfg: ModelConfig, *, rngs: nnx.Rngs):
    sizes: dict[str, Any] = dict(
      patch_size=cfg.patch_size,
      width=cfg.width,
      depth=cfg.depth,
      heads=cfg.heads,
      mlp_dim=cfg.mlp_dim,
      num_prompts=cfg.num_prompts,
      drop_path=cfg.drop_path,
    )
    image_grid = (cfg.image_size // cfg.patch_size,) * 2
    audio_grid = (cfg.audio_shape[0] // cfg.patch_size, cfg.audio_shape[1] // cfg.patch_size)
    # Pixels in [0, 1] have ImageNet's mean and deviation, spectrograms AudioMAE's by their normalisation.
    self.image_encoder = MaeEncoder(image_grid, 3, input_mean=0.45, input_std=0.225, rngs=rngs, **sizes)
    self.audio_encoder = MaeEncoder(audio_grid, 1, input_mean=0.0, input_std=0.5, rngs=rngs, **sizes)
    self.image_prompts = ProgressivePrompts(cfg, rngs=rngs)
    self.audio_prompts = ProgressivePrompts(cfg, rngs=rngs)
    self.fusion = nnx.List(FusionBottleneck(cfg, rngs=rngs) for _ in range(cfg.depth))
    self.joint_adaptation = JointAdaptation(cfg, rngs=rngs)
    self.temporal = MultimodalTemporalTransformer(cfg, rngs=rngs)
    self.classifier = torch_linear(cfg.temporal_width, cfg.num_classes, rngs=rngs)
    self.video_shape = (cfg.num_frames, cfg.image_size, cfg.image_size, 3)
    self.audio_shape = cfg.audio_shape

  def __call__(
    self,
    video: Float[Array, "B T H W 3"],
    spectrogram: Float[Array, "B F K"],
    *,
    rngs: nnx.Rngs | None = None,
    remat: str = "none",
  ) -> Float[Array, "B C"]:
    """Logits of a batch of clips.

    Args:
      video: (B, T, H, W, 3) float in [0, 1], RGB, not normalised further.
      spectrogram: (B, F, K) float, log-mel energies normalised as AudioMAE's, 10 ms per row.
      rngs: source of `drop_path` randomness in training; None in evaluation.
      remat: what the forward pass keeps for the backward pass, one of `vit.REMAT`; it changes no number.
    Returns:
      (B, C) logits.
    Raises:
      ValueError: if the shapes are not those of the ModelConfig.
    """
    if video.shape[1:] != self.video_shape or spectrogram.shape[1:] != self.audio_shape:
      raise ValueError(
        f"the model takes video (B, {', '.join(map(str, self.video_shape))}) and spectrogram "
        f"(B, {', '.join(map(str, self.audio_shape))}), not {video.shape} and {spectrogram.shape}"
      )
    t = video.shape[1]
    frames = rearrange(video, "b t h w c -> (b t) h w c")
    image = self.image_encoder.embed(frames, self.image_prompts.prompt_tokens[...])  # (B·T, N, D)
    audio = self.audio_encoder.embed(
      spectrogram[..., None], self.audio_prompts.prompt_tokens[...]
    )  # (B, M, D)
    # Modules are arguments of a layer, so that the twelve are traced once.
    layers = zip(
      self.image_encoder.blocks,
      self.audio_encoder.blocks,
      self.fusion,
      self.image_encoder.drop_path_scales(rngs, image.shape[0]),
      self.audio_encoder.drop_path_scales(rngs, audio.shape[0]),
      strict=True,
    )
    layer = REMAT[remat](functools.partial(adapted_layer, num_frames=t))
    for number, (image_block, audio_block, fusion, image_scale, audio_scale) in enumerate(layers):
      image, audio = layer(image_block, audio_block, fusion, image, audio, image_scale, audio_scale)
      image = self.image_prompts.update(image, number)  # 🔥 update tokens, first layer of each stage
      audio = self.audio_prompts.update(audio, number)
    image_cls = rearrange(self.image_encoder.norm(image)[:, 0], "(b t) d -> b t d", t=t)
    audio_cls = self.audio_encoder.norm(audio)[:, 0]
    joint = self.joint_adaptation(image_cls, audio_cls)  # 🔥 (B, T, W)
    return self.classifier(self.temporal(joint))  # 🔥 (B, C)
