"""Reading video files: order, orientation, first channel, common start; and files that must be refused."""

from fractions import Fraction
import os
from pathlib import Path
import struct

import av
from clip_files import iterate_frames
from films import LOSSY, hum, turn, write_film
import numpy as np
import pytest

from mma_dfer_jax.data.media import MediaError, iterate_sound, read_sound

RATE = 44_100
MP4 = LOSSY | {"sample_rate": RATE, "layout": "stereo"}
PCM = MP4 | {"sound_codec": "pcm_s16le"}


def greys(count, height=48, width=64):
  """Pictures, each 8 brighter than the one before; with noise, so that the file has a size worth cutting."""
  rng = np.random.default_rng(0)
  return [(rng.integers(0, 12, (height, width, 3)) + 8 * (i % 30)).astype(np.uint8) for i in range(count)]


def tone(seconds):
  """440 Hz, half of full scale."""
  return (0.5 * 32767 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * RATE)) / RATE)).astype(np.int16)


KINDS = {
  "a.mp4": MP4,
  "faststart.mp4": MP4 | {"container_options": {"movflags": "faststart"}},
  "fragments.mp4": MP4 | {"container_options": {"movflags": "frag_keyframe+empty_moov"}},
  "a.mov": PCM,
  "a.mkv": MP4,
  "long_sound.mkv": MP4,
  "short_sound.mp4": MP4,
  "a.webm": {"codec": "libvpx", "pixels": "yuv420p"},
  "a.avi": PCM | {"codec": "mpeg4"},
  "a.flv": MP4,
  "a.ts": MP4,
  "a.gif": {"codec": "gif", "pixels": "gray"},
  "one.mp4": {"codec": "libx264", "pixels": "yuv420p"},
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_file_is_read_completely_and_in_order(tmp_path, name):
  seconds = {"long_sound.mkv": 4.0, "short_sound.mp4": 0.4}.get(name, 1.2) if "layout" in KINDS[name] else 0
  count = 1 if name == "one.mp4" else 30
  path = write_film(tmp_path / name, greys(count), tone(seconds) if seconds else None, **KINDS[name])
  frames = list(iterate_frames(path))
  assert len(frames) == count
  assert all(frame.shape == (48, 64, 3) and frame.dtype == np.uint8 for frame in frames)
  np.testing.assert_allclose([frame.mean() for frame in frames], 5.5 + 8 * np.arange(count), atol=7)
  found = read_sound(path)
  assert (found is None) == (not seconds)
  if found:
    assert (found.sample_rate, found.waveform.dtype) == (RATE, np.int16)
    # flash, fragments and streams keep the encoder's padding
    assert abs(len(found.waveform) / RATE - seconds) < 0.085


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
  times = (np.array([0, *np.cumsum(steps[1:])]) / 1000).tolist()
  codec = "libvpx" if name == "a.webm" else "libx264"
  write_film(tmp_path / name, greys(30), times=times, codec=codec, pixels="yuv420p")
  assert len(list(iterate_frames(tmp_path / name))) == 30


def test_still_at_the_end_is_no_damage(tmp_path):
  times = [0, 0.04, 0.08, 0.12, 0.2]
  path = write_film(tmp_path / "a.mp4", greys(5), times=times, **LOSSY | {"options": {"bf": "0"}})
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


def test_declared_length_may_be_missed_by_five_percent(tmp_path):
  path = write_film(tmp_path / "a.mkv", greys(100), codec="mpeg4", pixels="yuv420p")
  data = path.read_bytes()
  at = data.index(b"\x44\x89\x88") + 3  # Matroska's element Duration, of 8 bytes
  assert struct.unpack(">d", data[at : at + 8]) == (4000.0,)  # milliseconds
  path.write_bytes(data[:at] + struct.pack(">d", 1.04 * 4000) + data[at + 8 :])
  assert len(list(iterate_frames(path))) == 100
  path.write_bytes(data[:at] + struct.pack(">d", 1.07 * 4000) + data[at + 8 :])
  with pytest.raises(MediaError, match=r"its video ends at 4\.00 s of 4\.28 s"):
    list(iterate_frames(path))


def test_colours_are_rgb(tmp_path):
  red = np.zeros((16, 32, 3), np.uint8)
  red[..., 0] = 200
  np.testing.assert_array_equal(next(iterate_frames(write_film(tmp_path / "red.mkv", [red]))), red)


@pytest.mark.parametrize(
  ("matrix", "turned"),
  [
    ((0, 1, -1, 0), lambda pixels: np.rot90(pixels, -1)),  # upright telephone: a quarter turn clockwise
    ((0, -1, 1, 0), lambda pixels: np.rot90(pixels, 1)),
    ((-1, 0, 0, -1), lambda pixels: np.rot90(pixels, 2)),
    ((-1, 0, 0, 1), lambda pixels: pixels[:, ::-1]),
    ((1, 0, 0, -1), lambda pixels: pixels[::-1]),
    ((0, 1, 1, 0), lambda pixels: pixels.transpose(1, 0, 2)),
  ],
)
def test_display_matrix_is_applied(tmp_path, matrix, turned):
  corner = np.zeros((48, 64, 3), np.uint8)
  corner[:16, :32] = 255
  (shown,) = iterate_frames(turn(write_film(tmp_path / "corner.mp4", [corner], **LOSSY), matrix))
  assert shown.shape == turned(corner).shape
  assert np.abs(shown.astype(int) - turned(corner)).mean() < 4


@pytest.mark.parametrize("codec", ["pcm_s16le", "pcm_f32le", "flac"])
def test_first_channel_is_taken_and_not_mixed(tmp_path, codec):
  path = write_film(tmp_path / "a.mkv", greys(25), tone(1.0), **MP4 | {"sound_codec": codec})
  waveform, rate = read_sound(path)
  assert rate == RATE
  np.testing.assert_allclose(waveform, tone(1.0), atol=2)


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
  assert [sample for piece in iterate_sound(path) for sample in piece.waveform] == expected


def test_sound_that_holds_no_numbers_is_refused(tmp_path):
  path = tmp_path / "a.wav"
  head = struct.pack(
    "<4sI8sIHHIIHH4sI", b"RIFF", 4036, b"WAVEfmt ", 16, 3, 1, RATE, 4 * RATE, 4, 32, b"data", 4000
  )
  for value in (np.nan, np.inf):
    samples = np.zeros(1000, np.float32)
    samples[500] = value
    path.write_bytes(head + samples.tobytes())
    with pytest.raises(MediaError, match="undefined"):
      read_sound(path)


def test_padding_of_the_encoder_is_cut(tmp_path):
  waveform = read_sound(write_film(tmp_path / "a.mp4", greys(30), tone(1.2), **MP4)).waveform
  assert len(waveform) == round(1.2 * RATE)  # 1.2 s fill 51.7 packets of 1024 samples
  assert np.abs(waveform[2000:-2000] - 1.0 * tone(1.2)[2000:-2000]).mean() < 300


@pytest.mark.parametrize(("first", "zeros"), [(RATE // 2, RATE // 2), (441, 0), (-RATE // 4, -RATE // 4)])
def test_sound_starts_with_the_pictures(tmp_path, first, zeros):
  """`first`: samples by which the sound is later than the pictures; those below 20 ms (882) are left alone."""
  times = [max(0, -first) / RATE + 0.04 * i for i in range(30)]
  late = lambda seconds: seconds + max(0, first) / RATE  # noqa: E731
  path = write_film(tmp_path / "a.mkv", greys(30), tone(1.2), **PCM, times=times, clock=late)
  waveform, expected = read_sound(path).waveform.astype(float), tone(1.2)
  expected = np.concatenate([np.zeros(zeros), expected]) if zeros > 0 else expected[-zeros:]
  assert abs(len(waveform) - len(expected)) < 50  # Matroska's clock ticks in milliseconds
  error = [np.abs(waveform[1000 + lag : 15000 + lag] - expected[1000:15000]).mean() for lag in range(-50, 51)]
  assert min(error) < 300


def test_odd_names_are_only_names(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  write_film(tmp_path / "a.mp4", greys(3), **LOSSY)
  for name in ("a:b.mp4", "-x.mp4", "concat:a.mp4|b.mp4", "http:x.mp4", "Gesicht ü %d 100%.mp4", "pipe:0"):
    os.link("a.mp4", name)
    assert len(list(iterate_frames(name))) == 3


@pytest.mark.parametrize(("name", "shares"), [("faststart.mp4", (0.5, 0.9)), ("a.mp4", (0.5,)), ("a.mkv", (0.5, 0.9)),
  ("a.flv", (0.5,)), ("a.avi", (0.5, 0.9)), ("fragments.mp4", (0.3,))])  # fmt: skip
def test_files_that_were_cut_short_are_refused(tmp_path, capfd, name, shares):
  data = write_film(tmp_path / name, greys(50, 96, 128), tone(2.0), **KINDS[name]).read_bytes()
  capfd.readouterr()
  for share in shares:
    path = tmp_path / f"cut{share}_{name}"
    path.write_bytes(data[: int(len(data) * share)])
    # an AVI declares only its pictures reliably
    readers = [lambda path: list(iterate_frames(path)), read_sound]
    for read in readers[: 1 if (name, share) == ("a.avi", 0.9) else 2]:
      with pytest.raises(MediaError, match=r"is cut short|is damaged") as caught:
        read(path)
      assert str(path) in str(caught.value)
  assert capfd.readouterr() == ("", "")  # FFmpeg does not talk


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_damaged_files_are_refused(tmp_path, name):
  path = write_film(tmp_path / name, greys(50, 96, 128), codec="libx264", pixels="yuv420p",
                    container_options={"movflags": "faststart"} if name == "a.mp4" else None)  # fmt: skip
  data = bytearray(path.read_bytes())
  data[len(data) // 2 : -len(data) // 4] = bytes(len(data[len(data) // 2 : -len(data) // 4]))
  path.write_bytes(data)
  with pytest.raises(MediaError, match="damaged"):
    list(iterate_frames(path))


def test_what_is_no_video_is_refused_in_plain_words(tmp_path):
  (tmp_path / "text.mp4").write_text("hello world\n" * 50)
  (tmp_path / "empty.mp4").touch()
  playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://localhost:9/a.ts\n"
  (tmp_path / "list.m3u8").write_text(playlist)
  os.mkfifo(tmp_path / "pipe.mp4")
  for path, reason in {
    tmp_path / "missing.mp4": "No such file",
    tmp_path / "text.mp4" / "a.mp4": "Not a directory",
    tmp_path: "is a folder",
    tmp_path / "empty.mp4": "is empty",
    tmp_path / "text.mp4": "is not supported: it is no video",
    tmp_path / "list.m3u8": "is not supported",
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
  for name, with_cover in (("sound.m4a", False), ("cover.mp4", True)):
    path = tmp_path / name
    with av.open(str(path), "w") as container:
      stream = container.add_stream("aac", rate=RATE, layout="mono")
      if with_cover:
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 32, 32, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic.value
        container.mux(cover.encode(av.VideoFrame(32, 32, "yuvj420p")))
      samples = (hum(1.0, RATE) / np.float32(32768))[None]
      frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
      frame.sample_rate, frame.pts, frame.time_base = RATE, 0, Fraction(1, RATE)
      container.mux([*stream.encode(frame), *stream.encode()])
    with av.open(str(path)) as container:
      assert len(container.streams.video) == with_cover
    with pytest.raises(MediaError, match="no video stream"):
      list(iterate_frames(path))
    assert len(read_sound(path).waveform) == RATE


def test_changing_sample_rate_is_refused(tmp_path):
  path = tmp_path / "a.ts"
  parts = [write_film(tmp_path / f"{rate}.aac", [], hum(0.5, rate), sound_codec="aac", sample_rate=rate) for rate in (44_100, 48_000)]  # fmt: skip
  path.write_bytes(b"".join(part.read_bytes() for part in parts))  # two AAC streams glued together
  with pytest.raises(MediaError, match="changes from 44100 to 48000 Hz"):
    read_sound(path)


def test_sound_slower_than_the_rows_of_a_spectrogram_is_refused(tmp_path):
  path = write_film(tmp_path / "a.mkv", greys(30), hum(1.2, 60), sample_rate=60)
  with pytest.raises(MediaError, match="its sound has 60 samples a second, below 100"):
    read_sound(path)
