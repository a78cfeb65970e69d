"""How far something long is: a bar on a terminal, a plain line every 30 seconds in a log."""

from collections.abc import Iterable, Iterator
import sys
import time
from typing import Any

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 30


class Progress:
  """Counts what is done and shows it on stderr: `with Progress("decode", total=10) as bar: bar.update()`.

  Logs get whole lines without carriage returns or escape codes; what ends within 30 seconds writes none.
  """

  def __init__(self, what: str, total: int | None, *, unit: str = "clip", done: int = 0, bytes: bool = False,
               leave: bool = True, show: bool = True):  # fmt: skip
    """Starts counting.

    Args:
      what: the work, one word or a few.
      total: how many there are, those done before included; None: unknown.
      unit: what is counted.
      done: how many an earlier run has done.
      bytes: whether to shorten large numbers, as in 3.2 GB.
      leave: whether the finished bar stays on the terminal.
      show: False shows nothing, as on all hosts but the first.
    """
    self._terminal = sys.stderr.isatty()
    self._bar = tqdm(desc=what, total=total, initial=done, unit=unit, unit_scale=bytes, leave=leave,
                     disable=not (show and self._terminal))  # fmt: skip
    self._show, self._what, self._unit, self._bytes = show and not self._terminal, what, unit, bytes
    self._total, self._first, self.done, self._note = total, done, done, ""
    self._began = self._last_line = time.monotonic()

  def update(self, count: int = 1, note: str | None = None) -> None:
    """Counts further.

    Args:
      count: how many more are done.
      note: shown behind the numbers from now on, as in "loss 1.2".
    """
    if note is not None:
      self._note = note
      self._bar.set_postfix_str(note, refresh=False)
    self._bar.update(count)
    self.done += count
    now = time.monotonic()
    if self._show and now - self._last_line >= SECONDS_BETWEEN_LINES:
      self._last_line = now
      print(self._line(now), file=sys.stderr, flush=True)

  def _line(self, now: float) -> str:
    pace = (self.done - self._first) / max(now - self._began, 1e-9)
    shown = [tqdm.format_sizeof(n, "B") if self._bytes else f"{n:,}" for n in (self.done, self._total or 0)]
    line = f"{self._what}: {' of '.join(shown[: 2 if self._total else 1])}"
    line += "" if self._bytes else f" {self._unit}s"
    if self._total and pace:
      line += f", about {tqdm.format_interval(max(self._total - self.done, 0) / pace)} left"
    return f"{line}, {self._note}" if self._note else line

  def close(self) -> None:
    self._bar.close()

  def __enter__(self) -> "Progress":
    return self

  def __exit__(self, *error: object) -> None:
    self.close()


def watched(items: Iterable[Any], what: str, total: int, **how: Any) -> Iterator[Any]:
  """Gives the items one by one and counts them.

  Args:
    items: what is worked through.
    what: the work, one word or a few.
    total: how many items there are.
    **how: as `Progress` takes them.
  """
  with Progress(what, total, **how) as bar:
    for item in items:
      yield item
      bar.update()


def say(text: str, file: Any = None) -> None:
  """Prints a line above the bars.

  Args:
    text: the line.
    file: stdout if None.
  """
  tqdm.write(text, file=file or sys.stdout)
