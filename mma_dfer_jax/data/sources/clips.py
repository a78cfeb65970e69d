"""Any clips: those of a manifest with their labels, or those of a folder or glob without labels, for pretraining."""

import dataclasses
import glob
import os
from pathlib import Path
import re

from mma_dfer_jax.data import listed, source
from mma_dfer_jax.data.archive import VIDEOS
from mma_dfer_jax.data.source import ClipFiles, Layout, Note, Problem, natural
from mma_dfer_jax.errors import UserError, shown
from mma_dfer_jax.lookalikes import escaped, looks, tidy
from mma_dfer_jax.paths import hint, user_path

FLAG = "manifest"
LAYOUT = """accepted as --manifest: a csv with the columns path,label,split (train or test) or path,label,fold (1, 2, …); or,
for clips without labels, which pretraining takes, a folder or a glob such as 'films/**/*.mp4'"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(source.Options):
  classes: tuple[str, ...] = source.option((), source.CLASSES)


def read(manifest: Path, options: Options) -> Layout:
  """The rows of a manifest as clips; or of a folder or glob all videos, in the split train, without labels."""
  if manifest.is_dir() or (glob.has_magic(str(manifest)) and not manifest.exists()):
    return _unlabelled(manifest, options)
  try:
    header, lines, notes = listed.read_table(manifest, "path,label,split", "path,label,fold")
  except ValueError as error:
    raise UserError(f"{manifest}: {error}\n{LAYOUT}") from error
  if not lines:
    raise UserError(f"{manifest}: holds no rows, only {','.join(header)}")
  folds, classes = "fold" in header, options.classes
  known = re.compile("fold[1-9][0-9]{0,5}" if folds else "train|test")
  clips: list[ClipFiles] = []
  problems: list[Problem] = []
  splits: set[str] = set()
  seen: dict[str, int] = {}
  for line, values, row in lines:
    path, label = row["path"], tidy(row["label"])
    split = f"fold{looks(row['fold']).removeprefix('fold')}" if folds else looks(row["split"])
    no_path, first, file = "", line, manifest
    try:
      file = Path(user_path(path, manifest.parent)) if path else manifest
      # The same clip in training and in the test would make the score a lie.
      first = seen.setdefault(os.path.realpath(file), line) if path else line
      missing = first == line and not os.path.exists(file) and hint(file, folder=False)
      no_path = (
        f"{file}: {missing.replace('is not there', 'No such file or directory', 1)}" if missing else ""
      )
    except UserError as error:
      no_path = f"the path {error}"
    similar = [name for name in classes if looks(name) == looks(label)]
    wrong = {
      f"{len(values) - len(header)} values too many (quote values that hold commas)": len(values) > len(header),
      "no path": not path,
      "no label": not label,
      f"label {escaped(label)} is not one of the classes {', '.join(map(escaped, similar) if similar else classes)}":
        label and classes and label not in classes,
      f"fold {escaped(row.get('fold', ''))} is not a number from 1 on": folds and not known.fullmatch(split),
      f"split {escaped(row.get('split', ''))} is used by no run: write train or test, or a column fold with 1, 2, …":
        not folds and not known.fullmatch(split),
      f"is in line {first} already": first != line,
      no_path: True,
    }  # fmt: skip
    if what := "; ".join(text for text, holds in wrong.items() if text and holds):
      problems.append(Problem("", what, (f"line {line}: {shown(path)}" if path else f"line {line}",)))
    else:
      clips.append(ClipFiles(path, f"line {line}", label, split, video=file, sound=file))
    splits |= {split} if known.fullmatch(split) else set()
  numbers = sorted(int(split.removeprefix("fold")) for split in splits) if folds else []
  if numbers != list(range(1, len(numbers) + 1)):
    there = f"the folds are {', '.join(map(str, numbers))}; they must be 1, 2, … without a hole"
    problems.append(Problem(str(manifest), there))
  labels = dict.fromkeys([*classes, *(clip.label for clip in clips)])
  problems += [Problem(str(manifest), text) for text in source.near_duplicates(labels)]
  order = "as given by --classes" if classes else "sorted by name"
  return Layout(classes or tuple(sorted(labels, key=natural)), order, clips, problems, {},
                [Note(note) for note in notes], frozenset(splits))  # fmt: skip


def _unlabelled(place: Path, options: Options) -> Layout:
  """All videos of a folder, or all files that a glob matches."""
  if options.classes:
    raise UserError(f"--classes is for manifests; {place} gives clips without labels")
  magic = next((i for i, part in enumerate(place.parts) if glob.has_magic(part)), None)
  home = place if place.is_dir() else Path(*place.parts[:magic])
  pattern = os.path.join(glob.escape(str(home)), "**", "*") if home == place else str(place)
  files = sorted(filter(os.path.isfile, glob.glob(pattern, recursive=True)), key=natural)
  clips, problems, others = [], [], []
  seen: dict[str, str] = {}
  for file in map(Path, files):
    name, path = str(file.relative_to(home)), Path(os.path.abspath(file))
    if home == place and file.suffix.lower() not in VIDEOS:
      others.append(name)
    elif (first := seen.setdefault(os.path.realpath(file), name)) != name:
      problems.append(Problem("", f"is a link to {first}, which is taken already", (name,)))
    else:
      clips.append(ClipFiles(name, name, "", "train", video=path, sound=path))
  if not clips:
    raise UserError(f"--manifest={place}: there is no video; other files: {len(others)}\n{LAYOUT}")
  notes = [Note("clips without labels, for pretraining only: train and evaluate need a manifest with labels")]
  notes += [Note("no videos by extension, not used", tuple(others))] if others else []
  return Layout((), "none: clips without labels", clips, problems, {}, notes, frozenset({"train"}))
