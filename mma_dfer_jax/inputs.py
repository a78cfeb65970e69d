"""What a clip becomes before any model sees it: the one thing on which data and model agree. Imports no JAX."""

import dataclasses

from mma_dfer_jax.errors import listed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inputs:
  """Sizes of the two arrays of a clip; the defaults are the paper's.

  Pixels cross as uint8; the encoder divides by 255 and normalises them as it was pretrained (`layers.normalised`).

  Raises:
    UserError: on construction, with every size that cannot be.
  """

  image_size: int = 224  # pixels; frames are square
  num_frames: int = 16  # per clip
  audio_shape: tuple[int, int] = (512, 128)  # spectrogram rows of 10 ms, and mel bins

  def __post_init__(self):
    object.__setattr__(self, "audio_shape", tuple(self.audio_shape))
    two = "must be (spectrogram rows, mel bins)"
    problems = [f"audio_shape={self.audio_shape} {two}"] if len(self.audio_shape) != 2 else []
    sizes = {"image_size": self.image_size, "num_frames": self.num_frames}
    sizes |= {f"audio_shape[{i}]": n for i, n in enumerate(self.audio_shape)}
    wrong = {name: value for name, value in sizes.items() if type(value) is not int or value < 1}
    problems += [f"{name}={value!r} must be a positive whole number" for name, value in wrong.items()]
    if problems:
      raise listed("inputs: these sizes cannot be", problems)

  @property
  def video_shape(self) -> tuple[int, int, int, int]:
    """(T, H, W, 3) of one clip, uint8 RGB."""
    return (self.num_frames, self.image_size, self.image_size, 3)

  def __str__(self) -> str:
    video, audio = (", ".join(map(str, shape)) for shape in (self.video_shape, self.audio_shape))
    return f"video (B, {video}), spectrogram (B, {audio})"
