"""What a run leaves for people: metrics.jsonl and TensorBoard while it trains, then a report as JSON, Markdown and pictures.

A run is one fold: the report of a run and that of several folds are put together from the same blocks.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import json
import math
from pathlib import Path
import sys
from typing import Any

import numpy as np

from mma_dfer_jax.data.labels import COUNTS, LABEL_ORDERS, SCORES
from mma_dfer_jax.disk import new_file, write_json
from mma_dfer_jax.errors import EXAMPLES, UserError, count
from mma_dfer_jax.training import calibration
from mma_dfer_jax.training.predictions import Predictions
from mma_dfer_jax.training.scores import Scores

# The data set of published scores, by the label orders that its classes stand in.
PUBLISHED = {
  LABEL_ORDERS[order].classes: order.partition("-")[0] for order in ("dfew", "mafw", "mafw-official")
}
FLATTERS = "by WAR on the test clips themselves, so it flatters"


class MetricsLog:
  """Appends one JSON object per line to metrics.jsonl, and the same numbers to TensorBoard; both end at step and epoch.

  Lines of later steps and of later evaluated epochs, from a killed run, are removed.
  """

  def __init__(self, workdir: Path, step: int, epoch: int):
    path, kept = workdir / "metrics.jsonl", []
    for line in path.read_text().splitlines() if path.exists() else []:
      try:
        numbers = json.loads(line)
      except json.JSONDecodeError:  # a killed run did not write it completely
        break
      if numbers["step"] <= step and numbers.get("epoch", 0) <= epoch:
        kept.append(f"{line}\n")
    with new_file(path, replace=True) as partial:
      partial.write_text("".join(kept))
    self._file = path.open("a")
    torch = sys.modules.setdefault("torch", None)  # type: ignore[arg-type] # seconds, for what is not used here
    import tensorboardX  # reports of commands that only evaluate do not need it

    if torch is None:
      del sys.modules["torch"]
    self._board = tensorboardX.SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)

  def write(self, step: int, metrics: Mapping[str, float | int]) -> None:
    try:
      self._file.write(json.dumps({"step": step} | {k: _number(float(v)) for k, v in metrics.items()}) + "\n")
      self._file.flush()
      for name, value in metrics.items():
        self._board.add_scalar(name, value, step)
      self._board.flush()
    except OSError as error:  # a full disk, which names no file
      where = f"{self._file.name}, or tensorboard/ beside it"
      raise UserError(f"cannot write {where}: {error.strerror}") from error

  def close(self) -> None:
    self._file.close()
    self._board.close()


@dataclasses.dataclass(frozen=True)
class Fold:
  """The result of one model on clips that it was not trained on."""

  name: str  # the split
  predictions: Predictions
  about: Mapping[str, Any]  # folder, step, epoch, clips_without_sound, as far as known
  best_epoch: Mapping[str, Any] | None = None  # as in report.json; None if only one model was evaluated


def write_report(
  workdir: Path, *, run: Mapping[str, Any], history: Sequence[Mapping[str, Any]], predictions: Predictions,
  held_out: Mapping[str, Any], facts: Mapping[str, Any], split: str,
) -> dict[str, Any]:  # fmt: skip
  """Writes report.json, report.md and the pictures confusion_matrix, learning_curves, reliability; returns the report.

  Args:
    history: one entry per evaluated epoch: epoch, step, loss, accuracy, test_loss, confusion_matrix, clips_without_sound.
    predictions, held_out: of the last of them, on the test clips; and its temperature, and of how many clips. Or empty.
    facts: what else the report lists: parameters, data set, clips seen.
  """
  every = [Scores(np.array(epoch["confusion_matrix"]), tuple(run["classes"])) for epoch in history]
  best = max(range(len(every)), key=lambda i: (every[i].war, i))  # of equal ones the last, as it is kept
  last, newest, highest, chosen = every[-1], history[-1], every[best], history[best]
  report = {
    **scores_as_json(last),
    **{key: newest[key] for key in ("epoch", "step", "clips_without_sound")},
    "classes": run["classes"],
    "evaluated_epochs": [epoch["epoch"] for epoch in history],
    "best_epoch": {"note": f"{FLATTERS}; the headline is the last epoch", "epoch": chosen["epoch"], "step": chosen["step"],
                   "war": _number(highest.war), "uar": _number(highest.uar)},
    "published": published_for(last, [split]),
    "calibration": calibration.describe(predictions, held_out),
    **{key: newest[key] for key in ("layers",) if key in newest},
    **facts,
    **{key: run[key] for key in ("recipe", "config", "version")},
  }  # fmt: skip
  published = _published_rows(report["published"])
  among = f" among the {count(len(history), 'evaluated epoch')}" * (len(history) < newest["epoch"])
  listed = ("clips", "clips_without_sound", "train_clips", "train_clips_without_sound", "clips_seen", "step", "tunable_parameters",
            "frozen_parameters", "peak_memory_gib", "started_from", "data_set", "splits", "loss", *(name for name in facts if name.startswith("training_")),
            "sampling", "clips_without_votes", "votes", "version")  # fmt: skip
  _draw_learning_curves(workdir, history, every, run["config"]["loss.name"])
  draw_reliability(predictions, held_out, workdir / "reliability.png")
  _write(
    workdir, "report", report, last, "report of a run", "",
    f"**WAR {percent(last.war)}, UAR {percent(last.uar)}** on {count(last.clips, 'test clip')}, after the last epoch "
    f"({report['epoch']}).",
    "" if report["uar"] is not None else _undefined("no test clip", percent(last.uar_present)),
    f"Best epoch, chosen by looking at the test clips{among}: {chosen['epoch']} with WAR {percent(highest.war)}, "
    f"UAR {percent(highest.uar)}.",
    table(["", "clips>", "WAR>", "UAR>"], [(split, last.clips, percent(last.war), percent(last.uar)), *published]) * bool(published),
    _published_note(report["published"]),
    recall_table(last),
    *_matrix_blocks(last),
    *_layer_blocks(newest.get("layers", {})),
    "## Learning curves",
    "![learning curves](learning_curves.png)",
    "## How sure it may be",
    calibration.in_words(report["calibration"]),
    "![reliability diagram](reliability.png)",
    "## The run",
    table(["", ""], [(name.replace("_", " "), report[name]) for name in listed if name in report]),
  )  # fmt: skip
  return report


def write_folds(folder: Path, folds: Sequence[Fold], *, model: str, facts: Mapping[str, Any]) -> dict[str, Any]:  # fmt: skip
  """Writes folds.json, folds.md, and of all clips together predictions.csv and confusion_matrix.png; prints their table.

  Args:
    folds: at least one, all of the same classes.
    model: which one of each fold counts, in words.
    facts: what else the report lists: recipe, config, version.
  """
  together = Predictions.joined([fold.predictions for fold in folds])
  total, results = together.scores, [scores_as_json(fold.predictions.scores) for fold in folds]
  best = [fold.best_epoch for fold in folds if fold.best_epoch]
  recalls = {name: [result["recall"][name] for result in results] for name in total.classes}
  by_class = {name: mean_and_deviation([r for r in of if r is not None] or [None]) for name, of in recalls.items()}  # fmt: skip
  summary = {
    "model": model,
    **{name: mean_and_deviation([result[name] for result in results]) for name in ("war", "uar", "uar_of_present_classes")},
    "published": published_for(total, [fold.name for fold in folds]),
    "mean_recall": {name: of_class["mean"] for name, of_class in by_class.items()},
    "recall_standard_deviation": {name: of_class["standard_deviation"] for name, of_class in by_class.items()},
    "sum": scores_as_json(total),
    "best_epoch": {"note": f"{FLATTERS}; the headline is not this"}
    | {name: mean_and_deviation([epoch[name] for epoch in best]) for name in ("war", "uar")}
    if len(best) == len(folds) else None,
    "folds": [{"fold": fold.name, **result, **fold.about, "best_epoch": fold.best_epoch}
              for fold, result in zip(folds, results, strict=True)],
    "classes": list(total.classes),
    **facts,
  }  # fmt: skip
  columns = ("fold", "folder", "epoch", "step", "clips_without_sound", "best epoch")
  known = [{"fold": fold.name, **fold.about, "best epoch": (fold.best_epoch or {}).get("epoch")} for fold in folds]  # fmt: skip
  models = [["–" if about.get(name) is None else about[name] for name in columns] for about in known]
  shown = _folds_table(summary)
  folder.mkdir(parents=True, exist_ok=True)
  together.write(folder / "predictions.csv")
  _write(
    folder, "folds", summary, total, ", ".join(fold.name for fold in folds), f"sum of {count(len(folds), 'fold')}:  ",
    f"**WAR {plus_minus(summary['war'])}, UAR {plus_minus(summary['uar'])}**, {model}.",
    shown,
    _notes_on_folds(summary),
    "## Classes",
    recall_table(total, by_class),
    *_matrix_blocks(total, ", summed over the folds"),
    "## The models",
    table([name.replace("_", " ") for name in columns], models),
  )  # fmt: skip
  print(f"\n{shown}\n\nwrote {folder}/folds.json, folds.md, confusion_matrix.png and predictions.csv")
  return summary


def _write(folder: Path, name: str, report: Any, scores: Scores, title: str, above: str, *blocks: str) -> None:  # fmt: skip
  """A report of either kind; the JSON comes last, for it says that all is there."""
  draw_confusion_matrix(scores, folder / "confusion_matrix.png", above)
  config = "\n".join(f"- `{key}` = `{value}`" for key, value in report.get("config", {}).items())
  recipe = "\n".join(f"- {key}: {value}" for key, value in report["recipe"].items())
  write_markdown(folder / f"{name}.md", f"# MMA-DFER: {title}", *blocks, "Recipe of the data:", recipe,
                 "Config:" * bool(config), config)  # fmt: skip
  write_json(folder / f"{name}.json", report)


def write_markdown(path: Path, *blocks: str) -> None:
  """Paragraphs, tables and headings with an empty line between each two; empty ones are skipped."""
  with new_file(path, replace=True) as partial:
    partial.write_text("\n\n".join(block for block in blocks if block) + "\n")


def save_figure(figure: Any, path: Path) -> None:
  """Writes a .png whole or not at all."""
  with new_file(path, replace=True) as partial:
    figure.savefig(partial, format="png", dpi=110)


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
  """A Markdown table; a column whose name ends with ">" is set to the right."""
  lines = [[name.rstrip(">") for name in columns], ["---:" if ">" in name else "---" for name in columns]]
  return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in [*lines, *rows])


def _matrix_blocks(scores: Scores, what: str = "") -> list[str]:
  rows = [[name, *row] for name, row in zip(scores.classes, scores.confusion, strict=True)]
  columns = ["true \\ predicted", *(f"{name}>" for name in scores.classes)]
  return [f"## Confusion matrix{what}", table(columns, rows), "![confusion matrix](confusion_matrix.png)"]


def _layer_blocks(said: Mapping[str, Any]) -> list[str]:
  """What a layer pool has learned, as means over the test clips; nothing without one."""
  blocks = []
  for name, words in (("image", "picture"), ("audio", "sound")):
    if weights := said.get(f"layers_of_{name}"):
      means = np.atleast_2d(weights).mean(axis=0)
      gate = f"tanh(g) = {said[f'layer_gate_of_{name}']:.3f}"
      blocks += [f"Layers of the {words}: their weighted mean replaces the last one through a gate, {gate}."]
      layers, weights = range(1, len(means) + 1), [f"{w:.3f}" for w in means]
      blocks += [table(["layer", *(f"{i}>" for i in layers)], [["weight α", *weights]])]
  if factors := said.get("streams"):
    each = f"β = {factors[0]:.3f} of the picture, {factors[1]:.3f} of the sound"
    blocks += [f"Factors of the streams: {each}; they add up to 2."]
  return ["## Layers and streams", *blocks] if blocks else []


def _undefined(clips: str, present: str) -> str:
  why = f"a class was predicted that {clips} has"
  return f"UAR is undefined, as in the original: {why}. Over the classes that have clips it is {present}."


def scores_as_json(scores: Scores) -> dict[str, Any]:
  """WAR, UAR and recalls in percent, and the counts they come from."""
  means = {"war": scores.war, "uar": scores.uar, "uar_of_present_classes": scores.uar_present}
  recall = {name: _number(r) for name, r in zip(scores.classes, scores.recall, strict=True)}
  counts = {"confusion_matrix": scores.confusion.tolist(), "clips": scores.clips}
  return {name: _number(value) for name, value in means.items()} | {"recall": recall} | counts


def published_for(scores: Scores, folds: Sequence[str]) -> dict[str, Any] | None:
  """The paper's mean over five folds for these classes, and why a score cannot be compared with it; None: no such classes."""
  name = PUBLISHED.get(tuple(scores.classes))
  if name is None:
    return None
  of_folds = COUNTS[name]
  named = [of_folds[fold] for fold in folds if fold in of_folds] or list(of_folds.values())
  here = dict(zip(scores.classes, scores.confusion.sum(axis=1).tolist(), strict=True))
  there = {one: sum(fold[one] for fold in named) for one in scores.classes}
  reasons = []
  if differing := [f"{one} {here[one]:,}, not {there[one]:,}" for one in there if here[one] != there[one]]:
    some = "; ".join([*differing[:EXAMPLES], *["…"] * (len(differing) > EXAMPLES)])
    clips = f"{scores.clips:,} clips here against {sum(there.values()):,} published"
    reasons.append(f"the class counts differ, {clips} ({some})")
  if sorted(folds) != sorted(of_folds):
    mean = f"the published score is the mean of {len(of_folds)} folds"
    reasons.append(f"{mean}, this run has {', '.join(folds)} only")
  return {"data_set": name.upper(), "clips": sum(sum(fold.values()) for fold in of_folds.values()), **SCORES[name],
          "not_comparable": ", and ".join(reasons) or None}  # fmt: skip


def _published_rows(published: Mapping[str, Any] | None) -> list[Sequence[str]]:
  if not published:
    return []
  name, below = f"published, {published['data_set']}", " (not comparable, see below)"
  shown = name + below * bool(published["not_comparable"])
  return [(shown, "", percent(published["war"]), percent(published["uar"]))]


def _published_note(published: Mapping[str, Any] | None) -> str:
  if not published:
    return ""
  reason = published["not_comparable"]
  comparable = f"not comparable: {reason}" if reason else "the clips of each class are as many as these"
  means = f"Published are the paper's means over the five folds of {published['data_set']} (arXiv 2404.09010)"
  return f"{means}; {comparable}."


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
  mean, deviation = result["mean"], result["standard_deviation"]
  return percent(mean) if mean is None or deviation is None else f"{mean:.2f} ± {deviation:.2f} %"


def recall_table(scores: Scores, by_class: Mapping[str, Mapping[str, float | None]] | None = None) -> str:
  """A line per class: clips, recall, and what it was most often mistaken for; over folds, their mean recall too."""
  rows = []
  for i, name in enumerate(scores.classes):
    wrong = np.where(np.arange(len(scores.classes)) == i, 0, scores.confusion[i])
    mistake = f"{scores.classes[int(wrong.argmax())]} ({wrong.max()})" if wrong.any() else "–"
    means = [plus_minus(by_class[name])] if by_class else []
    rows.append([name, scores.confusion[i].sum(), percent(scores.recall[i]), *means, mistake])
  of_folds = ["recall in the sum>", "mean recall ± standard deviation of the folds>"]
  columns = ["class", "clips>", *(of_folds if by_class else ["recall>"]), "most often mistaken for"]
  return table(columns, rows)


def _folds_table(summary: Mapping[str, Any]) -> str:
  """A line per fold, then their mean, what was published, and the best epochs."""
  rows: list[Any] = [(f["fold"], f["clips"], percent(f["war"]), percent(f["uar"])) for f in summary["folds"]]
  mean = f"**mean{' ± standard deviation' * (len(rows) > 1)}**"
  rows += [(mean, summary["sum"]["clips"], plus_minus(summary["war"]), plus_minus(summary["uar"]))]
  rows += _published_rows(summary["published"])
  if best := summary["best_epoch"]:
    rows += [("best epochs, chosen on the test clips", "", plus_minus(best["war"]), plus_minus(best["uar"]))]
  return table(["fold", "clips>", "WAR>", "UAR>"], rows)


def _notes_on_folds(summary: Mapping[str, Any]) -> str:
  number = len(summary["folds"])
  notes = [f"Mean and standard deviation (divided by n − 1 = {number - 1}) are over folds, each counting once."
           if number > 1 else "One fold has no standard deviation."]  # fmt: skip
  if undefined := ", ".join(fold["fold"] for fold in summary["folds"] if fold["uar"] is None):
    words = _undefined("none of its test clips", plus_minus(summary["uar_of_present_classes"]))
    notes.append(f"{undefined}: {words} The mean is undefined too.")
  notes += filter(None, [_published_note(summary["published"])])
  if summary["best_epoch"]:
    notes.append("A best epoch is chosen by looking at the test clips, so it flatters; it is no result.")
  return "\n".join(f"- {note}" for note in notes)


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
  axes.set(xlabel="predicted", ylabel="true",
           title=f"{title}WAR {percent(scores.war)}   UAR {percent(scores.uar)}   {count(scores.clips, 'clip')}")  # fmt: skip
  figure.colorbar(image, label="% of the true class", shrink=0.8)
  save_figure(figure, path)


def _draw_learning_curves(workdir: Path, history: Sequence[Mapping[str, Any]], scores: Sequence[Scores], loss: str) -> None:  # fmt: skip
  figure = empty_figure(10.0, 4.0)
  left, right = figure.subplots(1, 2)
  of = {key: [epoch[key] for epoch in history] for key in ("epoch", "loss", "test_loss", "accuracy")}
  for axes, values, label, style in (
    (left, of["loss"], "training, mean since the evaluation before", "-"),
    (left, of["test_loss"], "test", "-"),
    (right, of["accuracy"], "training accuracy, mean since the evaluation before", "-"),
    (right, [s.war for s in scores], "test WAR", "-"),
    (right, [s.uar_present for s in scores], "test UAR", "--"),  # often on top of WAR
  ):
    axes.plot(of["epoch"], values, style, marker="o", markersize=3, label=label)
  right.set(ylim=(0, 102))
  for axes, quantity in ((left, f"loss ({loss})"), (right, "%")):
    axes.set(xlabel="epoch", ylabel=quantity)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.legend()
  save_figure(figure, workdir / "learning_curves.png")


def draw_reliability(predictions: Predictions, held_out: Mapping[str, Any], path: Path) -> None:
  figure = empty_figure(5.0, 4.6)
  axes = figure.subplots()
  axes.plot([0, 1], [0, 1], color="0.7")
  if held_out:
    calibration.draw(axes, calibration.calibrated(predictions, 1 / held_out["temperature"]), "before")
  calibration.draw(axes, predictions, f"temperature {held_out.get('temperature', 1.0):.3g}")
  axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="share that is right", title="test clips")
  axes.legend()
  save_figure(figure, path)


def empty_figure(width: float, height: float) -> Any:
  """An empty picture, in inches; Matplotlib is imported only now, for it takes a second."""
  from matplotlib.figure import Figure

  return Figure(figsize=(width, height), layout="constrained")
