"""Weights in and out: the authors' checkpoints, this project's, and the two pretraining files.

  python -m mma_dfer_jax.convert --model=dfew_fold1.pth --classes=dfew --out=models/dfew_fold1
  python -m mma_dfer_jax.convert --model=models/dfew_fold1 --to_torch=back.pth --to_safetensors=back.safetensors
  python -m mma_dfer_jax.convert --config=configs/dfew.py --config.pretrained.image=mae_face_pretrain_vit_base.pth \
      --config.pretrained.audio=audiomae.pth --out=models/start

Reading needs no PyTorch and executes nothing that a file holds.
"""

from collections.abc import Mapping, Sequence
import importlib.util
from pathlib import Path
import signal
from typing import Any
import zipfile

from absl import flags
from flax import nnx
import numpy as np

from mma_dfer_jax import cli
from mma_dfer_jax.config import model_config, resolve_paths
from mma_dfer_jax.data.labels import label_order
from mma_dfer_jax.engines.engine import load_model
from mma_dfer_jax.errors import UserError, listed
from mma_dfer_jax.model import MmaDfer, ModelConfig
from mma_dfer_jax.parameters import flat_params, put_over
from mma_dfer_jax.paths import define_path
from mma_dfer_jax.training.check import open_starts
from mma_dfer_jax.training.sharding import start_jax
from mma_dfer_jax.training.start import open_stored
from mma_dfer_jax.weights.class_vectors import about_vectors
from mma_dfer_jax.weights.files import StoredModel, held
from mma_dfer_jax.weights.folder import write_folder
from mma_dfer_jax.weights.mma_dfer import export, recipe_of, with_classes

_MODEL = define_path("model", None, "A .pth or .safetensors file, its pieces' index, a folder, or a workdir.")
_CONFIG = cli.define_config("Instead of --model, sizes, seed and pretrained.{image,audio} of a run to start")
_STEP = cli.shared_flag("step")
_CLASSES = flags.DEFINE_string("classes", None, "dfew, mafw (the authors' order), mafw-official, or a,b,c.")
_HEADS = flags.DEFINE_integer("heads", None, "Attention heads of the encoders, if unusual.", lower_bound=1)
_WEIGHTS = flags.DEFINE_string("weights", None, "Which weights of a file that holds several, as model_ema.")
_OUT = define_path("out", None, "Model folder to write.")
_TO_TORCH = define_path("to_torch", None, "A .pth file to write; needs PyTorch.")
_TO_SAFETENSORS = define_path("to_safetensors", None, "A .safetensors file to write.")
_VERIFY = define_path("verify", None, "A .npz: video, spectrogram, and the logits that they must give.")
_TOLERANCE = flags.DEFINE_float("tolerance", 1e-4, "Largest difference that --verify accepts.", lower_bound=0)


def check_flags() -> None:
  """Raises UserError with everything that is wrong with the flags."""
  model, files = Path(_MODEL.value or ""), [Path(f.value) for f in (_TO_TORCH, _TO_SAFETENSORS) if f.value]
  stated = _CONFIG.value is not None or any((model / f"{name}.json").is_file() for name in ("run", "model"))
  wrong = {
    "give either --model, or --config with the files to start from": (_MODEL.value is None) == (_CONFIG.value is None),
    "say what to write: --out, --to_torch, --to_safetensors": not (_OUT.value or files),
    **{f"{file} exists already; choose another name or remove it": file.exists() for file in files},
    "writing a .pth needs PyTorch (the CPU build is enough): pip install 'mma_dfer_jax[torch]'; --to_safetensors does not need it":
      _TO_TORCH.value and importlib.util.find_spec("torch") is None,
    "--verify needs --out": _VERIFY.value and not _OUT.value,
    "--step is for the workdir of a run": _STEP.value != "last" and not (model / "run.json").is_file(),
    "--heads is for files of weights; models of this program and configs state their heads": _HEADS.value and stated,
    "--weights is for files of weights; models of this program hold one set": _WEIGHTS.value and stated,
  }  # fmt: skip
  if problems := [problem for problem, is_there in wrong.items() if is_there]:
    raise listed("the command line has problems", problems)


def start_of_training(config) -> StoredModel:
  """The start of a run: the weights that its config names, checked together; everything else is fresh."""
  order, origin, problems = tuple(config.data.classes), "as the config says", resolve_paths(config)
  if _CLASSES.value:
    given = label_order(_CLASSES.value)
    if order and order != given.classes:
      problems.append(f"--classes={_CLASSES.value}, but config.data.classes is {', '.join(order)}")
    order, origin = given.classes, given.origin
  elif not order:
    problems.append("the config has no data.classes: give --classes")
  model = model_config(config.to_dict(), order or "?")
  starts, wrong = open_starts(config, model, order)
  problems += wrong
  if not config.init_from:
    fresh = [s for s in ("image", "audio") if getattr(model, s).depth and not config.pretrained[s]]
    problems += [f"config.pretrained.{stream} is empty" for stream in fresh]
  if problems:
    raise listed("the start of this run has problems", problems)
  print("\n".join(start.describe() for start in starts))
  net = MmaDfer(model, rngs=nnx.Rngs(params=config.seed))
  for start in starts:
    put_over(net, start.read())
  arrays = {path: np.asarray(variable[...]) for path, variable in flat_params(nnx.state(net)).items()}
  source = {"untrained": True, "seed": config.seed} | {start.name: start.sha256 for start in starts}
  about = {"assumed": {}, "classes": list(order), "class_order": origin, "recipe": recipe_of(model.inputs)}
  about |= about_vectors(starts)
  return StoredModel(Path("the start"), model, about | {"source": source}, held(arrays), sha256="")


def report_text(about: Mapping[str, Any]) -> str:
  """The contents of a written model.json for people: counts, assumptions, verification."""
  found, lines = about["counts"], [f"{'part':<20}{'tensors':>9}{'elements':>15}"]
  for name in (*sorted(n for n in found if n.startswith("part ")), "unused", "all"):
    if name in found:
      lines.append(
        f"{name.removeprefix('part '):<20}{found[name]['tensors']:>9}{found[name]['elements']:>15,}"
      )
  groups = ("tunable", "frozen", "trained in the original", "frozen in the original")
  tunable, frozen, trained, kept = (found.get(name, {"tensors": 0, "elements": 0}) for name in groups)
  lines.append(f"tunable: {tunable['tensors']} tensors, {tunable['elements']:,} elements; "
               f"frozen: {frozen['tensors']} tensors, {frozen['elements']:,} elements")  # fmt: skip
  if trained["tensors"]:
    lines.append(f"as the original counts: {trained['tensors']} trained, {trained['elements']:,} elements, and "
                 f"{kept['tensors']} frozen, {kept['elements']:,} elements")  # fmt: skip
  lines += [f"assumed: {name} = {reason}" for name, reason in about["assumed"].items()]
  lines.append(f"classes: {', '.join(about['classes'])}; {about['class_order']}")
  lines.append(
    f"source: {', '.join(f'{key} {value}' for key, value in about['source'].items() if key != 'notes')}"
  )
  lines.append(f"read back from the disk as it was written: sha256 {about['sha256']}")
  if verified := about.get("verified"):
    lines.append(f"verified with {verified['file']}: {verified['clips']} clips, largest difference of a logit "
                 f"{verified['largest_difference']:.2e} (of logits up to {verified['largest_logit']:.3g})")  # fmt: skip
  return "\n".join(lines)


def read_verification(path: Path, model: ModelConfig) -> dict[str, np.ndarray]:
  """The inputs and logits (B, C) of a .npz; UserError with all that is missing or of the wrong shape.

  Args:
    path: with `video` (B, T, H, W, 3) and `spectrogram` (B, F, K), or the original's inputs `images`
      (B, T, 3, H, W) in [0, 1] and `audio` (B, 1, F, K); and `logits`.
  """
  try:
    with np.load(path, allow_pickle=False) as file:
      arrays = {n: file[n] for n in file.files if n in ("video", "images", "spectrogram", "audio", "logits")}
  except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
    raise UserError(f"--verify={path} is no .npz file of numbers: {error}") from error
  if "images" in arrays and arrays["images"].ndim == 5:
    arrays["video"] = arrays.pop("images").transpose(0, 1, 3, 4, 2)
  if "audio" in arrays and arrays["audio"].ndim == 4:
    arrays["spectrogram"] = arrays.pop("audio")[:, 0]
  clips = len(arrays["logits"]) if arrays.get("logits", np.zeros(())).ndim else 0
  sizes = model.inputs.video_shape, model.inputs.audio_shape, (model.num_classes,)
  shapes = {n: (clips, *size) for n, size in zip(("video", "spectrogram", "logits"), sizes, strict=True)}
  if not model.audio.depth and "spectrogram" not in arrays:  # such a model takes one, and does not look at it
    arrays["spectrogram"] = np.zeros(shapes["spectrogram"], np.float32)
  problems = [
    f"{name}: {arrays[name].shape if name in arrays else 'missing'}, not {shape}"
    for name, shape in shapes.items()
    if name not in arrays or arrays[name].shape != shape or not clips
  ]
  if problems:
    advice = "`images` (B, T, 3, H, W) and `audio` (B, 1, F, K) fit as well"
    raise listed(f"--verify={path} does not fit the model", problems, advice)
  return {name: arrays[name] for name in shapes}


def compare_logits(folder: Path, file: Path, expected: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """How far a folder's logits are from the expected ones; UserError if by more than --tolerance."""
  engine, (video, spectrogram, logits) = load_model(folder), expected.values()
  pairs = [slice(i, i + 2) for i in range(0, len(video), 2)]
  try:
    found = np.concatenate([engine(video[pair], spectrogram[pair]) for pair in pairs])
  except ValueError as error:
    raise UserError(f"the inputs of --verify cannot be used: {error}") from error
  largest = float(np.abs(found - logits).max())
  if not largest <= _TOLERANCE.value:
    raise UserError(
      f"the logits differ from those expected by up to {largest:.3g}, more than --tolerance={_TOLERANCE.value:g}; the inputs, "
      "the number of classes or --heads may be those of another model"
    )
  facts = {"clips": len(video), "largest_difference": largest, "largest_logit": float(np.abs(logits).max())}
  return {"verified": {"file": file.name} | facts}


def main(argv: Sequence[str]) -> None:
  del argv
  check_flags()
  for number in (signal.SIGTERM, signal.SIGHUP):  # like Ctrl-C: half-written files are removed
    signal.signal(number, signal.default_int_handler)
  start_jax()
  if _MODEL.value is None:
    stored = start_of_training(_CONFIG.value)
  else:
    stored = open_stored(Path(_MODEL.value), _STEP.value, _HEADS.value, _WEIGHTS.value)
    stored = with_classes(stored, _CLASSES.value)
    print("".join(f"note: {note}\n" for note in stored.about["source"].get("notes", ())), end="")
  if _OUT.value:
    file = Path(_VERIFY.value or "")
    expected = read_verification(file, stored.model) if _VERIFY.value else None
    about = write_folder(
      Path(_OUT.value), stored, lambda out: compare_logits(out, file, expected) if expected else {}
    )
    print(report_text(about))
    print(f"wrote {_OUT.value}")
  if _TO_TORCH.value or _TO_SAFETENSORS.value:
    export(stored, *(Path(flag.value) if flag.value else None for flag in (_TO_TORCH, _TO_SAFETENSORS)))
    print(f"wrote {' and '.join(filter(None, (_TO_TORCH.value, _TO_SAFETENSORS.value)))}")


if __name__ == "__main__":
  cli.run(main)
