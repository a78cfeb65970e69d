"""One of several processes that only sum over all devices, again and again: `host_process.py FILE` makes the file first."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from mma_dfer_jax import cli
from mma_dfer_jax.training import hosts
from mma_dfer_jax.training.sharding import make_mesh, replicated, to_global


def main(argv):
  hosts.HEARTBEAT_SECONDS = 3
  hosts.join()
  stop, mesh = hosts.Stop(), make_mesh(-1, 1)
  ones = to_global({"ones": np.ones(jax.local_device_count())}, mesh)["ones"]
  total = jax.jit(jnp.sum, out_shardings=replicated(mesh))
  while not stop:
    assert total(ones) == jax.device_count()
    Path(argv[1]).touch()


if __name__ == "__main__":
  cli.run(main, takes_files=True, describe_error=hosts.describe_error, exit_process=hosts.exit_process)
