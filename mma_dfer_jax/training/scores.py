"""Scores of a fold: one integer confusion matrix, summed on the devices, and all that follows from it."""

from collections.abc import Sequence
import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import numpy as np


def confusion_matrix(
  logits: Float[Array, "B C"], labels: Int[Array, "B"], mask: Bool[Array, "B"]
) -> Int[Array, "C C"]:
  """Counts of clips, rows by true class, columns by predicted class; integers add up exactly on any mesh.

  The first of equal largest logits is the prediction; the mask is False for clips that only fill up a batch.
  """
  classes = logits.shape[-1]
  truth = jax.nn.one_hot(labels, classes, dtype=jnp.int32) * mask[:, None]
  return truth.T @ jax.nn.one_hot(logits.argmax(axis=-1), classes, dtype=jnp.int32)


@dataclasses.dataclass(frozen=True)
class Scores:
  """WAR, UAR and recalls, all in percent, of a confusion matrix (C, C) with true classes as rows."""

  confusion: np.ndarray
  classes: Sequence[str]

  @property
  def clips(self) -> int:
    return int(self.confusion.sum())

  @property
  def war(self) -> float:
    """Weighted average recall: the share of clips that are right."""
    return 100.0 * float(self.confusion.trace()) / self.clips if self.clips else float("nan")

  @property
  def recall(self) -> np.ndarray:
    """(C,) share of each class's clips that are right; NaN for a class without clips."""
    support = self.confusion.sum(axis=1)
    unknown = np.full(len(support), np.nan)
    return 100.0 * np.divide(self.confusion.diagonal(), support, out=unknown, where=support > 0)

  @property
  def uar(self) -> float:
    """Unweighted average recall over the classes among targets or predictions, as the original computes it.

    NaN if a class is predicted that no clip has (`computer_uar_war` of the original); see `uar_present`.
    """
    seen = (self.confusion.sum(axis=0) + self.confusion.sum(axis=1)) > 0
    return float(self.recall[seen].mean()) if seen.any() else float("nan")

  @property
  def uar_present(self) -> float:
    """Unweighted average recall over the classes that have clips; equals `uar` wherever that is a number."""
    return float(np.nanmean(self.recall)) if self.clips else float("nan")
