"""A stream, read once and forward only, gives the model the same bits as the film that is read twice."""

from pathlib import Path

import av
from films import hum, noise, write_film
import numpy as np
import pytest
from test_faces import Spots

from mma_dfer_jax.data import faces, film
from mma_dfer_jax.data.stream import Ring, Stream, is_live
from mma_dfer_jax.errors import UserError
from mma_dfer_jax.inputs import Inputs

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
  for source, words in {"rtsp://127.0.0.1:1/x": "refused", "9999": "cannot be read"}.items():
    with pytest.raises(UserError, match=words):
      list(Stream(source))
  assert [is_live(one) for one in ("-", "RTSP://a/b", "a.mp4", "0")] == [True, True, False, False]
