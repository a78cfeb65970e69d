"""Video files -> the probabilities of each emotion, for a whole clip or over time.

  python -m mma_dfer_jax.predict --model=runs/demo/run --out=answers clip.mp4 clips/*.mov
  python -m mma_dfer_jax.predict --model=runs/demo/run --out=answers --window=4 --hop=1 film.mp4

Picture and sound become exactly what the model was trained on: if faces were cut out of its training clips, they are
cut out here in the same way. Writes one JSON file for each clip, and answers.csv for all; with --window also .csv, .srt
and .png for each. Clips that were answered by the same model in the same way are not computed again.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import hashlib
import json
import os
from pathlib import Path
import sys
from typing import Any

from absl import flags
import tqdm

from mma_dfer_jax import cli
from mma_dfer_jax.checkpoints import VERSION, write_json
from mma_dfer_jax.data import film
from mma_dfer_jax.data.faces import FACES, MODEL_SHA256, FaceFinder, finder_of
from mma_dfer_jax.data.media import MediaError
from mma_dfer_jax.errors import UserError, listed
from mma_dfer_jax.prediction import (
  Prediction,
  Timeline,
  clip_sample,
  described,
  predict_samples,
  predict_timeline,
)
from mma_dfer_jax.sharding import start_jax
from mma_dfer_jax.timeline import draw, to_csv, to_srt
from mma_dfer_jax.trained_model import TrainedModel, load_model

_MODEL = flags.DEFINE_string(
  "model", None, "Workdir of a run, or a folder that `convert` wrote.", required=True
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
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 1, "Clips or windows computed at once.", lower_bound=1)

TABLE = "answers.csv"
LONGEST_NAME = 255  # bytes, in all usual file systems


@dataclasses.dataclass(frozen=True)
class Job:
  """One file, and where its answer goes."""

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
  start_jax()
  model = load_model(_MODEL.value)
  finder = finder_of(model.recipe, Path(_FACE_MODEL.value) if _FACE_MODEL.value else None, _FACES.value)
  out = Path(_OUT.value)
  out.mkdir(parents=True, exist_ok=True)
  print(f"faces: {described(finder)}; classes: {', '.join(model.classes)}", file=sys.stderr)
  jobs = [_job(file, out, _key(model, finder)) for file in files]
  answers = {job.file: answer for job in jobs if (answer := job.answered())}
  if answers:
    print(
      f"{len(answers)} of {len(jobs)} clips were answered before and are left as they are", file=sys.stderr
    )
  waiting = [job for job in jobs if job.file not in answers]
  for job in waiting:
    job.forget()
  failed: list[str] = []
  new = (
    _timelines(waiting, model, finder, failed) if _WINDOW.value else _clips(waiting, model, finder, failed)
  )
  for job, answer in new:
    answers[job.file] = answer
  _write_table(out / TABLE, [answers[job.file] for job in jobs if job.file in answers])
  if failed:
    print(f"{len(failed)} of {len(jobs)} clips could not be read", file=sys.stderr)
  return 1 if failed else 0


def _check(files: Sequence[str]) -> None:
  """Raises UserError with all that is wrong with the command line."""
  problems = []
  if not files:
    problems.append("name at least one video file")
  stems = [Path(file).stem for file in files]
  for stem in sorted({stem for stem in stems if stems.count(stem) > 1}):
    same = ", ".join(file for file in files if Path(file).stem == stem)
    problems.append(f"{same} would all be answered in {stem}.json; ask for them with different --out")
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
    raise listed("this cannot be answered", problems)


def _hop() -> float:
  return (_WINDOW.value or 0.0) / 4 if _HOP.value is None else _HOP.value


def _key(model: TrainedModel, finder: FaceFinder | None) -> dict[str, Any]:
  """What all answers of this command depend on."""
  folder = Path(_MODEL.value)
  about = next(
    path for name in ("run.json", "conversion.json", "model.json") if (path := folder / name).exists()
  )
  return {
    "model": os.path.abspath(folder),
    "model_sha256": hashlib.sha256(about.read_bytes()).hexdigest(),
    "origin": model.origin,
    "version": VERSION,
    "faces": described(finder),
    "face_model_sha256": _face_model_sha256() if finder else None,
    "window": _WINDOW.value,
    "hop": _hop() or None,
  }


def _face_model_sha256() -> str:
  return (
    hashlib.sha256(Path(_FACE_MODEL.value).read_bytes()).hexdigest() if _FACE_MODEL.value else MODEL_SHA256
  )


def _job(file: str, out: Path, common: dict[str, Any]) -> Job:
  try:
    status = os.stat(file)
    stamp = [status.st_size, status.st_mtime_ns]
  except (OSError, ValueError):
    stamp = []  # reading it will say what is wrong
  key = {"file": os.path.abspath(file), "stamp": stamp, **common}
  return Job(file, out / f"{Path(file).stem}.json", key)


def _clips(
  jobs: Sequence[Job], model: TrainedModel, finder: FaceFinder | None, failed: list[str]
) -> Iterator[tuple[Job, dict[str, Any]]]:
  """Answers all clips, in batches; those that cannot be read are told and added to `failed`."""
  read: list[Job] = []

  def samples():
    for job in tqdm.tqdm(jobs, "predict", unit="clip", disable=len(jobs) < 2):
      try:
        sample = clip_sample(model, job.file, finder)
      except MediaError as error:
        _fail(error, job, failed)
        continue
      read.append(job)
      yield sample

  for number, (_, prediction) in enumerate(predict_samples(model, samples(), _BATCH_SIZE.value)):
    job = read[number]
    answer = {**_prediction_json(prediction), **_about(job)}
    write_json(job.answer, answer)
    _tell(prediction)
    yield job, answer


def _timelines(
  jobs: Sequence[Job], model: TrainedModel, finder: FaceFinder | None, failed: list[str]
) -> Iterator[tuple[Job, dict[str, Any]]]:
  """Answers films one after the other."""
  for job in jobs:
    bars: dict[str, tqdm.tqdm] = {}

    def progress(doing: str, done: float, of: float | None, file=job.file, bars=bars) -> None:
      if doing not in bars:
        unit = "s" if doing == "look" else "window"
        for bar in bars.values():
          bar.close()
        total = of and round(of, 1)
        bars[doing] = tqdm.tqdm(desc=f"{doing} {Path(file).name}", total=total, unit=unit, mininterval=0.5)
      bars[doing].update(round(done, 1) - bars[doing].n)

    try:
      timeline = predict_timeline(
        model, job.file, window=_WINDOW.value or 0.0, hop=_hop(), faces=finder, batch_size=_BATCH_SIZE.value,
        progress=progress,
      )  # fmt: skip
    except MediaError as error:
      _fail(error, job, failed)
      continue
    finally:
      for bar in bars.values():
        bar.close()
    yield job, _write_timeline(job, timeline)


def _write_timeline(job: Job, timeline: Timeline) -> dict[str, Any]:
  """All forms of it; the JSON last, for that is what a second start looks for."""
  _write(job.answer.with_suffix(".csv"), to_csv(timeline.predictions))
  _write(job.answer.with_suffix(".srt"), to_srt(timeline))
  draw(timeline).savefig(job.answer.with_suffix(".png"), dpi=100)
  answer = {
    "clip": timeline.clip,
    "seconds": timeline.seconds,
    "window": timeline.window,
    "hop": timeline.hop,
    "windows": [_prediction_json(one) for one in timeline.predictions],
    **_about(job),
  }
  write_json(job.answer, answer)
  print(f"{timeline.clip}: {len(timeline.predictions)} windows in {job.answer} and beside it, .csv .srt .png")
  return answer


def _prediction_json(prediction: Prediction) -> dict[str, Any]:
  return dataclasses.asdict(prediction) | {
    "seconds": prediction.seconds,
    "warnings": list(prediction.warnings),
  }


def _about(job: Job) -> dict[str, Any]:
  return {
    "faces": job.key["faces"],
    "model": {"folder": job.key["model"], **job.key["origin"]},
    "version": VERSION,
    "asked": job.key,
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


def _fail(error: MediaError, job: Job, failed: list[str]) -> None:
  failed.append(job.file)
  tqdm.tqdm.write(f"error: {error}", file=sys.stderr)


def _tell(prediction: Prediction) -> None:
  ranked = sorted(prediction.probabilities.items(), key=lambda item: -item[1])[:3]
  tqdm.tqdm.write(f"{prediction.clip}: " + ", ".join(f"{label} {100 * p:.1f} %" for label, p in ranked))
  for warning in prediction.warnings:
    tqdm.tqdm.write(f"  warning: {warning}")


if __name__ == "__main__":
  cli.run(main, takes_files=True)
