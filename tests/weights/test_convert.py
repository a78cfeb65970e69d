"""The real command on real files, against what the original wrote and computed."""

import importlib.util
import json
import os
from pathlib import Path
import re
import signal
import subprocess
import sys
import time

from conftest import GOLDEN, ROOT, TINY, golden_inputs, golden_json, golden_weights
import make_weights
import numpy as np
import pytest
from torch_files import write_checkpoint, write_torch_file

from mma_dfer_jax.config import default_config
from mma_dfer_jax.weights.files import open_weights
from mma_dfer_jax.weights.folder import open_folder

needs_engine = pytest.mark.skipif(
  not importlib.util.find_spec("mma_dfer_jax.engines.engine"), reason="--verify needs an engine"
)


def start(*flags: object) -> subprocess.Popen:
  command = [sys.executable, "-m", "mma_dfer_jax.convert", *map(str, flags)]
  return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def convert(*flags: object, status: int = 0) -> str:
  """Runs the command, checks the exit status, and returns all that it printed."""
  process = start(*flags)
  printed, _ = process.communicate(timeout=300)
  assert process.returncode == status, printed
  assert "Traceback" not in printed, printed
  return printed


def write_verification(path: Path, case: str) -> Path:
  video, spectrogram, _ = golden_inputs(case)
  logits = np.load(GOLDEN / f"forward_{case}.npz")["logits"]
  np.savez(path, video=video, spectrogram=spectrogram, logits=logits)
  return path


@needs_engine
def test_the_checkpoint_that_the_original_wrote(tmp_path):
  """Tiny widths, but its own `main.py`: optimizer, RecorderMeter and numpy arrays are in it."""
  given = GOLDEN / "tiny_reference_checkpoint.pth"
  about = golden_json("checkpoint")["tiny_checkpoint_forward"]
  images, audio, _ = make_weights.make_inputs(about["inputs_seed"], about["batch"], about["img_size"])
  expected = np.load(GOLDEN / "tiny_checkpoint_forward.npz")
  np.savez(tmp_path / "verify.npz", images=images, audio=audio, logits=expected["logits"])
  printed = convert(
    f"--model={given}", "--classes=dfew", f"--out={tmp_path}/model", f"--verify={tmp_path}/verify.npz"
  )
  assert re.search(r"4 clips, largest difference of a logit \d\.\d+e-0[67]", printed), printed[-900:]
  folder = open_folder(tmp_path / "model")
  assert folder.about["verified"]["largest_difference"] < 1e-5
  assert (folder.about["source"]["file"], folder.about["source"]["epoch"]) == (given.name, 2)
  assert folder.about["source"]["best_acc"] == pytest.approx(16.6667, abs=1e-3)
  # The gates moved in training; they say that the fusion was not lost.
  found = folder.read()
  gates = [found[f"fusion/{i}/{stream}_gate"][0] for stream in ("image", "audio") for i in range(12)]
  np.testing.assert_array_equal(gates, expected["gates"])


def test_full_size_from_file_to_folder_and_back(tmp_path):
  """179 M parameters: written as torch would, interrupted, converted, compared with the original's digests."""
  case = "full_224_7"
  digests = golden_json(f"weights_digest_{case}")
  file, folder, back = tmp_path / "full.pth", tmp_path / "model", tmp_path / "back.safetensors"
  write_checkpoint(file, golden_weights(case))
  flags = [f"--model={file}", "--classes=dfew", f"--out={folder}"]
  stopped = start(*flags)
  while not (writing := [*tmp_path.glob(".model.partial/*")]) or not writing[0].stat().st_size:
    assert stopped.poll() is None, stopped.communicate()
    time.sleep(0.01)
  stopped.send_signal(signal.SIGTERM)
  assert "stopped" in stopped.communicate(timeout=60)[0]
  assert stopped.returncode == 130
  assert [path.name for path in tmp_path.iterdir()] == ["full.pth"]
  if needs_engine.args[0] is False:
    flags += [f"--verify={write_verification(tmp_path / 'verify.npz', case)}", "--tolerance=2e-5"]
  printed = convert(*flags)
  assert "198 trained, 7,632,415 elements, and 302 frozen, 171,679,732 elements" in printed
  file.unlink()
  convert(f"--model={folder}", f"--to_safetensors={back}")
  found = {name: make_weights.digest(tensor.read()) for name, tensor in open_weights(back).tensors.items()}
  assert found == digests


@needs_engine
def test_a_verification_that_fails_leaves_nothing(tmp_path):
  file = write_checkpoint(tmp_path / "tiny.pth", golden_weights("tiny_64_7"))
  video, spectrogram, _ = golden_inputs("tiny_64_7")
  zeros = np.zeros((2, 7), np.float32)
  np.savez(tmp_path / "wrong.npz", video=video, spectrogram=spectrogram, logits=zeros)
  np.savez(tmp_path / "short.npz", video=video[:, :8], logits=zeros)
  (tmp_path / "text.npz").write_text("no numbers")
  right = write_verification(tmp_path / "right.npz", "tiny_64_7")
  before = sorted(tmp_path.iterdir())
  flags = [f"--model={file}", "--classes=dfew", f"--out={tmp_path}/model"]
  for name, heads, words in (
    ("wrong.npz", [], r"differ from those expected by up to 1\.4"),
    ("short.npz", [], r"(?s)\(2, 8, 64, 64, 3\), not \(2, 16, 64, 64, 3\).*spectrogram: missing"),
    ("text.npz", [], r"no \.npz file"),
    ("nowhere.npz", [], "no such file|No such file"),
    (right.name, ["--heads=8"], "--heads"),  # other heads have the same shapes: only the logits tell
  ):
    assert re.search(words, convert(*flags, *heads, f"--verify={tmp_path / name}", status=1))
    assert sorted(tmp_path.iterdir()) == before
  assert "largest difference of a logit" in convert(*flags, "--heads=4", f"--verify={right}")


def test_wrong_flags_and_files_end_with_a_message(tmp_path):
  printed = convert("--config=configs/dfew.py", "--model=x", "--heads=3", "--step=best", status=1)
  for words in ("either --model, or --config", "say what to write", "--step is for", "--heads is for"):
    assert words in printed
  (tmp_path / "download.pth").write_bytes(b"<html>quota exceeded</html>")
  for given in ("download.pth", "nowhere.pth", "."):
    printed = convert(f"--model={tmp_path / given}", "--classes=dfew", f"--out={tmp_path}/model", status=1)
    assert printed.startswith("error: ")
    assert str(tmp_path) in printed
  assert sorted(path.name for path in tmp_path.iterdir()) == ["download.pth"]


def test_without_torch_a_pth_is_refused_before_anything_starts(tmp_path):
  code = (
    "import sys; sys.modules['torch'] = None; from mma_dfer_jax import cli, convert; cli.run(convert.main)"
  )
  flags = [f"--model={GOLDEN}/tiny_reference_checkpoint.pth", "--classes=dfew", f"--out={tmp_path}/model"]
  command = [sys.executable, "-c", code, *flags, f"--to_torch={tmp_path}/x.pth"]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 1
  assert "needs PyTorch" in done.stderr
  assert "mma_dfer_jax[torch]" in done.stderr
  assert not os.listdir(tmp_path)


def test_convert_takes_the_files_of_a_start_as_training_does(tmp_path):
  files = {}
  for stream, name, seed in (("image", "maeface", 102), ("audio", "audiomae", 101)):
    files[stream] = tmp_path / f"{name}.pth"
    write_torch_file(
      files[stream], {"model": make_weights.make_state_dict(golden_json(f"spec_{name}_tiny"), seed)}
    )
  flags, default = ["--config=configs/dfew.py", "--config.inputs.image_size=64"], default_config().model
  for slot, part in TINY.to_fields().items():
    if slot in default and isinstance(part, dict):
      flags += [f"--config.model.{slot}.{k}={v}" for k, v in part.items() if default[slot][k] != v]
  pair = [f"--config.pretrained.{stream}={path}" for stream, path in files.items()]
  printed = convert(*flags, *pair, f"--out={tmp_path}/start")
  assert "positions resized from (64, 8) to (32, 8)" in printed
  folder = open_folder(tmp_path / "start")
  assert (folder.model, folder.about["classes"][0], folder.about["source"]["seed"]) == (TINY, "happy", 1)
  swapped = [
    f"--config.pretrained.{s}={files[other]}" for s, other in (("image", "audio"), ("audio", "image"))
  ]
  printed = convert(*flags, *swapped, f"--out={tmp_path}/no", status=1)
  assert "spectrograms (AudioMAE)" in printed  # both are said at once
  assert "images (MAE-Face or MAE)" in printed
  assert "pretrained.audio is empty" in convert(*flags, pair[0], f"--out={tmp_path}/no", status=1)
  printed = convert(
    *flags, f"--config.init_from={tmp_path}/start", "--config.seed=3", f"--out={tmp_path}/again"
  )
  assert "init_from" in printed
  first, again = (open_folder(tmp_path / name).read() for name in ("start", "again"))
  assert all(again[path].tobytes() == array.tobytes() for path, array in first.items())
  printed = convert(f"--model={files['image']}", "--classes=dfew", f"--out={tmp_path}/no", status=1)
  assert "looks like a masked autoencoder of images" in printed
  assert "config.pretrained.image" in printed
  assert not (tmp_path / "no").exists()
  assert json.loads((tmp_path / "start/model.json").read_text())["counts"]["all"]["tensors"] == 489
