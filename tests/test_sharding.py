"""Meshes of four simulated devices: nothing but rounding changes with them; and what cannot be spread is refused."""

import functools
import types

import commands
from conftest import tiny
from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec
import numpy as np
import optax
import pytest

from mma_dfer_jax import parts
from mma_dfer_jax.errors import UserError
from mma_dfer_jax.model import MmaDfer
from mma_dfer_jax.parameters import flat_params, tunable_patterns
from mma_dfer_jax.training import sharding
from mma_dfer_jax.training.objective import Objective
from mma_dfer_jax.training.state import create_train_state
from mma_dfer_jax.training.steps import model_inputs, train_step

benchmark = commands.load("benchmark")  # for its batch of random clips
CLIPS = 8

# Keeps the gradients where an optimizer keeps its moments, and changes nothing.
GRADIENTS = optax.GradientTransformation(
  lambda params: jax.tree.map(jnp.zeros_like, params),
  lambda gradients, state, params=None: (jax.tree.map(jnp.zeros_like, gradients), gradients),
)


# With dropout and drop path, so that clips must drop the same wherever they are; with tasks of which some clips say nothing.
SMALL = tiny(
  image_size=32, audio_shape=(64, 32), image={"depth": 2}, audio={"depth": 2}, prompts={"layers_per_stage": 1},
  landmarks={"name": "graph", "form": "token"},
  auxiliary={"name": "cascade", "width": 16, "mlp_dim": 32, "targets": "standardised", "dropout": 0.3, "head_dropout": 0.1},
)  # fmt: skip
PAPER_TUNABLE = tunable_patterns(SMALL)


def fresh() -> MmaDfer:
  return MmaDfer(SMALL, rngs=nnx.Rngs(3))


# Of classes so uneven that a mean over a device's or a micro-batch's own weights would be another loss.
OBJECTIVE = Objective(
  parts.read("losses", {"name": "focal", "ial_weight": 0.1, "class_weights": "inverse"}),
  (50, 1, 9, 30, 2, 4, 7),
  1,
  SMALL.auxiliary,
)


def loss_fn(model, batch, dropped, remat, shared):
  outputs = model(*model_inputs(batch, "float32"), dropped=dropped, remat=remat)
  terms = OBJECTIVE.terms(outputs, batch, shared)
  return OBJECTIVE.with_tasks(terms, model, outputs, batch, shared), {}


def whole(batch, key, step):
  return batch, OBJECTIVE.whole(batch, 0, OBJECTIVE.statistics)


def clips_with_few_faces():
  """Faces in all frames of clip 0, in one of clip 5, and in none of the others: each device and micro-batch has other numbers."""
  face = np.zeros((CLIPS, SMALL.inputs.num_frames, 1), np.float32)
  face[0], face[5, 3] = 1, 1
  drawn = np.random.default_rng(4).random((*face.shape[:2], 14), np.float32)
  points = drawn[..., 4:].reshape(*face.shape[:2], 5, 2)
  seen = np.repeat(face[..., None], 5, axis=2)
  known = {
    "landmarks": np.concatenate([points, seen], axis=-1),
    "face_box": np.concatenate([drawn[..., :4], face], axis=-1),
  }
  return benchmark.random_batch(SMALL, CLIPS) | known


@functools.cache
def loss_and_gradients(data: int, fsdp: int, micro_batch: int = 0):
  """Of one batch with drop path: loss, gradients by path, and how parameters were spread."""
  devices = jax.devices()[: data * fsdp]
  mesh = jax.make_mesh((data, fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2, devices=devices)
  graphdef, state = create_train_state(fresh, PAPER_TUNABLE, GRADIENTS, mesh=mesh, fsdp_min_size_mb=0.001)
  rng = np.random.default_rng(0)  # the gates start at 0, behind which nothing would be compared
  for path, variable in flat_params(state.tunable).items():
    if path.endswith("gate"):
      variable[...] = jax.device_put(rng.normal(size=1).astype(np.float32), variable[...].sharding)
  spread = {variable[...].sharding.spec for variable in flat_params(state.frozen).values()}
  batch = sharding.to_global(clips_with_few_faces(), mesh)
  how = {"graphdef": graphdef, "tx": GRADIENTS, "loss_fn": loss_fn, "whole_fn": whole, "draw_fn": MmaDfer.draw_drop_path, "remat": "names"}  # fmt: skip
  step = jax.jit(functools.partial(train_step, micro_batch=micro_batch, mesh=mesh, **how))
  state, metrics = step(state, batch, jax.random.key(0))
  gradients = {path: np.asarray(value[...]) for path, value in flat_params(state.opt_state).items()}
  return float(metrics["loss"]), gradients, spread


@pytest.mark.slow
@pytest.mark.parametrize(("data", "fsdp", "micro_batch"), [(4, 1, 0), (1, 4, 0), (1, 1, 2), (2, 2, 4)])
def test_loss_and_gradients_are_those_of_one_device_and_the_whole_batch(data, fsdp, micro_batch):
  """Meshes and micro-batches change nothing but the order of sums; drop path is drawn the same."""
  loss, gradients, _ = loss_and_gradients(1, 1)
  other_loss, other_gradients, spread = loss_and_gradients(data, fsdp, micro_batch)
  assert other_loss == pytest.approx(loss, rel=1e-6)
  assert gradients.keys() == other_gradients.keys()
  assert [path for path, expected in gradients.items() if not norm([expected]) > 0] == []
  # Relative to all of them: a gradient that is a sum near zero has digits of its own only in float64.
  difference = norm([other_gradients[path] - expected for path, expected in gradients.items()])
  assert difference < 1e-6 * norm(gradients.values())
  assert (PartitionSpec("fsdp") in spread or PartitionSpec(None, "fsdp") in spread) == (fsdp > 1)


def norm(arrays) -> float:
  return np.sqrt(sum((np.float64(x) ** 2).sum() for x in arrays))


@pytest.mark.slow
def test_moments_are_spread_as_their_parameters():
  mesh = sharding.make_mesh(1, 4)
  _, state = create_train_state(fresh, PAPER_TUNABLE, optax.adamw(1e-3), mesh=mesh, fsdp_min_size_mb=0.001)
  for moments in (state.opt_state[0].mu, state.opt_state[0].nu):
    assert jax.tree.map(lambda x: x.sharding, moments) == jax.tree.map(lambda x: x.sharding, state.tunable)
  assert isinstance(state.tunable, nnx.State)


@pytest.mark.parametrize(
  ("data", "fsdp", "words"),
  [
    (8, 1, "8 devices, but there are 4"),
    (2, 1, "2 devices, but there are 4"),
    (-1, 3, r"mesh.fsdp=3 does not divide the 4 devices"),
    (-1, 8, r"mesh.fsdp=8 does not divide the 4 devices"),
  ],
)
def test_meshes_that_do_not_fit(data, fsdp, words):
  with pytest.raises(UserError, match=words):
    sharding.make_mesh(data, fsdp)


@pytest.mark.parametrize(("clips", "words"), [(6, "multiple of the 4 devices; use 4 or 8"), (2, "use 4")])
def test_batches_that_do_not_split_are_refused_with_sizes_that_do(clips, words):
  with pytest.raises(UserError, match=words):
    sharding.check_batch_size(clips)


def test_what_does_not_fit_into_memory_is_told_before_it_runs():
  pairs = jax.jit(lambda x: jnp.sort(x[:, None] * x).sum())
  words = r"GiB are needed, .* GiB are free; make batch_size or image_size smaller"
  with pytest.raises(UserError, match=words):
    sharding.compile_checked(pairs.lower(jax.ShapeDtypeStruct((2_000_000,), "float32")))
  assert sharding.compile_checked(pairs.lower(jax.ShapeDtypeStruct((20,), "float32"))) is not None


def test_bfloat16_is_refused_where_it_would_be_emulated(monkeypatch):
  sharding.check_precision("bfloat16")
  old = types.SimpleNamespace(platform="gpu", compute_capability="7.5", device_kind="Tesla T4")
  monkeypatch.setattr(jax, "devices", lambda: [old])
  sharding.check_precision("float32")
  with pytest.raises(UserError, match=r"Tesla T4 .* has no bfloat16"):
    sharding.check_precision("bfloat16")


def test_batches_arrive_one_ahead_all_of_them_in_order():
  mesh = sharding.make_mesh(-1, 1)
  sent = []

  def clips():
    for number in range(3):
      sent.append(number)
      yield {"label": np.full(4, number, np.int32), "clip_id": np.array(["a"] * 4)}

  arriving = sharding.on_devices(clips(), mesh)
  assert next(arriving)["label"].tolist() == [0] * 4
  assert sent == [0, 1]  # the next one is on its way
  assert [batch["label"].tolist() for batch in arriving] == [[1] * 4, [2] * 4]


def test_errors_of_memory_are_told_with_the_knobs_and_others_are_not():
  error = RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes")
  told = sharding.describe_error(error)
  assert told is not None
  assert all(knob in told for knob in ("allocate 9 bytes", "batch_size", "image_size", "remat"))
  assert sharding.describe_error(RuntimeError("INTERNAL: a defect")) is None
