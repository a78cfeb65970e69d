"""Writes a trained model as one file that needs only JAX, or not even that: its program, with its weights.

  python -m mma_dfer_jax.export --model=runs/clips --out=clips.jax
  python -m mma_dfer_jax.export --model=models/dfew_fold1 --out=dfew_fold1.jax --platforms=cpu,cuda
  python -m mma_dfer_jax.export --model=runs/clips --format=onnx --quantise=int8 --out=clips.onnx

As StableHLO (`jax.export`) the file F takes any batch size, on several platforms; F.json beside it describes inputs and
outputs. As ONNX it is for processors (onnxruntime, OpenVINO), and holds that description itself; in 8-bit integers it is a
quarter as large and about three times as fast, and its answers are compared with those in float32 before it is written.
"""

from collections.abc import Iterable, Sequence
import contextlib
import ctypes
import gc
import importlib.util
import json
from pathlib import Path
import time
from typing import Any

from absl import flags
import jax
from jax import export
from jaxtyping import Array, Float, UInt8
import numpy as np

from mma_dfer_jax import __version__, cli
from mma_dfer_jax.data.fbank import ENERGY_MEAN, ENERGY_SCALE
from mma_dfer_jax.disk import free_bytes, new_file, sha256_of
from mma_dfer_jax.engines.engine import FACTS, load_model
from mma_dfer_jax.engines.jax import MATMUL_PRECISION, JaxEngine
from mma_dfer_jax.engines.stablehlo import json_beside
from mma_dfer_jax.errors import UserError, listed
from mma_dfer_jax.paths import define_path, define_paths
from mma_dfer_jax.training.sharding import start_jax

PLATFORMS = ("cpu", "cuda", "tpu")
CHECKED_BATCHES = (1, 2)  # two, to see that the batch size is free
TOLERANCE = {"float32": 1e-5, "bfloat16": 0.05}  # of a logit, by precision
# Fields of a description that concern StableHLO alone.
OF_STABLEHLO = {"b", "platforms", "matmul_precision", "compatibility", "needs"}
# Source: "Compatibility guarantees" in JAX's documentation of `jax.export`.
COMPATIBILITY = {
  "newer": "JAX promises that a jaxlib up to 6 months newer than the one named here runs this file",
  "older": "JAX promises that a jaxlib up to 3 weeks older than the one named here runs this file",
  "what_counts": "the days on which the two jaxlibs were released, not the day of the export",
  "beyond": "not promised: keep the model folder or the run, and export again",
  "custom_calls": "none but those that JAX keeps stable: jax.export refuses others",
  "trust": "load only files that you trust: the program in them is executed",
  "source": "https://docs.jax.dev/en/latest/export/export.html#compatibility-guarantees",
}

_MODEL = cli.shared_flag("model", help="Workdir of a run, or a folder that `convert` wrote.")
_STEP = cli.shared_flag("step")
_PRECISION = cli.shared_flag("precision", help="float32 or bfloat16; if not given, as the model was trained. ONNX: float32.")  # fmt: skip
_OUT = define_path(
  "out", None, "File to write; StableHLO's gets a description beside it, of the same name and .json."
)
_FORMAT = flags.DEFINE_enum("format", "stablehlo", ["stablehlo", "onnx"], "What JAX runs, or onnxruntime and OpenVINO.")  # fmt: skip
_PLATFORMS = flags.DEFINE_list(
  "platforms", list(PLATFORMS), "StableHLO: where it will run: some of cpu, cuda, tpu."
)
_QUANTISE = flags.DEFINE_enum("quantise", None, ["int8"], "ONNX: products of matrices in 8-bit integers.")
_CLIPS = define_paths("clips", None, "ONNX: videos whose answers are compared with JAX's; if not given, generated ones.")  # fmt: skip
_LIMIT = flags.DEFINE_float(
  "limit", 0.15, "int8: refuse the file if a probability differs by more.", 0.0, 1.0
)
_FACE_MODEL = cli.shared_flag("face_model")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace an existing file.")


def check_flags() -> tuple[str, ...]:
  """The platforms without repetition; UserError with everything that can be known to fail before a model is opened."""
  platforms, out = tuple(dict.fromkeys(name.strip() for name in _PLATFORMS.value)), Path(_OUT.value or "")
  given, wrong = f"--platforms={','.join(_PLATFORMS.value)}", [n for n in platforms if n not in PLATFORMS]
  there = [] if _OVERWRITE.value or not _OUT.value else [f for f in (out, json_beside(out)) if f.exists()]
  problems = {
    "--model: give the workdir of a run or a model folder": not _MODEL.value,
    "--out: give the file to write": not _OUT.value,
    **{f"--out={out} cannot be there: {parent} is a file": parent.is_file() for parent in out.parents},
    f"--out={out} is a folder; give the name of a file": _OUT.value and out.is_dir(),
    **{f"{file} exists already; choose another --out, or add --overwrite": not out.is_dir() for file in there},
    f"{given}: {', '.join(wrong) or 'nothing'} cannot be exported for; choose from {', '.join(PLATFORMS)}":
      wrong or not platforms,
    f"{given} lacks cpu, where the file is tried before it gets its name; add it, the file hardly grows":
      platforms and not wrong and "cpu" not in platforms,
    "jax.export writes with flatbuffers, which is not installed: pip install flatbuffers":
      importlib.util.find_spec("flatbuffers") is None,
  }  # fmt: skip
  onnx = _FORMAT.value == "onnx"
  of_other = ("platforms",) if onnx else ("quantise", "clips", "limit", "face_model")
  problems |= {
    f"--{name} does not go with --format={_FORMAT.value}": flags.FLAGS[name].present for name in of_other
  }
  problems |= {
    f"--limit={_LIMIT.value} must be a probability": not 0 <= _LIMIT.value <= 1,
    "--clips names no clip": onnx and flags.FLAGS["clips"].present and not any(_CLIPS.value or ()),
    "--limit goes with --quantise=int8": onnx and flags.FLAGS["limit"].present and not _QUANTISE.value,
    f"--precision={_PRECISION.value}: an ONNX file holds float32, or int8 with --quantise=int8; OpenVINO computes a float32 "
    "file in bfloat16, too": onnx and _PRECISION.value not in (None, "float32"),
    **{f"--format=onnx needs {name}, which is not installed: pip install 'mma_dfer_jax[onnx]'":
       onnx and importlib.util.find_spec(name) is None for name in ("onnx", "onnxruntime")},
  }  # fmt: skip
  if found := [problem for problem, is_there in problems.items() if is_there]:
    raise listed("the command line has problems", found)
  return platforms


def largest_difference(
  artifact: Path, inputs: Sequence[tuple], expected: Sequence[np.ndarray], tolerance: float
) -> float:
  """The largest difference of a logit of the file; UserError if it is above `tolerance`, or NaN."""
  exported = export.deserialize(artifact.read_bytes())  # type: ignore[arg-type] # bytes do, without a copy
  differences = []
  for batch, wanted in zip(inputs, expected, strict=True):
    found = jax.device_get(jax.jit(exported.call)(*batch))
    logits = found["logits"] if isinstance(found, dict) else found
    _free_constants()  # each compiled batch size holds a copy of all weights
    same = (logits.shape, logits.dtype) == (wanted.shape, wanted.dtype)
    differences.append(float(np.abs(logits - wanted).max()) if same else np.nan)
  if not max(differences) <= tolerance:  # NaN is not either
    raise UserError(
      f"logits of the exported model differ by up to {max(differences):.1e} from those of the model (allowed: "
      f"{tolerance:.0e}); nothing was written. jax {jax.__version__} does not export this model correctly"
    )
  return max(differences)


def _free_constants() -> None:
  """Frees the weights that lowered and compiled programs hold as constants."""
  jax.clear_caches()
  gc.collect()
  with contextlib.suppress(AttributeError, OSError):  # only glibc keeps freed memory
    ctypes.CDLL(None).malloc_trim(0)


SAID = {
  "frame_weights": "what each frame counts, 1 on average over the frames that are kept; 0: not kept",
  **{f"layers_of_{stream}": "weights of the layers, which add up to 1" for stream in ("image", "audio")},
  **{f"layer_gate_of_{stream}": "share of their mean in the summary; the rest is the last layer's" for stream in ("image", "audio")},
  "streams": "factors of picture and sound, which add up to 2",
  "found_box": "the face in each frame: x, y, width, height, shares of the frame's sides",
  "found_landmarks": "its five points in each frame: x and y, shares of the frame's sides",
}  # fmt: skip


def describe(engine: JaxEngine, platforms: Sequence[str]) -> dict[str, Any]:
  """The content of F.json: facts about the model, inputs and outputs, and where the file runs."""
  about, inputs = engine.about, engine.about.inputs

  def array(name: str, shape: tuple[int, ...], dtype: str, meaning: str) -> dict[str, Any]:
    return {"name": name, "shape": ["b", *shape], "dtype": dtype, "meaning": meaning}

  meanings = {
    "video": "clips, frames, height, width, RGB from 0 to 255; the division by 255 is in the file",
    "spectrogram": f"clips, rows of 10 ms, mel bins: Kaldi log-mel energies x as (x + {ENERGY_MEAN}) / {ENERGY_SCALE}",
    "landmarks": "clips, frames, points of the face as YuNet orders them; x and y from 0 to 1 from the frame's upper left "
                 "corner, and 1 if the point is known, else 0",
  }  # fmt: skip
  divided = f" after division by the temperature {about.temperature}" * (about.temperature != 1)
  logits = f"one for each class, in the order of `classes`; their softmax{divided} is the distribution"
  run = {"run": engine.path.resolve().name} if about.config else {}
  return {name: getattr(about, name) for name in FACTS} | about.known | {
    "origin": {**run, **about.origin},
    "inputs": inputs.to_fields(),
    "arguments": [array(name, shape, "uint8" if name == "video" else "float32", meanings[name])
                  for name, shape in inputs.shapes.items()],
    "output": array("logits", (len(about.classes),), "float32", logits),
    "extra_outputs": [array(name, shape, "float32", SAID.get(name, "said by a part of the model"))
                      for name, shape in engine.extras.items()],
    "b": "any number of clips from 1 on; each number that is used is compiled for itself",
    "platforms": list(platforms),
    "matmul_precision": MATMUL_PRECISION,
    "model": engine.cfg.to_fields(),
    "exported_by": {"mma_dfer_jax": __version__, "jax": jax.__version__, "jaxlib": jax.lib.__version__},
    "needs": ["jax", "flatbuffers"],
    "compatibility": COMPATIBILITY,
  }  # fmt: skip


def how_to_call(out: Path, names: Iterable[str], extras: bool = False) -> list[str]:
  """Three lines of Python that call an exported file; with further outputs it gives all of them by name."""
  return [
    "import jax, jax.export",
    f'model = jax.jit(jax.export.deserialize(open({json.dumps(str(out))}, "rb").read()).call)',
    f"logits = model({', '.join(names)})" + '["logits"]' * extras,
  ]


def how_to_call_onnx(out: Path, names: Iterable[str]) -> list[str]:
  """Three lines of Python that call an exported file."""
  given = ", ".join(f"{json.dumps(name)}: {name}" for name in names)
  return [
    "import onnxruntime",
    f"model = onnxruntime.InferenceSession({json.dumps(str(out))})",
    f"logits = model.run(None, {{{given}}})[0]",
  ]


def open_for_export(path: Path, step: int | str, precision: str | None, out: Path) -> tuple[JaxEngine, int]:
  """The model to export, and its number of parameters; UserError if it was exported already, or the disk is full."""
  print(f"loading {path} …", flush=True)
  engine = load_model(path, step=step, precision=precision)
  if not isinstance(engine, JaxEngine):
    raise UserError(f"{path} was exported already; export the run or the model folder that it came from")
  leaves = jax.tree.leaves((engine.tunable, engine.frozen))
  size, elements = sum(leaf.nbytes for leaf in leaves), sum(leaf.size for leaf in leaves)
  if (free := free_bytes(out.parent)) < 1.05 * size:
    raise UserError(f"{out} needs about {size / 1e6:.0f} MB, but {free / 1e6:.0f} MB are free")
  return engine, elements


def export_onnx(path: Path, step: int | str, out: Path) -> Iterable[str]:
  """Exports a model as ONNX, by the flags of the command, and says what its answers are worth; returns its inputs."""
  from mma_dfer_jax.onnx_export import generated_clips, given_clips, in_words, write_onnx

  engine, elements = open_for_export(path, step, "float32", out)
  int8 = _QUANTISE.value is not None
  files = list(filter(None, _CLIPS.value or []))
  clips = (
    given_clips(engine, files, _FACE_MODEL.value) if files else generated_clips(engine, 7 if int8 else 2)
  )
  print(f"writing {elements:,} parameters as ONNX{', then in int8' * int8}, and comparing {len(clips)} answers …", flush=True)  # fmt: skip
  facts = {key: value for key, value in describe(engine, ()).items() if key not in OF_STABLEHLO}
  facts |= {
    "needs": ["onnxruntime, or openvino"],
    "made_by": "mma_dfer_jax.read_arrays(frames, waveform, sample_rate, inputs, coded=True)",
  }
  said = write_onnx(engine, facts, out, clips, int8=int8, limit=_LIMIT.value)
  print(in_words(said["agreement"]))
  return engine.about.inputs.shapes


def write_artifact(
  path: Path, step: int | str, precision: str | None, out: Path, platforms: Sequence[str]
) -> dict[str, Any]:
  """Exports a model; the file gets its name after its logits were compared. Returns its description."""
  engine, elements = open_for_export(path, step, precision, out)
  said = describe(engine, platforms)
  rng, sizes = np.random.default_rng(0), engine.about.inputs
  # Noise; a normalised spectrogram has about half the deviation of a normal distribution.
  video = rng.integers(0, 256, (max(CHECKED_BATCHES), *sizes.video_shape), np.uint8)
  sound = 0.5 * rng.standard_normal((len(video), *sizes.audio_shape), np.float32)
  points = [rng.random((len(video), *sizes.points_shape), np.float32)] * (sizes.points > 0)
  inputs = [tuple(array[:clips] for array in (video, sound, *points)) for clips in CHECKED_BATCHES]
  expected = [engine(*batch) for batch in inputs]
  extras = bool(engine.extras)
  print(f"exporting {elements:,} parameters in {said['precision']} for {', '.join(platforms)} …", flush=True)
  (any_number,) = export.symbolic_shape("b")
  shapes = [
    jax.ShapeDtypeStruct((any_number, *array.shape[1:]), array.dtype) for array in (video, sound, *points)
  ]

  @jax.jit
  def mma_dfer(
    video: UInt8[Array, "B T H W 3"], spectrogram: Float[Array, "B F K"], *landmarks: Float[Array, "B T p 3"]
  ) -> Any:
    found = engine.compute(engine.tunable, engine.frozen, video, spectrogram, *landmarks)
    return found if extras else found["logits"]

  exported = export.export(mma_dfer, platforms=platforms)(*shapes)
  said["calling_convention_version"] = exported.calling_convention_version
  _free_constants()
  with new_file(out, replace=True) as artifact:
    artifact.write_bytes(exported.serialize())
    del exported, mma_dfer, engine
    _free_constants()
    print(
      f"reading it back and calling it with {' and '.join(map(str, CHECKED_BATCHES))} clips …", flush=True
    )
    difference = largest_difference(artifact, inputs, expected, TOLERANCE[said["precision"]])
    said["checked"] = {"on": "cpu", "b": list(CHECKED_BATCHES), "largest_difference": difference}
    said |= {"how_to_call": how_to_call(Path(out.name), sizes.shapes, extras), "file": out.name}
    said |= {"bytes": artifact.stat().st_size, "sha256": sha256_of(artifact)}
    with new_file(json_beside(out), replace=True) as description:  # before the file: where that is, this is
      description.write_text(json.dumps(said, indent=2, allow_nan=False) + "\n")
  return said


def main(argv: Sequence[str]) -> None:
  del argv
  started, platforms, out = time.monotonic(), check_flags(), Path(_OUT.value or "")
  # The platforms of the file need not be here; and traced on a GPU, attention would be cuDNN's for all of them.
  jax.config.update("jax_platforms", "cpu")
  start_jax()
  # Weights are constants of what is compiled here: the cache would keep a copy of them for each batch size.
  jax.config.update("jax_enable_compilation_cache", False)
  path = Path(_MODEL.value or "")
  if _FORMAT.value == "onnx":
    names = export_onnx(path, _STEP.value, out)
    files, needs, call = (
      f"{out} ({out.stat().st_size / 1e6:.1f} MB)",
      "onnxruntime and numpy",
      how_to_call_onnx(out, names),
    )
  else:
    said = write_artifact(path, _STEP.value, _PRECISION.value, out, platforms)
    print(f"largest difference of a logit: {said['checked']['largest_difference']:.1e}")
    files, needs = f"{out} ({said['bytes'] / 1e6:.1f} MB) and {json_beside(out).name}", "jax and flatbuffers"
    call = how_to_call(out, [argument["name"] for argument in said["arguments"]], bool(said["extra_outputs"]))
  print(f"wrote {files} in {time.monotonic() - started:.0f} s")
  print(f"to call it with {needs} alone:\n\n  " + "\n  ".join(call))


if __name__ == "__main__":
  cli.run(main)
