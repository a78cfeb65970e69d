"""Checks whether a prepared data set is fit for training: counts, compares, and shows sample clips.

  python -m mma_dfer_jax.data.doctor --data_dir=data --name=dfew

Reads every record once and writes doctor.json, doctor.md and samples_*.png to data/dfew/doctor. The exit status is 1 if
there are problems, which make a training pointless or its score wrong; warnings need a human look and leave it at 0.
Before a data set is prepared, `prepare --check` checks the files that it would be made of.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
import contextlib
import dataclasses
import functools
import hashlib
from itertools import pairwise, zip_longest
import math
import multiprocessing
import os
from pathlib import Path
from typing import Any

from absl import flags
import cv2
import numpy as np

from mma_dfer_jax import cli
from mma_dfer_jax.data.data_set import DataSet, follow_parent, open_data_set
from mma_dfer_jax.data.fbank import ENERGY_FLOOR, LOWEST_FREQUENCY, normalised, spectrogram, window_and_hop
from mma_dfer_jax.data.frames import decode_frame, sample_frames
from mma_dfer_jax.data.layouts import PUBLISHED
from mma_dfer_jax.data.media import SILENT
from mma_dfer_jax.data.pipeline import Record, eval_example
from mma_dfer_jax.disk import write_json
from mma_dfer_jax.errors import UserError
from mma_dfer_jax.inputs import Inputs
from mma_dfer_jax.progress import Progress

LIMITS = {
  "few_frames": 16,  # fewer repeat the last one in every batch, and are no movement of 16 steps
  # Grey levels of 255, over the frames that an evaluation takes. A night scene has a mean of 10 or more, a black picture
  # of 0 to 2 after any coding; a picture with anything in it deviates by 15 or more from its mean.
  "black": 8.0,
  "one_colour": 2.0,
  # Largest change of a cell of 1/16 by 1/16 of the picture, which noise and coding hardly change: measured are 1 to 5 for
  # still pictures coded as H.264, 52 and more for the faces of RAVDESS, cut out or not.
  "frozen": 6.0,
  "repeating": 0.5,  # share of frames equal to the one before, bit for bit; 12 pictures a second shown as 25 have less
  "short_sound": 0.5,  # seconds: less than one tenth of the spectrogram is sound, and hardly a word
  "silent": SILENT,  # of 32768
  "few_faces": 0.8,  # share of frames with a face
}
CELLS = 16
FIXED_LISTS = ("dfew", "mafw")  # everybody trains on the same lists of them
RESAMPLED = 16_000  # Hz; common recipes convert the sounds of DFEW and MAFW to it, which costs about 2.6 UAR
SAMPLES, SHOWN_FRAMES = 8, 8  # of a page of clips, and of each of them
EXAMPLES = 3  # that a message names; all are in doctor.json
CHUNK, FEW_RECORDS = (
  16,
  64,
)  # records that a process reads at a time; that are read sooner than a process has started
_MARKS = ((b"\xff\xd8", b"\xff\xd9"), (b"\x89PNG", b"IEND\xae\x42\x60\x82"))  # of whole JPEG and PNG files


@dataclasses.dataclass(frozen=True)
class RecordStats:
  """What is remembered of one record; no pixel of it."""

  split: str
  index: int
  clip_id: str
  label: str | None  # class name; None: its number is that of no class
  frames: int
  size: tuple[int, int]  # (height, width) of the first frame, pixels
  brightness: float  # mean grey level of the brightest frame that an evaluation takes
  contrast: float  # largest standard deviation within one of these frames
  motion: (
    int | None
  )  # largest change of a cell's colour between two of them in a row; None: there is only one
  repeats: float  # share of all frames but the first that equal the one before, bit for bit
  seconds: float  # of sound
  sample_rate: int
  peak: int  # largest sample of the sound, of 32768
  has_audio: bool
  face_share: float | None  # of the frames; None: `prepare` looked for no faces
  pictures: str  # digest of all frames
  sound: str  # digest of the waveform; empty: there is none

  def __str__(self) -> str:
    return f"{self.split} {self.clip_id}"

  @property
  def picture(self) -> str:
    """What makes the picture odd, if anything: a name among the oddities."""
    odd = {
      "black": self.brightness < LIMITS["black"],
      "one_colour": self.contrast < LIMITS["one_colour"],
      "frozen": self.motion is not None and self.motion < LIMITS["frozen"],
      "repeating": self.repeats > LIMITS["repeating"],
    }
    return next((name for name, holds in odd.items() if holds), "")

  @property
  def blank(self) -> bool:
    """Whether nothing can be seen, so that two of them may look alike and be different clips."""
    return self.picture in ("black", "one_colour")


ODDITIES: dict[str, tuple[str, Callable[[RecordStats], bool]]] = {
  "few_frames": ("fewer than {} frames", lambda one: one.frames < LIMITS["few_frames"]),
  "black": ("black, no frame brighter than {:g} of 255", lambda one: one.picture == "black"),
  "one_colour": ("pictures of one colour only", lambda one: one.picture == "one_colour"),
  "frozen": ("frozen, no part of the picture changes by {:g} of 255", lambda one: one.picture == "frozen"),
  "repeating": ("more than {:.0%} of the frames repeat the one before", lambda one: one.picture == "repeating"),
  "no_sound": ("no sound, a constant spectrogram", lambda one: not one.has_audio),
  "short_sound": ("sound shorter than {:g} s", lambda one: one.has_audio and one.seconds < LIMITS["short_sound"]),
  "silent": ("silent, no sample reaches {} of 32768", lambda one: one.has_audio and one.peak < SILENT),
  "few_faces": ("a face in less than {:.0%} of the frames",
                lambda one: one.face_share is not None and one.face_share < LIMITS["few_faces"]),
}  # fmt: skip


def look_at(record: Record, split: str, index: int, classes: Sequence[str]) -> RecordStats:
  """Decodes what an evaluation takes of a record, and measures it.

  Raises:
    ValueError: if there are no frames, one of them is no picture, or the sound gives no spectrogram.
  """
  frames, waveform, rate = record["frames"], np.asarray(record["waveform"]), int(record["sample_rate"])
  label, has_audio = int(record["label"]), bool(record["has_audio"])
  if has_audio:
    rows = spectrogram(waveform.astype(np.float32) / 32768.0, rate, *Inputs().audio_shape)
    if not np.isfinite(rows).all():
      raise ValueError("its spectrogram is not finite")
  share = float(record.get("face_share", math.nan))
  return RecordStats(
    split=split,
    index=index,
    clip_id=record["clip_id"].decode(errors="replace"),
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


def _measured(frames: Sequence[bytes]) -> dict[str, Any]:
  """size, brightness, contrast and motion; holds one frame at a time."""
  chosen = set(sample_frames(len(frames), train=False).tolist())
  size, means, deviations, cells = None, [], [], []
  for i, data in enumerate(frames):
    # Training may draw any frame: those without the end of a JPEG or PNG may be cut off, and are decoded too.
    if i not in chosen and any(data.startswith(first) and data.endswith(last) for first, last in _MARKS):
      continue
    try:
      pixels = decode_frame(data)
    except ValueError as error:
      raise ValueError(f"frame {i}: {error}") from error
    if i in chosen:
      size = size or pixels.shape[:2]
      mean, deviation = cv2.meanStdDev(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY))
      means.append(mean.item())
      deviations.append(deviation.item())
      cells.append(cv2.resize(pixels, (CELLS, CELLS), interpolation=cv2.INTER_AREA))
  motion = max((int(cv2.absdiff(before, after).max()) for before, after in pairwise(cells)), default=None)
  return {"size": size, "brightness": round(max(means), 2), "contrast": round(max(deviations), 2), "motion": motion}  # fmt: skip


def _digest(parts: Iterable[bytes]) -> str:
  return hashlib.sha256(b"".join(len(part).to_bytes(8, "little") + part for part in parts)).hexdigest()[:32]


def _look_at_some(data_set: DataSet, task: tuple[str, range]) -> tuple[list[RecordStats], list[str]]:
  split, some = task
  records = functools.cache(lambda: data_set.records(split))
  seen, unreadable = [], []
  for index in some:
    clip = ""
    try:
      record = records()[index]
      clip = f" ({record['clip_id'].decode(errors='replace')})"
      seen.append(look_at(record, split, index, data_set.classes))
    except Exception as error:  # array_record, tfds and OpenCV each have their own; every one is a finding
      # Without what array_record adds: where in the file, and the file itself, again and again.
      reason = (str(error).splitlines() or ["?"])[0].split("; ", 1)[0][:200]
      unreadable.append(f"{split} record {index}{clip}: {type(error).__name__}: {reason}")
  return seen, unreadable


def _start_worker() -> None:
  follow_parent()
  cv2.setNumThreads(1)  # the processes share the cores already


def examine(data_set: DataSet, num_workers: int) -> tuple[list[RecordStats], list[str]]:
  """Reads every record once; a line for each that cannot be read. Both in the order of splits and records.

  Args:
    data_set: as opened.
    num_workers: processes; 0 reads in this one, and so are few records.
  Raises:
    UserError: if a process was ended from outside.
  """
  splits, total = data_set.splits, sum(data_set.splits.values())
  tasks = [(split, range(i, min(i + CHUNK, splits[split]))) for split in splits for i in range(0, splits[split], CHUNK)]  # fmt: skip
  seen: list[RecordStats] = []
  unreadable: list[str] = []
  with contextlib.ExitStack() as stack:
    apply: Callable[..., Iterable[Any]] = map
    if num_workers and total > FEW_RECORDS:
      context = multiprocessing.get_context("spawn")
      apply = stack.enter_context(
        ProcessPoolExecutor(min(num_workers, len(tasks)), context, _start_worker)
      ).map
    bar = stack.enter_context(Progress("examine", total))
    try:
      for good, bad in apply(functools.partial(_look_at_some, data_set), tasks):
        seen += good
        unreadable += bad
        bar.update(len(good) + len(bad))
    except BrokenProcessPool as error:
      raise UserError(
        "the system ended a process that reads records, most often for lack of memory; run the command again with a "
        "smaller --num_workers"
      ) from error
  return seen, unreadable


# ---- what is wrong with them ----

Counts = Mapping[str, Mapping[str, int]]  # by split and class


@dataclasses.dataclass
class Diagnosis:
  """What was found."""

  counts: Counts = dataclasses.field(default_factory=dict)  # clips, as found
  published: Counts = dataclasses.field(default_factory=dict)  # clips, as published; empty: not known
  problems: list[str] = dataclasses.field(
    default_factory=list
  )  # make a training pointless or its score wrong
  warnings: list[str] = dataclasses.field(default_factory=list)  # need a human look
  notes: list[str] = dataclasses.field(default_factory=list)  # worth knowing, not wrong
  lists: dict[str, list[str]] = dataclasses.field(default_factory=dict)  # all names behind a message
  duplicates: list[dict[str, Any]] = dataclasses.field(
    default_factory=list
  )  # what is the same in which clips
  splits: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)  # numbers of each split

  @property
  def verdict(self) -> str:
    if count := len(self.problems):
      return f"NOT FIT for training: {count} problem{'s' * (count > 1)}"
    count = len(self.warnings)
    return f"fit for training{f', but look at {count} warning' + 's' * (count > 1) if count else ''}"


def _examples(names: Sequence[str]) -> str:
  more = [f"… {len(names) - EXAMPLES} more"] if len(names) > EXAMPLES else []
  return "; ".join([*names[:EXAMPLES], *more])


def _report(found: list[str], text: str, names: Sequence[str]) -> None:
  """Adds one line for all equal findings: how many, and some examples. Adds nothing if there are no names."""
  if names:
    found.append(f"{text} ({len(names)}): {_examples(names)}")


def diagnose(
  data_set: DataSet, name: str, seen: Sequence[RecordStats], unreadable: Sequence[str]
) -> Diagnosis:
  """Weighs what `examine` found; the name of the data set decides what it is compared with."""
  classes, found = data_set.classes, Counter((one.split, one.label) for one in seen)
  counts = {
    split: {label: found[split, label] for label in classes} for split in data_set.splits | data_set.clips
  }
  published = PUBLISHED.get(name, {})
  if any(set(row) != set(classes) for row in published.values()):
    published = {}  # somebody prepared some of the classes
  result = Diagnosis(counts, published)
  result.lists |= {"unreadable": list(unreadable)} if unreadable else {}
  _report(result.problems, "records that cannot be read", unreadable)
  _report(result.problems, "labels that stand for no class", [str(one) for one in seen if one.label is None])
  lost = Counter(line.split(" ", 1)[0] for line in unreadable)  # by split; of what class is not known
  written = {split: Counter(data_set.clips.get(split, {})) for split in counts}
  differing = [f"{split} has {clips} clips of {label} instead of {written[split][label]}"
               for split, row in counts.items() for label, clips in row.items()
               if not 0 <= written[split][label] - clips <= lost[split]]  # fmt: skip
  _report(result.problems, "other numbers of clips than prepare wrote", differing)
  _check_splits(result, classes, name)
  _compare_with_published(result, name)
  _find_duplicates(result, seen)
  for key, (text, holds) in ODDITIES.items():
    result.lists[key] = [str(one) for one in seen if holds(one)]
    _report(result.warnings, text.format(LIMITS.get(key)), result.lists[key])
  rates = Counter(one.sample_rate for one in seen if one.has_audio).most_common()
  if len(rates) > 1:
    _report(
      result.warnings,
      "sample rates, each with its own scale of the spectrogram",
      [f"{r} Hz in {n}" for r, n in rates],
    )
  if name in FIXED_LISTS and [rate for rate, _ in rates] == [RESAMPLED]:
    result.warnings.append(
      f"all sounds have {RESAMPLED} Hz: common recipes convert them, which costs about 2.6 UAR, because the original "
      "reads every file at its own rate (44100 or 48000 Hz, mostly); extract the wavs from the videos without a sample "
      "rate (no `-ar 16000`) and prepare again with --overwrite"
    )
  result.splits = {split: _numbers([one for one in seen if one.split == split]) for split in counts}
  _report(result.notes, "clips that prepare --allow_bad left out", data_set.left_out)
  return result


def _check_splits(result: Diagnosis, classes: Sequence[str], name: str) -> None:
  """Splits and classes without clips, and splits that no run can use."""
  counts = result.counts
  filled = [split for split, row in counts.items() if any(row.values())]
  there = [label for label in classes if any(counts[split][label] for split in filled)]
  _report(result.problems, "empty splits", [split for split in counts if split not in filled])
  advice = f"; --classes={','.join(there)} prepares the others" if name not in FIXED_LISTS and there else ""
  _report(
    result.problems, f"classes without a clip{advice}", [label for label in classes if label not in there]
  )
  lacking = [f"{label} in {split}" for label in there for split in filled if not counts[split][label]]
  _report(result.warnings, "classes without a clip in a split", lacking)
  folds = sorted(int(split[4:]) for split in counts if split.startswith("fold") and split[4:].isdecimal())
  if len(folds) < 2 and not {"train", "test"} <= set(counts):
    result.problems.append(
      f"no run can use the splits {', '.join(counts)}: it needs train and test, or several folds"
    )
  if folds and folds != list(range(1, len(folds) + 1)):
    result.warnings.append(f"the folds are {', '.join(map(str, folds))}: is one missing?")


def _compare_with_published(result: Diagnosis, name: str) -> None:
  counts, published = result.counts, result.published
  if name in FIXED_LISTS:
    _report(result.problems, f"missing folds of {name}", sorted(set(published) - set(counts)))
  if not set(published) & set(counts):
    if published:
      result.notes.append(f"the published splits are others: {', '.join(published)}")
    return
  differing = []
  for split in dict.fromkeys([*published, *counts]):
    there, should = Counter(counts.get(split, {})), Counter(published.get(split, {}))
    differing += [f"{split} {label} {there[label]} (published {should[label]})"
                  for label in should or there if there[label] != should[label]]  # fmt: skip
  _report(
    result.warnings if name in FIXED_LISTS else result.notes, "numbers of clips not as published", differing
  )


# What two clips have in common, and an empty value where that says nothing. A clip in two splits is in training and in a
# test; the same sound alone may belong to another cut of a scene.
SAME: dict[str, Callable[[RecordStats], str]] = {
  "name": lambda one: one.clip_id,
  "pictures": lambda one: one.pictures if not one.blank else one.sound and one.pictures + one.sound,
  "sound": lambda one: one.sound if one.peak >= SILENT else "",
}


def _find_duplicates(result: Diagnosis, seen: Sequence[RecordStats]) -> None:
  known: set[frozenset[RecordStats]] = set()  # who has the same pictures has the same sound, too
  for what, value_of in SAME.items():
    groups: dict[str, list[RecordStats]] = defaultdict(list)
    for one in seen:
      groups[value_of(one)].append(one)
    found: dict[bool, list[str]] = {True: [], False: []}  # by whether they are in several splits
    for value, group in groups.items():
      if not value or len(group) == 1 or frozenset(group) in known:
        continue
      known.add(frozenset(group))
      across, labels = len({one.split for one in group}) > 1, [str(one.label) for one in group]
      differ = f" (labelled {', '.join(labels)})" if len(set(labels)) > 1 else ""
      found[across].append(" = ".join(map(str, group)) + differ)
      result.duplicates.append({"same": what, "in_several_splits": across, "clips": list(map(str, group))})
    for across, where in ((True, "in several splits"), (False, "within a split")):
      bad = what == "name" or (what == "pictures" and across)
      text = f"groups of clips with the same {what} {where}"
      _report(result.problems if bad else result.warnings, text, found[across])


def _numbers(seen: Sequence[RecordStats]) -> dict[str, Any]:
  """Of one split: [smallest, median, largest], counts by sample rate and size, and clips by oddity."""

  def spread(values: Iterable[float | None]) -> list[float] | None:
    known = [value for value in values if value is not None]
    return [round(float(f(known)), 3) for f in (np.min, np.median, np.max)] if known else None

  heard = [one for one in seen if one.has_audio]
  return {
    "clips": len(seen),
    "frames": spread(one.frames for one in seen),
    "seconds_of_sound": spread(one.seconds for one in heard),
    "brightness": spread(one.brightness for one in seen),
    "motion": spread(one.motion for one in seen),
    "face_share": spread(one.face_share for one in seen),
    "sample_rates": dict(Counter(str(one.sample_rate) for one in heard).most_common()),
    "frame_sizes": dict(Counter(f"{one.size[0]}x{one.size[1]}" for one in seen).most_common()),
    **{key: sum(map(holds, seen)) for key, (_, holds) in ODDITIES.items()},
  }


# ---- the report ----


def counts_table(result: Diagnosis) -> str:
  """Clips by class and split, and after a stroke the published ones, where they are known."""
  counts, published = result.counts, result.published
  splits = list(dict.fromkeys([*counts, *published] if set(published) & set(counts) else counts))
  classes = list(dict.fromkeys(name for row in counts.values() for name in row))

  def cell(names: Sequence[str], of: Sequence[str]) -> str:
    there, should = (
      sum(by.get(split, {}).get(name, 0) for split in of for name in names) for by in (counts, published)
    )
    return f"{there}/{should}" if set(of) <= set(published) else str(there)

  title = "class (found/published)" if set(published) & set(splits) else "class"
  rows = {name: [name] for name in classes} | {"all": classes}
  cells = [
    [row, *(cell(names, [split]) for split in splits), cell(names, splits)] for row, names in rows.items()
  ]
  return _table([title, *splits, "all"], cells)


def _numbers_table(result: Diagnosis) -> str:
  """What was measured, by split; of spreads the smallest, the median and the largest."""

  def cell(value: Any) -> str:
    if isinstance(value, dict):
      return _examples([f"{key} ({clips})" for key, clips in value.items()]) or "–"
    if isinstance(value, list):
      return " … ".join(f"{number:g}" for number in value)
    return "–" if value is None else str(value)

  keys = next(iter(result.splits.values()), {})
  rows = [[key.replace("_", " "), *(cell(of[key]) for of in result.splits.values())] for key in keys]
  return _table(["", *result.splits], rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """In Markdown, aligned so that it can be read as it is."""
  first, *others = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
  rule = ["-" * first, *("-" * (width - 1) + ":" for width in others)]
  lines = [[row[0].ljust(first), *map(str.rjust, row[1:], others)] for row in (header, rule, *rows)]
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def as_markdown(result: Diagnosis, about: Mapping[str, Any], pages: Mapping[str, str]) -> str:
  """The report for people; `about`: facts about the data set; `pages`: files with samples, by title."""
  sections = {title: "\n".join(f"- {line}" for line in getattr(result, title.lower()))
              for title in ("Problems", "Warnings", "Notes")}  # fmt: skip
  sections |= {"Clips": counts_table(result), "Numbers": _numbers_table(result)}
  sections |= {title: f"![{title}]({file})" for title, file in pages.items()}
  sections["The data set"] = "\n".join(f"- {key}: {value}" for key, value in about.items())
  blocks = [f"# {about['data set']}: {result.verdict}"]
  blocks += [f"## {title}\n\n{text}" for title, text in sections.items() if text]
  return "\n\n".join([*blocks, "doctor.json names every clip behind these messages.\n"])


def spread_over_classes(seen: Sequence[RecordStats], number: int, turn: int = 0) -> list[RecordStats]:
  """At most `number` clips, from as many classes as possible; another turn begins with another class."""
  classes = sorted({str(one.label) for one in seen})
  first = turn % max(1, len(classes))
  rows = [[one for one in seen if str(one.label) == name] for name in classes[first:] + classes[:first]]
  return [one for column in zip_longest(*rows) for one in column if one][:number]


def draw_page(data_set: DataSet, clips: Sequence[tuple[RecordStats, str]], title: str, path: Path) -> None:
  """Frames of clips, each with some words, as the model gets them, and their spectrograms; a PNG."""
  import librosa.display  # with matplotlib it takes seconds, which nothing else should wait for
  from matplotlib.figure import Figure

  inputs, height = Inputs(), 0.8 + 1.7 * len(clips)  # inches
  figure = Figure(figsize=(15, height))
  figure.suptitle(title, y=1 - 0.15 / height)
  rows = figure.subplots(len(clips), 2, squeeze=False, width_ratios=[2.7, 1])
  # By hand: a constrained layout takes longer than all the rest.
  figure.subplots_adjust(0.01, 0.35 / height, 0.99, 1 - 0.7 / height, wspace=0.09, hspace=0.3)
  quietest, loudest = normalised(np.log([[ENERGY_FLOOR]]), 1).item(), 1.3  # of silence, and of a loud voice
  for (one, words), (left, right) in zip(clips, rows, strict=True):
    example = eval_example(data_set.records(one.split)[one.index], inputs)
    left.imshow(np.hstack(example["video"][:: inputs.num_frames // SHOWN_FRAMES]))
    left.set_title(f"{one.label}    {one.clip_id}    {words}", loc="left", fontsize=9, parse_math=False)
    left.set_anchor("W")
    left.set_axis_off()
    rate = one.sample_rate or RESAMPLED
    edges = librosa.mel_frequencies(inputs.audio_shape[1] + 2, fmin=LOWEST_FREQUENCY, fmax=rate / 2, htk=True)
    librosa.display.specshow(
      example["spectrogram"].T, sr=rate, hop_length=window_and_hop(rate)[1], y_coords=edges[1:-1], x_axis="time",
      y_axis="mel", ax=right, cmap="magma", vmin=quietest, vmax=loudest,
    )  # fmt: skip
    sound = f"{one.seconds:.2f} s at {one.sample_rate} Hz, peak {one.peak}" if one.has_audio else "no sound"
    right.set_title(sound, loc="left", fontsize=9)
    right.set_ylabel("Hz", fontsize=8)
    right.set_xlabel("seconds" if right is rows[-1, 1] else "", fontsize=8, labelpad=1)
    right.tick_params(labelsize=7, labelbottom=right is rows[-1, 1])
  figure.savefig(path, dpi=100)


def draw_pages(
  data_set: DataSet, seen: Sequence[RecordStats], result: Diagnosis, folder: Path
) -> dict[str, str]:
  """One page of samples for each split, and one of clips with warnings; returns files by title."""
  for old in folder.glob("samples_*.png"):
    old.unlink()  # of a split that no longer exists
  pages: dict[str, list[tuple[RecordStats, str]]] = {}
  for turn, split in enumerate(result.counts):
    chosen = spread_over_classes([one for one in seen if one.split == split], SAMPLES, turn)
    pages[f"Samples of {split}"] = [(one, f"{one.frames} frames") for one in chosen]
  odd: dict[RecordStats, str] = {}
  for key, (text, holds) in ODDITIES.items():
    found = [one for one in seen if holds(one) and one not in odd][:2]
    odd |= {one: f"{one.split}: {text.format(LIMITS.get(key))}" for one in found}
  pages["Clips with warnings"] = list(odd.items())[:SAMPLES]
  files = {
    title: f"samples_{title.split(' ')[2] if 'of' in title else 'flagged'}.png"
    for title in pages
    if pages[title]
  }
  for title, file in files.items():
    heading = f"{data_set.path.parent.name}: {title} (even red: padding after the sound)"
    draw_page(data_set, pages[title], heading, folder / file)
  return files


def check_data_set(data_dir: Path, name: str, out: Path | None = None, num_workers: int = 0) -> Diagnosis:
  """Examines a prepared data set, writes the report and prints its summary, the verdict last."""
  data_set = open_data_set(data_dir, name)
  folder = out or Path(data_dir, name, "doctor")
  folder.mkdir(parents=True, exist_ok=True)
  seen, unreadable = examine(data_set, num_workers)
  result = diagnose(data_set, name, seen, unreadable)
  about = {"data set": name, "path": str(data_set.path), "fingerprint": data_set.fingerprint,
           "class order": data_set.class_order}  # fmt: skip
  about |= {f"recipe, {key}": value for key, value in data_set.recipe.items()}
  markdown = as_markdown(result, about, draw_pages(data_set, seen, result, folder))
  (folder / "doctor.md").write_text(markdown, encoding="utf-8")
  digests = ("pictures", "sound")  # what they are for is in `duplicates`
  clips = [{k: v for k, v in dataclasses.asdict(one).items() if k not in digests} for one in seen]
  facts = {"fit": not result.problems, "verdict": result.verdict, **dataclasses.asdict(result)}
  write_json(folder / "doctor.json", facts | {"thresholds": LIMITS, "about": about, "clips": clips})
  print(counts_table(result))
  for title in ("problems", "warnings", "notes"):
    if lines := getattr(result, title):
      print(f"{title}:", *lines, sep="\n  - ")
  print(f"wrote {folder / 'doctor.md'}, doctor.json and pages of samples\n{result.verdict}")
  return result


if __name__ == "__main__":
  _DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of a prepared data set.", required=True)
  _NAME = flags.DEFINE_string("name", "clips", "Name of that data set.")
  _OUT = flags.DEFINE_string("out", None, "Folder for the report; if not given, DATA_DIR/NAME/doctor.")
  _NUM_WORKERS = flags.DEFINE_integer(
    "num_workers", os.cpu_count() or 1, "Processes that read records; 0: none but this one.", lower_bound=0
  )

  def main(argv: Sequence[str]) -> int:
    del argv
    out = Path(_OUT.value) if _OUT.value else None
    return 1 if check_data_set(Path(_DATA_DIR.value), _NAME.value, out, _NUM_WORKERS.value).problems else 0

  cli.run(main)
