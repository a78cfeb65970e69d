"""A small interpreter for the pickles in files of torch.save.

A pickle is a program that may call any function. This interpreter has no way to call one: it builds plain values and
tensors by itself and makes an inert `StandIn` of any other object.
"""

from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING  # from names of Python 2
from collections.abc import Callable
import dataclasses
import functools
import io
import math
import os
import pickletools
import re
import sys
from typing import Any

import ml_dtypes
import numpy as np

from mma_dfer_jax.errors import UserError, shown

LIMIT = 2**24  # bytes of a pickle, of a zip directory, of any single read: real checkpoints stay below 1 MiB
MAX_STEPS = 2**20  # opcodes of a pickle: a checkpoint with its optimizer takes 40 thousand
_NEEDLESS = "which no checkpoint needs; nothing was executed"
_DUMPED = " (pickle.dump or joblib wrote the file; load it with that, and save it with torch.save)"
_ADVICE = " (if the file is your own, save only its state_dict)"


class TorchFileError(UserError):
  """A file that torch.save did not write, that is damaged, or that asks for more than data."""


class Problem(Exception):
  """What is wrong with a file, without the file's name."""


class Damage(Problem):
  """A pickle that makes no sense."""


class Source(io.FileIO):
  """A file that is read in small pieces: the sizes in a damaged one may ask for any amount of memory."""

  def __init__(self, path: str | os.PathLike[str]):
    super().__init__(path)
    self.status = os.fstat(self.fileno())

  def read(self, size: int | None = -1, /) -> bytes:
    if size is not None and size > LIMIT:
      raise Problem(f"is damaged, or no checkpoint: {size:,} bytes would have to be read at once")
    return super().read(size) or b""

  def part(self, offset: int, size: int) -> bytes:
    """Bytes from an offset; fewer at the end of the file."""
    self.seek(offset)
    return self.read(size)


@dataclasses.dataclass(frozen=True, eq=False)
class StandIn:
  """Inert placeholder for a class or function that the file mentions, or for an object made by it."""

  name: str  # module and name such as "argparse.Namespace", printable and short


@dataclasses.dataclass(eq=False)
class Block:
  """Consecutive bytes of a file; the old format states their offset only after all tensors."""

  source: Source  # closed; its path and status tell whether the file is still the same
  offset: int
  nbytes: int
  big_endian: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class _Storage(StandIn):
  """The part of a block that tensors share, and the type of its elements."""

  block: Block
  start: int
  nbytes: int
  dtype: np.dtype


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor:
  """A tensor that need not be in memory yet: `read` returns it. bfloat16 is the type of ml_dtypes."""

  shape: tuple[int, ...]
  dtype: np.dtype
  read: Callable[[], np.ndarray]
  span: int = 0  # bytes of a file of torch.save from the first element to the last

  @property
  def nbytes(self) -> int:
    return math.prod(self.shape) * self.dtype.itemsize

  def changed(self, shape: tuple[int, ...], change: Callable[[np.ndarray], np.ndarray]) -> "Tensor":
    """The tensor with a change that is made when it is read."""
    return Tensor(shape, self.dtype, lambda: change(self.read()))


def _read(
  block: Block, start: int, span: int, shape: tuple[int, ...], dtype: np.dtype, strides: list[int]
) -> np.ndarray:
  """A tensor as a C-contiguous array, in the machine's byte order and in memory of its own; strides in elements.

  TorchFileError if the file was changed, or if the tensor repeats elements until it is larger than it and than 64 MiB.
  """
  path, then, item = block.source.name, block.source.status, dtype.itemsize
  if (nbytes := math.prod(shape) * item) > max(then.st_size, 2**26):
    raise TorchFileError(f"{path}: a tensor repeats {span:,} bytes to make {nbytes:,}")
  raw = np.dtype(f"u{item}")
  try:
    with open(path, "rb") as opened:  # read, not mapped: mapped pages would count as our memory
      now = os.fstat(opened.fileno())
      stored = raw.newbyteorder(">" if block.big_endian else "<")
      flat = np.fromfile(opened, stored, span // item, offset=block.offset + start)
  except OSError as error:
    raise TorchFileError(f"{path}: {error.strerror or error}") from error
  if (now.st_size, now.st_mtime_ns) != (then.st_size, then.st_mtime_ns) or flat.nbytes != span:
    raise TorchFileError(f"{path}: has been changed since it was opened")
  if not span:
    return np.empty(shape, dtype)
  flat = flat != 0 if dtype.kind == "b" else flat.astype(raw, copy=False).view(dtype)
  return np.asarray(np.ndarray(shape, dtype, flat, 0, [item * stride for stride in strides]), order="C")


class Machine:
  """Runs pickles and builds only plain values and tensors.

  It never recurses over values of the file, and never hashes, compares, copies or prints one before it knows how large
  it is: a pickle may nest values a million deep, or make a million of one.
  """

  def __init__(self, find: Callable[[str, int, int], Block]):
    self.find, self.steps = find, 0

  def run(self, stream: io.BytesIO) -> Any:
    """The value of the next pickle in a stream; the stream stands behind it then."""
    self.stack: list[Any] = []
    self.marks: list[int] = []
    self.memo: dict[int, Any] = {}
    position: int | None = stream.tell()
    try:
      for opcode, argument, position in pickletools.genops(stream):  # noqa: B007 # for the message
        self.spend(1)
        match opcode.name:
          case "STOP":
            break
          case "MARK":
            self.marks.append(len(self.stack))
          case "POP" | "BUILD":  # attributes are dropped
            self.pop()
          case "POP_MARK":
            self.pops()
          case name if name in _PUSHED:
            self.stack.append(_PUSHED[name](self, argument))
          case name if name not in ("PROTO", "FRAME"):
            raise Problem(f"uses {name} of pickle, {_NEEDLESS}")
      return self.pop()
    except (ValueError, LookupError, TypeError, AssertionError) as error:
      reason = f"{type(error).__name__}: {shown(str(error))}"
      raise Damage(f"is damaged or cut short at byte {position} of its pickle ({reason})") from error

  def spend(self, steps: int) -> None:
    self.steps += steps
    if self.steps > MAX_STEPS:
      raise Problem(f"needs more than {MAX_STEPS:,} steps to unpickle, far more than any checkpoint")

  def pops(self, count: int | None = None) -> list[Any]:
    """The last values of the stack; None: those since the last mark."""
    start = self.marks.pop() if count is None else len(self.stack) - count
    if start < (self.marks[-1] if self.marks else 0):
      raise IndexError("nothing on the stack")
    items = self.stack[start:]
    del self.stack[start:]
    return items

  def pop(self) -> Any:
    return self.pops(1)[0]

  def remember(self, key: int) -> Any:
    self.memo[key] = value = self.pop()
    return value

  def extended(self, items: list[Any], collection: Any) -> Any:
    if type(collection) is list:
      collection.extend(items)
    elif not isinstance(collection, StandIn):
      raise TypeError("items for something that is no list")
    return collection

  def filled(self, items: list[Any], mapping: Any) -> Any:
    """A dict with items added: a key, its value, the next key, …"""
    if type(mapping) is dict:
      for key, value in zip(items[::2], items[1::2], strict=True):
        parts = key if type(key) is tuple else (key,)
        if len(parts) > 8 or not all(_is_plain(part) for part in parts):
          raise TypeError(f"a {type(key).__name__} that cannot be the key of a dict")
        self.spend(400 if parts is key else 0)  # tuples of integers can be made to collide
        mapping[key] = value
    elif not isinstance(mapping, StandIn):
      raise TypeError("items for something that is no dict")
    return mapping

  def call(self, function: Any, arguments: Any, is_class: bool = False) -> Any:
    """The result of a call, for the few functions that are known; objects of any class are stand-ins."""
    if isinstance(function, StandIn) and function.name in _OF_SUBCLASSES:
      function, _, arguments, _ = arguments
    if not isinstance(function, StandIn) or type(arguments) is not tuple:
      raise TypeError("a call of something that is no function")
    name = function.name
    if name in _TENSORS:
      try:
        return _TENSORS[name](*arguments)
      except Problem as problem:  # say near which name of a state dict
        near = next((f" (at {shown(key)})" for key in self.stack[:-9:-1] if type(key) is str), "")
        raise Problem(f"{problem}{near}") from problem
    if name in ("collections.OrderedDict", "torch.Size"):
      items = arguments[0] if arguments or name == "torch.Size" else []  # Python 2 gave a dict's items here
      self.spend(len(items))
      if name == "torch.Size":
        return tuple(items)
      return self.filled([part for key, value in items for part in (key, value)], {})
    if not is_class and not _INERT.fullmatch(name):
      dumped = name == "torch.storage._load_from_bytes"
      raise Problem(f"asks to call {name}, {_NEEDLESS}{_DUMPED if dumped else _ADVICE}")
    return StandIn(name)

  def storage(self, reference: Any) -> StandIn:
    """The storage that a persistent id names, or (in the old format) the class of a module."""
    match reference if type(reference) is tuple else ():
      case ("module", StandIn() as cls, _, _):
        return cls
      case ("storage", StandIn(kind), str(key), _, numel, *view) if _is_size(numel) and len(key) <= 100:
        dtype = _STORAGES.get(re.sub(r"^torch\.(cuda\.|storage\._?)?", "", kind).removesuffix("Storage"))
        if dtype is None:
          raise Problem(f"holds a storage of unknown type {kind}")
        item = dtype.itemsize
        block = self.find(key, numel * item, item)
        match view:
          case [] | [None]:
            return _Storage(kind, block, 0, block.nbytes, dtype)
          case [(_, offset, size)] if _is_size(offset) and _is_size(size) and offset + size <= numel:
            return _Storage(kind, block, offset * item, size * item, dtype)
    raise Problem("refers to something outside its pickle that is no storage; nothing was executed")


_PUSHED: dict[str, Callable[[Machine, Any], Any]] = {  # what an opcode pushes, given its argument
  **{
    opcode.name: lambda _, argument: argument  # all numbers, strings and bytes
    for opcode in pickletools.opcodes
    if opcode.arg and opcode.stack_after and opcode.stack_after[0] is not pickletools.anyobject
  },
  **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda m, key: m.memo[key]),
  **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), lambda m, key: m.remember(key)),
  "MEMOIZE": lambda m, _: m.remember(len(m.memo)),
  "NONE": lambda m, _: None,
  "NEWTRUE": lambda m, _: True,
  "NEWFALSE": lambda m, _: False,
  "EMPTY_TUPLE": lambda m, _: (),
  "EMPTY_LIST": lambda m, _: [],
  "EMPTY_DICT": lambda m, _: {},
  "EMPTY_SET": lambda m, _: StandIn("builtins.set"),
  "TUPLE1": lambda m, _: tuple(m.pops(1)),
  "TUPLE2": lambda m, _: tuple(m.pops(2)),
  "TUPLE3": lambda m, _: tuple(m.pops(3)),
  "TUPLE": lambda m, _: tuple(m.pops()),
  "LIST": lambda m, _: m.pops(),
  "DICT": lambda m, _: m.filled(m.pops(), {}),
  "FROZENSET": lambda m, _: m.extended(m.pops(), StandIn("builtins.frozenset")),
  "APPEND": lambda m, _: m.extended(m.pops(1), m.pop()),
  **dict.fromkeys(("APPENDS", "ADDITEMS"), lambda m, _: m.extended(m.pops(), m.pop())),
  "SETITEM": lambda m, _: m.filled(m.pops(2), m.pop()),
  "SETITEMS": lambda m, _: m.filled(m.pops(), m.pop()),
  "GLOBAL": lambda m, names: _mentioned(*names.split(" ")),
  "STACK_GLOBAL": lambda m, _: _mentioned(*m.pops(2)),
  "REDUCE": lambda m, _: m.call(*m.pops(2)),
  "NEWOBJ": lambda m, _: m.call(*[*m.pops(2), True]),
  "OBJ": lambda m, _: m.call((items := m.pops())[0], tuple(items[1:])),
  "INST": lambda m, names: m.call(_mentioned(*names.split(" ")), tuple(m.pops())),
  "BINPERSID": lambda m, _: m.storage(m.pop()),
}


def _is_plain(key: Any) -> bool:
  """Whether a key is quickly hashed and compared, and not by a hash that can be made to collide."""
  if isinstance(key, str | bytes):
    return len(key) <= 2**12
  return key is None or isinstance(key, float | StandIn) or (isinstance(key, int) and abs(key) < 2**60)


def _mentioned(module: Any, name: Any) -> StandIn:
  """A class or function by name: of the standard library only harmless ones, of other packages any."""
  if type(module) is not str or type(name) is not str or len(module) + len(name) > 500:
    raise TypeError("a name that is no string, or too long")
  full = ".".join(NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name)))
  if "." in name or (full.split(".")[0] in sys.stdlib_module_names and not _INERT.fullmatch(full)):
    raise Problem(f"asks for {shown(full)}, {_NEEDLESS}{_ADVICE}")
  return StandIn(shown(full))


# What real checkpoints call or mention and we do not need: the result is a StandIn.
_INERT = re.compile(
  r"""
  _codecs\.encode | argparse\.Namespace | copyreg\._reconstructor | decimal\.Decimal | random\.Random
  | builtins\.(bool|bytearray|bytes|complex|dict|float|frozenset|int|list|object|range|set|slice|str|tuple)
  | collections\.(Counter|OrderedDict|defaultdict|deque)
  | datetime\.(date|datetime|time|timedelta|timezone)
  | numpy\.(dtype|ndarray) | numpy\._?core\.(multiarray\.(_reconstruct|scalar)|numeric\._frombuffer)
  | numpy\.random\.(_pickle\.__\w+_ctor|bit_generator\.__pyx_unpickle_SeedSequence)
  | pathlib(\._local)?\.(Pure)?(Posix|Windows)?Path
  | torch\.(Generator|device|serialization\._get_layout|_utils\._rebuild_\w+)
  | types\.SimpleNamespace | typing\.Any | uuid\.UUID
  """,
  re.VERBOSE,
)


_DTYPES = {f"torch.{name}": np.dtype(name) for name in (
  "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64", "bool",
)} | {"torch.bfloat16": np.dtype(ml_dtypes.bfloat16)}  # fmt: skip
_STORAGES = {kind: np.dtype(dtype) for kind, dtype in {
  "Untyped": "u1", "Byte": "u1", "Char": "i1", "Short": "i2", "Int": "i4", "Long": "i8", "Bool": "?",
  "Half": "f2", "BFloat16": ml_dtypes.bfloat16, "Float": "f4", "Double": "f8",
  # Only the size of these is known; their tensors become StandIns.
  "ComplexFloat": "V8", "ComplexDouble": "V16", "QInt32": "V4", "QInt8": "V1", "QUInt8": "V1", "QUInt4x2": "V1",
  "QUInt2x4": "V1",
}.items()}  # fmt: skip


def _tensor(storage, offset, size, strides, dtype=None, metadata=None) -> StandIn | Tensor:
  """A tensor, if it lies within its storage; offset, size and strides in elements. Source: torch._utils._rebuild_*."""
  if not isinstance(storage, _Storage) or type(size) is not tuple or type(strides) is not tuple:
    raise TypeError("a tensor without storage or size")
  if len(size) != len(strides) or len(size) > 64:
    raise Problem(f"holds a tensor of {len(size)} sizes and {len(strides)} strides")
  facts = f"shape {_numbers(size)}, strides {_numbers(strides)}, first element {_numbers((offset,))}"
  if not all(_is_size(number) for number in (offset, *size, *strides)):
    raise Problem(f"holds a tensor that cannot be: {facts}")
  stored = _DTYPES.get(getattr(dtype, "name", "")) if dtype is not None else storage.dtype
  if stored is None or stored.type is np.void or metadata:  # metadata: to be conjugated or negated
    return StandIn(f"torch.Tensor ({getattr(dtype or storage, 'name', 'unknown')})")
  offset = 0 if 0 in size else offset  # an empty tensor can have any
  reach = 0 if 0 in size else 1 + sum((n - 1) * stride for n, stride in zip(size, strides, strict=True))
  end = (offset + reach) * stored.itemsize
  if end > storage.nbytes:
    raise Problem(f"holds a tensor of {facts}: it ends at byte {end:,} of a storage of {storage.nbytes:,}")
  if math.prod(max(n, 1) for n in size) * stored.itemsize >= 2**63:
    raise Problem(f"holds a tensor that no memory can hold: {facts}")
  start, span = storage.start + offset * stored.itemsize, end - offset * stored.itemsize
  strides = [stride if n > 1 else 0 for n, stride in zip(size, strides, strict=True)]
  read = functools.partial(_read, storage.block, start, span, size, stored, strides)
  return Tensor(size, stored, read, span)


# s: storage, o: offset, n: size, t: strides, g: whether it requires a gradient, h: hooks.
_TENSORS: dict[str, Callable[..., Any]] = {
  "torch._utils._rebuild_tensor": lambda s, o, n, t: _tensor(s, o, n, t),
  "torch._utils._rebuild_tensor_v2": lambda s, o, n, t, g, h, *more: _tensor(s, o, n, t, None, *more),
  "torch._utils._rebuild_tensor_v3": lambda s, o, n, t, g, h, *more: _tensor(s, o, n, t, *more),
  "torch._utils._rebuild_parameter": lambda data, g, h: data,
  "torch._utils._rebuild_parameter_with_state": lambda data, g, h, state: data,
  "torch.nn.parameter.Parameter": lambda data, g=True: data,  # called directly before torch 0.4
}
# These call one of the above for a subclass of Tensor and set its attributes.
_OF_SUBCLASSES = {"torch._tensor._rebuild_from_type_v2", "torch.tensor._rebuild_from_type"}


def _is_size(number: Any) -> bool:
  return type(number) is int and 0 <= number < 2**63


def _numbers(numbers: tuple[Any, ...]) -> str:
  """Numbers for a message; "?" for anything else and for very large ones."""
  return f"({', '.join(str(n) if type(n) is int and abs(n) < 2**63 else '?' for n in numbers)})"
