"""Answers with an ONNX file that `export` wrote, by OpenVINO on the CPU, in float32 or bfloat16."""

import dataclasses
from pathlib import Path
import sys
from typing import Any

from mma_dfer_jax.cores import usable_cores
from mma_dfer_jax.engines import onnxruntime
from mma_dfer_jax.engines.engine import About
from mma_dfer_jax.errors import UserError
from mma_dfer_jax.onnx_graph import file

OPENS = onnxruntime.OPENS
opens = onnxruntime.opens
HINTS = {"float32": "f32", "bfloat16": "bf16"}  # what OpenVINO calls them


@dataclasses.dataclass(frozen=True, repr=False)
class OpenVinoEngine(onnxruntime.OnnxRuntimeEngine):
  """A model in ONNX, by OpenVINO."""


def describe(path: Path, step: int | str, precision: str | None) -> About:
  about = onnxruntime.described(path, step)
  if about.precision not in HINTS:
    raise UserError(
      f"OpenVINO computes float32 files; {path} is {about.precision}: choose --engine=onnxruntime"
    )
  if precision not in (None, *HINTS):
    raise UserError(
      f"precision={precision!r}: OpenVINO computes {path} in {' or '.join(HINTS)}; int8 is for onnxruntime"
    )
  return dataclasses.replace(about, precision=precision or "float32")


def load(path: Path, about: About, sharding: Any) -> OpenVinoEngine:
  """Opens and compiles the file, in seconds; `sharding` is not used."""
  del sharding
  # Its import would tell its makers over the network, unless this module is missing.
  sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
  try:
    import openvino
  except ImportError as error:
    advice = "pip install 'mma_dfer_jax[openvino]'"
    raise UserError(
      f"--engine=openvino needs OpenVINO, which cannot be imported ({error}): {advice}"
    ) from error
  core = openvino.Core()
  if about.precision == "bfloat16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
    raise UserError(
      "this processor does not compute in bfloat16 (avx512_bf16 or amx); an int8 file is faster than float32"
    )
  model = core.read_model(path)
  model.reshape({name: [1, *shape] for name, shape in about.inputs.shapes.items()})
  how = {"INFERENCE_PRECISION_HINT": HINTS[about.precision], "PERFORMANCE_HINT": "LATENCY",
         "INFERENCE_NUM_THREADS": usable_cores()}  # fmt: skip
  compiled = core.compile_model(model, "CPU", how)
  found = file.read(path)
  assert found is not None  # `describe` has read it
  # OpenVINO gives an output several names, of which one is ours.
  names = [one["name"] for one in (found.said["output"], *found.said["extra_outputs"])]
  return OpenVinoEngine(
    about,
    path,
    lambda clip: {name: array.copy() for name, array in zip(names, compiled(clip).values(), strict=True)},
  )
