"""How far something long is: a bar on a terminal, a plain line every 30 seconds in a log."""

from collections.abc import Iterable, Iterator
import sys
from typing import Any

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 30


class _Log:
  """Stderr for whole lines: without the carriage returns and blanks that redraw a bar."""

  def write(self, text: str) -> None:
    if line := text.strip():
      print(line, file=sys.stderr, flush=True)


class Progress(tqdm):
  """Counts what is done and shows it on stderr: `with Progress("decode", total=10) as bar: bar.update()`.

  Logs get whole lines without carriage returns or escape codes; what ends within 30 seconds writes none.
  """

  def __init__(self, what: str, total: int | None, *, unit: str = "clip", done: int = 0, bytes: bool = False,
               leave: bool = True, show: bool = True):  # fmt: skip
    """Starts counting up to `total`, which includes what was `done` before; None: nobody knows how many there are.

    `bytes` shortens large numbers, as in 3.2 GB; `leave` keeps the finished bar on the terminal; `show=False` shows
    nothing, as on all hosts but the first.
    """
    how: dict[str, Any] = {"leave": leave}
    if not sys.stderr.isatty():
      unit_shown = "{unit}" if bytes else " {unit}s"
      left = " of {total_fmt}" + unit_shown + ", about {remaining} left"
      line = "{desc}: {n_fmt}" + (left if total else unit_shown)
      how = {"leave": False, "file": _Log(), "bar_format": f"{line}{{postfix}}", "miniters": 1,
             "mininterval": SECONDS_BETWEEN_LINES, "delay": SECONDS_BETWEEN_LINES}  # fmt: skip
    how |= {"unit": unit, "unit_scale": bytes, "disable": not show}
    super().__init__(desc=what, total=total, initial=done, **how)

  def update(self, count: int = 1, note: str | None = None) -> bool | None:  # type: ignore[override]
    """Counts further; a note, as in "loss 1.2", stands behind the numbers from now on."""
    if note is not None:
      self.set_postfix_str(note, refresh=False)
    return super().update(count)


def watched(items: Iterable[Any], what: str, total: int, **how: Any) -> Iterator[Any]:
  """Gives the items one by one and counts them; `how` as `Progress` takes it."""
  with Progress(what, total, **how) as bar:
    for item in items:
      yield item
      bar.update()


def say(text: str, file: Any = None) -> None:
  """Prints a line above the bars, to stdout if `file` is None."""
  tqdm.write(text, file=file or sys.stdout)
