"""Class names of the published data sets, in the order in which their lists count."""

import dataclasses

from mma_dfer_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class LabelOrder:
  """Class names by label index, and whose order it is."""

  classes: tuple[str, ...]
  origin: str


LABEL_ORDERS = {
  "dfew": LabelOrder(
    ("happy", "sad", "neutral", "angry", "surprise", "disgust", "fear"),
    "DFEW: label in its csv files minus 1, which is also the order of MMA-DFER's lists",
  ),
  # Two orders of MAFW are in circulation; clip 03747 is 0 in one and 3 in the other.
  "mafw": LabelOrder(
    ("happiness", "sadness", "neutral", "anger", "surprise", "disgust", "fear", "contempt", "anxiety",
     "helplessness", "disappointment"),
    "MAFW in the order of MMA-DFER's lists (and DFER-CLIP's), not MAFW's official one",
  ),
  "mafw-official": LabelOrder(
    ("anger", "disgust", "fear", "happiness", "neutral", "sadness", "surprise", "contempt", "anxiety",
     "helplessness", "disappointment"),
    "MAFW in its official order (MAE-DFER, HiCMAE, S4D), not that of MMA-DFER's lists",
  ),
}  # fmt: skip


def label_order(text: str) -> LabelOrder:
  """The order that `--classes` names: dfew, mafw, mafw-official, or the names themselves, "a,b,c".

  Raises:
    UserError: if a name is empty or stands there twice.
  """
  if text in LABEL_ORDERS:
    return LABEL_ORDERS[text]
  names = tuple(name.strip() for name in text.split(","))
  if len(names) < 2 or not all(names) or len(set(names)) < len(names):
    raise UserError(
      f"--classes={text}: give {', '.join(LABEL_ORDERS)}, or at least two different names, comma-separated"
    )
  return LabelOrder(names, "as given by --classes")
