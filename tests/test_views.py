"""Several parts of each clip in evaluation: their probabilities are averaged."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mma_dfer_jax.data.pipeline import make_example
from mma_dfer_jax.errors import UserError
from mma_dfer_jax.inputs import Inputs
from mma_dfer_jax.parts import Outputs
from mma_dfer_jax.training.evaluation import evaluate_split
from mma_dfer_jax.training.sharding import make_mesh
from mma_dfer_jax.training.steps import sums

INPUTS = Inputs(
  image_size=8, num_frames=2, audio_shape=(8, 8), frame_choice="stride", frame_stride=2, test_views=2
)
RECORDS = [{"frames": [np.full((8, 8, 3), 20 * i + clip, np.uint8) for i in range(9)], "has_audio": False,
            "label": clip % 2, "clip_id": b"clip %d" % clip} for clip in range(5)]  # fmt: skip


def logits(video) -> jax.Array:
  brightness = jnp.asarray(video, jnp.float32).mean((1, 2, 3, 4)) / 60
  return jnp.stack([brightness, 1 - brightness], axis=-1)


def test_probabilities_are_the_mean_of_the_views():
  def eval_fn(batch):
    return sums(Outputs(logits(batch["video"])), batch) | {
      name: batch[name] for name in ("label", "position")
    }

  how = {"mesh": make_mesh(-1, 1), "batch_size": 4}
  found = evaluate_split(eval_fn, RECORDS, INPUTS, ("a", "b"), **how)
  assert found is not None
  result, predictions = found
  each = []
  for view in (0, 1):
    videos = np.stack([make_example(record, INPUTS, view=view)["video"] for record in RECORDS])
    each.append(np.asarray(jax.nn.softmax(logits(videos))))
  assert np.abs(each[0] - each[1]).max() > 0.1
  mean = (each[0] + each[1]) / 2
  np.testing.assert_allclose(predictions.probabilities, mean, rtol=1e-5)
  assert predictions.clips == tuple(f"clip {i}" for i in range(5))
  labels = np.array([record["label"] for record in RECORDS])
  np.testing.assert_allclose(result["test_loss"], -np.log(mean[np.arange(5), labels]).mean(), rtol=1e-5)
  np.testing.assert_array_equal(result["confusion_matrix"], predictions.scores.confusion)
  assert result["clips_without_sound"] == 5


def test_they_are_stored_with_the_model_and_need_parts_of_a_clip():
  fields = INPUTS.to_fields()
  assert (fields["frame_choice"], fields["frame_stride"], fields["test_views"]) == ("stride", 2, 2)
  assert Inputs(**fields) == INPUTS
  assert Inputs().to_fields().keys() == {"image_size", "num_frames", "audio_shape"}
  with pytest.raises(UserError, match="test_views=2 needs frame_choice=stride"):
    Inputs(test_views=2)
