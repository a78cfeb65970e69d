"""Whatever happens at one clip is that clip's problem: the others are decoded, and all problems are named at once."""

import ctypes

from archives import prepare, read, refused, write_text
from clip_files import contents, make, manifest
from commands import load
import pytest

from mma_dfer_jax.data import media
from mma_dfer_jax.data.data_set import open_data_set
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
    "sound": (media, "as_int16"),
    "opening": (media.av, "open"),
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
@pytest.mark.parametrize("workers", [1, 2])
def test_a_clip_that_ends_its_process(clips, tmp_path, monkeypatch, workers):
  """As faults in libraries do: it costs nothing but itself."""
  path = manifest(clips, [("a", "x", "train"), ("b", "x", "train"), ("c", "x", "test")])
  layout = read("clips", path)
  layout.clips.append(Fatal(**vars(layout.clips[0]) | {"clip_id": "fatal.mp4", "where": "line 5"}))
  clips, problems = MODULE.decode_all(layout.clips, tmp_path, MODULE.Decoding(), workers)
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
  "a\x1b[2Jb.mp4": "No such file", ".": "folder", "/dev/zero": "device", "a.mp4/b.mp4": "is no folder",
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


def test_names_that_look_alike(clips, tmp_path):
  """Clips that people cannot tell apart are refused, with both names escaped; a difference in case is noted."""
  for name in ("\u00e9.mp4", "e\u0301.mp4", "x\u200b.mp4", "x.mp4", "Y.mp4", "y.mp4", "tr\udcffn.mp4"):
    make(tmp_path / "films" / name, 20)
  out = prepare(f"--manifest={tmp_path}/films", f"--data_dir={tmp_path}/data", status=1)
  assert "5 of 7 clips" in out
  assert (
    r"look alike: 'é.mp4' (written 'e\u0301.mp4') and 'é.mp4' (written '\xe9.mp4'); rename one" in out
    or (r"(written '\xe9.mp4')" in out and r"(written 'e\u0301.mp4')" in out)
  )
  assert r"'x\u200b.mp4'" in out
  assert r"the name 'tr\udcffn.mp4' is not UTF-8; rename it" in out
  assert "note: clips whose names differ in case only (2): Y.mp4, y.mp4" in out


def test_a_table_as_spreadsheets_write_it(clips, tmp_path):
  """Empty columns, blanks and marks that nobody sees, columns and splits in other letters."""
  rows = ["a.mp4,\u200bsad ,\u00a0Train,,", "\u202ab.mp4, joy\ufeff,TEST,,", ",,,,", "\u200b,,\u00a0,"]
  path = manifest(clips, rows, header="\ufeff\ufeffPath,\uff4c\uff41\uff42\uff45\uff4c,Split\u00a0,,")
  out = prepare("--manifest", path, "--data_dir", tmp_path)
  assert contents(tmp_path) == {"a.mp4": ("train", "sad"), "b.mp4": ("test", "joy")}
  assert "not used" not in out
  path = manifest(clips, ["a.mp4,sad,train,a remark"], header="path,label,split,")
  assert "columns without a name hold values that are not used" in prepare(
    "--check", "--manifest", path, status=1
  )
  out = prepare(
    "--check", "--manifest", manifest(clips, ["a.mp4,s\u00adad,train"]), "--classes=sad,joy", status=1
  )
  assert r"label 's\xadad' looks like the class 'sad': write that" in out


def test_speakers_that_look_alike_stay_together(tmp_path):
  for label in ("sad", "joy"):
    for name in ("anna_1", "ANNA 2", "\uff41nna\uff3f3", "an\u200bna-4", "ben_1", "eve_1"):
      write_text(tmp_path / label / f"{name}.mp4")
  layout = read("folders", tmp_path, test_share=0.34, split_by="speaker")
  splits = {clip.split for clip in layout.clips if not clip.clip_id[4:].startswith(("ben", "eve"))}
  assert len(splits) == 1


PACKED = {"films.zip": "is a packed file; unpack it and give the folder", "table.csv": "is a file, not a folder",
          "films2": "there is no such folder, but .*films2.zip is; unpack it", "fi\u200blms": r"but 'films' is"}  # fmt: skip


@pytest.mark.parametrize(("raw", "said"), PACKED.items())
def test_paths_in_another_form(tmp_path, raw, said):
  (tmp_path / "films").mkdir()
  for name in ("films.zip", "films2.zip", "table.csv"):
    (tmp_path / name).touch()
  with refused(said):
    raise UserError(prepare("--check", "--dataset=ravdess", f"--raw={tmp_path}/{raw}", status=1))


@pytest.mark.parametrize(
  ("data", "said"),
  [(b"PK\3\4 xl/workbook.xml", "is a spreadsheet, not a csv; save it as CSV"), (b"PK\3\4", "is a packed file"),
   ("path,label,split\n".encode("utf-16"), "it is UTF-16"), (b"\0\0\0\x18ftypmp42" + 9 * b"\xff", "is no text file"),
   (b"x" * 200_000, "must begin with the line path,label,split")],
)  # fmt: skip
def test_what_is_no_manifest(tmp_path, data, said):
  (tmp_path / "m.xlsx").write_bytes(data)
  out = prepare("--check", f"--manifest={tmp_path}/m.xlsx", status=1)
  assert said in out
  assert len(out) < 1500


@pytest.mark.parametrize("flag", ["data_dir", "manifest", "raw", "lists", "face_model"])
def test_flags_that_are_no_paths(flag):
  out = prepare(f"--{flag}=--overwrite", "--data_dir=x", status=2)
  assert f"flag --{flag}=--overwrite: '--overwrite' looks like a flag" in out


def test_a_folder_that_holds_other_data_sets(clips, tmp_path):
  prepare("--manifest", manifest(clips, ["a.mp4,x,train"]), f"--data_dir={tmp_path}/d")
  for place, name, said in (
    ("none", "clips", "which is not there"), ("d", "dfew", "there is clips: add --name=clips"), ("d/clips", "clips", "part of one: give"),
    ("d/clips/1.0.0", "clips", f"give the folder {tmp_path}/d and the name clips"),
  ):  # fmt: skip
    with refused(said):
      open_data_set(tmp_path / place, name)
