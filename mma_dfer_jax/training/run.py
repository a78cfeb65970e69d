"""Which run this is: what run.json says, and whether two runs are the same."""

from collections.abc import Mapping
import importlib.metadata
import json
from pathlib import Path
from typing import Any

import ml_collections

from mma_dfer_jax.config import MAY_CHANGE, flat_config, model_config, nested_config
from mma_dfer_jax.data.data_set import DataSet
from mma_dfer_jax.disk import write_json
from mma_dfer_jax.errors import UserError, listed
from mma_dfer_jax.model import ModelConfig
from mma_dfer_jax.parameters import tunable_patterns

VERSION = importlib.metadata.version("mma_dfer_jax")
KEYS = {"config", "classes", "recipe", "tunable", "starts", "data_set", "version"}


def describe_run(
  config: ml_collections.ConfigDict, model: ModelConfig, data_set: DataSet, starts: Mapping[str, str]
) -> dict[str, Any]:
  """What identifies a run, as JSON knows it; the recipe of the data set and what the model makes of its records.

  Args:
    config: of the run.
    model: its parts and sizes.
    data_set: what it trains on.
    starts: sha256 of each file of weights that it starts from, by what it is for.
  """
  i = model.inputs
  sizes = {"image_size": i.image_size, "num_frames": i.num_frames, "audio_shape": i.audio_shape}
  run = {
    "config": flat_config(config.to_dict()),
    "classes": data_set.classes,
    "recipe": data_set.recipe | sizes,
    "tunable": tunable_patterns(model, config.tunable),
    "starts": dict(starts),
    "data_set": {
      "fingerprint": data_set.fingerprint,
      "splits": data_set.splits,
      "sample_rates": data_set.sample_rates,
    },
    "version": VERSION,
  }
  return json.loads(json.dumps(run))


def model_of(run: Mapping[str, Any]) -> ModelConfig:
  """The model that a run trains."""
  return model_config(nested_config(run["config"]), run["classes"])


def claim_workdir(workdir: Path, run: Mapping[str, Any]) -> None:
  """Writes run.json, or checks that the one that is there describes the same run.

  Raises:
    UserError: naming every difference; nothing in the folder is touched then.
  """
  file = workdir / "run.json"
  if file.exists():
    check_same_run(read_run(workdir), run, str(workdir))
  workdir.mkdir(parents=True, exist_ok=True)
  write_json(file, run)


def check_same_run(there: Mapping[str, Any], now: Mapping[str, Any], place: str) -> None:
  """Raises UserError with every difference in classes, recipe, clips or config that changes what is computed."""
  differences = [f"classes: {there['classes']} there, {now['classes']} now"] * (
    there["classes"] != now["classes"]
  )
  for part in ("recipe", "starts", "data_set", "config"):
    before, after = there[part], now[part]
    differences += [
      f"{part} {key}: {before.get(key, 'nothing')!r} there, {after.get(key, 'nothing')!r} now"
      for key in sorted(before.keys() | after.keys())
      if before.get(key) != after.get(key) and not (part == "config" and key in MAY_CHANGE)
    ]
  if differences:
    raise listed(f"{place} holds another run", differences, "choose another --workdir, or give the values it was made with")  # fmt: skip


def differences_of_runs(runs: Path, wanted: Mapping[str, Mapping[str, Any]]) -> list[str]:
  """How runs that are there already differ from those that are wanted, by name of their folder: a line each."""
  names_by_problem: dict[str, list[str]] = {}
  for name, run in wanted.items():
    if not (runs / name / "run.json").exists():
      continue
    try:
      check_same_run(read_run(runs / name), run, name)
    except UserError as error:
      lines = [line.removeprefix("  - ") for line in str(error).splitlines() if line.startswith("  - ")]
      for line in lines or [str(error)]:
        names_by_problem.setdefault(line, []).append(name)
  return [f"{', '.join(names)}: {problem}" for problem, names in names_by_problem.items()]


def read_run(workdir: Path) -> dict[str, Any]:
  """What run.json says; UserError if it is damaged, or of a version whose runs cannot be read."""
  path = workdir / "run.json"
  try:
    run = json.loads(path.read_text())
  except ValueError as error:
    raise UserError(
      f"{path} is damaged: {error}; every checkpoint's meta/metadata holds a copy under `run`"
    ) from error
  if isinstance(run, dict) and run.get("version") == "0.1.0":
    raise UserError(
      f"{workdir} was written by mma_dfer_jax 0.1.0, whose runs this version does not read: train anew"
    )
  if not isinstance(run, dict) or not run.keys() >= KEYS:
    raise UserError(f"{path} is damaged: it lacks some of {', '.join(sorted(KEYS))}")
  return run
