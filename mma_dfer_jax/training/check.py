"""What can be wrong with a run: all of it at once, before anything long starts."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import math
from typing import Any, Protocol, runtime_checkable

import jax
import ml_collections
import numpy as np

from mma_dfer_jax import parts
from mma_dfer_jax.config import model_config
from mma_dfer_jax.data.data_set import DataSet, open_data_set
from mma_dfer_jax.errors import UserError, listed
from mma_dfer_jax.layers import REMAT
from mma_dfer_jax.model import SLOTS, ModelConfig
from mma_dfer_jax.parameters import PRECISIONS, tunable_patterns
from mma_dfer_jax.training.sharding import check_batch_size, check_precision, make_mesh
from mma_dfer_jax.training.start import open_init
from mma_dfer_jax.weights.pretrained import open_pretrained


@runtime_checkable  # tests enforce annotations
class Start(Protocol):
  """Weights that a run starts from, checked, but not read yet."""

  @property
  def name(self) -> str:
    """What of the model it is for."""

  @property
  def sha256(self) -> str:
    """Of the file."""

  def read(self) -> Mapping[str, np.ndarray]:
    """Float32 parameters by path; a table of positions may lack the rows of prompts."""

  def describe(self) -> str:
    """What is taken and what is not, for people."""


@dataclasses.dataclass(frozen=True)
class Checked:
  """A run that can start: the model, the data, and the weights to start from."""

  model: ModelConfig
  data_set: DataSet
  train_split: str
  test_split: str
  starts: tuple[Start, ...]

  def records(self, split: str) -> Sequence[Mapping[str, Any]]:
    return self.data_set.records(split)

  @property
  def fresh_encoders(self) -> list[str]:
    """Streams that start from random weights."""
    if any(start.name == "init_from" for start in self.starts):
      return []
    started = {start.name for start in self.starts}
    return [s for s in ("image", "audio") if getattr(self.model, s).depth and s not in started]


def problems_of_values(config: ml_collections.ConfigDict) -> list[str]:
  """What is wrong with the values of a config, one line each; parts check their own fields."""
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
  if config.micro_batch < -1:
    problems.append(
      f"micro_batch={config.micro_batch} must be -1 (the whole batch), 0 (as the devices like it) or more"
    )
  for name in ("fold", "num_workers"):
    if d[name] < 0:
      problems.append(f"data.{name}={d[name]} must not be negative")
  if d.prefetch < 1:
    problems.append(f"data.prefetch={d.prefetch} must be positive")
  if config.mesh.data == 0 or config.mesh.data < -1 or config.mesh.fsdp < 1:
    problems.append(f"mesh={dict(config.mesh)}: data is positive or -1 (all that remain), fsdp is positive")
  return problems


@dataclasses.dataclass
class Found:
  """What could be found of a run; None what could not."""

  model: ModelConfig | None = None
  data_set: DataSet | None = None
  starts: list[Start] = dataclasses.field(default_factory=list)


def check_model_and_data(config: ml_collections.ConfigDict) -> tuple[Found, list[str]]:
  """Model, data set and weights of a run, and all that is wrong with them, whatever its fold and its devices."""
  problems, found = problems_of_values(config), Found()
  try:
    parts.read("losses", config.loss.to_dict())
  except UserError as error:
    problems.append(f"loss: {error}")
  try:
    if config.data.data_dir:
      found.data_set = open_data_set(config.data.data_dir, config.data.name)
  except UserError as error:
    problems.append(str(error))
  if found.data_set:
    problems += problems_of_classes(config, found.data_set)
    try:
      found.model = model_config(config.to_dict(), found.data_set.classes)
      problems += problems_of_tunable(config, found.model)
      tunable_patterns(found.model, config.tunable)
    except UserError as error:
      problems.append(str(error))
  if found.model:
    assert found.data_set is not None  # it says the classes
    found.starts, wrong = open_starts(config, found.model, found.data_set.classes)
    problems += wrong
  return found, problems


def problems_of_tunable(config: ml_collections.ConfigDict, model: ModelConfig) -> list[str]:
  """What parts are told to train while `config.tunable` overrides them."""
  chosen = {name: getattr(model, name) for name in SLOTS}
  return [
    f"model.{name}.tunable={part.tunable} has no effect, for config.tunable={tuple(config.tunable)} replaces what "
    "parts say themselves; set one of the two"
    for name, part in chosen.items()
    if config.tunable and part.tunable != type(part)().tunable
  ]


def check_run(config: ml_collections.ConfigDict, *, devices: bool = True) -> Checked:
  """Model, data set, splits and weights of a run, checked whole.

  Args:
    config: of the run.
    devices: whether it runs on the devices of this process; False: it says itself what its devices cannot do.
  Raises:
    UserError: with all problems, before anything long has started.
  """
  found, problems = check_model_and_data(config)
  problems += problems_of_devices(config) if devices else []
  splits = None
  if found.data_set:
    try:
      splits = found.data_set.train_and_test(config.data.fold)
      clips = sum(found.data_set.splits[split] for split in splits[0].split("+"))
      if clips < config.batch_size:
        problems.append(f"batch_size={config.batch_size}, but {splits[0]} has {clips} clips in all")
    except UserError as error:
      problems.append(str(error))
  if problems:
    raise listed("this run cannot start", problems)
  assert found.model is not None
  assert found.data_set is not None
  assert splits is not None  # or they would be among the problems
  return Checked(found.model, found.data_set, *splits, tuple(found.starts))


def problems_of_devices(config: ml_collections.ConfigDict) -> list[str]:
  """What the devices that are here cannot do."""
  problems = []
  checks = (
    lambda: check_precision(config.precision),
    lambda: check_batch_size(config.batch_size, "batch_size"),
    lambda: micro_batch_of(config),
    lambda: make_mesh(**config.mesh),
  )
  for check in checks:
    try:
      check()
    except UserError as error:
      problems.append(str(error))
  return problems


def micro_batch_of(config: ml_collections.ConfigDict) -> int:
  """Clips that go through the model at once.

  Raises:
    UserError: if they do not divide the batch, or not evenly over the devices.
  """
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


def problems_of_classes(config: ml_collections.ConfigDict, data_set: DataSet) -> list[str]:
  """Classes that the data set does not have."""
  problems, classes = [], data_set.classes
  if config.data.classes and tuple(config.data.classes) != classes:
    problems.append(f"data.classes={tuple(config.data.classes)}, but the data set has {classes}")
  if config.model.num_classes not in (0, len(classes)):
    problems.append(f"model.num_classes={config.model.num_classes}, but the data set has {len(classes)} classes: "
                    f"{', '.join(classes)}")  # fmt: skip
  return problems


def open_starts(
  config: ml_collections.ConfigDict, model: ModelConfig, classes: Sequence[str]
) -> tuple[list[Start], list[str]]:
  """The weights that a run starts from, later ones go over earlier ones; and what is wrong with them."""
  openers: list[Callable[[], Start]] = []
  problems = []
  if config.init_from:
    openers.append(lambda: open_init(config.init_from, model, classes))
  for stream in ("image", "audio"):
    path = config.pretrained[stream]
    if path and not getattr(model, stream).depth:
      problems.append(f"pretrained.{stream}={path}, but model.{stream} is none")
    elif path:
      openers.append(functools.partial(open_pretrained, stream, path, model))
  starts = []
  for opener in openers:
    try:
      starts.append(opener())
    except UserError as error:
      problems.append(str(error))
  return starts, problems
