"""The command that says whether a data set is fit for training: it finds what was made worse, and nothing in what was not."""

from dataclasses import replace
import inspect
import json
import shutil

from commands import run
import cv2
from films import write_data_set
import numpy as np
import pytest

from mma_dfer_jax.data import demo, doctor
from mma_dfer_jax.data.counts import counts_table
from mma_dfer_jax.data.data_set import DataSet, open_data_set
from mma_dfer_jax.data.frames import encode_frame
from mma_dfer_jax.errors import UserError

CLASSES = list(demo.CLASSES)
RATE = demo.SAMPLE_RATE


def record(name, label, split, pictures, sound, rate=RATE):
  """As `prepare` would write it; pictures that are the same would differ a little after a video's coding."""
  noise = np.random.default_rng(len(pictures)).integers(0, 2, pictures.shape)
  frames = [encode_frame(frame) for frame in (pictures + noise).clip(0, 255).astype(np.uint8)]
  waveform = np.zeros(0, np.int16) if sound is None else (np.clip(sound, -1, 1) * 32767).astype(np.int16)
  return {"clip_id": name, "label": label, "split": split, "frames": frames, "waveform": waveform,
          "sample_rate": 0 if sound is None else rate}  # fmt: skip


@pytest.fixture(scope="module")
def good_records():
  """Two generated clips of each class."""
  made = []
  for i, (fold, label) in enumerate((fold, label) for fold in (1, 2) for label in CLASSES):
    gesture, style = demo.CLASSES[label]
    rng = np.random.default_rng(i)
    pictures, voice = demo.clip_picture(gesture, rng, 20), demo.clip_voice(style, rng, 1.0)
    made.append(record(f"{label}{fold}", label, f"fold{fold}", pictures, voice))
  return made


@pytest.fixture(scope="module")
def good(good_records, tmp_path_factory):
  return write_data_set(tmp_path_factory.mktemp("good"), good_records, CLASSES)


@pytest.fixture(scope="module")
def seen(good):
  data_set = open_data_set(good, "clips")
  return data_set, doctor.examine(data_set, 0)[0]


@pytest.fixture(scope="module")
def worse(good_records, tmp_path_factory):
  """Every odd clip is in fold 2, but for the second black one."""
  rng = np.random.default_rng(0)
  face, tone = demo.clip_picture("smiling", rng, 24), demo.clip_voice("lively", rng, 1.0)
  still = np.repeat(face[:1], 24, axis=0)
  white, long = face.copy(), np.tile(face, (5, 1, 1, 1))[:110]
  white[:, : demo.SIZE * 3 // 5] = 255
  made = [
    record(name, "happy", fold, pictures, sound, rate)
    for name, fold, pictures, sound, rate in (
      ("black", "fold2", 0 * face, tone, RATE),
      ("black_again", "fold1", 0 * face, 0.5 * tone, RATE),
      ("grey", "fold2", 0 * face + 90, tone[100:], RATE),
      ("frozen", "fold2", still, tone[200:], RATE),
      ("few", "fold2", face[:9], tone[300:], RATE),
      ("mute", "fold2", face[::-1], None, RATE),
      ("silent", "fold2", face[5:], 0 * tone, RATE),
      ("short", "fold2", face[4:], tone[: RATE // 5], RATE),
      ("rate", "fold2", face[3:], np.tile(tone, 2), 44_100),
      ("white", "fold2", white, tone[400:], RATE),
      ("long_picture", "fold2", long, tone[500:], RATE),
      ("long_sound", "fold2", face[2:], np.tile(tone, 6), RATE),
    )
  ]
  made[3]["frames"][1:] = made[3]["frames"][:1] * 23  # frozen, not only repeating
  twins = [good_records[0] | {"clip_id": name, "label": "sad", "split": fold}
           for name, fold in (("copy", "fold2"), ("twin", "fold1"))]  # fmt: skip
  return write_data_set(tmp_path_factory.mktemp("worse"), [*good_records, *made, *twins], [*CLASSES, "bored"])


@pytest.fixture(scope="module")
def found(worse):
  data_set = open_data_set(worse, "clips")
  return doctor.diagnose(data_set, "clips", *doctor.examine(data_set, 0))


def test_nothing_is_wrong_with_good_clips(seen):
  result = doctor.diagnose(seen[0], "clips", seen[1], [])
  assert result.verdict == "fit for training"
  assert not result.problems + result.warnings + result.notes + result.duplicates
  assert result.counts == {fold: dict.fromkeys(CLASSES, 1) for fold in ("fold1", "fold2")}
  assert result.splits["fold1"]["sample_rates"] == {"16000": 7}
  unlabelled = replace(seen[0], classes=(), clips={fold: {"": 7} for fold in ("fold1", "fold2")})
  records = [replace(one, label="") for one in seen[1]]
  assert doctor.diagnose(unlabelled, "clips", records, []).verdict == "fit for pretraining only"
  assert (
    doctor.diagnose(unlabelled, "clips", records, ["fold1 record 9: broken"]).verdict
    == "NOT FIT for pretraining: 1 problem"
  )


def test_odd_clips_are_named_and_no_others(found):
  odd = {"black": {"black", "black_again"}, "one_colour": {"grey"}, "white": {"white"}, "frozen": {"frozen"}, "few_frames": {"few"},
         "no_sound": {"mute"}, "silent": {"silent"}, "short_sound": {"short"}}  # fmt: skip
  for key, text in doctor.ODDITIES.items():
    assert {name.split(" ")[1] for name in found.lists[key]} == odd.get(key, set()), key
    assert sum(line.startswith(text) for line in found.warnings) == (key in odd), key
  assert any("sample rates" in line and "44100 Hz in 1" in line for line in found.warnings)
  assert found.lists["too_long"] == ["fold2 long_sound", "fold2 long_picture"]
  assert any(line.startswith("more than 5 times as long as the median clip") for line in found.warnings)


def test_problems_of_worse_clips(found):
  twins, missing = sorted(found.problems, key=lambda line: line.startswith("classes"))
  advice = f"classes without a clip; --classes={','.join(CLASSES)} prepares the others (1): bored"
  assert missing.startswith(advice)
  assert twins.startswith("groups of clips with the same pictures in several splits (1): ")
  assert all(name in twins for name in ("fold2 copy", "fold1 twin", "labelled "))
  assert "black" not in twins, "two black pictures are no copies"
  assert found.verdict == "NOT FIT for training: 2 problems"


def test_equal_findings_are_one_line_with_a_count_and_three_examples(seen):
  data_set, records = seen
  few = [replace(one, frames=9) for one in records]
  result = doctor.diagnose(data_set, "clips", few, ["fold1 record 9: broken"] * 5)
  expected = f"fewer than 16 frames (14): {records[0]}, {records[1]}, {records[2]} …"
  assert [line for line in result.warnings if line.startswith("fewer")] == [expected]
  broken = "fold1 record 9: broken, fold1 record 9: broken, fold1 record 9: broken"
  assert f"records that cannot be read (5): {broken} …" in result.problems
  assert len(result.lists["few_frames"]) == 14, "doctor.json names all"


def test_what_the_records_are_compared_with(seen):
  """A label that is none, a record that went lost, a name twice, a sound twice, another label."""
  data_set, records = seen
  first, second, *rest = records
  *most, last = records
  emptied = replace(data_set, splits={**data_set.splits, "fold3": 0})
  alone = replace(data_set, splits={"fold1": 7}, clips={"fold1": data_set.clips["fold1"]})
  for changed, of, severity, words in (
    ([replace(first, label=None), *records[1:]], data_set, "problems", "labels that stand for no class (1)"),
    (records[1:], data_set, "problems", f"fold1 has 0 clips of {first.label} instead of 1"),
    ([*most, replace(last, clip_id=first.clip_id)], data_set, "problems", "same name in several splits"),
    ([*most, replace(last, sound=first.sound)], data_set, "warnings", "same sound in several splits"),
    ([first, replace(second, pictures=first.pictures), *rest], data_set, "warnings", "same pictures within a split"),
    ([replace(first, face_share=0.5), *records[1:]], data_set, "warnings", f"a face in less than 80% of the frames (1): {first}"),
    (records, emptied, "problems", "empty splits (1): fold3"),
    (records[:7], alone, "problems", "or several folds; only fold1 is there"),
  ):  # fmt: skip
    result = doctor.diagnose(of, "clips", changed, [])
    assert any(words in line for line in getattr(result, severity)), words
    assert bool(result.problems) == (severity == "problems"), words


def test_published_counts_stand_beside(seen):
  """The demo has DFEW's classes."""
  data_set, records = seen
  result = doctor.diagnose(data_set, "dfew", records, [])
  assert len(result.problems) == 1
  assert "fold3, fold4, fold5" in result.problems[0]
  assert any("(35): fold1 happy 1 (published 489)" in line for line in result.warnings)
  table = counts_table(result)
  assert "1/489" in table
  assert "14/11697" in table
  assert not doctor.diagnose(data_set, "mafw", records, []).published, "other classes"


@pytest.mark.parametrize(("name", "rates", "warned"), [("dfew", {16_000}, True), ("mafw", {16_000}, True),
  ("dfew", {44_100}, False), ("dfew", {16_000, 48_000}, True), ("clips", {16_000}, False)])  # fmt: skip
def test_sounds_of_dfew_and_mafw_at_16_khz_are_warned_of(seen, name, rates, warned):
  data_set, records = seen
  rates = sorted(rates)
  records = [replace(one, sample_rate=rates[i % len(rates)]) for i, one in enumerate(records)]
  lines = doctor.diagnose(data_set, name, records, []).warnings
  assert any("16000 Hz" in line and "2.6 UAR" in line and "prepare again" in line for line in lines) == warned


def test_records_that_no_training_could_read(seen):
  data_set, _ = seen
  record = dict(data_set.records("fold1")[0])

  def looked_at(**changes):
    return doctor.look_at({**record, **changes}, "fold1", 0, data_set.classes)

  frames = list(record["frames"])
  assert looked_at().frames == len(frames)
  assert looked_at(label=7).label is None
  assert looked_at(frames=[frames[0]] * 20).repeats == 1
  assert looked_at(frames=frames[:1]).motion is None
  cut_off = [*frames[:-1], frames[-1][: len(frames[-1]) // 2]]  # no evaluation takes the last frame
  for changes, words in (
    ({"frames": cut_off}, f"frame {len(frames) - 1}: "),
    ({"frames": [b"no picture", *frames[1:]]}, "frame 0: "),
    ({"frames": []}, "without frames"),
    ({"sample_rate": 3}, "sample_rate=3"),
  ):
    with pytest.raises(ValueError, match=words):
      looked_at(**changes)


@pytest.mark.slow
def test_the_command_names_damaged_records_and_examines_the_others(worse, tmp_path, monkeypatch):
  """The pages of samples are drawn all the same."""
  damaged, out = tmp_path / "data", tmp_path / "out"
  shutil.copytree(worse, damaged)
  (file,) = damaged.glob("clips/*/clips-fold1.array_record*")
  data = bytearray(file.read_bytes())
  for i in range(1000):
    data[len(data) // 2 + i] ^= 0xFF
  file.write_bytes(data)
  out.mkdir()
  (out / "samples_gone.png").touch()
  # Past the tests' check of types, which reads records, too.
  monkeypatch.setattr(DataSet, "records", inspect.unwrap(DataSet.records))
  status, printed, err = run("data.doctor", f"--data_dir={damaged}", f"--out={out}")
  assert (status, err) == (1, "")
  report = json.loads((out / "doctor.json").read_text())
  assert not report["fit"]
  assert printed.splitlines()[-1] == report["verdict"]
  assert report["verdict"].startswith("NOT FIT for training: ")
  assert all(line.startswith("fold1 record ") for line in report["lists"]["unreadable"])
  unreadable = len(report["lists"]["unreadable"])
  assert 1 <= unreadable <= 3
  assert len(report["clips"]) == sum(open_data_set(worse, "clips").splits.values()) - unreadable
  assert f"records that cannot be read ({unreadable}): " in report["problems"][0]
  assert not any("than prepare wrote" in line for line in report["problems"]), "a lost record is one problem"
  text = (out / "doctor.md").read_text()
  pages = {f"samples_{page}.png" for page in ("fold1", "fold2", "flagged")}
  assert {path.name for path in out.glob("*.png")} == pages
  for page in pages:
    assert f"({page})" in text
    height, width, _ = cv2.imread(str(out / page)).shape
    assert width > height > 500
  assert not (damaged / "clips" / "doctor").exists()
  open_data_set(damaged, "clips")


def test_damaged_metadata_is_called_so(good, tmp_path):
  """As a copy that was cut short leaves them; None: the file is missing."""
  of_files = {"metadata.json": (200, None), "dataset_info.json": (0, 300), "features.json": (None, 50)}
  for name, length in ((name, length) for name, lengths in of_files.items() for length in lengths):
    damaged = tmp_path / f"{name}{length}"
    shutil.copytree(good, damaged)
    (file,) = damaged.glob(f"clips/*/{name}")
    data = file.read_bytes()
    file.unlink()
    if length is not None:
      file.write_bytes(data[:length])
    with pytest.raises(UserError, match="prepare"):
      open_data_set(damaged, "clips")


def test_several_threads_find_the_same(seen):
  data_set, records = seen
  assert doctor.examine(data_set, 3) == (records, [])


def test_samples_are_spread_over_classes(seen):
  _, records = seen
  first = [one for one in records if one.split == "fold1"]
  five, other = ({one.label for one in doctor.spread_over_classes(first, 5, turn)} for turn in (0, 2))
  assert len(five) == len(other) == 5
  assert five != other
  for number in (8, 99):
    assert len(set(doctor.spread_over_classes(records, number))) == min(number, len(records))
  assert doctor.spread_over_classes([], 8) == []
