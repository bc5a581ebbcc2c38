"""Who the main person is, and who else is seen for long.

:func:`importance` ranks the tracks: the main person's face is the largest, longest seen and most central one.
:meth:`_Candidates.compose` starts a person with the most important track, and continues it where the face is lost.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from preprocessing.config import FaceSettings
from preprocessing.faces.track import LINK_IOU, Sighting, Track, overlaps, sides

_LASTING_SHARE = 0.2
"""Minimum share of the frames in which a face is seen for the person to count with ``faces.subjects=all``."""
_MOST_OVERLAP = 0.5
"""A track of which a larger share coincides with better tracks of a person is somebody else's."""

Person = list[Sighting]
"""One person's face, at most one sighting per frame, in any order."""


def importance(track: Track) -> float:
    """Sum size times centrality over the frames of a track.

    Size is the longer side of the face in diagonals of the picture; centrality is 1 in the centre and 0.5 in a corner.
    """
    boxes = np.array([sighting.box for sighting in track.sightings])
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    width, height = track.size
    diagonal = np.hypot(width, height)
    offsets = np.linalg.norm(centres - np.array([width, height]) / 2, axis=1) / (diagonal / 2)
    return float(np.sum(sides(boxes) / diagonal * (1 - 0.5 * np.minimum(offsets, 1.0))))


def find_people(tracks: Sequence[Track], times_s: Sequence[float], settings: FaceSettings) -> list[Person]:
    """Compose the main person, or everyone seen for long, of the tracks of a video.

    Where the main person's face is lost (a cut, a gap), the best of the other tracks continues it; one that lies where
    the face was before or will be after is preferred. With ``subjects=all``, only such tracks continue a person: there
    is no face recognition. A track that is mostly seen beside a person is somebody else's.

    Args:
        tracks: all faces of the video.
        times_s: of its T frames, seconds.
        settings: tracks seen for less than ``min_track_s`` are false alarms, unless the video is shorter than twice
            that.

    Returns:
        With ``subjects=all``, everyone whose face is seen in at least a fifth of the frames, the most important person
        first; if there is nobody, or with ``subjects=main``, the main person alone, perhaps without any track.
    """
    candidates = _Candidates(tracks, times_s, settings.min_track_s)
    people = []
    left = candidates.everyone()
    while settings.subjects == "all" and left.any():
        people.append(candidates.compose(left, least_continuity=LINK_IOU))
    lasting = [person for person in people if len(person) >= _LASTING_SHARE * len(times_s)]
    return lasting or [candidates.compose(candidates.everyone(), least_continuity=0.0)]


class _Candidates:
    """The n tracks that are long enough to be a person's."""

    def __init__(self, tracks: Sequence[Track], times_s: Sequence[float], min_track_s: float) -> None:
        spacing_s = (times_s[-1] - times_s[0]) / (len(times_s) - 1) if len(times_s) > 1 else 0.0
        least_s = min(min_track_s, 0.5 * len(times_s) * spacing_s)
        self._tracks = [track for track in tracks if len(track.sightings) * spacing_s >= least_s]
        self._importance = np.array([importance(track) for track in self._tracks])
        self._first, self._first_box = self._ends(0)
        self._last, self._last_box = self._ends(-1)

    def _ends(self, position: int) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """(n,) index of the frame and (n,4) box of each track's first or last sighting."""
        sightings = [track.sightings[position] for track in self._tracks]
        # As fractions of the picture, whose size can change from one track to the next.
        boxes = [sighting.box / (track.size * 2) for sighting, track in zip(sightings, self._tracks, strict=True)]
        return np.array([sighting.frame for sighting in sightings]), np.array(boxes).reshape(-1, 4)

    def everyone(self) -> NDArray[np.bool_]:
        """(n,) all of them."""
        return np.ones(len(self._tracks), np.bool_)

    def compose(self, left: NDArray[np.bool_], *, least_continuity: float) -> Person:
        """Compose one person of the tracks marked in ``left`` (n,), and unmark those taken.

        The continuity of a track is its overlap in space with the nearest track before or after it that was already
        taken, the larger of the two. It is updated with each choice: a long video has thousands of tracks.
        """
        person: Person = []
        occupied: set[int] = set()
        remaining = left.copy()
        gap = np.full((2, len(left)), np.inf)
        continuity = np.zeros((2, len(left)))
        while True:
            best_continuity = continuity.max(axis=0)
            open_to = remaining & (best_continuity >= least_continuity) if person else remaining
            if not open_to.any():
                return person
            number = int(np.argmax(np.where(open_to, self._importance * (1 + best_continuity), -1.0)))
            remaining[number] = False
            sightings = self._tracks[number].sightings
            free = [sighting for sighting in sightings if sighting.frame not in occupied]
            if len(free) < (1 - _MOST_OVERLAP) * len(sightings):
                continue
            left[number] = False
            person += free
            occupied.update(sighting.frame for sighting in free)
            before = (self._first - self._last[number], self._last_box[number], self._first_box)
            after = (self._first[number] - self._last, self._first_box[number], self._last_box)
            for side, (distance, box, boxes) in enumerate((before, after)):
                nearer = (distance > 0) & (distance < gap[side])
                gap[side, nearer] = distance[nearer]
                continuity[side, nearer] = overlaps(box[None], boxes[nearer])[0]
