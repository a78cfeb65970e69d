"""Names of the authors' files, beyond what `test_contracts.py` asks of every part."""

from conftest import TINY, golden_weights, tiny
import pytest

from mma_dfer_jax.errors import UserError
from mma_dfer_jax.heads import linear
from mma_dfer_jax.weights import names


def test_used_and_unused_together_are_the_file_of_the_original():
  theirs = {name: tensor.shape for name, tensor in golden_weights("tiny_64_7").items()}
  assert names.used_shapes(TINY) | names.unused_shapes(TINY) == theirs


def test_a_part_that_such_a_file_has_no_place_for_is_named(monkeypatch):
  monkeypatch.delattr(linear, "AUTHORS")
  with pytest.raises(UserError, match=r"(?s)no place.*classifier"):
    names.name_table(tiny())
