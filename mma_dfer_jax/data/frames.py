"""Pictures of a clip: which frames are used, how they are decoded, resized and augmented. All pixels are uint8 RGB."""

from dataclasses import dataclass
import io
import math

import cv2
from jaxtyping import Int, UInt8
import numpy as np
from PIL import Image

CROP_ATTEMPTS = 10  # as torchvision's RandomResizedCrop and the original


def sample_frames(
  num_frames: int, *, train: bool, rng: np.random.Generator | None = None, num_segments: int = 16
) -> Int[np.ndarray, "T"]:
  """Indices of the frames that stand for a clip, one per equal segment: its middle, or in training anywhere in it.

  A clip with fewer frames than segments gives all its frames, then repeats the last. Training cuts segments to whole
  frames, so that the last num_frames % T frames are never drawn, and 16 to 31 frames always give the first 16.

  Args:
    num_frames: frames in the clip.
    train: draw within each segment instead of taking the middle.
    rng: source of the draws; needed when train is set.
    num_segments: T.
  Returns:
    (T,) int, in ascending order.
  Raises:
    ValueError: if the clip has no frames, or train is set without rng.
  Source: video_dataloader.py, _get_train_indices and _get_test_indices, with one frame per segment.
  """
  if num_frames < 1:
    raise ValueError("a clip without frames cannot be sampled")
  segments = np.arange(num_segments)
  if train:
    if rng is None:
      raise ValueError("train=True needs rng")
    whole = num_frames // num_segments
    if whole > 0:
      return segments * whole + rng.integers(whole, size=num_segments)
  elif num_frames > num_segments:
    length = num_frames / num_segments
    return (length / 2 + length * segments).astype(np.int64)  # truncates, like the original's int()
  return np.minimum(segments, num_frames - 1)


def decode_frame(data: bytes) -> UInt8[np.ndarray, "H W 3"]:
  """Pixels of an encoded picture, the same bits as PIL's convert("RGB"); an orientation in EXIF is ignored, as by PIL.

  OpenCV decodes ordinary JPEG faster. What it treats differently is left to PIL: CMYK, 16-bit PNG, and JPEG that does
  not end in its end marker, which some versions fill up with grey instead of refusing it.

  Args:
    data: a whole JPEG, PNG or other file that PIL reads.
  Returns:
    (H, W, 3) uint8 RGB; greyscale is repeated, transparency dropped.
  Raises:
    ValueError: if the bytes are no picture, or an incomplete one.
  """
  try:
    with Image.open(io.BytesIO(data)) as picture:  # reads the header only
      if picture.format == "JPEG" and picture.mode in ("RGB", "L") and data.endswith(b"\xff\xd9"):
        flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        if pixels is not None:
          return pixels
      return np.asarray(picture.convert("RGB"))
  except (
    OSError,
    SyntaxError,
    Image.DecompressionBombError,
    cv2.error,
  ) as error:  # PIL calls broken PNG a SyntaxError
    raise ValueError(f"{len(data)} bytes cannot be decoded as a picture: {error}") from error


def resize(frame: UInt8[np.ndarray, "h w 3"], size: int) -> UInt8[np.ndarray, "H W 3"]:
  """A frame stretched to (size, size): the whole of the test transform. It does not keep the aspect ratio.

  Source: PIL bilinear, which averages when it makes smaller (OpenCV's does not); a frame of that size stays as it is.
  """
  return _resize(frame, size, size)


def _resize(frame: np.ndarray, width: int, height: int) -> np.ndarray:
  if frame.shape[:2] == (height, width):
    return frame
  return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BILINEAR))


@dataclass(frozen=True)
class Augmentation:
  """What is done to every frame of one clip.

  Attributes:
    box: left, top, right, bottom of the crop in pixels.
    brightness_factor: what pixels are multiplied with.
    flip: mirror left and right.
    shorter_side: None: the box is cut from the frame, then resized. Else the frame is first resized until its shorter
      side has so many pixels and the box, of the final size, is cut from that.
  """

  box: tuple[int, int, int, int]
  brightness_factor: float
  flip: bool
  shorter_side: int | None = None


def draw_augmentation(
  height: int,
  width: int,
  size: int,
  rng: np.random.Generator,
  *,
  scale: tuple[float, float] = (0.08, 1.0),
  ratio: tuple[float, float] = (3 / 4, 4 / 3),
  flip: float = 0.5,
  brightness: float = 0.5,
) -> Augmentation:
  """Draws one augmentation, to be used for all frames of a clip.

  Args:
    height: of the first frame; the box fits into that frame, whatever the sizes of the others.
    width: likewise.
    size: side of the final square in pixels.
    rng: source of the draws.
    scale: least and greatest share of the frame's area in the crop.
    ratio: least and greatest width / height of the crop, before width and height are swapped half of the time.
    flip: probability of mirroring.
    brightness: the factor is drawn between 1 - brightness and 1 + brightness.
  Returns:
    the augmentation. If no box fits in 10 attempts (very long frames), a square with the full shorter side.
  Source: original video_transform.py: ColorJitter, GroupRandomSizedCrop, GroupRandomHorizontalFlip; same order of draws.
  """
  factor = rng.uniform(max(0.0, 1 - brightness), 1 + brightness)
  for _ in range(CROP_ATTEMPTS):
    area = rng.uniform(*scale) * height * width
    aspect = rng.uniform(*ratio)
    crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    if rng.random() < 0.5:
      crop_width, crop_height = crop_height, crop_width
    if 0 < crop_width <= width and 0 < crop_height <= height:
      left, top = _corner(width - crop_width, height - crop_height, rng)
      box, shorter_side = (left, top, left + crop_width, top + crop_height), None
      break
  else:
    scaled_width, scaled_height = _scaled(width, height, size)
    left, top = _corner(scaled_width - size, scaled_height - size, rng)
    box, shorter_side = (left, top, left + size, top + size), size
  return Augmentation(box, float(factor), bool(rng.random() < flip), shorter_side)


def _corner(last_left: int, last_top: int, rng: np.random.Generator) -> tuple[int, int]:
  left = int(rng.integers(last_left, endpoint=True))
  return left, int(rng.integers(last_top, endpoint=True))


def _scaled(width: int, height: int, shorter_side: int) -> tuple[int, int]:
  """Width and height after torchvision's Resize(shorter_side)."""
  longer_side = int(shorter_side * max(width, height) / min(width, height))
  return (shorter_side, longer_side) if width <= height else (longer_side, shorter_side)


def augment(
  frame: UInt8[np.ndarray, "h w 3"], augmentation: Augmentation, size: int
) -> UInt8[np.ndarray, "H W 3"]:
  """Applies an augmentation to one frame.

  Cutting before resizing is not the same as PIL's resize(box=...), which looks at pixels outside of the box. Brightness
  comes first in the original; cutting first gives the same pixels and is faster.

  Args:
    frame: (h, w, 3) uint8. Where the box leaves it, the result is black.
    augmentation: as drawn for the clip's first frame.
    size: side of the final square, as given to draw_augmentation.
  Returns:
    (size, size, 3) uint8.
  Source: original video_transform.py on PIL images.
  """
  if augmentation.shorter_side is None:
    pixels = _resize(_brighten(_cut(frame, augmentation.box), augmentation.brightness_factor), size, size)
  else:
    height, width, _ = frame.shape
    scaled = _scaled(width, height, augmentation.shorter_side)
    pixels = _cut(_resize(_brighten(frame, augmentation.brightness_factor), *scaled), augmentation.box)
  return np.ascontiguousarray(pixels[:, ::-1]) if augmentation.flip else pixels


def _brighten(frame: np.ndarray, factor: float) -> np.ndarray:
  """PIL's ImageEnhance.Brightness: a product in float32, cut at 255, then truncated (not rounded)."""
  table = np.minimum(np.float32(factor) * np.arange(256, dtype=np.float32), 255).astype(np.uint8)
  return cv2.LUT(frame, table)


def _cut(frame: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
  """PIL's crop: black where the box leaves the frame."""
  left, top, right, bottom = box
  inside = frame[top:bottom, left:right]
  if inside.shape[:2] == (bottom - top, right - left):
    return inside
  cut = np.zeros((bottom - top, right - left, 3), np.uint8)
  cut[: inside.shape[0], : inside.shape[1]] = inside
  return cut
