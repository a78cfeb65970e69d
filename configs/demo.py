"""Generated clips (`mma_dfer_jax.data.demo`), minutes on two CPU cores: `./launch.sh demo`.

The model is small and its encoders stay as they are: random, or pretrained on the clips without labels as the demo does. It
proves the program, not the paper.
"""

from mma_dfer_jax.config import choose, default_config


def get_config(choices: str = ""):
  c = default_config()
  c.num_epochs = 18
  c.batch_size = 16
  c.learning_rate = 2e-3
  c.micro_batch = -1  # the model is so small that the whole batch fits anywhere, and is faster
  c.inputs.image_size = 64
  c.inputs.audio_shape = (192, 128)  # 1.92 s, the clips are 1.6 to 2.0 s long
  for encoder in (c.model.image, c.model.audio):
    encoder.width = 64
    encoder.depth = 2
    encoder.heads = 4
    encoder.mlp_dim = 192
    encoder.drop_path = 0.0
  c.model.prompts.layers_per_stage = 1
  c.model.fusion.width = 32
  c.model.temporal.width = 64
  c.model.temporal.heads = 4
  c.model.temporal.head_dim = 16
  c.model.temporal.mlp_dim = 128
  c.data.data_dir = "runs/demo/data"
  c.data.crop_scale = (0.85, 1.0)  # heads lean in and out: a small crop would hide it
  c.data.crop_ratio = (0.9, 1.1)
  c.data.brightness = 0.2
  c.data.num_workers = 0
  return choose(c, choices)
