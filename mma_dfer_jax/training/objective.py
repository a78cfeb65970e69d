"""What a training minimises: a loss with class weights, logit adjustment and the intensity-aware loss, each if asked for.

Sources: class weights by effective number, Cui et al. 2019 (arXiv 1901.05555); that act late (DRW), Cao et al. 2019
(1906.07413); logit adjustment, Menon et al. 2021 (2007.07314); intensity-aware loss, Li et al. 2023 (2208.10335).
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import math
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np

from mma_dfer_jax import parts

Batch = Mapping[str, jax.Array]
Statistics = Mapping[str, Any]  # of the training clips: inputs of the compiled step, not parts of it


class Term(NamedTuple):
  """One part of a loss: its mean over all clips of a batch, times a factor."""

  losses: Float[Array, "B"]
  factor: float = 1.0


Terms = Mapping[str, Term]


def total(means: Mapping[str, Any], terms: Terms) -> Any:
  """The loss, of the means of its terms."""
  return functools.reduce(
    operator.add, (of if (by := terms[name].factor) == 1 else by * of for name, of in means.items())
  )


def in_words(config: parts.LossPart, num_epochs: int) -> str:
  """What is minimised, for reports: the loss with its own fields, and what goes with it."""
  own = parts.fields_of(config)
  common = {field.name for field in dataclasses.fields(parts.LossPart)}
  fields = ", ".join(f"{name}={value}" for name, value in own.items() if name not in common | {"name"})
  weights = f"class_weights={config.class_weights}"
  if config.class_weights == "effective":
    weights += f" (beta {config.effective_beta})"
  if config.reweight_from:
    weights += f" from epoch {first_weighted_epoch(config, num_epochs) + 1}"
  found = [
    own["name"] + f" ({fields})" * bool(fields),
    weights * (config.class_weights != "none"),
    f"logit_adjustment={config.logit_adjustment}" * bool(config.logit_adjustment),
    f"{config.ial_weight} x intensity-aware loss" * bool(config.ial_weight),
  ]
  return ", ".join(filter(None, found))


class Objective:
  """What is minimised, and with which numbers of training clips.

  Attributes:
    statistics: "clips" (C,), training clips of each class; and, if there are any, "class_weights" (epochs, C).
  """

  def __init__(
    self, config: parts.LossPart, clips_per_class: Sequence[int], num_epochs: int, auxiliary: Any = None
  ):
    self.config, self.auxiliary = config, auxiliary if auxiliary and auxiliary.weights else None
    self.statistics: Statistics = {"clips": np.array(clips_per_class, float)}
    weights = class_weights(config, clips_per_class)
    if weights is not None:
      late = np.arange(num_epochs) >= first_weighted_epoch(config, num_epochs)
      self.statistics["class_weights"] = np.where(late[:, None], weights, 1.0)

  def whole(self, batch: Batch, epoch: Any, statistics: Statistics) -> Statistics:
    """What of a loss depends on all clips of a batch at once; for `terms` of any part of that batch."""
    shared = dict(statistics)
    if "class_weights" in statistics:
      weights = jnp.asarray(statistics["class_weights"])[epoch]
      shared = {"clips": statistics["clips"], "weights": weights}
      if self.config.BY_WEIGHTS:
        shared["mean_weight"] = weights[self.config.labels(batch)].mean()
    if self.auxiliary:  # numbers for each clip, of all tasks
      means = {name: of_clips.mean() for name, of_clips in self.auxiliary.numbers(batch).items()}
      shared["known"] = {name: jnp.where(mean > 0, mean, 1.0) for name, mean in means.items()}
    return shared

  def terms(self, outputs: parts.Outputs, batch: Batch, shared: Statistics) -> Terms:
    """Of a batch or a part of it; `ce` or the loss's own name, and `ial`."""
    c, clips, weights = self.config, jnp.asarray(shared["clips"]), shared.get("weights")
    labels, adjusted = c.labels(batch), outputs
    if c.logit_adjustment:
      prior = jnp.log(clips / clips.sum())
      adjusted = outputs._replace(logits=outputs.logits + c.logit_adjustment * prior)
    name = parts.place_of(c).partition("/")[2]
    found = {"ce" if name == "cross_entropy" else name: Term(c.build(clips)(adjusted, batch, weights))}
    if c.ial_weight:
      found["ial"] = Term(
        parts.weighted(intensity_aware(outputs.logits, labels), weights, labels), c.ial_weight
      )
    if "mean_weight" in shared:
      found = {key: term._replace(losses=term.losses / shared["mean_weight"]) for key, term in found.items()}
    return found

  def with_tasks(
    self, terms: Terms, model: Any, outputs: parts.Outputs, batch: Batch, shared: Statistics
  ) -> Terms:
    """The same, with the weights and the terms of the auxiliary tasks, whose clips without a face count nothing."""
    if not self.auxiliary:
      return terms
    weights = self.auxiliary.weights
    found = {name: term._replace(factor=weights["classes"] * term.factor) for name, term in terms.items()}
    for name, errors in model.cascade.errors(outputs.extra, batch).items():
      found[name] = Term(errors / shared["known"][name], weights[name])
    return found


def class_weights(config: parts.LossPart, clips_per_class: Sequence[int]) -> Float[np.ndarray, "C"] | None:
  """Weights of the classes, whose sum is their number unless they are given; None: there are none."""
  clips, given = np.array(clips_per_class, float), config.class_weights
  if given == "none":
    return None
  if given not in parts.CLASS_WEIGHTS:
    return np.array(config.numbers)
  beta = config.effective_beta
  weights = (
    1 / clips
    if given == "inverse"
    else (1 - beta) / -np.expm1(clips * np.log(beta))
    if beta
    else np.ones(len(clips))
  )
  return weights / weights.sum() * len(clips)


def first_weighted_epoch(config: parts.LossPart, num_epochs: int) -> int:
  """From 0; shares such as 0.8 of 25 are no more than rounded up."""
  return math.ceil(config.reweight_from * num_epochs - 1e-9)


def intensity_aware(logits: Float[Array, "B C"], labels: Int[Array, "B"]) -> Float[Array, "B"]:
  """-log of the target's probability against the strongest other class alone, the first of equal ones."""
  target = jnp.arange(logits.shape[-1]) == labels[:, None]
  # By its place: `max` would spread the gradient over equal ones.
  strongest = jnp.where(target, -jnp.inf, logits).argmax(axis=-1)
  chosen = jnp.take_along_axis(logits, jnp.stack([labels, strongest], axis=-1), axis=-1)
  return jax.nn.softplus(chosen[:, 1] - chosen[:, 0])
