"""The model by itself: sizes, where each part acts, what trains and what stays."""

from pathlib import Path

from conftest import TINY, tiny
from flax import nnx
import jax
import jax.numpy as jnp
from jax.test_util import check_grads
from model_folders import with_layers
import numpy as np
import pytest

from mma_dfer_jax import layers
from mma_dfer_jax.adapters import prompts
from mma_dfer_jax.errors import UserError
from mma_dfer_jax.model import MmaDfer, ModelConfig, paper
from mma_dfer_jax.parameters import Tunable, abstract_model, count, flat_params, tunable_patterns
from mma_dfer_jax.weights.files import Weights, held
from mma_dfer_jax.weights.mma_dfer import find_model
from mma_dfer_jax.weights.names import unused_shapes, used_shapes

SMALL = with_layers(2, audio_shape=(64, 32))


@pytest.fixture(scope="module")
def small():
  return MmaDfer(SMALL, rngs=nnx.Rngs(0))


def inputs(cfg: ModelConfig, batch: int = 2):
  rng = np.random.default_rng(0)
  video = rng.random((batch, *cfg.inputs.video_shape), np.float32)
  return jnp.asarray(video), jnp.asarray(rng.standard_normal((batch, *cfg.inputs.audio_shape), np.float32))


# Elements that the original counts: of two heads, and of `norm2` among what it trains; our model does without both.
HEADS, NORM2 = (1000 + 12) * (768 + 1), 4 * 512


@pytest.mark.slow
@pytest.mark.parametrize(("cfg", "total"), [(paper(), 179_312_147), (paper(11, image_size=160), 179_240_471)])
def test_sizes_of_the_paper_and_from_the_shapes_of_its_files(cfg, total):
  assert count(abstract_model(cfg)[1]) == total - HEADS - NORM2
  assert sum(np.prod(shape) for shape in unused_shapes(cfg).values()) == HEADS + NORM2
  zeros = {name: np.broadcast_to(np.float32(0), shape) for name, shape in used_shapes(cfg).items()}
  assert find_model(Weights(Path("x.pth"), held(zeros)), None)[0] == cfg


@pytest.mark.slow
def test_tunable_set_of_the_paper():
  _, tunable, frozen = nnx.split(nnx.merge(*abstract_model(paper())), Tunable(tunable_patterns(paper())), ...)
  assert count(tunable) == 7_632_415 - NORM2 == 7_630_367
  assert count(frozen) == 171_679_732 - HEADS
  paths = set(flat_params(tunable))
  assert {path.split("/")[-1] for path in paths if "encoder" in path} == {"pos_embed"}
  assert not any("cls_token" in path for path in paths if not path.startswith("temporal/"))
  assert all(f"fusion/{i}/{part}_gate" in paths for i in range(12) for part in ("image", "audio"))


def test_patterns_that_match_nothing_are_all_named():
  with pytest.raises(UserError, match=r"fusoin.*matches no parameter") as error:
    tunable_patterns(SMALL, (r"fusoin/.*", r"classifier/.*", r"(", "temporal"))
  assert "no regular expression" in str(error.value)
  assert "'temporal' matches no" in str(error.value)  # a pattern must match the whole path
  with pytest.raises(UserError, match=r"model.image.tunable 'pos_embd' matches no parameter"):
    tunable_patterns(with_layers(2, image={"tunable": ("pos_embd",)}))


def test_wrong_sizes_are_all_named():
  first = {
    "image": {"width": 100, "heads": 12},
    "fusion": {"direction": "up"},
    "prompts": {"layers_per_stage": 0},
  }
  second = {
    "image_size": 100,
    "audio_shape": (512, 120),
    "prompts": {"layers_per_stage": 5},
    "fusion": {"layers": "last 13"},
  }
  for changes, words in (
    (first, ("width=100", "direction='up'", "layers_per_stage=0")),
    (second, ("image_size=100", "audio_shape[1]=120", "layers_per_stage=5", "'last 13', but the model has 12 layers")),
    ({"image": {"width": 0}}, ("positive whole number",)),
    ({"image": {"drop_path": 1.0}}, ("drop_path",)),
    ({"image": {"name": "none"}, "audio": {"name": "none"}}, ("both none",)),
    ({"image": {"depth": 12}, "audio": {"depth": 5}}, ("the 1 layers must be a multiple of model.prompts.layers_per_stage=6",)),
    ({"audio": {"mean": (0.5, 0.5, 0.5)}}, ("model.audio.mean and model.audio.std are for pixels",)),
    # Parts and fields that are not there; only files of a part's folder can be named.
    ({"fusion": {"name": "attention"}}, ("no 'attention' in fusion; choose one of bottleneck, none",)),
    ({"image": {"name": "os"}}, ("no 'os' in encoders",)),
    ({"fusion": {"widht": 3}}, ("no such fields", "widht", "it has ", "width")),
  ):  # fmt: skip
    with pytest.raises(UserError) as error:
      tiny(**changes)
    assert all(word in str(error.value) for word in words), words


def test_inputs_of_another_shape_are_refused(small):
  video, sound = inputs(SMALL)
  with pytest.raises(ValueError, match=r"video \(B, 16, 32, 32, 3\)"):
    small(video[:, :8], sound)
  with pytest.raises(ValueError, match=r"spectrogram \(B, 64, 32\)"):
    small(video, sound[:, :32])


@pytest.mark.slow
def test_drop_path_is_drawn_anew_in_every_step(small):
  video, sound = inputs(SMALL)

  def trained(seed):
    return small(video, sound, dropped=small.draw_drop_path(nnx.Rngs(drop_path=seed), len(video))).logits

  assert not (trained(0) == trained(1)).all()
  assert (trained(0) == trained(0)).all()


def test_closed_gates_leave_the_encoders_alone_and_sound_goes_to_the_frames_of_its_own_clip():
  encoders = (getattr(MmaDfer(SMALL, rngs=nnx.Rngs(0)), f"{stream}_encoder") for stream in ("image", "audio"))
  fusion = SMALL.fusion.build(*encoders, 0, 2, rngs=nnx.Rngs(0))
  image, audio = jnp.ones((32, 11, 48)), jnp.ones((2, 15, 48))
  closed = fusion(image, audio)
  fusion.image_gate[...] = jnp.ones((1,))
  opened = fusion(image, audio)
  assert [bool((out == image).all()) for out in (closed[0], opened[0])] == [True, False]
  assert all((out == audio).all() for out in (closed[1], opened[1]))
  changed = fusion(image, audio.at[1].set(jnp.linspace(-1, 1, 48)))[0]
  same = (opened[0] == changed).all(axis=(1, 2))
  assert same.tolist() == [True] * 16 + [False] * 16


def test_updates_reach_their_prompts_only():
  adapter = prompts.ProgressivePrompts(TINY.prompts, 48, 12, rngs=nnx.Rngs(0))
  tokens = jnp.zeros((2, 23, 48))
  for layer in range(12):
    changed = np.flatnonzero(np.asarray(adapter.update(tokens, layer) != 0).any(axis=(0, 2)))
    assert changed.tolist() == {0: [17, 18, 19], 6: [20, 21, 22]}.get(layer, [])


@pytest.fixture(scope="module")
def fresh() -> MmaDfer:
  changes = {stream: {"width": 192} for stream in ("image", "audio")}
  return MmaDfer(with_layers(2, image_size=64, audio_shape=(512, 128), **changes), rngs=nnx.Rngs(0))


def test_fresh_parameters_start_as_pytorchs(fresh):
  net = fresh
  kernel = np.asarray(net.fusion[1].image_down.kernel[...])
  assert np.abs(kernel).max() <= 192**-0.5
  assert np.std(kernel) == pytest.approx(192**-0.5 / 3**0.5, rel=0.05)
  assert np.abs(np.asarray(net.fusion[1].image_up.bias[...])).max() > 0.5 * 16**-0.5  # biases are drawn, too
  assert not np.asarray(net.fusion[0].audio_gate[...]).any()
  assert np.std(np.asarray(net.image_prompts.prompt_tokens[...])) == pytest.approx(192**-0.5, rel=0.1)
  rows = np.asarray(net.image_encoder.pos_embed[...])[0]
  assert np.std(rows[17:]) == pytest.approx(1, rel=0.1)  # the prompts' rows
  assert np.std(np.asarray(net.temporal.pos_embed[...])) == pytest.approx(1, rel=0.2)


def test_fresh_encoders_start_as_maes(fresh):
  net = fresh
  block, embed = net.image_encoder.blocks[1], net.image_encoder.patch_embed
  assert np.abs(block.mlp.fc1.kernel[...]).max() == pytest.approx((6 / (192 + 192)) ** 0.5, rel=0.01)
  assert not np.asarray(block.attn.qkv.bias[...]).any()
  table = np.asarray(net.image_encoder.pos_embed[...])[0, :17]
  assert not table[0].any()  # class token
  np.testing.assert_allclose((table[1:] ** 2).sum(axis=1), 192 / 2, rtol=1e-5)  # sines and cosines
  of_place = [np.sin(3), np.cos(3), np.sin(2), np.cos(2)]
  np.testing.assert_allclose(table[1 + 4 * 2 + 3, [0, 48, 96, 144]], of_place, rtol=1e-5)
  mean = jnp.full((1, 64, 64, 3), 0.45)  # of ImageNet's pixels: the fresh patch embedding takes it out
  np.testing.assert_allclose(embed(mean), 0, atol=1e-5)
  noise = 0.45 + 0.225 * jax.random.normal(jax.random.key(0), (1, 64, 64, 3))
  assert float(embed(noise).std()) == pytest.approx((2 * 768 / (768 + 192)) ** 0.5, rel=0.1)


@pytest.mark.slow
def test_what_is_kept_for_the_backward_pass_changes_no_number(small):
  video, sound = inputs(SMALL)
  graphdef, params = nnx.split(small)

  def loss(params, remat):
    model = nnx.merge(graphdef, params)
    dropped = model.draw_drop_path(nnx.Rngs(drop_path=3), len(video))
    return (model(video, sound, dropped=dropped, remat=remat).logits ** 2).sum()

  run = jax.jit(jax.value_and_grad(loss), static_argnums=1)
  value, gradient = run(params, "none")
  largest = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(gradient))
  for remat in ("names", "layers"):
    again, of_remat = run(params, remat)
    assert float(again) == pytest.approx(float(value), rel=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * largest), gradient, of_remat)


def test_gelu_and_attention_have_the_gradients_of_their_formulas(float64):
  keys = jax.random.split(jax.random.key(0), 4)
  q, k, v = (jax.random.normal(key, (2, 3, 5, 4), float) for key in keys[:3])
  check_grads(lambda *arrays: layers.attend(*map(jnp.asarray, arrays)), (q, k, v), order=1, modes=["rev"])
  check_grads(lambda x: layers.gelu(jnp.asarray(x)), (3 * q,), order=1, modes=["rev"])
  scores = jnp.einsum("bhnd,bhmd->bhnm", q, k) / 2
  np.testing.assert_allclose(layers.attend(q, k, v), jax.nn.softmax(scores) @ v, atol=1e-12)
  np.testing.assert_allclose(layers.gelu(q), jax.nn.gelu(q, approximate=False), atol=1e-12)


def test_layer_norm_is_flax_own_with_the_gradient_of_its_formula(float64):
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(1.0, 3.0, size=(2, 3, 8)))
  ours, theirs = (cls(8, epsilon=1e-5, rngs=nnx.Rngs(0)) for cls in (layers.LayerNorm, nnx.LayerNorm))
  np.testing.assert_allclose(ours(x), theirs(x), atol=1e-12)
  check_grads(lambda x: layers.normalise(jnp.asarray(x), 1e-5), (x,), order=1, modes=["rev"])


@pytest.mark.parametrize(
  ("tokens", "width", "shapes"), [(7, 8, [7, 8]), (6, 16, [6, 6]), (7, 12, []), (7, 136, [])]
)
def test_the_fused_kernel_is_called_as_attention_is(monkeypatch, tokens, width, shapes):
  """cuDNN's runs only on GPUs; XLA's has the same interface. JAX takes no gradient of cuDNN's for an odd number of tokens
  (measured on an H100, jax 0.11.2), and cuDNN no head whose width is not a multiple of 8."""
  rng = np.random.default_rng(0)
  q, k, v = (jnp.asarray(rng.normal(size=(2, 3, tokens, width)), "bfloat16") for _ in range(3))

  def answers():
    out, back = jax.vjp(layers.attend, q, k, v)
    return [out, *back(out)]

  ours, attention = answers(), jax.nn.dot_product_attention
  asked = []

  def by_xla(*args, implementation, **lengths):
    asked.append((implementation, args[0].shape[1]))
    return attention(*args, implementation="xla", **lengths)

  monkeypatch.setattr(jax.nn, "dot_product_attention", by_xla)
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  for mine, fused in zip(ours, answers(), strict=True):
    np.testing.assert_allclose(mine.astype("float32"), fused.astype("float32"), atol=0.06)
  assert asked == [("cudnn", n) for n in shapes]
