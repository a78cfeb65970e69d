"""How a run goes: resume, step, log, evaluate, save, stop. Read `fit`, then `_Run.train`."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import math
from pathlib import Path
import time
from typing import Any, Protocol, runtime_checkable

from flax import nnx
import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict
import numpy as np
import optax

from mma_dfer_jax import errors
from mma_dfer_jax.disk import free_bytes
from mma_dfer_jax.errors import UserError
from mma_dfer_jax.parameters import cast, count, parameter_table, put_over
from mma_dfer_jax.progress import Progress, say
from mma_dfer_jax.training import hosts, sharding
from mma_dfer_jax.training.checkpoints import Checkpointer, load_frozen, save_frozen
from mma_dfer_jax.training.objective import Terms
from mma_dfer_jax.training.report import MetricsLog
from mma_dfer_jax.training.run import Run, check_same_run, claim_workdir
from mma_dfer_jax.training.state import TrainState, create_train_state
from mma_dfer_jax.training.steps import Batch, Metrics, train_step
from mma_dfer_jax.weights.files import Start


@dataclasses.dataclass(frozen=True)
class Evaluated:
  """What a task found out at the end of an epoch."""

  entry: Mapping[str, Any]  # for the history of the run, from which the report is made
  logged: Mapping[str, float]  # for metrics.jsonl
  shown: str  # for people
  score: float | None  # by which the best checkpoint is kept


@runtime_checkable  # tests enforce annotations
class Task(Protocol):
  """What is trained: all in which training a model and pretraining an encoder differ."""

  title: str  # of the progress bar
  period: str  # what is called an epoch
  unit: str  # of examples, in the singular
  config: ConfigDict
  run: Run
  starts: tuple[Start, ...]
  patterns: tuple[str, ...]  # of tunable parameters
  micro_batch: int
  steps_per_epoch: int
  eval_every: int  # epochs
  total_steps: int
  constants: tuple[
    Any, ...
  ]  # what optimizer and loss are made of: inputs of the compiled step, not parts of it

  def fresh_model(self) -> nnx.Module: ...

  def optimizer(self, *constants: Any) -> tuple[optax.Schedule, optax.GradientTransformation]:
    """The learning rate by step, and the optimizer that follows it."""

  def whole(self, batch: Batch, key: jax.Array, step: jax.Array, *constants: Any) -> tuple[Batch, Any]:
    """The batch to train on, and what its losses share: whatever needs all examples of a step at once.

    `key` is that of this step; draw from a stream of your own.
    """

  def losses(self, model: Any, batch: Batch, drawn: Any, remat: str, shared: Any) -> tuple[Terms, Metrics]:
    """The terms of the loss, and other numbers of each example (B,) that are logged as means."""

  def draw(self, model: Any, rngs: nnx.Rngs, examples: int) -> Any:
    """What is drawn for one step; the last axis of each array is of examples."""

  def abstract_batch(self, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]: ...

  def batches(
    self, start_step: int
  ) -> contextlib.AbstractContextManager[Iterator[Mapping[str, np.ndarray]]]: ...

  def evaluator(
    self, graphdef: nnx.GraphDef, mesh: Mesh
  ) -> Callable[[TrainState, Path, Callable[[], bool]], Evaluated | None]:
    """What evaluates a state at the end of an epoch; None if it was stopped."""

  def facts(self) -> list[str]:
    """Lines for people at the start."""

  def report(self, workdir: Path, state: TrainState, history: Sequence[Mapping[str, Any]]) -> str:
    """Writes what the run leaves, in its first process; all call it. Returns the last line for people."""


def fit(task: Task, workdir: Path, *, stop: hosts.Stop) -> int:
  """Trains to the end of the last epoch, from where the folder is; returns the exit status.

  The folder is new, or of the same run. `stop` is asked once a step; if true, everything is saved and the run ends.
  """
  here = _Run(task, workdir, stop)
  start_step = int(here.state.step)
  if here.chief:
    print(parameter_table(here.state.tunable, here.state.frozen))
    print("\n".join([*task.facts(), *(start.describe() for start in task.starts)]))
    of_each = errors.count(task.micro_batch, task.unit)
    print(f"{jax.device_count()} {jax.default_backend()} device(s), {of_each} at once")
    if start_step:
      print(f"resuming after step {start_step} of {task.total_steps}")
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
  shown = task.report(workdir, here.state, here.history)
  if here.chief:
    print(shown)
  return 0


class _Run:
  """The state of a run between its start and its end, and what has been written about it."""

  def __init__(self, task: Task, workdir: Path, stop: hosts.Stop):
    self.task, self.workdir, self.stop, c = task, workdir, stop, task.config
    self.mesh = sharding.make_mesh(**c.mesh)
    self.chief = jax.process_index() == 0
    self.rate, tx = task.optimizer(*task.constants)
    self.graphdef, state = create_train_state(
      self._fresh_model, task.patterns, tx, mesh=self.mesh, fsdp_min_size_mb=c.fsdp_min_size_mb
    )
    with hosts.fail_together():
      if self.chief:
        claim_workdir(workdir, task.run)
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
    self.constants = jax.random.key(c.seed), *task.constants
    self.step_fn = self._compiled_step() if int(state.step) < task.total_steps else None
    self.evaluator = task.evaluator(self.graphdef, self.mesh)
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
    check_same_run(meta["run"], self.task.run, f"the checkpoint of step {step} in {self.workdir}")
    self.history, self.since_evaluation = meta["history"], meta["this_epoch"]
    return TrainState(tunable=tunable, frozen=load_frozen(self.workdir, state.frozen), **saved)

  def _check_disk(self, state: TrainState) -> None:
    keep, free = self.task.config.keep_checkpoints, free_bytes(self.workdir)
    needed = 4 * count((state.tunable, state.opt_state)) * (keep + 2) + 4 * count(state.frozen)
    if free < needed:
      raise UserError(f"{self.workdir} needs {needed / 2**20:.0f} MiB for {errors.count(keep, 'checkpoint')}, the best one, one being "
                      f"written, and the frozen weights, but {free / 2**20:.0f} MiB are free")  # fmt: skip

  def _fresh_model(self) -> nnx.Module:
    model = self.task.fresh_model()
    for start in self.task.starts:
      put_over(model, start.read())
    return model

  def _compiled_step(self) -> Callable[..., Any]:
    task, c = self.task, self.task.config

    def step(state, batch, key, *constants):
      # Inputs, not constants: folds with other numbers of clips then find the step compiled.
      _, tx = task.optimizer(*constants)
      return train_step(state, batch, key, graphdef=self.graphdef, tx=tx, loss_fn=task.losses, draw_fn=task.draw,
                        whole_fn=lambda *of_step: task.whole(*of_step, *constants), micro_batch=task.micro_batch, mesh=self.mesh, remat=c.remat, precision=c.precision)  # fmt: skip

    outputs = jax.tree.map(lambda x: x.sharding, self.state), sharding.replicated(self.mesh)
    options = sharding.compiler_options()
    jitted = jax.jit(step, donate_argnums=0, out_shardings=outputs, compiler_options=options)
    return sharding.compile_checked(jitted.lower(self.state, task.abstract_batch(self.mesh), *self.constants))

  def train(self, start_step: int) -> bool:
    """The loop: `step` updates have been made at its top. Returns whether it was stopped."""
    task, c = self.task, self.task.config
    self.since, self.since_step = time.monotonic(), start_step
    with (
      Progress(task.title, task.total_steps, unit="step", done=start_step, show=self.chief) as self.bar,
      task.batches(start_step) as examples,
    ):
      batches = sharding.on_devices(examples, self.mesh)
      for step in range(start_step, task.total_steps + 1):
        stopping = bool(self.stop)  # asked once: what is logged, evaluated and saved must agree
        epoch, last = -(-step // task.steps_per_epoch), step == task.total_steps
        epoch_ends = step > 0 and (last or step % task.steps_per_epoch == 0)
        evaluated = epoch % task.eval_every == 0 or last
        due = epoch_ends and evaluated and epoch > self.evaluated_epoch
        save_due = step > start_step and c.save_every_steps and step % c.save_every_steps == 0
        if self.pending and (epoch_ends or save_due or stopping or step % c.log_every_steps == 0):
          self._log_steps(step)
        found = None
        if due and not stopping:
          found = self._evaluate(epoch, step)
          stopping = found is None
        if step > 0 and step != self.saved_step and (epoch_ends or save_due or stopping):
          meta = {"run": task.run, "history": self.history, "this_epoch": self.since_evaluation}
          self.checkpointer.save(self.state, meta, found.score if found else None)
          self.saved_step = step
        if stopping or last:
          return stopping
        assert self.step_fn is not None  # only a finished run has none
        self.state, numbers = self.step_fn(self.state, next(batches), *self.constants)
        self.pending.append((step + 1, numbers))
        self.bar.update()
    raise AssertionError("the loop ends by itself")

  def _evaluate(self, epoch: int, step: int) -> Evaluated | None:
    """Evaluates the end of an epoch and adds it to the history; None if it was stopped."""
    found = self.evaluator(self.state, self.workdir, lambda: bool(self.stop))
    self.since = time.monotonic()
    if found is None:
      return None
    means = _means(self.since_evaluation)
    self.history.append({"epoch": epoch, "step": step, **means, **found.entry})
    self.since_evaluation = []
    if self.log:
      self.log.write(step, {"epoch": epoch, **found.logged})
      say(", ".join(filter(None, [f"{self.task.period} {epoch}: loss {means['loss']:.4f}", found.shown])))
    return found

  def _log_steps(self, step: int) -> None:
    """Fetches the numbers of the last steps and logs their means; UserError if a loss is not finite."""
    now, unit = time.monotonic(), f"{self.task.unit}s"
    per_second = (step - self.since_step) * self.task.config.batch_size / (now - self.since)
    self.since, self.since_step = now, step
    fetched = [(at, {name: float(value) for name, value in numbers.items()}) for at, numbers in self.pending]
    self.pending = []
    for i, (at, numbers) in enumerate(fetched):
      if not math.isfinite(numbers["loss"]):
        before = f"{fetched[i - 1][1]['loss']:.4g}" if i else "finite, in the steps logged before"
        facts = f"(before: {before}; learning rate {self.rate(at - 1):.3g})"
        advice = f"lower config.learning_rate, or look at the {unit}; the last checkpoint is from before"
        raise UserError(f"the loss is {numbers['loss']} at step {at} {facts}; {advice}")
    (newest_step, newest), numbers_of_steps = fetched[-1], [numbers for _, numbers in fetched]
    if self.log:
      rate = {"learning_rate": float(self.rate(newest_step - 1)), f"{unit}_per_second": per_second}
      self.log.write(newest_step, _means(numbers_of_steps) | rate)
    self.since_evaluation += numbers_of_steps
    shown = [f"{name} {value:.3g}" for name, value in newest.items() if name != "grad_norm"]
    self.bar.update(0, ", ".join([*shown, f"{per_second:.1f} {unit}/s"]))


def _means(steps: list[dict[str, float]]) -> dict[str, float]:
  return {name: float(np.mean([numbers[name] for numbers in steps])) for name in steps[0]}
