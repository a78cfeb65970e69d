"""Errors that a user can fix: they end a command as a message and exit status 1, never as a traceback."""

from collections.abc import Iterable, Sequence
import os
import sys
import traceback

EXAMPLES = 3  # names that a line about many clips shows


class UserError(ValueError):
  """Something given to the program does not fit: says what was given, what is allowed, what to do."""


def print_traceback() -> None:
  """Shows where the error that is being handled came from, if the user has asked for it (`--traceback`)."""
  if os.environ.get("MMA_DFER_TRACEBACK") == "1":
    traceback.print_exc(file=sys.stderr)


def of_type(error: Exception) -> str:
  """An error that nobody expected, as "TypeError: its first words"."""
  words = shown(" ".join(str(error).split()))
  return f"{type(error).__name__}{words and ': '}{words}"


def missing(error: ImportError) -> str:
  """What to do about a package that is not installed."""
  return f"{error.name or error} is not installed: pip install 'mma_dfer_jax[train]' brings all that training needs"


def shown(name: object) -> str:
  """A name from a file as a message can show it: no control characters, at most 200 characters."""
  text = str(name)
  return printable(text[:200]) + "…" * (len(text) > 200)


def printable(text: str) -> str:
  """A text with control characters, and whatever else no terminal should get, by their numbers."""
  return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def count(number: int, one: str) -> str:
  return f"{number} {one}{'' if number == 1 else 's'}"  # "1 clip", "2 clips"


def few(names: Sequence[object], separator: str = ", ") -> str:
  """The first of many names, and how many more there are."""
  first = separator.join(map(str, names[:EXAMPLES]))
  return first + f" and {len(names) - EXAMPLES} more" * (len(names) > EXAMPLES)


def counted(problems: Iterable[tuple[str, str]], unit: str = "clips") -> list[str]:
  """One line for each reason, in the order in which reasons first appear.

  Args:
    problems: (what, reason), as in ("clip 1", "is empty").
    unit: what is counted where a reason holds for several: "3 clips: is empty, as in clip 1, clip 2, clip 3".
  """
  by_reason: dict[str, list[str]] = {}
  for what, reason in problems:
    by_reason.setdefault(reason, []).append(what)
  return [
    f"{names[0]}: {reason}"
    if len(names) == 1
    else f"{len(names):,} {unit}: {reason}, as in {', '.join(names[:EXAMPLES])}"
    for reason, names in by_reason.items()
  ]


def listed(title: str, problems: Iterable[str], advice: str = "") -> UserError:
  """One error for all problems found, so that nobody fixes them one run at a time.

  Args:
    title: what was being checked, without a final colon.
    problems: one line each, at least one; of equal lines the first is shown. `counted` makes lines about clips.
    advice: what to do about it, added as a last line.
  """
  inner = (problem.replace("\n", "\n  ") for problem in dict.fromkeys(problems))  # which may be a list itself
  lines = [f"{title}:", *(f"  - {problem}" for problem in inner)]
  return UserError("\n".join([*lines, advice] if advice else lines))
