"""A model as one file: written by the real command, called by a process that has nothing of this project."""

import hashlib
import json
from pathlib import Path
import signal
import subprocess
import sys
import time

from conftest import GOLDEN, ROOT
from model_folders import model_folder
import numpy as np
import pytest

from mma_dfer_jax import load_model

BATCHES = (1, 3)

# Runs the three lines that F.json gives; sys.argv: F.json, inputs, where the logits go.
STRANGER = """
import json, sys
import numpy as np
about = json.load(open(sys.argv[1]))
loaded, inputs, answers = {}, np.load(sys.argv[2]), {}
exec("\\n".join(about["how_to_call"][:2]), loaded)
for b in (1, 3):
  names = {"video": inputs[f"video{b}"], "spectrogram": inputs[f"spectrogram{b}"]}
  exec(about["how_to_call"][2], loaded, names)
  answers[f"logits{b}"] = np.asarray(names["logits"])
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
np.savez(sys.argv[3], **answers)
"""

# The command, once for each line of flags on stdin, without starting anew: sys.exit ends each.
MANY = """
import json, sys
from absl import flags
from absl.testing import flagsaver
from mma_dfer_jax import cli, export
for line in sys.stdin:
  before = flagsaver.save_flag_values()
  sys.argv = ["export", *json.loads(line)]
  status = 0
  try:
    cli.run(export.main)
  except SystemExit as end:
    status = end.code or 0
  flagsaver.restore_flag_values(before)
  print(f"exit status {status}", file=sys.stderr, flush=True)
"""


def command(*flags: object) -> list[str]:
  return [sys.executable, "-m", "mma_dfer_jax.export", *map(str, flags)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
  return model_folder(tmp_path_factory.mktemp("export") / "model")


def test_killed_then_whole_then_called_with_jax_alone(folder, tmp_path):
  out = tmp_path / "new folder" / "tiny.jax"
  started = command(f"--model={folder}", f"--out={out}")
  partial = out.with_name("tiny.jax.partial")
  with subprocess.Popen(started, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as killed:
    deadline = time.monotonic() + 100
    while not partial.exists() and killed.poll() is None and time.monotonic() < deadline:
      time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
  assert killed.returncode == -signal.SIGKILL
  assert [file.name for file in out.parent.iterdir()] == [partial.name]  # and nothing under the final names

  done = subprocess.run(started, cwd=ROOT, capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stdout + done.stderr
  assert sorted(file.name for file in out.parent.iterdir()) == ["tiny.jax", "tiny.jax.json"]
  about = json.loads(out.with_name("tiny.jax.json").read_text())
  assert f"largest difference of a logit: {about['checked']['largest_difference']:.1e}" in done.stdout
  assert all(line in done.stdout for line in about["how_to_call"][::2])
  content = out.read_bytes()
  assert (about["bytes"], about["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
  model = load_model(folder)
  assert about["class_order"].startswith("DFEW")
  assert about["precision"] == "float32"
  exported = load_model(out)  # what `predict --model=tiny.jax` asks
  facts = ("inputs", "streams", "classes", "class_order", "recipe", "origin", "precision")
  assert all(getattr(exported.about, name) == getattr(model.about, name) for name in facts)

  inputs = {}
  rng = np.random.default_rng(5)
  for b in BATCHES:
    inputs[f"video{b}"] = rng.integers(0, 256, (b, *model.about.inputs.video_shape), np.uint8)
    inputs[f"spectrogram{b}"] = rng.standard_normal((b, *model.about.inputs.audio_shape), np.float32)
  np.savez(tmp_path / "inputs.npz", **inputs)
  files = [f"{out.name}.json", str(tmp_path / "inputs.npz"), str(tmp_path / "logits.npz")]
  # -P and another folder: nothing of this checkout is on the path by accident.
  stranger = [sys.executable, "-P", "-c", STRANGER, *files]
  done = subprocess.run(stranger, cwd=out.parent, capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stdout + done.stderr
  answers = np.load(tmp_path / "logits.npz")
  for b in BATCHES:
    logits = answers[f"logits{b}"]
    assert (logits.shape, logits.dtype) == ((b, 7), np.float32)
    batch = inputs[f"video{b}"], inputs[f"spectrogram{b}"]
    np.testing.assert_allclose(logits, model(*batch), atol=1e-5, rtol=0)
    np.testing.assert_allclose(logits, exported(*batch), atol=1e-6, rtol=0)


def test_what_a_user_can_fix_is_said_and_nothing_is_written(folder, tmp_path):
  there, lonely, empty = tmp_path / "there.jax", tmp_path / "lonely.jax", tmp_path / "empty"
  there.write_bytes(b"precious")
  (tmp_path / "lonely.jax.json").write_text("{}")
  empty.mkdir()
  before = sorted(file.name for file in tmp_path.iterdir())
  new = f"--out={tmp_path}/a/new.jax"
  cases = [
    ([], 1, ["--model: the workdir", "--out: the file"]),  # all at once
    ([f"--model={folder}", f"--out={there}"], 1, ["there.jax exists already", "--overwrite"]),
    ([f"--model={folder}", f"--out={lonely}"], 1, ["lonely.jax.json exists already"]),
    ([f"--model={folder}", f"--out={empty}"], 1, ["is a folder"]),
    ([f"--model={folder}", f"--out={there}/x.jax"], 1, ["there.jax"]),
    ([f"--model={folder}", new, "--platforms=cpu,gpu"], 1, ["gpu cannot", "choose from cpu, cuda, tpu"]),
    ([f"--model={folder}", new, "--platforms="], 1, ["choose from cpu, cuda, tpu"]),
    ([f"--model={folder}", new, "--platforms=cuda"], 1, ["lacks cpu"]),
    ([f"--model={empty}", new], 1, ["is no model that can be opened", "the workdir of a run"]),
    ([f"--model={GOLDEN}/tiny_reference_checkpoint.pth", new], 1, ["must be converted first"]),
    ([f"--model={folder}", new, "--precision=int8"], 1, ["choose one of float32, bfloat16"]),
    ([f"--model={folder}", new, "--step=best"], 1, ["has no steps"]),
    (
      [f"--model={folder}", f"--out={tmp_path}/x.jax", "--platforms=cpu"],
      1,
      ["differ by up to", "nothing was written"],
    ),
    ([f"--model={folder}", new, "extra"], 2, ["unexpected arguments: extra"]),
    ([f"--model={folder}", new, "--platform"], 2, ["platform"]),
  ]
  too_strict = (
    "from mma_dfer_jax import export; export.TOLERANCE = {'float32': -1.0}\n"  # no export is good enough
  )
  lines = "".join(json.dumps(flags) + "\n" for flags, _, _ in cases)
  done = subprocess.run(
    [sys.executable, "-c", too_strict + MANY],
    cwd=ROOT,
    input=lines,
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr
  assert "Traceback" not in done.stderr
  printed = done.stderr.split("exit status ")
  assert len(printed) == len(cases) + 1, done.stderr
  for (flags, status, words), said, after in zip(cases, printed, printed[1:], strict=False):
    assert after.startswith(f"{status}\n"), (flags, said, after)
    for word in words:
      assert word in said, (flags, said)
  assert sorted(file.name for file in tmp_path.iterdir()) == before
  assert there.read_bytes() == b"precious"


def test_a_full_disk_leaves_what_was_there(folder, tmp_path):
  """No file may grow beyond 0.1 MB in this process: the artifact has more. --overwrite must not cost the old one."""
  out = tmp_path / "tiny.jax"
  out.write_bytes(b"old")
  flags = [f"--model={folder}", f"--out={out}", "--overwrite", "--platforms=cpu"]
  limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (10**5, 10**5))\n"
  done = subprocess.run(
    [sys.executable, "-c", limit + MANY], cwd=ROOT, input=json.dumps(flags),
    capture_output=True, text=True, timeout=300,
  )  # fmt: skip
  assert f"error: cannot write {out}: File too large\nexit status 1" in done.stderr, done.stderr
  assert "Traceback" not in done.stderr
  assert [file.name for file in tmp_path.iterdir()] == ["tiny.jax"]
  assert out.read_bytes() == b"old"
