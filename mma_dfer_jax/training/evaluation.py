"""How a split is evaluated: every clip through the model, once, on all devices of all processes."""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from mma_dfer_jax.data.pipeline import EvalOrder, load_batches
from mma_dfer_jax.inputs import Inputs
from mma_dfer_jax.progress import Progress
from mma_dfer_jax.training import hosts
from mma_dfer_jax.training.predictions import Predictions
from mma_dfer_jax.training.sharding import compiler_options, replicated, to_global
from mma_dfer_jax.training.steps import Batch, Metrics, eval_step


def jit_eval(graphdef: nnx.GraphDef, mesh: Mesh, precision: str) -> Callable[..., Metrics]:
  """`eval_step`, jitted: (tunable, frozen, batch) -> its sums and logits, with the clips' places, on all devices."""

  def evaluate(tunable, frozen, batch):
    found = eval_step(tunable, frozen, batch, graphdef=graphdef, precision=precision)
    return found | {"label": batch["label"], "position": batch["position"]}

  return jax.jit(evaluate, out_shardings=replicated(mesh), compiler_options=compiler_options())


def evaluate_split(
  eval_fn: Callable[[Batch], Metrics], records: Sequence[Any], inputs: Inputs, classes: Sequence[str], *, mesh: Mesh,
  batch_size: int, num_workers: int = 0, prefetch: int = 2, without: str = "", title: str = "evaluate",
  stop: Callable[[], bool] = lambda: False,
) -> tuple[dict[str, Any], Predictions] | None:  # fmt: skip
  """Every clip of a split through the model, once, as `jit_eval` with parameters (`eval_fn`) evaluates a batch.

  With `inputs.test_views` above 1 that many parts of each, whose probabilities are averaged.

  Args:
    classes: names, in the order of the logits.
    without: "sound" or "picture" to take that away from every clip.
    stop: asked before each batch; if true, the evaluation ends without a result.
  Returns:
    {confusion_matrix (C, C), test_loss (mean), clips_without_sound}, and `layers` (means of `parts.OF_LAYERS`) if the model
    says them, and all answers in all processes; None if stopped.
  """
  views: list[tuple[Any, Predictions]] = []
  for view in range(inputs.test_views):
    found = _one_view(eval_fn, records, inputs, classes, view, mesh=mesh, batch_size=batch_size, num_workers=num_workers,
                      prefetch=prefetch, without=without, title=title, stop=stop)  # fmt: skip
    if found is None:
      return None
    views.append(found)
  sums, predictions = views[0]
  if len(views) > 1:
    mean = np.mean([of.probabilities for _, of in views], axis=0)
    predictions = dataclasses.replace(predictions, probabilities=mean)
    right = np.take_along_axis(mean, predictions.labels[:, None], axis=1)
    said = jax.tree.map(lambda *of_views: np.mean(of_views, axis=0), *(of["said"] for of, _ in views))
    sums = {**sums, "confusion": predictions.scores.confusion, "loss": -np.log(right).sum(), "said": said}
  layers = {name: (value / len(records)).tolist() for name, value in sums["said"].items()}
  return {
    "confusion_matrix": sums["confusion"].tolist(),
    "test_loss": float(sums["loss"]) / len(records),
    "clips_without_sound": int(sums["without_sound"]),
  } | ({"layers": layers} if layers else {}), predictions


def _one_view(
  eval_fn: Callable[[Batch], Metrics], records: Sequence[Any], inputs: Inputs, classes: Sequence[str], view: int, *,
  mesh: Mesh, batch_size: int, num_workers: int, prefetch: int, without: str, title: str, stop: Callable[[], bool],
) -> tuple[dict[str, Any], Predictions] | None:  # fmt: skip
  """The sums over one part of each clip, and all answers to it; None if stopped."""
  order = EvalOrder(records, 0, batch_size, 1, jax.process_index(), jax.process_count())
  share, clips, answers = batch_size // order.num_hosts, [], []
  with (
    load_batches(
      order, inputs, num_workers=num_workers, prefetch=prefetch, without=without, view=view
    ) as batches,
    Progress(title, len(records), leave=False, show=order.host == 0) as bar,
  ):
    sums: Any = None
    for step, batch in enumerate(batches):
      if stop():
        return None
      position = step * batch_size + order.host * share + np.arange(share, dtype=np.int32)
      found = dict(eval_fn(to_global({**batch, "position": position}, mesh)))
      answers.append({name: found.pop(name) for name in ("position", "label", "logits")})
      sums = found if sums is None else jax.tree.map(jnp.add, sums, found)
      clips += [clip.decode() for clip in batch["clip_id"].tolist()]
      bar.update(min(batch_size, len(records) - step * batch_size))
  sums = jax.tree.map(np.asarray, sums)
  # The answers of all processes in the order of the split, without those that only fill up the last batch.
  said = {name: np.concatenate([np.asarray(answer[name]) for answer in answers]) for name in answers[0]}
  real = np.argsort(said["position"])[: len(records)]
  names = np.array(hosts.gathered(clips), object).reshape(-1, len(answers), share).swapaxes(0, 1).ravel()
  predictions = Predictions.of_logits(
    classes, names[: len(records)], said["label"][real], said["logits"][real]
  )
  if not (sums["confusion"] == predictions.scores.confusion).all() or sums["confusion"].sum() != len(records):
    raise RuntimeError(f"{sums['confusion'].sum()} clips were counted, the split has {len(records)}")
  return sums, predictions
