"""What a run leaves for people: metrics.jsonl and TensorBoard while it lasts, report.json, report.md and pictures."""

from collections.abc import Mapping, Sequence
import json
import math
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no screen needed

from matplotlib import pyplot as plt
import numpy as np
import tensorboardX

from mma_dfer_jax.checkpoints import write_json
from mma_dfer_jax.metrics import Scores


class MetricsLog:
  """Appends one JSON object per line to metrics.jsonl, and the same numbers to TensorBoard.

  Args:
    workdir: folder of the run.
    step: where the run starts or resumes; lines of later steps, from a killed run, are taken out.
    epoch: epochs that were evaluated until then; later ones are taken out likewise.
  """

  def __init__(self, workdir: Path, step: int, epoch: int):
    path = workdir / "metrics.jsonl"
    kept = [line for line in _whole_lines(path) if line["step"] <= step and line.get("epoch", 0) <= epoch]
    partial = path.with_suffix(".partial")
    partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
    partial.replace(path)
    self._file = path.open("a")
    self._board = tensorboardX.SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)

  def write(self, step: int, metrics: Mapping[str, float]) -> None:
    self._file.write(json.dumps({"step": step} | {k: _number(v) for k, v in metrics.items()}) + "\n")
    self._file.flush()
    for name, value in metrics.items():
      self._board.add_scalar(name, value, step)
    self._board.flush()

  def close(self) -> None:
    self._file.close()
    self._board.close()


def _whole_lines(path: Path) -> list[dict[str, Any]]:
  """The lines that a killed run wrote to their end."""
  lines = []
  for line in path.read_text().splitlines() if path.exists() else []:
    try:
      lines.append(json.loads(line))
    except json.JSONDecodeError:
      break
  return lines


def _number(value: float) -> float | None:
  """JSON has no NaN."""
  return float(value) if math.isfinite(value) else None


def scores_as_json(scores: Scores) -> dict[str, Any]:
  """WAR, UAR and recalls in percent, and the counts they come from."""
  return {
    "war": _number(scores.war),
    "uar": _number(scores.uar),
    "uar_of_present_classes": _number(scores.uar_present),
    "recall": {name: _number(r) for name, r in zip(scores.classes, scores.recall, strict=True)},
    "confusion_matrix": scores.confusion.tolist(),
    "clips": scores.clips,
  }


def write_report(
  workdir: Path,
  *,
  run: Mapping[str, Any],
  history: Sequence[Mapping[str, Any]],
  step: int,
  facts: Mapping[str, Any],
) -> dict[str, Any]:
  """Writes report.json, report.md, confusion_matrix.png and learning_curves.png; returns the report.

  Args:
    workdir: folder of the run.
    run: as in run.json.
    history: one entry per epoch: epoch, step, loss, accuracy, test_loss, confusion_matrix, clips_without_sound.
    step: updates of the model that the report is about, the last one.
    facts: anything else to be told: parameters, data set, clips seen.
  """
  classes = run["classes"]
  all_scores = [Scores(np.array(epoch["confusion_matrix"]), classes) for epoch in history]
  last = all_scores[-1]
  best = max(
    range(len(history)), key=lambda i: (all_scores[i].war, i)
  )  # of equal ones the last, as it is kept
  report = {
    **scores_as_json(last),
    "epoch": history[-1]["epoch"],
    "step": step,
    "classes": classes,
    "clips_without_sound": history[-1]["clips_without_sound"],
    "best_epoch": {
      "note": "by WAR on the test clips themselves, so it flatters; the headline is the last epoch",
      "epoch": history[best]["epoch"],
      "step": history[best]["step"],
      "war": _number(all_scores[best].war),
      "uar": _number(all_scores[best].uar),
    },
    **facts,
    "recipe": run["recipe"],
    "config": run["config"],
    "version": run["version"],
  }
  draw_confusion_matrix(last, workdir / "confusion_matrix.png")
  _draw_learning_curves(workdir, history, all_scores)
  (workdir / "report.md").write_text(_as_markdown(report, last))
  write_json(workdir / "report.json", report)
  return report


def percent(value: float | None) -> str:
  return "undefined" if value is None or math.isnan(value) else f"{value:.2f} %"


def recall_table(scores: Scores) -> str:
  """One line per class: clips, recall, and what it was taken for most often."""
  lines = ["| class | clips | recall | most often taken for |", "|---|---:|---:|---|"]
  for i, name in enumerate(scores.classes):
    wrong = scores.confusion[i].copy()
    wrong[i] = 0
    mistake = f"{scores.classes[wrong.argmax()]} ({wrong.max()})" if wrong.any() else "–"
    lines.append(f"| {name} | {scores.confusion[i].sum()} | {percent(scores.recall[i])} | {mistake} |")
  return "\n".join(lines)


def _as_markdown(report: Mapping[str, Any], scores: Scores) -> str:
  best = report["best_epoch"]
  undefined = "" if report["uar"] is not None else (
    "\n\nUAR is undefined, as in the original: a class was predicted that no test clip has. Over the classes that "
    f"have clips it is {percent(report['uar_of_present_classes'])}."
  )  # fmt: skip
  matrix = [
    "| true \\ predicted | " + " | ".join(scores.classes) + " |",
    "|---|" + "---:|" * len(scores.classes),
  ]
  matrix += [
    f"| {name} | " + " | ".join(map(str, row)) + " |"
    for name, row in zip(scores.classes, scores.confusion, strict=True)
  ]
  told = ("clips", "clips_without_sound", "train_clips", "train_clips_without_sound", "clips_seen", "step", "tunable_parameters",
          "frozen_parameters", "pretrained", "data_set", "splits", "version")  # fmt: skip
  facts = [f"| {name.replace('_', ' ')} | {report[name]} |" for name in told if name in report]
  return "\n".join(
    [
      "# MMA-DFER: report of a run",
      "",
      f"**WAR {percent(report['war'])}, UAR {percent(report['uar'])}** on {report['clips']} test clips, after the last "
      f"epoch ({report['epoch']}).{undefined}",
      "",
      f"Best epoch, chosen by looking at the test clips: {best['epoch']} with WAR {percent(best['war'])}, "
      f"UAR {percent(best['uar'])}.",
      "",
      recall_table(scores),
      "",
      "## Confusion matrix",
      "",
      *matrix,
      "",
      "![confusion matrix](confusion_matrix.png)",
      "",
      "## Learning curves",
      "",
      "![learning curves](learning_curves.png)",
      "",
      "## The run",
      "",
      "| | |",
      "|---|---|",
      *facts,
      "",
      "Recipe of the data:",
      "",
      *(f"- {key}: {value}" for key, value in report["recipe"].items()),
      "",
      "Config:",
      "",
      *(f"- `{key}` = `{value}`" for key, value in report["config"].items()),
      "",
    ]
  )


def draw_confusion_matrix(scores: Scores, path: Path) -> None:
  """Counts in cells, shaded by the share of the true class; rows are true classes."""
  n = len(scores.classes)
  side = 2.5 + 0.62 * n
  figure, axes = plt.subplots(figsize=(side + 0.8, side), layout="constrained")
  support = scores.confusion.sum(axis=1, keepdims=True)
  share = 100.0 * scores.confusion / np.maximum(support, 1)
  image = axes.imshow(share, cmap="Blues", vmin=0, vmax=100)
  for (i, j), clips in np.ndenumerate(scores.confusion):
    axes.text(j, i, str(clips), ha="center", va="center", color="white" if share[i, j] > 55 else "black")
  axes.set_xticks(range(n), scores.classes, rotation=45, ha="right")
  axes.set_yticks(range(n), scores.classes)
  axes.set_xlabel("predicted")
  axes.set_ylabel("true")
  axes.set_title(f"WAR {percent(scores.war)}   UAR {percent(scores.uar)}   {scores.clips} clips")
  figure.colorbar(image, label="% of the true class", shrink=0.8)
  figure.savefig(path, dpi=110)
  plt.close(figure)


def _draw_learning_curves(
  workdir: Path, history: Sequence[Mapping[str, Any]], scores: Sequence[Scores]
) -> None:
  epochs = [epoch["epoch"] for epoch in history]
  style = {"marker": "o", "markersize": 3}
  figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
  left.plot(epochs, [e["loss"] for e in history], label="training, mean of the epoch", **style)
  left.plot(epochs, [e["test_loss"] for e in history], label="test", **style)
  left.set_ylabel("cross-entropy")
  right.plot(epochs, [e["accuracy"] for e in history], label="training accuracy, mean of the epoch", **style)
  right.plot(epochs, [s.war for s in scores], label="test WAR", **style)
  right.plot(
    epochs, [s.uar_present for s in scores], label="test UAR", linestyle="--", **style
  )  # often on top of WAR
  right.set_ylabel("%")
  right.set_ylim(0, 102)
  for axes in (left, right):
    axes.set_xlabel("epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.legend()
  figure.savefig(workdir / "learning_curves.png", dpi=110)
  plt.close(figure)
