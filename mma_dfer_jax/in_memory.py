"""What an engine says of a clip in memory, and what it makes of it before it answers."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mma_dfer_jax.data.arrays import sample_of
from mma_dfer_jax.data.film import Sample
from mma_dfer_jax.doubt import check_abstain
from mma_dfer_jax.engines.engine import Engine
from mma_dfer_jax.prediction import (
  Faces,
  Prediction,
  face_finder,
  finder_for_frames,
  predict_samples,
  sound_channel,
)


def predict_arrays(
  engine: Engine, frames: Any, waveform: Any = None, sample_rate: Any = None, *, force: bool = False, abstain: float = 0.0,
  **how: Any,
) -> Prediction:  # fmt: skip
  """What the model says of frames and a sound in memory: as `predict_video` of a file that holds them without loss.

  `engine.predict(...)` is the same.

  Args:
    frames, waveform, sample_rate, times, channel, coded: as for `mma_dfer_jax.data.arrays.read_arrays`, but for
      channel="auto", as in the model's training.
      Without `times` and sound, 25 frames a second tell whether the clip is as long as those of the training.
    faces, face_model, force, abstain: as for `predict_video`.
  Raises:
    UserError: with everything that is wrong with the arrays; or if the face detector is needed and not there.
  """
  check_abstain(abstain)
  sample = _sample(engine, frames, waveform, sample_rate, **how)
  ((_, prediction),) = predict_samples(engine, [("", sample)], 1, force=force, abstain=abstain)
  return prediction


def features_of_arrays(
  engine: Engine, frames: Any, waveform: Any = None, sample_rate: Any = None, **how: Any
) -> dict[str, np.ndarray]:
  """The features of a clip in memory, as `Engine.features` describes them; arguments and errors as for `predict_arrays`."""
  sample = _sample(engine, frames, waveform, sample_rate, **how)
  found = engine.compute_features(*(array[None] for array in sample.arrays))
  return {name: value[0] for name, value in found.items()}


def _sample(
  engine: Engine, frames: Any, waveform: Any, sample_rate: Any, *, times: Any = None, faces: Faces = "auto",
  face_model: str | Path | None = None, channel: str = "auto", coded: bool = False,
) -> Sample:  # fmt: skip
  about = engine.about
  how: dict[str, Any] = {"times": times, "channel": sound_channel(about.recipe, channel), "coded": coded}
  frames = [*frames] if isinstance(frames, Iterator) else frames
  finder = finder_for_frames(face_finder(engine, faces, face_model), frames)
  return sample_of(frames, waveform, sample_rate, about.inputs, **how, finder=finder)
