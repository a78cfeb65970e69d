"""Small real runs, in this process or in processes of their own, and what they leave behind."""

from collections.abc import Callable, Sequence
import contextlib
import csv
import fcntl
import importlib.util
import io
import json
import os
from pathlib import Path
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any

from archives import prepare_clips
from conftest import ROOT
import numpy as np

from mma_dfer_jax.data.demo import generate
from mma_dfer_jax.parameters import flat_params
from mma_dfer_jax.training import hosts
from mma_dfer_jax.training.check import check_run
from mma_dfer_jax.training.loop import fit
from mma_dfer_jax.training.recognition import Recognition
from mma_dfer_jax.training.run import describe_run
from mma_dfer_jax.training.start import open_run

# Three epochs of five steps on 21 generated clips, with a model that compiles within seconds.
SMALL = {
  "tunable": (), "num_epochs": 3, "batch_size": 4, "log_every_steps": 2, "learning_rate": 1e-3, "keep_checkpoints": 2,
  "inputs.image_size": 32, "inputs.audio_shape": (64, 128), "model.fusion.width": 8, "model.temporal.width": 16,
  "model.temporal.heads": 2, "model.temporal.head_dim": 8, "model.temporal.mlp_dim": 16,
}  # fmt: skip
SMALL |= {
  f"model.{stream}.{field}": value
  for stream in ("image", "audio")
  for field, value in {"width": 16, "heads": 2, "mlp_dim": 32, "drop_path": 0.2}.items()
}


def shared(tmp_path_factory, name: str, make: Callable[[Path], Any]) -> Path:
  """A folder that `make` fills once, for all of pytest's own processes."""
  base = tmp_path_factory.getbasetemp()
  folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
  with folder.with_suffix(".lock").open("w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    if not (folder / "made").exists():
      folder.mkdir()
      make(folder)
      (folder / "made").touch()
  return folder


def make_clips(folder: Path) -> None:
  """clips/: 21 clips to train on and 7 to test; folds/clips/: the first 21 in two folds of 9 and 12."""
  manifest = generate(folder / "clips", 3, 1, 0)
  prepare_clips(manifest, folder)
  rows = [row for row in csv.DictReader(manifest.open()) if row["split"] == "train"]
  lines = [f"{row['path']},{row['label']},{1 + (i >= 9)}" for i, row in enumerate(rows)]
  (folder / "clips/folds.csv").write_text("\n".join(["path,label,fold", *lines]) + "\n")
  prepare_clips(folder / "clips/folds.csv", folder / "folds")


def config_of(data_dir: Path, choices: str = "", **overrides):
  """The config of a small run, with choices as after the colon of --config; keyword arguments override it."""
  spec = importlib.util.spec_from_file_location("demo_config", ROOT / "configs/demo.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config(choices)
  config.update_from_flattened_dict({**SMALL, "data.data_dir": str(data_dir), **overrides})
  return config


class StopAfter(hosts.Stop):
  """Stops a run when it has been asked so often; 0: never."""

  def __init__(self, questions: int):
    self.alone, self.agreed, self.left = True, False, questions

  def __bool__(self) -> bool:
    self.left -= 1
    self.agreed = self.agreed or self.left == 0
    return self.agreed

  stopped = property(lambda self: self.agreed)
  signal = SimpleNamespace(received=SimpleNamespace(name="a test"), exit_status=0)


def train_here(workdir: Path, data_dir: Path, *, stop_after: int = 0, **overrides) -> str:
  """What `train` does after its flags, on this process's four devices; returns what was printed."""
  config, out = config_of(data_dir, **overrides), io.StringIO()
  checked = check_run(config)
  run = describe_run(config, checked.model, checked.data_set, checked.starts)
  with contextlib.redirect_stdout(out):
    fit(Recognition(config, checked, run), workdir, stop=StopAfter(stop_after))
  return out.getvalue()


def uninterrupted_run(tmp_path_factory, data_dir: Path) -> Path:
  """A run that nothing has disturbed; the file `printed` beside it has what it said."""

  def make(folder: Path) -> None:
    (folder / "printed").write_text(train_here(folder / "run", data_dir))

  return shared(tmp_path_factory, "small_run", make) / "run"


def config_flags(data_dir: Path, **overrides) -> list[str]:
  fields = {**SMALL, "data.data_dir": str(data_dir), **overrides}
  return ["--config=configs/demo.py"] + [f"--config.{name}={value}" for name, value in fields.items()]


def train_command(workdir: Path, data_dir: Path, *flags: str, **overrides) -> list[str]:
  """`python -m mma_dfer_jax.train` on small clips; keyword arguments override the config."""
  return command("train", f"--workdir={workdir}", *config_flags(data_dir, **overrides), *flags)


def command(name: str, *arguments: object) -> list[str]:
  return [sys.executable, "-m", f"mma_dfer_jax.{name}", *map(str, arguments)]


def spawn(command: Sequence[str], cache: Path, devices: int = 4, **variables: str) -> subprocess.Popen:
  """Starts a command on simulated devices; keyword arguments are environment variables."""
  environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PLATFORMS": "cpu"} | variables
  environment["XLA_FLAGS"] = os.environ["XLA_FLAGS"].replace("count=4", f"count={devices}")
  pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
  return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **pipes)


def finish(process: subprocess.Popen, status: int = 0) -> str:
  """Waits, checks the exit status, and returns all that was printed: in logs whole lines, no control characters."""
  out, err = process.communicate(timeout=300)
  assert process.returncode == status, out + err
  assert not [word for word in ("Traceback", "resource_tracker") if word in out + err], out + err
  assert not set("\r\x1b") & set(out + err), out + err
  return out + err


def wait_for(condition: Callable[[], bool], process: subprocess.Popen) -> None:
  """Polls as fast as it can, so that moments of a few milliseconds are hit."""
  deadline = time.monotonic() + 200
  while not condition():
    assert time.monotonic() < deadline
    assert process.poll() is None, "".join(process.communicate())
    time.sleep(0.0005)


def steps_logged(workdir: Path) -> int:
  path = workdir / "metrics.jsonl"
  lines = path.read_text().split("\n")[:-1] if path.exists() else []
  return max((json.loads(line)["step"] for line in lines), default=0)


def read_json(path: Path) -> dict:
  return json.loads(path.read_text())


def parameters(workdir: Path) -> dict[str, np.ndarray]:
  """As the newest checkpoint has them."""
  return open_run(workdir).read()


def assert_same_bits(a: Path, b: Path) -> None:
  """Of two runs: parameters, and the answer to each clip."""
  ours, theirs = parameters(a), parameters(b)
  assert ours.keys() == theirs.keys()
  assert [path for path in ours if ours[path].tobytes() != theirs[path].tobytes()] == []
  assert (a / "predictions.csv").read_bytes() == (b / "predictions.csv").read_bytes()


def fresh_parameters(model) -> dict[str, np.ndarray]:
  """Of a model with seed 1."""
  from flax import nnx

  from mma_dfer_jax.model import MmaDfer

  variables = flat_params(nnx.state(MmaDfer(model, rngs=nnx.Rngs(params=1))))
  return {path: np.asarray(variable[...]) for path, variable in variables.items()}
