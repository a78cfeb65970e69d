"""A log gets whole lines, a terminal a bar."""

import os
import pty
import sys
import termios

import pytest

from mma_dfer_jax import progress


@pytest.mark.parametrize(("total", "words"), [(4, "decode: 2 of 4 clips, about"), (None, "decode: 2 clips")])
def test_a_log_gets_a_line_every_so_often(monkeypatch, capfd, total, words):
  clock = iter([0.0, 10.0, 31.0, 40.0, 50.0])
  monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
  with progress.Progress("decode", total) as bar:
    for _ in range(4):
      bar.update(note="loss 1")
  out, err = capfd.readouterr()
  assert out == ""
  assert err.startswith(words)
  assert err.endswith("loss 1\n")
  assert err.count("\n") == 1
  assert not set("\r\x1b") & set(err)


def test_a_terminal_gets_a_bar(monkeypatch):
  ours, theirs = pty.openpty()
  termios.tcsetwinsize(theirs, (24, 80))
  with os.fdopen(theirs, "w") as terminal:
    monkeypatch.setattr(sys, "stderr", terminal)
    assert list(progress.watched("ab", "decode", 2)) == ["a", "b"]
    terminal.flush()
    shown = os.read(ours, 10000).decode()
  os.close(ours)
  assert "decode: 100%" in shown
  assert "2/2" in shown
