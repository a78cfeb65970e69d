"""Files that ask for what no checkpoint needs: nothing is ever executed, and nothing takes much memory or time."""

import pickle
import struct
import subprocess
import sys

import numpy as np
import pytest
from torch_files import (
  FORMATS,
  refusal,
  tensor_program,
  text,
  write_program,
)

from mma_dfer_jax.weights import pickles
from mma_dfer_jax.weights.torch_file import read_torch_file

# Calls that would do harm, with an argument: for the first ones, pickle would really leave a canary behind.
LIVE = {"os.system": "touch {}", "posix.system": "touch {}", "subprocess.getoutput": "touch {}", "os.mkdir": "{}",
        "builtins.eval": "open('{}', 'w')", "builtins.exec": "open('{}', 'w')", "__builtin__.eval": "open('{}', 'w')"}  # fmt: skip
CALLS = LIVE | {
  "commands.getoutput": "touch {}", "timeit.timeit": "open('{}', 'w')", "subprocess.Popen": "touch {}",
  "nt.system": "touch {}", "builtins.getattr": "os", "builtins.__import__": "os", "importlib.import_module": "os",
  "operator.attrgetter": "system", "functools.partial": "x", "runpy.run_path": "{}", "pickle.loads": "x",
  "_pickle.loads": "x", "shutil.rmtree": "{}", "webbrowser.open": "{}", "sys.exit": "x", "ctypes.CDLL": "{}",
  "codecs.open": "{}", "io.FileIO": "{}", "collections.namedtuple": "x", "typing.NamedTuple": "x",
}  # fmt: skip
STRANGERS = ["torch.storage._load_from_bytes", "torch.hub.load", "numpy.load", "__main__.main", "torch.load"]


def programs_of(called: str, argument: str) -> dict[str, bytes]:
  """Pickles that call a function, in all ways that pickle has."""
  module, name = called.rsplit(".", 1)
  mention = f"c{module}\n{name}\n".encode()
  by_stack = pickle.SHORT_BINUNICODE + bytes([len(module)]) + module.encode()
  by_stack += pickle.SHORT_BINUNICODE + bytes([len(name)]) + name.encode() + pickle.STACK_GLOBAL
  one, state = text(argument), text("__setstate__") + mention + text("__reduce__") + mention
  return {
    "REDUCE in protocol 0": mention + b"(V" + argument.encode() + b"\ntR.",
    "REDUCE": b"\x80\x02" + mention + one + b"\x85R.",
    "STACK_GLOBAL": b"\x80\x04" + by_stack + one + b"\x85R.",
    "in frames": b"\x80\x05\x95" + struct.pack("<Q", 10) + by_stack + one + b"\x85\x94R.",
    "INST": b"(" + one + b"i" + mention[1:] + b".",
    "OBJ": b"(" + mention + one + b"o.",
    "NEWOBJ_EX": b"\x80\x04" + mention + one + b"\x85}\x92.",
    "deep in a dict": b"\x80\x02}(" + text("a") + b"](K\x01" + mention + one + b"\x85Reu.",
    "from memory": b"\x80\x02" + mention + b"q\x000h\x00" + one + b"\x85R.",
    "thrown away": b"\x80\x02" + mention + one + b"\x85R0N.",
    "a tensor's type": b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\n(" + mention * 2 + one + b"\x85}tR.",
    "state": b"\x80\x02c__main__\nX\n)\x81}(" + state + one + b"\x85Rub.",
  }


@pytest.mark.parametrize("format", FORMATS)
def test_nothing_is_ever_called(tmp_path, format):
  canary = tmp_path / "canary"
  before = set(sys.modules)  # other tests of this process may have brought PyTorch
  for called, argument in (CALLS if format == "zip" else LIVE).items():  # the interpreter is the same
    said = called.replace("__builtin__", "builtins").replace("commands", "subprocess")
    for how, program in programs_of(called, argument.format(canary)).items():
      message = refusal(write_program(tmp_path / "x.pth", program, {}, format))
      assert "which no checkpoint needs; nothing was executed" in message, how
      assert said in message, how
      assert not canary.exists(), how
  for called in STRANGERS:
    for how, program in programs_of(called, "x").items():
      message = refusal(write_program(tmp_path / "x.pth", program, {}, format))
      assert ("NEWOBJ_EX" if how == "NEWOBJ_EX" else called) in message
  assert "torch" not in set(sys.modules) - before


def test_these_attacks_are_real(tmp_path):
  """pickle falls for them: it is this reader that refuses, not the attack that is broken."""
  for i, (called, argument) in enumerate(LIVE.items()):
    pickle.loads(programs_of(called, argument.format(tmp_path / str(i)))["REDUCE"])
    assert (tmp_path / str(i)).exists()


@pytest.mark.parametrize("format", FORMATS)
def test_mentions_without_a_call(tmp_path, format):
  for called in (
    CALLS if format == "zip" else LIVE
  ):  # a class could be given attributes, or be called by whoever gets it
    mention = b"c" + called.replace(".", "\n").encode() + b"\n"
    for program in (mention, mention + b"}b", mention + b")\x81", b"]" + mention + b"a"):
      assert "no checkpoint needs" in refusal(write_program(tmp_path / "x.pth", program + b".", {}, format))
  for stranger in STRANGERS:  # never imported, so that it may be there
    mention = b"c" + "\n".join(stranger.rsplit(".", 1)).encode() + b"\n"
    for program in (mention, mention + b"}b", mention + b")\x81", mention + b")\x81}(K\x01K\x02ub"):
      assert read_torch_file(write_program(tmp_path / "x.pth", program + b".", {}, format)).name == stranger
  for module, name in (("os", "path.join"), ("torch", "os.system"), ("collections", "OrderedDict.fromkeys")):
    program = b"\x80\x04" + text(module) + text(name) + b"\x93."
    assert f"{module}.{name}" in refusal(write_program(tmp_path / "x.pth", program, {}, format))


STORAGE = b"(" + text("storage")
SENSELESS = [
  (b"\x82\x01.", "EXT1"), (b"\x83\x01\x00.", "EXT2"), (b"\x84\x01\x00\x00\x00.", "EXT4"), (b"Pstorage\n.", "PERSID"),
  (b"\x97.", "NEXT_BUFFER"), (b"N\x98.", "READONLY_BUFFER"), (b"K\x01Q.", "outside its pickle"),
  (b"(" + text("module") + b"K\x01NNtQ.", "outside its pickle"),
  (STORAGE + b"K\x01" + text("0") + text("cpu") + b"K\x01tQ.", "outside its pickle"),
  (STORAGE + b"cos\nsystem\n" + text("0") + text("cpu") + b"K\x01tQ.", "os.system"),
  (STORAGE + b"cx\nStorage\n" + text("0") + text("cpu") + b"K\x01tQ.", "unknown type x.Storage"),
  (STORAGE + b"ctorch\nFloatStorage\n" + text("9") + text("cpu") + b"K\x01tQ.", "storage"),
  (STORAGE + b"ctorch\nFloatStorage\n" + text("0" * 200) + b"NK\x01tQ.", "outside its pickle"),
  (b"](" + text("module") + b"ctorch\nX\nNNeQ.", "outside its pickle"),
  (b"cos\nsystem\x1b[31m\n.", "os.system\\x1b[31m"), (b"cos\n" + b"x" * 400 + b"\n.", "os.xxx"),
  (b"cos\n" + b"x" * 10_000 + b"\n.", "too long"), (b"ctorch\nSize\n)R.", "damaged"), (b"N)R.", "no function"),
  (b"K\x01K\x02\x81.", "no function"), (b"K\x01K\x02a.", "no list"), (b"(K\x01K\x01\x90.", "nothing on the stack"),
  (b"}]K\x01s.", "cannot be the key"), (b"}" + b"K\x01\x85" * 9 + b"K\x01s.", "damaged"), (b"(K\x01d.", "zip"),
  (b"h\x05.", "KeyError"), (b"\x85.", "nothing on the stack"), (b"K\x01(0N.", "nothing on the stack"),
  (b"K\x01(\x94N.", "nothing on the stack"), (b"t.", "damaged"), (b"(", "pickle exhausted"), (b"", "pickle exhausted"),
  (b".", "nothing on the stack"), (b"\xff.", "unknown"), (b"I1" + b"0" * 5000 + b"\n.", "damaged"),
  (b"\x8b" + struct.pack("<i", -1) + b".", "damaged"), (b"ctorch\ncuda\nx y\n.", "damaged"), (b"ca b\nc\n.", "damaged"),
  (b"K\x01K\x02\x93.", "no string"), (b"ctorch._utils\n_rebuild_tensor\n(K\x01K\x01))R.", "damaged"),
]  # fmt: skip


@pytest.mark.parametrize("format", FORMATS)
def test_pickles_that_make_no_sense(tmp_path, format):
  for program, said in SENSELESS:
    message = refusal(write_program(tmp_path / "x.pth", program, {"0": np.ones(1, np.float32)}, format))
    if format == "zip" or said != "pickle exhausted":  # in the old format other pickles follow
      assert said in message, program
    assert len(message) < 400


@pytest.mark.parametrize("format", FORMATS)
def test_tensors_that_are_not_there(tmp_path, format):
  for offset, size, stride, said in [
    (0, (2, 4), (4, 1), "ends at byte 32 of a storage of 24"), (1, (6,), (1,), "ends at byte 28 of a storage of 24"),
    (0, (2,), (6,), "ends at byte 28"), (0, (10**12,), (1,), "ends at byte 4,000,000,000,000"),
    (2**62, (1,), (1,), "of a storage of 24"), (10**30, (1,), (1,), "cannot be"), (-1, (1,), (1,), "cannot be"),
    (0, (-1,), (1,), "cannot be"), (0, (2, 3), (-3, 1), "strides (-3, 1)"), (0, (True,), (1,), "cannot be"),
    (True, (1,), (1,), "cannot be"), (0, (1.0,), (1,), "cannot be"), (0, (10**6000,), (1,), "cannot be"),
    (0, (2, 3), (1,), "2 sizes and 1 strides"), (0, (1,) * 65, (1,) * 65, "65 sizes"),
    (0, (0, 2**62, 2**62), (0, 0, 0), "no memory"), (0, (2**40, 2**40), (0, 0), "no memory"), (0, 6, 1, "damaged"),
    (0, [6], [1], "damaged"),
  ]:  # fmt: skip
    program = tensor_program("Float", 6, offset, size, stride)
    message = refusal(write_program(tmp_path / "x.pth", program, {"0": np.ones(6, np.float32)}, format))
    assert said in message
    assert len(message) < 1000
    assert "damaged" in said or "some.weight" in message
  for elements in (5, 7, -6, 0, 2**61, 10**30, True, 6.0):  # of another size than its storage
    program = tensor_program("Float", elements, 0, (1,), (1,))
    path = write_program(tmp_path / "x.pth", program, {"0": np.ones(6, np.float32)}, format)
    assert "storage" in refusal(path)


def test_too_many_steps(tmp_path, monkeypatch):
  monkeypatch.setattr(pickles, "MAX_STEPS", 10_000)
  programs = {
    "opcodes": b"N0" * 5000 + b"N.",
    "copies of a list": b"]q\x00(" + b"K\x01K\x02\x86" * 500 + b"e0" + b"ccollections\nOrderedDict\nh\x00\x85R0" * 20 + b"N.",
    "tuples as keys": b"}(" + b"".join(b"J" + struct.pack("<i", i) + b"K\x01\x86N" for i in range(30)) + b"u.",
    "copies of a size": b"(" + b"K\x01" * 900 + b"tq\x000" + b"ctorch\nSize\nh\x00\x85R0" * 20 + b"N.",
  }  # fmt: skip
  for name, program in programs.items():
    assert "steps" in refusal(write_program(tmp_path / "x.pth", program, {}, "zip")), name


def test_keys_that_take_long_to_compare(tmp_path):
  for key in (text("a" * 5000), b"\x8a\x0a" + b"\1" * 10, b"(" + b"N" * 9 + b"t", b"]\x85"):
    assert "key of a dict" in refusal(write_program(tmp_path / "x.pth", b"}" + key + b"Ns.", {}, "zip"))


# Opens files in a process of its own, which would break at 3 GiB, and without the checks of types, which take long.
MEASURED = """
import re, resource, sys, time
from mma_dfer_jax.weights.torch_file import TorchFileError, read_torch_file
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
def peak():
  return int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1]) >> 10
for path in sys.argv[1:]:
  with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # forgets the peak
  before, start = peak(), time.time()
  try:
    value = read_torch_file(path)
    said = type(value).__name__
    for item in value.values() if isinstance(value, dict) else ():
      if hasattr(item, "read"):
        item.read()
  except TorchFileError as error:
    said = str(error)
    assert said.startswith(path) and len(said) < len(path) + 400
  value = item = None
  taken, seconds = peak() - before, time.time() - start
  print(f"{taken:4.0f} MiB {seconds:4.1f} s", path.rsplit("/")[-1], "->", said.removeprefix(path))
  assert taken < 250 and seconds < 20, path
"""


def opened_elsewhere(paths) -> str:
  """What a process of its own says about files that might break it."""
  command = [sys.executable, "-c", MEASURED, *map(str, paths)]
  done = subprocess.run(command, capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stdout + done.stderr
  print(done.stdout)
  return done.stdout


@pytest.mark.slow
def test_deep_nests_do_no_harm(tmp_path):
  """As a value, as the key of a dict (hashing tuples would end the process), as what is called and as its arguments."""
  nests = {"tuples": b"N" + b"\x85" * 200_000, "lists": b"]" * 30_000 + b"a" * 29_999,
           "dicts": b"}K\x00" * 30_000 + b"N" + b"s" * 30_000, "marks": b"(" * 30_000 + b"N" + b"t" * 30_000}  # fmt: skip
  places = {"key": (b"}", b"Ns"), "function": (b"", b")R"), "reference": (b"", b"Q"), "attributes": (b"}", b"b"),
            "arguments": (b"ctorch\ndevice\n", b"R"), "items": (b"ccollections\nOrderedDict\n", b"R"),
            "size": (b"ctorch\nSize\n", b"R")}  # fmt: skip
  paths = [
    write_program(tmp_path / f"{name} as {place}", before + nest + after + b".", {})
    for name, nest in nests.items()
    for place, (before, after) in places.items()
  ]
  million = b"N" + b"\x85" * 10**6 + b"."
  paths.append(write_program(tmp_path / "a million deep", million, {}, "legacy"))
  report = opened_elsewhere(paths)
  assert report.count("-> ") == len(paths)
  assert "a million deep -> tuple" in report


@pytest.mark.slow
def test_files_that_ask_for_much_memory(tmp_path):
  """None takes more than 250 MiB or 20 s."""
  some = {"0": np.ones(6, np.float32)}
  huge, steps = 10**12, pickles.MAX_STEPS
  programs = {
    "memo": b"Nr" + struct.pack("<I", 2**32 - 1) + b"0N.",
    "memo in text": b"Np1000000000000000\n0N.",
    "bytearray": b"\x80\x05\x96" + struct.pack("<Q", huge) + b"x.",
    "text": b"\x80\x04\x8d" + struct.pack("<Q", 2**63 - 1) + b"x.",
    "string": b"T" + struct.pack("<i", 2**31 - 1) + b"x.",
    "long": b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"x.",
    "frame": b"\x80\x04\x95" + struct.pack("<Q", 2**64 - 1) + b"N.",
    "tensor": tensor_program("Float", 6, 0, (huge,), (1,)),
    "storage": tensor_program("Float", huge, 0, (huge,), (1,)),
    "expanded": tensor_program("Float", 6, 0, (huge,), (0,)),
    "remembered dicts": b"(" + b"}\x94" * (steps // 2 - 10) + b"l.",
    "filled dicts": b"(" + b"}K\1K\1s" * (steps // 4 - 10) + b"l.",
    "too many dicts": b"(" + b"}" * (steps + 10) + b"l.",
    "marks": b"(" * (steps + 10) + b"N.",
    "float": b"F" + b"1" * 10**7 + b"\n.",
    "integer": b"\x8b" + struct.pack("<i", 15 * 10**6) + b"\x7f" * 15 * 10**6 + b".",
    "pickle of 17 MB": b"(" + b"K\x01" * 8_500_000 + b"l.",
  }  # fmt: skip
  old = b"X" + struct.pack("<I", 17 * 10**6) + b"x" * 17 * 10**6 + b"."
  paths = [write_program(tmp_path / "old pickle of 17 MB", old, {}, "legacy")]
  for name, program in programs.items():
    for format in FORMATS if len(program) < 1000 else ["zip"]:
      storages = some if b"torch" in program else {}
      paths.append(write_program(tmp_path / f"{format} {name}", program, storages, format))
  data = bytearray((tmp_path / "zip memo").read_bytes())
  data[-98 + 40 : -98 + 48] = struct.pack("<Q", huge)  # the size of the directory
  (tmp_path / "directory").write_bytes(data)
  end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, 2**30, 4, 0)
  for name, size, ending in (("large", 2**31, b""), ("large directory", 2**30 + 4, end)):
    with open(tmp_path / name, "wb") as file:  # takes no room on the disk
      file.write(b"PK\3\4")
      file.truncate(size)
      file.seek(size)
      file.write(ending)
  paths += [tmp_path / name for name in ("directory", "large", "large directory")]
  report = opened_elsewhere(paths)
  assert report.count("-> ") == len(paths)
