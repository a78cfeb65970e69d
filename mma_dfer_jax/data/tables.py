"""Lists and tables that people have written: texts, and csv files in whatever form a spreadsheet saves them."""

import csv
import io
from pathlib import Path

from mma_dfer_jax.lookalikes import escaped, looks, tidy

LARGEST_LIST = 1 << 28  # bytes
_SPREADSHEET = "is a spreadsheet, not a csv; save it as CSV (UTF-8)"
_PACKED = "is a packed file; unpack it first"
_UTF16 = "must be saved as UTF-8; it is UTF-16"
_OTHER_FILES = dict.fromkeys([b"PK\3\4", b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf", b"Rar!"], _PACKED)
_OTHER_FILES |= {b"\xd0\xcf\x11\xe0": _SPREADSHEET, b"\xff\xfe": _UTF16, b"\xfe\xff": _UTF16}
_IN_SPREADSHEETS = (b"xl/workbook", b"opendocument.spreadsheet", b"Index/Document.iwa")  # of packed ones


def read_text(path: Path) -> str:
  """Raises ValueError if it cannot be read or is not UTF-8."""
  try:
    if path.stat().st_size > LARGEST_LIST:
      raise ValueError(f"has {path.stat().st_size:,} bytes: a list of clips is shorter")
    data = path.read_bytes()
    if kind := next((kind for start, kind in _OTHER_FILES.items() if data.startswith(start)), ""):
      raise ValueError(_SPREADSHEET if any(part in data for part in _IN_SPREADSHEETS) else kind)
    return data.decode("utf-8-sig")
  except OSError as error:
    raise ValueError(f"cannot be read ({error.strerror})") from error
  except UnicodeDecodeError as error:
    data = error.object[:1000]
    no_text = b"\0" in data and not data.startswith((b"\xff\xfe", b"\xfe\xff"))  # which UTF-16 begins with
    raise ValueError("is no text file" if no_text else "must be saved as UTF-8") from error


def read_table(
  path: Path, *columns: str
) -> tuple[list[str], list[tuple[int, list[str], dict[str, str]]], list[str]]:
  """A csv with one of these sets of columns, as "path,label"; raises ValueError with what is wrong with it.

  Returns: its columns; its rows, as number of the last line, values, and the same by column; what is odd about its form.
  """
  text, wanted = read_text(path), " or ".join(columns)
  first = next((line for line in text.splitlines() if tidy(line)), "")
  if not first:
    raise ValueError(f"is empty; it must begin with the line {wanted}")
  known = set(",".join(columns).split(","))
  for delimiter in ",;\t":
    header = list(map(looks, next(csv.reader([first[:100_000]], delimiter=delimiter))))
    used = sorted(name for name in header if name in known)
    if any(used == sorted(one.split(",")) for one in columns):
      break
  else:
    what = f"must begin with the line {wanted} (comma, semicolon or tab)"
    raise ValueError(f"{what}; it begins with {escaped(first)}")
  reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
  try:
    lines = [(reader.line_num, [tidy(value) for value in row]) for row in reader]
    lines = [(number, row) for number, row in lines if any(row)][1:]
  except csv.Error as error:
    raise ValueError(f"cannot be read in line {reader.line_num}: {error}") from error
  notes = [f"columns are separated by {delimiter!r}, not by a comma"] * (delimiter != ",")
  if extra := sorted(set(header) - known - {""}):
    notes.append(f"columns that are not used: {', '.join(extra)}")
  if any(value and not name for _, row in lines for name, value in zip(header, row, strict=False)):
    notes.append("columns without a name hold values that are not used")
  empty = dict.fromkeys(header, "")
  for _, row in lines:
    while len(row) > len(header) and not row[-1]:
      row.pop()  # spreadsheets write commas for empty columns
  return header, [(n, row, empty | dict(zip(header, row, strict=False))) for n, row in lines], notes
