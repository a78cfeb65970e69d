"""Names of the authors' files: every parameter has one, and what a model lacks is in no table."""

from conftest import TINY, golden_weights, small, tiny
import numpy as np
import pytest

from mma_dfer_jax.errors import UserError
from mma_dfer_jax.heads import linear
from mma_dfer_jax.parameters import parameter_shapes
from mma_dfer_jax.weights import names

ABLATIONS = [
  {"fusion": {"name": "none"}},
  {"prompts": {"name": "none"}},
  {"temporal": {"name": "mean"}},
  {"audio": {"name": "none"}},
  {"image": {"name": "none"}, "fusion": {"direction": "own"}},
]


@pytest.mark.parametrize("changes", [{}, *ABLATIONS])
def test_every_parameter_has_its_name_in_the_authors_file_and_back(changes):
  cfg = small(**changes)
  shapes, table = parameter_shapes(cfg), names.name_table(cfg)
  assert sorted(row.path for row in table) == sorted(shapes)
  theirs = [name for row in table for name in row.torch_names]
  assert len(theirs) == len(set(theirs))
  rng = np.random.default_rng(0)
  ours = {path: rng.standard_normal(shape, np.float32) for path, shape in shapes.items()}
  tensors = names.to_torch(ours, cfg)
  assert {name: tensor.shape for name, tensor in tensors.items()} == names.used_shapes(cfg)
  back = names.from_torch(tensors, table)
  assert all(np.array_equal(back[path], ours[path]) for path in shapes)


def test_used_and_unused_together_are_the_file_of_the_original():
  theirs = {name: tensor.shape for name, tensor in golden_weights("tiny_64_7").items()}
  assert names.used_shapes(TINY) | names.unused_shapes(TINY) == theirs


def test_a_part_that_such_a_file_has_no_place_for_is_named(monkeypatch):
  names.parts.authors_table.cache_clear()
  monkeypatch.delattr(linear, "AUTHORS")
  with pytest.raises(UserError, match=r"(?s)no place.*classifier"):
    names.name_table(tiny())
  names.parts.authors_table.cache_clear()


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
  assert sorted(error.value.wrong_shape) == [
    "vision_proj.bias (), not (32,)",
    "vision_proj.weight (48, 48), not (32, 48)",
  ]
  for word in ("x.pth", "our_classifier.bias", "temporal_net.cls_token", "fc.weight", "vision_proj.weight"):
    assert word in str(error.value)
