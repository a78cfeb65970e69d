"""Engines: whether each opens what it should and answers as JAX does; `export`, whose file needs nothing of this project."""

import hashlib
import importlib
import json
from pathlib import Path
import resource
import shutil
import signal
import subprocess
import sys
import time
from unittest import mock

import commands
from conftest import GOLDEN, ROOT
from flax import nnx
import jax
from model_folders import model_folder
import numpy as np
import pytest

from mma_dfer_jax import MmaDfer, load_model
from mma_dfer_jax.data.demo import clip_picture, clip_voice, write_clip
from mma_dfer_jax.engines import engine, stablehlo
from mma_dfer_jax.engines.engine import Engine, check_inputs, describe
from mma_dfer_jax.errors import UserError
from mma_dfer_jax.inputs import Inputs
from mma_dfer_jax.onnx_graph.file import read

NAMES = {path.stem for path in Path(engine.__file__).parent.glob("*.py")} - {"__init__", "engine"}

# Runs the three lines that F.json gives; sys.argv: F.json, inputs, where the logits go.
STRANGER = """
import json, sys
import numpy as np
about = json.load(open(sys.argv[1]))
loaded, inputs = {}, np.load(sys.argv[2])
exec("\\n".join(about["how_to_call"][:2]), loaded)
names = {"video": inputs["video"], "spectrogram": inputs["spectrogram"]}
exec(about["how_to_call"][2], loaded, names)
ours = [name for name in sys.modules if name.split(".")[0] in ("flax", "mma_dfer_jax", "orbax", "einops")]
assert not ours, ours
exported = loaded["jax"].export.deserialize(open(about["file"], "rb").read())
assert list(exported.platforms) == about["platforms"] == ["cpu", "cuda", "tpu"]
assert exported.calling_convention_version == about["calling_convention_version"]
assert [str(aval.dtype) for aval in exported.in_avals] == [one["dtype"] for one in about["arguments"]]
for aval, one in zip((*exported.in_avals, *exported.out_avals), (*about["arguments"], about["output"])):
  assert [size if isinstance(size, int) else str(size) for size in aval.shape] == one["shape"]
products = [line for line in exported.mlir_module().splitlines() if "stablehlo.dot_general" in line]
assert len(products) > 20
assert all("precision = [HIGHEST, HIGHEST]" in line for line in products)
np.save(sys.argv[3], names["logits"])
"""


KNOWN = {"typical": {"seconds": [1.5, 4.0], "shape": [1.0, 1.8]}, "temperature": 1.25}  # by a run


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
  path = model_folder(tmp_path_factory.mktemp("engines") / "model")
  facts = json.loads((path / "model.json").read_text()) | KNOWN
  (path / "model.json").write_text(json.dumps(facts))
  return path


@pytest.fixture(scope="module", autouse=True)
def keeps_compiled_programs():
  """Exporting frees the copies of the weights that compiled programs hold; those of other tests would be compiled again."""
  with (
    mock.patch.object(commands.load("export"), "_free_constants"),
    mock.patch.object(commands.load("export"), "CHECKED_BATCHES", (1,)),
  ):
    yield


def run_export(*flags: object) -> tuple[int, str, str]:
  """Runs the command within this process, and takes back what it sets in JAX."""
  cached = jax.config.jax_enable_compilation_cache
  try:
    return commands.run("export", *flags)
  finally:
    jax.config.update("jax_enable_compilation_cache", cached)


@pytest.fixture(scope="module")
def exported(folder) -> dict[str, tuple[Path, str]]:
  """The exported file and what the command printed, by precision; float32 for all platforms."""
  found = {}
  for precision, platforms in (("float32", "cpu,cuda,tpu"), ("bfloat16", "cpu")):
    out = folder.parent / "new folder" / f"{precision}.jax"
    how = f"--precision={precision}", f"--platforms={platforms}"
    status, printed, errors = run_export(f"--model={folder}", f"--out={out}", *how)
    assert status == 0, errors
    found[precision] = out, printed
  return found


@pytest.fixture(scope="module")
def in_onnx(folder) -> dict[str, tuple[Path, str]]:
  """The ONNX file and what the command printed, by precision."""
  found = {}
  for precision, how in (("float32", []), ("int8", ["--quantise=int8"])):
    out = folder.parent / "onnx" / f"{precision}.onnx"
    status, printed, errors = run_export(f"--model={folder}", f"--out={out}", "--format=onnx", *how)
    assert status == 0, errors
    found[precision] = out, printed
  return found


@pytest.fixture(scope="module")
def paths(folder, exported, in_onnx) -> dict[str, Path]:
  """Something to open for each engine; a new one needs an entry here."""
  onnx = in_onnx["float32"][0]
  return {"jax": folder, "stablehlo": exported["float32"][0], "onnxruntime": onnx, "openvino": onnx}


@pytest.fixture(scope="module")
def engines(paths, exported) -> dict[str, Engine]:
  """Loaded and compiled once."""
  found = {name: load_model(path, engine=name) for name, path in paths.items()}
  return found | {"bfloat16": load_model(exported["bfloat16"][0])}


def batch(inputs: Inputs, clips: int = 3):
  rng = np.random.default_rng(3)
  video = rng.integers(0, 256, (clips, *inputs.video_shape), np.uint8)
  return video, 0.5 * rng.standard_normal((clips, *inputs.audio_shape), np.float32)


@pytest.mark.slow
def test_every_engine_opens_its_own_and_answers_as_jax(paths, engines):
  assert paths.keys() == NAMES
  reference = engines["jax"]
  inputs = batch(reference.about.inputs)
  expected = reference(*inputs)
  assert np.abs(expected[0] - expected[1]).max() > 1e-2, "two clips, two answers"
  for name, path in paths.items():
    modules = {other: importlib.import_module(f"mma_dfer_jax.engines.{other}") for other in NAMES}
    assert {other for other in NAMES if modules[other].opens(path)} == {
      k for k, p in paths.items() if p == path
    }
    answering = engines[name]
    assert answering.name == name
    assert isinstance(answering, Engine)
    assert type(answering).__module__ == modules[name].__name__
    assert answering.about == describe(path, engine=name)
    assert answering.about.known == KNOWN
    for field in ("inputs", "streams", "classes", "class_order", "recipe", "origin", "precision"):
      assert getattr(answering.about, field) == getattr(reference.about, field), field
    logits = answering(*inputs)
    assert (logits.shape, logits.dtype) == ((3, 7), np.float32)
    np.testing.assert_allclose(logits, expected, atol=1e-5, rtol=0)
    text = repr(answering)
    assert len(text.splitlines()) == 5
    for words in (str(path), "happy, sad", "(B, 16, 32, 32, 3)", "precision: float32"):
      assert words in text
    with pytest.raises(UserError, match="has no steps"):
      load_model(path, step="best")


@pytest.mark.slow
def test_the_precision_is_kept_unless_another_is_asked_for(paths, engines):
  exact, half, exported = engines["jax"], load_model(paths["jax"], precision="bfloat16"), engines["bfloat16"]
  inputs = batch(exact.about.inputs)
  dtypes = {str(leaf.dtype) for leaf in jax.tree.leaves((half.tunable, half.frozen))}
  assert dtypes == {"bfloat16", "float32"}, "the classifier stays in float32"
  expected, coarse, of_file = (each(*inputs) for each in (exact, half, exported))
  assert 1e-4 < np.abs(coarse - expected).max() < 0.2
  assert exported.about.precision == "bfloat16"
  np.testing.assert_allclose(of_file, coarse, atol=0.02)
  assert np.abs(of_file - expected).max() > 1e-4
  assert json.loads(stablehlo.json_beside(exported.path).read_text())["precision"] == "bfloat16"
  with pytest.raises(UserError, match=r"exported in bfloat16; for float32 export the model again"):
    load_model(exported.path, precision="float32")
  with pytest.raises(UserError, match="precision='int8': choose one of float32, bfloat16"):
    load_model(paths["jax"], precision="int8")


@pytest.mark.slow
def test_floating_pixels_are_those_of_uint8(engines):
  video, sound = batch(engines["jax"].about.inputs)
  floats = video / np.float32(255)
  np.testing.assert_allclose(engines["jax"](floats, sound), engines["jax"](video, sound), atol=1e-5)
  with pytest.raises(UserError, match="was exported for uint8 video"):
    engines["stablehlo"](floats, sound)


@pytest.mark.slow
def test_int8_is_near_and_says_how_near(engines, in_onnx):
  path, printed = in_onnx["int8"]
  small, (video, sound) = load_model(path), batch(engines["jax"].about.inputs)
  assert (small.about.precision, small.name) == ("int8", "onnxruntime")
  logits, expected = small(video, sound), engines["jax"](video, sound)
  assert 1e-4 < np.abs(logits - expected).max() < 0.1
  for i in range(3):  # whatever else is answered at once: integers are scaled clip by clip
    np.testing.assert_array_equal(small(video[i : i + 1], sound[i : i + 1]), logits[i : i + 1])
  found = read(path).said["agreement"]
  assert (len(found["clips"]), found["another_top_class"]) == (7, [])
  assert 0 < found["largest_probability_difference"] < 0.05
  assert f"largest difference of a logit {found['largest_logit_difference']:.1e}" in printed
  assert path.stat().st_size < 0.7 * in_onnx["float32"][0].stat().st_size


@pytest.mark.slow
def test_int8_beyond_the_limit_is_refused_also_on_clips_of_the_user(folder, tmp_path):
  clip = tmp_path / "mine.mp4"
  rng = np.random.default_rng(0)
  write_clip(clip, rng.integers(0, 256, (20, 32, 32, 3), np.uint8), None, 10, 16000)
  how = f"--model={folder}", f"--out={tmp_path}/small.onnx", "--format=onnx", "--quantise=int8"
  status, _, errors = run_export(*how, f"--clips={clip}", "--limit=0.000001")
  assert status == 1
  for words in ("on 1 clip:", "more than --limit=1e-06; nothing was written"):
    assert words in errors
  assert [file.name for file in tmp_path.iterdir()] == ["mine.mp4"]


@pytest.mark.slow
def test_combinations_that_do_not_exist_are_said_in_a_sentence(paths, in_onnx, exported, tmp_path):
  onnx, int8, jax_file = paths["onnxruntime"], in_onnx["int8"][0], exported["float32"][0]
  for path, how, words in [
    (onnx, {"engine": "jax"}, "--engine=jax opens the workdir of a run .* is for --engine=onnxruntime"),
    (
      paths["jax"],
      {"engine": "openvino"},
      "openvino opens an ONNX file that export wrote .*is for --engine=jax",
    ),
    (jax_file, {"engine": "onnxruntime"}, "is for --engine=stablehlo"),
    (onnx, {"engine": "tensorrt"}, "'tensorrt': choose one of jax, onnxruntime, openvino, stablehlo"),
    (onnx, {"precision": "int8"}, "for int8 export the model again with --format=onnx --quantise=int8"),
    (onnx, {"precision": "bfloat16"}, "only --engine=openvino computes a float32 file in bfloat16"),
    (onnx, {"precision": "int8", "engine": "openvino"}, "in float32 or bfloat16; int8 is for onnxruntime"),
    (int8, {"engine": "openvino"}, "int8.onnx is int8: choose --engine=onnxruntime"),
    (int8, {"precision": "float32"}, "for float32 export the model again without --quantise"),
    (paths["jax"], {"precision": "int8"}, "int8 is for files: export --format=onnx --quantise=int8"),
  ]:
    with pytest.raises(UserError, match=words):
      load_model(path, **how)
  damaged = tmp_path / "damaged.onnx"
  content = bytearray(onnx.read_bytes())
  a_class = content.index(b'"happy"') + 3  # in the description, which stays JSON
  for place, words in (
    (-9, "is damaged; export"),
    (len(content) // 2, "is damaged; export"),
    (a_class, "is damaged; export"),
  ):
    damaged.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place:][1:])
    with pytest.raises(UserError, match=words):
      load_model(damaged)
  damaged.write_bytes(content[: len(content) // 2])
  with pytest.raises(UserError, match="is damaged; export"):
    load_model(damaged)
  damaged.write_bytes(content[:50])
  with pytest.raises(UserError, match="is no model that can be opened"):
    load_model(damaged)


@pytest.mark.slow
def test_bfloat16_by_openvino(paths, engines):
  from openvino import Core

  if "BF16" not in Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
    with pytest.raises(UserError, match="does not compute in bfloat16"):
      load_model(paths["openvino"], engine="openvino", precision="bfloat16")
    return
  half, inputs = (
    load_model(paths["openvino"], engine="openvino", precision="bfloat16"),
    batch(engines["jax"].about.inputs),
  )
  assert 1e-4 < np.abs(half(*inputs) - engines["jax"](*inputs)).max() < 0.1
  assert "precision: bfloat16" in repr(half)


@pytest.mark.slow
def test_an_onnx_file_answers_without_what_trains(in_onnx, exported, tmp_path):
  """No module of [train] can be imported; nor `onnx`."""
  write_clip(tmp_path / "a.mp4", clip_picture("raised", rng := np.random.default_rng(0), 20),
             clip_voice("soft", rng, 1.0), 20, 16000)  # fmt: skip
  lacks = ["jax", "jaxlib", "flax", "grain", "onnx", "tensorflow_datasets", "orbax", "scipy", "matplotlib", "librosa", "numba",
           "sklearn", "psutil", "einops", "optax", "safetensors"]  # fmt: skip
  command = [sys.executable, "-c", f"import runpy, sys; sys.modules.update(dict.fromkeys({lacks})); "
             "import mma_dfer_jax.data.arrays; runpy.run_module('mma_dfer_jax.predict', run_name='__main__', alter_sys=True)",
             f"--model={in_onnx['int8'][0]}", f"--out={tmp_path}/out", f"{tmp_path}/a.mp4"]  # fmt: skip
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
  answer = json.loads((tmp_path / "out/a.json").read_text())
  assert (answer["model"]["engine"], answer["model"]["precision"]) == ("onnxruntime", "int8")
  assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-5)
  for more, words in (
    ["--window=1", "pip install matplotlib"],
    [f"--model={ROOT}/tests", "mma_dfer_jax[train]"],
    [f"--model={exported['float32'][0]}", "mma_dfer_jax[train]"],
  ):
    done = subprocess.run([*command, more], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, "Traceback" in done.stderr, words in done.stderr) == (1, False, True), (
      done.stderr
    )


def test_wrong_inputs_are_all_named():
  inputs = Inputs(image_size=32, audio_shape=(64, 32))
  video, sound = batch(inputs)
  check_inputs(inputs, video, sound)
  check_inputs(inputs, video / 255.0, sound)
  nan = sound.copy()
  nan[0, 0, 0] = np.nan
  for given, words in [
    ((video[:1], sound), ["1 videos, 3 spectrograms"]),
    ((video[:0], sound[:0]), ["at least one"]),
    ((video[:, :5], nan), [r"video must be \(B, 16, 32, 32, 3\); it is \(3, 5, 32, 32, 3\)", "NaN"]),
    ((video.astype("i4"), sound[..., :8]), ["it is int32, 0 to 255", r"spectrogram must be \(B, 64, 32\)"]),
    ((video.astype(np.float32), sound), [r"floating point in \[0, 1\]; it is float32, 0.0 to 255.0"]),
    ((video * np.nan, sound.astype(np.int16)), ["nan", "spectrogram must be floating point; it is int16"]),
  ]:
    for word in words:
      with pytest.raises(UserError, match=word):
        check_inputs(inputs, *given)


@pytest.mark.slow
def test_what_cannot_be_opened_is_said(paths, tmp_path):
  with pytest.raises(UserError, match=r"(?s)nowhere does not exist; a model is:.*run\.json.*model\.json"):
    load_model(tmp_path / "nowhere")
  with pytest.raises(UserError, match="must be converted first"):
    load_model(GOLDEN / "tiny_reference_checkpoint.pth")
  (tmp_path / "run.json").write_text(json.dumps({"version": "0.1.0"}))
  with pytest.raises(UserError, match=r"written by mma_dfer_jax 0\.1\.0"):
    load_model(tmp_path)
  for file in (paths["stablehlo"], stablehlo.json_beside(paths["stablehlo"])):
    shutil.copy(file, tmp_path / file.name)
  copy = tmp_path / paths["stablehlo"].name
  copy.write_bytes(copy.read_bytes() + b"x")
  with pytest.raises(UserError, match=r"is damaged, or .* describes another file"):
    load_model(copy)
  stablehlo.json_beside(copy).write_text("{}")
  with pytest.raises(UserError, match="export the model again"):
    load_model(copy)


@pytest.mark.slow
def test_jax_starts_only_when_something_is_opened():
  code = "import sys, mma_dfer_jax, mma_dfer_jax.engines.engine, mma_dfer_jax.engines.stablehlo; assert 'jax' not in sys.modules"
  subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.slow
def test_a_model_prints_in_five_lines(engines):
  answering = engines["jax"]
  model = nnx.merge(answering.graphdef, answering.tunable, answering.frozen)
  assert isinstance(model, MmaDfer)
  assert len(str(model).splitlines()) == len(repr(model).splitlines()) == 5
  for words in (
    "image encoders/mae",
    "fusion fusion/bottleneck",
    answering.parameters().split(",")[0],
    "classes: 7",
  ):
    assert words in repr(model)


@pytest.mark.slow
def test_killed_it_leaves_no_file_under_its_final_name(folder, tmp_path):
  command = [sys.executable, "-m", "mma_dfer_jax.export", f"--model={folder}", f"--out={tmp_path}/tiny.jax"]
  partial = tmp_path / "tiny.jax.partial"
  with subprocess.Popen([*command, "--platforms=cpu"], cwd=ROOT, stdout=subprocess.DEVNULL) as killed:
    deadline = time.monotonic() + 100
    while not partial.exists() and killed.poll() is None and time.monotonic() < deadline:
      time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
  assert killed.returncode == -signal.SIGKILL
  assert [file.name for file in tmp_path.iterdir()] == [partial.name]


@pytest.mark.slow
def test_it_is_called_with_jax_alone(engines, exported, tmp_path):
  out, printed = exported["float32"]
  assert {file.name for file in out.parent.iterdir()} == {
    f"{p}.jax{e}" for p in exported for e in ("", ".json")
  }
  about = json.loads(out.with_name(f"{out.name}.json").read_text())
  assert f"largest difference of a logit: {about['checked']['largest_difference']:.1e}" in printed
  assert all(line in printed for line in about["how_to_call"][::2])
  content = out.read_bytes()
  assert (about["bytes"], about["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
  assert about["class_order"].startswith("DFEW")
  model, again = engines["jax"], engines["stablehlo"]
  video, sound = batch(model.about.inputs)
  np.savez(tmp_path / "inputs.npz", video=video, spectrogram=sound)
  # -P and another folder: nothing of this checkout is on the path by accident.
  files = [f"{out.name}.json", str(tmp_path / "inputs.npz"), str(tmp_path / "logits.npy")]
  stranger = [sys.executable, "-P", "-c", STRANGER, *files]
  done = subprocess.run(stranger, cwd=out.parent, capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stdout + done.stderr
  logits = np.load(tmp_path / "logits.npy")
  assert (logits.shape, logits.dtype) == ((3, 7), np.float32)
  np.testing.assert_allclose(logits, model(video, sound), atol=1e-5, rtol=0)
  np.testing.assert_allclose(logits, again(video, sound), atol=1e-6, rtol=0)


@pytest.mark.slow
def test_what_a_user_can_fix_is_said_and_nothing_is_written(folder, tmp_path):
  there, empty = tmp_path / "there.jax", tmp_path / "empty"
  there.write_bytes(b"precious")
  (tmp_path / "lonely.jax.json").write_text("{}")
  empty.mkdir()
  before = sorted(file.name for file in tmp_path.iterdir())
  model, new = f"--model={folder}", f"--out={tmp_path}/a/new.jax"
  cases = [
    (["--platforms=cuda"], 1, ["--model: give the workdir", "--out: give the file", "lacks cpu"]),
    ([model, f"--out={there}"], 1, ["there.jax exists already", "--overwrite"]),
    ([model, f"--out={tmp_path}/lonely.jax"], 1, ["lonely.jax.json exists already"]),
    ([model, f"--out={empty}"], 1, ["is a folder"]),
    ([model, f"--out={there}/x.jax"], 1, ["there.jax"]),
    ([model, new, "--platforms=cpu,gpu"], 1, ["gpu cannot be exported for", "choose from cpu, cuda, tpu"]),
    ([model, new, "--platforms="], 1, ["choose from cpu, cuda, tpu"]),
    ([f"--model={empty}", new], 1, ["is no model that can be opened", "the workdir of a run"]),
    ([f"--model={GOLDEN}/tiny_reference_checkpoint.pth", new], 1, ["must be converted first"]),
    ([model, new, "--precision=int8"], 1, ["choose one of float32, bfloat16"]),
    (
      [model, new, "--quantise=int8", "--limit=0.1"],
      1,
      ["--quantise does not go with --format=stablehlo", "--limit does not"],
    ),
    (
      [model, new, "--format=onnx", "--platforms=cpu", "--precision=bfloat16", "--limit=1"],
      1,
      [
        "--platforms does not go with --format=onnx",
        "an ONNX file holds float32",
        "--limit goes with --quantise=int8",
      ],
    ),
    ([model, new, "--step=best"], 1, ["has no steps"]),
    ([model, new, "extra"], 2, ["unexpected arguments: extra"]),
    ([model, new, "--platform"], 2, ["platform"]),
  ]
  for flags, expected, words in cases:
    status, _, errors = run_export(*flags)
    assert status == expected, (flags, errors)
    assert "Traceback" not in errors
    for word in words:
      assert word in errors, (flags, errors)
  assert sorted(file.name for file in tmp_path.iterdir()) == before
  assert there.read_bytes() == b"precious"


def test_a_model_is_exported_on_the_cpu(tmp_path):
  """On a machine with a GPU too: what is traced there may call what other platforms lack."""
  platforms = jax.config.values["jax_platforms"]
  try:
    jax.config.update("jax_platforms", "cuda,cpu")
    status, _, errors = run_export(f"--model={tmp_path / 'nowhere'}", f"--out={tmp_path / 'new.jax'}")
    assert (status, jax.config.values["jax_platforms"]) == (1, "cpu"), errors
  finally:
    jax.config.update("jax_platforms", platforms)


@pytest.mark.slow
def test_a_wrong_export_and_a_full_disk_leave_what_was_there(folder, exported, engines, tmp_path):
  """No file may grow beyond 0.1 MB here; the exported one has more. --overwrite must not cost the old one."""
  export, out = commands.load("export"), tmp_path / "tiny.jax"
  out.write_bytes(b"old")
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (10**5, hard))
  try:
    with pytest.raises(UserError, match=f"cannot write {out}: File too large"):
      export.write_artifact(folder, "last", None, out, ["cpu"])
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert [file.name for file in tmp_path.iterdir()] == ["tiny.jax"]
  assert out.read_bytes() == b"old"
  inputs = batch(engines["jax"].about.inputs)
  with pytest.raises(UserError, match=r"(?s)differ by up to.*nothing was written"):
    export.largest_difference(exported["float32"][0], [inputs], [engines["jax"](*inputs) + 1], 0.9)
