"""Labelled video files -> a data set that training reads.

  python -m mma_dfer_jax.data.prepare --dataset=clips --manifest=clips.csv --data_dir=data

The manifest is a csv with the columns `path,label,split` or `path,label,fold`; paths are relative to its folder.
Every file is decoded to its end first, by all cores; what is wrong with any of them is said at once, and nothing is
written then. A killed run continues where it was.
"""

from collections.abc import Sequence
import concurrent.futures
import csv
import hashlib
import json
import multiprocessing
import os
from pathlib import Path
import re
import shutil

from absl import flags
import cv2
import numpy as np
import tqdm

from mma_dfer_jax import cli
from mma_dfer_jax.data import media
from mma_dfer_jax.data.datasets import RECIPE_FIELDS, Clip, Clips, open_data_set
from mma_dfer_jax.errors import UserError, listed

JPEG_QUALITY = 95
SHORTEST_SOUND = 0.025  # seconds: one window of the spectrogram

_DATASET = flags.DEFINE_enum(
  "dataset", "clips", ["clips"], "What is prepared: any video files with a manifest."
)
_MANIFEST = flags.DEFINE_string("manifest", None, "csv: path,label,split or path,label,fold.", required=True)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder that the data set is written to.", required=True)
_CLASSES = flags.DEFINE_list("classes", [], "Class names in label order; if not given, those found, sorted.")
_ALLOW_MISSING_SOUND = flags.DEFINE_bool(
  "allow_missing_sound",
  False,
  "Take clips without (enough) sound: they get the original's constant spectrogram.",
)
_LEAVE_OUT_BAD = flags.DEFINE_bool(
  "leave_out_bad", False, "Leave bad rows out, listing them, instead of failing."
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace a data set made from something else.")
_NUM_WORKERS = flags.DEFINE_integer("num_workers", os.cpu_count(), "Processes that decode.", lower_bound=1)


def read_manifest(
  manifest: Path, classes: Sequence[str]
) -> tuple[list[tuple[str, Path, str, str]], list[str]]:
  """Rows (clip id, file, label, split) of a manifest, and what is wrong with the others.

  Raises:
    UserError: if the file is no manifest at all.
  """
  try:
    with manifest.open(newline="", encoding="utf-8-sig") as file:
      reader = csv.DictReader(file, skipinitialspace=True, strict=True)
      header = reader.fieldnames or []
      rows = [(reader.line_num, row) for row in reader]
  except (OSError, UnicodeDecodeError, csv.Error) as error:
    raise UserError(f"the manifest {manifest} cannot be read: {error}") from error
  place = {"split", "fold"} & set(header)
  if not {"path", "label"} <= set(header) or len(place) != 1:
    raise UserError(
      f"{manifest} must begin with the line path,label,split or path,label,fold; it begins with {','.join(header)!r}"
    )
  if extra := set(header) - {"path", "label", "split", "fold"}:
    print(f"columns of {manifest} that are not used: {', '.join(sorted(extra))}")
  good, problems, seen = [], [], {}
  for line, row in rows:
    path, label = (row["path"] or "").strip(), (row["label"] or "").strip()
    split = (row[place.copy().pop()] or "").strip()
    if "fold" in place:
      split = f"fold{split.removeprefix('fold')}"
    wrong = []
    if None in row:
      wrong.append(f"{len(row[None])} values too many")
    if not path:
      wrong.append("no path")
    if not label:
      wrong.append("no label")
    elif classes and label not in classes:
      wrong.append(f"label {label!r} is not one of the classes {', '.join(classes)}")
    if "fold" in place and not re.fullmatch(r"fold[1-9]\d*", split):
      wrong.append(f"fold {row['fold']!r} is not a number from 1 on")
    elif not re.fullmatch(r"[a-z][a-z0-9_]*", split) or split == "all":
      wrong.append(f"split {split!r} is not a name of lower-case letters, digits and _ (and not 'all')")
    file = Path(os.path.abspath(manifest.parent / path))
    if path and file in seen:
      wrong.append(f"{path} is in line {seen[file]} already")
    seen.setdefault(file, line)
    if wrong:
      problems.append(f"line {line}: {'; '.join(wrong)}")
    else:
      good.append((path, file, label, split))
  if not rows:
    problems.append("there are no rows")
  return good, problems


def decode_clip(file: Path, decoded: Path, allow_missing_sound: bool) -> str | None:
  """Decodes a video to its end and keeps JPEG frames and first-channel sound; returns what is wrong, or None."""
  try:
    sound = media.read_sound(file)
    seconds = len(sound.waveform) / sound.sample_rate if sound else 0.0
    if seconds < SHORTEST_SOUND and not allow_missing_sound:
      found = f"{1000 * seconds:.1f} ms of sound, 25 are needed" if sound else "no audio stream"
      return f"{found} (--allow_missing_sound takes such clips)"
    jpegs = []
    for frame in media.iterate_frames(file):
      bgr = cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)
      jpegs.append(cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1])
  except media.MediaError as error:
    return str(error)
  heard = sound is not None and seconds >= SHORTEST_SOUND
  partial = decoded.with_suffix(f".{os.getpid()}.partial")
  with partial.open("wb") as file_object:
    np.savez(
      file_object,
      jpegs=np.concatenate(jpegs),
      lengths=[len(jpeg) for jpeg in jpegs],
      waveform=sound.waveform if heard else np.zeros(0, np.int16),
      sample_rate=sound.sample_rate if heard else 0,
    )
  partial.replace(decoded)  # a killed run leaves no half clip
  return None


def decode_all(
  rows: Sequence[tuple[str, Path, str, str]], scratch: Path, allow_missing_sound: bool, num_workers: int
) -> tuple[list[Clip], list[str]]:
  """Decodes every file that is not decoded yet, by several processes; returns the clips, and what is wrong."""
  scratch.mkdir(parents=True, exist_ok=True)
  clips = [Clip(clip_id, label, split, scratch / f"{_key(file, allow_missing_sound)}.npz") for clip_id, file, label, split in rows]  # fmt: skip
  todo = [
    (file, clip) for (_, file, _, _), clip in zip(rows, clips, strict=True) if not clip.decoded.exists()
  ]
  if len(todo) < len(clips):
    print(f"{len(clips) - len(todo)} of {len(clips)} clips are decoded already")
  problems = {}
  context = multiprocessing.get_context("spawn")
  workers = max(1, min(num_workers, len(todo)))
  with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
    futures = {pool.submit(decode_clip, file, clip.decoded, allow_missing_sound): clip for file, clip in todo}
    for future in tqdm.tqdm(
      concurrent.futures.as_completed(futures),
      "decode",
      len(clips),
      initial=len(clips) - len(todo),
      unit="clip",
    ):
      if problem := future.result():
        problems[futures[future].clip_id] = problem
  good = [clip for clip in clips if clip.clip_id not in problems]
  return good, [problems[clip.clip_id] for clip in clips if clip.clip_id in problems]


def _key(file: Path, allow_missing_sound: bool) -> str:
  """Names the decoded form of a file by all that it depends on."""
  try:
    stat = file.stat()
    version = (str(file), stat.st_size, stat.st_mtime_ns)
  except OSError:
    version = (str(file), -1, -1)
  return hashlib.sha256(json.dumps([*version, allow_missing_sound, RECIPE_FIELDS]).encode()).hexdigest()[:32]


def prepare_clips(
  manifest: Path,
  data_dir: Path,
  *,
  classes: Sequence[str] = (),
  allow_missing_sound: bool = False,
  leave_out_bad: bool = False,
  overwrite: bool = False,
  num_workers: int = 1,
) -> None:
  """The whole command: manifest -> checked, decoded clips -> data set `clips` in data_dir.

  Raises:
    UserError: with every bad row, unless they are to be left out; if data_dir holds another data set.
  """
  rows, problems = read_manifest(manifest, classes)
  home = data_dir / "clips"
  scratch = home / "decoded"
  classes = list(classes) or sorted({label for _, _, label, _ in rows}, key=_natural)
  settings = [classes, allow_missing_sound, leave_out_bad, RECIPE_FIELDS]
  described = [[row[0], row[2], row[3], _key(row[1], allow_missing_sound)] for row in rows]
  fingerprint = hashlib.sha256(json.dumps([described, problems, settings]).encode()).hexdigest()
  if list(home.glob("*/dataset_info.json")) and not overwrite:
    there = open_data_set(data_dir, "clips")
    if there.fingerprint != fingerprint:
      raise UserError(
        f"{there.path} was made from other clips or settings; choose another --data_dir, or --overwrite"
      )
    print(f"{there.path} is complete already: {_described(there.splits)}")
    return
  clips, bad_files = decode_all(rows, scratch, allow_missing_sound, num_workers)
  problems += bad_files
  if problems and not leave_out_bad:
    raise listed(f"{len(problems)} rows of {manifest} cannot be used, nothing was written", problems,
                 "mend them, or add --leave_out_bad to go on without them")  # fmt: skip
  if problems:
    print(f"left out {len(problems)} rows:", *problems, sep="\n  - ")
  if not clips:
    raise UserError(f"no clip of {manifest} is left")
  for stale in [*home.glob("*incomplete*"), *(home.glob("[0-9]*") if overwrite else [])]:
    shutil.rmtree(stale)
  recipe = RECIPE_FIELDS | {"missing_sound": "constant spectrogram" if allow_missing_sound else "refused"}
  Clips(clips=clips, classes=classes, recipe=recipe, fingerprint=fingerprint, data_dir=data_dir).write()
  shutil.rmtree(scratch)
  made = open_data_set(data_dir, "clips")
  print(f"wrote {made.path}: {_described(made.splits)}")
  print(f"classes, in label order: {', '.join(made.classes)}")
  print("recipe:", *(f"{key}: {value}" for key, value in made.recipe.items()), sep="\n  ")


def _described(splits: dict[str, int]) -> str:
  return ", ".join(f"{split} {clips} clips" for split, clips in splits.items())


def _natural(label: str) -> list[tuple[int, int, str]]:
  """Sorts labels as people do: 2 before 10."""
  return [
    (0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", label) if part
  ]


def main(argv: Sequence[str]) -> None:
  del argv
  prepare_clips(
    Path(_MANIFEST.value),
    Path(_DATA_DIR.value),
    classes=_CLASSES.value,
    allow_missing_sound=_ALLOW_MISSING_SOUND.value,
    leave_out_bad=_LEAVE_OUT_BAD.value,
    overwrite=_OVERWRITE.value,
    num_workers=_NUM_WORKERS.value,
  )


if __name__ == "__main__":
  cli.run(main)
