"""What users and machines give: paths in every form, streams that are closed or full, cores that are not all ours."""

import os
from pathlib import Path
import signal
import subprocess
import sys

import pytest

from mma_dfer_jax import cores
from mma_dfer_jax.disk import alone_in
from mma_dfer_jax.errors import UserError
from mma_dfer_jax.paths import hint, user_path


@pytest.mark.parametrize(
  ("given", "meant"),
  [("~/dd", "/people/me/dd"), ("dd", "/here/dd"), ("../dd", "/dd"), ("./--dd", "/here/--dd"), ("/a/../b/", "/b"),
   ("~", "/people/me"), ("a b", "/here/a b"), ("a~b", "/here/a~b"), ("C:", "/here/C:")],
)  # fmt: skip
def test_paths_are_absolute(monkeypatch, given, meant):
  monkeypatch.setenv("HOME", "/people/me")
  monkeypatch.setattr(os, "getcwd", lambda: "/here")
  assert user_path(given) == meant


@pytest.mark.parametrize(
  ("given", "reason"),
  [("", "is empty"), (" ", "is empty"), ("a\0b", "NUL"), ("~nobody_of_this_name/dd", "home folder"),
   ("https://a.org/b.zip", "address"), ("gs://bucket/run", "address"), ("--name=clips", "looks like a flag"),
   (r"C:\data\clips", "write /mnt/c/data/clips"), ('"dd"', "quotes"), ("dd ", "blank"), ("a/" + 256 * "b", "255")],
)  # fmt: skip
def test_what_cannot_be_a_path(given, reason):
  with pytest.raises(UserError, match=reason):
    user_path(given)


def test_hints(tmp_path):
  (tmp_path / "a.zip").touch()
  assert "is a packed file" in hint(tmp_path / "a.zip", folder=True)
  assert "a.zip is; unpack it" in hint(tmp_path / "a", folder=True)
  assert hint(tmp_path, folder=False) == "is a folder, not a file"
  assert hint(tmp_path / "b", folder=False) == "is not there"


PRINTS = """
import sys
from pathlib import Path
from mma_dfer_jax.streams import make_lasting
make_lasting()
for stream in (sys.stdout, sys.stderr):
  for _ in range(2):
    print(9999 * "many words \\udcff", file=stream, flush=True)
print("more")
Path(sys.argv[1]).write_text("done")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
  "end", ["| true", "> /dev/full", ">&-", "2>&-", "2> /dev/full | true", "<&- >&- 2>&-"]
)
def test_work_is_finished_whatever_the_streams_do(tmp_path, end):
  done = tmp_path / "done"
  command = [
    "bash",
    "-c",
    f'"$0" -c "$1" "$2" {end}; exit "${{PIPESTATUS[0]}}"',
    sys.executable,
    PRINTS,
    str(done),
  ]
  result = subprocess.run(command, capture_output=True, text=True, check=False)
  assert (result.returncode, done.read_text()) == (0, "done")
  assert "Error" not in result.stderr


@pytest.mark.parametrize(
  ("files", "limit"),
  [({"cpu.max": "max 100000"}, 9), ({"cpu.max": "150000 100000"}, 2), ({"a/cpu.max": "100000 100000"}, 1),
   ({"a/b/cpu.max": "50000 100000", "cpu.max": "max 100000"}, 1),
   ({"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, 2),
   ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 9)],
)  # fmt: skip
def test_cores_that_this_process_may_use(tmp_path, monkeypatch, files, limit):
  monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(9)), raising=False)
  for name, text in files.items():
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(text)
  own = Path(tmp_path / "own")
  own.write_text("0::/a/b\n")
  assert cores.usable_cores(tmp_path, own) == limit


def test_one_process_at_a_time(tmp_path):
  """Of several that start in the same moment one gets the folder; whoever is killed leaves it to the next."""
  go, results = tmp_path / "go", []
  for _ in range(3):
    read, write = os.pipe()
    children = []
    for _ in range(6):
      if not (child := os.fork()):
        try:
          while not go.exists():
            pass
          with alone_in(tmp_path / "run", "training", "--workdir"):
            os.write(write, b"in ")
            signal.pause()
        except UserError as error:
          os.write(
            write, b"kept-out " if "another training is at work there" in str(error) else str(error).encode()
          )
        finally:
          os._exit(0)
      children.append(child)
    go.touch()
    said = ""
    while len(said.split()) < 6:
      said += os.read(read, 1000).decode()
    assert sorted(said.split()) == ["in", *["kept-out"] * 5]
    holder = (tmp_path / "run/lock").read_text()
    with (
      pytest.raises(
        UserError, match=r"process [0-9]+ on .* since .*; wait for it, or choose another --workdir"
      ),
      alone_in(tmp_path / "run", "training", "--workdir"),
    ):
      pass
    results.append(holder)
    for child in children:
      os.kill(child, signal.SIGKILL)
      os.waitpid(child, 0)
    go.unlink()
  assert len(set(results)) == 3
  with alone_in(tmp_path / "run", "training", "--workdir"):
    pass
  assert not list((tmp_path / "run").iterdir())
