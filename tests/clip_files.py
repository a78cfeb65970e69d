"""Small video files, good and bad, a manifest of them, and the data set that `prepare` makes of it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from archives import refused
import av
from films import write_film
import numpy as np

from mma_dfer_jax.data import media
from mma_dfer_jax.data.data_set import open_data_set
from mma_dfer_jax.data.demo import write_clip
from mma_dfer_jax.data.records import read_clip

FPS, RATE = 10, 16_000


def make(path, grey, frames=6, seconds=0.6, size=(32, 48), rate=RATE):
  """A clip of one grey that gets 4 lighter with every frame, and a tone on the left only; None: no sound."""
  path.parent.mkdir(parents=True, exist_ok=True)
  pictures = np.stack([np.full((*size, 3), grey + 4 * i, np.uint8) for i in range(frames)])
  sound = None
  if seconds is not None:
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)
    sound = np.stack([tone, 0 * tone], axis=1)
  write_clip(path, pictures, sound, FPS, rate)
  return path


def write_clips(folder):
  """a.mp4 … f.mp4 of grey 20, 40 …, and every kind of bad file."""
  for i, name in enumerate("abcdef"):
    make(folder / f"{name}.mp4", 20 * (i + 1))
  make(folder / "big.mp4", 30, frames=40, seconds=4, size=(240, 320))
  make(folder / "rate.mp4", 30, rate=44_100)
  for name, seconds in {"silent": None, "short": 0.02, "just": 0.025}.items():
    make(folder / f"{name}.mp4", 30, seconds=seconds)
  (folder / "text.mp4").write_text("this is no video " * 100)
  (folder / "empty.mp4").touch()
  (folder / "link.mp4").symlink_to(folder / "a.mp4")
  rng = np.random.default_rng(0)
  noise, hiss = rng.integers(0, 255, (20, 64, 64, 3)).astype(np.uint8), rng.normal(0, 0.1, 2 * RATE)
  write_clip(folder / "whole.mp4", noise, hiss, FPS, RATE)
  data = (folder / "whole.mp4").read_bytes()
  (folder / "cut.mp4").write_bytes(data[: len(data) // 2])
  write_film(folder / "sound_only.mp4", [], np.zeros(RATE, np.int16), sound_codec="aac")
  with av.open(str(folder / "no_frames.avi"), "w") as container:
    stream = container.add_stream("mpeg4", rate=25)
    stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
    sound = container.add_stream("pcm_s16le", rate=RATE, layout="mono")
    frame = av.AudioFrame.from_ndarray(np.zeros((1, RATE), np.int16), "s16", "mono")
    frame.sample_rate, frame.pts = RATE, 0
    container.mux([*sound.encode(frame), *sound.encode()])
  return folder


def manifest(folder, rows, name="m.csv", header="path,label,split"):
  """Writes a csv: rows as lines, or as (file, …), which becomes "file.mp4,…"."""
  lines = [row if isinstance(row, str) else f"{row[0]}.mp4,{','.join(map(str, row[1:]))}" for row in rows]
  (folder / name).write_text("\n".join([header, *lines]) + "\n")
  return folder / name


def records_of(data_dir):
  data_set = open_data_set(data_dir, "clips", labelled=False)
  return {r["clip_id"].decode(): r for split in data_set.splits for r in data_set.records(split)}


def contents(data_dir):
  """clip id -> (split, label) of all records."""
  data_set = open_data_set(data_dir, "clips")
  found = [(r["clip_id"].decode(), (split, data_set.classes[r["label"]]))
           for split in data_set.splits for r in data_set.records(split)]  # fmt: skip
  assert len(found) == len(dict(found)) == sum(data_set.splits.values())
  return dict(found)


def nothing_stands(data_dir):
  """No reader finds a data set."""
  with refused("there is no data set"):
    open_data_set(data_dir, "clips")
  return not list(Path(data_dir).glob("clips/*/dataset_info.json"))


def assert_same(one, other):
  assert list(one) == list(other)  # in the same order
  for clip_id in one:
    np.testing.assert_equal(one[clip_id], other[clip_id])


def read_record(video: Path | None, sound: Path | None, **how: Any) -> dict[str, Any]:
  """A clip as `read_clip` decodes it, with all of its frames: the record that training would see."""
  frames, others = read_clip(video, sound, **how)
  return {"frames": list(frames), **others}


def iterate_frames(path: str | Path) -> Iterator[np.ndarray]:
  """The pixels of a video's pictures."""
  for picture in media.iterate_pictures(path):
    yield picture.pixels()
