"""Many switches at once: such a run goes on to the same bits, answers, is exported, and `.pth` refuses its parts by name."""

import json
import re

from commands import load, run
import numpy as np
import pytest
import small_runs as small

from mma_dfer_jax import load_model
from mma_dfer_jax.training.predictions import read_predictions

pytestmark = pytest.mark.slow

SWITCHES = {
  "choices": "head=cosine,loss=ldam,frame_mask=soft,layer_pool=attention", "loss.ial_weight": 0.1,
  "loss.class_weights": "1,2,3,4,5,6,7", "loss.reweight_from": 0.5, "model.frame_mask.keep": 8, "model.frame_mask.after": 1,
  "model.layer_pool.streams": True, "mixup": 0.8, "cutmix": 1.0, "schedule": "step", "warmup_epochs": 1, "layer_decay": 0.75,
  "decayed": "kernels", "data.balanced": True, "data.rand_augment": 2, "data.erase": 0.25, "inputs.test_views": 2,
  "inputs.frame_choice": "stride", "inputs.frame_stride": 2, "eval_every": 3, "micro_batch": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, data_dir):
  path = tmp_path_factory.mktemp("switches") / "run"
  small.train_here(path, data_dir, **SWITCHES)
  return path


def test_a_stopped_run_ends_with_the_same_bits(workdir, data_dir, tmp_path):
  for stop_after in (4, 9):  # before and after class weights begin to act
    printed = small.train_here(tmp_path / "run", data_dir, stop_after=stop_after, **SWITCHES)
    assert "stopped by a test after step" in printed
  small.train_here(tmp_path / "run", data_dir, **SWITCHES)
  small.assert_same_bits(workdir, tmp_path / "run")


def test_the_report_names_what_was_chosen_and_each_term_of_the_loss(workdir):
  said = (workdir / "report.md").read_text() + (workdir / "run.json").read_text()
  for word in ("ldam", "cosine", "attention", "mixup", "from epoch 3, 0.1 x intensity-aware loss"):
    assert word in said
  terms = {
    name
    for line in (workdir / "metrics.jsonl").read_text().splitlines()
    for name in re.findall(r'"(\w+)":', line)
  }
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  for line in (line for line in lines if "loss" in line):
    assert line["loss"] == pytest.approx(line["ldam"] + 0.1 * line["ial"], rel=1e-5)
  assert terms >= {"loss", "ldam", "ial", "frame_weight_min", "test_loss"}


def test_a_pth_file_has_no_place_for_its_parts(workdir, tmp_path):
  status, _, err = run("convert", f"--model={workdir}", f"--to_torch={tmp_path / 'x.pth'}")
  assert status == 1
  for place in ("frame_mask", "layer_pool", "classifier"):
    assert place in err
  assert not (tmp_path / "x.pth").exists()


@pytest.mark.parametrize("form", ["stablehlo", "onnx"])
def test_an_exported_file_says_the_same(workdir, tmp_path, form):
  out = tmp_path / f"model.{'onnx' if form == 'onnx' else 'jax'}"
  flags = ["--platforms=cpu"] * (form == "stablehlo")  # each platform more takes seconds
  status, _, err = run("export", f"--model={workdir}", f"--format={form}", f"--out={out}", *flags)
  assert status == 0, err
  model, file = load_model(workdir), load_model(out)
  i, rng = model.about.inputs, np.random.default_rng(3)
  video = rng.integers(0, 256, (2, *i.video_shape), np.uint8)
  sound = rng.normal(0, 0.5, (2, *i.audio_shape)).astype(np.float32)
  expected, found = model.outputs(video, sound), file.outputs(video, sound)
  assert found.keys() == expected.keys() >= {"logits", "frame_weights", "streams"}
  for name, value in expected.items():
    np.testing.assert_allclose(found[name], value, atol=2e-5, err_msg=name)


def test_it_answers_and_is_evaluated_without_a_stream(workdir, data_dir, tmp_path):
  clips = sorted((data_dir / "clips/test").glob("*.mp4"))[:2]
  status, _, err = run(
    "predict", f"--model={workdir}", "--faces=none", "--force", f"--out={tmp_path}", *clips
  )
  assert status == 0, err
  assert sorted(path.name for path in tmp_path.glob("*.json")) == [f"{clip.stem}.json" for clip in clips]
  status, out, err = run("evaluate", f"--workdir={workdir}", "--without=none,picture,sound")
  assert status == 0, err
  assert out.count("7 clips") == 3
  evaluated = read_predictions(workdir / "evaluation_test_step15_without_none_predictions.csv")
  for clip in clips:  # of both test views
    answer = small.read_json(tmp_path / f"{clip.stem}.json")
    (place,) = [i for i, name in enumerate(evaluated.clips) if clip.stem in name]
    np.testing.assert_allclose([*answer["probabilities"].values()], evaluated.probabilities[place], atol=1e-5)
    assert len(answer["frame_weights"]) == 2 * load_model(workdir).about.inputs.num_frames


def test_logit_adjustment_at_evaluation(workdir, monkeypatch):
  """Of a training on uneven clips, which the small ones are not: their numbers are put in its place."""
  evaluate, facts = load("evaluate"), small.read_json(workdir / "run.json")
  clips = dict(zip(facts["classes"], (50, 1, 9, 30, 2, 4, 7), strict=True))
  changed = facts | {"data_set": facts["data_set"] | {"clips": {"train": clips}}}
  monkeypatch.setattr(evaluate, "read_run", lambda path: changed)
  for flags in ([], ["--logit_adjustment=2"]):
    status, out, err = run("evaluate", f"--workdir={workdir}", *flags)
    assert status == 0, err
  assert "logit adjustment 2.0" in out
  for wrong in ("nan", "inf", "1e300"):
    status, _, err = run("evaluate", f"--workdir={workdir}", f"--logit_adjustment={wrong}")
    assert (status, "must lie in [0, 100]" in err) == (1, True), err
  plain, adjusted = (
    read_predictions(workdir / f"evaluation_test_step15{which}_without_none_predictions.csv").probabilities
    for which in ("", "_logit_adjustment_2.0")
  )
  expected = plain / (np.array(list(clips.values())) / 103) ** 2
  np.testing.assert_allclose(adjusted, expected / expected.sum(axis=1, keepdims=True), atol=1e-6)
  for config, numbers, words in (
    (
      {"loss.logit_adjustment": 1.0},
      {},
      "was trained with loss.logit_adjustment=1.0 already; never use both",
    ),
    ({}, {facts["classes"][2]: 0}, f"cannot be used, for no training clip is {facts['classes'][2]}"),
  ):
    changed["config"] = facts["config"] | config
    changed["data_set"] = facts["data_set"] | {"clips": {"train": clips | numbers}}
    status, _, err = run("evaluate", f"--workdir={workdir}", "--logit_adjustment=2")
    assert (status, words in err) == (1, True), err
