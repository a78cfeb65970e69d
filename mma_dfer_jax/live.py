"""Answers while a camera, a pipe or an address is read: one line of JSON for each hop, and at the end how fast that was."""

from collections.abc import Iterator
import dataclasses
import json
import time
from typing import Any

import numpy as np

from mma_dfer_jax.data.film import Sample, check_windows
from mma_dfer_jax.data.pixels import Picture
from mma_dfer_jax.data.stream import Ring, Stream
from mma_dfer_jax.engines.engine import Engine
from mma_dfer_jax.prediction import Finder, OfScenes, Prediction, predict_samples


@dataclasses.dataclass
class Live:
  """A source that is answered window by window, read once and forward only."""

  engine: Engine
  source: str
  finder: Finder
  window: float
  hop: float
  channel: str = "first"
  force: bool = False
  abstain: float = 0.0

  def __post_init__(self) -> None:
    check_windows(self.window, self.hop)
    self.stream = Stream(self.source)
    self.latencies: list[float] = []  # seconds from the frame that completes a window to its answer
    self.frames = 0
    self.began = time.monotonic()

  def answers(self, seconds: float | None = None) -> Iterator[tuple[Prediction, float]]:
    """(answer, its latency in seconds) of each window, until the source ends or so many seconds have passed."""
    about, ring = self.engine.about, None
    self._warm_up()
    for came, frame, at in self.stream:
      self.began = self.began if self.frames else came
      if isinstance(frame, Picture):
        if ring is None:
          finder = self.finder
          finder = finder.finder(*frame.shape[:2]) if isinstance(finder, OfScenes) else finder
          ring = Ring(about.inputs, finder, self.window, self.hop, self.channel)
        self.frames += 1
        ring.add_picture(frame)
      elif ring is not None:
        ring.add_sound(frame, at)
      if ring is not None:
        yield from self._answered(ring.windows(), came)
      if seconds is not None and came - self.began >= seconds:
        self.stream.stop()
        return
    if ring is not None:
      yield from self._answered(ring.windows(ended=True), time.monotonic())

  def _answered(self, samples: Iterator[Sample], came: float) -> Iterator[tuple[Prediction, float]]:
    named = ((self.source, sample) for sample in samples)
    for _, prediction in predict_samples(self.engine, named, 1, force=self.force, abstain=self.abstain):
      self.latencies.append(time.monotonic() - came)
      yield prediction, self.latencies[-1]

  def _warm_up(self) -> None:
    inputs = self.engine.about.inputs
    self.engine(
      *(
        np.zeros((1, *shape), np.uint8 if name == "video" else np.float32)
        for name, shape in inputs.shapes.items()
      )
    )

  def summary(self) -> dict[str, Any]:
    """Frames a second, latency of a hop, and frames that were dropped because the model was too slow."""
    seconds = time.monotonic() - self.began
    p50, p95 = np.percentile(self.latencies, [50, 95]).tolist() if self.latencies else (None, None)
    return {"answers": len(self.latencies), "frames": self.frames, "frames_per_second": self.frames / seconds,
            "latency_p50": p50, "latency_p95": p95, "dropped_frames": self.stream.dropped}  # fmt: skip

  def run(self, seconds: float | None) -> None:
    """Prints an answer a line, and the summary at the end, also when it is interrupted."""
    try:
      for prediction, latency in self.answers(seconds):
        print(json.dumps(dataclasses.asdict(prediction) | {"latency": round(latency, 4)}), flush=True)
    finally:
      if self.frames:
        print(json.dumps({"summary": self.summary()}), flush=True)
