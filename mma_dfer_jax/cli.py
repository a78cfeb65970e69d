"""How every command starts and ends: flags checked as a whole, --help, errors that a user can fix, a polite stop."""

from collections.abc import Callable, Iterator, Sequence
import errno
import logging as python_logging
import os
import re
import signal
import sys
import traceback
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags
from ml_collections.config_flags.config_flags import ConfigFileFlagParser

from mma_dfer_jax.errors import UserError, listed
from mma_dfer_jax.help import config_text, shipped_configs

flags.disclaim_key_flags()  # flags defined here belong to the command that asks for them, so that --help lists them

# Full disk, no permission, a file where a folder should be: nothing that a traceback would explain better.
_FIXABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST,
            errno.ENOTDIR, errno.EISDIR}  # fmt: skip
_HELP = {"-h", "-?", "-help", "--help", "-helpshort", "--helpshort", "-helpfull", "--helpfull"}
# Flags that several commands take: default and help.
_SHARED = {
  "model": (None, "Workdir of a run, a folder that `convert` wrote, or a file that `export` wrote."),
  "step": ("last", "Checkpoint of a run: last, best (by WAR on the test clips), or a saved step number."),
  "precision": (None, "float32 or bfloat16; if not given, as the model was trained or exported."),
  "faces": ("auto", "Cut out faces: as in training; always; never, for videos already cropped to the face."),
  "face_model": (None, "YuNet's .onnx file; if not given, it is downloaded once."),
}


def shared_flag(key: str, **changes: Any) -> flags.FlagHolder[Any]:
  """Defines one of the flags that several commands take; `changes`: what this command has instead."""
  default, words = _SHARED[key]
  how = {"name": key, "default": default, "help": words} | changes
  if key == "faces":
    return flags.DEFINE_enum(enum_values=["auto", "yunet", "none"], **how)
  return flags.DEFINE_string(**how)


def run(
  main: Callable[[Sequence[str]], int | None],
  *,
  takes_files: bool = False,
  describe_error: Callable[[Exception], str | None] = lambda error: None,
  exit_process: Callable[[int], None] = lambda status: None,
) -> None:
  """Runs a command: what a user can fix ends as a message and exit status 1, wrong flags as exit status 2.

  Args:
    main: gets the command line without flags; returns the exit status, None for 0.
    takes_files: whether anything but flags may stand on the command line.
    describe_error: what a user should read of an error that is none of ours; None: its traceback.
    exit_process: called with the exit status before the command ends.
  """

  def guarded(argv: Sequence[str]) -> int:
    try:
      if len(argv) > 1 and not takes_files:
        words, status = f"unexpected arguments: {' '.join(argv[1:])}", 2
      else:
        words, status = None, main(argv) or 0
    except KeyboardInterrupt:
      words, status = "stopped by Ctrl-C", 130
    except Exception as error:
      words, status = describe_error(error), 1
      if isinstance(error, UserError):
        words = str(error)
      elif isinstance(error, FileNotFoundError):
        words = f"no such file or folder: {error.filename or error}"
      elif isinstance(error, OSError) and error.errno in _FIXABLE:
        words = f"{error.filename or 'a file'} cannot be written or read: {error.strerror}"
      if words is None:
        traceback.print_exc()
    if words is not None:
      print(f"error: {words}", file=sys.stderr, flush=True)
    exit_process(status)
    return status

  app.run(guarded, flags_parser=_parse)


def define_config(purpose: str = "What to run") -> flags.FlagHolder:
  """Defines the flag --config: the name of a shipped config, or the path of one."""
  how = f"{', '.join(shipped_configs())}, or a path. --config.batch_size=16 changes one field."
  holder = config_flags.DEFINE_config_file("config", None, f"{purpose}: {how}", lock_config=True)
  flags.FLAGS["config"].parser = _ConfigParser("config")
  return holder


class _ConfigParser(ConfigFileFlagParser):
  """Reads a config by its name too; `:choices` go to its get_config."""

  def parse(self, path):
    name, *choices = path.split(":", 1)
    shipped = shipped_configs()
    if not os.path.isfile(name) and name not in shipped:
      raise UserError(f"neither a file nor a config that comes with the program ({', '.join(shipped)})")
    try:
      return super().parse(":".join([name if os.path.isfile(name) else str(shipped[name]), *choices]))
    except UserError as error:  # ml_collections puts a traceback into its words
      raise (error.__context__ if isinstance(error.__context__, UserError) else error) from None


def _parse(argv: list[str]) -> list[str]:
  # Orbax, tfds and their threads log every file they touch, and the tracebacks of what they raise anyway.
  logging.set_verbosity(logging.FATAL)
  for chatty in ("concurrent.futures", "asyncio"):
    python_logging.getLogger(chatty).setLevel("CRITICAL")
  asks_for_help = not _HELP.isdisjoint(argv)
  arguments = argv
  try:
    arguments = flags.FLAGS([argument for argument in argv if argument not in _HELP])
  except (flags.Error, UserError, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
    # --help needs no required flag; but the fields of a config can be shown only if it is right.
    wrong_config = "config" in flags.FLAGS and _given_config(argv) and flags.FLAGS["config"].value is None
    if not asks_for_help or wrong_config:
      problems, title = list(_config_problems(argv)), "these fields of the config cannot be set"
      print(f"error: {listed(title, problems) if problems else error}", file=sys.stderr, flush=True)
      sys.exit(2)
  if asks_for_help:
    print(_help(any("helpfull" in argument for argument in argv)))  # at once, so that `| head` breaks nothing
    sys.exit(0)
  return arguments


def _help(everything: bool) -> str:
  """The command's words and flags, and the fields of the config that was given, or of the paper's."""
  parts = [sys.modules["__main__"].__doc__ or ""]
  parts.append(flags.FLAGS.get_help() if everything else flags.FLAGS.main_module_help())
  if "config" in flags.FLAGS:
    config, whose = flags.FLAGS["config"].value, "of this config"
    if not config:
      config, whose = _ConfigParser("config").parse("dfew"), "of --config=dfew"
    parts += [f"\nfields, as in --config.batch_size=16, {whose}:", config_text(config)]
  return "\n".join(parts + ["\n--helpfull lists the flags of all modules."] * (not everything))


def _given_config(argv: list[str]) -> str | None:
  """What stands behind --config."""
  found = re.search(r"--?config[= ](\S+)", " ".join(argv))
  return found and found[1]


def _config_problems(argv: list[str]) -> Iterator[str]:
  """What is wrong with each `--config.key=value`, as far as the keys tell."""
  given = _given_config(argv)
  try:
    config: Any = _ConfigParser("config").parse(given) if given else None
  except Exception:
    return  # no file, or none that works: the first error says so
  for match in filter(None, (re.fullmatch(r"--?(?:no)?config\.([^=]+)=?(.*)", word) for word in argv)):
    (key, value), node = match.groups(), config
    if not given:
      yield f"{key}: give --config=NAME first"
      continue
    for part in key.split("."):
      there = list(node) if isinstance(node, ConfigDict) else []
      if part not in there:
        yield f"{key}: there is no {part!r} here; there is {', '.join(there) or 'no further key'}"
        break
      node = node[part]
    else:
      place = key.removeprefix("model.")
      if not isinstance(node, ConfigDict) or value.startswith("{"):
        continue
      if place != key or key == "loss":
        choice = f"{given}{',' if ':' in given else ':'}{place}={value or 'NAME'}"
        yield f"{key}={value}: parts are chosen after the colon of --config: --config={choice}"
      else:
        yield f"{key}={value}: this is a group of fields; set one of {', '.join(f'{key}.{name}' for name in node)}"


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
