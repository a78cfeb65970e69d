"""The page's server: answers uploads and a live camera one at a time, and lets in only this machine's own page.

The page is static: page.html, page.css, page.js and page_sound.js. An upload and its answer are one request, answered by lines
of JSON: {"doing", "share"} while it goes on, then {"answer"} or {"error"}. Whoever goes away ends it.
"""

import base64
from collections.abc import Callable, Iterator
import contextlib
import dataclasses
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import itertools
import json
from pathlib import Path
import re
import socket
import tempfile
import threading
import time
from typing import Any
from urllib.parse import parse_qs, urlsplit

import cv2
import numpy as np

from mma_dfer_jax.data import media
from mma_dfer_jax.data.arrays import sample_of
from mma_dfer_jax.data.film import Sample
from mma_dfer_jax.engines.engine import Engine
from mma_dfer_jax.errors import UserError
from mma_dfer_jax.prediction import (
  Finder,
  Prediction,
  Timeline,
  described,
  finder_for_frames,
  person_samples,
  predict_samples,
  predict_timeline,
)
from mma_dfer_jax.summary import described as told
from mma_dfer_jax.summary import summarise
from mma_dfer_jax.timeline import of_person

HOST = "127.0.0.1"
ROW_SECONDS = 0.01  # from one row of the spectrogram to the next
CROP_PIXELS = 160  # at most, of a frame on the page
MIB = 2**20
WAITING = 8  # videos in the queue; the page refuses the next
LIVE_MIB = 16  # most of a live window: 16 s of frames of 40 kB, 25 a second
UNREAD = 2**14  # most pieces of a refused request that are read and dropped
STALE = 60  # seconds without a byte after which a connection is closed
FILES = {"/": ("page.html", "text/html; charset=utf-8"), "/page.css": ("page.css", "text/css; charset=utf-8"),
         **{f"/{name}": (name, "text/javascript; charset=utf-8") for name in ("page.js", "page_sound.js")}}  # fmt: skip
# The browser itself refuses what would go to another host, and code that is not in these files.
HEADERS = {
  "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
  "img-src data: blob:; media-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
  "Cache-Control": "no-store",  # or the browser would keep answers on its disk
  "Referrer-Policy": "no-referrer",
  "X-Content-Type-Options": "nosniff",
}
Json = dict[str, Any]
Tell = Callable[[Json], None]  # sends a line to the page; ConnectionError if nobody reads it any more


@dataclasses.dataclass
class Page:
  """Answers uploads, one at a time."""

  engine: Engine
  model: str  # its name
  finder: Finder
  folder: Path
  max_mb: int
  max_seconds: float
  window: float  # seconds, of a timeline
  hop: float
  channel: str = "first"  # of the sound
  person: str = "largest"  # who is answered for, as for `predict_timeline`
  abstain: float = 0.0  # least probability of a class that is named

  def __post_init__(self):
    self.computing = threading.Lock()
    self.waiting = 0

  def warm_up(self) -> None:
    """Answers black and silence, so that the model is compiled before the first visitor comes."""
    inputs = self.engine.about.inputs
    self.engine(
      *(
        np.zeros((1, *shape), np.uint8 if name == "video" else np.float32)
        for name, shape in inputs.shapes.items()
      )
    )

  def answer(self, path: Path, name: str, tell: Tell) -> Json:
    """The answer to a file, which the visitor calls `name`, after those that came before it.

    UserError if there is none; ConnectionError if the visitor has gone.
    """
    if self.waiting >= WAITING:
      raise UserError(f"{WAITING} videos are waiting already; try again in a minute")
    self.waiting += 1
    try:
      while not self.computing.acquire(timeout=1):
        tell({"doing": f"waiting for {self.waiting - 1} before this one"})
    finally:
      self.waiting -= 1
    try:
      with media.one_clip(name):
        return self._answer(path, name, tell)
    except UserError as error:
      words = _without_flags(str(error).replace(str(path), name))
      raise UserError(words if words.startswith(name) else f"{name}: {words}") from error
    finally:
      self.computing.release()

  def _answer(self, path: Path, name: str, tell: Tell) -> Json:
    def check(seconds: float) -> None:
      if seconds > self.max_seconds:
        raise UserError(f"the video is longer than {self.max_seconds:g} s; cut out the part that you mean")

    def show(doing: str, done: int | float, of: int | float | None) -> None:
      words = {
        "look": f"looking at the pictures, {done:.0f} s",
        "predict": f"window {done:.0f} of {of or 0:.0f}",
      }
      tell({"doing": words[doing], "share": min(done / of, 1.0) if of else None})

    started = time.monotonic()
    declared = media.declared_seconds(path)
    pieces = (len(piece.waveform) / piece.sample_rate for piece in media.iterate_sound(path))
    for heard in itertools.chain([declared or 0.0], itertools.accumulate(pieces)):
      check(heard)  # recordings of a browser often declare nothing
    tell_seldom = seldom(show)

    def look(seconds: float) -> None:
      check(seconds)
      tell_seldom("look", seconds, declared)

    how: Json = {"channel": self.channel, "progress": look}
    hop = None if self.person == "largest" else self.hop  # so that persons have the same numbers over time
    people = person_samples(self.engine.about.inputs, path, self.finder, self.person, hop=hop, **how)
    asked = [(str(path), sample) for _, sample in people]
    answers = [one for _, one in predict_samples(self.engine, asked, 1, abstain=self.abstain)]
    film = self._over_time(path, tell_seldom) if answers[0].seconds > self.window else None
    rows: list[Json] = []
    for (who, sample), prediction in zip(people, answers, strict=True):
      row: Json = {"person": prediction.person, "answer": self._facts_of(prediction, name)}
      if who:
        row |= {"spans": who.spans, "face": _address("jpeg", sample.video[len(sample.video) // 2])}
      if film:
        of_one = [one for one in film.persons if one.person == prediction.person]
        row["summary"] = summarise(of_person(film, of_one[0]) if of_one else film)
      rows.append(row | {"seen": self._seen(sample, prediction)})
    kept = [{key: row[key] for key in ("person", "spans", "summary") if key in row} for row in rows]
    facts: Json = {"clip": name, "seconds": answers[0].seconds}
    if self.person == "largest":
      facts = rows[0]["answer"] | kept[0]
    else:
      of_persons = [
        one | {"answer": row["answer"]} for one, row in zip(kept, rows, strict=True) if one["person"]
      ]
      facts |= {"persons": of_persons} if of_persons else rows[0]["answer"] | kept[0] | {"persons": []}
    if film:
      facts |= {
        "window": self.window,
        "hop": self.hop,
        "windows": [self._facts_of(one, name) for one in film.predictions],
      }
      facts["warnings"] = list(dict.fromkeys([*facts.get("warnings", ()), *film.warnings]))
    for row in rows:
      row["summary"] = told(row["summary"]) if film else None
    return {"json": facts, "rows": rows, "took": time.monotonic() - started}

  def _over_time(self, path: Path, progress: Callable[..., None]) -> Timeline:
    return predict_timeline(
      self.engine, path, window=self.window, hop=self.hop, progress=progress, channel=self.channel, faces=self.finder,
      person=self.person, abstain=self.abstain,
    )  # fmt: skip

  def _facts_of(self, prediction: Prediction, name: str) -> Json:
    precision = self.engine.about.precision
    return dataclasses.asdict(prediction) | {
      "clip": name,
      "seconds": prediction.seconds,
      "precision": precision,
      "reasons": [*map(_without_flags, prediction.reasons)],
      "warnings": [*map(_without_flags, prediction.warnings)],
    }

  def _seen(self, sample: Sample, prediction: Prediction) -> Json:
    """What the model saw and heard, as pictures."""
    about, seen = self.engine.about, Json(weights=[one.weight for one in prediction.frame_weights])
    if "image" in about.streams:
      scale = min(1.0, CROP_PIXELS / about.inputs.image_size)
      small = (
        cv2.resize(one, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        for view in sample.views or (sample,)
        for one in view.video
      )
      seen |= {"size": about.inputs.image_size, "frames": [_address("jpeg", frame) for frame in small]}
    if "audio" in about.streams and prediction.sound:
      rows, bins = sample.spectrogram.shape
      low, high = sample.spectrogram.min(), sample.spectrogram.max()
      grey = ((sample.spectrogram.T[::-1] - low) * (255 / max(high - low, 1e-6))).astype(np.uint8)
      colours = cv2.cvtColor(cv2.applyColorMap(grey, cv2.COLORMAP_MAGMA), cv2.COLOR_BGR2RGB)
      length = rows * ROW_SECONDS
      seen["sound"] = {"seconds": length, "heard": min(prediction.seconds_of_sound, length), "bins": bins,
                       "picture": _address("png", colours)}  # fmt: skip
    return seen

  def live(self, given: Json) -> Json:
    """The answer to a window of a camera: JPEGs, their times in seconds, 16-bit sound and its rate; {} if one is computed."""
    if not self.computing.acquire(blocking=False):
      return {}
    try:
      frames = [_picture(one) for one in given["frames"]]
      times = [*map(float, given["times"]), float(given["end"])]
      sound = np.frombuffer(base64.b64decode(given["sound"]), np.int16) if given.get("rate") else None
      with media.one_clip("the camera's window"):
        sample = sample_of(frames, sound, given.get("rate"), self.engine.about.inputs, times=times,
                           channel=self.channel, finder=finder_for_frames(self.finder, frames))  # fmt: skip
        ((_, prediction),) = predict_samples(self.engine, [("camera", sample)], 1, abstain=self.abstain)
        return self._facts_of(prediction, "camera")
    finally:
      self.computing.release()

  def setup(self) -> Json:
    """What the page shows before the first answer."""
    about = self.engine.about
    origin = {"model": self.model, **about.origin, "precision": about.precision}
    if about.config.get("data.data_dir"):
      origin["trained on"] = f"{about.config['data.name']} in {about.config['data.data_dir']}"
    origin["faces"] = described(self.finder)
    if self.channel != "first":
      origin["channel of the sound"] = self.channel
    facts = " · ".join(f"{key.replace('_', ' ')}: {value}" for key, value in origin.items())
    whom = {"largest": "the face that is largest over time", "all": "each person in the picture"}
    words = {"facts": facts, "whom": whom.get(self.person, f"person {self.person}, by size over time")}
    limits = {"max_mb": self.max_mb, "max_seconds": self.max_seconds, "window": self.window, "hop": self.hop}
    return {**words, "classes": about.classes, **limits}


def seldom(show: Callable[..., None], every: float = 0.1) -> Callable[..., None]:
  """The same function, called at most so often (seconds): a line for each frame would be thousands."""
  last = -every

  def call(*values: Any) -> None:
    nonlocal last
    if (now := time.monotonic()) - last >= every:
      last = now
      show(*values)

  return call


def _address(kind: str, picture: np.ndarray) -> str:
  """An address that holds the picture itself: nothing is written to a disk, and nothing need be removed."""
  _, data = cv2.imencode(f".{kind}", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
  return f"data:image/{kind};base64,{base64.b64encode(data.tobytes()).decode()}"


def _without_flags(words: str) -> str:
  """Without advice for a command line, which the page's visitor does not have."""
  return re.sub(r"[:;] --\w.*|--(?=\w+=)", "", words)


def _picture(coded: str) -> np.ndarray:
  found = cv2.imdecode(np.frombuffer(base64.b64decode(coded), np.uint8), cv2.IMREAD_COLOR)
  if found is None:
    raise UserError("a frame of the camera is no picture")
  return cv2.cvtColor(found, cv2.COLOR_BGR2RGB)


class Refused(Exception):
  """Status and words of a request that is not answered."""


class Visit(BaseHTTPRequestHandler):
  """One request. Each has a connection and a thread of its own."""

  page: Page
  timeout = STALE

  def do_GET(self) -> None:
    self._guarded(self._static)

  def do_POST(self) -> None:
    self._guarded({"/answer": self._upload, "/live": self._live}.get(urlsplit(self.path).path, self._unknown))

  def _guarded(self, answer: Callable[[], None]) -> None:
    try:
      self._check_origin()
      answer()
    except Refused as refused:
      self._refuse(*refused.args)
    except (ConnectionError, TimeoutError):
      pass  # the visitor has gone
    except OSError as error:
      self._refuse(507, f"The server cannot keep the video ({error.strerror or error}).")

  def _refuse(self, status: int, words: str) -> None:
    """Reads on after the reply: a browser that still sends when the connection is closed does not read it."""
    with contextlib.suppress(OSError):
      self._send(status, "text/plain; charset=utf-8", words.encode())
      self.connection.shutdown(socket.SHUT_WR)
      self.connection.settimeout(1)
      for _ in range(UNREAD):
        if not self.rfile.read1(MIB):
          break

  def _check_origin(self) -> None:
    """A page of another host, open in the same browser, could else send files here, or reach this server under a name of
    its own that leads to 127.0.0.1."""
    host, origin = self.headers.get("host", ""), self.headers.get("origin")
    named = re.fullmatch(rf"({re.escape(HOST)}|localhost)(:\d*)?", host, re.IGNORECASE)
    strange = self.headers.get("sec-fetch-site", "none") not in ("same-origin", "none")
    if not named or origin not in (None, f"http://{host}") or strange:
      raise Refused(403, "This page can be used only from the machine it runs on.")

  def _static(self) -> None:
    path = urlsplit(self.path).path
    if path == "/setup":
      self._send(200, "application/json", json.dumps(self.page.setup()).encode())
    elif path in FILES:
      name, kind = FILES[path]
      self._send(200, kind, Path(__file__).with_name(name).read_bytes())
    else:
      self._unknown()

  def _unknown(self) -> None:
    raise Refused(404, "There is no such page.")

  def _length(self, most_mib: int) -> int:
    length = self.headers.get("content-length", "")
    if not (length.isascii() and length.isdecimal()):
      raise Refused(411, "The request does not say how long it is.")
    if len(length) > 18 or int(length) > most_mib * MIB:
      raise Refused(413, f"The video is larger than {most_mib} MiB.")
    return int(length)

  def _upload(self) -> None:
    length = self._length(self.page.max_mb)
    asked = parse_qs(urlsplit(self.path).query).get("name", ["video"])[0]
    name = "".join(c for c in asked if c.isprintable() and c not in "/\\")[-100:].lstrip(".") or "video"
    with tempfile.TemporaryDirectory(dir=self.page.folder) as own:
      # The visitor's name may be too long for this disk; its end helps FFmpeg to guess the format.
      path = Path(own, f"video{Path(name).suffix if re.search(r'[.][a-zA-Z0-9]{1,8}$', name) else ''}")
      with path.open("wb", buffering=MIB) as file:
        for piece in self._pieces(length):
          file.write(piece)
      self._head(200, "application/x-ndjson")
      try:
        self._tell({"answer": self.page.answer(path, name, self._tell)})
      except UserError as error:
        self._tell({"error": str(error)})

  def _pieces(self, length: int) -> Iterator[bytes]:
    while length:
      piece = self.rfile.read(min(length, MIB))
      if not piece:
        raise ConnectionResetError
      length -= len(piece)
      yield piece

  def _live(self) -> None:
    body = b"".join(self._pieces(self._length(LIVE_MIB)))
    try:
      answer = self.page.live(json.loads(body))
    except (ValueError, KeyError, TypeError) as error:  # a UserError is a ValueError
      answer = {"error": str(error) if isinstance(error, UserError) else "this is no window of a camera"}
    self._send(200, "application/json", json.dumps(answer).encode())

  def _tell(self, line: Json) -> None:
    self.wfile.write(json.dumps(line).encode() + b"\n")

  def _head(self, status: int, kind: str, **more: object) -> None:
    self.send_response(status)
    for name, value in {"Content-Type": kind, **HEADERS, **more}.items():
      self.send_header(name, str(value))
    self.end_headers()

  def _send(self, status: int, kind: str, body: bytes) -> None:
    self._head(status, kind, **{"Content-Length": len(body)})
    self.wfile.write(body)

  def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
    self._send(code, "text/plain; charset=utf-8", (message or explain or "This cannot be asked.").encode())

  def version_string(self) -> str:
    return "mma_dfer_jax"

  def log_message(self, *args: object) -> None:
    """Nothing is written about visitors."""


class Server(ThreadingHTTPServer):
  """The server behind a socket that listens already."""

  daemon_threads = True  # a signal does not wait for visitors

  def __init__(self, page: Page, door: socket.socket):
    super().__init__(door.getsockname()[:2], Visit, bind_and_activate=False)
    self.RequestHandlerClass = type("VisitOfPage", (Visit,), {"page": page})
    self.socket.close()
    self.socket = door

  def handle_error(self, request: Any, client_address: Any) -> None:
    """Whoever breaks off in the middle of a request is no news."""
