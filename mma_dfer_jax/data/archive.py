"""An archive as it was unpacked: its folders by name, and the files of its clips. No file of a clip is opened."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import os
from pathlib import Path

from mma_dfer_jax.data import source
from mma_dfer_jax.data.source import ClipFiles, LabelOrder, Layout, Note, Problem, as_clip_id, first_few
from mma_dfer_jax.errors import UserError, listed
from mma_dfer_jax.paths import hint

PICTURES = (".jpg", ".jpeg", ".png", ".bmp")
VIDEOS = (".mp4", ".avi", ".flv", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".3gp", ".ts",
          ".ogv")  # fmt: skip
SOUNDS = (".wav", ".mp3", ".m4a", ".aac", ".flac", ".ogg", ".oga", ".opus", ".wma", ".aif", ".aiff",
          ".au", ".caf", ".w64", ".amr", ".wv", ".tta", ".mka", ".weba")  # fmt: skip
# What a recipe says of frames.
OF_VIDEO = {"frames": "video", "frame_order": "presentation: as the video is played", "frame_count": "all"}
_MOST_SUBFOLDERS = 200  # a folder with more holds clips, and is not searched for other folders
_MOST_FOLDERS, _DEEPEST = 5000, 6  # of the search, in case it is started at the root of a disk
Index = Mapping[str, Sequence[Path]]  # paths by clip id


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(source.Options):
  follow_links: bool = source.option(False, source.LINKS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassOptions(Options):
  classes: tuple[str, ...] = source.option((), source.CLASSES)


class Archive:
  """The folders below a place by name, without looking into those that hold clips; collects problems and notes."""

  def __init__(self, raw: Path, leaves: Iterable[str], layout: str, options: Options):
    self.raw = Path(os.path.abspath(raw))
    if not self.raw.is_dir():
      words = hint(self.raw, folder=True).replace("is not there", "there is no such folder", 1)
      raise UserError(f"--raw={raw}: {words}")
    self.real, self.layout, self.options = os.path.realpath(self.raw), layout, options
    self.problems: list[Problem] = []
    self._notes: dict[tuple[str, bool], list[str]] = defaultdict(list)
    self.doubtful: set[str] = set()  # classes that clips with problems have, or may have
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
    self._notes[what, warning].extend(names)  # one line for each kind

  @property
  def bad_clips(self) -> set[str]:
    return {clip for problem in self.problems for clip in problem.clips}

  def found(self, clips: Iterable[ClipFiles], order: LabelOrder, recipe: dict[str, str], splits: Iterable[str] = ()) -> Layout:  # fmt: skip
    """What was found, without the clips that some problem concerns."""
    notes = [Note(what, tuple(dict.fromkeys(names)), warns) for (what, warns), names in self._notes.items()]
    bad, recipe = self.bad_clips, recipe | {"label_order": order.origin}
    good = [clip for clip in clips if clip.clip_id not in bad]
    problems, doubtful = list(dict.fromkeys(self.problems)), frozenset(self.doubtful)
    return Layout(*order, good, problems, recipe, notes, frozenset(splits), doubtful)

  def found_by_class(self, clips: Sequence[ClipFiles], known: LabelOrder, classes: tuple[str, ...],
                     recipe: dict[str, str], splits: Iterable[str] = ()) -> Layout:  # fmt: skip
    """What was found of the classes that --classes names, or of all known ones; the others are noted."""
    if unknown := [name for name in classes if name not in known.classes]:
      raise UserError(f"--classes: there is no {', '.join(unknown)}, only {', '.join(known.classes)}")
    order = LabelOrder(classes, "as given") if classes else known
    for clip in clips:
      if clip.label not in order.classes:
        self.note(source.left_out(clip.label), clip.clip_id)
    taken = [clip for clip in clips if clip.label in order.classes]
    there = {clip.split for clip in taken}
    if "train" not in there and (empty := [str(k) for k in source.FOLDS if f"fold{k}" not in there]):
      self.note(f"no clips in fold {', '.join(empty)}")
    return self.found(taken, order, OF_VIDEO | recipe, splits)

  def entries(self, folder: Path) -> tuple[list[str], list[str]]:
    """Names of the folders and of the files in a folder; what cannot be read or leads out of the archive is a problem."""
    folders, files, links, error = scan(folder)
    if error:
      self.problem(folder, f"cannot be read ({error})")
    for name in links:
      if wrong := self.wrong_link(folder / name):
        stem, suffix = os.path.splitext(name)
        of_clip = suffix.lower() in (*VIDEOS, *SOUNDS) or name.isdecimal()
        self.problem(folder / name, wrong, *([as_clip_id(stem)] if of_clip else []))
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
    return str(path).removeprefix(str(self.raw) + os.sep)

  def find(self, *names: str) -> Path | None:
    """The folder of the first of these names that is there, in upper or lower case; refuses several of that name."""
    for name in names:
      there = list({os.path.realpath(path): path for path in self.folders.get(name.lower(), [])}.values())
      there = [path for path in there if path.name == name] or there
      if len(there) > 1:
        raise listed(f"--raw={self.raw}: holds several folders {name}", list(map(str, there)),
                     "keep one of them there, or give a folder that holds only one")  # fmt: skip
      for path in there:
        if path.name != name:
          self.note(f"{self.show(path)}: taken for {name}, from which it differs in case")
        return path
    return None

  def unrecognised(self, missing: str, *advice: str) -> UserError:
    """The error for an archive without something that it cannot do without: what is there, and what is accepted."""
    folders, files = self.entries(self.raw)
    there = first_few([*(f"{name}/" for name in folders), *files], 12) or "nothing"
    found = [f"found: {there}", *advice, *dict.fromkeys(map(str, self.problems))]
    return listed(f"--raw={self.raw}: {missing}", found, self.layout)

  def index(self, folder: Path | None, suffixes: tuple[str, ...] = ()) -> Index:
    """What a folder holds, by clip id: files of these kinds in it and one folder below; or, without, its folders."""
    index: dict[str, list[Path]] = defaultdict(list)
    if not folder:
      return index
    folders, files = self.entries(folder)
    paths = [folder / name for name in files]
    for below in folders if suffixes else ():  # archives come in parts
      paths += [folder / below / name for name in self.entries(folder / below)[1]]
    kinds = {(): "files beside the clips", SOUNDS: "no sounds by extension", VIDEOS: "no videos by extension"}
    if others := [path.name for path in paths if path.suffix.lower() not in suffixes]:
      self.note(f"{self.show(folder)}: {kinds[suffixes]}, not used", *others)
    good = [path for path in paths if path.suffix.lower() in suffixes]
    for path in good if suffixes else map(folder.joinpath, folders):
      index[as_clip_id(path.stem if suffixes else path.name)].append(path)
    for clip_id, several in index.items() if suffixes == SOUNDS else ():
      wavs = [path for path in several if path.suffix.lower() == ".wav"]
      if len(wavs) == 1 < len(several):
        self.note(f"{self.show(folder)}: other sounds beside a .wav of the same clip, not used", clip_id)
        index[clip_id] = wavs
    return index

  def only_match(self, index: Index, clip_id: str, what: str, folder: Path, wrong: list[str], *, sound: bool = False,
                 ) -> Path | None:  # fmt: skip
    """The path of a clip; none or several add to `wrong`. With --allow_missing_sound no sound is a note."""
    paths = index.get(clip_id, ())
    if sound and not paths and self.options.allow_missing_sound:
      self.note(f"{self.show(folder)}: clips without sound", clip_id)
    elif len(paths) != 1:
      case = [self.show(path) for key in index if key.lower() == clip_id.lower() for path in index[key]]
      missing = f"no {what} in {self.show(folder)}" + (f"; {case[0]} differs in case" if case else "")
      text = f"several {what}s: {first_few(map(self.show, paths))}" if paths else missing
      if text not in wrong:
        wrong.append(text + " (--allow_missing_sound takes such clips)" * (sound and not paths))
    return paths[0] if len(paths) == 1 else None


def scan(folder: str | Path) -> tuple[list[str], list[str], list[str], str]:
  """The folders, files and links in a folder, without hidden ones, as the original's glob; and what went wrong."""
  folders, files, links = names = ([], [], [])  # type: tuple[list[str], list[str], list[str]]
  try:  # and ask nothing about a single file: there are 800,000
    with os.scandir(folder) as entries:
      for entry in entries:
        if not entry.name.startswith(".") and entry.name != "__MACOSX":  # .DS_Store, ._1.jpg, .git
          (links if entry.is_symlink() else folders if entry.is_dir() else files).append(entry.name)
  except OSError as error:
    return [], [], [], error.strerror or str(error)
  return *names, ""
