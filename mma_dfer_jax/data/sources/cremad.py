"""CREMA-D: five folds by speaker, those of MAE-DFER's public lists; names of files say everything."""

from pathlib import Path
import re

from mma_dfer_jax.data.archive import SOUNDS, VIDEOS, Archive
from mma_dfer_jax.data.archive import ClassOptions as Options
from mma_dfer_jax.data.source import ClipFiles, LabelOrder, Layout, folds_of

FLAG = "raw"
LAYOUT = "accepted for CREMA-D: VideoFlash/1001_DFA_ANG_XX.flv … or VideoMP4/*.mp4; and AudioWAV/*.wav"
CLASSES = {"ANG": "anger", "DIS": "disgust", "FEA": "fear", "HAP": "happy", "NEU": "neutral", "SAD": "sad"}
# In MAE-DFER's lists: clips of each class but neutral, and of that, by fold.
_CLIPS = ((250, 213), (251, 215), (252, 216), (252, 216), (266, 227))
COUNTS = folds_of(tuple(CLASSES.values()), *[(n, n, n, n, neutral, n) for n, neutral in _CLIPS])
FOLDS = "by speaker: 1001-1018, 1019-1036, 1037-1054, 1055-1072, 1073-1091, as MAE-DFER"


def read(raw: Path, options: Options) -> Layout:
  """Takes sound from AudioWAV for all clips, or where there is no such folder, from the videos."""
  archive = Archive(raw, ("videoflash", "videomp4", "audiowav", "audiomp3"), LAYOUT, options)
  videos, wavs = archive.find("VideoFlash", "VideoMP4"), archive.find("AudioWAV")
  if videos is None:
    raise archive.unrecognised("no folder VideoFlash or VideoMP4")
  if videos.name.lower() == "videoflash" and archive.folders.get("videomp4"):
    archive.note(f"{archive.show(videos)}: chosen; VideoMP4 is there too and not used")
  pictures = archive.index(videos, VIDEOS)
  sounds = archive.index(wavs, SOUNDS) if wavs else pictures
  files = [path for index in (pictures, sounds) for paths in index.values() for path in paths]
  small = [path for path in files if path.stat().st_size < 200]
  pointers = [path for path in small if path.read_bytes().startswith(b"version https://git-lfs")]
  if names := tuple(dict.fromkeys(path.stem for path in sorted(pointers))):
    archive.problem("", "not downloaded, only pointers of Git LFS, which `git lfs pull` replaces", *names)
  if not pictures or {path for paths in pictures.values() for path in paths} <= set(pointers):
    raise archive.unrecognised(f"no videos in {archive.show(videos)}")
  clips = []
  for name in sorted(pictures.keys() - archive.bad_clips):
    match = re.fullmatch(rf"(1\d\d\d)_[A-Z]{{3}}_({'|'.join(CLASSES)})_(LO|MD|HI|XX)", name)
    where, wrong = archive.show(pictures[name][0]), list[str]()
    if not match or not 1001 <= int(match[1]) <= 1091:
      archive.problem(where, "is not a CREMA-D name, such as 1001_DFA_ANG_XX", name)
      continue
    video = archive.only_match(pictures, name, "video", videos, wrong)
    sound = archive.only_match(sounds, name, "wav" if wavs else "video", wavs or videos, wrong, sound=True)
    if wrong:
      archive.problem(where, "; ".join(wrong), name)
    else:
      split = f"fold{min(5, (int(match[1]) - 1001) // 18 + 1)}"
      clips.append(ClipFiles(name, where, CLASSES[match[2]], split, video=video, sound=sound))
  if alone := sorted(sounds.keys() - pictures.keys()):
    archive.note("wavs without a video, not used", *alone)
  recipe = {"folds": FOLDS, "sound": f"wav files of {wavs.name}" if wavs else "that of the videos"}
  order = LabelOrder(tuple(CLASSES.values()), "CREMA-D: third part of the file names, sorted")
  return archive.found_by_class(clips, order, options.classes, recipe)
