"""Files that are whole though they look odd, and files whose damage FFmpeg keeps to itself."""

import contextlib
import io
import struct
import zlib

from clip_files import iterate_frames
from formats import SOUNDS, VIDEOS, write_noise
import numpy as np
from PIL import Image, features
import pytest

from mma_dfer_jax.data.frames import decode_frame
from mma_dfer_jax.data.media import MediaError, declared_seconds, iterate_pictures, read_sound

OTHERS = {
  "mpg": ("mpeg", "mpeg1video", "mp2", {}),
  "flac": ("flac", None, "flac", {}),
  "tta": ("tta", None, "tta", {}),
  "ivf": ("ivf", "libvpx", None, {}),
  "mxf": ("mxf", "mpeg2video", "pcm_s16le", {}),
  "voc": ("voc", None, "pcm_u8", {}),
  "nut": ("nut", "mpeg4", "libmp3lame", {}),
  "ac3": ("ac3", None, "ac3", {}),
}
ALL = VIDEOS | SOUNDS | OTHERS


@pytest.fixture
def read(tmp_path):
  """Reads bytes as a file: number of pictures and of samples, 0 where there are none."""

  def read(name, data):
    path = tmp_path / "file"
    path.write_bytes(data)
    sound = read_sound(path) if ALL[name][2] else None
    return sum(1 for _ in iterate_frames(path)) if ALL[name][1] else 0, len(sound.waveform) if sound else 0

  return read


@pytest.fixture
def noise(tmp_path):
  return lambda name: write_noise(tmp_path / "noise", *ALL[name])


@pytest.mark.parametrize("name", OTHERS)
def test_other_formats_that_end_early(read, noise, name):
  data = noise(name)
  pictures, samples = read(name, data)
  assert (pictures == 25) == bool(ALL[name][1])
  assert (47_000 < samples < 50_000) == bool(ALL[name][2])
  for share in (0.1, 0.25, 0.5, 0.75, 0.96):
    with pytest.raises(MediaError, match=r"is cut short|is damaged"):
      read(name, data[: int(share * len(data)) - 5])


def test_an_animated_webp_is_a_film(tmp_path, read, noise):
  assert read("webp", noise("webp")) == (25, 0)
  for share in (0.3, 0.7, 0.98):
    with pytest.raises(MediaError, match="is cut short"):
      read("webp", noise("webp")[: int(share * len(noise("webp")))])
  with pytest.raises(MediaError, match="is damaged"):
    read("webp", noise("webp")[:900] + bytes(400) + noise("webp")[1300:])
  frames = [Image.new("RGBA", (48, 32), (50 * k, 0, 0, 255 if k else 0)) for k in range(4)]
  frames[0].save(
    tmp_path / "a.webp", save_all=True, append_images=frames[1:], duration=[100, 250, 50, 0], lossless=True
  )
  pictures = [
    (round(one.time, 3), one.duration, one.pixels()[0, 0, 0], one.changes)
    for one in iterate_pictures(tmp_path / "a.webp")
  ]
  black = ["transparent parts are shown on black"]
  assert pictures == [(0, 0.1, 0, black), (0.1, 0.25, 50, []), (0.35, 0.05, 100, []), (0.4, 0.1, 150, [])]


DRAWN = Image.fromarray(np.random.default_rng(0).integers(0, 255, (12, 16, 3), dtype=np.uint8)).resize(
  (128, 96)
)
STILLS = {"webp": {}, "webp of all bits": {"lossless": True}, "avif": {}, "jpeg": {}, "png": {}, "gif": {}, "jpeg2000": {}, "ppm": {},
          "bmp": {}, "tiff": {}, "tiff lzw": {"compression": "tiff_lzw"}, "tiff zip": {"compression": "tiff_deflate"}}  # fmt: skip
RAW = ("ppm", "bmp", "tiff")  # whose pixels lie there as they are


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", STILLS)
def test_pictures_that_are_damaged(name):
  if name == "avif" and not features.check("avif"):
    pytest.skip("of Pillow 11.3")
  DRAWN.save(file := io.BytesIO(), name.split()[0].upper(), **STILLS[name])
  data = file.getvalue()
  assert decode_frame(data).shape == (96, 128, 3)
  half = data[: len(data) // 2]
  broken = [data[:20], data[: len(data) // 3], half, data[: -len(data) // 10]]
  for one in broken + [half + bytes(len(data) - len(half))] * (name not in RAW):
    with pytest.raises(ValueError, match=r"it is (cut short|damaged): "):
      decode_frame(one)
  rng = np.random.default_rng(1)
  for _ in range(30):
    one = bytearray(data)
    for at in rng.integers(len(data), size=8):
      one[at] = rng.integers(256)
    with contextlib.suppress(ValueError):
      decode_frame(bytes(one))


@pytest.mark.parametrize("how", [{"quality": 80}, {"quality": 5, "method": 6}, {"lossless": True}])
@pytest.mark.parametrize("black", [slice(None), slice(500, None), slice(0, 500)])
def test_black_pictures_whose_code_ends_in_zeros_are_whole(how, black):
  pixels = np.random.default_rng(0).integers(0, 255, (1000, 1000, 3), dtype=np.uint8)
  pixels[black] = 0
  Image.fromarray(pixels).save(file := io.BytesIO(), "WEBP", **how)
  assert decode_frame(file.getvalue()).shape == pixels.shape


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x7FFFF000])
@pytest.mark.parametrize("name", ["wav", "aiff", "au", "rf64", "w64", "caf", "avi"])
def test_lengths_that_a_pipe_did_not_know(tmp_path, read, noise, name, size):
  data, expected = bytearray(noise(name)), read(name, noise(name))
  order = ">" if name in ("aiff", "au") else "<"
  if name == "rf64":
    struct.pack_into("<3Q", data, data.index(b"ds64") + 8, *[(1 << 64) - 1 if size else 0] * 3)
  elif name == "w64":
    struct.pack_into("<Q", data, data.index(b"data\xf3") + 16, (1 << 63) - 1 if size else 0)
  elif name == "caf":
    struct.pack_into(">q", data, data.index(b"data") + 4, -1)
  else:
    place = {
      "wav": data.find(b"data") + 4,
      "aiff": data.find(b"SSND") + 4,
      "au": 8,
      "avi": data.find(b"movi") - 4,
    }[name]
    struct.pack_into(f"{order}I", data, place, size)
    if name != "au":
      struct.pack_into(f"{order}I", data, 4, size)
  assert read(name, data) == expected
  if name in ("wav", "aiff", "caf"):
    assert declared_seconds(tmp_path / "file") == pytest.approx(1.0)


@pytest.mark.parametrize("name", ["ts", "m2ts", "mpg", "opus", "oga", "mp3", "mp2", "aac", "gif"])
def test_files_that_were_joined_end_to_end_are_read_to_the_end(read, noise, name):
  pictures, samples = read(name, data := noise(name))
  if name == "gif":
    samples = 0
  joined = read(name, data * 3)
  assert joined[0] == 3 * pictures
  assert abs(joined[1] - 3 * samples) < 6000  # MP3: what its encoder adds is cut of the first only


def test_sound_and_pictures_stay_together_at_a_joint(tmp_path):
  """Noise for a second and silence for a second, twice: the second noise is as late as its pictures."""
  path = tmp_path / "file"
  path.write_bytes(write_noise(tmp_path / "noise", *ALL["ts"]) * 2)
  loud = np.abs(read_sound(path).waveform.astype(int)).reshape(-1, 256)[:380].mean(axis=1) > 500
  assert loud.mean() > 0.95


TEXT = (b"\r\n", bytes(100), b"text that some server adds" * 9, b"Hi there")
BYTES = (b"\xde\xad\xbe\xef" * 20,)
ENDS = dict.fromkeys(("ts", "m2ts", "live mkv", "y4m", "ivf", "mpg", "voc", "nut", "ac3", "amr"), TEXT)
for name in (
  "mp4",
  "mkv",
  "avi",
  "wav",
  "aiff",
  "flv",
  "opus",
  "mp3",
  "aac",
  "flac",
  "wv",
  "caf",
  "gif",
  "au",
  "mxf",
):
  ENDS[name] = TEXT + BYTES


@pytest.mark.parametrize("name", ENDS)
def test_what_follows_the_end_does_not_matter(read, noise, name):
  expected = read(name, data := noise(name))
  for rest in ENDS[name]:
    assert read(name, data + rest) == expected, rest


@pytest.mark.parametrize("name", ["aiff", "wv", "wav", "opus", "m4a", "flac", "mp3", "amr"])
def test_tags_before_a_file_are_skipped(read, noise, name):
  tag = b"ID3\4\0\0\0\0\1\0" + b"TIT2\0\0\0\5\0\0\3name".ljust(128, b"\0")
  assert read(name, tag + noise(name)) == read(name, noise(name))


@pytest.mark.parametrize(
  "name",
  [
    "flac",
    "wv",
    "tta",
    "wav",
    "aiff",
    "au",
    "caf",
    "avi",
    "mkv",
    "live mkv",
    "mp4",
    "flv",
    "y4m",
    "ivf",
    "mxf",
  ],
)
def test_joined_files_of_which_only_the_first_would_be_read(read, noise, name):
  data = noise(name)
  with pytest.raises(
    MediaError, match=r"is several files.*second begins at byte [\d,]+, and FFmpeg.*; take them apart$"
  ):
    read(name, data + data)


def test_packets_that_are_lost_from_a_transport_stream(read, noise):
  data = noise("ts")
  for packet in range(10, len(data) // 188 - 15, 7):
    if data[188 * packet + 1] & 31 or data[188 * packet + 2] > 16:  # not a table
      with pytest.raises(MediaError, match="is damaged: packets are missing"):
        read("ts", data[: 188 * packet] + data[188 * packet + 188 :])


@pytest.mark.parametrize("name", ["opus", "mkv", "flv", "apng", "mp3 without a count", "aac"])
def test_holes_in_the_middle(read, noise, name):
  data = noise(name)
  for share in (0.3, 0.5, 0.7):
    at = int(share * len(data))
    with pytest.raises(MediaError, match=r"is cut short|is damaged"):
      read(name, data[:at] + data[at + len(data) // 20 :])
    if name in ("opus", "mkv"):  # with check sums
      with pytest.raises(MediaError, match="is damaged"):
        read(name, data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])


def test_counts_of_samples_are_compared(read, noise):
  data = bytearray(noise("flac"))
  struct.pack_into(">I", data, 22, 48_001)
  with pytest.raises(MediaError, match="is cut short: it announces 48,001 samples of sound and has 48,000"):
    read("flac", data)
  struct.pack_into(">I", data, 22, 0)  # not known
  assert read("flac", data) == (0, 48_000)
  data = noise("wv")  # its check sums are looked at: the second half of its only block is lost
  with pytest.raises(MediaError, match="is damaged"):
    read("wv", data[: len(data) // 2] + bytes(len(data) // 4) + data[len(data) // 2 + len(data) // 4 :])


def test_a_picture_of_a_video_in_jpeg_that_ends_early(read, noise):
  data = bytearray(noise("mov"))
  start = data.index(b"\xff\xd8", len(data) // 4)
  end = data.index(b"\xff\xd9", start)
  data[(start + end) // 2 : end] = bytes(end - (start + end) // 2)
  with pytest.raises(MediaError, match="is damaged"):
    read("mov", data)


def test_a_still_picture_is_a_clip_of_one_frame_and_checked_as_strictly(tmp_path):
  pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
  for kind in ("JPEG", "PNG", "BMP"):
    Image.fromarray(pixels).save(file := io.BytesIO(), kind)
    path, data = tmp_path / f"a.{kind.lower()}", file.getvalue()
    path.write_bytes(data)
    assert len(list(iterate_frames(path))) == 1
    for broken in (data[: len(data) // 2], data[: len(data) // 2] + b"\xff\xd9"):
      path.write_bytes(broken)
      with pytest.raises(MediaError, match=r"is cut short|is damaged"):
        list(iterate_frames(path))


def test_three_different_sentences(tmp_path, noise):
  path = tmp_path / "file"
  for data, sentence in (
    (noise("mp4")[:-100], "is cut short: its box .* ends at byte .*; copy or download it again"),
    (
      noise("apng")[:60] + b"x" + noise("apng")[61:],
      "is damaged: the check sum .*; copy or download it again",
    ),
    (
      b"plain text" * 100,
      "is not supported: it is no video .*; convert it, for instance with `ffmpeg -i FILE new.mp4`",
    ),
    (zlib.compress(noise("mp4")), "is not supported: it is no video"),
  ):
    path.write_bytes(data)
    with pytest.raises(MediaError, match=f"^{path}: {sentence}"):
      list(iterate_frames(path))
