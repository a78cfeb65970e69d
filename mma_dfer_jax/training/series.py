"""Runs in processes of their own, one after another, as `folds` and `ablate` start them."""

from collections.abc import Callable, Sequence
import ctypes
import dataclasses
import json
from pathlib import Path
import re
import signal
import subprocess
import sys
import time
from typing import Any

from absl import flags

from mma_dfer_jax import cli
from mma_dfer_jax.training import run as as_config
from mma_dfer_jax.training.run import Run, claim_workdir


@dataclasses.dataclass(frozen=True)
class Job:
  """One run of a series."""

  name: str  # for people
  workdir: Path
  run: Run
  arguments: Sequence[str] = ()  # of `mma_dfer_jax.train`; none: run.json is written first, as its config
  says: str = ""  # what is special about it, shown as it starts


def train_all(
  jobs: Sequence[Job], finished: Callable[[Path, Run], object], after_each: Callable[[], object] = lambda: None, *,
  trust_status: bool = False,
) -> int | None:  # fmt: skip
  """Trains what is not finished; returns the exit status if it was stopped or failed, None when all is done.

  Args:
    finished: the result of a run, None while there is none.
    after_each: called after each run that was trained.
    trust_status: takes exit status 0 for a finished run, where only another host writes the report.
  """
  stop = cli.StopSignal()
  for i, job in enumerate(jobs, start=1):
    title, status = f"{job.name} ({i} of {len(jobs)})", 0
    if finished(job.workdir, job.run):
      print(f"{title} is finished: {job.workdir}/report.md", flush=True)
      continue
    if not stop:
      print(f"{title}{job.says} goes to {job.workdir}", flush=True)
      if not job.arguments:
        claim_workdir(job.workdir, job.run)
      arguments = job.arguments or [f"--config={as_config.__file__}:{job.workdir}"]
      status = train([*arguments, f"--workdir={job.workdir}"], stop)
    advice = "to resume, run the same command"
    if status and not stop:
      print(f"error: {title} ended with exit status {status}; {advice}", file=sys.stderr)
      return status
    if stop or not (trust_status or finished(job.workdir, job.run)):
      print(f"stopped in {title}; {advice}")
      return status or stop.exit_status
    after_each()
  return None


def finished_report(workdir: Path, run: Run) -> dict[str, Any]:
  """The report of a run; OSError, ValueError, KeyError or TypeError if that run has not finished or it is damaged."""
  report = json.loads((workdir / "report.json").read_text())
  expected = run["config"]["num_epochs"], run["classes"], run["recipe"]
  same = (report["epoch"], report["classes"], report["recipe"]) == expected
  if not same or not (workdir / "run.json").exists():
    raise ValueError("of another run")
  return report


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


def problems_of_series(field: str, numbers: flags.FlagHolder) -> list[str]:
  """What is wrong with the numbers of which each run gets one as a field of its config ("data.fold")."""
  problems, given = [], numbers.value
  if not given or not all(re.fullmatch(r"0|[1-9]\d{0,8}", n) for n in given) or len(set(given)) < len(given):
    problems.append(f"--{numbers.name}={','.join(given)}: give different whole numbers, comma-separated")
  if any(re.match(rf"--?config\.{re.escape(field)}(=|$)", argument) for argument in flags_without()):
    problems.append(f"config.{field} is set for each run; choose with --{numbers.name}")
  return problems


def train(arguments: Sequence[str], stop: cli.StopSignal) -> int:
  """Runs `python -m mma_dfer_jax.train` with these arguments; passes SIGTERM and Ctrl-C on; returns the exit status."""
  command = [sys.executable, "-m", "mma_dfer_jax.train", *arguments]
  die_with_parent = None
  if sys.platform.startswith(
    "linux"
  ):  # `kill -9` of this process ends it too: no two trainings share a workdir
    prctl, death_signal = ctypes.CDLL(None).prctl, 1  # PR_SET_PDEATHSIG; looked up before the fork
    die_with_parent = lambda: prctl(death_signal, signal.SIGKILL)  # noqa: E731
  # In a group of its own, Ctrl-C does not reach it twice, from the terminal and from here: a second one is harsh.
  with subprocess.Popen(command, process_group=0, preexec_fn=die_with_parent) as process:
    passed_on = False
    while process.poll() is None:
      if stop and not passed_on and _listens(process.pid):
        process.terminate()
        passed_on = True
      time.sleep(0.2)
  return process.returncode if process.returncode >= 0 else 128 - process.returncode


def _listens(pid: int) -> bool:
  """Whether a process handles SIGTERM: not yet while it starts, and no more once a scheduler has sent it one."""
  try:
    status = Path(f"/proc/{pid}/status").read_text()
  except OSError:  # no Linux, or just ended
    return True
  caught = re.search(r"SigCgt:\s*([0-9a-f]+)", status)
  return caught is None or bool(int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)
