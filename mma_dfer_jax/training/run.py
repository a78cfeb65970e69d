"""Which run this is: the content of run.json, and whether two runs are the same.

It is a config file as well, of the run in a folder: `--config=mma_dfer_jax/training/run.py:WORKDIR`.
"""

from collections.abc import Mapping, Sequence
import json
from pathlib import Path
from typing import Any

import ml_collections

from mma_dfer_jax import __version__
from mma_dfer_jax.config import MAY_CHANGE, flat_config, model_config, nested_config
from mma_dfer_jax.data.data_set import DataSet
from mma_dfer_jax.disk import write_json
from mma_dfer_jax.errors import UserError, listed
from mma_dfer_jax.model import ModelConfig
from mma_dfer_jax.parameters import tunable_patterns
from mma_dfer_jax.weights.class_vectors import about_vectors

Run = dict[str, Any]  # the content of run.json
KEYS = {"config", "classes", "recipe", "tunable", "starts", "data_set", "version"}
ADVICE = "choose another folder, or give the values that it was made with"


def get_config(workdir: str) -> ml_collections.ConfigDict:
  """The config of a run that has its run.json."""
  if not Path(workdir, "run.json").is_file():
    raise UserError(f"there is no run.json in {workdir}")
  return ml_collections.ConfigDict(nested_config(read_run(Path(workdir))["config"]))


def describe_run(
  config: ml_collections.ConfigDict, model: ModelConfig, data_set: DataSet, starts: Sequence[Any]
) -> Run:
  """What identifies a run, as JSON holds it; the weights that it starts from are known by content."""
  run = {
    "config": flat_config(config.to_dict()),
    "classes": data_set.classes,
    "recipe": data_set.recipe | model.inputs.to_fields(),
    "tunable": tunable_patterns(model, config.tunable),
    "starts": {start.name: start.sha256 for start in starts},
    "data_set": {name: getattr(data_set, name) for name in ("fingerprint", "splits", "sample_rates")}
    | {name: known for name in ("seconds_of_sound", "typical") if (known := getattr(data_set, name))},
    "version": __version__,
    **about_vectors(starts),
  }
  return json.loads(json.dumps(run))


def model_of(run: Run) -> ModelConfig:
  if "model.stream" in run["config"]:
    raise UserError("this is a pretraining, which answers nothing: train a model with its encoder.safetensors "
                    f"(--config.pretrained.{run['config']['model.stream']}=…)")  # fmt: skip
  return model_config(nested_config(run["config"]), run["classes"])


def claim_workdir(workdir: Path, run: Run) -> None:
  """Writes run.json; UserError, naming every difference and touching nothing, if there is one of another run."""
  if (workdir / "run.json").exists():
    check_same_run(read_run(workdir), run, str(workdir))
  workdir.mkdir(parents=True, exist_ok=True)
  write_json(workdir / "run.json", run)


def check_same_run(there: Run, now: Run, place: str) -> None:
  """Raises UserError with every difference in classes, recipe, clips or config that changes what is computed."""
  if problems := _differences(there, now):
    raise listed(f"{place} already contains a different run", problems, ADVICE)


def _differences(there: Run, now: Run) -> list[str]:
  found = [f"classes: {there['classes']} there, {now['classes']} now"] * (there["classes"] != now["classes"])
  return found + [
    f"{part} {key}: {there[part].get(key, 'nothing')!r} there, {now[part].get(key, 'nothing')!r} now"
    for part in ("recipe", "starts", "data_set", "config")
    for key in sorted(there[part].keys() | now[part].keys())
    if there[part].get(key) != now[part].get(key) and not (part == "config" and key in MAY_CHANGE)
  ]


def check_same_runs(folder: Path, runs: Mapping[str, Run]) -> None:
  """Raises UserError with every difference between runs, by name of their folder, and those that are there already."""
  names_by_problem: dict[str, list[str]] = {}
  for name in (name for name in runs if (folder / name / "run.json").exists()):
    try:
      problems = _differences(read_run(folder / name), runs[name])
    except UserError as error:
      problems = [str(error)]
    for problem in problems:
      names_by_problem.setdefault(problem, []).append(name)
  if names_by_problem:
    lines = [f"{', '.join(names)}: {problem}" for problem, names in names_by_problem.items()]
    raise listed(f"{folder} already contains different runs", lines, ADVICE)


def read_run(workdir: Path) -> Run:
  """The content of run.json; UserError if it is damaged, or of a version whose runs cannot be read."""
  path = workdir / "run.json"
  try:
    run = json.loads(path.read_text())
  except ValueError as error:
    raise UserError(f"{path} is damaged: {error}; every checkpoint's meta/metadata has a copy under `run`") from error  # fmt: skip
  run = run if isinstance(run, dict) else {}
  if run.get("version") == "0.1.0":
    raise UserError(f"{workdir} was written by mma_dfer_jax 0.1.0, whose runs this version does not read: train again")  # fmt: skip
  if not run.keys() >= KEYS:
    raise UserError(f"{path} is damaged: it lacks some of {', '.join(sorted(KEYS))}")
  return run
