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

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import importlib
import os
from pathlib import Path
import re
from typing import Any, NamedTuple

from mma_dfer_jax.errors import listed
from mma_dfer_jax.lookalikes import alike, escaped, tidy

Counts = Mapping[str, Mapping[str, int]]  # clips by split and class
FOLDS = range(1, 6)  # of the published data sets
CLASSES = "Which classes to take, in label order; all, sorted, if not given."
EXAMPLES, NAMED = 3, 20  # of one kind of problem: so many are printed in full; so many, the others by name


class LabelOrder(NamedTuple):
  """Class names by label index, and whose order it is."""

  classes: tuple[str, ...]
  origin: str


def names() -> list[str]:
  """All data sets: the files of the folder `sources`."""
  return sorted(p.stem for p in (Path(__file__).parent / "sources").glob("*.py") if p.stem != "__init__")


def source_of(name: str) -> Any:
  """The file of a data set, as this module's docstring describes it."""
  return importlib.import_module(f"{__package__}.sources.{name}")


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
  for group in alike(classes):
    in_letters = len({" ".join(name.casefold().split()) for name in group}) > 1
    how = "look alike" if in_letters else "differ in case or spaces only"
    found.append(f"the class names {' and '.join(map(escaped, group))} {how}: write one of them")
  return found


class Problem(NamedTuple):
  """Something wrong with clips, which are left out for it; without clips, with all: nothing can be made of them."""

  where: str  # path, and line
  what: str  # after a clip's name, or after "3 clips"
  clips: tuple[str, ...] = ()

  def __str__(self) -> str:
    if len(self.clips) > 1:
      return _printable(
        f"{self.where}: {count(len(self.clips), 'clip')} {self.what}: {first_few(self.clips)}".removeprefix(
          ": "
        )
      )
    return _printable(": ".join(filter(None, (self.where, *self.clips, self.what))))


def in_lines(problems: Iterable[Problem]) -> list[str]:
  """A line for each problem, in natural order; more than three of a kind share one, with their number and examples."""
  kinds: dict[tuple[bool, str], list[Problem]] = defaultdict(list)
  for problem in sorted(dict.fromkeys(problems), key=lambda problem: natural(str(problem))):
    what = problem.what
    for clip in problem.clips:
      what = what.replace(os.path.basename(clip), "…")
    # The same for problems that differ only in names, paths and numbers.
    kind = re.sub(r"'[^']*'|[^\s:;,()']*[\d/…][^\s:;,()']*", "…", what)
    kinds[bool(problem.clips), kind].append(problem)
  lines = [str(one) for same in kinds.values() if len(same) <= EXAMPLES for one in same]
  for same in (same for same in kinds.values() if len(same) > EXAMPLES):
    clips = {clip for problem in same for clip in problem.clips}
    number = count(len(clips), "clip") if clips else f"{len(same)} lists, files or folders"
    others = [name for problem in same[EXAMPLES:] for name in problem.clips or [problem.where]]
    rest = f"; and {', '.join(others)}" if len(same) <= NAMED else " …"
    lines.append(f"{number} with the same kind of problem: {'; '.join(map(str, same[:EXAMPLES]))}{rest}")
  return sorted(lines, key=natural)


class Note(NamedTuple):
  """Something worth knowing that is not wrong, and the clips or files that it is about."""

  what: str
  names: tuple[str, ...] = ()
  warning: bool = False  # it may cost accuracy

  def __str__(self) -> str:
    number = f" ({len(self.names)})" if len(self.names) > 1 else ""
    return _printable(self.what + (f"{number}: {first_few(self.names)}" if self.names else ""))


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


def with_legible_names(layout: Layout) -> Layout:
  """Refuses clips whose names or labels are no text, and clips that people could not tell apart by their names."""
  problems = [
    Problem(clip.where, f"the name {escaped(name)} is not UTF-8; rename it", (clip.clip_id,))
    for clip in layout.clips for name in (clip.clip_id, clip.label) if not _is_text(name)
  ]  # fmt: skip
  for group in alike((clip.clip_id for clip in layout.clips), case=True):
    problems.append(
      Problem("", f"look alike: {' and '.join(map(escaped, group))}; rename one of them", tuple(group))
    )
  bad = {clip for problem in problems for clip in problem.clips}
  notes = [Note(f"clips whose names differ in case only: {' and '.join(group)}")
           for group in alike(clip.clip_id for clip in layout.clips) if not bad & set(group)]  # fmt: skip
  clips = [clip for clip in layout.clips if clip.clip_id not in bad]
  return dataclasses.replace(
    layout, clips=clips, problems=layout.problems + problems, notes=layout.notes + notes
  )


def _is_text(name: str) -> bool:
  return not any("\ud800" <= character <= "\udfff" for character in name)


def rate_warning(name: str, rates: Iterable[int]) -> str | None:
  """What to say if all sounds (Hz) of a data set are at 16 kHz though its published scores are from other rates."""
  if name not in names() or not hasattr(source_of(name), "SCORES") or set(rates) != {16_000}:
    return None
  return ("all sounds have 16000 Hz: common recipes convert them, which costs about 2.6 UAR, as the original reads every file "
          "at its own rate (mostly 44100 or 48000 Hz); extract the wavs from the videos without a sample rate (no "
          "`-ar 16000`) and prepare again with --overwrite")  # fmt: skip


def first_few(names: Iterable[object], most: int = 5) -> str:
  texts = [str(name) for name in names]
  return ", ".join(texts[:most]) + " …" * (len(texts) > most)


def count(number: int, one: str) -> str:
  return f"{number} {one}{'' if number == 1 else 's'}"  # "1 clip", "2 clips"


def natural(name: str) -> tuple[list[tuple[int, int, str]], str]:
  """Sorts names as people do: 2 before 10."""
  parts = re.split("([0-9]+)", name)  # text and digits take turns; Python refuses to read thousands of digits
  return [(0, int(part[:4000]), "") if i % 2 else (1, 0, part) for i, part in enumerate(parts) if part], name


def as_clip_id(name: str) -> str:
  """A clip's name with or without leading zeros -> the same id."""
  return f"{int(name):05d}" if re.fullmatch("[0-9]{1,200}", name) else name


def _printable(text: str) -> str:
  """A line without control characters and other bytes that no terminal should get; names of files may hold any."""
  return "".join(c if c.isprintable() or c == " " else c.encode("unicode_escape").decode() for c in text)
