"""How a file is written whole or not at all; free space; sha256."""

from collections.abc import Iterator
import contextlib
import hashlib
import json
from pathlib import Path
import shutil
from typing import Any

from mma_dfer_jax.errors import UserError


def write_json(path: Path, value: Any) -> None:
  """Writes a JSON file whole or not at all."""
  with new_file(path, replace=True) as partial:
    partial.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")


@contextlib.contextmanager
def new_file(path: Path, *, replace: bool = False) -> Iterator[Path]:
  """Gives the name of a file to write, which becomes `path` when it is whole and vanishes when it is not.

  UserError if there is such a file already (unless it may be replaced), or the disk does not take it.
  """
  if path.exists() and not replace:
    raise UserError(f"{path} exists already; choose another name or remove it")
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(f"{path.name}.partial")
  try:
    yield partial
    partial.replace(path)
  except UserError:
    raise
  except Exception as error:  # a full disk, in the words of each library that writes
    reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:300]
    raise UserError(f"cannot write {path}: {reason}") from error
  finally:
    partial.unlink(missing_ok=True)


def free_bytes(path: Path) -> int:
  """Free space on the disk that a path, which need not exist, lies on."""
  place = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
  return shutil.disk_usage(place).free


def sha256_of(path: Path) -> str:
  """Hexadecimal sha256 of a file."""
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()
