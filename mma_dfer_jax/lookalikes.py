"""Names that a person cannot tell apart: blanks, invisible characters, full-width letters, other forms of the same text."""

from collections.abc import Callable, Iterable
import decimal
import functools
import itertools
import re
from typing import Any
import unicodedata

# Letters of other scripts, and marks, that look like these of ASCII: the usual part of Unicode's confusables (UTS 39).
_LIKE = {
  "A": "АΑᎪ", "B": "ВΒᏴ", "C": "СϹᏟ", "D": "Ꭰ", "E": "ЕΕᎬ", "G": "ԌᏀ", "H": "НΗᎻ", "I": "ІΙӀǀ∣Ꭵ", "J": "ЈᎫͿ", "K": "КΚᏦK",
  "L": "Ꮮ", "M": "МΜᎷ", "N": "Ν", "O": "ОΟՕ", "P": "РΡᏢ", "Q": "Ԛ", "S": "ЅՏᏚ", "T": "ТΤᎢ", "U": "Ս", "V": "ѴᏙ", "W": "ԜᎳ",
  "X": "ХΧ", "Y": "УΥҮᎩ", "Z": "ΖᏃ", "a": "аαɑ", "c": "сϲ", "d": "ԁ", "e": "е", "g": "ɡ", "h": "һ", "i": "іιıɩ", "j": "јϳ",
  "n": "ո", "o": "оοօ", "p": "рρ", "q": "ԛ", "s": "ѕ", "u": "υս", "v": "ѵν", "w": "ԝ", "x": "хχ", "y": "уγү",
  "-": "‐‑‒–—−", "'": "’‘ʼ´", '"': "“”",
}  # fmt: skip
_LIKE_LATIN = str.maketrans({one: latin for latin, others in _LIKE.items() for one in others})
_NUMBER = re.compile(r"[+-]?(\d+[.,]?\d*|[.,]\d+)")
_ONE_STROKE = str.maketrans("I1|0", "lllO")
_EMPTY = "\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0"  # drawn as nothing, though no format characters


def _unseen(character: str) -> bool:
  of = unicodedata.category(character)
  return of in ("Cc", "Cf", "Zs", "Zl", "Zp") or character in _EMPTY or "\ufe00" <= character <= "\ufe0f"


def tidy(text: str) -> str:
  """The text without blanks and invisible characters before and after it."""
  first, last = 0, len(text)
  while first < last and _unseen(text[first]):
    first += 1
  while first < last and _unseen(text[last - 1]):
    last -= 1
  return text[first:last]


@functools.lru_cache(maxsize=1 << 16)
def looks(text: str, *, case: bool = False) -> str:
  """The same for all texts that look the same; upper and lower case do, unless `case`."""
  seen = " ".join(_visible(text).translate(_LIKE_LATIN).split())
  return seen if case else unicodedata.normalize("NFKC", seen.casefold())


def _visible(text: str) -> str:
  text = unicodedata.normalize("NFKC", text)
  return "".join(" " if c.isspace() else c for c in text if c.isspace() or not _unseen(c))


def keys(label: str) -> set[tuple[str, Any]]:
  """What a label has in common with those that people take for it: its looks, with and without case, or its number."""
  text = _visible(label).strip()
  bare = text.strip("._ ") or text
  found: set[tuple[str, Any]] = {("strokes", looks(bare, case=True).translate(_ONE_STROKE))}
  if number := _NUMBER.fullmatch(text) or _NUMBER.fullmatch(bare):
    return found | {("number", decimal.Decimal(number[0].replace(",", ".")))}
  return found | {("letters", looks(bare)), ("case", " ".join(bare.casefold().split()))}


def alike(names: Iterable[str], of: Callable[[str], Iterable[Any]]) -> list[list[str]]:
  """Groups of different names of which each has something in common with another, as `of` says it."""
  sharing: dict[Any, list[str]] = {}
  for name in dict.fromkeys(names):
    for key in of(name):
      sharing.setdefault(key, []).append(name)
  groups: list[list[str]] = []
  for same in (same for same in sharing.values() if len(same) > 1):
    joined = [group for group in groups if not set(same).isdisjoint(group)]
    groups = [group for group in groups if group not in joined]
    groups.append(list(dict.fromkeys(itertools.chain(*joined, same))))
  return groups


def escaped(name: str) -> str:
  """A name in quotes, and with every unusual character by its number where the eye could be mistaken."""
  plain = repr(name[:200])
  return (
    plain if re.fullmatch(r"[ -~]*", plain) or name[:200].isascii() else f"{plain} (written {name[:200]!a})"
  )
