"""Reading video files: order, orientation, first channel, common start; and files that must be refused."""

from fractions import Fraction
import os
from pathlib import Path
import struct

import av
import numpy as np
import pytest

from mma_dfer_jax.data.media import MediaError, iterate_frames, read_sound

RATE = 44100
LAYOUTS = {1: "mono", 2: "stereo"}


def write_video(
  path, *, frames=30, codec="libx264", pixels="yuv420p", times=None, size=(64, 48), sound=None, **options
):
  """Writes grey frames, 8 brighter each, at 25 per second or at times in ms, and a sound as for write_sound."""
  with av.open(str(path), "w", options=options) as container:
    stream = container.add_stream(codec, rate=25)
    (stream.width, stream.height), stream.pix_fmt = size, pixels
    if times:
      stream.codec_context.time_base = Fraction(1, 1000)
    sound_stream = add_sound(container, sound) if sound else None
    rng = np.random.default_rng(0)  # noise, so that the file has a size worth cutting
    for i in range(frames):
      grey = rng.integers(0, 12, (size[1], size[0], 3)) + 8 * (i % 30)
      frame = av.VideoFrame.from_ndarray(grey.astype(np.uint8), format="rgb24").reformat(format=pixels)
      frame.pts, frame.time_base = (times[i], Fraction(1, 1000)) if times else (i, Fraction(1, 25))
      container.mux(stream.encode(frame))
    container.mux(stream.encode())
    if sound_stream:
      write_sound(container, sound_stream, sound)
  return path


def add_sound(container, sound):
  return container.add_stream(sound["codec"], rate=RATE, layout=LAYOUTS[sound.get("channels", 2)])


def write_sound(container, stream, sound):
  """A tone of 440 Hz, amplitude 0.5, in the first channel and noise in the second; `first` is its first time stamp."""
  kind, first = stream.codec_context.format, sound.get("first", 0)
  time = np.arange(round(sound["seconds"] * RATE)) / RATE
  channels = [0.5 * np.sin(2 * np.pi * 440 * time), np.random.default_rng(1).uniform(-0.5, 0.5, len(time))]
  samples = np.stack(channels[: sound.get("channels", 2)])
  samples = (samples * 32767).astype(np.int16) if kind.name.startswith("s16") else samples.astype(np.float32)
  for start in range(0, len(time), 1024):
    part = samples[:, start : start + 1024]
    part = part if kind.is_planar else part.T.reshape(1, -1)
    frame = av.AudioFrame.from_ndarray(
      np.ascontiguousarray(part), format=kind.name, layout=stream.layout.name
    )
    frame.sample_rate, frame.pts, frame.time_base = RATE, start + first, Fraction(1, RATE)
    container.mux(stream.encode(frame))
  container.mux(stream.encode())


def tone(samples):
  return 0.5 * 32768 * np.sin(2 * np.pi * 440 * np.arange(samples) / RATE)


def cut(path, share):
  data = path.read_bytes()
  target = path.with_name(f"cut{share}_{path.name}")
  target.write_bytes(data[: int(len(data) * share)])
  return target


KINDS = {
  "a.mp4": {"sound": {"codec": "aac", "seconds": 1.2}},
  "faststart.mp4": {"sound": {"codec": "aac", "seconds": 1.2}, "movflags": "faststart"},
  "fragments.mp4": {"sound": {"codec": "aac", "seconds": 1.2}, "movflags": "frag_keyframe+empty_moov"},
  "a.mov": {"sound": {"codec": "pcm_s16le", "seconds": 1.2}},
  "a.mkv": {"sound": {"codec": "aac", "seconds": 1.2}},
  "long_sound.mkv": {"sound": {"codec": "aac", "seconds": 4.0}},
  "short_sound.mp4": {"sound": {"codec": "aac", "seconds": 0.4}},
  "a.webm": {"codec": "libvpx"},
  "a.avi": {"codec": "mpeg4", "sound": {"codec": "pcm_s16le", "seconds": 1.2}},
  "a.flv": {"sound": {"codec": "aac", "seconds": 1.2}},
  "a.ts": {"sound": {"codec": "aac", "seconds": 1.2}},
  "a.gif": {"codec": "gif", "pixels": "gray"},
  "one.mp4": {"frames": 1},
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_file_is_read_completely_and_in_order(tmp_path, name):
  path = write_video(tmp_path / name, **KINDS[name])
  frames = list(iterate_frames(path))
  assert len(frames) == KINDS[name].get("frames", 30)
  assert all(frame.shape == (48, 64, 3) and frame.dtype == np.uint8 for frame in frames)
  np.testing.assert_allclose([frame.mean() for frame in frames], 5.5 + 8 * np.arange(len(frames)), atol=7)
  sound = KINDS[name].get("sound")
  assert (read_sound(path) is None) == (sound is None)
  if sound:
    waveform, rate, channels = read_sound(path)
    assert (rate, channels, waveform.dtype) == (RATE, 2, np.int16)
    assert (
      abs(len(waveform) / RATE - sound["seconds"]) < 0.085
    )  # flash, fragments and streams keep the encoder's padding


def test_titles_need_not_be_utf8(tmp_path):
  path = tmp_path / "a.mkv"
  with av.open(str(path), "w") as container:
    stream = container.add_stream("libx264", rate=25)
    (stream.width, stream.height), stream.pix_fmt = (64, 48), "yuv420p"
    container.metadata["title"] = stream.metadata["title"] = "Z?rich"
    container.mux(stream.encode(av.VideoFrame(64, 48, "yuv420p")))
    container.mux(stream.encode())
  data = path.read_bytes()
  assert data.count(b"Z?rich") == 2  # the file's and the stream's
  path.write_bytes(data.replace(b"Z?rich", b"Z\xfcrich"))
  assert len(list(iterate_frames(path))) == 1


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.mov", "a.webm"])
def test_variable_frame_rate_is_no_damage(tmp_path, name):
  steps = np.random.default_rng(0).integers(10, 200, 30)
  steps[[12, -1]] = 3000  # a still in the middle and one at the end
  times = [0, *np.cumsum(steps[1:]).tolist()]
  path = write_video(tmp_path / name, times=times, codec="libvpx" if name == "a.webm" else "libx264")
  assert len(list(iterate_frames(path))) == 30


def test_still_at_the_end_is_no_damage(tmp_path):
  path = write_video(tmp_path / "a.mp4", frames=5, codec="mpeg4", times=[0, 40, 80, 120, 200])
  data = bytearray(path.read_bytes())

  def lengthen(box, offset, by):
    at = data.index(box) + offset
    data[at : at + 4] = struct.pack(">I", struct.unpack(">I", data[at : at + 4])[0] + by)

  at = data.index(b"mdhd") + 16
  (units_per_second,) = struct.unpack(">I", data[at : at + 4])
  (entries,) = struct.unpack(">I", data[data.index(b"stts") + 8 :][:4])
  lengthen(b"stts", 8 + 8 * entries, 4 * units_per_second)  # the last picture stays for 4 s
  lengthen(b"mdhd", 20, 4 * units_per_second)
  for box, offset in ((b"tkhd", 24), (b"elst", 12), (b"mvhd", 20)):
    lengthen(box, offset, 4000)
  path.write_bytes(data)
  with av.open(str(path)) as container:
    assert float(container.streams.video[0].duration * container.streams.video[0].time_base) > 4
  assert len(list(iterate_frames(path))) == 5


@pytest.mark.parametrize(("excess", "fits"), [(1.04, True), (1.07, False)])
def test_declared_length_may_be_missed_by_five_percent(tmp_path, excess, fits):
  path = write_video(tmp_path / "a.mkv", frames=200)
  data = path.read_bytes()
  at = data.index(b"\x44\x89\x88") + 3  # Matroska's element Duration, of 8 bytes
  (milliseconds,) = struct.unpack(">d", data[at : at + 8])
  assert milliseconds == 8000
  path.write_bytes(data[:at] + struct.pack(">d", milliseconds * excess) + data[at + 8 :])
  if fits:
    assert len(list(iterate_frames(path))) == 200
  else:
    with pytest.raises(MediaError, match=r"its video ends at 8\.00 s of 8\.56 s"):
      list(iterate_frames(path))


def test_colours_are_rgb(tmp_path):
  path = tmp_path / "red.mkv"
  with av.open(str(path), "w") as container:
    stream = container.add_stream("ffv1", rate=25)
    stream.width, stream.height, stream.pix_fmt = 32, 16, "bgr0"
    red = np.zeros((16, 32, 3), np.uint8)
    red[..., 0] = 200
    container.mux(stream.encode(av.VideoFrame.from_ndarray(red, format="rgb24").reformat(format="bgr0")))
    container.mux(stream.encode())
  np.testing.assert_array_equal(next(iterate_frames(path)), red)


@pytest.mark.parametrize(
  ("matrix", "turn"),
  [
    ((0, 1, -1, 0), lambda pixels: np.rot90(pixels, -1)),  # upright telephone: a quarter turn clockwise
    ((0, -1, 1, 0), lambda pixels: np.rot90(pixels, 1)),
    ((-1, 0, 0, -1), lambda pixels: np.rot90(pixels, 2)),
    ((-1, 0, 0, 1), lambda pixels: pixels[:, ::-1]),
    ((1, 0, 0, -1), lambda pixels: pixels[::-1]),
    ((0, 1, 1, 0), lambda pixels: pixels.transpose(1, 0, 2)),
  ],
)
def test_display_matrix_is_applied(tmp_path, matrix, turn):
  path = tmp_path / "corner.mp4"
  with av.open(str(path), "w") as container:
    stream = container.add_stream("libx264", rate=25)
    stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
    corner = np.zeros((48, 64, 3), np.uint8)
    corner[:16, :32] = 255
    container.mux(stream.encode(av.VideoFrame.from_ndarray(corner, format="rgb24")))
    container.mux(stream.encode())
  data = path.read_bytes()
  identity = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
  a, b, c, d = (value << 16 for value in matrix)
  at = data.index(identity, data.index(b"tkhd"))  # the track's, not the movie's
  path.write_bytes(data[:at] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + data[at + 36 :])
  (shown,) = iterate_frames(path)
  assert shown.shape == turn(corner).shape
  assert np.abs(shown.astype(int) - turn(corner)).mean() < 4


@pytest.mark.parametrize("codec", ["pcm_s16le", "pcm_f32le", "flac"])
def test_first_channel_is_taken_and_not_mixed(tmp_path, codec):
  waveform, rate, channels = read_sound(
    write_video(tmp_path / "a.mkv", sound={"codec": codec, "seconds": 1.0})
  )
  assert (rate, channels) == (RATE, 2)
  np.testing.assert_allclose(waveform, tone(len(waveform)), atol=2)


@pytest.mark.parametrize(
  ("codec", "kind", "samples", "expected"),
  [
    ("pcm_f32le", "flt", [1.5, -1.5, 1.6 / 32768, -1.6 / 32768, 0.4 / 32768], [32767, -32768, 2, -2, 0]),
    ("pcm_s32le", "s32", [1 << 30, -(1 << 31), 65535, -1], [16384, -32768, 0, -1]),
    ("pcm_u8", "u8", [0, 128, 255], [-32768, 0, 32512]),
  ],
)
def test_every_type_of_sample_becomes_16_bit(tmp_path, codec, kind, samples, expected):
  path = tmp_path / "a.mkv"
  with av.open(str(path), "w") as container:
    stream = container.add_stream(codec, rate=RATE, layout="mono")
    dtype = {"flt": np.float32, "s32": np.int32, "u8": np.uint8}[kind]
    frame = av.AudioFrame.from_ndarray(np.array([samples], dtype), format=kind, layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = RATE, 0, Fraction(1, RATE)
    container.mux(stream.encode(frame))
  assert read_sound(path).waveform.tolist() == expected


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_sound_that_holds_no_numbers_is_refused(tmp_path, value):
  path = tmp_path / "a.wav"
  samples = np.zeros(1000, np.float32)
  samples[500] = value
  size = struct.pack(
    "<4sI8sIHHIIHH4sI", b"RIFF", 36 + 4000, b"WAVEfmt ", 16, 3, 1, RATE, 4 * RATE, 4, 32, b"data", 4000
  )
  path.write_bytes(size + samples.tobytes())
  with pytest.raises(MediaError, match="undefined"):
    read_sound(path)


def test_padding_of_the_encoder_is_cut(tmp_path):
  path = write_video(tmp_path / "a.mp4", sound={"codec": "aac", "seconds": 1.2})
  waveform = read_sound(path).waveform
  assert len(waveform) == round(1.2 * RATE)  # 1.2 s fill 51.7 packets of 1024 samples
  assert np.abs(waveform[2000:-2000] - tone(len(waveform))[2000:-2000]).mean() < 300


@pytest.mark.parametrize(("first", "zeros"), [(RATE // 2, RATE // 2), (441, 0), (-RATE // 4, -RATE // 4)])
def test_sound_starts_with_the_pictures(tmp_path, first, zeros):
  """`first`: samples by which the sound is later than the pictures; those below 20 ms (882) are left alone."""
  times = [max(0, -first) * 1000 // RATE + 40 * i for i in range(30)]
  sound = {"codec": "pcm_s16le", "seconds": 1.2, "first": max(0, first)}
  waveform = read_sound(write_video(tmp_path / "a.mkv", times=times, sound=sound)).waveform
  expected = tone(round(1.2 * RATE))
  expected = np.concatenate([np.zeros(zeros), expected]) if zeros > 0 else expected[-zeros:]
  assert abs(len(waveform) - len(expected)) < 50  # Matroska's clock ticks in milliseconds
  error = [np.abs(waveform[1000 + lag : 15000 + lag] - expected[1000:15000]).mean() for lag in range(-50, 51)]
  assert min(error) < 300


@pytest.mark.parametrize(
  "name", ["a:b.mp4", "-x.mp4", "concat:a.mp4|b.mp4", "http:x.mp4", "Gesicht ü %d 100%.mp4", "pipe:0"]
)
def test_odd_names_are_only_names(tmp_path, name, monkeypatch):
  write_video(tmp_path / "a.mp4").rename(tmp_path / name)
  monkeypatch.chdir(tmp_path)
  assert len(list(iterate_frames(name))) == 30


@pytest.mark.parametrize(
  ("name", "share", "options"),
  [
    ("a.mp4", 0.5, {"movflags": "faststart"}),
    ("a.mp4", 0.9, {"movflags": "faststart"}),
    ("a.mp4", 0.5, {}),
    ("a.mkv", 0.5, {}),
    ("a.mkv", 0.9, {}),
    ("a.flv", 0.5, {}),
    ("a.avi", 0.5, {"codec": "mpeg4"}),
    ("a.avi", 0.9, {"codec": "mpeg4"}),
    ("a.mp4", 0.3, {"movflags": "frag_keyframe+empty_moov"}),
  ],
)
def test_files_that_were_cut_short_are_refused(tmp_path, capfd, name, share, options):
  sound = {"codec": "pcm_s16le" if name == "a.avi" else "aac", "seconds": 2.0}
  path = cut(write_video(tmp_path / name, frames=50, size=(128, 96), sound=sound, **options), share)
  capfd.readouterr()
  with pytest.raises(MediaError, match=r"damaged or cut short|not a video") as caught:
    list(iterate_frames(path))
  assert str(path) in str(caught.value)
  if (name, share) != ("a.avi", 0.9):  # an AVI declares only its pictures reliably
    with pytest.raises(MediaError, match=r"damaged or cut short|not a video"):
      read_sound(path)
  assert capfd.readouterr() == ("", "")  # FFmpeg does not talk


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_damaged_files_are_refused(tmp_path, name):
  path = write_video(tmp_path / name, frames=50, size=(128, 96), movflags="faststart")
  data = bytearray(path.read_bytes())
  data[len(data) // 2 : -len(data) // 4] = bytes(len(data[len(data) // 2 : -len(data) // 4]))
  path.write_bytes(data)
  with pytest.raises(MediaError, match="damaged"):
    list(iterate_frames(path))


def test_what_is_no_video_is_refused_in_plain_words(tmp_path):
  (tmp_path / "text.mp4").write_text("hello world\n" * 50)
  (tmp_path / "empty.mp4").touch()
  (tmp_path / "list.m3u8").write_text(
    "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://localhost:9/a.ts\n"
  )
  os.mkfifo(tmp_path / "pipe.mp4")
  for path, reason in {
    tmp_path / "missing.mp4": "No such file",
    tmp_path / "text.mp4" / "a.mp4": "Not a directory",
    tmp_path: "is a folder",
    tmp_path / "empty.mp4": "is empty",
    tmp_path / "text.mp4": "is not a video",
    tmp_path / "list.m3u8": "is not a video",
    tmp_path / "pipe.mp4": "is a device or a pipe",
    "/dev/zero": "is a device or a pipe",
    "https://example.com/a.mp4": "is an address",
    Path("rtmp://example.com/a"): "is an address",
    "a\0b.mp4": "null",
  }.items():
    for read in (lambda path: next(iterate_frames(path)), read_sound):
      with pytest.raises(MediaError, match=reason) as caught:
        read(path)
      assert str(caught.value).startswith(f"{path}: ")


def test_cover_pictures_are_no_video(tmp_path):
  sound = {"codec": "aac", "seconds": 1.0}
  for name, with_cover in (("sound.m4a", False), ("cover.mp4", True)):
    path = tmp_path / name
    with av.open(str(path), "w") as container:
      stream = add_sound(container, sound)
      if with_cover:
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 32, 32, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic.value
        container.mux(cover.encode(av.VideoFrame(32, 32, "yuvj420p")))
      write_sound(container, stream, sound)
    with av.open(str(path)) as container:
      assert len(container.streams.video) == with_cover
    with pytest.raises(MediaError, match="no video stream"):
      list(iterate_frames(path))
    assert len(read_sound(path).waveform) == RATE


def test_changing_sample_rate_is_refused(tmp_path):
  path = tmp_path / "a.ts"
  parts = []
  for rate in (44100, 48000):  # two AAC streams glued together
    part = tmp_path / f"{rate}.aac"
    with av.open(str(part), "w", format="adts") as container:
      stream = container.add_stream("aac", rate=rate, layout="mono")
      for i in range(20):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, 1024 * i, Fraction(1, rate)
        container.mux(stream.encode(frame))
      container.mux(stream.encode())
    parts.append(part.read_bytes())
  path.write_bytes(b"".join(parts))
  with pytest.raises(MediaError, match="changes from 44100 to 48000 Hz"):
    read_sound(path)
