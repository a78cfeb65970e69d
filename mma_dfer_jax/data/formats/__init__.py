"""Whether a file is whole, format by format: what `ends` asks.

Each function takes the file's bytes and an `Ending`, which it fills; it raises CutShort or Damaged. Nothing is decoded.
"""

from collections import Counter
from dataclasses import dataclass, field
import mmap

Data = mmap.mmap | bytes


class CutShort(Exception):
  """What is missing, in words."""


class Damaged(CutShort):
  """What is wrong in the middle."""


class Joined(CutShort):
  """That another file of the kind begins, and where: FFmpeg reads only the first."""

  def __init__(self, at: int):
    super().__init__(f"the second begins at byte {at:,}, and FFmpeg reads the first alone")


@dataclass
class Ending:
  """What a file's own format says of the file."""

  known: bool = False  # whether this program knows the format
  fault: str | None = None  # that it is cut short or damaged, and where, and what to do
  end: int | None = None  # of its last part; what follows is left out
  declared: bool = True  # whether the format says where that is; else it is where no further part begins
  repairs: dict[int, bytes] = field(default_factory=dict)  # at places where a size was not known yet
  parts: list[tuple[int, int]] = field(default_factory=list)  # that count, if others must be left out
  tracks: Counter[str] = field(default_factory=Counter)  # "video", "audio"; empty: it does not say
  pictures: int | None = None  # of an animation
  samples: int | None = None  # of each channel of a sound


def must_reach(what: str, end: int, data: Data) -> None:
  """Raises CutShort if a part of the file ends after the file."""
  if end > len(data):
    raise CutShort(f"{what} ends at byte {end:,}, the file at byte {len(data):,}")


def differences(one: bytes, other: bytes) -> int:
  """How many bytes of two names differ."""
  return sum(a != b for a, b in zip(one, other, strict=False)) + abs(len(one) - len(other))


def is_name(kind: bytes) -> bool:
  """Whether these four bytes may name a part of a file."""
  return all(32 <= c < 127 for c in kind)


def is_text(rest: bytes) -> bool:
  """Whether these bytes are zeros or text, as servers and tools add them; nothing compressed is."""
  try:
    return all(c.isprintable() or c.isspace() for c in rest.strip(b"\0").decode())
  except UnicodeDecodeError:
    return False


def name_of(kind: bytes) -> str:
  return kind.decode("latin-1").strip()


def integer(data: Data, at: int, size: int, order: str = ">") -> int:
  """Raises IndexError at the end of the file."""
  if at + size > len(data):
    raise IndexError
  return int.from_bytes(data[at : at + size], "big" if order == ">" else "little")
