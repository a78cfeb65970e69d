"""RAVDESS: clips with picture and sound, in five folds that share no actor; names of files say everything."""

import dataclasses
from pathlib import Path
import re

from mma_dfer_jax.data.archive import VIDEOS, Archive
from mma_dfer_jax.data.archive import ClassOptions as Options
from mma_dfer_jax.data.source import ClipFiles, LabelOrder, Layout, folds_of, natural

FLAG = "raw"
LAYOUT = """accepted for RAVDESS: Actor_01/01-01-05-02-01-01-01.mp4 …, in this folder or a few folders below, or all
videos in one folder"""
# By the third part of names.
CLASSES = ("neutral", "calm", "happy", "sad", "angry", "fear", "disgust", "surprise")
COUNTS = folds_of(CLASSES, *[[4 * n] + 7 * [8 * n] for n in (5, 5, 5, 5, 4)])  # 60 spoken clips of each actor
MOST = (3, 2, 8, 2, 2, 2, 24)  # of each part of a name


def read(raw: Path, options: Options) -> Layout:
  """Five folds; if all actors fall in one, "train" and "test" by statement ("Kids are …" and "Dogs are …")."""
  archive = Archive(raw, (), LAYOUT, options)
  found: dict[str, ClipFiles] = {}
  folders = sorted({path for paths in archive.folders.values() for path in paths})
  files = [folder / name for folder in folders for name in sorted(archive.entries(folder)[1], key=natural)]
  for path in files:
    shown, stem, actor = archive.show(path), path.stem, re.search(r"actor_?(\d+)$", path.parent.name.lower())
    parts = [int(part) for part in stem.split("-")] if re.fullmatch("[0-9]{2}(-[0-9]{2}){6}", stem) else []
    if path.suffix.lower() not in VIDEOS:
      archive.note("no videos by extension, not used", shown)
    elif not parts or not all(1 <= n <= most for n, most in zip(parts, MOST, strict=True)):
      archive.problem("", "is not a RAVDESS name, such as 01-01-05-02-01-01-01.mp4", shown)
    elif actor and int(actor[1]) != parts[6]:
      archive.problem("", f"is of actor {parts[6]} by its name", shown)
    elif parts[0] == 2:
      archive.note("clips left out: video-only (02), of which the ones with sound (01) are taken", shown)
    elif parts[0] == 3:
      archive.note("clips left out: sound-only (03)", shown)
    elif parts[1] == 2:
      archive.note("clips left out: sung", shown)
    elif stem in found:
      archive.problem(shown, f"is {found[stem].where} already", stem)
    else:
      split = f"fold{(parts[6] - 1) % 5 + 1}"
      found[stem] = ClipFiles(stem, shown, CLASSES[parts[2] - 1], split, video=path, sound=path)
  if not found:
    raise archive.unrecognised("there are no RAVDESS videos with picture and sound (01-….mp4)")
  clips, rule = list(found.values()), "fold = (actor - 1) mod 5 + 1: no actor is in two folds"
  if len({clip.split for clip in clips}) == 1:
    rule = "train: statement 1 (kids), test: statement 2 (dogs), as all actors fall in one fold: not speaker-independent"
    splits = {"01": "train", "02": "test"}
    clips = [dataclasses.replace(clip, split=splits[clip.clip_id.split("-")[4]]) for clip in clips]
  recipe = {"folds": rule, "sound": "that of the videos", "channel": "speech"}
  order = LabelOrder(CLASSES, "RAVDESS: third part of the file names")
  return archive.found_by_class(clips, order, options.classes, recipe)
