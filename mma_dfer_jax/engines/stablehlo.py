"""Answers with a file that `export` wrote: its program (StableHLO), run by JAX; F.json beside F describes the model."""

from collections.abc import Callable
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from mma_dfer_jax.disk import sha256_of
from mma_dfer_jax.engines.engine import About, Engine, about_of, refuse_step
from mma_dfer_jax.errors import UserError

OPENS = "a file that export wrote, with its description beside it (F and F.json)"


def json_beside(path: Path) -> Path:
  """The description of an exported file."""
  return path.with_name(f"{path.name}.json")


@dataclasses.dataclass(frozen=True, repr=False)
class StableHloEngine(Engine):
  """An exported model."""

  call: Callable[..., Any]  # (B, T, H, W, 3) uint8, (B, F, K) float32, … -> logits or all outputs, jitted

  def answer(self, video: np.ndarray, *others: np.ndarray) -> Any:
    if video.dtype != np.uint8:
      raise UserError(f"{self.path} was exported for uint8 video; it is {video.dtype}")
    return self.call(video, *(other.astype(np.float32) for other in others))

  def parameters(self) -> str:
    return f"in a file of {self.path.stat().st_size / 1e6:,.1f} MB"


def opens(path: Path) -> bool:
  return path.is_file() and json_beside(path).is_file()


def describe(path: Path, step: int | str, precision: str | None) -> About:
  refuse_step(path, step, "an exported model")
  try:
    about = about_of(json.loads(json_beside(path).read_text()))
  except (ValueError, KeyError, TypeError) as error:
    raise UserError(f"{json_beside(path)} is damaged ({error!r}); export the model again") from error
  if sha256_of(path) != about.fingerprint:
    raise UserError(
      f"{path} is damaged, or {json_beside(path).name} describes another file; export the model again"
    )
  if precision not in (None, about.precision):
    how = "--format=onnx --quantise=int8" if precision == "int8" else f"--precision={precision}"
    again = f"for {precision} export the model again with {how}"
    raise UserError(f"{path} was exported in {about.precision}; {again}")
  return about


def load(path: Path, about: About, sharding: Any) -> StableHloEngine:
  """Reads the program, which runs on the first device; `sharding` is not used."""
  del sharding
  try:
    import jax
    from jax import export
  except ImportError as error:
    advice = "pip install 'mma_dfer_jax[train]'"
    raise UserError(f"{path} needs JAX, which cannot be imported ({error}): {advice}") from error
  exported = export.deserialize(path.read_bytes())  # type: ignore[arg-type] # bytes do, without a copy
  platform = jax.default_backend()
  if platform not in exported.platforms and not (platform == "gpu" and "cuda" in exported.platforms):
    raise UserError(
      f"{path} was exported for {', '.join(exported.platforms)}, but this machine has {platform}"
    )
  return StableHloEngine(about, path, jax.jit(exported.call))
