"""A cascade and a landmark graph in real runs: from data with faces in few clips to answers of exported files."""

import json
import re

from commands import run
from films import write_data_set
import numpy as np
import pytest
import small_runs as small

from mma_dfer_jax import load_model
from mma_dfer_jax.data.data_set import open_data_set
from mma_dfer_jax.data.faces import Box, Detector
from mma_dfer_jax.data.landmarks import STORED

pytestmark = pytest.mark.slow

BOTH = "auxiliary=cascade,landmarks=graph"
SIZES = {
  "num_epochs": 2, "model.image.depth": 2, "model.audio.depth": 2, "model.prompts.layers_per_stage": 1,
  "model.auxiliary.width": 16, "model.auxiliary.mlp_dim": 32,
}  # fmt: skip
RUNS = {  # each form of the graph and each scale of targets, among the parts that they meet
  "token": {
    "choices": f"{BOTH},frame_mask=soft,head=text,layer_pool=softmax", "model.landmarks.form": "token",
    "model.auxiliary.targets": "standardised", "model.auxiliary.dropout": 0.3, "model.auxiliary.head_dropout": 0.1,
    "model.frame_mask.keep": 8, "model.frame_mask.after": 1, "model.head.embedding": 16, "model.head.learn_scale": True,
  } | SIZES,
  "frames": {"choices": BOTH, "precision": "bfloat16"} | SIZES,
}  # fmt: skip


@pytest.fixture(scope="module")
def faces(data_dir, tmp_path_factory):
  """The small clips with faces in two of 21 training clips, so that most batches of four are without any."""
  folder, rng = tmp_path_factory.mktemp("faces"), np.random.default_rng(0)
  data_set = open_data_set(data_dir, "clips")
  records = []
  for split in ("train", "test"):
    for number, record in enumerate(data_set.records(split)):
      stored = np.zeros(len(record["frames"]), STORED)
      if number < 2:
        stored["values"], stored["face"] = rng.uniform(0.3, 0.6, (len(stored), 14)), 1
        stored["face"][:3] = 0
      label = data_set.classes[record["label"]]
      record = {name: record[name] for name in ("frames", "waveform", "sample_rate", "clip_id")}
      records.append(
        record | {"split": split, "label": label, "faces": stored, "clip_id": record["clip_id"].decode()}
      )
  vectors = rng.normal(size=(len(data_set.classes), 16)).astype(np.float32)
  np.savez(folder / "vectors.npz", classes=data_set.classes, vectors=vectors, source="random")
  write_data_set(folder / "data", records, data_set.classes)
  return folder


@pytest.fixture(scope="module", params=RUNS)
def trained(request, tmp_path_factory, faces):
  """(name, folder of a run, what trains it again elsewhere)."""
  name, workdir = request.param, tmp_path_factory.mktemp(request.param) / "run"
  text = {"pretrained.text": str(faces / "vectors.npz")} if name == "token" else {}

  def again(path, **how):
    return small.train_here(path, faces / "data", log_every_steps=1, **RUNS[name], **text, **how)

  return name, workdir, again, again(workdir)


def test_a_stopped_run_ends_with_the_same_bits(trained, tmp_path):
  _, workdir, again, _ = trained
  assert "stopped by a test after step" in again(tmp_path / "run", stop_after=7)
  again(tmp_path / "run")
  small.assert_same_bits(workdir, tmp_path / "run")


def test_losses_are_logged_beside_a_constant_guess_and_are_0_without_a_face(trained):
  name, workdir, _, printed = trained
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  lines = [line for line in lines if "loss" in line]
  for line in lines:
    assert np.isfinite([line[key] for key in ("loss", "ce", "box", "landmarks", "grad_norm")]).all()
    assert line["loss"] == pytest.approx(1.5 * line["ce"] + 0.5 * (line["box"] + line["landmarks"]), rel=1e-5)
  of_box = [line["box"] for line in lines]
  assert len(of_box) == 10
  assert 0 < sum(loss > 0 for loss in of_box) <= 4  # two clips with faces, two epochs
  guess = {
    part: float(re.search(f"a constant guess of {part}: loss (.*)", printed)[1])
    for part in ("box", "landmarks")
  }
  assert (guess == {"box": 1, "landmarks": 1}) == (name == "token")
  assert "of a constant guess" in (workdir / "report.md").read_text()


def test_a_pth_file_has_no_place_for_them(trained, tmp_path):
  status, _, err = run("convert", f"--model={trained[1]}", f"--to_torch={tmp_path / 'x.pth'}")
  assert (status, "cascade" in err, "landmark_graph" in err) == (1, True, True)


class SomeFace(Detector):
  """Finds a face in every frame, and at each look elsewhere."""

  def __init__(self):
    self.rng = np.random.default_rng(0)

  def detect(self, pixels):
    return [Box(2.0, 2.0, 20.0, 20.0, 0.9, points=tuple(self.rng.uniform(2, 20, 10)))]


def test_it_is_evaluated_and_answers_by_points_of_a_detector(trained, data_dir, tmp_path, monkeypatch):
  _, workdir, *_ = trained
  status, out, err = run("evaluate", f"--workdir={workdir}", "--without=none,picture,sound")
  assert status == 0, err
  assert out.count("7 clips") == 3
  status, _, err = run("evaluate", f"--workdir={workdir}", f"--data_dir={data_dir}")
  assert (status, "--landmarks=yunet" in err) == (1, True)
  clip = min((data_dir / "clips/test").glob("*.mp4"))
  flags = f"--model={workdir}", "--faces=none", "--force"
  status, _, err = run("predict", *flags, f"--face_model={__file__}", f"--out={tmp_path}", clip)
  assert (status, "--face_model" in err or "YuNet" in err) == (1, True), err
  monkeypatch.setattr("mma_dfer_jax.data.landmarks.detector", lambda path: SomeFace())
  status, _, err = run("predict", *flags, f"--out={tmp_path}", clip)
  assert status == 0, err
  assert (
    small.read_json(tmp_path / f"{clip.stem}.json")["top"] in small.read_json(workdir / "run.json")["classes"]
  )


def test_an_exported_file_says_the_same(trained, tmp_path):
  name, workdir, *_ = trained
  model = load_model(workdir, precision="float32")
  i, rng = model.about.inputs, np.random.default_rng(3)
  points = rng.random((3, *i.points_shape), np.float32)
  points[..., 2] = 1
  points[0, :, 2] = 0  # a clip without a face
  sound = rng.normal(0, 0.5, (3, *i.audio_shape)).astype(np.float32)
  given = rng.integers(0, 256, (3, *i.video_shape), np.uint8), sound, points
  expected = model.outputs(*given)
  assert expected.keys() >= {"logits", "found_box", "found_landmarks"}
  for form in ("onnx", "stablehlo")[: 1 + (name == "token")]:
    out = tmp_path / f"model.{'onnx' if form == 'onnx' else 'jax'}"
    flags = ["--platforms=cpu"] * (form == "stablehlo") + ["--precision=float32"]
    status, _, err = run("export", f"--model={workdir}", f"--format={form}", f"--out={out}", *flags)
    assert status == 0, err
    found = load_model(out).outputs(*given)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
      np.testing.assert_allclose(found[key], value, atol=5e-5, err_msg=f"{form} {key}")


def test_data_without_landmarks_are_refused(data_dir, faces, tmp_path):
  def refused(command, data, *flags):
    given = small.config_flags(data)[1:]
    place = "workdir" if command == "train" else "runs"
    status, _, err = run(command, f"--{place}={tmp_path / command}", *flags, *given)
    assert status == 1, err
    return err

  for command in ("train", "folds", "ablate"):
    more = {"ablate": ["--rows=base,cascade"], "folds": ["--folds=1,2"]}.get(command, [])
    chosen = "" if command == "ablate" else ":auxiliary=cascade"
    assert "--landmarks=yunet" in refused(command, data_dir, f"--config=configs/demo.py{chosen}", *more), (
      command
    )
  mixed = "--config=configs/demo.py:landmarks=graph", "--config.mixup=0.8"
  assert "mixup=0.8 moves pixels, but not the boxes and points" in refused("train", faces / "data", *mixed)
