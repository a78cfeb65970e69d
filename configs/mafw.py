"""The paper on MAFW: ViT-B/16 at 224 px, 11 classes, 25 epochs; published 5-fold means: UAR 44.11, WAR 58.52.

  python -m mma_dfer_jax.train --config=configs/mafw.py --config.data.data_dir=data --config.data.fold=1 \
      --config.pretrained.image=mae_face_pretrain_vit_base.pth --config.pretrained.audio=pretrained.pth \
      --workdir=runs/mafw/fold1
"""

from mma_dfer_jax.config import choose, default_config
from mma_dfer_jax.data.labels import LABEL_ORDERS


def get_config(choices: str = ""):
  c = default_config()
  c.data.name = "mafw"
  c.data.fold = 1
  c.data.classes = LABEL_ORDERS["mafw"].classes
  return choose(c, choices)
