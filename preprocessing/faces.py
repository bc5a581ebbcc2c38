"""The main subject's face in every frame: MTCNN now and then, tracking in between, one crop a frame.

The detector (facenet-pytorch's MTCNN) looks at reduced pictures, every ``detect_every_s``. Where two looks agree, faces
in between are interpolated; where they do not, it looks at the frames in between as well. Full frames are held only
for one such stretch; crops wait in a temporary file until the end of the video tells which face is the subject's.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from preprocessing.config import FaceSettings
from preprocessing.tracking import Detections, Track, Tracker, interpolate, main_subject
from preprocessing.video import Frame

_MIN_FACE = 20
"""Smallest side of a face that is looked for, in pixels of the reduced picture."""
_MOST_FACES = 8
"""Only the largest faces of a picture are followed."""
_LONGEST_STRETCH = 16
"""Most full frames held in memory at a time."""
_TIME_ROUNDING_S = 1e-6


@dataclass(frozen=True)
class Faces:
    """The main subject's face in each of T frames."""

    crops: NDArray[np.uint8]
    """(T,S,S,3) RGB; zeros where there is no face."""
    boxes: NDArray[np.float32]
    """(T,4) x1 y1 x2 y2 in pixels of the upright frame; NaN where there is no face."""
    scores: NDArray[np.float32]
    """(T,) the detector's score in [0, 1], interpolated where the box is; NaN where there is no face."""


class FaceDetector:
    """MTCNN, loaded once; the weights come with facenet-pytorch."""

    def __init__(self, settings: FaceSettings, *, device: str) -> None:
        """Load the three networks.

        Args:
            settings: ``detection_side`` and ``min_score`` are used.
            device: of the networks, as PyTorch names it.
        """
        from facenet_pytorch import MTCNN

        self._side = settings.detection_side
        self._min_score = settings.min_score
        self._mtcnn = MTCNN(min_face_size=_MIN_FACE, keep_all=True, device=torch.device(device))

    def detect(self, images: Sequence[NDArray[np.uint8]]) -> list[Detections]:
        """Faces of several pictures (H,W,3) RGB of one size, largest first, in pixels of those pictures."""
        height, width = images[0].shape[:2]
        scale = min(1.0, self._side / max(height, width))
        size = (round(width * scale), round(height * scale))
        if min(size) < _MIN_FACE:
            return [_no_faces() for _ in images]
        reduced = [np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)) for image in images]
        boxes, scores = self._mtcnn.detect(np.stack(reduced))
        stretch = np.array([width / size[0], height / size[1]] * 2)
        return [
            self._select(b, s, stretch) if b is not None else _no_faces() for b, s in zip(boxes, scores, strict=True)
        ]

    def _select(self, boxes: NDArray, scores: NDArray, stretch: NDArray[np.float64]) -> Detections:
        good = np.flatnonzero(scores.astype(np.float64) >= self._min_score)[:_MOST_FACES]
        return Detections(boxes=boxes[good].astype(np.float64) * stretch, scores=scores[good].astype(np.float64))


def find_faces(frames: Iterable[Frame], detector: FaceDetector, settings: FaceSettings) -> Faces:
    """Follow the main subject's face through a video.

    The main subject is the face that is largest, longest seen and most central; see
    :func:`preprocessing.tracking.main_subject`. Memory does not grow with the size of the frames.

    Args:
        frames: all frames of the video in order, each of the same size.
        detector: made with the same settings.
        settings: see :class:`preprocessing.config.FaceSettings`.
    """
    tracker = Tracker()
    times_s: list[float] = []
    height = width = 0
    with tempfile.TemporaryFile() as store:
        for frame, detections in _faces_of_frames(frames, detector, settings.detect_every_s):
            height, width = frame.image.shape[:2]
            tracker.add(len(times_s), frame.time_s, detections)
            for box in detections.boxes:
                store.write(cut_face(frame.image, box, size=settings.size, margin=settings.margin).data)
            times_s.append(frame.time_s)
        n_frames = len(times_s)
        spacing_s = (times_s[-1] - times_s[0]) / (n_frames - 1) if n_frames > 1 else 0.0
        subject = main_subject(
            tracker.tracks,
            width=width,
            height=height,
            spacing_s=spacing_s,
            # Half of a video that is itself too short is enough.
            min_track_s=min(settings.min_track_s, 0.5 * n_frames * spacing_s),
        )
        return _gather(subject, store, n_frames=n_frames, size=settings.size)


def cut_face(image: NDArray[np.uint8], box: NDArray[np.float64], *, size: int, margin: float) -> NDArray[np.uint8]:
    """Square cut around the centre of a box, (size,size,3) RGB; black outside the picture.

    Args:
        image: (H,W,3) RGB.
        box: x1 y1 x2 y2 in pixels.
        size: side of the result, pixels.
        margin: added to each side of the square around the box, as a fraction of its side.
    """
    centre = (box[:2] + box[2:]) / 2
    half = max(box[2] - box[0], box[3] - box[1], 1.0) * (0.5 + margin)
    corner = np.floor(centre - half).astype(int)
    end = np.ceil(centre + half).astype(int)
    outer = _cut(image, corner, end)
    square = (*(centre - half - corner), *(centre + half - corner))
    # Pillow widens the filter when it makes a picture smaller, so that nothing is aliased.
    resized = Image.fromarray(outer).resize((size, size), Image.Resampling.BILINEAR, box=square)
    return np.asarray(resized)


def _cut(image: NDArray[np.uint8], corner: NDArray[np.intp], end: NDArray[np.intp]) -> NDArray[np.uint8]:
    """Rectangle from x, y (included) to x, y (excluded); black outside the picture."""
    cut = np.zeros((end[1] - corner[1], end[0] - corner[0], 3), dtype=np.uint8)
    bounds = np.array([image.shape[1], image.shape[0]])
    low, high = np.clip(corner, 0, bounds), np.clip(end, 0, bounds)
    to, until = low - corner, high - corner
    cut[to[1] : until[1], to[0] : until[0]] = image[low[1] : high[1], low[0] : high[0]]
    return cut


def _faces_of_frames(
    frames: Iterable[Frame], detector: FaceDetector, detect_every_s: float
) -> Iterator[tuple[Frame, Detections]]:
    """Every frame with its faces, found or interpolated; holds the frames since the detector's last look."""
    held: list[Frame] = []
    last_look: tuple[float, Detections] | None = None
    last_s = 0.0
    for frame in frames:
        held.append(frame)
        next_s = 2 * frame.time_s - last_s
        last_s = frame.time_s
        if (
            last_look is None
            or next_s - last_look[0] > detect_every_s + _TIME_ROUNDING_S
            or len(held) == _LONGEST_STRETCH
        ):
            faces = _faces_of_stretch(held, last_look, detector)
            last_look = frame.time_s, faces[-1]
            yield from zip(held, faces, strict=True)
            held.clear()
    if held:
        yield from zip(held, _faces_of_stretch(held, last_look, detector), strict=True)


def _faces_of_stretch(
    frames: Sequence[Frame], before: tuple[float, Detections] | None, detector: FaceDetector
) -> list[Detections]:
    """Faces of each frame, given time and faces of the frame before them: the detector looks at the last one first."""
    *between, end = frames
    found = detector.detect([end.image])
    if before is None or not between:
        return found
    start_s, start = before
    weights = [(frame.time_s - start_s) / (end.time_s - start_s) for frame in between]
    faces = interpolate(start, found[0], weights)
    if faces is None:
        faces = detector.detect([frame.image for frame in between])
    return [*faces, *found]


def _gather(subject: dict[int, tuple[Track, int]], store: IO[bytes], *, n_frames: int, size: int) -> Faces:
    """The subject's faces, with their crops from the store of all crops in the order of their numbers."""
    crops = np.zeros((n_frames, size, size, 3), dtype=np.uint8)
    boxes = np.full((n_frames, 4), np.nan, dtype=np.float32)
    scores = np.full(n_frames, np.nan, dtype=np.float32)
    for frame, (track, position) in subject.items():
        boxes[frame] = track.boxes[position]
        scores[frame] = track.scores[position]
        store.seek(track.numbers[position] * crops[frame].nbytes)
        crops[frame] = np.frombuffer(store.read(crops[frame].nbytes), dtype=np.uint8).reshape(crops[frame].shape)
    return Faces(crops=crops, boxes=boxes, scores=scores)


def _no_faces() -> Detections:
    return Detections(boxes=np.zeros((0, 4)), scores=np.zeros(0))
