"""From times to indices: the word spoken at a frame, and the part of the log-mel that belongs to it."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from preprocessing.media import MEL_RATE

PATCH_ROWS = 96
"""Rows of one log-mel patch: 0.96 s, VGGish's input."""

Alignment = Literal["start", "centre", "end"]

_ROWS_BEFORE: dict[Alignment, int] = {"start": 0, "centre": PATCH_ROWS // 2, "end": PATCH_ROWS}


def frame_word(start_s: npt.ArrayLike, end_s: npt.ArrayLike, time_s: npt.ArrayLike) -> npt.NDArray[np.int32]:
    """Find the word spoken at each frame: word w at the frames with ``start_s[w] < t <= end_s[w]``.

    Args:
        start_s: (W,) starts of the words, seconds on the video's clock.
        end_s: (W,) their ends.
        time_s: (T,) presentation times of the frames, seconds, increasing.

    Returns:
        int32 (T,), in [-1, W): the index of the word, the last one if several overlap, -1 if there is none.

    Source: the half-open interval is that of the published implementation of arXiv 2403.13659.
    """
    index = np.full(np.shape(time_s), -1, np.int32)
    # side="right" on both ends gives the half-open interval: a frame AT a start is outside, one AT an end inside.
    first = np.searchsorted(time_s, start_s, side="right")
    stop = np.searchsorted(time_s, end_s, side="right")
    for word in range(len(first)):
        index[first[word] : stop[word]] = word
    return index


def patch_start(time_s: npt.ArrayLike, alignment: Alignment) -> npt.NDArray[np.int64]:
    """Return the first log-mel row of the patch of each frame.

    Args:
        time_s: (T,) presentation times of the frames, seconds on the video's clock.
        alignment: which part of the patch lies at the frame's time. ``start`` looks 0.96 s ahead (as in the published
            implementation of arXiv 2403.13659), ``centre`` 0.48 s ahead and back, ``end`` 0.96 s back.

    Returns:
        int64 (T,): the nearest row, halves rounded up; negative if the patch would start before the video.
    """
    row = np.floor(np.asarray(time_s, np.float64) * MEL_RATE + 0.5).astype(np.int64)
    return row - _ROWS_BEFORE[alignment]


def cut_patches(
    log_mel: npt.NDArray[np.floating], first_row: npt.ArrayLike
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Cut one patch per frame out of the log-mel; if it is memory-mapped, only the rows needed are read.

    Args:
        log_mel: (M, bands), row m at m / 100 s; rows of NaN without audio.
        first_row: (n,) first row of each patch, see :func:`patch_start`.

    Returns:
        float32 (n, 96, bands) and bool (n,): the patches, and whether each is valid. One that leaves the array or
        touches a row of NaN is not, and is all zeros.
    """
    first = np.asarray(first_row, np.int64)
    n_rows, n_bands = log_mel.shape
    patches = np.zeros((len(first), PATCH_ROWS, n_bands), np.float32)
    present = (first >= 0) & (first + PATCH_ROWS <= n_rows)
    if present.any():
        patches[present] = log_mel[first[present, None] + np.arange(PATCH_ROWS)]
        present &= ~np.isnan(patches).any(axis=(1, 2))
        patches[~present] = 0.0
    return patches, present
