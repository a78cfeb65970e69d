"""Every engine: whether it opens what it should, says what is so, and answers as JAX does in float32."""

import importlib
import json
from pathlib import Path
import shutil
import subprocess
import sys

from conftest import GOLDEN, ROOT
from flax import nnx
import jax
from model_folders import model_folder
import numpy as np
import pytest

from mma_dfer_jax import MmaDfer, load_model
from mma_dfer_jax.engines import engine, stablehlo
from mma_dfer_jax.engines.engine import Engine, check_inputs, describe
from mma_dfer_jax.errors import UserError
from mma_dfer_jax.inputs import Inputs

NAMES = {path.stem for path in Path(engine.__file__).parent.glob("*.py")} - {"__init__", "engine"}


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> dict[str, Path]:
  """Something to open for each engine; a new one needs an entry here."""
  place = tmp_path_factory.mktemp("engines")
  folder = model_folder(place / "model")
  for precision in ("float32", "bfloat16"):
    command = [
      f"--model={folder}",
      f"--out={place / precision}.jax",
      f"--precision={precision}",
      "--platforms=cpu",
    ]
    subprocess.run([sys.executable, "-m", "mma_dfer_jax.export", *command], cwd=ROOT, check=True)
  return {"jax": folder, "stablehlo": place / "float32.jax"}


def batch(inputs: Inputs, clips: int = 2):
  rng = np.random.default_rng(3)
  video = rng.integers(0, 256, (clips, *inputs.video_shape), np.uint8)
  return video, 0.5 * rng.standard_normal((clips, *inputs.audio_shape), np.float32)


def test_every_engine_opens_its_own_and_answers_as_jax(paths):
  assert paths.keys() == NAMES
  reference = load_model(paths["jax"])
  inputs = batch(reference.about.inputs)
  expected = reference(*inputs)
  assert np.abs(expected[0] - expected[1]).max() > 1e-2, "two clips, two answers"
  for name, path in paths.items():
    module = importlib.import_module(f"mma_dfer_jax.engines.{name}")
    assert [
      other for other in NAMES if importlib.import_module(f"mma_dfer_jax.engines.{other}").opens(path)
    ] == [name]
    answering = load_model(path)
    assert isinstance(answering, Engine)
    assert type(answering).__module__ == module.__name__
    assert answering.about == describe(path)
    for field in ("inputs", "streams", "classes", "class_order", "recipe", "origin", "precision"):
      assert getattr(answering.about, field) == getattr(reference.about, field), field
    logits = answering(*inputs)
    assert (logits.shape, logits.dtype) == ((2, 7), np.float32)
    np.testing.assert_allclose(logits, expected, atol=1e-5, rtol=0)
    text = repr(answering)
    assert len(text.splitlines()) == 5
    for words in (str(path), "happy, sad", "(B, 16, 32, 32, 3)", "precision: float32"):
      assert words in text
    with pytest.raises(UserError, match="has no steps"):
      load_model(path, step="best")


def test_the_precision_is_kept_unless_another_is_asked_for(paths):
  folder, exported = paths["jax"], paths["stablehlo"].with_name("bfloat16.jax")
  exact, half = load_model(folder), load_model(folder, precision="bfloat16")
  inputs = batch(exact.about.inputs)
  dtypes = {str(leaf.dtype) for leaf in jax.tree.leaves((half.tunable, half.frozen))}
  assert dtypes == {"bfloat16", "float32"}, "the classifier stays in float32"
  difference = np.abs(half(*inputs) - exact(*inputs)).max()
  assert 1e-4 < difference < 0.2
  assert load_model(exported).about.precision == "bfloat16"
  np.testing.assert_allclose(load_model(exported)(*inputs), half(*inputs), atol=0.02)
  assert np.abs(load_model(exported)(*inputs) - exact(*inputs)).max() > 1e-4
  assert json.loads(stablehlo.json_beside(exported).read_text())["precision"] == "bfloat16"
  with pytest.raises(UserError, match=r"exported in bfloat16; for float32 export the model again"):
    load_model(exported, precision="float32")
  with pytest.raises(UserError, match="precision='int8': choose one of float32, bfloat16"):
    load_model(folder, precision="int8")


def test_floating_pixels_are_those_of_uint8(paths):
  answering = load_model(paths["jax"])
  video, sound = batch(answering.about.inputs)
  np.testing.assert_allclose(answering(video / np.float32(255), sound), answering(video, sound), atol=1e-5)
  with pytest.raises(UserError, match="takes video as uint8 only"):
    load_model(paths["stablehlo"])(video / np.float32(255), sound)


def test_wrong_inputs_are_all_named():
  inputs = Inputs(image_size=32, audio_shape=(64, 32))
  video, sound = batch(inputs)
  check_inputs(inputs, video, sound)
  check_inputs(inputs, video / 255.0, sound)
  nan = sound.copy()
  nan[0, 0, 0] = np.nan
  for given, words in [
    ((video[:1], sound), ["1 videos, 2 spectrograms"]),
    ((video[:0], sound[:0]), ["at least one"]),
    ((video[:, :5], nan), [r"video must be \(B, 16, 32, 32, 3\); it is \(2, 5, 32, 32, 3\)", "NaN"]),
    (
      (video.astype(np.int32), sound[..., :8]),
      ["it is int32, 0 to 255", r"spectrogram must be \(B, 64, 32\)"],
    ),
    ((video.astype(np.float32), sound), [r"floating point in \[0, 1\]; it is float32, 0.0 to 255.0"]),
    ((video * np.nan, sound.astype(np.int16)), ["nan", "spectrogram must be floating point; it is int16"]),
  ]:
    for word in words:
      with pytest.raises(UserError, match=word):
        check_inputs(inputs, *given)


def test_what_cannot_be_opened_is_said(paths, tmp_path):
  with pytest.raises(UserError, match=r"nowhere is not there; a model is:(.|\n)*run\.json(.|\n)*model\.json"):
    load_model(tmp_path / "nowhere")
  with pytest.raises(UserError, match="must be converted first"):
    load_model(GOLDEN / "tiny_reference_checkpoint.pth")
  (tmp_path / "run.json").write_text(json.dumps({"version": "0.1.0"}))
  with pytest.raises(UserError, match=r"written by mma_dfer_jax 0\.1\.0"):
    load_model(tmp_path)
  for file in (paths["stablehlo"], stablehlo.json_beside(paths["stablehlo"])):
    shutil.copy(file, tmp_path / file.name)
  copy = tmp_path / paths["stablehlo"].name
  copy.write_bytes(copy.read_bytes() + b"x")
  with pytest.raises(UserError, match=r"is damaged, or .* speaks of another file"):
    load_model(copy)
  stablehlo.json_beside(copy).write_text("{}")
  with pytest.raises(UserError, match="export the model again"):
    load_model(copy)


def test_jax_starts_only_when_something_is_opened():
  code = "import sys, mma_dfer_jax, mma_dfer_jax.engines.engine, mma_dfer_jax.engines.stablehlo; assert 'jax' not in sys.modules"
  subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_model_prints_in_five_lines(paths):
  answering = load_model(paths["jax"])
  model = nnx.merge(answering.graphdef, answering.tunable, answering.frozen)
  assert isinstance(model, MmaDfer)
  assert str(model) == repr(model)
  assert len(repr(model).splitlines()) == 5
  total = sum(
    value.size for part in (answering.tunable, answering.frozen) for _, value in nnx.to_flat_state(part)
  )
  for words in ("image encoders/mae", "fusion fusion/bottleneck", f"{total:,}", "classes: 7"):
    assert words in repr(model)
