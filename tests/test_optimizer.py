"""Learning rates and decay as MAE-DFER's recipe has them; off, the optimizer is the original's."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mma_dfer_jax.config import default_config
from mma_dfer_jax.training.check import problems_of_values
from mma_dfer_jax.training.state import by_step, layer_scale, make_optimizer


def test_each_step_has_its_rate():
  """By hand: five epochs of four steps, the first two rise."""
  rate = by_step(1e-3, 5, 4, warmup_epochs=2, start=1e-6, end=1e-5)
  rising = np.linspace(1e-6, 1e-3, 8)
  falling = 1e-5 + 0.5 * (1e-3 - 1e-5) * (1 + np.cos(np.pi * np.arange(12) / 12))
  found = [float(rate(step)) for step in range(20)]
  np.testing.assert_allclose(found, [*rising, *falling], rtol=2e-6)
  np.testing.assert_allclose(
    by_step(1e-3, 2, 3)(jnp.arange(6)), 5e-4 * (1 + np.cos(np.pi * np.arange(6) / 6)), rtol=2e-6
  )


# Eighteen groups of sixteen blocks, as MAE-DFER numbers them.
@pytest.mark.parametrize(("path", "power"), [
  ("image_encoder/patch_embed/kernel", 17), ("image_encoder/pos_embed", 17), ("image_encoder/cls_token", 17),
  ("image_encoder/blocks/0/mlp/fc1/kernel", 16), ("image_encoder/blocks/15/norm2/scale", 1),
  ("image_encoder/fc_norm/scale", 0), ("image_encoder/region_tokens", 0), ("classifier/kernel", 0),
  ("audio_encoder/blocks/1/norm1/bias", 1), ("audio_encoder/patch_embed/bias", 3), ("temporal/blocks/0/norm1/bias", 0),
])  # fmt: skip
def test_the_rate_falls_from_block_to_block(path, power):
  keys = tuple(int(part) if part.isdecimal() else part for part in path.split("/"))
  assert layer_scale(keys, {"image_encoder": 16, "audio_encoder": 2}, 0.75) == pytest.approx(0.75**power)


def state(value: float) -> nnx.State:
  paths = [("image_encoder", "blocks", 0, "kernel"), ("image_encoder", "blocks", 0, "bias"), ("image_encoder", "region_tokens"),
           ("classifier", "kernel")]  # fmt: skip
  return nnx.from_flat_state((path, nnx.Param(jnp.full((2, 2), value))) for path in paths)


def test_steps_are_scaled_and_only_kernels_decay():
  how = {"kernels_only": True, "depths": {"image_encoder": 2}, "layer_decay": 0.5}
  weights, gradients = state(2.0), state(3.0)

  def stepped(tx: optax.GradientTransformation) -> dict:
    updates, _ = tx.update(gradients, tx.init(weights), weights)
    return {"/".join(map(str, path)): float(v[...][0, 0]) for path, v in nnx.to_flat_state(updates)}

  # The first step of Adam is the sign of the gradient.
  assert stepped(make_optimizer(lambda _: 0.1, 0.25, **how)) == pytest.approx({
    "image_encoder/blocks/0/kernel": -0.1 * (1 + 0.5) * 0.25, "image_encoder/blocks/0/bias": -0.1 * 0.25,
    "image_encoder/region_tokens": -0.1, "classifier/kernel": -0.1 * (1 + 0.5),
  }, rel=1e-5)  # fmt: skip
  assert stepped(make_optimizer(lambda _: 0.1, 0.25)) == pytest.approx(
    dict.fromkeys(stepped(make_optimizer(lambda _: 0.1, 0.0)), -0.15), rel=1e-5
  )
  plain = optax.adamw(lambda _: 0.1, weight_decay=0.25)
  assert jax.tree.structure(make_optimizer(lambda _: 0.1, 0.25).init(weights)) == jax.tree.structure(
    plain.init(weights)
  )


def test_wrong_values_are_named():
  c = default_config()
  c.data.data_dir = "somewhere"
  assert problems_of_values(c) == []
  c.schedule, c.decayed, c.layer_decay, c.warmup_epochs, c.min_learning_rate = "steps", "some", 1.5, 25, 1.0
  problems = "\n".join(problems_of_values(c))
  for words in ("schedule='steps': choose epoch or step", "decayed='some': choose all or kernels", "layer_decay=1.5 must",
                "warmup_epochs=25 must lie from 0 to below num_epochs=25", "min_learning_rate=1.0 must",
                "warmup_epochs=25 needs schedule=step"):  # fmt: skip
    assert words in problems
