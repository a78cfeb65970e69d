"""What every command does alike: --help, configs by name, `python -m mma_dfer_jax`; and how errors are worded."""

import os
import subprocess
import sys

from commands import run
from conftest import ROOT
import pytest

from mma_dfer_jax import errors
from mma_dfer_jax import help as words
from mma_dfer_jax.cli import _ConfigParser
from mma_dfer_jax.config import default_config, flat_config

CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))


@pytest.mark.slow
def test_all_commands_are_listed_and_can_be_run(tmp_path):
  def command(*arguments, status=0):
    """`python -m mma_dfer_jax …` in a folder that is not the checkout; what it printed."""
    done = subprocess.run([sys.executable, "-m", "mma_dfer_jax", *arguments], cwd=tmp_path, text=True, check=False,
                          env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True)  # fmt: skip
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr

  listed = command()
  assert {"train", "folds", "predict", "demo_page", "data.prepare", "data.doctor"} < set(words.commands())
  for name, says in words.commands().items():
    assert says
    assert f"  {name:<16}{says}\n" in listed
  answer = command("trian", "--help", status=2)
  assert answer == f"error: there is no command 'trian'; there are {', '.join(words.commands())}\n"
  wrong = ["--out=x", "--clips_per_class_test=-1"]
  answer = command("data.demo", *wrong, status=1)
  assert answer == run("data.demo", *wrong)[2]
  assert answer.startswith("error:")


@pytest.mark.parametrize("name", words.commands())
def test_help_ends_well_and_shows_the_commands_own_flags(name):
  status, own, err = run(name, "--help")
  assert (status, err) == (0, "")
  assert own.startswith(words.commands()[name])
  assert "  --" in own
  assert "--helpfull lists" in own
  assert "--verbosity" not in own  # absl's
  assert ("  batch_size = 8  " in own) == ("  --config: " in own)


def test_help_shows_the_config_that_was_given():
  status, shown, _ = run("train", "--config=demo", "--config.seed=7", "-helpfull")
  assert status == 0
  for part in ("--verbosity", "  seed = 7   ", "  num_epochs = 18   "):
    assert part in shown
  status, _, err = run("train", "--config=demo", "--config.sed=7", "--help")
  assert (status, "there is no 'sed' here; there is batch_size, " in err) == (2, True)


@pytest.mark.parametrize(
  ("flags", "says"),
  [
    (["--config=demo", "--config.model.fusion=none"],
     ["model.fusion=none: parts are chosen after the colon of --config: --config=demo:fusion=none"]),
    (["--config=demo:temporal=mean", "--config.loss=focal", "--config.inputs=3", "--config.seed.x=1"],
     ["loss=focal: parts are chosen after the colon of --config: --config=demo:temporal=mean,loss=focal",
      "inputs=3: this is a group of fields; set one of inputs.audio_shape, inputs.frame_choice, inputs.frame_stride, inputs.image_size, inputs.num_frames, inputs.test_views",
      "seed.x: there is no 'x' here; there is no further key"]),
    (["--config.model.fusion=none"], ["model.fusion: give --config=NAME first"]),
  ],
)  # fmt: skip
def test_fields_that_cannot_be_set_are_answered_with_what_can_be(flags, says):
  status, _, err = run("train", *flags, "--workdir=x")
  assert status == 2
  lines = [f"  - {line}" for line in says]
  assert err.splitlines() == ["error: these fields of the config cannot be set:", *lines]


def test_equal_problems_are_counted():
  problems = [
    *((f"clip {i}", "is empty") for i in range(1200)),
    ("other", "is a folder"),
    ("last", "is empty"),
  ]
  lines = ["1,201 clips: is empty, as in clip 0, clip 1, clip 2", "other: is a folder"]
  assert errors.counted(problems) == lines
  assert str(errors.listed("wrong", ["a", "b", "a"], "fix it")) == "wrong:\n  - a\n  - b\nfix it"


def test_every_field_of_the_config_is_read_from_its_source():
  text = words.config_text(default_config())
  fields = [line.split(" = ")[0].strip() for line in text.splitlines()]
  assert set(fields) == set(flat_config(default_config().to_dict()))
  assert fields[:2] == ["seed", "num_epochs"], "in the order of the source"
  assert "  learning_rate = 0.0001                  the highest; cosine" in text


def test_fields_of_parts_are_read_from_the_parts(tmp_path, monkeypatch):
  files = {
    "config.py": "  c.seed = 1  # of everything\n  c.model.fusion = part('fusion')\n".replace("'", '"'),
    "fusion/bottleneck.py": "",
    "fusion/other.py": 'class Config:\n  """Sizes."""\n\n  width: int = 128  # of other\n',
    "parts.py": 'class Part:\n  tunable: tuple = (".*",)  # all\n',
  }
  (tmp_path / "fusion").mkdir()
  for name, text in files.items():
    (tmp_path / name).write_text(text)
  monkeypatch.setattr(words, "_PACKAGE", tmp_path)
  chosen = {"seed": 2, "model": {"fusion": {"new": 1, "width": 64, "tunable": (), "name": "other"}}}
  assert [" ".join(line.split()) for line in words.config_text(chosen).splitlines()] == [
    "seed = 2 of everything",
    "model.fusion.name = 'other' chosen after the colon of --config; there is bottleneck, other",
    "model.fusion.tunable = () all",
    "model.fusion.width = 64 of other",
    "model.fusion.new = 1",
  ]


def test_a_config_is_a_name_or_a_path(tmp_path, monkeypatch):
  (tmp_path / "own.py").write_text(
    "from mma_dfer_jax.config import default_config\n"
    "from mma_dfer_jax.errors import UserError\n\n"
    "def get_config(words=''):\n"
    "  if words == 'wrong':\n"
    "    raise UserError('there is no such variant')\n"
    "  c = default_config()\n"
    "  c.data.name = words or 'nothing'\n"
    "  return c\n"
  )
  monkeypatch.chdir(tmp_path)
  parser = _ConfigParser("config")
  for given, name in (("own.py", "nothing"), ("./own.py:a=b,c=d", "a=b,c=d"), ("dfew", "dfew")):
    assert parser.parse(given).data.name == name
  with pytest.raises(errors.UserError, match=r"^there is no such variant$"):
    parser.parse("own.py:wrong")
  shipped = f"neither a file nor a config that comes with the program ({', '.join(CONFIGS)})"
  for given in ("dfwe", "configs/dfew.py", "dfwe:fusion=none"):
    status, _, err = run("train", f"--config={given}", "--workdir=x", at=tmp_path)
    assert (status, err) == (2, f"error: flag --config={given}: {shipped}\n")
  (tmp_path / "dfew").mkdir()  # a folder of that name is no config
  config = parser.parse("dfew:fusion=none,temporal=mean")
  assert (config.data.name, config.model.fusion.name, config.model.temporal.name) == ("dfew", "none", "mean")
