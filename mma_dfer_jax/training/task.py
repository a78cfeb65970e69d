"""What is trained on what, and how a split is evaluated; `loop.py` is the run itself."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import functools
from pathlib import Path
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import ml_collections
import numpy as np

from mma_dfer_jax import parts
from mma_dfer_jax.data.pipeline import Augment, EvalOrder, TrainOrder, load_batches
from mma_dfer_jax.inputs import Inputs
from mma_dfer_jax.model import DropPath, MmaDfer
from mma_dfer_jax.parameters import put_over, tunable_patterns
from mma_dfer_jax.progress import Progress
from mma_dfer_jax.training import hosts
from mma_dfer_jax.training.check import Checked
from mma_dfer_jax.training.predictions import Predictions
from mma_dfer_jax.training.report import percent, write_report
from mma_dfer_jax.training.sharding import compiler_options, replicated, to_global
from mma_dfer_jax.training.steps import Batch, Metrics, eval_step, in_float32, model_inputs


@dataclasses.dataclass(frozen=True)
class Classify:
  """Trains MMA-DFER on labelled clips: the model, its loss, its batches and its report. Source: `main.py` of the original."""

  config: ml_collections.ConfigDict
  checked: Checked

  @functools.cached_property
  def tunable(self) -> tuple[str, ...]:
    """Patterns of the paths of parameters that are trained."""
    return tunable_patterns(self.checked.model, self.config.tunable)

  @functools.cached_property
  def order(self) -> TrainOrder:
    c, records = self.config, self.checked.data_set.records(self.checked.train_split)
    return TrainOrder(records, c.seed, c.batch_size, c.num_epochs, jax.process_index(), jax.process_count())

  @functools.cached_property
  def train_clips(self) -> dict[str, int]:
    """By class."""
    data_set, splits = self.checked.data_set, self.checked.train_split.split("+")
    return {name: sum(data_set.clips[split][name] for split in splits) for name in data_set.classes}

  @functools.cached_property
  def _loss(self) -> parts.Loss:
    return parts.read("losses", self.config.loss.to_dict()).build(tuple(self.train_clips.values()))

  def init(self) -> MmaDfer:
    """The model that training starts from."""
    model = MmaDfer(self.checked.model, rngs=nnx.Rngs(params=self.config.seed))
    for start in self.checked.starts:
      put_over(model, start.read())
    return model

  def loss(self, model: MmaDfer, batch: Batch, drawn: DropPath, remat: str) -> tuple[jax.Array, Metrics]:
    """The loss of each clip (B,), and other numbers of each clip (B,) that are logged as means."""
    video, spectrogram = model_inputs(batch, self.config.precision)
    outputs = in_float32(model(video, spectrogram, dropped=drawn, remat=remat))
    right = outputs.logits.argmax(axis=-1) == batch["label"]
    return self._loss(outputs, batch), {"accuracy": 100.0 * right}

  def batches(self, start_step: int) -> contextlib.AbstractContextManager[Iterator[Mapping[str, np.ndarray]]]:
    """This host's training batches, from a step on."""
    d = self.config.data
    crop = {name: tuple(d[name]) for name in ("crop_scale", "crop_ratio")}  # lists in a run.json
    ranges, inputs = Augment(**crop, flip=d.flip, brightness=d.brightness), self.checked.model.inputs
    return load_batches(self.order, inputs, ranges, start_step=start_step, num_workers=d.num_workers,
                         prefetch=d.prefetch)  # fmt: skip

  def evaluator(self, graphdef: nnx.GraphDef, mesh: Mesh) -> Callable[..., tuple[dict[str, Any], Predictions] | None]:  # fmt: skip
    """(state, stop) -> what `evaluate_split` finds in the test split."""
    d, c = self.config.data, self.checked
    eval_fn = jit_eval(graphdef, mesh, self._loss, self.config.precision)
    records = c.data_set.records(c.test_split)

    return lambda state, stop: evaluate_split(
      functools.partial(eval_fn, state.tunable, state.frozen), records, c.model.inputs, c.data_set.classes, mesh=mesh,
      batch_size=self.config.batch_size, num_workers=d.num_workers, prefetch=d.prefetch, stop=stop,
    )  # fmt: skip

  def facts(self) -> list[str]:
    """Lines for people at the start."""
    c, order, started = self.checked, self.order, {start.name for start in self.checked.starts}
    return [
      f"train on {c.train_split}: {len(order.records)} clips, {order.steps_per_epoch} steps an epoch; "
      f"test on {c.test_split}: {c.data_set.splits[c.test_split]} clips",
      *(start.describe() for start in c.starts),
      *(f"{stream} encoder: random weights, nothing pretrained (config.pretrained.{stream} is empty)"
        for stream in ("image", "audio") if getattr(c.model, stream).depth and not {stream, "init_from"} & started),
      *(f"note: no training clip is {name}, so the model cannot learn it"
        for name, clips in self.train_clips.items() if not clips),
    ]  # fmt: skip

  def report(self, workdir: Path, run: Mapping[str, Any], history: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> str:  # fmt: skip
    """Writes the report of the run; returns its last line for people."""
    c, data_set = self.checked, self.checked.data_set
    facts = {
      "train_clips": len(self.order.records),
      "train_clips_without_sound": sum(data_set.without_sound[split] for split in c.train_split.split("+")),
      **facts,
      "started_from": "; ".join(start.describe() for start in c.starts) or "nothing: all parameters were drawn",
      "data_set": f"{self.config.data.name}, fingerprint {data_set.fingerprint[:12]}",
      "splits": f"train {c.train_split}, test {c.test_split}",
    }  # fmt: skip
    report = write_report(workdir, run=run, history=history, facts=facts, split=c.test_split)
    return f"WAR {percent(report['war'])}, UAR {percent(report['uar'])} on {report['clips']} clips; {workdir}/report.md"


def jit_eval(graphdef: nnx.GraphDef, mesh: Mesh, loss: parts.Loss, precision: str) -> Callable[..., Metrics]:
  """`eval_step`, jitted: (tunable, frozen, batch) -> its sums and logits, with the clips' places, on all devices."""

  def evaluate(tunable, frozen, batch):
    found = eval_step(tunable, frozen, batch, graphdef=graphdef, loss=loss, precision=precision)
    return found | {"label": batch["label"], "position": batch["position"]}

  return jax.jit(evaluate, out_shardings=replicated(mesh), compiler_options=compiler_options())


def evaluate_split(
  eval_fn: Callable[[Batch], Metrics], records: Sequence[Any], inputs: Inputs, classes: Sequence[str], *, mesh: Mesh,
  batch_size: int, num_workers: int = 0, prefetch: int = 2, without: str = "", title: str = "evaluate",
  stop: Callable[[], bool] = lambda: False,
) -> tuple[dict[str, Any], Predictions] | None:  # fmt: skip
  """Every clip of a split through the model, once.

  Args:
    eval_fn: as `jit_eval` makes it, with parameters.
    classes: names, in the order of the logits.
    without: "sound" or "picture" to take that away from every clip.
    stop: asked before each batch; if true, the evaluation ends without a result.
  Returns:
    {confusion_matrix (C, C), test_loss (mean), clips_without_sound} and, in all processes, the answers to all clips;
    None if stopped.
  """
  order = EvalOrder(records, 0, batch_size, 1, jax.process_index(), jax.process_count())
  share, clips, answers = batch_size // order.num_hosts, [], []
  with (
    load_batches(order, inputs, num_workers=num_workers, prefetch=prefetch, without=without) as batches,
    Progress(title, len(records), leave=False, show=order.host == 0) as bar,
  ):
    sums: Any = None
    for step, batch in enumerate(batches):
      if stop():
        return None
      position = step * batch_size + order.host * share + np.arange(share, dtype=np.int32)
      found = dict(eval_fn(to_global({**batch, "position": position}, mesh)))
      answers.append({name: found.pop(name) for name in ("position", "label", "logits")})
      sums = found if sums is None else jax.tree.map(jnp.add, sums, found)
      clips += [clip.decode() for clip in batch["clip_id"].tolist()]
      bar.update(min(batch_size, len(records) - step * batch_size))
  sums = jax.tree.map(np.asarray, sums)
  predictions = _in_order(clips, answers, share, len(records), classes)
  if not (sums["confusion"] == predictions.scores.confusion).all() or sums["confusion"].sum() != len(records):
    raise RuntimeError(f"{sums['confusion'].sum()} clips were counted, the split has {len(records)}")
  return {
    "confusion_matrix": sums["confusion"].tolist(),
    "test_loss": float(sums["loss"]) / len(records),
    "clips_without_sound": int(sums["without_sound"]),
  }, predictions


def _in_order(clips: Sequence[str], answers: Sequence[Metrics], share: int, number: int, classes: Sequence[str]) -> Predictions:  # fmt: skip
  """The answers of all processes in the order of the split, without those that only fill up the last batch.

  Args:
    clips: names of this process's share of all batches; a batch has `share` clips of each process.
    answers: position, label and logits of each batch.
    number: of clips in the split.
  """
  found = {name: np.concatenate([np.asarray(answer[name]) for answer in answers]) for name in answers[0]}
  real = np.argsort(found["position"])[:number]
  names = np.array(hosts.gathered(clips), object).reshape(-1, len(answers), share).swapaxes(0, 1).ravel()
  return Predictions.of_logits(classes, names[:number], found["label"][real], found["logits"][real])
