"""Faces of one picture, and the same faces through time: boxes only, pure NumPy.

A box is x1 y1 x2 y2 in pixels of the upright frame, x to the right and y down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

LINK_IOU = 0.3
"""Minimum overlap of a face with itself in the next picture."""
SAME_FACE_IOU = 0.7
"""Two faces that overlap by more than this are one: MTCNN's own limit."""
_INTERPOLATION_IOU = 0.5
"""Minimum overlap of a face with itself at the two ends of an interpolation: a faster one may not move evenly."""
_LONGEST_GAP_S = 0.5
"""A track continues when its face is missing for at most this long."""
_MINOR_SIDE = 1 / 3
"""A face whose side is below this fraction of the largest face's cannot be the main person's at that time."""


@dataclass(frozen=True)
class Detections:
    """The n faces of one picture."""

    boxes: NDArray[np.float64]
    """(n,4) x1 y1 x2 y2."""
    scores: NDArray[np.float64]
    """(n,) in [0, 1]."""
    landmarks: NDArray[np.float64]
    """(n,5,2) x and y of the eyes, the nose and the corners of the mouth, those on the picture's left first."""

    def __len__(self) -> int:
        """Number of faces."""
        return len(self.scores)

    def take(self, which: NDArray[np.bool_] | NDArray[np.intp] | Sequence[int]) -> Detections:
        """Select faces as NumPy indexes them."""
        return Detections(self.boxes[which], self.scores[which], self.landmarks[which])

    @property
    def major(self) -> NDArray[np.bool_]:
        """(n,) which faces are large enough, beside the largest, to be the main person's."""
        size = sides(self.boxes)
        return size >= _MINOR_SIDE * size.max(initial=0.0)


def no_faces() -> Detections:
    """Return the detections of a picture without a face."""
    return Detections(boxes=np.zeros((0, 4)), scores=np.zeros(0), landmarks=np.zeros((0, 5, 2)))


def sides(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the longer side of each box, (n,4) -> (n,)."""
    return np.maximum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])


def overlaps(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute intersection over union of each box of ``a`` (n,4) with each of ``b`` (m,4), (n,m) in [0, 1]."""
    corner_1 = np.maximum(a[:, None, :2], b[None, :, :2])
    corner_2 = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.prod(np.maximum(corner_2 - corner_1, 0.0), axis=2)
    area_a = np.prod(a[:, 2:] - a[:, :2], axis=1)
    area_b = np.prod(b[:, 2:] - b[:, :2], axis=1)
    union = area_a[:, None] + area_b[None, :] - shared
    return shared / np.maximum(union, np.finfo(np.float64).tiny)


def match(a: NDArray[np.float64], b: NDArray[np.float64], *, least_iou: float) -> list[tuple[int, int]]:
    """Pair boxes of ``a`` (n,4) and ``b`` (m,4), each box at most once, best overlap first."""
    iou = overlaps(a, b)
    pairs: list[tuple[int, int]] = []
    while iou.size and iou.max() >= least_iou:
        i, j = (int(k) for k in np.unravel_index(np.argmax(iou), iou.shape))
        pairs.append((i, j))
        iou[i, :] = iou[:, j] = -1.0
    return pairs


def interpolate(a: Detections, b: Detections, weights: Sequence[float]) -> list[Detections] | None:
    """Interpolate linearly between the faces of two pictures, for weights from 0 (at ``a``) to 1 (at ``b``).

    Returns None if the two do not have every major face at about the same place: a face comes, goes or jumps, or the
    scene is cut.
    """
    pairs = match(a.boxes, b.boxes, least_iou=_INTERPOLATION_IOU)
    of_a, of_b = [i for i, _ in pairs], [j for _, j in pairs]
    largest = max(sides(a.boxes).max(initial=0.0), sides(b.boxes).max(initial=0.0))
    for ends, paired in ((a, of_a), (b, of_b)):
        unpaired = np.delete(ends.boxes, paired, axis=0)
        if np.any(sides(unpaired) >= _MINOR_SIDE * largest):
            return None
    first, last = a.take(of_a), b.take(of_b)
    return [
        Detections(
            boxes=(1 - weight) * first.boxes + weight * last.boxes,
            scores=(1 - weight) * first.scores + weight * last.scores,
            landmarks=(1 - weight) * first.landmarks + weight * last.landmarks,
        )
        for weight in weights
    ]


@dataclass(frozen=True)
class Sighting:
    """One detection of a face."""

    frame: int
    """Index of the frame."""
    time_s: float
    box: NDArray[np.float64]
    """(4,) x1 y1 x2 y2."""
    score: float
    number: int
    """Number of the detection, counted over the whole video in the order given to :meth:`Tracker.add`."""


@dataclass(eq=False)
class Track:
    """One face through time."""

    size: tuple[int, int]
    """Width and height in pixels of the pictures that it is seen in."""
    sightings: list[Sighting] = field(default_factory=list)
    """In order of time."""


class Tracker:
    """Links the faces of consecutive pictures into tracks."""

    def __init__(self) -> None:
        """Start without tracks."""
        self.tracks: list[Track] = []
        self._live: list[Track] = []
        self._n_detections = 0

    def add(self, frame: int, time_s: float, detections: Detections, *, size: tuple[int, int]) -> None:
        """Continue tracks with the faces of the next frame, or start new ones.

        Args:
            frame: index of the frame.
            time_s: its time, seconds.
            detections: its faces.
            size: its width and height in pixels; no track continues where it changes.
        """
        self._live = [
            track
            for track in self._live
            if time_s - track.sightings[-1].time_s <= _LONGEST_GAP_S and track.size == size
        ]
        last = np.array([track.sightings[-1].box for track in self._live]).reshape(-1, 4)
        track_of = {j: self._live[i] for i, j in match(last, detections.boxes, least_iou=LINK_IOU)}
        for j, (box, score) in enumerate(zip(detections.boxes, detections.scores, strict=True)):
            if j not in track_of:
                track_of[j] = Track(size)
                self.tracks.append(track_of[j])
                self._live.append(track_of[j])
            track_of[j].sightings.append(Sighting(frame, time_s, box, float(score), self._n_detections))
            self._n_detections += 1
