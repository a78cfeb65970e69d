"""What differs between kinds of training: here, that of a classifier of clips; `loop.py` has what is the same."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import functools
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import ml_collections
import numpy as np
import tqdm

from mma_dfer_jax import parts
from mma_dfer_jax.data.pipeline import Augment, EvalOrder, TrainOrder, eval_batches, train_batches
from mma_dfer_jax.inputs import Inputs
from mma_dfer_jax.model import DropPath, MmaDfer
from mma_dfer_jax.parameters import put_over, tunable_patterns
from mma_dfer_jax.training.check import Checked
from mma_dfer_jax.training.report import percent, write_report
from mma_dfer_jax.training.scores import Scores
from mma_dfer_jax.training.sharding import compiler_options, replicated, to_global
from mma_dfer_jax.training.state import TrainState
from mma_dfer_jax.training.steps import (
  Batch,
  Metrics,
  abstract_batch,
  eval_step,
  in_float32,
  model_inputs,
)

Clips = Iterator[Mapping[str, np.ndarray]]


@runtime_checkable  # tests enforce annotations
class Task(Protocol):
  """What `loop.fit` asks of a kind of training."""

  best: str  # name of the score by which the best checkpoint is kept; higher is better

  @property
  def order(self) -> TrainOrder:
    """Which clip comes when."""

  @property
  def tunable(self) -> tuple[str, ...]:
    """Patterns of the paths of parameters that are trained."""

  def init(self) -> nnx.Module:
    """The model that training starts from."""

  def draw(self, model: Any, rngs: nnx.Rngs, clips: int) -> Any:
    """What is drawn for a step, before its clips are divided into micro-batches: the last axis is of clips."""

  def loss(self, model: Any, batch: Batch, drawn: Any, remat: str) -> tuple[jax.Array, Metrics]:
    """The loss of each clip (B,), and other numbers of each clip (B,) that are logged as means."""

  def batches(self, start_step: int) -> contextlib.AbstractContextManager[Clips]:
    """This host's training batches, from a step on."""

  def abstract_batch(self, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and types of a training batch."""

  def evaluator(self, graphdef: nnx.GraphDef, mesh: Mesh) -> Callable[..., dict[str, Any] | None]:
    """(state, stop) -> what an epoch came to; None if it was stopped.

    `result` goes to the history, `logged` (numbers by name) to the log, `score` is `best`, `title` a line for people.
    """

  def facts(self) -> list[str]:
    """Lines for people at the start."""

  def report(self, workdir: Path, run: Mapping[str, Any], history: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> str:  # fmt: skip
    """Writes what came of the run; returns its last line for people."""


@dataclasses.dataclass(frozen=True)
class Classify:
  """Trains MMA-DFER on labelled clips. Source: `main.py` of the original."""

  config: ml_collections.ConfigDict
  checked: Checked

  best = "war"

  @property
  def inputs(self) -> Inputs:
    return self.checked.model.inputs

  @functools.cached_property
  def tunable(self) -> tuple[str, ...]:
    return tunable_patterns(self.checked.model, self.config.tunable)

  @functools.cached_property
  def order(self) -> TrainOrder:
    c, records = self.config, self.checked.records(self.checked.train_split)
    return TrainOrder(records, c.seed, c.batch_size, c.num_epochs, jax.process_index(), jax.process_count())

  @functools.cached_property
  def _loss(self) -> parts.Loss:
    clips = self.checked.data_set.clips
    splits = self.checked.train_split.split("+")
    per_class = tuple(sum(clips[split][name] for split in splits) for name in self.checked.data_set.classes)
    fields = self.config.loss.to_dict()
    return parts.read("losses", fields).build(per_class)

  def init(self) -> MmaDfer:
    model = MmaDfer(self.checked.model, rngs=nnx.Rngs(params=self.config.seed))
    for start in self.checked.starts:
      put_over(model, start.read())
    return model

  def draw(self, model: MmaDfer, rngs: nnx.Rngs, clips: int) -> DropPath:
    return model.draw_drop_path(rngs, clips)

  def loss(self, model: MmaDfer, batch: Batch, drawn: DropPath, remat: str) -> tuple[jax.Array, Metrics]:
    video, spectrogram = model_inputs(batch, self.config.precision)
    outputs = in_float32(model(video, spectrogram, dropped=drawn, remat=remat))
    right = outputs.logits.argmax(axis=-1) == batch["label"]
    return self._loss(outputs, batch), {"accuracy": 100.0 * right}

  @contextlib.contextmanager
  def batches(self, start_step: int) -> Iterator[Clips]:
    d = self.config.data
    ranges = Augment(
      crop_scale=tuple(d.crop_scale), crop_ratio=tuple(d.crop_ratio), flip=d.flip, brightness=d.brightness
    )
    with train_batches(
      self.order, self.inputs, ranges, start_step=start_step, num_workers=d.num_workers, prefetch=d.prefetch
    ) as batches:
      yield batches

  def abstract_batch(self, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    return abstract_batch(self.inputs, self.config.batch_size, mesh)

  def evaluator(self, graphdef: nnx.GraphDef, mesh: Mesh) -> Callable[..., dict[str, Any] | None]:
    d, classes = self.config.data, self.checked.data_set.classes
    evaluate = jit_eval(graphdef, mesh, self._loss, self.config.precision)
    records = self.checked.records(self.checked.test_split)

    def of_epoch(state: TrainState, stop: Callable[[], bool]) -> dict[str, Any] | None:
      result = evaluate_split(
        evaluate, state.tunable, state.frozen, records, self.inputs, mesh=mesh, batch_size=self.config.batch_size,
        num_workers=d.num_workers, prefetch=d.prefetch, stop=stop,
      )  # fmt: skip
      if result is None:
        return None
      scores = Scores(np.array(result["confusion_matrix"]), classes)
      return {
        "result": result,
        "logged": {"test_loss": result["test_loss"], "test_war": scores.war, "test_uar": scores.uar},
        "score": scores.war,
        "title": f"test WAR {percent(scores.war)}, UAR {percent(scores.uar)}",
      }

    return of_epoch

  def facts(self) -> list[str]:
    c, order = self.checked, self.order
    lines = [
      f"train on {c.train_split}: {len(order.records)} clips, {order.steps_per_epoch} steps an epoch; "
      f"test on {c.test_split}: {len(c.records(c.test_split))} clips"
    ]
    lines += [start.describe() for start in c.starts]
    for stream in c.fresh_encoders:
      lines.append(
        f"{stream} encoder: random weights, nothing pretrained (config.pretrained.{stream} is empty)"
      )
    for name in c.data_set.classes:
      if not sum(c.data_set.clips[split][name] for split in c.train_split.split("+")):
        lines.append(f"note: no training clip is {name}, so the model cannot learn it")
    return lines

  def report(self, workdir: Path, run: Mapping[str, Any], history: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> str:  # fmt: skip
    c, data_set = self.checked, self.checked.data_set
    facts = {
      "train_clips": len(self.order.records),
      "train_clips_without_sound": sum(data_set.without_sound[split] for split in c.train_split.split("+")),
      **facts,
      "started_from": "; ".join(start.describe() for start in c.starts)
      or "nothing: all parameters were drawn",
      "data_set": f"{self.config.data.name}, fingerprint {data_set.fingerprint[:12]}",
      "splits": f"train {c.train_split}, test {c.test_split}",
    }
    report = write_report(workdir, run=run, history=history, facts=facts)
    return f"WAR {percent(report['war'])}, UAR {percent(report['uar'])} on {report['clips']} clips; {workdir}/report.md"


def jit_eval(graphdef: nnx.GraphDef, mesh: Mesh, loss: parts.Loss, precision: str) -> Callable[..., Metrics]:
  """`eval_step`, jitted: (tunable, frozen, batch) -> sums on all devices."""

  def evaluate(tunable, frozen, batch):
    return eval_step(tunable, frozen, batch, graphdef=graphdef, loss=loss, precision=precision)

  return jax.jit(evaluate, out_shardings=replicated(mesh), compiler_options=compiler_options())


def evaluate_split(
  eval_fn: Callable[[nnx.State, nnx.State, Batch], Metrics],
  tunable: nnx.State,
  frozen: nnx.State,
  records: Sequence[Any],
  inputs: Inputs,
  *,
  mesh: Mesh,
  batch_size: int,
  num_workers: int = 0,
  prefetch: int = 2,
  without: str = "",
  title: str = "evaluate",
  stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any] | None:
  """Every clip of a split through the model, once.

  Args:
    eval_fn: as `jit_eval` makes it.
    without: "sound" or "picture" to take that away from every clip.
    stop: asked before each batch; if true, the evaluation ends without a result.
  Returns:
    confusion_matrix (C, C), test_loss (mean), clips_without_sound; or None if stopped.
  """
  order = EvalOrder(records, 0, batch_size, 1, jax.process_index(), jax.process_count())
  chief = jax.process_index() == 0
  with eval_batches(order, inputs, num_workers=num_workers, prefetch=prefetch, without=without) as batches:
    sums: Any = None
    bar = tqdm.tqdm(total=len(records), desc=title, unit="clip", leave=False, disable=not chief)
    for batch in batches:
      if stop():
        return None
      result = eval_fn(tunable, frozen, to_global(batch, mesh))
      sums = result if sums is None else jax.tree.map(jnp.add, sums, result)
      bar.update(min(batch_size, len(records) - bar.n))
    bar.close()
  sums = jax.tree.map(np.asarray, sums)
  if sums["confusion"].sum() != len(records):
    raise RuntimeError(f"{sums['confusion'].sum()} clips were counted, the split has {len(records)}")
  return {
    "confusion_matrix": sums["confusion"].tolist(),
    "test_loss": float(sums["loss"]) / len(records),
    "clips_without_sound": int(sums["without_sound"]),
  }
