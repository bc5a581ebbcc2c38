"""Valence and arousal of a face by a public ONNX model, on tight boxes cut from the recording.

The models are EmotiEffLib's (Savchenko, https://github.com/sb-ai-lab/EmotiEffLib), trained on single pictures of
AffectNet: a face is cut out along its box, without alignment, and scaled to a square. The crops of the feature folder
are too small for them, so the recording is decoded again.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate

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
"""Values are interpolated between frames that the model saw at most this long before and after."""
_N_OUTPUTS = len(EMOTIONS) + 2
_ROUNDING_S = 1e-4


class FaceExpert:
    """A face model of the registry."""

    def __init__(self, path: Path, entry: FaceEntry) -> None:
        """Load the network.

        Args:
            path: the ONNX file: float32 (N,3,side,side) to (N,10), eight logits, valence, arousal.
            entry: describes the input.

        Raises:
            InputError: ``path`` cannot be loaded, or has another input or output.
        """
        self._path, self._entry = path, entry
        self._session = OnnxSession(path.read_bytes(), source=str(path), n_threads=1)
        self._run(np.zeros((1, 3, entry.side, entry.side), np.float32))

    def __call__(self, recording: Path, features: Features) -> NDArray[np.float32]:
        """Predict the face in the recording of features five times a second, and interpolate.

        Returns:
            (T,10) valence and arousal in [-1,1], and logits of :data:`EMOTIONS`; NaN where there is no face.

        Raises:
            InputError: the recording cannot be read, or has fewer frames than the features.
        """
        looked = frames_to_look_at(features.time_s, ~np.isnan(features.face_box[:, 0]))
        streams = (features.meta.get("settings") or {}).get("streams") or ()
        seen: list[int] = []
        outputs: list[NDArray[np.float32]] = []
        last = -1
        if looked:
            with Video(recording, streams=streams) as video:
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
        values = _at_frames(features, seen, np.reshape(outputs, (len(seen), _N_OUTPUTS)))
        values[:, :2] = np.clip(values[:, :2], -1.0, 1.0)
        return values

    def look(self, image: NDArray[np.uint8], box: NDArray) -> NDArray[np.float32] | None:
        """Predict one face of a picture (H,W,3) in RGB, in a box x1 y1 x2 y2 in pixels.

        Returns:
            (10,) valence and arousal, not clipped, and eight logits; None if the box is outside the picture.
        """
        face = cut_box(image, box)
        if face.size == 0:
            return None
        return np.roll(self._run(prepare(face, self._entry)[None])[0], 2)

    def _run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        output = self._session(batch)
        if output.shape != (len(batch), _N_OUTPUTS):
            raise InputError(f"{self._path}: an output of shape {output.shape}; expected {(len(batch), _N_OUTPUTS)}")
        return output


def frames_to_look_at(time_s: NDArray[np.float64], has_face: NDArray[np.bool_]) -> list[int]:
    """Return indices of frames with a face every 0.2 s, and of the last one before each long time without a face."""
    frames = np.flatnonzero(has_face)
    looked = frames[:1].tolist()
    waits_s = np.diff(time_s[frames], append=np.inf)  # until the next frame with a face
    for frame, wait_s in zip(frames[1:].tolist(), waits_s[1:], strict=True):
        if wait_s > LONGEST_GAP_S or time_s[frame] - time_s[looked[-1]] >= LOOK_EVERY_S - _ROUNDING_S:
            looked.append(frame)
    return looked


def cut_box(image: NDArray[np.uint8], box: NDArray) -> NDArray[np.uint8]:
    """Return the part of a picture (H,W,3) inside a box x1 y1 x2 y2, in whole pixels; it may be empty."""
    height, width = image.shape[:2]
    x1, y1, x2, y2 = np.clip(np.trunc(box), 0, [width, height, width, height]).astype(int)
    return image[y1:y2, x1:x2]


def prepare(face: NDArray[np.uint8], entry: FaceEntry) -> NDArray[np.float32]:
    """Scale (H,W,3) RGB bilinearly to the model's square, without antialiasing, and normalise: (3,side,side)."""
    channels_first = torch.tensor(face, dtype=torch.float64).permute(2, 0, 1)
    square = interpolate(channels_first[None], size=(entry.side, entry.side), mode="bilinear")[0]
    mean, std = np.reshape([entry.mean, entry.std], (2, 3, 1, 1))
    return ((square.numpy() / 255 - mean) / std).astype(np.float32)


def _at_frames(features: Features, seen: list[int], outputs: NDArray[np.float32]) -> NDArray[np.float32]:
    """Interpolate outputs (n,D) of the seen frames to all frames with a face near them: (T,D)."""
    values = np.full((features.n_frames, outputs.shape[1]), np.nan, np.float32)
    time_s, seen_s = features.time_s, features.time_s[seen]
    edges_s = np.concatenate([[-np.inf], seen_s, [np.inf]])
    since_s = time_s - edges_s[np.searchsorted(seen_s, time_s, side="right")]
    until_s = edges_s[np.searchsorted(seen_s, time_s, side="left") + 1] - time_s
    near = ~np.isnan(features.face_box[:, 0]) & (np.maximum(since_s, until_s) <= LONGEST_GAP_S + _ROUNDING_S)
    if near.any():
        for column in range(outputs.shape[1]):
            values[near, column] = np.interp(time_s[near], seen_s, outputs[:, column])
    return values
