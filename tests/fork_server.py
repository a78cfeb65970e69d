"""Runs commands of the package in forks of itself: each is a process of its own that need not import JAX again.

Reads a line of JSON for each command from stdin ({"module", "args", "cwd", "env", "out"}) and answers with its exit status.
"""

import json
import os
import runpy
import sys
import traceback

# What commands import, and what takes two seconds; nothing here starts a JAX backend or threads.
import av  # noqa: F401
import cv2  # noqa: F401
from flax import nnx  # noqa: F401
import grain  # noqa: F401
import jax
import matplotlib.pyplot
import optax  # noqa: F401
import orbax.checkpoint  # noqa: F401
import tensorflow_datasets  # noqa: F401


def become(module: str, args: list[str], cwd: str, env: dict[str, str], out: str) -> int:
  """What `python -m MODULE ARGS` does."""
  output = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
  os.dup2(output, 1)
  os.dup2(output, 2)
  os.chdir(cwd)
  os.environ.update(env)
  for variable in ("JAX_PLATFORMS", "JAX_COMPILATION_CACHE_DIR"):  # JAX has read them when it was imported
    jax.config.update(variable.lower(), env.get(variable))
  matplotlib.pyplot.switch_backend("agg")
  sys.argv = [module, *args]
  try:
    runpy.run_module(module, run_name="__main__", alter_sys=True)
  except SystemExit as end:
    return end.code if isinstance(end.code, int) else int(end.code is not None)
  except BaseException:
    traceback.print_exc()
    return 1
  return 0


for line in sys.stdin:
  child = os.fork()
  if not child:
    status = become(**json.loads(line))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
  print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
