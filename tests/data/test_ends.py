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


# What is changed in a file's names: the last of them in the file is the sound's.
NAMES = {
  "mp4": b"moov mvhd trak tkhd mdia mdhd hdlr minf stbl stsd stts stsc stsz stco edts elst soun vide".split(),
  "dash": b"moof mfhd traf tfhd tfdt trun trex mvex".split(),
  "avi": b"avih strl strh strf auds hdrl movi 00dc 01wb".split(),
}


@pytest.mark.parametrize("name", NAMES)
def test_one_letter_of_a_name_is_wrong(tmp_path, name):
  data = write_noise(tmp_path / "file", *VIDEOS[name])
  for kind in NAMES[name]:
    at = data.rindex(kind, 0, data.rindex({"mp4": b"udta", "dash": b"mfra", "avi": b"idx1"}[name]))
    for wrong in (kind[:2] + b"q" + kind[3:], b"x" + kind[1:], kind[:3] + b"\1"):
      assert ending_of(data[:at] + wrong + data[at + 4 :]).fault, (kind, wrong)


def test_boxes_of_makers_are_none_that_is_damaged(tmp_path):
  data = write_noise(tmp_path / "file", *VIDEOS["mp4"])
  for kind in (b"uuid", b"free", b"frea", b"udta", b"gps ", b"mdta", b"trik", b"iods", b"prrt", b"moox"):
    box = struct.pack(">I", 48) + kind + bytes(range(40))
    assert ending_of(data + box).fault is None, kind
    for name in (b"stbl", b"minf", b"mdia", b"trak", b"moov"):  # beside all of its boxes
      changed, end = bytearray(data), 0
      for outer in (b"moov", b"trak", b"mdia", b"minf", b"stbl"):  # all that lie around it become longer
        at = changed.rindex(outer) - 4
        size = struct.unpack_from(">I", changed, at)[0]
        struct.pack_into(">I", changed, at, size + len(box))
        end = at + size
        if outer == name:
          break
      changed[end:end] = box
      assert ending_of(bytes(changed)).fault is None, (kind, name)


def test_tracks_whose_kind_is_damaged(tmp_path):
  for name, mark, place in (("asf", bytes.fromhex("409e69f84d5bcf11"), 1), ("webm", b"\x83\x81\x02", 2)):
    data = bytearray(write_noise(tmp_path / "file", *VIDEOS[name]))
    data[data.index(mark) + place] ^= 0x50
    assert ending_of(bytes(data)).fault, name


@pytest.mark.parametrize(
  "name",
  ["mp2", "mp3 without a count", "aac", "amr", "flv", "ts", "m2ts", "avi", "live mkv", "dash", "opus"],
)
def test_zeros_in_the_place_of_a_part(tmp_path, name):
  data = write_noise(tmp_path / "file", *(VIDEOS | SOUNDS)[name])
  for start, end in ((0.5, 1), (0.85, 1), (0.4, 0.6)):
    first, last = round(start * len(data)) + 5, round(end * len(data))
    assert ending_of(data[:first] + bytes(last - first) + data[last:]).fault, (start, end)


def test_units_that_say_how_long_they_are():
  unit = b"\x12\0" + b"\x0a\3abc" + b"\x32\x85\1" + b"\xff" * 133
  frame = b"\x1f\7\0\xbf" + b"\xff" * 143_996
  voice = (
    b"Creative Voice File\x1a\x1a\0" + bytes(4) + b"\1\x0a\0\0" + b"\x80" * 10 + b"\2\x0a\0\0" + b"\x80" * 10
  )
  for data, end in (
    (unit * 3, -60),
    (frame * 3, -20),
    (frame * 3, 200_000),
    (voice + b"\0", -5),
    (voice, -20),
  ):
    assert ending_of(data).fault is None
    assert ending_of(data[:end]).fault


def test_frames_that_are_missing_in_the_middle(tmp_path):
  for name in ("amr", "mp2", "aac"):
    data = write_noise(tmp_path / "file", *SOUNDS[name])
    for share in (0.2, 0.45, 0.7):
      first = round(share * len(data))
      assert ending_of(data[:first] + data[first + len(data) // 20 + 3 :]).fault, name


def test_a_part_is_missing_from_an_avi_that_went_through_a_pipe(tmp_path):
  data = bytearray(write_noise(tmp_path / "file", *VIDEOS["avi"]))
  for at in (4, data.index(b"movi") - 4):
    struct.pack_into("<I", data, at, 0xFFFFFFFF)
  del data[data.rindex(b"idx1") :]
  assert ending_of(bytes(data)).fault is None
  assert ending_of(bytes(data[:-9])).fault
  assert ending_of(bytes(data[:15_000] + bytes(4000) + data[19_000:])).fault


def test_tags_at_the_end_that_are_cut(tmp_path):
  for name, missing in (("wv", 1), ("wv", 20)):
    assert ending_of(write_noise(tmp_path / "file", *SOUNDS[name])[:-missing]).fault


def test_formats_without_an_end_are_left_to_the_decoder():
  assert ending_of(b"\xff\xd8\xff\xe0" + bytes(100)).fault is None
  assert ending_of(b"plain text, no picture").fault is None
