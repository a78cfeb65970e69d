"""The benchmark: its count of operations, real measurements of the model and of loading, and what it refuses."""

import contextlib
import json
import re
from types import SimpleNamespace
from unittest import mock

from commands import load, run
from conftest import ONE_DEVICE
import pytest

from mma_dfer_jax.data import speed
from mma_dfer_jax.data.data_set import open_data_set
from mma_dfer_jax.errors import UserError
from mma_dfer_jax.inputs import Inputs
from mma_dfer_jax.model import paper, read_model

benchmark = load("benchmark")


@pytest.mark.parametrize(("size", "flops"), [(224, 643.7e9), (160, 356.2e9)])
def test_operations_are_those_that_the_original_counts(size, flops):
  assert benchmark.step_flops(paper(image_size=size)) == pytest.approx(flops, abs=0.05e9)


@pytest.mark.parametrize(("after", "keep", "flops"), [(2, 4, 274.1e9), (4, 8, 446.6e9), (8, 12, 594.4e9)])
def test_frames_that_are_not_kept_are_not_counted(after, keep, flops):
  mask = {"name": "soft", "after": after, "keep": keep}
  cfg = read_model(paper().to_fields() | {"frame_mask": mask})
  assert benchmark.step_flops(cfg) == pytest.approx(flops, abs=0.05e9)


@pytest.mark.slow
def test_a_measurement(tmp_path, monkeypatch):
  monkeypatch.setenv("XLA_FLAGS", ONE_DEVICE)  # the process that measures has one device
  status, out, err = run("benchmark", "--steps=eval", "--image_size=32", "--depth=1", "--repeats=2", "--peak_tflops=1",
                         f"--out={tmp_path / 'b.json'}")  # fmt: skip
  assert status == 0, err
  (row,) = json.loads((tmp_path / "b.json").read_text())["variants"]
  assert row["agrees"]
  assert len(row["seconds"]) == 2
  assert row["compile_seconds"]["cold"] > row["compile_seconds"]["cached"] > 0
  flops = benchmark.step_flops(benchmark.paper_of_depth(32, 1))
  assert row["tflops"] == pytest.approx(flops / row["median_seconds"] / 1e12)
  assert row["share_of_peak"] == pytest.approx(row["tflops"])
  assert 0.3 < row["peak_memory_gib"] < 8
  assert out.count("eval") == 1


def test_other_results_and_failures_are_reported():
  one = {"loss": 2.0, "seconds": [1.0], "trace_seconds": 1.0, "compile_seconds": {"cold": 1.0, "cached": 1.0},
         "peak_memory_gib": 1.0}  # fmt: skip

  def rows_of(*measured):
    rows = []
    for precision, remat, result in measured:
      sizes = {"image_size": 32, "batch_size": 1, "micro_batch": 0, "depth": 1}
      variant = {"step": "train", "mesh": "1x1", **sizes}
      benchmark.add_row(rows, variant | {"precision": precision, "remat": remat} | result, None)
    return rows

  rows = rows_of(("float32", "none", one), ("float32", "names", {**one, "loss": 2.1}),
                 ("float32", "layers", {"failed": "no memory"}))  # fmt: skip
  assert [row.get("agrees") for row in rows] == [True, False, None]
  head, _, exact, other, failed = benchmark.table(rows).split("\n")
  assert len(head) == len(exact) == len(other)
  assert (exact.split()[-2], other.split()[-2]) == ("ok", "DIFFERS")
  assert failed.endswith("layers 1x1 failed: no memory")
  rows = rows_of(
    ("bfloat16", "none", one), ("float32", "none", {**one, "loss": 2.05})
  )  # a coarse one comes first
  assert [row["agrees"] for row in rows] == [True, True]


@pytest.mark.parametrize("wrong", [
  ["--steps=fly", "--remat=all", "--batch_size=0", "--micro_batch=x", "--mesh=2", "--depth=5", "--image_size=40",
   "--out=no/where", "--clips=3"],
  ["--loading", "--steps=eval", "--depth=1", "--batch_size=1,2"],
])  # fmt: skip
def test_all_that_is_wrong_is_said_at_once(wrong):
  status, out, err = run("benchmark", *wrong)
  assert (status, out) == (1, "")
  assert err.startswith("error: the command line has problems:\n")
  assert [flag for flag in wrong if flag.split("=")[0] not in err] == []


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
  """The folder in which --loading without a data set makes one, kept; and what it measured."""
  folder = tmp_path_factory.mktemp("made")
  kept = SimpleNamespace(TemporaryDirectory=lambda: contextlib.nullcontext(str(folder)))
  flags = ["--loading", "--clips=2", "--num_workers=0", "--repeats=1", f"--out={folder / 'speed.json'}"]
  with mock.patch.object(benchmark, "tempfile", kept):
    status, printed, err = run("benchmark", *flags)
  assert status == 0, err
  return folder, printed


def adds_up(report):
  milliseconds, speeds = report["milliseconds"], report["clips_per_second"]
  assert list(milliseconds) == ["read", "decode", "transform", "fbank", "whole"]
  assert list(speeds) == ["training", "evaluation"]
  for measured in [*milliseconds.values(), *speeds.values()]:
    assert 0 <= measured["lower"] <= measured["median"] <= measured["upper"]
  whole = milliseconds["whole"]["median"]
  stages = sum(stage["median"] for stage in milliseconds.values()) - whole
  assert whole / 4 < stages < 1.2 * whole  # medians do not add up exactly


@pytest.mark.slow
def test_loading_of_generated_clips(generated):
  folder, printed = generated
  report = json.loads((folder / "speed.json").read_text())
  adds_up(report)
  clips = report["clips"]
  assert (clips["number"], clips["frame_size"], clips["sample_rate"]) == (2, [96, 96], 16_000)
  assert report["batch_size"] == 8
  for word in (*report["milliseconds"], "training transform", "96x96"):
    assert word in printed


@pytest.mark.slow
@pytest.mark.parametrize(("clips", "batch_size"), [(3, 2), (1, 8)])
def test_loading_of_a_data_set(generated, clips, batch_size):
  records = benchmark.records_of(f"{generated[0]}/data", "clips", clips)
  sizes = Inputs(image_size=32, audio_shape=(64, 32))
  adds_up(speed.measure(records, sizes, num_workers=0, batch_size=batch_size, repeats=2))
  silent = [dict(record) | {"has_audio": False} for record in records]
  assert speed.time_stages(silent, sizes, repeats=1)["fbank"]["median"] == 0


def test_a_data_set_that_is_not_there_is_an_error(tmp_path):
  """With what is there instead, if anything, or how to write it: by a name that `prepare` takes."""
  for name, words in (
    ("clips", "prepare --dataset=clips"),
    ("mine", "prepare --dataset=clips"),
    ("mafw", "prepare --dataset=mafw"),
  ):
    status, _, err = run("benchmark", f"--data_dir={tmp_path}", f"--name={name}", "--loading")
    assert (status, f"there is no data set '{name}' in" in err, words in err) == (1, True, True), err
  (tmp_path / "dfew/1.0.0").mkdir(parents=True)
  (tmp_path / "dfew/1.0.0/dataset_info.json").touch()
  for data_dir, words in (
    (tmp_path, "there is dfew: add --name=dfew (train: --config.data.name=dfew;"),
    (tmp_path / "dfew", f"which is part of one: give the folder {tmp_path} and the name dfew"),
  ):
    with pytest.raises(UserError, match=re.escape(words)):
      open_data_set(data_dir, "clips")
