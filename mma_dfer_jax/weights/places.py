"""Which files of tensors a path stands for: one, the pieces that an index lists, or those in a folder of other tools."""

import json
from pathlib import Path
import re

from mma_dfer_jax.errors import UserError, few, shown
from mma_dfer_jax.paths import hint
from mma_dfer_jax.weights.pickles import LIMIT

ZERO = "run the zero_to_fp32.py that DeepSpeed put into its folder, and give the file that it writes"
_EXPORTED = "not of PyTorch; ask for the .pth or .safetensors that it was made from"
# In order of preference: files of Hugging Face's transformers, diffusers and timm.
_WHOLE = re.compile(
  r"((diffusion_pytorch_|open_clip_)?model(\.\w+)?\.safetensors|(diffusion_|open_clip_)?pytorch_model(\.\w+)?\.bin)(\.index(\.\w+)?\.json)?"
)
_INDEX = re.compile(r".*\.index(\.\w+)?\.json")
# What cannot be read, by the name of a file or of what is in a folder: what it is, and what to do.
_OTHERS = {
  r"(bf16_)?zero_pp_rank_.*_states\.pt|.*_optim_states\.pt": f"weights that DeepSpeed ZeRO split; {ZERO}",
  r"\.metadata|.*\.distcp": "a checkpoint of torch.distributed; make one file of its folder with "
  "python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER model.pth",
  r"adapter_(config|model)\..*": "an adapter (LoRA) without its model; merge them (merge_and_unload of peft) and save that",
  r"data\.pkl": "an unpacked .pth; pack the folder again without compression: zip -0 -r model.pth FOLDER",
  r"saved_model\.pb|.*\.pb|.*\.data-\d+-of-\d+|.*\.ckpt.*\.(index|meta)": f"a TensorFlow model, {_EXPORTED}",
  r".*\.onnx(\.data)?": f"an ONNX model, {_EXPORTED}",
  r".*\.tflite|.*\.keras|.*\.h5|.*\.msgpack|.*\.gguf|.*\.mlmodel|.*\.mlpackage": f"a model {_EXPORTED}",
  r"_CHECKPOINT_METADATA|_METADATA|manifest\.ocdbt": "a checkpoint of Orbax; if a run of this program wrote it, give the "
  "workdir of that run, which holds run.json",
}  # fmt: skip
_NAMED = re.compile(r".*\.(pth|pt|ckpt|bin|safetensors|tar|zip|gz|tgz)")


def files_of(path: Path) -> tuple[tuple[Path, ...], dict[str, str]]:
  """The files with the tensors of a path, and where an index says that each tensor is; UserError names what is no such.

  A folder may be one of Hugging Face (one file, or pieces with an index) or of DeepSpeed.
  """
  if path.is_dir():
    path = _in_folder(path)
  elif not path.exists() and "unpack" in (why := hint(path, folder=False)):
    raise UserError(f"{path} {why}")
  elif not path.exists():
    refuse_other(path, [path.name + ".index"] if path.with_name(path.name + ".index").exists() else [])
  elif path.is_file() and not _INDEX.fullmatch(path.name):
    refuse_other(path, [path.name])
    if (piece := re.fullmatch(r".*-0*(\d+)-of-0*(\d+)\.\w+", path.name)) and int(piece[2]) > 1:
      advice = "give the folder with all of them, or its index"
      raise UserError(f"{path} is piece {piece[1]} of {piece[2]} of a model; {advice}")
  if not _INDEX.fullmatch(path.name):
    return (path,), {}
  try:
    if path.stat().st_size > LIMIT:
      raise ValueError(f"it is larger than {LIMIT:,} bytes")
    where = json.loads(path.read_bytes())["weight_map"]
    if not where or not all(isinstance(file, str) and Path(file).name == file for file in where.values()):
      raise ValueError("it must list files of its own folder")
  except OSError as error:
    raise UserError(f"{path}: {error.strerror}") from error
  except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
    raise UserError(f"{path} is no index of pieces, with weight_map: {shown(error)}") from error
  files = tuple(path.parent / file for file in sorted(set(where.values())))
  if gone := [shown(file.name) for file in files if not file.is_file()]:
    raise UserError(f"{path} lists {len(files)} files; {len(gone)} are missing: {few(gone)}")
  return files, where


def refuse_other(path: Path, names: list[str]) -> None:
  for pattern, what in _OTHERS.items():
    if any(re.fullmatch(pattern, name) for name in names):
      raise UserError(f"{path} is {what}")


def _in_folder(folder: Path) -> Path:
  """The file with the weights of a folder, or with the list of their pieces."""
  names = sorted(entry.name for entry in folder.iterdir())
  if {"run.json", "model.json"} & set(names):
    what = "a whole model of this program, which config.init_from of training takes"
    raise UserError(f"{folder} is {what}; here give a file of weights")
  tag = "checkpoint"  # Lightning's name for DeepSpeed's folder
  if "latest" in names:
    tag = (folder / "latest").read_bytes()[:255].decode(errors="replace").strip()
  if Path(tag).name == tag and list((folder / tag).glob("*_model_states.pt")):
    return _in_folder(folder / tag)
  if found := [name for name in names if _WHOLE.fullmatch(name)]:
    order = {name: (not name.startswith("model.s"), "safetensors" not in name, len(name)) for name in found}
    return folder / min(order, key=order.__getitem__)
  states = [name for name in names if re.fullmatch(r"mp_rank_\d+_model_states\.pt", name)]
  if len(states) > 1:
    split = f"splits every tensor into {len(states)}"
    raise UserError(f"{folder} is of DeepSpeed and {split}; save the model from one device")
  if states:
    return folder / states[0]
  refuse_other(
    folder, [*names, *(path.name for path in folder.glob("*/.metadata"))]
  )  # Accelerate's lie below
  files = [name for name in names if _NAMED.fullmatch(name)]
  advice = f"; give one of its files: {few([shown(name) for name in files])}" * bool(files)
  neither = "neither the workdir of a run (no run.json) nor a model folder (no model.json)"
  raise UserError(f"{folder} is {neither}{advice}")
