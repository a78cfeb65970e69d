"""Generates small clips of seven classes, cartoon faces with synthetic voices, to try the program without a data set.

  python -m mma_dfer_jax.data.demo --out=DIR [--clips_per_class_train=N --clips_per_class_test=M --seed=S]

writes mp4 files (H.264 and AAC) and DIR/clips.csv with the header `path,label,split`. A class is a face gesture together
with a voice style, and several classes share each of these, so that the best accuracy from one modality alone is 3/7:
only a model that hears and sees can tell all seven apart. The clips prove the program, not the science.
"""

from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
import math
import multiprocessing
from pathlib import Path
from typing import NamedTuple

import av
import cv2
from jaxtyping import Float, Int, UInt8
import numpy as np

from mma_dfer_jax.cores import usable_cores
from mma_dfer_jax.disk import new_file
from mma_dfer_jax.errors import UserError, listed
from mma_dfer_jax.progress import watched

# Class -> (face gesture, voice style), in the order of DFEW's labels.
CLASSES = {
  "happy": ("smiling", "lively"),
  "sad": ("lowered", "soft"),
  "neutral": ("smiling", "soft"),
  "angry": ("lowered", "lively"),
  "surprise": ("raised", "lively"),
  "disgust": ("lowered", "trembling"),
  "fear": ("raised", "trembling"),
}
SIZE = 96  # height and width of the picture, pixels
FPS = 20
SAMPLE_RATE = 16_000  # Hz
MIN_FRAMES, MAX_FRAMES = 32, 40  # 1.6 to 2.0 seconds


class Expression(NamedTuple):
  """What a gesture moves in a face, as lengths in half face heights; and how the head moves with it."""

  brow_lift: float  # both brows up
  brow_frown: float  # inner ends of the brows down and inward
  eye_open: float  # half the height of an eye
  mouth_width: float  # half the width of the mouth
  mouth_smile: float  # corners of the mouth up, or down if negative
  mouth_open: float  # half the height of the gap between the lips
  lean: float  # size of the head times this: towards the camera or back from it
  tilt: float  # of the head, radians, clockwise


REST = Expression(0.0, 0.0, 0.10, 0.30, 0.0, 0.03, 1.0, 0.0)
GESTURES = {
  "smiling": Expression(0.02, 0.0, 0.09, 0.46, 0.26, 0.06, 1.0, 0.30),
  "lowered": Expression(-0.05, 0.20, 0.055, 0.30, -0.20, 0.02, 1.25, 0.0),
  "raised": Expression(0.20, -0.03, 0.17, 0.22, 0.0, 0.20, 0.80, 0.0),
}


class Style(NamedTuple):
  """What sets one way of speaking apart from another."""

  level: float  # peak of the waveform; full scale is 1
  pitch: float  # times the pitch of the speaker
  glide: float  # change of pitch over the clip, octaves
  accent: float  # rise of pitch within a syllable, as a share of the pitch
  rate: float  # syllables per second
  irregular: float  # spread of the lengths of syllables, as a share of the mean
  vibrato: float  # depth of the wobble of the pitch, as a share of the pitch
  tremolo: float  # depth of the wobble of the loudness, 0 to 1
  breath: float  # noise in the voice, beside harmonics near 1


STYLES = {
  "lively": Style(0.70, 1.8, 0.15, 0.20, 5.5, 0.1, 0.0, 0.0, 0.01),
  "soft": Style(0.12, 0.8, -0.50, 0.0, 2.2, 0.1, 0.0, 0.0, 0.03),
  "trembling": Style(0.30, 1.15, 0.0, 0.0, 3.5, 0.6, 0.07, 0.8, 0.25),
}

# First and second formant of some vowels (a, i, u, e, o), Hz.
_VOWELS = np.array([(800, 1250), (320, 2300), (340, 850), (480, 1900), (500, 950)], float)


def _arc(num: int, rng: np.random.Generator) -> Float[np.ndarray, "T"]:
  """Onset, apex and offset over `num` steps: 0 at both ends and 1 around an apex at a random time."""
  apex, half_hold = rng.uniform(0.42, 0.58), rng.uniform(0.2, 0.28)
  ramp = rng.uniform(0.1, 0.14)
  linear = np.clip((half_hold + ramp - np.abs(np.linspace(0, 1, num) - apex)) / ramp, 0, 1)
  return linear**2 * (3 - 2 * linear)


def _syllables(
  times: Float[np.ndarray, "T"], rate: float, irregular: float, rng: np.random.Generator
) -> tuple[Float[np.ndarray, "T"], Int[np.ndarray, "T"]]:
  """Loudness, 0 to 1, and number of the syllable at each of the times, in seconds; 0 between syllables."""
  count = math.ceil((times[-1] + 1) * rate / (1 - irregular)) + 1
  lengths = (1 + irregular * rng.uniform(-1, 1, count)) / rate
  starts = np.cumsum(lengths) - lengths - rng.uniform() * lengths[0]
  number = np.searchsorted(starts, times, side="right") - 1
  phase = (times - starts[number]) / lengths[number]
  return np.sin(np.pi * phase) ** 2 * rng.uniform(0.7, 1, count)[number], number


def draw_face(
  colours: Float[np.ndarray, "3 3"],
  fringe: float,
  e: Expression,
  centre: tuple[float, float],
  size: float,
  roll: float,
) -> UInt8[np.ndarray, "H W 3"]:
  """Draws one face, 96 by 96 pixels RGB.

  Args:
    colours: of skin, hair and background, RGB, 0 to 255. They and the fringe tell faces apart, but not classes.
    fringe: where the hair ends on the forehead, in half face heights above the middle of the face.
    centre: (x, y) of the face, in pixels, as is `size`, half its height; `roll` is in radians.
  """
  skin, hair, background = colours
  canvas = np.empty((2 * SIZE, 2 * SIZE, 3), np.uint8)  # drawn at twice the size: thin lines stay smooth
  canvas[:] = (background * np.linspace(1.1, 0.8, 2 * SIZE)[:, None, None]).clip(0, 255)
  axes = size * np.array([(math.cos(roll), math.sin(roll)), (-math.sin(roll), math.cos(roll))])
  across = np.sin(np.linspace(-np.pi / 2, np.pi / 2, 25))  # closer together where curves are steep
  angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)

  def fill(x: np.ndarray, y: np.ndarray, colour: np.ndarray) -> None:
    # Sixteenths of a pixel of the picture, which are eighths on the canvas, so that slow movement is smooth.
    points = (np.stack([x, y], axis=1) @ axes + centre) * 16
    cv2.fillPoly(canvas, [points.round().astype(np.int32)], colour.tolist(), cv2.LINE_AA, 3)

  def oval(x: float, y: float, width: float, height: float, colour: np.ndarray) -> None:
    fill(x + width * np.cos(angle), y + height * np.sin(angle), colour)

  def band(x: np.ndarray, top: np.ndarray, bottom: np.ndarray, colour: np.ndarray) -> None:
    fill(np.concatenate([x, x[::-1]]), np.concatenate([top, bottom[::-1]]), colour)

  lips = 0.6 * skin + 0.4 * np.array([170, 40, 50])
  ink, white, mouth = np.array([(30, 20, 18), (250, 250, 250), (70, 15, 22)])
  oval(0.0, 1.5, 0.95, 0.6, 0.5 * hair + 0.25 * background)  # shoulders
  oval(0.0, -0.12, 0.86, 0.98, hair)
  oval(0.0, 0.9, 0.3, 0.4, 0.85 * skin)  # neck
  oval(0.0, 0.0, 0.76, 1.0, skin)
  band(0.84 * across, -0.05 - 1.03 * np.sqrt(1 - across**2), -fringe * np.sqrt(1 - across**4), hair)
  band(0.1 * across, 0.2 - 0.06 * across**2, 0.26 - 0.06 * across**2, 0.75 * skin)  # nose

  for side in (-1, 1):
    oval(side * 0.33, -0.1, 0.19, e.eye_open, white)
    oval(side * 0.33, -0.1, min(0.09, 1.2 * e.eye_open), min(0.09, e.eye_open), ink)
    inward = (1 - across) / 2  # 1 at the inner end of the brow, 0 at the outer
    brow_x = side * (0.34 + 0.2 * across - 0.4 * e.brow_frown * inward)
    brow_y = -0.34 - e.brow_lift + e.brow_frown * (1.2 * inward - 0.3) - 0.06 * (1 - across**2)
    band(brow_x, brow_y - 0.045, brow_y + 0.045, ink)

  lip_line = 0.5 + e.mouth_smile * (0.4 - across**2)
  gap = e.mouth_open * (1 - across**2)
  lip = 0.07 * (1 - across**4) + 0.01
  band(e.mouth_width * across, lip_line - 0.7 * gap - lip, lip_line + gap + lip, lips)
  band(0.95 * e.mouth_width * across, lip_line - 0.7 * gap, lip_line + gap, mouth)
  return cv2.resize(canvas, (SIZE, SIZE), interpolation=cv2.INTER_AREA)


def clip_picture(gesture: str, rng: np.random.Generator, num_frames: int) -> UInt8[np.ndarray, "T H W 3"]:
  """Draws a speaking face that goes from rest to a gesture and back, at 20 frames per second; `rng` gives all the rest."""
  times = np.arange(num_frames) / FPS
  skin = np.array([125, 85, 65]) + rng.uniform(0.3, 0.9) * np.array([120, 125, 125])
  hair = rng.uniform(20, 120) * rng.uniform(0.6, 1, 3)
  colours, fringe = np.stack([skin, hair, rng.uniform(90, 150, 3)]), rng.uniform(0.68, 0.82)
  size = rng.uniform(38, 42)
  drift = np.sin(2 * np.pi * (rng.uniform(0.2, 0.6, (3, 1)) * times + rng.uniform(size=(3, 1))))
  x, y = SIZE / 2 + rng.uniform(-2, 2, (2, 1)) + rng.uniform(0, 1.5, (2, 1)) * drift[:2]
  roll = rng.uniform(-0.05, 0.05) + 0.04 * drift[2]
  strength = rng.uniform(0.85, 1.1) * _arc(num_frames, rng)
  # The rhythm of the lips is a nuisance, not that of the voice: it would give the style away to the eye.
  speech = rng.uniform(0.03, 0.06) * _syllables(times, rng.uniform(2, 6), rng.uniform(0, 0.6), rng)[0]
  blink_at = rng.uniform(0, 1.6) + np.array([0, rng.uniform(0.8, 1.2)])
  lids = np.clip(np.abs(times[:, None] - blink_at).min(axis=1) / 0.08, 0.1, 1)

  frames = []
  for t in range(num_frames):
    pose = Expression(*(a + strength[t] * (b - a) for a, b in zip(REST, GESTURES[gesture], strict=True)))
    pose = pose._replace(eye_open=pose.eye_open * lids[t], mouth_open=pose.mouth_open + speech[t])
    frames.append(draw_face(colours, fringe, pose, (x[t], y[t]), size * pose.lean, roll[t] + pose.tilt))
  clean = np.stack(frames).astype(np.float32)
  noise = rng.standard_normal(clean.shape, np.float32)  # of a sensor
  return (rng.uniform(0.85, 1.05) * clean + rng.uniform(1, 5) * noise).clip(0, 255).astype(np.uint8)


def clip_voice(style: str, rng: np.random.Generator, seconds: float) -> Float[np.ndarray, "S"]:
  """Syllables, harmonics of a gliding pitch under the formants of vowels: mono, 16 kHz, in [-1, 1]; `rng` as above."""
  s = STYLES[style]
  times = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
  loudness, syllable = _syllables(times, s.rate * rng.uniform(0.9, 1.1), s.irregular, rng)
  wobble = np.sin(2 * np.pi * (rng.uniform(7, 9) * times + rng.uniform()))
  pitch = rng.uniform(110, 170) * s.pitch * 2 ** (s.glide * (times / seconds - 0.5))
  pitch *= (1 + s.accent * loudness) * (1 + s.vibrato * wobble)
  turns = (2 * np.pi * (np.cumsum(pitch) / SAMPLE_RATE % 1)).astype(np.float32)
  pitch = pitch.astype(np.float32)  # half the width: the sum over all harmonics takes most of the time
  vowels = _VOWELS[rng.integers(len(_VOWELS), size=syllable[-1] + 1)] * rng.uniform(0.9, 1.15)
  first, second = vowels.astype(np.float32)[syllable].T
  voice = np.zeros_like(pitch)
  for k in range(1, int(4000 / np.min(pitch))):
    hertz = k * pitch
    weight = np.exp(-(((hertz - first) / 160) ** 2)) + 0.5 * np.exp(-(((hertz - second) / 250) ** 2)) + 0.04
    voice += weight / math.sqrt(k) * np.sin(k * turns)
  voice += s.breath * rng.standard_normal(times.size)
  voice *= loudness * (0.3 + 0.7 * _arc(times.size, rng)) * (1 - s.tremolo * (0.5 + 0.5 * wobble))
  voice *= s.level * rng.uniform(0.85, 1.15) / np.abs(voice).max()
  room = 10 ** rng.uniform(-3.5, -2.8) * rng.standard_normal(times.size)
  return (voice + room).astype(np.float32)


def write_clip(
  path: Path, frames: UInt8[np.ndarray, "T H W 3"], waveform: Float[np.ndarray, "S ..."] | None,
  fps: int | float | Fraction, sample_rate: int,
) -> None:  # fmt: skip
  """Writes (or replaces) an mp4 file with H.264 video and AAC audio; half a file never appears.

  Args:
    waveform: the sound, -1 to 1, mono or with 1, 2 or 6 channels; None for a file without sound.
    sample_rate: of the waveform, Hz; one that AAC knows, such as 16000, 44100 or 48000.
  """
  height, width = frames.shape[1:3]
  with new_file(path, replace=True) as partial, av.open(str(partial), "w", format="mp4") as container:
    video = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
    video.width, video.height = width, height
    video.pix_fmt = "yuv444p" if width % 2 or height % 2 else "yuv420p"  # 4:2:0 needs an even size
    # One thread, as whole clips are made in parallel. Slower presets plan ahead with x264's mbtree, which was
    # seen to give other bits on every run.
    video.options = {"preset": "ultrafast", "crf": "18", "threads": "1"}
    if waveform is not None:
      channels = waveform.reshape(len(waveform), -1).T
      layout = {1: "mono", 2: "stereo", 6: "5.1"}[len(channels)]
      audio = container.add_stream("aac", rate=sample_rate, layout=layout)
      audio.options = {"aac_coder": "fast"}
      sound = av.AudioFrame.from_ndarray(np.ascontiguousarray(channels, np.float32), "fltp", layout)
      sound.sample_rate, sound.pts = sample_rate, 0
    for frame in frames:
      container.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
    container.mux(video.encode())
    if waveform is not None:
      container.mux(audio.encode(sound))
      container.mux(audio.encode())


def _make_clip(path: Path, seed: int, split: int, index: int) -> None:
  gesture, style = list(CLASSES.values())[index % len(CLASSES)]
  rng = np.random.default_rng([seed, split, index])
  num_frames = int(rng.integers(MIN_FRAMES, MAX_FRAMES + 1))
  # Streams of their own, so that neither modality depends on how much the other one draws.
  picture_rng, voice_rng = rng.spawn(2)
  frames = clip_picture(gesture, picture_rng, num_frames)
  write_clip(path, frames, clip_voice(style, voice_rng, num_frames / FPS), FPS, SAMPLE_RATE)


def generate(out: Path | str, train_per_class: int, test_per_class: int, seed: int) -> Path:
  """Makes the clips that are missing, on all cores, and then the table of all clips; returns the table's path.

  A clip depends on its seed, split and index alone. Raises UserError if a number is too small or the folder cannot be made.
  """
  out, counts = Path(out), {"train": train_per_class, "test": test_per_class}
  problems = [f"--clips_per_class_{k}={n} must be at least 1" for k, n in counts.items() if n < 1]
  if problems := problems + [f"--seed={seed} must be at least 0"] * (seed < 0):
    raise listed("the command line has problems", problems)
  rows, jobs = ["path,label,split"], []
  for split, (name, per_class) in enumerate(counts.items()):
    # The classes take turns, so that the number of clips does not change which clip is which.
    for index in range(per_class * len(CLASSES)):
      label = list(CLASSES)[index % len(CLASSES)]
      path = Path(name, f"{label}_s{seed}_{index // len(CLASSES):04d}.mp4")
      rows.append(f"{path.as_posix()},{label},{name}")
      if not (out / path).exists():
        jobs.append((out / path, seed, split, index))
    try:
      (out / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
      raise UserError(f"--out={out} cannot be made ({error.strerror}); choose another folder") from error
  if jobs:
    # Spawned, not forked: whoever calls may have threads of its own, such as those of JAX.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(len(jobs), usable_cores()), context) as pool:
      list(watched(pool.map(_make_clip, *zip(*jobs, strict=True), chunksize=4), "make clips", len(jobs)))
  with new_file(out / "clips.csv", replace=True) as partial:
    partial.write_text("\n".join(rows) + "\n", encoding="utf-8")
  return out / "clips.csv"


if __name__ == "__main__":  # the processes that this command starts import it, too, and need none of this
  from absl import flags

  from mma_dfer_jax import cli
  from mma_dfer_jax.paths import define_path

  _OUT = define_path("out", None, "Folder for the clips.", required=True)
  _TRAIN = flags.DEFINE_integer("clips_per_class_train", 60, "Training clips per class.")
  _TEST = flags.DEFINE_integer("clips_per_class_test", 20, "Test clips per class.")
  _SEED = flags.DEFINE_integer("seed", 0, "Another seed gives other clips.")
  cli.run(lambda argv: print(generate(_OUT.value, _TRAIN.value, _TEST.value, _SEED.value)))
