"""Answers of a trained model for video files: the command, the functions, tables, subtitles, pictures."""

import csv
import dataclasses
import functools
import io
import itertools
import json
import os
from pathlib import Path
import re
import shutil
import subprocess
import sys
import time

from clip_files import read_record
from commands import run
from conftest import GOLDEN, ROOT
from films import LOSSY, hum, noise, write_film
import jax
import numpy as np
from PIL import Image
import pytest
from test_faces import Spots

from mma_dfer_jax import convert_checkpoint, predict_video
from mma_dfer_jax.data import faces
from mma_dfer_jax.data.film import Soundtrack
from mma_dfer_jax.data.pipeline import make_example
from mma_dfer_jax.engines import engine
from mma_dfer_jax.errors import UserError
from mma_dfer_jax.prediction import FrameWeight, Prediction, Timeline, predict_timeline
from mma_dfer_jax.timeline import draw, spans, to_csv, to_srt

CLASSES = ("happy", "sad", "neutral", "angry", "surprise", "disgust", "fear")
RATE = 16_000
load_once = functools.cache(engine.load_model)  # loaded and compiled once for all tests


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
  """A tiny model with the weights that the original wrote."""
  target = tmp_path_factory.mktemp("tiny") / "model"
  convert_checkpoint(GOLDEN / "tiny_reference_checkpoint.pth", target, classes="dfew")
  return target


@pytest.fixture(scope="module")
def model(folder):
  return load_once(str(folder), precision=None)  # as the command asks for it


@pytest.fixture
def command(folder, monkeypatch):
  """Runs command lines in a folder: (exit status, stdout, stderr)."""
  monkeypatch.setattr(engine, "load_model", load_once)
  return lambda at, *argv: run("predict", f"--model={folder}", "--faces=none", *argv, at=at)


def read(path):
  return json.loads(Path(path).read_text())


def table(path):
  return list(csv.DictReader(io.StringIO(Path(path).read_text(encoding="utf-8"))))


# Whole clips


def test_answers_of_clips(tmp_path, command, folder, model):
  write_film(tmp_path / "a.mkv", noise(50), hum(2.0))
  write_film(tmp_path / "b.mp4", noise(70, seed=1), hum(7.0), **LOSSY)
  write_film(tmp_path / "c.gif", noise(5), codec="gif", pixels="rgb8")
  status, out, err = command(tmp_path, "--out=answers", "a.mkv", "b.mp4", "c.gif")
  assert status == 0, err
  assert [line.split(":")[0] for line in out.splitlines() if line[0] != " "] == ["a.mkv", "b.mp4", "c.gif"]
  for words in ("only the first 5.1", "only 5 of 16 frames", "no sound"):
    assert words in out
  assert "faces: none" in err
  assert not set("\r\x1b") & set(out + err), "no bar in a log"
  rows = table(tmp_path / "answers/answers.csv")
  expected_rows = [("a.mkv", 2.0, 50, True), ("b.mp4", 2.8, 70, True), ("c.gif", 0.2, 5, False)]
  for row, (name, seconds, frames, sound) in zip(rows, expected_rows, strict=True):
    answer = read(tmp_path / f"answers/{Path(name).stem}.json")
    probabilities = answer["probabilities"]
    assert tuple(probabilities) == CLASSES
    assert sum(probabilities.values()) == pytest.approx(1, abs=1e-9)
    assert answer["top"] == max(probabilities, key=probabilities.get)
    assert (answer["clip"], answer["frames"], answer["sound"]) == (name, frames, sound)
    assert (answer["seconds"], answer["frames_with_face"]) == (pytest.approx(seconds, abs=0.01), None)
    assert (answer["model"]["path"], answer["model"]["precision"]) == (str(folder), "float32")
    assert answer["model"]["converted_from"]["file"] == "tiny_reference_checkpoint.pth"
    assert answer["version"]
    example = make_example(
      {"label": 0, "clip_id": b"", **read_record(tmp_path / name, tmp_path / name)}, model.about.inputs
    )
    logits = model(example["video"][None], example["spectrogram"][None])[0].astype(np.float64)
    expected = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(list(probabilities.values()), expected, atol=1e-6)
    np.testing.assert_allclose([float(row[f"p({label})"]) for label in CLASSES], expected, atol=2e-6)
    shown = [row[key] for key in ("clip", "top", "frames", "sound", "warnings")]
    assert shown == [name, answer["top"], str(frames), str(sound), "; ".join(answer["warnings"])]


def answers_of(path):
  return {file.name: read(file) for file in sorted(Path(path).glob("*.json"))}


@pytest.mark.slow
def test_a_batch_gives_the_same_numbers(tmp_path, command):
  names = [f"{i}.mkv" for i in range(5)]
  for i, name in enumerate(names):
    write_film(tmp_path / name, noise(20 + 9 * i, seed=i), hum(1.0 + i, seed=i))
  for size in (1, 3):
    assert command(tmp_path, f"--out=clips{size}", f"--batch_size={size}", *names)[0] == 0
    film = f"--out=film{size}", f"--batch_size={size}", "--window=1", "--hop=0.5"
    assert command(tmp_path, *film, "4.mkv")[0] == 0
  pairs = list(zip(*(answers_of(tmp_path / f"clips{size}").values() for size in (1, 3)), strict=True))
  pairs += zip(*(read(tmp_path / f"film{size}/4.json")["windows"] for size in (1, 3)), strict=True)
  assert len(pairs) == 5 + 4
  for one, three in pairs:
    of_one, of_three = (list(answer.pop("probabilities").values()) for answer in (one, three))
    np.testing.assert_allclose(of_one, of_three, rtol=0, atol=1e-6)
    assert one == three
  assert len({tuple(row.values()) for row in table(tmp_path / "clips1/answers.csv")}) == 5


@pytest.mark.slow
def test_answers_are_kept_until_something_changes(tmp_path, command):
  for i in range(2):
    write_film(tmp_path / f"{i}.mkv", noise(20, seed=i), hum(1.0))

  def changed(*argv):
    """The answers that a command computed anew; it says how many it did not."""
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.json")}
    status, _, err = command(tmp_path, "--out=out", *argv, "0.mkv", "1.mkv")
    assert status == 0, err
    assert len(table(tmp_path / "out/answers.csv")) >= 2
    there = (tmp_path / "out").glob("*.json")
    anew = [path.stem for path in there if before.get(path) != path.stat().st_mtime_ns]
    kept = re.search(r"(\d) of 2 clips were answered before", err)
    assert len(anew) == 2 - int(kept[1] if kept else 0)
    return sorted(anew)

  assert changed() == ["0", "1"]
  assert changed("--batch_size=2") == []  # the numbers do not depend on it
  assert changed("--precision=bfloat16") == ["0", "1"]
  assert read(tmp_path / "out/0.json")["model"]["precision"] == "bfloat16"
  assert changed() == ["0", "1"]
  write_film(tmp_path / "1.mkv", noise(20, seed=5), hum(1.0))
  assert changed() == ["1"]
  os.utime(tmp_path / "0.mkv", ns=(1, 1))
  assert changed() == ["0"]
  for flags in (["--window=0.5"], ["--window=0.5", "--hop=0.5"]):
    assert changed(*flags) == ["0", "1"]
    assert changed(*flags) == []
  (tmp_path / "out/0.json").write_text("{}")
  (tmp_path / "out/1.json").write_bytes(b"\xff[")
  assert changed(*flags) == ["0", "1"]
  answer = read(tmp_path / "out/0.json")
  for key in ("version", "model_fingerprint", "precision", "faces"):  # as if it had been another
    other = answer | {"asked": answer["asked"] | {key: "another"}}
    (tmp_path / "out/0.json").write_text(json.dumps(other))
    assert changed(*flags) == ["0"]


def test_old_answers_do_not_stay_beside_new_ones(tmp_path, command):
  """A film answered over time, then as a whole; then another takes its name; then that is damaged."""
  (tmp_path / "other").mkdir()
  write_film(tmp_path / "a.mkv", noise(20), hum(0.8))
  write_film(tmp_path / "other" / "a.mkv", noise(20), hum(0.8))

  def files(*arguments, status=0):
    found, _, err = command(tmp_path, "--out=out", *arguments)
    assert found == status, err
    return sorted(path.name for path in (tmp_path / "out").iterdir()), err

  assert files("a.mkv", "--window=0.5")[0] == ["a.csv", "a.json", "a.png", "a.srt", "answers.csv"]
  assert files("a.mkv")[0] == ["a.json", "answers.csv"]
  assert "is replaced" in files("other/a.mkv")[1]
  (tmp_path / "other" / "a.mkv").write_bytes(b"broken")
  assert files("other/a.mkv", status=1)[0] == ["answers.csv"]


@pytest.mark.slow
def test_killed_and_started_again_it_resumes(tmp_path, folder, command):
  """The real command is killed."""
  names = [f"{i}.mkv" for i in range(20)]
  write_film(tmp_path / "0.mkv", noise(75), hum(3.0))
  for name in names[1:]:
    shutil.copy(tmp_path / "0.mkv", tmp_path / name)
  argv = [
    sys.executable,
    "-m",
    "mma_dfer_jax.predict",
    f"--model={folder}",
    "--faces=none",
    "--out=out",
    *names,
  ]
  with subprocess.Popen(argv, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}) as process:
    until = time.monotonic() + 120
    while len(list(tmp_path.glob("out/*.json"))) < 3 and process.poll() is None and time.monotonic() < until:
      time.sleep(0.005)
    process.kill()
  before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/*.json")}
  assert 3 <= len(before) < 20
  status, _, err = command(tmp_path, "--out=out", *names)
  assert status == 0, err
  assert f"{len(before)} of 20 clips were answered before" in err
  assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())
  assert [row["clip"] for row in table(tmp_path / "out/answers.csv")] == names
  assert len(list((tmp_path / "out").iterdir())) == 21


def test_unreadable_files_are_reported_and_stop_nothing(tmp_path, command):
  good = write_film(tmp_path / "good.mp4", noise(50), hum(2.0), **LOSSY).read_bytes()
  write_film(tmp_path / "last.mkv", noise(50), hum(2.0))
  (tmp_path / "cut.mp4").write_bytes(good[: len(good) // 2])
  (tmp_path / "empty.mp4").touch()
  (tmp_path / "text.mp4").write_text("hello\n" * 40)
  (tmp_path / "folder.mp4").mkdir()
  os.mkfifo(tmp_path / "pipe")
  write_film(tmp_path / "sound.m4a", [], hum(1.0), sound_codec="aac")
  bad = {
    "cut.mp4": "is cut short: its box mdat ends",
    "empty.mp4": "is empty",
    "text.mp4": "is not supported: it is no video or sound",
    "folder.mp4": "is a folder",
    "pipe": "is a device or a pipe",
    "/dev/zero": "is a device or a pipe",
    "sound.m4a": "holds no video stream",
    "missing.mp4": "No such file",
    "https://example.com/a.mp4": "is an address",
  }
  for flags in ([], ["--window=1"]):
    status, _, err = command(tmp_path, "--out=out", *flags, "good.mp4", *bad, "last.mkv")
    assert status == 1
    assert "9 of 11 clips could not be answered" in err
    for name, reason in bad.items():
      assert re.search(f"^error: {name}: {reason}", err, re.MULTILINE), err
    assert {row["clip"] for row in table(tmp_path / "out/answers.csv")} == {"good.mp4", "last.mkv"}
    assert sorted(answers_of(tmp_path / "out")) == ["good.json", "last.json"]
  status, _, err = command(tmp_path, "--out=none", "empty.mp4")
  assert (status, table(tmp_path / "none/answers.csv")) == (1, [])


@pytest.mark.filterwarnings("ignore:Glyph")  # the font has no Chinese
def test_odd_names_of_files(tmp_path, command):
  written = write_film(tmp_path / "written.mkv", noise(20), hum(0.8)).read_bytes()
  names = ["with space ü é 表情.mkv", "new\nline.mkv", 'comma,"quote".mkv', "$a$b$.mkv"]
  names.append(os.fsdecode(b"latin\xff.mkv"))
  for name in names:
    (tmp_path / name).write_bytes(written)
  for flags in ([], ["--window=0.5"]):
    assert command(tmp_path, "--out=out", *flags, *names)[0] == 0
    expected = [name.encode(errors="backslashreplace").decode() for name in names]
    assert list(dict.fromkeys(row["clip"] for row in table(tmp_path / "out/answers.csv"))) == expected
    assert all(read(tmp_path / f"out/{Path(name).stem}.json")["clip"] == name for name in names)


@pytest.mark.parametrize(
  ("argv", "status", "says"),
  [
    ([], 1, "name at least one video"),
    (["a.mkv", "there/a.mp4", "--hop=1"], 1, r"(?s)answered in a\.json.*--hop needs --window"),
    (["x" * 251 + ".mkv"], 1, "too long a name"),
    *(
      (["a.mkv", f"--window={value}"], 1, "choose a window of at least")
      for value in ("0", "-1", "nan", "inf")
    ),
    *((["a.mkv", "--window=1", f"--hop={value}"], 1, "a hop between") for value in ("2", "0", "nan")),
    (["answers.mkv", "--window=1"], 1, "answers.csv, the table of all clips, would be written over"),
    (["a.mkv", "--abstain=1.5"], 1, "--abstain=1.5: give a probability from 0 to 1"),
    (["a.mkv", "--batch_size=0"], 2, "not a positive integer"),
    (["a.mkv", "--faces=foo"], 2, r"auto\|yunet\|none"),
    (["a.mkv", "--faces=yunet", "--face_model=nowhere.onnx"], 1, r"nowhere\.onnx cannot be read"),
    (["a.mkv", "--out=a.mkv/out"], 1, "a.mkv"),
    *(
      (["a.mkv", f"--person={value}"], 1, f"--person={value}: choose largest, all")
      for value in ("0", "-1", "two")
    ),
    (["a.mkv", "--person=2"], 1, "--person=2: the pictures are taken as they are"),
    (
      ["--camera=٣", "--hop=0", "--abstain=2", "--seconds=nan"],
      1,
      "(?s)--out is for files.*--camera=٣: give.*--seconds=nan.*--abstain=2: give.*hop=0 seconds: choose",
    ),
    (["-", "a.mkv"], 1, "a.mkv: a camera, pipe or address is answered alone"),
    (["a.mkv", "--seconds=1"], 1, "--seconds needs --camera"),
    (["a.mkv", "--out=/dev/full"], 1, "/dev/full is a file; give a folder"),
    (["a.mkv", "--precision=int8"], 1, "precision='int8': choose one of float32, bfloat16"),
    (["a.mkv", "--model=nowhere"], 1, "nowhere does not exist; a model is"),
  ],
)
def test_wrong_command_lines(tmp_path, command, argv, status, says):
  (tmp_path / "a.mkv").touch()
  found, _, err = command(tmp_path, "--out=out", *argv)
  assert found == status
  assert re.search("^error: ", err, re.M), err
  assert re.search(says, err), err
  assert not (tmp_path / "out").exists()


# Films


def test_every_window_is_answered_as_a_clip(tmp_path, model):
  pictures, sound = noise(110), hum(4.4)
  film = write_film(tmp_path / "film.mkv", pictures, sound)
  predictions = predict_timeline(model, film, window=2.0, hop=0.8, faces="none").predictions
  times = [(round(one.start, 6), round(one.end, 6)) for one in predictions]
  assert times == [(0.0, 2.0), (0.8, 2.8), (1.6, 3.6), (2.4, 4.4)]
  for one, (start, end) in zip(predictions, times, strict=True):
    part = pictures[round(start * 25) : round(end * 25)], sound[round(start * RATE) : round(end * RATE)]
    alone = predict_video(model, write_film(tmp_path / "clip.mkv", *part), faces="none")
    assert one == dataclasses.replace(alone, clip=one.clip, start=one.start, end=one.end)
  assert len({one.probabilities["happy"] for one in predictions}) == 4


def test_files_of_a_film(tmp_path, command):
  loud, silent = hum(3.0), np.zeros(2 * RATE, np.int16)
  write_film(tmp_path / "film.mkv", noise(180), np.concatenate([loud, silent]))
  assert command(tmp_path, "--out=out", "--window=2", "film.mkv")[0] == 0
  answer = read(tmp_path / "out/film.json")
  assert (answer["seconds"], answer["window"], answer["hop"]) == (pytest.approx(7.2), 2.0, 0.5)
  rows = table(tmp_path / "out/film.csv")
  assert rows == table(tmp_path / "out/answers.csv")
  assert len(rows) == len(answer["windows"]) == 12
  assert [float(row["start"]) for row in rows] == [0.5 * k for k in range(12)]
  assert rows[-1]["end"] == "7.200"
  assert [row["sound"] for row in rows] == ["True"] * 10 + ["False"] * 2
  assert [row["silent"] for row in rows] == ["False"] * 6 + ["True"] * 4 + ["False"] * 2
  check_srt(tmp_path / "out/film.srt", 12, 7.2)
  blocks = (tmp_path / "out/film.srt").read_text().split("\n\n")
  assert ["silent" in block for block in blocks] == [row["silent"] == "True" for row in rows]
  assert ["no sound" in block for block in blocks] == [row["sound"] == "False" for row in rows]
  with Image.open(tmp_path / "out/film.png") as picture:
    assert picture.size == (1200, 560)
    assert len(np.unique(np.asarray(picture).reshape(-1, picture.mode.count("A") + 3), axis=0)) > 50


def check_srt(path, number, seconds):
  """Numbered blocks, each from where the last ended, from 0 to the end."""
  blocks = Path(path).read_text(encoding="utf-8").strip().split("\n\n")
  at = 0
  for i, block in enumerate(blocks, 1):
    index, times, words = block.split("\n")
    assert re.fullmatch(r"\d\d:\d\d:\d\d,\d{3} --> \d\d:\d\d:\d\d,\d{3}", times)
    numbers = list(map(int, re.findall(r"\d+", times)))
    start, end = (int(np.dot(half, (3_600_000, 60_000, 1000, 1))) for half in (numbers[:4], numbers[4:]))
    assert (index, start) == (str(i), at)
    assert at < end
    assert " %" in words or words.startswith("–")
    at = end
  assert (len(blocks), at) == (number, round(1000 * seconds))


def imagined(classes, starts, ends, **changes):
  """A timeline that nobody computed."""
  rng = np.random.default_rng(0)
  shares = rng.dirichlet(np.ones(len(classes)), len(starts))
  predictions = tuple(
    Prediction(
      "folder/film.mkv", start, end, classes[int(row.argmax())], dict(zip(classes, row.tolist(), strict=True)),
      50, 0 if i == 1 else 40, 1, i != 2, i == 3, 2.0 if i != 2 else 0.0, 16_000, ("one, two", "three") if i else (),
    )
    for i, (start, end, row) in enumerate(zip(starts, ends, shares, strict=True))
  )  # fmt: skip
  timeline = Timeline("folder/film.mkv", ends[-1], ends[0], 1.0, predictions, None, ())
  return dataclasses.replace(timeline, **changes)


ODD = ["happy, or not", 'the "best"', "müde", "高兴", "_hidden", "$a$ and $b$", "a\\frac{"]


@pytest.mark.filterwarnings("ignore:Glyph")  # the font has no Chinese
def test_class_names_of_all_kinds_survive(tmp_path):
  timeline = imagined(ODD, [0.0, 1.0, 2.0, 3.0], [2.0, 3.0, 4.0, 4.5])
  rows = list(csv.DictReader(io.StringIO(to_csv(list(map(dataclasses.asdict, timeline.predictions))))))
  assert list(rows[0]) == ["clip", "start", "end", "top", "reliable", *(f"p({name})" for name in ODD), "frames",
                           "frames_with_face", "sound", "silent", "seconds_of_sound", "sample_rate", "reasons", "warnings"]  # fmt: skip
  for row, one in zip(rows, timeline.predictions, strict=True):
    assert row["top"] == one.top
    assert sum(float(row[f"p({name})"]) for name in ODD) == pytest.approx(1, abs=1e-5)
  assert rows[1]["warnings"] == "one, two; three"
  (tmp_path / "a.srt").write_text(to_srt(timeline), encoding="utf-8")
  check_srt(tmp_path / "a.srt", 4, 4.5)
  assert [re.findall("no face|no sound|silent", block) for block in to_srt(timeline).split("\n\n")] == [
    [], ["no face"], ["no sound"], ["silent"]
  ]  # fmt: skip
  figure = draw(timeline)
  figure.savefig(tmp_path / "a.png")
  legend = figure.axes[1].get_legend()
  assert [text.get_text() for text in legend.get_texts()] == ODD[::-1]


def test_at_any_moment_the_window_with_the_nearest_middle_speaks():
  timeline = imagined(CLASSES, [0.0, 1.0, 2.0, 3.0], [2.0, 3.0, 4.0, 4.5])
  assert spans(timeline) == [(0.0, 1.5), (1.5, 2.5), (2.5, 3.375), (3.375, 4.5)]


def test_the_picture_shows_weights_of_frames_of_the_window_that_speaks():
  timeline = imagined(CLASSES, [0.0, 1.0], [2.0, 3.0])
  weights = 0.0, 0.5, 1.25, 1.25
  predictions = tuple(
    dataclasses.replace(one, frame_weights=tuple(
      FrameWeight(one.start + 0.25 + 0.5 * k, weight) for k, weight in enumerate(weights)
    ))
    for one in timeline.predictions
  )  # fmt: skip
  axes = draw(dataclasses.replace(timeline, predictions=predictions)).axes[2]
  bars = [(bar[0][0], bar[1][1]) for bar in axes.collections[0].get_segments()]
  assert bars == [(0.75, 0.5), (1.25, 1.25), (1.75, 0.5), (2.25, 1.25), (2.75, 1.25)]
  assert list(axes.lines[0].get_xdata()) == [0.25]  # the later window's is where the earlier one speaks
  assert axes.texts[0].get_text() == "0.50 to 1.25\n1 on average\n×: left out"


@pytest.mark.parametrize("number", [1, 2, 5000])
def test_subtitles_and_pictures_of_any_length(tmp_path, number):
  starts = [0.73 * k for k in range(number)]
  ends = [start + 2.0 for start in starts[:-1]] + [starts[-1] + 1.9991]
  sound = Soundtrack(RATE, ends[-1], np.zeros((round(20 * ends[-1]), 2), np.int16))
  thumbnails = ((1.0, np.zeros((64, 64, 3), np.uint8)),)
  timeline = imagined(CLASSES, starts, ends, soundtrack=sound, thumbnails=thumbnails)
  (tmp_path / "a.srt").write_text(to_srt(timeline))
  check_srt(tmp_path / "a.srt", number, ends[-1])
  draw(timeline).savefig(tmp_path / "a.png", dpi=100)
  with Image.open(tmp_path / "a.png") as picture:
    assert picture.size == (1200, 560)


# Functions


class Centre(Spots):
  """Finds a face in the middle of any picture that is not dark."""

  def detect(self, frame):
    height, width, _ = frame.shape
    return [faces.Box(0.3 * width, 0.2 * height, 0.7 * width, 0.8 * height, 0.9)] if frame.mean() > 40 else []


def saying(model, **facts):
  """The same engine, compiled once, with other facts about it."""
  changed = dataclasses.replace(model, about=dataclasses.replace(model.about, **facts))
  object.__setattr__(changed, "_compiled", model._compiled)
  return changed


@pytest.fixture
def finder(monkeypatch):
  monkeypatch.setattr(faces, "Detector", Centre)
  return faces.FaceFinder(Path("none"), size=32)


def test_missing_faces_and_sound_become_warnings_or_reasons(tmp_path, model, finder):
  dark, silence = [picture // 10 for picture in noise(40)], np.zeros(RATE, np.int16)
  for pictures, sound, expected in [
    (noise(40), hum(1.6), (40, True, False, [])),
    (dark, hum(1.6), (0, True, False, [], "no face was found")),
    (noise(12) + dark[:28], hum(1.6), (9, True, False, [], "a face in only 22 % of the frames")),
    (noise(40), None, (40, False, False, ["no sound"])),
    (noise(40), silence, (40, True, True, ["the sound is silent", "only 1.00 of 1.60 s have sound"])),
    (dark, None, (0, False, False, ["no sound"], "no face was found")),
    (noise(3), hum(7.0), (3, True, False, ["only 3 of 16 frames", "only the first 5.1"])),
  ]:
    answer = predict_video(model, write_film(tmp_path / "a.mkv", pictures, sound), faces=finder)
    assert (answer.frames_with_face, answer.sound, answer.silent) == expected[:3]
    reasons = expected[4:]
    assert [reason[: len(words)] for reason, words in zip(answer.reasons, reasons, strict=True)] == [*reasons]
    assert (answer.reliable, answer.top is None) == (not reasons, bool(reasons))
    assert len(answer.warnings) == len(expected[3])
    for warning, words in zip(answer.warnings, expected[3], strict=True):
      assert warning.startswith(words)
  film = write_film(tmp_path / "a.mkv", noise(40), hum(1.6))
  (warning,) = predict_video(saying(model, sample_rates=(8000, 44_100)), film, faces="none").warnings
  assert warning.startswith(f"sound at {RATE} Hz, but the training clips at 8000, 44100 Hz")
  assert not predict_video(saying(model, sample_rates=(RATE,)), film, faces="none").warnings
  short = write_film(tmp_path / "b.mkv", noise(3), None)
  of_streams = {streams: predict_video(saying(model, streams=streams), short, faces="none").warnings
                for streams in (("image",), ("audio",))}  # fmt: skip
  assert [[warning[:4] for warning in warnings] for warnings in of_streams.values()] == [["only"], ["no s"]]
  plain = predict_video(model, tmp_path / "a.mkv", faces="none")
  cut_out = predict_video(model, tmp_path / "a.mkv", faces=finder)
  assert plain.frames_with_face is None
  assert plain.probabilities != cut_out.probabilities


def test_what_is_not_reliable_is_withheld_unless_forced(tmp_path, command, model):
  """A film whose middle is black and silent, answered over time; and a whole clip, with no class sure enough."""
  pictures, sound = noise(75), hum(3.0)
  pictures[25:50], sound[RATE : 2 * RATE] = [np.zeros_like(pictures[0])] * 25, 0
  write_film(tmp_path / "film.mkv", pictures, sound)
  window = "--window=1", "--hop=1", "film.mkv"
  status, out, err = command(tmp_path, "--out=out", *window)
  assert (status, "not reliable: 1 of 3 windows" in out) == (0, True), out + err
  reason = "the pictures are of one colour and there is nothing to hear"
  rows = table(tmp_path / "out/film.csv")
  assert [(row["reliable"], bool(row["top"]), row["reasons"]) for row in rows] == [
    ("True", True, ""), ("False", False, reason), ("True", True, "")
  ]  # fmt: skip
  blocks = (tmp_path / "out/film.srt").read_text().split("\n\n")
  assert [" – " in f" {block.splitlines()[2]} " for block in blocks] == [False, True, False]
  plain = Image.open(tmp_path / "out/film.png").tobytes()
  command(tmp_path, "--out=out", "--force", *window)
  answers = read(tmp_path / "out/film.json")["windows"]
  assert [answer["reliable"] for answer in answers] == [True, False, True]
  assert [answer["top"] for answer in answers] == [
    max(a["probabilities"], key=a["probabilities"].get) for a in answers
  ]
  assert "–" not in (tmp_path / "out/film.srt").read_text()
  assert plain == Image.open(tmp_path / "out/film.png").tobytes(), "hatched all the same"
  command(tmp_path, "--out=sure", "--abstain=0.99", *window)
  unsure = Image.open(tmp_path / "sure/film.png").tobytes()
  assert unsure != plain

  status, out, _ = command(tmp_path, "--out=out", "--abstain=0.99", "film.mkv")
  answer = read(tmp_path / "out/film.json")
  assert (status, answer["top"], answer["reliable"]) == (0, None, False)
  assert re.fullmatch(r"the most probable class has 0\.\d{3}, below --abstain=0\.99", *answer["reasons"])
  assert "film.mkv: – (withheld; --force names" in out
  assert f"  withheld: {answer['reasons'][0]}" in out
  before = list(answer["probabilities"].values())
  hotter = predict_video(saying(model, temperature=2.0), tmp_path / "film.mkv", faces="none")
  expected = np.sqrt(before) / np.sqrt(before).sum()
  np.testing.assert_allclose(list(hotter.probabilities.values()), expected, rtol=1e-9)


def test_faces_are_cut_out_as_in_training_unless_asked_otherwise(tmp_path, model, monkeypatch):
  """The recipe of a converted model says that others cut its faces out."""
  monkeypatch.setattr(faces, "Detector", Centre)
  monkeypatch.setattr(faces, "face_model", lambda path: Path("none"))
  path = write_film(tmp_path / "a.mkv", noise(40))
  assert predict_video(model, path).frames_with_face == 40
  assert predict_video(model, path, faces="none").frames_with_face is None
  uncut = saying(model, recipe={**model.about.recipe, "faces": "none"})
  assert predict_video(uncut, path).frames_with_face is None
  assert predict_video(uncut, path, faces="yunet").frames_with_face == 40
  crops = saying(model, recipe={}, typical={"shape": (1.0, 1.0), "side": (64.0, 64.0)})
  wide = write_film(tmp_path / "b.mkv", noise(40, width=96), hum(1.6))
  scene = predict_video(crops, wide)
  assert (scene.frames_with_face, scene.reliable, len(scene.warnings)) == (40, True, 1)
  assert scene.warnings[0].startswith("the face was cut out, as the training clips are square")
  (reason,) = predict_video(crops, wide, faces="none").reasons
  assert reason.startswith("pictures of 96x48 as they are, but the clips of the training are square")
  square = write_film(tmp_path / "c.mkv", noise(40, width=48))
  assert predict_video(crops, square).frames_with_face is None


def test_a_second_video_compiles_nothing(tmp_path, model):
  predict_video(model, write_film(tmp_path / "a.mkv", noise(30), hum(1.0)), faces="none")
  compiled, programs = [], model._compiled._cache_size()
  jax.monitoring.register_event_duration_secs_listener(lambda event, *_, **__: compiled.append(event))
  try:
    for i, (frames, height, width) in enumerate([(1, 48, 64), (90, 64, 48), (33, 128, 96)]):
      path = write_film(tmp_path / f"{i}.mkv", noise(frames, height=height, width=width), hum(0.5 + 3 * i))
      predict_video(model, path, faces="none")
      predict_timeline(model, path, window=0.5, hop=0.5, faces="none")
  finally:
    jax.monitoring.clear_event_listeners()
  assert not [event for event in compiled if "compile" in event]
  assert model._compiled._cache_size() == programs


def test_functions_refuse_what_is_wrong(tmp_path, model):
  path = write_film(tmp_path / "a.mkv", noise(30))
  for function, file, how, words in [
    (predict_video, path, {"faces": "foo"}, "choose one of auto, yunet, none"),
    (predict_timeline, path, {"window": 1.0, "hop": 2.0}, "choose a window of at least"),
    (predict_timeline, path, {"batch_size": 0}, "batch_size=0"),
    (predict_timeline, tmp_path / "b.mkv", {}, "No such file"),
  ]:
    with pytest.raises(UserError, match=words):
      function(model, file, **{"faces": "none"} | how)


def test_progress_thumbnails_and_loudness_of_a_timeline(tmp_path, model):
  steps = []
  path = write_film(tmp_path / "a.mkv", noise(500), hum(20.0))
  how = {"window": 1.0, "hop": 1.0, "faces": "none"}
  timeline = predict_timeline(model, path, **how, progress=lambda *step: steps.append(step))
  looked, predicted = ([step for step in steps if step[0] == doing] for doing in ("look", "predict"))
  assert steps == looked + predicted
  assert len(looked) == 500
  assert all(a[1] <= b[1] <= b[2] == pytest.approx(20.0, abs=0.1) for a, b in itertools.pairwise(looked))
  assert predicted == [("predict", i + 1, 20) for i in range(20)]
  assert len(timeline.thumbnails) == 12
  assert all(pixels.shape == (64, 64, 3) for _, pixels in timeline.thumbnails)
  assert np.diff([seconds for seconds, _ in timeline.thumbnails]).min() >= 1
  loud = hum(20.0).reshape(400, 800)
  np.testing.assert_array_equal(timeline.soundtrack.extremes, np.stack([loud.min(1), loud.max(1)], 1))


# Persons


def test_each_person_of_a_film_is_answered(tmp_path, command, monkeypatch):
  """Red is there for all of the 4 s and green, smaller, for the first two."""
  monkeypatch.setattr(faces, "Detector", Spots)
  monkeypatch.setattr(faces, "face_model", lambda path: Path("none"))
  pictures = [np.full((64, 120, 3), 90, np.uint8) for _ in range(100)]
  for i, picture in enumerate(pictures):
    picture[16:46, 8 + i // 20 :][:, :30] = (255, 0, 0)
    if i < 50:
      picture[30:46, 80:96] = (0, 255, 0)
  film = write_film(tmp_path / "film.mkv", pictures, hum(4.0))
  status, _, err = command(
    tmp_path, "--faces=yunet", "--out=out", "--person=all", "--window=1", "--hop=1", film
  )
  assert status == 0, err
  answer, rows = read(tmp_path / "out/film.json"), table(tmp_path / "out/film.csv")
  assert [(row["start"], row["person"]) for row in rows] == [
    ("0.000", "1"), ("0.000", "2"), ("1.000", "1"), ("1.000", "2"), ("2.000", "1"), ("3.000", "1")
  ]  # fmt: skip
  assert [one["person"] for one in answer["windows"]] == [1, 2, 1, 2, 1, 1]
  assert any("whose speech" in warning for warning in answer["warnings"])
  for one, (person, end, box) in zip(
    answer["persons"], [(1, 4.0, [8, 16, 38, 46]), (2, 2.0, [80, 30, 96, 46])], strict=True
  ):
    assert (one["person"], one["spans"], one["score"]) == (person, [[0.0, end]], pytest.approx(0.9))
    assert one["boxes"][0] == [0.0, *box, 0.9]
    with Image.open(tmp_path / "out" / one["thumbnail"]) as face:
      assert np.asarray(face).mean(axis=(0, 1)).argmax() == person - 1
  blocks = (tmp_path / "out/film.srt").read_text().strip().split("\n\n")
  assert [[line[:9] for line in block.split("\n")[2:]] for block in blocks] == (
    [["person 1:", "person 2:"]] * 2 + [["person 1:"]] * 2
  )
  with Image.open(tmp_path / "out/film.png") as picture:
    assert picture.size == (1200, 800)  # two rows
  # The whole film: red alone is what is largest; green is there for half of it.
  assert command(tmp_path, "--faces=yunet", "--out=out", "--person=2", film)[0] == 0
  assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
    "answers.csv",
    "film.json",
    "film.person2.jpg",
  ]
  (second,) = read(tmp_path / "out/film.json")["windows"]
  assert (second["person"], second["start"], second["end"], second["frames_with_face"]) == (2, 0.0, 4.0, 49)
  status, _, err = command(tmp_path, "--faces=yunet", "--out=other", "--person=3", film)
  assert (status, "there is no such person: 2 persons found" in err) == (1, True)
  answers = []
  for person in ("largest", "1"):
    assert command(tmp_path, "--faces=yunet", "--out=other", f"--person={person}", film)[0] == 0
    answers.append(read(tmp_path / "other/film.json"))
  assert answers[0]["probabilities"] == answers[1]["windows"][0]["probabilities"] != second["probabilities"]
