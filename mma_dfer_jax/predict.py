"""Video files -> the probabilities of each emotion, for a whole clip or over time.

  python -m mma_dfer_jax.predict --model=runs/demo/run --out=answers clip.mp4 clips/*.mov
  python -m mma_dfer_jax.predict --model=runs/demo/run --out=answers --batch_size=8 clips
  python -m mma_dfer_jax.predict --model=runs/demo/run --out=answers --window=4 --hop=1 film.mp4

Picture and sound become exactly what the model was trained on: if faces were cut out of its training clips, they are
cut out here in the same way. An answer with too much against it is withheld; --force names a class all the same. Writes
one JSON file for each clip, and answers.csv for all; with --window also .csv, .srt and .png for each. Of a folder it answers
all videos, also those in folders below it. Clips already answered with the same model and settings are skipped.
"""

from collections.abc import Sequence
import math
from pathlib import Path
import sys
from typing import Any

from absl import flags

from mma_dfer_jax import cli
from mma_dfer_jax.errors import UserError, listed
from mma_dfer_jax.inputs import FRAME_CHOICES
from mma_dfer_jax.paths import define_path, user_files

FEATURES = ("none", "npz", "parquet")

_MODEL = cli.shared_flag("model", required=True)
_OUT = define_path(
  "out", None, "Folder for the answers; needed unless a camera, pipe or address is answered."
)
_CAMERA = flags.DEFINE_string("camera", None, "Answer live, a line of JSON each --hop: number of a camera, - for a pipe, an "
                              "address (rtsp://…).")  # fmt: skip
_SECONDS = flags.DEFINE_float("seconds", None, "Stop --camera after so many seconds.", lower_bound=0.0)


class _Window(flags.FloatParser):
  """Reads --window."""

  def parse(self, argument: Any) -> Any:
    return argument if argument == "speech" else super().parse(argument)


_WINDOW: flags.FlagHolder[Any] = flags.DEFINE(
  _Window(), "window", None, "Answer over time, in windows of so many seconds; or speech: one for each sentence.",
  serializer=flags.ArgumentSerializer(),
)  # fmt: skip
_HOP = flags.DEFINE_float("hop", None, "Seconds from one window to the next; a quarter of --window.")
_FRAME_CHOICE = flags.DEFINE_enum("frame_choice", "auto", ["auto", *FRAME_CHOICES],
                                  "Frames evenly spread by number or by time; auto: as in training.")  # fmt: skip
_CHANNEL = cli.shared_flag("channel")
_FACES = cli.shared_flag("faces")
_FACE_MODEL = cli.shared_flag("face_model")
_ENGINE = cli.shared_flag("engine")
_PERSON = cli.shared_flag("person")
_PRECISION = cli.shared_flag("precision")
_KEEP_FRAMES = flags.DEFINE_integer("keep_frames", None, "Let the model's frame mask keep only so many frames, fewer than in its "
                                    "training but at least 3: faster.", lower_bound=3)  # fmt: skip
_CLASS_VECTORS = cli.shared_flag("class_vectors")
_FEATURES = flags.DEFINE_enum("features", "none", FEATURES,
                              "Also write what the model makes of each clip: an .npz for each, or besides a table of all in Parquet.")  # fmt: skip
_EXPLAIN = flags.DEFINE_bool("explain", False, "Also say what each frame, each second of sound, and picture and sound as a whole add to the answer; takes about 40 times as long.")  # fmt: skip
_FORCE = flags.DEFINE_bool("force", False, "Name the most probable class, whatever speaks against it.")
_ABSTAIN = flags.DEFINE_float("abstain", 0.0, "Name no class whose probability is below this, as 0.6.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 1, "Clips or windows computed at once.", lower_bound=1)


def main(argv: Sequence[str]) -> int:
  from mma_dfer_jax.answers import Answers, check  # here: --help need not wait for OpenCV, FFmpeg and SciPy
  from mma_dfer_jax.data.folder import with_folders
  from mma_dfer_jax.data.persons import NO_FACES
  from mma_dfer_jax.data.stream import is_live
  from mma_dfer_jax.features import WithFeatures

  others = list(argv[1:])
  source = _CAMERA.value
  if source is None and (
    live := [one for one in others if one == "-" or (is_live(one) and len(others) == 1)]
  ):
    others.remove(source := live[0])  # among files an address is one that must be downloaded first
  if source is not None:
    return _live(source, others)
  if _SECONDS.value is not None:
    raise UserError("--seconds needs --camera")
  if _OUT.value is None:
    raise UserError("--out=FOLDER is needed, for the answers")
  (names, left_out), window = with_folders(user_files(argv[1:]), _OUT.value), _WINDOW.value
  for note in left_out:
    print(f"left out: {note}", file=sys.stderr)
  hop = window / 4 if isinstance(window, float) and _HOP.value is None else _HOP.value
  features, person = _FEATURES.value != "none", _PERSON.value
  check(
    names,
    window,
    hop,
    _ABSTAIN.value,
    out=Path(_OUT.value),
    explained=_EXPLAIN.value,
    features=features,
    person=person,
  )
  engine, finder, channel = _opened()
  if person != "largest" and finder is None:
    raise UserError(f"--person={person}: {NO_FACES}")
  engine = WithFeatures(engine.about, engine.path, engine) if features else engine
  how = _FACE_MODEL.value, window, hop, _BATCH_SIZE.value, channel, _FORCE.value, _ABSTAIN.value
  answers = Answers(Path(_OUT.value), names, _MODEL.value, engine, finder, *how, _EXPLAIN.value, person)
  status = answers.answer()
  if _FEATURES.value == "parquet":
    answers.write_features(list(names))
  return status


def _opened() -> tuple[Any, Any, str]:
  """The model, what cuts out faces, and the channel of the sound, by the flags."""
  from mma_dfer_jax.engines.engine import load_model
  from mma_dfer_jax.prediction import face_finder, sound_channel

  cli.end_as_by_interrupt()
  print(f"loading {_MODEL.value} …", file=sys.stderr, flush=True)
  engine = load_model(_MODEL.value, precision=_PRECISION.value, engine=_ENGINE.value)
  if _CLASS_VECTORS.value:
    engine = engine.with_classes(_CLASS_VECTORS.value)
  if _KEEP_FRAMES.value is not None:
    engine = engine.keeping_frames(_KEEP_FRAMES.value)
    print(f"warning: {engine.about.warnings[-1]}", file=sys.stderr)
  if _FRAME_CHOICE.value != "auto":
    engine = engine.choosing_frames(_FRAME_CHOICE.value)
  finder = face_finder(engine, _FACES.value, _FACE_MODEL.value)
  return engine, finder, sound_channel(engine.about.recipe, _CHANNEL.value)


def _live(source: str, others: Sequence[str]) -> int:
  from mma_dfer_jax.data.film import check_windows
  from mma_dfer_jax.data.stream import is_camera, is_live
  from mma_dfer_jax.doubt import check_abstain
  from mma_dfer_jax.live import Live

  window = 4.0 if _WINDOW.value is None else _WINDOW.value
  asked = {"explain": _EXPLAIN.value, "features": _FEATURES.value != "none", "person": _PERSON.value != "largest",
           "window=speech": window == "speech", "channel=loudest": _CHANNEL.value == "loudest"}  # fmt: skip
  problems = [f"--{flag} needs a finished film" for flag, given in asked.items() if given]
  problems += [f"--{flag.name} is for files: live answers are printed, one at a time"
               for flag in (_OUT, _BATCH_SIZE) if flag.present]  # fmt: skip
  problems += [f"{one}: a camera, pipe or address is answered alone" for one in others]
  if not (is_camera(source) or is_live(source)):
    problems.append(f"--camera={source}: give the number of a camera, - for a pipe, or an address (rtsp://…)")
  if _SECONDS.value is not None and not math.isfinite(_SECONDS.value):
    problems.append(f"--seconds={_SECONDS.value:g}: give a number of seconds")
  hop: Any = window / 4 if _HOP.value is None and window != "speech" else _HOP.value
  checks = [lambda: check_abstain(_ABSTAIN.value)]
  if window != "speech":
    checks.append(lambda: check_windows(window, hop))
  for check in checks:
    try:
      check()
    except UserError as error:
      problems.append(f"--{error}")
  if problems:
    raise listed("the command line has problems", problems)
  engine, finder, channel = _opened()
  Live(engine, source, finder, window, hop, channel, _FORCE.value, _ABSTAIN.value).run(_SECONDS.value)
  return 0


if __name__ == "__main__":
  cli.run(main, takes_files=True)
