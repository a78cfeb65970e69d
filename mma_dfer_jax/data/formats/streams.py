"""Streams of pages, packets and frames."""

from collections import Counter
from collections.abc import Callable
import re
import zlib

import numpy as np

from mma_dfer_jax.data.formats import (
  CutShort,
  Damaged,
  Data,
  Ending,
  Joined,
  differences,
  integer,
  is_text,
  must_reach,
)

REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))  # the bits of each byte
ASF_TRACK = bytes.fromhex("9107dcb7b7a9cf118ee600c00c205365")
ASF_KINDS = {
  bytes.fromhex("c0ef19bc4d5bcf11a8fd00805f5c442b"): "video",
  bytes.fromhex("409e69f84d5bcf11a8fd00805f5c442b"): "audio",
}
NOTHING = 0x1FFF  # the programme of MPEG-TS that only fills time
NOTES = b"TAG", b"APETAGEX", b"LYRICSBEGIN", b"ID3"  # that follow the sound of an MP3 or an AAC
# Bytes of a frame by its type, https://www.rfc-editor.org/rfc/rfc4867 section 5.3; 0: such frames do not exist.
AMR = (13, 14, 16, 18, 20, 21, 27, 32, 6, 0, 0, 0, 0, 0, 0, 1)
AMR_WB = (18, 24, 33, 37, 41, 47, 51, 59, 61, 6, 0, 0, 0, 0, 1, 1)
SizeAt = Callable[[Data, int], int]  # bytes of the frame that begins there; 0: none does
AC3 = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512, 576, 640)  # kbit/s
# kbit/s of MPEG audio, by (version 1 or not, layer) and index.
BITRATES = {
  (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
  (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
  (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
  (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
  (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
  (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}


def ogg(data: Data, found: Ending) -> None:
  at, upcoming, ended = 0, dict[int, int](), dict[int, bool]()
  while at < len(data):
    if data[at : at + 4] != b"OggS":
      if ended and all(ended.values()):
        break  # follows the end
      raise Damaged(f"at byte {at:,}: no page begins there")
    flags, serial, number = data[at + 5], integer(data, at + 14, 4, "<"), integer(data, at + 18, 4, "<")
    lengths = data[at + 27 : at + 27 + data[at + 26]]
    # 2: the first, perhaps of a file joined to this one.
    if number != upcoming.get(serial, number) and not flags & 2:
      raise Damaged(f"pages are missing before byte {at:,}")
    upcoming[serial], ended[serial] = number + 1, bool(flags & 4)
    start, at = at, at + 27 + data[at + 26] + sum(lengths)
    must_reach("its last page", at, data)
    # Its check sum is zlib's of the bits in reversed order, from 0.
    page = (data[start : start + 22] + bytes(4) + data[start + 26 : at]).translate(REVERSED)
    if int(f"{zlib.crc32(page, 0xFFFFFFFF) ^ 0xFFFFFFFF:032b}"[::-1], 2) != integer(data, start + 22, 4, "<"):
      raise Damaged(f"between byte {start:,} and {at:,}")
  if not all(ended.values()):
    raise CutShort("its last page is not marked as the last")
  found.end = at


def after_tags(data: Data, at: int = 0) -> int:
  """Where tags end that begin there: ID3, with zeros up to a frame, APE, ID3v1."""
  while True:
    begin = at
    if data[at : at + 3] == b"ID3":
      a, b, c, d = data[at + 6 : at + 10]
      at += 10 + (a << 21 | b << 14 | c << 7 | d) + 10 * bool(data[at + 5] & 16)
      filled = at
      while data[filled : filled + 1] == b"\0":
        filled += 1
      at = filled if data[filled : filled + 1] == b"\xff" else at
    elif data[at : at + 8] == b"APETAGEX":
      at += integer(data, at + 12, 4, "<") + 32 * (data[at + 23] >> 7)  # its head is not counted
    elif data[at : at + 3] == b"TAG":
      at += 128
    if at == begin:
      return at


def mpeg_frame(data: Data, at: int) -> int:
  """Bytes of a frame of MPEG audio, 0 if none begins there."""
  if at + 4 > len(data) or data[at] != 0xFF or data[at + 1] < 0xE0:
    return 0
  version, layer = data[at + 1] >> 3 & 3, 4 - (data[at + 1] >> 1 & 3)
  rate, hertz, padding = data[at + 2] >> 4, data[at + 2] >> 2 & 3, data[at + 2] >> 1 & 1
  if version == 1 or layer == 4 or rate in (0, 15) or hertz == 3:
    return 0
  sample_rate = (44100, 48000, 32000)[hertz] >> (0 if version == 3 else 1 if version == 2 else 2)
  bits = BITRATES[version == 3, layer][rate - 1] * 1000
  if layer == 1:
    return (12 * bits // sample_rate + padding) * 4
  return (72 if layer == 3 and version != 3 else 144) * bits // sample_rate + padding


def _frames(
  data: Data, at: int, size_at: SizeAt, found: Ending, mark: bytes = b"\xff", chain: int = 2
) -> int:
  """How many frames follow each other from `at` on; the last must be whole.

  Tags may stand between them, where files were joined, and anything after the last: FFmpeg stumbles over it. But where
  so many frames begin with a mark and follow each other again, something is wrong between.
  """
  count, begun, parts = 0, 0, list[tuple[int, int]]()
  while at < len(data):
    size = size_at(data, at)
    if size:
      at += size
      count += 1
      must_reach("its last frame", at, data)
      continue
    parts.append((begun, at))
    begun = at + 6 if data[at : at + 6] == b"#!AMR\n" else after_tags(data, at)
    if begun == at or not size_at(data, begun):
      break
    at = begun
  else:
    parts.append((begun, at))
  if mark and 0 < len(data) - at < 4 and data[at] == mark[0]:
    raise CutShort("it ends within the head of a frame")
  tagged, later = data[at : at + 11].startswith(NOTES), at
  while not tagged and (later := data.find(mark, later + 1)) > 0 and later < len(data):
    if _follow(data, later, size_at, chain):
      raise Damaged(f"at byte {at:,}: no frame begins there")
  if len(parts) > 1 or len(data) - at not in (0, 128):  # 128: notes that FFmpeg knows
    found.parts = parts
  found.end, found.declared = at, False
  return count


def _follow(data: Data, at: int, size_at: SizeAt, number: int) -> bool:
  """Whether so many whole frames begin there, one after the other."""
  for _ in range(number):
    size = size_at(data, at)
    at += size
    if not size or at > len(data):
      return False
  return True


def mp3(data: Data, found: Ending) -> None:
  at = after_tags(data)
  size, declared = mpeg_frame(data, at), 0
  mark = data[at : at + size].find(b"Xing") if size else -1
  mark = data[at : at + size].find(b"Info") if size and not 0 < mark < 48 else mark
  if 0 < mark < 48 and data[at + mark + 7] & 1:
    declared = integer(data, at + mark + 8, 4)
  count = _frames(data, at, mpeg_frame, found)
  if declared > count:
    raise CutShort(f"it has {count:,} frames of the {declared:,} that it announces")


def ac3_frame(data: Data, at: int) -> int:
  """Bytes of a frame of AC-3 or E-AC-3, 0 if none begins there. Source: ETSI TS 102 366."""
  if at + 6 > len(data) or data[at : at + 2] != b"\x0b\x77":
    return 0
  if data[at + 5] >> 3 > 10:
    return 2 * ((data[at + 2] & 7) << 8 | data[at + 3]) + 2
  hertz, code = data[at + 4] >> 6, data[at + 4] & 63
  bits = AC3[code >> 1] if code >> 1 < len(AC3) else 0
  return (4 * bits, 2 * (bits * 320 // 147 + (code & 1)), 6 * bits, 0)[hertz]


def ac3(data: Data, found: Ending) -> None:
  _frames(data, 0, ac3_frame, found, mark=b"\x0b\x77")


def adts(data: Data, found: Ending) -> None:
  def size_at(data: Data, at: int) -> int:
    sync = at + 7 <= len(data) and data[at] == 0xFF and data[at + 1] & 0xF6 == 0xF0
    return (data[at + 3] & 3) << 11 | data[at + 4] << 3 | data[at + 5] >> 5 if sync else 0

  _frames(data, after_tags(data), size_at, found)


def amr(data: Data, found: Ending) -> None:
  begin, sizes = (9, AMR_WB) if data[:9] == b"#!AMR-WB\n" else (6, AMR)

  def size_at(data: Data, at: int) -> int:
    # Five bits of the head are 0, or the frame is marked as lost.
    return sizes[data[at] >> 3 & 15] if at < len(data) and data[at] and not data[at] & 0x83 else 0

  _frames(data, begin, size_at, found, mark=b"", chain=6)


def flash(data: Data, found: Ending) -> None:
  at, told = integer(data, 5, 4) + 4, False
  # Sound, pictures, facts.
  while at < len(data) and data[at] in (8, 9, 18) and not any(data[at + 8 : at + 11]):
    size = 11 + integer(data, at + 1, 3)
    at += size + 4
    must_reach("its last tag", at, data)
    before = integer(data, at - 4, 4)  # each is followed by its size, or by 0 if its writer never tells it
    if before != size and (before or told):
      raise Damaged(f"at byte {at - 4 - size:,}")
    told |= before > 0
  if data[at : at + 4] == data[:4]:
    raise Joined(at)
  for head in re.finditer(rb"[\x08\x09\x12](?=.{7}\0\0\0)", data[at:], re.DOTALL):
    later = at + head.start()
    after = later + 11 + integer(data, later + 1, 3)
    if later + 11 < after <= len(data) - 4 and integer(data, after, 4) == after - later:
      raise Damaged(f"at byte {at:,}: no tag begins there")
  found.end = at


def asf(data: Data, found: Ending) -> None:
  at, end = 30, integer(data, 16, 8, "<")  # of its head, which describes the tracks
  must_reach("its head", end, data)
  while at + 24 <= end:
    name, kind = data[at : at + 16], data[at + 24 : at + 40]
    if name == ASF_TRACK and kind in ASF_KINDS:
      found.tracks[ASF_KINDS[kind]] += 1
    elif differences(name, ASF_TRACK) < 4 or any(differences(kind, one) < 4 for one in ASF_KINDS):
      raise Damaged(f"the description of a track at byte {at:,}")
    at += max(24, integer(data, at + 16, 8, "<"))
  mark = data[:end].find(bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365"))
  if mark > 0 and not data[mark + 88] & 1:  # else it was broadcast, and the size is not known
    found.end = integer(data, mark + 40, 8, "<")
    must_reach("its data", found.end, data)


def transport(data: Data, found: Ending) -> None:
  """MPEG-TS: all packets are there. Files that were joined are whole: there several programmes begin anew with a list."""
  size, first = (188, 0) if data[:189:188] == b"GG" else (192, 4)
  packets = np.frombuffer(data, np.uint8, len(data) // size * size).reshape(-1, size)
  others = np.append(packets[:, first] != 0x47, True)
  end = int(others.argmax()) * size
  if is_text(data[end:]) and data[end + first : end + first + 1] != b"G":
    found.end, found.declared, packets = end, False, packets[: end // size]
  elif len(data) % size:
    raise CutShort(f"its last packet has {len(data) % size} of {size} bytes")
  sync, high, low, flags, extra, more = packets[:, first : first + 6].T
  if (bad := (sync != 0x47) | (high & 0x80 > 0)).any():
    raise Damaged(f"at byte {int(bad.argmax()) * size:,}")
  programmes = (high.astype(np.int32) & 31) << 8 | low
  # Lists that came so far; a joint has another table just before its list, or none.
  lists = np.cumsum(programmes == 0)
  adapted, begins = flags & 0x20 > 0, high & 0x40 > 0
  room = np.where(adapted, 183 - extra.astype(np.int32), 184)
  gaps, parts, joints = [], [], Counter[int]()  # joints: how many programmes miss something around a list
  for programme in np.unique(programmes[programmes != NOTHING]).tolist():
    which = np.flatnonzero((programmes == programme) & (flags & 0x10 > 0))
    steps = np.diff(flags[which] & 15) & 15
    # Whether the packet says that it does not go on.
    meant = adapted[which] & (extra[which] > 0) & (more[which] & 0x80 > 0)
    for k in np.flatnonzero((steps > 1) & ~meant[1:]):
      before, after = int(which[k]), int(which[k + 1])
      gaps.append((before, after))
      joints.update(range(int(lists[before]) + 1, int(lists[after]) + 2))
    parts.append(which[np.append(True, steps > 0)])  # others were sent twice
  for before, after in gaps:
    around = range(int(lists[before]) + 1, int(lists[after]) + 2)
    if not begins[after] or not any(joints[k] > 1 for k in around):
      raise Damaged(f"packets are missing before byte {after * size:,}")
  for which in parts:
    _check_parts(data, which, begins, room, size)


def _check_parts(data: Data, which: np.ndarray, begins: np.ndarray, room: np.ndarray, size: int) -> None:
  """Of one programme of MPEG-TS: that each part which says its length has it."""
  starts = np.flatnonzero(begins[which])
  if not len(starts):
    return
  heads = [data[(at := (int(which[k]) + 1) * size - int(room[which[k]])) : at + 6] for k in starts]
  if not all(head.startswith(b"\0\0\1") for head in heads):
    return  # tables
  for k, head, there in zip(starts, heads, np.add.reduceat(room[which], starts), strict=True):
    if there < 6 + int.from_bytes(head[4:6]):
      raise CutShort(f"of the part at byte {int(which[k]) * size:,} only a beginning is there")


def programme_stream(data: Data, found: Ending) -> None:
  """MPEG-PS, as .mpg and .vob: its last packet is whole. Sectors of Video CDs are filled up with zeros."""
  at = 0
  while at < len(data):
    start = at
    while start < at + 2352 and data[start : start + 1] == b"\0" and data[start : start + 3] != b"\0\0\1":
      start += 1
    if data[start : start + 3] != b"\0\0\1":
      break
    at, kind = start, data[start + 3]
    if kind < 0xB9:
      raise Damaged(f"at byte {at:,}: no packet begins there")
    if kind == 0xB9:  # its end; another may be joined to it
      at += 4
    elif kind == 0xBA:
      at += 14 + (data[at + 13] & 7) if data[at + 4] & 0xC0 == 0x40 else 12
    else:
      at += 6 + integer(data, at + 4, 2)
    must_reach("its last packet", at, data)
  if data.find(b"\0\0\1\xba", at) > 0:
    raise Damaged(f"at byte {at:,}: no packet begins there")
  found.end, found.declared = at, False


def wavpack(data: Data, found: Ending) -> None:
  total, counted = integer(data, 12, 4, "<"), 0
  at = 0
  while data[at : at + 4] == b"wvpk":
    first = data[at + 25] >> 3 & 1  # of the blocks of several channels
    if first and counted and not integer(data, at + 16, 4, "<"):  # the number of its first sample
      raise Joined(at)
    counted += integer(data, at + 20, 4, "<") * first
    at += 8 + integer(data, at + 4, 4, "<")
    must_reach("its last block", at, data)
  if total != 0xFFFFFFFF:
    found.samples = total | data[11] << 32
    if counted < found.samples:
      raise CutShort(f"it has {counted:,} samples of the {found.samples:,} that it announces")
  found.end = at


def flac(data: Data, found: Ending) -> None:
  if another := re.compile(rb"fLaC[\0\x80]\0\0\x22").search(data, 4):
    raise Joined(another.start())
  found.samples = (data[21] & 15) << 32 | integer(data, 22, 4) or None


def true_audio(data: Data, found: Ending) -> None:
  rate, found.samples = integer(data, 10, 4, "<"), integer(data, 14, 4, "<")
  number = -(-found.samples // (256 * rate // 245)) if rate else 0
  frames = sum(integer(data, 22 + 4 * k, 4, "<") for k in range(number))
  found.end = 22 + 4 * number + 4 + frames
  must_reach("its last frame", found.end, data)
