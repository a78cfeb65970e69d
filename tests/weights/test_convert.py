"""The real command on real files, against what the original wrote and computed."""

import json
from pathlib import Path
import re
import signal
import subprocess
import sys
import time

import commands
from conftest import GOLDEN, ROOT, TINY, golden_inputs, golden_json, golden_weights
import make_weights
import numpy as np
import pytest
from torch_files import write_checkpoint, write_torch_file

from mma_dfer_jax.config import default_config
from mma_dfer_jax.weights.files import StoredModel, open_weights
from mma_dfer_jax.weights.folder import open_folder, write_folder

ORIGINAL = GOLDEN / "tiny_reference_checkpoint.pth"


def convert(*flags: object, status: int = 0) -> str:
  """Runs the command, checks the exit status, and returns all that it printed."""
  found, out, err = commands.run("convert", *flags, at=ROOT)
  assert found == status, out + err
  assert "Traceback" not in out + err, out + err
  return out + err


def write_verification(path: Path, case: str) -> Path:
  video, spectrogram, _ = golden_inputs(case)
  logits = np.load(GOLDEN / f"forward_{case}.npz")["logits"]
  np.savez(path, video=video, spectrogram=spectrogram, logits=logits)
  return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
  return write_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny.pth", golden_weights("tiny_64_7"))


@pytest.mark.slow
def test_the_checkpoint_that_the_original_wrote(tmp_path):
  """Tiny widths, but its own `main.py`: optimizer, RecorderMeter and numpy arrays are in it."""
  about = golden_json("checkpoint")["tiny_checkpoint_forward"]
  images, audio, _ = make_weights.make_inputs(about["inputs_seed"], about["batch"], about["img_size"])
  expected = np.load(GOLDEN / "tiny_checkpoint_forward.npz")
  np.savez(tmp_path / "verify.npz", images=images, audio=audio, logits=expected["logits"])
  flags = [f"--model={ORIGINAL}", "--classes=dfew", f"--out={tmp_path}/model"]
  printed = convert(*flags, f"--verify={tmp_path}/verify.npz")
  assert re.search(r"4 clips, largest difference of a logit \d\.\d+e-0[67]", printed), printed
  folder = open_folder(tmp_path / "model")
  assert folder.about["verified"]["largest_difference"] < 1e-5
  assert (folder.about["source"]["file"], folder.about["source"]["epoch"]) == (ORIGINAL.name, 2)
  assert folder.about["source"]["best_acc"] == pytest.approx(16.6667, abs=1e-3)
  # The gates moved in training; they show that the fusion was not lost.
  found = folder.read()
  gates = [found[f"fusion/{i}/{stream}_gate"][0] for stream in ("image", "audio") for i in range(12)]
  np.testing.assert_array_equal(gates, expected["gates"])


@pytest.mark.slow
def test_full_size_from_file_to_folder_and_back(tmp_path):
  """179 M parameters: written as torch would, interrupted, converted, compared with the original's digests."""
  case = "full_224_7"
  file, folder, back = tmp_path / "full.pth", tmp_path / "model", tmp_path / "back.safetensors"
  write_checkpoint(file, golden_weights(case))
  flags = [f"--model={file}", "--classes=dfew", f"--out={folder}"]
  command = [sys.executable, "-m", "mma_dfer_jax.convert", *flags]
  stopped = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
  while not (writing := [*tmp_path.glob(".model.partial/*")]) or not writing[0].stat().st_size:
    assert stopped.poll() is None, stopped.communicate()
    time.sleep(0.01)
  stopped.send_signal(signal.SIGTERM)
  assert "stopped" in stopped.communicate(timeout=60)[0]
  assert stopped.returncode == 130
  assert [path.name for path in tmp_path.iterdir()] == ["full.pth"]
  flags += [f"--verify={write_verification(tmp_path / 'verify.npz', case)}", "--tolerance=2e-5"]
  assert "198 trained, 7,632,415 elements, and 302 frozen, 171,679,732 elements" in convert(*flags)
  file.unlink()
  convert(f"--model={folder}", f"--to_safetensors={back}")
  found = {name: make_weights.digest(tensor.read()) for name, tensor in open_weights(back).tensors.items()}
  assert found == golden_json(f"weights_digest_{case}")


@pytest.mark.slow
def test_a_verification_that_fails_leaves_nothing(checkpoint, tmp_path):
  video, spectrogram, _ = golden_inputs("tiny_64_7")
  zeros = np.zeros((2, 7), np.float32)
  np.savez(tmp_path / "wrong.npz", video=video, spectrogram=spectrogram, logits=zeros)
  np.savez(tmp_path / "short.npz", video=video[:, :8], logits=zeros)
  (tmp_path / "text.npz").write_text("no numbers")
  right = write_verification(tmp_path / "right.npz", "tiny_64_7")
  before = sorted(tmp_path.iterdir())
  flags = [f"--model={checkpoint}", "--classes=dfew", f"--out={tmp_path}/model"]
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


def test_wrong_flags_and_files_end_with_a_message(tmp_path, monkeypatch):
  printed = convert("--config=configs/dfew.py", "--model=x", "--heads=3", "--step=best", status=1)
  for words in ("either --model, or --config", "say what to write", "--step is for", "--heads is for"):
    assert words in printed
  (tmp_path / "download.pth").write_bytes(b"<html>quota exceeded</html>")
  for given in ("download.pth", "nowhere.pth", "."):
    printed = convert(f"--model={tmp_path / given}", "--classes=dfew", f"--out={tmp_path}/model", status=1)
    assert printed.startswith("error: ")
    assert str(tmp_path) in printed
  # Without PyTorch a .pth is refused before anything starts.
  monkeypatch.setitem(sys.modules, "torch", None)
  flags = [f"--model={ORIGINAL}", "--classes=dfew", f"--out={tmp_path}/model", f"--to_torch={tmp_path}/x.pth"]
  assert re.search(r"needs PyTorch.*mma_dfer_jax\[torch\]", convert(*flags, status=1))
  assert [path.name for path in tmp_path.iterdir()] == ["download.pth"]


def test_a_folder_of_a_run_comes_back_from_safetensors_as_it_was(checkpoint, tmp_path):
  """What only the run knows stays, and no tensors are added; the original gets all of its 500."""
  convert(f"--model={checkpoint}", "--classes=dfew", f"--out={tmp_path}/first")
  stored = open_folder(tmp_path / "first")
  run = {"tunable": ["classifier/.*"], "precision": "bfloat16", "sample_rates": [16000]}
  about = stored.about | run | {"source": {"run": "clips", "step": 7, "version": "0.2.0"}}
  ours = {path: tensor for path, tensor in stored.tensors.items() if not path.startswith("unused.")}
  write_folder(tmp_path / "folder", StoredModel(tmp_path, stored.model, about, ours, ""))
  convert(f"--model={tmp_path}/folder", f"--to_safetensors={tmp_path}/x.safetensors")
  assert len(open_weights(tmp_path / "x.safetensors").tensors) == 500
  convert(f"--model={tmp_path}/x.safetensors", f"--out={tmp_path}/again")
  before, after = (open_folder(tmp_path / name) for name in ("folder", "again"))
  assert after.tensors.keys() == ours.keys()
  assert after.about["counts"] == before.about["counts"]
  assert {key: after.about[key] for key in run} == run
  assert (after.about["source"]["run"], after.about["source"]["step"]) == ("clips", 7)


@pytest.mark.slow
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
  swapped = [f"--config.pretrained.{s}={files[o]}" for s, o in (("image", "audio"), ("audio", "image"))]
  printed = convert(*flags, *swapped, f"--out={tmp_path}/no", status=1)
  assert "spectrograms (AudioMAE)" in printed  # both are said at once
  assert "images (MAE-Face or MAE)" in printed
  assert "pretrained.audio is empty" in convert(*flags, pair[0], f"--out={tmp_path}/no", status=1)
  init = [f"--config.init_from={tmp_path}/start", "--config.seed=3"]
  assert "init_from" in convert(*flags, *init, f"--out={tmp_path}/again")
  first, again = (open_folder(tmp_path / name).read() for name in ("start", "again"))
  assert all(again[path].tobytes() == array.tobytes() for path, array in first.items())
  printed = convert(f"--model={files['image']}", "--classes=dfew", f"--out={tmp_path}/no", status=1)
  assert "looks like a masked autoencoder of images" in printed
  assert "config.pretrained.image" in printed
  assert not (tmp_path / "no").exists()
  assert json.loads((tmp_path / "start/model.json").read_text())["counts"]["all"]["tensors"] == 489
