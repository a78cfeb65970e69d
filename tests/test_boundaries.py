"""Whatever is raised at one clip, by a command, in a config: who is told what, and that the rest goes on."""

from fractions import Fraction
import io
import json
import os
from pathlib import Path
import signal
import subprocess
import sys
import time

import av
from clip_files import iterate_frames
from commands import own_flags, run
from conftest import ROOT
from films import hum, noise, write_film
from model_folders import model_folder
import numpy as np
from PIL import Image
import pytest

from mma_dfer_jax.cli import StopSignal
from mma_dfer_jax.config import PATHS, default_config, resolve_paths
from mma_dfer_jax.data import film
from mma_dfer_jax.engines import engine
from mma_dfer_jax.errors import UserError
from mma_dfer_jax.paths import user_files
from mma_dfer_jax.pretraining_config import pretraining_config


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
  return model_folder(tmp_path_factory.mktemp("model") / "model")


def raising(error: Exception):
  def fail(*_, **__):
    raise error

  return fail


@pytest.mark.parametrize("flags", [[], ["--window=1"]])
def test_what_a_library_raises_at_a_clip_is_its_own_error(tmp_path, model, monkeypatch, flags):
  for name in ("a.mkv", "b.mkv", "c.mkv"):
    write_film(tmp_path / name, noise(20), hum(0.8))
  survey = film.survey
  monkeypatch.setattr(
    film, "survey", lambda file, *rest, **how: (raising(TypeError("31 is\nodd")) if file[0] == "b" else survey)(file, *rest, **how)
  )  # fmt: skip
  arguments = [f"--model={model}", "--faces=none", "--out=out", *flags, "a.mkv", "b.mkv", "c.mkv"]
  status, _, err = run("predict", *arguments, at=tmp_path)
  assert (status, "Traceback" in err) == (1, False)
  assert "error: b.mkv: cannot be decoded (TypeError: 31 is odd)" in err
  assert "1 of 3 clips could not be answered" in err
  table = (tmp_path / "out/answers.csv").read_text()
  assert ["a.mkv" in table, "b.mkv" in table, "c.mkv" in table] == [True, False, True]
  monkeypatch.setenv("MMA_DFER_TRACEBACK", "1")
  assert "in fail" in run("predict", *arguments, at=tmp_path)[2]


@pytest.mark.parametrize(
  ("number", "status", "by"),
  [("SIGINT", 130, "Ctrl-C"), ("SIGTERM", 143, "SIGTERM"), ("SIGHUP", 129, "SIGHUP")],
)
def test_a_stopped_command_keeps_what_is_answered(tmp_path, model, monkeypatch, number, status, by):
  for name in ("a.mkv", "b.mkv", "c.mkv"):
    write_film(tmp_path / name, noise(20), hum(0.8))
  survey = film.survey

  def kill(*_, **__):
    for _ in range(1000):  # clips are decoded ahead of answers
      if (tmp_path / "out/a.json").exists():
        break
      time.sleep(0.02)
    os.kill(os.getpid(), signal.Signals[number])

  before = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
  with monkeypatch.context() as patch:
    patch.setattr(
      film, "survey", lambda file, *rest, **how: (kill if file[0] == "b" else survey)(file, *rest, **how)
    )
    arguments = [f"--model={model}", "--faces=none", "--out=out", "a.mkv", "b.mkv", "c.mkv"]
    try:
      ended, _, err = run("predict", *arguments, at=tmp_path)
    finally:
      for one, handler in before.items():
        signal.signal(one, handler)
  assert (ended, err.splitlines()[-1]) == (status, f"error: stopped by {by}")
  table = (tmp_path / "out/answers.csv").read_text()
  assert [name in table for name in ("a.mkv", "b.mkv", "c.mkv")] == [True, False, False]
  assert {path.name for path in (tmp_path / "out").iterdir()} == {"a.json", "answers.csv"}


@pytest.mark.parametrize(
  ("error", "says"),
  [
    (TypeError("odd"), "internal error (TypeError: odd); run again with --traceback to see where"),
    (OSError(28, "No space left on device", "/a/b"), "/a/b cannot be written or read: No space left on device"),
    (FileNotFoundError(2, "No such file", "/a/b"), "no such file or folder: /a/b"),
    (UserError("is odd"), "is odd"),
  ],
)  # fmt: skip
def test_what_ends_a_command_is_one_line(tmp_path, monkeypatch, error, says):
  monkeypatch.setattr(engine, "load_model", raising(error))
  monkeypatch.setenv("MMA_DFER_TRACEBACK", "0")
  arguments = ["--model=m", "--out=out", "a.mkv"]
  assert run("predict", *arguments, at=tmp_path) == (1, "", f"loading {tmp_path}/m …\nerror: {says}\n")
  assert "in fail" in run("predict", *arguments, "--traceback", at=tmp_path)[2]


@pytest.mark.parametrize(
  ("command", "flags", "says"),
  [
    ("train", [], "give --workdir and --config"),
    ("evaluate", [], "give one of --workdir, --workdirs and --compare"),
    ("evaluate", ["--workdir=a", "--workdirs=b"], "give one of --workdir, --workdirs and --compare"),
    ("demo_page", ["--model=a", "--port=ten"], "flag --port=ten: 'ten' is not a whole number"),
    ("predict", ["--model=a", "--out=b", "--hop=x"], "flag --hop=x: 'x' is not a number"),
    ("predict", ["--model=a", "--out=s3://b"],
     "flag --out=s3://b: 's3://b' is an address, not a path; download or mount it first"),
    ("train", ["--config=demo", "--workdir=a", "--config.batch_size=x"],
     "flag --config.batch_size=x: 'x' is not a whole number"),
    ("train", ["--config=demo", "--workdir=a", "--config.data.data_dir=--x", "--config.init_from=~nobody_/x"],
     "this run cannot start:\n  - init_from: '~nobody_/x' names a home folder that this machine does not have\n"
     "  - data.data_dir: '--x' looks like a flag; if it is a path, write ./--x"),
    ("train", ["--config=own.py", "--workdir=a"],
     "flag --config=own.py: cannot be read (NameError: name 'c' is not defined, at own.py, line 2)"),
  ],
)  # fmt: skip
def test_wrong_flags_in_plain_words(tmp_path, command, flags, says):
  (tmp_path / "own.py").write_text("def get_config():\n  return c\n")
  status, _, err = run(command, *flags, at=tmp_path)
  assert status in (1, 2)
  assert err == f"error: {says}\n"


def test_a_field_that_looks_like_another(tmp_path):
  _, _, err = run("train", "--config=demo", "--config.eval_evry=2", "--workdir=a", at=tmp_path)
  assert "eval_evry: did you mean eval_every? there is no 'eval_evry' here; there is batch_size, " in err


def test_paths_of_a_config_are_absolute_wherever_it_came_from(tmp_path, monkeypatch):
  config, pretraining = default_config(), pretraining_config("image")
  for one, fields in ((config, PATHS[:4]), (pretraining, PATHS[4:6])):
    one.update_from_flattened_dict({field: f"~/{field}" for field in (*fields, "data.data_dir")})
  monkeypatch.setenv("HOME", "/people/me")
  assert resolve_paths(config) == resolve_paths(pretraining) == []
  assert pretraining.init.to_dict() == {s: f"/people/me/init.{s}" for s in ("image", "audio")}
  assert (config.data.data_dir, config.init_from) == ("/people/me/data.data_dir", "/people/me/init_from")
  assert config.pretrained.to_dict() == {s: f"/people/me/pretrained.{s}" for s in ("image", "audio", "text")}
  config.pretrained.image = "https://a.org/b.pth"
  assert resolve_paths(config) == [
    "pretrained.image: 'https://a.org/b.pth' is an address, not a path; download or mount it first"
  ]


def test_files_behind_a_command(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("HOME", str(tmp_path))
  for name in ("b.mp4", "a.mp4", "[1].mp4"):
    Path(name).touch()
  given = ["*.mp4", "~/a.mp4", "[1].mp4", "*.mkv", "none.mp4"]
  assert user_files(given) == [
    "[1].mp4",
    "a.mp4",
    "b.mp4",
    f"{tmp_path}/a.mp4",
    "[1].mp4",
    "*.mkv",
    "none.mp4",
  ]


@pytest.mark.parametrize(("orientation", "brightest"), [(1, "left"), (2, "right"), (3, "right"), (6, "top"), (7, "bottom")])  # fmt: skip
def test_pictures_of_a_camera_with_exif(tmp_path, orientation, brightest):
  """JPEGs with EXIF in a video: FFmpeg gives what it says beside the picture, under a name that PyAV does not know."""
  pixels = np.zeros((32, 64, 3), np.uint8)
  pixels[:, :16] = 255
  exif = Image.Exif()
  exif[0x0112] = orientation
  Image.fromarray(pixels).save(jpeg := io.BytesIO(), "JPEG", exif=exif)
  with av.open(str(tmp_path / "a.mov"), "w") as file:
    stream = file.add_stream("mjpeg", rate=10)
    stream.width, stream.height, stream.pix_fmt = 64, 32, "yuvj420p"
    for number in range(5):
      packet = av.Packet(jpeg.getvalue())
      packet.stream, packet.pts, packet.dts, packet.duration = stream, number, number, 1
      packet.time_base = Fraction(1, 10)
      file.mux(packet)
  frame = next(iterate_frames(tmp_path / "a.mov"))
  sides = {"left": frame[:, :8], "right": frame[:, -8:], "top": frame[:8], "bottom": frame[-8:]}
  assert max(sides, key=lambda side: sides[side].mean()) == brightest


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_what_asks_to_stop(number):
  before = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
  try:
    stop = StopSignal()
    assert not stop
    os.kill(os.getpid(), number)
    for _ in range(100):
      if stop:
        break
      time.sleep(0.01)
    assert stop.received == number
    assert stop.exit_status == (130 if number == signal.SIGINT else 0)
    os.kill(os.getpid(), signal.SIGHUP)  # a terminal may send it twice
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    StopSignal()
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN, "nohup"
  finally:
    for one, handler in before.items():
      signal.signal(one, handler)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
    signal.signal(signal.SIGHUP, before[signal.SIGHUP])


@pytest.mark.slow
@pytest.mark.parametrize("end", ["2>&1 | true", "> /dev/full 2>&1", "<&- >&- 2>&-"])
def test_all_is_answered_wherever_the_words_go(tmp_path, model, cache, end):
  for name in ("a.mkv", "b.mkv"):
    write_film(tmp_path / name, noise(20), hum(0.8))
  variables = {"PYTHONPATH": str(ROOT), "JAX_COMPILATION_CACHE_DIR": str(cache), "PYTHONUNBUFFERED": "1"}
  words = f"{sys.executable} -m mma_dfer_jax.predict --model={model} --faces=none --out=out a.mkv b.mkv {end}"
  done = subprocess.run(["bash", "-c", f"{words}; exit ${{PIPESTATUS[0]}}"], cwd=tmp_path, env=os.environ | variables,
                        capture_output=True, text=True, check=False)  # fmt: skip
  assert (done.returncode, done.stdout + done.stderr) == (0, "")
  assert {path.name for path in (tmp_path / "out").iterdir()} == {"a.json", "b.json", "answers.csv"}
  assert json.loads((tmp_path / "out/b.json").read_text())["clip"] == "b.mkv"


def test_every_path_flag_is_absolute_once():
  """What a command takes as a path is read as one, wherever it is defined."""
  names = {
    "model",
    "workdir",
    "workdirs",
    "runs",
    "out",
    "data_dir",
    "face_model",
    "verify",
    "to_torch",
    "compare",
  }
  for command in (
    "train",
    "folds",
    "ablate",
    "evaluate",
    "predict",
    "convert",
    "export",
    "benchmark",
    "demo_page",
  ):
    for name, flag in own_flags(command).items():
      if name in names:
        assert type(flag.parser).__name__.startswith("Path"), (command, name)
