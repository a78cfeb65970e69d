"""`probe`: features of frozen encoders, read-outs of a few labels and of all, and what the command leaves."""

from commands import run
from conftest import small
from flax import nnx
import jax.numpy as jnp
from model_folders import stored
import numpy as np
import pytest
from sklearn.linear_model import RidgeClassifierCV
import small_runs

from mma_dfer_jax.data.data_set import open_data_set
from mma_dfer_jax.data.pipeline import make_example
from mma_dfer_jax.model import MmaDfer
from mma_dfer_jax.parameters import flat_params
from mma_dfer_jax.training import read_out
from mma_dfer_jax.training.check import check_run, few_clips
from mma_dfer_jax.training.predictions import find_predictions
from mma_dfer_jax.training.read_out import Features, few_shot, fit_read_out, score_rows
from mma_dfer_jax.training.sharding import make_mesh
from mma_dfer_jax.weights.folder import write_folder


def clouds(of_class: int, classes: int, seed: int, apart: float = 3.0) -> Features:
  """Clips of normal features around a place for each class, in mixed order."""
  places = apart * np.random.default_rng(7).standard_normal((classes, 8))
  rng = np.random.default_rng(seed)
  labels = rng.permutation(np.repeat(np.arange(classes), of_class))
  x = places[labels] + rng.standard_normal((len(labels), 8))
  return Features(
    tuple(map(str, range(len(labels)))), labels, 50 * x + 1000
  )  # of a scale that must not matter


def test_a_read_out_finds_what_is_linear_and_knows_how_sure_it_is():
  train, test = clouds(20, 3, 1), clouds(50, 3, 2)
  found = fit_read_out(train.x, train.labels, test.x, 3)
  np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-9)
  assert (found.argmax(axis=1) == test.labels).mean() > 0.98
  scaled = [(f.x - train.x.mean(axis=0)) / train.x.std(axis=0) for f in (train, test)]
  same = RidgeClassifierCV(read_out.STRENGTHS).fit(scaled[0], train.labels).predict(scaled[1])
  assert (found.argmax(axis=1) == same).mean() > 0.98
  # Of noise it learns nothing, and says so.
  noise = fit_read_out(train.x, train.labels, np.random.default_rng(3).normal(1000, 100, (50, 8)), 3)
  unrelated = fit_read_out(train.x, np.random.default_rng(4).permutation(train.labels), test.x, 3)
  assert unrelated.max(axis=1).mean() < 0.6 < noise.max(axis=1).mean() < found.max(axis=1).mean()


@pytest.mark.parametrize("labels", [[0, 1, 2], [0, 0, 2, 2, 2, 1], [1, 1, 0], [0, 0, 0, 2, 2, 2]])
def test_a_class_may_have_one_label_or_none(labels):
  rng, labels = np.random.default_rng(0), np.array(labels)
  x = 5 * np.eye(3)[labels] + 0.1 * rng.standard_normal((len(labels), 3))
  found = fit_read_out(x, labels, 5 * np.eye(3), 3)
  there = sorted(set(labels.tolist()))
  assert found.argmax(axis=1)[there].tolist() == there


def test_draws_are_the_same_for_all_encoders_and_larger_ones_hold_the_smaller(monkeypatch):
  drawn = []
  monkeypatch.setattr(read_out, "fit_read_out", lambda x, y, test, classes: drawn.append((x[:, 0], y)) or
                      np.eye(classes)[np.arange(len(test)) % classes])  # fmt: skip
  train, test, names = clouds(5, 3, 1), clouds(4, 3, 2), ("a", "b", "c")
  index = Features(train.clips, train.labels, np.arange(15.0)[:, None])
  answers = few_shot(index, test, names, labels=(2, 4, "all"), draws=3, seed=5)
  first, drawn[:] = list(drawn), []
  few_shot(index, test, names, labels=(2, 4, "all"), draws=3, seed=5)
  assert all((a == b).all() for a, b in zip([x for x, _ in first], [x for x, _ in drawn], strict=True))
  sets = [set(x.tolist()) for x, _ in first]
  assert [len(one) for one in sets] == [6, 6, 6, 12, 12, 12, 15]
  assert all(few < many for few, many in zip(sets[:3], sets[3:6], strict=True))
  assert len(set(map(frozenset, sets))) == 7
  assert [np.bincount(y).tolist() for _, y in first[2:4]] == [[2, 2, 2], [4, 4, 4]]
  assert all((train.labels[x.astype(int)] == y).all() for x, y in first)
  rows = score_rows(answers, answers)
  assert [(row["labels"], row["draws"]) for row in rows] == [(2, 3), (4, 3), ("all", 1)]
  war = 100 * (np.arange(12) % 3 == test.labels).mean()
  assert rows[0]["war"]["of_draws"] == [pytest.approx(war)] * 3
  assert rows[0]["difference"]["uar"] | {"of_draws": 0} == {"mean": 0, "standard_deviation": 0, "of_draws": 0}
  assert rows[2]["war"]["standard_deviation"] is None


@pytest.mark.slow
def test_the_encoders_are_those_that_training_starts_with():
  cfg = small(prompts={"layers_per_stage": 2})
  wanted = flat_params(nnx.state(MmaDfer(cfg, rngs=nnx.Rngs(params=3))))
  for stream, encoder in read_out.build_encoders(cfg, 3).items():
    for path, here in flat_params(nnx.state(encoder)).items():
      there = wanted[f"{stream}_encoder/{path}"][...]
      np.testing.assert_array_equal(
        here[...], there[:, : here.shape[1]] if path == "pos_embed" else there, path
      )


@pytest.mark.slow
def test_features_of_clips(data_dir):
  """In the order of the split, whatever the batch; the first ones are what MMA-DFER reads, the class token."""
  config = small_runs.config_of(data_dir)
  records = open_data_set(data_dir, "clips").records("test")
  cfg = check_run(config).model
  encoders = read_out.build_encoders(cfg, 1)
  groups = [encoders, {"audio": encoders["audio"]}]
  both, sound = read_out.features(groups, records, cfg.inputs, mesh=make_mesh(-1, 1), batch_size=4)
  examples = [make_example(record, cfg.inputs) for record in records]
  assert list(both.clips) == [example["clip_id"].decode() for example in examples]
  assert both.labels.tolist() == [example["label"] for example in examples]
  np.testing.assert_array_equal(both.x[:, -sound.x.shape[1] :], sound.x)
  image, width = encoders["image"], cfg.image.width
  assert both.x.shape == (7, 6 * width + 3 * width)  # a sound has one moment only
  tokens = image.embed(jnp.stack([example["video"] for example in examples]), None)
  for block in image.blocks:
    tokens = block(tokens, None)
  summary = np.asarray(image.summary(tokens))
  np.testing.assert_allclose(both.x[:, :width], summary.mean(axis=1), atol=2e-5)
  np.testing.assert_allclose(both.x[:, width : 2 * width], summary.max(axis=1), atol=2e-5)
  (alone,) = read_out.features(
    groups[1:], records, cfg.inputs, mesh=make_mesh(-1, 1), batch_size=4, tokens="class"
  )
  np.testing.assert_allclose(alone.x, sound.x[:, : cfg.audio.width], atol=2e-5)


@pytest.mark.slow
def test_the_command_compares_encoders_of_a_file_with_their_random_start(data_dir, tmp_path):
  fields = small_runs.config_flags(data_dir)
  write_folder(
    tmp_path / "model", stored(tmp_path / "model", check_run(small_runs.config_of(data_dir)).model)
  )
  out = tmp_path / "probe"
  status, printed, err = run(
    "probe", *fields, f"--config.init_from={tmp_path / 'model'}", "--draws=3", f"--out={out}"
  )
  assert (status, err) == (0, "")
  report = small_runs.read_json(out / "probe.json")
  assert [(row["labels"], row["clips"], row["draws"]) for row in report["rows"]] == [
    (1, 7, 3),
    (3, 21, 3),
    ("all", 21, 1),
  ]
  assert report["chance"] == {"war": pytest.approx(100 / 7), "uar": pytest.approx(100 / 7)}
  for row in report["rows"]:
    for score in ("war", "uar"):
      gains = np.subtract(row[score]["of_draws"], row["other"][score]["of_draws"])
      assert row["difference"][score]["of_draws"] == gains.tolist()
  # All clips of a class are drawn each time: that is what "all" is.
  three, every = report["rows"][1:]
  assert three["war"]["of_draws"] == every["war"]["of_draws"] * 3
  scores = find_predictions(out)[""]
  assert scores.scores.war == pytest.approx(every["war"]["mean"])
  assert scores.data_set == report["data_set"]["fingerprint"]
  assert {"probe.md", "probe.png", "probe.json", "predictions.csv"} == {path.name for path in out.iterdir()}
  table = [line for line in (out / "probe.md").read_text().splitlines() if line.startswith("| ")]
  assert all(line in printed for line in table)
  assert (
    "| labels for each class | clips | draws | WAR | UAR | random start: WAR | UAR | gain in WAR | in UAR |"
    in table
  )
  # The random start by itself is the same one; answers of all labels that are not asked for do not stay.
  status, printed, err = run("probe", *fields, "--labels=1", "--draws=3", f"--out={out}")
  assert (status, err) == (0, "")
  assert "image encoder: random weights of config.seed=1" in printed
  (alone,) = small_runs.read_json(out / "probe.json")["rows"]
  assert alone["war"] == report["rows"][0]["other"]["war"]
  assert not (out / "predictions.csv").exists()


@pytest.mark.parametrize(
  ("arguments", "says"),
  [
    (["--labels=1,4"], ["labels=4 for each class, but in train angry has 3 clips", "; allowed: 1 to 3, or all"]),
    (["--labels=0,x"], ["--labels=0,x: give different whole numbers from 1, or all"]),
    (["--labels=2,2", "--config.data.fold=9"], ["--labels=2,2: give different", "data.fold=9 needs"]),
    (["--labels="], ["--labels=: give"]),
    (["--features=face"], ["--features=face: choose one of both|image|audio"]),
    ([":audio=none", "--features=both"], ["--features=both, but model.audio is none: give --features=image"]),
    (["--draws=0"], ["--draws=0"]),
    (["--config.data.data_dir=nowhere"], ["there is no data set 'clips' in"]),
  ],
)  # fmt: skip
def test_what_cannot_be_probed(data_dir, tmp_path, arguments, says):
  config, *fields = small_runs.config_flags(data_dir)
  if arguments[0].startswith(":"):
    config += arguments[0]
    fields = [field for field in fields if ".audio." not in field]
    arguments = arguments[1:]
  status, _, err = run("probe", config, *fields, f"--out={tmp_path / 'out'}", *arguments)
  assert status in (1, 2)
  assert all(words in err for words in says), err
  assert not (tmp_path / "out").exists()


def test_the_folder_of_a_run_is_not_written_into(data_dir, tmp_path):
  (tmp_path / "run.json").touch()
  status, _, err = run("probe", *small_runs.config_flags(data_dir), f"--out={tmp_path}")
  assert (status, f"--out={tmp_path} holds a run" in err) == (1, True)


def test_training_on_few_clips_points_to_the_probe():
  assert few_clips({"a": 20, "b": 31}) == ""
  assert "in 2 of 3 classes (b: 2)" in few_clips({"a": 19, "b": 2, "c": 20})
