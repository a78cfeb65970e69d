"""Rows and seeds with one command, in real processes: refused, killed, resumed, compared."""

import json
from pathlib import Path
import signal
import statistics
import sys

from archives import prepare_clips
import pytest
from small_runs import SMALL, finish, spawn, wait_for

from mma_dfer_jax.ablations import ROWS
from mma_dfer_jax.data.demo import generate
from mma_dfer_jax.training.comparison import RowResult, write_comparison

CONFIG = SMALL | {"num_epochs": 2, "log_every_steps": 1, "save_every_steps": 1, "micro_batch": -1}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
  folder = tmp_path_factory.mktemp("data")
  prepare_clips(generate(folder / "clips", 2, 1, 0), folder)
  return folder


def command(data_dir: Path, runs: Path, rows: str, seeds: str = "1,2", **overrides) -> list[str]:
  fields = CONFIG | {"data.data_dir": data_dir} | overrides
  return [sys.executable, "-m", "mma_dfer_jax.ablate", "--config=configs/demo.py", f"--runs={runs}", f"--rows={rows}",
          f"--seeds={seeds}", *(f"--config.{name}={value}" for name, value in fields.items())]  # fmt: skip


def test_killed_and_resumed_it_ends_in_a_table(data_dir, tmp_path, cache):
  call = command(data_dir, tmp_path / "runs", "base,no_fusion")
  base, fusion = tmp_path / "runs/base/seed1", tmp_path / "runs/no_fusion/seed1"
  first = spawn(call, cache)
  wait_for(lambda: (fusion / "checkpoints/1").exists(), first)
  first.send_signal(signal.SIGKILL)
  first.wait()
  report = (base / "report.json").read_bytes()

  told = finish(spawn(call, cache))
  assert f"base, seed 1 (1 of 4) is finished: {base}/report.md" in told
  assert "no_fusion, seed 2 (4 of 4): no Fusion Bottlenecks" in told
  assert "resuming after step" in told
  assert (base / "report.json").read_bytes() == report
  summary = json.loads((tmp_path / "runs/ablations.json").read_text())
  assert [row["row"] for row in summary["rows"]] == ["base", "no_fusion"]
  for row in summary["rows"]:
    reports = [
      json.loads((tmp_path / f"runs/{row['row']}/seed{seed}/report.json").read_text()) for seed in (1, 2)
    ]
    assert row["war"]["mean"] == pytest.approx(statistics.mean(report["war"] for report in reports))
    assert row["tunable_parameters"] == reports[0]["tunable_parameters"]
    assert 0.1 < row["peak_memory_gib"] < 20
    assert 0 < row["seconds_per_step"] < 60
    assert reports[1]["config"]["seed"] == 2
  assert "| `no_fusion` | no Fusion Bottlenecks |" in (tmp_path / "runs/ablations.md").read_text()
  assert (tmp_path / "runs/ablations.png").exists()
  config = json.loads((fusion / "run.json").read_text())["config"]
  assert "model.fusion.width" not in config  # the command gives it, the row takes its part away
  assert config["model.temporal.width"] == 16

  told = finish(spawn(command(data_dir, tmp_path / "runs", "base", learning_rate=0.5), cache), status=1)
  assert "base/seed1, base/seed2: config learning_rate: 0.001 there, 0.5 now" in told


def test_all_problems_at_once_and_nothing_starts(data_dir, tmp_path, cache):
  wrong = command(data_dir, tmp_path / "runs", "no_fusoin,fusion_last_6,unfrozen", seeds="1,1,x", seed=3)
  told = finish(spawn(wrong, cache), status=1)
  for words in ("no_fusoin: there are no such rows; choose from base, no_prompts", "--seeds=1,1,x",
                "fusion_last_6 does not fit the config: model.fusion.layers='last 6', but there are 2 layers",
                "unfrozen does not fit the config: it changes nothing", "config.seed is set for each run"):  # fmt: skip
    assert words in told
  told = finish(spawn(command(tmp_path, tmp_path / "runs", "", batch_size=0), cache), status=1)
  assert told.count("batch_size=0") == 1  # the base's problem, not each row's
  assert "no data set" in told
  assert not (tmp_path / "runs").exists()


def test_the_choice_after_the_colon(tmp_path, cache):
  call = [
    sys.executable,
    "-m",
    "mma_dfer_jax.train",
    "--config=configs/demo.py:linear_prob",
    f"--workdir={tmp_path}",
  ]
  told = spawn(call, cache).communicate()[1]
  assert "linear_prob'" in told
  assert all(row in told for row in ROWS)


def test_undefined_scores_and_single_seeds(tmp_path):
  def run(seed: int, war: float, uar: float | None) -> dict:
    return {"seed": seed, "war": war, "uar": uar, "tunable_parameters": 7, "frozen_parameters": 5,
            "peak_memory_gib": 1.5 + seed, "clips_per_second": [8.0, 4.0, 1.0]}  # fmt: skip

  results = [RowResult("base", "nothing", [run(1, 60.0, 50.0), run(2, 70.0, 40.0)], 8),
             RowResult("bare", "much", [run(1, 30.0, None)], 8)]  # fmt: skip
  facts = {"left_out": {"unfrozen": "it changes nothing"}, "config": {"seed": 1, "batch_size": 8}}
  table = write_comparison(tmp_path, results, facts)
  assert "| `base` | nothing | 7 | 65.00 ± 7.07 % | 45.00 ± 7.07 % | 2 | 2.00 | 3.50 |" in table
  assert "| `bare` | much | 7 | 30.00 % | undefined | 1 | 2.00 | 2.50 |" in table
  text = (tmp_path / "ablations.md").read_text()
  assert "- `unfrozen`: it changes nothing" in text
  assert "`batch_size` = `8`" in text
  assert "`seed`" not in text.split("## The base")[1]
