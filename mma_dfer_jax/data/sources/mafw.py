"""MAFW's eleven single emotions: fold k is the test set of fold k; the training sets must be the other folds."""

from collections import Counter
from collections.abc import Sequence
import dataclasses
from pathlib import Path
import re

from mma_dfer_jax.data.archive import Archive
from mma_dfer_jax.data.listed import (
  FORMS,
  FoldList,
  ListedOptions,
  Media,
  check_folder_of_lists,
  check_numbers,
  folder_of_lists,
  layout_of,
  no_frames,
  read_label,
  read_lists,
)  # fmt: skip
from mma_dfer_jax.data.source import Counts, LabelOrder, Layout, folds_of, option
from mma_dfer_jax.errors import UserError, listed

FLAG = "raw"
LAYOUT = """accepted for MAFW, in this folder or a few folders below:
  clips_faces/00001/*.png             cropped faces (--frames=all or faces)
  frames/00001/*.png                  whole scenes (--frames=scenes, or any with --faces=yunet)
  clips/00001.mp4                     videos (--frames=video); their sound is used where there is no clips_wav
  clips_wav/00001.wav                 sound
  Train & Test Set/single/no_caption/set_1 … set_5/{train,test}.txt   with lines `00001.mp4 anger`
or, as --lists=FOLDER, files MAFW_set_1_train_faces.txt, … with lines `DIR COUNT LABEL`"""
_MORE = ("contempt", "anxiety", "helplessness", "disappointment")
LABELS = {  # two orders are in circulation; clip 03747 is 0 in one and 3 in the other
  "mafw": LabelOrder(
    ("happiness", "sadness", "neutral", "anger", "surprise", "disgust", "fear", *_MORE),
    "MAFW in the order of MMA-DFER's lists (and DFER-CLIP's), not MAFW's official one",
  ),
  "mafw-official": LabelOrder(
    ("anger", "disgust", "fear", "happiness", "neutral", "sadness", "surprise", *_MORE),
    "MAFW in its official order (MAE-DFER, HiCMAE, S4D), not that of MMA-DFER's lists",
  ),
}
OTHER = {"mafw": "mafw-official", "mafw-official": "mafw"}
COUNTS = folds_of(  # counted in public lists of DFER-CLIP and MAE-DFER, which agree
  LABELS["mafw"].classes,
  (249, 294, 228, 278, 215, 128, 125, 48, 184, 53, 37),
  (249, 294, 228, 278, 215, 128, 125, 47, 183, 53, 37),
  (248, 294, 228, 278, 214, 128, 125, 47, 183, 52, 36),
  (248, 294, 227, 278, 214, 128, 125, 47, 183, 52, 36),
  (248, 294, 227, 278, 214, 127, 125, 47, 183, 52, 36),
)
SCORES = {"war": 58.52, "uar": 44.11}
FOLDERS = {"faces": ("clips_faces", "faces"), "scenes": ("frames",), "video": ("clips",)}  # by --frames


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(ListedOptions):
  frames: str = option("all", "Which pictures to take.", "all", *FOLDERS)
  labels: str = option("mafw", "Whose label order to write.", *LABELS)
  numbers: str | None = option(
    None, "Whose label order the numbers in the lists are in; their form tells if not given.", *LABELS
  )


def read(raw: Path, options: Options) -> Layout:
  """Takes cropped faces if they are there.

  Args:
    raw: the folder with clips_faces, frames or clips, or one above it.
    options: with --recipe=reference as many frames as --lists say, one less than there are, so that the last in string
      order is never used; without --numbers, files MAFW_set_k_… count as MMA-DFER does, files set_k/{train,test}.txt
      officially, and others are refused.
  """
  original = options.recipe == "reference"
  if original and (options.frames == "video" or not options.lists):
    raise UserError("--recipe=reference takes as many picture files as the original's lists say: give --lists=FOLDER, and "
                    "no --frames=video")  # fmt: skip
  archive = Archive(
    raw, {"clips_wav", "compound", *(n for names in FOLDERS.values() for n in names)}, LAYOUT, options
  )
  own = [path for path in archive.folders["no_caption"] if path.parent.name.lower() == "single"]
  if len(own) > 1 and not options.lists:
    raise listed(
      f"--raw={archive.raw}: holds several sets of lists", list(map(str, own)), "choose one: --lists=FOLDER"
    )
  lists = read_lists(archive, "mafw", ("plain", "counted"), own[0] if own else None)
  if original and (others := [str(found.path) for found in lists if found.kind == "plain"]):
    raise listed(f"--recipe=reference needs lists with {FORMS['counted']}; these have others", others)
  order, label_numbers = _order_of_numbers(lists, options.numbers, archive)
  pictures, kind = _pictures(lists, options, archive)
  check_folder_of_lists(lists, kind, FOLDERS)
  media = Media(pictures, archive.find("clips"), archive.find("clips_wav"), "clips_wav or clips")
  classes = LABELS[order or "mafw"].classes
  return layout_of("mafw", lists, lambda _, written: read_label(written, 0, classes), LABELS[options.labels], media,
                   {"frames": kind, "label_numbers": label_numbers}, archive)  # fmt: skip


def _pictures(lists: list[FoldList], options: Options, archive: Archive) -> tuple[Path | None, str]:
  """The folder of pictures, None for videos, and which kind they are."""
  frames = options.frames
  faces = archive.find(*FOLDERS["faces"]) if frames in ("all", "faces") else None
  scenes = archive.find("frames") if frames == "scenes" or (frames == "all" and not faces) else None
  pictures = faces or scenes or (folder_of_lists(lists, archive) if frames == "all" else None)
  if not (pictures or (frames == "video" and archive.find("clips"))):
    needed = {"video": "clips", "all": "clips_faces or frames"}.get(frames) or FOLDERS[frames][0]
    raise no_frames(archive, frames, needed, FOLDERS)
  if scenes and frames == "all" and not options.faces:
    # Public reports of training on whole scenes: MAE-DFER's issue 22.
    raise UserError(
      f"{scenes} holds whole scenes, and there is no folder clips_faces with cropped faces. Trained on scenes, models "
      "reach about 15 % UAR. Choose --faces=yunet, which finds the faces and cuts them out, or --frames=scenes, which takes "
      "the scenes as they are (--frames=faces --raw=… takes faces that you have cut out yourself, from a folder clips_faces)"
    )
  if faces and frames == "all" and "frames" in archive.folders:
    archive.note(f"{archive.show(faces)}: chosen; --frames=scenes takes the whole scenes instead")
  return pictures, "faces" if faces else "scenes" if scenes else frames


def misread(counts: Counts, order: str) -> tuple[int, int]:
  """By how many clips counts differ from the published ones, and by how many if the labels count by the other order.

  Args:
    counts: clips by fold and class name, as read by `order`.
    order: mafw or mafw-official.
  """
  read_as = LABELS[order].classes
  near, far = (
    sum(abs(row.get(name, 0) - COUNTS[fold][truly]) for fold, row in counts.items()
        for name, truly in zip(read_as, LABELS[other].classes, strict=True))
    for other in (order, OTHER[order])
  )  # fmt: skip
  return near, far


def _order_of_numbers(
  lists: Sequence[FoldList], numbers: str | None, archive: Archive
) -> tuple[str | None, str]:
  """The order by which the labels of the lists count, None if all are names; and how it is known, in words.

  Raises:
    UserError: if nothing tells it, or the published numbers of clips belong to the other order.
  """
  with_numbers = [one for one in lists if any(row.written.lstrip("-").isdecimal() for row in one.rows)]
  if not with_numbers:
    return None, "names, not numbers" + f" (--numbers={numbers} is not used)" * bool(numbers)
  by_name = {one.path: _order_by_name(one) for one in with_numbers}
  unknown = [str(path) for path, order in by_name.items() if order is None]
  if not numbers and (unknown or len(set(by_name.values())) > 1):
    raise listed(
      "MAFW has two label orders in circulation, and the names of these lists do not tell by which they count",
      unknown or [f"{path}: {order}" for path, order in by_name.items()],
      "say --numbers=mafw if 0 is happiness (MMA-DFER, DFER-CLIP), --numbers=mafw-official if 0 is anger (MAE-DFER)",
    )
  order = numbers or next(order for order in by_name.values() if order)
  how = "as --numbers says" if numbers else "assumed from the lists' form; --numbers=… changes it"
  archive.note(f"label numbers: {order} ({how})")
  if set(by_name.values()) - {None, order}:
    archive.note(f"--numbers={order} was given; by their names the lists would count otherwise")
  check_numbers(with_numbers, 0, LABELS[order].classes)
  counts = {}
  for one in (one for one in with_numbers if one.part == "test"):
    of = Counter(row.written for row in one.rows)
    counts[f"fold{one.fold}"] = row = {name: of[str(i)] for i, name in enumerate(LABELS[order].classes)}
    if misread({f"fold{one.fold}": row}, order)[1] == 0:
      raise UserError(f"{one.path}: taken to count by the order {order}, but its numbers of clips are those of the "
                      f"order {OTHER[order]}; say --numbers={OTHER[order]}")  # fmt: skip
  here, there = misread(counts, order)
  clips, published = (sum(sum(row.values()) for row in of.values()) for of in (counts, COUNTS))
  if clips >= 0.9 * published and 2 * there < here:
    wrong = (
      f"labels are taken to count by the order {order}, by which {here} of {clips} clips are in another class than the "
      f"published numbers say; by the order {OTHER[order]} it would be {there}"
    )
    if not numbers:
      advice = f"say --numbers={OTHER[order]}, or --numbers={order} if that is meant"
      raise UserError(f"{lists[0].path.parent}: {wrong}; {advice}")
    archive.note(f"LABELS ARE PROBABLY WRONG: {wrong}", warning=True)
  return order, f"{order} ({how})"


def _order_by_name(one: FoldList) -> str | None:
  if one.kind == "counted" and re.match(r"mafw_set_?\d", one.path.name.lower()):
    return "mafw"
  if one.kind == "plain" and re.fullmatch(r"set_?\d", one.path.parent.name.lower()):
    return "mafw-official"
  return None
