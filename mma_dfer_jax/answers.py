"""Answers as files: one JSON for each video, a table of all. What was answered before is skipped."""

from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import functools
import importlib.metadata
import json
import os
from pathlib import Path
import sys
from typing import Any

from mma_dfer_jax.data import film
from mma_dfer_jax.data.faces import MODEL_SHA256, FaceFinder
from mma_dfer_jax.data.media import MediaError
from mma_dfer_jax.disk import sha256_of, write_json
from mma_dfer_jax.engines.engine import Engine
from mma_dfer_jax.errors import UserError, listed
from mma_dfer_jax.prediction import Prediction, clip_sample, described, predict_samples, predict_timeline
from mma_dfer_jax.progress import Progress, say
from mma_dfer_jax.timeline import draw, to_csv, to_srt

TABLE = "answers.csv"
LONGEST_NAME = 255  # bytes, in all usual file systems
Json = dict[str, Any]


def check(files: Sequence[str], window: float | None, hop: float | None) -> None:
  """Raises UserError with all that is wrong with a command line."""
  problems = [] if files else ["name at least one video file"]
  stems = [Path(file).stem for file in files]
  for stem in sorted({stem for stem in stems if stems.count(stem) > 1}):
    same = ", ".join(file for file in files if Path(file).stem == stem)
    problems.append(f"{same} would all be answered in {stem}.json; give each its own --out")
  problems += [f"{stem}.json would be too long a name for an answer; rename the video"
               for stem in stems if len(os.fsencode(f"{stem}.json.partial")) > LONGEST_NAME]  # fmt: skip
  if window is None:
    problems += ["--hop needs --window"] * (hop is not None)
  else:
    if Path(TABLE).stem in stems:
      problems.append(
        f"{TABLE}, the table of all clips, would be written over; rename the video of that name"
      )
    try:
      film.check_windows(window, hop or 0.0)
    except UserError as error:
      problems.append(str(error))
  if problems:
    raise listed("the command line has problems", problems)


@dataclasses.dataclass(frozen=True)
class Question:
  """A video that is asked about."""

  file: str
  path: Path  # of the answer
  asked: Json  # what the answer depends on

  def there(self) -> Json | None:
    """What an earlier command has written to the path, whatever it was asked."""
    try:
      answer = json.loads(self.path.read_text())
    except (OSError, ValueError):
      return None
    whole = isinstance(answer, dict) and isinstance(answer.get("asked"), dict) and "clip" in answer
    return answer if whole else None

  def remove_other(self) -> None:
    """Removes the answer to another question; prints a note if it is about another video."""
    if (there := self.there()) is None:
      return
    if there["asked"].get("file") != self.asked["file"]:
      print(f"{self.path}: was about {there['clip']}, and is replaced", file=sys.stderr)
    for suffix in (".csv", ".srt", ".png", ".json"):
      self.path.with_suffix(suffix).unlink(missing_ok=True)

  def write(self, facts: Json) -> Json:
    """Writes the answer: facts about the video, and what it was asked of."""
    asked = self.asked
    model = {"path": asked["model"], "precision": asked["precision"], **asked["origin"]}
    answer = {**facts, "faces": asked["faces"], "model": model, "version": asked["version"], "asked": asked}
    write_json(self.path, answer)
    return answer


@dataclasses.dataclass(frozen=True)
class Answers:
  """A folder of answers of one model."""

  out: Path
  model: str
  engine: Engine
  finder: FaceFinder | None
  face_model: Path | None
  window: float | None  # seconds; None: videos are answered as a whole
  hop: float | None
  batch_size: int

  def answer(self, files: Sequence[str]) -> int:
    """Answers videos and writes the table of all; 1 if some cannot be read, which are reported, else 0."""
    about = self.engine.about
    self.out.mkdir(parents=True, exist_ok=True)
    print(f"faces: {described(self.finder)}; classes: {', '.join(about.classes)}; precision: {about.precision}",
          file=sys.stderr)  # fmt: skip
    questions = list(self._questions(files))
    found = [(one, one.there()) for one in questions]
    answers = {one.file: there for one, there in found if there and there["asked"] == one.asked}
    if answers:
      print(f"{len(answers)} of {len(files)} clips were answered before and are skipped", file=sys.stderr)
    waiting = [one for one in questions if one.file not in answers]
    for one in waiting:
      one.remove_other()
    answers.update(self._films(waiting) if self.window else self._clips(waiting))
    self._write_table([answers[file] for file in files if file in answers])
    if failed := len(files) - len(answers):
      print(f"{failed} of {len(files)} clips could not be read", file=sys.stderr)
    return 1 if failed else 0

  def _questions(self, files: Sequence[str]) -> Iterator[Question]:
    detector = sha256_of(self.face_model) if self.finder and self.face_model else MODEL_SHA256
    asked = {
      "model": os.path.abspath(self.model),
      "model_fingerprint": self.engine.about.fingerprint,
      "origin": self.engine.about.origin,
      "precision": self.engine.about.precision,
      "version": importlib.metadata.version("mma_dfer_jax"),
      "faces": described(self.finder),
      "face_model_sha256": detector if self.finder else None,
      "window": self.window,
      "hop": self.hop,
    }
    for file in files:
      try:
        status = os.stat(file)
        stamp = [status.st_size, status.st_mtime_ns]
      except (OSError, ValueError):
        stamp = []  # reading it will say what is wrong
      about_file = {"file": os.path.abspath(file), "stamp": stamp}
      yield Question(file, self.out / f"{Path(file).stem}.json", about_file | asked)

  def _clips(self, questions: Sequence[Question]) -> Iterator[tuple[str, Json]]:
    """(file, answer) of each video that can be read, as a whole."""
    read: list[Question] = []

    def samples():
      with Progress("predict", len(questions), show=len(questions) > 1) as bar:
        for question in questions:
          try:
            sample = clip_sample(self.engine.about.inputs, question.file, self.finder)
            read.append(question)
            yield sample
          except MediaError as error:
            say(f"error: {error}", sys.stderr)
          bar.update()

    for number, (_, prediction) in enumerate(predict_samples(self.engine, samples(), self.batch_size)):
      yield read[number].file, read[number].write(_facts(prediction))
      ranked = sorted(prediction.probabilities.items(), key=lambda item: -item[1])[:3]
      say(f"{prediction.clip}: {', '.join(f'{label} {100 * p:.1f} %' for label, p in ranked)}")
      for warning in prediction.warnings:
        say(f"  warning: {warning}")

  def _films(self, questions: Sequence[Question]) -> Iterator[tuple[str, Json]]:
    """(file, answer) of each video that can be read, over time."""
    sizes: Json = {"window": self.window, "hop": self.hop}
    how: Json = {**sizes, "faces": self.finder, "batch_size": self.batch_size}
    for question in questions:
      with contextlib.ExitStack() as bars:
        progress = functools.partial(_show, {}, bars, Path(question.file).name)
        try:
          timeline = predict_timeline(self.engine, question.file, **how, progress=progress)
        except MediaError as error:
          say(f"error: {error}", sys.stderr)
          continue
      _write(question.path.with_suffix(".csv"), to_csv(timeline.predictions))
      _write(question.path.with_suffix(".srt"), to_srt(timeline))
      draw(timeline).savefig(question.path.with_suffix(".png"), dpi=100)
      windows = [_facts(one) for one in timeline.predictions]
      facts = {"clip": timeline.clip, "seconds": timeline.seconds, **sizes, "windows": windows}
      answer = question.write(facts)  # last, for a later command looks for it
      print(f"{timeline.clip}: {len(windows)} windows in {question.path} and beside it, .csv .srt .png")
      yield question.file, answer

  def _write_table(self, answers: Sequence[Json]) -> None:
    """One line for each clip, or for each window of each."""
    rows = []
    for one in (one for answer in answers for one in answer.get("windows", [answer])):
      facts = {field.name: one[field.name] for field in dataclasses.fields(Prediction)}
      rows.append(Prediction(**facts | {"warnings": tuple(one["warnings"])}))
    partial = self.out / f"{TABLE}.partial"
    _write(partial, to_csv(rows))
    partial.replace(self.out / TABLE)


def _show(
  shown: dict[str, Progress], bars: contextlib.ExitStack, name: str,
  doing: str, done: int | float, of: int | float | None,
) -> None:  # fmt: skip
  """Shows the progress of `predict_timeline`, in a bar for each thing that it does."""
  if doing not in shown:
    bars.close()
    unit, total = "second" if doing == "look" else "window", round(of) if of else None
    shown[doing] = bars.enter_context(Progress(f"{doing} {name}", total, unit=unit))
  shown[doing].update(int(done) - shown[doing].n)


def _facts(prediction: Prediction) -> Json:
  facts = dataclasses.asdict(prediction)
  return facts | {"seconds": prediction.seconds, "warnings": list(prediction.warnings)}


def _write(path: Path, text: str) -> None:
  path.write_text(text, encoding="utf-8", errors="backslashreplace")  # names of files may be no text
