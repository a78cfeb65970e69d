"""The demonstration clips: real files, always the same, and neither modality is enough for all classes."""

from fractions import Fraction
import itertools
from pathlib import Path
import shutil

import av
import numpy as np
import pytest

from mma_dfer_jax.data import demo
from mma_dfer_jax.errors import UserError


def decode(path: Path) -> tuple[np.ndarray, np.ndarray]:
  """The frames (T, H, W, 3) and the waveform (channels, S) in a file."""
  with av.open(str(path)) as container:
    frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
  with av.open(str(path)) as container:
    waveform = [frame.to_ndarray() for frame in container.decode(audio=0)]
  return np.stack(frames), np.concatenate(waveform, axis=1)


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
  return demo.generate(tmp_path_factory.mktemp("demo"), 1, 1, seed=3)


@pytest.mark.slow
def test_every_class_in_both_splits_as_h264_and_aac_of_equal_length(table):
  header, *rows = table.read_text().splitlines()
  assert header == "path,label,split"
  fields = [row.split(",") for row in rows]
  assert [(label, split) for _, label, split in fields] == [
    (label, split) for split in ("train", "test") for label in demo.CLASSES
  ]
  made = {path.relative_to(table.parent).as_posix() for path in table.parent.rglob("*.*")}
  assert made == {path for path, _, _ in fields} | {"clips.csv"}
  for path in table.parent.glob("train/*.mp4"):
    with av.open(str(path)) as container:
      video, audio = container.streams.video[0], container.streams.audio[0]
      assert (video.codec_context.name, audio.codec_context.name) == ("h264", "aac")
      assert (video.width, video.height, video.average_rate) == (96, 96, 20)
      assert (audio.rate, audio.channels) == (16_000, 1)
    frames, waveform = decode(path)
    assert 1.6 <= len(frames) / 20 <= 2.0
    assert waveform.shape[1] / 16_000 == pytest.approx(len(frames) / 20, abs=0.1)
    assert 0.05 < np.abs(waveform).max() < 1


@pytest.mark.slow
def test_same_seed_gives_the_same_clips_and_only_missing_ones_are_made(table, tmp_path):
  shutil.copytree(table.parent, tmp_path, dirs_exist_ok=True)
  missing = {tmp_path / "train" / "fear_s3_0000.mp4", tmp_path / "test" / "sad_s3_0000.mp4"}
  for path in missing:
    path.unlink()
  before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.mp4")}
  demo.generate(tmp_path, 1, 1, seed=3)
  after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.mp4")}
  assert before | {path: after[path] for path in missing} == after
  for path in missing:
    for ours, theirs in zip(decode(path), decode(table.parent / path.relative_to(tmp_path)), strict=True):
      np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(("part", "make"), [(0, demo.clip_picture), (1, demo.clip_voice)])
def test_classes_that_share_a_part_cannot_be_told_apart_by_it(part, make):
  """So that the best answer to each gesture or style is right for one class: 3 of 7."""
  length = 4 if make is demo.clip_picture else 0.5
  clips = {
    label: make(parts[part], np.random.default_rng(7), length) for label, parts in demo.CLASSES.items()
  }
  for one, other in itertools.combinations(demo.CLASSES, 2):
    shared = demo.CLASSES[one][part] == demo.CLASSES[other][part]
    assert np.array_equal(clips[one], clips[other]) == shared
  assert len({parts[part] for parts in demo.CLASSES.values()}) == 3
  assert len(set(demo.CLASSES.values())) == len(demo.CLASSES) == 7


@pytest.mark.parametrize("make", [demo.clip_picture, demo.clip_voice])
def test_every_gesture_and_style_can_be_seen_and_heard(make):
  """The middle of a clip differs more between kinds than the noise does."""
  kinds, length = (demo.GESTURES, 16) if make is demo.clip_picture else (demo.STYLES, 1.6)
  middle = []
  for kind in kinds:
    clip = make(kind, np.random.default_rng(5), length).astype(float)
    if make is demo.clip_voice:
      clip = np.abs(np.fft.rfft(clip.reshape(-1, 400)))
    middle.append(clip[len(clip) // 2 - 3 : len(clip) // 2 + 3].mean(axis=0))
  for one, other in itertools.combinations(middle, 2):
    assert np.abs(one - other).max() > 0.2 * max(one.max(), other.max())


@pytest.mark.parametrize(
  ("size", "fps", "rate", "channels"),
  [((48, 64), 25, 44_100, 2), ((51, 33), Fraction(30000, 1001), 8_000, 1)],
)
def test_write_clip_takes_any_size_and_rate(tmp_path, size, fps, rate, channels):
  path = tmp_path / "clip.mp4"
  frames = np.broadcast_to(np.arange(0, 250, 10, dtype=np.uint8)[:, None, None, None], (25, *size, 3))
  seconds = np.arange(int(25 / fps * rate)) / rate
  waveform = 0.5 * np.sin(2 * np.pi * np.outer(seconds, [440, 880][:channels]))
  demo.write_clip(path, frames, waveform, fps, rate)
  picture, sound = decode(path)
  assert picture.shape == frames.shape
  assert np.abs(picture.astype(int) - frames).max() < 8
  assert len(sound) == channels
  # In step with the picture: 1 ms of delay would be an error of more than 0.3.
  assert np.abs(sound[:, : len(waveform)] - waveform.T).mean() < 0.02
  with av.open(str(path)) as container:
    assert container.streams.video[0].average_rate == fps
  demo.write_clip(path, frames, None, fps, rate)
  with av.open(str(path)) as container:
    assert not container.streams.audio


def test_mistakes_on_the_command_line_are_explained(tmp_path):
  with pytest.raises(UserError, match=r"train=0.*\n.*test=-1.*\n.*seed=-2"):
    demo.generate(tmp_path, 0, -1, -2)
  (tmp_path / "file").touch()
  with pytest.raises(UserError, match="cannot be made"):
    demo.generate(tmp_path / "file", 1, 1, 0)
