"""A soft mask over frames: those count more in which something moves, and which are unlike the frames before.

After AdaTosk (arXiv 2502.21004), of which neither code nor equations can be had: this is our reading, at the level of frames.
Its other branch, which reconstructs masked pixels, is left out. With `keep` the model goes on with some frames alone.
"""

import dataclasses
from typing import Any, ClassVar

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np

from mma_dfer_jax import parts
from mma_dfer_jax.inputs import Inputs

FORMS = ("soft", "bias")
START = {"a": 1.0, "b": 2.0, "c": 1.0, "e": 2.0, "g": 0.0}  # g = 0: every frame counts alike
UNDER_ROOT, VARIANCE = 1e-12, 1e-6  # keep gradients of still clips finite
TOO_FEW = "fewer than 3 frames always count alike"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(parts.Part):
  """Weighs all frames and drops none."""

  form: str = "soft"  # joint features times the weights; "bias": attention to each frame plus their logarithm
  keep: int | float = 0.0  # frames that the model goes on with after layer `after`; below 1 a share; 0: all
  after: int | float = 1 / 3  # layers that see all frames; below 1 a share of all layers
  # Frames. Of two, each is as far from the other and as like it: both weights are always 1.
  FEWEST: ClassVar[int] = 3

  def problems(self) -> list[str]:
    found = super().problems() + self.outside(keep="[0, inf)", after="[0, inf)")
    if self.form not in FORMS:
      found.append(f"form={self.form!r}: choose one of {', '.join(FORMS)}")
    if self.after == 0:
      found.append(
        "after=0: before the first layer there are only pixels, which do not say what frames are worth"
      )
    if self.keep in range(1, self.FEWEST):
      found.append(f"keep={self.keep:g}: {TOO_FEW}; keep at least {self.FEWEST}, or 0 for all")
    for name in ("keep", "after"):
      if type(value := getattr(self, name)) is float and value > 1 and not value.is_integer():
        found.append(f"{name}={value}: give a whole number, or a share below 1")
    return found

  def settled(self, frames: int, layers: int) -> "Config":
    """The same with numbers of frames and layers in place of shares."""
    keep, after = self._numbers(frames, layers)
    return dataclasses.replace(self, keep=keep, after=after)

  def _numbers(self, frames: int, layers: int) -> tuple[int, int]:
    """`keep` and `after`; a share of the layers leaves at least one before and after, as far as there are two."""
    keep = int(self.keep * frames + 0.5) if self.keep < 1 else int(self.keep)
    after = max(1, min(int(self.after * layers + 0.5), layers - 1)) if self.after < 1 else int(self.after)
    return keep or int(self.keep > 0), after

  def problems_with(self, image: Any, temporal: Any, inputs: Inputs, layers: int) -> list[str]:  # type: ignore[override]
    if not image.depth:
      return ["model.frame_mask=soft weighs frames, but model.image is none: choose frame_mask=none"]
    found, frames = [], inputs.num_frames
    keep, after = self._numbers(frames, layers)
    if not image.problems_with("image", inputs):
      encoder = nnx.eval_shape(lambda: image.build("image", inputs, 0, rngs=nnx.Rngs(0)))
      name = parts.place_of(image).partition("/")[2]
      if not frames == encoder.views == encoder.moments:
        found.append(
          f"model.frame_mask=soft weighs frames, and model.image={name} reads none by itself: choose frame_mask=none"
        )
    if self.form == "bias" and not getattr(temporal, "ATTENDS", True):
      found.append(
        "model.frame_mask.form=bias changes attention, of which model.temporal has none: choose form=soft"
      )
    if frames < self.FEWEST:
      found.append(
        f"model.frame_mask=soft with inputs.num_frames={frames}: {TOO_FEW}; choose frame_mask=none"
      )
    elif 0 < keep < self.FEWEST:
      found.append(
        f"model.frame_mask.keep={self.keep:g} of inputs.num_frames={frames} is {keep}, and {TOO_FEW}"
      )
    if keep > frames:
      found.append(f"model.frame_mask.keep={keep} must be at most inputs.num_frames={frames}")
    if keep and layers < 2:
      found.append(
        "model.frame_mask.keep leaves frames out between two layers, and this model has one: keep all"
      )
    elif after >= layers > 1:
      found.append(f"model.frame_mask.after={after} must be below {layers}, the model's number of layers")
    return found

  def build(self, frames: int, *, rngs: nnx.Rngs) -> "SoftMask":
    return SoftMask(self, frames)


class SoftMask(nnx.Module):
  """Five scalars. Letters as in the equations: a frame moves (a, b), was not there before (c, e); g opens the mask."""

  def __init__(self, cfg: Config, frames: int):
    self.form, self.frames = cfg.form, frames
    self.keep = int(cfg.keep) or frames
    self.after = int(cfg.after) if self.keep < frames else 0
    self.a, self.b, self.c, self.e, self.g = (nnx.Param(jnp.full((), value)) for value in START.values())

  def importance(self, image: Float[Array, "B S D"]) -> Float[Array, "B S"]:
    """m, between 0 and 1, of each frame among these."""
    frames = image.astype(jnp.promote_types(image.dtype, jnp.float32))
    moved = _normalised(_distance(frames))
    known = _normalised(_similarity(frames))
    of_motion = jax.nn.sigmoid(self.a[...] * moved + self.b[...])
    return of_motion * jax.nn.sigmoid(self.e[...] - self.c[...] * known)

  def choose(self, image: Float[Array, "B T D"]) -> Int[Array, "B k"]:
    """Places of the `keep` most important frames of each clip, in the order of time; of equal ones the earlier."""
    best = jax.lax.top_k(self.importance(image), self.keep)[1]
    return -jax.lax.top_k(-best, self.keep)[0]

  def __call__(
    self, image: Float[Array, "B S D"], joint: Float[Array, "B S W"], places: Int[Array, "B S"] | None = None
  ) -> tuple[Float[Array, "B S W"], Float[Array, "B S"] | None, dict[str, Array]]:
    opened = 1 - jnp.tanh(self.g[...]) * (1 - self.importance(image))
    weights = opened.shape[1] * opened / opened.sum(axis=1, keepdims=True)
    of_all = weights
    if places is not None:  # frames that are not kept have 0
      here = places[:, :, None] == np.arange(self.frames)
      of_all = (here.astype(weights.dtype) * weights[:, :, None]).sum(axis=1)
    said = {"frame_weights": of_all}
    if self.form == "bias":
      return joint, jnp.log(weights), said
    return joint * weights[:, :, None].astype(joint.dtype), None, said


def _distance(frames: Float[Array, "B S D"]) -> Float[Array, "B S"]:
  """d: how far each frame is from the one before; the first gets the second's."""
  steps = frames[:, 1:] - frames[:, :-1]
  moved = jnp.sqrt((steps * steps).sum(axis=-1) + UNDER_ROOT)
  return jnp.concatenate([moved[:, :1], moved], axis=1)


def _similarity(frames: Float[Array, "B S D"]) -> Float[Array, "B S"]:
  """s: mean cosine between each frame and all before it; the first gets the mean of the others."""
  number = frames.shape[1]
  unit = frames / jnp.sqrt((frames * frames).sum(axis=-1, keepdims=True) + UNDER_ROOT)
  # Cosines within a clip are near 1: their digits count.
  cosines = jnp.einsum("bsd,bud->bsu", unit, unit, precision=jax.lax.Precision.HIGHEST)
  before = np.tril(np.ones((number, number)), -1) / np.arange(number).clip(1)[:, None]
  known = (cosines * before.astype(cosines.dtype)).sum(axis=-1)[:, 1:]
  return jnp.concatenate([known.mean(axis=1, keepdims=True), known], axis=1)


def _normalised(x: Float[Array, "B S"]) -> Float[Array, "B S"]:
  """z: over the frames of a clip."""
  centred = x - x.mean(axis=1, keepdims=True)
  return centred / jnp.sqrt((centred * centred).mean(axis=1, keepdims=True) + VARIANCE)
