"""Sound to log-mel spectrogram, as Kaldi computes it: what the Audio Encoder sees."""

from functools import lru_cache
import math
from typing import Any

import cv2
from jaxtyping import Float, Int16
import numpy as np

# Mean and doubled standard deviation of log-mel energies in AudioSet; original: video_dataloader.py.
ENERGY_MEAN, ENERGY_SCALE = 4.2677393, 2 * 4.5689974  # the mean is stored with its sign changed
ENERGY_FLOOR = np.float32(1.1920929e-07)  # float32 eps, Kaldi's floor before the logarithm
PRE_EMPHASIS = 0.97
LOWEST_FREQUENCY = 20.0  # Hz, lower edge of the first mel triangle
BLOCK = 32  # frames computed together: their buffers then stay in the processor's cache (twice as fast as all at once)


def window_and_hop(sample_rate: int) -> tuple[int, int]:
  """Samples in one 25 ms window and between the starts of two windows (10 ms).

  Raises:
    ValueError: if the sample rate is below 100 Hz, where a hop would be shorter than one sample.
  Source: torchaudio.compliance.kaldi, the same floating-point product: other ways to write it differ at odd rates.
  """
  if sample_rate < 100:
    raise ValueError(f"sample_rate={sample_rate} must be at least 100 Hz")
  return int(sample_rate * 25.0 * 0.001), int(sample_rate * 10.0 * 0.001)


def samples_for(rows: int, sample_rate: int) -> int:
  """Samples that so many rows are made of; none at a sample rate of 0, of a sound that is missing."""
  if not sample_rate:
    return 0
  window, hop = window_and_hop(sample_rate)
  return window + hop * (rows - 1)


def mel_triangles(sample_rate: int, padded: int, num_mel_bins: int) -> Float[np.ndarray, "K bins"]:
  """Weights of the mel filters: triangles that are equally spaced and straight-sided on the mel scale.

  Args:
    padded: length of the Fourier transform; its Nyquist bin belongs to no filter and is left out.
  Source: torchaudio.compliance.kaldi.get_mel_banks, in float32 like there.
  """
  lowest, highest = (1127.0 * math.log(1.0 + f / 700.0) for f in (LOWEST_FREQUENCY, sample_rate / 2))
  step = np.float32((highest - lowest) / (num_mel_bins + 1))
  corners = np.float32(lowest) + np.arange(num_mel_bins + 2, dtype=np.float32) * step
  left, centre, right = corners[:-2], corners[1:-1], corners[2:]  # (K,) each
  frequency = np.float32(sample_rate / padded) * np.arange(padded // 2, dtype=np.float32)[:, None]
  mel = np.float32(1127.0) * np.log(1 + frequency / np.float32(700.0))  # (padded / 2, 1)
  return np.maximum(0, np.minimum((mel - left) / (centre - left), (right - mel) / (right - centre))).T


@lru_cache(maxsize=8)
def _packed_triangles(sample_rate: int, padded: int, num_mel_bins: int) -> Any:
  """mel_triangles for the squares of what OpenCV makes of a real signal: bin 0, real and imaginary part of the others.

  (K, padded) float64, sparse: hardly 2 % of it is not zero, and a dense product would start BLAS threads that fight with
  those of the training step. The last column, the Nyquist bin, is 0.
  """
  try:
    from scipy.sparse import csr_array as sparse  # as slow to import as all else that a spectrogram needs
  except ImportError:  # where a file only answers
    sparse = SparseRows
  triangles = mel_triangles(sample_rate, padded, num_mel_bins)
  packed = np.zeros((num_mel_bins, padded))
  packed[:, 0] = triangles[:, 0]
  packed[:, 1:-1] = np.repeat(triangles[:, 1:], 2, axis=1)
  return sparse(packed)


class SparseRows:
  """Multiplies as scipy's csr_array, with the same bits: each row's products summed from left to right. Half as fast."""

  def __init__(self, matrix: Float[np.ndarray, "K N"]):
    count = np.count_nonzero(matrix, axis=1)
    self.order = np.argsort(-count, kind="stable")
    columns = np.argsort(matrix[self.order] == 0, axis=1, kind="stable")  # those of products come first
    fuller = [self.order[: np.count_nonzero(count > k)] for k in range(count.max())]  # rows with a product k
    self.steps = [
      (len(rows), at := columns[: len(rows), k], matrix[rows, at][:, None]) for k, rows in enumerate(fuller)
    ]

  def __matmul__(self, x: Float[np.ndarray, "N T"]) -> Float[np.ndarray, "K T"]:
    x, sums = np.ascontiguousarray(x), np.zeros((len(self.order), x.shape[1]))
    for rows, columns, weights in self.steps:
      sums[:rows] += weights * x[columns]
    return sums[np.argsort(self.order)]


def log_mel_fbank(
  waveform: Float[np.ndarray, "S"], sample_rate: int, *, num_mel_bins: int = 128, max_rows: int | None = None
) -> Float[np.ndarray, "F K"]:
  """Log-mel energies as Kaldi computes them, one row per 10 ms: (F, K) float32, natural logarithm of energy.

  The least is log(1.19e-7) = -15.94; F = 1 + (S - window) // hop, or 0 if the waveform is shorter than a window.

  Args:
    waveform: (S,) float32 or float64 in [-1, 1], one channel; its mean is removed first.
    sample_rate: Hz; window, hop and highest mel edge follow from it, nothing is resampled.
    max_rows: computes only so many rows, from the start.
  Raises:
    ValueError: if the sample rate is below 100 Hz, or the waveform is not 1-D, not floating point or not finite.
  Source: torchaudio.compliance.kaldi.fbank(htk_compat=True, use_energy=False, window_type="hanning", dither=0) as
    called in the original video_dataloader.py.
  """
  window, hop = window_and_hop(sample_rate)
  if waveform.ndim != 1 or waveform.dtype.kind != "f":
    raise ValueError(f"waveform must be 1-D floating point in [-1, 1], got {waveform.dtype} {waveform.shape}")
  if not np.isfinite(waveform).all():
    raise ValueError("waveform holds infinite or undefined (NaN) samples")
  if len(waveform) < window:
    return np.zeros((0, num_mel_bins), np.float32)
  padded = 1 << (window - 1).bit_length()  # Fourier transforms are taken over a power of two
  triangles = _packed_triangles(sample_rate, padded, num_mel_bins)
  hann = np.hanning(window)  # symmetric: the first and the last weight are 0
  # float64, because float32 transforms put nearly silent bins off by more than 1e-3.
  waveform = waveform.astype(np.float64)
  waveform -= waveform.mean()
  emphasised = waveform.copy()  # the first sample has no predecessor, but a window's first weight is 0
  emphasised[1:] -= PRE_EMPHASIS * waveform[:-1]
  windows = np.lib.stride_tricks.sliding_window_view
  frames, emphasised_frames = (windows(sound, window)[::hop][:max_rows] for sound in (waveform, emphasised))
  # Kaldi subtracts a window's mean before the emphasis, which leaves this much of it.
  offset = (1 - PRE_EMPHASIS) * frames.mean(axis=1, keepdims=True)
  energy = np.empty((len(frames), num_mel_bins), np.float32)
  padded_block = np.zeros((BLOCK, padded))
  # Rows that lie a power of two apart fall into the same lines of the cache: turning them took six times longer.
  spectra = np.empty((BLOCK, padded + 8))[:, :padded]
  for start in range(0, len(frames), BLOCK):
    block = emphasised_frames[start : start + BLOCK]
    windowed = padded_block[: len(block), :window]
    np.subtract(block, offset[start : start + BLOCK], out=windowed)
    windowed *= hann
    squares = spectra[: len(block)]
    cv2.dft(padded_block[: len(block)], squares, flags=cv2.DFT_ROWS)  # half the time of scipy.fft.rfft
    np.square(squares, out=squares)
    energy[start : start + BLOCK] = (triangles @ squares.T).T
  return np.log(np.maximum(energy, ENERGY_FLOOR))


def normalised(rows: Float[np.ndarray, "f K"], num_rows: int) -> Float[np.ndarray, "F K"]:
  """Rows of log energy padded with zeros to a fixed number, then brought to about zero mean and deviation 1/2.

  The padding becomes +0.467, louder than silence (-1.278): zeros are added before normalising, as in the original.
  """
  padded = np.pad(rows, ((0, num_rows - len(rows)), (0, 0)))
  return ((padded + np.float32(ENERGY_MEAN)) / np.float32(ENERGY_SCALE)).astype(np.float32)


def spectrogram(
  waveform: Float[np.ndarray, "S"], sample_rate: int, num_rows: int = 512, num_mel_bins: int = 128
) -> Float[np.ndarray, "F K"]:
  """The Audio Encoder's input: the first 5.12 s as normalised log-mel energies; a shorter sound is padded.

  Raises:
    ValueError: as log_mel_fbank, and if the waveform is shorter than one window of 25 ms.
  Source: video_dataloader.py; AudioMAE, dataset.py.
  """
  window, _ = window_and_hop(sample_rate)
  if len(waveform) < window:
    raise ValueError(
      f"the sound has {len(waveform)} samples at {sample_rate} Hz, shorter than one window of {window} samples (25 ms)"
    )
  rows = log_mel_fbank(waveform, sample_rate, num_mel_bins=num_mel_bins, max_rows=num_rows)
  return normalised(rows, num_rows)


def rate_difference(
  waveform: Int16[np.ndarray, "S"], sample_rate: int, other: int, audio_shape: tuple[int, int]
) -> float:
  """Mean absolute difference between a sound's spectrogram and that of the same sound at another sample rate, in Hz.

  Over the rows that both have, the padding left out. 6 dB more or less make 0.15. NaN where SciPy is not installed.
  """
  try:
    from scipy.signal import resample_poly  # slow to import
  except ImportError:
    return math.nan

  divisor = math.gcd(sample_rate, other)
  sound = waveform.astype(np.float32) / 32768.0
  resampled = resample_poly(sound, other // divisor, sample_rate // divisor).astype(np.float32)
  num_rows, bins = audio_shape
  both = (sound, sample_rate), (resampled, other)
  rows, others = (log_mel_fbank(*one, num_mel_bins=bins, max_rows=num_rows) for one in both)
  shared = min(len(rows), len(others))
  return float(np.abs(rows[:shared] - others[:shared]).mean()) / ENERGY_SCALE if shared else 0.0


def missing_spectrogram(num_rows: int = 512, num_mel_bins: int = 128) -> Float[np.ndarray, "F K"]:
  """What the original feeds for a clip without a sound file: no rows but padding, (F, K) float32 of 0.46703."""
  return normalised(np.zeros((0, num_mel_bins), np.float32), num_rows)
