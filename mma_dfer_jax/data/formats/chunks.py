"""RIFF (AVI, WAV, WebP) and its relatives: chunks one after the other."""

from collections import Counter
from collections.abc import Iterator
import struct

import numpy as np

from mma_dfer_jax.data.formats import (
  CutShort,
  Damaged,
  Data,
  Ending,
  Joined,
  integer,
  is_name,
  is_text,
  must_reach,
  name_of,
)

STREAMS = {b"vids": "video", b"auds": "audio", b"txts": "other", b"mids": "other", b"iavs": "video"}  # of AVI
AFTER_SOUND = set(b"pakt info strg mark regn midi inst ovvw peak uuid free".split())  # of CAF
PLACEHOLDER = (
  0x7FFF0000  # sizes from here on, or 0, stand where the size was not known when they were written
)
UNKNOWN = 1 << 62  # sizes of 64 bits from here on stand in for an unknown one


def _is_placeholder(size: int, data: Data) -> bool:
  return size == 0 or (size >= PLACEHOLDER and size > len(data))


def _chunks(data: Data, at: int, order: str, end: int | None = None) -> Iterator[tuple[bytes, int, int]]:
  """(name, first byte, size) of each chunk from `at` on, up to one whose size is a placeholder."""
  while at + 8 <= (len(data) if end is None else end):
    kind, size = data[at : at + 4], integer(data, at + 4, 4, order)
    if not is_name(kind):
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
    found.pictures = sum(kind == b"ANMF" for kind, *_ in _chunks(data, 12, "<")) or None
  if form == b"AVI ":
    found.tracks += _streams_of_avi(data)
    for kind, start, size in _chunks(data, 0, "<"):
      if kind != b"RIFF":
        break
      size = len(data) - start if _is_placeholder(size, data) else size
      if start > 8 and data[start : start + 4] == form:
        raise Joined(start - 8)
      must_reach("its chunk RIFF", start + size, data)
      if data[start : start + 4] in (form, b"AVIX"):
        _check_parts_of_avi(data, start, start + size)
  return None


def _sound(data: Data, order: str, end: int, found: Ending) -> None:
  """Of WAV, RF64 and AIFF: that the chunk with the sound is whole."""
  large, kind_of_sound, seen, last = None, b"data" if data[8:12] == b"WAVE" else b"SSND", False, 0
  for kind, start, size in _chunks(data, 12, order):
    if kind == b"ds64":  # RF64: sizes of more than 4 GB
      large = start + 8, integer(data, start + 8, 8, "<")
    if kind == kind_of_sound:
      seen, rest = True, len(data) - start
      if large and size == 0xFFFFFFFF:
        if large[1] and large[1] < UNKNOWN:
          found.end = start + large[1] + large[1] % 2
          return must_reach("its chunk data", start + large[1], data)
        number_of_samples = {large[0] + 8: bytes(8)}
        found.repairs |= {large[0]: rest.to_bytes(8, "little")} | number_of_samples
        return None
      if _is_placeholder(size, data):
        sizes = {start - 4: rest, 4: len(data) - 8} if 0 < rest < PLACEHOLDER else {}
        found.repairs |= {at: n.to_bytes(4, "big" if order == ">" else "little") for at, n in sizes.items()}
        return None
    elif seen and start - 8 >= end:
      break  # follows the end
    must_reach(f"its chunk {name_of(kind)}", start + size, data)
    last = start + size + size % 2
  if not seen:
    raise CutShort(f"it has no chunk {name_of(kind_of_sound)}, which holds the sound")
  found.end = last
  return None


def _streams_of_avi(data: Data) -> Counter[str]:
  """Kinds of the streams that the header describes, which says how many there are."""
  said, described = None, 0
  kinds: Counter[str] = Counter()
  for kind, start, size in _chunks(data, 12, "<"):
    if kind == b"LIST" and data[start : start + 4] == b"hdrl":
      for one, at, length in _chunks(data[: start + size], start + 4, "<"):
        if one == b"avih":
          said = integer(data, at + 24, 4, "<")
        if one == b"LIST" and data[at : at + 4] == b"strl":
          described += 1
          inside = {name: data[s : s + 4] for name, s, _ in _chunks(data[: at + length], at + 4, "<")}
          if not {b"strh", b"strf"} <= set(inside) or inside[b"strh"] not in STREAMS:
            raise Damaged(f"the description of its stream {described} does not say what it is")
          kinds[STREAMS[inside[b"strh"]]] += 1
    if kind == b"LIST" and data[start : start + 4] == b"movi":
      break
  if said is None or described < said:
    raise Damaged(f"its header describes {described} of {said or 'unknown'} streams")
  return kinds


def _check_parts_of_avi(data: Data, start: int, end: int) -> None:
  """That the index of one RIFF names the pictures and sounds that are there, or else that these fill their list."""
  places: dict[int, tuple[bytes, int]] = {}  # where chunks begin, by their names and sizes
  movi, to, stop, open_end = 0, 0, 0, False
  named = np.zeros((0, 4), np.uint32)
  for kind, at, size in _chunks(data, start + 4, "<", end):
    if kind == b"LIST" and data[at : at + 4] == b"movi":
      movi, to = at, at + 4
      open_end = _is_placeholder(size, data)
      stop = end if open_end else at + size
      while to + 8 <= stop and is_name(name := data[to : to + 4]):
        length = integer(data, to + 4, 4, "<")
        places[to] = name, length
        to += 12 if name == b"LIST" else 8 + length
        if open_end and name[:2].isdigit():
          must_reach("its last part", to, data)
        to += to % 2 and is_name(data[to + 1 : to + 5])  # some writers fill up, some do not
    if kind == b"idx1":
      named = np.frombuffer(data[at : at + size // 16 * 16], "<u4").reshape(-1, 4)
  if not movi:
    raise Damaged("its list movi, which holds the pictures and sounds, is missing")
  bases = [[places.get(base + offset) for offset in named[:, 2].tolist()] for base in (movi, 0)]
  there = max(bases, key=lambda found: sum(place is not None for place in found))
  meant = [(name.tobytes(), size) for name, size in zip(named[:, 0], named[:, 3].tolist(), strict=True)]
  right = sum(a == b or a[0] == b"rec " for a, b in zip(meant, there, strict=True))
  if right < len(meant) and (2 * right > len(meant) or to + 8 <= stop):
    raise Damaged(f"{len(meant) - right:,} of {len(meant):,} parts that its index names are not there")
  if not len(meant) and to + 8 <= stop and not (open_end and is_text(data[to:])):
    raise Damaged(f"at byte {to:,}: no picture or sound begins there")


def wave64(data: Data, found: Ending) -> None:
  at = 40
  while at + 24 <= len(data):
    size = integer(data, at + 16, 8, "<")
    if data[at : at + 4] == b"data" and (size <= 24 < len(data) - at or size >= UNKNOWN):
      found.repairs |= {at + 16: (len(data) - at).to_bytes(8, "little"), 16: len(data).to_bytes(8, "little")}
      return
    if size < 24:
      return
    found.end = integer(data, 16, 8, "<")
    must_reach(f"its chunk {name_of(data[at : at + 4])}", at + size, data)
    if data[at : at + 4] == b"data":
      return
    at += -(-size // 8) * 8


def caf(data: Data, found: Ending) -> None:
  at, seen = 8, False
  while at + 12 <= len(data) and not (seen and data[at : at + 4] not in AFTER_SOUND):
    kind, size = data[at : at + 4], struct.unpack_from(">q", data, at + 4)[0]
    seen |= kind == b"data"
    if size < 0:
      found.repairs[at + 4] = (len(data) - at - 12).to_bytes(8, "big")
      return
    must_reach(f"its chunk {name_of(kind)}", at + 12 + size, data)
    at += 12 + size
  if not seen:
    raise CutShort("it has no chunk data, which holds the sound")
  found.end = at


def au(data: Data, found: Ending) -> None:
  start, size = integer(data, 4, 4), integer(data, 8, 4)
  if not _is_placeholder(size, data):
    found.end = start + size
    must_reach("its sound", start + size, data)
  elif 0 < len(data) - start < PLACEHOLDER:
    found.repairs[8] = (len(data) - start).to_bytes(4, "big")
