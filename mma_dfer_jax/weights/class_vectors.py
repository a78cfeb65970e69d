"""Files of class vectors, for the head "text": one vector for each class, with its name, and what made them.

An .npz file has `classes`, C names; `vectors` (C, E) float32; and `source`, a text: which model, which sentences, when.
"""

from collections.abc import Sequence
import dataclasses
import functools
from pathlib import Path
from typing import Any
import zipfile

import numpy as np

from mma_dfer_jax.disk import sha256_of
from mma_dfer_jax.errors import UserError, count, few, listed, shown
from mma_dfer_jax.model import ModelConfig
from mma_dfer_jax.weights.files import Start, StoredModel, Weights, held

PATH = "classifier/vectors"  # the parameter that a file fills
KEYS = ("classes", "vectors", "source")
LENGTHS = 1e-6, 1e6  # of a vector, between which float32 tells its direction
LARGEST = 2**28  # bytes of all arrays, unpacked; a thousand classes of 512 numbers are 2 MiB


@dataclasses.dataclass(frozen=True)
class ClassVectors:
  """What a file holds, checked."""

  path: Path
  classes: tuple[str, ...]
  vectors: np.ndarray  # (C, E) float32
  source: str
  others: tuple[str, ...] = ()  # arrays of the file that nothing reads

  @functools.cached_property
  def sha256(self) -> str:
    return sha256_of(self.path)

  def in_order(self, classes: Sequence[str]) -> np.ndarray:
    """The vectors of these classes; UserError, with both lists, unless the file has exactly these."""
    if sorted(classes) != sorted(self.classes):
      lines = [f"the file has {', '.join(map(shown, self.classes))}", f"needed are {', '.join(classes)}"]
      raise listed(f"{self.path} has other classes", lines, "names must be the same, in any order")
    return self.vectors[[self.classes.index(name) for name in classes]]


def open_class_vectors(path: str | Path, embedding: int) -> ClassVectors:
  """Reads a file of class vectors, executes nothing; UserError with all that is wrong with it.

  Args:
    embedding: E that the model needs.
  """
  path = Path(path)
  try:
    with zipfile.ZipFile(path) as file:
      size = sum(one.file_size for one in file.infolist())
    if size > LARGEST:
      raise UserError(f"{path} unpacks to {size:,} bytes; a file of class vectors has at most {LARGEST:,}")
    with np.load(path, allow_pickle=False) as file:
      names = file.files
      said: dict[str, Any] = {name: file[name] for name in KEYS if name in names}
  except UserError:
    raise
  except OSError as error:
    raise UserError(f"{path}: {error.strerror or error}") from error
  except (ValueError, EOFError, zipfile.BadZipFile, SyntaxError, RuntimeError, MemoryError) as error:
    raise UserError(f"{path} is no .npz file of names and numbers without pickles: {shown(error)}") from error
  if missing := [name for name in KEYS if name not in said]:
    raise UserError(f"{path} lacks {', '.join(missing)}; a file of class vectors has {', '.join(KEYS)}")
  if problems := _problems(said, embedding):
    advice = "docs/weights.md says how to make such a file"
    raise listed(f"{path} holds no class vectors for this model", problems, advice)
  classes, others = tuple(said["classes"].tolist()), tuple(n for n in names if n not in KEYS)
  return ClassVectors(path, classes, said["vectors"], str(said["source"]), others)


def _problems(said: dict[str, np.ndarray], embedding: int) -> list[str]:
  classes, vectors, source = (said[name] for name in KEYS)
  names = classes.tolist() if classes.dtype.kind == "U" and classes.ndim == 1 else []
  problems = [] if names else [f"classes must be names (C,), it is {classes.dtype} {classes.shape}"]
  unseen = [name for name in names if not name.strip() or not name.isprintable()]
  problems += [f"classes has a name that is empty or cannot be printed: {shown(name)!r}" for name in unseen]
  if twice := sorted({name for name in names if names.count(name) > 1}):
    problems.append(f"classes has names twice: {few(list(map(shown, twice)))}")
  if source.dtype.kind != "U" or source.ndim or not str(source).strip():
    problems.append(f"source must be a text, it is {source.dtype} {source.shape}")
  if vectors.dtype != np.float32 or vectors.ndim != 2 or (names and len(vectors) != len(names)):
    want = f"float32 ({len(names) or 'C'}, {embedding})"
    return [*problems, f"vectors must be {want}, it is {vectors.dtype} {vectors.shape}"]
  if vectors.shape[1] != embedding:
    problems.append(f"vectors is {vectors.shape}, but the model has model.head.embedding={embedding}")
  finite, (least, most) = np.isfinite(vectors).all(axis=1), LENGTHS
  lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
  unit = vectors / lengths.clip(least)[:, None]
  same = finite & ((unit @ unit.T > 1 - 1e-6).sum(axis=1) > 1)
  outside = finite & (lengths > 0) & ~((least <= lengths) & (lengths <= most))
  for wrong, what in (
    (~finite, "infinite or undefined (NaN)"),
    (finite & (lengths == 0), "0, which has no direction"),
    (outside, f"a length outside of {least:g} to {most:g}"),
    (same & (lengths >= least), "the direction of another class, from which no answer can tell it apart"),
  ):
    bad = [shown(name) for name, is_wrong in zip(names, wrong, strict=False) if is_wrong]
    problems += [f"the {'vector' if len(bad) == 1 else 'vectors'} of {few(bad)}: {what}"] * bool(bad)
  return problems


def open_text(path: str | Path, model: ModelConfig, classes: Sequence[str]) -> Start:
  """The vectors of a data set's classes, in its order, as a run starts from them; UserError if the file does not fit."""
  found = open_class_vectors(path, model.head.embedding)
  vectors = found.in_order(classes)
  facts = [f"{count(len(vectors), 'vector')} of {vectors.shape[1]} numbers: {shown(found.source)}"]
  facts += [f"reordered by name, from {', '.join(found.classes)}"] * (found.classes != tuple(classes))
  facts += [f"left out: {few(list(map(shown, found.others)))}"] * bool(found.others)
  tensors = held({PATH: vectors})
  source = Weights(found.path, tensors, {"source": found.source}, files=(found.path,))
  return Start("text", source, tuple(facts), tensors)


def about_vectors(starts: Sequence[Start]) -> dict[str, Any]:
  """`class_vectors`, as a run and a model folder keep it: source and sha256 of the file; empty without such vectors."""
  found: dict[str, Any] = {}
  for start in (start for start in starts if PATH in start.taken):
    kept = start.source.about.get("class_vectors", {}) if isinstance(start.source, StoredModel) else {
      "source": start.source.ours["source"], "sha256": start.sha256}  # fmt: skip
    found = {"class_vectors": kept}
  return found
