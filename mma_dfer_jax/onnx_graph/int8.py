"""Products of matrices in 8-bit integers: weights are rounded once, activations whenever the file runs."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper


def quantise(model: onnx.ModelProto, keep: Sequence[str] = ()) -> None:
  """Turns each product with a matrix of weights into integers, in place.

  A column of weights has a scale of its own, an array of activations one for all. This is what onnxruntime's own
  `quantize_dynamic(per_channel=True)` writes, which its CPU kernels know; written here, it needs no copy of the file.

  Args:
    keep: beginnings of the names of weights that stay as they are.
  """
  graph = model.graph
  matrices = {
    one.name: one for one in graph.initializer if len(one.dims) == 2 and not one.name.startswith(tuple(keep))
  }
  nodes: list[Any] = []
  smaller: dict[str, list[onnx.TensorProto]] = {}
  rounded: set[str] = set()
  for node in graph.node:
    if node.op_type != "MatMul" or node.input[1] not in matrices:
      nodes.append(node)
      continue
    (x, name), (y,) = node.input, node.output
    if name not in smaller:
      smaller[name] = _rounded(matrices[name])
    if x not in rounded:
      rounded.add(x)
      nodes.append(helper.make_node("DynamicQuantizeLinear", [x], [f"{x}_int8", f"{x}_scale", f"{x}_zero"]))
    integers = [f"{x}_int8", f"{name}_int8", f"{x}_zero"]
    nodes += [
      helper.make_node("MatMulInteger", integers, [f"{y}_int32"]),
      helper.make_node("Cast", [f"{y}_int32"], [f"{y}_float"], to=onnx.TensorProto.FLOAT),
      helper.make_node("Mul", [f"{x}_scale", f"{name}_scale"], [f"{y}_scales"]),
      helper.make_node("Mul", [f"{y}_float", f"{y}_scales"], [y]),
    ]
  still = {name for node in nodes for name in node.input}
  for i in reversed(range(len(graph.initializer))):
    if graph.initializer[i].name not in still:
      del graph.initializer[i]
  del graph.node[:]
  graph.node.extend(nodes)
  graph.initializer.extend(one for both in smaller.values() for one in both)


def _rounded(weight: onnx.TensorProto) -> list[onnx.TensorProto]:
  """(K, N) float32 -> (K, N) int8 and the scale of each column (N,)."""
  matrix = numpy_helper.to_array(weight)
  scale = np.maximum(np.abs(matrix).max(axis=0), np.finfo(np.float32).tiny * 127) / 127
  whole = np.rint(matrix / scale).astype(np.int8)
  return [numpy_helper.from_array(whole, f"{weight.name}_int8"),
          numpy_helper.from_array(scale.astype(np.float32), f"{weight.name}_scale")]  # fmt: skip
