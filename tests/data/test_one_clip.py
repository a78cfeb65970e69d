"""Whatever happens at one clip is that clip's problem: the others are decoded, and all problems are named at once."""

import ctypes

from archives import prepare, read, refused
from clip_files import contents, make, manifest
from commands import load
import pytest

from mma_dfer_jax.data import media
from mma_dfer_jax.data.source import in_lines
from mma_dfer_jax.errors import UserError

MODULE = load("data.prepare")


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
  folder = tmp_path_factory.mktemp("clips")
  for i, name in enumerate("abc"):
    make(folder / f"{name}.mp4", 20 * (i + 1))
  return folder


@pytest.mark.parametrize(
  ("raised", "said"),
  [(ValueError("31 is not\na valid Type"), r"cannot be decoded \(ValueError: 31 is not a valid Type\)"),
   (RecursionError("deep"), "RecursionError: deep"), (MemoryError(), "does not fit into the memory"),
   (OSError(5, "Input/output error"), "b.mp4: Input/output error"), (UserError("b.mp4: so"), "b.mp4: so"),
   (SystemError("\x1b[2J"), r"SystemError: \\x1b\[2J")],
)  # fmt: skip
@pytest.mark.parametrize("at", ["pictures", "sound", "opening"])
def test_what_a_library_raises(clips, tmp_path, monkeypatch, raised, said, at):
  functions = {
    "pictures": (media.Picture, "pixels"),
    "sound": (media, "_as_int16"),
    "first look": (os, "stat"),
  }
  place, name = functions[at]
  old, reading = getattr(place, name), []

  def opened(path, *how, **more):
    reading.append(str(path))
    return decoded(path, *how, **more)

  def fails(*given, **more):
    if reading[-1].endswith("b.mp4"):
      raise raised
    return old(*given, **more)

  decoded = media._opened
  monkeypatch.setattr(media, "_opened", opened)
  monkeypatch.setattr(place, name, fails)
  path = manifest(
    clips, [("a", "x", "train"), ("b", "x", "train"), ("c", "x", "test"), ("none", "x", "test")]
  )
  out = prepare("--manifest", path, "--data_dir", tmp_path, status=1)
  assert "2 of 4 clips" in out
  assert "line 5: none.mp4" in out
  (line,) = [line for line in out.splitlines() if "line 3: b.mp4" in line]
  with refused(said):
    raise UserError(line)
  assert "Traceback" not in out
  prepare("--manifest", path, "--data_dir", tmp_path, "--allow_bad=2")
  assert contents(tmp_path) == {"a.mp4": ("train", "x"), "c.mp4": ("test", "x")}


@pytest.mark.slow
def test_a_clip_that_ends_its_process(clips, tmp_path, monkeypatch):
  """As faults in libraries do: with two processes it costs nothing but itself."""
  path = manifest(clips, [("a", "x", "train"), ("b", "x", "train"), ("c", "x", "test")])
  layout = read("clips", path)
  layout.clips.append(Fatal(**vars(layout.clips[0]) | {"clip_id": "fatal.mp4", "where": "line 5"}))
  clips, problems = MODULE.decode_all(layout.clips, tmp_path, MODULE.Decoding(), 2)
  assert [clip.clip_id for clip in clips] == ["a.mp4", "b.mp4", "c.mp4"]
  assert in_lines(problems) == [
    "line 5: fatal.mp4: ended the process that decoded it: a fault in a library, or too little memory"
  ]


class Fatal(MODULE.ClipFiles):
  """Ends whatever process unpacks it and asks for its video."""

  def __getattribute__(self, name):
    if name == "pictures":
      ctypes.string_at(0)
    return super().__getattribute__(name)


HOSTILE = {
  "a\0b.mp4": "NUL", "n" * 300 + ".mp4": "more than 255 bytes", "p/" * 3000 + "a.mp4": "path", "9" * 5000: "255 bytes",
  "~nobody_of_this_name/a.mp4": "home folder", "https://example.org/a.mp4": "address", r"C:\clips\a.mp4": "Windows",
  "a\x1b[2Jb.mp4": "No such file", ".": "folder", "/dev/zero": "device", "a.mp4/b.mp4": "Not a directory",
}  # fmt: skip


def test_hostile_paths_in_a_manifest(clips, tmp_path):
  rows = [f"{path},x,train" for path in HOSTILE]
  out = prepare("--manifest", manifest(clips, [*rows, "a.mp4,x,train"]), "--data_dir", tmp_path, status=1)
  assert f"{len(HOSTILE)} of {len(HOSTILE) + 1} clips" in out
  lines = {int(line.split()[2].rstrip(":")): line for line in out.splitlines() if line.startswith("  - line")}
  for number, reason in enumerate(HOSTILE.values(), 2):
    assert reason in lines[number], lines[number]
    assert len(lines[number]) < 1000
  assert not set(out) & set("\0\x1b")


def test_a_home_folder_in_a_manifest(clips, tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(clips))
  prepare("--manifest", manifest(tmp_path, ["~/a.mp4,x,train"]), "--data_dir", tmp_path / "data")
  assert contents(tmp_path / "data") == {"~/a.mp4": ("train", "x")}
