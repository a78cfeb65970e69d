"""The benchmark of loading: it measures what training does, its numbers add up, and the command writes them down."""

import json
import os
import subprocess
import sys

from conftest import ROOT
import numpy as np
import pytest

from mma_dfer_jax.data import benchmark
from mma_dfer_jax.data.frames import decode_frame
from mma_dfer_jax.inputs import Inputs

SPEC = Inputs(image_size=32, audio_shape=(64, 32))


@pytest.fixture(scope="module")
def data_set(tmp_path_factory):
  folder = tmp_path_factory.mktemp("made")
  return benchmark.make_data_set(
    folder, clips=3, frames=17, size=64, jpeg_kb=2.5, seconds=0.5, sample_rate=16_000
  )


def adds_up(report):
  milliseconds = report["milliseconds"]
  assert list(milliseconds) == ["read", "decode", "transform", "fbank"]
  for measured in [*milliseconds.values(), report["whole"], *report["clips_per_second"].values()]:
    assert 0 < measured["lower"] <= measured["median"] <= measured["upper"]
  assert report["sum_of_medians"] == pytest.approx(sum(stage["median"] for stage in milliseconds.values()))
  # The same work in one go; a busy machine may disturb one of them.
  assert 1 / 4 < report["whole"]["median"] / report["sum_of_medians"] < 4


def test_made_clips_are_as_wanted(data_set):
  assert data_set.splits == {"train": 3}
  for record in data_set.records("train"):
    assert len(record["frames"]) == 17
    assert len(set(record["frames"])) > 8  # they move
    assert decode_frame(record["frames"][0]).shape == (64, 64, 3)
    assert 2250 < np.mean([len(jpeg) for jpeg in record["frames"]]) < 2750
    assert (len(record["waveform"]), record["sample_rate"], record["has_audio"]) == (8000, 16_000, True)
    assert np.abs(record["waveform"]).max() > 3000


@pytest.mark.parametrize(("clips", "batch_size"), [(3, 2), (1, 8)])
def test_numbers_add_up(data_set, clips, batch_size):
  records = data_set.records(f"train[:{clips}]")
  report = benchmark.measure(records, num_workers=0, batch_size=batch_size, repeats=2, inputs=SPEC)
  adds_up(report)
  text = benchmark.table(report)
  for word in ("read", "decode", "transform", "fbank", "sum", "training transform", "36.7", "64x64"):
    assert word in text


def test_clips_without_sound_are_measured(data_set):
  silent = [dict(record) | {"has_audio": False} for record in data_set.records("train")]
  stages, whole = benchmark.time_stages(silent, SPEC, repeats=1)
  assert stages["fbank"].median == 0
  assert whole.median > 0


def test_the_command_measures_a_data_set_and_writes_json(data_set, tmp_path):
  out = tmp_path / "speed.json"
  command = [
    sys.executable, "-m", "mma_dfer_jax.data.benchmark", f"--data_dir={data_set.path.parent.parent}",
    "--clips=2", "--num_workers=0", "--repeats=1", f"--out={out}",
  ]  # fmt: skip
  done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ, check=False)
  assert done.returncode == 0, done.stderr
  report = json.loads(out.read_text())
  adds_up(report)
  assert report["clips"] | {"jpeg_kb": 0} == {
    "number": 2, "frames": 17, "frame_size": [64, 64], "jpeg_kb": 0, "samples": 8000, "sample_rate": 16_000,
  }  # fmt: skip
  assert "evaluation transform" in done.stdout


def test_a_data_set_that_is_not_there_is_an_error(tmp_path):
  command = [sys.executable, "-m", "mma_dfer_jax.data.benchmark", f"--data_dir={tmp_path}"]
  done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ, check=False)
  assert done.returncode == 1
  assert "there is no data set 'clips'" in done.stderr
  assert "Traceback" not in done.stderr
