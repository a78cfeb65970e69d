"""An archive as it was unpacked: its folders by name, and the files of its clips. No file of a clip is opened."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import os
from pathlib import Path
import re

from mma_dfer_jax.data import source
from mma_dfer_jax.data.source import ClipFiles, Layout, Note, Problem, as_clip_id, count, first_few, option
from mma_dfer_jax.errors import UserError, listed

PICTURES = (".jpg", ".jpeg", ".png", ".bmp")
VIDEOS = (".mp4", ".avi", ".flv", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".3gp", ".ts",
          ".ogv")  # fmt: skip
SOUNDS = (".wav", ".mp3", ".m4a", ".aac", ".flac", ".ogg", ".opus", ".wma", ".aif", ".aiff")
# What a recipe says of frames.
OF_VIDEO = {"frames": "video", "frame_order": "presentation: as the video is played", "frame_count": "all"}
_MOST_SUBFOLDERS = 200  # a folder with more holds clips, and is not searched for other folders
_MOST_FOLDERS, _DEEPEST = 5000, 6  # of the search, in case it is started at the root of a disk
Index = Mapping[str, Sequence[Path]]  # paths by clip id
Scan = tuple[list[str], list[str], list[str], str]  # folders, files, links, and what went wrong


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(source.Options):
  """What can be asked of every archive."""

  follow_links: bool = option(False, "Take what symbolic links that lead out of --raw lead to.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassOptions(Options):
  """What can be asked of an archive whose files or folders name the class."""

  classes: tuple[str, ...] = option((), source.CLASSES)


class Archive:
  """The folders below a place by name, without looking into those that hold clips; collects problems and notes."""

  def __init__(self, raw: Path, leaves: Iterable[str], layout: str, options: Options):
    self.raw = Path(os.path.abspath(raw))
    if not self.raw.is_dir():
      raise UserError(f"--raw={raw}: {'is no folder' if self.raw.exists() else 'there is no such folder'}")
    self.real, self.layout, self.options = os.path.realpath(self.raw), layout, options
    self.problems: list[Problem] = []
    self._notes: dict[tuple[str, bool], list[str]] = defaultdict(list)
    self.folders = defaultdict(list, {self.raw.name.lower(): [self.raw]})  # by name in lower case
    todo, seen = [(self.raw, 0)], {self.real}
    for folder, depth in todo:  # grows while it is walked through: breadth first
      below = self.entries(folder)[0]
      for name in below if len(below) <= _MOST_SUBFOLDERS and depth < _DEEPEST else ():
        path, leaf = folder / name, name.lower() in leaves
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

  def problem(self, where: Path | str, what: str, *clips: str) -> None:
    self.problems.append(Problem(self.show(where) if isinstance(where, Path) else where, what, clips))

  def note(self, what: str, *names: str, warning: bool = False) -> None:
    """What was noted already gets more names: one line for each kind."""
    self._notes[what, warning].extend(names)

  @property
  def bad_clips(self) -> set[str]:
    return {clip for problem in self.problems for clip in problem.clips}

  def found(self, clips: Iterable[ClipFiles], classes: Sequence[str], order: str, recipe: dict[str, str],
            splits: Iterable[str] = ()) -> Layout:  # fmt: skip
    """What was found, without the clips that some problem concerns."""
    notes = [Note(what, tuple(dict.fromkeys(names)), w) for (what, w), names in self._notes.items()]
    bad, problems = self.bad_clips, list(dict.fromkeys(self.problems))
    good = [clip for clip in clips if clip.clip_id not in bad]
    return Layout(tuple(classes), order, good, problems, recipe | {"label_order": order}, notes, frozenset(splits))  # fmt: skip

  def found_by_class(self, clips: Sequence[ClipFiles], known: Sequence[str], origin: str, classes: Sequence[str],
                     recipe: dict[str, str], splits: Iterable[str] = ()) -> Layout:  # fmt: skip
    """What was found of the classes that --classes names, or of all known ones; the others are noted."""
    if unknown := [name for name in classes if name not in known]:
      raise UserError(f"--classes: there is no {', '.join(unknown)}, only {', '.join(known)}")
    taken = [clip for clip in clips if clip.label in (classes or known)]
    for clip in (clip for clip in clips if clip.label not in (classes or known)):
      self.note(f"clips of the class {clip.label} left out, as --classes does not name it", clip.clip_id)
    there = {clip.split for clip in taken}
    if "train" not in there and (empty := [str(k) for k in source.FOLDS if f"fold{k}" not in there]):
      self.note(f"no clips in fold {', '.join(empty)}")
    return self.found(taken, classes or known, "as given" if classes else origin, OF_VIDEO | recipe, splits)

  def entries(self, folder: Path) -> tuple[list[str], list[str]]:
    """Names of the folders and of the files in a folder; what cannot be read or leads out of the archive is a problem."""
    folders, files, links, error = scan(folder)
    if error:
      self.problem(folder, f"cannot be read ({error})")
    for name in links:
      if wrong := self._wrong_link(folder / name):
        stem, suffix = os.path.splitext(name)
        of_clip = suffix.lower() in (*VIDEOS, *SOUNDS) or name.isdecimal()
        self.problem(folder / name, wrong, *([as_clip_id(stem)] if of_clip else []))
      else:
        (folders if (folder / name).is_dir() else files).append(name)
    return sorted(folders), sorted(files)

  def _wrong_link(self, path: Path) -> str | None:
    """What is wrong with a symbolic link, or None."""
    target = os.path.realpath(path)
    if not os.path.exists(target):
      return f"is a link to {target}, which is not there"
    if self.options.follow_links or target == self.real or target.startswith(self.real + os.sep):
      return None
    return f"is a link that leads out of {self.raw}, to {target} (--follow_links allows it)"

  def show(self, path: Path) -> str:
    """A path for messages: relative to the archive, if it is in it."""
    return str(path).removeprefix(str(self.raw) + os.sep)

  def find(self, *names: str) -> Path | None:
    """The folder of the first of these names that is there, in upper or lower case; refuses several of that name."""
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

  def unrecognised(self, missing: str, *advice: str) -> UserError:
    """The error for an archive without something that it cannot do without: what is there, and what is accepted."""
    folders, files = self.entries(self.raw)
    there = first_few([*(f"{name}/" for name in folders), *files], 12) or "nothing"
    found = [f"found: {there}", *advice, *dict.fromkeys(map(str, self.problems))]
    return listed(f"--raw={self.raw}: {missing}", found, self.layout)

  def index(self, folder: Path | None, suffixes: Sequence[str] = ()) -> Index:
    """What a folder holds, by clip id: files of these kinds in it and one folder below; or, without, its folders."""
    index: dict[str, list[Path]] = defaultdict(list)
    if not folder:
      return index
    folders, files = self.entries(folder)
    paths = [folder / name for name in files]
    if not suffixes:
      good, others, what = [folder / name for name in folders], files, "files beside the clips"
    else:
      for below in folders:  # archives come in parts
        paths += [folder / below / name for name in self.entries(folder / below)[1]]
      good = [path for path in paths if path.suffix.lower() in suffixes]
      others = [path.name for path in paths if path.suffix.lower() not in suffixes]
      what = f"no {'sounds' if suffixes == SOUNDS else 'videos'} by extension"
    if others:
      self.note(f"{self.show(folder)}: {what}, not used", *others)
    for path in good:
      index[as_clip_id(path.stem if suffixes else path.name)].append(path)
    for clip_id, several in index.items() if suffixes == SOUNDS else ():
      wavs = [path for path in several if path.suffix.lower() == ".wav"]
      if len(wavs) == 1 < len(several):
        self.note(f"{self.show(folder)}: other sounds beside a .wav of the same clip, not used", clip_id)
        index[clip_id] = wavs
    return index

  def only_match(self, index: Index, clip_id: str, what: str, folder: Path) -> Path | str:
    """The path of a clip, or what is wrong: none or several."""
    paths = index.get(clip_id, ())
    if len(paths) == 1:
      return paths[0]
    if paths:
      return f"several {what}s: {first_few(map(self.show, paths))}"
    case = [path for key in index if key.lower() == clip_id.lower() for path in index[key]]
    return f"no {what} in {self.show(folder)}" + (f"; {self.show(case[0])} differs in case" if case else "")

  def sound_of(self, index: Index, clip_id: str, what: str, folder: Path, wrong: list[str]) -> Path | None:
    """The sound of a clip. One without sound is wrong, or with --allow_missing_sound noted; several always are."""
    sound = self.only_match(index, clip_id, what, folder)
    if isinstance(sound, Path):
      return sound
    if clip_id not in index and self.options.allow_missing_sound:
      self.note(f"{self.show(folder)}: clips without sound", clip_id)
    elif sound not in wrong:
      wrong.append(sound + " (--allow_missing_sound takes such clips)" * (clip_id not in index))
    return None

  def in_order(self, folder: Path, scanned: Scan, annotated: int | None, original: bool,
               ) -> tuple[list[str], list[str]]:  # fmt: skip
    """Names of the pictures in the order in which they are used, and what is wrong with them.

    Source: reference.md, quirks 13 and 14. The original takes everything that a folder holds but hidden files, in string
    order, and of it as many as its list says.
    """
    folders, files, links, error = scanned
    shown, there = self.show(folder), [*files, *links]
    if error:
      return [], [f"{shown} cannot be read ({error})"]
    wrong = [f"{shown}/{name} {bad}" for name in links if (bad := self._wrong_link(folder / name))]
    names = sorted((name for name in there if name.lower().endswith(PICTURES)), key=source.natural)
    others = [*folders, *(name for name in there if not name.lower().endswith(PICTURES))]
    if not names:
      return [], [*wrong, f"{shown} holds no pictures ({first_few(others, 3) or 'nothing at all'})"]
    odd = {"something that by its extension is no picture, not used": first_few(others, 1)} | _odd_names(
      names
    )
    for what, example in odd.items():
      if example:
        self.note(f"clips with {what}", f"{shown} ({example})")
    if others and original:
      wrong.append(f"{shown} holds what is no picture, but counts in the original: {first_few(others, 3)}")
    if original:
      names.sort()
    if annotated is None or annotated == len(names):
      return names, wrong
    if original and not 0 < annotated <= len(names):
      return names, [*wrong, f"{shown} holds {count(len(names), 'picture')}, {annotated} are annotated"]
    what = "fewer frames than there are files: all files are used"
    if annotated > len(names):
      what = "more frames than there are files: all files are used, some may be missing"
    elif original:
      what = "fewer frames than there are files: the rest, last in string order, is not used"
    self.note(f"clips annotated with {what}", f"{shown} ({annotated} annotated, {len(names)} there)")
    return names[:annotated] if original else names, wrong


def _odd_names(names: Sequence[str]) -> dict[str, str]:
  """What is odd about the names of pictures, given in natural order, and an example of it; empty: it is not."""
  numbers = {name: tuple(map(int, re.findall("[0-9]+", os.path.splitext(name)[0]))) for name in names}
  first: dict[tuple[int, ...], str] = {}
  double = [(first[numbers[n]], n) for n in names if numbers[n] and first.setdefault(numbers[n], n) != n]
  unnumbered = [name for name in names if not numbers[name]]
  several = len({len(number) for number in first}) > 1
  # Of several numbers in a name, one counts the frames.
  counting = [] if several else [column for column in map(set, zip(*first, strict=True)) if len(column) > 1]
  lacking = max(counting[0]) - min(counting[0]) + 1 - len(counting[0]) if len(counting) == 1 else 0
  kinds = sorted({os.path.splitext(name)[1].lower() for name in names})
  return {
    "pictures of several file types": ", ".join(kinds) if len(kinds) > 1 else "",
    "several pictures of the same number": ", ".join(double[0]) if double else "",
    "pictures without a number among numbered ones": unnumbered[0] if first and unnumbered else "",
    "pictures that are named in different ways": f"{names[0]}, {names[-1]}" if several else "",
    "gaps in the numbers of their pictures": f"{lacking} lacking" if lacking else "",
  }


def scan(folder: str | Path) -> Scan:
  """Names in a folder without hidden ones, as the original's glob. Asks nothing about a single file: there are 800,000."""
  names: tuple[list[str], list[str], list[str]] = ([], [], [])
  folders, files, links = names
  try:
    with os.scandir(folder) as entries:
      for entry in entries:
        if not entry.name.startswith(".") and entry.name != "__MACOSX":  # .DS_Store, ._1.jpg, .git
          (links if entry.is_symlink() else folders if entry.is_dir() else files).append(entry.name)
  except OSError as error:
    return [], [], [], error.strerror or str(error)
  return *names, ""
