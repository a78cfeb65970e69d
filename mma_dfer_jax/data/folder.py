"""Which files of a folder are videos, by what they hold, not by their names."""

from collections.abc import Sequence
import os

from mma_dfer_jax.data import media
from mma_dfer_jax.errors import UserError, counted


def videos_in(folder: str, leave_out: str = "") -> tuple[list[str], list[str]]:
  """All videos in a folder and the folders below it, sorted; and one line for each reason why other files are none.

  A damaged video is one: reading it says what is wrong. A picture is none. What lies in `leave_out` is not looked at.

  Raises:
    UserError: if a folder cannot be read.
  """

  def fail(error: OSError) -> None:
    raise UserError(f"{error.filename}: cannot be read: {error.strerror}")

  videos, others = [], []
  seen = {os.path.realpath(folder), os.path.realpath(leave_out or folder)}  # links may lead in circles
  for place, below, names in os.walk(folder, onerror=fail, followlinks=True):
    new = {os.path.realpath(os.path.join(place, name)): name for name in sorted(below, reverse=True)}
    below[:] = sorted(name for path, name in new.items() if path not in seen)
    seen |= set(new)
    for path in (os.path.join(place, name) for name in names):
      reason = media.why_no_video(path)
      videos.append(path) if reason is None else others.append((path, reason))
  return sorted(videos), counted(sorted(others), "files")


def with_folders(files: Sequence[str], leave_out: str = "") -> tuple[list[str], list[str]]:
  """The same of files and folders: what was named stays if it is a file, or a folder without a video."""
  videos, notes = [], []
  for file in files:
    found, others = videos_in(file, leave_out) if os.path.isdir(file) else ([file], [])
    videos += found or [file]  # whoever reads it says what is wrong
    notes += others
  return videos, notes
