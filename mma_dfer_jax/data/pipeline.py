"""From records to batches: which clip comes when, what becomes of it, who decodes it (grain).

The clip and the augmentation at a position of the global order follow from (seed, position) alone, so that neither
the number of hosts nor that of workers changes a batch, and the step number is all that a resumed run needs.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import functools
from typing import Any

import numpy as np

from mma_dfer_jax.data.data_set import follow_parent
from mma_dfer_jax.data.fbank import missing_spectrogram, spectrogram
from mma_dfer_jax.data.frames import Augment, augment, decode_frame, draw_augmentation, resize, sample_frames
from mma_dfer_jax.errors import UserError
from mma_dfer_jax.inputs import Inputs

Record = Mapping[str, Any]
Example = dict[str, Any]
Batch = dict[str, np.ndarray]


def train_example(
  record: Record,
  inputs: Inputs,
  ranges: Augment,
  rng: np.random.Generator,
  video: np.ndarray | None = None,
) -> Example:
  """16 frames drawn from their segments, with one augmentation for all of them, and the beginning of the sound.

  Args:
    record: as a data set holds it.
    video: (T, H, W, 3) uint8 in C order, which the frames are written to; None for a new one.
  Raises:
    UserError: if the clip cannot be read; it is never skipped.
  """
  size = inputs.image_size
  with _naming(record):
    frames = record["frames"]
    chosen = sample_frames(len(frames), train=True, rng=rng, num_segments=inputs.num_frames)
    first = decode_frame(frames[chosen[0]])
    height, width, _ = first.shape  # the box of all frames comes from the first
    augmentation = draw_augmentation(height, width, size, rng, ranges)

    def write(i: int, out: np.ndarray) -> None:
      augment(first if i == chosen[0] else decode_frame(frames[i]), augmentation, size, out)

    return _example(record, chosen, write, inputs, video)


def eval_example(record: Record, inputs: Inputs, video: np.ndarray | None = None) -> Example:
  """The middle frames of 16 segments, stretched to the model's size; nothing is drawn. `video` as in train_example."""
  with _naming(record):
    chosen = sample_frames(len(record["frames"]), train=False, num_segments=inputs.num_frames)

    def write(i: int, out: np.ndarray) -> None:
      resize(decode_frame(record["frames"][i]), inputs.image_size, out)

    return _example(record, chosen, write, inputs, video)


@contextlib.contextmanager
def _naming(record: Record) -> Iterator[None]:
  try:
    yield
  except ValueError as error:
    name = record["clip_id"].decode()
    raise UserError(
      f"clip {name} cannot be read: {error}; prepare the data again with --overwrite"
    ) from error


def _example(
  record: Record,
  chosen: np.ndarray,
  write: Callable[[int, np.ndarray], None],
  inputs: Inputs,
  video: np.ndarray | None,
) -> Example:
  """video (T, H, W, 3) uint8, spectrogram (F, K) float32, label int32, has_audio, mask, clip_id."""
  video = np.empty(inputs.video_shape, np.uint8) if video is None else video
  for place, i in enumerate(chosen.tolist()):
    if place and i == chosen[place - 1]:  # a short clip repeats its last frame
      video[place] = video[place - 1]
    else:
      write(i, video[place])
  if record["has_audio"]:
    waveform = np.asarray(record["waveform"], np.float32) / 32768.0  # as a 16-bit wav is read
    sound = spectrogram(waveform, int(record["sample_rate"]), *inputs.audio_shape)
  else:
    sound = missing_spectrogram(*inputs.audio_shape)
  return {
    "video": video,
    "spectrogram": sound,
    "label": np.int32(record["label"]),
    "has_audio": np.bool_(record["has_audio"]),
    "mask": np.bool_(True),
    "clip_id": record["clip_id"],
  }


@dataclasses.dataclass(frozen=True)
class TrainOrder:
  """One host's share of all updates: (position in the global order, record) by index.

  Every epoch is a fresh permutation without its last `len(records) % batch_size` clips (`drop_last` of the
  original); a host takes a contiguous block of each batch, so that the global batch is the same for any number.
  """

  records: Sequence[Record]
  seed: int
  batch_size: int
  num_epochs: int
  host: int = 0
  num_hosts: int = 1

  @property
  def steps_per_epoch(self) -> int:
    return len(self.records) // self.batch_size

  @property
  def share(self) -> int:
    """Clips of this host in a batch."""
    return self.batch_size // self.num_hosts

  def __len__(self) -> int:
    return self.num_epochs * self.steps_per_epoch * self.share

  def __getitem__(self, index: int) -> tuple[int, Record | None]:
    step, row = divmod(index, self.share)
    position = step * self.batch_size + self.host * self.share + row
    return position, self._record(position)

  def _record(self, position: int) -> Record | None:
    epoch, place = divmod(position, self.steps_per_epoch * self.batch_size)
    return _read(self.records, int(_permutation(len(self.records), self.seed, epoch)[place]))


def _read(records: Sequence[Record], index: int) -> Record:
  try:
    return records[index]
  except RuntimeError as error:  # array_record keeps checksums
    raise UserError(
      f"record {index} cannot be read: {error}; prepare the data again with --overwrite"
    ) from error


@functools.lru_cache(maxsize=4)
def _permutation(size: int, seed: int, epoch: int) -> np.ndarray:
  return np.random.default_rng([seed, epoch]).permutation(size)


class EvalOrder(TrainOrder):
  """One host's share of a split in its own order, filled up with None to whole batches."""

  @property
  def steps_per_epoch(self) -> int:
    return -(-len(self.records) // self.batch_size)

  def _record(self, position: int) -> Record | None:
    place = position % (self.steps_per_epoch * self.batch_size)
    return _read(self.records, place) if place < len(self.records) else None


def _drawn(
  inputs: Inputs, ranges: Augment, seed: int, position: int, record: Record, video: np.ndarray
) -> Example:
  return train_example(record, inputs, ranges, np.random.default_rng([seed, position]), video)


def _plain(inputs: Inputs, without: str, position: int, record: Record | None, video: np.ndarray) -> Example:
  """The example for an evaluation, one modality taken away; in a place without a record one with mask False."""
  del position
  if record is None:
    video[...] = 0
    empty = {"video": video, "spectrogram": np.zeros(inputs.audio_shape, np.float32), "clip_id": b""}
    return empty | {"label": np.int32(0), "has_audio": np.bool_(False), "mask": np.bool_(False)}
  example = eval_example(record, inputs, video)
  if without == "sound":
    example |= {"spectrogram": missing_spectrogram(*inputs.audio_shape), "has_audio": np.bool_(False)}
  elif without == "picture":
    video[...] = 0
  return example


@dataclasses.dataclass(frozen=True)
class _BatchesOf:
  """All batches of an order. Frames are written in place: 2.4 MB for each clip are not copied together later."""

  order: TrainOrder
  example: Callable[[int, Any, np.ndarray], Example]
  video_shape: tuple[int, ...]

  def __len__(self) -> int:
    return len(self.order) // self.order.share

  def __getitem__(self, step: int) -> Batch:
    share = self.order.share
    videos = np.empty((share, *self.video_shape), np.uint8)
    examples = [self.example(*self.order[step * share + row], video) for row, video in enumerate(videos)]
    rest = {key: np.stack([example[key] for example in examples]) for key in examples[0] if key != "video"}
    return {"video": videos} | rest


def train_batches(
  order: TrainOrder, inputs: Inputs, ranges: Augment, *, start_step: int, num_workers: int, prefetch: int
) -> contextlib.AbstractContextManager[Iterator[Batch]]:
  """Training batches of this host from `start_step` to the end of the last epoch.

  Args:
    num_workers: processes that decode; 0: threads of this one.
    prefetch: batches that each keeps ready.
  """
  example = functools.partial(_drawn, inputs, ranges, order.seed)
  return _loaded(_BatchesOf(order, example, inputs.video_shape), start_step, num_workers, prefetch)


def eval_batches(
  order: EvalOrder, inputs: Inputs, *, num_workers: int, prefetch: int, without: str = ""
) -> contextlib.AbstractContextManager[Iterator[Batch]]:
  """Every clip of a split once, as if the sound or the picture had been missing if `without` says so.

  The last batch is filled up with examples whose mask is False.
  """
  example = functools.partial(_plain, inputs, without)
  return _loaded(_BatchesOf(order, example, inputs.video_shape), 0, num_workers, prefetch)


@contextlib.contextmanager
def _loaded(
  batches: _BatchesOf, start_step: int, num_workers: int, prefetch: int
) -> Iterator[Iterator[Batch]]:
  import grain  # it imports JAX, which preparing data and asking for --help do without

  stream = grain.MapDataset.source(batches)[start_step:].to_iter_dataset(
    grain.ReadOptions(num_threads=prefetch, prefetch_buffer_size=prefetch)
  )
  if num_workers:
    options = grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=prefetch)
    stream = stream.mp_prefetch(options, follow_parent)
  iterator = iter(stream)
  try:
    yield iterator
  finally:
    if hasattr(iterator, "close"):
      iterator.close()  # else worker processes linger
