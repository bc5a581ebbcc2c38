"""Faces through time, as boxes only: linking them into tracks, and choosing the main subject's. Pure NumPy.

A box is x1 y1 x2 y2 in pixels of the upright frame, x to the right and y down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

_LINK_IOU = 0.3
"""Least overlap of a face with itself in the next picture."""
_INTERPOLATION_IOU = 0.5
"""Least overlap of a face with itself at the two ends of a stretch; one that moves more may not move evenly."""
_LONGEST_GAP_S = 0.5
"""A track continues when its face is missing for at most this long."""
_MINOR_SIDE = 1 / 3
"""A face whose side is below this fraction of the largest face's is no candidate while the larger one is there."""
_LASTING_SHARE = 0.2
"""Least share of the frames in which a person's face is seen who gets features of their own."""
_MOST_OVERLAP = 0.5
"""Largest fraction of a track that may coincide with better tracks for it to be the subject in the rest."""


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
        """Some of the faces, as NumPy indexes them."""
        return Detections(self.boxes[which], self.scores[which], self.landmarks[which])

    @property
    def of_note(self) -> NDArray[np.bool_]:
        """(n,) which faces are large enough, beside the largest, to be the subject's."""
        size = sides(self.boxes)
        return size >= _MINOR_SIDE * size.max(initial=0.0)


@dataclass(eq=False)
class Track:
    """One face through time; entries of equal position belong together, in order of time."""

    size: tuple[int, int]
    """Width and height in pixels of the pictures that it is seen in."""
    frames: list[int] = field(default_factory=list)
    """Index of the frame."""
    times_s: list[float] = field(default_factory=list)
    boxes: list[NDArray[np.float64]] = field(default_factory=list)
    """(4,) each."""
    scores: list[float] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    """Number of the detection, counted over the whole video in the order given to :meth:`Tracker.add`."""


def sides(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Longer side of each box, (n,4) -> (n,)."""
    return np.maximum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])


def overlaps(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Intersection over union of each box of ``a`` (n,4) with each of ``b`` (m,4), (n,m) in [0, 1]."""
    corner_1 = np.maximum(a[:, None, :2], b[None, :, :2])
    corner_2 = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.prod(np.maximum(corner_2 - corner_1, 0.0), axis=2)
    area_a = np.prod(a[:, 2:] - a[:, :2], axis=1)
    area_b = np.prod(b[:, 2:] - b[:, :2], axis=1)
    union = area_a[:, None] + area_b[None, :] - shared
    return shared / np.maximum(union, np.finfo(np.float64).tiny)


def match(a: NDArray[np.float64], b: NDArray[np.float64], *, least_iou: float) -> list[tuple[int, int]]:
    """Pairs of boxes of ``a`` (n,4) and ``b`` (m,4), each box at most once, best overlap first."""
    iou = overlaps(a, b)
    pairs: list[tuple[int, int]] = []
    while iou.size and iou.max() >= least_iou:
        i, j = (int(k) for k in np.unravel_index(np.argmax(iou), iou.shape))
        pairs.append((i, j))
        iou[i, :] = iou[:, j] = -1.0
    return pairs


def interpolate(a: Detections, b: Detections, weights: Sequence[float]) -> list[Detections] | None:
    """Faces in between two pictures, where every face of note is in both at about the same place.

    Args:
        a: faces of the earlier picture.
        b: faces of the later picture.
        weights: position of each picture in between, from 0 (at ``a``) to 1 (at ``b``).

    Returns:
        Faces of each picture in between, linear in the weight; None where the two ends do not agree (a face comes,
        goes or jumps, the scene is cut), so that only a look at the pictures can tell.
    """
    pairs = match(a.boxes, b.boxes, least_iou=_INTERPOLATION_IOU)
    of_a, of_b = [i for i, _ in pairs], [j for _, j in pairs]
    largest = max((float(sides(ends.boxes).max()) for ends in (a, b) if len(ends)), default=0.0)
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


class Tracker:
    """Links the faces of one picture after another into tracks."""

    def __init__(self) -> None:
        """Start without tracks."""
        self.tracks: list[Track] = []
        self._live: list[Track] = []
        self._n_detections = 0

    def add(self, frame: int, time_s: float, detections: Detections, *, size: tuple[int, int]) -> None:
        """Continue tracks with the faces of the next picture, start new ones for the rest.

        Args:
            frame: index of the picture.
            time_s: its time, seconds.
            detections: its faces.
            size: its width and height in pixels; no track continues where it changes.
        """
        self._live = [
            track for track in self._live if time_s - track.times_s[-1] <= _LONGEST_GAP_S and track.size == size
        ]
        last = np.array([track.boxes[-1] for track in self._live]).reshape(-1, 4)
        track_of = {j: self._live[i] for i, j in match(last, detections.boxes, least_iou=_LINK_IOU)}
        for j in range(len(detections)):
            track = track_of.get(j)
            if track is None:
                track = Track(size)
                self.tracks.append(track)
                self._live.append(track)
            track.frames.append(frame)
            track.times_s.append(time_s)
            track.boxes.append(detections.boxes[j])
            track.scores.append(float(detections.scores[j]))
            track.numbers.append(self._n_detections)
            self._n_detections += 1


Subject = dict[int, tuple[Track, int]]
"""One person's face: for each frame that has it, the track and the position in it."""


def main_subject(tracks: Sequence[Track], *, spacing_s: float, min_track_s: float) -> Subject:
    """Which face is the main subject's in each frame.

    The main subject is the face that is largest, longest seen and most central. Where it is lost (a cut, a gap) the
    best of the other tracks continues, one that lies where the subject was before or will be after being preferred; a
    track that is mostly seen beside the subject is somebody else.

    Args:
        tracks: all faces of the video.
        spacing_s: mean time between two frames, seconds.
        min_track_s: tracks seen for less are taken for false alarms.
    """
    candidates = _candidates(tracks, spacing_s, min_track_s)
    importance = np.array([_importance(track) for track in candidates])
    everybody = np.ones(len(candidates), dtype=np.bool_)
    subject, _ = _follow_subject(candidates, importance, everybody, _Neighbours(candidates), least_continuity=0.0)
    return subject


def lasting_subjects(tracks: Sequence[Track], *, spacing_s: float, min_track_s: float, n_frames: int) -> list[Subject]:
    """Every person whose face is seen in at least a fifth of the frames, the most important one first.

    Without recognition of faces, place alone tells who continues after a gap: a track continues a person where it lies
    over the person's last or next box.

    Args:
        tracks: all faces of the video.
        spacing_s: mean time between two frames, seconds.
        min_track_s: tracks seen for less are taken for false alarms.
        n_frames: of the video.
    """
    candidates = _candidates(tracks, spacing_s, min_track_s)
    importance = np.array([_importance(track) for track in candidates])
    left = np.ones(len(candidates), dtype=np.bool_)
    neighbours = _Neighbours(candidates)
    lasting = []
    while left.any():
        person, chosen = _follow_subject(candidates, importance, left, neighbours, least_continuity=_LINK_IOU)
        left[chosen] = False
        if len(person) >= _LASTING_SHARE * n_frames:
            lasting.append(person)
    return lasting


def _candidates(tracks: Sequence[Track], spacing_s: float, min_track_s: float) -> list[Track]:
    return [track for track in tracks if len(track.frames) * spacing_s >= min_track_s]


def _follow_subject(
    tracks: Sequence[Track],
    importance: NDArray[np.float64],
    among: NDArray[np.bool_],
    neighbours: _Neighbours,
    *,
    least_continuity: float,
) -> tuple[Subject, list[int]]:
    """One person through the tracks marked in ``among``, and the numbers of the tracks taken."""
    neighbours.forget()
    left = among.copy()
    subject: Subject = {}
    chosen: list[int] = []
    while True:
        continuity = neighbours.continuity()
        open_to = left & (continuity >= least_continuity) if chosen else left
        if not open_to.any():
            return subject, chosen
        number = int(np.argmax(np.where(open_to, importance * (1 + continuity), -1.0)))
        left[number] = False
        best = tracks[number]
        free = [position for position, frame in enumerate(best.frames) if frame not in subject]
        if len(free) < (1 - _MOST_OVERLAP) * len(best.frames):
            continue
        subject.update({best.frames[position]: (best, position) for position in free})
        chosen.append(number)
        neighbours.choose(number)


class _Neighbours:
    """How well each of n tracks continues where the chosen ones around it end and begin.

    Kept up to date with each choice instead of recomputed: a long video has thousands of tracks.
    """

    def __init__(self, tracks: Sequence[Track]) -> None:
        self._first_frame = np.array([track.frames[0] for track in tracks])
        self._last_frame = np.array([track.frames[-1] for track in tracks])
        # As fractions of the picture, whose size can change from one track to the next.
        sizes = np.array([track.size * 2 for track in tracks]).reshape(-1, 4)
        self._first_box = np.array([track.boxes[0] for track in tracks]).reshape(-1, 4) / sizes
        self._last_box = np.array([track.boxes[-1] for track in tracks]).reshape(-1, 4) / sizes
        self.forget()

    def forget(self) -> None:
        """Start again with none of the tracks chosen."""
        n_tracks = len(self._first_frame)
        # Frame at which the nearest chosen track before each one ends, and the nearest after it begins.
        self._end_before = np.full(n_tracks, -1)
        self._start_after = np.full(n_tracks, np.iinfo(np.int64).max)
        self._iou_before = np.zeros(n_tracks)
        self._iou_after = np.zeros(n_tracks)

    def continuity(self) -> NDArray[np.float64]:
        """(n,) overlap in space with the nearest chosen track before or after, the larger one, in [0, 1]."""
        return np.maximum(self._iou_before, self._iou_after)

    def choose(self, number: int) -> None:
        """Count a track among the chosen ones."""
        start, end = self._first_frame[number], self._last_frame[number]
        nearer = (end < self._first_frame) & (end > self._end_before)
        self._end_before[nearer] = end
        self._iou_before[nearer] = overlaps(self._last_box[None, number], self._first_box[nearer])[0]
        nearer = (start > self._last_frame) & (start < self._start_after)
        self._start_after[nearer] = start
        self._iou_after[nearer] = overlaps(self._first_box[None, number], self._last_box[nearer])[0]


def _importance(track: Track) -> float:
    """Size times centrality (1 in the centre, 0.5 in a corner), summed over the frames; in diagonals of the picture."""
    boxes = np.array(track.boxes)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    width, height = track.size
    diagonal = np.hypot(width, height)
    offsets = np.linalg.norm(centres - np.array([width, height]) / 2, axis=1) / (diagonal / 2)
    return float(np.sum(sides(boxes) / diagonal * (1 - 0.5 * np.minimum(offsets, 1.0))))
