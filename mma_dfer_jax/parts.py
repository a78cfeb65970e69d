"""What the model is composed of: what each kind of part promises, and how a config names one.

A part is a file. `fusion/bottleneck.py` is the fusion "bottleneck"; its folder is the list of all fusions, and nothing
is registered anywhere. Such a file holds a frozen dataclass `Config`, whose fields are the config's fields, the module
that `Config.build` makes, and, where files of weights are to be read, a table `AUTHORS` (`weights/names.py`).

Letters in shapes: B clips, V sequences of tokens for each clip (16 for an encoder of frames, 1 for sound), N tokens of
a sequence, M of the sound's, S moments in time, D and E widths of the two encoders, W of the temporal model, P prompts,
C classes, L layers.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import importlib
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable
import zlib

from flax import nnx
import jax
from jaxtyping import Array, Float
import ml_collections

from mma_dfer_jax.errors import UserError, listed

KINDS = ("encoders", "adapters", "fusion", "temporal", "heads", "losses")  # the folders of parts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
  """What every `Config` of something with parameters has.

  Raises:
    UserError: on construction, with every field that cannot be.
  """

  tunable: tuple[str, ...] = (".*",)  # 🔥 parameters of the part, as regular expressions; all others are ❄
  MAY_BE_ZERO: ClassVar[tuple[str, ...]] = ()

  def __post_init__(self):
    if problems := self.problems():
      raise listed(f"{place_of(self)}: these values cannot be", problems)

  def problems(self) -> list[str]:
    """What cannot be, a line each: a field of another type than its default, a whole number that is not positive."""
    found = []
    for field in dataclasses.fields(self):
      value, default = getattr(self, field.name), field.default
      if type(value) is not type(default) and not (isinstance(default, float) and type(value) is int):
        found.append(f"{field.name}={value!r} is no {type(default).__name__}, as {default!r} is")
      elif type(value) is int and value < (0 if field.name in self.MAY_BE_ZERO else 1):
        kind = "0 or a" if field.name in self.MAY_BE_ZERO else "a"
        found.append(f"{field.name}={value} must be {kind} positive whole number")
    return found


class Outputs(NamedTuple):
  """What the model says of each clip."""

  logits: Float[Array, "B C"]
  extra: Mapping[
    str, Array
  ] = {}  # of auxiliary heads, by the name of the target that a loss compares them with


@runtime_checkable  # tests enforce annotations
class Encoder(Protocol):
  """One stream, opened up: its blocks are called one by one, so that other parts can act between them."""

  width: int  # D; 0 if there is no such stream
  views: int  # V
  moments: int  # S
  blocks: Sequence[Any]  # each (B·V, N, D) and factors (2, B·V) of drop path or None -> (B·V, N, D)
  drop_path_rates: Sequence[float]  # of the blocks

  def embed(self, x: Array, prompts: Float[Array, "P D"] | None) -> Float[Array, "BV N D"] | None:
    """Pixels or energies, normalised here, as tokens with their positions; prompts are the last P tokens."""

  def summary(self, tokens: Float[Array, "BV N D"]) -> Float[Array, "B S D"] | None:
    """What stands for each moment, after the last norm: the class token of each frame, for example."""


@runtime_checkable  # tests enforce annotations
class Adapter(Protocol):
  """Adapts one stream by itself."""

  tokens: Float[Array, "P D"] | None

  def update(self, tokens: Float[Array, "BV N D"], layer: int) -> Float[Array, "BV N D"]:
    """Called after every layer."""


@runtime_checkable  # tests enforce annotations
class Fusion(Protocol):
  """Lets both streams look at each other; there is one for each layer. A stream that is not there is None."""

  def __call__(
    self, image: Float[Array, "BV N D"] | None, audio: Float[Array, "B M E"] | None
  ) -> tuple[Float[Array, "BV N D"] | None, Float[Array, "B M E"] | None]: ...


@runtime_checkable  # tests enforce annotations
class Temporal(Protocol):
  """From moments to a clip."""

  def __call__(self, joint: Float[Array, "B S W"]) -> Float[Array, "B W"]: ...


@runtime_checkable  # tests enforce annotations
class Head(Protocol):
  """From a clip to logits."""

  def __call__(self, clip: Float[Array, "B W"]) -> Outputs: ...


@runtime_checkable  # tests enforce annotations
class Loss(Protocol):
  """One number for each clip; the step takes the mean, an evaluation the sum over real clips."""

  def __call__(self, outputs: Outputs, batch: Mapping[str, Array]) -> Float[Array, "B"]: ...


class Apart(nnx.Module):
  """A fusion that lets both streams pass: layers without one, and the ablation without all of them."""

  def __call__(self, image, audio):
    return image, audio


def own(rngs: nnx.Rngs, name: str) -> nnx.Rngs:
  """Random draws of one part alone, so that a part more or less moves no draw of the others.

  Args:
    rngs: of the model; nothing is drawn from it.
    name: where the part is in the model, as "fusion/3".
  """
  return nnx.Rngs(params=jax.random.fold_in(rngs.params.key[...], zlib.crc32(name.encode())))


def names(kind: str) -> list[str]:
  """All parts of a kind: the files of its folder."""
  return sorted(path.stem for path in (Path(__file__).parent / kind).glob("*.py") if path.stem != "__init__")


def module_of(kind: str, name: str) -> Any:
  """The module of a part. Only files of that folder can be named: a model.json from elsewhere imports nothing else.

  Raises:
    UserError: if there is no such part, with those that there are.
  """
  if name not in names(kind):
    raise UserError(f"there is no {name!r} in {kind}; choose one of {', '.join(names(kind))}")
  return importlib.import_module(f"{__package__}.{kind}.{name}")


def part(kind: str, name: str, **changes: Any) -> ml_collections.ConfigDict:
  """The fields of a part for a config file: `c.model.fusion = part("fusion", "bottleneck", width=64)`."""
  return ml_collections.ConfigDict(fields_of(read(kind, {"name": name, **changes})))


def successor(kind: str, old: ml_collections.ConfigDict, name: str) -> ml_collections.ConfigDict:
  """A part in place of another: what a config has set of that one, and this one has too, stays set."""
  default, new = part(kind, old.name), part(kind, name)
  new.update({key: old[key] for key in new if key in old and key != "name" and old[key] != default[key]})
  return new


def read(kind: str, fields: Mapping[str, Any]) -> Any:
  """A part's `Config` from the fields of a config or of a model.json.

  Raises:
    UserError: naming every field that the part does not have, or every value that cannot be.
  """
  values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
  name = values.pop("name", None)
  config = module_of(kind, name).Config
  known = {field.name for field in dataclasses.fields(config)}
  if unknown := sorted(values.keys() - known):
    raise listed(f"{kind}/{name} has no such fields", unknown, f"it has {', '.join(sorted(known))}")
  return config(**values)


def fields_of(config: Any) -> dict[str, Any]:
  """The fields of a part as a config or a model.json holds them; `read` takes them back."""
  return {"name": type(config).__module__.rpartition(".")[2], **dataclasses.asdict(config)}


def place_of(config: Any) -> str:
  """The file of a part, as "fusion/bottleneck"."""
  return "/".join(type(config).__module__.split(".")[-2:])


@functools.cache
def authors_table(config: type) -> tuple[tuple[Any, ...], ...] | None:
  """The rows (our path, their names, layout) of a part in an authors' file; None if such files cannot hold it."""
  return getattr(importlib.import_module(config.__module__), "AUTHORS", None)
