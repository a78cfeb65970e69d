"""A timeline in a few lines: how much of the time each emotion leads, and from when to when, without flicker."""

from collections.abc import Sequence
import itertools
from typing import Any

from mma_dfer_jax.errors import count
from mma_dfer_jax.prediction import Prediction, Timeline
from mma_dfer_jax.timeline import spans

LEAD = 0.2  # in probability, by which another emotion must lead to take over at once; if it leads by less,
WINDOWS = 3  # then it takes over once it has led in so many windows in a row, from the first of them
NOT_ANSWERED = "not answered"
NO_SPEECH = "nobody speaks"  # between the windows, if they are on sentences
NOT_THERE = "not there"  # while others speak or are in the picture
RULE = f"another emotion takes over if it leads by {LEAD:g}, or in {WINDOWS} windows in a row"


def summarise(timeline: Timeline) -> dict[str, Any]:
  """Shares of time by emotion, largest first, and segments (emotion, start, end in seconds, mean probability).

  A window speaks for the time that is nearer to its middle than to any other's; one whose answer is withheld is
  "not answered", and the next that is answered begins anew. What no window speaks for is "nobody speaks" between sentences, and
  "not there" where the person has no window.
  """
  segments: list[dict[str, Any]] = []
  shares: dict[str, float] = {}
  rest = timeline.seconds
  windows = zip(steady(timeline.predictions), timeline.predictions, spans(timeline), strict=True)
  for label, group in itertools.groupby(windows, key=lambda one: one[0]):
    found = list(group)
    start, end = found[0][2][0], found[-1][2][1]
    segment: dict[str, Any] = {
      "emotion": label or NOT_ANSWERED,
      "start": round(start, 3),
      "end": round(end, 3),
    }
    if label:
      weights = [end - start for _, _, (start, end) in found]
      said = sum(w * one.probabilities[label] for w, (_, one, _) in zip(weights, found, strict=True))
      segment["probability"] = round(said / max(sum(weights), 1e-9), 4)
    segments.append(segment)
    seconds = sum(end - start for _, _, (start, end) in found)
    shares[segment["emotion"]] = shares.get(segment["emotion"], 0.0) + seconds / timeline.seconds
    rest -= seconds
  nobody = 0.0 if timeline.window else max(0.0, timeline.seconds - timeline.spoken)
  for words, seconds in ((NO_SPEECH, nobody), (NOT_THERE, rest - nobody)):
    if seconds > 0.01 * timeline.seconds:
      shares[words] = seconds / timeline.seconds
  ranked = sorted(shares.items(), key=lambda item: -item[1])
  return {"shares": {name: round(share, 4) for name, share in ranked}, "segments": segments, "rule": RULE}


def steady(predictions: Sequence[Prediction]) -> list[str | None]:
  """The emotion of each window with hysteresis; None where the answer is withheld."""
  labels: list[str | None] = []
  current = rival = None
  led = 0  # windows in a row that the rival has led in
  for number, one in enumerate(predictions):
    leader = max(one.probabilities, key=one.probabilities.__getitem__)
    if one.top is None or current is None:
      current, rival, led = None if one.top is None else leader, None, 0
    elif leader == current:
      rival, led = None, 0
    else:
      rival, led = leader, led + 1 if leader == rival else 1
      if one.probabilities[leader] - one.probabilities[current] >= LEAD or led == WINDOWS:
        labels[number - led + 1 :] = [leader] * (led - 1)
        current, rival, led = leader, None, 0
    labels.append(current)
  return labels


def described(summary: dict[str, Any]) -> str:
  """The same in one line."""
  shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in summary["shares"].items())
  return f"{shares} of the time, in {count(len(summary['segments']), 'segment')}"
