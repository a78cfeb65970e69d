"""Weights in and out: the authors' checkpoints, this project's, and the two pretraining files.

  python -m mma_dfer_jax.convert --model=dfew_fold1.pth --classes=dfew --out=models/dfew_fold1
  python -m mma_dfer_jax.convert --model=models/dfew_fold1 --to_torch=back.pth --to_safetensors=back.safetensors
  python -m mma_dfer_jax.convert --config=configs/dfew.py --config.pretrained.image=mae_face_pretrain_vit_base.pth \
      --config.pretrained.audio=audiomae.pth --out=models/start

Reading needs no PyTorch and executes nothing that a file holds.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from mma_dfer_jax import cli
from mma_dfer_jax.checkpoints import model_config
from mma_dfer_jax.config import flat_config
from mma_dfer_jax.conversion import (  # fmt: skip
  Source,
  check_exports,
  export,
  open_checkpoint,
  open_folder,
  start_of_training,
  write_folder,
)
from mma_dfer_jax.data.labels import LabelOrder, label_order
from mma_dfer_jax.errors import UserError, listed
from mma_dfer_jax.sharding import start_jax
from mma_dfer_jax.verdict import report_text
from mma_dfer_jax.weights import open_pretrained

_MODEL = flags.DEFINE_string(
  "model", None, "A .pth or .safetensors file, a model folder, or the workdir of a run."
)
_CONFIG = cli.define_config("Instead of --model, sizes, seed and pretrained.{image,audio} of a run to start")
_STEP = flags.DEFINE_string("step", "last", "Of a workdir: last, best (by WAR), or a step that was kept.")
_CLASSES = flags.DEFINE_string(
  "classes", None, "Class names: dfew, mafw (the order of MMA-DFER's lists), mafw-official, or a,b,c."
)
_HEADS = flags.DEFINE_integer(
  "heads", None, "Attention heads of the encoders, if unusual for their width.", lower_bound=1
)
_OUT = flags.DEFINE_string("out", None, "Model folder to write.")
_TO_TORCH = flags.DEFINE_string("to_torch", None, "A .pth file to write; needs PyTorch.")
_TO_SAFETENSORS = flags.DEFINE_string("to_safetensors", None, "A .safetensors file to write.")
_VERIFY = flags.DEFINE_string(
  "verify", None, "A .npz with video, spectrogram and the logits that they must give."
)
_TOLERANCE = flags.DEFINE_float(
  "tolerance", 1e-4, "Largest difference of a logit that --verify accepts.", lower_bound=0
)


def checked_flags() -> None:
  """Raises UserError with everything that is wrong with the flags."""
  problems = []
  if (_MODEL.value is None) == (_CONFIG.value is None):
    problems.append("give either --model, or --config with the pretraining files")
  if not (_OUT.value or _TO_TORCH.value or _TO_SAFETENSORS.value):
    problems.append("say what to write: --out, --to_torch, --to_safetensors")
  if _VERIFY.value and not _OUT.value:
    problems.append("--verify goes with --out")
  if _STEP.value != "last" and not Path(_MODEL.value or "", "run.json").is_file():
    problems.append("--step is for the workdir of a run")
  if _HEADS.value and not Path(_MODEL.value or "").is_file():
    problems.append("--heads is for files of weights; a folder or a config says it itself")
  if problems:
    raise listed("nothing to convert", problems)


def open_source() -> Source:
  """What the flags name, checked whole, with nothing but names and shapes read."""
  if _MODEL.value is None:
    return source_of_config(_CONFIG.value)
  path = Path(_MODEL.value)
  if path.is_dir():
    return open_folder(path, int(_STEP.value) if _STEP.value.isdigit() else _STEP.value, _CLASSES.value)
  return open_checkpoint(path, _CLASSES.value, _HEADS.value)


def source_of_config(config) -> Source:
  """The start of a run: both pretraining files, checked together."""
  files = {stream: config.pretrained[stream] for stream in ("image", "audio")}
  order = label_order(_CLASSES.value) if _CLASSES.value else None
  configured = tuple(config.data.classes)
  if order is None and configured:
    order = LabelOrder(configured, "as the config says")
  problems = [f"config.pretrained.{stream} is empty" for stream, file in files.items() if not file]
  if order and configured and order.classes != configured:
    problems.append(f"--classes={_CLASSES.value}, but config.data.classes is {', '.join(configured)}")
  if order is None:
    problems.append("the config has no data.classes: give --classes")
  if problems:
    raise listed("this start of a run cannot be made", problems)
  assert order is not None
  cfg = model_config(flat_config(config.to_dict()), order.classes)
  encoders = []
  for stream, file in files.items():
    try:
      encoders.append(open_pretrained(stream, file, cfg))
    except UserError as error:
      problems.append(str(error))
  if problems:
    raise listed("this start of a run cannot be made", problems)
  for encoder in encoders:
    print(encoder.describe())
  return start_of_training(cfg, config.seed, encoders, order)


def main(argv: Sequence[str]) -> None:
  del argv
  checked_flags()
  start_jax()
  to_torch = Path(_TO_TORCH.value) if _TO_TORCH.value else None
  to_safetensors = Path(_TO_SAFETENSORS.value) if _TO_SAFETENSORS.value else None
  check_exports(to_torch, to_safetensors)
  source = open_source()
  if _OUT.value:
    verify = Path(_VERIFY.value) if _VERIFY.value else None
    report = write_folder(
      source, Path(_OUT.value), verify, _TOLERANCE.value, stopping=cli.StopSignal().__bool__
    )
    print(report_text(report))
    print(f"wrote {_OUT.value}")
  if to_torch or to_safetensors:
    export(source, to_torch, to_safetensors)
    print(f"wrote {' and '.join(str(file) for file in (to_torch, to_safetensors) if file)}")


if __name__ == "__main__":
  cli.run(main)
