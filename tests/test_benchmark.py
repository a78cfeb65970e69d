"""The benchmark command: its count of operations, one real measurement, and what it refuses."""

import json
import os
import subprocess
import sys

import commands
from conftest import ROOT
import pytest

from mma_dfer_jax.model import paper

benchmark = commands.load("benchmark")
Variant, paper_of_depth, report, step_flops = (
  getattr(benchmark, name) for name in ("Variant", "paper_of_depth", "report", "step_flops")
)


def run(*flags, status=0):
  command = [sys.executable, "-m", "mma_dfer_jax.benchmark", *flags]
  environment = os.environ | {"XLA_FLAGS": ""}  # one device
  done = subprocess.run(
    command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
  )
  assert done.returncode == status, done.stdout + done.stderr
  assert "Traceback" not in done.stderr
  return done.stdout + done.stderr


@pytest.mark.parametrize(("size", "flops"), [(224, 643.7e9), (160, 356.2e9)])
def test_operations_are_those_that_the_original_counts(size, flops):
  assert step_flops(paper(image_size=size)) == pytest.approx(flops, abs=0.05e9)


def test_a_measurement(tmp_path):
  printed = run("--steps=eval", "--image_size=32", "--depth=6", "--repeats=2", "--precision=float32,bfloat16",
                "--peak_tflops=1", f"--out={tmp_path / 'b.json'}")  # fmt: skip
  result = json.loads((tmp_path / "b.json").read_text())
  exact, coarse = result["variants"]
  for row in (exact, coarse):
    assert row["agrees"]
    assert len(row["seconds"]) == 2
    assert row["compile_seconds"]["cold"] > row["compile_seconds"]["cached"] > 0
    flops = step_flops(paper_of_depth(32, 6))
    assert row["tflops"] == pytest.approx(flops / row["median_seconds"] / 1e12)
    assert row["share_of_peak"] == pytest.approx(row["tflops"])
    assert 0.3 < row["peak_memory_gib"] < 8
  assert exact["loss_difference"] == 0 < coarse["loss_difference"]
  assert printed.count("eval") == 2


def test_other_results_and_failures_are_told():
  one = {
    "loss": 2.0,
    "seconds": [1.0],
    "trace_seconds": 1.0,
    "compile_seconds": {"cold": 1.0, "cached": 1.0},
    "peak_memory_gib": 1.0,
  }
  variants = [Variant("train", 32, 6, 1, 0, "float32", remat, "1x1") for remat in ("none", "names", "layers")]
  rows = report(list(zip(variants, [one, {**one, "loss": 2.1}, {"failed": "no memory"}], strict=True)), None)
  assert [row.get("agrees") for row in rows["variants"]] == [True, False, None]
  assert rows["variants"][2]["failed"] == "no memory"
  # A coarse one may come first.
  both = [Variant("train", 32, 6, 1, 0, precision, "none", "1x1") for precision in ("bfloat16", "float32")]
  rows = report(list(zip(both, [one, {**one, "loss": 2.05}], strict=True)), None)
  assert [row["agrees"] for row in rows["variants"]] == [True, True]


def test_all_that_is_wrong_is_said_at_once():
  printed = run(
    "--steps=fly",
    "--remat=all",
    "--batch_size=0",
    "--mesh=2",
    "--depth=5",
    "--image_size=40",
    "--out=no/where",
    status=1,
  )
  for flag in (
    "--steps=fly",
    "--remat=all",
    "--batch_size=0",
    "--mesh=2",
    "--depth=5",
    "--image_size=40",
    "--out=no/where",
  ):
    assert flag in printed
