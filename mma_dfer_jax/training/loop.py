"""How a run goes: resume, step, log, evaluate, save, stop. Read `fit`, then `_Run.train`."""

from collections.abc import Callable, Mapping
import functools
import math
from pathlib import Path
import time
from typing import Any

from flax import nnx
import jax
from ml_collections import ConfigDict
import numpy as np

from mma_dfer_jax import errors, parts
from mma_dfer_jax.data.pipeline import Augment, TrainOrder, load_batches
from mma_dfer_jax.disk import free_bytes
from mma_dfer_jax.errors import UserError
from mma_dfer_jax.model import DropPath, MmaDfer
from mma_dfer_jax.parameters import cast, count, parameter_table, put_over, tunable_patterns
from mma_dfer_jax.progress import Progress, say
from mma_dfer_jax.training import hosts, sharding
from mma_dfer_jax.training.check import Checked, micro_batch_of
from mma_dfer_jax.training.checkpoints import Checkpointer, load_frozen, save_frozen
from mma_dfer_jax.training.evaluation import evaluate_split, jit_eval
from mma_dfer_jax.training.report import MetricsLog, percent, write_report
from mma_dfer_jax.training.run import Run, check_same_run, claim_workdir
from mma_dfer_jax.training.state import TrainState, by_epoch, cosine_rates, create_train_state, make_optimizer
from mma_dfer_jax.training.steps import Batch, Metrics, abstract_batch, in_float32, model_inputs, train_step


def fit(config: ConfigDict, checked: Checked, run: Run, workdir: Path, *, stop: hosts.Stop) -> int:
  """Trains to the end of the last epoch, from where the folder is; returns the exit status.

  The folder is new, or of the same run. `stop` is asked once a step; if true, everything is saved and the run ends.
  """
  here = _Run(config, checked, run, workdir, stop)
  start_step = int(here.state.step)
  if here.chief:
    print(parameter_table(here.state.tunable, here.state.frozen))
    print("\n".join(here.facts()))
    print(f"{jax.device_count()} {jax.default_backend()} device(s), {here.micro_batch} clip(s) at once")
    if start_step:
      print(f"resuming after step {start_step} of {here.total_steps}")
  stopped = here.train(start_step)
  here.checkpointer.close()
  if here.log:
    here.log.close()
  if stopped and stop.stopped:
    reason = stop.signal.received.name if stop.signal.received else "a signal to one of the processes"
    when = "before the first step; run the same command to start again"
    if here.saved_step is not None:
      when = f"after step {here.saved_step}; to resume, run the same command"
    print(f"stopped by {reason} {when}")
    return stop.signal.exit_status
  if here.chief:
    print(here.report())
  return 0


class _Run:
  """The state of a run between its start and its end, and what has been written about it."""

  def __init__(self, config: ConfigDict, checked: Checked, run: Run, workdir: Path, stop: hosts.Stop):
    self.config, self.checked, self.run, self.workdir, self.stop = config, checked, run, workdir, stop
    c, data_set, self.mesh = config, checked.data_set, sharding.make_mesh(**config.mesh)
    self.chief = jax.process_index() == 0
    records, hosts_of_run = data_set.records(checked.train_split), (jax.process_index(), jax.process_count())
    self.order = TrainOrder(records, c.seed, c.batch_size, c.num_epochs, *hosts_of_run)
    splits = checked.train_split.split("+")
    self.train_clips = {n: sum(data_set.clips[split][n] for split in splits) for n in data_set.classes}
    self.loss = parts.read("losses", c.loss.to_dict()).build(tuple(self.train_clips.values()))
    self.total_steps = self.order.steps_per_epoch * c.num_epochs
    self.micro_batch = micro_batch_of(c)
    rates, steps = cosine_rates(c.learning_rate, c.num_epochs), np.int32(self.order.steps_per_epoch)
    self.rate = by_epoch(rates, steps)
    self.graphdef, state = create_train_state(
      self._fresh_model, tunable_patterns(checked.model, c.tunable), make_optimizer(self.rate, c.weight_decay),
      mesh=self.mesh, fsdp_min_size_mb=c.fsdp_min_size_mb,
    )  # fmt: skip
    with hosts.fail_together():
      if self.chief:
        claim_workdir(workdir, run)
        self._check_disk(state)
    hosts.check_shared_folder(workdir)
    self.checkpointer = Checkpointer(workdir, keep=c.keep_checkpoints)
    # One entry for each evaluated epoch (epoch, step, means of the steps, result); numbers of each step since the last;
    # and, by step, those that are still on the devices.
    self.history: list[dict[str, Any]] = []
    self.since_evaluation: list[dict[str, float]] = []
    self.pending: list[tuple[int, Mapping[str, jax.Array]]] = []
    self.saved_step = self.checkpointer.latest_step()
    state = self._resumed(self.saved_step, state)
    self.state = state._replace(frozen=cast(state.frozen, c.precision))
    self.constants = jax.random.key(c.seed), rates, steps
    self.step_fn = self._compiled_step() if int(state.step) < self.total_steps else None
    self.eval_fn = jit_eval(self.graphdef, self.mesh, self.loss, c.precision)
    self.log = MetricsLog(workdir, int(state.step), self.evaluated_epoch) if self.chief else None

  @property
  def evaluated_epoch(self) -> int:  # the last one, counted from 1; 0: none
    return self.history[-1]["epoch"] if self.history else 0

  def _resumed(self, step: int | None, state: TrainState) -> TrainState:
    """The state of the newest checkpoint, or the fresh one, of which the frozen part is saved."""
    if step is None:
      save_frozen(self.workdir, state.frozen)
      return state
    saved = {"opt_state": state.opt_state, "step": state.step}
    tunable, saved, meta = self.checkpointer.restore(step, state.tunable, saved)
    check_same_run(meta["run"], self.run, f"the checkpoint of step {step} in {self.workdir}")
    self.history, self.since_evaluation = meta["history"], meta["this_epoch"]
    return TrainState(tunable=tunable, frozen=load_frozen(self.workdir, state.frozen), **saved)

  def _check_disk(self, state: TrainState) -> None:
    keep, free = self.config.keep_checkpoints, free_bytes(self.workdir)
    needed = 4 * count((state.tunable, state.opt_state)) * (keep + 2) + 4 * count(state.frozen)
    if free < needed:
      raise UserError(f"{self.workdir} needs {needed / 2**20:.0f} MiB for {errors.count(keep, 'checkpoint')}, the best one, one being "
                      f"written, and the frozen weights, but {free / 2**20:.0f} MiB are free")  # fmt: skip

  def _fresh_model(self) -> MmaDfer:
    model = MmaDfer(self.checked.model, rngs=nnx.Rngs(params=self.config.seed))
    for start in self.checked.starts:
      put_over(model, start.read())
    return model

  def _losses(self, model: MmaDfer, batch: Batch, drawn: DropPath, remat: str) -> tuple[jax.Array, Metrics]:
    """The loss of each clip (B,), and other numbers of each clip (B,) that are logged as means."""
    video, spectrogram = model_inputs(batch, self.config.precision)
    outputs = in_float32(model(video, spectrogram, dropped=drawn, remat=remat))
    right = outputs.logits.argmax(axis=-1) == batch["label"]
    return self.loss(outputs, batch), {"accuracy": 100.0 * right}

  def _compiled_step(self) -> Callable[..., Any]:
    c = self.config

    def step(state, batch, key, rates, steps_per_epoch):
      # Inputs, not constants: folds with other numbers of clips then find the step compiled.
      tx = make_optimizer(by_epoch(rates, steps_per_epoch), c.weight_decay)
      return train_step(state, batch, key, graphdef=self.graphdef, tx=tx, loss_fn=self._losses, draw_fn=MmaDfer.draw_drop_path,
                        micro_batch=self.micro_batch, mesh=self.mesh, remat=c.remat, precision=c.precision)  # fmt: skip

    outputs = jax.tree.map(lambda x: x.sharding, self.state), sharding.replicated(self.mesh)
    options = sharding.compiler_options()
    jitted = jax.jit(step, donate_argnums=0, out_shardings=outputs, compiler_options=options)
    batch = abstract_batch(self.checked.model.inputs, c.batch_size, self.mesh)
    return sharding.compile_checked(jitted.lower(self.state, batch, *self.constants))

  def train(self, start_step: int) -> bool:
    """The loop: `step` updates have been made at its top. Returns whether it was stopped."""
    c, d = self.config, self.config.data
    crop = {name: tuple(d[name]) for name in ("crop_scale", "crop_ratio")}  # lists in a run.json
    augment, inputs = Augment(**crop, flip=d.flip, brightness=d.brightness), self.checked.model.inputs
    how = {"start_step": start_step, "num_workers": d.num_workers, "prefetch": d.prefetch}
    self.since, self.since_step = time.monotonic(), start_step
    with (
      Progress("train", self.total_steps, unit="step", done=start_step, show=self.chief) as self.bar,
      load_batches(self.order, inputs, augment, **how) as clips,
    ):
      batches = sharding.on_devices(clips, self.mesh)
      for step in range(start_step, self.total_steps + 1):
        stopping = bool(self.stop)  # asked once: what is logged, evaluated and saved must agree
        epoch, within = divmod(step, self.order.steps_per_epoch)
        epoch_ends = step > 0 and not within
        evaluated = epoch % c.eval_every == 0 or epoch == c.num_epochs
        due = epoch_ends and evaluated and epoch > self.evaluated_epoch
        save_due = step > start_step and c.save_every_steps and step % c.save_every_steps == 0
        if self.pending and (epoch_ends or save_due or stopping or step % c.log_every_steps == 0):
          self._log_steps(step)
        score = None
        if due and not stopping:
          score = self._evaluate(epoch, step)
          stopping = score is None
        if step > 0 and step != self.saved_step and (epoch_ends or save_due or stopping):
          meta = {"run": self.run, "history": self.history, "this_epoch": self.since_evaluation}
          self.checkpointer.save(self.state, meta, score)
          self.saved_step = step
        if stopping or step == self.total_steps:
          return stopping
        assert self.step_fn is not None  # only a finished run has none
        self.state, numbers = self.step_fn(self.state, next(batches), *self.constants)
        self.pending.append((step + 1, numbers))
        self.bar.update()
    raise AssertionError("the loop ends by itself")

  def _evaluate(self, epoch: int, step: int) -> float | None:
    """Evaluates the end of an epoch and adds it to the history; returns its score, None if it was stopped."""
    c, d = self.checked, self.config.data
    eval_fn = functools.partial(self.eval_fn, self.state.tunable, self.state.frozen)
    found = evaluate_split(
      eval_fn, c.data_set.records(c.test_split), c.model.inputs, c.data_set.classes, mesh=self.mesh, prefetch=d.prefetch,
      batch_size=self.config.batch_size, num_workers=d.num_workers, stop=lambda: bool(self.stop),
    )  # fmt: skip
    self.since = time.monotonic()
    if found is None:
      return None
    result, predictions = found
    means, scores = _means(self.since_evaluation), predictions.scores
    self.history.append({"epoch": epoch, "step": step, **means, **result})
    self.since_evaluation = []
    if self.log:
      numbers = {"test_loss": result["test_loss"], "test_war": scores.war, "test_uar": scores.uar}
      self.log.write(step, {"epoch": epoch, **numbers})
      predictions.write(self.workdir / "predictions.csv")
      shown = f"test WAR {percent(scores.war)}, UAR {percent(scores.uar)}"
      say(f"epoch {epoch}: loss {means['loss']:.4f}, {shown}")
    return scores.war  # by which the best checkpoint is kept

  def _log_steps(self, step: int) -> None:
    """Fetches the numbers of the last steps and logs their means; UserError if a loss is not finite."""
    now = time.monotonic()
    clips_per_second = (step - self.since_step) * self.config.batch_size / (now - self.since)
    self.since, self.since_step = now, step
    fetched = [(at, {name: float(value) for name, value in numbers.items()}) for at, numbers in self.pending]
    self.pending = []
    for i, (at, numbers) in enumerate(fetched):
      if not math.isfinite(numbers["loss"]):
        before = f"{fetched[i - 1][1]['loss']:.4g}" if i else "finite, in the steps logged before"
        facts = f"(before: {before}; learning rate {self.rate(at - 1):.3g})"
        advice = "lower config.learning_rate, or look at the clips; the last checkpoint is from before"
        raise UserError(f"the loss is {numbers['loss']} at step {at} {facts}; {advice}")
    (last, newest), numbers_of_steps = fetched[-1], [numbers for _, numbers in fetched]
    if self.log:
      rate = {"learning_rate": float(self.rate(last - 1)), "clips_per_second": clips_per_second}
      self.log.write(last, _means(numbers_of_steps) | rate)
    self.since_evaluation += numbers_of_steps
    shown = [f"{name} {value:.3g}" for name, value in newest.items() if name != "grad_norm"]
    self.bar.update(0, ", ".join([*shown, f"{clips_per_second:.1f} clips/s"]))

  def facts(self) -> list[str]:
    """Lines for people at the start."""
    c, started = self.checked, {start.name for start in self.checked.starts}
    return [
      f"train on {c.train_split}: {errors.count(len(self.order.records), 'clip')}, {errors.count(self.order.steps_per_epoch, 'step')} an epoch; "
      f"test on {c.test_split}: {errors.count(c.data_set.splits[c.test_split], 'clip')}",
      *(start.describe() for start in c.starts),
      *(f"{stream} encoder: random weights, nothing pretrained (config.pretrained.{stream} is empty)"
        for stream in ("image", "audio") if getattr(c.model, stream).depth and not {stream, "init_from"} & started),
      *(f"note: no training clip is {name}, so the model cannot learn it"
        for name, clips in self.train_clips.items() if not clips),
    ]  # fmt: skip

  def report(self) -> str:
    """Writes the report of the run; returns its last line for people."""
    c, data_set, state = self.checked, self.checked.data_set, self.state
    facts = {
      "train_clips": len(self.order.records),
      "train_clips_without_sound": sum(data_set.without_sound[split] for split in c.train_split.split("+")),
      "clips_seen": self.total_steps * self.config.batch_size,
      "tunable_parameters": count(state.tunable),
      "frozen_parameters": count(state.frozen),
      "peak_memory_gib": round(sharding.peak_memory(), 3),
      "started_from": "; ".join(start.describe() for start in c.starts)
      or "nothing: all parameters were drawn",
      "data_set": f"{self.config.data.name}, fingerprint {data_set.fingerprint[:12]}",
      "splits": f"train {c.train_split}, test {c.test_split}",
    }
    found = write_report(self.workdir, run=self.run, history=self.history, facts=facts, split=c.test_split)
    clips = errors.count(found["clips"], "clip")
    shown = f"WAR {percent(found['war'])}, UAR {percent(found['uar'])} on {clips}"
    return f"{shown}; {self.workdir}/report.md"


def _means(steps: list[dict[str, float]]) -> dict[str, float]:
  return {name: float(np.mean([numbers[name] for numbers in steps])) for name in steps[0]}
