"""What pyproject.toml cannot say: all packages that are found, and `configs` as mma_dfer_jax.configs in a wheel."""

from setuptools import find_packages, setup

setup(
  packages=[*find_packages(include=["mma_dfer_jax*"]), "mma_dfer_jax.configs"],
  package_dir={"mma_dfer_jax.configs": "configs"},
)
