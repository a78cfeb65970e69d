"""Miniature copies of data sets in the forms in which they are handed out; the names are faithful, the clips are not."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
import wave

from commands import load, run
import cv2
import numpy as np
import pytest

from mma_dfer_jax.data.labels import LABEL_ORDERS
from mma_dfer_jax.data.source import Layout, source_of
from mma_dfer_jax.errors import UserError

FOLDS = range(1, 6)
RATE = 24_000  # Hz; 16 kHz would be warned of
DFEW = {f"{number:05d}": (k, number % 7) for number, k in enumerate((1, 1, 2, 2, 3, 3, 4, 4, 5, 5), 1)}
MAFW = {f"{number:05d}": (k, number % 11) for number, k in enumerate((1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 5), 25)}
MAFW_NAMES, MAFW_OFFICIAL_NAMES = (LABEL_ORDERS[name].classes for name in ("mafw", "mafw-official"))
DFEW_LABELS = {clip: LABEL_ORDERS["dfew"].classes[label] for clip, (_, label) in DFEW.items()}
MAFW_LABELS = {clip: MAFW_NAMES[label] for clip, (_, label) in MAFW.items()}
UNREAD = "not looked into"
SETS, TEST, PICTURES = "EmoLabel_DataSplit", "EmoLabel_DataSplit/test(single-labeled)", "Clip/clip_224x224"
Clips = Mapping[str, tuple[int, int]]  # clip -> fold, label as MMA-DFER counts


def refused(match: str):
  """Expects an error for users."""
  return pytest.raises(UserError, match=match)


def read(name: str, place: Path, **options) -> Layout:
  """What the source of this name finds."""
  of = source_of(name)
  fitting: dict[type, Callable] = {list: tuple, type(Path()): str}
  given = {key: fitting.get(type(value), lambda v: v)(value) for key, value in options.items()}
  return of.read(Path(place), of.Options(**given))


def labels(layout: Layout) -> dict[str, str]:
  return {clip.clip_id: clip.label for clip in layout.clips}


def texts(found: Iterable[object]) -> list[str]:
  return [str(one) for one in found]


def good(layout: Layout, number: int) -> Layout:
  """A layout without any problem, whose files are all there."""
  assert layout.problems == []
  assert len(layout.clips) == len(labels(layout)) == number
  for clip in layout.clips:
    assert bool(clip.frames) != bool(clip.video)
    assert all(path.is_file() for path in (*clip.frames, clip.video, clip.sound) if path)
    assert clip.label in layout.classes
  return layout


def bad(layout: Layout, *expected: str, left: int) -> Layout:
  """Every expected text is in a problem of its own, there are no others, and so many clips are left."""
  there = texts(layout.problems)
  assert len(there) == len(expected), there
  for text in expected:
    assert any(text in problem for problem in there), (text, there)
  assert not {clip for problem in layout.problems for clip in problem.clips} & labels(layout).keys()
  assert len(layout.clips) == left
  return layout


def change(path: Path, old: str, new: str) -> None:
  text = path.read_text(encoding="utf-8")
  assert old in text
  path.write_text(text.replace(old, new, 1), encoding="utf-8")


def prepare_clips(manifest: Path, data_dir: Path, *, allow_missing_sound=False, classes=(), **how) -> None:
  """What `prepare --dataset=clips` does, in this process."""
  module = load("data.prepare")
  layout = read("clips", manifest, classes=classes, allow_missing_sound=allow_missing_sound)
  module.prepare(layout, "clips", data_dir, module.Decoding(allow_missing_sound), str(manifest), **how)


def prepare(*given: object, status: int = 0) -> str:
  """Runs the command in this process; returns all that it printed."""
  ended, out, err = run("data.prepare", "--num_workers=0", *given)
  assert ended == status, out + err
  return out + err


def write_picture(path: Path, number: int) -> None:
  """Frame `number`: 8 x 8 pixels of the grey 5 x number."""
  path.parent.mkdir(parents=True, exist_ok=True)
  data = cv2.imencode(path.suffix.lower(), np.full((8, 8, 3), 5 * number % 256, np.uint8))[1]
  path.write_bytes(data.tobytes())  # cv2.imwrite goes by the extension, and by the locale


def write_pictures(folder: Path, count: int, name: str = "{}.jpg", first: int = 0) -> None:
  for number in range(first, first + count):
    write_picture(folder / name.format(number), number)


def write_wav(path: Path, seconds: float = 0.1) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  tone = 8000 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * RATE)) / RATE)
  with wave.open(str(path), "wb") as file:
    file.setnchannels(1)
    file.setsampwidth(2)
    file.setframerate(RATE)
    file.writeframes(tone.astype("<i2").tobytes())


def write_text(path: Path, text: str = UNREAD, encoding: str = "utf-8") -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(text.encode(encoding))


def parts(clips: Clips, fold: int) -> dict[str, list[str]]:
  """Clips of the training and the test set of a fold."""
  return {
    "train": [clip for clip, (k, _) in clips.items() if k != fold],
    "test": [clip for clip, (k, _) in clips.items() if k == fold],
  }


def dfew_csvs(folder: Path, clips: Clips = DFEW, pattern: str = "{part}(single-labeled)/set_{k}.csv",
              header: str = "video_name,label", end: str = "\n", encoding: str = "utf-8") -> None:  # fmt: skip
  """The official lists: numbers without zeros, labels from 1."""
  delimiter = next(mark for mark in ",;\t |" if mark in header)
  for k in FOLDS:
    for part, names in parts(clips, k).items():
      rows = [header, *(f"{int(name)}{delimiter}{clips[name][1] + 1}" for name in names)]
      write_text(folder / pattern.format(part=part, k=k), end.join(rows) + end, encoding)


def counted_lists(folder: Path, clips: Clips, pattern: str, root: str, count: int,
                  order: Sequence[int] | None = None, final: str = "\n") -> None:  # fmt: skip
  """Lists in the form of the original: `DIR COUNT LABEL`, labels from 0."""
  for k in FOLDS:
    for part, names in parts(clips, k).items():
      numbers = {name: order[clips[name][1]] if order else clips[name][1] for name in names}
      rows = [f"{root}/{name} {count} {number}" for name, number in numbers.items()]
      write_text(folder / pattern.format(part=part, k=k), "\n".join(rows) + final)


def dfew(home: Path, *, clips: Clips = DFEW, frames: int = 20, folders: Iterable[str] = ("clip_224x224",),
         name: str = "{}.jpg", padded: bool = True, sound: str = "raw_wav", csvs: bool = True) -> Path:  # fmt: skip
  """DFEW-part2 as handed out, with the wavs of MMA-DFER's recipe beside the pictures; returns the archive's folder."""
  part2 = home / "DFEW-part2"
  for clip in clips:
    for folder in folders:
      count = 16 if folder.endswith("16f") else frames
      place = part2 / "Clip" / folder / (clip if padded else str(int(clip)))
      write_pictures(place, count, name, first=1 if folder.endswith("16f") else 0)
    if sound in ("original", "both"):
      write_text(part2 / f"Clip/original/{int(clip)}.mp4")
    if sound in ("raw_wav", "both"):
      write_wav(part2 / f"Clip/raw_wav/{int(clip)}.wav")
  if csvs:
    dfew_csvs(part2 / "EmoLabel_DataSplit", clips)
  return part2


def mafw_lists(folder: Path, clips: Clips = MAFW, written: str = "names", delimiter: str = " ") -> None:
  """The official lists in set_k/{train,test}.txt: names, or numbers in the official order."""
  for k in FOLDS:
    for part, names in parts(clips, k).items():
      labels = {name: MAFW_NAMES[clips[name][1]] for name in names}
      if written == "numbers":
        labels = {name: str(MAFW_OFFICIAL_NAMES.index(label)) for name, label in labels.items()}
      text = "".join(f"{name}.mp4{delimiter}{labels[name]}\n" for name in names)
      write_text(folder / f"set_{k}/{part}.txt", text)


def mafw(home: Path, *, clips: Clips = MAFW, frames: int = 12, folders: Iterable[str] = ("clips_faces",),
         name: str = "{}.jpg", wavs: bool = True, videos: bool = False, lists: bool = True) -> Path:  # fmt: skip
  """MAFW with what its users make of it: cropped faces, wavs. Returns the archive's folder."""
  archive = home / "MAFW"
  for clip in clips:
    for folder in folders:
      write_pictures(archive / "data" / folder / clip, frames, name)
    if wavs:
      write_wav(archive / f"data/clips_wav/{clip}.wav")
    if videos:
      write_text(archive / f"data/clips/{clip}.mp4")
  if lists:
    for captions in ("no_caption", "with_caption"):
      mafw_lists(archive / "Train & Test Set/single" / captions, clips)
    mafw_lists(archive / "Train & Test Set/compound/no_caption", clips)
  return archive


def ravdess(home: Path, actors: Iterable[int] = range(1, 25), *, flat: bool = False) -> Path:
  """One clip of each emotion and statement of each actor."""
  for actor in actors:
    for emotion in range(1, 9):
      for statement in (1, 2):
        file = f"01-01-{emotion:02d}-01-{statement:02d}-01-{actor:02d}.mp4"
        write_text(home / file if flat else home / f"Actor_{actor:02d}" / file)
  return home


def cremad(home: Path, speakers: Iterable[int] = range(1001, 1092), *, mp4=False, wavs=True) -> Path:
  """One clip of each emotion of each speaker."""
  for name in (
    f"{k}_DFA_{emotion}_XX" for k in speakers for emotion in ("ANG", "DIS", "FEA", "HAP", "NEU", "SAD")
  ):
    write_text(home / (f"VideoMP4/{name}.mp4" if mp4 else f"VideoFlash/{name}.flv"))
    if wavs:
      write_text(home / f"AudioWAV/{name}.wav")
  return home
