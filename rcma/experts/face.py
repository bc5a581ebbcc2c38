"""Valence and arousal of a face by a public ONNX model, on tight boxes cut from the recording itself.

The models are EmotiEffLib's (Savchenko, https://github.com/sb-ai-lab/EmotiEffLib), trained on AffectNet. They look at
single pictures: a face is cut out along its box, without alignment, and scaled to a square. The crops of the feature
folder are too small for them, so the recording is decoded once more; only the frames that are looked at are converted.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from preprocessing.errors import InputError
from preprocessing.features import Features
from preprocessing.media import Video
from rcma.experts.registry import FaceEntry
from rcma.model import OnnxSession

EMOTIONS = ("anger", "contempt", "disgust", "fear", "happiness", "neutral", "sadness", "surprise")
"""Order of the logits."""
LOOK_EVERY_S = 0.2
"""Time between two frames that the model sees."""
LONGEST_GAP_S = 0.5
"""A value is interpolated only where frames that the model saw are at most this far away, before and after."""
_N_OUTPUTS = len(EMOTIONS) + 2
_ROUNDING_S = 1e-4


class FaceExpert:
    """A face model, loaded once."""

    def __init__(self, path: Path, entry: FaceEntry) -> None:
        """Load the network.

        Args:
            path: the ONNX file: float32 (N,3,side,side) to (N,10), eight logits, valence, arousal.
            entry: says how the model wants its input.

        Raises:
            InputError: ``path`` cannot be loaded, or its input or output is another one.
        """
        try:
            graph = path.read_bytes()
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from None
        self._path, self._entry = path, entry
        self._session = OnnxSession(graph, source=str(path), n_threads=1)
        self._run(np.zeros((1, 3, entry.side, entry.side), np.float32))

    def __call__(self, recording: Path, features: Features) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Look at the face of a recording five times a second.

        Args:
            recording: the file that the features were made from.
            features: of its T frames.

        Returns:
            (T,2) valence and arousal in [-1,1] and (T,8) logits of :data:`EMOTIONS`; NaN where there is no face.

        Raises:
            InputError: the recording cannot be read, or it has fewer frames than the features.
        """
        looked = frames_to_look_at(features.time_s, ~np.isnan(features.face_box[:, 0]))
        settings = features.meta.get("settings") or {}
        seen: list[int] = []
        outputs: list[NDArray[np.float32]] = []
        last = -1
        if looked:
            with Video(recording, streams=settings.get("streams") or ()) as video:
                for last, image in video.images(looked):
                    output = self.look(image, features.face_box[last])
                    if output is not None:
                        seen.append(last)
                        outputs.append(output)
            if last != looked[-1]:
                raise InputError(
                    f"{recording}: has fewer than the {features.n_frames} frames of its features; "
                    "preprocess the video again with --overwrite"
                )
        values = interpolate(features, seen, np.reshape(outputs, (len(seen), _N_OUTPUTS)))
        return np.clip(values[:, len(EMOTIONS) :], -1.0, 1.0), values[:, : len(EMOTIONS)]

    def look(self, image: NDArray[np.uint8], box: NDArray[np.floating]) -> NDArray[np.float32] | None:
        """Look at one face.

        Args:
            image: (H,W,3) RGB.
            box: (4,) x1 y1 x2 y2 in its pixels.

        Returns:
            (10,) eight logits, valence and arousal, not clipped; None where no pixel of the box is in the picture.
        """
        face = cut_box(image, box)
        if face.size == 0:
            return None
        return self._run(prepare(face, self._entry)[None])[0]

    def _run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        output = self._session(batch)
        if output.shape != (len(batch), _N_OUTPUTS):
            raise InputError(f"{self._path}: an output of shape {output.shape}; {(len(batch), _N_OUTPUTS)} is right")
        return output


def frames_to_look_at(time_s: NDArray[np.float64], has_face: NDArray[np.bool_]) -> list[int]:
    """Indices of frames with a face, every 0.2 s, and the last one before each long time without a face."""
    frames = np.flatnonzero(has_face)
    looked = frames[:1].tolist()
    waits_s = np.diff(time_s[frames], append=np.inf)  # until the next frame with a face
    for frame, wait_s in zip(frames[1:].tolist(), waits_s[1:], strict=True):
        if wait_s > LONGEST_GAP_S or time_s[frame] - time_s[looked[-1]] >= LOOK_EVERY_S - _ROUNDING_S:
            looked.append(frame)
    return looked


def cut_box(image: NDArray[np.uint8], box: NDArray[np.floating]) -> NDArray[np.uint8]:
    """The part of a picture (H,W,3) that lies in a box x1 y1 x2 y2, in whole pixels; empty if none does."""
    height, width = image.shape[:2]
    x1, y1, x2, y2 = np.clip(np.trunc(box), 0, [width, height, width, height]).astype(int)
    return image[y1:y2, x1:x2]


def prepare(face: NDArray[np.uint8], entry: FaceEntry) -> NDArray[np.float32]:
    """Scale (H,W,3) RGB to the model's square, bilinearly as OpenCV does it, and normalise: float32 (3,side,side)."""
    rows, row_after, row_weight = _bilinear(face.shape[0], entry.side)
    columns, column_after, column_weight = _bilinear(face.shape[1], entry.side)
    scaled = face[rows] * (1 - row_weight)[:, None, None] + face[row_after] * row_weight[:, None, None]
    scaled = (
        scaled[:, columns] * (1 - column_weight)[:, None] + scaled[:, column_after] * column_weight[:, None]
    )  # (side,side,3)
    normalised = (scaled / 255 - np.asarray(entry.mean)) / np.asarray(entry.std)
    return np.ascontiguousarray(normalised.transpose(2, 0, 1), dtype=np.float32)


def _bilinear(n_in: int, n_out: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64]]:
    """For each of ``n_out`` samples: the two of ``n_in`` that it lies between, and the weight of the second."""
    position = np.clip((np.arange(n_out) + 0.5) * n_in / n_out - 0.5, 0, n_in - 1)
    before = np.floor(position).astype(np.intp)
    return before, np.minimum(before + 1, n_in - 1), position - before


def interpolate(features: Features, seen: Sequence[int], outputs: NDArray[np.float32]) -> NDArray[np.float32]:
    """Values at all frames from those at some.

    Args:
        features: of T frames.
        seen: indices of n frames, rising.
        outputs: (n,D) values there.

    Returns:
        (T,D), linear between the frame seen before and the one after; NaN where one of them is more than 0.5 s away
        or the frame has no face.
    """
    values = np.full((features.n_frames, outputs.shape[1]), np.nan, np.float32)
    if not len(seen):
        return values
    time_s, seen_s = features.time_s, features.time_s[list(seen)]
    after = np.searchsorted(seen_s, time_s)  # first seen frame at or after each frame
    before = np.where(np.isin(time_s, seen_s), after, after - 1)
    inside = (before >= 0) & (after < len(seen))
    near = inside & ~np.isnan(features.face_box[:, 0])
    near[inside] &= time_s[inside] - seen_s[before[inside]] <= LONGEST_GAP_S + _ROUNDING_S
    near[inside] &= seen_s[after[inside]] - time_s[inside] <= LONGEST_GAP_S + _ROUNDING_S
    for column in range(outputs.shape[1]):
        values[near, column] = np.interp(time_s[near], seen_s, outputs[:, column])
    return values
