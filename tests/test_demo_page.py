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
from PIL import Image
import pytest

from mma_dfer_jax import convert_checkpoint, load_model
from mma_dfer_jax.data import demo, media
from mma_dfer_jax.engines.engine import Engine
from mma_dfer_jax.errors import UserError
from mma_dfer_jax.prediction import predict_video

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
THERE = {
  "selenium": importlib.util.find_spec("selenium"),
  "chromium": CHROMIUM,
  "chromedriver (on Debian: chromium-driver)": DRIVER,
}
MISSING = [name for name, there in THERE.items() if not there]
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
  moving = [Image.fromarray(frame) for frame in frames[:20]]
  moving[0].save(folder / "moving.gif", save_all=True, append_images=moving[1:], duration=100)
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
  """Chromium with a camera and a microphone of its own, which show a pattern and beep."""
  from selenium import webdriver
  from selenium.webdriver.chrome.service import Service

  options = webdriver.ChromeOptions()
  options.binary_location = CHROMIUM
  for flag in ("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
               "disable-component-update", "disable-sync", "use-fake-device-for-media-stream",
               "use-fake-ui-for-media-stream", f"user-data-dir={tmp_path / 'browser'}"):  # fmt: skip
    options.add_argument(f"--{flag}")
  options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
  driver = webdriver.Chrome(options=options, service=Service(DRIVER))
  yield driver
  driver.quit()


def texts(browser, css: str) -> list[str]:
  """Of all elements, in one step: the page may be built anew between two."""
  return browser.execute_script(f"return [...document.querySelectorAll({css!r})].map(one => one.textContent)")


def drop(browser, file: Path, css: str, words: str) -> str:
  """Gives a file to the page, and waits until an element of the answer holds these words."""
  from selenium.webdriver.common.by import By

  browser.find_element(By.ID, "file").send_keys(str(file))
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
  from selenium.webdriver.common.by import By
  from selenium.webdriver.common.keys import Keys

  flags = "--max_mb=1", "--max_seconds=20", "--window=1", "--hop=0.5"
  served = Served(tmp_path / "served", f"--model={model}", *flags)
  try:
    browser.set_window_size(1280, 1000)
    browser.get(served.address)
    eventually(lambda: "model: model" in texts(browser, "#facts")[0])

    # An answer, and it is that of the command line.
    expected = predict_video(load_model(model), clips / "one & only.mp4", faces="none")
    drop(browser, clips / "one & only.mp4", "#answer .name", "one & only.mp4")
    eventually(lambda: texts(browser, "#seen details.json pre"))
    assert texts(browser, "#answer .top") == [expected.top or "No answer"]
    said = json.loads(texts(browser, "#seen details.json pre")[0])
    assert said["clip"] == "one & only.mp4"
    assert said["probabilities"] == pytest.approx(expected.probabilities, abs=1e-6)
    assert [window["start"] for window in said["windows"]] == [0.0, 0.5]
    shown = [float(text.removesuffix(" %")) for text in texts(browser, "#answer .percent")]
    percents = sorted((100 * p for p in expected.probabilities.values()), reverse=True)
    assert shown == pytest.approx(percents, abs=0.06)
    pictures = "return [...document.querySelectorAll('#seen img')].map(i => [i.alt, i.naturalWidth])"
    sizes = eventually(
      lambda: all(w for _, w in browser.execute_script(pictures)) and browser.execute_script(pictures)
    )
    assert [alt for alt, _ in sizes] == [*(f"frame {i}" for i in range(1, 17)), "spectrogram"]
    eventually(lambda: not served.left(), 5)
    check_timeline(browser, said, Keys, By)
    check_looks(browser)

    # A moving picture as the command takes it.
    drop(browser, clips / "moving.gif", "#answer .name", "moving.gif")
    assert browser.execute_script("return document.getElementById('still').naturalWidth") > 0
    # What cannot be answered is said, and the page goes on.
    words = drop(browser, clips / "text.mp4", "#answer .error", "text.mp4")
    assert words.startswith("text.mp4: is not supported: it is no video")
    drop(browser, clips / "long.mp4", "#answer .error", "longer than 20 s")
    drop(browser, clips / "large.mp4", "#answer .error", "larger than 1 MiB")
    drop(browser, clips / "silent film.mp4", "#answer .name", "silent film.mp4")
    warnings = eventually(lambda: texts(browser, "#answer .warnings"))
    assert "no sound" in " ".join(warnings)
    assert "only 8 of 16 frames" in " ".join(warnings)
    check_cameras(browser, By)
    eventually(lambda: not served.left(), 5)

    assert asked(browser) == {urlsplit(served.address).netloc}
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    status, seconds = served.end(signal.SIGINT)
    assert (status, seconds < 8) == (130, True)
    assert list(served.folder.iterdir()) == []
    assert "Traceback" not in served.log.read_text()
  finally:
    served.process.kill()


def check_timeline(browser, said: dict, keys, by) -> None:
  """A click on the timeline, and the keys of its slider, move the video; the table holds every value."""
  where = "return document.getElementById('video').currentTime"
  drawing = browser.find_element(by.CSS_SELECTOR, ".timeline svg")
  browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", drawing)
  drawing.click()  # in the middle
  assert eventually(lambda: browser.execute_script(where)) == pytest.approx(0.75, abs=0.1)
  assert re.match(r"0\.7 s: |0\.8 s: ", texts(browser, ".value")[0])
  slider = browser.find_element(by.CSS_SELECTOR, ".timeline input")
  slider.send_keys(keys.HOME)
  eventually(lambda: browser.execute_script(where) == 0)
  slider.send_keys(keys.ARROW_RIGHT)
  eventually(lambda: browser.execute_script(where) == pytest.approx(0.1, abs=0.01))
  cells = texts(browser, "#seen table td")
  names = list(said["probabilities"])
  assert texts(browser, "#seen table thead th") == ["start, s", "end, s", "answer", *names]
  assert cells[2 : 2 + len(names)] == [f"{100 * said['windows'][0]['probabilities'][n]:.1f} %" for n in names]


def check_looks(browser) -> None:
  """Nothing is wider than a telephone; words are readable on a light and on a dark ground."""
  browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True})  # fmt: skip
  for scheme in ("light", "dark"):
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})  # fmt: skip
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    colours = browser.execute_script(
      "return [...document.querySelectorAll('body, .small, .percent, .top, pre')].map(one => getComputedStyle(one).color)"
    )
    ground = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert all(contrast(colour, ground) >= 4.5 for colour in colours), (colours, ground)
  browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def contrast(one: str, other: str) -> float:
  """Of two colours, as WCAG 2 defines it."""

  def luminance(colour: str) -> float:
    shares = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

  low, high = sorted((luminance(one), luminance(other)))
  return (high + 0.05) / (low + 0.05)


def check_cameras(browser, by) -> None:
  """A recording is answered like a file; a live camera is answered every hop."""
  record, live = browser.find_element(by.ID, "record"), browser.find_element(by.ID, "live")
  record.click()
  eventually(lambda: record.text == "Stop and answer")
  time.sleep(1.5)
  record.click()
  eventually(
    lambda: "recording.webm" in texts(browser, "#answer .name")[0:1] and texts(browser, "#answer .top")
  )
  live.click()
  first = eventually(lambda: texts(browser, "#answer .live"))[0]
  assert re.search(r"live: [\d.]+ frames a second, an answer takes \d+ ms", first)
  eventually(lambda: texts(browser, "#answer .live") not in ([first], []))
  live.click()
  assert live.get_attribute("aria-pressed") == "false"


@pytest.mark.slow
def test_requests(model, clips, tmp_path):
  """An answer comes in lines; what another page in the same browser might send is refused, and leaves nothing."""
  served = Served(tmp_path / "served", f"--model={model}", "--max_mb=1")
  try:
    address = urlsplit(served.address)
    host = f"Host: {address.netloc}"
    own = request(address.port, "GET / HTTP/1.1", host)
    for line in ("HTTP/1.0 200", "Content-Security-Policy: default-src 'none'", "Cache-Control: no-store"):
      assert line in own
    video = (clips / "one & only.mp4").read_bytes()
    post = "POST /answer?name=a%2F..%2F%26b.mp4 HTTP/1.1"
    answer = request(address.port, post, host, f"Content-Length: {len(video)}", body=video)
    *steps, last = map(json.loads, answer.split("\r\n\r\n", 1)[1].splitlines())
    assert last["answer"]["json"]["clip"] == "a..&b.mp4"
    assert any("looking at the pictures" in step["doing"] for step in steps)
    for headers, status in [
      ([host, "Origin: http://other.example"], 403), ([host, "Origin: null"], 403), (["Host: other.example"], 403),
      ([host, "Sec-Fetch-Site: cross-site"], 403), ([host, "Sec-Fetch-Site: same-site"], 403),
    ]:  # fmt: skip
      assert request(address.port, post, *headers, "Content-Length: 0").startswith(f"HTTP/1.0 {status}"), (
        headers
      )
    for line, length, status in [(post, "Content-Length: 99999999", 413), (post, "Content-Length: -1", 411), (post, "X: y", 411),
                                 ("POST /nowhere HTTP/1.1", "Content-Length: 0", 404), ("GET /../page.py HTTP/1.1", "X: y", 404),
                                 ("PUT / HTTP/1.1", "X: y", 501)]:  # fmt: skip
      assert request(address.port, line, host, length).startswith(f"HTTP/1.0 {status}"), line
    for body in ("", "[]", "{", '{"frames": ["AAAA"], "times": [0], "end": 1, "sound": "", "rate": null}'):
      answer = request(
        address.port, "POST /live HTTP/1.1", host, f"Content-Length: {len(body)}", body=body.encode()
      )
      assert "error" in json.loads(answer.split("\r\n\r\n", 1)[1]), body
    with socket.create_connection(("127.0.0.1", address.port or 0)) as connection:  # somebody leaves half-way
      connection.sendall("\r\n".join([post, host, "Content-Length: 1000", "", "half"]).encode())
      eventually(served.left)
    eventually(lambda: not served.left())
    assert "Traceback" not in served.log.read_text()
  finally:
    served.process.kill()


def request(port: int | None, *lines: str, body: bytes = b"") -> str:
  """The whole answer."""
  with socket.create_connection(("127.0.0.1", port or 0), timeout=SECONDS) as connection:
    connection.sendall("\r\n".join([*lines, "Connection: close", "", ""]).encode() + body)
    return b"".join(iter(lambda: connection.recv(2**16), b"")).decode("latin1")


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


def test_uploads_take_turns_and_the_channel_is_heard(tmp_path):
  """Whatever goes wrong is a sentence with the file's name; a visitor who leaves makes room for the next."""
  from mma_dfer_jax import page as module

  page = module.Page(
    mock.MagicMock(spec=Engine, about=mock.MagicMock()), "model", None, tmp_path, 1, 10.0, 4.0, 1.0, "loudest"
  )
  file = tmp_path / "a.mp4"
  file.write_text("no video")
  with pytest.raises(UserError, match=r"^a\.mp4: is not supported"):
    page.answer(file, file.name, lambda line: None)
  with mock.patch.object(page, "_answer", side_effect=TypeError("31 is odd")), pytest.raises(UserError, match=r"^a\.mp4: cannot be decoded \(TypeError: 31 is odd"):  # fmt: skip
    page.answer(file, file.name, lambda line: None)
  with (
    mock.patch.object(module, "media", one_clip=media.one_clip, **{"iterate_sound.return_value": [], "declared_seconds.return_value": 1.0}),
    mock.patch.object(module, "person_samples", side_effect=UserError("heard")) as asked,
    pytest.raises(UserError, match="heard"),
  ):  # fmt: skip
    page.answer(file, file.name, lambda line: None)
  assert asked.call_args.kwargs["channel"] == "loudest"
  with page.computing:
    with mock.patch.object(module, "WAITING", 0), pytest.raises(UserError, match="waiting already"):
      page.answer(file, file.name, lambda line: None)
    with pytest.raises(BrokenPipeError):
      page.answer(file, file.name, mock.Mock(side_effect=BrokenPipeError))
    assert page.live({}) == {}
  assert page.waiting == 0


def test_the_next_server_removes_what_a_killed_one_left(tmp_path, monkeypatch):
  monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
  for name in ("mma_dfer_page_dead", "mma_dfer_page_runs", "other"):
    (tmp_path / name / "uploads").mkdir(parents=True)
  lock = os.open(tmp_path / "mma_dfer_page_runs", os.O_RDONLY)
  fcntl.flock(lock, fcntl.LOCK_EX)
  load("demo_page")._remove_what_killed_servers_left()
  os.close(lock)
  assert sorted(path.name for path in tmp_path.iterdir()) == ["mma_dfer_page_runs", "other"]
