"""The masked autoencoders against numbers of transformers' ViTMAE and timm's Swin V2 (tests/golden/pretrain_*.npz)."""

import functools
import json

from conftest import GOLDEN
from flax import nnx
import jax
import jax.numpy as jnp
import make_weights
import numpy as np
import pytest
from torch_files import from_torch

from mma_dfer_jax import autoencoder
from mma_dfer_jax.autoencoder import MaskedAutoencoder, read_autoencoder
from mma_dfer_jax.parameters import flat_params, split_tunable
from mma_dfer_jax.training.objective import Term
from mma_dfer_jax.training.state import TrainState, make_mae_optimizer
from mma_dfer_jax.training.steps import train_step
from mma_dfer_jax.weights.encoder_file import rows

CASES = ("image_norm", "image_raw", "audio_global", "audio_local")


@functools.cache
def golden(case: str) -> tuple[dict[str, np.ndarray], dict]:
  numbers = dict(np.load(GOLDEN / f"pretrain_{case}.npz"))
  return numbers, json.loads(str(numbers["sizes"]))


def config(case: str) -> autoencoder.AutoencoderConfig:
  _, s = golden(case)
  height, width = (n * s["patch"] for n in s["grid"])
  stream = "image" if s["channels"] == 3 else "audio"
  inputs = {"image_size": height, "num_frames": 1} if stream == "image" else {"audio_shape": (height, width)}
  encoder = {"name": "mae", "patch_size": s["patch"], "width": s["width"], "depth": s["depth"], "heads": s["heads"],
             "mlp_dim": s["mlp"]}  # fmt: skip
  decoder = {
    "width": s["decoder_width"],
    "depth": s["decoder_depth"],
    "heads": s["decoder_heads"],
    "mlp_dim": s["decoder_mlp"],
  }
  local = {"name": "local", "window": tuple(s["window"])} if "window" in s else {"name": "full"}
  return read_autoencoder({"stream": stream, "inputs": inputs, "encoder": encoder, "decoder": decoder | local,
                           "mask_ratio": s["mask_ratio"], "norm_pix": s["norm_pix"]})  # fmt: skip


def built(case: str):
  """(graph definition, tunable, frozen) with the golden weights."""
  cfg, (numbers, s) = config(case), golden(case)
  model = MaskedAutoencoder(cfg, rngs=nnx.Rngs(0))
  variables = flat_params(nnx.state(model))
  shapes = {}
  for row in rows(cfg):
    like = {
      name: array.shape for name, array in row.to_torch(np.zeros(variables[row.path].shape, "f4")).items()
    }
    shapes |= like
  theirs = {name: numbers.get(name, None) for name in shapes}
  theirs = {name: make_weights.make_tensor(name, shape, s["seed"]) if theirs[name] is None else theirs[name]
            for name, shape in shapes.items()}  # fmt: skip
  for path, array in from_torch(theirs, rows(cfg)).items():
    if path.endswith("pos_embed"):  # ours are sines and cosines, too
      np.testing.assert_allclose(variables[path][...], array, atol=1e-6)
    variables[path][...] = jnp.asarray(array)
  return split_tunable(model, cfg.tunable())


def examples(case: str, step: str = "") -> tuple[jax.Array, jax.Array]:
  """Pixels as we take them, and noise (L, B)."""
  cfg, (_, s) = config(case), golden(case)
  draw = functools.partial(make_weights.rng_for, s["seed"])
  noise = draw(f"{s['tag']}/noise{step}").random((s["batch"], cfg.patches), dtype=np.float32)
  shape = (s["batch"], s["channels"], *(n * s["patch"] for n in s["grid"]))
  if cfg.stream == "image":
    pixels = draw(f"{s['tag']}/pixels").random(shape, dtype=np.float32).transpose(0, 2, 3, 1)[:, None]
  else:
    pixels = np.float32(0.5) * draw(f"{s['tag']}/pixels").standard_normal(shape, dtype=np.float32)[:, 0]
  return jnp.asarray(pixels), jnp.asarray(noise.T)


def by_name(case: str, state) -> dict[str, np.ndarray]:
  """Parameters, or their gradients, by the names of MAE's files."""
  variables, found = flat_params(state), {}
  for row in rows(config(case)):
    if row.path in variables:
      found |= row.to_torch(np.asarray(variables[row.path][...]))
  return found


@pytest.mark.parametrize("case", CASES)
def test_loss_latent_prediction_and_gradients(case):
  (numbers, _), (graphdef, tunable, frozen) = golden(case), built(case)
  pixels, noise = examples(case)

  def loss(tunable):
    model = nnx.merge(graphdef, tunable, frozen)
    made = model(pixels, noise)
    return model.losses(made).mean(), made

  (value, made), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(tunable)
  assert value == pytest.approx(float(numbers["loss64"]), abs=1e-6)
  np.testing.assert_array_equal(made.removed, numbers["mask"])
  for name, ours in (("latent", made.latent), ("pred", made.predicted), ("target", made.target)):
    if name in numbers:
      np.testing.assert_allclose(ours, numbers[name], atol=5e-6, err_msg=name)
  gradients, compared = by_name(case, gradients), 0
  for key in (key for key in numbers if key.startswith("grad/")):
    compared += 1
    np.testing.assert_allclose(gradients[key[5:]], numbers[key], atol=1e-6, err_msg=key)
  assert compared > 20
  assert not [name for name in gradients if "pos_embed" in name]


@pytest.mark.parametrize("case", [case for case in CASES if "train_losses" in golden(case)[0]])
def test_three_updates(case):
  (numbers, _), (graphdef, tunable, frozen) = golden(case), built(case)
  rates = jnp.asarray([1e-3, 2e-3, 3e-3])
  tx = make_mae_optimizer(lambda step: rates[step], 0.05)
  state = TrainState(jnp.zeros((), jnp.int32), tunable, frozen, tx.init(tunable))
  pixels, _ = examples(case)
  losses = []
  step = jax.jit(functools.partial(
    train_step, graphdef=graphdef, tx=tx, draw_fn=lambda model, rngs, clips: 0,
    loss_fn=lambda model, batch, drawn, remat, _: ({"": Term(model.losses(model(batch["x"], batch["noise"].T)))}, {}),
  ))  # fmt: skip
  for k in range(3):
    state, metrics = step(state, {"x": pixels, "noise": examples(case, str(k))[1].T}, jax.random.key(0))
    losses.append(float(metrics["loss"]))
  np.testing.assert_allclose(losses, numbers["train_losses"], atol=1e-6)
  after = by_name(case, state.tunable)
  for key in (key for key in numbers if key.startswith("after3/")):
    if "pos_embed" not in key:
      array = after[key[7:]].ravel()
      places = np.array([i * (array.size - 1) // 7 for i in range(8)])
      # The bias of keys: softmax does not see it, its gradient is rounding, which Adam makes as large as any other.
      seen = (places * 3 // array.size != 1) | ("qkv.bias" not in key)
      np.testing.assert_allclose(array[places[seen]], numbers[key][seen], atol=1e-6, err_msg=key)
