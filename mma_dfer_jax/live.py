"""Answers while a camera, a pipe or an address is read: one line of JSON for each hop, and at the end how fast that was."""

from collections import Counter
from collections.abc import Iterator
import dataclasses
import json
import sys
import time
from typing import Any

import numpy as np

from mma_dfer_jax.data.film import Sample, check_windows
from mma_dfer_jax.data.pixels import Picture
from mma_dfer_jax.data.stream import Ring, Stream
from mma_dfer_jax.engines.engine import Engine
from mma_dfer_jax.errors import UserError
from mma_dfer_jax.prediction import Finder, OfScenes, Prediction, predict_samples

COUNTED = ("skipped_windows", "windows_without_picture", "windows_without_their_sound", "clock_jumps")


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
    if self.channel == "loudest":
      raise UserError("the loudest channel is known of a finished film only: --channel=first, centre or mix")
    self.stream = Stream(self.source)
    self.counts = Counter[str](dict.fromkeys(COUNTED, 0))
    self.latencies: list[float] = []  # seconds from the frame that completes a window to its answer
    self.frames = 0
    self.began = time.monotonic()

  def answers(self, seconds: float | None = None) -> Iterator[tuple[Prediction, float]]:
    """(answer, its latency in seconds) of each window, until the source ends or so many seconds have passed."""
    ring: Ring | None = None
    origin, due, left = 0.0, None, 0  # `due`: when the window that will be answered was complete
    self._warm_up()
    self.stream.seconds = seconds
    for came, frame, at in self.stream:
      self.began = self.began if self.frames else came
      if isinstance(frame, str):
        print(f"{self.stream.name}: {frame}", file=sys.stderr, flush=True)
        self.counts["clock_jumps"] += 1
        yield from self._rest(ring, whole=True)
        ring, origin, due = None, at, None
      elif isinstance(frame, Picture):
        ring = ring or self._ring(frame, origin)
        self.frames += 1
        ring.add_picture(frame)
      elif ring is not None:
        ring.add_sound(frame, at)
      if ring is None:
        continue
      while not self.stream.waits and ring.complete(
        ahead=1
      ):  # only the newest, so that answers do not fall behind
        ring.skip()
        self.counts["skipped_windows"] += 1
        due, left = came, left if due else self.stream.waiting
      if due is None and ring.complete():
        due, left = came, 0 if self.stream.waits else self.stream.waiting
      if due is not None and left <= 0:
        yield from self._answered(ring.windows(), due)
        due = None
      left -= 1
    yield from self._rest(ring, whole=not self.stream.ended)

  def _ring(self, picture: Picture, origin: float) -> Ring:
    finder = self.finder
    finder = finder.finder(*picture.shape[:2]) if isinstance(finder, OfScenes) else finder
    return Ring(self.engine.about.inputs, finder, self.window, self.hop, self.channel, origin=origin,
                awaits_sound=self.stream.has_sound, counts=self.counts)  # fmt: skip

  def _rest(self, ring: Ring | None, *, whole: bool) -> Iterator[tuple[Prediction, float]]:
    if ring is not None:
      yield from self._answered(ring.windows(ended=True, whole=whole), time.monotonic())

  def _answered(self, samples: Iterator[Sample], came: float) -> Iterator[tuple[Prediction, float]]:
    named = ((self.stream.name, sample) for sample in samples)
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
    """Frames a second, latency of a hop, and what was dropped, skipped or damaged."""
    seconds = time.monotonic() - self.began
    p50, p95 = np.percentile(self.latencies, [50, 95]).tolist() if self.latencies else (None, None)
    return {"answers": len(self.latencies), "frames": self.frames, "frames_per_second": self.frames / seconds,
            "latency_p50": p50, "latency_p95": p95, "dropped_frames": self.stream.dropped,
            "damaged_packets": self.stream.damaged, **self.counts}  # fmt: skip

  def run(self, seconds: float | None) -> None:
    """Prints an answer a line, and the summary at the end, also when it is interrupted."""
    try:
      for prediction, latency in self.answers(seconds):
        print(json.dumps(dataclasses.asdict(prediction) | {"latency": round(latency, 4)}), flush=True)
    finally:
      if self.frames:
        print(json.dumps({"summary": self.summary()}), flush=True)
