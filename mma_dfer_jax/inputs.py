"""What a clip becomes before any model sees it: the one thing on which data and model agree. Imports no JAX."""

import dataclasses
from typing import Any

from mma_dfer_jax.errors import listed

FRAME_CHOICES = ("number", "time", "stride")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inputs:
  """Sizes of the two arrays of a clip, and which frames it takes; the defaults are the paper's.

  Pixels cross as uint8; the encoder divides by 255 and normalises them as it was pretrained (`layers.normalised`).

  Raises:
    UserError: on construction, with every size that cannot be.
  """

  image_size: int = 224  # pixels; frames are square
  num_frames: int = 16  # per clip
  audio_shape: tuple[int, int] = (512, 128)  # spectrogram rows of 10 ms, and mel bins
  # One frame of equally many, as the original; "time": of equally long segments; "stride": every n-th of a part of the clip.
  frame_choice: str = "number"
  frame_stride: int = 4  # n of frame_choice=stride, as MAE-DFER's: 16 frames of 64
  test_views: int = (
    1  # with frame_choice=stride, parts of a clip whose probabilities evaluations average; MAE-DFER 2
  )
  points: int = 0  # of a face, known for every frame, that the model takes; follows from `model.landmarks`

  def __post_init__(self):
    object.__setattr__(self, "audio_shape", tuple(self.audio_shape))
    two = "must be (spectrogram rows, mel bins)"
    problems = [f"audio_shape={self.audio_shape} {two}"] if len(self.audio_shape) != 2 else []
    sizes = {name: getattr(self, name) for name in ("image_size", "num_frames", "frame_stride", "test_views")}
    sizes |= {f"audio_shape[{i}]": n for i, n in enumerate(self.audio_shape)}
    if type(self.points) is not int or self.points < 0:
      problems.append(f"points={self.points!r} must be a whole number, 0 or more")
    wrong = {name: value for name, value in sizes.items() if type(value) is not int or value < 1}
    problems += [f"{name}={value!r} must be a positive whole number" for name, value in wrong.items()]
    if self.frame_choice not in FRAME_CHOICES:
      problems.append(
        f"frame_choice={self.frame_choice!r}: choose {', '.join(FRAME_CHOICES[:-1])} or {FRAME_CHOICES[-1]}"
      )
    elif self.test_views != 1 and self.frame_choice != "stride":
      problems.append(
        f"test_views={self.test_views} needs frame_choice=stride: other choices show the whole clip"
      )
    if problems:
      raise listed("inputs: these values cannot be", problems)

  def to_fields(self) -> dict[str, Any]:
    """As files keep them: how frames are chosen, and points, only as far as that is not as in the original."""
    kept = {"number": (), "time": ("frame_choice",)}.get(
      self.frame_choice, ("frame_choice", "frame_stride", "test_views")
    )
    kept += ("points",) * (self.points > 0)
    return {name: getattr(self, name) for name in ("image_size", "num_frames", "audio_shape", *kept)}

  @property
  def video_shape(self) -> tuple[int, int, int, int]:
    """(T, H, W, 3) of one clip, uint8 RGB."""
    return (self.num_frames, self.image_size, self.image_size, 3)

  @property
  def points_shape(self) -> tuple[int, int, int]:
    """(T, p, 3) of one clip, float32: x and y from 0 to 1, and 1 if the point is known."""
    return (self.num_frames, self.points, 3)

  @property
  def shapes(self) -> dict[str, tuple[int, ...]]:
    """Of one clip, of each array that the model takes, in their order."""
    shapes = {"video": self.video_shape, "spectrogram": self.audio_shape}
    return shapes | ({"landmarks": self.points_shape} if self.points else {})

  def __str__(self) -> str:
    return ", ".join(f"{name} (B, {', '.join(map(str, shape))})" for name, shape in self.shapes.items())
