"""Sampling, decoding, resizing and augmentation against the original: every pixel the same."""

import json
from pathlib import Path
import random
import sys

import numpy as np
from PIL import Image
import pytest

from mma_dfer_jax.data import frames

GOLDEN = Path(__file__).parent / "golden"
sys.path.insert(0, str(GOLDEN))
from gen_preprocess_helpers import picture  # noqa: E402

INDICES = json.loads((GOLDEN / "frame_indices.json").read_text())
CASES = json.loads((GOLDEN / "images.json").read_text())
PIXELS = np.load(GOLDEN / "images.npz")


class PythonRandom(np.random.Generator):
  """Draws from Python's random, which the original used, so that its golden pictures can be drawn again."""

  def __init__(self, seed):
    super().__init__(np.random.PCG64(0))
    self.source = random.Random(seed)

  def uniform(self, low, high):
    return self.source.uniform(low, high)

  def random(self):
    return self.source.random()

  def integers(self, last, endpoint):
    assert endpoint
    return self.source.randint(0, last)


def test_test_indices_match_the_original():
  assert len(INDICES["test"]) > 20
  for num_frames, expected in INDICES["test"].items():
    assert frames.sample_frames(int(num_frames), train=False).tolist() == expected, num_frames


def test_train_indices_cover_the_segments_of_the_original():
  rng = np.random.default_rng(0)
  for num_frames in (*range(1, 34), 47, 48, 49, 100):
    drawn = np.stack([frames.sample_frames(num_frames, train=True, rng=rng) for _ in range(100)])
    length = num_frames // 16
    if length == 0:
      assert (drawn == frames.sample_frames(num_frames, train=False)).all()
      continue
    assert (drawn.min(axis=0) == np.arange(16) * length).all(), num_frames
    assert (drawn.max(axis=0) == np.arange(16) * length + length - 1).all(), num_frames
    if length > 1:  # each segment has its own draw
      assert len(np.unique(drawn[0] % length)) > 1, num_frames


def test_clips_without_frames_and_training_without_rng_are_refused():
  for train in (False, True):
    with pytest.raises(ValueError, match="without frames"):
      frames.sample_frames(0, train=train, rng=np.random.default_rng(0))
  with pytest.raises(ValueError, match="needs rng"):
    frames.sample_frames(20, train=True)


@pytest.mark.parametrize("name", ["jpeg420_q90", "jpeg444_q95", "jpeg_grey", "png_rgba"])
def test_golden_pictures_are_decoded_to_the_same_pixels(name):
  np.testing.assert_array_equal(
    frames.decode_frame(PIXELS[f"bytes_{name}"].tobytes()), PIXELS[f"decoded_{name}"]
  )


@pytest.mark.parametrize(
  ("width", "height", "size"), [(300, 260, 224), (300, 260, 160), (224, 224, 160), (97, 131, 224)]
)
def test_resize_matches_the_original(width, height, size):
  expected = PIXELS[f"resize_{width}x{height}_to_{size}"]
  np.testing.assert_array_equal(frames.resize(picture(width, height), size), expected)


@pytest.mark.parametrize("factor", [0.5, 0.77, 1.0, 1.25, 1.5])
def test_brightness_matches_the_original(factor):
  whole = frames.Augmentation((0, 0, 64, 48), factor, flip=False)
  bright = Image.fromarray(PIXELS[f"brightness_{factor}"])
  expected = np.asarray(bright.resize((50, 50), Image.Resampling.BILINEAR))
  np.testing.assert_array_equal(frames.augment(picture(64, 48), whole, 50), expected)


@pytest.mark.parametrize("case", CASES["random_sized_crop"], ids=lambda case: case["key"])
def test_crops_match_the_original(case):
  box = (case["x1"], case["y1"], case["x1"] + case["crop_w"], case["y1"] + case["crop_h"])
  augmentation = frames.Augmentation(box, 1.0, flip=False)
  np.testing.assert_array_equal(
    frames.augment(picture(*case["picture"]), augmentation, case["size"]), PIXELS[case["key"]]
  )


@pytest.mark.parametrize("seed", range(4))
def test_whole_training_transform_matches_the_original(seed):
  clip = [picture(97, 131, 21), picture(97, 131, 22)]
  augmentation = frames.draw_augmentation(131, 97, 64, PythonRandom(seed))
  result = np.stack([frames.augment(frame, augmentation, 64) for frame in clip])
  np.testing.assert_array_equal(result.transpose(0, 3, 1, 2), PIXELS[f"train_transform_seed{seed}"])


def test_first_box_matches_the_original():
  class WithoutBrightness(PythonRandom):
    """The golden box was drawn without brightness before it: its draw is answered without asking the source."""

    def uniform(self, low, high):
      return 1.0 if (low, high) == (0.5, 1.5) else super().uniform(low, high)

  box = frames.draw_augmentation(224, 224, 224, WithoutBrightness(0)).box
  assert list(box) == CASES["digests"]["rsc_stats_224"]["first_5_boxes_python_random_seed_0"][0]


def test_drawn_boxes_have_the_distribution_of_the_original():
  rng, stats = np.random.default_rng(0), CASES["digests"]["rsc_stats_224"]
  drawn = [frames.draw_augmentation(224, 224, 224, rng) for _ in range(4000)]
  boxes = np.array([augmentation.box for augmentation in drawn])
  width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
  assert boxes.min() >= 0
  assert boxes.max() == 224  # the last row and column can be reached
  assert abs(width.mean() - stats["mean_w"]) < 2
  assert abs(height.mean() - stats["mean_h"]) < 2
  assert abs((width * height).mean() / 224**2 - stats["mean_area_fraction"]) < 0.012
  assert 0.74 < (width / height).min() < 0.77 < 1.3 < (width / height).max() < 1.35
  assert abs(np.mean([augmentation.flip for augmentation in drawn]) - 0.5) < 0.03
  factors = [augmentation.brightness_factor for augmentation in drawn]
  assert 0.5 <= min(factors) < 0.51
  assert 1.49 < max(factors) <= 1.5


def test_settings_switch_single_augmentations_off():
  rng = np.random.default_rng(0)
  off = frames.Augment(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=0.0, brightness=0.0)
  for _ in range(20):
    drawn = frames.draw_augmentation(64, 64, 64, rng, off)
    assert drawn == frames.Augmentation((0, 0, 64, 64), 1.0, flip=False)
  assert frames.draw_augmentation(64, 64, 64, rng, frames.Augment(flip=1.0)).flip


@pytest.mark.parametrize(("number", "how", "expected"), [
  (20, {}, [6, 8, 10, 12]), (20, {"view": 0, "views": 2}, [0, 2, 4, 6]), (20, {"view": 1, "views": 2}, [12, 14, 16, 18]),
  (20, {"view": 1, "views": 3}, [6, 8, 10, 12]), (5, {}, [0, 2, 4, 4]), (1, {"view": 1, "views": 2}, [0, 0, 0, 0]),
  (7, {"rng": np.random.default_rng(0)}, [0, 3, 6, 6]), (1, {"rng": np.random.default_rng(0)}, [0, 0, 0, 0]),
])  # fmt: skip
def test_every_second_frame_of_a_part(number, how, expected):
  assert frames.sample_with_stride(number, 2, num_segments=4, **how).tolist() == expected


def test_training_takes_any_part():
  drawn = np.array(
    [frames.sample_with_stride(12, 2, rng=np.random.default_rng(i), num_segments=4) for i in range(60)]
  )
  assert set(drawn[:, 0].tolist()) == {0, 1, 2, 3}
  np.testing.assert_array_equal(
    drawn - drawn[:, :1], np.tile([0, 2, 5, 7], (60, 1))
  )  # eighths of eight, rounded down
