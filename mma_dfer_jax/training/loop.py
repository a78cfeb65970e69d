"""How a run goes: resume, step, log, evaluate, save, stop. Read `fit`, then `_Run.train`."""

from collections.abc import Callable, Mapping
import math
from pathlib import Path
import time
from typing import Any

import jax
from jax.sharding import Mesh
import numpy as np

from mma_dfer_jax.disk import free_bytes
from mma_dfer_jax.errors import UserError
from mma_dfer_jax.model import MmaDfer
from mma_dfer_jax.parameters import cast, count, parameter_table
from mma_dfer_jax.progress import Progress, say
from mma_dfer_jax.training import hosts, sharding
from mma_dfer_jax.training.check import micro_batch_of
from mma_dfer_jax.training.checkpoints import Checkpointer, load_frozen, save_frozen
from mma_dfer_jax.training.report import MetricsLog, percent
from mma_dfer_jax.training.run import Run, check_same_run, claim_workdir
from mma_dfer_jax.training.state import TrainState, by_epoch, cosine_rates, create_train_state, make_optimizer
from mma_dfer_jax.training.steps import abstract_batch, train_step
from mma_dfer_jax.training.task import Classify


def fit(task: Classify, run: Run, workdir: Path, *, mesh: Mesh, stop: hosts.Stop) -> int:
  """Trains to the end of the last epoch, from where the folder is; returns the exit status.

  The folder is new, or of the same run. `stop` is asked once a step; if true, everything is saved and the run ends.
  """
  here = _Run(task, run, workdir, mesh, stop)
  start_step = int(here.state.step)
  if here.chief:
    print(parameter_table(here.state.tunable, here.state.frozen))
    print("\n".join(task.facts()))
    print(f"{jax.device_count()} {jax.default_backend()} device(s), {here.micro_batch} clip(s) at once")
    if start_step:
      print(f"resuming after step {start_step} of {here.total_steps}")
  stopped = here.train(start_step)
  here.checkpointer.close()
  if here.log:
    here.log.close()
  if stopped and stop.stopped:
    print(f"stopped by {stop.reason} after step {here.saved_step}; to resume, run the same command")
    return stop.exit_status
  if here.chief:
    facts = {"clips_seen": here.total_steps * task.config.batch_size, "tunable_parameters": count(here.state.tunable),
             "frozen_parameters": count(here.state.frozen), "peak_memory_gib": round(sharding.peak_memory(), 3)}  # fmt: skip
    print(task.report(workdir, run, here.history, facts))
  return 0


class _Run:
  """The state of a run between its start and its end, and what has been written about it."""

  def __init__(self, task: Classify, run: Run, workdir: Path, mesh: Mesh, stop: hosts.Stop):
    self.task, self.run, self.workdir, self.mesh, self.stop = task, run, workdir, mesh, stop
    self.config = c = task.config
    self.chief = jax.process_index() == 0
    self.steps_per_epoch = task.order.steps_per_epoch
    self.total_steps = self.steps_per_epoch * c.num_epochs
    self.micro_batch = micro_batch_of(c)
    rates, steps = cosine_rates(c.learning_rate, c.num_epochs), np.int32(self.steps_per_epoch)
    self.rate = by_epoch(rates, steps)
    self.graphdef, state = create_train_state(
      task.init, task.tunable, make_optimizer(self.rate, c.weight_decay), mesh=mesh, fsdp_min_size_mb=c.fsdp_min_size_mb
    )  # fmt: skip
    with hosts.fail_together():
      if self.chief:
        claim_workdir(workdir, run)
        check_disk(workdir, state, c.keep_checkpoints)
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
    self.evaluate = task.evaluator(self.graphdef, mesh)
    self.log = MetricsLog(workdir, int(state.step), self.evaluated_epoch) if self.chief else None

  @property
  def evaluated_epoch(self) -> int:
    """The last one, counted from 1; 0: none."""
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

  def _compiled_step(self) -> Callable[..., Any]:
    c, task = self.config, self.task

    def step(state, batch, key, rates, steps_per_epoch):
      # Inputs, not constants: folds with other numbers of clips then find the step compiled.
      tx = make_optimizer(by_epoch(rates, steps_per_epoch), c.weight_decay)
      return train_step(state, batch, key, graphdef=self.graphdef, tx=tx, loss_fn=task.loss, draw_fn=MmaDfer.draw_drop_path,
                        micro_batch=self.micro_batch, mesh=self.mesh, remat=c.remat, precision=c.precision)  # fmt: skip

    outputs = jax.tree.map(lambda x: x.sharding, self.state), sharding.replicated(self.mesh)
    options = sharding.compiler_options()
    jitted = jax.jit(step, donate_argnums=0, out_shardings=outputs, compiler_options=options)
    batch = abstract_batch(task.checked.model.inputs, c.batch_size, self.mesh)
    return sharding.compile_checked(jitted.lower(self.state, batch, *self.constants))

  def train(self, start_step: int) -> bool:
    """The loop: `step` updates have been made at its top. Returns whether it was stopped."""
    c = self.config
    self.since, self.since_step = time.monotonic(), start_step
    with (
      Progress("train", self.total_steps, unit="step", done=start_step, show=self.chief) as self.bar,
      self.task.batches(start_step) as clips,
    ):
      batches = sharding.on_devices(clips, self.mesh)
      for step in range(start_step, self.total_steps + 1):
        stopping = bool(self.stop)  # asked once: what is logged, evaluated and saved must agree
        epoch, within = divmod(step, self.steps_per_epoch)
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
    found = self.evaluate(self.state, lambda: bool(self.stop))
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


def _means(steps: list[dict[str, float]]) -> dict[str, float]:
  return {name: float(np.mean([numbers[name] for numbers in steps])) for name in steps[0]}


def check_disk(workdir: Path, state: TrainState, keep: int) -> None:
  """Raises UserError if the checkpoints to be kept, and one more while it is written, do not fit on the disk."""
  rolling = 4 * count((state.tunable, state.opt_state))
  needed, free = rolling * (keep + 2) + 4 * count(state.frozen), free_bytes(workdir)
  if free < needed:
    raise UserError(f"{workdir} needs {needed / 2**20:.0f} MiB for {keep} checkpoints, the best one, one being "
                    f"written, and the frozen weights, but {free / 2**20:.0f} MiB are free")  # fmt: skip
