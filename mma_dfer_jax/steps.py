"""One update and one evaluated batch, the pure functions that are jitted; and the evaluation of a whole split."""

from collections.abc import Callable, Sequence
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np
import optax
import tqdm

from mma_dfer_jax.data.pipeline import EvalOrder, Preprocessing, eval_batches
from mma_dfer_jax.metrics import confusion_matrix
from mma_dfer_jax.sharding import batch_sharding, to_global
from mma_dfer_jax.train_state import TrainState
from mma_dfer_jax.vit import PRECISIONS

Batch = dict[str, jax.Array]


def model_inputs(batch: Batch, precision: str = "float32") -> tuple[jax.Array, jax.Array]:
  """Video (B, T, H, W, 3) in [0, 1] and spectrogram (B, F, K).

  Pixels travel to the device as uint8, a quarter of the bytes, and exactly: nothing normalises them further.
  """
  dtype = PRECISIONS[precision]
  return (batch["video"].astype(jnp.float32) / 255.0).astype(dtype), batch["spectrogram"].astype(dtype)


def abstract_batch(spec: Preprocessing, batch_size: int, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes and types of a batch as the pipeline makes them and `to_global` spreads them."""
  shapes = {
    "video": ((spec.num_frames, spec.image_size, spec.image_size, 3), jnp.uint8),
    "spectrogram": (spec.audio_shape, jnp.float32),
    "label": ((), jnp.int32),
    "has_audio": ((), jnp.bool_),
    "mask": ((), jnp.bool_),
  }
  sharding = batch_sharding(mesh)
  return {
    name: jax.ShapeDtypeStruct((batch_size, *shape), dtype, sharding=sharding)
    for name, (shape, dtype) in shapes.items()
  }


def in_precision(parameters: nnx.State, precision: str) -> nnx.State:
  """Parameters as the model computes with them: all of it follows the dtype of what it is given.

  The classifier stays in float32, and so do logits and loss; LayerNorm takes its means in float32 by itself.
  """
  dtype = PRECISIONS[precision]
  return nnx.from_flat_state(
    (path, variable if path[0] == "classifier" else jax.tree.map(lambda x: x.astype(dtype), variable))
    for path, variable in nnx.to_flat_state(parameters)
  )


def train_step(
  state: TrainState,
  batch: Batch,
  key: jax.Array,
  *,
  graphdef: nnx.GraphDef,
  tx: optax.GradientTransformation,
  remat: str = "none",
  precision: str = "float32",
) -> tuple[TrainState, dict[str, jax.Array]]:
  """One update on the mean cross-entropy of a batch; the drop path of a step depends on key and step alone.

  Args:
    state, batch: as they are kept: tunable parameters and moments in float32, whatever the precision.
    key: of the run.
    graphdef, tx: of the model and of the optimizer.
    remat: what is kept for the backward pass, one of `vit.REMAT`.
    precision: of what is computed, one of `vit.PRECISIONS`; logits and loss are float32.
  """

  def loss_fn(tunable):
    model = nnx.merge(graphdef, in_precision(tunable, precision), state.frozen)
    rngs = nnx.Rngs(drop_path=jax.random.fold_in(key, state.step))
    logits = model(*model_inputs(batch, precision), rngs=rngs, remat=remat).astype(jnp.float32)
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
  tunable: nnx.State, frozen: nnx.State, batch: Batch, *, graphdef: nnx.GraphDef, precision: str = "float32"
) -> dict[str, jax.Array]:
  """Sums over the real clips of a batch: confusion matrix (C, C) int32, cross-entropy, clips without sound."""
  model = nnx.merge(graphdef, in_precision(tunable, precision), in_precision(frozen, precision))
  logits = model(*model_inputs(batch, precision)).astype(jnp.float32)
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
  return {
    "confusion": confusion_matrix(logits, batch["label"], batch["mask"]),
    "loss": (losses * batch["mask"]).sum(),
    "without_sound": (batch["mask"] & ~batch["has_audio"]).sum(),
  }


def evaluate_split(
  eval_fn: Callable[[nnx.State, nnx.State, Batch], dict[str, jax.Array]],
  tunable: nnx.State,
  frozen: nnx.State,
  records: Sequence[Any],
  spec: Preprocessing,
  *,
  mesh: Mesh,
  batch_size: int,
  num_workers: int = 0,
  prefetch: int = 2,
  without: str = "",
  title: str = "evaluate",
  stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any] | None:
  """Every clip of a split through the model, once.

  Args:
    eval_fn: `eval_step`, jitted, with its graph definition bound.
    without: "sound" or "picture" to take that away from every clip.
    stop: asked before each batch; if true, the evaluation ends without a result.
  Returns:
    confusion_matrix (C, C), loss (mean cross-entropy), clips_without_sound; or None if stopped.
  """
  order = EvalOrder(records, 0, batch_size, 1, jax.process_index(), jax.process_count())
  with eval_batches(order, spec, num_workers=num_workers, prefetch=prefetch, without=without) as batches:
    sums = None
    bar = tqdm.tqdm(
      total=len(records), desc=title, unit="clip", leave=False, disable=jax.process_index() != 0
    )
    for batch in batches:
      if stop():
        return None
      result = eval_fn(tunable, frozen, to_global(batch, mesh))
      sums = result if sums is None else jax.tree.map(jnp.add, sums, result)
      bar.update(min(batch_size, len(records) - bar.n))
    bar.close()
  sums = jax.tree.map(np.asarray, sums)
  if sums["confusion"].sum() != len(records):
    raise RuntimeError(f"{sums['confusion'].sum()} clips were counted, the split has {len(records)}")
  return {
    "confusion_matrix": sums["confusion"].tolist(),
    "test_loss": float(sums["loss"]) / len(records),
    "clips_without_sound": int(sums["without_sound"]),
  }
