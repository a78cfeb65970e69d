"""Every command that stands in README.md and docs/ runs, on small data; so do the tutorials and the examples of parts."""

import csv
from fnmatch import fnmatchcase
import importlib.util
import json
import os
from pathlib import Path
import re
import shlex
import shutil
import subprocess
import sys

import archives
from conftest import GOLDEN, ONE_DEVICE, ROOT, golden_json
import make_weights
import numpy as np
import pytest
from torch_files import write_torch_file

pytestmark = pytest.mark.slow

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FACE_MODEL = next((ROOT.parent / "shared/models").glob("*yunet*.onnx"), None)
# What runs elsewhere, or needs what no test has: where.
ELSEWHERE = {
  "./launch.sh demo": "installs and trains for minutes; its commands stand in docs/demo.md and launch.sh",
  "./launch.sh test": "this",
  "./launch.sh install gpu": "downloads CUDA",
  "./launch.sh page*": "test_demo_page.py",
  "./launch.sh tpu *": "test_launch.py, as a dry run",
  "./launch.sh slurm *": "test_launch.py, as a dry run",
  "*--coordinator=*": "test_hosts.py",
  "*few_labels*": "test_pretrain.py",
  "*configs/mae_dfer.py*": "needs MAE-DFER's checkpoint; its encoder and files: test_lgi.py, weights/test_mae_dfer.py",
  "*:image=lgi*": "test_lgi.py, at sizes that fit its regions",
  "*:head=text*": "parts/test_text_head.py, which writes class vectors",
  "*--model=runs/text*": "parts/test_text_head.py",
}
# One layer of the golden tiny model: the sizes of the small pretraining files.
TINY = ["inputs.image_size=32", "inputs.num_frames=4", "batch_size=4", "num_epochs=1", "micro_batch=-1", "remat=none",
        "data.num_workers=0", "model.prompts.layers_per_stage=1", "model.fusion.width=16", "model.temporal.width=32",
        "model.temporal.mlp_dim=64"]  # fmt: skip
TINY += [
  f"model.{s}.{field}"
  for s in ("image", "audio")
  for field in ("depth=1", "width=48", "heads=4", "mlp_dim=192")
]


def blocks(path: Path, language: str = "") -> list[str]:
  """Code blocks of a document: ``` fences of a language; for "", fences without one and what is indented by four."""
  text = path.read_text()
  fenced = re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)
  if language:
    return fenced
  return fenced + re.findall(r"(?:^    .*\n)+", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S), re.M)


def commands() -> list[str]:
  """What a reader would type: `python -m …` and `./launch.sh …`, each once, in order."""
  found: dict[str, None] = {}
  for block in (block for path in DOCUMENTS for block in blocks(path)):
    for line in re.sub(r"\\\n\s*", "", block).splitlines():
      if re.match(r"\s*(DRY_RUN=1 )?(python -m mma_dfer_jax|\./launch\.sh)", line):
        found[line.split(" #")[0].strip()] = None
  return list(found)


def smaller(module: str, args: list[str]) -> list[str]:
  """The same command on less data, with a smaller model; what comes last wins."""
  config = next((arg for arg in args if arg.startswith("--config=")), "")
  args = [
    path
    for arg in args
    for path in (sorted(map(str, Path().glob(arg))) if "*" in arg and arg[0] != "-" else [arg])
  ]
  match module:
    case "data.demo":
      args += ["--clips_per_class_train=2", "--clips_per_class_test=1"]
    case "data.prepare" if "--faces=yunet" in args:
      args += [f"--face_model={FACE_MODEL}"] if FACE_MODEL else ["--check"]
    case "predict" if "--model=models/dfew_fold1" in args:  # it wants faces cut out, as DFEW's are
      args += [f"--face_model={FACE_MODEL}"] if FACE_MODEL else ["--faces=none"]
    case "benchmark" if "--loading" in args:
      args += ["--clips=4", "--repeats=1", "--num_workers=0"]
    case "benchmark":
      args += ["--image_size=32", "--depth=1"] * (not config) + ["--batch_size=2", "--repeats=1", "--precision=float32",
               "--remat=none", "--num_workers=0"] + ["--steps=eval"] * ("--steps=train" not in args)  # fmt: skip
    case "ablate":
      args += [
        "--rows=no_fusion",
        "--seeds=1",
        "--config.data.data_dir=runs/demo/data" if "demo" in config else "",
      ]
    case "folds":
      args += ["--folds=1,2"]
    case "pretrain":
      stream = "image_size=32" if "frames" in config else "audio_shape=(64,128)"
      sizes = [
        f"model.{part}.{field}"
        for part in ("encoder", "decoder")
        for field in ("depth=1", "width=48", "heads=4", "mlp_dim=192")
      ]
      small = [f"inputs.{stream}", "num_steps=1", "batch_size=4", "data.num_workers=0", *sizes]
      return [*args, *(f"--config.{field}" for field in small)]
  if config:
    gone = [place for place in ("fusion", "temporal") if re.search(rf"{place}=|no_{place}", config)]
    fields = [field for field in TINY if not any(f"model.{place}." in field for place in gone)]
    args += [f"--config.{field}" for field in fields]
  if "frame_mask" in config:  # of frames and layers that TINY leaves
    half = ("image.depth=2", "audio.depth=2", "frame_mask.keep=3")
    args += [f"--config.model.{field}" for field in half]
  return [arg for arg in args if arg]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
  """A copy of the project that parts may be written into."""
  folder = tmp_path_factory.mktemp("checkout")
  for name in ("mma_dfer_jax", "configs", "tests", "docs"):
    shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
  shutil.copy(ROOT / "pyproject.toml", folder)
  return folder


@pytest.fixture(scope="module")
def python(checkout, cache, tmp_path_factory):
  """Runs `python -m …`, or a script, in a folder; what it prints."""
  out = tmp_path_factory.mktemp("printed") / "printed"
  variables = {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(cache), "XLA_FLAGS": ONE_DEVICE,
               "PYTHONPATH": str(checkout)}  # fmt: skip
  with subprocess.Popen([sys.executable, ROOT / "tests/fork_server.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                        text=True, env=os.environ | variables) as server:  # fmt: skip

    def run(folder: Path, *args: str, **what: str) -> str:
      out.unlink(missing_ok=True)
      job = {**what, "args": args, "cwd": str(folder), "out": str(out)}
      print(json.dumps(job), file=server.stdin, flush=True)
      status, printed = server.stdout.readline().strip(), out.read_text()
      assert (status, "Traceback" in printed) == ("0", False), f"{what} {shlex.join(args)}\n{printed}"
      return printed

    yield run
    server.stdin.close()


@pytest.fixture(scope="module")
def home(tmp_path_factory, python):
  """A folder with what the documents speak of: videos and a manifest, archives, files of weights; and a way to run."""
  folder = tmp_path_factory.mktemp("reader")
  (folder / "configs").symlink_to(ROOT / "configs")

  def run(module: str, *args: str) -> str:
    return python(folder, *args, module=f"mma_dfer_jax.{module}")

  # As ./launch.sh demo does.
  run("data.demo", "--out=runs/demo/clips", "--clips_per_class_train=2", "--clips_per_class_test=1")
  run("data.prepare", "--manifest=runs/demo/clips/clips.csv", "--data_dir=runs/demo/data")
  shutil.copytree(folder / "runs/demo/clips", folder / "videos")
  make_inputs(folder)
  return folder, run


def make_inputs(folder: Path) -> None:
  with open(folder / "videos/clips.csv", newline="") as file:
    clips = [(f"videos/{row['path']}", row["label"], row["split"]) for row in csv.DictReader(file)]
  for name, split in (("anna 01.mp4", "train"), ("ben 07.mov", "test")):
    number = next(i for i, clip in enumerate(clips) if clip[2] == split)
    shutil.copy(folder / clips[number][0], folder / "videos" / name)
    clips[number] = (f"videos/{name}", *clips[number][1:])
  (folder / "clips.csv").write_text("\n".join(map(",".join, [("path", "label", "split"), *clips])) + "\n")
  (folder / "more").mkdir()
  shutil.copytree(folder / "videos/test", folder / "films")
  for name in ("more/a.mp4", "clip.mp4", "film.mp4"):
    shutil.copy(folder / clips[0][0], folder / name)
  for path, label, _ in clips:
    place = folder / "by_class" / label
    place.mkdir(parents=True, exist_ok=True)
    shutil.copy(folder / path, place)
  archives.dfew(folder)
  for number, clip in enumerate((folder / "DFEW-part2/Clip/clip_224x224").iterdir()):
    archives.write_picture(clip / "0.jpg", 25 + number)  # were all clips the same, the doctor would say so
  archives.mafw(folder, folders=("frames",))
  archives.ravdess(folder / "RAVDESS", range(1, 3))
  archives.cremad(folder / "CREMA-D", range(1001, 1004))
  for path in (*(folder / "RAVDESS").rglob("*.mp4"), *(folder / "CREMA-D").rglob("*.flv")):
    shutil.copy(folder / clips[0][0], path)
  for path in (folder / "CREMA-D").rglob("*.wav"):
    archives.write_wav(path)
  shutil.copy(GOLDEN / "tiny_reference_checkpoint.pth", folder / "dfew_fold1.pth")
  about = golden_json("checkpoint")["tiny_checkpoint_forward"]
  images, audio, _ = make_weights.make_inputs(about["inputs_seed"], about["batch"], about["img_size"])
  logits = np.load(GOLDEN / "tiny_checkpoint_forward.npz")["logits"]
  np.savez(folder / "known.npz", images=images, audio=audio, logits=logits)
  for name, classes in (
    ("class_vectors", sorted({label for _, label, _ in clips})),
    ("other_names", ["laughs", "weeps"]),
  ):
    vectors = np.eye(len(classes), 512, dtype=np.float32)
    np.savez(folder / f"{name}.npz", classes=np.array(classes), vectors=vectors, source="a test")
  for name, spec, seed in (("mae_face_pretrain_vit_base", "maeface", 102), ("pretrained", "audiomae", 101)):
    state = make_weights.make_state_dict(golden_json(f"spec_{spec}_tiny"), seed)
    state = {key: value for key, value in state.items() if not re.match(r"blocks\.[1-9]", key)}
    write_torch_file(folder / f"{name}.pth", {"model": state, "epoch": 400})


def test_every_command(home, monkeypatch):
  folder, run = home
  monkeypatch.chdir(folder)
  there, ran = commands(), set()
  assert len(there) > 35
  for command in there:
    if any(fnmatchcase(command, pattern) for pattern in ELSEWHERE):
      continue
    words = shlex.split(command)
    if words[0] == "./launch.sh":
      module, *args = words[1:]
      if module in ("folds", "ablate"):
        args = [f"--config={args[0]}", f"--runs={args[1]}", *args[2:]]
      module = f"data.{module}" if module in ("prepare", "doctor") else module
    else:
      module, *args = words[2].removeprefix("mma_dfer_jax."), *words[3:]
    no_torch = "--to_torch" in command and not importlib.util.find_spec("torch")
    job = (module, *smaller(module, args))
    if job not in ran and not no_torch and "=mlp,loss=brier" not in command:  # that is of the examples, below
      ran.add(job)
      run(*job)


def test_python_in_the_readme(home, monkeypatch):
  folder, _ = home
  monkeypatch.chdir(folder)
  (code,) = blocks(ROOT / "README.md", "python")
  names: dict = {}
  exec(code, names)
  assert sum(names["answer"].probabilities.values()) == pytest.approx(1, abs=1e-5)


def test_the_examples_of_parts_keep_the_contract(checkout, python):
  text = (checkout / "docs/parts.md").read_text()
  written = re.findall(r"`(mma_dfer_jax/(\w+)/(\w+)\.py)`:\n\n```python\n(.*?)```", text, re.S)
  assert {kind for _, kind, _, _ in written} == {"encoders", "fusion", "heads", "losses"}
  for path, _, _, code in written:
    (checkout / path).write_text(code)
  names = " or ".join(name for _, _, name, _ in written)
  printed = python(checkout, "-p", "no:cacheprovider", "tests/parts", "-k", names, module="pytest")
  assert int(re.search(r"(\d+) passed", printed)[1]) > 20
  for path, *_ in written:
    (checkout / path).unlink()


@pytest.mark.parametrize("path", sorted((ROOT / "docs/tutorials").glob("*.py")), ids=lambda path: path.stem)
def test_tutorials(path, checkout, python):
  python(checkout, path=str(checkout / "docs/tutorials" / path.name))
