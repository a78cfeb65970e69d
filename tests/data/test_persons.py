"""Who is in a film: cuts, tracks that end there, persons who go on after them, and what a model is given of each."""

from pathlib import Path

import cv2
from films import hum, noise, write_film
import numpy as np
import pytest
from test_faces import Spots, box, detections

from mma_dfer_jax.data import faces, film
from mma_dfer_jax.data.persons import persons
from mma_dfer_jax.data.shots import Shots
from mma_dfer_jax.inputs import Inputs

SPEC = Inputs(num_frames=4, image_size=32, audio_shape=(100, 32))


def cuts(frames):
  shots = Shots()
  assert len(list(shots.watch(frames))) == len(frames)
  return shots.cuts()


def room(seed, length, drift=0.5):
  """A camera that moves over a soft picture."""
  rough = np.random.default_rng(seed).integers(30, 220, (4, 22, 3)).astype(np.uint8)
  wide = cv2.resize(rough, None, fx=24, fy=24)
  return [wide[:, round(drift * i) :][:, :96] for i in range(length)]


def test_cuts_are_found_and_nothing_else_is():
  one, two = room(0, 40), room(1, 40)
  flash = [np.full_like(frame, 255) if i in (20, 21) else frame for i, frame in enumerate(one)]
  dim = [np.uint8(frame * (0.2 + 0.02 * i)) for i, frame in enumerate(one)]
  for frames in (one, one[:1], one[:2], flash, dim, room(2, 40, 9.0), noise(40), one[:1] * 30):
    assert cuts(frames) == []
  assert cuts(one + two + one) == [40, 80]
  assert cuts(one[:12] + two[:5] + one[12:17] + two[5:20]) == [12, 17, 22]
  assert cuts(one + [frame[::-1, :, ::-1].repeat(2, 0) for frame in two]) == [40]  # of another size
  assert cuts([frame // 6 for frame in one + two]) == [40]  # at night


def test_no_track_and_no_box_crosses_a_cut():
  found = detections(lambda i: [box(50 if i < 18 else 56, 60, 30)], 40)
  assert len(faces.link(found)) == 1
  tracks = faces.link(found, [18])
  assert [[one[0][0], one[-1][0]] for one in tracks] == [[0, 16], [20, 36]]
  squares, with_face = faces.follow(tracks, 40, [18])
  np.testing.assert_allclose(squares[:, 0], [50] * 18 + [56] * 22)
  assert np.flatnonzero(~with_face).tolist() == [37, 38, 39]
  late = [(30, box(90, 60, 30)), (34, box(90, 60, 30))]
  squares = faces.follow([tracks[0], late], 40, [18])[0]  # 20 is nearer to the first, but of the other's shot
  np.testing.assert_allclose(squares[:, 0], [50] * 18 + [90] * 22)


def spans(found):
  return [[(track[0][0], track[-1][0]) for track in person.tracks] for person in found]


def test_persons_are_numbered_by_size_and_go_on_at_their_place():
  def path(i):
    """Two in one shot, the smaller alone in the next, both again; somebody who passes by, and a false alarm."""
    large, small, passing = box(50, 60, 40), box(150, 60, 30), box(100, 20 + i, 25)
    alone = [large] if not 40 <= i < 80 else []
    return [small, *alone, *[passing] * (8 <= i <= 20), *[box(20, 100, 39)] * (i == 60), box(90, 9, 5)]

  found = persons(detections(path, 120), 120, [40, 80])
  assert spans(found) == [[(0, 36), (80, 116)], [(0, 36), (40, 76), (80, 116)]]
  assert [person.number for person in found] == [1, 2]
  assert [track[0] for track in found[1].within(10, 60)] == [(2, box(150, 60, 30)), (30, box(150, 60, 30))]
  assert found[0].within(41, 79) == []
  assert found[0].score == pytest.approx(0.9)


def test_a_place_taken_by_another_look_or_size_is_another_person():
  def shot(grey=90):
    return box(50, 60, 40)._replace(look=bytes([grey] * 48))

  for other, number in (
    (shot(), 1), (shot(105), 1), (shot(107), 2), (box(50, 60, 40), 1),
    (box(50, 60, 60), 2), (box(70, 60, 40), 2), (box(60, 60, 40), 1),
  ):  # fmt: skip
    found = persons(detections(lambda i, other=other: [shot() if i < 40 else other], 80), 80, [40])
    assert len(found) == number
  assert persons([(0, []), (4, [])], 5) == []
  assert spans(persons(detections(shot_of_one, 9), 9)) == [[(0, 8)]]  # short, but half of the film


def shot_of_one(i):
  return [box(50, 60, 40)]


class AllSpots(Spots):
  def detect(self, frame):
    return [found for found in super().detect(frame) if found.area > 20]


def test_a_film_of_two_persons_is_answered_for_both(tmp_path, monkeypatch):
  """Red and green side by side, then green alone elsewhere, in another room; each window shows each who is there."""
  monkeypatch.setattr(faces, "Detector", AllSpots)
  finder = faces.FaceFinder(Path("none"), size=32)
  pictures = [frame.copy() for frame in room(0, 50) + room(1, 50)]
  for i, frame in enumerate(pictures):
    if i < 50:
      frame[20:46, 10:36] = (255, 0, 0)
    left, side = (60, 20) if i < 50 else (20, 22)
    frame[30 : 30 + side, left : left + side] = (0, 255, 0)
  seen = film.survey(write_film(tmp_path / "a.mkv", pictures, hum(4.0)), finder, hop=1.0)
  found = persons(seen.detections, len(seen.times), seen.cuts)
  assert (seen.cuts, spans(found)) == ([50], [[(0, 49)], [(50, 99)], [(0, 49)]])
  wanted = [(one, who) for one in film.windows(seen, 1.0, 1.0) for who in found if who.within(*one[2:4])]
  windows, whose = zip(*wanted, strict=True)
  answers = list(film.samples(seen, windows, SPEC, finder, whose))
  assert [(one.window.start, one.person) for one in answers] == [
    (0.0, 1), (0.0, 3), (1.0, 1), (1.0, 3), (2.0, 2), (3.0, 2),
  ]  # fmt: skip
  for one in answers:
    colour = one.video[:, 8:-8, 8:-8].mean(axis=(0, 1, 2))
    assert colour.argmax() == (0 if one.person == 1 else 1)
    assert colour.max() > 240
    assert one.with_face.all()
  np.testing.assert_array_equal(answers[0].spectrogram, answers[1].spectrogram)
  largest = list(film.samples(seen, film.windows(seen, 1.0, 1.0), SPEC, finder))
  np.testing.assert_array_equal(largest[0].video, answers[0].video)
  np.testing.assert_array_equal(largest[3].video, answers[5].video)
  (whole,) = film.samples(seen, film.windows(seen, None, None), SPEC, finder)
  assert [one.of_others for one in largest] == [0, 0, 0, 0]
  assert whole.of_others == 2  # of 4 frames: red is gone in the second room
