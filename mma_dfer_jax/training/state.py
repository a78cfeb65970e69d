"""What training carries along: the tunable and the frozen parameters, the optimizer's moments, the step."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np
import optax

from mma_dfer_jax.parameters import split_tunable
from mma_dfer_jax.training.sharding import fsdp_sharding


class TrainState(NamedTuple):
  """One pytree through the jitted step; `frozen` gets no gradient, no moments and no decay."""

  step: jax.Array  # () int32, updates so far
  tunable: nnx.State  # 🔥
  frozen: nnx.State  # ❄
  opt_state: optax.OptState  # moments of the tunable parameters only


def cosine_rates(learning_rate: float, num_epochs: int) -> np.ndarray:
  """(epochs,) float32, lr · (1 + cos(π · epoch / epochs)) / 2; CosineAnnealingLR(T_max=epochs) of main.py."""
  # Made in float64: close to the end 1 + cos loses half of float32's digits.
  rates = learning_rate * 0.5 * (1 + np.cos(np.pi * np.arange(num_epochs) / num_epochs))
  return rates.astype(np.float32)


def by_epoch(rates: Any, steps_per_epoch: Any) -> optax.Schedule:
  """The original's schedule, constant within an epoch. Traced arguments make one compiled step fit folds of any size."""
  return lambda step: jnp.asarray(rates)[step // steps_per_epoch]


def by_step(
  peak: float, num_epochs: int, steps_per_epoch: Any, *, warmup_epochs: int = 0, start: float = 0.0, end: float = 0.0
) -> optax.Schedule:  # fmt: skip
  """Linear from `start` to the peak, then half a cosine to `end`, another rate in every step.

  Source: `cosine_scheduler` of VideoMAE's and MAE-DFER's `utils.py`.
  """

  def rate(step):
    warmup, total = warmup_epochs * steps_per_epoch, num_epochs * steps_per_epoch
    rising = start + (peak - start) * step / jnp.maximum(warmup - 1, 1)
    # cos² of half the angle: close to the end 1 + cos loses half of float32's digits.
    falling = (
      end + (peak - end) * jnp.cos(0.5 * np.pi * (step - warmup) / jnp.maximum(total - warmup, 1)) ** 2
    )
    return jnp.where(step < warmup, rising, falling)

  return rate


def make_optimizer(
  learning_rate: optax.Schedule, weight_decay: float, *, kernels_only: bool = False,
  depths: Mapping[str, int] | None = None, layer_decay: float = 1.0,
) -> optax.GradientTransformation:  # fmt: skip
  """PyTorch's AdamW with its defaults; decay on every parameter it is given, as in the original.

  Args:
    kernels_only: decay on matrices of layers only, not on biases, norms, tokens and positions.
    depths: blocks of each encoder, "image_encoder" and "audio_encoder"; needed with a layer decay.
    layer_decay: of learning rates, see `layer_scale`; 1: none.
  """
  mask = by_path(lambda path: path[-1] == "kernel") if kernels_only else None
  adamw = optax.adamw(learning_rate, b1=0.9, b2=0.999, eps=1e-8, weight_decay=weight_decay, mask=mask)
  if layer_decay == 1:
    return adamw
  scales = by_path(lambda path: layer_scale(path, depths or {}, layer_decay))
  return optax.chain(
    adamw, optax.stateless(lambda updates, _: jax.tree.map(jnp.multiply, updates, scales(updates)))
  )


def by_path(value: Callable[[tuple[Any, ...]], Any]) -> Callable[[nnx.State], nnx.State]:
  """Makes of a tree of parameters one of what `value` says of their paths."""

  def of(tree: nnx.State) -> nnx.State:
    flat = nnx.to_flat_state(tree)
    return nnx.from_flat_state((path, jax.tree.map(lambda _: value(path), leaf)) for path, leaf in flat)  # noqa: B023 # called at once

  return of


def layer_scale(path: tuple[Any, ...], depths: Mapping[str, int], decay: float) -> float:
  """A parameter's factor of the learning rate: decay^(blocks that follow it in its encoder), of the input one more.

  What follows the last block, and all outside of encoders, has 1. Source: MAE-DFER's `optim_factory.py`.
  """
  depth = depths.get(path[0], 0)
  if depth and path[1] == "blocks":
    return decay ** (depth - path[2])
  return decay ** (depth + 1) if depth and path[1] in ("patch_embed", "cls_token", "pos_embed") else 1.0


def warm_up_and_cosine(peak: float, warm_up_steps: int, num_steps: int) -> optax.Schedule:
  """By step, as MAE's `adjust_learning_rate`: linear from 0, then half a cosine to 0."""
  return optax.warmup_cosine_decay_schedule(0.0, peak, warm_up_steps, num_steps)


def make_mae_optimizer(learning_rate: optax.Schedule, weight_decay: float) -> optax.GradientTransformation:
  """MAE's and AudioMAE's AdamW: decay on all but biases and norms, which alone have one axis."""

  def decays(parameters: Any) -> Any:
    return jax.tree.map(lambda x: x.ndim > 1, parameters)

  return optax.adamw(learning_rate, b1=0.9, b2=0.95, eps=1e-8, weight_decay=weight_decay, mask=decays)


def create_train_state(
  init: Callable[[], nnx.Module], patterns: Sequence[str], tx: optax.GradientTransformation, *, mesh: Mesh,
  fsdp_min_size_mb: float,
) -> tuple[nnx.GraphDef, TrainState]:  # fmt: skip
  """A model as `init` makes it, split by `patterns` of tunable parameters, spread over the mesh."""

  def spread(tree: Any) -> Any:
    return fsdp_sharding(tree, mesh, fsdp_min_size_mb)

  graphdef, *states = split_tunable(init(), patterns)
  tunable, frozen = (jax.device_put(state, spread(state)) for state in states)
  opt_state = jax.jit(tx.init, out_shardings=spread(jax.eval_shape(tx.init, tunable)))(tunable)
  step = jax.device_put(jnp.zeros((), jnp.int32), spread(jnp.zeros(())))
  return graphdef, TrainState(step, tunable, frozen, opt_state)
