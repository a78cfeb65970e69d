"""Small films made for tests: any pictures and samples, at any times, coded without loss unless asked otherwise."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
import heapq
import itertools
from pathlib import Path
import struct
from typing import Any

import av
import numpy as np

from mma_dfer_jax.data.records import Clips
from mma_dfer_jax.data.source import ClipFiles

TICKS = 90_000  # a second
LOSSY = {"codec": "libx264", "pixels": "yuv420p", "sound_codec": "aac"}  # what most files hold


def write_film(
  path: Path, pictures: Iterable[np.ndarray], sound: np.ndarray | None = None, *, rate: int = 25,
  times: Sequence[float] | None = None, codec: str = "ffv1", pixels: str = "bgr0",
  options: dict[str, str] | None = None, container_options: dict[str, str] | None = None, sample_rate: int = 16_000,
  sound_codec: str = "pcm_s16le", layout: str = "mono", clock: Callable[[float], float] = lambda seconds: seconds,
) -> Path:  # fmt: skip
  """Writes a film, pictures and sound in turn.

  Args:
    path: its ending says the container.
    pictures: (H, W, 3) uint8 RGB.
    sound: (S,) int16, the first channel; the others hold noise.
    rate: pictures a second.
    times: of all pictures in seconds, instead of rate.
    codec, pixels, options: of the pictures.
    container_options: such as movflags.
    sample_rate, sound_codec, layout: of the sound.
    clock: the time stamp of a packet of sound, from the seconds of sound before it.
  """
  with av.open(str(path), "w", options=container_options or {}) as container:
    pictures = iter(pictures)
    first = next(pictures, None)
    packets = []
    if first is not None:
      stream = container.add_stream(codec, rate=rate, options=options or {})
      stream.width, stream.height, stream.pix_fmt = first.shape[1], first.shape[0], pixels
      base, at = Fraction(1, rate), itertools.count()
      if times is not None:
        base, at = Fraction(1, TICKS), iter([round(TICKS * time) for time in times])
        stream.codec_context.time_base = base
      packets.append(_pictures(stream, itertools.chain([first], pictures), pixels, at, base))
    if sound is not None:
      voice = container.add_stream(sound_codec, rate=sample_rate, layout=layout)
      packets.append(_sound(voice, sound, sample_rate, clock))
    for packet in heapq.merge(*packets, key=lambda packet: float((packet.dts or 0) * packet.time_base)):
      container.mux(packet)
  return path


def _pictures(stream, pictures, pixels, at, base) -> Iterator[av.Packet]:
  for picture in pictures:
    frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pixels)
    frame.pts, frame.time_base = next(at), base
    yield from stream.encode(frame)
  yield from stream.encode()


def _sound(stream, sound, sample_rate, clock) -> Iterator[av.Packet]:
  kind, layout = stream.codec_context.format, stream.layout
  noise = np.random.default_rng(5).integers(-9000, 9000, (layout.nb_channels - 1, len(sound)), dtype=np.int16)
  samples = np.concatenate([sound[None], noise])
  if kind.name.startswith("flt"):
    samples = samples.astype(np.float32) / 32768

  for start in [*range(0, len(sound), 1024), None]:  # None: the end
    frame = None
    if start is not None:
      part = samples[:, start : start + 1024]
      part = part if kind.is_planar else part.T.reshape(1, -1)
      frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(part), format=kind.name, layout=layout.name)
      frame.sample_rate, frame.pts, frame.time_base = sample_rate, start, Fraction(1, sample_rate)
    for packet in stream.encode(frame):
      seconds = float(packet.pts * packet.time_base)
      packet.pts = packet.dts = round(clock(seconds) / packet.time_base)
      yield packet


def noise(length: int, *, height: int = 48, width: int = 64, seed: int = 0) -> list[np.ndarray]:
  """Pictures that all differ, in squares of 8 pixels, so that coding with loss keeps much of them."""
  rng = np.random.default_rng(seed)
  small = rng.integers(0, 190, (length, height // 8, width // 8, 3), dtype=np.uint8)
  return list(small.repeat(8, axis=1).repeat(8, axis=2))


def hum(seconds: float, sample_rate: int = 16_000, *, seed: int = 0) -> np.ndarray:
  """Noise whose loudness changes, around 500: (S,) int16."""
  length = round(seconds * sample_rate)
  loudness = 3000 * (1.2 + np.sin(2 * np.pi * np.arange(length) / sample_rate / 0.7))
  return (np.random.default_rng(seed).uniform(-1, 1, length) * loudness + 500).astype(np.int16)


def turn(path: Path, matrix: Sequence[int] = (0, 1, -1, 0)) -> Path:
  """Changes how an .mp4 is shown; by default as filmed with an upright telephone, a quarter turn clockwise."""
  data, (a, b, c, d) = path.read_bytes(), (value << 16 for value in matrix)
  identity = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
  at = data.index(identity, data.index(b"tkhd"))  # the track's, not the movie's
  path.write_bytes(data[:at] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + data[at + 36 :])
  return path


def write_data_set(data_dir: Path, records: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> Path:
  """Writes records, with clip_id, label (class name), split and what `read_record` gives, as `prepare` does."""
  clips = []
  for i, record in enumerate(records):
    file = data_dir / f"{i}.npz"
    file.parent.mkdir(parents=True, exist_ok=True)
    frames = record["frames"]
    np.savez(
      file, lengths=[len(frame) for frame in frames],
      faces=record.get("faces", ()), waveform=record["waveform"], sample_rate=record["sample_rate"], face_share=record.get("face_share", np.nan),
    )  # fmt: skip
    clips.append(ClipFiles(record["clip_id"], "", record["label"], record["split"], decoded=file))
    clips[-1].pictures.write_bytes(b"".join(frames))
  recipe = {"landmarks": "drawn"} if all("faces" in record for record in records) else {}
  facts = {"class_order": "as given", "recipe": recipe, "left_out": (), "fingerprint": "f"}
  Clips(clips=clips, classes=classes, data_dir=data_dir, **facts).write()
  return data_dir
