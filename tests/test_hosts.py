"""Two real processes of two devices each: they train, save, stop and end together, and as one process would."""

import json
import os
from pathlib import Path
import re
import signal
import socket
import subprocess
import sys
import time

from absl.testing import flagsaver
from conftest import ROOT
import jax
import numpy as np
import pytest
import small_runs as small

from mma_dfer_jax.errors import UserError
from mma_dfer_jax.training import hosts
from mma_dfer_jax.training.predictions import read_predictions

ONE_OF_SEVERAL = [sys.executable, str(ROOT / "tests/host_process.py")]


def free_port() -> int:
  with socket.socket() as door:
    door.bind(("localhost", 0))
    return door.getsockname()[1]


def listens(address: str) -> bool:
  host, port = address.split(":")
  with socket.socket() as door:
    return door.connect_ex((host, int(port))) == 0


def pair(command: list[str], cache: Path) -> list[subprocess.Popen]:
  """A command in two processes of two devices."""
  flags = [f"--coordinator=localhost:{free_port()}", "--num_processes=2"]
  return [small.spawn([*command, *flags, f"--process_id={i}"], cache, devices=2) for i in (0, 1)]


def under_slurm(command: list[str], cache: Path, others: tuple[str, ...]) -> list[subprocess.Popen]:
  """The same with what SLURM tells its processes, in place of flags: JAX makes the port from the job's number."""
  job = {"MMA_DFER_DISTRIBUTED": "1", "SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_NODELIST": "localhost",
         "SLURM_NTASKS": "2", "SLURM_STEP_NUM_NODES": "1"}  # fmt: skip
  return [small.spawn([*command, *others * i], cache, devices=2, **job, SLURM_PROCID=str(i), SLURM_LOCALID=str(i))
          for i in (0, 1)]  # fmt: skip


def assert_same_run(workdir: Path, alone: Path) -> None:
  """Equal but for the order of sums, which grows over fifteen updates."""
  ours, theirs = small.parameters(workdir), small.parameters(alone)
  assert ours.keys() == theirs.keys()
  for path, value in theirs.items():
    bar = 1e-5 * np.abs(value).max() + 1e-7
    np.testing.assert_allclose(ours[path], value, rtol=0, atol=bar, err_msg=path)
  reports = [small.read_json(folder / "report.json") for folder in (workdir, alone)]
  assert reports[0]["confusion_matrix"] == reports[1]["confusion_matrix"]
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  written = [(line["step"], "epoch" in line) for line in lines]
  assert written == sorted(set(written))  # one process writes


def assert_same_answers(csv: Path, other: Path) -> None:
  """The same clips in the same order, each once, and none of those that only fill up a batch."""
  ours, theirs = read_predictions(csv), read_predictions(other)
  assert ours.clips == theirs.clips
  assert len(ours.clips) == 7
  assert (ours.labels == theirs.labels).all()
  np.testing.assert_allclose(ours.probabilities, theirs.probabilities, atol=1e-5)


@pytest.mark.slow
def test_two_processes_are_as_one(cache, data_dir, tmp_path, tmp_path_factory):
  """A single process, then two of them until one gets a SIGTERM, then a single one again; and evaluation by two."""
  workdir, alone = tmp_path / "run", small.uninterrupted_run(tmp_path_factory, data_dir)
  assert "stopped by a test after step 2" in small.train_here(workdir, data_dir, stop_after=3)
  both = pair(small.train_command(workdir, data_dir), cache)
  small.wait_for(lambda: small.steps_logged(workdir) >= 5, both[0])  # an epoch has been evaluated
  both[1].send_signal(signal.SIGTERM)
  first, second = map(small.finish, both)
  assert "4 cpu device(s)" in first
  assert "resuming after step 2 of 15" in first
  assert not {"WAR", "%"} & set(second.split())  # no progress either
  (step,) = {re.search(r"stopped by .* after step (\d+)", printed).group(1) for printed in (first, second)}
  assert (workdir / "checkpoints" / step).is_dir()
  printed = small.train_here(workdir, data_dir)
  assert f"resuming after step {step} of 15" in printed
  assert re.search(r"WAR .* on 7 clips", (alone.parent / "printed").read_text()).group() in printed
  assert_same_run(workdir, alone)
  assert_same_answers(workdir / "predictions.csv", alone / "predictions.csv")

  evaluate = small.command("evaluate", f"--workdir={workdir}", f"--data_dir={data_dir}", "--batch_size=4")
  first, second = map(small.finish, pair(evaluate, cache))
  assert "WAR" in first
  assert "WAR" not in second
  whole = small.read_json(workdir / "evaluation_test_step15.json")["without"]["none"]
  assert whole["confusion_matrix"] == small.read_json(workdir / "report.json")["confusion_matrix"]
  answers = workdir / "evaluation_test_step15_without_none_predictions.csv"
  assert_same_answers(answers, workdir / "predictions.csv")


@pytest.mark.slow
def test_a_process_that_dies_ends_the_others(cache, tmp_path):
  """The first of one pair, the second of another."""
  killed = []
  for victim in (0, 1):
    mark = tmp_path / str(victim)
    processes = pair([*ONE_OF_SEVERAL, str(mark)], cache)
    small.wait_for(mark.exists, processes[1 - victim])
    processes[victim].kill()
    killed.append((processes[victim], processes[1 - victim], time.monotonic()))
  for dead, other, when in killed:
    out, err = other.communicate(timeout=60)
    assert time.monotonic() - when < 60
    assert other.returncode != 0, out + err
    assert "another" in err
    dead.communicate()


@pytest.mark.slow
def test_processes_under_slurm_that_disagree(data_dir, cache, tmp_path):
  for process in under_slurm(small.train_command(tmp_path / "run", data_dir), cache, ("--config.seed=7",)):
    assert re.search(r"run config\.seed: 7 in process 1, 1 in process 0", small.finish(process, status=1))
  assert not (tmp_path / "run").exists()


def test_a_problem_of_one_becomes_one_of_all(monkeypatch, tmp_path):
  """As the other process hears of it: another version of a library, an error, a folder that is not shared."""
  said: list[str] = []
  monkeypatch.setattr(hosts, "everyone_says", lambda value: [said.pop(0), value])
  said.append('{"optax": "0.0.1"}')
  with pytest.raises(UserError, match=r"library optax: '1' in process 1, '0\.0\.1' in process 0"):
    hosts.check_equal_on_all("library", {"optax": "1"})
  said.append("the disk is full")
  with pytest.raises(UserError, match="process 0: the disk is full"), hosts.fail_together():
    pass
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  clock = iter([0.0, 11.0])
  monkeypatch.setattr(hosts.time, "monotonic", lambda: next(clock))
  said += ["mark", "", ""]
  with pytest.raises(UserError, match="is not the folder that process 0 writes to"):
    hosts.check_shared_folder(tmp_path)


@pytest.mark.slow
def test_processes_that_never_come_are_reported_with_the_address(cache, tmp_path):
  addresses, command = (
    [f"localhost:{free_port()}" for _ in range(2)],
    [*ONE_OF_SEVERAL, str(tmp_path / "mark")],
  )
  flags = [[f"--coordinator={address}", "--num_processes=2"] for address in addresses]
  alone = small.spawn([*command, *flags[0], "--join_seconds=3", "--process_id=1"], cache)
  waiting = small.spawn([*command, *flags[1], "--process_id=0"], cache)
  nowhere = small.spawn(command, cache, MMA_DFER_DISTRIBUTED="1")
  assert f"did not come together at {addresses[0]} within 3 s" in small.finish(alone, status=1)
  small.wait_for(lambda: listens(addresses[1]), waiting)
  waiting.send_signal(signal.SIGTERM)
  waiting.communicate(timeout=20)
  assert waiting.returncode == -signal.SIGTERM  # there is nothing to save yet
  assert "give --coordinator=HOST:PORT" in small.finish(nowhere, status=1)


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
