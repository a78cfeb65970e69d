"""The real command on real files, against what the original wrote and computed."""

import json
from pathlib import Path
import re
import sys

import commands
from conftest import GOLDEN, ROOT, golden_json
import make_weights
from model_folders import authors_state, with_layers
import numpy as np
import pytest
import safetensors.numpy
from torch_files import write_checkpoint, write_torch_file

from mma_dfer_jax.config import default_config
from mma_dfer_jax.engines.engine import load_model
from mma_dfer_jax.training.start import open_init
from mma_dfer_jax.weights.files import StoredModel, open_weights
from mma_dfer_jax.weights.folder import open_folder, write_folder
from mma_dfer_jax.weights.mma_dfer import open_checkpoint, with_classes

CFG = with_layers(2)
ORIGINAL = GOLDEN / "tiny_reference_checkpoint.pth"


def convert(*flags: object, status: int = 0) -> str:
  """Runs the command, checks the exit status, and returns all that it printed."""
  found, out, err = commands.run("convert", *flags, at=ROOT)
  assert found == status, out + err
  assert "Traceback" not in out + err, out + err
  return out + err


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
  return write_checkpoint(tmp_path_factory.mktemp("two") / "two.pth", authors_state(CFG))


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
def test_a_verification_that_fails_leaves_nothing(checkpoint, tmp_path):
  rng = np.random.default_rng(0)
  video = rng.integers(0, 256, (2, *CFG.inputs.video_shape), np.uint8)
  spectrogram = rng.standard_normal((2, *CFG.inputs.audio_shape), np.float32)
  np.savez(tmp_path / "wrong.npz", video=video, spectrogram=spectrogram, logits=np.full((2, 7), 1e3))
  np.savez(tmp_path / "short.npz", video=video[:, :8], logits=np.zeros((2, 7)))
  (tmp_path / "text.npz").write_text("no numbers")
  write_folder(tmp_path / "right", with_classes(open_checkpoint(checkpoint), "dfew"))
  right = tmp_path / "right.npz"
  np.savez(
    right, video=video, spectrogram=spectrogram, logits=load_model(tmp_path / "right")(video, spectrogram)
  )
  before = sorted(tmp_path.iterdir())
  flags = [f"--model={checkpoint}", "--classes=dfew", f"--out={tmp_path}/model"]
  for name, heads, words in (
    ("wrong.npz", [], "differ from those expected by up to 1e[+]03"),
    ("short.npz", [], r"(?s)\(2, 8, 32, 32, 3\), not \(2, 16, 32, 32, 3\).*spectrogram: missing"),
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
  """What only the run knows stays, and no tensors are added; the original gets all of its own."""
  stored = with_classes(open_checkpoint(checkpoint), "dfew")
  run = {"tunable": ["classifier/.*"], "precision": "bfloat16", "sample_rates": [16000], "typical": {"seconds": [1.5, 4.0]},
         "temperature": 1.25}  # fmt: skip
  about = stored.about | run | {"source": {"run": "clips", "step": 7, "version": "0.2.0"}}
  ours = {path: tensor for path, tensor in stored.tensors.items() if not path.startswith("unused.")}
  write_folder(tmp_path / "folder", StoredModel(tmp_path, stored.model, about, ours, ""))
  convert(f"--model={tmp_path}/folder", f"--to_safetensors={tmp_path}/x.safetensors")
  assert open_weights(tmp_path / "x.safetensors").tensors.keys() == authors_state(CFG).keys()
  convert(f"--model={tmp_path}/x.safetensors", f"--out={tmp_path}/again")
  before, after = (open_folder(tmp_path / name) for name in ("folder", "again"))
  assert after.tensors.keys() == ours.keys()
  assert after.about["counts"] == before.about["counts"]
  assert {key: after.about[key] for key in run} == run
  assert (after.about["source"]["run"], after.about["source"]["step"]) == ("clips", 7)


def test_wrapped_split_and_mixed_weights_are_read_and_said(tmp_path):
  state = authors_state(CFG)
  mixed = {
    f"_orig_mod.module.{n}": t.astype(np.float16 if i % 2 else np.float32)
    for i, (n, t) in enumerate(state.items())
  }
  other = {f"module.{name}": tensor + 1 for name, tensor in state.items()}
  write_torch_file(tmp_path / "x.pth", {"student": mixed, "teacher": other, "epoch": 3})
  flags = [f"--model={tmp_path}/x.pth", "--classes=dfew"]
  printed = convert(*flags, f"--out={tmp_path}/no", status=1)
  assert "student (123 tensors), teacher (123 tensors); choose one with --weights" in printed.replace(
    str(len(state)), "123"
  )
  printed = convert(*flags, "--weights=student", f"--out={tmp_path}/model")
  notes = open_folder(tmp_path / "model").about["source"]["notes"]
  assert len(notes) == 4
  assert all(f"note: {note}\n" in printed for note in notes)
  assert "note: removed from the beginnings of names: _orig_mod.module.\n" in printed
  index: dict[str, str] = {}
  for i, name in enumerate(state):
    index[name] = f"model-0000{i % 2 + 1}-of-00002.safetensors"
  (tmp_path / "pieces").mkdir()
  for file in set(index.values()):
    held = {
      name: state[name].astype(np.float16).astype(np.float32) for name, of in index.items() if of == file
    }
    safetensors.numpy.save_file(held, tmp_path / "pieces" / file)
  (tmp_path / "pieces/model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
  convert(f"--model={tmp_path}/pieces", "--classes=dfew", "--heads=4", f"--out={tmp_path}/again")
  first, second = (open_folder(tmp_path / name) for name in ("model", "again"))
  np.testing.assert_allclose(
    first.read()["fusion/0/image_down/kernel"], second.read()["fusion/0/image_down/kernel"], atol=1e-3
  )
  assert {array.dtype for array in first.read().values()} == {np.dtype(np.float32)}
  assert second.about["source"]["notes"] == [
    "read from model-00001-of-00002.safetensors, model-00002-of-00002.safetensors"
  ]
  assert "--weights is for files" in convert(
    f"--model={tmp_path}/model", "--weights=x", f"--out={tmp_path}/no", status=1
  )
  start = open_init(tmp_path / "pieces", CFG, first.about["classes"])
  assert start.facts[-1].startswith("read from model-00001")


@pytest.mark.slow
def test_convert_takes_the_files_of_a_start_as_training_does(tmp_path):
  files, default = {}, default_config().model
  for stream, name, seed in (("image", "maeface", 102), ("audio", "audiomae", 101)):
    files[stream] = tmp_path / f"{name}.pth"
    state = make_weights.make_state_dict(golden_json(f"spec_{name}_tiny"), seed)
    kept = {name: tensor for name, tensor in state.items() if not re.match(r"blocks\.([2-9]|1\d)", name)}
    write_torch_file(files[stream], {"model": kept})
  flags = [
    "--config=configs/dfew.py",
    "--config.inputs.image_size=32",
    "--config.inputs.audio_shape=(64,128)",
  ]
  for slot, part in CFG.to_fields().items():
    if slot in default and isinstance(part, dict):
      flags += [f"--config.model.{slot}.{k}={v}" for k, v in part.items() if default[slot][k] != v]
  pair = [f"--config.pretrained.{stream}={path}" for stream, path in files.items()]
  printed = convert(*flags, *pair, f"--out={tmp_path}/start")
  assert "positions resized from (64, 8) to (4, 8)" in printed
  folder = open_folder(tmp_path / "start")
  assert (folder.model, folder.about["classes"][0], folder.about["source"]["seed"]) == (CFG, "happy", 1)
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
