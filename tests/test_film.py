"""Videos as a model is given them: whole exactly as in training, windows exactly as clips cut out there, in step."""

import dataclasses
import itertools
import os
from pathlib import Path
import subprocess
import sys

from clip_files import iterate_frames, read_record
from conftest import ROOT
from films import LOSSY, hum, noise, turn, write_film
import numpy as np
import pytest
from test_faces import Spots

from mma_dfer_jax.data import faces, film, media
from mma_dfer_jax.data.fbank import missing_spectrogram, spectrogram
from mma_dfer_jax.data.frames import decode_frame, encode_frame, resize
from mma_dfer_jax.data.pipeline import make_example
from mma_dfer_jax.errors import UserError
from mma_dfer_jax.inputs import Inputs

SPEC = Inputs(image_size=48, audio_shape=(200, 32))  # room for 2 s of sound
RATE = 16_000


class PaleSpots(Spots):
  """Also finds spots that coding has changed a little."""

  def detect(self, frame):
    clear = np.ones_like(frame)
    for colour in self.colours:
      clear[((frame > np.array(colour) - 60.0) & (frame < np.array(colour) + 60.0)).all(axis=-1)] = colour
    return super().detect(clear)


@pytest.fixture
def finder(monkeypatch):
  """Makes a FaceFinder that finds red, green and blue spots."""
  monkeypatch.setattr(faces, "Detector", PaleSpots)
  return lambda policy="follow": faces.FaceFinder(Path("none"), policy, 32)


def spotted(length, *, height=48, width=64, moving=True):
  """Noise with a red spot that may move from left to right, and a green one that comes and goes."""
  pictures = [picture // 2 for picture in noise(length, height=height, width=width)]
  for i, picture in enumerate(pictures):
    left = 4 + moving * i * (width - 28) // length
    picture[16:34, left : left + 18] = (255, 0, 0)
    if 10 < i % 60 < 30:
      picture[2:12, -14:-4] = (0, 255, 0)
  return pictures


def whole(path, finder=None):
  seen = film.survey(path, finder)
  return seen, *film.samples(seen, film.windows(seen), SPEC, finder)


def in_windows(path, window, hop, finder=None):
  seen = film.survey(path, finder, hop=hop)
  return list(film.samples(seen, film.windows(seen, window, hop), SPEC, finder))


def as_trained(path, finder=None):
  record = read_record(path, path, finder=finder)
  return record, make_example({"label": 0, "clip_id": b"", **record}, SPEC)


# The whole of a video


RAW = {"codec": "libx264", "pixels": "yuv420p"}
KINDS = {
  "a.mkv": {},
  "a.avi": {},
  "b_frames.avi": RAW,
  "a.mp4": LOSSY,
  "a.mov": RAW,
  "a.webm": {"codec": "libvpx", "pixels": "yuv420p", "sound_codec": "libopus", "sample_rate": 48_000},
  "a.flv": LOSSY | {"sample_rate": 44_100},
  "a.ts": LOSSY,
  "a.gif": {"codec": "gif", "pixels": "rgb8"},
  "a.h264": RAW,
  "turned.mp4": LOSSY,
  "six_channels.mp4": LOSSY | {"layout": "5.1", "sample_rate": 48_000},
  "8kHz.mkv": {"sample_rate": 8000},
  "96kHz.mkv": {"sample_rate": 96_000, "sound_codec": "flac"},
  "later.mkv": {"clock": lambda seconds: seconds + 0.7},
  "earlier.mkv": {"times": [0.4 + 0.04 * i for i in range(40)]},
  "short.mp4": LOSSY,
  "vfr.mp4": LOSSY | {"times": np.cumsum(np.random.default_rng(0).uniform(0.01, 0.2, 40)).tolist()},
  "one.mp4": LOSSY,
  "5fps.mp4": LOSSY | {"rate": 5},
  "120fps.mp4": LOSSY | {"rate": 120},
}
SOUNDLESS = ("a.gif", "a.h264")


def write_kind(folder, name):
  sample_rate = KINDS[name].get("sample_rate", RATE)
  sound = None if name in SOUNDLESS else hum(0.4 if name == "short.mp4" else 2.5, sample_rate)
  path = write_film(folder / name, spotted(1 if name == "one.mp4" else 40), sound, **KINDS[name])
  return turn(path) if name == "turned.mp4" else path


@pytest.mark.parametrize("name", KINDS)
def test_a_whole_video_is_what_training_would_see(tmp_path, finder, name):
  path = write_kind(tmp_path, name)
  for finds in (None, finder()):
    seen, sample = whole(path, finds)
    record, expected = as_trained(path, finds)
    np.testing.assert_array_equal(sample.video, expected["video"])
    np.testing.assert_allclose(sample.spectrogram, expected["spectrogram"], rtol=0, atol=1e-6)
    assert len(seen.times) == sample.window.last == len(record["frames"])
    assert (sample.seconds_of_sound > 0) == record["has_audio"] == (name not in SOUNDLESS)
    if record["has_audio"]:
      assert sample.seconds_of_sound == pytest.approx(len(record["waveform"]) / record["sample_rate"])
    assert not sample.silent
    if finds:
      assert sample.with_face.mean() == record["face_share"] == 1
      assert sample.faces_at_once == (1 if name == "one.mp4" else 2)
    else:
      assert sample.with_face is None
  if name not in ("vfr.mp4", "one.mp4"):
    rate = KINDS[name].get("rate", 25)
    np.testing.assert_allclose(seen.times, np.arange(40) / rate, atol=1.1e-3)  # some count milliseconds
    assert seen.seconds == pytest.approx(40 / rate, abs=2e-3)
    assert seen.sizes.tolist() == [[64, 48] if name == "turned.mp4" else [48, 64]] * 40


def test_faces_are_cut_from_a_whole_video_by_the_other_policy_too(tmp_path, finder):
  path = write_film(tmp_path / "a.mkv", spotted(40, height=96, width=160), hum(1.6))
  cut_out = whole(path, finder("union"))[1]
  np.testing.assert_array_equal(cut_out.video, as_trained(path, finder("union"))[1]["video"])
  assert (cut_out.video != whole(path)[1].video).mean() > 0.5


def test_no_sound_silence_and_too_little_sound(tmp_path):
  pictures = noise(30)
  for sound, with_sound, silent in [
    (None, False, False),
    (hum(0.02), False, False),
    (np.zeros(RATE, np.int16), True, True),
    (np.full(RATE, 20, np.int16), True, True),
    (hum(1.0), True, False),
    (
      np.concatenate([np.zeros(3 * RATE // 2, np.int16), hum(0.5)]),
      True,
      False,
    ),  # heard when the picture is gone
  ]:
    sample = whole(write_film(tmp_path / "a.mkv", pictures, sound))[1]
    assert (sample.seconds_of_sound > 0, sample.silent) == (with_sound, silent)
    samples = np.zeros(0, np.float32) if sound is None else sound.astype(np.float32) / 32768
    shape = SPEC.audio_shape
    expected = spectrogram(samples, RATE, *shape) if with_sound else missing_spectrogram(*shape)
    np.testing.assert_allclose(sample.spectrogram, expected, rtol=0, atol=1e-6)


def test_without_a_face_the_middle_is_seen(tmp_path, finder):
  pictures = noise(30)
  sample = whole(write_film(tmp_path / "a.mkv", pictures), finder())[1]
  assert sample.with_face.tolist() == [False] * 30
  assert sample.faces_at_once == 0
  middle = resize(np.ascontiguousarray(pictures[0][:, 8:56]), 32)  # of the first that is taken, 0.94 of 1.875
  np.testing.assert_array_equal(sample.video[0], resize(decode_frame(encode_frame(middle)), 48))


# Windows


def imagined(times, seconds, sound=None):
  """A film of which only the times matter."""
  return film.Film("none", np.array(times), seconds, np.ones((len(times), 2), int), None, sound, ())


@pytest.mark.parametrize(
  ("frames", "rate", "window", "hop", "ends"),
  [
    (100, 25, 2.0, 1.0, [(0, 2), (1, 3), (2, 4)]),
    (110, 25, 2.0, 1.0, [(0, 2), (1, 3), (2, 4), (3, 4.4)]),
    (100, 25, 1.0, 1.0, [(0, 1), (1, 2), (2, 3), (3, 4)]),
    (10, 25, 4.0, 1.0, [(0, 0.4)]),
    (1, 25, 4.0, 1.0, [(0, 0.04)]),
    (300, 30000 / 1001, 5.0, 5.0, [(0, 5), (5, 10.01)]),  # no window of 10 ms
  ],
)
def test_windows_cover_a_film(frames, rate, window, hop, ends):
  found = film.windows(imagined(np.arange(frames) / rate, frames / rate), window, hop)
  np.testing.assert_allclose([(one.start, one.end) for one in found], ends, atol=1e-9)
  for one in found:
    inside = [i for i in range(frames) if one.start - 1e-6 <= i / rate < one.end - 1e-6]
    assert list(range(one.first, one.last)) == inside


def test_every_moment_of_any_film_is_in_a_window():
  rng = np.random.default_rng(0)
  for _ in range(200):
    steps = rng.choice([0.001, 0.04, 0.3, 5.0], rng.integers(1, 60), p=[0.1, 0.7, 0.15, 0.05])
    times = np.cumsum(steps) - steps[0]
    seconds = times[-1] + 0.04
    hop = rng.uniform(0.05, 2)
    window = hop + rng.uniform(0.1, 3)
    found = film.windows(imagined(times, seconds), window, hop)
    assert found[0].start == 0
    assert found[-1].end == seconds
    assert all(b.start <= a.end and b.start > a.start for a, b in itertools.pairwise(found))
    assert all(one.first < one.last for one in found)
    assert {i for one in found for i in range(one.first, one.last)} == set(range(len(times)))
    for one in found:
      begin_inside = ((times >= one.start - 1e-6) & (times < one.end - 1e-6)).sum()
      assert one.last - one.first == max(1, begin_inside)
      assert times[one.first] <= one.start or begin_inside  # else one that was shown before and still is


def test_wrong_windows_are_refused():
  for window, hop in ((0.0, 0.0), (-1.0, -1.0), (1.0, 2.0), (1.0, 0.0), (np.nan, 1.0), (1.0, np.nan), (np.inf, 1.0), (0.01, 0.01)):  # fmt: skip
    with pytest.raises(UserError, match="choose a window of at least"):
      film.windows(imagined([0.0], 1.0), window, hop)


@pytest.mark.parametrize("cut_out", [False, True])
def test_a_window_is_what_a_clip_cut_out_there_would_be(tmp_path, finder, cut_out):
  pictures, sound, finds = spotted(59, moving=False), hum(59 / 25), finder() if cut_out else None
  found = in_windows(write_film(tmp_path / "film.mkv", pictures, sound), 1.0, 0.48, finds)
  assert len(found) == len({sample.video.tobytes() for sample in found}) == 4
  for sample in found:
    one = sample.window
    excerpt = sound[round(one.start * RATE) : round(one.end * RATE)]
    alone = whole(write_film(tmp_path / "clip.mkv", pictures[one.first : one.last], excerpt), finds)[1]
    np.testing.assert_array_equal(sample.video, alone.video)
    np.testing.assert_array_equal(sample.spectrogram, alone.spectrogram)
    assert sample.seconds_of_sound == pytest.approx(alone.seconds_of_sound)
    np.testing.assert_array_equal(sample.with_face, alone.with_face)


def test_with_any_hop_a_face_is_where_it_is_in_a_clip_cut_out_there(tmp_path, finder):
  pictures = spotted(50, height=96, width=160)
  for sample in in_windows(write_film(tmp_path / "film.mkv", pictures), 0.84, 0.28, finder()):
    clip = write_film(tmp_path / "clip.mkv", pictures[sample.window.first : sample.window.last])
    alone = whole(clip, finder())[1]
    # Red fills the same part of the crops.
    here, there = ((one.video[..., 0] > 160) & (one.video[..., 1] < 90) for one in (sample, alone))
    np.testing.assert_array_equal(sample.with_face, alone.with_face)
    np.testing.assert_allclose(here.mean(axis=(1, 2)), there.mean(axis=(1, 2)), atol=0.05)
    assert (here != there).mean() < 0.12


def test_a_picture_that_stays_keeps_its_face(tmp_path, finder):
  """Slides: the face of picture 5 is there in all windows in which nothing else is shown."""
  times = [0, 0.1, 0.2, 0.3, 0.4, 0.5, 10.5, 10.6, 10.7]
  path = write_film(tmp_path / "a.mkv", spotted(60)[:9], hum(10.8), times=times)
  found = in_windows(path, 2.0, 1.0, finder())
  stills = [sample for sample in found if sample.window.last - sample.window.first == 1]
  assert [sample.window.first for sample in stills] == [5] * 8
  assert all(sample.with_face.all() for sample in found)
  assert (stills[0].spectrogram != stills[1].spectrogram).any()


def test_windows_without_sound_and_without_face_are_known(tmp_path, finder):
  pictures = spotted(50) + noise(50, seed=1) + noise(50, seed=2)
  sound = np.concatenate([hum(2.0), np.zeros(2 * RATE, np.int16)])
  found = in_windows(write_film(tmp_path / "a.mkv", pictures, sound), 1.0, 1.0, finder())
  assert [(bool(one.with_face.any()), one.seconds_of_sound, one.silent) for one in found] == [
    (True, 1, False), (True, 1, False), (False, 1, True), (False, 1, True), (False, 0, False), (False, 0, False)
  ]  # fmt: skip
  np.testing.assert_array_equal(found[-1].spectrogram, missing_spectrogram(*SPEC.audio_shape))
  silence = spectrogram(np.zeros(RATE, np.float32), RATE, *SPEC.audio_shape)
  np.testing.assert_array_equal(found[2].spectrogram, silence)


# Picture and sound in step


FLASHES = (1.0, 3.4, 5.2, 8.0, 9.6, 11.0)


CLOCKS = {  # seconds of sound -> time stamp
  "even": lambda seconds: seconds,
  "0.3 s late": lambda seconds: seconds + 0.3,
  "a gap of 2 s": lambda seconds: seconds + 2 * (seconds >= 5.8),
  "1 % slow": lambda seconds: 1.01 * seconds,
  "1 % fast": lambda seconds: 0.99 * seconds,
  "5 % fast": lambda seconds: 0.95 * seconds,
}


@pytest.mark.parametrize(("container", "how"), [
  *(("mkv", how) for how in CLOCKS), ("mp4", "1 % slow"), ("ts", "1 % fast"),
  ("late_pictures.mkv", "0.3 s late"), ("cut.ts", "even"), ("vfr.mkv", "1 % slow"),
])  # fmt: skip
def test_clicks_are_heard_when_flashes_are_seen(tmp_path, monkeypatch, container, how):
  """Within 20 ms, and what a clock is wrong within one packet of 64 ms."""
  clock, times = CLOCKS[how], np.arange(120) / 10
  if container == "vfr.mkv":
    steps = np.random.default_rng(1).choice([0.02, 0.04, 0.3], 400, p=[0.5, 0.45, 0.05])
    times = np.unique(np.round([*(np.cumsum(steps)[np.cumsum(steps) < 11.9]), 0.0, *FLASHES], 2))
  if container == "late_pictures.mkv":
    times = times[4:]
  bright = np.isin(np.round(times, 2), FLASHES)
  pictures = [np.full((32, 32, 3), 240 if on else 10, np.uint8) for on in bright]
  nominal = np.arange(0, 14, 1 / RATE)
  stamps = np.array([clock(1024 * k / RATE) for k in range(len(nominal) // 1024 + 1)])  # of packets
  sound = np.zeros(len(nominal), np.int16)
  for at in FLASHES:  # the sample that its packet's time stamp puts nearest to the flash
    packet = np.searchsorted(stamps, at + 1e-9) - 1
    inside = round((at - stamps[packet]) * RATE)
    if inside < 1400:  # else in the gap
      sound[1024 * packet + inside :][:3] = 30_000
  sound = sound[: 1024 * np.searchsorted(stamps, 11.9)]
  coded = {} if container.endswith("mkv") else LOSSY | {"rate": 10, "options": {"g": "15"}}
  if container != "cut.ts":
    coded["times"] = times.tolist()
  path = write_film(tmp_path / f"a.{container}", pictures, sound, clock=clock, **coded)
  if container == "cut.ts":  # begins amid a group of pictures; 5 s are left
    data = path.read_bytes()
    path.write_bytes(data[len(data) // 188 * 55 // 100 * 188 :])
  records = []
  monkeypatch.setattr(
    film,
    "make_example",
    lambda record, *how, **named: make_example(records.append(record) or record, *how, **named),
  )
  found, seen = in_windows(path, 2.0, 1.0), film.survey(path)
  flashes = [
    time for time, pixels in zip(seen.times, iterate_frames(path), strict=True) if pixels.mean() > 150
  ]
  assert len(flashes) == len(FLASHES) or (container == "cut.ts" and len(flashes) >= 3)
  heard = 0
  for one, record in zip([sample.window for sample in found], records, strict=True):
    clicks = np.flatnonzero(np.abs(record["waveform"].astype(int)) > 9000) / RATE + one.start
    for flash in flashes:
      if one.start + 0.03 < flash < one.end - 0.03 and len(clicks):
        assert np.abs(clicks - flash).min() < 0.0201 + 0.064 * (0.05 if "5 %" in how else 0.01)
        heard += 1
    for click in clicks:
      assert np.abs(np.array(flashes) - click).min() < 0.03
  assert heard >= 2 * len(flashes) - 5


def test_the_end_of_a_fast_sound_is_not_lost(tmp_path):
  for name in ("a.mp4", "a.mkv"):
    path = write_film(tmp_path / name, noise(100), hum(4.0), clock=lambda seconds: 0.9 * seconds, **LOSSY)
    assert film.survey(path).sound.seconds == pytest.approx(3.6, abs=0.05)


# What must not be believed


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path):
  path = write_film(tmp_path / "a.mkv", noise(60), hum(2.4))
  other = write_film(tmp_path / "b.mkv", noise(60, seed=1), hum(2.4, seed=1)).read_bytes()
  longer = write_film(tmp_path / "c.mkv", noise(90, seed=1), hum(3.6)).read_bytes()
  for when in ("before", "after one window"):
    for data in (other, longer):
      seen = film.survey(path)
      iterator = film.samples(seen, film.windows(seen, 1.0, 0.5), SPEC)
      if when != "before":
        next(iterator)
      (tmp_path / "new").write_bytes(data)
      os.replace(tmp_path / "new", path)
      with pytest.raises(media.MediaError, match=r"a\.mkv: was changed while it was read"):
        list(iterator)


def test_other_frames_than_before_are_refused(tmp_path):
  seen = film.survey(write_film(tmp_path / "a.mkv", noise(60)))
  longer = {"times": np.arange(70) / 25, "sizes": np.full((70, 2), (48, 64)), "seconds": 70 / 25}
  more = dataclasses.replace(seen, **longer)
  with pytest.raises(media.MediaError, match="was changed"):
    list(film.samples(more, film.windows(more), SPEC))
  with pytest.raises(media.MediaError, match="was changed"):
    list(film.samples(dataclasses.replace(seen, sizes=seen.sizes + 1), film.windows(seen), SPEC))


@pytest.mark.parametrize(("jump", "direction"), [(-5.0, "-5 s at 1.96 s"), (1000.0, "1000 s at 1.96 s")])
def test_a_clock_that_jumps_makes_no_timeline(tmp_path, monkeypatch, jump, direction):
  path = write_film(tmp_path / "a.mkv", noise(100))

  def jumping():
    for i, picture in enumerate(original(path)):
      picture.time += jump * (i >= 50)
      yield picture

  original = media.iterate_pictures
  monkeypatch.setattr(media, "iterate_pictures", lambda path: jumping())
  with pytest.raises(media.MediaError, match=f"its pictures jump by {direction}"):
    film.survey(path, hop=1.0)
  assert len(film.survey(path).times) == 100  # of the whole, only the order counts


@pytest.mark.slow
def test_memory_does_not_grow_with_the_film(tmp_path):
  """6 s and 60 s at 96 kHz, whose sound alone is 11 MB; in windows of 40 s."""
  picture = noise(10)
  for name, seconds in (("short.mkv", 6), ("long.mkv", 60)):
    write_film(
      tmp_path / name, (picture[i % 10] for i in range(10 * seconds)), np.tile(hum(1.0, 96_000), seconds),
      rate=10, codec="mpeg4", pixels="yuv420p", sample_rate=96_000,
    )  # fmt: skip
  code = """if True:
    import resource, sys
    from mma_dfer_jax.data import film
    from mma_dfer_jax.inputs import Inputs
    for name in ("short.mkv", "long.mkv"):
      seen = film.survey(f"{sys.argv[1]}/{name}", hop=20.0)
      count = sum(1 for _ in film.samples(seen, film.windows(seen, 40.0, 20.0), Inputs(image_size=32)))
      print(count, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
  """
  said = subprocess.check_output([sys.executable, "-c", code, tmp_path], cwd=ROOT, text=True)
  (few, short), (many, long) = (map(int, line.split()) for line in said.splitlines())
  assert (few, many) == (1, 2)
  assert long < short + 8, f"{short} and {long} MB"
