"""A model that keeps half of the frames: answers, exported files, what training logs."""

import json

from commands import run
import jax.numpy as jnp
from model_folders import stored, with_layers
import numpy as np
import pytest

from mma_dfer_jax import load_model
from mma_dfer_jax.data.fbank import missing_spectrogram
from mma_dfer_jax.errors import UserError
from mma_dfer_jax.parts import Outputs
from mma_dfer_jax.training.recognition import of_frames
from mma_dfer_jax.weights.folder import write_folder

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  path = tmp_path_factory.mktemp("masked") / "model"
  mask = {"name": "soft", "form": "bias", "keep": 8, "after": 1}
  write_folder(path, stored(path, with_layers(2, audio_shape=(64, 32), frame_mask=mask)))
  return path


@pytest.fixture(scope="module")
def clip(data_dir):
  return next(data_dir.glob("clips/**/*.mp4"))


def test_training_logs_what_the_mask_does():
  weights = np.array([[0.5, 0, 1.5], [1, 1, 1]])
  found = of_frames(Outputs(np.zeros((2, 7)), {"frame_weights": jnp.asarray(weights)}))
  np.testing.assert_allclose(found["frame_weight_min"], [0.5, 1])
  shares = np.array([0.25, 0.75])
  np.testing.assert_allclose(
    found["frame_weight_entropy"], [-(shares * np.log(shares)).sum(), np.log(3)], rtol=1e-6
  )
  assert of_frames(Outputs(np.zeros((2, 7)))) == {}


def test_an_answer_says_which_frames_counted(trained, clip, tmp_path):
  asked = f"--model={trained}", "--faces=none", "--force"
  status, _, err = run("predict", *asked, f"--out={tmp_path}", clip)
  assert status == 0, err
  answer = json.loads((tmp_path / f"{clip.stem}.json").read_text())
  of_frames = answer["frame_weights"]
  assert len(of_frames) == 16
  assert sum(one["weight"] > 0 for one in of_frames) == 8
  assert sum(one["weight"] for one in of_frames) == pytest.approx(8, abs=1e-5)
  times = [one["seconds"] for one in of_frames]
  assert times == sorted(times)
  assert answer["start"] <= times[0] < times[-1] < answer["end"]
  status, _, err = run("predict", *asked, f"--out={tmp_path}", "--keep_frames=4", "--window=1", clip)
  assert (status, "warning: the model goes on with 4 of 16 frames, but was trained with 8" in err) == (
    0,
    True,
  )
  windows = json.loads((tmp_path / f"{clip.stem}.json").read_text())["windows"]
  assert [sum(one["weight"] > 0 for one in window["frame_weights"]) for window in windows] == [4] * len(
    windows
  )
  assert all(any("trained with 8" in words for words in window["warnings"]) for window in windows)
  assert (tmp_path / f"{clip.stem}.png").stat().st_size > 10_000
  status, _, err = run("predict", *asked, f"--out={tmp_path}", "--keep_frames=8", clip)
  assert (status, "keeps 8 already" in err) == (1, True)


@pytest.mark.parametrize("layers", [2, 4])
def test_a_mask_that_kept_all_frames_in_training_keeps_fewer_later(layers, tmp_path):
  path = tmp_path / "model"
  write_folder(path, stored(path, with_layers(layers, audio_shape=(64, 32), frame_mask={"name": "soft"})))
  model = load_model(path)
  rng = np.random.default_rng(0)
  video = rng.integers(0, 256, (1, *model.about.inputs.video_shape), np.uint8)
  sound = missing_spectrogram(*model.about.inputs.audio_shape)[None]
  weights = model.keeping_frames(3).outputs(video, sound)["frame_weights"]
  assert (weights > 0).sum() == 3
  for number in (0, 2, 16):
    with pytest.raises(UserError, match="give a number from 3 to 15"):
      model.keeping_frames(number)


def test_exported_files_say_it_too(trained, tmp_path):
  model = load_model(trained)
  rng = np.random.default_rng(0)
  video = rng.integers(0, 256, (2, *model.about.inputs.video_shape), np.uint8)
  sound = np.stack([missing_spectrogram(*model.about.inputs.audio_shape)] * 2)
  expected = model.outputs(video, sound)
  assert expected.keys() == {"logits", "frame_weights"}
  np.testing.assert_array_equal(model(video, sound), expected["logits"])
  for name, flags in (("m.jax", ["--platforms=cpu"]), ("m.onnx", ["--format=onnx"])):
    status, _, err = run("export", f"--model={trained}", f"--out={tmp_path / name}", *flags)
    assert status == 0, err
    exported = load_model(tmp_path / name)
    found = exported.outputs(video, sound)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
      np.testing.assert_allclose(found[key], value, atol=1e-5, err_msg=f"{name} {key}")
    with pytest.raises(UserError, match="fewer need a model"):
      exported.keeping_frames(4)
  said = json.loads((tmp_path / "m.jax.json").read_text())
  assert [(one["name"], one["shape"]) for one in said["extra_outputs"]] == [("frame_weights", ["b", 16])]
