"""Data sets in the forms in which they are handed out: each form is read, and everything wrong with it is said at once."""

from collections import Counter
import functools
import json
from pathlib import Path
import re
import shutil

import archives
from archives import refused
from conftest import GOLDEN
import pytest

from mma_dfer_jax.data.labels import COUNTS as PUBLISHED
from mma_dfer_jax.data.labels import LABEL_ORDERS
from mma_dfer_jax.data.source import in_lines
from mma_dfer_jax.data.sources import mafw

SETS, TEST, PICTURES = "EmoLabel_DataSplit", "EmoLabel_DataSplit/test(single-labeled)", "Clip/clip_224x224"
read_dfew, read_mafw, read_ravdess, read_cremad, read_folders = (
  functools.partial(archives.read, name) for name in ("dfew", "mafw", "ravdess", "cremad", "folders")
)


def names(clip):
  return [path.name for path in clip.frames]


def splits(layout):
  return Counter(clip.split for clip in layout.clips)


def labels(layout):
  return {clip.clip_id: clip.label for clip in layout.clips}


def said(found):
  return [str(one) for one in found]


def good(layout, number):
  """A layout without any problem, whose files are all there."""
  assert layout.problems == []
  assert len(layout.clips) == len(labels(layout)) == number
  for clip in layout.clips:
    assert bool(clip.frames) != bool(clip.video)
    assert all(path.is_file() for path in (*clip.frames, clip.video, clip.sound) if path)
    assert clip.label in layout.classes
  return layout


def problems(layout, *expected, left):
  """Every expected text is in a problem of its own, there are no others, and so many clips are left."""
  there = said(layout.problems)
  assert len(there) == len(expected), there
  for text in expected:
    assert any(text in problem for problem in there), (text, there)
  assert not {clip for problem in layout.problems for clip in problem.clips} & labels(layout).keys()
  assert len(layout.clips) == left
  return layout


def change(path, old, new):
  text = path.read_text(encoding="utf-8")
  assert old in text
  path.write_text(text.replace(old, new, 1), encoding="utf-8")


def test_published_numbers():
  per_fold = {name: [sum(fold.values()) for fold in folds.values()] for name, folds in PUBLISHED.items()}
  totals = {name: sum(of) for name, of in per_fold.items()}
  assert totals == {"dfew": 11_697, "mafw": 9_172, "ravdess": 1_440, "cremad": 7_442}
  assert per_fold["dfew"] == [2341, 2341, 2340, 2339, 2336]
  assert per_fold["mafw"] == [1839, 1837, 1833, 1832, 1831]
  assert all(list(folds) == [f"fold{k}" for k in range(1, 6)] for folds in PUBLISHED.values())
  for name, numbers in (
    ("dfew", [2445, 1894, 2669, 2173, 1469, 145, 902]),
    ("mafw", [1242, 1470, 1138, 1390, 1072, 639, 625, 236, 916, 262, 182]),
  ):
    assert [sum(fold[c] for fold in PUBLISHED[name].values()) for c in LABEL_ORDERS[name].classes] == numbers


# ---- DFEW ----

DFEW_LABELS = {clip: LABEL_ORDERS["dfew"].classes[label] for clip, (_, label) in archives.DFEW.items()}
MAFW_LABELS = {clip: archives.MAFW_NAMES[label] for clip, (_, label) in archives.MAFW.items()}


def test_dfew_as_handed_out(tmp_path):
  home = archives.dfew(tmp_path)
  for place in ("", "DFEW-part2", "DFEW-part2/Clip"):  # from above and from within
    layout = good(read_dfew(tmp_path / place), 10)
    assert layout.notes == []
    assert layout.classes == LABEL_ORDERS["dfew"].classes
    assert splits(layout) == {f"fold{k}": 2 for k in range(1, 6)}
    assert labels(layout) == DFEW_LABELS
    for clip in layout.clips:
      assert clip.split == f"fold{archives.DFEW[clip.clip_id][0]}"
      assert clip.sound == home / f"Clip/raw_wav/{int(clip.clip_id)}.wav"
      assert names(clip) == [f"{i}.jpg" for i in range(20)]
  assert layout.clips[0].where == f"{TEST}/set_1.csv line 2"
  assert layout.recipe["frame_order"].startswith("natural")
  assert layout.recipe["sound"] == "wav files of raw_wav"


def test_dfew_other_forms(tmp_path):
  home = archives.dfew(tmp_path / "größer als 1 Platte", folders=["clip_224x224", "clip_224x224_16f"], sound="both",
                       padded=False, name="frame {:03d}.JPG")  # fmt: skip
  assert names(good(read_dfew(home), 10).clips[0])[-1] == "frame 019.JPG"
  layout = good(read_dfew(home, frames="16f"), 10)
  assert names(layout.clips[0]) == [f"frame {i:03d}.JPG" for i in range(1, 17)]
  assert layout.recipe["frames"] == "16f"
  layout = good(read_dfew(home, frames="video"), 10)
  assert all(
    clip.sound == clip.video == home / f"Clip/original/{int(clip.clip_id)}.mp4" for clip in layout.clips
  )
  assert any(note.warning and "whole scenes" in note.what for note in layout.notes)
  shutil.move(home / "Clip/raw_wav", home / "raw_wav")
  assert good(read_dfew(home), 10).clips[1].sound == home / "raw_wav/2.wav"
  shutil.rmtree(home / "raw_wav")
  layout = good(read_dfew(home), 10)
  assert layout.clips[1].sound == home / "Clip/original/2.mp4"
  assert layout.recipe["sound"] == "videos of original"


def test_dfew_unpacked_in_parts_and_into_folders_of_their_own_names(tmp_path):
  home = archives.dfew(tmp_path, sound="original")
  parts, inner = home / "Clip/original", home / PICTURES
  for k, video in enumerate(sorted(parts.glob("*.mp4"))):
    (parts / f"part_{k % 3}").mkdir(exist_ok=True)
    video.rename(parts / f"part_{k % 3}" / video.name)
  inner.rename(home / "Clip/tmp")
  inner.mkdir()
  (home / "Clip/tmp").rename(inner / "clip_224x224")
  archives.write_text(home / "__MACOSX/Clip/clip_224x224/00001/._0.jpg", "")
  archives.write_text(inner / "clip_224x224/00001/._0.jpg", "")
  layout = good(read_dfew(home), 10)
  assert len(layout.clips[0].frames) == 20
  assert layout.clips[0].sound.parent.parent == parts


@pytest.mark.parametrize(
  ("pattern", "options"),
  [
    ("{part}(single-labeled)/{part}_set_{k}.csv", {}),
    ("{part} (single-labeled)/set_{k}.csv", {"end": "\r\n"}),
    ("{part}/set{k}.csv", {"encoding": "utf-8-sig"}),
    ("{part}_set_{k}.csv", {"header": "Video_Name,Label"}),
    ("DFEW_set_{k}_{part}(single-labeled).csv", {"header": "video_name;label"}),
    ("Train & Test/{part}/fold {k}.csv", {"header": "video_name\tlabel"}),
  ],
)
def test_dfew_lists_under_other_names(tmp_path, pattern, options):
  home = archives.dfew(tmp_path, frames=1, csvs=False)
  archives.dfew_csvs(home / SETS, pattern=pattern, **options)
  layout = good(read_dfew(home), 10)
  assert labels(layout) == DFEW_LABELS
  mark = options.get("header", ",,,,,,,,,,,")[10]
  odd = [f"columns are separated by {mark!r}, not by a comma (10)"] if mark != "," else []
  assert [note.split(":")[0] for note in said(layout.notes)] == odd


def test_dfew_csv_with_more_in_it(tmp_path):
  home = archives.dfew(tmp_path, frames=1)
  path = home / TEST / "set_2.csv"
  path.write_text("order,video_name,label\n7,00003.mp4,4\n\n8, 4 , 5\n")
  layout = good(read_dfew(home), 10)
  assert said(layout.notes) == [f"columns that are not used: order: {path.relative_to(home)}"]
  assert next(clip for clip in layout.clips if clip.clip_id == "00004").where.endswith("line 4")


def test_dfew_lists_of_the_original(tmp_path):
  home, lists = archives.dfew(tmp_path / "raw", csvs=False), tmp_path / "annotation"
  archives.counted_lists(
    lists, archives.DFEW, "DFEW_set_{k}_{part}.txt", "/my files/DFEW_Frame_Face", 20, final=""
  )
  archives.counted_lists(lists, archives.MAFW, "MAFW_set_{k}_{part}.txt", "faces", 11)
  change(lists / "DFEW_set_1_test.txt", "Face/00001 20", "Face/00001/  20 ")
  change(lists / "DFEW_set_2_test.txt", "/my files/DFEW_Frame_Face/", "D:\\my files\\DFEW_Frame_Face\\")
  layout = good(read_dfew(home, lists=lists), 10)
  assert labels(layout) == DFEW_LABELS
  assert layout.clips[0].where == f"{lists / 'DFEW_set_1_test.txt'} line 1"
  (note,) = said(layout.notes)
  assert "not used (10): MAFW_set_1_test.txt" in note
  (home / PICTURES).rename(home / "DFEW_Frame_Face")  # the name that the lists know
  notes = said(good(read_dfew(home, lists=lists), 10).notes)
  assert "DFEW_Frame_Face: pictures are taken from here, as the lists name this folder" in notes


def test_reference_recipe_of_dfew(tmp_path):
  """Frames in string order as the original took them; the numbers come from running it."""
  home, lists = archives.dfew(tmp_path / "raw", csvs=False), tmp_path / "lists"
  archives.counted_lists(lists, archives.DFEW, "DFEW_set_{k}_{part}.txt", "data/dfew/clip_224x224", 20)
  layout = good(read_dfew(home, lists=lists, recipe="reference"), 10)
  assert names(layout.clips[0]) == sorted(f"{i}.jpg" for i in range(20))
  assert layout.recipe["frame_order"].startswith("string")
  case = json.loads((GOLDEN / "dataset.json").read_text())["cases"]["dfew_unpadded_names_20_frames"]
  taken = [names(layout.clips[0])[int(20 / 32 + 20 / 16 * i)] for i in range(16)]
  assert [int(Path(name).stem) for name in taken] == case["frames"]
  change(lists / "DFEW_set_1_test.txt", "00001 20", "00001 21")
  change(lists / "DFEW_set_2_test.txt", "00003 20", "00003 0")
  archives.write_text(home / PICTURES / "00005/Thumbs.db", "")
  archives.write_text(home / PICTURES / "00006/.DS_Store", "")  # the original's glob does not see it
  problems(
    read_dfew(home, lists=lists, recipe="reference"),
    "00001: Clip/clip_224x224/00001 holds 20 pictures, 21 are annotated",
    "00003: Clip/clip_224x224/00003 holds 20 pictures, 0 are annotated",
    "00005: Clip/clip_224x224/00005 holds what is no picture, but counts in the original: Thumbs.db",
    left=7,
  )
  layout = good(read_dfew(home, lists=lists), 10)
  assert len(layout.clips[0].frames) == 20
  assert [note.what.split(":")[0] for note in layout.notes] == [
    "clips annotated with more frames than there are files",
    "clips annotated with fewer frames than there are files",
    "clips with something that by its extension is no picture, not used",
  ]


def test_everything_wrong_with_dfew_is_said_at_once(tmp_path):
  more = {f"{i:05d}": (k, 0) for k in range(1, 6) for i in range(10 * k, 10 * k + 4)}
  home = archives.dfew(tmp_path / "raw", clips=archives.DFEW | more, frames=4)
  frames, test, outside = home / PICTURES, home / TEST, tmp_path / "elsewhere"
  shutil.rmtree(frames / "00001")
  shutil.rmtree(frames / "00002")
  (frames / "00002").mkdir()
  archives.write_pictures(frames / "3", 2)
  (home / "Clip/raw_wav/4.wav").unlink()
  archives.write_wav(home / "Clip/raw_wav/00005.wav")
  shutil.move(frames / "00006", outside)
  (frames / "00006").symlink_to(outside)
  shutil.move(frames / "00007/3.jpg", tmp_path / "3.jpg")
  (frames / "00007/3.jpg").symlink_to(tmp_path / "3.jpg")
  for k, old, new in (
    (4, "8,2", "8,9"),
    (5, "9,3", "9,glad"),
    (1, "11,1", "12,1"),  # twice in one list, and 11 in none
    (2, "20,1", "20,3"),
    (3, "30,1", "30;1"),
    (3, "31,1", "clip31,1"),
    (4, "40,1\n", "40,1\n13,1\n"),
  ):
    change(test / f"set_{k}.csv", old, new)
  change(home / SETS / "train(single-labeled)/set_5.csv", "41,1\n", "")
  layout = read_dfew(home)
  text = "\n".join(said(layout.problems))
  for part in (
    "set_1.csv line 2: 00001: no folder in Clip/clip_224x224",
    "00002: Clip/clip_224x224/00002 holds no pictures (nothing at all)",
    "00003: several folders: Clip/clip_224x224/00003, Clip/clip_224x224/3",
    "00004: no wav in Clip/raw_wav",
    "00005: several wavs: Clip/raw_wav/00005.wav, Clip/raw_wav/5.wav",
    f"Clip/clip_224x224/00006: 00006: is a link that leads out of {home}, to {outside}",
    f"00007: Clip/clip_224x224/00007/3.jpg is a link that leads out of {home}",
    "set_4.csv line 3: 00008: '9' is not the label of a class",
    "set_5.csv line 2: 00009: 'glad' is not the label of a class",
    f"set_1.csv line 6: 00012: is in {TEST}/set_1.csv line 5 already",
    "train(single-labeled)/set_2.csv and the training sets of the folds 3, 4, 5: 00011: in no test set",
    "train(single-labeled)/set_1.csv and the training sets of the folds 2, 4, 5: 00031: in no test set",
    f"set_1.csv line 9 and the training sets of the folds 3, 4, 5: 00020: happy, but neutral in {TEST}/set_2.csv line 4",
    "test(single-labeled)/set_3.csv line 4: 00030: 1 value in 2 columns: '30;1'",
    "test(single-labeled)/set_3.csv line 5: 'clip31' is not the number of a clip",
    f"set_4.csv line 5: 00013: is in {TEST}/set_1.csv line 7 already",
    "train(single-labeled)/set_5.csv: 00041: missing, though in the test set of another fold",
  ):
    assert part in text, text
  bad = {1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 20, 30, 31, 41}
  assert {int(clip.clip_id) for clip in layout.clips}.isdisjoint(bad)
  assert len(layout.clips) == 29 - len(bad)


def test_links_are_followed_on_request(tmp_path):
  home = archives.dfew(tmp_path / "raw", frames=1)
  shutil.move(home / PICTURES, tmp_path / "clip_224x224")
  (home / PICTURES).symlink_to(tmp_path / "clip_224x224")
  (home / "Clip/loop").symlink_to(home)
  with refused(r"(?s)no folder clip_224x224.*link that leads out of .*--follow_links"):
    read_dfew(home)
  good(read_dfew(home, follow_links=True), 10)
  (home / PICTURES).unlink()
  shutil.move(tmp_path / "clip_224x224", home / "faces")
  (home / PICTURES).symlink_to("../faces")  # stays inside
  good(read_dfew(home), 10)


def test_folds_that_are_not_there(tmp_path):
  """What is wrong with the whole has no clips that could be left out for it."""
  home = archives.dfew(tmp_path, frames=1)
  (home / TEST / "set_2.csv").unlink()
  (home / SETS / "train(single-labeled)/set_3.csv").unlink()
  archives.write_text(home / TEST / "set_6.csv", "video_name,label\n1,1\n")
  archives.write_text(home / SETS / "readme.txt", "")
  wanted = "EmoLabel_DataSplit: no list of the test set of fold 2; found"
  layout = problems(read_dfew(home), wanted, "set_6.csv: there is no fold 6", left=8)
  assert {problem.clips for problem in layout.problems} == {()}
  assert layout.splits == {f"fold{k}" for k in range(1, 6)}
  for text in ("readme.txt", "no list of the training set of fold 3"):
    assert any(text in note for note in said(layout.notes))


@pytest.mark.parametrize(("text", "words"), [
  (b"\xff\xfe", "must be saved as UTF-8"),
  ("video_name,label\n3,4\n".encode("utf-16"), "must be saved as UTF-8"),
  (b"", "is empty"),
  (b"video_name,label\n", "names no clip"),
  (b'video_name,label\n"7"x,1\n', "cannot be read in line 2"),
  (b"7,1\n8,2\n", "must begin with the line video_name,label"),
  (b"video_name|label\n1|1\n",
   "must begin with the line video_name,label (comma, semicolon or tab); it begins with 'video_name|label'"),
])  # fmt: skip
def test_lists_that_cannot_be_read(tmp_path, text, words):
  home = archives.dfew(tmp_path, frames=1)
  (home / TEST / "set_4.csv").write_bytes(text)
  layout = problems(read_dfew(home), f"{TEST}/set_4.csv: {words}", left=8)
  assert layout.problems[0].clips == ()


def test_a_misnamed_clip_is_two_clips_and_said_once(tmp_path):
  """One is listed that is not there, another is there and in no test list, whatever the other lists show of it."""
  home = archives.dfew(tmp_path, frames=1)
  change(home / TEST / "set_1.csv", "1,2", "99,2")
  layout = problems(
    read_dfew(home),
    "test(single-labeled)/set_1.csv line 2: 00099: no folder in Clip/clip_224x224; no wav in Clip/raw_wav",
    "train(single-labeled)/set_2.csv and the training sets of the folds 3, 4, 5: 00001: in no test set",
    left=9,
  )
  assert {problem.clips for problem in layout.problems} == {("00001",), ("00099",)}
  assert layout.notes == []  # 00001 is no clip in no list


@pytest.mark.parametrize(
  ("names", "note"),
  [
    (["1.jpg", "2.jpg", "4.jpg", "9.jpg"], "gaps in the numbers of their pictures: {} (5 lacking)"),
    (["f1_0001.jpg", "f1_0003.jpg"], "gaps in the numbers of their pictures: {} (1 lacking)"),
    (["4.jpg", "05.jpg", "5.jpg"], "several pictures of the same number: {} (05.jpg, 5.jpg)"),
    (["1.jpg", "2.jpg", "cover.jpg"], "pictures without a number among numbered ones: {} (cover.jpg)"),
    (["1.jpg", "2.jpg", "2_2.jpg"], "pictures that are named in different ways: {} (1.jpg, 2_2.jpg)"),
    (["a.jpg", "b.jpg"], None),
    (["f2_1.jpg", "f2_2.jpg"], None),
    (["f1_1.jpg", "f2_1.jpg", "f9_1.jpg", "f9_2.jpg"], None),
  ],
)
def test_odd_numbers_of_pictures_are_noted(tmp_path, names, note):
  home = archives.dfew(tmp_path, frames=2)
  for clip in ("00003", "00004"):
    shutil.rmtree(home / PICTURES / clip)
    for name in names:
      archives.write_picture(home / PICTURES / clip / name, 1)
  notes = said(good(read_dfew(home), 10).notes)
  expected = note and note.replace(":", " (2):", 1).format(f"{PICTURES}/00003")
  assert [text.split(", Clip")[0] for text in notes] == ([f"clips with {expected}"] if note else [])


def test_one_bad_line_does_not_change_the_form_of_a_list(tmp_path):
  """Whichever it is, the line is the problem, and the others are read."""
  home, lists = archives.mafw(tmp_path, lists=False), tmp_path / "lists"
  for k in (1, 5):  # two lines and three: as many, and most
    archives.counted_lists(lists, archives.MAFW, "MAFW_set_{k}_{part}.txt", "data/clips_faces", 12)
    path = lists / f"MAFW_set_{k}_test.txt"
    first = path.read_text().splitlines()[0]
    clip = first.split()[0][-5:]
    change(path, first, first.rsplit(" ", 1)[0])
    wrong = f"{path} line 1: {clip}: 'data/clips_faces/{clip} 12' is not of the form of the other lines"
    for recipe in ("default", "reference"):
      problems(read_mafw(home, lists=lists, recipe=recipe), wrong, left=10)
  home = archives.mafw(tmp_path / "names")
  path = home / "Train & Test Set/single/no_caption/set_2/train.txt"
  path.write_text("the training set of fold 2\n" + path.read_text())
  problems(
    read_mafw(home), "set_2/train.txt line 1: 'the training set of fold 2' is not of the form", left=11
  )


def test_lists_that_contradict_each_other(tmp_path):
  home = archives.dfew(tmp_path, frames=1)
  train = home / SETS / "train(single-labeled)"
  change(train / "set_1.csv", "3,4", "1,2")  # trained on what is tested; 3 missing
  archives.write_text(home / SETS / "test_set_4.csv", "video_name,label\n7,1\n")
  shutil.copy(train / "set_2.csv", home / SETS / "train_set_2.csv")  # the same again does no harm
  problems(
    read_dfew(home),
    "set_1.csv: 00001: also in the test set of the same fold",
    "set_1.csv: 00003: missing, though in the test set of another fold",
    "is another test list of fold 4, beside",
    left=8,
  )


def rewrite_labels(home, label_of):
  for path in (home / SETS).rglob("*.csv"):
    rows = re.sub(
      r"^(\d+),(\d+)$", lambda m: f"{m[1]},{label_of(int(m[2]))}", path.read_text(), flags=re.MULTILINE
    )
    path.write_text(rows)


def test_labels_that_are_all_one_off_are_refused(tmp_path):
  home = archives.dfew(tmp_path, frames=1)
  rewrite_labels(home, lambda number: number - 1)
  with refused(r"labels go from 0 to 6; these lists must count happy, .* from 1 to 7"):
    read_dfew(home)


def test_labels_in_words(tmp_path):
  home = archives.dfew(tmp_path / "right", frames=1)
  words = ("Happiness", "sad", "neutral", "ANGER", "surprise", "disgusted", "fear")
  rewrite_labels(home, lambda number: words[number - 1])
  layout = good(read_dfew(home), 10)
  assert labels(layout) == DFEW_LABELS
  assert "the label Happiness is read as happy: 00007" in said(layout.notes)
  home = archives.dfew(tmp_path / "wrong", frames=1)
  rewrite_labels(home, lambda number: "glad")
  (line,) = in_lines(read_dfew(home).problems)
  assert line.startswith("10 clips with the same kind of problem: ")
  assert line.count("'glad' is not the label of a class") == 3
  assert line.endswith("; and 00004, 00005, 00006, 00007, 00008, 00009, 00010")


def test_sound_that_is_not_there(tmp_path):
  home = archives.dfew(tmp_path, frames=1, sound="none")
  silent = "there is no sound: no folder raw_wav or original (--allow_missing_sound"
  problems(read_dfew(home), silent, left=10)
  layout = good(read_dfew(home, allow_missing_sound=True), 10)
  assert {clip.sound for clip in layout.clips} == {None}
  assert layout.recipe["sound"] == "none"
  archives.write_wav(home / "Clip/raw_wav/1.wav")
  missing = [
    f"{i:05d}: no wav in Clip/raw_wav (--allow_missing_sound takes such clips)" for i in range(2, 11)
  ]
  problems(read_dfew(home), *missing, left=1)
  (note,) = said(good(read_dfew(home, allow_missing_sound=True), 10).notes)
  assert note.startswith("Clip/raw_wav: clips without sound (9): 00002, 00003")


def test_what_is_no_data_set_is_described(tmp_path):
  with refused("there is no such folder"):
    read_dfew(tmp_path / "DFEW")
  archives.write_text(tmp_path / "file", "")
  with refused("is no folder"):
    read_mafw(tmp_path / "file")
  for name in ("a.zip", "b/c.txt"):
    archives.write_text(tmp_path / "wrong" / name, "")
  for read, missing in ((read_dfew, "no lists of folds"), (read_mafw, "no lists of folds"), (read_ravdess, ""), (read_cremad, "")):  # fmt: skip
    with refused(rf"(?s){missing}.*found: b/, a.zip.*accepted for"):
      read(tmp_path / "wrong")
  home = archives.dfew(tmp_path, frames=1)
  with refused("recipe=reference"):
    read_dfew(home, frames="video", recipe="reference")
  with refused(r"(?s)no folder clip_224x224_16f, which --frames=16f needs.*found: Clip/, EmoLabel"):
    read_dfew(home, frames="16f")
  (home / PICTURES).rename(home / "Clip/clip_224x224_16f")
  with refused(r"(?s)no folder clip_224x224, .*there is Clip/clip_224x224_16f: --frames=16f takes it"):
    read_dfew(home)
  shutil.copytree(home, tmp_path / "copy")
  with refused("several folders EmoLabel_DataSplit"):
    read_dfew(tmp_path)


def test_unused_clips_and_files_are_noted(tmp_path):
  home = archives.dfew(tmp_path)
  (home / "Clip/raw_wav").rename(home / "Clip/Raw_WAV")
  archives.write_pictures(home / PICTURES / "16372", 3)
  archives.write_text(home / PICTURES / "part1.zip", "")
  archives.write_text(home / PICTURES / "00001/notes.txt", "")
  archives.write_picture(home / PICTURES / "00002/99.png", 1)
  layout = good(read_dfew(home), 10)
  assert names(layout.clips[1])[-1] == "99.png"
  assert said(layout.notes) == [
    "Clip/Raw_WAV: taken for raw_wav, from which it differs in case",
    "Clip/clip_224x224: files beside the clips, not used: part1.zip",
    "Clip/clip_224x224: clips in no list, not used: 16372",
    "clips with something that by its extension is no picture, not used: Clip/clip_224x224/00001 (notes.txt)",
    "clips with pictures of several file types: Clip/clip_224x224/00002 (.jpg, .png)",
    "clips with gaps in the numbers of their pictures: Clip/clip_224x224/00002 (79 lacking)",
  ]


def test_sounds_of_other_kinds(tmp_path):
  home = archives.dfew(tmp_path, frames=1)
  for wav in (home / "Clip/raw_wav").iterdir():
    wav.rename(wav.with_suffix(".MP3" if wav.stem == "1" else ".m4a"))
  layout = good(read_dfew(home), 10)
  assert layout.recipe["sound"] == "m4a and mp3 files of raw_wav"
  assert any(note.warning and "m4a, mp3" in note.what for note in layout.notes)
  archives.write_wav(home / "Clip/raw_wav/1.wav")
  layout = good(read_dfew(home), 10)
  assert layout.recipe["sound"] == "m4a and wav files of raw_wav"
  assert "Clip/raw_wav: other sounds beside a .wav of the same clip, not used: 00001" in said(layout.notes)


def test_wavs_that_were_all_resampled_are_warned_of(tmp_path, monkeypatch):
  for read, make in ((read_dfew, archives.dfew), (read_mafw, archives.mafw)):
    monkeypatch.setattr(archives, "RATE", 16_000)
    home = make(tmp_path)
    (note,) = read(home).notes
    assert note.warning
    assert "2.6 UAR" in note.what
    monkeypatch.setattr(archives, "RATE", 44_100)
    archives.write_wav(next(home.rglob("*.wav")))
    assert read(home).notes == []


# ---- MAFW ----


@pytest.mark.parametrize("order", ["mafw", "mafw-official"])
def test_mafw_as_handed_out(tmp_path, order):
  home = archives.mafw(tmp_path)
  layout = good(read_mafw(tmp_path, labels=order), 11)
  assert (layout.classes, layout.class_order) == LABEL_ORDERS[order]
  assert labels(layout) == MAFW_LABELS
  assert layout.clips[0].sound == home / "data/clips_wav/00025.wav"
  assert layout.notes == []
  assert layout.recipe["label_numbers"] == "names, not numbers"
  assert layout.recipe["frame_coding"] == "as delivered"
  assert read_mafw(tmp_path, numbers="mafw").recipe["label_numbers"].endswith("(--numbers=mafw is not used)")


def test_mafw_names_numbers_and_delimiters_mean_the_same(tmp_path):
  home = archives.mafw(tmp_path, frames=1)
  for written, delimiter in (("numbers", " "), ("numbers", "\t"), ("names", ","), ("names", "; ")):
    archives.mafw_lists(home / "Train & Test Set/single/no_caption", written=written, delimiter=delimiter)
    assert labels(good(read_mafw(home), 11)) == MAFW_LABELS
  home = home.rename(home.with_name("elsewhere"))
  (home / "Train & Test Set").rename(home / "split")  # as MAE-DFER has it
  assert labels(good(read_mafw(home), 11)) == MAFW_LABELS
  archives.mafw_lists(tmp_path / "mine", written="numbers")
  assert labels(good(read_mafw(home, lists=tmp_path / "mine"), 11)) == MAFW_LABELS


def test_mafw_pictures_of_every_kind(tmp_path):
  home = archives.mafw(tmp_path, frames=2, folders=["clips_faces", "frames"], videos=True, name="{:04d}.png")
  layout = good(read_mafw(home), 11)
  assert layout.recipe["frames"] == "faces"
  assert any("--frames=scenes" in note for note in said(layout.notes))
  layout = good(read_mafw(home, frames="scenes"), 11)
  assert layout.clips[0].frames[0] == home / "data/frames/00025/0000.png"
  assert any("whole scenes" in note for note in said(layout.notes))
  layout = good(read_mafw(home, frames="video"), 11)
  assert layout.clips[0].video == home / "data/clips/00025.mp4"
  assert layout.clips[0].sound == home / "data/clips_wav/00025.wav"
  (home / "data/clips_wav/00026.wav").unlink()
  silent = "00026: no wav in data/clips_wav (--allow_missing_sound takes such clips)"
  problems(read_mafw(home), silent, left=10)
  layout = good(read_mafw(home, allow_missing_sound=True), 11)
  assert [clip.clip_id for clip in layout.clips if clip.sound is None] == ["00026"]
  assert "data/clips_wav: clips without sound: 00026" in said(layout.notes)
  shutil.rmtree(home / "data/clips_wav")
  assert good(read_mafw(home), 11).clips[0].sound == home / "data/clips/00025.mp4"
  shutil.rmtree(home / "data/clips")
  problems(read_mafw(home), "there is no sound: no folder clips_wav or clips (--allow_missing_sound", left=11)
  good(read_mafw(home, allow_missing_sound=True), 11)
  shutil.rmtree(home / "data/clips_faces")
  with refused(r"frames holds whole scenes.*--faces=yunet.*or --frames=scenes"):
    read_mafw(home, allow_missing_sound=True)
  for faces, warned in (("yunet", False), ("none", True)):
    layout = good(read_mafw(home, allow_missing_sound=True, faces=faces), 11)
    assert layout.recipe["frames"] == "scenes"
    assert any(note.warning and "whole scenes" in note.what for note in layout.notes) == warned
  with refused("no folder clips_faces, which --frames=faces needs"):
    read_mafw(home, frames="faces")


def test_reference_recipe_of_mafw(tmp_path):
  """The annotated count is one too low, so that the last in string order is never used."""
  home, lists = archives.mafw(tmp_path, lists=False), tmp_path / "lists"
  archives.counted_lists(
    lists, archives.MAFW, "MAFW_set_{k}_{part}_faces.txt", "x/mfaw/clips_faces", 11, final=""
  )
  layout = good(read_mafw(home, lists=lists, recipe="reference"), 11)
  assert {tuple(names(clip)) for clip in layout.clips} == {tuple(sorted(f"{i}.jpg" for i in range(12))[:11])}
  assert names(layout.clips[0])[:4] == ["0.jpg", "1.jpg", "10.jpg", "11.jpg"]
  assert labels(layout) == MAFW_LABELS
  assumed = "mafw (assumed from the lists' form; --numbers=… changes it)"
  assert layout.recipe["label_numbers"] == assumed
  numbers, fewer = said(layout.notes)
  assert numbers == f"label numbers: {assumed}"
  assert fewer.startswith("clips annotated with fewer frames than there are files")
  assert "(11): data/clips_faces/00025 (11 annotated, 12 there)" in fewer
  layout = good(read_mafw(home, lists=lists), 11)
  assert names(layout.clips[0]) == [f"{i}.jpg" for i in range(12)]
  with refused("give --lists="):
    read_mafw(home, recipe="reference")
  archives.mafw_lists(tmp_path / "official")
  with refused("recipe=reference needs lists with lines `DIR COUNT LABEL`"):
    read_mafw(home, lists=tmp_path / "official", recipe="reference")


def test_the_two_label_orders_are_never_mixed_up(tmp_path):
  home, lists = archives.mafw(tmp_path, frames=12, lists=False), tmp_path / "lists"
  order = [archives.MAFW_OFFICIAL_NAMES.index(name) for name in archives.MAFW_NAMES]
  archives.counted_lists(lists, archives.MAFW, "set_{k}_{part}.txt", "clips_faces", 12, order)
  with refused(r"(?s)two label orders.*--numbers=mafw if 0 is happiness"):
    read_mafw(home, lists=lists)
  layout = good(read_mafw(home, lists=lists, numbers="mafw-official"), 11)
  assert labels(layout) == MAFW_LABELS
  assert said(layout.notes) == ["label numbers: mafw-official (as --numbers says)"]
  assert layout.recipe["label_numbers"] == "mafw-official (as --numbers says)"
  for path in list(lists.iterdir()):
    path.rename(path.with_name(f"MAFW_{path.name}"))
  layout = read_mafw(home, lists=lists, numbers="mafw-official")
  assert labels(layout) == MAFW_LABELS
  assert "by their names the lists would count otherwise" in str(layout.notes[1])


def numbered_lists(folder, order, official_form, lacking=0):
  """Complete test lists, less the first few of every class; labels are numbers of this order."""
  clip = 0
  for k in range(1, 6):
    rows = []
    for number, name in enumerate(LABEL_ORDERS[order].classes):
      for _ in range(mafw.COUNTS[f"fold{k}"][name] - lacking):
        clip += 1
        rows.append(f"{clip:05d}.mp4 {number}" if official_form else f"clips_faces/{clip:05d} 12 {number}")
    name = f"set_{k}/test.txt" if official_form else f"MAFW_set_{k}_test_faces.txt"
    archives.write_text(folder / name, "\n".join(rows))
  return folder


@pytest.mark.parametrize(("official_form", "lacking"), [(False, 0), (True, 1)])
def test_published_numbers_of_clips_give_a_wrong_order_away(tmp_path, monkeypatch, official_form, lacking):
  """Complete lists that count by another order than their form says; also when a few clips are not in them."""
  tenth = {fold: {name: 2 + n // 10 for name, n in row.items()} for fold, row in PUBLISHED["mafw"].items()}
  monkeypatch.setattr(mafw, "COUNTS", tenth)
  home = archives.mafw(tmp_path, lists=False)
  assumed, other = ("mafw-official", "mafw")[:: 1 if official_form else -1]
  right = numbered_lists(tmp_path / "right", assumed, official_form, lacking)
  layout = read_mafw(home, lists=right)
  assert layout.recipe["label_numbers"] == f"{assumed} (assumed from the lists' form; --numbers=… changes it)"
  assert sum("no folder in data/clips_faces" in problem.what for problem in layout.problems) > 800
  wrong = numbered_lists(tmp_path / "wrong", other, official_form, lacking)
  with refused(rf"the order {other}.*say --numbers={other}"):
    read_mafw(home, lists=wrong)
  assert read_mafw(home, lists=wrong, numbers=other).recipe["label_numbers"] == f"{other} (as --numbers says)"
  if lacking:  # somebody may know better
    notes = said(read_mafw(home, lists=wrong, numbers=assumed).notes)
    assert any("LABELS ARE PROBABLY WRONG" in note for note in notes)
  else:
    with refused(f"are those of the order {other}; say --numbers={other}$"):
      read_mafw(home, lists=wrong, numbers=assumed)


def test_everything_wrong_with_mafw_is_said_at_once(tmp_path):
  home = archives.mafw(tmp_path)
  official = home / "Train & Test Set/single/no_caption"
  change(official / "set_1/test.txt", "anger", "glad")
  change(official / "set_2/test.txt", "00027.mp4 disgust", "00027.mp4 disgust A man, who is disgusted.")
  change(official / "set_3/test.txt", "00029", "00025")
  shutil.rmtree(home / "data/clips_faces/00031")
  (home / "data/clips_faces/00032").rename(home / "data/clips_faces/x")
  layout = read_mafw(home)
  text = "\n".join(said(layout.problems))
  for part in (
    "set_1/test.txt line 1: 00025: 'glad' is not the label of a class",
    "set_2/test.txt line 1: 00027: '00027.mp4 disgust A man, who is disgusted.' is not of the form of the other lines",
    "set_4/test.txt line 1: 00031: no folder in data/clips_faces",
    "set_4/test.txt line 2: 00032: no folder in data/clips_faces",
  ):
    assert part in text, text
  assert {"00025", "00027", "00029", "00031", "00032"}.isdisjoint(labels(layout))
  change(official / "set_1/test.txt", "glad", "99")
  assert "'99' is not the label of a class" in "\n".join(said(read_mafw(home).problems))
  (official / "set_1/test.txt").write_text("00025.mp4 11\n00026.mp4 1\n")
  with refused("labels go from 1 to 11"):
    read_mafw(home)


def test_lists_made_for_other_pictures_are_refused(tmp_path):
  home, lists = archives.mafw(tmp_path, folders=["clips_faces", "frames"], lists=False), tmp_path / "lists"
  archives.counted_lists(lists, archives.MAFW, "MAFW_set_{k}_{part}.txt", "data/frames", 12)
  with refused("the lists are of --frames=scenes, but --frames=faces was chosen"):
    read_mafw(home, lists=lists)
  good(read_mafw(home, frames="scenes", lists=lists), 11)


# ---- folders of classes, RAVDESS and CREMA-D ----


def folders(home, *names, classes=("sad", "Happy 2", "Happy 10")):
  for label in classes:
    for name in names:
      archives.write_text(home / label / name, "not looked into")
  return home


def test_folders_of_classes(tmp_path):
  speakers = ("anna", "ben", "Cem", "dora")
  home = folders(tmp_path, *(f"{speaker}_{i}.mp4" for speaker in speakers for i in range(5)))
  archives.write_text(home / "sad/notes.txt", "")
  layout = good(read_folders(home, test_share=0.2), 60)
  assert layout.classes == ("Happy 2", "Happy 10", "sad")
  expected = {(split, label): n for split, n in (("test", 4), ("train", 16)) for label in layout.classes}
  assert Counter((clip.split, clip.label) for clip in layout.clips) == expected
  rule = "test: 20 % of the clips of each class, by sha256 of the seed 0 and the name"
  assert layout.recipe["folds"] == rule
  assert "no videos by extension, not used: sad/notes.txt" in said(layout.notes)
  assert read_folders(home, test_share=0.2).clips == layout.clips
  assert read_folders(home, test_share=0.2, split_seed=1).clips != layout.clips
  layout = good(read_folders(home, test_share=0.3, split_by="speaker"), 60)
  heard = {s: {Path(c.clip_id).stem[:3] for c in layout.clips if c.split == s} for s in splits(layout)}
  assert (len(heard["test"]), len(heard["train"])) == (1, 3)
  assert not heard["test"] & heard["train"]
  layout = good(read_folders(home, test_share=0.2, classes=["sad", "Happy 2"]), 40)
  assert layout.classes == ("sad", "Happy 2")
  for share in (0.0, 1.0, -1.0):
    with refused(r"no folders train and test\. Split the clips with --test_share=0\.2"):
      read_folders(home, test_share=share)
  archives.write_text(home / "sad/more/x.mp4", "")
  (home / "empty").mkdir()
  (home / "SAD").mkdir()
  wrong = ("sad/more: is a folder within a class", "empty: holds no videos", "SAD: holds no videos")
  problems(read_folders(home, test_share=0.2), *wrong, "'SAD' and 'sad' differ in case", left=60)


def test_folders_with_a_split_of_their_own(tmp_path):
  for split, count in (("Train", 3), ("test", 2)):
    folders(tmp_path / "data" / split, *(f"{i}.mp4" for i in range(count)))
  layout = good(read_folders(tmp_path / "data"), 15)
  assert splits(layout) == {"train": 9, "test": 6}
  assert layout.classes == ("Happy 2", "Happy 10", "sad")
  assert layout.recipe["folds"] == "the folders train and test"
  with refused("remove --test_share"):
    read_folders(tmp_path / "data", test_share=0.5)
  (tmp_path / "data/angry").mkdir()
  shutil.copytree(tmp_path / "data/test", tmp_path / "test")
  for place in ("data", "."):
    with refused(r"(?s)only if these two folders are there.*found: .*accepted for folders"):
      read_folders(tmp_path / place, test_share=0.5)
  with refused(r"sad/0\.mp4 is alone"):
    read_folders(folders(tmp_path / "one", "0.mp4", classes=["sad"]), test_share=0.5)


@pytest.mark.parametrize("flat", [False, True])
def test_ravdess_folds_share_no_actor(tmp_path, flat):
  layout = good(read_ravdess(archives.ravdess(tmp_path, flat=flat)), 24 * 16)
  actors = {s: {clip.clip_id[-2:] for clip in layout.clips if clip.split == s} for s in splits(layout)}
  assert sorted(actors) == [f"fold{k}" for k in range(1, 6)]
  assert sum(map(len, actors.values())) == 24
  assert actors["fold1"] == {"01", "06", "11", "16", "21"}
  assert layout.recipe["folds"] == "fold = (actor - 1) mod 5 + 1: no actor is in two folds"
  assert layout.classes[1] == "calm"
  assert labels(layout)["01-01-08-01-02-01-24"] == "surprise"


def test_ravdess_classes_are_chosen(tmp_path):
  home = archives.ravdess(tmp_path, range(1, 6))
  layout = good(read_ravdess(home, classes=LABEL_ORDERS["dfew"].classes), 5 * 14)
  assert layout.classes == LABEL_ORDERS["dfew"].classes
  left_out = "clips of the class calm left out, as --classes does not name it (10): 01-01"
  assert str(layout.notes[0]).startswith(left_out)
  with refused("there is no boredom, only neutral, calm"):
    read_ravdess(home, classes=["boredom", "calm"])


def test_one_actor_is_split_by_statement(tmp_path):
  layout = good(read_ravdess(archives.ravdess(tmp_path, [1], flat=True)), 16)
  assert splits(layout) == {"train": 8, "test": 8}
  assert {clip.clip_id.split("-")[4] for clip in layout.clips if clip.split == "train"} == {"01"}
  assert "not speaker-independent" in layout.recipe["folds"]


def test_what_is_left_out_of_ravdess_is_said(tmp_path):
  home = archives.ravdess(tmp_path, range(1, 5))
  for name in ("02-01-03-01-01-01-01.mp4", "01-02-03-01-01-01-01.mp4", "03-01-03-01-01-01-01.wav"):
    archives.write_text(home / "Actor_01" / name, "")
  text = "\n".join(said(good(read_ravdess(home), 64).notes))
  for part in ("left out: video-only", "left out: sung", "03-01-03-01-01-01-01.wav", "no clips in fold 5"):
    assert part in text
  for name in ("Actor_01/01-01-09-01-01-01-01", "Actor_01/01-01-03-01-01-01-02", "01-01-04-01-01-01-01"):
    archives.write_text(home / f"{name}.mp4", "")
  problems(
    read_ravdess(home),
    "Actor_01/01-01-09-01-01-01-01.mp4: is not a RAVDESS name",
    "Actor_01/01-01-03-01-01-01-02.mp4: is of actor 2 by its name",
    "01-01-04-01-01-01-01.mp4 already",
    left=63,
  )


def test_cremad_folds_share_no_speaker(tmp_path):
  layout = good(read_cremad(archives.cremad(tmp_path)), 91 * 6)
  speakers = {s: {int(clip.clip_id[:4]) for clip in layout.clips if clip.split == s} for s in splits(layout)}
  assert [(min(speakers[f"fold{k}"]), max(speakers[f"fold{k}"])) for k in range(1, 6)] == [
    (1001, 1018), (1019, 1036), (1037, 1054), (1055, 1072), (1073, 1091),
  ]  # fmt: skip
  assert layout.clips[0].sound == tmp_path / "AudioWAV/1001_DFA_ANG_XX.wav"
  assert layout.recipe["sound"] == "wav files of AudioWAV"


def test_cremad_without_wavs_or_with_mp4(tmp_path):
  layout = good(read_cremad(archives.cremad(tmp_path, range(1001, 1092, 18), mp4=True, wavs=False)), 36)
  assert {clip.sound == clip.video for clip in layout.clips} == {True}
  archives.cremad(tmp_path, [1001])
  assert "VideoMP4 is there too" in str(good(read_cremad(tmp_path), 6).notes[0])


def test_what_is_wrong_with_cremad(tmp_path):
  home = archives.cremad(tmp_path, range(1001, 1092, 18))
  pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
  archives.write_text(home / "VideoFlash/1001_DFA_ANG_XX.flv", pointer)
  archives.write_text(home / "VideoFlash/1092_DFA_ANG_XX.flv", "")
  (home / "AudioWAV/1019_DFA_ANG_XX.wav").unlink()
  archives.write_text(home / "AudioWAV/1040_ITH_SAD_X.wav", "")
  wrong = ["git lfs pull", "VideoFlash/1092_DFA_ANG_XX.flv: 1092_DFA_ANG_XX: is not a CREMA-D name"]
  silent = "1019_DFA_ANG_XX.flv: 1019_DFA_ANG_XX: no wav in AudioWAV"
  layout = problems(read_cremad(home), *wrong, silent, left=34)
  assert "wavs without a video, not used: 1040_ITH_SAD_X" in said(layout.notes)
  layout = problems(read_cremad(home, allow_missing_sound=True), *wrong, left=35)
  assert [clip.clip_id for clip in layout.clips if clip.sound is None] == ["1019_DFA_ANG_XX"]
  for path in (home / "VideoFlash").iterdir():
    archives.write_text(path, pointer)
  with refused(r"(?s)no videos in VideoFlash.*git lfs pull"):
    read_cremad(home)
