"""RandAugment and random erasing: what is drawn once for a clip, and what each operation does."""

import numpy as np
from PIL import Image, ImageOps
import pytest

from mma_dfer_jax.data.augment import OPERATIONS, Effects, draw_effects
from mma_dfer_jax.data.frames import Augment
from mma_dfer_jax.data.pipeline import make_example
from mma_dfer_jax.inputs import Inputs

FRAME = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)


def done(*operations: tuple[str, float]) -> np.ndarray:
  frame = FRAME.copy()
  Effects(operations, None, None)(frame)
  return frame


def test_off_draws_and_changes_nothing():
  rng = np.random.default_rng(1)
  effects = draw_effects(24, rng, Augment())
  assert rng.random() == np.random.default_rng(1).random()
  frame = FRAME.copy()
  effects(frame)
  np.testing.assert_array_equal(frame, FRAME)


def test_operations_do_what_their_names_say():
  np.testing.assert_array_equal(done(("invert", 0.0)), 255 - FRAME)
  np.testing.assert_array_equal(done(("posterize", 2.8)), FRAME & 0b11000000)
  np.testing.assert_array_equal(done(("solarize", 179.2)), np.where(FRAME < 256 - 179, FRAME, 255 - FRAME))
  np.testing.assert_array_equal(
    done(("brighten_dark", 77.0)), np.where(FRAME < 128, FRAME + np.minimum(77, 255 - FRAME), FRAME)
  )
  np.testing.assert_allclose(done(("brightness", -0.5)), FRAME * 0.5, atol=1)
  moved = done(("translate_x", 0.25))
  np.testing.assert_array_equal(moved[:, :18], FRAME[:, 6:])
  assert (moved[:, 18:] == 128).all()
  np.testing.assert_array_equal(done(("translate_y", -0.25))[6:], FRAME[:18])
  expected = 255 - np.asarray(ImageOps.equalize(Image.fromarray(FRAME)))
  np.testing.assert_array_equal(done(("equalize", 0.0), ("invert", 0.0)), expected)  # one after the other


def test_magnitudes_are_drawn_around_the_one_asked_for():
  drawn = [
    one
    for seed in range(300)
    for one in draw_effects(24, np.random.default_rng(seed), Augment(rand_augment=4)).operations
  ]
  assert 500 < len(drawn) < 700, "half of 1200"
  assert {name for name, _ in drawn} == set(OPERATIONS)
  for name, (most, signed, _) in OPERATIONS.items():
    amounts = np.array([amount for other, amount in drawn if other == name])
    if most:
      np.testing.assert_allclose(np.abs(amounts).mean(), 0.7 * most, rtol=0.06)
      assert (amounts.min() < 0) == signed


def test_a_box_of_noise_is_drawn_as_often_as_asked_for():
  boxes = [draw_effects(100, np.random.default_rng(seed), Augment(erase=0.25)).erased for seed in range(400)]
  boxes = [box for box in boxes if box]
  assert 70 < len(boxes) < 130
  areas = [(rows.stop - rows.start) * (columns.stop - columns.start) / 1e4 for rows, columns in boxes]
  assert 0.015 < min(areas) < 0.06
  assert 0.25 < max(areas) < 0.34


@pytest.mark.parametrize("ranges", [Augment(rand_augment=4, erase=1.0)])
def test_all_frames_of_a_clip_get_the_same_and_a_position_always_gives_the_same(ranges):
  record = {"frames": [FRAME] * 20, "has_audio": False, "label": 1, "clip_id": b"one"}
  inputs = Inputs(image_size=24, num_frames=4, audio_shape=(16, 16))

  def video(seed: int) -> np.ndarray:
    return make_example(record, inputs, rng=np.random.default_rng([5, seed]), ranges=ranges)["video"]

  for seed in range(4):
    assert (video(seed) == video(seed)[0]).all()
  assert (video(0) != video(1)).any()
