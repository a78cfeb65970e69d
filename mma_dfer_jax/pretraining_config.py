"""Which fields a pretraining has, with default, unit and source; `configs/pretrain_*.py` choose the stream."""

import runpy

import ml_collections

from mma_dfer_jax.errors import UserError
from mma_dfer_jax.help import shipped_configs
from mma_dfer_jax.parts import part, successor

# By stream: MAE on images and AudioMAE on sounds (arXiv 2111.06377, 2207.06405, and their released scripts).
RECIPES = {
  "image": {"batch_size": 256, "learning_rate": 1.5e-4, "weight_decay": 0.05, "mask_ratio": 0.75, "decoder_depth": 8},
  "audio": {"batch_size": 64, "learning_rate": 2e-4, "weight_decay": 1e-4, "mask_ratio": 0.8, "decoder_depth": 16},
}  # fmt: skip


def pretraining_config(stream: str, choices: str = "") -> ml_collections.ConfigDict:
  """MAE's recipe for frames, or AudioMAE's for sounds.

  Args:
    stream: "image" or "audio".
    choices: what stands after the colon of --config, parted by commas: the config whose encoder is pretrained (`demo`,
      `clips`; if not given, `dfew`, the paper's), and `decoder=local` or `decoder=full`.
  """
  recipe = RECIPES[stream]
  c = ml_collections.ConfigDict()
  c.seed = 1  # of new parameters, order, augmentation and masks
  c.num_steps = 50_000  # updates
  c.batch_size = recipe["batch_size"]  # frames or sounds of an update, over all devices and hosts
  c.learning_rate = recipe["learning_rate"]  # of 256 examples; times batch_size / 256 it is the highest
