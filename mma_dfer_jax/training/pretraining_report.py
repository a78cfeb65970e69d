"""What a pretraining leaves: the encoder's file, the loss curve, restored examples, and a report of them."""

from collections.abc import Mapping, Sequence
import dataclasses
from pathlib import Path
from typing import Any

from flax import nnx
import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np

from mma_dfer_jax import __version__
from mma_dfer_jax.autoencoder import AutoencoderConfig, MaskedAutoencoder, on_grid, restored
from mma_dfer_jax.disk import write_json
from mma_dfer_jax.errors import UserError, count
from mma_dfer_jax.inputs import Inputs
from mma_dfer_jax.parameters import count as elements
from mma_dfer_jax.parameters import flat_params, put_over
from mma_dfer_jax.training import read_out, sharding
from mma_dfer_jax.training.check import clips_of
from mma_dfer_jax.training.report import empty_figure, plus_minus, save_figure, table, write_markdown
from mma_dfer_jax.training.state import TrainState
from mma_dfer_jax.weights.encoder_file import write_encoder

SHOWN = 6  # examples in the picture
READ_OUT_LABELS = (1, 3, 10)  # labelled clips of a class


def write(task: Any, workdir: Path, state: TrainState, history: Sequence[Mapping[str, Any]]) -> str:
  """Writes what the `Pretraining` leaves: its encoder's file and a report; returns a line for people.

  All processes call it, for they may hold a parameter in pieces; the first one writes.
  """
  trained = {path: _whole(variable[...]) for path, variable in flat_params(state.tunable).items()}
  if jax.process_index():
    return ""
  model = task.fresh_model()
  for start in task.starts:  # the positions, which are not trained
    put_over(model, start.read())
  put_over(model, trained)
  c, m, checked = task.config, task.checked.model, task.checked
  loss = history[-1]["loss"]
  about = {
    "config": task.run["config"], "recipe": task.run["recipe"], "data_set": task.run["data_set"], "steps": task.total_steps,
    "loss": loss, "started_from": "; ".join(start.describe() for start in task.starts) or "random weights",
    "version": __version__,
  }  # fmt: skip
  arrays = {path: np.asarray(variable[...]) for path, variable in flat_params(nnx.state(model)).items()}
  written = write_encoder(workdir, m, arrays, about, pth=task.pth)
  _draw_curve(workdir, history, m.norm_pix)
  rows, why_not = _read_out(task, model)
  _draw_restored(workdir, task, model)
  report = {
    "loss": loss, "steps": task.total_steps, f"{task.unit}s_seen": task.total_steps * c.batch_size,
    f"{task.unit}s": len(checked.examples), "clips": checked.examples.clips,
    "encoder_parameters": elements({p: a for p, a in arrays.items() if p.startswith("encoder/")}),
    "decoder_parameters": elements({p: a for p, a in arrays.items() if p.startswith("decoder/")}),
    "peak_memory_gib": round(sharding.peak_memory(), 3), "read_out": rows,
    "curve": [{key: point[key] for key in ("step", "loss")} for point in history], **about,
  }  # fmt: skip
  _write_markdown(workdir / "report.md", report, m, written[0], why_not)
  write_json(workdir / "report.json", report)
  return f"loss {loss:.4f}; {' and '.join(map(str, written))}; {workdir}/report.md"


def _write_markdown(
  path: Path, report: Mapping[str, Any], m: AutoencoderConfig, encoder: Path, why_not: str
) -> None:
  facts = [
    (key.replace("_", " "), value) for key, value in report.items() if isinstance(value, int | float | str)
  ]
  rows = [(row["labels"], row["draws"], plus_minus(row["war"]), plus_minus(row["other"]["war"]), plus_minus(row["difference"]["war"]))
          for row in report["read_out"]]  # fmt: skip
  write_markdown(
    path,
    f"# Pretraining of the {m.stream} encoder",
    f"Loss {report['loss']:.4f} after {count(report['steps'], 'step')}" + ", where 1 is to predict each patch's mean." * m.norm_pix,
    "![loss](loss_curve.png)",
    "What the encoder sees, what the decoder makes of it, and the original. With normalised targets a patch is shown in its "
    "own brightness and contrast, which the decoder does not predict.",
    "![restored examples](restored.png)",
    "## Few-shot read-out",
    why_not or "Ridge regression on frozen features of labelled clips, tested on all clips of the test split: WAR, mean ± standard "
    "deviation (n − 1) over draws, and the gain over the same encoder at its random start, paired draw by draw.",
    table(["labelled clips of a class", "draws>", "WAR>", "random start>", "gain>"], rows) * bool(rows),
    "## Use",
    "To train a model with this encoder:",
    f"    python -m mma_dfer_jax.train --config=… --config.pretrained.{m.stream}={encoder}",
    table(["", ""], facts),
    "Config:",
    "\n".join(f"- `{key}` = `{value}`" for key, value in report["config"].items()),
  )  # fmt: skip


def _read_out(task: Any, model: MaskedAutoencoder) -> tuple[list[dict[str, Any]], str]:
  """What a few labels are worth with this encoder and with its random start; or why that cannot be said."""
  checked, c, stream = task.checked, task.config, task.checked.model.stream
  data_set, clips = checked.data_set, dict[str, int]()
  try:
    train, test = data_set.train_and_test(c.data.fold)
    clips = clips_of(data_set, train)
  except UserError as error:
    return [], f"There is none: {error}."
  labels = read_out.possible_labels(clips, READ_OUT_LABELS) if clips else []
  if not clips or not labels or read_out.problems_of_labels(clips, labels, train):
    return [], "There is none: it needs labelled clips of two classes and more in the data set."
  inputs = dataclasses.replace(checked.model.inputs, num_frames=Inputs.num_frames)
  groups = []
  for encoder in (model.encoder, task.fresh_model().encoder):
    of_clips = checked.model.encoder.build(stream, inputs, 0, rngs=nnx.Rngs(0))
    put_over(of_clips, {path: variable[...] for path, variable in flat_params(nnx.state(encoder)).items()})
    groups.append({stream: of_clips})
  mesh = jax.sharding.Mesh(np.array(jax.local_devices()[:1]).reshape(1, 1), ("data", "fsdp"))
  found = []
  for split in (train, test):
    how: dict[str, Any] = {"mesh": mesh, "batch_size": 16, "title": f"features of {split}"}
    found.append(read_out.features(groups, data_set.records(split), inputs, **how))
  pairs: Any = zip(*found, strict=True)
  answers = [read_out.few_shot(one, other, data_set.classes, labels=labels) for one, other in pairs]
  return read_out.score_rows(*answers), ""


def _whole(array: Any) -> np.ndarray:
  """A parameter, on this host, however the devices hold it."""
  here = array.is_fully_addressable
  return np.asarray(array if here else multihost_utils.process_allgather(array, tiled=True))


def _draw_curve(workdir: Path, history: Sequence[Mapping[str, Any]], norm_pix: bool) -> None:
  figure = empty_figure(6.0, 4.0)
  axes = figure.subplots()
  steps, losses = ([point[key] for point in history] for key in ("step", "loss"))
  axes.plot(steps, losses, marker="o", markersize=3)
  if norm_pix:
    axes.axhline(1.0, linestyle=":", color="gray")
    axes.annotate("the mean of each patch", (0.99, 1.0), xycoords=("axes fraction", "data"), ha="right", va="bottom", color="gray")  # fmt: skip
  axes.set(xlabel="step", ylabel="loss on removed patches, mean since the point before")
  axes.grid(alpha=0.3)
  save_figure(figure, workdir / "loss_curve.png")


def _draw_restored(workdir: Path, task: Any, model: MaskedAutoencoder) -> None:
  """Masked, restored and original, a row each; examples without augmentation, masks from the run's seed."""
  m = task.checked.model
  (examples,) = task.make(augmented=False, examples=SHOWN)(0).values()
  noise = jax.random.uniform(jax.random.key(task.config.seed), (m.patches, SHOWN))
  graphdef, state = nnx.split(model)

  @jax.jit  # operation by operation a hundred programs would be compiled
  def draw(state: nnx.State, examples: jax.Array) -> list[jax.Array]:
    model = nnx.merge(graphdef, state)
    made, values = model(examples, noise), model.patch_values(examples)
    masked = jnp.where(made.removed[:, :, None] > 0, 0.5 if m.stream == "image" else jnp.nan, values)
    columns = masked, restored(values, made, m.norm_pix), values
    return [on_grid(column, m.grid, m.encoder.patch_size) for column in columns]

  pictures = [np.asarray(column) for column in draw(state, jnp.asarray(examples))]
  height, width = pictures[0].shape[1:3] if m.stream == "image" else pictures[0].shape[2:0:-1]
  figure = empty_figure(3 * SHOWN * min(width / height, 1.5) / 2, 5.0)
  for row, (title, of_row) in enumerate(zip(("masked", "restored", "original"), pictures, strict=True)):
    for column, picture in enumerate(of_row):
      axes = figure.add_subplot(3, SHOWN, row * SHOWN + column + 1)
      if m.stream == "image":
        axes.imshow(np.clip(picture, 0, 1))
      else:  # time to the right, high frequencies above
        low, high = float(pictures[2].min()), float(pictures[2].max())
        axes.imshow(picture[:, :, 0].T, origin="lower", vmin=low, vmax=high, aspect="auto", cmap="magma")
        axes.set_facecolor("lightgray")
      axes.set(xticks=[], yticks=[])
      if not column:
        axes.set_ylabel(title)
  save_figure(figure, workdir / "restored.png")
