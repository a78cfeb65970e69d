"""Answers as files: one JSON for each video, a table of all. What was answered before is skipped."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import glob
import importlib.util
import io
import itertools
import json
import os
from pathlib import Path
import sys
from typing import Any

from mma_dfer_jax import __version__
from mma_dfer_jax.data import film, media
from mma_dfer_jax.data.faces import MODEL_SHA256
from mma_dfer_jax.data.frames import encode_frame
from mma_dfer_jax.data.persons import check_person
from mma_dfer_jax.disk import new_file, sha256_of, write_json
from mma_dfer_jax.doubt import check_abstain, warnings_of_windows
from mma_dfer_jax.engines.engine import Engine
from mma_dfer_jax.errors import UserError, count, listed
from mma_dfer_jax.prediction import (
  Finder,
  Prediction,
  Presence,
  Timeline,
  clip_sample,
  described,
  predict_samples,
  predict_timeline,
)
from mma_dfer_jax.progress import Progress, say, watched
from mma_dfer_jax.timeline import draw, to_csv, to_srt

TABLE = "answers.csv"
LONGEST_NAME = 255  # bytes, in all usual file systems
Json = dict[str, Any]


def check(
  files: Sequence[str], window: float | None, hop: float | None, abstain: float = 0.0, person: str = "largest"
) -> None:
  """Raises UserError with all that is wrong with a command line."""
  problems = [] if files else ["name at least one video file"]
  stems = [Path(file).stem for file in files]
  for stem in sorted({stem for stem in stems if stems.count(stem) > 1}):
    same = ", ".join(file for file in files if Path(file).stem == stem)
    problems.append(f"{same} would all be answered in {stem}.json; give each its own --out")
  problems += [f"{stem}.json would be too long a name for an answer; rename the video"
               for stem in stems if len(os.fsencode(f"{stem}.json.partial")) > LONGEST_NAME]  # fmt: skip
  if window is not None and importlib.util.find_spec("matplotlib") is None:
    problems.append(
      "--window draws a picture with Matplotlib, which is not installed: pip install matplotlib"
    )
  if window is None:
    problems += ["--hop needs --window"] * (hop is not None)
  else:
    clash = f"{TABLE}, the table of all clips, would be written over; rename the video of that name"
    problems += [clash] * (Path(TABLE).stem in stems)
    try:
      film.check_windows(window, hop or 0.0)
    except UserError as error:
      problems.append(str(error))
  for check_value in (lambda: check_abstain(abstain), lambda: check_person(person)):
    try:
      check_value()
    except UserError as error:
      problems.append(f"--{error}")
  if problems:
    raise listed("the command line has problems", problems)


@dataclasses.dataclass(frozen=True)
class Answers:
  """A folder of answers of one model. An answer keeps all that it depends on as `asked`."""

  out: Path
  model: str
  engine: Engine
  finder: Finder
  face_model: str | None
  window: float | None  # seconds; None: videos are answered as a whole
  hop: float | None
  batch_size: int
  channel: str = "first"  # of the sound
  force: bool = False  # name a class whatever speaks against it
  abstain: float = 0.0  # least probability of a class that is named
  person: str = "largest"  # who is answered for: largest, all, or a number

  def answer(self, files: Sequence[str]) -> int:
    """Answers videos and writes the table of all; 1 if some cannot be read, which are reported, else 0."""
    about = self.engine.about
    self.out.mkdir(parents=True, exist_ok=True)
    compiles = ", which compiles it for the first clip" * (self.engine.name == "jax")
    print(f"faces: {described(self.finder)}; classes: {', '.join(about.classes)}; precision: {about.precision}; "
          f"engine: {self.engine.name}{compiles}", file=sys.stderr)  # fmt: skip
    asked = self._asked(files)
    there = {file: _read(self._path(file)) for file in files}
    answers = {file: found for file, found in there.items() if found and found["asked"] == asked[file]}
    if answers:
      print(f"{len(answers)} of {len(files)} clips were answered before and are skipped", file=sys.stderr)
    waiting = {file: asked[file] for file in files if file not in answers}
    for file in waiting:
      if found := there[file]:  # the answer to another question
        if found["asked"].get("file") != asked[file]["file"]:
          print(f"{self._path(file)}: was about {found['clip']}, and is replaced", file=sys.stderr)
        faces = self.out.glob(f"{glob.escape(Path(file).stem)}.person*.jpg")
        for old in [*faces, *map(self._path(file).with_suffix, (".csv", ".srt", ".png", ".json"))]:
          old.unlink(missing_ok=True)
    try:
      over_time = self.window or self.person != "largest"
      answers.update(self._films(waiting) if over_time else self._clips(waiting))
    finally:  # stopped, too: a later command answers the others
      ordered = [answers[file] for file in files if file in answers]
      table = [one for answer in ordered for one in answer.get("windows", [answer])]
      _write_text(self.out / TABLE, to_csv(table))
    if failed := len(files) - len(answers):
      print(f"{failed} of {len(files)} clips could not be read", file=sys.stderr)
    return 1 if failed else 0

  def _path(self, file: str) -> Path:
    return self.out / f"{Path(file).stem}.json"

  @property
  def _doubt(self) -> Json:
    return {"force": self.force, "abstain": self.abstain}

  def _asked(self, files: Sequence[str]) -> dict[str, Json]:
    """All that the answer depends on, by file."""
    about = self.engine.about
    detector = sha256_of(Path(self.face_model)) if self.finder and self.face_model else MODEL_SHA256
    of_all = {
      "model": os.path.abspath(self.model), "model_fingerprint": about.fingerprint, "origin": about.origin,
      "precision": about.precision, "version": __version__,
      "faces": described(self.finder), "face_model_sha256": detector if self.finder else None,
      "window": self.window, "hop": self.hop, "force": self.force, "abstain": self.abstain,
    }  # fmt: skip
    if self.engine.name != "jax":
      of_all["engine"] = self.engine.name
    if about.inputs.frame_choice != "number":
      of_all["frame_choice"] = about.inputs.frame_choice
    if self.channel != "first":
      of_all["sound_channel"] = self.channel
    if self.person != "largest":
      of_all["person"] = self.person
    asked = {}
    for file in files:
      stamp = []
      with contextlib.suppress(OSError, ValueError):  # reading it will say what is wrong
        status = os.stat(file)
        stamp = [status.st_size, status.st_mtime_ns]
      asked[file] = {"file": os.path.abspath(file), "stamp": stamp} | of_all
    return asked

  def _clips(self, asked: Mapping[str, Json]) -> Iterator[tuple[str, Json]]:
    """(file, answer) of each video that can be read, as a whole."""

    def samples():
      for file in watched(asked, "predict", len(asked), show=len(asked) > 1):
        try:
          yield clip_sample(self.engine.about.inputs, file, self.finder, channel=self.channel)
        except UserError as error:
          _say_error(file, error)

    rest = samples()
    while batch := list(itertools.islice(rest, self.batch_size)):
      try:
        with media.one_clip(batch[0][0]):
          predictions = [
            one for _, one in predict_samples(self.engine, batch, self.batch_size, **self._doubt)
          ]
      except UserError as error:
        for file, _ in batch:
          _say_error(file, error)
        continue
      for prediction in predictions:
        facts = dataclasses.asdict(prediction) | {"seconds": prediction.seconds}
        yield prediction.clip, self._write(prediction.clip, asked[prediction.clip], facts)
        _say_prediction(prediction)

  def _films(self, asked: Mapping[str, Json]) -> Iterator[tuple[str, Json]]:
    """(file, answer) of each video that can be read, over time or for each person."""
    how: Json = {"window": self.window, "hop": self.hop}
    for file, path in ((file, self._path(file)) for file in asked):
      try:
        with _bars(file) as show:
          timeline = predict_timeline(self.engine, file, **how, faces=self.finder, channel=self.channel, **self._doubt,
                                      batch_size=self.batch_size, person=self.person, progress=show)  # fmt: skip
        with media.one_clip(file):
          picture = _picture(timeline) if self.window else b""
      except UserError as error:
        _say_error(file, error)
        continue
      answers = [dataclasses.asdict(one) | {"seconds": one.seconds} for one in timeline.predictions]
      facts = {"clip": file, "seconds": timeline.seconds, **how, "windows": answers}
      if timeline.persons:
        facts["persons"] = [_written(one, path) for one in timeline.persons]
      warnings = [*timeline.warnings]
      if self.window:
        warnings += warnings_of_windows(self.engine.about, self.window)
        _write_text(path.with_suffix(".csv"), to_csv(answers))
        _write_text(path.with_suffix(".srt"), to_srt(timeline))
        with new_file(path.with_suffix(".png"), replace=True) as partial:
          partial.write_bytes(picture)
      if warnings:
        facts["warnings"] = warnings
        say("\n".join(f"{file}: warning: {warning}" for warning in warnings))
      answer = self._write(file, asked[file], facts)  # last, for a later command looks for it
      number = count(len(answers), "answer" if timeline.persons else "window")
      if not self.window:
        for prediction in timeline.predictions:
          _say_prediction(prediction)
      elif withheld := sum(not one.reliable for one in timeline.predictions):
        say(f"{file}: {withheld} of {number} are not reliable")
      if self.window:
        say(f"{file}: {number} in {path} and beside it, .csv .srt .png")
      yield file, answer

  def _write(self, file: str, asked: Json, facts: Json) -> Json:
    how = {"precision": asked["precision"], "engine": asked.get("engine", "jax")}
    model = {"path": asked["model"], **how, **asked["origin"]}
    answer = {**facts, "faces": asked["faces"], "model": model, "version": asked["version"], "asked": asked}
    write_json(self._path(file), answer)
    return answer


def _picture(timeline: Timeline) -> bytes:
  draw(timeline).savefig(picture := io.BytesIO(), format="png", dpi=100)
  return picture.getvalue()


def _written(one: Presence, path: Path) -> Json:
  """Facts of a person, whose face is written as a file beside the answer: as the model saw it in the middle of its windows."""
  face = path.with_name(f"{path.stem}.person{one.person}.jpg")
  with new_file(face, replace=True) as partial:
    partial.write_bytes(encode_frame(one.thumbnails[len(one.thumbnails) // 2][1]))
  return {
    "person": one.person,
    "spans": one.spans,
    "score": one.score,
    "boxes": one.boxes,
    "thumbnail": face.name,
  }


def _say_prediction(one: Prediction) -> None:
  ranked = sorted(one.probabilities.items(), key=lambda item: -item[1])[:3]
  said = ", ".join(f"{label} {100 * p:.1f} %" for label, p in ranked)
  who = f", person {one.person}" if one.person else ""
  say(f"{one.clip}{who}: {said if one.top else '– (withheld; --force names a class all the same)'}")
  for reason in one.reasons:
    say(f"  {'not reliable' if one.top else 'withheld'}: {reason}")
  for warning in one.warnings:
    say(f"  warning: {warning}")


@contextlib.contextmanager
def _bars(file: str) -> Iterator[Callable[..., None]]:
  """Shows the progress of `predict_timeline` with a file, in a bar for each thing that it does."""
  bars: dict[str, Progress] = {}

  def show(doing: str, done: int | float, of: int | float | None) -> None:
    if doing not in bars:
      open_bar.close()
      unit = "second" if doing == "look" else "window"
      bar = Progress(f"{doing} {Path(file).name}", round(of or 0) or None, unit=unit)
      bars[doing] = open_bar.enter_context(bar)
    bars[doing].update(int(done) - bars[doing].n)

  with contextlib.ExitStack() as open_bar:
    yield show


def _read(path: Path) -> Json | None:
  """What an earlier command has answered, whatever it was asked."""
  try:
    answer = json.loads(path.read_text())
  except (OSError, ValueError):
    return None
  whole = isinstance(answer, dict) and isinstance(answer.get("asked"), dict) and "clip" in answer
  return answer if whole else None


def _write_text(path: Path, text: str) -> None:
  with new_file(path, replace=True) as partial:
    partial.write_text(text, encoding="utf-8", errors="backslashreplace")  # names of files may be no text


def _say_error(file: str, error: UserError) -> None:
  words = str(error)
  say(f"error: {words if words.startswith(file) else f'{file}: {words}'}", sys.stderr)
