"""What can be wrong with a run: all of it at once, before anything long starts."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import math
from typing import Any

import jax
import ml_collections

from mma_dfer_jax import parts
from mma_dfer_jax.config import model_config, resolve_paths
from mma_dfer_jax.data.data_set import LANDMARKS, NO_LANDMARKS, TIMES, DataSet, open_data_set
from mma_dfer_jax.errors import UserError, count, listed
from mma_dfer_jax.layers import REMAT
from mma_dfer_jax.model import SLOTS, ModelConfig
from mma_dfer_jax.parameters import PRECISIONS, parameter_shapes, tunable_patterns
from mma_dfer_jax.training.calibration import LARGEST_SHARE, number_held_out
from mma_dfer_jax.training.objective import first_weighted_epoch
from mma_dfer_jax.training.sharding import check_batch_size, check_precision, make_mesh
from mma_dfer_jax.training.start import open_init
from mma_dfer_jax.weights import class_vectors
from mma_dfer_jax.weights.files import Start
from mma_dfer_jax.weights.pretrained import open_pretrained

# Clips of a class below which a read-out of frozen encoders is no worse than training: docs/training.md, "Small sets".
FEW = 20


@dataclasses.dataclass(frozen=True)
class Checked:
  """A run that can start: the model, the data, and the weights to start from, not read yet."""

  model: ModelConfig
  data_set: DataSet
  train_split: str
  test_split: str
  loss: parts.LossPart
  starts: tuple[Start, ...]
  held_out: float = 0.0  # share of the training clips that is not trained on

  @property
  def train_clips(self) -> dict[str, int]:
    """Training clips of each class."""
    found = clips_of(self.data_set, self.train_split)
    return {name: clips - number_held_out(clips, self.held_out) for name, clips in found.items()}


def clips_of(data_set: DataSet, splits: str) -> dict[str, int]:
  """Clips of each class in a split, or in several: "fold1+fold3"."""
  of_splits = [data_set.clips[split] for split in splits.split("+")]
  return {name: sum(clips[name] for clips in of_splits) for name in data_set.classes}


def few_clips(clips: Mapping[str, int]) -> str:
  """What to know before training on so few clips of each class; empty if there are enough."""
  short = [name for name, number in clips.items() if number < FEW]
  least = f"{min(clips, key=lambda name: clips[name])}: {min(clips.values())}"
  return (f"note: fewer than {FEW} training clips in {len(short)} of {len(clips)} classes ({least}): a read-out of frozen encoders is "
          "often better than training then, within seconds; try mma_dfer_jax.probe first (docs/training.md)") * bool(short)  # fmt: skip


def first_error(check: Callable[..., Any]) -> list[str]:
  """The words of its UserError; none if there is none."""
  try:
    check()
  except UserError as error:
    return [str(error)]
  return []


def problems_of_values(
  config: ml_collections.ConfigDict, positive: Sequence[str] = ("num_epochs", "eval_every")
) -> list[str]:
  """What is wrong with the values of a config, of training or pretraining, one line each; parts check their own fields.

  Args:
    positive: fields that must be above 0, besides those that both kinds have.
  """
  positive = (*positive, "batch_size", "learning_rate", "log_every_steps", "keep_checkpoints")
  c, d = config, config.data
  choices = {"matmul_precision": ("float32", "tensorfloat32", "bfloat16"), "precision": PRECISIONS, "remat": REMAT}  # fmt: skip
  rules = [
    *((f"{name}={c[name]}", "must be positive", c[name] > 0) for name in positive),
    *((f"{name}={c[name]}", "must be finite", math.isfinite(c[name])) for name in ("learning_rate", "weight_decay")),
    (f"weight_decay={c.weight_decay}", "must not be negative", not c.weight_decay < 0),
    (f"seed={c.seed}", "must not be negative", c.seed >= 0),
    (f"save_every_steps={c.save_every_steps}", "must be 0 (no more than the others) or more", c.save_every_steps >= 0),
    *((f"{name}={c[name]!r}:", f"choose one of {', '.join(of)}", c[name] in of) for name, of in choices.items()),
    ("data.data_dir", "is empty: give the folder that mma_dfer_jax.data.prepare wrote", bool(d.data_dir)),
    *((f"data.crop_scale={scale}", "must be (smallest, largest) share within (0, 1]",
      len(scale) == 2 and 0 < scale[0] <= scale[1] <= 1) for scale in [d.get("crop_scale")] if scale is not None),
    *((f"data.crop_ratio={ratio}", "must be (smallest, largest), both positive",
      len(ratio) == 2 and 0 < ratio[0] <= ratio[1]) for ratio in [d.get("crop_ratio")] if ratio is not None),
    *((f"data.{name}={d[name]}", "must lie in [0, 1]", 0 <= d[name] <= 1) for name in ("flip", "brightness", "erase") if name in d),
    *((f"data.rand_augment={n}", "must be 0 (off) or more", n >= 0) for n in [d.get("rand_augment")] if n is not None),
    *((f"data.rand_magnitude={x}", "must lie in [0, 10]", 0 <= x <= 10) for x in [d.get("rand_magnitude")] if x is not None),
    *((f"data.held_out={share}", f"must lie in [0, {LARGEST_SHARE}]", 0 <= share <= LARGEST_SHARE)
      for share in [d.get("held_out")] if share is not None),
    (f"micro_batch={c.micro_batch}", "must be -1 (the whole batch), 0 (as suits the devices) or more",
     c.micro_batch >= -1),
    *((f"data.{name}={d[name]}", "must not be negative", d[name] >= 0) for name in ("fold", "num_workers")),
    (f"data.prefetch={d.prefetch}", "must be positive", d.prefetch >= 1),
    (f"mesh={dict(c.mesh)}:", "data is positive or -1 (all that remain), fsdp is positive",
     (c.mesh.data == -1 or c.mesh.data > 0) and c.mesh.fsdp >= 1),
  ]  # fmt: skip
  return [f"{what} {rule}" for what, rule, holds in rules if not holds] + _of_recipe(c)


def _of_recipe(c: ml_collections.ConfigDict) -> list[str]:
  """What is wrong with learning rates, decay and mixing of a training; pretraining has its own."""
  if "schedule" not in c:
    return []
  by_step = ("warmup_epochs", "warmup_learning_rate", "min_learning_rate")
  rules = [
    *((f"{name}={c[name]!r}:", f"choose {' or '.join(of)}", c[name] in of)
      for name, of in {"schedule": ("epoch", "step"), "decayed": ("all", "kernels")}.items()),
    (f"layer_decay={c.layer_decay}", "must lie in (0, 1]", 0 < c.layer_decay <= 1),
    (f"warmup_epochs={c.warmup_epochs}", f"must lie from 0 to below num_epochs={c.num_epochs}",
     c.warmup_epochs == 0 or 0 < c.warmup_epochs < c.num_epochs),
    *((f"{name}={c[name]}", f"must lie from 0 to learning_rate={c.learning_rate}", 0 <= c[name] <= c.learning_rate)
      for name in by_step[1:]),
    *((f"{name}={c[name]}", "must be 0 (off) or more", 0 <= c[name] < math.inf) for name in ("mixup", "cutmix")),
    *((f"{name}={c[name]}", "needs schedule=step", not c[name] or c.schedule == "step") for name in by_step),
  ]  # fmt: skip
  return [f"{what} {rule}" for what, rule, holds in rules if not holds]


def loss_of(config: ml_collections.ConfigDict) -> parts.LossPart:
  """Of a config; UserError if it has other fields or values than it may have."""
  loss: parts.LossPart = parts.read("losses", config.loss.to_dict())
  return loss


def check_model_and_data(config: ml_collections.ConfigDict) -> tuple[ModelConfig | None, DataSet | None, list[Start], list[str]]:  # fmt: skip
  """Model, data set and weights of a run, as far as they are found, and all that is wrong but for fold and devices."""
  if "stream" in config.model:
    raise UserError("this config is for pretraining; give one for training, as --config=configs/dfew.py")
  problems = problems_of_values(config)
  problems += resolve_paths(config)
  problems += [f"loss: {error}" for error in first_error(lambda: loss_of(config))]
  starts: list[Start] = []
  model, data_set = None, None
  try:
    if config.data.data_dir:
      data_set = open_data_set(config.data.data_dir, config.data.name)
      classes, number = data_set.classes, config.model.num_classes
      if config.data.classes and tuple(config.data.classes) != classes:
        problems.append(f"data.classes={tuple(config.data.classes)}, but the data set has {classes}")
      if number not in (0, len(classes)):
        names = ", ".join(classes)
        problems.append(f"model.num_classes={number}, but the data set has {len(classes)} classes: {names}")
      model = model_config(config.to_dict(), classes)
      why = f"config.tunable={tuple(config.tunable)} replaces the patterns of all parts; set one of the two"
      chosen = {name: getattr(model, name) for name in SLOTS if config.tunable}
      problems += [f"model.{name}.tunable={part.tunable} has no effect, for {why}"
                   for name, part in chosen.items() if part.tunable != type(part)().tunable]  # fmt: skip
      tunable_patterns(model, config.tunable)
      if model.inputs.frame_choice == "time" and TIMES not in data_set.recipe:
        problems.append("inputs.frame_choice=time, but the data set does not keep the times of its frames: prepare it "
                        "again with --keep_times --overwrite")  # fmt: skip
      if model.wants_faces and LANDMARKS not in data_set.recipe:
        problems.append(NO_LANDMARKS)
      if model.wants_faces:
        mixed = {name: config[name] for name in ("mixup", "cutmix")}
        mixed["data.rand_augment"] = config.data.rand_augment
        problems += [f"{name}={value} moves pixels, but not the boxes and points of faces that the model needs: set it to 0"
                     for name, value in mixed.items() if value]  # fmt: skip
  except UserError as error:
    problems.append(str(error))
  if model and data_set:
    starts, wrong = open_starts(config, model, data_set.classes)
    problems += wrong
  return model, data_set, starts, problems


def open_starts(config: ml_collections.ConfigDict, model: ModelConfig, classes: Sequence[str]) -> tuple[list[Start], list[str]]:  # fmt: skip
  """The weights that a run starts from, later ones go over earlier ones; and what is wrong with them."""
  starts: list[Start] = []
  problems = []
  if config.init_from:
    problems += first_error(lambda: starts.append(open_init(config.init_from, model, classes)))
  for stream in ("image", "audio"):
    path = config.pretrained[stream]
    if path and not getattr(model, stream).depth:
      problems.append(f"pretrained.{stream}={path}, but model.{stream} is none")
    elif path:
      problems += first_error(lambda: starts.append(open_pretrained(stream, path, model)))  # noqa: B023 # called at once
  path, wanted = config.pretrained.text, class_vectors.PATH in parameter_shapes(model)
  if path and not wanted:
    head = parts.place_of(model.head).partition("/")[2]
    problems.append(f"pretrained.text={path}, but model.head is {head}")
  elif path:
    problems += first_error(lambda: starts.append(class_vectors.open_text(path, model, classes)))
  elif wanted and not any(class_vectors.PATH in start.taken for start in starts):
    needs = "the head text needs a file of class vectors; docs/weights.md says how to make one"
    problems.append(f"pretrained.text is empty: {needs}")
  return starts, problems


def check_run(config: ml_collections.ConfigDict, *, devices: bool = True) -> Checked:
  """Model, data set, splits and weights of a run; UserError with all problems, before anything long has started.

  With `devices=False` the run, in a process of its own, checks its devices itself.
  """
  model, data_set, starts, problems = check_model_and_data(config)
  if devices:
    problems += problems_of_devices(config)
  train = test = ""
  if data_set:
    try:
      train, test = data_set.train_and_test(config.data.fold)
      problems += problems_of_clips(config, model, data_set, train, jax.device_count() if devices else 1)
    except UserError as error:
      problems.append(str(error))
  if problems or not (model and data_set):
    raise listed("this run cannot start", problems)
  share = config.data.get("held_out", 0.0)
  return Checked(model, data_set, train, test, loss_of(config), tuple(starts), share)


def problems_of_clips(
  config: ml_collections.ConfigDict,
  model: ModelConfig | None,
  data_set: DataSet,
  train: str,
  devices: int = 1,
) -> list[str]:
  """Why these training splits are too few for what is asked for; the model is None if it is not known."""
  of_class, share = clips_of(data_set, train), config.data.get("held_out", 0.0)
  share = share if 0 <= share <= LARGEST_SHARE else 0.0  # of which more is said elsewhere
  left = {name: number - number_held_out(number, share) for name, number in of_class.items()}
  held_out, found = sum(of_class.values()) - sum(left.values()), list[str]()
  if share and not held_out:
    found.append(f"data.held_out={share}, but no class of {train} has two clips: set it to 0")
  if model and not first_error(lambda: loss_of(config)):
    found += loss_of(config).problems_with(model.head, left) + _of_sampling(config, left)
    if loss_of(config).NEEDS_VOTES and not data_set.votes:
      found.append("loss=votes needs the votes of people, but the data set keeps none: prepare it again with --overwrite from "
                   "an archive that has them (DFEW: Annotation/annotation.csv)")  # fmt: skip
  whose = f"{train}{' without those held out' * bool(held_out)} has"
  return found + too_few_clips(config.batch_size, sum(left.values()), whose, devices)


def _of_sampling(config: ml_collections.ConfigDict, clips: Mapping[str, int]) -> list[str]:
  """Why classes would not be weighed, drawn or mixed as asked for, with so many training clips of each."""
  found, loss = list[str](), loss_of(config)
  if loss.reweight_from and (first := first_weighted_epoch(loss, config.num_epochs)) >= config.num_epochs:
    found.append(f"loss.reweight_from={loss.reweight_from}: class weights would act from epoch {first + 1} on, but there are "
                 f"{config.num_epochs}: lower it, or train longer")  # fmt: skip
  if config.data.balanced and (without := [name for name, number in clips.items() if not number]):
    found.append(f"data.balanced=True cannot be used, for no training clip is {' or '.join(without)}")
  mixed = [f"{name}={config[name]}" for name in ("mixup", "cutmix") if config[name]]
  if mixed and config.batch_size == 1:
    found.append(f"{' and '.join(mixed)}, but with batch_size=1 there is no other clip to mix with")
  return found


def problems_of_devices(config: ml_collections.ConfigDict) -> list[str]:
  checks = ((check_precision, config.precision), (check_batch_size, config.batch_size), (micro_batch_of, config),
            (lambda mesh: make_mesh(**mesh), config.mesh))  # fmt: skip
  return [text for check, value in checks for text in first_error(lambda: check(value))]  # noqa: B023 # called at once


def too_few_clips(batch_size: int, clips: int, whose: str, devices: int = 1) -> list[str]:
  """What is wrong if a batch needs more clips than there are, and the largest batch that is possible."""
  if clips >= batch_size:
    return []
  fitting, multiple = clips // devices * devices, f" (a multiple of the {devices} devices)" * (devices > 1)
  advice = f"set --config.batch_size={fitting} or lower{multiple}" if fitting else "prepare more of them"
  return [f"batch_size={batch_size}, but {whose} {count(clips, 'clip')} in all; {advice}"]


def micro_batch_of(config: ml_collections.ConfigDict) -> int:
  """Clips that go through the model at once; UserError if they do not divide the batch, or not evenly over the devices."""
  devices, batch = jax.device_count(), config.batch_size
  size = config.micro_batch
  if size == 0 and jax.default_backend() == "cpu" and batch % devices == 0:
    size = devices  # measured: the memory of one clip, and no slower than two at once (docs/performance.md)
  if size <= 0:
    return batch
  if batch % size:
    raise UserError(f"micro_batch={size} must divide batch_size={batch}")
  check_batch_size(size, "micro_batch")
  return size
