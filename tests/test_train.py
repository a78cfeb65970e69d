"""The real command in real processes: it trains, reports, survives kills, and says what is wrong."""

from collections.abc import Callable
import json
import os
from pathlib import Path
import re
import resource
import shutil
import signal
import subprocess
import sys

from archives import prepare_clips
from flax import nnx
import numpy as np
import pytest
from small_runs import SMALL, finish, parameters, spawn, states, steps_logged, train_command, wait_for
from torch_files import write_torch_file

from mma_dfer_jax.data.demo import generate
from mma_dfer_jax.engines.engine import load_model
from mma_dfer_jax.errors import UserError
from mma_dfer_jax.model import MmaDfer
from mma_dfer_jax.parameters import flat_params
from mma_dfer_jax.training.run import model_of, read_run


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
  folder = tmp_path_factory.mktemp("data")
  prepare_clips(generate(folder / "clips", 3, 1, 0), folder, num_workers=2)
  return folder


@pytest.fixture(scope="module")
def start(cache, data_dir) -> Callable[..., subprocess.Popen]:
  """Starts `python -m mma_dfer_jax.train` on the small clips; keyword arguments override the config."""

  def popen(workdir, *flags, preexec_fn=None, devices=1, **overrides) -> subprocess.Popen:
    return spawn(train_command(workdir, data_dir, *flags, **overrides), cache, preexec_fn, devices)

  return popen


def report(workdir: Path) -> dict:
  return json.loads((workdir / "report.json").read_text())


def assert_same_bits(a: dict, b: dict) -> None:
  assert a.keys() == b.keys()
  for path in a:
    assert a[path].tobytes() == b[path].tobytes(), path


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, start):
  """A run that nothing has disturbed: (workdir, what it printed)."""
  workdir = tmp_path_factory.mktemp("runs") / "whole"
  return workdir, finish(start(workdir))


def test_a_run_leaves_a_whole_report(uninterrupted):
  workdir, printed = uninterrupted
  report = json.loads((workdir / "report.json").read_text())
  assert {"war", "uar", "recall", "confusion_matrix", "classes", "clips", "clips_without_sound", "config", "recipe",
          "version", "step", "epoch", "best_epoch", "clips_seen"} <= report.keys()  # fmt: skip
  matrix = np.array(report["confusion_matrix"])
  assert matrix.sum() == report["clips"] == 7
  assert report["war"] == pytest.approx(100 * matrix.trace() / 7)
  assert (report["step"], report["epoch"], report["clips_seen"]) == (15, 3, 60)
  assert f"WAR {report['war']:.2f} %" in printed
  assert f"WAR {report['war']:.2f} %" in (workdir / "report.md").read_text()
  for picture in ("confusion_matrix.png", "learning_curves.png"):
    assert (workdir / picture).read_bytes().startswith(b"\x89PNG")
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  assert [line["step"] for line in lines if "loss" in line] == [2, 4, 5, 6, 8, 10, 12, 14, 15]
  assert [line["epoch"] for line in lines if "epoch" in line] == [1, 2, 3]
  rates = {line["step"]: line["learning_rate"] for line in lines if "loss" in line}
  assert rates[4] == pytest.approx(1e-3)
  assert rates[10] == pytest.approx(0.75e-3)  # cosine, constant within an epoch
  assert rates[15] == pytest.approx(0.25e-3)
  assert list((workdir / "tensorboard").iterdir())


def test_tensorboard_reads_the_same_numbers(uninterrupted):
  from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

  workdir, _ = uninterrupted
  board = EventAccumulator(str(workdir / "tensorboard"))
  board.Reload()
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  expected = {line["step"]: line["loss"] for line in lines if "loss" in line}
  assert {e.step: pytest.approx(e.value, rel=1e-5) for e in board.Scalars("loss")} == expected


def test_frozen_weights_are_stored_once_and_keep_their_bits(uninterrupted):
  workdir, printed = uninterrupted
  tunable, frozen = states(workdir)
  saved = set(flat_params(tunable))
  assert not any(re.match(".*_encoder/(blocks|patch_embed|cls_token|norm)", path) for path in saved)
  sizes = [
    sum(f.stat().st_size for f in step.rglob("*") if f.is_file())
    for step in (workdir / "checkpoints").iterdir()
  ]
  assert (workdir / "frozen").is_dir()
  assert len(sizes) >= 2
  fresh = flat_params(nnx.state(MmaDfer(model_of(read_run(workdir)), rngs=nnx.Rngs(params=1))))
  for path, variable in flat_params(frozen).items():
    np.testing.assert_array_equal(np.asarray(variable[...]), np.asarray(fresh[path][...]), err_msg=path)
  changed = [
    p for p, v in flat_params(tunable).items() if (np.asarray(v[...]) != np.asarray(fresh[p][...])).any()
  ]
  assert set(changed) == saved
  assert re.search(rf"sum +{report(workdir)['tunable_parameters']:,}", printed)


def test_finished_run_says_so_again_without_training(uninterrupted, start):
  workdir, printed = uninterrupted
  before = parameters(workdir)
  again = finish(start(workdir))
  assert "resuming after step 15 of 15" in again
  assert re.search("WAR .*", again).group() == re.search(r"\nWAR .*", printed).group().strip()
  assert_same_bits(before, parameters(workdir))


def test_kill_9_at_several_moments_changes_nothing(uninterrupted, start, tmp_path):
  """Before the first checkpoint, within an epoch, and inside a save; then on to the end."""
  workdir = tmp_path / "run"
  checkpoints = workdir / "checkpoints"
  moments = [
    ("before any checkpoint", lambda: steps_logged(workdir) >= 2),
    ("in the second epoch", lambda: steps_logged(workdir) >= 8),
    ("inside a save", lambda: any("tmp" in entry.name for entry in os.scandir(checkpoints))),
  ]
  for name, moment in moments:
    process = start(workdir, **{"save_every_steps": 2})
    wait_for(moment, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, name
  finish(start(workdir, **{"save_every_steps": 2}))
  whole, _ = uninterrupted
  assert_same_bits(parameters(whole), parameters(workdir))
  reports = [json.loads((folder / "report.json").read_text()) for folder in (whole, workdir)]
  assert reports[0]["confusion_matrix"] == reports[1]["confusion_matrix"]
  steps = [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  assert steps == sorted(steps)  # lines of the killed runs that were not saved are gone
  assert not [path for path in checkpoints.iterdir() if "tmp" in path.name]


def test_sigterm_saves_and_ends_well(uninterrupted, start, tmp_path):
  process = start(tmp_path)
  wait_for(lambda: steps_logged(tmp_path) >= 6, process)
  process.send_signal(signal.SIGTERM)
  printed = finish(process, status=0)
  step = int(re.search(r"stopped by SIGTERM after step (\d+)", printed).group(1))
  assert step >= 6
  assert (tmp_path / "checkpoints" / str(step)).is_dir()
  finish(start(tmp_path))
  assert_same_bits(parameters(uninterrupted[0]), parameters(tmp_path))


def test_damaged_files_are_named(uninterrupted, start, tmp_path):
  workdir = tmp_path / "run"
  shutil.copytree(uninterrupted[0], workdir)
  steps = sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())
  newest = workdir / "checkpoints" / str(steps[-1])
  # Orbax leaves copies that it does not read; which is which cannot be told by name.
  data = [path for path in (newest / "tunable").rglob("*") if path.is_file() and path.stat().st_size > 1000]
  assert data
  for path in data:
    os.truncate(path, path.stat().st_size // 2)
  printed = finish(start(workdir), status=1)
  assert f"checkpoint of step {steps[-1]}" in printed
  assert f"{newest} the run goes on from there" in printed
  shutil.rmtree(newest)
  finish(start(workdir))
  assert_same_bits(parameters(uninterrupted[0]), parameters(workdir))
  for damage in ("{}", "[1]", '{"config": {'):
    (workdir / "run.json").write_text(damage)
    with pytest.raises(UserError, match=r"run\.json is damaged"):
      read_run(workdir)
  assert "run.json is damaged" in finish(start(workdir), status=1)
  old = json.loads((uninterrupted[0] / "run.json").read_text()) | {"version": "0.1.0"}
  (workdir / "run.json").write_text(json.dumps(old))
  assert "was written by mma_dfer_jax 0.1.0, whose runs this version does not read" in finish(
    start(workdir), status=1
  )
  file = tmp_path / "file"
  file.write_text("")
  assert f"{file} cannot be written" in finish(start(file), status=1)


def test_model_in_python_refuses_what_it_was_not_made_for(uninterrupted):
  model = load_model(uninterrupted[0])
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (2, 16, 32, 32, 3), dtype=np.uint8)
  sound = rng.standard_normal((2, 64, 128), dtype=np.float32)
  np.testing.assert_allclose(model(pixels, sound), model(pixels / np.float32(255), sound), atol=1e-6)
  with pytest.raises(ValueError, match=r"uint8, or floating point in \[0, 1\]"):
    model(pixels.astype(np.float32), sound)
  with pytest.raises(ValueError, match="floating point"):
    model(np.full(pixels.shape, np.nan, np.float32), sound)
  with pytest.raises((ValueError, TypeError)):  # here the annotations, enforced in tests, see it first
    model(pixels, sound[:1])
  with pytest.raises(ValueError, match="at least one"):
    model(pixels[:0], sound[:0])
  with pytest.raises(ValueError, match="NaN"):
    model(pixels, sound * np.float32(np.nan))
  with pytest.raises(ValueError, match=r"spectrogram must be \(B, 64, 128\)"):
    model(pixels, sound[:, :32])
  best = load_model(uninterrupted[0], step="best")
  assert best.about.step == json.loads((uninterrupted[0] / "report.json").read_text())["best_epoch"]["step"]


def pretraining_file(path: Path, channels: int, patches: int, seed: int) -> dict[str, np.ndarray]:
  """An encoder of the small model's sizes as MAE names it, with a grid of its own and a decoder to be left out."""
  rng, width, mlp = np.random.default_rng(seed), SMALL["model.image.width"], SMALL["model.image.mlp_dim"]
  shapes = {"cls_token": (1, 1, width), "pos_embed": (1, 1 + patches, width), "mask_token": (1, 1, 8),
            "patch_embed.proj.weight": (width, channels, 16, 16), "patch_embed.proj.bias": (width,),
            "norm.weight": (width,), "norm.bias": (width,), "decoder_blocks.0.norm1.weight": (8,)}  # fmt: skip
  linears = {"attn.qkv": (3 * width, width), "attn.proj": (width, width), "mlp.fc1": (mlp, width), "mlp.fc2": (width, mlp)}  # fmt: skip
  for i in (0, 1):
    shapes |= {
      f"blocks.{i}.{norm}.{leaf}": (width,) for norm in ("norm1", "norm2") for leaf in ("weight", "bias")
    }
    for name, (outputs, inputs) in linears.items():
      shapes |= {f"blocks.{i}.{name}.weight": (outputs, inputs), f"blocks.{i}.{name}.bias": (outputs,)}
  state = {name: 0.1 * rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
  write_torch_file(path, {"model": state, "epoch": 400})
  return state


def test_a_run_starts_from_pretrained_encoders(start, tmp_path):
  image = pretraining_file(tmp_path / "face.pth", 3, 14 * 14, 0)
  audio = pretraining_file(tmp_path / "sound.pth", 1, 64 * 8, 1)
  files = {"pretrained.image": tmp_path / "face.pth", "pretrained.audio": tmp_path / "sound.pth"}
  printed = finish(start(tmp_path / "run", num_epochs=1, **files))
  assert re.search(
    r"image encoder: .*face\.pth, .*\(14, 14\) to \(2, 2\), 2 of its decoder left out", printed
  )
  assert re.search(r"audio encoder: .*sound\.pth, .*\(64, 8\) to \(4, 8\)", printed)
  assert "random weights" not in printed
  facts = report(tmp_path / "run")[
    "started_from"
  ]  # the report says where the weights came from, as the run did
  assert "face.pth" in facts
  assert "sound.pth" in facts
  found = parameters(tmp_path / "run")
  for stream, state in (("image", image), ("audio", audio)):
    kernel = found[f"{stream}_encoder/blocks/1/mlp/fc2/kernel"]
    np.testing.assert_array_equal(kernel, state["blocks.1.mlp.fc2.weight"].T)
    np.testing.assert_array_equal(found[f"{stream}_encoder/cls_token"], state["cls_token"])
    np.testing.assert_array_equal(
      found[f"{stream}_encoder/patch_embed/kernel"], state["patch_embed.proj.weight"].transpose(2, 3, 1, 0)
    )
    # One epoch of small steps moves the position tables a little; the class token's row shows whose they are.
    np.testing.assert_allclose(
      found[f"{stream}_encoder/pos_embed"][:, 0], state["pos_embed"][:, 0], atol=0.02
    )
  # The files are known by content: they may move, but not change.
  shutil.copy(tmp_path / "face.pth", tmp_path / "moved.pth")
  moved = files | {"pretrained.image": tmp_path / "moved.pth"}
  assert "resuming after step 5" in finish(start(tmp_path / "run", num_epochs=1, **moved))
  pretraining_file(tmp_path / "face.pth", 3, 14 * 14, 2)
  assert "starts image" in finish(start(tmp_path / "run", num_epochs=1, **files), status=1)
  # What does not fit is told for both files at once, before anything starts.
  swapped = {"pretrained.image": files["pretrained.audio"], "pretrained.audio": tmp_path / "nowhere.pth"}
  printed = finish(start(tmp_path / "new", **swapped), status=1)
  assert "looks like a masked autoencoder of spectrograms" in printed
  assert "nowhere.pth" in printed
  assert not (tmp_path / "new").exists()


def test_loss_that_is_not_finite_ends_the_run(start, tmp_path):
  printed = finish(start(tmp_path, learning_rate=1e30), status=1)
  assert re.search(
    r"error: the loss is (nan|inf) at step \d+ .*learning rate 1e\+30.*lower config.learning_rate", printed
  )
  assert not (tmp_path / "report.json").exists()
  assert not [path for path in (tmp_path / "checkpoints").glob("[0-9]*")]


def test_full_disk_while_saving_loses_nothing(uninterrupted, start, tmp_path):
  process = start(tmp_path)
  wait_for(
    lambda: (tmp_path / "checkpoints/5/commit_success.txt").exists() or steps_logged(tmp_path) >= 8, process
  )
  process.send_signal(signal.SIGTERM)
  finish(process)
  kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())

  def no_more_than_4_kb():  # a disk that takes small files but no arrays
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

  process = start(tmp_path, preexec_fn=no_more_than_4_kb)
  out, err = process.communicate(timeout=200)
  assert process.returncode == 1, out + err
  assert re.search("error: the checkpoint of step .* cannot be saved", err), err
  assert "Traceback" not in err
  left = sorted(path.name for path in (tmp_path / "checkpoints").iterdir() if "tmp" not in path.name)
  assert left == kept
  finish(start(tmp_path))
  assert_same_bits(parameters(uninterrupted[0]), parameters(tmp_path))


@pytest.mark.parametrize(
  ("flags", "words"),
  [
    (["--config.batchsize=4", "--config.data.flod=1", "--config.num_epochs=2"],
     ["batchsize: there is no 'batchsize'", "data.flod: there is no 'flod'", "batch_size"]),
    (["--config.batch_size=four"], ["batch_size", "four"]),
    (["--config.batch_size=0", "--config.data.fold=3", "--config.model.num_classes=5", "--config.model.image.width=15"],
     ["batch_size=0", "data.fold=3", "train, test", "model.num_classes=5", "7 classes", "width=15"]),
    (["--config.batch_size=40"], ["batch_size=40", "21 clips"]),
    (["--config.data.classes=('a','b')"], ["data.classes", "angry"]),
    (["--config.data.data_dir=/nowhere"], ["no data set 'clips'", "mma_dfer_jax.data.prepare"]),
    (["--config.tunable=('clasifier/.*',)"], ["clasifier", "matches no parameter"]),
    (["--config.model.image.tunable=('norm/.*',)"], ["model.image.tunable", "has no effect", "config.tunable"]),
    (["--config.micro_batch=3"], ["micro_batch=3 must divide batch_size=4"]),
    (["--config.model.fusion.layers=last 3"], ["model.fusion.layers='last 3'", "there are 2 layers"]),
    (["--config=configs/demo.py:fusion=sum"], ["no 'sum' in fusion", "bottleneck, none"]),
    (["--config=configs/demo.py:fuse=none"], ["'fuse=none'", "image, audio, prompts, fusion, temporal, head, loss"]),
    (["--workdir=gs://bucket/run"], ["gs://bucket/run", "folder"]),
    (["stray"], ["stray"]),
  ],
)  # fmt: skip
def test_what_is_wrong_is_said_before_anything_starts(start, tmp_path, flags, words):
  workdir = tmp_path / "run"
  process = start(workdir, *flags)
  _out, err = process.communicate(timeout=120)
  assert process.returncode in (1, 2)
  assert "Traceback" not in err, err
  assert [word for word in words if word not in err] == [], err
  assert not workdir.exists()


def test_another_runs_workdir_is_refused(uninterrupted, start):
  workdir, _ = uninterrupted
  before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.is_file()}
  printed = finish(start(workdir, **{"model.fusion.width": 32, "seed": 5}), status=1)
  assert "config model.fusion.width: 8 there, 32 now" in printed
  assert "config seed: 1 there, 5 now" in printed
  assert before == {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.is_file()}


def test_other_classes_or_recipe_are_refused(uninterrupted, start, cache, data_dir, tmp_path):
  """The same clips prepared in another way, or with another label order, are not gone on with nor evaluated."""
  workdir, _ = uninterrupted
  manifest = data_dir / "clips/clips.csv"
  order = ["happy", "sad", "neutral", "angry", "surprise", "disgust", "fear"]
  prepare_clips(manifest, tmp_path / "order", classes=order, num_workers=2)
  prepare_clips(manifest, tmp_path / "recipe", allow_missing_sound=True, num_workers=2)
  printed = finish(start(workdir, **{"data.data_dir": tmp_path / "order"}), status=1)
  assert "classes: ['angry'" in printed
  printed = finish(start(workdir, **{"data.data_dir": tmp_path / "recipe"}), status=1)
  assert "recipe missing_sound: 'refused' there" in printed
  evaluate = [sys.executable, "-m", "mma_dfer_jax.evaluate", f"--workdir={workdir}"]
  assert (
    "label"
    not in finish(spawn([*evaluate, f"--data_dir={tmp_path / 'recipe'}"], cache), status=1).split("error")[0]
  )
  assert "the model tells apart angry" in finish(
    spawn([*evaluate, f"--data_dir={tmp_path / 'order'}"], cache), status=1
  )


def test_evaluate_and_predict(uninterrupted, cache, data_dir, tmp_path):
  workdir, _ = uninterrupted
  report = json.loads((workdir / "report.json").read_text())
  evaluate = [sys.executable, "-m", "mma_dfer_jax.evaluate", f"--workdir={workdir}"]
  printed = finish(spawn([*evaluate, "--without=none,sound,picture"], cache))
  result = json.loads((workdir / "evaluation_test_step15.json").read_text())["without"]
  assert result["none"]["confusion_matrix"] == report["confusion_matrix"]
  assert result["sound"]["clips_without_sound"] == 7
  assert len({without["cross_entropy"] for without in result.values()}) == 3
  assert "without picture" in printed
  assert "--without=smell" in finish(spawn([*evaluate, "--without=smell"], cache), status=1)
  assert "no split fold9" in finish(spawn([*evaluate, "--split=fold9"], cache), status=1)
  assert "no checkpoint 3" in finish(spawn([*evaluate, "--step=3"], cache), status=1)

  clips = data_dir / "clips/test"
  files = sorted(clips.glob("*.mp4"))[:2]
  broken = tmp_path / "broken.mp4"
  broken.write_bytes(files[0].read_bytes()[:5000])
  predict = [
    sys.executable,
    "-m",
    "mma_dfer_jax.predict",
    f"--model={workdir}",
    f"--out={tmp_path / 'answers'}",
  ]
  printed = finish(spawn([*predict, *map(str, [files[0], broken, files[1]])], cache), status=1)
  assert "broken.mp4" in printed
  assert "1 of 3 clips could not be read" in printed
  answers = [json.loads((tmp_path / f"answers/{file.stem}.json").read_text()) for file in files]
  for answer in answers:
    assert sum(answer["probabilities"].values()) == pytest.approx(1)
    assert answer["top"] == max(answer["probabilities"], key=answer["probabilities"].get)
    assert answer["sound"] is True
