"""How many labels does pretraining save? Adapts a model to a few labelled clips, from pretrained and from random encoders.

  python -m mma_dfer_jax.few_labels --config=configs/demo.py --out=runs/labels \
      --config.pretrained.image=runs/frames/encoder.safetensors --config.pretrained.audio=runs/sound/encoder.safetensors

For each number of labelled clips of a class it draws clips from the training split several times, and trains three models
on each draw: with pretrained encoders, frozen; with random encoders, frozen; and everything from scratch. All are evaluated
on the whole test split. To resume, run the same command. Writes OUT/few_labels.md, few_labels.json and few_labels.png.
It is for data sets that fit into memory: each clip is decoded once, in evaluation's way, and only mirrored at random.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
import functools
import json
from pathlib import Path
import threading
from typing import Any

from absl import flags
from flax import nnx
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import optax

from mma_dfer_jax import cli
from mma_dfer_jax.config import default_config, flat_config
from mma_dfer_jax.cores import usable_cores
from mma_dfer_jax.data.pipeline import EvalOrder, load_batches
from mma_dfer_jax.disk import write_json
from mma_dfer_jax.errors import UserError, listed
from mma_dfer_jax.model import MmaDfer
from mma_dfer_jax.parameters import cast, put_over, split_tunable, tunable_patterns
from mma_dfer_jax.paths import define_path
from mma_dfer_jax.progress import Progress
from mma_dfer_jax.training.check import Checked, check_run, clips_of
from mma_dfer_jax.training.objective import Objective
from mma_dfer_jax.training.report import (
  empty_figure,
  mean_and_deviation,
  plus_minus,
  save_figure,
  table,
  write_markdown,
)
from mma_dfer_jax.training.run import describe_run
from mma_dfer_jax.training.scores import Scores, confusion_matrix
from mma_dfer_jax.training.sharding import compiler_options, start_jax
from mma_dfer_jax.training.state import TrainState, make_optimizer
from mma_dfer_jax.training.steps import in_float32, train_step

_CONFIG = cli.define_config()
_OUT = define_path("out", None, "Folder for the report.", required=True)
_LABELS = flags.DEFINE_list("labels", ["3", "5", "10", "20", "all"], "Labelled clips of a class.")
_DRAWS = flags.DEFINE_integer("draws", 5, "How often clips are drawn.", lower_bound=2)
_STEPS = flags.DEFINE_integer("steps", 60, "Updates of each training.", lower_bound=1)
flags.mark_flag_as_required("config")

# Each kind of training: whether it starts from the pretrained files, which parameters it trains, at which share of the
# learning rate (the best of 1, 1/4 and 1/10 on the demo's clips), and how it is drawn.
KINDS = {
  "pretrained and frozen": (True, (), 1.0, "tab:orange"),
  "random and frozen": (False, (), 1.0, "tab:blue"),
  "from scratch": (False, (".*",), 0.1, "tab:gray"),
}
# Fields that this study does not follow: its clips are in memory, and only mirrored.
OF_TRAINING = ("schedule", "layer_decay", "decayed", "mixup", "cutmix", "data.held_out", "data.balanced", "data.rand_augment",
               "data.erase", "inputs.test_views")  # fmt: skip
NOTES = """\
WAR in percent on the whole test split: mean ± standard deviation (n − 1) over draws of the labelled clips, each with fresh
weights of its own. The draws are the same for all three kinds of training. Frozen: the encoders stay as they are, and the
paper's adapters are trained; from scratch: everything is, at a tenth of the learning rate."""


class Study:
  """The clips in memory, and the compiled steps."""

  def __init__(self, config: ConfigDict, checked: Checked, steps: int):
    self.config, self.checked, self.steps = config, checked, steps
    self.train, self.test = (self._clips(split) for split in (checked.train_split, checked.test_split))
    # An update is its epoch. Class weights are of the whole split, whatever is drawn of it.
    of_class = np.bincount(self.train["label"], minlength=len(checked.data_set.classes))
    self.objective = Objective(checked.loss, of_class.tolist(), steps)
    self.compiled: dict[tuple[str, ...], Any] = {}
    self.lock = threading.Lock()

  def _clips(self, split: str) -> dict[str, np.ndarray]:
    """All clips of a split, as evaluation sees them."""
    records, d = self.checked.data_set.records(split), self.config.data
    order = EvalOrder(records, 0, 1, 1)
    how = {"num_workers": d.num_workers, "prefetch": d.prefetch}
    with (
      load_batches(order, self.checked.model.inputs, **how) as batches,
      Progress(f"read {split}", len(records)) as bar,
    ):
      found = []
      for batch in batches:
        found.append({name: batch[name][0] for name in ("video", "spectrogram", "label")})
        bar.update()
    return {name: np.stack([clip[name] for clip in found]) for name in found[0]}

  def fresh(
    self, seed: int, pretrained: bool, patterns: tuple[str, ...]
  ) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    model = MmaDfer(self.checked.model, rngs=nnx.Rngs(params=seed))
    for start in (one for one in self.checked.starts if pretrained or one.name == "text"):
      put_over(model, start.read())
    return split_tunable(model, patterns)

  def score(self, seed: int, kind: str, chosen: np.ndarray, stop: Callable[[], bool]) -> float | None:  # fmt: skip
    """WAR after training on the chosen clips; None if it was stopped."""
    pretrained, tunable, share, _ = KINDS[kind]
    patterns = tunable_patterns(self.checked.model, tunable)
    graphdef, trained, frozen = self.fresh(seed, pretrained, patterns)
    precision, rng = self.config.precision, np.random.default_rng([seed, len(chosen)])
    with self.lock:
      if patterns not in self.compiled:
        self.compiled[patterns] = self._steps_of(graphdef, self.config.learning_rate * share)
    tx, step, answer = self.compiled[patterns]
    state = TrainState(jnp.zeros((), jnp.int32), trained, cast(frozen, precision), tx.init(trained))
    order = np.concatenate(
      [rng.permutation(chosen) for _ in range(-(-self.steps * self.config.batch_size // len(chosen)))]
    )
    for i in range(self.steps):
      if stop():
        return None
      places = order[i * self.config.batch_size :][: self.config.batch_size]
      batch = {name: values[places] for name, values in self.train.items()}
      mirrored = rng.random(len(places)) < 0.5
      batch["video"] = np.where(
        mirrored[:, None, None, None, None], batch["video"][:, :, :, ::-1], batch["video"]
      )
      state, _ = step(state, batch, jax.random.key(seed))
    confusion = np.zeros((self.checked.model.num_classes,) * 2, np.int64)
    for start in range(0, len(self.test["label"]), self.config.batch_size):
      here = np.arange(start, start + self.config.batch_size) % len(self.test["label"])
      batch = {name: values[here] for name, values in self.test.items()}
      real = np.arange(start, start + self.config.batch_size) < len(self.test["label"])
      confusion += np.asarray(answer(state.tunable, state.frozen, batch, real))
    return Scores(confusion, self.checked.data_set.classes).war

  def _steps_of(self, graphdef: nnx.GraphDef, highest_rate: float) -> tuple[Any, Any, Any]:
    """The optimizer, a step and an evaluation, compiled when they are first used."""
    c = self.config
    tx = make_optimizer(optax.cosine_decay_schedule(highest_rate, self.steps), c.weight_decay)

    def whole(batch, key, step):
      return batch, self.objective.whole(batch, step, self.objective.statistics)

    def losses(model, batch, drawn, remat, shared):
      outputs = in_float32(model(batch["video"], batch["spectrogram"], dropped=drawn, remat=remat))
      return self.objective.terms(outputs, batch, shared), {}

    def answer(tunable, frozen, batch, real):
      model = nnx.merge(graphdef, cast(tunable, c.precision), frozen)
      return confusion_matrix(model(batch["video"], batch["spectrogram"]).logits, batch["label"], real)

    step = functools.partial(
      train_step, graphdef=graphdef, tx=tx, loss_fn=losses, whole_fn=whole, draw_fn=MmaDfer.draw_drop_path, remat=c.remat,
      precision=c.precision,
    )  # fmt: skip
    return (
      tx,
      jax.jit(step, donate_argnums=0, compiler_options=compiler_options()),
      jax.jit(answer, compiler_options=compiler_options()),
    )


def plan(config: ConfigDict) -> tuple[Checked, list[int]]:
  """The checked run, and how many clips of each class are drawn, 0 for all; UserError with all problems."""
  checked, problems, labels = None, [], list[int]()
  for given in _LABELS.value:
    if given == "all" or (given.isdecimal() and int(given) > 0):
      labels.append(0 if given == "all" else int(given))
    else:
      problems.append(f"--labels={given}: give positive whole numbers and all, as in 3,5,10,20,all")
  if len(set(labels)) < len(labels) or not labels:
    problems.append(f"--labels={','.join(_LABELS.value)}: give different numbers")
  try:
    checked = check_run(config)
  except UserError as error:
    problems.append(str(error))
  if checked:
    if missing := [stream for stream in ("image", "audio") if stream not in {start.name for start in checked.starts}
                   and getattr(checked.model, stream).depth]:  # fmt: skip
      problems.append(
        f"give pretrained encoders: {' and '.join(f'--config.pretrained.{s}=FILE' for s in missing)}"
      )
    usual, here = (flat_config(one.to_dict()) for one in (default_config(), config))
    problems += [f"config.{name}={here[name]} is for train: this study trains in a way of its own" for name in OF_TRAINING
                 if here[name] != usual[name]]  # fmt: skip
    if checked.model.wants_faces or checked.loss.NEEDS_VOTES:
      what = "landmarks of faces" if checked.model.wants_faces else "votes"
      problems.append(f"this study reads no {what}: use train, or ablate for several seeds")
    of_class = clips_of(checked.data_set, checked.train_split)
    fewest = min(of_class, key=lambda name: of_class[name])
    problems += [f"--labels={n}, but {checked.train_split} has {of_class[fewest]} clips of {fewest} only; the most is that"
                 for n in labels if n > of_class[fewest]]  # fmt: skip
  if problems or not checked:
    raise listed("this study cannot start", problems)
  return checked, labels


def draw(labels: np.ndarray, number: int, seed: int) -> np.ndarray:
  """Places of `number` clips of each class, 0 for all."""
  rng = np.random.default_rng([seed, number])
  each = [rng.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
  return np.sort(np.concatenate([places[: number or None] for places in each]))


def write(out: Path, results: Mapping[str, float], facts: Mapping[str, Any]) -> str:
  """Writes the report on all trainings that are finished; returns its table."""
  numbers = list(dict.fromkeys(place.split("/")[1] for place in results))
  summary = {
    kind: {n: mean_and_deviation([war for place, war in results.items() if place.startswith(f"{kind}/{n}/")])
           for n in numbers if any(place.startswith(f"{kind}/{n}/") for place in results)}
    for kind in KINDS
  }  # fmt: skip
  shown = table(
    ["labelled clips of a class", *(f"{n}>" for n in numbers)],
    [(kind, *(plus_minus(of[n]) if n in of else "" for n in numbers)) for kind, of in summary.items()],
  )
  figure = empty_figure(7.0, 4.5)
  axes = figure.subplots()
  for shift, (kind, of) in zip((-0.05, 0.05, 0.0), summary.items(), strict=True):
    places = [numbers.index(n) + shift for n in of]
    means = [result["mean"] for result in of.values()]
    deviations = [result["standard_deviation"] or 0.0 for result in of.values()]
    axes.errorbar(places, means, yerr=deviations, marker="o", capsize=4, label=kind, color=KINDS[kind][-1])
  axes.set(
    xlabel="labelled clips of a class", ylabel="WAR on the test clips, %, mean ± deviation", ylim=(0, 102)
  )
  axes.set_xticks(range(len(numbers)), numbers)
  axes.grid(alpha=0.3)
  axes.legend(loc="lower right")
  save_figure(figure, out / "few_labels.png")
  write_markdown(out / "few_labels.md", "# Labels saved", shown, NOTES, "![WAR by labelled clips](few_labels.png)",
                 "\n".join(f"- {key}: {value}" for key, value in facts.items()))  # fmt: skip
  write_json(
    out / "few_labels.json",
    {"summary": summary, "results": results, "facts": facts, "notes": NOTES.split("\n")},
  )
  return shown


def main(argv: Sequence[str]) -> int:
  del argv
  config, out = _CONFIG.value, Path(_OUT.value)
  start_jax(config.matmul_precision)
  checked, labels = plan(config)
  run = describe_run(config, checked.model, checked.data_set, checked.starts)
  facts = {"draws": _DRAWS.value, "steps": _STEPS.value, "starts": run["starts"], "data_set": run["data_set"],
           "config": run["config"], "version": run["version"]}  # fmt: skip
  jobs = [f"{kind}/{n or 'all'}/{seed}" for n in labels for seed in range(_DRAWS.value) for kind in KINDS]
  results, stop = _earlier(out, facts), cli.StopSignal()
  left = [job for job in jobs if job not in results]
  study = Study(config, checked, _STEPS.value) if left else None

  def train(job: str) -> tuple[str, float | None]:
    assert study is not None
    kind, number, seed = job.split("/")
    chosen = draw(study.train["label"], 0 if number == "all" else int(number), int(seed))
    return job, study.score(int(seed) + 1, kind, chosen, lambda: bool(stop))

  # So small a step keeps one core busy: on CPUs as many trainings run beside each other as there are cores.
  workers = usable_cores() if jax.default_backend() == "cpu" else 1
  with (
    Progress("train", len(jobs), unit="training", done=len(results)) as bar,
    ThreadPoolExecutor(workers) as pool,
  ):
    for job, war in pool.map(train, left):
      if war is None:
        continue
      results[job] = war
      write_json(out / "results.json", {"facts": facts, "results": results})
      kind, number, _ = job.split("/")
      bar.update(1, f"{kind}, {number} of a class: WAR {war:.1f} %")
  if stop:
    print(f"stopped after {len(results)} of {len(jobs)} trainings; to resume, run the same command")
    return stop.exit_status
  print(write(out, {job: results[job] for job in jobs}, facts))
  print(f"\nwrote {out}/few_labels.md, few_labels.json and few_labels.png")
  return 0


def _earlier(out: Path, facts: Mapping[str, Any]) -> dict[str, float]:
  """The results of this study that an earlier process has left; UserError if they are of another one."""
  path = out / "results.json"
  out.mkdir(parents=True, exist_ok=True)
  if not path.exists():
    return {}
  try:
    found = json.loads(path.read_text())
    there, results = found["facts"], found["results"]
  except (ValueError, KeyError, TypeError) as error:
    raise UserError(f"{path} is damaged: {error}; remove it") from error
  now = json.loads(json.dumps(facts))
  if differing := [key for key in now if key != "draws" and there.get(key) != now[key]]:
    raise UserError(f"{out} already contains a study with other {', '.join(differing)}; choose another --out")
  return results


if __name__ == "__main__":
  cli.run(main)
