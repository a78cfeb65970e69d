"""Train rows of an ablation study with several seeds, and say in one table what came of them.

  python -m mma_dfer_jax.ablate --config=configs/dfew.py --config.data.data_dir=data --runs=runs/ablations \
      --rows=base,no_prompts,no_fusion,temporal_mean --seeds=1,2,3

Rows are those of `ablations.py`; without --rows, all that this config can have. Each run is `mma_dfer_jax.train` in a
process of its own, in RUNS/ROW/seed1 …; a row changes the config last, after all overrides. To resume, run the same
command: it skips finished runs. Writes RUNS/ablations.md, ablations.json and ablations.png after every run.
"""

from collections.abc import Mapping, Sequence
import json
from pathlib import Path
import re
import sys
from typing import Any

from absl import flags
import jax
from ml_collections import ConfigDict

from mma_dfer_jax import cli
from mma_dfer_jax.ablations import ROWS
from mma_dfer_jax.config import flat_config
from mma_dfer_jax.errors import UserError, listed
from mma_dfer_jax.training import as_run, children
from mma_dfer_jax.training.check import check_run
from mma_dfer_jax.training.comparison import RowResult, write_comparison
from mma_dfer_jax.training.run import claim_workdir, describe_run, differences_of_runs

_CONFIG = cli.define_config()
_RUNS = flags.DEFINE_string("runs", None, "Folder of the runs and of the table.", required=True)
_ROWS = flags.DEFINE_list(
  "rows", [], "Which rows, in the order of the table; empty: all that the config can have."
)
_SEEDS = flags.DEFINE_list("seeds", ["1", "2", "3"], "Which seeds, each a run of every row.")
flags.mark_flag_as_required("config")

Run = dict[str, Any]  # what run.json says


def with_row(config: ConfigDict, row: str) -> ConfigDict:
  """A copy of a config that a row has changed.

  Raises:
    UserError: if the row does not fit, or changes nothing.
  """
  changed = ConfigDict(config.to_dict())
  ROWS[row].change(changed)
  if row != "base" and flat_config(changed.to_dict()) == flat_config(config.to_dict()):
    raise UserError("it changes nothing in this config")
  return changed


def run_of(config: ConfigDict) -> Run:
  """What run.json will say of a run; UserError if it cannot start."""
  checked = check_run(config, devices=False)
  return describe_run(config, checked.model, checked.data_set, {s.name: s.sha256 for s in checked.starts})


def one_line(error: UserError) -> str:
  """The problems that an error lists, without its titles."""
  lines = [line.strip().removeprefix("- ") for line in str(error).splitlines()]
  return "; ".join(line for line in lines if not line.endswith(":"))


def plan(
  config: ConfigDict, rows: Sequence[str], seeds: Sequence[str]
) -> tuple[dict[str, dict[str, Run]], dict[str, str]]:
  """The runs of each row by seed, and why rows that nobody asked for by name cannot be.

  Raises:
    UserError: with everything that is wrong with rows, seeds, the config, and the config of each row.
  """
  problems = problems_of_flags(rows, seeds)
  runs: dict[str, Run] = {}
  reasons: dict[str, str] = {}
  try:
    runs["base"] = run_of(config)
  except UserError as error:
    problems.append(one_line(error))
  for row in (row for row in rows or ROWS if row in ROWS and row != "base"):
    try:
      runs[row] = run_of(with_row(config, row))
    except UserError as error:
      reasons[row] = one_line(error)
  if rows and "base" in runs:  # else the problems of the config would be told for each row again
    problems += [f"{row} does not fit the config: {reason}" for row, reason in reasons.items()]
  if problems:
    raise listed("these ablations cannot start", problems)
  of_seeds = {
    row: {seed: runs[row] | {"config": runs[row]["config"] | {"seed": int(seed)}} for seed in seeds}
    for row in rows or runs
  }
  return of_seeds, reasons


def problems_of_flags(rows: Sequence[str], seeds: Sequence[str]) -> list[str]:
  """What is wrong with --rows, --seeds and what is passed on."""
  problems = []
  if unknown := [row for row in rows if row not in ROWS]:
    problems.append(f"--rows={','.join(unknown)}: there are no such rows; choose from {', '.join(ROWS)}")
  if len(set(rows)) < len(rows):
    problems.append(f"--rows={','.join(rows)}: give different rows")
  whole = all(re.fullmatch(r"0|[1-9]\d{0,8}", seed) for seed in seeds)
  if not seeds or not whole or len(set(seeds)) < len(seeds):
    problems.append(f"--seeds={','.join(seeds)}: give different whole numbers, comma-separated")
  if any(re.match("--?config.seed(=|$)", argument) for argument in sys.argv[1:]):
    problems.append("config.seed is set for each run; choose seeds with --seeds")
  return problems


def folder(runs: Path, row: str, seed: str) -> Path:
  return runs / row / f"seed{seed}"


def finished(workdir: Path, run: Run) -> dict[str, Any] | None:
  """The report of a run, with its seconds a step; None if it is not finished or damaged: training repairs that."""
  try:
    report = json.loads((workdir / "report.json").read_text())
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    if report["epoch"] != run["config"]["num_epochs"] or report["classes"] != run["classes"]:
      return None
    rates = [line["clips_per_second"] for line in lines if "clips_per_second" in line]
    kept = {
      key: report[key] for key in ("war", "uar", "tunable_parameters", "frozen_parameters", "peak_memory_gib")
    }
  except (FileNotFoundError, ValueError, KeyError, TypeError):
    return None
  return {"seed": run["config"]["seed"], **kept, "clips_per_second": rates}


def report(
  runs: Path, wanted: Mapping[str, Mapping[str, Run]], config: ConfigDict, reasons: Mapping[str, str]
) -> str:
  """Writes what came of all finished runs; returns the table."""
  results = []
  for row, of_row in wanted.items():
    found = [finished(folder(runs, row, seed), run) for seed, run in of_row.items()]
    if known := [result for result in found if result]:
      results.append(RowResult(row, ROWS[row].says, known, config.batch_size))
  if not results:
    return ""
  run = next(iter(next(iter(wanted.values())).values()))
  facts = {"left_out": dict(reasons), "seeds": sorted({int(seed) for of_row in wanted.values() for seed in of_row}),
           "config": flat_config(config.to_dict()), "data_set": run["data_set"], "recipe": run["recipe"],
           "version": run["version"]}  # fmt: skip
  return write_comparison(runs, results, facts)


def main(argv: Sequence[str]) -> int:
  del argv
  stop = cli.StopSignal()
  jax.config.update("jax_platforms", "cpu")  # accelerators are left to the runs
  config, runs = _CONFIG.value, Path(_RUNS.value)
  if ":/" in _RUNS.value:
    raise UserError(f"--runs={_RUNS.value} is an address; give a folder (mount the bucket)")
  wanted, reasons = plan(config, _ROWS.value, _SEEDS.value)
  of_folders = {f"{row}/seed{seed}": run for row, of_row in wanted.items() for seed, run in of_row.items()}
  if differences := differences_of_runs(runs, of_folders):
    advice = "choose another --runs, or give the values that they were made with"
    raise listed(f"{runs} holds other runs", differences, advice)
  for row, reason in reasons.items():
    print(f"left out: {row}: {reason}")
  todo = [(row, seed) for seed in _SEEDS.value for row in wanted]
  for i, (row, seed) in enumerate(todo, start=1):
    workdir, run, status = folder(runs, row, seed), wanted[row][seed], 0
    title = f"{row}, seed {seed} ({i} of {len(todo)})"
    if finished(workdir, run):
      print(f"{title} is finished: {workdir}/report.md", flush=True)
      continue
    if not stop:
      print(f"{title}: {ROWS[row].says}; goes to {workdir}", flush=True)
      claim_workdir(workdir, run)
      status = children.train(
        [f"--config={as_run.__file__}:{workdir}/run.json", f"--workdir={workdir}"], stop
      )
    if status and not stop:
      print(
        f"error: {title} ended with exit status {status}; the same command resumes there", file=sys.stderr
      )
      return status
    if stop or not finished(workdir, run):
      print(f"stopped in {title}; the same command resumes there")
      return status or stop.exit_status
    report(runs, wanted, config, reasons)
  print(
    f"\n{report(runs, wanted, config, reasons)}\n\nwrote {runs}/ablations.md, ablations.json and ablations.png"
  )
  return 0


if __name__ == "__main__":
  cli.run(main)
