"""Standard streams that are closed, missing or full at any moment: what cannot be printed is lost, the work is finished."""

import contextlib
import io
import os
import sys
from typing import Any


class _Lasting(io.TextIOBase):
  """A stream that never raises: after the first text that it cannot take, all goes to nowhere."""

  def __init__(self, stream: Any):
    self._stream = stream

  def write(self, text: str) -> int:
    with self._kept():
      self._stream.write(text)
    return len(text)

  def flush(self) -> None:
    with self._kept():
      self._stream.flush()

  @contextlib.contextmanager
  def _kept(self):
    try:
      yield
    except (OSError, ValueError):  # a reader that left, a full disk, a stream that was closed
      try:  # the descriptor itself, for what is still in buffers, for libraries and for processes that are started
        os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
      except (OSError, ValueError):
        self._stream = open(os.devnull, "w", errors="backslashreplace")  # noqa: SIM115 (kept open)

  def __getattr__(self, name: str) -> Any:
    return getattr(self._stream, name)

  def isatty(self) -> bool:
    with contextlib.suppress(ValueError):
      return self._stream.isatty()
    return False

  def fileno(self) -> int:
    return self._stream.fileno()

  @property
  def encoding(self) -> str:  # type: ignore[override]
    return self._stream.encoding


def make_lasting() -> None:
  """Makes stdin, stdout and stderr such streams; those that are missing lead to nowhere."""
  for number in range(3):  # else the next file that is opened would become a standard stream of libraries
    try:
      os.fstat(number)
    except OSError:
      os.open(os.devnull, os.O_RDWR)
  for name in ("stdout", "stderr"):
    stream = getattr(sys, name)
    if stream is None:
      setattr(sys, name, open(os.devnull, "w", errors="backslashreplace"))  # noqa: SIM115 (kept open)
    elif not isinstance(stream, _Lasting):
      with contextlib.suppress(AttributeError):  # names of files need not be text
        stream.reconfigure(errors="backslashreplace")
      setattr(sys, name, _Lasting(stream))
