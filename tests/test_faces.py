"""The face of a clip: where the model comes from, detecting, following, smoothing, cutting; mostly without the model."""

from collections.abc import Iterator
import contextlib
import hashlib
import http.server
import itertools
from pathlib import Path
import threading
import time
import weakref

from clip_files import iterate_frames
from conftest import ROOT
import numpy as np
from PIL import Image
import pytest

from mma_dfer_jax.data import faces, yunet
from mma_dfer_jax.data.faces import Box
from mma_dfer_jax.errors import UserError

# Lies beside the project on some machines: the model and clips are not ours to ship.
SHARED = ROOT.parent / "shared"


def box(x, y, side, score=0.9):
  """A square face around (x, y)."""
  return Box(x - side / 2, y - side / 2, x + side / 2, y + side / 2, score)


def track(at, x, y, side):
  return [(i, box(x, y, side)) for i in at]


def detections(path, frames=41, every=4):
  """One face per path(frame) -> list of boxes."""
  return [(i, path(i)) for i in range(0, frames, every)]


class Spots:
  """Stands in for the detector: a face is a filled square of at least 4 pixels in one of three colours."""

  colours = ((255, 0, 0), (0, 255, 0), (0, 0, 255))

  def __init__(self, model=None):
    del model

  def detect(self, frame):
    found = []
    for colour in self.colours:
      y, x = np.nonzero((frame == colour).all(axis=-1))
      if len(x) >= 4:
        found.append(Box(float(x.min()), float(y.min()), float(x.max() + 1), float(y.max() + 1), 0.9))
    return sorted(found, key=lambda face: -face.area)


@pytest.fixture
def finder(monkeypatch):
  """Makes a FaceFinder that finds spots."""
  monkeypatch.setattr(faces, "Detector", Spots)
  return lambda policy="follow", size=32: faces.FaceFinder(Path("none"), policy, size)


def spotted(*spots, height=120, width=200):
  """A grey frame with squares (colour, x, y, side); what leaves the frame is cut."""
  frame = np.full((height, width, 3), 90, np.uint8)
  for colour, x, y, side in spots:
    top, left = round(y - side / 2), round(x - side / 2)
    frame[max(0, top) : max(0, top + side), max(0, left) : max(0, left + side)] = Spots.colours[colour]
  return frame


# Linking


def test_two_faces_are_told_apart_in_whatever_order_they_are_found():
  def two(i):
    return [box(50 + i, 60, 30), box(120, 60 + i, 31)][:: 1 if i % 8 else -1]

  tracks = faces.link(detections(two))
  assert [[i for i, _ in one] for one in tracks] == [list(range(0, 41, 4))] * 2
  assert [{face.square[2] for _, face in one} for one in tracks] == [{31.0}, {30.0}]


@pytest.mark.parametrize(
  ("path", "number"),
  [
    (lambda i: [box(50, 60, 30)] if not 8 <= i < 28 else [], 1),  # 24 frames from one detection to the next
    (lambda i: [box(50, 60, 30)] if not 8 <= i < 32 else [], 2),
    (lambda i: [box(50 + 5 * i, 60, 30)], 1),  # 20 of 30 pixels between two detections
    (lambda i: [box(50 + 7 * i, 60, 30)], 11),
    (lambda i: [box(50, 60, 30 if i < 20 else 58)], 1),
    (lambda i: [box(50, 60, 30 if i < 20 else 62)], 2),  # a cut to a close-up
    (lambda i: [box(50 if i < 20 else 150, 60, 30)], 2),
    (lambda i: [], 0),
  ],
)
def test_where_a_track_ends(path, number):
  tracks = faces.link(detections(path))
  assert len(tracks) == number
  assert sum(map(len, tracks)) == sum(len(found) for _, found in detections(path))


# Choosing


def test_the_largest_face_over_time_is_followed_not_the_largest_in_one_frame():
  long, large = track(range(0, 41, 4), 50, 60, 40), track([20, 24], 150, 60, 60)
  assert faces.choose([large, long]) == [long]
  assert faces.choose([]) == []


def test_others_stand_in_only_where_the_largest_is_gone():
  main, other = track(range(12, 25, 4), 50, 60, 60), track(range(0, 41, 4), 150, 60, 30)
  assert faces.choose([other, main]) == [other[:3], main, other[7:]]


def test_a_single_detection_or_a_small_face_is_no_stand_in():
  main = track(range(12, 25, 4), 50, 60, 60)
  for other in (track([0], 150, 60, 50), track(range(0, 41, 4), 150, 60, 14)):
    assert faces.choose([main, other]) == [main]
    assert faces.choose([other]) == [other]  # but better than none


# Following and smoothing


def test_between_detections_the_movement_is_even_and_outside_the_box_stays():
  moving = [(8, box(10, 50, 20)), (12, box(18, 50, 20)), (20, box(34, 50, 20))]
  squares, found = faces.follow([moving], 30)
  assert np.flatnonzero(found).tolist() == list(range(8, 21))
  np.testing.assert_allclose(squares[8:21, 0], 10 + 2.0 * np.arange(13), atol=1e-9)
  np.testing.assert_allclose(squares[:8], [[10, 50, 20]] * 8)
  np.testing.assert_allclose(squares[21:], [[34, 50, 20]] * 9)


def test_after_a_cut_the_box_jumps():
  squares, found = faces.follow([track([0, 4, 8], 50, 60, 30), track([12, 16], 150, 60, 30)], 17)
  np.testing.assert_allclose(squares[:, 0], [50] * 11 + [150] * 6)
  assert np.flatnonzero(~found).tolist() == [9, 10, 11]


def test_smoothing_keeps_steady_movements_calms_trembling_and_loses_no_fast_face():
  for length in (1, 2, 5, 16, 100):
    steady = np.arange(length)[:, None] * [3.0, -1.0, 0.5] + [100.0, 200.0, 60.0]
    np.testing.assert_allclose(faces.smooth(steady), steady, atol=1e-9)
  trembling = np.array([100.0, 100.0, 80.0]) + np.random.default_rng(0).normal(0, 2, (200, 3))
  calm = faces.smooth(trembling)
  assert (np.diff(calm, axis=0).std(axis=0) < 0.1 * np.diff(trembling, axis=0).std(axis=0)).all()
  jump = np.full((60, 3), 50.0)
  jump[30:, 0] += 40
  assert np.abs(faces.smooth(jump) - jump).max() == pytest.approx(faces.SLACK * 50)


# Squares in frames


def test_squares_lie_inside_of_their_frames():
  rng = np.random.default_rng(0)
  sizes = rng.integers(1, 300, (500, 2))
  boxes = faces.fit(rng.uniform(-100, 400, (500, 3)), sizes)
  sides = boxes[:, 2:] - boxes[:, :2]
  assert ((boxes >= 0).all(), (boxes[:, 2:] <= sizes[:, ::-1]).all()) == (True, True)
  assert ((sides[:, 0] == sides[:, 1]) & (sides[:, 0] > 0)).all()
  squares = np.array([(100, 60, 40), (10, 60, 40), (210, 130, 40), (100, 60, 500)], float)
  inside = faces.fit(
    squares, np.tile([120, 200], (4, 1))
  ).tolist()  # moved, not padded; a close-up: as much as there is
  assert inside == [[80, 40, 120, 80], [0, 40, 40, 80], [160, 80, 200, 120], [40, 0, 160, 120]]


def test_union_holds_all_faces_of_all_frames():
  squares, found = faces.union([(0, [box(50, 60, 20), box(90, 60, 20)]), (4, []), (8, [box(60, 100, 40)])], 9)
  assert (squares == [70, 85, 70]).all()  # 40 to 100 and 50 to 120
  assert found.all()
  found = faces.union([(0, [box(50, 60, 20)]), (28, [box(50, 60, 20)]), (32, [])], 33)[1]
  assert np.flatnonzero(found).tolist() == [0, 28]


# Whole clips, with the stand-in


def test_every_fourth_frame_and_the_last_are_looked_at():
  for frames, looked_at in {1: [0], 4: [0, 3], 5: [0, 4], 10: [0, 4, 8, 9]}.items():
    found, sizes = faces.detect_every((spotted((0, 50, 50, 20)) for _ in range(frames)), Spots().detect)
    assert [i for i, _ in found] == looked_at
    assert sizes.tolist() == [[120, 200]] * frames


def test_a_moving_face_stays_in_the_middle_of_its_crop(finder):
  clip = [spotted((0, 40 + 2 * i, 60, 30), (1, 180, 20, 12)) for i in range(50)]
  crops, where = finder(size=33).crops(lambda: iter(clip))
  assert where.found.all()
  assert (where.boxes[:, 2] - where.boxes[:, 0] == 33).all()  # 30 and the margin: cut without resizing
  for crop, frame, (left, top, right, bottom) in zip(crops, clip, where.boxes, strict=True):
    np.testing.assert_array_equal(crop, frame[top:bottom, left:right])
    assert (crop == (255, 0, 0)).all(axis=-1).sum() == 900, "the whole face"
    assert not (crop == (0, 255, 0)).all(axis=-1).any()


def test_a_face_that_leaves_is_marked(finder):
  clip = [spotted((0, 60 - 4 * i, 60, 30)) for i in range(40)]
  crops, where = finder().crops(lambda: iter(clip))
  assert len(list(crops)) == 40
  assert where.found[:15].all()
  assert not where.found[25:].any()
  assert (where.boxes[25:] == where.boxes[24]).all()


@pytest.mark.parametrize("policy", faces.POLICIES)
def test_without_a_face_the_centre_is_cut_and_marked(finder, policy):
  clip = [spotted()] * 8 + [spotted(height=200, width=120)]
  crops, where = finder(policy).crops(lambda: iter(clip))
  assert where.share == 0
  assert where.boxes.tolist() == [[40, 0, 160, 120]] * 8 + [[0, 40, 120, 160]]
  assert [crop.shape for crop in crops] == [(32, 32, 3)] * 9


def test_union_cuts_every_frame_at_the_same_place(finder):
  clip = [spotted((0, 50, 60, 20), (1, 60 + i, 50, 10)) for i in range(41)]
  crops, where = finder("union").crops(lambda: iter(clip))
  assert where.boxes.tolist() == [[40, 25, 105, 90]] * 41
  assert all((crop == (255, 0, 0)).all(axis=-1).any() for crop in crops)
  assert where.share == 1


def test_frames_of_several_sizes_are_cut_inside_of_each(finder):
  clip = [spotted((0, 150, 60, 30))] * 6 + [spotted((0, 40, 30, 20), height=50, width=60)] * 6
  crops, where = finder().crops(lambda: iter(clip))
  assert [crop.shape for crop in crops] == [(32, 32, 3)] * 12
  assert (where.boxes[6:, 2] <= 60).all()


def test_memory_does_not_grow_with_the_clip(finder):
  alive: weakref.WeakSet = weakref.WeakSet()
  most = 0

  class Frame(np.ndarray):
    __hash__ = object.__hash__

  def clip() -> Iterator[np.ndarray]:
    nonlocal most
    for i in range(50):
      frame = spotted((0, 40 + 2 * i, 60, 30)).view(Frame)
      alive.add(frame)
      most = max(most, len(alive))
      yield frame

  assert len([crop.shape for crop in finder().crops(clip)[0]]) == 50
  assert most <= 3


def test_a_clip_that_is_empty_or_differs_the_second_time_is_refused(finder):
  with pytest.raises(ValueError, match="without frames"):
    finder().crops(lambda: iter([]))
  clips = [[spotted()] * 5, [spotted()] * 6]
  crops, _ = finder().crops(lambda: iter(clips.pop()))
  with pytest.raises(ValueError, match="longer"):
    list(crops)


def test_an_unknown_policy_or_size_is_refused(finder):
  for policy, size in (("largest", 32), ("follow", 0)):
    words = f"policy='{policy}', size={size}: choose follow or union, and 1 pixel"
    with pytest.raises(UserError, match=words):
      finder(policy, size)


# Where the model comes from

BYTES = b"stands in for the model" * 100


@pytest.fixture
def cache(monkeypatch, tmp_path):
  """The place that the model is kept at; the model is BYTES and has no address."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  monkeypatch.setenv("no_proxy", "*")
  monkeypatch.setattr(yunet, "MODEL_SHA256", hashlib.sha256(BYTES).hexdigest())
  monkeypatch.setattr(yunet, "MODEL_ADDRESSES", ())
  return tmp_path / "mma_dfer_jax" / yunet.MODEL_NAME


@contextlib.contextmanager
def served(monkeypatch, pages):
  """A server on this machine with pages {path: bytes, or seconds to wait}; its requests; all are tried in order."""
  requests = []

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      requests.append(self.path)
      page = pages[self.path]
      if isinstance(page, float):
        time.sleep(page)
      elif page is None:
        self.send_error(404)
      else:
        self.send_response(200)
        self.send_header("Content-Length", str(len(BYTES)))
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, *args):
      pass

  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
    addresses = tuple(f"http://127.0.0.1:{server.server_port}{path}" for path in pages)
    monkeypatch.setattr(yunet, "MODEL_ADDRESSES", addresses)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
      yield requests
    finally:
      server.shutdown()
      thread.join()


def test_the_model_is_fetched_once(monkeypatch, cache):
  with served(monkeypatch, {"/gone": None, "/model": BYTES}) as requests:
    assert yunet.face_model(None) == cache
    assert yunet.face_model(None) == cache
    assert requests == ["/gone", "/model"]
    cache.write_bytes(BYTES[:100])  # damaged
    assert yunet.face_model(None).read_bytes() == BYTES
    assert requests == ["/gone", "/model"] * 2
  assert [file.name for file in cache.parent.iterdir()] == [yunet.MODEL_NAME]
  assert yunet.face_model(None) == cache  # without the server


def test_what_is_not_the_model_is_not_kept(monkeypatch, cache):
  monkeypatch.setattr(yunet, "TIMEOUT", 0.2)
  for page, says in {
    b"x" * len(BYTES): "another sha256",
    BYTES[:500]: "more expected|another sha256",
    None: "404",
    0.5: "timed out",
  }.items():
    with served(monkeypatch, {"/model": page}), pytest.raises(UserError, match=says) as error:
      yunet.face_model(None)
    for word in ("--face_model=PATH", "http://127.0.0.1", str(cache)):
      assert word in str(error.value)
    assert not cache.parent.exists()


def test_no_network_no_place_and_a_relative_place(monkeypatch, cache, tmp_path):
  with served(monkeypatch, {"/model": BYTES}):
    cache.parent.write_text("a file where a folder should be")
    with pytest.raises(UserError, match="--face_model=PATH"):
      yunet.face_model(None)
    monkeypatch.setenv("XDG_CACHE_HOME", "here")  # ignored
    monkeypatch.setenv("HOME", str(tmp_path))
    assert yunet.face_model(None).parent == tmp_path / ".cache" / "mma_dfer_jax"
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
  with pytest.raises(UserError, match=r"refused.*--face_model=PATH.*download http"):
    yunet.face_model(None)


def test_a_given_file_that_is_no_model_is_refused_without_noise(tmp_path, capfd):
  path = tmp_path / "model.onnx"
  for data, says in {
    None: "No such file",
    b"": "is damaged, or OpenCV",
    b"not a model" * 100: "is damaged, or OpenCV",
    b"version https://git-lfs.github.com/spec/v1\noid": "only a pointer",
  }.items():
    if data is not None:
      path.write_bytes(data)
    with pytest.raises(UserError, match=says):
      yunet.face_model(path)
  assert capfd.readouterr() == ("", "")


# The real detector


@pytest.fixture(scope="module")
def model():
  """A model that the OpenCV of this machine reads: version 4 does not read those with dynamic sizes."""
  kept = Path.home() / ".cache" / "mma_dfer_jax" / yunet.MODEL_NAME
  for path in [*sorted((SHARED / "models").glob("*.onnx")), kept]:
    if path.exists():
      with contextlib.suppress(UserError):
        return yunet.face_model(path)
  pytest.skip(f"no face model in {SHARED / 'models'} or {kept.parent} that this OpenCV reads")


def shared_clips(folder):
  return sorted((SHARED / "clips" / folder).glob("*.mp4")) or pytest.skip(f"no clips of {folder} in {SHARED}")


@pytest.fixture(scope="module")
def face(model):
  """A real face of 224 pixels, with little around it."""
  return next(iterate_frames(shared_clips("ravdess")[0]))


def scene(height, width, *pasted):
  """Coloured noise, soft and dim, with pictures pasted at (picture, x of centre, y of centre, side)."""
  rng = np.random.default_rng(0)
  small = Image.fromarray(rng.integers(40, 160, (12, 16, 3), dtype=np.uint8))
  frame = np.array(small.resize((width, height), Image.Resampling.BICUBIC))
  for picture, x, y, side in pasted:
    picture = np.asarray(Image.fromarray(picture).resize((side, side)))
    left, top = x - side // 2, y - side // 2
    cut_left, cut_top = max(0, -left), max(0, -top)
    target = frame[top + cut_top : top + side, left + cut_left : max(0, left + side)]
    target[:] = picture[cut_top:, cut_left:][: target.shape[0], : target.shape[1]]
  return frame


def close(found, x, y, side):
  """Whether a box lies on a pasted face: centres within a fifth of its side, height within a third."""
  center_x, center_y, height = found.square
  return np.hypot(center_x - x, center_y - y) < side / 5 and abs(height - side) < side / 3


@pytest.mark.slow
def test_faces_in_frames_of_all_sizes(model, face):
  for height, width, side in (
    (720, 1280, 300), (720, 1280, 60), (4320, 7680, 900), (240, 180, 100), (90, 120, 40), (24, 24, 24),
  ):  # fmt: skip
    x, y = (width // 3, height // 2) if width > 24 else (12, 12)
    (found,) = faces.Detector(model).detect(scene(height, width, (face, x, y, side)))
    assert close(found, x, y, side)
    assert 0.6 < found.score <= 1


def test_several_tilted_and_no_faces(model, face, capfd):
  assert yunet.face_model(model) == model
  detector = faces.Detector(model)
  frame = scene(720, 1280, (face, 200, 300, 120), (face, 900, 350, 320), (face, 500, 500, 200))
  found = detector.detect(frame)
  for one, at in zip(found, [(900, 350, 320), (500, 500, 200), (200, 300, 120)], strict=True):  # by size
    assert close(one, *at)
  assert found == faces.Detector(model).detect(frame)
  for size in ((1, 1), (1, 5000), (5000, 1), (8, 8), (720, 1280)):
    assert detector.detect(scene(*size)) == []
  for angle in (-30, 30):
    tilted = Image.fromarray(face).rotate(angle, Image.Resampling.BILINEAR, fillcolor=(90, 90, 90))
    assert len(detector.detect(scene(360, 640, (np.asarray(tilted), 300, 180, 220)))) == 1
  assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_filmed_clips(model):
  detector = faces.Detector(model)
  for path in shared_clips("ravdess_hd"):
    clip = list(itertools.islice(iterate_frames(path), 41))
    crops, where = faces.FaceFinder(model).crops(lambda clip=clip: iter(clip))
    assert where.share == 1
    assert np.abs(np.diff(where.boxes, axis=0)).max() <= 6
    for crop in list(crops)[::20]:
      (found,) = detector.detect(crop)
      assert found.square[2] > 0.75 * 224
  crops, where = faces.FaceFinder(model).crops(lambda: iterate_frames(shared_clips("ravdess")[0]))
  assert where.share == 1
  assert (where.boxes == [0, 0, 224, 224]).all()  # cut already: left as they are
