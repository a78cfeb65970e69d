"""Every row of the ablations: logits as computed by hand, parameters as in the table, equal starts, gradients."""

from collections.abc import Mapping
import functools
import math
import re
from types import MappingProxyType

from conftest import GOLDEN, ROOT, SIZES, golden_inputs, golden_weights
from flax import nnx
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import optax
import pytest
from torch_files import from_torch

from mma_dfer_jax.ablations import ROWS
from mma_dfer_jax.config import choose, default_config, model_config, with_row
from mma_dfer_jax.errors import UserError
from mma_dfer_jax.model import MmaDfer, ModelConfig
from mma_dfer_jax.parameters import (
  Tunable,
  abstract_model,
  flat_params,
  parameter_shapes,
  split_tunable,
  tunable_patterns,
)
from mma_dfer_jax.weights import names

pytestmark = pytest.mark.slow
NUMBERS = dict(np.load(GOLDEN / "ablations.npz"))
# Cases of the file that have another name here.
ROW_OF = {"no_prompt_updates": "static_prompts", "image_only_no_adapters": "image_only_no_fusion", "audio_only_no_adapters": "audio_only_no_fusion"}  # fmt: skip
CASES = sorted({key.split("/")[0] for key in NUMBERS if "/" in key})


def tiny_config(**inputs) -> ConfigDict:
  """The golden tiny model as a config."""
  c = default_config()
  c.inputs.update(image_size=64, **inputs)
  for slot, fields in SIZES.items():
    c.model[slot].update({key: value for key, value in fields.items() if key != "name"})
  return c


def model_of(config: ConfigDict, num_classes: int = 7) -> ModelConfig:
  return model_config(config.to_dict(), ["class"] * num_classes)


@functools.cache
def weights() -> dict[str, np.ndarray]:
  return golden_weights("tiny_64_7")


def put_in(cfg: ModelConfig, ours: Mapping[str, np.ndarray] = MappingProxyType({})) -> MmaDfer:
  """A model with the authors' weights in float64, those that it has a place for, and others by path."""
  graphdef, state = abstract_model(cfg)
  arrays = {**from_torch(weights(), names.name_table(model_of(tiny_config()))), **ours}
  leaves = []
  for path, variable in flat_params(state).items():
    array = arrays[path][:, : variable.shape[1]] if path.endswith("pos_embed") else arrays[path]
    leaves.append(jnp.asarray(array.astype(np.float64)))
    assert leaves[-1].shape == variable.shape, path
  return nnx.merge(graphdef, jax.tree.unflatten(jax.tree.structure(state), leaves))


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_computed_by_hand(case):
  video, spectrogram, _ = golden_inputs("tiny_64_7")
  cfg = model_of(choose(tiny_config(), ROW_OF.get(case, case)))
  with jax.enable_x64(True):
    logits = put_in(cfg)(jnp.asarray(video, np.float64), jnp.asarray(spectrogram, np.float64)).logits
  np.testing.assert_allclose(logits, NUMBERS[f"{case}/logits"], rtol=0, atol=1e-8)


# What each row changes and how many parameters it trains at full size with 7 classes, as docs/ablations.md says.
PAGE = re.findall(
  r"^\| `(\w+)` \| ([^|]+) \| ([\d,]+) \|", (ROOT / "docs/ablations.md").read_text(), re.MULTILINE
)
LISTED = {
  name: (says, int(number.replace(",", ""))) for name, says, number in reversed(PAGE)
}  # the first table
# Of these, for MAFW's 11 classes too: 4 · (512 + 1) more, or 4 · (768 + 1) without a projection.
OF_11_CLASSES = {"base": 4 * 513, "audio_only": 4 * 513, "linear_probe": 4 * 769}


def trained(config: ConfigDict, num_classes: int = 7) -> dict[str, int]:
  """Sizes of the parameters that are trained, by path."""
  cfg = model_of(config, num_classes)
  patterns = tunable_patterns(cfg, config.tunable)
  assert tunable_patterns(cfg, patterns) == patterns, "what a run keeps, it must be opened with"
  is_tunable = Tunable(patterns)
  shapes = parameter_shapes(cfg).items()
  return {path: math.prod(shape) for path, shape in shapes if is_tunable(path.split("/"), None)}


@pytest.mark.parametrize("row", ROWS)
def test_parameters_at_full_size(row):
  config = choose(default_config(), row)
  assert (ROWS[row].says, sum(trained(config).values())) == LISTED[row]
  rates = {config.model[stream].get("drop_path") for stream in ("image", "audio")}
  assert 0.1 in rates <= {0.1, None}
  if row in OF_11_CLASSES:
    assert sum(trained(config, 11).values()) == LISTED[row][1] + OF_11_CLASSES[row]


# Rows that build or train something else; the others differ from these in numbers only.
BUILDS = ("base", "static_prompts", "no_fusion", "fusion_last_1", "fusion_to_image", "no_exchange", "temporal_mean",
          "image_only", "audio_only", "bare", "frozen_positions", "unfrozen", "last_1_block", "linear_probe_audio")  # fmt: skip


# Two layers and pictures of four patches.
def small_config() -> ConfigDict:
  c = tiny_config(num_frames=2, audio_shape=(32, 32))
  c.inputs.image_size = 32
  c.model.prompts.layers_per_stage = 1
  for stream in ("image", "audio"):
    c.model[stream].update(depth=2, width=16, heads=2, mlp_dim=16)
  return c


@functools.cache
def fresh(row: str) -> dict[str, np.ndarray]:
  model = MmaDfer(model_of(choose(small_config(), row)), rngs=nnx.Rngs(params=5))
  return {path: np.asarray(variable[...]) for path, variable in flat_params(nnx.state(model)).items()}


# What a row draws in another way though the shape stays: a range that depends on a width that it changes.
REDRAWN = {"bottleneck": "fusion/", "linear_probe": "classifier/", "frozen_positions": "pos_embed"}


@pytest.mark.parametrize("row", [*BUILDS, "prompts_1", "bottleneck_32", "fusion_even", "temporal_depth_2"])
def test_same_seed_same_other_weights(row):
  redrawn = next((part for name, part in REDRAWN.items() if row.startswith(name)), None)
  here, base = fresh(row), fresh("base")
  shared = [path for path in here.keys() & base.keys() if here[path].shape == base[path].shape]
  different = [path for path in shared if not np.array_equal(here[path], base[path])]
  assert len(shared) > 24  # both encoders, or one
  assert all(redrawn and redrawn in path for path in different), different
  if row == "frozen_positions":
    assert len(different) == 2
    assert all(not here[path][:, -6:].any() for path in different)


@pytest.mark.parametrize("row", BUILDS)
def test_gradients_reach_exactly_what_is_trained(row):
  config = choose(small_config(), row)
  cfg = model_of(config)
  model = MmaDfer(cfg, rngs=nnx.Rngs(params=5))
  for fusion in model.fusion:  # they start at 0, and close what lies behind them
    for gate in (getattr(fusion, "image_gate", None), getattr(fusion, "audio_gate", None)):
      if gate is not None:
        gate[...] = jnp.full((1,), 0.5)
  graphdef, tunable, frozen = split_tunable(model, tunable_patterns(cfg, config.tunable))
  video = jax.random.uniform(jax.random.key(0), (2, *cfg.inputs.video_shape))
  spectrogram = jax.random.normal(jax.random.key(1), (2, *cfg.inputs.audio_shape))

  def loss(tunable):
    outputs = nnx.merge(graphdef, tunable, frozen)(video, spectrogram)
    return optax.softmax_cross_entropy_with_integer_labels(outputs.logits, jnp.array([1, 4])).mean()

  gradients = flat_params(jax.jit(jax.grad(loss))(tunable))
  without = [path for path, gradient in gradients.items() if not np.asarray(gradient[...]).any()]
  assert without == []
  assert all(np.isfinite(np.asarray(gradient[...])).all() for gradient in gradients.values())
  bare = {"image_encoder", "audio_encoder", "joint_adaptation", "classifier"}
  places = {path.split("/")[0] for path in gradients}
  assert places == {"linear_probe_audio": {"classifier"}, "bare": bare}.get(row, places)


def test_rows_and_choices_combine():
  config = choose(default_config(), "no_fusion,temporal=mean,prompts_5")
  assert (config.model.fusion.name, config.model.temporal.name) == ("none", "mean")
  assert config.model.prompts.prompts_per_stage == 5
  with pytest.raises(UserError, match=r"(?s)'no_fusoin'.*place=name.*temporal.*no_fusion, "):
    choose(default_config(), "no_fusoin")
  with pytest.raises(UserError, match="fusion=none has no width"):
    choose(default_config(), "no_fusion,bottleneck_32")


def test_freezing_means_the_same_where_everything_is_trained():
  """Of configs with `tunable` of their own, like demo and clips."""
  everything = small_config()
  everything.tunable = (".*",)
  positions = {"image_encoder/pos_embed", "audio_encoder/pos_embed"}

  def paths(row: str) -> set[str]:
    return set(trained(with_row(everything, row)))

  assert set(trained(everything)) - paths("frozen_positions") == positions
  assert {path for path in paths("frozen_encoders") if "encoder" in path} == positions
  assert paths("linear_probe") == {"classifier/kernel", "classifier/bias"}
  last = paths("last_1_block") - paths("frozen_encoders")
  assert {"/".join(path.split("/")[1:3]) for path in last} == {"blocks/1"}
  with pytest.raises(UserError, match="changes nothing"):
    with_row(everything, "unfrozen")


def test_last_blocks_need_blocks():
  shallow = small_config()
  shallow.model.audio.depth = 1
  with pytest.raises(UserError, match="audio has 1 block, and the row needs the last 2"):
    with_row(shallow, "last_2_blocks")
