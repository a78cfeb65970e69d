"""What a run needs on disk to resume.

workdir/run.json                 what the run is: config, class names, recipe of the data, version
workdir/frozen/                  ❄ parameters, written once
workdir/checkpoints/<step>/      tunable (🔥 parameters), optimizer (moments and step), meta (run.json + history)
"""

from collections.abc import Iterator, Mapping
import contextlib
from pathlib import Path
import shutil
import sys
import time
from typing import Any

from flax import nnx
from flax.traverse_util import flatten_dict
import jax
from jax.sharding import Sharding, SingleDeviceSharding

from mma_dfer_jax.errors import UserError
from mma_dfer_jax.training.state import TrainState

NO_WAR = -1e30  # of a checkpoint without an evaluation, which is never the best


class Checkpointer:
  """Saves and restores tunable parameters, optimizer and step; keeps the newest and the best by WAR.

  A new one is complete before an old one goes.
  """

  def __init__(self, workdir: Path, *, keep: int = 2, read_only: bool = False):
    from orbax.checkpoint.checkpoint_managers import preservation_policy

    ocp = _orbax()
    self.folder = workdir.absolute() / "checkpoints"
    newest = preservation_policy.LatestN(keep)
    highest = preservation_policy.BestN(get_metric_fn=lambda metrics: metrics["war"], n=1)
    # Orbax writes the metrics to disk only if `best_fn` is given too, and forgets the best at a restart without them.
    options = ocp.CheckpointManagerOptions(
      best_fn=lambda metrics: metrics["war"],
      preservation_policy=preservation_policy.AnyPreservationPolicy([newest, highest]),
      cleanup_tmp_directories=not read_only,
      create=not read_only,  # Orbax's own `read_only` warns of three things on every use
      enable_async_checkpointing=False,  # a failed save then ends in one message, not in the tracebacks of threads
    )
    items = ("tunable", "optimizer", "meta")
    self.manager = ocp.CheckpointManager(self.folder, options=options, item_names=items)
    self.latest_step, self.best_step = self.manager.latest_step, self.manager.best_step
    self.close = self.manager.close

  def save(self, state: TrainState, meta: Mapping[str, Any], war: float | None) -> None:
    """Saves; the old checkpoints stay until the new one is whole. UserError if the disk does not take it."""
    ocp = _orbax()
    arrays = {"tunable": nnx.to_pure_dict(state.tunable), "optimizer": {"opt_state": state.opt_state, "step": state.step}}  # fmt: skip
    items = {name: ocp.args.StandardSave(tree) for name, tree in arrays.items()}
    items = ocp.args.Composite(**items, meta=ocp.args.JsonSave(dict(meta)))
    with self._explained("saved", int(state.step)), _nothing_half(self.folder):
      metrics = {"war": NO_WAR if war is None else war}
      self.manager.save(int(state.step), args=items, metrics=metrics, force=True)

  def restore(
    self, step: int, tunable: nnx.State, optimizer: Any = None
  ) -> tuple[nnx.State, Any, dict[str, Any]]:
    """Tunable parameters, optimizer and meta saved at a step, spread as those given or on one device.

    Without an optimizer only what is needed to answer is read.
    """
    args = _orbax().args
    items = {"tunable": nnx.to_pure_dict(tunable)} | ({"optimizer": optimizer} if optimizer else {})
    like = {name: args.StandardRestore(_targets(tree)) for name, tree in items.items()}
    with self._explained("read", step):
      found = self.manager.restore(step, args=args.Composite(meta=args.JsonRestore(), **like))
    return from_pure(tunable, found.tunable), found.get("optimizer"), found.meta

  def temperature(self, step: int) -> dict[str, float]:
    """By its name, that of the last evaluation up to a step, if the run held out clips to fit it on."""
    args = _orbax().args
    with self._explained("read", step):
      meta = self.manager.restore(step, args=args.Composite(meta=args.JsonRestore())).meta
    found = [one["held_out"]["temperature"] for one in meta["history"] if "held_out" in one]
    return {"temperature": found[-1]} if found else {}

  def _explained(self, doing: str, step: int) -> contextlib.AbstractContextManager[None]:
    others = ", ".join(str(other) for other in self.manager.all_steps() if other != step)
    left = f"the checkpoints of steps {others} are not touched" if others else "there is no other"
    if doing == "read":
      left += f"; remove the folder {self.folder / str(step)} to resume from an earlier one"
    return _explained(f"the checkpoint of step {step} in {self.folder} cannot be {doing} ({left})")


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
  """Orbax and TensorStore tell of a full disk or a damaged file in many ways, bare `Exception` among them."""
  # Callbacks of TensorStore fail one by one once the first failure has closed their event loop; that one is enough.
  hook, sys.unraisablehook = sys.unraisablehook, lambda error: None
  try:
    yield
    sys.unraisablehook = hook
  except Exception as error:
    text = " ".join(str(error).split())
    raise UserError(f"{what}: {text if len(text) <= 600 else f'{text[:300]} … {text[-300:]}'}") from error


@contextlib.contextmanager
def _nothing_half(folder: Path) -> Iterator[None]:
  """Removes what a failed save leaves in a folder: where the disk is full, that room is needed."""
  try:
    yield
  except Exception:
    for _ in range(20):  # Orbax's other threads may still be writing
      for half in folder.glob("*.orbax-checkpoint-tmp*"):
        shutil.rmtree(half, ignore_errors=True)
      time.sleep(0.1)
    raise


def _orbax() -> Any:
  """Orbax takes a fifth of a second to import, which no --help should wait for."""
  import orbax.checkpoint as ocp

  return ocp


def save_frozen(workdir: Path, frozen: nnx.State) -> None:
  """Writes the frozen parameters once; a killed run leaves no half folder under that name."""
  folder = workdir.absolute() / "frozen"
  if folder.exists() or not jax.tree.leaves(frozen):
    return
  told = _explained(f"cannot save the frozen parameters in {folder}")
  with told, _nothing_half(workdir.absolute()), _orbax().StandardCheckpointer() as checkpointer:
    checkpointer.save(folder, nnx.to_pure_dict(frozen))


def load_frozen(workdir: Path, like: nnx.State) -> nnx.State:
  """The frozen parameters of a run, spread as `like`, or on one device if that holds shapes only."""
  if not jax.tree.leaves(like):
    return like
  folder = workdir.absolute() / "frozen"
  with _explained(f"cannot read the frozen parameters in {folder}"), _orbax().StandardCheckpointer() as checkpointer:  # fmt: skip
    return from_pure(like, checkpointer.restore(folder, _targets(nnx.to_pure_dict(like))))


def _targets(tree: Any) -> Any:
  """Shapes, dtypes and shardings that a restored tree must have; never those of the devices that wrote it."""
  first: Sharding = SingleDeviceSharding(jax.local_devices()[0])

  def target(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None) or first)

  return jax.tree.map(target, tree)


def from_pure(like: nnx.State, values: Any) -> nnx.State:
  """A state of the structure of `like` with the given values; `like` may hold shapes only."""
  by_path = flatten_dict(values)
  return nnx.from_flat_state([(path, v.replace(by_path[path])) for path, v in nnx.to_flat_state(like)])
