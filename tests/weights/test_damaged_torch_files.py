"""Files that are damaged, cut short, or something else: all are refused, and named."""

from collections import OrderedDict
import gzip
import os
from pathlib import Path
import pickle
import random
import re
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest
import torch_files
from torch_files import (
  FORMATS,
  Instance,
  Name,
  contents,
  refusal,
  tensor_program,
  text,
  write_program,
  write_torch_file,
)

from mma_dfer_jax.weights.pickles import TorchFileError
from mma_dfer_jax.weights.torch_file import read_torch_file

VALUE = {
  "state_dict": OrderedDict(
    (f"block.{i}.weight", np.random.default_rng(i).normal(size=(5 + i, 3)).astype(np.float32))
    for i in range(6)
  ),
  "half": np.arange(9).astype(ml_dtypes.bfloat16),
  "empty": np.zeros((0, 2), np.float32),
  "epoch": 7,
  "args": Instance(Name("argparse", "Namespace"), {"lr": 0.1}),
}


@pytest.fixture(params=FORMATS)
def intact(request, tmp_path):
  """A file in one of the formats, its bytes, and what it holds."""
  path = tmp_path / "intact.pth"
  write_torch_file(path, VALUE, format=request.param)
  return request.param, path.read_bytes(), contents(read_torch_file(path))


def test_cut_files_are_told(tmp_path, intact):
  """At 10 random places, and at the first and last bytes."""
  format, data, _ = intact
  path, generator = tmp_path / "x.pth", random.Random(0)
  places = [generator.randrange(len(data)) for _ in range(10)]
  for length in [*places, *range(12), *range(len(data) - 30, len(data), 3)]:
    path.write_bytes(data[:length])
    message = refusal(path)
    assert length < 4 or re.search("cut short|damaged|is a pickle", message), (length, message)
  path.write_bytes(data + b"\0")
  assert "follow the last storage" in refusal(path) if format == "legacy" else read_torch_file(path)


def test_changed_bytes_are_told(tmp_path, intact):
  """A zip archive gives the same tensors or an error; the old format, without checksums, may give others."""
  format, data, expected = intact
  path, told = tmp_path / "x.pth", 0
  for seed in range(60):
    generator = random.Random(seed)
    changed = bytearray(data)
    for _ in range(generator.randint(1, 8)):
      changed[generator.randrange(len(data))] = generator.randrange(256)
    path.write_bytes(changed)
    try:
      found = contents(read_torch_file(path))
    except TorchFileError:
      told += bool(refusal(path))
    else:
      assert format == "legacy" or found == expected, seed
  assert told > 25


def rezipped(path, change, *, mode=zipfile.ZIP_STORED):
  """The archive of a whole file written anew, its entries changed."""
  write_torch_file(path, {"a": np.ones(3, np.float32)})
  with zipfile.ZipFile(path) as archive:
    entries = [(name, archive.read(name)) for name in archive.namelist()]
  with zipfile.ZipFile(path, "w", mode) as archive:
    for name, data in change(entries):
      archive.writestr(name, data)
  return path


def test_archives_that_torch_would_not_write(tmp_path, recwarn):
  path = tmp_path / "x.pth"
  assert read_torch_file(rezipped(path, lambda entries: entries))["a"].read().tolist() == [1, 1, 1]
  cases = {
    "archive/../x is not in archive/": lambda entries: [*entries, ("archive/../x", b"")],
    "entry ../x is not in archive/": lambda entries: [*entries, ("../x", b"")],
    "entry /etc/x is not in archive/": lambda entries: [*entries, ("/etc/x", b"")],
    "entry other/x is not in archive/": lambda entries: [*entries, ("other/x", b"")],
    "archive/a\\b is not in archive/": lambda entries: [*entries, ("archive/a\\b", b"")],
    "two entries": lambda entries: [*entries, entries[-1]],
    "it is missing": lambda entries: [e for e in entries if e[0] != "archive/data/0"],
    "there are 2": lambda entries: [(n, b"xy" if n == "archive/data/0" else d) for n, d in entries],
    "not of torch.save; it holds model.pth": lambda entries: [("model.pth", b"x")],
    "not of torch.save; it holds archive/.format_version": lambda entries: entries[1:],
    "TorchScript": lambda entries: [*entries, ("archive/constants.pkl", b"")],
    "an archive of numpy": lambda entries: [("video.npy", b"x")],
    "a Keras model": lambda entries: [("config.json", b"{}"), ("model.weights.h5", b"x")],
    "torch.export": lambda entries: [("archive/models/model.json", b"{}")],
    "torch.package": lambda entries: [("m/.data/extern_modules", b"")],
    "without its folder": lambda entries: [(name.partition("/")[2], data) for name, data in entries],
    "damaged zip archive": lambda entries: [],
  }
  for said, change in cases.items():
    assert said in refusal(rezipped(path, change)), said
  assert "is compressed" in refusal(rezipped(path, lambda entries: entries, mode=zipfile.ZIP_DEFLATED))


# Offsets in the directory's record of an entry, and in the header in front of its data, with what is written there.
CONTRADICTIONS = [
  ("directory", 8, b"\x09\x08", "encrypted"), ("directory", 8, b"\x48\x08", "encryption"),
  ("directory", 10, b"\x08", "compressed"), ("directory", 16, b"\1\2\3\4", "CRC"),
  ("directory", 20, struct.pack("<LL", 13, 12), "overlaps another one or ends outside"),
  ("directory", 20, struct.pack("<LL", 11, 11), "CRC"), ("directory", 20, struct.pack("<LL", 300, 300), "CRC"),
  ("directory", 20, struct.pack("<LL", 2**31, 2**31), "outside the file"), ("directory", 42, struct.pack("<L", 0), "differ"),
  ("directory", 42, struct.pack("<L", 2**31), "Truncated"), ("directory", 46, b"archive/data/7", "differ"),
  ("header", 0, b"PK\3\5", "Bad magic"), ("header", 28, b"\0\0", "CRC"), ("header", 28, b"\xff\xff", "outside"),
  ("header", 30, b"archive/data/7", "differ"),
  # What the directory and the checksum say is right, so that these do no harm.
  ("header", 8, b"\x08", ""), ("header", 14, b"\1\2\3\4", ""), ("header", 18, struct.pack("<LL", 13, 13), ""),
]  # fmt: skip


def test_archives_that_contradict_themselves(tmp_path):
  path = tmp_path / "x.pth"
  write_torch_file(path, {"a": np.ones(3, np.float32)})
  whole = path.read_bytes()
  for where, offset, value, said in CONTRADICTIONS:
    in_directory = where == "directory"
    name = whole.rindex(b"archive/data/0") if in_directory else whole.index(b"archive/data/0")
    start = name - (46 if in_directory else 30) + offset
    path.write_bytes(whole[:start] + value + whole[start + len(value) :])
    if said:
      assert said in refusal(path), (where, offset, value)
    else:
      np.testing.assert_array_equal(read_torch_file(path)["a"].read(), [1, 1, 1])


def test_entries_that_share_their_bytes(tmp_path):
  """An entry within another one, all headers and checksums in order: the way zip bombs grow."""
  path, name, data = tmp_path / "x.pth", b"archive/data/1", b"x" * 12
  header = struct.pack("<4s5H3L2H", b"PK\3\4", 0, 0x808, 0, 0, 0, 0, 0, 0, len(name), 0)
  entries = [("data.pkl", b"N."), ("data/0", header + name + data), ("data/1", data)]
  torch_files.write_zip(path, [(f"archive/{name}", data) for name, data in entries])
  assert read_torch_file(path) is None
  archive = bytearray(path.read_bytes())
  record = archive.rindex(name)
  archive[record - 4 : record] = struct.pack("<L", archive.index(header + name + data))
  path.write_bytes(archive)
  assert "entry archive/data/1 overlaps" in refusal(path)


def test_old_files_that_contradict_themselves(tmp_path):
  path = tmp_path / "x.pth"
  write_torch_file(path, {"a": np.ones(3, np.float32)}, format="legacy")
  data = path.read_bytes()
  sizes = len(data) - 20
  assert data.count(b"0q\x01a.") == 1
  for said, changed in {
    "another size than its tensors need": data[:sizes] + struct.pack("<q", 4) + data[sizes + 8 :],
    "unknown version": data.replace(b"\x80\x02M\xe9\x03.", b"\x80\x02M\xe8\x03."),
    "not those that its tensors need": data.replace(b"0q\x01a.", b"1q\x01a."),
    "cut short": data[:-1],
    "4 bytes follow": data + b"1234",
  }.items():
    path.write_bytes(changed)
    assert said in refusal(path), said
  both = b"".join(tensor_program(kind, 3, 0, (1,), (1,))[2:-1] for kind in ("Float", "Double"))
  write_program(path, b"(" + both + b"t.", {"0": np.ones(3, np.float32)}, "legacy")
  assert "has 12 bytes or 24" in refusal(path)
  for keys in (b"N", b"](K\x01e", b"](" + text("0") * 2 + b"e", b"]" + b"]" * 5 + b"a" * 5):
    path.write_bytes(data[: data.index(b"\x80\x02]q")] + keys + b"." + data[sizes:])
    assert "storages" in refusal(path)


OTHER_FILES = [
  (b"", "is empty"),
  (b"<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning", "HTML page.*failed download"),
  (b"\n <html>", "HTML page"), (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 5\n", "git lfs pull"),
  (struct.pack("<Q", 9) + b'{"a":{}}  ', "safetensors"), (gzip.compress(b"x" * 1000, mtime=0), "compressed archive"),
  (b"sys_info" + bytes(249) + b"ustar" + bytes(300), "tar archive.*0.1.10"), (b"\xfd7zXZ\0\0\4", "compressed archive"),
  (b"7z\xbc\xaf\x27\x1c\0\4", "compressed archive"), (b"\x93NUMPY\1\0v\0{'descr': '<f8'}", "numpy"),
  (b"PK\5\6" + bytes(18), "zip archive"), (b"\x89HDF\r\n\x1a\n\0\0", "HDF5"), (b"just some text\n" * 10, "is a text file"),
  ("köpfe\n".encode(), "is a text file"), (pickle.dumps({"a": [1, 2]}), "is a pickle, but"),
  (pickle.dumps([1.5] * 3, protocol=0), "is a pickle, but"), (pickle.dumps(np.ones(3), protocol=5), "is a pickle, but"),
  (b"\x80\x02\x8a\x0al\xfc", "is a pickle, but not a whole one"),
  (bytes(range(1, 256)) * 9, "is not a file of torch.save"), (bytes(5000), "is not a file of torch.save"),
  (b"ctorch.storage\n_load_from_bytes\n(Vx\ntR.", "nothing was executed .pickle.dump or joblib wrote"), (b"cos\nsystem\n(Vtouch canary\ntR.", "os.system.*nothing was executed"),
]  # fmt: skip


def test_other_files_are_named(tmp_path):
  for data, said in OTHER_FILES:
    (tmp_path / "x.pth").write_bytes(data)
    assert re.search(said, refusal(tmp_path / "x.pth"))


def test_what_is_no_file(tmp_path):
  assert "No such file" in refusal(tmp_path / "nothing.pth")
  assert "folder" in refusal(tmp_path)
  os.mkfifo(tmp_path / "pipe")
  assert "pipe" in refusal(tmp_path / "pipe")
  assert "device" in refusal(Path("/dev/zero"))
  with pytest.raises(TorchFileError, match="null byte"):
    read_torch_file("a\0b")
  if os.getuid():  # root may read anything
    (tmp_path / "x.pth").write_bytes(b"x")
    (tmp_path / "x.pth").chmod(0)
    assert "Permission denied" in refusal(tmp_path / "x.pth")
