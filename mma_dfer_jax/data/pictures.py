"""A picture file as it was meant to be seen: upright, in 8-bit sRGB, nothing transparent."""

import functools
import io
from typing import Any

import cv2
from jaxtyping import UInt8
import numpy as np
from PIL import Image, ImageCms

ORIENTATION = 0x0112  # the tag in EXIF
# What is done to rows and columns for showing, by the number in EXIF; 1 is upright.
UPRIGHT: dict[int, tuple[str, Any]] = {
  2: ("mirrored", lambda pixels: pixels[:, ::-1]),
  3: ("turned by 180 degrees", lambda pixels: pixels[::-1, ::-1]),
  4: ("mirrored", lambda pixels: pixels[::-1]),
  5: ("mirrored and turned", lambda pixels: pixels.transpose(1, 0, 2)),
  6: ("turned by 90 degrees", lambda pixels: np.rot90(pixels, -1)),
  7: ("mirrored and turned", lambda pixels: pixels.transpose(1, 0, 2)[::-1, ::-1]),
  8: ("turned by 270 degrees", lambda pixels: np.rot90(pixels, 1)),
}
OVER_BLACK = "transparent parts are shown on black"
SRGB_GAMMA = 0.45455  # as PNG says it
ALMOST = 0.1  # of the gamma: less is no other
SAME_COLOUR = (
  4  # levels of 255 by which the colours of a profile may differ from sRGB and still be those of sRGB
)


def as_meant(
  picture: Image.Image, pixels: UInt8[np.ndarray, "h w 3"] | None = None
) -> tuple[UInt8[np.ndarray, "H W 3"], tuple[str, ...]]:
  """Pixels of an opened picture, and what was done to them; `pixels` if they are decoded already.

  Raises:
    ValueError: if nobody knows which of its numbers is white.
    OSError, SyntaxError: whatever PIL raises at damaged pictures.
  """
  changes: list[str] = []
  profile = picture.info.get("icc_profile")
  try:  # damaged EXIF is no reason to refuse a picture
    turned = UPRIGHT.get(picture.getexif().get(ORIENTATION, 1))
  except Exception:
    turned = None
  if pixels is None:
    picture.load()  # (which turns TIFF upright)
    turned = turned if picture.format != "TIFF" else None
    picture = _in_8_bits(picture, changes)
    converted = profile and _in_srgb(profile, picture)
    if converted:
      picture, name = converted
      changes.append(f"colours of {name} brought to sRGB")
    pixels = np.asarray(picture.convert("RGB"))
    if picture.has_transparency_data:
      opaque = np.asarray(picture.convert("RGBA"))[..., 3:]
      if opaque.min() < 255:
        stored = picture.mode == "RGBA"  # for these the original's results are known
        pixels = pixels if stored else over_black(pixels, opaque)
        changes.append("transparent parts are shown as if they were not" if stored else OVER_BLACK)
    gamma = picture.info.get("gamma")
    if not profile and "srgb" not in picture.info and gamma and abs(gamma / SRGB_GAMMA - 1) > ALMOST:
      table = 255 * (np.arange(256) / 255) ** (SRGB_GAMMA / gamma)
      pixels = cv2.LUT(pixels, np.rint(table).astype(np.uint8))
      changes.append(f"gamma {gamma:g} brought to that of sRGB")
  elif profile and (converted := _in_srgb(profile, Image.fromarray(pixels))):
    pixels, name = np.asarray(converted[0]), converted[1]
    changes.append(f"colours of {name} brought to sRGB")
  if turned:
    how, turn = turned
    pixels = np.ascontiguousarray(turn(pixels))
    changes.append(f"{how}, as EXIF says")
  return pixels, tuple(changes)


def over_black(
  pixels: UInt8[np.ndarray, "H W 3"], opaque: UInt8[np.ndarray, "H W 1"]
) -> UInt8[np.ndarray, "H W 3"]:
  """What is seen of pixels that are opaque from 0 to 255."""
  return ((pixels.astype(np.uint16) * opaque + 127) // 255).astype(np.uint8)


def _in_8_bits(picture: Image.Image, changes: list[str]) -> Image.Image:
  """A picture of 16-bit greys with as many as a JPEG has."""
  sixteen = picture.mode.startswith("I;16") or (
    picture.mode == "I" and picture.format == "PPM"
  )  # whose white PIL sets
  if sixteen:
    changes.append("16-bit greys brought to 8 bits")
    reduced = Image.fromarray(
      ((np.asarray(picture).astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    )
    reduced.info = picture.info
    return reduced
  if picture.mode in ("I", "F"):
    kind = "whole numbers of 32 bits" if picture.mode == "I" else "floating-point numbers"
    raise ValueError(
      f"its pixels are {kind}, and nobody says which of them is white; save it with 8 or 16 bits"
    )
  return picture


def _in_srgb(profile: bytes, picture: Image.Image) -> tuple[Image.Image, str] | None:
  """The picture with the colours that its profile means, and the profile's name; None if it means sRGB, or nothing."""
  if picture.mode == "P":
    picture = picture.convert("RGBA" if picture.has_transparency_data else "RGB")
  mode = picture.mode
  found = _transform(profile, {"RGBA": "RGB", "LA": "L", "1": "L"}.get(mode, mode))
  if not found:
    return None
  transform, name = found
  if mode in ("RGBA", "LA"):
    alpha = picture.getchannel("A")
    shown = transform.apply(picture.convert(mode[:-1]))
    shown.putalpha(alpha)
    return shown, name
  return transform.apply(picture.convert("L") if mode == "1" else picture), name


@functools.lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> tuple[Any, str] | None:
  """From a profile to sRGB, and the profile's name; None if that changes nothing, or it is not one for such pictures."""
  try:
    meant = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    transform: Any = ImageCms.buildTransform(meant, ImageCms.createProfile("sRGB"), mode, "RGB")
    name = " ".join(ImageCms.getProfileDescription(meant).split())[:60] or "a colour profile"
  except (
    ImageCms.PyCMSError,
    OSError,
    ValueError,
    TypeError,
  ):  # damaged, or of other colours: browsers ignore it
    return None
  if mode != "CMYK":
    levels = np.linspace(0, 255, 6).round().astype(np.uint8)
    colours = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, -1, 3)
    test = Image.fromarray(colours if mode == "RGB" else np.arange(256, dtype=np.uint8)[None])
    before, after = (np.asarray(one.convert("RGB")).astype(int) for one in (test, transform.apply(test)))
    if np.abs(after - before).max() <= SAME_COLOUR:
      return None
  return transform, name
