"""Mean and standard deviation of the inputs of a model, over the training videos."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from preprocessing.media import N_MELS
from rcma.config import Modality, ModelSettings
from rcma.data.videos import Video

_ROWS_AT_ONCE = 1 << 16
_MIN_STD = 1e-3
"""Of log-mel and words: dividing by less would blow up the first sound that differs from a silent training set."""


class Normalisation(NamedTuple):
    """Statistics of the training videos, float32; a deviation is 1 where nothing varies or nothing is known."""

    audio_mean: Tensor
    """(64,) of each mel band; zeros for a backbone that takes log-mel as it is."""
    audio_std: Tensor
    """(64,); ones for a backbone that takes log-mel as it is."""
    text_mean: Tensor
    """() over all frames and dimensions of their word vectors, with zeros where no word is spoken (published)."""
    text_std: Tensor
    """()"""
    vectors: Mapping[Modality, tuple[Tensor, Tensor]]
    """Mean and deviation (width,) of each column of features from other tools, for modalities of kind ``features``."""


def fit_normalisation(videos: Sequence[Video], model: ModelSettings) -> Normalisation:
    """Compute the statistics of the inputs that a model standardises; the others get mean 0 and deviation 1.

    Args:
        videos: the training videos, and no others.
        model: with its ``text_width``, if it uses words.
    """
    audio_mean, audio_std = np.zeros(N_MELS), np.ones(N_MELS)
    if model.standardises_log_mel:
        audio_mean, audio_std = _fit_columns(video.features().log_mel for video in videos)
        audio_std[audio_std <= _MIN_STD] = 1.0
    text_mean, text_std = (0.0, 1.0)
    if model.uses("text", kind="words"):
        text_mean, text_std = _fit_words(videos, model.text_width or 1)
    # Per column, unlike word vectors: a column may be a pitch in Hz beside a probability.
    vectors = {m: _fit_columns(video.features().vectors[m] for video in videos) for m in model.vector_modalities}
    return Normalisation(
        torch.tensor(audio_mean).float(),
        torch.tensor(audio_std).float(),
        torch.tensor(text_mean),
        torch.tensor(text_std),
        {m: (torch.tensor(mean).float(), torch.tensor(std).float()) for m, (mean, std) in vectors.items()},
    )


def _fit_columns(arrays: Iterable[NDArray[np.floating]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and deviation (width,) of the columns of all rows that are not NaN."""
    from sklearn.preprocessing import StandardScaler

    scaler, width = StandardScaler(), 0
    for array in arrays:
        width = array.shape[1]
        for start in range(0, len(array), _ROWS_AT_ONCE):
            rows = array[start : start + _ROWS_AT_ONCE].astype(np.float64)
            rows = rows[np.isfinite(rows).all(axis=1)]
            if len(rows):
                scaler.partial_fit(rows)
    if not hasattr(scaler, "mean_"):
        return np.zeros(width), np.ones(width)
    return scaler.mean_, scaler.scale_


def _fit_words(videos: Sequence[Video], width: int) -> tuple[float, float]:
    """Mean and deviation of the values (T,D) of all frames of all videos; a frame without a word has D zeros."""
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler()
    for video in videos:
        features = video.features()
        rows = np.zeros((len(features.words) + 1, width))  # the first is for frames without a word
        if len(features.words):
            rows[1:] = features.word_vectors
        n_frames_of_row = np.bincount(features.frame_word + 1, minlength=len(rows))
        scaler.partial_fit(rows, sample_weight=n_frames_of_row)
    mean = float(scaler.mean_.mean())
    std = float(np.sqrt(np.mean(scaler.var_ + np.square(scaler.mean_ - mean))))
    return mean, std if std >= _MIN_STD else 1.0
