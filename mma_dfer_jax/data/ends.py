"""Whether a file ends where its own format says that it ends: FFmpeg and PIL take what is there and say nothing.

Looks at sizes of boxes, chunks, pages and frames, at counts and at marks of the end. It decodes nothing, and knows nothing
of formats without any of these: there `media` compares times. Sizes that a writer to a pipe could not know mean "to the end".
"""

from collections.abc import Callable
import mmap
import os
from pathlib import Path
import struct
import zlib

from mma_dfer_jax.data.formats import boxes, chunks, matroska, pictures, streams
from mma_dfer_jax.data.formats.base import CutShort, Damaged, Data, Ending


def ending(path: str | os.PathLike[str]) -> Ending:
  """What the format of a file says of its end; raises OSError if it cannot be read."""
  if not Path(path).stat().st_size:
    return Ending()
  with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
    return ending_of(data)


def ending_of(data: Data) -> Ending:
  """The same of a file's bytes."""
  found = Ending()
  check = next((check for is_such, check in FORMATS if is_such(data[:200])), None)
  try:
    if check:
      found.known = True
      check(data, found)
  except CutShort as error:
    found.fault = f"is {'damaged' if isinstance(error, Damaged) else 'cut short'}: {error}"
  except zlib.error as error:
    found.fault = f"is damaged: its pixels cannot be decompressed ({error})"
  except (struct.error, IndexError):  # a header is longer than the file
    found.fault = "is cut short: it ends within a header"
  return found


def _starts(*marks: bytes, at: int = 0) -> Callable[[bytes], bool]:
  return lambda head: head[at:].startswith(marks)


# (whether the first 200 bytes are of such a file, what looks at it).
FORMATS: tuple[tuple[Callable[[bytes], bool], Callable[[Data, Ending], None]], ...] = (
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
  (_starts(b"YUV4MPEG2"), streams.y4m),
  (_starts(b"\x89PNG\r\n\x1a\n"), pictures.png),
  (_starts(b"GIF87a", b"GIF89a"), pictures.gif),
  (_starts(b"II*\0", b"II+\0", b"MM\0*", b"MM\0+"), pictures.tiff),
  (_starts(b"fLaC"), streams.flac),
  (_starts(b"TTA1"), streams.true_audio),
  (_starts(bytes.fromhex("060e2b34")), streams.material_exchange),
  (_starts(b"DKIF"), streams.indexed_frames),
  (_starts(b"\0\0\1\xba"), streams.programme_stream),
  (_starts(b"BM"), pictures.bmp),
  (_starts(b"ID3"), streams.after_tags),
  (lambda head: head[:1] == b"\xff" and head[1] & 0xF6 == 0xF0, streams.adts),
  (lambda head: bool(streams.mpeg_frame(head, 0)), streams.mp3),
  (lambda head: head[:189:188] == b"GG" or head[4:197:192] == b"GG", streams.transport),
)
