"""The paper on DFEW: ViT-B/16 at 224 px, 7 classes, 25 epochs; published 5-fold means: UAR 67.01, WAR 77.51.

  python -m mma_dfer_jax.train --config=configs/dfew.py --config.data.data_dir=data --config.data.fold=1 \
      --config.pretrained.image=mae_face_pretrain_vit_base.pth --config.pretrained.audio=pretrained.pth \
      --workdir=runs/dfew/fold1

Its ablations are choices of parts, after a colon (docs/ablations.md):

  --config=configs/dfew.py:prompts=none          without progressive prompts
  --config=configs/dfew.py:fusion=none           without Fusion Bottlenecks
  --config=configs/dfew.py:temporal=mean         without the temporal transformer
  --config=configs/dfew.py:audio=none            picture alone
"""

from mma_dfer_jax.config import choose, default_config
from mma_dfer_jax.data.labels import LABEL_ORDERS


def get_config(choices: str = ""):
  c = default_config()
  c.data.name = "dfew"
  c.data.fold = 1
  c.data.classes = LABEL_ORDERS["dfew"].classes
  return choose(c, choices)
