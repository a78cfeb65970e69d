"""Honest doubt: why an answer is withheld, and what else makes it worth less than the scores on test clips."""

from collections.abc import Iterator
import math
from typing import Any

import numpy as np

from mma_dfer_jax.data.fbank import rate_difference
from mma_dfer_jax.data.film import EPSILON, Sample
from mma_dfer_jax.engines.engine import About
from mma_dfer_jax.errors import UserError

GAP = 0.5  # seconds without sound that are no reason to warn
HEARD = 0.9  # share of a sound that must fit into the spectrogram, or a warning is given
# Of normalised spectrograms. Speech differs by 0.05 to 0.09 between 44.1 and 48 kHz, music by up to 0.14; speech by 0.10 to
# 0.16 between 32 and 48 kHz, by 0.14 to 0.29 between 16 and 48.
OTHER_VOICE = 0.1
MUCH_SHORTER = 0.5  # of the training clips' median sound, or
MOSTLY_PADDING = 0.4  # where that is not known, of the spectrogram: less is warned of
# Sides of a picture to each other, and to those of the model or the training clips: more is no cut-out face.
WIDEST_FACE, LARGEST_FACE = 1.25, 4
OTHERS = (
  1 / 8
)  # share of frames with another person above which the answer is withheld: it would be of two people
FEW_FACES = 0.5  # share of frames with a face below which an answer is withheld, or of the training clips if those have less
# Median score of the followed face below which an answer is withheld. Measured with YuNet: 0.92 to 0.96 on RAVDESS, 0.88 to
# 0.91 on the demo's drawings; 0.76 in a tenth of the light, 0.70 to 0.83 with half of a face hidden; 0.73 on a cheetah.
LEAST_SCORE = 0.75
SQUEEZED = (
  1.34  # by which the shape may differ: the paper's augmentation makes clips wider and higher by 4 / 3
)
# Times longer than 95 % of the training clips, or shorter than 5 %. Of the demo's test clips 95 % are answered rightly, of their
# first halves 53 %, quarters 30 %, and of two of a class in a row 56 %, while the model stays sure: 77 to 90 %.
FAR = 2
ONE_COLOUR = (
  16  # grey levels between the darkest and the brightest pixel of each picture in which nothing can be seen
)

Doubts = tuple[tuple[str, ...], tuple[str, ...]]  # reasons why an answer is withheld; mere warnings
WITHHELD, WARNED = True, False
Doubt = tuple[bool, str]


def doubts(about: About, sample: Sample) -> Doubts:
  """What there is to say against an answer, whatever it is."""
  found: list[Doubt] = [(WARNED, note) for note in (*about.warnings, *sample.notes)]
  found += _about_length(about, sample)
  if "image" in about.streams:
    found += _about_pictures(about, sample)
  if "audio" in about.streams:
    found += _about_sound(about, sample)
  dark, unheard = (
    np.ptp(sample.video, axis=(1, 2)).max() < ONE_COLOUR,
    sample.silent or not sample.seconds_of_sound,
  )
  missing = {
    "image": "the pictures are of one colour" * bool(dark),
    "audio": "there is nothing to hear" * unheard,
  }
  if all(words := [missing[stream] for stream in about.streams]):
    found.append((WITHHELD, " and ".join(words)))
  reasons, warnings = (tuple(text for kind, text in found if kind == asked) for asked in (WITHHELD, WARNED))
  return reasons, warnings


def check_abstain(abstain: float) -> None:
  """Raises UserError unless it is a probability."""
  if not 0.0 <= abstain <= 1.0:
    raise UserError(f"abstain={abstain:g}: give a probability from 0 to 1, below which no class is named")


def is_scene(about: About, size: tuple[int, int]) -> bool:
  """Whether pictures of this width and height cannot be cut-out faces, as far as shape and size tell."""
  shorter, longer = sorted(size)
  known = max(about.inputs.image_size, *about.typical.get("side", (0,)))
  return longer > about.inputs.image_size and (
    longer > WIDEST_FACE * shorter or shorter > LARGEST_FACE * known
  )


def looks_cut_out(about: About) -> bool:
  """Whether others seem to have cut out the faces of its training clips: square, and the recipe does not say."""
  square = [1 / WIDEST_FACE <= shape <= WIDEST_FACE for shape in about.typical.get("shape", ())]
  return "faces" not in about.recipe and bool(square) and all(square)


def _between(limits: Any) -> str:
  return " to ".join(dict.fromkeys(f"{limit:.2f}" for limit in limits))


def _about_length(about: About, sample: Sample) -> Iterator[Doubt]:
  length, limits = sample.window.end - sample.window.start, about.typical.get("seconds")
  if limits and not limits[0] / FAR - EPSILON <= length <= limits[1] * FAR + EPSILON:
    middle = max(0.1, round(sum(limits) / 2, 1))
    advice = f": --window={middle:g} answers part by part" * (length > limits[1])
    yield WITHHELD, f"{length:.2f} s are far from the training clips' {_between(limits)} s{advice}"


def _about_pictures(about: About, sample: Sample) -> Iterator[Doubt]:
  _, _, first, last = sample.window
  frames, (width, height) = last - first, sample.size
  if sample.person is not None and sample.with_face is not None:
    frames = int(sample.with_face.sum())  # only those were shown
  yield from ((WARNED, change) for change in sample.changes)
  if frames == 1:
    yield WITHHELD, "it is a single picture: an expression takes time"
  elif frames < about.inputs.num_frames:
    repeated = "some are repeated" if about.inputs.frame_choice == "time" else "the last is repeated"
    yield WARNED, f"only {frames} of {about.inputs.num_frames} frames: {repeated}"
  if sample.rates and about.inputs.frame_choice == "number":
    most, least = sample.rates
    yield WARNED, (f"the frame rate is uneven, {most:.3g} a second in one quarter of the frames and {least:.3g} in another: frames "
                   "chosen by number show some of the time too often; --frame_choice=time spreads them evenly")  # fmt: skip
  cut = sample.with_face is not None
  shape, limits = 1.0 if cut else width / height, about.typical.get("shape")
  as_faces = looks_cut_out(about)
  if (
    not cut
    and (as_faces or str(about.recipe.get("faces", "none")) != "none")
    and is_scene(about, sample.size)
  ):
    training = (
      "clips of the training are square, as cut-out faces are"
      if as_faces
      else "model was trained on cut-out faces"
    )
    yield (
      WITHHELD,
      f"pictures of {width}x{height} as they are, but the {training}: --faces=yunet cuts them out",
    )
  elif limits and not limits[0] / SQUEEZED <= shape <= limits[1] * SQUEEZED:
    what = "cut-out faces" if cut else f"pictures of {width}x{height}"
    yield WITHHELD, f"{what} are squeezed: the training clips' are {_between(limits)} times as wide as high"
  if cut:
    yield from _about_faces(about, sample)


def _about_faces(about: About, sample: Sample) -> Iterator[Doubt]:
  assert sample.with_face is not None
  share = sample.with_face.mean()
  if share and looks_cut_out(about) and is_scene(about, sample.size):
    yield WARNED, ("the face was cut out, as the training clips are square and this is a scene: --faces=none takes the pictures as "
                   "they are")  # fmt: skip
  if sample.turned:
    yield WARNED, sample.turned
  if not share:
    yield WITHHELD, "no face was found: the model saw the middle of the picture"
  elif share < FEW_FACES:
    least = min((FEW_FACES, *about.typical.get("face_share", ())))
    who = "a face" if sample.person is None else f"person {sample.person}"
    yield share < least, f"{who} in only {100 * share:.0f} % of the frames"
  if share and sample.face_score < LEAST_SCORE:
    yield WITHHELD, (f"what was followed is hardly a face: the detector's score is {sample.face_score:.2f}, below "
                     f"{LEAST_SCORE}")  # fmt: skip
  if sample.of_others:
    shown, number = sample.of_others, len(sample.video)
    yield shown > OTHERS * number, (f"{shown} of {number} frames show another person than the rest: --person=all answers "
                                    "each person")  # fmt: skip
  elif (sample.faces_at_once or 0) > 1:
    followed = "the largest over time" if sample.person is None else f"person {sample.person}"
    yield WARNED, f"up to {sample.faces_at_once} faces at once: {followed} was followed"


def _about_sound(about: About, sample: Sample) -> Iterator[Doubt]:
  start, end, _, _ = sample.window
  length, seconds = end - start, sample.seconds_of_sound
  if not seconds:
    new = ", which it never met in training" * (about.recipe.get("missing_sound") == "refused")
    yield WARNED, f"no sound: the model was given the constant that stands for it{new}"
    return
  if about.sample_rates and sample.sample_rate not in about.sample_rates:
    difference, rate = min((rate_difference(sample.waveform, sample.sample_rate, rate, about.inputs.audio_shape), rate)
                           for rate in about.sample_rates)  # fmt: skip
    if math.isnan(difference):
      yield WARNED, (f"sound at {sample.sample_rate} Hz, unlike the training clips' {rate} Hz: without SciPy nobody measures what that "
                     "changes")  # fmt: skip
    if difference > OTHER_VOICE:
      rates = ", ".join(map(str, about.sample_rates))
      yield WARNED, (f"sound at {sample.sample_rate} Hz, but the training clips at {rates} Hz: its spectrogram differs by "
                     f"{difference:.2f} from that at {rate} Hz, and the model may take it for another voice")  # fmt: skip
  if sample.silent:
    yield WARNED, "the sound is silent"
  if seconds < min(length, sample.heard) - GAP:
    yield WARNED, f"only {seconds:.2f} of {length:.2f} s have sound"
  if sample.heard < HEARD * seconds:
    yield WARNED, (f"only the first {sample.heard:.2f} of {seconds:.2f} s of the sound were heard, while the frames are from all of "
                   f"the time: --window={max(1, math.floor(sample.heard)):g} answers part by part")  # fmt: skip
  if seconds < MUCH_SHORTER * min(about.seconds_of_sound, sample.heard):
    training = f"half of the training clips have {about.seconds_of_sound:.2f} s or more"
    yield WARNED, _padding(seconds, sample.heard, training)


def _padding(seconds: float, room: float, training: str) -> str:
  padded = 100 - 100 * seconds / room
  return f"only {seconds:.2f} s of sound: {padded:.0f} % of the spectrogram are padding, while {training}"


def warnings_of_windows(about: About, window: float) -> Iterator[str]:
  """What holds for all windows of so many seconds (0: on sentences), whatever the film, if nothing is known of the training clips."""
  room = 0.015 + 0.01 * about.inputs.audio_shape[0]
  if "audio" in about.streams and not about.seconds_of_sound and 0 < window < MOSTLY_PADDING * room:
    yield _padding(
      window, room, f"clips of DFEW and MAFW fill most of it; --window={math.ceil(room) - 1:g} does, too"
    )
