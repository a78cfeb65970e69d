"""Archives with lists: which pictures and sounds are taken, in which order, and what is odd about them."""

import functools
import json
from pathlib import Path
import shutil

import archives
from archives import bad, change, good, labels, refused, texts, write_text
from conftest import GOLDEN

DFEW, MAFW, PICTURES = archives.DFEW, archives.MAFW, archives.PICTURES
read_dfew, read_mafw = (functools.partial(archives.read, name) for name in ("dfew", "mafw"))


def names(clip):
  return [path.name for path in clip.frames]


def test_dfew_other_forms(tmp_path):
  home = archives.dfew(tmp_path / "größer als 1 Platte", folders=["clip_224x224", "clip_224x224_16f"], sound="both",
                       padded=False, name="frame {:03d}.JPG")  # fmt: skip
  assert names(good(read_dfew(home), 10).clips[0])[-1] == "frame 019.JPG"
  layout = good(read_dfew(home, frames="16f"), 10)
  assert names(layout.clips[0]) == [f"frame {i:03d}.JPG" for i in range(1, 17)]
  assert layout.recipe["frames"] == "16f"
  for frames, words in (("all", "take whole scenes with --frames=video"), ("video", None)):
    warnings = [note.what for note in read_dfew(home, frames=frames, faces="yunet").notes if note.warning]
    assert [words in text for text in warnings] == ([True] if words else [])
  layout = good(read_dfew(home, frames="video"), 10)
  for clip in layout.clips:
    assert clip.sound == clip.video == home / f"Clip/original/{int(clip.clip_id)}.mp4"
  assert any(note.warning and "whole scenes" in note.what for note in layout.notes)
  shutil.move(home / "Clip/raw_wav", home / "raw_wav")
  assert good(read_dfew(home), 10).clips[1].sound == home / "raw_wav/2.wav"
  shutil.rmtree(home / "raw_wav")
  layout = good(read_dfew(home), 10)
  assert layout.clips[1].sound == home / "Clip/original/2.mp4"
  assert layout.recipe["sound"] == "videos of original"


def test_dfew_unpacked_in_parts_and_into_folders_of_their_own_names(tmp_path):
  home = archives.dfew(tmp_path, frames=20, sound="original")
  parts, inner = home / "Clip/original", home / PICTURES
  for k, video in enumerate(sorted(parts.glob("*.mp4"))):
    (parts / f"part_{k % 3}").mkdir(exist_ok=True)
    video.rename(parts / f"part_{k % 3}" / video.name)
  inner.rename(home / "Clip/tmp")
  inner.mkdir()
  (home / "Clip/tmp").rename(inner / "clip_224x224")
  write_text(home / "__MACOSX/Clip/clip_224x224/00001/._0.jpg")
  write_text(inner / "clip_224x224/00001/._0.jpg")
  layout = good(read_dfew(home), 10)
  assert len(layout.clips[0].frames) == 20
  assert layout.clips[0].sound.parent.parent == parts


def test_reference_recipe_of_dfew(tmp_path):
  """Frames in string order as the original took them; the numbers come from running it."""
  home, lists = archives.dfew(tmp_path / "raw", csvs=False), tmp_path / "lists"
  archives.counted_lists(lists, DFEW, "DFEW_set_{k}_{part}.txt", "data/dfew/clip_224x224", 20)
  layout = good(read_dfew(home, lists=lists, recipe="reference"), 10)
  assert names(layout.clips[0]) == sorted(f"{i}.jpg" for i in range(20))
  assert layout.recipe["frame_order"].startswith("string")
  case = json.loads((GOLDEN / "dataset.json").read_text())["cases"]["dfew_unpadded_names_20_frames"]
  taken = [names(layout.clips[0])[int(20 / 32 + 20 / 16 * i)] for i in range(16)]
  assert [int(Path(name).stem) for name in taken] == case["frames"]
  change(lists / "DFEW_set_1_test.txt", "00001 20", "00001 21")
  change(lists / "DFEW_set_2_test.txt", "00003 20", "00003 0")
  write_text(home / PICTURES / "00005/Thumbs.db")
  write_text(home / PICTURES / "00006/.DS_Store")  # the original's glob does not see it
  bad(
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


def test_reference_recipe_of_mafw(tmp_path):
  """The annotated count is one too low, so that the last in string order is never used."""
  home, lists = archives.mafw(tmp_path, lists=False), tmp_path / "lists"
  archives.counted_lists(lists, MAFW, "MAFW_set_{k}_{part}_faces.txt", "x/mfaw/clips_faces", 11, final="")
  layout = good(read_mafw(home, lists=lists, recipe="reference"), 11)
  assert {tuple(names(clip)) for clip in layout.clips} == {tuple(sorted(f"{i}.jpg" for i in range(12))[:11])}
  assert names(layout.clips[0])[:4] == ["0.jpg", "1.jpg", "10.jpg", "11.jpg"]
  assert labels(layout) == archives.MAFW_LABELS
  assumed = "mafw (assumed from the lists' form; --numbers=… changes it)"
  assert layout.recipe["label_numbers"] == assumed
  numbers, fewer = texts(layout.notes)
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


def test_odd_numbers_of_pictures_are_noted(tmp_path):
  home = archives.dfew(tmp_path, frames=2)
  for files, odd in (
    (["1.jpg", "2.jpg", "4.jpg", "9.jpg"], "gaps in the numbers of their pictures: {} (5 lacking)"),
    (["f1_0001.jpg", "f1_0003.jpg"], "gaps in the numbers of their pictures: {} (1 lacking)"),
    (["4.jpg", "05.jpg", "5.jpg"], "several pictures of the same number: {} (05.jpg, 5.jpg)"),
    (["1.jpg", "2.jpg", "cover.jpg"], "pictures without a number among numbered ones: {} (cover.jpg)"),
    (["1.jpg", "2.jpg", "2_2.jpg"], "pictures that are named in different ways: {} (1.jpg, 2_2.jpg)"),
    (["a.jpg", "b.jpg"], None),
    (["f2_1.jpg", "f2_2.jpg"], None),
    (["f1_1.jpg", "f2_1.jpg", "f9_1.jpg", "f9_2.jpg"], None),
  ):
    for clip in ("00003", "00004"):
      shutil.rmtree(home / PICTURES / clip)
      for name in files:
        archives.write_picture(home / PICTURES / clip / name, 1)
    notes = [text.split(", Clip")[0] for text in texts(good(read_dfew(home), 10).notes)]
    assert notes == (
      [f"clips with {odd.replace(':', ' (2):', 1).format(f'{PICTURES}/00003')}"] if odd else []
    )


def test_sound_that_is_not_there(tmp_path):
  home = archives.dfew(tmp_path, frames=1, sound="none")
  there = "Clip, Clip/clip_224x224, EmoLabel_DataSplit"
  silent = "there is no sound: no folder raw_wav or original; there are {}; --allow_missing_sound takes all clips without sound"
  assert there in str(
    bad(read_dfew(home), "there is no sound: no folder raw_wav or original; there are ", left=10).problems[0]
  )
  archives.write_wav(home / "Clip/wav/1.wav")
  there = f"Clip/wav with 1 sound (name it raw_wav), {there}"
  assert there in str(
    bad(read_dfew(home), "there is no sound: no folder raw_wav or original; there are ", left=10).problems[0]
  )
  shutil.rmtree(home / "Clip/wav")
  layout = good(read_dfew(home, allow_missing_sound=True), 10)
  assert {clip.sound for clip in layout.clips} == {None}
  assert layout.recipe["sound"] == "none"
  archives.write_wav(home / "Clip/raw_wav/1.wav")
  silent = "no wav in Clip/raw_wav (--allow_missing_sound takes such clips)"
  bad(read_dfew(home), *(f"{i:05d}: {silent}" for i in range(2, 11)), left=1)
  (note,) = texts(good(read_dfew(home, allow_missing_sound=True), 10).notes)
  assert note.startswith("Clip/raw_wav: clips without sound (9): 00002, 00003")


def test_what_is_no_data_set_is_described(tmp_path):
  with refused("there is no such folder"):
    read_dfew(tmp_path / "DFEW")
  write_text(tmp_path / "file")
  with refused("is a file, not a folder"):
    read_mafw(tmp_path / "file")
  for name in ("a.zip", "b/c.txt"):
    write_text(tmp_path / "wrong" / name)
  for name, missing in (
    ("dfew", "no lists of folds"),
    ("mafw", "no lists of folds"),
    ("ravdess", ""),
    ("cremad", ""),
  ):
    with refused(rf"(?s){missing}.*found: b/, a.zip.*accepted for"):
      archives.read(name, tmp_path / "wrong")
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
  write_text(home / PICTURES / "part1.zip")
  write_text(home / PICTURES / "00001/notes.txt")
  archives.write_picture(home / PICTURES / "00002/99.png", 1)
  layout = good(read_dfew(home), 10)
  assert names(layout.clips[1])[-1] == "99.png"
  assert texts(layout.notes) == [
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
  assert [note.what for note in layout.notes if note.warning] == [
    "Clip/raw_wav: 10 of 10 clips have no wav; their m4a or mp3 is read"
  ]
  archives.write_wav(home / "Clip/raw_wav/1.wav")
  layout = good(read_dfew(home), 10)
  assert [note.what for note in layout.notes if note.warning] == [
    "Clip/raw_wav: 9 of 10 clips have no wav; their m4a is read"
  ]
  assert layout.recipe["sound"] == "m4a and wav files of raw_wav"
  assert "Clip/raw_wav: other sounds beside a .wav of the same clip, not used: 00001" in texts(layout.notes)


def test_wavs_at_16_khz_are_counted(tmp_path, monkeypatch):
  for read, make in ((read_dfew, archives.dfew), (read_mafw, archives.mafw)):
    monkeypatch.setattr(archives, "RATE", 16_000)
    home = make(tmp_path, frames=1)
    (note,) = read(home).notes
    assert note.warning
    assert "2.6 UAR" in note.what
    monkeypatch.setattr(archives, "RATE", 44_100)
    wavs = sorted(home.rglob("*.wav"))
    archives.write_wav(wavs[0])
    (note,) = read(home).notes
    assert note.what.startswith(f"{len(wavs) - 1} of {len(wavs)} sounds have 16000 Hz")
    for wav in wavs[2:]:
      archives.write_wav(wav)
    assert read(home).notes == []


def test_mafw_pictures_of_every_kind(tmp_path):
  home = archives.mafw(tmp_path, frames=2, folders=["clips_faces", "frames"], videos=True, name="{:04d}.png")
  layout = good(read_mafw(home), 11)
  assert layout.recipe["frames"] == "faces"
  assert any("--frames=scenes" in note for note in texts(layout.notes))
  layout = good(read_mafw(home, faces="yunet"), 11)  # which has something to cut out of scenes only
  assert layout.recipe["frames"] == "scenes"
  assert "data/frames: chosen, as --faces=yunet cuts faces out of whole scenes" in texts(layout.notes)[0]
  layout = good(read_mafw(home, frames="faces", faces="yunet"), 11)
  assert [note.what.split(":")[1] for note in layout.notes if note.warning] == [
    " these are cropped faces already, and --faces=yunet cuts faces out of the crops"
  ]
  layout = good(read_mafw(home, frames="scenes"), 11)
  assert layout.clips[0].frames[0] == home / "data/frames/00025/0000.png"
  assert any("whole scenes" in note for note in texts(layout.notes))
  layout = good(read_mafw(home, frames="video"), 11)
  assert layout.clips[0].video == home / "data/clips/00025.mp4"
  assert layout.clips[0].sound == home / "data/clips_wav/00025.wav"
  archives.counted_lists(tmp_path / "lists", MAFW, "MAFW_set_{k}_{part}.txt", "data/frames", 12)
  with refused("the lists are of --frames=scenes, but --frames=faces was chosen"):
    read_mafw(home, lists=tmp_path / "lists")
  good(read_mafw(home, frames="scenes", lists=tmp_path / "lists"), 11)
  shutil.rmtree(home / "data/clips_wav")
  assert good(read_mafw(home), 11).clips[0].sound == home / "data/clips/00025.mp4"
  (home / "data/frames").rename(home / "data/other")
  assert any(
    "cropped faces already" in note.what for note in read_mafw(home, faces="yunet").notes if note.warning
  )
  (home / "data/other").rename(home / "data/frames")
  shutil.rmtree(home / "data/clips_faces")
  with refused(r"frames holds whole scenes.*--faces=yunet.*or --frames=scenes"):
    read_mafw(home, allow_missing_sound=True)
  for faces, warned in (("yunet", False), ("none", True)):
    layout = good(read_mafw(home, allow_missing_sound=True, faces=faces), 11)
    assert layout.recipe["frames"] == "scenes"
    assert any(note.warning and "whole scenes" in note.what for note in layout.notes) == warned
  with refused("no folder clips_faces, which --frames=faces needs"):
    read_mafw(home, frames="faces")
