"""Layer pools: the golden numbers of the specification, and what a model with one promises."""

from conftest import GOLDEN, golden_inputs
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_ablations import model_of, put_in, tiny_config

from mma_dfer_jax import parts
from mma_dfer_jax.config import choose
from mma_dfer_jax.errors import UserError
from mma_dfer_jax.parameters import flat_params, parameter_shapes

NUMBERS = dict(np.load(GOLDEN / "layer_pool.npz"))


def pool(name: str, **fields) -> nnx.Module:
  return parts.read("layer_pools", {"name": name, **fields}).build(6, 6, 4, rngs=nnx.Rngs(0))


def put(module: nnx.Module, **values) -> nnx.Module:
  for path, variable in flat_params(nnx.state(module)).items():
    variable[...] = jnp.asarray(values[path.rpartition("/")[2]]).reshape(variable.shape)
  return module


def test_softmax_and_streams_are_the_golden_ones_with_gradients(float64):
  """Sound whose layers are all alike stays as it is."""
  audio = [jnp.asarray(NUMBERS["audio_cls"])[:, None]] * 4
  given = {name: jnp.asarray(NUMBERS[name]) for name in ("theta", "gate", "phi")}

  def loss(layers, given):
    of_layers = [layers[:, :, i] for i in range(4)]
    image, sound, said = put(pool("softmax", streams=True), **given)(of_layers, audio)
    return ((image + sound) * NUMBERS["cotangent"]).sum(), (image, sound, said)

  (_, (image, sound, said)), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(
    NUMBERS["layers"], given
  )
  np.testing.assert_allclose(image + sound, NUMBERS["streams_out"], rtol=0, atol=1e-10)
  beta = said["streams"][0]
  np.testing.assert_allclose(image / beta[0], NUMBERS["softmax_out"], rtol=0, atol=1e-10)
  np.testing.assert_allclose(beta.sum(), 2, atol=1e-12)
  for name, found in {"layers": gradients[0], **gradients[1]}.items():
    np.testing.assert_allclose(found, NUMBERS[f"grad_{name}"], rtol=0, atol=1e-10)


def test_attention_is_the_golden_one(float64):
  layers = [jnp.asarray(NUMBERS["layers"][:, :, i]) for i in range(4)]
  module = put(pool("attention"), query=NUMBERS["query"], gate=NUMBERS["gate"])
  image, sound, said = module(layers, [layer[:, :1] for layer in layers])
  np.testing.assert_allclose(image, NUMBERS["attention_out"], rtol=0, atol=1e-10)
  np.testing.assert_allclose(sound, NUMBERS["attention_out"][:, :1], rtol=0, atol=1e-10)
  np.testing.assert_allclose(said["layers_of_image"], NUMBERS["attention_weights"], rtol=0, atol=1e-10)
  np.testing.assert_allclose(said["layer_gate_of_image"], np.full(2, np.tanh(0.7)), rtol=0, atol=1e-10)


@pytest.mark.slow
def test_whole_model_gives_the_golden_logits(float64):
  numbers = np.load(GOLDEN / "in_model.npz")
  video, spectrogram, _ = golden_inputs("tiny_64_7")
  given = {f"layer_pool/{name}/theta": numbers[f"layer_pool/theta_{name}"] for name in ("image", "audio")}
  given |= {f"layer_pool/{name}/gate": numbers["layer_pool/gate"][None] for name in ("image", "audio")}
  model = put_in(model_of(choose(tiny_config(), "layer_pool=softmax")), given)
  outputs = jax.jit(lambda *clips: model(*clips))(video.astype(np.float64), spectrogram.astype(np.float64))
  np.testing.assert_allclose(outputs.logits, numbers["layer_pool/logits"], rtol=0, atol=1e-8)
  assert {name: of.shape for name, of in outputs.extra.items()} == {
    "layers_of_image": (2, 12), "layers_of_audio": (2, 12), "layer_gate_of_image": (2,), "layer_gate_of_audio": (2,)}  # fmt: skip


def test_one_stream_has_no_parameters_for_the_other_and_nothing_to_weigh():
  image = model_of(choose(tiny_config(), "image_only,layer_pool=attention"))
  assert [path for path in parameter_shapes(image) if path.startswith("layer_pool")] == [
    "layer_pool/image/gate",
    "layer_pool/image/query",
  ]
  for choice in ("audio_only,stream_weights", "image_only,layer_pool=softmax"):
    config = choose(tiny_config(), choice)
    if "streams" in config.model.layer_pool:
      config.model.layer_pool.streams = True
    with pytest.raises(UserError, match="picture against sound"):
      model_of(config)
