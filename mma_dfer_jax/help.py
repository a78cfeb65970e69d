"""What there is to choose from: the commands, the shipped configs, and a config's fields with their comments.

Read from source text: comments are nowhere else, and importing all commands would take seconds.
"""

import ast
from collections.abc import Iterator, Mapping
import io
from pathlib import Path
import re
import textwrap
import tokenize
from typing import Any

_PACKAGE = Path(__file__).parent
# Within the package where a wheel was installed, beside it in a checkout.
CONFIGS = next(folder for folder in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if folder.is_dir())


def commands() -> dict[str, str]:
  """{"data.prepare": first line of its docstring, …}: the modules that do something when run."""
  sources = {path: path.read_text(encoding="utf-8") for path in sorted(_PACKAGE.rglob("*.py"))}
  return {
    ".".join(path.relative_to(_PACKAGE).with_suffix("").parts): source.split("\n")[0].strip('"')
    for path, source in sources.items()
    if '\nif __name__ == "__main__":' in source
  }


def shipped_configs() -> dict[str, Path]:
  """{"dfew": its file, …}"""
  return {path.stem: path for path in sorted(CONFIGS.glob("*.py"))}


def config_text(config: Any) -> str:
  """The fields of a nested config, a line each, with what the program's source says about them."""
  values = dict(_flat(config))
  comments = dict(item for item in _comments(values) if item[0] in values)  # in the order of the source
  shown = [(f"  {path} = {values[path]!r}", comments.get(path, "")) for path in comments | values]
  return "\n".join(f"{field:<40}  {comment}".rstrip() for field, comment in shown)


def _flat(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
  for key, value in config.items():
    if hasattr(value, "items"):
      yield from _flat(value, f"{prefix}{key}.")
    else:
      yield prefix + key, value


def _comments(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
  """(path, comment) of the fields in `default_config` or `pretraining_config`, and of the parts that these values choose."""
  file = "pretraining_config.py" if "model.stream" in values else "config.py"
  for target, value, comment in _assignments(file):
    path = target.removeprefix("c.")
    if path == target:
      continue
    if kind := re.match(r'part\("(\w+)"', value):
      names = sorted(file.stem for file in (_PACKAGE / kind[1]).glob("[a-z]*.py"))
      yield f"{path}.name", f"chosen after the colon of --config; there is {', '.join(names)}"
      fields = _fields("parts.py", "LossPart") if kind[1] == "losses" else {
        "tunable": _fields("parts.py", "Part").get("tunable", "")}  # fmt: skip
      fields |= _fields(f"{kind[1]}/{values.get(f'{path}.name')}.py", "Config")
    elif "Inputs()" in value:
      fields = _fields("inputs.py", "Inputs")
    else:
      yield path, comment
      continue
    yield from ((f"{path}.{field}", words) for field, words in fields.items())


def _fields(path: str, name: str) -> dict[str, str]:
  """The fields of a dataclass in a file, and their comments; none if there is no such file or class."""
  return {field: comment for field, _, comment in _assignments(path, name)}


def _assignments(path: str, of_class: str = "") -> Iterator[tuple[str, str, str]]:
  """(target, value, comment) of the assignments in a file, or of a class in it; a comment stands beside them, or above."""
  file = _PACKAGE / path
  source = file.read_text(encoding="utf-8") if file.is_file() else ""
  comments = {token.start[0]: token.string.lstrip("# ") for token in tokenize.generate_tokens(io.StringIO(source).readline)
              if token.type == tokenize.COMMENT and not token.string.startswith("# fmt")}  # fmt: skip
  tree = ast.parse(textwrap.dedent(source))
  alone = {number for number, line in enumerate(source.splitlines(), 1) if line.lstrip().startswith("#")}
  inside = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == of_class]
  kind = ast.AnnAssign if of_class else ast.Assign
  for node in (inside[0].body if inside else ()) if of_class else ast.walk(tree):
    if not isinstance(node, kind) or node.value is None:
      continue
    found = [comments[line] for line in range(node.lineno, (node.end_lineno or 0) + 1) if line in comments]
    above = node.lineno
    while not found and above - 1 in alone:
      above -= 1
    found = found or [comments[line] for line in range(above, node.lineno)]
    target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
    yield ast.unparse(target), ast.unparse(node.value).replace("'", '"'), " ".join(found)
