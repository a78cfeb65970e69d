"""Model folders: whole or not there, every change noticed, and nothing that a stranger's model.json says is executed."""

import dataclasses
import json
from pathlib import Path
import shutil

from model_folders import authors_state, random_parameters, with_layers
import numpy as np
import pytest
import safetensors.numpy
from torch_files import write_checkpoint

from mma_dfer_jax.errors import UserError
from mma_dfer_jax.weights import folder as folders
from mma_dfer_jax.weights.files import held
from mma_dfer_jax.weights.folder import convert_checkpoint, open_folder, write_folder
from mma_dfer_jax.weights.mma_dfer import open_checkpoint, with_classes

CFG = with_layers(2)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
  return write_checkpoint(tmp_path_factory.mktemp("two") / "two.pth", authors_state(CFG))


@pytest.fixture(scope="module")
def whole(checkpoint) -> Path:
  convert_checkpoint(checkpoint, checkpoint.parent / "model", classes="dfew")
  return checkpoint.parent / "model"


@pytest.fixture
def copy(whole, tmp_path) -> Path:
  return Path(shutil.copytree(whole, tmp_path / "model"))


def change(folder: Path, **fields) -> None:
  about = json.loads((folder / "model.json").read_text())
  (folder / "model.json").write_text(json.dumps(about | fields))


def test_a_folder_holds_the_model_and_says_what_it_is(whole, checkpoint):
  folder = open_folder(whole)
  assert folder.model == CFG
  assert sorted(path.name for path in whole.iterdir()) == ["model.json", "model.safetensors"]
  ours = random_parameters(CFG)
  found = folder.read()
  assert found.keys() == ours.keys()
  assert all(found[path].tobytes() == array.tobytes() for path, array in ours.items())
  assert {name for name in folder.tensors if name not in ours} >= {"unused.audio_model.head.weight"}
  assert folder.about["classes"][0] == "happy"
  assert folder.about["assumed"].keys() == {"heads", "temporal.heads"}
  assert (folder.about["source"]["file"], folder.about["source"]["epoch"]) == ("two.pth", 25)
  counts = folder.about["counts"]
  assert counts["all"] == {
    "tensors": len(folder.tensors),
    "elements": sum(t.nbytes // 4 for t in folder.tensors.values()),
  }
  # The original counts `to_q` and `to_kv`, one prompt update per stage, norm2 among what it trains, heads among the rest.
  assert counts["trained in the original"]["tensors"] == counts["tunable"]["tensors"] + 3 + 4
  assert counts["frozen in the original"]["tensors"] == counts["frozen"]["tensors"] + 4


def test_the_folder_says_whose_label_order_it_has(whole):
  stored = open_folder(whole)
  stored = dataclasses.replace(stored, about=stored.about | {"classes": None})
  for flag, first, says in (("dfew", "happy", "DFEW"), ("a, b,c,d,e,f,g", "a", "as given by --classes")):
    named = with_classes(stored, flag)
    assert named.about["classes"][0] == first
    assert says in named.about["class_order"]
    with pytest.raises(UserError, match=f"--classes=g,f,e,d,c,b,a, but .* has {first}"):
      with_classes(named, "g,f,e,d,c,b,a")


def test_every_changed_byte_is_noticed(copy):
  file = copy / "model.safetensors"
  content = bytearray(file.read_bytes())
  rng = np.random.default_rng(0)
  for place in rng.integers(0, len(content), 12):
    content[place] ^= 4
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"damaged|no whole|are no weights"):
      open_folder(copy).read()
    content[place] ^= 4
  file.write_bytes(content[:-1])
  with pytest.raises(UserError, match=r"no whole \.safetensors"):
    open_folder(copy)
  file.unlink()
  with pytest.raises(UserError, match=r"model\.safetensors"):
    open_folder(copy)


def test_missing_unexpected_and_wrong_tensors_are_all_named(copy):
  tensors = safetensors.numpy.load_file(copy / "model.safetensors")
  del tensors["classifier/bias"], tensors["fusion/1/image_gate"]
  tensors |= {"more": np.zeros(1, "f4"), "temporal/cls_token": np.zeros((1, 1, 8), "f4")}
  safetensors.numpy.save_file(tensors, copy / "model.safetensors")
  with pytest.raises(UserError) as error:
    open_folder(copy)
  for words in ("missing (2): classifier/bias, fusion/1/image_gate", "unexpected (1): more",
                "temporal/cls_token (1, 1, 8), not (1, 1, 32)"):  # fmt: skip
    assert words in str(error.value)


@pytest.mark.parametrize(("fields", "words"), [
  ({"classes": "happy"}, "classes must be a list"),
  ({"classes": [1] * 7, "sha256": None}, r"sha256 must be a str"),
  ({"classes": [1] * 7}, "classes must be different names"),
  ({"classes": ["a"]}, "names 1 classes, but its model has 7"),
  ({"model": []}, "model must be a dict"),
  ({"model": {}}, "has the fields"),
  ({"tunable": [1]}, "tunable is no regular expression"),
  ({"model": CFG.to_fields() | {"head": {"name": "os.system"}}}, "there is no 'os.system' in heads"),
  ({"model": CFG.to_fields() | {"head": {"name": ["linear"]}}}, r"\('linear',\)"),
  ({"model": CFG.to_fields() | {"head": {"name": "linear", "tunable": [1]}}}, "tunable|pattern"),
  ({"model": CFG.to_fields() | {"fusion": 5}}, "describes no model"),
  ({"model": CFG.to_fields() | {"inputs": 5}}, "cannot be built"),
  ({"model": CFG.to_fields() | {"inputs": {"image_size": "64"}}}, "image_size"),
  ({"model": CFG.to_fields() | {"image": {"name": "mae", "width": "48"}}}, "width.*'48'"),
  ({"model": CFG.to_fields() | {"image": {"name": "mae", "mean": ["a", "b", "c"], "std": ["a", "b", "c"]}}}, "describes no model"),
  ({"model": CFG.to_fields() | {"image": {"name": "mae", "depth": 10**6}}}, "must be a multiple|can be built"),
  ({"model": CFG.to_fields() | {"temporal": {"name": "transformer", "depth": 10**6}}}, "temporal.depth=1000000"),
  ({"model": CFG.to_fields() | {"inputs": {"image_size": 16 * 10**9}}}, "inputs.image_size"),
])  # fmt: skip
def test_a_strangers_model_json_ends_in_a_message(copy, fields, words):
  change(copy, **fields)
  with pytest.raises(UserError, match=f"(?s){words}") as error:
    open_folder(copy)
  assert "model.json" in str(error.value)


def test_what_is_no_folder_of_this_version(copy, tmp_path):
  with pytest.raises(UserError, match="no model folder: it has no model"):
    open_folder(tmp_path)
  for text in ("{", "[" * 10**5, "[]"):
    (copy / "model.json").write_text(text)
    with pytest.raises(UserError, match=r"model\.json is damaged"):
      open_folder(copy)
  (copy / "params").mkdir()
  (copy / "model.json").write_text('{"version": "0.1.0"}')
  with pytest.raises(UserError, match=r"0\.1\.0, which .* convert the source again"):
    open_folder(copy)


def test_a_folder_is_written_whole_or_not_at_all(checkpoint, tmp_path, monkeypatch):
  stored = with_classes(open_checkpoint(checkpoint), "dfew")

  def stop() -> np.ndarray:
    raise KeyboardInterrupt

  interrupted = dict(stored.tensors)
  interrupted["temporal/cls_token"] = held({"": np.zeros((1, 1, 32), "f4")})[""]
  object.__setattr__(interrupted["temporal/cls_token"], "read", stop)
  with pytest.raises(KeyboardInterrupt):
    write_folder(tmp_path / "model", type(stored)(stored.path, stored.model, stored.about, interrupted, ""))

  def fail(folder: Path) -> dict:
    assert open_folder(folder).read()
    raise UserError("the logits differ")

  with pytest.raises(UserError, match="the logits differ"):
    write_folder(tmp_path / "model", stored, fail)
  monkeypatch.setattr(folders, "free_bytes", lambda path: 10**6)
  with pytest.raises(UserError, match=r"needs \d MiB, but 1 MiB are free"):
    write_folder(tmp_path / "model", stored)
  assert not list(tmp_path.iterdir())
  (tmp_path / "model").mkdir()
  (tmp_path / "model/precious").write_text("mine")
  with pytest.raises(UserError, match="exists already"):
    write_folder(tmp_path / "model", stored)
  assert [path.name for path in tmp_path.rglob("*")] == ["model", "precious"]
