"""Mixup and CutMix: each clip of a batch is mixed with another one, and so is what it is trained to be.

Sources: Zhang et al. 2018 (arXiv 1710.09412), Yun et al. 2019 (1905.04899); timm's `Mixup` with one draw for a batch, as
MAE-DFER uses it.
"""

from collections.abc import Mapping
import zlib

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mma_dfer_jax.parts import Outputs
from mma_dfer_jax.training.objective import Objective, Statistics, Term, Terms

Batch = Mapping[str, jax.Array]
INPUTS = ("video", "spectrogram")
OTHER, SHARE = (
  "other ",
  "share",
)  # before the names of the other clip's targets; how much of a clip is its own


def mix(batch: Batch, key: jax.Array, mixup: float, cutmix: float) -> Batch:
  """Every clip with the one at the mirrored place of the batch; pixels are rounded to uint8 again.

  Mixup adds both, CutMix puts a box of the other's frames into all frames of one; of sounds the same share is added.

  Args:
    batch: all clips of a step.
    key: of this step.
    mixup, cutmix: of Beta(alpha, alpha), from which the share is drawn; 0: never. With both, each in half of the steps.
  Returns:
    The mixed batch, with the other clips' targets as "other …" and "share" (B,) float32.
  """
  key = jax.random.fold_in(key, zlib.crc32(b"mixing"))
  which, *of_share, of_place = jax.random.split(key, 4)
  boxes = jax.random.bernoulli(which) if mixup and cutmix else jnp.asarray(bool(cutmix))
  drawn = [
    jax.random.beta(k, alpha or 1.0, alpha or 1.0) for k, alpha in zip(of_share, (mixup, cutmix), strict=True)
  ]
  share = jnp.where(boxes, drawn[1], drawn[0])
  outside = _outside_box(of_place, share, batch["video"].shape[2:4])
  share = jnp.where(boxes, outside.mean(), share)
  own = jnp.where(boxes, outside, share)[:, :, None]  # of each pixel

  def mixed(x: jax.Array, own: jax.Array) -> jax.Array:
    return own * x.astype(jnp.float32) + (1 - own) * x[::-1].astype(jnp.float32)

  targets = {OTHER + name: value[::-1] for name, value in batch.items() if name not in INPUTS}
  video = jnp.round(mixed(batch["video"], own)).astype(batch["video"].dtype)
  sound = mixed(batch["spectrogram"], share).astype(batch["spectrogram"].dtype)
  shares = jnp.full(len(video), share, jnp.float32)
  return {**batch, "video": video, "spectrogram": sound, **targets, SHARE: shares}


def _outside_box(key: jax.Array, share: jax.Array, size: tuple[int, ...]) -> Float[Array, "H W"]:
  """0 in a box around a random place, cut off at the edges, of 1 - share of the area if none is cut off; 1 elsewhere."""
  inside = jnp.ones((), bool)
  for axis, (k, length) in enumerate(zip(jax.random.split(key), size, strict=True)):
    half = jnp.floor(length * jnp.sqrt(1 - share)) // 2
    distance = jnp.arange(length) - jax.random.randint(k, (), 0, length)
    inside &= jnp.expand_dims((-half <= distance) & (distance < half), 1 - axis)
  return 1.0 - inside


def terms_of(objective: Objective, outputs: Outputs, batch: Batch, shared: Statistics) -> Terms:
  """The terms of a loss; of a mixed batch each clip's own share of those of its targets, and the rest of the other's."""
  terms = objective.terms(outputs, batch, shared)
  if SHARE not in batch:
    return terms
  targets = {name.removeprefix(OTHER): value for name, value in batch.items() if name.startswith(OTHER)}
  others, own = objective.terms(outputs, {**batch, **targets}, shared), batch[SHARE]
  return {
    name: Term(own * term.losses + (1 - own) * others[name].losses, term.factor)
    for name, term in terms.items()
  }
