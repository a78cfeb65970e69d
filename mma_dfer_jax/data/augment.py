"""RandAugment and random erasing: what a training clip may meet besides crop, flip and brightness. The same for all frames.

Sources: Cubuk et al. 2020 (arXiv 1909.13719) and Zhong et al. 2020 (1708.04896), in the ranges of timm's
"rand-m7-n4-mstd0.5-inc1" and `RandomErasing` in mode "pixel", as MAE-DFER uses them.
"""

from collections.abc import Callable
import dataclasses
import math
from typing import Any

from jaxtyping import UInt8
import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from mma_dfer_jax.data.frames import Augment

MOST, DEVIATION = 10.0, 0.5  # magnitudes reach from 0 to 10, and are drawn around the one that is asked for
APPLIED = 0.5  # probability of an operation that was chosen
GREY = (128, 128, 128)  # beyond the edges
ERASED_AREA, ERASED_ASPECT = (0.02, 1 / 3), 1 / 0.3  # share of the frame; how much longer than wide at most
ATTEMPTS = 10
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])  # of erased pixels: ImageNet's

Picture = Image.Image


def _moved(picture: Picture, *matrix: Any) -> Picture:
  size = picture.size
  return picture.transform(size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=GREY)


def _brightened(picture: Picture, amount: float) -> Picture:
  """Adds to the darker half of the values."""
  return picture.point([min(i + int(amount), 255) if i < 128 else i for i in range(256)] * 3)


def _enhanced(kind: Callable[[Picture], ImageEnhance._Enhance]) -> Callable[[Picture, float], Picture]:
  return lambda picture, amount: kind(picture).enhance(1 + amount)


# By name: the amount at the highest magnitude (of degrees, bits, values or shares), whether its sign is drawn, what it does.
OPERATIONS: dict[str, tuple[float, bool, Callable[[Picture, float], Picture]]] = {
  "autocontrast": (0, False, lambda picture, _: ImageOps.autocontrast(picture)),
  "equalize": (0, False, lambda picture, _: ImageOps.equalize(picture)),
  "invert": (0, False, lambda picture, _: ImageOps.invert(picture)),
  "rotate": (30, True, lambda picture, a: picture.rotate(a, Image.Resampling.BICUBIC, fillcolor=GREY)),
  "posterize": (4, False, lambda picture, a: ImageOps.posterize(picture, 4 - int(a))),
  "solarize": (256, False, lambda picture, a: ImageOps.solarize(picture, 256 - int(a))),
  "brighten_dark": (110, False, _brightened),
  "color": (0.9, True, _enhanced(ImageEnhance.Color)),
  "contrast": (0.9, True, _enhanced(ImageEnhance.Contrast)),
  "brightness": (0.9, True, _enhanced(ImageEnhance.Brightness)),
  "sharpness": (0.9, True, _enhanced(ImageEnhance.Sharpness)),
  "shear_x": (0.3, True, lambda picture, a: _moved(picture, 1, a, 0, 0, 1, 0)),
  "shear_y": (0.3, True, lambda picture, a: _moved(picture, 1, 0, 0, a, 1, 0)),
  "translate_x": (0.45, True, lambda picture, a: _moved(picture, 1, 0, a * picture.width, 0, 1, 0)),
  "translate_y": (0.45, True, lambda picture, a: _moved(picture, 1, 0, 0, 0, 1, a * picture.height)),
}


@dataclasses.dataclass(frozen=True)
class Effects:
  """What is done to every frame of one clip after it has its final size."""

  operations: tuple[tuple[str, float], ...]  # names, and amounts
  erased: tuple[slice, slice] | None  # rows and columns
  noise: UInt8[np.ndarray, "h w 3"] | None  # that is put there

  def __call__(self, frame: UInt8[np.ndarray, "H W 3"]) -> None:
    """Changes a frame in place."""
    if self.operations:
      picture = Image.fromarray(frame)
      for name, amount in self.operations:
        picture = OPERATIONS[name][2](picture, amount)
      frame[...] = picture
    if self.erased is not None and self.noise is not None:
      frame[self.erased] = self.noise


def draw_effects(size: int, rng: np.random.Generator, ranges: Augment) -> Effects:
  """Draws once for a clip whose frames have `size`² pixels; draws nothing of what is off."""
  operations, erase = ranges.rand_augment, ranges.erase
  chosen: list[tuple[str, float]] = []
  for name in rng.choice(list(OPERATIONS), operations).tolist() if operations else ():
    most, signed, _ = OPERATIONS[name]
    if rng.random() < APPLIED:
      amount = most * float(np.clip(rng.normal(ranges.rand_magnitude, DEVIATION), 0, MOST)) / MOST
      chosen.append((name, -amount if signed and rng.random() < 0.5 else amount))
  if not (erase and rng.random() < erase):
    return Effects(tuple(chosen), None, None)
  for _ in range(ATTEMPTS):
    area, aspect = rng.uniform(*ERASED_AREA) * size**2, ERASED_ASPECT ** rng.uniform(-1, 1)
    height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    if 0 < height < size and 0 < width < size:
      top, left = (int(rng.integers(size - length, endpoint=True)) for length in (height, width))
      noise = 255 * (MEAN + STD * rng.normal(size=(height, width, 3)))
      box = slice(top, top + height), slice(left, left + width)
      return Effects(tuple(chosen), box, noise.round().clip(0, 255).astype(np.uint8))
  return Effects(tuple(chosen), None, None)
