"""How every command starts and ends: flags checked whole, mendable errors as messages, a polite stop."""

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

from mma_dfer_jax.errors import UserError, listed

# Full disk, no permission, a file where a folder should be: nothing that a traceback would explain better.
_MENDABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST,
             errno.ENOTDIR, errno.EISDIR}  # fmt: skip


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
  try:
    return flags.FLAGS(argv)
  except (flags.Error, UserError, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
    unknown = _unknown_config_keys(argv)
    sys.exit(_complain(unknown or error, status=2))


def _unknown_config_keys(argv: list[str]) -> UserError | None:
  """All `--config.key` overrides that the config file does not have, with what it has instead."""
  joined = " ".join(argv)
  named = re.search(r"--?config[= ]([^\s:]+)(?::(\S*))?", joined)
  if named is None or not os.path.isfile(named[1]):
    return None  # no file: the first error says so
  get_config = runpy.run_path(named[1])["get_config"]
  config = get_config(named[2]) if named[2] is not None else get_config()
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
