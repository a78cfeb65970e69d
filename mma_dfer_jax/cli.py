"""How every command starts and ends: flags checked whole, --help, mendable errors as messages, a polite stop."""

from collections.abc import Callable, Sequence
import errno
import logging as python_logging
import os
import re
import runpy
import signal
import sys
import traceback

from absl import app, flags, logging
from ml_collections import config_flags
from ml_collections.config_flags.config_flags import ConfigFileFlagParser

from mma_dfer_jax.errors import UserError, listed
from mma_dfer_jax.help import config_text, shipped_configs

flags.disclaim_key_flags()  # --config is a flag of the command that asks for it, so that --help lists it

# Full disk, no permission, a file where a folder should be: nothing that a traceback would explain better.
_MENDABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST,
             errno.ENOTDIR, errno.EISDIR}  # fmt: skip

_HELP = {"-h", "-?", "-help", "--help", "-helpshort", "--helpshort", "-helpfull", "--helpfull"}


def run(
  main: Callable[[Sequence[str]], int | None],
  *,
  takes_files: bool = False,
  explained: Callable[[Exception], str | None] = lambda error: None,
  leave: Callable[[int], None] = lambda status: None,
) -> None:
  """Runs a command: what a user can mend ends as a message and exit status 1, wrong flags as exit status 2.

  Args:
    main: gets the command line without flags; returns the exit status, None for 0.
    takes_files: whether anything but flags may stand on the command line.
    explained: what a user should read of an error that is none of ours; None: its traceback.
    leave: called with the exit status before the command ends.
  """

  def guarded(argv: Sequence[str]) -> int | None:
    status: int | None = 1
    try:
      status = _guarded(main, argv, takes_files, explained)
    except Exception:
      traceback.print_exc()
    leave(status or 0)
    return status

  app.run(guarded, flags_parser=_parse)


def define_config(purpose: str = "What to run") -> flags.FlagHolder:
  """Defines the flag --config: the name of a config that comes with the program, or the path of one.

  Args:
    purpose: what the config is for.
  """
  how = f"{', '.join(shipped_configs())}, or a path. --config.batch_size=16 changes one field."
  holder = config_flags.DEFINE_config_file("config", None, f"{purpose}: {how}", lock_config=True)
  flags.FLAGS["config"].parser = _ConfigParser("config")
  return holder


class _ConfigParser(ConfigFileFlagParser):
  """Reads a config by its name too."""

  def parse(self, path):
    try:
      return super().parse(_config_file(path))
    except UserError as error:  # ml_collections puts a traceback into its words
      raise (error.__context__ if isinstance(error.__context__, UserError) else error) from None


def _config_file(given: str) -> str:
  """The path of a config that is a path already or the name of a shipped one; `:words` for its get_config stay."""
  name, *words = given.split(":", 1)
  shipped = shipped_configs()
  if not os.path.isfile(name) and name not in shipped:
    raise UserError(f"neither a file nor a config that comes with the program ({', '.join(shipped)})")
  return ":".join([name if os.path.isfile(name) else str(shipped[name]), *words])


def take_over(options: flags.FlagValues) -> None:
  """Makes flags that a module keeps to itself, for other commands import it, those of this command.

  Args:
    options: the module's flags; `main` must let them parse the command line too.
  """
  flags.FLAGS.append_flag_values(options)
  for name in options:
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[name])  # so that --help lists them


def _guarded(main, argv, takes_files, explained=lambda error: None):
  if len(argv) > 1 and not takes_files:
    sys.exit(_complain(f"unexpected arguments: {' '.join(argv[1:])}", status=2))
  try:
    return main(argv)
  except UserError as error:
    return _complain(error)
  except FileNotFoundError as error:
    return _complain(f"no such file or folder: {error.filename or error}")
  except OSError as error:
    if error.errno not in _MENDABLE:
      raise
    return _complain(f"{error.filename or 'a file'} cannot be written or read: {error.strerror}")
  except KeyboardInterrupt:
    return _complain("stopped by Ctrl-C", status=130)
  except Exception as error:
    if (words := explained(error)) is None:
      raise
    return _complain(words)


def _parse(argv: list[str]) -> list[str]:
  # Orbax, tfds and their threads log every file they touch, and the tracebacks of what they raise anyway.
  logging.set_verbosity(logging.FATAL)
  for chatty in ("concurrent.futures", "asyncio"):
    python_logging.getLogger(chatty).setLevel("CRITICAL")
  helps = not _HELP.isdisjoint(argv)
  arguments = argv
  try:
    arguments = flags.FLAGS([argument for argument in argv if argument not in _HELP])
  except (flags.Error, UserError, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
    # Who asks for help need not give what is required; but the fields of a config can be shown only if it is right.
    if not helps or ("config" in flags.FLAGS and _given_config(argv) and flags.FLAGS["config"].value is None):
      sys.exit(_complain(_unknown_config_keys(argv) or error, status=2))
  if helps:
    print(_help(argv))  # at once, so that `| head` breaks nothing
    sys.exit(0)
  return arguments


def _help(argv: list[str]) -> str:
  """The command's words and flags, and the fields of the config that was given, or the defaults."""
  everything = any("helpfull" in argument for argument in argv)
  parts = [sys.modules["__main__"].__doc__ or ""]
  parts.append(flags.FLAGS.get_help() if everything else flags.FLAGS.main_module_help())
  if "config" in flags.FLAGS:
    config = flags.FLAGS["config"].value
    parts.append(
      f"\nfields, as in --config.batch_size=16, {'of this config' if config else 'and their defaults'}:"
    )
    parts.append(config_text(config))
  if not everything:
    parts.append("\n--helpfull lists the flags of all modules.")
  return "\n".join(parts)


def _given_config(argv: list[str]) -> str | None:
  """What stands behind --config."""
  found = re.search(r"--?config[= ](\S+)", " ".join(argv))
  return found and found[1]


def _unknown_config_keys(argv: list[str]) -> UserError | None:
  """All `--config.key` overrides that the config file does not have, with what it has instead."""
  try:
    path, *words = _config_file(_given_config(argv) or "").split(":", 1)
    config = runpy.run_path(path)["get_config"](*words)
  except Exception:
    return None  # no file, or none that works: the first error says so
  problems = []
  for argument in argv[1:]:
    if not argument.lstrip("-").startswith(("config.", "noconfig.")):
      continue
    key = argument.lstrip("-").split("=", 1)[0].removeprefix("no").removeprefix("config.")
    node = config
    for part in key.split("."):
      if not hasattr(node, "keys") or part not in node:
        allowed = ", ".join(node.keys()) if hasattr(node, "keys") else "no further keys"
        problems.append(f"{key}: there is no {part!r} here; there is {allowed}")
        break
      node = node[part]
  return listed("the config has no such keys", problems) if problems else None


def _complain(error: object, status: int = 1) -> int:
  print(f"error: {error}", file=sys.stderr, flush=True)
  return status


class StopSignal:
  """Becomes true when SIGTERM or Ctrl-C asks to stop; a second one stops at once."""

  def __init__(self, *numbers: signal.Signals):
    self.received: signal.Signals | None = None
    self._passed_on = False
    for number in numbers or (signal.SIGTERM, signal.SIGINT):
      signal.signal(number, self._receive)

  def _receive(self, number, frame):
    del frame
    self.received = signal.Signals(number)
    signal.signal(number, signal.SIG_DFL)

  def __bool__(self) -> bool:
    return self.received is not None

  def pass_on_interrupt(self) -> None:
    """Turns Ctrl-C into SIGTERM, for whoever has taken over that signal from here."""
    if self.received == signal.SIGINT and not self._passed_on:
      self._passed_on = True
      os.kill(os.getpid(), signal.SIGTERM)

  @property
  def exit_status(self) -> int:
    """0 after SIGTERM (a scheduler took the machine back, all is saved), 130 after Ctrl-C, as shells do."""
    return 130 if self.received == signal.SIGINT else 0
