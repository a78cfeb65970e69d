"""The landmark graph and the cascade: golden numbers in float64, sizes, and a start at the model without."""

import functools
from types import SimpleNamespace

from conftest import GOLDEN
from flax import nnx
import jax
import jax.numpy as jnp
from model_folders import model_of, random_parameters, with_layers
import numpy as np
import pytest

from mma_dfer_jax import parts
from mma_dfer_jax.landmarks import graph
from mma_dfer_jax.layers import Dropout
from mma_dfer_jax.parameters import flat_params, parameter_shapes
from mma_dfer_jax.training.objective import Objective, total


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


@pytest.mark.parametrize("name", ["transformer", "mean"])
def test_the_graph_as_one_token_more(float64, name):
  """As a temporal model of one moment more, whose position is the token's own; the last clip has no frame with all points."""
  sizes = {"width": 8, "depth": 2, "heads": 2, "head_dim": 4, "mlp_dim": 8} if name == "transformer" else {}
  config, rng = parts.read("temporal", {"name": name, **sizes}), np.random.default_rng(0)
  temporal, longer = (config.build(moments, rngs=nnx.Rngs(0)) for moments in (3, 4))
  module = parts.read("landmarks", {"name": "graph", "width": 5, "form": "token"}).build(
    8, 3, 6, rngs=nnx.Rngs(0)
  )
  joint, points = jnp.asarray(rng.normal(size=(3, 3, 8))), rng.random((3, 6, 5, 3))
  points[..., 2] = 1
  points[0, 2:, 3, 2] = points[2, ..., 0, 2] = 0
  given, position = jnp.asarray(points), rng.normal(size=(1, 1, 8))
  module.position[...] = jnp.asarray(position)

  def run(gate):
    module.gate[...] = jnp.full(1, gate)
    assert module(joint, given) is joint
    return module.beside(functools.partial(temporal, joint), given)

  plain = temporal(joint)
  for found, base in zip(run(0.0), plain, strict=True):
    np.testing.assert_array_equal(found, base)
  token = np.stack(
    [module.tokens(given[i : i + 1, :until, :, :2])[0].mean(axis=0) for i, until in ((0, 2), (1, 6), (2, 6))]
  )
  if name == "transformer":
    longer.pos_embed[...] = jnp.concatenate([temporal.pos_embed[...], position], axis=1)
  more = token[:, None] + (position if name == "mean" else 0)
  clip, moments = longer(jnp.concatenate([joint, more], axis=1))
  with_token = clip, moments[:, :3]
  for found, base, moved in zip(run(0.7), plain, with_token, strict=True):
    np.testing.assert_allclose(found[:2], (base + np.tanh(0.7) * (moved - base))[:2], atol=1e-12)
    np.testing.assert_array_equal(found[2], base[2])


@pytest.mark.slow
def test_a_batch_without_a_face_trains(golden):
  """Nothing is learned of boxes and points, and gradients are those of the classes alone."""
  g = golden("cascade")
  graphdef, state = cascade(g)
  batch = {
    "face_box": jnp.zeros((2, 4, 5)),
    "landmarks": jnp.zeros((2, 4, 5, 3)),
    "label": jnp.asarray(g["labels"]),
  }
  objective = Objective(parts.read("losses", {"name": "cross_entropy"}), (1,) * 7, 1, cascade_config())

  def run(state, with_tasks):
    module = nnx.merge(graphdef, state)
    outputs = module(parts.Outputs(jnp.asarray(g["base_logits"])), jnp.asarray(g["tokens"]))
    shared = objective.whole(batch, 0, objective.statistics)
    terms = objective.terms(outputs, batch, shared)
    if with_tasks:
      terms = objective.with_tasks(terms, SimpleNamespace(cascade=module), outputs, batch, shared)
    means = {name: term.losses.mean() for name, term in terms.items()}
    return total(means, terms), means

  (loss, means), gradients = jax.value_and_grad(run, has_aux=True)(state, True)
  (alone, _), of_classes = jax.value_and_grad(run, has_aux=True)(state, False)
  assert (float(means["box"]), float(means["landmarks"])) == (0, 0)
  np.testing.assert_allclose(loss, 1.5 * alone)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, 1.5 * b, atol=1e-12), gradients, of_classes)


@pytest.mark.slow
def test_dropout_uses_what_was_drawn_and_evaluation_drops_nothing(golden):
  g = golden("cascade")
  logits, tokens, rates = (
    parts.Outputs(jnp.asarray(g["base_logits"])),
    jnp.asarray(g["tokens"]),
    {"dropout": 0.3},
  )
  plain, module = nnx.merge(*cascade(g)), nnx.merge(*cascade(g, **rates, head_dropout=0.1))
  drawn = module.draw(jax.random.key(0), 2)
  assert plain.draw(jax.random.key(0), 2) is None
  for one in (
    module(logits, tokens),
    module(logits, tokens, jnp.ones_like(drawn)),
  ):  # as trained: everything is larger
    assert np.isfinite(one.logits).all()
  np.testing.assert_array_equal(module(logits, tokens).logits, plain(logits, tokens).logits)
  dropped = module(logits, tokens, drawn)
  np.testing.assert_array_equal(dropped.logits, module(logits, tokens, drawn).logits)
  assert np.abs(dropped.logits - module(logits, tokens).logits).min() > 1e-6
  for i in range(2):  # a clip by itself drops the same
    alone = module(parts.Outputs(logits.logits[i : i + 1]), tokens[i : i + 1], drawn[:, i : i + 1])
    np.testing.assert_allclose(alone.extra["found_box"][0], dropped.extra["found_box"][i], atol=1e-12)
  with pytest.raises(ValueError, match="nonnegative"):  # the numbers drawn are just enough
    module(logits, tokens, drawn[:-1])
  heads = nnx.merge(*cascade(g, head_dropout=0.5))
  none = heads(logits, tokens, jnp.zeros_like(heads.draw(jax.random.key(0), 2)))
  np.testing.assert_array_equal(none.extra["found_box"].reshape(2, -1)[0], heads.box.head.bias[...])
  drop = Dropout(jnp.linspace(0, 1, 20).reshape(10, 2))
  np.testing.assert_allclose(drop(jnp.ones((2, 4)), 0.25), 4 / 3 * np.array([[0, 0, 0, 1], [0, 0, 1, 1]]))
  np.testing.assert_allclose(drop(jnp.ones((2, 2, 3)), 0.25), np.full((2, 2, 3), 4 / 3))


@pytest.mark.slow
def test_models_with_both_start_at_the_model_without():
  """In either form, also where frames are left out; but for rounding, because XLA compiles another program."""
  kept = {"name": "soft", "keep": 4, "after": 1}
  for mask in ({"name": "none"}, kept):
    answers = []
    for form in ("", "frames", "token"):
      auxiliary = {"name": "cascade", "width": 8, "mlp_dim": 8} if form else {"name": "none"}
      landmarks = {"name": "graph", "form": form} if form else {"name": "none"}
      cfg = with_layers(2, frame_mask=mask, landmarks=landmarks, auxiliary=auxiliary)
      if not form:
        values = random_parameters(cfg)
      shapes = parameter_shapes(cfg)
      rest = {path: np.full(shape, 0.0 if path.endswith("gate") else 0.1) for path, shape in shapes.items()}
      rng = np.random.default_rng(0)
      given = [
        rng.integers(0, 256, (2, *cfg.inputs.video_shape), np.uint8),
        rng.normal(size=(2, *cfg.inputs.audio_shape)),
      ]
      given += [rng.random((2, *cfg.inputs.points_shape), np.float32).round(1)] * bool(form)
      answers.append(
        jax.jit(lambda model, *given: model(*given).logits)(
          model_of(cfg, rest | values), *map(jnp.asarray, given)
        )
      )
    for answer in answers[1:]:
      np.testing.assert_allclose(answer, answers[0], atol=1e-6)


def cascade_config(**changes):
  return parts.read("auxiliary", {"name": "cascade", "width": 6, "depth": 2, "mlp_dim": 12, **changes})


def cascade(g, **changes):
  module = cascade_config(**changes).build(8, 4, 7, rngs=nnx.Rngs(0))
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
  assert count(built("landmarks", name="graph", form="token")) == 37_633 + 512
