"""Train and evaluate the folds of a data set, one after another, and say what came of all of them.

  python -m mma_dfer_jax.folds --config=configs/dfew.py --config.data.data_dir=data --runs=runs/dfew

Each fold is `python -m mma_dfer_jax.train` with the same flags, in a process of its own, in RUNS/fold1, RUNS/fold2 …
The same command again leaves out the folds that are finished and goes on with the others. Writes RUNS/folds.json,
RUNS/folds.md and RUNS/confusion_matrix.png.
"""

from collections.abc import Callable, Mapping, Sequence
import ctypes
import json
from pathlib import Path
import re
import signal
import subprocess
import sys
import time
from typing import Any

from absl import flags
import jax
import numpy as np

from mma_dfer_jax import cli, hosts
from mma_dfer_jax.checkpoints import check_same_run, describe_run, model_config, read_run
from mma_dfer_jax.config import flat_config, problems_of
from mma_dfer_jax.data.datasets import DataSet, open_data_set
from mma_dfer_jax.errors import UserError, listed
from mma_dfer_jax.metrics import Scores
from mma_dfer_jax.report import Fold, folds_table, write_folds
from mma_dfer_jax.weights import open_pretrained

_CONFIG = cli.define_config()
_RUNS = flags.DEFINE_string(
  "runs", None, "Folder of the runs: fold1, fold2, … and the report.", required=True
)
_FOLDS = flags.DEFINE_list("folds", ["1", "2", "3", "4", "5"], "Which folds.")
flags.mark_flag_as_required("config")

Run = dict[str, Any]  # what run.json says


def flags_of_train() -> list[str]:
  """The command line without what only this command knows."""
  kept: list[str] = []
  arguments = iter(flags.FLAGS.read_flags_from_files(sys.argv[1:]))
  for argument in arguments:
    name, equals, _ = argument.lstrip("-").partition("=")
    if name not in ("runs", "folds"):
      kept.append(argument)
    elif not equals:
      next(arguments)  # its value
  return kept


def checked(config, runs: Path, names: Sequence[str]) -> dict[str, Run]:
  """What each fold's run must be, by "fold1", …, of the named folds and of those that are there already.

  Everything wrong with them is told at once.

  What only a run on its devices can tell, such as the batch size, the first fold tells as it starts.

  Raises:
    UserError: with all problems, before anything has started.
  """
  problems = problems_of(config) + problems_of_flags(runs, names)
  wanted: dict[str, Run] = {}
  data_set = cfg = None
  pretrained: dict[str, str] = {}
  try:
    if config.data.data_dir:
      data_set = open_data_set(config.data.data_dir, config.data.name)
      cfg = model_config(flat_config(config.to_dict()), data_set.classes)
  except UserError as error:
    problems.append(str(error))
  for stream in ("image", "audio"):
    try:
      if cfg and config.pretrained[stream]:
        encoder = open_pretrained(stream, config.pretrained[stream], cfg)
        pretrained[stream] = encoder.weights.sha256
    except UserError as error:
      problems.append(str(error))
  if data_set:
    problems += problems_of_splits(data_set, names, config.batch_size)
  if data_set and cfg and not problems:
    there = {path.name for path in runs.glob("fold*") if re.fullmatch(r"fold[1-9]\d*", path.name)}
    for name in sorted({f"fold{number}" for number in names} | there):
      values = config.to_dict()
      values["data"]["fold"] = int(name.removeprefix("fold"))
      wanted[name] = describe_run(values, cfg, data_set, pretrained)
    if differences := differences_of_runs(runs, wanted):
      advice = "choose another --runs, or give the values that they were made with"
      raise listed(f"{runs} holds other runs", differences, advice)
  if problems:
    raise listed("these folds cannot start", problems)
  return wanted


def problems_of_flags(runs: Path, names: Sequence[str]) -> list[str]:
  """What is wrong with --runs, --folds and what is passed on."""
  problems = []
  if ":/" in str(runs):
    problems.append(f"--runs={runs} is an address; give a folder (mount the bucket)")
  if not names or not all(re.fullmatch(r"[1-9]\d*", name) for name in names) or len(set(names)) < len(names):
    problems.append(f"--folds={','.join(names)}: give different numbers from 1 on, comma-separated")
  if any(re.match("--?config.data.fold(=|$)", argument) for argument in flags_of_train()):
    problems.append("config.data.fold is set for each run; choose them with --folds")
  return problems


def problems_of_splits(data_set: DataSet, names: Sequence[str], batch_size: int) -> list[str]:
  """Folds that the data set does not have, or that leave less than a batch to train on."""
  folds = {split: clips for split, clips in data_set.splits.items() if split.startswith("fold")}
  problems = []
  if missing := [f"fold{name}" for name in names if f"fold{name}" not in folds]:
    known = ",".join(split.removeprefix("fold") for split in folds)
    advice = f"give --folds={known}" if folds else "prepare it from a manifest with the column fold"
    problems.append(
      f"there is no {', '.join(missing)} in {data_set.path}, which has {', '.join(data_set.splits)}; {advice}"
    )
  for split in folds:
    left = sum(folds.values()) - folds[split]
    if split.removeprefix("fold") in names and left < batch_size:
      problems.append(f"batch_size={batch_size}, but the folds without {split} have {left} clips in all")
  return problems


def differences_of_runs(runs: Path, wanted: Mapping[str, Run]) -> list[str]:
  """How the runs that are there differ from those that are wanted, one line for each difference."""
  folds_by_problem: dict[str, list[str]] = {}
  for name, run in wanted.items():
    if not (runs / name / "run.json").exists():
      continue
    try:
      check_same_run(read_run(runs / name), run, name)
    except UserError as error:
      lines = [line.removeprefix("  - ") for line in str(error).splitlines() if line.startswith("  - ")]
      for line in lines or [str(error)]:
        folds_by_problem.setdefault(line, []).append(name)
  return [f"{', '.join(names)}: {problem}" for problem, names in folds_by_problem.items()]


def finished(workdir: Path, run: Run) -> Fold | None:
  """What the report of a run says; None if it is not finished or its report is damaged: training mends that."""
  name = f"fold{run['config']['data.fold']}"
  try:
    report = json.loads((workdir / "report.json").read_text())
    whole = (workdir / "run.json").exists() and report["epoch"] == run["config"]["num_epochs"]
    if not whole or report["classes"] != run["classes"] or report["recipe"] != run["recipe"]:
      return None
    scores = Scores(np.array(report["confusion_matrix"]), tuple(run["classes"]))
    if scores.clips != run["data_set"]["splits"][name]:
      return None
    about = {key: report[key] for key in ("epoch", "step", "clips_without_sound")}
    best = {key: report["best_epoch"][key] for key in ("epoch", "step", "war", "uar")}
  except (FileNotFoundError, ValueError, KeyError, TypeError):
    return None
  return Fold(name, scores, {"folder": workdir.name, **about}, best)


def die_with_parent() -> Callable[[], None] | None:
  """For a new process: `kill -9` of this one ends it too, so that no two trainings ever share a workdir."""
  if not sys.platform.startswith("linux"):
    return None
  prctl, death_signal = ctypes.CDLL(None).prctl, 1  # PR_SET_PDEATHSIG; looked up before the fork
  return lambda: prctl(death_signal, signal.SIGKILL)


def train(workdir: Path, fold: str, stop: cli.StopSignal) -> int:
  """Trains a fold in a process of its own, which is told of SIGTERM and Ctrl-C; its exit status."""
  command = [sys.executable, "-m", "mma_dfer_jax.train", *flags_of_train()]
  command += [f"--config.data.fold={fold.removeprefix('fold')}", f"--workdir={workdir}"]
  # In a group of its own, Ctrl-C does not reach it twice, from the terminal and from here: a second one is harsh.
  with subprocess.Popen(command, process_group=0, preexec_fn=die_with_parent()) as process:
    told = False
    while process.poll() is None:
      if stop and not told and listens(process.pid):
        process.terminate()
        told = True
      time.sleep(0.2)
  return process.returncode if process.returncode >= 0 else 128 - process.returncode


def listens(pid: int) -> bool:
  """Whether a process handles SIGTERM: not yet while it starts, and no more when a scheduler has told it already."""
  try:
    status = Path(f"/proc/{pid}/status").read_text()
  except OSError:  # no Linux, or just ended
    return True
  caught = re.search(r"SigCgt:\s*([0-9a-f]+)", status)
  return caught is None or bool(int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)


def report(runs: Path, wanted: Mapping[str, Run], names: Sequence[str]) -> None:
  """Writes what came of all folds, of an earlier command as well; those of `names` must be there."""
  results = {name: finished(runs / name, run) for name, run in wanted.items()}
  missing = [name for name, fold in results.items() if fold is None]
  if lost := [name for name in missing if name in names]:
    raise UserError(f"{', '.join(lost)} in {runs} left no whole report.json; give the same command again")
  if missing:
    print(f"not in the report, for they are not finished: {', '.join(missing)}")
  run = next(iter(wanted.values()))
  config = {key: value for key, value in run["config"].items() if key != "data.fold"}
  facts = {"recipe": run["recipe"], "config": config, "version": run["version"]}
  folds = [fold for fold in results.values() if fold]
  summary = write_folds(runs, folds, model="each after its last epoch", facts=facts)
  print(f"\n{folds_table(summary)}\n\nwrote {runs}/folds.json, folds.md and confusion_matrix.png")


def main(argv: Sequence[str]) -> int:
  del argv
  stop = cli.StopSignal()
  config, runs = _CONFIG.value, Path(_RUNS.value)
  wanted = checked(config, runs, _FOLDS.value)
  names = [f"fold{number}" for number in _FOLDS.value]
  many_hosts = hosts.wanted()  # then the report is only the first process's

  for i, name in enumerate(names, start=1):
    title, status, run = f"{name} ({i} of {len(names)})", 0, wanted[name]
    if finished(runs / name, run):
      print(f"{title} is finished: {runs / name}/report.md", flush=True)
      continue
    if not stop:
      print(f"{title} goes to {runs / name}", flush=True)
      status = train(runs / name, name, stop)
    if status and not stop:
      print(
        f"error: {title} ended with exit status {status}; the same command goes on from there",
        file=sys.stderr,
      )
      return status
    if stop or not (many_hosts or finished(runs / name, run)):
      print(f"stopped in {title}; the same command goes on from there")
      return status or stop.exit_status

  hosts.join()
  if not many_hosts or jax.process_index() == 0:
    report(runs, wanted, names)
  return 0


if __name__ == "__main__":
  cli.run(main, explained=hosts.explained, leave=hosts.leave)
