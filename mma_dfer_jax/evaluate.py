"""Evaluate a trained model, whole or with the sound or the picture taken away; or the models of several folds.

  python -m mma_dfer_jax.evaluate --workdir=runs/demo/run --without=none,sound,picture
  python -m mma_dfer_jax.evaluate --workdirs=runs/dfew/fold1,runs/dfew/fold2 --out=runs/two_folds
  python -m mma_dfer_jax.evaluate --workdirs=models/fold1,models/fold2 --splits=fold1,fold2 --data_dir=data --out=folds

Writes WORKDIR/evaluation_SPLIT_stepN.json, and a picture of each confusion matrix beside it. Several models are
evaluated one by one in the same way, and OUT/folds.json, folds.md and confusion_matrix.png say what came of all.
"""

from collections.abc import Sequence
import dataclasses
import functools
from pathlib import Path
import signal
from typing import Any

from absl import flags
import jax
import numpy as np

from mma_dfer_jax import cli, hosts
from mma_dfer_jax.checkpoints import VERSION, read_run, write_json
from mma_dfer_jax.data.datasets import DataSet, open_data_set
from mma_dfer_jax.data.pipeline import Preprocessing
from mma_dfer_jax.errors import UserError, listed
from mma_dfer_jax.metrics import Scores
from mma_dfer_jax.report import (  # fmt: skip
  Fold,
  draw_confusion_matrix,
  folds_table,
  percent,
  recall_table,
  scores_as_json,
  write_folds,
)
from mma_dfer_jax.sharding import check_batch_size, compiler_options, everywhere, make_mesh, start_jax
from mma_dfer_jax.steps import eval_step, evaluate_split
from mma_dfer_jax.trained_model import load_model, read_about

_WORKDIR = flags.DEFINE_string("workdir", None, "Workdir of a run, or a folder that `convert` wrote.")
_WORKDIRS = flags.DEFINE_list("workdirs", None, "Several of them, one for each fold: a,b,c; goes with --out.")
_SPLITS = flags.DEFINE_list(
  "splits",
  None,
  "With --workdirs, in their order: what each is evaluated on; if not given, the runs' test splits.",
)
_OUT = flags.DEFINE_string("out", None, "With --workdirs: folder for what came of all of them.")
_STEP = flags.DEFINE_string("step", "last", "Which checkpoint: last, best (by WAR), or a step that was kept.")
_DATA_DIR = flags.DEFINE_string(
  "data_dir", None, "Where the data set is now; if not given, where it was in training."
)
_DATA_NAME = flags.DEFINE_string(
  "data_name", None, "Folder below data_dir; if not given, as in training, or clips."
)
_SPLIT = flags.DEFINE_string("split", None, "Split to evaluate; if not given, the run's test split.")
_WITHOUT = flags.DEFINE_list(
  "without", ["none"], "What is taken away, one evaluation each: none, sound, picture."
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 0, "Clips at a time; 0: as in training.", lower_bound=0)


flags.mark_flags_as_mutual_exclusive(["workdir", "workdirs"], required=True)


@dataclasses.dataclass(frozen=True)
class Job:
  """A model, known but not loaded, and what it is to be evaluated on."""

  folder: Path
  classes: tuple[str, ...]
  recipe: dict[str, Any]
  config: dict[str, Any]  # of its run, flat; empty if it was converted
  data_set: DataSet
  split: str
  batch_size: int


def job_of(folder: Path, split: str) -> Job:
  """Finds out what a model needs, and whether the data are what it was trained on; nothing long is done.

  Raises:
    UserError: if they do not go together.
  """
  is_run = (folder / "run.json").exists()
  if not is_run and not (folder / "model.json").exists():
    load_model(folder)  # says what it looks like instead
  about = read_run(folder) if is_run else read_about(folder)
  config = about["config"] if is_run else {}
  trained_as = {"data.data_dir": None, "data.name": "clips", "data.fold": None, "batch_size": 8, **config}
  data_dir = _DATA_DIR.value or trained_as["data.data_dir"]
  if not is_run and not (data_dir and split):
    raise UserError(
      f"{folder} was converted and knows no data set: give --data_dir and --split (--splits for several)"
    )
  data_set = open_data_set(data_dir, _DATA_NAME.value or trained_as["data.name"])
  if data_set.classes != tuple(about["classes"]):
    raise UserError(
      f"the model tells apart {', '.join(about['classes'])}; the data have {', '.join(data_set.classes)}"
    )
  same_preparation(about["recipe"], data_set.recipe)
  if unknown_of_model := sorted(data_set.recipe.keys() - about["recipe"].keys()):
    print(
      f"note: the model does not say its {', '.join(unknown_of_model)}; prepare the data as its authors did"
    )
  split = split or data_set.train_and_test(trained_as["data.fold"])[1]
  if unknown := set(split.split("+")) - set(data_set.splits):
    raise UserError(f"there is no split {', '.join(sorted(unknown))}; there are {', '.join(data_set.splits)}")
  batch_size = _BATCH_SIZE.value or trained_as["batch_size"]
  check_batch_size(batch_size)
  return Job(folder, data_set.classes, about["recipe"], config, data_set, split, batch_size)


def same_preparation(model_recipe: dict, data_recipe: dict) -> None:
  """Raises UserError with every difference between the data the model was trained on and these."""
  differences = [
    f"{key}: the model was trained on {model_recipe.get(key)!r}, these data have {value!r}"
    for key, value in data_recipe.items()
    if key in model_recipe and model_recipe[key] != value  # a converted checkpoint does not know all of it
  ]
  if differences:
    raise listed(
      "the data were not prepared as the model's", differences, "prepare them with the same recipe"
    )


def jobs_of_folds() -> list[Job]:
  """All models of --workdirs with what they are evaluated on; everything wrong with them at once.

  Raises:
    UserError: with all problems, before the first model is loaded.
  """
  folders = [Path(folder) for folder in _WORKDIRS.value or []]
  problems, jobs = problems_of_flags(folders), []
  for folder, split in zip(folders, _SPLITS.value or [""] * len(folders), strict=False):
    try:
      jobs.append(job_of(folder, split))
    except UserError as error:
      problems.append(f"{folder}: {error}")
  for i, job in enumerate(jobs):
    problems += problems_between(jobs[:i], job)
    fold = job.config.get("data.fold")
    if fold and job.split != f"fold{fold}":
      problems.append(f"{job.folder}: its test clips are fold{fold}; it was trained on clips of {job.split}")
    if not job.config and _STEP.value != "last":
      problems.append(f"{job.folder} is a converted model, which has no steps; --step cannot choose one")
    elif _STEP.value.isdigit() and not (job.folder / "checkpoints" / _STEP.value).is_dir():
      problems.append(f"{job.folder} has no checkpoint {_STEP.value}")
    if job.config and not (job.folder / "report.json").exists():
      print(f"note: {job.folder} has no report.json; its training is not finished")
  if problems:
    raise listed("these models cannot be evaluated together", problems)
  return jobs


def problems_of_flags(folders: Sequence[Path]) -> list[str]:
  """What is wrong with the flags that go with --workdirs."""
  problems = []
  if not folders or len({folder.resolve() for folder in folders}) < len(folders):
    problems.append(f"--workdirs={','.join(map(str, folders))}: give different folders, comma-separated")
  if not _OUT.value:
    problems.append("say with --out where the report of all goes")
  if _SPLIT.value:
    problems.append("give --splits, one for each folder, instead of --split")
  if _SPLITS.value and len(_SPLITS.value) != len(folders):
    problems.append(f"{len(folders)} folders, but {len(_SPLITS.value)} --splits")
  if _WITHOUT.value != ["none"]:
    problems.append("--without is for a single --workdir")
  return problems


def problems_between(others: Sequence[Job], job: Job) -> list[str]:
  """Why a model's scores cannot be put beside those of the others: each is compared with the first."""
  problems = [
    f"{job.folder} and {other.folder} are both evaluated on {job.split}"
    for other in others
    if (other.split, other.data_set.fingerprint) == (job.split, job.data_set.fingerprint)
  ]
  if not others:
    return problems
  first = others[0]
  if first.classes != job.classes:
    problems.append(f"classes: {list(first.classes)} in {first.folder}, {list(job.classes)} in {job.folder}")
  return problems + [
    f"recipe {key}: {first.recipe[key]!r} in {first.folder}, {job.recipe[key]!r} in {job.folder}"
    for key in sorted(first.recipe.keys() & job.recipe.keys())  # a converted model does not know all of it
    if first.recipe[key] != job.recipe[key]
  ]


def evaluate(job: Job) -> Fold:
  """Loads a model and evaluates it, whole and as --without says; writes its files; returns the first result."""
  workdir = job.folder
  mesh, chief = make_mesh(-1, 1), jax.process_index() == 0
  step = int(_STEP.value) if _STEP.value.isdigit() else _STEP.value
  with hosts.together():
    model = load_model(workdir, step=step, sharding=everywhere(mesh))
  spec = Preprocessing(model.cfg.image_size, model.cfg.num_frames, model.cfg.audio_shape)
  records = job.data_set.records(job.split)
  how = {"graphdef": model.graphdef, "precision": model.config.get("precision", "float32")}
  eval_fn = jax.jit(functools.partial(eval_step, **how), out_shardings=everywhere(mesh),
                    compiler_options=compiler_options())  # fmt: skip

  name = f"evaluation_{job.split.replace('+', '_')}"
  name += f"_step{model.step}" if model.step is not None else ""
  evaluations, folds = {}, []
  for without in _WITHOUT.value:
    result = evaluate_split(
      eval_fn, model.tunable, model.frozen, records, spec, mesh=mesh, batch_size=job.batch_size,
      without="" if without == "none" else without, title=f"without {without}",
    )  # fmt: skip
    assert result is not None  # nothing stops it
    scores = Scores(np.array(result["confusion_matrix"]), model.classes)
    evaluations[without] = {
      **scores_as_json(scores),
      "clips_without_sound": result["clips_without_sound"],
      "loss": result["test_loss"],
    }
    about = {"step": model.step, "clips_without_sound": result["clips_without_sound"]}
    folds.append(Fold(job.split, scores, {"folder": str(workdir), **about, "model": model.origin}))
    if not chief:
      continue
    draw_confusion_matrix(scores, workdir / f"{name}_without_{without}.png")
    print(
      f"\n{job.split}, without {without}: WAR {percent(scores.war)}, UAR {percent(scores.uar)}, {scores.clips} clips"
    )
    print(recall_table(scores))
  if chief:
    about = {"split": job.split, "model": model.origin, "classes": model.classes}
    write_json(workdir / f"{name}.json", {**about, "without": evaluations})
    print(f"\nwrote {workdir}/{name}.json")
  return folds[0]


def report_folds(jobs: Sequence[Job], folds: Sequence[Fold]) -> None:
  """Writes what came of all of --workdirs to --out."""
  out = Path(_OUT.value or "")
  model = f"each after step {_STEP.value}"
  if _STEP.value == "last":
    model = "each as it is saved last" if any(job.config for job in jobs) else "converted models"
  elif _STEP.value == "best":
    model = "each at its best epoch, chosen by WAR on the test clips themselves, so it flatters"
  recipe = {key: value for job in jobs for key, value in job.recipe.items()}
  summary = write_folds(out, folds, model=model, facts={"recipe": recipe, "version": VERSION})
  print(f"\n{folds_table(summary)}\n\nwrote {out}/folds.json, folds.md and confusion_matrix.png")


def main(argv: Sequence[str]) -> None:
  del argv
  if not _WITHOUT.value or set(_WITHOUT.value) - {"none", "sound", "picture"}:
    raise UserError(f"--without={','.join(_WITHOUT.value)}: none, sound and picture can be given")
  if _WORKDIR.value and (_OUT.value or _SPLITS.value):
    raise UserError("--out and --splits go with --workdirs")
  hosts.join()
  signal.signal(signal.SIGTERM, signal.SIG_DFL)  # JAX has taken it, for runs that save; here it ends at once
  start_jax()
  with hosts.together():
    jobs = [job_of(Path(_WORKDIR.value), _SPLIT.value or "")] if _WORKDIR.value else jobs_of_folds()
  asked: dict[str, Any] = {"step": _STEP.value, "without": _WITHOUT.value}
  for number, job in enumerate(jobs, start=1):
    asked |= {f"model {number}": str(job.folder), f"split {number}": job.split, f"batch_size {number}": job.batch_size,
              f"clips {number}": job.data_set.fingerprint}  # fmt: skip
  hosts.same_everywhere("evaluation", asked)
  folds = [evaluate(job) for job in jobs]
  if _WORKDIRS.value and jax.process_index() == 0:
    report_folds(jobs, folds)


if __name__ == "__main__":
  cli.run(main, explained=hosts.explained, leave=hosts.leave)
