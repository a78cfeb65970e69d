"""Checks whether a prepared data set is fit for training: counts, compares, and shows sample clips.

  python -m mma_dfer_jax.data.doctor --data_dir=data --name=dfew

Reads every record once and writes doctor.json, doctor.md and samples_*.png to data/dfew/doctor. The exit status is 1 if
there are problems, which make a training pointless or its score wrong; warnings need a human look and leave it at 0.
Before a data set is prepared, `prepare --check` checks the files that it would be made of.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product, zip_longest
import os
from pathlib import Path
from typing import Any

import numpy as np

from mma_dfer_jax.data import counts
from mma_dfer_jax.data.counts import report
from mma_dfer_jax.data.data_set import DataSet, open_data_set
from mma_dfer_jax.data.fbank import ENERGY_FLOOR, LOWEST_FREQUENCY, normalised, window_and_hop
from mma_dfer_jax.data.media import SILENT
from mma_dfer_jax.data.pipeline import make_example
from mma_dfer_jax.data.record_stats import LIMITS, ODDITIES, RecordStats, examine
from mma_dfer_jax.data.source import first_few, rate_warning
from mma_dfer_jax.disk import write_json
from mma_dfer_jax.inputs import Inputs

SAMPLES, SHOWN_FRAMES = 8, 8  # of a page of clips, and of each of them


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
  problems, warnings = result.problems, result.warnings
  result.lists |= {"unreadable": list(bad)} if bad else {}
  report(problems, "records that cannot be read", bad)
  report(problems, "labels that stand for no class", [str(one) for one in seen if one.label is None])
  lost = Counter(line.split(" ", 1)[0] for line in bad)  # by split; of what class is not known
  written = {key: data_set.clips.get(key[0], {}).get(key[1], 0) for key in product(splits, classes)}
  differing = [
    f"{split} has {found[split, label]} clips of {label} instead of {clips}"
    for (split, label), clips in written.items()
    if not 0 <= clips - found[split, label] <= lost[split]
  ]
  report(problems, "other numbers of clips than prepare wrote", differing)
  counts.check_counts(result, data_set.classes, name)
  _find_duplicates(result, seen)
  for key, text in ODDITIES.items():
    result.lists[key] = [str(one) for one in seen if key in one.odd]
    report(warnings, text, result.lists[key])
  rates = Counter(one.sample_rate for one in seen if one.has_audio)
  if len(rates) > 1:
    mixed = [f"{rate} Hz in {clips}" for rate, clips in rates.most_common()]
    report(warnings, "sample rates, each with its own scale of the spectrogram", mixed)
  warnings += filter(None, [rate_warning(name, rates)])
  result.splits = {split: _numbers([one for one in seen if one.split == split]) for split in splits}
  report(result.notes, "clips that prepare --allow_bad left out", data_set.left_out)
  return result


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
  names = ("frames", "brightness", "motion", "face_share")
  measured = {name: [getattr(one, name) for one in seen] for name in names}
  measured["seconds_of_sound"] = [one.seconds for one in heard]
  spreads: dict[str, list[float] | None] = {}
  for name, values in measured.items():
    known = [value for value in values if value is not None]
    spreads[name] = [round(float(f(known)), 3) for f in (np.min, np.median, np.max)] if known else None
  return {
    "clips": len(seen),
    **spreads,
    "sample_rates": dict(Counter(str(one.sample_rate) for one in heard).most_common()),
    "frame_sizes": dict(Counter(f"{one.size[0]}x{one.size[1]}" for one in seen).most_common()),
    **{key: sum(key in one.odd for one in seen) for key in ODDITIES},
  }


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
  keys = next(iter(result.splits.values()), {})
  rows = [[key.replace("_", " "), *(_cell(of[key]) for of in result.splits.values())] for key in keys]
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
    chosen = spread_over_classes([one for one in seen if one.split == split], SAMPLES, turn)
    pages[split] = (f"Samples of {split}", [(one, f"{one.frames} frames") for one in chosen])
  odd: dict[RecordStats, str] = {}
  for key, text in ODDITIES.items():
    found = [one for one in seen if key in one.odd and one not in odd]
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


if __name__ == "__main__":  # the processes that this command starts import it, too, and need none of this
  from absl import flags

  from mma_dfer_jax import cli

  _DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of a prepared data set.", required=True)
  _NAME = flags.DEFINE_string("name", "clips", "Name of that data set.")
  _OUT = flags.DEFINE_string("out", None, "Folder for the report; if not given, DATA_DIR/NAME/doctor.")
  _NUM_WORKERS = flags.DEFINE_integer("num_workers", os.cpu_count() or 1, "Threads that read records; 0 as 1.", lower_bound=0)  # fmt: skip

  def main(argv: Sequence[str]) -> int:
    del argv
    data_dir, name = Path(_DATA_DIR.value), _NAME.value
    folder = Path(_OUT.value or data_dir / name / "doctor")
    return 1 if check_data_set(data_dir, name, folder, _NUM_WORKERS.value).problems else 0

  cli.run(main)
