"""What a run leaves for people: metrics.jsonl and TensorBoard while it trains, then a report as JSON, Markdown and pictures.

A run is one fold: the report of a run and that of several folds are put together from the same blocks.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from mma_dfer_jax.data.labels import LABEL_ORDERS
from mma_dfer_jax.data.layouts import PUBLISHED as COUNTS
from mma_dfer_jax.disk import write_json
from mma_dfer_jax.training.predictions import Predictions
from mma_dfer_jax.training.scores import Scores

# The paper's means over five folds, in percent, by data set; and the label orders that its classes stand in.
SCORES = {"dfew": {"war": 77.51, "uar": 67.01}, "mafw": {"war": 58.52, "uar": 44.11}}
PUBLISHED = {
  LABEL_ORDERS[order].classes: order.partition("-")[0] for order in ("dfew", "mafw", "mafw-official")
}
FLATTERS = "by WAR on the test clips themselves, so it flatters"


class MetricsLog:
  """Appends one JSON object per line to metrics.jsonl, and the same numbers to TensorBoard.

  Args:
    workdir: folder of the run.
    step: where the run starts or resumes; lines of later steps, from a killed run, are removed.
    epoch: the last one that was evaluated until then; later ones are removed likewise.
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
  """The lines that a killed run wrote completely."""
  lines = []
  for line in path.read_text().splitlines() if path.exists() else []:
    try:
      lines.append(json.loads(line))
    except json.JSONDecodeError:
      break
  return lines


@dataclasses.dataclass(frozen=True)
class Fold:
  """The result of one model on clips that it was not trained on.

  Attributes:
    name: the split.
    scores: of the model that counts.
    about: what else is known of it: folder, step, epoch, clips_without_sound.
    best_epoch: as in report.json; None if only one model was evaluated.
    predictions: its answer to each clip; None if they were not kept.
  """

  name: str
  scores: Scores
  about: Mapping[str, Any]
  best_epoch: Mapping[str, Any] | None = None
  predictions: Predictions | None = None


def write_report(
  workdir: Path,
  *,
  run: Mapping[str, Any],
  history: Sequence[Mapping[str, Any]],
  facts: Mapping[str, Any],
  split: str = "test",
) -> dict[str, Any]:
  """Writes report.json, report.md, confusion_matrix.png and learning_curves.png; returns the report.

  Args:
    workdir: folder of the run.
    run: as in run.json.
    history: one entry per evaluated epoch: epoch, step, loss, accuracy, test_loss, confusion_matrix,
      clips_without_sound.
    facts: what else the report lists: parameters, data set, clips seen.
    split: that was evaluated.
  """
  every = [Scores(np.array(epoch["confusion_matrix"]), tuple(run["classes"])) for epoch in history]
  last, newest = every[-1], history[-1]
  best = max(range(len(every)), key=lambda i: (every[i].war, i))  # of equal ones the last, as it is kept
  report = {
    **scores_as_json(last),
    "epoch": newest["epoch"],
    "step": newest["step"],
    "classes": run["classes"],
    "clips_without_sound": newest["clips_without_sound"],
    "evaluated_epochs": [epoch["epoch"] for epoch in history],
    "best_epoch": {
      "note": f"{FLATTERS}; the headline is the last epoch",
      "epoch": history[best]["epoch"],
      "step": history[best]["step"],
      "war": _number(every[best].war),
      "uar": _number(every[best].uar),
    },
    "published": published_for(last, [split]),
    **facts,
    **{key: run[key] for key in ("recipe", "config", "version")},
  }
  chosen, number = report["best_epoch"], len(history)
  among = "" if number == newest["epoch"] else f" among the {number} epochs that were evaluated"
  listed = ("clips", "clips_without_sound", "train_clips", "train_clips_without_sound", "clips_seen", "step", "tunable_parameters",
            "frozen_parameters", "peak_memory_gib", "started_from", "data_set", "splits", "version")  # fmt: skip
  _draw_learning_curves(workdir, history, every, run["config"]["loss.name"])
  _write(
    workdir, "report", report, last, "",
    f"**WAR {percent(last.war)}, UAR {percent(last.uar)}** on {last.clips} test clips, after the last epoch "
    f"({report['epoch']}).",
    _undefined(report),
    f"Best epoch, chosen by looking at the test clips{among}: {chosen['epoch']} with WAR {percent(chosen['war'])}, "
    f"UAR {percent(chosen['uar'])}.",
    published_row(report["published"], as_sentence=True),
    recall_table(last),
    *_matrix_blocks(last),
    "## Learning curves",
    "![learning curves](learning_curves.png)",
    "## The run",
    table(["", ""], [(name.replace("_", " "), report[name]) for name in listed if name in report]),
    *_settings(report),
  )  # fmt: skip
  return report


def write_folds(
  folder: Path, folds: Sequence[Fold], *, model: str, facts: Mapping[str, Any]
) -> dict[str, Any]:
  """Writes folds.json, folds.md, and of the summed counts confusion_matrix.png; returns what folds.json says.

  The predictions of all folds together become predictions.csv, if all folds have kept theirs.

  Args:
    folder: made if it does not exist.
    folds: at least one, all of the same classes.
    model: which one of each fold counts, in words.
    facts: what else the report lists: recipe, config, version.
  """
  classes = tuple(folds[0].scores.classes)
  total = Scores(np.sum([fold.scores.confusion for fold in folds], axis=0), classes)
  results, best = (
    [scores_as_json(fold.scores) for fold in folds],
    [f.best_epoch for f in folds if f.best_epoch],
  )
  recalls = {
    name: [r for r in (result["recall"][name] for result in results) if r is not None] for name in classes
  }
  by_class = {name: mean_and_deviation(of_class or [None]) for name, of_class in recalls.items()}
  means = ("war", "uar", "uar_of_present_classes")
  summary = {
    "model": model,
    **{name: mean_and_deviation([result[name] for result in results]) for name in means},
    "published": published_for(total, [fold.name for fold in folds]),
    "mean_recall": {name: of_class["mean"] for name, of_class in by_class.items()},
    "recall_standard_deviation": {name: of_class["standard_deviation"] for name, of_class in by_class.items()},
    "sum": scores_as_json(total),
    "best_epoch": {
      "note": f"{FLATTERS}; the headline is not this",
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
  }  # fmt: skip
  of_models = ("folder", "epoch", "step", "clips_without_sound", "best_epoch")
  models = [fold | {"best_epoch": (fold["best_epoch"] or {}).get("epoch")} for fold in summary["folds"]]
  folder.mkdir(parents=True, exist_ok=True)
  if all(fold.predictions for fold in folds):
    Predictions.joined([fold.predictions for fold in folds if fold.predictions]).write(
      folder / "predictions.csv"
    )
  _write(
    folder, "folds", summary, total, f"sum of {len(folds)} folds:  ",
    f"**WAR {plus_minus(summary['war'])}, UAR {plus_minus(summary['uar'])}**, {model}.",
    folds_table(summary),
    _bullets(_notes_on_folds(summary)),
    "## Classes",
    recall_table(total, by_class),
    *_matrix_blocks(total, ", summed over the folds"),
    "## The models",
    table(["fold", *(name.replace("_", " ") for name in of_models)],
          [[m["fold"], *("–" if m.get(name) is None else m[name] for name in of_models)] for m in models]),
    *_settings(summary),
  )  # fmt: skip
  return summary


def _write(folder: Path, name: str, as_json: Any, scores: Scores, picture_title: str, *blocks: str) -> None:
  """A report of either kind; the JSON comes last, for it says that all is there."""
  title = "report of a run" if name == "report" else ", ".join(fold["fold"] for fold in as_json["folds"])
  draw_confusion_matrix(scores, folder / "confusion_matrix.png", picture_title)
  write_markdown(folder / f"{name}.md", f"# MMA-DFER: {title}", *blocks)
  write_json(folder / f"{name}.json", as_json)


def write_markdown(path: Path, *blocks: str) -> None:
  """Paragraphs, tables and headings with an empty line between each two; empty ones are skipped."""
  path.write_text("\n\n".join(block for block in blocks if block) + "\n")


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
  """A Markdown table; a column whose name ends with ">" is set to the right."""
  lines = [
    [name.rstrip(">") for name in columns],
    ["---:" if ">" in name else "---" for name in columns],
    *rows,
  ]
  return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _bullets(lines: Iterable[str]) -> str:
  return "\n".join(f"- {line}" for line in lines)


def _settings(report: Mapping[str, Any]) -> list[str]:
  """Recipe and config."""
  config = report.get("config", {})
  return ["Recipe of the data:", _bullets(f"{key}: {value}" for key, value in report["recipe"].items()),
          "Config:" * bool(config), _bullets(f"`{key}` = `{value}`" for key, value in config.items())]  # fmt: skip


def _matrix_blocks(scores: Scores, what: str = "") -> list[str]:
  rows = [[name, *row] for name, row in zip(scores.classes, scores.confusion, strict=True)]
  columns = ["true \\ predicted", *(f"{name}>" for name in scores.classes)]
  return [f"## Confusion matrix{what}", table(columns, rows), "![confusion matrix](confusion_matrix.png)"]


def _undefined(report: Mapping[str, Any]) -> str:
  return "" if report["uar"] is not None else (
    "UAR is undefined, as in the original: a class was predicted that no test clip has. Over the classes that have "
    f"clips it is {percent(report['uar_of_present_classes'])}."
  )  # fmt: skip


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


def published_for(scores: Scores, folds: Sequence[str]) -> dict[str, Any] | None:
  """The paper's mean over five folds for these classes, and why a score cannot be compared with it; None: no such classes.

  Args:
    scores: summed over the folds.
    folds: names of the splits.
  """
  name = PUBLISHED.get(tuple(scores.classes))
  if name is None:
    return None
  of_folds = COUNTS[name]
  named = [of_folds[fold] for fold in folds if fold in of_folds] or list(of_folds.values())
  here = dict(zip(scores.classes, scores.confusion.sum(axis=1).tolist(), strict=True))
  there = {one: sum(fold[one] for fold in named) for one in scores.classes}
  reasons = []
  if here != there:
    differing = [f"{one} {here[one]:,}, not {there[one]:,}" for one in there if here[one] != there[one]]
    reasons.append(f"the class counts differ, {scores.clips:,} clips here against {sum(there.values()):,} published "
                   f"({', '.join(differing[:3])}{', …' * (len(differing) > 3)})")  # fmt: skip
  if sorted(folds) != sorted(of_folds):
    reasons.append(f"the published score is the mean of {len(of_folds)} folds, these are {', '.join(folds)}")
  return {"data_set": name.upper(), "clips": sum(sum(fold.values()) for fold in of_folds.values()), **SCORES[name],
          "not_comparable": "; ".join(reasons) or None}  # fmt: skip


def published_row(published: Mapping[str, Any] | None, as_sentence: bool = False) -> Any:
  """The published scores as a row of a table or as a sentence; empty if there are none."""
  if not published:
    return "" if as_sentence else []
  war, uar = percent(published["war"]), percent(published["uar"])
  reason = f": not comparable, {published['not_comparable']}" if published["not_comparable"] else ""
  if as_sentence:
    return f"Published for {published['data_set']} (arXiv 2404.09010): WAR {war}, UAR {uar}{reason}."
  return [(f"published, {published['data_set']}{reason}", "", war, uar)]


def percent(value: float | None) -> str:
  return "undefined" if value is None or math.isnan(value) else f"{value:.2f} %"


def _number(value: float) -> float | None:
  """JSON has no NaN."""
  return float(value) if math.isfinite(value) else None


def mean_and_deviation(values: Sequence[float | None]) -> dict[str, float | None]:
  """Over folds, the deviation with n - 1; null if a value is undefined or, for the deviation, alone."""
  known = [math.nan if value is None else value for value in values]
  deviation = float(np.std(known, ddof=1)) if len(known) > 1 else math.nan
  return {"mean": _number(float(np.mean(known))), "standard_deviation": _number(deviation)}


def plus_minus(result: Mapping[str, float | None]) -> str:
  """A mean and its standard deviation."""
  mean, deviation = result["mean"], result["standard_deviation"]
  return percent(mean) if mean is None or deviation is None else f"{mean:.2f} ± {deviation:.2f} %"


def recall_table(scores: Scores, by_class: Mapping[str, Mapping[str, float | None]] | None = None) -> str:
  """A line per class: clips, recall, and what it was most often mistaken for; over folds, their mean recall too."""
  rows = []
  for i, name in enumerate(scores.classes):
    wrong = scores.confusion[i].copy()
    wrong[i] = 0
    mistake = f"{scores.classes[wrong.argmax()]} ({wrong.max()})" if wrong.any() else "–"
    means = [plus_minus(by_class[name])] if by_class else []
    rows.append([name, scores.confusion[i].sum(), percent(scores.recall[i]), *means, mistake])
  recalls = (
    ["recall in the sum>", "mean recall ± standard deviation of the folds>"] if by_class else ["recall>"]
  )
  return table(["class", "clips>", *recalls, "most often mistaken for"], rows)


def folds_table(summary: Mapping[str, Any]) -> str:
  """A line per fold, then their mean, what was published, and the best epochs."""
  rows: list[Sequence[Any]] = [
    (fold["fold"], fold["clips"], percent(fold["war"]), percent(fold["uar"])) for fold in summary["folds"]
  ]
  mean = "**mean ± standard deviation**" if len(rows) > 1 else "**mean**"
  rows.append((mean, summary["sum"]["clips"], plus_minus(summary["war"]), plus_minus(summary["uar"])))
  rows += published_row(summary["published"])
  if best := summary["best_epoch"]:
    rows.append(
      ("best epochs, chosen on the test clips", "", plus_minus(best["war"]), plus_minus(best["uar"]))
    )
  return table(["fold", "clips>", "WAR>", "UAR>"], rows)


def _notes_on_folds(summary: Mapping[str, Any]) -> list[str]:
  """How to read the numbers of the table."""
  number, published = len(summary["folds"]), summary["published"]
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
  if published and published["not_comparable"]:
    notes.append(f"Do not compare with the published score: {published['not_comparable']}.")
  elif published:
    notes.append(
      f"Published are the paper's means over the five folds of {published['data_set']} (arXiv 2404.09010); the clips of "
      "each class are as many as these."
    )
  if summary["best_epoch"]:
    notes.append("A best epoch is chosen by looking at the test clips, so it flatters; it is no result.")
  return notes


def draw_confusion_matrix(scores: Scores, path: Path, title: str = "") -> None:
  """Counts in cells, shaded by the share of the true class; rows are true classes."""
  n = len(scores.classes)
  side = 2.5 + 0.62 * n
  figure = empty_figure(side + 0.8, side)
  axes = figure.subplots()
  share = 100.0 * scores.confusion / np.maximum(scores.confusion.sum(axis=1, keepdims=True), 1)
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
  def numbers(name: str) -> list[float]:
    return [epoch[name] for epoch in history]

  figure = empty_figure(10, 4)
  left, right = figure.subplots(1, 2)
  curves = (
    (left, numbers("loss"), "training, mean since the evaluation before", "-"),
    (left, numbers("test_loss"), "test", "-"),
    (right, numbers("accuracy"), "training accuracy, mean since the evaluation before", "-"),
    (right, [s.war for s in scores], "test WAR", "-"),
    (right, [s.uar_present for s in scores], "test UAR", "--"),  # often on top of WAR
  )
  for axes, values, label, style in curves:
    axes.plot(numbers("epoch"), values, style, marker="o", markersize=3, label=label)
  left.set_ylabel(f"loss ({loss})")
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
