"""A camera, a pipe or an address as windows, read once and forward only: what `film` makes of a file in two readings."""

from collections import deque
from collections.abc import Iterator
import dataclasses
import math
import queue
import re
import sys
import threading
import time
from typing import Any

import av
from av.video.reformatter import VideoReformatter
import numpy as np

from mma_dfer_jax.data.channels import SILENT, names_of, take
from mma_dfer_jax.data.faces import EVERY, Detections, FaceFinder
from mma_dfer_jax.data.fbank import window_and_hop
from mma_dfer_jax.data.film import EPSILON, LEFTOVER, Film, OpenWindow, Sample, Window
from mma_dfer_jax.data.media import SYNC_TOLERANCE, as_int16, by_channel, is_long_enough
from mma_dfer_jax.data.pixels import Picture
from mma_dfer_jax.data.shots import Shots
from mma_dfer_jax.errors import UserError
from mma_dfer_jax.inputs import Inputs

WAITING = 128  # frames that may wait for the model: then a pipe, http and tcp wait, and of others pictures are dropped
SILENT_FOR = 1.0  # seconds of pictures after which a sound that stopped is no longer waited for
# PyAV's name of the system's cameras, and how it names one of them.
CAMERAS = {"linux": ("v4l2", "/dev/video{}"), "darwin": ("avfoundation", "{}:none")}


def is_live(source: str) -> bool:
  """Whether it is a pipe ("-") or an address ("rtsp://..."), not a file."""
  return source == "-" or bool(re.match(r"(rtsps?|https?|tcp|udp|rtmp|srt)://", source, re.IGNORECASE))


@dataclasses.dataclass
class Stream:
  """Decoded frames of a source in the order in which they come, by a thread of its own."""

  source: str  # number of a camera, "-", or an address
  dropped: int = 0
  error: Exception | None = None

  def __post_init__(self) -> None:
    self._waiting = queue.Queue[Any]()
    self._stopped = False
    self._thread = threading.Thread(target=self._read, daemon=True)

  def __iter__(self) -> Iterator[tuple[float, Any, float]]:
    """(when it came, Picture or av.AudioFrame, its seconds since the first picture); raises UserError if the source cannot be read."""
    self._thread.start()
    while (item := self._waiting.get()) is not None:
      yield item
    if self.error is not None:
      words = getattr(self.error, "strerror", None) or self.error
      raise UserError(f"{self.source}: cannot be read ({words}); a camera, an address, or a container that can be read "
                      "forward only, as MPEG-TS or Matroska")  # fmt: skip

  def stop(self) -> None:
    self._stopped = True

  def _read(self) -> None:
    try:
      with self._opened() as container:
        streams = [
          next(iter(of_kind), None) for of_kind in (container.streams.video, container.streams.audio)
        ]
        if streams[0] is None:
          raise UserError("it holds no pictures")
        early: list[tuple[Any, float | None]] = []
        start, number, converters = None, 0, (VideoReformatter(), VideoReformatter())
        for packet in container.demux([one for one in streams if one]):
          stream, codec = packet.stream, packet.stream.codec_context
          for frame in packet.decode():
            at = frame.time
            if stream.type == "video":  # the stream must not be asked once the container is closed
              at = number / float(stream.average_rate or 25) if at is None else at
              start, number = at if start is None else start, number + 1
              aspect = stream.sample_aspect_ratio
              frame = Picture(frame, at - start, codec=codec, aspect=aspect, converters=converters)
            early.append((frame, at))
            if start is not None:  # the sound may come before the first picture
              for one, seconds in early:
                self._put((time.monotonic(), one, math.nan if seconds is None else seconds - start))
              early.clear()
          if self._stopped:
            break
    except Exception as error:  # it ends the reading, and is raised where frames are taken
      self.error = error
    self._waiting.put(None)

  def _opened(self) -> Any:
    if self.source == "-":
      return av.open("pipe:0", container_options={"protocol_whitelist": "pipe"})
    if not self.source.isdecimal():
      return av.open(self.source, container_options={"rtsp_transport": "tcp"}, timeout=(10.0, 10.0))
    if sys.platform not in CAMERAS:
      raise UserError(f"cameras of {sys.platform} are not supported; give an address, or pipe the video in")
    form, name = CAMERAS[sys.platform]
    return av.open(name.format(self.source), format=form)

  def _put(self, item: Any) -> None:
    waits = self.source == "-" or self.source.lower().startswith(("http", "tcp"))
    while waits and self._waiting.qsize() >= WAITING and not self._stopped:
      time.sleep(0.002)
    if not waits and self._waiting.qsize() >= WAITING and isinstance(item[1], Picture):
      self.dropped += 1  # never the sound
    else:
      self._waiting.put(item)


class Ring:
  """What is remembered of the last seconds of a stream: pictures, where faces were, cuts, sound."""

  def __init__(
    self, inputs: Inputs, finder: FaceFinder | None, window: float, hop: float, channel: str = "first"
  ):
    self.inputs, self.finder, self.window, self.hop, self.channel = inputs, finder, window, hop, channel
    self.pictures, self.times = deque[Picture](), deque[float]()
    self.detections: Detections = []
    self.first = 0  # number of the oldest picture
    self.shots = Shots()
    self.sound, self.heard, self.rate = (
      np.zeros(0, np.int16),
      0,
      0,
    )  # `heard`: number of the first sample that is kept
    self.answered = 0

  @property
  def frames(self) -> int:
    return self.first + len(self.times)

  def add_picture(self, picture: Picture) -> None:
    new = max([picture.time, *list(self.times)[-1:]])
    if self.finder:
      for pixels in self.shots.watch([picture.pixels()]):
        around = [*list(self.times)[-2:], new]
        if len(around) == 3 and len({math.floor((one + EPSILON) / self.hop) for one in around}) > 1:
          self._look(self.frames - 1, self.pictures[-1].pixels())  # the first or the last of a hop
        if self.frames % EVERY == 0:
          self._look(self.frames, pixels)
    self.pictures.append(picture)
    self.times.append(new)

  def _look(self, number: int, pixels: np.ndarray) -> None:
    assert self.finder
    if not self.detections or self.detections[-1][0] < number:
      self.detections.append((number, self.finder.detector.detect(pixels)))

  def add_sound(self, frame: Any, at: float) -> None:
    pcm = as_int16(by_channel(frame), "the sound")
    samples = take(pcm, names_of([one.name for one in frame.layout.channels], len(pcm)), self.channel, 0)
    if self.rate and frame.sample_rate != self.rate:
      raise UserError(f"the sample rate changes from {self.rate} to {frame.sample_rate} Hz")
    self.rate = frame.sample_rate
    reached = self.heard + len(self.sound)
    late = at - reached / self.rate
    if abs(late) > SYNC_TOLERANCE:
      shift = round(late * self.rate)
      samples = np.pad(samples, (shift, 0)) if shift > 0 else samples[-shift:]
    self.sound = np.concatenate([self.sound, samples])

  def windows(self, *, ended: bool = False) -> Iterator[Sample]:
    """What the model is given of the windows that are complete now, or at the end of those that are left."""
    while len(self.times) and (self._complete() or ended):
      start = self.answered * self.hop
      seconds = self.times[-1] + (
        self.pictures[-1].duration or float(np.median(np.diff(self.times) if len(self.times) > 1 else [0.04]))
      )
      end = start + self.window
      if ended and end >= seconds - LEFTOVER:
        end = seconds
      yield self._sample(start, end)
      if ended and end == seconds:
        return
      self.answered += 1
      self._forget(self.answered * self.hop)

  def _complete(self) -> bool:
    end = self.answered * self.hop + self.window
    if self.times[-1] < end - EPSILON:
      return False
    return (
      not self.rate or (self.heard + len(self.sound)) / self.rate >= end or self.times[-1] > end + SILENT_FOR
    )

  def _sample(self, start: float, end: float) -> Sample:
    times = np.array(self.times)
    if self.finder and self.times[-1] < end:  # the last picture of all
      self._look(self.frames - 1, self.pictures[-1].pixels())
    sizes = np.array([picture.shape[:2] for picture in self.pictures])
    found = [(number - self.first, boxes) for number, boxes in self.detections] if self.finder else None
    cuts = [cut - self.first for cut in self.shots.cuts() if cut > self.first]
    film = Film("", times, end, sizes, found, None, (), cuts=cuts)
    first, last = np.searchsorted(times, (start - EPSILON, end - EPSILON)).tolist()
    first = first if first < last else max(0, first - 1)
    opened = OpenWindow(film, Window(start, end, first, max(last, first + 1)), self.inputs, self.finder)
    for number in opened.chosen:
      pixels = self.pictures[number].pixels()
      opened.take(number, pixels, self.pictures[number].changes)
    opened.window = opened.window._replace(first=first + self.first, last=opened.window.last + self.first)
    return opened.sample(*self._excerpt(start, end), self.inputs)

  def _excerpt(self, start: float, end: float) -> tuple[dict[str, Any], dict[str, Any]]:
    room, heard = 0, 0.0
    if self.rate:
      row, hop = window_and_hop(self.rate)
      room = row + hop * (self.inputs.audio_shape[0] - 1)
      heard = room / self.rate
    at, until = (max(0, round(one * self.rate) - self.heard) for one in (start, end))
    part = self.sound[at:until]
    enough = is_long_enough(len(part), self.rate)
    silent = enough and int(np.abs(part.astype(np.int32)).max()) < SILENT
    rate, seconds = (self.rate, len(part) / self.rate) if enough else (0, 0.0)
    return {"waveform": part[:room].copy(), "sample_rate": rate, "has_audio": enough}, {
      "heard": heard, "seconds_of_sound": seconds, "silent": silent, "sample_rate": rate, "notes": ()
    }  # fmt: skip

  def _forget(self, before: float) -> None:
    """What no later window needs."""
    while len(self.times) > 2 and self.times[1] < before - EPSILON:
      self.pictures.popleft()
      self.times.popleft()
      self.first += 1
    self.detections = [one for one in self.detections if one[0] >= self.first]
    over = max(0, round(before * self.rate) - self.heard)
    self.sound, self.heard = self.sound[over:], self.heard + min(over, len(self.sound))
