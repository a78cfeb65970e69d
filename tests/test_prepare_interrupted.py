"""What a data set survives while it is made: kill -9 at every moment, a full disk, another process, another data set."""

import os
from pathlib import Path
import resource
import shutil
import signal
import subprocess
import time

from archives import prepare, prepare_clips, refused
from clip_files import assert_same, contents, manifest, nothing_stands, records_of, write_clips
from commands import load, run
from conftest import ROOT
import numpy as np
import pytest
from small_runs import command

from mma_dfer_jax.data.decoding import decode_clip
from mma_dfer_jax.data.records import Clips
from mma_dfer_jax.data.source import ClipFiles

MODULE = load("data.prepare")


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
  return write_clips(tmp_path_factory.mktemp("clips"))


def test_another_prepare_is_at_work(clips, tmp_path):
  """One that would destroy what the first has decoded fails at once, and the first ends well."""
  first, other = (manifest(clips, [(x, "x", "train")], f"{x}.csv") for x in "ab")
  scratch = tmp_path / "clips" / MODULE.SCRATCH
  with MODULE._alone_in(tmp_path / "clips"):
    (scratch / "decoded").mkdir()
    with refused("another prepare is at work there"):
      prepare_clips(other, tmp_path, overwrite=True)
    assert (scratch / "decoded").exists()
    shutil.rmtree(scratch)  # as the first does when all is written
    prepare_clips(first, tmp_path)  # this lock is another file
  prepare_clips(first, tmp_path)
  assert contents(tmp_path) == {"a.mp4": ("train", "x")}


def test_again_and_other_and_overwrite(clips, tmp_path, capsys, monkeypatch):
  first = manifest(clips, [("a", "x", "train"), ("b", "y", "test")], "first.csv")
  other = manifest(clips, [("a", "x", "train"), ("c", "y", "test")], "other.csv")
  own = tmp_path / "clips/2/mine.mp4"  # a user may keep videos there
  own.parent.mkdir(parents=True)
  own.touch()
  prepare_clips(first, tmp_path)
  prepare_clips(first, tmp_path)
  assert "complete already" in capsys.readouterr().out
  for path, settings in (
    (other, {}),
    (first, {"classes": ["y", "x"]}),
    (first, {"allow_missing_sound": True}),
  ):
    with refused("--overwrite"):
      prepare_clips(path, tmp_path, **settings)
  before = contents(tmp_path)

  # While, and after, a new one fails in writing, the old one stays.
  def fails(self, clips):
    yield from list(generate(self, clips))[:-1]
    assert contents(tmp_path) == before
    raise OSError(28, "No space left on device", "somewhere")

  generate = Clips._generate_examples
  with monkeypatch.context() as patch:
    patch.setattr(Clips, "_generate_examples", fails)
    with refused("somewhere cannot be written: No space left"):
      prepare_clips(other, tmp_path, overwrite=True)
  assert contents(tmp_path) == before
  with refused("line 2"):
    prepare_clips(manifest(clips, [("text", "x", "train")]), tmp_path, overwrite=True)
  assert contents(tmp_path) == before

  prepare_clips(other, tmp_path, overwrite=True)
  assert contents(tmp_path) == {"a.mp4": ("train", "x"), "c.mp4": ("test", "y")}
  assert own.exists()
  assert sorted(os.listdir(tmp_path / "clips")) == ["1.0.0", "2"]


def test_killed_between_the_two_renames(clips, tmp_path, monkeypatch, capsys):
  first, other = (manifest(clips, [(x, "x", "train")], f"{x}.csv") for x in "ab")
  prepare_clips(first, tmp_path)
  rename = Path.rename

  def killed(self, to):
    if "replaced" not in str(to) and self.parent.name == "clips" and Path(to).parent == tmp_path / "clips":
      raise KeyboardInterrupt
    return rename(self, to)

  with monkeypatch.context() as patch:
    patch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
      prepare_clips(other, tmp_path, overwrite=True)
  assert nothing_stands(tmp_path)
  prepare_clips(first, tmp_path)  # the old one is back, not made again
  assert "complete already" in capsys.readouterr().out
  assert contents(tmp_path) == {"a.mp4": ("train", "x")}
  assert os.listdir(tmp_path / "clips") == ["1.0.0"]


def test_killed_while_a_clip_is_kept(clips, tmp_path, monkeypatch):
  """What was written by half is not taken for a decoded clip, and goes away."""
  path = manifest(clips, [("a", "x", "train")])
  decoded = tmp_path / "clips/.unfinished/decoded"
  decoded.mkdir(parents=True)
  files = ("a.mp4", "line 2", "x", "train", (), clips / "a.mp4", clips / "a.mp4", decoded / "a.npz")

  def half(file, **arrays):
    file.write(b"PK")
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(np, "savez", half)
    with pytest.raises(KeyboardInterrupt):
      decode_clip(ClipFiles(*files), MODULE.Decoding())
  assert sorted(left.suffix for left in decoded.iterdir()) == [".frames", ".partial"]
  with refused("line 2"):
    prepare_clips(manifest(clips, [("text", "x", "train")], "text.csv"), tmp_path)
  assert not list(decoded.iterdir())
  prepare_clips(path, tmp_path)
  assert contents(tmp_path) == {"a.mp4": ("train", "x")}


def kill(flags, sign):
  """Runs the command until sign() is true, then kill -9, and waits for the processes that decode for it."""
  process = subprocess.Popen(
    command("data.prepare", *flags), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
  )
  children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
  try:
    while not sign():
      assert process.poll() is None, "it was over before it could be killed"
      time.sleep(0.001)
    family = [Path("/proc", child, "stat") for child in children.read_text().split()]
  finally:
    process.kill()
  assert process.wait() == -signal.SIGKILL
  deadline = time.monotonic() + 10
  while any(stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z" for stat in family):
    assert time.monotonic() < deadline, "they would stay for ever"
    time.sleep(0.05)
  return family


@pytest.mark.slow
def test_kill_9_and_again(clips, tmp_path, capsys):
  """Killed while it decodes, and again while it writes; then the records are those of a run that nobody killed."""
  many, data_dir = tmp_path / "videos", tmp_path / "data"
  many.mkdir()
  for i in range(8):
    shutil.copy(clips / "big.mp4", many / f"{i}.mp4")
  path = manifest(many, [(i, i % 3, "test" if i < 4 else "train") for i in range(8)])
  flags, scratch = ["--manifest", path, "--data_dir", data_dir], data_dir / "clips/.unfinished"
  decoded = lambda: len(list(scratch.glob("decoded/*.npz")))  # noqa: E731
  assert kill([*flags, "--num_workers=2"], lambda: decoded() >= 2)
  assert nothing_stands(data_dir)
  assert 2 <= decoded() < 8
  kill([*flags, "--num_workers=1"], lambda: any(scratch.glob("clips/*incomplete*/*")))
  assert nothing_stands(data_dir)
  prepare_clips(path, data_dir)
  assert "8 of 8 clips are decoded already" in capsys.readouterr().out
  assert os.listdir(data_dir / "clips") == ["1.0.0"]
  assert len(contents(data_dir)) == 8
  prepare_clips(path, tmp_path / "fresh")
  assert_same(records_of(data_dir), records_of(tmp_path / "fresh"))
  assert not list(data_dir.rglob("*incomplete*"))


@pytest.mark.parametrize("limit", [2_000, 300_000])
def test_a_full_disk(clips, tmp_path, limit):
  """The limit on the size of a file acts like a full disk: first on decoded clips, then on the data set."""
  for i in range(6):
    shutil.copy(clips / "whole.mp4", tmp_path / f"{i}.mp4")
  path = manifest(tmp_path, [(i, "x", "train") for i in range(6)])
  flags, before = (
    ["--manifest", path, "--data_dir", tmp_path / "data"],
    resource.getrlimit(resource.RLIMIT_FSIZE),
  )
  resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
  try:
    ended, _, err = run("data.prepare", "--num_workers=0", *flags)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
  decoded = list((tmp_path / "data/clips/.unfinished/decoded").glob("*.npz"))
  assert len(decoded) == (0 if limit == 2_000 else 6)
  assert ended == 1
  assert "Traceback" not in err
  assert "File too large" in err
  assert nothing_stands(tmp_path / "data")
  prepare(*flags)
  assert len(contents(tmp_path / "data")) == 6
  assert os.listdir(tmp_path / "data/clips") == ["1.0.0"]


def test_a_folder_that_cannot_be_written(clips, tmp_path):
  (tmp_path / "file").touch()
  with refused("cannot be written: Not a directory"):
    prepare_clips(manifest(clips, [("a", "x", "train")]), tmp_path / "file")
