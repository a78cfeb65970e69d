"""Pictures and videos whose pixels are stored otherwise than they are meant; frames chosen by time; turned faces."""

from fractions import Fraction
import io
import struct
import subprocess
import sys
import zlib

import av
from clip_files import manifest
from commands import load
from films import write_film
import numpy as np
from PIL import Image, ImageCms, ImageOps, features
import pytest

from mma_dfer_jax.data import faces
from mma_dfer_jax.data.data_set import open_data_set
from mma_dfer_jax.data.frames import decode_as_meant, decode_frame, sample_at_times, uneven_rate
from mma_dfer_jax.data.media import MediaError, iterate_pictures
from mma_dfer_jax.data.pipeline import make_example
from mma_dfer_jax.data.sources import clips
from mma_dfer_jax.errors import UserError
from mma_dfer_jax.inputs import Inputs

prepare = load("data.prepare")
AVIF = ["AVIF"] * bool(features.check("avif"))  # of Pillow 11.3
RAMP = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(8, axis=0)
COLOURS = np.asarray(
  Image.fromarray(np.random.default_rng(0).integers(0, 255, (10, 15, 3), dtype=np.uint8)).resize((60, 40))
)


def coded(pixels, form="PNG", **how):
  data = io.BytesIO()
  (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(data, form, **how)
  return data.getvalue()


@pytest.mark.parametrize(
  "data",
  [coded(RAMP), coded(RAMP, "TIFF"), coded(RAMP.astype(">u2"), "TIFF"), coded(RAMP.astype("i4"), "PPM")],
)
def test_sixteen_bits_stay_a_ramp(data):
  pixels, changes = decode_as_meant(data)
  np.testing.assert_array_equal(pixels, np.arange(256)[None, :, None].repeat(8, 0).repeat(3, 2))
  assert changes == ("16-bit greys brought to 8 bits",)


def test_numbers_whose_white_nobody_knows_are_refused():
  for pixels, kind in (
    (RAMP.astype("f4") / 65535, "floating-point"),
    (RAMP.astype("i4"), "whole numbers of 32 bits"),
  ):
    with pytest.raises(ValueError, match=f"{kind}.*which of them is white"):
      decode_frame(coded(pixels, "TIFF"))


def test_black_and_white():
  assert decode_frame(coded(np.eye(8) > 0))[0, :2].tolist() == [[255] * 3, [0] * 3]


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF", "WEBP", *AVIF])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_pictures(form, orientation):
  exif = Image.Exif()
  exif[0x0112] = orientation
  data = coded(COLOURS, form, exif=exif)
  with Image.open(io.BytesIO(data)) as picture:
    expected = np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
  pixels, changes = decode_as_meant(data)
  np.testing.assert_array_equal(pixels, expected)
  assert [change.endswith("as EXIF says") for change in changes] == [True] * (orientation > 1)


def test_transparent_parts():
  seen = np.dstack([COLOURS, np.full(COLOURS.shape[:2], 255, np.uint8)])
  assert decode_as_meant(coded(seen))[1] == ()
  seen[:5, :, 3] = 0
  pixels, changes = decode_as_meant(coded(seen))
  np.testing.assert_array_equal(pixels, COLOURS)  # as the original
  assert changes == ("transparent parts are shown as if they were not",)
  palette = Image.fromarray(COLOURS).quantize(16)
  hidden = np.asarray(palette) == 3
  pixels, changes = decode_as_meant(coded(palette, transparency=3))
  assert hidden.any()
  assert not pixels[hidden].any()
  np.testing.assert_array_equal(pixels[~hidden], np.asarray(palette.convert("RGB"))[~hidden])
  assert changes == ("transparent parts are shown on black",)
  assert decode_as_meant(coded(palette))[1] == ()


def profile(primaries, gamma):
  """An ICC profile (version 2) of RGB with these primaries as XYZ, adapted to D50, and this gamma."""

  def number(value):
    return round(value * 65536).to_bytes(4, "big", signed=True)

  white = (0.9642, 1.0, 0.8249)
  xyz = {name: b"XYZ \0\0\0\0" + b"".join(map(number, values))
         for name, values in zip((b"wtpt", b"rXYZ", b"gXYZ", b"bXYZ"), (white, *primaries), strict=True)}  # fmt: skip
  curve = b"curv\0\0\0\0\0\0\0\1" + round(gamma * 256).to_bytes(2, "big") + b"\0\0"
  text = b"desc\0\0\0\0\0\0\0\5Wide\0" + bytes(79 - 4 + 3)
  tags = xyz | {b"rTRC": curve, b"gTRC": curve, b"bTRC": curve, b"desc": text, b"cprt": b"text\0\0\0\0none"}
  table, body = b"", b""
  for name, data in tags.items():
    data += bytes(-len(data) % 4)
    table += name + (132 + 12 * len(tags) + len(body)).to_bytes(4, "big") + len(data).to_bytes(4, "big")
    body += data
  table = len(tags).to_bytes(4, "big") + table
  head = (
    bytes(4)
    + b"lcms\x02\x10\0\0mntrRGB XYZ "
    + bytes(12)
    + b"acsp"
    + bytes(28)
    + b"".join(map(number, white))
  )
  head = head.ljust(128, b"\0")
  whole = head + table + body
  return len(whole).to_bytes(4, "big") + whole[4:]


ADOBE = profile(((0.6097, 0.3111, 0.0195), (0.2053, 0.6257, 0.0609), (0.1492, 0.0632, 0.7446)), 2.2)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_colour_profiles(form):
  plain = decode_frame(coded(COLOURS, form))
  for harmless in (SRGB, b"damaged" * 40):
    pixels, changes = decode_as_meant(coded(COLOURS, form, icc_profile=harmless))
    np.testing.assert_array_equal(pixels, plain)
    assert changes == ()
  pixels, changes = decode_as_meant(coded(COLOURS, form, icc_profile=ADOBE))
  assert changes == ("colours of Wide brought to sRGB",)
  saturation = lambda pixels: np.ptp(pixels.astype(int), axis=-1).mean()  # noqa: E731
  assert saturation(pixels) > 1.05 * saturation(plain)  # Adobe's green is greener than its number says
  grey = np.full((8, 8, 3), 128, np.uint8)
  assert np.abs(decode_frame(coded(grey, form, icc_profile=ADOBE)).astype(int) - 128).max() <= 3


def png_with(pixels=COLOURS, **chunks):
  data, facts = coded(pixels), b""
  for name, value in chunks.items():
    body = name.encode() + value
    facts += struct.pack(">I", len(value)) + body + struct.pack(">I", zlib.crc32(body))
  return data[:33] + facts + data[33:]


def chromaticities(*xy):
  return struct.pack(">8I", *(round(100_000 * value) for value in xy))


P3 = (0.3127, 0.329, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06)
OWN = ("colours of other primaries (cHRM) brought to sRGB",)
WIDE = ("wide colours (Display P3) brought to BT.709",)


@pytest.mark.parametrize(
  ("chunks", "changes"),
  [({"cICP": bytes((1, 13, 0, 1))}, ()), ({"cICP": bytes((12, 13, 0, 1))}, WIDE), ({"cHRM": chromaticities(*P3)}, OWN),
   ({"gAMA": struct.pack(">I", 45455), "cHRM": chromaticities(*P3)}, OWN),
   ({"gAMA": struct.pack(">I", 45455), "cHRM": chromaticities(.3127, .329, .64, .33, .3, .6, .15, .06)}, ()),
   ({"sRGB": b"\0", "cHRM": chromaticities(*P3)}, ()), ({"cHRM": bytes(32)}, ()),
   ({"cICP": bytes((12, 13, 0, 1)), "gAMA": struct.pack(">I", 100_000)}, WIDE)],
)  # fmt: skip
def test_what_a_png_says_of_its_colours(chunks, changes):
  pixels, found = decode_as_meant(png_with(**chunks))
  assert found == changes
  # Of CSS Color 4: the matrix from linear Display P3 to linear sRGB.
  to_srgb = np.array(((1.22494, -0.22494, 0), (-0.04206, 1.04206, 0), (-0.01964, -0.07864, 1.09828)))
  stored = COLOURS / 255
  linear = np.where(stored <= 0.04045, stored / 12.92, ((stored + 0.055) / 1.055) ** 2.4)
  linear = (linear @ to_srgb.T).clip(0, 1)
  meant = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
  np.testing.assert_allclose(pixels, 255 * meant if changes else COLOURS, atol=1)


def test_colours_by_primaries_and_gamma_are_those_of_the_same_profile():
  adobe = {
    "gAMA": struct.pack(">I", 45471),
    "cHRM": chromaticities(0.3127, 0.329, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06),
  }
  differences = np.abs(
    decode_frame(png_with(**adobe)).astype(int) - decode_frame(coded(COLOURS, icc_profile=ADOBE))
  )
  assert differences.mean() < 2  # of 9: its curve is a power, and here that of sRGB


@pytest.mark.parametrize(("curve", "light"), [(16, 94.4), (18, 1000 * ((128 / 255) ** 2 / 3) ** 1.2)])
def test_light_of_pictures(curve, light):
  """PQ and HLG of PNG and AVIF, as of videos: half of the signal is so many cd/m2."""
  grey = np.full((32, 32, 3), 128, np.uint8)
  pictures = [png_with(grey, cICP=bytes((9, curve, 0, 1)))]
  for data in (coded(grey, form, quality=95) for form in AVIF):
    at = data.index(b"colrnclx") + 8
    pictures.append(data[:at] + struct.pack(">HH", 9, curve) + data[at + 4 :])
  for data in pictures:
    pixels, changes = decode_as_meant(data)
    np.testing.assert_allclose(pixels, 255 * (light / 150) ** (1 / 2.4), atol=3)
    assert changes == (f"HDR ({'PQ' if curve == 16 else 'HLG'}, BT.2020) brought to BT.709",)


@pytest.mark.parametrize(("facts", "says"), [((1, 9, 0, 1), "logarithmic"), ((1, 13, 1, 1), "matrix 1 of H.273"), ((10, 13, 0, 1), "XYZ")])  # fmt: skip
def test_colours_of_pictures_that_nobody_knows_are_refused(facts, says):
  with pytest.raises(ValueError, match=says):
    decode_frame(png_with(cICP=bytes(facts)))


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_a_picture_as_a_clip_has_its_colours(tmp_path, form):
  """In a process of its own: PyAV ended it after a PNG with a named profile."""
  path = tmp_path / f"a.{form.lower()}"
  path.write_bytes(coded(COLOURS, form, icc_profile=ADOBE))
  words = f"from mma_dfer_jax.data.media import iterate_pictures as i\nfor p in i({str(path)!r}): print(p.pixels().mean(), p.changes)"
  done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=False)
  assert (done.returncode, done.stderr) == (0, "")
  mean, changes = done.stdout.split(" ", 1)
  assert changes.strip() == "['colours of Wide brought to sRGB']"
  assert float(mean) == pytest.approx(decode_frame(path.read_bytes()).mean(), abs=1)


def film(path, pixels, fmt, *, codec="ffv1", aspect=None, count=2, **facts):
  """Frames of one colour (RGB of BT.709 is not assumed: planes are given as they are) with what the file says of them."""
  with av.open(str(path), "w") as container:
    stream = container.add_stream(codec, rate=10)
    height, width = pixels[0].shape
    stream.width, stream.height, stream.pix_fmt = width, height, fmt
    if aspect:
      stream.sample_aspect_ratio = stream.codec_context.sample_aspect_ratio = aspect
    for name, value in facts.items():
      setattr(stream.codec_context, name, value)
    for i in range(count):
      frame = av.VideoFrame(width, height, fmt)
      for plane, values in zip(frame.planes, pixels, strict=True):
        rows = np.zeros((plane.height, plane.line_size // values.itemsize), values.dtype)
        rows[:, : values.shape[1]] = values
        plane.update(rows.tobytes())
      frame.pts, frame.time_base = i, Fraction(1, 10)
      for name, value in facts.items():
        setattr(frame, name, value)
      container.mux(stream.encode(frame))
    container.mux(stream.encode())
  return path


def shown(path):
  picture = next(iterate_pictures(path))
  return picture.pixels(), picture


def planes(colour, red, blue, *, bits=8, full=False, size=(32, 48)):
  """Y, Cb, Cr of a colour (RGB from 0 to 1) by the matrix whose luma weights of red and blue are given."""
  r, g, b = colour
  y = red * r + (1 - red - blue) * g + blue * b
  cb, cr = (b - y) / (2 * (1 - blue)), (r - y) / (2 * (1 - red))
  low, luma, chroma = (
    (0, 2**bits - 1, 2**bits - 1) if full else (16 << bits - 8, 219 << bits - 8, 224 << bits - 8)
  )
  values = low + luma * y, 2 ** (bits - 1) + chroma * cb, 2 ** (bits - 1) + chroma * cr
  return [np.full(size, round(value), np.uint8 if bits == 8 else np.uint16) for value in values]


@pytest.mark.parametrize(
  ("matrix", "weights"), [(1, (0.2126, 0.0722)), (6, (0.299, 0.114)), (9, (0.2627, 0.0593))]
)
@pytest.mark.parametrize(("fmt", "bits"), [("yuv444p", 8), ("yuv444p10le", 10), ("yuv444p12le", 12)])
@pytest.mark.parametrize("full", [False, True])
def test_matrix_and_range_are_as_the_file_says(tmp_path, matrix, weights, fmt, bits, full):
  colour = (0.8, 0.3, 0.15)
  path = film(tmp_path / "a.mkv", planes(colour, *weights, bits=bits, full=full), fmt, colorspace=matrix,
              color_range=2 if full else 1)  # fmt: skip
  pixels, picture = shown(path)
  np.testing.assert_allclose(pixels[16, 24], np.array(colour) * 255, atol=3)
  assert picture.changes == []


@pytest.mark.parametrize(
  ("aspect", "size"), [((64, 45), (32, 68)), ((8, 9), (36, 48)), ((1001, 1000), (32, 48))]
)
@pytest.mark.parametrize("name", ["a.mkv", "a.mp4", "a.mov", "a.ts"])
def test_pixels_are_square(tmp_path, name, aspect, size):
  codec, fmt = ("mpeg2video", "yuv420p") if name == "a.ts" else ("libx264", "yuv444p")
  if codec == "mpeg2video" and aspect != (64, 45):
    pytest.skip("MPEG-2 only knows the shapes of screens")
  grey = planes((0.5, 0.5, 0.5), 0.2126, 0.0722)
  grey = [grey[0], *(plane[::2, ::2] for plane in grey[1:])] if fmt == "yuv420p" else grey
  pixels, picture = shown(film(tmp_path / name, grey, fmt, codec=codec, aspect=Fraction(*aspect), count=9))
  if codec == "libx264":
    assert pixels.shape == picture.shape == (*size, 3)
  assert any("aspect" in change for change in picture.changes) == (aspect != (1001, 1000))


def test_pixels_that_no_screen_shows_are_refused(tmp_path):
  path = film(
    tmp_path / "a.mkv", planes((0.5, 0.5, 0.5), 0.2, 0.1), "yuv444p", codec="libx264", aspect=Fraction(5, 1)
  )
  with pytest.raises(MediaError, match=r"a\.mkv: its pixels are said to be 5:1, which no screen shows"):
    shown(path)


@pytest.mark.parametrize(
  ("facts", "fmt", "bits", "words"),
  [({"color_trc": 18, "color_primaries": 9, "colorspace": 9}, "yuv444p10le", 10, "HDR (HLG, BT.2020) brought to BT.709"),
   ({"color_trc": 16, "color_primaries": 9, "colorspace": 9}, "yuv444p12le", 12, "HDR (PQ, BT.2020) brought to BT.709"),
   ({"color_trc": 1, "color_primaries": 12, "colorspace": 1}, "yuv444p", 8, "wide colours (Display P3) brought to BT.709")],
)  # fmt: skip
def test_light_is_that_of_bt709(tmp_path, facts, fmt, bits, words):
  grey = planes((0.5, 0.5, 0.5), 0.2627, 0.0593, bits=bits)
  pixels, picture = shown(film(tmp_path / "a.mkv", grey, fmt, color_range=1, **facts))
  assert picture.changes == [words]
  # Half of the signal: 1/12 of HLG's peak, 92 cd/m2 of PQ, and as it is without HDR.
  light = {18: 1000 * (1 / 12) ** 1.2, 16: 92.2}.get(facts["color_trc"])
  np.testing.assert_allclose(pixels, 255 * (light / 150) ** (1 / 2.4) if light else 128, atol=3)


@pytest.mark.parametrize(
  ("facts", "words"),
  [({"color_trc": 9}, "logarithmic"), ({"color_primaries": 10}, "digital cinema"), ({"colorspace": 8}, "matrix 8 of H.273")],
)  # fmt: skip
def test_light_that_nobody_knows_is_refused(tmp_path, facts, words):
  with pytest.raises(MediaError, match=words):
    shown(film(tmp_path / "a.mkv", planes((0.5, 0.5, 0.5), 0.2, 0.1), "yuv444p", **facts))


def test_transparent_parts_of_videos_are_black(tmp_path):
  colours = np.full((32, 48, 4), (200, 100, 50, 255), np.uint8)
  for opaque, expected, said in (
    (255, (200, 100, 50), []),
    (0, (0, 0, 0), ["transparent parts are shown on black"]),
  ):
    colours[:8, ..., 3] = opaque
    path = tmp_path / f"{opaque}.mov"
    with av.open(str(path), "w") as container:
      stream = container.add_stream("png", rate=10)
      stream.width, stream.height, stream.pix_fmt = 48, 32, "rgba"
      container.mux([*stream.encode(av.VideoFrame.from_ndarray(colours, format="rgba")), *stream.encode()])
    pixels, picture = shown(path)
    assert (tuple(pixels[0, 0]), tuple(pixels[31, 0]), picture.changes) == (expected, (200, 100, 50), said)


def test_frames_by_time():
  times = np.array([0, 0.1, 0.2, 0.3, 0.4, 2.4, 4.4])  # five in 0.4 s, one of 2 s, one of 2 s
  assert sample_at_times(times, num_segments=4).tolist() == [4, 4, 5, 5]
  assert sample_at_times(np.arange(33) / 25, num_segments=16).tolist() == list(range(1, 32, 2))
  drawn = np.stack([sample_at_times(times, rng=np.random.default_rng(i), num_segments=4) for i in range(200)])
  assert [sorted(set(column)) for column in drawn.T.tolist()] == [[0, 1, 2, 3, 4], [4], [4, 5], [5]]


def test_uneven_rates():
  assert uneven_rate(np.arange(30) / 25) is None
  assert uneven_rate(np.cumsum(np.r_[0, np.tile([0.03, 0.05], 20)])) is None
  most, least = uneven_rate(np.r_[np.arange(20) * 0.03, 0.6 + 0.2 * np.arange(17)])
  assert (round(most), round(least)) == (33, 5)


class Upright:
  """Sees a face, surest if the brightest row of the picture is its first."""

  def detect(self, frame):
    means = [frame[0].mean(), frame[:, -1].mean(), frame[-1].mean(), frame[:, 0].mean()]
    return [faces.Box(2, 2, 20, 20, 0.95 if np.argmax(means) == 0 else 0.7)]


@pytest.mark.parametrize("quarter", range(4))
def test_what_faces_show_of_the_orientation(quarter):
  picture = np.zeros((32, 32, 3), np.uint8)
  picture[0] = 255
  lookout = faces.Lookout(Upright().detect)
  for _ in range(6):
    lookout.detect(np.ascontiguousarray(np.rot90(picture, quarter)))  # so that it must be turned clockwise
  assert (f"turned by {90 * quarter} degrees clockwise" in lookout.turned()) == (quarter > 0)
  tilted = faces.Lookout(lambda frame: [faces.Box(2, 2, 20, 20, 0.95, -32.0)])
  tilted.detect(picture)
  assert "tilted by -30 degrees" in tilted.turned()


def test_what_prepare_says_of_clips(tmp_path, capsys):
  """The recipe, notes.txt and doctor name what clips needed; records keep the times of frames if asked."""
  grey = planes((0.5, 0.5, 0.5), 0.2126, 0.0722)
  film(tmp_path / "a.mp4", grey, "yuv444p", codec="libx264", aspect=Fraction(64, 45))
  times = [*(0.03 * i for i in range(20)), *(0.6 + 0.2 * i for i in range(16))]
  write_film(tmp_path / "b.mkv", [np.full((32, 32, 3), 6 * i, np.uint8) for i in range(36)], times=times)
  path = manifest(tmp_path, ["a.mp4,x,train", "b.mkv,y,test"])
  decoding = prepare.Decoding(allow_missing_sound=True, keep_times=True)
  prepare.prepare(clips.read(path, clips.Options()), "clips", tmp_path / "data", decoding, "m.csv")
  data_set = open_data_set(tmp_path / "data", "clips")
  what = "pixels are not square (aspect ratio 64:45): made square"
  assert data_set.recipe["pixels_as_meant"] == f"{what}: 1 clip"
  assert [names for note, names in data_set.notes() if note in (what, prepare.BY_NUMBER)] == [
    ["a.mp4"],
    ["b.mkv"],
  ]
  assert capsys.readouterr().out.count("the frame rate is uneven") == 1
  (record,) = data_set.records("test")
  by = {choice: make_example(record, Inputs(image_size=32, frame_choice=choice))["video"].mean((1, 2, 3)) / 6
        for choice in ("number", "time")}  # fmt: skip
  assert (by["number"] < 20).sum() == 9
  np.testing.assert_allclose(record["times"][:-1], times, atol=0.002)
  np.testing.assert_allclose(by["time"], sample_at_times(record["times"]), atol=0.5)
  del record["times"]
  with pytest.raises(UserError, match="--keep_times"):
    make_example(record, Inputs(frame_choice="time"))
  with pytest.raises(UserError, match=r"frame_choice='both': choose number, time or stride"):
    Inputs(frame_choice="both")
