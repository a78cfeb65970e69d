"""Mixup and CutMix: what becomes of pixels, sound and loss."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mma_dfer_jax import parts
from mma_dfer_jax.training.mixing import mix, terms_of
from mma_dfer_jax.training.objective import Objective


def batch() -> dict[str, jax.Array]:
  rng = np.random.default_rng(0)
  video = rng.integers(0, 256, (4, 3, 20, 30, 3), np.uint8)
  sound = rng.normal(size=(4, 6, 5)).astype(np.float32)
  return {
    "video": jnp.asarray(video),
    "spectrogram": jnp.asarray(sound),
    "label": jnp.asarray([0, 1, 2, 3], jnp.int32),
  }


@functools.cache
def mixed(seed: int, mixup: float, cutmix: float) -> dict[str, np.ndarray]:
  return {name: np.asarray(value) for name, value in
          jax.jit(mix, static_argnums=(2, 3))(batch(), jax.random.key(seed), mixup, cutmix).items()}  # fmt: skip


def test_mixup_adds_the_mirrored_clip():
  found, before = mixed(0, 0.8, 0.0), {name: np.asarray(value) for name, value in batch().items()}
  share = found["share"][0]
  assert found["video"].dtype == np.uint8
  assert 0 < share < 1
  assert (found["share"] == share).all()
  for name, limit in (("video", 0.501), ("spectrogram", 1e-6)):
    one, other = before[name].astype(float), before[name][::-1].astype(float)
    np.testing.assert_allclose(found[name], share * one + (1 - share) * other, rtol=0, atol=limit)
  assert found["other label"].tolist() == [3, 2, 1, 0]


@pytest.mark.parametrize("seed", range(3))
def test_cutmix_puts_one_box_of_the_mirrored_clip_into_all_frames(seed):
  found, before = mixed(seed, 0.0, 1.0), np.asarray(batch()["video"])
  other = (found["video"] == before[::-1]).all(-1) & (found["video"] != before).any(-1)
  assert ((found["video"] == before).all(-1) | other).all()
  box = other.any((0, 1))
  rows, columns = box.any(1), box.any(0)
  assert (box == rows[:, None] * columns).all(), "a rectangle"
  np.testing.assert_allclose(found["share"], 1 - box.mean(), rtol=1e-6)


def test_with_both_each_is_drawn_and_the_same_step_draws_the_same():
  kinds = set()
  for seed in range(8):
    both = mixed(seed, 0.8, 1.0)
    equal = [name for name, one in (("mixup", mixed(seed, 0.8, 0.0)), ("cutmix", mixed(seed, 0.0, 1.0)))
             if (one["video"] == both["video"]).all()]  # fmt: skip
    assert len(equal) == 1
    kinds.add(equal[0])
  assert kinds == {"mixup", "cutmix"}


@pytest.mark.parametrize(
  ("name", "fields"), [("cross_entropy", {"label_smoothing": 0.1}), ("votes", {"mix": 0.7})]
)
def test_the_loss_is_that_of_mixed_targets(name, fields):
  """Both are linear in their targets, so that the sum can be written down."""
  loss = parts.read("losses", {"name": name, **fields})
  objective, before, hard = Objective(loss, (3, 3, 3, 3), 1), batch(), np.eye(4)
  target = 0.9 * hard + 0.1 / 4
  if name == "votes":
    votes = np.array(
      [[10, 0, 0, 0], [3, 4, 3, 0], [0, 0, 9, 1], [0, 0, 0, 0]], np.uint8
    )  # of the last nobody was asked
    before |= {"votes": jnp.asarray(votes)}
    target = np.where(votes.any(1, keepdims=True), 0.7 * votes / 10 + 0.3 * hard, hard)
  logits = jnp.asarray(np.random.default_rng(1).normal(size=(4, 4)), jnp.float32)
  shared = jax.tree.map(jnp.asarray, objective.whole(before, 0, objective.statistics))
  found = mix(before, jax.random.key(0), 0.8, 0.0)
  (of_mixed,), (alone,) = (
    terms_of(objective, parts.Outputs(logits), one, shared).values() for one in (found, before)
  )
  share, log_p = found["share"][0], jax.nn.log_softmax(logits)
  np.testing.assert_allclose(
    of_mixed.losses, -((share * target + (1 - share) * target[::-1]) * log_p).sum(-1), rtol=1e-5
  )
  np.testing.assert_allclose(alone.losses, -(target * log_p).sum(-1), rtol=1e-5)
