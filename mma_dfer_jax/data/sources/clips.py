"""Any clips: those of a manifest with their labels, or those of a folder or glob without labels, for pretraining."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
import dataclasses
import glob
import os
from pathlib import Path
import re
import unicodedata

from mma_dfer_jax.data import source
from mma_dfer_jax.data.archive import SOUNDS, VIDEOS
from mma_dfer_jax.data.source import ClipFiles, LabelOrder, Layout, Note, Problem, natural
from mma_dfer_jax.data.tables import read_table
from mma_dfer_jax.errors import UserError
from mma_dfer_jax.lookalikes import escaped, keys, looks, tidy
from mma_dfer_jax.paths import hint, user_path

FLAG = "manifest"
LAYOUT = """accepted as --manifest: a csv with the columns path,label,split (train or test) or path,label,fold (1, 2, …); or,
for clips without labels, which pretraining takes, a folder of videos and sounds or a pattern in quotes such as
'films/**/*.mp4'. Videos in one folder for each class need no manifest: --dataset=folders --raw=FOLDER"""
FOLD, TRAIN_OR_TEST = re.compile("fold[1-9][0-9]{0,5}"), re.compile("train|test")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(source.Options):
  classes: tuple[str, ...] = source.option((), source.CLASSES)
  follow_links: bool = source.option(False, source.LINKS)


def read(manifest: Path, options: Options) -> Layout:
  """The rows of a manifest as clips; or of a folder or glob all videos and sounds, in the split train, without labels."""
  if manifest.is_dir() or (glob.has_magic(str(manifest)) and not manifest.exists()):
    return _unlabelled(manifest, options)
  if (ending := manifest.suffix.lower()) in (*VIDEOS, *SOUNDS) and manifest.exists():
    kind = "video" if ending in VIDEOS else "sound"
    raise UserError(f"{manifest}: is one {kind} by its name, and no csv\n{LAYOUT}")
  if not manifest.exists():
    raise UserError(f"{manifest}: {hint(manifest, folder=False)}\n{LAYOUT}")
  try:
    header, lines, notes = read_table(manifest, "path,label,split", "path,label,fold")
  except ValueError as error:
    raise UserError(f"{manifest}: {error}\n{LAYOUT}") from error
  if not lines:
    raise UserError(f"{manifest}: holds no rows, only {','.join(header)}")
  folds, classes = "fold" in header, options.classes
  known = FOLD if folds else TRAIN_OR_TEST
  others: dict[str, list[str]] = defaultdict(list)  # clips of classes that --classes does not name
  doubtful: set[str] = set()
  clips: list[ClipFiles] = []
  problems: list[Problem] = []
  splits: set[str] = set()
  seen: dict[str, int] = {}
  for line, values, row in lines:
    clip, wrong = _clip_of(line, row, manifest, classes, seen)
    if len(values) > len(header):
      wrong = [f"{len(values) - len(header)} values too many (quote values that hold commas)", *wrong]
    if wrong:
      name = f"line {line}: {clip.clip_id[:200]}" if clip.clip_id else f"line {line}"
      problems.append(Problem("", "; ".join(wrong), (name,)))
      doubtful |= {clip.label} & set(classes or [clip.label]) if clip.label else set(classes)
    elif classes and clip.label not in classes:
      others[clip.label].append(clip.clip_id)
    else:
      clips.append(clip)
    splits |= {clip.split} if known.fullmatch(clip.split) else set()
  numbers = sorted(int(split.removeprefix("fold")) for split in splits) if folds else []
  if numbers != list(range(1, len(numbers) + 1)):
    there = f"the folds are {', '.join(map(str, numbers))}; they must be 1, 2, … without a hole"
    problems.append(Problem(str(manifest), there))
  labels = dict.fromkeys([*classes, *(clip.label for clip in clips)])
  problems += [Problem(str(manifest), text) for text in source.near_duplicates(labels)]
  order = LabelOrder(
    classes or tuple(sorted(labels, key=natural)), "as given by --classes" if classes else "sorted by name"
  )
  said = [*map(Note, notes), *(Note(source.left_out(label), tuple(paths)) for label, paths in others.items())]
  return Layout(*order, clips, problems, {}, said, frozenset(splits), frozenset(doubtful))


def _clip_of(
  line: int, row: Mapping[str, str], manifest: Path, classes: Sequence[str], seen: dict[str, int]
) -> tuple[ClipFiles, list[str]]:
  """A row as a clip, and what is wrong with it; `seen` are the lines of all files before."""
  path, label, file, first = row["path"], tidy(row["label"]), manifest, line
  problem = "" if path else "no path"
  try:
    if path:
      file = Path(user_path(path, manifest.parent))
      # The same clip in training and in the test would make the score a lie.
      first = seen.setdefault(os.path.realpath(file), line)
      if first == line and not os.path.exists(file):
        problem = hint(file, folder=False).replace("is not there", f"No such file in {file.parent}", 1)
  except UserError as error:
    problem = f"the path {error}"
  if "fold" in row:
    split, known = f"fold{looks(row['fold']).removeprefix('fold')}", FOLD
    unknown = f"fold {escaped(row['fold'])} is not a number from 1 on"
  else:
    split, known, given = looks(row["split"]), TRAIN_OR_TEST, escaped(row["split"])
    unknown = f"no run uses the split {given}: write train or test, or a column fold with 1, 2, …"
  similar = [name for name in classes if name != label and keys(name) & keys(label)]
  control, written = any(unicodedata.category(c) == "Cc" for c in label), f"label {escaped(label)}"
  wrong = [problem] * bool(problem) + ["no label"] * (not label)
  wrong += [f"{written} holds a control character"] * control
  wrong += [f"{written} looks like the class {', '.join(map(escaped, similar))}: write that"] * bool(similar)
  wrong += [unknown] * (not known.fullmatch(split)) + [f"is in line {first} already"] * (first != line)
  return ClipFiles(path, f"line {line}", label, split, video=file, sound=file), wrong


def _unlabelled(place: Path, options: Options) -> Layout:
  """All videos and sounds of a folder, or those that a pattern matches."""
  if options.classes:
    raise UserError(f"--classes is for manifests; {place} gives clips without labels")
  magic = next((i for i, part in enumerate(place.parts) if glob.has_magic(part)), None)
  home = place if place.is_dir() else Path(*place.parts[:magic])
  pattern = os.path.join(glob.escape(str(home)), "**", "*") if home == place else str(place)
  files = sorted(filter(os.path.isfile, glob.glob(pattern, recursive=True)), key=natural)
  clips, problems, others = [], [], []
  seen: dict[str, str] = {}
  real = os.path.realpath(home)
  for file in map(Path, files):
    name, path, target = str(file.relative_to(home)), Path(os.path.abspath(file)), os.path.realpath(file)
    outside = os.path.commonpath([real, target]) != real and not options.follow_links
    if file.suffix.lower() not in (*VIDEOS, *SOUNDS):
      others.append(name)
    elif outside or (first := seen.setdefault(target, name)) != name:
      allowed = f"out of {home}, to {target} (--follow_links allows it)"
      leads = allowed if outside else f"to {first}, which is taken already"
      problems.append(Problem("", f"is a link that leads {leads}", (name,)))
    else:
      clips.append(ClipFiles(name, name, "", "train", video=path, sound=path))
  if not clips and not problems:
    found = source.first_few(others) or "no file"
    raise UserError(f"--manifest={place}: there is no video or sound; found: {found}\n{LAYOUT}")
  notes = [Note("clips without labels, for pretraining only: train and evaluate need a manifest with labels")]
  notes += [Note("no videos or sounds by extension, not used", tuple(others))] if others else []
  videos = [Path(clip.clip_id) for clip in clips if clip.clip_id.lower().endswith(VIDEOS)]
  if len(videos) == len(clips) and (hint := _like_classes(home, [video.parts for video in videos])):
    notes.append(Note(hint, warning=True))
  return Layout((), "none: clips without labels", clips, problems, {}, notes, frozenset({"train"}))


def _like_classes(home: Path, parts: list[tuple[str, ...]]) -> str:
  """What to say of videos that lie as --dataset=folders takes them, one folder for each class; nothing of others."""
  split = {one[0].lower() for one in parts} == {"train", "test"}
  classes = sorted({one[-2] for one in parts if len(one) == 2 + split}, key=natural)
  if len(classes) < 2 or any(len(one) != 2 + split for one in parts):
    return ""
  share = "" if split else " --test_share=0.2"
  return (f"the videos lie in the folders {source.first_few(classes)}; if these are classes, give them labels with "
          f"--dataset=folders --raw={home}{share}")  # fmt: skip
