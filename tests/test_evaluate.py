from __future__ import annotations

import math

import numpy as np
import pytest

from preprocessing.errors import InputError
from rcma.evaluate import evaluate


def reference(x: np.ndarray, y: np.ndarray) -> float:
    covariance = np.cov(x, y, ddof=0)
    return 2 * covariance[0, 1] / (covariance[0, 0] + covariance[1, 1] + (x.mean() - y.mean()) ** 2)


@pytest.fixture
def labels() -> dict[str, np.ndarray]:
    random = np.random.default_rng(1)
    made = {name: random.uniform(-1, 1, (n, 2)) + shift for name, n, shift in (("a", 40, -0.3), ("b", 90, 0.4))}
    made["a"][3:9] = np.nan
    return made


def test_score_is_that_of_the_concatenation_not_the_mean_over_videos(labels):
    random = np.random.default_rng(2)
    predicted = {name: np.nan_to_num(values) + random.normal(0, 0.3, values.shape) for name, values in labels.items()}
    scores = evaluate(predicted, labels)
    kept = ~np.isnan(labels["a"][:, 0])
    expected = []
    for k in range(2):
        x = np.concatenate([predicted["a"][kept, k], predicted["b"][:, k]])
        y = np.concatenate([labels["a"][kept, k], labels["b"][:, k]])
        expected.append(reference(x, y))
    of_a = reference(predicted["a"][kept, 0], labels["a"][kept, 0])
    of_b = reference(predicted["b"][:, 0], labels["b"][:, 0])
    assert scores.valence == pytest.approx(expected[0], abs=1e-12)
    assert scores.arousal == pytest.approx(expected[1], abs=1e-12)
    assert scores.mean == pytest.approx(sum(expected) / 2, abs=1e-12)
    assert abs((of_a + of_b) / 2 - scores.valence) > 0.01
    assert (scores.n_videos, scores.n_frames, scores.warnings) == (2, 124, ())


def test_lengths_that_differ_and_videos_missing_on_a_side_are_reported(labels):
    predicted = {"a": np.nan_to_num(labels["a"][:30]), "c": np.zeros((5, 2))}
    scores = evaluate(predicted, labels)
    assert (scores.valence, scores.n_videos, scores.n_frames) == (pytest.approx(1.0), 1, 24)
    reported = " | ".join(scores.warnings)
    assert "a: 30 predictions, 40 annotated rows" in reported
    assert "b: no predictions" in reported and "c: no annotation" in reported


def test_annotated_frame_without_prediction_has_no_score(labels):
    predicted = {name: np.nan_to_num(values) for name, values in labels.items()}
    predicted["b"][5, 1] = np.nan
    scores = evaluate(predicted, labels)
    assert scores.valence == pytest.approx(1.0) and math.isnan(scores.arousal) and math.isnan(scores.mean)
    assert scores.warnings == ("b: 1 annotated frames have no prediction: CCC is undefined",)
    assert evaluate(predicted, labels, targets=("valence",)).mean == pytest.approx(1.0)
    assert evaluate(predicted, labels, targets=("valence",)).warnings == ()


def test_nothing_in_common_is_refused(labels):
    with pytest.raises(InputError, match=r"x.*a, b"):
        evaluate({"x": np.zeros((3, 2))}, labels)
    with pytest.raises(InputError, match="none"):
        evaluate({}, labels)
