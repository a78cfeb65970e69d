"""What there is to choose from: the commands, the shipped configs, and a config's fields with their comments.

Read from source text: comments are nowhere else, and importing all commands would take seconds.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
import re
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
  source = re.split(r"\ndef _?chos", (_PACKAGE / file).read_text(encoding="utf-8"))[
    0
  ]  # what chooses parts comes after
  for path, value, comment in re.findall(r"^ +c\.([\w.]+) = (.*?)(?:  # (.*))?$", source, re.M):
    if kind := re.match(r'part\("(\w+)"', value):
      names = sorted(file.stem for file in (_PACKAGE / kind[1]).glob("[a-z]*.py"))
      yield f"{path}.name", f"chosen after the colon of --config; there is {', '.join(names)}"
      fields = _fields(f"{kind[1]}/{values.get(f'{path}.name')}.py", "Config")
      fields = {"tunable": _fields("parts.py", "Part").get("tunable", "")} | fields
    elif "Inputs()" in value:
      fields = _fields("inputs.py", "Inputs")
    else:
      yield path, comment
      continue
    yield from ((f"{path}.{field}", words) for field, words in fields.items())


def _fields(path: str, name: str) -> dict[str, str]:
  """The fields of a dataclass in a file, and their comments; none if there is no such file or class."""
  file = _PACKAGE / path
  source = file.read_text(encoding="utf-8") if file.is_file() else ""
  body = re.search(rf"^class {name}\b.*?(?=^\S|\Z)", source, re.M | re.S)
  return dict(re.findall(r"^  (\w+): [^=\n]+ = .*?(?:  # (.*))?$", body[0] if body else "", re.M))
