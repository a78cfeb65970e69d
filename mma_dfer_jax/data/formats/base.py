"""What the checks of all formats share."""

from collections import Counter
import dataclasses
import mmap

Data = mmap.mmap | bytes
PLACEHOLDER = (
  0x7FFF0000  # sizes from here on, or 0, stand in headers that were written before the size was known
)


class CutShort(Exception):
  """What is missing, in words."""


class Damaged(CutShort):
  """What is wrong in the middle."""


@dataclasses.dataclass
class Ending:
  """What a file's own format says of the file."""

  known: bool = False  # whether this program knows the format
  fault: str | None = None  # that it is cut short or damaged, and where
  repairs: dict[int, bytes] = dataclasses.field(
    default_factory=dict
  )  # at places where a size was not known yet
  parts: list[tuple[int, int]] = dataclasses.field(
    default_factory=list
  )  # that count, if others must be left out
  tracks: Counter[str] = dataclasses.field(
    default_factory=Counter
  )  # "video", "audio"; empty: it does not say
  pictures: int | None = None  # of an animation
  samples: int | None = None  # of each channel of a sound


def must_reach(what: str, end: int, data: Data) -> None:
  """Raises CutShort if a part of the file ends after the file."""
  if end > len(data):
    raise CutShort(f"{what} ends at byte {end:,}, the file at byte {len(data):,}")


def name_of(kind: bytes) -> str:
  return kind.decode("latin-1").strip()


def integer(data: Data, at: int, size: int, order: str = ">") -> int:
  """Raises IndexError at the end of the file."""
  if at + size > len(data):
    raise IndexError
  return int.from_bytes(data[at : at + size], "big" if order == ">" else "little")
