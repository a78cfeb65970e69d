"""Answers as files: one JSON for each video, a table of all. What was answered before is skipped."""

from collections import Counter
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
import time
from typing import Any

import numpy as np

from mma_dfer_jax import __version__
from mma_dfer_jax.cores import own_cores, working_ahead
from mma_dfer_jax.data import film, media, speech
from mma_dfer_jax.data.frames import encode_frame
from mma_dfer_jax.data.persons import check_person
from mma_dfer_jax.data.yunet import MODEL_SHA256
from mma_dfer_jax.disk import new_file, sha256_of, write_json
from mma_dfer_jax.doubt import check_abstain, warnings_of_windows
from mma_dfer_jax.engines.engine import Engine
from mma_dfer_jax.errors import UserError, count, listed
from mma_dfer_jax.explain import draw as draw_explanation
from mma_dfer_jax.explain import explain
from mma_dfer_jax.features import ENDING, WithFeatures, write_table
from mma_dfer_jax.features import TABLE as FEATURES_TABLE
from mma_dfer_jax.features import write as write_features
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
from mma_dfer_jax.summary import described as told
from mma_dfer_jax.summary import summarise
from mma_dfer_jax.timeline import draw, of_person, to_csv, to_srt

TABLE = "answers.csv"
ENDINGS = (".csv", ".srt", ".png", ENDING, ".explained.png", ".json")  # of the files of an answer
LONGEST_NAME = 255  # bytes, in all usual file systems
Json = dict[str, Any]


def check(
  names: Mapping[str, str], window: float | str | None, hop: float | None, abstain: float = 0.0, *, out: Path, explained: bool = False,
  features: bool = False, person: str = "largest",
) -> None:  # fmt: skip
  """Raises UserError with all that is wrong with a command line; `names` are those of the answers, by file."""
  problems = [] if names else ["name at least one video file"]
  for name in sorted({name for name in names.values() if [*names.values()].count(name) > 1}):
    same = ", ".join(file for file in names if names[file] == name)
    problems.append(f"{same} would all be answered in {name}.json; give each its own --out")
  ending = max(ENDINGS, key=len) if explained or features else ".json"
  problems += [f"{name}{ending} would be too long a name for an answer; rename the video"
               for name in names.values() if len(os.fsencode(f"{Path(name).name}{ending}.partial")) > LONGEST_NAME]  # fmt: skip
  if explained and window is not None:
    problems.append("--explain is about whole clips: leave out --window, or cut out the part that you mean")
  if explained and person != "largest":
    problems.append("--explain is about the largest face: leave out --person")
  flag = "--explain" if explained else "--window"
  if (explained or window is not None) and importlib.util.find_spec("matplotlib") is None:
    problems.append(f"{flag} draws a picture with Matplotlib, which is not installed: pip install matplotlib")
  if window is None:
    problems += ["--hop needs --window"] * (hop is not None)
  else:
    clash = f"{TABLE}, the table of all clips, would be written over; rename the video of that name"
    problems += [clash] * (Path(TABLE).stem in names.values())
    try:
      if isinstance(window, str):
        problems += ["--hop needs --window in seconds"] * (hop is not None)
        speech.check()
      else:
        film.check_windows(window, hop or 0.0)
    except UserError as error:
      problems.append(str(error))
  if out.exists() and not out.is_dir():
    problems.append(f"--out={out} is a file; give a folder")
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
  names: Mapping[str, str]  # of the answers, without ending, by file
  model: str
  engine: Engine
  finder: Finder
  face_model: str | None
  window: float | str | None  # seconds, or "speech"; None: videos are answered as a whole
  hop: float | None
  batch_size: int
  channel: str = "first"  # of the sound
  force: bool = False  # name a class whatever speaks against it
  abstain: float = 0.0  # least probability of a class that is named
  explain: bool = False  # each clip, in its answer and a picture
  person: str = "largest"  # who is answered for: largest, all, or a number

  def answer(self) -> int:
    """Answers videos and writes the table of all; 1 if some cannot be read, which are reported, else 0."""
    about, files = self.engine.about, list(self.names)
    for folder in {self.out, *(self._path(file).parent for file in files)}:
      folder.mkdir(parents=True, exist_ok=True)
    compiles = ", which compiles it for the first clip" * (self.engine.name == "jax")
    print(f"faces: {described(self.finder)}; classes: {', '.join(about.classes)}; precision: {about.precision}; "
          f"engine: {self.engine.name}{compiles}", file=sys.stderr)  # fmt: skip
    if not isinstance(self.engine, WithFeatures):
      (self.out / FEATURES_TABLE).unlink(missing_ok=True)  # an earlier command's, of other answers
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
        faces = self._path(file).parent.glob(f"{glob.escape(self._path(file).stem)}.person*.jpg")
        for old in [*faces, *map(self._path(file).with_suffix, ENDINGS)]:
          old.unlink(missing_ok=True)
    began, before = time.monotonic(), len(answers)
    try:
      over_time = self.window or self.person != "largest"
      answers.update(self._films(waiting) if over_time else self._clips(waiting))
    finally:  # stopped, too: a later command answers the others
      ordered = [answers[file] for file in files if file in answers]
      table = [one for answer in ordered for one in answer.get("windows", [answer])]
      _write_text(self.out / TABLE, to_csv(table))
    if (new := len(answers) - before) > 1:
      seconds = time.monotonic() - began
      print(f"{new} files in {seconds:.1f} s: {new / seconds:.2f} files/s", file=sys.stderr)
    if failed := len(files) - len(answers):
      print(f"{failed} of {len(files)} clips could not be answered", file=sys.stderr)
    return 1 if failed else 0

  def write_features(self, files: Sequence[str]) -> None:
    """The table of the features of all clips that are answered, those of earlier commands too."""
    there = [(file, self._path(file).with_suffix(ENDING)) for file in files]
    write_table(self.out / FEATURES_TABLE, [(file, npz) for file, npz in there if npz.exists()])

  def _path(self, file: str) -> Path:
    return self.out / f"{self.names[file]}.json"

  @property
  def _doubt(self) -> Json:
    return {"force": self.force, "abstain": self.abstain}

  def _asked(self, files: Sequence[str]) -> dict[str, Json]:
    """All that the answer depends on, by file."""
    about = self.engine.about
    looks = self.finder or about.inputs.points  # for boxes, or for points
    detector = sha256_of(Path(self.face_model)) if looks and self.face_model else MODEL_SHA256
    of_all = {
      "model": os.path.abspath(self.model), "model_fingerprint": about.fingerprint, "origin": about.origin,
      "precision": about.precision, "version": __version__,
      "faces": described(self.finder), "face_model_sha256": detector if looks else None,
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
    of_all |= {"explain": True} if self.explain else {}
    of_all |= {"features": True} if isinstance(self.engine, WithFeatures) else {}
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

    def decode(file: str, check: Callable[[], None]) -> tuple[str, Any]:
      try:
        return clip_sample(
          self.engine.about.inputs, file, self.finder, channel=self.channel, progress=lambda seconds: check()
        )
      except UserError as error:
        return file, error

    def samples(decoded: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, film.Sample]]:
      for file, found in watched(decoded, "predict", len(asked), show=len(asked) > 1):
        if isinstance(found, UserError):
          _say_error(file, found)
        else:
          yield file, found

    with working_ahead(decode, asked, min(own_cores(), len(asked) or 1)) as decoded:
      yield from self._of_samples(samples(decoded), asked)

  def _of_samples(
    self, rest: Iterator[tuple[str, film.Sample]], asked: Mapping[str, Json]
  ) -> Iterator[tuple[str, Json]]:
    """(file, answer) of each clip, in batches of clips from different files."""
    size = min(self.batch_size, len(asked) or 1)
    while batch := list(itertools.islice(rest, size)):
      self._kept(0)  # of what went wrong before
      try:
        with media.one_clip(batch[0][0]):
          predictions = [one for _, one in predict_samples(self.engine, batch, size, **self._doubt)]
          kept = self._kept(len(batch))
          explained = [self._explained(file, sample) for file, sample in batch]
      except UserError as error:
        for file, _ in batch:
          _say_error(file, error)
        continue
      for prediction, features, explanation in zip(predictions, kept, explained, strict=True):
        facts = dataclasses.asdict(prediction) | {"seconds": prediction.seconds} | explanation
        if features:
          write_features(self._path(prediction.clip).with_suffix(ENDING), [facts], [features])
        yield prediction.clip, self._write(prediction.clip, asked[prediction.clip], facts)
        _say_prediction(prediction)

  def _say_film(
    self, file: str, timeline: Timeline, warnings: Sequence[str], summaries: Sequence[Json]
  ) -> None:
    for warning in warnings:
      say(f"{file}: warning: {warning}")
    if not self.window:
      for prediction in timeline.predictions:
        _say_prediction(prediction)
      return
    unit = "answer" if timeline.persons else "window"
    number = count(len(timeline.predictions), unit)
    if withheld := sum(not one.reliable for one in timeline.predictions):
      say(f"{file}: not reliable: {withheld} of {number}")
      reasons = Counter(reason for one in timeline.predictions for reason in one.reasons)
      say("\n".join(f"  {count(often, unit)}: {reason}" for reason, often in reasons.most_common(3)))
    whose = [f", person {one.person}" for one in timeline.persons] or [""]
    for who, summary in zip(whose, summaries, strict=True):
      say(f"{file}{who}: {told(summary)}")
    say(f"{file}: {number} in {self._path(file)} and beside it, .csv .srt .png")

  def _kept(self, number: int) -> list[dict[str, np.ndarray]]:
    """The features of so many clips that were just answered, each empty if nobody asked for them."""
    return self.engine.taken(number) if isinstance(self.engine, WithFeatures) else [{}] * number

  def _explained(self, file: str, sample: film.Sample) -> Json:
    """What an answer says of its reasons, if that is asked; draws them, too."""
    if not self.explain:
      return {}
    engine = self.engine.engine if isinstance(self.engine, WithFeatures) else self.engine
    found = explain(engine, *sample.arrays, batch_size=self.batch_size)
    figure = draw_explanation(found, sample.video, sample.spectrogram, Path(file).name)
    _save(figure, self._path(file).with_suffix(".explained.png"))
    return {"explanation": dataclasses.asdict(found)}

  def _films(self, asked: Mapping[str, Json]) -> Iterator[tuple[str, Json]]:
    """(file, answer) of each video that can be read, over time or for each person."""
    how: Json = {"window": self.window, "hop": self.hop}
    asks: Json = (
      how
      | {
        "hop": self.hop or 0.0,
        "batch_size": self.batch_size,
        "channel": self.channel,
        "person": self.person,
      }
      | self._doubt
    )
    for file, path in ((file, self._path(file)) for file in asked):
      self._kept(0)
      try:
        with _bars(file) as show:
          timeline = predict_timeline(self.engine, file, **asks, faces=self.finder, progress=show)
        with media.one_clip(file):
          if self.window:
            _save(draw(timeline), path.with_suffix(".png"))
          kept = self._kept(len(timeline.predictions))
      except UserError as error:
        _say_error(file, error)
        continue
      windows = [dataclasses.asdict(one) | {"seconds": one.seconds} for one in timeline.predictions]
      if kept[0]:
        write_features(path.with_suffix(ENDING), windows, kept)
      facts = {"clip": file, "seconds": timeline.seconds, **how}
      warnings = [*timeline.warnings]
      summaries = []
      if self.window:
        _write_text(path.with_suffix(".csv"), to_csv(windows))
        _write_text(path.with_suffix(".srt"), to_srt(timeline))
        rows = [of_person(timeline, one) for one in timeline.persons] or [timeline]
        summaries = [summarise(row) for row in rows]
        warnings += warnings_of_windows(self.engine.about, timeline.window)
      if self.person != "largest":
        of_each = summaries or [{}] * len(timeline.persons)
        facts["persons"] = [_written(one, path, summary)
                            for one, summary in zip(timeline.persons, of_each, strict=True)]  # fmt: skip
      if summaries and not timeline.persons:
        facts["summary"] = summaries[0]
      facts["windows"] = windows
      if warnings:
        facts["warnings"] = warnings
      self._say_film(file, timeline, warnings, summaries)
      answer = self._write(file, asked[file], facts)  # last, for a later command looks for it
      yield file, answer

  def _write(self, file: str, asked: Json, facts: Json) -> Json:
    how = {"precision": asked["precision"], "engine": asked.get("engine", "jax")}
    model = {"path": asked["model"], **how, **asked["origin"]}
    answer = {**facts, "faces": asked["faces"], "model": model, "version": asked["version"], "asked": asked}
    write_json(self._path(file), answer)
    return answer


def _written(one: Presence, path: Path, summary: Json) -> Json:
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
  } | ({"summary": summary} if summary else {})


def _say_prediction(one: Prediction) -> None:
  ranked = sorted(one.probabilities.items(), key=lambda item: -item[1])[:3]
  said = ", ".join(f"{label} {100 * p:.1f} %" for label, p in ranked)
  who = f", person {one.person}" if one.person else ""
  say(f"{one.clip}{who}: {said if one.top else '– (withheld; --force names a class all the same)'}")
  if one.frame_weights:
    kept = sorted((of for of in one.frame_weights if of.weight), key=lambda of: -of.weight)
    most = ", ".join(f"{of.seconds:.2f} s ({of.weight:.2f})" for of in kept[:3])
    say(f"  frames: {len(kept)} of {len(one.frame_weights)} kept; those count most at {most}")
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


def _save(figure: Any, path: Path) -> None:
  """Writes a picture whole or not at all; an error of drawing leaves none."""
  figure.savefig(picture := io.BytesIO(), format="png", dpi=100)
  with new_file(path, replace=True) as partial:
    partial.write_bytes(picture.getvalue())


def _say_error(file: str, error: UserError) -> None:
  words = str(error)
  say(f"error: {words if words.startswith(file) else f'{file}: {words}'}", sys.stderr)
