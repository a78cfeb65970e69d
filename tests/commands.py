"""Commands within the process of the tests: no interpreter and no JAX to start, no model to load and compile again."""

import ast
from collections.abc import Iterator
import contextlib
import functools
import importlib
import inspect
import io
from pathlib import Path
import sys
from types import ModuleType
from unittest import mock

from absl import app, flags


def _remove_flags_since(before: set[str]) -> dict[str, flags.Flag]:
  """Flags that a command has defined, which are removed: others define flags of the same names. Grain's stay."""
  new = {name: flags.FLAGS[name] for name in set(flags.FLAGS) - before if not name.startswith("grain_")}
  for name in new:
    delattr(flags.FLAGS, name)
  return new


@contextlib.contextmanager
def _without_other_commands() -> Iterator[dict[str, dict[str, flags.Flag]]]:
  """Sets the flags of commands aside that tests have imported by themselves; gives them by module."""
  aside: dict[str, dict[str, flags.Flag]] = {}
  for name in list(flags.FLAGS):
    module = flags.FLAGS.find_module_defining_flag(name, "")
    if module.startswith("mma_dfer_jax.") and hasattr(sys.modules.get(module), "main"):
      aside.setdefault(module, {})[name] = flags.FLAGS[name]
      delattr(flags.FLAGS, name)
  try:
    yield aside
  finally:
    for module, of_module in aside.items():
      for name, flag in of_module.items():
        flags.FLAGS[name] = flag
        flags.FLAGS.register_flag_by_module(module, flag)


@functools.cache
def _imported(name: str) -> tuple[ModuleType, dict[str, flags.Flag]]:
  """A command's module, and its flags."""
  with _without_other_commands() as aside:
    before = set(flags.FLAGS)
    module = importlib.import_module(f"mma_dfer_jax.{name}")
    return module, aside.get(module.__name__) or _remove_flags_since(before)


def load(name: str) -> ModuleType:
  """A command's module, for its functions."""
  return _imported(name)[0]


def own_flags(name: str) -> dict[str, flags.Flag]:
  """The flags that a command defines, by name."""
  return _imported(name)[1]


def run(name: str, *arguments: object, at: Path | str = ".") -> tuple[int, str, str]:
  """Exit status, stdout and stderr of `python -m mma_dfer_jax.NAME ARGUMENTS` in a folder."""
  module, own = _imported(name)
  start = ast.parse(inspect.getsource(module)).body[-1]  # what stands under `if __name__ == "__main__"`
  others = contextlib.ExitStack()
  others.enter_context(_without_other_commands())
  before, status = set(flags.FLAGS), 0
  for flag in own.values():
    flag.unparse()
    flags.FLAGS[flag.name] = flag
    flags.FLAGS.register_key_flag_for_module(module.__name__, flag)
  out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", errors="backslashreplace") for _ in range(2))
  argv, pytest = [module.__name__, *map(str, arguments)], sys.modules["__main__"]
  app_run = mock.patch.object(app, "run", lambda main, flags_parser: sys.exit(main(flags_parser(sys.argv))))
  streams = contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)
  with contextlib.chdir(at), streams[0], streams[1], mock.patch.object(sys, "argv", argv), app_run:
    try:
      sys.modules["__main__"] = module
      exec(compile(ast.Module(start.body, []), name, "exec"), vars(module))  # type: ignore[attr-defined]
    except SystemExit as stop:
      status = stop.code if isinstance(stop.code, int) else 0
    finally:
      sys.modules["__main__"] = pytest
      _remove_flags_since(before)
      others.close()
  texts = [stream.seek(0) or stream.read() for stream in (out, err)]
  return status, *texts
