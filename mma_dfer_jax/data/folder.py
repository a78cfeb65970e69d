"""Which files of a folder are videos, by what they hold, not by their names."""

from collections.abc import Iterator, Sequence
import os

from mma_dfer_jax.data import media
from mma_dfer_jax.errors import UserError, counted


def with_folders(files: Sequence[str], leave_out: str = "") -> tuple[list[str], list[str]]:
  """Files, with all videos in folders and the folders below them in their place, sorted; and why what else lies there is none.

  What was named stays if it is a file, or a folder without a video. A damaged video is one: reading it says what is wrong; a
  picture is none. What lies in `leave_out` is not looked at.

  Raises:
    UserError: if a folder cannot be read.
  """
  videos, others = [], list[tuple[str, str]]()
  for file in files:
    inside = sorted(_below(file, leave_out)) if os.path.isdir(file) else []
    reasons = {path: media.why_no_video(path) for path in inside}
    others += [(path, reason) for path, reason in reasons.items() if reason]
    videos += [path for path, reason in reasons.items() if not reason] or [file]
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
