"""Masks over frames: golden numbers, dropped frames inside the model, what is refused."""

import functools

from conftest import GOLDEN, golden_inputs, golden_weights, small, tiny
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from torch_files import from_torch

from mma_dfer_jax import layers
from mma_dfer_jax.config import choose, default_config, model_config
from mma_dfer_jax.errors import UserError
from mma_dfer_jax.frame_masks.soft import Config
from mma_dfer_jax.model import MmaDfer, read_model
from mma_dfer_jax.parameters import abstract_model, flat_params
from mma_dfer_jax.weights import names

OF_MASK = dict(np.load(GOLDEN / "frame_mask.npz"))
IN_MODEL = dict(np.load(GOLDEN / "frames_in_model.npz"))
STILL = 2  # the golden clip whose rounding decides


def mask_of(values, frames: int = 16, **fields):
  """A mask with the five scalars of a golden file, in float64."""
  mask = Config(**fields).build(frames, rngs=nnx.Rngs(0))
  for name in "abceg":
    getattr(mask, name)[...] = jnp.asarray(values[f"param/{name}"])
  return mask


@pytest.mark.usefixtures("float64")
def test_weights_and_gradients_are_those_computed_by_hand():
  image, joint, cotangent = (jnp.asarray(OF_MASK[name]) for name in ("features", "joint", "cotangent"))
  graphdef, state = nnx.split(mask_of(OF_MASK))

  def masked(state, image, joint):
    joint, bias, said = nnx.merge(graphdef, state)(image, joint, None)
    assert bias is None
    return (joint * cotangent).sum(), (joint, said["frame_weights"])

  run = jax.value_and_grad(masked, argnums=(0, 1, 2), has_aux=True)
  (_, (after, weights)), (of_mask, of_image, of_joint) = run(state, image, joint)
  for found, name in ((weights, "weights"), (after, "masked_joint"), (of_joint, "grad_joint")):
    np.testing.assert_allclose(found, OF_MASK[name], rtol=0, atol=1e-9, err_msg=name)
  moving = [clip for clip in range(len(image)) if clip != STILL]
  np.testing.assert_allclose(of_image[np.array(moving)], OF_MASK["grad_features"][moving], rtol=0, atol=1e-9)
  assert np.isfinite(of_image).all()
  for path, gradient in flat_params(of_mask).items():
    np.testing.assert_allclose(gradient[...], OF_MASK[f"grad_param/{path}"], rtol=0, atol=1e-9, err_msg=path)
  np.testing.assert_allclose(weights[STILL], 1, atol=1e-12)


@pytest.mark.usefixtures("float64")
def test_chosen_frames_are_in_the_order_of_time_and_the_earlier_of_equal_ones():
  mask = mask_of(OF_MASK, keep=8)
  found = mask.choose(jnp.asarray(OF_MASK["features"][:STILL]))
  np.testing.assert_array_equal(found, OF_MASK["kept_8"][:STILL])
  equal = jnp.tile(jnp.asarray([[1.0, 0.0], [0.0, 1.0]]), (8, 1))[
    None
  ]  # from the third frame on all are worth the same
  importance = np.asarray(mask.importance(equal))[0]
  ranked = sorted(range(16), key=lambda place: (-importance[place], place))
  np.testing.assert_array_equal(mask.choose(equal)[0], sorted(ranked[:8]))


@pytest.mark.usefixtures("float64")
def test_bias_is_added_to_attention():
  bias = np.log(OF_MASK["weights"])
  q, k, v = (jnp.asarray(OF_MASK[f"bias_{name}"]) for name in "qkv")
  _, found, _ = mask_of(OF_MASK, form="bias")(
    jnp.asarray(OF_MASK["features"]), jnp.asarray(OF_MASK["joint"]), None
  )
  np.testing.assert_allclose(found, bias, rtol=0, atol=1e-9)
  np.testing.assert_allclose(layers.attend(q, k, v, found), OF_MASK["bias_out"], rtol=0, atol=1e-9)

  def plain(q, k, v, bias):
    return jax.nn.softmax(q @ k.swapaxes(-1, -2) * q.shape[-1] ** -0.5 + bias[:, None, None]) @ v

  ours, expected = (jax.grad(lambda *x, f=f: (f(*x) ** 3).sum(), argnums=(0, 1, 2, 3))(q, k, v, found)
                    for f in (layers.attend, plain))  # fmt: skip
  for one, other in zip(ours, expected, strict=True):
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-9)


@functools.cache
def arrays():
  base = tiny()
  return {path: value.astype(np.float64) for path, value in from_torch(golden_weights("tiny_64_7"), names.name_table(base)).items()}  # fmt: skip


def golden_model(opened: bool, **fields) -> MmaDfer:
  """The golden tiny model with a mask; shut (g = 0) it only chooses."""
  graphdef, state = abstract_model(tiny(frame_mask={"name": "soft", **fields}))
  of_mask = {f"frame_mask/{name}": IN_MODEL[f"param/{name}"] * (opened or name != "g") for name in "abceg"}
  leaves = [jnp.asarray((arrays() | of_mask)[path]) for path in flat_params(state)]
  return nnx.merge(graphdef, jax.tree.unflatten(jax.tree.structure(state), leaves))


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("case", "opened", "fields"), [
  ("frame_mask/logits", True, {}), ("frame_mask/logits", True, {"keep": 16}),
  ("drop_4_8/logits", False, {"keep": 8}), ("drop_4_8/soft_logits", True, {"keep": 8}),
  ("drop_1_4/logits", False, {"keep": 4, "after": 1}), ("drop_1_4/soft_logits", True, {"keep": 4, "after": 1}),
])  # fmt: skip
def test_logits_of_the_whole_model_are_those_computed_by_hand(case, opened, fields):
  video, spectrogram, _ = golden_inputs("tiny_64_7")
  model = golden_model(opened, **fields)
  outputs = jax.jit(model)(jnp.asarray(video, np.float64), jnp.asarray(spectrogram, np.float64))
  np.testing.assert_allclose(outputs.logits, IN_MODEL[case], rtol=0, atol=1e-9)
  weights, where = np.asarray(outputs.extra["frame_weights"]), case.split("/")[0]
  if where == "frame_mask":
    expected = IN_MODEL["frame_mask/weights"]
  else:
    soft = IN_MODEL[f"{where}/soft_weights"]
    expected = np.zeros((2, 16))
    np.put_along_axis(expected, IN_MODEL[f"{where}/kept"], soft if opened else np.ones_like(soft), axis=1)
  np.testing.assert_allclose(weights, expected, rtol=0, atol=1e-9)


@functools.cache
def fresh(**mask):
  """(graph definition, state, inputs) of a fresh model of two layers; gates are open."""
  two = {"image": {"depth": 2}, "audio": {"depth": 2}, "prompts": {"layers_per_stage": 1}}
  cfg = small(**two, **{"frame_mask": mask} if mask else {})
  model = MmaDfer(cfg, rngs=nnx.Rngs(3))
  for fusion in model.fusion:
    fusion.image_gate[...] = fusion.audio_gate[...] = jnp.full((1,), 0.5)
  rng = np.random.default_rng(0)
  video = rng.integers(0, 256, (2, *cfg.inputs.video_shape), np.uint8)
  sound = rng.normal(0, 0.5, (2, *cfg.inputs.audio_shape)).astype(np.float32)
  return *nnx.split(model), jnp.asarray(video), jnp.asarray(sound)


@functools.cache
def loss_and_gradients(**mask):
  graphdef, state, video, sound = fresh(**mask)

  def loss(state, video, sound):
    model = nnx.merge(graphdef, state)
    dropped = model.draw_drop_path(nnx.Rngs(drop_path=1), len(video))
    outputs = model(video, sound, dropped=dropped, remat="names")
    return -jax.nn.log_softmax(outputs.logits)[:, 0].mean(), outputs

  (value, outputs), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(state, video, sound)
  return value, outputs, {path: np.asarray(v[...]) for path, v in flat_params(gradients).items()}


@pytest.mark.slow
@pytest.mark.parametrize("form", ["soft", "bias"])
def test_training_begins_at_exactly_the_base(form):
  base, expected, gradients = loss_and_gradients()
  value, outputs, ours = loss_and_gradients(name="soft", form=form)
  assert value == base
  np.testing.assert_array_equal(outputs.logits, expected.logits)
  np.testing.assert_array_equal(outputs.extra["frame_weights"], np.ones((2, 16)))
  assert ours["frame_mask/g"] != 0
  assert all(ours[f"frame_mask/{name}"] == 0 for name in "abce")  # they wait for g
  for path, gradient in gradients.items():
    np.testing.assert_allclose(ours[path], gradient, rtol=1e-4, atol=1e-6, err_msg=path)


@pytest.mark.slow
def test_kept_frames_are_all_that_later_layers_see():
  mask = {"name": "soft", "keep": 5, "after": 1}
  _, outputs, gradients = loss_and_gradients(**mask)
  for path, gradient in gradients.items():
    assert np.isfinite(gradient).all()
    assert gradient.any() or path in {f"frame_mask/{name}" for name in "abce"}, path
  assert ((outputs.extra["frame_weights"] > 0).sum(axis=1) == 5).all()
  graphdef, state, video, sound = fresh(**mask)
  answer = jax.jit(lambda state, video, sound: nnx.merge(graphdef, state).features(video, sound))
  features = answer(state, video, sound)
  assert features.image.shape[1] == features.joint.shape[1] == features.moments.shape[1] == 5
  kept = [np.flatnonzero(row) for row in np.asarray(features.extra["frame_weights"])]
  assert (kept[0] != kept[1]).any()
  # Another frame reaches the last layer only by the sound that has heard of it: hardly, next to a kept frame.
  moved = []
  for place in (kept[0][0], np.setdiff1d(np.arange(16), kept[0])[0]):
    changed = answer(state, video.at[0, place, :2].add(9), sound)
    moved.append(float(np.abs(changed.image[0] - features.image[0]).max()))
  assert moved[0] > 5 * moved[1]


@pytest.mark.parametrize(("changes", "words"), [
  ({"temporal": {"name": "mean"}, "frame_mask": {"name": "soft", "form": "bias"}}, "form=bias changes attention"),
  ({"image": {"name": "none"}, "temporal": {"name": "mean"}, "frame_mask": {"name": "soft"}}, "model.image is none"),
  ({"frame_mask": {"name": "soft", "keep": 17}}, "keep=17 must be at most inputs.num_frames=16"),
  ({"frame_mask": {"name": "soft", "keep": 8, "after": 12}}, "after=12 must be below 12"),
  ({"frame_mask": {"name": "soft", "after": 12}}, "after=12 must be below 12"),
  ({"frame_mask": {"name": "soft", "keep": 1}}, "keep=1: fewer than 3 frames always count alike"),
  ({"frame_mask": {"name": "soft", "keep": 2.0}}, "keep=2: fewer than 3 frames always count alike"),
  ({"frame_mask": {"name": "soft", "keep": 0.1}}, r"keep=0.1 of inputs.num_frames=16 is 2, and fewer than 3"),
  ({"frame_mask": {"name": "soft", "keep": 8.5}}, "a whole number, or a share below 1"),
  ({"frame_mask": {"name": "soft", "keep": 8, "after": -1}}, r"after=-1 must lie in \[0, inf\)$"),
  ({"frame_mask": {"name": "soft", "keep": 8, "after": 0}}, r"values:\n[^\n]*only pixels[^\n]*$"),
  ({"frame_mask": {"name": "soft", "form": "hard"}}, "choose one of soft, bias"),
])  # fmt: skip
def test_what_cannot_be_masked_is_refused(changes, words):
  with pytest.raises(UserError, match=words):
    tiny(**changes)


@pytest.mark.parametrize("frames", [1, 2])
def test_too_few_frames_cannot_be_weighed(frames):
  fields = tiny(frame_mask={"name": "soft"}).to_fields()
  with pytest.raises(
    UserError, match=rf"inputs\.num_frames={frames}: fewer than 3 frames always count alike"
  ):
    read_model(fields | {"inputs": fields["inputs"] | {"num_frames": frames}})


@pytest.mark.parametrize(("frames", "depths", "expected"), [
  (16, (12, 12), (8, 4)), (32, (12, 12), (16, 4)), (5, (12, 12), (3, 4)), (16, (6, 6), (8, 2)), (7, (2, 2), (4, 1)),
  (16, (12, 16), (8, 1)),  # four layers
])  # fmt: skip
def test_the_better_half_is_half_whatever_later_flags_say(frames, depths, expected):
  c = choose(default_config(), "frame_mask_half,prompts=none")
  c.inputs.num_frames, c.model.image.depth, c.model.audio.depth = frames, *depths
  mask = model_config(c.to_dict(), "ab").frame_mask
  assert (mask.keep, mask.after) == expected


def test_one_layer_keeps_all_frames():
  one = {"image": {"depth": 1}, "audio": {"depth": 1}, "prompts": {"name": "none"}}
  assert tiny(**one, frame_mask={"name": "soft"}).frame_mask.keep == 0
  with pytest.raises(UserError, match="between two layers, and this model has one"):
    tiny(**one, frame_mask={"name": "soft", "keep": 8})


def test_a_guess_is_told_the_row():
  with pytest.raises(UserError, match="did you mean the row frame_mask_bias"):
    choose(default_config(), "frame_mask=bias")


def test_an_encoder_of_whole_clips_has_no_frames_to_weigh():
  fields = tiny(frame_mask={"name": "soft"}).to_fields()
  fields |= {
    "image": {"name": "lgi"},
    "inputs": {"image_size": 160, "num_frames": 16},
    "prompts": {"name": "none"},
  }
  with pytest.raises(UserError, match=r"model\.image=lgi reads none by itself"):
    read_model(fields)


@pytest.mark.slow
def test_a_mask_learns_to_leave_out_a_frozen_half():
  """Frames 8 to 15 are one picture, which speaks for another class than the frames before."""
  rng = np.random.default_rng(0)
  image = rng.normal(size=(8, 16, 12))
  image[:, 8:] = image[:, 7:8]
  labels = np.arange(8) % 2
  joint = np.where(np.arange(16) < 8, 1.0, -1.5)[None, :, None] * np.eye(2)[labels][:, None]
  graphdef, state = nnx.split(Config().build(16, rngs=nnx.Rngs(0)))
  images, joints = jnp.asarray(image, jnp.float32), jnp.asarray(joint, jnp.float32)

  @jax.jit
  def loss(state):
    masked, _, said = nnx.merge(graphdef, state)(images, joints)
    chosen = jax.nn.log_softmax(masked.mean(axis=1))[np.arange(8), labels]
    return -chosen.mean(), said["frame_weights"]

  step = jax.jit(jax.grad(loss, has_aux=True))
  first = loss(state)[0]
  for _ in range(60):
    state = jax.tree.map(lambda value, slope: value - 0.5 * slope, state, step(state)[0])
  last, weights = loss(state)
  assert last < 0.8 * first
  assert weights[:, 9:].max() < 0.5 < 1.2 < weights[:, :8].mean()
