"""MP4, MOV, M4A, 3GP, HEIF: boxes in boxes. Source: ISO/IEC 14496-12."""

from collections.abc import Iterator

import numpy as np

from mma_dfer_jax.data.formats.base import CutShort, Damaged, Data, Ending, integer, must_reach, name_of

TRACKS = {b"vide": "video", b"soun": "audio"}
OF_FILE = {
  b"ftyp",
  b"moov",
  b"mdat",
  b"moof",
  b"mfra",
  b"meta",
  b"sidx",
  b"styp",
  b"free",
  b"skip",
  b"wide",
  b"uuid",
}
OF_TRACK = {"stsd": {b"stsd"}, "stts": {b"stts"}, "stsc": {b"stsc"}, "stsz": {b"stsz", b"stz2"}, "stco": {b"stco", b"co64"}}  # fmt: skip


def _boxes(data: Data, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
  """(type, first byte of the content, end) of each box; the end may lie outside. Stops at what is no box."""
  while at + 8 <= end:
    size, kind, head = integer(data, at, 4), data[at + 4 : at + 8], 8
    if size == 1:
      size, head = integer(data, at + 8, 8), 16
    size = size or end - at
    if size < head or not all(32 <= c < 127 or c == 0xA9 for c in kind):
      return
    yield kind, at + head, at + size
    at += size


def iso(data: Data, found: Ending) -> None:
  boxes = list(_boxes(data, 0, len(data)))
  kinds = [kind for kind, *_ in boxes]
  described, pieces = b"moov" in kinds, b"moof" in kinds
  for kind, _, end in boxes:
    if kind in OF_FILE or not described:  # else it is something that follows the end
      must_reach(f"its box {name_of(kind)}", end, data)
  rest = data[boxes[-1][2] :] if boxes else b""
  if 0 < len(rest) < 8 and rest[0] == 0 < max(rest) and (pieces or not described):
    raise CutShort("it ends within the head of a box")
  if not described and b"meta" not in kinds:
    raise CutShort("its box moov, which describes the tracks, is missing; recorders write it last")
  if kinds[-1] == b"moof":
    raise CutShort("its last fragment has no box mdat")
  for kind, start, end in boxes:
    if kind == b"sidx":
      must_reach("its last segment", _end_of_segments(data, start, end), data)
    if kind == b"moov":
      tracks = [(s, e) for k, s, e in _tiles(data, "moov", start, end) if k == b"trak"]
      for number, (s, e) in enumerate(tracks, 1):
        if kind_of_track := TRACKS.get(_track(data, number, s, e)):
          found.tracks[kind_of_track] += 1


def _tiles(data: Data, name: str, start: int, end: int) -> list[tuple[bytes, int, int]]:
  """The boxes within one, which must fill it."""
  inside = list(_boxes(data, start, end))
  reached = inside[-1][2] if inside else start
  if reached > end or end - reached >= 8:
    raise Damaged(f"its box {name} is wrong at byte {min(reached, end):,}")
  return inside


def _track(data: Data, number: int, start: int, end: int) -> bytes:
  """Checks that a track's description is whole, and its samples lie within the file; returns its kind."""
  where, handler = (start, end), b""
  for name in ("mdia", "minf", "stbl"):
    inside = _tiles(data, f"trak {number}", *where)
    handler = next((data[s + 8 : s + 12] for k, s, _ in inside if k == b"hdlr" and name == "minf"), handler)
    place = next(((s, e) for k, s, e in inside if k == name.encode()), None)
    if place is None:
      raise Damaged(f"the description of its track {number} lacks {name}")
    where = place
  if handler not in TRACKS:
    return handler
  tables = {k: (s, e) for k, s, e in _tiles(data, f"trak {number}", *where)}
  for name, kinds in OF_TRACK.items():
    if not kinds & set(tables):
      raise Damaged(f"the description of its track {number} lacks {name}")
  must_reach(f"its track {number}", _end_of_samples(data, tables, number), data)
  return handler


def _rows(data: Data, box: tuple[int, int], at: int, kind: str, columns: int, number: int) -> np.ndarray:
  """(N, columns) of a table whose count stands at `at` of the box, before it."""
  start, end = box
  count, size = integer(data, start + at, 4), np.dtype(kind).itemsize * columns
  if start + at + 4 + count * size > end:
    raise Damaged(f"the description of its track {number} is wrong at byte {start:,}")
  return np.frombuffer(data[start + at + 4 : start + at + 4 + count * size], kind).reshape(-1, columns).astype(np.int64)  # fmt: skip


def _end_of_samples(data: Data, tables: dict[bytes, tuple[int, int]], number: int) -> int:
  """Where the last chunk of samples of a track ends."""
  wide = b"co64" in tables
  chunks = _rows(data, tables[b"co64" if wide else b"stco"], 4, ">u8" if wide else ">u4", 1, number)[:, 0]
  groups = _rows(data, tables[b"stsc"], 4, ">u4", 3, number)
  if not len(chunks) or not len(groups) or b"stz2" in tables:
    return 0  # the samples are in fragments
  if groups[0, 0] != 1 or (np.diff(groups[:, 0]) <= 0).any():
    raise Damaged(f"its track {number}: its chunks are out of order")
  repeats = np.diff(np.append(groups[:, 0], len(chunks) + 1)).clip(0)
  firsts = np.append(0, np.cumsum(np.repeat(groups[:, 1], repeats)))[: len(chunks) + 1]
  start, size = tables[b"stsz"][0], integer(data, tables[b"stsz"][0] + 4, 4)
  count = integer(data, start + 8, 4)
  if size == 1 and count > firsts[-1]:
    return 0  # sound of QuickTime, whose samples are smaller than a packet
  if firsts[-1] < count:
    raise Damaged(f"its track {number} has {count:,} samples, its chunks hold {firsts[-1]:,}")
  if size:
    return int((chunks + np.diff(firsts) * size).max()) if size > 4 else 0
  ends = np.append(0, np.cumsum(_rows(data, tables[b"stsz"], 8, ">u4", 1, number)[:, 0]))
  firsts = firsts.clip(max=count)
  return int((chunks + ends[firsts[1:]] - ends[firsts[:-1]]).max())


def _end_of_segments(data: Data, start: int, end: int) -> int:
  """Where the last segment ends that an index (sidx) names."""
  at = start + (20 if data[start] == 0 else 28)  # after its version, timescale, and two times of 4 or 8 bytes
  first = integer(data, at - (4 if data[start] == 0 else 8), 4 if data[start] == 0 else 8)
  count = integer(data, at + 2, 2)
  sizes = (integer(data, at + 4 + 12 * k, 4) & 0x7FFFFFFF for k in range(count))
  return end + first + sum(sizes)
