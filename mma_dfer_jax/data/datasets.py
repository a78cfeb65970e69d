"""Data sets on disk: what a record holds, how it is written by tfds without TensorFlow, how it is opened."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
import dataclasses
import json
import multiprocessing
import os
from pathlib import Path
import resource
import signal
import struct
import threading
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import shuffle
import tqdm

from mma_dfer_jax.data import media
from mma_dfer_jax.data.faces import FaceFinder
from mma_dfer_jax.data.frames import JPEG_QUALITY, decode_frame, encode_frame
from mma_dfer_jax.errors import UserError

# How a video file becomes a record; stored with the data set and with every checkpoint, and compared.
RECIPE = {
  "sample_rate": "native: the file's own, never resampled",
  "sound_channel": "first",
  "frame_order": "presentation: as the video is played",
  "frame_size": "native: as decoded, not cropped",
  "frame_coding": f"jpeg, quality {JPEG_QUALITY}",
}


def read_record(
  video: str | os.PathLike | None,
  *,
  pictures: Sequence[Path] = (),
  sound: str | os.PathLike | None = None,
  finder: FaceFinder | None = None,
) -> dict[str, Any]:
  """A clip, decoded to its end, as the record that training would see.

  Args:
    video: a file with pictures and sound; None: they are files of their own.
    pictures: files in the order of frames; their bytes are kept as they are unless faces are cut out.
    sound: the file with the sound that belongs to them; None: there is none.
    finder: cuts the face out of every frame.
  Returns:
    frames: JPEG (or the files' own) bytes of every frame; waveform: (S,) int16, first channel, empty if there is less
    sound than one window; sample_rate in Hz, 0 then; has_audio; face_share: share of frames with a face, NaN if none was
    looked for.
  Raises:
    MediaError: if a file is no video, sound or picture, or damaged.
  """
  heard = sound if video is None else video
  found = media.read_sound(heard) if heard is not None else None
  if found and not media.is_long_enough(found.waveform, found.sample_rate):
    found = None

  def decoded() -> Iterator[np.ndarray]:
    return media.iterate_frames(video) if video is not None else map(_decoded, pictures)

  share = float("nan")
  if video is None and finder is None:
    frames = [_checked(picture) for picture in pictures]
  else:
    images = decoded()
    if finder is not None:
      images, track = finder.crops(decoded)
      share = track.share
    frames = [encode_frame(image) for image in images]
  return {
    "frames": frames,
    "waveform": found.waveform if found else np.zeros(0, np.int16),
    "sample_rate": found.sample_rate if found else 0,
    "has_audio": found is not None,
    "face_share": share,
  }


def _checked(picture: Path) -> bytes:
  """The bytes of a picture file that can be decoded."""
  data = picture.read_bytes()
  try:
    decode_frame(data)
  except ValueError as error:
    raise media.MediaError(f"{picture}: {error}") from error
  return data


def _decoded(picture: Path) -> np.ndarray:
  return decode_frame(_checked(picture))


@dataclasses.dataclass(frozen=True)
class Clip:
  """One labelled clip: where its decoded form lies until the data set is written."""

  clip_id: str
  label: str
  split: str
  decoded: Path  # .npz: jpegs, lengths, waveform, sample_rate


class Clips(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
  """Writes clips as tfds records: JPEG frames, first-channel waveform, label; one split per split of the clips.

  Args:
    clips: decoded.
    classes: names in label order; `class_order` says whose order it is.
    recipe: how they were made.
    left_out: what was wrong with the clips that are not there.
    fingerprint: of all that the data set depends on.
    data_dir: the folder gets the class's name, in it.
  """

  VERSION = tfds.core.Version("1.0.0")
  url_infos: Mapping[str, Any] = {}  # nothing is downloaded; tfds would look for a file that says so

  def __init__(
    self,
    *,
    clips: Sequence[Clip],
    classes: Sequence[str],
    class_order: str,
    recipe: Mapping[str, Any],
    left_out: Sequence[str],
    fingerprint: str,
    data_dir: str | os.PathLike,
  ):
    self.clips, self.classes = clips, list(classes)
    counts = Counter((clip.split, clip.label) for clip in clips)
    rates = [int(np.load(clip.decoded)["sample_rate"]) for clip in clips]
    silent = Counter(clip.split for clip, rate in zip(clips, rates, strict=True) if not rate)
    splits = dict.fromkeys(clip.split for clip in clips)
    self.facts = {
      "classes": self.classes,
      "class_order": class_order,
      "recipe": dict(recipe),
      "left_out": list(left_out),
      "fingerprint": fingerprint,
      "clips": {split: {label: counts[split, label] for label in self.classes} for split in splits},
      "sample_rates": sorted(set(rates) - {0}),
      "without_sound": {split: silent[split] for split in splits},
    }
    super().__init__(data_dir=data_dir, file_format="array_record")

  def _info(self) -> tfds.core.DatasetInfo:
    features = tfds.features.FeaturesDict(
      {
        "clip_id": tfds.features.Text(),
        "frames": tfds.features.Sequence(tfds.features.Text()),  # JPEG bytes; Image would decode all of them
        "waveform": tfds.features.Tensor(shape=(None,), dtype=np.int16),
        "sample_rate": np.int32,  # Hz
        "has_audio": np.bool_,
        "face_share": np.float32,  # of the frames; NaN: not looked for
        "label": tfds.features.ClassLabel(names=self.classes),
      }
    )
    # As text: tfds would bring back lists of metadata as something else.
    metadata = tfds.core.MetadataDict(facts=json.dumps(self.facts))
    return tfds.core.DatasetInfo(builder=self, features=features, metadata=metadata)

  def _split_generators(self, dl_manager):
    del dl_manager
    splits = dict.fromkeys(clip.split for clip in self.clips)
    return {split: self._generate_examples([c for c in self.clips if c.split == split]) for split in splits}

  def _generate_examples(self, clips: Iterable[Clip]) -> Iterator[tuple[str, dict[str, Any]]]:
    for clip in clips:
      self.bar.update()
      with np.load(clip.decoded) as decoded:
        ends = np.cumsum(decoded["lengths"])
        jpegs = [part.tobytes() for part in np.split(decoded["jpegs"], ends[:-1])]
        waveform, sample_rate = decoded["waveform"], int(decoded["sample_rate"])
        face_share = float(decoded["face_share"])
      yield (
        clip.clip_id,
        {
          "clip_id": clip.clip_id,
          "frames": jpegs,
          "waveform": waveform,
          "sample_rate": sample_rate,
          "has_audio": sample_rate > 0,
          "face_share": face_share,
          "label": clip.label,
        },
      )

  def write(self) -> Path:
    """Writes the data set and returns its folder, which gets its name when all is in it."""
    _use_local_buckets()
    tfds.disable_progress_bar()
    with tqdm.tqdm(desc="write", total=len(self.clips), unit="clip") as self.bar:
      # Nothing is downloaded, but tfds makes a folder for it.
      self.download_and_prepare(download_dir=self.data_path.parent)
    return Path(self.data_path)

  def _log_download_bytes(self) -> None:
    """Silent: tfds would speak of downloads."""

  _log_download_done = _log_download_bytes


class Dfew(Clips, skip_registration=True):  # type: ignore[call-arg]
  """DFEW, in its five folds."""


class Mafw(Clips, skip_registration=True):  # type: ignore[call-arg]
  """MAFW's eleven single emotions, in its five folds."""


class Ravdess(Clips, skip_registration=True):  # type: ignore[call-arg]
  """RAVDESS, in five folds by actor."""


class Cremad(Clips, skip_registration=True):  # type: ignore[call-arg]
  """CREMA-D, in five folds by speaker."""


BUILDERS: dict[str, type[Clips]] = {
  "clips": Clips,
  "dfew": Dfew,
  "mafw": Mafw,
  "ravdess": Ravdess,
  "cremad": Cremad,
}


@dataclasses.dataclass(frozen=True)
class DataSet:
  """A data set on disk: class names in label order, the recipe that made it, clips per split, and of what kind."""

  path: Path
  classes: tuple[str, ...]
  recipe: dict[str, Any]
  fingerprint: str
  splits: dict[str, int]
  clips: dict[str, dict[str, int]]  # by split and class
  without_sound: dict[str, int]  # by split
  class_order: str  # whose label order it is
  left_out: tuple[str, ...]  # what was wrong with clips that are not in it
  sample_rates: tuple[
    int, ...
  ]  # of the sounds, Hz, ascending; none known of sets written before they were kept

  def records(self, split: str) -> Sequence[Mapping[str, Any]]:
    """Random access to the records of a split, or of several: "fold1+fold3"; frames stay JPEG bytes."""
    return tfds.builder_from_directory(self.path).as_data_source(split)

  def train_and_test(self, fold: int) -> tuple[str, str]:
    """The split expressions of a run.

    Args:
      fold: k to test on `foldk` and train on the other folds; 0 for the splits `train` and `test`.
    Raises:
      UserError: if the data set has no such splits.
    """
    folds = [split for split in self.splits if split.startswith("fold")]
    test = f"fold{fold}" if fold else "test"
    train = [split for split in folds if split != test] if fold else ["train"]
    if test not in self.splits or not train or train[0] not in self.splits:
      advice = f"set config.data.fold to 1…{len(folds)}" if folds else "set config.data.fold=0"
      needed = f"the split {test} and other folds" if fold else "the splits train and test"
      raise UserError(
        f"config.data.fold={fold} needs {needed}, but {self.path} has {', '.join(self.splits)}; {advice}"
      )
    return "+".join(train), test


def open_data_set(data_dir: str | os.PathLike, name: str) -> DataSet:
  """Opens a data set that `mma_dfer_jax.data.prepare` has written.

  Raises:
    UserError: if there is none, naming the command that writes it.
  """
  versions = [path.parent for path in Path(data_dir, name).glob("*/dataset_info.json")]
  if not versions:
    raise UserError(
      f"there is no data set {name!r} in {data_dir}; write it with\n"
      f"  python -m mma_dfer_jax.data.prepare --dataset={name} --data_dir={data_dir} …"
    )
  try:
    info = tfds.builder_from_directory(max(versions)).info
    facts = json.loads((info.metadata or {}).get("facts", "{}"))
    splits = {split: info.splits[split].num_examples for split in info.splits}
  except Exception as error:  # of tfds or protobuf, of any kind
    raise UserError(
      f"{max(versions)} is damaged: its metadata cannot be read ({type(error).__name__}: {error}); prepare it again "
      "with --overwrite"
    ) from error
  if not facts:
    raise UserError(f"{max(versions)} was not written by mma_dfer_jax.data.prepare: it has no recipe")
  return DataSet(max(versions), tuple(facts["classes"]), facts["recipe"], facts["fingerprint"], splits,
                 facts["clips"], facts["without_sound"], facts.get("class_order", ""),
                 tuple(facts.get("left_out", ())), tuple(facts.get("sample_rates", ())))  # fmt: skip


class _LocalBucket(shuffle._Bucket):
  """tfds spills splits over 1 GB into buckets that it opens with TensorFlow; this one uses `open`."""

  _fobj: Any

  def add(self, key, data):
    if not self._fobj:
      os.makedirs(os.path.dirname(self._path), exist_ok=True)
      self._fobj = open(self._path, "wb")  # noqa: SIM115 (closed by flush)
    self._fobj.write(shuffle._hkey_to_bytes(key) + struct.pack("=Q", len(data)) + data)
    self._length += 1
    self._size += len(data)

  def flush(self):
    if self._fobj:
      self._fobj.close()

  def read_values(self):
    self.flush()
    if not os.path.exists(self._path):
      return
    with open(self._path, "rb") as bucket:
      while key := bucket.read(shuffle.HKEY_SIZE_BYTES):
        (size,) = struct.unpack("=Q", bucket.read(8))
        yield shuffle._read_hkey(key), bucket.read(size)

  def del_file(self):
    if os.path.exists(self._path):
      os.remove(self._path)


def _use_local_buckets() -> None:
  shuffle._Bucket = _LocalBucket
  # All 1000 buckets stay open at once; the usual soft limit is 1024 files.
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  wanted = 4096 if hard == resource.RLIM_INFINITY else min(4096, hard)
  resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))


def follow_parent(*_: int) -> None:
  """For processes that decode: leaves Ctrl-C to the parent, and ends with it, even when it is killed.

  A worker would else be stopped before the parent has saved; or wait for a killed parent for ever.
  """
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  parent = multiprocessing.parent_process()
  assert parent is not None

  def follow() -> None:
    parent.join()
    os._exit(1)

  threading.Thread(target=follow, daemon=True).start()
