"""Checks whether a prepared data set is fit for training: counts, compares, and shows sample clips.

  python -m mma_dfer_jax.data.doctor --data_dir=data --name=dfew

Reads every record once and writes doctor.json, doctor.md and samples_*.png to data/dfew/doctor. The exit status is 1 if
there are problems, which make a training pointless or its score wrong; warnings need a human look and leave it at 0.
Before a data set is prepared, `prepare --check` checks the files that it would be made of.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
import functools
import hashlib
from itertools import pairwise, product, zip_longest
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mma_dfer_jax.cores import usable_cores
from mma_dfer_jax.data import counts
from mma_dfer_jax.data.channels import SILENT
from mma_dfer_jax.data.counts import report
from mma_dfer_jax.data.data_set import UNEQUAL, UNEVEN, DataSet, open_data_set
from mma_dfer_jax.data.fbank import ENERGY_FLOOR, LOWEST_FREQUENCY, normalised, spectrogram, window_and_hop
from mma_dfer_jax.data.frames import decode_frame, sample_frames
from mma_dfer_jax.data.landmarks import STORED
from mma_dfer_jax.data.pipeline import Record, make_example
from mma_dfer_jax.data.source import first_few, rate_warning
from mma_dfer_jax.disk import write_json
from mma_dfer_jax.errors import printable
from mma_dfer_jax.inputs import Inputs
from mma_dfer_jax.progress import watched

SAMPLES, SHOWN_FRAMES = 8, 8  # of a page of clips, and of each of them
WHITE = 253  # of 255, in all colours: what JPEG leaves of white
TOO_LONG = 5  # times as long as the median clip
CELLS = 16  # a side of the picture, whose colours are compared from frame to frame
# What is odd about a clip: what is measured is below a limit, and how a report says that.
_ODD: dict[str, tuple[float, str]] = {
  # Fewer repeat the last one in every batch, and are no movement of 16 steps.
  "few_frames": (16, "fewer than {} frames"),
  "no_pictures": (1, "no pictures, for pretraining on sound only"),
  # Grey levels of 255, over the frames that an evaluation takes. A night scene has a mean of 10 or more, a black picture
  # of 0 to 2 after any coding; a picture with anything in it deviates by 15 or more from its mean.
  "black": (8.0, "black, no frame brighter than {:g} of 255"),
  "one_colour": (2.0, "pictures of one colour only"),
  # Share that is less than white, as deeper pictures are when they are cut off at 8 bits; white walls are below it.
  "white": (0.5, "more than half of the picture clipped to white"),
  # Largest change of a cell, which noise and coding hardly change: measured are 1 to 5 for still pictures coded as H.264,
  # 52 and more for the faces of RAVDESS, cut out or not.
  "frozen": (6.0, "frozen, no part of the picture changes by {:g} of 255"),
  # Share of frames equal to the one before, bit for bit; 12 pictures a second shown as 25 have less.
  "repeating": (0.5, "more than {:.0%} of the frames repeat the one before"),
  "no_sound": (1, "no sound, a constant spectrogram"),
  "short_sound": (0.5, "sound shorter than {:g} s"),  # hardly a word: less than one tenth of the spectrogram
  "silent": (SILENT, "silent, no sample reaches {} of 32768"),
  "few_faces": (0.8, "a face in less than {:.0%} of the frames"),
}
LIMITS = {key: limit for key, (limit, _) in _ODD.items() if key not in ("no_sound", "no_pictures")}
ODDITIES = {key: text.format(limit) for key, (limit, text) in _ODD.items()}
_MARKS = ((b"\xff\xd8", b"\xff\xd9"), (b"\x89PNG", b"IEND\xae\x42\x60\x82"))  # of whole JPEG and PNG files


@dataclass(frozen=True)
class RecordStats:
  """What is remembered of one record; no pixel of it."""

  split: str
  index: int
  clip_id: str
  label: str | None  # class name; None: its number is that of no class
  frames: int
  size: tuple[int, int] | None  # (height, width) of the first frame, pixels; None: there are no frames
  brightness: float | None  # mean grey level of the brightest frame that an evaluation takes
  contrast: float | None  # largest standard deviation within one of these frames
  white: float | None  # share of these frames that is as white as can be
  motion: int | None  # largest change of a cell's colour from one of them to the next; None: only one
  repeats: float  # share of all frames but the first that equal the one before, bit for bit
  seconds: float  # of sound
  sample_rate: int
  peak: int  # largest sample of the sound, of 32768
  has_audio: bool
  face_share: float | None  # of the frames; None: `prepare` looked for no faces
  pictures: str  # digest of all frames; empty: there are none
  sound: str  # digest of the waveform; empty: there is none
  # Of the frames, those with box and points of a face; None: they are not kept.
  target_share: float | None = None

  def __str__(self) -> str:
    return printable(f"{self.split} {self.clip_id}")

  @property
  def odd(self) -> set[str]:
    """What is odd about it, by the names of ODDITIES; of its pictures only the first thing."""
    measured = {"few_frames": self.frames, "black": self.brightness, "one_colour": self.contrast,
                "white": None if self.white is None else 1 - self.white,
                "frozen": self.motion, "repeating": 1 - self.repeats, "few_faces": self.face_share}  # fmt: skip
    measured |= {} if self.size else {"few_frames": None, "no_pictures": 0}
    measured |= {"short_sound": self.seconds, "silent": self.peak} if self.has_audio else {"no_sound": 0}
    odd = [key for key, value in measured.items() if value is not None and value < _ODD[key][0]]
    of_pictures = [key for key in odd if key in ("black", "one_colour", "white", "frozen", "repeating")]
    return set(odd) - set(of_pictures[1:])

  @property
  def blank(self) -> bool:
    """Whether nothing can be seen, so that two of them may look alike and be different clips."""
    return bool(self.odd & {"black", "one_colour"})


def look_at(record: Record, split: str, index: int, classes: Sequence[str]) -> RecordStats:
  """Decodes what an evaluation takes of a record, and measures it.

  Raises:
    ValueError: if there are no frames though there are labels, one of them is no picture, or the sound gives no spectrogram.
  """
  frames, waveform, rate = record["frames"], np.asarray(record["waveform"]), int(record["sample_rate"])
  label, has_audio = int(record["label"]), bool(record["has_audio"])
  if has_audio:
    spectrogram(waveform.astype(np.float32) / 32768.0, rate, *Inputs().audio_shape)  # raises what is wrong
  share = float(record.get("face_share", math.nan))
  name = classes[label] if 0 <= label < len(classes) else None if classes else ""
  repeats = sum(map(bytes.__eq__, frames, frames[1:])) / max(1, len(frames) - 1)
  facts: dict[str, Any] = {"label": name, "frames": len(frames), "repeats": repeats, "has_audio": has_audio}
  facts |= dict.fromkeys(("size", "brightness", "contrast", "white", "motion"))
  facts |= {
    "seconds": 0.0,
    "sample_rate": 0,
    "peak": 0,
    "sound": "",
    "pictures": _digest(frames) if frames else "",
  }
  if frames or classes:
    facts |= _measured(frames)
  if has_audio:
    peak = int(np.abs(waveform.astype(np.int32)).max())
    facts |= {"seconds": round(len(waveform) / rate, 3), "sample_rate": rate, "peak": peak}
    facts["sound"] = _digest([waveform.tobytes()])
  if frames and "faces" in record:
    facts["target_share"] = float(np.frombuffer(record["faces"], STORED)["face"].mean())
  facts["face_share"] = None if math.isnan(share) else round(share, 4)
  return RecordStats(split, index, record["clip_id"].decode(errors="replace"), **facts)


def _measured(frames: Sequence[bytes]) -> dict[str, Any]:
  """size, brightness, contrast and motion; holds one frame at a time."""
  chosen = set(sample_frames(len(frames), train=False).tolist())
  sizes, levels, cells, white = [], [], [], []
  for i, data in enumerate(frames):
    # Training may draw any frame: those without the end of a JPEG or PNG may be cut off, and are decoded too.
    if i not in chosen and any(data.startswith(first) and data.endswith(last) for first, last in _MARKS):
      continue
    try:
      pixels = decode_frame(data)
    except ValueError as error:
      raise ValueError(f"frame {i}: {error}") from error
    if i in chosen:
      sizes.append(pixels.shape[:2])
      levels.append(cv2.meanStdDev(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)))
      white.append(float((pixels.min(axis=2) >= WHITE).mean()))
      cells.append(cv2.resize(pixels, (CELLS, CELLS), interpolation=cv2.INTER_AREA))
  means, deviations = np.array(levels).reshape(-1, 2).T
  motion = max((int(cv2.absdiff(before, after).max()) for before, after in pairwise(cells)), default=None)
  return {"size": sizes[0], "brightness": round(float(means.max()), 2),
          "contrast": round(float(deviations.max()), 2), "white": round(float(np.mean(white)), 4), "motion": motion}  # fmt: skip


def _digest(parts: Iterable[bytes]) -> str:
  return hashlib.sha256(b"".join(len(part).to_bytes(8, "little") + part for part in parts)).hexdigest()[:32]


def examine(data_set: DataSet, num_threads: int) -> tuple[list[RecordStats], list[str]]:
  """Reads every record once; a line for each that cannot be read. Both in the order of splits and records."""
  open_split = functools.cache(data_set.records)

  def look(split: str, index: int) -> RecordStats | str:
    clip = ""
    try:
      record = open_split(split)[index]
      clip = f" ({record['clip_id'].decode(errors='replace')})"
      return look_at(record, split, index, data_set.classes)
    except Exception as error:  # array_record, tfds and OpenCV each have their own; every one is a finding
      # Without what array_record adds: where in the file, and the file itself, again and again.
      reason = (str(error).splitlines() or ["?"])[0].split("; ", 1)[0][:200]
      return f"{split} record {index}{clip}: {type(error).__name__}: {reason}"

  tasks = [(split, index) for split, size in data_set.splits.items() for index in range(size)]
  cv2.setNumThreads(1)  # our threads share the cores already
  with ThreadPoolExecutor(max(1, num_threads)) as pool:
    found = list(watched(pool.map(look, *zip(*tasks, strict=True)), "examine", len(tasks)))
  return [one for one in found if not isinstance(one, str)], [one for one in found if isinstance(one, str)]


@dataclass
class Diagnosis(counts.Findings):
  """What was found."""

  lists: dict[str, list[str]] = field(default_factory=dict)  # all names behind a message
  duplicates: list[dict[str, Any]] = field(default_factory=list)  # what is the same in which clips
  splits: dict[str, dict[str, Any]] = field(default_factory=dict)  # numbers of each split


def diagnose(data_set: DataSet, name: str, seen: Sequence[RecordStats], bad: Sequence[str]) -> Diagnosis:
  """Weighs what `examine` found; the name of the data set decides what it is compared with."""
  found, classes = Counter((one.split, one.label) for one in seen), data_set.classes or ("",)
  splits = data_set.splits | data_set.clips
  by_class = {split: {label: found[split, label] for label in classes} for split in splits}
  result = Diagnosis(by_class, counts.published_counts(name, classes))
  result.purpose = "training" if data_set.classes else "pretraining only"
  problems, warnings = result.problems, result.warnings
  result.lists |= {"unreadable": list(bad)} if bad else {}
  report(problems, "records that cannot be read", bad)
  report(problems, "labels that stand for no class", [str(one) for one in seen if one.label is None])
  lost = Counter(line.split(" ", 1)[0] for line in bad)  # by split; of what class is not known
  written = {key: data_set.clips.get(key[0], {}).get(key[1], 0) for key in product(splits, classes)}
  others = [(*key, clips) for key, clips in written.items() if not 0 <= clips - found[key] <= lost[key[0]]]
  differing = [
    f"{split} has {found[split, of]} clips of {of} instead of {clips}" for split, of, clips in others
  ]
  report(problems, "other numbers of clips than prepare wrote", differing)
  counts.check_counts(result, data_set.classes, name)
  _find_duplicates(result, seen)
  for key, text in ODDITIES.items():
    result.lists[key] = [str(one) for one in seen if key in one.odd]
    report(warnings, text, result.lists[key])
  long = result.lists["too_long"] = _too_long(seen)
  report(warnings, f"more than {TOO_LONG} times as long as the median clip, perhaps several in one", long)
  rates = Counter(one.sample_rate for one in seen if one.has_audio)
  if len(rates) > 1:
    mixed = [f"{rate} Hz in {clips}" for rate, clips in rates.most_common()]
    report(warnings, "sample rates, each with its own scale of the spectrogram", mixed)
  warnings += filter(None, [rate_warning(name, rates)])
  for what, names in data_set.notes():
    if names:
      report(warnings if what.startswith((UNEVEN, UNEQUAL)) else result.notes, what, names)
  result.splits = {split: _numbers([one for one in seen if one.split == split]) for split in splits}
  if known := [(one.target_share, one.frames) for one in seen if one.target_share is not None]:
    share = sum(share * frames for share, frames in known) / sum(frames for _, frames in known)
    result.notes.append(f"{share:.1%} of the frames have box and points of a face (--landmarks=yunet)")
  report(result.notes, "clips that prepare --allow_bad left out", data_set.left_out)
  return result


def _too_long(seen: Sequence[RecordStats]) -> list[str]:
  """Clips whose frames or sounds are many times as many or as long as those of the median clip, the longest first."""
  longer: dict[str, float] = {}
  for measured in ("frames", "seconds"):
    lengths = [(str(one), float(getattr(one, measured))) for one in seen]
    usual = np.median([length for _, length in lengths if length] or [math.inf])
    for name, length in lengths:
      if (times := length / usual) > TOO_LONG:
        longer[name] = max(times, longer.get(name, 0))
  return sorted(longer, key=lambda name: -longer[name])


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
      report(result.problems if bad else result.warnings, text, found[across])


def _numbers(seen: Sequence[RecordStats]) -> dict[str, Any]:
  """Of one split: [smallest, median, largest], counts by sample rate and size, and clips by oddity."""
  heard = [one for one in seen if one.has_audio]
  names = ("frames", "brightness", "motion", "face_share", "target_share")
  measured = {name: [getattr(one, name) for one in seen] for name in names}
  measured["seconds_of_sound"] = [one.seconds for one in heard]
  spreads: dict[str, list[float] | None] = {}
  for name, values in measured.items():
    known = [value for value in values if value is not None]
    spreads[name] = [round(float(f(known)), 3) for f in (np.min, np.median, np.max)] if known else None
  sizes = Counter(f"{one.size[0]}x{one.size[1]}" for one in seen if one.size)
  rates = Counter(str(one.sample_rate) for one in heard)
  many = {"sample_rates": dict(rates.most_common()), "frame_sizes": dict(sizes.most_common())}
  odd = {key: sum(key in one.odd for one in seen) for key in ODDITIES}
  return {"clips": len(seen), **spreads, **many, **odd}


def _cell(value: Any) -> str:
  """A value of `_numbers` in the report."""
  if isinstance(value, dict):
    return first_few([f"{key} ({clips})" for key, clips in value.items()]) or "–"
  if isinstance(value, list):
    return " … ".join(f"{number:g}" for number in value)
  return "–" if value is None else str(value)


def as_markdown(result: Diagnosis, about: Mapping[str, Any], pages: Mapping[str, str]) -> str:
  """The report for people; `about`: facts about the data set; `pages`: files with samples, by title."""
  sections = {title: "\n".join(f"- {line}" for line in getattr(result, title.lower()))
              for title in ("Problems", "Warnings", "Notes")}  # fmt: skip
  keys, of_splits = next(iter(result.splits.values()), {}), result.splits.values()
  rows = [[key.replace("_", " "), *(_cell(of[key]) for of in of_splits)] for key in keys]
  sections |= {"Clips": counts.counts_table(result), "Numbers": counts.table([["", *result.splits], *rows])}
  sections |= {title: f"![{title}]({file})" for title, file in pages.items()}
  sections["The data set"] = "\n".join(f"- {key}: {value}" for key, value in about.items())
  blocks = [f"# {about['data set']}: {result.verdict}"]
  blocks += [f"## {title}\n\n{text}" for title, text in sections.items() if text]
  return "\n\n".join([*blocks, "doctor.json names every clip behind these messages.\n"])


def spread_over_classes(seen: Sequence[RecordStats], number: int, turn: int = 0) -> list[RecordStats]:
  """At most `number` clips, from as many classes as possible; another turn begins with another class."""
  classes = sorted({str(one.label) for one in seen})
  turns = [[one for one in seen if str(one.label) == name] for name in classes[turn:] + classes[:turn]]
  return [one for column in zip_longest(*turns) for one in column if one][:number]


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
    example = make_example(data_set.records(one.split)[one.index], inputs)
    left.imshow(np.hstack(example["video"][:: inputs.num_frames // SHOWN_FRAMES]))
    left.set_title(f"{one.label}    {one.clip_id}    {words}", loc="left", fontsize=9, parse_math=False)
    left.set_anchor("W")
    left.set_axis_off()
    rate = one.sample_rate or 16_000
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


def draw_pages(data_set: DataSet, seen: Sequence[RecordStats], folder: Path) -> dict[str, str]:
  """A page of samples for each split, which begins with another class, and one of clips with warnings; files by title."""
  for old in folder.glob("samples_*.png"):
    old.unlink()  # of a split that no longer exists
  pages: dict[str, tuple[str, list[tuple[RecordStats, str]]]] = {}
  for turn, split in enumerate(data_set.splits | data_set.clips):
    chosen = spread_over_classes([one for one in seen if one.split == split and one.size], SAMPLES, turn)
    pages[split] = (f"Samples of {split}", [(one, f"{one.frames} frames") for one in chosen])
  odd: dict[RecordStats, str] = {}
  for key, text in ODDITIES.items():
    found = [one for one in seen if key in one.odd and one not in odd and one.size]
    odd |= {one: f"{one.split}: {text}" for one in found[:2]}
  pages["flagged"] = ("Clips with warnings", list(odd.items())[:SAMPLES])
  files = {}
  for page, (title, clips) in pages.items():
    if clips:
      files[title] = f"samples_{page}.png"
      heading = f"{data_set.path.parent.name}: {title} (even red: padding after the sound)"
      draw_page(data_set, clips, heading, folder / files[title])
  return files


def check_data_set(data_dir: Path, name: str, folder: Path, num_threads: int) -> Diagnosis:
  """Examines a prepared data set, writes the report to a folder and prints its summary, the verdict last."""
  data_set = open_data_set(data_dir, name, labelled=False)
  folder.mkdir(parents=True, exist_ok=True)
  seen, unreadable = examine(data_set, num_threads)
  result = diagnose(data_set, name, seen, unreadable)
  about = {"data set": name, "path": str(data_set.path), "fingerprint": data_set.fingerprint,
           "class order": data_set.class_order}  # fmt: skip
  about |= {f"recipe, {key}": value for key, value in data_set.recipe.items()}
  markdown = as_markdown(result, about, draw_pages(data_set, seen, folder))
  (folder / "doctor.md").write_text(markdown, encoding="utf-8")
  digests = ("pictures", "sound")  # what they are for is in `duplicates`
  clips = [{k: v for k, v in asdict(one).items() if k not in digests} for one in seen]
  facts = {"fit": not result.problems, "verdict": result.verdict, **asdict(result)}
  write_json(folder / "doctor.json", facts | {"thresholds": LIMITS, "about": about, "clips": clips})
  result.print_lines()
  print(f"wrote {folder / 'doctor.md'}, doctor.json and pages of samples\n{result.verdict}")
  return result


if __name__ == "__main__":  # tests import it, too, and need none of this
  from absl import flags

  from mma_dfer_jax import cli
  from mma_dfer_jax.paths import define_path

  _DATA_DIR = define_path("data_dir", None, "Folder of a prepared data set.", required=True)
  _NAME = flags.DEFINE_string("name", "clips", "Name of that data set.")
  _OUT = define_path("out", None, "Folder for the report; if not given, DATA_DIR/NAME/doctor.")
  _NUM_WORKERS = flags.DEFINE_integer("num_workers", usable_cores(), "Threads that read records; 0 means one.", lower_bound=0)  # fmt: skip

  def main(argv: Sequence[str]) -> int:
    del argv
    data_dir, name = Path(_DATA_DIR.value), _NAME.value
    folder = Path(_OUT.value or data_dir / name / "doctor")
    return 1 if check_data_set(data_dir, name, folder, _NUM_WORKERS.value).problems else 0

  cli.run(main)
