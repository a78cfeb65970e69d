"""The file that `export --format=onnx` writes: it begins with the description of its model, then comes the graph.

So a reader of the description needs no `onnx`, and does not wait for the weights.
"""

import contextlib
import hashlib
import json
import mmap
from pathlib import Path
from typing import Any, NamedTuple

from mma_dfer_jax.data.wire import contents, field, varint

KEY = b"mma_dfer_jax"  # of the description among the model's metadata
GRAPH, METADATA = 7, 14  # fields of ModelProto; source: onnx.proto
LARGEST = 1 << 24  # bytes of a description


class Described(NamedTuple):
  """What a file says of itself."""

  said: dict[str, Any]
  begin: int  # of the graph, in bytes
  size: int

  def is_whole(self, path: Path) -> bool:
    """Whether description and graph are those that were written."""
    digest = _digest(self.said)
    with path.open("rb") as file:
      file.seek(self.begin)
      rest = self.size
      while rest and (piece := file.read(min(rest, LARGEST))):
        digest.update(piece)
        rest -= len(piece)
    return digest.hexdigest() == self.said.get("sha256")


def write(path: Path, model: Any, said: dict[str, Any]) -> dict[str, Any]:
  """Writes a ModelProto with a description of it; returns the description, with the sha256 of both in it."""
  graph = model.graph.SerializeToString()
  digest = _digest(said)
  digest.update(graph)
  said = said | {"sha256": digest.hexdigest()}
  head = type(model)(ir_version=model.ir_version, producer_name=KEY.decode(), opset_import=model.opset_import)
  head.metadata_props.add(key=KEY.decode(), value=json.dumps(said, allow_nan=False))
  with path.open("wb") as file:
    file.writelines([head.SerializeToString(), *field(GRAPH, graph)])
  return said


def _digest(said: dict[str, Any]) -> Any:
  """Of a description, for the graph to follow."""
  rest = {key: value for key, value in said.items() if key != "sha256"}
  return hashlib.sha256(json.dumps(rest, sort_keys=True).encode())


def read(path: Path) -> Described | None:
  """The description of a file; None if it is none of ours."""
  said, at = None, 0
  with contextlib.suppress(ValueError, IndexError, OSError), path.open("rb") as file:
    data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    while (key := varint(data, at)[0]) & 7 in (0, 2):
      size, at = varint(data, varint(data, at)[1])
      if key >> 3 == GRAPH:
        return Described(said, at, size) if isinstance(said, dict) else None
      if key & 7 and size > LARGEST:
        return None
      if key >> 3 == METADATA:
        name, value = contents(memoryview(data[at : at + size]))
        said = json.loads(bytes(value)) if name == KEY else said
      at += size if key & 7 else 0
  return None
