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

from mma_dfer_jax.data.archive import (
  OF_VIDEO,
  SOUNDS,
  VIDEOS,
  WITHOUT_SOUND,
  Archive,
  ArchiveOptions,
  in_order,
  index_clips,
  only_match,
  pictures_in,
)  # fmt: skip
from mma_dfer_jax.data.source import (
  ClipFiles,
  LabelOrder,
  Layout,
  Problem,
  as_clip_id,
  count,
  first_few,
  option,
  rate_warning,
)  # fmt: skip
from mma_dfer_jax.errors import UserError, listed

FOLDS = range(1, 6)
FORMS = {
  "csv": "csv files with the columns video_name,label",
  "counted": "lines `DIR COUNT LABEL`",
  "plain": "lines `00001.mp4 LABEL`",
}
_LINES = {
  "counted": re.compile(r"(.*\S)\s+(-?\d+)\s+(-?\d+|[A-Za-z]+)"),
  "plain": re.compile(r"([^\s,;]+)[\s,;]+([^\s,;]+)"),
}
WORDS = ("happy happiness joy", "sad sadness", "neutral neutrality", "angry anger", "surprise surprised",
         "disgust disgusted", "fear fearful afraid", "contempt contemptuous", "anxiety anxious",
         "helplessness helpless", "disappointment disappointed")  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class ListedOptions(ArchiveOptions):
  """What can be asked of DFEW and MAFW."""

  lists: str | None = option(None, "Folder with the lists of the folds, if they are not in --raw.")
  recipe: str = option(
    "default", "reference orders and counts frames as the original does.", "default", "reference"
  )


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
  text = read_text(path)
  first = next((line for line in text.splitlines() if line.strip()), "")
  wanted = " or ".join(columns)
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


def read_lists(archive: Archive, data_set: str, kinds: Sequence[str], own: Path | None) -> list[FoldList]:
  """All lists of a data set in --lists or else in a folder of the archive, at most one for each fold and part.

  A list that is missing or cannot be read is a problem of the whole; one of its lines is a problem of a clip.

  Raises:
    UserError: if there is none at all.
  """
  options = archive.options
  assert isinstance(options, ListedOptions)
  if options.lists and not Path(options.lists).is_dir():
    raise UserError(
      f"--lists={options.lists}: is no folder; give the one that holds the lists of all folds\n{archive.layout}"
    )
  folder = Path(options.lists) if options.lists else own
  if not folder:
    raise archive.unrecognised("there are no lists of folds")
  files = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in (".csv", ".txt")]
  files = [path for path in files if not path.name.startswith(".") and "__MACOSX" not in path.parts]
  others = {"dfew", "mafw", "ferv39k"} - {data_set}
  lists: dict[tuple[int, str], FoldList] = {}
  for path in files:
    fold, part = _fold_and_part(path.relative_to(folder))
    if fold is None or part is None or any(other in path.name.lower() for other in others):
      archive.note(
        f"{folder}: no lists of folds of {data_set.upper()}, not used", str(path.relative_to(folder))
      )
    elif fold not in FOLDS:
      archive.problems.append(Problem(archive.show(path), f"there is no fold {fold}, there are 5"))
    elif (fold, part) not in lists:
      lists[fold, part] = FoldList(path, fold, part)
    elif path.read_bytes() != lists[fold, part].path.read_bytes():
      also = f"is another {part} list of fold {fold}, beside {archive.show(lists[fold, part].path)}"
      archive.problems.append(Problem(archive.show(path), also))
  if not lists:
    there = first_few([path.relative_to(folder) for path in files]) or "no .csv and no .txt file"
    raise listed(
      f"{folder}: holds no list of a fold of {data_set.upper()}", [f"found: {there}"], archive.layout
    )
  found = [lists[key] for key in sorted(lists)]
  _read_rows(found, kinds, archive)
  tests = [one.fold for one in found if one.part == "test"]
  if missing := ", ".join(str(k) for k in FOLDS if k not in tests):
    there = first_few(archive.show(one.path) for one in found)
    archive.problems.append(Problem(str(folder), f"no list of the test set of fold {missing}; found {there}"))
  return found


def _read_rows(lists: Sequence[FoldList], kinds: Sequence[str], archive: Archive) -> None:
  """Fills lists with their rows. The form of a text is that of most of its lines or, if as many, of all texts."""
  accepted = " or ".join(FORMS[kind] for kind in kinds)
  lines: dict[Path, list[str]] = {}
  for one in lists:
    try:
      if one.path.suffix.lower() != ".csv":
        lines[one.path] = read_text(one.path).splitlines()
      elif "csv" in kinds:
        _read_csv(one, archive)
      else:
        raise ValueError(f"is a csv; accepted are {accepted}")
    except ValueError as error:
      archive.problems.append(Problem(archive.show(one.path), str(error)))
  forms = {path: Counter(kind for line in text for kind, form in _LINES.items() if form.fullmatch(line.strip()))
           for path, text in lines.items()}  # fmt: skip
  everywhere = sum(forms.values(), Counter())
  for one in (one for one in lists if one.path in lines):
    shown, own = archive.show(one.path), forms[one.path]
    kind = max(_LINES, key=lambda form: (own[form], everywhere[form]))
    text = [(number, line.strip()) for number, line in enumerate(lines[one.path], 1) if line.strip()]
    if not text:
      archive.problems.append(Problem(shown, "is empty"))
    elif kind not in kinds or not own:
      archive.problems.append(Problem(shown, f"begins with {text[0][1]!r}; accepted are {accepted}"))
    else:
      one.kind = kind
      for number, line in text:
        _read_line(one, line, f"{shown} line {number}", archive)
  for one in lists:
    if one.kind and not one.rows:
      one.kind = ""
      archive.problems.append(Problem(archive.show(one.path), "names no clip"))


def _read_csv(one: FoldList, archive: Archive) -> None:
  shown = archive.show(one.path)
  table = read_table(one.path, "video_name,label")
  one.kind = "csv"
  for note in table.notes:
    archive.note(note, shown)
  for line, values in table.rows:
    where = f"{shown} line {line}"
    if len(values) != len(table.header):
      wrong = f"{count(len(values), 'value')} in {len(table.header)} columns: {','.join(values)!r}"
      archive.problems.append(_of_line(where, values[0] if table.header[0] == "video_name" else "", wrong))
      continue
    row = dict(zip(table.header, map(str.strip, values), strict=True))
    clip = re.fullmatch(rf"([0-9]+)({'|'.join(map(re.escape, VIDEOS))})?", row["video_name"])
    if clip:
      one.rows.append(Row(where, as_clip_id(clip[1]), row["label"]))
    else:
      archive.problems.append(_of_line(where, "", f"{row['video_name']!r} is not the number of a clip"))


def _read_line(one: FoldList, line: str, where: str, archive: Archive) -> None:
  """Reads a line of a text list from the right: a path may hold blanks."""
  match = _LINES[one.kind].fullmatch(line)
  if not match:
    wrong = f"{line!r} is not of the form of the other {FORMS[one.kind]}"
    archive.problems.append(_of_line(where, line, wrong))
  elif one.kind == "plain":
    name = os.path.splitext(match[1])[0] if match[1].lower().endswith(VIDEOS) else match[1]
    one.rows.append(Row(where, as_clip_id(name), match[2]))
  else:
    *folders, name = re.split(r"[/\\]", match[1].rstrip("/\\"))  # made on any system
    one.rows.append(Row(where, as_clip_id(name), match[3], int(match[2]), "".join(folders[-1:])))


def _of_line(where: str, line: str, what: str) -> Problem:
  """The problem of a line: of the clip that it seems to name, or of something that has no other name."""
  clip = re.search(r"(?:^|[/\\])([0-9]+)(?:\.\w+)?(?=[\s,;]|$)", line)
  return Problem(where, what, (as_clip_id(clip[1]),)) if clip else Problem("", what, (where,))


# ---- labels ----

LabelOf = Callable[[FoldList, str], str | None]  # class name of a label as written in a list


def read_label(written: str, first: int, classes: Sequence[str]) -> str | None:
  """The class that a list means by a number, counted from `first`, or by a word: its name, or the same in other words."""
  if re.fullmatch("[0-9]+", written):
    return classes[int(written) - first] if first <= int(written) < first + len(classes) else None
  word = written.lower()
  fitting = [name for name in classes if name.lower() == word]
  fitting = fitting or [
    name for row in WORDS if word in row.split() for name in classes if name in row.split()
  ]
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
    raise UserError(
      f"{lists[0].path.parent}: labels go from {min(numbers)} to {max(numbers)}; these lists must count "
      f"{', '.join(classes)} from {first} to {last}"
    )


# ---- what the lists say together ----


class Place(NamedTuple):
  """Where a clip belongs."""

  row: Row
  label: str
  fold: int


def _places(lists: Sequence[FoldList], label_of: LabelOf, archive: Archive) -> dict[str, Place]:
  """The clips of the five test lists, each in one fold and with one label, in the order of the lists."""
  places: dict[str, Place] = {}
  for one in (one for one in lists if one.part == "test"):
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
      archive.problems.append(Problem(row.where, wrong, (row.clip_id,)))
  return places


def _compare(
  lists: Sequence[FoldList], label_of: LabelOf, places: Mapping[str, Place], archive: Archive
) -> None:
  """Finds what train lists say against the test lists: training set k is all other folds.

  Names one thing that is wrong with a clip once, however many lists show it; and nothing of a clip that is a problem
  already.
  """
  known = archive.bad_clips
  tests = [one for one in lists if one.kind and one.part == "test"]
  complete, tested = len(tests) == len(FOLDS), {row.clip_id for one in tests for row in one.rows}
  trains = {one.fold: one for one in lists if one.kind and one.part == "train"}
  if unchecked := [str(k) for k in FOLDS if k not in trains]:
    archive.note(f"no list of the training set of fold {', '.join(unchecked)}: not compared")
  wrong: dict[tuple[str, str], list[int]] = defaultdict(list)  # (what, clip) -> in which training sets
  lines: dict[tuple[str, str], str] = {}  # the first line that says so
  for k, one in sorted(trains.items()):
    named = Counter(row.clip_id for row in one.rows)
    for row in one.rows:
      place, label = places.get(row.clip_id), label_of(one, row.written)
      if place and label != place.label:
        written = label or f"{row.written!r}, which is no class"
        what = f"{written}, but {place.label} in {place.row.where}"
        lines.setdefault((what, row.clip_id), row.where)
        wrong[what, row.clip_id].append(k)
    for clip, times in named.items():
      if times > 1:
        wrong["named more than once", clip].append(k)
      if clip in places and places[clip].fold == k:
        wrong["also in the test set of the same fold", clip].append(k)
      if complete and clip not in tested:
        wrong["in no test set", clip].append(k)
    for clip, place in places.items():
      if complete and place.fold != k and clip not in named:
        wrong["missing, though in the test set of another fold", clip].append(k)
  together: dict[tuple[str, str], list[str]] = defaultdict(list)
  for (what, clip), folds in wrong.items():
    if clip not in known:
      where = lines.get((what, clip)) or archive.show(trains[folds[0]].path)
      others = ", ".join(map(str, list(dict.fromkeys(folds))[1:]))
      also = f" and the training sets of the folds {others}" if others else ""
      together[where + also, what].append(clip)
  archive.problems += [Problem(where, what, tuple(clips)) for (where, what), clips in together.items()]


# ---- pictures and sounds ----


def folder_of_lists(lists: Sequence[FoldList], archive: Archive) -> Path | None:
  """The folder, under whatever name, in which the lists say that the clips are."""
  names = {row.folder for one in lists for row in one.rows if row.folder}
  folder = archive.find(names.pop()) if len(names) == 1 else None
  if folder:
    archive.note(f"{archive.show(folder)}: pictures are taken from here, as the lists name this folder")
  return folder


def no_frames(archive: Archive, frames: str, needed: str, folders: Mapping[str, Sequence[str]]) -> UserError:
  """The error for an archive without the folder that --frames needs: says which of its folders another choice takes."""
  advice = [
    f"there is {archive.show(path)}: --frames={choice} takes it"
    for choice, names in folders.items() for name in names for path in archive.folders.get(name, ())
  ]  # fmt: skip
  return archive.unrecognised(f"no folder {needed}, which --frames={frames} needs", *advice)


def check_folder_of_lists(
  lists: Sequence[FoldList], frames: str, folders: Mapping[str, Sequence[str]]
) -> None:
  """Refuses lists made for other pictures than those chosen: their counts would be wrong.

  Raises:
    UserError: if so.
  """
  known = {name: choice for choice, names in folders.items() if choice != "video" for name in names}
  of = {known.get(row.folder.lower()) for one in lists for row in one.rows} - {None}
  if frames in known.values() and of and of != {frames}:
    raise UserError(f"{lists[0].path.parent}: the lists are of --frames={', '.join(map(str, of))}, but --frames={frames} "
                    "was chosen")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Media:
  """Where the pictures and the sounds of all clips are; None where the archive has no such folder, or does not use it."""

  pictures: Path | None  # folder of the clips' folders; None: pictures come from the videos
  videos: Path | None
  wavs: Path | None
  names: str  # of the folders that sound is looked for in

  @property
  def sounds(self) -> Path | None:
    """The folder that sounds come from, for all clips alike."""
    return self.wavs or self.videos


def _clips(places: Mapping[str, Place], named: set[str], media: Media, archive: Archive) -> list[ClipFiles]:
  """The clips whose pictures and sound are there; what is wrong with each of the others becomes one problem."""
  folders = index_clips(media.pictures, archive) if media.pictures else {}
  videos = (
    {} if (media.pictures and media.wavs) or not media.videos else index_clips(media.videos, archive, VIDEOS)
  )
  sounds = index_clips(media.wavs, archive, SOUNDS) if media.wavs else videos
  home, looked, what = (
    (media.pictures, folders, "folder") if media.pictures else (media.videos, videos, "video")
  )
  assert home
  bad, silent, original = archive.bad_clips, archive.options.allow_missing_sound, _is_original(archive)
  if others := sorted(looked.keys() - named - bad):
    archive.note(f"{archive.show(home)}: clips in no list, not used", *others)
  wanted = [place for clip_id, place in places.items() if clip_id not in bad]
  found = [only_match(looked, place.row.clip_id, what, home, archive) for place in wanted]
  folder_paths = [path if media.pictures and isinstance(path, Path) else None for path in found]
  with ThreadPoolExecutor(8) as pool:  # a network disk answers several at once
    contents = list(pool.map(lambda path: pictures_in(path) if path else None, folder_paths))
  clips = []
  for place, path, content in zip(wanted, found, contents, strict=True):
    clip_id, names, wrong = place.row.clip_id, [], [path] if isinstance(path, str) else []
    if content and isinstance(path, Path):
      names, wrong = in_order(path, content, place.row.annotated, original, archive)
    sound = (
      only_match(sounds, clip_id, "wav" if media.wavs else "video", media.sounds, archive)
      if media.sounds
      else None
    )
    if isinstance(sound, str) and clip_id not in sounds and silent:
      sound = None
      archive.note(f"{archive.show(media.sounds or home)}: clips without sound", clip_id)
    elif isinstance(sound, str) and sound not in wrong:
      wrong.append(f"{sound} {WITHOUT_SOUND}" if clip_id not in sounds else sound)
    if wrong:
      archive.problems.append(Problem(place.row.where, "; ".join(wrong), (clip_id,)))
    elif isinstance(path, Path) and not isinstance(sound, str):
      frames, video = tuple(path / name for name in names), None if media.pictures else path
      clips.append(
        ClipFiles(clip_id, place.row.where, place.label, f"fold{place.fold}", frames, video, sound)
      )
  return clips


def _is_original(archive: Archive) -> bool:
  return isinstance(archive.options, ListedOptions) and archive.options.recipe == "reference"


def _wav_rate(path: Path) -> int:
  """Hz, by the header of a wav; 0 if it has none."""
  with path.open("rb") as file:
    head = file.read(4096)
  return int.from_bytes(head[at + 12 : at + 16], "little") if (at := head.find(b"fmt ")) > 0 else 0


def _look_at_sounds(clips: Sequence[ClipFiles], media: Media, name: str, archive: Archive) -> str:
  """Notes what is odd about the sounds, by names and a few headers; returns what the recipe says of them."""
  if not media.sounds:
    archive.note(f"there is no sound: no folder {media.names}") if archive.options.allow_missing_sound else (
      archive.problems.append(Problem(str(archive.raw), f"there is no sound: no folder {media.names} "
                                      "(--allow_missing_sound takes all clips without)")))  # fmt: skip
    return "none"
  if not media.wavs:
    return f"videos of {media.sounds.name}"
  files = [clip.sound for clip in clips if clip.sound]
  kinds = sorted({path.suffix.lower().removeprefix(".") for path in files}) or ["wav"]
  if kinds != ["wav"]:
    archive.note(f"{archive.show(media.wavs)}: holds {count(sum(p.suffix.lower() != '.wav' for p in files), 'file')} of the "
                 f"kinds {', '.join(k for k in kinds if k != 'wav')}, not wav as the original reads: they are read all the same",
                 warning=True)  # fmt: skip
  rates = {_wav_rate(path) for path in files[:: len(files) // 100 + 1] if path.suffix.lower() == ".wav"} - {0}
  if text := rate_warning(name, rates):
    archive.note(text, warning=True)
  return f"{' and '.join(kinds)} files of {media.wavs.name}"


def layout_of(
  name: str, lists: Sequence[FoldList], label_of: LabelOf, order: LabelOrder, media: Media, facts: dict[str, str],
  archive: Archive,
) -> Layout:  # fmt: skip
  """Lists and media put together.

  Args:
    name: of the data set.
    lists: of all folds.
    label_of: reads a label.
    order: that the classes are written in.
    media: where pictures and sounds are.
    facts: for the recipe; `frames` is the kind of pictures.
    archive: collects what is wrong.
  """
  from mma_dfer_jax.data.faces import (
    ARCHIVE_FACES,
  )  # needs OpenCV, which nobody who only asks for labels should load

  places = _places(lists, label_of, archive)
  clips = _clips(places, {row.clip_id for one in lists for row in one.rows}, media, archive)
  sound = _look_at_sounds(clips, media, name, archive)
  frames, original, counted = (
    facts["frames"],
    _is_original(archive),
    any(one.kind == "counted" for one in lists),
  )
  if frames in ("scenes", "video") and archive.options.faces != "yunet":
    archive.note(f"{archive.show(media.pictures or media.videos or archive.raw)}: whole scenes, taken as they are; the published "
                 "results are from cropped faces, which --faces=yunet makes", warning=True)  # fmt: skip
  recipe = OF_VIDEO if frames == "video" else {
    "frames": frames,
    "frame_order": "string: 10.jpg before 2.jpg, as the original" if original else "natural: 2.jpg before 10.jpg",
    "frame_count": "as annotated in the lists" if original and counted else "all files",
    "frame_coding": "as delivered",
  } | ({} if frames == "scenes" else ARCHIVE_FACES)  # fmt: skip
  words = {one.written: label for found in lists for one in found.rows if (label := label_of(found, one.written))
           and not one.written.isdecimal() and one.written.lower() != label.lower()}  # fmt: skip
  if words:
    archive.note(
      "labels in other words: " + ", ".join(f"{written} read as {label}" for written, label in words.items())
    )
  _compare(lists, label_of, places, archive)  # last: it says nothing more of clips that are a problem already
  forms = " and ".join(sorted({FORMS[one.kind] for one in lists if one.kind}))
  recipe = recipe | {"sound": sound} | facts
  recipe |= {"label_order": order.origin, "folds": f"test set k of the lists, {forms}"}
  return archive.found(clips, order.classes, order.origin, recipe, [f"fold{k}" for k in FOLDS])
