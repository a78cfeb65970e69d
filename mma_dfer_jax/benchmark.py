"""How fast a training step and an evaluation are, or the loading of clips: time, memory and share of the peak.

  python -m mma_dfer_jax.benchmark                                  # the paper's model, one clip, float32
  python -m mma_dfer_jax.benchmark --batch_size=8,64 --precision=float32,bfloat16 --remat=none,names --peak_tflops=790
  python -m mma_dfer_jax.benchmark --data_dir=data --name=dfew      # and the step fed by the input pipeline
  python -m mma_dfer_jax.benchmark --loading                        # the input pipeline alone, on generated clips
  python -m mma_dfer_jax.benchmark --loading --data_dir=data --name=dfew

Every variant of the model runs in a process of its own, on random clips and random weights; before it is timed, its
loss is compared with that of the first. Prints a table; with --out writes all numbers as JSON.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import itertools
import json
from pathlib import Path
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

from absl import flags
from flax import nnx
import jax
from jax.sharding import Mesh
import numpy as np

from mma_dfer_jax import cli
from mma_dfer_jax.data import speed
from mma_dfer_jax.data.data_set import open_data_set
from mma_dfer_jax.data.pipeline import Record
from mma_dfer_jax.disk import write_json
from mma_dfer_jax.errors import UserError, listed
from mma_dfer_jax.layers import REMAT
from mma_dfer_jax.losses.cross_entropy import cross_entropy
from mma_dfer_jax.model import MmaDfer, ModelConfig, paper
from mma_dfer_jax.parameters import PRECISIONS, cast, tunable_patterns
from mma_dfer_jax.progress import watched
from mma_dfer_jax.training import sharding
from mma_dfer_jax.training.state import create_train_state, make_optimizer
from mma_dfer_jax.training.steps import eval_step, in_float32, model_inputs, train_step

_STEPS = flags.DEFINE_list("steps", ["eval", "train"], "eval, train or both.")
_IMAGE_SIZE = flags.DEFINE_list("image_size", ["224"], "Side of the frames, pixels.")
_DEPTH = flags.DEFINE_integer("depth", 12, "Layers; fewer for a quick look.", lower_bound=1)
_BATCH_SIZE = flags.DEFINE_list("batch_size", ["1"], "Clips per step, over all devices; of --loading 8.")
_MICRO_BATCH = flags.DEFINE_list("micro_batch", ["0"], "Of training: clips computed at once; 0: all.")
_PRECISION = flags.DEFINE_list("precision", ["float32"], f"Of the computation: {', '.join(PRECISIONS)}.")
_REMAT = flags.DEFINE_list("remat", ["names"], f"Of training: {', '.join(REMAT)}.")
_MESH = flags.DEFINE_list("mesh", ["-1x1"], "Devices along data x fsdp; -1: all that remain.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Timed steps or passes of each.", lower_bound=1)
_PEAK = flags.DEFINE_float("peak_tflops", None, "Peak of all devices in this precision, for the share.")
_LOADING = flags.DEFINE_bool("loading", False, "Measure the input pipeline instead of the model.")
_CLIPS = flags.DEFINE_integer("clips", 64, "Of --loading: how many clips.", lower_bound=1)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Train on a data set in this folder too, or load it.")
_NAME = flags.DEFINE_string("name", "clips", "Name of that data set.")
_NUM_WORKERS = flags.DEFINE_integer("num_workers", 2, "Processes that decode; 0: threads.", lower_bound=0)
_OUT = flags.DEFINE_string("out", None, "Write the numbers to this JSON file too.")
_CHILD = flags.DEFINE_string("variant", None, "For processes that this command starts: a variant as JSON.")

OF_MODEL = (_STEPS, _IMAGE_SIZE, _DEPTH, _MICRO_BATCH, _PRECISION, _REMAT, _MESH, _PEAK)
TOLERANCE = {"float32": 1e-5, "bfloat16": 0.05}  # of the loss, relative to the first variant of that size


@dataclasses.dataclass(frozen=True)
class Variant:
  """What is measured in one process."""

  step: str
  image_size: int
  depth: int
  batch_size: int
  micro_batch: int
  precision: str
  remat: str
  mesh: str


def variants() -> list[Variant]:
  """All that the flags ask for; UserError with everything that is wrong with them."""
  problems = []
  for flag, choices in ((_STEPS, ("eval", "train")), (_PRECISION, tuple(PRECISIONS)), (_REMAT, tuple(REMAT))):
    if wrong := [value for value in flag.value if value not in choices]:
      problems.append(f"--{flag.name}={','.join(wrong)}: choose among {', '.join(choices)}")
  for flag, least in ((_IMAGE_SIZE, 1), (_BATCH_SIZE, 1), (_MICRO_BATCH, 0)):
    if wrong := [value for value in flag.value if not value.isdecimal() or int(value) < least]:
      problems.append(f"--{flag.name}={','.join(wrong)}: give whole numbers of at least {least}")
  for value in filter(str.isdecimal, _IMAGE_SIZE.value):
    try:
      paper(image_size=int(value))
    except UserError as error:
      problems.append(f"--image_size={value}: {error}")
  if _OUT.value and not Path(_OUT.value).absolute().parent.is_dir():
    problems.append(f"--out={_OUT.value}: there is no folder {Path(_OUT.value).parent}")
  for value in _MESH.value:
    if not re.fullmatch(r"(-1|[1-9]\d*)x[1-9]\d*", value):
      problems.append(f"--mesh={value}: give devices along data x fsdp, as 4x1 or -1x2")
  if _DEPTH.value % 6:
    problems.append(f"--depth={_DEPTH.value}: give a multiple of 6, the layers of a stage")
  others = OF_MODEL if _LOADING.value else [_CLIPS]
  how = "with" if _LOADING.value else "without"
  problems += [f"--{flag.name} does nothing {how} --loading; leave it out" for flag in others if flag.present]
  if _LOADING.value and len(_BATCH_SIZE.value) > 1:
    problems.append(f"--batch_size={','.join(_BATCH_SIZE.value)}: give one number with --loading")
  if problems:
    raise listed("the command line has problems", problems)
  found = []
  lists = (_STEPS, _IMAGE_SIZE, _BATCH_SIZE, _PRECISION, _MESH, _MICRO_BATCH, _REMAT)
  for step, size, batch, precision, mesh, micro, remat in itertools.product(*(flag.value for flag in lists)):
    if step == "eval":
      micro, remat = "0", "none"  # it keeps nothing for a backward pass, and is not divided
    found.append(Variant(step, int(size), _DEPTH.value, int(batch), int(micro), precision, remat, mesh))
  return list(dict.fromkeys(found))


def step_flops(cfg: ModelConfig, step: str = "eval") -> float:
  """Floating-point operations of one clip, a multiplication and an addition counted as two; matrix products alone.

  A forward pass has 643.7e9 at 224 px and 356.2e9 at 160 px, as a counter in the original finds. A training step adds
  the products back to the activations, and those to the weights that are tunable; what `remat` repeats does not count.
  """
  # Products with frozen weights; of two activations or with tunable ones; without a way back.
  frozen = both = once = 0.0
  prompts = cfg.prompts.count(cfg.layers)
  for stream, sequences, channels in ((cfg.image, cfg.inputs.num_frames, 3), (cfg.audio, 1, 1)):
    rows, columns = stream.grid("image" if channels == 3 else "audio", cfg.inputs)
    patches, d = rows * columns, stream.width
    tokens = 1 + patches + prompts
    frozen += sequences * stream.depth * tokens * d * (4 * d + 2 * stream.mlp_dim)
    both += sequences * stream.depth * (2 * tokens**2 * d + 2 * tokens * d * cfg.fusion.width)
    once += sequences * patches * channels * stream.patch_size**2 * d
  t, frames = cfg.temporal, cfg.inputs.num_frames
  inner, tokens = t.heads * t.head_dim, 1 + frames
  block = tokens * t.width * (4 * inner + 2 * t.mlp_dim) + 2 * tokens**2 * inner
  both += t.depth * block + frames * cfg.image.width * t.width + t.width * cfg.num_classes
  return 2 * (frozen + both + once + (frozen + 2 * both) * (step == "train"))


def paper_of_depth(image_size: int, depth: int) -> ModelConfig:
  """The paper's model with so many layers."""
  cfg = paper(image_size=image_size)
  image, audio = (dataclasses.replace(stream, depth=depth) for stream in (cfg.image, cfg.audio))
  return dataclasses.replace(cfg, image=image, audio=audio)


def random_batch(cfg: ModelConfig, batch_size: int) -> dict[str, np.ndarray]:
  """Clips without meaning, as the pipeline makes them: the same for all variants of these sizes."""
  rng = np.random.default_rng(0)
  return {
    "video": rng.integers(0, 256, (batch_size, *cfg.inputs.video_shape), dtype=np.uint8),
    "spectrogram": rng.normal(0, 0.5, (batch_size, *cfg.inputs.audio_shape)).astype(np.float32),
    "label": rng.integers(0, cfg.num_classes, batch_size, dtype=np.int32),
    "mask": np.ones(batch_size, bool),
    "has_audio": np.ones(batch_size, bool),
  }


def compiled_step(
  variant: Variant, cfg: ModelConfig, mesh: Mesh, batch: Any
) -> tuple[Callable[[Any], float], list[dict[str, float]]]:
  """A step from a batch to the loss of a clip, for which it waits; seconds to trace and compile it, twice.

  The second compilation finds the first in the persistent cache.
  """
  trains, key = variant.step == "train", jax.random.key(0)
  tx = make_optimizer(lambda step: 1e-4, 1e-2)
  graphdef, state = create_train_state(
    lambda: MmaDfer(cfg, rngs=nnx.Rngs(0)), tunable_patterns(cfg), tx, mesh=mesh, fsdp_min_size_mb=4.0
  )
  state = state._replace(frozen=cast(state.frozen, variant.precision))

  def loss_of_clips(model: MmaDfer, batch: Any, dropped: Any, remat: str) -> tuple[Any, dict]:
    outputs = in_float32(model(*model_inputs(batch, variant.precision), dropped=dropped, remat=remat))
    return cross_entropy(outputs, batch), {}

  how: dict[str, Any] = {"graphdef": graphdef, "precision": variant.precision}
  jitted: dict[str, Any] = {"compiler_options": sharding.compiler_options()}
  if trains:
    how |= {"tx": tx, "loss_fn": loss_of_clips, "mesh": mesh, "draw_fn": MmaDfer.draw_drop_path,
            "micro_batch": variant.micro_batch, "remat": variant.remat}  # fmt: skip
    jitted |= {"donate_argnums": 0, "out_shardings": (jax.tree.map(lambda x: x.sharding, state), None)}
  else:
    how["loss"] = cross_entropy
  function = functools.partial(train_step if trains else eval_step, **how)

  def arguments(batch: Any) -> tuple:
    return (state, batch, key) if trains else (state.tunable, state.frozen, batch)

  seconds_to = []
  for _ in range(2):
    jax.clear_caches()
    start = time.perf_counter()
    program = jax.jit(function, **jitted).lower(*arguments(batch))
    traced = time.perf_counter()
    compiled = sharding.compile_checked(program)
    seconds_to.append({"trace": traced - start, "compile": time.perf_counter() - traced})

  def step(batch: Any) -> float:
    nonlocal state
    if not trains:
      return float(compiled(*arguments(batch))["loss"]) / variant.batch_size
    state, metrics = compiled(*arguments(batch))
    return float(metrics["loss"])

  return step, seconds_to


def measure(variant: Variant, records: Sequence[Record] | None) -> dict[str, Any]:
  """One variant on random clips and, if there are any, on records, in a process that has measured nothing before."""
  sharding.check_batch_size(variant.batch_size)
  if variant.micro_batch and variant.batch_size % variant.micro_batch:
    raise UserError(f"micro_batch={variant.micro_batch} must divide batch_size={variant.batch_size}")
  sharding.check_precision(variant.precision)
  with tempfile.TemporaryDirectory() as cache:  # new: the first compilation is a cold one
    jax.config.update("jax_compilation_cache_dir", cache)
    sharding.start_jax()
    cfg = paper_of_depth(variant.image_size, variant.depth)
    mesh = sharding.make_mesh(*map(int, variant.mesh.split("x")))
    batch = sharding.to_global(random_batch(cfg, variant.batch_size), mesh)
    step, (cold, cached) = compiled_step(variant, cfg, mesh, batch)
    loss, seconds, clips = step(batch), [], {}
    for _ in range(_REPEATS.value):
      start = time.perf_counter()
      step(batch)
      seconds.append(time.perf_counter() - start)
    if variant.step == "train" and records is not None:
      fed = functools.partial(speed.time_pipeline, records, cfg.inputs, training=True, num_workers=_NUM_WORKERS.value,
                              batch_size=variant.batch_size, repeats=_REPEATS.value)  # fmt: skip
      clips = {"pipeline_clips_per_second": fed()["median"],
               "together_clips_per_second": fed(consume=lambda clips: step(sharding.to_global(clips, mesh)))["median"]}  # fmt: skip
    return {
      "loss": loss,
      "trace_seconds": cached["trace"],
      "compile_seconds": {"cold": cold["compile"], "cached": cached["compile"]},
      "seconds": seconds,
      "peak_memory_gib": sharding.peak_memory(),
      **clips,
      "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }


def run_module(name: str, *arguments: object) -> str:
  """What a command prints in a process of its own; UserError with its last words if it fails."""
  command = [sys.executable, "-m", f"mma_dfer_jax.{name}", *map(str, arguments)]
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  if done.returncode:
    _, marker, message = done.stderr.rpartition("error: ")
    lines = [" ".join(message.split())] if marker else done.stderr.strip().splitlines()[-1:]
    memory = " (killed: perhaps out of memory; try a smaller batch_size or image_size, or remat=layers)"
    raise UserError((lines or [f"exit status {done.returncode}"])[0] + memory * (done.returncode < 0))
  return done.stdout


def run_variant(variant: Variant) -> dict[str, Any]:
  """`measure` in a process of its own; {"failed": why} if it fails."""
  passed = [flag for flag in (_REPEATS, _NUM_WORKERS, _NAME, _DATA_DIR) if flag.present]
  shared = [f"--{flag.name}={flag.value}" for flag in passed]
  try:
    printed = run_module("benchmark", f"--variant={json.dumps(dataclasses.asdict(variant))}", *shared)
  except UserError as error:
    return {"failed": str(error)}
  return json.loads(printed.splitlines()[-1])


def report(
  measured: Sequence[tuple[Variant, Mapping[str, Any]]], peak_tflops: float | None
) -> dict[str, Any]:
  """All numbers of the variants, as JSON holds them."""
  rows: list[dict[str, Any]] = []
  reference: dict[tuple, tuple[float, str]] = {}
  for variant, result in measured:
    rows.append({**dataclasses.asdict(variant), **result})
    if "failed" in result:
      continue
    median = statistics.median(result["seconds"])
    flops = step_flops(paper_of_depth(variant.image_size, variant.depth), variant.step)
    tflops = flops * variant.batch_size / median / 1e12
    size = (variant.step, variant.image_size, variant.batch_size)
    first, its_precision = reference.setdefault(size, (result["loss"], variant.precision))
    difference = abs(result["loss"] - first) / abs(first)
    rows[-1] |= {
      "median_seconds": median,
      "clips_per_second": variant.batch_size / median,
      "tflops": tflops,
      "share_of_peak": tflops / peak_tflops if peak_tflops else None,
      "loss_difference": difference,
      "agrees": difference <= max(TOLERANCE[variant.precision], TOLERANCE[its_precision]),
    }
  versions = {"python": platform.python_version(), "jax": jax.__version__}
  facts = {"date": time.strftime("%Y-%m-%d"), "machine": speed.machine(), "versions": versions}
  return {**facts, "variants": rows}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
  """A report for people."""
  lines = [["step", "px", "clips", "micro", "precision", "remat", "mesh", "trace s", "compile s", "cached s", "step s",
            "spread", "clips/s", "TFLOP/s", "of peak", "GiB", "loss"]]  # fmt: skip
  notes = []
  for row in rows:
    names = ("step", "image_size", "batch_size", "micro_batch", "precision", "remat", "mesh")
    line = [str(row[name] or "") for name in names]
    if "failed" in row:
      notes.append(f"{' '.join(line)} failed: {row['failed']}")
      continue
    compiled, share = row["compile_seconds"], row["share_of_peak"]
    numbers = [f"{row['trace_seconds']:.1f}", f"{compiled['cold']:.1f}", f"{compiled['cached']:.1f}",
               f"{row['median_seconds']:.3f}", f"{min(row['seconds']):.3f} to {max(row['seconds']):.3f}",
               f"{row['clips_per_second']:.2f}", f"{row['tflops']:.2f}", f"{100 * share:.1f} %" if share else "-",
               f"{row['peak_memory_gib']:.2f}", "ok" if row["agrees"] else "DIFFERS"]  # fmt: skip
    lines.append(line + numbers)
    if "pipeline_clips_per_second" in row:
      together, alone = row["together_clips_per_second"], row["pipeline_clips_per_second"]
      notes.append(f"{' '.join(line)} fed with clips: {together:.2f} clips/s; the pipeline alone {alone:.1f}")
  return "\n".join([speed.aligned(lines), *notes])


def records_of(data_dir: str, name: str, clips: int | None = None) -> Sequence[Record]:
  """The clips of a data set's first split, or the first of them."""
  data_set = open_data_set(data_dir, name)
  split, number = next(iter(data_set.splits.items()))
  if not number:
    raise UserError(f"the split {split} of {data_set.path} is empty; there is nothing to measure")
  return data_set.records(f"{split}[:{clips}]" if clips else split)


def measure_loading() -> dict[str, Any]:
  """The loading of clips of --data_dir, or of generated ones, prepared in a temporary folder."""
  with tempfile.TemporaryDirectory() as folder:
    data_dir, name = _DATA_DIR.value, _NAME.value
    if not data_dir:
      data_dir, name = f"{folder}/data", "clips"
      per_class = f"--clips_per_class_train={-(-_CLIPS.value // 7)}"  # of the demo's seven classes
      run_module("data.demo", f"--out={folder}", per_class, "--clips_per_class_test=1")
      files = f"--manifest={folder}/clips.csv", f"--data_dir={data_dir}"
      run_module("data.prepare", "--dataset=clips", *files)
    return speed.measure(
      records_of(data_dir, name, _CLIPS.value), num_workers=_NUM_WORKERS.value, repeats=_REPEATS.value,
      batch_size=int(_BATCH_SIZE.value[0]) if _BATCH_SIZE.present else 8, inputs=paper().inputs,
    )  # fmt: skip


def write(result: dict[str, Any]) -> None:
  if _OUT.value:
    write_json(Path(_OUT.value), result)


def main(argv: Sequence[str]) -> int:
  del argv
  records = records_of(_DATA_DIR.value, _NAME.value) if _DATA_DIR.value else None  # before anything long
  if _CHILD.value:
    print(json.dumps(measure(Variant(**json.loads(_CHILD.value)), records)))
    return 0
  asked, measured = variants(), []
  if _LOADING.value:
    result = measure_loading()
    write(result)
    print(speed.table(result))
    return 0
  for variant in watched(asked, "benchmark", len(asked), unit="variant"):
    measured.append((variant, run_variant(variant)))
    write(report(measured, _PEAK.value))  # each time, so that nothing is lost when it is stopped
  rows = report(measured, _PEAK.value)["variants"]
  print(table(rows))
  return 0 if all(row.get("agrees") for row in rows) else 1


if __name__ == "__main__":
  cli.run(main, describe_error=sharding.describe_error)
