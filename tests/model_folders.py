"""A small model folder, for tests of what opens and answers with one."""

from pathlib import Path

from conftest import small
import numpy as np

from mma_dfer_jax.data.labels import label_order
from mma_dfer_jax.parameters import parameter_shapes
from mma_dfer_jax.weights.files import StoredModel, held
from mma_dfer_jax.weights.folder import write_folder


def model_folder(path: Path) -> Path:
  """Two layers, as `convert` writes them, with weights that make every part matter."""
  cfg = small(image={"depth": 2}, audio={"depth": 2}, prompts={"layers_per_stage": 1})
  rng, shapes, order = np.random.default_rng(1), parameter_shapes(cfg), label_order("dfew")
  arrays = {name: rng.normal(0, 0.2, shape).astype(np.float32) for name, shape in shapes.items()}
  about = {"assumed": {}, "classes": list(order.classes), "class_order": order.origin, "recipe": {"faces": "none"},
           "source": {"file": "random"}}  # fmt: skip
  write_folder(path, StoredModel(path, cfg, about, held(arrays), ""))
  return path
