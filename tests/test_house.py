"""The house rules that a program can check: imports point downward, every config runs, the law is kept."""

import ast
import importlib.util
from pathlib import Path
import re
import subprocess
import sys

from conftest import ROOT
import pytest

from mma_dfer_jax.checkpoints import model_config
from mma_dfer_jax.config import default_config, flat_config, problems_of

PACKAGE = ROOT / "mma_dfer_jax"
MODULES = {
  path.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."): path for path in PACKAGE.rglob("*.py")
}
ENTRY_POINTS = {
  "train",
  "evaluate",
  "benchmark",
  "predict",
  "convert",
  "export",
  "folds",
  "demo_page",
  "data.prepare",
  "data.demo",
  "data.doctor",
  "data.benchmark",
}
GROUND = {"errors", "metrics", "data.fbank", "data.frames"}  # import nothing of ours (but errors)
CONFIGS = sorted((ROOT / "configs").glob("*.py"))


def imports(path: Path) -> set[str]:
  """Modules that a file imports, as written."""
  found = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
  return found


def ours(path: Path) -> set[str]:
  return {name.removeprefix("mma_dfer_jax.") for name in imports(path) if name in MODULES}


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_downward(module):
  name, path = module.removeprefix("mma_dfer_jax."), MODULES[module]
  outside = {imported.split(".")[0] for imported in imports(path)}
  assert not outside & {"torch", "tensorflow"} or (name, outside & {"torch"}) == (
    "weights",
    {"torch"},
  )  # writes .pth
  assert not ours(path) & ENTRY_POINTS, "an entry point is imported by nobody"
  if name.startswith("data"):
    assert not outside & {"jax", "flax", "optax", "orbax"}, "worker processes must not take an accelerator"
    assert all(below.startswith("data.") or below in ("errors", "cli") for below in ours(path))
  if name in GROUND:
    assert ours(path) <= {"errors"}
  if name in ("vit", "model"):
    assert not ours(path) & {"config", "sharding"}, "the model knows no config and no sharding"
    assert "ml_collections" not in outside


def test_no_circles():
  graph = {module.removeprefix("mma_dfer_jax."): ours(path) for module, path in MODULES.items()}

  def visit(name, above):
    assert name not in above, f"circle: {' -> '.join([*above, name])}"
    for below in graph[name]:
      visit(below, [*above, name])

  for name in graph:
    visit(name, [])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_is_complete_and_known(path):
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config()
  assert flat_config(config.to_dict()).keys() == flat_config(default_config().to_dict()).keys()
  config.data.data_dir = "somewhere"
  assert problems_of(config) == []
  classes = config.data.classes or "abcdefg"
  assert model_config(flat_config(config.to_dict()), list(classes)).num_classes == len(classes)


def test_values_that_do_not_fit_are_all_named():
  config = default_config()
  config.batch_size, config.learning_rate, config.data.crop_scale, config.data.flip = (
    0,
    float("nan"),
    (0.5, 2.0),
    1.5,
  )
  config.mesh.data = 0
  problems = "\n".join(problems_of(config))
  for word in ("batch_size=0", "learning_rate=nan", "crop_scale", "flip=1.5", "mesh", "data_dir is empty"):
    assert word in problems


def test_the_law():
  """No weights, clips or lists of others; no registry's host and no path of a machine in any file."""
  if not (ROOT / ".git").exists():
    pytest.skip("not a git checkout")
  files = subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).split("\n")[:-1]
  ends = (".pth", ".pt", ".mp4", ".wav", ".onnx", ".safetensors", ".array_record")
  # Golden numbers in the form that the original's main.py writes them: 48 wide, two epochs on noise, good for nothing.
  assert {f for f in files if f.endswith(ends)} == {"tests/golden/tiny_reference_checkpoint.pth"}
  banned = re.compile(r"(?<!\w)(pypi\.|files\.pythonhosted|/root/|/home/\w|/work/)")
  for name in files:
    if name.startswith(".ci/") or name.endswith((".py", ".md", ".toml", ".lock", ".sh", ".cff", ".yml")):
      text = (ROOT / name).read_text()
      assert name == "tests/test_house.py" or not banned.search(text), name
  assert (ROOT / "LICENSE").read_text().lstrip().startswith("Apache License")


def test_public_names_come_when_asked_for():
  import mma_dfer_jax

  for name in mma_dfer_jax.__all__:
    assert callable(getattr(mma_dfer_jax, name))
  with pytest.raises(AttributeError, match="no public name 'load_modle'"):
    mma_dfer_jax.load_modle  # noqa: B018
  code = "import sys, mma_dfer_jax, mma_dfer_jax.data.frames; assert 'jax' not in sys.modules"
  subprocess.run([sys.executable, "-c", code], check=True)
