"""The head "text": golden numbers, the files of class vectors, and whose names an answer has."""

import dataclasses
import json
from pathlib import Path
import re

import commands
from conftest import GOLDEN, golden_inputs, small
from flax import nnx
import jax
import jax.numpy as jnp
from model_folders import model_folder
import numpy as np
import pytest
from small_runs import train_here
from test_ablations import model_of, put_in, tiny_config

from mma_dfer_jax import parts
from mma_dfer_jax.config import choose
from mma_dfer_jax.data.data_set import open_data_set
from mma_dfer_jax.disk import sha256_of
from mma_dfer_jax.engines.engine import load_model
from mma_dfer_jax.errors import UserError
from mma_dfer_jax.explain import explain
from mma_dfer_jax.parameters import parameter_shapes, tunable_patterns
from mma_dfer_jax.training.start import open_init, open_stored
from mma_dfer_jax.weights.class_vectors import open_class_vectors, open_text
from mma_dfer_jax.weights.folder import write_folder

NUMBERS = dict(np.load(GOLDEN / "text_head.npz"))
CLASSES = ("down", "up", "left")
TEXT = {"name": "text", "embedding": 32}


def head(width: int = 512, num_classes: int = 11, **fields) -> nnx.Module:
  return parts.read("heads", {"name": "text", **fields}).build(width, num_classes, rngs=nnx.Rngs(params=0))


def write(path: Path, classes=CLASSES, **changes) -> Path:
  vectors = np.random.default_rng(len(classes)).normal(size=(len(classes), 32)).astype(np.float32)
  arrays = {"classes": np.array(classes), "vectors": vectors, "source": np.array("a test")} | changes
  np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
  return path


def test_logits_and_gradients_are_the_golden_ones(float64):
  def loss(clip, vectors):
    module = head()
    module.vectors[...] = vectors
    logits = module(clip).logits
    return -jax.nn.log_softmax(logits)[jnp.arange(4), NUMBERS["head/labels"]].mean(), logits

  given = jnp.asarray(NUMBERS["head/clip"]), jnp.asarray(NUMBERS["head/class_vectors"])
  (value, logits), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(*given)
  np.testing.assert_allclose(logits, NUMBERS["head/logits"], rtol=0, atol=1e-9)
  np.testing.assert_allclose(value, NUMBERS["head/loss"], rtol=0, atol=1e-9)
  for name, gradient in zip(("clip", "class_vectors"), gradients, strict=True):
    np.testing.assert_allclose(gradient, NUMBERS[f"head/grad_{name}"], rtol=0, atol=1e-9)


@pytest.mark.slow
def test_whole_model_gives_the_golden_logits(float64):
  numbers = np.load(GOLDEN / "in_model.npz")
  config = choose(tiny_config(), "head=text")
  config.model.head.embedding = 32
  model = put_in(model_of(config), {"classifier/vectors": numbers["text_head/class_vectors"]})
  video, spectrogram, _ = golden_inputs("tiny_64_7")
  outputs = jax.jit(lambda *clips: model(*clips))(video.astype(np.float64), spectrogram.astype(np.float64))
  np.testing.assert_allclose(outputs.logits, numbers["text_head/logits"], rtol=0, atol=1e-9)


@pytest.mark.parametrize(("fields", "expected"), [
  ({"embedding": 32}, set()),  # the temporal model is as wide
  ({}, {"proj/kernel"}),
  ({"embedding": 32, "learn_scale": True}, {"log_scale"}),
  ({"embedding": 32, "tune_vectors": True}, {"vectors"}),
])  # fmt: skip
def test_what_is_trained(fields, expected):
  cfg = small(head={"name": "text", **fields})
  patterns = [pattern for pattern in tunable_patterns(cfg) if pattern.startswith("classifier/")]
  paths = [path for path in parameter_shapes(cfg) if any(re.fullmatch(pattern, path) for pattern in patterns)]
  assert {path.removeprefix("classifier/") for path in paths} == expected


def test_a_learned_scale_starts_as_clips_and_ends_at_the_largest():
  module = head(8, 3, embedding=8, learn_scale=True)
  clip = jnp.eye(8)[:2]
  cosines = head(8, 3, embedding=8)(clip).logits / 100
  np.testing.assert_allclose(module(clip).logits, cosines / 0.07, rtol=1e-5)
  module.log_scale[...] = jnp.full((1,), 9.0)
  np.testing.assert_allclose(module(clip).logits, cosines * 100, rtol=1e-5)
  assert np.isfinite(jax.grad(lambda x: module(x).logits.sum())(jnp.zeros((1, 8)))).all()


def test_wrong_fields_are_refused():
  for fields, says in (({"scale": 0.0}, "scale=0.0 must lie in"), ({"embedding": 0}, "embedding=0"),
                       ({"tune_vectors": True, "tunable": ("proj/.*",)}, "set one of the two")):  # fmt: skip
    with pytest.raises(UserError, match=says):
      parts.read("heads", {"name": "text", **fields})


def test_a_file_is_reordered_by_name(tmp_path):
  start = open_text(write(tmp_path / "a.npz"), small(num_classes=3, head=TEXT), ("up", "left", "down"))
  there = open_class_vectors(tmp_path / "a.npz", 32)
  np.testing.assert_array_equal(start.read()["classifier/vectors"], there.vectors[[1, 2, 0]])
  assert "reordered by name, from down, up, left" in start.describe()
  assert "a test" in start.describe()


@pytest.mark.parametrize(("changes", "says"), [
  ({"vectors": None}, "lacks vectors"),
  ({"source": None}, "lacks source"),
  ({"vectors": np.ones((3, 31), np.float32)}, r"\(3, 31\), but the model has model.head.embedding=32"),
  ({"vectors": np.ones((2, 32), np.float32)}, r"must be float32 \(3, 32\), it is float32 \(2, 32\)"),
  ({"vectors": np.ones((3, 32))}, r"must be float32 \(3, 32\), it is float64"),
  ({"vectors": np.diag([1, np.nan, 0])[:, [0, 1, 2] * 10 + [0, 0]].astype("f4")}, r"(?s)vectors? of up: .*NaN.*of left: 0, which"),
  ({"vectors": np.eye(3, 32, dtype="f4") * np.array([[1e-30], [1], [1e9]], "f4")}, "the vectors of down, left: a length outside"),
  ({"vectors": np.eye(3, 32, dtype="f4")[[0, 0, 1]] * np.float32(7)}, "of down, up: the direction of another class"),
  ({"classes": np.array(["up", "up", "left"])}, "names twice: up"),
  ({"classes": np.array(["up", "", "left"])}, "is empty"),
  ({"classes": np.array(CLASSES, object)}, "no .npz file of names and numbers"),
  ({"source": np.array(7)}, "source must be a text"),
  ({"classes": np.arange(3)}, "classes must be names"),
])  # fmt: skip
def test_files_that_hold_anything_else_are_refused(tmp_path, changes, says):
  with pytest.raises(UserError, match=says):
    open_class_vectors(write(tmp_path / "a.npz", **changes), 32)


def test_other_classes_are_refused_with_both_lists(tmp_path):
  with pytest.raises(UserError, match=r"(?s)has down, up, left.*needed are down, up, right"):
    open_text(write(tmp_path / "a.npz"), small(num_classes=3, head=TEXT), ("down", "up", "right"))
  for file, says in (
    (tmp_path / "none.npz", "No such file"),
    (tmp_path, "Is a directory"),
    (Path(__file__), r"no \.npz file"),
  ):
    with pytest.raises(UserError, match=says):
      open_class_vectors(file, 32)


@pytest.fixture(scope="module")
def run(tmp_path_factory, data_dir) -> Path:
  """A trained model with this head and a layer pool; the file of its vectors, of classes in another order, lies beside."""
  folder = tmp_path_factory.mktemp("text")
  names = open_data_set(data_dir, "clips").classes
  train_here(folder / "run", data_dir, **overrides(write(folder / "a.npz", names[::-1])))
  return folder / "run"


def overrides(file: Path) -> dict:
  return {"choices": "head=text,layer_pool=attention", "pretrained.text": str(file), "model.head.embedding": 32,
          "model.layer_pool.streams": True, "num_epochs": 1}  # fmt: skip


@pytest.mark.slow
def test_a_run_says_where_its_vectors_are_from_and_what_its_layers_weigh(run, data_dir):
  said, report = json.loads((run / "run.json").read_text()), (run / "report.md").read_text()
  file = run.with_name("a.npz")
  assert said["class_vectors"] == {"source": "a test", "sha256": sha256_of(file)}
  for words in ("a test; reordered by name", "Layers of the picture", "| weight α | 0.", "β = "):
    assert words in report
  other = write(run.with_name("b.npz"), said["classes"], vectors=np.eye(7, 32, dtype=np.float32))
  with pytest.raises(UserError, match="starts text"):
    train_here(run, data_dir, **overrides(other))
  with pytest.raises(UserError, match="text is empty"):
    train_here(run, data_dir, **overrides(other) | {"pretrained.text": ""})


@pytest.mark.slow
def test_other_vectors_answer_with_other_names(run, tmp_path):
  engine = load_model(run)
  rng, inputs = np.random.default_rng(0), engine.about.inputs
  clips = (
    rng.integers(0, 256, (2, *inputs.video_shape), np.uint8),
    rng.normal(size=(2, *inputs.audio_shape)).astype("f4"),
  )
  same = engine.with_classes(run.with_name("a.npz"))
  assert same.about.classes == engine.about.classes[::-1]
  logits = engine(*clips)
  np.testing.assert_array_equal(same(*clips), logits[:, ::-1])
  other = engine.with_classes(write(tmp_path / "two.npz", ("laughs", "weeps")))
  assert other(*clips).shape == (2, 2)
  assert (other.about.classes, other.about.origin["class_vectors"]["source"]) == (
    ("laughs", "weeps"),
    "a test",
  )
  assert len({one.about.fingerprint for one in (engine, same, other)}) == 3
  found = explain(engine, clips[0][0], clips[1][0])
  np.testing.assert_allclose([sum(weights) for weights in found.layers.values()], [1, 1], rtol=1e-5)
  assert sum(found.factors.values()) == pytest.approx(2)
  with pytest.raises(UserError, match="its own classes only"):
    load_model(model_folder(tmp_path / "linear")).with_classes(tmp_path / "two.npz")
  flags = f"--model={tmp_path / 'linear'}", "--port=0", f"--class_vectors={tmp_path / 'two.npz'}"
  status, _, err = commands.run("demo_page", *flags)
  assert (status, "its own classes only" in err) == (1, True)


@pytest.mark.slow
def test_weights_of_a_run_and_a_folder_made_of_it_know_their_classes(run, tmp_path):
  stored = open_stored(run)
  kept = write_folder(tmp_path / "folder", stored)
  assert kept["class_vectors"]["source"] == "a test"
  classes = stored.about["classes"][::-1]
  start = open_init(tmp_path / "folder", stored.model, classes)
  np.testing.assert_array_equal(start.read()["classifier/vectors"], stored.read()["classifier/vectors"][::-1])
  other = open_init(run, dataclasses.replace(stored.model, num_classes=2), ("laughs", "weeps"))
  assert {path for path in other.taken if path.startswith("classifier")} == {"classifier/proj/kernel"}
