"""All folds with one command, in real processes: killed, refused, gone on with, and evaluated once more."""

from collections.abc import Callable
import csv
import json
from pathlib import Path
import shutil
import signal
import statistics
import subprocess
import sys
import time

from archives import prepare_clips
from conftest import ROOT
import numpy as np
import pytest
import small_runs
from small_runs import finish

from mma_dfer_jax.data.demo import generate
from mma_dfer_jax.training.report import PUBLISHED, Fold, mean_and_deviation, write_folds
from mma_dfer_jax.training.scores import Scores
from mma_dfer_jax.training.start import open_run
from mma_dfer_jax.weights.folder import write_folder

# Two epochs of three steps on 12 or 15 of 21 generated clips, with a model that compiles within seconds.
SMALL = small_runs.SMALL | {"num_epochs": 2, "log_every_steps": 1, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
  """Three clips of each class, in folds of 9, 6 and 6 clips: none of the small ones has all classes."""
  folder = tmp_path_factory.mktemp("data")
  rows = list(csv.DictReader(generate(folder / "clips", 2, 1, 0).open()))
  folds = [1] * 9 + [2] * 6 + [3] * 6
  lines = [f"{row['path']},{row['label']},{fold}" for row, fold in zip(rows, folds, strict=True)]
  manifest = folder / "clips" / "folds.csv"
  manifest.write_text("\n".join(["path,label,fold", *lines]) + "\n")
  prepare_clips(manifest, folder, num_workers=2)
  return folder


@pytest.fixture(scope="module")
def start(cache, data_dir) -> Callable[..., subprocess.Popen]:
  """Starts `python -m mma_dfer_jax.folds` on the small clips; keyword arguments override the config."""

  def popen(runs, *flags, folds="1,2,3", **overrides) -> subprocess.Popen:
    fields = {**SMALL, "data.data_dir": data_dir, **overrides}
    command = [f"--config={ROOT}/configs/demo.py", f"--runs={runs}", "--folds", folds]
    command += [f"--config.{name}={value}" for name, value in fields.items()]
    return spawn("folds", [*command, *flags], cache)

  return popen


def spawn(module, flags, cache) -> subprocess.Popen:
  return small_runs.spawn([sys.executable, "-m", f"mma_dfer_jax.{module}", *flags], cache)


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
def uninterrupted(tmp_path_factory, start):
  """Three folds that nothing has disturbed: (runs, what was printed)."""
  runs = tmp_path_factory.mktemp("runs") / "whole"
  return runs, finish(start(runs))


def test_all_folds_and_their_report(uninterrupted):
  runs, printed = uninterrupted
  summary = json.loads((runs / "folds.json").read_text())
  reports = [json.loads((runs / f"fold{k}/report.json").read_text()) for k in (1, 2, 3)]
  assert [r["config"]["data.fold"] for r in reports] == [1, 2, 3]
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
  assert summary["published"] is None  # the demo's classes in another order than DFEW's
  text = (runs / "folds.md").read_text()
  for words in (
    "fold1 (1 of 3) goes to",
    "fold3 (3 of 3) goes to",
    "| fold2 | 6 |",
    "go on after",
    "folds.json",
  ):
    assert (words in printed) == (words != "go on after")
  assert f"WAR {summary['war']['mean']:.2f} ± {summary['war']['standard_deviation']:.2f} %" in text
  assert "n − 1 = 2" in text
  assert (runs / "confusion_matrix.png").read_bytes().startswith(b"\x89PNG")


def test_finished_folds_are_left_out(uninterrupted, start):
  runs, _ = uninterrupted
  before = {path: path.stat().st_mtime_ns for path in runs.glob("fold?/**/*")}
  summary = (runs / "folds.json").read_bytes()
  printed = finish(start(runs))
  assert [f"fold{k} ({k} of 3) is finished" in printed for k in (1, 2, 3)] == [True] * 3
  assert "goes to" not in printed
  assert (runs / "folds.json").read_bytes() == summary
  assert before == {path: path.stat().st_mtime_ns for path in runs.glob("fold?/**/*")}
  printed = finish(start(runs, folds="2"))
  assert "fold2 (1 of 1) is finished" in printed
  assert (runs / "folds.json").read_bytes() == summary, "the other folds stay in the report"


def test_killed_and_stopped_in_the_second_fold(uninterrupted, start, tmp_path):
  """`kill -9`, then SIGTERM; then on to the end, to the same files as if nothing had been."""
  whole, _ = uninterrupted
  runs = tmp_path / "runs"
  for name in (
    "fold1",
    "fold3",
  ):  # fold 3 finished before fold 2, too: what is done counts, not what came first
    shutil.copytree(whole / name, runs / name)
  process = start(runs, save_every_steps=1)
  wait_for_step(runs / "fold2", 2, process)
  children = trainings_of(process)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  assert children
  deadline = time.monotonic() + 10
  while any(map(alive, children)):  # no training goes on behind the back of the next command
    assert time.monotonic() < deadline
    time.sleep(0.01)
  assert not (runs / "folds.json").exists()

  process = start(runs, save_every_steps=1)
  wait_for_step(runs / "fold2", 3, process)
  process.send_signal(signal.SIGTERM)
  printed = finish(process, status=0)
  if "stopped in fold2 (2 of 3)" in printed:  # it may have been at its last step
    assert "stopped by SIGTERM after step" in printed
    assert not (runs / "folds.json").exists()

  printed = finish(start(runs))
  assert "resuming after step" in printed
  assert "fold3 (3 of 3) is finished" in printed
  reports = [json.loads((folder / "fold2/report.json").read_text()) for folder in (whole, runs)]
  assert reports[0]["confusion_matrix"] == reports[1]["confusion_matrix"]
  for file in ("folds.json", "folds.md"):
    assert (runs / file).read_bytes() == (whole / file).read_bytes()


def test_what_is_wrong_is_said_before_anything_starts(start, tmp_path):
  """By this command with all folds in view, or by the first training, whose message and status are passed on."""
  wrong = start(tmp_path / "runs", "--config.data.fold=2", folds="1,2,5", num_epochs=0, batch_size=13)
  fails = start(tmp_path / "fails", **{"mesh.data": 3})
  printed = finish(wrong, status=1)
  for words in (
    "num_epochs=0",
    "no fold5",
    "give --folds=1,2,3",
    "with --folds",
    "without fold1 have 12 clips",
  ):
    assert words in printed
  assert not (tmp_path / "runs").exists()
  printed = finish(fails, status=1)
  assert "asks for 3 devices, but there are 1" in printed
  assert "error: fold1 (1 of 3) ended with exit status 1" in printed
  assert "fold2 (" not in printed
  assert not (tmp_path / "fails").exists()


def test_folds_that_do_not_belong_together_are_refused(uninterrupted, start, cache, tmp_path):
  """Of another label order, recipe, pretraining or config; to be gone on with, or to be evaluated together."""
  whole, runs, copy = uninterrupted[0], tmp_path / "runs", tmp_path / "copy"
  for k in (1, 2, 3):
    (runs / f"fold{k}").mkdir(parents=True)
    run = json.loads((whole / f"fold{k}/run.json").read_text())
    if k == 2:
      run["classes"][:2] = run["classes"][1::-1]
      run["recipe"]["missing_sound"] = "constant"
      run["starts"]["image"] = "abc"
    if k == 3:
      run["config"]["data.fold"] = 1  # a copy of another fold
    (runs / f"fold{k}/run.json").write_text(json.dumps(run))
    (runs / f"fold{k}/checkpoints").symlink_to(whole / f"fold{k}/checkpoints")
  copy.mkdir()
  (copy / "run.json").write_text((whole / "fold1/run.json").read_text().replace(": 32,", ": 48,"))

  before = sorted(runs.rglob("*"))
  folders = ",".join(str(runs / f"fold{k}") for k in (1, 2, 3))
  flags = [f"--workdirs={whole}/fold1,{whole}/fold2,{copy}", "--splits=fold2,fold1"]
  processes = [
    start(
      runs, folds="1", seed=5, **{"model.fusion.width": 32}
    ),  # the folds that are not asked for count, too
    spawn("evaluate", [f"--workdirs={folders}"], cache),
    spawn("evaluate", [*flags, f"--out={tmp_path / 'out'}"], cache),
  ]
  words_of_each = [
    ["fold1, fold2, fold3: config model.fusion.width: 8 there, 32 now", "fold1, fold2, fold3: config seed: 1 there, 5 now",
     "fold2: classes", "fold2: recipe missing_sound: 'constant' there", "fold2: starts image",
     "fold3: config data.fold: 1 there, 3 now"],
    ["--out", "the model tells apart disgust, angry", "are both evaluated on fold1"],
    ["3 folders, but 2 --splits", "it was trained on clips of fold2"],
  ]  # fmt: skip
  for process, words in zip(processes, words_of_each, strict=True):
    printed = finish(process, status=1)
    assert [word for word in words if word not in printed] == [], printed
  assert sorted(runs.rglob("*")) == before
  assert not (tmp_path / "out").exists()


def test_evaluate_finds_the_same_numbers(uninterrupted, cache, data_dir, tmp_path):
  """In the workdirs; and in converted models, which know their classes and recipe, but no data set and no fold."""
  runs, _ = uninterrupted
  workdirs = [f"{runs}/fold{k}" for k in (1, 2, 3)]
  models = [str(tmp_path / f"model{k}") for k in (1, 2, 3)]
  for workdir, model in zip(workdirs, models, strict=True):
    write_folder(Path(model), open_run(Path(workdir), "last"))
  converted = [f"--workdirs={','.join(models)}", f"--out={tmp_path}/converted"]
  processes = [
    spawn("evaluate", [f"--workdirs={','.join(workdirs)}", f"--out={tmp_path}/runs"], cache),
    spawn("evaluate", [*converted, f"--data_dir={data_dir}", "--splits=fold1,fold2,fold3"], cache),
    spawn("evaluate", converted, cache),
  ]
  there = json.loads((runs / "folds.json").read_text())
  for folder, process in zip(("runs", "converted"), processes, strict=False):
    assert "| fold3 | 6 |" in finish(process)
    here = json.loads((tmp_path / folder / "folds.json").read_text())
    for key in ("war", "uar", "uar_of_present_classes", "mean_recall", "sum", "classes", "recipe"):
      assert there[key] == here[key], (folder, key)
    matrices = [[fold["confusion_matrix"] for fold in summary["folds"]] for summary in (there, here)]
    assert matrices[0] == matrices[1]
    assert (tmp_path / folder / "folds.md").exists()
  assert finish(processes[2], status=1).count("does not say its data set") == 3


def test_mean_and_deviation_by_hand():
  assert mean_and_deviation([70.0, 80.0, 90.0]) == {"mean": 80.0, "standard_deviation": 10.0}
  assert mean_and_deviation([70.0]) == {"mean": 70.0, "standard_deviation": None}
  assert mean_and_deviation([70.0, None]) == {"mean": None, "standard_deviation": None}


def test_published_numbers_stand_beside_and_undefined_is_said(tmp_path):
  """DFEW's classes; in fold 2 no clip is fear, but one is taken for it."""
  classes = next(classes for classes, of in PUBLISHED.items() if of["data_set"] == "DFEW")
  whole, lacking = np.diag([8] * 7), np.diag([8] * 6 + [0])
  whole[0, 1], lacking[0, 6] = 8, 8
  folds = [
    Fold("fold1", Scores(whole, classes), {"step": 3}),
    Fold("fold2", Scores(lacking, classes), {"step": 4}),
  ]
  summary = write_folds(tmp_path, folds, model="by hand", facts={"recipe": {}})
  assert summary["war"]["mean"] == pytest.approx((100 * 56 / 64 + 100 * 48 / 56) / 2)
  assert summary["uar"] == {"mean": None, "standard_deviation": None}
  assert summary["uar_of_present_classes"]["mean"] == pytest.approx((650 / 7 + 550 / 6) / 2)
  assert summary["mean_recall"]["fear"] == 100.0
  assert summary["mean_recall"]["happy"] == 50.0
  assert summary["best_epoch"] is None
  text = (tmp_path / "folds.md").read_text()
  assert "published" not in text.lower(), "classes of these names, but other clips"
  assert "UAR is undefined in fold2" in text
  assert "UAR undefined" in text.splitlines()[2]
  five = [
    Fold(f"fold{k}", Scores(np.diag([2341 - (k == 5) * 8] + [0] * 6), classes), {}) for k in range(1, 6)
  ]
  assert write_folds(tmp_path, five, model="by hand", facts={"recipe": {}})["sum"]["clips"] == 11_697
  assert "| published, DFEW |  | 77.51 % | 67.01 % |" in (tmp_path / "folds.md").read_text()
