"""MAE-DFER's encoder: equal to its authors' modules (numbers in tests/golden/lgi.npz)."""

import functools
import json
from typing import Any

from conftest import GOLDEN, slice_of
from flax import nnx
import jax
import jax.numpy as jnp
import make_weights
import numpy as np
import pytest
from torch_files import from_torch

from mma_dfer_jax.errors import UserError
from mma_dfer_jax.model import PAPER, MmaDfer, ModelConfig, read_model
from mma_dfer_jax.parameters import abstract_model, flat_params, parameter_shapes, tunable_patterns
from mma_dfer_jax.weights import names

IMAGENET = np.float32((0.485, 0.456, 0.406)), np.float32((0.229, 0.224, 0.225))
ALONE = {slot: {"name": name} for slot, name in PAPER.items()} | {
  "audio": {"name": "none"}, "prompts": {"name": "none"}, "fusion": {"name": "none"},
  "temporal": {"name": "mean", "width": 0},
}  # fmt: skip


@functools.cache
def numbers() -> dict[str, np.ndarray]:
  return dict(np.load(GOLDEN / "lgi.npz"))


def described(case: str) -> dict[str, Any]:
  return json.loads((GOLDEN / f"lgi_{case}.json").read_text())


def tensor(name: str, shape: tuple[int, ...], seed: int = 4) -> np.ndarray:
  """Biases 0.02 N, norms 1 + 0.1 N, matrices N / √fan_in, all else 0.5 N."""
  x = make_weights.rng_for(seed, name).standard_normal(shape, dtype=np.float32)
  if name.endswith("bias"):
    return np.float32(0.02) * x
  if name.endswith("weight"):
    return 1 + np.float32(0.1) * x if len(shape) == 1 else x * np.float32(np.prod(shape[1:]) ** -0.5)
  return np.float32(0.5) * x


def weights(case: str) -> dict[str, np.ndarray]:
  """All tensors by their authors' names."""
  return {name: tensor(name, tuple(shape)) for name, shape in described(case)["tensors"].items()}


def model_of(case: str, num_classes: int = 7, **image: Any) -> ModelConfig:
  """Their model; pixels come normalised, as the golden ones are."""
  c = described(case)["config"]
  sizes = {"region": tuple(c["region"]), "width": c["emb"], "depth": c["depth"], "heads": c["heads"],
           "mlp_dim": 4 * c["emb"], "mean": (0.0,) * 3, "std": (1.0,) * 3}  # fmt: skip
  inputs = {"image_size": c["img"], "num_frames": c["frames"]}
  chosen = {"image": {"name": "lgi", **sizes, **image}}
  return read_model({"num_classes": num_classes, "inputs": inputs, **ALONE, **chosen})


def build(cfg: ModelConfig, case: str, dtype: Any) -> MmaDfer:
  rows = [*names.encoder_rows("image", cfg),
          *(names.Row(f"classifier/{ours}", (f"head.{theirs}",), layout)
            for ours, theirs, layout in [("kernel", "weight", "linear"), ("bias", "bias", "keep")])]  # fmt: skip
  graphdef, state = abstract_model(cfg)
  arrays = from_torch(weights(case), rows)
  leaves = [jnp.asarray(arrays[path].astype(dtype)) for path in flat_params(state)]
  return nnx.merge(graphdef, jax.tree.unflatten(jax.tree.structure(state), leaves))


def pixels(name: str, shape: tuple[int, ...], dtype: Any) -> tuple[jax.Array, jax.Array]:
  """(B, T, H, W, 3), normalised in float32; and sound that nothing reads."""
  video = make_weights.rng_for(5, name).random(shape, np.float32).transpose(0, 2, 3, 4, 1)
  mean, std = IMAGENET
  return jnp.asarray((video - mean) / std, dtype), jnp.zeros((len(video), 512, 128), dtype)


@pytest.mark.parametrize("readout", ["region", "org", "all"])
def test_features_and_logits(readout):
  with jax.enable_x64(True):
    model = build(model_of("tiny", readout=readout), "tiny", np.float64)
    video, sound = pixels("video", (2, 3, 8, 64, 64), np.float64)
    features = model.features(video, sound)
    logits = model.answer(features).logits
  for found, what in ((features.clip, "feature"), (logits, "logits")):
    np.testing.assert_allclose(found, numbers()[f"tiny/{readout}/{what}"], rtol=0, atol=1e-9)


def test_tokens_after_each_block_and_means_of_time_slots():
  with jax.enable_x64(True):
    encoder = build(model_of("tiny", readout="slots"), "tiny", np.float64).image_encoder
    tokens = encoder.embed(pixels("video", (2, 3, 8, 64, 64), np.float64)[0], None)
    for i, block in enumerate(encoder.blocks):
      tokens = block(tokens)
      np.testing.assert_allclose(tokens.reshape(8, 17, 32), numbers()[f"tiny/block{i}"], rtol=0, atol=1e-9)
    of_slots = encoder.summary(tokens)
    # Four regions of (2, 2, 4) tokens, two along time and two along height, put back cell by cell.
    grid = np.zeros((2, 4, 4, 4, 32))
    regions = np.asarray(tokens).reshape(2, 4, 17, 32)[:, :, 1:].reshape(2, 4, 2, 2, 4, 32)
    for number in range(4):
      t, h = divmod(number, 2)
      grid[:, 2 * t : 2 * t + 2, 2 * h : 2 * h + 2] = regions[:, number]
    expected = encoder.fc_norm(jnp.asarray(grid.mean(axis=(2, 3))))
  assert of_slots.shape == (2, 4, 32)
  np.testing.assert_allclose(of_slots, expected, rtol=0, atol=1e-12)


def test_loss_and_gradients():
  found = numbers()
  with jax.enable_x64(True):
    cfg = model_of("tiny")
    graphdef, state = nnx.split(build(cfg, "tiny", np.float64))
    video, sound = pixels("video", (2, 3, 8, 64, 64), np.float64)

    def loss(state, video):
      logits = nnx.merge(graphdef, state)(video, sound).logits
      return -jax.nn.log_softmax(logits)[jnp.arange(2), jnp.asarray([3, 5])].mean()

    value, (of_weights, of_video) = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(state, video)
  np.testing.assert_allclose(value, found["tiny/loss"], rtol=0, atol=1e-9)
  by_path = {path: np.asarray(variable[...]) for path, variable in flat_params(of_weights).items()}
  theirs = {row.torch_names[0]: row.path for row in names.encoder_rows("image", cfg)}
  theirs |= {"head.weight": "classifier/kernel", "head.bias": "classifier/bias"}
  assert sorted(theirs) == sorted(described("tiny")["tensors"])
  for name, path in theirs.items():
    norm = np.linalg.norm(by_path[path])
    np.testing.assert_allclose(norm, found[f"tiny/grad_norm/{name}"], rtol=0, atol=1e-9, err_msg=name)
  of_video = np.asarray(of_video).transpose(0, 4, 1, 2, 3)
  np.testing.assert_allclose(np.linalg.norm(of_video), found["tiny/grad_video_norm"], rtol=0, atol=1e-9)
  np.testing.assert_allclose(slice_of(of_video, 512), found["tiny/grad_video_slice512"], rtol=0, atol=1e-9)


# Of four regions: in the first of them, among messengers, from tokens to messengers, MLP of the third.
@pytest.mark.parametrize(("branch", "regions", "of_region"), [
  (0, [0], slice(None)), (4, [0, 1, 2, 3], slice(0, 1)), (5, [0, 1, 2, 3], slice(1, None)), (8, [2], slice(None)),
])  # fmt: skip
def test_drop_path_leaves_out_one_branch_of_one_clip(branch, regions, of_region):
  encoder = build(model_of("tiny"), "tiny", np.float32).image_encoder
  tokens = encoder.embed(pixels("video", (2, 3, 8, 64, 64), np.float32)[0], None)
  factors = np.zeros((encoder.branches, 2), np.float32)
  np.testing.assert_array_equal(encoder.blocks[0](tokens, jnp.asarray(factors)), tokens)
  factors[branch, 1] = 1.0
  moved = np.asarray(encoder.blocks[0](tokens, jnp.asarray(factors)) != tokens).any(-1).reshape(2, 4, 17)
  expected = np.zeros((2, 4, 17), bool)
  expected[1, regions, of_region] = True
  np.testing.assert_array_equal(moved, expected)


def test_each_branch_of_each_block_is_dropped_by_itself():
  model = build(model_of("tiny", drop_path=0.5), "tiny", np.float32)
  drawn, of_sound, _ = model.draw_drop_path(nnx.Rngs(0), 64)
  assert of_sound is None
  assert drawn.shape == (3, 10, 64)
  assert set(np.unique(drawn[0])) == {1.0}
  assert set(np.unique(drawn[2])) == {0.0, 2.0}
  assert len({row.tobytes() for row in np.asarray(drawn[2])}) == 10


@pytest.mark.parametrize(("change", "words"), [
  ({"inputs": {"image_size": 224}}, r"inputs.image_size=224 must be a multiple of .*patch_size=16 times 5 and 10"),
  ({"inputs": {"image_size": 100}}, r"image_size=100 must be a multiple of model.image.patch_size=16$"),
  ({"inputs": {"image_size": 160, "num_frames": 6}}, r"num_frames=6 must be a multiple of .*tubelet=2 times 2"),
  ({"audio": {"name": "lgi"}}, r"model.audio=lgi reads frames"),
  ({"prompts": {"name": "prompts", "layers_per_stage": 8}}, r"no encoder of this model takes prompts; choose none"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(change, words):
  fields = {"num_classes": 7, "inputs": {"image_size": 160}, **ALONE, "image": {"name": "lgi"}} | change
  with pytest.raises(UserError, match=f"(?m){words}"):
    read_model(fields)


def test_size_at_full_size():
  shapes = parameter_shapes(model_of("full"))
  assert (len(shapes), sum(map(np.prod, shapes.values()))) == (519, 84_878_343)


@pytest.mark.slow
def test_logits_at_full_size():
  model = build(model_of("full"), "full", np.float32)
  video, sound = pixels("video_full", (1, 3, 16, 160, 160), np.float32)
  features = model.features(video, sound)
  np.testing.assert_allclose(model.answer(features).logits, numbers()["full/logits"], rtol=0, atol=1e-5)
  np.testing.assert_allclose(features.clip, numbers()["full/feature"], rtol=0, atol=1e-5)


def test_beside_sound_sixteen_blocks_meet_twelve_in_four_layers():
  fields = {slot: {"name": name} for slot, name in PAPER.items()}
  fields |= {
    "image": {"name": "lgi", "readout": "slots"},
    "prompts": {"name": "prompts", "layers_per_stage": 2},
  }
  cfg = read_model({"num_classes": 7, "inputs": {"image_size": 160}, **fields})
  model, shapes = nnx.merge(*abstract_model(cfg)), parameter_shapes(cfg)
  for encoder, blocks in ((model.image_encoder, 4), (model.audio_encoder, 3)):
    assert [len(layer) for layer in model._by_layer(encoder, None)] == [blocks] * 4
  assert model.image_encoder.moments == 8
  assert model.image_prompts.tokens is None
  assert shapes["temporal/pos_embed"] == (1, 9, 512)
  assert shapes["joint_adaptation/audio_proj/kernel"] == (768, 512)
  assert shapes["fusion/3/image_down/kernel"] == (512, 128)
  patterns = tunable_patterns(cfg)
  assert tunable_patterns(cfg, patterns) == patterns, "what a run keeps, it must be opened with"
