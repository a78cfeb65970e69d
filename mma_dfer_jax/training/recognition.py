"""Training a model to recognise emotions, as a task of `loop.py`: its clips, loss, schedule, evaluation and report."""

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
from ml_collections import ConfigDict
import numpy as np
import optax

from mma_dfer_jax import errors, parts
from mma_dfer_jax.data.pipeline import Augment, TrainOrder, load_batches, mean_faces
from mma_dfer_jax.model import Dropped, MmaDfer
from mma_dfer_jax.parameters import count, put_over, tunable_patterns
from mma_dfer_jax.training import sharding
from mma_dfer_jax.training.calibration import Some, calibrated, fitted_to, hold_out
from mma_dfer_jax.training.check import Checked, few_clips, micro_batch_of
from mma_dfer_jax.training.evaluation import evaluate_split, jit_eval
from mma_dfer_jax.training.loop import Evaluated
from mma_dfer_jax.training.mixing import mix, terms_of
from mma_dfer_jax.training.objective import Objective, Statistics, Terms, in_words
from mma_dfer_jax.training.predictions import against_votes, read_predictions
from mma_dfer_jax.training.report import percent, write_report
from mma_dfer_jax.training.run import Run
from mma_dfer_jax.training.state import TrainState, by_epoch, by_step, cosine_rates, make_optimizer
from mma_dfer_jax.training.steps import Batch, Metrics, abstract_batch, in_float32, model_inputs


def of_frames(outputs: parts.Outputs) -> Metrics:
  """What a frame mask does to each clip: its least weight of a kept frame, and the entropy of all weights, at most ln(kept)."""
  if "frame_weights" not in outputs.extra:
    return {}
  weights = jax.lax.stop_gradient(outputs.extra["frame_weights"])
  shares = weights / weights.sum(axis=1, keepdims=True)
  return {
    "frame_weight_min": jnp.where(weights > 0, weights, jnp.inf).min(axis=1),
    "frame_weight_entropy": jax.scipy.special.entr(shares).sum(axis=1),
  }


class Recognition:
  title, period, unit = "train", "epoch", "clip"

  def __init__(self, config: ConfigDict, checked: Checked, run: Run):
    self.config, self.checked, self.run, self.starts = config, checked, run, checked.starts
    c, data_set = config, checked.data_set
    records, hosts_of_run = data_set.records(checked.train_split), (jax.process_index(), jax.process_count())
    self.held_out: Sequence[Any] = ()
    if checked.held_out:
      chosen = hold_out(data_set.labels(checked.train_split), checked.held_out, c.seed)
      self.held_out = Some(records, chosen)
      records = Some(records, np.setdiff1d(np.arange(len(records)), chosen))
    labels: tuple[int, ...] = ()
    if c.data.balanced:
      of_all = data_set.labels(checked.train_split)
      labels = tuple(np.delete(of_all, chosen if checked.held_out else []).tolist())
    self.order = TrainOrder(records, c.seed, c.batch_size, c.num_epochs, *hosts_of_run, labels)
    self.votes = len(data_set.classes) if checked.loss.NEEDS_VOTES else 0  # of a batch
    self.train_clips = checked.train_clips
    self.objective = Objective(
      checked.loss, tuple(self.train_clips.values()), c.num_epochs, checked.model.auxiliary
    )
    self.patterns = tunable_patterns(checked.model, c.tunable)
    self.micro_batch = micro_batch_of(c)
    self.eval_every = c.eval_every
    self.steps_per_epoch = self.order.steps_per_epoch
    self.total_steps = self.steps_per_epoch * c.num_epochs
    rates, of_epoch = cosine_rates(c.learning_rate, c.num_epochs), np.int32(self.steps_per_epoch)
    self.constants = rates, of_epoch, self.objective.statistics

  def fresh_model(self) -> MmaDfer:
    model = MmaDfer(self.checked.model, rngs=nnx.Rngs(params=self.config.seed))
    if self.faces and model.cascade.targets:
      put_over(model, {f"cascade/targets/{name}_{what}": value for name, values in self.faces.items()
                       for what, value in zip(("mean", "deviation"), values, strict=True)})  # fmt: skip
    return model

  @functools.cached_property
  def faces(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Mean and deviation of the targets of auxiliary tasks in training; empty without such tasks."""
    model = self.checked.model
    return mean_faces(self.order, model.inputs, self.augment) if model.auxiliary.FACES else {}

  @property
  def constant_guess(self) -> dict[str, float]:
    """The losses of a model that says the mean of the training targets, whatever it sees."""
    unit = not self.faces or self.checked.model.auxiliary.targets == "unit"
    return {
      name: float((deviation**2).mean()) if unit else 1.0 for name, (_, deviation) in self.faces.items()
    }

  @property
  def augment(self) -> Augment:
    d = self.config.data
    ranges = {field.name: d[field.name] for field in dataclasses.fields(Augment)}
    ranges |= {name: tuple(d[name]) for name in ("crop_scale", "crop_ratio")}  # lists in a run.json
    return Augment(**ranges)

  def optimizer(self, rates: Any, steps_per_epoch: Any, statistics: Statistics) -> tuple[optax.Schedule, optax.GradientTransformation]:  # fmt: skip
    c, model = self.config, self.checked.model
    rate = by_epoch(rates, steps_per_epoch)
    if c.schedule == "step":
      ends = {"start": c.warmup_learning_rate, "end": c.min_learning_rate}
      rate = by_step(c.learning_rate, c.num_epochs, steps_per_epoch, warmup_epochs=c.warmup_epochs, **ends)
    depths = {"image_encoder": model.image.depth, "audio_encoder": model.audio.depth}
    how = {"kernels_only": c.decayed == "kernels", "depths": depths, "layer_decay": c.layer_decay}
    return rate, make_optimizer(rate, c.weight_decay, **how)

  def whole(self, batch: Batch, key: jax.Array, step: jax.Array, rates: Any, steps_per_epoch: Any, statistics: Statistics) -> tuple[Batch, Statistics]:  # fmt: skip
    shared = self.objective.whole(batch, step // steps_per_epoch, statistics)
    mixup, cutmix = self.config.mixup, self.config.cutmix
    return mix(batch, key, mixup, cutmix) if mixup or cutmix else batch, shared

  def losses(self, model: MmaDfer, batch: Batch, drawn: Dropped, remat: str, shared: Statistics) -> tuple[Terms, Metrics]:  # fmt: skip
    outputs = in_float32(model(*model_inputs(batch, self.config.precision), dropped=drawn, remat=remat))
    right = outputs.logits.argmax(axis=-1) == batch["label"]
    terms = terms_of(self.objective, outputs, batch, shared)
    terms = self.objective.with_tasks(terms, model, outputs, batch, shared)
    return terms, {"accuracy": 100.0 * right, **of_frames(outputs)}

  def draw(self, model: MmaDfer, rngs: nnx.Rngs, examples: int) -> Dropped:
    return model.draw_drop_path(rngs, examples)

  def abstract_batch(self, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    model = self.checked.model
    return abstract_batch(model.inputs, self.config.batch_size, mesh, self.votes, model.wants_faces)

  def batches(self, start_step: int) -> contextlib.AbstractContextManager[Iterator[Mapping[str, np.ndarray]]]:
    d = self.config.data
    model = self.checked.model
    how = {"start_step": start_step, "num_workers": d.num_workers, "prefetch": d.prefetch}
    return load_batches(
      self.order, model.inputs, self.augment, **how, votes=self.votes, faces=model.wants_faces
    )

  def evaluator(
    self, graphdef: nnx.GraphDef, mesh: Mesh
  ) -> Callable[[TrainState, Path, Callable[[], bool]], Evaluated | None]:
    c, d, batch_size = self.checked, self.config.data, self.config.batch_size
    eval_fn = jit_eval(graphdef, mesh, self.config.precision)

    def evaluate(state: TrainState, workdir: Path, stop: Callable[[], bool]) -> Evaluated | None:
      answer = functools.partial(
        evaluate_split, functools.partial(eval_fn, state.tunable, state.frozen), inputs=c.model.inputs,
        classes=c.data_set.classes, mesh=mesh, prefetch=d.prefetch, batch_size=batch_size, num_workers=d.num_workers,
        stop=stop,
      )  # fmt: skip
      held_out: dict[str, Any] = {}
      if self.held_out:
        found = answer(records=self.held_out, title="evaluate held-out clips")
        if found is None:
          return None
        without = found[0]["clips_without_sound"]
        held_out = {
          "clips": len(self.held_out),
          "clips_without_sound": without,
          "temperature": fitted_to(found[1]),
        }
      found = answer(records=c.data_set.records(c.test_split))
      if found is None:
        return None
      result, predictions = found
      if c.data_set.votes.get(c.test_split):
        result |= {"test_votes": against_votes(predictions, self.test_votes())}
      if held_out:
        result |= {"held_out": held_out}
        predictions = calibrated(predictions, held_out["temperature"])
      scores = predictions.scores
      if jax.process_index() == 0:
        predictions.write(workdir / "predictions.csv")
      numbers = {"test_loss": result["test_loss"], "test_war": scores.war, "test_uar": scores.uar}
      return Evaluated(
        result, numbers, f"test WAR {percent(scores.war)}, UAR {percent(scores.uar)}", scores.war
      )

    return evaluate

  @property
  def clips_without_votes(self) -> int:
    splits, data_set = self.checked.train_split.split("+"), self.checked.data_set
    return sum(data_set.splits[split] - data_set.votes.get(split, 0) for split in splits)

  @functools.cache  # noqa: B019 # one task in a process
  def test_votes(self) -> np.ndarray:
    return self.checked.data_set.votes_of(self.checked.test_split)

  def facts(self) -> list[str]:
    c, started = self.checked, {start.name for start in self.checked.starts}
    return [
      f"train on {c.train_split}: {errors.count(len(self.order.records), 'clip')}, {errors.count(self.order.steps_per_epoch, 'step')} an epoch; "
      f"test on {c.test_split}: {errors.count(c.data_set.splits[c.test_split], 'clip')}",
      *[f"held out of training, for the temperature: {errors.count(len(self.held_out), 'clip')}"] * bool(self.held_out),
      *(f"{stream} encoder: random weights, nothing pretrained (config.pretrained.{stream} is empty)"
        for stream in ("image", "audio") if getattr(c.model, stream).depth and not {stream, "init_from"} & started),
      *["balanced: each place of a batch draws a class first, then one of its clips"] * self.config.data.balanced,
      *[f"note: {without} of them have no votes; their target is their label"
        for without in [self.clips_without_votes] if self.votes and without],
      *(f"note: no training clip is {name}, so the model cannot learn it"
        for name, clips in self.train_clips.items() if not clips),
      *(f"a constant guess of {name}: loss {loss:.3g}" for name, loss in self.constant_guess.items()),
      *filter(None, [few_clips(self.train_clips)]),
    ]  # fmt: skip

  def report(self, workdir: Path, state: TrainState, history: Sequence[Mapping[str, Any]]) -> str:
    if jax.process_index():
      return ""
    c, data_set, held_out = self.checked, self.checked.data_set, history[-1].get("held_out", {})
    facts = {
      "train_clips": len(self.order.records),
      "train_clips_without_sound": sum(data_set.without_sound[split] for split in c.train_split.split("+"))
      - held_out.get("clips_without_sound", 0),
      "clips_seen": self.total_steps * self.config.batch_size,
      "tunable_parameters": count(state.tunable),
      "frozen_parameters": count(state.frozen),
      "peak_memory_gib": round(sharding.peak_memory(), 3),
      "started_from": "; ".join(start.describe() for start in c.starts)
      or "nothing: all parameters were drawn",
      "data_set": f"{self.config.data.name}, fingerprint {data_set.fingerprint[:12]}",
      "splits": f"train {c.train_split}, test {c.test_split}",
      "loss": in_words(c.loss, self.config.num_epochs),
      **{
        f"training_{name}": f"{history[-1][name]:.4f}"
        for name in ("ce", "ial", *parts.names("losses"))
        if name in history[-1]
      },
      "sampling": "balanced: a class first, then one of its clips"
      if self.order.labels
      else "every clip once an epoch",
      **({"clips_without_votes": self.clips_without_votes} if self.votes else {}),
      **(
        {
          "votes": "cross-entropy {cross_entropy:.4f}, {won:.2f} % of the votes won, {clips} test clips".format(
            **votes
          )
        }
        if (votes := history[-1].get("test_votes"))
        else {}
      ),
      **{f"training_loss_of_{name}": f"{history[-1][name]:.3g} since the evaluation before; {loss:.3g} of a constant guess"
         for name, loss in self.constant_guess.items() if name in history[-1]},
    }  # fmt: skip
    predictions = read_predictions(workdir / "predictions.csv")  # of the last evaluation
    how: dict[str, Any] = {"predictions": predictions, "held_out": held_out, "split": c.test_split}
    found = write_report(workdir, run=self.run, history=history, facts=facts, **how)
    clips = errors.count(found["clips"], "clip")
    shown = f"WAR {percent(found['war'])}, UAR {percent(found['uar'])} on {clips}"
    return f"{shown}; {workdir}/report.md"
