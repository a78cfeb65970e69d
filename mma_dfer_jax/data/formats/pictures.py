"""Pictures and animations. JPEG has neither sizes nor counts: `frames.decode_frame` decodes it strictly."""

import struct
import zlib

from mma_dfer_jax.data.formats import CutShort, Damaged, Data, Ending, integer, must_reach, name_of

LARGEST = 1 << 30  # bytes of pixels; PIL refuses more


def png(data: Data, found: Ending) -> None:
  width, height, bits, colours, _, _, interlaced = struct.unpack(">IIBBBBB", data[16:29])
  channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(colours, 1)
  rows = height * (1 + (width * bits * channels + 7) // 8)  # bytes: each begins with the number of its filter
  at, frames, seen, pixels, inflated = 8, None, 0, zlib.decompressobj(), 0
  while at + 12 <= len(data):
    size, kind = integer(data, at, 4), data[at + 4 : at + 8]
    must_reach(f"its chunk {name_of(kind)}", at + 12 + size, data)
    if zlib.crc32(data[at + 4 : at + 8 + size]) != integer(data, at + 8 + size, 4):
      raise Damaged(f"the check sum of its chunk {name_of(kind)} is wrong")
    frames = integer(data, at + 8, 4) if kind == b"acTL" else frames
    seen += kind == b"fcTL"
    if kind == b"IDAT" and rows < LARGEST:
      # Not more than a picture of this size can have, interlaced or not: a small file may fill the memory.
      inflated += len(pixels.decompress(data[at + 8 : at + 8 + size], 2 * rows + 4096))
    if kind == b"IEND":
      found.pictures, found.end = frames, at + 12 if frames is not None else None
      if frames is not None and seen < frames:
        raise CutShort(f"it has {seen} pictures of the {frames} that it announces")
      if rows < LARGEST and (not pixels.eof or (inflated < rows and not interlaced)):
        raise CutShort("its pixels end before the picture does")
      return
    at += 12 + size
  raise CutShort("its chunk IEND, the last of every PNG, is missing")


def gif(data: Data, found: Ending) -> None:
  def after_blocks(at: int) -> int:
    while data[at]:
      at += 1 + data[at]
    return at + 1

  at = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
  while data[at] != 0x3B:
    if data[at] == 0x21:
      at = after_blocks(at + 2)
    elif data[at] == 0x2C:
      found.pictures = 1 + (found.pictures or 0)
      at = after_blocks(at + 11 + (3 << (data[at + 9] & 7) + 1 if data[at + 9] & 0x80 else 0))
    elif data[at]:
      raise Damaged(f"at byte {at:,}")
    else:
      at += 1


def bmp(data: Data, found: Ending) -> None:
  must_reach("its picture", integer(data, 2, 4, "<"), data)


def tiff(data: Data, found: Ending) -> None:
  """The directory, which many writers put at the end; pixels may be shorter than it says in files that are whole."""
  order, big = "<" if data[:2] == b"II" else ">", 43 in data[2:4]
  at = integer(data, 8, 8, order) if big else integer(data, 4, 4, order)
  must_reach("its directory", at + 8, data)
  number = integer(data, at, 8 if big else 2, order)
  if not number:
    raise Damaged("its directory is empty")
  must_reach("its directory", at + (8 + 20 * number if big else 2 + 12 * number), data)
