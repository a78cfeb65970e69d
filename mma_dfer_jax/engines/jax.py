"""Answers with a run or a model folder, by JAX: the same program as in training."""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import hashlib
from pathlib import Path
from typing import Any

from flax import nnx
import jax
from jax.sharding import Sharding
from jaxtyping import Array, Float, Float32
import numpy as np

from mma_dfer_jax.engines.engine import (
  IF_KNOWN,
  NO_FRAMES,
  OWN_CLASSES,
  About,
  Engine,
  check_inputs,
  refuse_step,
)
from mma_dfer_jax.errors import UserError
from mma_dfer_jax.model import ModelConfig
from mma_dfer_jax.parameters import PRECISIONS, abstract_model, cast, count, split_tunable, tunable_patterns
from mma_dfer_jax.parts import Outputs
from mma_dfer_jax.training.run import read_run
from mma_dfer_jax.training.sharding import check_precision, keep_compiled
from mma_dfer_jax.training.start import class_axes, open_stored
from mma_dfer_jax.training.steps import in_float32
from mma_dfer_jax.weights.class_vectors import PATH, open_class_vectors

OPENS = "the workdir of a run (with run.json), or a folder that convert wrote (with model.json)"
MATMUL_PRECISION = "float32"  # accelerators would otherwise compute float32 in TF32 or bfloat16


@dataclasses.dataclass(frozen=True, repr=False)
class JaxEngine(Engine):
  """MMA-DFER in JAX."""

  cfg: ModelConfig  # parts and sizes
  graphdef: nnx.GraphDef  # with the two states, in `about.precision`, `nnx.merge` makes the Flax module
  tunable: nnx.State
  frozen: nnx.State

  def compute(
    self,
    tunable: nnx.State,
    frozen: nnx.State,
    video: Array,
    spectrogram: Float[Array, "B F K"],
    *landmarks: Array,
  ) -> dict[str, Float32[Array, "B ..."]]:
    """The computation of all outputs, to be traced."""
    with jax.default_matmul_precision(MATMUL_PRECISION):
      model = nnx.merge(self.graphdef, tunable, frozen)
      return by_name(model(video, spectrogram.astype(PRECISIONS[self.about.precision]), *landmarks))

  @functools.cached_property
  def extras(self) -> dict[str, tuple[int, ...]]:
    """Shapes of the outputs beside the logits, without their first axis B."""
    clips = [jax.ShapeDtypeStruct((1, *shape), np.uint8 if name == "video" else np.float32)
             for name, shape in self.about.inputs.shapes.items()]  # fmt: skip
    found = jax.eval_shape(self.compute, self.tunable, self.frozen, *clips)
    return {name: tuple(of.shape[1:]) for name, of in found.items() if name != "logits"}

  @functools.cached_property
  def _compiled(self) -> Callable[..., dict[str, Array]]:
    return jax.jit(self.compute)  # once for each shape

  def answer(self, *arrays: np.ndarray) -> dict[str, np.ndarray]:
    return jax.device_get(self._compiled(self.tunable, self.frozen, *arrays))

  @functools.cached_property
  def _compiled_features(self) -> Callable[..., dict[str, Array]]:
    def compute(
      tunable: nnx.State, frozen: nnx.State, video: Array, spectrogram: Array, *landmarks: Array
    ) -> Any:
      with jax.default_matmul_precision(MATMUL_PRECISION):
        model = nnx.merge(self.graphdef, tunable, frozen)
        found = model.features(video, spectrogram.astype(PRECISIONS[self.about.precision]), *landmarks)
        kept = ("image", "audio", "joint", "clip")
        there = {name: getattr(found, name) for name in kept if getattr(found, name) is not None}
        return in_float32(there) | by_name(model.answer(found))

    return jax.jit(compute)

  def compute_features(self, *arrays: np.ndarray) -> dict[str, np.ndarray]:
    check_inputs(self.about.inputs, *arrays)
    found = jax.device_get(self._compiled_features(self.tunable, self.frozen, *arrays))
    return {name: value[:, 0] if name == "audio" else value for name, value in found.items()}

  def gates(self) -> dict[str, tuple[float, ...]]:
    fusions = nnx.merge(self.graphdef, self.tunable, self.frozen).fusion
    named = {"to picture": "image_gate", "to sound": "audio_gate"}
    found = {name: [getattr(one, gate, None) for one in fusions] for name, gate in named.items()}
    return {name: tuple(0.0 if one is None else float(np.tanh(np.float32(one[0]))) for one in gates)
            for name, gates in found.items() if any(one is not None for one in gates)}  # fmt: skip

  def keeping_frames(self, number: int) -> "JaxEngine":
    mask, frames = self.cfg.frame_mask, self.about.inputs.num_frames
    if not hasattr(mask, "keep"):
      raise UserError(NO_FRAMES.format(self.path, "trained with"))
    kept, fewest = mask.keep or frames, mask.FEWEST
    if not fewest <= number < kept:
      how = f"give a number from {fewest} to {kept - 1}" if kept > fewest else "no mask tells fewer apart"
      raise UserError(f"keep_frames={number}: {self.path} keeps {kept} already; {how}")
    cfg = dataclasses.replace(self.cfg, frame_mask=dataclasses.replace(mask, keep=number))
    warning = f"the model goes on with {number} of {frames} frames, but was trained with {kept}"
    origin = {**self.about.origin, "keep_frames": number}
    about = dataclasses.replace(self.about, origin=origin, warnings=(*self.about.warnings, warning))
    return dataclasses.replace(self, about=about, cfg=cfg, graphdef=abstract_model(cfg)[0])

  def with_classes(self, path: str | Path, order: Sequence[str] = ()) -> "JaxEngine":
    axes = class_axes(self.cfg)
    if PATH not in axes:
      raise UserError(OWN_CLASSES.format(self.path))
    if others := sorted({name.partition("/")[0] for name in axes.keys() - {PATH}}):
      raise UserError(f"{self.path} answers with its own classes only: {', '.join(others)} learned these")
    found = open_class_vectors(path, self.cfg.head.embedding)
    names, sha256 = tuple(order) or found.classes, found.sha256
    vectors = found.in_order(names)
    if len(names) < 2:
      raise UserError(f"{path} has one class, of which every answer would be sure: give two or more")
    unknown = [name for name in names if name not in self.about.classes]
    unlike = (f"the model was never trained on {', '.join(unknown)}: names of {path}",) * bool(unknown)

    def put(state: nnx.State) -> nnx.State:
      return nnx.from_flat_state(
        (
          where,
          v.replace(jax.device_put(vectors, v[...].sharding)) if "/".join(map(str, where)) == PATH else v,
        )
        for where, v in nnx.to_flat_state(state)
      )

    states = put(self.tunable), put(self.frozen)
    model = nnx.merge(self.graphdef, *states)
    model.cfg = dataclasses.replace(self.cfg, num_classes=len(names))
    digest = hashlib.sha256(f"{self.about.fingerprint} {sha256} {names}".encode()).hexdigest()
    origin = {**self.about.origin, "class_vectors": {"source": found.source, "sha256": sha256}}
    # The temperature was fitted to logits of the classes that it was trained on.
    about = dataclasses.replace(
      self.about,
      classes=names,
      class_order=f"of {path}",
      origin=origin,
      fingerprint=digest,
      temperature=1.0,
      warnings=(*self.about.warnings, *unlike),
    )
    return JaxEngine(about, self.path, model.cfg, nnx.split(model)[0], *states)

  def parameters(self) -> str:
    tunable, frozen = count(self.tunable), count(self.frozen)
    return f"{tunable + frozen:,}, of which {tunable:,} tunable"


def by_name(outputs: Outputs) -> dict[str, Array]:
  """All that a model answers, in float32."""
  outputs = in_float32(outputs)
  return {"logits": outputs.logits, **outputs.extra}


def opens(path: Path) -> bool:
  return (path / "run.json").exists() or (path / "model.json").exists()


def describe(path: Path, step: int | str, precision: str | None) -> About:
  is_run = (path / "run.json").exists()
  if precision not in (None, *PRECISIONS):
    files = "; int8 is for files: export --format=onnx --quantise=int8" * (precision == "int8")
    raise UserError(f"precision={precision!r}: choose one of {', '.join(PRECISIONS)}{files}")
  if not is_run:
    refuse_step(path, step, "a converted model")
  stored = open_stored(path, step)
  said = stored.about
  origin = {"converted_from": said["source"]} if not is_run else {"step": said["source"]["step"]}
  if "class_vectors" in said:
    origin["class_vectors"] = said["class_vectors"]
  origin["version"] = (said["source"] if is_run else said)["version"]
  precision = precision or said.get("precision", "float32")
  if precision not in PRECISIONS:
    raise UserError(f"{path} was trained in {precision!r}, which is none of {', '.join(PRECISIONS)}")
  check_precision(precision)
  return About(
    inputs=stored.model.inputs,
    streams=tuple(name for name in ("image", "audio") if getattr(stored.model, name).depth),
    classes=tuple(said["classes"]),
    class_order=said["class_order"],
    recipe=said["recipe"],
    origin=origin,
    precision=precision,
    fingerprint=stored.sha256,
    sample_rates=tuple(said.get("sample_rates", ())),
    **{name: said[name] for name in IF_KNOWN if name in said},
    config=read_run(path)["config"] if is_run else {},
  )


def load(path: Path, about: About, sharding: Sharding | None) -> JaxEngine:
  """Opens a model; compiled programs are kept on disk for later processes, see `keep_compiled`."""
  keep_compiled()
  stored = open_stored(path, "last" if about.step is None else about.step)
  values = stored.read()
  patterns = tunable_patterns(stored.model, stored.about.get("tunable", ()))
  graphdef, *states = split_tunable(nnx.merge(*abstract_model(stored.model)), patterns)

  def filled(state: nnx.State) -> nnx.State:
    arrays = nnx.from_flat_state(
      (path, v.replace(jax.device_put(np.asarray(values["/".join(map(str, path))], np.float32), sharding)))
      for path, v in nnx.to_flat_state(state)
    )
    return cast(arrays, about.precision)

  return JaxEngine(about, path, stored.model, graphdef, *map(filled, states))
