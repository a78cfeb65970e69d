"""RAVDESS: clips with picture and sound, in five folds that share no actor; names of files say everything."""

import dataclasses
from pathlib import Path
import re

from mma_dfer_jax.data.archive import VIDEOS, Archive, ClassOptions, chosen, note_empty_folds
from mma_dfer_jax.data.source import ClipFiles, Layout, Problem, folds_of

FLAG = "raw"
LAYOUT = """accepted for RAVDESS: Actor_01/01-01-05-02-01-01-01.mp4 …, in this folder or a few folders below, or all
videos in one folder"""
CLASSES = (
  "neutral",
  "calm",
  "happy",
  "sad",
  "angry",
  "fear",
  "disgust",
  "surprise",
)  # by the third part of names
LABELS: dict = {}
COUNTS = folds_of(CLASSES, *[[4 * n] + 7 * [8 * n] for n in (5, 5, 5, 5, 4)])  # 60 spoken clips of each actor
SCORES: dict = {}
MOST = (3, 2, 8, 2, 2, 2, 24)  # of each part of a name


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(ClassOptions):
  pass


def read(raw: Path, options: Options) -> Layout:
  """Five folds; if all actors fall in one, "train" and "test" by statement ("Kids are …" and "Dogs are …").

  Args:
    raw: the folder of Actor_01 …, one above it, or a folder with all videos.
    options: of prepare.
  """
  archive = Archive(raw, (), LAYOUT, options)
  found: dict[str, ClipFiles] = {}
  for path in archive.all_files():
    shown = archive.show(path)
    if path.suffix.lower() not in VIDEOS:
      archive.note("no videos by extension, not used", shown)
      continue
    parts = [int(part) for part in path.stem.split("-") if re.fullmatch("[0-9]{2}", part)]
    if (
      len(path.stem) != 20
      or len(parts) != 7
      or not all(1 <= n <= most for n, most in zip(parts, MOST, strict=True))
    ):
      archive.problems.append(
        Problem("", "is not a RAVDESS name, such as 01-01-05-02-01-01-01.mp4", (shown,))
      )
      continue
    modality, channel, emotion, _, _, _, actor = parts
    folder = re.search(r"actor_?(\d+)$", path.parent.name.lower())
    if folder and int(folder[1]) != actor:
      archive.problems.append(Problem("", f"is of actor {actor} by its name", (shown,)))
    elif modality != 1:
      kind = (
        "video-only (02), of which the ones with sound (01) are taken" if modality == 2 else "sound-only (03)"
      )
      archive.note(f"clips left out: {kind}", shown)
    elif channel == 2:
      archive.note("clips left out: sung", shown)
    elif path.stem in found:
      archive.problems.append(Problem(shown, f"is {found[path.stem].where} already", (path.stem,)))
    else:
      label, split = CLASSES[emotion - 1], f"fold{(actor - 1) % 5 + 1}"
      found[path.stem] = ClipFiles(path.stem, shown, label, split, video=path, sound=path)
  if not found:
    raise archive.unrecognised("there are no RAVDESS videos with picture and sound (01-….mp4)")
  clips, rule = list(found.values()), "fold = (actor - 1) mod 5 + 1: no actor is in two folds"
  if len({clip.split for clip in clips}) == 1:
    rule = "train: statement 1 (kids), test: statement 2 (dogs), as all actors fall in one fold: not speaker-independent"
    splits = {"01": "train", "02": "test"}
    clips = [dataclasses.replace(clip, split=splits[clip.clip_id.split("-")[4]]) for clip in clips]
  else:
    note_empty_folds(archive, clips)
  recipe = {"folds": rule, "sound": "that of the videos", "channel": "speech"}
  return chosen(archive, clips, CLASSES, "RAVDESS: third part of the file names", options, recipe)
