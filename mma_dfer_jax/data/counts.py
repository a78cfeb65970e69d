"""Clips by split and class: what a run cannot use, what differs from the published numbers, and the table of them."""

from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass, field

from mma_dfer_jax.data.labels import COUNTS, SCORES
from mma_dfer_jax.data.source import Counts, count, fields_of, first_few, names
from mma_dfer_jax.errors import EXAMPLES


@dataclass
class Findings:
  """What was found."""

  counts: Counts  # clips, as found
  published: Counts  # clips, as published; empty: not known
  problems: list[str] = field(default_factory=list)  # make a training pointless or its score wrong
  warnings: list[str] = field(default_factory=list)  # need a human look
  notes: list[str] = field(default_factory=list)  # worth knowing, not wrong
  purpose: str = "training"

  @property
  def verdict(self) -> str:
    if self.problems:
      return f"NOT FIT for {self.purpose.removesuffix(' only')}: {count(len(self.problems), 'problem')}"
    looks = f", but look at {count(len(self.warnings), 'warning')}" if self.warnings else ""
    return f"fit for {self.purpose}{looks}"

  def print_lines(self) -> None:
    """Prints the table and all findings."""
    if any(any(row.values()) for row in self.counts.values()):
      print(counts_table(self))
    for title in ("problems", "warnings", "notes"):
      if lines := getattr(self, title):
        print(f"{title}:", *lines, sep="\n  - ")


def published_counts(name: str, classes: Sequence[str]) -> Counts:
  """The published clips of a data set; none if it is not known, or somebody takes some of its classes only."""
  published = COUNTS.get(name, {})
  return published if all(set(row) == set(classes) for row in published.values()) else {}


def report(found: list[str], text: str, names: Sequence[str]) -> None:
  """Adds one line for all equal findings: how many, and some examples. Adds nothing if there are no names."""
  if names:
    found.append(f"{text} ({len(names)}): {first_few(names, EXAMPLES)}")


def check_counts(
  result: Findings, classes: Sequence[str], name: str, doubtful: Set[str] = frozenset()
) -> None:
  """Adds what is wrong with the counts; the name of the data set decides what they are compared with.

  Args:
    doubtful: classes of which clips are problems already, so that no others are made of their numbers.
  """
  counts, problems = result.counts, result.problems
  filled = [split for split, row in counts.items() if any(row.values())]
  there = [label for label in classes if any(counts[split][label] for split in filled)]
  if not problems:  # else those are why a split is empty
    report(problems, "empty splits", [split for split in counts if split not in filled])
  may_choose = name not in names() or "classes" in fields_of(name)
  advice = f"; --classes={','.join(there)} prepares the others" if may_choose and there else ""
  gone = [label for label in classes if label not in {*doubtful, *there}]
  report(problems, f"classes without a clip{advice}", gone)
  known = [label for label in there if label not in doubtful]
  lacking = [f"{label} in {split}" for label in known for split in filled if not counts[split][label]]
  report(result.warnings, "classes without a clip in a split", lacking)
  folds = sorted(int(split[4:]) for split in counts if split.startswith("fold") and split[4:].isdecimal())
  if classes and counts and len(folds) < 2 and not {"train", "test"} <= set(counts):
    there_is = f"only {', '.join(counts)} {'are' if len(counts) > 1 else 'is'} there"
    problems.append(f"training needs the splits train and test, or several folds; {there_is}")
  if folds and folds != list(range(1, len(folds) + 1)):
    result.warnings.append(f"the folds are {', '.join(map(str, folds))}: is one missing?")
  published, fixed = result.published, name in SCORES
  report(problems, f"missing folds of {name}", sorted(set(published) - set(counts)) if fixed else [])
  if published and not set(published) & set(counts):
    of = f"{', '.join(published)}; this data has {', '.join(counts)}"
    result.notes.append(f"numbers of clips are published for {of}: they cannot be compared")
    return
  differing = []
  for split in dict.fromkeys([*published, *counts]) if published else ():
    found, should = Counter(counts.get(split, {})), Counter(published.get(split, {}))
    differing += [f"{split} {label} {found[label]} (published {should[label]})"
                  for label in should or found if found[label] != should[label] and label not in doubtful]  # fmt: skip
  report(result.warnings if fixed else result.notes, "numbers of clips not as published", differing)


def counts_table(result: Findings) -> str:
  """Clips by class and split, and after a stroke the published ones, where they are known."""
  counts, published = result.counts, result.published
  known = set(published) & set(counts)
  splits = list(dict.fromkeys([*counts, *published] if known else counts))
  classes = list(next(iter(counts.values()), {}))

  def cell(names: Sequence[str], of: Sequence[str]) -> str:
    tables = (counts, published) if set(of) <= set(published) else (counts,)
    numbers = (sum(by.get(split, {}).get(name, 0) for split in of for name in names) for by in tables)
    return "/".join(map(str, numbers))

  head = ["class (found/published)" if known else "class", *splits, "all"]
  rows = {name or "(no label)": [name] for name in classes} | {"all": classes}
  columns = [*([split] for split in splits), splits]
  return table([head, *([row, *(cell(names, of) for of in columns)] for row, names in rows.items())])


def table(rows: Sequence[Sequence[str]]) -> str:
  """In Markdown, aligned so that it can be read as it is; the first row names the columns."""
  first, *others = [max(map(len, column)) for column in zip(*rows, strict=True)]
  rule = ["-" * first, *("-" * (width - 1) + ":" for width in others)]
  lines = [[row[0].ljust(first), *map(str.rjust, row[1:], others)] for row in (rows[0], rule, *rows[1:])]
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)
