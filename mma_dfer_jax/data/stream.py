"""A camera, a pipe or an address as windows, read once and forward only: what `film` makes of a file in two readings."""

from bisect import bisect_left
from collections import Counter, deque
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

from mma_dfer_jax.data.channels import names_of, take
from mma_dfer_jax.data.faces import EVERY, Detections, FaceFinder
from mma_dfer_jax.data.film import EPSILON, LEFTOVER, LONGEST_STEP_BACK, Film, OpenWindow, Sample, Window
from mma_dfer_jax.data.media import LONGEST_JUMP, SYNC_TOLERANCE, as_int16, by_channel, end_of_last
from mma_dfer_jax.data.pixels import Picture
from mma_dfer_jax.data.shots import Shots
from mma_dfer_jax.errors import UserError
from mma_dfer_jax.inputs import Inputs

WAITING = 128  # frames that may wait for the model: then a pipe, http and tcp wait, and of others pictures are dropped
# Seconds of pictures after which a sound that stopped is no longer waited for. While sound comes, WAITING pictures are waited:
# a fragment of MP4 holds seconds of pictures before its sound.
SILENT_FOR = 1.0
MOST_DAMAGED = 500  # packets in a row that cannot be decoded: then the source is given up
MOST_A_SECOND = 256  # pictures; of more the clock stands still
PATIENCE = 10.0  # seconds in which a source must begin, and an address go on
# PyAV's name of the system's cameras, and how it names one of them.
CAMERAS = {"linux": ("v4l2", "/dev/video{}"), "darwin": ("avfoundation", "{}:none")}


def is_live(source: str) -> bool:
  """Whether it is a pipe ("-") or an address ("rtsp://..."), not a file."""
  return source == "-" or bool(re.match(r"(rtsps?|https?|tcp|udp|rtmp|srt)://", source, re.IGNORECASE))


def is_camera(source: str) -> bool:
  """Whether it is the number of a camera."""
  return source.isascii() and source.isdecimal()


class Clock:
  """Tells where the times of a source start anew, for pictures and sound together."""

  def __init__(self) -> None:
    self.start: float | None = None  # time of the picture that the seconds count from
    self.origin = 0.0  # seconds of the stream before that picture
    self.reached = self._before = math.nan  # latest time of a picture, now and before the clock started anew
    self._heard, self._settled = -math.inf, True

  def picture(self, at: float, step: float) -> str | None:
    """How the clock jumps at a picture, whose time is `at`, if it does; the one before was shown for `step` seconds."""
    jumps = self.start is not None and not -LONGEST_STEP_BACK <= at - self.reached <= LONGEST_JUMP
    words = f"its clock jumps from {self.reached:.2f} to {at:.2f} s: windows begin anew" if jumps else None
    if jumps and self.start is not None:
      self.origin += self.reached - self.start + step
      self._before, self._heard, self._settled = self.reached, -math.inf, False
    if jumps or self.start is None:
      self.start = self.reached = at
    self.reached = max(self.reached, at)
    return words

  def sound(self, at: float) -> bool | None:
    """Whether sound is of the pictures since the latest start; None if that is not known before the next start."""
    if self.start is None:
      return None
    if not self._settled and abs(at - self._before) < abs(at - self.reached):
      return False  # it belongs to the pictures before
    self._settled = True
    if at < self._heard - LONGEST_STEP_BACK or abs(at - self.reached) > LONGEST_JUMP:
      return None
    self._heard = max(self._heard, at)
    return True


@dataclasses.dataclass
class Stream:
  """Decoded frames of a source in the order in which they come, by a thread of its own."""

  source: str  # number of a camera, "-", or an address
  seconds: float | None = None  # after which it ends, from the first frame on; None: with the source
  dropped: int = 0  # pictures
  damaged: int = 0  # packets
  has_sound: bool = False  # known when the first frame comes
  ended: bool = False  # the source, before `seconds` were over
  error: Exception | None = None

  def __post_init__(self) -> None:
    scheme, *rest = self.source.split("://", 1)
    self.source = "://".join([scheme.lower(), *rest])
    self.waits = self.source == "-" or scheme.lower().startswith(("http", "tcp"))
    self._waiting = queue.Queue[Any]()
    self._stopped = False
    self._thread = threading.Thread(target=self._read, daemon=True)

  @property
  def name(self) -> str:
    """The source without user and password."""
    return re.sub("(?<=://)[^/]*@", "", self.source)

  @property
  def waiting(self) -> int:
    return self._waiting.qsize()

  def __iter__(self) -> Iterator[tuple[float, Any, float]]:
    """(when it came, Picture or av.AudioFrame, its seconds since the first picture).

    Where the clock jumps, pictures and sound count from there on, and (when, the jump in words, seconds before it) comes
    first. Raises UserError if the source cannot be read, or nothing comes in 10 s or the longer `seconds`.
    """
    self._thread.start()
    longest, item = math.inf if self.seconds is None else self.seconds, None
    end = time.monotonic() + max(longest, PATIENCE)
    while (left := end - time.monotonic()) > 0:
      try:
        following = self._waiting.get(timeout=None if left == math.inf else left)
      except queue.Empty:
        break
      if following is None:
        self.ended = True
        break
      end = following[0] + longest if item is None else end
      item = following
      yield item
    self._stopped = True
    if self.error is not None:
      raise UserError(f"{self.name}: {self._words(self.error)}")
    if item is None and not self.ended:
      raise UserError(f"{self.name}: nothing came in {max(longest, PATIENCE):g} s")

  def _words(self, error: Exception) -> str:
    name = CAMERAS.get(sys.platform, ("", ""))[1]
    if is_camera(self.source) and isinstance(error, FileNotFoundError):
      return f"there is no camera {self.source} ({name.format(self.source)})"
    if is_camera(self.source) and isinstance(error, PermissionError):
      return f"you may not read this camera ({name.format(self.source)})"
    if isinstance(error, av.error.ExitError):
      return f"nothing came in {PATIENCE:g} s; check the address, and that it sends"
    if isinstance(error, av.error.InvalidDataError) and self.source.startswith("rtsp"):
      return "what answers there speaks no RTSP, or has no video under this name"
    said = error if isinstance(error, UserError) else getattr(error, "strerror", None) or error
    return f"cannot be read ({said}); a camera, an address, or a container that can be read forward only, as MPEG-TS or Matroska"

  def _read(self) -> None:
    try:
      with self._opened() as container:
        kinds = container.streams.video, container.streams.audio
        streams = [next(iter(of_kind), None) for of_kind in kinds]
        if streams[0] is None:
          raise UserError("it holds no pictures")
        self.has_sound = streams[1] is not None
        clock, number, converters = Clock(), 0, (VideoReformatter(), VideoReformatter())
        early = deque[tuple[Any, float | None]](maxlen=4 * WAITING)  # sound before the picture of its time
        for stream, frame in self._decoded(container, [one for one in streams if one]):
          at = frame.time
          if stream.type == "audio":
            early.append((frame, at))
          else:  # the stream must not be asked once the container is closed
            rate = float(stream.average_rate or 25)
            at, number = number / rate if at is None else at, number + 1
            if words := clock.picture(at, 1 / rate):
              self._put((time.monotonic(), words, clock.origin))
            aspect, codec = stream.sample_aspect_ratio, stream.codec_context
            seconds = at - (clock.start or 0.0)
            picture = Picture(frame, seconds, codec=codec, aspect=aspect, converters=converters)
            self._put((time.monotonic(), picture, seconds))
          for _ in range(len(early)):
            one, at = early.popleft()
            belongs = clock.sound(clock.reached if at is None else at)
            if belongs:
              seconds = math.nan if at is None else at - (clock.start or 0.0)
              self._put((time.monotonic(), one, seconds))
            elif belongs is None:
              early.append((one, at))
          if self._stopped:
            break
    except Exception as error:  # it ends the reading, and is raised where frames are taken
      self.error = error
    self._waiting.put(None)

  def _decoded(self, container: Any, streams: list[Any]) -> Iterator[tuple[Any, Any]]:
    """(stream, frame); passes over packets that are damaged."""
    in_a_row, packets = 0, container.demux(streams)
    while True:
      try:
        packet = next(packets, None)
        frames = packet.decode() if packet else []
      except (av.error.InvalidDataError, IndexError):  # IndexError: damaged bytes tell of another stream
        self.damaged, in_a_row = self.damaged + 1, in_a_row + 1
        if in_a_row >= MOST_DAMAGED:
          raise
        packets = container.demux(streams)
        continue
      if packet is None:
        return
      for frame in frames:
        in_a_row = 0
        self.damaged += bool(frame.is_corrupt)
        yield packet.stream, frame

  def _opened(self) -> Any:
    if self.source == "-":
      return av.open("pipe:0", container_options={"protocol_whitelist": "pipe"})
    if not is_camera(self.source):
      how = {"rtsp_transport": "tcp"} if self.source.startswith("rtsp") else {}
      return av.open(self.source, container_options=how, timeout=(PATIENCE, PATIENCE))
    if sys.platform not in CAMERAS:
      raise UserError(f"cameras of {sys.platform} are not supported; give an address, or pipe the video in")
    form, name = CAMERAS[sys.platform]
    return av.open(name.format(self.source), format=form)

  def _put(self, item: Any) -> None:
    while self.waits and self.waiting >= WAITING and not self._stopped:
      time.sleep(0.002)
    if not self.waits and self.waiting >= WAITING and isinstance(item[1], Picture):
      self.dropped += 1  # never the sound
    else:
      self._waiting.put(item)


@dataclasses.dataclass(eq=False)
class Ring:
  """What is remembered of the last seconds of a stream: pictures, where faces were, cuts, sound."""

  inputs: Inputs
  finder: FaceFinder | None
  window: float
  hop: float
  channel: str = "first"
  origin: float = 0.0  # seconds of the stream before its first picture
  awaits_sound: bool = False  # the source says that it has sound
  counts: Counter[str] = dataclasses.field(default_factory=Counter)  # of windows

  def __post_init__(self) -> None:
    self.pictures, self.times = deque[Picture](), deque[float]()
    self.detections: Detections = []
    self.first = 0  # number of the oldest picture
    self.shots = Shots()
    self.sound, self.heard, self.rate = np.zeros(0, np.int16), 0, 0  # `heard`: number of the first sample
    self._cutting = False  # sound before the first picture may be longer than one frame
    self.answered = 0  # windows that are over
    self._given_up = False  # the sound of the window before

  @property
  def frames(self) -> int:
    return self.first + len(self.times)

  def add_picture(self, picture: Picture) -> None:
    new, number = max([picture.time, *list(self.times)[-1:]]), len(self.times)
    if number > MOST_A_SECOND * (self.window + self.hop) + 2 * WAITING:
      raise UserError(f"its clock stands still: {number} pictures came in {new - self.times[0]:.2f} s of it")
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
    late = at - self._reached if len(samples) else 0.0
    if abs(late) > SYNC_TOLERANCE or (self._cutting and not math.isnan(late)):
      shift = round(late * self.rate)
      samples = np.pad(samples, (shift, 0)) if shift > 0 else samples[-shift:]
      self._cutting = not len(samples)
    most = round((self.times[-1] + LONGEST_JUMP - self._reached) * self.rate)  # more is kept of no sound
    self.sound = np.concatenate([self.sound, samples[: max(0, most)]])

  @property
  def _reached(self) -> float:
    """Seconds of the sound's end."""
    return (self.heard + len(self.sound)) / self.rate if self.rate else 0.0

  def windows(self, *, ended: bool = False, whole: bool = False) -> Iterator[Sample]:
    """What the model is given of the windows that are complete now, or at the end of those that are left.

    With `whole`, none that is cut short by the end. A window in which no picture begins is passed over.
    """
    while len(self.times) and (self.complete() or ended):
      start = self.answered * self.hop
      seconds = end_of_last(self.times, self.times[-1] + self.pictures[-1].duration)
      end = start + self.window
      if ended and whole and end > seconds + LEFTOVER:
        return
      if ended and end >= seconds - LEFTOVER:
        end = seconds
      self._given_up = not ended and bool(self.rate or self.awaits_sound) and self._reached < end
      self.counts["windows_without_their_sound"] += self._given_up
      if bisect_left(self.times, start - EPSILON) < bisect_left(self.times, end - EPSILON):
        yield self._sample(start, end)
      else:
        self.counts["windows_without_picture"] += 1
      if ended and end == seconds:
        return
      self.skip()

  def skip(self) -> None:
    """Passes over the oldest window."""
    self.answered += 1
    self._forget(self.answered * self.hop)

  def complete(self, ahead: int = 0) -> bool:
    """Whether the oldest window, or the one so many hops later, has all its pictures, and its sound if that still comes."""
    end = (self.answered + ahead) * self.hop + self.window
    if not self.times or self.times[-1] < end - EPSILON:
      return False
    if not (self.rate or self.awaits_sound) or self._reached >= end:
      return True
    return self.times[-1] > end + SILENT_FOR and (
      self._given_up or len(self.times) - bisect_left(self.times, end) >= WAITING
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
    opened = OpenWindow(film, Window(start, end, first, last), self.inputs, self.finder)
    for number in opened.chosen:
      pixels = self.pictures[number].pixels()
      opened.take(number, pixels, self.pictures[number].changes)
    opened.window = Window(self.origin + start, self.origin + end, self.first + first, self.first + last)
    views = opened.seconds.items()
    opened.seconds = {view: tuple(self.origin + one for one in times) for view, times in views}
    at, until = (max(0, round(one * self.rate) - self.heard) for one in (start, end))
    part = self.sound[at:until]
    peak = int(np.abs(part.astype(np.int32)).max(initial=0))
    return opened.sample(self.inputs, part, self.rate, len(part) / (self.rate or 1), peak)

  def _forget(self, before: float) -> None:
    """What no later window needs."""
    while len(self.times) > 2 and self.times[1] < before - EPSILON:
      self.pictures.popleft()
      self.times.popleft()
      self.first += 1
    self.detections = [one for one in self.detections if one[0] >= self.first]
    self.shots.forget(self.first)
    over = max(0, round(before * self.rate) - self.heard)
    self.sound, self.heard = self.sound[over:], self.heard + min(over, len(self.sound))
