"""The paper on DFEW: ViT-B/16 at 224 px, 7 classes, 25 epochs; published 5-fold means: UAR 67.01, WAR 77.51.

  python -m mma_dfer_jax.train --config=configs/dfew.py --config.data.data_dir=data --config.data.fold=1 \
      --workdir=runs/dfew/fold1
"""

from mma_dfer_jax.config import default_config


def get_config():
  c = default_config()
  c.data.fold = 1
  c.data.classes = ("happy", "sad", "neutral", "angry", "surprise", "disgust", "fear")  # csv label - 1
  return c
