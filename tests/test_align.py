"""Words, frames and patches on one clock: hand-made cases."""

from __future__ import annotations

import numpy as np
import pytest

from preprocessing.features.align import PATCH_ROWS, cut_patches, frame_word, patch_start
from preprocessing.media.audio import MEL_RATE


def test_words_land_on_the_frames_of_the_half_open_interval():
    time_s = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
    # The first word starts AT frame 1 (not its frame) and ends AT frame 3 (its last frame); then a pause; then one
    # that lasts beyond the video.
    index = frame_word([0.1, 0.45], [0.3, 9.0], time_s)
    assert index.dtype == np.int32
    assert index.tolist() == [-1, -1, 0, 0, -1, 1]


def test_of_overlapping_words_the_later_one_wins():
    assert frame_word([0.0, 0.15], [0.35, 0.25], [0.1, 0.2, 0.3]).tolist() == [0, 1, 0]


def test_frame_word_equals_its_definition_on_irregular_times():
    rng = np.random.default_rng(0)
    time_s = np.cumsum(rng.choice([0.0, 1 / 30, 1 / 15], size=200))
    start_s = rng.uniform(-0.5, time_s[-1] + 0.5, size=60)
    start_s[:10] = time_s[5:15]  # exactly on frames
    end_s = start_s + rng.choice([0.0, 0.01, 0.3], size=60)
    end_s[:5] = time_s[10:15]
    expected = [max((w for w in range(60) if start_s[w] < t <= end_s[w]), default=-1) for t in time_s]
    assert frame_word(start_s, end_s, time_s).tolist() == expected
    assert max(expected) > 0
    assert -1 in expected


def test_no_words_and_no_frames():
    assert frame_word([], [], [0.0, 0.1]).tolist() == [-1, -1]
    assert frame_word([0.0], [1.0], []).shape == (0,)


@pytest.mark.parametrize(("alignment", "first"), [("start", 200), ("centre", 152), ("end", 104)])
def test_patch_lies_where_its_alignment_says(alignment, first):
    # 0.96 s of patch after, around, and before 2 s.
    assert patch_start([2.0], alignment).tolist() == [first]


def test_patch_start_is_the_nearest_row_and_may_lie_before_the_video():
    start = patch_start([0.0, 0.004, 0.006, 0.125, 1.0], "start")
    assert start.dtype == np.int64
    assert start.tolist() == [0, 0, 1, 13, 100]
    assert patch_start([0.5], "end").tolist() == [50 - PATCH_ROWS]


def test_patches_are_the_rows_and_incomplete_ones_are_marked():
    log_mel = np.arange(200.0)[:, None] + np.zeros((1, 4))
    log_mel[:10] = np.nan  # the audio starts at 0.1 s
    first_row = np.array([-1, 9, 10, 104, 105, 10**9])
    patches, present = cut_patches(log_mel.astype(np.float16), first_row)
    assert patches.dtype == np.float32
    assert patches.shape == (6, PATCH_ROWS, 4)
    assert present.tolist() == [False, False, True, True, False, False]
    assert np.array_equal(patches[2, :, 0], np.arange(10, 10 + PATCH_ROWS))
    assert np.array_equal(patches[3, :, 3], np.arange(104, 200))
    assert not patches[~present].any()


def test_without_audio_no_patch_is_there():
    patches, present = cut_patches(np.zeros((0, 64), np.float16), patch_start([0.0, 1.0], "start"))
    assert patches.shape == (2, PATCH_ROWS, 64)
    assert not present.any()


def test_patch_length_is_0_96_s():
    assert PATCH_ROWS / MEL_RATE == 0.96
