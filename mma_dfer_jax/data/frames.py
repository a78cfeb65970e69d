"""Pictures of a clip: which frames are used, how they are decoded, resized and augmented. All pixels are uint8 RGB."""

from collections.abc import Callable
from dataclasses import dataclass
import functools
import inspect
import math
import re
from typing import Any

import cv2
from jaxtyping import Float, Int, UInt8
import numpy as np
from PIL import Image, UnidentifiedImageError
import simplejpeg

from mma_dfer_jax.data.ends import ending_of
from mma_dfer_jax.data.pictures import Unclear, as_meant, ends_in_vain, quiet
from mma_dfer_jax.inputs import Inputs

JPEG_QUALITY = 95  # of frames that are taken from videos
CROP_ATTEMPTS = 10  # as torchvision's RandomResizedCrop and the original
LARGEST_PICTURE = 1 << 26  # pixels of a JPEG: small files may claim a size that fills the memory
# Of a JPEG that is not progressive. Some cameras leave its last three bytes, which say nothing there, unset.
SCAN_HEADER = re.compile(rb"(\xff\xda\x00(?:\x08\x01..|\x0c\x03.{6}))...", re.DOTALL)
UNEVEN = 2.0  # times as many frames a second in one quarter of a clip as in another: an uneven rate
# What may say, in front of the pixels of a JPEG, how they are meant.
TAGS = (b"Exif\0", b"ICC_PROFILE\0", b"http://ns.adobe.com/xap")
# What libraries say of pictures, by what is wrong with them.
CUT_SHORT = re.compile("(?i)truncated|premature end|not enough|only got|incomplete|more than one byte")
NOT_SUPPORTED = re.compile("(?i)not supported|unsupported|not available|unknown|conversion from")
ENDS_IN_ZEROS = "is damaged: it ends in zeros that its picture does not need"
WEIGHT_BITS = 22  # of Pillow's fixed-point weights (Resample.c: 32 bits less 8 of the pixel and 2 to spare)


def sample_frames(
  num_frames: int, *, train: bool, rng: np.random.Generator | None = None, num_segments: int = 16
) -> Int[np.ndarray, "T"]:
  """Indices of the frames that stand for a clip, one per equal segment: its middle, or in training anywhere in it.

  A clip with fewer frames than segments gives all its frames, then repeats the last. Training cuts segments to whole
  frames, so that the last num_frames % T frames are never drawn, and 16 to 31 frames always give the first 16.

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


def sample_at_times(
  times: Float[np.ndarray, "E"], *, rng: np.random.Generator | None = None, num_segments: int = 16
) -> Int[np.ndarray, "T"]:
  """Indices of the frames that are shown in the middles of equal segments of time, or in training anywhere in them.

  `times` are the seconds at which frames begin, ascending, and at which the last one ends.
  """
  moments = np.arange(num_segments) + (0.5 if rng is None else rng.random(num_segments))
  seconds = times[0] + moments * (times[-1] - times[0]) / num_segments
  return np.clip(np.searchsorted(times[:-1], seconds, "right") - 1, 0, None)


def sample_with_stride(
  num_frames: int, stride: int, *, rng: np.random.Generator | None = None, num_segments: int = 16, view: int = 0, views: int = 1
) -> Int[np.ndarray, "T"]:  # fmt: skip
  """Indices of every `stride`-th frame of a part of a clip: of one of `views` parts spread over it, or in training of any.

  A single view is in the middle. Of a clip that is too short the last frame is repeated.

  Source: MAE-DFER's `kinetics.py`, `load_video` and `__getitem__`.
  """
  span = num_segments * stride
  if rng is None:
    every = np.arange(0, num_frames, stride)
    spare = max(len(every) - num_segments, 0)
    start = spare // 2 if views == 1 else int(view * spare / (views - 1))
    return every[np.minimum(start + np.arange(num_segments), len(every) - 1)]
  if num_frames > span:
    end = int(rng.integers(span, num_frames))
    return np.linspace(end - span, end, num_segments).clip(0, end - 1).astype(np.int64)
  whole = num_frames // stride
  index = np.concatenate([np.linspace(0, num_frames, whole), np.full(num_segments - whole, num_frames)])
  return index.clip(0, num_frames - 1).astype(np.int64)


def choose_frames(
  inputs: Inputs, num_frames: int, times: Any, *, rng: np.random.Generator | None = None,
  view: int | None = None,
) -> Int[np.ndarray, "T"]:  # fmt: skip
  """Indices of the frames of a clip that a model takes.

  Args:
    times: as `sample_at_times` takes them, needed by frame_choice=time only.
    view: which of `inputs.test_views` parts; None: the middle.
  """
  if inputs.frame_choice == "stride":
    how: dict[str, Any] = {"num_segments": inputs.num_frames}
    how |= {} if view is None else {"view": view, "views": inputs.test_views}
    return sample_with_stride(num_frames, inputs.frame_stride, rng=rng, **how)
  if inputs.frame_choice == "time":
    assert times is not None
    return sample_at_times(times, rng=rng, num_segments=inputs.num_frames)
  return sample_frames(num_frames, train=rng is not None, rng=rng, num_segments=inputs.num_frames)


def uneven_rate(times: Float[np.ndarray, "E"]) -> tuple[float, float] | None:
  """Frames a second in the densest and the rarest quarter of all frames, if they differ by more than a factor of two."""
  if len(times) < 5:
    return None
  quarters = np.diff(np.interp(np.linspace(0, len(times) - 1, 5), np.arange(len(times)), times)).clip(1e-6)
  most, least = ((len(times) - 1) / 4 / seconds for seconds in (quarters.min(), quarters.max()))
  return (most, least) if most > UNEVEN * least else None


def decode_frame(data: bytes) -> UInt8[np.ndarray, "H W 3"]:
  """The pixels of `decode_as_meant`."""
  return decode_as_meant(data)[0]


def decode_as_meant(data: bytes) -> tuple[UInt8[np.ndarray, "H W 3"], tuple[str, ...]]:
  """Pixels of an encoded picture, the same bits as PIL's convert("RGB"), and what was done to bring them to 8-bit sRGB.

  The latter concerns pictures of 16 bits, with transparent parts, a colour profile, or an orientation in EXIF.

  Raises:
    ValueError: if the bytes are no picture, a damaged or incomplete one (PIL and OpenCV fill up a JPEG with grey), or one
      whose white nobody knows.
  """
  try:
    pixels = None
    if data.startswith(b"\xff\xd8"):
      pixels = _decode_jpeg(data)
      before = data[: data.find(b"\xff\xda")]
      if pixels is not None and not any(tag in before for tag in TAGS):
        return pixels, ()
    elif fault := ending_of(data).fault:
      raise _Fault(fault)
    with quiet():
      found = as_meant(data, pixels)
      if data[8:12] in (b"WEBP", b"avif") and ends_in_vain(data):
        raise _Fault(ENDS_IN_ZEROS)
    return found
  except Exception as error:
    raise ValueError(f"{len(data)} bytes cannot be decoded as a picture: {_fault(data, error)}") from error


def frame_size(data: bytes | np.ndarray) -> tuple[int, int]:
  """Height and width of a picture as `decode_frame` gives it; most JPEGs are not decoded for it."""
  if isinstance(data, bytes) and data.startswith(b"\xff\xd8"):
    before = data[: data.find(b"\xff\xda")]
    if not any(tag in before for tag in TAGS):
      height, width, _, _ = simplejpeg.decode_jpeg_header(data)
      return height, width
  height, width, _ = (decode_frame(data) if isinstance(data, bytes) else data).shape
  return height, width


class _Fault(Exception):
  """What is wrong with a picture, in the words of `ends`."""


def _fault(data: bytes, error: Exception) -> str:
  """What is wrong with a picture: whatever a library raises, in the words that this program has for files."""
  words = " ".join(str(error).split()) or type(error).__name__
  if isinstance(error, Unclear) or not data:
    return words if data else "empty"
  if isinstance(error, _Fault):
    return f"it {words}"
  if isinstance(error, MemoryError):
    return "it does not fit into the memory that this process may use"
  if isinstance(error, UnidentifiedImageError):  # its text is the address of an object
    readers = (accept for _, accept in Image.OPEN.values() if accept)
    if not ending_of(data).known and not any(accept(data[:16]) is True for accept in readers):
      return "it is not supported: no picture, or of a kind that PIL does not read; convert it to PNG or JPEG"
    words = "its header cannot be read"
  if isinstance(error, NotImplementedError | Image.DecompressionBombError) or NOT_SUPPORTED.search(words):
    return f"it is not supported: {words}; convert it to PNG or JPEG"
  return f"it is {'cut short' if CUT_SHORT.search(words) else 'damaged'}: {words}"


def _decode_jpeg(data: bytes) -> UInt8[np.ndarray, "H W 3"] | None:
  """Decodes strictly: what libjpeg only warns of is an error here. The same bits as PIL, and faster; None of inks, which
  PIL turns into RGB.
  """
  height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
  if height * width > LARGEST_PICTURE:
    raise ValueError(f"it has {height * width:,} pixels, more than {LARGEST_PICTURE:,}")
  if colours in ("CMYK", "YCCK"):
    simplejpeg.decode_jpeg(data, "CMYK")
    return None
  try:
    return simplejpeg.decode_jpeg(data)
  except ValueError as error:
    if "Invalid SOS parameters" not in str(error):
      raise
  return simplejpeg.decode_jpeg(SCAN_HEADER.sub(rb"\1" + b"\x00\x3f\x00", data))


def is_cut(data: bytes) -> bool:
  """Whether a picture of a video in JPEG, or a WebP, ends early, which FFmpeg does not say; other faults it finds itself."""
  if data.startswith(b"RIFF"):
    return ends_in_vain(data)
  try:
    _decode_jpeg(data)
  except ValueError as error:
    return "premature end" in str(error).lower()
  return False


def encode_frame(pixels: UInt8[np.ndarray, "H W 3"]) -> bytes:
  """A frame as the JPEG that data sets keep of it."""
  bgr = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
  return cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()


def resize(
  frame: UInt8[np.ndarray, "h w 3"], size: int | tuple[int, int], out: UInt8[np.ndarray, "H W 3"] | None = None,
  *, flip: bool = False, cubic: bool = False,
) -> UInt8[np.ndarray, "H W 3"]:  # fmt: skip
  """PIL's bilinear or bicubic resize, the same bits; it averages when it makes smaller, and does not keep the aspect ratio.

  As PIL: first along x, then along y, rounded to 8 bits after each. PIL itself makes frames lower (bilinear), because
  Pillow 13 in some of these cases, unlike Pillow 11 and 12, takes y first; and does all where numba is missing: five times
  slower.

  Args:
    size: side of a square, or width and height.
    out: uint8 in C order, which the result is written to and which is returned; None for a new one.
    flip: whether to mirror left and right.
  """
  width, height = size if isinstance(size, tuple) else (size, size)
  out = np.empty((height, width, 3), np.uint8) if out is None else out
  same = frame.shape[:2] == (height, width)
  if not same and (cubic or frame.shape[0] <= height) and (mix := _compiled_mix()):
    # Both steps mix whole rows, which the compiler makes vector instructions of: for x the frame lies on its side.
    sideways = np.empty((width, frame.shape[0], 3), np.uint8)
    for pixels, weights, target in (
      (frame, pillow_weights(frame.shape[1], width, flip, cubic), sideways),
      (sideways, pillow_weights(frame.shape[0], height, cubic=cubic), out),
    ):
      mix(cv2.transpose(pixels).reshape(pixels.shape[1], -1), *weights, target.reshape(len(target), -1))
    return out
  if not same:
    kind = Image.Resampling.BICUBIC if cubic else Image.Resampling.BILINEAR
    frame = np.asarray(Image.fromarray(frame).resize((width, height), kind))
  out[...] = cv2.flip(frame, 1) if flip else frame
  return out


@functools.lru_cache(maxsize=2048)
def pillow_weights(
  old: int, new: int, backwards: bool = False, cubic: bool = False
) -> tuple[Int[np.ndarray, "N"], Int[np.ndarray, "N"], Int[np.ndarray, "N K"]]:
  """What PIL mixes each of N = `new` rows from, of `old` rows: triangles 2 rows wide or, making smaller, more; or cubics.

  Returns:
    (N,) int64 first row of each mix, (N,) int64 number of rows in it, (N, K) int32 weights in units of 2^-22; the last
    row first if `backwards`.
  Source: Pillow, Resample.c, precompute_coeffs and normalize_coeffs_8bpc, in the same order of float64 operations.
  """
  scale = old / new
  stretched = max(scale, 1.0)
  support = stretched * (2 if cubic else 1)
  centre = (np.arange(new) + 0.5) * scale
  first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
  count = np.minimum((centre + support + 0.5).astype(np.int64), old) - first
  place = np.arange(count.max())
  distance = np.abs((place + first[:, None] - centre[:, None] + 0.5) * (1.0 / stretched))
  weights = np.maximum(1.0 - distance, 0.0)
  if cubic:  # Keys', with a = -1/2, in the order of operations of Pillow's bicubic_filter
    x = distance
    near, far = ((-0.5 + 2.0) * x - (-0.5 + 3.0)) * x * x + 1, (((x - 5) * x + 8) * x - 4) * -0.5
    weights = np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))
  weights[place >= count[:, None]] = 0.0
  weights /= np.cumsum(weights, axis=1)[:, -1:]  # summed from left to right, as PIL
  fixed = (np.copysign(0.5, weights) + weights * (1 << WEIGHT_BITS)).astype(np.int32)
  if backwards:
    first, count, fixed = first[::-1].copy(), count[::-1].copy(), fixed[::-1].copy()
  return first, count, fixed


def _mix(rows, first, count, weights, out):
  """out[i] = sum of weights[i, j] * rows[first[i] + j], rounded to 8 bits. Integers: no order of sums matters."""
  # The greatest sum is (255 + 1/2) * 2^22, of cubics 1.3 times as much, < 2^31.
  sums = np.empty(rows.shape[1], np.int32)
  for i in range(len(out)):
    sums[:] = 1 << (WEIGHT_BITS - 1)
    for j in range(count[i]):
      row, weight = rows[first[i] + j], weights[i, j]
      for x in range(len(sums)):
        sums[x] += row[x] * weight
    for x in range(len(sums)):
      out[i, x] = min(max(sums[x] >> WEIGHT_BITS, 0), 255)  # cubics overshoot


@functools.cache
def _compiled_mix() -> Callable[..., None] | None:
  """_mix as machine code, made once per process in a fraction of a second; None without numba."""
  try:
    import numba  # slow to import: only when pixels are resized
  except ImportError:  # numba raises it, too, if it does not know this numpy yet
    return None
  byte, index = numba.uint8, numba.int64
  read_only = numba.types.Array(byte, 2, "C", readonly=True)  # such as PIL's pixels; takes others too
  signature = numba.void(read_only, index[::1], index[::1], numba.int32[:, ::1], byte[:, ::1])
  return numba.njit(signature, nogil=True)(inspect.unwrap(_mix))  # without the shape check of the tests


@dataclass(frozen=True, kw_only=True)
class Augment:
  """Ranges that the augmentation of a training clip is drawn from."""

  crop_scale: tuple[float, float] = (0.08, 1.0)  # share of the frame's area
  crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width / height, before they are swapped half of the time
  flip: float = 0.5  # probability of mirroring
  brightness: float = 0.5  # factor within 1 ± this
  rand_augment: int = 0  # operations of RandAugment that are chosen; see `augment.draw_effects`
  rand_magnitude: float = 7.0
  erase: float = 0.0  # probability of a box with noise


@dataclass(frozen=True)
class Augmentation:
  """What is done to every frame of one clip."""

  box: tuple[int, int, int, int]  # left, top, right, bottom of the crop in pixels
  brightness_factor: float
  flip: bool
  # None: the box is cut from the frame, then resized. Else the frame is first resized until its shorter side has so many
  # pixels, and the box, of the final size, is cut from that.
  shorter_side: int | None = None


def draw_augmentation(
  height: int, width: int, size: int, rng: np.random.Generator, ranges: Augment = Augment()
) -> Augmentation:
  """Draws one augmentation, for all frames of a clip. If no box fits in 10 attempts (very long frames): a square.

  `height` and `width` are the first frame's, into which the box fits, whatever the sizes of the others.

  Source: original video_transform.py: ColorJitter, GroupRandomSizedCrop, GroupRandomHorizontalFlip; same order of draws.
  """
  factor = rng.uniform(max(0.0, 1 - ranges.brightness), 1 + ranges.brightness)
  shorter_side = None
  for _ in range(CROP_ATTEMPTS):
    area = rng.uniform(*ranges.crop_scale) * height * width
    aspect = rng.uniform(*ranges.crop_ratio)
    crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    if rng.random() < 0.5:
      crop_width, crop_height = crop_height, crop_width
    if 0 < crop_width <= width and 0 < crop_height <= height:
      break
  else:
    width, height = _scaled(width, height, size)
    crop_width = crop_height = shorter_side = size
  left = int(rng.integers(width - crop_width, endpoint=True))
  top = int(rng.integers(height - crop_height, endpoint=True))
  box = (left, top, left + crop_width, top + crop_height)
  return Augmentation(box, float(factor), bool(rng.random() < ranges.flip), shorter_side)


def _scaled(width: int, height: int, shorter_side: int) -> tuple[int, int]:
  """Width and height after torchvision's Resize(shorter_side)."""
  longer_side = int(shorter_side * max(width, height) / min(width, height))
  return (shorter_side, longer_side) if width <= height else (longer_side, shorter_side)


def augment(
  frame: UInt8[np.ndarray, "h w 3"], augmentation: Augmentation, size: int,
  out: UInt8[np.ndarray, "H W 3"] | None = None,
) -> UInt8[np.ndarray, "H W 3"]:  # fmt: skip
  """Applies a clip's augmentation to one frame; where the box leaves it, the result is black. `out` as for resize.

  Cutting before resizing is not the same as PIL's resize(box=...), which looks at pixels outside of the box. Brightness
  comes first in the original; cutting first gives the same pixels and is faster.

  Source: original video_transform.py on PIL images; its brightness is a product in float32, cut at 255 and truncated.
  """
  factor = np.float32(augmentation.brightness_factor)
  table = np.minimum(factor * np.arange(256, dtype=np.float32), 255).astype(np.uint8)
  if augmentation.shorter_side is not None:
    frame = cv2.LUT(frame, table)
    frame = resize(frame, _scaled(frame.shape[1], frame.shape[0], augmentation.shorter_side))
  left, top, right, bottom = augmentation.box
  inside = frame[top:bottom, left:right]
  below, beside = bottom - top - inside.shape[0], right - left - inside.shape[1]
  pixels = np.pad(inside, ((0, below), (0, beside), (0, 0))) if below or beside else inside
  if augmentation.shorter_side is None:
    pixels = cv2.LUT(pixels, table)
  return resize(pixels, size, out, flip=augmentation.flip)


def move_points(
  points: Float[np.ndarray, "N 2"], frame: tuple[int, int], augmentation: Augmentation
) -> Float[np.ndarray, "N 2"]:
  """Where points of a frame are after `augment`: x and y as shares of width and height, before and after.

  `frame` is (height, width) of the frame before; a point that the box leaves out is not in [0, 1].
  """
  width, height = frame[1], frame[0]
  if augmentation.shorter_side is not None:
    width, height = _scaled(width, height, augmentation.shorter_side)
  left, top, right, bottom = augmentation.box
  moved = (points * (width, height) - (left, top)) / (right - left, bottom - top)
  return np.stack([1 - moved[:, 0], moved[:, 1]], axis=1) if augmentation.flip else moved
