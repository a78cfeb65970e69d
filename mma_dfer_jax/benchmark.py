"""How fast a training step and an evaluation are: time, memory and share of the peak, variant by variant.

  python -m mma_dfer_jax.benchmark                                  # the paper's model, one clip, float32
  python -m mma_dfer_jax.benchmark --batch_size=8,64 --precision=float32,bfloat16 --remat=none,names --peak_tflops=790
  python -m mma_dfer_jax.benchmark --data_dir=data --name=dfew      # and the step fed by the input pipeline

Every variant runs in a process of its own, on random clips and random weights; before it is timed, its loss is compared
with that of the first. Writes a table, and with --out all numbers as JSON.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import itertools
import json
import os
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
import numpy as np
import tqdm

from mma_dfer_jax import cli
from mma_dfer_jax.data.data_set import open_data_set
from mma_dfer_jax.data.pipeline import Augment, Record, TrainOrder, train_batches
from mma_dfer_jax.errors import UserError, listed
from mma_dfer_jax.layers import REMAT
from mma_dfer_jax.losses.cross_entropy import cross_entropy
from mma_dfer_jax.model import MmaDfer, ModelConfig, paper
from mma_dfer_jax.parameters import PRECISIONS, cast, tunable_patterns
from mma_dfer_jax.training.sharding import (
  check_batch_size,
  check_precision,
  compile_checked,
  compiler_options,
  describe_error,
  make_mesh,
  peak_memory,
  start_jax,
  to_global,
)
from mma_dfer_jax.training.state import cosine_by_epoch, create_train_state, make_optimizer
from mma_dfer_jax.training.steps import eval_step, in_float32, model_inputs, train_step

# Not among the flags of every program that imports this: others have a --data_dir of their own.
_OPTIONS = flags.FlagValues()
_STEPS = flags.DEFINE_list("steps", ["eval", "train"], "eval, train or both.", flag_values=_OPTIONS)
_IMAGE_SIZE = flags.DEFINE_list("image_size", ["224"], "Side of the frames, pixels.", flag_values=_OPTIONS)
_DEPTH = flags.DEFINE_integer(
  "depth", 12, "Layers; fewer for a quick look.", lower_bound=1, flag_values=_OPTIONS
)
_BATCH_SIZE = flags.DEFINE_list(
  "batch_size", ["1"], "Clips per step, over all devices.", flag_values=_OPTIONS
)
_MICRO_BATCH = flags.DEFINE_list(
  "micro_batch",
  ["0"],
  "Of training: clips that go through the model at once; 0: the whole batch.",
  flag_values=_OPTIONS,
)
_PRECISION = flags.DEFINE_list(
  "precision", ["float32"], f"Of the computation: {', '.join(PRECISIONS)}.", flag_values=_OPTIONS
)
_REMAT = flags.DEFINE_list("remat", ["names"], f"Of training: {', '.join(REMAT)}.", flag_values=_OPTIONS)
_MESH = flags.DEFINE_list(
  "mesh", ["-1x1"], "Devices along data x fsdp; -1: all that remain.", flag_values=_OPTIONS
)
_REPEATS = flags.DEFINE_integer("repeats", 5, "Timed steps of each.", lower_bound=1, flag_values=_OPTIONS)
_PEAK = flags.DEFINE_float(
  "peak_tflops", None, "Of all devices in the precision that is used, for the share.", flag_values=_OPTIONS
)
_DATA_DIR = flags.DEFINE_string(
  "data_dir", None, "Also train on the clips of this data set's first split.", flag_values=_OPTIONS
)
_NAME = flags.DEFINE_string("name", "clips", "Name of that data set.", flag_values=_OPTIONS)
_NUM_WORKERS = flags.DEFINE_integer(
  "num_workers", 2, "Processes that decode its clips.", lower_bound=0, flag_values=_OPTIONS
)
_OUT = flags.DEFINE_string("out", None, "Write the numbers to this JSON file too.", flag_values=_OPTIONS)
_CHILD = flags.DEFINE_string(
  "variant", None, "One variant as JSON; for the processes that this command starts.", flag_values=_OPTIONS
)

TOLERANCE = {
  "float32": 1e-5,
  "bfloat16": 0.05,
}  # of the loss, relative to the first variant of that image size


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
  for flag in (_IMAGE_SIZE, _BATCH_SIZE):
    if wrong := [value for value in flag.value if not value.isdecimal() or not int(value)]:
      problems.append(f"--{flag.name}={','.join(wrong)}: give positive whole numbers")
  if wrong := [value for value in _MICRO_BATCH.value if not value.isdecimal()]:
    problems.append(f"--micro_batch={','.join(wrong)}: give whole numbers, 0 for the whole batch")
  for value in _IMAGE_SIZE.value:
    try:
      paper(image_size=int(value))
    except ValueError as error:  # UserError, for the model's sizes, is one
      problems += [f"--image_size={value}: {error}"] * (value.isdecimal() and int(value) > 0)
  if _OUT.value and not Path(_OUT.value).absolute().parent.is_dir():
    problems.append(f"--out={_OUT.value}: there is no folder {Path(_OUT.value).parent}")
  for value in _MESH.value:
    if not re.fullmatch(r"(-1|[1-9]\d*)x[1-9]\d*", value):
      problems.append(f"--mesh={value}: give devices along data x fsdp, as 4x1 or -1x2")
  if _DEPTH.value % 6:
    problems.append(f"--depth={_DEPTH.value}: give a multiple of 6, the layers of a stage")
  if problems:
    raise listed("this cannot be measured", problems)
  found = []
  for step, size, batch, precision, mesh in itertools.product(
    _STEPS.value, _IMAGE_SIZE.value, _BATCH_SIZE.value, _PRECISION.value, _MESH.value
  ):
    # An evaluation keeps nothing for a backward pass, and is not divided.
    how = itertools.product(_MICRO_BATCH.value, _REMAT.value) if step == "train" else [("0", "none")]
    found += [
      Variant(step, int(size), _DEPTH.value, int(batch), int(micro), precision, remat, mesh)
      for micro, remat in how
    ]
  return found


def step_flops(cfg: ModelConfig, step: str = "eval") -> float:
  """Floating-point operations of one clip, a multiplication and an addition counted as two; matrix products alone.

  A forward pass has 643.7e9 at 224 px and 356.2e9 at 160 px, as a counter in the original finds. A training step adds
  the products back to the activations, and those to the weights that are tunable; what `remat` repeats does not count.
  """
  frozen = both = once = (
    0.0  # products with frozen weights; of two activations or with tunable ones; without a way back
  )
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
  return dataclasses.replace(
    cfg, image=dataclasses.replace(cfg.image, depth=depth), audio=dataclasses.replace(cfg.audio, depth=depth)
  )


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


def loss_of_clips(precision: str, model: MmaDfer, batch: Any, dropped: Any, remat: str) -> tuple[Any, dict]:
  """Cross-entropy of each clip, as a run of the paper has it."""
  outputs = in_float32(model(*model_inputs(batch, precision), dropped=dropped, remat=remat))
  return cross_entropy(outputs, batch), {}


class Measured:
  """A variant on the devices: its program, compiled twice, and the state that it changes.

  Attributes:
    seconds_to: trace and compile, cold and then from the persistent cache.
  """

  def __init__(self, variant: Variant):
    check_batch_size(variant.batch_size)
    if variant.micro_batch and variant.batch_size % variant.micro_batch:
      raise UserError(f"micro_batch={variant.micro_batch} must divide batch_size={variant.batch_size}")
    check_precision(variant.precision)
    self.variant, self.cfg = variant, paper_of_depth(variant.image_size, variant.depth)
    self.mesh = make_mesh(*map(int, variant.mesh.split("x")))
    self.tx = make_optimizer(cosine_by_epoch(1e-4, 1, 1_000_000), 1e-2)
    self.graphdef, state = create_train_state(
      lambda: MmaDfer(self.cfg, rngs=nnx.Rngs(0)), tunable_patterns(self.cfg), self.tx, mesh=self.mesh,
      fsdp_min_size_mb=4.0,
    )  # fmt: skip
    self.state = state._replace(frozen=cast(state.frozen, variant.precision))
    self.batch = to_global(random_batch(self.cfg, variant.batch_size), self.mesh)
    self.key = jax.random.key(0)
    self.seconds_to = []
    for _ in range(2):  # the second one finds the first in the persistent cache
      jax.clear_caches()
      start = time.perf_counter()
      program = self._lowered()
      traced = time.perf_counter()
      self.compiled = compile_checked(program)
      self.seconds_to.append({"trace": traced - start, "compile": time.perf_counter() - traced})

  def _lowered(self) -> Any:
    v = self.variant
    how: dict[str, Any] = {"graphdef": self.graphdef, "precision": v.precision}
    if v.step == "eval":
      evaluate = functools.partial(eval_step, loss=cross_entropy, **how)
      function = jax.jit(evaluate, compiler_options=compiler_options())
      return function.lower(self.state.tunable, self.state.frozen, self.batch)
    step = functools.partial(
      train_step, tx=self.tx, loss_fn=functools.partial(loss_of_clips, v.precision), mesh=self.mesh,
      draw_fn=MmaDfer.draw_drop_path, micro_batch=v.micro_batch, remat=v.remat, **how,
    )  # fmt: skip
    shardings = jax.tree.map(lambda x: x.sharding, self.state)
    jitted = jax.jit(
      step, donate_argnums=0, out_shardings=(shardings, None), compiler_options=compiler_options()
    )
    return jitted.lower(self.state, self.batch, self.key)

  def step(self) -> float:
    """Makes one step; the loss of a clip, for which it waits."""
    if self.variant.step == "eval":
      sums = self.compiled(self.state.tunable, self.state.frozen, self.batch)
      return float(sums["loss"]) / self.variant.batch_size
    return self.train_on(self.batch)

  def train_on(self, batch: Any) -> float:
    self.state, metrics = self.compiled(self.state, batch, self.key)
    return float(metrics["loss"])

  def clips_per_second(
    self, records: Sequence[Record], num_workers: int, repeats: int, consume: Callable[[Any], Any]
  ) -> float:
    """How fast the pipeline's batches are consumed, once the first have passed."""
    size = self.variant.batch_size
    order = TrainOrder(records, 0, size, 1 + 2 * repeats * size // len(records) + 1)
    with train_batches(
      order, self.cfg.inputs, Augment(), start_step=0, num_workers=num_workers, prefetch=2
    ) as batches:
      for _ in range(repeats):
        consume(next(batches))
      start = time.perf_counter()
      for _ in range(repeats):
        consume(next(batches))
      return repeats * size / (time.perf_counter() - start)


def measure(
  variant: Variant, repeats: int, records: Sequence[Record] | None, num_workers: int
) -> dict[str, Any]:
  """One variant, in a process that has measured nothing before.

  Args:
    variant: what.
    repeats: timed steps.
    records: clips to train on as well; None: only random ones.
    num_workers: processes that decode them.
  Returns:
    loss, seconds to trace and to compile (cold; again, from the persistent cache), seconds of each step, peak_memory in GiB, devices.
  """
  with (
    tempfile.TemporaryDirectory() as cache
  ):  # of this measurement alone: the first compilation is a cold one
    jax.config.update("jax_compilation_cache_dir", cache)
    start_jax()
    here = Measured(variant)
    loss, seconds = here.step(), []
    for _ in range(repeats):
      start = time.perf_counter()
      here.step()
      seconds.append(time.perf_counter() - start)
    clips = {}
    if variant.step == "train" and records is not None:
      fed = functools.partial(here.clips_per_second, records, num_workers, repeats)
      clips = {
        "pipeline_clips_per_second": fed(lambda clips: None),
        "together_clips_per_second": fed(lambda clips: here.train_on(to_global(clips, here.mesh))),
      }
    cold, cached = here.seconds_to
    return {
      "loss": loss,
      "trace_seconds": cached["trace"],
      "compile_seconds": {"cold": cold["compile"], "cached": cached["compile"]},
      "seconds": seconds,
      "peak_memory_gib": peak_memory(),
      **clips,
      "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }


def run_variant(variant: Variant) -> dict[str, Any]:
  """`measure` in a process of its own; UserError with its last words if it fails."""
  command = [sys.executable, "-m", "mma_dfer_jax.benchmark", f"--variant={json.dumps(dataclasses.asdict(variant))}",
             f"--repeats={_REPEATS.value}", f"--num_workers={_NUM_WORKERS.value}", f"--name={_NAME.value}"]  # fmt: skip
  if _DATA_DIR.value:
    command.append(f"--data_dir={_DATA_DIR.value}")
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  if done.returncode:
    _, marker, told = done.stderr.rpartition("\nerror: ")
    words = [" ".join(told.split())] if marker else done.stderr.strip().splitlines()[-1:]
    words = words or [f"exit status {done.returncode}"]
    memory = " (killed: perhaps for want of memory; try a smaller batch_size or image_size, or remat=layers)"
    return {"failed": words[0] + memory * (done.returncode < 0)}
  return json.loads(done.stdout.splitlines()[-1])


def report(
  measured: Sequence[tuple[Variant, Mapping[str, Any]]], peak_tflops: float | None
) -> dict[str, Any]:
  """All numbers of the command, as JSON holds them."""
  rows = []
  reference: dict[tuple, tuple[float, str]] = {}
  for variant, result in measured:
    row = {**dataclasses.asdict(variant), **result}
    if "failed" not in result:
      median = statistics.median(result["seconds"])
      flops = step_flops(paper_of_depth(variant.image_size, variant.depth), variant.step)
      tflops = flops * variant.batch_size / median / 1e12
      size = (variant.step, variant.image_size, variant.batch_size)
      first, its_precision = reference.setdefault(size, (result["loss"], variant.precision))
      row |= {
        "median_seconds": median,
        "clips_per_second": variant.batch_size / median,
        "tflops": tflops,
        "share_of_peak": tflops / peak_tflops if peak_tflops else None,
        "loss_difference": abs(result["loss"] - first) / abs(first),
      }
      row["agrees"] = row["loss_difference"] <= max(TOLERANCE[variant.precision], TOLERANCE[its_precision])
    rows.append(row)
  return {
    "date": time.strftime("%Y-%m-%d"),
    "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
    "versions": {"python": platform.python_version(), "jax": jax.__version__},
    "variants": rows,
  }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
  """The report for people."""
  lines = [
    f"{'step':<6}{'px':>5}{'clips':>6}{'micro':>6} {'precision':<10}{'remat':<8}{'mesh':<7}{'trace s':>8}{'compile s':>10}{'cached s':>9}"
    f"{'step s':>9}{'spread':>17}{'clips/s':>9}{'TFLOP/s':>9}{'of peak':>9}{'GiB':>7}{'loss':>10}"
  ]
  for row in rows:
    name = (f"{row['step']:<6}{row['image_size']:>5}{row['batch_size']:>6}{row['micro_batch'] or '':>6} {row['precision']:<10}{row['remat']:<8}"
            f"{row['mesh']:<7}")  # fmt: skip
    if "failed" in row:
      lines.append(f"{name} failed: {row['failed']}")
      continue
    spread = f"{min(row['seconds']):.3f} to {max(row['seconds']):.3f}"
    share = f"{100 * row['share_of_peak']:.1f} %" if row["share_of_peak"] else "-"
    compiled = row["compile_seconds"]
    lines.append(
      f"{name}{row['trace_seconds']:>8.1f}{compiled['cold']:>10.1f}{compiled['cached']:>9.1f}{row['median_seconds']:>9.3f}{spread:>17}"
      f"{row['clips_per_second']:>9.2f}{row['tflops']:>9.2f}{share:>9}{row['peak_memory_gib']:>7.2f}"
      f"{'ok' if row['agrees'] else 'DIFFERS':>10}"
    )
    if "pipeline_clips_per_second" in row:
      lines.append(
        f"{'':<6}fed with clips: {row['together_clips_per_second']:.2f} clips/s; the pipeline alone gives "
        f"{row['pipeline_clips_per_second']:.1f}"
      )
  return "\n".join(lines)


def all_records() -> dict[str, Sequence[Record]]:
  """The first split of --data_dir by its name; nothing without that flag."""
  if not _DATA_DIR.value:
    return {}
  data_set = open_data_set(_DATA_DIR.value, _NAME.value)
  split = next(iter(data_set.splits))
  return {split: data_set.records(split)}


def main(argv: Sequence[str]) -> int:
  _OPTIONS(argv)  # parsed already, through `cli`
  if _CHILD.value:
    records = next(iter(all_records().values()), None)
    print(
      json.dumps(measure(Variant(**json.loads(_CHILD.value)), _REPEATS.value, records, _NUM_WORKERS.value))
    )
    return 0
  all_records()  # what is wrong with --data_dir is said before anything long
  measured: list[tuple[Variant, dict[str, Any]]] = []
  for variant in tqdm.tqdm(variants(), "benchmark", unit="variant"):
    measured.append((variant, run_variant(variant)))
    result = report(measured, _PEAK.value)
    if _OUT.value:  # each time, so that nothing is lost when it is stopped
      Path(_OUT.value).write_text(json.dumps(result, indent=2) + "\n")
  print(table(result["variants"]))
  return 0 if all(row.get("agrees") for row in result["variants"]) else 1


if __name__ == "__main__":
  cli.take_over(_OPTIONS)
  cli.run(main, explained=describe_error)
