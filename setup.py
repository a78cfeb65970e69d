"""What pyproject.toml cannot say: all packages that are found, with the page's files; `configs` as mma_dfer_jax.configs."""

from setuptools import find_packages, setup

setup(
  packages=[*find_packages(include=["mma_dfer_jax*"]), "mma_dfer_jax.configs"],
  package_data={"mma_dfer_jax": ["page.html", "page.css", "page.js", "page_sound.js"]},
  package_dir={"mma_dfer_jax.configs": "configs"},
)
