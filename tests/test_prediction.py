from __future__ import annotations

import dataclasses
from dataclasses import replace

import numpy as np
import pytest
from made_features import WIDTH, make_features, make_labels
from scipy.ndimage import gaussian_filter1d, median_filter

from rcma.config import ModelSettings
from rcma.data.windows import cut_window
from rcma.prediction.postprocess import Prediction, finish, present_modalities, smooth


@pytest.mark.parametrize("alignment", ["start", "centre", "end"])
@pytest.mark.parametrize("audio", ["whole", "late", "none"])
def test_a_frame_has_what_the_model_sees(tmp_path, alignment, audio):
    features = make_features(tmp_path / "video", make_labels(70, 0), seed=0, audio=audio != "none")
    if audio == "late":
        late = np.array(features.log_mel)
        late[:50] = np.nan
        features = dataclasses.replace(features, log_mel=late)
    present = present_modalities(features, audio_alignment=alignment)
    window = cut_window(features, 0, model=ModelSettings(text_width=WIDTH), length=70, audio_alignment=alignment)
    for m, there in present.items():
        np.testing.assert_array_equal(there, window[f"{m}_mask"].numpy(), err_msg=m)
        assert there.any() == (m != "audio" or audio != "none")


def noise(n_frames: int) -> np.ndarray:
    return np.random.default_rng(n_frames).uniform(-1, 1, (n_frames, 2)).astype(np.float32)


def even(n_frames: int) -> np.ndarray:
    return np.arange(n_frames) / 25


def predicted(values: np.ndarray, *, empty: list[int], time_s: np.ndarray | None = None) -> Prediction:
    face = np.ones(len(values), np.bool_)
    face[empty] = False
    audio = np.zeros(len(values), np.bool_)
    times = even(len(values)) if time_s is None else time_s
    return Prediction("video", times, values, {"face": face, "audio": audio})


@pytest.mark.parametrize("n_frames", [60, 9000])
def test_evenly_spaced_frames_are_smoothed_as_by_scipy(n_frames):
    values, inner = noise(n_frames), slice(20, -20)
    ours = smooth(values, even(n_frames), kind="gaussian", extent_s=0.1)
    theirs = gaussian_filter1d(values.astype(np.float64), 2.5, axis=0, truncate=4.0)
    np.testing.assert_allclose(ours[inner], theirs[inner], atol=1e-6)
    ours = smooth(values, even(n_frames), kind="median", extent_s=0.24)
    np.testing.assert_array_equal(ours[inner], median_filter(values, (7, 1))[inner])


@pytest.mark.parametrize("kind", ["median", "gaussian"])
def test_smoothing_goes_by_time_and_passes_over_what_is_missing(kind):
    random = np.random.default_rng(0)
    time_s, values = np.sort(random.uniform(0, 4, 80)), noise(80)
    values[[3, 4, 50]] = np.nan
    ours = smooth(values, time_s, kind=kind, extent_s=0.5)
    for frame in range(80):
        if frame in (3, 4, 50):
            assert np.isnan(ours[frame]).all()
            continue
        distance = np.abs(time_s - time_s[frame])
        near = (distance <= (0.25 if kind == "median" else 2.0)) & ~np.isnan(values[:, 0])
        weight = np.exp(-0.5 * (distance[near] / 0.5) ** 2)
        expected = (
            np.median(values[near], axis=0) if kind == "median" else np.average(values[near], axis=0, weights=weight)
        )
        np.testing.assert_allclose(ours[frame], expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["median", "gaussian"])
@pytest.mark.parametrize("n_frames", [1, 2, 5])
def test_smoothing_leaves_constants_and_knows_short_videos(kind, n_frames):
    constant = np.full((n_frames, 2), 0.25, np.float32)
    np.testing.assert_allclose(smooth(constant, even(n_frames), kind=kind, extent_s=10.0), constant)
    np.testing.assert_array_equal(smooth(noise(n_frames), even(n_frames), kind=kind, extent_s=1e-3), noise(n_frames))


def test_smoothing_over_nothing_is_refused():
    with pytest.raises(ValueError, match="more than 0 s"):
        smooth(noise(5), even(5), kind="median", extent_s=0.0)


def test_frames_without_any_modality_are_filled_as_asked():
    values = noise(6)
    time_s = np.array([0.0, 0.1, 0.2, 0.3, 0.9, 1.0])
    given = predicted(values, empty=[0, 3, 4], time_s=time_s)
    nearest = finish(given, fill="nearest").values
    np.testing.assert_array_equal(nearest, values[[1, 1, 2, 2, 5, 5]])
    np.testing.assert_array_equal(finish(given, fill="neutral").values[[0, 3, 4]], 0.0)
    filled = finish(given, fill="nan").values
    assert np.isnan(filled[[0, 3, 4]]).all() and (filled[[1, 2, 5]] == values[[1, 2, 5]]).all()
    np.testing.assert_array_equal(given.values, noise(6))


def test_what_is_filled_takes_no_part_in_smoothing():
    values = np.zeros((20, 2), np.float32)
    values[8:12] = 0.9
    finished = finish(predicted(values, empty=[8, 9, 10, 11]), fill="nearest", smoothing=("gaussian", 0.2))
    np.testing.assert_array_equal(finished.values, 0.0)


def test_video_without_anything_is_neutral_or_missing():
    given = predicted(noise(4), empty=[0, 1, 2, 3])
    assert (finish(given, fill="nearest").values == 0.0).all()
    assert np.isnan(finish(given, fill="nan", smoothing=("median", 1.0)).values).all()


def test_one_frame_with_something_serves_all():
    values = noise(4)
    np.testing.assert_array_equal(
        finish(predicted(values, empty=[0, 2, 3]), fill="nearest").values, np.repeat(values[1:2], 4, axis=0)
    )


def test_values_are_clipped():
    values = np.array([[1.2, -1.0000001], [0.5, -3.0]], np.float32)
    np.testing.assert_array_equal(finish(predicted(values, empty=[]), fill="nan").values, [[1, -1], [0.5, -1]])


@pytest.mark.parametrize("fill", ["nearest", "neutral", "nan"])
@pytest.mark.parametrize("smoothing", [None, ("median", 0.3), ("gaussian", 0.1)])
def test_spread_is_finished_as_the_values_are_but_never_made_up(fill, smoothing):
    random = np.random.default_rng(0)
    n = 60
    there = random.random(n) < 0.7
    spread = random.random((n, 2)).astype(np.float32)
    spread[:, 1] = np.nan
    values = random.uniform(-0.9, 0.9, (n, 2)).astype(np.float32)
    prediction = Prediction("v", np.arange(n) / 25, values, {"face": there}, spread=spread)
    done = finish(prediction, fill=fill, smoothing=smoothing)
    assert done.spread is not None and np.isnan(done.spread[:, 1]).all()
    # Like a column of values of the same numbers.
    column = np.column_stack([spread[:, 0] - 0.5, values[:, 1]])
    alike = finish(replace(prediction, values=column), fill=fill, smoothing=smoothing).values[:, 0] + 0.5
    known = there | (fill == "nearest")
    np.testing.assert_allclose(done.spread[known, 0], alike[known], atol=1e-6)
    assert np.isnan(done.spread[~known, 0]).all()
    assert (done.spread[known, 0] >= 0).all()
    np.testing.assert_array_equal(prediction.spread, spread)


def test_without_any_modality_there_is_no_spread():
    nothing = np.zeros(5, np.bool_)
    prediction = Prediction(
        "v", np.arange(5) / 25, np.zeros((5, 2), np.float32), {"face": nothing}, spread=np.ones((5, 2), np.float32)
    )
    assert np.isnan(finish(prediction, fill="nearest").spread).all()
    alone = replace(prediction, spread=None)
    assert finish(alone, fill="nearest").spread is None
