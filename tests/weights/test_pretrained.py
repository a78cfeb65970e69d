"""MAE-Face's and AudioMAE's pretraining files: what fits is taken bit for bit, what does not is named."""

from pathlib import Path
import re

from conftest import GOLDEN, TINY, golden_json, slice_of
from flax import nnx
import jax
import jax.numpy as jnp
import make_weights
from model_folders import model_of, random_parameters, with_layers
import numpy as np
import pytest
from torch_files import write_torch_file

from mma_dfer_jax.errors import UserError
from mma_dfer_jax.model import MmaDfer
from mma_dfer_jax.parameters import flat_params, put_over
from mma_dfer_jax.weights.names import CheckpointMismatchError, name_table
from mma_dfer_jax.weights.positions import resize_positions
from mma_dfer_jax.weights.pretrained import open_pretrained

CFG = with_layers(2)


@pytest.fixture(scope="module")
def states() -> dict[str, dict[str, np.ndarray]]:
  """Tensors that MAE's and AudioMAE's training scripts save, decoders and all."""
  return {stream: make_weights.make_state_dict(golden_json(f"spec_{name}_tiny"), seed)
          for stream, name, seed in (("image", "maeface", 102), ("audio", "audiomae", 101))}  # fmt: skip


def open_state(stream: str, state: dict, file: Path, cfg=CFG, **others):
  write_torch_file(file, {"model": state, "epoch": 400, "scaler": {"scale": 65536.0}, **others})
  return open_pretrained(stream, file, cfg)


def shallow(state: dict, *, decoder: bool = True) -> dict:
  """The first two blocks."""
  later = r"blocks\.([2-9]|1\d)\." + ("" if decoder else "|decoder|mask_token")
  return {name: tensor for name, tensor in state.items() if not re.match(later, name)}


@pytest.mark.parametrize(("name", "grid", "target", "stored"), [
  ("audio_pos", (64, 8), (32, 8), "audio_64x8_to_32x8"),
  ("vision_pos", (14, 14), (10, 10), "vision_14_to_10"),
  ("vision_pos", (14, 14), (24, 24), "vision_14_to_24"),
])  # fmt: skip
def test_positions_are_resized_as_torch_does(name, grid, target, stored):
  expected = np.load(GOLDEN / "pos_embed.npz")[stored]
  table = make_weights.rng_for(31, name).standard_normal((1, 1 + grid[0] * grid[1], 48), dtype=np.float32)
  found = resize_positions(table[..., : expected.shape[-1]], grid, target)
  np.testing.assert_allclose(found, expected, atol=1e-6, rtol=0)
  assert resize_positions(table, grid, grid).tobytes() == table.tobytes()


@pytest.mark.slow
def test_two_files_build_the_model_of_the_original(states, tmp_path):
  """149 tensors of each arrive bit for bit, and the first layers see what they see in the original."""
  golden, stored = golden_json("build_tiny_64_7"), np.load(GOLDEN / "build_tiny_64_7.npz")
  tables = [f"{stream}_encoder/pos_embed" for stream in ("image", "audio")]

  @jax.jit  # compiles what makes the two tables, and nothing else of a fresh model
  def fresh():
    found = flat_params(nnx.state(MmaDfer(TINY, rngs=nnx.Rngs(0))))
    return {path: found[path][...] for path in tables}

  fresh_tables = {path: np.asarray(table) for path, table in fresh().items()}
  model = model_of(TINY, random_parameters(TINY) | fresh_tables)
  images, audio, _ = make_weights.make_inputs(52, 1, 64)
  inputs = {"image": images.transpose(0, 1, 3, 4, 2), "audio": audio[:, 0]}
  for stream, theirs, patches in (("image", "image_encoder", 16), ("audio", "audio_model", 256)):
    encoder = open_state(stream, states[stream], tmp_path / stream, TINY)
    lists = golden["missing_and_unexpected"][stream]
    assert f"{len(lists['unexpected'])} of its decoder left out" in encoder.describe()
    rows = [row for row in name_table(TINY) if row.path in encoder.taken]
    taken = {name.removeprefix(f"{theirs}.") for row in rows for name in row.torch_names}
    assert taken - {"pos_embed"} == set(golden["taken"][theirs]) - {"pos_embed"}
    assert len(taken - {"pos_embed"}) == golden["n_taken"][theirs]
    put_over(model, encoder.read())
    ours = getattr(model, f"{stream}_encoder")
    table = np.asarray(ours.pos_embed[...])
    start, end = golden["prompt_rows"][stream]
    assert (start, end) == (1 + patches, 7 + patches)
    np.testing.assert_array_equal(
      table[:, start:], fresh_tables[f"{stream}_encoder/pos_embed"][:, start:]
    )  # N(0, 1), not the file's
    assert 0.8 < table[:, start:].std() < 1.2
    embed = nnx.jit(lambda encoder, x: encoder.embed(x, jnp.zeros((6, 48))))
    tokens = np.array(embed(ours, jnp.asarray(inputs[stream])))
    tokens[:, start:] = stored[f"{stream}_tokens_in_prompt_rows"]  # drawn at random there
    np.testing.assert_allclose(slice_of(tokens, 512), stored[f"{stream}_tokens_in_slice"], atol=1e-5)
    out = nnx.jit(lambda block, x: block(x))(ours.blocks[0], jnp.asarray(tokens))
    np.testing.assert_allclose(slice_of(out, 512), stored[f"{stream}_block0_out_slice"], atol=2e-5)


def classifier(state: dict, outputs: int) -> dict:
  """What a fine-tuned or supervised model looks like: no decoder, a head."""
  head = {"head.weight": np.zeros((outputs, 48), "f4"), "head.bias": np.zeros(outputs, "f4")}
  return shallow(state, decoder=False) | head


@pytest.mark.parametrize(("stream", "make", "words"), [
  ("audio", lambda image, audio: image, "images (MAE-Face or MAE)"),
  ("image", lambda image, audio: audio, "spectrograms (AudioMAE)"),
  ("image", lambda image, audio: classifier(image, 1000), "an image classifier, a ViT with 1000 classes, as ImageNet has"),
  ("audio", lambda image, audio: classifier(audio, 527), "a fine-tuned AudioMAE with 527 classes, as AudioSet has"),
  ("audio", lambda image, audio: {"conv1.weight": np.zeros((64, 3, 7, 7), "f4")}, "no vision transformer at all"),
])  # fmt: skip
def test_a_wrong_pretraining_file_is_told_what_it_looks_like(states, tmp_path, stream, make, words):
  with pytest.raises(CheckpointMismatchError) as error:
    open_state(stream, make(*map(shallow, states.values())), tmp_path / "wrong.pth")
  for word in (words, "wrong.pth", "missing (", "unexpected (", "wrong shape ("):
    assert word in str(error.value)


def test_heads_are_compared_and_a_decoder_may_be_missing(states, tmp_path):
  """Shapes are the same for any number of heads; a file of ours says them."""
  state = shallow(states["image"], decoder=False)
  ours = {"model": {"image": {"name": "mae", "heads": 4}}}
  encoder = open_state("image", state, tmp_path / "4.pth", mma_dfer_jax=ours)
  facts = "30 tensors taken, positions resized from (14, 14) to (2, 2), 0 of its decoder left out"
  assert facts in encoder.describe()
  ours["model"]["image"]["heads"] = 8
  with pytest.raises(
    UserError, match=r"(?s)8\.pth was pretrained .*heads=8 in the file, heads=4 in the config"
  ):
    open_state("image", state, tmp_path / "8.pth", mma_dfer_jax=ours)


def test_a_compiled_encoder_in_its_wrappers_is_read_and_said(states, tmp_path):
  wrapped = {f"model._orig_mod.{name}": tensor for name, tensor in shallow(states["image"]).items()}
  start = open_state("image", wrapped, tmp_path / "x.pth")
  assert "removed from the beginnings of names: model._orig_mod." in start.describe()
  assert start.taken.keys() == open_state("image", shallow(states["image"]), tmp_path / "y.pth").taken.keys()


def test_ablated_models_take_them_too(states, tmp_path):
  cfg = with_layers(2, fusion={"name": "none"}, prompts={"name": "none"}, audio={"name": "none"})
  model = model_of(cfg, random_parameters(cfg))
  put_over(model, open_state("image", shallow(states["image"]), tmp_path / "x.pth", cfg).read())
  kernel = np.asarray(model.image_encoder.blocks[0].mlp.fc1.kernel[...])
  np.testing.assert_array_equal(kernel, states["image"]["blocks.0.mlp.fc1.weight"].T)
