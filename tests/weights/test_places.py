"""Weights in pieces and in the folders of other tools: read, or refused for what they are."""

import json

import numpy as np
import pytest
import safetensors.numpy
from torch_files import write_torch_file

from mma_dfer_jax.errors import UserError
from mma_dfer_jax.weights.files import open_weights

STATE = {f"image_encoder.blocks.{i}.norm1.weight": np.full(3, i, "f4") for i in range(5)}


def write(path, state):
  path.parent.mkdir(exist_ok=True)
  (safetensors.numpy.save_file if path.suffix == ".safetensors" else lambda s, p: write_torch_file(p, s))(
    state, path
  )
  return path


def pieces(folder, ending: str):
  """Three files and their index, as transformers and accelerate write them."""
  where = {name: f"model-0000{i % 3 + 1}-of-00003{ending}" for i, name in enumerate(STATE)}
  for file in set(where.values()):
    write(folder / file, {name: STATE[name] for name, of in where.items() if of == file})
  index = folder / f"{'pytorch_' * (ending == '.bin')}model{ending}.index.json"
  index.write_text(json.dumps({"metadata": {"total_size": 60}, "weight_map": where}))
  return index


def check(path):
  weights = open_weights(path)
  assert weights.tensors.keys() == STATE.keys()
  assert all(np.array_equal(weights.tensors[name].read(), array) for name, array in STATE.items())
  return weights


@pytest.mark.parametrize("ending", [".safetensors", ".bin"])
def test_pieces_with_an_index_are_one_file(tmp_path, ending):
  index = pieces(tmp_path / "model", ending)
  whole = check(index)
  assert check(tmp_path / "model").sha256 == whole.sha256
  assert len(whole.files) == 3
  one = whole.files[0]
  with pytest.raises(UserError, match="is piece 1 of 3 of a model; give the folder"):
    open_weights(one)
  content = one.read_bytes()
  write(one, {"other": np.ones(1, "f4")})
  with pytest.raises(UserError, match=r"-00001-of-00003\.\w+ lacks 2 tensors that .*index\.json says"):
    open_weights(index)
  write(one, STATE)
  with pytest.raises(UserError, match="holds tensors in several files"):
    open_weights(index)
  one.unlink()
  with pytest.raises(UserError, match=r"lists 3 files; 1 are missing: model-00001-of-00003"):
    open_weights(tmp_path / "model")
  one.write_bytes(content)
  check(index)


@pytest.mark.parametrize(
  "text",
  ["{}", "[]", "<html>", '{"weight_map": {}}', '{"weight_map": {"a": "../b"}}', '{"weight_map": {"a": 3}}'],
)
def test_an_index_that_is_none(tmp_path, text):
  (tmp_path / "model.safetensors.index.json").write_text(text)
  with pytest.raises(UserError, match="is no index of pieces"):
    open_weights(tmp_path)


def test_folders_of_other_tools_are_read(tmp_path):
  write(tmp_path / "face/pytorch_model.bin", STATE)
  (tmp_path / "face/config.json").write_text("{}")
  assert check(tmp_path / "face").notes == ("read from pytorch_model.bin",)
  write(tmp_path / "face/model.safetensors", STATE)  # preferred, as transformers does
  assert check(tmp_path / "face").notes == ("read from model.safetensors",)
  state = {"module": {f"module.{name}": array for name, array in STATE.items()}, "ds_version": "0.14.0"}
  for place, tag in (("global_step5", "global_step5"), ("checkpoint", "")):  # DeepSpeed's own, Lightning's
    folder = tmp_path / f"of {place}"
    folder.mkdir()
    write(folder / place / "mp_rank_00_model_states.pt", state)
    write(folder / place / "zero_pp_rank_0_mp_rank_00_optim_states.pt", {"optimizer_state_dict": {}})
    if tag:
      (folder / "latest").write_text(tag)
    for path in (folder, folder / place, folder / place / "mp_rank_00_model_states.pt"):
      assert check(path).notes[-1] == "the weights are those under module"
  write(folder / place / "mp_rank_01_model_states.pt", state)
  with pytest.raises(UserError, match="splits every tensor into 2"):
    open_weights(folder)


@pytest.mark.parametrize(("names", "words"), [
  (["zero_pp_rank_0_mp_rank_00_model_states.pt"], r"DeepSpeed ZeRO split; run the zero_to_fp32\.py"),
  ([".metadata", "__0_0.distcp"], "torch.distributed; .*dcp_to_torch"),
  (["pytorch_model_fsdp_0/.metadata"], "torch.distributed; .*dcp_to_torch"),
  (["adapter_model.safetensors", "adapter_config.json"], r"an adapter \(LoRA\).*merge_and_unload"),
  (["version", "data.pkl"], "an unpacked .pth; .*zip -0 -r"),
  (["saved_model.pb"], "a TensorFlow model, .* ask for the .pth"),
  (["checkpoint", "model.ckpt-7.index", "model.ckpt-7.data-00000-of-00001"], "a TensorFlow model"),
  (["model.onnx"], "an ONNX model"), (["flax_model.msgpack"], "a model not of PyTorch"),
  (["d", "manifest.ocdbt"], r"Orbax; .*workdir .* run\.json"),
  (["run.json"], "a whole model of this program, which config.init_from of training takes"),
  (["a.pth", "b.safetensors", "c.txt"], r"neither the workdir .* nor a model folder .*; give one of its files: a\.pth, b\.safetensors$"),
  (["c.txt"], r"nor a model folder \(no model\.json\)$"),
])  # fmt: skip
def test_what_a_folder_or_a_file_in_it_is(tmp_path, names, words):
  for name in names:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"x")
  with pytest.raises(UserError, match=words):
    open_weights(tmp_path)
  if not words.startswith(("n", "a whole")):  # so is the file by itself
    with pytest.raises(UserError, match=words):
      open_weights(tmp_path / names[-1])


def test_what_is_packed_beside_a_path_that_is_not_there(tmp_path):
  (tmp_path / "x.pth.gz").write_bytes(b"x")
  with pytest.raises(UserError, match=r"x\.pth is not there, but .*x\.pth\.gz is; unpack it"):
    open_weights(tmp_path / "x.pth")


def test_the_beginning_of_tensorflows_names(tmp_path):
  (tmp_path / "model.ckpt-7.index").write_bytes(b"x")
  with pytest.raises(UserError, match=r"model\.ckpt-7 is a TensorFlow model"):
    open_weights(tmp_path / "model.ckpt-7")


def test_counts_in_a_safetensors_file_are_left_out(tmp_path):
  path = write(tmp_path / "x.safetensors", STATE | {"n_averaged": np.array(7)})
  assert check(path).notes == ("beside the weights, left out: n_averaged",)
  write(path, STATE | {"image_encoder.cls_token": np.ones(3, np.int64)})
  with pytest.raises(UserError, match=r"image_encoder\.cls_token: int64"):
    open_weights(path)
