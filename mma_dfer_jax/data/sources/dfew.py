"""DFEW: fold k is the test set of fold k; the training sets must be the other folds."""

import dataclasses
import os
from pathlib import Path

from mma_dfer_jax.data import listed
from mma_dfer_jax.data.source import LabelOrder, Layout, Note, Problem, as_clip_id, folds_of, option
from mma_dfer_jax.errors import UserError

FLAG = "raw"
LAYOUT = """accepted for DFEW, in this folder or a few folders below:
  Clip/clip_224x224/00001/*.jpg       all frames (--frames=all)
  Clip/clip_224x224_16f/00001/*.jpg   16 frames (--frames=16f)
  Clip/original/*.mp4                 videos (--frames=video); their sound is used where there is no raw_wav
  raw_wav/1.wav                       sound, beside clip_224x224 or Clip
  EmoLabel_DataSplit/{train,test}(single-labeled)/set_1.csv … set_5.csv   with the columns video_name,label
  Annotation/annotation.csv   ten votes for each clip, with the columns 1happy … 7fear,order,label; kept if it is there
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
VOTES = 10  # for each clip
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
  layout = archive.read(ORDER, options.frames, None if of_video else pictures, own_sound=of_video)
  return with_votes(layout, home)


def with_votes(layout: Layout, home: Path) -> Layout:
  """The same clips with what ten people said of each, if `Annotation/annotation.csv` is there; a wrong line is a problem."""
  places = [path for path in home.glob("*/annotation.*") if path.parent.name.lower() == "annotation"]
  tables = {path.suffix.lower(): path for path in places}
  if not (path := tables.get(".csv") or tables.get(".xlsx")):
    return layout
  columns = [f"{number}{name}" for number, name in enumerate(CLASSES, 1)]
  problems, notes, found = list(layout.problems), list(layout.notes), dict[str, tuple[int, ...]]()
  try:
    _, rows, _ = listed.read_table(path, ",".join([*columns, "order", "label"]))
  except ValueError as error:
    note = Note(f"{path}: its votes are not kept, for it {error}", warning=True)
    return dataclasses.replace(layout, notes=[*notes, note])
  clips = {clip.clip_id: clip for clip in layout.clips}
  for line, _, row in rows:
    if not (clip := clips.get(as_clip_id(row["order"]))):
      continue  # of no single label, or left out
    where, votes = f"{path} line {line}", [row[column] for column in columns]
    if not all(vote.isdecimal() for vote in votes) or sum(map(int, votes)) != VOTES:
      problems.append(
        Problem(
          where, f"the votes {', '.join(votes)} are not whole numbers that add up to {VOTES}", (clip.clip_id,)
        )
      )
    elif row["label"] != str(CLASSES.index(clip.label) + 1):
      wrong = f"the label {row['label']} there is not {clip.label} ({CLASSES.index(clip.label) + 1}), as in the lists"
      problems.append(Problem(where, wrong, (clip.clip_id,)))
    elif clip.clip_id in found:
      problems.append(Problem(where, "has votes in another line already", (clip.clip_id,)))
    else:
      found[clip.clip_id] = tuple(map(int, votes))
  bad = {name for problem in problems for name in problem.clips}
  kept = [
    dataclasses.replace(c, votes=found.get(c.clip_id, ())) for c in layout.clips if c.clip_id not in bad
  ]
  others = tuple(c.clip_id for c in kept if c.votes and c.votes.index(max(c.votes)) != CLASSES.index(c.label))
  if without := tuple(c.clip_id for c in kept if not c.votes):
    notes.append(Note(f"{path.name}: clips without votes", without))
  if others:
    notes.append(Note(f"{path.name}: clips with most votes for another class than their label", others))
  return dataclasses.replace(layout, clips=kept, problems=problems, notes=notes)
