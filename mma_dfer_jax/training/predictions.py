"""The answer of a model to each clip: written as predictions.csv by every evaluation, found again to compare models."""

from collections.abc import Sequence
import csv
import dataclasses
import json
from pathlib import Path

from jaxtyping import Float, Int
import numpy as np

from mma_dfer_jax.errors import UserError, listed
from mma_dfer_jax.training.scores import Scores


@dataclasses.dataclass(frozen=True)
class Predictions:
  """Labels and probabilities of clips, in the order of the split.

  Attributes:
    classes: names, in the order of the columns.
    clips: names, each once.
    labels: (N,) indices of classes.
    probabilities: (N, C).
  """

  classes: tuple[str, ...]
  clips: tuple[str, ...]
  labels: Int[np.ndarray, "N"]
  probabilities: Float[np.ndarray, "N C"]

  @classmethod
  def of_logits(cls, classes, clips, labels, logits: Float[np.ndarray, "N C"]) -> "Predictions":
    """In float64, so that no two logits become the same probability."""
    raised = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return cls(tuple(classes), tuple(clips), labels, raised / raised.sum(axis=-1, keepdims=True))

  @classmethod
  def joined(cls, parts: Sequence["Predictions"]) -> "Predictions":
    """Those of several folds."""
    labels, probabilities = (
      np.concatenate([getattr(p, n) for p in parts]) for n in ("labels", "probabilities")
    )
    return cls(parts[0].classes, sum((part.clips for part in parts), ()), labels, probabilities)

  @property
  def right(self) -> np.ndarray:
    """(N,) bool."""
    return self.probabilities.argmax(axis=-1) == self.labels

  @property
  def scores(self) -> Scores:
    confusion = np.zeros((len(self.classes),) * 2, int)
    np.add.at(confusion, (self.labels, self.probabilities.argmax(axis=-1)), 1)
    return Scores(confusion, self.classes)

  def write(self, path: Path) -> None:
    """Columns clip, label and one of each class; numbers with all digits of float64. Whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", newline="", encoding="utf-8") as file:
      writer = csv.writer(file, lineterminator="\n")
      writer.writerow(["clip", "label", *self.classes])
      for clip, label, row in zip(self.clips, self.labels, self.probabilities.tolist(), strict=True):
        writer.writerow([clip, self.classes[label], *row])
    partial.replace(path)


def read_predictions(path: Path) -> Predictions:
  """Reads a predictions.csv.

  Raises:
    UserError: with everything that is wrong with it.
  """
  with path.open(newline="", encoding="utf-8", errors="replace") as file:
    header, *rows = list(csv.reader(file)) or [[]]
  classes = tuple(header[2:])
  if header[:2] != ["clip", "label"] or len(classes) < 2 or len(set(classes)) < len(classes):
    raise UserError(
      f"{path} is no predictions.csv: its first line must be clip,label and two or more class names"
    )
  problems, seen, labels, numbers = [], set(), [], []
  for line, row in enumerate(rows, start=2):
    try:
      clip, label, *of_clip = row
      values = [float(value) for value in of_clip]
      if len(values) != len(classes) or not np.isfinite(values).all():
        raise ValueError(f"give {len(classes)} finite probabilities")
      if clip in seen:
        raise ValueError(f"the clip {clip} is there twice")
      seen.add(clip)
      labels.append(classes.index(label))
      numbers.append(values)
    except ValueError as error:
      problems.append(f"line {line}: {error}")
  if problems or not rows:
    raise listed(
      f"{path} is damaged", problems[:10] or ["it has no clips"], f"{len(problems)} lines are wrong"
    )
  return Predictions(classes, tuple(row[0] for row in rows), np.array(labels), np.array(numbers))


def find_predictions(path: Path) -> dict[str, Predictions]:
  """The predictions of a run, of folds, of an evaluation, or of a file: by fold, or by "" where there is one only.

  Args:
    path: workdir of a run, folder with folds.json, file or folder that `evaluate` wrote, or a predictions.csv.
  Raises:
    UserError: if there are none or it is not clear which.
  """
  files = {"": path}
  if path.suffix == ".json" and path.is_file():
    files = {"": _only_one(path, sorted(path.parent.glob(f"{path.stem}_without_*_predictions.csv")))}
  elif (path / "folds.json").is_file():
    folds = json.loads((path / "folds.json").read_text())["folds"]
    files = {
      fold["fold"]: next(
        (
          f
          for f in (path / fold["fold"] / "predictions.csv", path / f"{fold['fold']}_predictions.csv")
          if f.is_file()
        ),
        path / fold["fold"] / "predictions.csv",
      )
      for fold in folds
    }
  elif (path / "predictions.csv").is_file():
    files = {"": path / "predictions.csv"}
  elif path.is_dir():
    files = {"": _only_one(path, sorted(path.glob("*_predictions.csv")))}
  if missing := [str(file) for file in files.values() if not file.is_file()]:
    raise UserError(f"there is no {', '.join(missing)}; `evaluate` writes the predictions of a model")
  return {fold: read_predictions(file) for fold, file in files.items()}


def _only_one(path: Path, found: list[Path]) -> Path:
  """Of several, that of the whole model, if there is one of these only."""
  whole = [file for file in found if "_without_none_" in file.name] or found
  if len(whole) != 1:
    which = f"give one of {', '.join(map(str, whole))}" if whole else "evaluate the model first"
    raise UserError(f"{path} holds {len(whole) or 'no'} predictions; {which}")
  return whole[0]
