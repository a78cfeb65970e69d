"""Evaluate a trained model, whole or with the sound or the picture taken away.

  python -m mma_dfer_jax.evaluate --workdir=runs/demo/run --without=none,sound,picture

Writes WORKDIR/evaluation_SPLIT_stepN.json, and a picture of each confusion matrix beside it.
"""

from collections.abc import Sequence
import functools
from pathlib import Path

from absl import flags
import jax
import numpy as np

from mma_dfer_jax import cli
from mma_dfer_jax.checkpoints import write_json
from mma_dfer_jax.data.datasets import open_data_set
from mma_dfer_jax.data.pipeline import Preprocessing
from mma_dfer_jax.errors import UserError, listed
from mma_dfer_jax.metrics import Scores
from mma_dfer_jax.report import draw_confusion_matrix, percent, recall_table, scores_as_json
from mma_dfer_jax.sharding import check_batch_size, make_mesh, start_jax
from mma_dfer_jax.steps import eval_step, evaluate_split
from mma_dfer_jax.trained_model import load_model

_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Workdir of a run, or a folder that `convert` wrote.", required=True
)
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


def main(argv: Sequence[str]) -> None:
  del argv
  if not _WITHOUT.value or set(_WITHOUT.value) - {"none", "sound", "picture"}:
    raise UserError(f"--without={','.join(_WITHOUT.value)}: none, sound and picture can be given")
  start_jax()
  workdir = Path(_WORKDIR.value)
  step = int(_STEP.value) if _STEP.value.isdigit() else _STEP.value
  model = load_model(workdir, step=step)
  trained_as = {
    "data.data_dir": None,
    "data.name": "clips",
    "data.fold": None,
    "batch_size": 8,
    **model.config,
  }
  data_dir, split = _DATA_DIR.value or trained_as["data.data_dir"], _SPLIT.value
  if not model.config and not (data_dir and split):
    raise UserError(f"{workdir} was converted and knows no data set: give --data_dir and --split")
  data_set = open_data_set(data_dir, _DATA_NAME.value or trained_as["data.name"])
  if data_set.classes != model.classes:
    raise UserError(
      f"the model tells apart {', '.join(model.classes)}; the data have {', '.join(data_set.classes)}"
    )
  same_preparation(model.recipe, data_set.recipe)
  if unknown_of_model := sorted(data_set.recipe.keys() - model.recipe.keys()):
    print(
      f"note: the model does not say its {', '.join(unknown_of_model)}; prepare the data as its authors did"
    )
  split = split or data_set.train_and_test(trained_as["data.fold"])[1]
  if unknown := set(split.split("+")) - set(data_set.splits):
    raise UserError(f"there is no split {', '.join(sorted(unknown))}; there are {', '.join(data_set.splits)}")
  batch_size = _BATCH_SIZE.value or trained_as["batch_size"]
  check_batch_size(batch_size)
  spec = Preprocessing(model.cfg.image_size, model.cfg.num_frames, model.cfg.audio_shape)
  records = data_set.records(split)
  mesh = make_mesh(-1, 1)
  eval_fn = jax.jit(functools.partial(eval_step, graphdef=model.graphdef))

  name = f"evaluation_{split.replace('+', '_')}" + (f"_step{model.step}" if model.step is not None else "")
  evaluations = {}
  for without in _WITHOUT.value:
    result = evaluate_split(
      eval_fn, model.tunable, model.frozen, records, spec, mesh=mesh, batch_size=batch_size,
      without="" if without == "none" else without, title=f"without {without}",
    )  # fmt: skip
    assert result is not None  # nothing stops it
    scores = Scores(np.array(result["confusion_matrix"]), model.classes)
    evaluations[without] = {
      **scores_as_json(scores),
      "clips_without_sound": result["clips_without_sound"],
      "loss": result["test_loss"],
    }
    draw_confusion_matrix(scores, workdir / f"{name}_without_{without}.png")
    print(
      f"\n{split}, without {without}: WAR {percent(scores.war)}, UAR {percent(scores.uar)}, {scores.clips} clips"
    )
    print(recall_table(scores))
  about = {"split": split, "model": model.origin, "classes": model.classes}
  write_json(workdir / f"{name}.json", {**about, "without": evaluations})
  print(f"\nwrote {workdir}/{name}.json")


if __name__ == "__main__":
  cli.run(main)
