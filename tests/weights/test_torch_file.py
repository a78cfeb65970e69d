"""Files of torch.save: what torch put in comes out, in the same bits."""

from collections import OrderedDict
import os
import re

from conftest import GOLDEN, golden_json
import ml_dtypes
import numpy as np
import pytest
from torch_files import (
  FORMATS,
  Call,
  Instance,
  Name,
  Parameter,
  Verbatim,
  View,
  pickled,
  refusal,
  text,
  write_program,
  write_torch_file,
)

from mma_dfer_jax.weights.pickles import StandIn, TorchFileError
from mma_dfer_jax.weights.torch_file import read_torch_file

CHECKPOINT = GOLDEN / "tiny_reference_checkpoint.pth"
TYPES = [np.float64, np.float32, np.float16, ml_dtypes.bfloat16, bool]
TYPES += [np.int64, np.int32, np.int16, np.int8, np.uint64, np.uint32, np.uint16, np.uint8]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(("format", "byteorder"), [("zip", "little"), ("zip", "big"), ("legacy", "little")])
def test_every_type_comes_back_bit_for_bit(tmp_path, format, protocol, byteorder):
  tensors = {np.dtype(dtype).name: (np.arange(-12, 12).reshape(2, 3, 4) * 3).astype(dtype) for dtype in TYPES}
  how = {"format": format, "protocol": protocol, "byteorder": byteorder}
  write_torch_file(tmp_path / "x.pth", tensors, **how, location="cuda:0")
  stored = read_torch_file(tmp_path / "x.pth")
  assert list(stored) == list(tensors)
  for name, tensor in tensors.items():
    assert stored[name].shape == (2, 3, 4)
    assert stored[name].nbytes == stored[name].span == tensor.nbytes
    array = stored[name].read()
    assert array.dtype == tensor.dtype == stored[name].dtype, name
    assert array.tobytes() == tensor.tobytes(), name
    assert array.flags.c_contiguous and array.flags.writeable and array.dtype.isnative  # noqa: PT018


@pytest.mark.parametrize("format", FORMATS)
def test_views_of_one_storage(tmp_path, format):
  base = np.arange(30, dtype=np.float32).reshape(5, 6)
  views = {
    "base": (base, base),
    "transposed": (View(base, (6, 5), (1, 6)), base.T),
    "sliced": (View(base, (2, 3), (6, 1), 8), base[1:3, 2:5]),
    "stepped": (View(base, (3, 2), (12, 3), 1), base[::2, 1::3]),
    "one": (View(base, (), (), 29), base[4, 5]),
    "expanded": (View(base, (7, 6), (0, 1), 12), np.broadcast_to(base[2], (7, 6))),
    "empty": (View(base, (0, 3), (3, 1), 30), np.zeros((0, 3), np.float32)),
    "empty elsewhere": (View(base, (2, 0, 2**40), (2**62, 1, 5), 2**62), np.zeros((2, 0, 2**40), np.float32)),
    "odd stride": (View(base, (1, 6), (2**62, 1)), base[:1]),
    "permuted": (View(base, (3, 5, 2), (2, 6, 1)), base.reshape(5, 3, 2).transpose(1, 0, 2)),
  }
  write_torch_file(tmp_path / "x.pth", {name: view for name, (view, _) in views.items()}, format=format)
  stored = read_torch_file(tmp_path / "x.pth")
  for name, (_, expected) in views.items():
    array = stored[name].read()
    assert array.shape == stored[name].shape == expected.shape, name
    np.testing.assert_array_equal(array, expected, err_msg=name)
    assert array.flags.c_contiguous, name
    assert stored[name].nbytes == expected.nbytes
  assert stored["sliced"].span == 4 * 9
  assert stored["expanded"].span == 4 * 6
  assert (tmp_path / "x.pth").stat().st_size < 3000  # the storage is there once
  array = stored["base"].read()
  array[:] = 0  # its memory is its own
  np.testing.assert_array_equal(stored["base"].read(), base)


@pytest.mark.parametrize("format", FORMATS)
def test_a_training_checkpoint(tmp_path, format):
  """Containers, numbers and texts come back; objects of classes that are not known become stand-ins."""
  weight, step = np.ones((3, 2), np.float32), np.array(7.0, np.float32)
  plain = {"epoch": 3, "none": None, "flags": [True, False], "lr": 1e-3, "big": 10**30, "negative": -(10**20)}
  plain |= {"text": "größe 💥", "nested": ((1, ()), [[]], {"a": {}}), 5: "integer key", (1, "a"): "tuple key"}
  inert = {
    "args": (Instance(Name("argparse", "Namespace"), {"lr": 1.0, "out": [1]}), "argparse.Namespace"),
    "recorder": (
      Instance(Name("__main__", "RecorderMeter"), {"x": Verbatim(np.ones(3))}),
      "__main__.RecorderMeter",
    ),
    "history": (Verbatim(np.arange(4)), "numpy._core.multiarray._reconstruct"),
    "best": (np.float64(0.5), "numpy._core.multiarray.scalar"),
    "device": (Call(Name("torch", "device"), ("cuda", 0)), "torch.device"),
    "path": (Call(Name("pathlib", "PosixPath"), ("a", "b")), "pathlib.PosixPath"),
    "set": ({1, 2}, "builtins.set"),
    "class": (Name("torch", "float32"), "torch.float32"),
    "complex": (np.ones(2, np.complex64), "torch.Tensor (torch.ComplexFloatStorage)"),
    "float8": (np.ones(2, ml_dtypes.float8_e4m3fn), "torch.Tensor (torch.float8_e4m3fn)"),
  }
  value = {
    "state_dict": OrderedDict(weight=weight, same=weight, bias=Parameter(np.zeros(2, np.float16))),
    "optimizer": {"state": {0: {"step": step}}, "param_groups": [{"params": [0, 1], "betas": (0.9, 0.999)}]},
    **plain,
    **{key: written for key, (written, _) in inert.items()},
  }
  write_torch_file(tmp_path / "x.pth", value, format=format)
  stored = read_torch_file(tmp_path / "x.pth")
  assert list(stored) == list(value)
  assert {key: stored[key] for key in plain} == plain
  assert {key: stored[key].name for key in inert} == {key: name for key, (_, name) in inert.items()}
  assert type(stored["state_dict"]) is dict
  np.testing.assert_array_equal(stored["state_dict"]["weight"].read(), weight)
  assert stored["state_dict"]["same"] is stored["state_dict"]["weight"]
  assert stored["state_dict"]["bias"].dtype == np.float16
  assert stored["optimizer"]["state"][0]["step"].read() == 7
  assert stored["optimizer"]["param_groups"] == value["optimizer"]["param_groups"]


def test_the_file_of_the_original_program():
  stored = read_torch_file(CHECKPOINT)
  described = golden_json("checkpoint")
  assert list(stored) == described["top_level_keys"]
  assert (stored["epoch"], len(stored["state_dict"])) == (2, described["contents"]["state_dict"]["len"])
  for name, tensor in described["contents"]["state_dict"]["first"].items():
    shape, dtype = stored["state_dict"][name].shape, stored["state_dict"][name].dtype
    assert tensor == f"Tensor[{', '.join(map(str, shape))}] {dtype} cpu"
  assert stored["best_acc"].shape == ()
  assert stored["recorder"].name == "__main__.RecorderMeter"
  assert len(stored["optimizer"]["state"]) == 194
  assert all(np.isfinite(tensor.read()).all() for tensor in stored["state_dict"].values())


def test_older_ways_to_write_a_tensor(tmp_path):
  """View metadata, classes of modules, `_rebuild_tensor`, Python 2's OrderedDict and names: files before torch 1.0."""
  storages = {"7": np.arange(12, dtype=np.float32)}
  floats, on_gpu = b"ctorch\nFloatStorage\n", b"ctorch.cuda\nFloatStorage\n"
  view = b"(" + text("8") + b"K\x04K\x06t"  # six elements from the fourth on

  def tensor(kind: bytes, view: bytes) -> bytes:
    storage = b"(" + text("storage") + kind + text("7") + text("cpu") + b"K\x0c" + view + b"tQ"
    return b"ctorch._utils\n_rebuild_tensor\n(" + storage + b"K\x01K\x02K\x02\x86K\x02K\x01\x86tR"

  pairs = text("whole") + tensor(floats, b"N") + b"\x86" + text("part") + tensor(on_gpu, view) + b"\x86"
  pairs += text("parameter") + b"ctorch.nn.parameter\nParameter\n" + tensor(floats, b"N") + b"\x88\x86R\x86"
  module = b"(" + text("module") + b"c__main__\nNet\n" + text("net.py") + text("class Net: ...") + b"tQ"
  pairs += text("module") + module + b")\x81}b\x86"
  pairs += b"U\x03set" + b"c__builtin__\nset\n(](K\x01K\x02etR\x86"
  program = b"\x80\x02ccollections\nOrderedDict\n](" + pairs + b"e\x85R."
  found = read_torch_file(write_program(tmp_path / "x.pth", program, storages, "legacy"))
  for name, numbers in (
    ("whole", [[1, 2], [3, 4]]),
    ("part", [[5, 6], [7, 8]]),
    ("parameter", [[1, 2], [3, 4]]),
  ):
    np.testing.assert_array_equal(found[name].read(), numbers)
  assert (found["module"].name, found["set"].name) == ("__main__.Net", "builtins.set")
  beyond = program.replace(view, b"(" + text("8") + b"K\x08K\x06t")
  assert "no storage" in refusal(write_program(tmp_path / "y.pth", beyond, storages, "legacy"))


def test_what_torch_would_negate_or_rebuild_is_no_tensor_here(tmp_path):
  storage = np.ones(4, np.float32)
  shape = (0, (4,), (1,), False, OrderedDict())
  value = {
    "negated": Call(Name("torch._utils", "_rebuild_tensor_v2"), (storage, *shape, {"neg": True})),
    "plain": Call(Name("torch._utils", "_rebuild_tensor_v2"), (storage, *shape, {})),
    "subclass": Call(
      Name("torch._tensor", "_rebuild_from_type_v2"),
      (Name("torch._utils", "_rebuild_parameter"), Name("x", "Tensor"), (storage, False, OrderedDict()), {}),
    ),
    "sparse": Call(Name("torch._utils", "_rebuild_sparse_tensor"), (0, (storage,))),
    "size": Call(Name("torch", "Size"), ((1, 2),)),
  }
  # The pickler takes the first array of a long call for a storage, so that the subclass needs it as a tensor.
  write_torch_file(tmp_path / "x.pth", value)
  found = read_torch_file(tmp_path / "x.pth")
  assert isinstance(found["negated"], StandIn)
  assert isinstance(found["sparse"], StandIn)
  np.testing.assert_array_equal(found["plain"].read(), storage)
  np.testing.assert_array_equal(found["subclass"].read(), storage)
  assert found["size"] == (1, 2)


def test_booleans_are_zero_or_one(tmp_path):
  program, _ = pickled(np.zeros(3, bool))
  write_program(tmp_path / "x.pth", program, {"0": np.arange(3, dtype=np.uint8)})
  assert read_torch_file(tmp_path / "x.pth").read().view(np.uint8).tolist() == [0, 1, 1]


def test_checksums_that_were_left_out(tmp_path):
  """torch.serialization.set_crc32_options(False) writes zeros."""
  write_torch_file(tmp_path / "x.pth", {"a": np.ones(3, np.float32)})
  data = (tmp_path / "x.pth").read_bytes()
  data = re.sub(rb"(?s)(PK\x01\x02.{12})....", rb"\1\0\0\0\0", data)
  (tmp_path / "x.pth").write_bytes(re.sub(rb"(?s)(PK\x07\x08)....", rb"\1\0\0\0\0", data))
  np.testing.assert_array_equal(read_torch_file(tmp_path / "x.pth")["a"].read(), np.ones(3))


@pytest.mark.parametrize("change", [1, -3000, "replace", "delete"])
def test_a_file_that_changes_after_it_was_opened(tmp_path, change):
  path = tmp_path / "x.pth"
  write_torch_file(path, {"a": np.ones(1000, np.float32)})
  stored, size = read_torch_file(path), path.stat().st_size
  if change == "delete":
    path.unlink()
  elif change == "replace":
    path.write_bytes(bytes(size))
    os.utime(path, ns=(0, 0))
  else:
    os.truncate(path, size + change)
  with pytest.raises(TorchFileError, match=r"x\.pth: (No such file|has been changed)"):
    stored["a"].read()
