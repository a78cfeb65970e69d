"""How many clips a second are loaded: stage by stage on one core, and by worker processes as in training.

  python -m mma_dfer_jax.data.benchmark [--clips=64 --num_workers=2 --out=FILE.json]
  python -m mma_dfer_jax.data.benchmark --data_dir=data --name=clips

The first line makes clips of its own (pictures and sound without meaning) and prepares them as a data set in a temporary
folder; the second measures a data set that is there. Files are read from memory, where the system keeps what it has
just written or read: a slow disk shows in none of the numbers.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import json
import os
from pathlib import Path
import platform
import tempfile
import time
from typing import Any

from absl import flags
import cv2
from jaxtyping import UInt8
import numpy as np

from mma_dfer_jax import cli
from mma_dfer_jax.data.data_set import DataSet, open_data_set
from mma_dfer_jax.data.fbank import spectrogram
from mma_dfer_jax.data.frames import augment, decode_frame, draw_augmentation, sample_frames
from mma_dfer_jax.data.pipeline import (
  Augment,
  EvalOrder,
  Record,
  TrainOrder,
  eval_batches,
  train_batches,
  train_example,
)
from mma_dfer_jax.data.records import Clip, Clips
from mma_dfer_jax.errors import UserError
from mma_dfer_jax.inputs import Inputs

# Not among the flags of every program that imports this: others have a --data_dir of their own.
_OPTIONS = flags.FlagValues()
_CLIPS = flags.DEFINE_integer("clips", 64, "Clips to make.", lower_bound=1, flag_values=_OPTIONS)
_FRAMES = flags.DEFINE_integer("frames", 60, "Frames of each.", lower_bound=1, flag_values=_OPTIONS)
_SIZE = flags.DEFINE_integer(
  "size", 224, "Height and width of a frame, pixels.", lower_bound=16, flag_values=_OPTIONS
)
_JPEG_KB = flags.DEFINE_float(
  "jpeg_kb", 15.0, "About 1000 bytes of one frame.", lower_bound=0.1, flag_values=_OPTIONS
)
_SECONDS = flags.DEFINE_float("seconds", 2.4, "Length of the sound.", lower_bound=0.1, flag_values=_OPTIONS)
_SAMPLE_RATE = flags.DEFINE_integer(
  "sample_rate", 44_100, "Of the sound, Hz.", lower_bound=1000, flag_values=_OPTIONS
)
_DATA_DIR = flags.DEFINE_string(
  "data_dir", None, "Measure a data set in this folder instead.", flag_values=_OPTIONS
)
_NAME = flags.DEFINE_string("name", "clips", "Name of that data set.", flag_values=_OPTIONS)
_NUM_WORKERS = flags.DEFINE_integer(
  "num_workers", 2, "Worker processes; 0: threads of this one.", lower_bound=0, flag_values=_OPTIONS
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "Clips in a batch.", lower_bound=1, flag_values=_OPTIONS)
_REPEATS = flags.DEFINE_integer("repeats", 5, "Timed passes.", lower_bound=1, flag_values=_OPTIONS)
_OUT = flags.DEFINE_string("out", None, "Write the numbers to this JSON file too.", flag_values=_OPTIONS)

RANGES = Augment()
PREFETCH = 2  # batches that each worker keeps ready; the default of config.data.prefetch
STAGES = ("read", "decode", "transform", "fbank")
# The original's video_dataloader.py under torch's DataLoader: 2 workers and batches of 8, and milliseconds for one clip on
# one core, for clips such as are made here. Measured once, on 2 cores of a Xeon (Sapphire Rapids), ± 15 %.
ORIGINAL_CLIPS_PER_SECOND = {"training": 36.7, "evaluation": 51.2}
ORIGINAL_MILLISECONDS = {"decode": 6.2, "transform": 28.3, "fbank": 5.2}


@dataclasses.dataclass(frozen=True)
class Measured:
  """Several measurements of one thing: their median, and the quarters of them below and above."""

  median: float
  lower: float
  upper: float

  @classmethod
  def of(cls, values: Iterable[float]) -> "Measured":
    lower, median, upper = np.percentile(list(values), (25, 50, 75)).tolist()
    return cls(median, lower, upper)


def made_pictures(
  num_frames: int, size: int, jpeg_kb: float, rng: np.random.Generator
) -> list[UInt8[np.ndarray, "n"]]:
  """JPEG files of a window that wanders over a picture of soft blots and grain; more grain makes larger files."""
  margin = 16  # pixels that the window can wander
  side = size + margin
  blots = cv2.resize(rng.uniform(30, 220, (8, 8, 3)), (side, side), interpolation=cv2.INTER_CUBIC)
  grain = cv2.GaussianBlur(rng.normal(0, 1, (side, side, 3)), (0, 0), 1.0)

  def jpeg(strength: float, top: int, left: int) -> np.ndarray:
    picture = (blots + strength * grain)[top : top + size, left : left + size]
    pixels = np.clip(picture, 0, 255).astype(np.uint8)
    return cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 95])[1]

  low, high = 0.0, 400.0
  for _ in range(10):
    middle = (low + high) / 2
    low, high = (middle, high) if len(jpeg(middle, 0, 0)) < 1000 * jpeg_kb else (low, middle)
  return [jpeg(low, *rng.integers(margin, size=2).tolist()) for _ in range(num_frames)]


def make_data_set(
  folder: Path, *, clips: int, frames: int, size: int, jpeg_kb: float, seconds: float, sample_rate: int
) -> DataSet:
  """Makes clips in `folder` and writes them as a data set with the split `train`, as prepare does after decoding."""
  made = []
  for i in range(clips):
    rng = np.random.default_rng(i)
    jpegs = made_pictures(frames, size, jpeg_kb, rng)
    time_axis = np.arange(round(seconds * sample_rate)) / sample_rate
    voice = 6000 * np.sin(2 * np.pi * 220 * time_axis) + rng.normal(0, 800, len(time_axis))
    decoded = folder / f"{i}.npz"
    np.savez(decoded, jpegs=np.concatenate(jpegs), lengths=[len(jpeg) for jpeg in jpegs],
             waveform=voice.astype(np.int16), sample_rate=sample_rate, face_share=np.nan)  # fmt: skip
    made.append(Clip(f"clip {i}", "ab"[i % 2], "train", decoded))
  Clips(
    clips=made, classes=["a", "b"], class_order="", recipe={"made by": "benchmark"}, left_out=[],
    fingerprint="", data_dir=folder,
  ).write()  # fmt: skip
  return open_data_set(folder, "clips")


def time_stages(
  records: Sequence[Record], inputs: Inputs, repeats: int
) -> tuple[dict[str, Measured], Measured]:
  """Milliseconds that one clip takes on one core: by stage with the training transform, and the whole of it.

  The stages are timed one after the other for each clip and `train_example` right after them, so that a machine that
  is faster for a while is that for all of them.
  """
  threads = cv2.getNumThreads()
  cv2.setNumThreads(1)
  try:
    times = [
      _time_clip(records, i, inputs, np.random.default_rng([turn, i]))
      for turn in range(repeats + 1)
      for i in range(len(records))
    ][len(records) :]  # the first turn is a rehearsal: files are opened, tables computed
  finally:
    cv2.setNumThreads(threads)
  stages = {name: Measured.of(clip[name] for clip in times) for name in STAGES}
  return stages, Measured.of(clip["whole"] for clip in times)


def _time_clip(
  records: Sequence[Record], index: int, inputs: Inputs, rng: np.random.Generator
) -> dict[str, float]:
  """Milliseconds of every stage of one clip, and of reading and transforming it as training does."""
  times = {}

  def timed(name: str, stage: Callable[[], Any]) -> Any:
    start = time.perf_counter()
    result = stage()
    times[name] = 1000 * (time.perf_counter() - start)
    return result

  record = timed("read", lambda: records[index])
  chosen = sample_frames(len(record["frames"]), train=True, rng=rng, num_segments=inputs.num_frames).tolist()
  frames = timed("decode", lambda: {i: decode_frame(record["frames"][i]) for i in set(chosen)})
  timed("transform", lambda: _transform([frames[i] for i in chosen], inputs, rng))
  waveform, sample_rate = record["waveform"], int(record["sample_rate"])
  if record["has_audio"]:
    timed("fbank", lambda: spectrogram(waveform.astype(np.float32) / 32768, sample_rate, *inputs.audio_shape))
  else:
    times["fbank"] = 0.0
  timed("whole", lambda: train_example(records[index], inputs, RANGES, rng))
  return times


def _transform(frames: list[np.ndarray], inputs: Inputs, rng: np.random.Generator) -> np.ndarray:
  height, width, _ = frames[0].shape
  augmentation = draw_augmentation(
    height, width, inputs.image_size, rng,
    scale=RANGES.crop_scale, ratio=RANGES.crop_ratio, flip=RANGES.flip, brightness=RANGES.brightness,
  )  # fmt: skip
  video = np.empty((len(frames), inputs.image_size, inputs.image_size, 3), np.uint8)
  for frame, out in zip(frames, video, strict=True):
    augment(frame, augmentation, inputs.image_size, out)
  return video


def time_pipeline(
  records: Sequence[Record], inputs: Inputs, *, training: bool, num_workers: int, batch_size: int, repeats: int
) -> Measured:  # fmt: skip
  """Clips a second that come out of the batches that a run is fed, with nobody computing on them.

  Worker processes take seconds to start, and have PREFETCH batches ready before they are asked: all that is warm-up.
  """
  batch_size = min(batch_size, len(records))
  steps = -(-len(records) // batch_size) * -(-32 // len(records))  # a timed pass: all clips, but at least 32
  warm_up = max(1, num_workers) * (PREFETCH + 1)
  needed = warm_up + repeats * steps
  if training:
    epochs = -(-needed // (len(records) // batch_size))
    stream = train_batches(TrainOrder(records, 1, batch_size, epochs), inputs, RANGES,
                           start_step=0, num_workers=num_workers, prefetch=PREFETCH)  # fmt: skip
  else:
    order = EvalOrder(_Repeated(records, needed * batch_size), 1, batch_size, 1)
    stream = eval_batches(order, inputs, num_workers=num_workers, prefetch=PREFETCH)
  with stream as batches:
    for _ in range(warm_up):
      next(batches)
    speeds = []
    for _ in range(repeats):
      start = time.perf_counter()
      for _ in range(steps):
        next(batches)
      speeds.append(steps * batch_size / (time.perf_counter() - start))
  return Measured.of(speeds)


@dataclasses.dataclass(frozen=True)
class _Repeated(Sequence):
  """Records over and over, `length` in all: a split that is long enough to be timed."""

  records: Sequence[Record]
  length: int

  def __len__(self) -> int:
    return self.length

  def __getitem__(self, index):
    return self.records[index % len(self.records)]


def measure(
  records: Sequence[Record], *, num_workers: int, batch_size: int, repeats: int, inputs: Inputs | None = None
) -> dict[str, Any]:  # fmt: skip
  """All that the command reports, as JSON holds it: medians, and the quarters below and above them."""
  inputs = inputs or Inputs()
  first = records[0]
  stages, whole = time_stages(records, inputs, repeats)
  pipeline = {
    kind: time_pipeline(records, inputs, training=kind == "training", num_workers=num_workers,
                        batch_size=batch_size, repeats=repeats)
    for kind in ORIGINAL_CLIPS_PER_SECOND
  }  # fmt: skip
  return {
    "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
    "clips": {
      "number": len(records),
      "frames": len(first["frames"]),
      "frame_size": decode_frame(first["frames"][0]).shape[:2],
      "jpeg_kb": float(np.mean([len(jpeg) for jpeg in first["frames"]])) / 1000,
      "samples": len(first["waveform"]),
      "sample_rate": int(first["sample_rate"]),
    },
    "num_workers": num_workers,
    "batch_size": batch_size,
    "milliseconds": {name: dataclasses.asdict(stages[name]) for name in STAGES},
    "sum_of_medians": sum(stages[name].median for name in STAGES),
    "whole": dataclasses.asdict(whole),
    "clips_per_second": {kind: dataclasses.asdict(speed) for kind, speed in pipeline.items()},
    "original": {"milliseconds": ORIGINAL_MILLISECONDS, "clips_per_second": ORIGINAL_CLIPS_PER_SECOND},
  }


def table(report: Mapping[str, Any]) -> str:
  """A report for people."""
  clips = report["clips"]
  height, width = clips["frame_size"]
  lines = [
    f"{clips['number']} clips; the first has {clips['frames']} frames of {width}x{height} in {clips['jpeg_kb']:.1f} kB "
    f"and {clips['samples']} samples at {clips['sample_rate']} Hz; {report['machine']['cores']} cores",
    "",
    f"{'one core':<16}{'ms per clip':>14}{'quarters':>20}{'clips/s':>10}{'original ms':>14}",
  ]
  original = report["original"]["milliseconds"]
  workers = f"{report['num_workers']} workers, batches of {report['batch_size']}"
  for name in STAGES:
    known = f"{original[name]:.1f}" if name in original else "in decode"
    lines.append(_line(name, Measured(**report["milliseconds"][name]), known))
  lines += [
    f"{'sum':<16}{report['sum_of_medians']:>14.2f}{'':>20}{1000 / report['sum_of_medians']:>10.1f}"
    f"{sum(original.values()):>14.1f}",
    _line("all in one go", Measured(**report["whole"]), ""),
    "",
    f"{workers:<32}{'clips/s':>10}{'quarters':>20}{'original clips/s':>20}",
  ]
  for kind, speed in report["clips_per_second"].items():
    quarters = f"{speed['lower']:.1f} to {speed['upper']:.1f}"
    known = report["original"]["clips_per_second"][kind]
    lines.append(f"{kind + ' transform':<32}{speed['median']:>10.1f}{quarters:>20}{known:>20.1f}")
  return "\n".join([*lines, "", "The original was measured on another day and machine (2 cores of a Xeon, 2 workers, "
                    "224x224 in 15 kB, 2.4 s at 44.1 kHz): a ratio to it is a hint, no measurement."])  # fmt: skip


def _line(name: str, measured: Measured, original: str) -> str:
  quarters = f"{measured.lower:.2f} to {measured.upper:.2f}"
  return f"{name:<16}{measured.median:>14.2f}{quarters:>20}{1000 / max(measured.median, 1e-9):>10.1f}{original:>14}"


def main(argv: Sequence[str]) -> None:
  _OPTIONS(argv)  # parsed already, through `cli`
  settings: dict[str, Any] = {
    "num_workers": _NUM_WORKERS.value,
    "batch_size": _BATCH_SIZE.value,
    "repeats": _REPEATS.value,
  }
  if _DATA_DIR.value:
    data_set = open_data_set(_DATA_DIR.value, _NAME.value)
    report = measure(_first(data_set, _CLIPS.value), **settings)
  else:
    with tempfile.TemporaryDirectory() as folder:
      data_set = make_data_set(
        Path(folder), clips=_CLIPS.value, frames=_FRAMES.value, size=_SIZE.value, jpeg_kb=_JPEG_KB.value,
        seconds=_SECONDS.value, sample_rate=_SAMPLE_RATE.value,
      )  # fmt: skip
      report = measure(data_set.records("train"), **settings)
  print(table(report))
  if _OUT.value:
    Path(_OUT.value).write_text(json.dumps(report, indent=2) + "\n")


def _first(data_set: DataSet, clips: int) -> Sequence[Record]:
  """The first clips of a data set's first split."""
  split, number = next(iter(data_set.splits.items()))
  if not number:
    raise UserError(f"the split {split} of {data_set.path} is empty; there is nothing to measure")
  return data_set.records(f"{split}[:{clips}]")


if __name__ == "__main__":
  cli.take_over(_OPTIONS)
  cli.run(main)
