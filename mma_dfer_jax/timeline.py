"""The files of a timeline: table, subtitles, picture."""

from collections.abc import Mapping, Sequence
import csv
import dataclasses
import io
import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from mma_dfer_jax.data.film import LOUDNESS_RATE
from mma_dfer_jax.prediction import Prediction, Presence, Timeline

if TYPE_CHECKING:  # Matplotlib takes a second to import
  from matplotlib.figure import Figure

FACE_INCHES, AXES_INCHES = 0.7, 9.9  # width of a thumbnail, and about that of the axis of time
PERSON_INCHES, MOST_PERSONS = (
  2.4,
  8,
)  # height of another person's rows in the picture, and how many it has room for
MOST_COLUMNS = 2000  # of the waveform's picture; more would lie within one pixel


def to_csv(answers: Sequence[Mapping[str, Any]]) -> str:
  """One line for each Prediction, given as a dict: where, top class, probabilities, and what it was made of."""
  classes = list(answers[0]["probabilities"]) if answers else []
  text = io.StringIO()
  table = csv.writer(text, lineterminator="\n")
  of_persons = any(one.get("person") for one in answers)
  table.writerow(["clip", *["person"] * of_persons, "start", "end", "top", "reliable", *(f"p({name})" for name in classes),
                  "frames", "frames_with_face", "sound", "silent", "seconds_of_sound", "sample_rate", "reasons",
                  "warnings"])  # fmt: skip
  table.writerows([
    one["clip"], *[one.get("person")] * of_persons, f"{one['start']:.3f}", f"{one['end']:.3f}", one["top"], one["reliable"],
    *(f"{one['probabilities'][name]:.6f}" for name in classes), one["frames"], one["frames_with_face"], one["sound"],
    one["silent"], f"{one['seconds_of_sound']:.3f}", one["sample_rate"], "; ".join(one["reasons"]), "; ".join(one["warnings"]),
  ] for one in answers)  # fmt: skip
  return text.getvalue()


def spans(timeline: Timeline) -> list[tuple[float, float]]:
  """For each window the seconds for which it speaks: those of it that are nearer to its middle than to that of any other; of
  a sentence its own."""
  if not timeline.window:
    return [(one.start, one.end) for one in timeline.predictions]
  middles = [(one.start + one.end) / 2 for one in timeline.predictions]
  edges = [0.0, *((a + b) / 2 for a, b in itertools.pairwise(middles)), timeline.seconds]
  return [(max(start, one.start), min(end, one.end))
          for one, (start, end) in zip(timeline.predictions, itertools.pairwise(edges), strict=True)]  # fmt: skip


def of_person(timeline: Timeline, one: Presence) -> Timeline:
  """Only this person's windows, between which there may be gaps."""
  of_one = tuple(answer for answer in timeline.predictions if answer.person == one.person)
  return dataclasses.replace(timeline, predictions=of_one, thumbnails=one.thumbnails)


def _by_window(timeline: Timeline) -> tuple[Timeline, list[list[Prediction]]]:
  """The first answer of each window, and all answers of each window."""
  groups = [list(group) for _, group in itertools.groupby(timeline.predictions, key=lambda one: one.start)]
  return dataclasses.replace(timeline, predictions=tuple(group[0] for group in groups)), groups


def to_srt(timeline: Timeline) -> str:
  """Subtitles: the two most probable classes at any moment, "–" where they are withheld, and "no face", "no sound", "silent".

  With persons, a line for each.
  """
  blocks = []
  first, groups = _by_window(timeline)
  for number, (group, (start, end)) in enumerate(zip(groups, spans(first), strict=True), 1):
    lines = []
    for one in group:
      ranked = sorted(one.probabilities.items(), key=lambda item: -item[1])[:2]
      named = [f"{name} {100 * p:.0f} %" for name, p in ranked] if one.top else ["–"]
      lines.append(f"person {one.person}: " * bool(one.person) + " · ".join([*named, *what_is_missing(one)]))
    blocks.append(f"{number}\n{_stamp(start)} --> {_stamp(end)}\n" + "\n".join(lines) + "\n")
  return "\n".join(blocks)


def what_is_missing(one: Prediction) -> list[str]:
  missing = {"no face": one.frames_with_face == 0, "no sound": not one.sound, "silent": one.silent}
  return [words for words, holds in missing.items() if holds]


def _stamp(seconds: float) -> str:
  whole, milliseconds = divmod(round(1000 * seconds), 1000)
  return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02},{milliseconds:03}"


def draw(timeline: Timeline) -> "Figure":
  """Faces, stacked probabilities over time, what each frame counts if a mask weighs them, and the waveform.

  Windows without face or sound are marked below it.

  Windows that are not reliable are covered by white and hatched. With persons, the eight largest have rows of their own.
  """
  from matplotlib.figure import Figure

  rows_of = [of_person(timeline, one) for one in timeline.persons[:MOST_PERSONS]] or [timeline]
  figure = Figure(figsize=(12, 5.6 + PERSON_INCHES * (len(rows_of) - 1)), layout="constrained")
  greys = {"no face": "black", "no sound": "0.45", "silent": "0.75"}  # no colours: those stand for classes
  first, _ = _by_window(timeline)
  of_windows = list(zip(spans(first), map(what_is_missing, first.predictions), strict=True))
  rows = [name for name in greys if any(name in missing for _, missing in of_windows)]
  weighed = any(one.frame_weights for one in timeline.predictions)
  rows_each = [1.1, 4 if len(rows_of) == 1 else 2, *[0.7] * weighed]
  heights = [*rows_each * len(rows_of), 1.2, *[0.2 + 0.2 * len(rows)] * bool(rows)]
  axes_of = list(figure.subplots(len(heights), sharex=True, height_ratios=heights))
  for number, of_one in enumerate(rows_of):
    faces, stack, *of_frames = axes_of[number * len(rows_each) :][: len(rows_each)]
    _draw_faces(faces, of_one)
    _draw_probabilities(stack, of_one, legend=number == 0)
    if timeline.persons:
      stack.set_ylabel(f"person {of_one.predictions[0].person}")
    for axes in of_frames:
      _draw_frames(axes, of_one)
  wave, *below = axes_of[len(rows_each) * len(rows_of) :]
  _draw_wave(wave, timeline)
  for axes in below:
    for line, name in enumerate(rows):
      bars = [(start, end - start) for (start, end), missing in of_windows if name in missing]
      axes.broken_barh(bars, (line, 0.9), color=greys[name], label=name)
    axes.legend(loc="center left", bbox_to_anchor=(1.005, 0.5), frameon=False)
    axes.set(yticks=[], ylim=(len(rows), 0))
    axes.set_ylabel("missing", rotation=0, ha="right", va="center")
  (below or [wave])[0].set(xlabel="seconds", xlim=(0, timeline.seconds))
  name = timeline.clip.rsplit("/", 1)[-1].encode(errors="backslashreplace").decode()  # it may be no text
  how = f"windows of {timeline.window:g} s every {timeline.hop:g} s" if timeline.window else "sentences"
  if len(timeline.persons) > MOST_PERSONS:
    how += f"    the largest {MOST_PERSONS} of {len(timeline.persons)} persons"
  title = f"{name}    {how}"
  figure.suptitle(title, parse_math=False)
  return figure


def _draw_probabilities(axes, timeline: Timeline, *, legend: bool) -> None:
  probabilities = np.array([list(one.probabilities.values()) for one in timeline.predictions])
  edges = np.ravel(spans(timeline))
  # 0 between sentences, and where a person is not there
  steps = np.stack([probabilities, 0 * probabilities], axis=1).reshape(len(edges), -1).T
  colours = [*(f"C{i}" for i in range(10)), "black", "tan", "navy"][: len(steps)]
  places = list(map(str, range(len(steps))))
  axes.stackplot(edges, steps, step="post", labels=places, colors=colours, alpha=0.9)
  doubtful = zip(spans(timeline), timeline.predictions, strict=True)
  if bars := [(start, end - start) for (start, end), one in doubtful if not one.reliable]:
    axes.broken_barh(bars, (0, 1), facecolor=(1, 1, 1, 0.7), edgecolor="0.3", hatch="//", linewidth=0)
    axes.set_title("hatched: not reliable", fontsize="medium", loc="right")
  axes.set(ylim=(0, 1), ylabel="probability")
  if not legend:
    return
  names = axes.legend(loc="center left", bbox_to_anchor=(1.005, 0.5), reverse=True, frameon=False)
  for text, name in zip(names.get_texts(), [*timeline.predictions[0].probabilities][::-1], strict=True):
    text.set(text=name, parse_math=False)  # only now, for a label that begins with "_" would be left out


def _draw_faces(axes, timeline: Timeline) -> None:
  from matplotlib.offsetbox import AnnotationBbox, OffsetImage

  axes.set_axis_off()
  axes.set_ylim(0, 1)
  width = timeline.seconds * FACE_INCHES / AXES_INCHES
  free = 0.0  # seconds from which on there is room
  for seconds, pixels in timeline.thumbnails:
    if seconds - width / 2 < free:
      continue
    free = seconds + width / 2
    picture = OffsetImage(pixels, zoom=FACE_INCHES * 72 / len(pixels), resample=True)
    axes.add_artist(AnnotationBbox(picture, (seconds, 0.5), frameon=False, pad=0))


def _draw_frames(axes, timeline: Timeline) -> None:
  """A bar for each frame, as high as it counts in the window that speaks for its moment; a cross if it was left out."""
  of_windows = zip(timeline.predictions, spans(timeline), strict=True)
  frames = [of for one, (start, end) in of_windows for of in one.frame_weights if start <= of.seconds < end]
  kept, left = ([of for of in frames if (of.weight > 0) is which] for which in (True, False))
  weights = [of.weight for of in kept]
  axes.vlines([of.seconds for of in kept], 0, weights, color="0.3", linewidth=1.5)
  axes.plot([of.seconds for of in left], [0.1] * len(left), "x", color="0.5", markersize=4)
  axes.axhline(1, color="0.7", linewidth=0.8, zorder=0)
  said = f"{min(weights):.2f} to {max(weights):.2f}\n" if kept else ""
  said += "1 on average" + "\n×: left out" * bool(left)
  axes.text(1.015, 0.5, said, transform=axes.transAxes, va="center")
  axes.set(yticks=[0, 1], ylim=(0, None))
  axes.set_ylabel("weight\nof frames", rotation=0, ha="right", va="center")


def _draw_wave(axes, timeline: Timeline) -> None:
  axes.set_yticks([])
  axes.set_ylabel("sound", rotation=0, ha="right", va="center")
  if timeline.soundtrack is None:
    axes.text(0.5, 0.5, "no sound", transform=axes.transAxes, ha="center", va="center")
    return
  extremes = timeline.soundtrack.extremes.astype(float)
  size = -(-len(extremes) // MOST_COLUMNS)
  starts = np.arange(0, len(extremes), size)
  low, high = np.minimum.reduceat(extremes[:, 0], starts), np.maximum.reduceat(extremes[:, 1], starts)
  axes.fill_between((starts + size / 2) / LOUDNESS_RATE, low, high, color="0.3", linewidth=0)
  loudest = max(abs(low).max(), abs(high).max(), 1)
  axes.set_ylim(-loudest, loudest)
