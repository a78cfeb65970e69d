"""The parameters of a model by path: shapes, counts, which are tunable and which frozen."""

from collections.abc import Mapping, Sequence
import functools
import re
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp

from mma_dfer_jax.errors import listed
from mma_dfer_jax.model import SLOTS, MmaDfer, ModelConfig

PRECISIONS = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}  # of the computation


class Tunable:
  """Filter for `nnx.split`: true for parameters whose "/"-joined path fully matches one of the patterns."""

  def __init__(self, patterns: Sequence[str]):
    self.patterns = [re.compile(pattern) for pattern in patterns]

  def __call__(self, path, value) -> bool:
    return any(pattern.fullmatch("/".join(map(str, path))) for pattern in self.patterns)


def flat_params(state: nnx.State) -> dict[str, Any]:
  """Variables, or what replaces them, by "/"-joined path."""
  return {"/".join(map(str, path)): variable for path, variable in nnx.to_flat_state(state)}


@functools.lru_cache(maxsize=8)  # tracing a dozen layers takes seconds
def abstract_model(cfg: ModelConfig) -> tuple[nnx.GraphDef, nnx.State]:
  """(graph definition, shapes) of a model, without any values; do not change them, they are cached."""
  return nnx.split(nnx.eval_shape(lambda: MmaDfer(cfg, rngs=nnx.Rngs(0))))


def parameter_shapes(cfg: ModelConfig) -> dict[str, tuple[int, ...]]:
  return {path: tuple(variable.shape) for path, variable in flat_params(abstract_model(cfg)[1]).items()}


def tunable_patterns(cfg: ModelConfig, patterns: Sequence[Any] = ()) -> tuple[str, ...]:
  """Regular expressions of whole paths of parameters that are trained: the given ones, or else those of the parts' own that
  match any.

  UserError names every pattern that is no regular expression or matches no parameter.
  """
  paths, problems = list(parameter_shapes(cfg)), []
  # What a part trains by default may be nothing: the head "text" has fixed vectors, and maybe no more.
  usual = {f"model.{slot}.tunable {p!r}" for slot in SLOTS for p in type(getattr(cfg, slot))().tunable}
  # A stranger's file may hold anything, nested too deeply to be shown.
  given = {f"tunable {p!r}" if isinstance(p, str) else "tunable": [p] for p in patterns} or cfg.tunable()
  found: list[str] = []
  for name, of_name in given.items():
    try:
      matching = [one for one in of_name if any(re.fullmatch(one, path) for path in paths)]
      if not matching and name not in usual:
        problems.append(f"{name} matches no parameter")
      found += matching
    except (re.error, TypeError) as error:
      problems.append(f"{name} is no regular expression: {error}")
  if problems:
    places = ", ".join(sorted({path.split("/")[0] for path in paths}))
    raise listed("these patterns do not fit the model", problems, f"parameter paths start with {places}")
  return tuple(found)


def split_tunable(model: nnx.Module, patterns: Sequence[str]) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
  """(graph definition, tunable, frozen) parameters of a model."""
  graphdef, tunable, frozen = nnx.split(model, Tunable(patterns), ...)  # type: ignore[misc] # three for two filters
  return graphdef, tunable, frozen


def cast(parameters: nnx.State, precision: str) -> nnx.State:
  """Parameters in a precision, which all that is computed with them follows; classifier, logits and loss stay float32."""
  dtype = PRECISIONS[precision]
  return nnx.from_flat_state(
    (path, variable if path[0] in MmaDfer.FLOAT32 else jax.tree.map(lambda x: x.astype(dtype), variable))
    for path, variable in nnx.to_flat_state(parameters)
  )


def count(tree: Any) -> int:
  return sum(x.size for x in jax.tree.leaves(tree))


def parameter_table(tunable: nnx.State, frozen: nnx.State) -> str:
  """Tunable and frozen elements of each part of the model, as text."""
  of_parts: dict[str, list[int]] = {}
  for column, tree in enumerate((tunable, frozen)):
    for path, variable in flat_params(tree).items():
      of_parts.setdefault(path.split("/")[0], [0, 0])[column] += variable.size
  rows = of_parts | {"sum": [count(tunable), count(frozen)]}
  lines = [f"{part:<18}{here:>14,}{there:>14,}" for part, (here, there) in rows.items()]
  return "\n".join([f"{'part':<18}{'tunable':>14}{'frozen':>14}", *lines])


def put_over(model: nnx.Module, values: Mapping[str, Any]) -> None:
  """Replaces parameters of a fresh model by path, in place.

  A table of positions may lack the rows of the prompts: these keep their fresh values, as in the original.
  """
  variables = flat_params(nnx.state(model))
  for path, value in values.items():
    if path.endswith("pos_embed"):
      value = jnp.concatenate([value, variables[path][...][:, value.shape[1] :]], axis=1)
    # A NumPy array would be scattered over the old values, by a program for each shape.
    variables[path][...] = jnp.asarray(value, variables[path].dtype)
  nnx.update(model, nnx.state(model))
