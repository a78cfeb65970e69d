"""Matroska and WebM: elements in elements. Source: RFC 9559."""

from collections import Counter
from collections.abc import Iterator
import zlib

from mma_dfer_jax.data.formats import CutShort, Damaged, Data, Ending, Joined, integer, is_text, must_reach

# Of tracks: pictures, sound, both, logo, subtitles, buttons, control, data.
KINDS = {1, 2, 3, 16, 17, 18, 32, 33}
HEAD = 0x1A45DFA3
SEGMENT, SEEK_HEAD, CLUSTER, TRACKS = 0x18538067, 0x114D9B74, 0x1F43B675, 0x1654AE6B
PARTS = {SEEK_HEAD, CLUSTER, TRACKS, 0x1549A966, 0x1C53BB6B, 0x1254C367, 0x1043A770, 0x1941A469}


def _head(data: Data, at: int) -> tuple[int, int | None, int]:
  """Kind of an element, size of its content (None: unknown), and where that begins: two numbers of variable length."""
  numbers = []
  for _ in range(2):
    length = 9 - data[at].bit_length()
    if length > 8:
      raise Damaged(f"at byte {at:,}")
    numbers.append(integer(data, at, length))
    at += length
  kind, size, most = *numbers, (1 << 7 * length) - 1
  return kind, None if size & most == most else size & most, at


def matroska(data: Data, found: Ending) -> None:
  at, end = 0, len(data)
  kinds: set[int] = set()
  segment = places = None
  sized = False
  while at < end:
    no_id = data[at] < 0x10 or 0x20 <= data[at] < 0x80
    if no_id and not sized and CLUSTER in kinds and is_text(data[at:]):
      break  # follows the end, which a live recording does not tell
    kind, size, body = _head(data, at)
    if kind == SEGMENT:
      segment, at = body, body
      sized = size is not None
      end = body + size if size is not None else end
      must_reach("its segment", end, data)
      continue
    if kind == SEEK_HEAD and size is not None:
      places = body, body + size
    known = segment is None or kind in PARTS | {0xEC, 0xBF}
    if kind == HEAD and segment is not None:
      raise Joined(at)
    if not known and (size is None or CLUSTER not in kinds):
      raise Damaged(f"at byte {at:,}")
    kinds.add(kind)
    if size is None and kind == CLUSTER:  # of unknown length: what follows lies in it, or is the next part
      at = body
      continue
    must_reach("its last cluster" if CLUSTER in kinds else "its header", body + (size or 0), data)
    content = data[body : body + (size or 0)] if kind == CLUSTER else b""
    if content[:2] == b"\xbf\x84" and zlib.crc32(content[6:]) != int.from_bytes(content[2:6], "little"):
      raise Damaged(f"between byte {at:,} and {body + (size or 0):,}")
    if kind == TRACKS and size is not None:
      found.tracks += _tracks(data, body, body + size)
    at = body + (size or 0)
  if segment is None or TRACKS not in kinds:
    raise CutShort("the description of its tracks is missing")
  found.end, found.declared = at, sized
  for place in _places(data, *places) if places else ():
    must_reach("what its index points to", segment + place + 4, data)


def _elements(data: Data, at: int, end: int) -> Iterator[tuple[int, int, int]]:
  """(kind, first byte of the content, end) of each element."""
  while at < end:
    kind, size, body = _head(data, at)
    at = body + (size or 0)
    yield kind, body, at


def _tracks(data: Data, start: int, end: int) -> Counter[str]:
  entries = [(s, e) for kind, s, e in _elements(data, start, end) if kind == 0xAE]
  kinds = [data[s] for entry in entries for kind, s, _ in _elements(data, *entry) if kind == 0x83]
  if len(kinds) < len(entries) or not set(kinds) <= KINDS:
    raise Damaged("the description of one of its tracks does not say what it is")
  return Counter({"video": kinds.count(1), "audio": kinds.count(2)})


def _places(data: Data, at: int, end: int) -> Iterator[int]:
  """The positions that a SeekHead names, in bytes since the begin of the segment."""
  for kind, start, stop in _elements(data, at, end):
    if kind == 0x4DBB:
      yield from (integer(data, s, e - s) for one, s, e in _elements(data, start, stop) if one == 0x53AC)
