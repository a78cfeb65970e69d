"""From records to batches: what a batch holds, that its order follows from seed and step alone, and what goes wrong."""

import contextlib
import inspect
import io
import os
from pathlib import Path
import pickle
import shutil
import signal
import subprocess
import sys
import time

from conftest import ROOT
from films import write_data_set
import numpy as np
from PIL import Image
import pytest

from mma_dfer_jax.data import pipeline
from mma_dfer_jax.data.data_set import open_data_set
from mma_dfer_jax.data.fbank import log_mel_fbank
from mma_dfer_jax.data.pipeline import Augment, EvalOrder, TrainOrder, load_batches, make_example
from mma_dfer_jax.errors import UserError
from mma_dfer_jax.inputs import Inputs

SPEC = Inputs(image_size=24, audio_shape=(64, 32))
MISSING = 0.46703  # what the original feeds for a clip without sound
RATE = 16_000


def jpeg(pixels):
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, "JPEG", quality=95)
  return file.getvalue()


def record(i, frames=17, size=(30, 40), same=False, **other):
  """Noise of its own in every clip; and in every frame, unless they are to be the same."""
  rng = np.random.default_rng([7, i])
  pictures = [jpeg(rng.integers(0, 200, (*size, 3)).astype(np.uint8)) for _ in range(1 if same else frames)]
  sound = rng.integers(-9000, 9000, RATE // 4 + 100 * i).astype(np.int16)
  return {"clip_id": f"clip {i}".encode(), "frames": pictures * frames if same else pictures, "waveform": sound,
          "sample_rate": RATE, "has_audio": True, "label": i % 7} | other  # fmt: skip


@pytest.fixture(scope="module")
def records():
  return [record(i) for i in range(11)]


def train(records, *, seed=1, batch_size=4, num_epochs=3, start_step=0, **host):
  order = TrainOrder(records, seed, batch_size, num_epochs, **host)
  with load_batches(order, SPEC, Augment(), start_step=start_step, num_workers=0, prefetch=2) as batches:
    return list(batches)


def evaluate(records, *, batch_size=4, without="", **host):
  order = EvalOrder(records, 0, batch_size, 1, **host)
  with load_batches(order, SPEC, num_workers=0, prefetch=2, without=without) as batches:
    return list(batches)


def assert_same(one, other):
  assert len(one) == len(other)
  for a, b in zip(one, other, strict=True):
    assert a.keys() == b.keys()
    for key in a:
      assert key == "clip_id" or a[key].dtype == b[key].dtype  # text is as wide as the longest of a batch
      np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def ids(batches):
  return [clip_id.decode() for batch in batches for clip_id in batch["clip_id"]]


CONTRACT = {
  "video": ((16, 24, 24, 3), np.uint8),
  "spectrogram": ((64, 32), np.float32),
  "label": ((), np.int32),
  "has_audio": ((), np.bool_),
  "mask": ((), np.bool_),
}


@pytest.mark.parametrize("batches", [train, evaluate])
def test_the_contract(records, batches):
  found = batches(records)
  assert len(found) == (6 if batches is train else 3)
  for batch in found:
    assert {
      key: (value.shape[1:], value.dtype) for key, value in batch.items() if key != "clip_id"
    } == CONTRACT
    assert {len(value) for value in batch.values()} == {4}
    for clip_id, label, mask in zip(batch["clip_id"], batch["label"], batch["mask"], strict=True):
      assert not mask or label == int(clip_id.split()[1]) % 7  # the label stays with its clip
    assert batch["mask"].all() or batches is evaluate


def by_hand(record, indices):
  """The test transform in the words of the original: PIL, stretched to the square, nothing else."""
  pictures = [Image.open(io.BytesIO(record["frames"][i])).convert("RGB") for i in indices]
  return np.stack([np.asarray(p.resize((24, 24), Image.Resampling.BILINEAR)) for p in pictures])


@pytest.mark.parametrize(("frames", "rate"), [(1, RATE), (5, 44_100), (16, RATE), (17, RATE), (40, 8_000)])
def test_eval_example_by_hand(frames, rate):
  """The sound is taken at the rate of its file."""
  clip = record(3, frames, sample_rate=rate)
  example = make_example(clip, SPEC)
  tick = frames / 16
  chosen = [int(tick / 2 + tick * i) if frames > 16 else min(i, frames - 1) for i in range(16)]
  np.testing.assert_array_equal(example["video"], by_hand(clip, chosen))
  rows = log_mel_fbank(clip["waveform"] / np.float32(32768), rate, num_mel_bins=32)[:64]
  expected = (np.pad(rows, ((0, 64 - len(rows)), (0, 0))) + 4.2677393) / (2 * 4.5689974)
  np.testing.assert_allclose(example["spectrogram"], expected, atol=1e-6)
  assert 0 < len(rows) < 64  # some of it is padding
  again = make_example(clip, SPEC)
  assert all(np.array_equal(example[key], again[key]) for key in example)


def drawn(clip, seed=0, **how):
  return make_example(clip, SPEC, rng=np.random.default_rng(seed), **how)


def plain(clip):
  return make_example(clip, SPEC)


def test_one_augmentation_for_all_frames():
  """If all frames are the same before, they are the same after, whatever was drawn for the clip."""
  clip, before = record(0, same=True), by_hand(record(0, same=True), [0])[0]
  videos = [drawn(clip, seed)["video"] for seed in range(12)]
  for video in videos:
    assert (video == video[0]).all()
    assert not (video[0] == before).all()
  assert len({video.tobytes() for video in videos}) == 12  # other draws, another augmentation
  means = [video.mean() / before.mean() for video in videos]
  assert min(means) < 0.8 < 1.2 < max(means)  # brightness


def test_the_settings_of_the_augmentation_are_used():
  clip = record(0, frames=16, size=(36, 36))
  expected = by_hand(clip, range(16))
  for mirrored in (0.0, 1.0):
    ranges = Augment(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=mirrored, brightness=0.0)
    found = drawn(clip, ranges=ranges)["video"]
    np.testing.assert_array_equal(found, expected[:, :, ::-1] if mirrored else expected)


@pytest.mark.parametrize("example", [drawn, plain])
def test_only_the_chosen_frames_are_decoded(monkeypatch, example):
  decode, decoded = pipeline.decode_frame, []
  monkeypatch.setattr(pipeline, "decode_frame", lambda data: decode(decoded.append(data) or data))
  for frames in (5, 16, 33, 80):
    decoded.clear()
    example(record(0, frames))
    assert len(decoded) == len(set(decoded)) == min(frames, 16)


@pytest.mark.parametrize("example", [drawn, plain])
def test_missing_sound_is_the_constant_of_the_original(example):
  found = example(record(0, waveform=np.zeros(0, np.int16), sample_rate=0, has_audio=False))
  np.testing.assert_allclose(found["spectrogram"], np.full((64, 32), MISSING), atol=1e-5)
  assert not found["has_audio"]


def test_without_sound_or_picture(records):
  whole, deaf, blind = (evaluate(records, without=w) for w in ("", "sound", "picture"))
  for a, b, c in zip(whole, deaf, blind, strict=True):
    assert a["video"][a["mask"]].any()
    assert not c["video"].any()
    assert not b["has_audio"].any()
    np.testing.assert_allclose(b["spectrogram"][a["mask"]], MISSING, atol=1e-5)
    for key in ("label", "mask", "clip_id"):
      np.testing.assert_array_equal(b[key], a[key])
    np.testing.assert_array_equal(b["video"], a["video"])
    assert_same([{**c, "video": a["video"]}], [a])


@pytest.mark.parametrize("batches", [train, evaluate])
def test_any_number_of_hosts_gives_the_same_batches(records, batches):
  for hosts in (2, 4):
    shares = [batches(records, host=host, num_hosts=hosts) for host in range(hosts)]
    steps = zip(*shares, strict=True)
    joined = [{key: np.concatenate([part[key] for part in parts]) for key in parts[0]} for parts in steps]
    assert_same(joined, batches(records))


def test_the_first_step_changes_nothing(records):
  whole = train(records)
  for start_step in (1, 2, 5, 6):
    assert_same(train(records, start_step=start_step), whole[start_step:])


def test_epochs(records):
  """Every epoch is another permutation without the last 11 % 4 clips; another seed gives another one."""
  epochs = [ids(train(records, num_epochs=4)[2 * e : 2 * e + 2]) for e in range(4)]
  for epoch in epochs:
    assert len(set(epoch)) == 8
  assert len({tuple(epoch) for epoch in epochs}) == 4
  assert set().union(*epochs) == {f"clip {i}" for i in range(11)}  # the left out ones change
  assert ids(train(records, num_epochs=1)) == epochs[0]  # whatever the number of epochs
  assert ids(train(records, num_epochs=1, seed=2)) != epochs[0]
  exact = ids(train(records[:8], num_epochs=2))
  assert sorted(exact[:8]) == sorted(exact[8:]) == [f"clip {i}" for i in range(8)]


def test_augmentation_is_fresh_in_every_epoch_and_seed(records):
  def seen(seed):
    batches = train(records[:4], num_epochs=5, seed=seed)
    return [(c, v.tobytes()) for b in batches for c, v in zip(b["clip_id"].tolist(), b["video"], strict=True)]

  first, other_seed = seen(1), seen(2)
  assert len(first) == len(other_seed) == 20
  assert len({*first, *other_seed}) == 40
  assert len({clip for clip, _ in first}) == 4


def test_frames_are_drawn_anew():
  """In training the frame of a segment is drawn: 160 frames, each of one grey."""
  clip = record(0, 160) | {"frames": [jpeg(np.full((30, 30, 3), i, np.uint8)) for i in range(160)]}
  videos = [drawn(clip, seed, ranges=Augment(brightness=0.0))["video"].mean((1, 2, 3)) for seed in range(8)]
  for greys in videos:
    assert (np.abs(greys - (np.arange(16) * 10 + 4.5)) < 7).all()  # one of each segment, in order
  assert len({tuple(np.rint(greys)) for greys in videos}) == 8


@pytest.mark.parametrize(("clips", "hosts"), [(1, 1), (4, 2), (5, 1), (9, 4), (11, 2)])
def test_eval_gives_every_clip_once(records, clips, hosts):
  shares = [evaluate(records[:clips], host=h, num_hosts=hosts) for h in range(hosts)]
  batches = [b for share in shares for b in share]
  mask = np.concatenate([b["mask"] for b in batches])
  assert mask.sum() == clips
  assert len(mask) == 4 * -(-clips // 4)
  found = [c for c, m in zip(ids(batches), mask, strict=True) if m]
  assert sorted(found) == sorted(f"clip {i}" for i in range(clips))
  assert len({len(share) for share in shares}) == 1  # hosts that wait for each other take as many steps
  for batch in batches:
    assert not batch["video"][~batch["mask"]].any()
    assert not batch["has_audio"][~batch["mask"]].any()
  if hosts == 1:
    assert found == [f"clip {i}" for i in range(clips)]


def broken_in_the_middle(records):
  broken = records[5] | {"frames": [data[: len(data) // 2] for data in records[5]["frames"]]}
  return [*records[:5], broken, *records[6:]]


def test_broken_records_are_named(records):
  with pytest.raises(UserError, match=r"clip clip 5 cannot be read: .*prepare the data again"):
    train(broken_in_the_middle(records))
  for change in ({"frames": []}, {"frames": [b"nothing"] * 20}, {"waveform": np.zeros(3, np.int16)}):
    for example in (drawn, plain):
      with pytest.raises(UserError, match="clip clip 9 cannot be read"):
        example(record(9) | change)


@pytest.mark.parametrize("prefetch", [1, 4])
def test_prefetch_bounds_what_is_read_ahead(records, prefetch):
  asked = []

  class Order(TrainOrder):
    def __getitem__(self, index):
      asked.append(index)
      return super().__getitem__(index)

  with load_batches(Order(records, 1, 2, 100), SPEC, Augment(), num_workers=0, prefetch=prefetch) as batches:
    next(batches)
    deadline = time.monotonic() + 20
    while len(asked) < 2 * (1 + prefetch) and time.monotonic() < deadline:
      time.sleep(0.01)
    time.sleep(0.2)
    assert sorted(asked) == list(range(2 * (1 + prefetch)))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  """Six clips of one grey each, in three folds."""
  clips = [
    record(i, 1, clip_id=f"{i}.mp4", label=str(i % 2), split=f"fold{1 + i % 3}")
    | {"frames": [jpeg(np.full((32, 48, 3), 30 * (i + 1), np.uint8))] * 20}
    for i in range(6)
  ]
  return write_data_set(tmp_path_factory.mktemp("data"), clips, ["0", "1"])


def test_a_real_data_set(written):
  data_set = open_data_set(written, "clips")
  training, test = data_set.train_and_test(2)
  assert (training, test) == ("fold1+fold3", "fold2")
  assert set(ids(train(data_set.records(training), batch_size=2))) == {"0.mp4", "3.mp4", "2.mp4", "5.mp4"}
  (batch,) = evaluate(data_set.records(test), batch_size=2)
  assert sorted(ids([batch])) == ["1.mp4", "4.mp4"]
  for clip_id, video, label in zip(ids([batch]), batch["video"], batch["label"], strict=True):
    i = int(clip_id[0])
    assert label == i % 2
    assert abs(video.mean() - 30 * (i + 1)) < 2


def test_a_damaged_file_of_a_data_set_is_an_error(written, tmp_path):
  shutil.copytree(written, tmp_path, dirs_exist_ok=True)
  (file,) = tmp_path.rglob("*fold2.array_record*")
  data = file.read_bytes()
  file.write_bytes(data[:9000] + b"damaged" + data[9007:])
  data_set, order = open_data_set(tmp_path, "clips"), EvalOrder([], 0, 2, 1)
  # Past the tests' check of types, which reads records, too.
  object.__setattr__(order, "records", inspect.unwrap(type(data_set).records)(data_set, "fold2"))
  with pytest.raises(UserError, match=r"record \d cannot be read: .*prepare the data again with --overwrite"):
    [order[i] for i in range(2)]


SCRIPT = """
from absl import flags
flags.FLAGS.mark_as_parsed()  # grain asks for it
if __name__ == "__main__":  # workers import this file, too
  import pickle, sys
  import numpy as np
  from mma_dfer_jax.data.data_set import open_data_set
  from mma_dfer_jax.data.pipeline import Augment, TrainOrder, load_batches
  broken, inputs, data_dir = pickle.load(open(sys.argv[1], "rb"))
  out = sys.stdout.buffer
  try:
    with load_batches(TrainOrder(broken, 1, 4, 3), inputs, Augment(), num_workers=1, prefetch=2) as batches:
      list(batches)
  except Exception as error:
    pickle.dump(f"{type(error).__name__}: {error}", out)
  order = TrainOrder(open_data_set(data_dir, "clips").records("fold1+fold3"), 1, 2, 10_000, host=1, num_hosts=2)
  with load_batches(order, inputs, Augment(), num_workers=2, prefetch=1, start_step=3) as batches:
    for batch in batches:
      pickle.dump({key: np.array(value) for key, value in batch.items()}, out)  # not shared memory
      out.flush()
"""


@pytest.mark.slow
def test_workers(records, written, tmp_path):
  """They change no batch, pass errors on, leave Ctrl-C to the parent and end with it.

  They open the files themselves, from a step that is no multiple of their number, for one of two hosts. Ctrl-C reaches
  the whole group; kill -9 must leave no processes and no shared memory behind.
  """
  (tmp_path / "script.py").write_text(SCRIPT)
  (tmp_path / "given").write_bytes(pickle.dumps((broken_in_the_middle(records), SPEC, written)))
  process = subprocess.Popen([sys.executable, tmp_path / "script.py", tmp_path / "given"], stdout=subprocess.PIPE,
                             stderr=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": str(ROOT)})  # fmt: skip
  try:
    error = pickle.load(process.stdout)
    assert error.startswith("UserError: ")
    assert "clip clip 5 cannot be read: " in error
    found = [pickle.load(process.stdout) for _ in range(3)]
    workers = descendants(process.pid)
    for pid in workers:
      os.kill(pid, signal.SIGINT)
    found += [pickle.load(process.stdout) for _ in range(30)]  # more than was prefetched
    used = {name for pid in [process.pid, *workers] for name in mapped(pid)}
  finally:
    process.kill()
  whole = train(open_data_set(written, "clips").records("fold1+fold3"), batch_size=2, num_epochs=18)
  assert_same(found, [{key: value[1:] for key, value in batch.items()} for batch in whole[3:36]])
  assert len(workers) >= 2
  process.wait()
  deadline = time.monotonic() + 10
  while any(Path(f"/proc/{pid}").exists() for pid in workers):
    assert time.monotonic() < deadline, "workers are left over"
    time.sleep(0.1)
  assert not [name for name in used if Path("/dev/shm", name).exists()]


def test_shared_memory_of_batches_is_freed_at_the_end():
  """Else Python warns of leaked objects when a run with workers ends."""
  from grain._src.python.ipc.shared_memory_array import SharedMemoryArray

  SharedMemoryArray.enable_async_del(1)
  arrays = [SharedMemoryArray((2**20,), np.uint8) for _ in range(30)]
  names = [array.shm.name for array in arrays]
  for array in arrays:
    array.unlink_on_del()
  kept = arrays.pop()
  del arrays, array
  pipeline.free_shared_memory()
  assert [name for name in names if Path("/dev/shm", name).exists()] == [kept.shm.name]
  del kept
  assert not Path("/dev/shm", names[-1]).exists()


def descendants(pid):
  children = [c for task in Path(f"/proc/{pid}/task").glob("*/children") for c in task.read_text().split()]
  return [int(child) for child in children]


def mapped(pid):
  with contextlib.suppress(OSError):
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return {line.split("/dev/shm/")[1].split()[0] for line in lines if "/dev/shm/psm" in line}
  return set()


def test_balanced_clips_follow_from_seed_and_position_and_classes_are_equally_frequent():
  labels = (0,) * 80 + (1,) * 15 + (2,) * 5
  orders = [TrainOrder([{"clip": i} for i in range(100)], 3, 10, 20, host, 2, labels) for host in (0, 1)]
  alone = TrainOrder([{"clip": i} for i in range(100)], 3, 10, 20, labels=labels)
  assert len(alone) == 20 * 100
  drawn = [alone.clip_at(position) for position in range(len(alone))]
  shares = np.bincount(np.array(labels)[drawn]) / len(drawn)
  np.testing.assert_allclose(shares, 1 / 3, atol=0.04)
  assert set(drawn) == set(range(100))
  of_hosts = {
    position: record["clip"] for order in orders for position, record in (order[i] for i in range(len(order)))
  }
  assert [of_hosts[position] for position in range(len(alone))] == drawn
