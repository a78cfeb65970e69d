"""A file that `export` wrote: its program (StableHLO), run by JAX; F.json beside F says what the model is."""

from collections.abc import Callable
import dataclasses
import json
from pathlib import Path
from typing import Any

from jaxtyping import Float, Float32, UInt8
import numpy as np

from mma_dfer_jax.disk import sha256_of
from mma_dfer_jax.engines.engine import About, check_inputs, refuse_step, summary
from mma_dfer_jax.errors import UserError
from mma_dfer_jax.inputs import Inputs

OPENS = "a file that export wrote, with its description beside it (F and F.json)"
TOLD = (
  "streams",
  "classes",
  "class_order",
  "recipe",
  "origin",
  "precision",
  "sample_rates",
)  # of About, beside inputs


def json_beside(path: Path) -> Path:
  """Where the description of an exported file stands."""
  return path.with_name(f"{path.name}.json")


@dataclasses.dataclass(frozen=True, repr=False)
class StableHloEngine:
  """An exported model.

  Attributes:
    about: what to know of it.
    path: the file.
    logits: video (B, T, H, W, 3) uint8 and spectrogram (B, F, K) float32 -> logits (B, C), jitted.
  """

  about: About
  path: Path
  logits: Callable[..., Any]

  def __call__(
    self,
    video: UInt8[np.ndarray, "B T H W 3"] | Float[np.ndarray, "B T H W 3"],
    spectrogram: Float[np.ndarray, "B F K"],
  ) -> Float32[np.ndarray, "B C"]:
    video, spectrogram = np.asarray(video), np.asarray(spectrogram)
    check_inputs(self.about.inputs, video, spectrogram)
    if video.dtype != np.uint8:
      raise UserError(f"{self.path} takes video as uint8 only, as it was exported; it is {video.dtype}")
    return np.asarray(self.logits(video, spectrogram.astype(np.float32)))

  def __repr__(self) -> str:
    return summary(self, self.path, f"in a file of {self.path.stat().st_size / 1e6:,.1f} MB")


def opens(path: Path) -> bool:
  return path.is_file() and json_beside(path).is_file()


def describe(path: Path, step: int | str, precision: str | None) -> About:
  refuse_step(path, step, "an exported model")
  try:
    said = json.loads(json_beside(path).read_text())
    facts = {name: said[name] for name in TOLD}
    for name in ("streams", "classes", "sample_rates"):
      facts[name] = tuple(facts[name])
    sizes = said["inputs"] | {"audio_shape": tuple(said["inputs"]["audio_shape"])}
    about = About(inputs=Inputs(**sizes), fingerprint=said["sha256"], **facts)
    same = sha256_of(path) == about.fingerprint
  except (ValueError, KeyError, TypeError) as error:
    raise UserError(f"{json_beside(path)} is damaged ({error!r}); export the model again") from error
  if not same:
    raise UserError(
      f"{path} is damaged, or {json_beside(path).name} speaks of another file; export the model again"
    )
  if precision not in (None, about.precision):
    raise UserError(
      f"{path} was exported in {about.precision}; for {precision} export the model again with --precision={precision}"
    )
  return about


def load(path: Path, about: About, sharding: Any) -> StableHloEngine:
  """Reads the program; `sharding` is not used: it runs on the first device."""
  del sharding
  import jax
  from jax import export

  exported = export.deserialize(path.read_bytes())  # type: ignore[arg-type]  # bytes will do, without a copy
  platform = jax.default_backend()
  if platform not in exported.platforms and not (platform == "gpu" and "cuda" in exported.platforms):
    raise UserError(
      f"{path} was exported for {', '.join(exported.platforms)}, not for {platform}, which is here"
    )
  return StableHloEngine(about, path, jax.jit(exported.call))
