"""All folds with one command, in real processes: killed, refused, resumed, evaluated again; and their report."""

import json
from pathlib import Path
import signal
import statistics
import subprocess
import time

import numpy as np
import pytest
from small_runs import (
  assert_same_bits,
  command,
  config_flags,
  finish,
  make_clips,
  read_json,
  shared,
  spawn,
  train_here,
)

from mma_dfer_jax.data.labels import COUNTS
from mma_dfer_jax.training.predictions import Predictions, read_predictions
from mma_dfer_jax.training.report import PUBLISHED, Fold, mean_and_deviation, write_folds
from mma_dfer_jax.training.start import open_run
from mma_dfer_jax.weights.folder import write_folder

SMALL = {"log_every_steps": 1}  # three epochs of three or two steps on 12 or 9 of 21 generated clips


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
  return shared(tmp_path_factory, "small_clips", make_clips) / "folds"


@pytest.fixture(scope="module")
def start(cache, data_dir):
  """Starts `python -m mma_dfer_jax.folds` on the small clips; keyword arguments override the config."""

  def popen(runs, *flags, folds="1,2", **overrides) -> subprocess.Popen:
    fields = config_flags(data_dir, **SMALL | overrides)
    return spawn(command("folds", f"--runs={runs}", "--folds", folds, *fields, *flags), cache)

  return popen


def wait_for_step(workdir: Path, step: int, process: subprocess.Popen) -> None:
  deadline = time.monotonic() + 200
  while not (workdir / "checkpoints" / str(step)).exists():
    assert time.monotonic() < deadline
    assert process.poll() is None, "".join(process.communicate())
    time.sleep(0.002)


def trainings_of(process: subprocess.Popen) -> list[int]:
  """Processes that a process has started, as Linux knows them."""
  pid = process.pid
  return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
  try:
    return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
  except FileNotFoundError:
    return False


@pytest.fixture(scope="module")
def finished(tmp_path_factory, start, data_dir) -> tuple[Path, str]:
  """Two folds, the second one killed, then stopped, then finished: (runs, what the last command printed)."""
  runs = tmp_path_factory.mktemp("folds") / "runs"
  process = start(runs, save_every_steps=1)
  wait_for_step(runs / "fold2", 1, process)
  children = trainings_of(process)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  assert children
  deadline = time.monotonic() + 10
  while any(map(alive, children)):  # no training continues behind the back of the next command
    assert time.monotonic() < deadline
    time.sleep(0.01)
  assert not (runs / "folds.json").exists()

  process = start(runs, save_every_steps=1)
  wait_for_step(runs / "fold2", 2, process)
  process.send_signal(signal.SIGTERM)
  printed = finish(process, status=0)
  if "stopped in fold2 (2 of 2)" in printed:  # it may have been at its last step
    assert "stopped by SIGTERM after step" in printed
    assert not (runs / "folds.json").exists()
  return runs, finish(start(runs))


@pytest.mark.slow
def test_all_folds_and_their_report(finished, data_dir, tmp_path):
  runs, printed = finished
  assert f"fold1 (1 of 2) is finished: {runs}/fold1/report.md" in printed
  train_here(tmp_path, data_dir, **SMALL, **{"data.fold": 2})
  assert_same_bits(tmp_path, runs / "fold2")
  summary = read_json(runs / "folds.json")
  reports = [read_json(runs / f"fold{k}/report.json") for k in (1, 2)]
  assert [r["config"]["data.fold"] for r in reports] == [1, 2]
  assert [f["confusion_matrix"] for f in summary["folds"]] == [r["confusion_matrix"] for r in reports]
  for key in ("war", "uar_of_present_classes"):
    values = [r[key] for r in reports]
    assert summary[key]["mean"] == pytest.approx(statistics.mean(values))
    assert summary[key]["standard_deviation"] == pytest.approx(statistics.stdev(values))
  best = [r["best_epoch"]["war"] for r in reports]
  assert summary["best_epoch"]["war"]["mean"] == pytest.approx(statistics.mean(best))
  total = np.sum([r["confusion_matrix"] for r in reports], axis=0)
  assert summary["sum"]["confusion_matrix"] == total.tolist()
  assert summary["sum"]["clips"] == total.sum() == 21
  assert read_predictions(runs / "predictions.csv").scores.confusion.tolist() == total.tolist()
  assert summary["published"] is None  # the demo's classes in another order than DFEW's
  text = (runs / "folds.md").read_text()
  assert f"WAR {summary['war']['mean']:.2f} ± {summary['war']['standard_deviation']:.2f} %" in text
  assert "n − 1 = 1" in text
  assert "| fold2 | 12 |" in printed
  assert (runs / "confusion_matrix.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_finished_folds_are_skipped(finished, start):
  runs, _ = finished
  before = {path: path.stat().st_mtime_ns for path in runs.glob("fold?/**/*")}
  summary = (runs / "folds.json").read_bytes()
  printed = finish(start(runs, folds="2"))
  assert "fold2 (1 of 1) is finished" in printed
  assert "goes to" not in printed
  assert (runs / "folds.json").read_bytes() == summary, "the other folds stay in the report"
  assert before == {path: path.stat().st_mtime_ns for path in runs.glob("fold?/**/*")}


@pytest.mark.slow
def test_what_is_wrong_is_said_before_anything_starts(start, tmp_path):
  """By this command with all folds in view, or by the first training, whose message and status are passed on."""
  wrong = start(tmp_path / "runs", "--config.data.fold=2", folds="1,2,5", num_epochs=0, batch_size=13)
  fails = start(tmp_path / "fails", **{"mesh.data": 3})
  printed = finish(wrong, status=1)
  words = ("num_epochs=0", "no fold5", "give --folds=1,2", "with --folds", "without fold1 have 12 clips")
  assert [word for word in words if word not in printed] == []
  assert not (tmp_path / "runs").exists()
  printed = finish(fails, status=1)
  assert "asks for 3 devices, but there are 4" in printed
  assert "error: fold1 (1 of 2) ended with exit status 1" in printed
  assert "fold2 (" not in printed
  assert not (tmp_path / "fails").exists()


@pytest.mark.slow
def test_folds_that_do_not_belong_together_are_refused(finished, start, cache, tmp_path):
  """Of another label order, recipe, pretraining or config; to be resumed, or to be evaluated together."""
  whole, runs, copy = finished[0], tmp_path / "runs", tmp_path / "copy"
  for k in (1, 2):
    (runs / f"fold{k}").mkdir(parents=True)
    run = read_json(whole / f"fold{k}/run.json")
    if k == 2:
      run["classes"][:2] = run["classes"][1::-1]
      run["recipe"]["missing_sound"] = "constant"
      run["starts"]["image"] = "abc"
      run["config"]["data.fold"] = 1  # a copy of another fold
    (runs / f"fold{k}/run.json").write_text(json.dumps(run))
  copy.mkdir()
  (copy / "run.json").write_text((whole / "fold1/run.json").read_text().replace(": 32,", ": 48,"))

  before = sorted(runs.rglob("*"))
  folders = f"--workdirs={whole}/fold1,{whole}/fold2,{copy}"
  processes = [
    start(runs, folds="1", seed=5, **{"model.fusion.width": 32}),  # the other folds count, too
    spawn(command("evaluate", folders), cache),
    spawn(command("evaluate", folders, "--splits=fold2,fold2", f"--out={tmp_path / 'out'}"), cache),
  ]
  words_of_each = [
    ["fold1, fold2: config model.fusion.width: 8 there, 32 now", "fold1, fold2: config seed: 1 there, 5 now",
     "fold2: classes", "fold2: recipe missing_sound: 'constant' there", "fold2: starts image",
     "fold2: config data.fold: 1 there, 2 now"],
    ["--out", f"{copy}: "],
    ["3 folders, but 2 --splits", "it was trained on clips of fold2", "are both evaluated on fold2"],
  ]  # fmt: skip
  for process, words in zip(processes, words_of_each, strict=True):
    printed = finish(process, status=1)
    assert [word for word in words if word not in printed] == [], printed
  assert sorted(runs.rglob("*")) == before
  assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_evaluate_and_compare_find_the_same_numbers(finished, cache, data_dir, tmp_path):
  """In converted models, which know their classes and recipe, but no data set and no fold; then beside the runs."""
  runs, _ = finished
  models = [str(tmp_path / f"model{k}") for k in (1, 2)]
  for k, model in enumerate(models, start=1):
    write_folder(Path(model), open_run(runs / f"fold{k}", "last"))
  converted = [f"--workdirs={','.join(models)}", f"--out={tmp_path}/converted"]
  processes = [
    spawn(command("evaluate", *converted, f"--data_dir={data_dir}", "--splits=fold1,fold2"), cache),
    spawn(command("evaluate", *converted), cache),
  ]
  assert "| fold2 | 12 |" in finish(processes[0])
  assert finish(processes[1], status=1).count("does not say its data set") == 2
  there, here = read_json(runs / "folds.json"), read_json(tmp_path / "converted/folds.json")
  for key in ("war", "uar", "uar_of_present_classes", "mean_recall", "sum", "classes", "recipe"):
    assert there[key] == here[key], key
  matrices = [[fold["confusion_matrix"] for fold in summary["folds"]] for summary in (there, here)]
  assert matrices[0] == matrices[1]
  assert (tmp_path / "converted/folds.md").exists()

  compare = spawn(
    command("evaluate", "--compare", runs, tmp_path / "converted", f"--out={tmp_path}/compared"), cache
  )
  other = spawn(command("evaluate", f"--compare={runs}/fold1,{runs}/fold2"), cache)
  stray = spawn(command("evaluate", f"--workdir={runs}/fold1", "stray"), cache)
  assert "cannot be told from these clips" in finish(compare)
  result = read_json(tmp_path / "compared/comparison.json")
  assert (result["clips"], list(result["folds"])) == (21, ["fold1", "fold2"])
  assert result["war"]["difference"] == {"value": 0.0, "low": 0.0, "high": 0.0}
  assert result["sentence"] in (tmp_path / "compared/comparison.md").read_text()
  printed = finish(other, status=1)
  assert "9 of 9 clips are only in A" in printed
  assert "12 of 12 clips are only in B" in printed
  assert "unexpected arguments: stray" in finish(stray, status=2)


def test_mean_and_deviation_by_hand():
  assert mean_and_deviation([70.0, 80.0, 90.0]) == {"mean": 80.0, "standard_deviation": 10.0}
  assert mean_and_deviation([70.0]) == {"mean": 70.0, "standard_deviation": None}
  assert mean_and_deviation([70.0, None]) == {"mean": None, "standard_deviation": None}


def fold_of(name: str, classes: tuple[str, ...], confusion) -> Fold:
  """A fold with that confusion matrix."""
  cells = [cell for cell, clips in np.ndenumerate(confusion) for _ in range(clips)]
  labels, answers = np.array(cells).T
  clips = tuple(f"{name} clip {i}" for i in range(len(cells)))
  return Fold(name, Predictions(classes, clips, labels, np.eye(len(classes))[answers]), {"step": 3})


DFEW = next(classes for classes, name in PUBLISHED.items() if name == "dfew")


@pytest.mark.slow
def test_undefined_scores_are_said(tmp_path):
  """In fold 2 no clip is fear, but one is taken for it."""
  whole, lacking = np.diag([8] * 7), np.diag([8] * 6 + [0])
  whole[0, 1], lacking[0, 6] = 8, 8
  folds = [fold_of("fold1", DFEW, whole), fold_of("fold2", DFEW, lacking)]
  summary = write_folds(tmp_path, folds, model="by hand", facts={"recipe": {}})
  assert summary["war"]["mean"] == pytest.approx((100 * 56 / 64 + 100 * 48 / 56) / 2)
  assert summary["uar"] == {"mean": None, "standard_deviation": None}
  assert summary["uar_of_present_classes"]["mean"] == pytest.approx((650 / 7 + 550 / 6) / 2)
  assert (summary["mean_recall"]["fear"], summary["mean_recall"]["happy"]) == (100.0, 50.0)
  assert summary["recall_standard_deviation"] == {name: None if name == "fear" else 0.0 for name in DFEW}
  assert summary["best_epoch"] is None
  text = (tmp_path / "folds.md").read_text()
  assert "fold2: UAR is undefined" in text
  assert "UAR undefined" in text.splitlines()[2]
  assert "these are fold1, fold2" in text or "here are fold1, fold2" in text


@pytest.mark.slow
@pytest.mark.parametrize("lacking", [0, 8])
def test_published_scores_are_compared_only_with_the_same_counts(tmp_path, lacking):
  confusions = [np.diag([of_fold[name] for name in DFEW]) for of_fold in COUNTS["dfew"].values()]
  confusions[4][0, 0] -= lacking
  confusions[4][1, 1] += lacking // 2
  folds = [fold_of(f"fold{k}", DFEW, confusion) for k, confusion in enumerate(confusions, start=1)]
  write_folds(tmp_path, folds, model="by hand", facts={"recipe": {}})
  text = (tmp_path / "folds.md").read_text()
  if lacking:
    counts = "the class counts differ, 11,693 clips here against 11,697 published (happy 2,437, not 2,445; sad 1,898, not 1,894)"
    assert f"| published, DFEW: not comparable, {counts} |  | 77.51 % | 67.01 % |" in text
  else:
    assert "| published, DFEW |  | 77.51 % | 67.01 % |" in text
    assert "comparable" not in text
