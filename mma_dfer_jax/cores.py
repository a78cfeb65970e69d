"""How many processor cores this process may use, which on shared machines are fewer than there are; and threads for them."""

import collections
from collections.abc import Callable, Iterable, Iterator
import concurrent.futures
import contextlib
import math
import os
from pathlib import Path
import threading
from typing import Any

CGROUPS = Path("/sys/fs/cgroup")
_processes = 1  # that share the cores with this one


def usable_cores(groups: Path = CGROUPS, own: Path = Path("/proc/self/cgroup")) -> int:
  """What the affinity (taskset, SLURM) and the quota of the control group (containers) leave, at least 1."""
  affinity = getattr(os, "sched_getaffinity", None)
  cores = len(affinity(0)) if affinity else os.cpu_count() or 1
  return max(1, min([cores, *map(math.ceil, _quotas(groups, own))]))


def share_cores(processes: int) -> None:
  """Says how many processes work beside each other, this one included, as `own_cores` asks."""
  global _processes
  _processes = max(1, processes)


def own_cores() -> int:
  """How many threads this process may keep busy, at least 1."""
  return max(1, usable_cores() // _processes)


def _quotas(groups: Path, own: Path) -> list[float]:
  """Cores by the limits of this process's control group and of those around it, version 2 and 1."""
  try:
    lines = [line.split(":", 2) for line in own.read_text().splitlines()]
  except OSError:
    lines = []
  folders = {groups, groups / "cpu", groups / "cpu,cpuacct"}
  for _, controllers, path in (line for line in lines if len(line) == 3):
    root = groups if not controllers else groups / controllers
    if not controllers or "cpu" in controllers.split(","):
      folders |= {root / "/".join(path.strip("/").split("/")[:depth]) for depth in range(path.count("/") + 1)}
  found = []
  for folder in folders:
    try:
      if (folder / "cpu.max").is_file():
        quota, period = (folder / "cpu.max").read_text().split()
      else:
        quota, period = ((folder / f"cpu.cfs_{one}_us").read_text().strip() for one in ("quota", "period"))
      found += [int(quota) / int(period)] if quota not in ("max", "-1") and int(quota) > 0 else []
    except (OSError, ValueError):
      continue
  return found


@contextlib.contextmanager
def working_ahead(
  work: Callable[[Any, Callable[[], None]], Any], items: Iterable[Any], threads: int
) -> Iterator[Iterator[Any]]:
  """What `work(item, check)` gives for each item, in their order, from threads that keep two results each ready.

  When the block is left early, `check()` raises in the threads, so that nobody waits for long work that nobody wants.
  """
  left = threading.Event()

  def check() -> None:
    if left.is_set():
      raise concurrent.futures.CancelledError

  def results() -> Iterator[Any]:
    rest, running = iter(items), collections.deque[concurrent.futures.Future]()
    for item in rest:
      running.append(pool.submit(work, item, check))
      if len(running) > 2 * threads:
        yield running.popleft().result()
    while running:
      yield running.popleft().result()

  others = _processes
  share_cores(others * threads)
  with concurrent.futures.ThreadPoolExecutor(threads) as pool:
    try:
      yield results()
    finally:
      share_cores(others)
      left.set()
      pool.shutdown(wait=False, cancel_futures=True)
