"""From records to batches: which clip comes when, what becomes of it, who decodes it (grain).

The clip and the augmentation at a position of the global order follow from (seed, position) alone, so that neither
the number of hosts nor that of workers changes a batch, and the step number is all that a resumed run needs.
"""

import atexit
from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import functools
import gc
from typing import Any

import numpy as np

from mma_dfer_jax.data.augment import draw_effects
from mma_dfer_jax.data.data_set import NO_LANDMARKS, start_worker
from mma_dfer_jax.data.fbank import missing_spectrogram, spectrogram
from mma_dfer_jax.data.frames import (
  Augment,
  augment,
  choose_frames,
  decode_frame,
  draw_augmentation,
  frame_size,
  resize,
)
from mma_dfer_jax.data.landmarks import POINTS, STORED, as_shown
from mma_dfer_jax.errors import UserError
from mma_dfer_jax.inputs import Inputs
from mma_dfer_jax.progress import watched

Record = Mapping[str, Any]
Example = dict[str, Any]
Batch = dict[str, np.ndarray]
LEAST_DEVIATION = 1e-3  # of targets, as shares of the frame: half of what float16 rounds
AGAIN = "prepare the data again with --overwrite"


def make_example(
  record: Record, inputs: Inputs, video: np.ndarray | None = None, *, rng: np.random.Generator | None = None,
  ranges: Augment | None = None, view: int | None = None, faces: bool = False,
) -> Example:  # fmt: skip
  """A clip as the model sees it: video (T, H, W, 3) uint8, spectrogram (F, K) float32, label, has_audio, mask, clip_id.

  If the model takes points of faces, or with `faces`, also landmarks and face_box, as `landmarks.as_shown`.

  Args:
    record: as a data set holds it; frames may be pixels (H, W, 3) uint8, too.
    video: (T, H, W, 3) uint8 in C order, which the frames are written to; None for a new one.
    rng: for training: draws a frame of each segment, and one augmentation for all of them, within `ranges`, or else the
      paper's. None: the segments' middle frames, stretched to the model's size.
    view: which of `inputs.test_views` parts of the clip; None: the middle.
  Raises:
    UserError: if the clip cannot be read; it is never skipped.
  """
  video = np.empty(inputs.video_shape, np.uint8) if video is None else video
  size, frames = inputs.image_size, record["frames"]
  augmentation: Any = None
  effects: Any = None
  sizes: list[tuple[int, int]] = []  # of the chosen frames
  if (faces := faces or inputs.points > 0) and "faces" not in record:
    raise UserError(NO_LANDMARKS)
  try:
    chosen = _chosen(record, inputs, rng, view)
    for place, i in enumerate(chosen.tolist()):
      if place and i == chosen[place - 1]:  # a short clip repeats its last frame
        video[place] = video[place - 1]
        sizes += sizes[-1:]
        continue
      pixels = frames[i] if isinstance(frames[i], np.ndarray) else decode_frame(frames[i])
      sizes.append(pixels.shape[:2])
      if rng is None:
        resize(pixels, size, video[place])
        continue
      if augmentation is None:  # the box of all frames comes from the first
        height, width, _ = pixels.shape
        augmentation = draw_augmentation(height, width, size, rng, ranges or Augment())
        effects = draw_effects(size, rng, ranges or Augment())
      augment(pixels, augmentation, size, video[place])
      effects(video[place])
    if record["has_audio"]:
      waveform = np.asarray(record["waveform"], np.float32) / 32768.0  # as a 16-bit wav is read
      sound = spectrogram(waveform, int(record["sample_rate"]), *inputs.audio_shape)
    else:
      sound = missing_spectrogram(*inputs.audio_shape)
  except UserError:
    raise
  except ValueError as error:
    name = record["clip_id"].decode()
    raise UserError(f"clip {name} cannot be read: {error}; {AGAIN}") from error
  votes = {"votes": np.asarray(record["votes"], np.uint8)} if "votes" in record else {}
  of_faces = as_shown(np.frombuffer(record["faces"], STORED)[chosen], sizes, augmentation) if faces else {}
  return {"video": video, "spectrogram": sound, "label": np.int32(record["label"]), "clip_id": record["clip_id"],
          "has_audio": np.bool_(record["has_audio"]), "mask": np.bool_(True), **votes, **of_faces}  # fmt: skip


def _chosen(record: Record, inputs: Inputs, rng: np.random.Generator | None, view: int | None) -> np.ndarray:
  """Numbers of the frames that stand for a clip."""
  if inputs.frame_choice == "time" and "times" not in record:
    raise UserError(f"frame_choice=time needs data that keep the times of frames: {AGAIN} and --keep_times")
  return choose_frames(inputs, len(record["frames"]), record.get("times"), rng=rng, view=view)


def mean_faces(
  order: "TrainOrder", inputs: Inputs, ranges: Augment
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Mean and deviation (at least 1e-3) of boxes (4,) and points (p, 2) that are seen in the first epoch's training clips.

  They are those that `make_batch` makes; no frame is decoded for it.
  """
  number, found = order.steps_per_epoch * order.batch_size, []
  for position in watched(range(number), "look at faces", number, leave=False):
    record, rng = order.records[order.clip_at(position)], np.random.default_rng([order.seed, position])
    chosen = _chosen(record, inputs, rng, None)
    sizes = [frame_size(record["frames"][i]) for i in chosen.tolist()]
    augmentation = draw_augmentation(*sizes[0], inputs.image_size, rng, ranges)
    found.append(as_shown(np.frombuffer(record["faces"], STORED)[chosen], sizes, augmentation))
  box, points = (np.concatenate([one[name] for one in found]) for name in ("face_box", "landmarks"))
  result = {}
  for name, values in (("box", box[:, None]), ("landmarks", points)):
    known, values = values[..., -1:], values[..., :-1].astype(np.float64)
    count = known.sum(axis=0).clip(1)
    mean = (values * known).sum(axis=0) / count
    variance = ((values - mean) ** 2 * known).sum(axis=0) / count
    result[name] = mean.squeeze(), np.sqrt(variance).clip(LEAST_DEVIATION).squeeze()
  return result


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
  # Of the records; if given, a class is drawn for each place, and then one of its clips.
  labels: tuple[int, ...] = ()

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
    clip = self.clip_at(position)
    try:
      return position, self.records[clip] if clip < len(self.records) else None
    except RuntimeError as error:  # array_record keeps checksums
      raise UserError(f"record {clip} cannot be read: {error}; {AGAIN}") from error

  def clip_at(self, position: int) -> int:
    """Which record stands at a position of the global order."""
    epoch, place = divmod(position, self.steps_per_epoch * self.batch_size)
    if self.labels:
      return int(balanced(self.labels, self.seed, epoch)[place])
    return int(permutation(len(self.records), self.seed, epoch)[place])


@functools.lru_cache(maxsize=4)
def permutation(size: int, seed: int, epoch: int) -> np.ndarray:
  """The order of one epoch; the last few are kept."""
  return np.random.default_rng([seed, epoch]).permutation(size)


@functools.lru_cache(maxsize=4)
def balanced(labels: tuple[int, ...], seed: int, epoch: int) -> np.ndarray:
  """As many clips as there are, each of a class that is drawn evenly; the last few epochs are kept."""
  rng, of_clips = np.random.default_rng([seed, epoch, 1]), np.array(labels)
  of_classes = [np.flatnonzero(of_clips == label) for label in np.unique(of_clips)]
  classes, shares = rng.integers(len(of_classes), size=len(labels)), rng.random(len(labels))
  drawn = ((of_classes[one], share) for one, share in zip(classes, shares, strict=True))
  return np.array([clips[int(share * len(clips))] for clips, share in drawn])


class EvalOrder(TrainOrder):
  """One host's share of a split in its own order, filled up with None to whole batches."""

  @property
  def steps_per_epoch(self) -> int:
    return -(-len(self.records) // self.batch_size)

  def clip_at(self, position: int) -> int:
    return position % (self.steps_per_epoch * self.batch_size)


def make_batch(order: TrainOrder, inputs: Inputs, ranges: Augment | None, how: Any, step: int) -> Batch:
  """Batch `step` of an order; `how` are the last four arguments of `load_batches`.

  Frames are written in place: 2.4 MB for each clip are not copied together later.
  """
  without, view, votes, faces = how
  videos = np.zeros((order.share, *inputs.video_shape), np.uint8)
  nothing = {"spectrogram": np.zeros(inputs.audio_shape, np.float32), "label": np.int32(0), "clip_id": b"",
             "has_audio": np.bool_(False), "mask": np.bool_(False)}  # fmt: skip
  if faces := faces or inputs.points > 0:
    shapes = {"landmarks": (inputs.num_frames, POINTS, 3), "face_box": (inputs.num_frames, 5)}
    nothing |= {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
  examples: list[Example] = []
  for row, video in enumerate(videos):
    position, record = order[step * order.share + row]
    if record is None:
      examples.append(nothing)
      continue
    rng = np.random.default_rng([order.seed, position]) if ranges is not None else None
    example = make_example(record, inputs, video, rng=rng, ranges=ranges, view=view, faces=faces)
    if without == "sound":
      example |= {"spectrogram": missing_spectrogram(*inputs.audio_shape), "has_audio": np.bool_(False)}
    if without == "picture" and faces:
      example |= {name: nothing[name] for name in shapes}
    examples.append(example)
  if without == "picture":
    videos[...] = 0
  if votes:
    nothing["votes"] = np.zeros(votes, np.uint8)
  rest = {key: np.stack([example.get(key, nothing[key]) for example in examples]) for key in nothing}
  return {"video": videos} | rest


@contextlib.contextmanager
def load_batches(
  order: TrainOrder, inputs: Inputs, ranges: Augment | None = None, *, num_workers: int, prefetch: int,
  start_step: int = 0, without: str = "", view: int | None = None, votes: int = 0, faces: bool = False,
) -> Iterator[Iterator[Batch]]:  # fmt: skip
  """Batches of this host from `start_step` to the end of the last epoch.

  Args:
    order: training batches, or a split's clips; its last batch is filled up with examples whose mask is False.
    ranges: of the augmentation in training; None: nothing is drawn.
    num_workers: processes that decode; 0: threads of this one.
    prefetch: batches that each keeps ready.
    without: "sound" or "picture": as if that had been missing.
    view: as for make_example.
    votes: classes, if batches bring votes (B, C) uint8 of people; 0: they do not.
    faces: whether batches have the targets of tasks about faces, too.
  """
  make = functools.partial(make_batch, order, inputs, ranges, (without, view, votes, faces))
  end, how = len(order) // order.share, {"num_workers": num_workers, "prefetch": prefetch}
  with stream_batches(make, start_step, end, **how) as batches:
    yield batches


@contextlib.contextmanager
def stream_batches(
  make: Callable[[int], Batch], start_step: int, num_steps: int, *, num_workers: int, prefetch: int
) -> Iterator[Iterator[Batch]]:
  """The batches that `make` gives for the steps from `start_step` to `num_steps`, in order; the rest as for load_batches."""
  import grain  # it imports JAX, which preparing data and asking for --help do without

  batches = grain.MapDataset.range(start_step, num_steps).map(make)
  threads = grain.ReadOptions(num_threads=prefetch, prefetch_buffer_size=prefetch)
  stream = batches.to_iter_dataset(threads)
  if num_workers:
    atexit.unregister(free_shared_memory)
    atexit.register(free_shared_memory)  # after those of multiprocessing, so that it runs before them
    options = grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=prefetch)
    stream = stream.mp_prefetch(options, start_worker)
  iterator = iter(stream)
  try:
    yield iterator
  finally:
    if hasattr(iterator, "close"):
      iterator.close()  # else worker processes linger


def free_shared_memory() -> None:
  """Frees what batches of worker processes lay in. Grain does so in a thread, which the end of this process would cut short."""
  with contextlib.suppress(ImportError, AttributeError):  # no public door; without it Python only warns
    from grain._src.python.ipc.shared_memory_array import SharedMemoryArray

    gc.collect()  # JAX may hold the last batches
    threads, SharedMemoryArray._del_thread_pool = SharedMemoryArray._del_thread_pool, None
    if threads:
      threads.close()
      threads.join()
