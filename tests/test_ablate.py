"""Rows and seeds with one command: refused, trained where they are not, compared."""

from pathlib import Path

import commands
from conftest import ROOT
import pytest
import small_runs as small

pytestmark = pytest.mark.slow
SMALL = {"log_every_steps": 1}


def ablate(data_dir: Path, runs: Path, rows: str, seeds: str = "1", **overrides) -> list[str]:
  return small.command("ablate", f"--runs={runs}", f"--rows={rows}", f"--seeds={seeds}",
                 *small.config_flags(data_dir, **SMALL | overrides))  # fmt: skip


def test_runs_that_are_not_there_are_trained_and_all_compared(data_dir, tmp_path):
  call = ablate(data_dir, tmp_path / "runs", "base,no_fusion")
  base, fusion = tmp_path / "runs/base/seed1", tmp_path / "runs/no_fusion/seed1"
  small.train_here(base, data_dir, **SMALL)
  status, printed, err = commands.run("ablate", *call[3:], at=ROOT)
  assert status == 0, err
  assert f"base, seed 1 (1 of 2) is finished: {base}/report.md" in printed
  assert "no_fusion, seed 1 (2 of 2): no Fusion Bottlenecks; goes to" in printed
  summary = small.read_json(tmp_path / "runs/ablations.json")
  assert [row["row"] for row in summary["rows"]] == ["base", "no_fusion"]
  for row in summary["rows"]:
    report = small.read_json(tmp_path / f"runs/{row['row']}/seed1/report.json")
    assert row["war"]["mean"] == report["war"]
    assert row["tunable_parameters"] == report["tunable_parameters"]
    assert 0.1 < row["peak_memory_gib"] < 20
    assert 0 < row["seconds_per_step"] < 60
  assert "| `no_fusion` | no Fusion Bottlenecks |" in (tmp_path / "runs/ablations.md").read_text()
  assert (tmp_path / "runs/ablations.png").exists()
  config = small.read_json(fusion / "run.json")["config"]
  assert "model.fusion.width" not in config  # the command gives it, the row takes its part away
  assert config["model.temporal.width"] == 16

  other = ablate(data_dir, tmp_path / "runs", "base", learning_rate=0.5)
  status, _, printed = commands.run("ablate", *other[3:], at=ROOT)
  assert status == 1
  assert "base/seed1: config learning_rate: 0.001 there, 0.5 now" in printed


def test_all_problems_at_once_and_nothing_starts(data_dir, tmp_path):
  wrong = ablate(
    data_dir, tmp_path / "runs", "no_fusoin,fusion_last_6,frozen_encoders", seeds="1,1,x", seed=3
  )
  status, _, printed = commands.run("ablate", *wrong[3:], at=ROOT)
  assert status == 1
  for words in ("no_fusoin: there are no such rows; choose from base, no_prompts", "--seeds=1,1,x",
                "fusion_last_6 does not fit the config: model.fusion.layers='last 6', but the model has 2 layers",
                "frozen_encoders does not fit the config: it changes nothing", "config.seed is set for each run"):  # fmt: skip
    assert words in printed
  nothing = ablate(tmp_path, tmp_path / "runs", "", batch_size=0)
  status, _, printed = commands.run("ablate", *nothing[3:], at=ROOT)
  assert status == 1
  assert printed.count("batch_size=0") == 1  # the base's problem, not each row's
  assert "no data set" in printed
  assert not (tmp_path / "runs").exists()
