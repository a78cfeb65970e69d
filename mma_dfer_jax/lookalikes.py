"""Names that a person cannot tell apart: blanks, invisible characters, full-width letters, other forms of the same text."""

from collections.abc import Iterable
import functools
import re
import unicodedata

# Letters of Cyrillic and Greek, and marks, that look like these of ASCII.
_LIKE_LATIN = str.maketrans(
  "АВЕКМНОРСТУХІЈЅаеорсухіјѕΑΒΕΖΗΙΚΜΝΟΡΤΥΧο‐‑‒–—−’‘ʼ´“”",
  "ABEKMHOPCTYXIJSaeopcyxijsABEZHIKMNOPTYXo------''''\"\"",
)
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
  text = unicodedata.normalize("NFKC", text)
  seen = "".join(" " if c.isspace() else c for c in text if c.isspace() or not _unseen(c))
  seen = " ".join(seen.translate(_LIKE_LATIN).split())
  return seen if case else unicodedata.normalize("NFKC", seen.casefold())


def alike(names: Iterable[str], *, case: bool = False) -> list[list[str]]:
  """Groups of different names that look the same."""
  groups: dict[str, list[str]] = {}
  for name in dict.fromkeys(names):
    groups.setdefault(looks(name, case=case), []).append(name)
  return [group for group in groups.values() if len(group) > 1]


def escaped(name: str) -> str:
  """A name in quotes, and with every unusual character by its number where the eye could be mistaken."""
  plain = repr(name[:200])
  return (
    plain if re.fullmatch(r"[ -~]*", plain) or name[:200].isascii() else f"{plain} (written {name[:200]!a})"
  )
