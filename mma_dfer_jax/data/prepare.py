"""Labelled video files -> a data set that training reads.

  python -m mma_dfer_jax.data.prepare --dataset=clips --manifest=clips.csv --data_dir=data

The manifest is a csv with the columns `path,label,split` or `path,label,fold`; paths are relative to its folder.
Every file is decoded to its end first, by all cores; what is wrong with any of them is said at once, and nothing is
written then. A killed run continues where it was.
"""

from collections.abc import Sequence
import concurrent.futures
import concurrent.futures.process
import csv
import hashlib
import json
import multiprocessing
import os
from pathlib import Path
import re
import shutil
from typing import NamedTuple

from absl import flags
import numpy as np
import tqdm

from mma_dfer_jax import cli
from mma_dfer_jax.data import media
from mma_dfer_jax.data.datasets import (
  RECIPE,
  SHORTEST_SOUND,
  Clip,
  Clips,
  follow_parent,
  open_data_set,
  read_record,
)
from mma_dfer_jax.errors import UserError, listed

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
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace the data set that is there.")
_NUM_WORKERS = flags.DEFINE_integer(
  "num_workers", os.cpu_count() or 1, "Processes that decode.", lower_bound=1
)

SCRATCH = ".unfinished"  # beside the data set: decoded clips, and the data set while it is written
_ADVICE = "run the command again when that is mended, it goes on where it was"


class Row(NamedTuple):
  """One line of a manifest."""

  line: int
  clip_id: str  # the path as written
  file: Path
  label: str
  split: str  # empty if it is no name of a split


def read_manifest(manifest: Path, classes: Sequence[str]) -> tuple[list[Row], dict[int, str]]:
  """All rows of a manifest, and what is wrong with some of them, by line.

  Raises:
    UserError: if the file is no manifest at all.
  """
  try:
    with manifest.open(newline="", encoding="utf-8-sig") as table:
      reader = csv.DictReader(table, skipinitialspace=True, strict=True)
      header = reader.fieldnames = [name.strip() for name in reader.fieldnames or []]
      values = [(reader.line_num, row) for row in reader]
  except UnicodeDecodeError as error:
    raise UserError(f"the manifest {manifest} must be saved as UTF-8: {error}") from error
  except csv.Error as error:
    raise UserError(
      f"the manifest {manifest} cannot be read after line {reader.line_num}: {error}"
    ) from error
  except OSError as error:
    raise UserError(f"the manifest {manifest} cannot be read: {error.strerror}") from error
  used = [name for name in header if name in ("path", "label", "split", "fold")]
  if sorted(used) not in (["label", "path", "split"], ["fold", "label", "path"]):
    raise UserError(
      f"{manifest} must begin with the line path,label,split or path,label,fold; "
      f"it begins with {','.join(header)!r}"
    )
  if extra := set(header) - set(used):
    print(f"columns of {manifest} that are not used: {', '.join(sorted(extra))}")
  folds = "fold" in used
  rows: list[Row] = []
  problems: dict[int, str] = {}
  seen: dict[str, int] = {}
  for line, row in values:
    path, label, split = (
      (row[name] or "").strip() for name in ("path", "label", "fold" if folds else "split")
    )
    wrong = []
    if None in row:
      wrong.append(f"{len(row[None])} values too many (quote values that hold commas)")
    if not path:
      wrong.append("no path")
    if not label:
      wrong.append("no label")
    elif classes and label not in classes:
      wrong.append(f"label {label!r} is not one of the classes {', '.join(classes)}")
    if folds:
      split = f"fold{split.removeprefix('fold')}"
    if folds and not re.fullmatch(r"fold[1-9][0-9]*", split):
      wrong.append(f"fold {row['fold'] or ''!r} is not a number from 1 on")
      split = ""
    elif not re.fullmatch(r"[a-z][a-z0-9_]*", split) or split == "all":
      wrong.append(f"split {split!r} must be a name in lower case: letters, digits and _, and not 'all'")
      split = ""
    file = Path(os.path.abspath(manifest.parent / path))
    same = os.path.realpath(file)  # the same clip in training and in the test would make the score a lie
    if path and seen.setdefault(same, line) != line:
      wrong.append(f"{path} is in line {seen[same]} already")
    rows.append(Row(line, path, file, label, split))
    if wrong:
      problems[line] = "; ".join(wrong)
  if not rows:
    raise UserError(f"{manifest} holds no rows, only {','.join(header)}")
  return rows, problems


def decode_clip(file: Path, decoded: Path, allow_missing_sound: bool) -> str | None:
  """Decodes a video to its end and keeps its record in a file; returns what is wrong, or None."""
  try:
    record = read_record(file)
  except media.MediaError as error:
    return str(error)
  if not record["has_audio"] and not allow_missing_sound:
    return (
      f"{file}: no audio stream, or less than {1000 * SHORTEST_SOUND:.0f} ms in it "
      "(--allow_missing_sound takes such clips)"
    )
  partial = decoded.with_suffix(f".{os.getpid()}.partial")
  with partial.open("wb") as file_object:
    np.savez(
      file_object,
      jpegs=np.frombuffer(b"".join(record["frames"]), np.uint8),
      lengths=[len(jpeg) for jpeg in record["frames"]],
      waveform=record["waveform"],
      sample_rate=record["sample_rate"],
    )
  partial.replace(decoded)  # a killed run leaves no half clip
  return None


def decode_all(
  rows: Sequence[Row], scratch: Path, allow_missing_sound: bool, num_workers: int
) -> tuple[list[Clip], dict[int, str]]:
  """Decodes every file that is not decoded yet, by several processes; returns the clips, and what is wrong by line.

  Raises:
    OSError: if what is decoded cannot be kept.
    UserError: if a process was ended from outside.
  """
  scratch.mkdir(parents=True, exist_ok=True)
  for partial in scratch.glob("*.partial"):
    partial.unlink()
  clips = {
    row: Clip(row.clip_id, row.label, row.split, scratch / f"{_key(row.file, allow_missing_sound)}.npz")
    for row in rows
  }
  todo = [row for row in rows if not clips[row].decoded.exists()]
  if len(todo) < len(rows):
    print(f"{len(rows) - len(todo)} of {len(rows)} clips are decoded already")
  problems = {}
  context = multiprocessing.get_context("spawn")
  workers = max(1, min(num_workers, len(todo)))
  with (
    tqdm.tqdm(desc="decode", total=len(rows), initial=len(rows) - len(todo), unit="clip") as bar,
    concurrent.futures.ProcessPoolExecutor(workers, context, initializer=follow_parent) as pool,
  ):
    futures = {
      pool.submit(decode_clip, row.file, clips[row].decoded, allow_missing_sound): row for row in todo
    }
    try:
      for future in concurrent.futures.as_completed(futures):
        if problem := future.result():
          problems[futures[future].line] = problem
        bar.update()
    except concurrent.futures.process.BrokenProcessPool as error:
      raise UserError(
        "a process that decodes was ended from outside, most often for lack of memory; run the command again, it goes "
        "on from here, with a smaller --num_workers"
      ) from error
    finally:
      pool.shutdown(cancel_futures=True)
  return [clip for row, clip in clips.items() if row.line not in problems], problems


def _key(file: Path, allow_missing_sound: bool) -> str:
  """Names the decoded form of a file by all that it depends on."""
  try:
    stat = file.stat()
    version = (str(file), stat.st_size, stat.st_mtime_ns)
  except OSError:
    version = (str(file), -1, -1)
  return hashlib.sha256(json.dumps([*version, allow_missing_sound, RECIPE]).encode()).hexdigest()[:32]


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
    UserError: with every bad row, unless they are to be left out; if data_dir holds another data set; if it cannot be
      written.
  """
  if len(set(classes)) < len(classes) or not all(classes):
    raise UserError(f"--classes={','.join(classes)}: every class needs a name of its own")
  rows, problems = read_manifest(manifest, classes)
  good = [row for row in rows if row.line not in problems]
  classes = list(classes) or sorted({row.label for row in good}, key=_natural)
  home = data_dir / "clips"
  target, scratch = home / str(Clips.VERSION), home / SCRATCH
  described = [(row.clip_id, row.label, row.split, _key(row.file, allow_missing_sound)) for row in good]
  facts = [described, problems, classes, allow_missing_sound, leave_out_bad, RECIPE]
  fingerprint = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
  try:
    if (scratch / "replaced").exists() and not target.exists():
      (scratch / "replaced").rename(target)  # killed between the two renames below
    if target.exists() and not overwrite:
      there = open_data_set(data_dir, "clips")
      if there.fingerprint != fingerprint:
        raise UserError(
          f"{there.path} was made from other clips or settings; choose another --data_dir, or --overwrite"
        )
      shutil.rmtree(scratch, ignore_errors=True)
      print(f"{there.path} is complete already: {_described(there.splits)}")
      return
    clips, bad_files = decode_all(good, scratch / "decoded", allow_missing_sound, num_workers)
    problems |= bad_files
    bad = [f"line {line}: {problems[line]}" for line in sorted(problems)]
    if bad and not leave_out_bad:
      raise listed(f"{len(bad)} of {len(rows)} rows of {manifest} cannot be used, no data set was written", bad,
                   "mend them, or add --leave_out_bad to go on without them")  # fmt: skip
    if gone := {row.split for row in rows if row.split} - {clip.split for clip in clips}:
      raise listed(f"no clip of {', '.join(sorted(gone))} in {manifest} can be used", bad)
    if bad:
      print(f"left out {len(bad)} of {len(rows)} rows:", *bad, sep="\n  - ")
    recipe = RECIPE | {"missing_sound": "constant spectrogram" if allow_missing_sound else "refused"}
    shutil.rmtree(scratch / "clips", ignore_errors=True)  # what a killed run was writing
    new = Clips(
      clips=clips, classes=classes, recipe=recipe, fingerprint=fingerprint, data_dir=scratch
    ).write()
    if target.exists():
      shutil.rmtree(scratch / "replaced", ignore_errors=True)
      target.rename(scratch / "replaced")
    new.rename(target)
    shutil.rmtree(scratch)
  except OSError as error:
    raise UserError(
      f"{error.filename or home} cannot be written: {error.strerror or error}; {_ADVICE}"
    ) from error
  except RuntimeError as error:  # from array_record, which is not Python
    raise UserError(f"{home} cannot be written: {error}; {_ADVICE}") from error
  made = open_data_set(data_dir, "clips")
  print(f"wrote {made.path}: {_described(made.splits)}")
  if allow_missing_sound:
    print(f"without sound: {_described(made.without_sound)}")
  print(f"classes, in label order: {', '.join(made.classes)}")
  print("recipe:", *(f"{key}: {value}" for key, value in made.recipe.items()), sep="\n  ")


def _described(splits: dict[str, int]) -> str:
  return ", ".join(f"{split} {clips} clips" for split, clips in splits.items())


def _natural(label: str) -> tuple[list[tuple[int, int, str]], str]:
  """Sorts labels as people do: 2 before 10."""
  parts = [
    (0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", label) if part
  ]
  return parts, label  # 1 and 01 too have an order


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
