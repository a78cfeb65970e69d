"""Where the face and its five points are, learned beside the classes: MTCAE-DFER (arXiv 2412.18988, IJCB 2025).

Three decoders in a row, box, points, expression: the queries of each are the tokens of the one before, keys and values always
the temporal model's. Source: the authors' notebook (Peihao-Xiang/MTCAE-DFER, MIT), read; it reads VideoMAE's tokens.
"""

from collections.abc import Mapping
import dataclasses
from typing import ClassVar

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mma_dfer_jax import parts
from mma_dfer_jax.layers import ENCODER_EPS, Dropout, LayerNorm, TorchLinear, attend, attention_weights, gelu

POINTS = 5
TARGETS = ("unit", "standardised")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(parts.Part):
  """One block for each decoder; theirs has three."""

  tunable: tuple[str, ...] = ("(?!targets/).*",)
  width: int = 256  # of the tokens of all decoders, and of each head
  depth: int = 1  # blocks of each decoder; theirs: 3
  heads: int = 3
  mlp_dim: int = 512
  # Of the tokens read, of weights of attention, and after both layers of an MLP; theirs: 0.3.
  dropout: float = 0.0
  head_dropout: float = 0.0  # before the last layer of each head; theirs: 0.1
  weight: float = 1.5  # of the loss of the classes; theirs
  box_weight: float = 0.5  # of the loss of boxes; theirs
  landmarks_weight: float = 0.5  # of the loss of points; theirs
  # "unit": shares of the frame, as theirs; "standardised": over the deviation of the training targets, so that the losses
  # of a constant guess are 1 instead of about 1e-3.
  targets: str = "unit"
  FACES: ClassVar[bool] = True  # whether it learns from boxes and points of faces

  def problems(self) -> list[str]:
    found = super().problems()
    found += [f"{name}={value} must not be negative" for name, value in dataclasses.asdict(self).items()
              if isinstance(value, float) and value < 0]  # fmt: skip
    found += self.outside(dropout="[0, 1)", head_dropout="[0, 1)")
    if self.targets not in TARGETS:
      found.append(f"targets={self.targets!r}: choose one of {', '.join(TARGETS)}")
    return found

  @property
  def weights(self) -> dict[str, float]:
    """Of the terms of the loss: of all that concern the classes, and of each task."""
    return {"classes": self.weight, "box": self.box_weight, "landmarks": self.landmarks_weight}

  def numbers(self, batch: Mapping[str, Array]) -> dict[str, Float[Array, "B"]]:
    """For each task, how many numbers of each clip are known, by which errors are divided."""
    face, seen = batch["face_box"][..., 4], batch["landmarks"][..., 2]
    return {"box": 4 * face.sum(axis=1), "landmarks": 2 * seen.sum(axis=(1, 2))}

  def build(self, width: int, frames: int, num_classes: int, *, rngs: nnx.Rngs) -> "Cascade":
    return Cascade(self, width, frames, num_classes, rngs=rngs)


class Block(nnx.Module):
  """Queries attend to the encoded tokens, then an MLP with a GELU after each of its layers, as in the authors' notebook."""

  def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
    width, inner = cfg.width, cfg.heads * cfg.width
    self.heads, self.rate = cfg.heads, cfg.dropout
    self.norm1 = LayerNorm(width, epsilon=ENCODER_EPS, rngs=rngs)
    self.q, self.k, self.v = (TorchLinear(width, inner, rngs=rngs) for _ in range(3))
    self.out = TorchLinear(inner, width, rngs=rngs)
    self.norm2 = LayerNorm(width, epsilon=ENCODER_EPS, rngs=rngs)
    self.fc1 = TorchLinear(width, cfg.mlp_dim, rngs=rngs)
    self.fc2 = TorchLinear(cfg.mlp_dim, width, rngs=rngs)

  def __call__(
    self, queries: Float[Array, "B N P"], memory: Float[Array, "B N P"], drop: Dropout
  ) -> Float[Array, "B N P"]:
    def by_head(x: Array) -> Array:
      return x.reshape(*x.shape[:2], self.heads, -1).swapaxes(1, 2)

    q, k, v = by_head(self.q(self.norm1(queries))), by_head(self.k(memory)), by_head(self.v(memory))
    mixed = drop(attention_weights(q, k), self.rate) @ v if drop.acts(self.rate) else attend(q, k, v)
    queries = queries + self.out(mixed.swapaxes(1, 2).reshape(*queries.shape[:2], -1))
    hidden = drop(gelu(self.fc1(self.norm2(queries))), self.rate)
    return queries + drop(gelu(self.fc2(hidden)), self.rate)


class Decoder(nnx.Module):
  """Blocks, and a linear head on the mean of their tokens."""

  def __init__(self, cfg: Config, outputs: int, *, rngs: nnx.Rngs):
    self.norm = LayerNorm(cfg.width, epsilon=ENCODER_EPS, rngs=rngs)
    self.blocks = nnx.List(Block(cfg, rngs=rngs) for _ in range(cfg.depth))
    self.head_norm = LayerNorm(cfg.width, epsilon=ENCODER_EPS, rngs=rngs)
    self.head, self.rate = TorchLinear(cfg.width, outputs, rngs=rngs), cfg.head_dropout

  def __call__(
    self, tokens: Float[Array, "B N P"], queries: Float[Array, "B N P"], drop: Dropout
  ) -> tuple[Float[Array, "B N P"], Float[Array, "B O"]]:
    memory = self.norm(tokens)
    for block in self.blocks:
      queries = block(queries, memory, drop)
    return queries, self.head(drop(self.head_norm(queries.mean(axis=1)), self.rate))


class Targets(nnx.Module):
  """Mean and deviation of the training targets: frozen, set when a run begins, stored with it."""

  def __init__(self):
    self.box_mean, self.box_deviation = nnx.Param(jnp.zeros(4)), nnx.Param(jnp.ones(4))
    self.landmarks_mean = nnx.Param(jnp.zeros((POINTS, 2)))
    self.landmarks_deviation = nnx.Param(jnp.ones((POINTS, 2)))


class Cascade(nnx.Module):
  """Adds a gated expression head to the logits, and says boxes (B, T, 4) and points (B, T, 5, 2) as shares of the frame."""

  def __init__(self, cfg: Config, width: int, frames: int, num_classes: int, *, rngs: nnx.Rngs):
    self.cfg, self.frames, self.width = cfg, frames, width
    self.project = TorchLinear(width, cfg.width, use_bias=False, rngs=rngs)
    self.box = Decoder(cfg, 4 * frames, rngs=rngs)
    self.landmarks = Decoder(cfg, 2 * POINTS * frames, rngs=rngs)
    self.expression = Decoder(cfg, num_classes, rngs=rngs)
    self.gate = nnx.Param(jnp.zeros(1))
    self.targets = Targets() if cfg.targets == "standardised" else None

  def __call__(
    self, outputs: parts.Outputs, moments: Float[Array, "B S W"], drawn: Float[Array, "N B"] | None = None
  ) -> parts.Outputs:
    drop = Dropout(drawn)
    tokens = self.project(drop(moments, self.cfg.dropout))
    queries, box = self.box(tokens, tokens, drop)
    queries, landmarks = self.landmarks(tokens, queries, drop)
    _, expression = self.expression(tokens, queries, drop)
    box = box.reshape(-1, self.frames, 4)
    landmarks = landmarks.reshape(-1, self.frames, POINTS, 2)
    if self.targets:
      box = box * self.targets.box_deviation[...] + self.targets.box_mean[...]
      landmarks = landmarks * self.targets.landmarks_deviation[...] + self.targets.landmarks_mean[...]
    # Float32 as the classifier's, in any precision.
    logits = outputs.logits + jnp.tanh(self.gate[...].astype(outputs.logits.dtype)) * expression
    return outputs._replace(
      logits=logits.astype(outputs.logits.dtype),
      extra={**outputs.extra, "found_box": box, "found_landmarks": landmarks},
    )

  def draw(self, key: Array, clips: int) -> Float[Array, "N B"] | None:
    """What dropout goes by in one training step, enough for as many moments as frames; None: it is off."""
    c, moments = self.cfg, self.frames
    of_block = moments * (c.heads * moments + c.mlp_dim + c.width)
    numbers = 3 * c.width * bool(c.head_dropout)
    numbers += (moments * self.width + 3 * c.depth * of_block) * bool(c.dropout)
    return jax.random.uniform(key, (numbers, clips)) if numbers else None

  def errors(self, extra: Mapping[str, Array], batch: Mapping[str, Array]) -> dict[str, Float[Array, "B"]]:
    """For each task, the sums of squared errors over what is known of each clip."""
    found = {}
    face, seen = batch["face_box"][..., 4:], batch["landmarks"][..., 2:]
    pairs = {"box": (face, batch["face_box"][..., :4]), "landmarks": (seen, batch["landmarks"][..., :2])}
    for name, (known, target) in pairs.items():
      difference = extra[f"found_{name}"] - target
      if self.targets:
        difference = difference / getattr(self.targets, f"{name}_deviation")[...]
      found[name] = (known * difference**2).sum(axis=tuple(range(1, difference.ndim)))
    return found
