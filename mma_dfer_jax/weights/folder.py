"""A model folder: what `convert` writes for whoever wants to use a model.

folder/model.json          parts and sizes, class names, recipe of the data, source, counts, version, sha256
folder/model.safetensors   parameters by path in the dtype of the source; `unused.NAME` are the authors' other tensors
"""

from collections.abc import Callable
import json
import math
from pathlib import Path
import shutil
from typing import Any

from mma_dfer_jax import __version__
from mma_dfer_jax.disk import free_bytes, write_json
from mma_dfer_jax.errors import UserError, listed
from mma_dfer_jax.parameters import Tunable, parameter_shapes, tunable_patterns
from mma_dfer_jax.weights import files
from mma_dfer_jax.weights.files import OF_A_RUN, PARAMETERS, StoredModel, model_in, read_safetensors
from mma_dfer_jax.weights.mma_dfer import UNUSED, open_checkpoint, with_classes
from mma_dfer_jax.weights.names import check_fit, name_table, unused_shapes

FIELDS = {"model": dict, "assumed": dict, "classes": list, "class_order": str, "recipe": dict, "source": dict,
          "counts": dict, "version": str, "sha256": str}  # fmt: skip
AGAIN = "convert the source again"


def open_folder(folder: Path) -> StoredModel:
  """Opens a model folder, executes nothing; UserError names all that is missing, unexpected, of wrong shape."""
  path, weights = folder / "model.json", folder / PARAMETERS
  if not path.is_file():
    raise UserError(f"{folder} is no model folder: it has no model.json")
  if (folder / "params").exists():
    old = "a model folder of mma_dfer_jax 0.1.0, which this version does not read"
    raise UserError(f"{folder} is {old}: {AGAIN}")
  try:
    about = json.loads(path.read_text())
  except (ValueError, RecursionError) as error:
    raise UserError(f"{path} is damaged: {error}; {AGAIN}") from error
  about = about if isinstance(about, dict) else {}
  kinds = FIELDS | {key: kind for key, kind in OF_A_RUN.items() if key in about}
  others = {key: kind for key, kind in kinds.items() if type(about.get(key)) is not kind}
  wrong = [f"{key} must be a {kind.__name__}" for key, kind in others.items()]
  names = [] if wrong else about["classes"]
  if len({name for name in names if isinstance(name, str) and name and name.isprintable()}) < len(names):
    wrong = ["classes must be different names"]
  if wrong:
    raise listed(f"{path} is damaged", wrong, AGAIN)
  model = model_in(about["model"], str(path), about.get("tunable", ()))
  if len(names) != model.num_classes:
    raise UserError(f"{path} names {len(names)} classes, but its model has {model.num_classes}")
  if not weights.is_file():
    raise UserError(f"{folder} has no model.safetensors: {AGAIN}")
  tensors, metadata = read_safetensors(weights)
  shapes = {name: tensor.shape for name, tensor in tensors.items()}
  unused = {UNUSED + name for name in unused_shapes(model)}
  check_fit(f"{folder} is damaged", shapes, parameter_shapes(model), allowed=unused)
  # Heads, means and the like are in no shape, so the file, whose sha256 is known, says them too.
  if metadata.get("model") != json.dumps(about["model"]):
    raise UserError(f"{path} is damaged: it describes another model than model.safetensors; {AGAIN}")
  return StoredModel(folder, model, about, tensors, about["sha256"])


def write_folder(
  out: Path, stored: StoredModel, check: Callable[[Path], dict[str, Any]] = lambda folder: {}
) -> dict[str, Any]:
  """Writes a model folder, whole or not at all (UserError); returns the content of its model.json.

  Args:
    out: the folder; it must not exist, or be empty.
    check: called with the folder before it gets its final name; its result is added to model.json.
  """
  problems = []
  if out.exists() and not (out.is_dir() and not any(out.iterdir())):
    problems.append(f"{out} exists already; choose another --out or remove it")
  needed, free = 1.01 * sum(tensor.nbytes for tensor in stored.tensors.values()) + 2**20, free_bytes(out)
  if free < needed:
    problems.append(f"{out} needs {needed / 2**20:.0f} MiB, but {free / 2**20:.0f} MiB are free")
  if problems:
    raise listed("the model folder cannot be written", problems)
  partial = out.with_name(f".{out.name}.partial")
  shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
  try:
    stored.verify()
    fields = stored.model.to_fields()
    metadata = {"format": "mma_dfer_jax", "model": json.dumps(fields)}
    sha256 = files.write_safetensors(partial / PARAMETERS, stored.tensors, metadata, stored.path)
    kept = (*OF_A_RUN, "assumed", "classes", "class_order", "recipe", "source")
    about: dict[str, Any] = {"model": fields, **{k: stored.about[k] for k in kept if k in stored.about}}
    about |= {"counts": counts(stored), "version": __version__, "sha256": sha256}
    write_json(partial / "model.json", about)
    write_json(partial / "model.json", about | check(partial))
    if out.exists():
      out.rmdir()  # it is empty
    partial.rename(out)
  finally:
    shutil.rmtree(partial, ignore_errors=True)
  return open_folder(out).about


def counts(stored: StoredModel) -> dict[str, dict[str, int]]:
  """Tensors and elements of each part of the model, tunable and frozen, and as the original counts its own."""
  is_tunable = Tunable(tunable_patterns(stored.model, stored.about.get("tunable", ())))
  found: dict[str, dict[str, int]] = {}
  try:  # query, key and value are two tensors of theirs and one of ours
    theirs = {row.path: len(row.torch_names) for row in name_table(stored.model)}
  except UserError:  # such a file cannot hold some part
    theirs = {}
  for path, tensor in stored.tensors.items():
    unused = path.startswith(UNUSED)
    group = "unused" if unused else "tunable" if is_tunable(path.split("/"), None) else "frozen"
    groups = {"all": 1, group: 1} | ({} if unused else {f"part {path.split('/')[0]}": 1})
    if theirs:  # the original counts norm2 among what it trains, and the heads among what it does not
      trained = group == "tunable" or (unused and ".head." not in path)
      groups["trained in the original" if trained else "frozen in the original"] = theirs.get(path, 1)
    for name, number in groups.items():
      entry = found.setdefault(name, {"tensors": 0, "elements": 0})
      entry["tensors"] += number
      entry["elements"] += math.prod(tensor.shape)
  return found


def convert_checkpoint(
  model: str | Path,
  out: str | Path,
  *,
  classes: str | None = None,
  heads: int | None = None,
  weights: str | None = None,
) -> dict[str, Any]:
  """Turns an MMA-DFER checkpoint (.pth, .safetensors) into a model folder; returns its model.json.

  Args:
    model: the file; nothing in it is executed, and PyTorch is not needed.
    out: folder to write; it must not exist.
    classes: dfew, mafw, mafw-official, or names "a,b,c"; not needed if the file names them.
    heads: attention heads of the encoders, if unusual: they are not in the shapes.
    weights: which weights of a file that holds several, as "model_ema".
  Raises:
    UserError: if the file is no such checkpoint, damaged or not to be trusted; nothing is written then.
  """
  return write_folder(Path(out), with_classes(open_checkpoint(Path(model), heads, weights), classes))
