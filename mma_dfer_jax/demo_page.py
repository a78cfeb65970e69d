"""A web page on this machine: drop a video or film yourself, and see what a trained model says, and what it saw.

  pip install 'mma_dfer_jax[demo-page]'
  python -m mma_dfer_jax.demo_page --model=runs/demo/run

Nothing is kept and nothing leaves the machine. The page listens on 127.0.0.1 alone and refuses requests that another
page makes; it tells the browser to ask no other host; an upload lies in a folder of this process until it is answered,
and all pictures of an answer are inside the page, so that no file is made of them.
"""

import base64
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
import dataclasses
import html
import io
import json
import os
from pathlib import Path
import shutil
import signal
import socket
import tempfile
import threading
import time
from typing import Any
from urllib.parse import urlsplit

from absl import flags
from matplotlib.figure import Figure
import numpy as np
from PIL import Image

from mma_dfer_jax import cli
from mma_dfer_jax.data import film, media
from mma_dfer_jax.data.faces import FACES, FaceFinder, finder_of
from mma_dfer_jax.data.fbank import spectrogram
from mma_dfer_jax.data.film import Sample, Window
from mma_dfer_jax.engines.engine import About, Engine, load_model
from mma_dfer_jax.errors import UserError
from mma_dfer_jax.prediction import (
  Prediction,
  Timeline,
  clip_sample,
  described,
  predict_samples,
  predict_timeline,
)
from mma_dfer_jax.timeline import draw

_MODEL = flags.DEFINE_string(
  "model", None, "Workdir of a run, or a folder or file of `convert` or `export`.", required=True
)
_PORT = flags.DEFINE_integer(
  "port", 7860, "Port on 127.0.0.1; 0: any that is free.", lower_bound=0, upper_bound=65535
)
_FACES = flags.DEFINE_enum(
  "faces", "auto", FACES, "Cut out faces: as in training; always; never, for cut videos."
)
_FACE_MODEL = flags.DEFINE_string("face_model", None, "YuNet's .onnx file; if not given, it is fetched once.")
_MAX_MB = flags.DEFINE_integer("max_mb", 100, "Largest video that is taken, MiB.", lower_bound=1)
_MAX_SECONDS = flags.DEFINE_float("max_seconds", 120.0, "Longest video that is taken.", lower_bound=0.1)
_WINDOW = flags.DEFINE_float("window", 4.0, "Longer videos are answered over time too, in windows of so many seconds.")  # fmt: skip
_PRECISION = flags.DEFINE_string("precision", None, "float32 or bfloat16; if not given, as trained.")
_HOP = flags.DEFINE_float("hop", 1.0, "Seconds from one window to the next.")

HOST = "127.0.0.1"
ROW_SECONDS = 0.01  # from one row of the spectrogram to the next
CROP_PIXELS = 160  # at most, of a frame on the page
MIB = 2**20
WAITING = 8  # videos in the queue; the next is told to come back
FORGOTTEN = 3600  # seconds after which an upload that nobody waits for any more is removed

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

CSS = """
.gradio-container { max-width: 1120px !important; margin: 0 auto !important; }
.html-container { padding: 0 !important; }
.page h1 { font-size: 1.5rem; font-weight: 650; margin: .6rem 0 .2rem; }
.page h2 { font-size: .95rem; font-weight: 600; margin: 1.5rem 0 .45rem; }
.page p { margin: .15rem 0; }
.page .small { color: #6b7280; font-size: .85rem; line-height: 1.45; }
.page .top { font-size: 1.6rem; font-weight: 650; line-height: 1.2; }
.page .bars { display: grid; grid-template-columns: max-content 1fr 4em; gap: .42rem .8rem; align-items: center;
  margin: .8rem 0; font-size: .95rem; }
.page .track { background: #eef0f3; border-radius: 4px; height: .85rem; }
.page .fill { background: #a9bce0; border-radius: 4px; height: 100%; min-width: 2px; }
.page .first .fill { background: #3b66b5; }
.page .first { font-weight: 600; }
.page .row { display: contents; }
.page .percent { text-align: right; font-variant-numeric: tabular-nums; }
.page .warnings, .page .error { border-radius: 6px; padding: .55rem .8rem; margin: .5rem 0; font-size: .9rem; }
.page .warnings { background: #fff7e0; border: 1px solid #f0dca0; }
.page .error { background: #fdecec; border: 1px solid #f2bcbc; white-space: pre-line; overflow-wrap: anywhere; }
.page .strip { display: grid; grid-template-columns: repeat(var(--frames), 1fr); gap: 3px; }
.page .strip img { width: 100%; border-radius: 3px; display: block; }
.page .wide { width: 100%; display: block; }
.page pre { background: #f6f7f9; border-radius: 6px; padding: .7rem; font-size: .78rem; max-height: 22rem; overflow: auto; }
.page summary { cursor: pointer; font-weight: 600; font-size: .95rem; }
.page details { margin-top: 1.5rem; }
.page .empty { color: #6b7280; padding: 1.2rem 0; }
@media (max-width: 700px) { .page .strip { grid-template-columns: repeat(8, 1fr); } }
"""
LIGHT = "() => document.body.classList.remove('dark')"  # the pictures have a white ground


def main(argv: Sequence[str]) -> int:
  film.check_windows(_WINDOW.value, _HOP.value)
  door = _open_door(_PORT.value)
  with tempfile.TemporaryDirectory(prefix="mma_dfer_page_") as folder:
    _end_on_signals(folder)
    gradio = _import_gradio(Path(folder))
    print(f"loading {_MODEL.value} …", flush=True)
    engine = load_model(_MODEL.value, precision=_PRECISION.value)
    about = engine.about
    finder = finder_of(about.recipe, Path(_FACE_MODEL.value) if _FACE_MODEL.value else None, _FACES.value)
    page = Page(engine, finder, Path(folder), _MAX_MB.value, _MAX_SECONDS.value, _WINDOW.value, _HOP.value)
    print("compiling it, once …", flush=True)
    page.warm_up()
    server = _server(gradio, page)
    print(f"faces: {described(finder)}; classes: {', '.join(about.classes)}; precision: {about.precision}")
    print(f"open http://{HOST}:{door.getsockname()[1]}/ in a browser; Ctrl-C ends it", flush=True)
    server.run(sockets=[door])  # until a signal, which comes to the handler above after the page was closed
  return 0


def _end_on_signals(folder: str) -> None:
  """Ctrl-C and SIGTERM remove the folder and end the process at once.

  No exception is raised for it: one that is raised while Python collects garbage gets lost, for JAX has a callback
  there, and Python would wait for a thread that computes.
  """

  def end(number, frame) -> None:
    del frame
    shutil.rmtree(folder, ignore_errors=True)
    interrupted = number == signal.SIGINT
    if interrupted:
      os.write(2, b"error: stopped by Ctrl-C\n")  # not print, which may be what was interrupted
    os._exit(130 if interrupted else 0)

  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, end)


def _open_door(port: int) -> socket.socket:
  """A socket that listens; opened first, so that a taken port is known before a model is loaded."""
  door = socket.socket()
  door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port that was just given back can be had
  try:
    door.bind((HOST, port))
    door.listen()
  except OSError as error:
    raise UserError(
      f"--port={port}: cannot be had on {HOST} ({error.strerror}); give another one, or --port=0 for any that is free"
    ) from error
  return door


def _import_gradio(folder: Path) -> Any:
  """Gradio, told where files go and that it asks nobody for anything; it reads that while it is imported.

  Raises:
    UserError: if it is not installed.
  """
  tempfile.tempdir = str(folder)  # uploads that are still arriving
  os.environ |= {
    "GRADIO_TEMP_DIR": str(folder / "uploads"),
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
  }
  try:
    import gradio
  except ImportError as error:
    raise UserError(
      f"the page needs Gradio, which cannot be imported ({error}); pip install 'mma_dfer_jax[demo-page]'"
    ) from error
  return gradio


class Page:
  """Answers uploads, one at a time."""

  def __init__(
    self, engine: Engine, finder: FaceFinder | None, folder: Path,
    max_mb: int, max_seconds: float, window: float, hop: float,
  ):  # fmt: skip
    self.engine, self.finder, self.folder = engine, finder, folder
    self.max_mb, self.max_seconds, self.window, self.hop = max_mb, max_seconds, window, hop
    self.computing = threading.Lock()
    self.awaited: Counter[Path] = (
      Counter()
    )  # requests that name an upload: the same file has one path for all

  def owns(self, path: str) -> bool:
    """Whether this is a file that was uploaded here."""
    file = Path(path).resolve()
    return (self.folder / "uploads").resolve() in file.parents and file.is_file()

  def warm_up(self) -> None:
    """Answers a black and silent clip, so that all is compiled before the first visitor comes."""
    inputs = self.engine.about.inputs
    video = np.zeros(inputs.video_shape, np.uint8)
    sound = spectrogram(np.zeros(16_000, np.float32), 16_000, *inputs.audio_shape)
    black = Sample(Window(0.0, 1.0, 0, inputs.num_frames), video, sound, None, None, 1.0, 1.0, True, 16_000)
    ((seen, prediction),) = predict_samples(self.engine, [("", black)], 1)
    _block(*_answer_html(prediction, 0.0), *_seen_html(self.engine.about, seen, prediction))

  def answer(self, upload: str, progress: Callable[..., object]) -> tuple[str, str]:
    """HTML of the answer, and of what the model saw; an error's text where there is none. The upload is gone then.

    Args:
      upload: path of a file in the folder for uploads.
      progress: is given a share in [0, 1] or None, and as `desc` what is being done.
    """
    path = Path(upload)
    if not self.owns(upload):  # the guard has seen to it, but what follows deletes
      return _block(
        '<div class="error" role="alert">The video is no longer there; drop it once more.</div>'
      ), ""
    with self.computing:
      try:
        return self._answer(path, progress)
      except UserError as error:
        text = str(error).replace(str(path), path.name)
        return _block(f'<div class="error" role="alert">{_text(text)}</div>'), ""
      finally:
        self.awaited[path] -= 1
        if self.awaited[path] <= 0:
          del self.awaited[path]
          shutil.rmtree(path.parent, ignore_errors=True)  # Gradio gives each upload a folder

  def _answer(self, path: Path, progress: Callable[..., object]) -> tuple[str, str]:
    started = time.monotonic()
    declared = self._check(path)

    def looked(seconds: float, declared: float | None = declared) -> None:
      if seconds > self.max_seconds:
        raise self._too_long()
      share = min(seconds / declared, 1.0) if declared else None
      progress(share, desc=f"looking at the pictures, {seconds:.0f} s")

    def over_time(doing: str, done: float, of: float | None) -> None:
      if doing == "look":
        looked(done, of)
      else:
        progress(done / of if of else None, desc=f"window {done:.0f} of {of:.0f}")

    sample = clip_sample(self.engine.about.inputs, path, self.finder, progress=looked)
    ((seen, prediction),) = predict_samples(self.engine, [sample], 1)
    prediction = dataclasses.replace(prediction, clip=path.name)
    timeline = None
    if prediction.seconds > self.window:
      timeline = predict_timeline(
        self.engine, path, window=self.window, hop=self.hop, faces=self.finder, progress=over_time
      )
    seconds = time.monotonic() - started
    return _block(*_answer_html(prediction, seconds)), _block(
      *_seen_html(self.engine.about, seen, prediction), *_timeline_html(timeline, self.window), *_json_html(self.engine.about, prediction, timeline)
    )  # fmt: skip

  def _check(self, path: Path) -> float | None:
    """Seconds that a video declares, after size and length were checked as far as they can be without its pictures."""
    if not path.exists():  # dropped twice in two windows, or forgotten in a long queue
      raise UserError(f"{path.name}: is no longer there; drop it once more")
    if path.stat().st_size > self.max_mb * MIB:
      raise UserError(f"{path.name}: is larger than {self.max_mb} MiB")
    declared = media.declared_seconds(path)
    if declared and declared > self.max_seconds:
      raise self._too_long()
    heard = 0.0
    for piece in media.iterate_sound(path):  # recordings of a browser often declare nothing
      heard += len(piece.waveform) / piece.sample_rate
      if heard > self.max_seconds:
        raise self._too_long()
    return declared

  def _too_long(self) -> UserError:
    return UserError(f"the video is longer than {self.max_seconds:g} s; cut out the part that you mean")


def _block(*parts: str) -> str:
  return f'<div class="page">{"".join(parts)}</div>'


def _text(words: str) -> str:
  """Words from outside, such as the name of a file, as text: neither HTML nor one of Gradio's templates."""
  return html.escape(words).translate({ord(sign): f"&#{ord(sign)};" for sign in "${}`"})


def _answer_html(prediction: Prediction, seconds: float) -> Iterator[str]:
  """The probabilities, what was read, and why to trust them less."""
  yield f'<p class="small">{_text(prediction.clip)}</p>'
  yield f'<p class="top" data-top="{_text(prediction.top)}">{_text(prediction.top)}</p>'
  yield '<div class="bars">'
  for name, share in sorted(prediction.probabilities.items(), key=lambda item: -item[1]):
    first = " first" * (name == prediction.top)
    yield (
      f'<div class="row{first}" data-class="{_text(name)}" data-probability="{share:.6f}">'
      f'<span>{_text(name)}</span><div class="track"><div class="fill" style="width:{100 * share:.1f}%">'
      f'</div></div><span class="percent">{100 * share:.1f} %</span></div>'
    )
  yield "</div>"
  if prediction.warnings:
    lines = "".join(f"<p>{_text(warning)}</p>" for warning in prediction.warnings)
    yield f'<div class="warnings" role="note">{lines}</div>'
  facts = [f"{prediction.seconds:.2f} s", f"{prediction.frames} frames"]
  if prediction.frames_with_face is not None:
    facts.append(f"a face in {prediction.frames_with_face}")
  facts.append(f"{prediction.seconds_of_sound:.2f} s of sound" if prediction.sound else "no sound")
  yield f'<p class="small">{", ".join(facts)}; answered in {seconds:.1f} s, and the video is deleted</p>'


def _seen_html(about: About, sample: Sample, prediction: Prediction) -> Iterator[str]:
  if "image" in about.streams:
    number, size = len(sample.video), about.inputs.image_size
    yield f"<h2>What the model saw: {number} frames of {size} x {size} pixels, evenly spread</h2>"
    yield f'<div class="strip" style="--frames:{number}">'
    yield from (f'<img alt="frame {i}" src="{_jpeg(frame)}">' for i, frame in enumerate(sample.video, 1))
    yield "</div>"
  rows, bins = sample.spectrogram.shape
  if "audio" not in about.streams or not prediction.sound:
    yield '<h2>What it heard</h2><p class="small">Nothing.</p>'
    return
  yield f"<h2>What it heard: the first {rows * ROW_SECONDS:.2f} s, log-mel in {bins} bins</h2>"
  yield f'<img class="wide" alt="spectrogram" src="{_png(_draw_spectrogram(sample))}">'


def _draw_spectrogram(sample: Sample) -> Figure:
  """Log-mel over time as the model gets it: a sound that is too short is padded, with what is louder than silence."""
  rows, bins = sample.spectrogram.shape
  length = rows * ROW_SECONDS
  figure = Figure(figsize=(11, 2.6), layout="constrained")
  axes = figure.subplots()
  axes.imshow(
    sample.spectrogram.T, origin="lower", aspect="auto", extent=(0, length, 0, bins), cmap="magma", interpolation="none"
  )  # fmt: skip
  if 0 < sample.seconds_of_sound < 0.85 * length:
    axes.text((sample.seconds_of_sound + length) / 2, bins / 2, "padding", ha="center", va="center")
  axes.set(xlabel="seconds", ylabel="mel bin", xlim=(0, length), yticks=[0, bins // 2, bins])
  return figure


def _timeline_html(timeline: Timeline | None, window: float) -> Iterator[str]:
  if timeline is None:
    yield "<h2>Over time</h2>"
    yield f'<p class="small">The video is no longer than one window of {window:g} s: there is no timeline.</p>'
    return
  yield f"<h2>Over time: {len(timeline.predictions)} windows of {timeline.window:g} s, one every {timeline.hop:g} s</h2>"
  figure = draw(timeline)
  figure.suptitle("")  # it names the file and the windows, which stand above
  yield f'<img class="wide" alt="timeline" src="{_png(figure)}">'


def _json_html(about: About, prediction: Prediction, timeline: Timeline | None) -> Iterator[str]:
  answer: dict[str, Any] = dataclasses.asdict(prediction) | {"precision": about.precision}
  if timeline is not None:
    windows = [dataclasses.asdict(one) | {"clip": prediction.clip} for one in timeline.predictions]
    answer |= {"window": timeline.window, "hop": timeline.hop, "windows": windows}
  text = json.dumps(answer, indent=2, ensure_ascii=False)
  name = _text(f"{Path(prediction.clip).stem}.json")
  yield '<details class="json"><summary>The answer as JSON</summary>'
  yield f'<p><a download="{name}" href="{_data("application/json", text.encode())}">save {name}</a></p>'
  yield f"<pre>{_text(text)}</pre></details>"


def _jpeg(pixels: np.ndarray) -> str:
  picture = Image.fromarray(pixels)
  picture.thumbnail((CROP_PIXELS, CROP_PIXELS))
  file = io.BytesIO()
  picture.save(file, "JPEG", quality=90)
  return _data("image/jpeg", file.getvalue())


def _png(figure: Figure) -> str:
  file = io.BytesIO()
  figure.savefig(file, format="png", dpi=120)
  return _data("image/png", file.getvalue())


def _data(kind: str, content: bytes) -> str:
  """An address that holds the content itself: nothing is written to a disk, and nothing need be removed."""
  return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _server(gr: Any, page: Page) -> Any:
  """The web server with the page in it, for `run`. Gradio's own `launch` is not used: it asks other hosts, and would
  take its address and more from the environment."""
  import fastapi
  import uvicorn

  app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
  app.add_middleware(Guard, page=page)
  system = (
    ["system-ui", "sans-serif"],
    ["ui-monospace", "monospace"],
  )  # plain names: Gradio's come from Google
  gr.mount_gradio_app(
    app, _blocks(gr, page), path="/", server_name=HOST, footer_links=[], run_history=False, show_error=False,
    max_file_size=page.max_mb * MIB, ssr_mode=False, enable_monitoring=False, pwa=False, mcp_server=False,
    theme=gr.themes.Default(primary_hue="blue", neutral_hue="gray", font=system[0], font_mono=system[1]),
    css=CSS, js=LIGHT,
  )  # fmt: skip
  return uvicorn.Server(
    uvicorn.Config(
      app, log_level="critical", access_log=False, ws="none", proxy_headers=False, server_header=False,
      timeout_graceful_shutdown=1,
    )
  )  # fmt: skip


def _blocks(gr: Any, page: Page) -> Any:
  """What is on the page, and what happens when a video arrives."""

  def answer(upload: str | None, progress=gr.Progress()):  # noqa: B008  # so Gradio knows that it is asked for
    if upload is None:  # the video was taken away again
      return gr.skip(), gr.skip(), gr.skip()
    return None, *page.answer(upload, progress)

  with gr.Blocks(
    title="MMA-DFER", analytics_enabled=False, delete_cache=(60, FORGOTTEN), fill_width=False
  ) as blocks:
    gr.HTML(_block(*_intro_html(page)))
    with gr.Row(equal_height=False):
      with gr.Column(scale=5, min_width=320):
        video = gr.Video(
          sources=["upload", "webcam"], label="Video", include_audio=True, height=340, elem_id="video",
          buttons=[], webcam_options=gr.WebcamOptions(mirror=False),
        )  # fmt: skip
        limits = (
          f"At most {page.max_mb} MiB and {page.max_seconds:g} s. It is answered as soon as it is here."
        )
        gr.HTML(_block(f'<p class="small">{limits}</p>'))
      with gr.Column(scale=6, min_width=320):
        said = gr.HTML(_block('<p class="empty">The answer will stand here.</p>'), elem_id="answer")
    seen = gr.HTML("", elem_id="seen")
    gr.on(
      [video.upload, video.stop_recording], answer, video, [video, said, seen], api_visibility="private",
      concurrency_limit=1, show_progress="full", show_progress_on=[said], trigger_mode="multiple",
    )  # fmt: skip
  return blocks.queue(max_size=WAITING, api_open=False)


def _intro_html(page: Page) -> Iterator[str]:
  about = page.engine.about
  yield "<h1>Emotion recognition from video and sound</h1>"
  yield (
    "<p>MMA-DFER, a research model: drop a video of one person, or record yourself. It knows only what it was trained "
    "on, and its answer is a guess from a face and a voice, not what somebody feels.</p>"
  )
  origin = {"model": Path(_MODEL.value).resolve().name, **about.origin, "precision": about.precision}
  if about.config.get("data.data_dir"):
    origin |= {"trained on": f"{about.config['data.name']} in {about.config['data.data_dir']}"}
  facts = [f"{key.replace('_', ' ')}: {value}" for key, value in origin.items()]
  facts.append(f"faces: {described(page.finder)}")
  yield f'<p class="small">Nothing is kept and nothing leaves this machine. {_text(" · ".join(facts))}</p>'


class Guard:
  """Lets in only this machine's own page, and sends the headers that hold the browser to it.

  A page of another host, open in the same browser, could else send files here, or reach this server under a name of
  its own that leads to 127.0.0.1. And another user of this machine could name any file that this process can read:
  only what was uploaded may be named.
  """

  def __init__(self, app: Any, page: Page):
    self.app, self.page = app, page

  async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
      await self.app(scope, receive, send)
      return
    headers = {name.decode("latin1").lower(): value.decode("latin1") for name, value in scope["headers"]}

    async def guarded(message: Any) -> None:
      if message["type"] == "http.response.start":
        kept = [
          (name, value) for name, value in message.get("headers", []) if name.lower().decode() not in HEADERS
        ]
        message = {**message, "headers": kept + [(n.encode(), v.encode()) for n, v in HEADERS.items()]}
      await send(message)

    refusal = "" if _is_own(headers) else "This page can be used only from the machine it runs on."
    if (
      not refusal
      and scope["method"] == "POST"
      and "multipart/form-data" not in headers.get("content-type", "")
    ):
      body = await _body(receive)
      receive = _again(body, receive)
      named = _named_files(body)
      if named is None or not all(self.page.owns(path) for path in named):
        refusal = "Only a video that was uploaded to this page can be answered."
      elif scope["path"].endswith("/queue/join"):
        self.page.awaited.update(Path(path) for path in named)
    if not refusal:
      await self.app(scope, receive, guarded)
      return
    await guarded(
      {"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]}
    )
    await guarded({"type": "http.response.body", "body": f"{refusal}\n".encode()})


async def _body(receive: Any) -> bytes | None:
  """All of a request's body; None if it is longer than any that the page sends."""
  body, more = b"", True
  while more:
    message = await receive()
    body += message.get("body", b"")
    more = message.get("more_body", False)
    if len(body) > MIB:
      return None
  return body


def _again(body: bytes | None, receive: Any) -> Any:
  """What gives a body that was read already, and then whatever comes."""
  waiting = [{"type": "http.request", "body": body or b"", "more_body": False}]

  async def replay() -> Any:
    return waiting.pop() if waiting else await receive()

  return replay


def _named_files(body: bytes | None) -> list[str] | None:
  """Files that a request names, wherever in its JSON; None if it is no JSON, or too long."""
  if body is None:
    return None
  try:
    waiting = [json.loads(body or b"null")]
  except (ValueError, RecursionError):
    return None
  found: list[str] = []
  while waiting:
    value = waiting.pop()
    if isinstance(value, dict):
      # What a file of Gradio's is made of; "path" is its place on this machine.
      found += [str(value["path"])] if "path" in value else []
      waiting += value.values()
    elif isinstance(value, list):
      waiting += value
  return found


def _is_own(headers: dict[str, str]) -> bool:
  """Whether a request is addressed to this machine by its own name, and sent by its own page if by any."""
  host, origin = headers.get("host", ""), headers.get("origin")
  if urlsplit(f"//{host}").hostname not in (HOST, "localhost"):
    return False
  return (origin is None or urlsplit(origin).netloc == host) and headers.get("sec-fetch-site") != "cross-site"


if __name__ == "__main__":
  cli.run(main)
