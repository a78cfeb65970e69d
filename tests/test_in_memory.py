"""A clip in memory: the answer of a file with it, and what the model makes of it before it answers."""

import dataclasses

from films import hum, noise, write_film
from flax import nnx
import jax.numpy as jnp
from model_folders import model_folder
import numpy as np
import pytest

from mma_dfer_jax import load_model, predict_video
from mma_dfer_jax.data.arrays import read_arrays
from mma_dfer_jax.engines.engine import Engine
from mma_dfer_jax.errors import UserError


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  """One layer, 32 px."""
  return load_model(model_folder(tmp_path_factory.mktemp("memory") / "model"))


def test_the_answer_of_a_file(tmp_path, model):
  pictures, sound = noise(60), hum(2.4, 44_100)
  path = write_film(tmp_path / "a.mkv", pictures, sound, sample_rate=44_100)
  of_file = predict_video(model, path)
  said = model.predict(np.stack(pictures), sound, 44_100, coded=True)
  assert dataclasses.replace(said, clip=str(path)) == of_file
  uncoded = model.predict(pictures, sound / np.float32(32768), 44_100)
  assert uncoded.probabilities != said.probabilities
  assert uncoded.probabilities == pytest.approx(said.probabilities, abs=0.05)
  assert "no sound" in model.predict(pictures[:20]).warnings[0]
  with pytest.raises(UserError, match="channel=left: choose one of auto, first"):
    model.predict(pictures, sound, 44_100, channel="left")


def test_features(model):
  pictures, sound = noise(20), hum(0.6)
  found = model.features(pictures, sound, 16_000)
  widths = model.cfg.image.width, model.cfg.audio.width, model.cfg.temporal.width
  assert {name: value.shape for name, value in found.items()} == {
    "image": (16, widths[0]), "audio": (widths[1],), "joint": (16, widths[2]), "clip": (widths[2],), "logits": (7,),
  }  # fmt: skip
  assert {value.dtype for value in found.values()} == {np.dtype(np.float32)}
  inputs = [x[None] for x in read_arrays(pictures, sound, 16_000, model.about.inputs)]
  np.testing.assert_allclose(model(*inputs)[0], found["logits"], atol=1e-5)
  module = nnx.merge(model.graphdef, model.tunable, model.frozen)
  joint = module.joint_adaptation(jnp.array(found["image"])[None], jnp.array(found["audio"])[None, None])
  np.testing.assert_allclose(joint[0], found["joint"], atol=1e-5)
  np.testing.assert_allclose(module.temporal(joint)[0][0], found["clip"], atol=1e-5)
  np.testing.assert_allclose(
    module.classifier(jnp.array(found["clip"])[None]).logits[0], found["logits"], atol=1e-5
  )


def test_an_engine_of_logits_alone(model):
  with pytest.raises(UserError, match="gives no features, only logits; load the run"):
    Engine(model.about, model.path).features(noise(3))
