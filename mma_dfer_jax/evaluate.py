"""Evaluate a trained model, whole or with the sound or the picture taken away; or the models of several folds.

  python -m mma_dfer_jax.evaluate --workdir=runs/demo/run --without=none,sound,picture
  python -m mma_dfer_jax.evaluate --workdirs=runs/dfew/fold1,runs/dfew/fold2 --out=runs/two_folds
  python -m mma_dfer_jax.evaluate --workdirs=models/fold1,models/fold2 --splits=fold1,fold2 --data_dir=data --out=folds

Writes WORKDIR/evaluation_SPLIT_stepN.json, and a picture of each confusion matrix beside it. Several models are
evaluated one by one in the same way, and OUT/folds.json, folds.md and confusion_matrix.png say what came of all.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from pathlib import Path
import signal
from typing import Any

from absl import flags
from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from mma_dfer_jax import cli, parts
from mma_dfer_jax.data.data_set import DataSet, open_data_set
from mma_dfer_jax.disk import write_json
from mma_dfer_jax.engines.engine import About, Engine, describe, load_model
from mma_dfer_jax.engines.jax import JaxEngine
from mma_dfer_jax.errors import UserError, listed
from mma_dfer_jax.training import hosts
from mma_dfer_jax.training.report import (  # fmt: skip
  Fold,
  draw_confusion_matrix,
  folds_table,
  percent,
  recall_table,
  scores_as_json,
  write_folds,
)
from mma_dfer_jax.training.run import VERSION
from mma_dfer_jax.training.scores import Scores
from mma_dfer_jax.training.sharding import check_batch_size, make_mesh, replicated, start_jax
from mma_dfer_jax.training.steps import sums
from mma_dfer_jax.training.task import evaluate_split, jit_eval

_WORKDIR = cli.shared_flag("model", name="workdir")
_WORKDIRS = flags.DEFINE_list("workdirs", None, "Several of them, one for each fold: a,b,c; goes with --out.")
_SPLITS = flags.DEFINE_list(
  "splits",
  None,
  "With --workdirs, in their order: what each is evaluated on; if not given, the runs' test splits.",
)
_OUT = flags.DEFINE_string("out", None, "With --workdirs: folder for what came of all of them.")
_STEP = cli.shared_flag("step")
_DATA_DIR = flags.DEFINE_string(
  "data_dir", None, "Where the data set is now; if not given, where it was in training."
)
_DATA_NAME = flags.DEFINE_string(
  "data_name", None, "Folder below data_dir; if not given, as in training, or clips."
)
_SPLIT = flags.DEFINE_string("split", None, "Split to evaluate; if not given, the run's test split.")
_WITHOUT = flags.DEFINE_list(
  "without", ["none"], "Evaluate with one modality removed: none, sound, picture (comma-separated)."
)
_PRECISION = cli.shared_flag("precision")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 0, "Clips at a time; 0: as in training.", lower_bound=0)


flags.mark_flags_as_mutual_exclusive(["workdir", "workdirs"], required=True)


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """A model, known but not loaded, and what it is to be evaluated on."""

  path: Path
  about: About
  data_set: DataSet
  split: str
  batch_size: int


def evaluation_of(path: Path, split: str) -> Evaluation:
  """Finds out what a model needs, and whether the data are what it was trained on; nothing long is done.

  Raises:
    UserError: if they do not go together.
  """
  about = describe(path, step=_STEP.value, precision=_PRECISION.value)
  trained_as = {
    "data.data_dir": None,
    "data.name": "clips",
    "data.fold": None,
    "batch_size": 8,
    **about.config,
  }
  data_dir = _DATA_DIR.value or trained_as["data.data_dir"]
  if not about.config and not (data_dir and split):
    raise UserError(f"{path} does not say its data set: give --data_dir and --split (--splits for several)")
  data_set = open_data_set(data_dir, _DATA_NAME.value or trained_as["data.name"])
  if data_set.classes != about.classes:
    raise UserError(
      f"the model tells apart {', '.join(about.classes)}; the data have {', '.join(data_set.classes)}"
    )
  same_preparation(about.recipe, data_set.recipe)
  if unknown_of_model := sorted(data_set.recipe.keys() - about.recipe.keys()):
    print(
      f"note: the model does not say its {', '.join(unknown_of_model)}; prepare the data as its authors did"
    )
  split = split or data_set.train_and_test(trained_as["data.fold"])[1]
  if unknown := set(split.split("+")) - set(data_set.splits):
    raise UserError(f"there is no split {', '.join(sorted(unknown))}; there are {', '.join(data_set.splits)}")
  check_without(about, path)
  batch_size = _BATCH_SIZE.value or trained_as["batch_size"]
  check_batch_size(batch_size)
  return Evaluation(path, about, data_set, split, batch_size)


def check_without(about: About, path: Path) -> None:
  """Raises UserError if --without takes away what a model does not look at, or all that it looks at."""
  for without, stream in (("sound", "audio"), ("picture", "image")):
    if without in _WITHOUT.value and about.streams == (stream,):
      raise UserError(f"--without={without}: {path} looks at nothing else")
    if without in _WITHOUT.value and stream not in about.streams:
      raise UserError(f"--without={without}: {path} does not look at it")


def same_preparation(model_recipe: Mapping[str, Any], data_recipe: Mapping[str, Any]) -> None:
  """Raises UserError with every difference between the data the model was trained on and these."""
  differences = [
    f"{key}: the model was trained on {model_recipe.get(key)!r}, these data have {value!r}"
    for key, value in data_recipe.items()
    if key in model_recipe and model_recipe[key] != value  # a converted checkpoint does not know all of it
  ]
  if differences:
    raise listed(
      "this data set was prepared differently from the model's training data",
      differences,
      "prepare it with the same recipe",
    )


def evaluations_of_folds() -> list[Evaluation]:
  """All models of --workdirs with what they are evaluated on; everything wrong with them at once.

  Raises:
    UserError: with all problems, before the first model is loaded.
  """
  paths = [Path(path) for path in _WORKDIRS.value or []]
  problems, evaluations = problems_of_flags(paths), []
  for path, split in zip(paths, _SPLITS.value or [""] * len(paths), strict=False):
    try:
      evaluations.append(evaluation_of(path, split))
    except UserError as error:
      problems.append(f"{path}: {error}")
  for i, one in enumerate(evaluations):
    problems += problems_between(evaluations[:i], one)
    fold = one.about.config.get("data.fold")
    if fold and one.split != f"fold{fold}":
      problems.append(f"{one.path}: its test clips are fold{fold}; it was trained on clips of {one.split}")
    if one.about.config and not (one.path / "report.json").exists():
      print(f"note: {one.path} has no report.json; its training is not finished")
  if problems:
    raise listed("these models cannot be evaluated together", problems)
  return evaluations


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


def problems_between(others: Sequence[Evaluation], one: Evaluation) -> list[str]:
  """Why a model's scores cannot be put beside those of the others: each is compared with the first."""
  problems = [
    f"{one.path} and {other.path} are both evaluated on {one.split}"
    for other in others
    if (other.split, other.data_set.fingerprint) == (one.split, one.data_set.fingerprint)
  ]
  if not others:
    return problems
  first, here, there = others[0].path, one.about, others[0].about
  if there.classes != here.classes:
    problems.append(f"classes: {list(there.classes)} in {first}, {list(here.classes)} in {one.path}")
  if there.precision != here.precision:
    problems.append(
      f"precision: {there.precision} in {first}, {here.precision} in {one.path}; choose with --precision"
    )
  return problems + [
    f"recipe {key}: {there.recipe[key]!r} in {first}, {here.recipe[key]!r} in {one.path}"
    for key in sorted(there.recipe.keys() & here.recipe.keys())  # a converted model does not know all of it
    if there.recipe[key] != here.recipe[key]
  ]


def evaluator(engine: Engine, mesh: Mesh) -> Callable[..., dict[str, jax.Array]]:
  """(tunable, frozen, batch) -> sums over a batch, as `evaluate_split` asks for them.

  The loss is cross-entropy, whatever a run was trained with, so that models can be compared.

  Raises:
    UserError: if several processes are to share the work of an engine that is not JAX.
  """
  loss = parts.read("losses", {"name": "cross_entropy"}).build(())
  if isinstance(engine, JaxEngine):
    return jit_eval(engine.graphdef, mesh, loss, engine.about.precision)
  if jax.process_count() > 1:
    raise UserError(f"several processes can evaluate a run or a model folder, not a {type(engine).__name__}")

  def call(tunable, frozen, batch):
    logits = engine(*(np.asarray(batch[name]) for name in ("video", "spectrogram")))
    return sums(parts.Outputs(jnp.asarray(logits)), batch, loss)

  return call


def evaluate(evaluation: Evaluation) -> Fold:
  """Loads a model and evaluates it, whole and as --without says; writes its files; returns the first result."""
  path, split = evaluation.path, evaluation.split
  mesh, chief = make_mesh(-1, 1), jax.process_index() == 0
  with hosts.fail_together():
    engine = load_model(path, step=_STEP.value, precision=_PRECISION.value, sharding=replicated(mesh))
    eval_fn = evaluator(engine, mesh)
  about = engine.about
  tunable: nnx.State = getattr(engine, "tunable", nnx.State({}))
  frozen: nnx.State = getattr(engine, "frozen", nnx.State({}))
  name = f"evaluation_{split.replace('+', '_')}" + f"_step{about.step}" * (about.step is not None)
  name += f"_{about.precision}" * (_PRECISION.value is not None)
  files = path / name if path.is_dir() else path.with_name(f"{path.name}.{name}")
  facts = {"split": split, "model": about.origin, "precision": about.precision, "classes": about.classes}
  evaluations, folds = {}, []
  for without in _WITHOUT.value:
    result = evaluate_split(
      eval_fn, tunable, frozen, evaluation.data_set.records(split), about.inputs, mesh=mesh,
      batch_size=evaluation.batch_size, without="" if without == "none" else without, title=f"without {without}",
    )  # fmt: skip
    assert result is not None  # nothing stops it
    scores = Scores(np.array(result["confusion_matrix"]), about.classes)
    no_sound = {"clips_without_sound": result["clips_without_sound"]}
    evaluations[without] = {**scores_as_json(scores), **no_sound, "cross_entropy": result["test_loss"]}
    of_fold = {"folder": str(path), "step": about.step, **no_sound, "model": about.origin}
    folds.append(Fold(split, scores, of_fold))
    if chief:
      draw_confusion_matrix(scores, Path(f"{files}_without_{without}.png"))
      print(f"\n{split}, without {without}, in {about.precision}: WAR {percent(scores.war)}, UAR {percent(scores.uar)}, "
            f"{scores.clips} clips\n{recall_table(scores)}")  # fmt: skip
  if chief:
    write_json(Path(f"{files}.json"), {**facts, "without": evaluations})
    print(f"\nwrote {files}.json")
  return folds[0]


def which_models(abouts: Sequence[About]) -> str:
  """Of which checkpoints the scores of several models are, in words."""
  steps = ", ".join("converted" if about.step is None else f"step {about.step}" for about in abouts)
  flatters = "; chosen by WAR on the test clips themselves, so it flatters" * (_STEP.value == "best")
  return f"of these models: {steps}, in {abouts[0].precision}{flatters}"


def report_folds(evaluations: Sequence[Evaluation], folds: Sequence[Fold]) -> None:
  """Writes what came of all of --workdirs to --out."""
  out, abouts = Path(_OUT.value or ""), [one.about for one in evaluations]
  recipe = {key: value for about in abouts for key, value in about.recipe.items()}
  facts = {"recipe": recipe, "precision": abouts[0].precision, "version": VERSION}
  summary = write_folds(out, folds, model=which_models(abouts), facts=facts)
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
  with hosts.fail_together():
    evaluations = (
      [evaluation_of(Path(_WORKDIR.value), _SPLIT.value or "")] if _WORKDIR.value else evaluations_of_folds()
    )
  asked: dict[str, Any] = {"step": _STEP.value, "without": _WITHOUT.value}
  for number, one in enumerate(evaluations, start=1):
    asked |= {f"model {number}": str(one.path), f"split {number}": one.split, f"batch_size {number}": one.batch_size,
              f"clips {number}": one.data_set.fingerprint, f"precision {number}": one.about.precision}  # fmt: skip
  hosts.check_equal_on_all("evaluation", asked)
  folds = [evaluate(one) for one in evaluations]
  if _WORKDIRS.value and jax.process_index() == 0:
    report_folds(evaluations, folds)


if __name__ == "__main__":
  cli.run(main, describe_error=hosts.describe_error, exit_process=hosts.exit_process)
