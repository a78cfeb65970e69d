"""Four simulated devices, flags parsed as a command would, and the golden numbers of the original."""

from importlib.metadata import version
import json
import os
from pathlib import Path
import signal
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Models of this size run as fast so. LLVM's level 0 halves the time to compile; a quarter of that is left where fused
# operations are written without MLIR, which XLA can no longer do in JAX 0.12 (an unknown flag would end the process).
os.environ["XLA_FLAGS"] = (
  os.environ.get("XLA_FLAGS", "")
  + " --xla_backend_optimization_level=0"
  + " --xla_cpu_use_fusion_emitters=false" * version("jax").startswith("0.10.")
  + " --xla_force_host_platform_device_count=4"
)

from absl import flags
import jax
import numpy as np
import pytest

from mma_dfer_jax.model import PAPER, ModelConfig, paper, read_model
from mma_dfer_jax.training.sharding import start_jax

# For processes without simulated devices; a process of xdist has the flags twice.
ONE_DEVICE = " ".join(flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag)
GOLDEN = Path(__file__).parent / "golden"
ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(GOLDEN))  # make_weights.py and gen_preprocess_helpers.py, which made the golden inputs

import make_weights  # noqa: E402

start_jax()
flags.FLAGS.mark_as_parsed()  # grain's worker processes ask for it

SIZES = {slot: {"name": part} for slot, part in PAPER.items()} | {  # of the golden tiny model
  "image": {"name": "mae", "width": 48, "heads": 4, "mlp_dim": 192},
  "audio": {"name": "mae", "width": 48, "heads": 4, "mlp_dim": 192},
  "prompts": {"name": "prompts"},
  "fusion": {"name": "bottleneck", "width": 16},
  "temporal": {"name": "transformer", "width": 32, "heads": 8, "head_dim": 8, "mlp_dim": 64},
}


def tiny(num_classes: int = 7, image_size: int = 64, audio_shape=(512, 128), **changes) -> ModelConfig:
  """The golden tiny model, with other fields or other parts: `tiny(fusion={"name": "none"}, image={"depth": 4})`."""
  fields = {slot: changes[slot] if "name" in changes.get(slot, {}) else values | changes.get(slot, {})
            for slot, values in SIZES.items()}  # fmt: skip
  inputs = {"image_size": image_size, "audio_shape": audio_shape}
  return read_model({"num_classes": num_classes, "inputs": inputs, **fields})


def small(**changes) -> ModelConfig:
  """A model of four layers that compiles within seconds."""
  four = {"image": {"depth": 4}, "audio": {"depth": 4}, "prompts": {"layers_per_stage": 2}}
  return tiny(**{"image_size": 32, "audio_shape": (64, 32)} | four | changes)


TINY = tiny()
CONFIGS = {"tiny_64_7": TINY, "full_224_7": paper()}


def golden_json(name: str):
  return json.loads((GOLDEN / f"{name}.json").read_text())


def golden_weights(case: str, seed: int = 1) -> dict[str, np.ndarray]:
  """The state dict, by the names of the original, that a golden case was run with."""
  return make_weights.make_state_dict(golden_json(f"spec_{case}"), seed)


def golden_inputs(case: str, seed: int = 2, batch: int = 2):
  """video (B, T, H, W, 3), spectrogram (B, F, K), labels (B,) of a golden case."""
  cfg = CONFIGS[case]
  images, audio, labels = make_weights.make_inputs(
    seed, batch, cfg.inputs.image_size, num_classes=cfg.num_classes
  )
  return np.ascontiguousarray(images.transpose(0, 1, 3, 4, 2)), audio[:, 0], labels.astype(np.int32)


def slice_of(array: np.ndarray, size: int) -> np.ndarray:
  """The elements that a golden slice holds: evenly spaced in C order."""
  flat = np.asarray(array).ravel()
  return flat[[i * (flat.size - 1) // (size - 1) for i in range(size)]]


# Files that take longest come first, so that the last of two processes does not end minutes after the other.
LONG = (
  "test_documents",
  "test_pretrain",
  "test_parity",
  "test_hosts",
  "test_train",
  "test_folds",
  "test_ablations",
  "test_ablate",
)


def pytest_collection_modifyitems(items):
  order = {name: place for place, name in enumerate(LONG)}
  items.sort(key=lambda item: order.get(item.path.stem, len(LONG)))


@pytest.fixture(autouse=True)
def hang_up():
  """SIGHUP as a terminal's processes have it, whatever started the tests, or an earlier one of them has left."""
  signal.signal(signal.SIGHUP, signal.SIG_DFL)
  signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})


@pytest.fixture
def float64():
  with jax.enable_x64(True):
    yield


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory) -> Path:
  """Small clips to train on, as `small_runs.make_clips` prepares them once for all processes."""
  from small_runs import make_clips, shared

  return shared(tmp_path_factory, "small_clips", make_clips)


@pytest.fixture(scope="session")
def cache() -> Path:
  """Compiled programs, for the processes that tests start too: kept from one run of the tests to the next."""
  return Path(jax.config.values["jax_compilation_cache_dir"])
