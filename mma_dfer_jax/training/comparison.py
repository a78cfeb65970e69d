"""Is one model better than another? A paired bootstrap over the clips that both have answered.

A clip counts for a score only by its class and by who was right, so a resample of N clips is one draw of a multinomial
distribution over (class, A right, B right): the same distribution as drawing clips one by one, in no time.
UAR of a resample is the mean recall over the classes that it has clips of.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mma_dfer_jax.errors import count, few, listed
from mma_dfer_jax.training.predictions import Predictions, find_predictions
from mma_dfer_jax.training.report import table

RESAMPLES, SEED = 10_000, 0
SCORES = ("war", "uar")
UNKNOWN = "cannot be told from these clips"
NOTE = (
  f"Intervals hold the middle 95 % of {RESAMPLES:,} paired resamples of the clips (bootstrap, seed {SEED}): both models "
  "are scored on the same drawn clips. UAR of a resample is the mean recall over the classes that it has clips of. The "
  "intervals say how much these clips can tell; they leave out what another seed of the training would change."
)


def compare(a: Path, b: Path) -> dict[str, Any]:
  """Compares two runs, folds, evaluations or files of predictions, see `find_predictions`; UserError if they differ."""
  first, second = find_predictions(a), find_predictions(b)
  if first.keys() != second.keys() and "" in (*first, *second):  # folds beside one file of all of them
    first, second = {"": Predictions.joined([*first.values()])}, {"": Predictions.joined([*second.values()])}
  known = [{one.data_set for one in of.values()} for of in (first, second)]
  other_data = known[0] != known[1] and None not in known[0] | known[1]
  prints = " and ".join(", ".join(sorted(str(one)[:12] for one in of)) for of in known)
  problems = [f"folds: {', '.join(first)} in A, {', '.join(second)} in B"] * (first.keys() != second.keys())
  pairs: dict[str, np.ndarray] = {}
  identical = True
  for fold in (name for name in first if name in second):
    here, there = first[fold], second[fold]
    wrong = differences(here, there)
    problems += [f"{fold}: {problem}" if fold else problem for problem in wrong]
    if not wrong:
      row_of = {clip: row for row, clip in enumerate(there.clips)}
      rows, columns = [row_of[clip] for clip in here.clips], [*map(there.classes.index, here.classes)]
      right = here.answers == here.labels, (there.answers == there.labels)[rows]
      pairs[fold] = np.stack([here.labels, *right], axis=1).astype(int)
      identical &= np.allclose(here.probabilities, there.probabilities[rows][:, columns], rtol=0, atol=1e-6)
  if problems:
    raise listed(f"A={a} and B={b} cannot be compared", problems, "evaluate both on the same clips")
  classes = len(next(iter(first.values())).classes)
  result = bootstrap(np.concatenate([*pairs.values()]), classes)
  by_fold = {fold: bootstrap(pair, classes) for fold, pair in pairs.items()} if len(pairs) > 1 else {}
  gains = {name: result[name]["difference"] for name in SCORES}
  answers = {n: "yes" if d["low"] > 0 else "no" if d["high"] < 0 else UNKNOWN for n, d in gains.items()}
  answer = answers["war"] if answers["war"] == answers["uar"] else UNKNOWN
  start = {"yes": "Yes, B is better than A", "no": "No, A is better than B", UNKNOWN: f"Whether B is better than A {UNKNOWN}"}  # fmt: skip
  words = [f"{abs(d['value']):.2f} points {name.upper()} {'below' if d['value'] < 0 else 'above'} A "
           f"(95 % interval {d['low']:+.2f} to {d['high']:+.2f})" for name, d in gains.items()]  # fmt: skip
  sentence = f"{start[answer]}: B is {' and '.join(words)}, on {count(result['clips'], 'clip')}."
  if identical:
    sentence = f"A and B gave identical answers; did you mean two runs? {start[UNKNOWN]}."
  data = f" A and B answered clips of equal names from different data sets (fingerprints {prints}): their pictures or sounds may differ."
  return {"a": str(a), "b": str(b), "answer": answer, "answers": answers, "sentence": sentence, **result,
          "folds": by_fold, "resamples": RESAMPLES, "seed": SEED, "note": NOTE + data * other_data}  # fmt: skip


def differences(a: Predictions, b: Predictions) -> list[str]:
  """Why two models were not asked the same: a line each for classes, clips and labels."""
  names = [f"classes: {', '.join(a.classes)} in A, {', '.join(b.classes)} in B"]
  found = names if set(a.classes) != set(b.classes) else []
  here, there = ({clip: p.classes[i] for clip, i in zip(p.clips, p.labels, strict=True)} for p in (a, b))
  for name, ours, theirs in (("A", here, there), ("B", there, here)):
    if only := sorted(ours.keys() - theirs.keys()):
      verb = "is" if len(only) == 1 else "are"
      found.append(f"{len(only)} of {count(len(ours), 'clip')} {verb} only in {name}: {few(only)}")
  if other := [clip for clip in here if here[clip] != there.get(clip, here[clip])]:
    examples = [f"{clip} is {here[clip]} in A and {there[clip]} in B" for clip in other]
    found.append(f"{count(len(other), 'label')} differ{'s' * (len(other) == 1)}: {few(examples)}")
  return found


def bootstrap(pairs: np.ndarray, classes: int) -> dict[str, Any]:
  """Scores of both models in percent, with their intervals, of (N, 3) label, whether A is right, whether B is right."""
  clips = len(pairs)
  counts = np.zeros((classes, 2, 2))
  np.add.at(counts, tuple(pairs.T), 1)
  drawn = np.random.default_rng(SEED).multinomial(clips, counts.ravel() / clips, size=RESAMPLES)
  # First the clips themselves.
  every = np.concatenate([counts[None], drawn.reshape(RESAMPLES, classes, 2, 2)])
  support = every.sum(axis=(2, 3))
  right = {"a": every[:, :, 1].sum(axis=2), "b": every[:, :, :, 1].sum(axis=2)}
  found: dict[str, Any] = {"clips": clips}
  for score in SCORES:
    values = {}
    for model, of_class in right.items():
      recall = np.divide(of_class, support, out=np.full(of_class.shape, np.nan), where=support > 0)
      values[model] = 100 * (of_class.sum(axis=1) / clips if score == "war" else np.nanmean(recall, axis=1))
    values["difference"] = values["b"] - values["a"]
    found[score] = {
      name: dict(zip(("value", "low", "high"), (float(x[0]), *np.percentile(x[1:], [2.5, 97.5]).tolist()), strict=True))
      for name, x in values.items()
    }  # fmt: skip
    higher = values["difference"][1:] > 0
    found[score]["share_of_resamples_where_b_is_higher"] = float(higher.mean())
  return found


def as_table(result: Mapping[str, Any]) -> str:
  """A line per score, of all clips and of each fold."""
  rows = []
  for name, of in {"all clips": result, **result["folds"]}.items():
    for score in SCORES:
      cells = [f"{v['value']:{sign}.2f} ({v['low']:{sign}.2f} … {v['high']:{sign}.2f})"
               for v, sign in ((of[score]["a"], ""), (of[score]["b"], ""), (of[score]["difference"], "+"))]  # fmt: skip
      share = f"{100 * of[score]['share_of_resamples_where_b_is_higher']:.1f} %"
      rows.append([name, of["clips"], score.upper(), *cells, share])
  return table(["", "clips>", "score", "A, % (95 %)>", "B, % (95 %)>", "B − A (95 %)>", "B higher in>"], rows)
