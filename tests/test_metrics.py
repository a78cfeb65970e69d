"""WAR and UAR as the original computes them, and the confusion matrix that is summed on the devices."""

from conftest import golden_json
import jax.numpy as jnp
import numpy as np
import pytest

from mma_dfer_jax.training.scores import Scores, confusion_matrix

CASES = golden_json("metrics")


def matrix(targets, predictions, classes=7):
  logits = np.eye(classes, dtype=np.float32)[predictions]
  mask = np.ones(len(targets), bool)
  return np.asarray(confusion_matrix(jnp.asarray(logits), jnp.asarray(targets, jnp.int32), jnp.asarray(mask)))


@pytest.mark.parametrize("name", CASES)
def test_scores_are_those_of_the_original(name):
  case = CASES[name]
  confusion = matrix(case["targets"], case["predictions"])
  scores = Scores(confusion, [f"class {i}" for i in range(7)])
  assert scores.war == pytest.approx(case["reference_war"], abs=1e-9)
  if case["reference_uar_is_nan"]:
    assert np.isnan(scores.uar)
    recalls = [recall for recall in case["recall_by_class"] if recall is not None]
    assert scores.uar_present == pytest.approx(100 * np.mean(recalls))
  else:
    assert scores.uar == pytest.approx(case["reference_uar"], abs=1e-9)
  expected = [np.nan if recall is None else 100 * recall for recall in case["recall_by_class"]]
  np.testing.assert_allclose(scores.recall, expected)
  assert confusion.sum(axis=1).tolist() == case["support"]


def test_rows_are_true_classes_and_padding_does_not_count():
  logits = jnp.asarray([[0.0, 1.0, 0.0], [2.0, 2.0, 1.0], [0.0, 0.0, 1.0]])
  confusion = confusion_matrix(logits, jnp.asarray([2, 1, 0]), jnp.asarray([True, True, False]))
  # Clip 0 is class 2 taken for 1; clip 1 is a tie, of which the first wins; clip 2 only fills the batch.
  assert np.asarray(confusion).tolist() == [[0, 0, 0], [1, 0, 0], [0, 1, 0]]
  assert confusion.dtype == jnp.int32


def test_a_split_without_clips_has_no_scores():
  scores = Scores(np.zeros((3, 3), int), "abc")
  assert np.isnan(scores.war)
  assert np.isnan(scores.uar)
