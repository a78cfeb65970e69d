"""What is measured of each record of a prepared data set, and what is odd about a clip."""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
import functools
import hashlib
from itertools import pairwise
import math
from typing import Any

import cv2
import numpy as np

from mma_dfer_jax.data.data_set import DataSet
from mma_dfer_jax.data.fbank import spectrogram
from mma_dfer_jax.data.frames import decode_frame, sample_frames
from mma_dfer_jax.data.media import SILENT
from mma_dfer_jax.data.pipeline import Record
from mma_dfer_jax.inputs import Inputs
from mma_dfer_jax.progress import watched

CELLS = 16  # a side of the picture, whose colours are compared from frame to frame
# What is odd about a clip: what is measured is below a limit, and how a report says that.
_ODD: dict[str, tuple[float, str]] = {
  "few_frames": (
    16,
    "fewer than {} frames",
  ),  # the last is repeated in every batch; and are no movement of 16 steps
  # Grey levels of 255, over the frames that an evaluation takes. A night scene has a mean of 10 or more, a black picture
  # of 0 to 2 after any coding; a picture with anything in it deviates by 15 or more from its mean.
  "black": (8.0, "black, no frame brighter than {:g} of 255"),
  "one_colour": (2.0, "pictures of one colour only"),
  # Largest change of a cell, which noise and coding hardly change: measured are 1 to 5 for still pictures coded as H.264,
  # 52 and more for the faces of RAVDESS, cut out or not.
  "frozen": (6.0, "frozen, no part of the picture changes by {:g} of 255"),
  # Share of frames equal to the one before, bit for bit; 12 pictures a second shown as 25 have less.
  "repeating": (0.5, "more than {:.0%} of the frames repeat the one before"),
  "no_sound": (1, "no sound, a constant spectrogram"),
  "short_sound": (0.5, "sound shorter than {:g} s"),  # hardly a word: less than one tenth of the spectrogram
  "silent": (SILENT, "silent, no sample reaches {} of 32768"),
  "few_faces": (0.8, "a face in less than {:.0%} of the frames"),
}
LIMITS = {key: limit for key, (limit, _) in _ODD.items() if key != "no_sound"}
ODDITIES = {key: text.format(limit) for key, (limit, text) in _ODD.items()}
_MARKS = ((b"\xff\xd8", b"\xff\xd9"), (b"\x89PNG", b"IEND\xae\x42\x60\x82"))  # of whole JPEG and PNG files


@dataclass(frozen=True)
class RecordStats:
  """What is remembered of one record; no pixel of it."""

  split: str
  index: int
  clip_id: str
  label: str | None  # class name; None: its number is that of no class
  frames: int
  size: tuple[int, int]  # (height, width) of the first frame, pixels
  brightness: float  # mean grey level of the brightest frame that an evaluation takes
  contrast: float  # largest standard deviation within one of these frames
  motion: int | None  # largest change of a cell's colour from one of them to the next; None: only one
  repeats: float  # share of all frames but the first that equal the one before, bit for bit
  seconds: float  # of sound
  sample_rate: int
  peak: int  # largest sample of the sound, of 32768
  has_audio: bool
  face_share: float | None  # of the frames; None: `prepare` looked for no faces
  pictures: str  # digest of all frames
  sound: str  # digest of the waveform; empty: there is none

  def __str__(self) -> str:
    return f"{self.split} {self.clip_id}"

  @property
  def odd(self) -> set[str]:
    """What is odd about it, by the names of ODDITIES; of its pictures only the first thing."""
    measured = {"few_frames": self.frames, "black": self.brightness, "one_colour": self.contrast,
                "frozen": self.motion, "repeating": 1 - self.repeats, "few_faces": self.face_share}  # fmt: skip
    measured |= {"short_sound": self.seconds, "silent": self.peak} if self.has_audio else {"no_sound": 0}
    odd = [key for key, value in measured.items() if value is not None and value < _ODD[key][0]]
    of_pictures = [key for key in odd if key in ("black", "one_colour", "frozen", "repeating")]
    return set(odd) - set(of_pictures[1:])

  @property
  def blank(self) -> bool:
    """Whether nothing can be seen, so that two of them may look alike and be different clips."""
    return bool(self.odd & {"black", "one_colour"})


def look_at(record: Record, split: str, index: int, classes: Sequence[str]) -> RecordStats:
  """Decodes what an evaluation takes of a record, and measures it.

  Raises:
    ValueError: if there are no frames, one of them is no picture, or the sound gives no spectrogram.
  """
  frames, waveform, rate = record["frames"], np.asarray(record["waveform"]), int(record["sample_rate"])
  label, has_audio = int(record["label"]), bool(record["has_audio"])
  if has_audio:
    rows = spectrogram(waveform.astype(np.float32) / 32768.0, rate, *Inputs().audio_shape)
    if not np.isfinite(rows).all():
      raise ValueError("its spectrogram is not finite")
  share = float(record.get("face_share", math.nan))
  return RecordStats(
    split=split,
    index=index,
    clip_id=record["clip_id"].decode(errors="replace"),
    label=classes[label] if 0 <= label < len(classes) else None if classes else "",
    frames=len(frames),
    **_measured(frames),
    repeats=sum(map(bytes.__eq__, frames, frames[1:])) / max(1, len(frames) - 1),
    seconds=round(len(waveform) / rate, 3) if has_audio else 0.0,
    sample_rate=rate if has_audio else 0,
    peak=int(np.abs(waveform.astype(np.int32)).max()) if has_audio else 0,
    has_audio=has_audio,
    face_share=None if math.isnan(share) else round(share, 4),
    pictures=_digest(frames),
    sound=_digest([waveform.tobytes()]) if has_audio else "",
  )


def _measured(frames: Sequence[bytes]) -> dict[str, Any]:
  """size, brightness, contrast and motion; holds one frame at a time."""
  chosen = set(sample_frames(len(frames), train=False).tolist())
  sizes, levels, cells = [], [], []
  for i, data in enumerate(frames):
    # Training may draw any frame: those without the end of a JPEG or PNG may be cut off, and are decoded too.
    if i not in chosen and any(data.startswith(first) and data.endswith(last) for first, last in _MARKS):
      continue
    try:
      pixels = decode_frame(data)
    except ValueError as error:
      raise ValueError(f"frame {i}: {error}") from error
    if i in chosen:
      sizes.append(pixels.shape[:2])
      levels.append(cv2.meanStdDev(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)))
      cells.append(cv2.resize(pixels, (CELLS, CELLS), interpolation=cv2.INTER_AREA))
  means, deviations = np.array(levels).reshape(-1, 2).T
  motion = max((int(cv2.absdiff(before, after).max()) for before, after in pairwise(cells)), default=None)
  return {"size": sizes[0], "brightness": round(float(means.max()), 2),
          "contrast": round(float(deviations.max()), 2), "motion": motion}  # fmt: skip


def _digest(parts: Iterable[bytes]) -> str:
  return hashlib.sha256(b"".join(len(part).to_bytes(8, "little") + part for part in parts)).hexdigest()[:32]


def examine(data_set: DataSet, num_threads: int) -> tuple[list[RecordStats], list[str]]:
  """Reads every record once; a line for each that cannot be read. Both in the order of splits and records."""
  open_split = functools.cache(data_set.records)

  def look(split: str, index: int) -> RecordStats | str:
    clip = ""
    try:
      record = open_split(split)[index]
      clip = f" ({record['clip_id'].decode(errors='replace')})"
      return look_at(record, split, index, data_set.classes)
    except Exception as error:  # array_record, tfds and OpenCV each have their own; every one is a finding
      # Without what array_record adds: where in the file, and the file itself, again and again.
      reason = (str(error).splitlines() or ["?"])[0].split("; ", 1)[0][:200]
      return f"{split} record {index}{clip}: {type(error).__name__}: {reason}"

  tasks = [(split, index) for split, size in data_set.splits.items() for index in range(size)]
  cv2.setNumThreads(1)  # our threads share the cores already
  with ThreadPoolExecutor(max(1, num_threads)) as pool:
    found = list(watched(pool.map(look, *zip(*tasks, strict=True)), "examine", len(tasks)))
  return [one for one in found if not isinstance(one, str)], [one for one in found if isinstance(one, str)]
