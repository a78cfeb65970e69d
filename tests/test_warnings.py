"""What makes an answer less trustworthy, and by how much: from samples made by hand."""

import dataclasses

import numpy as np
import pytest

from mma_dfer_jax import doubt
from mma_dfer_jax.data.film import Sample, Window
from mma_dfer_jax.engines.engine import About
from mma_dfer_jax.inputs import Inputs

CUT = {"faces": "yunet, follow"}
ABOUT = About(inputs=Inputs(), streams=("image", "audio"), classes=("a", "b"), class_order="", recipe=CUT, origin={},
              precision="float32", fingerprint="")  # fmt: skip


def speech(rate, seconds=0.7):
  """Harmonics of a gliding voice, with noise up to 10 kHz: 16-bit samples."""
  t = np.arange(round(seconds * rate)) / rate
  phase = 2 * np.pi * np.cumsum(120 + 40 * np.sin(2 * np.pi * t)) / rate
  voice = sum(np.sin(k * phase) / k**1.5 for k in range(1, 25))
  tones = np.random.default_rng(0).uniform(100, min(10_000, rate / 2), 300)
  hiss = sum(np.sin(2 * np.pi * f * t + i) for i, f in enumerate(tones)) / 300
  return (6000 * np.sin(2 * np.pi * 1.5 * t) ** 2 * (voice + hiss)).astype(np.int16)


def sample(**facts):
  """Of a clip of 2 s that nothing is wrong with."""
  usual = {
    "window": Window(0.0, 2.0, 0, 50), "with_face": np.ones(50, bool), "faces_at_once": 1, "size": (640, 480), "face_score": 0.9,
    "seconds_of_sound": 2.0, "heard": 5.13, "silent": False, "sample_rate": 48_000, "waveform": speech(48_000),
    "rates": None, "turned": "", "changes": (), "notes": (),
  }  # fmt: skip
  return Sample(**{"video": np.tile(np.arange(0, 240, 30, dtype=np.uint8)[:, None], (16, 8, 1, 3)),
                   "spectrogram": np.zeros((512, 128), np.float32), **usual, **facts})  # fmt: skip


def doubts(of, **about):
  return doubt.doubts(dataclasses.replace(ABOUT, **about), of)


@pytest.mark.parametrize(
  ("of", "about", "words"),
  [({}, {}, []),
   ({"rates": (33.3, 5.0)}, {}, ["the frame rate is uneven, 33.3 a second"]),
   ({"rates": (33.3, 5.0)}, {"inputs": Inputs(frame_choice="time")}, []),
   ({"changes": ("HDR (PQ, BT.2020) brought to BT.709",)}, {}, ["HDR (PQ"]),
   ({"turned": "faces are tilted by +30 degrees"}, {}, ["faces are tilted"]),
   ({"of_others": 2, "faces_at_once": 2}, {}, ["2 of 16 frames show another person"]),
   ({"with_face": None, "size": (1920, 1040)}, {"recipe": {"faces": "none"}}, []),
   ({"with_face": None, "size": (256, 256)}, {}, []),
   ({}, {"sample_rates": (44_100,)}, []),
   ({}, {"sample_rates": (16_000,)}, ["sound at 48000 Hz, but the training clips at 16000 Hz"]),
   ({"sample_rate": 16_000, "waveform": speech(16_000)}, {"sample_rates": (44_100, 48_000)}, ["sound at 16000 Hz"]),
   ({"seconds_of_sound": 9.0, "window": Window(0.0, 9.0, 0, 225)}, {}, ["only the first 5.13 of 9.00 s"]),
   ({}, {"seconds_of_sound": 3.9}, []),
   ({}, {"seconds_of_sound": 4.2}, ["only 2.00 s of sound: 61 % of the spectrogram are padding"])],
)  # fmt: skip
def test_warnings(of, about, words):
  reasons, found = doubts(sample(**of), **about)
  assert (reasons, len(found)) == ((), len(words))
  for text, begin in zip(found, words, strict=True):
    assert text.startswith(begin)


NO_FACE, DARK = (
  {"with_face": np.zeros(50, bool), "face_score": 0.0},
  {"video": np.full((16, 8, 8, 3), 3, np.uint8)},
)
HALF, UNCUT = {"with_face": np.arange(50) < 20}, {"with_face": None, "size": (1920, 1040)}
CROPS = {"recipe": {}, "typical": {"shape": [1.0, 1.0], "side": [224, 224], "seconds": [1.6, 2.0]}}


@pytest.mark.parametrize(
  ("of", "about", "words"),
  [(NO_FACE, {}, "no face was found"),
   (NO_FACE, {"streams": ("audio",)}, ""),
   ({"of_others": 3}, {}, "3 of 16 frames show another person than the rest: --person=all"),
   ({"of_others": 2}, {}, ""),
   ({"window": Window(0.0, 0.04, 0, 1), "with_face": np.ones(1, bool)}, {}, "it is a single picture"),
   (HALF, {}, "a face in only 40 %"),
   (HALF, {"typical": {"face_share": [0.5, 1.0]}}, "a face in only 40 %"),
   (HALF, {"typical": {"face_share": [0.3, 1.0]}}, ""),
   ({"face_score": 0.74}, {}, "hardly a face: the detector's score is 0.74"),
   ({"face_score": 0.76}, {}, ""),
   ({**DARK, "silent": True}, {}, "the pictures are of one colour and there is nothing to hear"),
   ({**DARK, "seconds_of_sound": 0.0}, {}, "and there is nothing to hear"),
   (DARK, {}, ""),
   ({"silent": True}, {}, ""),
   ({"silent": True}, {"streams": ("audio",)}, "there is nothing to hear"),
   (DARK, {"streams": ("image",)}, "the pictures are of one colour"),
   (UNCUT, {}, "pictures of 1920x1040 as they are, but the model was trained on cut"),
   (UNCUT, CROPS, "pictures of 1920x1040 as they are, but the clips of the training are square"),
   ({"with_face": None}, CROPS, "pictures of 640x480 as they are, but the clips of the training are square"),
   (UNCUT, {"recipe": {}, "typical": {"shape": [0.5, 0.6]}}, "pictures of 1920x1040 are squeezed: the training clips' are 0.50 to 0.60 times"),
   (UNCUT, {"recipe": {}, "typical": {"shape": [1.78, 1.78]}}, ""),
   (UNCUT, {"recipe": {}, "typical": {"shape": [1.0, 1.78]}}, ""),
   ({}, {"recipe": {}, "typical": {"shape": [1.78, 1.78]}}, "cut-out faces are squeezed"),
   ({"with_face": None, "size": (224, 240)}, CROPS, ""),
   ({}, {"typical": {"seconds": [0.9, 1.0]}}, ""),
   ({}, {"typical": {"seconds": [4.0, 9.0]}}, ""),
   ({}, {"typical": {"seconds": [0.5, 0.9]}}, "2.00 s are far from the training clips' 0.50 to 0.90 s: --window=0.7"),
   ({}, {"typical": {"seconds": [6.0, 9.0]}}, "2.00 s are far from the training clips' 6.00 to 9.00 s")],
)  # fmt: skip
def test_reasons_to_withhold_an_answer(of, about, words):
  reasons, _ = doubts(sample(**of), **about)
  assert len(reasons) == bool(words)
  assert words in "".join(reasons)


def test_a_sound_that_does_not_fit_suggests_windows():
  _, (text,) = doubts(sample(seconds_of_sound=9.0, window=Window(0.0, 9.0, 0, 225)))
  assert "the frames are from all of the time: --window=5" in text


def test_windows_that_are_mostly_padding():
  for window, about, number in ((2.0, ABOUT, 1), (4.0, ABOUT, 0), (2.0, dataclasses.replace(ABOUT, seconds_of_sound=2.5), 0),
                                (2.0, dataclasses.replace(ABOUT, streams=("image",)), 0)):  # fmt: skip
    assert len(list(doubt.warnings_of_windows(about, window))) == number
