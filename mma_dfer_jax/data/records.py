"""A clip on disk: what a record holds, and how tfds writes it without TensorFlow."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
import itertools
import json
import math
import os
from pathlib import Path
import resource
import types
from typing import Any
from unittest import mock

from jaxtyping import Int64
import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import shuffle
from tensorflow_datasets.core.example_serializer import ExampleSerializer

from mma_dfer_jax.data import media
from mma_dfer_jax.data.channels import Heard
from mma_dfer_jax.data.data_set import INDEX, LANDMARKS, TIMES
from mma_dfer_jax.data.faces import FaceFinder
from mma_dfer_jax.data.frames import JPEG_QUALITY, decode_as_meant, encode_frame, sample_frames
from mma_dfer_jax.data.landmarks import Watcher
from mma_dfer_jax.data.source import ClipFiles
from mma_dfer_jax.data.wire import field, integers, number_of_integers, strings, values, varints
from mma_dfer_jax.progress import Progress

# How a video file becomes a record; stored with the data set and with every checkpoint, and compared.
RECIPE = {
  "sample_rate": "native: the file's own, never resampled",
  "sound_channel": "first",
  "frame_order": "presentation: as the video is played",
  "frame_size": "native: as decoded, not cropped",
  "frame_coding": f"jpeg, quality {JPEG_QUALITY}",
}
MOST_IN_MEMORY = 1 << 28  # bytes of records that wait to be put in order; more wait in files
# Of frames as they are stored. A record is read whole by whoever takes one frame of it, and holds 2 GiB at most.
LARGEST_CLIP = 1 << 30
# A clip without a label becomes records of about so many bytes of frames and seconds of sound: pretraining reads one for each
# frame, at 1 GB a second.
PART_BYTES, PART_SECONDS = 1 << 21, 20
SHORTEN = "cut it into shorter clips, or take fewer frames of it with --max_frames=N"


def read_clip(
  video: Path | None, sound: Path | None, *, pictures: Sequence[Path] = (), finder: FaceFinder | None = None,
  max_frames: int = 0, channel: str = "first", watcher: Watcher | None = None,
) -> tuple[Iterator[bytes], dict[str, Any]]:  # fmt: skip
  """The frames of a clip, decoded one by one while they are iterated over, and the other fields of its record.

  Args:
    video: a file with pictures; None: they are files of their own, or there are none.
    sound: a file, perhaps the video; None: there is none.
    pictures: files in the order of frames; their bytes stay as they are unless faces are cut out.
    max_frames: of a longer clip so many are taken, the middles of equal parts; 0: all.
    channel: of the sound, one of CHANNELS.
    watcher: sees every frame that is taken, as it is stored.
  Returns:
    JPEG (or the files' own) bytes of every frame; and waveform: (S,) int16, one channel, empty if there is less sound
    than one window; sample_rate in Hz, 0 then; has_audio; face_share of the frames with a face, NaN if none was looked for.
    turned: what faces show of a wrong orientation, in words; notes, on tracks and channels.
    Filled while the frames are iterated over: changes, what was done to pixels that are meant otherwise than they are
    stored; times, of a video, the seconds at which frames begin, and at which the last one ends.
  Raises:
    MediaError: here or while iterating, if a file is damaged, no media or too long, or a library raises anything.
  """
  place = video or (pictures[0].parent if pictures else sound)
  assert place, "a clip has pictures or a sound"
  if not (video or pictures):
    finder, max_frames = None, 0
  changes, times = dict[str, None](), list[float]()

  def decoded() -> Iterator[np.ndarray]:
    return _as_shown(video, changes, times) if video else (_checked(path, changes)[1] for path in pictures)

  with media.one_clip(sound or place):
    found, notes = _heard(video, sound, channel)
  with media.one_clip(place):
    images, track = finder.crops(decoded) if finder else (decoded(), None)
    number = len(track.boxes) if track else len(pictures)
    number = number or (sum(1 for _ in media.iterate_pictures(place)) if max_frames else 0)
    fewer = 0 < max_frames < number
    taken = set(sample_frames(number, train=False, num_segments=max_frames)) if fewer else None

  source: Iterable[Any] = images if video or finder else pictures
  chosen = ((i, one) for i, one in enumerate(source) if taken is None or i in taken)

  def frames() -> Iterator[bytes]:
    yield from _encoded(chosen, changes, watcher, place)
    if taken is not None and times:
      times[:-1] = [times[i] for i in sorted(taken)]

  waveform, rate = found or (np.zeros(0, np.int16), 0)
  of_sound = {"waveform": waveform, "sample_rate": rate, "has_audio": found is not None, "notes": notes}
  of_faces = {"face_share": track.share if track else math.nan, "turned": track.turned if track else ""}
  return frames(), {**of_sound, **of_faces, "changes": changes, "times": times}


def _encoded(
  numbered: Iterable[tuple[int, Any]], changes: dict[str, None], watcher: Watcher | None, place: Path
) -> Iterator[bytes]:
  """Frames, given as pixels or as files, with their numbers, as long as a record can hold them; the watcher sees them."""
  size = 0
  with media.one_clip(place):
    for number, (i, one) in enumerate(numbered, 1):
      data, pixels = _checked(one, changes) if isinstance(one, Path) else (None, one)
      if watcher:
        watcher.look(i, pixels)
      yield (jpeg := data or encode_frame(pixels))
      if (size := size + len(jpeg)) > LARGEST_CLIP:
        what = f"its first {number:,} frames take more than {LARGEST_CLIP >> 30} GiB"
        raise media.MediaError(f"{place}: is too long: {what}; {SHORTEN}")


def _heard(video: Path | None, sound: Path | None, channel: str) -> tuple[media.Sound | None, list[str]]:
  """The sound of a clip, and what there is to say of its channels and of the tracks of its files."""
  heard = Heard(channel)
  found = media.read_sound(sound, channel, heard) if sound else None
  files = dict.fromkeys(filter(None, (video, sound)))
  return found, [*itertools.chain(*map(media.tracks_taken, files)), *(heard.notes() if found else ())]


def _as_shown(video: Path, changes: dict[str, None], times: list[float]) -> Iterator[np.ndarray]:
  """The frames of a video; fills what `read_clip` says of changes and times."""
  times.clear()
  for picture in media.iterate_pictures(video):
    yield picture.pixels()
    changes.update(dict.fromkeys(picture.changes))
    times[-1:] = [max([picture.time, *times[-2:-1]]), picture.time + picture.duration]
  if times:
    times[-1] = media.end_of_last(times[:-1], times[-1])


def _checked(picture: Path, changes: dict[str, None]) -> tuple[bytes, np.ndarray]:
  """The bytes of a picture file that can be decoded and its pixels; adds what was done to them to the changes."""
  with media.one_clip(picture):
    data = picture.read_bytes()
    try:
      pixels, found = decode_as_meant(data)
    except ValueError as error:
      raise media.MediaError(f"{picture}: {error}") from error
  changes.update(dict.fromkeys(found))
  return data, pixels


def length_of_sound(decoded: Path) -> tuple[int, int]:
  """Samples, and how many there are a second; the samples themselves are not read."""
  with np.load(decoded) as arrays, arrays.zip.open("waveform.npy") as file:
    np.lib.format.read_magic(file)
    (samples,), _, _ = np.lib.format.read_array_header_1_0(file)
    return samples, int(arrays["sample_rate"])


def typical_of(clips: Iterable[ClipFiles]) -> dict[str, tuple[float, float]]:
  """Between which values 90 % of the clips but those of the split `test` lie, as far as known.

  Returns:
    seconds; shape, width of the first frame / height; side, its longer one in pixels; face_share, as records have it.
  """
  found = defaultdict[str, list[float]](list)
  for clip in clips:
    if clip.split == "test":
      continue
    samples, rate = length_of_sound(clip.decoded)
    with np.load(clip.decoded) as arrays:
      times, shape, share = (arrays.get(name, ()) for name in ("times", "shape", "face_share"))
    seconds = float(times[-1]) if len(times) else samples / (rate or 1)
    of_clip = {"seconds": seconds or math.nan, "face_share": float(share)}
    if len(shape):
      height, width = shape
      of_clip |= {"shape": width / height, "side": max(height, width)}
    for name, value in of_clip.items():
      found[name] += [value] * (not math.isnan(value))
  limits = ((name, np.percentile(values, (5, 95))) for name, values in found.items() if values)
  return {name: tuple(of.round(3).tolist()) for name, of in limits}


def parts_of(clip: ClipFiles) -> list[tuple[slice, slice]]:
  """Which frames and samples go into which record: all into one, unless the clip is long and has no label."""
  (samples, rate), number = length_of_sound(clip.decoded), 1
  with np.load(clip.decoded) as arrays:
    lengths = arrays["lengths"]
  if not clip.label:
    of_frames = min(len(lengths), -(-int(lengths.sum()) // PART_BYTES))
    number = max(1, of_frames, samples // (PART_SECONDS * rate or 1))
  with_sound = min(number, max(1, samples // (rate or 1)))  # at least a second in each
  parts = (number, len(lengths)), (with_sound, samples)
  frames, sound = (np.arange(of + 1) * size // of for of, size in parts)
  sound = np.pad(sound, (0, number - with_sound), mode="edge")
  return [(slice(*frames[i : i + 2].tolist()), slice(*sound[i : i + 2].tolist())) for i in range(number)]


class Clips(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
  """Writes clips as tfds records: JPEG frames, first-channel waveform, label (-1: none); one split per split of the clips.

  Args:
    classes: names in label order. Empty: the clips have no labels.
    facts: class_order, recipe, left_out and fingerprint, as `DataSet` has them.
  """

  VERSION = tfds.core.Version("1.0.0")
  url_infos: Mapping[str, Any] = {}  # nothing is downloaded; tfds would look for a file that says so

  def __init__(self, *, clips: Sequence[ClipFiles], classes: Sequence[str], data_dir: Path, **facts: Any):
    self.clips, self.classes = clips, list(classes)
    self.parts = {clip.clip_id: parts_of(clip) for clip in clips}
    counts, silent = Counter[tuple[str, str]](), Counter[str]()
    for clip in clips:
      counts[clip.split, clip.label] += len(self.parts[clip.clip_id])
      silent[clip.split] += sum(sound.start == sound.stop for _, sound in self.parts[clip.clip_id])
    lengths = [length_of_sound(clip.decoded) for clip in clips]
    rates = [rate for _, rate in lengths]
    seconds = [samples / rate for samples, rate in lengths if rate]
    splits, median = dict.fromkeys(clip.split for clip in clips), float(np.median(seconds or [0]))
    by_class = {split: {label: counts[split, label] for label in self.classes or [""]} for split in splits}
    self.facts: dict[str, Any] = facts | {
      "classes": self.classes,
      "clips": by_class,
      "typical": typical_of(clips),
    }
    self.facts |= {"sample_rates": sorted(set(rates) - {0}), "seconds_of_sound": round(median, 3)}
    self.facts["without_sound"] = {split: silent[split] for split in splits}
    if voted := Counter(clip.split for clip in clips if clip.votes):
      self.facts["votes"] = {split: voted[split] for split in splits}
    super().__init__(data_dir=data_dir, file_format="array_record")

  @classmethod
  def named(cls, name: str) -> type["Clips"]:
    """The builder of a data set of this name: tfds takes the name of its folder from the class."""
    return types.new_class(name.capitalize(), (cls,), {"skip_registration": True},
                           lambda body: body.update(__module__=__name__, __doc__=f"The data set {name}."))  # fmt: skip

  def _info(self) -> tfds.core.DatasetInfo:
    features = {
      "clip_id": tfds.features.Text(),
      "frames": tfds.features.Sequence(tfds.features.Text()),  # JPEG bytes; Image would decode all of them
      "waveform": tfds.features.Tensor(shape=(None,), dtype=np.int16),
      "sample_rate": np.int32,  # Hz
      "has_audio": np.bool_,
      "face_share": np.float32,  # of the frames; NaN: not looked for
      "label": tfds.features.ClassLabel(names=self.classes),
    }
    if TIMES in self.facts["recipe"]:  # seconds at which frames begin, and at which the last one ends
      features["times"] = tfds.features.Tensor(shape=(None,), dtype=np.float64)
    if "votes" in self.facts:  # of people for each class; all 0: nobody was asked
      features["votes"] = tfds.features.Tensor(shape=(len(self.classes),), dtype=np.uint8)
    if LANDMARKS in self.facts["recipe"]:  # bytes of `landmarks.STORED`, one after the other
      features["faces"] = tfds.features.Text()
    # As text: tfds would bring back lists of metadata as something else.
    metadata = tfds.core.MetadataDict(facts=json.dumps(self.facts))
    return _Info(builder=self, features=tfds.features.FeaturesDict(features), metadata=metadata)

  def _split_generators(self, dl_manager):
    del dl_manager
    splits = dict.fromkeys(clip.split for clip in self.clips)
    return {split: self._generate_examples([c for c in self.clips if c.split == split]) for split in splits}

  def _generate_examples(self, clips: Iterable[ClipFiles]) -> Iterator[tuple[str, dict[str, Any]]]:
    for clip in clips:
      self.bar.update()
      with np.load(clip.decoded) as decoded, clip.pictures.open("rb") as pictures:
        arrays, parts = dict(decoded), self.parts[clip.clip_id]
        for part, (frames, sound) in enumerate(parts, 1):
          has_audio = sound.start < sound.stop
          name = clip.clip_id + f" ({part} of {len(parts)})" * (len(parts) > 1)
          record = {"clip_id": name, "has_audio": has_audio}
          record["sample_rate"] = int(arrays["sample_rate"]) if has_audio else 0
          record["frames"] = [pictures.read(length) for length in arrays["lengths"][frames].tolist()]
          record |= {"waveform": arrays["waveform"][sound], "face_share": float(arrays["face_share"])}
          record["label"] = clip.label if self.classes else -1
          if TIMES in self.facts["recipe"]:
            record["times"] = arrays["times"][frames.start : frames.stop + 1]
          if "votes" in self.facts:
            record["votes"] = np.array(clip.votes or [0] * len(self.classes), np.uint8)
          if LANDMARKS in self.facts["recipe"]:
            record["faces"] = arrays["faces"][frames].tobytes()
          yield record["clip_id"], record

  def write(self) -> Path:
    """Writes the data set and returns its folder, which gets its name when all is in it."""
    # tfds spills splits over 1 GB into buckets, which it opens with TensorFlow: it gets Python's own files.
    files = types.SimpleNamespace(GFile=open, exists=os.path.exists, remove=os.remove)
    errors = types.SimpleNamespace(ResourceExhaustedError=())  # of no kind, so that an OSError stays one
    shuffle.tf = types.SimpleNamespace(io=types.SimpleNamespace(gfile=files), errors=errors)
    # All 1000 buckets stay open at once; the usual soft limit is 1024 files.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = 4096 if hard == resource.RLIM_INFINITY else min(4096, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, enough), hard))
    shuffle.MAX_MEM_BUFFER_SIZE = min(shuffle.MAX_MEM_BUFFER_SIZE, MOST_IN_MEMORY)
    tfds.disable_progress_bar()
    as_it_is = mock.patch.object(tfds.features.Sequence, "encode_example", lambda feature, frames: frames)
    serialized = mock.patch.object(ExampleSerializer, "serialize_example", _serialized)
    with as_it_is, serialized, Progress("write", len(self.clips)) as self.bar:
      # Nothing is downloaded, but tfds makes a folder for it.
      self.download_and_prepare(download_dir=self.data_path.parent)
    with Progress("index", sum(map(len, self.parts.values())), unit="record") as self.bar:
      for split, info in self.info.splits.items():
        np.save(self.data_path / INDEX.format(split), self._index(split, info.num_examples))
    return Path(self.data_path)

  def _index(self, split: str, number: int) -> Int64[np.ndarray, "4 M"]:
    """The index of a split, read back from its records: in whatever order tfds has put them, it is about those."""
    index, records = np.zeros((4, number + 1), np.int64), self.as_data_source(split).data_source
    for i in range(number):
      record = values(records[i])
      frames, (rate,) = len(strings(record["frames"])), integers(record["sample_rate"], np.int32)
      index[:, i + 1] = frames, frames > 0, number_of_integers(record["waveform"]), rate
      self.bar.update()
    index[:2] = index[:2].cumsum(axis=1)
    return index

  _log_download_bytes = _log_download_done = lambda self: None  # tfds would speak of downloads


def _serialized(serializer: ExampleSerializer, example: Mapping[str, Any]) -> bytes:
  """A record as tf.train.Example: what tfds makes of it, without a Python number for each sample and four copies of frames."""
  large = ("frames", "waveform")
  specs, others = ({name: v for name, v in of.items() if name not in large} for of in (serializer.example_specs, example))  # fmt: skip
  rest = ExampleSerializer(specs).get_tf_example(others).features.SerializeToString()
  frames = [part for frame in example["frames"] for part in field(1, frame)]
  samples = list(varints(example["waveform"]))
  integers = field(3, *(field(1, *samples) if samples else []))
  values = {"frames": field(1, *frames), "waveform": integers}
  entries = [field(1, *field(1, name.encode()), *field(2, *value)) for name, value in values.items()]
  whole = b"".join(field(1, rest, *itertools.chain(*entries)))
  example["frames"].clear()  # tfds keeps the last record until all are in their files
  return whole


class _Info(tfds.core.DatasetInfo):
  def initialize_from_bucket(self) -> None:
    """Nothing: tfds would make a temporary folder, and not remove it."""
