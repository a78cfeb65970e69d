"""Train MMA-DFER. `main` is the whole run, from top to bottom.

  python -m mma_dfer_jax.train --config=configs/dfew.py --config.data.data_dir=data --workdir=runs/fold1

The same command again goes on where the run was; SIGTERM saves and ends with exit status 0.
"""

from collections.abc import Sequence
import functools
import math
from pathlib import Path
import shutil
import time
from typing import Any

from absl import flags
import jax
import numpy as np
import tqdm

from mma_dfer_jax import cli, hosts
from mma_dfer_jax.checkpoints import (  # fmt: skip
  Checkpointer,
  check_same_run,
  claim_workdir,
  describe_run,
  load_frozen,
  model_config,
  save_frozen,
)
from mma_dfer_jax.config import OF_A_HOST, flat_config, problems_of
from mma_dfer_jax.data.datasets import open_data_set
from mma_dfer_jax.data.pipeline import Preprocessing, TrainOrder, train_batches
from mma_dfer_jax.errors import UserError, listed
from mma_dfer_jax.metrics import Scores
from mma_dfer_jax.report import MetricsLog, percent, write_report
from mma_dfer_jax.sharding import (  # fmt: skip
  check_batch_size,
  check_precision,
  compile_checked,
  compiler_options,
  everywhere,
  make_mesh,
  on_devices,
  start_jax,
)
from mma_dfer_jax.steps import abstract_batch, eval_step, evaluate_split, in_precision, train_step
from mma_dfer_jax.train_state import (  # fmt: skip
  cosine_by_epoch,
  count,
  create_train_state,
  dead_elements,
  make_optimizer,
  parameter_table,
)
from mma_dfer_jax.weights import open_pretrained

_CONFIG = cli.define_config()
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Folder for checkpoints, metrics and the report.", required=True
)
flags.mark_flag_as_required("config")


def checked(config):
  """Sizes, data set, its (train, test) splits, and pretrained encoders; everything wrong with a config at once.

  Raises:
    UserError: with all problems, before anything long has started.
  """
  problems = problems_of(config)
  cfg = data_set = splits = None
  encoders = []
  try:
    check_precision(config.precision)
    check_batch_size(config.batch_size)
    make_mesh(**config.mesh)
  except UserError as error:
    problems.append(str(error))
  if config.data.data_dir:
    try:
      data_set = open_data_set(config.data.data_dir, config.data.name)
      splits = data_set.train_and_test(config.data.fold)
    except UserError as error:
      problems.append(str(error))
  if data_set:
    if config.data.classes and tuple(config.data.classes) != data_set.classes:
      problems.append(f"data.classes={tuple(config.data.classes)}, but the data set has {data_set.classes}")
    if config.model.num_classes not in (0, len(data_set.classes)):
      problems.append(f"model.num_classes={config.model.num_classes}, but the data set has {len(data_set.classes)} "
                      f"classes: {', '.join(data_set.classes)}")  # fmt: skip
    try:
      cfg = model_config(flat_config(config.to_dict()), data_set.classes)
    except UserError as error:
      problems.append(str(error))
  if data_set and splits:
    train_clips = sum(data_set.splits[split] for split in splits[0].split("+"))
    if train_clips < config.batch_size:
      problems.append(f"batch_size={config.batch_size}, but {splits[0]} has {train_clips} clips in all")
  for stream in ("image", "audio"):
    try:
      if cfg and config.pretrained[stream]:
        encoders.append(open_pretrained(stream, config.pretrained[stream], cfg))
    except UserError as error:
      problems.append(str(error))
  if problems:
    raise listed("this run cannot start", problems)
  return cfg, data_set, splits, encoders


def check_disk(workdir: Path, state, keep: int) -> None:
  """Raises UserError if the checkpoints to be kept, and one more while it is written, do not fit on the disk."""
  rolling = 4 * count((state.tunable, state.opt_state))
  needed = rolling * (keep + 2) + 4 * count(state.frozen)
  free = shutil.disk_usage(workdir).free
  if free < needed:
    raise UserError(f"{workdir} needs {needed / 2**20:.0f} MiB for {keep} checkpoints, the best one, one being "
                    f"written, and the frozen weights, but {free / 2**20:.0f} MiB are free")  # fmt: skip


def log_steps(log: MetricsLog, pending, schedule, clips_per_second: float) -> list[tuple[float, float]]:
  """Fetches the metrics of the last steps, logs their means, and returns (loss, accuracy) of each step.

  Raises:
    UserError: if a loss is not finite; nothing has been saved since.
  """
  fetched = [(step, {name: float(value) for name, value in metrics.items()}) for step, metrics in pending]
  for i, (step, metrics) in enumerate(fetched):
    if not math.isfinite(metrics["loss"]):
      before = f"{fetched[i - 1][1]['loss']:.4g}" if i else "finite, in the steps logged before"
      raise UserError(f"the loss is {metrics['loss']} at step {step} (before: {before}; learning rate "
                      f"{float(schedule(step - 1)):.3g}); lower config.learning_rate, or look at the clips; the last "
                      "checkpoint is from before")  # fmt: skip
  if fetched:
    means = {name: float(np.mean([m[name] for _, m in fetched])) for name in fetched[0][1]}
    last = fetched[-1][0]
    log.write(
      last, means | {"learning_rate": float(schedule(last - 1)), "clips_per_second": clips_per_second}
    )
  return [(metrics["loss"], metrics["accuracy"]) for _, metrics in fetched]


def main(argv: Sequence[str]) -> int:
  del argv
  config, workdir = _CONFIG.value, Path(_WORKDIR.value)
  if "://" in _WORKDIR.value:
    raise UserError(f"--workdir={_WORKDIR.value} is an address; give a folder (mount the bucket)")

  # The other processes, devices, and everything that can be wrong.
  hosts.join()
  stop = hosts.Stop()
  start_jax(config.matmul_precision)
  with hosts.together():
    cfg, data_set, (train_split, test_split), encoders = checked(config)
  run = describe_run(config.to_dict(), cfg, data_set, {e.stream: e.weights.sha256 for e in encoders})
  hosts.same_everywhere("run", {k: v for k, v in flat_config(run).items() if k not in OF_A_HOST})
  mesh = make_mesh(**config.mesh)
  chief = jax.process_index() == 0

  # Data: the order of the clips, and what becomes of them.
  d = config.data
  spec = Preprocessing(cfg.image_size, cfg.num_frames, cfg.audio_shape, tuple(d.crop_scale), tuple(d.crop_ratio),
                       d.flip, d.brightness)  # fmt: skip
  train_records, test_records = data_set.records(train_split), data_set.records(test_split)
  order = TrainOrder(train_records, config.seed, config.batch_size, config.num_epochs,
                     jax.process_index(), jax.process_count())  # fmt: skip
  steps_per_epoch = order.steps_per_epoch
  total_steps = steps_per_epoch * config.num_epochs

  # Model and optimizer, freshly initialised; pretrained encoders put over it.
  schedule = cosine_by_epoch(config.learning_rate, config.num_epochs, steps_per_epoch)
  tx = make_optimizer(schedule, config.weight_decay)
  pretrained = {path: value for encoder in encoders for path, value in encoder.read().items()}
  graphdef, state = create_train_state(
    cfg, config.tunable, tx, seed=config.seed, mesh=mesh, fsdp_min_size_mb=config.fsdp_min_size_mb,
    pretrained=pretrained,
  )  # fmt: skip
  del pretrained

  # Where it goes: another run's folder is refused, its own is gone on with.
  with hosts.together():
    if chief:
      claim_workdir(workdir, run)
      check_disk(workdir, state, config.keep_checkpoints)
  hosts.share(workdir)
  checkpointer = Checkpointer(workdir, keep=config.keep_checkpoints)
  history: list[dict] = []
  this_epoch: list[tuple[float, float]] = []  # (loss, accuracy) of each step since the last evaluation
  saved_step = checkpointer.latest_step()
  if saved_step is None:
    save_frozen(workdir, state.frozen)
  else:
    state, meta = checkpointer.restore(saved_step, state)
    check_same_run(meta["run"], run, f"the checkpoint of step {saved_step} in {workdir}")
    state = state._replace(frozen=load_frozen(workdir, state.frozen))
    history, this_epoch = meta["history"], [tuple(pair) for pair in meta["this_epoch"]]
  start_step = int(state.step)
  state = state._replace(frozen=in_precision(state.frozen, config.precision))

  # The two jitted functions.
  shardings = jax.tree.map(lambda x: x.sharding, state)
  how: dict[str, Any] = {"graphdef": graphdef, "precision": config.precision}
  train_fn: Any = jax.jit(functools.partial(train_step, tx=tx, remat=config.remat, **how), donate_argnums=0,
                     out_shardings=(shardings, everywhere(mesh)), compiler_options=compiler_options())  # fmt: skip
  eval_fn = jax.jit(functools.partial(eval_step, **how), out_shardings=everywhere(mesh),
                    compiler_options=compiler_options())  # fmt: skip
  key = jax.random.key(config.seed)
  if start_step < total_steps:
    train_fn = compile_checked(train_fn.lower(state, abstract_batch(spec, config.batch_size, mesh), key))

  if chief:
    print(parameter_table(state))
    print(f"{count(state.tunable):,} tunable elements; the original counts {count(state.tunable) + dead_elements(cfg):,} "
          f"with {dead_elements(cfg):,} that it never uses")  # fmt: skip
    print(f"train on {train_split}: {len(train_records)} clips, {steps_per_epoch} steps an epoch; "
          f"test on {test_split}: {len(test_records)} clips; {jax.device_count()} {jax.default_backend()} device(s)")  # fmt: skip
    for stream in sorted({"image", "audio"} - {encoder.stream for encoder in encoders}):
      print(f"{stream} encoder: random weights, nothing pretrained (config.pretrained.{stream} is empty)")
    for encoder in encoders:
      print(encoder.describe())
    for name in data_set.classes:
      if not sum(data_set.clips[split][name] for split in train_split.split("+")):
        print(f"note: no training clip is {name}, so the model cannot learn it")
    if start_step:
      print(f"go on after step {start_step} of {total_steps}")

  # The loop: `step` updates have been made at its top.
  log = MetricsLog(workdir, start_step, len(history), writes=chief)
  pending: list[tuple[int, dict[str, jax.Array]]] = []  # metrics still on the device
  since, since_step = time.monotonic(), start_step
  with (
    tqdm.tqdm(total=total_steps, initial=start_step, desc="train", unit="step", disable=not chief) as bar,
    train_batches(
      order, spec, start_step=start_step, num_workers=d.num_workers, prefetch=d.prefetch
    ) as clips,
  ):
    batches = on_devices(clips, mesh)
    for step in range(start_step, total_steps + 1):
      stopping = bool(stop)  # asked once: what is logged, evaluated and saved must agree
      epoch_ends = step > 0 and step % steps_per_epoch == 0 and len(history) < step // steps_per_epoch
      save_due = step > start_step and config.save_every_steps and step % config.save_every_steps == 0
      if pending and (epoch_ends or save_due or stopping or step % config.log_every_steps == 0):
        now = time.monotonic()
        clips_per_second = (step - since_step) * config.batch_size / (now - since)
        this_epoch += log_steps(log, pending, schedule, clips_per_second)
        pending, since, since_step = [], now, step
        loss, accuracy = this_epoch[-1]
        bar.set_postfix_str(f"loss {loss:.3f}, accuracy {accuracy:.0f} %, {clips_per_second:.1f} clips/s")
      if epoch_ends and not stopping:
        result = evaluate_split(
          eval_fn, state.tunable, state.frozen, test_records, spec, mesh=mesh, batch_size=config.batch_size,
          num_workers=d.num_workers, prefetch=d.prefetch, stop=lambda: bool(stop),
        )  # fmt: skip
        if result is not None:
          loss, accuracy = np.mean(this_epoch, axis=0).tolist()
          history.append(
            {"epoch": len(history) + 1, "step": step, "loss": loss, "accuracy": accuracy, **result}
          )
          this_epoch = []
          scores = Scores(np.array(result["confusion_matrix"]), data_set.classes)
          log.write(step, {"epoch": len(history), "test_loss": result["test_loss"], "test_war": scores.war,
                           "test_uar": scores.uar})  # fmt: skip
          if chief:
            bar.write(
              f"epoch {len(history)}: loss {loss:.4f}, test WAR {percent(scores.war)}, UAR {percent(scores.uar)}"
            )
        stopping = result is None
        since = time.monotonic()
      evaluated = bool(history) and history[-1]["step"] == step
      if step > 0 and step != saved_step and (evaluated or save_due or stopping):
        checkpointer.save(state, {"run": run, "history": history, "this_epoch": this_epoch},
                          scores.war if evaluated else None)  # fmt: skip
        saved_step = step
      if stopping or step == total_steps:
        break
      state, metrics = train_fn(state, next(batches), key)
      pending.append((step + 1, metrics))
      bar.update()
  checkpointer.close()
  log.close()
  if stopping and stop.told:
    print(f"stopped by {stop.reason} after step {step}; the same command goes on from there")
    return stop.exit_status

  # What came of it.
  if chief:
    facts = {
      "train_clips": len(train_records),
      "train_clips_without_sound": sum(data_set.without_sound[split] for split in train_split.split("+")),
      "clips_seen": total_steps * config.batch_size,
      "tunable_parameters": count(state.tunable),
      "frozen_parameters": count(state.frozen),
      "pretrained": "nothing: the encoders started from random weights",
      "data_set": f"{config.data.name}, fingerprint {data_set.fingerprint[:12]}",
      "splits": f"train {train_split}, test {test_split}",
    }
    report = write_report(workdir, run=run, history=history, step=total_steps, facts=facts)
    print(
      f"WAR {percent(report['war'])}, UAR {percent(report['uar'])} on {report['clips']} clips; {workdir}/report.md"
    )
  return 0


if __name__ == "__main__":
  cli.run(main, explained=hosts.explained, leave=hosts.leave)
