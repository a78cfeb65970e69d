"""Pretraining an encoder on unlabelled frames or sounds, as a task of `loop.py`: what is checked, its data, loss and schedule."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict
import numpy as np
import optax

from mma_dfer_jax import __version__, errors
from mma_dfer_jax.autoencoder import STREAMS, AutoencoderConfig, MaskedAutoencoder, read_autoencoder
from mma_dfer_jax.config import flat_config, resolve_paths
from mma_dfer_jax.data import unlabelled
from mma_dfer_jax.data.data_set import DataSet, open_data_set
from mma_dfer_jax.data.pipeline import Batch, stream_batches
from mma_dfer_jax.data.unlabelled import Crops, Examples, PretrainOrder, Sounds
from mma_dfer_jax.errors import UserError, listed
from mma_dfer_jax.parameters import PRECISIONS
from mma_dfer_jax.training import pretraining_report
from mma_dfer_jax.training.check import first_error, micro_batch_of, problems_of_devices, problems_of_values
from mma_dfer_jax.training.loop import Evaluated
from mma_dfer_jax.training.objective import Term, Terms
from mma_dfer_jax.training.run import Run
from mma_dfer_jax.training.sharding import batch_sharding
from mma_dfer_jax.training.state import TrainState, make_mae_optimizer, warm_up_and_cosine
from mma_dfer_jax.training.steps import Metrics
from mma_dfer_jax.weights.encoder_file import open_autoencoder
from mma_dfer_jax.weights.files import Start


@dataclasses.dataclass(frozen=True)
class CheckedPretraining:
  """A pretraining that can start."""

  model: AutoencoderConfig
  data_set: DataSet
  splits: str
  examples: Examples
  starts: tuple[Start, ...]


def check_pretraining(config: ConfigDict, *, devices: bool = True) -> CheckedPretraining:
  """Autoencoder, data and file to start from; UserError with all problems, before anything long has started."""
  problems = problems_of_values(config, ("num_steps", "report_every_steps"))
  if not 0 <= config.warm_up < 1:
    problems.append(f"warm_up={config.warm_up} must lie in [0, 1): it is a share of the steps")
  problems += resolve_paths(config)
  stream, starts = config.model.stream, list[Start]()
  model = data_set = examples = None
  splits = ""
  try:
    inputs = {**config.inputs.to_dict(), "num_frames": 1}
    model = read_autoencoder({**config.model.to_dict(), "inputs": inputs})
    other = next(name for name in STREAMS if name != stream)
    if config.init[other]:
      problems.append(f"init.{other}={config.init[other]}, but this config pretrains on {STREAMS[stream]}: "
                      f"give init.{stream}, or take the other config")  # fmt: skip
    if path := config.init[stream]:
      problems += first_error(lambda: starts.append(open_autoencoder(path, model)))
  except UserError as error:
    problems.append(str(error))
  try:
    if config.data.data_dir:
      data_set = open_data_set(config.data.data_dir, config.data.name, labelled=False)
      splits = "train" if "train" in data_set.splits else "+".join(data_set.splits)
      splits = data_set.train_and_test(config.data.fold)[0] if config.data.fold else splits
      if model:
        examples = unlabelled.open_examples(data_set, splits, stream, model.inputs.audio_shape[0])
  except UserError as error:
    problems.append(str(error))
  if devices:
    problems += problems_of_devices(config)
  if problems or not (model and data_set and examples):
    raise listed("this pretraining cannot start", problems)
  return CheckedPretraining(model, data_set, splits, examples, tuple(starts))


def describe_pretraining(config: ConfigDict, checked: CheckedPretraining) -> Run:
  """What identifies a pretraining, as JSON holds it."""
  run = {
    "config": flat_config(config.to_dict()),
    "classes": [],
    "recipe": checked.data_set.recipe | checked.model.inputs.to_fields(),
    "tunable": checked.model.tunable(),
    "starts": {start.name: start.sha256 for start in checked.starts},
    "data_set": {name: getattr(checked.data_set, name) for name in ("fingerprint", "splits")} | {"read": checked.splits},
    "version": __version__,
  }  # fmt: skip
  return json.loads(json.dumps(run))


class Pretraining:
  title, period, eval_every = "pretrain", "part", 1

  def __init__(self, config: ConfigDict, checked: CheckedPretraining, run: Run, *, pth: bool = False):
    self.config, self.checked, self.run, self.starts, self.pth = config, checked, run, checked.starts, pth
    c = config
    self.unit = STREAMS[checked.model.stream].removesuffix("s")
    hosts_of_run = jax.process_index(), jax.process_count()
    self.order = PretrainOrder(checked.examples, c.seed, c.batch_size, c.num_steps, *hosts_of_run)
    self.patterns = checked.model.tunable()
    self.micro_batch = micro_batch_of(c)
    self.steps_per_epoch, self.total_steps = c.report_every_steps, c.num_steps
    self.constants = ()

  def fresh_model(self) -> MaskedAutoencoder:
    return MaskedAutoencoder(self.checked.model, rngs=nnx.Rngs(params=self.config.seed))

  def optimizer(self) -> tuple[optax.Schedule, optax.GradientTransformation]:
    c = self.config
    highest = c.learning_rate * c.batch_size / 256
    rate = warm_up_and_cosine(highest, round(c.warm_up * c.num_steps), c.num_steps)
    return rate, make_mae_optimizer(rate, c.weight_decay)

  def whole(self, batch: Mapping[str, jax.Array], key: jax.Array, step: jax.Array) -> tuple[Mapping[str, jax.Array], None]:  # fmt: skip
    return batch, None

  def losses(self, model: MaskedAutoencoder, batch: Mapping[str, jax.Array], noise: jax.Array, remat: str, shared: None) -> tuple[Terms, Metrics]:  # fmt: skip
    (examples,) = batch.values()
    if examples.dtype != jnp.uint8:
      examples = examples.astype(PRECISIONS[self.config.precision])
    return {"restoring": Term(model.losses(model(examples, noise, remat)))}, {}

  def draw(self, model: MaskedAutoencoder, rngs: nnx.Rngs, examples: int) -> jax.Array:
    return model.draw_noise(rngs, examples)

  def abstract_batch(self, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    inputs, batch = self.checked.model.inputs, self.config.batch_size
    shapes = {"image": ("video", inputs.video_shape, jnp.uint8), "audio": ("spectrogram", inputs.audio_shape, jnp.float32)}  # fmt: skip
    name, shape, dtype = shapes[self.checked.model.stream]
    return {name: jax.ShapeDtypeStruct((batch, *shape), dtype, sharding=batch_sharding(mesh))}

  def make(self, *, augmented: bool = True, examples: int = 0) -> Callable[[int], Batch]:
    """What makes the batch of a step; `examples` replaces its size, in one process."""
    d, inputs, order = self.config.data, self.checked.model.inputs, self.order
    if examples:
      order = dataclasses.replace(order, batch_size=examples, host=0, num_hosts=1)
    if self.checked.model.stream == "image":
      crops = Crops(scale=tuple(d.crop_scale), ratio=tuple(d.crop_ratio), flip=d.flip)
      return functools.partial(unlabelled.make_frames, order, inputs, crops if augmented else None)
    sounds = Sounds(roll=d.roll, gain=d.gain) if augmented else None
    return functools.partial(unlabelled.make_sounds, order, inputs, sounds)

  def batches(self, start_step: int) -> contextlib.AbstractContextManager[Iterator[Mapping[str, np.ndarray]]]:
    d = self.config.data
    how = {"num_workers": d.num_workers, "prefetch": d.prefetch}
    return stream_batches(self.make(), start_step, self.total_steps, **how)

  def evaluator(
    self, graphdef: nnx.GraphDef, mesh: Mesh
  ) -> Callable[[TrainState, Path, Callable[[], bool]], Evaluated | None]:
    """There are no labels: a point of the loss curve is all."""
    return lambda state, workdir, stop: Evaluated({}, {}, "", None)

  def facts(self) -> list[str]:
    c, m, examples = self.config, self.checked.model, self.checked.examples
    passes = c.num_steps * c.batch_size / len(examples)
    of = f"{errors.count(len(examples), self.unit)} of {errors.count(examples.clips, 'clip')}"
    lines = [
      f"pretrain the {m.stream} encoder on {self.checked.splits}: {of}, labels unread; {c.num_steps:,} steps of "
      f"{errors.count(c.batch_size, self.unit)} are {passes:.1f} passes",
      f"the encoder sees {m.kept} of {m.patches} patches; the decoder of {errors.count(m.decoder.depth, 'block')} restores the others",
    ]
    folds = [split for split in self.checked.splits.split("+") if split.startswith("fold")]
    if not c.data.fold and len(folds) == len(self.checked.data_set.splits):
      lines.append("note: these are the clips of all folds, of those too that a fold tests on; leave them out with --config.data.fold=N")  # fmt: skip
    return lines if self.starts else [*lines, f"start: random weights (config.init.{m.stream} is empty)"]

  def report(self, workdir: Path, state: TrainState, history: Sequence[Mapping[str, Any]]) -> str:
    return pretraining_report.write(self, workdir, state, history)
