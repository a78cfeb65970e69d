"""`./launch.sh tpu` and `./launch.sh slurm`: what they would do, and that they do just that."""

import os
from pathlib import Path
import shlex
import subprocess

from conftest import ROOT
import pytest

pytestmark = pytest.mark.slow
TRAIN = ["train", "--config=configs/dfew.py", "--config.data.data_dir=data", "--config.batch_size=64",
         "--config.data.num_workers=6", "--workdir=runs/dfew/fold1"]  # fmt: skip


def launch(*arguments: str, status: int = 0, **variables: str) -> str:
  environment = os.environ | variables
  done = subprocess.run(
    ["./launch.sh", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
  )
  assert done.returncode == status, done.stderr
  return done.stdout + done.stderr


def test_tpu_sends_the_project_to_all_workers_and_runs_there():
  flags = ["--config.data.classes=('a b', 'c')", *TRAIN[1:]]
  pack, copy, start = map(
    shlex.split, launch("tpu", "pod", "zone-a", "train", *flags, DRY_RUN="1").splitlines()
  )
  assert pack[:2] == ["git", "archive"]
  assert copy[:5] == ["gcloud", "compute", "tpus", "tpu-vm", "scp"]
  assert {"--worker=all", "--zone=zone-a", "pod:"} <= set(copy)
  assert {"--worker=all", "--zone=zone-a", "pod", "ssh"} <= set(start)
  command = next(word for word in start if word.startswith("--command=")).removeprefix("--command=")
  assert "./launch.sh install tpu && MMA_DFER_DISTRIBUTED=1 ./launch.sh train" in command
  assert shlex.split(command)[-len(flags) :] == flags  # quoted twice and whole


def test_slurm_is_what_the_documents_show():
  script = launch("slurm", "2", "8", *TRAIN, DRY_RUN="1")
  assert "#SBATCH --nodes=2\n#SBATCH --ntasks-per-node=8\n" in script
  assert "MMA_DFER_DISTRIBUTED=1" in script
  shown = "".join(f"    {line}\n" for line in script.splitlines())
  assert shown in (ROOT / "docs/training.md").read_text()
  subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_without_dry_run_just_that_is_done(tmp_path):
  for program in ("gcloud", "git", "sbatch"):
    stub = tmp_path / program
    stub.write_text(f'#!/bin/bash\n(printf "%q " {program} "$@"; echo) >> {tmp_path}/log\n'
                    f'[ {program} = sbatch ] && cat >> {tmp_path}/log || true\n')  # fmt: skip
    stub.chmod(0o755)
  path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
  launch("tpu", "pod", "zone-a", *TRAIN, **path)
  log = tmp_path / "log"
  assert log.read_text() == launch("tpu", "pod", "zone-a", *TRAIN, DRY_RUN="1")
  log.unlink()
  if (ROOT / ".venv").exists():  # slurm makes it where it is missing, for all processes
    launch("slurm", "2", "8", *TRAIN, **path)
    assert log.read_text().split("\n", 1)[1] == launch("slurm", "2", "8", *TRAIN, DRY_RUN="1")


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    (["tpu", "pod"], "NAME ZONE COMMAND"),
    (["slurm", "two", "8", "train"], "NODES GPUS COMMAND"),
    (["slurm", "", "8", "train"], "NODES GPUS COMMAND"),
    (["slurm", "0", "8", "train"], "NODES GPUS COMMAND"),
    (["tpu", "", "", "train"], "NAME ZONE COMMAND"),
    (["slurm", "2", "8", "predict"], "not 'predict'"),
    (["install", "npu"], "nothing, gpu or tpu"),
  ],
)
def test_what_is_wrong_is_said(arguments, words):
  if arguments[0] == "install" and not Path(ROOT / ".venv").exists():
    pytest.skip("would install")
  assert words in launch(*arguments, status=2)
