"""The tutorials with the cell left out that is not for a reader's own data; test_documents.py runs them whole."""

from pathlib import Path
import re
import subprocess
from types import SimpleNamespace

from conftest import ROOT
import pytest

import mma_dfer_jax

YOURS = {"own_videos": {"MANIFEST": "mine/clips.csv"}, "dfew": {"ARCHIVE": "My DFEW"}}


@pytest.mark.parametrize("name", YOURS)
def test_the_cell_that_makes_clips_can_be_left_out(name, tmp_path, monkeypatch):
  """The others name everything that they use, and ask for the reader's data."""
  text = (ROOT / f"docs/tutorials/{name}.py").read_text()
  cells = re.split(r"(?m)^(?=# %%)", text)
  (optional,) = [cell for cell in cells if cell.startswith("# %% Leave this cell out")]
  commands, answer = [], SimpleNamespace(top="sad", probabilities={"sad": 1.0}, warnings=[])
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(subprocess, "run", lambda command, check: commands.append(command[2:]))
  monkeypatch.setattr(mma_dfer_jax, "load_model", lambda path: path, raising=False)
  monkeypatch.setattr(
    mma_dfer_jax, "predict_video", lambda model, video: commands.append([video]) or answer, raising=False
  )
  for path in ("mine/clips.csv", "tutorial_own_videos/run/report.md"):
    Path(path).parent.mkdir(parents=True)
    Path(path).write_text("path,label,split\na.mp4,sad,test\n")
  left = "".join(cell for cell in cells if cell != optional)
  for variable, value in YOURS[name].items():
    left = re.sub(rf"(?m)^{variable} = .*$", f'{variable} = Path("{value}")', left)
  exec(compile(left, name, "exec"), {})
  assert len(commands) > 3
  assert "mma_dfer_jax.data.demo" not in str(commands)
  words = [word for command in commands for word in command]
  assert any(word in words for word in ("--manifest=mine/clips.csv", "--raw=My DFEW"))
  assert ["mine/a.mp4"] in commands or name == "dfew"
