"""Which files of a folder are videos, by what they hold, not by their names."""

from collections.abc import Iterator, Sequence
import os
from pathlib import Path

from mma_dfer_jax.data import media
from mma_dfer_jax.errors import UserError, counted

# Ends of names that promise one.
VIDEOS = (".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v", ".flv", ".mpg", ".mpeg", ".wmv")


def with_folders(files: Sequence[str], leave_out: str = "") -> tuple[dict[str, str], list[str]]:
  """Files, with all videos in folders and the folders below them in their place, sorted; and why what else lies there is none.

  Each has the name of its answer: its own without ending, below folders as those lie in the one that was given.

  What was named stays if it is a file, or a folder without a video. A damaged video is one, and so is whatever has a video's name: reading it says what is
  wrong; a picture is none. What lies in `leave_out` is not looked at.

  Raises:
    UserError: if a folder cannot be read.
  """
  videos, others = dict[str, str](), list[tuple[str, str]]()
  for file in files:
    if not os.path.isdir(file):
      videos[file] = Path(file).stem
      continue
    reasons = {path: media.why_no_video(path) for path in sorted(_below(file, leave_out))}
    names = {path: Path(path).name for path in reasons}  # hidden ones are what macOS leaves beside a file
    promised = {p for p, name in names.items() if name.lower().endswith(VIDEOS) and not name.startswith(".")}
    found = [path for path, reason in reasons.items() if not reason or path in promised]
    others += [(path, reason) for path, reason in reasons.items() if reason and path not in found]
    videos |= {path: str(Path(path).relative_to(file).with_suffix("")) for path in found}
    if not found:
      videos[file] = Path(file).stem  # reading it says what is wrong
  return videos, counted(others, "files")


def _below(folder: str, leave_out: str) -> Iterator[str]:
  """All files in a folder and the folders below it, those that links lead to as well, each folder once."""

  def fail(error: OSError) -> None:
    raise UserError(f"{error.filename}: cannot be read: {error.strerror}")

  seen = {os.path.realpath(folder), os.path.realpath(leave_out or folder)}
  for place, below, names in os.walk(folder, onerror=fail, followlinks=True):
    new = {os.path.realpath(os.path.join(place, name)): name for name in sorted(below, reverse=True)}
    below[:] = sorted(name for path, name in new.items() if path not in seen)
    seen |= set(new)
    yield from (os.path.join(place, name) for name in names)
