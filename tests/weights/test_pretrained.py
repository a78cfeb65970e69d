"""MAE-Face's and AudioMAE's pretraining files: what fits is taken bit for bit, what does not is named."""

from pathlib import Path

from conftest import GOLDEN, TINY, golden_json, slice_of, tiny
from flax import nnx
import jax.numpy as jnp
import make_weights
import numpy as np
import pytest
from torch_files import write_torch_file

from mma_dfer_jax.errors import UserError
from mma_dfer_jax.model import MmaDfer
from mma_dfer_jax.parameters import put_over
from mma_dfer_jax.weights.files import open_weights
from mma_dfer_jax.weights.names import CheckpointMismatchError, name_table
from mma_dfer_jax.weights.positions import resize_positions
from mma_dfer_jax.weights.pretrained import open_pretrained


@pytest.fixture(scope="module")
def pretraining(tmp_path_factory) -> dict[str, Path]:
  """Both files as MAE's and AudioMAE's training scripts save them, decoders and all."""
  folder = tmp_path_factory.mktemp("pretraining")
  files = {}
  for stream, name, seed in (("image", "maeface", 102), ("audio", "audiomae", 101)):
    state = make_weights.make_state_dict(golden_json(f"spec_{name}_tiny"), seed)
    files[stream] = folder / f"{name}.pth"
    write_torch_file(files[stream], {"model": state, "epoch": 400, "scaler": {"scale": 65536.0}})
  return files


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
def test_two_files_build_the_model_of_the_original(pretraining):
  """149 tensors of each arrive bit for bit, and the first layers see what they see in the original."""
  golden, stored = golden_json("build_tiny_64_7"), np.load(GOLDEN / "build_tiny_64_7.npz")
  model = MmaDfer(TINY, rngs=nnx.Rngs(0))
  fresh_rows = {s: np.asarray(getattr(model, f"{s}_encoder").pos_embed[...]) for s in ("image", "audio")}
  images, audio, _ = make_weights.make_inputs(52, 1, 64)
  inputs = {"image": images.transpose(0, 1, 3, 4, 2), "audio": audio[:, 0]}
  for stream, theirs, patches in (("image", "image_encoder", 16), ("audio", "audio_model", 256)):
    encoder = open_pretrained(stream, pretraining[stream], TINY)
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
    np.testing.assert_array_equal(table[:, start:], fresh_rows[stream][:, start:])  # N(0, 1), not the file's
    assert 0.8 < table[:, start:].std() < 1.2
    tokens = np.array(ours.embed(jnp.asarray(inputs[stream]), jnp.zeros((6, 48))))
    tokens[:, start:] = stored[f"{stream}_tokens_in_prompt_rows"]  # drawn at random there
    np.testing.assert_allclose(slice_of(tokens, 512), stored[f"{stream}_tokens_in_slice"], atol=1e-5)
    out = ours.blocks[0](jnp.asarray(tokens))
    np.testing.assert_allclose(slice_of(out, 512), stored[f"{stream}_block0_out_slice"], atol=2e-5)


def test_a_pretraining_file_may_come_without_its_decoder(pretraining, tmp_path):
  state = {n: t.read() for n, t in open_weights(pretraining["image"]).tensors.items() if "decoder" not in n}
  del state["mask_token"]
  write_torch_file(tmp_path / "encoder.pth", {"model": state})
  encoder = open_pretrained("image", tmp_path / "encoder.pth", TINY)
  assert "150 tensors taken, positions as they are, 0 of its decoder left out" in encoder.describe()


def classifier(state: dict, outputs: int) -> dict:
  """What a fine-tuned or supervised model looks like: no decoder, a head."""
  kept = {n: t for n, t in state.items() if "decoder" not in n and n != "mask_token"}
  return kept | {"head.weight": np.zeros((outputs, 48), "f4"), "head.bias": np.zeros(outputs, "f4")}


@pytest.mark.parametrize(("stream", "make", "words"), [
  ("audio", lambda image, audio: image, "images (MAE-Face or MAE)"),
  ("image", lambda image, audio: audio, "spectrograms (AudioMAE)"),
  ("image", lambda image, audio: classifier(image, 1000), "an image classifier, a ViT with 1000 classes, as ImageNet has"),
  ("audio", lambda image, audio: classifier(audio, 527), "a fine-tuned AudioMAE with 527 classes, as AudioSet has"),
  ("audio", lambda image, audio: {"conv1.weight": np.zeros((64, 3, 7, 7), "f4")}, "no vision transformer at all"),
])  # fmt: skip
def test_a_wrong_pretraining_file_is_told_what_it_looks_like(pretraining, tmp_path, stream, make, words):
  states = [
    {n: t.read() for n, t in open_weights(pretraining[s]).tensors.items()} for s in ("image", "audio")
  ]
  write_torch_file(tmp_path / "wrong.pth", {"model": make(*states)})
  with pytest.raises(CheckpointMismatchError) as error:
    open_pretrained(stream, tmp_path / "wrong.pth", TINY)
  assert words in str(error.value)
  assert "wrong.pth" in str(error.value)
  for heading in ("missing (", "unexpected (", "wrong shape ("):
    assert heading in str(error.value)


def test_a_file_of_other_heads_is_refused(pretraining, tmp_path):
  """Shapes are the same for any number of heads; a file of ours says them."""
  state = {n: t.read() for n, t in open_weights(pretraining["image"]).tensors.items()}
  for heads in (4, 8):
    ours = {"model": {"image": {"name": "mae", "heads": heads}}}
    write_torch_file(tmp_path / f"{heads}.pth", {"model": state, "mma_dfer_jax": ours})
  assert open_pretrained("image", tmp_path / "4.pth", TINY).read()
  with pytest.raises(UserError, match=r"8\.pth has 8 attention heads, model\.image\.heads=4"):
    open_pretrained("image", tmp_path / "8.pth", TINY)


def test_ablated_models_take_them_too(pretraining):
  cfg = tiny(fusion={"name": "none"}, prompts={"name": "none"}, audio={"name": "none"})
  model = MmaDfer(cfg, rngs=nnx.Rngs(0))
  encoder = open_pretrained("image", pretraining["image"], cfg)
  put_over(model, encoder.read())
  kernel = np.asarray(model.image_encoder.blocks[0].mlp.fc1.kernel[...])
  np.testing.assert_array_equal(kernel, encoder.source.tensors["blocks.0.mlp.fc1.weight"].read().T)
