"""predict over a folder: many files, features, explanations, and what a timeline comes to."""

import dataclasses
import json
from pathlib import Path
import shutil
import threading
import time

import commands
from films import hum, noise, write_film
from model_folders import model_folder
import numpy as np
from PIL import Image
import pytest

from mma_dfer_jax import load_model
from mma_dfer_jax.cores import own_cores, working_ahead
from mma_dfer_jax.data.fbank import missing_spectrogram
from mma_dfer_jax.data.folder import with_folders
from mma_dfer_jax.engines.engine import About, Engine
from mma_dfer_jax.explain import explain
from mma_dfer_jax.inputs import Inputs
from mma_dfer_jax.prediction import Prediction, Timeline
from mma_dfer_jax.summary import summarise


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
  """Three videos, one of them damaged, in folders and under wrong names; and what is no video."""
  folder = tmp_path_factory.mktemp("many") / "clips"
  (folder / "b/deep").mkdir(parents=True)
  write_film(folder / "b/deep/z.mkv", noise(12), hum(0.5)).rename(folder / "b/deep/z.txt")
  write_film(folder / "b/one.two.mkv", noise(30, seed=1), hum(1.2, seed=1))
  whole = write_film(folder / "a.mkv", noise(20, seed=2), hum(0.8, seed=2)).read_bytes()
  (folder / "a.mkv").write_bytes(whole[: len(whole) // 2])
  Image.fromarray(noise(1)[0]).save(folder / "cover.png")
  (folder / ".hidden.mp4").write_text("words")
  write_film(folder / "b/sound.wav", (), hum(0.5))
  (folder / "b/deep/up").symlink_to(folder)
  return folder


def test_which_files_are_videos(clips):
  (clips / "answers").mkdir()
  shutil.copy(clips / "b/one.two.mkv", clips / "answers")
  videos, notes = with_folders([str(clips), "named.xyz"], str(clips / "answers"))
  assert videos == {f"{clips}/a.mkv": "a", f"{clips}/b/deep/z.txt": "b/deep/z", f"{clips}/b/one.two.mkv": "b/one.two",
                    "named.xyz": "named"}  # fmt: skip
  assert notes == [f"{clips}/.hidden.mp4: is no video", f"{clips}/b/sound.wav: holds no pictures",
                   f"{clips}/cover.png: is a picture"]  # fmt: skip
  shutil.rmtree(clips / "answers")
  (clips.parent / "empty").mkdir()
  assert with_folders([str(clips.parent / "empty")]) == ({f"{clips.parent}/empty": "empty"}, [])


@pytest.mark.slow
def test_a_folder_with_features_and_reasons(clips, tmp_path, monkeypatch):
  from pyarrow import parquet

  folder = model_folder(tmp_path / "model")
  model = load_model(folder)
  monkeypatch.setattr("mma_dfer_jax.engines.engine.load_model", lambda *args, **how: model)
  asked = f"--model={folder}", "--faces=none", f"--out={tmp_path}/out", "--batch_size=2"
  status, out, err = commands.run("predict", *asked, "--features=parquet", "--explain", clips)
  assert status == 1
  for words in (
    "cover.png: is a picture",
    "a.mkv: is",
    "2 files in ",
    " files/s",
    "1 of 3 clips could not be",
  ):
    assert words in out + err
  rows = parquet.read_table(tmp_path / "out/features.parquet").to_pylist()
  assert [Path(row["path"]).stem for row in rows] == ["z", "one.two"]
  for row in rows:
    stem = {"z": "b/deep/z", "one.two": "b/one.two"}[Path(row["path"]).stem]  # as they lie in the folder
    answer = json.loads((tmp_path / f"out/{stem}.json").read_text())
    assert (row["top"], row["end"]) == (answer["top"] or "", answer["end"])
    number, seed = (12, 0) if stem == "b/deep/z" else (30, 1)
    found = model.features(noise(number, seed=seed), hum(0.5 + 0.7 * seed, seed=seed), 16_000, coded=True)
    with np.load(tmp_path / f"out/{stem}.features.npz") as arrays:
      assert list(arrays["classes"]) == list(answer["probabilities"])
      for name, value in found.items():
        np.testing.assert_allclose(arrays[name], value[None], atol=1e-5)
        np.testing.assert_allclose(row[name], value, atol=1e-5)
    shares = np.exp(found["logits"] - found["logits"].max())
    np.testing.assert_allclose(list(answer["probabilities"].values()), shares / shares.sum(), atol=1e-5)
    explained = answer["explanation"]
    assert explained["probability"] == pytest.approx(max(answer["probabilities"].values()), abs=1e-6)
    assert (len(explained["frames"]), set(explained["streams"])) == (16, {"picture", "sound"})
    assert len(explained["gates"]["to sound"]) == 1
    assert Image.open(tmp_path / f"out/{stem}.explained.png").size == (1300, 600)
  assert (
    "2 of 3 clips were answered before"
    in commands.run("predict", *asked, "--features=npz", "--explain", clips)[2]
  )
  status, _, err = commands.run("predict", *asked, "--explain", "--window=1", clips)
  assert (status, "--explain is about whole clips" in err) == (1, True)


@dataclasses.dataclass(frozen=True, repr=False)
class Known(Engine):
  """log-odds of the first of two classes: brightness of frame 2 above 0, and the mean of rows 100 to 199 above silence."""

  def answer(self, video, spectrogram):
    odds = video[:, 2].mean(axis=(1, 2, 3)) + 3 * (spectrogram - missing_spectrogram(250, 4))[
      :, 100:200
    ].mean(axis=(1, 2))
    return np.stack([odds, 0 * odds], axis=1).astype(np.float32)


@pytest.mark.parametrize("batch_size", [1, 5])
def test_what_each_part_adds(batch_size):
  inputs = Inputs(image_size=4, num_frames=4, audio_shape=(250, 4))
  about = About(inputs=inputs, streams=("image", "audio"), classes=("up", "down"), class_order="", recipe={}, origin={},
                precision="float32", fingerprint="")  # fmt: skip
  video = np.zeros(inputs.video_shape, np.uint8) + np.array([1, 2, 6, 4], np.uint8)[:, None, None, None]
  sound = missing_spectrogram(250, 4)
  sound[:220] -= 0.5  # 2.2 s, then padding
  found = explain(Known(about, Path()), video, sound, batch_size=batch_size)
  assert (found.label, found.gates) == ("up", {})
  assert found.probability == pytest.approx(1 / (1 + np.exp(-4.5)))
  assert found.frames == pytest.approx((0, 0, 4, 0))
  assert found.frames_alone == pytest.approx((1, 2, 6, 4))
  assert found.seconds_of_sound == pytest.approx((0, -1.5, 0), abs=1e-6)
  assert found.streams == pytest.approx({"picture": 6, "sound": -1.5})
  silent = explain(Known(about, Path()), video, missing_spectrogram(250, 4), label="down")
  assert (silent.seconds_of_sound, silent.streams) == ((), {"picture": pytest.approx(-6)})


def said(end: float, happy: float, top: str | None = "") -> Prediction:
  shares = {"happy": happy, "sad": 1 - happy}
  named = max(shares, key=shares.__getitem__) if top == "" else top
  return Prediction("a", end - 1, end, named, shares, 25, None, None, True, False, 1.0, 16_000, ())  # type: ignore[arg-type]


@pytest.mark.parametrize(
  ("happy", "expected"),
  [
    ([0.9, 0.45, 0.55, 0.45, 0.9], "hhhhh"),  # flicker
    ([0.9, 0.45, 0.3, 0.45, 0.9], "hsssh"),  # a lead of 0.4, and what led up to it
    ([0.9, 0.45, 0.45, 0.45, 0.55], "hssss"),  # three on end
    ([0.9, 0.8, None, 0.45, 0.55], "hh-ss"),  # withheld: what follows begins anew
  ],
)
def test_the_summary_of_a_timeline(happy, expected):
  windows = tuple(said(k + 1.0, one or 0.5, "" if one else None) for k, one in enumerate(happy))
  summary = summarise(Timeline("a", 5.0, 1.0, 1.0, windows, None, ()))
  names = {"happy": "h", "sad": "s", "not answered": "-"}
  seconds = [(one["end"] - one["start"], names[one["emotion"]]) for one in summary["segments"]]
  assert "".join(round(length) * name for length, name in seconds) == expected
  assert {names[name]: round(5 * share) for name, share in summary["shares"].items()} == {
    name: expected.count(name) for name in dict.fromkeys(expected)
  }
  means = [one["probability"] for one in summary["segments"] if one["emotion"] == "happy"]
  assert means[0] == pytest.approx(
    np.mean([x for x, name in zip(happy, expected, strict=True) if name == "h"][: expected.count("h")]),
    abs=0.3,
  )


def test_threads_that_work_ahead_keep_the_order_and_end_early():
  begun, ended = threading.Event(), threading.Event()

  def work(item, check):
    try:
      while item == 7:
        begun.set()
        check()
        time.sleep(0.001)
    finally:
      if item == 7:
        ended.set()
    return -item

  cores = own_cores()
  with working_ahead(work, range(6), 2) as results:
    assert own_cores() == max(1, cores // 2)
    assert list(results) == [0, -1, -2, -3, -4, -5]
  with working_ahead(work, [1, 7, 2], 1) as results:
    assert next(results) == -1
    assert begun.wait(5)
  assert ended.wait(5)
  assert own_cores() == cores
