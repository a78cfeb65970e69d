"""What training carries along: the tunable and the frozen parameters, the optimizer's moments, the step."""

from collections.abc import Mapping, Sequence
import functools
import re
from types import MappingProxyType
from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np
import optax

from mma_dfer_jax.errors import listed
from mma_dfer_jax.model import MmaDfer, ModelConfig
from mma_dfer_jax.sharding import fsdp_sharding


class TrainState(NamedTuple):
  """One pytree through the jitted step; `frozen` gets no gradient, no moments and no decay."""

  step: jax.Array  # () int32, updates so far
  tunable: nnx.State  # 🔥
  frozen: nnx.State  # ❄
  opt_state: optax.OptState  # moments of the tunable parameters only


class Tunable:
  """Filter for `nnx.split`: true for parameters whose "/"-joined path fully matches one of the patterns."""

  def __init__(self, patterns: Sequence[str]):
    self.patterns = [re.compile(pattern) for pattern in patterns]

  def __call__(self, path, value) -> bool:
    del value
    return any(pattern.fullmatch("/".join(map(str, path))) for pattern in self.patterns)


def check_tunable(patterns: Sequence[str], paths: Sequence[str]) -> None:
  """Raises UserError with every pattern that is no regular expression or matches none of the parameters."""
  problems = []
  for pattern in patterns:
    try:
      if not any(re.fullmatch(pattern, path) for path in paths):
        problems.append(f"{pattern!r} matches no parameter")
    except re.error as error:
      problems.append(f"{pattern!r} is no regular expression: {error}")
  if not patterns:
    problems.append("there are no patterns, so nothing would be trained")
  if problems:
    modules = ", ".join(sorted({path.split("/")[0] for path in paths}))
    raise listed("config.tunable does not fit", problems, f"parameter paths start with {modules}")


def flat_params(state: nnx.State) -> dict[str, Any]:
  """Variables (or what stands in their place) by "/"-joined path."""
  return {"/".join(map(str, path)): variable for path, variable in nnx.to_flat_state(state)}


@functools.lru_cache(maxsize=8)  # tracing a dozen layers takes seconds
def abstract_model(cfg: ModelConfig) -> tuple[nnx.GraphDef, nnx.State]:
  """The structure of the model without a single number: (graph definition, shapes); to be read only."""
  return nnx.split(nnx.eval_shape(lambda: MmaDfer(cfg, rngs=nnx.Rngs(0))))


def parameter_shapes(cfg: ModelConfig) -> dict[str, tuple[int, ...]]:
  """The shape of each parameter, by path."""
  return {path: tuple(variable.shape) for path, variable in flat_params(abstract_model(cfg)[1]).items()}


def put_pretrained(model: MmaDfer, pretrained: Mapping[str, np.ndarray]) -> None:
  """Writes parameters by path over those of a fresh model, in place.

  A table of positions may be given without the rows of the prompts: those stay as they were drawn, as in the original.
  """
  variables = flat_params(nnx.state(model))
  for path, value in pretrained.items():
    fresh = variables[path][...]
    variables[path][...] = (
      jnp.concatenate([value, fresh[:, value.shape[1] :]], axis=1) if path.endswith("pos_embed") else value
    )
  nnx.update(model, nnx.state(model))


def split_tunable(model: MmaDfer, patterns: Sequence[str]) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
  """(graph definition, tunable, frozen) parameters of a model."""
  graphdef, tunable, frozen = nnx.split(model, Tunable(patterns), ...)  # type: ignore[misc] # three for two filters
  return graphdef, tunable, frozen


def cosine_by_epoch(learning_rate: float, num_epochs: int, steps_per_epoch: int) -> optax.Schedule:
  """lr · (1 + cos(π · epoch / epochs)) / 2, constant within an epoch; CosineAnnealingLR(T_max=epochs) of main.py."""
  # Made in float64: close to the end 1 + cos loses half of float32's digits.
  rates = learning_rate * 0.5 * (1 + np.cos(np.pi * np.arange(num_epochs) / num_epochs))
  return lambda step: jnp.asarray(rates, jnp.float32)[step // steps_per_epoch]


def make_optimizer(learning_rate: optax.Schedule, weight_decay: float) -> optax.GradientTransformation:
  """PyTorch's AdamW with its defaults; decay on every parameter it is given, as in the original."""
  return optax.adamw(learning_rate, b1=0.9, b2=0.999, eps=1e-8, weight_decay=weight_decay)


def create_train_state(
  cfg: ModelConfig,
  patterns: Sequence[str],
  tx: optax.GradientTransformation,
  *,
  seed: int,
  mesh: Mesh,
  fsdp_min_size_mb: float,
  pretrained: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> tuple[nnx.GraphDef, TrainState]:
  """A freshly initialised model with pretrained parameters put over it, split by `patterns`, spread over the mesh.

  Raises:
    UserError: if a pattern matches nothing.
  """
  model = MmaDfer(cfg, rngs=nnx.Rngs(params=seed))
  put_pretrained(model, pretrained)
  check_tunable(patterns, list(flat_params(nnx.state(model))))
  graphdef, tunable, frozen = split_tunable(model, patterns)
  tunable, frozen = (
    jax.device_put(part, fsdp_sharding(part, mesh, fsdp_min_size_mb)) for part in (tunable, frozen)
  )
  moments = jax.eval_shape(tx.init, tunable)
  opt_state = jax.jit(tx.init, out_shardings=fsdp_sharding(moments, mesh, fsdp_min_size_mb))(tunable)
  step = jax.device_put(jnp.zeros((), jnp.int32), fsdp_sharding(jnp.zeros(()), mesh, fsdp_min_size_mb))
  return graphdef, TrainState(step, tunable, frozen, opt_state)


def count(tree: Any) -> int:
  """Number of elements of all arrays."""
  return sum(x.size for x in jax.tree.leaves(tree))


def dead_elements(cfg: ModelConfig) -> int:
  """Elements that the original counts as trainable but never uses: two LayerNorms per temporal block."""
  return cfg.temporal_depth * 2 * 2 * cfg.temporal_width


def parameter_table(state: TrainState) -> str:
  """Tunable and frozen elements of each part of the model, as text."""
  parts: dict[str, list[int]] = {}
  for column, tree in enumerate((state.tunable, state.frozen)):
    for path, variable in flat_params(tree).items():
      parts.setdefault(path.split("/")[0], [0, 0])[column] += variable.size
  lines = [f"{'part':<18}{'tunable':>14}{'frozen':>14}"]
  lines += [f"{part:<18}{tunable:>14,}{frozen:>14,}" for part, (tunable, frozen) in parts.items()]
  return "\n".join([*lines, f"{'sum':<18}{count(state.tunable):>14,}{count(state.frozen):>14,}"])
