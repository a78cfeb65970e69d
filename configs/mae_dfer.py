"""MAE-DFER on DFEW: the picture alone, LGI-Former at 160 px, 100 epochs; published 5-fold means: UAR 63.41, WAR 74.43.

  python -m mma_dfer_jax.train --config=configs/mae_dfer.py --config.data.data_dir=data --config.data.fold=1 \
      --config.pretrained.image=checkpoint-49.pth --workdir=runs/mae_dfer/fold1

Source: sunlicai/MAE-DFER, MIT, its script for DFEW and log; docs/training.md says what differs.
"""

from mma_dfer_jax.config import choose, default_config
from mma_dfer_jax.data.labels import LABEL_ORDERS
from mma_dfer_jax.parts import part


def get_config(choices: str = ""):
  c = default_config()
  c.num_epochs = 100
  c.batch_size = 96
  c.learning_rate = 1e-3 * 96 / 256  # 1e-3 for 256 clips, in proportion
  c.schedule = "step"
  c.warmup_epochs = 5
  c.warmup_learning_rate = c.min_learning_rate = 1e-6
  c.layer_decay = 0.75
  c.weight_decay = 0.05
  c.decayed = "kernels"
  c.mixup = 0.8
  c.cutmix = 1.0
  c.loss.label_smoothing = 0.1

  c.inputs.image_size = 160
  c.inputs.frame_choice = "stride"
  c.inputs.test_views = 2
  c.model.image = part("encoders", "lgi", tunable=(".*",))
  c.model.audio = part("encoders", "none")
  c.model.prompts = part("adapters", "none")
  c.model.fusion = part("fusion", "none")
  c.model.temporal = part("temporal", "mean", width=0)
  c.model.head = part("heads", "linear", initial=0.02 * 0.001)

  c.data.name = "dfew"
  c.data.fold = 1
  c.data.classes = LABEL_ORDERS["dfew"].classes
  c.data.brightness = 0.0
  c.data.rand_augment = 4
  c.data.erase = 0.25
  return choose(c, choices)
