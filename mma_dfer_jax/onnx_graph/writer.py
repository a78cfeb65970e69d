"""A JAX function -> an ONNX graph, read from the function's own jaxpr: no part of a model is described a second time.

Weights become initialisers named by their paths, each once; a dimension given as a symbol (`jax.export.symbolic_shape`)
stays open. What follows from weights alone is computed while writing. Functions with a name (`rules.NAMED`) become one node
each; a broadcast is written only where ONNX's operators do not do it by themselves. Beside JAX it needs `onnx` alone.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.extend.core import Literal
import numpy as np
import onnx
from onnx import helper, numpy_helper

from mma_dfer_jax.onnx_graph.graph import Graph, NotWritable, Tensor, is_static, known
from mma_dfer_jax.onnx_graph.rules import NAMED, RULES

OPSET = 20  # LayerNormalization came with 17, Gelu with 20
IR_VERSION = 9  # of the file format, as old as that opset
CALLS = {
  "jit", "pjit", "closed_call", "core_call", "checkpoint", "remat2", "custom_jvp_call", "custom_vjp_call"
}  # fmt: skip
# Not computed while writing, even if all inputs are known: cheaper by rule, or a matter of the open dimension.
VIEWS = {"broadcast_in_dim", "reshape", "transpose", "squeeze", "slice"}


def opened(jaxpr: Any) -> tuple[Any, Sequence[Any]]:
  """A jaxpr and its constants; JAX 0.12 has no ClosedJaxpr any more."""
  return getattr(jaxpr, "jaxpr", jaxpr), getattr(jaxpr, "consts", ())


def called(eqn: Any) -> Any:
  """The jaxpr that an equation of `CALLS` runs."""
  return next(eqn.params[key] for key in ("call_jaxpr", "jaxpr") if key in eqn.params)


def line_of(eqn: Any) -> str | None:
  """The innermost line that is neither JAX's nor Flax's."""
  frames = eqn.source_info.traceback.frames if eqn.source_info.traceback else []
  own = (f for f in frames if "site-packages" not in f.file_name and not f.file_name.startswith("<"))
  return next((f"{f.file_name.rsplit('/', 1)[-1]}:{f.line_num} in {f.function_name}" for f in own), None)


class Writer(Graph):
  """Interprets a jaxpr."""

  def __init__(self, taken: Sequence[str]):
    super().__init__(taken)
    self.callers: list[Any] = []  # equations that are being inlined

  def run(self, jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Tensor]) -> list[Tensor]:
    """What the equations of a jaxpr give for inputs."""
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*map(known, consts), *inputs], strict=True))

    def read(v: Any) -> Tensor:
      return known(np.asarray(v.val, v.aval.dtype)) if isinstance(v, Literal) else values[v]  # type: ignore[attr-defined]

    for eqn in jaxpr.eqns:
      outputs = self._equation(eqn, [read(v) for v in eqn.invars])
      values.update(zip(eqn.outvars, outputs, strict=True))
    return [read(v) for v in jaxpr.outvars]

  def _equation(self, eqn: Any, inputs: list[Tensor]) -> list[Tensor]:
    primitive = eqn.primitive.name
    if primitive in CALLS:
      jaxpr, consts = opened(called(eqn))
      write: Any = NAMED.get(jaxpr.debug_info.func_name) if primitive == "custom_vjp_call" else None
      self.callers.append(eqn)
      node = write(self, jaxpr, *inputs) if write else None
      outputs = [node] if node else self.run(jaxpr, consts, inputs)
      self.callers.pop()
      return outputs
    plain = all(is_static(v.aval.shape) and isinstance(v.aval.dtype, np.dtype) for v in eqn.outvars)
    if plain and primitive not in VIEWS and all(x.array is not None for x in inputs):
      out = eqn.primitive.bind(*(jax.numpy.asarray(self.full(x).array) for x in inputs), **eqn.params)
      label = next((x.label for x in inputs if x.label), None)
      return [known(o, label) for o in (out if eqn.primitive.multiple_results else [out])]
    try:
      if primitive not in RULES:
        raise NotWritable("no rule for this primitive")
      found = RULES[primitive](self, eqn, *inputs)
    except NotWritable as problem:
      avals = ", ".join(str(v.aval) for v in eqn.invars)
      line = next(filter(None, map(line_of, [eqn, *reversed(self.callers)])), "line unknown")
      raise NotWritable(f"{primitive}({avals}) of {line}: {problem}") from None
    return found if isinstance(found, list) else [found]


def to_onnx(
  function: Callable[..., Any], weights: Mapping[str, Any], inputs: Mapping[str, jax.ShapeDtypeStruct], *outputs: str
) -> onnx.ModelProto:  # fmt: skip
  """function(weights, *inputs) -> an array, or a list of arrays, as an ONNX model.

  Args:
    weights: arrays by name.
    inputs: shapes and types by name; dimensions may be symbols, each of which must stand alone in some shape.
    outputs: a name for each array.
  Raises:
    NotWritable: with the primitive and the line that it comes from.
  """
  arrays = {name: np.asarray(array) for name, array in weights.items()}
  abstract = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in arrays.items()}
  jaxpr, consts = opened(jax.make_jaxpr(function)(abstract, *inputs.values()))
  w = Writer([*inputs, *outputs])
  given = [known(arrays[name], name) for name in sorted(arrays)]  # as JAX orders the leaves of a dict
  for name, x in inputs.items():
    given.append(Tensor(shape=tuple(x.shape), dtype=np.dtype(x.dtype), held=tuple(x.shape), name=name))
    w.symbols |= {str(d): (given[-1], axis) for axis, d in enumerate(x.shape) if not is_static([d])}
  results = [w.full(x) for x in w.run(jaxpr, consts, given)]
  names = [w.name(x) for x in results]  # may add nodes
  ends = [helper.make_node("Identity", [name], [end]) for name, end in zip(names, outputs, strict=True)]
  nodes = [*w.nodes, *ends]
  needed, kept = set(outputs), []
  for node in reversed(nodes):  # what nothing asks for goes
    if needed & set(node.output):
      kept.append(node)
      needed |= set(node.input)

  def info(name: str, x: Any) -> onnx.ValueInfoProto:
    dims = [int(d) if is_static([d]) else str(d) for d in x.shape]
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(x.dtype)), dims)

  taken = [info(name, x) for name, x in inputs.items()]
  given_back = [info(name, x) for name, x in zip(outputs, results, strict=True)]
  graph = helper.make_graph(kept[::-1], "model", taken, given_back)
  model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
  for name, array in w.arrays.items():  # straight into the model: a list of them would double the memory
    if name in needed:
      model.graph.initializer.add().CopyFrom(numpy_helper.from_array(np.asarray(array, order="C"), name))
  return model
