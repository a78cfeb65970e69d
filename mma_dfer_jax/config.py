"""Which fields a run has, with default, unit and source; files in `configs/` change a few of them."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

from flax import traverse_util
import ml_collections

from mma_dfer_jax.ablations import ROWS
from mma_dfer_jax.errors import UserError, listed
from mma_dfer_jax.inputs import Inputs
from mma_dfer_jax.model import SLOTS, ModelConfig, read_model
from mma_dfer_jax.parts import part, successor
from mma_dfer_jax.paths import user_path


def default_config() -> ml_collections.ConfigDict:
  """The paper's recipe for DFEW, as released: `main.py` and `train_DFEW.sh` of the original."""
  c = ml_collections.ConfigDict()
  c.seed = 1  # of new parameters, clip order, augmentation and drop path
  c.num_epochs = 25  # train_DFEW.sh; the last epoch is the one that counts
  c.batch_size = 8  # clips per update over all devices and hosts; train_DFEW.sh
  c.learning_rate = 1e-4  # the highest; cosine over the epochs; main.py
  c.schedule = "epoch"  # constant within an epoch, as main.py; "step": another rate in every step
  c.warmup_epochs = 0  # with schedule=step, of a linear rise from warmup_learning_rate
  c.warmup_learning_rate = 0.0
  c.min_learning_rate = 0.0  # at the end of the cosine, with schedule=step
  c.layer_decay = (
    1.0  # factor of the learning rate from each block of an encoder to the one before; 1: the same for all
  )
  c.weight_decay = 1e-2  # AdamW; main.py
  c.decayed = "all"  # every tunable parameter, biases and gates included, as main.py; "kernels": only the layers' matrices
  c.mixup = 0.0  # alpha of Beta(alpha, alpha), the share of a clip that another one is added to; 0: none; 0.8 is usual
  c.cutmix = 0.0  # the same of boxes of another clip; 1.0 is usual. With both, each in half of the steps
  c.tunable = ()  # patterns of whole parameter paths; empty: those of each part (`model.fusion.tunable`, …)
  c.precision = "float32"  # or "bfloat16"; tunable parameters, moments, means and logits stay float32
  c.matmul_precision = "float32"  # of float32 on accelerators; "bfloat16", "tensorfloat32": coarser
  c.remat = "names"  # "none" keeps more for the backward pass, "layers" less and computes every layer twice
  # Clips that go through the model at once; an update is on the whole batch all the same, in the memory of these.
  c.micro_batch = 0  # 0: one for each device on CPUs, the whole batch on accelerators; -1: the whole batch

  c.inputs = ml_collections.ConfigDict(
    {k: v for k, v in dataclasses.asdict(Inputs()).items() if k != "points"}
  )
  _set_model(c)
  c.pretrained = ml_collections.ConfigDict()
  c.pretrained.image = ""  # MAE-Face's file, mae_face_pretrain_vit_base.pth; empty: random weights
  c.pretrained.audio = ""  # AudioMAE's file, pretrained.pth; empty: random weights
  c.pretrained.text = (
    ""  # class vectors of the head "text", .npz; docs/weights.md says how to make such a file
  )
  c.init_from = ""  # a run, a model folder or an authors' .pth: whatever fits is taken, the rest starts fresh; empty: none

  _set_data(c)
  c.mesh = ml_collections.ConfigDict()
  c.mesh.data = -1  # devices along which the batch is split; -1: all that remain
  c.mesh.fsdp = 1  # devices along which large parameters are split as well
  c.fsdp_min_size_mb = 4.0  # smaller tensors stay whole

  c.log_every_steps = 10  # print-freq of the original
  c.save_every_steps = 0  # besides the end of each epoch; 0: only then
  c.eval_every = 1  # epochs from one evaluation to the next; the last epoch is always evaluated
  c.keep_checkpoints = 2  # newest ones; the best by WAR is kept besides
  return c


def _set_model(c: ml_collections.ConfigDict) -> None:
  """The paper's parts, and its loss."""
  c.model = ml_collections.ConfigDict()
  c.model.num_classes = 0  # 0: as many as the data set has
  c.model.image = part("encoders", "mae")  # MAE-Face
  c.model.audio = part("encoders", "mae")  # AudioMAE
  c.model.prompts = part("adapters", "prompts")  # intra-modality adaptation
  c.model.fusion = part("fusion", "bottleneck")  # cross-modal alignment
  c.model.layer_pool = part("layer_pools", "last")
  c.model.frame_mask = part("frame_masks", "none")
  c.model.landmarks = part("landmarks", "none")
  c.model.temporal = part("temporal", "transformer")
  c.model.head = part("heads", "linear")
  c.model.auxiliary = part("auxiliary", "none")
  c.loss = part("losses", "cross_entropy")


def _set_data(c: ml_collections.ConfigDict) -> None:
  """Where the clips are, how they are read, and what training does to them."""
  c.data = ml_collections.ConfigDict()
  c.data.name = "clips"  # folder below data_dir, as written by mma_dfer_jax.data.prepare
  c.data.data_dir = ""  # required
  c.data.fold = 0  # test fold of fold1…foldN, the others train; 0: the splits `train` and `test`
  c.data.held_out = (
    0.0  # share of each class's training clips that only the temperature of the probabilities is fitted on
  )
  c.data.classes = ()  # if given, the class names that the data set must have, in this order
  c.data.crop_scale = (0.08, 1.0)  # share of the frame's area; one draw per clip; video_transform.py
  c.data.crop_ratio = (3 / 4, 4 / 3)  # width over height of the crop; video_transform.py
  c.data.balanced = (
    False  # draw a class for each place of a batch, then one of its clips; epochs stay as long
  )
  c.data.flip = 0.5  # probability of a mirrored clip; video_transform.py
  c.data.brightness = 0.5  # factor within 1 ± this; video_transform.py
  c.data.rand_augment = (
    0  # operations that RandAugment chooses for a clip, each then done half of the time; MAE-DFER 4
  )
  c.data.rand_magnitude = 7.0  # of them, from 0 to 10
  c.data.erase = 0.0  # probability of a box with noise in all frames of a clip; MAE-DFER 0.25
  c.data.num_workers = 8  # processes that decode, per host; 0: threads of the training process
  c.data.prefetch = 2  # batches that each of them keeps ready


def choose(c: ml_collections.ConfigDict, choices: str) -> ml_collections.ConfigDict:
  """Replaces parts of a config by name, and applies rows of `ablations.py`, as in `--config=FILE:fusion=none,no_prompts`.

  What the config has set of a part, and its successor has too, stays set; other fields get the successor's defaults.
  """
  places, problems = {name: slot.kind for name, slot in SLOTS.items()} | {"loss": "losses"}, []
  for choice in filter(None, choices.split(",")):
    place, equals, name = choice.partition("=")
    owner = c if place == "loss" else c.model
    try:
      if place in ROWS and not equals:
        ROWS[place].change(c)
      elif place in places:
        owner[place] = successor(places[place], owner[place], name)
      else:
        problems.append(f"there is no choice {choice!r}: choose parts as place=name; the places are "
                        f"{', '.join(places)}; rows of the ablations are {', '.join(ROWS)}")  # fmt: skip
    except UserError as error:
      row = f"{place}_{name}"
      problems.append(f"{error}" + f"; or did you mean the row {row}?" * (row in ROWS))
  if problems:
    raise listed("the choices after the colon do not fit", problems)
  return c


def with_row(config: ml_collections.ConfigDict, row: str) -> ml_collections.ConfigDict:
  """A copy of a config that a row has changed; UserError if the row does not fit, or changes nothing."""
  changed = ml_collections.ConfigDict(config.to_dict())
  ROWS[row].change(changed)
  if row != "base" and flat_config(changed.to_dict()) == flat_config(config.to_dict()):
    raise UserError("it changes nothing in this config")
  return changed


def model_config(config: Mapping[str, Any], classes: Sequence[str]) -> ModelConfig:
  """The model of a nested config; `num_classes=0` means as many as there are class names."""
  model = {**config["model"], "inputs": config["inputs"]}
  return read_model(model | {"num_classes": model["num_classes"] or len(classes)})


# Fields that are paths, of training or of pretraining.
PATHS = ("pretrained.image", "pretrained.audio", "pretrained.text", "init_from", "init.image", "init.audio",
         "data.data_dir")  # fmt: skip


def resolve_paths(config: ml_collections.ConfigDict) -> list[str]:
  """Makes the paths of a config absolute, so that they are found from any folder; what cannot be one is told and emptied."""
  problems = []
  for field in PATHS:
    *group, name = field.split(".")
    owner = config.get(group[0], {}) if group else config
    if name not in owner:
      continue
    try:
      owner[name] = owner[name] and user_path(owner[name])
    except UserError as error:
      problems.append(f"{field}: {error}")
      owner[name] = ""
  return problems


# What may differ when a run is resumed: how it runs, not what it computes (pretraining files are known by content).
MAY_CHANGE = (
  "remat", "micro_batch", *PATHS, "data.num_workers", "data.prefetch", "mesh.data", "mesh.fsdp", "fsdp_min_size_mb",
  "log_every_steps", "save_every_steps", "eval_every", "keep_checkpoints",
)  # fmt: skip
# What may differ between the hosts of one run, in run.json: where their files are, and who reads them.
OF_A_HOST = tuple(f"config.{field}" for field in (*PATHS, "data.num_workers", "data.prefetch"))


def flat_config(config: Mapping[str, Any]) -> dict[str, Any]:
  """A nested config as {"model.width": 768, …}; tuples as lists, so that it equals itself read from JSON."""
  flat = traverse_util.flatten_dict(dict(config), sep=".")
  return {key: list(value) if isinstance(value, tuple) else value for key, value in flat.items()}


def nested_config(flat: Mapping[str, Any]) -> dict[str, Any]:
  """{"model.width": 768, …} as a nested config."""
  return traverse_util.unflatten_dict(dict(flat), sep=".")
