"""Train MMA-DFER on a prepared data set.

  python -m mma_dfer_jax.train --config=configs/dfew.py --config.data.data_dir=data --workdir=runs/fold1

To resume, run the same command. SIGTERM, or a terminal that is closed, saves and ends with exit status 0. `training/loop.py` is the run itself.
"""

from collections.abc import Sequence
import contextlib
from pathlib import Path

from absl import flags
import jax

from mma_dfer_jax import cli
from mma_dfer_jax.config import OF_A_HOST, flat_config
from mma_dfer_jax.disk import alone_in
from mma_dfer_jax.paths import define_path
from mma_dfer_jax.training import hosts
from mma_dfer_jax.training.check import check_run, few_clips
from mma_dfer_jax.training.loop import fit
from mma_dfer_jax.training.run import describe_run
from mma_dfer_jax.training.sharding import start_jax

_CONFIG = cli.define_config()
_WORKDIR = define_path("workdir", None, "Folder for checkpoints, metrics and the report.", required=True)
flags.mark_flag_as_required("config")


def main(argv: Sequence[str]) -> int:
  del argv
  config, workdir = _CONFIG.value, Path(_WORKDIR.value)
  hosts.join()
  stop = hosts.Stop()
  start_jax(config.matmul_precision)
  with hosts.fail_together():
    checked = check_run(config)
  run = describe_run(config, checked.model, checked.data_set, checked.starts)
  hosts.check_equal_on_all("run", {k: v for k, v in flat_config(run).items() if k not in OF_A_HOST})
  with contextlib.ExitStack() as alone:
    with hosts.fail_together():
      if jax.process_index() == 0:
        alone.enter_context(alone_in(workdir, "training", "--workdir"))
        if note := few_clips(checked.train_clips):
          print(note)
    return fit(config, checked, run, workdir, stop=stop)


if __name__ == "__main__":
  cli.run(main, describe_error=hosts.describe_error, exit_process=hosts.exit_process)
