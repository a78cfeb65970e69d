"""Frames and sound in memory become what a file with them becomes."""

import dataclasses
import io
import subprocess
import sys

from conftest import ROOT
from films import hum, noise, write_film
import numpy as np
from PIL import Image
import pytest

from mma_dfer_jax.data.arrays import read_arrays, sample_of
from mma_dfer_jax.data.fbank import missing_spectrogram
from mma_dfer_jax.data.pipeline import make_example
from mma_dfer_jax.errors import UserError
from mma_dfer_jax.inputs import Inputs
from mma_dfer_jax.prediction import clip_sample

INPUTS = Inputs(image_size=32, audio_shape=(64, 32))


@pytest.mark.parametrize(
  ("frames", "rate", "layout", "inputs"),
  [
    (50, 16_000, "mono", INPUTS),
    (7, 44_100, "stereo", INPUTS),
    (41, 8_000, "mono", dataclasses.replace(INPUTS, frame_choice="time")),
  ],
)
def test_the_same_bits_as_of_a_file(tmp_path, frames, rate, layout, inputs):
  pictures, sound = noise(frames), hum(1.3, rate)
  times = np.cumsum([0.0, *np.random.default_rng(0).choice([0.04, 0.08], frames)]).round(2)
  path = write_film(tmp_path / "a.mkv", pictures, sound, sample_rate=rate, layout=layout, times=times[:-1])
  _, of_file = clip_sample(inputs, path, None)
  times[-1] = of_file.window.end  # which a file tells of the last frame only in its own way
  waveform = sound if layout == "mono" else np.stack([sound, sound[::-1]], axis=1)
  for samples in (waveform, waveform.astype(np.float32) / 32768, waveform.astype(np.float64) / 32768):
    sample = sample_of(np.stack(pictures), samples, rate, inputs, times=times, coded=True)
    np.testing.assert_array_equal(sample.video, of_file.video)
    np.testing.assert_array_equal(sample.spectrogram, of_file.spectrogram)
  same = ("heard", "seconds_of_sound", "silent", "sample_rate", "size", "rates", "notes")
  assert [getattr(sample, name) for name in same] == [getattr(of_file, name) for name in same]
  assert sample.window.last == of_file.window.last


def test_without_jpeg_as_a_record_of_lossless_frames():
  def png(picture):
    Image.fromarray(picture).save(file := io.BytesIO(), format="png")
    return file.getvalue()

  pictures, sound = noise(40, height=72, width=40), hum(0.5)
  record = {"frames": list(map(png, pictures)), "waveform": sound, "sample_rate": 16_000, "has_audio": True,
            "label": 0, "clip_id": b""}  # fmt: skip
  example = make_example(record, INPUTS)
  video, spectrogram = read_arrays(pictures, sound, np.int64(16_000), INPUTS)
  np.testing.assert_array_equal(video, example["video"])
  np.testing.assert_array_equal(spectrogram, example["spectrogram"])
  coded, _ = read_arrays(pictures, sound, 16_000, INPUTS, coded=True)
  difference = np.abs(coded.astype(int) - video)
  assert 0 < difference.mean() < 8  # of JPEG, in pictures that are worse for it than any face


def test_any_size_length_and_sound():
  sizes = [np.full((height, 30, 3), height, np.uint8) for height in (40, 64, 200)]
  video, spectrogram = read_arrays(sizes, None, None, INPUTS)
  assert video[:, 0, 0, 0].tolist() == [40, 64] + [200] * 14
  np.testing.assert_array_equal(spectrogram, missing_spectrogram(64, 32))
  short = sample_of(np.zeros((1, 33, 5, 3), np.uint8), np.zeros(399, np.int16), 16_000, INPUTS)
  assert (short.sample_rate, short.seconds_of_sound, short.window.end) == (0, 0.0, 0.04)
  np.testing.assert_array_equal(short.spectrogram, spectrogram)
  both = np.stack([np.zeros(8000, np.int16), hum(0.5)], axis=1)
  silent, heard = (sample_of(sizes, both, 16_000, INPUTS, channel=one) for one in ("first", "loudest"))
  assert (silent.silent, heard.silent, heard.seconds_of_sound) == (True, False, 0.5)
  assert "first channel of the sound (FL) is silent" in silent.notes[0]
  np.testing.assert_array_equal(heard.spectrogram, read_arrays(iter(sizes), hum(0.5), 16000.0, INPUTS)[1])


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"frames": np.zeros((4, 8, 8, 3), np.float32)}, "multiply by 255, round and cast"),
    ({"frames": np.zeros((8, 8, 3), np.uint8)}, r"they are uint8 \(8, 8, 3\)"),
    ({"frames": np.zeros((2, 8, 8, 4), np.uint8)}, r"one is uint8 \(8, 8, 4\)"),
    ({"frames": []}, "there are none"),
    ({"frames": None}, "they are object"),
    ({"waveform": np.zeros((2, 900), np.int16)}, "2|900 channels of 2 samples: give it the other way round"),
    ({"waveform": np.zeros(900, np.int32)}, "it is int32"),
    ({"waveform": np.full(900, np.nan)}, "NaN"),
    ({"waveform": 9000 * np.ones(900)}, "its largest sample is 9000: divide it by full scale"),
    ({"waveform": np.zeros((1, 9, 1), np.int16)}, r"it is \(1, 9, 1\)"),
    ({"sample_rate": None}, "sample_rate=None must be a whole number"),
    ({"sample_rate": 44.1}, "sample_rate=44.1 must be"),
    ({"sample_rate": float("nan")}, "sample_rate=nan must be"),
    ({"channel": "left"}, "channel='left': choose one of first"),
    ({"times": np.arange(4.0)}, r"times must be \(5,\) seconds"),
    ({"times": np.array([0.0, 1, 3, 2, 4])}, "seconds that ascend"),
  ],
)
def test_what_cannot_be_a_clip(changes, words):
  right = {"frames": np.zeros((4, 8, 8, 3), np.uint8), "waveform": hum(0.1), "sample_rate": 16_000}
  with pytest.raises(UserError, match=words):
    read_arrays(**(right | changes), inputs=INPUTS)


def test_all_problems_at_once():
  with pytest.raises(UserError) as error:
    read_arrays([np.zeros((8, 8), np.uint8)], np.zeros(5, "U3"), 50, INPUTS, channel="")
  assert str(error.value).count("\n  - ") == 4


@pytest.mark.slow
def test_it_starts_no_jax():
  code = "import sys, mma_dfer_jax.data.arrays; print(*sys.modules)"
  loaded = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True).split()
  assert not {"jax", "tensorflow_datasets", "flax", "grain"} & set(loaded)
