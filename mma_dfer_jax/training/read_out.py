"""What frozen encoders see: features of clips without any training, and linear read-outs of a few labels or of all.

The meter of pretraining, and the better tool for tiny sets (docs/training.md has figures).
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int
import numpy as np

from mma_dfer_jax import parts
from mma_dfer_jax.data.pipeline import EvalOrder, load_batches
from mma_dfer_jax.errors import count
from mma_dfer_jax.inputs import Inputs
from mma_dfer_jax.model import ModelConfig
from mma_dfer_jax.parameters import cast, put_over
from mma_dfer_jax.progress import Progress, watched
from mma_dfer_jax.training.predictions import Predictions
from mma_dfer_jax.training.report import mean_and_deviation
from mma_dfer_jax.training.sharding import replicated, to_global
from mma_dfer_jax.training.steps import model_inputs
from mma_dfer_jax.weights.files import Start

ALL = "all"  # every labelled clip, in place of a number of clips for each class
Answers = dict[int | str, list[Predictions]]  # by labels for each class: to the test clips, draw by draw
STRENGTHS = np.logspace(-1, 5, 13)  # of the ridge; the features are standardised
TEMPERATURES = np.logspace(-2, 2, 81)  # by which scores become probabilities


@dataclasses.dataclass(frozen=True)
class Features:
  """What frozen encoders say of the clips of a split, in its order."""

  clips: tuple[str, ...]  # names
  labels: Int[np.ndarray, "N"]
  x: Float[np.ndarray, "N K"]  # of all encoders, one behind the other


def build_encoders(model: ModelConfig, seed: int, starts: Sequence[Start] = ()) -> dict[str, parts.Encoder]:
  """The encoders that a run would start with, by stream, without prompts: from a seed, and from files that lie over it."""
  values = {path: value for start in starts for path, value in start.read().items()}
  built = {}
  for stream in ("image", "audio"):
    if not (chosen := getattr(model, stream)).depth:
      continue
    place = f"{stream}_encoder"
    encoder = chosen.build(stream, model.inputs, 0, rngs=parts.own(nnx.Rngs(params=seed), place))
    mine = {path.partition("/")[2]: value for path, value in values.items() if path.startswith(f"{place}/")}
    if "pos_embed" in mine:  # the last rows are those of prompts
      mine["pos_embed"] = mine["pos_embed"][:, : encoder.pos_embed.shape[1]]
    put_over(encoder, mine)
    built[stream] = encoder
  return built


def clip_features(encoder: parts.Encoder, x: Array, tokens: str = "all") -> Float[Array, "B K"]:
  """Features of each clip, of video (B, T, H, W, 3) or spectrograms (B, F, K).

  These are the encoder's summary (the class token, which MMA-DFER reads) and, unless `tokens` is "class", mean and
  deviation of all tokens; each averaged over the moments and, where there are several, their maximum: measured best of eight
  choices on real clips.
  """
  found: Any = encoder.embed(x, None)
  for block in encoder.blocks:
    found = block(found, None)
  each: list[Any] = [encoder.summary(found)]
  if tokens == "all":
    # As a fresh last norm does it; scale and bias of a trained one would go again where features are standardised.
    found = jax.nn.standardize(found.astype(jnp.float32), axis=-1)
    each += [found.mean(axis=1), found.std(axis=1)]
  pooled = []
  for one in each:
    moments = one.astype(jnp.float32).reshape(len(x), -1, one.shape[-1])
    pooled += [moments.mean(axis=1)] + [moments.max(axis=1)] * (moments.shape[1] > 1)
  return jnp.concatenate(pooled, axis=-1)


def features(
  groups: Sequence[Mapping[str, parts.Encoder]], records: Sequence[Any], inputs: Inputs, *, mesh: Mesh, batch_size: int,
  tokens: str = "all", precision: str = "float32", num_workers: int = 0, prefetch: int = 2, title: str = "features",
) -> list[Features]:  # fmt: skip
  """Features of every clip of a split, as an evaluation reads it, once; one result for each group of encoders.

  Args:
    groups: encoders by stream ("image", "audio"), of which all features together make `Features.x`.
    batch_size: clips at a time, a multiple of the devices.
    tokens: "all" or "class", what is read of the last tokens; see `clip_features`.
  """
  graphdef, state = nnx.split([dict(group) for group in groups])
  state = jax.device_put(cast(state, precision), replicated(mesh))

  @jax.jit
  def compute(state, batch):
    of_stream = dict(zip(("image", "audio"), model_inputs(batch, precision), strict=False))
    merged = nnx.merge(graphdef, state)  # with streams in another order
    found = [[clip_features(there[stream], of_stream[stream], tokens) for stream in group]
             for group, there in zip(groups, merged, strict=True)]  # fmt: skip
    return [jnp.concatenate(of_group, axis=-1) for of_group in found]

  order, clips, labels, found = EvalOrder(records, 0, batch_size, 1), [], [], []
  with (
    load_batches(order, inputs, num_workers=num_workers, prefetch=prefetch) as batches,
    Progress(title, len(records), leave=False) as bar,
  ):
    for batch in batches:
      real = int(batch["mask"].sum())  # what fills up the last batch stands at its end
      found.append([np.asarray(x)[:real] for x in compute(state, to_global(batch, mesh))])
      clips += [clip.decode() for clip in batch["clip_id"][:real].tolist()]
      labels.append(batch["label"][:real])
      bar.update(real)
  return [Features(tuple(clips), np.concatenate(labels), np.concatenate(x)) for x in zip(*found, strict=True)]


def fit_read_out(
  train_x: Float[np.ndarray, "N K"],
  train_y: Int[np.ndarray, "N"],
  test_x: Float[np.ndarray, "M K"],
  classes: int,
) -> Float[np.ndarray, "M C"]:
  """Probabilities of the classes for each test clip: ridge regression on standardised features (scikit-learn).

  Its strength has the highest leave-one-out accuracy. Scores become probabilities by the one temperature that fits the
  left-out clips best: read-outs that learn little are unsure.
  """
  from scipy.special import log_softmax, softmax
  from sklearn.linear_model import RidgeCV
  from sklearn.preprocessing import StandardScaler

  def accuracy(_, left_out, targets):  # older versions give both in one row
    return (left_out.reshape(targets_shape).argmax(axis=1) == train_y).mean()

  scaler = StandardScaler().fit(train_x.astype(np.float64))
  targets = np.where(train_y[:, None] == np.arange(classes), 1.0, -1.0)
  targets_shape = targets.shape
  ridge = RidgeCV(STRENGTHS, scoring=accuracy, store_cv_results=True).fit(scaler.transform(train_x), targets)
  left_out = ridge.cv_results_.reshape(*targets.shape, -1)[..., np.flatnonzero(ridge.alpha_ == STRENGTHS)[0]]
  fit = [log_softmax(t * left_out, axis=1)[np.arange(len(train_y)), train_y].mean() for t in TEMPERATURES]
  return softmax(TEMPERATURES[np.argmax(fit)] * ridge.predict(scaler.transform(test_x)), axis=1)


def few_shot(
  train: Features, test: Features, classes: Sequence[str], *, labels: Sequence[int | str] = (1, 3, 10), draws: int = 10,
  seed: int = 0,
) -> Answers:  # fmt: skip
  """Answers to all test clips after read-outs of a few labelled clips for each class, or of `ALL`.

  Args:
    labels: clips for each class; `problems_of_labels` says what is possible. Larger numbers add to the smaller draw.
    draws: how often they are drawn; clips depend on (seed, draw) alone, so that two groups of encoders can be paired.
  """
  answers: Answers = {number: [] for number in labels}
  jobs = [(number, draw) for number in labels for draw in range(1 if number == ALL else draws)]
  for number, draw in watched(jobs, "read-outs", len(jobs), unit="read-out", leave=False):
    rows = np.arange(len(train.labels))
    if number != ALL:
      order = np.random.default_rng([seed, draw]).permutation(rows)
      rows = np.concatenate([order[train.labels[order] == label][:number] for label in range(len(classes))])
    said = fit_read_out(train.x[rows], train.labels[rows], test.x, len(classes))
    answers[number].append(Predictions(tuple(classes), test.clips, test.labels, said))
  return answers


def score_rows(answers: Answers, other: Answers | None = None) -> list[dict[str, Any]]:
  """WAR and UAR (of the classes that test clips have) in percent, mean and deviation (n - 1) over draws, for each number.

  With the answers of `other` encoders after the same draws also `other` and `difference`, paired draw by draw.
  """
  rows = []
  for number, of_draws in answers.items():
    here = _scores(of_draws)
    row: dict[str, Any] = {"labels": number, "draws": len(of_draws), **_summary(here)}
    if other:
      there = _scores(other[number])
      row |= {"other": _summary(there), "difference": _summary({k: here[k] - there[k] for k in here})}
    rows.append(row)
  return rows


def _scores(of_draws: Sequence[Predictions]) -> dict[str, np.ndarray]:
  scores = [predictions.scores for predictions in of_draws]
  return {"war": np.array([s.war for s in scores]), "uar": np.array([s.uar_present for s in scores])}


def _summary(scores: Mapping[str, np.ndarray]) -> dict[str, Any]:
  return {name: {**mean_and_deviation(of.tolist()), "of_draws": of.tolist()} for name, of in scores.items()}


def possible_labels(clips: Mapping[str, int], labels: Sequence[int | str]) -> list[int | str]:
  """Those of `labels` for which every class has enough training clips."""
  return [number for number in labels if number == ALL or int(number) <= min(clips.values())]


def problems_of_labels(clips: Mapping[str, int], labels: Sequence[int | str], split: str) -> list[str]:
  """Why so many clips of each class cannot be drawn, and how many can; `clips` of each class are in the split."""
  found, most = [], max([int(number) for number in labels if number != ALL], default=0)
  if short := [f"{name} has {count(n, 'clip')}" for name, n in clips.items() if n < most]:
    allowed = f"1 to {min(clips.values())}, or {ALL}" if min(clips.values()) else f"only {ALL}"
    found.append(f"labels={most} for each class, but in {split} {', '.join(short)}; allowed: {allowed}")
  if len(there := [name for name, n in clips.items() if n]) < 2:
    found.append(f"all clips of {split} are {there[0]}; a read-out needs two classes")
  return found
