"""What there is to choose from: the commands, the shipped configs, and a config's fields with their comments.

All of it is read from source text: comments are nowhere else, and importing would start JAX, which takes seconds.
"""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).parent
# Within the package where a wheel was installed, beside it in a checkout.
CONFIGS = next(folder for folder in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if folder.is_dir())
Field = tuple[str, str, str]  # path, value as Python writes it, comment


def commands() -> dict[str, str]:
  """{"data.prepare": first line of its docstring, …}: the modules that do something when run."""
  found = {}
  for path in sorted(_PACKAGE.rglob("*.py")):
    source = path.read_text(encoding="utf-8")
    if '\nif __name__ == "__main__":' in source:
      name = ".".join(path.relative_to(_PACKAGE).with_suffix("").parts)
      found[name] = (ast.get_docstring(ast.parse(source)) or "").split("\n")[0]
  return found


def shipped_configs() -> dict[str, Path]:
  """{"dfew": its file, …}"""
  return {path.stem: path for path in sorted(CONFIGS.glob("*.py"))}


def config_text(config: Any = None) -> str:
  """The fields of a config (None: their defaults), a line each, with what the program's source says about them."""
  given = {} if config is None else {path: repr(value) for path, value in _flat(config)}
  fields = {path: (value, comment) for path, value, comment in _default_fields(given)}
  if config is not None:
    paths = [path for path in fields if path in given] + [path for path in given if path not in fields]
    fields = {path: (given[path], fields.get(path, ("", ""))[1]) for path in paths}
  lines = [f"{f'  {path} = {value}':<40}  {comment}" for path, (value, comment) in fields.items()]
  return "\n".join(map(str.rstrip, lines))


def _flat(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
  for key, value in config.items():
    if hasattr(value, "items"):
      yield from _flat(value, f"{prefix}{key}.")
    else:
      yield prefix + key, value


def _default_fields(chosen: Mapping[str, str]) -> Iterator[Field]:
  """Every assignment in `default_config`; of parts and sizes, the fields of their dataclasses.

  Of the values chosen, by path and as Python writes them, `PATH.name` says which part is meant.
  """
  source = _Source("config.py")
  for node in source.body_of("default_config"):
    if not (isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute)):
      continue
    path = ast.unparse(node.targets[0]).split(".", 1)[1]  # without the `c` of c.model
    match node.value:
      case ast.Call(func=ast.Name(id="part"), args=[ast.Constant(str(kind)), ast.Constant(str(name))]):
        name = ast.literal_eval(chosen.get(f"{path}.name", repr(name)))
        nested = _part_fields(kind, name)
      case ast.Call():  # ConfigDict(), or ConfigDict(asdict(Sizes())) of an imported dataclass
        nested = source.imported_fields(node.value)
      case _:
        yield path, source.value(node.value), source.comment(node)
        continue
    yield from ((f"{path}.{field}", value, comment) for field, value, comment in nested)


def _part_fields(kind: str, name: str) -> list[Field]:
  names = sorted(file.stem for file in (_PACKAGE / kind).glob("[a-z]*.py"))
  fields = [("name", repr(name), f"chosen after the colon of --config; there is {', '.join(names)}")]
  fields += _Source(f"{kind}/{name}.py").fields_of("Config") if name in names else []
  if kind != "losses" and all(field != "tunable" for field, *_ in fields):
    fields += [field for field in _Source("parts.py").fields_of("Part") if field[0] == "tunable"]
  return fields


class _Source:
  """A module's text, and what stands in it."""

  def __init__(self, path: str):
    self._text = (_PACKAGE / path).read_text(encoding="utf-8")
    self._tree = ast.parse(self._text)

  def body_of(self, name: str) -> list[Any]:
    """The statements of a function or class; none if it is not here."""
    named = [node for node in self._tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    return next((node.body for node in named if node.name == name), [])

  def fields_of(self, name: str) -> list[Field]:
    """Of a dataclass that is defined here."""
    fields = [node for node in self.body_of(name) if isinstance(node, ast.AnnAssign)]
    return [(ast.unparse(field.target), self.value(field.value), self.comment(field)) for field in fields]

  def imported_fields(self, expression: ast.expr) -> list[Field]:
    """Of the dataclasses that are imported from this package and used in an expression."""
    names = [node.id for node in ast.walk(expression) if isinstance(node, ast.Name)]
    imports = [node for node in self._tree.body if isinstance(node, ast.ImportFrom) and node.module]
    homes = {alias.name: str(node.module).split(".") for node in imports for alias in node.names}
    ours = [(homes[name][1:], name) for name in names if homes.get(name, [""])[0] == "mma_dfer_jax"]
    return [field for home, name in ours for field in _Source(f"{'/'.join(home)}.py").fields_of(name)]

  def value(self, expression: ast.expr | None) -> str:
    """As written, but what a constant of this module is instead of its name."""
    if isinstance(expression, ast.Name):
      for node in self._tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == expression.id:
          return repr(ast.literal_eval(node.value))
    return (expression and ast.get_source_segment(self._text, expression)) or ""

  def comment(self, node: ast.stmt) -> str:
    return self._text.splitlines()[(node.end_lineno or 0) - 1].partition("  # ")[2]
