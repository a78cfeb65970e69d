"""MAFW's eleven single emotions: fold k is the test set of fold k; the training sets must be the other folds."""

from collections import Counter
import dataclasses
from pathlib import Path
import re

from mma_dfer_jax.data import listed
from mma_dfer_jax.data.source import LabelOrder, Layout, folds_of, option
from mma_dfer_jax.errors import UserError
from mma_dfer_jax.errors import listed as all_listed

FLAG = "raw"
LAYOUT = """accepted for MAFW, in this folder or a few folders below:
  clips_faces/00001/*.png             cropped faces (--frames=all or faces)
  frames/00001/*.png                  whole scenes (--frames=scenes, or --frames=all with --faces=yunet)
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
class Options(listed.Options):
  frames: str = option("all", "Which pictures to take.", "all", *FOLDERS)
  labels: str = option("mafw", "Whose label order to write.", *LABELS)
  numbers: str | None = option(None, "Label order of the lists' numbers; else their form tells.", *LABELS)


def read(raw: Path, options: Options) -> Layout:
  """Takes cropped faces if they are there, and with --recipe=reference only as many frames as --lists say: one too few.

  Without --numbers, files MAFW_set_k_… count as MMA-DFER does, set_k/{train,test}.txt officially; others are refused.
  """
  original = options.recipe == "reference"
  if original and (options.frames == "video" or not options.lists):
    raise UserError("--recipe=reference takes as many picture files as the original's lists say: give --lists=FOLDER, and "
                    "no --frames=video")  # fmt: skip
  forms = {"plain": 0, "counted": 0}  # and from where they count labels
  archive = listed.ListedArchive("mafw", raw, FOLDERS, "clips_wav", forms, LAYOUT, options)
  own = [path for path in archive.folders["no_caption"] if path.parent.name.lower() == "single"]
  if len(own) > 1 and not options.lists:
    raise all_listed(f"--raw={raw}: several sets of lists", list(map(str, own)), "choose --lists=FOLDER")
  archive.read_lists(own[0] if own else None)
  if original and (others := [str(row.path) for row in archive.rows if row.kind == "plain"]):
    raise all_listed(f"--recipe=reference needs lists with {listed.FORMS['counted']}; others are", others)
  label_numbers = _read_numbers(archive, options.numbers)
  pictures, kind = _pictures(archive, options)
  return archive.read(LABELS[options.labels], kind, pictures, label_numbers=label_numbers)


def _pictures(archive: listed.ListedArchive, options: Options) -> tuple[Path | None, str]:
  """The folder of pictures, None for videos, and which kind they are. Faces are cut out of whole scenes, if there are any."""
  frames, choices = options.frames, ("scenes", "faces") if options.faces == "yunet" else ("faces", "scenes")
  pictures = archive.find_frames(*(choices if frames == "all" else [frames]), by_lists=frames == "all")
  if frames != "all":
    return None if frames == "video" else pictures, frames
  kind = next((choice for choice in choices if pictures.name.lower() in FOLDERS[choice]), "all")
  if kind == "scenes" and not options.faces:
    # Public reports of training on whole scenes: MAE-DFER's issue 22.
    raise UserError(f"{pictures} holds whole scenes, and there is no folder clips_faces with cropped faces. Models trained on "
                    "scenes reach about 15 % UAR. Choose --faces=yunet, which cuts the faces out, or --frames=scenes, which "
                    "takes the scenes as they are. Faces that you have cut out belong in a folder clips_faces")  # fmt: skip
  if kind == "faces" and "frames" in archive.folders:
    archive.note(f"{archive.show(pictures)}: chosen; --frames=scenes takes the whole scenes instead")
  if kind == "scenes" and options.faces == "yunet" and archive.find(*FOLDERS["faces"]):
    archive.note(f"{archive.show(pictures)}: chosen, as --faces=yunet cuts faces out of whole scenes; without it the cropped "
                 "faces are taken")  # fmt: skip
  return pictures, kind


def _read_numbers(archive: listed.ListedArchive, numbers: str | None) -> str:
  """Finds by which order the labels of the lists count, if they are numbers; returns what the recipe says of it."""
  lists = {row.path: row.kind for row in archive.rows if row.written.lstrip("-").isdecimal()}
  if not lists:
    archive.read_labels(LABELS["mafw"].classes)
    return "names, not numbers" + f" (--numbers={numbers} is not used)" * bool(numbers)
  by_name = {}
  for path, kind in lists.items():
    official = kind != "counted" and re.fullmatch(r"set_?\d", path.parent.name.lower())
    mma_dfer = kind == "counted" and re.match(r"mafw_set_?\d", path.name.lower())
    by_name[path] = "mafw-official" if official else "mafw" if mma_dfer else None
  if not numbers and (None in by_name.values() or len(set(by_name.values())) > 1):
    raise all_listed(
      "MAFW has two label orders in circulation, and the names of these lists do not tell by which they count",
      [f"{path}: {order or 'either'}" for path, order in by_name.items()],
      "say --numbers=mafw if 0 is happiness (MMA-DFER, DFER-CLIP), --numbers=mafw-official if 0 is anger (MAE-DFER)",
    )
  order = numbers or str(next(iter(by_name.values())))
  how = "as --numbers says" if numbers else "assumed from the lists' form; --numbers=… changes it"
  archive.note(f"label numbers: {order} ({how})")
  if set(by_name.values()) - {None, order}:
    suggested = " and ".join(sorted(set(filter(None, by_name.values())) - {order}))
    archive.note(
      f"--numbers={order} was given, but the list names suggest --numbers={suggested}", warning=True
    )
  archive.read_labels(LABELS[order].classes)
  tests = Counter((row.fold, row.written) for row in archive.rows if row.part == "test" and row.path in lists)
  _compare_with_published(archive, tests, order, given=bool(numbers))
  return f"{order} ({how})"


def _compare_with_published(archive: listed.ListedArchive, tests: Counter, order: str, given: bool) -> None:
  """Refuses, or warns of, an order if test lists (clips by fold and number) rather have published numbers by the other."""
  other, where = "mafw" if order == "mafw-official" else "mafw-official", archive.rows[0].path.parent
  here, there = (  # by how many clips the lists differ from the published numbers
    sum(abs(tests[k, str(i)] - COUNTS[f"fold{k}"][name])
        for k in {fold for fold, _ in tests} for i, name in enumerate(LABELS[by].classes))
    for by in (order, other)
  )  # fmt: skip
  clips = sum(number for (_, label), number in tests.items() if label in map(str, range(11)))
  if tests and there == 0:
    raise UserError(f"{where}: the lists are taken to count by the order {order}, but their numbers of clips are those of "
                    f"the order {other}; say --numbers={other}")  # fmt: skip
  if clips >= 0.9 * sum(sum(row.values()) for row in COUNTS.values()) and 2 * there < here:
    wrong = (f"labels are taken to count by the order {order}, by which {here} of {clips} clips are in another class than "
             f"the published numbers say; by the order {other} it would be {there}")  # fmt: skip
    if not given:
      raise UserError(f"{where}: {wrong}; say --numbers={other}, or else --numbers={order}")
    archive.note(f"LABELS ARE PROBABLY WRONG: {wrong}", warning=True)
