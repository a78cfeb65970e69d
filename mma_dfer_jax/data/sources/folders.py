"""Any clips in folders that name their class: CLASS/clip.mp4, or train/CLASS/clip.mp4 and test/CLASS/clip.mp4."""

from collections import defaultdict
import dataclasses
import hashlib
from pathlib import Path
import re

from mma_dfer_jax.data.archive import VIDEOS, Archive, ClassOptions, chosen
from mma_dfer_jax.data.source import ClipFiles, Layout, Problem, natural, near_duplicates, option
from mma_dfer_jax.errors import UserError, listed

FLAG = "raw"
LAYOUT = """accepted for folders: CLASS/clip.mp4 with --test_share=0.2, which splits the clips into training and test; or a
split of your own, train/CLASS/clip.mp4 and test/CLASS/clip.mp4. Nothing else may lie there, and no folder in a class."""
LABELS: dict = {}
COUNTS: dict = {}
SCORES: dict = {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(ClassOptions):
  test_share: float = option(
    0.0, "Which share of the clips, or of the speakers, becomes the test split, as in 0.2."
  )
  split_by: str = option("clip", "What stays together in a split: clip: each by itself, the same share of every class; "
                         "speaker: all clips whose names begin alike, up to the first _, - or blank.", "clip", "speaker")  # fmt: skip
  split_seed: int = option(0, "Another number is another split.")


def read(raw: Path, options: Options) -> Layout:
  """The folders' names as classes, sorted, and their videos; a split that the folders do not have must be asked for."""
  archive = Archive(raw, (), LAYOUT, options)
  top, files = archive.entries(archive.raw)
  if files:
    archive.note("files beside the folders of classes, not used", *files)
  given = {name for name in top if name.lower() in ("train", "test")}
  if given and ({name.lower() for name in given} != {"train", "test"} or len(top) != 2):
    raise listed(f"--raw={raw}: train or test is a split only if exactly these two folders are there",
                 [f"found: {', '.join(f'{name}/' for name in top)}"], LAYOUT)  # fmt: skip
  if bool(given) == bool(options.test_share) or not 0 <= options.test_share < 1:
    raise UserError(f"--raw={raw}: has the folders train and test, which are the split; drop --test_share" if given else
                    f"--raw={raw}: has no folders train and test; split the clips with --test_share=0.2, for example, a number "
                    f"between 0 and 1, and --split_by=speaker if names begin with the speaker (--test_share={options.test_share:g})")  # fmt: skip
  clips: list[ClipFiles] = []
  classes: dict[str, None] = {}
  for split in sorted(given) or [""]:
    for name in archive.entries(archive.raw / split)[0]:
      if options.classes and name not in options.classes:
        archive.note("folders left out, as --classes does not name them", name)
        continue
      classes.setdefault(name)
      clips += _clips_of(archive.raw / split / name, name, split.lower(), archive)
  if not clips:
    raise archive.unrecognised("there are no videos in folders of classes")
  archive.problems += [Problem(str(archive.raw), text) for text in near_duplicates(classes)]
  rule = "the folders train and test"
  if not given:
    what = (
      "clips of each class"
      if options.split_by == "clip"
      else "speakers (names up to the first _, - or blank)"
    )
    rule = (
      f"test: {100 * options.test_share:g} % of the {what}, by sha256 of seed {options.split_seed} and name"
    )
    test = _drawn(clips, options)
    clips = [dataclasses.replace(clip, split="test" if clip.clip_id in test else "train") for clip in clips]
    archive.note(f"split: {rule}")
  recipe = {"folds": rule, "sound": "that of the videos"}
  names = sorted(classes, key=natural)
  return chosen(archive, clips, names, "names of the folders, sorted", options, recipe, ["train", "test"])


def _clips_of(folder: Path, label: str, split: str, archive: Archive) -> list[ClipFiles]:
  below, files = archive.entries(folder)
  if below:
    names = tuple(archive.show(folder / name) for name in below)
    archive.problems.append(
      Problem("", "is a folder in that of a class; move its clips up, into the class", names)
    )
  videos = [folder / name for name in sorted(files, key=natural) if name.lower().endswith(VIDEOS)]
  if others := [name for name in files if not name.lower().endswith(VIDEOS)]:
    archive.note("no videos by extension, not used", *(archive.show(folder / name) for name in others))
  if not videos:
    problem = "holds no videos; remove it, or name the classes to take: --classes=a,b,c"
    archive.problems.append(Problem(archive.show(folder), problem))
  shown = [archive.show(path) for path in videos]
  return [
    ClipFiles(name, name, label, split, video=path, sound=path)
    for name, path in zip(shown, videos, strict=True)
  ]


def _drawn(clips: list[ClipFiles], options: Options) -> set[str]:
  """The clips of the test split: the same for the same names, whatever machine and order."""
  groups: dict[str, dict[str, list[str]]] = defaultdict(
    lambda: defaultdict(list)
  )  # by class or for all; by what stays together
  for clip in clips:
    stem = Path(clip.clip_id).stem
    if options.split_by == "clip":
      groups[clip.label][clip.clip_id].append(clip.clip_id)
    else:
      groups[""][re.split("[_ -]", stem)[0].lower()].append(clip.clip_id)
  test: set[str] = set()
  for members in groups.values():
    order = sorted(
      members, key=lambda name: hashlib.sha256(f"{options.split_seed}/{name}".encode()).hexdigest()
    )
    if len(order) < 2:
      raise UserError(f"--split_by={options.split_by}: there is only {', '.join(order)}, which cannot be in training and test; "
                      "choose another --split_by, or add clips")  # fmt: skip
    number = min(max(round(options.test_share * len(order)), 1), len(order) - 1)
    test |= {clip for name in order[:number] for clip in members[name]}
  return test
