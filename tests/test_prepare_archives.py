"""The real prepare command on miniature archives: what stands in the data set, and what is refused."""

import os
from pathlib import Path
import shutil

import archives
from archives import prepare
from conftest import ROOT
import cv2
import numpy as np
import pytest

from mma_dfer_jax.data.data_set import open_data_set
from mma_dfer_jax.data.frames import decode_frame
from mma_dfer_jax.data.labels import LABEL_ORDERS

DETECTOR = ROOT.parent / "shared/models/yunet_n_dynamic.onnx"


def greys(record) -> list[int]:
  """Which frame each picture of the archive is: number n is grey 5 n."""
  return [round(float(decode_frame(data).mean()) / 5) for data in record["frames"]]


def records(data_dir: Path, name: str, split: str) -> dict[str, dict]:
  data_set = open_data_set(data_dir, name)
  return {record["clip_id"].decode(): record for record in data_set.records(split)}


def test_dfew_as_handed_out(tmp_path):
  raw = archives.dfew(tmp_path / "with space ü", frames=12, name="{}.jpg")
  printed = prepare("--dataset=dfew", f"--raw={raw}", f"--data_dir={tmp_path}/data")
  data_set = open_data_set(tmp_path / "data", "dfew")
  assert data_set.classes == LABEL_ORDERS["dfew"].classes
  assert sorted(data_set.splits) == ["fold1", "fold2", "fold3", "fold4", "fold5"]
  assert "frame_order: natural" in printed
  assert "frame_coding: as delivered" in printed
  assert "fold1 2 clips, fold2 2 clips" in printed
  for fold in archives.FOLDS:
    found = records(tmp_path / "data", "dfew", f"fold{fold}")
    expected = {clip: label for clip, (k, label) in archives.DFEW.items() if k == fold}
    assert {clip: int(record["label"]) for clip, record in found.items()} == expected
    for clip, record in found.items():
      assert greys(record) == list(range(12))
      # The pictures are kept as they are: another JPEG would be other pixels.
      assert bytes(record["frames"][3]) == (raw / f"Clip/clip_224x224/{clip}/3.jpg").read_bytes()
      assert record["has_audio"]
      assert int(record["sample_rate"]) == archives.RATE
      assert np.isnan(record["face_share"])
  assert "is complete already" in prepare("--dataset=dfew", f"--raw={raw}", f"--data_dir={tmp_path}/data")


def test_mafw_in_both_label_orders_and_the_originals_recipe(tmp_path):
  raw = archives.mafw(tmp_path, frames=12)
  # As the original's face script counts: one too few. In string order 0, 1, 10, 11, 2, … the last is 9.
  lists, common = tmp_path / "lists", ("--dataset=mafw", f"--raw={raw}")
  archives.counted_lists(lists, archives.MAFW, "MAFW_set_{k}_{part}_faces.txt", "clips_faces", 11)
  printed = prepare(*common, "--recipe=reference", f"--lists={lists}", f"--data_dir={tmp_path}/reference")
  assumed = "mafw (assumed from the lists' form; --numbers=… changes it)"
  assert f"note: label numbers: {assumed}" in printed
  assert f"label_numbers: {assumed}" in printed
  prepare(*common, "--labels=mafw-official", f"--data_dir={tmp_path}/official")
  for name, labels, order in (
    ("reference", "mafw", [0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8]),
    ("official", "mafw-official", list(range(12))),
  ):
    data_set = open_data_set(tmp_path / name, "mafw")
    assert data_set.classes == LABEL_ORDERS[labels].classes
    for fold in archives.FOLDS:
      for clip, record in records(tmp_path / name, "mafw", f"fold{fold}").items():
        assert greys(record) == order
        assert data_set.classes[int(record["label"])] == archives.MAFW_NAMES[archives.MAFW[clip][1]]


def test_bad_clips_are_left_out_on_request_and_others_noted(tmp_path):
  raw = archives.dfew(tmp_path, frames=12)
  csv, pictures = raw / "EmoLabel_DataSplit/test(single-labeled)/set_1.csv", raw / "Clip/clip_224x224"
  csv.write_text(csv.read_text().replace("\n1,2", "\n99,2"))
  (pictures / "00004/2.jpg").write_bytes((pictures / "00004/2.jpg").read_bytes()[:60])
  (raw / "Clip/raw_wav/5.wav").write_bytes(b"")
  (pictures / "00007/1.jpg").write_bytes(b"")
  (pictures / "00009/1.jpg").write_bytes(b"no picture at all")
  for i in range(16_000, 16_007):
    archives.write_picture(pictures / f"{i}/1.jpg", 1)
  for clip in ("00003", "00008"):
    wide = cv2.imencode(".jpg", np.zeros((8, 12, 3), np.uint8))[1].tobytes()
    (pictures / clip / "5.jpg").write_bytes(wide)
  flags = ("--dataset=dfew", f"--raw={raw}", f"--data_dir={tmp_path}/data")
  refused = prepare(*flags, "--allow_bad=5", status=1)
  for words in ("6 of 11 clips", "add --allow_bad=6 to leave out", "00004/2.jpg", "raw_wav/5.wav", "00007/1.jpg: 0 bytes",
                "is empty", "00009/1.jpg", "no picture"):  # fmt: skip
    assert words in refused
  assert "BytesIO" not in refused
  assert not list((tmp_path / "data/dfew").glob("1.*"))
  printed = prepare(*flags, "--allow_bad=6")
  assert "left out 6 of 11 clips" in printed
  data_set = open_data_set(tmp_path / "data", "dfew")
  assert sum(data_set.splits.values()) == 5
  lists, left_out = "EmoLabel_DataSplit", data_set.left_out
  assert [line[:7] for line in left_out] == ["00001: ", "00004: ", "00005: ", "00007: ", "00009: ", "00099: "]
  assert left_out[0] == (
    f"00001: in no test set ({lists}/train(single-labeled)/set_2.csv and the training sets of the folds 3, 4, 5)"
  )
  assert left_out[-1] == (
    "00099: no folder in Clip/clip_224x224; no wav in Clip/raw_wav (--allow_missing_sound takes such clips) "
    f"({lists}/test(single-labeled)/set_1.csv line 2)"
  )
  assert "fold1 1 clip, fold2 1 clip" in printed
  assert "clips in no list, not used (7): 16000, 16001, 16002, 16003, 16004 …\n" in printed
  assert "frames of different sizes: in training the first one's crop is cut from all" in printed
  assert "(2): 00003, 00008\n" in printed
  assert f"{data_set.path}/notes.txt" in printed
  notes = (data_set.path / "notes.txt").read_text().splitlines()
  assert {f"  {i}" for i in (*range(16_000, 16_007), "00003", "00008")} < set(notes)

  # A fold that is not there is no bad clip, however many of those are allowed.
  for part in ("train", "test"):
    (raw / f"EmoLabel_DataSplit/{part}(single-labeled)/set_4.csv").unlink()
  for _ in range(2):
    refused = prepare(*flags, "--allow_bad=99", status=1)
    assert "no data set was written" in refused
    assert "no list of the test set of fold 4" in refused
    assert "must be fixed" in refused
    shutil.rmtree(data_set.path, ignore_errors=True)


@pytest.mark.parametrize(("given", "words"), [
  (["--dataset=dfew", "--data_dir=x", "--manifest=m.csv"], ["--manifest is not for --dataset=dfew", "--raw is needed"]),
  (["--dataset=clips", "--data_dir=x", "--labels=mafw-official"], ["--labels is not for", "--manifest is needed"]),
  (["--dataset=dfew", "--raw=nowhere", "--data_dir=x"], ["nowhere"]),
  (["--dataset=dfew", "--raw=configs", "--data_dir=x"], ["EmoLabel_DataSplit", "clip_224x224", "dfew.py"]),
])  # fmt: skip
def test_wrong_flags_and_folders(given, words):
  printed = prepare(*given, status=1)
  for word in words:
    assert word in printed
  assert not os.path.exists(ROOT / "x")


@pytest.mark.skipif(not DETECTOR.exists(), reason="the face detector is not part of this repository")
def test_faces_are_cut_and_the_share_is_stored(tmp_path):
  raw = DETECTOR.parent.parent / "clips/ravdess_hd"
  flags = ("--faces=yunet", f"--face_model={DETECTOR}", "--face_size=96", f"--data_dir={tmp_path}/data")
  printed = prepare("--dataset=ravdess", f"--raw={raw}", *flags)
  assert "faces: yunet, follow" in printed
  for split in ("train", "test"):
    (record,) = records(tmp_path / "data", "ravdess", split).values()
    assert record["face_share"] == 1.0
    assert decode_frame(record["frames"][0]).shape == (96, 96, 3)
