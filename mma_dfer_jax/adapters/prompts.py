"""Progressive prompts: tokens beside the patches; each stage adds an update to its own prompts."""

import dataclasses

from flax import nnx
from jaxtyping import Array, Float

from mma_dfer_jax import parts

AUTHORS = (
  ("prompt_tokens", "learnable_prompts_init", "keep"),
  ("update_tokens", "learnable_prompts_progr.{}", "stack"),  # one tensor for each stage
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(parts.Part):
  """The paper's: two stages of six layers, three prompts each."""

  prompts_per_stage: int = 3  # of each stream
  layers_per_stage: int = 6  # divides the number of layers
  progressive: bool = True  # False: static prompts, without an update in later stages

  def problems_with(self, layers: int) -> list[str]:  # type: ignore[override]
    per_stage = f"model.prompts.layers_per_stage={self.layers_per_stage}"
    unfit = layers % self.layers_per_stage
    return [f"the {layers} layers must be a multiple of {per_stage}"] if unfit else []

  def count(self, layers: int) -> int:
    """Prompts of one stream."""
    return layers // self.layers_per_stage * self.prompts_per_stage

  def build(self, width: int, layers: int, *, rngs: nnx.Rngs) -> "ProgressivePrompts":
    return ProgressivePrompts(self, width, layers, rngs=rngs)


class ProgressivePrompts(nnx.Module):
  """Intra-modality adaptation. Source: paper; original `learnable_prompts_init`, `learnable_prompts_progr`."""

  def __init__(self, cfg: Config, width: int, layers: int, *, rngs: nnx.Rngs):
    std, stages = width**-0.5, layers // cfg.layers_per_stage
    self.prompt_tokens = nnx.Param(std * rngs.params.normal((cfg.count(layers), width)))
    updates = std * rngs.params.normal((stages, cfg.prompts_per_stage, width))
    self.update_tokens = nnx.Param(updates) if cfg.progressive else None
    self.layers_per_stage = cfg.layers_per_stage

  @property
  def tokens(self) -> Float[Array, "P D"]:
    return self.prompt_tokens[...]

  def update(self, tokens: Float[Array, "BV N D"], layer: int) -> Float[Array, "BV N D"]:
    """Adds the update tokens of a stage to its own prompts, only after the first layer of that stage."""
    if self.update_tokens is None or layer % self.layers_per_stage:
      return tokens
    stage = layer // self.layers_per_stage
    num_stages, per_stage, _ = self.update_tokens.shape
    start = tokens.shape[1] - (num_stages - stage) * per_stage  # the prompts are the last tokens
    return tokens.at[:, start : start + per_stage].add(self.update_tokens[stage])
