"""Faces with the real detector: against a look at every frame, where there is none, and how they are cut out."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
import pytest

from preprocessing.config import FaceSettings
from preprocessing.faces.crop import Faces, align_face, cut_face
from preprocessing.faces.detect import FaceDetector
from preprocessing.faces.follow import follow_faces
from preprocessing.faces.track import Detections, Tracker, overlaps
from preprocessing.media import Frame, Video

SETTINGS = FaceSettings()
EVERY_FRAME = FaceSettings(detect_every_s=0.0, follow_every_s=0.0)


@pytest.fixture(scope="module")
def detector() -> FaceDetector:
    return FaceDetector(SETTINGS, device="cpu")


def find_faces(frames: Iterable[Frame], detector: FaceDetector, settings: FaceSettings) -> Faces:
    """Faces of the main person; the file of the crops lives as long as they do."""
    (faces,) = follow_faces(frames, detector, settings, TemporaryFile())  # noqa: SIM115
    return faces


def faces_of(path: Path, detector: FaceDetector, settings: FaceSettings, *, n_frames: int | None = None) -> Faces:
    with Video(path) as video:
        return find_faces(islice(video.frames(), n_frames), detector, settings)


def crops_of(faces: Faces) -> np.ndarray:
    return faces.read_crops(0, len(faces.scores))


def check_agreement(found: Faces, reference: Faces) -> None:
    """A face on 98 % of the frames where the reference has one, and mean overlap of at least 0.8."""
    wanted, there = np.isfinite(reference.scores), np.isfinite(found.scores)
    assert wanted.any()
    assert (wanted & there).sum() >= 0.98 * wanted.sum()
    both = wanted & there
    iou = [overlaps(found.boxes[None, k], reference.boxes[None, k])[0, 0] for k in np.flatnonzero(both)]
    assert np.mean(iou) >= 0.8


def test_tracking_agrees_with_a_look_at_every_frame(demo_clips: Path, detector: FaceDetector) -> None:
    path = demo_clips / "demo_01.mp4"
    check_agreement(faces_of(path, detector, SETTINGS, n_frames=75), faces_of(path, detector, EVERY_FRAME, n_frames=75))


def test_hidden_face_is_none_and_returns(demo_clips: Path, detector: FaceDetector) -> None:
    found = faces_of(demo_clips / "demo_02.mp4", detector, SETTINGS)
    none = np.isnan(found.scores)
    # The panel moves in and out within 0.2 s at both ends of a stretch of about 2 s.
    assert 30 <= none.sum() <= 60
    assert np.isnan(found.boxes[none]).all()
    assert not crops_of(found)[none].any()
    assert np.isfinite(found.boxes[~none]).all()
    assert all(crop.any() for crop in crops_of(found)[~none])
    assert not none[-50:].any()


def test_no_face_in_noise_nor_in_tiny_pictures(detector: FaceDetector) -> None:
    random = np.random.default_rng(0)
    for side in (1, 8, 160):
        frames = [Frame(random.integers(0, 256, (side, side, 3), dtype=np.uint8), k / 25) for k in range(10)]
        found = find_faces(frames, detector, SETTINGS)
        assert crops_of(found).shape == (10, SETTINGS.size, SETTINGS.size, 3)
        assert np.isnan(found.scores).all()


@pytest.mark.parametrize("name", ["pyfeat_no_face.mp4", "torchcodec_av1.mkv"])
def test_no_face_where_there_are_no_people(media: Path, detector: FaceDetector, name: str) -> None:
    assert np.isnan(faces_of(media / name, detector, SETTINGS).scores).all()


def test_face_goes_when_the_cartoon_comes(media: Path, detector: FaceDetector) -> None:
    there = np.isfinite(faces_of(media / "pyfeat_face_noface.mov", detector, SETTINGS).scores)
    assert there[:60].all()
    assert not there[80:].any()


@pytest.mark.parametrize("name", ["sadtalker_WDA_KatieHill.mp4", "grid_bbaf2n.mpg", "pyfeat_single_face.mp4"])
def test_real_faces_agree_with_the_detector_on_every_full_frame(media: Path, detector: FaceDetector, name: str) -> None:
    full = FaceSettings(detect_every_s=0.0, follow_every_s=0.0, detection_side=4096)
    reference = faces_of(media / name, FaceDetector(full, device="cpu"), full, n_frames=40)
    check_agreement(faces_of(media / name, detector, SETTINGS, n_frames=40), reference)


def test_stored_crop_of_a_phone_video_is_upright(media: Path, detector: FaceDetector) -> None:
    found = faces_of(media / "streamio_sideways_movie.mov", detector, SETTINGS)
    there = np.flatnonzero(np.isfinite(found.scores))
    assert len(there) == 25
    # The detector itself tells: it finds the face in the crop as it is stored, larger or surer than on its side.
    crops = crops_of(found)
    enlarged = [np.kron(crops[k], np.ones((4, 4, 1), np.uint8)) for k in there[::6]]
    looks = [np.pad(crop, ((40, 40), (40, 40), (0, 0))) for crop in enlarged]
    upright = sum(len(detector.detect(look)) > 0 for look in looks)
    for turns in (1, 2, 3):
        assert upright > sum(len(detector.detect(np.rot90(look, turns).copy())) > 0 for look in looks)


def test_cut_is_square_around_the_box_and_black_outside() -> None:
    image = np.zeros((100, 200, 3), np.uint8)
    image[:, :100] = (200, 0, 0)
    crop = cut_face(image, np.array([80.0, 30, 120, 60]), size=40, margin=0.0)
    # 40 pixels wide, from 80 to 120: half of it red.
    assert crop.shape == (40, 40, 3)
    assert (crop[:, :19, 0] == 200).all()
    assert not crop[:, 21:].any()
    corner = cut_face(np.full((50, 50, 3), 255, np.uint8), np.array([-20.0, -20, 20, 20]), size=40, margin=0.0)
    assert not corner[:19].any()
    assert (corner[21:, 21:] == 255).all()


def test_margin_widens_the_cut() -> None:
    image = np.arange(100, dtype=np.uint8)[None, :, None].repeat(100, axis=0).repeat(3, axis=2)
    crop = cut_face(image, np.array([40.0, 40, 60, 60]), size=30, margin=0.25)
    assert crop[0, 0, 0] == 35
    assert crop[0, -1, 0] == 64


def test_same_frames_same_bytes(demo_clips: Path, detector: FaceDetector) -> None:
    path = demo_clips / "demo_03.mp4"
    first, second = (faces_of(path, detector, SETTINGS, n_frames=15) for _ in range(2))
    assert crops_of(first).tobytes() == crops_of(second).tobytes()
    assert first.boxes.tobytes() == second.boxes.tobytes()


def test_aligned_face_has_its_landmarks_where_arcface_has_them() -> None:
    # A picture whose colour tells the place: turned, scaled and shifted, each landmark must come out at its own colour.
    y, x = np.mgrid[0:200, 0:200]
    image = np.stack([x, y, np.zeros_like(x)], axis=2).astype(np.uint8)
    arcface = np.array(
        [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
    )
    for scale, angle in ((0.5, 0.0), (1.2, 0.4), (1.0, -0.7)):
        turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        landmarks = (arcface - 56) @ turn.T + 100
        crop = align_face(image, landmarks, size=112, margin=0.0)
        for (column, row), place in zip(np.round(arcface).astype(int), landmarks, strict=True):
            np.testing.assert_allclose(crop[row, column, :2], place, atol=1.5 * scale + 1)


def test_followed_face_is_where_a_search_finds_it(demo_clips: Path, detector: FaceDetector) -> None:
    with Video(demo_clips / "demo_01.mp4") as video:
        first, *_, later = (frame.image for frame in islice(video.frames(), 6))
    known, searched = detector.detect(first), detector.detect(later)
    followed, there = detector.follow(later, known)
    assert there.all()
    assert overlaps(followed.boxes, searched.boxes)[0, 0] > 0.8
    np.testing.assert_allclose(
        followed.landmarks, searched.landmarks, atol=0.05 * (known.boxes[0, 2] - known.boxes[0, 0])
    )


def test_face_that_has_gone_is_not_followed(demo_clips: Path, detector: FaceDetector) -> None:
    with Video(demo_clips / "demo_01.mp4") as video:
        image = next(video.frames()).image
    known = detector.detect(image)
    assert len(known) == 1
    for empty in (np.full_like(image, 128), np.random.default_rng(0).integers(0, 256, image.shape, dtype=np.uint8)):
        followed, there = detector.follow(empty, known)
        assert len(followed) == 0
        assert not there.any()


def test_cut_to_another_place_is_found_at_once(demo_clips: Path, detector: FaceDetector) -> None:
    with Video(demo_clips / "demo_01.mp4") as video:
        images = [frame.image for frame in islice(video.frames(), 12)]
    shifted = [np.roll(image, 90, axis=1) for image in images]
    frames = [Frame(image, k / 25) for k, image in enumerate([*images, *shifted])]
    found = find_faces(frames, detector, SETTINGS)
    assert np.isfinite(found.scores).all()
    centres = (found.boxes[:, 0] + found.boxes[:, 2]) / 2
    # No box in between: the cut is between frames 11 and 12.
    assert np.ptp(centres[:12]) < 20
    assert np.ptp(centres[12:]) < 20
    assert abs(centres[12] - centres[11]) > 60


def test_face_is_found_again_when_the_size_changes(demo_clips: Path, detector: FaceDetector) -> None:
    """Portrait, then the same person in landscape: boxes are in the pixels of each frame."""
    with Video(demo_clips / "demo_01.mp4") as video:
        images = [frame.image for frame in islice(video.frames(), 20)]
    width = images[0].shape[1]
    wide = [np.pad(image, ((0, 0), (0, 2 * width), (0, 0))) for image in images]
    frames = [Frame(image, k / 25) for k, image in enumerate([*images, *wide, *images])]
    found = find_faces(frames, detector, SETTINGS)
    there = np.isfinite(found.scores)
    alone = np.isfinite(find_faces(frames[:20], detector, SETTINGS).scores)
    assert alone.mean() > 0.9
    assert there.mean() > 0.9
    both = there[:20] & there[20:40]
    # The person has not moved: the picture is wider to the right.
    iou = [overlaps(found.boxes[None, k], found.boxes[None, 20 + k])[0, 0] for k in np.flatnonzero(both)]
    assert np.mean(iou) > 0.7


def test_nobody_is_followed_from_one_size_to_another() -> None:
    tracker = Tracker()
    face = Detections(np.array([[10.0, 10, 50, 50]]), np.array([0.9]), np.zeros((1, 5, 2)))
    for number, size in enumerate([(64, 48), (64, 48), (48, 64), (48, 64)]):
        tracker.add(number, number / 25, face, size=size)
    seen = [(track.size, [sighting.frame for sighting in track.sightings]) for track in tracker.tracks]
    assert seen == [((64, 48), [0, 1]), ((48, 64), [2, 3])]
