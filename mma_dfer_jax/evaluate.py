"""Evaluate a trained model, whole or with one modality removed, or the models of several folds; or compare two of them.

  python -m mma_dfer_jax.evaluate --workdir=runs/demo/run --without=none,sound,picture
  python -m mma_dfer_jax.evaluate --workdirs=runs/dfew/fold1,runs/dfew/fold2 --out=runs/two_folds
  python -m mma_dfer_jax.evaluate --workdirs=models/fold1,models/fold2 --splits=fold1,fold2 --data_dir=data --out=folds
  python -m mma_dfer_jax.evaluate --compare runs/dfew runs/dfew_no_fusion

Writes WORKDIR/evaluation_SPLIT_stepN.json, which keeps all that was evaluated, and for each --without a picture of the
confusion matrix and the answer to each clip beside it, …_without_none.png and …_without_none_predictions.csv. Several
models are evaluated one by one in the same way; OUT/folds.json, folds.md, confusion_matrix.png and predictions.csv
report on all. --compare answers whether the second model is better than the first, from the answers to each clip.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import json
from pathlib import Path
import sys
from typing import Any

from absl import flags
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from mma_dfer_jax import __version__, cli, parts
from mma_dfer_jax.data.data_set import AS_MEANT, LANDMARKS, NO_LANDMARKS, DataSet, open_data_set
from mma_dfer_jax.disk import write_json
from mma_dfer_jax.engines.engine import About, Engine, describe, load_model
from mma_dfer_jax.engines.jax import JaxEngine
from mma_dfer_jax.errors import UserError, count, listed
from mma_dfer_jax.paths import define_path, define_paths, hint, user_path
from mma_dfer_jax.training import hosts, report
from mma_dfer_jax.training.calibration import calibrated, number_held_out, reliability
from mma_dfer_jax.training.comparison import as_table, compare
from mma_dfer_jax.training.evaluation import evaluate_split, jit_eval
from mma_dfer_jax.training.predictions import Predictions, against_votes
from mma_dfer_jax.training.run import read_run
from mma_dfer_jax.training.sharding import check_batch_size, make_mesh, replicated, start_jax
from mma_dfer_jax.training.steps import Batch, sums

_WORKDIR = cli.shared_flag("model", name="workdir")
_WORKDIRS = define_paths("workdirs", None, "Several of them, one for each fold: a,b,c; goes with --out.")
_COMPARE = define_paths("compare", None, "Is B better than A? A B or A,B: workdirs, folds folders, evaluations or predictions.csv.")  # fmt: skip
_SPLITS = flags.DEFINE_list("splits", None, "With --workdirs: the split of each; if not given, its own.")
_OUT = define_path("out", None, "With --workdirs and --compare: folder for the report.")
_STEP = cli.shared_flag("step")
_DATA_DIR = define_path("data_dir", None, "Where the data set is now; if not given, as in training.")
_DATA_NAME = flags.DEFINE_string("data_name", None, "Folder below data_dir; if not given, as in training, or clips.")  # fmt: skip
_SPLIT = flags.DEFINE_string("split", None, "Split to evaluate; if not given, the run's test split.")
_WITHOUT = flags.DEFINE_list("without", ["none"], "Modality removed: none, sound, picture (comma-separated).")
_LOGIT_ADJUSTMENT = flags.DEFINE_float("logit_adjustment", 0.0, "Subtracts so many times log(share of the class in the training "
                                      "clips) from the logits; 1: the paper's.", lower_bound=0.0)  # fmt: skip
_ENGINE = cli.shared_flag("engine")
_PRECISION = cli.shared_flag("precision")
_CLASS_VECTORS = cli.shared_flag("class_vectors")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 0, "Clips at a time; 0: as in training.", lower_bound=0)
_FORMS = ("workdir", "workdirs", "compare")
flags.register_multi_flags_validator(_FORMS, lambda given: [*given.values()].count(None) == len(_FORMS) - 1,
                                     "give one of --workdir, --workdirs and --compare")  # fmt: skip
# Which of these forms each flag goes with.
_MODELS = _FORMS[:2]
_GOES_WITH = {
  **{name: _MODELS for name in ("step", "data_dir", "data_name", "engine", "precision", "batch_size", "logit_adjustment", *hosts.FLAGS)},
  "split": ("workdir",), "class_vectors": ("workdir",), "without": ("workdir",), "splits": ("workdirs",), "out": ("workdirs", "compare"),
}  # fmt: skip

LARGEST_ADJUSTMENT = 100  # far beyond what is of use: the paper's is 1
MODALITIES = {"none": "picture and sound", "sound": "picture only", "picture": "sound only"}  # by --without


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """A model, known but not loaded, and what it is to be evaluated on."""

  path: Path
  about: About
  data_set: DataSet
  split: str
  batch_size: int


def evaluation_of(path: Path, split: str) -> Evaluation:
  """Finds out what a model needs; UserError if the data are not prepared as those it was trained on."""
  about = describe(path, step=_STEP.value, precision=_PRECISION.value, engine=_ENGINE.value)
  trained = {"data.data_dir": None, "data.name": "clips", "data.fold": None, "batch_size": 8} | dict(about.config)  # fmt: skip
  data_dir = _DATA_DIR.value or trained["data.data_dir"]
  if not about.config and not (data_dir and split):
    advice = "give --data_dir and --split (--splits for several)"
    raise UserError(f"{path} does not record its data set: {advice}")
  try:
    data_set = open_data_set(data_dir, _DATA_NAME.value or trained["data.name"])
  except UserError as error:
    raise error if _DATA_DIR.value else UserError(f"{error}; where is it now? Give --data_dir") from error
  if data_set.classes != about.classes and not _CLASS_VECTORS.value:
    raise UserError(f"the model tells apart {', '.join(about.classes)}; the data have {', '.join(data_set.classes)}")  # fmt: skip
  if different := differences(about.recipe, data_set.recipe):
    lines = [f"{key}: the model was trained on {there!r}, these data have {here!r}" for key, there, here in different]  # fmt: skip
    title = "this data set was prepared differently from the model's training data"
    raise listed(title, lines, "prepare it with the same recipe")
  if missing := sorted(data_set.recipe.keys() - about.recipe.keys() - {AS_MEANT, LANDMARKS}):
    print(f"note: the checkpoint does not record how its data was prepared ({', '.join(missing)}); prepare yours as its "
          "authors did")  # fmt: skip
  if about.inputs.points and LANDMARKS not in data_set.recipe:
    raise UserError(NO_LANDMARKS)
  split = split or data_set.train_and_test(trained["data.fold"])[1]
  if wrong := set(split.split("+")) - set(data_set.splits):
    raise UserError(f"there is no split {', '.join(sorted(wrong))}; there are {', '.join(data_set.splits)}")
  for without, stream in (("sound", "audio"), ("picture", "image")):
    if without in _WITHOUT.value and len(about.streams) < 2:
      how = "looks at nothing else" if about.streams == (stream,) else "does not look at it"
      raise UserError(f"--without={without}: {path} {how}")
  batch_size = _BATCH_SIZE.value or trained["batch_size"]
  check_batch_size(batch_size)
  return Evaluation(path, about, data_set, split, batch_size)


def log_prior(path: Path, about: About) -> np.ndarray:
  """log(share of each class in the clips that a run was trained on); UserError if they are not known, or it has used them."""
  place = f"--logit_adjustment={_LOGIT_ADJUSTMENT.value}"
  if not (path / "run.json").exists():
    raise UserError(f"{place} needs the training clips of each class, which only a run keeps: {path} is none")
  run = read_run(path)
  c = run["config"]
  if c["loss.logit_adjustment"]:
    raise UserError(
      f"{place}: {path} was trained with loss.logit_adjustment={c['loss.logit_adjustment']} already; never use both"
    )
  fold = c["data.fold"]
  splits = (
    [one for one in run["data_set"]["splits"] if one.startswith("fold") and one != f"fold{fold}"]
    if fold
    else ["train"]
  )
  clips = [sum(run["data_set"]["clips"][split][name] for split in splits) for name in about.classes]
  clips = [number - number_held_out(number, c["data.held_out"]) for number in clips]
  if without := [name for name, number in zip(about.classes, clips, strict=True) if not number]:
    raise UserError(f"{place} cannot be used, for no training clip is {' or '.join(without)}")
  return np.log(np.array(clips) / sum(clips))


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
  """Of what both know: a converted checkpoint does not know all of its recipe. What clips needed depends on the clips."""
  common = sorted(one.keys() & other.keys() - {AS_MEANT})
  return [(key, one[key], other[key]) for key in common if one[key] != other[key]]


def evaluations_of_folds() -> list[Evaluation]:
  """All models of --workdirs; UserError with all problems, before the first model is loaded."""
  paths = [Path(path) for path in _WORKDIRS.value or []]
  rules = {
    f"--workdirs={','.join(map(str, paths))}: give different folders, comma-separated":
    paths and len({path.resolve() for path in paths}) == len(paths),
    "give --out, the folder for the report on all": _OUT.value,
    f"{len(paths)} folders, but {len(_SPLITS.value or [])} --splits": len(_SPLITS.value or paths) == len(paths),
  }  # fmt: skip
  problems = [words for words, holds in rules.items() if not holds]
  evaluations: list[Evaluation] = []
  for path, split in zip(paths, _SPLITS.value or [""] * len(paths), strict=False):
    try:
      evaluations.append(evaluation_of(path, split))
    except UserError as error:
      problems.append(f"{path}: {error}")
      continue
    one = evaluations[-1]
    clips = one.split, one.data_set.fingerprint
    problems += [f"{path} and {other.path} are both evaluated on {one.split}"
                 for other in evaluations[:-1] if (other.split, other.data_set.fingerprint) == clips]  # fmt: skip
    there, here = ({"classes": about.classes, "precision (choose with --precision)": about.precision,
                    **{f"recipe {key}": value for key, value in about.recipe.items()}}
                   for about in (evaluations[0].about, one.about))  # fmt: skip
    problems += [f"{k}: {a!r} in {evaluations[0].path}, {b!r} in {path}" for k, a, b in differences(there, here)]  # fmt: skip
    fold = one.about.config.get("data.fold")
    if fold and one.split != f"fold{fold}":
      problems.append(f"{path}: its test clips are fold{fold}; it was trained on clips of {one.split}")
    if one.about.config and not (path / "report.json").exists():
      print(f"note: {path} has no report.json; its training is not finished")
  if problems:
    raise listed("these models cannot be evaluated together", problems)
  return evaluations


def evaluator(engine: Engine, mesh: Mesh) -> Callable[[Batch], dict[str, jax.Array]]:
  """Of a batch its sums, as `evaluate_split` needs them."""
  if isinstance(engine, JaxEngine):
    eval_fn = jit_eval(engine.graphdef, mesh, engine.about.precision)
    return functools.partial(eval_fn, engine.tunable, engine.frozen)
  if jax.process_count() > 1:
    raise UserError(f"several processes can evaluate a run or a model folder, not a {type(engine).__name__}")

  def call(batch):
    logits = engine(*(np.asarray(batch[name]) for name in engine.about.inputs.shapes))
    found = sums(parts.Outputs(jnp.asarray(logits)), batch)
    return found | {name: batch[name] for name in ("label", "position")}

  return call


def evaluate(evaluation: Evaluation) -> report.Fold:
  """Loads a model and evaluates it, once for each --without; writes its files; returns the first result."""
  path, split = evaluation.path, evaluation.split
  mesh, chief = make_mesh(-1, 1), jax.process_index() == 0
  with hosts.fail_together():
    if chief:
      print(f"loading {path} …", flush=True)
    how = {"precision": _PRECISION.value, "engine": _ENGINE.value, "sharding": replicated(mesh)}
    engine = load_model(path, step=_STEP.value, **how)
    if _CLASS_VECTORS.value:
      engine = engine.with_classes(_CLASS_VECTORS.value, evaluation.data_set.classes)
    eval_fn = evaluator(engine, mesh)
  about = engine.about
  facts: dict[str, Any] = {"split": split, "model": about.origin, "precision": about.precision, "classes": list(about.classes),
           "data_set": evaluation.data_set.fingerprint, "weights": about.fingerprint}  # fmt: skip
  if _LOGIT_ADJUSTMENT.value:
    facts["logit_adjustment"] = _LOGIT_ADJUSTMENT.value
  if engine.name != "jax":
    facts["engine"] = engine.name
  files, evaluations = files_of(path, facts) if chief else ("", {})
  prior = _LOGIT_ADJUSTMENT.value and _LOGIT_ADJUSTMENT.value * log_prior(path, about)
  folds = []
  for without in _WITHOUT.value:
    found = evaluate_split(
      eval_fn, evaluation.data_set.records(split), about.inputs, about.classes, mesh=mesh,
      batch_size=evaluation.batch_size, without="" if without == "none" else without, title=MODALITIES[without],
    )  # fmt: skip
    assert found is not None  # nothing stops it
    result, predictions = found
    predictions = _adjusted(predictions, prior) if _LOGIT_ADJUSTMENT.value else predictions
    predictions = calibrated(predictions, about.temperature)
    scores, no_sound = predictions.scores, {"clips_without_sound": result["clips_without_sound"]}
    evaluations[without] = {**_in_numbers(evaluation, predictions, about), **no_sound, "cross_entropy": result["test_loss"],
                            **{name: result[name] for name in ("layers",) if name in result}}  # fmt: skip
    ece, votes = evaluations[without]["ece"], evaluations[without].get("votes")
    of_fold = {"folder": str(path), "step": about.step, **no_sound, "model": about.origin, "data_set": facts["data_set"]}  # fmt: skip
    folds.append(report.Fold(split, predictions, of_fold))
    if chief:
      _draw(f"{files}_without_{without}", predictions, about)
      war, uar = report.percent(scores.war), report.percent(scores.uar)
      shown = f"WAR {war}, UAR {uar}, ECE {report.percent(ece)}, {count(scores.clips, 'clip')}"
      shown += (
        "; {won:.2f} % of the votes won, cross-entropy to them {cross_entropy:.4f}".format(**votes)
        if votes
        else ""
      )
      tau = f", logit adjustment {_LOGIT_ADJUSTMENT.value}" * bool(_LOGIT_ADJUSTMENT.value)
      print(
        f"\n{split}, {MODALITIES[without]}, {about.precision}{tau}: {shown}\n{report.recall_table(scores)}"
      )
      write_json(Path(f"{files}.json"), {**facts, "without": evaluations})
  if chief:
    print(f"\nwrote {files}.json")
  return folds[0]


def _in_numbers(evaluation: Evaluation, predictions: Predictions, about: About) -> dict[str, Any]:
  """Scores, calibration and, if people were asked about these classes, agreement with their votes."""
  found = {**report.scores_as_json(predictions.scores), "ece": reliability(predictions).ece}
  if evaluation.data_set.votes.get(evaluation.split) and evaluation.data_set.classes == about.classes:
    found["votes"] = against_votes(predictions, evaluation.data_set.votes_of(evaluation.split))
  return found


def _adjusted(predictions: Predictions, prior: Any) -> Predictions:
  """The answers of the logits less `prior` (C,)."""
  logits = np.log(np.maximum(predictions.probabilities, np.finfo(float).tiny)) - prior
  made = Predictions.of_logits(predictions.classes, predictions.clips, predictions.labels, logits)
  return dataclasses.replace(made, data_set=predictions.data_set)


def _draw(files: str, predictions: Predictions, about: About) -> None:
  """Confusion matrix, reliability diagram and the answers themselves; names of files begin with `files`."""
  report.draw_confusion_matrix(predictions.scores, Path(f"{files}.png"))
  held_out = {"temperature": about.temperature} if about.temperature != 1 else {}
  report.draw_reliability(predictions, held_out, Path(f"{files}_reliability.png"))
  predictions.write(Path(f"{files}_predictions.csv"))


def files_of(path: Path, facts: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
  """The beginning of the names of an evaluation's files, and what an earlier one of the same has found.

  Files of other data or weights are never replaced: the fingerprints of these are added to the name then.
  """
  name = f"evaluation_{facts['split'].replace('+', '_')}"
  name += "".join(f"_step{step}" for key, step in facts["model"].items() if key == "step")
  name += "".join(
    f"_{facts[key]}"
    for key, flag in (("engine", _ENGINE), ("precision", _PRECISION))
    if flag.value and key in facts
  )
  name += f"_logit_adjustment_{facts['logit_adjustment']}" if "logit_adjustment" in facts else ""
  name += f"_class_vectors_{facts['model']['class_vectors']['sha256'][:8]}" if _CLASS_VECTORS.value else ""
  begin = str(path / name if path.is_dir() else path.with_name(f"{path.name}.{name}"))
  for files in (begin, f"{begin}_{facts['data_set'][:8]}_{facts['weights'][:8]}"):
    try:
      earlier = json.loads(Path(f"{files}.json").read_text())
    except (FileNotFoundError, ValueError):
      return files, {}
    if {key: earlier.get(key) for key in facts} == json.loads(json.dumps(facts)):
      return files, earlier["without"]
  return files, {}


def report_folds(abouts: Sequence[About], folds: Sequence[report.Fold]) -> None:
  """Writes the report on all of --workdirs to --out."""
  out = Path(_OUT.value or "")
  steps = ", ".join("converted" if about.step is None else f"step {about.step}" for about in abouts)
  precision, flatters = abouts[0].precision, f"; chosen {report.FLATTERS}" * (_STEP.value == "best")
  recipe = {key: value for about in abouts for key, value in about.recipe.items()}
  facts = {"recipe": recipe, "precision": precision, "version": __version__}
  report.write_folds(out, folds, model=f"of these models: {steps}, in {precision}{flatters}", facts=facts)
  for fold in folds:
    fold.predictions.write(out / f"{fold.name}_predictions.csv")


def compare_two(paths: Sequence[str]) -> None:
  if len(paths) != 2:
    raise UserError(f"--compare needs two models, A and B; given: {', '.join(paths) or 'none'}")
  result = compare(*map(Path, paths))
  shown, sentence, note = as_table(result), result["sentence"], result["note"]
  print(f"A: {paths[0]}\nB: {paths[1]}\n\n{shown}\n\n{note}\n\n{sentence}")
  if _OUT.value:
    out, title = Path(_OUT.value), "# MMA-DFER: is B better than A?"
    out.mkdir(parents=True, exist_ok=True)
    both = f"- A: {paths[0]}\n- B: {paths[1]}"
    report.write_markdown(out / "comparison.md", title, f"**{sentence}**", both, shown, note)
    write_json(out / "comparison.json", result)
    print(f"\nwrote {out}/comparison.json and comparison.md")


def check_flags() -> None:
  """Raises UserError with all flags that do nothing in this form of the command, and those that cannot be."""
  form = next(name for name in _FORMS if flags.FLAGS[name].value is not None)
  problems = [f"--{name} goes with {' and '.join(f'--{one}' for one in forms)}, not with --{form}"
              for name, forms in _GOES_WITH.items() if name in flags.FLAGS and flags.FLAGS[name].present and form not in forms]  # fmt: skip
  if _CLASS_VECTORS.value and _LOGIT_ADJUSTMENT.value:
    problems.append("--logit_adjustment is for the classes of the training, not for those of --class_vectors")
  if not 0 <= _LOGIT_ADJUSTMENT.value <= LARGEST_ADJUSTMENT:
    problems.append(
      f"--logit_adjustment={_LOGIT_ADJUSTMENT.value} must lie in [0, {LARGEST_ADJUSTMENT}]; 1 is usual"
    )
  if not _WITHOUT.value or set(_WITHOUT.value) - MODALITIES.keys():
    problems.append(f"--without={','.join(_WITHOUT.value)}: give none, sound or picture, comma-separated")
  out = Path(_OUT.value or "").absolute()
  there = next(folder for folder in (out, *out.parents) if folder.exists())
  if not there.is_dir():
    problems.append(f"--out={_OUT.value}: {there} {hint(there, folder=True)}")
  if problems:
    raise listed("the command line has problems", problems)


def main(argv: Sequence[str]) -> None:
  check_flags()
  if _COMPARE.value is not None:
    return compare_two([*filter(None, _COMPARE.value), *map(user_path, argv[1:])])
  hosts.join()
  cli.end_as_by_interrupt()  # after JAX has taken SIGTERM, for runs that save
  start_jax()
  with hosts.fail_together():
    one = _WORKDIR.value and evaluation_of(Path(_WORKDIR.value), _SPLIT.value or "")
    evaluations = [one] if one else evaluations_of_folds()
  asked = {f"model {number}": [str(e.path), e.split, e.batch_size, e.data_set.fingerprint, e.about.precision]
           for number, e in enumerate(evaluations, start=1)}  # fmt: skip
  hosts.check_equal_on_all(
    "evaluation",
    {"step": _STEP.value, "without": _WITHOUT.value, "class_vectors": _CLASS_VECTORS.value, **asked},
  )
  folds = [evaluate(one) for one in evaluations]
  if _WORKDIRS.value and jax.process_index() == 0:
    report_folds([one.about for one in evaluations], folds)
  return None


if __name__ == "__main__":
  positional = any(word.lstrip("-").startswith("compare") for word in sys.argv[1:])  # A B after --compare
  cli.run(main, takes_files=positional, describe_error=hosts.describe_error, exit_process=hosts.exit_process)
