"""What pretraining reads: every frame and every stretch of sound of a pass once, in an order that seed and position give."""

import functools
import io
import os
import pickle
import shutil
import subprocess
import sys

from archives import prepare, refused
from conftest import ROOT
from films import hum, noise, write_data_set, write_film
import numpy as np
from PIL import Image
import pytest
from tensorflow_datasets.core.utils import shard_utils

from mma_dfer_jax.data import doctor, records, unlabelled, wire
from mma_dfer_jax.data.data_set import open_data_set
from mma_dfer_jax.data.fbank import spectrogram
from mma_dfer_jax.data.pipeline import stream_batches
from mma_dfer_jax.data.unlabelled import (
  Crops,
  PretrainOrder,
  Sounds,
  draw_crop,
  make_frames,
  make_sounds,
  open_examples,
)
from mma_dfer_jax.inputs import Inputs

SPEC = Inputs(image_size=24, audio_shape=(20, 32))  # 0.2 s of sound
RATES = (8000, 16_000, 44_100)


def seconds(i):
  """Of clip i: none, or a little less than i stretches."""
  return 0.2 * i - 0.01 if i % 4 else 0.0


def picture(i, k):
  """Of frame k of clip i: red says which clip, green which frame, blue is noise."""
  pixels = np.random.default_rng([i, k]).integers(0, 256, (30 + i, 40, 3), np.uint8)
  pixels[..., 0], pixels[..., 1] = 20 * i, 20 * k
  return pixels


def png(pixels):
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, "PNG")
  return file.getvalue()


def clip(i):
  """i frames, of which clip 5 has none; and samples as loud as its number."""
  rate = RATES[i % 3] if seconds(i) else 0
  sound = np.random.default_rng(i).integers(-2000 * i, 2000 * i, round(seconds(i) * rate), np.int16, True)
  return {"clip_id": f"{i}.mp4", "label": "", "split": f"fold{1 + i % 2}", "waveform": sound, "sample_rate": rate,
          "frames": [png(picture(i, k)) for k in range(0 if i == 5 else i)]}  # fmt: skip


@pytest.fixture(scope="module")
def data_set(tmp_path_factory):
  """Ten clips in two folds, without labels, each fold in three files."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(shard_utils.ShardConfig, "get_number_shards", lambda *given, **named: 3)
    folder = write_data_set(tmp_path_factory.mktemp("data"), [clip(i) for i in range(1, 11)], [])
  assert len(list(folder.rglob("*fold1.array_record*"))) == 3
  return open_data_set(folder, "clips", labelled=False)


def images(data_set, **how):
  examples = open_examples(data_set, "fold1+fold2", "image")
  return PretrainOrder(examples, **{"seed": 3, "batch_size": 8, "num_steps": 12} | how)


def sounds(data_set, **how):
  examples = open_examples(data_set, "fold1+fold2", "audio", SPEC.audio_shape[0])
  return PretrainOrder(examples, **{"seed": 3, "batch_size": 8, "num_steps": 12} | how)


def test_every_frame_is_found(data_set):
  """The index is about the records that tfds has shuffled into several files."""
  examples = open_examples(data_set, "fold1+fold2", "image")
  colours = [tuple((examples.picture(i)[-1, -1, :2] // 20).tolist()) for i in range(len(examples))]
  assert sorted(colours) == [(i, k) for i in range(1, 11) if i != 5 for k in range(i)]
  assert examples.clips == 9
  for split, clips in (("fold1", (2, 4, 6, 8, 10)), ("fold2", (1, 3, 7, 9))):
    assert len(open_examples(data_set, split, "image")) == sum(clips)


def test_every_sound_is_found_once_for_each_stretch(data_set):
  examples = open_examples(data_set, "fold1+fold2", "audio", SPEC.audio_shape[0])
  found = [examples.sound(i) for i in range(len(examples))]
  expected = {i: clip(i) for i in range(1, 11) if seconds(i)}
  heard = [
    next(i for i, one in expected.items() if np.array_equal(one["waveform"], samples))
    for samples, _, _ in found
  ]
  assert sorted(zip(heard, (place for _, _, place in found), strict=True)) == [
    (i, k) for i in expected for k in range(i)
  ]
  assert all(rate == expected[i]["sample_rate"] for i, (_, rate, _) in zip(heard, found, strict=True))
  assert examples.clips == len(expected) == 8


@pytest.mark.parametrize(
  "numbers", [[], [0], [-1], [127, 128, -128, 32767, -32768, 16384, -16385, 2**14 - 1]]
)
def test_integers_come_back(numbers):
  value = memoryview(b"".join(wire.field(1, *wire.varints(np.array(numbers, np.int16)))) if numbers else b"")
  assert wire.integers(value, np.int16).tolist() == numbers
  assert wire.number_of_integers(value) == len(numbers)


class Many(unlabelled.Examples):
  """So many examples of nothing."""

  def __init__(self, number):
    self.__dict__["number"] = number

  def __len__(self):
    return self.number


@pytest.mark.parametrize("number", [1, 2, 47, unlabelled.FEW + 1])
def test_each_pass_is_an_order_of_its_own(number):
  def one_pass(seed, turn):
    order = PretrainOrder(Many(number), seed, 4, 9)
    return tuple(order.example_at(turn * number + i) for i in range(number))

  passes = {one_pass(seed, turn) for seed, turn in ((0, 0), (0, 1), (1, 0), (0, 0))}
  assert all(sorted(one) == list(range(number)) for one in passes)
  assert len(passes) == 3 or number < 3
  assert tuple(range(number)) not in passes or number < 3


def test_an_order_of_any_length_costs_nothing():
  order = PretrainOrder(Many(4_000_000_000), 5, 256, 10)
  found = [order.example_at(i) for i in range(10**15, 10**15 + 200)]
  assert len(set(found)) == 200
  assert min(found) < 10**9 < 3 * 10**9 < max(found)


def batches(make, order, augmentation, start_step=0, num_workers=0, prefetch=2):
  of = functools.partial(make, order, SPEC, augmentation)
  with stream_batches(of, start_step, order.num_steps, num_workers=num_workers, prefetch=prefetch) as found:
    return [next(iter(batch.values())) for batch in found]


KINDS = [(make_frames, images, Crops()), (make_sounds, sounds, Sounds())]


@pytest.mark.parametrize(("make", "kind", "augmentation"), KINDS)
def test_hosts_threads_cache_and_first_step_change_no_batch(data_set, monkeypatch, make, kind, augmentation):
  whole = batches(make, kind(data_set), augmentation)
  assert len(whole) == 12
  assert (
    len({one.tobytes() for batch in whole for one in batch}) == 96
  )  # in every pass something else is drawn
  for hosts in (2, 4):
    shares = [
      batches(make, kind(data_set, host=host, num_hosts=hosts), augmentation) for host in range(hosts)
    ]
    np.testing.assert_array_equal(np.concatenate(shares, axis=1), whole)
  np.testing.assert_array_equal(
    batches(make, kind(data_set), augmentation, start_step=7, prefetch=1), whole[7:]
  )
  monkeypatch.setattr(unlabelled, "CACHE", 2000)
  np.testing.assert_array_equal(batches(make, kind(data_set, num_steps=9), augmentation), whole[:9])
  other = batches(make, kind(data_set, seed=4, num_steps=9), augmentation)
  assert not any(np.array_equal(a, b) for a, b in zip(other, whole, strict=False))


def test_whole_pictures(data_set):
  """Without crops: the picture as PIL brings it to the model's size, bicubic."""
  order = images(data_set)
  video = make_frames(order, SPEC, None, 1)["video"]
  assert (video.shape, video.dtype) == ((8, 1, 24, 24, 3), np.uint8)
  for (found,), position in zip(video, order.positions(1), strict=True):
    pixels = order.examples.picture(order.example_at(position))
    np.testing.assert_array_equal(found, Image.fromarray(pixels).resize((24, 24), Image.Resampling.BICUBIC))


def test_crops_are_cut_resized_and_mirrored(data_set):
  order = images(data_set)
  for flip in (0.0, 1.0):
    crops = Crops(scale=(0.3, 0.5), flip=flip)
    for (found,), position in zip(
      make_frames(order, SPEC, crops, 2)["video"], order.positions(2), strict=True
    ):
      pixels = order.examples.picture(order.example_at(position))
      box, mirrored = draw_crop(*pixels.shape[:2], crops, order.rng_at(position))
      expected = np.asarray(Image.fromarray(pixels[box]).resize((24, 24), Image.Resampling.BICUBIC))
      np.testing.assert_array_equal(found, expected[:, ::-1] if flip else expected)
      assert mirrored == bool(flip)


def test_crops_keep_to_their_ranges():
  rng, crops = np.random.default_rng(0), Crops()
  drawn = [draw_crop(300, 400, crops, rng) for _ in range(2000)]
  sizes = np.array([[part.stop - part.start for part in box] for box, _ in drawn])
  for box, _ in drawn:
    assert all(0 <= part.start < part.stop <= most for part, most in zip(box, (300, 400), strict=True))
  areas, ratios = sizes.prod(1) / 120_000, sizes[:, 1] / sizes[:, 0]
  assert 0.198 < areas.min() < 0.22 < 0.9 < areas.max() <= 1
  assert 0.74 < ratios.min() < 0.77 < 1.3 < ratios.max() < 1.35
  assert abs(np.mean([flip for _, flip in drawn]) - 0.5) < 0.05
  starts = np.array([[part.start for part in box] for box, _ in drawn]) / (np.array([300, 400]) - sizes + 1)
  assert abs(starts.mean() - 0.5) < 0.03
  for height, width, expected in ((10, 1000, (10, 13)), (1000, 10, (13, 10)), (1, 1, (1, 1))):
    (rows, columns), _ = draw_crop(height, width, crops, rng)  # nothing else fits
    assert (rows.stop - rows.start, columns.stop - columns.start) == expected
    assert abs(rows.start + rows.stop - height) <= 1
    assert abs(columns.start + columns.stop - width) <= 1


def test_sounds_as_in_training(data_set):
  """Without augmentation: each stretch by itself, the last one full; the first as training has it."""
  order = sounds(data_set, batch_size=40)
  found = make_sounds(order, SPEC, None, 0)["spectrogram"]
  assert (found.shape, found.dtype) == ((40, 20, 32), np.float32)
  for one, position in zip(found, order.positions(0), strict=True):
    samples, rate, stretch = order.examples.sound(order.example_at(position))
    start = min(stretch * 20 * (rate // 100), max(0, len(samples) - (rate // 40 + 19 * (rate // 100))))
    wave = samples[start:].astype(np.float32) / 32768
    np.testing.assert_allclose(one, spectrogram(wave, rate, *SPEC.audio_shape), atol=2e-4)


def heard(folder, seconds, spec):
  """Where in 256 drawn stretches of a silence with one click in its middle the loudest row is, and how loud, in nepers."""
  wave = np.zeros(round(16_000 * seconds), np.int16)
  wave[len(wave) // 2 :][:400] = np.random.default_rng(0).integers(-9000, 9000, 400)
  one = {"clip_id": "a", "label": "", "split": "train", "frames": [], "waveform": wave, "sample_rate": 16_000}
  if not folder.exists():
    write_data_set(folder, [one], [])
  examples = open_examples(open_data_set(folder, "clips", labelled=False), "train", "audio", 20)
  assert len(examples) == -(-len(wave) // 3200)
  loud = make_sounds(PretrainOrder(examples, 1, 256, 9), SPEC, spec, 3)["spectrogram"].mean(axis=2)
  return loud.argmax(axis=1), loud.max(axis=1) * 4.5689974  # twice, of energies


def test_sounds_are_rolled_and_made_louder(tmp_path):
  still = Sounds(roll=False, gain=False)
  places, plain = heard(tmp_path / "a", 0.2, still)
  assert len(set(places)) == len(set(plain)) == 1
  places, _ = heard(tmp_path / "a", 0.2, Sounds(gain=False))
  assert len(set(places)) > 15
  places, loud = heard(tmp_path / "a", 0.2, Sounds(roll=False))
  factors = np.exp(loud - plain)
  assert len(set(places)) == 1
  assert 0.5 <= factors.min() < 0.8 < 1.2 < factors.max() <= 1.5
  assert abs(factors.mean() - 1) < 0.03
  assert 0.08 < factors.std() < 0.13  # of Beta(10, 10): 0.109


def test_long_sounds_begin_anywhere(tmp_path):
  """Of 4 s, where 0.2 s are taken, the click is in one stretch of twenty, anywhere in it."""
  places, loud = heard(tmp_path / "a", 4, Sounds(roll=False, gain=False))
  with_click = loud > loud.min() + 1
  assert 0.02 < with_click.mean() < 0.1
  assert len(set(places[with_click])) > 4


def test_what_cannot_be_pretrained_on(data_set, tmp_path):
  for i, (place, words) in enumerate(
    (
      (4, "has no sound to pretrain on, only frames, in the 1 clip of train"),
      (5, "has no frames to pretrain"),
    )
  ):
    folder = write_data_set(tmp_path / str(i), [clip(place) | {"split": "train"}], [])
    with refused(words):
      open_examples(open_data_set(folder, "clips", labelled=False), "train", ("audio", "image")[i])
  with refused("has no split test; it has fold2, fold1"):
    open_examples(data_set, "fold1+test", "image")
  shutil.copytree(data_set.path.parent.parent, tmp_path / "old")
  for file in (tmp_path / "old").rglob("index-*"):
    file.unlink()
  with refused("prepare it again with --overwrite"):
    open_examples(open_data_set(tmp_path / "old", "clips", labelled=False), "fold1", "image")


def test_a_damaged_frame_is_named(tmp_path):
  one = clip(3) | {"frames": [png(picture(3, 0)), b"\xff\xd8 nothing"], "split": "train"}
  examples = open_examples(
    open_data_set(write_data_set(tmp_path, [one], []), "clips", labelled=False), "train", "image"
  )
  assert examples.picture(0).shape == (33, 40, 3)
  with refused(r"clip 3.mp4 cannot be read: .*prepare the data again with --overwrite"):
    examples.picture(1)


def test_a_folder_of_films_and_sounds(tmp_path):
  """What has pictures is for one encoder, what has sound for the other, whatever the names of the files say."""
  films = tmp_path / "films"
  (films / "deep").mkdir(parents=True)
  write_film(films / "both.mkv", noise(5), hum(0.5))
  write_film(films / "deep/silent.mp4", noise(3, seed=1), codec="libx264", pixels="yuv420p")
  write_film(films / "voice.wav", [], hum(0.7))
  write_film(films / "sound in a film.mkv", [], hum(0.9), sound_codec="flac")
  out = prepare(f"--manifest={films}", f"--data_dir={tmp_path}", "--keep_times", "--max_frames=4")
  assert (
    "clips without pictures: only pretraining on sound takes them (2): sound in a film.mkv, voice.wav" in out
  )
  assert "clips without sound: only pretraining on frames takes them: deep/silent.mp4" in out
  data_set = open_data_set(tmp_path, "clips", labelled=False)
  held = {r["clip_id"].decode(): (len(r["frames"]), len(r["waveform"])) for r in data_set.records("train")}
  assert held == {
    "both.mkv": (4, 8000),
    "deep/silent.mp4": (3, 0),
    "voice.wav": (0, 11_200),
    "sound in a film.mkv": (0, 14_400),
  }
  frames, sounds = (open_examples(data_set, "train", stream, 20) for stream in ("image", "audio"))
  assert (len(frames), frames.clips, len(sounds), sounds.clips) == (7, 2, 3 + 4 + 5, 3)
  seen, unreadable = doctor.examine(data_set, 1)
  assert unreadable == []
  assert doctor.diagnose(data_set, "clips", seen, []).verdict.startswith("fit for pretraining only")
  with refused("for pretraining"):
    open_data_set(tmp_path, "clips")
  write_film(films / "short.wav", [], hum(0.01))
  out = prepare(f"--manifest={films}", f"--data_dir={tmp_path}", "--overwrite", status=1)
  assert "short.wav: no audio stream, or less than 25 ms in it, and no pictures\nfix them" in out


def test_long_clips_become_several_records(tmp_path, monkeypatch):
  """Whoever takes a frame reads its record; pictures and sound stay together, and nothing is lost."""
  monkeypatch.setattr(records, "PART_BYTES", 20_000)
  film = clip(10) | {
    "split": "train",
    "clip_id": "film",
    "sample_rate": 100,
    "waveform": np.arange(9050, dtype=np.int16),
  }
  total = sum(map(len, film["frames"]))
  talk = film | {"clip_id": "talk", "frames": [], "waveform": np.arange(1999, dtype=np.int16)}
  data_set = open_data_set(write_data_set(tmp_path / "a", [film, talk], []), "clips", labelled=False)
  number = max(-(-total // 20_000), 4)
  assert number > 1
  held = {r["clip_id"].decode(): r for r in data_set.records("train")}
  assert held.keys() == {"talk", *(f"film ({k} of {number})" for k in range(1, number + 1))}
  parts = [held[f"film ({k} of {number})"] for k in range(1, number + 1)]
  assert [frame for part in parts for frame in part["frames"]] == film["frames"]
  np.testing.assert_array_equal(np.concatenate([part["waveform"] for part in parts]), film["waveform"])
  assert max(len(part["waveform"]) for part in parts) <= 2 * 20 * 100
  assert (data_set.splits, data_set.clips, data_set.without_sound) == (
    {"train": number + 1},
    {"train": {"": number + 1}},
    {"train": 0},
  )
  labelled = write_data_set(tmp_path / "b", [film | {"label": "x"}], ["x"])
  assert len(open_data_set(labelled, "clips").records("train")) == 1


SCRIPT = """
from absl import flags
flags.FLAGS.mark_as_parsed()  # grain asks for it
if __name__ == "__main__":  # workers import this file, too
  import functools, pickle, sys
  import numpy as np
  from mma_dfer_jax.data.pipeline import stream_batches
  for make, order, inputs, augmentation in pickle.load(open(sys.argv[1], "rb")):
    of = functools.partial(make, order, inputs, augmentation)
    with stream_batches(of, 3, order.num_steps, num_workers=order.num_hosts, prefetch=1) as batches:
      pickle.dump([np.array(next(iter(batch.values()))) for batch in batches], sys.stdout.buffer)
"""


@pytest.mark.slow
def test_workers_change_no_batch(data_set, tmp_path):
  """One for frames, two for the second host's sounds, from a step that is no multiple of their number."""
  (tmp_path / "script.py").write_text(SCRIPT)
  given = [(make, kind(data_set, num_hosts=hosts, host=hosts - 1), SPEC, augmentation)
           for hosts, (make, kind, augmentation) in enumerate(KINDS, 1)]  # fmt: skip
  expected = [batches(make, order, augmentation, 3) for make, order, _, augmentation in given]
  (tmp_path / "given").write_bytes(pickle.dumps(given))
  assert (tmp_path / "given").stat().st_size < 9000  # what is open and kept here is not sent
  out = subprocess.check_output([sys.executable, tmp_path / "script.py", tmp_path / "given"], stderr=subprocess.DEVNULL,
                                env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=120)  # fmt: skip
  stream = io.BytesIO(out)
  for found in expected:
    np.testing.assert_array_equal(pickle.load(stream), found)
