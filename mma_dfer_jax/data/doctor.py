"""Whether a data set is fit for training: reads every record once, counts, compares, and shows samples of the clips.

  python -m mma_dfer_jax.data.doctor --data_dir=data --name=dfew
  python -m mma_dfer_jax.data.doctor --raw=DFEW-part2 --dataset=dfew

The first line writes doctor.json, doctor.md and samples_*.png to data/dfew/doctor; the second looks at the names and
lists of an archive before it is prepared, and opens no clip. The exit status is 1 if there are problems, which make a
training pointless or its score a lie; warnings, which need a person's eye, leave it at 0.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import concurrent.futures
import concurrent.futures.process
import dataclasses
import functools
import hashlib
from itertools import pairwise
import json
import math
import multiprocessing
import os
from pathlib import Path
from typing import Any

from absl import flags
import cv2
from matplotlib.figure import Figure
import numpy as np
import tensorflow_datasets as tfds
import tqdm

from mma_dfer_jax import cli
from mma_dfer_jax.data.data_set import DataSet, follow_parent, open_data_set
from mma_dfer_jax.data.fbank import ENERGY_FLOOR, normalised, spectrogram
from mma_dfer_jax.data.frames import decode_frame, sample_frames
from mma_dfer_jax.data.layouts import (
  PUBLISHED,
  Layout,
  far_from_published,
  read_cremad,
  read_dfew,
  read_mafw,
  read_ravdess,
)
from mma_dfer_jax.data.media import SILENT
from mma_dfer_jax.data.pipeline import Record, eval_example
from mma_dfer_jax.errors import UserError, listed
from mma_dfer_jax.inputs import Inputs

# Not among the flags of every program that imports this: others have a --data_dir of their own.
_OPTIONS = flags.FlagValues()
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of a prepared data set.", flag_values=_OPTIONS)
_NAME = flags.DEFINE_string("name", "clips", "Name of that data set.", flag_values=_OPTIONS)
_OUT = flags.DEFINE_string(
  "out", None, "Folder for the report; if not given, DATA_DIR/NAME/doctor.", flag_values=_OPTIONS
)
_NUM_WORKERS = flags.DEFINE_integer(
  "num_workers",
  os.cpu_count() or 1,
  "Processes that read; 0: this one.",
  lower_bound=0,
  flag_values=_OPTIONS,
)
_RAW = flags.DEFINE_string(
  "raw", None, "Check this archive instead, as it was unpacked.", flag_values=_OPTIONS
)
_DATASET = flags.DEFINE_enum(
  "dataset", None, ["dfew", "mafw", "ravdess", "cremad"], "What --raw is.", flag_values=_OPTIONS
)
_FRAMES = flags.DEFINE_string("frames", None, "Of --raw: as prepare takes it.", flag_values=_OPTIONS)
_LISTS = flags.DEFINE_string("lists", None, "Of --raw: as prepare takes it.", flag_values=_OPTIONS)
_NUMBERS = flags.DEFINE_string("numbers", None, "Of --raw: as prepare takes it.", flag_values=_OPTIONS)
_ALLOW_MISSING_SOUND = flags.DEFINE_bool(
  "allow_missing_sound", False, "Of --raw: as prepare takes it.", flag_values=_OPTIONS
)
_CLASSES = flags.DEFINE_list("classes", [], "Of --raw: as prepare takes it.", flag_values=_OPTIONS)
_FOLLOW_LINKS = flags.DEFINE_bool(
  "follow_links", False, "Of --raw: as prepare takes it.", flag_values=_OPTIONS
)

FEW_FRAMES = 16  # fewer repeat the last one in every batch, and are no movement of 16 steps
# Grey levels of 255, over the frames that an evaluation takes. A night scene has a mean of 10 or more, a black picture
# of 0 to 2 after any coding; a picture with anything in it deviates by 15 or more from its mean.
BLACK, ONE_COLOUR = 8.0, 2.0
# Largest change of a cell of 1/16 by 1/16 of the picture, which noise and coding hardly change: measured are 1 to 5 for
# still pictures coded as H.264, 52 and more for the faces of RAVDESS, cut out or not.
STILL, CELLS = 6.0, 16
REPEATED = (
  0.5  # share of frames that are those before, bit for bit: 12 pictures a second shown as 25 stay below
)
SHORT_SOUND = 0.5  # seconds: less than one tenth of the spectrogram is sound, and hardly a word
FEW_FACES = 0.8  # share of frames with a face
COUNTS_ARE_FIXED = ("dfew", "mafw")  # everybody has the same lists of them
SAMPLES, SHOWN_FRAMES = 8, 8  # of a page of clips, and of each of them
_CHUNK = 16  # records that a process reads at a time
FEW_RECORDS = 64  # are read sooner than a process has started
_MARKS = ((b"\xff\xd8", b"\xff\xd9"), (b"\x89PNG", b"IEND\xae\x42\x60\x82"))  # of whole JPEG and PNG files
_NAMED = 5  # clips that a message names; all are in doctor.json


# ---- one record ----


@dataclasses.dataclass(frozen=True)
class Seen:
  """What is remembered of one record; no pixel of it.

  Attributes:
    label: class name; None if its number is that of no class.
    size: (height, width) of the first frame, pixels.
    brightness: mean grey level of the brightest frame among those that an evaluation takes.
    contrast: largest standard deviation within one of these frames.
    motion: largest difference of a cell's colour in two of them that follow each other; None if there is only one.
    repeats: share of all frames, but the first, that are the one before, bit for bit.
    seconds: length of the sound.
    peak: largest sample of the sound, of 32768.
    face_share: share of the frames with a face; None if none was looked for.
    pictures: digest of all frames.
    sound: digest of the waveform; empty if there is none.
  """

  split: str
  index: int
  clip_id: str
  label: str | None
  frames: int
  size: tuple[int, int]
  brightness: float
  contrast: float
  motion: int | None
  repeats: float
  seconds: float
  sample_rate: int
  peak: int
  has_audio: bool
  face_share: float | None
  pictures: str
  sound: str

  def __str__(self) -> str:
    return f"{self.split} {self.clip_id}"

  @property
  def black(self) -> bool:
    return self.brightness < BLACK

  @property
  def blank(self) -> bool:
    """Nothing is to be seen, so that it says nothing that two of them look alike."""
    return self.black or self.contrast < ONE_COLOUR

  @property
  def frozen(self) -> bool:
    return not self.blank and self.motion is not None and self.motion < STILL

  @property
  def silent(self) -> bool:
    return self.has_audio and self.peak < SILENT


@dataclasses.dataclass(frozen=True)
class Unreadable:
  """A record that training could not read."""

  split: str
  index: int
  clip_id: str  # empty if not even that can be read
  error: str

  def __str__(self) -> str:
    return f"{self.split} record {self.index}{f' ({self.clip_id})' if self.clip_id else ''}: {self.error}"


def look_at(record: Record, split: str, index: int, classes: Sequence[str]) -> Seen:
  """Decodes what an evaluation takes of a record, and measures it.

  Raises:
    ValueError: if there are no frames, one of them is no picture, or the sound gives no spectrogram.
  """
  frames, waveform, rate = record["frames"], np.asarray(record["waveform"]), int(record["sample_rate"])
  label, has_audio = int(record["label"]), bool(record["has_audio"])
  if has_audio:
    _check_sound(waveform, rate)
  share = float(record.get("face_share", math.nan))
  return Seen(
    split=split,
    index=index,
    clip_id=_text(record["clip_id"]),
    label=classes[label] if 0 <= label < len(classes) else None,
    frames=len(frames),
    **_measured(frames),
    repeats=sum(map(bytes.__eq__, frames, frames[1:])) / max(1, len(frames) - 1),
    seconds=round(len(waveform) / rate, 3) if has_audio else 0.0,
    sample_rate=rate if has_audio else 0,
    peak=int(np.abs(waveform.astype(np.int32)).max()) if has_audio else 0,
    has_audio=has_audio,
    face_share=None if math.isnan(share) else round(share, 4),
    pictures=_digest(frames),
    sound=_digest([waveform.tobytes()]) if has_audio else "",
  )


def _check_sound(waveform: np.ndarray, rate: int) -> None:
  rows, bins = Inputs().audio_shape
  if not np.isfinite(spectrogram(waveform.astype(np.float32) / 32768.0, rate, rows, bins)).all():
    raise ValueError("its spectrogram is not finite")


def _measured(frames: Sequence[bytes]) -> dict[str, Any]:
  """size, brightness, contrast and motion; holds one frame at a time."""
  chosen = sample_frames(len(frames), train=False)
  # Training may draw any frame: those without the end of a JPEG or PNG may be cut off, and are decoded too.
  for i in sorted({i for i, data in enumerate(frames) if not _looks_whole(data)} - set(chosen.tolist())):
    _pixels(frames, i)
  sizes, means, deviations, cells = [], [], [], []
  for i in dict.fromkeys(chosen.tolist()):
    pixels = _pixels(frames, i)
    mean, deviation = cv2.meanStdDev(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY))
    sizes.append(pixels.shape[:2])
    means.append(mean.item())
    deviations.append(deviation.item())
    cells.append(cv2.resize(pixels, (CELLS, CELLS), interpolation=cv2.INTER_AREA))
  motions = [int(cv2.absdiff(before, after).max()) for before, after in pairwise(cells)]
  return {
    "size": sizes[0],
    "brightness": round(max(means), 2),
    "contrast": round(max(deviations), 2),
    "motion": max(motions) if motions else None,
  }


def _looks_whole(data: bytes) -> bool:
  return any(data.startswith(first) and data.endswith(last) for first, last in _MARKS)


def _pixels(frames: Sequence[bytes], i: int) -> np.ndarray:
  try:
    return decode_frame(frames[i])
  except ValueError as error:
    raise ValueError(f"frame {i}: {error}") from error


def _digest(parts: Iterable[bytes]) -> str:
  digest = hashlib.sha256()
  for part in parts:
    digest.update(len(part).to_bytes(8, "little") + part)
  return digest.hexdigest()[:32]


def _text(value: bytes | str) -> str:
  return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


# ---- all records ----


@functools.lru_cache(maxsize=1)
def _records(path: Path, split: str) -> Sequence[Record]:
  """Opened once by each process."""
  return tfds.builder_from_directory(path).as_data_source(split)


def _look_at_some(
  path: Path, split: str, some: range, classes: Sequence[str]
) -> tuple[list[Seen], list[Unreadable]]:
  seen, unreadable = [], []
  for index in some:
    clip_id = ""
    try:
      record = _records(path, split)[index]
      clip_id = _text(record["clip_id"])
      seen.append(look_at(record, split, index, classes))
    except Exception as error:  # array_record, tfds and OpenCV each have their own; every one is a finding
      unreadable.append(Unreadable(split, index, clip_id, f"{type(error).__name__}: {_first_line(error)}"))
  return seen, unreadable


def _first_line(error: Exception) -> str:
  """Without what array_record adds: where in the file, and the file itself, again and again."""
  return (str(error).splitlines() or ["?"])[0].split("; ", 1)[0][:200]


def _start_worker() -> None:
  follow_parent()
  cv2.setNumThreads(1)  # the processes share the cores already


def examine(data_set: DataSet, num_workers: int) -> tuple[list[Seen], list[Unreadable]]:
  """Reads every record once; what cannot be read is returned too, in the order of splits and records.

  Args:
    data_set: as opened.
    num_workers: processes; 0 reads in this one, and so are few records.
  Raises:
    UserError: if a process was ended from outside.
  """
  tasks = [
    (data_set.path, split, range(first, min(first + _CHUNK, size)), data_set.classes)
    for split, size in data_set.splits.items()
    for first in range(0, size, _CHUNK)
  ]
  seen: list[Seen] = []
  unreadable: list[Unreadable] = []
  with tqdm.tqdm(desc="examine", total=sum(data_set.splits.values()), unit="clip") as bar:
    for good, bad in _results(tasks, num_workers):
      seen += good
      unreadable += bad
      bar.update(len(good) + len(bad))
  place = {split: i for i, split in enumerate(data_set.splits)}
  return (
    sorted(seen, key=lambda one: (place[one.split], one.index)),
    sorted(unreadable, key=lambda one: (place[one.split], one.index)),
  )


def _results(tasks: Sequence[tuple], num_workers: int) -> Iterator[tuple[list[Seen], list[Unreadable]]]:
  if not num_workers or sum(len(some) for _, _, some, _ in tasks) <= FEW_RECORDS:
    _records.cache_clear()  # another data set may lie at the same path since
    yield from (_look_at_some(*task) for task in tasks)
    return
  context = multiprocessing.get_context("spawn")
  workers = max(1, min(num_workers, len(tasks)))
  with concurrent.futures.ProcessPoolExecutor(workers, context, initializer=_start_worker) as pool:
    try:
      futures = [pool.submit(_look_at_some, *task) for task in tasks]
      for future in concurrent.futures.as_completed(futures):
        yield future.result()
    except concurrent.futures.process.BrokenProcessPool as error:
      raise UserError(
        "a process that reads was ended from outside, most often for lack of memory; run the command again with a "
        "smaller --num_workers"
      ) from error
    finally:
      pool.shutdown(cancel_futures=True)


# ---- what is wrong with them ----

Counts = Mapping[str, Mapping[str, int]]  # by split and class


@dataclasses.dataclass
class Diagnosis:
  """What was found.

  Attributes:
    problems: make a training pointless or its score a lie.
    warnings: need a person's eye.
    notes: worth saying, not wrong.
    counts: clips by split and class, as found.
    published: likewise, as published; empty if not known.
    lists: names of clips by what is remarkable about them.
    duplicates: groups of clips that are the same in something: what, and their names.
    splits: numbers of each split.
    purpose: what it may be fit for.
  """

  problems: list[str] = dataclasses.field(default_factory=list)
  warnings: list[str] = dataclasses.field(default_factory=list)
  notes: list[str] = dataclasses.field(default_factory=list)
  counts: Counts = dataclasses.field(default_factory=dict)
  published: Counts = dataclasses.field(default_factory=dict)
  lists: dict[str, list[str]] = dataclasses.field(default_factory=dict)
  duplicates: list[dict[str, Any]] = dataclasses.field(default_factory=list)
  splits: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
  purpose: str = "training"

  @property
  def fit(self) -> bool:
    return not self.problems

  @property
  def verdict(self) -> str:
    if self.problems:
      return f"NOT FIT for {self.purpose}: {_number(len(self.problems), 'problem')}"
    return f"fit for {self.purpose}" + (
      f", but look at {_number(len(self.warnings), 'warning')}" if self.warnings else ""
    )


def diagnose(
  data_set: DataSet, name: str, seen: Sequence[Seen], unreadable: Sequence[Unreadable]
) -> Diagnosis:
  """Weighs what `examine` found.

  Args:
    data_set: for what its builder says.
    name: of the data set; decides what it is compared with.
    seen: all records that can be read.
    unreadable: all others.
  """
  result = Diagnosis(counts=_counted(data_set, seen), published=_published(name, data_set.classes))
  if unreadable:
    result.lists["unreadable"] = [str(one) for one in unreadable]
    result.problems.append(
      f"{_number(len(unreadable), 'record')} cannot be read: {_some(result.lists['unreadable'], '; ', most=3)}"
    )
  result.problems += _labels_out_of_range(seen, data_set.classes)
  result.problems += _miscounted(data_set, seen, unreadable)
  _check_splits(result, data_set.classes, name)
  _compare_with_published(result, name)
  _find_duplicates(result, seen)
  _find_oddities(result, seen)
  result.splits = {split: _numbers([s for s in seen if s.split == split]) for split in result.counts}
  if data_set.left_out:
    result.notes.append(
      f"{_number(len(data_set.left_out), 'clip')} left out when it was prepared: {_some(data_set.left_out, '; ')}"
    )
  return result


def _counted(data_set: DataSet, seen: Sequence[Seen]) -> Counts:
  found = Counter((one.split, one.label) for one in seen)
  splits = dict.fromkeys([*data_set.splits, *data_set.clips])
  return {split: {name: found[split, name] for name in data_set.classes} for split in splits}


def _published(name: str, classes: Sequence[str]) -> Counts:
  """Only of the same classes: somebody may have taken some of them."""
  published: Counts = PUBLISHED.get(name, {})
  return published if all(set(row) == set(classes) for row in published.values()) else {}


def _labels_out_of_range(seen: Sequence[Seen], classes: Sequence[str]) -> list[str]:
  wrong = [str(one) for one in seen if one.label is None]
  last = len(classes) - 1
  return [f"{_number(len(wrong), 'label')} not between 0 and {last}: {_some(wrong)}"] if wrong else []


def _miscounted(data_set: DataSet, seen: Sequence[Seen], unreadable: Sequence[Unreadable]) -> list[str]:
  """Where the records are not what the data set's builder says; of those that cannot be read no class is known."""
  found = Counter((one.split, one.label) for one in seen)
  total = Counter([one.split for one in seen]) + Counter([one.split for one in unreadable])
  lost = Counter(one.split for one in unreadable)
  problems = []
  for split in dict.fromkeys([*data_set.splits, *data_set.clips]):
    said = data_set.clips.get(split, {})
    if total[split] != sum(said.values()):
      problems.append(f"{split}: {total[split]} records, but its builder counted {sum(said.values())}")
      continue
    for name in data_set.classes:
      missing = said.get(name, 0) - found[split, name]
      if not 0 <= missing <= lost[split]:
        problems.append(
          f"{split}: {found[split, name]} clips of {name}, but its builder counted {said.get(name, 0)}"
        )
  return problems


def _check_splits(result: Diagnosis, classes: Sequence[str], name: str) -> None:
  """Splits and classes without clips, and splits that no run can use."""
  there = [label for label in classes if any(row.get(label) for row in result.counts.values())]
  counts = result.counts
  for split, row in counts.items():
    if not any(row.values()):
      result.problems.append(f"the split {split} is empty")
  for label in classes:
    if label not in there:
      hint = (
        "" if name in COUNTS_ARE_FIXED or not there else f"; --classes={','.join(there)} would do without it"
      )
      result.problems.append(f"there is no clip of the class {label}{hint}")
    elif without := [split for split, row in counts.items() if not row.get(label) and any(row.values())]:
      result.warnings.append(f"no clip of {label} in {', '.join(without)}")
  folds = sorted(int(split[4:]) for split in counts if split.startswith("fold") and split[4:].isdecimal())
  if len(folds) < 2 and not {"train", "test"} <= set(counts):
    result.problems.append(
      f"no run can use the splits {', '.join(counts)}: it needs train and test, or several folds"
    )
  if folds and folds != list(range(1, len(folds) + 1)):
    result.warnings.append(f"the folds are {', '.join(map(str, folds))}; are there others?")


def _compare_with_published(result: Diagnosis, name: str) -> None:
  if name in COUNTS_ARE_FIXED and (lacking := sorted(set(result.published) - set(result.counts))):
    result.problems.append(f"there is no {', '.join(lacking)}, {name} has {len(result.published)} folds")
  if not set(result.published) & set(result.counts):
    if result.published:
      result.notes.append(f"the splits are none of the published ones, {', '.join(result.published)}")
    return
  if name == "mafw":
    counts = {
      split: row for split, row in result.counts.items() if split in result.published and any(row.values())
    }
    for order, other in (("mafw", "mafw-official"), ("mafw-official", "mafw")):
      if counts and far_from_published(counts, order)[1] == 0:
        result.problems.append(
          f"the labels are wrong: the numbers of clips are the published ones if the lists count by {other}, but they "
          f"were read as {order}; prepare again with --numbers={other}"
        )
  differing = []
  for split in dict.fromkeys([*result.published, *result.counts]):
    there, should = result.counts.get(split, {}), result.published.get(split, {})
    differing += [
      f"{split} {label} {there.get(label, 0)} (published {should.get(label, 0)})"
      for label in should or there
      if there.get(label, 0) != should.get(label, 0)
    ]
  if differing:
    say = result.warnings if name in COUNTS_ARE_FIXED else result.notes
    say.append(f"{_number(len(differing), 'count')} not as published: {_some(differing)}")


def _find_duplicates(result: Diagnosis, seen: Sequence[Seen]) -> None:
  """The same clip in two splits is in training and in a test; the same sound alone may be another cut of a scene."""
  kinds: dict[str, Callable[[Seen], Any]] = {
    "name": lambda one: one.clip_id,
    "pictures": lambda one: (
      one.pictures + one.sound if one.blank and one.sound else not one.blank and one.pictures
    ),
    "sound": lambda one: "" if one.silent else one.sound,
  }
  told: set[frozenset[Seen]] = set()
  for what, key in kinds.items():
    groups: dict[Any, list[Seen]] = defaultdict(list)
    for one in seen:
      groups[key(one)].append(one)
    same = [group for value, group in groups.items() if value and len(group) > 1]
    same = [group for group in same if frozenset(group) not in told]
    told |= {frozenset(group) for group in same}
    for across in (True, False):
      found = [group for group in same if (len({one.split for one in group}) > 1) == across]
      if found:
        _tell_duplicates(result, what, across, found)


def _tell_duplicates(result: Diagnosis, what: str, across: bool, groups: Sequence[Sequence[Seen]]) -> None:
  names = []
  for group in groups:
    labels = {one.label for one in group}
    differ = f" (labelled {', '.join(str(one.label) for one in group)})" if len(labels) > 1 else ""
    names.append(" = ".join(map(str, group)) + differ)
    result.duplicates.append(
      {"same": what, "in_several_splits": across, "clips": [str(one) for one in group]}
    )
  where = "in several splits" if across else "within a split"
  # A name twice is a mistake anywhere; the same sound with other pictures may be right.
  bad = what == "name" or (what == "pictures" and across)
  say = result.problems if bad else result.warnings
  say.append(
    f"{_number(len(groups), 'group')} of clips with the same {what} {where}: {_some(names, '; ', most=3)}"
  )


ODDITIES: dict[str, tuple[str, Callable[[Seen], bool]]] = {
  "few_frames": (f"fewer than {FEW_FRAMES} frames", lambda one: one.frames < FEW_FRAMES),
  "black": (f"black, no frame brighter than {BLACK:g} of 255", lambda one: one.black),
  "one_colour": ("pictures of one colour only", lambda one: one.blank and not one.black),
  "frozen": (f"frozen, no part of the picture changes by {STILL:g} of 255", lambda one: one.frozen),
  "repeating": (
    f"more than {100 * REPEATED:.0f} % of the frames repeat the one before",
    lambda one: one.repeats > REPEATED and not one.blank and not one.frozen,
  ),
  "no_sound": ("no sound, a constant spectrogram", lambda one: not one.has_audio),
  "short_sound": (f"sound shorter than {SHORT_SOUND:g} s", lambda one: one.has_audio and one.seconds < SHORT_SOUND),
  "silent": (f"silent, no sample above {SILENT - 1} of 32768", lambda one: one.silent),
  "few_faces": (
    f"a face in less than {100 * FEW_FACES:.0f} % of the frames",
    lambda one: one.face_share is not None and one.face_share < FEW_FACES,
  ),
}  # fmt: skip


def _find_oddities(result: Diagnosis, seen: Sequence[Seen]) -> None:
  for key, (words, holds) in ODDITIES.items():
    result.lists[key] = [str(one) for one in seen if holds(one)]
    if result.lists[key]:
      clips = _number(len(result.lists[key]), "clip")
      result.warnings.append(f"{words} ({clips}): {_some(result.lists[key])}")
  rates = Counter(one.sample_rate for one in seen if one.has_audio)
  if len(rates) > 1:
    shares = [f"{rate} Hz in {clips}" for rate, clips in rates.most_common()]
    result.warnings.append(
      f"sounds have {len(rates)} sample rates, and spectrograms as many scales: {_some(shares)}"
    )


def _numbers(seen: Sequence[Seen]) -> dict[str, Any]:
  """Of one split: [smallest, median, largest], counts by sample rate and size, and clips by oddity."""
  heard = [one for one in seen if one.has_audio]
  faces = [one.face_share for one in seen if one.face_share is not None]
  return {
    "clips": len(seen),
    "frames": _spread([one.frames for one in seen]),
    "seconds_of_sound": _spread([one.seconds for one in heard]),
    "brightness": _spread([one.brightness for one in seen]),
    "motion": _spread([one.motion for one in seen if one.motion is not None]),
    "face_share": _spread(faces),
    "sample_rates": _tally(str(one.sample_rate) for one in heard),
    "frame_sizes": _tally(f"{one.size[0]}x{one.size[1]}" for one in seen),
    **{key: sum(map(holds, seen)) for key, (_, holds) in ODDITIES.items()},
  }


def _spread(values: Sequence[int] | Sequence[float]) -> list[float] | None:
  return [round(float(f(values)), 3) for f in (np.min, np.median, np.max)] if values else None


def _tally(names: Iterable[str]) -> dict[str, int]:
  return dict(Counter(names).most_common())


def _number(number: int, one: str) -> str:
  return f"{number} {one}{'' if number == 1 else 's'}"


def _some(names: Sequence[str], between: str = ", ", most: int = _NAMED) -> str:
  more = f"{between}… {len(names) - most} more" if len(names) > most else ""
  return between.join(names[:most]) + more


# ---- an archive that is not prepared yet ----


def read_archive(dataset: str, raw: Path, **options: Any) -> Layout:
  """What `prepare` would find.

  Args:
    dataset: dfew, mafw, ravdess or cremad.
    raw: its folder.
    options: of the reader, as given; what is None is left to it.
  Raises:
    UserError: if there is no such data set, or an option is not for it.
  """
  allowed = {
    "dfew": {"frames", "lists", "allow_missing_sound"},
    "mafw": {"frames", "lists", "numbers", "allow_missing_sound"},
    "ravdess": {"classes"},
    "cremad": {"classes", "allow_missing_sound"},
  }[dataset]
  given = {key: value for key, value in options.items() if value}
  if wrong := sorted(given.keys() - allowed - {"follow_links"}):
    raise listed(
      "the archive cannot be checked", [f"--{key} is not for --dataset={dataset}" for key in wrong]
    )
  readers: dict[str, Callable[..., Layout]] = {
    "dfew": read_dfew,
    "mafw": read_mafw,
    "ravdess": read_ravdess,
    "cremad": read_cremad,
  }
  return readers[dataset](raw, **given)


def diagnose_archive(layout: Layout, dataset: str) -> Diagnosis:
  """Weighs what the reader of an archive found."""
  found = Counter((clip.split, clip.label) for clip in layout.clips)
  splits = sorted(layout.splits | {clip.split for clip in layout.clips})
  counts = {split: {name: found[split, name] for name in layout.classes} for split in splits}
  result = Diagnosis(
    problems=[str(problem) for problem in layout.problems],
    notes=[str(note) for note in layout.notes],
    lists={one.what: list(one.names) for one in layout.notes if one.names},
    counts=counts,
    published=_published(dataset, layout.classes),
    purpose="preparation (no clip was opened)",
  )
  _check_splits(result, layout.classes, dataset)
  _compare_with_published(result, dataset)
  silent = [clip.clip_id for clip in layout.clips if clip.sound is None]
  if silent:
    result.lists["no_sound"] = silent
    result.warnings.append(f"{_number(len(silent), 'clip')} without a file with sound: {_some(silent)}")
  return result


# ---- the report ----


def counts_table(result: Diagnosis) -> str:
  """Clips by class and split, and after a stroke the published ones, where they are known."""
  splits = list(dict.fromkeys([*result.counts, *result.published]))
  if set(splits) > set(result.counts) and not set(result.published) & set(result.counts):
    splits = list(result.counts)  # of one actor, say: no split is a published one
  published = {split: row for split, row in result.published.items() if split in splits}
  classes = list(dict.fromkeys(name for row in result.counts.values() for name in row))

  def cell(names: Sequence[str], of: Sequence[str]) -> str:
    there = sum(result.counts.get(split, {}).get(name, 0) for split in of for name in names)
    if not set(of) <= set(published):
      return str(there)
    return f"{there}/{sum(published[split][name] for split in of for name in names)}"

  rows = [[name, *(cell([name], [split]) for split in splits), cell([name], splits)] for name in classes]
  rows.append(["all", *(cell(classes, [split]) for split in splits), cell(classes, splits)])
  return _table(["class" + " (found/published)" * bool(published), *splits, "all"], rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """In Markdown, aligned so that it can be read as it is."""
  widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

  def line(cells: Sequence[str]) -> str:
    padded = [text.ljust(w) if not i else text.rjust(w) for i, (text, w) in enumerate(zip(cells, widths, strict=True))]  # fmt: skip
    return "| " + " | ".join(padded) + " |"

  rule = "|" + "|".join("-" * (w + 1) + (":" if i else "-") for i, w in enumerate(widths)) + "|"
  return "\n".join([line(header), rule, *map(line, rows)])


def numbers_table(result: Diagnosis) -> str:
  """What was measured, by split; of spreads the smallest, the median and the largest."""

  def cell(value: Any) -> str:
    if isinstance(value, list):
      return " … ".join(f"{number:g}" for number in value)
    if isinstance(value, dict):
      tally = [f"{key} ({clips})" for key, clips in value.items()]
      return _some(tally, most=3) or "–"
    return "–" if value is None else str(value)

  keys = list(next(iter(result.splits.values()), {}))
  rows = [
    [key.replace("_", " "), *(cell(numbers[key]) for numbers in result.splits.values())] for key in keys
  ]
  return _table(["", *result.splits], rows)


def _found(title: str, lines: Sequence[str]) -> list[str]:
  return [f"## {title}", "", *(f"- {line}" for line in lines), ""] if lines else []


def as_markdown(result: Diagnosis, about: Mapping[str, Any], pages: Mapping[str, str]) -> str:
  """The report for people.

  Args:
    result: what was found.
    about: facts, by what they are.
    pages: files with samples, by title.
  """
  return "\n".join(
    [
      f"# {about['data set']}: {result.verdict}",
      "",
      *_found("Problems", result.problems),
      *_found("Warnings", result.warnings),
      *_found("Notes", result.notes),
      "## Clips",
      "",
      counts_table(result),
      "",
      *(["## Numbers", "", numbers_table(result), ""] if result.splits else []),
      *(
        line
        for title, file in pages.items()
        for line in (f"## {title}", "", f"![{title}]({file})", "")
      ),
      "## The data set",
      "",
      *(f"- {key}: {value}" for key, value in about.items()),
      "",
      *(["Every clip that is meant above is named in doctor.json.", ""] if result.lists else []),
    ]
  )  # fmt: skip


def write_report(
  folder: Path,
  result: Diagnosis,
  about: Mapping[str, Any],
  seen: Sequence[Seen] = (),
  pages: Mapping[str, str] | None = None,
) -> None:
  """Writes doctor.json and doctor.md."""
  folder.mkdir(parents=True, exist_ok=True)
  hidden = ("pictures", "sound")  # digests: what they are for is in `duplicates`
  clips = [{k: v for k, v in dataclasses.asdict(one).items() if k not in hidden} for one in seen]
  everything = {
    "fit": result.fit,
    "verdict": result.verdict,
    **dataclasses.asdict(result),
    "thresholds": {
      "few_frames": FEW_FRAMES, "black": BLACK, "one_colour": ONE_COLOUR, "frozen": STILL, "repeating": REPEATED,
      "short_sound": SHORT_SOUND, "silent": SILENT, "few_faces": FEW_FACES,
    },
    "about": dict(about),
    "clips": clips,
  }  # fmt: skip
  text = json.dumps(everything, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
  for name, content in (
    ("doctor.json", text),
    ("doctor.md", as_markdown(result, about, pages or {})),
  ):
    partial = folder / f"{name}.partial"
    partial.write_text(content, encoding="utf-8")
    partial.replace(folder / name)


# ---- pages of samples ----


def spread_over_classes(seen: Sequence[Seen], number: int, turn: int = 0) -> list[Seen]:
  """At most `number` clips, from as many classes as possible; another turn begins with another class."""
  classes: dict[str, list[Seen]] = defaultdict(list)
  for one in seen:
    classes[str(one.label)].append(one)
  names = sorted(classes)
  names = names[turn % len(names) :] + names[: turn % len(names)] if names else []
  quota = Counter(name for _ in range(number) for name in names)  # upper bound of what each could give
  taken: Counter[str] = Counter()
  while sum(taken.values()) < min(number, len(seen)):
    for name in names:
      if taken[name] < min(quota[name], len(classes[name])) and sum(taken.values()) < number:
        taken[name] += 1
  return [classes[name][i * len(classes[name]) // taken[name]] for name in names for i in range(taken[name])]


def draw_page(data_set: DataSet, clips: Sequence[tuple[Seen, str]], title: str, path: Path) -> None:
  """Frames of clips, as the model gets them, and their spectrograms.

  Args:
    data_set: which they are read from again.
    clips: with what is to be said of each.
    title: of the page.
    path: a PNG.
  """
  inputs = Inputs()
  height = 0.8 + 1.7 * len(clips)  # inches
  figure = Figure(figsize=(15, height))
  figure.suptitle(title, y=1 - 0.15 / height)
  rows = figure.subplots(len(clips), 2, squeeze=False, width_ratios=[2.7, 1])
  # By hand: a constrained layout takes longer than all the rest.
  figure.subplots_adjust(0.01, 0.35 / height, 0.99, 1 - 0.7 / height, wspace=0.03, hspace=0.3)
  quietest, loudest = normalised(np.log([[ENERGY_FLOOR]]), 1).item(), 1.3  # of silence, and of a loud voice
  for (one, words), (left, right) in zip(clips, rows, strict=True):
    example = eval_example(data_set.records(one.split)[one.index], inputs)
    left.imshow(np.hstack(example["video"][:: inputs.num_frames // SHOWN_FRAMES]))
    left.set_title(f"{one.label}    {one.clip_id}    {words}", loc="left", fontsize=9, parse_math=False)
    left.set_anchor("W")
    left.set_axis_off()
    right.imshow(example["spectrogram"].T, origin="lower", aspect="auto", cmap="magma", vmin=quietest,
                 vmax=loudest, extent=(0, 0.01 * inputs.audio_shape[0], 0, 1))  # fmt: skip
    right.set_title(_sound_in_words(one), loc="left", fontsize=9)
    right.set_yticks([])
    right.tick_params(labelsize=8, labelbottom=right is rows[-1, 1])
  rows[-1, 1].set_xlabel("seconds", fontsize=8, labelpad=1)
  figure.savefig(path, dpi=100)


def _sound_in_words(one: Seen) -> str:
  return f"{one.seconds:.2f} s at {one.sample_rate} Hz, peak {one.peak}" if one.has_audio else "no sound"


def draw_pages(data_set: DataSet, seen: Sequence[Seen], result: Diagnosis, folder: Path) -> dict[str, str]:
  """One page of samples for each split, and one of clips with warnings; returns files by title."""
  folder.mkdir(parents=True, exist_ok=True)
  for old in folder.glob("samples_*.png"):
    old.unlink()  # of a split that is there no more
  pages: dict[str, list[tuple[Seen, str]]] = {}
  for turn, split in enumerate(result.counts):
    there = [one for one in seen if one.split == split]
    pages[split] = [(one, f"{one.frames} frames") for one in spread_over_classes(there, SAMPLES, turn)]
  odd: dict[Seen, str] = {}
  for key, (words, holds) in ODDITIES.items():
    found = [one for one in seen if holds(one) and one not in odd][:2] if result.lists[key] else []
    odd |= {one: f"{one.split}: {words}" for one in found}
  pages["flagged"] = list(odd.items())[:SAMPLES]
  files = {}
  for name, clips in pages.items():
    if clips:
      title = "Clips with warnings" if name == "flagged" else f"Samples of {name}"
      files[title] = f"samples_{name}.png"
      draw_page(
        data_set,
        clips,
        f"{data_set.path.parent.name}: {title} (even red: no sound is left)",
        folder / files[title],
      )
  return files


# ---- the command ----


def check_data_set(data_dir: Path, name: str, out: Path | None = None, num_workers: int = 0) -> Diagnosis:
  """Examines a prepared data set and writes the report."""
  data_set = open_data_set(data_dir, name)
  folder = out or Path(data_dir, name, "doctor")
  seen, unreadable = examine(data_set, num_workers)
  result = diagnose(data_set, name, seen, unreadable)
  pages = draw_pages(data_set, seen, result, folder)
  about = {
    "data set": name,
    "path": str(data_set.path),
    "fingerprint": data_set.fingerprint,
    "class order": data_set.class_order,
    **{f"recipe, {key}": value for key, value in data_set.recipe.items()},
  }
  write_report(folder, result, about, seen, pages)
  say(result, folder)
  return result


def check_archive(dataset: str, raw: Path, out: Path | None = None, **options: Any) -> Diagnosis:
  """Checks an archive before it is prepared; a report is written if there is a folder for it."""
  layout = read_archive(dataset, raw, **options)
  result = diagnose_archive(layout, dataset)
  about = {"data set": dataset, "path": str(raw), "class order": layout.class_order} | {
    f"recipe, {key}": value for key, value in layout.recipe.items()
  }
  if out:
    write_report(out, result, about)
  say(result, out, most=50)
  return result


def say(result: Diagnosis, folder: Path | None, most: int = 20) -> None:
  """Prints the summary, the verdict last."""
  print(counts_table(result))
  for title, lines in (
    ("problems", result.problems),
    ("warnings", result.warnings),
    ("notes", result.notes),
  ):
    if lines:
      more = [f"… {len(lines) - most} more"] if len(lines) > most else []
      print(f"{title}:", *lines[:most], *more, sep="\n  - ")
  if folder:
    print(f"wrote {folder / 'doctor.md'}, doctor.json" + " and pages of samples" * bool(result.splits))
  print(result.verdict)


def main(argv: Sequence[str]) -> int:
  _OPTIONS(argv)  # parsed already, through `cli`
  out = Path(_OUT.value) if _OUT.value else None
  options: dict[str, Any] = {"frames": _FRAMES.value, "classes": _CLASSES.value, "numbers": _NUMBERS.value,
                             "follow_links": _FOLLOW_LINKS.value,
             "allow_missing_sound": _ALLOW_MISSING_SOUND.value,
             "lists": Path(_LISTS.value) if _LISTS.value else None}  # fmt: skip
  raw, data_dir = _RAW.value, _DATA_DIR.value
  if raw and not data_dir:
    if not _DATASET.value:
      raise UserError("--raw needs --dataset: dfew, mafw, ravdess or cremad")
    result = check_archive(_DATASET.value, Path(raw), out, **options)
  elif data_dir and not raw:
    if wrong := [f"--{key}" for key, value in {**options, "dataset": _DATASET.value}.items() if value]:
      raise UserError(f"{', '.join(wrong)} is for --raw only")
    result = check_data_set(Path(data_dir), _NAME.value, out, _NUM_WORKERS.value)
  else:
    raise UserError("give either --data_dir (and --name) or --raw (and --dataset)")
  return 0 if result.fit else 1


if __name__ == "__main__":
  cli.take_over(_OPTIONS)
  cli.run(main)
