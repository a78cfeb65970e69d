"""Pretrain an encoder on clips without labels: MAE on frames, AudioMAE on sounds.

  python -m mma_dfer_jax.pretrain --config=pretrain_frames --config.data.data_dir=data --workdir=runs/pretrain_frames

Leaves WORKDIR/encoder.safetensors, which `train` takes as --config.pretrained.image (or audio), and a report. To resume,
run the same command. SIGTERM, or a terminal that is closed, saves and ends with exit status 0.
"""

from collections.abc import Sequence
import contextlib
import importlib.util
from pathlib import Path

from absl import flags
import jax

from mma_dfer_jax import cli
from mma_dfer_jax.config import OF_A_HOST, flat_config
from mma_dfer_jax.disk import alone_in
from mma_dfer_jax.errors import UserError
from mma_dfer_jax.paths import define_path
from mma_dfer_jax.training import hosts
from mma_dfer_jax.training.loop import fit
from mma_dfer_jax.training.pretraining import Pretraining, check_pretraining, describe_pretraining
from mma_dfer_jax.training.sharding import start_jax

_CONFIG = cli.define_config("What to pretrain")
_WORKDIR = define_path(
  "workdir", None, "Folder for checkpoints, metrics, the encoder and the report.", required=True
)
_PTH = flags.DEFINE_bool(
  "pth", False, "Write encoder.pth too, as MAE's and AudioMAE's own files; needs PyTorch."
)
flags.mark_flag_as_required("config")


def main(argv: Sequence[str]) -> int:
  del argv
  config, workdir = _CONFIG.value, Path(_WORKDIR.value)
  hosts.join()
  stop = hosts.Stop()
  start_jax(config.matmul_precision)
  with hosts.fail_together():
    if "stream" not in config.model:
      raise UserError("this config is for training; to pretrain give --config=pretrain_frames or pretrain_sound "
                      "(pretrain_frames:clips is for the encoder of clips)")  # fmt: skip
    if _PTH.value and not importlib.util.find_spec("torch"):
      raise UserError("--pth needs PyTorch: pip install torch, or take encoder.safetensors alone")
    checked = check_pretraining(config)
  run = describe_pretraining(config, checked)
  hosts.check_equal_on_all("run", {k: v for k, v in flat_config(run).items() if k not in OF_A_HOST})
  with contextlib.ExitStack() as alone:
    with hosts.fail_together():
      if jax.process_index() == 0:
        alone.enter_context(alone_in(workdir, "training", "--workdir"))
    return fit(Pretraining(config, checked, run, pth=_PTH.value), workdir, stop=stop)


if __name__ == "__main__":
  cli.run(main, describe_error=hosts.describe_error, exit_process=hosts.exit_process)
