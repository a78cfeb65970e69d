"""The rows of an ablation study by name: what each one changes, in words and in a config.

One run of a row: `--config=configs/dfew.py:no_fusion`, together with choices of parts as `:no_fusion,temporal=mean`.
All of them: `mma_dfer_jax.ablate`. How many parameters each row trains: docs/ablations.md.

A row fits any config. What it takes away takes its parameters along; all others start from the same random draws.
"""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from mma_dfer_jax import parts
from mma_dfer_jax.errors import UserError

STREAMS = {"image": "the picture", "audio": "the sound"}
# Which folder a part of the model comes from that a row replaces.
_KINDS = {
  "image": "encoders",
  "audio": "encoders",
  "prompts": "adapters",
  "fusion": "fusion",
  "temporal": "temporal",
}


class Row(NamedTuple):
  """One line of the study."""

  says: str  # what it changes
  change: Callable[[ConfigDict], None]


def put(c: ConfigDict, place: str, value: Any) -> None:
  """Sets a field of a config's model, or replaces a part: put(c, "fusion", "none"), put(c, "fusion.width", 32).

  Raises:
    UserError: if the part that is there has no such field.
  """
  name, _, field = place.partition(".")
  if not field:
    c.model[name] = parts.successor(_KINDS[name], c.model[name], value)
  elif field not in c.model[name]:
    raise UserError(f"model.{name}={c.model[name].name} has no {field}")
  else:
    c.model[name][field] = value


def _row(says: str, **values: Any) -> Row:
  """A row that puts values in places; "__" stands for the dot, as in keyword arguments of Django."""

  def change(c: ConfigDict) -> None:
    for place, value in values.items():
      put(c, place.replace("__", "."), value)

  return Row(says, change)


def _alone(says: str, stream: str, **values: Any) -> Row:
  """A row in which the other encoder is neither built nor run, nor started from a file."""
  other = "audio" if stream == "image" else "image"

  def change(c: ConfigDict) -> None:
    c.pretrained[other] = ""
    _row("", **{other: "none"}, **values).change(c)

  return Row(says, change)


def _frozen_positions(c: ConfigDict) -> None:
  if c.tunable:  # then only this pattern counts
    c.tunable = (
      f"(?!(image|audio)_encoder/pos_embed$)({'|'.join(f'(?:{pattern})' for pattern in c.tunable)})",
    )
  for stream in _streams(c):
    if not c.tunable:
      put(c, f"{stream}.tunable", tuple(p for p in c.model[stream].tunable if p != "pos_embed"))
    put(c, f"{stream}.prompt_positions", 0.0)


def _last_blocks(number: int, c: ConfigDict) -> None:
  c.tunable = ()
  for stream in _streams(c):
    depth = c.model[stream].depth
    if depth < number:
      raise UserError(f"model.{stream} has {depth} block, and the row wants the last {number}")
    blocks = "|".join(str(i) for i in range(depth - number, depth))
    put(c, f"{stream}.tunable", (*c.model[stream].tunable, f"blocks/({blocks})/.*"))


def _set_tunable(patterns: tuple[str, ...], c: ConfigDict) -> None:
  c.tunable = patterns


def _linear_probe(alone: str, c: ConfigDict) -> None:
  c.tunable = ()
  bare = {"prompts": "none", "fusion": "none", "temporal": "mean", "temporal__width": 0}
  (_alone("", alone, **bare) if alone else _row("", **bare)).change(c)
  for stream in _streams(c):
    put(c, f"{stream}.tunable", ())


def _streams(c: ConfigDict) -> list[str]:
  return [stream for stream in STREAMS if c.model[stream].name != "none"]


ROWS = {
  "base": Row("nothing: the config as it is", lambda c: None),
  "no_prompts": _row("no prompts", prompts="none"),
  "static_prompts": _row("prompts enter at the input only, no updates", prompts__progressive=False),
  **{
    f"prompts_{n}": _row(f"{n} prompt{'s' * (n > 1)} a stage", prompts__prompts_per_stage=n)
    for n in (1, 2, 5, 10)
  },
  "no_fusion": _row("no Fusion Bottlenecks", fusion="none"),
  **{
    f"fusion_{'_'.join(layers.split())}": _row(f"Fusion Bottlenecks in {words} only", fusion__layers=layers)
    for layers, words in {
      "last 6": "the last 6 layers",
      "last 3": "the last 3 layers",
      "last 1": "the last layer",
      "first 3": "the first 3 layers",
      "even": "every other layer (0, 2, …)",
    }.items()
  },
  **{f"bottleneck_{n}": _row(f"Fusion Bottlenecks {n} wide", fusion__width=n) for n in (32, 64, 256)},
  "fusion_to_image": _row("fusion from sound to picture only", fusion__direction="to_image"),
  "fusion_to_audio": _row("fusion from picture to sound only", fusion__direction="to_audio"),
  "no_exchange": _row("bottlenecks as adapters: each stream sees itself only", fusion__direction="own"),
  "temporal_mean": _row("the mean over time, no temporal transformer", temporal="mean"),
  "temporal_depth_2": _row("two blocks in the temporal transformer", temporal__depth=2),
  "image_only": _alone("picture alone", "image"),
  "image_only_no_fusion": _alone("picture alone, no bottlenecks", "image", fusion="none"),
  "audio_only": _alone("sound alone", "audio", temporal="mean"),  # one moment needs no model of time
  "audio_only_no_fusion": _alone("sound alone, no bottlenecks", "audio", fusion="none", temporal="mean"),
  "bare": _row("no prompts, no bottlenecks, mean over time", prompts="none", fusion="none", temporal="mean"),
  "bare_image": _alone(
    "picture alone, no prompts, no bottlenecks, mean over time",
    "image",
    prompts="none",
    fusion="none",
    temporal="mean",
  ),
  "frozen_positions": Row(
    "position tables frozen, as in the paper's figure; the prompts' rows stay at 0", _frozen_positions
  ),
  "frozen_encoders": Row(
    "trained is what the parts say: encoders frozen except positions", functools.partial(_set_tunable, ())
  ),
  "unfrozen": Row("everything is trained", functools.partial(_set_tunable, (".*",))),
  **{
    f"last_{n}_block{'s' * (n > 1)}": Row(
      f"the last {'block' if n == 1 else f'{n} blocks'} of each encoder trained as well, the others frozen",
      functools.partial(_last_blocks, n),
    )
    for n in (1, 2)
  },
  "linear_probe": Row(
    "linear probe: frozen encoders, one linear layer", functools.partial(_linear_probe, "")
  ),
  **{
    f"linear_probe_{stream}": Row(f"linear probe of {words} alone", functools.partial(_linear_probe, stream))
    for stream, words in STREAMS.items()
  },
}
