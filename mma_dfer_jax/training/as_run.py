"""A config that says what a run.json says: `--config=mma_dfer_jax/training/as_run.py:RUN/run.json`."""

from pathlib import Path

from ml_collections import ConfigDict

from mma_dfer_jax.config import nested_config
from mma_dfer_jax.errors import UserError
from mma_dfer_jax.training.run import read_run


def get_config(path: str) -> ConfigDict:
  """The config of the run in the folder of that file."""
  if not Path(path).is_file():
    raise UserError(f"there is no run.json at {path}")
  return ConfigDict(nested_config(read_run(Path(path).parent)["config"]))
