"""From times to indices: which word is spoken at a frame, which part of the log-mel belongs to it."""

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
    """Which word is spoken at each frame: word w at the frames with ``start_s[w] < t <= end_s[w]``.

    Args:
        start_s: (W,) starts of the words, seconds on the video's clock.
        end_s: (W,) their ends.
        time_s: (T,) presentation times of the frames, seconds, never decreasing.

    Returns:
        int32 (T,), in [-1, W): the index of the word, -1 where none is spoken; where words overlap, the later one in
        the list.

    Raises:
        ValueError: ``start_s`` and ``end_s`` differ in length, or ``time_s`` decreases.

    Source: the half-open interval is that of the published implementation of arXiv 2403.13659.
    """
    starts, ends, times = (np.asarray(values, np.float64) for values in (start_s, end_s, time_s))
    if starts.shape != ends.shape:
        raise ValueError(f"{starts.shape} starts but {ends.shape} ends of words")
    if np.any(np.diff(times) < 0):
        raise ValueError("the times of the frames decrease")
    index = np.full(len(times), -1, np.int32)
    # side="right" on both ends gives the half-open interval: a frame AT a start is outside, one AT an end inside.
    first = np.searchsorted(times, starts, side="right")
    stop = np.searchsorted(times, ends, side="right")
    for word in range(len(starts)):
        index[first[word] : stop[word]] = word
    return index


def patch_start(time_s: npt.ArrayLike, alignment: Alignment) -> npt.NDArray[np.int64]:
    """First log-mel row of the patch of each frame.

    Args:
        time_s: (T,) presentation times of the frames, seconds on the video's clock.
        alignment: which part of the patch lies at the frame's time. ``start`` looks 0.96 s ahead (as in the published
            implementation of arXiv 2403.13659), ``centre`` 0.48 s ahead and back, ``end`` 0.96 s back.

    Returns:
        int64 (T,): the nearest row, halves rounded up; negative where the patch would start before the video.

    Raises:
        ValueError: an unknown ``alignment``.
    """
    if alignment not in _ROWS_BEFORE:
        raise ValueError(f"alignment {alignment!r} is none of {', '.join(_ROWS_BEFORE)}")
    row = np.floor(np.asarray(time_s, np.float64) * MEL_RATE + 0.5).astype(np.int64)
    return row - _ROWS_BEFORE[alignment]


def cut_patches(
    log_mel: npt.NDArray[np.floating], first_row: npt.ArrayLike
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Cut one patch per frame out of the log-mel; it may be memory-mapped, only the rows needed are read.

    Args:
        log_mel: (M, bands), row m at m / 100 s; rows of NaN where there is no audio.
        first_row: (n,) first row of each patch, see :func:`patch_start`.

    Returns:
        float32 (n, 96, bands) and bool (n,): the patches, and whether each is there. A patch that leaves the array or
        touches a row of NaN is not there, and is all zeros.
    """
    first = np.asarray(first_row, np.int64)
    n_rows, n_bands = log_mel.shape
    patches = np.zeros((len(first), PATCH_ROWS, n_bands), np.float32)
    present = (first >= 0) & (first + PATCH_ROWS <= n_rows)
    if present.any():
        inside = first[present]
        patches[present] = log_mel[inside[:, None] + np.arange(PATCH_ROWS)]
        present &= ~np.isnan(patches).any(axis=(1, 2))
        patches[~present] = 0.0
    return patches, present
