"""MMA-DFER (arXiv 2404.09010) in JAX and Flax: emotion recognition from video and sound.

The names below are the public ones. They are imported when first asked for, so that preparing data starts no JAX.
"""

import importlib
import importlib.util
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from mma_dfer_jax.config import default_config as default_config
  from mma_dfer_jax.data.arrays import read_arrays as read_arrays
  from mma_dfer_jax.data.fbank import log_mel_fbank as log_mel_fbank
  from mma_dfer_jax.data.frames import sample_frames as sample_frames
  from mma_dfer_jax.engines.engine import load_model as load_model
  from mma_dfer_jax.in_memory import features_of_arrays as features_of_arrays
  from mma_dfer_jax.in_memory import predict_arrays as predict_arrays
  from mma_dfer_jax.model import MmaDfer as MmaDfer
  from mma_dfer_jax.model import ModelConfig as ModelConfig
  from mma_dfer_jax.prediction import Prediction as Prediction
  from mma_dfer_jax.prediction import predict_timeline as predict_timeline
  from mma_dfer_jax.prediction import predict_video as predict_video
  from mma_dfer_jax.training.scores import Scores as Scores
  from mma_dfer_jax.training.scores import confusion_matrix as confusion_matrix
  from mma_dfer_jax.weights.folder import convert_checkpoint as convert_checkpoint

__version__ = "0.2.0"  # pyproject.toml takes it from here

_HOMES = {
  "MmaDfer": "model", "ModelConfig": "model", "default_config": "config", "load_model": "engines.engine",
  "predict_arrays": "in_memory", "features_of_arrays": "in_memory",
  "predict_video": "prediction", "predict_timeline": "prediction", "Prediction": "prediction", "convert_checkpoint": "weights.folder",
  "log_mel_fbank": "data.fbank", "sample_frames": "data.frames", "read_arrays": "data.arrays", "Scores": "training.scores",
  "confusion_matrix": "training.scores",
}  # fmt: skip
__all__ = list(_HOMES)


def _without_training(kind: type[BaseException], error: BaseException, trace: Any) -> None:
  """A sentence for whoever starts a command that trains where only what answers is installed."""
  if isinstance(error, ModuleNotFoundError):
    from mma_dfer_jax.errors import missing

    print(f"error: {missing(error)}", file=sys.stderr)
  else:
    sys.__excepthook__(kind, error, trace)


if importlib.util.find_spec("jax") is None:
  sys.excepthook = _without_training


def __getattr__(name: str) -> Any:
  if name not in _HOMES:
    raise AttributeError(f"mma_dfer_jax has no public name {name!r}; it has {', '.join(_HOMES)}")
  return getattr(importlib.import_module(f"mma_dfer_jax.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
  return __all__
