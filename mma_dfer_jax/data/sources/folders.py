"""Any clips in folders that name their class: CLASS/clip.mp4, or train/CLASS/clip.mp4 and test/CLASS/clip.mp4."""

from collections import defaultdict
import dataclasses
import hashlib
from pathlib import Path
import re

from mma_dfer_jax.data.archive import VIDEOS, Archive, ClassOptions
from mma_dfer_jax.data.source import ClipFiles, LabelOrder, Layout, natural, near_duplicates, option
from mma_dfer_jax.errors import UserError, listed
from mma_dfer_jax.lookalikes import looks, tidy

FLAG = "raw"
LAYOUT = """accepted for folders: CLASS/clip.mp4 with --test_share=0.2, which splits the clips into training and test; or a
split of your own, train/CLASS/clip.mp4 and test/CLASS/clip.mp4, with nothing else beside. Classes hold no folders."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(ClassOptions):
  test_share: float = option(0.0, "Share of the clips, or of the speakers, for the test split, as in 0.2.")
  split_by: str = option("clip", "clip: the same share of every class; speaker: clips whose names begin alike, up to the "
                         "first _, - or blank, stay together.", "clip", "speaker")  # fmt: skip
  split_seed: int = option(0, "Another number is another split.")


def read(raw: Path, options: Options) -> Layout:
  """The folders' names as classes, sorted, and their videos; --test_share must split what the folders do not split."""
  archive = Archive(raw, (), LAYOUT, options)
  top, files = archive.entries(archive.raw)
  share, splits = options.test_share, [name for name in top if looks(name) in ("train", "test")]
  if splits and (len(splits) < 2 or len(top) > 2):
    raise listed(f"--raw={raw}: train and test are splits only if these two folders are there and no others",
                 [f"found: {', '.join(f'{name}/' for name in top)}"], LAYOUT)  # fmt: skip
  if splits and share:
    raise UserError(f"--raw={raw}: the folders train and test are the split already; remove --test_share")
  if not splits and not 0 < share < 1:
    given = f" (--test_share={share:g} is not between 0 and 1)" * bool(share)
    raise UserError(f"--raw={raw}: has no folders train and test; add --test_share=0.2, which splits the clips{given}. If "
                    "names begin with the speaker, add --split_by=speaker too")  # fmt: skip
  if files:
    archive.note("files beside the folders, not used", *files)
  clips: list[ClipFiles] = []
  classes: dict[str, None] = {}
  for split in splits or [""]:
    for name in archive.entries(archive.raw / split)[0]:
      if not options.classes or tidy(name) in options.classes:
        classes.setdefault(name)
        clips += _clips_of(archive.raw / split / name, tidy(name), looks(split), archive)
      else:
        archive.note("folders left out, as --classes does not name them", name)
  if not clips:
    raise archive.unrecognised("there are no videos in folders of classes")
  for text in near_duplicates(classes):
    archive.problem(str(archive.raw), text)
  rule = "the folders train and test"
  if not splits:
    what = "clips of each class" if options.split_by == "clip" else "speakers, as names begin"
    rule = f"test: {100 * share:g} % of the {what}, by sha256 of the seed {options.split_seed} and the name"
    archive.note(f"split: {rule}")
    test = _drawn(clips, options)
    clips = [dataclasses.replace(clip, split="test" if clip.clip_id in test else "train") for clip in clips]
  order = LabelOrder(tuple(sorted(set(map(tidy, classes)), key=natural)), "names of the folders, sorted")
  recipe = {"folds": rule, "sound": "that of the videos"}
  return archive.found_by_class(clips, order, options.classes, recipe, ["train", "test"])


def _clips_of(folder: Path, label: str, split: str, archive: Archive) -> list[ClipFiles]:
  below, files = archive.entries(folder)
  if below:
    names = [archive.show(folder / name) for name in below]
    archive.problem("", "is a folder within a class; move its clips up into the class", *names)
  paths = {archive.show(folder / name): folder / name for name in sorted(files, key=natural)}
  if others := [name for name in paths if not name.lower().endswith(VIDEOS)]:
    archive.note("no videos by extension, not used", *others)
  if len(others) == len(paths):
    archive.problem(folder, "holds no videos; remove it, or name the classes to take: --classes=a,b,c")
    archive.doubtful.add(label)
  videos = {name: path for name, path in paths.items() if name not in others}
  return [ClipFiles(name, name, label, split, video=path, sound=path) for name, path in videos.items()]


def _drawn(clips: list[ClipFiles], options: Options) -> set[str]:
  """The clips of the test split: the same for the same names, on whatever machine and in whatever order."""
  groups: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))  # split; kept together
  speakers: dict[str, str] = {}
  for clip in clips:
    first, key = (
      re.split("[_ -]", name)[0] for name in (Path(clip.clip_id).stem, looks(Path(clip.clip_id).stem))
    )
    speaker = speakers.setdefault(looks(key), first.lower())  # the first of those that look the same
    group, member = (clip.label, clip.clip_id) if options.split_by == "clip" else ("", speaker)
    groups[group][member].append(clip.clip_id)
  test: set[str] = set()
  for members in groups.values():
    seeded = {name: f"{options.split_seed}/{name}".encode(errors="surrogateescape") for name in members}
    order = sorted(members, key=lambda name: hashlib.sha256(seeded[name]).digest())
    if len(order) < 2:
      why = f"{order[0]} is the only clip of its class; add clips, or use --split_by=speaker"
      if options.split_by == "speaker":
        why = f"all clips begin with {order[0]}, so there is one speaker; use --split_by=clip"
      raise UserError(f"--split_by={options.split_by}: {why}")
    number = min(max(round(options.test_share * len(order)), 1), len(order) - 1)
    test |= {clip for name in order[:number] for clip in members[name]}
  return test
