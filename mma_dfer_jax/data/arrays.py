"""Frames and sound in memory as what a model is given: as a video file becomes it, and a clip in training. Starts no JAX."""

from collections.abc import Iterable, Iterator
from typing import Any

from jaxtyping import Int16
import numpy as np

from mma_dfer_jax.data.channels import CHANNELS, Heard, names_of, take
from mma_dfer_jax.data.faces import FaceFinder, look_over
from mma_dfer_jax.data.film import Film, OpenWindow, Sample, Window
from mma_dfer_jax.data.media import LOWEST_RATE, is_long_enough
from mma_dfer_jax.errors import listed
from mma_dfer_jax.inputs import Inputs

FRAME = 0.04  # seconds of a frame, where neither times nor a sound tell
LOUDEST = 2.0  # of a floating-point sound: decoders overshoot full scale; more is not in [-1, 1] at all


def read_arrays(
  frames: Any, waveform: Any, sample_rate: Any, inputs: Inputs, **how: Any
) -> tuple[np.ndarray, ...]:
  """The video and the spectrogram that a model is given of a clip in memory: sampled, resized and transformed as in evaluation.

  They are uint8 (T, H, W, 3) and float32 (F, K); of a model that takes points of the face, float32 landmarks (T, p, 3) come
  third. Add a first axis to all for an engine: `engine(video[None], spectrogram[None])`.

  Args:
    frames: uint8 RGB, an array (N, H, W, 3) or a sequence of N arrays (H, W, 3) of any sizes; any N from 1.
    waveform: (S,) or (S, channels), int16 or floating point in [-1, 1], which becomes 16-bit as a file's does: rounded, and
      cut at full scale if it overshoots by up to 6 dB. None, or less than 25 ms: the constant for a missing sound.
    sample_rate: Hz, a whole number from 100; nothing is resampled. None without a sound.
    inputs: of the model, `engine.about.inputs`.
    times: (N + 1,) seconds at which the frames begin, and at which the last one ends. None: evenly spread over the sound, or
      25 a second without one; the order of time is all that most models need.
    channel: "first", "loudest", "centre" or "mix".
    coded: whether frames pass through JPEG of quality 95, as those of video files do in training and prediction. Then the
      result has the same bits as that of a file with these frames and this sound; else pixels differ by a few units.
    finder: cuts out faces; None: the frames show a face already.
  Raises:
    UserError: with everything that is wrong with the arrays.
  """
  return sample_of(frames, waveform, sample_rate, inputs, **how).arrays


def sample_of(
  frames: Any, waveform: Any, sample_rate: Any, inputs: Inputs, *, times: Any = None, channel: str = "first",
  coded: bool = False, finder: FaceFinder | None = None,
) -> Sample:  # fmt: skip
  """The same, with what is known of the clip. Arguments and errors as for `read_arrays`."""
  if hasattr(frames, "__array__") or not isinstance(frames, Iterable):
    frames = np.asarray(frames)
  else:
    frames = [np.asarray(one) for one in frames]
  sound = np.zeros(0, np.int16) if waveform is None else np.asarray(waveform)
  problems = [*_of_frames(frames), *_of_sound(sound, sample_rate, waveform is None)]
  if times is not None and not problems:
    problems += _of_times(np.asarray(times), len(frames))
  if not isinstance(inputs, Inputs):
    problems.append(f"inputs must be those of a model, engine.about.inputs; they are {type(inputs).__name__}")
  if channel not in CHANNELS:
    problems.append(f"channel={channel!r}: choose one of {', '.join(CHANNELS)}")
  if problems:
    raise listed("this clip cannot be used", problems)
  taken, notes = _heard(_as_int16(sound), channel)
  rate = int(sample_rate or 0) if is_long_enough(len(taken), int(sample_rate or 0)) else 0
  seconds = len(taken) / rate if rate else 0.0
  if times is None:
    times = np.linspace(0.0, seconds or len(frames) * FRAME, len(frames) + 1)
  times = np.asarray(times, np.float64) - times[0]
  looked = look_over(iter(frames), finder)
  film = Film("", times[:-1], float(times[-1]), looked.sizes, looked.detections, None, (), looked.turned,
              cuts=looked.cuts)  # fmt: skip
  window = OpenWindow(film, Window(0.0, film.seconds, 0, len(frames)), inputs, finder)
  for number in window.chosen:
    window.take(number, np.ascontiguousarray(frames[number]), (), coded=coded)
  peak = int(np.abs(taken.astype(np.int32)).max(initial=0))
  return window.sample(inputs, taken, rate, seconds, peak, notes * bool(rate))


def _heard(pcm: Int16[np.ndarray, "C S"], channel: str) -> tuple[Int16[np.ndarray, "S"], tuple[str, ...]]:
  """The channel that is taken, and what there is to say of all."""
  names, all_channels, heard = names_of((), len(pcm)), Heard(), Heard(channel)
  all_channels.add(names, pcm, pcm[0])
  taken = take(pcm, names, channel, all_channels.loudest)
  heard.add(names, pcm, taken)
  return taken, heard.notes()


def _of_frames(frames: Any) -> Iterator[str]:
  """What is wrong with the pictures of a clip."""
  want = "frames must be uint8 RGB, (N, H, W, 3), at least one (files are for predict_video)"
  if isinstance(frames, np.ndarray) and (frames.ndim != 4 or not len(frames)):
    yield f"{want}; they are {frames.dtype} {frames.shape}"
    return
  if not len(frames):
    yield f"{want}; there are none"
  for shape, kind in dict.fromkeys((one.shape, one.dtype) for one in frames):
    advice = "multiply by 255, round and cast those of [0, 1]; " * (kind.kind == "f")
    if len(shape) != 3 or shape[-1] != 3 or not all(shape) or kind != np.uint8:
      yield f"{want}; {advice}one is {kind} {shape}"


def _of_sound(sound: np.ndarray, rate: Any, missing: bool) -> Iterator[str]:
  """What is wrong with the sound of a clip."""
  want = "waveform must be (S,) or (S, channels), int16 or floating point in [-1, 1]"
  if sound.ndim not in (1, 2) or (sound.ndim == 2 and not sound.shape[1]):
    yield f"{want}; it is {sound.shape}"
  elif sound.ndim == 2 and 0 < len(sound) < sound.shape[1]:
    yield f"waveform has {sound.shape[1]} channels of {len(sound)} samples: give it the other way round, waveform.T"
  if sound.dtype != np.int16 and sound.dtype.kind != "f":
    yield f"{want}; it is {sound.dtype}"
  elif sound.dtype.kind == "f" and not np.isfinite(sound).all():
    yield "waveform holds infinite or undefined (NaN) samples"
  elif sound.dtype.kind == "f" and (most := np.abs(sound).max(initial=0)) > LOUDEST:
    yield f"{want}; its largest sample is {most:g}: divide it by full scale, 32768 for samples of 16 bits"
  whole = isinstance(rate, int | float | np.integer | np.floating) and not isinstance(rate, bool)
  if (rate is not None or not missing) and (not whole or not rate >= LOWEST_RATE or rate != rate // 1):
    yield f"sample_rate={rate!r} must be a whole number of Hz, at least {LOWEST_RATE}"


def _of_times(times: np.ndarray, frames: int) -> Iterator[str]:
  if times.shape != (frames + 1,) or times.dtype.kind not in "fiu":
    yield (f"times must be ({frames + 1},) seconds, of the begin of each of {frames} frames and the end of the last; it is "
           f"{times.dtype} {times.shape}")  # fmt: skip
  elif not np.isfinite(times).all() or (np.diff(times) < 0).any() or times[0] == times[-1]:
    yield "times must be finite seconds that ascend"


def _as_int16(sound: np.ndarray) -> Int16[np.ndarray, "C S"]:
  """As `media` makes it of the samples of any decoder."""
  if sound.dtype.kind == "f":
    sound = np.clip(np.rint(sound * np.float32(32768)), -32768, 32767).astype(np.int16)
  return np.ascontiguousarray(sound.reshape(-1, *sound.shape[1:] or (1,)).T)
