"""Clips that are long: held once in memory, told when they are too long, and thinned out on request."""

import os
import subprocess
import sys

from archives import prepare, write_pictures, write_wav
from clip_files import contents, make, manifest, records_of
from conftest import ROOT
import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core.example_serializer import ExampleSerializer, tf_example_pb2

from mma_dfer_jax.data import media, records
from mma_dfer_jax.data.demo import write_clip
from mma_dfer_jax.data.frames import decode_frame


@pytest.mark.parametrize("waveform", [np.arange(-32768, 32768, dtype=np.int16), np.zeros(0, np.int16)])
@pytest.mark.parametrize("frames", [[b"a" * 300, b"", b"x"], [b"k" * 70_000]])
def test_records_are_those_of_tfds(waveform, frames):
  features = tfds.features.FeaturesDict({
    "frames": tfds.features.Sequence(tfds.features.Text()), "label": np.int64, "name": tfds.features.Text(),
    "waveform": tfds.features.Tensor(shape=(None,), dtype=np.int16), "share": np.float32,
  })  # fmt: skip
  serializer = ExampleSerializer(features.get_serialized_info())
  record = features.encode_example(
    {"frames": frames, "label": -1, "name": "é", "waveform": waveform, "share": np.nan}
  )
  expected = serializer.serialize_example(record)
  made = records._serialized(serializer, {**record, "frames": list(frames)})
  assert len(made) == len(expected)
  one, other = (
    tf_example_pb2.Example.FromString(data).SerializeToString(deterministic=True) for data in (made, expected)
  )
  assert one == other


def test_evenly_spread_frames(tmp_path):
  make(tmp_path / "long.mp4", 20, frames=40, seconds=4)
  make(tmp_path / "short.mp4", 20)
  path = manifest(tmp_path, [("long", "x", "train"), ("short", "x", "test")])
  out = prepare("--manifest", path, "--data_dir", tmp_path / "some", "--max_frames=8")
  assert "frame_count: at most 8, evenly spread over the clip" in out
  assert "frame_count" not in prepare("--manifest", path, "--data_dir", tmp_path / "all")
  some, every = records_of(tmp_path / "some"), records_of(tmp_path / "all")
  assert some["long.mp4"]["frames"] == every["long.mp4"]["frames"][2::5]
  assert some["short.mp4"]["frames"] == every["short.mp4"]["frames"]
  np.testing.assert_equal(some["long.mp4"]["waveform"], every["long.mp4"]["waveform"])
  greys = [decode_frame(jpeg).mean() for jpeg in some["long.mp4"]["frames"]]
  np.testing.assert_allclose(greys, 20 + 4 * np.arange(2, 40, 5), atol=2)


def test_evenly_spread_pictures(tmp_path):
  write_pictures(tmp_path, 12)
  write_wav(tmp_path / "a.wav")
  pictures = [tmp_path / f"{i}.jpg" for i in range(12)]
  frames, _ = records.read_clip(None, tmp_path / "a.wav", pictures=pictures, max_frames=3)
  assert list(frames) == [pictures[i].read_bytes() for i in (2, 6, 10)]


def test_what_is_too_long(tmp_path, monkeypatch):
  for name in ("a", "b"):
    make(tmp_path / f"{name}.mp4", 20, frames=30 if name == "a" else 3, seconds=3)
  path = manifest(tmp_path, [("a", "x", "train"), ("b", "x", "train")])
  monkeypatch.setattr(records, "LARGEST_CLIP", 5000)
  out = prepare("--manifest", path, "--data_dir", tmp_path / "data", status=1)
  assert "line 2: a.mp4: " in out
  assert "is too long: its first " in out
  assert "cut it into shorter clips, or take fewer frames of it with --max_frames=N" in out
  assert "b.mp4:" not in out
  prepare("--manifest", path, "--data_dir", tmp_path / "data", "--max_frames=3")
  assert contents(tmp_path / "data").keys() == {"a.mp4", "b.mp4"}
  monkeypatch.setattr(media, "LARGEST_SOUND", 50_000)
  out = prepare("--manifest", path, "--data_dir", tmp_path / "other", "--max_frames=3", status=1)
  assert "is too long: after 2 s its sound does not end" in out


@pytest.mark.slow
def test_a_clip_is_held_in_memory_three_times_at_most(tmp_path):
  """Twice by Python, and once by what writes the file; so ten minutes of 320x240 fit into 3,000,000 kB."""
  noise = np.random.default_rng(0).integers(0, 255, (10, 240, 320, 3)).astype(np.uint8)
  write_clip(tmp_path / "long.mp4", np.tile(noise, (60, 1, 1, 1)), np.zeros(24 * 48_000), 25, 48_000)
  write_clip(tmp_path / "short.mp4", noise[:2], np.zeros(48_000), 25, 48_000)
  code = "import runpy; runpy.run_module('mma_dfer_jax.data.prepare', run_name='__main__', alter_sys=True)"
  peak = {}
  for name in ("long", "short"):
    path, data_dir = manifest(tmp_path, [f"{name}.mp4,x,train"], f"{name}.csv"), tmp_path / name
    flags = ["--num_workers=0", f"--manifest={path}", f"--data_dir={data_dir}"]
    done = subprocess.Popen([sys.executable, "-c", code, *flags], cwd=ROOT, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(done.pid, 0)
    assert status == 0
    peak[name] = used.ru_maxrss * 1024
  size = sum(map(len, records_of(tmp_path / "long")["long.mp4"]["frames"]))
  assert size > 30e6
  assert peak["long"] - peak["short"] < 3.3 * size
