"""The command that makes a data set of video files: what it writes, and what it refuses."""

import os
import shutil
import subprocess

import archives
from archives import prepare, prepare_clips, refused
from clip_files import RATE, assert_same, contents, make, manifest, nothing_stands, records_of, write_clips
from commands import load
from conftest import ROOT
import numpy as np
import pytest
from small_runs import command
from tensorflow_datasets.core import shuffle

from mma_dfer_jax.data.data_set import open_data_set
from mma_dfer_jax.data.decoding import key_of
from mma_dfer_jax.data.frames import decode_frame
from mma_dfer_jax.data.records import RECIPE
from mma_dfer_jax.data.source import ClipFiles
from mma_dfer_jax.errors import UserError

MODULE = load("data.prepare")


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
  return write_clips(tmp_path_factory.mktemp("clips"))


@pytest.mark.slow
def test_the_command(clips, tmp_path):
  """As a user runs it: the output says what was made, and the same again makes nothing."""
  for name in ("a", "b", "c", "rate"):
    shutil.copy(clips / f"{name}.mp4", tmp_path)
  path, rows = (
    tmp_path / "m.csv",
    ["a.mp4, 10,train", "b.mp4, 2 ,train", "c.mp4,10, test", "rate.mp4,1,test", ""],
  )
  path.write_bytes("\r\n".join(["path,label,split", *rows, ""]).encode("utf-8-sig"))
  flags = ["--manifest", path, "--data_dir", tmp_path / "data"]
  done = subprocess.run(
    command("data.prepare", *flags), cwd=ROOT, capture_output=True, text=True, timeout=120
  )
  assert (done.returncode, done.stderr) == (0, "")  # no bar in a log, no word of tfds
  for words in ("train 2 clips, test 2 clips", "1, 2, 10", *RECIPE.values()):
    assert words in done.stdout
  for noise in ("ownload", "Shuffling", "examples", "Dataset"):
    assert noise not in done.stdout
  assert os.listdir(tmp_path / "data") == ["clips"]
  assert os.listdir(tmp_path / "data/clips") == ["1.0.0"]
  assert not [name for name in os.listdir(tmp_path / "data/clips/1.0.0") if "download" in name]
  assert "complete already: train 2 clips, test 2 clips" in prepare(*flags)

  assert contents(tmp_path / "data") == {
    "a.mp4": ("train", "10"), "b.mp4": ("train", "2"), "c.mp4": ("test", "10"), "rate.mp4": ("test", "1"),
  }  # fmt: skip
  data_set = open_data_set(tmp_path / "data", "clips")
  assert data_set.classes == ("1", "2", "10")
  assert data_set.recipe == RECIPE | {"missing_sound": "refused"}
  assert data_set.typical == {"seconds": [0.6, 0.6], "shape": [1.5, 1.5], "side": [48, 48]}
  records = records_of(tmp_path / "data")
  for clip_id, grey in {"a.mp4": 20, "b.mp4": 40, "c.mp4": 60, "rate.mp4": 30}.items():
    record, rate = records[clip_id], 44_100 if clip_id == "rate.mp4" else RATE
    pictures = [decode_frame(jpeg) for jpeg in record["frames"]]
    assert [p.shape for p in pictures] == [(32, 48, 3)] * 6
    np.testing.assert_allclose(
      [p.mean() for p in pictures], grey + 4 * np.arange(6), atol=2
    )  # the right clip, in order
    waveform = record["waveform"]
    assert (record["sample_rate"], record["has_audio"], waveform.dtype) == (rate, True, np.int16)
    assert abs(len(waveform) - 0.6 * rate) <= 2048
    middle = waveform[len(waveform) // 4 : -len(waveform) // 4].astype(float)
    level = np.sqrt((middle**2).mean())
    assert abs(level - 0.5 * 32768 / np.sqrt(2)) < 1000  # of the first channel, not of the mean of both
    crossings = np.diff(np.sign(middle)).astype(bool).sum() / (len(middle) / rate)
    assert abs(crossings - 880) < 20  # 440 Hz at the rate that is written down


def test_folds_names_and_paths(clips, tmp_path):
  here = tmp_path / "videos, with spaces"
  here.mkdir()
  for name, source in {"ä ö 表情.mp4": "a", "b,c.mp4": "b", "sub/d.mp4": "c", " x.mp4": "d"}.items():
    (here / name).parent.mkdir(exist_ok=True)
    shutil.copy(clips / f"{source}.mp4", here / name)
  rows = ['zorn, 1, "b,c.mp4",x', "über, 2, ä ö 表情.mp4,", "zorn,fold2, sub/../sub/d.mp4,", f"über,1,{clips / 'e.mp4'},"]  # fmt: skip
  path = manifest(here, rows, header="label, fold ,path,note")
  prepare_clips(path, tmp_path / "data", classes=["zorn", "über", "nie"])
  assert contents(tmp_path / "data") == {
    "b,c.mp4": ("fold1", "zorn"), "ä ö 表情.mp4": ("fold2", "über"),
    "sub/../sub/d.mp4": ("fold2", "zorn"), str(clips / "e.mp4"): ("fold1", "über"),
  }  # fmt: skip
  data_set = open_data_set(tmp_path / "data", "clips")
  assert data_set.classes == ("zorn", "über", "nie")
  assert data_set.train_and_test(1) == ("fold2", "fold1")
  records = records_of(tmp_path / "data")
  for clip_id, grey in {"b,c.mp4": 40, "ä ö 表情.mp4": 20, "sub/../sub/d.mp4": 60}.items():
    assert abs(decode_frame(records[clip_id]["frames"][0]).mean() - grey) < 2


BAD = {  # manifest line: (what stands there, a word of what is said about it)
  3: ("missing.mp4,x,train", "No such file"),
  4: ("text.mp4,x,train", "is not supported"),
  5: ("cut.mp4,x,train", ""),
  6: ("sound_only.mp4,x,train", "no video stream"),
  7: ("no_frames.avi,x,train", ""),
  8: ("silent.mp4,x,train", "no audio stream"),
  9: ("short.mp4,x,train", "less than 25 ms"),
  10: ("b.mp4,,train", "no label"),
  11: ("e.mp4,y,", "no run uses the split ''"),
  12: ("a.mp4,x,test", "a.mp4: is in line 2 already"),
  13: ("./a.mp4,x,test", "line 2 already"),
  14: ("link.mp4,x,test", "line 2 already"),
  15: ("c.mp4,x,Train!", "no run uses the split 'Train!': write train or test, or a column fold"),
  16: ("c.mp4,x", "no run uses the split ''"),
  17: ("c.mp4,x,train,1,2", "2 values too many"),
  18: (",x,train", "no path"),
  19: ("empty.mp4,x,train", "empty"),
  20: (".,x,train", "folder"),
  21: ("d.mp4,x,val", "no run uses the split 'val'"),
}


def test_all_bad_rows_are_named_at_once(clips, tmp_path, capsys):
  rows = ["a.mp4,x,train", *(text for text, _ in BAD.values()), "f.mp4,y,test"]
  bad_manifest = manifest(clips, rows, "bad.csv")
  with pytest.raises(UserError) as error:
    prepare_clips(bad_manifest, tmp_path, classes=["x", "y"])
  title, *lines, advice = str(error.value).splitlines()
  assert title.startswith(f"{len(BAD)} of {len(BAD) + 2} clips")
  said = [line.removeprefix("  - line ") for line in lines]
  assert [int(line.split(":")[0]) for line in said] == list(BAD)
  for line, (row, word) in zip(said, BAD.values(), strict=True):
    assert word in line
    if word in ("", "No such file", "is not supported", "no video stream", "no audio stream"):
      assert row.split(",")[0] in line
  assert advice == f"fix them, or add --allow_bad={len(BAD)} to leave out these clips"
  assert nothing_stands(tmp_path)

  # The same, but left out: exactly those are listed, the others are there.
  prepare_clips(bad_manifest, tmp_path, classes=["x", "y"], allow_bad=99)
  left_out, printed = open_data_set(tmp_path, "clips").left_out, capsys.readouterr().out
  assert f"left out {len(BAD)} of {len(BAD) + 2} clips:" in printed
  assert [line.removeprefix("  - ") for line in printed.splitlines() if "  - " in line] == list(left_out)
  assert len(left_out) == len(BAD)
  for line, (row, word) in BAD.items():
    assert any(f"line {line}" in text and row.split(",")[0] in text and word in text for text in left_out)
  assert contents(tmp_path) == {"a.mp4": ("train", "x"), "f.mp4": ("test", "y")}
  assert os.listdir(tmp_path / "clips") == ["1.0.0"]


def test_many_problems_of_a_kind_are_one_line(clips, tmp_path):
  many = manifest(clips, [f"a b {i}.mp4,x,train" for i in range(200)])
  with refused("no clip of train in") as error:
    prepare_clips(many, tmp_path, allow_bad=5000)
  title, line = str(error.value).splitlines()
  assert title.startswith("no clip of train in")
  assert (
    line
    == f"  - 200 clips: No such file in {clips}, as in line 2: a b 0.mp4, line 3: a b 1.mp4, line 4: a b 2.mp4"
  )
  with refused("200 of 200 clips") as error:
    prepare_clips(many, tmp_path)
  assert "allow_bad" not in str(error.value), "without a clip nothing can be prepared"
  few = manifest(clips, ["a.mp4,x,train", *(f"{i}.mp4,x,train" for i in range(6))])
  with refused(
    r"(?s)6 clips: No such file in .*, as in line 3: 0.mp4, line 4: 1.mp4, line 5: 2.mp4\n.*=6 to leave"
  ):
    prepare_clips(few, tmp_path)


def test_clips_without_labels(clips, tmp_path, monkeypatch):
  for name, source in {"a 1.mp4": "a", "deep/er/b.mp4": "b"}.items():
    (tmp_path / "films" / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(clips / f"{source}.mp4", tmp_path / "films" / name)
  prepare(f"--manifest={tmp_path}/films", f"--data_dir={tmp_path}")
  data_set = open_data_set(tmp_path, "clips", labelled=False)
  assert (data_set.classes, data_set.splits, data_set.clips) == ((), {"train": 2}, {"train": {"": 2}})
  assert {name: int(r["label"]) for name, r in records_of(tmp_path).items()} == {
    "a 1.mp4": -1,
    "deep/er/b.mp4": -1,
  }
  with refused(r"has no labels.*for pretraining.*path,label,split"):
    open_data_set(tmp_path, "clips")
  monkeypatch.chdir(tmp_path / "films")
  assert "(no label)" in prepare("--check", "--manifest=*.[mM][pP]4")


def test_check_opens_and_writes_nothing(clips, tmp_path):
  out = prepare("--check", "--manifest", manifest(clips, [("a", "x", "train"), ("text", "x", "test")]))
  assert out.splitlines()[-1].startswith("fit for preparation (no clip was decoded")
  out = prepare(
    "--check", "--manifest", manifest(clips, [("a", "x", "train"), ("none", "x", "test")]), status=1
  )
  assert "line 3: none.mp4" in out
  assert out.splitlines()[-1].startswith("NOT FIT for preparation: 1 problem (")  # not of the empty split too
  out = prepare("--check", "--manifest", manifest(clips, ["a.mp4,,train", "b.mp4,,test"]), status=1)
  assert "(no label)" not in out
  assert (
    "problems:\n  - line 2: a.mp4: no label\n  - line 3: b.mp4: no label\nNOT FIT for preparation: 2 problems ("
    in out
  )
  names = [f"01-01-0{e}-01-01-01-{actor:02d}" for e in range(1, 9) for actor in (1, 2, 3, 4, 5)]
  for name in names:
    archives.write_text(tmp_path / f"whole/{name}.mp4", "")
  for name in (*names[:-5], "01-01-99"):
    archives.write_text(tmp_path / f"part/{name}.mp4", "")
  assert "1/40" in prepare("--check", "--dataset=ravdess", f"--raw={tmp_path}/whole")
  out = prepare("--check", "--dataset=ravdess", f"--raw={tmp_path}/part", status=1)
  assert "--classes=neutral,calm,happy,sad,angry,fear,disgust prepares the others (1): surprise" in out
  assert "01-01-99" in out


def test_bad_clips_are_not_offered_to_be_left_out_if_a_class_is_lost(clips, tmp_path):
  rows = [
    ("a", "x", "train"),
    ("b", "x", "test"),
    ("c", "y", "train"),
    ("none", "y", "test"),
    ("text", "z", "test"),
  ]
  with refused(
    "(?s)2 of 5 clips.*or add --allow_bad=2 to leave out these clips; that would leave no clip of z$"
  ):
    prepare_clips(manifest(clips, rows), tmp_path)
  with refused("(?s)2 of 5 clips.*\nfix them: --allow_bad would leave no clip of z$"):
    prepare_clips(manifest(clips, [*rows[:-1], ("gone", "z", "test")]), tmp_path)


def test_bad_files_are_named_once(clips, tmp_path):
  (tmp_path / "films").mkdir()
  shutil.copy(clips / "text.mp4", tmp_path / "films")
  printed = prepare(f"--manifest={tmp_path}/films", f"--data_dir={tmp_path}", status=1)
  assert "  - text.mp4: " in printed
  assert printed.count("text.mp4") == 1


def test_check_looks_at_the_flags_too(clips, tmp_path):
  path = manifest(clips, [("a", "x", "train"), ("b", "x", "test")])
  printed = prepare(
    "--check", "--manifest", path, "--faces=yunet", f"--face_model={tmp_path}/nope.onnx", status=1
  )
  assert "nope.onnx" in printed
  printed = prepare("--check", f"--raw={clips}", status=1)
  assert (
    "--raw is not for --dataset=clips, but for cremad, dfew, folders, mafw, ravdess; for one folder for each class, add --dataset=folders"
    in printed
  )
  assert "need no manifest: --dataset=folders" in printed


def test_a_fold_without_a_good_clip_cannot_be_left_out(clips, tmp_path):
  rows = [("a", "x", 1), ("text", "x", 2), ("c", "", 3)]
  with refused("(?s)no clip of fold2, fold3 .*line 3.*line 4: c.mp4: no label"):
    prepare_clips(manifest(clips, rows, header="path,label,fold"), tmp_path, allow_bad=9)
  assert nothing_stands(tmp_path)


def test_a_manifest_with_semicolons_and_a_class_without_clips(clips, tmp_path, capsys):
  path = manifest(clips, ['"a.mp4";x;train;1,5', "b.mp4;y;test;"], header="Path;Label;Split;note")
  prepare_clips(path, tmp_path, classes=["x", "y", "nobody"])
  assert contents(tmp_path) == {"a.mp4": ("train", "x"), "b.mp4": ("test", "y")}
  printed = capsys.readouterr().out
  assert [line for line in printed.splitlines() if line.startswith("note: ")] == [
    "note: columns are separated by ';', not by a comma",
    "note: columns that are not used: note",
    "note: classes without a clip: --classes=… names those to take: nobody",
  ]
  assert "train 1 clip, test 1 clip" in printed
  assert "nobody" in (tmp_path / "clips/1.0.0/notes.txt").read_text()


def test_the_detector_is_known_by_its_bytes(tmp_path):
  """Data sets of the same recipe and model are the same, wherever the model lies."""
  for name, data in (("one", b"model"), ("same", b"model"), ("other", b"another")):
    (tmp_path / name).write_bytes(data)
  one, same, other = (MODULE.Decoding(face_model=str(tmp_path / name)) for name in ("one", "same", "other"))
  source = ClipFiles("a.mp4", "line 2", "x", "train", (), tmp_path / "a.mp4", None)
  assert one.recipe == same.recipe != other.recipe
  assert one.recipe["face_detector"].startswith("sha256 9372c470")
  assert key_of(source, one) == key_of(source, same)
  assert key_of(source, one) != key_of(source, other)


def test_missing_sound_when_allowed(clips, tmp_path, monkeypatch):
  monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
  (tmp_path / "temporary").mkdir()
  path = manifest(clips, [(name, "x", "train") for name in ("a", "silent", "short")])
  prepare_clips(path, tmp_path, allow_missing_sound=True)
  assert not list((tmp_path / "temporary").iterdir())
  assert os.listdir(tmp_path / "clips") == ["1.0.0"]
  heard = {clip: (bool(r["has_audio"]), len(r["frames"])) for clip, r in records_of(tmp_path).items()}
  assert heard == {"a.mp4": (True, 6), "silent.mp4": (False, 6), "short.mp4": (False, 6)}
  assert len(records_of(tmp_path)["silent.mp4"]["waveform"]) == 0
  assert open_data_set(tmp_path, "clips").recipe["missing_sound"] == "constant spectrogram"


def test_picture_and_sound_of_very_different_length(tmp_path):
  for name, frames, seconds in (("sound", 6, 2.0), ("picture", 40, 1.0), ("both", 10, 1.2)):
    make(tmp_path / f"{name}.mp4", 20, frames=frames, seconds=seconds)
  path = manifest(tmp_path, [("sound", "x", "train"), ("picture", "x", "train"), ("both", "x", "test")])
  out = prepare("--manifest", path, "--data_dir", tmp_path / "data")
  line = "WARNING: picture and sound differ in length: one is more than twice as long as the other (2): picture.mp4, sound.mp4"
  alike = "WARNING: picture and sound differ in length: one is more than twice as long as the other (2): sound.mp4, picture.mp4"
  assert line in out or alike in out


def test_large_splits_go_through_files(clips, tmp_path, monkeypatch):
  path = manifest(clips, [(name, i % 2, "train") for i, name in enumerate("abcdef")])
  prepare_clips(path, tmp_path / "memory")
  monkeypatch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", 2000)
  prepare_clips(path, tmp_path / "files")
  assert not list((tmp_path / "files").rglob("bucket*"))
  assert_same(records_of(tmp_path / "files"), records_of(tmp_path / "memory"))
  assert len(records_of(tmp_path / "files")) == 6
