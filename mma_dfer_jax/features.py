"""Features of clips as files: an .npz for each clip, and a table of all in Parquet."""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from mma_dfer_jax.disk import new_file
from mma_dfer_jax.engines.engine import NO_FEATURES, Engine
from mma_dfer_jax.errors import UserError

FEATURES = ("image", "audio", "joint", "clip")  # the others are outputs of any engine
ENDING = ".features.npz"
TABLE = "features.parquet"


@dataclasses.dataclass(frozen=True, repr=False)
class WithFeatures(Engine):
  """Answers as another engine does, in the same step as the features that it keeps of each clip."""

  engine: Engine
  kept: list[dict[str, np.ndarray]] = dataclasses.field(default_factory=list)

  def __post_init__(self):
    if type(self.engine).compute_features is Engine.compute_features:
      raise UserError(NO_FEATURES.format(self.path))

  @property
  def name(self) -> str:
    return self.engine.name

  def answer(self, *arrays: np.ndarray) -> dict[str, np.ndarray]:
    found = self.engine.compute_features(*arrays)
    self.kept.extend({name: value[i] for name, value in found.items()} for i in range(len(arrays[0])))
    return {name: value for name, value in found.items() if name not in FEATURES}

  def taken(self, number: int) -> list[dict[str, np.ndarray]]:
    """Of the first so many clips; what filled up their last batch is dropped with them."""
    first = self.kept[:number]
    self.kept.clear()
    return first


def write(
  path: Path, answers: Sequence[Mapping[str, Any]], features: Sequence[Mapping[str, np.ndarray]]
) -> None:
  """The windows of one clip, or the whole as one: start, end and top of each, and its features, along a first axis."""
  facts: dict[str, Any] = {
    name: np.array([one[name] for one in answers], np.float64) for name in ("start", "end")
  }
  facts["top"] = np.array([one["top"] or "" for one in answers])
  if any(one.get("person") for one in answers):
    facts["person"] = np.array([one["person"] for one in answers], np.int64)
  arrays: dict[str, Any] = {name: np.stack([one[name] for one in features]) for name in features[0]}
  with new_file(path, replace=True) as partial, partial.open("wb") as file:
    np.savez(file, classes=np.array(list(answers[0]["probabilities"])), **facts, **arrays)


def write_table(path: Path, clips: Iterable[tuple[str, Path]]) -> None:
  """One row for each window of each clip, given with its .npz; one clip at a time is in memory."""
  import pyarrow as pa
  from pyarrow import parquet

  with new_file(path, replace=True) as partial:
    writer = None
    for clip, npz in clips:
      with np.load(npz) as arrays:
        columns = {name: arrays[name].tolist() for name in arrays if name != "classes"}
      number = len(columns["start"])
      rows = pa.table({"path": [clip] * number} | {
        name: pa.array(values, None if name in ("start", "end", "top", "person") else _float32(values[0]))
        for name, values in columns.items()
      })  # fmt: skip
      writer = writer or parquet.ParquetWriter(partial, rows.schema)
      writer.write_table(rows)
    if writer:
      writer.close()


def _float32(row: Any) -> Any:
  """float32, in as many lists as a row has axes."""
  import pyarrow as pa

  return pa.list_(_float32(row[0])) if isinstance(row, list) else pa.float32()
