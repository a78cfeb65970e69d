"""The rows of an ablation study by name: what each one changes, in words and in a config.

One run of a row: `--config=configs/dfew.py:no_fusion`, together with choices of parts as `:no_fusion,temporal=mean`.
All of them: `mma_dfer_jax.ablate`. How many parameters each row trains: docs/ablations.md.

A row fits any config. What it removes takes its parameters along; all others start from the same random draws.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from mma_dfer_jax import parts
from mma_dfer_jax.errors import UserError
from mma_dfer_jax.model import SLOTS

STREAMS = {"image": "the picture", "audio": "the sound"}
_BARE = {"prompts": "none", "fusion": "none", "temporal": "mean"}


class Row(NamedTuple):
  """One line of the study."""

  says: str  # what it changes
  change: Callable[[ConfigDict], None]


def put(c: ConfigDict, place: str, value: Any) -> None:
  """Sets a field of a config's model, or replaces a part: put(c, "fusion", "none"), put(c, "fusion.width", 32)."""
  name, _, field = place.partition(".")
  if not field:
    c.model[name] = parts.successor(SLOTS[name].kind, c.model[name], value)
  elif field not in c.model[name]:
    raise UserError(f"model.{name}={c.model[name].name} has no {field}")
  else:
    c.model[name][field] = value


def _row(says: str, only: str = "", **values: Any) -> Row:
  """A row that puts values in places ("__" stands for the dot); with `only` one stream, the other is not even built."""

  def change(c: ConfigDict) -> None:
    if only:
      other = "audio" if only == "image" else "image"
      c.pretrained[other] = ""
      put(c, other, "none")
    for place, value in values.items():
      put(c, place.replace("__", "."), value)

  return Row(says, change)


def _encoders(says: str, change_encoder: Callable[[ConfigDict, str], None], first: Row | None = None) -> Row:
  """A row that changes both encoders, as far as they are there, of which the parts say what is trained."""

  def change(c: ConfigDict) -> None:
    c.tunable = ()
    if first:
      first.change(c)
    for stream in STREAMS:
      if c.model[stream].name != "none":
        change_encoder(c, stream)

  return Row(says, change)


def _frozen_positions(c: ConfigDict) -> None:
  patterns = "|".join(f"(?:{pattern})" for pattern in c.tunable)
  for stream in STREAMS:
    if c.model[stream].name != "none":
      put(c, f"{stream}.prompt_positions", 0.0)
      if not c.tunable:
        put(c, f"{stream}.tunable", tuple(p for p in c.model[stream].tunable if p != "pos_embed"))
  if c.tunable:  # then only this pattern counts
    c.tunable = (f"(?!(image|audio)_encoder/pos_embed$)({patterns})",)


def _last_blocks(number: int) -> Row:
  def change(c: ConfigDict, stream: str) -> None:
    depth = c.model[stream].depth
    if depth < number:
      raise UserError(f"model.{stream} has {depth} block, and the row needs the last {number}")
    blocks = "|".join(str(i) for i in range(depth - number, depth))
    put(c, f"{stream}.tunable", (*c.model[stream].tunable, f"blocks/({blocks})/.*"))

  which = "block" if number == 1 else f"{number} blocks"
  return _encoders(f"the last {which} of each encoder trained as well, the others frozen", change)


def _linear_probe(says: str, only: str = "") -> Row:
  bare = _row("", only, **_BARE, temporal__width=0)
  return _encoders(says, lambda c, stream: put(c, f"{stream}.tunable", ()), bare)


def _of_loss(says: str, name: str = "", head: str = "", balanced: bool = False, **fields: Any) -> Row:
  """A row that changes what is minimised, or which clips are drawn."""

  def change(c: ConfigDict) -> None:
    if name:
      c.loss = parts.successor("losses", c.loss, name)
    if head:
      put(c, "head", head)
    if balanced:
      c.data.balanced = True
    c.loss.update(fields)

  return Row(says, change)


_DRW: dict[str, Any] = {"class_weights": "effective", "reweight_from": 0.8}
ROWS = {
  "base": Row("nothing: the config as it is", lambda c: None),
  "no_prompts": _row("no prompts", prompts="none"),
  "static_prompts": _row("prompts enter at the input only, no updates", prompts__progressive=False),
  "prompts_1": _row("1 prompt a stage", prompts__prompts_per_stage=1),
  **{f"prompts_{n}": _row(f"{n} prompts a stage", prompts__prompts_per_stage=n) for n in (2, 5, 10)},
  "no_fusion": _row("no Fusion Bottlenecks", fusion="none"),
  **{f"fusion_last_{n}": _row(f"Fusion Bottlenecks in the last {n} layers only", fusion__layers=f"last {n}") for n in (6, 3)},
  "fusion_last_1": _row("Fusion Bottlenecks in the last layer only", fusion__layers="last 1"),
  "fusion_first_3": _row("Fusion Bottlenecks in the first 3 layers only", fusion__layers="first 3"),
  "fusion_even": _row("Fusion Bottlenecks in every other layer (0, 2, …) only", fusion__layers="even"),
  **{f"bottleneck_{n}": _row(f"Fusion Bottlenecks {n} wide", fusion__width=n) for n in (32, 64, 256)},
  "fusion_to_image": _row("fusion from sound to picture only", fusion__direction="to_image"),
  "fusion_to_audio": _row("fusion from picture to sound only", fusion__direction="to_audio"),
  "no_exchange": _row("bottlenecks as adapters: each stream sees itself only", fusion__direction="own"),
  "temporal_mean": _row("the mean over time, no temporal transformer", temporal="mean"),
  "temporal_depth_2": _row("two blocks in the temporal transformer", temporal__depth=2),
  "frame_mask_soft": _row("frames are weighed", frame_mask="soft"),
  "frame_mask_bias": _row("attention to frames is weighed", frame_mask="soft", frame_mask__form="bias"),
  "frame_mask_half": _row("frames are weighed, and from a third of the layers on only the better half is kept", frame_mask="soft", frame_mask__keep=0.5, frame_mask__after=1 / 3),
  "layer_pool_softmax": _row("summaries of all layers, one weight a layer", layer_pool="softmax"),
  "layer_pool_attention": _row("summaries of all layers, weighed by attention", layer_pool="attention"),
  "stream_weights": _row("a learned factor for picture and one for sound", layer_pool="streams"),
  "cascade": _row("boxes and points of faces as auxiliary tasks", auxiliary="cascade"),
  "cascade_standardised": _row("auxiliary tasks over the deviation of their targets", auxiliary="cascade", auxiliary__targets="standardised"),
  "landmark_graph": _row("five points of the face added to each frame", landmarks="graph"),
  "landmark_token": _row("five points of the face as a token beside the frames", landmarks="graph", landmarks__form="token"),
  "image_only": _row("picture alone", "image"),
  "image_only_no_fusion": _row("picture alone, no bottlenecks", "image", fusion="none"),
  "audio_only": _row("sound alone", "audio", temporal="mean"),  # one moment needs no model of time
  "audio_only_no_fusion": _row("sound alone, no bottlenecks", "audio", fusion="none", temporal="mean"),
  "bare": _row("no prompts, no bottlenecks, mean over time", **_BARE),
  "bare_image": _row("picture alone, no prompts, no bottlenecks, mean over time", "image", **_BARE),
  "frozen_positions": Row("position tables frozen, as in the paper's figure; the prompts' rows stay at 0", _frozen_positions),
  "frozen_encoders": Row("trained is what the parts say: encoders frozen except positions", lambda c: setattr(c, "tunable", ())),
  "unfrozen": Row("everything is trained", lambda c: setattr(c, "tunable", (".*",))),
  "ial": _of_loss("the intensity-aware loss added, 0.1 of it", ial_weight=0.1),
  "focal": _of_loss("focal loss, gamma 2", "focal"),
  "inverse_weights": _of_loss("class weights by the inverse number of clips", class_weights="inverse"),
  "class_weights": _of_loss("class weights by the effective number of clips", class_weights="effective"),
  "drw": _of_loss("these class weights in the last fifth of the epochs only", **_DRW),
  "ldam": _of_loss("cosine head and margins by the number of clips", "ldam", "cosine"),
  "ldam_drw": _of_loss("the same, and class weights in the last fifth of the epochs", "ldam", "cosine", **_DRW),
  "logit_adjusted": _of_loss("logits adjusted by the classes' shares in training", logit_adjustment=1.0),
  "smoothing": _of_loss("labels smoothed by 0.1", "cross_entropy", label_smoothing=0.1),
  "votes": _of_loss("the votes of people in place of labels", "votes"),
  "balanced": _of_loss("clips drawn so that all classes are equally frequent", balanced=True),
  "last_1_block": _last_blocks(1),
  "last_2_blocks": _last_blocks(2),
  "linear_probe": _linear_probe("linear probe: frozen encoders, one linear layer"),
  **{f"linear_probe_{stream}": _linear_probe(f"linear probe of {words} alone", stream) for stream, words in STREAMS.items()},
}  # fmt: skip
