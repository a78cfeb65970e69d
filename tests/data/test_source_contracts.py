"""What every data set promises, asked of every file in `data/sources`: a new one is tested here by being there."""

import ast
import dataclasses
import importlib
from pathlib import Path
import sys

from commands import load, own_flags, run
from conftest import ROOT
import pytest

from mma_dfer_jax.data import source
from mma_dfer_jax.data.labels import COUNTS, LABEL_ORDERS, SCORES, label_order
from mma_dfer_jax.errors import UserError

NAMES = source.names()


def test_the_folder_is_the_list():
  assert {"clips", "cremad", "dfew", "folders", "mafw", "ravdess"} <= set(NAMES)
  assert list(LABEL_ORDERS) == ["dfew", "mafw", "mafw-official"]
  assert SCORES.keys() <= COUNTS.keys() <= set(NAMES)
  assert label_order("a, b").classes == ("a", "b")
  for text in ("a", "a,a", "a,"):
    with pytest.raises(UserError, match="give dfew, mafw, mafw-official, or"):
      label_order(text)


@pytest.mark.parametrize("name", NAMES)
def test_a_source_says_everything(name, tmp_path):
  of = source.source_of(name)
  assert of.FLAG in ("raw", "manifest")
  assert of.LAYOUT.startswith("accepted ")
  assert ast.get_docstring(ast.parse(Path(of.__file__).read_text()))
  assert issubclass(of.Options, source.Options)
  for order in getattr(of, "LABELS", {}).values():
    assert len(set(order.classes)) == len(order.classes)
    assert order.origin
  if of.FLAG == "raw" and name != "folders":
    assert f"```text\n{of.LAYOUT}\n```\n" in (ROOT / "docs/data.md").read_text()
  classes = {label for row in COUNTS.get(name, {}).values() for label in row}
  assert all(set(order.classes) == classes for order in getattr(of, "LABELS", {}).values())
  assert all(set(row) == classes for row in COUNTS.get(name, {}).values())
  with pytest.raises(UserError) as error:  # of an empty folder
    of.read(tmp_path, of.Options(**({"test_share": 0.5} if name == "folders" else {})))
  assert of.LAYOUT in str(error.value)


@pytest.mark.parametrize("text", ["def read(:", "import nothing_of_that_name", "LAYOUT = 'accepted'"])
def test_a_broken_source_harms_no_other(tmp_path, monkeypatch, text):
  """It is named in one line; chosen, it is the error."""
  for path in (Path(source.__file__).parent / "sources").glob("*.py"):
    (tmp_path / path.name).write_text(path.read_text() if path.name != "clips.py" else text)
  package = importlib.import_module("mma_dfer_jax.data.sources")
  monkeypatch.setattr(package, "__path__", [str(tmp_path)])
  monkeypatch.delitem(sys.modules, "mma_dfer_jax.data.sources.clips")
  with pytest.raises(
    UserError, match=r"^mma_dfer_jax/data/sources/clips\.py is broken, fix or remove it: \w+Error: .*$"
  ):
    source.source_of("clips")
  assert source.said_by("clips", "Options") is None
  status, out, err = run("data.prepare", "--dataset=clips", "--manifest=m.csv", "--check")
  assert (status, err.count("\n")) == (1, 1), "without a traceback"
  assert "clips.py is broken" in err
  status, out, err = run("data.prepare", "--dataset=dfew", "--raw=nowhere", "--check")
  assert "WARNING: mma_dfer_jax/data/sources/clips.py is broken" in out
  assert "no such folder" in err


@pytest.mark.parametrize("name", NAMES)
def test_options_are_flags_of_prepare(name):
  options = source.source_of(name).Options
  for field in dataclasses.fields(options):
    assert field.name in load("data.prepare")._OPTIONS
    assert field.metadata["help"].endswith(".")
    flag = own_flags("data.prepare")[field.name]
    assert flag.default == (list(field.default) if isinstance(field.default, tuple) else field.default)
    if choices := field.metadata["choices"]:
      assert field.default is None or field.default in choices
      with pytest.raises(UserError, match=f"--{field.name}=nonsense: choose one of {choices[0]}"):
        options(**{field.name: "nonsense"})
  if "classes" in options.__dataclass_fields__:
    for classes in (("x", "x"), ("x", ""), ("X", "x")):
      with pytest.raises(UserError, match="--classes"):
        options(classes=classes)


@pytest.mark.parametrize(
  ("problems", "lines"),
  [
    ([("", "no label", ("line 2: a",)), ("", "no label", ("line 10: b",))], ["line 2: a: no label", "line 10: b: no label"]),
    ([(f"l {i}", f"unknown label '{'shock' if i else 'calm'}'; write x or 1…7", (str(i),)) for i in range(4)],
     ["4 clips: unknown label 'shock' (3 clips), 'calm' (1); write x or 1…7, as in l 0: 0, l 1: 1, l 2: 2"]),
    ([(f"l {i}", f"/a/{i}.jpg is cut short, as all of {i}.mp4", (f"{i}.mp4",)) for i in range(5)],
     ["5 clips: … is cut short, as all of …, as in l 0: 0.mp4, l 1: 1.mp4, l 2: 2.mp4"]),
    ([(f"list {i}", "is empty", ()) for i in range(30)],
     ["30 lists, files or folders: is empty, as in list 0, list 1, list 2"]),
    ([("a.md", "is no video", ("a.md",))], ["a.md: is no video"]),
    ([("l", "is empty", ("1", "2"))] * 2, ["l: 2 clips is empty: 1, 2"]),
  ],
)  # fmt: skip
def test_equal_problems_share_a_line(problems, lines):
  assert source.in_lines(source.Problem(*problem) for problem in problems) == lines
