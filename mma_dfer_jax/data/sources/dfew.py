"""DFEW: fold k is the test set of fold k; the training sets must be the other folds."""

import dataclasses
import os
from pathlib import Path

from mma_dfer_jax.data import listed
from mma_dfer_jax.data.source import LabelOrder, Layout, folds_of, option
from mma_dfer_jax.errors import UserError

FLAG = "raw"
LAYOUT = """accepted for DFEW, in this folder or a few folders below:
  Clip/clip_224x224/00001/*.jpg       all frames (--frames=all)
  Clip/clip_224x224_16f/00001/*.jpg   16 frames (--frames=16f)
  Clip/original/*.mp4                 videos (--frames=video); their sound is used where there is no raw_wav
  raw_wav/1.wav                       sound, beside clip_224x224 or Clip
  EmoLabel_DataSplit/{train,test}(single-labeled)/set_1.csv … set_5.csv   with the columns video_name,label
or, as --lists=FOLDER, files DFEW_set_1_train.txt, DFEW_set_1_test.txt … with lines `DIR COUNT LABEL`"""
CLASSES = ("happy", "sad", "neutral", "angry", "surprise", "disgust", "fear")
ORDER = LabelOrder(
  CLASSES, "DFEW: label in its csv files minus 1, which is also the order of MMA-DFER's lists"
)
LABELS = {"dfew": ORDER}
COUNTS = folds_of(  # counted in public lists of DFER-CLIP and MAE-DFER, which agree
  CLASSES,
  (489, 379, 534, 435, 294, 29, 181),
  (489, 379, 534, 435, 294, 29, 181),
  (489, 379, 534, 435, 294, 29, 180),
  (489, 379, 534, 434, 294, 29, 180),
  (489, 378, 533, 434, 293, 29, 180),
)
SCORES = {"war": 77.51, "uar": 67.01}
FOLDERS = {"all": ("clip_224x224",), "16f": ("clip_224x224_16f",), "video": ("original",)}  # by --frames


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(listed.Options):
  frames: str = option("all", "Which pictures to take.", *FOLDERS)


def read(raw: Path, options: Options) -> Layout:
  """Takes sound from raw_wav for all clips, or where there is no such folder, from the original videos."""
  of_video = options.frames == "video"
  if options.recipe == "reference" and of_video:
    raise UserError("--recipe=reference is an order of picture files; with --frames=video there are none")
  home = Path(os.path.abspath(raw))
  home = home.parent if home.name.lower() == "clip" else home  # where the lists lie
  archive = listed.ListedArchive("dfew", home, FOLDERS, "raw_wav", {"csv": 1, "counted": 0}, LAYOUT, options)
  archive.read_lists(archive.find("EmoLabel_DataSplit"))
  archive.read_labels(CLASSES)
  pictures = archive.find_frames(options.frames, by_lists=not of_video)
  return archive.read(ORDER, options.frames, None if of_video else pictures, own_sound=of_video)
