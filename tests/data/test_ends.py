"""Whether a file is whole, by its own format: every container, sound and picture format, whole and cut at many places."""

import struct

from formats import SOUNDS, VIDEOS, write_noise
import pytest

from mma_dfer_jax.data.ends import ending, ending_of


@pytest.mark.parametrize("name", [*VIDEOS, *SOUNDS])
def test_files_that_end_early(tmp_path, name):
  path = tmp_path / "file"
  data = write_noise(path, *(VIDEOS | SOUNDS)[name])
  assert ending(path).fault is None
  for share in (0.1, 0.25, 0.5, 0.75, 0.96):
    end = int(share * len(data)) // 188 * 188 + 10  # of MPEG-TS, which knows packets only, within one
    assert ending_of(data[:end]).fault, share


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x7FFFF000])
@pytest.mark.parametrize("name", ["wav", "aiff", "au"])
def test_sizes_that_a_pipe_does_not_know_mean_to_the_end(tmp_path, name, size):
  data = bytearray(write_noise(tmp_path / "file", *SOUNDS[name]))
  order = "<" if name == "wav" else ">"
  at = 8 if name == "au" else data.index(b"data" if name == "wav" else b"SSND") + 4
  struct.pack_into(f"{order}I", data, at, size)
  if name != "au":
    struct.pack_into(f"{order}I", data, 4, size)
  assert ending_of(bytes(data)).fault is None


@pytest.mark.parametrize("kind", [b"stco", b"stsz", b"stsc", b"stsd", b"minf", b"trak"])
def test_a_track_whose_description_is_damaged(tmp_path, kind):
  data = bytearray(write_noise(tmp_path / "file", *VIDEOS["mp4"]))
  at = data.rindex(kind)  # of the last track, the sound
  data[at - 4 : at + 4] = struct.pack(">I", 1 << 20) + kind  # longer than what it lies in
  assert ending_of(bytes(data)).fault
  data[at - 4 : at + 4] = struct.pack(">I", 8) + b"free"
  assert ending_of(bytes(data)).fault or kind == b"trak"


def test_what_follows_the_end_is_none_of_it(tmp_path):
  for name in ("mp3", "aac"):
    data = write_noise(tmp_path / name, *SOUNDS[name])
    assert ending_of(data + b"TAG" + bytes(125)).fault is None
  png = write_noise(tmp_path / "apng", *VIDEOS["apng"])
  assert ending_of(png + b"more").fault is None
  assert ending_of(png[:-30] + b"\0" + png[-29:]).fault  # its check sum


def test_formats_without_an_end_are_left_to_the_decoder():
  assert ending_of(b"\xff\xd8\xff\xe0" + bytes(100)).fault is None
  assert ending_of(b"plain text, no picture").fault is None
