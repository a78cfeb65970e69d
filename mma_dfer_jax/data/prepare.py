"""Labelled clips, as they are handed out or in a manifest -> a data set that training reads.

  python -m mma_dfer_jax.data.prepare --dataset=dfew --raw=DFEW-part2 --data_dir=data
  python -m mma_dfer_jax.data.prepare --dataset=mafw --raw=MAFW --faces=yunet --data_dir=data
  python -m mma_dfer_jax.data.prepare --dataset=clips --manifest=clips.csv --data_dir=data

The manifest is a csv with the columns `path,label,split` (train or test) or `path,label,fold` (1, 2, …); paths are
relative to its folder.
Every file is decoded to its end first, by all cores; what is wrong with any of them is said at once, and nothing is
written then. A killed run continues where it was.
"""

from collections.abc import Iterator, Mapping, Sequence
import concurrent.futures
import concurrent.futures.process
import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import io
import json
import multiprocessing
import os
from pathlib import Path
import shutil
import tempfile
from typing import Any

from absl import flags
import numpy as np
from PIL import Image
import tqdm

from mma_dfer_jax import cli
from mma_dfer_jax.data import media
from mma_dfer_jax.data.archive import Note, Problem, count, left_out, natural
from mma_dfer_jax.data.data_set import DataSet, follow_parent, open_data_set
from mma_dfer_jax.data.datasets import BUILDERS, RECIPE, Clip, Clips, read_record
from mma_dfer_jax.data.faces import POLICIES, FaceFinder, face_model, face_recipe
from mma_dfer_jax.data.layouts import (
  ClipSource,
  Layout,
  alike,
  read_cremad,
  read_dfew,
  read_mafw,
  read_manifest,
  read_ravdess,
)
from mma_dfer_jax.errors import UserError, listed

_DATASET = flags.DEFINE_enum(
  "dataset", "clips", list(BUILDERS), "What is prepared; clips: any video files with a manifest."
)
_MANIFEST = flags.DEFINE_string("manifest", None, "Of clips: a csv, path,label,split or path,label,fold.")
_RAW = flags.DEFINE_string("raw", None, "Of the other data sets: their folder, as it was unpacked.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder that the data set is written to.", required=True)
_CLASSES = flags.DEFINE_list(
  "classes",
  [],
  "Class names in label order; if not given, those found, sorted. RAVDESS, CREMA-D: those to take.",
)
_FRAMES = flags.DEFINE_enum(
  "frames",
  "all",
  ["all", "16f", "faces", "scenes", "video"],
  "Pictures from which folder. DFEW: all, 16f, video; MAFW: all, faces, scenes, video.",
)
_LISTS = flags.DEFINE_string(
  "lists", None, "DFEW, MAFW: folder with the lists of the folds, if not in --raw."
)
_LABELS = flags.DEFINE_enum(
  "labels", "mafw", ["mafw", "mafw-official"], "MAFW: whose label order is written."
)
_NUMBERS = flags.DEFINE_enum(
  "numbers",
  None,
  ["mafw", "mafw-official"],
  "MAFW: whose label order the numbers of the lists are; else their form tells, and it is said.",
)
_REFERENCE = flags.DEFINE_enum(
  "recipe",
  "default",
  ["default", "reference"],
  "DFEW, MAFW: reference orders and counts frames as the original does.",
)
_FACES = flags.DEFINE_enum("faces", "none", ["none", "yunet"], "Whether faces are found and cut out.")
_FACE_POLICY = flags.DEFINE_enum(
  "face_policy",
  "follow",
  list(POLICIES),
  "follow: the largest face over time; union: all faces, as the original.",
)
_FACE_MODEL = flags.DEFINE_string("face_model", None, "YuNet's .onnx file; if not given, it is fetched once.")
_FACE_SIZE = flags.DEFINE_integer("face_size", 224, "Side of the cut faces in pixels.", lower_bound=16)
_ALLOW_MISSING_SOUND = flags.DEFINE_bool(
  "allow_missing_sound",
  False,
  "Take clips without (enough) sound: they get the original's constant spectrogram.",
)
_ALLOW_BAD = flags.DEFINE_integer(
  "allow_bad",
  0,
  "Leave out at most so many bad clips, listing them, instead of failing. A bad list is never left out.",
  lower_bound=0,
)
_FOLLOW_LINKS = flags.DEFINE_bool(
  "follow_links", False, "Take what symbolic links that lead out of --raw lead to."
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace the data set that is there.")
_NUM_WORKERS = flags.DEFINE_integer(
  "num_workers", os.cpu_count() or 1, "Processes that decode.", lower_bound=1
)

NOTES = "notes.txt"  # in the data set: what was noted, with all names
SCRATCH = ".unfinished"  # beside the data set: decoded clips, and the data set while it is written
_ADVICE = "run the command again when that is mended, it goes on where it was"


@dataclasses.dataclass(frozen=True)
class Decoding:
  """What becomes of a clip's files, besides their layout.

  Attributes:
    allow_missing_sound: whether a clip without (enough) sound is taken.
    face_model: YuNet's file; empty: faces are not looked for.
    face_policy: "follow" or "union".
    face_size: side of the cut faces in pixels.
  """

  allow_missing_sound: bool = False
  face_model: str = ""
  face_policy: str = "follow"
  face_size: int = 224

  @property
  def recipe(self) -> dict[str, str]:
    """What is stored of it."""
    recipe = {"missing_sound": "constant spectrogram" if self.allow_missing_sound else "refused"}
    if self.face_model:
      recipe |= face_recipe(self.face_policy, self.face_size, _sha256(self.face_model))
      recipe["frame_coding"] = RECIPE["frame_coding"]
    return recipe


@functools.cache
def _sha256(file: str) -> str:
  return hashlib.sha256(Path(file).read_bytes()).hexdigest()


@functools.lru_cache(maxsize=1)
def _finder(model: str, policy: str, size: int) -> FaceFinder:
  """One for each process."""
  return FaceFinder(Path(model), policy, size)


def decode_clip(source: ClipSource, decoded: Path, decoding: Decoding) -> str | None:
  """Decodes a clip to its end and keeps its record in a file; returns what is wrong, or None."""
  finder = None
  if decoding.face_model:
    finder = _finder(decoding.face_model, decoding.face_policy, decoding.face_size)
  try:
    video = None if source.frames else source.video
    record = read_record(video, pictures=source.frames, sound=source.sound, finder=finder)
  except FileNotFoundError as error:
    return f"{error.filename}: there is no such file"
  except media.MediaError as error:
    return str(error)
  if source.sound and not record["has_audio"] and not decoding.allow_missing_sound:
    return (
      f"{source.sound}: no audio stream, or less than {1000 * media.SHORTEST_SOUND:.0f} ms in it "
      "(--allow_missing_sound takes such clips)"
    )
  # From the headers of picture files; those of a video are of one size.
  sizes = {Image.open(io.BytesIO(data)).size for data in record["frames"] if source.frames}
  partial = decoded.with_suffix(f".{os.getpid()}.partial")
  with partial.open("wb") as file_object:
    np.savez(
      file_object,
      jpegs=np.frombuffer(b"".join(record["frames"]), np.uint8),
      lengths=[len(jpeg) for jpeg in record["frames"]],
      waveform=record["waveform"],
      sample_rate=record["sample_rate"],
      face_share=record["face_share"],
      sizes=sorted(sizes),
    )
  partial.replace(decoded)  # a killed run leaves no half clip
  return None


def decode_all(
  sources: Sequence[ClipSource], scratch: Path, decoding: Decoding, num_workers: int
) -> tuple[list[Clip], list[Problem]]:
  """Decodes every clip that is not decoded yet, by several processes; returns the clips, and what is wrong with others.

  Raises:
    OSError: if what is decoded cannot be kept.
    UserError: if a process was ended from outside.
  """
  scratch.mkdir(parents=True, exist_ok=True)
  for partial in scratch.glob("*.partial"):
    partial.unlink()
  clips = [
    Clip(source.clip_id, source.label, source.split, scratch / f"{_key(source, decoding)}.npz")
    for source in sources
  ]
  todo = [i for i, clip in enumerate(clips) if not clip.decoded.exists()]
  if len(todo) < len(clips):
    print(f"{len(clips) - len(todo)} of {len(clips)} clips are decoded already")
  problems: dict[int, str] = {}
  context = multiprocessing.get_context("spawn")
  workers = max(1, min(num_workers, len(todo)))
  with (
    tqdm.tqdm(desc="decode", total=len(clips), initial=len(clips) - len(todo), unit="clip") as bar,
    concurrent.futures.ProcessPoolExecutor(workers, context, initializer=follow_parent) as pool,
  ):
    futures = {pool.submit(decode_clip, sources[i], clips[i].decoded, decoding): i for i in todo}
    try:
      for future in concurrent.futures.as_completed(futures):
        if problem := future.result():
          problems[futures[future]] = problem
        bar.update()
    except concurrent.futures.process.BrokenProcessPool as error:
      raise UserError(
        "a process that decodes was ended from outside, most often for lack of memory; run the command again, it goes "
        "on from here, with a smaller --num_workers"
      ) from error
    finally:
      pool.shutdown(cancel_futures=True)
  good = [clip for i, clip in enumerate(clips) if i not in problems]
  return good, [Problem(sources[i].where, problems[i], (sources[i].clip_id,)) for i in sorted(problems)]


def _key(source: ClipSource, decoding: Decoding) -> str:
  """Names the decoded form of a clip by all that it depends on."""

  def version(file: Path | None) -> tuple[str, int, int]:
    try:
      stat = os.stat(file) if file else None
    except OSError:
      stat = None
    return str(file), stat.st_size if stat else -1, stat.st_mtime_ns if stat else -1

  files = [version(file) for file in (*source.frames, source.video, source.sound)]
  return hashlib.sha256(json.dumps([files, decoding.recipe, RECIPE]).encode()).hexdigest()[:32]


@contextlib.contextmanager
def _alone(scratch: Path) -> Iterator[None]:
  """Keeps other processes out of the folder; the system lets them in again however this one ends.

  Raises:
    UserError: if another one is in it.
  """
  scratch.mkdir(parents=True, exist_ok=True)
  path = scratch / "lock"
  with path.open("w") as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
      free = os.path.samestat(os.fstat(lock.fileno()), path.stat())  # else of one that has just ended
    except (BlockingIOError, FileNotFoundError):
      free = False
    if not free:
      raise UserError(
        f"{scratch.parent}: another prepare is at work there; wait for it, or choose another --data_dir"
      )
    yield


@contextlib.contextmanager
def _temporary_files_in(folder: Path) -> Iterator[None]:
  """tfds makes a temporary folder for every new data set, and leaves it."""
  before, tempfile.tempdir = tempfile.tempdir, str(folder)
  try:
    yield
  finally:
    tempfile.tempdir = before


def prepare_clips(
  manifest: Path,
  data_dir: Path,
  *,
  classes: Sequence[str] = (),
  allow_missing_sound: bool = False,
  allow_bad: int = 0,
  overwrite: bool = False,
  num_workers: int = 1,
) -> None:
  """Any video files: manifest -> data set `clips` in data_dir; see `prepare`."""
  _check_classes(classes)
  layout = read_manifest(manifest, classes)
  decoding = Decoding(allow_missing_sound)
  prepare(layout, "clips", data_dir, decoding, str(manifest), allow_bad, overwrite, num_workers)


def _check_classes(classes: Sequence[str]) -> None:
  if len(set(classes)) < len(classes) or not all(classes):
    raise UserError(f"--classes={','.join(classes)}: every class needs a name of its own")
  if wrong := alike(classes):
    raise listed(f"--classes={','.join(classes)}", wrong)


def prepare(
  layout: Layout,
  name: str,
  data_dir: Path,
  decoding: Decoding,
  origin: str,
  allow_bad: int = 0,
  overwrite: bool = False,
  num_workers: int = 1,
) -> None:
  """What was found -> decoded clips -> a data set in data_dir.

  Args:
    layout: the clips, and what is wrong with the others.
    name: of the data set.
    data_dir: the data set becomes a folder of that name in it.
    decoding: what becomes of a clip's files.
    origin: the manifest or folder, for messages.
    allow_bad: so many clips may be left out; never what is wrong with the whole.
    overwrite: whether to replace the data set that is there.
    num_workers: processes that decode.
  Raises:
    UserError: with every problem, if more clips are bad than allowed, or something is wrong with the whole; if data_dir
      holds another data set, or another process writes it; if it cannot be written.
  """
  home = data_dir / name
  recipe = RECIPE | layout.recipe | decoding.recipe
  if not all(
    clip.sound for clip in layout.clips
  ):  # the archive has none for some, and its original takes them so
    recipe["missing_sound"] = "constant spectrogram"
  notes = list(layout.notes)
  named = {clip.label for clip in layout.clips}
  if unused := [label for label in layout.classes if label not in named]:
    hint = "" if name in ("dfew", "mafw") else ": --classes=… names those to take"
    notes.append(Note(f"classes without a clip{hint}", tuple(unused)))
  print(*(f"note: {note}" for note in notes), sep="\n", end="\n" * bool(notes))
  if any(not problem.clips for problem in layout.problems):
    raise listed(f"{origin} cannot be prepared, no data set was written", _sorted(layout.problems),
                 "--allow_bad leaves out clips; what is said of whole lists and folders must be mended")  # fmt: skip
  try:
    with _alone(home / SCRATCH):
      made = _make(layout, name, data_dir, decoding, origin, recipe, notes, allow_bad, overwrite, num_workers)
  except OSError as error:
    raise UserError(
      f"{error.filename or home} cannot be written: {error.strerror or error}; {_ADVICE}"
    ) from error
  except RuntimeError as error:  # from array_record, which is not Python
    raise UserError(f"{home} cannot be written: {error}; {_ADVICE}") from error
  if not made:
    return
  print(f"wrote {made.path}: {_described(made.splits)}")
  if any(note.names for note in notes):
    print(f"the notes with all names: {made.path / NOTES}")
  if sum(made.without_sound.values()):
    print(f"without sound: {_described(made.without_sound)}")
  print(f"classes, in label order: {', '.join(made.classes)}; {made.class_order}")
  print("recipe:", *(f"{key}: {value}" for key, value in made.recipe.items()), sep="\n  ")


def _make(
  layout: Layout, name: str, data_dir: Path, decoding: Decoding, origin: str, recipe: Mapping[str, str],
  notes: list[Note], allow_bad: int, overwrite: bool, num_workers: int,
) -> DataSet | None:  # fmt: skip
  """What `prepare` does while nobody else is there, with more `notes`; None if the data set is complete already."""
  home = data_dir / name
  target, scratch = home / str(Clips.VERSION), home / SCRATCH
  described = [(c.clip_id, c.label, c.split, _key(c, decoding)) for c in layout.clips]
  facts = [described, layout.problems, layout.classes, recipe, allow_bad]
  fingerprint = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
  if (scratch / "replaced").exists() and not target.exists():
    (scratch / "replaced").rename(target)  # killed between the two renames below
  if target.exists() and not overwrite:
    there = open_data_set(data_dir, name)
    if there.fingerprint != fingerprint:
      raise UserError(
        f"{there.path} was made from other clips or settings; choose another --data_dir, or --overwrite"
      )
    shutil.rmtree(scratch, ignore_errors=True)
    print(f"{there.path} is complete already: {_described(there.splits)}")
    return None
  clips, bad_files = decode_all(layout.clips, scratch / "decoded", decoding, num_workers)
  problems = [*layout.problems, *bad_files]
  bad = left_out(problems)
  total = len(bad.keys() | {clip.clip_id for clip in layout.clips})
  if len(bad) > allow_bad:
    raise listed(f"{len(bad)} of {count(total, 'clip')} of {origin} cannot be used, no data set was written",
                 _sorted(problems), f"mend them, or add --allow_bad={len(bad)} to go on without them")  # fmt: skip
  named = layout.splits | {clip.split for clip in layout.clips}
  if (gone := named - {clip.split for clip in clips}) or not clips:
    splits = ", ".join(sorted(gone)) or "any split"
    raise listed(f"no clip of {splits} in {origin} can be used", _sorted(problems))
  lines = sorted((f"{clip}: {'; '.join(reasons)}" for clip, reasons in bad.items()), key=natural)
  if lines:
    print(f"left out {len(lines)} of {count(total, 'clip')}:", *lines, sep="\n  - ")
  if uneven := tuple(clip.clip_id for clip in clips if len(np.load(clip.decoded)["sizes"]) > 1):
    what = "clips with frames of different sizes: in training the first one's crop is cut from all, as in the original"
    notes.append(Note(what, uneven))
    print(f"note: {notes[-1]}")
  shutil.rmtree(scratch / name, ignore_errors=True)  # what a killed run was writing
  with _temporary_files_in(scratch):
    new = BUILDERS[name](
      clips=clips,
      classes=layout.classes,
      class_order=layout.class_order,
      recipe=recipe,
      left_out=lines,
      fingerprint=fingerprint,
      data_dir=scratch,
    ).write()
  if notes:
    (new / NOTES).write_text("".join(f"{note.in_full}\n" for note in notes), encoding="utf-8")
  if target.exists():
    shutil.rmtree(scratch / "replaced", ignore_errors=True)
    target.rename(scratch / "replaced")
  new.rename(target)
  shutil.rmtree(scratch)
  return open_data_set(data_dir, name)


def _sorted(problems: Sequence[Problem]) -> list[str]:
  return sorted(map(str, problems), key=natural)


def _described(splits: Mapping[str, int]) -> str:
  return ", ".join(f"{split} {count(clips, 'clip')}" for split, clips in splits.items())


def read_layout() -> tuple[Layout, str]:
  """What the flags name, and where it is.

  Raises:
    UserError: with everything that is wrong with the flags; if nothing of the kind is there.
  """
  name, classes = _DATASET.value, _CLASSES.value
  given: dict[str, Any] = {"manifest": _MANIFEST.value, "raw": _RAW.value, "lists": _LISTS.value, "numbers": _NUMBERS.value,
           "classes": classes, "frames": _FRAMES.value != "all", "labels": _LABELS.value != "mafw",
           "recipe": _REFERENCE.value != "default", "follow_links": _FOLLOW_LINKS.value}  # fmt: skip
  common = {"raw", "follow_links"}
  allowed = {
    "clips": {"manifest", "classes"},
    "dfew": common | {"lists", "frames", "recipe"},
    "mafw": common | {"lists", "frames", "recipe", "labels", "numbers"},
    "ravdess": common | {"classes"},
    "cremad": common | {"classes"},
  }[name]
  problems = [
    f"--{flag} is not for --dataset={name}" for flag, value in given.items() if value and flag not in allowed
  ]
  needed = "manifest" if name == "clips" else "raw"
  if not given[needed]:
    problems.append(f"--{needed} is needed")
  if problems:
    raise listed("the data set cannot be prepared", problems)
  _check_classes(classes)
  origin = Path(given[needed])
  if name == "clips":
    return read_manifest(origin, classes), str(origin)
  links, silent = _FOLLOW_LINKS.value, _ALLOW_MISSING_SOUND.value
  lists = Path(_LISTS.value) if _LISTS.value else None
  if name == "dfew":
    layout = read_dfew(origin, frames=_FRAMES.value, lists=lists, recipe=_REFERENCE.value,
                       allow_missing_sound=silent, follow_links=links)  # fmt: skip
  elif name == "mafw":
    layout = read_mafw(origin, frames=_FRAMES.value, lists=lists, labels=_LABELS.value, numbers=_NUMBERS.value,
                       recipe=_REFERENCE.value, allow_missing_sound=silent, follow_links=links)  # fmt: skip
  elif name == "ravdess":
    layout = read_ravdess(origin, classes=classes, follow_links=links)
  else:
    layout = read_cremad(origin, classes=classes, allow_missing_sound=silent, follow_links=links)
  return layout, str(origin)


def main(argv: Sequence[str]) -> None:
  del argv
  layout, origin = read_layout()
  decoding = Decoding(_ALLOW_MISSING_SOUND.value)
  if _FACES.value == "yunet":
    model = face_model(Path(_FACE_MODEL.value) if _FACE_MODEL.value else None)
    decoding = Decoding(_ALLOW_MISSING_SOUND.value, str(model), _FACE_POLICY.value, _FACE_SIZE.value)
  prepare(
    layout, _DATASET.value, Path(_DATA_DIR.value), decoding, origin, _ALLOW_BAD.value, _OVERWRITE.value,
    _NUM_WORKERS.value,
  )  # fmt: skip


if __name__ == "__main__":
  cli.run(main)
