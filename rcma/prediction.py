"""What is predicted of one video, frame by frame, and what each frame had to be predicted from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from preprocessing.align import PATCH_ROWS, Alignment, patch_start
from preprocessing.store import Features
from rcma.config import Modality


@dataclass(frozen=True)
class Prediction:
    """Valence and arousal of a video of T decoded frames."""

    video_id: str
    time_s: NDArray[np.float64]
    """(T,) presentation time of each frame, seconds."""
    values: NDArray[np.float32]
    """(T,2) valence and arousal in [-1,1]; NaN where nothing is predicted."""
    present: Mapping[Modality, NDArray[np.bool_]]
    """(T,) of each modality that the model uses: whether the frame had it."""
    changes: Mapping[Modality, NDArray[np.float32]] = field(default_factory=dict)
    """(T,S) of each modality: how far each of S fusion steps moved its features X_m, as the norm of the change over the
    norm of X_m before the step, >= 0. Empty where the model does not refine features step by step."""


def present_modalities(features: Features, *, audio_alignment: Alignment) -> dict[Modality, NDArray[np.bool_]]:
    """Which modalities each frame of a video has.

    Args:
        features: the video, of T frames.
        audio_alignment: where the 0.96 s patch of a frame lies, see :func:`preprocessing.align.patch_start`.

    Returns:
        (T,) bool of each modality. ``face``: one was found. ``audio``: the sound of the whole patch is there, be it
        silence. ``text``: a word is being spoken.
    """
    # Up to each row; rows are NaN whole.
    n_missing = np.concatenate([[0], np.cumsum(np.isnan(features.log_mel[:, 0]))])
    first = patch_start(features.time_s, audio_alignment)
    inside = (first >= 0) & (first + PATCH_ROWS <= len(features.log_mel))
    audio = np.zeros(features.n_frames, np.bool_)
    audio[inside] = n_missing[first[inside] + PATCH_ROWS] == n_missing[first[inside]]
    return {
        "face": np.isfinite(features.face_score),
        "audio": audio,
        "text": np.asarray(features.frame_word) >= 0,
    }
