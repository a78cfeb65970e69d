"""What pretraining reads: single frames, or stretches of sound, of all clips of a data set; their labels stay unread.

Which example stands at a position of the global order, and what is drawn for it, follow from (seed, position) alone, as in
training. Nothing here grows with the data set but a few bytes for each clip with sound: no list of frames, no permutation.
"""

from bisect import bisect_right
from collections.abc import Callable
import dataclasses
import functools
import itertools
import math
import threading
from typing import Any

from jaxtyping import Float32, UInt8
import numpy as np

from mma_dfer_jax.data import wire
from mma_dfer_jax.data.data_set import INDEX, DataSet
from mma_dfer_jax.data.fbank import samples_for, spectrogram, window_and_hop
from mma_dfer_jax.data.frames import CROP_ATTEMPTS, decode_frame, resize
from mma_dfer_jax.data.pipeline import AGAIN, Batch, permutation
from mma_dfer_jax.errors import UserError, count
from mma_dfer_jax.inputs import Inputs

# Bytes that a process keeps of what it has read and decoded. The demo's 15,000 frames take 420 MB of it, with the files
# that they come from 500 MB, and then cost 0.05 ms each instead of 0.2 (decoded again) or 0.8 (read again).
CACHE = 1 << 29
FEW = 1 << 14  # examples whose permutation is made: to encipher few takes a long walk, 3 ms for one of seven
STREAMS = {"image": "frames", "audio": "sound"}


@dataclasses.dataclass(frozen=True)
class Examples:
  """All examples of one kind: the frames of the clips of some splits, or the stretches of their sounds.

  Opening one, in a worker process too, maps the index that `prepare` has written; nothing is read before it is needed.
  """

  data_set: DataSet
  splits: tuple[str, ...]
  stream: str
  rows: int  # spectrogram rows in a stretch of sound

  def __getstate__(self) -> dict[str, Any]:
    return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

  @functools.cached_property
  def _indices(self) -> list[np.ndarray]:
    return [np.load(self.data_set.path / INDEX.format(split), mmap_mode="r") for split in self.splits]

  @functools.cached_property
  def _ends(self) -> list[np.ndarray]:
    """For each split: 0, then the number of examples in the clips up to each one."""
    if self.stream == "image":
      return [index[0] for index in self._indices]
    # How many stretches of so many rows, of 10 ms each, each sound begins; 0 where there is none.
    begun = (-(-100 * of[2] // np.maximum(of[3] * self.rows, 1)) * (of[3] > 0) for of in self._indices)
    return list(map(np.cumsum, begun))

  @functools.cached_property
  def _totals(self) -> list[int]:
    return [0, *itertools.accumulate(int(ends[-1]) for ends in self._ends)]

  @functools.cached_property
  def _sources(self) -> list[Any]:
    return [self.data_set.coded_records(split) for split in self.splits]

  @functools.cached_property
  def _kept(self) -> "_Cache":
    return _Cache(CACHE)

  def __len__(self) -> int:
    return self._totals[-1]

  @property
  def clips(self) -> int:
    """How many clips the examples come from."""
    if self.stream == "image":
      return sum(int(index[1, -1]) for index in self._indices)
    return sum(int(np.count_nonzero(index[3])) for index in self._indices)

  def find(self, example: int) -> tuple[int, int, int]:
    """Of an example: the number of its split, of its record there, and which frame or stretch of the record it is."""
    split = bisect_right(self._totals, example) - 1
    ends, place = self._ends[split], example - self._totals[split]
    record = int(np.searchsorted(ends, place, "right")) - 1
    return split, record, place - int(ends[record])

  def picture(self, example: int) -> UInt8[np.ndarray, "H W 3"]:
    """The pixels of a frame; of small data sets they are kept."""
    if (pixels := self._kept.get(example)) is not None:
      return pixels
    split, record, place = self.find(example)
    pixels = self._read(
      split, record, lambda values: decode_frame(bytes(wire.strings(values["frames"])[place]))
    )
    if len(self) * pixels.nbytes < CACHE:  # else it is better filled with coded ones, as they are smaller
      self._kept.put(example, pixels, pixels.nbytes)
    return pixels

  def sound(self, example: int) -> tuple[np.ndarray, int, int]:
    """(S,) int16 samples of a whole clip, its sample rate in Hz, and which stretch of it the example is."""
    split, record, place = self.find(example)
    if (found := self._kept.get((split, record))) is None:
      found = self._read(split, record, lambda values: (
        wire.integers(values["waveform"], np.int16), int(wire.integers(values["sample_rate"], np.int32)[0])))  # fmt: skip
      self._kept.put((split, record), found, found[0].nbytes)
    return *found, place

  def _read(self, split: int, record: int, take: Callable[[dict[str, memoryview]], Any]) -> Any:
    """What `take` makes of the values of a record."""
    name = f"record {record} of {self.splits[split]}"
    try:
      values = self._kept.get((split, record, "record")) if self.stream == "image" else None
      if values is None:
        values = wire.values(self._sources[split][record])
        if self.stream == "image":
          frames = memoryview(bytes(values["frames"]))  # without the sound
          values = {"clip_id": memoryview(bytes(values["clip_id"])), "frames": frames}
          self._kept.put((split, record, "record"), values, len(frames))
      name = f"clip {str(wire.strings(values['clip_id'])[0], 'utf-8')}"
      return take(values)
    except (RuntimeError, ValueError, LookupError) as error:  # array_record keeps checksums
      raise UserError(f"{name} cannot be read: {error}; {AGAIN}") from error


class _Cache:
  """Keeps what it is given until it is full. In a pass over everything what was used last is not what is used next."""

  def __init__(self, size: int):
    self._left, self._found, self._lock = size, dict[Any, Any](), threading.Lock()
    self.get = self._found.get

  def put(self, key: Any, value: Any, size: int) -> None:
    with self._lock:
      if size <= self._left and key not in self._found:
        self._found[key] = value
        self._left -= size


def open_examples(data_set: DataSet, splits: str, stream: str, rows: int = Inputs.audio_shape[0]) -> Examples:
  """Opens every frame of every clip of some splits (stream "image"), or every sound ("audio"), without reading them.

  Args:
    splits: "train", or several, "fold1+fold2".
    rows: of the spectrogram; a longer sound counts once for each stretch of so many rows of 10 ms that it begins.
  Raises:
    UserError: if there is no such split, none of what is asked for is in it, or the data set has no index.
  """
  names = tuple(splits.split("+"))
  if missing := [name for name in names if name not in data_set.splits]:
    raise UserError(f"{data_set.path} has no split {', '.join(missing)}; it has {', '.join(data_set.splits)}")
  if not all((data_set.path / INDEX.format(name)).exists() for name in names):
    raise UserError(f"{data_set.path} was prepared before pretraining could read it, and has no index of its frames and "
                    "sounds; prepare it again with --overwrite")  # fmt: skip
  examples = Examples(data_set, names, stream, rows)
  if not len(examples):
    clips = count(sum(data_set.splits[name] for name in names), "clip")
    other = STREAMS["audio" if stream == "image" else "image"]
    raise UserError(f"{data_set.path} has no {STREAMS[stream]} to pretrain on, only {other}, in the {clips} of {splits}; "
                    f"pretrain the other encoder, or prepare files with {STREAMS[stream]}")  # fmt: skip
  return examples


@dataclasses.dataclass(frozen=True)
class PretrainOrder:
  """Which examples one host takes in which step. Each pass has every example once, in an order of its own.

  A host takes a contiguous block of each batch, so that the global batch is the same for any number of hosts; batches run on
  from one pass into the next.
  """

  examples: Examples
  seed: int
  batch_size: int
  num_steps: int
  host: int = 0
  num_hosts: int = 1

  @property
  def share(self) -> int:
    """Examples of this host in a batch."""
    return self.batch_size // self.num_hosts

  def positions(self, step: int) -> range:
    """Of this host's examples of a batch in the global order."""
    start = step * self.batch_size + self.host * self.share
    return range(start, start + self.share)

  def example_at(self, position: int) -> int:
    """Which example stands at a position of the global order."""
    import grain  # it imports JAX

    number = len(self.examples)
    turn, place = divmod(position, number)
    if number <= FEW:
      return int(permutation(number, self.seed, turn)[place])
    # Enciphers the place (SIMON, of as many bits as needed, 16 at least): a permutation of which nothing is held.
    return grain.experimental.index_shuffle(
      place, max_index=number - 1, seed=_seed_of(self.seed, turn), rounds=4
    )

  def rng_at(self, position: int) -> np.random.Generator:
    """What draws for the example at a position."""
    return np.random.default_rng([self.seed, position])


@functools.lru_cache(maxsize=16)
def _seed_of(seed: int, turn: int) -> int:
  return int(np.random.SeedSequence([seed, turn]).generate_state(1)[0])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Crops:
  """Ranges that the part of a frame is drawn from: MAE's augmentation. Source: arXiv 2111.06377, section 4."""

  scale: tuple[float, float] = (0.2, 1.0)  # share of the frame's area
  ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width / height, equally likely on a logarithmic scale
  flip: float = 0.5  # probability of mirroring


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sounds:
  """What is drawn for a sound: AudioMAE's augmentation. Source: arXiv 2207.06405."""

  roll: bool = True  # by a random shift; what leaves at the end comes back at the start
  gain: bool = True  # times Beta(10, 10) + 1/2


def draw_crop(
  height: int, width: int, crops: Crops, rng: np.random.Generator
) -> tuple[tuple[slice, slice], bool]:
  """Rows and columns of a crop, and whether it is mirrored. If none fits in 10 attempts: the largest in the middle that may be.

  Source: torchvision's RandomResizedCrop, which MAE uses.
  """
  low, most = crops.ratio
  shares = rng.uniform(*crops.scale, CROP_ATTEMPTS)
  lean = rng.uniform(math.log(low), math.log(most), CROP_ATTEMPTS)
  left, top, mirror = rng.random(3).tolist()
  for share, ratio in zip(shares.tolist(), lean.tolist(), strict=True):
    side, stretch = math.sqrt(share * height * width), math.exp(ratio / 2)
    wide, high = round(side * stretch), round(side / stretch)
    if 0 < wide <= width and 0 < high <= height:
      break
  else:
    wide, high = min(width, max(1, round(height * most))), min(height, max(1, round(width / low)))
    left = top = 0.5
  x, y = int(left * (width - wide + 1)), int(top * (height - high + 1))
  return (slice(y, y + high), slice(x, x + wide)), mirror < crops.flip


def make_frames(order: PretrainOrder, inputs: Inputs, crops: Crops | None, step: int) -> Batch:
  """Batch `step` of frames: video (share, 1, S, S, 3) uint8, each a crop brought to the model's size (bicubic).

  With crops=None it is the whole picture, and nothing is drawn.
  """
  size = inputs.image_size
  videos = np.empty((order.share, 1, size, size, 3), np.uint8)
  for out, position in zip(videos, order.positions(step), strict=True):
    pixels, flip = order.examples.picture(order.example_at(position)), False
    if crops is not None:
      height, width, _ = pixels.shape
      box, flip = draw_crop(height, width, crops, order.rng_at(position))
      pixels = pixels[box]
    # The bits of PIL's antialiased bicubic in a quarter of its time: 0.03 ms for 80 px -> 64 px, 0.9 ms for 450 -> 224.
    resize(pixels, size, out[0], flip=flip, cubic=True)
  return {"video": videos}


def make_sounds(order: PretrainOrder, inputs: Inputs, sounds: Sounds | None, step: int) -> Batch:
  """Batch `step` of sounds: spectrogram (share, F, K) float32, normalised as in training.

  Of a longer sound, a stretch that begins anywhere; with sounds=None the stretches one after the other, and nothing is drawn.
  """
  spectrograms = np.empty((order.share, *inputs.audio_shape), np.float32)
  for out, position in zip(spectrograms, order.positions(step), strict=True):
    samples, rate, stretch = order.examples.sound(order.example_at(position))
    rng = None if sounds is None else order.rng_at(position)
    out[...] = _make_sound(samples, rate, stretch, inputs, sounds or Sounds(roll=False, gain=False), rng)
  return {"spectrogram": spectrograms}


def _make_sound(
  samples: np.ndarray, rate: int, stretch: int, inputs: Inputs, sounds: Sounds, rng: Any
) -> Float32[np.ndarray, "F K"]:
  rows = inputs.audio_shape[0]
  needed = samples_for(rows, rate)
  spare = max(len(samples) - needed, 0)
  begin = stretch * rows * window_and_hop(rate)[1]
  start = min(begin, spare) if rng is None else int(rng.integers(spare + 1))
  waveform = samples[start : start + needed].astype(np.float32) / 32768  # as a 16-bit wav is read
  if rng is not None and sounds.roll:
    waveform = np.roll(waveform, rng.integers(len(waveform)))
  if rng is not None and sounds.gain:
    waveform *= np.float32(rng.beta(10, 10) + 0.5)
  return spectrogram(waveform, rate, *inputs.audio_shape)
