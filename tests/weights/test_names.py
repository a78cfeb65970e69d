"""Names of the authors' files, beyond what `test_contracts.py` asks of every part."""

from conftest import TINY, golden_weights, small, tiny
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


def test_a_checkpoint_that_does_not_fit_names_everything():
  wanted, unused = names.used_shapes(small()), names.unused_shapes(small())
  found = wanted | unused
  names.check_fit("x.pth", found, wanted, allowed=unused)  # the unused ones may be there
  del found["our_classifier.bias"], found["temporal_net.cls_token"]
  found |= {"fc.weight": (7, 32), "vision_proj.weight": (48, 48), "vision_proj.bias": ()}
  with pytest.raises(names.CheckpointMismatchError) as error:
    names.check_fit("x.pth does not fit", found, wanted, allowed=unused)
  assert error.value.missing == ["our_classifier.bias", "temporal_net.cls_token"]
  assert error.value.unexpected == ["fc.weight"]
  wrong = ["vision_proj.bias (), not (32,)", "vision_proj.weight (48, 48), not (32, 48)"]
  assert sorted(error.value.wrong_shape) == wrong
  for word in ("x.pth", *error.value.missing, "fc.weight", *wrong):
    assert word in str(error.value)
