"""Video files: their pictures in display order and one channel of their sound, read with PyAV alone."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from fractions import Fraction
import functools
import io
import math
import os
import re
import stat
import time
from typing import Any, NamedTuple

import av
from av.container import InputContainer
from av.sidedata.sidedata import Type as SideData
from av.video.reformatter import VideoReformatter
from jaxtyping import Int16
import numpy as np
from PIL import Image

from mma_dfer_jax.cores import own_cores
from mma_dfer_jax.data.channels import SILENT, Heard, names_of, take
from mma_dfer_jax.data.ends import AGAIN, PartOfFile, ending
from mma_dfer_jax.data.formats import Ending
from mma_dfer_jax.data.frames import is_cut
from mma_dfer_jax.data.pictures import quiet
from mma_dfer_jax.data.pixels import Picture
from mma_dfer_jax.errors import UserError, of_type, print_traceback

# Formats that write their length down, which shows whether a file was cut short. For others FFmpeg guesses.
FORMATS_WITH_ONE_LENGTH = ("matroska,webm", "flv", "nut")  # FFmpeg may say it of a shorter stream
_OTHERS = ("mov,mp4,m4a,3gp,3g2,mj2", "avi", "asf", "rm", "film_cpk", "apm", "kvag", "ast")
FORMATS_WITH_LENGTH = (*FORMATS_WITH_ONE_LENGTH, *_OTHERS)
# Not opened: these only name other files or addresses; FFmpeg would even wait for a "live" playlist without an end.
TEXT_AS_PICTURES = {"adf", "bin", "idf", "tty", "xbin"}  # FFmpeg draws the letters of any text
PLAYLISTS = {"concat", "dash", "hls", "imf", "rtsp", "sdp", "webm_dash_manifest"}
MOST_PLANES = 7  # of a sound: PyAV reads past the end of more, which ends the process
FORMATS_WITHOUT_ASPECT = ("mpegts", "mpeg")  # of pixels: the pictures say it, each for itself
PICTURES = ("_pipe", "apng")  # ends of FFmpeg's names of formats that are pictures
LOWEST_RATE = 100  # Hz, of a sound: else a row of the spectrogram would be shorter than one sample
SHORTEST_SOUND = 0.025  # seconds: one window of the spectrogram
SYNC_TOLERANCE = 0.02  # seconds between picture and sound that stay as they are: two rows of log-mel
LONGEST_JUMP = 600.0  # seconds without sound that may be true; more is a damaged time
LARGEST_SOUND = 1 << 29  # bytes of one clip: an hour and a half at 48 kHz
# Files of these formats may be joined end to end, after which times begin anew. Seconds that say so, as of FFmpeg itself.
JOINABLE = ("mpegts", "mpeg", "ogg")
JOINT_BACK, JOINT_AHEAD = 0.5, 10.0
SETTLED = 1.0  # seconds after which a change of a file shows in its time
# What to do about a file that is not supported.
CONVERT = "convert it, for instance with `ffmpeg -i FILE new.mp4`"
# Titles and tags need not be UTF-8. PyAV takes them as they come since 19; before, it needs this option.
_BAD_TITLES: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}


def _unnamed(cls, value):
  """FFmpeg knows kinds of data beside a picture (the EXIF of cameras) that PyAV has no names for, and then shows none."""
  kind = object.__new__(cls)
  kind._name_, kind._value_ = f"UNNAMED_{value}", value
  return kind


SideData._missing_ = classmethod(_unnamed)  # type: ignore[assignment]


class MediaError(UserError):
  """A file from which pictures or sound cannot be taken completely."""


@contextmanager
def one_clip(path: str | os.PathLike[str]) -> Iterator[None]:
  """Whatever a library raises within the block becomes a MediaError: it ends the work on one clip, and on no other."""
  try:
    yield
  except UserError:
    raise
  except MemoryError as error:
    raise MediaError(f"{path}: does not fit into the memory that this process may use") from error
  except OSError as error:
    raise MediaError(f"{error.filename or path}: {error.strerror or error}") from error
  except Exception as error:
    print_traceback()
    raise MediaError(f"{path}: cannot be decoded ({of_type(error)})") from error


class Sound(NamedTuple):
  """One channel of a sound, at its own sample rate (Hz)."""

  waveform: Int16[np.ndarray, "S"]
  sample_rate: int


def iterate_pictures(path: str | os.PathLike[str]) -> Iterator[Picture]:
  """Pictures of a file's first video stream that is no cover picture, in the order in which they are shown.

  Raises:
    MediaError: while iterating, if the file or a picture in it is missing, or it is damaged or cut short. The last is
      known only after the last picture.
  """
  with _opened(path) as (container, found):
    stream, _ = _chosen(container, "video", path)
    if stream is None:
      raise MediaError(f"{path}: holds no video stream")
    stream.thread_type, stream.codec_context.thread_count = "AUTO", own_cores()
    step = float(1 / (stream.average_rate or 25))
    start = time = None
    codec, converters = stream.codec_context, (VideoReformatter(), VideoReformatter())
    changing = container.format.name in FORMATS_WITHOUT_ASPECT
    profile = _profile(path) if container.format.name.endswith(PICTURES) else None
    for frame in _decoded(container, stream, path, found):
      # An AVI only tells the order of decoding, a bare stream nothing: what FFmpeg makes of it is not always ascending.
      ticks = frame.dts if container.format.name == "avi" else frame.pts
      time = _seconds(ticks, frame) if ticks is not None else 0.0 if time is None else time + step
      start = time if start is None else start
      aspect = (None if changing else stream.sample_aspect_ratio) or codec.sample_aspect_ratio
      how = {"codec": codec, "aspect": aspect, "converters": converters, "profile": profile}
      try:
        picture = Picture(frame, time - start, **how)
      except ValueError as error:
        raise MediaError(f"{path}: {error}") from error
      yield picture


def end_of_last(times: Sequence[float], end: float) -> float:
  """When the last of frames at these seconds ends: as the file says, or else after the usual time."""
  usual = float(np.median(np.diff(times))) if len(times) > 1 else 0.04
  return end if end > times[-1] else times[-1] + usual


def read_sound(
  path: str | os.PathLike[str], channel: str = "first", heard: Heard | None = None
) -> Sound | None:
  """The pieces of `iterate_sound` as one, never resampled; None if they are too short for a spectrogram."""
  data, sample_rate = bytearray(), 0
  for piece in iterate_sound(path, channel, heard):
    data += piece.waveform.tobytes()
    sample_rate = piece.sample_rate
    if len(data) > LARGEST_SOUND:
      end = f"after {len(data) / 2 / sample_rate:.0f} s its sound does not end"
      raise MediaError(f"{path}: is too long: {end}; cut it into shorter clips")
  waveform = np.frombuffer(data, np.int16)
  return Sound(waveform, sample_rate) if is_long_enough(len(waveform), sample_rate) else None


def iterate_sound(
  path: str | os.PathLike[str], channel: str = "first", heard: Heard | None = None
) -> Iterator[Sound]:
  """One channel of a file's sound, piece by piece, in step with the pictures from first to last.

  Where the sound comes more than 20 ms later than the pictures, zeros fill the gap; where it comes earlier, that much is
  cut; so is what the encoder added at the end, where the file tells the length. A file without sound gives no piece.

  Args:
    channel: "first", "loudest", "centre" (of a surround sound; of others the first), or "mix", the mean of all.
    heard: notes what all channels are like.
  Raises:
    MediaError: while iterating, if the file is missing, damaged or cut short, its sample rate changes, or its times jump
      by more than ten minutes.
  """
  heard, loudest = heard or Heard(channel), 0
  if channel == "loudest":
    for _ in iterate_sound(path, "first", all_channels := Heard()):
      pass
    loudest = all_channels.loudest
  with _opened(path) as (container, found):
    stream, _ = _chosen(container, "audio", path)
    if stream is None:
      return
    start = _first_picture(path)
    sample_rate = position = 0  # position: samples that were given
    end = math.inf  # seconds
    cutting = False  # what must be cut may be longer than one frame
    for frame in _decoded(container, stream, path, found):
      if not sample_rate:
        sample_rate = frame.sample_rate
        if sample_rate < LOWEST_RATE:
          raise MediaError(f"{path}: its sound has {sample_rate} samples a second, below {LOWEST_RATE}")
        if stream.duration and container.format.name in FORMATS_WITH_LENGTH:  # elsewhere a guess
          end = _seconds((stream.start_time or 0) + stream.duration, stream)
        start = frame.time or 0.0 if start is None else start
      if frame.sample_rate != sample_rate:
        raise MediaError(f"{path}: its sample rate changes from {sample_rate} to {frame.sample_rate} Hz")
      pcm = as_int16(by_channel(frame), path)
      names = names_of([one.name for one in frame.layout.channels], len(pcm))
      samples = take(pcm, names, channel, loudest)
      heard.add(names, pcm, samples)
      if frame.time is not None and end < frame.time + len(samples) / sample_rate:
        samples = samples[: max(0, round((end - frame.time) * sample_rate))]
      late = 0.0 if frame.time is None or not len(samples) else frame.time - start - position / sample_rate
      if late > LONGEST_JUMP:
        at = position / sample_rate
        raise MediaError(f"{path}: is damaged: its sound jumps by {late:.0f} s at {at:.2f} s; {AGAIN}")
      if abs(late) > SYNC_TOLERANCE or cutting:
        shift = round(late * sample_rate)
        samples = np.pad(samples, (shift, 0)) if shift > 0 else samples[-shift:]
        cutting = not len(samples)
      position += len(samples)
      yield Sound(samples, sample_rate)


def holds_pictures(path: str | os.PathLike[str]) -> bool:
  """Whether a file has pictures besides a cover; raises MediaError as the others."""
  with _opened(path) as (container, _):
    return _chosen(container, "video", path)[0] is not None


def why_no_video(path: str | os.PathLike[str]) -> str | None:
  """Why a file is no video, in words: it is a picture, has none, or is of another kind; None if it is, damaged or not."""
  try:
    with _opened(path) as (container, _):
      if container.format.name.endswith(PICTURES):
        return "is a picture"
      return None if _chosen(container, "video", path)[0] else "holds no pictures"
  except MediaError as error:
    other = any(words in str(error) for words in ("no video or sound of a kind", "device or a pipe"))
    return "is no video" if other else None


def tracks_taken(path: str | os.PathLike[str]) -> tuple[str, ...]:
  """Which tracks are used and why, of a file that has several of a kind; raises MediaError as the others."""
  with _opened(path) as (container, _):
    notes = [_chosen(container, kind, path)[1] for kind in ("video", "audio")]
    sounds = [stream.index for stream in container.streams if stream.type == "audio"]
    taken = _chosen(container, "audio", path)[0].index if notes[1] else 0
  if notes[1] and not _speaks(path, taken):
    others = [str(k) for k, index in enumerate(sounds, 1) if index != taken and _speaks(path, index)]
    if others:
      notes[1] += (f"; it is silent, but number {' and '.join(others)} {'is' if len(others) == 1 else 'are'} not: take one with "
                   f"`ffmpeg -i FILE -map 0:V -map 0:a:{int(others[0]) - 1} -c copy NEW`")  # fmt: skip
  return tuple(filter(None, notes))


def _speaks(path: str | os.PathLike[str], index: int) -> bool:
  """Whether a track of sound is louder than silence anywhere; looks no further, and at most for as far as it is whole."""
  try:
    with _opened(path) as (container, _):
      frames: Iterator[Any] = container.decode(container.streams[index])
      for frame in frames:
        if np.abs(as_int16(by_channel(frame), path).astype(np.int32)).max(initial=0) >= SILENT:
          return True
  except (MediaError, ValueError):  # ValueError: there is no decoder
    pass
  return False


def _profile(path: str | os.PathLike[str]) -> bytes | None:
  """What a file that is a picture says of its colours (ICC)."""
  try:
    with quiet(), Image.open(path) as picture:
      return picture.info.get("icc_profile")
  except Exception:  # FFmpeg says what is wrong
    return None


def _first_picture(path: str | os.PathLike[str]) -> float | None:
  """When the first picture is shown, in seconds on the file's own clock; None without pictures or clock.

  A recording may begin within a group of pictures: what comes before the first whole one is never shown.
  """
  with _opened(path) as (container, found):
    stream, _ = _chosen(container, "video", path)
    if stream is None:
      return None
    if container.format.name == "avi":  # see iterate_pictures
      return _seconds(stream.start_time, stream)
    return next(_decoded(container, stream, path, found)).time


def is_long_enough(samples: int, sample_rate: int) -> bool:
  """Whether they fill one window of the spectrogram; else the clip counts as one without sound."""
  return samples >= SHORTEST_SOUND * sample_rate > 0


def declared_seconds(path: str | os.PathLike[str]) -> float | None:
  """The length that a file declares, for a progress bar; None if it declares none. Raises MediaError as the others."""
  with _opened(path) as (container, _):
    return container.duration / av.time_base if container.duration else None


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[tuple[InputContainer, Ending]]:
  """The file opened, and what its format says of it; whatever FFmpeg objects to within the block becomes a MediaError."""
  name, found = os.path.abspath(path), Ending()
  try:
    status = os.stat(name)
    if stat.S_ISREG(status.st_mode):
      settled = time.time() - status.st_mtime > SETTLED
      found = _ending(name, status.st_size, status.st_mtime_ns) if settled else ending(name)
  except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
    address = re.match("[a-z][a-z0-9+.-]+:/", os.fspath(path), re.IGNORECASE)
    reason = "is an address, not a file; download it first" if address else getattr(error, "strerror", error)
    raise MediaError(f"{path}: {reason}") from error
  for wrong, reason in (
    (stat.S_ISDIR(status.st_mode), "is a folder, not a video file"),
    (not stat.S_ISREG(status.st_mode), "is a device or a pipe, not a regular file"),  # it might never end
    (status.st_size == 0, "is empty"),
  ):
    if wrong:
      raise MediaError(f"{path}: {reason}")
  if found.fault:
    raise MediaError(f"{path}: {found.fault}")
  opened = False
  try:
    # "file:" so that a name with a colon is no protocol; the whitelists keep a file from leading to other places.
    # (As container_options: with plain options PyAV before 18 crashes on Flash files.)
    allowed = ",".join(av.formats_available - PLAYLISTS - TEXT_AS_PICTURES)
    options = {"protocol_whitelist": "file", "format_whitelist": allowed}
    source: Any = f"file:{name}"
    if len(found.parts) > 1:
      with PartOfFile(name, {}, 0, status.st_size) as file:
        whole = file.read()
      source = io.BytesIO(b"".join(whole[start:end] for start, end in found.parts))
    elif found.repairs or found.parts:
      source = PartOfFile(name, found.repairs, *(found.parts or [(0, status.st_size)])[0])
    closing = nullcontext() if isinstance(source, str) else source
    with closing, av.open(source, container_options=options, **_BAD_TITLES) as container:
      opened = True
      for kind in ("video", "audio"):
        if (there := sum(stream.type == kind for stream in container.streams)) < found.tracks[kind]:
          what = f"it describes {found.tracks[kind]} {kind} tracks, of which FFmpeg understands {there}"
          raise MediaError(f"{path}: is damaged: {what}; {AGAIN}")
      yield container, found
  except av.error.FFmpegError as error:
    kinds = av.error.DecoderNotFoundError, av.error.DemuxerNotFoundError, av.error.PatchWelcomeError
    if isinstance(error, kinds) or not (opened or found.known):
      what = f"it is no video or sound of a kind that this program reads ({error.strerror})"
      raise MediaError(f"{path}: is not supported: {what}; {CONVERT}") from error
    what = f"FFmpeg cannot {'decode' if opened else 'open'} it ({error.strerror})"
    raise MediaError(f"{path}: is damaged: {what}; {AGAIN}") from error


_ending = functools.lru_cache(maxsize=256)(lambda name, *stamp: ending(name))


def _chosen(container: InputContainer, kind: str, path: Any) -> tuple[Any, str | None]:
  """The track of a kind that is used, None if there is none, and why it is that one, None if it is the only one.

  Of several it is the one that the file marks as the default, or else the first. A cover picture is no track.
  """
  cover, default = av.stream.Disposition.attached_pic, av.stream.Disposition.default
  tracks = [stream for stream in container.streams if stream.type == kind and not stream.disposition & cover]
  readable = [stream for stream in tracks if stream.codec_context is not None]
  if tracks and not readable:
    raise MediaError(f"{path}: is not supported: FFmpeg has no decoder for its {kind}; {CONVERT}")
  marked = [stream for stream in readable if stream.disposition & default]
  chosen = next(iter(marked or readable), None)
  if chosen is None or len(tracks) == 1:
    return chosen, None
  why = "the file marks it as the default" if 0 < len(marked) < len(readable) else "it is the first"
  if unread := len(tracks) - len(readable):
    why += f"; for {unread} of them FFmpeg has no decoder"
  return chosen, f"of {len(tracks)} {kind} tracks number {tracks.index(chosen) + 1} was taken: {why}"


def _packets(container: InputContainer) -> Iterator[Any]:
  """All packets, on one clock: where files were joined end to end, it begins anew, and here it runs on.

  Each stream comes to the joint by itself; the first says for all what is added to the times after it.
  """
  joinable = container.format.name in JOINABLE
  added, joints, ends = [0.0], dict[int, int](), dict[int, float]()  # seconds
  for packet in container.demux():
    if joinable and packet.dts is not None:
      index, time = packet.stream.index, _seconds(packet.dts, packet)
      end, joint = ends.get(index), joints.get(index, 0)
      if end is not None and not -JOINT_BACK <= time + added[joint] - end <= JOINT_AHEAD:
        joint = joints[index] = joint + 1
        added[joint:] = added[joint:] or [end - time]
      shift = round(added[joint] / packet.time_base)
      packet.dts += shift
      packet.pts = packet.pts + shift if packet.pts is not None else None
      ends[index] = _seconds(packet.dts + (packet.duration or 0), packet)
    yield packet


def _decoded(container: InputContainer, stream: av.stream.Stream, path: Any, found: Ending) -> Iterator[Any]:
  """All frames of a stream; then makes sure that there was something and that the file did not end early."""
  lengths: dict[int | None, int] = {}  # of packets, to know when the last frame ends
  reached = of_any = 0.0  # seconds, of this stream and of the longest
  pictures = samples = 0
  if stream.codec_context.name in ("wavpack", "flac", "tta"):  # FFmpeg looks at check sums only when asked
    stream.codec_context.options = {"err_detect": "crccheck+explode"}
  complete = found.known and container.format.name == "mpegts"  # FFmpeg takes a joint for a lack of packets
  previous: dict[int, int] = {}  # times of packets, for those that do not say how long they are
  for packet in _packets(container):
    if packet.pts is not None:
      usual = packet.pts - previous.get(packet.stream.index, packet.pts)
      of_any = max(of_any, _seconds(packet.pts + (packet.duration or max(usual, 0)), packet))
      previous[packet.stream.index] = packet.pts
    if packet.stream.index != stream.index:
      continue
    if packet.is_corrupt and not complete:
      where = f"after {reached:.2f} s of its {stream.type}"
      raise MediaError(f"{path}: is damaged: {where} a part is missing; {AGAIN}")
    if packet.size and stream.codec_context.name in ("mjpeg", "webp") and is_cut(bytes(packet)):
      raise MediaError(f"{path}: is damaged: its picture at {reached:.2f} s ends early; {AGAIN}")
    lengths[packet.pts] = packet.duration or 0
    animated = found.pictures and stream.codec_context.name == "webp"
    frames: Iterable[Any] = packet.decode() if not animated else _of_webp(path) if packet.size else ()
    for frame in frames:
      if frame.is_corrupt:
        raise MediaError(f"{path}: is damaged after {reached:.2f} s of its {stream.type}; {AGAIN}")
      if frame.pts is not None:
        reached = max(reached, _seconds(frame.pts + lengths.pop(frame.pts, 0), frame))
      pictures += 1
      samples += frame.samples if stream.type == "audio" else 0
      yield frame
  if container.format.name in FORMATS_WITH_LENGTH:
    _check_length(container, stream, reached, of_any, path)
  number, announced = (samples, found.samples) if stream.type == "audio" else (pictures, found.pictures)
  if announced is not None and (number < announced or (number > announced and stream.type == "audio")):
    what = "samples of sound" if stream.type == "audio" else "pictures"
    fault = "cut short" if number < announced else "damaged"
    raise MediaError(f"{path}: is {fault}: it announces {announced:,} {what} and has {number:,}; {AGAIN}")
  if not pictures and stream.type == "video":
    raise MediaError(f"{path}: holds no picture that can be decoded")


def _of_webp(path: Any) -> Iterator[av.VideoFrame]:
  """The pictures of an animated WebP, which FFmpeg does not read. Those without a time last 0.1 s, as in browsers."""
  time = 0
  try:
    with quiet():
      film = Image.open(path)
    with film:
      for number in range(getattr(film, "n_frames", 1)):
        film.seek(number)
        film.load()
        form = "RGBA" if film.has_transparency_data else "RGB"
        frame = av.VideoFrame.from_ndarray(np.asarray(film.convert(form)), {"RGB": "rgb24"}.get(form, "rgba"))
        frame.pts, frame.time_base = time, Fraction(1, 1000)
        frame.duration = film.info.get("duration") or 100
        time += frame.duration
        yield frame
  except (OSError, SyntaxError, ValueError, EOFError) as error:
    raise MediaError(f"{path}: is damaged: PIL cannot decode it ({error}); {AGAIN}") from error


def _check_length(container: InputContainer, stream: Any, reached: float, of_any: float, path: Any) -> None:
  """Compares the seconds that were read, of this stream and of the longest, with the length that the file declares.

  A stream must come within 5 %, or two frames where that is more, of its own declared end; where only the whole file
  declares a length (Matroska, Flash), the longest of all its streams must.
  """
  rate = stream.average_rate if stream.type == "video" else None
  if container.format.name == "avi" and rate and stream.frames:
    # FFmpeg cuts an AVI's duration to what is there, but not this count.
    declared = float(stream.frames / rate)
  elif stream.duration and container.format.name not in FORMATS_WITH_ONE_LENGTH:
    declared = _seconds((stream.start_time or 0) + stream.duration, stream)
  else:
    declared, reached = (container.duration or 0) / av.time_base, of_any
    if any(other.codec_context is None for other in container.streams):
      return  # how long its packets are is not known
  if reached < declared - max(0.05 * declared, 2 / float(rate) if rate else 0.1):
    ends = f"its {stream.type} ends at {reached:.2f} s of {declared:.2f} s"
    raise MediaError(f"{path}: is cut short: {ends}; {AGAIN}")


def _seconds(time: int | None, source: Any) -> float:
  """A time of a stream, packet or frame, which count in units of their own."""
  return float((time or 0) * source.time_base)


def by_channel(frame: av.AudioFrame) -> np.ndarray:
  """(C, S): the samples of each channel."""
  number = frame.layout.nb_channels
  if frame.format.is_planar and number > MOST_PLANES:
    packed = av.AudioResampler(frame.format.packed, frame.layout, frame.sample_rate)
    return np.concatenate([one.to_ndarray() for one in packed.resample(frame) + packed.resample(None)], 1).reshape(-1, number).T  # fmt: skip
  samples = frame.to_ndarray()
  return samples if frame.format.is_planar else samples.reshape(-1, number).T


def as_int16(samples: np.ndarray, path: str | os.PathLike[str]) -> np.ndarray:
  """Samples of any decoder as 16-bit: floats are rounded and cut at full scale, integers lose or gain low bits."""
  if samples.dtype.kind == "f":
    if not np.isfinite(samples).all():
      raise MediaError(f"{path}: its sound holds infinite or undefined (NaN) samples")
    return np.clip(np.rint(samples * 32768.0), -32768, 32767).astype(np.int16)
  if samples.dtype == np.uint8:  # unsigned: silence is 128
    return (samples.astype(np.int16) - 128) << 8
  return (samples >> 8 * (samples.dtype.itemsize - 2)).astype(np.int16)
