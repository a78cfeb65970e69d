"""Any labelled videos (`prepare --dataset=clips`), with a small model that trains on a CPU.

  python -m mma_dfer_jax.train --config=configs/clips.py --config.data.data_dir=data --workdir=runs/clips

With pretrained encoders at hand, start from configs/dfew.py and `--config.data.name=clips` instead.
"""

from mma_dfer_jax.config import choose, default_config


def get_config(choices: str = ""):
  c = default_config()
  # Encoders stay frozen, random ones too, and the clips as they are: on 52 clips of RAVDESS WAR is 52.9 ± 4.1 % (two seeds),
  # against 36.5 % for everything from scratch and 67.6 ± 4.5 % for `probe` (docs/training.md, "Small sets").
  c.num_epochs = 60
  c.batch_size = 8
  c.learning_rate = 3e-3
  c.micro_batch = -1  # the model is so small that the whole batch fits anywhere, and is faster
  c.inputs.image_size = 96
  for encoder in (c.model.image, c.model.audio):
    encoder.width = 96
    encoder.depth = 4
    encoder.heads = 4
    encoder.mlp_dim = 288
    encoder.drop_path = 0.0
  c.model.prompts.layers_per_stage = 2
  c.model.fusion.width = 32
  c.model.temporal.width = 96
  c.model.temporal.heads = 4
  c.model.temporal.head_dim = 24
  c.model.temporal.mlp_dim = 192
  c.data.crop_scale = (1.0, 1.0)
  c.data.crop_ratio = (1.0, 1.0)  # of frames that are not square, a random square
  c.data.flip = 0.0
  c.data.brightness = 0.0
  c.data.num_workers = 0
  return choose(c, choices)
