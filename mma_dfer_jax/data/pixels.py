"""A picture of a video as it was meant to be seen: square pixels, upright, light and colours of BT.709, nothing transparent."""

from fractions import Fraction
import functools
import math
import struct
from typing import Any

import av
from av.video.reformatter import VideoReformatter
from jaxtyping import UInt8
import numpy as np
from PIL import Image

from mma_dfer_jax.data import light
from mma_dfer_jax.data.pictures import OVER_BLACK, in_srgb, over_black

ALMOST_SQUARE = 0.01  # a pixel wider or higher by less stays as it is
LONGEST_PIXEL = 4  # times as long as wide; the longest that any standard has is 64:27, of films on tape
# Of H.273's matrices from RGB to YUV, those that FFmpeg undoes; 0 is RGB itself, 2 and 3 say nothing.
MATRICES = {0, 1, 2, 3, 4, 5, 6, 7, 9}
CRASHING = ("png", "apng")  # PyAV may end the process after a look beside their pictures (named profiles)


class Picture:
  """One picture of a video, turned into pixels only when they are needed: `shape` (height, width, 3) as it is shown.

  `time` counts seconds since the first picture of the video; `duration` is 0 where the file says none; `changes` says what
  is done to its pixels because they are stored otherwise than they are meant, as in "HDR (HLG) brought to BT.709".

  Args:
    codec: what is decoded, for what frames do not say in PyAV 15.
    aspect: width of a pixel, divided by its height; None if the file does not say.
    converters: for colours and for what is transparent, the same for all pictures: making one takes ten times longer than
      using it.
    profile: of the colours (ICC), of a file that is a picture.
  Raises:
    ValueError: if nobody can say how it is meant.
  """

  def __init__(self, frame: av.VideoFrame, time: float, *, codec: av.VideoCodecContext, aspect: Fraction | None,
               converters: tuple[VideoReformatter, VideoReformatter], profile: bytes | None = None):  # fmt: skip
    self._profile, self._codec = profile, codec.name
    self._frame, self._converters, self.time = frame, converters, time
    self.duration = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else 0.0
    self.changes: list[str] = []
    of_rgb, self._transparent = _kind(frame.format.name)
    if not of_rgb and frame.colorspace not in MATRICES:
      raise ValueError(f"its colours are coded by matrix {int(frame.colorspace)} of H.273, which is not supported; convert "
                       "them to BT.709")  # fmt: skip
    said = (getattr(frame, name, getattr(codec, name)) for name in ("color_trc", "color_primaries"))
    self._light = tuple(map(int, said))
    self._meaning = light.change(*self._light)
    if self._meaning:
      self.changes.append(self._meaning)
    self._size = self._squared(aspect)
    a, b, c, d = self._orientation()
    self._sideways = abs(a) + abs(d) < abs(b) + abs(c)
    right, down = (c, b) if self._sideways else (a, d)
    self._order = (slice(None, None, -1 if down < 0 else 1), slice(None, None, -1 if right < 0 else 1))
    width, height = self._size
    self.shape = (width, height, 3) if self._sideways else (height, width, 3)

  def _squared(self, aspect: Fraction | None) -> tuple[int, int]:
    """Width and height in square pixels: the side that grows is the one that pixels are longer along."""
    width, height = self._frame.width, self._frame.height
    if not aspect or abs(aspect - 1) < ALMOST_SQUARE:
      return width, height
    said = f"{aspect.numerator}:{aspect.denominator}"
    if not 1 / LONGEST_PIXEL <= aspect <= LONGEST_PIXEL:
      raise ValueError(f"its pixels are said to be {said}, which no screen shows; correct the aspect ratio")
    self.changes.append(f"pixels are not square (aspect ratio {said}): made square")
    return (round(width * aspect), height) if aspect > 1 else (width, round(height / aspect))

  def _orientation(self) -> tuple[float, float, float, float]:
    """How pixels are turned and mirrored for showing: one at column x, row y is shown at column a x + c y, row b x + d y.

    To the nearest quarter turn; telephones film sideways.
    """
    try:
      if self._codec in CRASHING:
        raise ValueError
      side_data: Any = self._frame.side_data
      matrix = side_data.get("DISPLAYMATRIX")
    except ValueError:  # one of a kind that PyAV does not know, such as EXIF, hides all
      angle = math.radians(getattr(self._frame, "rotation", 0))
      return math.cos(angle), -math.sin(angle), math.sin(angle), math.cos(angle)
    if matrix is None:
      return 1.0, 0.0, 0.0, 1.0
    a, b, _, c, d, *_ = map(float, struct.unpack("=9i", bytes(matrix)))
    if a * d < b * c:
      self.changes.append("mirrored, as the file says")
    angle = math.degrees(math.atan2(b, a)) % 360
    if min(angle % 90, 90 - angle % 90) > 1:
      self.changes.append(f"turned by {angle:.0f} degrees in the file: shown at the nearest quarter turn")
    return a, b, c, d

  def pixels(self) -> UInt8[np.ndarray, "H W 3"]:
    """(H, W, 3) uint8 RGB."""
    colours, transparency = self._converters
    width, height = self._size
    size = {} if self._size == (self._frame.width, self._frame.height) else {"width": width, "height": height}
    form = "rgb48le" if self._meaning else "rgb24"
    pixels = colours.reformat(self._frame, format=form, **size).to_ndarray()
    if self._meaning:
      pixels = light.to_bt709(pixels, *self._light)
    elif self._profile and (converted := in_srgb(self._profile, Image.fromarray(pixels))):
      pixels = np.asarray(converted[0])
      self.changes.append(f"colours of {converted[1]} brought to sRGB")
    if self._transparent:
      opaque = transparency.reformat(self._frame, format="rgba", **size).to_ndarray()[..., 3:]
      if opaque.min() < 255:
        pixels = over_black(pixels, opaque)
        self.changes.append(OVER_BLACK)
    return np.ascontiguousarray((pixels.transpose(1, 0, 2) if self._sideways else pixels)[self._order])


@functools.lru_cache
def _kind(name: str) -> tuple[bool, bool]:
  """Of a format of pixels: whether it holds RGB or grey; whether some may be transparent."""
  form = av.VideoFormat(name)
  alpha = form.has_palette or any(one.is_alpha for one in form.components)
  return form.is_rgb or form.has_palette or len(form.components) < 3, alpha
