"""Paths as people give them, in flags and config fields: expanded and absolute once, refused if they cannot be paths."""

from collections.abc import Sequence
import glob
import os
import re
from typing import Any

from absl import flags

from mma_dfer_jax.errors import UserError, shown

PACKED = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")


def user_path(text: str) -> str:
  """The absolute path that a user means: `~` and `~name` are home folders, all else is below the current folder.

  Raises:
    UserError: if it is empty, an address, a flag, a Windows path, in quotes, or holds what no path holds.
  """
  name = os.path.expanduser(text)
  drive = re.match(r"([A-Za-z]):[\\/]", text)
  for wrong, reason in (
    (not text.strip(), "is empty"),
    ("\0" in text, "holds a zero byte"),
    (
      name.startswith("~") and not os.path.lexists(text),
      "names a home folder that this machine does not have",
    ),
    (re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text), "is an address, not a path; download or mount it first"),
    (text.startswith("--"), f"looks like a flag; if it is a path, write ./{text}"),
    (
      drive,
      f"is a Windows path; under WSL, write /mnt/{drive and drive[1].lower()}/{text[3:].replace(chr(92), '/')}",
    ),
    (
      text[:1] + text[-1:] in ('""', "''") and not os.path.lexists(text),
      "has quotes around it; leave them out",
    ),
    (text != text.strip() and not os.path.lexists(name), "begins or ends with a blank; leave it out"),
    (any(len(os.fsencode(part)) > 255 for part in name.split("/")), "has a name of more than 255 bytes"),
  ):
    if wrong:
      raise UserError(f"{shown(text)!r} {reason}")
  return os.path.abspath(name)


def hint(path: str | os.PathLike[str], *, folder: bool) -> str:
  """Why a path is not the folder or file that was wanted, in words that begin with a verb."""
  name = os.fspath(path)
  beside = [end for end in PACKED if os.path.isfile(name.rstrip("/") + end)]
  if folder and os.path.isfile(name):
    packed = name.lower().endswith(PACKED)
    return "is a packed file; unpack it and give the folder" if packed else "is a file, not a folder"
  if not folder and os.path.isdir(name):
    return "is a folder, not a file"
  return f"is not there, but {name}{beside[0]} is; unpack it" if beside else "is not there"


def user_files(given: Sequence[str]) -> list[str]:
  """Files as they stand behind a command: `~` expanded, and patterns that no shell has expanded; else as they are."""
  files: list[str] = []
  for text in given:
    name = text if os.path.lexists(text) else os.path.expanduser(text)
    pattern = glob.has_magic(name) and not os.path.lexists(name)
    files += (sorted(glob.glob(name, recursive=True)) if pattern else []) or [name]
  return files


class PathParser(flags.ArgumentParser):
  """Reads a path flag."""

  def parse(self, argument: Any) -> str:
    return user_path(argument)

  def flag_type(self) -> str:
    return "path"


class PathListParser(flags.ListParser):
  """Reads a flag of several paths, comma-separated."""

  def parse(self, argument: Any) -> list[str]:
    return [user_path(path) for path in super().parse(argument)]


def define_path(name: str, default: str | None, help: str, **how: Any) -> flags.FlagHolder[Any]:
  """Defines a flag whose value is a path, absolute as soon as it is read."""
  return flags.DEFINE(PathParser(), name, default, help, serializer=flags.ArgumentSerializer(), **how)


def define_paths(name: str, default: str | None, help: str) -> flags.FlagHolder[Any]:
  """Defines a flag of several paths."""
  return flags.DEFINE(PathListParser(), name, default, help, serializer=flags.CsvListSerializer(","))
