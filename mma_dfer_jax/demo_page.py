"""A web page on this machine: drop a video or film yourself, and see what a trained model says, and what it saw.

  python -m mma_dfer_jax.demo_page --model=runs/demo/run

The page keeps nothing, serves only this machine (127.0.0.1), makes no network requests, and refuses requests that
another page makes. An upload lies in a folder of this process until it is answered or its tab is closed; the video beside
the answer is the browser's own. What a killed server has left is removed by the next one.
"""

from collections.abc import Sequence
import contextlib
import fcntl
import os
from pathlib import Path
import shutil
import signal
import socket
import tempfile

from absl import flags

from mma_dfer_jax import cli
from mma_dfer_jax.errors import UserError

_MODEL = cli.shared_flag("model", required=True)
_PORT = flags.DEFINE_integer("port", 7860, "Port on 127.0.0.1; 0: any free one.", 0, 65535)
_FACES = cli.shared_flag("faces")
_FACE_MODEL = cli.shared_flag("face_model")
_CHANNEL = cli.shared_flag("channel")
_ABSTAIN = flags.DEFINE_float("abstain", 0.0, "Name no class whose probability is below this, as 0.6.")
_PERSON = cli.shared_flag(
  "person",
  help="Who is answered for: largest over time, all (a row for each), or a number, 1 is the largest.",
)
_CLASS_VECTORS = cli.shared_flag("class_vectors")
_ENGINE = cli.shared_flag("engine")
_PRECISION = cli.shared_flag("precision")
_MAX_MB = flags.DEFINE_integer("max_mb", 100, "Largest video that is taken, MiB.", lower_bound=1)
_MAX_SECONDS = flags.DEFINE_float("max_seconds", 120.0, "Longest video that is taken.", lower_bound=0.1)
_WINDOW = flags.DEFINE_float("window", 4.0, "Longer videos are answered over time too, in windows of so many seconds.")  # fmt: skip
_HOP = flags.DEFINE_float("hop", 1.0, "Seconds from one window to the next.")
_PREFIX = "mma_dfer_page_"


def main(argv: Sequence[str]) -> int:
  from mma_dfer_jax.data import film  # here: --help need not wait for OpenCV
  from mma_dfer_jax.data.persons import NO_FACES, check_person
  from mma_dfer_jax.doubt import check_abstain
  from mma_dfer_jax.engines.engine import load_model

  film.check_windows(_WINDOW.value, _HOP.value)
  check_person(_PERSON.value)
  check_abstain(_ABSTAIN.value)
  try:  # first, so that a taken port is known before a model is loaded
    door = socket.create_server(("127.0.0.1", _PORT.value))
  except OSError as error:
    why, advice = os.strerror(error.errno or 0), "give another one, or --port=0 for any free one"
    raise UserError(f"--port={_PORT.value} cannot be used on 127.0.0.1 ({why}); {advice}") from error
  _remove_what_killed_servers_left()
  with tempfile.TemporaryDirectory(prefix=_PREFIX) as folder:
    fcntl.flock(
      os.open(folder, os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB
    )  # until this process ends, however it does
    _end_on_signals(folder)
    from mma_dfer_jax.page import Page, Server, described
    from mma_dfer_jax.prediction import face_finder, sound_channel

    print(f"loading {_MODEL.value} …", flush=True)
    engine = load_model(_MODEL.value, precision=_PRECISION.value, engine=_ENGINE.value)
    engine = engine.with_classes(_CLASS_VECTORS.value) if _CLASS_VECTORS.value else engine
    finder = face_finder(engine, _FACES.value, _FACE_MODEL.value)
    if _PERSON.value != "largest" and finder is None:
      raise UserError(f"--person={_PERSON.value}: {NO_FACES}")
    model, limits = Path(_MODEL.value).resolve().name, (_MAX_MB.value, _MAX_SECONDS.value)
    channel = sound_channel(engine.about.recipe, _CHANNEL.value)
    page = Page(
      engine,
      model,
      finder,
      Path(folder),
      *limits,
      _WINDOW.value,
      _HOP.value,
      channel,
      _PERSON.value,
      _ABSTAIN.value,
    )
    print("compiling it, once …", flush=True)
    page.warm_up()
    about = engine.about
    print(
      f"faces: {described(finder)}; classes: {', '.join(about.classes)}; {engine.name} in {about.precision}"
    )
    print(f"open http://127.0.0.1:{door.getsockname()[1]}/ in a browser; Ctrl-C ends it", flush=True)
    Server(page, door).serve_forever()  # until a signal
  return 0


def _remove_what_killed_servers_left() -> None:
  """Removes the folders of servers that are no longer: nobody holds their lock."""
  for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
    with contextlib.suppress(OSError):  # another user's, or of a server that runs
      descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
      try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
      finally:
        os.close(descriptor)


def _end_on_signals(folder: str) -> None:
  """Ctrl-C, SIGTERM and a closed terminal remove the folder and end the process at once.

  They raise no exception: one that is raised while Python collects garbage gets lost, for JAX has a callback there,
  and Python would wait for a thread that computes.
  """

  def end(number, frame) -> None:
    del frame
    shutil.rmtree(folder, ignore_errors=True)
    interrupted = number == signal.SIGINT
    if interrupted:
      os.write(2, b"error: stopped by Ctrl-C\n")  # not print, which may be what was interrupted
    os._exit(130 if interrupted else 0)

  signal.signal(signal.SIGTERM, end)
  signal.signal(signal.SIGINT, end)
  if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # else `nohup` was asked to go on
    signal.signal(signal.SIGHUP, end)


if __name__ == "__main__":
  cli.run(main)
