"""Faces in every frame: found by MTCNN now and then, followed in between, one crop a frame.

Three ways to a face, from dear to cheap (facenet-pytorch's MTCNN is three networks one after the other):

- a search of the whole picture, reduced, by all three networks: every ``detect_every_s``, when no face is known, when a
  known one is lost and after a cut;
- following a known face every ``follow_every_s``: the last network alone, on the place where the face was;
- interpolation between two looks that agree; where they do not, pictures in the middle are looked at until they do.

Full frames are held only between two looks; crops wait in a file until the end tells whose face is the subject's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from preprocessing.config import FaceSettings
from preprocessing.faces.track import (
    Detections,
    Subject,
    Track,
    Tracker,
    interpolate,
    lasting_subjects,
    main_subject,
    match,
    overlaps,
)
from preprocessing.media import Frame

_MIN_FACE = 24
"""Smallest side of a face that is looked for, in pixels of the reduced picture."""
_THRESHOLDS = [0.7, 0.8, 0.7]
"""Least scores of the three networks. With the defaults of the first two, 0.6 and 0.7, a search takes half as long
again and finds the same faces in all test clips."""
_MOST_FACES = 8
"""Only the largest faces of a picture are followed."""
_SAME_FACE_IOU = 0.7
"""Two known faces that come to overlap by more than this have become one: MTCNN's own limit."""
_ONET_SIDE = 48
"""Input of MTCNN's last network, pixels."""
_SETTLED_IOU = 0.8
"""The last network corrects the place it is given; where it moves a box by more, it looks again from there."""
_LONGEST_STRETCH = 16
"""Most full frames held in memory at a time."""
_TIME_ROUNDING_S = 1e-6
_CUT = 30.0
"""Mean change of the thumbnail's values (0 to 255) from one frame to the next that is taken for a cut."""
_THUMBNAIL = 24
"""Rows and columns of the thumbnail, at least."""

_TEMPLATE = (
    np.array([[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]) / 112
)
"""Where a similarity puts the landmarks, as fractions of the crop's side. Source: ArcFace (arXiv 1801.07698)."""


@dataclass(frozen=True)
class Faces:
    """One person's face in each of T frames."""

    boxes: NDArray[np.float32]
    """(T,4) x1 y1 x2 y2 in pixels of the upright frame; NaN where there is no face, or its place is not known."""
    scores: NDArray[np.float32]
    """(T,) the detector's score in [0, 1], interpolated where the box is; NaN where there is no face."""
    read_crops: Callable[[int, int], NDArray[np.uint8]]
    """Frames first to stop (excluded) -> (stop-first,S,S,3) RGB; zeros where there is no face."""


class FaceDetector:
    """MTCNN, loaded once; the weights come with facenet-pytorch."""

    def __init__(self, settings: FaceSettings, *, device: str) -> None:
        """Load the three networks.

        Args:
            settings: ``detection_side`` and ``min_score`` are used.
            device: of the networks, as PyTorch names it.
        """
        # Imported here: planning, --dry-run and the process that waits for the workers do without PyTorch.
        import torch
        from facenet_pytorch import MTCNN

        self._side = settings.detection_side
        self._min_score = settings.min_score
        self._device = torch.device(device)
        self._mtcnn = MTCNN(min_face_size=_MIN_FACE, thresholds=_THRESHOLDS, keep_all=True, device=self._device)

    def detect(self, images: Sequence[NDArray[np.uint8]]) -> list[Detections]:
        """Search several pictures (H,W,3) RGB of one size; faces largest first, in pixels of those pictures."""
        height, width = images[0].shape[:2]
        scale = min(1.0, self._side / max(height, width))
        size = (round(width * scale), round(height * scale))
        if min(size) < _MIN_FACE:
            return [_no_faces() for _ in images]
        # In two steps, the first of them a plain average of whole pixels: as good, and faster for large pictures.
        reduced = [
            np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0))
            for image in images
        ]
        found = self._mtcnn.detect(np.stack(reduced), landmarks=True)
        stretch = np.array([width / size[0], height / size[1]])
        return [
            self._select(boxes, scores, landmarks, stretch) if boxes is not None else _no_faces()
            for boxes, scores, landmarks in zip(*found, strict=True)
        ]

    def follow(self, image: NDArray[np.uint8], known: Detections) -> tuple[Detections, NDArray[np.bool_]]:
        """Look at a picture (H,W,3) RGB only where n faces were a moment before, or will be a moment later.

        Returns:
            The faces that are there, and (n,) which of the known ones they are.
        """
        found, there = self._refine(image, known.boxes)
        settled = overlaps(found.boxes, known.boxes[there]).diagonal() >= _SETTLED_IOU
        if not settled.all():
            found, visible = self._refine(image, found.boxes)
            there[there] = visible
        sure = (found.scores >= self._min_score) & _distinct(found)
        there[there] = sure
        return found.take(sure), there

    def _refine(self, image: NDArray[np.uint8], boxes: NDArray[np.float64]) -> tuple[Detections, NDArray[np.bool_]]:
        """MTCNN's last network on the squares around n boxes, and (n,) which of them lie in the picture at all."""
        height, width = image.shape[:2]
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        sides = np.max(boxes[:, 2:] - boxes[:, :2], axis=1)[:, None]
        squares = np.concatenate([centres - sides / 2, centres + sides / 2], axis=1)
        # As MTCNN does it, a square that reaches over the edge is cut there and stretched.
        inside = np.clip(squares, 0, [width, height, width, height])
        visible = np.all(inside[:, 2:] - inside[:, :2] >= 1, axis=1)
        squares, side = squares[visible], sides[visible]
        if not visible.any():
            return _no_faces(), visible
        patches = np.stack([_reduce(image, part, _ONET_SIDE, Image.Resampling.BOX) for part in inside[visible]])
        import torch

        pixels = torch.from_numpy(patches).permute(0, 3, 1, 2).to(self._device, torch.float32)
        with torch.inference_mode():
            outputs = self._mtcnn.onet((pixels - 127.5) / 128)
        shifts, points, scores = (output.cpu().numpy().astype(np.float64) for output in outputs)
        # Five x, then five y, as fractions of the square's side, like the shifts of the corners.
        landmarks = squares[:, None, :2] + side[:, None] * points.reshape(-1, 2, 5).transpose(0, 2, 1)
        return Detections(squares + side * shifts, scores[:, 1], landmarks), visible

    def _select(self, boxes: NDArray, scores: NDArray, landmarks: NDArray, stretch: NDArray[np.float64]) -> Detections:
        good = np.flatnonzero(scores.astype(np.float64) >= self._min_score)[:_MOST_FACES]
        return Detections(
            boxes=boxes[good].astype(np.float64) * np.tile(stretch, 2),
            scores=scores[good].astype(np.float64),
            landmarks=landmarks[good].astype(np.float64) * stretch,
        )


class FollowedFaces:
    """All faces of a video through time, with their crops in a file that the caller keeps open."""

    def __init__(self, tracks: Sequence[Track], crops: IO[bytes], times_s: Sequence[float], *, size: int) -> None:
        """Take over what :func:`follow_faces` found; ``size`` is the side of a crop, pixels."""
        self._tracks, self._crops = tracks, crops
        self._n_frames = len(times_s)
        self._spacing_s = (times_s[-1] - times_s[0]) / (self._n_frames - 1) if self._n_frames > 1 else 0.0
        self._size = size

    def main_subject(self, *, min_track_s: float) -> Faces:
        """The face that is largest, longest seen and most central; see :mod:`preprocessing.faces.track`."""
        subject = main_subject(
            self._tracks,
            spacing_s=self._spacing_s,
            min_track_s=self._least_track_s(min_track_s),
        )
        return self._faces_of(subject)

    def lasting_subjects(self, *, min_track_s: float) -> list[Faces]:
        """Every person who is seen for long, the most important one first; see :mod:`preprocessing.faces.track`."""
        subjects = lasting_subjects(
            self._tracks,
            spacing_s=self._spacing_s,
            min_track_s=self._least_track_s(min_track_s),
            n_frames=self._n_frames,
        )
        return [self._faces_of(subject) for subject in subjects]

    def _least_track_s(self, min_track_s: float) -> float:
        # Half of a video that is itself too short is enough.
        return min(min_track_s, 0.5 * self._n_frames * self._spacing_s)

    def _faces_of(self, subject: Subject) -> Faces:
        boxes = np.full((self._n_frames, 4), np.nan, dtype=np.float32)
        scores = np.full(self._n_frames, np.nan, dtype=np.float32)
        numbers = np.full(self._n_frames, -1, dtype=np.intp)
        for frame, (track, position) in subject.items():
            boxes[frame] = track.boxes[position]
            scores[frame] = track.scores[position]
            numbers[frame] = track.numbers[position]

        return Faces(boxes, scores, crop_reader(self._crops, numbers, size=self._size))


def crop_reader(store: IO[bytes], numbers: NDArray[np.intp], *, size: int) -> Callable[[int, int], NDArray[np.uint8]]:
    """Make :attr:`Faces.read_crops` for crops that lie in a file, one after the other.

    Args:
        store: open for reading.
        numbers: (T,) place of each frame's crop in the file; -1 where it has none.
        size: side of a crop, pixels.
    """

    def read_crops(first: int, stop: int) -> NDArray[np.uint8]:
        crops = np.zeros((stop - first, size, size, 3), dtype=np.uint8)
        for crop, number in zip(crops, numbers[first:stop], strict=True):
            if number >= 0:
                store.seek(int(number) * crop.nbytes)
                crop[...] = np.frombuffer(store.read(crop.nbytes), dtype=np.uint8).reshape(crop.shape)
        return crops

    return read_crops


def follow_faces(
    frames: Iterable[Frame], detector: FaceDetector, settings: FaceSettings, crops: IO[bytes]
) -> FollowedFaces:
    """Find and follow all faces of a video; memory does not grow with the size of the frames.

    Args:
        frames: all frames of the video in order; where their size changes, every face is searched for again.
        detector: made with the same settings.
        settings: see :class:`preprocessing.config.FaceSettings`.
        crops: an empty file, open for writing and reading, that receives the crop of each face of each frame.
    """
    tracker = Tracker()
    times_s: list[float] = []
    for frame, faces in _DetectionSchedule(detector, settings).faces_of(frames):
        height, width = frame.image.shape[:2]
        tracker.add(len(times_s), frame.time_s, faces, size=(width, height))
        for box, landmarks in zip(faces.boxes, faces.landmarks, strict=True):
            if settings.alignment == "similarity":
                crop = align_face(frame.image, landmarks, size=settings.size, margin=settings.margin)
            else:
                crop = cut_face(frame.image, box, size=settings.size, margin=settings.margin)
            crops.write(crop.data)
        times_s.append(frame.time_s)
    return FollowedFaces(tracker.tracks, crops, times_s, size=settings.size)


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
    return _reduce(image, np.concatenate([centre - half, centre + half]), size, Image.Resampling.BILINEAR)


def align_face(
    image: NDArray[np.uint8], landmarks: NDArray[np.float64], *, size: int, margin: float
) -> NDArray[np.uint8]:
    """Face turned, scaled and shifted so that its landmarks lie as ArcFace has them, (size,size,3) RGB; black outside.

    Args:
        image: (H,W,3) RGB.
        landmarks: (5,2) see :class:`preprocessing.faces.track.Detections`.
        size: side of the result, pixels.
        margin: added to each side of ArcFace's square, as a fraction of its side.
    """
    # A similarity of the plane is z -> a z + b with complex a and b; least squares from places in the crop to places
    # in the picture.
    target = ((_TEMPLATE - 0.5) / (1 + 2 * margin) + 0.5) * size
    z, w = (points[:, 0] + 1j * points[:, 1] for points in (target, landmarks))
    z_mean, w_mean = z.mean(), w.mean()
    a = np.vdot(z - z_mean, w - w_mean) / np.vdot(z - z_mean, z - z_mean)
    b = w_mean - a * z_mean
    # Drawn at about the picture's own scale, then made smaller: sampling at distances above a pixel would alias.
    finer = max(1, round(abs(a)))
    corners = np.array([a * (x + 1j * y) * size + b for x in (0, 1) for y in (0, 1)])
    corner = np.floor([corners.real.min(), corners.imag.min()]).astype(int) - 1
    end = np.ceil([corners.real.max(), corners.imag.max()]).astype(int) + 1
    a, b = a / finer, b - complex(*corner)
    drawn = Image.fromarray(_cut(image, corner, end)).transform(
        (size * finer, size * finer),
        Image.Transform.AFFINE,
        (a.real, -a.imag, b.real, a.imag, a.real, b.imag),
        Image.Resampling.BILINEAR,
    )
    return np.asarray(drawn.reduce(finer) if finer > 1 else drawn)


def _reduce(
    image: NDArray[np.uint8], square: NDArray[np.float64], size: int, method: Image.Resampling
) -> NDArray[np.uint8]:
    """Rectangle x1 y1 x2 y2 of a picture as (size,size,3); black outside the picture."""
    corner, end = np.floor(square[:2]).astype(int), np.ceil(square[2:]).astype(int)
    part = tuple((square - np.tile(corner, 2)).tolist())
    # Pillow widens the filter when it makes a picture smaller, so that nothing is aliased.
    return np.asarray(Image.fromarray(_cut(image, corner, end)).resize((size, size), method, box=part))


def _cut(image: NDArray[np.uint8], corner: NDArray[np.intp], end: NDArray[np.intp]) -> NDArray[np.uint8]:
    """Rectangle from x, y (included) to x, y (excluded); black outside the picture."""
    bounds = np.array([image.shape[1], image.shape[0]])
    low, high = np.clip(corner, 0, bounds), np.clip(end, 0, bounds)
    inside = image[low[1] : high[1], low[0] : high[0]]
    if np.array_equal(low, corner) and np.array_equal(high, end):
        return np.ascontiguousarray(inside)
    cut = np.zeros((end[1] - corner[1], end[0] - corner[0], 3), dtype=np.uint8)
    to, until = low - corner, high - corner
    cut[to[1] : until[1], to[0] : until[0]] = inside
    return cut


class _DetectionSchedule:
    """Decides for each frame whether faces are searched for, followed or interpolated; holds the undecided frames."""

    def __init__(self, detector: FaceDetector, settings: FaceSettings) -> None:
        self._detector, self._settings = detector, settings
        self._held: list[Frame] = []
        self._last: tuple[float, Detections] | None = None
        """Time and faces of the last look in this scene."""
        self._searched_s = 0.0

    def faces_of(self, frames: Iterable[Frame]) -> Iterator[tuple[Frame, Detections]]:
        """Every frame with its faces, searched for, followed or interpolated."""
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
                or len(self._held) == _LONGEST_STRETCH
            ):
                yield from self._look()
        yield from self._look()

    def _look(self) -> Iterator[tuple[Frame, Detections]]:
        """Look at the last of the held frames, and let all of them go with their faces."""
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
            if not np.any(known.of_note & ~there):
                return followed
        self._searched_s = frame.time_s
        return self._detector.detect([frame.image])[0]

    def _faces_between(
        self, frames: Sequence[Frame], before: tuple[float, Detections], after: tuple[float, Detections]
    ) -> list[Detections]:
        """Faces of frames between two looks; where these do not agree, the one in the middle is looked at too."""
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
        """Faces of a frame between two looks: who comes or goes is known from one of them, and followed from there."""
        in_both = [j for _, j in match(before.boxes, after.boxes, least_iou=_SAME_FACE_IOU)]
        newcomers = after.take(np.setdiff1d(np.arange(len(after)), in_both))
        known = Detections(
            np.concatenate([before.boxes, newcomers.boxes]),
            np.concatenate([before.scores, newcomers.scores]),
            np.concatenate([before.landmarks, newcomers.landmarks]),
        )
        found, _ = self._detector.follow(frame.image, known)
        if found.of_note.sum() >= min(before.of_note.sum(), after.of_note.sum()):
            return found
        return self._detector.detect([frame.image])[0]


def _thumbnail(image: NDArray[np.uint8]) -> NDArray[np.int16]:
    rows, columns = (max(1, side // _THUMBNAIL) for side in image.shape[:2])
    return image[::rows, ::columns].astype(np.int16)


def _distinct(faces: Detections) -> NDArray[np.bool_]:
    """(n,) False for a face that lies on another one with a higher score, or on an earlier one with the same."""
    distinct = np.ones(len(faces), dtype=np.bool_)
    order = np.argsort(-faces.scores, kind="stable")
    iou = overlaps(faces.boxes, faces.boxes)
    for rank, number in enumerate(order):
        distinct[number] = not np.any(distinct[order[:rank]] & (iou[number, order[:rank]] > _SAME_FACE_IOU))
    return distinct


def _no_faces() -> Detections:
    return Detections(boxes=np.zeros((0, 4)), scores=np.zeros(0), landmarks=np.zeros((0, 5, 2)))
