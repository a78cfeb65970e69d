"""Small real runs in real processes, and what they leave behind."""

from collections.abc import Callable, Sequence
import json
import os
from pathlib import Path
import subprocess
import sys
import time

from conftest import ROOT
from flax import nnx
import numpy as np

from mma_dfer_jax.parameters import abstract_model, flat_params, split_tunable
from mma_dfer_jax.training.checkpoints import Checkpointer, load_frozen
from mma_dfer_jax.training.run import model_of, read_run

# Three epochs of five steps on 21 generated clips, with a model that compiles within seconds.
SMALL = {
  "num_epochs": 3, "batch_size": 4, "log_every_steps": 2, "learning_rate": 1e-3, "keep_checkpoints": 2,
  "inputs.image_size": 32, "inputs.audio_shape": "(64,128)", "model.fusion.width": 8, "model.temporal.width": 16,
  "model.temporal.heads": 2, "model.temporal.head_dim": 8, "model.temporal.mlp_dim": 16,
}  # fmt: skip
SMALL |= {
  f"model.{stream}.{field}": value
  for stream in ("image", "audio")
  for field, value in {"width": 16, "heads": 2, "mlp_dim": 32, "drop_path": 0.2}.items()
}
FROZEN = ("fusion/.*", "classifier/.*", ".*_prompts/.*", "temporal/.*", "joint_adaptation/.*", ".*/pos_embed")


def train_command(workdir: Path, data_dir: Path, *flags: str, **overrides) -> list[str]:
  """`python -m mma_dfer_jax.train` on small clips; keyword arguments override the config."""
  fields = {**SMALL, "data.data_dir": data_dir, **overrides}
  command = [sys.executable, "-m", "mma_dfer_jax.train", "--config=configs/demo.py", f"--workdir={workdir}"]
  command += [f"--config.{name}={value}" for name, value in fields.items()]
  return [*command, f"--config.tunable={FROZEN!r}", *flags]


def spawn(
  command: Sequence[str], cache: Path, preexec_fn=None, devices: int = 1, **variables: str
) -> subprocess.Popen:
  """Starts a command on simulated devices; keyword arguments are environment variables."""
  environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PLATFORMS": "cpu"} | variables
  environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
  return subprocess.Popen(
    command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    preexec_fn=preexec_fn,
  )  # fmt: skip


def finish(process: subprocess.Popen, status: int = 0) -> str:
  """Waits, checks the exit status, and returns all that was printed."""
  out, err = process.communicate(timeout=300)
  assert process.returncode == status, out + err
  assert "Traceback" not in out + err, out + err
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


def states(workdir: Path) -> tuple[nnx.State, nnx.State]:
  """Tunable and frozen parameters as the newest checkpoint has them."""
  run = read_run(workdir)
  _, tunable, frozen = split_tunable(nnx.merge(*abstract_model(model_of(run))), run["tunable"])
  checkpointer = Checkpointer(workdir, read_only=True)
  step = checkpointer.latest_step()
  assert step is not None
  tunable, _ = checkpointer.restore_tunable(step, tunable)
  checkpointer.close()
  return tunable, load_frozen(workdir, frozen)


def parameters(workdir: Path) -> dict[str, np.ndarray]:
  return {p: np.asarray(v[...]) for state in states(workdir) for p, v in flat_params(state).items()}
