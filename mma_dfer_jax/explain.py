"""Why an engine answers as it does: what its answer loses without a frame, a second of sound, a whole stream."""

from collections.abc import Iterator
import dataclasses
from typing import TYPE_CHECKING, Any

from jaxtyping import Float, UInt8
import numpy as np

from mma_dfer_jax.data.fbank import missing_spectrogram
from mma_dfer_jax.engines.engine import Engine

if TYPE_CHECKING:  # Matplotlib takes a second to import
  from matplotlib.figure import Figure

ROWS = 100  # of a spectrogram, in a second
STREAMS = {"image": "picture", "audio": "sound"}


@dataclasses.dataclass(frozen=True)
class Explanation:
  """What each part adds to the log-odds log(p / (1 - p)) of a class: those of the whole clip less those without the part.

  Above 0 a part speaks for the class, below 0 against it. The parts do not add up to the whole: they act together.
  """

  label: str  # the class that is explained: the most probable one
  probability: float
  frames: tuple[float, ...]  # each of the T frames, replaced by the one before it (the first by the second)
  # What the picture adds if all frames are this one. Frames are much alike: one is hardly missed that says all by itself.
  frames_alone: tuple[float, ...]
  seconds_of_sound: tuple[float, ...]  # each second, replaced by the constant that stands for a missing sound
  streams: dict[str, float]  # "picture" and "sound", as `evaluate --without` takes them away
  gates: dict[
    str, tuple[float, ...]
  ]  # how much of the other stream each layer lets in, tanh of Fusion Bottleneck's gates
  # Of a layer pool, by stream: weights of the layers, mean over frames, and tanh of the gate, the share of that mean in the
  # summary; and the streams' factors.
  layers: dict[str, tuple[float, ...]]
  layer_gates: dict[str, float]
  factors: dict[str, float]


def explain(
  engine: Engine, video: UInt8[np.ndarray, "T H W 3"], spectrogram: Float[np.ndarray, "F K"], *landmarks: np.ndarray,
  label: str | None = None, batch_size: int = 1,
) -> Explanation:  # fmt: skip
  """Answers a clip again and again, each time without one part of it: 3 + 2 T + seconds of sound times.

  Args:
    video, spectrogram, landmarks: as `read_arrays` gives them, or `Sample.arrays`; points stay as they are but for "picture".
    label: a class to explain; None: the most probable one.
    batch_size: clips computed at once; the size that predicted compiles nothing.
  """
  names, clips = zip(*_variants(engine, video, spectrogram, *landmarks), strict=True)
  clips += clips[-1:] * (-len(clips) % batch_size)
  logits = np.concatenate([
    engine(*map(np.stack, zip(*clips[start : start + batch_size], strict=True)))
    for start in range(0, len(clips), batch_size)
  ]).astype(np.float64) / engine.about.temperature  # fmt: skip
  classes = list(engine.about.classes)
  chosen = int(logits[0].argmax()) if label is None else classes.index(label)
  others = np.delete(logits, chosen, axis=1)
  highest = others.max(axis=1, initial=-np.inf, keepdims=True)
  odds = logits[:, chosen] - highest[:, 0] - np.log(np.exp(others - highest).sum(axis=1))
  adds = {name: tuple((odds[0] - odds[: len(names)][np.array(names) == name]).tolist()) for name in names}
  streams = {name: adds[name][0] for name in STREAMS.values() if name in adds}
  alone = tuple(streams["picture"] - without for without in adds.get("alone", ()))
  said = engine.outputs(*(np.stack([one] * batch_size) for one in (video, spectrogram)))
  there = {name: words for name, words in STREAMS.items() if f"layers_of_{name}" in said}
  weights = {words: np.atleast_2d(said[f"layers_of_{name}"][0]).mean(axis=0) for name, words in there.items()}
  return Explanation(
    classes[chosen], float(1 / (1 + np.exp(-odds[0]))), adds.get("frame", ()), alone, adds.get("second", ()), streams,
    engine.gates(), {words: tuple(of.tolist()) for words, of in weights.items()},
    {words: float(said[f"layer_gate_of_{name}"][0]) for name, words in there.items()},
    dict(zip(STREAMS.values(), said["streams"][0].tolist(), strict=True)) if "streams" in said else {},
  )  # fmt: skip


def _variants(
  engine: Engine, video: np.ndarray, spectrogram: np.ndarray, *landmarks: np.ndarray
) -> Iterator[tuple[str, tuple[np.ndarray, ...]]]:
  """The clip, then without each part, by what is missing."""
  missing = missing_spectrogram(*spectrogram.shape).astype(spectrogram.dtype)
  heard = (
    int((spectrogram != missing).any(axis=1).nonzero()[0].max(initial=-1)) + 1
  )  # rows; the rest is padding
  yield "", (video, spectrogram, *landmarks)
  if "image" in engine.about.streams:
    for place in range(len(video)):
      changed = video.copy()
      changed[place] = video[place - 1 if place else min(1, len(video) - 1)]
      yield "frame", (changed, spectrogram, *landmarks)
      yield "alone", (video[place : place + 1].repeat(len(video), axis=0), spectrogram, *landmarks)
    yield "picture", (np.zeros_like(video), spectrogram, *map(np.zeros_like, landmarks))
  if "audio" in engine.about.streams and heard:
    for start in range(0, heard, ROWS):
      changed = spectrogram.copy()
      changed[start : start + ROWS] = missing[start : start + ROWS]
      yield "second", (video, changed, *landmarks)
    yield "sound", (video, missing, *landmarks)


def draw(
  found: Explanation, video: UInt8[np.ndarray, "T H W 3"], spectrogram: Float[np.ndarray, "F K"], title: str
) -> "Figure":
  """Frames and spectrogram, with bars below each frame and each second; beside them the streams and the gates."""
  from matplotlib.figure import Figure
  from matplotlib.ticker import MaxNLocator

  figure = Figure(figsize=(13, 6), layout="constrained")
  halves: Any = figure.subfigures(1, 2, width_ratios=(4, 1))
  clip, beside = halves
  strip, frames, sound, seconds = clip.subplots(4, height_ratios=(0.9, 2, 1.6, 2))
  columns = beside.subplots(1 + bool(found.gates) + bool(found.layers))
  strip.imshow(np.concatenate(list(video), axis=1), extent=(0.5, len(video) + 0.5, 0, 1), aspect="auto")
  strip.set_axis_off()
  numbers = np.arange(1, len(found.frames) + 1)
  frames.bar(numbers, found.frames_alone, 0.9, color="0.85", label="if all frames were this one")
  _draw_bars(frames, numbers, found.frames, 0.6)
  frames.legend(loc="lower right", frameon=False)
  frames.xaxis.set_major_locator(MaxNLocator(integer=True))
  frames.set(xlim=(0.5, len(video) + 0.5), xlabel="frame", ylabel="added log-odds")
  strip.set_xlim(frames.get_xlim())
  length = len(spectrogram) / ROWS
  sound.imshow(spectrogram.T, origin="lower", extent=(0, length, 0, 1), aspect="auto", cmap="magma")
  sound.set(yticks=[], ylabel="spectrogram")
  _draw_bars(seconds, np.arange(len(found.seconds_of_sound)) + 0.5, found.seconds_of_sound, 0.95)
  seconds.set(xlim=(0, length), xlabel="seconds of sound", ylabel="added log-odds")
  bars = [
    0.0,
    *found.frames,
    *found.frames_alone,
    *found.seconds_of_sound,
  ]  # on one scale, or small ones would look large
  for axes in (frames, seconds):
    axes.set_ylim(1.1 * min(*bars, -1e-3), 1.1 * max(*bars, 1e-3))
  of_streams, *by_layer = np.atleast_1d(columns)
  _draw_bars(of_streams, np.arange(len(found.streams)), list(found.streams.values()), 0.7)
  of_streams.set_xticks(range(len(found.streams)), list(found.streams))
  of_streams.set(title="whole streams", ylabel="added log-odds")
  shown = [("fusion gates", "tanh(gate)", found.gates)] * bool(found.gates)
  shown += [("layers of the summary", "weight", {f"{name}, gate {found.layer_gates[name]:.2f}": weights
                                                 for name, weights in found.layers.items()})] * bool(found.layers)  # fmt: skip
  for axes, (title_of, label, lines) in zip(by_layer, shown, strict=True):
    for name, values in lines.items():
      axes.plot(range(1, len(values) + 1), values, marker=".", label=name)
    axes.axhline(0, color="0.7", linewidth=0.8)
    axes.set(title=title_of, xlabel="layer", ylabel=label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False)
  figure.suptitle(f"{title}    {found.label} {100 * found.probability:.1f} %", parse_math=False)
  return figure


def _draw_bars(axes, x, heights, width: float) -> None:
  """Green for the class, red against it."""
  axes.bar(x, heights, width, color=["tab:green" if height > 0 else "tab:red" for height in heights])
  axes.axhline(0, color="0.3", linewidth=0.8)
