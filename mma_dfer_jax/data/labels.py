"""Class names of the published data sets in the orders that their lists count by, and what was published for them."""

from collections.abc import Sequence

from mma_dfer_jax.data.source import Counts, LabelOrder, names, source_of
from mma_dfer_jax.errors import UserError

_BY_ORDER = {label: source for name in names() for source in (source_of(name),) for label in source.LABELS}
LABEL_ORDERS = {label: source.LABELS[label] for label, source in _BY_ORDER.items()}
# The paper's means over five folds, in percent, by the classes of the data set; `clips` are in all folds together.
PUBLISHED = {
  source.LABELS[label].classes: {
    "data_set": source.__name__.rpartition(".")[2].upper(),
    "clips": sum(sum(row.values()) for row in source.COUNTS.values()),
    **source.SCORES,
  }
  for label, source in _BY_ORDER.items()
}


def fits_published(classes: Sequence[str], counts: Counts) -> bool:
  """Whether clips by split and class are exactly those that the published scores of these classes are from."""
  found = {
    split: {name: n for name, n in row.items() if n} for split, row in counts.items() if any(row.values())
  }
  return any(
    order.classes == tuple(classes) and found == _BY_ORDER[label].COUNTS
    for label, order in LABEL_ORDERS.items()
  )


def label_order(text: str) -> LabelOrder:
  """The order that `--classes` names: dfew, mafw, mafw-official, or the names themselves, "a,b,c".

  Raises:
    UserError: if a name is empty or stands there twice.
  """
  if text in LABEL_ORDERS:
    return LABEL_ORDERS[text]
  given = tuple(name.strip() for name in text.split(","))
  if len(given) < 2 or not all(given) or len(set(given)) < len(given):
    known = ", ".join(LABEL_ORDERS)
    raise UserError(f"--classes={text}: give {known}, or at least two different names, comma-separated")
  return LabelOrder(given, "as given by --classes")
