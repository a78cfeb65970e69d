"""The model by itself: sizes, where each part acts, what trains and what stays."""

import dataclasses

from conftest import TINY
from flax import nnx
import jax
import jax.numpy as jnp
from jax.test_util import check_grads
import numpy as np
import pytest

from mma_dfer_jax import torch_names, vit
from mma_dfer_jax.config import PAPER_TUNABLE
from mma_dfer_jax.errors import UserError
from mma_dfer_jax.model import FusionBottleneck, MmaDfer, ModelConfig, ProgressivePrompts
from mma_dfer_jax.steps import in_precision, model_inputs
from mma_dfer_jax.train_state import (
  Tunable,
  abstract_model,
  check_tunable,
  count,
  dead_elements,
  flat_params,
  parameter_shapes,
)
from mma_dfer_jax.vit import PRECISIONS

SMALL = dataclasses.replace(TINY, depth=4, layers_per_stage=2, audio_shape=(64, 32), image_size=32)


@pytest.fixture(scope="module")
def small():
  return MmaDfer(SMALL, rngs=nnx.Rngs(0))


def inputs(cfg: ModelConfig, batch: int = 2):
  rng = np.random.default_rng(0)
  video = rng.random((batch, cfg.num_frames, cfg.image_size, cfg.image_size, 3), np.float32)
  return jnp.asarray(video), jnp.asarray(rng.standard_normal((batch, *cfg.audio_shape), np.float32))


@pytest.mark.parametrize(
  ("cfg", "elements"),
  [
    # The original counts 179,312,147 and 179,240,471; its two unused heads and `norm2` are not in our model.
    (ModelConfig(), 179_312_147),
    (ModelConfig(image_size=160, num_classes=11), 179_240_471),
  ],
)
def test_number_of_elements_is_the_originals(cfg, elements):
  _, params = abstract_model(cfg)
  heads = (1000 + 12) * (cfg.width + 1)
  assert count(params) == elements - heads - dead_elements(cfg)


def test_tunable_set_of_the_paper():
  graphdef, params = abstract_model(ModelConfig())
  _, tunable, frozen = nnx.split(nnx.merge(graphdef, params), Tunable(PAPER_TUNABLE), ...)
  assert count(tunable) == 7_630_367
  assert count(tunable) + dead_elements(ModelConfig()) == 7_632_415
  assert count(frozen) == 171_679_732 - (1000 + 12) * 769  # the original's frozen count includes both heads
  paths = set(flat_params(tunable))
  assert {path.split("/")[-1] for path in paths if "encoder" in path} == {"pos_embed"}
  assert not any("cls_token" in path for path in paths if not path.startswith("temporal/"))
  assert all(f"fusion/{i}/{part}_gate" in paths for i in range(12) for part in ("image", "audio"))


def test_patterns_that_match_nothing_are_all_named():
  paths = list(flat_params(abstract_model(SMALL)[1]))
  with pytest.raises(UserError, match=r"fusoin.*matches no parameter") as error:
    check_tunable((r"fusoin/.*", r"classifier/.*", r"(", "temporal"), paths)
  assert "no regular expression" in str(error.value)
  assert "'temporal' matches no" in str(error.value)  # a pattern must match the whole path
  with pytest.raises(UserError, match="nothing would be trained"):
    check_tunable((), paths)


def test_wrong_sizes_are_all_named():
  with pytest.raises(UserError) as error:
    ModelConfig(image_size=100, width=100, heads=12, depth=7, audio_shape=(512, 120))
  for word in ("image_size=100", "width=100", "depth=7", "audio_shape[1]=120"):
    assert word in str(error.value)
  with pytest.raises(UserError, match="positive whole number"):
    ModelConfig(width=0)
  with pytest.raises(UserError, match="drop_path"):
    ModelConfig(drop_path=1.0)


@pytest.mark.parametrize(("size", "classes"), [(160, 11), (224, 7), (32, 2)])
def test_shapes_of_other_sizes(size, classes):
  cfg = dataclasses.replace(SMALL, image_size=size, num_classes=classes)
  graphdef, params = abstract_model(cfg)
  logits = jax.eval_shape(lambda p, v, s: nnx.merge(graphdef, p)(v, s), params, *inputs(cfg, 3))
  assert logits.shape == (3, classes)


def test_inputs_of_another_shape_are_refused(small):
  video, sound = inputs(SMALL)
  with pytest.raises(ValueError, match=r"video \(B, 16, 32, 32, 3\)"):
    small(video[:, :8], sound)
  with pytest.raises(ValueError, match=r"spectrogram \(B, 64, 32\)"):
    small(video, sound[:, :32])


def test_evaluation_draws_nothing_and_training_does(small):
  video, sound = inputs(dataclasses.replace(SMALL))
  assert (small(video, sound) == small(video, sound)).all()
  first, second = (small(video, sound, rngs=nnx.Rngs(drop_path=seed)) for seed in (0, 1))
  assert not (first == second).all()
  again = small(video, sound, rngs=nnx.Rngs(drop_path=0))
  assert (first == again).all()


def test_closed_gates_leave_the_encoders_alone():
  fusion = FusionBottleneck(SMALL, rngs=nnx.Rngs(0))
  image, audio = jnp.ones((32, 11, 48)), jnp.ones((2, 15, 48))
  out = fusion(image, audio, num_frames=16)
  assert (out[0] == image).all()
  assert (out[1] == audio).all()
  fusion.image_gate[...] = jnp.full((1,), 0.5)
  out = fusion(image, audio, num_frames=16)
  assert not (out[0] == image).any()
  assert (out[1] == audio).all()


def test_audio_summary_goes_to_the_frames_of_its_own_clip():
  fusion = FusionBottleneck(SMALL, rngs=nnx.Rngs(0))
  fusion.image_gate[...] = jnp.ones((1,))
  image, audio = jnp.ones((32, 11, 48)), jnp.ones((2, 15, 48))
  changed = audio.at[1].set(jnp.linspace(-1, 1, 48))
  before, after = (fusion(image, a, num_frames=16)[0] for a in (audio, changed))
  same = (before == after).all(axis=(1, 2))
  assert same[:16].all()
  assert not same[16:].any()


def test_updates_reach_their_prompts_only():
  prompts = ProgressivePrompts(TINY, rngs=nnx.Rngs(0))
  tokens = jnp.zeros((2, 23, 48))
  for layer in range(12):
    changed = np.flatnonzero(np.asarray(prompts.update(tokens, layer) != 0).any(axis=(0, 2)))
    assert changed.tolist() == {0: [17, 18, 19], 6: [20, 21, 22]}.get(layer, [])


def test_fresh_parameters_start_as_pytorchs():
  net = MmaDfer(dataclasses.replace(TINY, width=192), rngs=nnx.Rngs(0))
  kernel = np.asarray(net.fusion[3].image_down.kernel[...])
  assert np.abs(kernel).max() <= 192**-0.5
  assert np.std(kernel) == pytest.approx(192**-0.5 / 3**0.5, rel=0.05)
  assert np.abs(np.asarray(net.fusion[3].image_up.bias[...])).max() > 0.5 * 16**-0.5  # biases are drawn, too
  assert not np.asarray(net.fusion[0].audio_gate[...]).any()
  assert np.std(np.asarray(net.image_prompts.prompt_tokens[...])) == pytest.approx(192**-0.5, rel=0.1)
  rows = np.asarray(net.image_encoder.pos_embed[...])[0]
  assert np.std(rows[17:]) == pytest.approx(1, rel=0.1)  # the prompts' rows
  assert np.std(np.asarray(net.temporal.pos_embed[...])) == pytest.approx(1, rel=0.2)


def test_fresh_encoders_start_as_maes():
  net = MmaDfer(dataclasses.replace(TINY, width=192), rngs=nnx.Rngs(0))
  block = net.image_encoder.blocks[2]
  assert np.abs(np.asarray(block.mlp.fc1.kernel[...])).max() == pytest.approx(
    (6 / (192 + 192)) ** 0.5, rel=0.01
  )
  assert not np.asarray(block.attn.qkv.bias[...]).any()
  table = np.asarray(net.image_encoder.pos_embed[...])[0, :17]
  assert not table[0].any()  # class token
  np.testing.assert_allclose((table[1:] ** 2).sum(axis=1), 192 / 2, rtol=1e-5)  # sines and cosines
  np.testing.assert_allclose(
    table[1 + 4 * 2 + 3, [0, 48, 96, 144]], np.array([np.sin(3), np.cos(3), np.sin(2), np.cos(2)]), rtol=1e-5
  )
  mean = jnp.full((1, 64, 64, 3), 0.45)  # of ImageNet's pixels: the fresh patch embedding takes it out
  np.testing.assert_allclose(net.image_encoder.patch_embed(mean), 0, atol=1e-5)
  noise = 0.45 + 0.225 * jax.random.normal(jax.random.key(0), (1, 64, 64, 3))
  assert float(net.image_encoder.patch_embed(noise).std()) == pytest.approx(
    (2 * 768 / (768 + 192)) ** 0.5, rel=0.1
  )


def test_every_parameter_has_its_name_in_the_authors_file_and_back():
  shapes = parameter_shapes(SMALL)
  table = torch_names.name_table(SMALL)
  assert sorted(row.path for row in table) == sorted(shapes)
  names = [name for row in table for name in row.torch_names]
  assert len(names) == len(set(names))
  rng = np.random.default_rng(0)
  ours = {path: rng.standard_normal(shape, np.float32) for path, shape in shapes.items()}
  theirs = torch_names.to_torch(ours, SMALL)
  assert {name: tensor.shape for name, tensor in theirs.items()} == torch_names.used_shapes(SMALL, shapes)
  back = torch_names.from_torch(theirs, table)
  assert all(np.array_equal(back[path], ours[path]) for path in shapes)


def test_a_checkpoint_that_does_not_fit_names_everything():
  wanted = torch_names.used_shapes(SMALL, parameter_shapes(SMALL))
  unused = torch_names.unused_shapes(SMALL)
  found = wanted | unused
  torch_names.check_fit("x.pth", found, wanted, allowed=unused)  # the unused ones may be there
  del found["our_classifier.bias"], found["temporal_net.cls_token"]
  found |= {
    "fc.weight": (7, 32),
    "vision_proj.weight": (48, 48),
    "image_encoder.patch_embed.proj.weight": (48, 768),
  }
  with pytest.raises(torch_names.CheckpointMismatchError) as error:
    torch_names.check_fit("x.pth does not fit", found, wanted, allowed=unused)
  assert error.value.missing == ["our_classifier.bias", "temporal_net.cls_token"]
  assert error.value.unexpected == ["fc.weight"]
  assert len(error.value.wrong_shape) == 2
  for word in ("x.pth", "our_classifier.bias", "temporal_net.cls_token", "fc.weight", "vision_proj.weight"):
    assert word in str(error.value)


@pytest.mark.parametrize("remat", ["names", "layers"])
def test_what_is_kept_for_the_backward_pass_changes_no_number(small, remat):
  video, sound = inputs(SMALL)
  graphdef, params = nnx.split(small)

  def loss(params, remat):
    logits = nnx.merge(graphdef, params)(video, sound, rngs=nnx.Rngs(drop_path=3), remat=remat)
    return (logits**2).sum()

  value, gradient = jax.jit(jax.value_and_grad(loss), static_argnums=1)(params, "none")
  again, of_remat = jax.jit(jax.value_and_grad(loss), static_argnums=1)(params, remat)
  assert float(again) == pytest.approx(float(value), rel=1e-6)
  largest = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(gradient))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * largest), gradient, of_remat)


def test_gelu_and_attention_have_the_gradients_of_their_formulas(float64):
  keys = jax.random.split(jax.random.key(0), 4)
  q, k, v = (jax.random.normal(key, (2, 3, 5, 4), float) for key in keys[:3])
  check_grads(lambda *arrays: vit.attend(*map(jnp.asarray, arrays)), (q, k, v), order=1, modes=["rev"])
  check_grads(lambda x: vit.gelu(jnp.asarray(x)), (3 * q,), order=1, modes=["rev"])
  scores = jnp.einsum("bhnd,bhmd->bhnm", q, k) / 2
  np.testing.assert_allclose(vit.attend(q, k, v), jax.nn.softmax(scores) @ v, atol=1e-12)
  np.testing.assert_allclose(vit.gelu(q), jax.nn.gelu(q, approximate=False), atol=1e-12)


def test_layer_norm_is_flax_own_with_the_gradient_of_its_formula(float64):
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(1.0, 3.0, size=(2, 3, 8)))
  ours, theirs = (
    vit.LayerNorm(8, epsilon=1e-5, rngs=nnx.Rngs(0)),
    nnx.LayerNorm(8, epsilon=1e-5, rngs=nnx.Rngs(0)),
  )
  np.testing.assert_allclose(ours(x), theirs(x), atol=1e-12)
  check_grads(lambda x: vit.normalise(jnp.asarray(x), 1e-5), (x,), order=1, modes=["rev"])


def test_bfloat16_stays_near_float32(small):
  """Logits within 2 % of their size: bfloat16 has 8 bits, and a dozen layers add up their roundings."""
  rng = np.random.default_rng(1)
  batch = {
    "video": jnp.asarray(rng.integers(0, 256, (3, *small.video_shape), dtype=np.uint8)),
    "spectrogram": jnp.asarray(rng.normal(0, 0.5, (3, *small.audio_shape)), jnp.float32),
  }
  graphdef, params = nnx.split(small)
  exact, coarse = (
    nnx.merge(graphdef, in_precision(params, name))(*model_inputs(batch, name)) for name in PRECISIONS
  )
  assert coarse.dtype == jnp.float32  # the classifier, and so the logits
  assert np.abs(np.asarray(coarse, np.float32) - exact).max() < 0.02 * np.abs(exact).max()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_fused_kernel_is_called_as_attention_is(dtype):
  """cuDNN's runs on GPUs only; its interface is that of XLA's own, which runs anywhere."""
  rng = np.random.default_rng(0)
  q, k, v = (jnp.asarray(rng.normal(size=(2, 3, 7, 8)), dtype) for _ in range(3))
  ours = vit.attend(q, k, v).astype("float32")
  theirs = vit.fused_attention(q, k, v, "xla").astype("float32")
  np.testing.assert_allclose(ours, theirs, atol=1e-6 if dtype == "float32" else 0.03)
