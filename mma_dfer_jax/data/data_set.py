"""A data set on disk, opened: its classes, recipe and splits, and its records one by one; and the processes that read them."""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import multiprocessing
import os
from pathlib import Path
import signal
import threading
from typing import Any

from jaxtyping import Int, UInt8
import numpy as np

from mma_dfer_jax.cores import share_cores
from mma_dfer_jax.data.source import names
from mma_dfer_jax.data.wire import integers, values
from mma_dfer_jax.errors import UserError, shown
from mma_dfer_jax.paths import hint

UNEVEN = "the frame rate is uneven"  # how a note on such clips begins
UNEQUAL = "picture and sound differ in length"  # likewise
NOTES = "notes.txt"  # in a data set: what was noted of its clips, with all names
# In a data set, for each split (4, N + 1) int64, column i + 1 for record i: frames, and clips with frames, of all records up
# to it; samples of its sound; how many there are a second.
INDEX = "index-{}.npy"
TIMES = "frame_times"  # of a recipe, if records keep the times of their frames
LANDMARKS = "landmarks"  # of a recipe, if records keep box and points of the face in every frame
_AGAIN = "prepare them again with --landmarks=yunet --overwrite"
NO_LANDMARKS = f"the model needs boxes and points of faces, which these data do not keep: {_AGAIN}"
AS_MEANT = "pixels_as_meant"  # of a recipe: what clips needed whose pixels are stored otherwise than meant


@dataclasses.dataclass(frozen=True)
class DataSet:
  """A data set on disk: the recipe that made it, clips per split, and of what kind they are."""

  path: Path
  classes: tuple[str, ...]  # in label order; empty: the clips have no labels
  recipe: dict[str, Any]
  fingerprint: str
  splits: dict[str, int]
  clips: dict[str, dict[str, int]]  # by split and class
  without_sound: dict[str, int]  # by split
  class_order: str  # whose label order it is
  left_out: tuple[str, ...]  # what was wrong with clips that are not in it
  sample_rates: tuple[int, ...]  # of the sounds, Hz, ascending
  seconds_of_sound: float = 0.0  # median of the clips with sound; 0 if there are none
  # Between which values 90 % of the clips but those of `test` lie: `records.typical_of`.
  typical: Mapping[str, Sequence[float]] = dataclasses.field(default_factory=dict)
  votes: Mapping[str, int] = dataclasses.field(default_factory=dict)  # clips with votes by split; empty: none

  def votes_of(self, split: str) -> UInt8[np.ndarray, "N C"]:
    """Votes for each class, of all records of a split, which are read for it; all 0: there are none."""
    records = self.records(split)
    return np.stack([records[i]["votes"] for i in range(len(records))]).astype(np.uint8)

  def notes(self) -> list[tuple[str, list[str]]]:
    """What prepare noted, and of which clips."""
    path, found = self.path / NOTES, list[tuple[str, list[str]]]()
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
      if line.startswith("  ") and found:
        found[-1][1].append(line.strip())
      else:
        found.append((line, []))
    return found

  def records(self, split: str) -> Sequence[Mapping[str, Any]]:
    """Random access to the records of a split, or of several: "fold1+fold3"; frames stay JPEG bytes."""
    import tensorflow_datasets as tfds  # half a second that no --help should wait for

    return tfds.builder_from_directory(self.path).as_data_source(split)

  def labels(self, split: str) -> Int[np.ndarray, "N"]:
    """Of all records of a split, which are read for it: for DFEW's 15 GB half a minute."""
    coded = self.coded_records(split)
    return np.array([integers(values(coded[i])["label"], np.int32)[0] for i in range(len(coded))], np.int64)

  def coded_records(self, split: str) -> Any:
    """The same as bytes, which `wire` takes apart: 0.4 ms for one of the demo's instead of 2."""
    source: Any = self.records(split)
    return source.data_source

  def train_and_test(self, fold: int) -> tuple[str, str]:
    """The split expressions of a run: fold k tests on `foldk` and trains on the others; 0 is for `train` and `test`."""
    folds = [split for split in self.splits if split.startswith("fold")]
    test = f"fold{fold}" if fold else "test"
    train = [split for split in folds if split != test] if fold else ["train"]
    if test not in self.splits or not train or train[0] not in self.splits:
      advice = f"set config.data.fold to 1…{len(folds)}" if folds else "set config.data.fold=0"
      needed = f"the split {test} and other folds" if fold else "the splits train and test"
      there = ", ".join(self.splits)
      raise UserError(f"config.data.fold={fold} needs {needed}, but {self.path} has {there}; {advice}")
    return "+".join(train), test


def open_data_set(data_dir: str | os.PathLike, name: str, *, labelled: bool = True) -> DataSet:
  """Opens a data set that `mma_dfer_jax.data.prepare` has written; refuses one without labels if `labelled`."""
  import tensorflow_datasets as tfds

  versions = [path.parent for path in Path(data_dir, name).glob("*/dataset_info.json")]
  if not versions:
    raise UserError(f"there is no data set {shown(name)!r} in {data_dir}{_instead(Path(data_dir), name)}")
  path = max(versions)
  try:
    info = tfds.builder_from_directory(path).info
    facts = json.loads((info.metadata or {}).get("facts", "{}"))
    splits = {split: info.splits[split].num_examples for split in info.splits}
  except Exception as error:  # of tfds or protobuf, of any kind
    raise UserError(f"{path} is damaged: its metadata cannot be read ({type(error).__name__}: {error}); prepare it "
                    "again with --overwrite") from error  # fmt: skip
  if not facts:
    raise UserError(f"{path} was not written by mma_dfer_jax.data.prepare: it has no recipe")
  if labelled and not facts["classes"]:
    raise UserError(f"{path} has no labels: its clips come from a folder or a glob, and are for pretraining. To train or "
                    "evaluate, prepare them from a manifest with the columns path,label,split")  # fmt: skip
  facts = {key: tuple(value) if isinstance(value, list) else value for key, value in facts.items()}
  return DataSet(path=path, splits=splits, **facts)


def _instead(given: Path, name: str) -> str:
  """What is there instead of a data set, and what to do, in words that follow the name of the folder."""
  if not given.is_dir():
    return f", which {hint(given, folder=True)}"
  for inner in (given.absolute(), given.absolute().parent):  # of a data set, or of its version
    if any(inner.glob("*/dataset_info.json")):
      return f", which is part of one: give the folder {inner.parent} and the name {inner.name}"
  if there := sorted({path.parts[-3] for path in given.glob("*/*/dataset_info.json")}):
    first = f"--name={there[0]} (train: --config.data.name={there[0]}; evaluate: --data_name={there[0]})"
    return f"; there is {', '.join(there)}: add {first}"
  known = name if name in names() else "clips"
  return f"; write one with\n  python -m mma_dfer_jax.data.prepare --dataset={known} --data_dir={given} …"


def start_worker(*numbers: int) -> None:
  """Begins a process that decodes; the last number is how many there are beside each other.

  It ignores what a terminal sends to all, and ends with its parent even when that is killed.
  """
  import cv2

  cv2.setNumThreads(1)  # the processes share the cores already
  share_cores(numbers[-1])
  for number in (signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
  parent = multiprocessing.parent_process()
  assert parent is not None

  def follow() -> None:
    parent.join()
    os._exit(1)

  threading.Thread(target=follow, daemon=True).start()
