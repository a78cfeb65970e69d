"""What several rows of runs leave for people: a table, the same as JSON, and a picture of it."""

from collections.abc import Mapping, Sequence
import dataclasses
from pathlib import Path
import statistics
from typing import Any

from mma_dfer_jax.disk import write_json
from mma_dfer_jax.training.report import empty_figure, mean_and_deviation, plus_minus


@dataclasses.dataclass(frozen=True)
class RowResult:
  """What came of one row.

  Attributes:
    name: of the row.
    says: what it changes.
    runs: one for each seed: seed, war, uar, tunable_parameters, frozen_parameters, peak_memory_gib, clips_per_second of
      each line of its log.
    batch_size: clips a step.
  """

  name: str
  says: str
  runs: Sequence[Mapping[str, Any]]
  batch_size: int

  def as_json(self) -> dict[str, Any]:
    rates = [rate for run in self.runs for rate in run["clips_per_second"]]
    return {
      "row": self.name,
      "changes": self.says,
      "tunable_parameters": self.runs[0]["tunable_parameters"],
      "frozen_parameters": self.runs[0]["frozen_parameters"],
      **{name: mean_and_deviation([run[name] for run in self.runs]) for name in ("war", "uar")},
      "seconds_per_step": self.batch_size / statistics.median(rates),
      "peak_memory_gib": max(run["peak_memory_gib"] for run in self.runs),
      "runs": [{key: value for key, value in run.items() if key != "clips_per_second"} for run in self.runs],
    }


NOTES = """\
WAR and UAR: percent, after the last epoch, mean ± standard deviation (n − 1) over seeds. A seed sets fresh weights, the
order of the clips, augmentation and drop path; parameters that two rows have in common start from the same values.
Seconds: median time of one step over the logs of all seeds, without compilation and evaluation. Memory: highest peak
of all seeds, of the device where it keeps statistics, else of the whole process (since it was last resumed)."""


def table(rows: Sequence[Mapping[str, Any]]) -> str:
  """The rows as Markdown."""
  lines = [
    "| row | what it changes | trained parameters | WAR | UAR | seeds | s / step | peak GiB |",
    "|---|---|---:|---:|---:|---:|---:|---:|",
  ]
  for row in rows:
    cells = (f"`{row['row']}`", row["changes"], f"{row['tunable_parameters']:,}", plus_minus(row["war"]),
             plus_minus(row["uar"]), len(row["runs"]), f"{row['seconds_per_step']:.2f}",
             f"{row['peak_memory_gib']:.2f}")  # fmt: skip
    lines.append("| " + " | ".join(map(str, cells)) + " |")
  return "\n".join(lines)


def write_comparison(folder: Path, results: Sequence[RowResult], facts: Mapping[str, Any]) -> str:
  """Writes ablations.json, ablations.md and ablations.png; returns the table.

  Args:
    folder: where they go.
    results: at least one row, each with at least one run.
    facts: anything else to be told; `left_out` has the reason of each row that could not be.
  """
  rows = [result.as_json() for result in results]
  as_table = table(rows)
  left_out = [f"- `{row}`: {reason}" for row, reason in facts["left_out"].items()]
  lines = [
    "# MMA-DFER: ablations", "", as_table, "", NOTES, "", "![WAR of each row](ablations.png)", "",
    *(["## Rows left out", "", *left_out, ""] if left_out else []),
    "## The base", "", *(f"- `{key}` = `{value}`" for key, value in facts["config"].items() if key != "seed"), "",
  ]  # fmt: skip
  (folder / "ablations.md").write_text("\n".join(lines))
  write_json(folder / "ablations.json", {"rows": rows, "notes": NOTES.split("\n"), **facts})
  draw(rows, folder / "ablations.png")
  return as_table


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
  """WAR of each row: mean and deviation, every seed as a dot, and a line at the base."""
  figure = empty_figure(9.0, 1.2 + 0.34 * len(rows))
  axes = figure.subplots()
  for y, row in enumerate(rows):
    values = [run["war"] for run in row["runs"]]
    mean, deviation = row["war"]["mean"], row["war"]["standard_deviation"] or 0.0
    colour = "tab:orange" if row["row"] == "base" else "tab:blue"
    axes.errorbar(mean, y, xerr=deviation, fmt="D", color=colour, capsize=4, markersize=6, zorder=3)
    axes.plot(values, [y] * len(values), "o", color=colour, alpha=0.35, markersize=5)
    if row["row"] == "base":
      axes.axvline(mean, color=colour, linestyle="--", linewidth=1, zorder=1)
  axes.set_yticks(range(len(rows)), [row["row"] for row in rows])
  axes.set_ylim(len(rows) - 0.4, -0.6)
  axes.set_xlim(0, 102)
  axes.grid(axis="x", alpha=0.3)
  axes.set_xlabel("WAR in percent: each seed (dots), mean ± standard deviation (diamond); dashed: the base")
  words = axes.twinx()
  words.set_ylim(axes.get_ylim())
  words.set_yticks(range(len(rows)), [plus_minus(row["war"]) for row in rows])
  words.tick_params(length=0)
  figure.savefig(path, dpi=110)
