"""Streams of pages, packets and frames."""

from collections import Counter
from collections.abc import Callable
import re
import zlib

import numpy as np

from mma_dfer_jax.data.formats.base import CutShort, Damaged, Data, Ending, integer, must_reach

REVERSED = bytes(
  int(f"{byte:08b}"[::-1], 2) for byte in range(256)
)  # each byte with its bits from last to first
NOTHING = 0x1FFF  # the programme of MPEG-TS that only fills time
NOTES = b"TAG", b"APETAGEX", b"LYRICSBEGIN", b"ID3"  # that follow the sound of an MP3 or an AAC
# Bytes of a frame by its type, https://www.rfc-editor.org/rfc/rfc4867 section 5.3; 0: such frames do not exist.
AMR = (13, 14, 16, 18, 20, 21, 27, 32, 6, 0, 0, 0, 0, 0, 0, 1)
AMR_WB = (18, 24, 33, 37, 41, 47, 51, 59, 61, 6, 0, 0, 0, 0, 1, 1)
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
        return  # follows the end
      raise Damaged(f"at byte {at:,}: no page begins there")
    flags, serial, number = data[at + 5], integer(data, at + 14, 4, "<"), integer(data, at + 18, 4, "<")
    lengths = data[at + 27 : at + 27 + data[at + 26]]
    if (
      number != upcoming.get(serial, number) and not flags & 2
    ):  # 2: the first, perhaps of a file joined to this one
      raise Damaged(f"pages are missing before byte {at:,}")
    upcoming[serial], ended[serial] = number + 1, bool(flags & 4)
    start, at = at, at + 27 + data[at + 26] + sum(lengths)
    must_reach("its last page", at, data)
    if _check_sum(data[start:at]) != integer(data, start + 22, 4, "<"):
      raise Damaged(f"between byte {start:,} and {at:,}")
  if not all(ended.values()):
    raise CutShort("its last page is not marked as the last")


def _check_sum(page: bytes) -> int:
  """Ogg's: zlib's of the bits in reversed order, from 0."""
  found = zlib.crc32((page[:22] + bytes(4) + page[26:]).translate(REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
  return int(f"{found:032b}"[::-1], 2)


def _after_id3(data: Data, at: int = 0) -> int:
  while data[at : at + 3] == b"ID3":
    a, b, c, d = data[at + 6 : at + 10]
    at += 10 + (a << 21 | b << 14 | c << 7 | d) + 10 * bool(data[at + 5] & 16)
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


def _frames(data: Data, at: int, size_at: Callable[[Data, int], int], found: Ending) -> int:
  """How many frames follow each other from `at` on; the last must be whole.

  Tags may stand between them, where files were joined, and anything after the last: FFmpeg stumbles over it.
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
    begun = (
      at + 128
      if data[at : at + 3] == b"TAG"
      else at + 6
      if data[at : at + 6] == b"#!AMR\n"
      else _after_id3(data, at)
    )
    if begun == at or not size_at(data, begun):
      break
    at = begun
  else:
    parts.append((begun, at))
  tagged, later = data[at : at + 11].startswith(NOTES), at
  while not tagged and (later := data.find(b"\xff", later + 1)) > 0:
    following = later + size_at(data, later)
    if later < following < len(data) and size_at(data, following):
      raise Damaged(f"at byte {at:,}: no frame begins there")
  if len(parts) > 1 or len(data) - at not in (0, 128):  # 128: notes that FFmpeg knows
    found.parts = parts
  return count


def mp3(data: Data, found: Ending) -> None:
  at = _after_id3(data)
  size, declared = mpeg_frame(data, at), 0
  mark = data[at : at + size].find(b"Xing") if size else -1
  mark = data[at : at + size].find(b"Info") if size and not 0 < mark < 48 else mark
  if 0 < mark < 48 and data[at + mark + 7] & 1:
    declared = integer(data, at + mark + 8, 4)
  count = _frames(data, at, mpeg_frame, found)
  if declared > count:
    raise CutShort(f"it has {count:,} frames of the {declared:,} that it announces")


def adts(data: Data, found: Ending) -> None:
  def size_at(data: Data, at: int) -> int:
    sync = at + 7 <= len(data) and data[at] == 0xFF and data[at + 1] & 0xF6 == 0xF0
    return (data[at + 3] & 3) << 11 | data[at + 4] << 3 | data[at + 5] >> 5 if sync else 0

  _frames(data, _after_id3(data), size_at, found)


def amr(data: Data, found: Ending) -> None:
  wide = data[:9] == b"#!AMR-WB\n"

  def size_at(data: Data, at: int) -> int:
    return (AMR_WB if wide else AMR)[data[at] >> 3 & 15] if at < len(data) and not data[at] & 0x83 else 0

  _frames(data, 9 if wide else 6, size_at, found)


def flash(data: Data, found: Ending) -> None:
  at = integer(data, 5, 4) + 4
  while at < len(data) and data[at] & 0x1F in (8, 9, 18):  # sound, pictures, facts; else it follows the end
    size = 11 + integer(data, at + 1, 3)
    at += size + 4
    must_reach("its last tag", at, data)
    if integer(data, at - 4, 4) not in (size, 0):  # each is followed by its size
      raise Damaged(f"at byte {at - 4 - size:,}")


def asf(data: Data, found: Ending) -> None:
  mark = data[: 30 + integer(data, 16, 8, "<")].find(bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365"))
  if mark > 0 and not data[mark + 88] & 1:  # else it was broadcast, and the size is not known
    must_reach("its data", integer(data, mark + 40, 8, "<"), data)


def transport(data: Data, found: Ending) -> None:
  """MPEG-TS: all packets are there. Files that were joined are whole: there several programmes begin anew with a list."""
  size, first = (188, 0) if data[:189:188] == b"GG" else (192, 4)
  if len(data) % size:
    raise CutShort(f"its last packet has {len(data) % size} of {size} bytes")
  packets = np.frombuffer(data, np.uint8).reshape(-1, size)
  sync, high, low, flags, extra, more = packets[:, first : first + 6].T
  if (bad := (sync != 0x47) | (high & 0x80 > 0)).any():
    raise Damaged(f"at byte {int(bad.argmax()) * size:,}")
  programmes = (high.astype(np.int32) & 31) << 8 | low
  lists = np.cumsum(
    programmes == 0
  )  # that came so far; a joint has another table just before its list, or none
  adapted, begins = flags & 0x20 > 0, high & 0x40 > 0
  room = np.where(adapted, 183 - extra.astype(np.int32), 184)
  gaps, parts, joints = [], [], Counter[int]()  # joints: how many programmes miss something around a list
  for programme in np.unique(programmes[programmes != NOTHING]).tolist():
    which = np.flatnonzero((programmes == programme) & (flags & 0x10 > 0))
    steps = np.diff(flags[which] & 15) & 15
    meant = (
      adapted[which] & (extra[which] > 0) & (more[which] & 0x80 > 0)
    )  # the packet says that it does not go on
    for k in np.flatnonzero((steps > 1) & ~meant[1:]):
      before, after = int(which[k]), int(which[k + 1])
      gaps.append((before, after))
      joints.update(range(int(lists[before]) + 1, int(lists[after]) + 2))
    parts.append(which[np.append(True, steps > 0)])  # others were sent twice
  for before, after in gaps:
    if not begins[after] or not any(
      joints[k] > 1 for k in range(int(lists[before]) + 1, int(lists[after]) + 2)
    ):
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
  """MPEG-PS, as .mpg and .vob: its last packet is whole."""
  at = 0
  while at + 6 <= len(data) and data[at : at + 3] == b"\0\0\1" and data[at + 3] >= 0xB9:
    if data[at + 3] == 0xB9:  # its end; another may be joined to it
      at += 4
    elif data[at + 3] == 0xBA:
      at += 14 + (data[at + 13] & 7) if data[at + 4] & 0xC0 == 0x40 else 12
    else:
      at += 6 + integer(data, at + 4, 2)
    must_reach("its last packet", at, data)


def wavpack(data: Data, found: Ending) -> None:
  total, counted = integer(data, 12, 4, "<"), 0
  at = 0
  while data[at : at + 4] == b"wvpk":
    first = data[at + 25] >> 3 & 1  # of the blocks of several channels
    counted += integer(data, at + 20, 4, "<") * first
    at += 8 + integer(data, at + 4, 4, "<")
    must_reach("its last block", at, data)
  if at < len(data):
    found.parts = [(0, at)]
  if total != 0xFFFFFFFF and counted < total:
    raise CutShort(f"it has {counted:,} samples of the {total:,} that it announces")


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
  while at < len(data):
    body = data.find(b"\n", at) + 1
    if not body or data[at : at + 5] != b"FRAME":
      raise Damaged(f"at byte {at:,}: no frame begins there")
    at = body + size
    must_reach("its last frame", at, data)


def flac(data: Data, found: Ending) -> None:
  if (another := data.find(b"fLaC\0\0\0\x22", 4)) > 0:
    raise Damaged(f"another FLAC begins at byte {another:,}, which no decoder reads: take them apart")
  found.samples = (data[21] & 15) << 32 | integer(data, 22, 4) or None


def true_audio(data: Data, found: Ending) -> None:
  rate, found.samples = integer(data, 10, 4, "<"), integer(data, 14, 4, "<")
  number = -(-found.samples // (256 * rate // 245)) if rate else 0
  frames = sum(integer(data, 22 + 4 * k, 4, "<") for k in range(number))
  must_reach("its last frame", 22 + 4 * number + 4 + frames, data)


def material_exchange(data: Data, found: Ending) -> None:
  """MXF: keys, lengths and values; the last is an index, or the end of a part that closes the file."""
  at, last = 0, b""
  while at < len(data):
    last, head = data[at : at + 16], data[at + 16]
    more = head & 0x7F if head & 0x80 else 0
    at += 17 + more + (integer(data, at + 17, more) if more else head)
    must_reach("its last part", at, data)
  if not last.startswith(bytes.fromhex("060e2b34")):
    raise Damaged("its last part has no key")
  if last[13:14] not in (b"\x04", b"\x11", b"\x10") or last[4:12] != bytes.fromhex("020501010d010201"):
    raise CutShort("its last part, which closes the file, is missing")


def indexed_frames(data: Data, found: Ending) -> None:
  """IVF, of VP8, VP9 and AV1."""
  at = integer(data, 6, 2, "<")
  while at < len(data):
    at += 12 + integer(data, at, 4, "<")
    must_reach("its last frame", at, data)


def after_tags(data: Data, found: Ending) -> None:
  """Of a file that begins with ID3."""
  start = _after_id3(data)
  if data[start : start + 4] == b"fLaC":
    flac(data[start:], found)
  elif data[start : start + 4] == b"TTA1":
    true_audio(data[start:], found)
  elif data[start] == 0xFF and data[start + 1] & 0xF6 == 0xF0:
    adts(data, found)
  else:
    mp3(data, found)
