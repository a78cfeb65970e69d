"""Resizing and brightness by our own loops against PIL: every bit the same, for thousands of sizes, boxes and factors."""

import io
import zlib

import cv2
import numpy as np
from PIL import Image, ImageEnhance, ImageOps
import pytest

from mma_dfer_jax.data import frames


def drawn_picture(rng, height, width):
  """Noise; black and white, where every rounding is at its limit; or smooth."""
  kind = rng.integers(3)
  if kind == 0:
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
  if kind == 1:
    return rng.integers(0, 2, (height, width, 3), dtype=np.uint8) * np.uint8(255)
  return np.broadcast_to(np.linspace(0, 255, width)[None, :, None], (height, width, 3)).astype(np.uint8)


@pytest.fixture(params=["numba", "without numba"])
def compiled(request, monkeypatch):
  if request.param == "without numba":
    monkeypatch.setattr(frames, "_compiled_mix", lambda: None)
  else:
    pytest.importorskip("numba")


@pytest.mark.parametrize(
  ("largest", "cubic"), [(8, False), (40, False), (300, False), (40, True), (300, True)]
)
def test_thousands_of_sizes_are_resized_as_by_pil(compiled, largest, cubic):
  rng = np.random.default_rng(largest)
  for i in range(800 if largest < 300 else 100):
    height, width, size = rng.integers(1, largest, 3, endpoint=True).tolist()
    pixels = drawn_picture(rng, height, width)
    pixels.setflags(write=i % 2 == 0)  # as PIL gives them for everything but ordinary JPEG
    video = np.full((3, size, size, 3), 7, np.uint8)
    frames.resize(pixels, size, video[1], cubic=cubic)  # written there, and nowhere else
    kind = Image.Resampling.BICUBIC if cubic else Image.Resampling.BILINEAR
    expected = np.asarray(Image.fromarray(pixels).resize((size, size), kind))
    np.testing.assert_array_equal(video[1], expected, err_msg=f"{width}x{height} to {size}")
    assert (video[[0, 2]] == 7).all()


def test_whole_augmentations_are_those_of_pil(compiled):
  rng = np.random.default_rng(1)
  squares = 0
  for _ in range(300):
    height, width, size = rng.integers(1, 90, 3).tolist()
    drawn = frames.draw_augmentation(height, width, size, rng)
    if rng.random() < 0.2:  # a frame of another size: padded with black, or cut at the same place
      height, width = rng.integers(1, 90, 2).tolist()
    frame = drawn_picture(rng, height, width)
    image = ImageEnhance.Brightness(Image.fromarray(frame)).enhance(drawn.brightness_factor)
    if drawn.shorter_side is None:
      image = image.crop(drawn.box).resize((size, size), Image.Resampling.BILINEAR)
    else:
      longer = int(size * max(width, height) / min(width, height))
      scaled = (size, longer) if width <= height else (longer, size)
      squares += 1
      image = image.resize(scaled, Image.Resampling.BILINEAR).crop(drawn.box)
    expected = np.asarray(image)[:, ::-1] if drawn.flip else np.asarray(image)
    frame.setflags(write=False)  # the caller's pixels stay
    out = np.full((size, size, 3), 7, np.uint8)
    assert frames.augment(frame, drawn, size, out) is out
    np.testing.assert_array_equal(out, expected, err_msg=str(drawn))
  assert squares > 5, "long frames, in which no box fits"


def test_weights_are_whole():
  """Sums of 2^22 up to the rounding of each: no mix can leave 8 bits."""
  for old, new in ((1, 224), (7, 3), (224, 224), (100, 224), (1000, 10), (65, 64)):
    first, count, weights = frames.pillow_weights(old, new)
    assert ((first >= 0) & (first + count <= old) & (weights >= 0).all(axis=1)).all()
    assert (np.abs(weights.sum(axis=1) - 2**22) <= weights.shape[1]).all()
    backwards = frames.pillow_weights(old, new, backwards=True)
    for one, other in zip((first, count, weights), backwards, strict=True):
      np.testing.assert_array_equal(one[::-1], other)


def encoded(image, kind="JPEG", **options):
  file = io.BytesIO()
  image.save(file, kind, **options)
  return file.getvalue()


def with_few_rows(png):
  """A whole PNG in all but its pixels: the compressed data of most of them are left out."""
  at = png.index(b"IDAT")
  size = int.from_bytes(png[at - 4 : at])
  few = b"IDAT" + png[at + 4 : at + 4 + size // 4]
  crc = zlib.crc32(few).to_bytes(4)
  return png[: at - 4] + (len(few) - 4).to_bytes(4) + few + crc + png[at + 8 + size :]


def test_every_kind_of_picture_is_decoded_as_by_pil_and_damaged_ones_are_refused():
  image = Image.fromarray(drawn_picture(np.random.default_rng(3), 60, 50))
  exif = Image.Exif()
  exif[0x112] = 6  # "rotate by 90 degrees to show"
  ordinary = [
    encoded(image), encoded(image.convert("L")), encoded(image, progressive=True), encoded(image, exif=exif),
    encoded(image, comment=b"\xff\xd9\xff\xc0 not a header"), encoded(image, subsampling=0, icc_profile=b"x" * 70_000),
    cv2.imencode(".jpg", np.asarray(image))[1].tobytes(),
  ]  # fmt: skip
  other = [encoded(image.convert("CMYK")), encoded(image, "BMP"), encoded(image) + b"more"]
  other += [encoded(image.convert(mode), "PNG") for mode in ("RGB", "RGBA", "P", "L", "LA", "1")]
  png, jpeg = other[3], ordinary[0]
  broken = [b"", b"no picture", b"\xff\xd8\xff\xd9", b"\xff\xd8" + b"\xff\xe0\x00\x00" * 9 + b"\xff\xd9",
            b"\xff\xd8\xff\xc0\xff\xd9", jpeg[:-2], jpeg[:100], png[: len(png) // 2], png[:40]]  # fmt: skip
  scan = jpeg.index(b"\xff\xda")
  other += [jpeg[: scan + 11] + bytes(3) + jpeg[scan + 14 :]]  # as some cameras leave it
  half, cmyk = jpeg[: len(jpeg) // 2], other[0]
  broken += [half + bytes(len(jpeg) - len(half) - 2) + b"\xff\xd9", half + b"\xff\xd9",
             cmyk[: len(cmyk) // 2] + b"\xff\xd9", other[1][:-2], with_few_rows(png)]  # fmt: skip
  for data in ordinary + other:
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    np.testing.assert_array_equal(frames.decode_frame(data), expected)
  huge = bytearray(jpeg)
  at = huge.index(b"\xff\xc0") + 5
  huge[at : at + 4] = b"\xff\xff\xff\xff"  # 65535 x 65535 pixels in a few hundred bytes
  for data in [*broken, jpeg[: len(jpeg) // 2], bytes(huge)]:
    with pytest.raises(ValueError, match=f"^{len(data)} bytes cannot be decoded"):
      frames.decode_frame(data)
