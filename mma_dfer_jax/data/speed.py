"""How many clips a second are loaded: stage by stage on one core, and by the pipeline that feeds a run.

Files are read from memory, where the system keeps what it has just read: a slow disk shows in none of the numbers.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import functools
import itertools
import platform
import time
from typing import Any
from unittest import mock

import cv2
import numpy as np

from mma_dfer_jax.cores import usable_cores
from mma_dfer_jax.data import counts, pipeline
from mma_dfer_jax.data.frames import decode_frame
from mma_dfer_jax.data.pipeline import Record
from mma_dfer_jax.inputs import Inputs

PREFETCH = 2  # batches that each worker keeps ready; the default of config.data.prefetch
# Functions of pipeline.py.
STAGES = {"decode_frame": "decode", "augment": "transform", "spectrogram": "fbank"}


def machine() -> dict[str, Any]:
  """What the numbers were measured on."""
  return {"processor": platform.processor() or platform.machine(), "cores": usable_cores()}


def quarters(values: Iterable[float]) -> dict[str, float]:
  """The median of several measurements, and the quarters of them below and above."""
  lower, median, upper = np.percentile(list(values), (25, 50, 75)).tolist()
  return {"median": median, "lower": lower, "upper": upper}


def measure(
  records: Sequence[Record], inputs: Inputs, *, num_workers: int, batch_size: int, repeats: int
) -> dict[str, Any]:
  """All that `benchmark --loading` reports, as JSON holds it."""
  first, how = records[0], dict[str, Any](num_workers=num_workers, batch_size=batch_size)
  clips: dict[str, Any] = {
    "number": len(records),
    "frames": len(first["frames"]),
    "samples": len(first["waveform"]),
  }
  size, rate = decode_frame(first["frames"][0]).shape[:2], int(first["sample_rate"])
  clips |= {"sample_rate": rate, "frame_size": size}
  clips["jpeg_kb"] = float(np.mean([len(jpeg) for jpeg in first["frames"]])) / 1000
  speeds = {name: time_pipeline(records, inputs, training=name == "training", repeats=repeats, **how)
            for name in ("training", "evaluation")}  # fmt: skip
  stages = time_stages(records, inputs, repeats)
  return {"machine": machine(), "clips": clips, **how, "milliseconds": stages, "clips_per_second": speeds}


def time_stages(records: Sequence[Record], inputs: Inputs, repeats: int) -> dict[str, dict[str, float]]:
  """Milliseconds that a clip takes on one core with the training transform: reading, each stage, and the whole of it."""
  times: list[dict[str, float]] = []

  def timed(name: str, stage: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    start = time.perf_counter()
    result = stage(*arguments, **named)
    times[-1][name] += 1000 * (time.perf_counter() - start)
    return result

  def whole(i: int, rng: np.random.Generator) -> None:
    pipeline.make_example(timed("read", records.__getitem__, i), inputs, rng=rng)

  stages: dict[str, Any] = {
    what: functools.partial(timed, name, getattr(pipeline, what)) for what, name in STAGES.items()
  }
  threads = cv2.getNumThreads()
  cv2.setNumThreads(1)
  try:
    with mock.patch.multiple(pipeline, **stages):
      for turn, i in itertools.product(range(repeats + 1), range(len(records))):
        times.append(dict.fromkeys(["read", *STAGES.values(), "whole"], 0.0))
        timed("whole", whole, i, np.random.default_rng([turn, i]))
  finally:
    cv2.setNumThreads(threads)
  measured = times[len(records) :]  # the first turn is a rehearsal: files are opened, tables computed
  return {name: quarters(clip[name] for clip in measured) for name in times[0]}


def time_pipeline(
  records: Sequence[Record], inputs: Inputs, *, training: bool, num_workers: int, batch_size: int, repeats: int,
  consume: Callable[[Any], object] = lambda batch: None,
) -> dict[str, float]:  # fmt: skip
  """Clips a second that come out of the batches that a run is fed.

  Worker processes take seconds to start, and have PREFETCH batches ready before they are asked: all that is warm-up.
  `training` chooses the transform, `consume` is called with each batch.
  """
  batch_size = min(batch_size, len(records))
  steps = -(-len(records) // batch_size) * -(-32 // len(records))  # a timed pass: all clips, but at least 32
  warm_up = max(1, num_workers) * (PREFETCH + 1)
  kind = pipeline.TrainOrder if training else pipeline.EvalOrder
  order = kind(records, 1, batch_size, num_epochs=warm_up + repeats * steps)  # more than enough
  ranges, speeds = pipeline.Augment() if training else None, []
  with pipeline.load_batches(order, inputs, ranges, num_workers=num_workers, prefetch=PREFETCH) as batches:
    for timed_steps in [warm_up] + [steps] * repeats:
      start, clips = time.perf_counter(), 0
      for batch in itertools.islice(batches, timed_steps):
        consume(batch)
        clips += int(batch["mask"].sum())
      speeds.append(clips / (time.perf_counter() - start))
  return quarters(speeds[1:])


def table(report: Mapping[str, Any]) -> str:
  """A report for people."""
  clips, (height, width) = report["clips"], report["clips"]["frame_size"]
  head = (
    f"{counts.count(clips['number'], 'clip')}; the first has {clips['frames']} frames of {width}x{height} in {clips['jpeg_kb']:.1f} kB "
    f"and {clips['samples']} samples at {clips['sample_rate']} Hz; {report['machine']['cores']} cores"
  )
  stages = [["one core", "ms per clip", "quarters", "clips/s"]]
  for name, one in report["milliseconds"].items():
    spread = f"{one['lower']:.2f} to {one['upper']:.2f}"
    stages.append([name, f"{one['median']:.2f}", spread, f"{1000 / max(one['median'], 1e-9):.1f}"])
  speeds = [[f"{report['num_workers']} workers, batches of {report['batch_size']}", "clips/s", "quarters"]]
  for name, one in report["clips_per_second"].items():
    speeds.append([f"{name} transform", f"{one['median']:.1f}", f"{one['lower']:.1f} to {one['upper']:.1f}"])
  return "\n\n".join([head, counts.table(stages), counts.table(speeds)])
