"""RIFF (AVI, WAV, WebP) and its relatives: chunks one after the other."""

from collections import Counter
from collections.abc import Iterator
import struct

from mma_dfer_jax.data.formats.base import (
  PLACEHOLDER,
  CutShort,
  Damaged,
  Data,
  Ending,
  integer,
  must_reach,
  name_of,
)

UNKNOWN = 1 << 62  # sizes of 64 bits from here on stand in for an unknown one


def _is_placeholder(size: int, data: Data) -> bool:
  return size == 0 or (size >= PLACEHOLDER and size > len(data))


def _chunks(data: Data, at: int, order: str) -> Iterator[tuple[bytes, int, int]]:
  """(name, first byte, size) of each chunk from `at` on, up to one whose size is a placeholder."""
  while at + 8 <= len(data):
    kind, size = data[at : at + 4], integer(data, at + 4, 4, order)
    if not all(32 <= c < 127 for c in kind):
      return
    yield kind, at + 8, size
    at += 8 + size + size % 2


def riff(data: Data, found: Ending) -> None:
  order, form = ">" if data[:4] in (b"RIFX", b"FORM") else "<", data[8:12]
  size = integer(data, 4, 4, order)
  if form in (b"WAVE", b"AIFF", b"AIFC"):
    return _sound(data, order, 8 + size, found)
  if not _is_placeholder(size, data):
    must_reach(f"its {name_of(form)} data", 8 + size, data)
  if form == b"WEBP":
    pictures = sum(kind == b"ANMF" for kind, *_ in _chunks(data, 12, "<"))
    found.pictures = pictures or None
  if form == b"AVI ":
    for kind, start, size in _chunks(data, 0, "<"):
      if kind != b"RIFF" or _is_placeholder(size, data):
        break
      must_reach("its chunk RIFF", start + size, data)
    found.tracks += _streams_of_avi(data)


def _sound(data: Data, order: str, end: int, found: Ending) -> None:
  """Of WAV, RF64 and AIFF: that the chunk with the sound is whole."""
  large, kind_of_sound, seen = None, b"data" if data[8:12] == b"WAVE" else b"SSND", False
  for kind, start, size in _chunks(data, 12, order):
    if kind == b"ds64":  # RF64: sizes of more than 4 GB
      large = start + 8, integer(data, start + 8, 8, "<")
    if kind == kind_of_sound:
      seen, rest = True, len(data) - start
      if large and size == 0xFFFFFFFF:
        if large[1] and large[1] < UNKNOWN:
          return must_reach("its chunk data", start + large[1], data)
        found.repairs |= {
          large[0]: rest.to_bytes(8, "little"),
          large[0] + 8: bytes(8),
        }  # and number of samples
        return None
      if _is_placeholder(size, data):
        if 0 < rest < PLACEHOLDER:
          right = rest.to_bytes(4, "big" if order == ">" else "little")
          found.repairs |= {
            start - 4: right,
            4: (len(data) - 8).to_bytes(4, "big" if order == ">" else "little"),
          }
        return None
    elif seen and start - 8 >= end:
      return None  # follows the end
    must_reach(f"its chunk {name_of(kind)}", start + size, data)
  if not seen:
    raise CutShort(f"it has no chunk {name_of(kind_of_sound)}, which holds the sound")
  return None


def _streams_of_avi(data: Data) -> Counter[str]:
  """Kinds of the streams that the header describes, which says how many there are."""
  said = described = 0
  kinds: Counter[str] = Counter()
  for kind, start, size in _chunks(data, 12, "<"):
    if kind == b"LIST" and data[start : start + 4] == b"hdrl":
      for one, at, _ in _chunks(data[: start + size], start + 4, "<"):
        if one == b"avih":
          said = integer(data, at + 24, 4, "<")
        if one == b"LIST" and data[at : at + 4] == b"strl":
          described += 1
          if data[at + 4 : at + 8] == b"strh":
            kinds[{b"vids": "video", b"auds": "audio"}.get(data[at + 12 : at + 16], "other")] += 1
    if kind == b"LIST" and data[start : start + 4] == b"movi":
      break
  if described < said:
    raise Damaged(f"its header describes {described} of {said} streams")
  return kinds


def wave64(data: Data, found: Ending) -> None:
  at = 40
  while at + 24 <= len(data):
    size = integer(data, at + 16, 8, "<")
    if data[at : at + 4] == b"data" and (size <= 24 < len(data) - at or size >= UNKNOWN):
      found.repairs |= {at + 16: (len(data) - at).to_bytes(8, "little"), 16: len(data).to_bytes(8, "little")}
      return
    if size < 24:
      return
    must_reach(f"its chunk {name_of(data[at : at + 4])}", at + size, data)
    if data[at : at + 4] == b"data":
      return
    at += -(-size // 8) * 8


def caf(data: Data, found: Ending) -> None:
  at, seen = 8, False
  while at + 12 <= len(data) and not seen:
    kind, size = data[at : at + 4], struct.unpack_from(">q", data, at + 4)[0]
    seen = kind == b"data"
    if size < 0:
      found.repairs[at + 4] = (len(data) - at - 12).to_bytes(8, "big")
      return
    must_reach(f"its chunk {name_of(kind)}", at + 12 + size, data)
    at += 12 + size
  if not seen:
    raise CutShort("it has no chunk data, which holds the sound")


def au(data: Data, found: Ending) -> None:
  start, size = integer(data, 4, 4), integer(data, 8, 4)
  if not _is_placeholder(size, data):
    must_reach("its sound", start + size, data)
  elif 0 < len(data) - start < PLACEHOLDER:
    found.repairs[8] = (len(data) - start).to_bytes(4, "big")
