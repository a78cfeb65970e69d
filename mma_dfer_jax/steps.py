"""The pure functions that are jitted: a batch to model inputs, one update, one evaluated batch."""

from flax import nnx
import jax
import jax.numpy as jnp
import optax

from mma_dfer_jax.metrics import confusion_matrix
from mma_dfer_jax.train_state import TrainState

Batch = dict[str, jax.Array]


def model_inputs(batch: Batch) -> tuple[jax.Array, jax.Array]:
  """Video (B, T, H, W, 3) float32 in [0, 1] and spectrogram (B, F, K).

  Pixels travel to the device as uint8, a quarter of the bytes, and exactly: nothing normalises them further.
  """
  return batch["video"].astype(jnp.float32) / 255.0, batch["spectrogram"]


def train_step(
  state: TrainState,
  batch: Batch,
  key: jax.Array,
  *,
  graphdef: nnx.GraphDef,
  tx: optax.GradientTransformation,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """One update on the mean cross-entropy of a batch; the drop path of a step depends on key and step alone."""

  def loss_fn(tunable):
    model = nnx.merge(graphdef, tunable, state.frozen)
    logits = model(*model_inputs(batch), rngs=nnx.Rngs(drop_path=jax.random.fold_in(key, state.step)))
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean(), logits

  (loss, logits), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.tunable)
  updates, opt_state = tx.update(grads, state.opt_state, state.tunable)
  tunable = optax.apply_updates(state.tunable, updates)
  metrics = {
    "loss": loss,
    "accuracy": 100.0 * (logits.argmax(axis=-1) == batch["label"]).mean(),
    "grad_norm": optax.tree.norm(grads),
  }
  return state._replace(step=state.step + 1, tunable=tunable, opt_state=opt_state), metrics


def eval_step(
  tunable: nnx.State, frozen: nnx.State, batch: Batch, *, graphdef: nnx.GraphDef
) -> dict[str, jax.Array]:
  """Sums over the real clips of a batch: confusion matrix (C, C) int32, cross-entropy, clips without sound."""
  logits = nnx.merge(graphdef, tunable, frozen)(*model_inputs(batch))
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
  return {
    "confusion": confusion_matrix(logits, batch["label"], batch["mask"]),
    "loss": (losses * batch["mask"]).sum(),
    "without_sound": (batch["mask"] & ~batch["has_audio"]).sum(),
  }
