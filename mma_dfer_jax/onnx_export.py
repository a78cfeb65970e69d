"""A trained model as one ONNX file: written from its own program, read back and compared, if wanted in 8-bit integers."""

from collections.abc import Sequence
import dataclasses
from pathlib import Path
from typing import Any

from flax import nnx
import jax
from jax import export
import numpy as np

from mma_dfer_jax.data import demo
from mma_dfer_jax.data.arrays import read_arrays
from mma_dfer_jax.disk import new_file
from mma_dfer_jax.engines import onnxruntime
from mma_dfer_jax.engines.engine import Engine, about_of
from mma_dfer_jax.engines.jax import JaxEngine
from mma_dfer_jax.errors import UserError, count, few
from mma_dfer_jax.model import MmaDfer
from mma_dfer_jax.onnx_graph import file
from mma_dfer_jax.parameters import flat_params
from mma_dfer_jax.prediction import clip_sample, face_finder, sound_channel
from mma_dfer_jax.progress import watched

LARGEST = 2**31 - 2**20  # bytes: protobuf's limit for a file, and room for what is no weight
TOLERANCE = 1e-5  # of a logit, as a share of the largest, or of 1: what the order of sums makes in float32
Clip = tuple[str, tuple[np.ndarray, ...]]  # name, and what the model takes: (T, H, W, 3) uint8, (F, K), …


def graph_of(engine: JaxEngine) -> Any:
  """The engine's computation as an ONNX model of any number of clips, logits first; it takes video in uint8."""
  from mma_dfer_jax.onnx_graph.writer import to_onnx

  states = [nnx.to_flat_state(state) for state in (engine.tunable, engine.frozen)]

  outputs = ["logits", *engine.extras]

  def compute(weights: dict[str, Any], *arrays: Any) -> Any:
    tunable, frozen = (
      nnx.from_flat_state((path, v.replace(weights["/".join(map(str, path))])) for path, v in state)
      for state in states
    )
    found = engine.compute(tunable, frozen, *arrays)
    return [found[name] for name in outputs]

  (any_number,) = export.symbolic_shape("b")
  kinds = {"video": np.uint8}
  shapes = {name: jax.ShapeDtypeStruct((any_number, *shape), kinds.get(name, np.float32))
            for name, shape in engine.about.inputs.shapes.items()}  # fmt: skip
  weights = {
    path: v[...] for state in (engine.tunable, engine.frozen) for path, v in flat_params(state).items()
  }
  return to_onnx(compute, weights, shapes, *outputs)


def given_clips(engine: Engine, files: Sequence[str], face_model: str | None) -> list[Clip]:
  """Video files as the model is given them, faces and sound as in its training; MediaError for one that cannot be read."""
  about = engine.about
  finder, channel = face_finder(engine, "auto", face_model), sound_channel(about.recipe, "auto")
  samples = (
    clip_sample(about.inputs, one, finder, channel=channel) for one in watched(files, "read", len(files))
  )
  return [(name, sample.arrays) for name, sample in samples]


def generated_clips(engine: Engine, number: int) -> list[Clip]:
  """Clips of the demo, at most one for each of its seven classes: drawn faces with synthetic voices, and any points."""
  clips: list[Clip] = []
  inputs = engine.about.inputs
  for i, (label, (gesture, style)) in enumerate(list(demo.CLASSES.items())[:number]):
    faces, voice = np.random.default_rng([0, i]).spawn(2)
    frames = demo.clip_picture(gesture, faces, demo.MAX_FRAMES)
    waveform = demo.clip_voice(style, voice, demo.MAX_FRAMES / demo.FPS)
    arrays = read_arrays(frames, waveform, demo.SAMPLE_RATE, dataclasses.replace(inputs, points=0))
    if inputs.points:  # a detector need not be there
      points = faces.random(inputs.points_shape, np.float32)
      arrays += (np.concatenate([points[..., :2], np.ones_like(points[..., 2:])], axis=-1),)
    clips.append((f"generated, {label}", arrays))
  return clips


def write_onnx(
  engine: JaxEngine, said: dict[str, Any], out: Path, clips: Sequence[Clip], *, int8: bool, limit: float
) -> dict[str, Any]:  # fmt: skip
  """Writes the file, which gets its name after it has answered clips as the engine does; returns its description.

  Args:
    said: facts about the model, as `export` says them of any file.
    limit: of int8, the largest difference of a probability.
  Raises:
    UserError: if the model cannot be written, or the file's answers differ by more; nothing was written then.
  """
  size = sum(leaf.nbytes for leaf in jax.tree.leaves((engine.tunable, engine.frozen)))
  if size > LARGEST:
    raise UserError(f"the model has {size / 2**30:.1f} GiB of weights, but an ONNX file takes 2 GiB")
  model = graph_of(engine)
  if int8:
    from mma_dfer_jax.onnx_graph.int8 import quantise

    quantise(model, MmaDfer.FLOAT32)
    said = said | {"precision": "int8"}
  with new_file(out, replace=True) as partial:
    said = file.write(partial, model, said)
    answering = onnxruntime.load(partial, about_of(said), None)
    said["agreement"] = found = agreement(engine, answering, clips)
    if not int8:
      allowed = TOLERANCE * max(1.0, found["largest_logit"])
      if not found["largest_logit_difference"] <= allowed:  # NaN is not either
        raise UserError(
          f"logits of the file differ by up to {found['largest_logit_difference']:.1e} from those of the model (allowed: "
          f"{allowed:.0e}); nothing was written. jax {jax.__version__} or onnxruntime computes this model otherwise"
        )
    elif not found["largest_probability_difference"] <= limit:
      raise UserError(f"{in_words(found)}. That is more than --limit={limit:g}; nothing was written: use float32, or bfloat16 by "
                      "OpenVINO")  # fmt: skip
    return file.write(partial, model, said)


def agreement(engine: Engine, other: Engine, clips: Sequence[Clip]) -> dict[str, Any]:
  """How far the answers of two engines to clips are from each other."""
  logits = np.stack([[one(*(array[None] for array in arrays))[0] for one in (engine, other)]
                     for _, arrays in watched(clips, "compare", len(clips))])  # (N, 2, C)  # fmt: skip
  shares = np.exp(logits - logits.max(-1, keepdims=True))
  shares /= shares.sum(-1, keepdims=True)
  top = logits.argmax(-1)
  return {
    "with": f"the same model by {engine.name}, in {engine.about.precision}",
    "clips": [name for name, _ in clips],
    "largest_logit": float(np.abs(logits[:, 0]).max()),
    "largest_logit_difference": float(np.abs(logits[:, 1] - logits[:, 0]).max()),
    "largest_probability_difference": float(np.abs(shares[:, 1] - shares[:, 0]).max()),
    "another_top_class": [name for (name, _), (a, b) in zip(clips, top, strict=True) if a != b],
  }


def in_words(found: dict[str, Any]) -> str:
  """What `agreement` found, in a sentence."""
  clips, other = len(found["clips"]), found["another_top_class"]
  return (f"against {found['with']}, on {count(clips, 'clip')}: largest difference of a logit "
          f"{found['largest_logit_difference']:.1e} (of {found['largest_logit']:.1f}), of a probability "
          f"{found['largest_probability_difference']:.1e}; same top class on {clips - len(other)} of {clips}"
          + f", not on {few(other)}" * bool(other))  # fmt: skip
