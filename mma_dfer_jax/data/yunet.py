"""Where faces are in a picture: YuNet's file, and what it finds. Coordinates are pixels of the whole frame."""

import hashlib
import http.client
import math
import os
from pathlib import Path
import tempfile
import threading
from typing import Any, NamedTuple
import urllib.request

import cv2
from jaxtyping import UInt8
import numpy as np

from mma_dfer_jax.disk import sha256_of
from mma_dfer_jax.errors import UserError

# The same bytes in two places: OpenCV's zoo, and their author's repository under the name yunet_s_640_640.onnx.
MODEL_NAME = "face_detection_yunet_2023mar.onnx"
MODEL_SHA256 = "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4"
MODEL_ADDRESSES = (
  "https://media.githubusercontent.com/media/opencv/opencv_zoo/966be4cb6eefc2a4f586ed0581bf4bbaa2533070/models/"
  f"face_detection_yunet/{MODEL_NAME}",
  "https://raw.githubusercontent.com/ShiqiYu/libfacedetection.train/0047ac24afb1a50a0c6105001c89d1b5b805dbf1/onnx/"
  "yunet_s_640_640.onnx",
)
MODEL_BYTES = 2**22  # most that is read from an address: the file has 232,589
TIMEOUT = 10.0  # seconds without an answer

SCORE = 0.6  # least score of a face: upright faces have 0.9, heads tilted by 40 degrees 0.6 to 0.85
OVERLAP = 0.3  # of two boxes of one face, of which the better is kept (YuNet's own setting)
# Longer side of what the detector sees. At 640 it finds faces from 1/16 of the width to the whole frame; only where
# there is none it looks again, at five times the cost, for smaller ones. Smaller pictures are enlarged to 160.
SIDES, LEAST_SIDE = (640, 1280), 160
SHORTEST_SIDE = 64  # of what it sees, black added: with 32 and less OpenCV 4 reads memory that holds anything


class Box(NamedTuple):
  """A face as detected: it may reach beyond the frame."""

  left: float
  top: float
  right: float
  bottom: float
  score: float
  tilt: float = 0.0  # degrees by which the line from eye to eye is turned clockwise
  look: bytes = b""  # RGB of the face and what is around it, 4x4 coarse pixels; empty if nobody looked
  points: tuple[float, ...] = ()  # x, y of five points, in the order of `landmarks`

  @property
  def square(self) -> tuple[float, float, float]:
    """Centre (x, y) and longer side."""
    side = float(max(self.right - self.left, self.bottom - self.top))
    return (self.left + self.right) / 2, (self.top + self.bottom) / 2, side

  @property
  def area(self) -> float:
    return (self.right - self.left) * (self.bottom - self.top)


class Detector:
  """YuNet, run by OpenCV."""

  def __init__(self, model: Path):
    """Loads an ONNX file; raises UserError if it cannot be read or is another model."""
    self._lock = threading.Lock()  # two clips may be looked at beside each other
    try:
      data = model.read_bytes()
    except OSError as error:
      raise UserError(f"the face model {model} cannot be read: {error.strerror or error}") from error
    if data.startswith(b"version https://git-lfs"):
      raise UserError(f"the face model {model} is only a pointer to the file; download it again with Git LFS")
    logging: Any = getattr(cv2.utils, "logging", cv2)  # OpenCV 4 has these functions at the top
    level = logging.getLogLevel()
    logging.setLogLevel(0)  # it prints what it raises
    try:
      nothing, buffer = np.zeros(0, np.uint8), np.frombuffer(data, np.uint8)
      self._net = cv2.FaceDetectorYN.create("onnx", buffer, nothing, (64, 64), SCORE, OVERLAP)
      self._net.detect(np.zeros((64, 64, 3), np.uint8))  # other models fail only here
    except cv2.error as error:
      raise UserError(f"the face model {model} is damaged, or OpenCV {cv2.__version__} cannot read it as YuNet; "
                      f"{MODEL_ADDRESSES[0]} is a file that it reads") from error  # fmt: skip
    finally:
      logging.setLogLevel(level)

  def detect(self, frame: UInt8[np.ndarray, "H W 3"]) -> list[Box]:
    """Faces of a frame of any size, the largest first; the box of one that the frame cuts reaches beyond it."""
    height, width, _ = frame.shape
    longer, boxes = max(height, width), list[Box]()
    for side in SIDES:
      scale = min(side, max(longer, LEAST_SIDE)) / longer
      size = max(1, round(width * scale)), max(1, round(height * scale))
      seen = cv2.resize(frame, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
      right, below = (max(0, SHORTEST_SIDE - length) for length in size)
      seen = cv2.copyMakeBorder(seen, 0, below, 0, right, cv2.BORDER_CONSTANT)
      with self._lock:
        self._net.setInputSize((seen.shape[1], seen.shape[0]))
        rows = self._net.detect(cv2.cvtColor(seen, cv2.COLOR_RGB2BGR))[1]
      x, y = width / size[0], height / size[1]
      boxes = [Box(left * x, top * y, (left + w) * x, (top + h) * y, score,
                   math.degrees(math.atan2((points[3] - points[1]) * y, (points[2] - points[0]) * x)),
                   points=tuple(at * (y if i % 2 else x) for i, at in enumerate(points)))
               for left, top, w, h, *points, score in ([] if rows is None else rows.tolist())]  # fmt: skip
      if boxes or longer <= side:
        break
    return sorted(boxes, key=lambda box: (-box.area, box))


def face_model(path: Path | None) -> Path:
  """YuNet's file: the one given, else a copy in $XDG_CACHE_HOME/mma_dfer_jax (or ~/.cache), else downloaded once.

  Raises:
    UserError: if the given file is no YuNet model, or the public one cannot be downloaded or arrives with other bytes.
  """
  if path is not None:
    Detector(path)
    return path
  base = os.environ.get("XDG_CACHE_HOME", "")
  kept = Path(base if os.path.isabs(base) else os.path.expanduser("~/.cache"), "mma_dfer_jax", MODEL_NAME)
  if os.access(kept, os.R_OK) and kept.is_file() and sha256_of(kept) == MODEL_SHA256:
    return kept
  problem: Exception | None = None
  for address in MODEL_ADDRESSES:
    try:
      with urllib.request.urlopen(address, timeout=TIMEOUT) as answer:
        data = answer.read(MODEL_BYTES)
      if hashlib.sha256(data).hexdigest() != MODEL_SHA256:
        raise OSError(f"{address} has {len(data)} bytes with another sha256 than {MODEL_SHA256}")
      kept.parent.mkdir(parents=True, exist_ok=True)
      with tempfile.TemporaryDirectory(dir=kept.parent) as folder:  # others see the file whole or not at all
        Path(folder, MODEL_NAME).write_bytes(data)
        return Path(folder, MODEL_NAME).replace(kept)
    except (OSError, http.client.HTTPException) as error:  # all that goes wrong on a network is an OSError
      problem = error
  raise UserError(f"cannot download the face model ({problem}); give it with --face_model=PATH, or download "
                  f"{MODEL_ADDRESSES[0]} and put it at {kept}") from problem  # fmt: skip
