"""Paths as people give them, in flags and config fields: expanded and absolute once, refused if they cannot be paths."""

from collections.abc import Sequence
import glob
import os
import re
from typing import Any

from absl import flags

from mma_dfer_jax.errors import UserError, shown
from mma_dfer_jax.lookalikes import escaped, looks, tidy

PACKED = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")


def user_path(text: str, base: str | os.PathLike[str] = "") -> str:
  """The absolute path that a user means: `~` and `~name` are home folders, all else is below `base`, or the current folder.

  Raises:
    UserError: if it is empty, an address, a flag, a Windows path, in quotes, or holds what no path holds.
  """
  name, there = os.path.expanduser(text), os.path.lexists(os.path.join(base, text))
  if there and not os.path.lexists(name):
    name = text  # a folder that is called ~
  unix = _on_windows(text, base)
  for wrong, reason in (
    (not text.strip(), "is empty"),
    ("\0" in text, "holds a NUL, which no path can"),
    (name.startswith("~") and not there, "names a home folder that this machine does not have"),
    (re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text), "is an address, not a path; download or mount it first"),
    (text.startswith("--") and not there, f"looks like a flag; if it is a path, write ./{text}"),
    (not there and unix, f"is a Windows path; write {unix}"),
    (text[:1] + text[-1:] in ('""', "''") and not there, "has quotes around it; leave them out"),
    (text != tidy(text) and not there, "begins or ends with a blank or an invisible character; leave it out"),
    (re.match(r"\$\w|\$\{|%\w+%", text) and not there, "begins with a variable that no shell has replaced"),
    (any(len(os.fsencode(part)) > 255 for part in name.split("/")), "has a name of more than 255 bytes"),
    (len(os.fsencode(name)) > 4000, "is a path of more than 4000 bytes"),
  ):
    if wrong:
      raise UserError(f"'{shown(text)}' {reason}")
  return os.path.abspath(os.path.join(base, name))


def _on_windows(text: str, base: str | os.PathLike[str]) -> str:
  """How a path of Windows is written here; empty if it is none."""
  slashes = text.replace("\\", "/")
  if drive := re.match(r"([A-Za-z]):/", slashes):
    return f"/mnt/{drive[1].lower()}/{slashes[3:]} under WSL"
  if slashes.startswith("//") and text.startswith("\\"):
    return "the folder where this share is mounted"
  return slashes if slashes != text and os.path.lexists(os.path.join(base, slashes)) else ""


def hint(path: str | os.PathLike[str], *, folder: bool) -> str:
  """Why a path is not the folder or file that was wanted, in words that begin with a verb."""
  name = os.fspath(path)
  packed = name.lower().endswith(PACKED)
  if folder and os.path.isfile(name):
    return "is a packed file; unpack it and give the folder" if packed else "is a file, not a folder"
  if not folder and os.path.isdir(name):
    return "is a folder, not a file"
  if os.path.lexists(name):
    return "is a link to what is not there" if not os.path.exists(name) else "is neither a file nor a folder"
  if beside := [end for end in PACKED if os.path.isfile(name.rstrip("/") + end)]:
    return f"is not there, but {name.rstrip('/')}{beside[0]} is; unpack it"
  above, below = os.path.split(name.rstrip("/"))
  if near := [one for one in _names_in(above) if looks(one) == looks(below)]:
    return f"is not there, but {escaped(near[0])} is, which is another name than {escaped(below)}"
  if os.path.isdir(above or "."):
    return "is not there"
  return (
    f"is not there: {above} is no folder"
    if os.path.exists(above)
    else f"is not there, nor is the folder {above}"
  )


def _names_in(folder: str) -> list[str]:
  try:
    return sorted(os.listdir(folder))
  except OSError:
    return []


def user_files(given: Sequence[str]) -> list[str]:
  """Files as they stand behind a command: `~` expanded, and patterns that no shell has expanded; else as they are."""
  files: list[str] = []
  for text in given:
    name = text if os.path.lexists(text) else os.path.expanduser(text)
    pattern = glob.has_magic(name) and not os.path.lexists(name)
    files += (sorted(glob.glob(name, recursive=True)) if pattern else []) or [name]
  return files


flags.disclaim_key_flags()  # what is defined here is a flag of whoever calls, and stands in its --help


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
