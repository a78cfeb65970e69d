"""Several processes that work as one: how they find each other, agree, stop together, and end when one is lost.

On TPU pods, under SLURM and MPI, JAX finds the others itself: MMA_DFER_DISTRIBUTED=1. Elsewhere each process gets
--coordinator=HOST:PORT --num_processes=N --process_id=0…N-1. Without either, a process works alone.

They agree through the key-value store of JAX's coordinator rather than by a sum over devices, which needs programs that
are already equal.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import faulthandler
import importlib.metadata
import itertools
import json
import os
from pathlib import Path
import re
import signal
import sys
import threading
import time
from typing import Any
import uuid

from absl import flags
import jax
from jax._src import distributed  # the store has no public door; Orbax goes through this one too
from jax.experimental import multihost_utils

from mma_dfer_jax import __version__, cli
from mma_dfer_jax.errors import UserError, listed
from mma_dfer_jax.training import sharding

_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, unless JAX finds it itself.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of processes; with --coordinator.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Number of this process, from 0; with --coordinator.")
_JOIN_SECONDS = flags.DEFINE_integer("join_seconds", 300, "How long to wait for the others.", lower_bound=1)
FLAGS = ("coordinator", "num_processes", "process_id", "join_seconds")

HEARTBEAT_SECONDS = 20  # a process that is silent for so long is lost: the others end within a minute
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
STRINGS_AT_ONCE = 5_000  # a value in the store must stay below 4 MB
LOST = ("Gloo", "NCCL", "coordination", "Connection closed", "Connection reset", "DEADLINE_EXCEEDED", "UNAVAILABLE")  # fmt: skip
_rounds = itertools.count()  # of questions to all; equal in all processes, for all ask the same ones
_all_end = False  # whether all processes know that they end now


def is_distributed() -> bool:
  """Whether this process is one of several; UserError if flags and environment make no sense."""
  variable = os.environ.get("MMA_DFER_DISTRIBUTED", "")
  problems = []
  if variable not in ("", "0", "1"):
    problems.append(f"MMA_DFER_DISTRIBUTED={variable}: give 1 for several processes, 0 or nothing for one")
  address, number, of = _COORDINATOR.value, _PROCESS_ID.value, _NUM_PROCESSES.value
  if len({value is None for value in (address, number, of)}) > 1:
    problems.append("--coordinator, --num_processes and --process_id go together: give all three")
  if address is not None and not re.fullmatch(r".+:\d{1,5}", address):
    problems.append(f"--coordinator={address}: give HOST:PORT of process 0")
  if number is not None and of is not None and not 0 <= number < of:
    problems.append(f"--process_id={number} must lie in 0 … {of - 1}, for --num_processes={of}")
  if problems:
    raise listed("the multi-process settings are wrong", problems)
  return address is not None or variable == "1"


def join() -> None:
  """Finds the other processes, if there are any; UserError if they do not come, or have other versions of libraries."""
  if not is_distributed():
    return
  seconds = _JOIN_SECONDS.value
  # JAX would end a process that waits in vain by abort(), without the address, so this comes first.
  alarm = threading.Timer(seconds, _give_up)
  alarm.daemon = True
  alarm.start()
  interrupt = signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python's own waits for the end of the waiting
  try:
    jax.distributed.initialize(
      _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value, initialization_timeout=seconds + 60,
      heartbeat_timeout_seconds=HEARTBEAT_SECONDS, shutdown_timeout_seconds=HEARTBEAT_SECONDS,
    )  # fmt: skip
  except (ValueError, TypeError, RuntimeError) as error:  # JAX's own errors are RuntimeErrors
    raise UserError(f"{_apart()}: {' '.join(str(error).split())[:300]}") from error
  finally:
    alarm.cancel()
    signal.signal(signal.SIGINT, interrupt)
  faulthandler.disable()  # JAX ends a process that has lost the others by abort(): its own words are enough
  versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
  check_equal_on_all("library", {"mma_dfer_jax": __version__} | versions)


def _apart() -> str:
  if address := distributed.global_state.coordinator_address or _COORDINATOR.value:
    return f"the processes did not come together at {address}"
  return "JAX finds no TPU pod, SLURM or MPI here, so the other processes are unknown; give --coordinator=HOST:PORT"


def _give_up() -> None:
  print(f"error: {_apart()} within {_JOIN_SECONDS.value} s: does process 0 run there, were all of them started, and can "
        "they reach that port?", file=sys.stderr, flush=True)  # fmt: skip
  os._exit(1)


def everyone_says(value: str) -> list[str]:
  """The value of each process, in their order; all must ask."""
  state, number = distributed.global_state, next(_rounds)
  if state.client is None:
    return [value]
  # Not jax.process_count(): that starts the devices, for which the libraries should be equal already.
  state.client.key_value_set(f"mma_dfer/{number}/{state.process_id}", value)
  ask, wait = state.client.blocking_key_value_get, 1000 * _JOIN_SECONDS.value
  return [ask(f"mma_dfer/{number}/{i}", wait) for i in range(state.num_processes)]


def gathered(strings: Sequence[str]) -> list[list[str]]:
  """The strings of each process; all must have as many."""
  shares = [json.dumps(strings[i : i + STRINGS_AT_ONCE]) for i in range(0, len(strings), STRINGS_AT_ONCE)]
  said = [[json.loads(share) for share in everyone_says(share)] for share in shares]
  return [[*itertools.chain(*of_process)] for of_process in zip(*said, strict=True)]


def check_equal_on_all(what: str, here: Mapping[str, Any]) -> None:
  """Raises UserError, in all processes, with every value that is not that of process 0."""
  first, *others = map(json.loads, everyone_says(json.dumps(here)))
  problems = []
  for number, other in enumerate(others, start=1):
    for key in sorted(key for key in first.keys() | other.keys() if other.get(key) != first.get(key)):
      there = f"{other.get(key)!r} in process {number}"
      problems.append(f"{what} {key}: {there}, {first.get(key)!r} in process 0")
  if problems:
    raise _in_all(listed("the processes disagree", problems, "start all of them with the same command"))


@contextlib.contextmanager
def fail_together() -> Iterator[None]:
  """A UserError of one process inside becomes one in all of them."""
  try:
    yield
    problem = ""
  except UserError as error:
    problem = str(error)
  said = everyone_says(problem)
  if problem:
    raise _in_all(UserError(problem))
  if others := [f"process {number}: {text}" for number, text in enumerate(said) if text]:
    raise _in_all(listed("another process cannot continue", others))


def _in_all(error: UserError) -> UserError:
  global _all_end
  _all_end = True
  return error


def check_shared_folder(folder: Path) -> None:
  """Raises UserError, in all processes, unless they all see one folder under that name."""
  if jax.process_count() == 1:
    return
  mark = folder / f".seen-by-all-{everyone_says(uuid.uuid4().hex)[0]}"
  with fail_together():
    if jax.process_index() == 0:
      mark.touch()
  try:
    with fail_together():
      deadline = time.monotonic() + 10  # network folders may show it late
      while not mark.exists():
        if time.monotonic() > deadline:
          raise UserError(f"{folder} is not the folder that process 0 writes to; all processes must share it")
        time.sleep(0.2)
  finally:
    if jax.process_index() == 0:
      mark.unlink()


class Stop:
  """Becomes true when a signal asks to stop: in all processes after the same question, whichever of them got it.

  To be made after `join`: among several processes JAX takes SIGTERM, and this class the others.
  """

  def __init__(self):
    self.alone = jax.process_count() == 1
    self.signal = cli.StopSignal(signal.SIGINT, signal.SIGHUP, *[signal.SIGTERM] * self.alone)
    self.agreed = False
    self._questions = 0

  def __bool__(self) -> bool:
    """To be asked equally often in all processes."""
    if not self.alone:
      self.signal.pass_on_interrupt()
      self._questions += 1
      if not self.agreed and multihost_utils.reached_preemption_sync_point(self._questions):
        global _all_end
        self.agreed = _all_end = True
    return self.stopped

  @property
  def stopped(self) -> bool:
    """Whether it has become true."""
    return bool(self.signal) if self.alone else self.agreed


def exit_process(status: int) -> None:
  """Ends a process: with all others if they end as well; at once if it alone has failed, for they would wait for it."""
  if distributed.global_state.client is None:
    return
  if status and not _all_end:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
  jax.distributed.shutdown()  # waits for all: without the first process the others would fail


def describe_error(error: Exception) -> str | None:
  """In words, the errors of a lost process; None if it is anything else."""
  text = str(error)
  if jax.process_count() > 1 and any(sign in text for sign in LOST):
    return f"another process has ended or cannot be reached: {' '.join(text.split())[:300]}"
  return sharding.describe_error(error)
