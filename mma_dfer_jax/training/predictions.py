"""The answer of a model to each clip: written as predictions.csv by every evaluation, found again to compare models."""

from collections.abc import Sequence
import csv
import dataclasses
import json
from pathlib import Path

from jaxtyping import Float, Int
import numpy as np

from mma_dfer_jax.disk import new_file
from mma_dfer_jax.errors import UserError, listed
from mma_dfer_jax.training.scores import Scores


@dataclasses.dataclass(frozen=True)
class Predictions:
  """Labels and probabilities of clips, in the order of the split."""

  classes: tuple[str, ...]  # in the order of the columns
  clips: tuple[str, ...]  # names
  labels: Int[np.ndarray, "N"]  # indices of classes
  probabilities: Float[np.ndarray, "N C"]

  @classmethod
  def of_logits(cls, classes, clips, labels, logits: Float[np.ndarray, "N C"]) -> "Predictions":
    """In float64, so that no two logits become the same probability."""
    raised = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return cls(tuple(classes), tuple(clips), labels, raised / raised.sum(axis=-1, keepdims=True))

  @classmethod
  def joined(cls, several: Sequence["Predictions"]) -> "Predictions":
    """Those of several folds."""
    arrays = [np.concatenate([getattr(p, n) for p in several]) for n in ("labels", "probabilities")]
    return cls(several[0].classes, sum((p.clips for p in several), ()), *arrays)

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


def read_predictions(path: Path) -> Predictions:
  """Reads a predictions.csv; UserError with everything that is wrong with it."""
  with path.open(newline="", encoding="utf-8", errors="replace") as file:
    header, *rows = list(csv.reader(file)) or [[]]
  classes = tuple(header[2:])
  if header[:2] != ["clip", "label"] or len(set(classes)) < max(2, len(classes)):
    raise UserError(f"{path} is no predictions.csv: its first line must be clip,label and two or more class names")  # fmt: skip
  clips: dict[str, tuple[int, list[float]]] = {}
  problems = [] if rows else ["there is no clip"]
  filled = ((*row, "", "")[: max(2, len(row))] for row in rows)
  for line, (clip, label, *numbers) in enumerate(filled, start=2):
    try:
      values = [float(number) for number in numbers]
    except ValueError:
      values = []
    if clip in clips or label not in classes or len(values) != len(classes) or not np.isfinite(values).all():
      problems.append(f"line {line}: {','.join([clip, label, *numbers])[:80]}")
    else:
      clips[clip] = classes.index(label), values
  if problems:
    rule = f"a clip that is nowhere else, one of the classes as its label, and {len(classes)} finite numbers"
    raise listed(f"{path} is damaged: {len(problems)} lines lack {rule}", problems[:10])
  labels, probabilities = zip(*clips.values(), strict=True)
  return Predictions(classes, tuple(clips), np.array(labels), np.array(probabilities))


def find_predictions(path: Path) -> dict[str, Predictions]:
  """The predictions of a run, of folds, of an evaluation, or of a file: by fold, or by "" where there is one only.

  The path is a workdir, a folder with folds.json, a file or folder that `evaluate` wrote, or a predictions.csv.
  """
  if (path / "folds.json").is_file():
    names = [fold["fold"] for fold in json.loads((path / "folds.json").read_text())["folds"]]
    places = {name: (path / f"{name}_predictions.csv", path / name / "predictions.csv") for name in names}
    files = {name: next((file for file in of if file.is_file()), of[-1]) for name, of in places.items()}
  elif (path / "predictions.csv").is_file():
    files = {"": path / "predictions.csv"}
  elif path.is_dir() or path.suffix == ".json":
    pattern = "*_predictions.csv" if path.is_dir() else f"{path.stem}_without_*_predictions.csv"
    found = sorted((path if path.is_dir() else path.parent).glob(pattern))
    whole = [file for file in found if "_without_none_" in file.name] or found
    if len(whole) > 1:
      raise UserError(f"{path} holds several predictions; give one of {', '.join(map(str, whole))}")
    files = {"": whole[0] if whole else path / "predictions.csv"}
  else:
    files = {"": path}
  if missing := [str(file) for file in files.values() if not file.is_file()]:
    raise UserError(f"there is no {', '.join(missing)}; evaluate the model, then its predictions are there")
  return {fold: read_predictions(file) for fold, file in files.items()}
