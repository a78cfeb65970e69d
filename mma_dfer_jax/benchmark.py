"""How fast a training step and an evaluation are, or the loading of clips: time, memory and share of the peak.

  python -m mma_dfer_jax.benchmark                                  # the paper's model, one clip, float32
  python -m mma_dfer_jax.benchmark --config=configs/dfew.py:frame_mask_half     # the model of a config
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
import timeit
from types import SimpleNamespace
from typing import Any

from absl import flags
from flax import nnx
import jax
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh
import numpy as np
import optax

from mma_dfer_jax import cli, parts
from mma_dfer_jax.config import model_config
from mma_dfer_jax.cores import usable_cores
from mma_dfer_jax.data import counts, speed
from mma_dfer_jax.data.data_set import open_data_set
from mma_dfer_jax.data.pipeline import Record
from mma_dfer_jax.disk import write_json
from mma_dfer_jax.errors import UserError, listed
from mma_dfer_jax.layers import REMAT
from mma_dfer_jax.model import SLOTS, MmaDfer, ModelConfig, paper, read_model
from mma_dfer_jax.parameters import PRECISIONS, cast, tunable_patterns
from mma_dfer_jax.paths import define_path
from mma_dfer_jax.progress import watched
from mma_dfer_jax.training import sharding
from mma_dfer_jax.training.objective import Term
from mma_dfer_jax.training.state import create_train_state, make_optimizer
from mma_dfer_jax.training.steps import eval_step, in_float32, model_inputs, train_step

_CONFIG = cli.define_config()
_STEPS = flags.DEFINE_list("steps", ["eval", "train"], "eval, train or both.")
_IMAGE_SIZE = flags.DEFINE_list("image_size", ["224"], "Side of the frames, pixels.")
_DEPTH = flags.DEFINE_integer("depth", 12, "Layers; fewer for a quick look.", lower_bound=1)
_BATCH_SIZE = flags.DEFINE_list(
  "batch_size", ["1"], "Clips per step, over all devices; with --loading the default is 8."
)
_MICRO_BATCH = flags.DEFINE_list("micro_batch", ["0"], "Clips that a training step computes at once; 0: all.")
_PRECISION = flags.DEFINE_list(
  "precision", ["float32"], f"Precision of the computation: {', '.join(PRECISIONS)}."
)
_REMAT = flags.DEFINE_list(
  "remat", ["names"], f"What a training step computes again instead of keeping: {', '.join(REMAT)}."
)
_MESH = flags.DEFINE_list("mesh", ["-1x1"], "Devices along data x fsdp; -1: all that remain.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Timed steps or passes of each.", lower_bound=1)
_PEAK = flags.DEFINE_float("peak_tflops", None, "Peak of all devices in this precision, for the share.")
_LOADING = flags.DEFINE_bool("loading", False, "Measure the input pipeline instead of the model.")
_CLIPS = flags.DEFINE_integer(
  "clips", 64, "With --loading: the largest number of clips to load.", lower_bound=1
)
_DATA_DIR = define_path("data_dir", None, "Train on a data set in this folder too, or load it.")
_NAME = flags.DEFINE_string("name", "clips", "Name of that data set.")
_NUM_WORKERS = flags.DEFINE_integer(
  "num_workers", min(2, usable_cores()), "Processes that decode; 0: threads.", lower_bound=0
)
_OUT = define_path("out", None, "Write the numbers to this JSON file too.")
_CHILD = flags.DEFINE_string("variant", None, "For processes that this command starts: a variant as JSON.")

OF_MODEL = (_CONFIG, _STEPS, _IMAGE_SIZE, _DEPTH, _MICRO_BATCH, _PRECISION, _REMAT, _MESH, _PEAK)
POSITIVE = r"[1-9]\d*", "whole numbers of at least 1"
# What makes a variant: its flag, a pattern of the values, and what is allowed in words. All run with --depth.
FIELDS = {
  "step": (_STEPS, "eval|train", "eval, train"),
  "image_size": (_IMAGE_SIZE, *POSITIVE),
  "batch_size": (_BATCH_SIZE, *POSITIVE),
  "precision": (_PRECISION, "|".join(PRECISIONS), ", ".join(PRECISIONS)),
  "mesh": (_MESH, r"(-1|[1-9]\d*)x[1-9]\d*", "devices along data x fsdp, as 4x1 or -1x2"),
  "micro_batch": (_MICRO_BATCH, r"\d+", "whole numbers of at least 0"),
  "remat": (_REMAT, "|".join(REMAT), ", ".join(REMAT)),
}
TOLERANCE = {"float32": 1e-5, "bfloat16": 0.05}  # of the loss, relative to the first variant of that size
# The table: columns that name a variant, and its numbers.
NAMES = {"step": "{step}", "px": "{image_size}", "clips": "{batch_size}", "micro": "{micro}", "precision": "{precision}",
         "remat": "{remat}", "mesh": "{mesh}"}  # fmt: skip
NUMBERS = {
  "trace s": "{trace_seconds:.1f}", "compile s": "{compile_seconds[cold]:.1f}", "cached s": "{compile_seconds[cached]:.1f}",
  "step s": "{median_seconds:.3f}", "spread": "{low:.3f} to {high:.3f}", "clips/s": "{clips_per_second:.2f}",
  "TFLOP/s": "{done}", "of peak": "{share}", "GiB": "{peak_memory_gib:.2f}", "loss": "{verdict}",
}  # fmt: skip


def variants() -> list[dict[str, Any]]:
  """All that the flags ask for; UserError with everything that is wrong with them."""
  problems = []
  for flag, pattern, allowed in FIELDS.values():
    if wrong := [value for value in flag.value if not re.fullmatch(pattern, value)]:
      problems.append(f"--{flag.name}={','.join(wrong)}: give {allowed}")
  of_config: dict[str, Any] = {}
  if _CONFIG.value:
    problems += [
      f"--{flag.name} is said by --config; leave it out" for flag in (_IMAGE_SIZE, _DEPTH) if flag.present
    ]
    cfg = model_config(_CONFIG.value.to_dict(), [f"class {i}" for i in range(7)])
    of_config = {"image_size": cfg.inputs.image_size, "depth": cfg.layers, "model": cfg.to_fields()}
  for size in filter(str.isdecimal, () if of_config else _IMAGE_SIZE.value):
    try:
      paper_of_depth(int(size), _DEPTH.value)
    except UserError as error:
      problems.append(f"--image_size={size} --depth={_DEPTH.value}: {error}")
  if _OUT.value and not Path(_OUT.value).absolute().parent.is_dir():
    problems.append(f"--out={_OUT.value}: there is no folder {Path(_OUT.value).parent}")
  others, how = (OF_MODEL, "with") if _LOADING.value else ((_CLIPS,), "without")
  problems += [f"--{flag.name} does nothing {how} --loading; leave it out" for flag in others if flag.present]
  if _LOADING.value and len(_BATCH_SIZE.value) > 1:
    problems.append(f"--batch_size={','.join(_BATCH_SIZE.value)}: give one number with --loading")
  if problems:
    raise listed("the command line has problems", problems)
  found: list[dict[str, Any]] = []
  for values in itertools.product(*(flag.value for flag, *_ in FIELDS.values())):
    one = {name: int(v) if v.isdecimal() else v for name, v in zip(FIELDS, values, strict=True)}
    one |= {"depth": _DEPTH.value, **of_config}
    if one["step"] == "eval":  # it is not divided, and keeps nothing for a backward pass
      one |= {"micro_batch": 0, "remat": "none"}
    found += [one] if one not in found else []
  return found


COUNTED = {
  "encoders/mae", "encoders/none", "adapters/prompts", "adapters/none", "fusion/bottleneck", "fusion/none", "layer_pools/last",
  "frame_masks/none", "frame_masks/soft", "landmarks/none", "temporal/transformer", "temporal/mean", "heads/linear",
  "auxiliary/none",
}  # fmt: skip


def step_flops(cfg: ModelConfig, step: str = "eval") -> float | None:
  """Floating-point operations of one clip, a multiplication and an addition counted as two; matrix products alone.

  A forward pass has 643.7e9 at 224 px and 356.2e9 at 160 px, as a counter in the original finds. A training step adds
  the products back to the activations, and those to the weights that are tunable; what `remat` repeats does not count.
  None: the model has a part of which this knows nothing.
  """
  if not {parts.place_of(getattr(cfg, slot)) for slot in SLOTS} <= COUNTED:
    return None
  # Products with frozen weights; of two activations or with tunable ones; without a way back.
  frozen = both = once = 0.0
  prompts, t = cfg.prompts.count(cfg.layers), cfg.temporal
  mask, frames = cfg.frame_mask, cfg.inputs.num_frames
  kept = getattr(mask, "keep", 0) or frames
  for name, stream, channels in (("image", cfg.image, 3), ("audio", cfg.audio, 1)):
    if not stream.depth:
      continue
    rows, columns = stream.grid(name, cfg.inputs)
    patches, d = rows * columns, stream.width
    tokens = 1 + patches + prompts
    for layer in range(cfg.layers):
      sequences = 1 if name == "audio" else frames if kept == frames or layer < mask.after else kept
      blocks = sequences * stream.depth // cfg.layers
      frozen += blocks * tokens * d * (4 * d + 2 * stream.mlp_dim)
      both += blocks * 2 * tokens**2 * d
      if parts.place_of(cfg.fusion) == "fusion/bottleneck" and cfg.fusion.acts_in(layer, cfg.layers):
        down_and_up = 2 if cfg.fusion.direction in ("both", "own", f"to_{name}") else 1
        both += down_and_up * sequences * tokens * d * cfg.fusion.width
    once += (1 if name == "audio" else frames) * patches * channels * stream.patch_size**2 * d
  moments, width = kept if cfg.image.depth else 1, cfg.image.width if cfg.image.depth else cfg.audio.width
  both += moments * width * t.width + (t.width or width) * cfg.num_classes
  if parts.place_of(t) == "temporal/transformer":
    inner, tokens = t.heads * t.head_dim, 1 + moments
    both += t.depth * (tokens * t.width * (4 * inner + 2 * t.mlp_dim) + 2 * tokens**2 * inner)
  return 2 * (frozen + both + once + (frozen + 2 * both) * (step == "train"))


def paper_of_depth(image_size: int, depth: int) -> ModelConfig:
  """The paper's model with so many layers; fewer than a stage of prompts has are one stage, if they divide it."""
  cfg = paper(image_size=image_size)
  image, audio = (dataclasses.replace(stream, depth=depth) for stream in (cfg.image, cfg.audio))
  per_stage = cfg.prompts.layers_per_stage
  prompts = dataclasses.replace(cfg.prompts, layers_per_stage=per_stage if per_stage % depth else depth)
  return dataclasses.replace(cfg, image=image, audio=audio, prompts=prompts)


def model_of(variant: Mapping[str, Any]) -> ModelConfig:
  """The model of --config, or the paper's."""
  fields = variant.get("model")
  return read_model(fields) if fields else paper_of_depth(variant["image_size"], variant["depth"])


def random_batch(cfg: ModelConfig, batch_size: int) -> dict[str, np.ndarray]:
  """Clips without meaning, as the pipeline makes them: the same for all variants of these sizes."""
  rng = np.random.default_rng(0)
  return {
    "video": rng.integers(0, 256, (batch_size, *cfg.inputs.video_shape), dtype=np.uint8),
    "spectrogram": rng.normal(0, 0.5, (batch_size, *cfg.inputs.audio_shape)).astype(np.float32),
    **{
      name: rng.random((batch_size, *shape), np.float32)
      for name, shape in cfg.inputs.shapes.items()
      if name == "landmarks"
    },
    "label": rng.integers(0, cfg.num_classes, batch_size, dtype=np.int32),
    "mask": np.ones(batch_size, bool),
    "has_audio": np.ones(batch_size, bool),
  }


def compiled_step(
  variant: SimpleNamespace, cfg: ModelConfig, mesh: Mesh, batch: Any, cache: str
) -> tuple[Callable[[Any], float], list[dict[str, float]]]:
  """A step from a batch to the loss of a clip, and the seconds to trace and compile it: cold, then from a new cache."""
  tx = make_optimizer(lambda step: 1e-4, 1e-2)
  graphdef, state = create_train_state(
    lambda: MmaDfer(cfg, rngs=nnx.Rngs(0)), tunable_patterns(cfg), tx, mesh=mesh, fsdp_min_size_mb=4.0
  )
  state = state._replace(frozen=cast(state.frozen, variant.precision))
  trains, how = variant.step == "train", {"graphdef": graphdef, "precision": variant.precision}

  def loss_of_clips(model: MmaDfer, batch: Any, dropped: Any, remat: str, shared: Any) -> tuple[Any, dict]:
    outputs = in_float32(model(*model_inputs(batch, variant.precision), dropped=dropped, remat=remat))
    losses = optax.softmax_cross_entropy_with_integer_labels(outputs.logits, batch["label"])
    return {"ce": Term(losses)}, {}

  def new_state_and_loss(state, batch):
    if not trains:
      sums = eval_step(state.tunable, state.frozen, batch, **how)
      return None, sums["loss"] / variant.batch_size
    state, metrics = train_step(
      state, batch, jax.random.key(0), tx=tx, loss_fn=loss_of_clips, draw_fn=MmaDfer.draw_drop_path, mesh=mesh,
      micro_batch=variant.micro_batch, remat=variant.remat, **how,
    )  # fmt: skip
    return state, metrics["loss"]

  jitted = jax.jit(
    new_state_and_loss, donate_argnums=[0] * trains,
    out_shardings=(jax.tree.map(lambda x: x.sharding, state) if trains else None, None),
    compiler_options=sharding.compiler_options(),
  )  # fmt: skip
  seconds = []
  compilation_cache.reset_cache()  # of what the parameters were made with, which is not measured
  jax.config.update("jax_compilation_cache_dir", cache)
  for _ in range(2):
    jax.clear_caches()
    start = time.perf_counter()
    program = jitted.lower(state, batch)
    traced = time.perf_counter()
    compiled = sharding.compile_checked(program)
    seconds.append({"trace": traced - start, "compile": time.perf_counter() - traced})

  def step(batch: Any) -> float:
    nonlocal state
    new_state, loss = compiled(state, batch)
    state = new_state if trains else state
    return float(loss)

  return step, seconds


def measure(variant: SimpleNamespace, records: Sequence[Record] | None) -> dict[str, Any]:
  """One variant on random clips and, if there are any, on records, in a process that has measured nothing before."""
  sharding.check_batch_size(variant.batch_size)
  if variant.micro_batch and variant.batch_size % variant.micro_batch:
    raise UserError(f"micro_batch={variant.micro_batch} must divide batch_size={variant.batch_size}")
  sharding.check_precision(variant.precision)
  sharding.start_jax()
  with tempfile.TemporaryDirectory() as cache:  # new: the first compilation is a cold one
    cfg = model_of(vars(variant))
    mesh = sharding.make_mesh(*map(int, variant.mesh.split("x")))
    batch = sharding.to_global(random_batch(cfg, variant.batch_size), mesh)
    step, (cold, cached) = compiled_step(variant, cfg, mesh, batch, cache)
    result = {
      "loss": step(batch),
      "trace_seconds": cached["trace"],
      "compile_seconds": {"cold": cold["compile"], "cached": cached["compile"]},
      "seconds": timeit.repeat(lambda: step(batch), number=1, repeat=_REPEATS.value),
      "peak_memory_gib": sharding.peak_memory(),
      "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }
    if variant.step == "train" and records is not None:
      fed = functools.partial(speed.time_pipeline, records, cfg.inputs, training=True, num_workers=_NUM_WORKERS.value,
                              batch_size=variant.batch_size, repeats=_REPEATS.value)  # fmt: skip
      result["pipeline_clips_per_second"] = fed()["median"]
      together = fed(consume=lambda clips: step(sharding.to_global(clips, mesh)))
      result["together_clips_per_second"] = together["median"]
    return result


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


def add_row(rows: list[dict[str, Any]], row: dict[str, Any], peak_tflops: float | None) -> None:
  """Adds a variant and what was measured of it, compared with the first row of that size."""
  rows.append(row)
  if "failed" in row:
    return
  same_size = ("step", "image_size", "batch_size")
  first = next(one for one in rows if "failed" not in one and all(one[key] == row[key] for key in same_size))
  row["median_seconds"] = statistics.median(row["seconds"])
  row["clips_per_second"] = row["batch_size"] / row["median_seconds"]
  flops = step_flops(model_of(row), row["step"])
  row["tflops"] = flops and flops * row["clips_per_second"] / 1e12
  row["share_of_peak"] = flops and peak_tflops and row["tflops"] / peak_tflops
  row["loss_difference"] = abs(row["loss"] - first["loss"]) / abs(first["loss"])
  row["agrees"] = row["loss_difference"] <= max(TOLERANCE[one["precision"]] for one in (row, first))


def table(rows: Sequence[dict[str, Any]]) -> str:
  lines, notes = [[*NAMES, *NUMBERS]], []
  for row in rows:
    names = [text.format(**row, micro=row["micro_batch"] or "") for text in NAMES.values()]
    if "failed" in row:
      notes.append(f"{' '.join(names)} failed: {row['failed']}")
      continue
    share = f"{100 * row['share_of_peak']:.1f} %" if row["share_of_peak"] else "-"
    done = f"{row['tflops']:.2f}" if row["tflops"] else "-"
    more = {"low": min(row["seconds"]), "high": max(row["seconds"]), "share": share, "done": done}
    more["verdict"] = "ok" if row["agrees"] else "DIFFERS"
    lines.append(names + [text.format(**row, **more) for text in NUMBERS.values()])
    if "pipeline_clips_per_second" in row:
      together, alone = row["together_clips_per_second"], row["pipeline_clips_per_second"]
      notes.append(f"{' '.join(names)} fed with clips: {together:.2f} clips/s; the pipeline alone {alone:.1f}")  # fmt: skip
  return "\n".join([counts.table(lines), *notes])


def records_of(data_dir: str, name: str, clips: int | None = None) -> Sequence[Record]:
  """The clips of a data set's first split, or at most so many of them."""
  data_set = open_data_set(data_dir, name)
  split, number = next(iter(data_set.splits.items()))
  if not number:
    raise UserError(f"the split {split} of {data_set.path} is empty; there is nothing to measure")
  return data_set.records(f"{split}[:{min(clips or number, number)}]")


def measure_loading() -> dict[str, Any]:
  """The loading of clips of --data_dir, or of generated ones, prepared in a temporary folder."""
  with tempfile.TemporaryDirectory() as folder:
    data_dir, name = _DATA_DIR.value, _NAME.value
    if not data_dir:
      data_dir, name = f"{folder}/data", "clips"
      per_class = f"--clips_per_class_train={-(-_CLIPS.value // 7)}"  # of the demo's seven classes
      run_module("data.demo", f"--out={folder}", per_class, "--clips_per_class_test=1")
      run_module("data.prepare", "--dataset=clips", f"--manifest={folder}/clips.csv", f"--data_dir={data_dir}")  # fmt: skip
    return speed.measure(
      records_of(data_dir, name, _CLIPS.value), paper().inputs, num_workers=_NUM_WORKERS.value,
      batch_size=int(_BATCH_SIZE.value[0]) if _BATCH_SIZE.present else 8, repeats=_REPEATS.value,
    )  # fmt: skip


def main(argv: Sequence[str]) -> int:
  del argv
  records = records_of(_DATA_DIR.value, _NAME.value) if _DATA_DIR.value else None  # before anything long
  if _CHILD.value:
    print(json.dumps(measure(SimpleNamespace(**json.loads(_CHILD.value)), records)))
    return 0
  asked, rows = variants(), list[dict[str, Any]]()
  if _LOADING.value:
    result = measure_loading()
    print(speed.table(result))
    if _OUT.value:
      write_json(Path(_OUT.value), result)
    return 0
  versions = {"python": platform.python_version(), "jax": jax.__version__}
  result = {"date": time.strftime("%Y-%m-%d"), "machine": speed.machine(), "versions": versions, "variants": rows}  # fmt: skip
  shared = [f"--{flag.name}={flag.value}" for flag in (_REPEATS, _NUM_WORKERS, _NAME, _DATA_DIR) if flag.present]  # fmt: skip
  for variant in watched(asked, "benchmark", len(asked), unit="variant"):
    try:
      printed = run_module("benchmark", f"--variant={json.dumps(variant)}", *shared)
      measured = json.loads(printed.splitlines()[-1])
    except UserError as error:
      measured = {"failed": str(error)}
    add_row(rows, variant | measured, _PEAK.value)
    if _OUT.value:  # each time, so that nothing is lost when it is stopped
      write_json(Path(_OUT.value), result)
  print(table(rows))
  return 0 if all(row.get("agrees") for row in rows) else 1


if __name__ == "__main__":
  cli.run(main, describe_error=sharding.describe_error)
