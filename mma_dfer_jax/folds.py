"""Train and evaluate the folds of a data set, one after another, and say what came of all of them.

  python -m mma_dfer_jax.folds --config=configs/dfew.py --config.data.data_dir=data --runs=runs/dfew

Each fold is `python -m mma_dfer_jax.train` with the same flags, in a process of its own, in RUNS/fold1, RUNS/fold2 …
The same command again leaves out the folds that are finished and goes on with the others. Writes RUNS/folds.json,
RUNS/folds.md and RUNS/confusion_matrix.png.
"""

from collections.abc import Mapping, Sequence
import json
from pathlib import Path
import re
import sys
from typing import Any

from absl import flags
import jax
import numpy as np

from mma_dfer_jax import cli
from mma_dfer_jax.data.data_set import DataSet
from mma_dfer_jax.errors import UserError, listed
from mma_dfer_jax.training import children, hosts
from mma_dfer_jax.training.check import check_model_and_data
from mma_dfer_jax.training.report import Fold, folds_table, write_folds
from mma_dfer_jax.training.run import describe_run, differences_of_runs
from mma_dfer_jax.training.scores import Scores

_CONFIG = cli.define_config()
_RUNS = flags.DEFINE_string(
  "runs", None, "Folder of the runs: fold1, fold2, … and the report.", required=True
)
_FOLDS = flags.DEFINE_list("folds", ["1", "2", "3", "4", "5"], "Which folds.")
flags.mark_flag_as_required("config")

Run = dict[str, Any]  # what run.json says


def checked(config, runs: Path, names: Sequence[str]) -> dict[str, Run]:
  """What each fold's run must be, by "fold1", …, of the named folds and of those that are there already.

  What only a run on its devices can tell, such as the mesh, the first fold tells as it starts.

  Raises:
    UserError: with all problems, before anything has started.
  """
  found, problems = check_model_and_data(config)
  problems += problems_of_flags(runs, names)
  wanted: dict[str, Run] = {}
  if found.data_set:
    problems += problems_of_splits(found.data_set, names, config.batch_size)
  if found.data_set and found.model and not problems:
    there = {path.name for path in runs.glob("fold*") if re.fullmatch(r"fold[1-9]\d*", path.name)}
    starts = {start.name: start.sha256 for start in found.starts}
    for name in sorted({f"fold{number}" for number in names} | there):
      of_fold = config.copy_and_resolve_references()
      of_fold.data.fold = int(name.removeprefix("fold"))
      wanted[name] = describe_run(of_fold, found.model, found.data_set, starts)
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
  if any(re.match("--?config.data.fold(=|$)", argument) for argument in children.flags_without()):
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


def finished(workdir: Path, run: Run) -> Fold | None:
  """What the report of a run says; None if it is not finished or its report is damaged: training writes it anew."""
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


def report(runs: Path, wanted: Mapping[str, Run], names: Sequence[str]) -> None:
  """Writes what came of all folds, of an earlier command as well; those of `names` must be there."""
  results = {name: finished(runs / name, run) for name, run in wanted.items()}
  missing = [name for name, fold in results.items() if fold is None]
  if lost := [name for name in missing if name in names]:
    raise UserError(f"{', '.join(lost)} in {runs} left no whole report.json; give the same command again")
  if missing:
    print(f"not finished, so not in the report: {', '.join(missing)}")
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
  many_hosts = hosts.is_distributed()  # then the report is only the first process's

  for i, name in enumerate(names, start=1):
    title, status, run = f"{name} ({i} of {len(names)})", 0, wanted[name]
    if finished(runs / name, run):
      print(f"{title} is finished: {runs / name}/report.md", flush=True)
      continue
    if not stop:
      print(f"{title} goes to {runs / name}", flush=True)
      fold = name.removeprefix("fold")
      arguments = [
        *children.flags_without("runs", "folds"),
        f"--config.data.fold={fold}",
        f"--workdir={runs / name}",
      ]
      status = children.train(arguments, stop)
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
  cli.run(main, describe_error=hosts.describe_error, exit_process=hosts.exit_process)
