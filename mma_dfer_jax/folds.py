"""Train and evaluate the folds of a data set, one after another, and report on all of them.

  python -m mma_dfer_jax.folds --config=configs/dfew.py --config.data.data_dir=data --runs=runs/dfew

Each fold is `python -m mma_dfer_jax.train` with the same flags, in a process of its own, in RUNS/fold1, RUNS/fold2 …
To resume, run the same command: it skips finished folds. Writes RUNS/folds.json, folds.md, confusion_matrix.png and
predictions.csv, the answers to the test clips of all folds.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
import re

from absl import flags
import jax

from mma_dfer_jax import cli
from mma_dfer_jax.errors import UserError, listed
from mma_dfer_jax.paths import define_path
from mma_dfer_jax.training import hosts, series
from mma_dfer_jax.training.check import check_model_and_data, problems_of_clips
from mma_dfer_jax.training.predictions import read_predictions
from mma_dfer_jax.training.report import Fold, write_folds
from mma_dfer_jax.training.run import Run, check_same_runs, describe_run

_CONFIG = cli.define_config()
_RUNS = define_path("runs", None, "Folder of the runs and of their report.", required=True)
_FOLDS = flags.DEFINE_list("folds", ["1", "2", "3", "4", "5"], "Which folds.")
flags.mark_flag_as_required("config")


def checked(config, runs: Path, names: Sequence[str]) -> dict[str, Run]:
  """What each fold's run must be, by "fold1", …, of the named folds and of those that are there already.

  Only a run can check its devices: the first fold reports such problems as it starts.
  """
  model, data_set, starts, problems = check_model_and_data(config)
  problems += series.problems_of_series("data.fold", _FOLDS)
  folds = {split: clips for split, clips in data_set.splits.items() if split.startswith("fold")} if data_set else {}  # fmt: skip
  for split in (one for one in folds if one in names and len(folds) > 1):
    assert data_set
    problems += problems_of_clips(config, model, data_set, "+".join(one for one in folds if one != split))
  problems = [*dict.fromkeys(problems)]
  if data_set and (missing := ", ".join(name for name in names if name not in folds)):
    known = ",".join(split.removeprefix("fold") for split in folds)
    advice = f"give --folds={known}" if folds else "prepare it from a manifest with the column fold"
    problems.append(
      f"there is no {missing} in {data_set.path}, which has {', '.join(data_set.splits)}; {advice}"
    )
  if problems or not (model and data_set):
    raise listed("these folds cannot start", problems)
  there = {path.name for path in runs.glob("fold*") if re.fullmatch(r"fold[1-9]\d*", path.name)}
  expected = {}
  for name in sorted({*names} | there, key=lambda name: int(name.removeprefix("fold"))):
    of_fold = config.copy_and_resolve_references()
    of_fold.data.fold = int(name.removeprefix("fold"))
    expected[name] = describe_run(of_fold, model, data_set, starts)
  check_same_runs(runs, expected)
  return expected


def finished(workdir: Path, run: Run) -> Fold | None:
  """The result of a run; None if it is not finished or its files are damaged: training writes them again."""
  name = f"fold{run['config']['data.fold']}"
  try:
    report = series.finished_report(workdir, run)
    predictions = read_predictions(workdir / "predictions.csv")
    matrix, clips = predictions.scores.confusion.tolist(), run["data_set"]["splits"][name]
    if report["confusion_matrix"] != matrix or len(predictions.clips) != clips:
      return None
    about = {key: report[key] for key in ("epoch", "step", "clips_without_sound")}
    best = {key: report["best_epoch"][key] for key in ("epoch", "step", "war", "uar")}
  except (OSError, ValueError, KeyError, TypeError):
    return None
  return Fold(name, predictions, {"folder": workdir.name, **about}, best)


def report(runs: Path, expected: Mapping[str, Run], names: Sequence[str]) -> None:
  """Writes the report on all folds, of an earlier command as well; those of `names` must be there."""
  results = {name: finished(runs / name, run) for name, run in expected.items()}
  missing = [name for name, fold in results.items() if fold is None]
  if lost := [name for name in missing if name in names]:
    raise UserError(f"{', '.join(lost)} in {runs} left no complete report.json; run the same command again")
  if missing:
    print(f"not finished, so not in the report: {', '.join(missing)}")
  run = next(iter(expected.values()))
  config = {key: value for key, value in run["config"].items() if key != "data.fold"}
  facts = {"recipe": run["recipe"], "config": config, "version": run["version"]}
  folds = [fold for fold in results.values() if fold]
  write_folds(runs, folds, model="each after its last epoch", facts=facts)


def main(argv: Sequence[str]) -> int:
  del argv
  config, runs, names = _CONFIG.value, Path(_RUNS.value), [f"fold{number}" for number in _FOLDS.value]
  expected = checked(config, runs, names)
  many_hosts = hosts.is_distributed()  # then the report is only the first process's
  arguments = series.flags_without("runs", "folds")
  jobs = [series.Job(f"fold{k}", runs / f"fold{k}", expected[f"fold{k}"], [*arguments, f"--config.data.fold={k}"])
          for k in _FOLDS.value]  # fmt: skip
  if (status := series.train_all(jobs, finished, trust_status=many_hosts)) is not None:
    return status
  hosts.join()
  if not many_hosts or jax.process_index() == 0:
    report(runs, expected, names)
  return 0


if __name__ == "__main__":
  cli.run(main, describe_error=hosts.describe_error, exit_process=hosts.exit_process)
