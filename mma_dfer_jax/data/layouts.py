"""A data set as it is handed out -> its labelled clips, and everything that is wrong with it.

`read_dfew`, `read_mafw`, `read_ravdess`, `read_cremad` and `read_manifest` look at names of files and at lists only: no
picture, video or sound is opened. What is wrong is collected in `Layout.problems`; what leaves no data set at all is
raised. Nothing is left out without a problem or a note that says so.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
import dataclasses
import os
from pathlib import Path
import re
import unicodedata

from mma_dfer_jax.data.archive import (
  VIDEOS,
  Archive,
  Note,
  Pictures,
  Problem,
  in_order,
  index_clips,
  natural,
  pictures_in,
  the_one,
)
from mma_dfer_jax.data.faces import ARCHIVE_FACES
from mma_dfer_jax.data.labels import LABEL_ORDERS, LabelOrder
from mma_dfer_jax.data.lists import (
  FOLDS,
  FORMS,
  FoldList,
  LabelOf,
  Place,
  check_numbers,
  compare,
  places_of,
  read_lists,
  read_table,
)
from mma_dfer_jax.errors import UserError, listed

RAVDESS_CLASSES = (
  "neutral",
  "calm",
  "happy",
  "sad",
  "angry",
  "fear",
  "disgust",
  "surprise",
)  # by name part 3
CREMAD_CLASSES = {
  "ANG": "anger", "DIS": "disgust", "FEA": "fear", "HAP": "happy", "NEU": "neutral", "SAD": "sad",
}  # fmt: skip

DFEW_LAYOUTS = """accepted for DFEW, in this folder or a few folders below:
  Clip/clip_224x224/00001/*.jpg       all frames (--frames=all)
  Clip/clip_224x224_16f/00001/*.jpg   16 frames (--frames=16f)
  Clip/original/*.mp4                 videos (--frames=video); their sound is used where there is no raw_wav
  raw_wav/1.wav                       sound, beside clip_224x224 or Clip
  EmoLabel_DataSplit/{train,test}(single-labeled)/set_1.csv … set_5.csv   with the columns video_name,label
or, as --lists=FOLDER, files DFEW_set_1_train.txt, DFEW_set_1_test.txt … with lines `DIR COUNT LABEL`"""
MAFW_LAYOUTS = """accepted for MAFW, in this folder or a few folders below:
  clips_faces/00001/*.png             cropped faces (--frames=all or faces)
  frames/00001/*.png                  whole scenes (--frames=all or scenes)
  clips/00001.mp4                     videos (--frames=video); their sound is used where there is no clips_wav
  clips_wav/00001.wav                 sound
  Train & Test Set/single/no_caption/set_1 … set_5/{train,test}.txt   with lines `00001.mp4 anger`
or, as --lists=FOLDER, files MAFW_set_1_train_faces.txt, … with lines `DIR COUNT LABEL`"""
RAVDESS_LAYOUT = """accepted for RAVDESS: Actor_01/01-01-05-02-01-01-01.mp4 …, in this folder or a few folders below, or all
videos in one folder"""
CREMAD_LAYOUT = """accepted for CREMA-D: VideoFlash/1001_DFA_ANG_XX.flv … (or VideoMP4/*.mp4), and AudioWAV/*.wav if there"""


@dataclasses.dataclass(frozen=True)
class ClipSource:
  """One labelled clip of an archive: where its pictures and its sound are."""

  clip_id: str  # unique; the archive's own name, numbers with five digits: "00001"
  where: str  # the line or the file that names it, for messages
  label: str  # class name
  split: str  # "fold1" … "fold5", or "train" and "test"
  frames: tuple[Path, ...]  # picture files in the order in which they are used; empty: they come from `video`
  video: Path | None
  sound: Path | None  # a wav, or the video file; None: the archive has none for this clip


@dataclasses.dataclass(frozen=True)
class Layout:
  """What was found: good clips, and what to say about the rest."""

  classes: tuple[str, ...]  # in label order
  class_order: str  # whose order it is
  clips: list[ClipSource]
  problems: list[Problem]  # the clips concerned are not in `clips`
  recipe: dict[str, str]  # what was chosen, to be stored with the data set
  notes: list[Note]  # worth saying, not wrong
  splits: frozenset[str] = frozenset()  # that are named, if perhaps without a good clip


def _by_fold(classes: Sequence[str], *rows: Sequence[int]) -> dict[str, dict[str, int]]:
  return {f"fold{k}": dict(zip(classes, row, strict=True)) for k, row in zip(FOLDS, rows, strict=True)}


# Clips per fold (as test set) and class; DFEW and MAFW counted in public lists (DFER-CLIP, MAE-DFER), which agree with
# each other. CREMA-D: MAE-DFER's folds. RAVDESS: 60 spoken clips of each actor, in the folds made here.
PUBLISHED: dict[str, dict[str, dict[str, int]]] = {
  "dfew": _by_fold(
    LABEL_ORDERS["dfew"].classes,
    (489, 379, 534, 435, 294, 29, 181),
    (489, 379, 534, 435, 294, 29, 181),
    (489, 379, 534, 435, 294, 29, 180),
    (489, 379, 534, 434, 294, 29, 180),
    (489, 378, 533, 434, 293, 29, 180),
  ),
  "mafw": _by_fold(
    LABEL_ORDERS["mafw"].classes,
    (249, 294, 228, 278, 215, 128, 125, 48, 184, 53, 37),
    (249, 294, 228, 278, 215, 128, 125, 47, 183, 53, 37),
    (248, 294, 228, 278, 214, 128, 125, 47, 183, 52, 36),
    (248, 294, 227, 278, 214, 128, 125, 47, 183, 52, 36),
    (248, 294, 227, 278, 214, 127, 125, 47, 183, 52, 36),
  ),
  "ravdess": _by_fold(RAVDESS_CLASSES, *[[4 * n] + 7 * [8 * n] for n in (5, 5, 5, 5, 4)]),
  "cremad": _by_fold(
    tuple(CREMAD_CLASSES.values()),
    (250, 250, 250, 250, 213, 250),
    (251, 251, 251, 251, 215, 251),
    (252, 252, 252, 252, 216, 252),
    (252, 252, 252, 252, 216, 252),
    (266, 266, 266, 266, 227, 266),
  ),
}


# ---- pictures and sounds of the clips of lists ----


@dataclasses.dataclass(frozen=True)
class _Media:
  """Where the pictures and the sounds of all clips are; an index is None where the archive has no such folder."""

  pictures: Path | None  # folder of the clips' folders; None: pictures come from the videos
  videos: Path | None
  sounds: Path | None  # folder of wav files, or `videos`
  reference: bool  # frames in string order, as many as annotated
  missing_sound: str  # "problem" or "note"


def _sources(
  places: Mapping[str, Place], listed: Set[str], media: _Media, archive: Archive
) -> list[ClipSource]:
  """The clips whose pictures and sound are there; what is wrong with each of the others becomes one problem."""
  folders = index_clips(media.pictures, archive) if media.pictures else {}
  videos = index_clips(media.videos, archive, VIDEOS) if media.videos else {}
  sounds = videos if media.sounds == media.videos else {}
  if media.sounds and media.sounds != media.videos:
    sounds = index_clips(media.sounds, archive, (".wav",))
  looked = folders if media.pictures else videos
  home = media.pictures or media.videos or archive.raw
  bad = archive.bad_clips
  if others := sorted(looked.keys() - listed - bad):
    archive.note(f"{archive.show(home)}: clips in no list, not used", *others)
  wanted = [place for clip_id, place in places.items() if clip_id not in bad]
  what = "folder" if media.pictures else "video"
  found = [the_one(looked, place.row.clip_id, what, home, archive) for place in wanted]

  def inside(path: Path | str) -> Pictures | None:
    return pictures_in(path) if media.pictures and isinstance(path, Path) else None

  with ThreadPoolExecutor(8) as pool:  # a network disk answers several at once
    contents = list(pool.map(inside, found))
  clips = []
  for place, path, content in zip(wanted, found, contents, strict=True):
    clip_id = place.row.clip_id
    names: list[str] = []
    wrong = [path] if isinstance(path, str) else []
    if content and isinstance(path, Path):
      names, wrong = in_order(path, content, place.row.annotated, media.reference, archive)
    sound: Path | None = None
    if media.sounds:
      there = the_one(sounds, clip_id, "video" if sounds is videos else "wav", media.sounds, archive)
      if isinstance(there, Path):
        sound = there
      elif clip_id in sounds or media.missing_sound == "problem":
        wrong += [there] * (there not in wrong)
      elif not wrong:
        archive.note(f"{archive.show(media.sounds)}: clips without sound", clip_id)
    if wrong:
      archive.problems.append(Problem(place.row.where, "; ".join(wrong), (clip_id,)))
    elif isinstance(path, Path):
      frames = tuple(path / name for name in names)
      video = None if media.pictures else path
      clips.append(
        ClipSource(clip_id, place.row.where, place.label, f"fold{place.fold}", frames, video, sound)
      )
  return clips


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
  if value not in choices:
    raise UserError(f"--{name}={value}: choose one of {', '.join(choices)}")


def _frame_recipe(frames: str, reference: bool, counted: bool) -> dict[str, str]:
  """How pictures are taken, in words that are stored with the data set."""
  if frames == "video":
    return {"frames": "video", "frame_order": "presentation: as the video is played", "frame_count": "all"}
  count = "as annotated in the lists" if reference and counted else "all files"
  order = "string: 10.jpg before 2.jpg, as the original" if reference else "natural: 2.jpg before 10.jpg"
  cut = {} if frames == "scenes" else ARCHIVE_FACES
  taken = {"frames": frames, "frame_order": order, "frame_count": count, "frame_coding": "as delivered"}
  return taken | cut


def _choose_sound(
  wavs: Path | None, videos: Path | None, names: str, allow_missing_sound: bool, archive: Archive
) -> tuple[Path | None, str]:
  """The folder that sounds come from, for all clips alike, and its name in the recipe."""
  folder = wavs or videos
  if folder:
    return folder, f"{'wav files of' if wavs else 'videos of'} {folder.name}"
  missing = f"there is no sound: no folder {names}"
  if allow_missing_sound:
    archive.note(missing)
  else:
    archive.problems.append(
      Problem(str(archive.raw), f"{missing} (--allow_missing_sound takes all clips without)")
    )
  return None, "none"


# ---- DFEW and MAFW ----


DFEW_FOLDERS = (
  "clip_224x224",
  "clip_224x224_16f",
  "clip_224x224_avi",
  "original",
  "raw_wav",
  "emolabel_datasplit",
)


def read_dfew(
  raw: Path,
  *,
  frames: str = "all",
  lists: Path | None = None,
  recipe: str = "default",
  allow_missing_sound: bool = False,
  follow_links: bool = False,
) -> Layout:
  """DFEW: fold k is the test set of fold k; the training sets must be the other folds.

  Args:
    raw: the folder DFEW-part2, one above it, or Clip in it.
    frames: all (clip_224x224), 16f (clip_224x224_16f), or video (original).
    lists: folder with lists other than those of EmoLabel_DataSplit: csv files of the same form, or text files with
      lines `DIR COUNT LABEL` and labels from 0, of which the last part of DIR is looked up in `raw`.
    recipe: default (frames in natural order, all of them) or reference (string order, as many as the lists say).
    allow_missing_sound: take clips without sound, noting them.
    follow_links: take what symbolic links that lead out of `raw` lead to.
  Returns:
    the clips; sound is taken from raw_wav for all, or where there is no such folder, from the original videos.
  Raises:
    UserError: if there are no such folders or lists, or all labels are off by one.
  """
  _check_choice("frames", frames, ("all", "16f", "video"))
  _check_choice("recipe", recipe, ("default", "reference"))
  if recipe == "reference" and frames == "video":
    raise UserError("--recipe=reference is an order of picture files; with --frames=video there are none")
  home = Path(os.path.abspath(raw))
  if home.name.lower() == "clip":
    home = home.parent  # where the lists lie
  archive = Archive(home, DFEW_FOLDERS, DFEW_LAYOUTS, follow_links)
  order = LABEL_ORDERS["dfew"]
  read = read_lists(
    _list_folder(lists, archive.find("EmoLabel_DataSplit"), archive), "dfew", ("csv", "counted"), archive
  )
  for kind, first in (("csv", 1), ("counted", 0)):
    check_numbers([found for found in read if found.kind == kind], first, order.classes)

  def label_of(found: FoldList, written: str) -> str | None:
    return _numbered(written, 1 if found.kind == "csv" else 0, order.classes)

  name = {"all": "clip_224x224", "16f": "clip_224x224_16f"}.get(frames)
  pictures = (archive.find(name) or _folder_of_lists(read, archive)) if name else None
  videos = archive.find("original")
  if not (pictures or (frames == "video" and videos)):
    raise archive.unrecognised(f"no folder {name or 'original'}, which --frames={frames} needs")
  _check_folder_of_lists(read, frames, {"clip_224x224": "all", "clip_224x224_16f": "16f"})
  wavs = archive.find("raw_wav") if pictures else None
  sounds, sound = _choose_sound(wavs, videos, "raw_wav or original", allow_missing_sound, archive)
  media = _Media(pictures, videos if not (pictures and wavs) else None, sounds, recipe == "reference",
                 "note" if allow_missing_sound else "problem")  # fmt: skip
  return _layout(read, label_of, media, order, {"frames": frames, "sound": sound}, archive)


def read_mafw(
  raw: Path,
  *,
  frames: str = "all",
  lists: Path | None = None,
  labels: str = "mafw",
  numbers: str | None = None,
  recipe: str = "default",
  allow_missing_sound: bool = False,
  follow_links: bool = False,
) -> Layout:
  """MAFW, the eleven single emotions: fold k is the test set of fold k; the training sets must be the other folds.

  Args:
    raw: the folder with clips_faces, frames or clips, or one above it.
    frames: faces (clips_faces), scenes (frames), all (faces if there, else scenes), or video (clips).
    lists: folder with lists other than those of `Train & Test Set`: of the same form, or with lines `DIR COUNT LABEL`.
    labels: order of `Layout.classes`: mafw (MMA-DFER's) or mafw-official. The name of a clip's label is the same in both.
    numbers: the order by which lists count that have numbers in place of names, mafw or mafw-official. Without it, files
      MAFW_set_k_… count as MMA-DFER does, files set_k/{train,test}.txt officially, and others are refused.
    recipe: default (frames in natural order, all of them) or reference (string order, as many as the lists say: one
      less than there are, so that the last in string order is never used).
    allow_missing_sound: take the clips though there is no folder with sound at all. Single clips without a wav are
      noted and taken, as in the original.
    follow_links: take what symbolic links that lead out of `raw` lead to.
  Raises:
    UserError: if there are no such folders or lists, or the numbers of the lists cannot be what they should.
  """
  _check_mafw(frames, lists, labels, numbers, recipe)
  leaves = ("clips_faces", "faces", "frames", "clips", "clips_wav", "compound")
  archive = Archive(raw, leaves, MAFW_LAYOUTS, follow_links)
  official = [path for path in archive.folders["no_caption"] if path.parent.name.lower() == "single"]
  if len(official) > 1 and lists is None:
    raise listed(
      f"--raw={archive.raw}: holds several sets of lists",
      list(map(str, official)),
      "say which: --lists=FOLDER",
    )
  read = read_lists(
    _list_folder(lists, next(iter(official), None), archive), "mafw", ("plain", "counted"), archive
  )
  if recipe == "reference" and (others := [str(found.path) for found in read if found.kind == "plain"]):
    raise listed(f"--recipe=reference needs lists with {FORMS['counted']}; these have others", others)
  order, label_numbers = _order_of_numbers(read, numbers, archive)

  def label_of(found: FoldList, written: str) -> str | None:
    if found.kind == "plain" and written.lower() in LABEL_ORDERS["mafw"].classes:
      return written.lower()
    return _numbered(written, 0, LABEL_ORDERS[order].classes) if order else None

  pictures, videos, kind = _mafw_pictures(frames, read, archive)
  _check_folder_of_lists(read, kind, {"clips_faces": "faces", "faces": "faces", "frames": "scenes"})
  wavs = archive.find("clips_wav")
  sounds, sound = _choose_sound(wavs, videos, "clips_wav or clips", allow_missing_sound, archive)
  media = _Media(pictures, videos if not (pictures and wavs) else None, sounds, recipe == "reference", "note")
  facts = {"frames": kind, "sound": sound, "label_numbers": label_numbers}
  return _layout(read, label_of, media, LABEL_ORDERS[labels], facts, archive)


def _check_mafw(frames: str, lists: Path | None, labels: str, numbers: str | None, recipe: str) -> None:
  """Raises UserError if an option of MAFW cannot be."""
  _check_choice("frames", frames, ("all", "faces", "scenes", "video"))
  _check_choice("recipe", recipe, ("default", "reference"))
  _check_choice("labels", labels, ("mafw", "mafw-official"))
  _check_choice("numbers", numbers or "mafw", ("mafw", "mafw-official"))
  if recipe == "reference" and (frames == "video" or lists is None):
    raise UserError(
      "--recipe=reference takes as many picture files as the original's lists say: give --lists=FOLDER, and no "
      "--frames=video"
    )


def _mafw_pictures(
  frames: str, read: list[FoldList], archive: Archive
) -> tuple[Path | None, Path | None, str]:
  """The folder of pictures, that of videos, and which kind of frames is taken.

  Raises:
    UserError: if what --frames asks for is not there.
  """
  faces = archive.find("clips_faces", "faces") if frames in ("all", "faces") else None
  scenes = archive.find("frames") if frames == "scenes" or (frames == "all" and not faces) else None
  pictures, videos = faces or scenes, archive.find("clips")
  if frames == "all" and not pictures:
    pictures = _folder_of_lists(read, archive)
  if not (pictures or (frames == "video" and videos)):
    needed = {"faces": "clips_faces", "scenes": "frames", "video": "clips"}.get(
      frames, "clips_faces or frames"
    )
    raise archive.unrecognised(f"no folder {needed}, which --frames={frames} needs")
  if scenes:
    archive.note(f"{archive.show(scenes)}: whole scenes; the published results are from cropped faces")
  elif frames == "all" and faces and "frames" in archive.folders:
    archive.note(f"{archive.show(faces)}: chosen; --frames=scenes takes the whole scenes instead")
  return pictures, videos, "faces" if faces else "scenes" if scenes else frames


def _layout(
  lists: Sequence[FoldList], label_of: LabelOf, media: _Media, order: LabelOrder, facts: dict[str, str],
  archive: Archive,
) -> Layout:  # fmt: skip
  """Lists and media put together."""
  places = places_of(lists, label_of, archive)
  clips = _sources(places, {row.clip_id for found in lists for row in found.rows}, media, archive)
  compare(lists, label_of, places, archive)  # last: it says nothing more of clips that are a problem already
  bad = archive.bad_clips
  counted = any(found.kind == "counted" for found in lists)
  forms = " and ".join(sorted({FORMS[found.kind] for found in lists if found.kind}))
  recipe = _frame_recipe(facts["frames"], media.reference, counted) | facts
  recipe |= {"label_order": order.origin, "folds": f"test set k of the lists, {forms}"}
  return Layout(
    order.classes, order.origin, [clip for clip in clips if clip.clip_id not in bad], _once(archive.problems), recipe,
    archive.notes, frozenset(f"fold{k}" for k in FOLDS),
  )  # fmt: skip


def _once(problems: Iterable[Problem]) -> list[Problem]:
  return list(dict.fromkeys(problems))


def _list_folder(given: Path | None, own: Path | None, archive: Archive) -> Path:
  if given and not given.is_dir():
    raise UserError(
      f"--lists={given}: is no folder; give the one that holds the lists of all folds\n{archive.layouts}"
    )
  if not (given or own):
    raise archive.unrecognised("there are no lists of folds")
  return given or own  # type: ignore[return-value]


def _numbered(written: str, first: int, classes: Sequence[str]) -> str | None:
  number = int(written) - first if re.fullmatch("[0-9]+", written) else -1
  return classes[number] if 0 <= number < len(classes) else None


def _folder_of_lists(lists: Sequence[FoldList], archive: Archive) -> Path | None:
  """The folder, under whatever name, in which the lists say that the clips are."""
  names = {row.folder for found in lists for row in found.rows if row.folder}
  folder = archive.find(names.pop()) if len(names) == 1 else None
  if folder:
    archive.note(f"{archive.show(folder)}: pictures are taken from here, as the lists name this folder")
  return folder


def _check_folder_of_lists(lists: Sequence[FoldList], frames: str, known: Mapping[str, str]) -> None:
  """Refuses lists made for other pictures than those chosen: their counts would be wrong.

  Raises:
    UserError: if so.
  """
  said = {known.get(row.folder.lower()) for found in lists for row in found.rows} - {None}
  if frames in known.values() and said and said != {frames}:
    raise UserError(
      f"{lists[0].path.parent}: the lists are of --frames={', '.join(map(str, said))}, but --frames={frames} was "
      "chosen"
    )


def _order_of_numbers(
  lists: Sequence[FoldList], numbers: str | None, archive: Archive
) -> tuple[str | None, str]:
  """The order by which the labels of MAFW lists count, None if all are names; and how it is known, in words.

  Raises:
    UserError: if nothing tells it, or the published numbers of clips belong to the other order.
  """
  with_numbers = [found for found in lists if any(row.written.lstrip("-").isdecimal() for row in found.rows)]
  if not with_numbers:
    return None, "names, not numbers" + f" (--numbers={numbers} is not used)" * bool(numbers)
  said = {found.path: _order_by_name(found) for found in with_numbers}
  unknown = [str(path) for path, order in said.items() if order is None]
  if not numbers and (unknown or len(set(said.values())) > 1):
    raise listed(
      "MAFW has two label orders in circulation, and the names of these lists do not tell by which they count",
      unknown or [f"{path}: {order}" for path, order in said.items()],
      "say --numbers=mafw if 0 is happiness (MMA-DFER, DFER-CLIP), --numbers=mafw-official if 0 is anger (MAE-DFER)",
    )
  order = numbers or next(iter(said.values()))
  assert order is not None
  how = "as --numbers says" if numbers else "assumed from the lists' form; --numbers=… changes it"
  archive.note(f"label numbers: {order} ({how})")
  if set(said.values()) - {None, order}:
    archive.note(f"--numbers={order} was given; by their names the lists would count otherwise")
  check_numbers(with_numbers, 0, LABEL_ORDERS[order].classes)
  (other,) = {"mafw", "mafw-official"} - {order}
  counts = {}
  for found in (found for found in with_numbers if found.part == "test"):
    of = Counter(row.written for row in found.rows)
    row = {name: of[str(i)] for i, name in enumerate(LABEL_ORDERS[order].classes)}
    counts[f"fold{found.fold}"] = row
    if far_from_published({f"fold{found.fold}": row}, order)[1] == 0:
      raise UserError(f"{found.path}: taken to count by the order {order}, but its numbers of clips are those of the "
                      f"order {other}; say --numbers={other}")  # fmt: skip
  here, there = far_from_published(counts, order)
  clips, published = (sum(sum(row.values()) for row in of.values()) for of in (counts, PUBLISHED["mafw"]))
  if clips >= 0.9 * published and 2 * there < here:
    wrong = (
      f"labels are taken to count by the order {order}, by which {here} of {clips} clips are in another class than the "
      f"published numbers say; by the order {other} it would be {there}"
    )
    if not numbers:
      raise UserError(
        f"{lists[0].path.parent}: {wrong}; say --numbers={other}, or --numbers={order} if that is meant"
      )
    archive.note(f"LABELS ARE PROBABLY WRONG: {wrong}")
  return order, f"{order} ({how})"


def far_from_published(counts: Mapping[str, Mapping[str, int]], order: str) -> tuple[int, int]:
  """How far MAFW's numbers of clips are from the published ones, and how far if the labels count by the other order.

  Args:
    counts: clips by fold and class name, as read by `order`.
    order: mafw or mafw-official.
  """
  (other,) = {"mafw", "mafw-official"} - {order}
  read_as = LABEL_ORDERS[order].classes

  def distance(names: Sequence[str]) -> int:
    published = PUBLISHED["mafw"]
    return sum(
      abs(row.get(name, 0) - published[fold][truly])
      for fold, row in counts.items()
      for name, truly in zip(read_as, names, strict=True)
    )

  return distance(read_as), distance(LABEL_ORDERS[other].classes)


def _order_by_name(found: FoldList) -> str | None:
  if found.kind == "counted" and re.match(r"mafw_set_?\d", found.path.name.lower()):
    return "mafw"
  if found.kind == "plain" and re.fullmatch(r"set_?\d", found.path.parent.name.lower()):
    return "mafw-official"
  return None


# ---- RAVDESS and CREMA-D: everything is in the names of the files ----


def _acted(
  archive: Archive, clips: list[ClipSource], classes: Sequence[str], known: Sequence[str], origin: str,
  facts: dict[str, str],
) -> Layout:  # fmt: skip
  """Puts clips together whose labels are in their names; those of classes that were not asked for are noted."""
  if unknown := [name for name in classes if name not in known]:
    raise UserError(
      f"--classes={','.join(classes)}: there is no {', '.join(unknown)}, only {', '.join(known)}"
    )
  chosen = [clip for clip in clips if clip.label in (classes or known)]
  for clip in clips:
    if clip.label not in (classes or known):
      archive.note(f"clips of the class {clip.label} left out, as --classes does not name it", clip.clip_id)
  if empty := [k for k in FOLDS if not any(clip.split in (f"fold{k}", "train") for clip in chosen)]:
    archive.note(f"no clips in fold {', '.join(map(str, empty))}")
  order = "as given" if classes else origin
  recipe = _frame_recipe("video", False, False) | {"label_order": order} | facts
  return Layout(tuple(classes or known), order, chosen, _once(archive.problems), recipe, archive.notes)


def read_ravdess(
  raw: Path, *, classes: Sequence[str] = (), song: bool = False, follow_links: bool = False
) -> Layout:
  """RAVDESS: clips with picture and sound; fold = (actor - 1) mod 5 + 1, so that no actor is in two folds.

  Args:
    raw: the folder of Actor_01 …, one above it, or a folder with all videos.
    classes: those to take, in label order; all eight otherwise, calm among them.
    song: take sung clips too.
    follow_links: take what symbolic links that lead out of `raw` lead to.
  Returns:
    five folds; if all actors fall in one, "train" and "test" by statement ("Kids are …" and "Dogs are …").
  Raises:
    UserError: if there are no videos with RAVDESS names, or no such classes.
  """
  archive = Archive(raw, (), RAVDESS_LAYOUT, follow_links)
  found: dict[str, ClipSource] = {}
  statements: dict[str, int] = {}
  for path in _files_everywhere(archive):
    shown = archive.show(path)
    if path.suffix.lower() not in VIDEOS:
      archive.note("no videos by extension, not used", shown)
      continue
    parts = [int(part) for part in path.stem.split("-") if re.fullmatch("[0-9]{2}", part)]
    if len(parts) != 7 or len(path.stem) != 20 or not _ravdess_parts_are_known(parts):
      wrong = "is not a RAVDESS name, such as 01-01-05-02-01-01-01.mp4"
      archive.problems.append(Problem("", wrong, (shown,)))
      continue
    modality, channel, emotion, _, statement, _, actor = parts
    folder = re.search(r"actor_?(\d+)$", path.parent.name.lower())
    if folder and int(folder[1]) != actor:
      archive.problems.append(Problem("", f"is of actor {actor} by its name", (shown,)))
    elif modality != 1:
      kind = (
        "video-only (02), of which the ones with sound (01) are taken" if modality == 2 else "sound-only (03)"
      )
      archive.note(f"clips left out: {kind}", shown)
    elif channel == 2 and not song:
      archive.note("clips left out: sung", shown)
    elif path.stem in found:
      archive.problems.append(Problem(shown, f"is {found[path.stem].where} already", (path.stem,)))
    else:
      split = f"fold{(actor - 1) % 5 + 1}"
      statements[path.stem] = statement
      found[path.stem] = ClipSource(path.stem, shown, RAVDESS_CLASSES[emotion - 1], split, (), path, path)
  if not found:
    raise archive.unrecognised("there are no RAVDESS videos with picture and sound (01-….mp4)")
  clips = [clip for clip in found.values() if clip.clip_id not in archive.bad_clips]
  rule = "fold = (actor - 1) mod 5 + 1: no actor is in two folds"
  if len({clip.split for clip in clips}) == 1:
    rule = "train: statement 1 (kids), test: statement 2 (dogs), as all actors fall in one fold: not speaker-independent"
    splits = {1: "train", 2: "test"}
    clips = [dataclasses.replace(clip, split=splits[statements[clip.clip_id]]) for clip in clips]
  facts = {"folds": rule, "sound": "that of the videos", "channel": "speech and song" if song else "speech"}
  return _acted(archive, clips, classes, RAVDESS_CLASSES, "RAVDESS: third part of the file names", facts)


def _ravdess_parts_are_known(parts: Sequence[int]) -> bool:
  return all(1 <= part <= most for part, most in zip(parts, (3, 2, 8, 2, 2, 2, 24), strict=True))


def _files_everywhere(archive: Archive) -> list[Path]:
  """All files in all folders found, in natural order."""
  folders = sorted({path for paths in archive.folders.values() for path in paths})
  return [folder / name for folder in folders for name in sorted(archive.entries(folder)[1], key=natural)]


CREMAD_FOLDS = "by speaker: 1001-1018, 1019-1036, 1037-1054, 1055-1072, 1073-1091, as MAE-DFER"


def read_cremad(
  raw: Path,
  *,
  classes: Sequence[str] = (),
  allow_missing_sound: bool = False,
  follow_links: bool = False,
) -> Layout:
  """CREMA-D: folds by speaker, 1001-1018, 1019-1036, 1037-1054, 1055-1072 and 1073-1091.

  Args:
    raw: the repository's folder: VideoFlash or VideoMP4, and AudioWAV; without AudioWAV the sound is the videos' own.
    classes: those to take, in label order; all six otherwise.
    allow_missing_sound: take clips that have no wav in AudioWAV, noting them.
    follow_links: take what symbolic links that lead out of `raw` lead to.
  Raises:
    UserError: if there are no such folders or classes, or the files are not downloaded.
  Source: the folds are those of MAE-DFER's public lists.
  """
  archive = Archive(raw, ("videoflash", "videomp4", "audiowav", "audiomp3"), CREMAD_LAYOUT, follow_links)
  videos, wavs = archive.find("VideoFlash", "VideoMP4"), archive.find("AudioWAV")
  if videos is None:
    raise archive.unrecognised("no folder VideoFlash or VideoMP4")
  if videos.name.lower() == "videoflash" and archive.folders.get("videomp4"):
    archive.note(f"{archive.show(videos)}: chosen; VideoMP4 is there too and not used")
  pictures = index_clips(videos, archive, VIDEOS)
  sounds = index_clips(wavs, archive, (".wav",)) if wavs else pictures
  pointers = _pointers([path for index in (pictures, sounds) for paths in index.values() for path in paths])
  if names := tuple(dict.fromkeys(path.stem for path in sorted(pointers))):
    archive.problems.append(
      Problem("", "not downloaded, only pointers of Git LFS, which `git lfs pull` replaces", names)
    )
  if not pictures or pointers >= {path for paths in pictures.values() for path in paths}:
    raise archive.unrecognised(f"no videos in {archive.show(videos)}")
  clips = _cremad_clips(pictures, sounds, videos, wavs, allow_missing_sound, archive)
  if alone := sorted(sounds.keys() - pictures.keys()):
    archive.note("wavs without a video, not used", *alone)
  facts = {
    "folds": CREMAD_FOLDS,
    "sound": f"wav files of {wavs.name}" if wavs else "that of the videos",
  }
  return _acted(
    archive,
    clips,
    classes,
    tuple(CREMAD_CLASSES.values()),
    "CREMA-D: third part of the file names, sorted",
    facts,
  )


def _cremad_clips(
  pictures: dict[str, list[Path]],
  sounds: dict[str, list[Path]],
  videos: Path,
  wavs: Path | None,
  allow_missing_sound: bool,
  archive: Archive,
) -> list[ClipSource]:
  """The clips that are what they should be; what is wrong with others goes to the archive's problems."""
  clips, bad = [], archive.bad_clips
  for name in sorted(pictures.keys() - bad):
    video = the_one(pictures, name, "video", videos, archive)
    sound = the_one(sounds, name, "wav", wavs or videos, archive)
    where = archive.show(pictures[name][0])
    match = re.fullmatch(r"(1\d\d\d)_([A-Z]{3})_([A-Z]{3})_(LO|MD|HI|XX)", name)
    wrong = [video] if isinstance(video, str) else []
    if not match or match[3] not in CREMAD_CLASSES or not 1001 <= int(match[1]) <= 1091:
      wrong = ["is not a CREMA-D name, such as 1001_DFA_ANG_XX"]
    elif isinstance(sound, str) and wavs:
      if name not in sounds and allow_missing_sound:
        archive.note("clips without a wav", name)
      else:
        wrong.append(sound)
    if wrong:
      archive.problems.append(Problem(where, "; ".join(wrong), (name,)))
    elif match and isinstance(video, Path):
      split = f"fold{min(5, (int(match[1]) - 1001) // 18 + 1)}"
      clips.append(ClipSource(name, where, CREMAD_CLASSES[match[3]], split, (), video,
                              sound if isinstance(sound, Path) else None))  # fmt: skip
  return clips


def _pointers(paths: Iterable[Path]) -> set[Path]:
  """Files that Git LFS has not replaced by their content yet."""
  found = set()
  for path in paths:
    if path.stat().st_size < 200 and path.read_bytes().startswith(b"version https://git-lfs"):
      found.add(path)
  return found


# ---- a manifest: any clips ----


def read_manifest(manifest: Path, classes: Sequence[str]) -> Layout:
  """The rows of a manifest as clips, and what is wrong with the others.

  Args:
    manifest: a csv with the columns path, label, and split (train or test) or fold (1, 2, …).
    classes: class names in label order; if none, those found, sorted.
  Raises:
    UserError: if the file is no manifest at all.
  """
  try:
    table = read_table(manifest, "path,label,split", "path,label,fold")
  except ValueError as error:
    raise UserError(f"{manifest}: {error}") from error
  if not table.rows:
    raise UserError(f"{manifest}: holds no rows, only {','.join(table.header)}")
  folds = "fold" in table.header
  clips: list[ClipSource] = []
  problems: list[Problem] = []
  seen: dict[str, int] = {}
  splits, labels = set(), dict.fromkeys(classes)
  for line, values in table.rows:
    row = dict.fromkeys(table.header, "") | dict(zip(table.header, map(str.strip, values), strict=False))
    path, label, split = row["path"], row["label"], row["fold" if folds else "split"]
    wrong = []
    if (more := len(values) - len(table.header)) > 0:
      wrong.append(f"{more} values too many (quote values that hold commas)")
    if not path:
      wrong.append("no path")
    if not label:
      wrong.append("no label")
    elif classes and label not in classes:
      wrong.append(f"label {label!r} is not one of the classes {', '.join(classes)}")
    if folds:
      split = f"fold{split.removeprefix('fold')}"
    if folds and not re.fullmatch(r"fold[1-9][0-9]*", split):
      wrong.append(f"fold {row['fold']!r} is not a number from 1 on")
    elif not folds and split not in ("train", "test"):
      wrong.append(f"split {split!r} is used by no run: write train or test, or a column fold with 1, 2, …")
    else:
      splits.add(split)
    file = Path(os.path.abspath(manifest.parent / path))
    same = os.path.realpath(file)  # the same clip in training and in the test would make the score a lie
    if path and seen.setdefault(same, line) != line:
      wrong.append(f"is in line {seen[same]} already")
    if wrong:
      problems.append(Problem("", "; ".join(wrong), (f"line {line}: {path}" if path else f"line {line}",)))
    else:
      clips.append(ClipSource(path, f"line {line}", label, split, (), file, file))
      labels.setdefault(label)
  numbers = sorted(int(split.removeprefix("fold")) for split in splits) if folds else []
  if numbers != list(range(1, len(numbers) + 1)):
    there = ", ".join(map(str, numbers))
    problems.append(Problem(str(manifest), f"the folds are {there}; they must be 1, 2, … without a hole"))
  problems += [Problem(str(manifest), text) for text in alike(labels)]
  names = tuple(classes) or tuple(sorted(labels, key=natural))
  order = "as given by --classes" if classes else "sorted by name"
  return Layout(names, order, clips, problems, {}, [Note(note) for note in table.notes], frozenset(splits))


def alike(classes: Iterable[str]) -> list[str]:
  """What is wrong with class names that differ only in case or spaces: most often they are meant to be one."""
  groups: dict[str, list[str]] = {}
  for name in classes:
    key = " ".join(unicodedata.normalize("NFC", name).casefold().split())
    groups.setdefault(key, []).append(name)
  return [f"the class names {' and '.join(map(repr, group))} differ in case or spaces only: write one of them"
          for group in groups.values() if len(group) > 1]  # fmt: skip
