"""Video files -> the probabilities of each emotion, for a whole clip or over time.

  python -m mma_dfer_jax.predict --model=runs/demo/run --out=answers clip.mp4 clips/*.mov
  python -m mma_dfer_jax.predict --model=runs/demo/run --out=answers --window=4 --hop=1 film.mp4

Picture and sound become exactly what the model was trained on: if faces were cut out of its training clips, they are
cut out here in the same way. Writes one JSON file for each clip, and answers.csv for all; with --window also .csv, .srt
and .png for each. Clips already answered with the same model and settings are skipped.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import importlib.metadata
import json
import os
from pathlib import Path
import sys
from typing import Any

from absl import flags
import tqdm

from mma_dfer_jax import cli
from mma_dfer_jax.data import film
from mma_dfer_jax.data.faces import FACES, MODEL_SHA256, FaceFinder, finder_of
from mma_dfer_jax.data.media import MediaError
from mma_dfer_jax.disk import sha256_of, write_json
from mma_dfer_jax.engines.engine import About, Engine, load_model
from mma_dfer_jax.errors import UserError, listed
from mma_dfer_jax.prediction import (
  Prediction,
  Timeline,
  clip_sample,
  described,
  predict_samples,
  predict_timeline,
)
from mma_dfer_jax.timeline import draw, to_csv, to_srt

_MODEL = flags.DEFINE_string(
  "model",
  None,
  "Workdir of a run, a folder that `convert` wrote, or a file that `export` wrote.",
  required=True,
)
_OUT = flags.DEFINE_string("out", None, "Folder for the answers.", required=True)
_WINDOW = flags.DEFINE_float("window", None, "Answer over time, in windows of so many seconds.")
_HOP = flags.DEFINE_float("hop", None, "Seconds from one window to the next; a quarter of --window.")
_FACES = flags.DEFINE_enum(
  "faces",
  "auto",
  FACES,
  "Cut out faces: as in training; always; never, for cut videos.",
)
_FACE_MODEL = flags.DEFINE_string("face_model", None, "YuNet's .onnx file; if not given, it is fetched once.")
_PRECISION = flags.DEFINE_string(
  "precision", None, "float32 or bfloat16; if not given, as the model was trained or exported."
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 1, "Clips or windows computed at once.", lower_bound=1)

TABLE = "answers.csv"
LONGEST_NAME = 255  # bytes, in all usual file systems


@dataclasses.dataclass(frozen=True)
class Question:
  """One file that is asked about, and where its answer goes."""

  file: str
  answer: Path
  key: dict[str, Any]  # what the answer depends on

  def answered(self) -> dict[str, Any] | None:
    """The answer that is there already, if it would be the same."""
    there = self._there()
    return there if there and there["asked"] == self.key else None

  def forget(self) -> None:
    """Removes the answer that is there, for it is to another question, and says so if it is about another file."""
    there = self._there()
    if there is None:
      return
    if there["asked"].get("file") != self.key["file"]:
      print(f"{self.answer}: was about {there['clip']}, and is replaced", file=sys.stderr)
    for suffix in (".csv", ".srt", ".png", ".json"):
      self.answer.with_suffix(suffix).unlink(missing_ok=True)

  def _there(self) -> dict[str, Any] | None:
    """What this command has written there before."""
    try:
      answer = json.loads(self.answer.read_text())
    except (OSError, ValueError):
      return None
    return (
      answer
      if isinstance(answer, dict) and isinstance(answer.get("asked"), dict) and "clip" in answer
      else None
    )


def main(argv: Sequence[str]) -> int:
  files = argv[1:]
  sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # names of files may be no text
  _check(files)
  engine = load_model(_MODEL.value, precision=_PRECISION.value)
  about = engine.about
  finder = finder_of(about.recipe, Path(_FACE_MODEL.value) if _FACE_MODEL.value else None, _FACES.value)
  out = Path(_OUT.value)
  out.mkdir(parents=True, exist_ok=True)
  print(
    f"faces: {described(finder)}; classes: {', '.join(about.classes)}; precision: {about.precision}",
    file=sys.stderr,
  )
  questions = [_question(file, out, _key(about, finder)) for file in files]
  answers = {question.file: answer for question in questions if (answer := question.answered())}
  if answers:
    print(f"{len(answers)} of {len(questions)} clips were answered before and are skipped", file=sys.stderr)
  waiting = [question for question in questions if question.file not in answers]
  for question in waiting:
    question.forget()
  failed: list[str] = []
  answer_all = _timelines if _WINDOW.value else _clips
  new = answer_all(waiting, engine, finder, failed)
  for question, answer in new:
    answers[question.file] = answer
  _write_table(out / TABLE, [answers[question.file] for question in questions if question.file in answers])
  if failed:
    print(f"{len(failed)} of {len(questions)} clips could not be read", file=sys.stderr)
  return 1 if failed else 0


def _check(files: Sequence[str]) -> None:
  """Raises UserError with all that is wrong with the command line."""
  problems = []
  if not files:
    problems.append("name at least one video file")
  stems = [Path(file).stem for file in files]
  for stem in sorted({stem for stem in stems if stems.count(stem) > 1}):
    same = ", ".join(file for file in files if Path(file).stem == stem)
    problems.append(f"{same} would all be answered in {stem}.json; give each its own --out")
  for stem in stems:
    if len(os.fsencode(f"{stem}.json.partial")) > LONGEST_NAME:
      problems.append(f"{stem}.json would be too long a name for an answer; rename the video")
  if _WINDOW.value is not None and Path(TABLE).stem in stems:
    problems.append(
      f"the table of {Path(TABLE).stem}.* would be written over by that of all clips; rename the video"
    )
  if _WINDOW.value is None and _HOP.value is not None:
    problems.append("--hop needs --window")
  if _WINDOW.value is not None:
    try:
      film.check_windows(_WINDOW.value, _hop())
    except UserError as error:
      problems.append(str(error))
  if problems:
    raise listed("the command line has problems", problems)


def _hop() -> float:
  return (_WINDOW.value or 0.0) / 4 if _HOP.value is None else _HOP.value


def _key(about: About, finder: FaceFinder | None) -> dict[str, Any]:
  """What all answers of this command depend on."""
  face_model = _FACE_MODEL.value
  return {
    "model": os.path.abspath(_MODEL.value),
    "model_fingerprint": about.fingerprint,
    "origin": about.origin,
    "precision": about.precision,
    "version": importlib.metadata.version("mma_dfer_jax"),
    "faces": described(finder),
    "face_model_sha256": (sha256_of(Path(face_model)) if face_model else MODEL_SHA256) if finder else None,
    "window": _WINDOW.value,
    "hop": _hop() or None,
  }


def _question(file: str, out: Path, common: dict[str, Any]) -> Question:
  try:
    status = os.stat(file)
    stamp = [status.st_size, status.st_mtime_ns]
  except (OSError, ValueError):
    stamp = []  # reading it will say what is wrong
  key = {"file": os.path.abspath(file), "stamp": stamp, **common}
  return Question(file, out / f"{Path(file).stem}.json", key)


def _clips(
  questions: Sequence[Question], engine: Engine, finder: FaceFinder | None, failed: list[str]
) -> Iterator[tuple[Question, dict[str, Any]]]:
  """Answers all clips, in batches; those that cannot be read are reported and added to `failed`."""
  read: list[Question] = []

  def samples():
    for question in tqdm.tqdm(questions, "predict", unit="clip", disable=len(questions) < 2):
      try:
        sample = clip_sample(engine.about.inputs, question.file, finder)
      except MediaError as error:
        _fail(error, question, failed)
        continue
      read.append(question)
      yield sample

  for number, (_, prediction) in enumerate(predict_samples(engine, samples(), _BATCH_SIZE.value)):
    question = read[number]
    answer = {**_prediction_json(prediction), **_about(question)}
    write_json(question.answer, answer)
    _tell(prediction)
    yield question, answer


def _timelines(
  questions: Sequence[Question], engine: Engine, finder: FaceFinder | None, failed: list[str]
) -> Iterator[tuple[Question, dict[str, Any]]]:
  """Answers films one after the other."""
  for question in questions:
    bars: dict[str, tqdm.tqdm] = {}

    def progress(doing: str, done: float, of: float | None, file=question.file, bars=bars) -> None:
      if doing not in bars:
        unit = "s" if doing == "look" else "window"
        for bar in bars.values():
          bar.close()
        total = of and round(of, 1)
        bars[doing] = tqdm.tqdm(desc=f"{doing} {Path(file).name}", total=total, unit=unit, mininterval=0.5)
      bars[doing].update(round(done, 1) - bars[doing].n)

    try:
      timeline = predict_timeline(
        engine, question.file, window=_WINDOW.value or 0.0, hop=_hop(), faces=finder, batch_size=_BATCH_SIZE.value,
        progress=progress,
      )  # fmt: skip
    except MediaError as error:
      _fail(error, question, failed)
      continue
    finally:
      for bar in bars.values():
        bar.close()
    yield question, _write_timeline(question, timeline)


def _write_timeline(question: Question, timeline: Timeline) -> dict[str, Any]:
  """All forms of it; the JSON last, for that is what a second start looks for."""
  _write(question.answer.with_suffix(".csv"), to_csv(timeline.predictions))
  _write(question.answer.with_suffix(".srt"), to_srt(timeline))
  draw(timeline).savefig(question.answer.with_suffix(".png"), dpi=100)
  answer = {
    "clip": timeline.clip,
    "seconds": timeline.seconds,
    "window": timeline.window,
    "hop": timeline.hop,
    "windows": [_prediction_json(one) for one in timeline.predictions],
    **_about(question),
  }
  write_json(question.answer, answer)
  print(
    f"{timeline.clip}: {len(timeline.predictions)} windows in {question.answer} and beside it, .csv .srt .png"
  )
  return answer


def _prediction_json(prediction: Prediction) -> dict[str, Any]:
  return dataclasses.asdict(prediction) | {
    "seconds": prediction.seconds,
    "warnings": list(prediction.warnings),
  }


def _about(question: Question) -> dict[str, Any]:
  return {
    "faces": question.key["faces"],
    "model": {
      "path": question.key["model"],
      "precision": question.key["precision"],
      **question.key["origin"],
    },
    "version": question.key["version"],
    "asked": question.key,
  }


def _write_table(path: Path, answers: Sequence[dict[str, Any]]) -> None:
  """One line for each clip, or for each window of each."""
  fields = {field.name for field in dataclasses.fields(Prediction)}
  flat = [one for answer in answers for one in answer.get("windows", [answer])]
  rows = [Prediction(**{key: value for key, value in one.items() if key in fields}) for one in flat]
  partial = path.with_name(path.name + ".partial")
  _write(partial, to_csv(rows))
  partial.replace(path)


def _write(path: Path, text: str) -> None:
  path.write_text(text, encoding="utf-8", errors="backslashreplace")  # names of files may be no text


def _fail(error: MediaError, question: Question, failed: list[str]) -> None:
  failed.append(question.file)
  tqdm.tqdm.write(f"error: {error}", file=sys.stderr)


def _tell(prediction: Prediction) -> None:
  ranked = sorted(prediction.probabilities.items(), key=lambda item: -item[1])[:3]
  tqdm.tqdm.write(f"{prediction.clip}: " + ", ".join(f"{label} {100 * p:.1f} %" for label, p in ranked))
  for warning in prediction.warnings:
    tqdm.tqdm.write(f"  warning: {warning}")


if __name__ == "__main__":
  cli.run(main, takes_files=True)
