"""Lists of five folds in all the forms in which they are handed out; everything wrong with them comes out at once."""

from collections import Counter
import functools
import re
import shutil

import archives
from archives import bad, change, good, labels, refused, texts, write_text
import pytest

from mma_dfer_jax.data.labels import COUNTS, LABEL_ORDERS
from mma_dfer_jax.data.source import in_lines
from mma_dfer_jax.data.sources import mafw

DFEW, MAFW, SETS, TEST, PICTURES = (
  archives.DFEW,
  archives.MAFW,
  archives.SETS,
  archives.TEST,
  archives.PICTURES,
)
read_dfew, read_mafw = (functools.partial(archives.read, name) for name in ("dfew", "mafw"))


def test_published_numbers():
  per_fold = {name: [sum(fold.values()) for fold in folds.values()] for name, folds in COUNTS.items()}
  totals = {name: sum(of) for name, of in per_fold.items()}
  assert totals == {"dfew": 11_697, "mafw": 9_172, "ravdess": 1_440, "cremad": 7_442}
  assert per_fold["dfew"] == [2341, 2341, 2340, 2339, 2336]
  assert per_fold["mafw"] == [1839, 1837, 1833, 1832, 1831]
  assert all(list(folds) == [f"fold{k}" for k in range(1, 6)] for folds in COUNTS.values())
  for name, numbers in (
    ("dfew", [2445, 1894, 2669, 2173, 1469, 145, 902]),
    ("mafw", [1242, 1470, 1138, 1390, 1072, 639, 625, 236, 916, 262, 182]),
  ):
    assert [sum(fold[c] for fold in COUNTS[name].values()) for c in LABEL_ORDERS[name].classes] == numbers


# ---- DFEW ----


def test_dfew_as_handed_out(tmp_path):
  home = archives.dfew(tmp_path)
  for place in ("", "DFEW-part2", "DFEW-part2/Clip"):  # from above and from within
    layout = good(read_dfew(tmp_path / place), 10)
    assert layout.notes == []
    assert layout.classes == LABEL_ORDERS["dfew"].classes
    assert Counter(clip.split for clip in layout.clips) == {f"fold{k}": 2 for k in range(1, 6)}
    assert labels(layout) == archives.DFEW_LABELS
    for clip in layout.clips:
      assert clip.split == f"fold{DFEW[clip.clip_id][0]}"
      assert clip.sound == home / f"Clip/raw_wav/{int(clip.clip_id)}.wav"
      assert [path.name for path in clip.frames] == [f"{i}.jpg" for i in range(20)]
  assert layout.clips[0].where == f"{TEST}/set_1.csv line 2"
  assert layout.recipe["frame_order"].startswith("natural")
  assert layout.recipe["sound"] == "wav files of raw_wav"


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
  assert labels(layout) == archives.DFEW_LABELS
  mark = options.get("header", ",,,,,,,,,,,")[10]
  odd = [f"columns are separated by {mark!r}, not by a comma (10)"] if mark != "," else []
  assert [note.split(":")[0] for note in texts(layout.notes)] == odd


def test_dfew_lists_of_the_original(tmp_path):
  home, lists = archives.dfew(tmp_path / "raw", frames=20, csvs=False), tmp_path / "annotation"
  root = "/my files/DFEW_Frame_Face"
  archives.counted_lists(lists, DFEW, "DFEW_set_{k}_{part}.txt", root, 20, final="")
  archives.counted_lists(lists, MAFW, "MAFW_set_{k}_{part}.txt", "faces", 11)
  change(lists / "DFEW_set_1_test.txt", "Face/00001 20", "Face/00001/  20 ")
  change(lists / "DFEW_set_2_test.txt", f"{root}/", "D:\\my files\\DFEW_Frame_Face\\")
  layout = good(read_dfew(home, lists=lists), 10)
  assert labels(layout) == archives.DFEW_LABELS
  assert layout.clips[0].where == f"{lists / 'DFEW_set_1_test.txt'} line 1"
  (note,) = texts(layout.notes)
  assert "not used (10): MAFW_set_1_test.txt" in note
  (home / PICTURES).rename(home / "DFEW_Frame_Face")  # the name that the lists know
  notes = texts(good(read_dfew(home, lists=lists), 10).notes)
  assert "DFEW_Frame_Face: pictures are taken from here, as the lists name this folder" in notes


def test_everything_wrong_with_dfew_comes_at_once(tmp_path):
  more = {f"{i:05d}": (k, 0) for k in range(1, 6) for i in range(10 * k, 10 * k + 4)}
  home = archives.dfew(tmp_path / "raw", clips=DFEW | more, frames=4)
  frames, test, outside = home / PICTURES, home / TEST, tmp_path / "elsewhere"
  shutil.rmtree(frames / "00001")
  shutil.rmtree(frames / "00002")
  (frames / "00002").mkdir()
  archives.write_pictures(frames / "3", 2)
  (home / "Clip/raw_wav/4.wav").unlink()
  archives.write_wav(home / "Clip/raw_wav/00005.wav")
  for path, target in ((frames / "00006", outside), (frames / "00007/3.jpg", tmp_path / "3.jpg")):
    shutil.move(path, target)
    path.symlink_to(target)
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
  layout = bad(
    read_dfew(home),
    "set_1.csv line 2: 00001: no folder in Clip/clip_224x224",
    "00002: Clip/clip_224x224/00002 holds no pictures (nothing at all)",
    "00003: several folders: Clip/clip_224x224/00003, Clip/clip_224x224/3",
    "00004: no wav in Clip/raw_wav",
    "00005: several wavs: Clip/raw_wav/00005.wav, Clip/raw_wav/5.wav",
    f"Clip/clip_224x224/00006: 00006: is a link that leads out of {home}, to {outside}",
    f"00007: Clip/clip_224x224/00007/3.jpg is a link that leads out of {home}",
    "set_4.csv line 3: 00008: unknown label '9'; write happy, sad, neutral, angry, surprise, disgust, fear or 1…7",
    "set_5.csv line 2: 00009: unknown label 'glad'; write happy",
    f"set_1.csv line 6: 00012: is in {TEST}/set_1.csv line 5 already",
    "train(single-labeled)/set_2.csv and the training sets of the folds 3, 4, 5: 00011: in no test set",
    "train(single-labeled)/set_1.csv and the training sets of the folds 2, 4, 5: 00031: in no test set",
    f"set_1.csv line 9 and the training sets of the folds 3, 4, 5: 00020: happy, but neutral in {TEST}/set_2.csv line 4",
    "test(single-labeled)/set_3.csv line 4: 00030: 1 value in 2 columns: '30;1'",
    "test(single-labeled)/set_3.csv line 5: 'clip31' is not the number of a clip",
    f"set_4.csv line 5: 00013: is in {TEST}/set_1.csv line 7 already",
    "train(single-labeled)/set_5.csv: 00041: missing, though in the test set of another fold",
    left=13,
  )
  assert {*range(1, 10), 11, 12, 13, 20, 30, 31, 41}.isdisjoint(map(int, labels(layout)))


def test_folds_that_are_not_there(tmp_path):
  """What is wrong with the whole has no clips that could be left out for it."""
  home = archives.dfew(tmp_path, frames=1)
  (home / TEST / "set_2.csv").unlink()
  (home / SETS / "train(single-labeled)/set_3.csv").unlink()
  (home / TEST / "set_1.csv").write_text("order,video_name,label\n7,00001.mp4,2\n\n8, 2 , 3\n")
  write_text(home / TEST / "set_6.csv", "video_name,label\n1,1\n")
  write_text(home / SETS / "readme.txt", "")
  wanted = "EmoLabel_DataSplit: no list of the test set of fold 2; found"
  layout = bad(read_dfew(home), wanted, "set_6.csv: there is no fold 6", left=8)
  assert {problem.clips for problem in layout.problems} == {()}
  assert layout.splits == {f"fold{k}" for k in range(1, 6)}
  assert layout.clips[1].where == f"{TEST}/set_1.csv line 4"
  for text in ("readme.txt", "no list of the training set of fold 3", "columns that are not used: order: "):
    assert any(text in note for note in texts(layout.notes))


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
  layout = bad(read_dfew(home), f"{TEST}/set_4.csv: {words}", left=8)
  assert layout.problems[0].clips == ()


def test_a_misnamed_clip_is_two_clips_and_comes_once(tmp_path):
  """One is listed that is not there, another is there and in no test list, whatever the other lists show of it."""
  home = archives.dfew(tmp_path, frames=1)
  change(home / TEST / "set_1.csv", "1,2", "99,2")
  layout = bad(
    read_dfew(home),
    "test(single-labeled)/set_1.csv line 2: 00099: no folder in Clip/clip_224x224; no wav in Clip/raw_wav",
    "train(single-labeled)/set_2.csv and the training sets of the folds 3, 4, 5: 00001: in no test set",
    left=9,
  )
  assert {problem.clips for problem in layout.problems} == {("00001",), ("00099",)}
  assert layout.notes == []  # 00001 is no clip in no list


def test_lists_that_contradict_each_other(tmp_path):
  home = archives.dfew(tmp_path, frames=1)
  train = home / SETS / "train(single-labeled)"
  change(train / "set_1.csv", "3,4", "1,2")  # trained on what is tested; 3 missing
  write_text(home / SETS / "test_set_4.csv", "video_name,label\n7,1\n")
  shutil.copy(train / "set_2.csv", home / SETS / "train_set_2.csv")  # the same again does no harm
  bad(
    read_dfew(home),
    "set_1.csv: 00001: also in the test set of the same fold",
    "set_1.csv: 00003: missing, though in the test set of another fold",
    "is another test list of fold 4, beside",
    left=8,
  )


def test_labels_in_words_and_labels_that_are_one_off(tmp_path):
  home = archives.dfew(tmp_path, frames=1)
  original = {path: path.read_text() for path in (home / SETS).rglob("*.csv")}

  def rewrite(label_of):
    for path, text in original.items():
      path.write_text(re.sub(r"(?m)^(\d+),(\d+)$", lambda m: f"{m[1]},{label_of(int(m[2]))}", text))

  rewrite(lambda number: number - 1)
  with refused(r"labels go from 0 to 6, but here 1 is happy and 7 is fear; add 1 to every label$"):
    read_dfew(home)
  words = ("Happiness", "sad", "neutral", "ANGER", "surprise", "disgusted", "fear")
  rewrite(lambda number: words[number - 1])
  layout = good(read_dfew(home), 10)
  assert labels(layout) == archives.DFEW_LABELS
  assert "the label Happiness is read as happy: 00007" in texts(layout.notes)
  rewrite(lambda number: "glad" if number != 4 else "shock")
  layout = read_dfew(home)
  assert layout.doubtful == set(layout.classes)
  (line,) = in_lines(layout.problems)
  assert line == (
    "10 clips: unknown label 'glad' (8 clips), 'shock' (2); write happy, sad, neutral, angry, surprise, disgust, fear or 1…7, "
    f"as in {TEST}/set_1.csv line 2: 00001, {TEST}/set_1.csv line 3: 00002, {TEST}/set_2.csv line 2: 00003"
  )


# ---- MAFW ----

OFFICIAL = "Train & Test Set/single/no_caption"


@pytest.mark.parametrize("order", ["mafw", "mafw-official"])
def test_mafw_as_handed_out(tmp_path, order):
  home = archives.mafw(tmp_path)
  layout = good(read_mafw(tmp_path, labels=order), 11)
  assert (layout.classes, layout.class_order) == LABEL_ORDERS[order]
  assert labels(layout) == archives.MAFW_LABELS
  assert layout.clips[0].sound == home / "data/clips_wav/00025.wav"
  assert layout.notes == []
  assert layout.recipe["label_numbers"] == "names, not numbers"
  assert layout.recipe["frame_coding"] == "as delivered"
  assert read_mafw(tmp_path, numbers="mafw").recipe["label_numbers"].endswith("(--numbers=mafw is not used)")


def test_mafw_names_numbers_and_delimiters_mean_the_same(tmp_path):
  home = archives.mafw(tmp_path, frames=1)
  for written, delimiter in (("numbers", " "), ("numbers", "\t"), ("names", ","), ("names", "; ")):
    archives.mafw_lists(home / OFFICIAL, written=written, delimiter=delimiter)
    assert labels(good(read_mafw(home), 11)) == archives.MAFW_LABELS
  home = home.rename(home.with_name("elsewhere"))
  (home / "Train & Test Set").rename(home / "split")  # as MAE-DFER has it
  assert labels(good(read_mafw(home), 11)) == archives.MAFW_LABELS
  archives.mafw_lists(tmp_path / "mine", written="numbers")
  assert labels(good(read_mafw(home, lists=tmp_path / "mine"), 11)) == archives.MAFW_LABELS


def test_one_bad_line_does_not_change_the_form_of_a_list(tmp_path):
  """Whichever it is, the line is the problem, and the others are read."""
  home, lists = archives.mafw(tmp_path, lists=False), tmp_path / "lists"
  for k in (1, 5):  # two lines and three: as many, and most
    archives.counted_lists(lists, MAFW, "MAFW_set_{k}_{part}.txt", "data/clips_faces", 12)
    path = lists / f"MAFW_set_{k}_test.txt"
    first = path.read_text().splitlines()[0]
    clip = first.split()[0][-5:]
    change(path, first, first.rsplit(" ", 1)[0])
    wrong = f"{path} line 1: {clip}: 'data/clips_faces/{clip} 12' is not of the form of the other lines"
    for recipe in ("default", "reference"):
      bad(read_mafw(home, lists=lists, recipe=recipe), wrong, left=10)


def test_the_two_label_orders_are_never_mixed_up(tmp_path):
  home, lists = archives.mafw(tmp_path, lists=False), tmp_path / "lists"
  order = [archives.MAFW_OFFICIAL_NAMES.index(name) for name in archives.MAFW_NAMES]
  archives.counted_lists(lists, MAFW, "set_{k}_{part}.txt", "clips_faces", 12, order)
  with refused(r"(?s)two label orders.*--numbers=mafw if 0 is happiness"):
    read_mafw(home, lists=lists)
  layout = good(read_mafw(home, lists=lists, numbers="mafw-official"), 11)
  assert labels(layout) == archives.MAFW_LABELS
  assert texts(layout.notes) == ["label numbers: mafw-official (as --numbers says)"]
  assert layout.recipe["label_numbers"] == "mafw-official (as --numbers says)"
  for path in list(lists.iterdir()):
    path.rename(path.with_name(f"MAFW_{path.name}"))
  layout = read_mafw(home, lists=lists, numbers="mafw-official")
  assert labels(layout) == archives.MAFW_LABELS
  assert "but the list names suggest --numbers=mafw" in str(layout.notes[1])


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
    write_text(folder / name, "\n".join(rows))
  return folder


@pytest.mark.parametrize(("official_form", "lacking"), [(False, 0), (True, 1)])
def test_published_numbers_of_clips_give_a_wrong_order_away(tmp_path, monkeypatch, official_form, lacking):
  """Complete lists that count by another order than their form says; also when a few clips are not in them."""
  tenth = {fold: {name: 3 + n // 20 for name, n in row.items()} for fold, row in COUNTS["mafw"].items()}
  monkeypatch.setattr(mafw, "COUNTS", tenth)
  home = archives.mafw(tmp_path, frames=1, lists=False)
  assumed, other = ("mafw-official", "mafw")[:: 1 if official_form else -1]
  right = numbered_lists(tmp_path / "right", assumed, official_form, lacking)
  layout = read_mafw(home, lists=right)
  assert layout.recipe["label_numbers"] == f"{assumed} (assumed from the lists' form; --numbers=… changes it)"
  assert sum("no folder in data/clips_faces" in problem.what for problem in layout.problems) > 450
  wrong = numbered_lists(tmp_path / "wrong", other, official_form, lacking)
  with refused(rf"the order {other}.*say --numbers={other}"):
    read_mafw(home, lists=wrong)
  assert read_mafw(home, lists=wrong, numbers=other).recipe["label_numbers"] == f"{other} (as --numbers says)"
  if lacking:  # somebody may know better
    notes = texts(read_mafw(home, lists=wrong, numbers=assumed).notes)
    assert any("LABELS ARE PROBABLY WRONG" in note for note in notes)
  else:
    with refused(f"are those of the order {other}; say --numbers={other}$"):
      read_mafw(home, lists=wrong, numbers=assumed)


def test_everything_wrong_with_mafw_comes_at_once(tmp_path):
  home = archives.mafw(tmp_path, frames=1)
  official = home / OFFICIAL
  change(official / "set_1/test.txt", "anger", "glad")
  change(official / "set_2/test.txt", "00027.mp4 disgust", "00027.mp4 disgust A man, who is disgusted.")
  change(official / "set_3/test.txt", "00029", "00025")
  change(official / "set_2/train.txt", "00025", "the training set of fold 2\n00025")
  shutil.rmtree(home / "data/clips_faces/00031")
  (home / "data/clips_faces/00032").rename(home / "data/clips_faces/x")
  layout = bad(
    read_mafw(home),
    "set_1/test.txt line 1: 00025: unknown label 'glad'; write ",
    "set_2/test.txt line 1: 00027: '00027.mp4 disgust A man, who is disgusted.' is not of the form of the other lines",
    "set_2/train.txt line 1: 'the training set of fold 2' is not of the form",
    "00029: in no test set",
    "set_4/test.txt line 1: 00031: no folder in data/clips_faces",
    "set_4/test.txt line 2: 00032: no folder in data/clips_faces",
    left=6,
  )
  assert {"00025", "00027", "00029", "00031", "00032"}.isdisjoint(labels(layout))
  change(official / "set_1/test.txt", "glad", "99")
  assert "unknown label '99'; write happiness, sadness, neutral" in "\n".join(texts(read_mafw(home).problems))
  (official / "set_1/test.txt").write_text("00025.mp4 11\n00026.mp4 1\n")
  with refused("labels go from 1 to 11, .*; subtract 1 from every label"):
    read_mafw(home)
