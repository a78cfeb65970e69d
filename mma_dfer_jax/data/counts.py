"""Clips by split and class, compared with what a run needs and with what was published: for `prepare --check` and doctor."""

from collections.abc import Sequence
import dataclasses

from mma_dfer_jax.data.source import Counts, count, names, source_of


@dataclasses.dataclass
class Findings:
  """What counts show: problems make a training pointless or its score a lie, warnings need a human look."""

  problems: list[str] = dataclasses.field(default_factory=list)
  warnings: list[str] = dataclasses.field(default_factory=list)
  notes: list[str] = dataclasses.field(default_factory=list)


def published_counts(name: str, classes: Sequence[str]) -> Counts:
  """The published clips of a data set; none if it is not known, or somebody has taken some of the classes only."""
  known: Counts = source_of(name).COUNTS if name in names() else {}
  return known if all(set(row) == set(classes) for row in known.values()) else {}


def check_counts(name: str, classes: Sequence[str], counts: Counts) -> Findings:
  """Weighs clips by split and class.

  Args:
    name: of the data set, which decides what it is compared with.
    classes: in label order.
    counts: as found.
  """
  found, fixed = Findings(), name in names() and bool(source_of(name).SCORES)
  there = [label for label in classes if any(row.get(label) for row in counts.values())]
  found.problems += [f"the split {split} is empty" for split, row in counts.items() if not any(row.values())]
  for label in classes:
    if label not in there:
      hint = "" if fixed or not there else f"; --classes={','.join(there)} would do without it"
      found.problems.append(f"there is no clip of the class {label}{hint}")
    elif without := [split for split, row in counts.items() if not row.get(label) and any(row.values())]:
      found.warnings.append(f"no clip of {label} in {', '.join(without)}")
  folds = sorted(int(split[4:]) for split in counts if split.startswith("fold") and split[4:].isdecimal())
  if len(folds) < 2 and not {"train", "test"} <= set(counts):
    found.problems.append(
      f"no run can use the splits {', '.join(counts)}: it needs train and test, or several folds"
    )
  if folds and folds != list(range(1, len(folds) + 1)):
    found.warnings.append(f"the folds are {', '.join(map(str, folds))}; are there others?")
  _compare_with_published(name, fixed, published_counts(name, classes), counts, found)
  return found


def _compare_with_published(
  name: str, fixed: bool, published: Counts, counts: Counts, found: Findings
) -> None:
  if fixed and (lacking := sorted(set(published) - set(counts))):
    found.problems.append(f"there is no {', '.join(lacking)}, {name} has {len(published)} folds")
  if not set(published) & set(counts):
    if published:
      found.notes.append(f"the splits are none of the published ones, {', '.join(published)}")
    return
  orders = source_of(name).LABELS
  folds = {split: row for split, row in counts.items() if split in published and any(row.values())}
  for order, other in ((a, b) for a in orders for b in orders if a != b and folds):
    pairs = list(zip(orders[order].classes, orders[other].classes, strict=True))
    if all(
      row.get(read, 0) == published[split][truly] for split, row in folds.items() for read, truly in pairs
    ):
      found.problems.append(
        f"the labels are wrong: the numbers of clips are the published ones if the lists count by {other}, but they were "
        f"read as {order}; prepare again with --numbers={other}"
      )
  differing = [
    f"{split} {label} {counts.get(split, {}).get(label, 0)} (published {published.get(split, {}).get(label, 0)})"
    for split in dict.fromkeys([*published, *counts])
    for label in published.get(split) or counts[split]
    if counts.get(split, {}).get(label, 0) != published.get(split, {}).get(label, 0)
  ]
  if differing:
    more = f", … {len(differing) - 5} more" * (len(differing) > 5)
    (found.warnings if fixed else found.notes).append(
      f"{count(len(differing), 'count')} not as published: {', '.join(differing[:5])}{more}"
    )


def counts_table(counts: Counts, published: Counts) -> str:
  """Clips by class and split, and after a stroke the published ones, where they are known."""
  splits = list(dict.fromkeys([*counts, *published])) if set(counts) & set(published) else list(counts)
  classes = list(dict.fromkeys(name for row in counts.values() for name in row))

  def cell(rows: Sequence[str], of: Sequence[str]) -> str:
    there = sum(counts.get(split, {}).get(name, 0) for split in of for name in rows)
    known = set(of) <= set(published)
    return f"{there}/{sum(published[split][name] for split in of for name in rows)}" if known else str(there)

  rows = [
    [name or "(no label)", *(cell([name], [split]) for split in splits), cell([name], splits)]
    for name in classes
  ]
  rows.append(["all", *(cell(classes, [split]) for split in splits), cell(classes, splits)])
  return table(["class" + " (found/published)" * bool(set(splits) & set(published)), *splits, "all"], rows)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """In Markdown, aligned so that it can be read as it is."""
  widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

  def line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(f"{cell:{'>' if i else '<'}{widths[i]}}" for i, cell in enumerate(cells)) + " |"

  rule = "|" + "|".join("-" * (w + 1) + (":" if i else "-") for i, w in enumerate(widths)) + "|"
  return "\n".join([line(header), rule, *map(line, rows)])
