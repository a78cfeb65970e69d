"""The house rules that a program can check: imports point downward, functions are short, every config runs, the law."""

import ast
import functools
import graphlib
import importlib.util
from pathlib import Path
import re
import subprocess
import sys

from conftest import ROOT
import pytest

import mma_dfer_jax
from mma_dfer_jax import parts
from mma_dfer_jax.config import default_config, flat_config, model_config, nested_config
from mma_dfer_jax.training.check import problems_of_values

PACKAGE = ROOT / "mma_dfer_jax"
MODULES = {
  path.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."): path for path in PACKAGE.rglob("*.py")
}
COMMANDS = {
  name.removeprefix("mma_dfer_jax.")
  for name, path in MODULES.items()
  if "\ncli.run(" in path.read_text().replace("  ", "")
} - {"data.demo"}  # whose drawn clips are compared after an export, too
# From the ground up: a module imports only from lower floors, or from its own folder. `data` stands beside, on the ground.
FLOORS = [{"errors", "help", "progress", "streams", "cores", "lookalikes"}, {"disk", "inputs", "layers", "paths"}, {"parts", "cli", "onnx_graph"},
          set(parts.KINDS) | {"model", "autoencoder"}, {"parameters", "ablations"}, {"config"}, {"weights"}, {"training"}, {"engines"}, {"doubt"}, {"prediction"}, {"timeline", "in_memory", "explain", "features"}, {"summary"}, {"answers", "page", "onnx_export", "live"}]  # fmt: skip
FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef
CONFIGS = sorted(path for path in (ROOT / "configs").glob("*.py") if not path.stem.startswith("pretrain"))


def floor(name: str) -> int:
  """Commands stand above all else."""
  place = name.split(".")[0]
  return next((i for i, of_floor in enumerate(FLOORS) if place in of_floor), len(FLOORS))


read = functools.cache(Path.read_text)
tree = functools.cache(lambda path: ast.parse(read(path)))


@functools.cache
def imports(path: Path) -> set[str]:
  """Modules that a file imports, as written."""
  found = set()
  for node in ast.walk(tree(path)):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
  return found


def ours(path: Path) -> set[str]:
  return {name.removeprefix("mma_dfer_jax.") for name in imports(path) if name in MODULES}


@pytest.mark.parametrize("module", [name for name in MODULES if not name.endswith("__init__")])
def test_imports_point_downward(module):
  name, path = module.removeprefix("mma_dfer_jax."), MODULES[module]
  place, below = name.split(".")[0], ours(path)
  outside = {imported.split(".")[0] for imported in imports(path)}
  assert not outside & {"torch", "tensorflow"} or (name, outside & {"torch"}) == ("weights.files", {"torch"})
  assert not below & COMMANDS, "a command is imported by nobody"
  if place == "data":
    assert not outside & {"jax", "flax", "optax", "orbax"}, "worker processes must not take an accelerator"
    assert {one.split(".")[0] for one in below} <= {
      "data",
      "errors",
      "progress",
      "disk",
      "inputs",
      "cli",
      "paths",
      "cores",
      "lookalikes",
    }
    return
  for one in below - {f for f in below if f.startswith("data.")}:
    assert floor(one) < floor(name) or one.split(".")[0] == place != name, f"{name} imports {one}"
  if place in parts.KINDS:
    assert below <= {"parts", "layers", "inputs", "errors"}, "a part imports no part, nothing else of ours"
  if place in ("layers", "parts", "model", *parts.KINDS):
    assert not any(one.startswith("data.") for one in below)
    assert "ml_collections" not in outside or name == "parts", "the model knows no config"


def test_files_and_functions_are_short():
  long = [module for module, path in MODULES.items() if len(read(path).splitlines()) > 560]
  for module, path in MODULES.items():
    functions = [node for node in ast.walk(tree(path)) if isinstance(node, FUNCTION)]
    long += [f"{module}.{one.name}" for one in functions if (one.end_lineno or 0) - one.lineno >= 60]
  assert long == []
  assert len(read(PACKAGE / "train.py").splitlines()) < 150, "the run is short to read"


def test_only_progress_draws_bars():
  """Logs get no carriage returns and no escape codes: whoever wants a bar takes one of progress.py."""
  wrong = []
  for module, path in MODULES.items():
    strings = [str(node.value) for node in ast.walk(tree(path)) if isinstance(node, ast.Constant)]
    if "tqdm" in imports(path) or any(re.search("^\r|\x1b", text) for text in strings):
      wrong.append(module)
  assert wrong == ["mma_dfer_jax.progress"]


def test_no_circles():
  graph = {module.removeprefix("mma_dfer_jax."): ours(path) for module, path in MODULES.items()}
  list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_is_complete_and_known(path):
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config()
  known, here = (c.to_dict() for c in (default_config(), config))
  assert known.pop("model").keys() == here.pop("model").keys()  # parts have fields of their own
  assert flat_config(here).keys() == flat_config(known).keys()
  config.data.data_dir = "somewhere"
  assert problems_of_values(config) == []
  classes = config.data.classes or "abcdefg"
  assert model_config(config.to_dict(), list(classes)).num_classes == len(classes)
  assert nested_config(flat_config(config.to_dict())).keys() == config.to_dict().keys()
  without = module.get_config("fusion=none,temporal=mean")
  assert (without.model.fusion.name, without.model.temporal.name) == ("none", "mean")
  assert without.model.temporal.width == config.model.temporal.width  # what the config has set stays set


def test_values_that_do_not_fit_are_all_named():
  config = default_config()
  config.batch_size, config.learning_rate, config.mesh.data = 0, float("nan"), 0
  config.data.crop_scale, config.data.flip = (0.5, 2.0), 1.5
  problems = "\n".join(problems_of_values(config))
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
  for name in mma_dfer_jax.__all__:
    assert callable(getattr(mma_dfer_jax, name))
  with pytest.raises(AttributeError, match="no public name 'load_modle'"):
    mma_dfer_jax.load_modle  # noqa: B018


def test_the_version_stands_in_one_place():
  """A plain checkout, which pip knows nothing of, has one too."""
  assert f"\nversion: {mma_dfer_jax.__version__}\n" in (ROOT / "CITATION.cff").read_text()
  asks = r"""metadata\.version\(["']mma|distribution\(["']mma"""
  assert [name for name, path in MODULES.items() if re.search(asks, read(path))] == []


@pytest.mark.slow
def test_heavy_libraries_are_imported_where_they_are_used():
  many = {"jax", "numpy", "cv2", "scipy", "matplotlib", "tensorflow_datasets"}
  for modules, heavy in (
    ("mma_dfer_jax, mma_dfer_jax.data.frames", {"jax"}),
    ("mma_dfer_jax.predict", many),
    ("mma_dfer_jax.demo_page", many),
  ):
    code = f"import sys, {modules}; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True)
    assert not heavy & set(loaded.split())
