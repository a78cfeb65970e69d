"""What is published of data sets: class names in the orders that lists count by, numbers of clips, and scores."""

from typing import Any

from mma_dfer_jax.data.source import Counts, LabelOrder, names, near_duplicates, said_by
from mma_dfer_jax.errors import UserError, listed
from mma_dfer_jax.lookalikes import tidy


def _all(what: str) -> dict[str, Any]:
  return {name: found for name in names() if (found := said_by(name, what))}


LABEL_ORDERS: dict[str, LabelOrder] = {
  name: order for of in _all("LABELS").values() for name, order in of.items()
}
COUNTS: dict[str, Counts] = _all("COUNTS")
SCORES: dict[str, dict[str, float]] = _all("SCORES")


def label_order(text: str) -> LabelOrder:
  """The order that `--classes` names: dfew, mafw, mafw-official, or different names themselves, "a,b,c"."""
  if text in LABEL_ORDERS:
    return LABEL_ORDERS[text]
  given = tuple(map(tidy, text.split(",")))
  if len(given) < 2 or not all(given) or len(set(given)) < len(given):
    orders = ", ".join(LABEL_ORDERS)
    raise UserError(f"--classes={text}: give {orders}, or at least two different names, comma-separated")
  if wrong := near_duplicates(given):
    raise listed(f"--classes={text} cannot be used", wrong)
  return LabelOrder(given, "as given by --classes")
