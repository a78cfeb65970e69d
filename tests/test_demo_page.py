"""The web page in a real browser: a video is dropped, the answer is read, nothing is left and nobody else is asked."""

from collections.abc import Callable, Iterator
import fcntl
import importlib.util
import json
import os
from pathlib import Path
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from unittest import mock
from urllib.parse import urlsplit

from commands import load, run
from conftest import GOLDEN, ROOT
import numpy as np
import pytest

from mma_dfer_jax import convert_checkpoint, load_model
from mma_dfer_jax.data import demo, media
from mma_dfer_jax.engines.engine import Engine
from mma_dfer_jax.errors import UserError
from mma_dfer_jax.prediction import predict_video

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
THERE = {
  "gradio (pip install 'mma_dfer_jax[demo-page]')": importlib.util.find_spec("gradio"),
  "selenium": importlib.util.find_spec("selenium"),
  "chromium": CHROMIUM,
  "chromedriver (on Debian: chromium-driver)": DRIVER,
}
MISSING = [name for name, there in THERE.items() if not there]
NEEDS_GRADIO = pytest.mark.skipif(not importlib.util.find_spec("gradio"), reason="there is no gradio")
SECONDS = 40  # for whatever is waited for


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
  folder = tmp_path_factory.mktemp("page") / "model"
  convert_checkpoint(GOLDEN / "tiny_reference_checkpoint.pth", folder, classes="dfew")
  return folder


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
  """A video longer than a window, one that is too long, one without sound, and one that is none."""
  folder = tmp_path_factory.mktemp("clips")
  gesture, style = demo.CLASSES["surprise"]
  frames = demo.clip_picture(gesture, np.random.default_rng(1), 30)
  voice = demo.clip_voice(style, np.random.default_rng(2), 1.5)
  demo.write_clip(folder / "one & only.mp4", frames, voice, demo.FPS, demo.SAMPLE_RATE)
  demo.write_clip(folder / "silent film.mp4", frames[:8], None, demo.FPS, demo.SAMPLE_RATE)
  demo.write_clip(folder / "long.mp4", frames, None, 1, demo.SAMPLE_RATE)
  (folder / "text.mp4").write_text("this is no video\n" * 99)
  (folder / "large.mp4").write_bytes(bytes(2**20 + 1))
  return folder


def test_wrong_flags_are_messages():
  with socket.create_server(("127.0.0.1", 0)) as taken:  # named before a model is loaded
    port = taken.getsockname()[1]
    for flags, status, message in [
      ([], 2, "--model"),
      (["--model=nowhere", "--window=1", "--hop=2"], 1, "window=1 and hop=2"),
      (["--model=nowhere", "--max_mb=0"], 2, "max_mb"),
      (["--model=nowhere", f"--port={port}"], 1,
       f"error: --port={port} cannot be used on 127.0.0.1 (Address already in use)"),
    ]:  # fmt: skip
      found, _, err = run("demo_page", *flags)
      assert (found, message in err, "Traceback" in err) == (status, True, False), err


def test_without_gradio_it_says_how_to_get_it(tmp_path, monkeypatch):
  monkeypatch.setattr(tempfile, "tempdir", None)
  with (
    mock.patch.dict(sys.modules, {"gradio": None}),
    mock.patch.dict(os.environ),
    pytest.raises(UserError, match=re.escape("pip install 'mma_dfer_jax[demo-page]'")),
  ):
    load("demo_page")._prepare_gradio(str(tmp_path))


class Served:
  """The real command, and the folder in which it may leave nothing."""

  def __init__(self, folder: Path, *flags: object):
    self.folder = folder
    folder.mkdir()
    self.log = folder.with_suffix(".log")
    with self.log.open("w") as log:
      self.process = subprocess.Popen(
        [sys.executable, "-m", "mma_dfer_jax.demo_page", "--port=0", "--faces=none", *map(str, flags)],
        cwd=ROOT, env={**os.environ, "TMPDIR": str(folder)}, stdout=log, stderr=subprocess.STDOUT,
      )  # fmt: skip
    self.address = eventually(self._address)

  def _address(self) -> str | None:
    assert self.process.poll() is None, self.log.read_text()
    found = re.search(r"^open (http://127\.0\.0\.1:\d+/) ", self.log.read_text(), re.MULTILINE)
    return found and found[1]

  def left(self) -> list[Path]:
    return [path for path in self.folder.rglob("*") if path.is_file()]

  def end(self, number: signal.Signals) -> tuple[int, float]:
    """Exit status, and seconds until it came."""
    started = time.monotonic()
    self.process.send_signal(number)
    return self.process.wait(SECONDS), time.monotonic() - started


def eventually(what: Callable, seconds: float = SECONDS):
  """What is first true."""
  until = time.monotonic() + seconds
  while not (found := what()):
    assert time.monotonic() < until, "waited in vain"
    time.sleep(0.05)
  return found


@pytest.fixture
def browser(tmp_path) -> Iterator:
  from selenium import webdriver
  from selenium.webdriver.chrome.service import Service

  options = webdriver.ChromeOptions()
  options.binary_location = CHROMIUM
  for flag in ("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
               "disable-component-update", "disable-sync", f"user-data-dir={tmp_path / 'browser'}"):  # fmt: skip
    options.add_argument(f"--{flag}")
  options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
  driver = webdriver.Chrome(options=options, service=Service(DRIVER))
  yield driver
  driver.quit()


def texts(browser, css: str) -> list[str]:
  """Of all elements, in one step: the page may be built anew between two."""
  return browser.execute_script(f"return [...document.querySelectorAll({css!r})].map(one => one.textContent)")


def drop(browser, file: Path, css: str, words: str) -> str:
  """Gives a file to the page, and waits until an element of the answer holds these words."""
  from selenium.webdriver.common.by import By

  (entry,) = eventually(lambda: browser.find_elements(By.CSS_SELECTOR, "#video input[type=file]"))
  entry.send_keys(str(file))
  return eventually(lambda: next((text for text in texts(browser, css) if words in text), None))


def asked(browser) -> set[str]:
  """Hosts that the page sent requests to; the browser's own start page is not the page."""
  addresses = []
  for entry in browser.get_log("performance"):
    message = json.loads(entry["message"])["message"]
    if message["method"] in ("Network.requestWillBeSent", "Network.webSocketCreated"):
      addresses.append(message["params"].get("request", message["params"])["url"])
  return {urlsplit(one).netloc for one in addresses if one.startswith(("http", "ws"))}


@pytest.mark.slow
@pytest.mark.skipif(bool(MISSING), reason=f"there is no {', no '.join(MISSING)}")
def test_the_page_in_a_browser(model, clips, tmp_path, browser):
  flags = "--max_mb=1", "--max_seconds=20", "--window=1", "--hop=0.5"
  served = Served(tmp_path / "served", f"--model={model}", *flags)
  try:
    browser.get(served.address)
    eventually(lambda: browser.title == "MMA-DFER")

    # An answer, and it is that of the command line.
    expected = predict_video(load_model(model), clips / "one & only.mp4", faces="none")
    drop(browser, clips / "one & only.mp4", "#answer .small", "one & only.mp4")
    eventually(lambda: texts(browser, "#seen details.json pre"))
    assert texts(browser, "#answer .top") == [expected.top]
    said = json.loads(texts(browser, "#seen details.json pre")[0])
    assert said["clip"] == "one & only.mp4"
    assert said["probabilities"] == pytest.approx(expected.probabilities, abs=1e-6)
    assert [window["start"] for window in said["windows"]] == [0.0, 0.5]
    shown = [float(text.removesuffix(" %")) for text in texts(browser, "#answer .percent")]
    percents = sorted((100 * p for p in expected.probabilities.values()), reverse=True)
    assert shown == pytest.approx(percents, abs=0.06)
    pictures = "return [...document.querySelectorAll('#seen img')].map(i => [i.alt, i.naturalWidth])"
    sizes = browser.execute_script(pictures)
    assert [alt for alt, _ in sizes] == [*(f"frame {i}" for i in range(1, 17)), "spectrogram", "timeline"]
    assert all(width >= 64 for _, width in sizes), "all pictures are there"
    eventually(lambda: not served.left(), 5)

    # What cannot be answered is said, and the page goes on.
    assert "text.mp4: is not supported: it is no video" in drop(
      browser, clips / "text.mp4", "#answer .error", "text.mp4"
    )
    assert str(tmp_path) not in texts(browser, "#answer")[0]
    drop(browser, clips / "long.mp4", "#answer .error", "longer than 20 s")
    drop(browser, clips / "large.mp4", "[class*=toast]", "exceed the maximum allowed size")
    drop(browser, clips / "silent film.mp4", "#answer .small", "silent film.mp4")
    assert "no sound" in texts(browser, "#answer .warnings")[0]
    assert "only 8 of 16 frames" in texts(browser, "#answer .warnings")[0]
    eventually(lambda: not served.left(), 5)

    assert asked(browser) == {urlsplit(served.address).netloc}
    check_guard(served)
    status, seconds = served.end(signal.SIGINT)
    assert (status, seconds < 8) == (130, True)
    assert list(served.folder.iterdir()) == []
    assert "Traceback" not in served.log.read_text()
  finally:
    served.process.kill()


def check_guard(served: Served) -> None:
  """What another page in the same browser might send is refused, and sent nowhere; the page says whom it may ask."""
  address = urlsplit(served.address)
  host = f"Host: {address.netloc}"
  own = request(address.port, "GET / HTTP/1.1", host)
  for line in ("HTTP/1.1 200", "content-security-policy: default-src 'self'", "cache-control: no-store"):
    assert line in own
  post = "POST /gradio_api/upload HTTP/1.1"
  for headers in ([host, "Origin: http://other.example"], [host, "Origin: null"], [host, "Sec-Fetch-Site: cross-site"],
                  ["Host: other.example"]):  # fmt: skip
    assert request(address.port, post, *headers, "Content-Length: 0").startswith("HTTP/1.1 403"), headers
  # A program of another user, which knows the address, names files; a page that is none sends no JSON, or too much.
  for file in ("/etc/passwd", "/dev/zero", "uploads/../../x", "", None, "x" * 2**20):
    data = [{"path": file, "meta": {"_type": "gradio.FileData"}}]
    body = (
      json.dumps({"data": data, "fn_index": 0, "session_hash": "x"}) if file is not None else "[" * 10_000
    )
    headers = [host, "Content-Type: application/json", f"Content-Length: {len(body)}"]
    answer = request(address.port, "POST /gradio_api/queue/join HTTP/1.1", *headers, body=body)
    assert answer.startswith("HTTP/1.1 403"), file
  assert served.left() == []


def request(port: int | None, *lines: str, body: str = "") -> str:
  """The answer's first 4 KiB."""
  with socket.create_connection(("127.0.0.1", port or 0), timeout=10) as connection:
    connection.sendall("\r\n".join([*lines, "Connection: close", "", body]).encode())
    return connection.recv(4096).decode("latin1")


@pytest.mark.parametrize(
  ("number", "status"), [(signal.SIGTERM, 0), (signal.SIGHUP, 0), (signal.SIGINT, 130)]
)
def test_signals_remove_the_folder_and_end_the_process(tmp_path, number, status):
  """The page in a browser above ends so too."""
  (tmp_path / "page").mkdir()
  before = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
  with mock.patch("os._exit") as ended:
    load("demo_page")._end_on_signals(str(tmp_path / "page"))
    signal.raise_signal(number)
  for one, handler in before.items():
    signal.signal(one, handler)
  ended.assert_called_once_with(status)
  assert not (tmp_path / "page").exists()


@pytest.mark.slow  # it imports Gradio
@NEEDS_GRADIO
def test_each_upload_is_of_one_visitor_and_is_swept(tmp_path, monkeypatch):
  from mma_dfer_jax import page as module

  page = module.Page(
    mock.MagicMock(spec=Engine, about=mock.MagicMock()), "model", None, tmp_path, 1, 10.0, 4.0, 1.0
  )
  shared = tmp_path / "uploads" / "hash" / "a.mp4"
  shared.parent.mkdir(parents=True)
  shared.write_text("no video")
  first, second, third = (
    page.received(str(shared)) for _ in range(3)
  )  # the same file, from two windows and a third
  page.sweep()
  assert not shared.exists()
  assert all(map(page.owns, (first, second, third)))
  page.waiting |= {Path(path): (visitor, time.monotonic()) for path, visitor in ((second, "b"), (third, "c"))}
  page.sweep(gone="b")  # closed tab
  assert [page.owns(path) for path in (first, second, third)] == [True, False, True]
  said, _ = page.answer(third, lambda *args, **kwargs: None)
  assert "is not supported" in said
  assert "no longer there" in page.answer(third, lambda *args, **kwargs: None)[0]
  with mock.patch.object(page, "_answer", side_effect=TypeError("31 is odd")):
    fourth = page.received(first)
    assert (
      "a.mp4: cannot be decoded (TypeError: 31 is odd)"
      in page.answer(fourth, lambda *args, **kwargs: None)[0]
    )
  page.channel = "loudest"
  with (
    mock.patch.object(
      module,
      "media",
      one_clip=media.one_clip,
      **{"iterate_sound.return_value": [], "declared_seconds.return_value": 1.0},
    ),
    mock.patch.object(module, "clip_sample", side_effect=UserError("heard")) as asked,
  ):
    assert "heard" in page.answer(page.received(first), lambda *args, **kwargs: None)[0]
  assert asked.call_args.kwargs["channel"] == "loudest"
  (tmp_path / "uploads" / "half").write_text("never arrived whole")
  page.arriving = 1
  page.sweep()
  assert (tmp_path / "uploads" / "half").exists()
  page.arriving = 0
  monkeypatch.setattr(module, "NEVER_ASKED", -1)
  page.sweep()
  assert list((tmp_path / "uploads").iterdir()) == []
  assert not page.owns("/etc/passwd")
  assert not page.owns(str(tmp_path / "uploads"))


def test_the_next_server_removes_what_a_killed_one_left(tmp_path, monkeypatch):
  monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
  for name in ("mma_dfer_page_dead", "mma_dfer_page_runs", "other"):
    (tmp_path / name / "uploads").mkdir(parents=True)
  lock = os.open(tmp_path / "mma_dfer_page_runs", os.O_RDONLY)
  fcntl.flock(lock, fcntl.LOCK_EX)
  load("demo_page")._remove_what_killed_servers_left()
  os.close(lock)
  assert sorted(path.name for path in tmp_path.iterdir()) == ["mma_dfer_page_runs", "other"]
