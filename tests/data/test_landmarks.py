"""Boxes and points of faces: found in frames, stored, and where they are after crop and flip."""

from archives import prepare
from clip_files import make, manifest
from commands import load
import numpy as np
import pytest
from test_pipeline import RATE

from mma_dfer_jax.data import decoding
from mma_dfer_jax.data.data_set import open_data_set
from mma_dfer_jax.data.faces import Box, Detector
from mma_dfer_jax.data.frames import Augmentation, move_points
from mma_dfer_jax.data.landmarks import MIRRORED, STORED, Watcher, as_shown
from mma_dfer_jax.data.pipeline import Augment, EvalOrder, TrainOrder, load_batches, make_example
from mma_dfer_jax.errors import UserError
from mma_dfer_jax.inputs import Inputs

PREPARE = load("data.prepare")
COLOURS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [255, 0, 255]], np.uint8)


def marked(rng, height, width):
  """A picture with five marks, and the face that they mark, as shares; two frames of it."""
  apart = np.array([[0.25, 0.25], [0.75, 0.25], [0.5, 0.5], [0.25, 0.8], [0.75, 0.8]])
  points = apart + rng.uniform(-0.1, 0.1, (5, 2))
  pixels = np.zeros((height, width, 3), np.uint8)
  y, x = np.mgrid[:height, :width] + 0.5
  for (across, down), colour in zip(points, COLOURS, strict=True):
    pixels[(x - across * width) ** 2 + (y - down * height) ** 2 < (0.02 * min(height, width)) ** 2] = colour
  faces = np.zeros(2, STORED)
  faces["values"], faces["face"] = np.concatenate([[0.1, 0.2, 0.7, 0.6], points.ravel()]), 1
  return {"clip_id": b"marked", "frames": [pixels] * 2, "waveform": np.zeros(RATE, np.int16), "sample_rate": RATE,
          "has_audio": True, "label": 0, "faces": faces.tobytes()}  # fmt: skip


def centre_of(pixels, colour):
  """Where the mark is, in pixels; None if it is not all there."""
  near = np.abs(pixels.astype(int) - colour).sum(axis=-1) < 160
  y, x = np.nonzero(near)
  inside = len(x) and min(x.min(), y.min()) > 0 and max(x.max(), y.max()) < len(pixels) - 1
  return np.array([x.mean() + 0.5, y.mean() + 0.5]) if inside else None


@pytest.mark.parametrize(("size", "height", "width"), [(224, 224, 224), (160, 360, 480), (200, 400, 150)])
def test_points_follow_the_pixels_through_crop_resize_and_flip(size, height, width):
  inputs, found, flipped = Inputs(image_size=size, num_frames=2, audio_shape=(32, 16), points=5), 0, set()
  for seed in range(12):
    rng = np.random.default_rng(seed)
    record = marked(np.random.default_rng([seed, size]), height, width)
    ranges = Augment(brightness=0.0, crop_scale=(0.3, 1.0))
    example = make_example(record, inputs, rng=rng, ranges=ranges)
    assert (example["landmarks"].shape, example["landmarks"].dtype) == ((2, 5, 3), np.float32)
    order = range(5)
    for which in (order, MIRRORED):  # which colour each point is: those of a mirrored face change sides
      ends = [
        (centre_of(example["video"][0], COLOURS[c]), example["landmarks"][0, i]) for i, c in enumerate(which)
      ]
      ends = [(centre, point) for centre, point in ends if centre is not None and point[2]]
      if ends and all(np.abs(centre - size * point[:2]).max() < 1 for centre, point in ends):
        found, flipped = found + len(ends), flipped | {which is MIRRORED}
        break
    else:
      seen = [c for c in range(5) if centre_of(example["video"][0], COLOURS[c]) is not None]
      assert not (seen and example["face_box"][0, 4]), f"seed {seed}: the points are elsewhere"
  assert found > 10
  assert flipped == {True, False}


def test_boxes_and_points_at_the_edges():
  """A box is cut to the frame; with less than half of it left, there is no face, and no point of it is seen."""
  stored = np.zeros(4, STORED)
  stored["face"] = 1, 1, 1, 0
  stored["values"][:, :4] = [
    [-0.2, 0.5, 0.5, 0.25],
    [-0.3, 0.5, 0.5, 0.25],
    [0.25, 0.5, 0.5, 0.25],
    [0.2, 0.2, 0.5, 0.5],
  ]
  stored["values"][:, 4:] = 0.5
  stored["values"][2, 4:6] = 1.25, 0.5
  shown = as_shown(stored, [(8, 8)] * 4, None)
  np.testing.assert_allclose(shown["face_box"][0], [0, 0.5, 0.3, 0.25, 1], atol=1e-3)
  np.testing.assert_allclose(shown["face_box"][2], [0.25, 0.5, 0.5, 0.25, 1])
  assert not shown["face_box"][[1, 3]].any()
  assert shown["landmarks"][..., 2].tolist() == [[1] * 5, [0] * 5, [0, 1, 1, 1, 1], [0] * 5]
  assert not shown["landmarks"][2, 0].any()


def test_points_of_frames_that_are_resized_before_they_are_cut():
  """Frames too long for any crop: 100 x 900 pixels become 200 x 1800, of which 200 x 200 are cut."""
  cut = Augmentation((10, 300, 210, 500), 1.0, True, 200)
  np.testing.assert_allclose(move_points(np.array([[0.5, 0.2]]), (900, 100), cut), [[1 - 0.45, 0.3]])


class FakeDetector(Detector):
  """Finds a face that moves one pixel a frame, but not in some frames."""

  def __init__(self, without):
    self.without, self.seen = without, 0

  def detect(self, pixels):
    at, self.seen = self.seen, self.seen + 1
    points = tuple(float(at + i) for i in range(10))
    return [] if at in self.without else [Box(float(at), 10.0, at + 20.0, 40.0, 0.9, points=points)]


def test_gaps_of_up_to_four_frames_are_interpolated():
  watcher = Watcher(FakeDetector({0, 2, 3, 4, 8, 9, 10, 11, 15}))
  for number in range(16):
    watcher.look(number, np.zeros((100, 50, 3), np.uint8))
  found = watcher.found()
  # From 1 to 5 four frames, from 7 to 12 five; none before the first and after the last.
  assert found["face"].tolist() == [0, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 0]
  np.testing.assert_allclose(found["values"][3][:4], [3 / 50, 0.1, 0.4, 0.3], atol=1e-3)
  np.testing.assert_allclose(found["values"][3][4:6], [3 / 50, 4 / 100], atol=1e-3)
  assert STORED.itemsize == 29


def test_prepare_keeps_them_and_batches_have_them_only_if_wanted(tmp_path, monkeypatch):
  monkeypatch.setattr(decoding, "detector", lambda path: FakeDetector({3}))
  monkeypatch.setattr(PREPARE, "face_model", lambda path: __file__)
  for name in ("a", "b"):
    make(tmp_path / f"{name}.mp4", 90)
  rows = ["a.mp4,x,train", "b.mp4,y,test"]
  flags = ["--manifest", manifest(tmp_path, rows), "--data_dir", tmp_path / "data", "--num_workers=0"]
  assert "landmarks: yunet, box and five points" in prepare(*flags, "--landmarks=yunet")
  data_set = open_data_set(tmp_path / "data", "clips")
  (record,) = data_set.records("train")
  assert np.frombuffer(record["faces"], STORED)["face"].tolist() == [1] * len(record["frames"])
  inputs = Inputs(image_size=16, num_frames=2, audio_shape=(32, 16))
  for given, faces, names in ((inputs, False, set()), (inputs, True, {"landmarks", "face_box"})):
    for order in (TrainOrder([record], 0, 1, 1), EvalOrder([record], 0, 2, 1)):
      with load_batches(order, given, num_workers=0, prefetch=1, faces=faces) as batches:
        (batch,) = batches
      assert batch.keys() - {"video", "spectrogram", "label", "clip_id", "has_audio", "mask"} == names
      if faces:
        assert batch["landmarks"].shape[1:] == (2, 5, 3)
        assert batch["landmarks"][batch["mask"]][..., 2].any()
        assert not batch["landmarks"][~batch["mask"]].any()
  del record["faces"]
  with pytest.raises(UserError, match="--landmarks=yunet"):
    make_example(record, inputs, faces=True)
