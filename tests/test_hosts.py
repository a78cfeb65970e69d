"""Two real processes of two devices each: they train, save, stop and end together, and as one process would."""

from collections.abc import Callable
import json
import os
from pathlib import Path
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

from absl.testing import flagsaver
from archives import prepare_clips
import numpy as np
import pytest
from small_runs import finish, parameters, spawn, steps_logged, train_command, wait_for

from mma_dfer_jax.data.demo import generate
from mma_dfer_jax.errors import UserError
from mma_dfer_jax.training import hosts


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
  folder = tmp_path_factory.mktemp("data")
  prepare_clips(generate(folder / "clips", 3, 1, 0), folder, num_workers=2)
  return folder


def free_port() -> int:
  with socket.socket() as door:
    door.bind(("localhost", 0))
    return door.getsockname()[1]


def listens(address: str) -> bool:
  host, port = address.split(":")
  with socket.socket() as door:
    return door.connect_ex((host, int(port))) == 0


def pair(
  command: list[str], cache: Path, others: tuple[str, ...] = (), **variables
) -> list[subprocess.Popen]:
  """A command in two processes of two devices; `others` is said to the second one only."""
  address = f"--coordinator=localhost:{free_port()}"
  return [
    spawn([*command, address, "--num_processes=2", f"--process_id={i}", *others * i], cache, devices=2,
          **(variables if i else {}))
    for i in (0, 1)
  ]  # fmt: skip


def under_slurm(command: list[str], cache: Path, others: tuple[str, ...] = ()) -> list[subprocess.Popen]:
  """The same with what SLURM tells its processes, in place of flags: JAX makes the port from the job's number."""
  variables = {"MMA_DFER_DISTRIBUTED": "1", "SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_NODELIST": "localhost",
               "SLURM_NTASKS": "2", "SLURM_STEP_NUM_NODES": "1"}  # fmt: skip
  return [
    spawn([*command, *others * i], cache, devices=2, **variables, SLURM_PROCID=str(i), SLURM_LOCALID=str(i))
    for i in (0, 1)
  ]


@pytest.fixture(scope="module")
def train(data_dir) -> Callable[..., list[str]]:
  return lambda workdir, *flags, **overrides: train_command(workdir, data_dir, *flags, **overrides)


@pytest.fixture(scope="module")
def alone(tmp_path_factory, train, cache) -> Path:
  """The run of one process with four devices."""
  workdir = tmp_path_factory.mktemp("runs") / "alone"
  finish(spawn(train(workdir), cache, devices=4))
  return workdir


def assert_same_run(workdir: Path, alone: Path) -> None:
  """Equal but for the order of sums, which grows over fifteen updates; frozen bits are the same."""
  ours, theirs = parameters(workdir), parameters(alone)
  assert ours.keys() == theirs.keys()
  for path, value in theirs.items():
    np.testing.assert_allclose(
      ours[path], value, rtol=0, atol=1e-5 * np.abs(value).max() + 1e-7, err_msg=path
    )
  reports = [json.loads((folder / "report.json").read_text()) for folder in (workdir, alone)]
  assert reports[0]["confusion_matrix"] == reports[1]["confusion_matrix"]
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  written = [(line["step"], "epoch" in line) for line in lines]
  assert written == sorted(set(written))  # one process writes


def test_two_processes_are_as_one(alone, train, cache, data_dir, tmp_path):
  """Two processes, after a SIGTERM to one of them a single one, after another SIGTERM two again; and evaluation."""
  workdir = tmp_path / "run"
  steps = []
  for many, at_least in ((True, 3), (False, 8)):
    started = pair(train(workdir), cache) if many else [spawn(train(workdir), cache, devices=4)]
    wait_for(lambda: steps_logged(workdir) >= at_least, started[0])  # noqa: B023
    started[-1].send_signal(signal.SIGTERM)
    printed = [finish(process, status=0) for process in started]
    ends = {int(re.search(r"stopped by .* after step (\d+)", text).group(1)) for text in printed}
    assert len(ends) == 1
    steps += ends
    assert (workdir / "checkpoints" / str(steps[-1])).is_dir()
  assert 3 <= steps[0] < steps[1] < 15
  first, second = (finish(process) for process in pair(train(workdir), cache))
  assert "4 cpu device(s)" in first
  assert f"resuming after step {steps[1]} of 15" in first
  assert re.search(r"WAR .* on 7 clips", first)
  assert "WAR" not in second
  assert "%" not in second  # no progress either
  assert_same_run(workdir, alone)
  evaluate = [sys.executable, "-m", "mma_dfer_jax.evaluate", f"--workdir={workdir}", f"--data_dir={data_dir}",
              "--batch_size=4"]  # fmt: skip
  first, second = (finish(process) for process in pair(evaluate, cache))
  assert "WAR" in first
  assert "WAR" not in second
  whole = json.loads((workdir / "evaluation_test_step15.json").read_text())["without"]["none"]
  report = json.loads((workdir / "report.json").read_text())
  assert whole["confusion_matrix"] == report["confusion_matrix"]


def test_a_process_that_dies_ends_the_others(train, cache, tmp_path):
  """The first of one pair, the second of another."""
  killed = []
  for victim in (0, 1):
    workdir = tmp_path / str(victim)
    processes = pair(train(workdir, num_epochs=1000), cache)
    wait_for(lambda: steps_logged(workdir) >= 2, processes[1 - victim])  # noqa: B023
    processes[victim].kill()
    killed.append((processes, victim, time.monotonic()))
  for processes, victim, when in killed:
    out, err = processes[1 - victim].communicate(timeout=60)
    assert time.monotonic() - when < 60
    assert processes[1 - victim].returncode != 0, out + err
    assert "another" in err
    processes[victim].communicate()


def test_a_problem_of_one_is_told_by_all(train, cache, tmp_path):
  """Another version of a library, other settings, a folder that is not shared."""
  elsewhere = tmp_path / "site"
  (elsewhere / "optax-0.0.1.dist-info").mkdir(parents=True)
  (elsewhere / "optax-0.0.1.dist-info" / "METADATA").write_text(
    "Metadata-Version: 2.1\nName: optax\nVersion: 0.0.1\n"
  )
  for process in pair(train(tmp_path / "run"), cache, PYTHONPATH=str(elsewhere)):
    words = r"library optax: '0\.0\.1' in process 1, '.*' in process 0"
    assert re.search(words, finish(process, status=1))
  stale = tmp_path / "stale"  # left by a run on this host alone
  stale.mkdir()
  for process in pair(train(tmp_path / "run"), cache, (f"--workdir={stale}",)):
    assert "is not the folder that process 0 writes to" in finish(process, status=1)
  shutil.rmtree(tmp_path / "run")
  for process in under_slurm(train(tmp_path / "run"), cache, ("--config.seed=7",)):
    assert re.search(r"run config\.seed: 7 in process 1, 1 in process 0", finish(process, status=1))
  assert not (tmp_path / "run").exists()


def test_processes_that_never_come_are_told_with_the_address(train, cache, tmp_path):
  address = f"localhost:{free_port()}"
  flags = [f"--coordinator={address}", "--num_processes=2", "--join_seconds=3"]
  printed = finish(spawn(train(tmp_path, *flags, "--process_id=1"), cache), status=1)
  assert f"did not come together at {address} within 3 s" in printed
  waiting = spawn(train(tmp_path, *flags[:2], "--process_id=0"), cache)
  wait_for(lambda: listens(address), waiting)
  waiting.send_signal(signal.SIGTERM)
  waiting.communicate(timeout=20)
  assert waiting.returncode == -signal.SIGTERM  # there is nothing to save yet
  nowhere = spawn(train(tmp_path), cache, MMA_DFER_DISTRIBUTED="1")
  assert "give --coordinator=HOST:PORT" in finish(nowhere, status=1)


@pytest.mark.parametrize(
  ("given", "words"),
  [
    ({"coordinator": "here:1"}, "go together"),
    ({"coordinator": "here", "num_processes": 2, "process_id": 0}, "HOST:PORT"),
    ({"coordinator": "here:1", "num_processes": 2, "process_id": 2}, r"must lie in 0 … 1"),
  ],
)
def test_flags_that_make_no_sense(given, words):
  with flagsaver.flagsaver(**given), pytest.raises(UserError, match=words):
    hosts.is_distributed()


def test_what_the_environment_says(monkeypatch):
  for value, many in (("1", True), ("0", False), ("", False)):
    monkeypatch.setenv("MMA_DFER_DISTRIBUTED", value)
    assert hosts.is_distributed() == many
  monkeypatch.setenv("MMA_DFER_DISTRIBUTED", "yes")
  with pytest.raises(UserError, match="MMA_DFER_DISTRIBUTED=yes"):
    hosts.is_distributed()
