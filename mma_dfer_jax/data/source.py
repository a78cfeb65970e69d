"""What a data set is: the file that reads it, the clips that it finds there, and what it says about the others.

A data set is a file: `sources/dfew.py` is `--dataset=dfew`. The folder is the list of all data sets, and nothing is
registered anywhere. Such a file holds

  FLAG     which flag says where the clips are: raw or manifest
  LAYOUT   what it accepts there, shown when it does not recognise a folder
  Options  a frozen dataclass; its fields are flags of `prepare`
  read     (place, options) -> Layout. It looks at names and lists only and decodes nothing. It collects all that is wrong
           in `Layout.problems`, raises what leaves no data set at all, and drops nothing without a problem or a note.
  LABELS   label orders that are in circulation, by name: lists and checkpoints of others count by them
  COUNTS   published clips by split and class
  SCORES   the paper's means over the folds, in percent: such a data set has lists that everybody shares
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import importlib
import itertools
import os
from pathlib import Path
import re
from typing import Any, NamedTuple

from mma_dfer_jax.errors import EXAMPLES, UserError, count, counted, listed, printable
from mma_dfer_jax.lookalikes import alike, escaped, keys, looks, tidy

Counts = Mapping[str, Mapping[str, int]]  # clips by split and class
FOLDS = range(1, 6)  # of the published data sets
CLASSES = "Takes only these classes, in this label order. Without it: all classes, in the order that the data set prints."
LINKS = "Takes what symbolic links lead to, even outside of the given folder."
_VARYING = re.compile(r"'[^']*'|[^\s:;,()']*[\d/…][^\s:;,()']*")  # of a problem: quoted words, paths, numbers
_CONTENTS = ("FLAG", "LAYOUT", "Options", "read")  # that no data set can do without


class LabelOrder(NamedTuple):
  """Class names by label index, and whose order it is."""

  classes: tuple[str, ...]
  origin: str


def names() -> list[str]:
  """All data sets: the files of the folder `sources`."""
  return sorted(p.stem for p in (Path(__file__).parent / "sources").glob("*.py") if p.stem != "__init__")


def source_of(name: str) -> Any:
  """The file of a data set, as this module's docstring describes it; UserError with what is wrong with the file."""
  try:
    of = importlib.import_module(f"{__package__}.sources.{name}")
    if missing := [what for what in _CONTENTS if not hasattr(of, what)]:
      raise AttributeError(f"it has no {', '.join(missing)}")
  except Exception as error:  # whatever a broken file raises
    where = f"mma_dfer_jax/data/sources/{name}.py"
    raise UserError(f"{where} is broken, fix or remove it: {type(error).__name__}: {error}") from error
  return of


def said_by(name: str, what: str) -> Any:
  """What a data set's file has under this name; None if it has no such thing, is broken, or is not there."""
  try:
    return getattr(source_of(name), what, None)
  except UserError:
    return None


def fields_of(name: str) -> dict[str, dataclasses.Field]:
  """The fields of a data set's Options by name; none if its file is broken, or not there."""
  return getattr(said_by(name, "Options"), "__dataclass_fields__", {})


def folds_of(classes: Sequence[str], *rows: Sequence[int]) -> Counts:
  """COUNTS from a row of numbers for each fold."""
  return {f"fold{k}": dict(zip(classes, row, strict=True)) for k, row in enumerate(rows, 1)}


def option(default: Any, help: str, *choices: str, path: bool = False) -> Any:
  """A field of Options: its default, its help as a flag, and the values that it may have, or whether it is a path."""
  return dataclasses.field(default=default, metadata={"help": help, "choices": choices, "path": path})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  """What can be asked of every data set. Raises UserError on construction, naming every value that cannot be."""

  allow_missing_sound: bool = option(False, "Take clips without sound: the original's constant spectrogram.")
  faces: str | None = option(None, "yunet finds the face in every frame and cuts it out.", "none", "yunet")

  def __post_init__(self):
    problems = []
    for field in dataclasses.fields(self):
      value, choices = getattr(self, field.name), field.metadata["choices"]
      if choices and value not in (field.default, *choices):
        problems.append(f"--{field.name}={value}: choose one of {', '.join(choices)}")
    classes: Sequence[str] = [tidy(name) for name in getattr(self, "classes", ())]
    if classes:
      object.__setattr__(self, "classes", tuple(classes))
    if len(set(classes)) < len(classes) or not all(classes):
      problems.append(f"--classes={','.join(classes)}: every class needs a name of its own")
    problems += [f"--classes: {wrong}" for wrong in near_duplicates(classes)]
    if problems:
      raise listed("these flags cannot be used", problems)


def near_duplicates(classes: Iterable[str]) -> list[str]:
  """What is wrong with class names that a person cannot tell apart: most often one is meant."""
  found = []
  for group in alike(classes, keys):
    number = any(kind == "number" for kind, _ in set.intersection(*map(keys, group)))
    in_letters = len({" ".join(name.casefold().split()) for name in group}) > 1
    how = "are the same number" if number else "look alike" if in_letters else "differ in case or spaces only"
    found.append(f"the class names {' and '.join(map(escaped, group))} {how}: write one of them")
  return found


class Problem(NamedTuple):
  """Something wrong with clips, which are left out for it; without clips, with all: nothing can be made of them."""

  where: str  # path, and line
  what: str  # after a clip's name, or after "3 clips"
  clips: tuple[str, ...] = ()

  def __str__(self) -> str:
    if len(self.clips) > 1:
      text = f"{self.where}: {count(len(self.clips), 'clip')} {self.what}: {first_few(self.clips)}"
      return printable(text.removeprefix(": "))
    return printable(": ".join(filter(None, dict.fromkeys((self.where, *self.clips, self.what)))))


def in_lines(problems: Iterable[Problem]) -> list[str]:
  """A line for each problem, in natural order; more than three of a kind share one, with their number and three examples."""
  kinds: dict[tuple[bool, str], list[tuple[Problem, str]]] = defaultdict(list)
  for problem in sorted(dict.fromkeys(problems), key=lambda problem: natural(str(problem))):
    what = problem.what
    for clip in problem.clips:
      what = re.sub(rf"(?<![\w'…]){re.escape(os.path.basename(clip))}(?![\w'…])", "…", what)
    kinds[bool(problem.clips), _VARYING.sub("…", what)].append((problem, what))
  lines = []
  for (of_clips, _), same in kinds.items():
    if len(same) <= EXAMPLES:
      lines += [str(problem) for problem, _ in same]
    else:
      unit = "clips" if of_clips else "lists, files or folders"
      shared = _in_common([what for _, what in same], unit)
      names = [str(Problem(one.where, "", (clip,))) for one, _ in same for clip in one.clips or [""]]
      lines += counted([(name, shared) for name in names], unit)
  return sorted(lines, key=natural)


def _in_common(texts: Sequence[str], unit: str) -> str:
  """Texts of one kind as one: what differs becomes …, but of quoted words all are named, with their numbers."""
  columns = []
  for column in zip(*map(_VARYING.findall, texts), strict=True):
    words = [f"{word} ({number})" for word, number in Counter(column).most_common()]
    named = first_few([f"{words[0][:-1]} {unit})", *words[1:]], 12) if column[0].startswith("'") else "…"
    columns.append(named if len(words) > 1 else column[0])
  return "".join(itertools.chain(*itertools.zip_longest(_VARYING.split(texts[0]), columns, fillvalue="")))


def left_out(label: str) -> str:
  """What to say of clips whose class --classes does not name."""
  return f"clips of the class {label} left out, as --classes does not name it"


class Note(NamedTuple):
  """Something worth knowing that is not wrong, and the clips or files that it is about."""

  what: str
  names: tuple[str, ...] = ()
  warning: bool = False  # it may cost accuracy

  def __str__(self) -> str:
    number = f" ({len(self.names)})" if len(self.names) > 1 else ""
    return printable(self.what + (f"{number}: {first_few(self.names)}" if self.names else ""))


@dataclasses.dataclass(frozen=True)
class ClipFiles:
  """One clip: where its pictures and its sound are, and its decoded form until the data set is written."""

  clip_id: str  # unique; the archive's own name, numbers with five digits: "00001"
  where: str  # the line or the file that names it, for messages
  label: str  # class name; empty: there is none
  split: str  # "fold1" … "fold5", or "train" and "test"
  frames: tuple[Path, ...] = ()  # picture files in the order of their use; empty: they come from `video`
  video: Path | None = None
  sound: Path | None = None  # a sound file, or the video; None: there is none for this clip
  decoded: Path = Path()  # .npz: lengths and sizes of frames, waveform, sample_rate, face_share
  votes: tuple[int, ...] = ()  # of people for each class, in label order; empty: there are none

  @property
  def pictures(self) -> Path:
    """Beside `decoded`, and complete if that is there: the bytes of all frames."""
    return self.decoded.with_suffix(".frames")


@dataclasses.dataclass(frozen=True)
class Layout:
  """What a source found: good clips, and what to say about the others."""

  classes: tuple[str, ...]  # in label order; empty: the clips have no labels
  class_order: str  # whose order it is
  clips: list[ClipFiles]
  problems: list[Problem]  # the clips concerned are not in `clips`
  recipe: dict[str, str]  # what was chosen, to be stored with the data set
  notes: list[Note]
  splits: frozenset[str] = frozenset()  # that are named, if perhaps without a good clip
  doubtful: frozenset[str] = frozenset()  # classes that clips with problems have, or may have


def with_legible_names(layout: Layout) -> Layout:
  """Refuses clips whose names or labels are no text, and clips that people could not tell apart by their names."""
  problems = [Problem(clip.where, f"the name {escaped(clip.clip_id)} is not UTF-8; rename it", (clip.clip_id,))
              for clip in layout.clips if not _is_text(clip.clip_id + clip.label)]  # fmt: skip
  for group in alike((clip.clip_id for clip in layout.clips), lambda name: [looks(name, case=True)]):
    what = f"look alike: {' and '.join(map(escaped, group))}; rename one of them"
    problems.append(Problem("", what, tuple(group)))
  bad = {clip for problem in problems for clip in problem.clips}
  clips = [clip for clip in layout.clips if clip.clip_id not in bad]
  similar = tuple(itertools.chain(*alike((clip.clip_id for clip in clips), lambda name: [looks(name)])))
  notes = layout.notes + [Note("clips whose names differ in case only", similar)] * bool(similar)
  classes, problems = tuple(filter(_is_text, layout.classes)), layout.problems + problems
  return dataclasses.replace(layout, classes=classes, clips=clips, problems=problems, notes=notes)


def _is_text(name: str) -> bool:
  return not any("\ud800" <= character <= "\udfff" for character in name)


def rate_warning(name: str, rates: Mapping[int, int]) -> str | None:
  """What to say if more than a few sounds are at 16 kHz though the data set's published scores are from other rates.

  Args:
    rates: number of sounds by sample rate in Hz.
  """
  converted, total = rates.get(16_000, 0), sum(rates.values())
  few = converted < total and converted <= max(2, total // 100)
  if not said_by(name, "SCORES") or not converted or few:
    return None
  return (f"{converted} of {total} sounds have 16000 Hz: common recipes convert them, which costs about 2.6 UAR, as the "
          "original reads every file at its own rate (mostly 44100 or 48000 Hz); extract the wavs from the videos without a "
          "sample rate (no `-ar 16000`) and prepare again with --overwrite")  # fmt: skip


def first_few(names: Iterable[object], most: int = 5) -> str:
  texts = [str(name) for name in names]
  return ", ".join(texts[:most]) + " …" * (len(texts) > most)


def natural(name: str) -> tuple[list[tuple[int, int, str]], str]:
  """Sorts names as people do: 2 before 10."""
  parts = re.split("([0-9]+)", name)  # text and digits take turns; Python refuses to read thousands of digits
  return [(0, int(part[:4000]), "") if i % 2 else (1, 0, part) for i, part in enumerate(parts) if part], name


def as_clip_id(name: str) -> str:
  """A clip's name with or without leading zeros -> the same id."""
  return f"{int(name):05d}" if re.fullmatch("[0-9]{1,200}", name) else name
