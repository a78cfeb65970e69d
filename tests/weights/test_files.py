"""Files of weights: the same bits in and out, sizes from shapes, and every broken file named."""

import json
from pathlib import Path
import re
import subprocess
import sys

from conftest import TINY, golden_json, golden_weights, tiny
import ml_dtypes
from model_folders import authors_state, with_layers
import numpy as np
import pytest
import safetensors.numpy
from torch_files import View, write_checkpoint, write_torch_file

from mma_dfer_jax.errors import UserError
from mma_dfer_jax.heads import linear
from mma_dfer_jax.weights.files import Weights, held, open_weights, write_safetensors
from mma_dfer_jax.weights.folder import convert_checkpoint, open_folder
from mma_dfer_jax.weights.mma_dfer import export, find_model, open_checkpoint, with_classes
from mma_dfer_jax.weights.names import name_table, unused_shapes, used_shapes

DFEW = ("happy", "sad", "neutral", "angry", "surprise", "disgust", "fear")


CFG = with_layers(2)


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
  return authors_state(CFG)


@pytest.fixture(scope="module")
def whole_file(weights, tmp_path_factory) -> Path:
  return write_checkpoint(tmp_path_factory.mktemp("whole") / "whole.pth", weights)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.float64])
def test_all_tensors_come_and_go_with_the_same_bits(weights, tmp_path, dtype):
  cast = {name: tensor.astype(dtype) for name, tensor in weights.items()}
  convert_checkpoint(write_checkpoint(tmp_path / "x.pth", cast), tmp_path / "model", classes="dfew")
  export(open_folder(tmp_path / "model"), None, tmp_path / "back.safetensors")
  found = open_weights(tmp_path / "back.safetensors").tensors
  assert found.keys() == cast.keys()
  for name, tensor in cast.items():
    assert found[name].dtype == tensor.dtype
    assert found[name].read().tobytes() == tensor.tobytes(), name


@pytest.mark.slow
def test_pytorch_reads_what_is_written(weights, whole_file, tmp_path):
  pytest.importorskip("torch")
  export(with_classes(open_checkpoint(whole_file), "dfew"), tmp_path / "x.pth", tmp_path / "x.safetensors")
  # In a process of its own: other tests check that nothing else imports it.
  code = (
    "import sys, torch; loaded = torch.load(sys.argv[1], weights_only=True); assert loaded['epoch'] == 25; "
    "import safetensors.torch; other = safetensors.torch.load_file(sys.argv[2]); "
    "assert len(other) == len(loaded['state_dict']) and all(torch.equal(other[n], t) for n, t in loaded['state_dict'].items())"
  )
  subprocess.run([sys.executable, "-c", code, tmp_path / "x.pth", tmp_path / "x.safetensors"], check=True)
  raw = safetensors.numpy.load_file(tmp_path / "x.safetensors")
  assert all(raw[f"module.{name}"].tobytes() == tensor.tobytes() for name, tensor in weights.items())
  for file in ("x.pth", "x.safetensors"):  # both say classes and heads themselves
    again = open_checkpoint(tmp_path / file)
    assert (again.model, again.about["assumed"], tuple(again.about["classes"])) == (CFG, {}, DFEW)
    with pytest.raises(UserError, match=r"--heads=8, but .* says 4 for model\.image, 4 for model\.audio"):
      open_checkpoint(tmp_path / file, heads=8)


def test_an_ablated_model_says_its_parts(tmp_path):
  cfg = with_layers(
    2, fusion={"name": "none"}, temporal={"name": "mean", "width": 32}, prompts={"name": "none"}
  )
  tensors = {name: np.ones(shape, np.float32) for name, shape in used_shapes(cfg).items()}
  said = {"model": cfg.to_fields(), "classes": list("abcdefg")}
  assert open_checkpoint(write_checkpoint(tmp_path / "x.pth", tensors, mma_dfer_jax=said)).model == cfg
  del tensors["vision_proj.bias"]
  write_checkpoint(tmp_path / "y.pth", tensors, mma_dfer_jax=said)
  with pytest.raises(UserError, match=r"missing \(1\): vision_proj\.bias"):
    open_checkpoint(tmp_path / "y.pth")


@pytest.mark.parametrize("cfg", [
  tiny(image_size=32, fusion={"width": 24}, prompts={"prompts_per_stage": 5, "layers_per_stage": 2},
       **{stream: {"width": 192, "heads": 3, "mlp_dim": 256, "depth": 4} for stream in ("image", "audio")}),
  tiny(image_size=96, audio_shape=(192, 128), prompts={"layers_per_stage": 1},
       temporal={"depth": 2, "width": 24, "head_dim": 4, "mlp_dim": 40},
       **{stream: {"width": 32, "heads": 4, "mlp_dim": 64, "depth": 3} for stream in ("image", "audio")}),
])  # fmt: skip
def test_sizes_come_from_the_shapes(cfg):
  zeros = {name: np.broadcast_to(np.float32(0), shape) for name, shape in used_shapes(cfg).items()}
  found, assumed = find_model(Weights(Path("x.pth"), held(zeros)), None)
  assert found == cfg
  assert assumed.keys() == {"heads", "temporal.heads"}


def test_class_names_are_never_guessed(whole_file, tmp_path):
  for given, words in ((None, "7 classes .* --classes=dfew or"), ("mafw", "11 class names"),
                       ("a,b,b,c,d,e,f", "different names")):  # fmt: skip
    with pytest.raises(UserError, match=words):
      convert_checkpoint(whole_file, tmp_path / "model", classes=given)
  assert not list(tmp_path.iterdir())


def test_tensors_that_never_took_part_start_as_the_originals(weights, tmp_path):
  without = {name: tensor for name, tensor in weights.items() if name not in unused_shapes(CFG)}
  assert len(without) == len(weights) - 8
  file = write_checkpoint(tmp_path / "without.pth", without)
  export(with_classes(open_checkpoint(file), "dfew"), None, tmp_path / "x.safetensors")
  raw = open_weights(tmp_path / "x.safetensors")
  assert raw.shapes == {name: tensor.shape for name, tensor in weights.items()}
  fresh = golden_json("build_tiny_64_7")["fresh_initialisation_by_pattern"]
  for name in ("image_encoder.head.weight", "audio_model.head.weight", "image_encoder.head.bias",
               "temporal_net.temporal_transformer.layers.0.0.fn.norm2.weight"):  # fmt: skip
    found, theirs = raw.tensors[name].read(), fresh[name]
    assert found.mean() == pytest.approx(theirs["mean"], abs=3e-3)
    assert found.std() == pytest.approx(theirs["std"], rel=0.1)


def test_what_is_there_is_not_overwritten(whole_file, tmp_path):
  (tmp_path / "x.safetensors").write_text("mine")
  with pytest.raises(UserError, match="exists already"):
    export(with_classes(open_checkpoint(whole_file), "dfew"), None, tmp_path / "x.safetensors")
  with pytest.raises(UserError, match=r"NaN.*\n.*bad"):
    write_safetensors(tmp_path / "y.safetensors", held({"bad": np.full(3, np.nan, "f4")}), {}, whole_file)
  assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


def test_used_and_unused_together_are_the_file_of_the_original():
  theirs = {name: tensor.shape for name, tensor in golden_weights("tiny_64_7").items()}
  assert used_shapes(TINY) | unused_shapes(TINY) == theirs


def test_a_part_that_such_a_file_has_no_place_for_is_named(monkeypatch):
  monkeypatch.delattr(linear, "AUTHORS")
  with pytest.raises(UserError, match=r"(?s)no place.*classifier"):
    name_table(CFG)


# --- files that are not what they should be -----------------------------------------------------------------------


def broken_files(state: dict[str, np.ndarray], whole: bytes) -> dict[str, tuple[object, str]]:
  """Content (bytes, or a state dict) and a word that the message must have, by name."""
  header = json.dumps({"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4]}}).encode()
  lying = len(header).to_bytes(8, "little") + header + bytes(4)
  ours = {"model": CFG.to_fields(), "classes": list("abcdefg")}
  nan = state | {"vision_proj.bias": np.full(32, np.nan, np.float32)}
  missing = {n: t for n, t in state.items() if n not in ("vision_proj.bias", "our_classifier.weight")}
  return {
    "cut.pth": (whole[: len(whole) // 2], "cut short"),
    "lying.safetensors": (lying, r"no whole \.safetensors file"),
    "huge.safetensors": ((10**15).to_bytes(8, "little") + b"{}", r"huge\.safetensors"),
    "html.safetensors": (b"<html>quota exceeded</html>", "HTML"),
    "integers.pth": ({"state_dict": state | {"our_classifier.bias": np.zeros(7, np.int64)}}, r"our_classifier\.bias: int64"),
    "beyond.pth": ({"state_dict": state | {"vision_proj.bias": np.full(32, 1e300)}}, "joint_adaptation/proj/bias"),
    "wide.pth": ({"state_dict": state | {"image_encoder.pos_embed": np.zeros((1, 10**9, 0), "f4")}}, r"wrong shape \(1\)"),
    "nan.pth": ({"state_dict": nan}, r"NaN.*\n.*joint_adaptation/proj/bias"),
    "missing.pth": ({"state_dict": missing}, r"missing \(2\): our_classifier\.weight, vision_proj\.bias"),
    "extra.pth": ({"state_dict": state | {"more": np.zeros(3, "f4")}}, r"unexpected \(1\): more"),
    "shape.pth": ({"state_dict": state | {"vision_proj.bias": np.zeros(31, "f4")}}, r"wrong shape \(1\): vision_proj\.bias"),
    "nothing.pth": ({"epoch": 3}, "holds no state dict"),
    "list.pth": ([1, 2], "not a state dict"),
    "twice.pth": ({"state_dict": {"a": np.zeros(1, "f4"), "module.a": np.zeros(1, "f4")}}, "holds a twice, as a and module.a"),
    "number.pth": ({"epoch": 10**5000, "state_dict": missing}, r"missing \(2\)"),
    "deep.pth": ({"state_dict": state | {"image_encoder.blocks.99999.norm1.weight": np.zeros(48, "f4")}}, "no such model has more"),
    "escape.pth": ({"state_dict": state | {"\x1b[2Jgone": np.zeros(1, "f4")}}, r"unexpected \(1\): \\x1b\[2Jgone"),
    "model.pth": ({"state_dict": state, "mma_dfer_jax": {"model": 3}}, "describes no model"),
    "part.pth": ({"state_dict": state, "mma_dfer_jax": ours | {"model": ours["model"] | {"head": {"name": "../x"}}}}, "no '../x' in heads"),
    "fields.pth": ({"state_dict": state, "mma_dfer_jax": ours | {"model": ours["model"] | {"image": [1]}}}, "describes no model"),
    "large.pth": ({"state_dict": state, "mma_dfer_jax": ours | {"model": ours["model"] | {"num_classes": 10**9}}}, "can be built: num_classes=1000000000"),
    "objects.pth": ({"state_dict": state, "mma_dfer_jax": {"recipe": {1, 2}}}, "damaged notes under mma_dfer_jax"),
    "numbers.pth": ({"state_dict": state, "mma_dfer_jax": ours | {"classes": [1] * 7}}, "must name 7 classes"),
    "nest.pth": ({"state_dict": state, "mma_dfer_jax": ours | {"tunable": [[[]]], "trained_as": []}}, "no regular expression"),
    "classes.pth": ({"state_dict": state, "mma_dfer_jax": ours | {"classes": ["a"]}}, "must name 7 classes, as its model has, not 1"),
    "block.pth": ({"state_dict": {n: t for n, t in state.items() if "image_encoder.blocks.1." not in n}}, r"missing \(12\)"),
  }  # fmt: skip


@pytest.mark.slow
def test_every_broken_file_is_named_and_leaves_nothing(weights, whole_file, tmp_path):
  for name, (content, words) in broken_files(weights, whole_file.read_bytes()).items():
    path = tmp_path / name
    if isinstance(content, bytes):
      path.write_bytes(content)
    else:
      write_torch_file(path, content)
    with pytest.raises(UserError) as error:
      convert_checkpoint(path, tmp_path / "out" / "model", classes="dfew")
    assert re.search(words, str(error.value)), f"{name}: {error.value}"
    assert name in str(error.value)
    assert not (tmp_path / "out" / "model").exists()


def test_expanded_tensors_cannot_fill_the_memory(weights, tmp_path):
  """A file of some kilobytes whose tensors claim gigabytes."""
  state = {name: View(np.zeros(1, np.float32), (30_000, 10_000), (0, 0)) for name in weights}
  write_torch_file(tmp_path / "bomb.pth", {"state_dict": state})
  with pytest.raises(UserError, match=r"bomb\.pth"):
    convert_checkpoint(tmp_path / "bomb.pth", tmp_path / "model", classes="dfew")
