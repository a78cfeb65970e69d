"""How sure a model may be: clips held out of training, the temperature that fits them, and what is off without and with it."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any, NamedTuple

from jaxtyping import Float, Int
import numpy as np

from mma_dfer_jax.training.predictions import Predictions

BINS = 15  # of confidence, equally wide: Guo et al. 2017, arXiv:1706.04599
LIMITS = 0.05, 20.0  # of a temperature
# Standard deviation of log T: clips that are all right would have T = 0. Fitted on 14, 35, 70 of the demo's test clips, T gives
# 70 others a loss of 0.52, 0.29, 0.11 without this and of 0.11 with it; T = 1 gives that model, which is well calibrated, 0.10.
PRIOR = 0.5
LARGEST_SHARE = 0.5  # that may be held out


def number_held_out(clips: int, share: float) -> int:
  """How many clips of a class are held out: at least one if a share is asked for, and never all."""
  return min(max(1, round(share * clips)), clips - 1) if share and clips else 0


def hold_out(labels: Int[np.ndarray, "N"], share: float, seed: int) -> Int[np.ndarray, "M"]:
  """Which clips are held out, ascending: of each class a share, drawn with the seed."""
  order = np.random.default_rng([seed, 2**31]).permutation(len(labels))  # epochs draw with [seed, epoch]
  of_classes = [order[labels[order] == label] for label in np.unique(labels)]
  chosen = [of_class[: number_held_out(len(of_class), share)] for of_class in of_classes]
  return np.sort(np.concatenate([*chosen, np.zeros(0, np.int64)]))


@dataclasses.dataclass(frozen=True)
class Some(Sequence):
  """Some of a sequence's records."""

  records: Sequence[Any]
  chosen: Int[np.ndarray, "M"]

  def __len__(self) -> int:
    return len(self.chosen)

  def __getitem__(self, place: Any) -> Any:
    return self.records[int(self.chosen[place])]


def fit_temperature(logits: Float[np.ndarray, "N C"], labels: Int[np.ndarray, "N"]) -> float:
  """The most probable temperature T of softmax(logits / T), if log T is about 0 ± `PRIOR` before the clips are seen."""
  from scipy.optimize import minimize_scalar
  from scipy.special import log_softmax

  def loss(log_t: float) -> float:
    of_classes = log_softmax(logits / np.exp(log_t), axis=1)
    return -of_classes[np.arange(len(labels)), labels].sum() + (log_t / PRIOR) ** 2 / 2

  return float(np.exp(minimize_scalar(loss, bounds=np.log(LIMITS), method="bounded").x))


def fitted_to(predictions: Predictions) -> float:
  """The temperature that fits clips whose probabilities were made with temperature 1."""
  return fit_temperature(_logits(predictions), predictions.labels)


def calibrated(predictions: Predictions, temperature: float) -> Predictions:
  """The same with softmax(logits / temperature); with 1 the same bits."""
  if temperature == 1.0:
    return predictions
  made = Predictions.of_logits(
    predictions.classes, predictions.clips, predictions.labels, _logits(predictions) / temperature
  )
  return dataclasses.replace(made, data_set=predictions.data_set)


def _logits(predictions: Predictions) -> Float[np.ndarray, "N C"]:
  return np.log(np.maximum(predictions.probabilities, np.finfo(np.float64).tiny))


class Reliability(NamedTuple):
  """By bin of confidence, the largest probability of a clip."""

  clips: Int[np.ndarray, "15"]
  confidence: Float[np.ndarray, "15"]  # means; NaN in an empty bin
  right: Float[np.ndarray, "15"]  # shares; likewise

  @property
  def ece(self) -> float:
    """Expected calibration error in percent: how far confidence is from the share that is right, in the mean over clips."""
    gaps = np.nan_to_num(np.abs(self.confidence - self.right))
    return 100.0 * float((self.clips * gaps).sum() / max(1, self.clips.sum()))


def reliability(predictions: Predictions) -> Reliability:
  sure, right = predictions.probabilities.max(axis=1), predictions.answers == predictions.labels
  places = np.clip(np.ceil(BINS * sure).astype(int) - 1, 0, BINS - 1)
  clips, *sums = (
    np.bincount(places, weights, minlength=BINS) for weights in (np.ones(len(sure)), sure, right)
  )
  confidence, share = (np.divide(s, clips, out=np.full(BINS, np.nan), where=clips > 0) for s in sums)
  return Reliability(clips.astype(int), confidence, share)


def describe(predictions: Predictions, held_out: Mapping[str, Any]) -> dict[str, Any]:
  """What a report says of answers that were made with the temperature of `held_out`, if that is not empty."""
  found = {"bins": BINS, "ece": reliability(predictions).ece}
  if held_out:
    before = reliability(calibrated(predictions, 1 / held_out["temperature"])).ece
    found |= {
      "temperature": held_out["temperature"],
      "held_out_clips": held_out["clips"],
      "ece_before": before,
    }
  return found


def in_words(found: Mapping[str, Any]) -> str:
  """A paragraph about `describe`."""
  text = f"Expected calibration error on the test clips ({found['bins']} bins): **{found['ece']:.2f} %**"
  if "temperature" not in found:
    return f"{text}. No clips were held out to fit a temperature (`--config.data.held_out=0.1`)."
  return (f"{text} with temperature {found['temperature']:.3f}, fitted on {found['held_out_clips']} training clips that were held "
          f"out; {found['ece_before']:.2f} % without.")  # fmt: skip


def draw(axes: Any, predictions: Predictions, label: str) -> None:
  """Adds answers to a reliability diagram: the share that is right by confidence."""
  found = reliability(predictions)
  axes.plot(found.confidence, found.right, marker="o", markersize=4, label=f"{label}, ECE {found.ece:.2f} %")
