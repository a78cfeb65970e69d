"""The demo page: answers uploads one at a time, and lets in only this machine's own page."""

import asyncio
import base64
from collections.abc import AsyncIterator, Callable
import contextlib
import dataclasses
import functools
import html
import io
import itertools
import json
import os
from pathlib import Path
import shutil
import threading
import time
from typing import Any
from urllib.parse import urlsplit
import uuid

import fastapi
import gradio as gr
import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure
import numpy as np
from PIL import Image
import uvicorn

from mma_dfer_jax.data import media
from mma_dfer_jax.data.film import Sample
from mma_dfer_jax.engines.engine import Engine
from mma_dfer_jax.errors import UserError
from mma_dfer_jax.prediction import (
  Finder,
  Prediction,
  Timeline,
  clip_sample,
  described,
  predict_samples,
  predict_timeline,
)
from mma_dfer_jax.timeline import draw

HOST = "127.0.0.1"
ROW_SECONDS = 0.01  # from one row of the spectrogram to the next
CROP_PIXELS = 160  # at most, of a frame on the page
MIB = 2**20
WAITING = 8  # videos in the queue; the page refuses the next
SWEEP = 5  # seconds from one look at the uploads to the next
# Seconds after which an upload is removed that nobody has asked about, or that was not answered.
NEVER_ASKED, FORGOTTEN = 60, 3600

# The browser itself refuses what would go to another host, whatever Gradio's scripts may try. They are made of inline
# code, of functions made from strings and of blobs; pictures come as data, recordings as blobs.
POLICY = (
  "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
  "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; "
  "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {
  "content-security-policy": POLICY,
  "cache-control": "no-store",  # or the browser would keep the video on its disk
  "referrer-policy": "no-referrer",
  "x-content-type-options": "nosniff",
}


def _escaped(value: object) -> Markup:
  """Words from outside, such as the name of a file, as text: neither HTML nor one of Gradio's templates."""
  text = html.escape(str(value)).translate({ord(sign): f"&#{ord(sign)};" for sign in "${}`"})
  return value if isinstance(value, Markup) else Markup(text)


_LOADER = jinja2.FileSystemLoader(Path(__file__).parent)
_TEMPLATES = jinja2.Environment(loader=_LOADER, autoescape=True, finalize=_escaped)
_HTML: Any = _TEMPLATES.get_template("page.html").module


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

  def __post_init__(self):
    self.computing = threading.Lock()
    self.uploads = self.folder.resolve() / "uploads"
    self.waiting: dict[
      Path, tuple[str, float]
    ] = {}  # each upload, whose it is ("": not known yet), and since when
    self.computed: Path | None = None  # the upload that is being answered
    self.arriving = 0  # requests that bring uploads

  def owns(self, path: str) -> bool:
    """Whether this is a file that was uploaded here and is not answered."""
    return Path(path) in self.waiting and os.path.isfile(path)

  def received(self, path: str) -> str:
    """Gives an upload a place of its own: Gradio gives equal files one place, whoever sends them."""
    own = self.uploads / uuid.uuid4().hex / Path(path).name
    self.waiting[own] = "", time.monotonic()
    own.parent.mkdir(parents=True)
    os.link(path, own)
    return str(own)

  def drop(self, path: Path) -> None:
    """Removes an upload."""
    self.waiting.pop(path, None)
    shutil.rmtree(path.parent, ignore_errors=True)

  def sweep(self, gone: str | None = None) -> None:
    """Removes what nobody waits for any more; all that is of a visitor who has gone. To be called in the server's thread."""
    now = time.monotonic()
    for path, (visitor, since) in list(self.waiting.items()):
      late = now - since > (FORGOTTEN if visitor else NEVER_ASKED)
      if path != self.computed and (late or visitor == gone):
        self.drop(path)
    kept = {path.parent for path in list(self.waiting)}
    for place in [] if self.arriving or not self.uploads.exists() else self.uploads.iterdir():
      if place not in kept:  # Gradio's own name of an upload, or one that never arrived whole
        shutil.rmtree(place, ignore_errors=True) if place.is_dir() else place.unlink(missing_ok=True)

  def warm_up(self) -> None:
    """Answers black and silence, so that the model is compiled before the first visitor comes."""
    inputs = self.engine.about.inputs
    self.engine(np.zeros((1, *inputs.video_shape), np.uint8), np.zeros((1, *inputs.audio_shape), np.float32))

  def answer(self, upload: str, progress: Callable[..., object]) -> tuple[str, str]:
    """HTML of the answer, or of an error, and of what the model saw; deletes the upload.

    `progress` is called with a share in [0, 1] or None, and with `desc`, what is being done.
    """
    path = Path(upload)
    with self.computing:
      if not self.owns(upload):  # `refusal` has checked it, but what follows deletes
        return _HTML.error("The video is no longer there; drop it once more."), ""
      self.computed = path
      try:
        with media.one_clip(path.name):
          return self._answer(path, progress)
      except UserError as error:
        return _HTML.error(str(error).replace(str(path), path.name)), ""
      finally:
        self.computed = None
        self.drop(path)

  def _answer(self, path: Path, progress: Callable[..., object]) -> tuple[str, str]:
    def check(seconds: float) -> None:
      if seconds > self.max_seconds:
        raise UserError(f"the video is longer than {self.max_seconds:g} s; cut out the part that you mean")

    def show(doing: str, done: int | float, of: int | float | None) -> None:
      if doing == "predict":
        progress(done / of if of else None, desc=f"window {done:.0f} of {of:.0f}")
      else:
        check(done)
        progress(min(done / of, 1.0) if of else None, desc=f"looking at the pictures, {done:.0f} s")

    started, timeline = time.monotonic(), None
    if path.stat().st_size > self.max_mb * MIB:
      raise UserError(f"{path.name}: is larger than {self.max_mb} MiB")
    declared = media.declared_seconds(path)
    pieces = (len(piece.waveform) / piece.sample_rate for piece in media.iterate_sound(path))
    for heard in itertools.chain([declared or 0.0], itertools.accumulate(pieces)):
      check(heard)  # recordings of a browser often declare nothing
    asked = clip_sample(self.engine.about.inputs, path, self.finder, channel=self.channel,
                        progress=lambda seconds: show("look", seconds, declared))  # fmt: skip
    ((sample, prediction),) = predict_samples(self.engine, [asked], 1)
    prediction = dataclasses.replace(prediction, clip=path.name)
    if prediction.seconds > self.window:
      how: dict[str, Any] = {
        "window": self.window,
        "hop": self.hop,
        "progress": show,
        "channel": self.channel,
      }
      timeline = predict_timeline(self.engine, path, **how, faces=self.finder)
    said = _HTML.answer(prediction, time.monotonic() - started)
    return said, self._seen_html(sample, prediction, timeline)

  def _seen_html(self, sample: Sample, prediction: Prediction, timeline: Timeline | None) -> str:
    """What the model saw and heard, the answer over time, and the answer as JSON."""
    about = self.engine.about
    facts: dict[str, Any] = dataclasses.asdict(prediction) | {"precision": about.precision}
    frames, heard, picture = [], None, ""
    if "image" in about.streams:
      for frame in map(Image.fromarray, sample.video):
        frame.thumbnail((CROP_PIXELS, CROP_PIXELS))
        frames.append(_address("image/jpeg", functools.partial(frame.save, format="JPEG", quality=90)))
    if "audio" in about.streams and prediction.sound:
      rows, bins = sample.spectrogram.shape
      heard = {"seconds": ROW_SECONDS * rows, "bins": bins, "picture": _png(_draw_spectrogram(sample))}
    if timeline is not None:
      windows = [dataclasses.asdict(one) | {"clip": prediction.clip} for one in timeline.predictions]
      facts |= {"window": timeline.window, "hop": timeline.hop, "windows": windows}
      figure = draw(timeline)
      figure.suptitle("")  # it names the file and the windows, which stand above
      picture = _png(figure)
    text, name = json.dumps(facts, indent=2, ensure_ascii=False), f"{Path(prediction.clip).stem}.json"
    address = _address("application/json", lambda file: file.write(text.encode()))
    size = about.inputs.image_size
    return _HTML.seen(frames, size, heard, timeline, picture, self.window, text, name, address)

  def facts(self) -> str:
    """Which model answers, in a line."""
    about = self.engine.about
    origin = {"model": self.model, **about.origin, "precision": about.precision}
    if about.config.get("data.data_dir"):
      origin["trained on"] = f"{about.config['data.name']} in {about.config['data.data_dir']}"
    origin["faces"] = described(self.finder)
    if self.channel != "first":
      origin["channel of the sound"] = self.channel
    return " · ".join(f"{key.replace('_', ' ')}: {value}" for key, value in origin.items())


def _draw_spectrogram(sample: Sample) -> Figure:
  """Log-mel over time as the model gets it: a sound that is too short is padded, with what is louder than silence."""
  rows, bins = sample.spectrogram.shape
  length, figure = rows * ROW_SECONDS, Figure(figsize=(11, 2.6), layout="constrained")
  axes = figure.subplots()
  place: dict[str, Any] = {"origin": "lower", "aspect": "auto", "extent": (0, length, 0, bins)}
  axes.imshow(sample.spectrogram.T, **place, cmap="magma", interpolation="none")
  if 0 < sample.seconds_of_sound < 0.85 * length:
    axes.text((sample.seconds_of_sound + length) / 2, bins / 2, "padding", ha="center", va="center")
  axes.set(xlabel="seconds", ylabel="mel bin", xlim=(0, length), yticks=[0, bins // 2, bins])
  return figure


def _png(figure: Figure) -> str:
  return _address("image/png", lambda file: figure.savefig(file, format="png", dpi=120))


def _address(kind: str, write: Callable[[io.BytesIO], object]) -> str:
  """An address that holds the content itself: nothing is written to a disk, and nothing need be removed."""
  write(file := io.BytesIO())
  return f"data:{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def server(page: Page) -> uvicorn.Server:
  """The web server with the page in it, for `run`.

  Gradio's own `launch` is not used: it asks other hosts, and would take its address and more from the environment.
  """

  @contextlib.asynccontextmanager
  async def sweeping(app: fastapi.FastAPI) -> AsyncIterator[None]:
    async def sweep() -> None:
      while True:
        await asyncio.sleep(SWEEP)
        page.sweep()

    task = asyncio.create_task(sweep())
    yield
    task.cancel()

  app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=sweeping)

  @app.middleware("http")
  async def guard(request: fastapi.Request, call_next: Any) -> Any:
    refused = await refusal(request, page)
    if refused:
      answer = fastapi.responses.PlainTextResponse(refused, 403)
    elif request.method == "POST" and request.url.path.endswith("/upload"):
      answer = await _received(request, call_next, page)
    else:
      answer = await call_next(request)
    answer.headers.update(HEADERS)
    return answer

  fonts = {
    "font": ["system-ui", "sans-serif"],
    "font_mono": ["monospace"],
  }  # plain names: Gradio's come from Google
  gr.mount_gradio_app(
    app, _blocks(page), path="/", server_name=HOST, footer_links=[], run_history=False, show_error=False,
    max_file_size=page.max_mb * MIB, ssr_mode=False, enable_monitoring=False, pwa=False, mcp_server=False,
    theme=gr.themes.Default(primary_hue="blue", neutral_hue="gray", **fonts),
    css=Path(__file__).with_name("page.css").read_text(),
    js="() => document.body.classList.remove('dark')",  # the pictures have a white ground
  )  # fmt: skip
  config = uvicorn.Config(app, log_level="critical", access_log=False, ws="none", proxy_headers=False,
                          server_header=False, timeout_graceful_shutdown=1)  # fmt: skip
  return uvicorn.Server(config)


async def _received(request: fastapi.Request, call_next: Any, page: Page) -> Any:
  """The answer to an upload, with the place that the page gives it."""
  page.arriving += 1
  try:
    answer = await call_next(request)
    if answer.status_code == 200:
      places = json.loads(b"".join([piece async for piece in answer.body_iterator]))
      answer = fastapi.responses.JSONResponse([page.received(place) for place in places])
    return answer
  finally:
    page.arriving -= 1
    page.sweep()


def _blocks(page: Page) -> Any:
  """What is on the page, and what happens when a video arrives."""

  def answer(upload: str | None, progress=gr.Progress()):  # noqa: B008  # so Gradio knows that it is asked for
    if upload is None:  # the video was taken away again
      return gr.skip(), gr.skip(), gr.skip()
    return None, *page.answer(upload, progress)

  async def leave(request: gr.Request):  # a tab was closed; async, so that it runs in the server's thread
    page.sweep(gone=request.session_hash)

  with gr.Blocks(title="MMA-DFER", analytics_enabled=False) as blocks:
    gr.HTML(_HTML.intro(page.facts()))
    with gr.Row(equal_height=False):
      with gr.Column(scale=5, min_width=320):
        video = gr.Video(
          sources=["upload", "webcam"], label="Video", include_audio=True, height=340, elem_id="video",
          buttons=[], webcam_options=gr.WebcamOptions(mirror=False),
        )  # fmt: skip
        gr.HTML(_HTML.limits(page.max_mb, f"{page.max_seconds:g}"))
      with gr.Column(scale=6, min_width=320):
        said = gr.HTML(_HTML.empty(), elem_id="answer")
    seen = gr.HTML("", elem_id="seen")
    gr.on(
      [video.upload, video.stop_recording], answer, video, [video, said, seen], api_visibility="private",
      concurrency_limit=1, show_progress="full", show_progress_on=[said], trigger_mode="multiple",
    )  # fmt: skip
    blocks.unload(leave)
  return blocks.queue(max_size=WAITING, api_open=False)


async def refusal(request: fastapi.Request, page: Page) -> str:
  """Why a request is refused; "" if it is not.

  A page of another host, open in the same browser, could else send files here, or reach this server under a name of
  its own that leads to 127.0.0.1. And another user of this machine could name any file that this process can read:
  only what was uploaded may be named.
  """
  headers = request.headers
  host, origin = headers.get("host", ""), headers.get("origin")
  own = urlsplit(f"//{host}").hostname in (HOST, "localhost") and origin in (None, f"http://{host}")
  if not own or headers.get("sec-fetch-site") == "cross-site":
    return "This page can be used only from the machine it runs on."
  if request.method != "POST" or "multipart/form-data" in headers.get("content-type", ""):
    return ""
  body: Any = None
  named: list[str] = []  # wherever in the JSON: "path" is where a file of Gradio's lies on this machine

  def keep(found: dict[str, Any]) -> dict[str, Any]:
    named.extend([str(found["path"])] if "path" in found else [])
    return found

  try:
    if not int(headers.get("content-length", "")) <= MIB:  # longer than any that the page sends
      raise ValueError
    text = await request.body() or b"null"
    body = json.loads(text, object_hook=keep)
  except (ValueError, RecursionError):  # no JSON, or nested for ever
    named = [""]
  if not all(map(page.owns, named)):
    return "Only a video that was uploaded to this page can be answered."
  if request.url.path.endswith("/queue/join"):
    visitor = str(body.get("session_hash")) if isinstance(body, dict) else "unknown"
    page.waiting.update({Path(path): (visitor, time.monotonic()) for path in named})
  return ""
