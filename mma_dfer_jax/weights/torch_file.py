"""Files of torch.save read without PyTorch and without executing anything in them.

Their centre is a pickle: a program that may call any function there is. Here it runs on a machine that has no way to
call one. It knows by name what builds tensors, and keeps an inert `StandIn` for all else that checkpoints hold.
"""

from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING  # from names of Python 2
from collections.abc import Callable
import dataclasses
import io
import math
import os
import pickletools
import re
import stat
import struct
import sys
from typing import Any
import zipfile
import zlib

import ml_dtypes
import numpy as np

from mma_dfer_jax.errors import UserError

LIMIT = 2**24  # bytes of a pickle, of a zip directory, of any single read: real checkpoints stay below 1 MiB
MAX_STEPS = 2**20  # opcodes of a pickle: a checkpoint with its optimizer takes 40 thousand
CHUNK = 2**22  # bytes whose checksum is taken at once
OLD_MAGIC, OLD_VERSION = 0x1950A86A20F9469CFC6C, 1001  # the first two pickles of the format before torch 1.6


_ADVICE = " (if the file is your own, save its state_dict alone)"


class TorchFileError(UserError):
  """A file that torch.save did not write, that is damaged, or that asks for more than data."""


class _Problem(Exception):
  """What is wrong with a file, still without the file's name."""


class _Damage(_Problem):
  """A pickle that makes no sense."""


@dataclasses.dataclass(frozen=True, eq=False)
class StandIn:
  """Stands for a class or a function that the file mentions, or for an object of it; nothing is ever called.

  Attributes:
    name: module and name such as "argparse.Namespace", printable and not long.
  """

  name: str


@dataclasses.dataclass(frozen=True)
class _File:
  """Path, size in bytes and time of the last change: to know the file again when tensors are read from it."""

  path: str
  size: int
  changed: int


@dataclasses.dataclass(eq=False)
class _Block:
  """Consecutive bytes of a file; the old format tells their offset only after all tensors."""

  file: _File
  offset: int
  nbytes: int
  big_endian: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class _Storage(StandIn):
  """Bytes of a block that tensors are cut out of, and the type of its elements."""

  block: _Block
  start: int
  nbytes: int
  dtype: np.dtype


@dataclasses.dataclass(frozen=True, eq=False)
class StoredTensor:
  """A tensor that still lies in its file.

  Attributes:
    shape, dtype: of the array that `read` gives; bfloat16 is the one of ml_dtypes.
    strides: in elements, never negative.
    start: byte of `block` at which the first element is.
    block: where the file has the storage.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  strides: tuple[int, ...]
  start: int
  block: _Block

  @property
  def nbytes(self) -> int:
    """Bytes of the array that `read` gives."""
    return math.prod(self.shape) * self.dtype.itemsize

  @property
  def span(self) -> int:
    """Bytes of the file that `read` reads: from the first element to the last."""
    return _reach(self.shape, self.strides) * self.dtype.itemsize

  def read(self) -> np.ndarray:
    """The tensor as a C-contiguous array, in the machine's byte order and in memory of its own.

    Raises:
      TorchFileError: if the file changed after it was opened, or if the tensor repeats elements (torch's `expand`)
        until it is larger than the file and than 64 MiB.
    """
    file, item = self.block.file, self.dtype.itemsize
    if self.nbytes > max(file.size, 2**26):
      raise TorchFileError(f"{file.path}: a tensor repeats {self.span:,} bytes to make {self.nbytes:,}")
    raw = np.dtype(f"u{item}")
    stored = raw.newbyteorder(">" if self.block.big_endian else "<")
    try:
      with open(file.path, "rb") as opened:  # read, not mapped: mapped pages would count as our memory
        status = os.fstat(opened.fileno())
        flat = np.fromfile(opened, stored, self.span // item, offset=self.block.offset + self.start)
    except OSError as error:
      raise TorchFileError(f"{file.path}: {error.strerror or error}") from error
    if (status.st_size, status.st_mtime_ns) != (file.size, file.changed) or flat.nbytes != self.span:
      raise TorchFileError(f"{file.path}: has been changed since it was opened")
    if not self.span:
      return np.empty(self.shape, self.dtype)
    flat = flat != 0 if self.dtype == bool else flat.astype(raw, copy=False).view(self.dtype)
    strides = [item * stride for stride in self.strides]
    return np.asarray(np.ndarray(self.shape, self.dtype, flat, 0, strides), order="C")


def read_torch_file(path: str | os.PathLike[str]) -> Any:
  """What torch.save put into a file; its tensors stay there until they are read one by one.

  Args:
    path: a file of torch 0.1.10 or later, a zip archive (since 1.6) or in the old format. All of a zip archive is
      compared with its checksums. The old format has none, so that a changed weight cannot be noticed there.
  Returns:
    dicts (also for OrderedDict), lists, tuples, numbers, strings, bytes, None; `StoredTensor` for tensors and
    parameters; `StandIn` for all else: objects of other classes, sets, arrays and numbers of numpy, and tensors that
    are quantized, sparse, complex or float8.
  Raises:
    TorchFileError: if there is no such file, it is something else, damaged or cut short, or its pickle asks for a
      function that has no business in a checkpoint. The message begins with the path.
  """
  try:
    if not stat.S_ISREG(os.stat(path).st_mode):  # reading a pipe or a device might never end
      raise _Problem("is a folder, a device or a pipe, not a file")
    with _Source(path) as source:
      status = os.fstat(source.fileno())
      file = _File(os.fspath(path), status.st_size, status.st_mtime_ns)
      return (_read_zip if source.part(0, 4) == b"PK\3\4" else _read_old)(source, file)
  except _Problem as problem:
    raise TorchFileError(f"{path}: {problem}") from problem
  except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
    raise TorchFileError(f"{path}: {getattr(error, 'strerror', None) or error}") from error


class _Source(io.FileIO):
  """A file that is read in small parts, because the sizes in a damaged one may ask for any amount of memory."""

  def read(self, size: int | None = -1, /) -> bytes:
    if size is not None and size > LIMIT:
      raise _Problem(f"is damaged, or no checkpoint: {size:,} bytes would have to be read at once")
    return super().read(size) or b""

  def part(self, offset: int, size: int) -> bytes:
    """Bytes from an offset; fewer at the end of the file."""
    self.seek(offset)
    return self.read(size)


def _shown(text: str) -> str:
  """Text from the file as it may stand in a message: without line breaks and control characters, and not long."""
  return text[:100].encode("unicode_escape").decode() + "…" * (len(text) > 100)


# --- The zip archive ---


def _read_zip(source: _Source, file: _File) -> Any:
  blocks = _blocks(source, file)
  order = blocks.get("byteorder")
  if order and source.part(order.offset, min(order.nbytes, 4)) == b"big":
    for block in blocks.values():
      block.big_endian = True

  def find(key: str, nbytes: int, item: int) -> _Block:
    block = blocks.get(f"data/{key}")
    if block is None or block.nbytes != nbytes:
      there = f"there are {block.nbytes:,}" if block else "it is missing"
      raise _Problem(f"is damaged: storage {_shown(key)} should have {nbytes:,} bytes, {there}")
    return block

  return _Machine(find).run(io.BytesIO(source.part(blocks["data.pkl"].offset, blocks["data.pkl"].nbytes)))


def _blocks(source: _Source, file: _File) -> dict[str, _Block]:
  """Where the entries of the archive are, by name within its folder; directory, entries and checksums agree."""
  try:
    with zipfile.ZipFile(source) as archive:
      infos, directory = archive.infolist(), archive.start_dir
  except (zipfile.BadZipFile, NotImplementedError, struct.error, ValueError, OverflowError, OSError) as error:
    raise _Problem(f"is cut short or damaged: the directory at its end ({_shown(str(error))})") from error
  folder = _folder([info.filename for info in infos])
  checked = any(info.CRC for info in infos)  # torch can be told to leave all checksums out
  blocks, end = {}, 0
  for info in sorted(infos, key=lambda info: info.header_offset):
    entry = f"is damaged, or not of torch.save: entry {_shown(info.filename)}"
    if info.flag_bits & 0x2041:
      raise _Problem(f"{entry} is encrypted")
    if info.compress_type != zipfile.ZIP_STORED:
      raise _Problem(f"{entry} is compressed; unpack the archive and pack it without compression")
    block = _Block(file, _data_offset(source, info), info.file_size)
    if info.header_offset < end or block.offset + block.nbytes > directory:
      raise _Problem(f"{entry} overlaps another one or ends outside the file")
    if checked and _checksum(source, block) != info.CRC:
      raise _Problem(f"{entry} does not match its checksum")
    end = block.offset + block.nbytes
    blocks[info.filename.removeprefix(folder)] = block
  return blocks


def _folder(names: list[str]) -> str:
  """The folder, with a slash, that holds all entries; checks that they are named as torch.save names them."""
  if any(re.fullmatch(r"[^/]+/(constants\.pkl|code/.*)", name) for name in names):
    raise _Problem("is a TorchScript program (torch.jit.save); save the model's state_dict() with torch.save")
  pickle = next((name for name in names if re.fullmatch(r"[^/\\]+/data\.pkl", name)), None)
  if pickle is None:
    some = ", ".join(_shown(name) for name in names[:3])
    raise _Problem(f"is a zip archive, but not of torch.save; it holds {some}, …. Unpack it")
  folder = pickle.removesuffix("data.pkl")
  for name in names:
    if not name.startswith(folder) or "\\" in name or ".." in name.split("/"):
      raise _Problem(f"is damaged, or not of torch.save: entry {_shown(name)} is not in {_shown(folder)}")
  if len(set(names)) < len(names):
    raise _Problem("is damaged, or not of torch.save: two entries have the same name")
  return folder


def _data_offset(source: _Source, info: zipfile.ZipInfo) -> int:
  """Where an entry's data begin, from the header in front of them, which must agree with the directory."""
  header = source.part(info.header_offset, 30) if 0 <= info.header_offset < 2**63 else b""
  if len(header) == 30:
    magic, *_, method, _, _, crc, packed, size, n, extra = struct.unpack("<4s5H3L2H", header)
    name = source.read(n).decode("utf-8" if info.flag_bits & 0x800 else "cp437", "replace")
    later = {0} if info.flag_bits & 8 else set()  # not known yet when the header was written
    sizes = {info.file_size, 0xFFFFFFFF} | later  # 2**32 - 1: more than that, see the extra field
    if (
      (magic, method, name, info.compress_size) == (b"PK\3\4", 0, info.orig_filename, info.file_size)
      and {packed, size} <= sizes
      and crc in {info.CRC} | later
      and info.filename == info.orig_filename  # else cut at a zero byte
    ):
      return info.header_offset + 30 + n + extra
  raise _Problem(f"is damaged: the header of entry {_shown(info.filename)} does not agree with the directory")


def _checksum(source: _Source, block: _Block) -> int:
  source.seek(block.offset)
  checksum = 0
  for start in range(0, block.nbytes, CHUNK):
    checksum = zlib.crc32(source.read(min(CHUNK, block.nbytes - start)), checksum)
  return checksum


# --- The format before torch 1.6: five pickles, then each storage's number of elements (int64) and its bytes ---


def _read_old(source: _Source, file: _File) -> Any:
  stream = io.BytesIO(source.part(0, LIMIT))
  blocks: dict[str, _Block] = {}
  items: dict[str, int] = {}  # bytes of an element

  def find(key: str, nbytes: int, item: int) -> _Block:
    items.setdefault(key, item)
    block = blocks.setdefault(key, _Block(file, 0, nbytes))
    if block.nbytes != nbytes:
      raise _Problem(f"is damaged: storage {_shown(key)} has {block.nbytes:,} bytes or {nbytes:,}")
    return block

  machine = _Machine(find)
  try:
    magic = machine.run(stream)
  except _Damage:
    magic = None
  if magic != OLD_MAGIC:
    raise _Problem(_what_it_is(stream.getvalue(), pickled=magic is not None))
  if machine.run(stream) != OLD_VERSION:
    raise _Problem("is damaged, or of an unknown version of the old format")
  machine.run(stream)  # about the machine that wrote it; the data are little-endian on all machines
  value, keys = machine.run(stream), machine.run(stream)
  if type(keys) is not list or any(type(key) is not str for key in keys):
    raise _Problem("is damaged: it has no list of storages")
  if len(keys) != len(blocks) or set(keys) != blocks.keys():
    raise _Problem("is damaged: the storages that it has are not those that its tensors need")
  end = stream.tell()
  for key in keys:
    block = blocks[key]
    block.offset = end + 8
    end = block.offset + block.nbytes
    if end > file.size:
      raise _Problem(f"is cut short: storage {_shown(key)} ends at byte {end:,} of {file.size:,}")
    if int.from_bytes(source.part(block.offset - 8, 8), "little") * items[key] != block.nbytes:
      raise _Problem(f"is damaged: storage {_shown(key)} has another size than its tensors need")
  if end != file.size:
    raise _Problem(f"is damaged: {file.size - end:,} bytes follow the last storage")
  return value


def _what_it_is(head: bytes, pickled: bool) -> str:
  """What a file is that torch.save did not write, and what to do about it."""
  for pattern, kind in _OTHER_FILES.items():
    if re.match(pattern, head[:1024], re.DOTALL | re.IGNORECASE):
      return f"is {kind}"
  if pickled or head[:1] == b"\x80":
    return "is a pickle, but not a whole one of torch.save (joblib and pickle.dump write such files)"
  return "is not a file of torch.save" if re.search(rb"[\0-\x08\x0e-\x1a]", head[:1024]) else "is a text file"


_OTHER_FILES = {
  rb"\Z": "empty",
  rb"\s*<(!doctype html|html|head|\?xml)": "an HTML page, the usual result of a failed download (Google Drive shows "
  "one before a large file); open it in a browser and download the file itself",
  rb"version https://git-lfs": "only a pointer to a file that git LFS keeps; fetch it with git lfs pull",
  rb".{6}\0\0\s*\{": "a safetensors file; name it .safetensors",
  rb".{257}ustar|sys_info\0": "a tar archive; unpack it, or if torch before 0.1.10 wrote it, let a newer torch save it",
  rb"\x1f\x8b|\xfd7zXZ\0|7z\xbc\xaf|BZh\d|\x28\xb5\x2f\xfd|Rar!": "a compressed archive; unpack it",
  rb"\x93NUMPY": "an array of numpy (.npy), not a checkpoint",
  rb"\x89HDF": "an HDF5 file, as Keras writes them, not a checkpoint of torch",
  rb"PK": "an empty or damaged zip archive",
}


# --- The machine that runs pickles ---


class _Machine:
  """Runs pickles as far as they build plain values and tensors.

  Nothing here recurses over values of the file, or hashes, compares, copies or prints them before it knows how large
  they are: a pickle may nest them a million deep, or make a million of one.

  Args:
    find: gives the block of a storage from its key, its bytes, and the bytes of an element.
  """

  def __init__(self, find: Callable[[str, int, int], _Block]):
    self.find = find
    self.steps = 0
    self.stack: list[Any] = []
    self.marks: list[int] = []
    self.memo: dict[int, Any] = {}

  def run(self, stream: io.BytesIO) -> Any:
    """The value of the pickle at which a stream stands; leaves the stream behind it."""
    self.stack, self.marks, self.memo = [], [], {}
    position: int | None = stream.tell()
    try:
      for opcode, argument, position in pickletools.genops(stream):  # noqa: B007 # the message tells it
        self.spend(1)
        match opcode.name:
          case "STOP":
            break
          case "MARK":
            self.marks.append(len(self.stack))
          case "POP":
            self.pop()
          case "POP_MARK":
            self.to_mark()
          case name if name in _PUSHED:
            self.stack.append(_PUSHED[name](self, argument))
          case name if name not in ("PROTO", "FRAME"):
            raise _Problem(f"uses {name} of pickle, which no checkpoint needs; nothing was executed")
      return self.pop()
    except (ValueError, LookupError, TypeError, AssertionError) as error:
      reason = f"{type(error).__name__}: {_shown(str(error))}"
      raise _Damage(f"is damaged or cut short at byte {position} of its pickle ({reason})") from error

  def spend(self, steps: int) -> None:
    self.steps += steps
    if self.steps > MAX_STEPS:
      raise _Problem(f"needs more than {MAX_STEPS:,} steps to unpickle, far more than any checkpoint")

  def top(self) -> Any:
    if len(self.stack) <= (self.marks[-1] if self.marks else 0):
      raise IndexError("nothing on the stack")
    return self.stack[-1]

  def pop(self) -> Any:
    self.top()
    return self.stack.pop()

  def pops(self, count: int) -> list[Any]:
    return [self.pop() for _ in range(count)][::-1]

  def to_mark(self) -> list[Any]:
    mark = self.marks.pop()
    items = self.stack[mark:]
    del self.stack[mark:]
    return items

  def remember(self, key: int) -> Any:
    self.memo[key] = self.pop()
    return self.memo[key]

  def extended(self, items: list[Any], collection: Any) -> Any:
    if type(collection) is list:
      collection.extend(items)
    elif not isinstance(collection, StandIn):
      raise TypeError("items for something that is no list")
    return collection

  def filled(self, items: list[Any], mapping: Any) -> Any:
    """A dict after keys and values, which take turns in `items`, were put into it."""
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

  def built(self, attributes: Any, value: Any) -> Any:
    """A value after attributes were given to it, which is nothing here."""
    if not isinstance(value, StandIn | StoredTensor | dict):
      raise TypeError("attributes for something that has none")
    return value

  def new(self, cls: Any, arguments: Any) -> Any:
    """An object of any class: it stays inert."""
    return self.call(cls, arguments, is_class=True)

  def call(self, function: Any, arguments: Any, is_class: bool = False) -> Any:
    """What a call would give, for the few functions that are known."""
    if isinstance(function, StandIn) and function.name in _OF_SUBCLASSES:
      function, _, arguments, _ = arguments
    if not isinstance(function, StandIn) or type(arguments) is not tuple:
      raise TypeError("a call of something that is no function")
    name = function.name
    if name in _TENSORS:
      try:
        return _TENSORS[name](*arguments)
      except _Problem as problem:
        near = next((f" (at {_shown(key)})" for key in self.stack[:-9:-1] if type(key) is str), "")
        raise _Problem(f"{problem}{near}") from problem
    if name == "collections.OrderedDict":
      items = arguments[0] if arguments else []  # Python 2 gave the items here
      self.spend(len(items))
      return self.filled([part for key, value in items for part in (key, value)], {})
    if name == "torch.Size":
      self.spend(len(arguments[0]))
      return tuple(arguments[0])
    if not is_class and not _INERT.fullmatch(name):
      raise _Problem(f"asks to call {name}, which no checkpoint needs; nothing was executed{_ADVICE}")
    return StandIn(name)

  def storage(self, reference: Any) -> StandIn:
    """The storage that a persistent id names, or the class of a module, for which the old format has them too."""
    match reference if type(reference) is tuple else ():
      case ("module", StandIn() as cls, _, _):
        return cls
      case ("storage", StandIn(kind), str(key), _, numel, *view) if _is_size(numel) and len(key) <= 100:
        dtype = _STORAGES.get(re.sub(r"^torch\.(cuda\.|storage\._?)?", "", kind).removesuffix("Storage"))
        if dtype is None:
          raise _Problem(f"holds a storage of unknown type {kind}")
        item = dtype.itemsize
        block = self.find(key, numel * item, item)
        match view:
          case [] | [None]:
            return _Storage(kind, block, 0, block.nbytes, dtype)
          case [(_, offset, size)] if _is_size(offset) and _is_size(size) and offset + size <= numel:
            return _Storage(kind, block, offset * item, size * item, dtype)
    raise _Problem("refers to something outside its pickle that is no storage; nothing was executed")


_PUSHED: dict[str, Callable[[_Machine, Any], Any]] = {  # what an opcode pushes, given its argument
  **{
    opcode.name: lambda _, argument: argument  # all numbers, strings and bytes
    for opcode in pickletools.opcodes
    if opcode.arg and opcode.stack_after and opcode.stack_after[0] is not pickletools.anyobject
  },
  **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda machine, key: machine.memo[key]),
  **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), lambda machine, key: machine.remember(key)),
  "MEMOIZE": lambda machine, _: machine.remember(len(machine.memo)),
  "DUP": lambda machine, _: machine.top(),
  "NONE": lambda machine, _: None,
  "NEWTRUE": lambda machine, _: True,
  "NEWFALSE": lambda machine, _: False,
  "EMPTY_TUPLE": lambda machine, _: (),
  "EMPTY_LIST": lambda machine, _: [],
  "EMPTY_DICT": lambda machine, _: {},
  "EMPTY_SET": lambda machine, _: StandIn("builtins.set"),
  "TUPLE1": lambda machine, _: tuple(machine.pops(1)),
  "TUPLE2": lambda machine, _: tuple(machine.pops(2)),
  "TUPLE3": lambda machine, _: tuple(machine.pops(3)),
  "TUPLE": lambda machine, _: tuple(machine.to_mark()),
  "LIST": lambda machine, _: machine.to_mark(),
  "DICT": lambda machine, _: machine.filled(machine.to_mark(), {}),
  "FROZENSET": lambda machine, _: machine.extended(machine.to_mark(), StandIn("builtins.frozenset")),
  "APPEND": lambda machine, _: machine.extended(machine.pops(1), machine.pop()),
  "APPENDS": lambda machine, _: machine.extended(machine.to_mark(), machine.pop()),
  "ADDITEMS": lambda machine, _: machine.extended(machine.to_mark(), machine.pop()),
  "SETITEM": lambda machine, _: machine.filled(machine.pops(2), machine.pop()),
  "SETITEMS": lambda machine, _: machine.filled(machine.to_mark(), machine.pop()),
  "BUILD": lambda machine, _: machine.built(machine.pop(), machine.pop()),
  "GLOBAL": lambda machine, names: _mentioned(*names.split(" ")),
  "STACK_GLOBAL": lambda machine, _: _mentioned(*machine.pops(2)),
  "REDUCE": lambda machine, _: machine.call(*machine.pops(2)),
  "NEWOBJ": lambda machine, _: machine.new(*machine.pops(2)),
  "OBJ": lambda machine, _: machine.call((items := machine.to_mark())[0], tuple(items[1:])),
  "INST": lambda machine, names: machine.call(_mentioned(*names.split(" ")), tuple(machine.to_mark())),
  "BINPERSID": lambda machine, _: machine.storage(machine.pop()),
}


def _is_plain(key: Any) -> bool:
  """Whether a key is quickly hashed and compared, and not by a hash that can be made to collide."""
  if isinstance(key, str | bytes):
    return len(key) <= 2**12
  if isinstance(key, int):
    return abs(key) < 2**60
  return key is None or isinstance(key, float | StandIn)


def _mentioned(module: Any, name: Any) -> StandIn:
  """A class or function by name: any of other packages, but of the standard library only what is harmless."""
  if type(module) is not str or type(name) is not str or len(module) + len(name) > 500:
    raise TypeError("a name that is no string, or too long")
  full = ".".join(NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name)))
  if "." in name or (full.split(".")[0] in sys.stdlib_module_names and not _INERT.fullmatch(full)):
    raise _Problem(f"asks for {_shown(full)}, which no checkpoint needs; nothing was executed{_ADVICE}")
  return StandIn(_shown(full))


# What real checkpoints call or mention and we need not have: the result is a StandIn.
_INERT = re.compile(
  r"""
  _codecs\.encode | argparse\.Namespace | copyreg\._reconstructor | decimal\.Decimal | random\.Random
  | builtins\.(bool|bytearray|bytes|complex|dict|float|frozenset|int|list|object|range|set|slice|str|tuple)
  | collections\.(Counter|OrderedDict|defaultdict|deque)
  | datetime\.(date|datetime|time|timedelta|timezone)
  | numpy\.(dtype|ndarray) | numpy\._?core\.(multiarray\.(_reconstruct|scalar)|numeric\._frombuffer)
  | numpy\.random\.(_pickle\.__(randomstate|generator|bit_generator)_ctor|bit_generator\.__pyx_unpickle_SeedSequence)
  | pathlib(\._local)?\.(Path|PosixPath|WindowsPath|PurePath|PurePosixPath|PureWindowsPath)
  | torch\.(Generator|device|serialization\._get_layout)
  | torch\._utils\._rebuild_(q|sparse_|sparse_csr_|nested_|xla_)tensor
  | torch\._utils\._rebuild_(device_tensor_from_(cpu_tensor|numpy)|meta_tensor_no_storage|wrapper_subclass)
  | types\.SimpleNamespace | typing\.Any | uuid\.UUID
  """,
  re.VERBOSE,
)


# --- Tensors ---

_DTYPES = {
  **{
    f"torch.{sign}int{bits}": np.dtype(f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)
  },
  **{f"torch.{name}": np.dtype(name) for name in ("float16", "float32", "float64", "bool")},
  "torch.bfloat16": np.dtype(ml_dtypes.bfloat16),
}
_STORAGES = {
  kind: np.dtype(dtype)
  for kind, dtype in {
    "Untyped": "u1", "Byte": "u1", "Char": "i1", "Short": "i2", "Int": "i4", "Long": "i8", "Bool": "?",
    "Half": "f2", "BFloat16": ml_dtypes.bfloat16, "Float": "f4", "Double": "f8",
    # Of these only the size is known; their tensors become StandIns.
    "ComplexFloat": "V8", "ComplexDouble": "V16", "QInt32": "V4", "QInt8": "V1", "QUInt8": "V1", "QUInt4x2": "V1",
    "QUInt2x4": "V1",
  }.items()
}  # fmt: skip


def _tensor(
  storage: Any, offset: Any, size: Any, strides: Any, dtype: Any = None, metadata: Any = None
) -> StandIn | StoredTensor:
  """A tensor that is really there in its storage; offset, size and strides in elements.

  Source: torch._utils._rebuild_tensor and its later versions.
  """
  if not isinstance(storage, _Storage) or type(size) is not tuple or type(strides) is not tuple:
    raise TypeError("a tensor without storage or size")
  if len(size) != len(strides) or len(size) > 64:
    raise _Problem(f"holds a tensor of {len(size)} sizes and {len(strides)} strides")
  shown = f"shape {_numbers(size)}, strides {_numbers(strides)}, first element {_numbers((offset,))}"
  if not all(_is_size(number) for number in (offset, *size, *strides)):
    raise _Problem(f"holds a tensor that cannot be: {shown}")
  stored = _DTYPES.get(getattr(dtype, "name", "")) if dtype is not None else storage.dtype
  if stored is None or stored.type is np.void or metadata:  # metadata: to be conjugated or negated
    return StandIn(f"torch.Tensor ({getattr(dtype or storage, 'name', 'unknown')})")
  offset = 0 if 0 in size else offset  # of an empty tensor it can be any
  end = (offset + _reach(size, strides)) * stored.itemsize
  if end > storage.nbytes:
    raise _Problem(f"holds a tensor of {shown}: it ends at byte {end:,} of a storage of {storage.nbytes:,}")
  if math.prod(max(n, 1) for n in size) * stored.itemsize >= 2**63:
    raise _Problem(f"holds a tensor that no memory can hold: {shown}")
  strides = tuple(stride if n > 1 else 0 for n, stride in zip(size, strides, strict=True))
  return StoredTensor(size, stored, strides, storage.start + offset * stored.itemsize, storage.block)


# s: storage, o: offset, n: size, t: strides, g: whether it requires a gradient, h: hooks.
_TENSORS: dict[str, Callable[..., Any]] = {
  "torch._utils._rebuild_tensor": lambda s, o, n, t: _tensor(s, o, n, t),
  "torch._utils._rebuild_tensor_v2": lambda s, o, n, t, g, h, *more: _tensor(s, o, n, t, None, *more),
  "torch._utils._rebuild_tensor_v3": lambda s, o, n, t, g, h, *more: _tensor(s, o, n, t, *more),
  "torch._utils._rebuild_parameter": lambda data, g, h: data,
  "torch._utils._rebuild_parameter_with_state": lambda data, g, h, state: data,
  "torch.nn.parameter.Parameter": lambda data, g=True: data,  # called directly before torch 0.4
}
# These call one of the former for a subclass of Tensor, and give the result its attributes.
_OF_SUBCLASSES = {"torch._tensor._rebuild_from_type_v2", "torch.tensor._rebuild_from_type"}


def _reach(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
  """Elements of storage from the first of a tensor to its last."""
  return 0 if 0 in shape else 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))


def _is_size(number: Any) -> bool:
  return type(number) is int and 0 <= number < 2**63


def _numbers(numbers: tuple[Any, ...]) -> str:
  """Numbers for a message; what is none, or very large, becomes "?"."""
  return f"({', '.join(str(n) if type(n) is int and abs(n) < 2**63 else '?' for n in numbers)})"
