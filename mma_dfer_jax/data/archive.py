"""An archive as it was unpacked: its folders by name, and the files of its clips. No file of a clip is opened."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import os
from pathlib import Path
import re
from typing import NamedTuple

from mma_dfer_jax.data.source import (
  ClipFiles,
  Layout,
  Note,
  Options,
  Problem,
  as_clip_id,
  count,
  first_few,
  natural,
  option,
)  # fmt: skip
from mma_dfer_jax.errors import UserError, listed

PICTURES = (".jpg", ".jpeg", ".png", ".bmp")
VIDEOS = (
  ".mp4",
  ".avi",
  ".flv",
  ".mov",
  ".mkv",
  ".webm",
  ".m4v",
  ".mpg",
  ".mpeg",
  ".wmv",
  ".3gp",
  ".ts",
  ".ogv",
)
SOUNDS = (".wav", ".mp3", ".m4a", ".aac", ".flac", ".ogg", ".opus", ".wma", ".aif", ".aiff")
OF_VIDEO = {
  "frames": "video",
  "frame_order": "presentation: as the video is played",
  "frame_count": "all",
}  # recipe
WITHOUT_SOUND = "(--allow_missing_sound takes such clips)"
_MOST_SUBFOLDERS = 200  # a folder with more holds clips, and is not searched for other folders
_MOST_FOLDERS, _DEEPEST = 5000, 6  # of the search, in case it is started at the root of a disk


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArchiveOptions(Options):
  """What can be asked of every archive."""

  follow_links: bool = option(False, "Take what symbolic links that lead out of --raw lead to.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassOptions(ArchiveOptions):
  """What can be asked of an archive whose files or folders name the class."""

  classes: tuple[str, ...] = option((), "Which classes to take, in label order; all if not given.")


class Archive:
  """The folders below a place by name, without looking into those that hold clips; collects problems and notes."""

  def __init__(self, raw: Path, leaves: Iterable[str], layout: str, options: ArchiveOptions):
    self.raw = Path(os.path.abspath(raw))
    if not self.raw.is_dir():
      raise UserError(f"--raw={raw}: {'is no folder' if self.raw.exists() else 'there is no such folder'}")
    self.real = os.path.realpath(self.raw)
    self.layout, self.options = layout, options
    self.problems: list[Problem] = []
    self._notes: dict[tuple[str, bool], list[str]] = {}
    self.folders: dict[str, list[Path]] = defaultdict(list)  # by name in lower case
    self.folders[self.raw.name.lower()].append(self.raw)
    todo, seen = [(self.raw, 0)], {self.real}
    for folder, depth in todo:  # grows while it is walked through: breadth first
      below = self.entries(folder)[0]
      if len(below) > _MOST_SUBFOLDERS or depth >= _DEEPEST:
        continue
      for name in below:
        path = folder / name
        leaf = name.lower() in leaves
        if leaf and (path / name).is_dir():  # unpacked into a folder of its own name
          path = path / name
        self.folders[name.lower()].append(path)
        real = os.path.realpath(path)
        if not leaf and real not in seen:  # links may lead in circles
          todo.append((path, depth + 1))
        seen.add(real)
      if len(todo) > _MOST_FOLDERS:
        raise UserError(f"--raw={self.raw}: holds more than {_MOST_FOLDERS} folders that are none of a data set; "
                        f"give the folder of the data set itself\n{layout}")  # fmt: skip

  def note(self, what: str, *names: str, warning: bool = False) -> None:
    """What was noted already gets more names: one line for each kind."""
    self._notes.setdefault((what, warning), []).extend(names)

  @property
  def notes(self) -> list[Note]:
    return [Note(what, tuple(dict.fromkeys(names)), w) for (what, w), names in self._notes.items()]

  @property
  def bad_clips(self) -> set[str]:
    return {clip for problem in self.problems for clip in problem.clips}

  def found(self, clips: Iterable[ClipFiles], classes: Sequence[str], order: str, recipe: dict[str, str],
            splits: Iterable[str] = ()) -> Layout:  # fmt: skip
    """The layout of what was found, without the clips that some problem concerns."""
    bad = self.bad_clips
    good = [clip for clip in clips if clip.clip_id not in bad]
    problems = list(dict.fromkeys(self.problems))
    return Layout(tuple(classes), order, good, problems, recipe, self.notes, frozenset(splits))

  def entries(self, folder: Path) -> tuple[list[str], list[str]]:
    """Names of the folders and of the files in a folder; what cannot be read or leads out of the archive is a problem."""
    folders, files, links, error = _scan(folder)
    if error:
      self.problems.append(Problem(self.show(folder), f"cannot be read ({error})"))
    for name in links:
      if wrong := self.wrong_link(folder / name):
        stem, suffix = os.path.splitext(name)
        of_clip = suffix.lower() in (*VIDEOS, *SOUNDS) or name.isdecimal()
        self.problems.append(Problem(self.show(folder / name), wrong, (as_clip_id(stem),) if of_clip else ()))
      else:
        (folders if (folder / name).is_dir() else files).append(name)
    return sorted(folders), sorted(files)

  def wrong_link(self, path: Path) -> str | None:
    """What is wrong with a symbolic link, or None."""
    target = os.path.realpath(path)
    if not os.path.exists(target):
      return f"is a link to {target}, which is not there"
    if self.options.follow_links or target == self.real or target.startswith(self.real + os.sep):
      return None
    return f"is a link that leads out of {self.raw}, to {target} (--follow_links allows it)"

  def show(self, path: Path) -> str:
    """A path for messages: relative to the archive, if it is in it."""
    return str(path.relative_to(self.raw) if path.is_relative_to(self.raw) else path)

  def find(self, *names: str) -> Path | None:
    """The folder of the first of these names that is there, in upper or lower case.

    Raises:
      UserError: if there are several of that name.
    """
    for name in names:
      there = list({os.path.realpath(path): path for path in self.folders.get(name.lower(), [])}.values())
      there = [path for path in there if path.name == name] or there
      if len(there) > 1:
        raise listed(f"--raw={self.raw}: holds several folders {name}", list(map(str, there)),
                     "keep one of them there, or give a folder that holds only one")  # fmt: skip
      if there:
        if there[0].name != name:
          self.note(f"{self.show(there[0])}: taken for {name}, from which it differs in case")
        return there[0]
    return None

  def all_files(self) -> list[Path]:
    """All files in all folders found, in natural order."""
    folders = sorted({path for paths in self.folders.values() for path in paths})
    return [folder / name for folder in folders for name in sorted(self.entries(folder)[1], key=natural)]

  def unrecognised(self, missing: str, *advice: str) -> UserError:
    """The error for an archive without something that it cannot do without: what is there, and what is accepted."""
    folders, files = self.entries(self.raw)
    there = first_few([*(f"{name}/" for name in folders), *files], 12) or "nothing"
    found = [f"found: {there}", *advice, *dict.fromkeys(map(str, self.problems))]
    return listed(f"--raw={self.raw}: {missing}", found, self.layout)


def _scan(folder: str | Path) -> tuple[list[str], list[str], list[str], str]:
  """Names of folders, files and links in a folder without hidden ones, as the original's glob; and what went wrong.

  Asks nothing about a single file: that would take long for 800,000.
  """
  folders: list[str] = []
  files: list[str] = []
  links: list[str] = []
  try:
    with os.scandir(folder) as entries:
      for entry in entries:
        if not entry.name.startswith(".") and entry.name != "__MACOSX":  # .DS_Store, ._1.jpg, .git
          (links if entry.is_symlink() else folders if entry.is_dir() else files).append(entry.name)
  except OSError as error:
    return [], [], [], error.strerror or str(error)
  return folders, files, links, ""


# ---- the files of clips ----

Index = Mapping[str, Sequence[Path]]  # paths by clip id


def index_clips(folder: Path, archive: Archive, suffixes: Sequence[str] = ()) -> Index:
  """What a folder holds, by clip id: files of these kinds in it and one folder below; or, without, its folders."""
  index: dict[str, list[Path]] = defaultdict(list)
  folders, files = archive.entries(folder)
  if not suffixes:
    if files:
      archive.note(f"{archive.show(folder)}: files beside the clips, not used", *files)
    for name in folders:
      index[as_clip_id(name)].append(folder / name)
    return index
  paths = [folder / name for name in files]
  for below in folders:  # archives come in parts
    paths += [folder / below / name for name in archive.entries(folder / below)[1]]
  what = "sounds" if suffixes == SOUNDS else "videos"
  for path in paths:
    if path.suffix.lower() in suffixes:
      index[as_clip_id(path.stem)].append(path)
    else:
      archive.note(f"{archive.show(folder)}: no {what} by extension, not used", path.name)
  if suffixes == SOUNDS:
    for clip_id, several in index.items():
      wavs = [path for path in several if path.suffix.lower() == ".wav"]
      if len(wavs) == 1 < len(several):
        archive.note(
          f"{archive.show(folder)}: other sounds beside a .wav of the same clip, not used", clip_id
        )
        index[clip_id] = wavs
  return index


def only_match(index: Index, clip_id: str, what: str, folder: Path, archive: Archive) -> Path | str:
  """The path of a clip, or what is wrong: none or several."""
  paths = index.get(clip_id, ())
  if len(paths) == 1:
    return paths[0]
  if paths:
    return f"several {what}s: {first_few(map(archive.show, paths))}"
  case = [path for key in index if key.lower() == clip_id.lower() for path in index[key]]
  also = f"; {archive.show(case[0])} differs in case" if case else ""
  return f"no {what} in {archive.show(folder)}{also}"


def chosen(archive: Archive, clips: Iterable[ClipFiles], known: Sequence[str], origin: str, options: ClassOptions,
           recipe: dict[str, str], splits: Iterable[str] = ()) -> Layout:  # fmt: skip
  """The layout of clips whose class stands in their names; notes those of classes that --classes does not name."""
  classes = options.classes or tuple(known)
  if unknown := [name for name in classes if name not in known]:
    raise UserError(
      f"--classes={','.join(classes)}: there is no {', '.join(unknown)}, only {', '.join(known)}"
    )
  taken = []
  for clip in clips:
    if clip.label in classes:
      taken.append(clip)
    else:
      archive.note(f"clips of the class {clip.label} left out, as --classes does not name it", clip.clip_id)
  order = "as given" if options.classes else origin
  return archive.found(taken, classes, order, OF_VIDEO | {"label_order": order} | recipe, splits)


def note_empty_folds(archive: Archive, clips: Sequence[ClipFiles], folds: int = 5) -> None:
  there = {clip.split for clip in clips}
  if empty := [str(k) for k in range(1, folds + 1) if f"fold{k}" not in there]:
    archive.note(f"no clips in fold {', '.join(empty)}")


class Pictures(NamedTuple):
  """The files in the folder of a clip."""

  names: list[str]
  others: list[str]  # by extension no picture, or folders
  links: list[str]
  error: str


def pictures_in(folder: Path) -> Pictures:
  folders, files, links, error = _scan(folder)
  names = [name for name in (*files, *links) if name.lower().endswith(PICTURES)]
  others = [name for name in (*files, *links) if not name.lower().endswith(PICTURES)]
  return Pictures(names, [*folders, *others], links, error)


def in_order(
  folder: Path, found: Pictures, annotated: int | None, original: bool, archive: Archive
) -> tuple[list[str], list[str]]:
  """Names of the pictures in the order in which they are used, and what is wrong with them.

  Source: reference.md, quirks 13 and 14. The original takes everything that a folder holds but hidden files, in string
  order, and of it as many as its list says.
  """
  shown = archive.show(folder)
  if found.error:
    return [], [f"{shown} cannot be read ({found.error})"]
  wrong = [f"{shown}/{name} {bad}" for name in found.links if (bad := archive.wrong_link(folder / name))]
  if not found.names:
    return [], [*wrong, f"{shown} holds no pictures ({first_few(found.others, 3) or 'nothing at all'})"]
  if found.others:
    archive.note("clips with something that by its extension is no picture, not used",
                 f"{shown} ({first_few(found.others, 1)})")  # fmt: skip
    if original:
      wrong.append(
        f"{shown} holds what is no picture, but counts in the original: {first_few(found.others, 3)}"
      )
  if len({os.path.splitext(name)[1].lower() for name in found.names}) > 1:
    archive.note("clips with pictures of several file types", shown)
  names = _by_number(found.names, shown, archive)
  if original:
    names = sorted(names)
  if annotated is None or annotated == len(names):
    return names, wrong
  if original and not 0 < annotated <= len(names):
    return names, [*wrong, f"{shown} holds {count(len(names), 'picture')}, {annotated} are annotated"]
  if annotated > len(names):
    what = "more frames than there are files: all files are used, some may be missing"
  elif original:
    what = "fewer frames than there are files: the rest, last in string order, is not used"
  else:
    what = "fewer frames than there are files: all files are used"
  archive.note(f"clips annotated with {what}", f"{shown} ({annotated} annotated, {len(names)} there)")
  return names[:annotated] if original else names, wrong


def _by_number(names: list[str], shown: str, archive: Archive) -> list[str]:
  """The names in natural order; notes what is odd about their numbers."""
  stems = {name: os.path.splitext(name)[0] for name in names}
  numbers = {name: tuple(map(int, re.findall("[0-9]+", stem))) for name, stem in stems.items()}
  plain = all(stem.isdecimal() for stem in stems.values())
  names = sorted(names, key=lambda name: (numbers[name], name)) if plain else sorted(names, key=natural)
  first: dict[tuple[int, ...], str] = {}
  double = [(first[numbers[n]], n) for n in names if numbers[n] and first.setdefault(numbers[n], n) != n]
  if double:
    archive.note("clips with several pictures of the same number", f"{shown} ({', '.join(double[0])})")
  if first and (odd := [name for name in names if not numbers[name]]):
    archive.note("clips with pictures without a number among numbered ones", f"{shown} ({odd[0]})")
  if len({len(number) for number in first}) > 1:
    archive.note("clips with pictures that are named in different ways", f"{shown} ({names[0]}, {names[-1]})")
  else:  # of several numbers in a name, one counts the frames
    counting = [column for column in map(set, zip(*first, strict=True)) if len(column) > 1]
    lacking = max(counting[0]) - min(counting[0]) + 1 - len(counting[0]) if len(counting) == 1 else 0
    if lacking:
      archive.note("clips with gaps in the numbers of their pictures", f"{shown} ({lacking} lacking)")
  return names
