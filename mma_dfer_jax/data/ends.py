"""Whether a file ends where its own format says that it ends: FFmpeg and PIL take what is there and say nothing.

Looks at sizes of boxes, chunks, pages and frames, at counts and at marks of the end. It decodes nothing, and knows nothing
of formats without any of these: there `media` compares times. Sizes that a writer to a pipe could not know mean "to the end".
"""

from collections.abc import Callable, Iterator
import mmap
import os
from pathlib import Path
import re
import struct
import zlib

import numpy as np

Data = mmap.mmap | bytes

PLACEHOLDER = (
  0x7FFF0000  # sizes from here on, or 0, stand in headers that were written before the size was known
)
NOTES = b"TAG", b"APETAGEX", b"LYRICSBEGIN", b"ID3"  # that follow the sound of an MP3 or an AAC
# Matroska, https://www.rfc-editor.org/rfc/rfc9559: a segment's parts, and those of them that hold what was recorded.
SEGMENT, SEEK_HEAD, CLUSTER, TRACKS = 0x18538067, 0x114D9B74, 0x1F43B675, 0x1654AE6B
PARTS = {SEEK_HEAD, CLUSTER, TRACKS, 0x1549A966, 0x1C53BB6B, 0x1254C367, 0x1043A770, 0x1941A469}
OF_TRACK = {"stsd": {b"stsd"}, "stts": {b"stts"}, "stsc": {b"stsc"}, "stsz": {b"stsz", b"stz2"}, "stco": {b"stco", b"co64"}}  # fmt: skip
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


class _CutShort(Exception):
  """What is missing, in words."""


def why_cut_short(path: str | os.PathLike[str]) -> str | None:
  """What a file lacks that its format says it has, in words; None if nothing, or the format does not say.

  Raises:
    OSError: if it cannot be read.
  """
  if not Path(path).stat().st_size:
    return None
  with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
    return why_cut_short_data(data)


def why_cut_short_data(data: Data) -> str | None:
  """The same of a file's bytes."""
  check = next((check for is_such, check in FORMATS if is_such(data[:200])), None)
  try:
    if check:
      check(data)
  except _CutShort as error:
    return str(error)
  except zlib.error as error:
    return f"its pixels are damaged ({error})"
  except (struct.error, IndexError):  # a header is longer than the file
    return "it ends within a header"
  return None


def _must_reach(what: str, end: int, data: Data) -> None:
  if end > len(data):
    raise _CutShort(f"{what} ends at byte {end:,}, the file at byte {len(data):,}")


def _name(kind: bytes) -> str:
  return kind.decode("latin-1").strip()


def _integer(data: Data, at: int, size: int, order: str = ">") -> int:
  if at + size > len(data):
    raise IndexError
  return int.from_bytes(data[at : at + size], "big" if order == ">" else "little")


# MP4, MOV, M4A, 3GP, HEIF: boxes in boxes.


def _boxes(data: Data, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
  """(type, first byte of the content, end) of each box; the end may lie outside. Stops at what is no box."""
  while at + 8 <= end:
    size, kind, head = _integer(data, at, 4), data[at + 4 : at + 8], 8
    if size == 1:
      size, head = _integer(data, at + 8, 8), 16
    size = size or end - at
    if size < head or not all(32 <= c < 127 or c == 0xA9 for c in kind):
      return
    yield kind, at + head, at + size
    at += size


def _iso(data: Data) -> None:
  found = list(_boxes(data, 0, len(data)))
  kinds = [kind for kind, *_ in found]
  for kind, _, end in found:
    _must_reach(f"its box {_name(kind)}", end, data)
  rest = data[found[-1][2] :] if found else b""
  if 0 < len(rest) < 8 and any(rest):
    raise _CutShort("it ends within the head of a box")
  if b"moov" not in kinds and b"meta" not in kinds:
    raise _CutShort("its box moov, which describes the tracks, is missing; recorders write it last")
  if kinds[-1] == b"moof":
    raise _CutShort("its last fragment has no box mdat")
  for kind, start, end in found:
    if kind == b"sidx":
      _must_reach("its last segment", _end_of_segments(data, start, end), data)
    if kind == b"moov":
      tracks = [(s, e) for k, s, e in _tiles(data, "moov", start, end) if k == b"trak"]
      for number, (s, e) in enumerate(tracks, 1):
        _track(data, number, s, e)


def _tiles(data: Data, name: str, start: int, end: int) -> list[tuple[bytes, int, int]]:
  """The boxes within one, which must fill it."""
  inside = list(_boxes(data, start, end))
  reached = inside[-1][2] if inside else start
  if reached > end or end - reached >= 8:
    raise _CutShort(f"its box {name} is damaged at byte {min(reached, end):,}")
  return inside


def _track(data: Data, number: int, start: int, end: int) -> None:
  """That a track's description is whole, and its samples lie within the file."""
  where, handler = (start, end), b""
  for name in ("mdia", "minf", "stbl"):
    inside = _tiles(data, f"trak {number}", *where)
    handler = next((data[s + 8 : s + 12] for k, s, _ in inside if k == b"hdlr" and name == "minf"), handler)
    place = next(((s, e) for k, s, e in inside if k == name.encode()), None)
    if place is None:
      raise _CutShort(f"the description of its track {number} lacks {name}")
    where = place
  if handler not in (b"vide", b"soun"):
    return
  tables = {k: (s, e) for k, s, e in _tiles(data, f"trak {number}", *where)}
  for name, kinds in OF_TRACK.items():
    if not kinds & set(tables):
      raise _CutShort(f"the description of its track {number} lacks {name}")
  _must_reach(f"its track {number}", _end_of_samples(data, tables, number), data)


def _rows(data: Data, box: tuple[int, int], at: int, kind: str, columns: int, number: int) -> np.ndarray:
  """(N, columns) of a table whose count stands at `at` of the box, before it."""
  start, end = box
  count, size = _integer(data, start + at, 4), np.dtype(kind).itemsize * columns
  if start + at + 4 + count * size > end:
    raise _CutShort(f"the description of its track {number} is damaged at byte {start:,}")
  return np.frombuffer(data[start + at + 4 : start + at + 4 + count * size], kind).reshape(-1, columns).astype(np.int64)  # fmt: skip


def _end_of_samples(data: Data, tables: dict[bytes, tuple[int, int]], number: int) -> int:
  """Where the last chunk of samples of a track ends."""
  wide = b"co64" in tables
  chunks = _rows(data, tables[b"co64" if wide else b"stco"], 4, ">u8" if wide else ">u4", 1, number)[:, 0]
  groups = _rows(data, tables[b"stsc"], 4, ">u4", 3, number)
  if not len(chunks) or not len(groups) or b"stz2" in tables:
    return 0  # the samples are in fragments
  if groups[0, 0] != 1 or (np.diff(groups[:, 0]) <= 0).any():
    raise _CutShort(f"the description of its track {number} is damaged: its chunks are out of order")
  repeats = np.diff(np.append(groups[:, 0], len(chunks) + 1)).clip(0)
  firsts = np.append(0, np.cumsum(np.repeat(groups[:, 1], repeats)))[: len(chunks) + 1]
  start, size = tables[b"stsz"][0], _integer(data, tables[b"stsz"][0] + 4, 4)
  count = _integer(data, start + 8, 4)
  if size == 1 and count > firsts[-1]:
    return 0  # sound of QuickTime, whose samples are smaller than a packet
  if firsts[-1] < count:
    raise _CutShort(f"its track {number} has {count:,} samples, its chunks hold {firsts[-1]:,}")
  if size:
    return int((chunks + np.diff(firsts) * size).max()) if size > 4 else 0
  ends = np.append(0, np.cumsum(_rows(data, tables[b"stsz"], 8, ">u4", 1, number)[:, 0]))
  firsts = firsts.clip(max=count)
  return int((chunks + ends[firsts[1:]] - ends[firsts[:-1]]).max())


def _end_of_segments(data: Data, start: int, end: int) -> int:
  """Where the last segment ends that an index (sidx) names."""
  at = start + (20 if data[start] == 0 else 28)  # after its version, timescale, and two times of 4 or 8 bytes
  first = _integer(data, at - (4 if data[start] == 0 else 8), 4 if data[start] == 0 else 8)
  count = _integer(data, at + 2, 2)
  sizes = (_integer(data, at + 4 + 12 * k, 4) & 0x7FFFFFFF for k in range(count))
  return end + first + sum(sizes)


# Matroska and WebM: elements in elements.


def _vint(data: Data, at: int, *, keep_mark: bool) -> tuple[int | None, int]:
  """A number of variable length, None if unknown, and where it ends."""
  length = 9 - data[at].bit_length()
  if length > 8:
    raise _CutShort(f"it is damaged at byte {at:,}")
  value = _integer(data, at, length)
  if keep_mark:
    return value, at + length
  value &= (1 << 7 * length) - 1
  return None if value == (1 << 7 * length) - 1 else value, at + length


def _matroska(data: Data) -> None:
  at, end = 0, len(data)
  kinds: set[int | None] = set()
  segment = places = None
  while at < end:
    kind, body = _vint(data, at, keep_mark=True)
    size, body = _vint(data, body, keep_mark=False)
    if kind == SEGMENT:
      segment, at = body, body
      end = end if size is None else body + size
      _must_reach("its segment", end, data)
      continue
    if kind == SEEK_HEAD and size is not None:
      places = body, body + size
    known = segment is None or kind in PARTS | {0xEC, 0xBF}
    if not known and (size is None or CLUSTER not in kinds):
      raise _CutShort(f"it is damaged at byte {at:,}")
    kinds.add(kind)
    if size is None and kind == CLUSTER:  # of unknown length: what follows lies in it, or is the next part
      at = body
      continue
    _must_reach("its last cluster" if CLUSTER in kinds else "its header", body + (size or 0), data)
    at = body + (size or 0)
  if segment is None or TRACKS not in kinds:
    raise _CutShort("the description of its tracks is missing")
  for place in _places(data, *places) if places else ():
    _must_reach("what its index points to", segment + place + 4, data)


def _places(data: Data, at: int, end: int) -> Iterator[int]:
  """The positions that a SeekHead names, in bytes since the begin of the segment."""
  while at < end:
    kind, body = _vint(data, at, keep_mark=True)
    size, body = _vint(data, body, keep_mark=False)
    if kind == 0x53AC:
      yield _integer(data, body, size or 0)
    at = body if kind == 0x4DBB else body + (size or 0)


# RIFF (AVI, WAV, WebP) and its relatives: chunks one after the other.


def _is_placeholder(size: int, data: Data) -> bool:
  return size == 0 or (size >= PLACEHOLDER and size > len(data))


def _chunks(data: Data, at: int, order: str) -> Iterator[tuple[bytes, int, int]]:
  """(name, first byte, size) of each chunk from `at` on, up to one whose size is a placeholder."""
  while at + 8 <= len(data):
    kind, size = data[at : at + 4], _integer(data, at + 4, 4, order)
    if not all(32 <= c < 127 for c in kind):
      return
    yield kind, at + 8, size
    at += 8 + size + size % 2


def _riff(data: Data) -> None:
  order, form = ">" if data[:4] in (b"RIFX", b"FORM") else "<", data[8:12]
  size = _integer(data, 4, 4, order)
  if form in (b"AVI ", b"WEBP") and not _is_placeholder(size, data):
    _must_reach(f"its {_name(form)} data", 8 + size, data)
  large: int | None = None
  seen = False
  parts = b"RIFF" if form == b"AVI " else b""
  for kind, start, size in _chunks(data, 12 if form != b"AVI " else 0, order):
    if kind == b"ds64":  # RF64: sizes of more than 4 GB
      large = _integer(data, start + 8, 8, "<")
    sound = kind in (b"data", b"SSND")
    seen |= sound
    if sound and large is not None and size == 0xFFFFFFFF:
      _must_reach("its chunk data", start + large, data)
      return
    if (sound or kind == parts) and _is_placeholder(size, data):
      return
    if kind == parts or sound or form in (b"AVI ", b"WEBP") or start + size <= len(data):
      _must_reach(f"its chunk {_name(kind)}", start + size, data)
    else:
      raise _CutShort(
        f"its chunk {_name(kind)} ends at byte {start + size:,}, the file at byte {len(data):,}"
      )
  if form in (b"WAVE", b"AIFF", b"AIFC") and not seen:
    raise _CutShort(f"it has no chunk {'data' if form == b'WAVE' else 'SSND'}, which holds the sound")


def _wave64(data: Data) -> None:
  at = 40
  while at + 24 <= len(data):
    size = _integer(data, at + 16, 8, "<")
    if size < 24 or (data[at : at + 4] == b"data" and size >= 1 << 62):
      return
    _must_reach(f"its chunk {_name(data[at : at + 4])}", at + size, data)
    at += -(-size // 8) * 8


def _caf(data: Data) -> None:
  at, seen = 8, False
  while at + 12 <= len(data):
    kind, size = data[at : at + 4], struct.unpack_from(">q", data, at + 4)[0]
    seen |= kind == b"data"
    if size < 0:
      return
    _must_reach(f"its chunk {_name(kind)}", at + 12 + size, data)
    at += 12 + size
  if not seen:
    raise _CutShort("it has no chunk data, which holds the sound")


def _au(data: Data) -> None:
  start, size = _integer(data, 4, 4), _integer(data, 8, 4)
  if not _is_placeholder(size, data):
    _must_reach("its sound", start + size, data)


# Streams of pages, packets and frames.


def _ogg(data: Data) -> None:
  at, upcoming, ended = 0, dict[int, int](), dict[int, bool]()
  while at < len(data):
    if data[at : at + 4] != b"OggS":
      raise _CutShort(f"it is damaged at byte {at:,}: no page begins there")
    flags, serial, number = data[at + 5], _integer(data, at + 14, 4, "<"), _integer(data, at + 18, 4, "<")
    lengths = data[at + 27 : at + 27 + data[at + 26]]
    if number != upcoming.get(serial, number):
      raise _CutShort(f"pages are missing before byte {at:,}")
    upcoming[serial], ended[serial] = number + 1, bool(flags & 4)
    at += 27 + data[at + 26] + sum(lengths)
    _must_reach("its last page", at, data)
  if not all(ended.values()):
    raise _CutShort("its last page is not marked as the last")


def _after_id3(data: Data) -> int:
  at = 0
  while data[at : at + 3] == b"ID3":
    a, b, c, d = data[at + 6 : at + 10]
    at += 10 + (a << 21 | b << 14 | c << 7 | d) + 10 * bool(data[at + 5] & 16)
  return at


def _mpeg_frame(data: Data, at: int) -> int:
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


def _frames(data: Data, at: int, size_at: Callable[[Data, int], int]) -> int:
  """How many frames follow each other from `at` on; the last must be whole."""
  count = 0
  while at < len(data) and not data[at : at + 11].startswith(NOTES) and (size := size_at(data, at)):
    at += size
    count += 1
    _must_reach("its last frame", at, data)
  return count


def _mp3(data: Data) -> None:
  at = _after_id3(data)
  size, declared = _mpeg_frame(data, at), 0
  mark = data[at : at + size].find(b"Xing") if size else -1
  mark = data[at : at + size].find(b"Info") if size and not 0 < mark < 48 else mark
  if 0 < mark < 48 and data[at + mark + 7] & 1:
    declared = _integer(data, at + mark + 8, 4)
  count = _frames(data, at, _mpeg_frame)
  if declared > count:
    raise _CutShort(f"it has {count:,} frames of the {declared:,} that it announces")


def _adts(data: Data) -> None:
  def size_at(data: Data, at: int) -> int:
    sync = at + 7 <= len(data) and data[at] == 0xFF and data[at + 1] & 0xF6 == 0xF0
    return (data[at + 3] & 3) << 11 | data[at + 4] << 3 | data[at + 5] >> 5 if sync else 0

  _frames(data, _after_id3(data), size_at)


def _amr(data: Data) -> None:
  wide = data[:9] == b"#!AMR-WB\n"
  _frames(data, 9 if wide else 6, lambda data, at: (AMR_WB if wide else AMR)[data[at] >> 3 & 15])


def _flash(data: Data) -> None:
  at = _integer(data, 5, 4) + 4
  while at < len(data):
    at += 11 + _integer(data, at + 1, 3) + 4
    _must_reach("its last tag", at, data)


def _asf(data: Data) -> None:
  mark = data[: 30 + _integer(data, 16, 8, "<")].find(bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365"))
  if mark > 0 and not data[mark + 88] & 1:  # else it was broadcast, and the size is not known
    _must_reach("its data", _integer(data, mark + 40, 8, "<"), data)


def _transport(data: Data) -> None:
  size = 188 if data[:189:188] == b"GG" else 192
  if len(data) % size:
    raise _CutShort(f"its last packet has {len(data) % size} of {size} bytes")


def _wavpack(data: Data) -> None:
  total, counted = _integer(data, 12, 4, "<"), 0
  at = 0
  while data[at : at + 4] == b"wvpk":
    first = data[at + 25] >> 3 & 1  # of the blocks of several channels
    counted += _integer(data, at + 20, 4, "<") * first
    at += 8 + _integer(data, at + 4, 4, "<")
    _must_reach("its last block", at, data)
  if total != 0xFFFFFFFF and counted < total:
    raise _CutShort(f"it has {counted:,} samples of the {total:,} that it announces")


def _y4m(data: Data) -> None:
  head = data[: data.find(b"\n") if data.find(b"\n") > 0 else len(data)].split()
  fields = {word[:1]: word[1:] for word in head[1:]}
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
      raise _CutShort(f"it is damaged at byte {at:,}: no frame begins there")
    at = body + size
    _must_reach("its last frame", at, data)


# Pictures. JPEG has neither sizes nor counts: `frames.decode_frame` decodes it strictly.


def _png(data: Data) -> None:
  width, height, bits, colours, _, _, interlaced = struct.unpack(">IIBBBBB", data[16:29])
  channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(colours, 1)
  rows = height * (
    1 + (width * bits * channels + 7) // 8
  )  # bytes: each begins with one that names its filter
  at, frames, seen, pixels, inflated = 8, None, 0, zlib.decompressobj(), 0
  while at + 12 <= len(data):
    size, kind = _integer(data, at, 4), data[at + 4 : at + 8]
    _must_reach(f"its chunk {_name(kind)}", at + 12 + size, data)
    if zlib.crc32(data[at + 4 : at + 8 + size]) != _integer(data, at + 8 + size, 4):
      raise _CutShort(f"its chunk {_name(kind)} is damaged")
    frames = _integer(data, at + 8, 4) if kind == b"acTL" else frames
    seen += kind == b"fcTL"
    if kind == b"IDAT":
      inflated += len(pixels.decompress(data[at + 8 : at + 8 + size]))
    if kind == b"IEND":
      if frames is not None and seen < frames:
        raise _CutShort(f"it has {seen} pictures of the {frames} that it announces")
      if not pixels.eof or (inflated < rows and not interlaced):
        raise _CutShort("its pixels end before the picture does")
      return
    at += 12 + size
  raise _CutShort("its chunk IEND, the last of every PNG, is missing")


def _gif(data: Data) -> None:
  def after_blocks(at: int) -> int:
    while data[at]:
      at += 1 + data[at]
    return at + 1

  at = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
  while data[at] != 0x3B:
    if data[at] == 0x21:
      at = after_blocks(at + 2)
    elif data[at] == 0x2C:
      at = after_blocks(at + 11 + (3 << (data[at + 9] & 7) + 1 if data[at + 9] & 0x80 else 0))
    elif data[at]:
      raise _CutShort(f"it is damaged at byte {at:,}")
    else:
      at += 1


def _bmp(data: Data) -> None:
  _must_reach("its picture", _integer(data, 2, 4, "<"), data)


def _starts(*marks: bytes, at: int = 0) -> Callable[[bytes], bool]:
  return lambda head: head[at:].startswith(marks)


# (whether the first 200 bytes are of such a file, what looks at it).
FORMATS: tuple[tuple[Callable[[bytes], bool], Callable[[Data], None]], ...] = (
  (_starts(b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot", b"styp", at=4), _iso),
  (_starts(b"\x1a\x45\xdf\xa3"), _matroska),
  (_starts(b"RIFF", b"RIFX", b"RF64", b"BW64"), _riff),
  (lambda head: head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"), _riff),
  (_starts(b"riff\x2e\x91\xcf\x11"), _wave64),
  (_starts(b"caff"), _caf),
  (_starts(b".snd"), _au),
  (_starts(b"OggS"), _ogg),
  (_starts(b"#!AMR"), _amr),
  (_starts(b"FLV\x01"), _flash),
  (_starts(bytes.fromhex("3026b2758e66cf11")), _asf),
  (_starts(b"wvpk"), _wavpack),
  (_starts(b"YUV4MPEG2"), _y4m),
  (_starts(b"\x89PNG\r\n\x1a\n"), _png),
  (_starts(b"GIF87a", b"GIF89a"), _gif),
  (_starts(b"BM"), _bmp),
  (_starts(b"ID3"), _mp3),
  (lambda head: head[:1] == b"\xff" and head[1] & 0xF6 == 0xF0, _adts),
  (lambda head: bool(_mpeg_frame(head, 0)), _mp3),
  (lambda head: head[:189:188] == b"GG" or head[4:197:192] == b"GG", _transport),
)
