"""The answer of a model to each clip: written as predictions.csv by every evaluation, found again to compare models."""

from collections.abc import Sequence
import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

from jaxtyping import Float, Int, UInt8
import numpy as np

from mma_dfer_jax.disk import new_file
from mma_dfer_jax.errors import UserError, count, counted, listed, shown
from mma_dfer_jax.training.scores import Scores

WANTED = "Give a workdir, a folds folder, an evaluation (evaluation_….json) or a predictions.csv"
ROUNDED = 0.02  # how far from 1 a sum of rounded probabilities may be


@dataclasses.dataclass(frozen=True)
class Predictions:
  """Labels and probabilities of clips, in the order of the split."""

  classes: tuple[str, ...]  # in the order of the columns
  clips: tuple[str, ...]  # names
  labels: Int[np.ndarray, "N"]  # indices of classes
  probabilities: Float[np.ndarray, "N C"]
  data_set: str | None = None  # fingerprint of the data set that the clips are from; None: not known

  @classmethod
  def of_logits(cls, classes, clips, labels, logits: Float[np.ndarray, "N C"]) -> "Predictions":
    """In float64, so that no two logits become the same probability."""
    raised = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return cls(tuple(classes), tuple(clips), labels, raised / raised.sum(axis=-1, keepdims=True))

  @classmethod
  def joined(cls, several: Sequence["Predictions"]) -> "Predictions":
    """Those of several folds."""
    labels = np.concatenate([p.labels for p in several])
    probabilities = np.concatenate([p.probabilities for p in several])
    data_sets = {p.data_set for p in several}
    data_set = data_sets.pop() if len(data_sets) == 1 else None
    return cls(several[0].classes, sum((p.clips for p in several), ()), labels, probabilities, data_set)

  @property
  def answers(self) -> Int[np.ndarray, "N"]:
    return self.probabilities.argmax(axis=-1)

  @property
  def scores(self) -> Scores:
    confusion = np.zeros((len(self.classes),) * 2, int)
    np.add.at(confusion, (self.labels, self.answers), 1)
    return Scores(confusion, self.classes)

  def write(self, path: Path) -> None:
    """Columns clip, label and one of each class, numbers with all digits; whole or not at all."""
    rows = zip(self.clips, self.labels, self.probabilities.tolist(), strict=True)
    with new_file(path, replace=True) as partial, partial.open("w", newline="", encoding="utf-8") as file:
      writer = csv.writer(file, lineterminator="\n")
      writer.writerow(["clip", "label", *self.classes])
      writer.writerows([clip, self.classes[label], *row] for clip, label, row in rows)


def against_votes(predictions: Predictions, votes: UInt8[np.ndarray, "N C"]) -> dict[str, Any]:
  """How well answers agree with the votes of people, for clips that have any.

  Returns: clips; cross_entropy to their shares, in nats; won, percent of the votes that were for the answered class.
  """
  there = votes.sum(axis=1) > 0
  shares = votes[there] / votes[there].sum(axis=1, keepdims=True)
  log_p = np.log(np.maximum(predictions.probabilities[there], np.finfo(np.float64).tiny))
  won = np.take_along_axis(shares, predictions.answers[there][:, None], axis=1)
  return {"clips": int(there.sum()), "cross_entropy": float(-(shares * log_p).sum(axis=1).mean()), "won": 100 * float(won.mean())}  # fmt: skip


def read_predictions(path: Path) -> Predictions:
  """Reads a predictions.csv; UserError with everything that is wrong with it."""
  try:
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
      reader = csv.reader(file)
      header = next(reader, [])
      classes = tuple(header[2:])
      if header[:2] != ["clip", "label"] or len(set(classes)) < max(2, len(classes)):
        rule = "its first line must be clip,label and two or more class names"
        raise UserError(f"{path} is no predictions.csv: {rule}. {_advice(path)}")
      rows = list(reader)
  except csv.Error as error:
    raise UserError(f"{path} is no predictions.csv: {error}. {WANTED}") from error
  if not rows:
    raise UserError(f"{path} has no clips: there is no line after the first")
  lines: dict[str, int] = {}
  labels, probabilities, problems = [], [], []
  for line, row in enumerate(rows, start=2):
    clip, label, *numbers = *row, *[""] * (2 - len(row))
    try:
      values = np.array([float(number) for number in numbers])
    except ValueError:
      values = np.array([np.nan])
    reasons = {
      f"{shown(label)!r} is not one of the classes": label not in classes,
      f"{len(numbers)} of {len(classes)} probabilities": len(numbers) != len(classes),
      "the probabilities must be numbers from 0 to 1": not ((values >= 0) & (values <= 1)).all(),
      f"the probabilities sum to {values.sum():.4g}, not 1": abs(values.sum() - 1) > ROUNDED,
      f"the clip {shown(clip)!r} stands on line {lines.get(clip)} already": clip in lines,
    }  # fmt: skip
    problems += [(f"line {line}", reason) for reason, holds in reasons.items() if holds][:1]
    lines.setdefault(clip, line)
    labels.append(label)
    probabilities.append(values)
  if problems:
    title = f"{path} is damaged in {count(len(problems), 'line')} of {len(rows)}"
    raise listed(title, counted(problems, "lines")[:10])
  return Predictions(classes, tuple(lines), np.array([*map(classes.index, labels)]), np.array(probabilities))


def find_predictions(path: Path) -> dict[str, Predictions]:
  """The predictions of a run, of folds, of an evaluation, or of a file: by fold, or by "" where there is one only.

  The path is a workdir, a folder with folds.json, a file or folder that `evaluate` wrote, or a predictions.csv.
  """
  if not path.exists():
    raise UserError(f"{path} does not exist. {WANTED}")
  data_sets: dict[str, str | None] = {}
  if (path / "folds.json").is_file():
    try:
      folds = {fold["fold"]: fold for fold in json.loads((path / "folds.json").read_text())["folds"]}
    except (ValueError, KeyError, TypeError) as error:
      raise UserError(f"{path}/folds.json is damaged; run the command that wrote it again") from error
    places = {name: (path / f"{name}_predictions.csv", path / name / "predictions.csv") for name in folds}
    files = {name: next((file for file in of if file.is_file()), of[-1]) for name, of in places.items()}
    data_sets = {name: fold.get("data_set") for name, fold in folds.items()}
  elif (path / "predictions.csv").is_file():
    files = {"": path / "predictions.csv"}
  elif path.is_dir() or path.suffix == ".json":
    pattern = "*_predictions.csv" if path.is_dir() else f"{path.stem}_without_*_predictions.csv"
    found = sorted((path if path.is_dir() else path.parent).glob(pattern))
    whole = [file for file in found if "_without_none_" in file.name] or found
    if len(whole) > 1:
      raise UserError(f"{path} holds several predictions; give one of {', '.join(map(str, whole))}")
    if not whole:
      raise UserError(f"{path} holds no answers to clips. {_advice(path)}")
    files = {"": whole[0]}
  else:
    files = {"": path}
  if missing := [str(file) for file in files.values() if not file.is_file()]:
    raise UserError(f"there is no {', '.join(missing)}; evaluate the model, then its predictions are there")
  found_in = {fold: data_sets.get(fold) or _data_set_of(file) for fold, file in files.items()}
  return {
    fold: dataclasses.replace(read_predictions(file), data_set=found_in[fold]) for fold, file in files.items()
  }


def _advice(path: Path) -> str:
  """What to give in place of a file or folder without answers."""
  beside = [path.parent / name for name in ("folds.json", "predictions.csv") if path.is_file()]
  return f"Give its folder, {path.parent}" if any(map(Path.is_file, beside)) else WANTED


def _data_set_of(file: Path) -> str | None:
  """The fingerprint of the data set whose clips are answered, as the run or the evaluation beside the file names it."""
  evaluation, without, _ = file.name.partition("_without_")
  named = (
    f"{evaluation}.json" if without else "run.json" if file.with_name("run.json").is_file() else "probe.json"
  )
  found = _read_json(file.with_name(named)).get("data_set")
  return found.get("fingerprint") if isinstance(found, dict) else found


def _read_json(path: Path) -> dict[str, Any]:
  try:
    found = json.loads(path.read_text())
  except (OSError, ValueError):
    return {}
  return found if isinstance(found, dict) else {}
