"""Reads files of torch.save, zip archives or the format before torch 1.6, without PyTorch; see `pickles.py`."""

import io
import os
import re
import stat
from typing import Any
import zipfile

from mma_dfer_jax.errors import shown
from mma_dfer_jax.weights.pickles import LIMIT, Block, Damage, Machine, Problem, Source, TorchFileError

CHUNK = 2**22  # bytes that a checksum reads at once
OLD_MAGIC, OLD_VERSION = 0x1950A86A20F9469CFC6C, 1001  # the first two pickles of the format before torch 1.6


def read_torch_file(path: str | os.PathLike[str]) -> Any:
  """What torch.save put into a file, zip or old format (without checksums); tensors stay there until read.

  Returns:
    dicts (also for OrderedDict), lists, tuples, numbers, strings, bytes, None; `Tensor` for tensors and parameters;
    `StandIn` for all else: other objects, sets, values of numpy; quantized, sparse, complex or float8 tensors.
  Raises:
    TorchFileError: if the file is missing, something else, damaged or cut short, or if its pickle asks for a function
      that no checkpoint needs. The message begins with the path.
  """
  try:
    if not stat.S_ISREG(os.stat(path).st_mode):  # reading a pipe or a device might never end
      raise Problem("is a folder, a device or a pipe, not a file")
    with Source(path) as source:
      return (_read_zip if source.part(0, 4) == b"PK\3\4" else _read_old)(source)
  except Problem as problem:
    raise TorchFileError(f"{path}: {problem}") from problem
  except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
    raise TorchFileError(f"{path}: {getattr(error, 'strerror', None) or error}") from error


# --- The zip archive ---


def _read_zip(source: Source) -> Any:
  blocks = _blocks(source)
  order = blocks.get("byteorder")
  if order and source.part(order.offset, min(order.nbytes, 4)) == b"big":
    for block in blocks.values():
      block.big_endian = True

  def find(key: str, nbytes: int, item: int) -> Block:
    block = blocks.get(f"data/{key}")
    if block is None or block.nbytes != nbytes:
      there = f"there are {block.nbytes:,}" if block else "it is missing"
      raise Problem(f"is damaged: storage {shown(key)} should have {nbytes:,} bytes, {there}")
    return block

  program = blocks["data.pkl"]
  return Machine(find).run(io.BytesIO(source.part(program.offset, program.nbytes)))


def _blocks(source: Source) -> dict[str, Block]:
  """The entries of the archive by name within its folder, if directory, names and checksums agree."""
  blocks, end = {}, 0
  try:
    with zipfile.ZipFile(source) as archive:
      folder = _folder([info.orig_filename for info in archive.infolist()])
      infos = sorted(archive.infolist(), key=lambda info: info.header_offset)
      checked = any(info.CRC for info in infos)  # torch can leave out all checksums
      for info in infos:
        entry = f"entry {info.filename}"
        if info.compress_type != zipfile.ZIP_STORED:
          raise ValueError(f"{entry} is compressed; unpack the archive and pack it without compression")
        with archive.open(info) as data:  # compares the names; reading to the end compares the checksum
          start, overlaps = source.tell(), info.header_offset < end
          end = start + info.file_size
          if overlaps or end > archive.start_dir or info.compress_size != info.file_size:
            raise ValueError(f"{entry} overlaps another one or ends outside the file")
          while checked and data.read(CHUNK):
            pass
        blocks[info.filename.removeprefix(folder)] = Block(source, start, info.file_size)
  except Problem:
    raise
  except Exception as error:  # zipfile lets nearly anything out of a damaged file
    reason = shown(str(error) or "it ends within an entry")
    raise Problem(f"is cut short, damaged, or not of torch.save: {reason}") from error
  return blocks


def _folder(names: list[str]) -> str:
  """The folder, with a slash, that holds all entries, if they are named as torch.save names them."""
  if any(re.fullmatch(r"[^/]+/(constants\.pkl|code/.*)", name) for name in names):
    raise Problem("is a TorchScript program (torch.jit.save); save the model's state_dict() with torch.save")
  folder = next((name[:-8] for name in names if re.fullmatch(r"[^/\\]+/data\.pkl", name)), None)
  if folder is None:
    for pattern, kind in _OTHER_ARCHIVES.items():
      if any(re.fullmatch(pattern, name) for name in names):
        raise Problem(f"is {kind}")
    some = ", ".join(shown(name) for name in names[:3])
    raise Problem(f"is a zip archive, but not of torch.save; it holds {some}, …. Unpack it")
  for name in names:  # zipfile cuts them at a zero byte, so that one entry would pass for another
    if not name.startswith(folder) or "\\" in name or "\0" in name or ".." in name.split("/"):
      raise ValueError(f"entry {name} is not in {folder}")
  if len(set(names)) < len(names):
    raise ValueError("two entries have the same name")
  return folder


# --- The format before torch 1.6: five pickles, then each storage's number of elements (int64) and its bytes ---


def _read_old(source: Source) -> Any:
  stream = io.BytesIO(source.part(0, LIMIT))
  blocks: dict[str, Block] = {}
  items: dict[str, int] = {}  # bytes of an element

  def find(key: str, nbytes: int, item: int) -> Block:
    items.setdefault(key, item)
    block = blocks.setdefault(key, Block(source, 0, nbytes))
    if block.nbytes != nbytes:
      raise Problem(f"is damaged: storage {shown(key)} has {block.nbytes:,} bytes or {nbytes:,}")
    return block

  machine = Machine(find)
  try:
    magic = machine.run(stream)
  except Damage:
    magic = None
  if magic != OLD_MAGIC:
    raise Problem(f"is {_what_it_is(stream.getvalue(), pickled=magic is not None)}")
  if machine.run(stream) != OLD_VERSION:
    raise Problem("is damaged, or of an unknown version of the old format")
  machine.run(stream)  # describes the machine that wrote it; the data are little-endian on all machines
  value, keys = machine.run(stream), machine.run(stream)
  if type(keys) is not list or any(type(key) is not str for key in keys):
    raise Problem("is damaged: it has no list of storages")
  if len(keys) != len(blocks) or set(keys) != blocks.keys():
    raise Problem("is damaged: its storages are not those that its tensors need")
  end = stream.tell()
  for key in keys:
    block = blocks[key]
    block.offset = end + 8
    end = block.offset + block.nbytes
    if end > source.status.st_size:
      raise Problem(f"is cut short: storage {shown(key)} ends at byte {end:,} of {source.status.st_size:,}")
    if int.from_bytes(source.part(block.offset - 8, 8), "little") * items[key] != block.nbytes:
      raise Problem(f"is damaged: storage {shown(key)} has another size than its tensors need")
  if left := source.status.st_size - end:
    raise Problem(f"is damaged: {left:,} bytes follow the last storage")
  return value


def _what_it_is(head: bytes, pickled: bool) -> str:
  """What a file is that torch.save did not write, and what the user can do."""
  for pattern, kind in _OTHER_FILES.items():
    if re.match(pattern, head[:1024], re.DOTALL | re.IGNORECASE):
      return kind
  if pickled or head[:1] == b"\x80":
    return "a pickle, but not a whole one of torch.save (joblib and pickle.dump write such files)"
  if re.search(rb"[\0-\x08\x0e-\x1a]", head[:1024]):
    return "not a file of torch.save"
  return f"a text file, which begins with {shown(head[:60].decode(errors='replace').strip())!r}"


_OTHER_FILES = {
  rb"\Z": "empty",
  rb"(\xef\xbb\xbf)?\s*<(!doctype|!--|html|head|\?xml|error)": "an HTML page, the usual result of a failed download (Google Drive shows "
  "one before a large file); open it in a browser and download the file itself",
  rb"version https://git-lfs": "only a pointer to a file in git LFS; fetch it with git lfs pull",
  rb".{6}\0\0\s*\{": "a safetensors file; name it .safetensors",
  rb".{257}ustar|sys_info\0": "a tar archive; unpack it, or if torch before 0.1.10 wrote it, let a newer torch save it",
  rb"\x1f\x8b|\xfd7zXZ\0|7z\xbc\xaf|BZh\d|\x28\xb5\x2f\xfd|\x04\x22\x4d\x18|Rar!": "a compressed archive; unpack it",
  rb"\x93NUMPY": "an array of numpy (.npy), not a checkpoint",
  rb"\x89HDF": "an HDF5 file, as Keras writes them, not a checkpoint of torch",
  rb"\x08\x01\x12|\n.{1,3}\n.[\w/:.-]+\x12": "a TensorFlow graph, not a checkpoint of torch",
  rb"\x08[\x02-\x1f][\x12\x1a\x22\x3a\x42]": "an ONNX model, not a checkpoint of torch; ask for the file that it was made from",
  rb".{4}TFL3": "a TensorFlow Lite model, not a checkpoint of torch",
  rb"GGUF": "a GGUF model of llama.cpp, not a checkpoint of torch",
  rb"[\x81-\x8f][\xa1-\xbf]\w+": "a msgpack file, as Flax writes them, not a checkpoint of torch",
  rb"PK": "an empty or damaged zip archive",
}

_OTHER_ARCHIVES = {  # zip archives, by the name of an entry
  r".*\.npy": "an archive of numpy (.npz), not a checkpoint",
  r"(.*/)?model\.weights\.h5": "a Keras model, not a checkpoint of torch",
  r"(.*/)?(serialized_exported_program\.json|models/.*\.json|data/aotinductor/.*)": "a program of torch.export (.pt2); save the "
  "model's state_dict() with torch.save",
  r"[^/]+/\.data/extern_modules": "a package of torch.package; save the model's state_dict() with torch.save",
  r"data\.pkl": "an archive of torch.save without its folder; pack the folder that holds data.pkl, not its content",
}
