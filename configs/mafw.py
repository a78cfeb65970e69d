"""The paper on MAFW: ViT-B/16 at 224 px, 11 classes, 25 epochs; published 5-fold means: UAR 44.11, WAR 58.52.

  python -m mma_dfer_jax.train --config=configs/mafw.py --config.data.data_dir=data --config.data.fold=1 \
      --workdir=runs/mafw/fold1
"""

from mma_dfer_jax.config import default_config


def get_config():
  c = default_config()
  c.data.fold = 1
  # The order of the authors' lists, which begins with DFEW's seven; the official order of MAFW is another.
  c.data.classes = ("happiness", "sadness", "neutral", "anger", "surprise", "disgust", "fear", "contempt", "anxiety",
                    "helplessness", "disappointment")  # fmt: skip
  return c
