"""Commands within the process of the tests: no interpreter and no JAX to start, no model to load and compile again."""

import contextlib
import importlib
import io
from pathlib import Path
import runpy
import sys
from types import ModuleType
from unittest import mock

from absl import app, flags


@contextlib.contextmanager
def own_flags():
  """Removes the flags that a command defines: others define flags of the same names."""
  before = set(flags.FLAGS)
  try:
    yield
  finally:
    for name in set(flags.FLAGS) - before:
      delattr(flags.FLAGS, name)


def load(name: str) -> ModuleType:
  """A command's module, for its functions; its flags are gone."""
  with own_flags():
    return importlib.import_module(f"mma_dfer_jax.{name}")


def run(name: str, *arguments: object, at: Path | str = ".") -> tuple[int, str, str]:
  """Exit status, stdout and stderr of `python -m mma_dfer_jax.NAME ARGUMENTS` in a folder."""
  out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", errors="backslashreplace") for _ in range(2))
  argv, status = [name, *map(str, arguments)], 0
  app_run = mock.patch.object(app, "run", lambda main, flags_parser: sys.exit(main(flags_parser(sys.argv))))
  streams = contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)
  with (
    own_flags(),
    app_run,
    mock.patch.object(sys, "argv", argv),
    contextlib.chdir(at),
    streams[0],
    streams[1],
  ):
    try:
      runpy.run_module(f"mma_dfer_jax.{name}", run_name="__main__", alter_sys=True)
    except SystemExit as stop:
      status = stop.code if isinstance(stop.code, int) else 0
  texts = [stream.seek(0) or stream.read() for stream in (out, err)]
  return status, *texts
