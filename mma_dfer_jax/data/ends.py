"""Whether a file ends where its own format says that it ends: FFmpeg and PIL take what is there and say nothing.

Looks at sizes of boxes, chunks, pages and frames, at counts and at marks of the end. It decodes nothing, and knows nothing
of formats without any of these: there `media` compares times. Sizes that a writer to a pipe could not know mean "to the end".
"""

from collections.abc import Callable
import io
import mmap
import os
from pathlib import Path
import struct
import zlib

from mma_dfer_jax.data import formats
from mma_dfer_jax.data.formats import boxes, chunks, matroska, pictures, streams, units

AGAIN = "copy or download it again"
FEW_ZEROS, MANY_ZEROS = 4096, 1 << 20  # bytes: so many may follow any end; so many are looked at before it


def ending(path: str | os.PathLike[str]) -> formats.Ending:
  """What the format of a file says of its end; raises OSError if it cannot be read."""
  if not Path(path).stat().st_size:
    return formats.Ending()
  with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
    return ending_of(data)


def ending_of(data: formats.Data) -> formats.Ending:
  """The same of a file's bytes. ID3 tags before them are skipped where FFmpeg does not skip them itself."""
  start = streams.after_tags(data) if data[:3] == b"ID3" else 0
  found, head = formats.Ending(), data[start : start + 200]
  is_such, check = next(((is_such, check) for is_such, check in FORMATS if is_such(head)), (None, None))
  if start and check not in (streams.mp3, streams.adts):
    found = ending_of(data[start:])
    found.repairs = {at + start: right for at, right in found.repairs.items()}
    found.parts = [(a + start, b + start) for a, b in found.parts or [(0, len(data) - start)]]
    return found
  try:
    if check and is_such:
      found.known = True
      check(data, found)
      if found.end is not None:
        _check_rest(data, found, found.end, is_such)
  except formats.Joined as error:
    found.fault = f"is several files, joined end to end: {error}; take them apart"
  except formats.CutShort as error:
    found.fault = f"is {'damaged' if isinstance(error, formats.Damaged) else 'cut short'}: {error}; {AGAIN}"
  except zlib.error as error:
    found.fault = f"is damaged: its pixels cannot be decompressed ({error}); {AGAIN}"
  except (struct.error, IndexError):  # a header is longer than the file
    found.fault = f"is cut short: it ends within a header; {AGAIN}"
  return found


def _check_rest(
  data: formats.Data, found: formats.Ending, end: int, is_such: Callable[[bytes], bool]
) -> None:
  """What follows the end is left out. It must be no further file, no tag that is cut, and not the end itself as zeros."""
  if end >= len(data):
    return
  if not found.parts and not (len(data) - end == 128 and data[end : end + 3] == b"TAG"):  # which FFmpeg reads
    found.parts = [(0, end)]
  tags = streams.after_tags(data, end)
  formats.must_reach("its last tag", tags, data)
  for at in (end, tags):
    if is_such(data[at : at + 200]):
      raise formats.Joined(at)
  if found.declared or any(data[end:]):
    return
  # The end itself may be zeros: of a part that ends with them too, or more of them than would fill anything up.
  before = len(data[max(0, end - MANY_ZEROS) : end]) - len(data[max(0, end - MANY_ZEROS) : end].rstrip(b"\0"))
  zeros = len(data) - end + before
  if (before >= 4 and zeros > len(data) // 20) or zeros > max(FEW_ZEROS, len(data) // 3):
    raise formats.Damaged(f"its last {zeros:,} bytes are zeros")


def _starts(*marks: bytes, at: int = 0) -> Callable[[bytes], bool]:
  return lambda head: head[at:].startswith(marks)


# (whether the first 200 bytes are of such a file, what looks at it).
FORMATS: tuple[tuple[Callable[[bytes], bool], Callable[[formats.Data, formats.Ending], None]], ...] = (
  (_starts(b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot", b"styp", at=4), boxes.iso),
  (_starts(b"\x1a\x45\xdf\xa3"), matroska.matroska),
  (_starts(b"RIFF", b"RIFX", b"RF64", b"BW64"), chunks.riff),
  (lambda head: head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"), chunks.riff),
  (_starts(b"riff\x2e\x91\xcf\x11"), chunks.wave64),
  (_starts(b"caff"), chunks.caf),
  (_starts(b".snd"), chunks.au),
  (_starts(b"OggS"), streams.ogg),
  (_starts(b"#!AMR"), streams.amr),
  (_starts(b"FLV\x01"), streams.flash),
  (_starts(bytes.fromhex("3026b2758e66cf11")), streams.asf),
  (_starts(b"wvpk"), streams.wavpack),
  (_starts(b"YUV4MPEG2"), units.y4m),
  (_starts(b"\x89PNG\r\n\x1a\n"), pictures.png),
  (_starts(b"GIF87a", b"GIF89a"), pictures.gif),
  (_starts(b"II*\0", b"II+\0", b"MM\0*", b"MM\0+"), pictures.tiff),
  (_starts(b"fLaC"), streams.flac),
  (_starts(b"TTA1"), streams.true_audio),
  (_starts(bytes.fromhex("060e2b34")), units.material_exchange),
  (_starts(b"DKIF"), units.indexed_frames),
  (_starts(b"\0\0\1\xba"), streams.programme_stream),
  (_starts(b"\x12\0\x0a"), units.open_units),
  (_starts(b"\x1f\x07\0"), units.digital_video),
  (_starts(b"Creative Voice File\x1a"), units.creative_voice),
  (_starts(b"nut/multimedia container\0"), units.nut),
  (_starts(b"BM"), pictures.bmp),
  (lambda head: bool(streams.ac3_frame(head, 0)), streams.ac3),
  (lambda head: head[:1] == b"\xff" and head[1] & 0xF6 == 0xF0, streams.adts),
  (lambda head: bool(streams.mpeg_frame(head, 0)), streams.mp3),
  (lambda head: head[:189:188] == b"GG" or head[4:197:192] == b"GG", streams.transport),
)


class PartOfFile(io.FileIO):
  """A part of a file, with other bytes at some places of the file."""

  def __init__(self, name: str, repairs: dict[int, bytes], start: int, end: int):
    super().__init__(name)
    self._repairs, self._start, self._end = repairs, start, end
    self.seek(0)

  def tell(self) -> int:
    return super().tell() - self._start

  def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
    base = {os.SEEK_SET: self._start, os.SEEK_CUR: super().tell(), os.SEEK_END: self._end}[whence]
    return super().seek(base + offset) - self._start

  def read(self, size: int | None = -1) -> bytes:
    start = super().tell()
    left = max(0, self._end - start)
    data = bytearray(super().read(left if size is None or size < 0 else min(size, left)))
    for place, right in self._repairs.items():
      for at, byte in enumerate(right, place - start):
        if 0 <= at < len(data):
          data[at] = byte
    return bytes(data)
