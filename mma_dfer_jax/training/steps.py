"""One update and one evaluated batch: the pure functions that are jitted."""

from collections.abc import Callable, Mapping
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import optax

from mma_dfer_jax.inputs import Inputs
from mma_dfer_jax.parameters import PRECISIONS, cast
from mma_dfer_jax.parts import OF_LAYERS, Outputs
from mma_dfer_jax.training.objective import Terms, total
from mma_dfer_jax.training.scores import confusion_matrix
from mma_dfer_jax.training.sharding import batch_sharding
from mma_dfer_jax.training.state import TrainState

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]
# (model, batch, what was drawn for it, remat, what `WholeFn` shares) -> the terms of the loss, and other numbers of each
# clip to be logged.
LossFn = Callable[[Any, Batch, Any, str, Any], tuple[Terms, Metrics]]
# (batch, key, step) -> the batch to train on, and what the losses of all its clips share: whatever needs all clips at once.
WholeFn = Callable[[Batch, jax.Array, jax.Array], tuple[Batch, Any]]
# (model, rngs, clips) -> arrays whose last axis is of clips, or of sequences clip by clip.
DrawFn = Callable[[Any, nnx.Rngs, int], Any]


def abstract_batch(
  inputs: Inputs, batch_size: int, mesh: Mesh, votes: int = 0, faces: bool = False
) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes and types of a batch as the pipeline makes them and `to_global` spreads them."""
  shapes = {"video": (inputs.video_shape, jnp.uint8), "spectrogram": (inputs.audio_shape, jnp.float32),
            "label": ((), jnp.int32), "has_audio": ((), jnp.bool_), "mask": ((), jnp.bool_)}  # fmt: skip
  if votes:
    shapes["votes"] = (votes,), jnp.uint8
  if faces:
    shapes |= {
      "landmarks": ((inputs.num_frames, 5, 3), jnp.float32),
      "face_box": ((inputs.num_frames, 5), jnp.float32),
    }
  sharding = batch_sharding(mesh)
  return {n: jax.ShapeDtypeStruct((batch_size, *s), of, sharding=sharding) for n, (s, of) in shapes.items()}


def model_inputs(batch: Batch, precision: str) -> tuple[jax.Array, ...]:
  """Video (B, T, H, W, 3) uint8, as it travelled, spectrogram (B, F, K) in the precision of the computation, and landmarks
  (B, T, p, 3) float32 if the batch has them.
  """
  points = [batch[name] for name in ("landmarks",) if name in batch]
  return batch["video"], batch["spectrogram"].astype(PRECISIONS[precision]), *points


def train_step(
  state: TrainState, batch: Batch, key: jax.Array, *, graphdef: nnx.GraphDef, tx: optax.GradientTransformation,
  loss_fn: LossFn, draw_fn: DrawFn, whole_fn: WholeFn = lambda batch, key, step: (batch, None), micro_batch: int = 0, mesh: Mesh | None = None, remat: str = "none",
  precision: str = "float32",
) -> tuple[TrainState, Metrics]:  # fmt: skip
  """One update on the mean loss of a batch; what is drawn for a step depends on key and step alone.

  Args:
    state, batch, key: tunable parameters and moments are float32, whatever the precision; the key is that of the run.
    whole_fn: called before a batch is cut into micro-batches, with the key of this step.
    micro_batch: clips that go through the model at once, a divisor of the batch; 0: all. It changes only the order of
      sums; memory is that of one micro-batch.
    mesh: over which a batch is spread; None: one device.
    remat: what is kept for the backward pass, one of `layers.REMAT`.
    precision: of what is computed, one of `parameters.PRECISIONS`; logits and loss are float32.
  """
  clips = len(jax.tree.leaves(batch)[0])
  parts = clips // (micro_batch or clips)
  key = jax.random.fold_in(key, state.step)
  rngs = nnx.Rngs(drop_path=key, masks=key)
  # For all clips, before they are divided.
  batch, shared = whole_fn(batch, key, state.step)
  drawn = draw_fn(nnx.merge(graphdef, state.tunable, state.frozen), rngs, clips)

  def loss_of(tunable, part, drawn):
    model = nnx.merge(graphdef, cast(tunable, precision), state.frozen)
    terms, metrics = loss_fn(model, part, drawn, remat, shared)
    means = {name: term.losses.mean() for name, term in terms.items()}
    apart = means if len(means) > 1 else {}  # a single one is the loss
    return total(means, terms), {**apart, **jax.tree.map(jnp.mean, metrics)}

  def add(total, part):
    (loss, metrics), grads = gradient(state.tunable, *part)
    return jax.tree.map(lambda s, g: s + g / parts, total, grads), (loss, metrics)

  gradient = jax.value_and_grad(loss_of, has_aux=True)
  if parts == 1:
    (loss, metrics), grads = gradient(state.tunable, batch, drawn)
  else:
    zeros = jax.tree.map(jnp.zeros_like, state.tunable)
    grads, each = jax.lax.scan(add, zeros, _divided(batch, drawn, parts, mesh))
    loss, metrics = jax.tree.map(jnp.mean, each)
  updates, opt_state = tx.update(grads, state.opt_state, state.tunable)
  tunable = optax.apply_updates(state.tunable, updates)
  metrics = {"loss": loss, **metrics, "grad_norm": optax.tree.norm(grads)}
  return state._replace(step=state.step + 1, tunable=tunable, opt_state=opt_state), metrics


def _divided(batch: Batch, drawn: Any, parts: int, mesh: Mesh | None) -> tuple[dict[str, jax.Array], Any]:
  """A batch and what was drawn for it, with an axis of parts in front.

  Part i has the clips i, n + i, 2n + i, …: each device keeps its own, and the only talk between devices is the sum.
  """

  def split(x: jax.Array, clips_per_row: int, axis: int) -> jax.Array:
    rows = x.shape[axis] // (parts * clips_per_row)
    x = x.reshape(*x.shape[:axis], rows, parts, clips_per_row, *x.shape[axis + 1 :])
    x = jnp.moveaxis(x, axis + 1, 0)
    return x.reshape(parts, *x.shape[1 : axis + 1], rows * clips_per_row, *x.shape[axis + 3 :])

  clips = len(jax.tree.leaves(batch)[0])
  here = {name: split(value, 1, 0) for name, value in batch.items()}
  if mesh is not None and mesh.size > 1:
    spread = NamedSharding(mesh, PartitionSpec(None, ("data", "fsdp")))
    here = jax.lax.with_sharding_constraint(here, spread)
  # The last axis of what was drawn has one row for each sequence, so many for each clip.
  return here, jax.tree.map(lambda x: split(x, x.shape[-1] // clips, x.ndim - 1), drawn)


def eval_step(tunable: nnx.State, frozen: nnx.State, batch: Batch, *, graphdef: nnx.GraphDef, precision: str = "float32") -> Metrics:  # fmt: skip
  """What `sums` says of the model's answers to a batch."""
  model = nnx.merge(graphdef, cast(tunable, precision), cast(frozen, precision))
  return sums(in_float32(model(*model_inputs(batch, precision))), batch)


def sums(outputs: Outputs, batch: Batch) -> Metrics:
  """Sums over the real clips of a batch: confusion matrix (C, C) int32, cross-entropy, clips without sound; and its logits.

  The loss is cross-entropy whatever a model was trained with, so that models can be compared.
  """
  losses = optax.softmax_cross_entropy_with_integer_labels(outputs.logits, batch["label"])
  return {
    "confusion": confusion_matrix(outputs.logits, batch["label"], batch["mask"]),
    "loss": (losses * batch["mask"]).sum(),
    "without_sound": (batch["mask"] & ~batch["has_audio"]).sum(),
    "logits": outputs.logits,
    # What a report says of the model, as means over clips.
    "said": {name: jnp.tensordot(batch["mask"].astype(jnp.float32), outputs.extra[name], 1)
             for name in OF_LAYERS if name in outputs.extra},
  }  # fmt: skip


def in_float32(outputs: Any) -> Any:
  """What losses and scores are computed of, whatever the precision of the model; float64 stays."""
  return jax.tree.map(lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)), outputs)
