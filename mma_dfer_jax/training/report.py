"""What a run leaves for people: metrics.jsonl and TensorBoard while it lasts, report.json, report.md and pictures.

And what the models of several folds leave together: folds.json, folds.md and the picture of their sum.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from mma_dfer_jax.data.labels import LABEL_ORDERS
from mma_dfer_jax.disk import write_json
from mma_dfer_jax.training.scores import Scores

# The paper's means over five folds, in percent, by the classes of the data set; `clips` are in all folds together.
_DFEW = {"data_set": "DFEW", "clips": 11_697, "war": 77.51, "uar": 67.01}
_MAFW = {"data_set": "MAFW", "clips": 9_172, "war": 58.52, "uar": 44.11}
PUBLISHED = {
  LABEL_ORDERS["dfew"].classes: _DFEW,
  LABEL_ORDERS["mafw"].classes: _MAFW,
  LABEL_ORDERS["mafw-official"].classes: _MAFW,
}


class MetricsLog:
  """Appends one JSON object per line to metrics.jsonl, and the same numbers to TensorBoard.

  Args:
    workdir: folder of the run.
    step: where the run starts or resumes; lines of later steps, from a killed run, are taken out.
    epoch: epochs that were evaluated until then; later ones are taken out likewise.
    writes: False in all processes but the first: nothing is written.
  """

  def __init__(self, workdir: Path, step: int, epoch: int, *, writes: bool = True):
    self._writes = writes
    if not writes:
      return
    path = workdir / "metrics.jsonl"
    kept = [line for line in _whole_lines(path) if line["step"] <= step and line.get("epoch", 0) <= epoch]
    partial = path.with_suffix(".partial")
    partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
    partial.replace(path)
    self._file = path.open("a")
    import tensorboardX  # reports of commands that only evaluate do not need it

    self._board = tensorboardX.SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)

  def write(self, step: int, metrics: Mapping[str, float]) -> None:
    if not self._writes:
      return
    self._file.write(json.dumps({"step": step} | {k: _number(v) for k, v in metrics.items()}) + "\n")
    self._file.flush()
    for name, value in metrics.items():
      self._board.add_scalar(name, value, step)
    self._board.flush()

  def close(self) -> None:
    if self._writes:
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
  facts: Mapping[str, Any],
) -> dict[str, Any]:
  """Writes report.json, report.md, confusion_matrix.png and learning_curves.png; returns the report.

  Args:
    workdir: folder of the run.
    run: as in run.json.
    history: one entry per epoch: epoch, step, loss, accuracy, test_loss, confusion_matrix, clips_without_sound.
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
    "step": history[-1]["step"],
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
  _draw_learning_curves(workdir, history, all_scores, run["config"]["loss.name"])
  (workdir / "report.md").write_text(_as_markdown(report, last))
  write_json(workdir / "report.json", report)
  return report


def percent(value: float | None) -> str:
  return "undefined" if value is None or math.isnan(value) else f"{value:.2f} %"


def recall_table(scores: Scores) -> str:
  """One line per class: clips, recall, and what it was mistaken for most often."""
  lines = ["| class | clips | recall | most often mistaken for |", "|---|---:|---:|---|"]
  for i, name in enumerate(scores.classes):
    clips, recall = scores.confusion[i].sum(), percent(scores.recall[i])
    lines.append(f"| {name} | {clips} | {recall} | {_mistake(scores, i)} |")
  return "\n".join(lines)


def _mistake(scores: Scores, i: int) -> str:
  """What a class was mistaken for most often."""
  wrong = scores.confusion[i].copy()
  wrong[i] = 0
  return f"{scores.classes[wrong.argmax()]} ({wrong.max()})" if wrong.any() else "–"


def _matrix_as_markdown(scores: Scores) -> list[str]:
  lines = [
    "| true \\ predicted | " + " | ".join(scores.classes) + " |",
    "|---|" + "---:|" * len(scores.classes),
  ]
  return lines + [
    f"| {name} | " + " | ".join(map(str, row)) + " |"
    for name, row in zip(scores.classes, scores.confusion, strict=True)
  ]


def _as_markdown(report: Mapping[str, Any], scores: Scores) -> str:
  best = report["best_epoch"]
  undefined = "" if report["uar"] is not None else (
    "\n\nUAR is undefined, as in the original: a class was predicted that no test clip has. Over the classes that "
    f"have clips it is {percent(report['uar_of_present_classes'])}."
  )  # fmt: skip
  told = ("clips", "clips_without_sound", "train_clips", "train_clips_without_sound", "clips_seen", "step", "tunable_parameters",
          "frozen_parameters", "peak_memory_gib", "started_from", "data_set", "splits", "version")  # fmt: skip
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
      *_matrix_as_markdown(scores),
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


@dataclasses.dataclass(frozen=True)
class Fold:
  """What one model got on the clips that it was not trained on.

  Attributes:
    name: the split.
    scores: of the model that counts.
    about: what else is known of it: folder, step, epoch, clips_without_sound.
    best_epoch: as in report.json; None if only one model was evaluated.
  """

  name: str
  scores: Scores
  about: Mapping[str, Any]
  best_epoch: Mapping[str, Any] | None = None


def mean_and_deviation(values: Sequence[float | None]) -> dict[str, float | None]:
  """Over folds, the deviation with n - 1; null if a value is undefined or, for the deviation, alone."""
  known = [math.nan if value is None else value for value in values]
  deviation = float(np.std(known, ddof=1)) if len(known) > 1 else math.nan
  return {"mean": _number(float(np.mean(known))), "standard_deviation": _number(deviation)}


def write_folds(
  folder: Path, folds: Sequence[Fold], *, model: str, facts: Mapping[str, Any]
) -> dict[str, Any]:
  """Writes folds.json, folds.md and confusion_matrix.png, of the summed counts; returns what folds.json says.

  Args:
    folder: made if it does not exist.
    folds: at least one, all of the same classes.
    model: which one of each fold counts, in words.
    facts: anything else to be told: recipe, config, version.
  """
  classes = tuple(folds[0].scores.classes)
  total = Scores(np.sum([fold.scores.confusion for fold in folds], axis=0), classes)
  results, published = [scores_as_json(fold.scores) for fold in folds], PUBLISHED.get(classes)
  best = [fold.best_epoch for fold in folds if fold.best_epoch]
  summary = {
    "model": model,
    **{name: mean_and_deviation([result[name] for result in results]) for name in _MEANS},
    "published": published if published and (len(folds), total.clips) == (5, published["clips"]) else None,
    "mean_recall": _mean_recall(folds),
    "sum": scores_as_json(total),
    "best_epoch": {
      "note": "by WAR on the test clips themselves, so it flatters; the headline is not this",
      **{name: mean_and_deviation([epoch[name] for epoch in best]) for name in ("war", "uar")},
    }
    if len(best) == len(folds)
    else None,
    "folds": [
      {"fold": fold.name, **result, **fold.about, "best_epoch": fold.best_epoch}
      for fold, result in zip(folds, results, strict=True)
    ],
    "classes": list(classes),
    **facts,
  }
  folder.mkdir(parents=True, exist_ok=True)
  draw_confusion_matrix(total, folder / "confusion_matrix.png", title=f"sum of {len(folds)} folds:  ")
  (folder / "folds.md").write_text(_folds_as_markdown(summary, total))
  write_json(folder / "folds.json", summary)
  return summary


_MEANS = ("war", "uar", "uar_of_present_classes")


def _mean_recall(folds: Sequence[Fold]) -> dict[str, float | None]:
  """By class, over the folds that have clips of it."""
  recalls = np.array([fold.scores.recall for fold in folds])
  known = [column[~np.isnan(column)] for column in recalls.T]
  return {
    name: float(column.mean()) if column.size else None
    for name, column in zip(folds[0].scores.classes, known, strict=True)
  }


def plus_minus(result: Mapping[str, float | None]) -> str:
  """A mean and its standard deviation."""
  mean, deviation = result["mean"], result["standard_deviation"]
  return percent(mean) if mean is None or deviation is None else f"{mean:.2f} ± {deviation:.2f} %"


def folds_table(summary: Mapping[str, Any]) -> str:
  """A line per fold, then their mean, what was published, and the best epochs."""
  rows = [
    (fold["fold"], fold["clips"], percent(fold["war"]), percent(fold["uar"])) for fold in summary["folds"]
  ]
  deviation = " ± standard deviation" * (len(rows) > 1)
  means = plus_minus(summary["war"]), plus_minus(summary["uar"])
  rows.append((f"**mean{deviation}**", summary["sum"]["clips"], *means))
  if published := summary["published"]:
    rows.append(
      (f"published, {published['data_set']}", "", percent(published["war"]), percent(published["uar"]))
    )
  if best := summary["best_epoch"]:
    rows.append(
      ("best epochs, chosen on the test clips", "", plus_minus(best["war"]), plus_minus(best["uar"]))
    )
  lines = ["| fold | clips | WAR | UAR |", "|---|---:|---:|---:|"]
  return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows])


def _folds_as_markdown(summary: Mapping[str, Any], total: Scores) -> str:
  known_of_models = ("folder", "epoch", "step", "clips_without_sound", "best_epoch")
  classes = [
    f"| {name} | {total.confusion[i].sum()} | {percent(total.recall[i])} | {percent(summary['mean_recall'][name])} "
    f"| {_mistake(total, i)} |"
    for i, name in enumerate(total.classes)
  ]
  models = []
  for fold in summary["folds"]:
    told = dict(fold, best_epoch=(fold["best_epoch"] or {}).get("epoch"))
    cells = ("–" if told.get(name) is None else str(told[name]) for name in known_of_models)
    models.append(f"| {fold['fold']} | {' | '.join(cells)} |")
  return "\n".join(
    [
      f"# MMA-DFER: {', '.join(fold['fold'] for fold in summary['folds'])}",
      "",
      f"**WAR {plus_minus(summary['war'])}, UAR {plus_minus(summary['uar'])}**, {summary['model']}.",
      "",
      folds_table(summary),
      "",
      *_notes_on_folds(summary),
      "",
      "## Classes",
      "",
      "| class | clips | recall in the sum | mean recall of the folds | most often mistaken for |",
      "|---|---:|---:|---:|---|",
      *classes,
      "",
      "## Confusion matrix, summed over the folds",
      "",
      *_matrix_as_markdown(total),
      "",
      "![confusion matrix](confusion_matrix.png)",
      "",
      "## The models",
      "",
      "| fold | " + " | ".join(name.replace("_", " ") for name in known_of_models) + " |",
      "|---|" + "---|" * len(known_of_models),
      *models,
      "",
      "Recipe of the data:",
      "",
      *(f"- {key}: {value}" for key, value in summary["recipe"].items()),
      "",
      *(f"- `{key}` = `{value}`" for key, value in summary.get("config", {}).items()),
      "",
    ]
  )


def _notes_on_folds(summary: Mapping[str, Any]) -> list[str]:
  """How the numbers of the table are to be read."""
  number = len(summary["folds"])
  notes = ["One fold has no standard deviation."]
  if number > 1:
    notes = [
      f"Mean and standard deviation (divided by n − 1 = {number - 1}) are over folds, each counting once."
    ]
  if undefined := [fold["fold"] for fold in summary["folds"] if fold["uar"] is None]:
    notes.append(
      f"UAR is undefined in {', '.join(undefined)}, as in the original: a class was predicted that none of its test "
      "clips has; so is the mean. Over the classes that have clips, UAR is "
      f"{plus_minus(summary['uar_of_present_classes'])}."
    )
  if published := summary["published"]:
    notes.append(
      f"Published are the paper's means over the five folds of {published['data_set']} (arXiv 2404.09010), which have "
      f"{published['clips']} clips, as these have: to be compared only if each is in its own fold."
    )
  if summary["best_epoch"]:
    notes.append("A best epoch is chosen by looking at the test clips, so it flatters; it is no result.")
  return [f"- {note}" for note in notes]


def draw_confusion_matrix(scores: Scores, path: Path, title: str = "") -> None:
  """Counts in cells, shaded by the share of the true class; rows are true classes."""
  n = len(scores.classes)
  side = 2.5 + 0.62 * n
  figure = empty_figure(side + 0.8, side)
  axes = figure.subplots()
  support = scores.confusion.sum(axis=1, keepdims=True)
  share = 100.0 * scores.confusion / np.maximum(support, 1)
  image = axes.imshow(share, cmap="Blues", vmin=0, vmax=100)
  for (i, j), clips in np.ndenumerate(scores.confusion):
    axes.text(j, i, str(clips), ha="center", va="center", color="white" if share[i, j] > 55 else "black")
  axes.set_xticks(range(n), scores.classes, rotation=45, ha="right")
  axes.set_yticks(range(n), scores.classes)
  axes.set_xlabel("predicted")
  axes.set_ylabel("true")
  axes.set_title(f"{title}WAR {percent(scores.war)}   UAR {percent(scores.uar)}   {scores.clips} clips")
  figure.colorbar(image, label="% of the true class", shrink=0.8)
  figure.savefig(path, dpi=110)


def _draw_learning_curves(
  workdir: Path, history: Sequence[Mapping[str, Any]], scores: Sequence[Scores], loss: str
) -> None:
  epochs = [epoch["epoch"] for epoch in history]
  style = {"marker": "o", "markersize": 3}
  figure = empty_figure(10, 4)
  left, right = figure.subplots(1, 2)
  left.plot(epochs, [e["loss"] for e in history], label="training, mean of the epoch", **style)
  left.plot(epochs, [e["test_loss"] for e in history], label="test", **style)
  left.set_ylabel(f"loss ({loss})")
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


def empty_figure(width: float, height: float) -> Any:
  """An empty picture, in inches; Matplotlib is imported only now, for it takes a second."""
  from matplotlib.figure import Figure

  return Figure(figsize=(width, height), layout="constrained")
