"""All folds with one command, in real processes: killed, refused, resumed, evaluated again; and their report."""

import json
import os
from pathlib import Path
import signal
import statistics
import subprocess
import sys
import threading
import time

import commands
from conftest import ROOT
import numpy as np
import pytest
import small_runs as small

from mma_dfer_jax.data.labels import COUNTS
from mma_dfer_jax.training import series
from mma_dfer_jax.training.predictions import Predictions, read_predictions
from mma_dfer_jax.training.report import PUBLISHED, Fold, mean_and_deviation, write_folds
from mma_dfer_jax.training.start import open_run
from mma_dfer_jax.weights.folder import write_folder

SMALL = {"log_every_steps": 1}  # three epochs of three or two steps on 12 or 9 of 21 generated clips


@pytest.fixture(scope="module")
def data_dir(data_dir) -> Path:
  return data_dir / "folds"


def folds_flags(data_dir: Path, runs: Path, folds: str = "1,2", **overrides) -> list[str]:
  return [f"--runs={runs}", "--folds", folds, *small.config_flags(data_dir, **SMALL | overrides)]


def run_here(name: str, *flags: object, status: int = 1) -> str:
  """What a command prints that ends with this status, in this process."""
  found, out, err = commands.run(name, *flags, at=ROOT)
  assert found == status, out + err
  return out + err


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
def finished(tmp_path_factory, cache, data_dir) -> tuple[Path, str]:
  """Two folds, the second one killed, then finished: (runs, what the last command printed)."""
  runs = tmp_path_factory.mktemp("folds") / "runs"
  small.train_here(runs / "fold1", data_dir, **SMALL, **{"data.fold": 1})
  process = small.spawn(small.command("folds", *folds_flags(data_dir, runs, save_every_steps=1)), cache)
  small.wait_for(lambda: (runs / "fold2/checkpoints/1").exists(), process)
  children = trainings_of(process)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  assert children
  deadline = time.monotonic() + 10
  while any(map(alive, children)):  # no training continues behind the back of the next command
    assert time.monotonic() < deadline
    time.sleep(0.01)
  assert not (runs / "folds.json").exists()
  return runs, run_here("folds", *folds_flags(data_dir, runs), status=0)


@pytest.mark.slow
def test_a_stop_is_passed_on_and_so_is_a_failure(monkeypatch, tmp_path, capfd):
  """A closed terminal, to and from a program in place of Python, which waits for SIGTERM in the first run and fails in the second."""
  python, started = tmp_path / "python", tmp_path / "started"
  python.write_text(f"""#!/bin/bash
[[ "$*" == *fold1* ]] || exit 3
trap 'echo saved; exit 0' TERM
touch {started}
while true; do sleep 0.05; done""")
  python.chmod(0o755)
  monkeypatch.setattr(sys, "executable", str(python))

  def stop() -> None:
    while not started.exists():
      time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGHUP)

  handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
  thread = threading.Thread(target=stop)
  jobs = [series.Job(name, tmp_path / name, {}, ["--config=dfew"]) for name in ("fold1", "fold2")]
  try:
    thread.start()
    assert series.train_all(jobs, lambda *_: None) == 0
    thread.join()
    assert series.train_all(jobs, lambda workdir, run: workdir.name == "fold1") == 3
  finally:
    for number, handler in handlers.items():
      signal.signal(number, handler)
  out, err = capfd.readouterr()
  assert "saved\nstopped in fold1 (1 of 2); to resume, run the same command" in out
  assert "error: fold2 (2 of 2) ended with exit status 3" in err


@pytest.mark.slow
def test_all_folds_and_their_report(finished, data_dir, tmp_path):
  runs, printed = finished
  assert f"fold1 (1 of 2) is finished: {runs}/fold1/report.md" in printed
  small.train_here(tmp_path, data_dir, **SMALL, **{"data.fold": 2})
  small.assert_same_bits(tmp_path, runs / "fold2")
  summary = small.read_json(runs / "folds.json")
  reports = [small.read_json(runs / f"fold{k}/report.json") for k in (1, 2)]
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
def test_finished_folds_are_skipped(finished, data_dir):
  runs, _ = finished
  before = {path: path.stat().st_mtime_ns for path in runs.glob("fold?/**/*")}
  summary = (runs / "folds.json").read_bytes()
  printed = run_here("folds", *folds_flags(data_dir, runs, "2"), status=0)
  assert "fold2 (1 of 1) is finished" in printed
  assert "goes to" not in printed
  assert (runs / "folds.json").read_bytes() == summary, "the other folds stay in the report"
  assert before == {path: path.stat().st_mtime_ns for path in runs.glob("fold?/**/*")}


@pytest.mark.slow
def test_what_is_wrong_is_said_before_anything_starts(data_dir, tmp_path):
  """With all folds in view."""
  wrong = folds_flags(data_dir, tmp_path / "runs", "1,2,5", num_epochs=0, batch_size=13)
  printed = run_here("folds", *wrong, "--config.data.fold=2")
  words = (
    "num_epochs=0",
    "no fold5",
    "give --folds=1,2",
    "with --folds",
    "batch_size=13, but fold2 has 12 clips in all; set --config.batch_size=12 or lower",
  )
  assert [word for word in words if word not in printed] == []
  assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_folds_that_do_not_belong_together_are_refused(finished, data_dir, tmp_path):
  """Of another label order, recipe, pretraining or config; to be resumed, or to be evaluated together."""
  whole, runs, copy = finished[0], tmp_path / "runs", tmp_path / "copy"
  for k in (1, 2):
    (runs / f"fold{k}").mkdir(parents=True)
    run = small.read_json(whole / f"fold{k}/run.json")
    if k == 2:
      run["classes"][:2] = run["classes"][1::-1]
      run["recipe"]["missing_sound"] = "constant"
      run["starts"]["image"] = "abc"
      run["config"]["data.fold"] = 1  # a copy of another fold
    (runs / f"fold{k}/run.json").write_text(json.dumps(run))
  copy.mkdir()
  (copy / "run.json").write_text((whole / "fold1/run.json").read_text().replace(": 32,", ": 48,"))

  before = sorted(tmp_path.rglob("*"))
  folders = f"--workdirs={whole}/fold1,{whole}/fold2,{copy}"
  other = folds_flags(data_dir, runs, "1", seed=5, **{"model.fusion.width": 32})
  printed = {
    run_here("folds", *other): [  # the other folds count, too
      "fold1, fold2: config model.fusion.width: 8 there, 32 now", "fold1, fold2: config seed: 1 there, 5 now",
      "fold2: classes", "fold2: recipe missing_sound: 'constant' there", "fold2: starts image",
      "fold2: config data.fold: 1 there, 2 now",
    ],
    run_here("evaluate", folders): ["--out", f"{copy}: "],
    run_here("evaluate", folders, "--splits=fold2,fold2", f"--out={tmp_path / 'out'}"): [
      "3 folders, but 2 --splits", "it was trained on clips of fold2", "are both evaluated on fold2",
    ],
  }  # fmt: skip
  for text, words in printed.items():
    assert [word for word in words if word not in text] == [], text
  assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_evaluate_and_compare_find_the_same_numbers(finished, data_dir, tmp_path):
  """In converted models, which know their classes and recipe, but no data set and no fold; then beside the runs."""
  runs, _ = finished
  models = [tmp_path / f"model{k}" for k in (1, 2)]
  for k, model in enumerate(models, start=1):
    write_folder(model, open_run(runs / f"fold{k}", "last"))
  converted = [f"--workdirs={models[0]},{models[1]}", f"--out={tmp_path}/converted"]
  assert run_here("evaluate", *converted).count("does not record its data set") == 2
  whole = run_here("evaluate", *converted, f"--data_dir={data_dir}", "--splits=fold1,fold2", status=0)
  assert "| fold2 | 12 |" in whole
  there, here = small.read_json(runs / "folds.json"), small.read_json(tmp_path / "converted/folds.json")
  for key in ("war", "uar", "uar_of_present_classes", "mean_recall", "sum", "classes", "recipe"):
    assert there[key] == here[key], key
  matrices = [[fold["confusion_matrix"] for fold in summary["folds"]] for summary in (there, here)]
  assert matrices[0] == matrices[1]
  assert (tmp_path / "converted/folds.md").exists()

  both = ("--compare", runs, tmp_path / "converted", f"--out={tmp_path}/compared")
  assert "cannot be told from these clips" in run_here("evaluate", *both, status=0)
  result = small.read_json(tmp_path / "compared/comparison.json")
  assert (result["clips"], list(result["folds"])) == (21, ["fold1", "fold2"])
  assert result["war"]["difference"] == {"value": 0.0, "low": 0.0, "high": 0.0}
  assert result["sentence"] in (tmp_path / "compared/comparison.md").read_text()
  printed = run_here("evaluate", f"--compare={runs}/fold1,{runs}/fold2")
  assert "9 of 9 clips are only in A" in printed
  assert "12 of 12 clips are only in B" in printed
  assert "unexpected arguments: stray" in run_here("evaluate", f"--workdir={runs}/fold1", "stray", status=2)


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
  assert "this run has fold1, fold2 only" in text


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
    assert "| published, DFEW (not comparable, see below) |  | 77.51 % | 67.01 % |" in text
    assert f"not comparable: {counts}" in text
  else:
    assert "| published, DFEW |  | 77.51 % | 67.01 % |" in text
    assert "comparable" not in text
