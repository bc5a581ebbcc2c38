"""Smoothing and filling of predictions, and which modalities a frame has."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from preprocessing.features import PATCH_ROWS, Alignment, Features, patch_start
from rcma.config import Modality
from rcma.prediction.prediction import Prediction

SmoothKind = Literal["median", "gaussian"]
FillKind = Literal["nearest", "neutral", "nan"]

_NEUTRAL = 0.0
"""The middle of both scales."""
_REACH = 4.0
"""Standard deviations at which the Gaussian ends."""
_ROUNDING_S = 1e-6
"""Times that differ by less are the same: a window that ends on a frame takes it in everywhere, or nowhere."""
_BLOCK = 4096
"""Frames that are smoothed at once; bounds the memory."""


def present_modalities(
    features: Features, *, audio_alignment: Alignment, vectors: Collection[Modality] = ()
) -> dict[Modality, NDArray[np.bool_]]:
    """Which modalities each frame of a video has.

    Args:
        features: the video, of T frames.
        audio_alignment: where the 0.96 s patch of a frame lies, see :func:`preprocessing.features.patch_start`.
        vectors: modalities whose features come from other tools.

    Returns:
        (T,) bool of each modality. ``face``: one was found. ``audio``: the recording has sound, silent or not, during
        the whole patch. ``text``: a word is being spoken.
    """
    # Number of missing rows before each one.
    n_missing = np.concatenate([[0], np.cumsum(np.isnan(features.log_mel[:, 0]))])
    first = patch_start(features.time_s, audio_alignment)
    inside = (first >= 0) & (first + PATCH_ROWS <= len(features.log_mel))
    audio = np.zeros(features.n_frames, np.bool_)
    audio[inside] = n_missing[first[inside] + PATCH_ROWS] == n_missing[first[inside]]
    present: dict[Modality, NDArray[np.bool_]] = {
        "face": np.isfinite(features.face_score),
        "audio": audio,
        "text": np.asarray(features.frame_word) >= 0,
    }
    return present | {m: np.isfinite(features.vectors[m][:, 0]) for m in vectors}


def finish(prediction: Prediction, *, fill: FillKind, smoothing: tuple[SmoothKind, float] | None = None) -> Prediction:
    """Smooth and fill a prediction, and clip its values to [-1,1].

    Frames without any modality, and targets without a value at a frame, take no part in smoothing and are filled. The
    spread of several models is treated alike; 0 and ``nan`` fill it with NaN. The spread of a Gaussian mean is at least
    the spread of the models' smoothed predictions.

    Args:
        prediction: is not changed.
        fill: ``nearest``: the value of the nearest frame in time that has one (0 if no frame has); ``neutral``: 0;
            ``nan``: NaN.
        smoothing: kind and extent in seconds, see :func:`smooth`.
    """
    nothing = ~np.any(list(prediction.present.values()), axis=0)
    empty = nothing[:, None] | np.isnan(prediction.values)  # (T,n_targets)

    def finish_columns(columns: NDArray[np.float32], neutral: float) -> NDArray[np.float32]:
        """Smooth and fill (T,n)."""
        columns = np.where(empty, np.float32(np.nan), columns)
        if smoothing is not None:
            kind, extent_s = smoothing
            columns = smooth(columns, prediction.time_s, kind=kind, extent_s=extent_s)
        for column, missing in zip(columns.T, empty.T, strict=True):
            if fill == "nearest" and not missing.all():
                known_s, missing_s = prediction.time_s[~missing], prediction.time_s[missing]
                column[missing] = column[~missing][_nearest(known_s, missing_s)]
            elif fill != "nan":
                column[missing] = neutral
        return columns

    spread = None if prediction.spread is None else finish_columns(prediction.spread, np.nan)
    return replace(prediction, values=finish_columns(prediction.values, _NEUTRAL).clip(-1.0, 1.0), spread=spread)


def smooth(
    values: NDArray[np.float32], time_s: NDArray[np.float64], *, kind: SmoothKind, extent_s: float
) -> NDArray[np.float32]:
    """Smooth over time; frames need not be evenly spaced.

    Args:
        values: (T,n); a NaN takes no part and stays.
        time_s: (T,) seconds, rising.
        kind: ``median``: of the frames at most ``extent_s / 2`` away; ``gaussian``: mean, weighted by a Gaussian of
            the distance in time with ``extent_s`` as its standard deviation, cut off at four of them.
        extent_s: seconds, > 0.

    Returns:
        float32 (T,n).

    Raises:
        ValueError: ``extent_s`` is not positive.
    """
    if not extent_s > 0:
        raise ValueError(f"smoothing over {extent_s} s: must be more than 0 s")
    smoothed = np.full_like(values, np.nan)
    reach_s = (extent_s / 2 if kind == "median" else _REACH * extent_s) + _ROUNDING_S
    for frames, around in _neighbours(time_s, reach_s):
        near = values[around]  # (b,w,n)
        distance_s = time_s[around] - time_s[frames, None]
        weight = np.where(np.abs(distance_s) <= reach_s, 1.0, 0.0)[..., None] * ~np.isnan(near)  # (b,w,n)
        if kind == "gaussian":
            weight *= np.exp(-0.5 * (distance_s / extent_s) ** 2)[..., None]
            total = (weight * np.nan_to_num(near)).sum(axis=1)
            smoothed[frames] = total / np.maximum(weight.sum(axis=1), np.finfo(np.float64).tiny)
        else:
            smoothed[frames] = np.ma.median(np.ma.array(near, mask=weight == 0), axis=1).filled(np.nan)
    return np.where(np.isnan(values), np.float32(np.nan), smoothed)


def _neighbours(time_s: NDArray[np.float64], reach_s: float) -> Iterator[tuple[slice, NDArray[np.int64]]]:
    """Blocks of frames (b,), and for each the indices (b,w) of all frames within reach, and some more."""
    first = np.searchsorted(time_s, time_s - reach_s)
    width = int((np.searchsorted(time_s, time_s + reach_s, side="right") - first).max())
    first = np.minimum(first, len(time_s) - width)
    for start in range(0, len(time_s), _BLOCK):
        frames = slice(start, min(start + _BLOCK, len(time_s)))
        yield frames, first[frames, None] + np.arange(width)


def _nearest(times_s: NDArray[np.float64], wanted_s: NDArray[np.float64]) -> NDArray[np.int64]:
    """Index of the nearest of some rising times; the earlier one of two at the same distance."""
    after = np.searchsorted(times_s, wanted_s)
    before = np.maximum(after - 1, 0)
    after = np.minimum(after, len(times_s) - 1)
    return np.where(np.abs(wanted_s - times_s[before]) <= np.abs(times_s[after] - wanted_s), before, after)
