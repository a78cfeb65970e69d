"""Files with random damage: whatever a library raises at one of them is its own error, and all others are answered."""

import json
import os
from pathlib import Path
import re
import subprocess
import sys

from conftest import ROOT
from formats import SOUNDS, VIDEOS, write_noise
from model_folders import model_folder
import numpy as np
import pytest

pytestmark = pytest.mark.slow


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
  """Some bytes changed, a part zeroed, cut off, left out or doubled, or two numbers of 32 bits exchanged."""
  out = bytearray(data)
  first, last = sorted(rng.integers(0, len(out), 2).tolist())
  last = min(last, first + len(out) // 8)
  # Headers are where a byte matters.
  places = rng.integers(0, rng.choice([min(600, len(out)), len(out)]), rng.integers(1, 12))
  match rng.integers(6):
    case 0 | 1:
      for at in places:
        out[at] = rng.integers(256)
    case 2:
      out[first:last] = bytes(last - first)
    case 3:
      del out[max(first, 1) :]
    case 4:
      del out[first:last]
    case 5:
      out[first:first] = out[first:last]
  return bytes(out)


@pytest.mark.parametrize(("command", "number_of_files"), [("predict", 500), ("prepare", 100)])
def test_every_other_file_is_answered(tmp_path, cache, command, number_of_files):
  rng = np.random.default_rng(14)
  wholes = [write_noise(tmp_path / "whole", *how) for how in (VIDEOS | SOUNDS).values() if how[1]]
  assert len(wholes) >= 15
  names = []
  for number in range(number_of_files):
    names.append(f"{number}.{'good' if number % 25 == 0 else 'bad'}")
    whole = wholes[0] if number % 25 == 0 else wholes[rng.integers(len(wholes))]
    (tmp_path / names[-1]).write_bytes(whole if number % 25 == 0 else damaged(whole, rng))
  good = {name for name in names if name.endswith(".good")}
  if command == "predict":
    flags = [f"--model={model_folder(tmp_path / 'model')}", "--faces=none", "--out=answers", *names]
  else:
    rows = [
      f"{name},{'ab'[number % 2]},{'train' if number % 3 else 'test'}" for number, name in enumerate(names)
    ]
    (tmp_path / "clips.csv").write_text("\n".join(["path,label,split", *rows]))
    flags = ["--manifest=clips.csv", "--data_dir=data", f"--allow_bad={number_of_files}", "--num_workers=2"]
  module = "mma_dfer_jax.predict" if command == "predict" else "mma_dfer_jax.data.prepare"
  variables = {"PYTHONPATH": str(ROOT), "JAX_COMPILATION_CACHE_DIR": str(cache)}
  done = subprocess.run([sys.executable, "-m", module, *flags], cwd=tmp_path, env=os.environ | variables,
                        capture_output=True, text=True, check=False, timeout=500)  # fmt: skip
  printed = done.stdout + done.stderr
  assert done.returncode in (0, 1), printed[-3000:]
  assert "Traceback" not in printed, printed[-3000:]
  if command == "predict":
    answered = {
      Path(json.loads(path.read_text())["clip"]).name for path in (tmp_path / "answers").glob("*.json")
    }
    refused = {name for name in names if re.search(rf"error: {re.escape(name)}: ", printed)}
    table = (tmp_path / "answers/answers.csv").read_text()
    assert all(name in table for name in answered)
    print(f"{len(answered)} answered, {len(refused)} refused")
    assert answered | refused == set(names)
    assert not answered & refused
    assert good <= answered
  else:
    counts = json.loads(next((tmp_path / "data").rglob("dataset_info.json")).read_text())["splits"]
    assert sum(int(count) for split in counts for count in split["shardLengths"]) >= len(good)
