"""Pretraining as users run it: what it leaves, how it stops and resumes, what it starts from, what it refuses."""

import contextlib
import dataclasses
import io
from pathlib import Path
import runpy

import commands
from conftest import ROOT
from flax import nnx
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import small_runs as small
from test_hosts import pair

from mma_dfer_jax.errors import UserError
from mma_dfer_jax.layers import sine_positions
from mma_dfer_jax.model import MmaDfer
from mma_dfer_jax.parameters import flat_params, put_over
from mma_dfer_jax.training.check import check_run
from mma_dfer_jax.training.loop import fit
from mma_dfer_jax.training.pretraining import Pretraining, check_pretraining, describe_pretraining
from mma_dfer_jax.weights.encoder_file import open_autoencoder
from mma_dfer_jax.weights.files import open_weights
from mma_dfer_jax.weights.pretrained import open_pretrained

NAMES = {"image": "pretrain_frames", "audio": "pretrain_sound"}
SIZES = {"width": 16, "heads": 2, "mlp_dim": 32}
SMALL = {"num_steps": 6, "batch_size": 8, "report_every_steps": 2, "log_every_steps": 1} | {
  f"model.{part}.{field}": value for part in ("encoder", "decoder") for field, value in SIZES.items()
}


def config_of(stream: str, data_dir: Path, choices: str = "demo", **overrides):
  config = runpy.run_path(str(ROOT / f"configs/{NAMES[stream]}.py"))["get_config"](choices)
  size = {"inputs.image_size": 32} if stream == "image" else {"inputs.audio_shape": (64, 128)}
  config.update_from_flattened_dict({**SMALL, **size, "data.data_dir": str(data_dir), **overrides})
  return config


def pretrain_here(workdir: Path, stream: str, data_dir: Path, *, stop_after: int = 0, **overrides) -> str:
  """What `pretrain` does after its flags, on this process's four devices; returns what was printed."""
  config, out = config_of(stream, data_dir, **overrides), io.StringIO()
  checked = check_pretraining(config)
  task = Pretraining(config, checked, describe_pretraining(config, checked))
  with contextlib.redirect_stdout(out):
    fit(task, workdir, stop=small.StopAfter(stop_after))
  return out.getvalue()


@pytest.fixture(scope="module")
def runs(tmp_path_factory, data_dir) -> dict[str, Path]:
  folder = tmp_path_factory.mktemp("pretraining")
  for stream in NAMES:
    (folder / f"{stream}.txt").write_text(pretrain_here(folder / stream, stream, data_dir))
  return {stream: folder / stream for stream in NAMES}


@pytest.mark.parametrize("stream", NAMES)
def test_what_it_leaves(runs, stream):
  report, printed = (
    small.read_json(runs[stream] / "report.json"),
    runs[stream].with_suffix(".txt").read_text(),
  )
  assert [point["step"] for point in report["curve"]] == [2, 4, 6]
  assert report["loss"] == report["curve"][-1]["loss"] < 1.5
  assert "labels unread" in printed
  assert f"{runs[stream]}/encoder.safetensors" in printed
  assert [row["labels"] for row in report["read_out"]] == [
    1,
    3,
  ]  # the training split has three clips of a class
  assert report["read_out"][0]["draws"] == 10
  assert "gain>" not in (text := (runs[stream] / "report.md").read_text())
  assert "| 3 | 10 |" in text
  for picture in ("loss_curve.png", "restored.png"):
    assert (runs[stream] / picture).read_bytes().startswith(b"\x89PNG")
  weights = open_weights(runs[stream] / "encoder.safetensors")
  assert weights.ours["encoder"]["heads"] == 2
  assert {weights.ours[key] for key in ("stream", "steps", "mask_ratio")} == {
    stream,
    6,
    {"image": 0.75, "audio": 0.8}[stream],
  }
  grid = (2, 2) if stream == "image" else (4, 8)
  np.testing.assert_array_equal(
    weights.tensors["pos_embed"].read()[0], sine_positions(grid, 16)
  )  # they do not move
  assert not any(name.startswith("module.") for name in weights.tensors)


@pytest.mark.parametrize("stream", NAMES)
def test_a_model_takes_the_encoder_with_the_same_tokens(runs, data_dir, stream):
  model = check_run(small.config_of(data_dir)).model
  start = open_pretrained(stream, runs[stream] / "encoder.safetensors", model)
  net = MmaDfer(model, rngs=nnx.Rngs(0))
  put_over(net, start.read())
  config = config_of(stream, data_dir)
  task = Pretraining(config, checked := check_pretraining(config), describe_pretraining(config, checked))
  pretrainer = task.fresh_model()
  put_over(pretrainer, open_autoencoder(runs[stream] / "encoder.safetensors", checked.model).read())
  (examples,) = map(jnp.asarray, task.make()(0).values())
  tokens, encoder = pretrainer.encoder.embed(examples, None), getattr(net, f"{stream}_encoder")
  ours = encoder.project(pretrainer.patch_values(examples)) + encoder.pos_embed[...][:, 1 : tokens.shape[1]]
  np.testing.assert_allclose(ours, tokens[:, 1:], atol=1e-5)
  assert start.facts[0].startswith("a masked autoencoder of")


@pytest.mark.slow
def test_interrupted_and_on_other_meshes_it_ends_alike(runs, data_dir, tmp_path):
  """Stopped in the middle and at a checkpoint; on one mesh to the same bits, on another to rounding."""
  expected = (runs["image"] / "encoder.safetensors").read_bytes()
  for stop_after in (4, 3):
    pretrain_here(tmp_path / "a", "image", data_dir, stop_after=stop_after)
    assert not (tmp_path / "a" / "encoder.safetensors").exists()
  assert "resuming after step" in pretrain_here(tmp_path / "a", "image", data_dir)
  assert (tmp_path / "a" / "encoder.safetensors").read_bytes() == expected
  curves = [small.read_json(folder / "report.json")["curve"] for folder in (tmp_path / "a", runs["image"])]
  assert curves[0] == curves[1]
  pretrain_here(
    tmp_path / "b",
    "image",
    data_dir,
    **{"mesh.fsdp": 4, "fsdp_min_size_mb": 0.0, "micro_batch": 4, "remat": "none"},
  )
  ours, theirs = (
    safetensors.numpy.load_file(folder / "encoder.safetensors") for folder in (tmp_path / "b", runs["image"])
  )
  assert ours.keys() == theirs.keys()
  for name, value in theirs.items():
    np.testing.assert_allclose(ours[name], value, atol=2e-5, err_msg=name)


@pytest.mark.slow
def test_it_starts_from_a_file(runs, data_dir, tmp_path):
  """With its decoder where that fits, and says what is fresh."""
  path = runs["audio"] / "encoder.safetensors"
  printed = pretrain_here(tmp_path / "same", "audio", data_dir, num_steps=1, **{"init.audio": str(path)})
  assert "30 tensors taken, positions as they are; 20 tensors of its decoder taken" in printed
  checked = check_pretraining(config_of("audio", data_dir, "demo,decoder=local", **{"init.audio": str(path)}))
  assert "decoder fresh: the file's is another one" in checked.starts[0].describe()
  weights = safetensors.numpy.load_file(path)
  bare = {name: array for name, array in weights.items() if not name.startswith(("decoder", "mask_token"))}
  safetensors.numpy.save_file(bare, tmp_path / "bare.safetensors")
  flags = {"init.audio": str(tmp_path / "bare.safetensors"), "inputs.audio_shape": (96, 128)}
  (start,) = check_pretraining(config_of("audio", data_dir, **flags)).starts
  assert "positions resized from (4, 8) to (6, 8); decoder fresh: the file has none" in start.describe()
  assert not [path for path in start.taken if path.startswith("decoder")]


@pytest.mark.parametrize(
  ("stream", "overrides", "words"),
  [
    ("image", {"model.mask_ratio": 0.99}, r"mask_ratio=0\.99 keeps none of the 4 patches"),
    (
      "image",
      {"model.mask_ratio": 1.0, "warm_up": 1.5},
      r"(?s)warm_up=1\.5.*mask_ratio=1\.0 must lie between 0 and 1",
    ),
    ("image", {"inputs.image_size": 30}, r"image_size=30 must be a multiple"),
    ("image", {"model.encoder.width": 18}, r"width=18 must be a multiple of 4"),
    ("image", {"init.audio": "x.pth"}, r"init\.audio=.*x\.pth, but this config pretrains on frames"),
    ("image", {"init.image": "nowhere.pth"}, r"nowhere\.pth"),
    (
      "image",
      {"data.data_dir": "", "num_steps": 0},
      r"(?s)num_steps=0 must be positive.*data\.data_dir is empty",
    ),
    ("audio", {"model.decoder.window": (3, 4)}, r"window=\(3, 4\) must divide the grid of 4 x 8 patches"),
    ("audio", {"data.fold": 2}, r"config\.data\.fold=2 needs"),
  ],
)
def test_what_is_wrong_is_said_before_anything_starts(data_dir, stream, overrides, words):
  choices = "demo,decoder=local" if stream == "audio" else "demo"
  with pytest.raises(UserError, match=words):
    check_pretraining(config_of(stream, data_dir, choices, **overrides))


def test_files_of_other_sizes_are_refused(runs, data_dir):
  path = str(runs["image"] / "encoder.safetensors")
  for overrides, words in (
    (
      {"model.encoder.width": 32},
      r"^[^\n]+\n[^\n]+ of another size, width=16, but this model has width=32: [^\n]+$",
    ),
    ({"model.encoder.heads": 4}, "heads=2 in the file, heads=4 in the config"),
  ):
    with pytest.raises(UserError, match=words):
      check_pretraining(config_of("image", data_dir, **overrides, **{"init.image": path}))
  model = check_run(small.config_of(data_dir)).model
  with pytest.raises(UserError, match="heads=2 in the file, heads=4 in the config"):
    open_pretrained(
      "image", path, dataclasses.replace(model, image=dataclasses.replace(model.image, heads=4))
    )


@pytest.mark.parametrize("stream", NAMES)
def test_configs_are_the_published_recipes_and_fit_the_models_they_are_for(stream):
  load = runpy.run_path(str(ROOT / f"configs/{NAMES[stream]}.py"))["get_config"]
  whole, small_one = load(), load("clips,decoder=local")
  assert (whole.model.encoder.width, whole.model.decoder.width) == (768, 512)
  assert whole.model.decoder.depth == {"image": 8, "audio": 16}[stream]
  assert (small_one.model.encoder.width, small_one.model.decoder.name) == (96, "local")
  for wrong in ("nothing", "decoder=nothing", "pretrain_sound"):
    with pytest.raises(UserError, match=r"nothing|there is no choice"):
      load(wrong)


def flags_of(stream: str, data_dir: Path) -> list[str]:
  size = {"inputs.image_size": 32} if stream == "image" else {"inputs.audio_shape": "(64,128)"}
  return [f"--config={NAMES[stream]}:demo", *(f"--config.{key}={value}" for key, value in
          {**SMALL, **size, "data.data_dir": data_dir}.items())]  # fmt: skip


@pytest.mark.slow
def test_two_processes_are_as_one_and_resume_the_run_of_one(runs, data_dir, cache, tmp_path):
  """The command in two processes of two devices, after a run that was stopped."""
  pretrain_here(tmp_path / "run", "audio", data_dir, stop_after=4)
  command = small.command("pretrain", f"--workdir={tmp_path / 'run'}", *flags_of("audio", data_dir))
  first, second = map(small.finish, pair(command, cache))
  assert "resuming after step" in first
  assert "encoder.safetensors" in first
  assert "encoder.safetensors" not in second
  ours, theirs = (
    safetensors.numpy.load_file(folder / "encoder.safetensors")
    for folder in (tmp_path / "run", runs["audio"])
  )
  assert ours.keys() == theirs.keys()
  for name, value in theirs.items():
    np.testing.assert_allclose(ours[name], value, atol=2e-5, err_msg=name)


@pytest.mark.slow
def test_few_labels(runs, data_dir, tmp_path):
  """The study is finished in two goes, and refuses what it cannot draw."""
  files = {f"pretrained.{stream}": runs[stream] / "encoder.safetensors" for stream in NAMES}
  study = [*small.config_flags(data_dir, **files), f"--out={tmp_path / 'out'}", "--steps=2"]
  status, _, printed = commands.run("few_labels", *study, "--draws=2", "--labels=1,9")
  assert status == 1
  assert "--labels=9, but train has 3 clips of" in printed
  for draws in (2, 3):  # the second adds a draw
    status, _, printed = commands.run("few_labels", *study, f"--draws={draws}", "--labels=1")
    assert status == 0, printed
  first = small.read_json(tmp_path / "out/few_labels.json")
  assert set(first["summary"]) == {"pretrained and frozen", "random and frozen", "from scratch"}
  assert all(set(of) == {"1"} for of in first["summary"].values())
  assert len(first["results"]) == 9
  assert (tmp_path / "out/few_labels.png").read_bytes().startswith(b"\x89PNG")
  status, _, printed = commands.run(
    "few_labels", *study, "--draws=2", "--labels=1", "--config.learning_rate=0.1"
  )
  assert status == 1
  assert "already contains a study with other config" in printed


def test_its_folder_is_no_model(runs):
  with pytest.raises(UserError, match=r"this is a pretraining, .*--config\.pretrained\.image"):
    small.open_run(runs["image"])


def test_a_constant_example_has_a_zero_target(data_dir):
  config = config_of("image", data_dir)
  model = Pretraining(
    config, checked := check_pretraining(config), describe_pretraining(config, checked)
  ).fresh_model()
  flat = jnp.full((2, 1, 32, 32, 3), 200, jnp.uint8)
  noise = jnp.asarray(np.random.default_rng(0).random((4, 2), np.float32))
  made = model(flat, noise)
  assert not np.asarray(made.target).any()
  assert np.isfinite(model.losses(made)).all()
  assert made.removed.sum() == 6  # of 4 patches one is kept
  assert flat_params(nnx.state(model)).keys() >= {"encoder/pos_embed", "decoder/mask_token"}
