"""What each kind of part promises, and how a config names a part.

A part is a file: `fusion/bottleneck.py` is the fusion "bottleneck". Its folder is the list of all fusions; there is no
registry. The file holds a frozen dataclass `Config`, whose fields are the config's fields, the module that
`Config.build` makes, and, if the authors' files can hold the part, a table `AUTHORS` (see `weights/names.py`).

A head makes `Outputs` of (B, W), a decoder, which only pretraining needs, is a list of blocks that keep the shape of their
tokens; the protocols below describe all other kinds.

Letters in shapes: B clips, V sequences of tokens per clip (16 for an encoder of frames, 1 for sound), N tokens of a
sequence, M of the sound's, S moments in time, D and E widths of the two encoders, W of the temporal model, P prompts,
C classes, L layers, T frames, p points of a face.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import importlib
import math
from pathlib import Path
import sys
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable
import zlib

from flax import nnx
import jax
from jaxtyping import Array, Float, Int
import ml_collections

from mma_dfer_jax.errors import UserError, listed

KINDS = ("encoders", "adapters", "fusion", "layer_pools", "frame_masks", "landmarks", "temporal", "heads", "auxiliary",
         "losses", "decoders")  # the folders of parts  # fmt: skip
# What a layer pool may say of each clip (B, …): weights of the layers, tanh of the gate behind them, factors of the streams.
OF_LAYERS = ("layers_of_image", "layer_gate_of_image", "layers_of_audio", "layer_gate_of_audio", "streams")
ONE_STREAM = "model.layer_pool weighs picture against sound, but this model has one of them: leave the weights of streams out"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fields:
  """What every `Config` of a part has; construction raises UserError with all wrong values."""

  MAY_BE_ZERO: ClassVar[tuple[str, ...]] = ()

  def __post_init__(self):
    problems = self.problems()
    for name, value in ((field.name, getattr(self, field.name)) for field in dataclasses.fields(self)):
      if type(value) is float and not math.isfinite(value) and not any(f"{name}=" in one for one in problems):
        problems.append(f"{name}={value} must be finite")
    if problems:
      raise listed(f"{place_of(self)} cannot have these values", problems)

  def problems(self) -> list[str]:
    """One line for each wrong value: another type than the default's, or a whole number that is not positive."""
    found = []
    for field in dataclasses.fields(self):
      value, default = getattr(self, field.name), field.default
      least = 0 if field.name in self.MAY_BE_ZERO else 1
      if type(value) is not type(default) and not (isinstance(default, float) and type(value) is int):
        found.append(f"{field.name}={value!r} must be a {type(default).__name__}, such as {default!r}")
      elif type(value) is int and not isinstance(default, float) and value < least:
        found.append(f"{field.name}={value} must be a positive whole number{'' if least else ' or 0'}")
    return found

  def outside(self, **ranges: str) -> list[str]:
    """One line for each number outside of its range, such as "(0, 1]"; wrong types are told elsewhere."""
    found = []
    for name, text in ranges.items():
      value, (least, most) = getattr(self, name), map(float, text[1:-1].split(","))
      if type(value) in (int, float):
        inside = (
          least <= value <= most
          and not (text[0] == "(" and value == least)
          and not (text[-1] == ")" and value == most)
        )
        found += [f"{name}={value} must lie in {text}"] * (not inside)
    return found

  def problems_with(self, *args: Any) -> list[str]:
    """One line for each reason why this part does not fit the rest of the model."""
    return []


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part(Fields):
  """What every `Config` of a part with parameters has."""

  tunable: tuple[str, ...] = (".*",)  # 🔥 parameters of the part, as regular expressions; all others are ❄


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossPart(Fields):
  """What every `Config` of a loss has: what goes with any loss, put together in `training/objective.py`."""

  ial_weight: float = 0.0  # of the intensity-aware loss, which is added; its authors use 0.1
  # Of clips: none, inverse, effective, or numbers in label order, "1,1,2.5".
  class_weights: str | tuple[float, ...] = "none"
  effective_beta: float = 0.9999  # of class_weights=effective
  reweight_from: float = 0.0  # share of the epochs after which class weights act; 0.8 in DRW
  # Times log(share of the class in the training clips) is added to the logits in training; 1.0 is the paper's.
  logit_adjustment: float = 0.0
  # Of weighted losses the sum is divided by that of the weights of the batch, as PyTorch does; False: by its clips.
  BY_WEIGHTS: ClassVar[bool] = True
  NEEDS_VOTES: ClassVar[bool] = False  # of people for each class, in the batch
  NEEDS_EVERY_CLASS: ClassVar[bool] = False  # divides by each class's number of training clips

  def problems(self) -> list[str]:
    given, found = self.class_weights, super().problems()
    if isinstance(given, tuple):
      found = [line for line in found if not line.startswith("class_weights=")]
    try:
      wrong = given not in CLASS_WEIGHTS and not all(0 < w < math.inf for w in self.numbers)
    except (TypeError, ValueError):
      wrong = True
    found += self.outside(
      ial_weight="[0, inf)", logit_adjustment="[0, inf)", effective_beta="[0, 1)", reweight_from="[0, 1)"
    )
    if wrong:
      found.append(f"class_weights={given!r}: choose one of {', '.join(CLASS_WEIGHTS)}, or give a positive number for each class, "
                   'such as "1,1,2.5"')  # fmt: skip
    if self.reweight_from and given == "none":
      found.append(
        f"reweight_from={self.reweight_from} says when class weights act: set class_weights=effective, or 0"
      )
    return found

  def build(self, clips_per_class: Float[Array, "C"]) -> "Loss":
    raise NotImplementedError

  @property
  def numbers(self) -> tuple[float, ...]:
    """Class weights that are given as numbers."""
    given = self.class_weights
    return tuple(map(float, given.strip("()[] ").split(",") if isinstance(given, str) else given))

  def labels(self, batch: Mapping[str, Array]) -> Int[Array, "B"]:
    """Of each clip the class whose weight it gets, and which the intensity-aware loss pushes."""
    return batch["label"]

  def problems_with(self, head: Any, clips: Mapping[str, int]) -> list[str]:  # type: ignore[override]
    """Why this loss does not go with a head, or with so many training clips of each class."""
    given, found = self.class_weights, list[str]()
    if given not in CLASS_WEIGHTS and len(self.numbers) != len(clips):
      found.append(f"loss.class_weights={given!r} are {len(self.numbers)} numbers, but there are {len(clips)} classes: "
                   f"{', '.join(clips)}")  # fmt: skip
    dividing = [f"loss={place_of(self).partition('/')[2]}"] * self.NEEDS_EVERY_CLASS
    dividing += [f"loss.class_weights={given}"] * (given in ("inverse", "effective"))
    dividing += [f"loss.logit_adjustment={self.logit_adjustment}"] * bool(self.logit_adjustment)
    if dividing and (without := [name for name, number in clips.items() if not number]):
      found.append(f"{' and '.join(dividing)} cannot be used, for no training clip is {' or '.join(without)}")
    return found


CLASS_WEIGHTS = ("none", "inverse", "effective")


class Outputs(NamedTuple):
  """What the model answers for each clip."""

  logits: Float[Array, "B C"]
  extra: Mapping[
    str, Array
  ] = {}  # what else it says of each clip, first axis B: weights of frames, an auxiliary task's answers


class Features(NamedTuple):
  """What the head's answer is made of; a stream without an encoder is None."""

  image: Float[Array, "B S D"] | None  # summaries of the moments, such as the class token of each frame
  audio: Float[Array, "B 1 E"] | None
  joint: Float[Array, "B S W"]  # both together, moment by moment
  clip: Float[Array, "B W"]  # what the temporal model makes of them, which the head reads
  moments: Float[Array, "B S W"]  # and of each moment
  extra: Mapping[str, Array] = {}  # as of `Outputs`


@runtime_checkable  # tests enforce annotations
class Encoder(Protocol):
  """One stream, block by block, so that other parts can act between its blocks."""

  width: int  # D; 0 if there is no such stream
  views: int  # V
  moments: int  # S
  branches: int  # r, of a block, each dropped by itself for each sequence
  blocks: Sequence[Any]  # each (B·V, N, D) and factors (r, B·V) of drop path or None -> (B·V, N, D)
  drop_path_rates: Sequence[float]  # of the blocks

  def embed(self, x: Array, prompts: Float[Array, "P D"] | None) -> Float[Array, "BV N D"] | None:
    """Normalises pixels or energies and makes tokens with positions of them; prompts are the last P tokens."""

  def summary(self, tokens: Float[Array, "BV N D"]) -> Float[Array, "B S D"] | None:
    """One vector for each moment, after the last norm: the class token of each frame, for example."""


@runtime_checkable
class Adapter(Protocol):
  """Adapts one stream by itself."""

  tokens: Float[Array, "P D"] | None

  def update(self, tokens: Float[Array, "BV N D"], layer: int) -> Float[Array, "BV N D"]:
    """Called after every layer."""


@runtime_checkable
class Fusion(Protocol):
  """Exchanges information between the two streams, one fusion for each layer; an absent stream is None."""

  def __call__(
    self, image: Float[Array, "BV N D"] | None, audio: Float[Array, "B M E"] | None
  ) -> tuple[Float[Array, "BV N D"] | None, Float[Array, "B M E"] | None]: ...


@runtime_checkable
class LayerPool(Protocol):
  """Makes one summary of each stream of those after every layer (the last alone without `Config.EVERY_LAYER`)."""

  def __call__(
    self, image: Sequence[Float[Array, "B S D"] | None], audio: Sequence[Float[Array, "B 1 E"] | None]
  ) -> tuple[Float[Array, "B S D"] | None, Float[Array, "B 1 E"] | None, Mapping[str, Array]]:
    """Summaries, and what it says of each clip."""


@runtime_checkable
class FrameMask(Protocol):
  """Weighs the moments before the temporal model reads them; if `after` is not 0, it also chooses some of the frames."""

  # Layers, after which `choose(summaries (B, T, D))` gives the places (B, keep) of frames to go on with; 0: all frames.
  after: int

  def __call__(
    self,
    image: Float[Array, "B S D"] | None,
    joint: Float[Array, "B S W"],
    places: Int[Array, "B S"] | None = None,
  ) -> tuple[Float[Array, "B S W"], Float[Array, "B S"] | None, Mapping[str, Array]]:
    """Joint features, what the temporal model adds to its attention to each moment, and what it says of each clip.

    `places` are those of the chosen frames; not given if all are there.
    """


@runtime_checkable
class Landmarks(Protocol):
  """Adds what `Config.POINTS` points of the face say: to each moment, or beside all of them."""

  def __call__(
    self, joint: Float[Array, "B S W"], landmarks: Float[Array, "B T p 3"] | None
  ) -> Float[Array, "B S W"]:
    """Landmarks are x and y from 0 to 1 from the frame's upper left corner, and 1 if the point is known, else 0."""

  def beside(
    self, temporal: Callable[..., tuple[Array, Array]], landmarks: Float[Array, "B T p 3"] | None
  ) -> tuple[Float[Array, "B W"], Float[Array, "B S W"]]:
    """What `temporal(more=tokens)`, the temporal model of these moments, makes of them."""


@runtime_checkable
class Temporal(Protocol):
  """Makes one vector of all moments of a clip, and one of each."""

  def __call__(
    self, joint: Float[Array, "B S W"], bias: Float[Array, "B S"] | None = None, places: Int[Array, "B S"] | None = None,
    *, more: Float[Array, "B n W"] | None = None,
  ) -> tuple[Float[Array, "B W"], Float[Array, "B S W"]]:  # fmt: skip
    """`more` are tokens of no moment; `bias` is added to the logits of attention to each moment; `places` are those of the moments, given if some are left out.

    A `Config` that takes no bias has ATTENDS = False.
    """


@runtime_checkable
class Auxiliary(Protocol):
  """Learns something else of the moments, which may change the answer."""

  def __call__(
    self, outputs: Outputs, moments: Float[Array, "B S W"], drawn: Float[Array, "N B"] | None = None
  ) -> Outputs:
    """`drawn` is what `draw` gave, in training."""

  def draw(self, key: Array, clips: int) -> Float[Array, "N B"] | None:
    """What dropout goes by in one training step; None: nothing is dropped."""


@runtime_checkable
class Loss(Protocol):
  """One number for each clip, of which a training step takes the mean; `Config.build` is given the training clips per class."""

  def __call__(
    self, outputs: Outputs, batch: Mapping[str, Array], weights: Float[Array, "C"] | None = None
  ) -> Float[Array, "B"]:
    """`weights` are factors of the classes; None: all are 1."""


def weighted(
  losses: Float[Array, "B"], weights: Float[Array, "C"] | None, labels: Int[Array, "B"]
) -> Float[Array, "B"]:
  """Losses of clips times the weight of the clip's class."""
  return losses if weights is None else losses * weights[labels]


class Apart(nnx.Module):
  """Passes both streams unchanged: layers without a fusion, and the ablation without any."""

  def __call__(self, image, audio):
    return image, audio


class _Stream(nnx.RngStream):
  """Draws as Flax's; its `count[...] += 1` words an error for each tracer, most of the time that tracing a model takes."""

  def __call__(self):
    key = jax.random.fold_in(self.key[...], self.count[...])
    self.count.set_value(self.count[...] + 1)
    return key


def own(rngs: nnx.Rngs, name: str) -> nnx.Rngs:
  """The random stream of one part ("fusion/3"): adding or removing a part changes no draw of the others."""
  apart = nnx.Rngs()
  key = jax.random.fold_in(rngs.params.key[...], zlib.crc32(name.encode()))
  apart.params = _Stream(key, tag="params")  # type: ignore[attr-defined] # streams are attributes of any name
  return apart


def names(kind: str) -> list[str]:
  """All parts of a kind: the files of its folder."""
  return sorted(path.stem for path in (Path(__file__).parent / kind).glob("*.py") if path.stem != "__init__")


def part(kind: str, name: str, **changes: Any) -> ml_collections.ConfigDict:
  """The fields of a part for a config file: `c.model.fusion = part("fusion", "bottleneck", width=64)`."""
  return ml_collections.ConfigDict(fields_of(read(kind, {"name": name, **changes})))


def successor(kind: str, old: ml_collections.ConfigDict, name: str) -> ml_collections.ConfigDict:
  """A part in place of another; it keeps the values that the config has set, if it has such fields."""
  default, new = part(kind, old.name), part(kind, name)
  new.update({key: old[key] for key in new if key in old and key != "name" and old[key] != default[key]})
  return new


def read(kind: str, fields: Mapping[str, Any]) -> Any:
  """A part's `Config` from the fields of a config or a model.json; UserError with all unknown fields, or wrong values."""
  values = with_tuples(fields)
  name = values.pop("name", None)
  if name not in names(kind):  # only files of that folder: a stranger's model.json can import nothing else
    raise UserError(f"there is no {name!r} in {kind}; choose one of {', '.join(names(kind))}")
  config = importlib.import_module(f"{__package__}.{kind}.{name}").Config
  known = {field.name for field in dataclasses.fields(config)}
  if unknown := sorted(values.keys() - known):
    raise listed(f"{kind}/{name} has no such fields", unknown, f"it has {', '.join(sorted(known))}")
  return config(**values)


def with_tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
  """Fields from JSON, whose lists were tuples."""
  return {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}


def fields_of(config: Any) -> dict[str, Any]:
  """The fields of a part as a config or a model.json holds them; `read` reads them back."""
  return {"name": place_of(config).partition("/")[2], **dataclasses.asdict(config)}


def place_of(config: Any) -> str:
  """The file of a part, as "fusion/bottleneck"."""
  return "/".join(type(config).__module__.split(".")[-2:])


def authors_table(config: Any) -> tuple[tuple[Any, ...], ...] | None:
  """The rows (our path, their names, layout) of a part in an authors' file; None if such files cannot hold it."""
  return getattr(sys.modules[type(config).__module__], "AUTHORS", None)


def pretraining_table(config: Any) -> tuple[tuple[Any, ...], ...] | None:
  """The same of an encoder in its own authors' file; None if they are those of MMA-DFER's."""
  return getattr(sys.modules[type(config).__module__], "PRETRAINED", None)
