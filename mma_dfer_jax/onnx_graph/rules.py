"""What each primitive of JAX becomes in ONNX, and which functions become one node; a part that needs more adds it here."""

from collections.abc import Callable
import dataclasses
import itertools
import math
from typing import Any

from jax.extend.core import Literal
import numpy as np

from mma_dfer_jax.onnx_graph.graph import Graph, NotWritable, Tensor, is_static, known

RULES: dict[str, Any] = {}  # primitive -> rule(graph, equation, *inputs) -> Tensor, or a list of them


def rule(*primitives: str) -> Callable[[Any], None]:
  return lambda function: RULES.update(dict.fromkeys(primitives, function))


# Functions with a name: what is wrapped in custom_vjp keeps its name in the jaxpr. None: written equation by equation.


def _normalise(w: Graph, jaxpr: Any, x: Tensor) -> Tensor | None:
  roots = {id(e.invars[0]) for e in jaxpr.eqns if e.primitive.name == "rsqrt"}
  sums = [e for e in jaxpr.eqns if e.primitive.name == "add" and id(e.outvars[0]) in roots]
  epsilons = [float(v.val) for e in sums for v in e.invars if isinstance(v, Literal)]
  if len(epsilons) != 1:
    return None
  return Tensor(shape=x.shape, dtype=x.dtype, held=x.shape, normal=(w.full(x), epsilons[0], None))


def _attend(w: Graph, _: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
  q, k, v = map(w.full, (q, k, v))
  rank = len(q.shape)
  q = w.op("Mul", [q, np.array(q.shape[-1] ** -0.5, q.dtype)], q.shape, q.dtype)
  keys = w.transpose(k, [*range(rank - 2), rank - 1, rank - 2])
  scores = w.op("MatMul", [q, keys], (*q.shape[:-1], k.shape[-2]), q.dtype)
  if bias is not None:
    scores = w.op("Add", [scores, w.unsqueeze(w.full(bias), [1, 2])], scores.shape, q.dtype)
  weights = w.op("Softmax", [scores], scores.shape, q.dtype, axis=-1)
  return w.op("MatMul", [weights, v], (*q.shape[:-1], v.shape[-1]), q.dtype)


def _gelu(w: Graph, _: Any, x: Tensor) -> Tensor:
  return w.op("Gelu", [x], x.shape, x.dtype, x.held)


NAMED = {"gelu": _gelu, "normalise": _normalise, "attend": _attend}

# Primitives, element by element.

ALIKE = {  # one operator of ONNX that means the same
  "add": "Add", "add_any": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "max": "Max", "min": "Min", "pow": "Pow",
  "neg": "Neg", "exp": "Exp", "log": "Log", "tanh": "Tanh", "logistic": "Sigmoid", "erf": "Erf", "sqrt": "Sqrt", "abs": "Abs", "eq": "Equal",
}  # fmt: skip


@rule(*ALIKE)
def _(w, eqn, *inputs):
  out, kind = eqn.outvars[0].aval, ALIKE[eqn.primitive.name]
  for a, b in (inputs, inputs[::-1]) if kind in ("Mul", "Add") else ():
    row = b.array is not None and a.normal and b.array.size == a.shape[-1] and b.held[-1:] == a.shape[-1:]
    if row and (kind == "Add") == (a.normal[2] is not None):  # first the scale, then the bias
      source, epsilon, scale = a.normal
      b = known(b.array.reshape(-1), b.label)
      if kind == "Mul":
        return dataclasses.replace(a, normal=(source, epsilon, b), name=None)
      return w.op("LayerNormalization", [source, scale, b], a.shape, a.dtype, axis=-1, epsilon=epsilon)
  return w.each(kind, inputs, out)


@rule("rsqrt", "square", "integer_pow", "erfc")
def _(w, eqn, x):
  out = eqn.outvars[0].aval
  match eqn.primitive.name, eqn.params.get("y", 2):
    case "rsqrt", _:
      return w.each("Reciprocal", [w.each("Sqrt", [x], out)], out)
    case "erfc", _:
      return w.each("Sub", [known(np.array(1, x.dtype)), w.each("Erf", [x], out)], out)
    case _, 2:
      return w.each("Mul", [x, x], out)
    case _, exponent:
      return w.each("Pow", [x, known(np.array(exponent, x.dtype))], out)


@rule("name", "stop_gradient", "copy", "copy_p", "optimization_barrier", "sharding_constraint")
def _(w, eqn, *inputs):
  return list(inputs)


@rule("convert_element_type")
def _(w, eqn, x):
  return w.cast(x, eqn.params["new_dtype"])


# Primitives about shapes.


@rule("broadcast_in_dim")
def _(w, eqn, x, *_):
  shape, kept = eqn.outvars[0].aval.shape, eqn.params["broadcast_dimensions"]
  x = w.unsqueeze(x, [i for i in range(len(shape)) if i not in kept])
  if x.normal:
    w.name(x)  # written now: what is broadcast takes no scale of its own
  return dataclasses.replace(x, shape=shape, normal=None)


@rule("reshape")
def _(w, eqn, x, *_):
  return w.reshape(x, eqn.outvars[0].aval.shape)


@rule("squeeze")
def _(w, eqn, x):
  return w.squeeze(x, eqn.params["dimensions"])


@rule("transpose")
def _(w, eqn, x):
  return w.transpose(x, eqn.params["permutation"])


@rule("concatenate")
def _(w, eqn, *inputs):
  return w.concat(inputs, eqn.params["dimension"])


@rule("stack")  # of JAX 0.12
def _(w, eqn, *inputs):
  return w.concat([w.unsqueeze(x, [eqn.params["axis"]]) for x in inputs], eqn.params["axis"])


@rule("slice")
def _(w, eqn, x, *_):
  return w.cut(x, eqn.params["start_indices"], eqn.params["limit_indices"], eqn.params["strides"])


@rule("split", "unstack")
def _(w, eqn, x):
  axis, number = eqn.params["axis"], len(eqn.outvars)
  ends = itertools.accumulate(eqn.params.get("sizes", [1] * number))
  spans = itertools.pairwise([0, *ends])
  ranges = [[span if i == axis else (0, d) for i, d in enumerate(x.shape)] for span in spans]
  pieces = [w.cut(x, *zip(*r, strict=True)) for r in ranges]
  return [w.squeeze(p, [axis]) for p in pieces] if eqn.primitive.name == "unstack" else pieces


def _starts(index: Tensor, axes: Any, shape: Any, sizes: Any) -> list[int]:
  """A known place where a window of these sizes begins."""
  if index.array is None or len(index.shape) != 1:
    raise NotWritable("only one place, known while writing")
  starts = [0] * len(shape)
  for axis, start in zip(axes, index.array.tolist(), strict=True):
    if not is_static([shape[axis], sizes[axis]]) or not 0 <= start <= shape[axis] - sizes[axis]:
      raise NotWritable("a place along an open dimension, or outside of the array")
    starts[axis] = start
  return starts


@rule("gather")
def _(w, eqn, x, index):
  numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
  dims = numbers.operand_batching_dims, numbers.start_index_map, numbers.collapsed_slice_dims
  if dims == ((0,), (1,), (1,)):
    whole = all(s in (1, d) for s, d in zip(sizes, x.shape, strict=True))
    if numbers.start_indices_batching_dims != (0,) or not whole:
      raise NotWritable("rows of each example, but not whole ones")
    index = w.cast(w.full(index), np.dtype(np.int64))  # places along the second axis: (B, k, 1), in bounds
    return w.op("GatherND", [w.full(x), index], eqn.outvars[0].aval.shape, x.dtype, batch_dims=1)
  starts = _starts(index, numbers.start_index_map, x.shape, sizes)
  window = w.cut(x, starts, [s + n for s, n in zip(starts, sizes, strict=True)])
  return w.squeeze(window, list(numbers.collapsed_slice_dims))


@rule("scatter-add", "scatter_add")
def _(w, eqn, x, index, update):
  """Adds to some elements along axes: `x.at[:, 3:5].add(…)`."""
  numbers = eqn.params["dimension_numbers"]
  update = w.unsqueeze(update, list(numbers.inserted_window_dims))
  starts = _starts(index, numbers.scatter_dims_to_operand_dims, x.shape, update.shape)
  after = [d - s - n if s or n != d else 0 for d, s, n in zip(x.shape, starts, update.shape, strict=True)]
  axes = [i for i, (s, a) in enumerate(zip(starts, after, strict=True)) if s or a]
  update = w.full(update) if any(update.held[i] != update.shape[i] for i in axes) else update
  held = [x.shape[i] if i in axes else h for i, h in enumerate(update.held)]
  if update.array is not None:
    array = np.pad(update.array, list(zip(starts, after, strict=True)))
    wider = Tensor(shape=x.shape, dtype=x.dtype, held=tuple(held), array=array, label=update.label)
  else:
    pads = np.array([side[i] for side in (starts, after) for i in axes], np.int64)
    zero = np.array(0, x.dtype)
    wider = w.op("Pad", [update, pads, zero, np.array(axes, np.int64)], x.shape, x.dtype, held)
  return w.each("Add", [x, wider], eqn.outvars[0].aval)


# Primitives that sort, reduce and contract.


@rule("top_k")
def _(w, eqn, x):
  """Of equal elements the first, in both."""
  values, places = (v.aval for v in eqn.outvars)
  if eqn.params["axis"] not in (-1, len(x.shape) - 1):
    raise NotWritable("only along the last axis")
  found = w.op("TopK", [w.full(x), np.array([eqn.params["k"]], np.int64)], values.shape, x.dtype, axis=-1)
  w.nodes[-1].output.append(f"{found.name}_places")
  where = dataclasses.replace(found, dtype=np.dtype(np.int64), name=f"{found.name}_places")
  return [found, w.cast(where, places.dtype)]


@rule("reduce_sum", "reduce_max", "reduce_min")
def _(w, eqn, x):
  kind, axes = eqn.primitive.name.removeprefix("reduce_").capitalize(), eqn.params["axes"]
  x = w.full(x) if any(x.held[i] != x.shape[i] for i in axes) else x
  shape, held = ([d for i, d in enumerate(s) if i not in axes] for s in (x.shape, x.held))
  return w.op(f"Reduce{kind}", [x, np.array(axes, np.int64)], shape, x.dtype, held, keepdims=0)


@rule("dot_general")
def _(w, eqn, a, b):
  """MatMul of (batch..., rows, inner) and (batch..., inner, columns)."""
  out = eqn.outvars[0].aval
  (inner_a, inner_b), (batch_a, batch_b) = eqn.params["dimension_numbers"]
  a, b = w.full(a), w.full(b)
  rows = [i for i in range(len(a.shape)) if i not in (*inner_a, *batch_a)]
  columns = [i for i in range(len(b.shape)) if i not in (*inner_b, *batch_b)]
  batch, inner = [a.shape[i] for i in batch_a], math.prod(a.shape[i] for i in inner_a)
  left, right = [a.shape[i] for i in rows], [b.shape[i] for i in columns]
  a, b = w.transpose(a, [*batch_a, *rows, *inner_a]), w.transpose(b, [*batch_b, *inner_b, *columns])
  several = len(rows) > 1 and bool(batch)  # else it is a kernel: rows may have several axes
  if several or not len(inner_a) == len(columns) == 1:
    a = w.reshape(a, [*batch, math.prod(left), inner])
    b = w.reshape(b, [*batch, inner, math.prod(right)])
    left, right = [math.prod(left)], [math.prod(right)]
  y = w.op("MatMul", [a, b], [*batch, *left, *right], a.dtype)
  return w.cast(w.reshape(y, out.shape), out.dtype)


@rule("conv_general_dilated")
def _(w, eqn, x, kernel):
  p, out = eqn.params, eqn.outvars[0].aval
  if any(d != 1 for d in p["lhs_dilation"]) or p["batch_group_count"] != 1:
    raise NotWritable("transposed and batch-grouped convolutions")
  numbers = p["dimension_numbers"]
  x, kernel = w.transpose(w.full(x), numbers.lhs_spec), w.transpose(w.full(kernel), numbers.rhs_spec)
  sizes = {"kernel_shape": kernel.shape[2:], "strides": p["window_strides"], "dilations": p["rhs_dilation"],
           "pads": [side for sides in zip(*p["padding"], strict=True) for side in sides],
           "group": p["feature_group_count"]}  # fmt: skip
  y = w.op("Conv", [x, kernel], [out.shape[i] for i in numbers.out_spec], x.dtype, **sizes)
  return w.cast(w.transpose(y, np.argsort(numbers.out_spec).tolist()), out.dtype)
