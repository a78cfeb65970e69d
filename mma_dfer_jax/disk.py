"""How a file is written whole or not at all; free space; sha256."""

from collections.abc import Iterator
import contextlib
import fcntl
import hashlib
import json
import os
from pathlib import Path
import shutil
import socket
import time
from typing import Any

from mma_dfer_jax.errors import UserError
from mma_dfer_jax.progress import say


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


@contextlib.contextmanager
def alone_in(folder: Path, who: str, flag: str) -> Iterator[None]:
  """Keeps other processes out of a folder within the block; the system lets them in again however this process ends.

  Args:
    who, flag: for the message of those that are kept out: what works there, and which flag names another folder.
  Raises:
    UserError: if another process is there; nothing was written then.
  """
  path = folder / "lock"
  while True:
    folder.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as lock:
      try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError as error:
        lock.seek(0)
        holder = lock.read(300).strip() or "which has just begun"
        raise UserError(
          f"{folder}: another {who} is at work there ({holder}); wait for it, or choose another {flag}"
        ) from error
      except OSError as error:
        say(f"{folder}: this disk keeps no locks ({error.strerror}); start no second {who} there")
      try:
        if not os.path.samestat(os.fstat(lock.fileno()), path.stat()):
          continue  # of one that has ended in this moment, and has removed it
      except FileNotFoundError:
        continue
      lock.truncate(0)
      lock.write(
        f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}"
      )
      lock.flush()
      try:
        yield
      finally:
        with contextlib.suppress(OSError):
          if os.path.samestat(os.fstat(lock.fileno()), path.stat()):
            path.unlink()
      return


def free_bytes(path: Path) -> int:
  """Free space on the disk that a path, which need not exist, lies on."""
  place = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
  return shutil.disk_usage(place).free


def sha256_of(path: Path) -> str:
  """Hexadecimal sha256 of a file."""
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()
