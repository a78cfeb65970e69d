"""The command that says whether a data set is fit for training: it finds what was made worse, and nothing in what was not."""

import dataclasses
import json
import shutil
import subprocess
import sys

from archives import prepare_clips
from conftest import ROOT
import cv2
from mma_dfer_jax.data.layouts import PUBLISHED
import numpy as np
import pytest

from mma_dfer_jax.data import demo, doctor
from mma_dfer_jax.data.data_set import open_data_set
from mma_dfer_jax.data.labels import LABEL_ORDERS
from mma_dfer_jax.errors import UserError

CLASSES = list(demo.CLASSES)
RATE = demo.SAMPLE_RATE


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
  """Two generated clips of each class, and those that something is wrong with; with the rows of their manifest."""
  folder = tmp_path_factory.mktemp("clips")
  _, *rows = demo.generate(folder, 1, 1, seed=5).read_text().splitlines()
  rows = [row.replace(",train", ",1").replace(",test", ",2") for row in rows]
  rng = np.random.default_rng(0)
  face, tone = demo.clip_picture("smiling", rng, 24), demo.clip_voice("lively", rng, 1.0)
  still = np.repeat(face[:1], 24, axis=0)
  for name, frames, sound, rate in (
    ("black", 0 * face, tone, RATE),
    ("black_again", 0 * face, 0.5 * tone, RATE),
    ("grey", 0 * face + 90, tone[100:], RATE),
    ("frozen", still, tone[200:], RATE),
    ("few", face[:9], tone[300:], RATE),
    ("mute", face[::-1], None, RATE),
    ("silent", face[5:], 0 * tone, RATE),
    ("short", face[4:], tone[: RATE // 5], RATE),
    ("rate", face[3:], np.tile(tone, 2), 44_100),
  ):
    demo.write_clip(folder / f"{name}.mp4", frames, sound, demo.FPS, rate)
  return folder, rows


def prepared(folder, rows, data_dir, classes=()):
  manifest = folder / f"{data_dir.name}.csv"
  manifest.write_text("\n".join(["path,label,fold", *rows]) + "\n")
  prepare_clips(manifest, data_dir, classes=classes, allow_missing_sound=True, num_workers=1)
  return data_dir


@pytest.fixture(scope="module")
def good(clips, tmp_path_factory):
  return prepared(*clips, tmp_path_factory.mktemp("data") / "good")


@pytest.fixture(scope="module")
def worse(clips, tmp_path_factory):
  """Every clip is in fold 2, but for the second black one."""
  folder, rows = clips
  names = ["black", "grey", "frozen", "few", "mute", "silent", "short", "rate"]
  rows = [*rows, *(f"{name}.mp4,happy,2" for name in names), "black_again.mp4,happy,1"]
  first = rows[0].split(",")[0]
  for name, where in (("copy", "2"), ("twin", "1")):
    shutil.copy(folder / first, folder / f"{name}.mp4")
    rows.append(f"{name}.mp4,sad,{where}")
  return prepared(folder, rows, tmp_path_factory.mktemp("data") / "worse", [*CLASSES, "bored"])


def named(result, key):
  return [text.split(" ", 1)[1].removesuffix(".mp4") for text in result.lists[key]]


def test_nothing_is_wrong_with_good_clips(good, capsys):
  result = doctor.check_data_set(good, "clips")
  assert result.fit
  assert result.verdict == "fit for training"
  assert not result.problems + result.warnings + result.notes + result.duplicates
  assert result.counts == {
    "fold1": dict.fromkeys(sorted(CLASSES), 1),
    "fold2": dict.fromkeys(sorted(CLASSES), 1),
  }
  assert capsys.readouterr().out.splitlines()[-1] == "fit for training"
  folder = good / "clips" / "doctor"
  report = json.loads((folder / "doctor.json").read_text())
  assert report["fit"]
  assert len(report["clips"]) == 14
  assert report["splits"]["fold1"]["sample_rates"] == {"16000": 7}
  text = (folder / "doctor.md").read_text()
  for split in ("fold1", "fold2"):
    assert f"samples_{split}.png" in text
    height, width, _ = cv2.imread(str(folder / f"samples_{split}.png")).shape
    assert width > height > 700
  assert not (folder / "samples_flagged.png").exists()
  open_data_set(good, "clips")  # the report is no version of it


@pytest.fixture(scope="module")
def found(worse):
  data_set = open_data_set(worse, "clips")
  return doctor.diagnose(data_set, "clips", *doctor.examine(data_set, 0))


@pytest.mark.parametrize(
  ("key", "names"),
  [
    ("black", {"black", "black_again"}),
    ("one_colour", {"grey"}),
    ("frozen", {"frozen"}),
    ("few_frames", {"few"}),
    ("no_sound", {"mute"}),
    ("silent", {"silent"}),
    ("short_sound", {"short"}),
    ("repeating", set()),
    ("few_faces", set()),
  ],
)
def test_odd_clips_are_named_and_no_others(found, key, names):
  assert set(named(found, key)) == names
  assert sum(doctor.ODDITIES[key][0] in text for text in found.warnings) == bool(names)


def test_problems_of_worse_clips(found):
  assert not found.fit
  assert any(text.startswith("there is no clip of the class bored; --classes=") for text in found.problems)
  twins = [text for text in found.problems if "same pictures in several splits" in text]
  assert len(twins) == 1
  assert "1 group" in twins[0]
  for name in ("fold2 copy.mp4", "fold1 twin.mp4", "labelled happy, sad, sad"):
    assert name in twins[0]
  assert "black" not in twins[0], "two black pictures are no copies"
  assert len(found.problems) == 2
  assert any("2 sample rates" in text and "44100 Hz in 1" in text for text in found.warnings)


def test_a_page_of_flagged_clips(worse, tmp_path):
  data_set = open_data_set(worse, "clips")
  records, _ = doctor.examine(data_set, 0)
  odd = [one for one in records if one.black or not one.has_audio]
  result = doctor.Diagnosis(lists={key: ["some"] for key in doctor.ODDITIES})
  (tmp_path / "samples_gone.png").touch()
  assert doctor.draw_pages(data_set, odd, result, tmp_path) == {"Clips with warnings": "samples_flagged.png"}
  assert [path.name for path in tmp_path.iterdir()] == ["samples_flagged.png"]


@pytest.fixture(scope="module")
def seen(good):
  data_set = open_data_set(good, "clips")
  return data_set, doctor.examine(data_set, 0)[0]


def test_what_the_records_are_compared_with(seen):
  """A label that is none, a record that went lost, a name twice, a sound twice, another label."""
  data_set, records = seen

  def diagnosed(changed, of=data_set, name="clips"):
    return doctor.diagnose(of, name, changed, [])

  wrong = diagnosed([dataclasses.replace(records[0], label=None), *records[1:]]).problems
  assert any("1 label not between 0 and 6" in text for text in wrong)
  assert any("but its builder counted 1" in text for text in wrong)
  assert any(
    "fold1: 6 records, but its builder counted 7" in text for text in diagnosed(records[1:]).problems
  )
  twice = [*records[:-1], dataclasses.replace(records[-1], clip_id=records[0].clip_id)]
  assert any("same name in several splits" in text for text in diagnosed(twice).problems)
  heard = diagnosed([*records[:-1], dataclasses.replace(records[-1], sound=records[0].sound)])
  assert heard.fit
  assert any("same sound in several splits" in text for text in heard.warnings)
  within = diagnosed(
    [records[0], dataclasses.replace(records[1], pictures=records[0].pictures), *records[2:]]
  )
  assert within.fit
  assert any("same pictures within a split" in text for text in within.warnings)
  faceless = diagnosed([dataclasses.replace(records[0], face_share=0.5), *records[1:]])
  assert faceless.lists["few_faces"] == [str(records[0])]
  emptied = dataclasses.replace(data_set, splits={**data_set.splits, "fold3": 0})
  assert "the split fold3 is empty" in diagnosed(records, emptied).problems
  alone = dataclasses.replace(data_set, splits={"fold1": 7}, clips={"fold1": data_set.clips["fold1"]})
  assert any("no run can use the splits fold1" in text for text in diagnosed(records[:7], alone).problems)


def test_published_counts_stand_beside(seen):
  """The demo has DFEW's classes."""
  data_set, records = seen
  result = doctor.diagnose(data_set, "dfew", records, [])
  assert result.problems == ["there is no fold3, fold4, fold5, dfew has 5 folds"]
  assert any("35 counts not as published: fold1 happy 1 (published 489)" in text for text in result.warnings)
  table = doctor.counts_table(result)
  assert "1/489" in table
  assert "14/11697" in table
  assert not doctor.diagnose(data_set, "mafw", records, []).published, "other classes"


def test_the_other_label_order_of_mafw_is_a_problem():
  """Exactly the published numbers of clips, but of other classes."""
  order, other = (LABEL_ORDERS[name].classes for name in ("mafw", "mafw-official"))
  published = PUBLISHED["mafw"]
  for names, read_as, truly in (
    (order, other, "mafw"),
    (other, order, "mafw-official"),
    (order, order, None),
  ):
    mixed = dict(zip(names, read_as, strict=True))
    counts = {fold: {mixed[name]: clips for name, clips in row.items()} for fold, row in published.items()}
    result = doctor.Diagnosis(counts=counts, published=published)
    doctor._compare_with_published(result, "mafw")
    assert len(result.problems) == bool(truly)
    assert all(text.endswith(f"prepare again with --numbers={truly}") for text in result.problems)


def test_records_that_no_training_could_read(seen):
  data_set, _ = seen
  record = dict(data_set.records("fold1")[0])

  def looked_at(**changes):
    return doctor.look_at({**record, **changes}, "fold1", 0, data_set.classes)

  frames = list(record["frames"])
  assert looked_at().frames == len(frames)
  assert looked_at(label=7).label is None
  assert looked_at(frames=[frames[0]] * 20).repeats == 1
  assert looked_at(frames=frames[:1]).motion is None
  cut_off = [*frames[:-1], frames[-1][: len(frames[-1]) // 2]]  # no evaluation takes the last frame
  with pytest.raises(ValueError, match=f"frame {len(frames) - 1}: "):
    looked_at(frames=cut_off)
  with pytest.raises(ValueError, match="frame 0: "):
    looked_at(frames=[b"no picture", *frames[1:]])
  with pytest.raises(ValueError, match="without frames"):
    looked_at(frames=[])
  with pytest.raises(ValueError, match="sample_rate=3"):
    looked_at(sample_rate=3)


def test_the_command_names_damaged_records_and_goes_on(good, tmp_path):
  """As a user runs it; the other split and the other records are examined all the same."""
  damaged = tmp_path / "data"
  shutil.copytree(good, damaged)
  shutil.rmtree(damaged / "clips" / "doctor", ignore_errors=True)
  (file,) = damaged.glob("clips/*/clips-fold2.array_record*")
  data = bytearray(file.read_bytes())
  for i in range(1000):
    data[len(data) // 2 + i] ^= 0xFF
  file.write_bytes(data)
  command = [sys.executable, "-m", "mma_dfer_jax.data.doctor", f"--data_dir={damaged}", f"--out={tmp_path / 'out'}"]  # fmt: skip
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
  assert done.returncode == 1, done.stderr
  assert done.stdout.splitlines()[-1].startswith("NOT FIT for training: ")
  report = json.loads((tmp_path / "out" / "doctor.json").read_text())
  assert not report["fit"]
  assert all(text.startswith("fold2 record ") for text in report["lists"]["unreadable"])
  unreadable = len(report["lists"]["unreadable"])
  assert 1 <= unreadable <= 3
  assert len(report["clips"]) == 14 - unreadable
  assert sum("cannot be read" in text for text in report["problems"]) == 1
  assert not any("builder" in text for text in report["problems"]), "a lost record is told once"
  assert not (damaged / "clips" / "doctor").exists()


@pytest.mark.parametrize(
  ("name", "length"), [("metadata.json", 200), ("metadata.json", None), ("dataset_info.json", 0),
                       ("dataset_info.json", 300), ("features.json", None), ("features.json", 50)],
)  # fmt: skip
def test_damaged_metadata_is_told_as_such(good, tmp_path, name, length):
  """As a copy that was cut short leaves them; None: the file is not there."""
  damaged = tmp_path / "data"
  shutil.copytree(good, damaged)
  (file,) = damaged.glob(f"clips/*/{name}")
  data = file.read_bytes()
  file.unlink()
  if length is not None:
    file.write_bytes(data[:length])
  with pytest.raises(UserError, match="prepare"):
    open_data_set(damaged, "clips")


def test_processes_find_the_same(seen, monkeypatch):
  data_set, records = seen
  monkeypatch.setattr(doctor, "FEW_RECORDS", 0)
  assert doctor.examine(data_set, 1) == (records, [])


def test_samples_are_spread_over_classes(seen):
  _, records = seen
  first = [one for one in records if one.split == "fold1"]
  assert len({one.label for one in doctor.spread_over_classes(first, 5)}) == 5
  assert {one.label for one in doctor.spread_over_classes(first, 5, turn=2)} != {
    one.label for one in doctor.spread_over_classes(first, 5)
  }
  assert len(set(doctor.spread_over_classes(records, 8))) == 8
  assert len(set(doctor.spread_over_classes(records, 99))) == len(records)
  assert doctor.spread_over_classes([], 8) == []


def ravdess(folder, *names):
  for name in names:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.mp4").touch()
  return folder


def test_an_archive_before_it_is_prepared(tmp_path, capsys):
  """Names are enough: no file of it is opened."""
  names = [f"01-01-0{e}-01-01-01-{actor:02d}" for e in range(1, 9) for actor in (1, 2, 3, 4, 5)]
  result = doctor.check_archive("ravdess", ravdess(tmp_path / "whole", *names), tmp_path / "out")
  assert result.fit
  assert result.counts["fold3"]["calm"] == 1
  out = capsys.readouterr().out
  assert "1/40" in out
  assert out.splitlines()[-1] == "fit for preparation (no clip was opened)"
  assert json.loads((tmp_path / "out" / "doctor.json").read_text())["fit"]
  result = doctor.check_archive("ravdess", ravdess(tmp_path / "part", *names[:-5], "01-01-99"))
  assert not result.fit
  said = "there is no clip of the class surprise; --classes=neutral,calm,happy,sad,angry,fear,disgust would do without it"
  assert said in result.problems
  assert any("01-01-99" in text for text in result.problems)
  with pytest.raises(UserError, match="--lists is not for --dataset=ravdess"):
    doctor.read_archive("ravdess", tmp_path, lists=tmp_path)
