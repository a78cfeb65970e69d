"""Which channel of a sound is heard, and what there is to say of it."""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Int16
import numpy as np

CHANNELS = ("first", "loudest", "centre", "mix")
# Names of channels in the usual order, where a file does not say which they are.
USUAL = {1: ("FC",), 2: ("FL", "FR"), 6: ("FL", "FR", "FC", "LFE", "BL", "BR"), 8: ("FL", "FR", "FC", "LFE", "BL", "BR", "SL", "SR")}  # fmt: skip
BASS = "LFE"  # a channel for effects alone, which carries no voice
MOST_PLANES = 7  # of a sound: PyAV reads past the end of more, which ends the process
SILENT = 33  # of 32768, 60 dB below full scale: quieter than any room, louder than coded silence
CLIPPED = 0.001  # share of samples at full scale from where on a recording was too loud


class Heard:
  """What the channels of a sound are like, collected piece by piece while it is decoded."""

  def __init__(self, channel: str = "first"):
    self.channel = channel
    self.names: tuple[str, ...] = ()
    self.peaks = np.zeros(0, np.int64)  # of 32768
    self.energies = np.zeros(0)
    self.samples = self.at_full_scale = 0  # of the channel that is taken

  def add(self, names: Sequence[str], pcm: Int16[np.ndarray, "C S"], taken: Int16[np.ndarray, "S"]) -> None:
    if len(names) > len(self.names):  # a recording may gain channels
      more = (0, len(names) - len(self.names))
      self.names, self.peaks = tuple(names), np.pad(self.peaks, more)
      self.energies = np.pad(self.energies, more)
    if not pcm.size:
      return
    extremes = np.maximum(pcm.max(axis=1).astype(np.int64), -pcm.min(axis=1).astype(np.int64))
    self.peaks[: len(pcm)] = np.maximum(self.peaks[: len(pcm)], extremes)
    self.energies[: len(pcm)] += np.square(pcm, dtype=np.float32).sum(axis=1)
    self.samples += len(taken)
    self.at_full_scale += int(((taken == 32767) | (taken == -32768)).sum())

  @property
  def loudest(self) -> int:
    """The channel with the most energy, but for that of effects."""
    energies = [0.0 if name == BASS else float(e) for name, e in zip(self.names, self.energies, strict=True)]
    return int(np.argmax(energies)) if energies else 0

  def notes(self) -> tuple[str, ...]:
    """What a person should know of it; of different files alike, so that they can be counted."""
    notes = []
    if self.channel == "first" and len(self.names) > 1 and self.peaks[0] < SILENT <= self.peaks.max():
      others = [name for name, peak in zip(self.names, self.peaks, strict=True) if peak >= SILENT]
      notes.append(f"the first channel of the sound ({self.names[0]}) is silent, {', '.join(others)} "
                   f"{'is' if len(others) == 1 else 'are'} not: choose with --channel=loudest, centre or mix")  # fmt: skip
    if self.channel == "centre" and "FC" not in self.names and len(self.names) > 1:
      notes.append(f"the sound has no centre channel ({', '.join(self.names)}): the first was taken")
    if self.at_full_scale > CLIPPED * self.samples > 0:
      notes.append(f"the sound is clipped: more than {CLIPPED:.1%} of its samples are at full scale")
    return tuple(notes)


def names_of(known: Sequence[str], number: int) -> tuple[str, ...]:
  """Names of all channels, from those that FFmpeg knows: "NONE" where it does not."""
  if len(known) == number and "NONE" not in known:
    return tuple(known)
  return USUAL.get(number) or tuple(str(k + 1) for k in range(number))


def take(
  pcm: Int16[np.ndarray, "C S"], names: Sequence[str], channel: str, loudest: int
) -> Int16[np.ndarray, "S"]:
  """One channel, or the mean of all but that of effects."""
  if channel == "mix" and len(pcm) > 1:
    voices = [row for row, name in zip(pcm, names, strict=True) if name != BASS] or list(pcm)
    return np.rint(np.mean(voices, axis=0)).astype(np.int16)
  chosen = {"loudest": loudest, "centre": names.index("FC") if "FC" in names else 0}.get(channel, 0)
  return pcm[min(chosen, len(pcm) - 1)]


def by_channel(frame: Any) -> np.ndarray:
  """(C, S): the samples of each channel."""
  number = frame.layout.nb_channels
  if frame.format.is_planar and number > MOST_PLANES:
    import av  # not for --help

    packed = av.AudioResampler(frame.format.packed, frame.layout, frame.sample_rate)
    return np.concatenate([one.to_ndarray() for one in packed.resample(frame) + packed.resample(None)], 1).reshape(-1, number).T  # fmt: skip
  samples = frame.to_ndarray()
  return samples if frame.format.is_planar else samples.reshape(-1, number).T
