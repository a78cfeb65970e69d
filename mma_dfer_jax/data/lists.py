"""Lists of clips: tables with a header, and the lists of folds that data sets come with, which must agree."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
import csv
import dataclasses
import io
import os
from pathlib import Path
import re
from typing import NamedTuple

from mma_dfer_jax.data.archive import VIDEOS, Archive, Problem, as_clip_id, count, some
from mma_dfer_jax.errors import UserError, listed

FOLDS = range(1, 6)
FORMS = {
  "csv": "csv files with the columns video_name,label",
  "counted": "lines `DIR COUNT LABEL`",
  "plain": "lines `00001.mp4 LABEL`",
}
_LINES = {
  "counted": re.compile(r"(.*\S)\s+(-?\d+)\s+(-?\d+)"),
  "plain": re.compile(r"([^\s,;]+)[\s,;]+([^\s,;]+)"),
}


# ---- text and tables ----


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

  def values(self, row: list[str]) -> dict[str, str]:
    """By column."""
    return dict(zip(self.header, row, strict=True))


def read_table(path: Path, *columns: str) -> Table:
  """A csv with a header; semicolons or tabs in place of commas are as clear, and noted.

  Args:
    path: the file.
    columns: the columns that it must have, as "path,label"; any one of these sets, and no column of another.
  Raises:
    ValueError: what is wrong with the file.
  """
  text = read_text(path)
  first = next((line for line in text.splitlines() if line.strip()), "")
  if not first:
    raise ValueError(f"is empty; it must begin with the line {' or '.join(columns)}")
  known = set(",".join(columns).split(","))
  for delimiter in ",;\t":
    header = [name.strip().lower() for name in next(csv.reader([first], delimiter=delimiter))]
    used = [name for name in header if name in known]
    if any(sorted(used) == sorted(wanted.split(",")) for wanted in columns):
      break
  else:
    wanted = " or ".join(columns)
    raise ValueError(f"must begin with the line {wanted} (comma, semicolon or tab); it begins with {first!r}")
  reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
  try:
    rows = [(reader.line_num, row) for row in reader if any(value.strip() for value in row)]
  except csv.Error as error:
    raise ValueError(f"cannot be read in line {reader.line_num}: {error}") from error
  notes = [f"columns are separated by {delimiter!r}, not by a comma"] * (delimiter != ",")
  if extra := set(header) - known:
    notes.append(f"columns that are not used: {', '.join(sorted(extra))}")
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


def read_lists(folder: Path, data_set: str, kinds: Sequence[str], archive: Archive) -> list[FoldList]:
  """All lists of a data set in a folder, at most one for each fold and part.

  A list that is missing or cannot be read is a problem of the whole; one of its lines is a problem of a clip.

  Raises:
    UserError: if there is none at all.
  """
  files = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in (".csv", ".txt")]
  files = [path for path in files if not path.name.startswith(".") and "__MACOSX" not in path.parts]
  others = [other for other in ("dfew", "mafw", "ferv39k") if other != data_set]
  lists: dict[tuple[int, str], FoldList] = {}
  unused = []
  for path in files:
    name = path.relative_to(folder)
    fold, part = _fold_and_part(name)
    if fold is None or part is None or any(other in path.name.lower() for other in others):
      unused.append(str(name))
    elif fold not in FOLDS:
      archive.problems.append(Problem(archive.show(path), f"there is no fold {fold}, there are 5"))
    elif (fold, part) not in lists:
      lists[fold, part] = FoldList(path, fold, part)
    elif path.read_bytes() != lists[fold, part].path.read_bytes():
      first = archive.show(lists[fold, part].path)
      archive.problems.append(
        Problem(archive.show(path), f"is another {part} list of fold {fold}, beside {first}")
      )
  if not lists:
    names = some([path.relative_to(folder) for path in files]) or "no .csv and no .txt file"
    raise listed(
      f"{folder}: holds no list of a fold of {data_set.upper()}", [f"found: {names}"], archive.layouts
    )
  if unused:
    archive.note(f"{folder}: no lists of folds of {data_set.upper()}, not used", *unused)
  found = [lists[key] for key in sorted(lists)]
  texts = {}
  for one in found:
    try:
      if one.path.suffix.lower() != ".csv":
        texts[one.path] = read_text(one.path).splitlines()
      elif "csv" in kinds:
        _read_csv(one, archive)
      else:
        raise ValueError(f"is a csv; accepted are {_accepted(kinds)}")
    except ValueError as error:
      archive.problems.append(Problem(archive.show(one.path), str(error)))
  _read_lines([one for one in found if one.path in texts], texts, kinds, archive)
  for one in found:
    if one.kind and not one.rows:
      one.kind = ""
      archive.problems.append(Problem(archive.show(one.path), "names no clip"))
  test = {one.fold for one in found if one.part == "test"}
  if missing := ", ".join(str(k) for k in FOLDS if k not in test):
    there = some(archive.show(one.path) for one in found)
    archive.problems.append(Problem(str(folder), f"no list of the test set of fold {missing}; found {there}"))
  return found


def _read_csv(found: FoldList, archive: Archive) -> None:
  shown = archive.show(found.path)
  table = read_table(found.path, "video_name,label")
  found.kind = "csv"
  for note in table.notes:
    archive.note(note, shown)
  for line, values in table.rows:
    where = f"{shown} line {line}"
    if len(values) != len(table.header):
      wrong = f"{count(len(values), 'value')} in {len(table.header)} columns: {','.join(values)!r}"
      archive.problems.append(_of_line(where, values[0] if table.header[0] == "video_name" else "", wrong))
      continue
    row = table.values(values)
    name, label = row["video_name"].strip(), row["label"].strip()
    clip = re.fullmatch(rf"([0-9]+)({'|'.join(map(re.escape, VIDEOS))})?", name)
    if clip:
      found.rows.append(Row(where, as_clip_id(clip[1]), label))
    else:
      archive.problems.append(_of_line(where, "", f"{name!r} is not the number of a clip"))


def _of_line(where: str, line: str, what: str) -> Problem:
  """The problem of a line: of the clip that it seems to name, or of something that has no other name."""
  clip = re.search(r"(?:^|[/\\])([0-9]+)(?:\.\w+)?(?=[\s,;]|$)", line)
  return Problem(where, what, (as_clip_id(clip[1]),)) if clip else Problem("", what, (where,))


def _accepted(kinds: Sequence[str]) -> str:
  return " or ".join(FORMS[kind] for kind in kinds)


def _read_lines(
  lists: Sequence[FoldList], texts: Mapping[Path, Sequence[str]], kinds: Sequence[str], archive: Archive
) -> None:
  """Fills text lists with their rows; the form of each is that of most of its lines or, if as many, of all lists."""
  forms = {
    path: Counter(kind for line in text for kind, form in _LINES.items() if form.fullmatch(line.strip()))
    for path, text in texts.items()
  }
  everywhere = sum(forms.values(), Counter())
  for found in lists:
    shown, own = archive.show(found.path), forms[found.path]
    kind = max(_LINES, key=lambda form: (own[form], everywhere[form]))
    lines = [(i, line.strip()) for i, line in enumerate(texts[found.path], 1) if line.strip()]
    if not lines:
      archive.problems.append(Problem(shown, "is empty"))
    elif kind not in kinds or not own:
      archive.problems.append(Problem(shown, f"begins with {lines[0][1]!r}; accepted are {_accepted(kinds)}"))
    else:
      found.kind = kind
      for number, line in lines:
        _read_line(found, line, f"{shown} line {number}", archive)


def _read_line(found: FoldList, line: str, where: str, archive: Archive) -> None:
  """Reads a line of a text list from the right: a path may hold blanks."""
  match = _LINES[found.kind].fullmatch(line)
  if not match:
    archive.problems.append(
      _of_line(where, line, f"{line!r} is not of the form of the other {FORMS[found.kind]}")
    )
  elif found.kind == "plain":
    name = os.path.splitext(match[1])[0] if match[1].lower().endswith(VIDEOS) else match[1]
    found.rows.append(Row(where, as_clip_id(name), match[2]))
  else:
    *folders, name = re.split(r"[/\\]", match[1].rstrip("/\\"))  # made on any system
    found.rows.append(Row(where, as_clip_id(name), match[3], int(match[2]), "".join(folders[-1:])))


def check_numbers(lists: Sequence[FoldList], first: int, classes: Sequence[str]) -> None:
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


# ---- what the lists say together ----


class Place(NamedTuple):
  """Where a clip belongs."""

  row: Row
  label: str
  fold: int


LabelOf = Callable[[FoldList, str], str | None]  # class name of a label as written in a list


def places_of(lists: Sequence[FoldList], label_of: LabelOf, archive: Archive) -> dict[str, Place]:
  """The clips of the five test lists, each in one fold and with one label, in the order of the lists.

  Those in several, or with a label that is none, are problems of the archive.
  """
  places: dict[str, Place] = {}
  for found in (found for found in lists if found.part == "test"):
    for row in found.rows:
      label, before = label_of(found, row.written), places.get(row.clip_id)
      if label is None:
        wrong = f"{row.written!r} is not the label of a class"
      elif before:
        also = f", with the label {before.label} there and {label} here" if label != before.label else ""
        wrong = f"is in {before.row.where} already{also}"
      else:
        places[row.clip_id] = Place(row, label, found.fold)
        continue
      archive.problems.append(Problem(row.where, wrong, (row.clip_id,)))
  return places


def compare(
  lists: Sequence[FoldList], label_of: LabelOf, places: Mapping[str, Place], archive: Archive
) -> None:
  """Finds what train lists say against the test lists: training set k is all other folds.

  One thing that is wrong with a clip is said once, however many lists show it; and nothing of a clip that is a problem
  already.
  """
  known = archive.bad_clips
  readable = [found for found in lists if found.kind]
  complete = {found.fold for found in readable if found.part == "test"} == set(FOLDS)
  tested = {row.clip_id for found in readable if found.part == "test" for row in found.rows}
  trains = {found.fold: found for found in readable if found.part == "train"}
  if unchecked := [k for k in FOLDS if k not in trains]:
    archive.note(f"no list of the training set of fold {', '.join(map(str, unchecked))}: not compared")
  wrong: dict[tuple[str, str], list[int]] = defaultdict(list)  # (what, clip) -> in which training sets
  lines: dict[tuple[str, str], str] = {}  # the first line that says so
  for k, found in sorted(trains.items()):
    named = Counter(row.clip_id for row in found.rows)
    for row in found.rows:
      place, label = places.get(row.clip_id), label_of(found, row.written)
      if place and label != place.label:
        said = label or f"{row.written!r}, which is no class"
        what = f"{said}, but {place.label} in {place.row.where}"
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
