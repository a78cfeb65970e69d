"""Weights in and out: the real command on real files, against what the original wrote and computed."""

import importlib.util
import json
from pathlib import Path
import re
import shutil
import subprocess
import sys
import time

from conftest import GOLDEN, ROOT, TINY, golden_inputs, golden_json, golden_weights, slice_of
from flax import nnx
import jax.numpy as jnp
import make_weights
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from torch_files import View, write_torch_file

from mma_dfer_jax import convert_checkpoint, load_model
from mma_dfer_jax.config import default_config
from mma_dfer_jax.conversion import export, open_checkpoint, open_folder
from mma_dfer_jax.errors import UserError
from mma_dfer_jax.model import MmaDfer, ModelConfig
from mma_dfer_jax.torch_file import read_torch_file
from mma_dfer_jax.torch_names import CheckpointMismatchError, unused_shapes, used_shapes
from mma_dfer_jax.train_state import parameter_shapes, put_pretrained
from mma_dfer_jax.verdict import digest
from mma_dfer_jax.weights import (
  InMemory,
  Weights,
  find_sizes,
  open_pretrained,
  open_weights,
  resize_positions,
)


def convert(*flags: object, status: int = 0) -> str:
  """Runs the command, checks the exit status, and returns all that it printed."""
  command = [sys.executable, "-m", "mma_dfer_jax.convert", *map(str, flags)]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
  printed = done.stdout + done.stderr
  assert done.returncode == status, printed
  assert "Traceback" not in printed, printed
  return printed


def with_prefix(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  return {f"module.{name}": tensor for name, tensor in tensors.items()}


def write_verification(path: Path, case: str) -> Path:
  video, spectrogram, _ = golden_inputs(case)
  np.savez(
    path, video=video, spectrogram=spectrogram, logits=np.load(GOLDEN / f"forward_{case}.npz")["logits"]
  )
  return path


@pytest.fixture(scope="module")
def tiny() -> dict[str, np.ndarray]:
  return golden_weights("tiny_64_7")


@pytest.fixture(scope="module")
def tiny_file(tiny, tmp_path_factory) -> Path:
  path = tmp_path_factory.mktemp("tiny") / "tiny.pth"
  write_torch_file(path, {"epoch": 25, "state_dict": with_prefix(tiny)}, location="cuda:0")
  return path


@pytest.fixture(scope="module")
def tiny_folder(tiny_file, tmp_path_factory) -> Path:
  folder = tmp_path_factory.mktemp("tiny") / "model"
  convert_checkpoint(tiny_file, folder, classes="dfew")
  return folder


# --- a checkpoint becomes a model folder --------------------------------------------------------------------------


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
  model = load_model(tmp_path / "model")
  logits = model(images.transpose(0, 1, 3, 4, 2), audio[:, 0])
  np.testing.assert_allclose(logits, expected["logits64"], atol=1e-5)
  assert logits.dtype == np.float32
  source = model.origin["converted_from"]
  assert (source["file"], source["epoch"]) == (given.name, 2)
  assert source["best_acc"] == pytest.approx(16.6667, abs=1e-3)
  # The gates moved in training; they say that the fusion was not lost.
  gates = [f"{e}.all_gate.{i}" for e in ("image_encoder", "audio_model") for i in range(12)]
  found = open_weights(given).tensors
  np.testing.assert_array_equal([found[name].read()[0] for name in gates], expected["gates"])


def test_full_size_from_file_to_logits_and_back(tmp_path):
  """179 M parameters: written as torch would, converted, compared with the original's logits and digests."""
  case = "full_224_7"
  digests = golden_json(f"weights_digest_{case}")
  tensors = golden_weights(case)
  write_torch_file(
    tmp_path / "full.pth", {"epoch": 25, "state_dict": with_prefix(tensors)}, location="cuda:0"
  )
  del tensors
  write_verification(tmp_path / "verify.npz", case)
  started = time.monotonic()
  printed = convert(
    f"--model={tmp_path}/full.pth", "--classes=dfew", f"--out={tmp_path}/model",
    f"--verify={tmp_path}/verify.npz", "--tolerance=2e-5",
  )  # fmt: skip
  print(f"converted and verified in {time.monotonic() - started:.1f} s")
  assert "read back from the disk: all 500 tensors bit-identical" in printed
  assert "198 trained, 7,632,415 elements, and 302 frozen, 171,679,732 elements" in printed
  report = json.loads((tmp_path / "model/conversion.json").read_text())
  assert {name: tensor["sha256"] for name, tensor in report["tensors"].items()} == digests
  assert report["all"] == {"tensors": 500, "elements": 179_312_147}
  assert report["verify"]["largest_difference"] <= 2e-5
  assert ModelConfig(**report["model"] | {"audio_shape": (512, 128)}) == ModelConfig()
  (tmp_path / "full.pth").unlink()
  convert(f"--model={tmp_path}/model", f"--to_safetensors={tmp_path}/full.safetensors")
  back = open_weights(tmp_path / "full.safetensors").tensors
  assert {name: digest(tensor.read()) for name, tensor in back.items()} == digests


@pytest.mark.parametrize("heads", [None, 4])
def test_sizes_come_from_the_shapes(tiny_file, tmp_path, heads):
  report = convert_checkpoint(tiny_file, tmp_path / "model", classes="dfew", heads=heads)
  assert report["assumed"].keys() == {"heads", "temporal_heads"} - ({"heads"} if heads else set())
  model = load_model(tmp_path / "model")
  assert model.cfg == TINY
  assert model.classes == ("happy", "sad", "neutral", "angry", "surprise", "disgust", "fear")


@pytest.mark.parametrize("cfg", [
  ModelConfig(num_classes=11, image_size=160),
  ModelConfig(image_size=32, width=192, heads=3, mlp_dim=256, depth=4, layers_per_stage=2, prompts_per_stage=5),
  ModelConfig(image_size=96, width=32, heads=4, mlp_dim=64, depth=3, layers_per_stage=1, audio_shape=(192, 128),
              num_frames=8, temporal_depth=2, temporal_width=24, temporal_head_dim=4, temporal_mlp_dim=40),
])  # fmt: skip
def test_other_sizes_are_found_too(cfg):
  shapes = used_shapes(cfg, parameter_shapes(cfg))
  tensors = {name: InMemory(np.broadcast_to(np.float32(0), shape)) for name, shape in shapes.items()}
  found, assumed = find_sizes(Weights(Path("x.pth"), tensors, {"mma_dfer_jax": {}}), None)
  assert found == cfg
  assert assumed.keys() == {"heads", "temporal_heads"}


@pytest.mark.parametrize(("flag", "first", "says"), [
  ("mafw", "happiness", "not MAFW's official one"),
  ("mafw-official", "anger", "official order"),
  ("a, b,c,d,e,f,g,h,i,j,k", "a", "as given by --classes"),
])  # fmt: skip
def test_the_folder_says_whose_label_order_it_has(tiny, tmp_path, flag, first, says):
  rng = np.random.default_rng(0)
  eleven = {
    "our_classifier.weight": rng.standard_normal((11, 32), np.float32),
    "our_classifier.bias": np.zeros(11, "f4"),
  }
  write_torch_file(tmp_path / "mafw.pth", with_prefix(tiny | eleven))
  report = convert_checkpoint(tmp_path / "mafw.pth", tmp_path / "model", classes=flag)
  about = json.loads((tmp_path / "model/model.json").read_text())
  assert about["classes"][0] == load_model(tmp_path / "model").classes[0] == first
  assert says in about["class_order"]
  assert report["class_order"] == about["class_order"]


def test_class_names_are_never_guessed(tiny_file, tmp_path):
  for given, words in (
    (None, "7 classes .* --classes=dfew or"),
    ("mafw", "11 class names"),
    ("a,b,b,c,d,e,f", "different names"),
  ):
    with pytest.raises(UserError, match=words):
      convert_checkpoint(tiny_file, tmp_path / "model", classes=given)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_precisions_keep_their_bits_and_answer(tiny, tmp_path, dtype):
  cast = {name: tensor.astype(dtype) for name, tensor in tiny.items()}
  write_torch_file(tmp_path / "cast.pth", {"state_dict": with_prefix(cast)})
  report = convert_checkpoint(tmp_path / "cast.pth", tmp_path / "model", classes="dfew")
  assert {name: t["sha256"] for name, t in report["tensors"].items()} == {
    n: digest(t) for n, t in cast.items()
  }
  video, spectrogram, _ = golden_inputs("tiny_64_7")
  logits = load_model(tmp_path / "model")(video, spectrogram)
  assert logits.dtype == np.float32
  tolerance = {np.float16: 2e-2, ml_dtypes.bfloat16: 2e-1, np.float64: 1e-5}[dtype]
  np.testing.assert_allclose(logits, np.load(GOLDEN / "forward_tiny_64_7.npz")["logits64"], atol=tolerance)
  export(open_folder(tmp_path / "model", "last", None), None, tmp_path / "back.safetensors")
  back = open_weights(tmp_path / "back.safetensors").tensors
  assert {name: digest(tensor.read()) for name, tensor in back.items()} == {
    n: digest(t) for n, t in cast.items()
  }


# --- verdicts -----------------------------------------------------------------------------------------------------


def test_a_verification_that_fails_leaves_nothing(tiny_file, tmp_path):
  video, spectrogram, _ = golden_inputs("tiny_64_7")
  np.savez(tmp_path / "wrong.npz", video=video, spectrogram=spectrogram, logits=np.zeros((2, 7), np.float32))
  np.savez(tmp_path / "short.npz", video=video[:, :8], logits=np.zeros((2, 7), np.float32))
  (tmp_path / "text.npz").write_text("no numbers")
  right = write_verification(tmp_path / "right.npz", "tiny_64_7")
  for file, heads, words in (
    ("wrong.npz", None, r"differ from those expected by up to 1\.4"),
    ("short.npz", None, r"(?s)\(2, 8, 64, 64, 3\), not \(2, 16, 64, 64, 3\).*spectrogram: missing"),
    ("text.npz", None, r"no \.npz file"),
    ("nowhere.npz", None, "no such file"),
    (right.name, 8, "--heads"),  # other heads have the same shapes: only the logits tell
  ):
    with pytest.raises(UserError, match=words):
      convert_checkpoint(tiny_file, tmp_path / "model", classes="dfew", heads=heads, verify=tmp_path / file)
  assert not [path for path in tmp_path.iterdir() if path.suffix != ".npz"]
  report = convert_checkpoint(tiny_file, tmp_path / "model", classes="dfew", heads=4, verify=right)
  assert report["verify"]["largest_difference"] < 1e-5


def test_what_is_there_is_not_overwritten(tiny_file, tiny_folder, tmp_path):
  (tmp_path / "model").mkdir()
  (tmp_path / "model/precious").write_text("mine")
  (tmp_path / "x.safetensors").write_text("mine")
  with pytest.raises(UserError, match="exists already"):
    convert_checkpoint(tiny_file, tmp_path / "model", classes="dfew")
  with pytest.raises(UserError, match="exists already"):
    export(open_folder(tiny_folder, "last", None), None, tmp_path / "x.safetensors")
  assert [path.read_text() for path in (tmp_path / "model/precious", tmp_path / "x.safetensors")] == [
    "mine",
    "mine",
  ]
  with pytest.raises(UserError, match="happy, sad"):
    open_folder(tiny_folder, "last", "a,b")
  printed = convert("--config=configs/dfew.py", f"--model={tiny_file}", status=1)
  assert "either --model, or --config" in printed
  assert "say what to write" in printed


def test_a_damaged_folder_is_named(tiny_folder, tmp_path):
  shutil.copytree(tiny_folder, tmp_path / "model")
  report = tmp_path / "model/conversion.json"
  text = report.read_text()
  told = json.loads(text)
  told["tensors"]["vision_proj.bias"]["sha256"] = "0" * 16  # as if four bytes on the disk had changed
  report.write_text(json.dumps(told))
  for opened in (load_model, lambda folder: open_folder(folder, "last", None)):
    with pytest.raises(UserError, match=r"(?s)is damaged.*vision_proj\.bias"):
      opened(tmp_path / "model")
  report.write_text(text)
  (tmp_path / "model/params/0/manifest.ocdbt").write_bytes(b"nothing")
  with pytest.raises(UserError, match=r"cannot read .*params/0"):
    load_model(tmp_path / "model")
  (tmp_path / "model/model.json").write_text("{")
  with pytest.raises(UserError, match=r"model\.json is damaged"):
    load_model(tmp_path / "model")
  with pytest.raises(UserError, match="neither the workdir of a run"):
    load_model(tmp_path)


# --- out again ----------------------------------------------------------------------------------------------------


def test_safetensors_there_and_back(tiny, tiny_folder, tmp_path):
  convert(f"--model={tiny_folder}", f"--to_safetensors={tmp_path}/x.safetensors")
  raw = safetensors.numpy.load_file(tmp_path / "x.safetensors")
  assert raw.keys() == {f"module.{name}" for name in tiny}
  assert all(raw[f"module.{name}"].tobytes() == tensor.tobytes() for name, tensor in tiny.items())
  # The file says classes and heads itself.
  printed = convert(f"--model={tmp_path}/x.safetensors", f"--out={tmp_path}/again")
  assert "assumed" not in printed
  again = load_model(tmp_path / "again")
  assert (again.cfg, again.classes) == (TINY, load_model(tiny_folder).classes)


def test_heads_that_never_took_part_start_as_the_originals(tiny, tmp_path):
  without = {name: tensor for name, tensor in tiny.items() if name not in unused_shapes(TINY)}
  assert len(without) == 492
  write_torch_file(tmp_path / "without.pth", {"state_dict": with_prefix(without)})
  export(open_checkpoint(tmp_path / "without.pth", "dfew", None), None, tmp_path / "x.safetensors")
  raw = safetensors.numpy.load_file(tmp_path / "x.safetensors")
  assert {name: tensor.shape for name, tensor in raw.items()} == {
    f"module.{n}": t.shape for n, t in tiny.items()
  }
  fresh = golden_json("build_tiny_64_7")["fresh_initialisation_by_pattern"]
  for name in ("image_encoder.head.weight", "audio_model.head.weight", "image_encoder.head.bias",
               "temporal_net.temporal_transformer.layers.0.0.fn.norm2.weight"):  # fmt: skip
    found, theirs = raw[f"module.{name}"], fresh[name]
    assert found.mean() == pytest.approx(theirs["mean"], abs=3e-3)
    assert found.std() == pytest.approx(theirs["std"], rel=0.1)


def test_without_torch_a_pth_is_refused_before_anything_starts(tiny_file, tmp_path):
  code = (
    "import sys; sys.modules['torch'] = None; from mma_dfer_jax import cli, convert; cli.run(convert.main)"
  )
  flags = [
    f"--model={tiny_file}",
    "--classes=dfew",
    f"--out={tmp_path}/model",
    f"--to_torch={tmp_path}/x.pth",
  ]
  done = subprocess.run([sys.executable, "-c", code, *flags], cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 1
  assert "needs PyTorch" in done.stderr
  assert "mma_dfer_jax[torch]" in done.stderr
  assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="needs PyTorch: pip install torch==2.13.0")
def test_pytorch_reads_what_is_written(tiny, tiny_folder, tmp_path):
  convert(f"--model={tiny_folder}", f"--to_torch={tmp_path}/x.pth")
  # In a process of its own: other tests check that nothing else imports it.
  code = (
    "import hashlib, json, sys, torch; loaded = torch.load(sys.argv[1], weights_only=True); print(json.dumps([loaded['epoch'], "
    "{name: hashlib.sha256(t.numpy().tobytes()).hexdigest()[:16] for name, t in loaded['state_dict'].items()}]))"
  )
  done = subprocess.run(
    [sys.executable, "-c", code, tmp_path / "x.pth"], capture_output=True, text=True, check=True
  )
  epoch, digests = json.loads(done.stdout)
  assert digests == {f"module.{name}": digest(tensor) for name, tensor in tiny.items()}
  assert epoch == 25
  report = convert_checkpoint(tmp_path / "x.pth", tmp_path / "again")  # it says its classes and heads itself
  assert not report["assumed"]
  found = read_torch_file(tmp_path / "x.pth")["state_dict"]
  assert all(found[f"module.{name}"].read().tobytes() == tensor.tobytes() for name, tensor in tiny.items())


# --- the two pretraining files ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pretraining(tmp_path_factory) -> dict[str, Path]:
  """Both files as MAE's and AudioMAE's training scripts save them, decoders and all."""
  folder = tmp_path_factory.mktemp("pretraining")
  files = {}
  for stream, name, seed in (("image", "maeface", 102), ("audio", "audiomae", 101)):
    state = make_weights.make_state_dict(golden_json(f"spec_{name}_tiny"), seed)
    files[stream] = folder / f"{name}.pth"
    write_torch_file(files[stream], {"model": state, "epoch": 400, "scaler": {"scale": 65536.0}})
  return files


@pytest.mark.parametrize(("name", "grid", "target", "stored"), [
  ("audio_pos", (64, 8), (32, 8), "audio_64x8_to_32x8"),
  ("vision_pos", (14, 14), (10, 10), "vision_14_to_10"),
  ("vision_pos", (14, 14), (24, 24), "vision_14_to_24"),
])  # fmt: skip
def test_positions_are_resized_as_torch_does(name, grid, target, stored):
  expected = np.load(GOLDEN / "pos_embed.npz")[stored]
  table = make_weights.rng_for(31, name).standard_normal((1, 1 + grid[0] * grid[1], 48), dtype=np.float32)
  found = resize_positions(table[..., : expected.shape[-1]], grid, target)
  np.testing.assert_allclose(found, expected, atol=1e-6, rtol=0)
  assert resize_positions(table, grid, grid).tobytes() == table.tobytes()


def test_two_files_build_the_model_of_the_original(pretraining):
  """149 tensors of each arrive bit for bit, and the first layers see what they see in the original."""
  golden, stored = golden_json("build_tiny_64_7"), np.load(GOLDEN / "build_tiny_64_7.npz")
  model = MmaDfer(TINY, rngs=nnx.Rngs(0))
  fresh_rows = {s: np.asarray(getattr(model, f"{s}_encoder").pos_embed[...]) for s in ("image", "audio")}
  images, audio, _ = make_weights.make_inputs(52, 1, 64)
  inputs = {"image": images[0].transpose(0, 2, 3, 1), "audio": audio.transpose(0, 2, 3, 1)}
  for stream, theirs, patches in (("image", "image_encoder", 16), ("audio", "audio_model", 256)):
    encoder = open_pretrained(stream, pretraining[stream], TINY)
    lists = golden["missing_and_unexpected"]["image" if stream == "image" else "audio"]
    assert set(encoder.left_out) == set(lists["unexpected"])
    taken = {name.removeprefix(f"{theirs}.") for row in encoder.rows for name in row.torch_names}
    assert taken - {"pos_embed"} == set(golden["taken"][theirs]) - {"pos_embed"}
    assert len(taken - {"pos_embed"}) == golden["n_taken"][theirs]
    put_pretrained(model, encoder.read())
    ours = getattr(model, f"{stream}_encoder")
    table = np.asarray(ours.pos_embed[...])
    start, end = golden["prompt_rows"][stream]
    assert (start, end) == (1 + patches, 7 + patches)
    np.testing.assert_array_equal(table[:, start:], fresh_rows[stream][:, start:])  # N(0, 1), not the file's
    assert 0.8 < table[:, start:].std() < 1.2
    tokens = np.array(ours.embed(jnp.asarray(inputs[stream]), jnp.zeros((6, 48))))
    tokens[:, start:] = stored[f"{stream}_tokens_in_prompt_rows"]  # drawn at random there
    np.testing.assert_allclose(slice_of(tokens, 512), stored[f"{stream}_tokens_in_slice"], atol=1e-5)
    out = ours.blocks[0](jnp.asarray(tokens))
    np.testing.assert_allclose(slice_of(out, 512), stored[f"{stream}_block0_out_slice"], atol=2e-5)


def test_a_pretraining_file_may_come_without_its_decoder(pretraining, tmp_path):
  state = {n: t.read() for n, t in open_weights(pretraining["image"]).tensors.items() if "decoder" not in n}
  del state["mask_token"]
  write_torch_file(tmp_path / "encoder.pth", {"model": state})
  encoder = open_pretrained("image", tmp_path / "encoder.pth", TINY)
  assert encoder.left_out == ()
  assert len(encoder.rows) == 150


def classifier(state: dict, outputs: int) -> dict:
  """What a fine-tuned or supervised model looks like: no decoder, a head."""
  kept = {n: t for n, t in state.items() if "decoder" not in n and n != "mask_token"}
  return kept | {"head.weight": np.zeros((outputs, 48), "f4"), "head.bias": np.zeros(outputs, "f4")}


@pytest.mark.parametrize(("stream", "make", "words"), [
  ("audio", lambda image, audio: image, "images (MAE-Face or MAE)"),
  ("image", lambda image, audio: audio, "spectrograms (AudioMAE)"),
  ("image", lambda image, audio: classifier(image, 1000), "an image classifier, a ViT with 1000 classes, as ImageNet has"),
  ("audio", lambda image, audio: classifier(audio, 527), "a fine-tuned AudioMAE with 527 classes, as AudioSet has"),
  ("audio", lambda image, audio: {"conv1.weight": np.zeros((64, 3, 7, 7), "f4")}, "no vision transformer at all"),
])  # fmt: skip
def test_a_wrong_pretraining_file_is_told_what_it_looks_like(pretraining, tmp_path, stream, make, words):
  states = [
    {n: t.read() for n, t in open_weights(pretraining[s]).tensors.items()} for s in ("image", "audio")
  ]
  write_torch_file(tmp_path / "wrong.pth", {"model": make(*states)})
  with pytest.raises(CheckpointMismatchError) as error:
    open_pretrained(stream, tmp_path / "wrong.pth", TINY)
  assert words in str(error.value)
  assert "wrong.pth" in str(error.value)
  for heading in ("missing (", "unexpected (", "wrong shape ("):
    assert heading in str(error.value)


def test_all_three_lists_are_complete(pretraining, tmp_path):
  state = {n: t.read() for n, t in open_weights(pretraining["image"]).tensors.items()}
  del state["norm.bias"], state["blocks.3.attn.qkv.weight"]
  state |= {"extra": np.zeros(2, "f4"), "decoder_of_mine.weight": np.zeros(2, "f4")}
  state["blocks.0.mlp.fc1.bias"] = np.zeros(7, "f4")
  write_torch_file(tmp_path / "wrong.pth", {"model": state})
  with pytest.raises(CheckpointMismatchError) as error:
    open_pretrained("image", tmp_path / "wrong.pth", TINY)
  assert error.value.missing == ["blocks.3.attn.qkv.weight", "norm.bias"]
  assert error.value.unexpected == ["decoder_of_mine.weight", "extra"]
  assert error.value.wrong_shape == ["blocks.0.mlp.fc1.bias (7,), not (192,)"]


def test_a_pretraining_file_is_no_model(pretraining, tmp_path):
  printed = convert(f"--model={pretraining['image']}", "--classes=dfew", f"--out={tmp_path}/model", status=1)
  assert "looks like a masked autoencoder of images" in printed
  assert "config.pretrained.image" in printed
  assert not list(tmp_path.iterdir())


def tiny_config_flags() -> list[str]:
  fields = {
    f"model.{name}": value for name, value in vars(TINY).items() if name not in ("num_classes", "drop_path")
  }
  changed = {n: v for n, v in fields.items() if default_config().model[n.removeprefix("model.")] != v}
  return ["--config=configs/dfew.py", *(f"--config.{name}={value}" for name, value in changed.items())]


def test_convert_takes_the_two_files_as_training_does(pretraining, tmp_path):
  flags = tiny_config_flags()
  pair = [f"--config.pretrained.{stream}={path}" for stream, path in pretraining.items()]
  printed = convert(*flags, *pair, f"--out={tmp_path}/start")
  assert "positions resized from (64, 8) to (32, 8)" in printed
  assert load_model(tmp_path / "start").classes[0] == "happy"
  swapped = [
    f"--config.pretrained.image={pretraining['audio']}",
    f"--config.pretrained.audio={pretraining['image']}",
  ]
  printed = convert(*flags, *swapped, f"--out={tmp_path}/swapped", status=1)
  assert "spectrograms (AudioMAE)" in printed  # both are told at once
  assert "images (MAE-Face or MAE)" in printed
  assert "pretrained.audio is empty" in convert(*flags, pair[0], f"--out={tmp_path}/swapped", status=1)
  assert [path.name for path in tmp_path.iterdir()] == ["start"]


# --- files that are not what they should be -----------------------------------------------------------------------


def broken_files(tiny: dict[str, np.ndarray], whole: bytes) -> dict[str, tuple[object, str]]:
  """Content (bytes, or a state dict) and a word that the message must have, by name."""
  header = json.dumps({"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4]}}).encode()
  lying = len(header).to_bytes(8, "little") + header + bytes(4)
  nan = tiny | {"vision_proj.bias": np.full(32, np.nan, np.float32)}
  missing = {
    name: tensor for name, tensor in tiny.items() if name not in ("vision_proj.bias", "our_classifier.weight")
  }
  return {
    "empty.pth": (b"", "empty"),
    "download.pth": (b"<!DOCTYPE html><html><body>Google Drive - Virus scan warning</body></html>", "HTML"),
    "pointer.pth": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123\n", "git-lfs|LFS"),
    "cut.pth": (whole[: len(whole) // 2], "cut short"),
    "lying.safetensors": (lying, r"no whole \.safetensors file"),
    "huge.safetensors": ((10**15).to_bytes(8, "little") + b"{}", r"huge\.safetensors"),
    "html.safetensors": (b"<html>quota exceeded</html>", "HTML"),
    "integers.pth": ({"state_dict": tiny | {"our_classifier.bias": np.zeros(7, np.int64)}}, r"our_classifier\.bias: int64"),
    "beyond.pth": ({"state_dict": tiny | {"vision_proj.bias": np.full(32, 1e300)}}, r"vision_proj\.bias"),
    "wide.pth": ({"state_dict": tiny | {"image_encoder.pos_embed": np.zeros((1, 10**9, 0), "f4")}}, r"wrong shape \(1\)"),
    "nan.pth": ({"state_dict": nan}, r"NaN.*\n.*vision_proj\.bias"),
    "missing.pth": ({"state_dict": missing}, r"missing \(2\): our_classifier\.weight, vision_proj\.bias"),
    "extra.pth": ({"state_dict": tiny | {"more": np.zeros(3, "f4")}}, r"unexpected \(1\): more"),
    "shape.pth": ({"state_dict": tiny | {"vision_proj.bias": np.zeros(31, "f4")}}, r"wrong shape \(1\): vision_proj\.bias"),
    "nothing.pth": ({"epoch": 3}, "holds no state dict"),
    "list.pth": ([1, 2], "not a state dict"),
    "twice.pth": ({"state_dict": {"a": np.zeros(1, "f4"), "module.a": np.zeros(1, "f4")}}, "with and without the prefix"),
    "text.pth": (b"just words", "text.pth"),
    "number.pth": ({"epoch": 10**5000, "state_dict": missing}, r"missing \(2\)"),
    "deep.pth": ({"state_dict": tiny | {"image_encoder.blocks.99999.norm1.weight": np.zeros(48, "f4")}}, "no such model has more"),
    "escape.pth": ({"state_dict": tiny | {"\x1b[2Jgone": np.zeros(1, "f4")}}, r"unexpected \(1\): \\x1b\[2Jgone"),
    "block.pth": ({"state_dict": {n: t for n, t in tiny.items() if "image_encoder.blocks.11." not in n}}, r"missing \(12\)"),
  }  # fmt: skip


def test_every_broken_file_is_named_and_leaves_nothing(tiny, tiny_file, tmp_path):
  files = broken_files(tiny, tiny_file.read_bytes())
  for name, (content, words) in files.items():
    path = tmp_path / name
    if isinstance(content, bytes):
      path.write_bytes(content)
    else:
      write_torch_file(path, content)
    with pytest.raises(UserError) as error:
      convert_checkpoint(path, tmp_path / "out" / "model", classes="dfew")
    assert re.search(words, str(error.value)), f"{name}: {error.value}"
    assert name in str(error.value)
    assert not (tmp_path / "out").exists()


def test_the_command_ends_with_a_message(tiny, tmp_path):
  (tmp_path / "download.pth").write_bytes(b"<html>quota exceeded</html>")
  for given in ("download.pth", "nowhere.pth", "."):
    printed = convert(f"--model={tmp_path / given}", "--classes=dfew", f"--out={tmp_path}/model", status=1)
    assert printed.startswith("error: ")
    assert str(tmp_path) in printed
  assert sorted(path.name for path in tmp_path.iterdir()) == ["download.pth"]


def test_expanded_tensors_cannot_fill_the_memory(tiny, tmp_path):
  """A file of some kilobytes whose tensors claim gigabytes."""
  state = {name: View(np.zeros(1, np.float32), (30_000, 10_000), (0, 0)) for name in tiny}
  write_torch_file(tmp_path / "bomb.pth", {"state_dict": state})
  with pytest.raises(UserError, match=r"bomb\.pth"):
    convert_checkpoint(tmp_path / "bomb.pth", tmp_path / "model", classes="dfew")


def test_cut_and_flipped_files_are_refused_or_harmless(tmp_path):
  """20 places to cut at and 200 seeds of flipped bytes: a message with the file's name, or exactly the same tensors."""
  whole = (GOLDEN / "tiny_reference_checkpoint.pth").read_bytes()
  path, out = tmp_path / "damaged.pth", tmp_path / "model"
  intact = convert_checkpoint(GOLDEN / "tiny_reference_checkpoint.pth", out, classes="dfew")["tensors"]
  shutil.rmtree(out)

  def refused(content: bytes) -> bool:
    path.write_bytes(content)
    message = ""
    try:
      assert convert_checkpoint(path, out, classes="dfew")["tensors"] == intact
      shutil.rmtree(out)
    except UserError as error:
      message = str(error)
    assert "damaged.pth" in message or not message
    assert [p.name for p in tmp_path.iterdir()] == ["damaged.pth"]
    return bool(message)

  rng = np.random.default_rng(3)
  assert all(refused(whole[:size]) for size in rng.integers(1, len(whole), 20))
  harmless = 0
  for _ in range(200):
    content = bytearray(whole)
    for place in rng.integers(0, len(content), rng.integers(1, 5)):
      content[place] ^= int(rng.integers(1, 256))
    harmless += not refused(bytes(content))
  assert harmless < 30  # what lies between the entries of the archive belongs to nothing
