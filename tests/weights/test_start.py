"""Starting from any weights: whatever fits is taken, and all that is taken, fresh or left out is said."""

from pathlib import Path

from flax import nnx
import jax
import jax.numpy as jnp
from model_folders import model_of, random_parameters, with_layers
import numpy as np
import pytest
from torch_files import write_checkpoint

from mma_dfer_jax import __version__
from mma_dfer_jax.config import default_config, flat_config
from mma_dfer_jax.disk import write_json
from mma_dfer_jax.errors import UserError
from mma_dfer_jax.model import MmaDfer
from mma_dfer_jax.parameters import parameter_shapes, put_over, split_tunable, tunable_patterns
from mma_dfer_jax.training.check import open_starts
from mma_dfer_jax.training.checkpoints import Checkpointer, save_frozen
from mma_dfer_jax.training.start import open_init, open_stored
from mma_dfer_jax.training.state import TrainState
from mma_dfer_jax.weights.folder import convert_checkpoint
from mma_dfer_jax.weights.names import name_table
from mma_dfer_jax.weights.positions import resize_positions

CLASSES = ("happy", "sad", "neutral", "angry", "surprise", "disgust", "fear")
PARTS = ("image_encoder", "audio_encoder", "image_prompts", "audio_prompts", "fusion", "joint_adaptation", "temporal",
         "classifier")  # fmt: skip


CFG = with_layers(2)


@pytest.fixture(scope="module")
def ours() -> dict[str, np.ndarray]:
  return random_parameters(CFG)


@pytest.fixture(scope="module")
def theirs(ours) -> dict[str, np.ndarray]:
  return {name: np.array(t) for row in name_table(CFG) for name, t in row.to_torch(ours[row.path]).items()}


@pytest.fixture(scope="module")
def checkpoint(theirs, tmp_path_factory) -> Path:
  return write_checkpoint(tmp_path_factory.mktemp("two") / "two.pth", theirs)


@pytest.fixture(scope="module")
def folder(checkpoint, tmp_path_factory) -> Path:
  out = tmp_path_factory.mktemp("two") / "model"
  convert_checkpoint(checkpoint, out, classes="dfew")
  return out


def save_step(workdir: Path, model: MmaDfer, step: int) -> None:
  """What `train` leaves of the model, as far as others read it."""
  config = default_config()
  for name, part in CFG.to_fields().items():
    if name == "inputs":
      config.inputs.update(part)
    elif name != "num_classes":
      config.model[name].update(part)
  patterns = tunable_patterns(CFG)
  run = {"config": flat_config(config.to_dict()), "classes": list(CLASSES), "recipe": {}, "tunable": list(patterns),
         "starts": {}, "data_set": {"sample_rates": [16000]}, "version": __version__}  # fmt: skip
  workdir.mkdir(exist_ok=True)
  write_json(workdir / "run.json", run)
  _, tunable, frozen = split_tunable(model, patterns)
  save_frozen(workdir, frozen)
  checkpointer = Checkpointer(workdir)
  checkpointer.save(TrainState(jnp.int32(step), tunable, frozen, jnp.zeros(1)), {"run": run}, 1.0)
  checkpointer.close()


def lines(start) -> dict[str, str]:
  found = dict(line.split(": ", 1) for line in start.facts)
  assert all(line in start.describe() for line in start.facts)
  return found


@pytest.mark.slow
def test_the_same_model_is_taken_whole_from_a_file_a_folder_and_a_run(checkpoint, folder, ours, tmp_path):
  model = model_of(CFG, ours)
  save_step(tmp_path / "run", model, 5)
  for path in (folder, tmp_path / "run"):
    start = open_init(path, CFG, CLASSES)
    assert {line.split(" ")[1] for line in start.facts} == {"30", "2", "28", "13"}
    assert not any("fresh" in line or "left" in line for line in start.facts)
    assert all(f"{place}: " in start.describe() for place in PARTS)
    found = start.read()
    assert all(found[name].tobytes() == array.tobytes() for name, array in ours.items())
    assert found.keys() == ours.keys()
  with pytest.raises(UserError, match="no checkpoint 7; it has the steps 5"):
    open_stored(tmp_path / "run", 7)
  before = start.sha256
  assert open_init(tmp_path / "run", CFG, CLASSES).sha256 == before
  model.classifier.bias[...] += 1
  save_step(tmp_path / "run", model, 10)
  later = open_init(tmp_path / "run", CFG, CLASSES)
  assert later.sha256 != before
  np.testing.assert_array_equal(later.read()["classifier/bias"], ours["classifier/bias"] + 1)
  start = open_init(checkpoint, CFG, CLASSES)  # it does not say its classes
  assert "convert it with --classes" in lines(start)["classifier"]
  assert start.read().keys() == ours.keys() - {"classifier/kernel", "classifier/bias"}


@pytest.mark.parametrize(("changes", "place", "says"), [
  ({"fusion": {"name": "none"}}, "fusion", "28 tensors left out, fusion/bottleneck there and fusion/none here"),
  ({"temporal": {"name": "mean", "width": 32}}, "temporal", "13 tensors left out, temporal/transformer there"),
  ({"audio": {"name": "none"}}, "audio_encoder", "30 tensors left out, encoders/mae there and encoders/none here"),
  ({"prompts": {"name": "none"}}, "image_encoder", "30 of 30 tensors, position rows of 6 prompts left out"),
  ({"prompts": {"prompts_per_stage": 5}}, "image_encoder", "position rows of 6 prompts left out, position rows of 10"),
  ({"prompts": {"prompts_per_stage": 5}}, "image_prompts", "fresh, prompts_per_stage=5 instead of 3"),
  ({"image_size": 96}, "image_encoder", "30 of 30 tensors, positions resized from (2, 2) to (6, 6)"),
  ({"fusion": {"width": 8}}, "fusion", "8 of 28 tensors, width=8 instead of 16, fresh: 0/audio_down/bias (16,), not (8,)"),
  ({"fusion": {"layers": "last 1"}}, "fusion", "14 of 14 tensors, layers=last 1 instead of all, left out: 0/"),
  ({"image": {"mean": (0.5, 0.5, 0.5)}}, "image_encoder", "mean=(0.5, 0.5, 0.5) instead of (0.0, 0.0, 0.0)"),
])  # fmt: skip
def test_ablated_and_other_models_take_what_fits(folder, ours, changes, place, says):
  cfg = with_layers(2, **changes)
  start = open_init(folder, cfg, CLASSES)
  assert says in lines(start)[place]
  found, shapes = start.read(), parameter_shapes(cfg)
  assert found.keys() <= shapes.keys()
  same = [path for path in shapes if path in ours and shapes[path] == ours[path].shape]
  assert all(found[path].tobytes() == ours[path].tobytes() for path in same)
  table = "image_encoder/pos_embed"
  if shapes[table] != ours[table].shape:
    prompts = cfg.prompts.count(cfg.layers)
    assert found[table].shape[1] in (shapes[table][1], shapes[table][1] - prompts)
    grid = CFG.image.grid("image", CFG.inputs), cfg.image.grid("image", cfg.inputs)
    patches = 1 + grid[1][0] * grid[1][1]
    resized = resize_positions(ours[table][:, : 1 + grid[0][0] * grid[0][1]], *grid)
    np.testing.assert_array_equal(found[table][:, :patches], resized)


@pytest.mark.parametrize(("classes", "says"), [
  (("fear", *CLASSES[:-1]), "2 of 2 tensors, reordered by name, from happy, sad"),
  (("a", *CLASSES[1:]), "fresh, classes a, sad, neutral, angry, surprise, disgust, fear instead of happy"),
  (tuple("abcdefghijk"), "fresh, 11 classes instead of 7"),
])  # fmt: skip
def test_classes_are_matched_by_name(folder, ours, classes, says):
  start = open_init(folder, with_layers(2, num_classes=len(classes)), classes)
  assert says in lines(start)["classifier"]
  found = start.read()
  if "reordered" in says:
    np.testing.assert_array_equal(found["classifier/kernel"][:, 0], ours["classifier/kernel"][:, 6])
    np.testing.assert_array_equal(found["classifier/bias"][1:], ours["classifier/bias"][:-1])
  else:
    assert not [path for path in found if path.startswith("classifier")]


@pytest.mark.slow
def test_other_head_counts_are_refused_where_they_are_known(folder, checkpoint, tmp_path):
  other = with_layers(2, image={"heads": 8}, temporal={"heads": 4, "head_dim": 16})
  convert_checkpoint(checkpoint, tmp_path / "eight", classes="dfew", heads=8)
  words = r"(?s)model\.audio\.heads=4, but it has 8 .*model\.image\.heads=4, but it has 8"
  with pytest.raises(UserError, match=words):
    open_init(tmp_path / "eight", CFG, CLASSES)
  # What had to be assumed is not held against anybody.
  assert open_init(folder, other, CLASSES).taken.keys() == parameter_shapes(other).keys()


def test_what_cannot_be_a_start_is_said(folder, tmp_path):
  config = default_config()
  (tmp_path / "x.pth").write_bytes(b"<html>quota exceeded</html>")
  for path, words in ((tmp_path, "neither the workdir of a run"), (tmp_path / "x.pth", "HTML"),
                      (tmp_path / "nowhere", "No such file")):  # fmt: skip
    config.init_from, config.pretrained.image = str(path), str(tmp_path / "missing.pth")
    starts, problems = open_starts(config, CFG, CLASSES)
    assert not starts
    assert words in problems[0]
    assert "missing.pth" in problems[1]  # all at once
  content = bytearray((folder / "model.safetensors").read_bytes())
  content[-1] ^= 1
  (tmp_path / "model").mkdir()
  (tmp_path / "model/model.safetensors").write_bytes(content)
  (tmp_path / "model/model.json").write_bytes((folder / "model.json").read_bytes())
  with pytest.raises(UserError, match="damaged"):
    open_init(tmp_path / "model", CFG, CLASSES).read()


@pytest.mark.slow
def test_pretrained_files_go_over_it(folder, tmp_path, ours, theirs):
  encoder = {n.removeprefix("image_encoder."): t + 1 for n, t in theirs.items()
             if n.startswith("image_encoder.") and n.split(".")[1] in ("cls_token", "pos_embed", "patch_embed", "blocks", "norm")}  # fmt: skip
  encoder["pos_embed"] = encoder["pos_embed"][:, :5]
  config = default_config()
  config.init_from, config.pretrained.image = str(folder), str(tmp_path / "mae.pth")
  write_checkpoint(tmp_path / "mae.pth", encoder)
  starts, problems = open_starts(config, CFG, CLASSES)
  assert not problems
  model = model_of(CFG, ours)
  for start in starts:
    put_over(model, start.read())
  found = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model)))
  np.testing.assert_array_equal(found["image_encoder"]["norm"]["scale"], ours["image_encoder/norm/scale"] + 1)
  np.testing.assert_array_equal(found["audio_encoder"]["norm"]["scale"], ours["audio_encoder/norm/scale"])
