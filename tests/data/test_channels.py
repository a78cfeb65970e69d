"""Which track and channel of a sound is taken, and what is said of it."""

from fractions import Fraction
import itertools
import re

import av
from clip_files import iterate_frames, read_record
import numpy as np
import pytest

from mma_dfer_jax.data.channels import Heard
from mma_dfer_jax.data.media import MediaError, read_sound, tracks_taken
from mma_dfer_jax.errors import UserError
from mma_dfer_jax.prediction import sound_channel

RATE = 8000


def tone(level, seconds=0.5):
  return (level * np.sin(2 * np.pi * 200 * np.arange(round(seconds * RATE)) / RATE)).astype(np.int16)


def write(path, *tracks, defaults=(), pictures=0):
  """Sounds, each (layout, {channel: samples}, codec); `defaults`: which of them are marked."""
  with av.open(str(path), "w") as file:
    streams = []
    for k in range(pictures):
      video = file.add_stream("mpeg4", rate=25)
      (video.width, video.height), video.pix_fmt = (32, 32), "yuv420p"
      video.disposition = int(k + 1 == pictures)
      streams.append((video, [av.VideoFrame.from_ndarray(np.full((32, 32, 3), 60 + 100 * k, np.uint8))]))
    for k, (layout, channels, *codec) in enumerate(tracks):
      stream = file.add_stream(*(codec or ["pcm_s16le"]), rate=RATE, layout=layout)
      stream.disposition = int(k in defaults)
      names = [one.name for one in av.AudioLayout(layout).channels]
      silence = 0 * next(iter(channels.values()))
      pcm = np.stack([channels.get(name, silence) for name in names], axis=1).reshape(1, -1)
      frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(pcm), "s16", layout)
      frame.rate, frame.pts, frame.time_base = RATE, 0, Fraction(1, RATE)
      streams.append((stream, [frame]))
    for stream, frames in streams:
      file.mux(list(itertools.chain(*map(stream.encode, frames), stream.encode(None))))
  return path


@pytest.mark.parametrize(
  ("layout", "speech", "expected"),
  [
    ("mono", "FC", {"first": 1, "loudest": 1, "centre": 1, "mix": 1}),
    ("stereo", "FL", {"first": 1, "loudest": 1, "centre": 1, "mix": 1 / 2}),
    ("stereo", "FR", {"first": 0, "loudest": 1, "centre": 0, "mix": 1 / 2}),
    ("5.1", "FC", {"first": 0, "loudest": 1, "centre": 1, "mix": 1 / 5}),
    ("5.1", "BL", {"first": 0, "loudest": 1, "centre": 0, "mix": 1 / 5}),
    ("quad", "BR", {"first": 0, "loudest": 1, "centre": 0, "mix": 1 / 4}),
  ],
)
def test_the_channel_that_is_taken(tmp_path, layout, speech, expected):
  path = write(tmp_path / "a.mkv", (layout, {speech: tone(9000), "LFE": tone(20)}))
  for channel, share in expected.items():
    heard = Heard(channel)
    np.testing.assert_allclose(read_sound(path, channel, heard).waveform, tone(9000) * share, atol=1)
    silent = channel == "first" and not share
    assert (
      any(
        "first channel" in note and f"{'4' if speech == 'BR' else speech} is not" in note
        for note in heard.notes()
      )
      == silent
    )
    assert any("no centre" in note for note in heard.notes()) == (
      channel == "centre" and layout in ("stereo", "quad")
    )


def test_what_is_said_of_loud_and_ordinary_sounds(tmp_path):
  for level, clipped in ((20_000, False), (60_000, True)):
    loud = np.clip(level / 9000 * tone(9000).astype(float), -32768, 32767).astype(np.int16)
    read_sound(write(tmp_path / "a.wav", ("stereo", {"FL": loud})), "first", heard := Heard())
    assert [note.startswith("the sound is clipped") for note in heard.notes()] == [True] * clipped


def test_the_track_that_is_marked_is_taken_and_said(tmp_path):
  tracks = [("mono", {"FC": tone(level)}) for level in (3000, 6000, 9000)]
  for defaults, taken, why in (
    ((), 1, "it is the first"),
    ((1,), 2, "the file marks it"),
    ((0, 1, 2), 1, "it is the first"),
  ):
    path = write(tmp_path / "a.mkv", *tracks, defaults=defaults)
    assert np.abs(read_sound(path).waveform).max() == pytest.approx(3000 * taken, abs=5)
    (note,) = tracks_taken(path)
    assert note.startswith(f"of 3 audio tracks number {taken} was taken: {why}")
  assert tracks_taken(write(tmp_path / "a.mkv", tracks[0])) == ()
  path = write(tmp_path / "a.mkv", pictures=2)
  assert next(iterate_frames(path)).mean() == pytest.approx(160, abs=3)
  assert tracks_taken(path) == ("of 2 video tracks number 2 was taken: the file marks it as the default",)


@pytest.mark.parametrize(
  ("levels", "defaults", "said"),
  [((0, 9000), (), "number 1 was taken: it is the first; it is silent, but number 2 is not: take one with `ffmpeg "),
   ((9000, 0, 9000), (1,), "as the default; it is silent, but number 1 and 3 are not: .* -map 0:a:0 "),
   ((9000, 0), (), "number 1 was taken: it is the first$"), ((0, 0), (), "it is the first$"), ((20, 9000), (), "it is silent"),
   ((0, 9000), (1,), "number 2 was taken: the file marks it as the default$")],
)  # fmt: skip
def test_a_silent_track_beside_one_that_speaks_is_said(tmp_path, levels, defaults, said):
  tracks = [("stereo", {"FR": tone(level)}) for level in levels]
  path = write(tmp_path / "a.mkv", *tracks, defaults=defaults, pictures=1)
  assert [
    re.search(said, note) is not None for note in read_record(path, path)["notes"] if "tracks" in note
  ] == [True]


def test_tracks_that_cannot_be_read_are_refused_or_said(tmp_path):
  path = write(
    tmp_path / "a.mkv", ("mono", {"FC": tone(3000)}, "aac"), ("mono", {"FC": tone(6000)}), defaults=(0,)
  )
  data = path.read_bytes().replace(b"A_AAC", b"A_XYZ")
  path.write_bytes(data)
  assert np.abs(read_sound(path).waveform).max() == pytest.approx(6000, abs=5)
  assert tracks_taken(path) == (
    "of 2 audio tracks number 2 was taken: it is the first; for 1 of them FFmpeg has no decoder",
  )
  path.write_bytes(data.replace(b"A_PCM/INT/LIT", b"A_XYZ/INT/LIT"))
  with pytest.raises(MediaError, match="is not supported: FFmpeg has no decoder for its audio; convert it"):
    read_sound(path)


def test_prepare_keeps_what_is_said(tmp_path):
  path = write(tmp_path / "a.mov", ("stereo", {"FR": tone(9000)}), pictures=1)
  assert read_record(path, path)["notes"] == [
    "the first channel of the sound (FL) is silent, FR is not: choose with --channel=loudest, centre or mix"
  ]
  record = read_record(path, path, channel="loudest")
  assert record["notes"] == []
  np.testing.assert_array_equal(record["waveform"], tone(9000))


def test_predict_follows_the_recipe_of_the_model():
  assert sound_channel({}, "auto") == "first"
  assert sound_channel({"sound_channel": "mix"}, "auto") == "mix"
  assert sound_channel({"sound_channel": "mix"}, "centre") == "centre"
  with pytest.raises(UserError, match="channel=left: choose one of auto, first, loudest, centre, mix"):
    sound_channel({}, "left")


@pytest.mark.parametrize(("ending", "codec", "layout"), [("m4a", "aac", "7.1"), ("wv", "wavpack", "7.1"),
                                                         ("m4a", "alac", "7.1(wide)")])  # fmt: skip
def test_eight_channels_that_lie_apart(tmp_path, ending, codec, layout):
  """PyAV reads past the eighth, which ended the process."""
  sound = np.zeros((8, 24_000), np.int16)
  sound[0] = 8000 * np.sin(np.arange(24_000) / 20)
  frame = av.AudioFrame.from_ndarray(sound.T.reshape(1, -1).copy(), "s16", layout)
  frame.rate = 48_000
  with av.open(str(tmp_path / f"a.{ending}"), "w") as file:
    stream = file.add_stream(codec, rate=48_000, layout=layout)
    context = stream.codec_context
    into = av.AudioResampler(context.format.name, layout, 48_000, frame_size=context.frame_size or 1024)
    for piece in [*into.resample(frame), *into.resample(None)]:
      file.mux(stream.encode(piece))
    file.mux(stream.encode(None))
  found = read_sound(tmp_path / f"a.{ending}")
  assert abs(len(found.waveform) - 24_000) <= 1024
  assert np.abs(found.waveform.astype(int)).mean() > 2000
