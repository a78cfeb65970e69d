"""Every field of a run, its default and where the number comes from; files in `configs/` change a few of them."""

from collections.abc import Mapping
import dataclasses
import math
from typing import Any

import ml_collections

from mma_dfer_jax.model import ModelConfig
from mma_dfer_jax.vit import PRECISIONS, REMAT

# 🔥 in the paper's figure; everything else is ❄. Regular expressions that must match a whole parameter path.
PAPER_TUNABLE = (
  r"(image|audio)_prompts/.*",  # intra-modality adaptation
  r"fusion/.*",  # cross-modal alignment
  r"joint_adaptation/.*",  # temporal adaptation and head
  r"temporal/.*",
  r"classifier/.*",
  r"(image|audio)_encoder/pos_embed",  # not in the figure, but trained by the released code: whole tables
)


def default_config() -> ml_collections.ConfigDict:
  """The paper's recipe for DFEW, as released: `main.py` and `train_DFEW.sh` of the original."""
  c = ml_collections.ConfigDict()
  c.seed = 1  # of new parameters, clip order, augmentation and drop path
  c.num_epochs = 25  # train_DFEW.sh; the last epoch is the one that counts
  c.batch_size = 8  # clips per update over all devices and hosts; train_DFEW.sh
  c.learning_rate = 1e-4  # at epoch 0; cosine to 0 over the epochs, constant within one; main.py
  c.weight_decay = 1e-2  # AdamW, on every tunable parameter, biases and gates included; main.py
  c.tunable = PAPER_TUNABLE
  c.precision = "float32"  # or "bfloat16"; tunable parameters, moments, means and logits stay float32
  c.matmul_precision = "float32"  # of float32 on accelerators; "bfloat16", "tensorfloat32": coarser
  c.remat = "names"  # "none" keeps more for the backward pass, "layers" less and computes every layer twice

  c.model = ml_collections.ConfigDict(dataclasses.asdict(ModelConfig()))
  c.model.num_classes = 0  # 0: as many as the data set has

  c.pretrained = ml_collections.ConfigDict()
  c.pretrained.image = ""  # MAE-Face's file, mae_face_pretrain_vit_base.pth; empty: random weights
  c.pretrained.audio = ""  # AudioMAE's file, pretrained.pth; empty: random weights

  c.data = ml_collections.ConfigDict()
  c.data.name = "clips"  # folder below data_dir, as written by mma_dfer_jax.data.prepare
  c.data.data_dir = ""  # required
  c.data.fold = 0  # test fold of fold1…foldN, the others train; 0: the splits `train` and `test`
  c.data.classes = ()  # if given, the class names that the data set must have, in this order
  c.data.crop_scale = (0.08, 1.0)  # share of the frame's area; one draw per clip; video_transform.py
  c.data.crop_ratio = (3 / 4, 4 / 3)  # width over height of the crop; video_transform.py
  c.data.flip = 0.5  # probability of a mirrored clip; video_transform.py
  c.data.brightness = 0.5  # factor within 1 ± this; video_transform.py
  c.data.num_workers = 8  # processes that decode, per host; 0: threads of the training process
  c.data.prefetch = 2  # batches that each of them keeps ready

  c.mesh = ml_collections.ConfigDict()
  c.mesh.data = -1  # devices along which the batch is split; -1: all that remain
  c.mesh.fsdp = 1  # devices along which large parameters are split as well
  c.fsdp_min_size_mb = 4.0  # smaller tensors stay whole

  c.log_every_steps = 10  # print-freq of the original
  c.save_every_steps = 0  # besides the end of each epoch; 0: only then
  c.keep_checkpoints = 2  # newest ones; the best by WAR is kept besides
  return c


# What may differ when a run is resumed: how it runs, not what it computes (pretraining files are known by content).
MAY_CHANGE = (
  "remat", "pretrained.image", "pretrained.audio", "data.data_dir", "data.num_workers", "data.prefetch", "mesh.data",
  "mesh.fsdp", "fsdp_min_size_mb", "log_every_steps", "save_every_steps", "keep_checkpoints",
)  # fmt: skip
# What may differ between the hosts of one run, in run.json: where their files are, and who reads them.
OF_A_HOST = ("config.pretrained.image", "config.pretrained.audio", "config.data.data_dir", "config.data.num_workers",
             "config.data.prefetch")  # fmt: skip


def problems_of(config: ml_collections.ConfigDict) -> list[str]:
  """What is wrong with the values of a config, one line each; sizes of the model are checked by ModelConfig."""
  positive = ("num_epochs", "batch_size", "learning_rate", "log_every_steps", "keep_checkpoints")
  problems = [f"{name}={config[name]} must be positive" for name in positive if not config[name] > 0]
  for name in ("learning_rate", "weight_decay"):
    if not math.isfinite(config[name]):
      problems.append(f"{name}={config[name]} must be finite")
  if config.weight_decay < 0:
    problems.append(f"weight_decay={config.weight_decay} must not be negative")
  if config.save_every_steps < 0:
    problems.append(f"save_every_steps={config.save_every_steps} must be 0 (end of epochs only) or more")
  if config.matmul_precision not in ("float32", "tensorfloat32", "bfloat16"):
    problems.append(f"matmul_precision={config.matmul_precision!r}: float32, tensorfloat32 or bfloat16")
  for name, choices in (("precision", PRECISIONS), ("remat", REMAT)):
    if config[name] not in choices:
      problems.append(f"{name}={config[name]!r}: choose one of {', '.join(choices)}")
  d = config.data
  if not d.data_dir:
    problems.append("data.data_dir is empty: give the folder that mma_dfer_jax.data.prepare wrote")
  if not (len(d.crop_scale) == 2 and 0 < d.crop_scale[0] <= d.crop_scale[1] <= 1):
    problems.append(f"data.crop_scale={d.crop_scale} must be (smallest, largest) share within (0, 1]")
  if not (len(d.crop_ratio) == 2 and 0 < d.crop_ratio[0] <= d.crop_ratio[1]):
    problems.append(f"data.crop_ratio={d.crop_ratio} must be (smallest, largest), both positive")
  for name in ("flip", "brightness"):
    if not 0 <= d[name] <= 1:
      problems.append(f"data.{name}={d[name]} must lie in [0, 1]")
  for name in ("fold", "num_workers"):
    if d[name] < 0:
      problems.append(f"data.{name}={d[name]} must not be negative")
  if d.prefetch < 1:
    problems.append(f"data.prefetch={d.prefetch} must be positive")
  if config.mesh.data == 0 or config.mesh.data < -1 or config.mesh.fsdp < 1:
    problems.append(f"mesh={dict(config.mesh)}: data is positive or -1 (all that remain), fsdp is positive")
  return problems


def flat_config(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """A nested config as {"model.width": 768, …}; tuples as lists, so that it equals itself read from JSON."""
  flat: dict[str, Any] = {}
  for key, value in config.items():
    if isinstance(value, dict):
      flat |= flat_config(value, f"{prefix}{key}.")
    else:
      flat[prefix + key] = list(value) if isinstance(value, tuple) else value
  return flat
