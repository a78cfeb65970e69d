"""MAE on frames of unlabelled clips (arXiv 2111.06377): ViT-B/16 at 224 px, of which a quarter of the patches is seen.

  python -m mma_dfer_jax.pretrain --config=configs/pretrain_frames.py --config.data.data_dir=data --workdir=runs/pretrain_frames

A smaller encoder is chosen after a colon, by the config that it is for: --config=pretrain_frames:clips
"""

from mma_dfer_jax.pretraining_config import pretraining_config


def get_config(choices: str = ""):
  return pretraining_config("image", choices)
