"""Data sets whose clips stand in lists of five folds: the lists, which must agree, and the files of the clips in them."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
import dataclasses
import functools
import os
from pathlib import Path
import re
from typing import NamedTuple

from mma_dfer_jax.data import archive, source
from mma_dfer_jax.data.archive import PICTURES, SOUNDS, VIDEOS, Archive, scan
from mma_dfer_jax.data.source import FOLDS, ClipFiles, LabelOrder, Layout, as_clip_id, first_few, option
from mma_dfer_jax.data.tables import read_table, read_text
from mma_dfer_jax.errors import UserError, listed
from mma_dfer_jax.lookalikes import escaped, looks, tidy
from mma_dfer_jax.paths import hint

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
  lists: str | None = option(None, "Folder with the lists of the folds, if they are not in --raw.", path=True)
  recipe: str = option("default", "reference: frames as the original orders them.", "default", "reference")
  frames: str = option("all", "Which pictures to take.")


class Row(NamedTuple):
  """One line of a list."""

  path: Path  # of the list
  fold: int
  part: str  # train or test
  kind: str  # the form of the list, one of FORMS
  where: str  # path and line, for messages
  clip_id: str
  written: str  # label
  annotated: int | None = None  # number of frames
  folder: str = ""  # that the list says the clip is in
  label: str | None = None  # class; None: not known yet, or not one of them


class ListedArchive(Archive):
  """An archive with lists of folds.

  `folders` are the names of the folder that each choice of --frames takes, `sounds` the folder with sounds, `first` the
  forms of lists that are accepted, and the number from which each counts its labels.
  """

  def __init__(self, name: str, raw: Path, folders: Mapping[str, Sequence[str]], sounds: str, first: Mapping[str, int],
               layout: str, options: Options):  # fmt: skip
    super().__init__(raw, {sounds, *(name for names in folders.values() for name in names)}, layout, options)
    self.name, self.by_frames, self.sounds, self.first = name, folders, sounds, first
    self.options: Options = options
    self.rows: list[Row] = []  # by fold, the test list first

  def read_lists(self, own: Path | None) -> None:
    """Reads all lists in --lists, or else in a folder of the archive: at most one for each fold and part.

    A list that is missing or cannot be read is a problem of the whole; one of its lines is a problem of a clip.
    """
    folder = Path(self.options.lists) if self.options.lists else own
    if not folder:
      raise self.unrecognised("there are no lists of folds")
    if not folder.is_dir():
      words = f"{hint(folder, folder=True)}; give the folder with the lists of all folds"
      raise UserError(f"--lists={folder}: {words}\n{self.layout}")
    files = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in (".csv", ".txt")
             and not path.name.startswith(".") and "__MACOSX" not in path.parts]  # fmt: skip
    others = {"dfew", "mafw", "ferv39k"} - {self.name}
    found: dict[tuple[int, str], Path] = {}
    for path in files:
      key = _fold_and_part(path.relative_to(folder))
      if not key or any(other in path.name.lower() for other in others):
        self.note(f"{folder}: no lists of folds of {self.name}, not used", str(path.relative_to(folder)))
      elif key[0] not in FOLDS:
        self.problem(path, f"there is no fold {key[0]}, there are 5")
      elif (same := found.setdefault(key, path)) != path and path.read_bytes() != same.read_bytes():
        self.problem(path, f"is another {key[1]} list of fold {key[0]}, beside {self.show(same)}")
    if not found:
      there = first_few([path.relative_to(folder) for path in files]) or "no .csv and no .txt file"
      raise listed(f"{folder}: holds no list of a fold of {self.name}", [f"found: {there}"], self.layout)
    if missing := ", ".join(str(k) for k in FOLDS if (k, "test") not in found):
      there = first_few(self.show(found[key]) for key in sorted(found))
      self.problem(str(folder), f"no list of the test set of fold {missing}; found {there}")
    rows = self._read_rows(found)
    self.rows = [row for key in sorted(rows) for row in rows[key]]
    for key in rows.keys() - {(row.fold, row.part) for row in self.rows}:
      self.problem(found[key], "names no clip")

  def _read_rows(self, found: Mapping[tuple[int, str], Path]) -> dict[tuple[int, str], list[Row]]:
    """The lists that can be read. Texts all have the form of most of their lines."""
    accepted = " or ".join(FORMS[kind] for kind in self.first)
    rows: dict[tuple[int, str], list[Row]] = {}
    texts: dict[tuple[int, str], list[tuple[int, str]]] = {}
    for key, path in found.items():
      try:
        if path.suffix.lower() != ".csv":
          numbered = enumerate(map(tidy, read_text(path).splitlines()), 1)
          texts[key] = [(number, line) for number, line in numbered if line]
        elif "csv" not in self.first:
          raise ValueError(f"is a csv; accepted are {accepted}")
        else:
          rows[key] = list(self._read_csv(path, *key))
      except ValueError as error:
        self.problem(path, str(error))
    lines = [line for text in texts.values() for _, line in text]
    kind = max(_LINES, key=lambda kind: sum(map(bool, map(_LINES[kind].fullmatch, lines))))
    for key, text in texts.items():
      if not text:
        self.problem(found[key], "is empty")
      elif kind not in self.first or not any(_LINES[kind].fullmatch(line) for _, line in text):
        self.problem(found[key], f"begins with {text[0][1]!r}; accepted are {accepted}")
      else:
        rows[key] = list(self._read_text(found[key], *key, kind, text))
    return rows

  def _read_csv(self, path: Path, fold: int, part: str) -> Iterator[Row]:
    header, rows, notes = read_table(path, "video_name,label")
    for note in notes:
      self.note(note, self.show(path))
    for number, values, row in rows:
      where, name = f"{self.show(path)} line {number}", row["video_name"]
      clip = re.fullmatch(rf"([0-9]+)({'|'.join(map(re.escape, VIDEOS))})?", name)
      if len(values) != len(header):
        wrong = f"{source.count(len(values), 'value')} in {len(header)} columns: {','.join(values)!r}"
        self._line_problem(where, name, wrong)
      elif clip:
        yield Row(path, fold, part, "csv", where, as_clip_id(clip[1]), row["label"])
      else:
        self._line_problem(where, "", f"{name!r} is not the number of a clip")

  def _read_text(self, path: Path, fold: int, part: str, kind: str, text: Iterable[tuple[int, str]]) -> Iterator[Row]:  # fmt: skip
    """Reads lines from the right: a path may hold blanks."""
    for number, line in text:
      where, match = f"{self.show(path)} line {number}", _LINES[kind].fullmatch(line)
      if not match:
        self._line_problem(where, line, f"{line!r} is not of the form of the other {FORMS[kind]}")
      elif kind == "plain":
        name = os.path.splitext(match[1])[0] if match[1].lower().endswith(VIDEOS) else match[1]
        yield Row(path, fold, part, kind, where, as_clip_id(name), match[2])
      else:
        *above, name = re.split(r"[/\\]", match[1].rstrip("/\\"))  # made on any system
        clip_id, folder = as_clip_id(name), "".join(above[-1:])
        yield Row(path, fold, part, kind, where, clip_id, match[3], int(match[2]), folder)

  def _line_problem(self, where: str, line: str, what: str) -> None:
    """The problem of a line: of the clip that it seems to name, or of something that has no other name."""
    clip = re.search(r"(?:^|[/\\])([0-9]+)(?:\.\w+)?(?=[\s,;]|$)", line)
    self.problem(where, what, as_clip_id(clip[1])) if clip else self.problem("", what, where)

  def read_labels(self, classes: Sequence[str]) -> None:
    """Finds the classes that the lists mean: by numbers in this order, by names, or by the same in other words.

    It refuses numbers that count from elsewhere: some label is too large and the smallest is never used, or the other way
    round, so that all of them would be one off.
    """
    for kind, first in self.first.items():
      rows, last = [row for row in self.rows if row.kind == kind], first + len(classes) - 1
      numbers = {int(row.written) for row in rows if re.fullmatch("-?[0-9]{1,99}", row.written)}
      if (last + 1 in numbers and first not in numbers) or (first - 1 in numbers and last not in numbers):
        step = "add 1 to" if first > min(numbers) else "subtract 1 from"
        raise UserError(f"{rows[0].path.parent}: labels go from {min(numbers)} to {max(numbers)}, but here {first} is "
                        f"{classes[0]} and {last} is {classes[-1]}; {step} every label")  # fmt: skip

    @functools.cache
    def label_of(word: str, first: int) -> str | None:
      if re.fullmatch("[0-9]{1,99}", word):
        return classes[int(word) - first] if first <= int(word) < first + len(classes) else None
      alike = {other for words in _WORDS if word in words.split() for other in words.split()}
      fitting = [name for name in classes if name.lower() == word] or list(alike.intersection(classes))
      return fitting[0] if len(fitting) == 1 else None

    self.rows = [row._replace(label=label_of(looks(row.written), self.first[row.kind])) for row in self.rows]

  def _places(self, classes: Sequence[str]) -> dict[str, Row]:
    """The clips of the five test lists, each in one fold and with one label, in the order of the lists."""
    places: dict[str, Row] = {}
    names, last = ", ".join(classes), len(classes) - 1
    allowed = {kind: f"{names} or {first}…{first + last}" for kind, first in self.first.items()}
    for row in (row for row in self.rows if row.part == "test"):
      before = places.get(row.clip_id)
      if row.label is None:
        what = f"unknown label {escaped(row.written)}; write {allowed[row.kind]}"
        self.problem(row.where, what, row.clip_id)
        self.doubtful.update(classes)
      elif before:
        labels = f", with the label {before.label} there and {row.label} here" * (row.label != before.label)
        self.problem(row.where, f"is in {before.where} already{labels}", row.clip_id)
      else:
        places[row.clip_id] = row
        if not row.written.isdecimal() and row.label != row.written.lower():
          self.note(f"the label {row.written} is read as {row.label}", row.clip_id)
    return places

  def _compare(self, places: Mapping[str, Row]) -> None:
    """Finds what train lists say against the test lists: training set k is all other folds.

    It names a mistake once, however many lists show it, and none of a clip that is a problem already.
    """
    wrong: dict[tuple[str, str], dict[int, str]] = defaultdict(dict)  # (what, clip) -> by training set: where
    shown = {row.fold: self.show(row.path) for row in self.rows if row.part == "train"}
    train = {k: Counter(row.clip_id for row in self.rows if row[1:3] == (k, "train")) for k in sorted(shown)}
    tested = {row.clip_id for row in self.rows if row.part == "test"}
    complete = {row.fold for row in self.rows if row.part == "test"} == set(FOLDS)
    if unchecked := [str(k) for k in FOLDS if k not in shown]:
      self.note(f"no list of the training set of fold {', '.join(unchecked)}: not compared")
    for row in self.rows:
      place = places.get(row.clip_id)
      if row.part == "train" and place and row.label != place.label:
        written = row.label or f"{row.written!r}, which is no class"
        wrong[f"{written}, but {place.label} in {place.where}", row.clip_id].setdefault(row.fold, row.where)
    for k, clips in train.items():
      here = {clip for clip, place in places.items() if place.fold == k}
      mistakes = {
        "named more than once": {clip for clip, times in clips.items() if times > 1},
        "also in the test set of the same fold": here & clips.keys(),
      }
      if complete:
        mistakes["in no test set"] = clips.keys() - tested
        mistakes["missing, though in the test set of another fold"] = places.keys() - here - clips.keys()
      for what, clip in ((what, clip) for what, those in mistakes.items() for clip in those):
        wrong[what, clip][k] = shown[k]
    bad = self.bad_clips
    for (what, clip), lists in wrong.items():
      if clip not in bad:
        first, *others = lists
        also = f" and the training sets of the folds {', '.join(map(str, others))}" if others else ""
        self.problem(lists[first] + also, what, clip)

  def find_frames(self, *choices: str, by_lists: bool) -> Path:
    """The folder that these choices of --frames take, or with `by_lists` the one that the lists name; there must be one."""
    folder = self.find(*(name for choice in choices for name in self.by_frames[choice]))
    named = {row.folder for row in self.rows if row.folder and by_lists and not folder}
    if len(named) == 1 and (folder := self.find(*named)):
      self.note(f"{self.show(folder)}: pictures are taken from here, as the lists name this folder")
    if not folder:
      advice = [f"there is {self.show(path)}: --frames={choice} takes it" for choice, names in self.by_frames.items()
                for name in names for path in self.folders.get(name, ())]  # fmt: skip
      missing = " or ".join(self.by_frames[choice][0] for choice in choices)
      raise self.unrecognised(f"no folder {missing}, which --frames={self.options.frames} needs", *advice)
    return folder

  def _clips(self, places: Mapping[str, Row], pictures: Path | None, videos: Path | None, wavs: Path | None,
             ) -> list[ClipFiles]:  # fmt: skip
    """The clips whose pictures and sound are there; what is wrong with each of the others becomes one problem."""
    home, what, sounds_in = pictures or videos or self.raw, "folder" if pictures else "video", wavs or videos
    of_videos = self.index(None if pictures and wavs else videos, VIDEOS)
    looked = self.index(pictures) if pictures else of_videos
    sounds = self.index(wavs, SOUNDS) if wavs else of_videos
    bad, named = self.bad_clips, {row.clip_id for row in self.rows}
    if others := sorted(looked.keys() - named - bad):
      self.note(f"{self.show(home)}: clips in no list, not used", *others)
    good: list[tuple[Row, list[str]]] = [(row, []) for row in places.values() if row.clip_id not in bad]
    found = [self.only_match(looked, row.clip_id, what, home, wrong) for row, wrong in good]
    with ThreadPoolExecutor(8) as pool:  # a network disk answers several at once
      scans = list(pool.map(lambda path: scan(path) if pictures and path else None, found))
    clips = []
    for (row, wrong), path, scanned in zip(good, found, scans, strict=True):
      names = self._in_order(path, scanned, row.annotated, wrong) if path and scanned else []
      of = "wav" if wavs else "video"
      sound = self.only_match(sounds, row.clip_id, of, sounds_in, wrong, sound=True) if sounds_in else None
      if wrong:
        self.problem(row.where, "; ".join(wrong), row.clip_id)
      elif path:
        media = tuple(path / name for name in names), None if pictures else path, sound
        clips.append(ClipFiles(row.clip_id, row.where, str(row.label), f"fold{row.fold}", *media))
    return clips

  def _in_order(self, folder: Path, scanned: tuple, annotated: int | None, wrong: list[str]) -> list[str]:
    """Names of the pictures in the order of their use; adds what is wrong with them.

    Source: reference.md, quirks 13 and 14. The original takes everything that a folder holds but hidden files, in string
    order, and of it as many as its list says.
    """
    folders, files, links, error = scanned
    shown, original = self.show(folder), self.options.recipe == "reference"
    if error:
      wrong.append(f"{shown} cannot be read ({error})")
      return []
    wrong += [f"{shown}/{name} {bad}" for name in links if (bad := self.wrong_link(folder / name))]
    names = sorted((name for name in (*files, *links) if name.lower().endswith(PICTURES)), key=source.natural)
    others = [*folders, *(name for name in (*files, *links) if not name.lower().endswith(PICTURES))]
    if not names:
      wrong.append(f"{shown} holds no pictures ({first_few(others, 3) or 'nothing at all'})")
      return []
    for what, example in _odd(names, others).items():
      if example:
        self.note(f"clips with {what}", f"{shown} ({example})")
    if original and others:
      wrong.append(f"{shown} holds what is no picture, but counts in the original: {first_few(others, 3)}")
    if original:
      names.sort()
    if annotated is None or annotated == len(names):
      return names
    if original and not 0 < annotated <= len(names):
      wrong.append(f"{shown} holds {source.count(len(names), 'picture')}, {annotated} are annotated")
      return names
    used = "the rest, last in string order, is not used" if original else "all files are used"
    what = f"fewer frames than there are files: {used}"
    if annotated > len(names):
      what = "more frames than there are files: all files are used, some may be missing"
    self.note(f"clips annotated with {what}", f"{shown} ({annotated} annotated, {len(names)} there)")
    return names[:annotated] if original else names

  def _describe_sounds(self, clips: Sequence[ClipFiles], wavs: Path | None, videos: Path | None) -> str:
    """Notes what is odd about the sounds, by names and some headers; returns what the recipe says of them."""
    if not wavs:
      return f"videos of {videos.name}" if videos else "none"
    files = [clip.sound for clip in clips if clip.sound]
    kinds = sorted({path.suffix.lower().removeprefix(".") for path in files}) or ["wav"]
    if others := [path for path in files if path.suffix.lower() != ".wav"]:
      read = " or ".join(kind for kind in kinds if kind != "wav")
      self.note(f"{self.show(wavs)}: {len(others)} of {source.count(len(files), 'clip')} have no wav; their {read} is read",
                warning=True)  # fmt: skip
    with ThreadPoolExecutor(8) as pool:  # a network disk answers several at once
      rates = Counter(pool.map(_wav_rate, (path for path in files if path.suffix.lower() == ".wav")))
    rates.pop(0, None)
    if text := source.rate_warning(self.name, rates):
      self.note(text, warning=True)
    return f"{' and '.join(kinds)} files of {wavs.name}"

  def read(self, order: LabelOrder, kind: str, pictures: Path | None, *, own_sound: bool = False, **facts: str) -> Layout:  # fmt: skip
    """Lists and media put together; `kind` of pictures and `facts` are for the recipe.

    Without the folder `pictures`, pictures come from the videos; with `own_sound`, sound does so too.
    """
    from mma_dfer_jax.data.faces import ARCHIVE_FACES  # here, as labels need no OpenCV

    known = {name: choice for choice, names in self.by_frames.items() if choice != "video" for name in names}
    of = {known[row.folder.lower()] for row in self.rows if row.folder.lower() in known}
    if kind in known.values() and of - {kind}:  # the lists' numbers of frames would be wrong
      both = f"the lists are of --frames={', '.join(of)}, but --frames={kind} was chosen"
      raise UserError(f"{self.rows[0].path.parent}: {both}; choose one for both")
    (videos_in,) = self.by_frames["video"]
    videos, wavs = self.find(videos_in), None if own_sound else self.find(self.sounds)
    if kind in ("scenes", "video") and self.options.faces != "yunet":
      self.note(f"{self.show(pictures or videos or self.raw)}: whole scenes, taken as they are; the published results are "
                "from cropped faces, which --faces=yunet makes", warning=True)  # fmt: skip
    if kind in self.by_frames and kind not in ("scenes", "video") and self.options.faces == "yunet":
      whole = " or ".join(f"--frames={choice}" for choice in ("scenes", "video") if choice in self.by_frames)
      self.note(f"{self.show(pictures or self.raw)}: these are cropped faces already, and --faces=yunet cuts faces out of the "
                f"crops: leave it out, or take whole scenes with {whole}", warning=True)  # fmt: skip
    silent = f"there is no sound: no folder {self.sounds} or {videos_in}"
    if not (wavs or videos) and self.options.allow_missing_sound:
      self.note(silent)
    elif not (wavs or videos):
      self.problem(str(self.raw), f"{silent}; there are {self._other_folders()}; --allow_missing_sound takes all clips "
                                  "without sound")  # fmt: skip
    places = self._places(order.classes)
    clips = self._clips(places, pictures, videos, wavs)
    sound = self._describe_sounds(clips, wavs, videos)
    self._compare(places)  # last: it says nothing more of clips that are a problem already
    original, forms = self.options.recipe == "reference", sorted({row.kind for row in self.rows})
    recipe = archive.OF_VIDEO if kind == "video" else {
      "frames": kind,
      "frame_order": "string: 10.jpg before 2.jpg, as the original" if original else "natural: 2.jpg before 10.jpg",
      "frame_count": "as annotated in the lists" if original and "counted" in forms else "all files",
      "frame_coding": "as delivered",
    } | ({} if kind == "scenes" else ARCHIVE_FACES)  # fmt: skip
    folds = f"test set k of the lists, {' and '.join(sorted(FORMS[form] for form in forms))}"
    recipe = {**recipe, "sound": sound, **facts, "folds": folds}
    bad = self.bad_clips
    self.doubtful.update(str(row.label) for row in places.values() if row.clip_id in bad)
    return self.found(clips, order, recipe, [f"fold{k}" for k in FOLDS])

  def _other_folders(self) -> str:
    """The folders of the archive; first those with sounds, and how they should be named."""
    sounds, others = [], []
    for path in dict.fromkeys(path for paths in self.folders.values() for path in paths if path != self.raw):
      if number := sum(name.lower().endswith(SOUNDS) for name in scan(path)[1]):
        sounds.append(f"{self.show(path)} with {source.count(number, 'sound')} (name it {self.sounds})")
      else:
        others.append(self.show(path))
    return first_few([*sorted(sounds), *sorted(others, key=source.natural)], 12)


def _fold_and_part(path: Path) -> tuple[int, str] | None:
  """What the names of a list file and of its folders say, the innermost first."""
  fold = part = None
  for name in reversed([*path.parts[:-1], path.stem]):
    parts = set(re.findall("(?<![a-z])train|(?<![a-z])test", name.lower()))
    part = part or (parts.pop() if len(parts) == 1 else None)
    number = re.search(r"(?:set|fold|split)[ _-]*(\d+)(?!\d)|^(\d+)$", name.lower())
    fold = fold or (number and (number[1] or number[2]))
  return (int(fold), part) if fold and part else None


def _odd(names: Sequence[str], others: Sequence[str]) -> dict[str, str]:
  """What is odd about a folder of pictures, given in natural order, and of others: an example of it, or nothing."""
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
    "something that by its extension is no picture, not used": first_few(others, 1),
    "pictures of several file types": ", ".join(kinds) if len(kinds) > 1 else "",
    "several pictures of the same number": ", ".join(double[0]) if double else "",
    "pictures without a number among numbered ones": unnumbered[0] if first and unnumbered else "",
    "pictures that are named in different ways": f"{names[0]}, {names[-1]}" if several else "",
    "gaps in the numbers of their pictures": f"{lacking} lacking" if lacking else "",
  }


def _wav_rate(path: Path) -> int:
  """Hz, by the header of a wav; 0 if it has none."""
  with path.open("rb") as file:
    at = (head := file.read(4096)).find(b"fmt ")
  return int.from_bytes(head[at + 12 : at + 16], "little") if at > 0 else 0
