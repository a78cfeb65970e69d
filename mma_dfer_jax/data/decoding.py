"""Clips as files -> decoded clips, by several processes, each clip once however often it is interrupted."""

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import multiprocessing
import os
from pathlib import Path
from typing import Any
import zipfile

import numpy as np
from PIL import Image

from mma_dfer_jax.data import media
from mma_dfer_jax.data.data_set import LANDMARKS, TIMES, start_worker
from mma_dfer_jax.data.faces import FaceFinder, face_recipe
from mma_dfer_jax.data.frames import decode_frame
from mma_dfer_jax.data.landmarks import LARGEST_GAP, Watcher, detector
from mma_dfer_jax.data.pictures import quiet
from mma_dfer_jax.data.records import RECIPE, read_clip
from mma_dfer_jax.data.source import ClipFiles, Problem
from mma_dfer_jax.disk import sha256_of
from mma_dfer_jax.errors import UserError
from mma_dfer_jax.progress import Progress


@dataclasses.dataclass(frozen=True)
class Decoding:
  """What becomes of a clip's files."""

  allow_missing_sound: bool = False  # whether to take a clip without (enough) sound
  face_model: str = ""  # YuNet's file; empty: faces are not looked for
  face_policy: str = "follow"  # or union
  face_size: int = 224  # side of the cut faces in pixels
  max_frames: int = 0  # so many of longer clips, evenly spread; 0: all
  keep_times: bool = False  # of frames
  channel: str = "first"  # of the sound
  landmarks: str = ""  # YuNet's file, which finds box and points in every frame; empty: they are not kept

  @functools.cached_property
  def recipe(self) -> dict[str, str]:
    recipe = {"missing_sound": "constant spectrogram" if self.allow_missing_sound else "refused"}
    if self.face_model:
      faces = face_recipe(self.face_policy, self.face_size, sha256_of(Path(self.face_model)))
      recipe |= faces | {"frame_coding": RECIPE["frame_coding"]}
    if self.max_frames:
      recipe["frame_count"] = f"at most {self.max_frames}, evenly spread over the clip"
    if self.keep_times:
      recipe[TIMES] = "kept, as the video is played"
    if self.channel != "first":
      recipe["sound_channel"] = self.channel
    if self.landmarks:
      how = f"box and five points in every frame as stored, linear over gaps of up to {LARGEST_GAP} frames"
      recipe[LANDMARKS] = f"yunet, {how}, sha256 {sha256_of(Path(self.landmarks))}"
    return recipe


@functools.lru_cache(maxsize=1)  # one for each process
def _finder(of: Decoding) -> FaceFinder | None:
  return FaceFinder(Path(of.face_model), of.face_policy, of.face_size) if of.face_model else None


def decode_clip(files: ClipFiles, decoding: Decoding) -> str | None:
  """Decodes a clip completely and keeps its record in two files; returns what is wrong with the clip, or None.

  A clip without a label may lack pictures or sound: pretraining takes what there is.
  """
  finder, video = _finder(decoding), None if files.frames else files.video
  watcher = Watcher(detector(Path(decoding.landmarks))) if decoding.landmarks else None
  lengths, sizes, shape = [], set[tuple[int, int]](), ()
  try:
    if video and not files.label and not media.holds_pictures(video):
      video = None
    how: dict[str, Any] = {"max_frames": decoding.max_frames, "channel": decoding.channel}
    frames, record = read_clip(
      video, files.sound, pictures=files.frames, finder=finder, watcher=watcher, **how
    )
    seen = bool(video or files.frames)
    taken = seen and (decoding.allow_missing_sound or not files.label)
    if files.sound and not record["has_audio"] and not taken:
      lacking = f"no audio stream, or less than {1000 * media.SHORTEST_SOUND:.0f} ms in it"
      return f"{files.sound}: {lacking}{' (--allow_missing_sound takes such clips)' if seen else ', and no pictures'}"
    with files.pictures.open("wb") as file:  # one by one: a clip may be long
      for frame in frames:
        file.write(frame)
        lengths.append(len(frame))
        shape = shape or decode_frame(frame).shape[:2]
        if files.frames:  # those of a video are of one size
          with media.one_clip(files.frames[0].parent), quiet():
            sizes.add(Image.open(io.BytesIO(frame)).size)
  except UserError as error:
    files.pictures.unlink(missing_ok=True)
    return str(error)
  partial = files.decoded.with_suffix(f".{os.getpid()}.partial")
  with partial.open("wb") as file:
    kept = {key: record[key] for key in ("waveform", "sample_rate", "face_share")}
    kept |= {key: list(record[key]) for key in ("changes", "times", "notes")} | {"turned": record["turned"]}
    kept |= {"faces": watcher.found()} if watcher else {}
    np.savez(file, lengths=lengths, sizes=sorted(sizes), shape=shape, **kept)
  partial.replace(files.decoded)  # a killed run keeps no half clip
  return None


def decode_all(files: Sequence[ClipFiles], scratch: Path, decoding: Decoding, num_workers: int,
               ) -> tuple[list[ClipFiles], list[Problem]]:  # fmt: skip
  """Decodes every clip that is not decoded yet, by several processes; returns the clips, and what is wrong with others.

  A clip that ends the process that decodes it, as faults in libraries do, is one of the others.
  """
  scratch.mkdir(parents=True, exist_ok=True)
  for left in scratch.iterdir():
    if not left.with_suffix(".npz").exists() or left.suffix == ".partial":
      left.unlink()
  clips = [dataclasses.replace(one, decoded=scratch / f"{key_of(one, decoding)}.npz") for one in files]
  todo = [clip for clip in clips if not zipfile.is_zipfile(clip.decoded)]  # as a loss of power leaves them
  if done := len(clips) - len(todo):
    print(f"{done} of {len(clips)} clips are decoded already")
  problems: dict[str, Problem] = {}
  with Progress("decode", len(clips), done=done) as bar:

    def decode(some: Sequence[ClipFiles], workers: int) -> list[ClipFiles]:
      """Returns those whose process was ended, and those that waited for one."""
      left = {clip.clip_id: clip for clip in some}
      pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), start_worker, (workers,))
      try:
        futures = {pool.submit(decode_clip, clip, decoding): clip for clip in some}
        for future in as_completed(futures):
          note(futures[future], future.result())
          del left[futures[future].clip_id]
      except BrokenProcessPool:
        pass
      finally:
        pool.shutdown(cancel_futures=True)
      return list(left.values())

    def note(clip: ClipFiles, wrong: str | None) -> None:
      if wrong:
        what = wrong.removeprefix(f"{clip.video}: ") if str(clip.video).endswith(clip.clip_id) else wrong
        problems[clip.clip_id] = Problem(clip.where, what, (clip.clip_id,))
      bar.update()

    while todo:
      if not num_workers:
        for clip in todo:
          note(clip, decode_clip(clip, decoding))
        break
      workers = min(num_workers, len(todo))
      todo = decode(todo, workers)
      # Those that were being decoded are among the first; each alone in a process shows which one ends it.
      alone, todo = todo[: workers + 1], todo[workers + 1 :]
      ended = [clip for clip in alone if decode([clip], 1)]
      if len(ended) > 1 and len(ended) == len(alone):
        raise UserError("the system ends the processes that decode, most often for lack of memory; run the command again "
                        "with a smaller --num_workers; finished clips are kept")  # fmt: skip
      for clip in ended:
        note(clip, "ended the process that decoded it: a fault in a library, or too little memory")
  return [clip for clip in clips if clip.clip_id not in problems], list(problems.values())


def key_of(files: ClipFiles, decoding: Decoding) -> str:
  """Names the decoded form of a clip by all that it depends on."""
  versions = []
  for file in (*files.frames, files.video, files.sound):
    size = modified = -1
    with contextlib.suppress(OSError, ValueError):  # decoding it says what is wrong
      if file:
        size, modified = (stat := file.stat()).st_size, stat.st_mtime_ns
    versions.append((str(file), size, modified))
  return hashlib.sha256(json.dumps([versions, decoding.recipe, RECIPE]).encode()).hexdigest()[:32]
