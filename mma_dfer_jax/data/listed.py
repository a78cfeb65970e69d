"""Data sets whose clips stand in lists of five folds: the lists, which must agree, and the files of the clips in them."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
import csv
import dataclasses
import io
import os
from pathlib import Path
import re
from typing import NamedTuple

from mma_dfer_jax.data import archive, source
from mma_dfer_jax.data.archive import SOUNDS, VIDEOS, Archive, scan
from mma_dfer_jax.data.source import FOLDS, ClipFiles, LabelOrder, Layout, option
from mma_dfer_jax.errors import UserError, listed

FORMS = {
  "csv": "csv files with the columns video_name,label",
  "counted": "lines `DIR COUNT LABEL`",
  "plain": "lines `00001.mp4 LABEL`",
}
_LINES = {
  "counted": re.compile(r"(.*\S)\s+(-?\d+)\s+(-?\d+|[A-Za-z]+)"),
  "plain": re.compile(r"([^\s,;]+)[\s,;]+([^\s,;]+)"),
}
_WORDS = ("happy happiness joy", "sad sadness", "neutral neutrality", "angry anger", "surprise surprised",
          "disgust disgusted", "fear fearful afraid", "contempt contemptuous", "anxiety anxious",
          "helplessness helpless", "disappointment disappointed")  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(archive.Options):
  """What can be asked of DFEW and MAFW."""

  lists: str | None = option(None, "Folder with the lists of the folds, if they are not in --raw.")
  recipe: str = option("default", "reference: frames as the original orders them.", "default", "reference")
  frames: str = option("all", "Which pictures to take.")


# ---- tables ----


def read_text(path: Path) -> str:
  """Raises: ValueError: if it cannot be read, or is not UTF-8."""
  try:
    return path.read_bytes().decode("utf-8-sig")
  except OSError as error:
    raise ValueError(f"cannot be read ({error.strerror})") from error
  except UnicodeDecodeError as error:
    raise ValueError("must be saved as UTF-8") from error


class Table(NamedTuple):
  """A csv: `notes` are what is odd about its form, `rows` each have the number of their last line."""

  header: list[str]  # in lower case
  rows: list[tuple[int, list[str]]]
  notes: list[str]


def read_table(path: Path, *columns: str) -> Table:
  """A csv with a header; takes semicolons or tabs in place of commas, and notes it.

  Args:
    path: the file.
    columns: the columns that it must have, as "path,label"; any one of these sets, and no column of another.
  Raises:
    ValueError: what is wrong with the file.
  """
  text, wanted = read_text(path), " or ".join(columns)
  first = next((line for line in text.splitlines() if line.strip()), "")
  if not first:
    raise ValueError(f"is empty; it must begin with the line {wanted}")
  known = set(",".join(columns).split(","))
  for delimiter in ",;\t":
    header = [name.strip().lower() for name in next(csv.reader([first], delimiter=delimiter))]
    used = sorted(name for name in header if name in known)
    if any(used == sorted(one.split(",")) for one in columns):
      break
  else:
    raise ValueError(f"must begin with the line {wanted} (comma, semicolon or tab); it begins with {first!r}")
  reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
  try:
    rows = [(reader.line_num, row) for row in reader if any(value.strip() for value in row)]
  except csv.Error as error:
    raise ValueError(f"cannot be read in line {reader.line_num}: {error}") from error
  notes = [f"columns are separated by {delimiter!r}, not by a comma"] * (delimiter != ",")
  if extra := sorted(set(header) - known - {""}):
    notes.append(f"columns that are not used: {', '.join(extra)}")
  return Table(header, rows[1:], notes)


# ---- lists of folds: which clip is in which fold, and its label as written ----


class Row(NamedTuple):
  """One line of a list."""

  where: str
  clip_id: str
  written: str  # label
  annotated: int | None = None  # number of frames
  folder: str = ""  # that the list says the clip is in


@dataclasses.dataclass
class FoldList:
  """One list file; `kind` is its form, one of FORMS, or "" if unreadable."""

  path: Path
  fold: int
  part: str  # train or test
  kind: str = ""
  rows: list[Row] = dataclasses.field(default_factory=list)


class Place(NamedTuple):
  """Where a clip belongs."""

  row: Row
  label: str
  fold: int


def read_label(written: str, first: int, classes: Sequence[str]) -> str | None:
  """The class that a list means by a number, counted from `first`, or by a word: its name, or the same in other words."""
  if re.fullmatch("[0-9]+", written):
    return classes[int(written) - first] if first <= int(written) < first + len(classes) else None
  word = written.lower()
  alike = {other for row in _WORDS if word in row.split() for other in row.split()}
  fitting = [name for name in classes if name.lower() == word] or [name for name in classes if name in alike]
  return fitting[0] if len(fitting) == 1 else None


def check_numbers(lists: Sequence[FoldList], first: int, classes: Sequence[str]) -> None:
  """Refuses lists that count their labels from another number: all of them would be one off.

  Raises:
    UserError: if some label is too large and the smallest is never used, or the other way round.
  """
  texts = {row.written for one in lists for row in one.rows}
  numbers = {int(text) for text in texts if re.fullmatch("-?[0-9]+", text)}
  last = first + len(classes) - 1
  if (last + 1 in numbers and first not in numbers) or (first - 1 in numbers and last not in numbers):
    raise UserError(f"{lists[0].path.parent}: labels go from {min(numbers)} to {max(numbers)}; these lists must count "
                    f"{', '.join(classes)} from {first} to {last}")  # fmt: skip


class ListedArchive(Archive):
  """An archive with lists.

  Args:
    name: of the data set.
    raw: its folder.
    folders: by --frames, the names of the folder that it takes.
    sounds: the name of the folder with sounds.
    layout: what is accepted.
    options: of prepare.
  """

  def __init__(
    self,
    name: str,
    raw: Path,
    folders: Mapping[str, Sequence[str]],
    sounds: str,
    layout: str,
    options: Options,
  ):
    super().__init__(raw, {sounds, *(name for names in folders.values() for name in names)}, layout, options)
    self.name, self.by_frames, self.sounds = name, folders, sounds
    self.options: Options = options
    self.original = options.recipe == "reference"
    self.lists: list[FoldList] = []

  # ---- lists ----

  def read_lists(self, own: Path | None, kinds: Sequence[str]) -> None:
    """Reads all lists in --lists, or else in a folder of the archive: at most one for each fold and part.

    A list that is missing or cannot be read is a problem of the whole; one of its lines is a problem of a clip.

    Raises:
      UserError: if there is none at all.
    """
    folder = Path(self.options.lists).expanduser() if self.options.lists else own
    if not folder:
      raise self.unrecognised("there are no lists of folds")
    if not folder.is_dir():
      raise UserError(f"--lists={folder}: is no folder; give that of the lists of all folds\n{self.layout}")
    files = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in (".csv", ".txt")]
    files = [path for path in files if not path.name.startswith(".") and "__MACOSX" not in path.parts]
    others = {"dfew", "mafw", "ferv39k"} - {self.name}
    lists: dict[tuple[int, str], FoldList] = {}
    for path in files:
      fold, part = _fold_and_part(path.relative_to(folder))
      if fold is None or part is None or any(other in path.name.lower() for other in others):
        self.note(f"{folder}: no lists of folds of {self.name}, not used", str(path.relative_to(folder)))
      elif fold not in FOLDS:
        self.problem(path, f"there is no fold {fold}, there are 5")
      elif (fold, part) not in lists:
        lists[fold, part] = FoldList(path, fold, part)
      elif path.read_bytes() != lists[fold, part].path.read_bytes():
        first = self.show(lists[fold, part].path)
        self.problem(path, f"is another {part} list of fold {fold}, beside {first}")
    if not lists:
      there = source.first_few([path.relative_to(folder) for path in files]) or "no .csv and no .txt file"
      raise listed(f"{folder}: holds no list of a fold of {self.name}", [f"found: {there}"], self.layout)
    self.lists = [lists[key] for key in sorted(lists)]
    self._read_rows(kinds)
    if missing := ", ".join(str(k) for k in FOLDS if (k, "test") not in lists):
      there = source.first_few(self.show(one.path) for one in self.lists)
      self.problem(str(folder), f"no list of the test set of fold {missing}; found {there}")

  def _read_rows(self, kinds: Sequence[str]) -> None:
    """Fills the lists with their rows. The form of texts is that of most of their lines."""
    accepted = " or ".join(FORMS[kind] for kind in kinds)
    lines: dict[Path, list[tuple[int, str]]] = {}
    for one in self.lists:
      try:
        if one.path.suffix.lower() != ".csv":
          text = enumerate(read_text(one.path).splitlines(), 1)
          lines[one.path] = [(number, line.strip()) for number, line in text if line.strip()]
        elif "csv" in kinds:
          self._read_csv(one)
        else:
          raise ValueError(f"is a csv; accepted are {accepted}")
      except ValueError as error:
        self.problem(one.path, str(error))
    forms = {path: Counter(kind for _, line in text for kind, form in _LINES.items() if form.fullmatch(line))
             for path, text in lines.items()}  # fmt: skip
    kind = max(_LINES, key=sum(forms.values(), Counter()).__getitem__)
    for one in (one for one in self.lists if one.path in lines):
      if not lines[one.path]:
        self.problem(one.path, "is empty")
      elif kind not in kinds or not forms[one.path][kind]:
        self.problem(one.path, f"begins with {lines[one.path][0][1]!r}; accepted are {accepted}")
      else:
        one.kind, shown = kind, self.show(one.path)
        for number, line in lines[one.path]:
          self._read_line(one, line, f"{shown} line {number}")
    for one in self.lists:
      if one.kind and not one.rows:
        one.kind = ""
        self.problem(one.path, "names no clip")

  def _read_csv(self, one: FoldList) -> None:
    shown, table = self.show(one.path), read_table(one.path, "video_name,label")
    one.kind = "csv"
    for note in table.notes:
      self.note(note, shown)
    for line, values in table.rows:
      where = f"{shown} line {line}"
      if len(values) != len(table.header):
        wrong = f"{source.count(len(values), 'value')} in {len(table.header)} columns: {','.join(values)!r}"
        self._line_problem(where, values[0] if table.header[0] == "video_name" else "", wrong)
        continue
      row = dict(zip(table.header, map(str.strip, values), strict=True))
      clip = re.fullmatch(rf"([0-9]+)({'|'.join(map(re.escape, VIDEOS))})?", row["video_name"])
      if clip:
        one.rows.append(Row(where, source.as_clip_id(clip[1]), row["label"]))
      else:
        self._line_problem(where, "", f"{row['video_name']!r} is not the number of a clip")

  def _read_line(self, one: FoldList, line: str, where: str) -> None:
    """Reads a line of a text list from the right: a path may hold blanks."""
    match = _LINES[one.kind].fullmatch(line)
    if not match:
      self._line_problem(where, line, f"{line!r} is not of the form of the other {FORMS[one.kind]}")
    elif one.kind == "plain":
      name = os.path.splitext(match[1])[0] if match[1].lower().endswith(VIDEOS) else match[1]
      one.rows.append(Row(where, source.as_clip_id(name), match[2]))
    else:
      *folders, name = re.split(r"[/\\]", match[1].rstrip("/\\"))  # made on any system
      one.rows.append(Row(where, source.as_clip_id(name), match[3], int(match[2]), "".join(folders[-1:])))

  def _line_problem(self, where: str, line: str, what: str) -> None:
    """The problem of a line: of the clip that it seems to name, or of something that has no other name."""
    clip = re.search(r"(?:^|[/\\])([0-9]+)(?:\.\w+)?(?=[\s,;]|$)", line)
    self.problem(where, what, source.as_clip_id(clip[1])) if clip else self.problem("", what, where)

  # ---- what the lists say together ----

  def _places(self, label_of: Callable[[FoldList, str], str | None]) -> dict[str, Place]:
    """The clips of the five test lists, each in one fold and with one label, in the order of the lists."""
    places: dict[str, Place] = {}
    for one in (one for one in self.lists if one.part == "test"):
      for row in one.rows:
        label, before = label_of(one, row.written), places.get(row.clip_id)
        if label is None:
          wrong = f"{row.written!r} is not the label of a class"
        elif before:
          also = f", with the label {before.label} there and {label} here" if label != before.label else ""
          wrong = f"is in {before.row.where} already{also}"
        else:
          places[row.clip_id] = Place(row, label, one.fold)
          continue
        self.problem(row.where, wrong, row.clip_id)
    return places

  def _compare(self, label_of: Callable[[FoldList, str], str | None], places: Mapping[str, Place]) -> None:
    """Finds what train lists say against the test lists: training set k is all other folds.

    Names one thing that is wrong with a clip once, however many lists show it; and nothing of a clip that is a problem
    already.
    """
    known = self.bad_clips
    tests = [one for one in self.lists if one.kind and one.part == "test"]
    complete, tested = len(tests) == len(FOLDS), {row.clip_id for one in tests for row in one.rows}
    trains = {one.fold: one for one in self.lists if one.kind and one.part == "train"}
    if unchecked := [str(k) for k in FOLDS if k not in trains]:
      self.note(f"no list of the training set of fold {', '.join(unchecked)}: not compared")
    wrong: dict[tuple[str, str], dict[int, str]] = defaultdict(dict)  # (what, clip) -> by training set: where
    for k, one in sorted(trains.items()):
      shown, named = self.show(one.path), Counter(row.clip_id for row in one.rows)
      for row in one.rows:
        place, label = places.get(row.clip_id), label_of(one, row.written)
        if place and label != place.label:
          written = label or f"{row.written!r}, which is no class"
          wrong[f"{written}, but {place.label} in {place.row.where}", row.clip_id].setdefault(k, row.where)
      for clip, times in named.items():
        if times > 1:
          wrong["named more than once", clip][k] = shown
        if clip in places and places[clip].fold == k:
          wrong["also in the test set of the same fold", clip][k] = shown
        if complete and clip not in tested:
          wrong["in no test set", clip][k] = shown
      for clip, place in places.items():
        if complete and place.fold != k and clip not in named:
          wrong["missing, though in the test set of another fold", clip][k] = shown
    for (what, clip), lists in wrong.items():
      if clip not in known:
        first, *others = lists
        also = f" and the training sets of the folds {', '.join(map(str, others))}" if others else ""
        self.problem(lists[first] + also, what, clip)

  # ---- pictures and sounds ----

  def folder_of_lists(self) -> Path | None:
    """The folder, under whatever name, in which the lists say that the clips are."""
    names = {row.folder for one in self.lists for row in one.rows if row.folder}
    folder = self.find(names.pop()) if len(names) == 1 else None
    if folder:
      self.note(f"{self.show(folder)}: pictures are taken from here, as the lists name this folder")
    return folder

  def no_frames(self, *needed: str) -> UserError:
    """The error for an archive without the folder that --frames needs: says which of its folders another choice takes."""
    advice = [f"there is {self.show(path)}: --frames={choice} takes it"
              for choice, names in self.by_frames.items() for name in names for path in self.folders.get(name, ())]  # fmt: skip
    missing = f"no folder {' or '.join(needed)}, which --frames={self.options.frames} needs"
    return self.unrecognised(missing, *advice)

  def _check_folder_of_lists(self, frames: str) -> None:
    """Raises UserError if the lists were made for other pictures than those chosen: their counts would be wrong."""
    known = {name: choice for choice, names in self.by_frames.items() if choice != "video" for name in names}
    of = {known.get(row.folder.lower()) for one in self.lists for row in one.rows} - {None}
    if frames in known.values() and of and of != {frames}:
      raise UserError(f"{self.lists[0].path.parent}: the lists are of --frames={', '.join(map(str, of))}, but "
                      f"--frames={frames} was chosen")  # fmt: skip

  def _clips(self, places: Mapping[str, Place], pictures: Path | None, videos: Path | None, wavs: Path | None,
             ) -> list[ClipFiles]:  # fmt: skip
    """The clips whose pictures and sound are there; what is wrong with each of the others becomes one problem."""
    home, what, sounds_in = pictures or videos or self.raw, "folder" if pictures else "video", wavs or videos
    of_videos = self.index(None if pictures and wavs else videos, VIDEOS)
    looked = self.index(pictures) if pictures else of_videos
    sounds = self.index(wavs, SOUNDS) if wavs else of_videos
    bad = self.bad_clips
    named = {row.clip_id for one in self.lists for row in one.rows}
    if others := sorted(looked.keys() - named - bad):
      self.note(f"{self.show(home)}: clips in no list, not used", *others)
    good = [place for clip_id, place in places.items() if clip_id not in bad]
    found = [self.only_match(looked, place.row.clip_id, what, home) for place in good]
    with ThreadPoolExecutor(8) as pool:  # a network disk answers several at once
      scans = list(pool.map(lambda path: scan(path) if pictures and isinstance(path, Path) else None, found))
    clips = []
    for (row, label, fold), path, scanned in zip(good, found, scans, strict=True):
      names: list[str] = []
      wrong = [path] if isinstance(path, str) else []
      if scanned and isinstance(path, Path):
        names, wrong = self.in_order(path, scanned, row.annotated, self.original)
      of_sound = "wav" if wavs else "video"
      sound = self.sound_of(sounds, row.clip_id, of_sound, sounds_in, wrong) if sounds_in else None
      if wrong:
        self.problem(row.where, "; ".join(wrong), row.clip_id)
      elif isinstance(path, Path):
        frames, video = tuple(path / name for name in names), None if pictures else path
        clips.append(ClipFiles(row.clip_id, row.where, label, f"fold{fold}", frames, video, sound))
    return clips

  def _describe_sounds(self, clips: Sequence[ClipFiles], wavs: Path | None, videos: Path | None) -> str:
    """Notes what is odd about the sounds, by names and some headers; returns what the recipe says of them."""
    if not wavs:
      return f"videos of {videos.name}" if videos else "none"
    files = [clip.sound for clip in clips if clip.sound]
    kinds = sorted({path.suffix.lower().removeprefix(".") for path in files}) or ["wav"]
    if others := ", ".join(kind for kind in kinds if kind != "wav"):
      self.note(f"{self.show(wavs)} holds {others} files: they are read, as no wav is there", warning=True)
    some = [path for path in files[:: len(files) // 100 + 1] if path.suffix.lower() == ".wav"]
    rates = set(map(_wav_rate, some)) - {0}
    if text := source.rate_warning(self.name, rates):
      self.note(text, warning=True)
    return f"{' and '.join(kinds)} files of {wavs.name}"

  def read(self, label_of: Callable[[FoldList, str], str | None], order: LabelOrder, kind: str, pictures: Path | None,
           videos: Path | None, wavs: Path | None, facts: dict[str, str] | None = None) -> Layout:  # fmt: skip
    """Lists and media put together.

    Args:
      label_of: the class name of a label as written in a list.
      order: that the classes are written in.
      kind: of pictures, for the recipe.
      pictures: folder of the clips' folders; None: pictures come from the videos.
      videos: folder of videos, whose sounds are used if there are no wavs.
      wavs: folder of sounds.
      facts: more for the recipe.
    """
    from mma_dfer_jax.data.faces import ARCHIVE_FACES  # here, as labels need no OpenCV

    self._check_folder_of_lists(kind)
    if kind in ("scenes", "video") and self.options.faces != "yunet":
      self.note(f"{self.show(pictures or videos or self.raw)}: whole scenes, taken as they are; the published results are "
                "from cropped faces, which --faces=yunet makes", warning=True)  # fmt: skip
    silent = f"there is no sound: no folder {self.sounds} or {self.by_frames['video'][0]}"
    if not (wavs or videos) and self.options.allow_missing_sound:
      self.note(silent)
    elif not (wavs or videos):
      self.problem(str(self.raw), f"{silent} (--allow_missing_sound takes all clips without)")
    places = self._places(label_of)
    for row, label, _ in places.values():
      if not row.written.isdecimal() and label != row.written.lower():
        self.note(f"the label {row.written} is read as {label}", row.clip_id)
    clips = self._clips(places, pictures, videos, wavs)
    recipe = archive.OF_VIDEO if kind == "video" else {
      "frames": kind,
      "frame_order": "string: 10.jpg before 2.jpg, as the original" if self.original else "natural: 2.jpg before 10.jpg",
      "frame_count": "all files",
      "frame_coding": "as delivered",
    } | ({} if kind == "scenes" else ARCHIVE_FACES)  # fmt: skip
    if self.original and any(one.kind == "counted" for one in self.lists):
      recipe |= {"frame_count": "as annotated in the lists"}
    recipe = recipe | {"sound": self._describe_sounds(clips, wavs, videos)} | (facts or {})
    self._compare(label_of, places)  # last: it says nothing more of clips that are a problem already
    forms = " and ".join(sorted({FORMS[one.kind] for one in self.lists if one.kind}))
    recipe |= {"folds": f"test set k of the lists, {forms}"}
    return self.found(clips, order.classes, order.origin, recipe, [f"fold{k}" for k in FOLDS])


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


def _wav_rate(path: Path) -> int:
  """Hz, by the header of a wav; 0 if it has none."""
  with path.open("rb") as file:
    head = file.read(4096)
  return int.from_bytes(head[at + 12 : at + 16], "little") if (at := head.find(b"fmt ")) > 0 else 0
