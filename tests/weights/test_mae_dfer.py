"""MAE-DFER's files: the encoder is taken bit for bit, a fine-tuned file becomes a model that answers, the rest is named."""

import json
from pathlib import Path
from typing import Any

from conftest import GOLDEN, TINY
from flax import nnx
import jax.numpy as jnp
import make_weights
import numpy as np
import pytest
from torch_files import write_torch_file

from mma_dfer_jax.engines.engine import load_model
from mma_dfer_jax.errors import UserError
from mma_dfer_jax.model import PAPER, MmaDfer, ModelConfig, read_model
from mma_dfer_jax.parameters import parameter_shapes, put_over
from mma_dfer_jax.weights.folder import convert_checkpoint, open_folder
from mma_dfer_jax.weights.mma_dfer import export
from mma_dfer_jax.weights.pretrained import open_pretrained


def model(**image: Any) -> ModelConfig:
  """As the golden tiny model, with the published number of regions, which a file does not show otherwise."""
  fields = {slot: {"name": name} for slot, name in PAPER.items()}
  fields |= {name: {"name": "none"} for name in ("audio", "prompts", "fusion")}
  sizes = {"width": 32, "depth": 3, "heads": 4, "mlp_dim": 128} | image
  temporal = {"name": "mean", "width": 0}
  fields |= {"image": {"name": "lgi", **sizes}, "temporal": temporal}
  return read_model({"num_classes": 7, "inputs": {"image_size": 160}, **fields})


@pytest.fixture(scope="module")
def tuned() -> dict[str, np.ndarray]:
  """A fine-tuned model by their names."""
  shapes = json.loads((GOLDEN / "lgi_tiny.json").read_text())["tensors"] | {"lg_region_tokens": [8, 32]}
  return {name: 0.1 * make_weights.rng_for(9, name).standard_normal(shape, np.float32)
          for name, shape in shapes.items()}  # fmt: skip


@pytest.fixture(scope="module")
def pretrained(tuned) -> dict[str, np.ndarray]:
  """What their pretraining saves of such a model."""
  encoder = {
    f"encoder.{name}": tensor
    for name, tensor in tuned.items()
    if "fc_norm" not in name and "head" not in name
  }
  more = ["encoder.norm.weight", "encoder.norm.bias", "mask_token", "encoder_to_decoder.weight",
          "decoder.blocks.0.norm1.weight", "decoder.head.weight"]  # fmt: skip
  return encoder | {name: np.ones((3, 4), np.float32) for name in more}


def save(path: Path, state: dict, key: str = "model") -> Path:
  write_torch_file(path, {key: state, "epoch": 99} if key else state)
  return path


def check_taken(taken: dict[str, np.ndarray], tensors: dict[str, np.ndarray]) -> None:
  """Some of each layout, bit for bit."""
  block = "image_encoder/blocks/2"
  for path, theirs in (
    ("image_encoder/region_tokens", tensors["lg_region_tokens"]),
    ("image_encoder/patch_embed/kernel", tensors["patch_embed.proj.weight"].transpose(2, 3, 4, 1, 0)),
    (f"{block}/third_attn/kv/kernel", tensors["blocks.2.third_attn.kv.weight"].T),
    (f"{block}/third_attn/q/bias", tensors["blocks.2.third_attn.q_bias"]),
    (f"{block}/first_attn/v_bias", tensors["blocks.2.first_attn.v_bias"]),
    (f"{block}/third_attn_norm1/scale", tensors["blocks.2.third_attn_norm1.weight"]),
  ):
    assert taken[path].tobytes() == np.ascontiguousarray(theirs).tobytes(), path


def test_a_pretraining_file_gives_all_but_the_last_norm(pretrained, tuned, tmp_path):
  start = open_pretrained("image", save(tmp_path / "p.pth", pretrained), model())
  taken = start.read()
  encoder = {path for path in parameter_shapes(model()) if path.startswith("image_encoder/")}
  assert encoder - taken.keys() == {"image_encoder/fc_norm/scale", "image_encoder/fc_norm/bias"}
  check_taken(taken, tuned)
  for words in ("MAE-DFER's LGI-Former, an encoder of clips", "fc_norm fresh", "2 tensors of pretraining left out",
                "encoder_to_decoder.weight"):  # fmt: skip
    assert words in start.describe()


@pytest.mark.parametrize("key", ["module", ""])
def test_a_fine_tuned_file_gives_the_encoder_with_its_norm(tuned, tmp_path, key):
  start = open_pretrained("image", save(tmp_path / "t.pth", tuned, key), model())
  taken = start.read()
  assert taken["image_encoder/fc_norm/scale"].tobytes() == tuned["fc_norm.weight"].tobytes()
  check_taken(taken, tuned)
  assert "fine-tuned to 7 classes" in start.describe()
  assert "its classifier left out" in start.describe()


def test_what_does_not_fit_is_named(tuned, pretrained, tmp_path):
  wrong = {name: tensor for name, tensor in tuned.items() if name != "blocks.1.mlp.fc2.bias"}
  wrong |= {"blocks.1.gamma": np.ones(3, np.float32), "blocks.0.norm2.weight": np.ones(31, np.float32)}
  with pytest.raises(UserError) as refused:
    open_pretrained("image", save(tmp_path / "w.pth", wrong), model())
  for words in (
    "missing (1): blocks.1.mlp.fc2.bias",
    "unexpected (1): blocks.1.gamma",
    r"blocks.0.norm2.weight (31,), not (32,)",
  ):
    assert words in str(refused.value)
  good = save(tmp_path / "t.pth", tuned)
  with pytest.raises(
    UserError, match="another size, depth=3, mlp_dim=128, but this model has depth=2, mlp_dim=64"
  ):
    open_pretrained("image", good, model(depth=2, mlp_dim=64))
  with pytest.raises(UserError, match="looks like MAE-DFER's LGI-Former, fine-tuned to 7 classes"):
    open_pretrained("image", good, TINY)
  with pytest.raises(UserError, match="without a classifier, not a model that answers"):
    convert_checkpoint(save(tmp_path / "p.pth", pretrained), tmp_path / "out", classes="dfew")


def test_a_fine_tuned_file_becomes_a_model_that_answers(tuned, tmp_path):
  about = convert_checkpoint(save(tmp_path / "t.pth", tuned), tmp_path / "out", classes="dfew")
  assert {"inputs", "image.region", "image.readout", "heads"} == about["assumed"].keys()
  engine = load_model(tmp_path / "out")
  assert (engine.about.inputs.num_frames, engine.about.inputs.image_size) == (16, 160)
  video = np.random.default_rng(0).integers(0, 256, (1, 16, 160, 160, 3), np.uint8)
  sound = np.zeros((1, 512, 128), np.float32)
  net = MmaDfer(model(), rngs=nnx.Rngs(0))
  encoder = open_pretrained("image", tmp_path / "t.pth", model()).read()
  put_over(
    net, {**encoder, "classifier/kernel": tuned["head.weight"].T, "classifier/bias": tuned["head.bias"]}
  )
  np.testing.assert_allclose(
    engine(video, sound), net(jnp.asarray(video), jnp.asarray(sound)).logits, rtol=0, atol=1e-5
  )
  with pytest.raises(
    UserError, match=r"no place for these parts of the model:\n  - model\.image=lgi, image_encoder"
  ):
    export(open_folder(tmp_path / "out"), tmp_path / "back.pth", None)
