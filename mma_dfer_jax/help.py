"""What there is to choose from: the commands, the configs that are shipped, and a config's fields with their comments.

All of it is read from source text: comments are nowhere else, and importing would start JAX, which takes seconds.
"""

import ast
from collections.abc import Iterator, Mapping
import io
from pathlib import Path
import tokenize
from typing import Any

_PACKAGE = Path(__file__).parent
# Within the package where a wheel was installed, beside it in a checkout.
CONFIGS = next(folder for folder in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if folder.is_dir())


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
  """The fields of a config, a line each, with what the program's source says about them.

  Args:
    config: a ConfigDict whose values are shown; None: the defaults.
  """
  values = {} if config is None else {path: repr(value) for path, value in _flat(config)}
  described = {path: (value, comment) for path, value, comment in _default_fields(values)}
  shown = {path: (values.get(path, value), comment) for path, (value, comment) in described.items()}
  if config is not None:
    shown = {path: of for path, of in shown.items() if path in values}
    shown |= {path: (value, "") for path, value in values.items() if path not in described}
  return "\n".join(
    f"{f'  {path} = {value}':<40}  {comment}".rstrip() for path, (value, comment) in shown.items()
  )


def _default_fields(chosen: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
  """(path, value, comment) of every assignment in `default_config`; of parts and sizes, those of their dataclasses.

  Args:
    chosen: values by path, as Python writes them; `PATH.name` says which part is meant instead of the default one.
  """
  source = _Source(_PACKAGE / "config.py")
  for node in source.function("default_config"):
    if not (isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute)):
      continue
    path = ast.unparse(node.targets[0]).split(".", 1)[1]  # without the `c` of c.model
    match node.value:
      case ast.Call(func=ast.Name(id="part"), args=[ast.Constant(str(folder)), ast.Constant(str(name))]):
        name = ast.literal_eval(chosen.get(f"{path}.name", repr(name)))
        part = _PACKAGE / folder / f"{name}.py"
        there = sorted(file.stem for file in part.parent.glob("[a-z]*.py"))
        nested = [("name", repr(name), f"chosen after the colon of --config; there is {', '.join(there)}")]
        nested += _Source(part).fields("Config") if part.is_file() else []
        if all(field != "tunable" for field, *_ in nested) and folder != "losses":
          nested += [of for of in _Source(_PACKAGE / "parts.py").fields("Part") if of[0] == "tunable"]
      case ast.Call():  # ConfigDict(), or ConfigDict(asdict(Sizes())) of an imported dataclass
        nested = [field for home, name in source.imported_within(node.value) for field in home.fields(name)]
      case _:
        yield path, source.value(node.value), source.comment(node)
        continue
    for field, value, comment in nested:
      yield f"{path}.{field}", value, comment


class _Source:
  """A module's text, and what stands in it."""

  def __init__(self, path: Path):
    self._text = path.read_text(encoding="utf-8")
    self._tree = ast.parse(self._text)
    tokens = tokenize.generate_tokens(io.StringIO(self._text).readline)
    self._comments = {
      token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT
    }

  def function(self, name: str) -> list[ast.stmt]:
    return [
      statement
      for node in self._tree.body
      if isinstance(node, ast.FunctionDef) and node.name == name
      for statement in node.body
    ]

  def fields(self, name: str) -> list[tuple[str, str, str]]:
    """(field, value, comment) of a dataclass that is defined here."""
    return [
      (field.target.id, self.value(field.value), self.comment(field))
      for node in self._tree.body
      if isinstance(node, ast.ClassDef) and node.name == name
      for field in node.body
      if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
    ]

  def imported_within(self, expression: ast.expr) -> list[tuple["_Source", str]]:
    """(module, name) of what is imported from this package and used in an expression."""
    homes = {
      alias.asname or alias.name: (node.module, alias.name)
      for node in self._tree.body
      if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("mma_dfer_jax.")
      for alias in node.names
    }
    used = [homes[n.id] for n in ast.walk(expression) if isinstance(n, ast.Name) and n.id in homes]
    return [(_Source(_PACKAGE.parent / f"{module.replace('.', '/')}.py"), name) for module, name in used]

  def value(self, expression: ast.expr | None) -> str:
    """As written, but what a constant of this module is instead of its name."""
    if isinstance(expression, ast.Name):
      for node in self._tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == expression.id:
          return repr(ast.literal_eval(node.value))
    return (expression and ast.get_source_segment(self._text, expression)) or ""

  def comment(self, node: ast.stmt) -> str:
    return self._comments.get(node.end_lineno or 0, "")


def _flat(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
  for key, value in config.items():
    if hasattr(value, "items"):
      yield from _flat(value, f"{prefix}{key}.")
    else:
      yield prefix + key, value
