"""WAR and UAR as the original computes them, the confusion matrix of the devices, answers kept, two models compared."""

import json

import commands
from conftest import golden_json
import jax.numpy as jnp
import numpy as np
import pytest

from mma_dfer_jax.errors import UserError
from mma_dfer_jax.training import calibration
from mma_dfer_jax.training.comparison import as_table, bootstrap, compare
from mma_dfer_jax.training.predictions import Predictions, find_predictions, read_predictions
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
  assert np.isnan([scores.war, scores.uar]).all()


def predictions_of(right, labels=None, classes=("a", "b", "c"), first=0) -> Predictions:
  """Of clips that are answered right or with the next class."""
  labels = np.arange(len(right)) % len(classes) if labels is None else np.array(labels)
  answers = (labels + ~np.array(right, bool)) % len(classes)
  logits = np.random.default_rng(0).normal(size=(len(right), len(classes))).astype(np.float32)
  logits[np.arange(len(right)), answers] += 9
  clips = [f"clip, {i}" for i in range(first, first + len(right))]
  return Predictions.of_logits(classes, clips, labels, logits)


def test_answers_are_written_and_read_with_all_digits(tmp_path):
  before = predictions_of([1, 0, 1, 1])
  before.write(tmp_path / "predictions.csv")
  found = find_predictions(tmp_path)[""]
  assert (found.classes, found.clips) == (before.classes, before.clips)
  assert found.probabilities.tobytes() == before.probabilities.tobytes()
  assert found.scores.confusion.tolist() == [[2, 0, 0], [0, 0, 1], [0, 0, 1]]


@pytest.mark.parametrize(
  ("lines", "words"),
  [
    ("", "is no predictions.csv"),
    ("clip,label,a,a\n", "is no predictions.csv"),
    ("clip,label,a,b\n", "has no clips"),
    ("clip,label,a,b\nx,a,1,0\nx,a,1,0\ny,c,1,0\nz,a,1\nw,a,nan,0\nv\n\nu,a,1.5,-0.5\nt,b,0.5,0.25\ns,a,0.334,0.67\n",
     r"(?s)8 lines of 10:.*line 3: the clip 'x' stands on line 2 already.*line 4: 'c' is not one of.*line 5: 1 of 2 probabilities"
     r".*2 lines: the probabilities must be numbers from 0 to 1, as in line 6, line 9\n.*2 lines: '' is.*line 10: .* sum to 0.75"),
  ],
)  # fmt: skip
def test_damaged_answers_are_refused(tmp_path, lines, words):
  (tmp_path / "p.csv").write_text(lines)
  with pytest.raises(UserError, match=words):
    read_predictions(tmp_path / "p.csv")


def test_what_holds_no_answers_is_refused_with_what_does(tmp_path):
  """A path that is not there, a report, a text, an empty folder, damaged folds."""
  (tmp_path / "report.json").write_text("{}")
  (tmp_path / "report.md").write_text("# MMA-DFER\n")
  (tmp_path / "empty").mkdir()
  wanted = "Give a workdir, a folds folder, an evaluation .* or a predictions.csv"
  (tmp_path / "run").mkdir()
  predictions_of([1]).write(tmp_path / "run/predictions.csv")
  for name in ("report.json", "report.md"):
    (tmp_path / "run" / name).write_text("{}")
    with pytest.raises(UserError, match=f"{name} .*Give its folder, {tmp_path}/run$"):
      find_predictions(tmp_path / "run" / name)
  for name, words in (
    ("nowhere", "nowhere does not exist"), ("report.json", "report.json holds no answers to clips"),
    ("report.md", "report.md is no predictions.csv"), ("empty", "empty holds no answers to clips"),
  ):  # fmt: skip
    with pytest.raises(UserError, match=f"{words}.*{wanted}"):
      find_predictions(tmp_path / name)
  for damage in ("{", "{}", '{"folds": 3}'):
    (tmp_path / "empty/folds.json").write_text(damage)
    with pytest.raises(UserError, match=r"folds\.json is damaged"):
      find_predictions(tmp_path / "empty")


@pytest.mark.parametrize(
  ("a", "b", "answer", "begin"),
  [
    ([1, 0] * 60, [1, 1, 1, 0] * 30, "yes", "Yes, B is better than A"),
    ([1, 1, 1, 0] * 30, [1, 0] * 60, "no", "No, A is better than B"),
    (
      [1, 0] * 60,
      [1, 0] * 59 + [0, 1],
      "cannot be told from these clips",
      "Whether B is better than A cannot",
    ),
  ],
)
def test_is_b_better_than_a(tmp_path, a, b, answer, begin):
  for name, right in (("a", a), ("b", b)):
    predictions_of(right).write(tmp_path / f"{name}.csv")
  result = compare(tmp_path / "a.csv", tmp_path / "b.csv")
  assert result["answer"] == answer
  assert result["sentence"].startswith(begin)
  assert result == compare(tmp_path / "a.csv", tmp_path / "b.csv")  # the seed is fixed
  difference = result["war"]["difference"]
  assert difference["value"] == pytest.approx(100 * (np.mean(b) - np.mean(a)))
  assert difference["low"] <= difference["value"] <= difference["high"]
  above = "above" if np.mean(b) >= np.mean(a) else "below"
  assert f": B is {abs(difference['value']):.2f} points WAR {above} A (95 % interval " in result["sentence"]
  assert "| all clips | 120 | WAR |" in as_table(result)


def test_the_same_answers_and_other_data_are_said(tmp_path):
  """Of one run twice, by another order of the classes too; and of runs on data sets that were prepared differently."""
  before = predictions_of([1, 0, 1, 1])
  for name, fingerprint in (("a", "abc" * 9), ("b", "def" * 9)):
    (tmp_path / name).mkdir()
    before.write(tmp_path / name / "predictions.csv")
    (tmp_path / name / "run.json").write_text(json.dumps({"data_set": {"fingerprint": fingerprint}}))
  (tmp_path / "evaluation_test.json").write_text(json.dumps({"data_set": "abc" * 9}))
  order = [2, 0, 1]
  turned = Predictions(("c", "a", "b"), before.clips, (before.labels + 1) % 3, before.probabilities[:, order])
  turned.write(tmp_path / "evaluation_test_without_none_predictions.csv")
  same, data = (
    "A and B gave identical answers; did you mean two runs? ",
    "of equal names from different data sets",
  )
  a, evaluation = tmp_path / "a", tmp_path / "evaluation_test.json"
  for one, other, differ in (
    (a, a, False),
    (a, evaluation, False),
    (a, tmp_path / "b", True),
    (evaluation, tmp_path / "b", True),
  ):
    result = compare(one, other)
    assert result["sentence"] == f"{same}Whether B is better than A cannot be told from these clips."
    assert (data in result["note"]) == differ
  predictions_of([1, 1, 1, 1]).write(tmp_path / "b/predictions.csv")
  assert same not in compare(a, tmp_path / "b")["sentence"]


def test_intervals_are_those_of_clips_drawn_one_by_one():
  """The plain bootstrap, with a class of two clips that some resamples lack."""
  rng = np.random.default_rng(1)
  labels = np.array([0] * 20 + [1] * 15 + [2] * 2)
  right = rng.random((37, 2)) < (0.5, 0.6)
  found = bootstrap(np.column_stack([labels, right]).astype(int), 3)
  wars, uars = [], []
  for _ in range(4000):
    drawn = rng.integers(0, 37, 37)
    difference = right[drawn, 1].astype(int) - right[drawn, 0]
    wars.append(100 * difference.mean())
    uars.append(100 * np.mean([difference[labels[drawn] == c].mean() for c in set(labels[drawn])]))
  for name, values in (("war", wars), ("uar", uars)):
    here = found[name]["difference"]
    np.testing.assert_allclose([here["low"], here["high"]], np.percentile(values, [2.5, 97.5]), atol=2.8)
    share = found[name]["share_of_resamples_where_b_is_higher"]
    assert share == pytest.approx(np.mean(np.array(values) > 0), abs=0.03)


def test_other_clips_labels_or_classes_are_refused(tmp_path):
  predictions_of([1] * 6).write(tmp_path / "a.csv")
  others = {
    "classes: a, b, c in A, a, b, d in B": predictions_of([1] * 6, classes=("a", "b", "d")),
    "2 of 6 clips are only in A: clip, 0, clip, 1": predictions_of([1] * 6, first=2),
    "1 label differs: clip, 5 is c in A and a in B": predictions_of([1] * 6, labels=[0, 1, 2, 0, 1, 0]),
    "1 of 6 clips is only in A: clip, 0": predictions_of([1] * 6, first=1),
    "2 labels differ: clip, 0 is a in A and b in B": predictions_of([1] * 6, labels=[1, 0, 2, 0, 1, 2]),
  }
  for words, other in others.items():
    other.write(tmp_path / "b.csv")
    with pytest.raises(UserError, match=words):
      compare(tmp_path / "a.csv", tmp_path / "b.csv")


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    (["--compare=A,B", "--without=sound", "--split=test", "--data_dir=d", "--step=3", "--batch_size=4"],
     ["--without goes with --workdir, not with --compare", "--split goes", "--data_dir goes with --workdir and --workdirs,",
      "--step goes", "--batch_size goes"]),
    (["--workdirs=A,B", "--without=none", "--split=test", "--out=file"],
     ["--without goes with --workdir, not with --workdirs", "--split goes", "/file is a file, not a folder"]),
    (["--workdir=A", "--out=o", "--splits=a"],
     ["--out goes with --workdirs and --compare, not with --workdir", "--splits goes with --workdirs,"]),
    (["--compare", "A", "B", "--out=file/o"], ["/file/o: ", "/file is a file, not a folder"]),
    (["--compare", "A", "B"], ["A does not exist. Give a workdir, a folds folder, an evaluation"]),
  ],
)  # fmt: skip
def test_flags_that_do_nothing_are_refused(tmp_path, arguments, words):
  """By each form of the command, all at once, before anything is read."""
  (tmp_path / "file").touch()
  status, out, err = commands.run("evaluate", *arguments, at=tmp_path)
  assert (status, out) == (1, "")
  assert [word for word in words if word not in err] == [], err


# How sure a model may be


def drawn(temperature, number=4000, classes=5):
  """Logits of a model that would be as sure as it may be if they were divided by the temperature, and labels."""
  rng = np.random.default_rng(0)
  logits = rng.normal(0, 2, (number, classes))
  shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  labels = (shares.cumsum(1) < rng.random((number, 1))).sum(1)
  return temperature * logits, labels


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_a_known_temperature_is_found(temperature):
  logits, labels = drawn(temperature)
  assert calibration.fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.05)
  said = Predictions.of_logits("abcde", map(str, labels), labels, logits)
  found = calibration.fitted_to(said)
  assert found == pytest.approx(temperature, rel=0.05)
  better = calibration.calibrated(said, found)
  assert (better.answers == said.answers).all()
  before, after = (calibration.reliability(one).ece for one in (said, better))
  assert after < 3
  assert after == pytest.approx(before, abs=1) if temperature == 1.0 else before > 8
  described = calibration.describe(better, {"temperature": found, "clips": 9})
  assert described["ece_before"] == pytest.approx(before, abs=1e-6)


def test_few_clips_that_are_all_right_hardly_change_it():
  right, labels = 5.0 * np.eye(3), np.arange(3)
  assert 0.9 < calibration.fit_temperature(right, labels) < 1


def test_calibration_error_of_bins_by_hand():
  shares = np.array([[0.9, 0.1], [0.92, 0.08], [0.4, 0.6], [1.0, 0.0]])
  found = calibration.reliability(Predictions(("a", "b"), tuple("wxyz"), np.array([0, 1, 1, 0]), shares))
  assert found.clips.tolist() == [0] * 8 + [1, 0, 0, 0, 0, 2, 1]
  assert found.ece == pytest.approx(100 * (2 * abs(0.91 - 0.5) + abs(0.6 - 1) + 0) / 4)


def test_some_of_each_class_are_held_out():
  labels = np.repeat([0, 1, 2, 3], [100, 10, 2, 1])
  held_out = calibration.hold_out(labels, 0.1, seed=1)
  assert np.bincount(labels[held_out], minlength=4).tolist() == [10, 1, 1, 0]
  assert [calibration.number_held_out(n, 0.1) for n in (100, 10, 2, 1, 0)] == [10, 1, 1, 0, 0]
  assert held_out.tolist() == calibration.hold_out(labels, 0.1, seed=1).tolist()
  assert held_out.tolist() != calibration.hold_out(labels, 0.1, seed=2).tolist()
  assert not len(calibration.hold_out(labels, 0.0, seed=1))
