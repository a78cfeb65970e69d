"""The landmark graph and the cascade: golden numbers in float64, sizes, and a start at the model without."""

from conftest import GOLDEN
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mma_dfer_jax import parts
from mma_dfer_jax.landmarks import graph
from mma_dfer_jax.parameters import flat_params


@pytest.fixture
def golden(float64):
  return lambda name: dict(np.load(GOLDEN / f"{name}.npz"))


def filled(module, values):
  """The graph definition and the state of a module with given values by path."""
  for path, variable in flat_params(nnx.state(module)).items():
    variable.set_value(jnp.asarray(values[path]).reshape(variable.shape))
  return nnx.split(module)


def assert_gradients(found, wanted):
  for path, variable in flat_params(found).items():
    np.testing.assert_allclose(
      np.ravel(variable[...]), np.ravel(wanted[path]), atol=1e-10, rtol=0, err_msg=path
    )


def test_the_graph_token_in_float64(golden):
  g = golden("graph_token")
  np.testing.assert_allclose(graph.adjacency(), g["adjacency"], atol=1e-15)
  np.testing.assert_allclose(graph.normalise_points(jnp.asarray(g["landmarks"])), g["normalised"], atol=1e-12)
  names = {"layer1/kernel": "w1", "layer1/bias": "b1", "layer2/kernel": "w2", "layer2/bias": "b2", "out/kernel": "w3",
           "out/bias": "b3", "gate": "gate"}  # fmt: skip
  module = parts.read("landmarks", {"name": "graph", "width": 5}).build(4, 3, 3, rngs=nnx.Rngs(0))
  graphdef, state = filled(module, {path: g[f"w/{name}"] for path, name in names.items()})
  seen = np.broadcast_to(g["has_face"][..., None, None], (*g["landmarks"].shape[:3], 1))
  given = jnp.concatenate([g["landmarks"], seen], axis=-1)
  np.testing.assert_allclose(
    nnx.merge(graphdef, state).tokens(jnp.asarray(g["landmarks"])), g["token"], atol=1e-10
  )

  def run(state):
    joint = nnx.merge(graphdef, state)(jnp.asarray(g["joint"]), given)
    return (joint * g["cotangent"]).sum(), joint

  gradients, joint = jax.grad(run, has_aux=True)(state)
  np.testing.assert_allclose(joint, g["joint_out"], atol=1e-10)
  assert_gradients(gradients, {path: g[f"grad/{name}"] for path, name in names.items()})


def cascade(g, **changes):
  config = parts.read("auxiliary", {"name": "cascade", "width": 6, "depth": 2, "mlp_dim": 12, **changes})
  module = config.build(8, 4, 7, rngs=nnx.Rngs(0))
  return filled(
    module, {path.removeprefix("w/"): value for path, value in g.items() if path.startswith("w/")}
  )


def test_the_cascade_in_float64(golden):
  g = golden("cascade")
  graphdef, state = cascade(g)
  face = g["has_face"][..., None].astype(float)
  batch = {"face_box": jnp.concatenate([g["box"], face], axis=-1),
           "landmarks": jnp.concatenate([g["landmarks"], np.repeat(face[..., None], 5, axis=2)], axis=-1)}  # fmt: skip

  def run(state, tokens, logits):
    module = nnx.merge(graphdef, state)
    outputs = module(parts.Outputs(logits), tokens)
    ce = -jax.nn.log_softmax(outputs.logits)[jnp.arange(2), g["labels"]].mean()
    errors, numbers = module.errors(outputs.extra, batch), module.cfg.numbers(batch)
    box, landmarks = (errors[name].sum() / numbers[name].sum() for name in ("box", "landmarks"))
    return 1.5 * ce + 0.5 * box + 0.5 * landmarks, (outputs, ce, box, landmarks)

  arguments = state, jnp.asarray(g["tokens"]), jnp.asarray(g["base_logits"])
  (total, found), gradients = jax.value_and_grad(run, argnums=(0, 1, 2), has_aux=True)(*arguments)
  outputs, *losses = found
  for value, name in zip([total, *losses], ("total", "ce", "loss_box", "loss_landmarks"), strict=True):
    np.testing.assert_allclose(value, g[name], atol=1e-10, err_msg=name)
  for value, name in (
    (outputs.extra["found_box"], "pred_box"),
    (outputs.extra["found_landmarks"], "pred_landmarks"),
    (outputs.logits, "logits"),
    (gradients[1], "grad_tokens"),
    (gradients[2], "grad_base_logits"),
  ):
    np.testing.assert_allclose(value, g[name], atol=1e-10, err_msg=name)
  assert_gradients(gradients[0], {path[5:]: value for path, value in g.items() if path.startswith("grad/")})


def test_standardised_targets_change_units_not_answers(golden):
  """Losses are over the training targets' deviation; what the model says stays in shares of the frame."""
  g = golden("cascade")
  plain = nnx.merge(*cascade(g))
  mean, deviation = {"box": 0.3, "landmarks": 0.4}, {"box": 0.1, "landmarks": 0.2}
  targets = {f"w/targets/{name}_{what}": np.full((4,) if name == "box" else (5, 2), of[name])
             for name in mean for what, of in (("mean", mean), ("deviation", deviation))}  # fmt: skip
  scaled = nnx.merge(*cascade(g | targets, targets="standardised"))
  outputs = [
    one(parts.Outputs(jnp.asarray(g["base_logits"])), jnp.asarray(g["tokens"])) for one in (plain, scaled)
  ]
  for name in mean:
    raw, said = (one.extra[f"found_{name}"] for one in outputs)
    np.testing.assert_allclose(said, raw * deviation[name] + mean[name], atol=1e-12)
  guess = {f"found_{name}": jnp.full_like(outputs[0].extra[f"found_{name}"], mean[name]) for name in mean}
  face = np.ones((2, 4, 1))
  batch = {"face_box": jnp.concatenate([np.full((2, 4, 4), 0.3 + 0.1), face], axis=-1),
           "landmarks": jnp.concatenate([np.full((2, 4, 5, 2), 0.4 - 0.2), np.ones((2, 4, 5, 1))], axis=-1)}  # fmt: skip
  for name, errors in scaled.errors(guess, batch).items():  # each one deviation away from the guess
    np.testing.assert_allclose(errors / scaled.cfg.numbers(batch)[name], 1.0)


def test_sizes_and_the_start_at_the_model_without():
  """Counts of the specification, at the paper's 16 frames, 7 classes, W = 512."""

  def built(kind, **fields):
    config = parts.read(kind, fields)
    sizes = (512, 16, 16) if kind == "landmarks" else (512, 16, 7)
    return nnx.eval_shape(lambda: config.build(*sizes, rngs=nnx.Rngs(0)))

  def count(module):
    return sum(variable.size for variable in flat_params(nnx.state(module)).values())

  assert count(built("auxiliary", name="cascade", depth=3)) == 9_669_864
  assert count(built("auxiliary", name="cascade")) == 3_352_296
  assert count(built("landmarks", name="graph")) == 37_633
