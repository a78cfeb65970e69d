"""What five points of the face say of each moment, by a graph convolution over them (Kipf and Welling, arXiv 1609.02907).

After the landmark graphs of the survey arXiv 2411.08472; equations: our own reading, for no code was to be had.
"""

from collections.abc import Callable
import dataclasses
from typing import ClassVar

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from mma_dfer_jax import parts
from mma_dfer_jax.errors import UserError
from mma_dfer_jax.layers import TorchLinear

# Points in the order of YuNet, as data keep them: eyes 0 and 1, tip of the nose 2, corners of the mouth 3 and 4.
EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 4), (2, 3), (2, 4), (3, 4))
EYES = (0, 1)
FORMS = ("frames", "token")
SMALLEST = (
  1e-12  # added to the squared distance between the eyes, so that gradients of equal points stay finite
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(parts.Part):
  """Adds what the points say to the joint features of each frame that shows all of them; starts at the model without."""

  width: int = 64  # of the two layers between the points
  # "frames"; "token": the mean over such frames is one token more that the temporal model reads, beside the frames.
  form: str = "frames"
  POINTS: ClassVar[int] = 5  # of the face that the model takes with every frame

  def problems(self) -> list[str]:
    wrong = self.form not in FORMS
    return super().problems() + [f"form={self.form!r}: choose one of {', '.join(FORMS)}"] * wrong

  def build(self, width: int, moments: int, frames: int, *, rngs: nnx.Rngs) -> "LandmarkGraph":
    if self.form == "frames" and moments != frames:
      raise UserError(f"model.landmarks=graph adds the points of each frame to its features, but the encoders give {moments} "
                      f"moments for {frames} frames: choose landmarks.form=token, or landmarks=none")  # fmt: skip
    return LandmarkGraph(self, width, rngs=rngs)


def adjacency(edges: tuple[tuple[int, int], ...] = EDGES, points: int = Config.POINTS) -> np.ndarray:
  """(p, p) float64: D^-1/2 (A + I) D^-1/2 of the edges A."""
  joined = np.eye(points)
  for i, j in edges:
    joined[i, j] = joined[j, i] = 1.0
  degree = joined.sum(axis=1)
  return joined / np.sqrt(np.outer(degree, degree))


def normalise_points(points: Float[Array, "... p 2"]) -> Float[Array, "... p 2"]:
  """Points around their mean, in distances between the eyes: where the face is and how large does not count."""
  eyes = points[..., EYES[0], :] - points[..., EYES[1], :]
  size = jnp.sqrt((eyes * eyes).sum(axis=-1) + SMALLEST)
  return (points - points.mean(axis=-2, keepdims=True)) / size[..., None, None]


class LandmarkGraph(nnx.Module):
  """Two graph convolutions, the mean over the points, a linear layer to the width of the joint features, a gate.

  A token that says nothing still takes its share of attention, so no gate on the token itself would start at the model
  without. Hence the gate stands behind the temporal model: its answer moves from the one without the token towards the one
  with it, and does not move for a clip without a frame that shows all points.
  """

  def __init__(self, cfg: Config, width: int, *, rngs: nnx.Rngs):
    self.layer1 = TorchLinear(2, cfg.width, rngs=rngs)
    self.layer2 = TorchLinear(cfg.width, cfg.width, rngs=rngs)
    self.out = TorchLinear(cfg.width, width, rngs=rngs)
    self.gate = nnx.Param(jnp.zeros(1))
    self.position = nnx.Param(jnp.zeros((1, 1, width))) if cfg.form == "token" else None

  def tokens(self, points: Float[Array, "B T p 2"]) -> Float[Array, "B T W"]:
    """What the points of each frame say, without the gate."""
    dtype = self.out.kernel[...].dtype
    joined = jnp.asarray(adjacency(), dtype)
    hidden = normalise_points(points).astype(dtype)
    for layer in (self.layer1, self.layer2):
      hidden = jax.nn.relu(layer(joined @ hidden))
    return self.out(hidden.mean(axis=-2))

  def __call__(
    self, joint: Float[Array, "B S W"], landmarks: Float[Array, "B T p 3"] | None
  ) -> Float[Array, "B S W"]:
    if landmarks is None:
      raise ValueError("a model with a landmark graph takes landmarks (B, T, 5, 3) as its third input")
    if self.position is not None:
      return joint
    return joint + _whole(landmarks, joint) * jnp.tanh(self.gate[...]) * self.tokens(landmarks[..., :2])

  def beside(
    self, temporal: Callable[..., tuple[Array, Array]], landmarks: Float[Array, "B T p 3"] | None
  ) -> tuple[Float[Array, "B W"], Float[Array, "B S W"]]:
    clip, moments = temporal()
    if self.position is None or landmarks is None:
      return clip, moments
    whole = _whole(landmarks, clip)
    mean = (whole * self.tokens(landmarks[..., :2])).sum(axis=1) / whole.sum(axis=1).clip(1)
    gate = whole.max(axis=1) * jnp.tanh(self.gate[...])  # (B, 1)
    with_token = temporal(more=mean[:, None] + self.position[...])
    return clip + gate * (with_token[0] - clip), moments + gate[..., None] * (with_token[1] - moments)


def _whole(landmarks: Float[Array, "B T p 3"], like: Array) -> Float[Array, "B T 1"]:
  """1 for each frame of which all points are known, else 0."""
  return landmarks[..., 2].min(axis=-1)[..., None].astype(like.dtype)
