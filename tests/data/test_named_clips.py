"""Clips that folders, file names or a manifest describe: which become training and test, and what is wrong with others."""

from collections import Counter, defaultdict
import functools
from pathlib import Path
import re
import shutil

import archives
from archives import bad, good, labels, refused, texts, write_text
import pytest

from mma_dfer_jax.data.labels import LABEL_ORDERS

read_ravdess, read_cremad, read_folders, read_clips = (
  functools.partial(archives.read, name) for name in ("ravdess", "cremad", "folders", "clips")
)


def by_split(layout, of):
  """What a function says of the clips of each split."""
  found = defaultdict(set)
  for clip in layout.clips:
    found[clip.split].add(of(clip))
  return found


def folders(home, *names, classes=("sad", "Happy 2", "Happy 10")):
  for label in classes:
    for name in names:
      write_text(home / label / name)
  return home


def test_folders_of_classes(tmp_path):
  speakers = ("anna", "ben", "Cem", "dora")
  home = folders(tmp_path, *(f"{speaker}_{i}.mp4" for speaker in speakers for i in range(5)))
  write_text(home / "sad/notes.txt")
  layout = good(read_folders(home, test_share=0.2), 60)
  assert layout.classes == ("Happy 2", "Happy 10", "sad")
  expected = {(split, label): n for split, n in (("test", 4), ("train", 16)) for label in layout.classes}
  assert Counter((clip.split, clip.label) for clip in layout.clips) == expected
  rule = "test: 20 % of the clips of each class, by sha256 of the seed 0 and the name"
  assert layout.recipe["folds"] == rule
  assert "no videos by extension, not used: sad/notes.txt" in texts(layout.notes)
  assert read_folders(home, test_share=0.2).clips == layout.clips
  assert read_folders(home, test_share=0.2, split_seed=1).clips != layout.clips
  layout = good(read_folders(home, test_share=0.3, split_by="speaker"), 60)
  speakers = by_split(layout, lambda clip: Path(clip.clip_id).stem[:3])
  assert (len(speakers["test"]), len(speakers["train"])) == (1, 3)
  assert not speakers["test"] & speakers["train"]
  layout = good(read_folders(home, test_share=0.2, classes=["sad", "Happy 2"]), 40)
  assert layout.classes == ("sad", "Happy 2")
  for share in (0.0, 1.0, -1.0):
    with refused(r"no folders train and test; add --test_share=0\.2"):
      read_folders(home, test_share=share)
  write_text(home / "sad/more/x.mp4")
  (home / "empty").mkdir()
  (home / "SAD").mkdir()
  wrong = ("sad/more: is a folder within a class", "empty: holds no videos", "SAD: holds no videos")
  bad(read_folders(home, test_share=0.2), *wrong, "'SAD' and 'sad' differ in case", left=60)


def test_folders_with_a_split_of_their_own(tmp_path):
  for split, count in (("Train", 3), ("test", 2)):
    folders(tmp_path / "data" / split, *(f"{i}.mp4" for i in range(count)))
  layout = good(read_folders(tmp_path / "data"), 15)
  assert Counter(clip.split for clip in layout.clips) == {"train": 9, "test": 6}
  assert layout.classes == ("Happy 2", "Happy 10", "sad")
  assert layout.recipe["folds"] == "the folders train and test"
  with refused("remove --test_share"):
    read_folders(tmp_path / "data", test_share=0.5)
  (tmp_path / "data/angry").mkdir()
  shutil.copytree(tmp_path / "data/test", tmp_path / "test")
  for place in ("data", "."):
    with refused(r"(?s)only if these two folders are there.*found: .*accepted for folders"):
      read_folders(tmp_path / place, test_share=0.5)
  with refused(r"sad/0\.mp4 is the only clip of its class"):
    read_folders(folders(tmp_path / "one", "0.mp4", classes=["sad"]), test_share=0.5)
  with refused(r"all clips begin with 01, so there is one speaker; use --split_by=clip"):
    read_folders(folders(tmp_path / "speaker", "01-1.mp4", "01-2.mp4"), test_share=0.5, split_by="speaker")


@pytest.mark.parametrize("flat", [False, True])
def test_ravdess_folds_share_no_actor(tmp_path, flat):
  layout = good(read_ravdess(archives.ravdess(tmp_path, flat=flat)), 24 * 16)
  actors = by_split(layout, lambda clip: clip.clip_id[-2:])
  assert sorted(actors) == [f"fold{k}" for k in range(1, 6)]
  assert sum(map(len, actors.values())) == 24
  assert actors["fold1"] == {"01", "06", "11", "16", "21"}
  assert layout.recipe["folds"] == "fold = (actor - 1) mod 5 + 1: no actor is in two folds"
  assert layout.classes[1] == "calm"
  assert labels(layout)["01-01-08-01-02-01-24"] == "surprise"


def test_ravdess_classes_are_chosen_and_one_actor_is_split_by_statement(tmp_path):
  home = archives.ravdess(tmp_path / "five", range(1, 6))
  layout = good(read_ravdess(home, classes=LABEL_ORDERS["dfew"].classes), 5 * 14)
  assert layout.classes == LABEL_ORDERS["dfew"].classes
  left_out = "clips of the class calm left out, as --classes does not name it (10): 01-01"
  assert str(layout.notes[0]).startswith(left_out)
  with refused("there is no boredom, only neutral, calm"):
    read_ravdess(home, classes=["boredom", "calm"])
  layout = good(read_ravdess(archives.ravdess(tmp_path / "one", [1], flat=True)), 16)
  assert Counter(clip.split for clip in layout.clips) == {"train": 8, "test": 8}
  assert by_split(layout, lambda clip: clip.clip_id.split("-")[4])["train"] == {"01"}
  assert "not speaker-independent" in layout.recipe["folds"]


def test_what_is_left_out_of_ravdess_is_noted(tmp_path):
  home = archives.ravdess(tmp_path, range(1, 5))
  for name in ("02-01-03-01-01-01-01.mp4", "01-02-03-01-01-01-01.mp4", "03-01-03-01-01-01-01.wav"):
    write_text(home / "Actor_01" / name)
  notes = "\n".join(texts(good(read_ravdess(home), 64).notes))
  for part in ("left out: video-only", "left out: sung", "03-01-03-01-01-01-01.wav", "no clips in fold 5"):
    assert part in notes
  for name in ("Actor_01/01-01-09-01-01-01-01", "Actor_01/01-01-03-01-01-01-02", "01-01-04-01-01-01-01"):
    write_text(home / f"{name}.mp4")
  bad(
    read_ravdess(home),
    "Actor_01/01-01-09-01-01-01-01.mp4: is not a RAVDESS name",
    "Actor_01/01-01-03-01-01-01-02.mp4: is of actor 2 by its name",
    "01-01-04-01-01-01-01.mp4 already",
    left=63,
  )


def test_cremad_folds_share_no_speaker(tmp_path):
  layout = good(read_cremad(archives.cremad(tmp_path)), 91 * 6)
  speakers = by_split(layout, lambda clip: int(clip.clip_id[:4]))
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
  write_text(home / "VideoFlash/1001_DFA_ANG_XX.flv", pointer)
  write_text(home / "VideoFlash/1092_DFA_ANG_XX.flv")
  (home / "AudioWAV/1019_DFA_ANG_XX.wav").unlink()
  write_text(home / "AudioWAV/1040_ITH_SAD_X.wav")
  wrong = ["git lfs pull", "VideoFlash/1092_DFA_ANG_XX.flv: 1092_DFA_ANG_XX: is not a CREMA-D name"]
  silent = "1019_DFA_ANG_XX.flv: 1019_DFA_ANG_XX: no wav in AudioWAV"
  layout = bad(read_cremad(home), *wrong, silent, left=34)
  assert "wavs without a video, not used: 1040_ITH_SAD_X" in texts(layout.notes)
  layout = bad(read_cremad(home, allow_missing_sound=True), *wrong, left=35)
  assert [clip.clip_id for clip in layout.clips if clip.sound is None] == ["1019_DFA_ANG_XX"]
  for path in (home / "VideoFlash").iterdir():
    write_text(path, pointer)
  with refused(r"(?s)no videos in VideoFlash.*git lfs pull"):
    read_cremad(home)


# ---- Manifests ----


def manifest(folder, text):
  """A csv beside a.mp4 … e.mp4, which nothing opens."""
  for name in "abcde":
    write_text(folder / f"{name}.mp4")
  (folder / "m.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
  return folder / "m.csv"


@pytest.mark.parametrize(
  ("text", "words"),
  [
    ("", "must begin with the line path,label,split or path,label,fold"),
    ("path,label,split\n", "holds no rows"),
    ("path|label|split\na.mp4|x|train\n", r"it begins with 'path\|label\|split'"),
    ("path,label\na.mp4,x\n", "it begins with 'path,label'"),
    ("path,label,split,fold\na.mp4,x,train,1\n", "must begin"),
    ("path,label,split,split\na.mp4,x,train,test\n", "must begin"),
    ("path,path,label,split\na.mp4,b.mp4,x,train\n", "must begin"),
    ("a.mp4,x,train\n", "must begin"),
    ('path,label,split\n"a.mp4"z,x,train\n', "in line 2: ',' expected"),
    ("path,label,split\nä.mp4,x,train\n".encode("latin-1"), "UTF-8"),
  ],
)
def test_what_is_no_manifest(tmp_path, text, words):
  with refused(words):
    read_clips(manifest(tmp_path, text))


def test_folds_of_a_manifest(tmp_path):
  folds = ["0", "x", "1.5", "", "-1"]
  rows = "".join(f"{clip}.mp4,x,{fold}\n" for clip, fold in zip("abcde", folds, strict=True))
  wrong = [
    f"{clip}.mp4: fold {fold!r} is not a number from 1 on" for clip, fold in zip("abcde", folds, strict=True)
  ]
  bad(read_clips(manifest(tmp_path, f"path,label,fold\n{rows}")), *wrong, left=0)
  holes = "the folds are 1, 2, 4; they must be 1, 2, … without a hole"
  bad(read_clips(manifest(tmp_path, "path,label,Fold\na.mp4,x,1\nb.mp4,x,2\nc.mp4,x,4\n")), holes, left=3)


ALIKE = {
  ("very sad", "Very  sad"): "'very sad' and 'Very  sad' differ in case or spaces only",
  ("sad", "s\u00adad"): r"'sad' and 's\xadad' look alike",
  (
    "fear",
    "\uff46\uff45\uff41\uff52",
  ): r"'fear' and 'ｆｅａｒ' (written '\uff46\uff45\uff41\uff52') look alike",
  ("über", "u\u0308ber"): "'über' (written '\\xfcber') and 'u\u0308ber' (written 'u\\u0308ber') look alike",
  ("joy", "j\u043ey"): r"'joy' and 'jоy' (written 'j\u043ey') look alike",
  ("a b", "a\xa0b"): r"'a b' and 'a\xa0b' differ in case or spaces only",
  ("0", "00"): "'0' and '00' are the same number",
  ("1", "1.0"): "'1' and '1.0' are the same number",
  ("-2", "\uff0d\uff12"): r"'-2' and '－２' (written '\uff0d\uff12') are the same number",
  ("7", "\u0667"): r"'7' and '٧' (written '\u0667') are the same number",
  ("1", "l"): "'1' and 'l' look alike",
  ("Il", "ll"): "'Il' and 'll' look alike",
  ("0K", "OK"): "'0K' and 'OK' look alike",
  ("\u0406ll", "1|l"): r"'Іll' (written '\u0406ll') and '1|l' look alike",
  ("sad", "sad."): "'sad' and 'sad.' look alike",
  ("_sad", "SAD_"): "'_sad' and 'SAD_' look alike",
  ("\u03bd\u03bf", "vo"): r"'νο' (written '\u03bd\u03bf') and 'vo' look alike",
  ("\u041d\u0415\u0422", "\u043d\u0435\u0442"): "differ in case or spaces only",
}


@pytest.mark.parametrize("pair", ALIKE)
def test_labels_that_look_alike(tmp_path, pair):
  path = manifest(tmp_path, "path,label,split\na.mp4,{},train\nb.mp4,{},test\n".format(*pair))
  layout = bad(read_clips(path), f"{ALIKE[pair]}: write one of them", left=2)
  assert layout.problems[0].clips == ()
  (problem,) = bad(read_clips(path, classes=[pair[0], "x"]), "looks like the class", left=1).problems
  assert problem.clips


def test_labels_that_people_tell_apart(tmp_path):
  for names in (
    ["-1", "0", "1", "1.5", "10"],
    ["A+", "A-", "A", "B", "1_1"],
    ["fail", "fall", "file", "ill", "lil"],
    ["1_1", "11", "1-1", "x1", "x01"],
  ):
    rows = "".join(f"{clip}.mp4,{label},train\n" for clip, label in zip("abcde", names, strict=True))
    assert set(good(read_clips(manifest(tmp_path, f"path,label,split\n{rows}")), 5).classes) == set(names)


def test_labels_in_natural_order(tmp_path):
  rows = "".join(
    f"{clip}.mp4,{label},train\n" for clip, label in zip("abcde", ["a10²", "a2", "1", "02", "B"], strict=True)
  )
  layout = good(read_clips(manifest(tmp_path, f"path,label,split\n{rows}")), 5)
  assert layout.classes == ("1", "02", "B", "a2", "a10²")


def test_a_folder_or_a_glob_gives_clips_without_labels(tmp_path):
  for name in ("a 1.mp4", "deep/er/b.mp4", "c.MP4", ".hidden/d.mp4", "read.me"):
    write_text(tmp_path / name)
  layout = read_clips(tmp_path)
  assert [clip.clip_id for clip in layout.clips] == ["a 1.mp4", "c.MP4", "deep/er/b.mp4"]
  assert "no videos by extension, not used: read.me" in texts(layout.notes)
  assert read_clips(tmp_path / "**").clips == layout.clips  # a pattern chooses as a folder does
  assert "no videos by extension, not used: read.me" in texts(read_clips(tmp_path / "*").notes)
  for place, names in (("**/*.mp4", ["a 1.mp4", "deep/er/b.mp4"]), ("*/*/*.mp4", ["deep/er/b.mp4"]),
                       ("*.[mM][pP]4", ["a 1.mp4", "c.MP4"])):  # fmt: skip
    assert [clip.clip_id for clip in read_clips(tmp_path / place).clips] == names
  (tmp_path / "x.csv").write_bytes(b"RIFF\0\0\0\xff")
  for place, words in (("*.avi", "there is no video"), ("none.csv", "is not there"), ("c.MP4", "one video by its name"),
                       ("x.csv", "is no text file")):  # fmt: skip
    with refused(words):
      read_clips(tmp_path / place)


def test_links_out_of_a_folder_are_refused(tmp_path):
  write_text(tmp_path / "films/a.mp4")
  write_text(tmp_path / "elsewhere/b.mp4")
  (tmp_path / "films/more").symlink_to(tmp_path / "elsewhere")
  (tmp_path / "films/same.mp4").symlink_to("a.mp4")
  twice = "same.mp4: is a link that leads to a.mp4, which is taken already"
  outside = "more/b.mp4: is a link that leads out of"
  for place in ("films", "films/**/*.mp4"):
    bad(read_clips(tmp_path / place), outside, twice, left=1)
    bad(read_clips(tmp_path / place, follow_links=True), twice, left=2)


@pytest.mark.parametrize(
  ("clips", "advice"),
  [
    (
      ("happy/1.mp4", "sad/2.mp4"),
      "the videos lie in the folders happy, sad; .*--dataset=folders .*--test_share=0.2",
    ),
    (("train/happy/1.mp4", "test/sad/2.mp4"), r"in the folders happy, sad; .*--dataset=folders --raw=\S+$"),
    (("happy/1.mp4", "happy/2.mp4"), None),
    (("1.mp4", "happy/2.mp4", "sad/3.mp4"), None),
    (("a/happy/1.mp4", "b/happy/2.mp4"), None),
  ],
)
def test_folders_that_look_like_classes(tmp_path, clips, advice):
  for name in clips:
    write_text(tmp_path / name)
  hints = [note.what for note in read_clips(tmp_path).notes if note.warning]
  assert len(hints) == bool(advice)
  assert not advice or re.search(advice, hints[0])


def test_classes_of_a_manifest_are_chosen_as_of_every_data_set(tmp_path):
  """These in this order; clips of others are left out, and noted."""
  text = "path,label,split\na.mp4,x,train\nb.mp4,y,train\nc.mp4,z,test\nd.mp4,x,test\nnone.mp4,y,test\n"
  layout = bad(
    read_clips(manifest(tmp_path, text), classes=["z", "x"]),
    f"line 6: none.mp4: No such file in {tmp_path}",
    left=3,
  )
  assert (layout.classes, layout.doubtful) == (("z", "x"), set())
  assert texts(layout.notes) == ["clips of the class y left out, as --classes does not name it: b.mp4"]
  assert read_clips(tmp_path / "m.csv").doubtful == {"y"}
