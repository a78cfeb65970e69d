"""A stream, read once and forward only, gives the model the same bits as the film that is read twice."""

import io
from pathlib import Path
import time
from types import SimpleNamespace
from unittest.mock import Mock

import av
from films import hum, noise, write_film
import numpy as np
import pytest
from test_faces import Spots

from mma_dfer_jax.data import faces, film
from mma_dfer_jax.data.shots import Shots
from mma_dfer_jax.data.stream import Ring, Stream, is_camera, is_live
from mma_dfer_jax.engines.engine import Engine
from mma_dfer_jax.errors import UserError
from mma_dfer_jax.inputs import Inputs
from mma_dfer_jax.live import Live

SPEC = Inputs(num_frames=4, image_size=32, audio_shape=(100, 32))


@pytest.mark.parametrize("name", ["a.mkv", "without_sound.mkv"])
def test_a_stream_is_answered_as_the_film(tmp_path, monkeypatch, name):
  monkeypatch.setattr(faces, "Detector", Spots)
  finder = faces.FaceFinder(Path("none"), size=32)
  pictures = [picture // 2 for picture in noise(87)]
  for i, picture in enumerate(pictures):
    picture[10:26, 4 + i // 3 :][:, :16] = (255, 0, 0)
  path = write_film(tmp_path / name, pictures, hum(87 / 25) if name == "a.mkv" else None)
  monkeypatch.setattr(Stream, "_opened", lambda self: av.open(str(path)))
  stream, ring = Stream("-"), Ring(SPEC, finder, 1.0, 0.48)
  found, most = [], 0
  for _, one, at in stream:
    ring.add_sound(one, at) if isinstance(one, av.AudioFrame) else ring.add_picture(one)
    found += ring.windows()
    most = max(most, len(ring.pictures))
  found += ring.windows(ended=True)
  seen = film.survey(path, finder, hop=0.48)
  expected = list(film.samples(seen, film.windows(seen, 1.0, 0.48), SPEC, finder))
  assert len(found) == len(expected) == 7
  for one, other in zip(found, expected, strict=True):
    np.testing.assert_array_equal(one.video, other.video)
    np.testing.assert_array_equal(one.spectrogram, other.spectrogram)
    np.testing.assert_array_equal(one.with_face, other.with_face)
    assert (one.window, one.seconds_of_sound) == (other.window, pytest.approx(other.seconds_of_sound))
  assert most < 60, "only the last window is kept"
  assert stream.dropped == 0


def test_what_cannot_be_read_is_said():
  for source, words in {
    "rtsp://127.0.0.1:1/x": "refused",
    "9999": "there is no camera 9999",
    "tcp://me:secret@127.0.0.1:1": "^tcp://127.0.0.1:1: ",
  }.items():
    with pytest.raises(UserError, match=words):
      list(Stream(source))
  assert [is_live(one) for one in ("-", "RTSP://a/b", "a.mp4", "0")] == [True, True, False, False]
  assert [is_camera(one) for one in ("0", "٣", "", "-")] == [True, False, False, False]


def live(monkeypatch, data: bytes) -> Live:
  """A pipe that holds these bytes, answered by an engine without a model."""
  monkeypatch.setattr(Stream, "_opened", lambda self: av.open(io.BytesIO(data)))
  engine = Mock(spec=Engine, about=SimpleNamespace(inputs=SPEC))
  one = Live(engine, "-", None, 1.0, 0.5)
  monkeypatch.setattr(one, "_warm_up", lambda: None)

  def answered(samples, came):
    yield from ((sample, came) for sample in samples)

  monkeypatch.setattr(one, "_answered", answered)
  return one


def in_transport(path: Path, seconds: float = 2.0, **how) -> bytes:
  pictures = noise(round(25 * seconds))
  return write_film(
    path, pictures, hum(seconds), codec="mpeg2video", pixels="yuv420p", sound_codec="mp2", **how
  ).read_bytes()


def test_a_clock_that_starts_anew_starts_windows_anew(tmp_path, monkeypatch):
  data = in_transport(tmp_path / "a.ts", sample_rate=16_000)
  one = live(monkeypatch, data * 3)
  found = [sample for sample, _ in one.answers()]
  assert one.summary()["clock_jumps"] == 2
  assert one.frames == 150
  starts = np.array([sample.window.start for sample in found])
  np.testing.assert_allclose(starts, [0, 0.5, 1, 2, 2.5, 3, 4, 4.5, 5], atol=0.05)
  assert all(sample.seconds_of_sound > 0.8 for sample in found), "pictures and sound start anew together"
  for sample, other in zip(found[:2], found[3:5], strict=True):
    np.testing.assert_array_equal(sample.video, other.video)


def test_no_window_without_a_picture_is_answered(tmp_path, monkeypatch):
  times = [*np.arange(0, 2, 0.04), *np.arange(60, 62, 0.04)]
  film = write_film(tmp_path / "a.mkv", noise(100), times=times)
  one = live(monkeypatch, film.read_bytes())
  found = [sample.window for sample, _ in one.answers()]
  assert {(window.start, window.end) for window in found if 2 <= window.start <= 59} == set()
  assert one.counts["windows_without_picture"] > 100
  assert len(found) < 10


def test_damaged_packets_are_passed_over(tmp_path, monkeypatch):
  data = bytearray(in_transport(tmp_path / "a.ts"))
  damage = np.random.default_rng(0)
  for at in damage.integers(len(data) // 4, len(data), len(data) // 2000):
    data[at] ^= 0xFF
  one = live(monkeypatch, bytes(data))
  assert sum(1 for _ in one.answers()) >= 2
  assert one.summary()["damaged_packets"] > 0


def test_of_a_source_that_cannot_wait_only_the_newest_window_is_answered(tmp_path, monkeypatch):
  film = write_film(tmp_path / "a.mkv", noise(100))
  one = live(monkeypatch, film.read_bytes())
  one.stream.waits = False
  one.stream._thread.start()
  one.stream._thread.join()
  monkeypatch.setattr(one.stream, "_thread", SimpleNamespace(start=lambda: None))
  starts = [sample.window.start for sample, _ in one.answers()]
  assert starts[0] == 2.5
  assert one.counts["skipped_windows"] == 5


def test_a_source_that_stalls_is_ended(monkeypatch):
  monkeypatch.setattr("mma_dfer_jax.data.stream.PATIENCE", 0.1)
  monkeypatch.setattr(Stream, "_opened", lambda self: time.sleep(0.5))
  with pytest.raises(UserError, match=r"nothing came in 0\.2 s"):
    list(Stream("-", 0.2))


def test_a_stream_forgets_cuts_that_are_past():
  pictures = [np.full((16, 16, 3), shade, np.uint8) for shade in np.repeat([0, 90, 20, 200, 60], 30)]
  shots, whole = Shots(), Shots()
  for number, picture in enumerate(pictures):
    list(shots.watch([picture])), list(whole.watch([picture]))
    shots.forget(number - 20)
    assert [cut for cut in shots.cuts() if cut > number - 20] == [
      cut for cut in whole.cuts() if cut > number - 20
    ]
  assert whole.cuts() == [30, 60, 90, 120]
  assert len(shots._changes) < 40
