"""A trained model as one file that JAX alone can run: its program (StableHLO) for several platforms, its weights in it.

  python -m mma_dfer_jax.export --model=runs/clips --out=clips.jax
  python -m mma_dfer_jax.export --model=models/dfew_fold1 --out=dfew_fold1.jax --platforms=cpu,cuda

F is what `jax.export` serializes, with a symbolic batch size; F.json beside it says what goes in and what comes out.
Reading F needs jax and flatbuffers, and nothing of this project.
"""

from collections.abc import Sequence
import contextlib
import ctypes
import dataclasses
import gc
import importlib.util
import json
import os
from pathlib import Path
import time
from typing import Any

from absl import flags
import jax
from jax import export
from jaxtyping import Array, Float, Float32, UInt8
import numpy as np

from mma_dfer_jax import cli
from mma_dfer_jax.data.fbank import ENERGY_MEAN, ENERGY_SCALE
from mma_dfer_jax.disk import free_bytes, sha256_of
from mma_dfer_jax.engines.engine import load_model
from mma_dfer_jax.engines.jax import MATMUL_PRECISION, JaxEngine
from mma_dfer_jax.engines.stablehlo import TOLD, json_beside
from mma_dfer_jax.errors import UserError, listed
from mma_dfer_jax.inputs import Inputs
from mma_dfer_jax.training.run import VERSION
from mma_dfer_jax.training.sharding import start_jax

PLATFORMS = ("cpu", "cuda", "tpu")
CHECKED_BATCHES = (1, 2)  # two, so that the batch size is seen to be free
TOLERANCE = {"float32": 1e-5, "bfloat16": 0.05}  # of a logit, by precision
# Source: "Compatibility guarantees" in JAX's documentation of `jax.export`.
COMPATIBILITY = {
  "newer": "JAX promises that a jaxlib up to 6 months newer than the one named here runs this file",
  "older": "JAX promises that a jaxlib up to 3 weeks older than the one named here runs this file",
  "what_counts": "the days on which the two jaxlibs were released, not the day of the export",
  "beyond": "not promised: keep the model folder or the run, and export again",
  "custom_calls": "none but those that JAX keeps stable: jax.export refuses others",
  "trust": "load files that you trust only: the program in them is executed",
  "source": "https://docs.jax.dev/en/latest/export/export.html#compatibility-guarantees",
}

_MODEL = cli.shared_flag("model", help="Workdir of a run, or a folder that `convert` wrote.")
_STEP = cli.shared_flag("step")
_PRECISION = cli.shared_flag("precision")
_OUT = flags.DEFINE_string("out", None, "File to write; a file of that name and .json describes it.")
_PLATFORMS = flags.DEFINE_list("platforms", list(PLATFORMS), "Where it will run: some of cpu, cuda, tpu.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace the file that is there.")


def checked_platforms(names: Sequence[str]) -> tuple[str, ...]:
  """Platforms without repetition, in the order given.

  Raises:
    UserError: if one is unknown, or cpu is not among them.
  """
  platforms = tuple(dict.fromkeys(name.strip() for name in names))
  unknown = [name for name in platforms if name not in PLATFORMS]
  if unknown or not platforms:
    raise UserError(
      f"--platforms={','.join(names)}: {', '.join(unknown) or 'none'} cannot be exported for; "
      f"choose from {', '.join(PLATFORMS)}"
    )
  if "cpu" not in platforms:
    raise UserError(
      f"--platforms={','.join(names)} lacks cpu, on which the file is tried before it gets its name; "
      "add it: the file hardly grows"
    )
  return platforms


def checked_paths(model: str | None, out: str | None, overwrite: bool) -> tuple[Path, Path]:
  """The model's folder and the file to write.

  Raises:
    UserError: with everything that can be known to fail before a model is opened.
  """
  problems = []
  if not model:
    problems.append("--model: the workdir of a run or a model folder")
  if not out:
    problems.append("--out: the file to write")
  elif Path(out).is_dir():
    problems.append(f"--out={out} is a folder; give the name of a file")
  elif not overwrite:
    there = [str(file) for file in (Path(out), json_beside(Path(out))) if file.exists()]
    problems += [f"{file} exists already; choose another --out, or --overwrite" for file in there]
  if importlib.util.find_spec("flatbuffers") is None:
    problems.append("jax.export writes with flatbuffers, which is not installed: pip install flatbuffers")
  if problems:
    raise listed("nothing can be exported", problems)
  assert model  # or it would be among the problems
  assert out
  return Path(model), Path(out)


def random_inputs(
  inputs: Inputs, batch: int, seed: int = 0
) -> tuple[UInt8[np.ndarray, "B T H W 3"], Float32[np.ndarray, "B F K"]]:
  """Video (B, T, H, W, 3) uint8 and spectrogram (B, F, K) float32 of noise, of the sizes that a model takes."""
  rng = np.random.default_rng(seed)
  video = rng.integers(0, 256, (batch, *inputs.video_shape), np.uint8)
  # A normalised spectrogram has about half the deviation of a normal distribution.
  return video, 0.5 * rng.standard_normal((batch, *inputs.audio_shape), np.float32)


def export_model(engine: JaxEngine, platforms: Sequence[str] = PLATFORMS) -> export.Exported:
  """The function (video (b, T, H, W, 3) uint8, spectrogram (b, F, K) float32) -> logits (b, C) float32 of any b.

  Args:
    engine: its weights become constants of the function, in its precision.
    platforms: some of `PLATFORMS`.
  """
  inputs = engine.about.inputs
  (batch,) = export.symbolic_shape("b")
  video = jax.ShapeDtypeStruct((batch, *inputs.video_shape), np.uint8)
  spectrogram = jax.ShapeDtypeStruct((batch, *inputs.audio_shape), np.float32)

  @jax.jit
  def mma_dfer(video: UInt8[Array, "B T H W 3"], spectrogram: Float[Array, "B F K"]) -> Float32[Array, "B C"]:
    return engine.logits(engine.tunable, engine.frozen, video, spectrogram)

  return export.export(mma_dfer, platforms=platforms)(video, spectrogram)


def largest_difference(
  artifact: Path,
  inputs: Sequence[tuple[UInt8[np.ndarray, "_ T H W 3"], Float32[np.ndarray, "_ F K"]]],
  expected: Sequence[Float32[np.ndarray, "_ C"]],
  tolerance: float,
) -> float:
  """Reads an artifact back and calls it; returns by how much any logit differs from the expected ones.

  Args:
    artifact: the file.
    inputs: batches, of any sizes.
    expected: logits (b, C) float32 of each.
    tolerance: by how much a logit may differ.
  Raises:
    UserError: if a logit is more than `tolerance` away, or no number.
  """
  exported = export.deserialize(artifact.read_bytes())  # type: ignore[arg-type]  # bytes will do, without a copy
  differences = []
  for batch, wanted in zip(inputs, expected, strict=True):
    logits = np.asarray(jax.jit(exported.call)(*batch))
    _let_go()  # each batch size that was compiled holds a copy of all weights
    if logits.shape != wanted.shape or logits.dtype != wanted.dtype:
      raise UserError(
        f"the exported model gives {logits.dtype} {logits.shape}, not {wanted.dtype} {wanted.shape}"
      )
    differences.append(float(np.abs(logits - wanted).max()))
  if not max(differences) <= tolerance:  # NaN is not either
    raise UserError(
      f"logits of the exported model differ by up to {max(differences):.1e} from those of the model "
      f"(allowed: {tolerance:.0e}); nothing was written. jax {jax.__version__} does not export this model correctly"
    )
  return max(differences)


def _let_go() -> None:
  """Frees the weights that lowered and compiled programs hold as constants."""
  jax.clear_caches()
  gc.collect()
  with contextlib.suppress(
    AttributeError, OSError
  ):  # another C library than glibc, which keeps what was freed
    ctypes.CDLL(None).malloc_trim(0)


def describe(engine: JaxEngine, platforms: Sequence[str]) -> dict[str, Any]:
  """What stands beside the file: facts about the model, what goes in and comes out, and where it runs."""
  about, inputs = engine.about, engine.about.inputs
  arguments = [
    {
      "name": "video",
      "shape": ["b", *inputs.video_shape],
      "dtype": "uint8",
      "meaning": "clips, frames, height, width, RGB from 0 to 255; the division by 255 is in the file",
    },
    {
      "name": "spectrogram",
      "shape": ["b", *inputs.audio_shape],
      "dtype": "float32",
      "meaning": f"clips, rows of 10 ms, mel bins: Kaldi log-mel energies x as (x + {ENERGY_MEAN}) / {ENERGY_SCALE}",
    },
  ]
  output = {
    "name": "logits",
    "shape": ["b", len(about.classes)],
    "dtype": "float32",
    "meaning": "one for each class, in the order of `classes`; their softmax is the distribution",
  }
  run = {"run": engine.path.resolve().name} if about.config else {}
  facts = {name: getattr(about, name) for name in TOLD} | {"origin": {**run, **about.origin}}
  return facts | {
    "inputs": dataclasses.asdict(inputs),
    "arguments": arguments,
    "output": output,
    "b": "any number of clips from 1 on; each number that is used is compiled for itself",
    "platforms": list(platforms),
    "matmul_precision": MATMUL_PRECISION,
    "model": engine.cfg.to_fields(),
    "exported_by": {"mma_dfer_jax": VERSION, "jax": jax.__version__, "jaxlib": jax.lib.__version__},
    "needs": ["jax", "flatbuffers"],
    "compatibility": COMPATIBILITY,
  }


def how_to_call(out: Path) -> list[str]:
  """Three lines of Python that call an artifact."""
  return [
    "import jax, jax.export",
    f'model = jax.jit(jax.export.deserialize(open({json.dumps(str(out))}, "rb").read()).call)',
    "logits = model(video, spectrogram)",
  ]


@contextlib.contextmanager
def new_pair(out: Path):
  """Gives the names of an artifact and its description to write; both get their final names when they are whole.

  Raises:
    UserError: if the disk does not take them.
  """
  out.parent.mkdir(parents=True, exist_ok=True)
  finals = (json_beside(out), out)  # the artifact last: where it is, its description is
  partials = tuple(file.with_name(f"{file.name}.partial") for file in finals)
  try:
    yield partials[::-1]
    for partial, final in zip(partials, finals, strict=True):
      os.replace(partial, final)
  except OSError as error:  # a full disk
    raise UserError(f"cannot write {out}: {error.strerror or error}") from error
  finally:
    for partial in partials:
      partial.unlink(missing_ok=True)


def write_artifact(
  path: Path, step: int | str, precision: str | None, out: Path, platforms: Sequence[str]
) -> dict[str, Any]:
  """Exports a model, reads the file back, compares its logits with the model's, and only then gives it its name.

  Args:
    path, step, precision: as `load_model` takes them.
    out: the file to write; what is there is replaced.
    platforms: some of `PLATFORMS`.
  Returns:
    What the file beside it says.
  Raises:
    UserError: if there is no such model, the disk is full, or the logits differ; no file is left then.
  """
  engine = load_model(path, step=step, precision=precision)
  if not isinstance(engine, JaxEngine):
    raise UserError(f"{path} was exported already; export the run or the model folder that it was made of")
  leaves = jax.tree.leaves((engine.tunable, engine.frozen))
  size = sum(leaf.nbytes for leaf in leaves)
  if (free := free_bytes(out.parent)) < 1.05 * size:
    raise UserError(f"{out} needs about {size / 1e6:.0f} MB, but {free / 1e6:.0f} MB are free")
  said = describe(engine, platforms)
  inputs = [random_inputs(engine.about.inputs, batch) for batch in CHECKED_BATCHES]
  expected = [engine(*batch) for batch in inputs]
  print(
    f"exporting {sum(leaf.size for leaf in leaves):,} parameters in {said['precision']} for {', '.join(platforms)} …",
    flush=True,
  )
  exported = export_model(engine, platforms)
  said["calling_convention_version"] = exported.calling_convention_version
  _let_go()
  with new_pair(out) as (artifact, description):
    artifact.write_bytes(exported.serialize())
    del exported, engine, leaves
    _let_go()
    print(
      f"reading it back and calling it with {' and '.join(map(str, CHECKED_BATCHES))} clips …", flush=True
    )
    difference = largest_difference(artifact, inputs, expected, TOLERANCE[said["precision"]])
    said["checked"] = {"on": "cpu", "b": list(CHECKED_BATCHES), "largest_difference": difference}
    said |= {"how_to_call": how_to_call(Path(out.name)), "file": out.name}
    said |= {"bytes": artifact.stat().st_size, "sha256": sha256_of(artifact)}
    description.write_text(json.dumps(said, indent=2, allow_nan=False) + "\n")
  return said


def main(argv: Sequence[str]) -> None:
  del argv
  started = time.monotonic()
  path, out = checked_paths(_MODEL.value, _OUT.value, _OVERWRITE.value)
  platforms = checked_platforms(_PLATFORMS.value)
  jax.config.update("jax_platforms", "cpu")  # the platforms that are exported for need not be here
  start_jax()
  # Weights are constants of what is compiled here: the cache would keep a copy of them for each batch size.
  jax.config.update("jax_enable_compilation_cache", False)
  said = write_artifact(path, _STEP.value, _PRECISION.value, out, platforms)
  print(f"largest difference of a logit: {said['checked']['largest_difference']:.1e}")
  print(
    f"wrote {out} ({said['bytes'] / 1e6:.1f} MB) and {json_beside(out).name} in {time.monotonic() - started:.0f} s"
  )
  print("to call it with jax and flatbuffers alone:\n\n  " + "\n  ".join(how_to_call(out)))


if __name__ == "__main__":
  cli.run(main)
