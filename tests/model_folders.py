"""Small models with weights that make every part matter: as parameters, as an authors' state dict, as a model folder."""

from collections.abc import Mapping
from pathlib import Path

from conftest import small
from flax import nnx
import jax.numpy as jnp
import numpy as np

from mma_dfer_jax.data.labels import label_order
from mma_dfer_jax.model import MmaDfer, ModelConfig
from mma_dfer_jax.parameters import abstract_model, parameter_shapes
from mma_dfer_jax.weights.files import StoredModel, held
from mma_dfer_jax.weights.folder import write_folder
from mma_dfer_jax.weights.mma_dfer import authors_tensors


def with_layers(number: int, **changes) -> ModelConfig:
  """A model of one or two layers; a checkpoint of it shows all of its sizes."""
  sizes = {"image": {"depth": number}, "audio": {"depth": number}, "prompts": {"layers_per_stage": 1}}
  for slot, fields in changes.items():
    changes[slot] = sizes[slot] | fields if slot in sizes and "name" not in fields else fields
  return small(**{"audio_shape": (64, 128)} | sizes | changes)


def random_parameters(cfg: ModelConfig) -> dict[str, np.ndarray]:
  """By path."""
  rng = np.random.default_rng(1)
  return {path: rng.normal(0, 0.2, shape).astype(np.float32) for path, shape in parameter_shapes(cfg).items()}


def model_of(cfg: ModelConfig, parameters: Mapping[str, np.ndarray]) -> MmaDfer:
  """A model with these parameters by path; a fresh one compiles for seconds."""
  graphdef, shapes = abstract_model(cfg)
  flat = [
    (path, v.replace(jnp.asarray(parameters["/".join(map(str, path))])))
    for path, v in nnx.to_flat_state(shapes)
  ]
  return nnx.merge(graphdef, nnx.from_flat_state(flat))


def stored(path: Path, cfg: ModelConfig) -> StoredModel:
  """A model with these parameters, and the facts that a folder needs."""
  order = label_order("dfew")
  about = {"assumed": {}, "classes": list(order.classes), "class_order": order.origin, "recipe": {"faces": "none"},
           "source": {"file": "random"}}  # fmt: skip
  return StoredModel(path, cfg, about, held(random_parameters(cfg)), "")


def authors_state(cfg: ModelConfig) -> dict[str, np.ndarray]:
  """All tensors of an authors' checkpoint with these parameters, also those that never take part."""
  tensors = authors_tensors(stored(Path(), cfg))
  return {name: np.array(tensor.read()) for name, tensor in tensors.items()}


def model_folder(path: Path) -> Path:
  """One layer, as `convert` writes it."""
  write_folder(path, stored(path, with_layers(1, audio_shape=(64, 32))))
  return path
