"""Whether a file is whole, by its own format: every container, sound and picture format, whole and cut at many places."""

from fractions import Fraction
import struct

import av
import numpy as np
import pytest

from mma_dfer_jax.data.ends import why_cut_short, why_cut_short_data

# Container, codec of the pictures and of the sound, options of the container.
VIDEOS = {
  "mp4": ("mp4", "mpeg4", "aac", {}),
  "faststart": ("mp4", "mpeg4", "aac", {"movflags": "faststart"}),
  "fragments": ("mp4", "mpeg4", "aac", {"movflags": "frag_keyframe+empty_moov"}),
  "dash": ("mp4", "mpeg4", "aac", {"movflags": "dash+frag_every_frame"}),
  "mov": ("mov", "mjpeg", "pcm_s16le", {}),
  "3gp": ("3gp", "mpeg4", "aac", {}),
  "mkv": ("matroska", "mpeg4", "aac", {}),
  "live mkv": ("matroska", "mpeg4", "aac", {"live": "1"}),
  "webm": ("webm", "libvpx", "libopus", {}),
  "avi": ("avi", "mpeg4", "libmp3lame", {}),
  "flv": ("flv", "flv1", "libmp3lame", {}),
  "asf": ("asf", "mpeg4", "libmp3lame", {}),
  "ts": ("mpegts", "mpeg4", "aac", {}),
  "m2ts": ("mpegts", "mpeg4", "aac", {"mpegts_m2ts_mode": "1"}),
  "y4m": ("yuv4mpegpipe", "rawvideo", None, {}),
  "gif": ("gif", "gif", None, {}),
  "apng": ("apng", "apng", None, {}),
  "webp": ("webp", "libwebp_anim", None, {}),
}
SOUNDS = {
  "m4a": ("ipod", None, "aac", {}),
  "opus": ("ogg", None, "libopus", {}),
  "oga": ("ogg", None, "flac", {}),
  "wav": ("wav", None, "pcm_s16le", {}),
  "w64": ("w64", None, "pcm_s16le", {}),
  "rf64": ("wav", None, "pcm_s16le", {"rf64": "always"}),
  "aiff": ("aiff", None, "pcm_s16be", {}),
  "au": ("au", None, "pcm_s16be", {}),
  "caf": ("caf", None, "pcm_s16le", {}),
  "mp3": ("mp3", None, "libmp3lame", {}),
  "mp3 without a count": ("mp3", None, "libmp3lame", {"write_xing": "0"}),
  "mp2": ("mp2", None, "mp2", {}),
  "aac": ("adts", None, "aac", {}),
  "amr": ("amr", None, "libopencore_amrnb", {}),
  "wv": ("wv", None, "wavpack", {}),
}
PIXELS = {"gif": "rgb8", "apng": "rgb24", "mjpeg": "yuvj420p"}


def write(path, container: str, pictures: str | None, sound: str | None, options: dict[str, str]) -> bytes:
  """A second of noise."""
  rng = np.random.default_rng(0)
  with av.open(str(path), "w", format=container, options=options) as file:
    if pictures:
      video = file.add_stream(pictures, rate=25)
      video.width, video.height, video.pix_fmt = 48, 32, PIXELS.get(pictures, "yuv420p")
    if sound:
      rate = 8000 if container == "amr" else 48000
      audio = file.add_stream(sound, rate=rate)
      audio.layout = "mono"
    if pictures:
      for number in range(25):
        noise = rng.integers(0, 255, (4, 6, 3)).astype(np.uint8).repeat(8, 0).repeat(8, 1)
        frame = av.VideoFrame.from_ndarray(noise, "rgb24").reformat(format=video.pix_fmt)
        frame.pts, frame.time_base = number, Fraction(1, 25)
        file.mux(video.encode(frame))
      file.mux(video.encode(None))
    if sound:
      context = audio.codec_context
      resampler = av.AudioResampler(context.format.name, "mono", rate, frame_size=context.frame_size or 1024)
      waveform = (rng.standard_normal(rate) * 3000).astype(np.int16)
      frame = av.AudioFrame.from_ndarray(waveform[None], "s16", "mono")
      frame.rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
      for piece in resampler.resample(frame) + resampler.resample(None):
        file.mux(audio.encode(piece))
      file.mux(audio.encode(None))
  return path.read_bytes()


@pytest.mark.parametrize("name", [*VIDEOS, *SOUNDS])
def test_files_that_end_early(tmp_path, name):
  path = tmp_path / "file"
  data = write(path, *(VIDEOS | SOUNDS)[name])
  assert why_cut_short(path) is None
  for share in (0.1, 0.25, 0.5, 0.75, 0.96):
    end = int(share * len(data)) // 188 * 188 + 10  # of MPEG-TS, which knows packets only, within one
    assert why_cut_short_data(data[:end]), share


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x7FFFF000])
@pytest.mark.parametrize("name", ["wav", "aiff", "au"])
def test_sizes_that_a_pipe_does_not_know_mean_to_the_end(tmp_path, name, size):
  data = bytearray(write(tmp_path / "file", *SOUNDS[name]))
  order = "<" if name == "wav" else ">"
  at = 8 if name == "au" else data.index(b"data" if name == "wav" else b"SSND") + 4
  struct.pack_into(f"{order}I", data, at, size)
  if name != "au":
    struct.pack_into(f"{order}I", data, 4, size)
  assert why_cut_short_data(bytes(data)) is None


@pytest.mark.parametrize("kind", [b"stco", b"stsz", b"stsc", b"stsd", b"minf", b"trak"])
def test_a_track_whose_description_is_damaged(tmp_path, kind):
  data = bytearray(write(tmp_path / "file", *VIDEOS["mp4"]))
  at = data.rindex(kind)  # of the last track, the sound
  data[at - 4 : at + 4] = struct.pack(">I", 1 << 20) + kind  # longer than what it lies in
  assert why_cut_short_data(bytes(data))
  data[at - 4 : at + 4] = struct.pack(">I", 8) + b"free"
  assert why_cut_short_data(bytes(data)) or kind == b"trak"


def test_what_follows_the_end_is_none_of_it(tmp_path):
  for name in ("mp3", "aac"):
    data = write(tmp_path / name, *SOUNDS[name])
    assert why_cut_short_data(data + b"TAG" + bytes(125)) is None
  png = write(tmp_path / "apng", *VIDEOS["apng"])
  assert why_cut_short_data(png + b"more") is None
  assert why_cut_short_data(png[:-30] + b"\0" + png[-29:])  # its check sum


def test_formats_without_an_end_are_left_to_the_decoder():
  assert why_cut_short_data(b"\xff\xd8\xff\xe0" + bytes(100)) is None
  assert why_cut_short_data(b"plain text, no picture") is None
