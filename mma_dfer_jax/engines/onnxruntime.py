"""Answers with an ONNX file that `export` wrote, by onnxruntime on the CPU; neither JAX nor `onnx` is needed."""

from collections.abc import Callable
import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np

from mma_dfer_jax.cores import usable_cores
from mma_dfer_jax.engines.engine import About, Engine, about_of, refuse_step
from mma_dfer_jax.errors import UserError
from mma_dfer_jax.onnx_graph import file

OPENS = "an ONNX file that export wrote (--format=onnx)"
AGAIN = "export the model again"


@dataclasses.dataclass(frozen=True, repr=False)
class OnnxRuntimeEngine(Engine):
  """A model in ONNX."""

  # Video (1, T, H, W, 3) uint8, spectrogram (1, F, K), … -> all outputs by name, each of one clip.
  run: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]

  def answer(self, video: np.ndarray, *others: np.ndarray) -> dict[str, np.ndarray]:
    """One by one: a CPU gains nothing by more at once, and an int8 file would round all clips of a call by one scale."""
    if video.dtype != np.uint8:
      raise UserError(f"{self.path} was exported for uint8 video; it is {video.dtype}")
    clips = zip(video[:, None], *(other[:, None].astype(np.float32) for other in others), strict=True)
    names = self.about.inputs.shapes
    found = [self.run(dict(zip(names, clip, strict=True))) for clip in clips]
    return {name: np.concatenate([of_clip[name] for of_clip in found]) for name in found[0]}

  def parameters(self) -> str:
    return f"in a file of {self.path.stat().st_size / 1e6:,.1f} MB"


def opens(path: Path) -> bool:
  return file.read(path) is not None


def described(path: Path, step: int | str) -> About:
  """The facts that a file holds; UserError if it is damaged."""
  refuse_step(path, step, "an exported model")
  found = file.read(path)
  if found is None or not found.is_whole(path):
    raise UserError(f"{path} is damaged; {AGAIN}")
  try:
    return about_of(found.said)
  except (ValueError, KeyError, TypeError) as error:
    raise UserError(f"{path} is damaged ({error!r}); {AGAIN}") from error


def describe(path: Path, step: int | str, precision: str | None) -> About:
  about = described(path, step)
  if precision not in (None, about.precision):
    ways = {"int8": f"for int8 {AGAIN} with --format=onnx --quantise=int8",
            "float32": f"for float32 {AGAIN} without --quantise",
            "bfloat16": "only --engine=openvino computes a float32 file in bfloat16"}  # fmt: skip
    way = ways.get(str(precision), f"choose one of {', '.join(ways)}")
    raise UserError(
      f"precision={precision!r}: onnxruntime computes {path} as it is, in {about.precision}; {way}"
    )
  return about


def load(path: Path, about: About, sharding: Any) -> OnnxRuntimeEngine:
  """Opens the file; `sharding` is not used."""
  del sharding
  # It would tell its makers over the network that it runs; its own switch for that comes too late.
  os.environ["ORT_DISABLE_TELEMETRY"] = "1"
  try:
    import onnxruntime
  except ImportError as error:
    advice = "pip install 'mma_dfer_jax[serve]'; or --engine=openvino"
    raise UserError(f"{path} needs onnxruntime, which cannot be imported ({error}): {advice}") from error
  options = onnxruntime.SessionOptions()
  options.intra_op_num_threads = usable_cores()
  options.log_severity_level = 3  # errors
  options.enable_mem_pattern = (
    False  # one block for all that is computed: 60 to 170 MiB more at full size, and no faster
  )
  # Threads that have nothing to do sleep: those that decode the next clip need the cores.
  options.add_session_config_entry("session.intra_op.allow_spinning", "0")
  try:
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
  except Exception as error:
    words = " ".join(str(error).split())[:300]
    raise UserError(f"onnxruntime {onnxruntime.__version__} cannot open {path}: {words}") from error
  names = [output.name for output in session.get_outputs()]
  return OnnxRuntimeEngine(about, path, lambda clip: dict(zip(names, session.run(None, clip), strict=True)))
