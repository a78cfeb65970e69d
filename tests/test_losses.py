"""Losses against the numbers of their authors' code and PyTorch's (tests/golden/ial.npz, losses.npz), in float64."""

import functools

from conftest import GOLDEN
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mma_dfer_jax import parts
from mma_dfer_jax.errors import UserError
from mma_dfer_jax.heads import cosine
from mma_dfer_jax.training.objective import Objective, class_weights, first_weighted_epoch, total

WITH_IAL, EFFECTIVE = {"ial_weight": 0.1}, {"class_weights": "effective"}
# Name in the file, loss, its fields.
CASES = {
  "ce": ("cross_entropy", {}),
  "ce_weighted_inverse": ("cross_entropy", {"class_weights": "inverse"}),
  "ce_weighted_effective": ("cross_entropy", EFFECTIVE),
  "focal_1": ("focal", {"gamma": 1.0}),
  "focal_2": ("focal", {}),
  "focal_2_effective": ("focal", EFFECTIVE),
  "ldam": ("ldam", {}),
  "ldam_effective": ("ldam", EFFECTIVE),
  "logit_adjusted_1": ("cross_entropy", {"logit_adjustment": 1.0}),
  "smooth_0.1": ("cross_entropy", {"label_smoothing": 0.1}),
  "smooth_0.1_effective": ("cross_entropy", {"label_smoothing": 0.1, **EFFECTIVE}),
  "votes": ("votes", {}),
  "votes_mix_0.5": ("votes", {"mix": 0.5}),
  "votes_effective": ("votes", EFFECTIVE),
  "ce_ial_0.1_effective": ("cross_entropy", {**WITH_IAL, **EFFECTIVE}),
  "votes_ial_0.1": ("votes", WITH_IAL),
}
IAL_CASES = ("dfew7_random", "dfew7_edges", "mafw11_random", "mafw11_large", "two_classes")


@functools.cache
def golden(name: str) -> dict[str, np.ndarray]:
  with np.load(GOLDEN / f"{name}.npz") as file:
    return dict(file)


def objective_of(name: str, clips, num_epochs: int = 1, **fields) -> Objective:
  return Objective(parts.read("losses", {"name": name, **fields}), [int(n) for n in clips], num_epochs)


def loss_of(objective: Objective, logits, batch, epoch: int = 0):
  """The loss, as a step computes it, and its terms."""
  terms = objective.terms(parts.Outputs(logits), batch, objective.whole(batch, epoch, objective.statistics))
  means = {name: term.losses.mean() for name, term in terms.items()}
  return total(means, terms), means


def batch_of(numbers, case: str) -> dict:
  votes = {"votes": jnp.asarray(numbers[f"{case}/votes"])} if f"{case}/votes" in numbers else {}
  return {"label": jnp.asarray(numbers[f"{case}/labels"]), **votes}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("case", ["dfew7", "mafw11"])
def test_losses_and_their_gradients(case, name):
  numbers, (loss, fields) = golden("losses"), CASES[name]
  objective = objective_of(loss, numbers[f"{case}/counts"], **fields)
  scale = 30.0 if loss == "ldam" else 1.0
  x = jnp.asarray(numbers[f"{case}/{'ldam_cosines' if loss == 'ldam' else 'logits'}"])
  value, gradient = jax.value_and_grad(lambda x: loss_of(objective, scale * x, batch_of(numbers, case))[0])(x)
  assert float(value) == pytest.approx(float(numbers[f"{case}/{name}/value"]), abs=1e-10)
  np.testing.assert_allclose(gradient, numbers[f"{case}/{name}/grad"], atol=1e-10, rtol=0)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("case", IAL_CASES)
def test_intensity_aware_loss_pushes_two_logits_alone(case):
  numbers = golden("ial")
  logits, batch = jnp.asarray(numbers[f"{case}/logits"]), batch_of(numbers, case)
  objective = objective_of("cross_entropy", (1,) * logits.shape[1], ial_weight=0.1)
  _, means = loss_of(objective, logits, batch)
  assert float(means["ial"]) == pytest.approx(float(numbers[f"{case}/ial"]), abs=1e-12)
  assert float(means["ce"]) == pytest.approx(float(numbers[f"{case}/ce"]), abs=1e-12)
  alone = jax.grad(lambda x: loss_of(objective, x, batch)[1]["ial"])(logits)
  np.testing.assert_allclose(alone, numbers[f"{case}/grad_ial"], atol=1e-12, rtol=0)
  rows = np.arange(len(logits))
  elsewhere = np.asarray(alone).copy()
  elsewhere[rows, numbers[f"{case}/labels"]] = elsewhere[rows, numbers[f"{case}/strongest_wrong"]] = 0
  assert not elsewhere.any()
  both = jax.grad(lambda x: loss_of(objective, x, batch)[0])(logits)
  np.testing.assert_allclose(both, numbers[f"{case}/grad_total_0.1"], atol=1e-12, rtol=0)


@pytest.mark.parametrize("case", ["dfew7", "mafw11"])
def test_class_weights_margins_and_prior(case):
  numbers, clips = golden("losses"), golden("losses")[f"{case}/counts"]
  for kind, key in (("inverse", "weights_inverse"), ("effective", "weights_effective_0.9999")):
    weights = class_weights(parts.read("losses", {"name": "focal", "class_weights": kind}), clips.tolist())
    np.testing.assert_allclose(weights, numbers[f"{case}/{key}"], rtol=1e-12)
  # A margin is what a clip of that class loses of its logit, with margins of another 30 times smaller.
  batch, margins = {"label": jnp.arange(len(clips))}, numbers[f"{case}/ldam_margins"]
  loss = parts.read("losses", {"name": "ldam", "scale": 1e4}).build(jnp.asarray(clips, jnp.float32))
  each = loss(parts.Outputs(jnp.eye(len(clips)) * -1e4), batch) - 1e4
  np.testing.assert_allclose(np.asarray(each) / 1e4, margins, atol=1e-3)


def test_class_weights_act_late_and_compile_once():
  objective = objective_of("cross_entropy", (8, 2), num_epochs=25, class_weights="1,3", reweight_from=0.8)
  assert first_weighted_epoch(objective.config, 25) == 20
  batch, logits, traced = (
    {"label": jnp.asarray([0, 1, 1, 0])},
    jnp.asarray([[1.0, 0], [2, 0], [0, 1], [0, 0]]),
    [],
  )

  @jax.jit
  def loss(epoch, statistics):
    traced.append(epoch)
    terms = objective.terms(parts.Outputs(logits), batch, objective.whole(batch, epoch, statistics))
    return terms["ce"].losses.mean()

  each = -np.asarray(jax.nn.log_softmax(logits))[np.arange(4), batch["label"]]
  early, late = each.mean(), (each * [1, 3, 3, 1]).sum() / 8
  found = [float(loss(epoch, objective.statistics)) for epoch in (0, 19, 20, 24)]
  np.testing.assert_allclose(found, [early, early, late, late], rtol=1e-6)
  assert len(traced) == 1


def test_a_part_of_a_batch_gets_its_share_of_what_the_whole_batch_says():
  """Sums of parts, as micro-batches and devices have them, with weights that differ between parts."""
  numbers = golden("losses")
  objective = objective_of("focal", numbers["dfew7/counts"], **EFFECTIVE, **WITH_IAL)
  logits, batch = jnp.asarray(numbers["dfew7/logits"], jnp.float32), batch_of(numbers, "dfew7")
  shared = objective.whole(batch, 0, objective.statistics)
  whole, _ = loss_of(objective, logits, batch)

  def loss_of_part(rows):
    terms = objective.terms(parts.Outputs(logits[rows]), {"label": batch["label"][rows]}, shared)
    return total({name: term.losses.mean() for name, term in terms.items()}, terms)

  each = [float(loss_of_part(slice(i, i + 2))) for i in range(0, 8, 2)]
  assert np.mean(each) == pytest.approx(float(whole), rel=1e-6)


def test_confident_mistakes_have_finite_losses_and_gradients():
  logits, batch = jnp.asarray([[1000.0, -1000, 0], [1000, -1000, 0]]), {"label": jnp.asarray([1, 0])}
  for gamma in (0.0, 1.0, 1.5, 2.0):
    loss = parts.read("losses", {"name": "focal", "gamma": gamma})
    value, gradient = jax.value_and_grad(lambda x, loss=loss: loss(parts.Outputs(x), batch).sum())(logits)
    assert float(value) == 2000
    np.testing.assert_allclose(gradient, [[1, -1, 0], [0, 0, 0]], atol=1e-6)


def test_votes_of_clips_that_have_none_are_their_labels():
  batch = {"label": jnp.asarray([2, 1]), "votes": jnp.asarray([[0, 0, 0], [5, 5, 0]], jnp.uint8)}
  logits = jnp.asarray([[1.0, 2, 3], [0, 1, 2]])
  loss, cross_entropy = (parts.read("losses", {"name": name}) for name in ("votes", "cross_entropy"))
  assert loss.labels(batch).tolist() == [2, 0]
  hard = cross_entropy(parts.Outputs(logits), batch)
  found = loss(parts.Outputs(logits), batch)
  assert float(found[0]) == pytest.approx(float(hard[0]))
  assert float(found[1]) == pytest.approx(float(hard[1]) + 0.5)


def test_cosines(monkeypatch):
  numbers = golden("losses")
  head = parts.read("heads", {"name": "cosine"}).build(*numbers["cosine_head/weight"].shape, rngs=_rngs())
  np.testing.assert_allclose((np.asarray(head.kernel[...]) ** 2).sum(axis=0), 1, rtol=1e-5)
  head.kernel[...] = jnp.asarray(numbers["cosine_head/weight"], jnp.float32)
  logits = head(jnp.asarray(numbers["cosine_head/features"], jnp.float32)).logits
  np.testing.assert_allclose(logits, 30 * numbers["cosine_head/cosines"], atol=2e-5)
  gradient = jax.grad(lambda x: head(x).logits.sum())(jnp.zeros((1, head.kernel.shape[0])))
  assert np.isfinite(gradient).all()
  assert parts.read("heads", {"name": "cosine"}).build(512, 7, rngs=_rngs()).kernel.size == 3584


def _rngs():
  from flax import nnx

  return nnx.Rngs(params=0)


@pytest.mark.parametrize(
  ("fields", "words"),
  [
    ({"name": "focal", "gamma": 0.5}, r"gamma=0.5 must lie in \[1, 100\], or be 0"),
    ({"name": "cross_entropy", "label_smoothing": 1.0}, r"label_smoothing=1.0 must lie in \[0, 1\)"),
    ({"name": "votes", "mix": 1.5}, r"mix=1.5 must lie in \[0, 1\]"),
    ({"name": "ldam", "class_weights": "rare"}, "choose one of none, inverse, effective, or give a positive number"),
    ({"name": "focal", "class_weights": "1,0,2"}, "positive number for each class"),
    ({"name": "focal", "reweight_from": 0.8}, "set class_weights=effective"),
    ({"name": "focal", "ial_weight": -0.1}, r"ial_weight=-0.1 must lie in \[0, inf\)"),
  ],
)  # fmt: skip
def test_values_that_a_loss_cannot_have(fields, words):
  with pytest.raises(UserError, match=words):
    parts.read("losses", fields)


def test_what_does_not_go_with_the_head_or_the_clips():
  clips = {"happy": 4, "fear": 0}
  loss = parts.read("losses", {"name": "ldam", "logit_adjustment": 1.0, "class_weights": "1,2,3"})
  wrong = loss.problems_with(parts.read("heads", {"name": "linear"}), clips)
  assert [line for line in wrong if "3 numbers, but there are 2 classes: happy, fear" in line]
  assert [
    line
    for line in wrong
    if "loss=ldam and loss.logit_adjustment=1.0 cannot be used, for no training clip is fear" in line
  ]
  assert [line for line in wrong if "head=cosine,loss=ldam" in line]
  other = loss.problems_with(cosine.Config(scale=16.0), clips)
  assert [line for line in other if "loss.scale=30.0, but model.head.scale=16.0" in line]
  plain = parts.read("losses", {"name": "focal"})
  assert plain.problems_with(parts.read("heads", {"name": "linear"}), clips) == []
