"""Which fields a pretraining has, with default, unit and source; `configs/pretrain_*.py` choose the stream."""

import runpy

import ml_collections

from mma_dfer_jax.errors import UserError
from mma_dfer_jax.help import shipped_configs
from mma_dfer_jax.parts import part, successor

# By stream: MAE on images and AudioMAE on sounds (arXiv 2111.06377, 2207.06405, and their released scripts).
RECIPES = {
  "image": {"batch_size": 256, "learning_rate": 1.5e-4, "weight_decay": 0.05, "mask_ratio": 0.75, "decoder_depth": 8},
  "audio": {"batch_size": 64, "learning_rate": 2e-4, "weight_decay": 1e-4, "mask_ratio": 0.8, "decoder_depth": 16},
}  # fmt: skip


def pretraining_config(stream: str, choices: str = "") -> ml_collections.ConfigDict:
  """MAE's recipe for frames, or AudioMAE's for sounds.

  Args:
    stream: "image" or "audio".
    choices: what stands after the colon of --config, parted by commas: the config whose encoder is pretrained (`demo`,
      `clips`; if not given, `dfew`, the paper's), and `decoder=local` or `decoder=full`.
  """
  recipe = RECIPES[stream]
  c = ml_collections.ConfigDict()
  c.seed = 1  # of new parameters, order, augmentation and masks
  c.num_steps = 50_000  # updates
  c.batch_size = recipe["batch_size"]  # frames or sounds of an update, over all devices and hosts
  c.learning_rate = recipe["learning_rate"]  # of 256 examples; times batch_size / 256 it is the highest
  c.warm_up = 0.05  # share of the steps in which the rate rises from 0; then half a cosine back to 0
  c.weight_decay = recipe["weight_decay"]  # AdamW, betas 0.9 and 0.95; not on biases and norms
  c.precision = "float32"  # or "bfloat16"; parameters, moments and the loss stay float32
  c.matmul_precision = "float32"  # of float32 on accelerators; "bfloat16", "tensorfloat32": coarser
  c.remat = "names"  # "none" keeps more for the backward pass, "layers" less and computes every layer twice
  c.micro_batch = -1  # examples that go through the model at once; -1: the whole batch

  c.inputs = ml_collections.ConfigDict()
  c.model = ml_collections.ConfigDict()
  c.model.stream = stream  # what is pretrained: "image", on frames, or "audio", on sounds
  c.model.encoder = part("encoders", "mae")
  c.model.decoder = part("decoders", "full")  # MAE's; `local` is AudioMAE's, with windows
  c.model.mask_ratio = recipe["mask_ratio"]  # share of the patches that are removed
  c.model.norm_pix = True  # whether each patch of the target is normalised by its own mean and deviation

  c.init = ml_collections.ConfigDict()
  c.init.image = ""  # a file to start from, such as mae_pretrain_vit_base.pth; empty: random weights
  c.init.audio = ""  # the same of sounds, such as AudioMAE's pretrained.pth

  c.data = ml_collections.ConfigDict()
  c.data.name = "clips"  # folder below data_dir, as written by mma_dfer_jax.data.prepare; labels are not read
  c.data.data_dir = ""  # required
  c.data.fold = 0  # test fold whose clips are left out; 0: `train` if there is such a split, else all splits
  if stream == "image":
    c.data.crop_scale = (0.2, 1.0)  # share of the frame's area; MAE
    c.data.crop_ratio = (3 / 4, 4 / 3)  # width over height of the crop; MAE
    c.data.flip = 0.5  # probability of a mirrored frame; MAE
  else:
    c.data.roll = True  # whether a sound begins at a random moment, its beginning following its end; AudioMAE
    c.data.gain = True  # whether a sound is made louder or softer, by Beta(10, 10) + 0.5; AudioMAE
  c.data.num_workers = 8  # processes that decode, per host; 0: threads of the training process
  c.data.prefetch = 2  # batches that each of them keeps ready

  c.mesh = ml_collections.ConfigDict()
  c.mesh.data = -1  # devices along which the batch is split; -1: all that remain
  c.mesh.fsdp = 1  # devices along which large parameters are split as well
  c.fsdp_min_size_mb = 4.0  # smaller tensors stay whole

  c.log_every_steps = 20
  c.report_every_steps = 500  # from one point of the loss curve, and one checkpoint, to the next
  c.save_every_steps = 0  # besides; 0: only then
  c.keep_checkpoints = 2  # newest ones
  return _chosen(c, choices)


def _chosen(c: ml_collections.ConfigDict, choices: str) -> ml_collections.ConfigDict:
  """Takes the encoder of a shipped config, with its inputs and a decoder in proportion; and the kind of decoder."""
  like, decoder, stream = "dfew", "", c.model.stream
  for choice in filter(None, choices.split(",")):
    if choice.startswith("decoder="):
      decoder = choice.removeprefix("decoder=")
    else:
      like = choice
  known = {name: path for name, path in shipped_configs().items() if not name.startswith("pretrain")}
  if like not in known:
    raise UserError(f"there is no choice {like!r}: give the config whose encoder is to be pretrained "
                    f"({', '.join(known)}), or decoder=full or decoder=local")  # fmt: skip
  other = runpy.run_path(str(known[like]))["get_config"]()
  c.model.encoder = other.model[stream]
  c.model.decoder.depth = RECIPES[stream]["decoder_depth"]
  size = "image_size" if stream == "image" else "audio_shape"
  c.inputs[size] = other.inputs[size]
  if other.model[stream].width < 512:  # a small encoder needs no decoder of MAE's size: as wide, half as deep
    encoder = c.model.encoder
    c.model.decoder.update({"width": encoder.width, "heads": encoder.heads, "mlp_dim": encoder.mlp_dim})
    c.model.decoder.depth = max(encoder.depth // 2, 1)
    c.learning_rate = 1e-3 * 256 / c.batch_size  # measured on generated clips (docs/pretraining.md)
    c.remat = "none"  # so small a step fits anywhere
    c.report_every_steps = 100
    if stream == "image":
      c.data.crop_scale = (0.5, 1.0)  # a fifth of a small picture shows too little
    c.data.num_workers = 0
  if decoder:
    c.model.decoder = successor("decoders", c.model.decoder, decoder)
  return c
