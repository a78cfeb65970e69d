"""From any of the model's forms to any other: a checkpoint file, a run, a model folder, two pretraining files.

Whatever comes in is seen as the authors' tensors, by name; whatever goes out is made from those, and counted.
"""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import json
from pathlib import Path
import shutil
from typing import Any

from flax import nnx
import numpy as np
import tqdm

from mma_dfer_jax.checkpoints import VERSION, write_json
from mma_dfer_jax.data.faces import ARCHIVE_FACES
from mma_dfer_jax.data.labels import LABEL_ORDERS, LabelOrder, label_order
from mma_dfer_jax.errors import UserError, listed
from mma_dfer_jax.model import MmaDfer, ModelConfig
from mma_dfer_jax.torch_names import (
  Row,
  check_fit,
  from_torch,
  name_table,
  to_torch,
  unused_shapes,
  used_shapes,
)
from mma_dfer_jax.train_state import flat_params, parameter_shapes, put_pretrained
from mma_dfer_jax.trained_model import (
  check_digests,
  load_model,
  read_about,
  read_shards,
  read_tree,
  save_tree,
  sizes_in,
)
from mma_dfer_jax.verdict import compare_logits, describe, digest, read_verification
from mma_dfer_jax.weights import (  # fmt: skip
  OURS,
  InMemory,
  PretrainedEncoder,
  Tensor,
  check_finite,
  check_floating,
  find_sizes,
  import_torch,
  initial_unused,
  looks_like,
  open_weights,
  write_safetensors,
  write_torch,
)

SHARD_BYTES = 32 * 2**20  # Orbax takes several times as much while it writes, and gives little of it back
# What the authors' checkpoints were trained on; what this says of a data set's records must be equal to evaluate on it.
AUTHORS_RECIPE = {
  "sample_rate": "native: the file's own, never resampled",
  "sound_channel": "first",
  **ARCHIVE_FACES,
  "frames": "face crops, Pillow's bilinear resize to image_size, divided by 255, nothing else",
  "spectrogram": "Kaldi log-mel of the first audio_shape[0] frames of 10 ms, (x + 4.2677393) / 9.1379948",
}


@dataclasses.dataclass(frozen=True)
class Source:
  """A model on its way, in the authors' terms.

  Attributes:
    title: for messages.
    tensors: by the authors' names, those that never take part included if they are known.
    cfg: sizes; `assumed` are those that had to be guessed, with reasons.
    order: class names, and whose order it is.
    recipe: how its data are prepared.
    origin: file, sha256, epoch: as far as known.
  """

  title: str
  tensors: Mapping[str, Tensor]
  cfg: ModelConfig
  order: LabelOrder
  recipe: dict[str, Any]
  origin: dict[str, Any]
  assumed: dict[str, str] = dataclasses.field(default_factory=dict)


def open_checkpoint(path: Path, classes: str | None, heads: int | None) -> Source:
  """An MMA-DFER checkpoint, .pth or .safetensors.

  Args:
    path: the file.
    classes: names as `--classes` takes them; None if the file says them, as those written by this project do.
    heads: of the encoders; None if the file says it or the usual is meant.
  Raises:
    CheckpointMismatchError: with everything missing, unexpected and of the wrong shape.
    UserError: if it is something else, and what it looks like.
  """
  weights = open_weights(path)
  what = looks_like(weights.shapes)
  if what != "an MMA-DFER checkpoint":
    advice = "; the two pretraining files go to --config.pretrained.image and --config.pretrained.audio" * (
      "encoder" in what
    )
    raise UserError(f"{path} is not an MMA-DFER checkpoint; it looks like {what}{advice}")
  cfg, assumed = find_sizes(weights, heads)
  used = used_shapes(cfg, parameter_shapes(cfg))
  check_fit(f"{path} does not fit the model", weights.shapes, used, allowed=unused_shapes(cfg))
  check_floating(weights)
  ours = weights.about[OURS]
  order = _class_names(path, cfg.num_classes, classes, ours)
  sizes = {"image_size": cfg.image_size, "num_frames": cfg.num_frames, "audio_shape": list(cfg.audio_shape)}
  recipe = ours.get("recipe", AUTHORS_RECIPE | sizes)
  origin = {"file": path.name, "bytes": path.stat().st_size, "sha256": weights.sha256}
  origin |= {key: weights.about[key] for key in ("epoch", "best_acc") if weights.about[key] is not None}
  return Source(str(path), weights.tensors, cfg, order, recipe, origin, assumed)


def _class_names(path: Path, outputs: int, given: str | None, ours: Mapping[str, Any]) -> LabelOrder:
  if given is None and "classes" in ours:
    order = LabelOrder(tuple(map(str, ours["classes"])), str(ours.get("class_order", "as the file says")))
  elif given is None:
    fitting = [name for name, order in LABEL_ORDERS.items() if len(order.classes) == outputs]
    choices = " or ".join(f"--classes={name}" for name in [*fitting, "a,b,…"])
    raise UserError(f"{path} tells {outputs} classes apart and does not say which; give {choices}")
  else:
    order = label_order(given)
  if len(order.classes) != outputs:
    raise UserError(
      f"{len(order.classes)} class names ({', '.join(order.classes)}), but {path} tells {outputs} apart"
    )
  return order


def open_folder(folder: Path, step: int | str, classes: str | None) -> Source:
  """A model folder, or the workdir of a run.

  Raises:
    UserError: if it is neither, or other classes are asked for than it has.
  """
  if (folder / "model.json").exists() and step == "last":
    about = read_about(folder)
    cfg = sizes_in(about, folder)
    tensors = _with_dots(read_tree(folder / "unused")) if (folder / "unused").exists() else {}
    for params in read_shards(folder):
      tensors |= to_torch(params, cfg)
    check_digests(folder, tensors)
    order = LabelOrder(tuple(about["classes"]), about["class_order"])
    recipe, origin, assumed = about["recipe"], about["source"], about.get("assumed", {})
  else:
    model = load_model(folder, step=step)
    cfg, recipe, assumed = model.cfg, model.recipe, {}
    tensors = to_torch(_arrays(model.tunable) | _arrays(model.frozen), cfg)
    order = LabelOrder(model.classes, f"of the data set {model.config['data.name']}")
    origin = {"run": folder.resolve().name} | model.origin
  if classes is not None and label_order(classes).classes != order.classes:
    raise UserError(f"--classes={classes}, but {folder} has {', '.join(order.classes)}")
  in_memory = {name: InMemory(tensor) for name, tensor in tensors.items()}
  return Source(str(folder), in_memory, cfg, order, recipe, origin, assumed)


def start_of_training(
  cfg: ModelConfig, seed: int, encoders: list[PretrainedEncoder], order: LabelOrder
) -> Source:
  """The model that training would start from: two pretrained encoders, everything else fresh."""
  model = MmaDfer(cfg, rngs=nnx.Rngs(params=seed))
  for encoder in encoders:
    put_pretrained(model, encoder.read())
  tensors = to_torch(_arrays(nnx.state(model)), cfg)
  sizes = {"image_size": cfg.image_size, "num_frames": cfg.num_frames, "audio_shape": list(cfg.audio_shape)}
  files = {e.stream: {"file": e.weights.path.name, "sha256": e.weights.sha256} for e in encoders}
  origin = {"untrained": True, "seed": seed} | files
  title = " and ".join(str(encoder.weights.path) for encoder in encoders)
  in_memory = {name: InMemory(tensor) for name, tensor in tensors.items()}
  return Source(title, in_memory, cfg, order, AUTHORS_RECIPE | sizes, origin)


def _arrays(state: nnx.State) -> dict[str, np.ndarray]:
  return {path: np.asarray(variable[...]) for path, variable in flat_params(state).items()}


def convert_checkpoint(
  model: str | Path,
  out: str | Path,
  *,
  classes: str | None = None,
  heads: int | None = None,
  verify: str | Path | None = None,
) -> dict[str, Any]:
  """Turns an MMA-DFER checkpoint (.pth, .safetensors) into a model folder that `load_model` opens.

  Args:
    model: the file; nothing in it is executed, and PyTorch is not needed.
    out: folder to write; it must not exist.
    classes: dfew, mafw, mafw-official, or names "a,b,c"; may be left out if the file says them.
    heads: attention heads of the encoders, if unusual: shapes do not tell.
    verify: .npz with inputs and expected logits, see `read_verification`.
  Returns:
    The report, as `conversion.json` in the folder holds it.
  Raises:
    UserError: if the file is no such checkpoint, damaged or not to be trusted; nothing is written then.
  """
  source = open_checkpoint(Path(model), classes, heads)
  return write_folder(source, Path(out), Path(verify) if verify else None)


def write_folder(
  source: Source,
  out: Path,
  verify: Path | None = None,
  tolerance: float = 1e-4,
  stopping: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
  """Writes a model folder part by part, reads every part back, and reports.

  Args:
    source: what is written.
    out: the folder; it must not exist, or be empty.
    verify: see `read_verification`; `tolerance` is for its logits.
    stopping: asked between two parts, for Orbax is not to be interrupted within one.
  Raises:
    UserError: and leaves nothing behind.
    KeyboardInterrupt: likewise, if it shall stop.
  """
  check_outputs(source, out, verify)
  expected = read_verification(verify, source.cfg) if verify else None
  partial = out.with_name(f".{out.name}.partial")
  shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
  try:
    digests = _write_parts(source, partial, stopping)
    about = {
      "model": dataclasses.asdict(source.cfg),
      "assumed": source.assumed,
      "classes": source.order.classes,
      "class_order": source.order.origin,
      "recipe": source.recipe,
      "source": source.origin,
      "version": VERSION,
    }
    write_json(partial / "model.json", about)
    read_back = {"read_back": f"all {len(digests)} tensors bit-identical"}
    report = about | describe(source.cfg, source.tensors, digests) | read_back
    if expected:
      report["verify"] = {"file": str(verify)} | compare_logits(load_model(partial), *expected, tolerance)
    write_json(partial / "conversion.json", report)
    if out.exists():
      out.rmdir()  # it is empty
    partial.rename(out)
  finally:
    shutil.rmtree(partial, ignore_errors=True)
  return report


def check_outputs(source: Source, out: Path, verify: Path | None) -> None:
  """Raises UserError with everything that can be known to fail before it starts."""
  problems = []
  if out.exists() and not (out.is_dir() and not any(out.iterdir())):
    problems.append(f"{out} exists already; choose another --out or remove it")
  if verify and not verify.is_file():
    problems.append(f"--verify={verify}: there is no such file")
  needed = sum(tensor.nbytes for tensor in source.tensors.values())
  place = next(parent for parent in out.absolute().parents if parent.exists())
  if (free := shutil.disk_usage(place).free) < 1.1 * needed:
    problems.append(f"{out} needs about {1.1 * needed / 2**20:.0f} MiB, but {free / 2**20:.0f} MiB are free")
  if problems:
    raise listed("the model folder cannot be written", problems)


def _write_parts(source: Source, folder: Path, stopping: Callable[[], bool]) -> dict[str, str]:
  """Writes parameters and unused tensors, reads them back and compares; returns the digest of each."""
  cfg = source.cfg
  digests: dict[str, str] = {}
  changed: list[str] = []

  def write(place: Path, theirs: dict[str, np.ndarray], rows: list[Row]) -> None:
    """Without rows: tensors that have no place in our model."""
    if stopping():
      raise KeyboardInterrupt
    check_finite(source.title, theirs)
    save_tree(place, from_torch(theirs, rows) if rows else _with_slashes(theirs))
    digests.update({name: digest(tensor) for name, tensor in theirs.items()})
    theirs.clear()  # makes room for what is read back
    back = to_torch(read_tree(place), cfg) if rows else _with_dots(read_tree(place))
    changed.extend(name for name, tensor in back.items() if digest(tensor) != digests[name])
    bar.update(len(back))

  with tqdm.tqdm(total=len(source.tensors), desc="convert", unit=" tensors") as bar:
    for number, rows in enumerate(_shards(source)):
      names = [name for row in rows for name in row.torch_names]
      write(folder / "params" / str(number), {name: source.tensors[name].read() for name in names}, rows)
    unused = [name for name in unused_shapes(cfg) if name in source.tensors]
    if unused:
      write(folder / "unused", {name: source.tensors[name].read() for name in unused}, [])
  if changed:
    raise listed("tensors did not come back from the disk as they were written", changed, "is it damaged?")
  return digests


def _with_slashes(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  return {name.replace(".", "/"): tensor for name, tensor in tensors.items()}


def _with_dots(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  return {name.replace("/", "."): tensor for name, tensor in tensors.items()}


def _shards(source: Source) -> Iterator[list[Row]]:
  """Rows of the name table in parts of bounded size, so that a big model never lies in memory whole."""
  rows: list[Row] = []
  size = 0
  for row in name_table(source.cfg):
    nbytes = sum(source.tensors[name].nbytes for name in row.torch_names)
    if rows and size + nbytes > SHARD_BYTES:
      yield rows
      rows, size = [], 0
    rows.append(row)
    size += nbytes
  yield rows


def export(source: Source, to_torch: Path | None, to_safetensors: Path | None) -> None:
  """Writes all of the authors' tensors; those that never take part come from the source or start as the original's.

  Raises:
    UserError: if a file is there already, or PyTorch is wanted and missing.
  """
  check_exports(to_torch, to_safetensors)
  known = {name: tensor.read() for name, tensor in source.tensors.items()}
  tensors = known | {name: array for name, array in initial_unused(source.cfg).items() if name not in known}
  about = {
    "sizes": dataclasses.asdict(source.cfg) | {"mel_bins": source.cfg.audio_shape[1]},
    "classes": list(source.order.classes),
    "class_order": source.order.origin,
    "recipe": source.recipe,
    "epoch": source.origin.get("epoch"),
    "best_acc": source.origin.get("best_acc"),
    "version": VERSION,
  }
  about = json.loads(json.dumps(about))  # plain lists and numbers, which any reader takes
  if to_torch:
    write_torch(to_torch, tensors, about)
  if to_safetensors:
    write_safetensors(to_safetensors, tensors, about)


def check_exports(to_torch: Path | None, to_safetensors: Path | None) -> None:
  """Raises UserError with every reason why the files could not be written."""
  problems = [f"{file} exists already" for file in (to_torch, to_safetensors) if file and file.exists()]
  if to_torch:
    try:
      import_torch()
    except UserError as error:
      problems.append(str(error))
  if problems:
    raise listed("cannot write", problems)
