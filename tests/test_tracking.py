"""Boxes through time: hand-made tracks whose right answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from preprocessing.config import FaceSettings
from preprocessing.faces.people import Person, find_people
from preprocessing.faces.track import Detections, Track, Tracker, interpolate, match, overlaps

SIZE = (640, 480)
EVERYONE = FaceSettings(subjects="all")


def box(x: float, y: float, side: float) -> list[float]:
    """Square box around a centre."""
    return [x - side / 2, y - side / 2, x + side / 2, y + side / 2]


def faces(*boxes: list[float], score: float = 0.99) -> Detections:
    """Faces whose landmarks all lie in the box's centre."""
    places = np.array(boxes, float).reshape(-1, 4)
    centres = (places[:, :2] + places[:, 2:]) / 2
    return Detections(places, np.full(len(boxes), score), centres[:, None].repeat(5, axis=1))


def tracks_of(frames: list[Detections]) -> list[Track]:
    tracker = Tracker()
    for number, found in enumerate(frames):
        tracker.add(number, number / 25, found, size=SIZE)
    return tracker.tracks


def times_of(frames: list[Detections]) -> list[float]:
    return [number / 25 for number in range(len(frames))]


def boxes_of(person: Person) -> dict[int, np.ndarray]:
    return {sighting.frame: sighting.box for sighting in person}


def subject_of(frames: list[Detections], *, min_track_s: float = 0.4) -> dict[int, np.ndarray]:
    (person,) = find_people(tracks_of(frames), times_of(frames), FaceSettings(min_track_s=min_track_s))
    return boxes_of(person)


def test_overlap_is_intersection_over_union() -> None:
    a, b = np.array([box(50, 50, 20)]), np.array([box(50, 50, 20), box(60, 50, 20), box(90, 90, 20)])
    np.testing.assert_allclose(overlaps(a, b), [[1.0, 200 / 600, 0.0]])


def test_each_box_is_matched_once_and_best_first() -> None:
    a = np.array([box(50, 50, 20), box(54, 50, 20)])
    b = np.array([box(55, 50, 20)])
    assert match(a, b, least_iou=0.3) == [(1, 0)]


def test_faces_between_two_looks_are_linear_in_time() -> None:
    start, end = faces(box(100, 100, 50)), faces(box(110, 100, 60), score=0.95)
    between = interpolate(start, end, [0.25, 0.5])
    assert between is not None
    np.testing.assert_allclose(between[0].boxes, [box(102.5, 100, 52.5)])
    np.testing.assert_allclose(between[1].scores, [0.97])
    np.testing.assert_allclose(between[0].landmarks[0, 0], [102.5, 100])


@pytest.mark.parametrize("end", [faces(), faces(box(300, 100, 50)), faces(box(100, 100, 50), box(300, 100, 50))])
def test_looks_that_do_not_agree_are_not_interpolated(end: Detections) -> None:
    assert interpolate(faces(box(100, 100, 50)), end, [0.5]) is None


def test_large_central_face_is_the_subject_and_stays_so() -> None:
    crowd = [faces(box(60, 60, 40), box(320 + n, 240, 120), box(600, 60, 40)) for n in range(50)]
    subject = subject_of(crowd)
    assert sorted(subject) == list(range(50))
    np.testing.assert_allclose(subject[49], box(369, 240, 120))


def test_false_alarm_is_dropped_but_not_in_a_crowd_of_frames() -> None:
    frames = [faces() for _ in range(40)]
    frames[10] = frames[11] = faces(box(320, 240, 200))
    assert subject_of(frames) == {}
    assert sorted(subject_of(frames, min_track_s=0.0)) == [10, 11]


def test_gap_is_no_face_and_the_subject_returns() -> None:
    frames = [faces() if 20 <= n < 60 else faces(box(320, 240, 100)) for n in range(100)]
    assert sorted(subject_of(frames)) == [*range(20), *range(60, 100)]


def test_somebody_beside_the_subject_does_not_take_over_where_the_subject_stays() -> None:
    frames = [faces(box(200, 240, 120), box(480, 240, 90)) for _ in range(50)]
    subject = subject_of(frames)
    assert all(subject[n][0] == 140 for n in range(50))


def test_two_faces_that_come_close_keep_their_tracks() -> None:
    tracks = tracks_of([faces(box(100 + 2 * n, 200, 60), box(440 - 2 * n, 200, 60)) for n in range(60)])
    assert [(track.sightings[0].box[0], track.sightings[-1].box[0]) for track in tracks] == [(70, 188), (410, 292)]


def test_after_a_cut_the_face_at_the_same_place_is_preferred() -> None:
    # Nobody for a moment; then two faces, equally large and equally far from the centre.
    before = [faces(box(200, 240, 100)) for _ in range(50)]
    after = [faces(box(205, 240, 100), box(435, 240, 101)) for _ in range(30)]
    subject = subject_of([*before, *[faces()] * 20, *after])
    assert all(subject[n][0] == 155 for n in range(70, 100))


def people_in(frames: list[Detections]) -> list[dict[int, np.ndarray]]:
    return [boxes_of(person) for person in find_people(tracks_of(frames), times_of(frames), EVERYONE)]


def test_two_who_stay_are_two_people_and_a_passer_by_is_none() -> None:
    frames = [faces(box(180, 240, 120), box(460, 240, 100)) for _ in range(100)]
    for n in range(40, 55):
        frames[n] = faces(box(180, 240, 120), box(460, 240, 100), box(320, 60, 60))
    people = people_in(frames)
    assert [sorted(person) for person in people] == [list(range(100))] * 2
    assert [person[0][0] for person in people] == [120, 410]


def test_person_who_comes_back_to_the_same_place_is_the_same_person() -> None:
    alone, both = faces(box(180, 240, 120)), faces(box(180, 240, 120), box(460, 240, 100))
    people = people_in([*[both] * 40, *[alone] * 40, *[both] * 40])
    assert [len(person) for person in people] == [120, 80]


def test_without_anybody_who_lasts_there_is_the_main_person_alone() -> None:
    assert people_in([faces()] * 30) == [{}]
    passer_by = [faces(box(320, 240, 100)) if 10 <= n < 25 else faces() for n in range(100)]
    assert [sorted(person) for person in people_in(passer_by)] == [list(range(10, 25))]


def test_a_long_video_of_many_cuts_is_quick() -> None:
    # 3000 scenes of half a second: a cost that grows with the cube of them would take hours.
    tracker = Tracker()
    random = np.random.default_rng(0)
    for scene in range(3000):
        x, y = random.uniform(100, 540), random.uniform(100, 380)
        for n in (0, 6, 12):
            tracker.add(13 * scene + n, (13 * scene + n) / 25, faces(box(x, y, 80)), size=SIZE)
    times_s = [0.2 * n for n in range(39000)]
    for settings in (FaceSettings(), EVERYONE):
        (person,) = find_people(tracker.tracks, times_s, settings)
        assert len(boxes_of(person)) == 9000
