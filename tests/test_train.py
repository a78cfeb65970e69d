"""Training whole: it reports, survives kills to the same bits, and says what is wrong before it starts."""

import contextlib
import dataclasses
import json
import os
from pathlib import Path
import re
import resource
import shutil
import signal

import commands
from conftest import ROOT
import numpy as np
import pytest
import small_runs as small
from torch_files import write_torch_file

from mma_dfer_jax import predict_video
from mma_dfer_jax.config import choose
from mma_dfer_jax.disk import alone_in
from mma_dfer_jax.engines.engine import load_model
from mma_dfer_jax.errors import UserError
from mma_dfer_jax.training.check import check_model_and_data, check_run, problems_of_clips
from mma_dfer_jax.training.predictions import read_predictions
from mma_dfer_jax.training.run import claim_workdir, describe_run, model_of, read_run
from mma_dfer_jax.training.start import open_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, data_dir) -> Path:
  return small.uninterrupted_run(tmp_path_factory, data_dir)


def test_a_run_leaves_a_whole_report(uninterrupted):
  workdir, printed = uninterrupted, (uninterrupted.parent / "printed").read_text()
  report = small.read_json(workdir / "report.json")
  assert {"war", "uar", "recall", "confusion_matrix", "classes", "clips", "clips_without_sound", "config", "recipe",
          "version", "step", "epoch", "best_epoch", "clips_seen"} <= report.keys()  # fmt: skip
  matrix = np.array(report["confusion_matrix"])
  assert matrix.sum() == report["clips"] == 7
  assert report["war"] == pytest.approx(100 * matrix.trace() / 7)
  assert (report["step"], report["epoch"], report["clips_seen"]) == (15, 3, 60)
  assert report["evaluated_epochs"] == [1, 2, 3]
  assert f"WAR {report['war']:.2f} %" in printed
  assert f"WAR {report['war']:.2f} %" in (workdir / "report.md").read_text()
  assert 0 <= report["calibration"]["ece"] <= 100
  for picture in ("confusion_matrix.png", "learning_curves.png", "reliability.png"):
    assert (workdir / picture).read_bytes().startswith(b"\x89PNG")
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  assert [line["step"] for line in lines if "loss" in line] == [2, 4, 5, 6, 8, 10, 12, 14, 15]
  assert [line["epoch"] for line in lines if "epoch" in line] == [1, 2, 3]
  rates = {line["step"]: line["learning_rate"] for line in lines if "loss" in line}
  # Cosine, constant within an epoch.
  assert [rates[step] for step in (4, 10, 15)] == pytest.approx([1e-3, 0.75e-3, 0.25e-3])

  from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

  board = EventAccumulator(str(workdir / "tensorboard"))
  board.Reload()
  expected = {line["step"]: line["loss"] for line in lines if "loss" in line}
  assert {e.step: pytest.approx(e.value, rel=1e-5) for e in board.Scalars("loss")} == expected


def test_the_answer_to_each_clip_is_kept(uninterrupted, data_dir):
  report = small.read_json(uninterrupted / "report.json")
  predictions = read_predictions(uninterrupted / "predictions.csv")
  assert predictions.scores.confusion.tolist() == report["confusion_matrix"]
  assert list(predictions.classes) == report["classes"]
  assert sorted(predictions.clips) == sorted(f"test/{p.name}" for p in (data_dir / "clips/test").glob("*"))
  for label, clip in zip(predictions.labels, predictions.clips, strict=True):
    assert predictions.classes[label] in clip
  np.testing.assert_allclose(predictions.probabilities.sum(axis=1), 1, atol=1e-6)


def test_frozen_weights_are_stored_once_and_keep_their_bits(uninterrupted):
  run, found = read_run(uninterrupted), small.parameters(uninterrupted)
  fresh = small.fresh_parameters(model_of(run))
  changed = {path for path in found if found[path].tobytes() != fresh[path].tobytes()}
  assert changed == {path for path in found if any(re.fullmatch(p, path) for p in run["tunable"])}
  assert not any(re.match(".*_encoder/(blocks|patch_embed|cls_token|norm)", path) for path in changed)
  assert (uninterrupted / "frozen").is_dir()
  number = sum(found[path].size for path in changed)
  assert number == small.read_json(uninterrupted / "report.json")["tunable_parameters"]
  assert re.search(rf"sum +{number:,}", (uninterrupted.parent / "printed").read_text())


def test_a_finished_run_reports_again_without_training(uninterrupted, data_dir, tmp_path):
  shutil.copytree(uninterrupted, tmp_path / "run")
  again = small.train_here(tmp_path / "run", data_dir)
  assert "resuming after step 15 of 15" in again
  last = (uninterrupted.parent / "printed").read_text().splitlines()[-1]
  assert again.splitlines()[-1].startswith(last.split(";")[0])
  small.assert_same_bits(uninterrupted, tmp_path / "run")
  best = small.read_json(tmp_path / "run/report.json")["best_epoch"]["step"]
  assert open_run(tmp_path / "run", "best").about["source"]["step"] == best


def test_interrupted_in_every_way_it_ends_with_the_same_bits(uninterrupted, data_dir, cache, tmp_path):
  """At the end of an epoch that is not evaluated, by kill -9 inside a save, by SIGTERM, by a full disk."""
  workdir = tmp_path / "run"
  checkpoints = workdir / "checkpoints"
  how = {"save_every_steps": 2, "eval_every": 2}

  def start():
    return small.spawn(small.train_command(workdir, data_dir, **how), cache)

  printed = small.train_here(workdir, data_dir, stop_after=1, eval_every=2)
  assert "stopped by a test before the first step; run the same command to start again" in printed
  printed = small.train_here(workdir, data_dir, stop_after=6, eval_every=2)
  assert "stopped by a test after step 5" in printed
  process = start()
  small.wait_for(lambda: any("tmp" in entry.name for entry in os.scandir(checkpoints)), process)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  assert process.returncode == -signal.SIGKILL

  process = start()
  small.wait_for(lambda: small.steps_logged(workdir) >= 8, process)
  process.send_signal(signal.SIGTERM)
  step = int(re.search(r"stopped by SIGTERM after step (\d+)", small.finish(process)).group(1))
  assert step >= 8
  kept = sorted(path.name for path in checkpoints.iterdir())
  assert str(step) in kept

  if step < 15:
    with a_disk_for_small_files(), pytest.raises(UserError, match=r"checkpoint of step .* cannot be saved"):
      small.train_here(workdir, data_dir, **how)
    assert sorted(path.name for path in checkpoints.iterdir()) == kept

  printed = small.train_here(workdir, data_dir, **how)
  assert "epoch 3" in printed
  assert "epoch 1" not in printed
  small.assert_same_bits(uninterrupted, workdir)
  assert small.read_json(workdir / "report.json")["evaluated_epochs"] == [2, 3]
  assert "among the 2 evaluated epochs: " in (workdir / "report.md").read_text()
  steps = [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  assert steps == sorted(steps)  # lines of the killed runs that were not saved are gone
  assert not [path for path in checkpoints.iterdir() if "tmp" in path.name]


@contextlib.contextmanager
def a_disk_for_small_files():
  """Like a full disk: files of 8 kB are written, arrays are not."""
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)


def test_damaged_files_are_named(uninterrupted, tmp_path):
  workdir = tmp_path / "run"
  shutil.copytree(uninterrupted, workdir)
  newest = workdir / "checkpoints/15"
  # Orbax leaves copies that it does not read; which is which cannot be told by name.
  data = [path for path in (newest / "tunable").rglob("*") if path.is_file() and path.stat().st_size > 1000]
  assert data
  for path in data:
    os.truncate(path, path.stat().st_size // 2)
  with pytest.raises(UserError, match=f"(?s)checkpoint of step 15.*remove the folder {newest} to resume"):
    load_model(workdir)
  for damage in ("{}", "[1]", '{"config": {'):
    (workdir / "run.json").write_text(damage)
    with pytest.raises(UserError, match=r"run\.json is damaged"):
      read_run(workdir)
  (workdir / "run.json").write_text(json.dumps(read_run(uninterrupted) | {"version": "0.1.0"}))
  with pytest.raises(UserError, match=r"by mma_dfer_jax 0\.1\.0, whose runs this version does not read"):
    read_run(workdir)


def pretraining_file(path: Path, channels: int, patches: int, seed: int) -> dict[str, np.ndarray]:
  """An encoder of the small model's sizes as MAE names it, with a grid of its own and a decoder to be left out."""
  rng = np.random.default_rng(seed)
  width, mlp = small.SMALL["model.image.width"], small.SMALL["model.image.mlp_dim"]
  shapes = {"cls_token": (1, 1, width), "pos_embed": (1, 1 + patches, width), "mask_token": (1, 1, 8),
            "patch_embed.proj.weight": (width, channels, 16, 16), "patch_embed.proj.bias": (width,),
            "norm.weight": (width,), "norm.bias": (width,), "decoder_blocks.0.norm1.weight": (8,)}  # fmt: skip
  layers = {"norm1": (width,), "norm2": (width,), "attn.qkv": (3 * width, width), "attn.proj": (width, width),
            "mlp.fc1": (mlp, width), "mlp.fc2": (width, mlp)}  # fmt: skip
  for i in (0, 1):
    for name, shape in layers.items():
      shapes |= {f"blocks.{i}.{name}.weight": shape, f"blocks.{i}.{name}.bias": shape[:1]}
  state = {name: 0.1 * rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
  write_torch_file(path, {"model": state, "epoch": 400})
  return state


def test_a_run_starts_from_pretrained_encoders(data_dir, tmp_path):
  states = {"image": pretraining_file(tmp_path / "face.pth", 3, 14 * 14, 0),
            "audio": pretraining_file(tmp_path / "sound.pth", 1, 64 * 8, 1)}  # fmt: skip
  files = {"pretrained.image": str(tmp_path / "face.pth"), "pretrained.audio": str(tmp_path / "sound.pth")}
  printed = small.train_here(tmp_path / "run", data_dir, **files)
  assert re.search(
    r"image encoder: .*face\.pth, .*\(14, 14\) to \(2, 2\), 2 of its decoder left out", printed
  )
  assert re.search(r"audio encoder: .*sound\.pth, .*\(64, 8\) to \(4, 8\)", printed)
  assert "random weights" not in printed
  # The report says where the weights came from, as the run did.
  assert re.search(r"face\.pth.*sound\.pth", small.read_json(tmp_path / "run/report.json")["started_from"])
  found = small.parameters(tmp_path / "run")
  for stream, state in states.items():
    kernel = found[f"{stream}_encoder/blocks/1/mlp/fc2/kernel"]
    np.testing.assert_array_equal(kernel, state["blocks.1.mlp.fc2.weight"].T)
    np.testing.assert_array_equal(found[f"{stream}_encoder/cls_token"], state["cls_token"])
    patches = state["patch_embed.proj.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(found[f"{stream}_encoder/patch_embed/kernel"], patches)
    # Fifteen small steps move the position tables a little; the class token's row shows whose they are.
    ours, theirs = found[f"{stream}_encoder/pos_embed"][:, 0], state["pos_embed"][:, 0]
    np.testing.assert_allclose(ours, theirs, atol=0.03)

  def claim(**starts) -> None:
    config = small.config_of(data_dir, **files | starts)
    checked = check_run(config)
    claim_workdir(tmp_path / "run", describe_run(config, checked.model, checked.data_set, checked.starts))

  # The files are known by content: they may move, but not change.
  shutil.copy(tmp_path / "face.pth", tmp_path / "moved.pth")
  claim(**{"pretrained.image": str(tmp_path / "moved.pth")})
  pretraining_file(tmp_path / "face.pth", 3, 14 * 14, 2)
  with pytest.raises(UserError, match="starts image"):
    claim()
  # What does not fit is reported for both files at once.
  with pytest.raises(UserError, match=r"(?s)looks like a masked autoencoder of spectrograms.*nowhere\.pth"):
    claim(
      **{"pretrained.image": files["pretrained.audio"], "pretrained.audio": str(tmp_path / "nowhere.pth")}
    )


def test_a_loss_that_is_not_finite_ends_the_run(data_dir, tmp_path):
  words = r"the loss is (nan|inf) at step \d+ .*learning rate 1e\+30.*lower config.learning_rate"
  with pytest.raises(UserError, match=words):
    small.train_here(tmp_path, data_dir, learning_rate=1e30)
  assert not (tmp_path / "report.json").exists()
  assert not [path for path in (tmp_path / "checkpoints").glob("[0-9]*")]


@pytest.mark.parametrize(
  ("overrides", "words"),
  [
    ({"batch_size": 0, "data.fold": 3, "model.num_classes": 5, "model.image.width": 15, "eval_every": 0},
     ["batch_size=0", "data.fold=3", "train, test", "model.num_classes=5", "7 classes", "width=15", "eval_every=0"]),
    ({"batch_size": 40}, ["batch_size=40, but train has 21 clips in all; set --config.batch_size=20 or lower (a multiple of the 4 devices)"]),
    ({"data.classes": ("a", "b")}, ["data.classes", "angry"]),
    ({"data.data_dir": "/nowhere"}, ["no data set 'clips' in /nowhere, which is not there"]),
    ({"tunable": ("clasifier/.*",)}, ["clasifier", "matches no parameter"]),
    ({"tunable": (".*",), "model.image.tunable": ("norm/.*",)}, ["model.image.tunable", "has no effect", "config.tunable"]),
    ({"data.held_out": 0.6}, ["data.held_out=0.6 must lie in [0, 0.5]"]),
    ({"data.held_out": 0.5, "batch_size": 16}, ["train without those held out has 7 clips in all; set --config.batch_size=4"]),
    ({"micro_batch": 3}, ["micro_batch=3 must divide batch_size=4"]),
    ({"loss.class_weights": "inverse", "loss.reweight_from": 0.8, "num_epochs": 2, "mixup": 0.5, "batch_size": 1},
     ["class weights would act from epoch 3 on, but there are 2", "mixup=0.5, but with batch_size=1 there is no other clip"]),
    ({"model.fusion.layers": "last 3"}, ["model.fusion.layers='last 3'", "the model has 2 layers"]),
  ],
)  # fmt: skip
def test_what_is_wrong_is_said_before_anything_starts(data_dir, overrides, words):
  with pytest.raises(UserError) as error:
    check_run(small.config_of(data_dir, **overrides))
  assert [word for word in words if word not in str(error.value)] == []


def test_drawing_classes_evenly_needs_clips_of_all(data_dir):
  config = small.config_of(data_dir, **{"data.balanced": True})
  model, data_set, _, problems = check_model_and_data(config)
  assert (problems, problems_of_clips(config, model, data_set, "train")) == ([], [])
  lacking = dataclasses.replace(data_set, clips={"train": data_set.clips["train"] | {"sad": 0}})
  (problem,) = problems_of_clips(config, model, lacking, "train")
  assert problem == "data.balanced=True cannot be used, for no training clip is sad"


def test_choices_after_the_colon(data_dir):
  words = r"(?s)no 'sum' in fusion.*bottleneck, none.*'fuse=none'.*image, audio, prompts"
  with pytest.raises(UserError, match=words):
    choose(small.config_of(data_dir), "fusion=sum,fuse=none")


def test_the_command_refuses_before_anything_starts(data_dir, tmp_path):
  call = small.train_command("run", data_dir, batch_size=6, seed=5)[3:]
  status, _, err = commands.run(
    "train", *call[:1], f"--config={ROOT}/configs/demo.py", *call[2:], at=tmp_path
  )
  assert (status, "batch_size=6 must be a multiple of the 4 devices" in err) == (1, True), err
  assert not list(tmp_path.iterdir())


def test_a_second_training_in_one_workdir_is_refused(data_dir, tmp_path):
  call = small.train_command(tmp_path / "run", data_dir)[3:]
  with alone_in(tmp_path / "run", "training", "--workdir"):
    status, _, err = commands.run("train", *call[:1], f"--config={ROOT}/configs/demo.py", *call[2:])
    assert (status, "another training is at work there (process" in err) == (1, True), err
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["lock"]


def test_another_runs_workdir_is_refused(uninterrupted, data_dir):
  before = {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*") if path.is_file()}
  with pytest.raises(UserError) as error:
    small.train_here(uninterrupted, data_dir, **{"model.fusion.width": 32, "seed": 5})
  width = "config model.fusion.width: 8 there, 32 now"
  for words in ("already contains a different run", width, "config seed: 1 there, 5"):
    assert words in str(error.value)
  run = read_run(uninterrupted)
  run["classes"] = run["classes"][::-1]
  run["recipe"]["missing_sound"] = "constant"
  words = r"(?s)classes: \['angry'.*recipe missing_sound: 'refused' there, 'constant' now"
  with pytest.raises(UserError, match=words):
    claim_workdir(uninterrupted, run)
  assert before == {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*") if path.is_file()}


def test_evaluate(uninterrupted, data_dir, tmp_path):
  """Twice into the same file, which then holds both; and refused, for a split, a step and another recipe."""
  run, other = tmp_path / "run", tmp_path / "other"
  shutil.copytree(uninterrupted, run)
  shutil.copytree(data_dir / "clips", other / "clips")
  for facts in other.rglob("*.json"):
    facts.write_text(facts.read_text().replace("refused", "constant"))

  def evaluate(flag: str, status: int = 0) -> str:
    found, out, err = commands.run("evaluate", f"--workdir={run}", flag)
    assert found == status, out + err
    return out + err

  printed = evaluate("--without=none,sound")
  assert "test, picture and sound, float32: WAR" in printed
  assert "test, picture only, float32: WAR" in printed
  for words, flag in {
    "give none, sound or picture": "--without=smell",
    "no split fold9": "--split=fold9",
    "no checkpoint 3": "--step=3",
    "missing_sound: the model was trained on 'refused', these data have 'constant'": f"--data_dir={other}",
  }.items():
    assert words in evaluate(flag, status=1)
  assert "sound only" in evaluate("--without=picture")
  result = small.read_json(run / "evaluation_test_step15.json")["without"]
  assert result["none"]["confusion_matrix"] == small.read_json(run / "report.json")["confusion_matrix"]
  assert result["sound"]["clips_without_sound"] == 7
  assert len({without["cross_entropy"] for without in result.values()}) == 3
  found = {without: read_predictions(run / f"evaluation_test_step15_without_{without}_predictions.csv")
           for without in result}  # fmt: skip
  for without, predictions in found.items():
    assert predictions.scores.confusion.tolist() == result[without]["confusion_matrix"]
  trained = read_predictions(run / "predictions.csv")
  assert trained.clips == found["none"].clips
  np.testing.assert_allclose(trained.probabilities, found["none"].probabilities, atol=1e-6)


def test_a_temperature_is_fitted_on_held_out_clips(data_dir, tmp_path):
  """One clip of three of each class; every reader of the run finds the temperature."""
  printed = small.train_here(tmp_path / "run", data_dir, **{"data.held_out": 0.3, "num_epochs": 2})
  assert "train on train: 14 clips, 3 steps an epoch" in printed
  report = small.read_json(tmp_path / "run/report.json")
  found = report["calibration"]
  assert (report["train_clips"], found["held_out_clips"], found["bins"]) == (14, 7, 15)
  temperature = found["temperature"]
  assert temperature not in (1.0, pytest.approx(0.05), pytest.approx(20.0))
  assert (tmp_path / "run/reliability.png").read_bytes().startswith(b"\x89PNG")
  assert (
    f"with temperature {temperature:.3f}, fitted on 7 training clips"
    in (tmp_path / "run/report.md").read_text()
  )
  engine = load_model(tmp_path / "run")
  assert engine.about.temperature == temperature
  assert engine.about.typical["side"] == [96, 96]
  clip = sorted((data_dir / "clips/test").glob("*"))[0]
  answer = predict_video(engine, clip, abstain=1.0)
  assert (answer.top, answer.frames_with_face, len(answer.reasons)) == (None, None, 1)
  kept = read_predictions(tmp_path / "run/predictions.csv")
  shares = kept.probabilities[kept.clips.index(f"test/{clip.name}")]
  np.testing.assert_allclose(list(answer.probabilities.values()), shares, atol=1e-5)
  assert predict_video(engine, clip).top == kept.classes[shares.argmax()]
  status, out, err = commands.run("evaluate", f"--workdir={tmp_path}/run")
  assert (status, f"ECE {found['ece']:.2f} %" in out) == (0, True), out + err
