"""Log-mel features against values of the original, made with torchaudio."""

import json
from pathlib import Path
import sys

import numpy as np
import pytest

from mma_dfer_jax.data import fbank

GOLDEN = Path(__file__).parent / "golden"
sys.path.insert(0, str(GOLDEN))
import gen_preprocess_helpers as helpers  # noqa: E402

CASES = json.loads((GOLDEN / "fbank.json").read_text())["cases"]
VALUES = np.load(GOLDEN / "fbank.npz")
WITH_VALUES = sorted({key.split("/")[0] for key in VALUES})


def sound(name: str) -> tuple[np.ndarray, int]:
  """All channels of a golden case, (S, channels) float32."""
  case = CASES[name]
  rate = case["sample_rate"]
  if name.startswith("silence"):
    return np.zeros((case["samples"], 1), np.float32), rate
  pcm = helpers.pcm16(helpers.wave(name, case["seconds"], rate, case["channels"], 11))
  return (pcm / (32767 if name == "float32wav" else 32768)).astype(np.float32), rate


@pytest.mark.parametrize("name", WITH_VALUES)
def test_energies_and_spectrograms_match_the_original(name):
  waveform, rate = sound(name)
  expected = VALUES[f"{name}/raw"]
  energies, features = fbank.log_mel_fbank(waveform[:, 0], rate), fbank.spectrogram(waveform[:, 0], rate)
  assert energies.dtype == features.dtype == np.float32
  assert energies.shape == expected.shape
  np.testing.assert_allclose(energies, expected, atol=1e-3, rtol=0)
  np.testing.assert_allclose(energies[expected > -8], expected[expected > -8], atol=2e-4, rtol=0)
  assert features.shape == (512, 128)
  if f"{name}/final" in VALUES:
    np.testing.assert_allclose(features, VALUES[f"{name}/final"][0], atol=1.2e-4, rtol=0)
  else:
    ends = np.concatenate([features[:8], features[-8:]])
    np.testing.assert_allclose(ends, VALUES[f"{name}/final_first8_last8"][0], atol=1.2e-4, rtol=0)


@pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000])
def test_mel_triangles_match_the_original(rate):
  golden, case = np.load(GOLDEN / "melbanks.npz"), CASES[f"melbank_{rate}"]
  assert fbank.window_and_hop(rate) == (case["window"], case["shift"])
  triangles = fbank.mel_triangles(rate, case["padded"], 128).T
  np.testing.assert_allclose(triangles.sum(axis=0), golden[f"rowsum_{rate}"], atol=1e-4)
  np.testing.assert_array_equal(triangles.argmax(axis=0), golden[f"argmax_{rate}"])
  assert np.flatnonzero(triangles.sum(axis=0) == 0).tolist() == case["empty_filters"]


def test_window_and_hop_are_cut_to_whole_samples():
  for rate, window, hop in ((11025, 275, 110), (22050, 551, 220), (44100, 1102, 441), (96000, 2400, 960)):
    assert fbank.window_and_hop(rate) == (window, hop)
    for samples, rows in ((window - 1, 0), (window, 1), (window + hop - 1, 1), (window + hop, 2)):
      assert fbank.log_mel_fbank(np.zeros(samples, np.float32), rate).shape == (rows, 128)


def test_constant_offset_and_float64_change_nothing():
  waveform, rate = sound("mono16k_0_05s")
  plain = fbank.log_mel_fbank(waveform[:, 0], rate)
  np.testing.assert_allclose(
    fbank.log_mel_fbank(waveform[:, 0].astype(np.float64) + 0.25, rate), plain, atol=1e-4
  )


def test_spectrogram_computes_only_the_rows_that_it_keeps():
  waveform, rate = sound("mono16k_3s")
  np.testing.assert_array_equal(fbank.log_mel_fbank(waveform[:, 0], rate, max_rows=40).shape, (40, 128))
  short, long = fbank.spectrogram(waveform[:, 0], rate, num_rows=40), fbank.spectrogram(waveform[:, 0], rate)
  np.testing.assert_allclose(short, long[:40], atol=1e-6)


@pytest.mark.parametrize("rate", [8000, 44100])
def test_without_scipy_the_bits_are_the_same(rate, monkeypatch):
  waveform = np.random.default_rng(0).normal(0, 0.1, 2 * rate).astype(np.float32)
  fbank._packed_triangles.cache_clear()
  expected = fbank.log_mel_fbank(waveform, rate)
  fbank._packed_triangles.cache_clear()
  monkeypatch.setitem(sys.modules, "scipy.sparse", None)
  np.testing.assert_array_equal(fbank.log_mel_fbank(waveform, rate), expected)
  fbank._packed_triangles.cache_clear()


def test_padding_silence_and_missing_sound():
  silence = fbank.spectrogram(np.zeros(16000, np.float32), 16000)
  np.testing.assert_allclose(silence[:98], -1.2776, atol=1e-4)  # (log(1.19e-7) + 4.2677393) / 9.1379948
  expected = json.loads((GOLDEN / "dataset.json").read_text())["cases"]["fbank_of_missing_wav_constant"]
  np.testing.assert_allclose(silence[98:], expected, atol=1e-7)
  missing = fbank.missing_spectrogram()
  assert missing.shape == (512, 128)
  assert missing.dtype == np.float32
  np.testing.assert_allclose(missing, expected, atol=1e-7)


def test_sounds_that_do_not_fit_are_refused():
  for samples in (0, 399):
    with pytest.raises(ValueError, match=f"{samples} samples at 16000 Hz, shorter than one window of 400"):
      fbank.spectrogram(np.zeros(samples, np.float32), 16000)
  for rate in (0, -16000, 99):
    with pytest.raises(ValueError, match="at least 100 Hz"):
      fbank.log_mel_fbank(np.zeros(1000, np.float32), rate)
  for bad in (np.nan, np.inf):
    with pytest.raises(ValueError, match="infinite or undefined"):
      fbank.log_mel_fbank(np.array([0.0] * 999 + [bad], np.float32), 16000)
  plain = fbank.log_mel_fbank.__wrapped__  # without the shape check of the tests
  for wrong in (np.zeros((1, 1000), np.float32), np.zeros(1000, np.int16)):
    with pytest.raises(ValueError, match="1-D floating point"):
      plain(wrong, 16000)
