"""Which of a file's tensors are the model's, by its own names: training tools wrap names, and keep several sets."""

import collections
from collections.abc import Mapping
import dataclasses
import functools
from pathlib import Path
import re
from typing import Any

import numpy as np

from mma_dfer_jax.errors import UserError, few, shown
from mma_dfer_jax.weights.pickles import StandIn, Tensor
from mma_dfer_jax.weights.places import ZERO

# What stands before these words is no part of the model: with one of them MMA-DFER's own names begin. A file of a single
# encoder is known by the projection of its patches.
ROOTS = ("image_encoder", "audio_model", "temporal_net", "vision_proj", "our_classifier")
_STARTS = (re.compile(rf"((?:[^.]+\.)*?)(?:{'|'.join(ROOTS)})(?:\.|$)"),
           re.compile(r"((?:[^.]+\.)*?)patch_embed\.proj\.weight$"))  # fmt: skip
# Modules that wrap another one, anywhere in a name: DataParallel and DDP (module), torch.compile (_orig_mod), FSDP
# (_fsdp_wrapped_module, _fpw_module), checkpointing (_checkpoint_wrapped_module), Fabric (_forward_module), Opacus.
_WRAPPER = re.compile(r"module|_\w*mod(?:ule)?")
_AVERAGES = {"ema", "swa", "avg", "average", "averaged", "momentum", "shadow"}  # words in names of sets
_USUAL = ((), ("state_dict",), ("model",))  # keys of a file that lead to its weights
_FULL = "a run on several devices must save its full state dict (FullStateDictConfig or full_state_dict=True)"


@dataclasses.dataclass(frozen=True)
class _Entry:
  keys: tuple[str, ...]  # of the file, down to the dict
  name: Any  # in the dict
  value: Any
  full: str  # keys and name, without wrappers


def find_weights(
  path: Path, saved: Mapping, wanted: str | None = None
) -> tuple[dict[str, Tensor], list[str]]:
  """The weights in a file by the model's own names, and notes on where they were found and what was removed.

  Args:
    saved: what the file holds: tensors by name, in dicts of dicts.
    wanted: of several sets, the name of one ("state_dict.teacher") or a part of its name; None: `state_dict`, `model`, or the only
      one that is no running average. UserError if that leaves none or several.
  """
  sets, outside = _sets(path, saved)
  name = _chosen(path, sets, wanted)
  prefix = "" if name == "top" else f"{name}."
  found: dict[str, _Entry] = {}
  beside, objects = [], []
  for entry in sets[name]:
    inner, tensor, known = entry.full.removeprefix(prefix), entry.value, shown(entry.name)
    if not isinstance(entry.name, str) or isinstance(tensor, StandIn):
      objects.append(known + _object(tensor))
    elif not isinstance(tensor, Tensor) or (tensor.dtype.kind in "biu" and tensor.shape in ((), (1,))):
      beside.append(known)  # an epoch; counts, as AveragedModel's n_averaged
    elif inner in found:
      raise UserError(f"{path} holds {shown(inner)} twice, as {shown(found[inner].name)} and {known}")
    else:
      found[inner] = entry
  if objects:
    advice = (
      _FULL if any("distributed" in text for text in objects) else "save them as plain tensors of floats"
    )
    raise UserError(f"{path}: its state dict holds things that are no tensors: {few(objects)}; {advice}")
  if flat := [shown(inner) for inner in found if re.search(r"(^|\.)_?flat_param", inner)]:
    raise UserError(f"{path} holds the flat tensors of FSDP ({few(flat)}); {_FULL}")
  if found and all(0 in entry.value.shape for entry in found.values()):
    raise UserError(f"{path} holds only empty tensors, as DeepSpeed ZeRO-3 leaves them; {ZERO}")
  keys = [".".join(map(shown, k)) for k in dict.fromkeys(e.keys for e in found.values()) if k not in _USUAL]
  lead, within = _removed(found)
  other = [f"{shown(n)} ({len(sets[n])} tensors)" for n in sets if n != name]
  notes = {
    "the weights are those under": keys,
    "removed from the beginnings of names:": lead if {*lead} - {"module."} else [],
    "removed from within names:": within,
    "other weights, left out (convert takes those of a checkpoint with --weights):": other,
    f"outside {shown(prefix)}, left out:": outside,
    "beside the weights, left out:": beside,
  }
  tensors, note = _of_one_type({inner: entry.value for inner, entry in found.items()})
  return tensors, [f"{what} {few(names)}" for what, names in notes.items() if names] + [note] * bool(note)


def _sets(path: Path, saved: Mapping) -> tuple[dict[str, list[_Entry]], list[str]]:
  """The sets of weights by name, each with all that stands beside its tensors; and names of tensors in no set."""
  dicts = _dicts(saved)
  if not dicts:
    held = few([shown(key) + _object(value) for key, value in saved.items()]) or "nothing"
    raise UserError(f"{path} holds no state dict, at no key; it has {held}; save model.state_dict()")
  entries = []
  for keys, here in dicts.items():
    for name, value in here.items():
      inner = [part for part in str(name).split(".") if not _WRAPPER.fullmatch(part)]
      entries.append(_Entry(keys, name, value, ".".join([*keys, *inner])))
  homes: dict[str, set[tuple[str, ...]]] = {}  # what stands before the model's own names: keys of the dicts
  for start in _STARTS:
    for entry in entries if not homes else ():
      if isinstance(entry.value, Tensor) and (match := start.match(entry.full)):
        homes.setdefault(match[1], set()).add(entry.keys)
  if not homes:  # it is something else; a message needs its names
    keys = next(keys for keys in (*_USUAL[1:], (), next(iter(dicts))) if keys in dicts)
    homes = {"".join(f"{key}." for key in keys): {keys}}
  sets: dict[str, list[_Entry]] = {prefix: [] for prefix in homes}
  outside = []
  for entry in entries:
    around = [prefix for prefix, places in homes.items() if entry.keys in places]
    if fitting := [prefix for prefix in around if entry.full.startswith(prefix)]:
      sets[max(fitting, key=len)].append(entry)
    elif around and isinstance(entry.value, Tensor):
      outside.append(shown(entry.name))
  return {prefix.removesuffix(".") or "top": found for prefix, found in sets.items()}, outside


def _object(value: Any) -> str:
  of = "" if getattr(value, "name", "").startswith("torch.Tensor") else "a pickled "
  return f" ({of}{value.name})" if isinstance(value, StandIn) else ""


def _dicts(saved: Mapping) -> dict[tuple[str, ...], Mapping]:
  """The dicts in a file that hold tensors, by the keys that lead to them; each once, however often it is there."""
  found: dict[tuple[str, ...], Mapping] = {}
  todo: collections.deque[tuple[tuple[str, ...], Mapping]] = collections.deque([((), saved)])
  seen = set()
  while todo:
    keys, here = todo.popleft()
    if id(here) in seen or len(keys) > 8:
      continue
    seen.add(id(here))
    if any(isinstance(value, Tensor) for value in here.values()):
      found[keys] = here
    inner = ((key, value) for key, value in here.items() if isinstance(key, str) and isinstance(value, dict))
    todo.extend(((*keys, key), value) for key, value in inner if "optim" not in key)
  return found


def _chosen(path: Path, sets: Mapping[str, list], wanted: str | None) -> str:
  named = ", ".join(f"{shown(name)} ({len(found)} tensors)" for name, found in sets.items())
  if wanted:
    fitting = [wanted] if wanted in sets else [n for n in sets if f".{wanted.strip('.')}." in f".{n}."]
    if len(fitting) != 1:
      raise UserError(f"--weights={wanted}, but {path} holds the weights {named}")
    return fitting[0]
  plain = [name for name in sets if not _AVERAGES & set(re.split(r"[._-]", name.lower()))]
  usual = [".".join(keys) for keys in _USUAL if keys and ".".join(keys) in plain]
  if len(sets) == 1 or usual or len(plain) == 1:
    return (usual or plain or list(sets))[0]
  advice = "choose one with --weights of convert, or save one in a file of its own"
  raise UserError(f"{path} holds several sets of weights: {named}; {advice}")


def _removed(found: Mapping[str, _Entry]) -> tuple[list[str], list[str]]:
  """What stands before the model's own names in a dict, and the wrappers within them; each once."""
  lead: dict[str, None] = {}
  within: dict[str, None] = {}
  for inner, entry in found.items():
    parts, first = entry.name.split("."), inner.split(".")[0]
    start = parts.index(first) if first in parts else 0
    lead["".join(f"{shown(part)}." for part in parts[:start])] = None
    within |= {f"{part}.": None for part in parts[start:] if _WRAPPER.fullmatch(part)}
  return [text for text in lead if text], list(within)


def _of_one_type(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], str]:
  """Tensors of one type: those of several become float32, in which the model computes."""
  types = collections.Counter(str(tensor.dtype) for tensor in tensors.values())
  if len(types) < 2 or not all("float" in name for name in types):  # whole numbers are refused elsewhere
    return tensors, ""

  def single(tensor: Tensor) -> np.ndarray:
    with np.errstate(over="ignore"):  # becomes infinite, and is refused then
      return tensor.read().astype(np.float32)

  dtype = np.dtype(np.float32)
  others = {name: tensor for name, tensor in tensors.items() if tensor.dtype != dtype}
  same = tensors | {n: Tensor(t.shape, dtype, functools.partial(single, t)) for n, t in others.items()}
  return same, f"tensors of {', '.join(f'{name} ({count})' for name, count in types.items())}: all as float32"
