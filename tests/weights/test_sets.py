"""Names that training tools wrap, several sets of weights in a file, several types: the model's own are found, and said."""

import itertools
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from torch_files import Instance, Name, write_torch_file

from mma_dfer_jax.errors import UserError
from mma_dfer_jax.weights.files import held, open_weights
from mma_dfer_jax.weights.sets import ROOTS, find_weights

NAMES = ("image_encoder.blocks.0.norm1.weight", "image_encoder.cls_token", "audio_model.all_gate.3",
         "temporal_net.pos_embedding", "vision_proj.weight", "our_classifier.bias")  # fmt: skip
ENCODER = ("cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.norm1.weight", "norm.weight")
LEADS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.", "_forward_module.", "model.", "net.", "network.", "student.",
         "ema_model.", "model_ema.", "base_model.model.", "anything.")  # fmt: skip


def tensors(names=NAMES, lead: str = "", value: float = 1.0):
  return {lead + name: tensor for name, tensor in held(dict.fromkeys(names, np.full(2, value, "f4"))).items()}


def find(saved, wanted=None):
  found, notes = find_weights(Path("x.pth"), saved, wanted)
  return found, "\n".join(notes)


def first(found) -> float:
  return next(iter(found.values())).read()[0]


@pytest.mark.parametrize("names", [NAMES, ENCODER])
def test_any_chain_of_wrappers_is_removed_and_said(names):
  for lead in (*LEADS, *map("".join, itertools.permutations(LEADS, 2)), "".join(LEADS), "".join(LEADS[::-1])):
    for keys in ((), ("state_dict",), ("model",)):
      saved = tensors(names, lead)
      for key in keys:
        saved = {key: saved, "epoch": 3}
      found, notes = find(saved)
      assert tuple(found) == names, lead
      assert notes == f"removed from the beginnings of names: {lead}" * (lead != "module.")


def test_wrappers_within_names_are_removed_and_said():
  saved = {"image_encoder.module.blocks.0._checkpoint_wrapped_module.norm1.weight": NAMES[0],
           "image_encoder._orig_mod.cls_token": NAMES[1], "module._orig_mod.audio_model.all_gate.3": NAMES[2],
           **{name: name for name in NAMES[3:]}}  # fmt: skip
  found, notes = find(held(dict.fromkeys(saved, np.ones(2, "f4"))))
  assert tuple(found) == NAMES
  assert "removed from the beginnings of names: module._orig_mod." in notes
  assert "removed from within names: module., _checkpoint_wrapped_module., _orig_mod." in notes


def test_weights_are_found_under_any_key():
  for keys in (
    ("model_state_dict",),
    ("ema",),
    ("ema", "state_dict"),
    ("net", "module"),
    ("module",),
    ("a", "b", "c", "d"),
  ):
    saved = tensors(lead="module.")
    for key in keys[::-1]:
      saved = {key: saved, "optimizer": {"state": tensors(), 0: {"exp_avg": saved}}, "epoch": 3}
    found, notes = find(saved)
    assert (tuple(found), notes) == (NAMES, f"the weights are those under {'.'.join(keys)}")
  by_module = {
    root: {n.partition(".")[2]: t for n, t in tensors().items() if n.startswith(f"{root}.")} for root in ROOTS
  }
  assert tuple(find(by_module | {"epoch": 1})[0]) == NAMES
  same = tensors()
  assert find({"model": same, "ema": same, "epoch": 3})[1] == ""  # torch.save keeps one of two equal dicts


@pytest.mark.parametrize(("saved", "taken", "left"), [
  ({"state_dict": 1, "model": 2}, 1, "model"),
  ({"model": 1, "model_ema": 2}, 1, "model_ema"),
  ({"state_dict": 1, "state_dict_ema": 2, "swa": 3}, 1, "state_dict_ema (6 tensors), swa (6 tensors)"),
  ({"net": 1, "ema": 2}, 1, "ema"),
  ({"student": 1, "teacher": 2}, None, ""),
  ({"best_model_state": 1, "last_model_state": 2}, None, ""),
])  # fmt: skip
def test_of_several_sets_the_usual_one_is_taken_or_both_are_named(saved, taken, left):
  under_keys = {key: tensors(value=value) for key, value in saved.items()}
  in_names = {
    n: t for key, value in saved.items() for n, t in tensors(lead=f"module.{key}.", value=value).items()
  }
  for file in (under_keys, in_names):
    if taken:
      found, notes = find(file)
      assert (first(found), tuple(found)) == (taken, NAMES)
      assert f"with --weights): {left}" in notes
    else:
      with pytest.raises(UserError, match=r"several sets of weights: \w+ \(6 tensors\), \w+ \(6 .*--weights"):
        find(file)
    for key, value in saved.items():
      assert first(find(file, key)[0]) == value
      assert first(find({"weights": in_names}, f"{key}.")[0]) == value
  with pytest.raises(UserError, match=r"--weights=none, but x\.pth holds the weights \w+ \(6 tensors\), "):
    find(under_keys, "none")


def test_what_stands_beside_the_model_is_left_out_and_said():
  numbers = held({"n_averaged": np.array(7), "initted": np.ones(1, bool)})
  found, notes = find(tensors() | numbers | {"epoch": 3})
  assert (tuple(found), notes) == (NAMES, "beside the weights, left out: n_averaged, initted, epoch")
  more = held({"criterion.weight": np.ones(7, "f4"), "model_ema.decay": np.ones((), "f4")})
  found, notes = find({"state_dict": tensors(lead="model.") | more})
  assert tuple(found) == NAMES
  assert "outside state_dict.model., left out: criterion.weight, model_ema.decay" in notes


@pytest.mark.parametrize(("saved", "words"), [
  ({"a": 1, "module.a": 1}, "holds a twice, as a and module.a"),
  ({"_fsdp_wrapped_module._flat_param": 1}, "flat tensors of FSDP .* full state dict"),
  ({"image_encoder.blocks.0._fsdp_wrapped_module.flat_param": 1, "our_classifier.bias": 1}, "flat tensors of FSDP"),
])  # fmt: skip
def test_names_that_are_no_models_are_refused(saved, words):
  with pytest.raises(UserError, match=words):
    find(held(dict.fromkeys(saved, np.ones(2, "f4"))))


def test_objects_in_place_of_weights_are_named(tmp_path):
  whole = Instance(Name("models", "Net"), {})
  shard = Instance(Name("torch.distributed._shard.sharded_tensor.api", "ShardedTensor"), {})
  for saved, words in (
    (whole, r"holds models\.Net, not a state dict; save model\.state_dict\(\)"),
    ({"model": whole, "epoch": 3}, r"no state dict.* it has model \(a pickled models\.Net\), epoch; save model\.state"),
    ({"state_dict": {"a": np.ones(1, "f4"), "b": shard}}, r"no tensors: b \(a pickled .*ShardedTensor\); .*full state"),
    ({"module": {"a": np.ones((0,), "f4")}}, r"only empty tensors, as DeepSpeed ZeRO-3.*zero_to_fp32\.py"),
  ):  # fmt: skip
    write_torch_file(tmp_path / "x.pth", saved)
    with pytest.raises(UserError, match=words):
      open_weights(tmp_path / "x.pth")


def test_several_types_become_float32_and_one_stays():
  types = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
  arrays = {name: np.full(2, 1 + i / 8, types[i % 4]) for i, name in enumerate(NAMES)}
  found, notes = find(held(arrays))
  assert notes == "tensors of float16 (2), bfloat16 (2), float32 (1), float64 (1): all as float32"
  for name, array in arrays.items():
    assert found[name].dtype == found[name].read().dtype == np.float32
    np.testing.assert_array_equal(found[name].read(), array.astype(np.float32))
  for dtype in types:
    found, notes = find(held({name: np.ones(2, dtype) for name in NAMES}))
    assert ({tensor.dtype for tensor in found.values()}, notes) == ({np.dtype(dtype)}, "")


def test_dicts_in_circles_and_a_million_deep_do_no_harm():
  circle: dict = {"state_dict": tensors()}
  circle["again"] = circle
  assert tuple(find(circle)[0]) == NAMES
  deep: dict = {}
  for _ in range(10**5):
    deep = {"a": deep, "b": deep}
  with pytest.raises(UserError, match="holds no state dict"):
    find(deep)
