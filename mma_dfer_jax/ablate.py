"""Train rows of an ablation study with several seeds, and compare them in one table.

  python -m mma_dfer_jax.ablate --config=configs/dfew.py --config.data.data_dir=data --runs=runs/ablations \
      --rows=base,no_prompts,no_fusion,temporal_mean --seeds=1,2,3

Rows are those of `ablations.py`; without --rows, all that this config can have. Each run is `mma_dfer_jax.train` in a
process of its own, in RUNS/ROW/seed1 …; a row changes the config last, after all overrides. To resume, run the same
command: it skips finished runs. Writes RUNS/ablations.md, ablations.json and ablations.png after every run.
"""

from collections.abc import Mapping, Sequence
import json
from pathlib import Path
import statistics
from typing import Any

from absl import flags
import jax
from ml_collections import ConfigDict

from mma_dfer_jax import cli
from mma_dfer_jax.ablations import ROWS
from mma_dfer_jax.config import flat_config, resolve_paths, with_row
from mma_dfer_jax.disk import write_json
from mma_dfer_jax.errors import UserError, listed
from mma_dfer_jax.paths import define_path
from mma_dfer_jax.training import series
from mma_dfer_jax.training.check import check_run
from mma_dfer_jax.training.report import (
  empty_figure,
  mean_and_deviation,
  plus_minus,
  save_figure,
  table,
  write_markdown,
)
from mma_dfer_jax.training.run import Run, check_same_runs, describe_run

_CONFIG = cli.define_config()
_RUNS = define_path("runs", None, "Folder of the runs and of the table.", required=True)
_ROWS = flags.DEFINE_list("rows", [], "Rows, in the order of the table; empty: all that the config can have.")
_SEEDS = flags.DEFINE_list("seeds", ["1", "2", "3"], "Which seeds, each a run of every row.")
flags.mark_flag_as_required("config")

NOTES = """\
WAR and UAR: percent, after the last epoch, mean ± standard deviation (n − 1) over seeds. A seed sets fresh weights, the
order of the clips, augmentation and drop path; parameters that two rows have in common start from the same values.
Seconds: median time of one step over the logs of all seeds, without compilation and evaluation. Memory: highest peak
of all seeds, of the device where it keeps statistics, else of the whole process (since it was last resumed)."""


def plan(config: ConfigDict) -> tuple[dict[str, Run], dict[str, str]]:
  """The runs by folder ("base/seed1"), seed by seed; and why rows that nobody asked for by name cannot be trained."""
  rows, seeds = _ROWS.value, _SEEDS.value
  problems = series.problems_of_series("seed", _SEEDS) + resolve_paths(config)
  if unknown := [row for row in rows if row not in ROWS]:
    problems.append(f"--rows={','.join(unknown)}: there are no such rows; choose from {', '.join(ROWS)}")
  if len(set(rows)) < len(rows):
    problems.append(f"--rows={','.join(rows)}: give different rows")
  runs: dict[str, Run] = {}
  reasons: dict[str, str] = {}
  for row in dict.fromkeys(["base", *(row for row in rows or ROWS if row in ROWS)]):
    try:
      changed = with_row(config, row)
      checked = check_run(changed, devices=False)
      runs[row] = describe_run(changed, checked.model, checked.data_set, checked.starts)
    except UserError as error:
      lines = [line.strip().removeprefix("- ") for line in str(error).splitlines()]
      reasons[row] = "; ".join(line for line in lines if not line.endswith(":"))
  if "base" in reasons:  # its problems are those of all rows
    problems.append(reasons["base"])
  elif rows:
    problems += [f"{row} does not fit the config: {reason}" for row, reason in reasons.items()]
  if problems:
    raise listed("these ablations cannot start", problems)
  planned = {f"{row}/seed{seed}": runs[row] | {"config": runs[row]["config"] | {"seed": int(seed)}}
             for seed in seeds for row in rows or runs}  # fmt: skip
  return planned, reasons


def finished(workdir: Path, run: Run) -> dict[str, Any] | None:
  """The result of a run; None if it is not finished or damaged: training writes it again."""
  kept = ("war", "uar", "tunable_parameters", "frozen_parameters", "peak_memory_gib")
  try:
    report = series.finished_report(workdir, run)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    rates = [line["clips_per_second"] for line in lines if "clips_per_second" in line]
    return {"seed": run["config"]["seed"], **{key: report[key] for key in kept}, "clips_per_second": rates}
  except (OSError, ValueError, KeyError, TypeError):
    return None


def report(folder: Path, planned: Mapping[str, Run], config: ConfigDict, reasons: Mapping[str, str]) -> str:
  """Writes ablations.json, ablations.md and ablations.png on all finished runs; returns the table."""
  rows: list[dict[str, Any]] = []
  for row in dict.fromkeys(place.split("/")[0] for place in planned):
    results = [finished(folder / place, run) for place, run in planned.items() if place.startswith(f"{row}/")]
    if runs := [result for result in results if result]:
      rates = [rate for run in runs for rate in run.pop("clips_per_second")]
      numbers = {name: runs[0][name] for name in ("tunable_parameters", "frozen_parameters")}
      numbers |= {name: mean_and_deviation([run[name] for run in runs]) for name in ("war", "uar")}
      numbers["seconds_per_step"] = config.batch_size / statistics.median(rates)
      numbers["peak_memory_gib"] = max(run["peak_memory_gib"] for run in runs)
      rows.append({"row": row, "changes": ROWS[row].says, **numbers, "runs": runs})
  if not rows:
    return ""
  as_table = table(
    ["row", "what it changes", "trained parameters>", "WAR>", "UAR>", "seeds>", "s / step>", "peak GiB>"],
    [(f"`{row['row']}`", row["changes"], f"{row['tunable_parameters']:,}", plus_minus(row["war"]), plus_minus(row["uar"]),
      len(row["runs"]), f"{row['seconds_per_step']:.2f}", f"{row['peak_memory_gib']:.2f}") for row in rows],
  )  # fmt: skip
  fields, seeds = flat_config(config.to_dict()), {run["config"]["seed"] for run in planned.values()}
  left_out = "\n".join(f"- `{row}`: {reason}" for row, reason in reasons.items())
  write_markdown(
    folder / "ablations.md", "# MMA-DFER: ablations", as_table, NOTES, "![WAR of each row](ablations.png)",
    "## Rows left out" * bool(left_out), left_out, "## The base",
    "\n".join(f"- `{key}` = `{value}`" for key, value in fields.items() if key != "seed"),
  )  # fmt: skip
  draw(rows, folder / "ablations.png")
  facts = {key: next(iter(planned.values()))[key] for key in ("data_set", "recipe", "version")}
  write_json(folder / "ablations.json", {"rows": rows, "notes": NOTES.split("\n"), "left_out": dict(reasons),
                                         "seeds": sorted(seeds), "config": fields, **facts})  # fmt: skip
  return as_table


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
  """WAR of each row: mean and deviation, every seed as a dot, and a line at the base."""
  figure = empty_figure(9.0, 1.2 + 0.34 * len(rows))
  axes = figure.subplots()
  for y, row in enumerate(rows):
    mean, deviation = row["war"]["mean"], row["war"]["standard_deviation"] or 0.0
    colour = "tab:orange" if row["row"] == "base" else "tab:blue"
    axes.errorbar(mean, y, xerr=deviation, fmt="D", color=colour, capsize=4, markersize=6, zorder=3)
    for run in row["runs"]:
      axes.plot(run["war"], y, "o", color=colour, alpha=0.35, markersize=5)
    if row["row"] == "base":
      axes.axvline(mean, color=colour, linestyle="--", linewidth=1, zorder=1)
  axes.set_yticks(range(len(rows)), [row["row"] for row in rows])
  axes.grid(axis="x", alpha=0.3)
  axes.set(ylim=(len(rows) - 0.4, -0.6), xlim=(0, 102),
           xlabel="WAR in percent: each seed (dots), mean ± standard deviation (diamond); dashed: the base")  # fmt: skip
  words = axes.twinx()
  words.set_ylim(axes.get_ylim())
  words.set_yticks(range(len(rows)), [plus_minus(row["war"]) for row in rows])
  words.tick_params(length=0)
  save_figure(figure, path)


def main(argv: Sequence[str]) -> int:
  del argv
  jax.config.update("jax_platforms", "cpu")  # accelerators are for the runs
  config, runs = _CONFIG.value, Path(_RUNS.value)
  planned, reasons = plan(config)
  check_same_runs(runs, planned)
  for row, reason in reasons.items():
    print(f"left out: {row}: {reason}")
  jobs = [series.Job(place.replace("/seed", ", seed "), runs / place, run, says=f": {ROWS[place.split('/')[0]].says};")
          for place, run in planned.items()]  # fmt: skip
  status = series.train_all(jobs, finished, lambda: report(runs, planned, config, reasons))
  if status is None:
    as_table = report(runs, planned, config, reasons)
    print(f"\n{as_table}\n\nwrote {runs}/ablations.md, ablations.json and ablations.png")
  return status or 0


if __name__ == "__main__":
  cli.run(main)
