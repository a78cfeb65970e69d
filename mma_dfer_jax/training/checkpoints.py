"""What a run needs on disk to resume.

workdir/run.json                 what the run is: config, class names, recipe of the data, version
workdir/frozen/                  ❄ parameters, written once
workdir/checkpoints/<step>/      tunable (🔥 parameters), optimizer (moments and step), meta (run.json + history)
"""

from collections.abc import Mapping
import contextlib
from pathlib import Path
import sys
from typing import Any

from flax import nnx
from flax.traverse_util import flatten_dict
import jax
from jax.sharding import Sharding, SingleDeviceSharding

from mma_dfer_jax.errors import UserError
from mma_dfer_jax.training.state import TrainState

ITEMS = ("tunable", "optimizer", "meta")
NO_SCORE = -1e30


class Checkpointer:
  """Saves and restores tunable parameters, optimizer and step; keeps the newest and the best by a score.

  Args:
    workdir: folder of the run.
    keep: how many of the newest to keep; a new one is complete before an old one goes.
    best: name of that score, see `Task.best`.
    read_only: nothing in the folder is touched.
  """

  def __init__(self, workdir: Path, *, keep: int = 2, best: str = "war", read_only: bool = False):
    from orbax.checkpoint.checkpoint_managers import preservation_policy

    ocp = _orbax()
    self.best = best
    self.folder = workdir.absolute() / "checkpoints"
    newest = preservation_policy.LatestN(keep)
    highest = preservation_policy.BestN(get_metric_fn=lambda metrics: metrics[best], n=1)
    # Orbax writes the metrics to disk only if `best_fn` is given too, and forgets the best at a restart without them.
    options = ocp.CheckpointManagerOptions(
      best_fn=lambda metrics: metrics[best],
      preservation_policy=preservation_policy.AnyPreservationPolicy([newest, highest]),
      cleanup_tmp_directories=not read_only,
      create=not read_only,  # Orbax's own `read_only` warns of three things on every use
      enable_async_checkpointing=False,  # a failed save then ends in one message, not in the tracebacks of threads
    )
    self.manager = ocp.CheckpointManager(self.folder, options=options, item_names=ITEMS)
    self.latest_step, self.best_step, self.close = (
      self.manager.latest_step, self.manager.best_step, self.manager.close
    )  # fmt: skip

  def save(self, state: TrainState, meta: Mapping[str, Any], score: float | None) -> None:
    """Saves; the old checkpoints stay until the new one is whole. UserError if the disk does not take it."""
    ocp = _orbax()
    items = ocp.args.Composite(
      tunable=ocp.args.StandardSave(nnx.to_pure_dict(state.tunable)),
      optimizer=ocp.args.StandardSave({"opt_state": state.opt_state, "step": state.step}),
      meta=ocp.args.JsonSave(dict(meta)),
    )
    with self._explaining("saved", int(state.step)):
      # A checkpoint without an evaluation has no score and is never the best.
      metrics = {self.best: NO_SCORE if score is None else score}
      self.manager.save(int(state.step), args=items, metrics=metrics, force=True)

  def restore(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
    """The state saved at a step, spread as `like`, whose frozen part it keeps; and the meta saved with it."""
    optimizer = {"opt_state": like.opt_state, "step": like.step}
    restored = self._restore(step, like.tunable, optimizer=_orbax().args.StandardRestore(_targets(optimizer)))
    return like._replace(
      tunable=from_pure(like.tunable, restored.tunable), **restored.optimizer
    ), restored.meta

  def restore_tunable(self, step: int, like: nnx.State) -> tuple[nnx.State, dict[str, Any]]:
    """Only what is needed to answer: the tunable parameters, on one device, and meta."""
    restored = self._restore(step, like)
    return from_pure(like, restored.tunable), restored.meta

  def _restore(self, step: int, tunable: nnx.State, **others: Any) -> Any:
    args = _orbax().args
    items = args.Composite(
      tunable=args.StandardRestore(_targets(nnx.to_pure_dict(tunable))), meta=args.JsonRestore(), **others
    )
    with self._explaining("read", step):
      return self.manager.restore(step, args=items)

  @contextlib.contextmanager
  def _explaining(self, doing: str, step: int):
    """Orbax and TensorStore tell of a full disk or a damaged file in many ways, bare `Exception` among them."""
    # Callbacks of TensorStore fail one by one once the first failure has closed their event loop; that one is enough.
    hook, sys.unraisablehook = sys.unraisablehook, lambda error: None
    try:
      yield
      sys.unraisablehook = hook
    except Exception as error:
      others = ", ".join(str(other) for other in self.manager.all_steps() if other != step)
      left = f"the checkpoints of steps {others} are not touched" if others else "there is no other"
      resume = f"; remove the folder {self.folder / str(step)} to resume from an earlier one" * (
        doing == "read"
      )
      raise UserError(
        f"the checkpoint of step {step} in {self.folder} cannot be {doing} ({left}{resume}): {short(error)}"
      ) from error


def _orbax() -> Any:
  """Orbax takes a fifth of a second to import, which no --help should wait for."""
  import orbax.checkpoint as ocp

  return ocp


def save_frozen(workdir: Path, frozen: nnx.State) -> None:
  """Writes the frozen parameters once; a killed run leaves no half folder under that name."""
  folder = workdir.absolute() / "frozen"
  if folder.exists() or not jax.tree.leaves(frozen):
    return
  try:
    with _orbax().StandardCheckpointer() as checkpointer:
      checkpointer.save(folder, nnx.to_pure_dict(frozen))
  except (OSError, ValueError, RuntimeError) as error:
    raise UserError(f"cannot save the frozen parameters in {folder}: {short(error)}") from error


def load_frozen(workdir: Path, like: nnx.State) -> nnx.State:
  """The frozen parameters of a run, spread as `like`, or on one device if that holds shapes only."""
  if not jax.tree.leaves(like):
    return like
  folder = workdir.absolute() / "frozen"
  try:
    with _orbax().StandardCheckpointer() as checkpointer:
      return from_pure(like, checkpointer.restore(folder, _targets(nnx.to_pure_dict(like))))
  except Exception as error:  # Orbax raises it bare
    raise UserError(f"cannot read the frozen parameters in {folder}: {short(error)}") from error


def _targets(tree: Any) -> Any:
  """Shapes, dtypes and shardings that a restored tree must have; never those of the devices that wrote it."""
  first: Sharding = SingleDeviceSharding(jax.local_devices()[0])
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None) or first), tree
  )


def from_pure(like: nnx.State, values: Any) -> nnx.State:
  """A state of the structure of `like` with the given values; `like` may hold shapes only."""
  by_path = flatten_dict(values)
  return nnx.from_flat_state([(path, v.replace(by_path[path])) for path, v in nnx.to_flat_state(like)])


def short(error: BaseException) -> str:
  """The message of an error, on one line and not endless."""
  text = " ".join(str(error).split())
  return text if len(text) <= 600 else f"{text[:300]} … {text[-300:]}"
