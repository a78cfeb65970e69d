"""A log gets whole lines, a terminal a bar."""

import os
import pty
import select
import sys
import termios
import time

import pytest

from mma_dfer_jax import progress


@pytest.mark.parametrize(
  ("total", "how", "words"),
  [
    (4, {}, "decode: 4 of 4 clips, about 00:00 left, loss 1"),
    (None, {"unit": "window"}, "decode: 4 windows, loss 1"),
    (4000, {"bytes": True, "done": 1000, "unit": "B"}, "decode: 1.00k of 4.00kB"),
    (4, {"show": False}, ""),
  ],
)
def test_a_log_gets_a_line_every_so_often(monkeypatch, capfd, total, how, words):
  monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.05)
  with progress.Progress("decode", total, **how) as bar:
    for i in range(4):
      time.sleep(0.06 * (i == 3))
      bar.update(note="loss 1")
  out, err = capfd.readouterr()
  assert out == ""
  assert err.startswith(words)
  assert err.count("\n") == bool(words)
  assert not set("\r\x1b") & set(err)


def test_a_short_work_writes_nothing_into_a_log(capfd):
  assert list(progress.watched("ab", "decode", 2)) == ["a", "b"]
  progress.say("above")
  assert capfd.readouterr() == ("above\n", "")


def test_a_terminal_gets_a_bar(monkeypatch):
  ours, theirs = pty.openpty()
  termios.tcsetwinsize(theirs, (24, 80))
  shown = ""
  with os.fdopen(theirs, "w") as terminal:
    monkeypatch.setattr(sys, "stderr", terminal)
    assert list(progress.watched("ab", "decode", 2)) == ["a", "b"]
    while "2/2" not in shown and select.select([ours], [], [], 5)[0]:  # it comes in pieces
      shown += os.read(ours, 10000).decode()
  os.close(ours)
  assert "decode: 100%" in shown
  assert "2/2" in shown
