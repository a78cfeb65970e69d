"""Probe frozen encoders: how much do linear read-outs of their features learn from a few labels, and from all?

  python -m mma_dfer_jax.probe --config=configs/clips.py --config.data.data_dir=data --out=runs/probe

Nothing is trained but the read-out, so it takes seconds. The encoders are those that training would start with: of
--config.pretrained.image and audio, of --config.init_from, or random ones. Writes OUT/probe.md, probe.json, probe.png, and
predictions.csv, the answers after a read-out of all labels.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from mma_dfer_jax import cli
from mma_dfer_jax.disk import alone_in, write_json
from mma_dfer_jax.errors import UserError, count, listed
from mma_dfer_jax.paths import define_path
from mma_dfer_jax.training import read_out
from mma_dfer_jax.training.check import Checked, check_run
from mma_dfer_jax.training.read_out import ALL
from mma_dfer_jax.training.report import empty_figure, percent, plus_minus, save_figure, table, write_markdown
from mma_dfer_jax.training.run import describe_run
from mma_dfer_jax.training.sharding import describe_error, make_mesh, start_jax

_CONFIG = cli.define_config()
_FEATURES = flags.DEFINE_enum("features", None, ["both", "image", "audio"], "Of which encoders; if not given, of all that the model has.")  # fmt: skip
_TOKENS = flags.DEFINE_enum("tokens", "all", ["all", "class"], "What is read of the encoders: the class token with mean and deviation of all tokens, or the class token alone, as MMA-DFER does.")  # fmt: skip
_LABELS = flags.DEFINE_list("labels", None, f"Labelled clips for each class, comma-separated, and {ALL}; if not given, 1,3,10,{ALL}, as far as each class has so many.")  # fmt: skip
_DRAWS = flags.DEFINE_integer("draws", 10, "How often so many clips are drawn.", lower_bound=1)
_SEED = flags.DEFINE_integer(
  "seed", 0, "Of the draws; random encoders come from --config.seed.", lower_bound=0
)
_OUT = define_path("out", None, "Folder for the report.", required=True)
flags.mark_flag_as_required("config")


def plan(config: ConfigDict, out: Path) -> tuple[Checked, list[str], list[int | str]]:
  """What to probe, streams whose encoders are asked, and labels for each class; UserError with all problems."""
  given = ["1", "3", "10", ALL] if _LABELS.value is None else _LABELS.value
  labels: list[int | str] = [int(n) if n.isdecimal() else n for n in given]
  problems = []
  if (
    not labels
    or len(set(labels)) < len(labels)
    or not all(n == ALL or (isinstance(n, int) and n > 0) for n in labels)
  ):
    problems.append(
      f"--labels={','.join(given)}: give different whole numbers from 1, or {ALL}, comma-separated"
    )
  problems += [f"--out={out} holds {what}; choose another folder"
               for name, what in (("run.json", "a run"), ("folds.json", "the report on folds")) if (out / name).exists()]  # fmt: skip
  try:
    checked = check_run(config)
  except UserError as error:
    raise listed("this probe cannot start", [*problems, str(error)]) if problems else error from None
  there = [stream for stream in ("image", "audio") if getattr(checked.model, stream).depth]
  chosen = _FEATURES.value
  streams = ["image", "audio"] if chosen == "both" else [chosen] if chosen else there
  problems += [f"--features={chosen}, but model.{stream} is none: give --features={there[0]}"
               for stream in streams if stream not in there]  # fmt: skip
  problems += ["config.data.held_out is for train; a read-out has a temperature of its own"] * bool(
    checked.held_out
  )
  if not problems:
    clips = checked.train_clips
    labels = labels if _LABELS.present else read_out.possible_labels(clips, labels)
    problems += read_out.problems_of_labels(clips, labels, checked.train_split)
  if problems:
    raise listed("this probe cannot start", problems)
  return checked, streams, labels


def origins(config: ConfigDict, checked: Checked, streams: Sequence[str]) -> tuple[list[str], bool]:
  """Where the encoders come from, in words, and whether any of them is other than random."""
  of_file = {path.partition("_encoder/")[0] for start in checked.starts for path in start.taken}
  fresh = [
    f"{stream} encoder: random weights of config.seed={config.seed}"
    for stream in streams
    if stream not in of_file
  ]
  return [*(start.describe() for start in checked.starts), *fresh], len(fresh) < len(streams)


def answers_of(
  config: ConfigDict, checked: Checked, streams: Sequence[str], labels: Sequence[int | str], random_too: bool
) -> list[read_out.Answers]:
  """After read-outs of the encoders' features, and of those of the same encoders at their random start."""
  groups = [
    read_out.build_encoders(checked.model, config.seed, starts)
    for starts in (checked.starts, ())[: 1 + random_too]
  ]
  groups = [{stream: group[stream] for stream in streams} for group in groups]
  mesh = make_mesh(-1, 1)
  train, test = (
    read_out.features(groups, checked.data_set.records(split), checked.model.inputs, mesh=mesh, batch_size=config.batch_size,
                      tokens=_TOKENS.value, precision=config.precision, num_workers=config.data.num_workers, prefetch=config.data.prefetch,
                      title=f"features of {split}")
    for split in (checked.train_split, checked.test_split)
  )  # fmt: skip
  classes, draws, seed = checked.data_set.classes, _DRAWS.value, _SEED.value
  return [read_out.few_shot(*pair, classes, labels=labels, draws=draws, seed=seed)
          for pair in zip(train, test, strict=True)]  # fmt: skip


def report(out: Path, rows: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> None:
  """Writes probe.md, probe.png and, last, probe.json; prints the table."""
  paired, classes = "other" in rows[0], facts["classes"]
  columns = ["labels for each class", "clips>", "draws>", "WAR>", "UAR>"]
  columns += ["random start: WAR>", "UAR>", "gain in WAR>", "in UAR>"] * paired
  lines = []
  for row in rows:
    cells = [plus_minus(row[score]) for score in ("war", "uar")]
    if paired:
      cells += [
        plus_minus(row[whose][score]) for whose in ("other", "difference") for score in ("war", "uar")
      ]
    lines.append([row["labels"], row["clips"], row["draws"], *cells])
  shown = table(columns, lines)
  chance = (f"Chance: {percent(facts['chance']['uar'])} UAR, one of {len(classes)} classes; the most frequent class of the test clips "
            f"for every clip: {percent(facts['chance']['war'])} WAR.")  # fmt: skip
  note = ("WAR and UAR on the whole test split, mean ± standard deviation (n − 1) over draws of the labelled clips. UAR is the mean "
          "recall over the classes that test clips have. The read-out is ridge regression on standardised features; its strength "
          "is chosen by leaving one labelled clip out. The encoders stay as they are.")  # fmt: skip
  note += " Both encoders are read with the same draws, so gains are paired." * paired
  draw(out / "probe.png", rows, facts["chance"]["war"])
  write_markdown(out / "probe.md", "# MMA-DFER: probe of frozen encoders", "\n".join(f"- {line}" for line in facts["about"]),
                 shown, chance, "![WAR by labels](probe.png)", note)  # fmt: skip
  write_json(out / "probe.json", {"rows": rows, **facts})
  print(f"\n{shown}\n\n{chance}\n\nwrote {out}/probe.md, probe.json and probe.png")


def draw(path: Path, rows: Sequence[Mapping[str, Any]], chance: float) -> None:
  """WAR by labels for each class, with a band of one deviation to each side."""
  figure = empty_figure(7.0, 4.2)
  axes, x = figure.subplots(), range(len(rows))
  curves = {"these encoders": rows, "their random start": [row["other"] for row in rows if "other" in row]}
  for name, of in curves.items():
    if of:
      mean, deviation = ([row["war"][key] or 0.0 for row in of] for key in ("mean", "standard_deviation"))
      axes.plot(x, mean, marker="o", label=name if curves["their random start"] else "random start")
      axes.fill_between(x, *([m + sign * d for m, d in zip(mean, deviation, strict=True)] for sign in (-1, 1)), alpha=0.2)  # fmt: skip
  axes.axhline(chance, color="grey", linestyle=":", label="the most frequent class for every clip")
  axes.set_xticks(
    x, [f"{ALL}\n({row['clips']} clips)" if row["labels"] == ALL else str(row["labels"]) for row in rows]
  )
  axes.set(xlabel="labelled clips for each class", ylabel="WAR on the test clips, %", ylim=(0, 102), title="Read-out of frozen encoders")  # fmt: skip
  axes.grid(alpha=0.3)
  axes.legend(loc="lower right")
  save_figure(figure, path)


def main(argv: Sequence[str]) -> None:
  del argv
  config, out = _CONFIG.value, Path(_OUT.value)
  start_jax(config.matmul_precision)
  checked, streams, labels = plan(config, out)
  data_set, test = checked.data_set, checked.data_set.clips[checked.test_split]
  clips = checked.train_clips
  with alone_in(out, "probe", "--out"):
    lines, random_too = origins(config, checked, streams)
    about = [f"features: {' and '.join(streams)}, {'the class token' if _TOKENS.value == 'class' else 'all tokens'}; read-outs of up to {count(sum(clips.values()), 'clip')} of {checked.train_split}, "
             f"tested on {count(sum(test.values()), 'clip')} of {checked.test_split}", *lines]  # fmt: skip
    print("\n".join(about))
    answers = answers_of(config, checked, streams, labels, random_too)
    rows = [row | {"clips": sum(clips.values()) if row["labels"] == ALL else row["labels"] * len(clips)}
            for row in read_out.score_rows(*answers)]  # fmt: skip
    (out / "predictions.csv").unlink(missing_ok=True)
    if ALL in labels:
      answers[0][ALL][0].write(out / "predictions.csv")
    facts = {"about": about, "chance": {"war": 100 * max(test.values()) / sum(test.values()), "uar": 100 / len(clips)},
             "features": streams, "tokens": _TOKENS.value, "seed": _SEED.value, **describe_run(config, checked.model, data_set, checked.starts)}  # fmt: skip
    report(out, rows, facts)


if __name__ == "__main__":
  cli.run(main, describe_error=describe_error)
