"""An archive as it was unpacked: its folders by name, the files of its clips, and what there is to say about them.

Names of files are looked at only: no picture, video or sound is opened.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
import os
from pathlib import Path
import re
from typing import NamedTuple

from mma_dfer_jax.errors import UserError, listed

PICTURES = (".jpg", ".jpeg", ".png", ".bmp")
VIDEOS = (".mp4", ".avi", ".flv", ".mov", ".mkv", ".webm")
_MOST_SUBFOLDERS = 200  # a folder with more holds clips, and is not searched for other folders
_MOST_FOLDERS, _DEEPEST = 5000, 6  # of the search, in case it is started at the root of a disk


# ---- what is said ----


class Problem(NamedTuple):
  """Something wrong with clips, which are left out for it; or, without clips, with all: nothing can be made of that."""

  where: str  # path, and line
  what: str  # after a clip's name, or after "3 clips"
  clips: tuple[str, ...] = ()

  def __str__(self) -> str:
    if len(self.clips) > 1:
      return f"{self.where}: {count(len(self.clips), 'clip')} {self.what}: {some(self.clips)}"
    return ": ".join(filter(None, (self.where, *self.clips, self.what)))


def left_out(problems: Iterable[Problem]) -> dict[str, list[str]]:
  """Every clip that some problem concerns, and what is wrong with it."""
  reasons: dict[str, list[str]] = defaultdict(list)
  for problem in problems:
    for clip in problem.clips:
      reasons[clip].append(problem.what + (f" ({problem.where})" if problem.where else ""))
  return reasons


class Note(NamedTuple):
  """Something worth saying that is not wrong, and the clips or files of which it is said."""

  what: str
  names: tuple[str, ...] = ()

  def __str__(self) -> str:
    """With the first few names."""
    number = f" ({len(self.names)})" if len(self.names) > 1 else ""
    return self.what + (f"{number}: {some(self.names)}" if self.names else "")

  @property
  def in_full(self) -> str:
    """With all names, each in a line of its own."""
    return "\n  ".join([self.what, *self.names])


def some(names: Iterable[object], most: int = 5) -> str:
  """The first few of many names."""
  texts = [str(name) for name in names]
  return ", ".join(texts[:most]) + " …" * (len(texts) > most)


def count(number: int, one: str) -> str:
  return f"{number} {one}{'' if number == 1 else 's'}"


def natural(name: str) -> tuple[list[tuple[int, int, str]], str]:
  """Sorts names as people do: 2 before 10."""
  parts = re.split("([0-9]+)", name)  # text and digits take turns
  return [(0, int(part), "") if i % 2 else (1, 0, part) for i, part in enumerate(parts) if part], name


def as_clip_id(name: str) -> str:
  """A clip's name with or without leading zeros -> the same id."""
  return f"{int(name):05d}" if re.fullmatch("[0-9]+", name) else name


# ---- folders ----


class Archive:
  """The folders below a place by name, without looking into those that hold clips; collects problems and notes."""

  def __init__(self, raw: Path, leaves: Iterable[str], layouts: str, follow_links: bool):
    self.raw = Path(os.path.abspath(raw))
    if not self.raw.is_dir():
      raise UserError(f"--raw={raw}: {'is no folder' if self.raw.exists() else 'there is no such folder'}")
    self.real = os.path.realpath(self.raw)
    self.leaves, self.layouts, self.follow_links = frozenset(leaves), layouts, follow_links
    self.problems: list[Problem] = []
    self._notes: dict[str, list[str]] = {}
    self.folders: dict[str, list[Path]] = defaultdict(list)  # by name in lower case
    self._explore()

  def note(self, what: str, *names: str) -> None:
    """What was noted already gets more names: one line for each kind."""
    self._notes.setdefault(what, []).extend(names)

  @property
  def notes(self) -> list[Note]:
    return [Note(what, tuple(dict.fromkeys(names))) for what, names in self._notes.items()]

  @property
  def bad_clips(self) -> set[str]:
    return {clip for problem in self.problems for clip in problem.clips}

  def _explore(self) -> None:
    todo, seen = [(self.raw, 0)], {self.real}
    self.folders[self.raw.name.lower()].append(self.raw)
    for folder, depth in todo:  # grows while it is walked through: breadth first
      below = self.entries(folder)[0]
      if len(below) > _MOST_SUBFOLDERS or depth >= _DEEPEST:
        continue
      for name in below:
        path = folder / name
        leaf = name.lower() in self.leaves
        if leaf and (path / name).is_dir():  # unpacked into a folder of its own name
          path = path / name
        self.folders[name.lower()].append(path)
        real = os.path.realpath(path)
        if not leaf and real not in seen:  # links may lead in circles
          todo.append((path, depth + 1))
        seen.add(real)
      if len(todo) > _MOST_FOLDERS:
        raise UserError(f"--raw={self.raw}: holds more than {_MOST_FOLDERS} folders that are none of a data set; "
                        f"give the folder of the data set itself\n{self.layouts}")  # fmt: skip

  def entries(self, folder: Path) -> tuple[list[str], list[str]]:
    """Names of the folders and of the files in a folder; what cannot be read or leads out of the archive is a problem."""
    folders, files, links = _scan(folder)
    if isinstance(links, OSError):
      self.problems.append(Problem(self.show(folder), f"cannot be read ({links.strerror})"))
      return [], []
    for name in links:
      if wrong := self.wrong_link(folder / name):
        stem, suffix = os.path.splitext(name)
        of_clip = suffix.lower() in (*VIDEOS, ".wav") or name.isdecimal()
        self.problems.append(Problem(self.show(folder / name), wrong, (as_clip_id(stem),) if of_clip else ()))
      else:
        (folders if (folder / name).is_dir() else files).append(name)
    return sorted(folders), sorted(files)

  def wrong_link(self, path: Path) -> str | None:
    """What is wrong with a symbolic link, or None."""
    target = os.path.realpath(path)
    if not os.path.exists(target):
      return f"is a link to {target}, which is not there"
    if self.follow_links or target == self.real or target.startswith(self.real + os.sep):
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
      exact = [path for path in there if path.name == name]
      if len(exact or there) > 1:
        raise listed(f"--raw={self.raw}: holds several folders {name}", [str(path) for path in exact or there],
                     "leave one there, or give a folder that holds one only")  # fmt: skip
      if there:
        path = (exact or there)[0]
        if not exact:
          self.note(f"{self.show(path)}: taken for {name}, from which it differs in case")
        return path
    return None

  def unrecognised(self, missing: str) -> UserError:
    """The error for an archive without something that it cannot do without: says what is there and what is accepted."""
    folders, files = self.entries(self.raw)
    there = [f"{name}/" for name in folders] + files
    found = some(there, 12) if there else "nothing"
    return listed(
      f"--raw={self.raw}: {missing}",
      [f"found: {found}", *dict.fromkeys(map(str, self.problems))],
      self.layouts,
    )


def _scan(folder: str | Path) -> tuple[list[str], list[str], list[str] | OSError]:
  """Names of folders, files and links in a folder, hidden ones left out as the original's glob does.

  Nothing is asked about a single file: that would take long for 800,000.
  """
  folders: list[str] = []
  files: list[str] = []
  links: list[str] = []
  try:
    with os.scandir(folder) as entries:
      for entry in entries:
        if entry.name.startswith(".") or entry.name == "__MACOSX":  # .DS_Store, ._1.jpg, .git
          continue
        kind = links if entry.is_symlink() else folders if entry.is_dir() else files
        kind.append(entry.name)
  except OSError as error:
    return [], [], error
  return folders, files, links


# ---- the files of clips ----


def index_clips(folder: Path, archive: Archive, suffixes: Sequence[str] = ()) -> dict[str, list[Path]]:
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
  for path in paths:
    if path.suffix.lower() in suffixes:
      index[as_clip_id(path.stem)].append(path)
    else:
      archive.note(f"{archive.show(folder)}: by extension not {' or '.join(suffixes)}, not used", path.name)
  return index


def the_one(
  index: Mapping[str, Sequence[Path]], clip_id: str, what: str, folder: Path, archive: Archive
) -> Path | str:
  """The path of a clip, or what is wrong: none or several."""
  paths = index.get(clip_id, ())
  if len(paths) == 1:
    return paths[0]
  if paths:
    return f"several {what}s: {some(archive.show(path) for path in paths)}"
  case = [path for key in index if key.lower() == clip_id.lower() for path in index[key]]
  return f"no {what} in {archive.show(folder)}" + (
    f"; {archive.show(case[0])} differs in case" if case else ""
  )


class Pictures(NamedTuple):
  """The files in the folder of a clip."""

  names: list[str]
  others: list[str]  # by extension no picture, or folders
  links: list[str]
  error: str = ""


def pictures_in(folder: Path) -> Pictures:
  folders, files, links = _scan(folder)
  if isinstance(links, OSError):
    return Pictures([], [], [], links.strerror or str(links))
  names: list[str] = []
  others = folders
  for name in [*files, *links]:
    (names if name.lower().endswith(PICTURES) else others).append(name)
  return Pictures(names, others, links)


def in_order(
  folder: Path, found: Pictures, annotated: int | None, reference: bool, archive: Archive
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
    return [], [*wrong, f"{shown} holds no pictures ({some(found.others, 3) or 'nothing at all'})"]
  if found.others:
    archive.note(
      "clips with something that by its extension is no picture, not used",
      f"{shown} ({some(found.others, 1)})",
    )
    if reference:
      wrong.append(f"{shown} holds what is no picture, but counts in the original: {some(found.others, 3)}")
  if len({os.path.splitext(name)[1].lower() for name in found.names}) > 1:
    archive.note("clips with pictures of several file types", shown)
  names = _checked_numbers(found.names, shown, archive)
  if reference:
    names = sorted(names)
  if annotated is None or annotated == len(names):
    return names, wrong
  if reference and not 0 < annotated <= len(names):
    return names, [*wrong, f"{shown} holds {count(len(names), 'picture')}, {annotated} are annotated"]
  if annotated > len(names):
    what = "more frames than there are files: all files are used, some may be missing"
  elif reference:
    what = "fewer frames than there are files: the rest, last in string order, is not used"
  else:
    what = "fewer frames than there are files: all files are used"
  archive.note(f"clips annotated with {what}", f"{shown} ({annotated} annotated, {len(names)} there)")
  return names[:annotated] if reference else names, wrong


def _checked_numbers(names: list[str], shown: str, archive: Archive) -> list[str]:
  """The names in natural order; what is odd about their numbers is noted."""
  by_name = {name: tuple(map(int, re.findall("[0-9]+", os.path.splitext(name)[0]))) for name in names}
  plain = all(os.path.splitext(name)[0].isdecimal() for name in names)
  names = sorted(names, key=lambda name: (by_name[name], name)) if plain else sorted(names, key=natural)
  numbered = [name for name in names if by_name[name]]
  numbers = {by_name[name] for name in numbered}
  if len(numbers) < len(numbered):
    seen: dict[tuple[int, ...], str] = {}
    one, other = next((seen[by_name[n]], n) for n in numbered if seen.setdefault(by_name[n], n) != n)
    archive.note("clips with several pictures of the same number", f"{shown} ({one}, {other})")
  if numbers and len(numbered) < len(names):
    odd = next(name for name in names if not by_name[name])
    archive.note("clips with pictures without a number among numbered ones", f"{shown} ({odd})")
  if len({len(number) for number in numbers}) > 1:
    archive.note("clips with pictures that are named in different ways", f"{shown} ({names[0]}, {names[-1]})")
  else:  # of several numbers in a name, one counts the frames
    counting = [column for column in map(set, zip(*numbers, strict=True)) if len(column) > 1]
    lacking = max(counting[0]) - min(counting[0]) + 1 - len(counting[0]) if len(counting) == 1 else 0
    if lacking:
      archive.note("clips with gaps in the numbers of their pictures", f"{shown} ({lacking} lacking)")
  return names
