"""Frames, units and blocks one after the other, in files that divide nothing else."""

import re

from mma_dfer_jax.data.formats import CutShort, Damaged, Data, Ending, Joined, integer, is_text, must_reach
from mma_dfer_jax.data.wire import varint

PART = bytes.fromhex("060e2b34020501010d010201")  # begins the keys of all parts of MXF that divide it


def y4m(data: Data, found: Ending) -> None:
  head = data[: data.find(b"\n") if data.find(b"\n") > 0 else len(data)].split()
  fields = {word[:1]: word[1:] for word in head[1:]}
  if not all(fields.get(name, b"").isdigit() for name in (b"W", b"H")):
    raise Damaged("its header gives no size of pictures")
  width, height = int(fields[b"W"]), int(fields[b"H"])
  kind = re.fullmatch(rb"(420|422|444|411)(jpeg|mpeg2|paldv)?", fields.get(b"C", b"420"))
  if not kind:
    return  # more than 8 bits, or grey: left to FFmpeg
  across, down = {b"420": (2, 2), b"422": (2, 1), b"444": (1, 1), b"411": (4, 1)}[kind[1]]
  size = width * height + 2 * -(-width // across) * -(-height // down)
  at = data.find(b"\n") + 1
  while b"FRAME".startswith(data[at : at + 5]) and at < len(data):
    at = (data.find(b"\n", at) + 1 or len(data)) + size
    must_reach("its last frame", at, data)
  _must_be_text(data, at, "frame", found)


def material_exchange(data: Data, found: Ending) -> None:
  """MXF: keys, lengths and values; the last is an index, or the end of a part that closes the file."""
  at, last, closed = 0, b"", False
  while at < len(data) and not (closed and data[at : at + 4] != PART[:4]):
    last, head = data[at : at + 16], data[at + 16]
    if at and last.startswith(PART) and last[13] == 2:  # the head
      raise Joined(at)
    more = head & 0x7F if head & 0x80 else 0
    at += 17 + more + (integer(data, at + 17, more) if more else head)
    must_reach("its last part", at, data)
    closed = last.startswith(PART) and last[13] in (4, 0x11, 0x10)
  if not last.startswith(PART[:4]):
    raise Damaged("its last part has no key")
  if not closed:
    raise CutShort("its last part, which closes the file, is missing")
  found.end = at


def indexed_frames(data: Data, found: Ending) -> None:
  """IVF, of VP8, VP9 and AV1."""
  at = integer(data, 6, 2, "<")
  while at < len(data) and data[at : at + 4] != data[:4] and not is_text(data[at : at + 200]):
    at += 12 + integer(data, at, 4, "<")
    must_reach("its last frame", at, data)
  _must_be_text(data, at, "frame", found)


def open_units(data: Data, found: Ending) -> None:
  """OBU, a bare AV1: units that say their size. Source: the AV1 specification, section 5.3."""
  at = 0
  while at < len(data) and not data[at] & 0x81 and data[at] & 2:
    size, place = varint(data, at + 1 + (data[at] >> 2 & 1))
    at = place + size
    must_reach("its last unit", at, data)
  _must_be_text(data, at, "unit", found)


def digital_video(data: Data, found: Ending) -> None:
  """Raw DV: all frames have one size, or one of its multiples. Source: IEC 61834, SMPTE 314M."""
  size, at = 144_000 if data[3] & 0x80 else 120_000, 0
  while at + 3 <= len(data) and data[at] == 0x1F and data[at + 1] & 0xF3 == 3 and not data[at + 2]:
    at += size
    must_reach("its last frame", at, data)
  _must_be_text(data, at, "frame", found)


def creative_voice(data: Data, found: Ending) -> None:
  """VOC: blocks that say their size, and a 0, which some writers forget."""
  at = integer(data, 20, 2, "<")
  while at < len(data) and (kind := data[at]):
    size = integer(data, at + 1, 3, "<")
    if kind in (1, 9) and size in (0, 2, 12, 0xFFFFFF):
      return  # written before the size was known
    if kind > 9:
      raise Damaged(f"at byte {at:,}: no block begins there")
    at += 4 + size
    must_reach("its last block", at, data)
  _must_be_text(data, min(at + 1, len(data)), "block", found)


def nut(data: Data, found: Ending) -> None:
  """NUT: the index closes the file. Source: the NUT specification of the FFmpeg project."""
  if (another := data.find(data[:25], 25)) > 0:
    raise Joined(another)
  if (at := data.rfind(bytes.fromhex("4e58dd672f23e64e"))) < 0:
    raise CutShort("its index, which closes the file, is missing")
  size, place, more = 0, at + 8, True
  while more:
    size, more, place = size << 7 | data[place] & 127, data[place] > 127, place + 1
  found.end = place + 4 * (size > 4096) + size
  must_reach("its index", found.end, data)


def _must_be_text(data: Data, at: int, part: str, found: Ending) -> None:
  if data[at : at + 4] == data[:4] and data[at:]:
    raise Joined(at)
  if not is_text(data[at:]):
    raise Damaged(f"at byte {at:,}: no {part} begins there")
  found.end, found.declared = at, False
