"""AudioMAE on unlabelled sounds (arXiv 2207.06405): ViT-B/16 on 5.12 s, of which a fifth of the patches is seen.

  python -m mma_dfer_jax.pretrain --config=configs/pretrain_sound.py --config.data.data_dir=data --workdir=runs/pretrain_sound

A smaller encoder is chosen after a colon, by the config that it is for: --config=pretrain_sound:clips
"""

from mma_dfer_jax.pretraining_config import pretraining_config


def get_config(choices: str = ""):
  return pretraining_config("audio", choices)
