"""How every command starts and ends: flags checked as a whole, --help, errors that a user can fix, a polite stop."""

from collections.abc import Callable, Iterator, Sequence
import difflib
import errno
import logging as python_logging
import os
import re
import signal
import sys
import threading
import traceback
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags
from ml_collections.config_flags.config_flags import ConfigFileFlagParser

from mma_dfer_jax.errors import UserError, listed, missing, of_type, print_traceback
from mma_dfer_jax.help import config_text, shipped_configs
from mma_dfer_jax.paths import define_path
from mma_dfer_jax.streams import make_lasting

flags.disclaim_key_flags()  # flags defined here belong to the command that asks for them, so that --help lists them

_OF_DISKS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}
_HELP = {"-h", "-?", "-help", "--help", "-helpshort", "--helpshort", "-helpfull", "--helpfull"}
# What absl and Python say of values, and what people should read.
_PLAIN = {
  r"^flags (\w+=.*?, )+\w+=.*?: (?=give )": "",
  r"invalid literal for int\(\) with base \d+: (.*)": r"\1 is not a whole number",
  r"could not convert string to float: (.*)": r"\1 is not a number",
  r"\('Non-boolean argument to boolean flag', (.*)\)": r"\1 is neither true nor false",
  r"value should be one of <(.*)>": r"choose one of \1",
  r"^Unknown command line flag '(.*?)'\.?": r"there is no flag --\1.",
  r"^Missing value for flag ": "give a value for ",
}
# Flags that several commands take: default and help.
_SHARED = {
  "model": (None, "Workdir of a run, a folder that `convert` wrote, or a file that `export` wrote."),
  "step": ("last", "Checkpoint of a run: last, best (by WAR on the test clips), or a saved step number."),
  "precision": (
    None,
    "float32, bfloat16 or int8 (a file of its own); if not given, as the model was trained or exported.",
  ),
  "engine": (
    None,
    "What computes: jax, onnxruntime, openvino, stablehlo; if not given, the first that opens the model.",
  ),
  "class_vectors": (
    None,
    "Answer with the classes of this .npz file of vectors; for a model with head=text.",
  ),
  "faces": ("auto", "Cut out faces: as in training; always; never, for videos already cropped to the face."),
  "person": (
    "largest",
    "Whose face: largest over time, all (an answer for each), or a number, 1 is the largest.",
  ),
  "channel": ("auto", "Which channel of the sound is heard; auto: as in training."),
  "face_model": (None, "YuNet's .onnx file; if not given, it is downloaded once."),
}


def shared_flag(key: str, **changes: Any) -> flags.FlagHolder[Any]:
  """Defines one of the flags that several commands take; `changes`: what this command has instead."""
  default, words = _SHARED[key]
  how = {"name": key, "default": default, "help": words} | changes
  if key == "faces":
    return flags.DEFINE_enum(enum_values=["auto", "yunet", "none"], **how)
  if key == "channel":
    return flags.DEFINE_enum(enum_values=["auto", "first", "loudest", "centre", "mix"], **how)
  return define_path(**how) if key in ("model", "face_model", "class_vectors") else flags.DEFINE_string(**how)


def run(
  main: Callable[[Sequence[str]], int | None],
  *,
  takes_files: bool = False,
  describe_error: Callable[[Exception], str | None] = lambda error: None,
  exit_process: Callable[[int], None] = lambda status: None,
) -> None:
  """Runs a command: errors end as a message and exit status 1, wrong flags as exit status 2.

  Where an error that nobody expected came from is shown on request. Standard streams may break: the work goes on.

  Args:
    main: gets the command line without flags; returns the exit status, None for 0.
    takes_files: whether anything but flags may stand on the command line.
    describe_error: what a user should read of an error that is none of ours; None: its type and its words.
    exit_process: called with the exit status before the command ends.
  """

  def guarded(argv: Sequence[str]) -> int:
    try:
      if len(argv) > 1 and not takes_files:
        words, status = f"unexpected arguments: {' '.join(argv[1:])}", 2
      else:
        words, status = None, main(argv) or 0
    except KeyboardInterrupt as error:
      by = error.args[0] if error.args else signal.SIGINT
      words, status = f"stopped by {'Ctrl-C' if by == signal.SIGINT else by.name}", 128 + by
    except Exception as error:
      print_traceback()
      words, status = _words(error) or describe_error(error) or _unexpected(error), 1
    if words is not None:
      print(f"error: {words}", file=sys.stderr, flush=True)
    exit_process(status)
    return status

  make_lasting()
  flags.DEFINE_bool("traceback", False, "Show where an error came from, for whoever looks for its cause.")
  app.run(guarded, flags_parser=_parse)


def _words(error: Exception) -> str | None:
  """What a user should read of an error that can be expected."""
  if isinstance(error, UserError):
    return str(error)
  if isinstance(error, ModuleNotFoundError) and not (error.name or "mma_dfer_jax").startswith("mma_dfer_jax"):
    return missing(error)
  if isinstance(error, FileNotFoundError):
    return f"no such file or folder: {error.filename or error}"
  if isinstance(error, OSError) and (error.filename or error.errno in _OF_DISKS):
    return f"{error.filename or 'a file'} cannot be written or read: {error.strerror}"
  return None


def _unexpected(error: Exception) -> str:
  return f"internal error ({of_type(error)}); run again with --traceback to see where"


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
    name, shipped = os.path.expanduser(name), shipped_configs()
    if not os.path.isfile(name) and name not in shipped:
      raise UserError(f"neither a file nor a config that comes with the program ({', '.join(shipped)})")
    try:
      return super().parse(":".join([name if os.path.isfile(name) else str(shipped[name]), *choices]))
    except UserError as error:  # ml_collections puts a traceback into its words
      raise (error.__context__ if isinstance(error.__context__, UserError) else error) from None
    except Exception as error:  # of the code in the file
      place = traceback.extract_tb(error.__traceback__)[-1]
      at = "" if isinstance(error, SyntaxError) else f", at {place.filename}, line {place.lineno}"
      raise UserError(f"cannot be read ({of_type(error)}{at})") from error


def _parse(argv: list[str]) -> list[str]:
  # Orbax, tfds and their threads log every file they touch, and the tracebacks of what they raise anyway.
  logging.set_verbosity(logging.FATAL)
  for chatty in ("concurrent.futures", "asyncio"):
    python_logging.getLogger(chatty).setLevel("CRITICAL")
  if any(re.fullmatch("--?traceback(=(1|t|true))?", argument, re.IGNORECASE) for argument in argv):
    os.environ["MMA_DFER_TRACEBACK"] = "1"  # for the processes that this one starts, too
  asks_for_help = not _HELP.isdisjoint(argv)
  arguments = argv
  try:
    arguments = flags.FLAGS([argument for argument in argv if argument not in _HELP])
  except Exception as error:
    # --help needs no required flag; but the fields of a config can be shown only if it is right.
    wrong_config = "config" in flags.FLAGS and _given_config(argv) and flags.FLAGS["config"].value is None
    if not asks_for_help or wrong_config:
      problems, title = list(_config_problems(argv)), "these fields of the config cannot be set"
      words = listed(title, problems) if problems else plain(error)
      print_traceback()
      print(f"error: {words}", file=sys.stderr, flush=True)
      sys.exit(2)
  if asks_for_help:
    print(_help(any("helpfull" in argument for argument in argv)))
    sys.exit(0)
  return arguments


def plain(error: Exception) -> str:
  """What absl and Python say of flags, in words for people."""
  required: list[str] = []
  lines: list[str] = []
  for line in str(error).splitlines():
    if found := re.fullmatch(r"flag --\w+=None: Flag --(\w+) must have a value other than None\.", line):
      required.append(f"--{found[1]}")
    else:
      for pattern, says in _PLAIN.items():
        line = re.sub(pattern, says, line)
      lines.append(line)
  return "\n".join([f"give {' and '.join(required)}"] * bool(required) + lines)


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
        meant = difflib.get_close_matches(part, there, 1)
        maybe = f"did you mean {''.join(meant)}? " * bool(meant)
        yield f"{key}: {maybe}there is no {part!r} here; there is {', '.join(there) or 'no further key'}"
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


def end_as_by_interrupt() -> None:
  """Lets SIGTERM and a closed terminal end a command as Ctrl-C does: what is done is written, and the message says why."""

  def end(number, frame):
    while frame:
      if (
        frame.f_code.co_name == "_xla_gc_callback"
      ):  # JAX's, while Python collects garbage: no exception leaves it
        threading.Timer(0.05, os.kill, (os.getpid(), number)).start()
        return
      frame = frame.f_back
    raise KeyboardInterrupt(signal.Signals(number))

  for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    if signal.getsignal(number) != signal.SIG_IGN:  # else `nohup` was asked to go on
      signal.signal(number, end)


class StopSignal:
  """Becomes true when SIGTERM, Ctrl-C or a closed terminal asks to stop; a second SIGTERM or Ctrl-C stops at once."""

  def __init__(self, *numbers: signal.Signals):
    self.received: signal.Signals | None = None
    self._passed_on = False
    for number in numbers or (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
      if (
        number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN
      ):  # else `nohup` was asked to go on
        signal.signal(number, self._receive)
        if (
          number == signal.SIGHUP
        ):  # it comes to all processes of a terminal: those started from now on inherit the block
          signal.pthread_sigmask(signal.SIG_BLOCK, {number})
          threading.Thread(target=self._wait_for, args=[number], daemon=True).start()

  def _wait_for(self, number: signal.Signals) -> None:
    self.received = signal.sigwait({number})  # type: ignore[assignment]

  def _receive(self, number, frame):
    del frame
    self.received = signal.Signals(number)
    # A terminal may send it twice, by its shell and by itself.
    signal.signal(number, signal.SIG_IGN if number == signal.SIGHUP else signal.SIG_DFL)

  def __bool__(self) -> bool:
    return self.received is not None

  def pass_on_interrupt(self) -> None:
    """Turns Ctrl-C and SIGHUP into SIGTERM, for whoever has taken over that signal from here."""
    if self.received in (signal.SIGINT, signal.SIGHUP) and not self._passed_on:
      self._passed_on = True
      os.kill(os.getpid(), signal.SIGTERM)

  @property
  def exit_status(self) -> int:
    """0 after SIGTERM and SIGHUP (the machine was taken back, all is saved), 130 after Ctrl-C, as shells do."""
    return 130 if self.received == signal.SIGINT else 0
