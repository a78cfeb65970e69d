"""MP4, MOV, M4A, 3GP, HEIF: boxes in boxes. Source: ISO/IEC 14496-12."""

from collections.abc import Iterator

import numpy as np

from mma_dfer_jax.data.formats import (
  CutShort,
  Damaged,
  Data,
  Ending,
  Joined,
  differences,
  integer,
  is_name,
  must_reach,
  name_of,
)

TRACKS = {b"vide": "video", b"soun": "audio"}
OF_FILE = set(b"ftyp moov mdat moof mfra meta sidx styp free skip wide uuid".split())
# What must be in a box (| divides names of which one is enough), and without what else something is lost or wrong.
HOLDS = {
  b"": (b"", b"moov moof"),  # the file
  b"moov": (b"mvhd|cmov|rmra", b"trak mvex"),
  b"trak": (b"tkhd mdia", b"edts"),
  b"mdia": (b"mdhd hdlr minf", b""),
  b"minf": (b"stbl", b""),
  b"stbl": (b"", b"stsd stts stsc stsz stco co64 ctts stss"),
  b"vide": (b"", b"pasp colr"),  # the description of pictures
  b"edts": (b"", b"elst"),
  b"mvex": (b"", b"trex"),
  b"moof": (b"mfhd", b"traf"),
  b"traf": (b"tfhd", b"tfdt trun"),
}
TABLES = b"stsd stts stsc stsz|stz2 stco|co64"  # must be in the stbl of pictures and sound
REPEATED = {b"trak", b"trex", b"moof", b"traf", b"trun"}
ALIKE = {b"stps", b"stsh"}  # other names that differ from one of those in a letter
# Of a track with these boxes another kind is damaged.
HEADS = {b"vmhd": (b"vide", b"pict", b"auxv"), b"smhd": (b"soun",)}
OTHERS = b"hint", b"text", b"sbtl", b"subt", b"subp", b"clcp", b"tmcd", b"meta", b"strm", b"MPEG", b"musi"


def _boxes(data: Data, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
  """(type, first byte of the content, end) of each box; the end may lie outside. Stops at what is no box."""
  while at + 8 <= end:
    size, kind, head = integer(data, at, 4), data[at + 4 : at + 8], 8
    if size == 1:
      size, head = integer(data, at + 8, 8), 16
    size = size or end - at
    if size < head or not is_name(kind.replace(b"\xa9", b" ")):
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
  _check_names(data, b"", boxes)
  end = boxes[-1][2] if boxes else 0
  rest = data[end:]
  if 0 < len(rest.rstrip(b"\0")) < 8 and rest[0] == 0 and (pieces or not described):
    raise CutShort("it ends within the head of a box")
  if not described and b"meta" not in kinds:
    raise CutShort("its box moov, which describes the tracks, is missing; recorders write it last")
  if kinds[-1] == b"moof":
    raise CutShort("its last fragment has no box mdat")
  begins = [_begin(data, boxes[k:]) for k, kind in enumerate(kinds) if kind == b"moov"]
  # Else the same description stands there twice, or times run on, as of segments.
  if len(begins) > 1 and kinds.count(b"ftyp") != 1 and min(begins[1:]) <= begins[0]:
    raise Joined(next(start - 8 for kind, start, _ in boxes[1:] if kind in (b"ftyp", b"moov")))
  if pieces and any(rest.find(kind) > 0 for kind in (b"moof", b"mfra", b"mfhd")):
    raise Damaged(f"at byte {end:,}: no box begins there")
  if pieces:  # else the tables of the tracks say where the file ends
    found.end, found.declared = end, False
  for kind, start, end in boxes:
    if kind == b"sidx":
      must_reach("its last segment", _end_of_segments(data, start, end), data)
    if kind == b"moof":
      _inside(data, kind, start, end)
    if kind == b"moov" and not found.tracks:
      tracks = [(s, e) for k, s, e in _inside(data, kind, start, end) if k == b"trak"]
      for number, (s, e) in enumerate(tracks, 1):
        if kind_of_track := TRACKS.get(_track(data, number, s, e)):
          found.tracks[kind_of_track] += 1


def _begin(data: Data, boxes: list[tuple[bytes, int, int]]) -> int:
  """When the first fragment of these begins, in units of its own."""
  start, end = next(((start, end) for kind, start, end in boxes if kind == b"moof"), (0, 0))
  at = data.find(b"tfdt", start, end)
  return integer(data, at + 8, 8 if data[at + 4] else 4) if at > 0 else 0


def _inside(data: Data, kind: bytes, start: int, end: int, must: bytes = b"", of: str = "") -> list[tuple[bytes, int, int]]:  # fmt: skip
  """The boxes within one, which must fill it, with all that must be there and no name that is a damaged one."""
  inside = list(_boxes(data, start, end))
  reached = inside[-1][2] if inside else start
  if reached > end or end - reached >= 8:
    raise Damaged(f"its box {name_of(kind)}{of} is wrong at byte {min(reached, end):,}")
  _check_names(data, kind, inside)
  names = {name for name, *_ in inside}
  for one in (must or HOLDS[kind][0]).split():
    if not set(one.split(b"|")) & names:
      raise Damaged(f"its box {name_of(kind)}{of} lacks {name_of(one)}")
  for name, s, e in inside:
    if name in (b"edts", b"mvex", b"traf"):
      _inside(data, name, s, e, of=of)
  return inside


def _check_names(data: Data, of: bytes, boxes: list[tuple[bytes, int, int]]) -> None:
  """Raises Damaged if a name is nearly one that is needed and missing, or its box holds what only such a one holds."""
  there, known = {kind for kind, *_ in boxes}, set(b" ".join(HOLDS[of]).replace(b"|", b" ").split())
  for kind, start, end in boxes:
    if kind in known | ALIKE | OF_FILE:
      continue
    near = {k for k in known - set(HOLDS) if differences(k, kind) == 1}
    inside = {k for k, _, e in _boxes(data, start, min(end, len(data))) if e <= end}
    near = near - (there - REPEATED) | {
      k for k in known & set(HOLDS) if inside & set(b" ".join(HOLDS[k]).split())
    }
    if near:
      raise Damaged(
        f"its box {name_of(kind)} at byte {start - 8:,} should have the name {name_of(min(near))}"
      )


def _track(data: Data, number: int, start: int, end: int) -> bytes:
  """Checks that a track's description is whole, and its samples lie within the file; returns its kind."""
  inside, of, handler = _inside(data, b"trak", start, end, of=f" {number}"), f" of track {number}", b""
  for name in (b"mdia", b"minf", b"stbl"):
    handler = next((data[s + 8 : s + 12] for k, s, _ in inside if k == b"hdlr" and name == b"minf"), handler)
    for head, kinds in HEADS.items():
      if head in {k for k, *_ in inside} and handler not in kinds + OTHERS:
        raise Damaged(f"its track {number} has the unknown kind {name_of(handler)}")
    place = next((s, e) for k, s, e in inside if k == name)
    inside = _inside(data, name, *place, TABLES if name == b"stbl" and handler in TRACKS else b"", of)
  if handler not in TRACKS:
    return handler
  tables = {k: (s, e) for k, s, e in inside}
  for _, s, e in _boxes(data, tables[b"stsd"][0] + 8, tables[b"stsd"][1]) if handler == b"vide" else ():
    _check_names(data, handler, list(_boxes(data, s + 78, e)))  # after the fields of a sample description
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
