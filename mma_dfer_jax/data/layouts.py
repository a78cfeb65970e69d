"""A data set as it is handed out -> its labelled clips, and everything that is wrong with it.

`read_dfew`, `read_mafw`, `read_ravdess` and `read_cremad` look at names of files and at lists only: no picture, video or
sound is opened. What concerns single clips is collected in `Layout.problems`; what leaves no data set at all is raised.
Nothing is left out without a problem or a note that says so.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
import csv
import dataclasses
import os
from pathlib import Path
import re
from typing import NamedTuple

from mma_dfer_jax.data.faces import ARCHIVE_FACES
from mma_dfer_jax.data.labels import LABEL_ORDERS
from mma_dfer_jax.errors import UserError, listed

FOLDS = range(1, 6)
PICTURES = (".jpg", ".jpeg", ".png", ".bmp")
VIDEOS = (".mp4", ".avi", ".flv", ".mov", ".mkv", ".webm")
RAVDESS_CLASSES = (
  "neutral",
  "calm",
  "happy",
  "sad",
  "angry",
  "fear",
  "disgust",
  "surprise",
)  # by name part 3
CREMAD_CLASSES = {
  "ANG": "anger", "DIS": "disgust", "FEA": "fear", "HAP": "happy", "NEU": "neutral", "SAD": "sad",
}  # fmt: skip

DFEW_LAYOUTS = """accepted for DFEW, in this folder or a few folders below:
  Clip/clip_224x224/00001/*.jpg       all frames (frames=all)
  Clip/clip_224x224_16f/00001/*.jpg   16 frames (frames=16f)
  Clip/original/*.mp4                 videos (frames=video); their sound is used where there is no raw_wav
  raw_wav/1.wav                       sound, beside clip_224x224 or Clip
  EmoLabel_DataSplit/{train,test}(single-labeled)/set_1.csv … set_5.csv   with the columns video_name,label
or, as lists=FOLDER, files DFEW_set_1_train.txt, DFEW_set_1_test.txt … with lines `DIR COUNT LABEL`"""
MAFW_LAYOUTS = """accepted for MAFW, in this folder or a few folders below:
  clips_faces/00001/*.png             cropped faces (frames=all or faces)
  frames/00001/*.png                  whole scenes (frames=all or scenes)
  clips/00001.mp4                     videos (frames=video); their sound is used where there is no clips_wav
  clips_wav/00001.wav                 sound
  Train & Test Set/single/no_caption/set_1 … set_5/{train,test}.txt   with lines `00001.mp4 anger`
or, as lists=FOLDER, files MAFW_set_1_train_faces.txt, … with lines `DIR COUNT LABEL`"""
RAVDESS_LAYOUT = """accepted for RAVDESS: Actor_01/01-01-05-02-01-01-01.mp4 …, in this folder or a few folders below, or all
videos in one folder"""
CREMAD_LAYOUT = """accepted for CREMA-D: VideoFlash/1001_DFA_ANG_XX.flv … (or VideoMP4/*.mp4), and AudioWAV/*.wav if there"""

_MOST_SUBFOLDERS = 200  # a folder with more holds clips, and is not searched for other folders
_MOST_FOLDERS, _DEEPEST = 5000, 6  # of the search, in case it is started at the root of a disk


@dataclasses.dataclass(frozen=True)
class ClipSource:
  """One labelled clip of an archive: where its pictures and its sound are."""

  clip_id: str  # unique; the archive's own name, numbers with five digits: "00001"
  where: str  # the line or the file that names it, for messages
  label: str  # class name
  split: str  # "fold1" … "fold5", or "train" and "test"
  frames: tuple[
    Path, ...
  ]  # picture files in the order in which they are used; empty: pictures come from `video`
  video: Path | None
  sound: Path | None  # a wav, or the video file; None: the archive has none for this clip


@dataclasses.dataclass(frozen=True)
class Layout:
  """What was found: good clips, and what to say about the rest."""

  classes: tuple[str, ...]  # in label order
  class_order: str  # whose order it is
  clips: list[ClipSource]
  problems: list[str]  # each with its path; the clips concerned are not in `clips`
  recipe: dict[str, str]  # what was chosen, to be stored with the data set
  notes: list[str]  # worth saying, not wrong
  splits: frozenset[str] = frozenset()  # that are named, if perhaps without a good clip


def _by_fold(classes: Sequence[str], *rows: Sequence[int]) -> dict[str, dict[str, int]]:
  return {f"fold{k}": dict(zip(classes, row, strict=True)) for k, row in zip(FOLDS, rows, strict=True)}


# Clips per fold (as test set) and class; DFEW and MAFW counted in public lists (DFER-CLIP, MAE-DFER), which agree with
# each other. CREMA-D: MAE-DFER's folds. RAVDESS: 60 spoken clips of each actor, in the folds made here.
PUBLISHED: dict[str, dict[str, dict[str, int]]] = {
  "dfew": _by_fold(
    LABEL_ORDERS["dfew"].classes,
    (489, 379, 534, 435, 294, 29, 181),
    (489, 379, 534, 435, 294, 29, 181),
    (489, 379, 534, 435, 294, 29, 180),
    (489, 379, 534, 434, 294, 29, 180),
    (489, 378, 533, 434, 293, 29, 180),
  ),
  "mafw": _by_fold(
    LABEL_ORDERS["mafw"].classes,
    (249, 294, 228, 278, 215, 128, 125, 48, 184, 53, 37),
    (249, 294, 228, 278, 215, 128, 125, 47, 183, 53, 37),
    (248, 294, 228, 278, 214, 128, 125, 47, 183, 52, 36),
    (248, 294, 227, 278, 214, 128, 125, 47, 183, 52, 36),
    (248, 294, 227, 278, 214, 127, 125, 47, 183, 52, 36),
  ),
  "ravdess": _by_fold(RAVDESS_CLASSES, *[[4 * n] + 7 * [8 * n] for n in (5, 5, 5, 5, 4)]),
  "cremad": _by_fold(
    tuple(CREMAD_CLASSES.values()),
    (250, 250, 250, 250, 213, 250),
    (251, 251, 251, 251, 215, 251),
    (252, 252, 252, 252, 216, 252),
    (252, 252, 252, 252, 216, 252),
    (266, 266, 266, 266, 227, 266),
  ),
}


# ---- an archive: its folders, and what is said about it ----


class _Archive:
  """The folders below a place by name, without looking into those that hold clips; collects problems and notes."""

  def __init__(self, raw: Path, leaves: Iterable[str], layouts: str, follow_links: bool):
    self.raw = Path(os.path.abspath(raw))
    if not self.raw.is_dir():
      raise UserError(f"raw={raw}: {'is no folder' if self.raw.exists() else 'there is no such folder'}")
    self.real = os.path.realpath(self.raw)
    self.leaves, self.layouts, self.follow_links = frozenset(leaves), layouts, follow_links
    self.problems: list[str] = []
    self.notes: list[str] = []
    self.folders: dict[str, list[Path]] = defaultdict(list)  # by name in lower case
    self._explore()

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
        raise UserError(f"raw={self.raw}: holds more than {_MOST_FOLDERS} folders that are none of a data set; "
                        f"give the folder of the data set itself\n{self.layouts}")  # fmt: skip

  def entries(self, folder: Path) -> tuple[list[str], list[str]]:
    """Names of the folders and of the files in a folder; what cannot be read or leads out of the archive is a problem."""
    folders, files, links = _scan(folder)
    if isinstance(links, OSError):
      self.problems.append(f"{self.show(folder)}: cannot be read ({links.strerror})")
      return [], []
    for name in links:
      if problem := self.link_problem(folder / name):
        self.problems.append(problem)
      else:
        (folders if (folder / name).is_dir() else files).append(name)
    return sorted(folders), sorted(files)

  def link_problem(self, path: Path) -> str | None:
    """What is wrong with a symbolic link, or None."""
    target = os.path.realpath(path)
    if not os.path.exists(target):
      return f"{self.show(path)}: is a link to {target}, which is not there"
    if self.follow_links or target == self.real or target.startswith(self.real + os.sep):
      return None
    return f"{self.show(path)}: is a link that leads out of {self.raw}, to {target} (follow_links allows it)"

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
        raise listed(f"raw={self.raw}: holds several folders {name}", [str(path) for path in exact or there],
                     "leave one there, or give a folder that holds one only")  # fmt: skip
      if there:
        path = (exact or there)[0]
        if not exact:
          self.notes.append(f"{self.show(path)}: taken for {name}, from which it differs in case")
        return path
    return None

  def unrecognised(self, missing: str) -> UserError:
    """The error for an archive without something that it cannot do without: says what is there and what is accepted."""
    folders, files = self.entries(self.raw)
    there = [f"{name}/" for name in folders] + files
    found = _some(there, 12) if there else "nothing"
    return listed(
      f"raw={self.raw}: {missing}", [f"found: {found}", *dict.fromkeys(self.problems)], self.layouts
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


def _some(names: Iterable[object], most: int = 5) -> str:
  """The first few of many names, and how many there are."""
  texts = [str(name) for name in names]
  more = f" … ({len(texts)} in all)" if len(texts) > most else ""
  return ", ".join(texts[:most]) + more


def _count(number: int, one: str, many: str = "") -> str:
  return f"{number} {one if number == 1 else many or one + 's'}"


def _clip_id(name: str) -> str:
  """A clip's name with or without leading zeros -> the same id."""
  return f"{int(name):05d}" if re.fullmatch("[0-9]+", name) else name


def _natural(name: str) -> tuple[list[tuple[int, int, str]], str]:
  """Sorts file names as people do: 2 before 10."""
  parts = re.split("([0-9]+)", name)  # text and digits take turns
  return [(0, int(part), part) if i % 2 else (1, 0, part) for i, part in enumerate(parts) if part], name


# ---- lists: which clip is in which fold, and its label as written ----


class _Row(NamedTuple):
  """One line of a list."""

  where: str
  clip_id: str
  written: str  # label
  annotated: int | None = None  # number of frames
  folder: str = ""  # that the list says the clip is in


@dataclasses.dataclass
class _List:
  """One list file; `kind` is its form: csv, counted (`DIR COUNT LABEL`), plain (`NAME LABEL`), or "" if unreadable."""

  path: Path
  fold: int
  part: str  # train or test
  kind: str = ""
  rows: list[_Row] = dataclasses.field(default_factory=list)


_COUNTED = re.compile(r"(.*\S)\s+(-?\d+)\s+(-?\d+)")
_PLAIN = re.compile(r"([^\s,;]+)[\s,;]+([^\s,;]+)")
_FORMS = {
  "csv": "csv files with the columns video_name,label",
  "counted": "lines `DIR COUNT LABEL`",
  "plain": "lines `00001.mp4 LABEL`",
}


def _fold_and_part(path: Path) -> tuple[int | None, str | None]:
  """What the names of a list file and of its folders say, the innermost first."""
  fold = part = None
  for name in reversed([*path.parts[:-1], path.stem]):
    parts = set(re.findall("(?<![a-z])train|(?<![a-z])test", name.lower()))
    part = part or (parts.pop() if len(parts) == 1 else None)
    number = re.search(r"(?:set|fold|split)[ _-]*(\d+)(?!\d)|^(\d+)$", name.lower())
    if fold is None and number:
      fold = int(number[1] or number[2])
  return fold, part


def _read_lists(folder: Path, data_set: str, kinds: Sequence[str], archive: _Archive) -> list[_List]:
  """All lists of a data set in a folder, at most one for each fold and part.

  Raises:
    UserError: if there is none at all.
  """
  files = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in (".csv", ".txt")]
  files = [path for path in files if not path.name.startswith(".") and "__MACOSX" not in path.parts]
  others = [other for other in ("dfew", "mafw", "ferv39k") if other != data_set]
  lists: dict[tuple[int, str], _List] = {}
  unused = []
  for path in files:
    name = path.relative_to(folder)
    fold, part = _fold_and_part(name)
    if fold is None or part is None or any(other in path.name.lower() for other in others):
      unused.append(str(name))
    elif fold not in FOLDS:
      archive.problems.append(f"{archive.show(path)}: there is no fold {fold}, there are 5")
    elif (fold, part) not in lists:
      lists[fold, part] = _List(path, fold, part)
    elif path.read_bytes() != lists[fold, part].path.read_bytes():
      first = archive.show(lists[fold, part].path)
      archive.problems.append(f"{archive.show(path)}: is another {part} list of fold {fold}, beside {first}")
  if not lists:
    names = _some([path.relative_to(folder) for path in files]) or "no .csv and no .txt file"
    raise listed(
      f"{folder}: holds no list of a fold of {data_set.upper()}", [f"found: {names}"], archive.layouts
    )
  if unused:
    archive.notes.append(f"{folder}: no lists of folds of {data_set.upper()}, not used: {_some(unused)}")
  for key in sorted(lists):
    _read_list(lists[key], kinds, archive)
  return [lists[key] for key in sorted(lists)]


def _read_list(found: _List, kinds: Sequence[str], archive: _Archive) -> None:
  """Fills a list with its rows; if it cannot be read at all, its kind stays empty."""
  shown = archive.show(found.path)
  try:
    lines = found.path.read_bytes().decode("utf-8-sig").splitlines()
  except OSError as error:
    archive.problems.append(f"{shown}: cannot be read ({error.strerror})")
    return
  except UnicodeDecodeError:
    archive.problems.append(f"{shown}: must be saved as UTF-8")
    return
  first = next((line for line in lines if line.strip()), "")
  if found.path.suffix.lower() == ".csv":
    kind = "csv"
  else:
    kind = "counted" if _COUNTED.fullmatch(first.strip()) else "plain"
  if not first:
    archive.problems.append(f"{shown}: is empty")
  elif kind not in kinds:
    accepted = " or ".join(_FORMS[kind] for kind in kinds)
    archive.problems.append(f"{shown}: begins with {first!r}; accepted are {accepted}")
  elif kind == "csv":
    _read_csv(found, lines, shown, archive)
  else:
    found.kind = kind
    for number, line in enumerate(lines, 1):
      if line.strip():
        _read_line(found, line.strip(), f"{shown} line {number}", archive)


def _read_csv(found: _List, lines: list[str], shown: str, archive: _Archive) -> None:
  """Reads video_name,label; a semicolon or a tab in place of the comma is as clear, and noted."""
  for delimiter in ",;\t":
    header = [name.strip().lower() for name in next(csv.reader(lines[:1], delimiter=delimiter))]
    if header.count("video_name") == header.count("label") == 1:
      break
  else:
    archive.problems.append(
      f"{shown}: must begin with the line video_name,label (comma, semicolon or tab); it begins with {lines[0]!r}"
    )
    return
  found.kind = "csv"
  if delimiter != ",":
    archive.notes.append(f"{shown}: columns are separated by {delimiter!r}, not by a comma")
  if extra := set(header) - {"video_name", "label"}:
    archive.notes.append(f"{shown}: columns that are not used: {', '.join(sorted(extra))}")
  reader = csv.reader(lines[1:], delimiter=delimiter)
  for values in reader:
    where = f"{shown} line {reader.line_num + 1}"
    if not any(value.strip() for value in values):
      continue
    if len(values) != len(header):
      archive.problems.append(
        f"{where}: {_count(len(values), 'value')} in {len(header)} columns: {delimiter.join(values)!r}"
      )
      continue
    name, label = (values[header.index(column)].strip() for column in ("video_name", "label"))
    clip = re.fullmatch(rf"([0-9]+)({'|'.join(re.escape(suffix) for suffix in VIDEOS)})?", name)
    if clip:
      found.rows.append(_Row(where, _clip_id(clip[1]), label))
    else:
      archive.problems.append(f"{where}: {name!r} is not the number of a clip")


def _read_line(found: _List, line: str, where: str, archive: _Archive) -> None:
  """Reads a line of a text list from the right: a path may hold blanks."""
  match = (_COUNTED if found.kind == "counted" else _PLAIN).fullmatch(line)
  if not match:
    archive.problems.append(f"{where}: {line!r} is not of the form of the other {_FORMS[found.kind]}")
    return
  if found.kind == "plain":
    name = os.path.splitext(match[1])[0] if match[1].lower().endswith(VIDEOS) else match[1]
    found.rows.append(_Row(where, _clip_id(name), match[2]))
    return
  *folders, name = re.split(r"[/\\]", match[1].rstrip("/\\"))  # made on any system
  found.rows.append(_Row(where, _clip_id(name), match[3], int(match[2]), "".join(folders[-1:])))


def _check_numbers(lists: Sequence[_List], first: int, classes: Sequence[str]) -> None:
  """Refuses lists that count their labels from another number: all of them would be one off.

  Raises:
    UserError: if some label is too large and the smallest is never used, or the other way round.
  """
  texts = {row.written for found in lists for row in found.rows}
  numbers = {int(text) for text in texts if re.fullmatch("-?[0-9]+", text)}
  if not numbers:
    return
  last = first + len(classes) - 1
  if (last + 1 in numbers and first not in numbers) or (first - 1 in numbers and last not in numbers):
    raise UserError(
      f"{lists[0].path.parent}: labels go from {min(numbers)} to {max(numbers)}; these lists must count "
      f"{', '.join(classes)} from {first} to {last}"
    )


class _Place(NamedTuple):
  """Where a clip belongs."""

  row: _Row
  label: str
  fold: int


def _places(
  lists: Sequence[_List], label_of: Callable[[_List, str], str | None], archive: _Archive
) -> list[_Place]:
  """The clips of the five test lists, each in one fold and with one label, in the order of the lists.

  Args:
    lists: as read; of the train lists only what contradicts the test lists matters.
    label_of: class name of a label as written in a list, or None.
    archive: gets the problems; a clip that one concerns is left out.
  """
  problems = archive.problems
  places: dict[str, _Place] = {}
  bad: set[str] = set()
  for found in (found for found in lists if found.part == "test"):
    for row in found.rows:
      label = label_of(found, row.written)
      if label is None:
        problems.append(f"{row.where}: {row.written!r} is not the label of a class")
        bad.add(row.clip_id)
      elif row.clip_id in places:
        before = places[row.clip_id]
        also = f", with the label {before.label} there and {label} here" if label != before.label else ""
        problems.append(f"{row.where}: clip {row.clip_id} is in {before.row.where} already{also}")
        bad.add(row.clip_id)
      else:
        places[row.clip_id] = _Place(row, label, found.fold)
  missing = [k for k in FOLDS if not any(found.part == "test" and found.fold == k for found in lists)]
  if missing:
    there = _some(archive.show(found.path) for found in lists)
    problems.append(f"no list of the test set of fold {', '.join(map(str, missing))}; found {there}")
  bad |= _contradictions(lists, label_of, places, archive)
  return [place for clip_id, place in places.items() if clip_id not in bad]


def _contradictions(
  lists: Sequence[_List],
  label_of: Callable[[_List, str], str | None],
  places: Mapping[str, _Place],
  archive: _Archive,
) -> set[str]:
  """Clips about which a train list says something else than the test lists: training set k is all other folds."""
  bad: set[str] = set()
  readable = [found for found in lists if found.kind]
  complete = {found.fold for found in readable if found.part == "test"} == set(FOLDS)
  tested = {row.clip_id for found in readable if found.part == "test" for row in found.rows}
  trains = {found.fold: found for found in readable if found.part == "train"}
  if unchecked := [k for k in FOLDS if k not in trains]:
    archive.notes.append(
      f"no list of the training set of fold {', '.join(map(str, unchecked))}: not compared"
    )
  for k, found in sorted(trains.items()):
    named = Counter(row.clip_id for row in found.rows)
    shown = archive.show(found.path)
    twice = [clip_id for clip_id, times in named.items() if times > 1]
    leaked = [clip_id for clip_id in named if clip_id in places and places[clip_id].fold == k]
    for row in found.rows:
      place = places.get(row.clip_id)
      label = label_of(found, row.written)
      if place and label != place.label:
        said = label or f"{row.written!r}, which is no class"
        archive.problems.append(
          f"{row.where}: clip {row.clip_id} is {said}, but {place.label} in {place.row.where}"
        )
        bad.add(row.clip_id)
    unknown = [clip_id for clip_id in named if clip_id not in tested] if complete else []
    lacking = [c for c, place in places.items() if place.fold != k and c not in named] if complete else []
    for clips, wrong in (
      (twice, "named more than once"),
      (leaked, f"also in the test set of fold {k}"),
      (unknown, "in no test set"),
      (lacking, "missing, though in the test set of another fold"),
    ):
      if clips:
        archive.problems.append(f"{shown}: {_count(len(clips), 'clip')} {wrong}: {_some(clips)}")
        bad.update(clips)
  return bad


# ---- pictures, videos and sounds of clips ----


class _Pictures(NamedTuple):
  """The files in the folder of a clip."""

  names: list[str]
  others: list[str]  # by extension no picture, or folders
  links: list[str]
  error: str = ""


def _pictures(folder: Path) -> _Pictures:
  folders, files, links = _scan(folder)
  if isinstance(links, OSError):
    return _Pictures([], [], [], links.strerror or str(links))
  names: list[str] = []
  others = folders
  for name in [*files, *links]:
    (names if name.lower().endswith(PICTURES) else others).append(name)
  return _Pictures(names, others, links)


def _index(folder: Path, archive: _Archive, suffixes: Sequence[str] = ()) -> dict[str, list[Path]]:
  """What a folder holds, by clip id: files of these kinds in it and one folder below; or, without, its folders."""
  index: dict[str, list[Path]] = defaultdict(list)
  folders, files = archive.entries(folder)
  if not suffixes:
    if files:
      archive.notes.append(f"{archive.show(folder)}: files beside the clips, not used: {_some(files)}")
    for name in folders:
      index[_clip_id(name)].append(folder / name)
    return index
  paths = [folder / name for name in files]
  for below in folders:  # archives come in parts
    paths += [folder / below / name for name in archive.entries(folder / below)[1]]
  unused = [path.name for path in paths if path.suffix.lower() not in suffixes]
  if unused:
    archive.notes.append(
      f"{archive.show(folder)}: by extension not {' or '.join(suffixes)}, not used: {_some(unused)}"
    )
  for path in paths:
    if path.suffix.lower() in suffixes:
      index[_clip_id(path.stem)].append(path)
  return index


def _one(
  index: Mapping[str, Sequence[Path]], clip_id: str, what: str, folder: Path, archive: _Archive
) -> Path | str:
  """The path of a clip, or what is wrong: none or several."""
  paths = index.get(clip_id, ())
  if len(paths) == 1:
    return paths[0]
  if paths:
    return f"several {what}s: {_some(archive.show(path) for path in paths)}"
  case = [path for key in index if key.lower() == clip_id.lower() for path in index[key]]
  return f"no {what} in {archive.show(folder)}" + (
    f"; {archive.show(case[0])} differs in case" if case else ""
  )


@dataclasses.dataclass(frozen=True)
class _Media:
  """Where the pictures and the sounds of all clips are; an index is None where the archive has no such folder."""

  pictures: Path | None  # folder of the clips' folders; None: pictures come from the videos
  videos: Path | None
  sounds: Path | None  # folder of wav files, or `videos`
  reference: bool  # frames in string order, as many as annotated
  missing_sound: str  # "problem" or "note"


def _sources(places: Sequence[_Place], media: _Media, archive: _Archive) -> list[ClipSource]:
  """The clips whose pictures and sound are there; what is wrong with the others becomes a problem each."""
  folders = _index(media.pictures, archive) if media.pictures else {}
  videos = _index(media.videos, archive, VIDEOS) if media.videos else {}
  sounds = videos if media.sounds == media.videos else {}
  if media.sounds and media.sounds != media.videos:
    sounds = _index(media.sounds, archive, (".wav",))
  clips, counts, silent = [], _Counts(media.reference), []
  looked = folders if media.pictures else videos
  home = media.pictures or media.videos or archive.raw
  what = "folder" if media.pictures else "video"
  found = [_one(looked, place.row.clip_id, what, home, archive) for place in places]
  with ThreadPoolExecutor(8) as pool:  # a network disk answers several at once
    contents = list(
      pool.map(lambda path: _pictures(path) if media.pictures and isinstance(path, Path) else None, found)
    )
  for place, path, content in zip(places, found, contents, strict=True):
    clip_id = place.row.clip_id
    wrong = [path] if isinstance(path, str) else []
    names: list[str] = []
    if content and isinstance(path, Path):
      names, wrong = _ordered(path, content, place.row.annotated, counts, archive)
    sound: Path | None = None
    if media.sounds:
      there = _one(sounds, clip_id, "video" if sounds is videos else "wav", media.sounds, archive)
      if isinstance(there, Path):
        sound = there
      elif clip_id in sounds or media.missing_sound == "problem":
        wrong.append(there)
      else:
        silent.append(clip_id)
    archive.problems += [f"{place.row.where}: clip {clip_id}: {problem}" for problem in wrong]
    if not wrong and isinstance(path, Path):
      frames = tuple(path / name for name in names)
      video = None if media.pictures else path
      clips.append(
        ClipSource(clip_id, place.row.where, place.label, f"fold{place.fold}", frames, video, sound)
      )
  archive.notes += counts.notes
  if silent and media.sounds:
    archive.notes.append(
      f"{archive.show(media.sounds)}: {_count(len(silent), 'clip')} without sound: {_some(silent)}"
    )
  if extra := len(looked.keys() - {place.row.clip_id for place in places}):
    archive.notes.append(
      f"{archive.show(home)}: {_count(extra, 'clip')} not used: in no list, or with a problem of the lists"
    )
  return clips


class _Counts:
  """What is noted about the frames of many clips, in a line for each kind."""

  def __init__(self, reference: bool):
    self.reference = reference
    self.fewer: list[str] = []
    self.more: list[str] = []
    self.mixed: list[str] = []
    self.others: list[str] = []

  @property
  def notes(self) -> list[str]:
    kept = "the rest, last in string order, is not used" if self.reference else "all files are used"
    kinds = (
      (self.fewer, f"annotated with fewer frames than there are files: {kept}"),
      (self.more, "annotated with more frames than there are files: all files are used, some may be missing"),
      (self.mixed, "with pictures of several file types"),
      (self.others, "with something that by its extension is no picture, not used"),
    )
    return [f"{_count(len(clips), 'clip')} {what}: {_some(clips)}" for clips, what in kinds if clips]


def _ordered(
  folder: Path, content: _Pictures, count: int | None, counts: _Counts, archive: _Archive
) -> tuple[list[str], list[str]]:
  """Names of the pictures in the order in which they are used, and what is wrong with them.

  Source: reference.md, quirks 13 and 14. The original takes everything that a folder holds but hidden files, in string
  order, and of it as many as its list says.
  """
  shown, names = archive.show(folder), content.names
  if content.error:
    return [], [f"{shown} cannot be read ({content.error})"]
  wrong = [problem for name in content.links if (problem := archive.link_problem(folder / name))]
  if not names:
    return [], [*wrong, f"{shown} holds no pictures ({_some(content.others, 3) or 'nothing at all'})"]
  if content.others:
    counts.others.append(f"{shown} ({_some(content.others, 1)})")
    if counts.reference:
      wrong.append(
        f"{shown} holds what is no picture, but counts in the original: {_some(content.others, 3)}"
      )
  if len({os.path.splitext(name)[1].lower() for name in names}) > 1:
    counts.mixed.append(shown)
  if counts.reference:
    names = sorted(names)
  elif all(os.path.splitext(name)[0].isdecimal() for name in names):  # faster
    names = sorted(names, key=lambda name: (int(os.path.splitext(name)[0]), name))
  else:
    names = sorted(names, key=_natural)
  if count is None or count == len(names):
    return names, wrong
  numbers = f"{shown} ({count} annotated, {len(names)} there)"
  if counts.reference and not 0 < count <= len(names):
    return names, [*wrong, f"{shown} holds {_count(len(names), 'picture')}, {count} are annotated"]
  (counts.fewer if count < len(names) else counts.more).append(numbers)
  return names[:count] if counts.reference else names, wrong


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
  if value not in choices:
    raise UserError(f"{name}={value}: choose one of {', '.join(choices)}")


def _frame_recipe(frames: str, reference: bool, counted: bool) -> dict[str, str]:
  """How pictures are taken, in words that are stored with the data set."""
  if frames == "video":
    return {"frames": "video", "frame_order": "presentation: as the video is played", "frame_count": "all"}
  count = "as annotated in the lists" if reference and counted else "all files"
  order = "string: 10.jpg before 2.jpg, as the original" if reference else "natural: 2.jpg before 10.jpg"
  cut = {} if frames == "scenes" else ARCHIVE_FACES
  return {"frames": frames, "frame_order": order, "frame_count": count} | cut


def _choose_sound(
  wavs: Path | None, videos: Path | None, names: str, allow_missing_sound: bool, archive: _Archive
) -> tuple[Path | None, str]:
  """The folder that sounds come from, for all clips alike, and its name in the recipe."""
  folder = wavs or videos
  if folder:
    return folder, f"{'wav files of' if wavs else 'videos of'} {folder.name}"
  missing = f"{archive.raw}: there is no sound: no folder {names}"
  (archive.notes if allow_missing_sound else archive.problems).append(missing)
  return None, "none"


# ---- DFEW and MAFW ----


def read_dfew(
  raw: Path,
  *,
  frames: str = "all",
  lists: Path | None = None,
  recipe: str = "default",
  allow_missing_sound: bool = False,
  follow_links: bool = False,
) -> Layout:
  """DFEW: fold k is the test set of fold k; the training sets must be the other folds.

  Args:
    raw: the folder DFEW-part2, one above it, or Clip in it.
    frames: all (clip_224x224), 16f (clip_224x224_16f), or video (original).
    lists: folder with lists other than those of EmoLabel_DataSplit: csv files of the same form, or text files with
      lines `DIR COUNT LABEL` and labels from 0, of which the last part of DIR is looked up in `raw`.
    recipe: default (frames in natural order, all of them) or reference (string order, as many as the lists say).
    allow_missing_sound: take clips without sound, noting them.
    follow_links: take what symbolic links that lead out of `raw` lead to.
  Returns:
    the clips; sound is taken from raw_wav for all, or where there is no such folder, from the original videos.
  Raises:
    UserError: if there are no such folders or lists, or all labels are off by one.
  """
  _check_choice("frames", frames, ("all", "16f", "video"))
  _check_choice("recipe", recipe, ("default", "reference"))
  if recipe == "reference" and frames == "video":
    raise UserError("recipe=reference is an order of picture files; with frames=video there are none")
  leaves = (
    "clip_224x224",
    "clip_224x224_16f",
    "clip_224x224_avi",
    "original",
    "raw_wav",
    "emolabel_datasplit",
  )
  home = Path(os.path.abspath(raw))
  if home.name.lower() == "clip":
    home = home.parent  # where the lists lie
  archive = _Archive(home, leaves, DFEW_LAYOUTS, follow_links)
  order = LABEL_ORDERS["dfew"]
  read = _read_lists(
    _list_folder(lists, archive.find("EmoLabel_DataSplit"), archive), "dfew", ("csv", "counted"), archive
  )
  for kind, first in (("csv", 1), ("counted", 0)):
    _check_numbers([found for found in read if found.kind == kind], first, order.classes)

  def label_of(found: _List, written: str) -> str | None:
    return _numbered(written, 1 if found.kind == "csv" else 0, order.classes)

  name = {"all": "clip_224x224", "16f": "clip_224x224_16f"}.get(frames)
  pictures = (archive.find(name) or _folder_of_lists(read, archive)) if name else None
  videos = archive.find("original")
  if not (pictures or (frames == "video" and videos)):
    raise archive.unrecognised(f"no folder {name or 'original'}, which frames={frames} needs")
  _check_folder_of_lists(read, frames, {"clip_224x224": "all", "clip_224x224_16f": "16f"})
  wavs = archive.find("raw_wav") if pictures else None
  sounds, sound = _choose_sound(wavs, videos, "raw_wav or original", allow_missing_sound, archive)
  media = _Media(pictures, videos if not (pictures and wavs) else None, sounds, recipe == "reference",
                 "note" if allow_missing_sound else "problem")  # fmt: skip
  return _layout(
    read, label_of, media, frames, sound, order.classes, order.origin, allow_missing_sound, archive
  )


def read_mafw(
  raw: Path,
  *,
  frames: str = "all",
  lists: Path | None = None,
  labels: str = "mafw",
  numbers: str | None = None,
  recipe: str = "default",
  allow_missing_sound: bool = False,
  follow_links: bool = False,
) -> Layout:
  """MAFW, the eleven single emotions: fold k is the test set of fold k; the training sets must be the other folds.

  Args:
    raw: the folder with clips_faces, frames or clips, or one above it.
    frames: faces (clips_faces), scenes (frames), all (faces if there, else scenes), or video (clips).
    lists: folder with lists other than those of `Train & Test Set`: of the same form, or with lines `DIR COUNT LABEL`.
    labels: order of `Layout.classes`: mafw (MMA-DFER's) or mafw-official. The name of a clip's label is the same in both.
    numbers: the order by which lists count that have numbers in place of names, mafw or mafw-official. Without it, files
      MAFW_set_k_… count as MMA-DFER does, files set_k/{train,test}.txt officially, and others are refused.
    recipe: default (frames in natural order, all of them) or reference (string order, as many as the lists say: one
      less than there are, so that the last in string order is never used).
    allow_missing_sound: take the clips though there is no folder with sound at all. Single clips without a wav are
      noted and taken, as in the original.
    follow_links: take what symbolic links that lead out of `raw` lead to.
  Raises:
    UserError: if there are no such folders or lists, or the numbers of the lists cannot be what they should.
  """
  _check_choice("frames", frames, ("all", "faces", "scenes", "video"))
  _check_choice("recipe", recipe, ("default", "reference"))
  _check_choice("labels", labels, ("mafw", "mafw-official"))
  _check_choice("numbers", numbers or "mafw", ("mafw", "mafw-official"))
  if recipe == "reference" and (frames == "video" or lists is None):
    raise UserError(
      "recipe=reference takes as many picture files as the original's lists say: give lists=…, and no frames=video"
    )
  leaves = ("clips_faces", "faces", "frames", "clips", "clips_wav", "compound")
  archive = _Archive(raw, leaves, MAFW_LAYOUTS, follow_links)
  official = [path for path in archive.folders["no_caption"] if path.parent.name.lower() == "single"]
  if len(official) > 1 and lists is None:
    raise listed(
      f"raw={archive.raw}: holds several sets of lists", list(map(str, official)), "say which: lists=…"
    )
  read = _read_lists(
    _list_folder(lists, next(iter(official), None), archive), "mafw", ("plain", "counted"), archive
  )
  if recipe == "reference" and any(found.kind == "plain" for found in read):
    raise UserError(f"recipe=reference needs lists with {_FORMS['counted']}; {lists} has others")
  order = _order_of_numbers(read, numbers, archive)

  def label_of(found: _List, written: str) -> str | None:
    if found.kind == "plain" and written.lower() in LABEL_ORDERS["mafw"].classes:
      return written.lower()
    return _numbered(written, 0, LABEL_ORDERS[order].classes) if order else None

  faces = archive.find("clips_faces", "faces") if frames in ("all", "faces") else None
  scenes = archive.find("frames") if frames == "scenes" or (frames == "all" and not faces) else None
  pictures, videos = faces or scenes, archive.find("clips")
  if frames == "all" and not pictures:
    pictures = _folder_of_lists(read, archive)
  if not (pictures or (frames == "video" and videos)):
    needed = {"faces": "clips_faces", "scenes": "frames", "video": "clips"}.get(
      frames, "clips_faces or frames"
    )
    raise archive.unrecognised(f"no folder {needed}, which frames={frames} needs")
  if scenes:
    archive.notes.append(
      f"{archive.show(scenes)}: whole scenes; the published results are from cropped faces"
    )
  elif frames == "all" and faces and "frames" in archive.folders:
    archive.notes.append(f"{archive.show(faces)}: chosen; frames=scenes takes the whole scenes instead")
  kind = "faces" if faces else "scenes" if scenes else frames
  _check_folder_of_lists(read, kind, {"clips_faces": "faces", "faces": "faces", "frames": "scenes"})
  wavs = archive.find("clips_wav")
  sounds, sound = _choose_sound(wavs, videos, "clips_wav or clips", allow_missing_sound, archive)
  media = _Media(pictures, videos if not (pictures and wavs) else None, sounds, recipe == "reference", "note")
  chosen = LABEL_ORDERS[labels]
  return _layout(
    read, label_of, media, kind, sound, chosen.classes, chosen.origin, allow_missing_sound, archive
  )


def _layout(
  lists: Sequence[_List],
  label_of: Callable[[_List, str], str | None],
  media: _Media,
  frames: str,
  sound: str,
  classes: tuple[str, ...],
  origin: str,
  allow_missing_sound: bool,
  archive: _Archive,
) -> Layout:
  """Lists and media put together."""
  places = _places(lists, label_of, archive)
  clips = _sources(places, media, archive)
  if media.sounds is None and not allow_missing_sound:
    clips = []  # that there is no sound at all is one problem, not one for each
  counted = any(found.kind == "counted" for found in lists)
  forms = " and ".join(sorted({_FORMS[found.kind] for found in lists if found.kind}))
  facts = {"label_order": origin, "sound": sound, "folds": f"test set k of the lists, {forms}"}
  return Layout(
    classes,
    origin,
    clips,
    list(dict.fromkeys(archive.problems)),
    _frame_recipe(frames, media.reference, counted) | facts,
    list(dict.fromkeys(archive.notes)),
  )


def _list_folder(given: Path | None, own: Path | None, archive: _Archive) -> Path:
  if given and not given.is_dir():
    raise UserError(
      f"lists={given}: is no folder; give the one that holds the lists of all folds\n{archive.layouts}"
    )
  if not (given or own):
    raise archive.unrecognised("there are no lists of folds")
  return given or own  # type: ignore[return-value]


def _numbered(written: str, first: int, classes: Sequence[str]) -> str | None:
  number = int(written) - first if re.fullmatch("[0-9]+", written) else -1
  return classes[number] if 0 <= number < len(classes) else None


def _folder_of_lists(lists: Sequence[_List], archive: _Archive) -> Path | None:
  """The folder, under whatever name, in which the lists say that the clips are."""
  names = {row.folder for found in lists for row in found.rows if row.folder}
  folder = archive.find(names.pop()) if len(names) == 1 else None
  if folder:
    archive.notes.append(
      f"{archive.show(folder)}: pictures are taken from here, as the lists name this folder"
    )
  return folder


def _check_folder_of_lists(lists: Sequence[_List], frames: str, known: Mapping[str, str]) -> None:
  """Refuses lists made for other pictures than those chosen: their counts would be wrong.

  Raises:
    UserError: if so.
  """
  said = {known.get(row.folder.lower()) for found in lists for row in found.rows} - {None}
  if frames in known.values() and said and said != {frames}:
    raise UserError(
      f"{lists[0].path.parent}: the lists are of frames={', '.join(map(str, said))}, but frames={frames} was chosen"
    )


def _order_of_numbers(lists: Sequence[_List], numbers: str | None, archive: _Archive) -> str | None:
  """The order by which the labels of MAFW lists count; None if all are names.

  Raises:
    UserError: if nothing tells it, or the published numbers of clips belong to the other order.
  """
  with_numbers = [found for found in lists if any(row.written.lstrip("-").isdecimal() for row in found.rows)]
  if not with_numbers:
    return None
  said = {found.path: _order_by_name(found) for found in with_numbers}
  unknown = [str(path) for path, order in said.items() if order is None]
  if not numbers and (unknown or len(set(said.values())) > 1):
    raise listed(
      "MAFW has two label orders in circulation, and the names of these lists do not tell by which they count",
      unknown or [f"{path}: {order}" for path, order in said.items()],
      "say numbers=mafw if 0 is happiness (MMA-DFER, DFER-CLIP), numbers=mafw-official if 0 is anger (MAE-DFER)",
    )
  order = numbers or next(iter(said.values()))
  assert order is not None
  if set(said.values()) - {None, order}:
    archive.notes.append(f"numbers={order} was given; by their names the lists would count otherwise")
  _check_numbers(with_numbers, 0, LABEL_ORDERS[order].classes)
  for found in with_numbers:
    counts = Counter(row.written for row in found.rows)
    for other in {"mafw", "mafw-official"} - {order}:
      published = PUBLISHED["mafw"][f"fold{found.fold}"]
      if found.part == "test" and counts == {
        str(i): published[name] for i, name in enumerate(LABEL_ORDERS[other].classes)
      }:
        raise UserError(f"{found.path}: taken to count by the order {order}, but its numbers of clips are those of "
                        f"the order {other}; say numbers={other}")  # fmt: skip
  return order


def _order_by_name(found: _List) -> str | None:
  if found.kind == "counted" and re.match(r"mafw_set_?\d", found.path.name.lower()):
    return "mafw"
  if found.kind == "plain" and re.fullmatch(r"set_?\d", found.path.parent.name.lower()):
    return "mafw-official"
  return None


# ---- RAVDESS and CREMA-D: everything is in the names of the files ----


def _acted(
  archive: _Archive, clips: list[ClipSource], classes: Sequence[str], known: Sequence[str], origin: str,
  facts: dict[str, str],
) -> Layout:  # fmt: skip
  """Puts clips together whose labels are in their names; those of classes that were not asked for are noted."""
  if unknown := [name for name in classes if name not in known]:
    raise UserError(f"classes={','.join(classes)}: there is no {', '.join(unknown)}, only {', '.join(known)}")
  left_out = Counter(clip.label for clip in clips if clip.label not in (classes or known))
  archive.notes += [f"{_count(number, 'clip')} of the class {label} left out, it is not among the classes given"
                    for label, number in left_out.items()]  # fmt: skip
  chosen = [clip for clip in clips if clip.label not in left_out]
  if empty := [k for k in FOLDS if not any(clip.split in (f"fold{k}", "train") for clip in chosen)]:
    archive.notes.append(f"no clips in fold {', '.join(map(str, empty))}")
  order = "as given" if classes else origin
  recipe = _frame_recipe("video", False, False) | {"label_order": order} | facts
  return Layout(
    tuple(classes or known), order, chosen, list(dict.fromkeys(archive.problems)), recipe, archive.notes
  )


def read_ravdess(
  raw: Path, *, classes: Sequence[str] = (), song: bool = False, follow_links: bool = False
) -> Layout:
  """RAVDESS: clips with picture and sound; fold = (actor - 1) mod 5 + 1, so that no actor is in two folds.

  Args:
    raw: the folder of Actor_01 …, one above it, or a folder with all videos.
    classes: those to take, in label order; all eight otherwise, calm among them.
    song: take sung clips too.
    follow_links: take what symbolic links that lead out of `raw` lead to.
  Returns:
    five folds; if all actors fall in one, "train" and "test" by statement ("Kids are …" and "Dogs are …").
  Raises:
    UserError: if there are no videos with RAVDESS names, or no such classes.
  """
  archive = _Archive(raw, (), RAVDESS_LAYOUT, follow_links)
  left_out: Counter[str] = Counter()
  others: list[str] = []
  found: dict[str, ClipSource] = {}
  statements: dict[str, int] = {}
  twice: set[str] = set()
  for path in _files_everywhere(archive):
    shown = archive.show(path)
    if path.suffix.lower() not in VIDEOS:
      others.append(shown)
      continue
    parts = [int(part) for part in path.stem.split("-") if re.fullmatch("[0-9]{2}", part)]
    if len(parts) != 7 or len(path.stem) != 20 or not _ravdess_parts_are_known(parts):
      archive.problems.append(f"{shown}: is not a RAVDESS name, such as 01-01-05-02-01-01-01.mp4")
      continue
    modality, channel, emotion, _, statement, _, actor = parts
    folder = re.search(r"actor_?(\d+)$", path.parent.name.lower())
    if folder and int(folder[1]) != actor:
      archive.problems.append(f"{shown}: is of actor {actor} by its name")
    elif modality != 1:
      left_out[
        "video-only (02), of which the ones with sound (01) are taken" if modality == 2 else "sound-only (03)"
      ] += 1
    elif channel == 2 and not song:
      left_out["sung (song=True takes them)"] += 1
    elif path.stem in found:
      archive.problems.append(f"{shown}: is {found[path.stem].where} already")
      twice.add(path.stem)
    else:
      split = f"fold{(actor - 1) % 5 + 1}"
      statements[path.stem] = statement
      found[path.stem] = ClipSource(path.stem, shown, RAVDESS_CLASSES[emotion - 1], split, (), path, path)
  if not found:
    raise archive.unrecognised("there are no RAVDESS videos with picture and sound (01-….mp4)")
  archive.notes += [f"{_count(number, 'clip')} left out: {kind}" for kind, number in left_out.items()]
  if others:
    archive.notes.append(f"no videos by extension, not used: {_some(others)}")
  clips = [clip for clip in found.values() if clip.clip_id not in twice]
  rule = "fold = (actor - 1) mod 5 + 1: no actor is in two folds"
  if len({clip.split for clip in clips}) == 1:
    rule = "train: statement 1 (kids), test: statement 2 (dogs), as all actors fall in one fold: not speaker-independent"
    splits = {1: "train", 2: "test"}
    clips = [dataclasses.replace(clip, split=splits[statements[clip.clip_id]]) for clip in clips]
  facts = {"folds": rule, "sound": "that of the videos", "channel": "speech and song" if song else "speech"}
  return _acted(archive, clips, classes, RAVDESS_CLASSES, "RAVDESS: third part of the file names", facts)


def _ravdess_parts_are_known(parts: Sequence[int]) -> bool:
  return all(1 <= part <= most for part, most in zip(parts, (3, 2, 8, 2, 2, 2, 24), strict=True))


def _files_everywhere(archive: _Archive) -> list[Path]:
  """All files in all folders found, in natural order."""
  folders = sorted({path for paths in archive.folders.values() for path in paths})
  return [folder / name for folder in folders for name in sorted(archive.entries(folder)[1], key=_natural)]


def read_cremad(
  raw: Path,
  *,
  classes: Sequence[str] = (),
  allow_missing_sound: bool = False,
  follow_links: bool = False,
) -> Layout:
  """CREMA-D: folds by speaker, 1001-1018, 1019-1036, 1037-1054, 1055-1072 and 1073-1091.

  Args:
    raw: the repository's folder: VideoFlash or VideoMP4, and AudioWAV; without AudioWAV the sound is the videos' own.
    classes: those to take, in label order; all six otherwise.
    allow_missing_sound: take clips that have no wav in AudioWAV, noting them.
    follow_links: take what symbolic links that lead out of `raw` lead to.
  Raises:
    UserError: if there are no such folders or classes, or the files are not downloaded.
  Source: the folds are those of MAE-DFER's public lists.
  """
  archive = _Archive(raw, ("videoflash", "videomp4", "audiowav", "audiomp3"), CREMAD_LAYOUT, follow_links)
  videos, wavs = archive.find("VideoFlash", "VideoMP4"), archive.find("AudioWAV")
  if videos is None:
    raise archive.unrecognised("no folder VideoFlash or VideoMP4")
  if videos.name.lower() == "videoflash" and archive.folders.get("videomp4"):
    archive.notes.append(f"{archive.show(videos)}: chosen; VideoMP4 is there too and not used")
  pictures = _index(videos, archive, VIDEOS)
  sounds = _index(wavs, archive, (".wav",)) if wavs else pictures
  pointers = _pointers([path for index in (pictures, sounds) for paths in index.values() for path in paths])
  if pointers:
    shown = _some(archive.show(path) for path in sorted(pointers))
    archive.problems.append(
      f"not downloaded, only pointers of Git LFS, which `git lfs pull` replaces: {shown}"
    )
  if not pictures or pointers >= {path for paths in pictures.values() for path in paths}:
    raise archive.unrecognised(f"no videos in {archive.show(videos)}")
  clips, silent = [], []
  for name in sorted(pictures):
    video = _one(pictures, name, "video", videos, archive)
    sound = _one(sounds, name, "wav", wavs or videos, archive)
    where = archive.show(pictures[name][0])
    match = re.fullmatch(r"(1\d\d\d)_([A-Z]{3})_([A-Z]{3})_(LO|MD|HI|XX)", name)
    if not match or match[3] not in CREMAD_CLASSES or not 1001 <= int(match[1]) <= 1091:
      archive.problems.append(f"{where}: is not a CREMA-D name, such as 1001_DFA_ANG_XX")
      continue
    wrong = [video] if isinstance(video, str) else []
    if isinstance(sound, str) and wavs:
      if name not in sounds and allow_missing_sound:
        silent.append(name)
      else:
        wrong.append(sound)
    archive.problems += [f"{where}: {problem}" for problem in wrong]
    if not wrong and isinstance(video, Path) and not {video, sound} & pointers:
      split = f"fold{min(5, (int(match[1]) - 1001) // 18 + 1)}"
      clips.append(ClipSource(name, where, CREMAD_CLASSES[match[3]], split, (), video,
                              sound if isinstance(sound, Path) else None))  # fmt: skip
  if silent:
    archive.notes.append(f"{_count(len(silent), 'clip')} without a wav: {_some(silent)}")
  if alone := sorted(sounds.keys() - pictures.keys()):
    archive.notes.append(f"{_count(len(alone), 'wav')} without a video, not used: {_some(alone)}")
  facts = {
    "folds": "by speaker: 1001-1018, 1019-1036, 1037-1054, 1055-1072, 1073-1091, as MAE-DFER",
    "sound": f"wav files of {wavs.name}" if wavs else "that of the videos",
  }
  origin = "CREMA-D: third part of the file names, sorted"
  return _acted(archive, clips, classes, tuple(CREMAD_CLASSES.values()), origin, facts)


def _pointers(paths: Iterable[Path]) -> set[Path]:
  """Files that Git LFS has not replaced by their content yet."""
  found = set()
  for path in paths:
    if path.stat().st_size < 200 and path.read_bytes().startswith(b"version https://git-lfs"):
      found.add(path)
  return found
