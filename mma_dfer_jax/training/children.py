"""Runs in processes of their own, one after another, as `folds` and `ablate` start them."""

from collections.abc import Callable, Sequence
import ctypes
from pathlib import Path
import re
import signal
import subprocess
import sys
import time

from absl import flags

from mma_dfer_jax import cli


def flags_without(*names: str) -> list[str]:
  """This process's command line without some of its flags, for the processes that it starts."""
  kept: list[str] = []
  arguments = iter(flags.FLAGS.read_flags_from_files(sys.argv[1:]))
  for argument in arguments:
    name, equals, _ = argument.lstrip("-").partition("=")
    if name not in names:
      kept.append(argument)
    elif not equals:
      next(arguments)  # its value
  return kept


def train(arguments: Sequence[str], stop: cli.StopSignal) -> int:
  """Runs `python -m mma_dfer_jax.train` with these arguments; passes SIGTERM and Ctrl-C on; returns the exit status."""
  command = [sys.executable, "-m", "mma_dfer_jax.train", *arguments]
  # In a group of its own, Ctrl-C does not reach it twice, from the terminal and from here: a second one is harsh.
  with subprocess.Popen(command, process_group=0, preexec_fn=die_with_parent()) as process:
    passed_on = False
    while process.poll() is None:
      if stop and not passed_on and listens(process.pid):
        process.terminate()
        passed_on = True
      time.sleep(0.2)
  return process.returncode if process.returncode >= 0 else 128 - process.returncode


def die_with_parent() -> Callable[[], None] | None:
  """For a new process: `kill -9` of this one ends it too, so that no two trainings ever share a workdir."""
  if not sys.platform.startswith("linux"):
    return None
  prctl, death_signal = ctypes.CDLL(None).prctl, 1  # PR_SET_PDEATHSIG; looked up before the fork
  return lambda: prctl(death_signal, signal.SIGKILL)


def listens(pid: int) -> bool:
  """Whether a process handles SIGTERM: not yet while it starts, and no more once a scheduler has sent it one."""
  try:
    status = Path(f"/proc/{pid}/status").read_text()
  except OSError:  # no Linux, or just ended
    return True
  caught = re.search(r"SigCgt:\s*([0-9a-f]+)", status)
  return caught is None or bool(int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)
