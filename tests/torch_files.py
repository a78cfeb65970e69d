"""Writes what torch.save would write, without torch, and reads it: files of weights for tests."""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
import dataclasses
import io
import math
import pickle
import struct
from typing import Any
import zlib

import ml_dtypes
import numpy as np
import pytest

from mma_dfer_jax.weights.pickles import StandIn, Tensor, TorchFileError
from mma_dfer_jax.weights.torch_file import read_torch_file

FORMATS = ["zip", "legacy"]
STORAGES = {
  np.dtype(np.float64): "Double", np.dtype(np.float32): "Float", np.dtype(np.float16): "Half",
  np.dtype(ml_dtypes.bfloat16): "BFloat16", np.dtype(np.int64): "Long", np.dtype(np.int32): "Int",
  np.dtype(np.int16): "Short", np.dtype(np.int8): "Char", np.dtype(np.uint8): "Byte", np.dtype(bool): "Bool",
  np.dtype(np.complex64): "ComplexFloat",
}  # fmt: skip
ALIGNMENT = 64  # of an entry's data in the archive, as torch does


@dataclasses.dataclass(frozen=True)
class Name:
  """A class or function that the pickle mentions."""

  module: str
  name: str


@dataclasses.dataclass(frozen=True, eq=False)
class View:
  """A tensor on the storage of an array (which may have others): offset and strides in elements."""

  base: np.ndarray
  shape: tuple[int, ...]
  strides: tuple[int, ...]
  offset: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Parameter:
  """A torch.nn.Parameter."""

  data: np.ndarray | View


@dataclasses.dataclass(frozen=True, eq=False)
class Verbatim:
  """An array of numpy that stays one."""

  array: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Instance:
  """An object of any class, with attributes."""

  cls: Name
  attributes: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
  """The result of any call."""

  function: Name
  arguments: tuple


class Pickler(pickle._Pickler):
  """Python's own pickler, because the one in C imports every name that it writes."""

  def __init__(self, file: io.BytesIO, format: str, location: str, protocol: int):
    super().__init__(file, protocol)
    self.storages: dict[str, np.ndarray] = {}  # arrays by their keys
    self.known: dict[int, str] = {}  # keys by id of the array
    self.names: dict[Name, Name] = {}
    self.format, self.location = format, location

  def save(self, obj: Any, save_persistent_id: bool = True) -> None:
    if isinstance(obj, Name):
      obj = self.names.setdefault(obj, obj)
    if not isinstance(obj, Name | np.ndarray | View | Parameter | Verbatim | Instance | Call):
      super().save(obj, save_persistent_id)
    elif id(obj) in self.memo:
      self.write(self.get(self.memo[id(obj)][0]))
    elif isinstance(obj, Name):
      self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())
      self.memoize(obj)
    elif isinstance(obj, Verbatim):
      self.save_reduce(*obj.array.__reduce__(), obj=obj)
    elif isinstance(obj, Instance):
      self.save(obj.cls)
      self.write(pickle.EMPTY_TUPLE + pickle.NEWOBJ)
      self.memoize(obj)
      self.save(obj.attributes)
      self.write(pickle.BUILD)
    else:
      function, arguments = self.reduced(obj)
      self.save(function)
      self.save_tuple_of(arguments)
      self.write(pickle.REDUCE)
      self.memoize(obj)

  def reduced(self, obj: np.ndarray | View | Parameter | Call) -> tuple[Name, tuple]:
    if isinstance(obj, Call):
      return obj.function, obj.arguments
    if isinstance(obj, Parameter):
      return Name("torch._utils", "_rebuild_parameter"), (obj.data, True, OrderedDict())
    if isinstance(obj, np.ndarray):
      return self.reduced(View(obj, obj.shape, contiguous(obj.shape)))
    typed = (obj.offset, obj.shape, obj.strides, False, OrderedDict())
    if obj.base.dtype in STORAGES:
      return Name("torch._utils", "_rebuild_tensor_v2"), (obj.base, *typed)
    dtype = Name("torch", obj.base.dtype.name)
    return Name("torch._utils", "_rebuild_tensor_v3"), (obj.base, *typed, dtype)

  def save_tuple_of(self, arguments: tuple) -> None:
    """Arguments of a call; an array that comes first among those of a tensor is its storage."""
    self.write(pickle.MARK)
    for i, argument in enumerate(arguments):
      if i == 0 and isinstance(argument, np.ndarray) and len(arguments) > 3:
        super().save(self.storage(argument))
        self.write(pickle.BINPERSID)
      else:
        self.save(argument)
    self.write(pickle.TUPLE)

  def storage(self, array: np.ndarray) -> tuple:
    key = self.known.setdefault(id(array), str(len(self.known)))
    self.storages[key] = array
    kind = Name("torch", f"{STORAGES[array.dtype]}Storage") if array.dtype in STORAGES else None
    size = array.size if kind else array.nbytes
    view = (None,) if self.format == "legacy" else ()
    return ("storage", kind or Name("torch.storage", "UntypedStorage"), key, self.location, size, *view)


def contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
  """Strides, in elements, of a tensor whose elements follow each other."""
  return tuple(math.prod(max(n, 1) for n in shape[i + 1 :]) for i in range(len(shape)))


def raw(array: np.ndarray, byteorder: str = "little") -> memoryview:
  """An array's bytes, not copied if they need not be turned around."""
  flat = np.ascontiguousarray(array).reshape(-1)
  if byteorder == "big":
    flat = flat.view(f"u{flat.dtype.itemsize}").byteswap()
  return memoryview(flat.view(np.uint8))


def pickled(
  value: Any, format: str = "zip", location: str = "cpu", protocol: int = 2
) -> tuple[bytes, dict[str, np.ndarray]]:
  """The pickle of a value, and the storages that it names."""
  file = io.BytesIO()
  pickler = Pickler(file, format, location, protocol)
  pickler.dump(value)
  return file.getvalue(), pickler.storages


def write_torch_file(
  path: Any,
  value: Any,
  *,
  format: str = "zip",
  location: str = "cpu",
  protocol: int = 2,
  byteorder: str = "little",
) -> None:
  """What `torch.save(value, path)` would write, where each array in `value` is a tensor.

  Args:
    value: dicts, lists, numbers, strings and whatever else pickle writes; np.ndarray and `View` for tensors,
      `Parameter`, `Verbatim` for an array of numpy, `Name`, `Instance` and `Call` for what is not installed here.
    format: "zip", or "legacy" as before torch 1.6, which is little-endian everywhere.
    location: the device that the tensors were on.
    protocol: of pickle.
    byteorder: of the machine that writes it.
  """
  write_program(path, *pickled(value, format, location, protocol), format, byteorder)


def write_program(
  path: Any, program: bytes, storages: dict[str, np.ndarray], format: str = "zip", byteorder: str = "little"
) -> Any:
  """A file with any pickle in it; returns its path."""
  if format == "legacy":
    write_legacy(path, program, storages)
    return path
  entries = {"data.pkl": program, ".format_version": b"1", ".storage_alignment": str(ALIGNMENT).encode(),
             "byteorder": byteorder.encode(),
             **{f"data/{key}": raw(array, byteorder) for key, array in storages.items()},
             "version": b"3\n", ".data/serialization_id": b"0" * 40}  # fmt: skip
  write_zip(path, ((f"archive/{name}", data) for name, data in entries.items()))
  return path


def write_zip(path: Any, entries: Iterable[tuple[str, bytes | memoryview]]) -> None:
  """A zip archive as torch writes them: sizes after the data, and an extra field that aligns the data."""
  with open(path, "wb") as file:
    directory = bytearray()
    for count, (name, data) in enumerate(entries, 1):  # noqa: B007
      offset, checksum, size, flags = file.tell(), zlib.crc32(data), len(data), 0x808 if len(data) else 0x800
      padding = -(offset + 30 + len(name) + 4) % ALIGNMENT
      file.write(struct.pack("<4s5H3L2H", b"PK\3\4", 0, flags, 0, 0, 0, 0, 0, 0, len(name), 4 + padding))
      file.write(name.encode() + b"FB" + struct.pack("<H", padding) + b"Z" * padding)
      file.write(data)
      if size:
        file.write(struct.pack("<4s3L", b"PK\7\x08", checksum, size, size))
      header = (b"PK\1\2", 0, 0, flags, 0, 0, 0, checksum, size, size, len(name), 0, 0, 0, 0, 0, offset)
      directory += struct.pack("<4s6H3L5H2L", *header) + name.encode()
    start, size = file.tell(), len(directory)
    file.write(directory)
    file.write(struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 0x031E, 45, 0, 0, count, count, size, start))
    file.write(struct.pack("<4sLQL", b"PK\6\7", 0, start + size, 1))
    file.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, *[min(count, 0xFFFF)] * 2, size, start, 0))


def write_legacy(path: Any, program: bytes, storages: dict[str, np.ndarray]) -> None:
  """The format before torch 1.6 with any pickle in it."""
  keys = sorted(storages)
  sizes = {"short": 2, "int": 4, "long": 4}
  about = {"protocol_version": 1001, "little_endian": True, "type_sizes": sizes}
  with open(path, "wb") as file:
    for value in (0x1950A86A20F9469CFC6C, 1001, about):
      pickle.dump(value, file, protocol=2)
    file.write(program)
    pickle.dump(keys, file, protocol=2)
    for key in keys:
      array = storages[key]
      file.write(struct.pack("<q", array.size if array.dtype in STORAGES else array.nbytes))
      file.write(raw(array))


def write_checkpoint(path: Any, tensors: dict[str, np.ndarray], **others: Any) -> Any:
  """A checkpoint as the authors' `main.py` writes it on a GPU; returns its path."""
  state = {f"module.{name}": tensor for name, tensor in tensors.items()}
  write_torch_file(path, {"epoch": 25, "state_dict": state, **others}, location="cuda:0")
  return path


def from_torch(tensors: Mapping[str, np.ndarray], rows: Iterable[Any]) -> dict[str, np.ndarray]:
  """Our parameters, by path, of a state dict with the authors' names."""
  return {row.path: row.to_jax(tensors) for row in rows}


def contents(value: Any) -> list:
  """Everything that a file holds, as a flat list of things that can be compared."""
  found, todo = [], [value]
  while todo:
    value = todo.pop()
    if isinstance(value, Tensor):
      found.append((value.shape, str(value.dtype), value.read().tobytes()))
    elif isinstance(value, StandIn):
      found.append(value.name)
    elif isinstance(value, dict):
      found += [dict, *(key for key in value)]
      todo += value.values()
    elif isinstance(value, list | tuple):
      found.append((type(value), len(value)))
      todo += value
    else:
      found.append(value)
  return found


def refusal(path: Any) -> str:
  """The message with which a file is refused; it names the file."""
  with pytest.raises(TorchFileError) as caught:
    read_torch_file(path)
  message = str(caught.value)
  assert message.startswith(f"{path}: ")
  assert message.isprintable()
  return message.removeprefix(f"{path}: ")


def text(string: str) -> bytes:
  return pickle.BINUNICODE + struct.pack("<I", len(string.encode())) + string.encode()


def tensor_program(kind: str, elements: int, offset, size, stride, key: str = "0") -> bytes:
  """A pickle of {"some.weight": tensor} with any numbers."""
  storage = b"(" + text("storage") + f"ctorch\n{kind}Storage\n".encode() + text(key) + text("cpu")
  storage += pickle.dumps(elements, 2)[2:-1] + b"tQ"
  numbers = b"".join(pickle.dumps(number, 2)[2:-1] for number in (offset, size, stride))
  rebuilt = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + numbers + b"\x89}tR"
  return b"\x80\x02}" + text("some.weight") + rebuilt + b"s."
