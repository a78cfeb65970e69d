"""Labelled clips, as they are handed out or in a manifest -> a data set that training reads.

  python -m mma_dfer_jax.data.prepare --dataset=dfew --raw=DFEW-part2 --data_dir=data
  python -m mma_dfer_jax.data.prepare --dataset=mafw --raw=MAFW --faces=yunet --data_dir=data
  python -m mma_dfer_jax.data.prepare --dataset=clips --manifest=clips.csv --data_dir=data
  python -m mma_dfer_jax.data.prepare --dataset=folders --raw=videos --test_share=0.2 --data_dir=data
  python -m mma_dfer_jax.data.prepare --dataset=clips --manifest=films --data_dir=data

A manifest is a csv with the columns `path,label,split` (train or test) or `path,label,fold` (1, 2, …); paths are relative
to its folder. The last line takes all videos and sounds of a folder, without labels, for pretraining. --check looks at names and lists, decodes and
writes nothing, and ends with exit status 1 if there are problems.

All cores decode every file completely. If any are bad, the command lists every problem and writes nothing. Interrupted?
Run the same command again; it picks up where it stopped.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
import contextlib
import hashlib
import itertools
import json
import os
from pathlib import Path
import shutil
from typing import Any

from absl import flags
import numpy as np

from mma_dfer_jax import cli
from mma_dfer_jax.cores import usable_cores
from mma_dfer_jax.data import source
from mma_dfer_jax.data.channels import CHANNELS
from mma_dfer_jax.data.counts import Findings, check_counts, published_counts
from mma_dfer_jax.data.data_set import AS_MEANT, NOTES, UNEQUAL, UNEVEN, open_data_set
from mma_dfer_jax.data.decoding import Decoding, decode_all, key_of
from mma_dfer_jax.data.faces import POLICIES
from mma_dfer_jax.data.frames import uneven_rate
from mma_dfer_jax.data.records import RECIPE, Clips, length_of_sound
from mma_dfer_jax.data.source import ClipFiles, Layout, Note, Problem, count, in_lines, natural
from mma_dfer_jax.data.yunet import face_model
from mma_dfer_jax.disk import alone_in
from mma_dfer_jax.errors import UserError, listed, printable
from mma_dfer_jax.paths import define_path, hint

_DATASET = flags.DEFINE_enum("dataset", "clips", source.names(), "Data set; clips, folders: any videos.")
define_path("manifest", None, "clips: a csv; without labels: a folder or glob of videos and sounds.")
define_path("raw", None, "The folder of the data set as it was unpacked; folders: that of the classes.")
_DATA_DIR = define_path("data_dir", None, "Folder to write the data set to.")
_CHECK = flags.DEFINE_bool("check", False, "Only look at names and lists: decode nothing, write nothing.")
_FACE_POLICY = flags.DEFINE_enum("face_policy", "follow", list(POLICIES),
                                 "follow: the largest face over time; union: all faces, as the original.")  # fmt: skip
_FACE_MODEL = define_path("face_model", None, "YuNet's .onnx file; it is fetched once if not given.")
_FACE_SIZE = flags.DEFINE_integer("face_size", 224, "Side of the cut faces in pixels.", lower_bound=16)
_ALLOW_BAD = flags.DEFINE_integer("allow_bad", 0, "Leave out at most so many bad clips and list them, instead of failing. "
                                  "A missing or broken list always stops it.", lower_bound=0)  # fmt: skip
_CHANNEL = flags.DEFINE_enum("channel", "first", CHANNELS, "Which channel of the sound to take.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace the data set that is there.")
_NUM_WORKERS = flags.DEFINE_integer(
  "num_workers",
  usable_cores(),
  "Processes that decode; 0: none but this one, which a fault in a library ends.",
  0,
)
_MAX_FRAMES = flags.DEFINE_integer(
  "max_frames", 0, "Of longer clips, take so many frames, evenly spread; 0: all.", 0
)
_KEEP_TIMES = flags.DEFINE_bool(
  "keep_times", False, "Keep the times of frames, for config.inputs.frame_choice=time."
)
_LANDMARKS = flags.DEFINE_enum(
  "landmarks", "none", ["none", "yunet"], "Keep box and five points of the face in every frame."
)
flags.register_multi_flags_validator(["data_dir", "check"], lambda given: given["check"] or given["data_dir"],
                                     "give --data_dir=FOLDER to write to, or --check.")  # fmt: skip


def _define_options() -> list[str]:
  """Defines every field of every data set's Options as a flag, once; returns their names."""
  kinds: dict[type, Any] = {bool: flags.DEFINE_bool, int: flags.DEFINE_integer, float: flags.DEFINE_float,
                            tuple: flags.DEFINE_list}  # fmt: skip
  of = {name: source.fields_of(name) for name in source.names()}
  options: dict[str, Any] = {flag: field for fields in of.values() for flag, field in fields.items()}
  for flag, one in options.items():
    choices = {name: fields[flag].metadata["choices"] for name, fields in of.items() if flag in fields}
    words = f"{', '.join(choices)}: " * (len(choices) < len(of)) + one.metadata["help"]
    if len(set(choices.values())) > 1:
      words += "".join(f" {name}: {', '.join(values)}." for name, values in choices.items())
    if one.metadata["path"]:
      define_path(flag, one.default, words)
    elif values := list(dict.fromkeys(itertools.chain(*choices.values()))):
      flags.DEFINE_enum(flag, one.default, values, words)
    else:
      kinds.get(type(one.default), flags.DEFINE_string)(flag, one.default, words)
  return list(options)


_OPTIONS = _define_options()
BY_NUMBER = (f"{UNEVEN} (one quarter of the frames takes more than twice as long as another), and by default a run chooses "
             "frames by number; config.inputs.frame_choice=time, for data prepared with --keep_times, chooses them by "
             "time")  # fmt: skip
LEAST_DIFFERENCE = 0.5  # seconds between picture and sound that are worth a note
SCRATCH = ".unfinished"  # beside the data set: decoded clips, and the data set while it is written


@contextlib.contextmanager
def _alone_in(home: Path) -> Iterator[Path]:
  """The folder for unfinished work, which no other process enters until this one ends."""
  scratch = home / SCRATCH
  try:
    with alone_in(scratch, "prepare", "--data_dir"):
      yield scratch
  except (OSError, RuntimeError) as error:  # array_record, which is not Python, raises the latter
    where, why = getattr(error, "filename", None) or home, getattr(error, "strerror", None) or error
    advice = "fix it and run the command again; finished clips are kept"
    raise UserError(f"{where} cannot be written: {why}; {advice}") from error


def prepare(
  layout: Layout, name: str, data_dir: Path, decoding: Decoding, origin: str, *, allow_bad: int = 0,
  overwrite: bool = False, num_workers: int = 0,
) -> None:  # fmt: skip
  """What was found -> decoded clips -> a data set in data_dir; messages name `origin`, the manifest or folder.

  It refuses with every problem if more clips are bad than allowed or something is wrong with the whole; and if data_dir
  holds another data set, cannot be written, or another process writes it.
  """
  named, notes = layout.doubtful | {clip.label for clip in layout.clips}, list(layout.notes)
  if unused := tuple(label for label in layout.classes if label not in named):
    hint = ": --classes=… names those to take" * ("classes" in source.fields_of(name))
    notes.append(Note(f"classes without a clip{hint}", unused))
  _print_notes(notes)
  if any(not problem.clips for problem in layout.problems):
    raise listed(f"{origin} cannot be prepared, no data set was written", in_lines(layout.problems),
                 "--allow_bad leaves out clips; problems of whole lists and folders must be fixed")  # fmt: skip
  recipe = RECIPE | layout.recipe | decoding.recipe
  if not layout.classes:
    recipe["missing_sound"] = "taken, and sounds without pictures too, for pretraining"
  described = [(c.clip_id, c.label, c.split, key_of(c, decoding), *c.votes) for c in layout.clips]
  facts = [described, layout.problems, layout.classes, recipe, allow_bad]
  fingerprint = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
  with _alone_in(data_dir / name) as scratch:
    target = data_dir / name / str(Clips.VERSION)
    if (scratch / "replaced").exists() and not target.exists():
      (scratch / "replaced").rename(target)  # killed between the two renames of `_write`
    if target.exists() and not overwrite:
      there = open_data_set(data_dir, name, labelled=False)
      if there.fingerprint != fingerprint:
        raise UserError(f"{target} was made from other clips or settings; choose another --data_dir or --overwrite")  # fmt: skip
      shutil.rmtree(scratch, ignore_errors=True)
      print(f"{target} is complete already: {_described(there.splits)}")
      return
    clips, bad_files = decode_all(layout.clips, scratch / "decoded", decoding, num_workers)
    lines = _check_left_out(layout, clips, [*layout.problems, *bad_files], origin, allow_bad)
    shutil.rmtree(scratch / name, ignore_errors=True)  # what a killed run was writing
    recipe |= _looked_at(clips, notes)
    builder = Clips.named(name)(clips=clips, classes=layout.classes, class_order=layout.class_order, recipe=recipe,
                                left_out=lines, fingerprint=fingerprint, data_dir=scratch)  # fmt: skip
    _write(builder, name, notes, scratch, target)
  made = open_data_set(data_dir, name, labelled=False)
  print(f"wrote {target}: {_described(made.splits)}")
  if any(note.names for note in notes):
    print(f"all notes with all names: {target / NOTES}")
  if sum(made.without_sound.values()):
    print(f"without sound: {_described(made.without_sound)}")
  print(f"classes, in label order: {', '.join(made.classes)}; {made.class_order}")
  print("recipe:", *(f"{key}: {value}" for key, value in made.recipe.items()), sep="\n  ")


def _looked_at(clips: Iterable[ClipFiles], notes: list[Note]) -> dict[str, str]:
  """Notes and prints what decoding showed of clips; returns what of that belongs to the recipe."""
  changed, odd = defaultdict[str, list[str]](list), defaultdict[str, list[str]](list)
  for clip in clips:
    with np.load(clip.decoded) as decoded:
      for change in decoded["changes"].tolist():
        changed[change].append(clip.clip_id)
      for text in decoded["notes"].tolist():
        odd[text].append(clip.clip_id)
      if uneven_rate(decoded["times"]):
        odd[BY_NUMBER].append(clip.clip_id)
      if turned := str(decoded["turned"]):
        odd[turned].append(clip.clip_id)
      samples, rate = length_of_sound(clip.decoded)
      if rate and len(times := decoded["times"]):
        shorter, longer = sorted((samples / rate, float(times[-1])))
        if longer > 2 * shorter + LEAST_DIFFERENCE:
          odd[f"{UNEQUAL}: one is more than twice as long as the other"].append(clip.clip_id)
  found = [Note(change, tuple(names)) for change, names in sorted(changed.items())]
  found += [Note(what, tuple(names), warning=True) for what, names in sorted(odd.items())]
  _print_notes(found)
  notes += found
  words = [f"{change}: {count(len(names), 'clip')}" for change, names in sorted(changed.items())]
  return {AS_MEANT: "; ".join(words)} if changed else {}


def _write(builder: Clips, name: str, notes: list[Note], scratch: Path, target: Path) -> None:
  """Writes the data set, with what more there is to note of it, and puts it in its place when it is complete."""
  uneven, unseen, unheard = list[str](), list[str](), list[str]()
  long = [name for name, parts in builder.parts.items() if len(parts) > 1]
  rates: Counter[int] = Counter()
  for clip in builder.clips:
    with np.load(clip.decoded) as arrays:
      uneven += [clip.clip_id] * (len(arrays["sizes"]) > 1)
      rate = int(arrays["sample_rate"])
      unseen += [clip.clip_id] * (not len(arrays["lengths"]))
      unheard += [clip.clip_id] * (not rate and not clip.label)
      rates[rate] += 1
  found = {
    "clips with frames of different sizes: in training the first one's crop is cut from all, as in the original": uneven,
    "long clips, each in several records, which count as clips from here on": long,
    "clips without pictures: only pretraining on sound takes them": unseen,
    "clips without sound: only pretraining on frames takes them": unheard,
  }
  more = [Note(what, tuple(names)) for what, names in found.items() if names]
  del rates[0]  # no sound
  warning = source.rate_warning(name, rates)
  if warning and not any("16000 Hz" in note.what for note in notes):
    more.append(Note(warning, warning=True))
  _print_notes(more)
  notes += more
  new = builder.write()
  if text := "".join("\n  ".join(map(printable, [note.what, *note.names])) + "\n" for note in notes):
    (new / NOTES).write_text(text, encoding="utf-8", errors="backslashreplace")
  if target.exists():
    shutil.rmtree(scratch / "replaced", ignore_errors=True)
    target.rename(scratch / "replaced")
  new.rename(target)
  shutil.rmtree(scratch)


def _check_left_out(layout: Layout, clips: Sequence[ClipFiles], problems: list[Problem], origin: str, allow_bad: int,
                    ) -> list[str]:  # fmt: skip
  """Prints and returns a line for every clip that is left out, and why; refuses more than allowed, and an empty split."""
  bad: dict[str, list[str]] = defaultdict(list)
  for problem in problems:
    for clip in problem.clips:
      bad[clip].append(problem.what + f" ({problem.where})" * bool(problem.where))
  total = len(bad.keys() | {clip.clip_id for clip in layout.clips})
  gone = sorted((layout.splits | {clip.split for clip in layout.clips}) - {clip.split for clip in clips})
  if len(bad) > allow_bad:
    left = {clip.label for clip in clips}
    lost = (layout.doubtful | {clip.label for clip in layout.clips}) - left
    none_left = f"leave no clip of {', '.join(sorted(lost, key=natural))}"
    advice = f"fix them, or add --allow_bad={len(bad)} to leave out these clips" if clips and not gone else ""
    if advice and lost:
      fixed = f"fix them: --allow_bad would {none_left}"
      advice = fixed if lost & layout.doubtful else f"{advice}; that would {none_left}"
    raise listed(f"{len(bad)} of {count(total, 'clip')} of {origin} cannot be used, no data set was written",
                 in_lines(problems), advice)  # fmt: skip
  if gone or not clips:
    raise listed(f"no clip of {', '.join(gone) or 'any split'} in {origin} can be used", in_lines(problems))
  lines = sorted((printable(f"{clip}: {'; '.join(reasons)}") for clip, reasons in bad.items()), key=natural)
  if lines:
    print(f"left out {len(lines)} of {count(total, 'clip')}:", *lines, sep="\n  - ")
  return lines


def _print_notes(notes: Iterable[Note]) -> None:
  for note in notes:
    print(f"{'WARNING' if note.warning else 'note'}: {note}")


def _described(splits: Mapping[str, int]) -> str:
  return ", ".join(f"{split} {count(clips, 'clip')}" for split, clips in splits.items())


def check(layout: Layout, name: str, *problems: str) -> int:
  """Prints what names and lists show, the verdict last; returns the exit status, 1 if there are problems."""
  found, classes = Counter((clip.split, clip.label) for clip in layout.clips), layout.classes or ("",)
  splits = sorted(layout.splits | {split for split, _ in found})
  counts = {split: {label: found[split, label] for label in classes} for split in splits}
  lines, published = [*problems, *in_lines(layout.problems)], published_counts(name, classes)
  result = Findings(counts, published, lines, purpose="preparation")
  for note in layout.notes:
    (result.warnings if note.warning else result.notes).append(str(note))
  silent = tuple(clip.clip_id for clip in layout.clips if clip.sound is None)
  if silent and all(problem.clips for problem in layout.problems):  # else that is one of the problems
    result.warnings.append(str(Note("clips without a file with sound", silent)))
  check_counts(result, layout.classes, name, layout.doubtful)
  result.print_lines()
  print(f"{result.verdict} (no clip was decoded, nothing was written: only prepare finds damaged files, and only doctor finds "
        "black, silent or equal clips)")  # fmt: skip
  return 1 if result.problems else 0


def main(argv: Sequence[str]) -> int:
  del argv
  name = _DATASET.value
  of = source.source_of(name)
  for other in source.names():
    try:
      source.source_of(other)
    except UserError as error:
      print(f"WARNING: {error}")
  takes, place = [of.FLAG, *source.fields_of(name)], str(flags.FLAGS[of.FLAG].value or "")
  given = [flag for flag in ("raw", "manifest", *_OPTIONS) if flags.FLAGS[flag].present]
  problems = [f"--{flag} is not for --dataset={name}" for flag in given if flag not in takes]
  if "raw" in given and of.FLAG == "manifest":
    others = [other for other in source.names() if source.said_by(other, "FLAG") == "raw"]
    problems[0] += f", but for {', '.join(others)}; for one folder for each class, add --dataset=folders"
  problems += [] if place else [f"--{of.FLAG} is needed"]
  if problems:
    advice = f"--dataset={name} takes {', '.join(f'--{flag}' for flag in takes)}\n{of.LAYOUT}"
    raise listed("the data set cannot be prepared", problems, advice)
  values = {flag: flags.FLAGS[flag].value for flag in takes[1:] if flags.FLAGS[flag].present}
  options = of.Options(**{flag: tuple(v) if isinstance(v, list) else v for flag, v in values.items()})
  layout = source.with_legible_names(of.read(Path(place), options))
  given_model = Path(_FACE_MODEL.value) if _FACE_MODEL.value else None
  if _CHECK.value:
    wrong = []
    if "yunet" in (options.faces, _LANDMARKS.value) and given_model:  # without one it would be downloaded
      try:
        face_model(given_model)
      except UserError as error:
        wrong.append(str(error))
    return check(layout, name, *wrong)
  if not Path(_DATA_DIR.value).is_dir() and os.path.lexists(_DATA_DIR.value):
    raise UserError(f"--data_dir={_DATA_DIR.value}: {hint(_DATA_DIR.value, folder=True)}")
  if _KEEP_TIMES.value and any(clip.frames for clip in layout.clips):
    raise UserError("--keep_times is for videos; pictures in folders have no times")
  model = str(face_model(given_model)) if "yunet" in (options.faces, _LANDMARKS.value) else ""
  cut = (model, _FACE_POLICY.value, _FACE_SIZE.value) if options.faces == "yunet" else ("", "follow", 224)
  of_sound, of_points = _CHANNEL.value, model * (_LANDMARKS.value == "yunet")
  frames = _MAX_FRAMES.value, _KEEP_TIMES.value
  decoding = Decoding(options.allow_missing_sound, *cut, *frames, of_sound, of_points)
  prepare(layout, name, Path(_DATA_DIR.value), decoding, place, allow_bad=_ALLOW_BAD.value,
          overwrite=_OVERWRITE.value, num_workers=_NUM_WORKERS.value)  # fmt: skip
  return 0


if __name__ == "__main__":
  cli.run(main)
