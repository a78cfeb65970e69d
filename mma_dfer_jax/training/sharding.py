"""Devices: how JAX is started, one mesh ("data", "fsdp"), one rule by shape; the model knows nothing of it."""

from collections.abc import Iterator, Mapping
import ctypes
import functools
import itertools
from pathlib import Path
import resource
import sys
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np
import psutil

from mma_dfer_jax.errors import UserError


def start_jax(matmul_precision: str = "float32") -> None:
  """Sets how JAX computes float32 products (accelerators would take a coarser way), and keeps compiled programs."""
  jax.config.update("jax_default_matmul_precision", matmul_precision)
  keep_compiled()


def keep_compiled() -> None:
  """Keeps compiled programs in ~/.cache/mma_dfer_jax/xla for the next process, unless a cache has been chosen."""
  if not jax.config.values["jax_compilation_cache_dir"]:
    jax.config.update("jax_compilation_cache_dir", str(Path.home() / ".cache/mma_dfer_jax/xla"))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def make_mesh(data: int, fsdp: int) -> Mesh:
  """A mesh over all devices of all hosts, along which the batch and large parameters are split; see `config.mesh`."""
  devices = jax.device_count()
  if data < 0:
    data, rest = divmod(devices, fsdp)
    if rest:
      raise UserError(f"mesh.fsdp={fsdp} does not divide the {devices} devices there are")
  if data * fsdp != devices:
    asked = f"mesh.data={data} x mesh.fsdp={fsdp} asks for {data * fsdp} devices"
    raise UserError(f"{asked}, but there are {devices}; mesh.data=-1 takes all that mesh.fsdp leaves")
  return jax.make_mesh((data, fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def compiler_options() -> dict[str, str]:
  """Of the steps: on CPUs, the order of operations that takes the least memory, a third less; others do it anyway."""
  cpu = jax.default_backend() == "cpu"
  return {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"} if cpu else {}


def check_precision(precision: str) -> None:
  """Raises UserError if the devices would only imitate bfloat16, slower than float32."""
  device = jax.devices()[0]
  if precision == "bfloat16" and device.platform == "gpu" and float(device.compute_capability) < 8:
    kind = f"{device.device_kind} (compute capability {device.compute_capability}, below 8.0)"
    raise UserError(f"precision=bfloat16, but {kind} has no bfloat16; use float32")


def compile_checked(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
  """Compiles ahead; UserError, with what would help, if the program does not fit into memory."""
  compiled = lowered.compile()
  if hasattr(ctypes.CDLL(None), "malloc_trim"):
    ctypes.CDLL(None).malloc_trim(0)  # glibc keeps what the compiler has freed, 0.3 GiB at full size
  if (sizes := compiled.memory_analysis()) is None:
    return compiled
  needed = sizes.temp_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes
  of_device = jax.local_devices()[0].memory_stats() or {}
  if "bytes_limit" in of_device:
    free = of_device["bytes_limit"] - of_device["bytes_in_use"]
  else:
    needed *= jax.local_device_count()
    free = psutil.virtual_memory().available + psutil.swap_memory().free
  if needed > free:
    raise UserError(out_of_memory(f"{needed / 2**30:.1f} GiB are needed, {free / 2**30:.1f} GiB are free"))
  return compiled


def out_of_memory(facts: str) -> str:
  return (
    f"this does not fit into the memory of {jax.devices()[0].device_kind}: {facts}; make batch_size or image_size "
    "smaller, set remat=names, or remat=layers which keeps least, or spread it over more devices"
  )


def peak_memory() -> float:
  """GiB: of the first device where it keeps statistics, else of this process."""
  of_device = jax.local_devices()[0].memory_stats() or {}
  if "peak_bytes_in_use" in of_device:
    return of_device["peak_bytes_in_use"] / 2**30
  unit = 1 if sys.platform == "darwin" else 1024
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def describe_error(error: Exception) -> str | None:
  """In words, an error of JAX that a user can fix; None if it is another."""
  return out_of_memory(" ".join(str(error).split())[:300]) if "RESOURCE_EXHAUSTED" in str(error) else None


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Clips are split over all devices."""
  return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def replicated(mesh: Mesh) -> NamedSharding:
  """A copy on each device."""
  return NamedSharding(mesh, PartitionSpec())


def check_batch_size(batch_size: int, name: str = "batch_size") -> None:
  """Raises UserError, naming sizes that fit, unless so many clips split evenly over the devices."""
  devices = jax.device_count()
  if batch_size % devices:
    below = batch_size // devices * devices
    fitting = f"{below} or {below + devices}" if below else f"{devices}"
    raise UserError(f"{name}={batch_size} must be a multiple of the {devices} devices; use {fitting}")


def fsdp_sharding(tree: Any, mesh: Mesh, min_size_mb: float) -> Any:
  """A sharding for each array: large ones are split over `fsdp` on their longest axis that divides evenly.

  The rule sees shapes only, so that the moments of an optimizer follow their parameters.
  """
  devices = mesh.shape["fsdp"]

  def rule(x) -> NamedSharding:
    large = x.size * x.dtype.itemsize >= min_size_mb * 2**20 and devices > 1
    split = next((axis for axis in np.argsort(x.shape)[::-1] if large and x.shape[axis] % devices == 0), None)
    return NamedSharding(mesh, PartitionSpec(*("fsdp" if axis == split else None for axis in range(x.ndim))))

  return jax.tree.map(rule, tree)


def to_global(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
  """The global batch from this host's share of it; strings (clip ids) stay behind."""
  numbers = {name: np.asarray(v) for name, v in batch.items() if np.asarray(v).dtype.kind not in "OSU"}
  return jax.tree.map(functools.partial(jax.make_array_from_process_local_data, batch_sharding(mesh)), numbers)  # fmt: skip


def on_devices(batches: Iterator[Mapping[str, np.ndarray]], mesh: Mesh) -> Iterator[dict[str, jax.Array]]:
  """Global batches, each sent off while the one before it is worked on, so that no step waits for its clips."""
  sent = (to_global(batch, mesh) for batch in batches)
  for batch, _following in itertools.pairwise(itertools.chain(sent, [{}])):
    yield batch
