"""Generated clips (`mma_dfer_jax.data.demo`), minutes on two CPU cores: `./launch.sh demo`.

Nothing is pretrained here, so that everything is tunable, and the model is small. It proves the program, not the paper.
"""

from mma_dfer_jax.config import default_config


def get_config():
  c = default_config()
  c.num_epochs = 18
  c.batch_size = 16
  c.learning_rate = 2e-3
  c.tunable = (".*",)
  c.model.image_size = 64
  c.model.audio_shape = (192, 128)  # 1.92 s, the clips are 1.6 to 2.0 s long
  c.model.width = 64
  c.model.depth = 2
  c.model.layers_per_stage = 1
  c.model.heads = 4
  c.model.mlp_dim = 192
  c.model.drop_path = 0.0
  c.model.bottleneck_width = 32
  c.model.temporal_width = 64
  c.model.temporal_heads = 4
  c.model.temporal_head_dim = 16
  c.model.temporal_mlp_dim = 128
  c.data.data_dir = "runs/demo/data"
  c.data.crop_scale = (0.85, 1.0)  # heads lean in and out: a small crop would hide it
  c.data.crop_ratio = (0.9, 1.1)
  c.data.brightness = 0.2
  c.data.num_workers = 0
  return c
