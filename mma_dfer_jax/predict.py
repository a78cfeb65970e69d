"""Video files -> the probabilities of each emotion, for a whole clip or over time.

  python -m mma_dfer_jax.predict --model=runs/demo/run --out=answers clip.mp4 clips/*.mov
  python -m mma_dfer_jax.predict --model=runs/demo/run --out=answers --window=4 --hop=1 film.mp4

Picture and sound become exactly what the model was trained on: if faces were cut out of its training clips, they are
cut out here in the same way. An answer with too much against it is withheld; --force names a class all the same. Writes one JSON file for each clip, and answers.csv for all; with --window also .csv, .srt
and .png for each. Clips already answered with the same model and settings are skipped.
"""

from collections.abc import Sequence
from pathlib import Path
import sys

from absl import flags

from mma_dfer_jax import cli
from mma_dfer_jax.errors import UserError
from mma_dfer_jax.inputs import FRAME_CHOICES
from mma_dfer_jax.paths import define_path, user_files

_MODEL = cli.shared_flag("model", required=True)
_OUT = define_path("out", None, "Folder for the answers.", required=True)
_WINDOW = flags.DEFINE_float("window", None, "Answer over time, in windows of so many seconds.")
_HOP = flags.DEFINE_float("hop", None, "Seconds from one window to the next; a quarter of --window.")
_FRAME_CHOICE = flags.DEFINE_enum("frame_choice", "auto", ["auto", *FRAME_CHOICES],
                                  "Frames evenly spread by number or by time; auto: as in training.")  # fmt: skip
_CHANNEL = cli.shared_flag("channel")
_FACES = cli.shared_flag("faces")
_FACE_MODEL = cli.shared_flag("face_model")
_ENGINE = cli.shared_flag("engine")
_PERSON = flags.DEFINE_string("person", "largest", "Whose face: largest over time, all (an answer for each), or a number, 1 "
                              "is the largest.")  # fmt: skip
_PRECISION = cli.shared_flag("precision")
_FORCE = flags.DEFINE_bool("force", False, "Name the most probable class, whatever speaks against it.")
_ABSTAIN = flags.DEFINE_float("abstain", 0.0, "Name no class whose probability is below this, as 0.6.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 1, "Clips or windows computed at once.", lower_bound=1)


def main(argv: Sequence[str]) -> int:
  from mma_dfer_jax.answers import Answers, check  # here: --help need not wait for OpenCV, FFmpeg and SciPy
  from mma_dfer_jax.data.persons import NO_FACES
  from mma_dfer_jax.engines.engine import load_model
  from mma_dfer_jax.prediction import face_finder, sound_channel

  files, window = user_files(argv[1:]), _WINDOW.value
  hop = window / 4 if window is not None and _HOP.value is None else _HOP.value
  check(files, window, hop, _ABSTAIN.value, _PERSON.value)
  cli.end_as_by_interrupt()
  print(f"loading {_MODEL.value} …", file=sys.stderr, flush=True)
  engine = load_model(_MODEL.value, precision=_PRECISION.value, engine=_ENGINE.value)
  if _FRAME_CHOICE.value != "auto":
    engine = engine.choosing_frames(_FRAME_CHOICE.value)
  finder = face_finder(engine, _FACES.value, _FACE_MODEL.value)
  if _PERSON.value != "largest" and finder is None:
    raise UserError(f"--person={_PERSON.value}: {NO_FACES}")
  how = _FACE_MODEL.value, window, hop, _BATCH_SIZE.value, sound_channel(engine.about.recipe, _CHANNEL.value)
  return Answers(Path(_OUT.value), _MODEL.value, engine, finder, *how, _FORCE.value, _ABSTAIN.value,
                 _PERSON.value).answer(files)  # fmt: skip


if __name__ == "__main__":
  cli.run(main, takes_files=True)
