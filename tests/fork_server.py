"""Runs commands of the package in forks of itself: each is a process of its own that need not import JAX again.

Reads a line of JSON for each command from stdin ({"module" or a script's "path", "args", "cwd", "out"}) and answers with
its exit status.
"""

import importlib
import json
import os
from pathlib import Path
import runpy
import subprocess
import sys
import tempfile
import traceback
from typing import TextIO

# What commands import, and what takes seconds; nothing here starts a JAX backend or threads.
import av  # noqa: F401
import cv2  # noqa: F401
from flax import nnx  # noqa: F401
import grain  # noqa: F401
import jax  # noqa: F401
import librosa.display
import matplotlib.pyplot
import numba
import optax  # noqa: F401
import orbax.checkpoint  # noqa: F401
import scipy.signal  # noqa: F401
import tensorboardX  # noqa: F401
import tensorflow_datasets  # noqa: F401

librosa.resample, librosa.display.specshow  # noqa: B018  # it imports its parts when they are asked for
numba.njit(numba.void(numba.uint8[::1]))(lambda row: None)  # it loads its tables at the first one


def serve(jobs: TextIO, answers: TextIO) -> None:
  for line in jobs:
    child = os.fork()
    if not child:
      status = become(**json.loads(line))
      sys.stdout.flush()
      sys.stderr.flush()
      os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=answers, flush=True)


def become(*, module: str = "", path: str = "", args: list[str], cwd: str, out: str | None = None) -> int:
  """What `python -m MODULE ARGS` or `python PATH ARGS` does."""
  if out:
    output = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
  os.chdir(cwd)
  start_python_in_forks()
  importlib.invalidate_caches()
  matplotlib.pyplot.switch_backend("agg")
  sys.argv = [module or path, *args]
  try:
    if module:
      runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
      runpy.run_path(path, run_name="__main__")
  except SystemExit as end:
    return end.code if isinstance(end.code, int) else int(end.code is not None)
  except BaseException:
    traceback.print_exc()
    return 1
  return 0


def start_python_in_forks() -> None:
  """Lets this process start `python -m MODULE` in forks too: of a copy made now, before JAX has threads."""
  (jobs, to_copy), (from_copy, answers) = os.pipe(), os.pipe()
  if not os.fork():
    os.close(to_copy)
    os.close(from_copy)
    serve(os.fdopen(jobs), os.fdopen(answers, "w"))
    os._exit(0)
  os.close(jobs)
  os.close(answers)
  asked, told, real = os.fdopen(to_copy, "w"), os.fdopen(from_copy), subprocess.Popen

  class Popen(real):
    """As far as `subprocess.run` and `training/series.py` use it; a command has ended when it is made."""

    def __init__(self, command, *, cwd=None, stdout=None, **how):
      if list(command[:2]) != [sys.executable, "-m"]:
        super().__init__(command, cwd=cwd, stdout=stdout, **how)
        return
      sys.stdout.flush()
      self.out = tempfile.mktemp() if stdout else None
      job = {"module": command[2], "args": command[3:], "cwd": str(cwd or os.getcwd()), "out": self.out}
      print(json.dumps(job), file=asked, flush=True)
      self.args, self.returncode, self._child_created = command, int(told.readline()), True
      self.stdin = self.stdout = self.stderr = None

    def communicate(self, *args, **how):
      if not hasattr(self, "out"):
        return super().communicate(*args, **how)
      return (Path(self.out).read_text() if self.out else None), ""

  subprocess.Popen = Popen


if __name__ == "__main__":
  serve(sys.stdin, sys.stdout)
