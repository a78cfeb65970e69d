"""How many processor cores this process may use, which on shared machines are fewer than there are."""

import math
import os
from pathlib import Path

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
