"""What a video's numbers mean as light: HDR (HLG, PQ), BT.2020 and P3 become the BT.709 that encoders were trained on.

Sources: ITU-R BT.2100 (transfer curves of HLG and PQ), BT.2087 (BT.2020 to BT.709), SMPTE EG 432-1 (P3), ITU-T H.273
(the numbers of curves and primaries).
"""

import functools
import math
from typing import Any

import cv2
from jaxtyping import Float32, UInt8, UInt16
import numpy as np

# Of H.273's transfer characteristics, those that BT.709 is not like.
CURVES = {8: "linear light", 16: "PQ", 18: "HLG"}
REFUSED = {9: "a logarithmic curve", 10: "a logarithmic curve", 17: "the curve of digital cinema (SMPTE 428)"}
XYZ = 10
WIDE = {9: "BT.2020", 11: "DCI P3", 12: "Display P3"}  # of its colour primaries
# cd/m2 of diffuse white, which becomes the white of BT.709. Files put it at 203 (BT.2408) or, by older practice and many
# converters, at 100, and do not say which; from here either is an eighth of the signal off at most.
WHITE = 150.0
HLG_PEAK, HLG_GAMMA = 1000.0, 1.2  # of the display that HLG is made for
PQ_PEAK = 4000.0  # cd/m2 of the brightest light that PQ files are usually made with
KNEE = 0.8  # of white, from where on light is compressed, so that highlights keep their shape
TO_BT709 = {
  "BT.2020": ((1.6605, -0.5876, -0.0728), (-0.1246, 1.1329, -0.0083), (-0.0182, -0.1006, 1.1187)),
  "P3": ((1.2249, -0.2247, 0.0), (-0.0420, 1.0419, 0.0), (-0.0197, -0.0786, 1.0979)),
}
ROWS = 64  # converted at once, so that they stay in the processor's cache
LUMINANCE = np.array((0.2627, 0.6780, 0.0593), np.float32)  # of BT.2020


def change(curve: int | None, primaries: int | None) -> str | None:
  """What bringing it to BT.709 is called, as in "HDR (HLG, BT.2020) brought to BT.709"; None if there is nothing to do.

  Args:
    curve, primaries: numbers of H.273; None or 2 if the file does not say.
  Raises:
    ValueError: if no one can say what light the numbers mean.
  """
  if curve in REFUSED or primaries == XYZ:
    what = REFUSED.get(curve or 0, "the colours of digital cinema (XYZ)")
    raise ValueError(f"its pictures are in {what}; convert them to BT.709")
  said = ", ".join(filter(None, (CURVES.get(curve or 0), WIDE.get(primaries or 0))))
  return f"{'HDR' if curve in CURVES else 'wide colours'} ({said}) brought to BT.709" if said else None


def to_bt709(
  pixels: UInt16[np.ndarray, "H W 3"], curve: int | None, primaries: int | None
) -> UInt8[np.ndarray, "H W 3"]:
  """Pictures as a BT.709 screen should show them: RGB of 16 bits, full range, to 8 bits."""
  shown = np.empty(pixels.shape, np.uint8)
  for top in range(0, len(pixels), ROWS):
    shown[top : top + ROWS] = _rows_to_bt709(pixels[top : top + ROWS], curve or 0, primaries or 0)
  return shown


def _rows_to_bt709(pixels: np.ndarray, curve: int, primaries: int) -> np.ndarray:
  light = _to_light(curve)[pixels]
  factor: Any = None  # of all three colours of a pixel, so that hues stay
  if curve == 18:
    luminance = cv2.transform(light, LUMINANCE[None]).clip(1e-6)
    factor = cv2.pow(luminance, HLG_GAMMA - 1) * np.float32(HLG_PEAK / WHITE)
  if gamut := WIDE.get(primaries):
    light = cv2.transform(light, np.array(TO_BT709["BT.2020" if gamut == "BT.2020" else "P3"], np.float32))
  if curve in (16, 18):
    brightest = np.maximum(np.maximum(light[..., 0], light[..., 1]), light[..., 2]).clip(1e-6)
    factor = np.float32(1) if factor is None else factor
    brightest *= factor
    factor = factor * _compressed(brightest, (HLG_PEAK if curve == 18 else PQ_PEAK) / WHITE) / brightest
    light *= factor[..., None]
  # The inverse of BT.1886. (Beyond 255 and below 0 the conversion saturates.)
  return cv2.convertScaleAbs(cv2.pow(np.maximum(light, 0, out=light), 1 / 2.4), alpha=255)


def _compressed(light: np.ndarray, peak: float) -> np.ndarray:
  """The same below the knee, then a curve that reaches 1 at the peak with no corner at the knee."""
  room, above = np.float32(1 - KNEE), light > KNEE
  scale = np.float32((1 - KNEE) / (1 - math.exp(-(peak - KNEE) / (1 - KNEE))))
  light = light.copy()
  light[above] = np.float32(KNEE) + scale * (1 - np.exp((np.float32(KNEE) - light[above]) / room))
  return light


@functools.lru_cache
def _to_light(curve: int) -> Float32[np.ndarray, "65536"]:
  """Light for each of 65536 signals: 1 is diffuse white, of HLG the peak of the scene."""
  signal = np.arange(65536) / 65535
  if curve == 8:
    light = signal
  elif curve == 16:
    root = signal ** (1 / 78.84375)
    light = (np.maximum(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root)) ** (1 / 0.1593017578125)
    light *= 10_000 / WHITE
  elif curve == 18:
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    light = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
  else:
    light = signal**2.4
  return light.astype(np.float32)
