"""Faces in every frame of a video: found now and then, followed in between, one crop per frame.

A face is located in three ways, from expensive to cheap (MTCNN is three networks, one after the other):

- a search of the whole picture, reduced, by all three networks: every ``detect_every_s``, if no face is known, if a
  known one is lost, and after a cut;
- following a known face every ``follow_every_s``: the last network alone, at the place where the face was;
- interpolation between two looks that agree; if they do not, pictures in the middle are looked at until they do.

Full frames are held in memory only between two looks; crops wait in a file until it is known who the main person is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import IO

import numpy as np
from numpy.typing import NDArray

from preprocessing.config import FaceSettings
from preprocessing.faces.crop import Faces, align_face, cut_face, read_crops
from preprocessing.faces.detect import FaceDetector
from preprocessing.faces.people import Person, find_people
from preprocessing.faces.track import SAME_FACE_IOU, Detections, Tracker, interpolate, match
from preprocessing.media import Frame

_MOST_HELD = 16
"""Maximum number of full frames held in memory."""
_TIME_ROUNDING_S = 1e-6
_CUT = 30.0
"""Mean change of the thumbnail's values (0 to 255) from one frame to the next that counts as a cut."""
_THUMBNAIL = 24
"""Minimum number of rows and columns of the thumbnail."""


def follow_faces(
    frames: Iterable[Frame], detector: FaceDetector, settings: FaceSettings, crops: IO[bytes]
) -> list[Faces]:
    """Find and follow all faces of a video, and return those of each person of :func:`.people.find_people`.

    Args:
        frames: all frames of the video in order; if their size changes, every face is searched for again.
        detector: made with the same settings.
        settings: see :class:`preprocessing.config.FaceSettings`.
        crops: an empty file that receives the crop of each face of each frame, open for writing and reading as long as
            the result is used.
    """
    tracker = Tracker()
    times_s: list[float] = []
    for frame, faces in _DetectionSchedule(detector, settings).locate(frames):
        height, width = frame.image.shape[:2]
        tracker.add(len(times_s), frame.time_s, faces, size=(width, height))
        for box, landmarks in zip(faces.boxes, faces.landmarks, strict=True):
            if settings.alignment == "similarity":
                crop = align_face(frame.image, landmarks, size=settings.size, margin=settings.margin)
            else:
                crop = cut_face(frame.image, box, size=settings.size, margin=settings.margin)
            crops.write(crop.data)
        times_s.append(frame.time_s)
    people = find_people(tracker.tracks, times_s, settings)
    return [_faces_of(person, len(times_s), crops, settings.size) for person in people]


def _faces_of(person: Person, n_frames: int, crops: IO[bytes], size: int) -> Faces:
    boxes = np.full((n_frames, 4), np.nan, dtype=np.float32)
    scores = np.full(n_frames, np.nan, dtype=np.float32)
    numbers = np.full(n_frames, -1, dtype=np.intp)
    for sighting in person:
        boxes[sighting.frame] = sighting.box
        scores[sighting.frame] = sighting.score
        numbers[sighting.frame] = sighting.number
    return Faces(boxes, scores, partial(read_crops, crops, numbers, size))


class _DetectionSchedule:
    """Decides for each frame whether faces are searched for, followed or interpolated; holds the undecided frames."""

    def __init__(self, detector: FaceDetector, settings: FaceSettings) -> None:
        self._detector, self._settings = detector, settings
        self._held: list[Frame] = []
        self._last: tuple[float, Detections] | None = None
        """Time and faces of the last look in this scene."""
        self._searched_s = 0.0

    def locate(self, frames: Iterable[Frame]) -> Iterator[tuple[Frame, Detections]]:
        """Yield every frame with its faces."""
        last_s = 0.0
        size: tuple[int, ...] = ()
        thumbnail: NDArray[np.int16] | None = None
        for frame in frames:
            size_before, size = size, frame.image.shape
            before, thumbnail = thumbnail, _thumbnail(frame.image)
            if before is not None and (size != size_before or np.abs(thumbnail - before).mean() > _CUT):
                yield from self._look()
                self._last = None
            self._held.append(frame)
            next_s = 2 * frame.time_s - last_s
            last_s = frame.time_s
            if (
                self._last is None
                or next_s - self._last[0] > self._settings.follow_every_s + _TIME_ROUNDING_S
                or len(self._held) == _MOST_HELD
            ):
                yield from self._look()
        yield from self._look()

    def _look(self) -> Iterator[tuple[Frame, Detections]]:
        """Look at the last of the held frames, and release all of them with their faces."""
        if not self._held:
            return
        *between, end = self._held
        found = end.time_s, self._faces_at(end)
        faces = self._faces_between(between, self._last, found) if self._last is not None else []
        self._last = found
        yield from zip(self._held, [*faces, found[1]], strict=True)
        self._held = []

    def _faces_at(self, frame: Frame) -> Detections:
        search_due = frame.time_s - self._searched_s >= self._settings.detect_every_s - _TIME_ROUNDING_S
        if self._last is not None and len(self._last[1]) and not search_due:
            known = self._last[1]
            followed, there = self._detector.follow(frame.image, known)
            if not np.any(known.major & ~there):
                return followed
        self._searched_s = frame.time_s
        return self._detector.detect(frame.image)

    def _faces_between(
        self, frames: Sequence[Frame], before: tuple[float, Detections], after: tuple[float, Detections]
    ) -> list[Detections]:
        """Faces of frames between two looks; if these do not agree, the frame in the middle is looked at too."""
        if not frames:
            return []
        weights = [(frame.time_s - before[0]) / (after[0] - before[0]) for frame in frames]
        faces = interpolate(before[1], after[1], weights)
        if faces is not None:
            return faces
        middle = len(frames) // 2
        found = frames[middle].time_s, self._faces_in_middle(frames[middle], before[1], after[1])
        return [
            *self._faces_between(frames[:middle], before, found),
            found[1],
            *self._faces_between(frames[middle + 1 :], found, after),
        ]

    def _faces_in_middle(self, frame: Frame, before: Detections, after: Detections) -> Detections:
        """Faces of a frame between two looks: a face that comes or goes is followed from the look that has it."""
        in_both = [j for _, j in match(before.boxes, after.boxes, least_iou=SAME_FACE_IOU)]
        newcomers = after.take(np.setdiff1d(np.arange(len(after)), in_both))
        known = Detections(
            np.concatenate([before.boxes, newcomers.boxes]),
            np.concatenate([before.scores, newcomers.scores]),
            np.concatenate([before.landmarks, newcomers.landmarks]),
        )
        found, _ = self._detector.follow(frame.image, known)
        if found.major.sum() >= min(before.major.sum(), after.major.sum()):
            return found
        return self._detector.detect(frame.image)


def _thumbnail(image: NDArray[np.uint8]) -> NDArray[np.int16]:
    rows, columns = (max(1, side // _THUMBNAIL) for side in image.shape[:2])
    return image[::rows, ::columns].astype(np.int16)
