"""Equal to the original: logits, every probed tensor, gradients, updates, drop path (numbers in tests/golden)."""

import functools
import signal
import subprocess
import sys
import time

import commands
from conftest import CONFIGS, GOLDEN, ROOT, TINY, golden_inputs, golden_json, golden_weights, slice_of
from flax import nnx
import jax
import jax.numpy as jnp
import make_weights
from model_folders import with_layers
import numpy as np
import optax
import pytest
from torch_files import from_torch, write_checkpoint

from mma_dfer_jax import layers, model
from mma_dfer_jax.adapters.prompts import ProgressivePrompts
from mma_dfer_jax.encoders.mae import MaeEncoder
from mma_dfer_jax.engines.engine import load_model
from mma_dfer_jax.model import NOTHING
from mma_dfer_jax.parameters import Tunable, abstract_model, flat_params, split_tunable, tunable_patterns
from mma_dfer_jax.temporal.transformer import MultimodalTemporalTransformer
from mma_dfer_jax.training.objective import Term
from mma_dfer_jax.training.state import TrainState, by_epoch, cosine_rates, make_optimizer
from mma_dfer_jax.training.steps import train_step
from mma_dfer_jax.weights import names
from mma_dfer_jax.weights.files import open_weights
from mma_dfer_jax.weights.folder import open_folder
from mma_dfer_jax.weights.mma_dfer import export

PAPER_TUNABLE = tunable_patterns(TINY)


def build(case: str, dtype=np.float32) -> model.MmaDfer:
  """Our model with the golden weights of a case."""
  cfg = CONFIGS[case]
  graphdef, params = abstract_model(cfg)
  arrays = from_torch(golden_weights(case), names.name_table(cfg))
  leaves = [jnp.asarray(arrays[path].astype(dtype)) for path in flat_params(params)]
  return nnx.merge(graphdef, jax.tree.unflatten(jax.tree.structure(params), leaves))


@functools.cache
def golden(name: str) -> dict[str, np.ndarray]:
  return dict(np.load(GOLDEN / f"{name}.npz"))


def record(mp: pytest.MonkeyPatch, net: model.MmaDfer) -> dict[str, np.ndarray]:
  """Keeps what the parts of a model return, by the golden probes' names, while it runs eagerly."""
  seen: dict[str, np.ndarray] = {}
  probes: dict[int, str] = {id(net.joint_adaptation): "vision_proj", id(net.temporal): "temporal_cls"}
  for stream in ("image", "audio"):
    encoder, prompts = getattr(net, f"{stream}_encoder"), getattr(net, f"{stream}_prompts")
    probes |= {id(encoder): f"{stream}.tokens_in", id(encoder.patch_embed): f"{stream}.patch_embed"}
    probes |= {id(prompts): f"{stream}.block{{}}.post", id(encoder.norm): f"{stream}.norm"}
    probes |= {id(block): f"{stream}.block{i}.pre" for i, block in enumerate(encoder.blocks)}
  for i, fusion in enumerate(net.fusion):
    probes |= {id(fusion.image_norm): f"image_lowdim_norm.{i}", id(fusion.audio_norm): f"audio_lowdim.{i}"}

  def watch(cls, method):
    original = getattr(cls, method)

    @functools.wraps(original)
    def wrapper(self, *args, **kwargs):
      out = original(self, *args, **kwargs)
      if name := probes.get(id(self)):
        value = out[0] if isinstance(out, tuple) else out  # the clip, of clip and moments
        seen[name.format(args[1] if method == "update" else "")] = np.asarray(value)
      if cls is model.JointAdaptation:
        seen["fused_features"] = np.asarray(args[0] + args[1])
      return out

    mp.setattr(cls, method, wrapper)

  watch(MaeEncoder, "embed")
  watch(ProgressivePrompts, "update")
  ours = layers.LayerNorm, layers.TransformerBlock, model.JointAdaptation, MultimodalTemporalTransformer
  for cls in (nnx.Conv, *ours):
    watch(cls, "__call__")
  return seen


def check_every_probe(monkeypatch: pytest.MonkeyPatch, net: model.MmaDfer, case: str) -> None:
  video, sound, _ = golden_inputs(case)
  with (
    monkeypatch.context() as patched,
    jax.disable_jit(),
  ):  # a compiled layer would be seen with copies of its modules
    seen = record(patched, net)
    logits = np.asarray(net(jnp.asarray(video), jnp.asarray(sound)).logits)
  for stream in ("image", "audio"):  # the original's last probe is already the normalised class token
    seen[f"{stream}.block11.post"] = seen[f"{stream}.norm"][:, 0]
  want, stats = golden(f"forward_{case}"), golden_json(f"forward_{case}")["stats"]
  assert np.abs(logits - want["logits"]).max() < 2e-5
  np.testing.assert_allclose(seen["image.norm"][:, 0], want["encoder_image"], atol=2e-5)
  np.testing.assert_allclose(seen["audio.norm"][:, 0], want["encoder_audio"], atol=2e-5)
  np.testing.assert_allclose(seen["temporal_cls"], want["temporal_cls"], atol=2e-5)
  probes = [key.removeprefix("slice/") for key in want if key.startswith("slice/")]
  assert len(probes) == len(stats) == 79
  for probe in probes:
    assert seen[probe].size == np.prod(stats[probe]["shape"]), probe
    error = np.abs(slice_of(seen[probe], 32) - want[f"slice/{probe}"]).max() / stats[probe]["std"]
    assert error < 1e-5, (probe, error)
    assert np.isclose(np.std(seen[probe]), stats[probe]["std"], rtol=1e-5), probe


@pytest.mark.slow
def test_logits_and_every_probe(monkeypatch):
  check_every_probe(monkeypatch, build("tiny_64_7"), "tiny_64_7")


@pytest.mark.slow
def test_full_size_from_file_to_logits_and_back(tmp_path, monkeypatch):
  """179 M parameters: written as torch would, interrupted, converted, compared at every probe, and with all digests."""
  case, file, folder = "full_224_7", tmp_path / "full.pth", tmp_path / "model"
  write_checkpoint(file, golden_weights(case))
  flags = [f"--model={file}", "--classes=dfew", f"--out={folder}"]
  command = [sys.executable, "-m", "mma_dfer_jax.convert", *flags]
  stopped = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
  while not (writing := [*tmp_path.glob(".model.partial/*")]) or not writing[0].stat().st_size:
    assert stopped.poll() is None, stopped.communicate()
    time.sleep(0.01)
  stopped.send_signal(signal.SIGTERM)
  assert "stopped" in stopped.communicate(timeout=60)[0]
  assert stopped.returncode == 130
  assert [path.name for path in tmp_path.iterdir()] == ["full.pth"]
  status, printed, errors = commands.run("convert", *flags, at=ROOT)
  assert status == 0, errors
  assert "198 trained, 7,632,415 elements, and 302 frozen, 171,679,732 elements" in printed
  file.unlink()
  engine = load_model(folder)
  check_every_probe(monkeypatch, nnx.merge(engine.graphdef, engine.tunable, engine.frozen), case)
  export(open_folder(folder), None, tmp_path / "back.safetensors")
  tensors = open_weights(tmp_path / "back.safetensors").tensors
  found = {name: make_weights.digest(tensor.read()) for name, tensor in tensors.items()}
  assert found == golden_json(f"weights_digest_{case}")


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
def test_float64_logits_catch_even_an_epsilon():
  net = build("tiny_64_7", np.float64)
  video, sound, _ = golden_inputs("tiny_64_7")
  logits = np.asarray(net(jnp.asarray(video, jnp.float64), jnp.asarray(sound, jnp.float64)).logits)
  assert logits.dtype == np.float64
  assert np.abs(logits - golden("forward_tiny_64_7")["logits64"]).max() < 1e-8


def tiny_state(dtype=np.float32):
  graphdef, tunable, frozen = nnx.split(build("tiny_64_7", dtype), Tunable(PAPER_TUNABLE), ...)
  tx = make_optimizer(lambda step: 1e-4, weight_decay=1e-2)
  return graphdef, tx, TrainState(jnp.zeros((), jnp.int32), tunable, frozen, tx.init(tunable))


def tiny_loss(graphdef, frozen, *, train=False):
  video, sound, labels = golden_inputs("tiny_64_7")

  def loss(tunable):
    net = nnx.merge(graphdef, tunable, frozen)
    dropped = net.draw_drop_path(nnx.Rngs(drop_path=0), len(labels)) if train else NOTHING
    real = jnp.result_type(float)
    logits = net(jnp.asarray(video, real), jnp.asarray(sound, real), dropped=dropped).logits
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), logits

  return loss


def as_original(tree) -> dict[str, np.ndarray]:
  ours = {path: np.asarray(v[...]) for path, v in flat_params(tree).items()}
  rows = [row for row in names.name_table(TINY) if row.path in ours]
  return {name: tensor for row in rows for name, tensor in row.to_torch(ours[row.path]).items()}


@functools.cache
def first_step(dtype):
  """Optimizer and state before the first update, the compiled loss with its gradient, and the first gradient."""
  graphdef, tx, state = tiny_state(dtype)
  compiled = jax.jit(jax.value_and_grad(tiny_loss(graphdef, state.frozen), has_aux=True))
  return tx, state, compiled, compiled(state.tunable)[1]


def check_gradients(dtype, suffix: str, rel: float, atol: float) -> None:
  grads = first_step(dtype)[-1]
  ours, want = as_original(grads), golden("train_tiny_64_7")
  norms = golden_json("train_tiny_64_7")[f"grad_norms{suffix and '_float64'}"]
  norms = {name: norm for name, norm in norms.items() if norm is not None}
  assert set(ours) == set(norms)
  assert len(norms) == 194
  for name, norm in norms.items():
    assert abs(np.linalg.norm(ours[name]) - norm) <= max(rel * norm, atol), name
    slices = want[f"grad{suffix}/{name}"]
    typical = max(norm / np.sqrt(ours[name].size), np.abs(slices).max())
    assert np.abs(slice_of(ours[name], 8) - slices).max() <= max(rel * typical, atol), name


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
def test_first_gradient_of_every_tunable_parameter_in_float64():
  check_gradients(np.float64, "64", rel=1e-7, atol=0)


@pytest.mark.slow
def test_first_gradient_of_every_tunable_parameter():
  # The floor is for one scalar, audio_model.all_gate.5: 4e-4 left of sums near 1, which float32 knows to 1.2e-7 and
  # processors add in different orders; the original itself is 6e-5 off.
  check_gradients(np.float32, "", rel=1e-4, atol=2.4e-7)


@pytest.mark.slow
def test_three_updates():
  """Losses of four steps, parameters after one and three; frozen bits stay, and nothing is kept for them."""
  tx, state, compiled, _ = first_step(np.float32)
  frozen = jax.tree.map(np.array, state.frozen)
  want, facts = golden("train_tiny_64_7"), golden_json("train_tiny_64_7")

  losses = []
  for step in range(4):
    (loss, _), grads = compiled(state.tunable)
    losses.append(float(loss))
    if step in (1, 3):
      ours = as_original(state.tunable)
      live = set(facts["trainable"]) - set(facts["trainable_but_unused"])
      assert set(ours) == live
      for name in live:
        np.testing.assert_allclose(
          slice_of(ours[name], 8), want[f"param_after{step}/{name}"], atol=2e-6, rtol=0, err_msg=name
        )
    updates, opt_state = tx.update(grads, state.opt_state, state.tunable)
    state = state._replace(tunable=optax.apply_updates(state.tunable, updates), opt_state=opt_state)
  np.testing.assert_allclose(losses, facts["losses_float32"], atol=2e-6)
  moments = sum(x.size for x in jax.tree.leaves(state.opt_state))
  assert moments == 2 * facts["n_trainable_elements_with_gradient"] + 2  # two step counts
  assert jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, np.asarray(b)), frozen, state.frozen))


@pytest.mark.slow
def test_train_step_is_that_update():
  """The step of `mma_dfer_jax.train`, fed with pixels, makes the update that the parts above make by hand."""
  quiet = with_layers(2, image={"drop_path": 0.0}, audio={"drop_path": 0.0})
  graphdef, tunable, frozen = split_tunable(model.MmaDfer(quiet, rngs=nnx.Rngs(0)), tunable_patterns(quiet))
  tx = make_optimizer(lambda step: 1e-4, weight_decay=1e-2)
  state = TrainState(jnp.zeros((), jnp.int32), tunable, frozen, tx.init(tunable))
  rng = np.random.default_rng(0)
  pixels = jnp.asarray(rng.integers(0, 256, (2, *quiet.inputs.video_shape), np.uint8))
  sound = jnp.asarray(rng.standard_normal((2, *quiet.inputs.audio_shape), np.float32))
  labels = jnp.asarray([3, 1])

  def loss(tunable):
    logits = nnx.merge(graphdef, tunable, frozen)(pixels.astype(jnp.float32) / 255, sound).logits
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

  value, grads = jax.jit(jax.value_and_grad(loss))(tunable)
  updates, _ = tx.update(grads, state.opt_state, tunable)
  want = optax.apply_updates(tunable, updates)
  batch = {"video": pixels, "spectrogram": sound, "label": labels}
  step = functools.partial(train_step, graphdef=graphdef, tx=tx, loss_fn=loss_of_step, draw_fn=draw)
  new, metrics = jax.jit(step)(state, batch, jax.random.key(0))
  assert float(metrics["loss"]) == pytest.approx(float(value), abs=1e-6)
  assert int(new.step) == 1
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), want, new.tunable)
  assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), frozen, new.frozen))


def loss_of_step(net, batch, dropped, remat, shared):
  logits = net(batch["video"], batch["spectrogram"], dropped=dropped, remat=remat).logits
  return {"ce": Term(optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]))}, {}


def draw(net, rngs, clips):
  return net.draw_drop_path(rngs, clips)


@pytest.mark.slow
def test_drop_path_rates_lie_on_a_line():
  rates = golden_json("train_tiny_64_7")["drop_path_rates"]
  net = build("tiny_64_7")
  for stream, encoder in (("image_encoder", net.image_encoder), ("audio_model", net.audio_encoder)):
    for i, rate in enumerate(encoder.drop_path_rates):
      assert [rate] * 2 == pytest.approx(rates[f"{stream}.blocks.{i}"], abs=1e-7)


@pytest.mark.slow
def test_drop_path_with_the_given_masks(monkeypatch):
  """Per frame in the image stream, per clip in the audio stream, both branches apart, scaled by 1 / keep."""
  given = golden("train_tiny_droppath_masks")
  streams = ("image", "audio")
  asked = iter(streams)

  def bernoulli(key, p, shape):
    """All draws of one stream: (blocks, branches, examples); those of the first block drop nothing."""
    del key
    stream = next(asked)
    names = [[f"{stream}.{i}.{branch}" for branch in (1, 2)] for i in range(1, 12)]
    np.testing.assert_allclose(p[1:, 0, 0], [1 - given[f"p/{first}"] for first, _ in names], atol=1e-7)
    masks = np.array([[given[f"mask/{name}"].reshape(-1) > 0 for name in pair] for pair in names])
    assert shape == (12, *masks.shape[1:]), stream
    return jnp.asarray(np.concatenate([np.ones_like(masks[:1]), masks]))

  monkeypatch.setattr(layers.jax.random, "bernoulli", bernoulli)
  net = build("tiny_64_7")
  for stream in streams:  # some rates were raised for this case, so that more is dropped
    raised = [float(given[f"p/{stream}.{i}.1"]) for i in range(1, 12)]
    getattr(net, f"{stream}_encoder").drop_path_rates = (0.0, *raised)
  graphdef, tunable, frozen = nnx.split(net, Tunable(PAPER_TUNABLE), ...)
  (loss, logits), grads = jax.value_and_grad(tiny_loss(graphdef, frozen, train=True), has_aux=True)(tunable)
  assert next(asked, None) is None  # both were asked for
  np.testing.assert_allclose(np.asarray(logits), given["logits"], atol=2e-5)
  assert float(loss) == pytest.approx(float(given["loss"]), abs=2e-6)
  for name, grad in as_original(grads).items():
    norm = float(given[f"gradnorm/{name}"])
    assert np.linalg.norm(grad) == pytest.approx(norm, rel=1e-4, abs=1e-7), name


def test_learning_rate_of_every_epoch():
  want = golden_json("lr_schedule")["lr_per_epoch"]
  schedule = by_epoch(cosine_rates(1e-4, 25), steps_per_epoch=7)
  for epoch, lr in enumerate(want):
    for step in (7 * epoch, 7 * epoch + 6):
      assert float(schedule(step)) == pytest.approx(lr, rel=2e-6, abs=1e-12)
