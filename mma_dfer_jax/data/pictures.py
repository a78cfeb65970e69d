"""A picture file as it was meant to be seen: upright, in 8-bit sRGB, nothing transparent."""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import functools
import io
import struct
from typing import Any
import warnings

import cv2
from jaxtyping import UInt8
import numpy as np
from PIL import Image, ImageCms

from mma_dfer_jax.data import light

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
# Gammas by which H.273's transfer characteristics count, as PNG says them; of others the curve is that of sRGB, or HDR.
GAMMAS, HDR = {4: 1 / 2.2, 5: 1 / 2.8, 8: 1.0}, (16, 18)
# x and y of white, red, green and blue, by the numbers of H.273.
BT709 = (0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
CHROMATICITIES = {9: (0.3127, 0.3290, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),
                  11: (0.314, 0.351, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06),
                  12: (0.3127, 0.3290, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06)}  # fmt: skip
SAME_PRIMARIES = 0.002  # by which they may differ
BRADFORD = np.array(((0.8951, 0.2664, -0.1614), (-0.7502, 1.7135, 0.0367), (0.0389, -0.0685, 1.0296)))
MANY_ZEROS = 32  # bytes at the end of a picture
SAME_COLOUR = 4  # levels of 255 by which a profile may differ from sRGB and still be sRGB


@contextlib.contextmanager
def quiet() -> Iterator[None]:
  """PIL warns of damaged EXIF and of large pictures on stderr; what matters is an error."""
  with warnings.catch_warnings():
    warnings.filterwarnings("ignore", module="PIL")
    yield


class Unclear(ValueError):
  """Nobody knows how a picture is meant: says why, and what to do."""


def as_meant(
  data: bytes, pixels: UInt8[np.ndarray, "h w 3"] | None = None
) -> tuple[UInt8[np.ndarray, "H W 3"], tuple[str, ...]]:
  """Pixels of an encoded picture, and what was done to them; `pixels` if they are decoded already.

  Raises:
    Unclear: if nobody knows which of its numbers is white, or which light they are.
    Exception: whatever PIL raises at damaged pictures.
  """
  with Image.open(io.BytesIO(data)) as picture:
    changes: list[str] = []
    coded = _coded(data, picture.format or "")
    profile = None if coded else picture.info.get("icc_profile")
    try:  # damaged EXIF is no reason to refuse a picture
      turned = UPRIGHT.get(picture.getexif().get(ORIENTATION, 1))
    except Exception:
      turned = None
    if pixels is None:
      if getattr(picture, "n_frames", 1) > 1:
        changes.append("the first of several pictures in a file")
      pixels = _decoded(picture, profile, changes)
      if coded:
        pixels = _of_code(pixels, *coded, changes)
      elif not profile and "srgb" not in picture.info:
        pixels = _of_png(pixels, picture.info, changes)
    elif profile and (converted := in_srgb(profile, Image.fromarray(pixels))):
      pixels, name = np.asarray(converted[0]), converted[1]
      changes.append(f"colours of {name} brought to sRGB")
    if turned:
      how, turn = turned
      if picture.format != "TIFF":  # which PIL turns upright itself
        pixels = np.ascontiguousarray(turn(pixels))
      changes.append(f"{how}, as EXIF says")
    return pixels, tuple(changes)


def _decoded(picture: Image.Image, profile: bytes | None, changes: list[str]) -> np.ndarray:
  """(H, W, 3) uint8 of a picture that is not decoded yet, in the colours of its profile and without what is transparent."""
  picture = _in_8_bits(picture, changes)
  if profile and (converted := in_srgb(profile, picture)):
    picture, name = converted
    changes.append(f"colours of {name} brought to sRGB")
  pixels = np.asarray(picture.convert("RGB"))
  if picture.has_transparency_data:
    opaque = np.asarray(picture.convert("RGBA"))[..., 3:]
    if opaque.min() < 255:
      stored = picture.mode == "RGBA"  # for these the original's results are known
      pixels = pixels if stored else over_black(pixels, opaque)
      changes.append("transparent parts are shown as if they were not" if stored else OVER_BLACK)
  return pixels


def _coded(data: bytes, form: str) -> tuple[int, int, int, int] | None:
  """Primaries, curve and matrix by H.273, and whether the range is full, where PNG (cICP) or AVIF (nclx) say them."""
  if form == "PNG" and (at := data.find(b"\0\0\0\4cICP", 0, data.find(b"IDAT"))) > 0:
    primaries, curve, matrix, full = data[at + 8 : at + 12]
    return primaries, curve, matrix, full
  own = b"colrprof" in data or b"colrrICC" in data  # a profile, which says more
  if form == "AVIF" and not own and (at := data.find(b"colrnclx")) > 0:
    primaries, curve = struct.unpack_from(">HH", data, at + 8)
    return primaries, curve, 0, 1  # PIL undoes the matrix and the range
  return None


def _of_code(
  pixels: np.ndarray, primaries: int, curve: int, matrix: int, full: int, changes: list[str]
) -> np.ndarray:
  if matrix:
    coded = f"its colours are coded by matrix {matrix} of H.273"
    raise Unclear(f"{coded}, which PNG does not have; save it as sRGB")
  if not full:
    pixels = cv2.LUT(pixels, ((np.arange(256) - 16) * 255 / 219).round().clip(0, 255).astype(np.uint8))
    changes.append("limited range brought to full")
  try:
    said = light.change(curve, primaries)
  except ValueError as error:
    raise Unclear(str(error)) from error
  if said and curve in HDR:
    pixels = light.to_bt709(pixels.astype(np.uint16) * 257, curve, primaries)
  elif said or curve in GAMMAS:
    pixels = _from_primaries(pixels, GAMMAS.get(curve), CHROMATICITIES.get(primaries, BT709))
  if said or curve in GAMMAS:
    changes.append(said or f"gamma {GAMMAS[curve]:.3g} brought to that of sRGB")
  return pixels


def _of_png(pixels: np.ndarray, said: Mapping[Any, Any], changes: list[str]) -> np.ndarray:
  """Colours by the primaries (cHRM) and the gamma (gAMA) of a PNG, if they are not those of sRGB."""
  gamma, own = said.get("gamma"), said.get("chromaticity")
  gamma = gamma if gamma and abs(gamma / SRGB_GAMMA - 1) > ALMOST else None
  if own and np.abs(np.subtract(own, BT709)).max() > SAME_PRIMARIES:
    with contextlib.suppress(np.linalg.LinAlgError, ZeroDivisionError):  # no colours: browsers ignore them
      pixels = _from_primaries(pixels, gamma, own)
      changes.append("colours of other primaries (cHRM) brought to sRGB")
  elif gamma:
    table = 255 * (np.arange(256) / 255) ** (SRGB_GAMMA / gamma)
    pixels = cv2.LUT(pixels, np.rint(table).astype(np.uint8))
  if gamma:
    changes.append(f"gamma {gamma:g} brought to that of sRGB")
  return pixels


def _from_primaries(pixels: np.ndarray, gamma: float | None, primaries: Sequence[float]) -> np.ndarray:
  """sRGB of pixels that count by other primaries (CHROMATICITIES), and by a gamma (None: the curve of sRGB).

  Source: IEC 61966-2-1; white is adapted by Bradford's matrix, as in ICC profiles.
  """

  def to_xyz(of: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    white, *colours = (np.array((x / y, 1, (1 - x - y) / y)) for x, y in zip(of[::2], of[1::2], strict=True))
    columns = np.stack(colours, axis=1)
    return columns * np.linalg.solve(columns, white), BRADFORD @ white

  (own, white), (srgb, d65) = to_xyz(primaries), to_xyz(BT709)
  adapted = np.linalg.solve(BRADFORD, np.diag(d65 / white) @ BRADFORD)
  matrix = np.linalg.solve(srgb, adapted @ own)
  x = np.arange(256) / 255
  curve = x ** (1 / gamma) if gamma else np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
  linear = cv2.transform(curve.astype(np.float32)[pixels], matrix.astype(np.float32)).clip(0, 1)
  encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * cv2.pow(linear, 1 / 2.4) - 0.055)
  return np.rint(255 * encoded).astype(np.uint8)


def ends_in_vain(data: bytes) -> bool:
  """Whether a still WebP or AVIF ends in zeros that its picture does not need.

  WebP's coded black may be zeros too: it is decoded again without a few of them, and the decoder misses those. AV1 codes
  nothing as many zeros; other items of the file may end in them.
  """
  if data[4:12] == b"ftypavif":
    at = data.rfind(b"mdat")
    last = at - 4 + int.from_bytes(data[at - 4 : at], "big") == len(data)
    return last and not (b"Exif" in data[:at] or b"mime" in data[:at]) and data.endswith(bytes(MANY_ZEROS))
  at = 12
  while (kind := data[at : at + 4]) not in (b"VP8 ", b"VP8L", b""):
    at += 8 + int.from_bytes(data[at + 4 : at + 8], "little") + 1 & ~1
  coded = data[at + 8 : at + 8 + int.from_bytes(data[at + 4 : at + 8], "little")]
  if not coded.endswith(bytes(MANY_ZEROS)):
    return False
  size = len(coded) - MANY_ZEROS // 2 & ~1
  still = b"WEBP" + kind + size.to_bytes(4, "little") + coded[:size]
  try:
    Image.open(io.BytesIO(b"RIFF" + len(still).to_bytes(4, "little") + still)).load()
  except Exception:
    return False
  return True


def over_black(
  pixels: UInt8[np.ndarray, "H W 3"], opaque: UInt8[np.ndarray, "H W 1"]
) -> UInt8[np.ndarray, "H W 3"]:
  """What is seen of pixels that are opaque from 0 to 255."""
  return ((pixels.astype(np.uint16) * opaque + 127) // 255).astype(np.uint8)


def _in_8_bits(picture: Image.Image, changes: list[str]) -> Image.Image:
  """A picture of 16-bit greys with as many as a JPEG has."""
  # Of PPM, PIL sets the white.
  if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format == "PPM"):
    changes.append("16-bit greys brought to 8 bits")
    greys = (np.asarray(picture).astype(np.uint32) * 255 + 32767) // 65535
    reduced = Image.fromarray(greys.astype(np.uint8))
    reduced.info = picture.info
    return reduced
  if picture.mode in ("I", "F"):
    kind = "whole numbers of 32 bits" if picture.mode == "I" else "floating-point numbers"
    raise Unclear(f"its pixels are {kind}, and nobody says which of them is white; save it with 8 or 16 bits")
  return picture


def in_srgb(profile: bytes, picture: Image.Image) -> tuple[Image.Image, str] | None:
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
  except (ImageCms.PyCMSError, OSError, ValueError, TypeError):  # damaged, or of other colours
    return None  # as in browsers
  if mode != "CMYK":
    levels = np.linspace(0, 255, 6).round().astype(np.uint8)
    colours = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, -1, 3)
    test = Image.fromarray(colours if mode == "RGB" else np.arange(256, dtype=np.uint8)[None])
    before, after = (np.asarray(one.convert("RGB")).astype(int) for one in (test, transform.apply(test)))
    if np.abs(after - before).max() <= SAME_COLOUR:
      return None
  return transform, name
