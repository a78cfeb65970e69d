"""What training carries along: the tunable and the frozen parameters, the optimizer's moments, the step."""

from collections.abc import Callable, Sequence
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


def make_optimizer(learning_rate: optax.Schedule, weight_decay: float) -> optax.GradientTransformation:
  """PyTorch's AdamW with its defaults; decay on every parameter it is given, as in the original."""
  return optax.adamw(learning_rate, b1=0.9, b2=0.999, eps=1e-8, weight_decay=weight_decay)


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
