"""An ONNX graph under construction: its tensors, and the operators that most rules need."""

import ast
from collections.abc import Iterable, Sequence
import dataclasses
import hashlib
import itertools
from typing import Any

import numpy as np
import onnx
from onnx import helper

from mma_dfer_jax.errors import UserError


class NotWritable(UserError):
  """The function holds something that has no rule here."""


@dataclasses.dataclass(kw_only=True)
class Tensor:
  """A value of the function."""

  shape: tuple  # as JAX has it; dimensions may be symbols
  dtype: Any
  held: tuple  # shape of what is stored: 1 where it is still to be broadcast to `shape`
  array: np.ndarray | None = None  # what is stored, if it follows from weights alone
  label: str | None = None  # path of the weight that it comes from
  name: str | None = None  # in the graph; an array gets one when a node first takes it
  # (x, epsilon, scale) of a LayerNormalization that is not written yet: scale and bias may follow.
  normal: tuple[Any, float, Any] | None = None


def known(array: Any, label: str | None = None) -> Tensor:
  array = np.asarray(array)
  return Tensor(shape=array.shape, dtype=array.dtype, held=array.shape, array=array, label=label)


def is_static(shape: Iterable[Any]) -> bool:
  return all(isinstance(size, int | np.integer) for size in shape)


class Graph:
  """The graph under construction: what rules call."""

  def __init__(self, taken: Iterable[str]):
    self.nodes: list[onnx.NodeProto] = []
    self.arrays: dict[str, np.ndarray] = {}  # initialisers by name
    self.names: dict[tuple, str] = {}  # of those, by what makes them one
    self.symbols: dict[str, tuple[Tensor, int]] = {}  # where an input shows the size of an open dimension
    self.vectors: dict[str, Tensor] = {}  # shapes with open dimensions
    self.taken = set(taken)  # names of inputs and outputs

  def op(self, kind: str, inputs: Sequence[Any], shape: Iterable, dtype: Any, held: Iterable | None = None,
         **attributes: Any) -> Tensor:  # fmt: skip
    """Adds a node with one output."""
    names = [self.name(x) for x in inputs]  # may add nodes
    name = f"{kind}_{len(self.nodes)}"
    self.nodes.append(helper.make_node(kind, names, [name], name=name, **attributes))
    shape = tuple(shape)
    return Tensor(shape=shape, dtype=dtype, held=shape if held is None else tuple(held), name=name)

  def each(self, kind: str, inputs: Sequence[Any], out: Any, **attributes: Any) -> Tensor:
    """Adds an operator that broadcasts by itself; the result is held as widely as its widest input."""
    columns = itertools.zip_longest(*(reversed(x.held) for x in inputs), fillvalue=1)
    held = [next((h for h in column if h != 1), 1) for column in columns]
    full = [1] * (len(out.shape) - len(held)) + held[::-1]
    return self.op(kind, inputs, out.shape, out.dtype, full, **attributes)

  def name(self, x: Any) -> str:
    x = x if isinstance(x, Tensor) else known(x)
    if x.name is None and x.normal:
      source, epsilon, scale = x.normal
      inputs = [source, np.ones(x.shape[-1:], x.dtype) if scale is None else scale]
      x.name = self.op("LayerNormalization", inputs, x.shape, x.dtype, axis=-1, epsilon=epsilon).name
    if x.name is None:  # weights are told apart by where they lie, numbers of our own by what they are
      where = x.array.__array_interface__["data"][0], x.array.strides
      what = where if x.label else hashlib.sha256(x.array.tobytes()).digest()
      key = (x.label, x.array.shape, x.array.dtype.str, what)
      if key not in self.names:
        base = x.label or "constant"
        free = (f"{base}{suffix}" for suffix in itertools.chain([""], (f"_{i}" for i in itertools.count(1))))
        self.names[key] = next(n for n in free if n not in self.arrays and n not in self.taken)
        self.arrays[self.names[key]] = x.array
      x.name = self.names[key]
    return x.name

  def full(self, x: Tensor) -> Tensor:
    """x with every broadcast done."""
    if x.held == x.shape:
      return x
    if x.array is not None and is_static(x.shape):
      return known(np.broadcast_to(x.array, x.shape), x.label)
    wider = [1 if h == s else s for h, s in zip(x.held, x.shape, strict=True)]
    return self.op("Expand", [x, self.vector(wider)], x.shape, x.dtype)  # 1 leaves a dimension as it is

  def vector(self, dims: Sequence[Any], infer: bool = False) -> Any:
    """Dimensions as an int64 vector; with `infer` the only symbol among them is left to the runtime, as -1."""
    if infer and sum(not is_static([d]) for d in dims) == 1:
      dims = [d if is_static([d]) else -1 for d in dims]
    if is_static(dims):
      return np.array(dims, np.int64)
    key = ", ".join(map(str, dims))
    if key not in self.vectors:
      extents = [self._extent(ast.parse(str(d), mode="eval").body) for d in dims]
      self.vectors[key] = self.op("Concat", extents, (len(dims),), np.int64, axis=0)
    return self.vectors[key]

  def _extent(self, node: Any) -> Any:
    """A dimension such as 2*b, parsed -> an int64 vector of one element, from the inputs' shapes."""
    kinds: dict[Any, str] = {ast.Add: "Add", ast.Sub: "Sub", ast.Mult: "Mul"}
    match node:
      case ast.Constant():
        return np.array([node.value], np.int64)
      case ast.Name():
        source, axis = self.symbols[node.id]
        return self.op("Shape", [source], (1,), np.int64, start=axis, end=axis + 1)
      case ast.BinOp() if type(node.op) in kinds:
        sides = [self._extent(node.left), self._extent(node.right)]
        return self.op(kinds[type(node.op)], sides, (1,), np.int64)
    raise NotWritable(f"the dimension {ast.unparse(node)} cannot be computed in the graph")

  def reshape(self, x: Tensor, shape: Iterable) -> Tensor:
    x, shape = self.full(x), tuple(shape)
    if x.shape == shape:
      return x
    if x.array is not None and is_static(shape):
      return known(x.array.reshape(shape), x.label)
    return self.op("Reshape", [x, self.vector(shape, infer=True)], shape, x.dtype)

  def transpose(self, x: Tensor, order: Sequence[int]) -> Tensor:
    if list(order) == sorted(order):
      return x
    shape, held = (tuple(s[i] for i in order) for s in (x.shape, x.held))
    if x.array is not None:
      return self._view(x, shape, held, x.array.transpose(order))
    return self.op("Transpose", [x], shape, x.dtype, held, perm=list(order))

  def squeeze(self, x: Tensor, axes: Sequence[int]) -> Tensor:
    shape, held = (tuple(d for i, d in enumerate(s) if i not in axes) for s in (x.shape, x.held))
    return self._without_or_with(x, "Squeeze", axes, shape, held)

  def unsqueeze(self, x: Tensor, axes: Sequence[int]) -> Tensor:
    shape, held = list(x.shape), list(x.held)
    for axis in sorted(axes):
      shape.insert(axis, 1)
      held.insert(axis, 1)
    return self._without_or_with(x, "Unsqueeze", axes, tuple(shape), tuple(held))

  def _without_or_with(self, x: Tensor, kind: str, axes: Sequence[int], shape: tuple, held: tuple) -> Tensor:
    if not axes:
      return x
    if x.array is not None:
      return self._view(x, shape, held, x.array.reshape(held))
    return self.op(kind, [x, np.array(axes, np.int64)], shape, x.dtype, held)

  def _view(self, x: Tensor, shape: tuple, held: tuple, array: np.ndarray) -> Tensor:
    return dataclasses.replace(x, shape=shape, held=held, array=array, name=None)

  def cut(self, x: Tensor, starts: Sequence, ends: Sequence, strides: Sequence[int] | None = None) -> Tensor:
    """x[start:end:stride] along every axis."""
    strides = strides or (1,) * len(starts)
    axes = [i for i, d in enumerate(x.shape) if (starts[i], ends[i], strides[i]) != (0, d, 1)]
    if not axes:
      return x
    x = self.full(x)
    if x.array is not None and is_static([*starts, *ends]):
      return known(x.array[tuple(map(slice, starts, ends, strides))], x.label)
    shape = [-(-(e - s) // k) if k != 1 else e - s for s, e, k in zip(starts, ends, strides, strict=True)]
    first, last = (self.vector([v[i] for i in axes]) for v in (starts, ends))
    steps = np.array([strides[i] for i in axes])
    return self.op("Slice", [x, first, last, np.array(axes), steps], shape, x.dtype)

  def concat(self, inputs: Iterable[Tensor], axis: int) -> Tensor:
    inputs = [self.full(x) for x in inputs if not (is_static([x.shape[axis]]) and x.shape[axis] == 0)]
    if len(inputs) == 1:
      return inputs[0]
    shape = list(inputs[0].shape)
    shape[axis] = sum(x.shape[axis] for x in inputs)
    return self.op("Concat", inputs, shape, inputs[0].dtype, axis=axis)

  def cast(self, x: Tensor, dtype: Any) -> Tensor:
    if x.dtype == dtype:
      return x
    return self.op("Cast", [x], x.shape, dtype, x.held, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
