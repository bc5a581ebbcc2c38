"""Scores of predictions: the challenge's CCC, PCC and RMSE, each video separately, bootstrap intervals.

The challenge's score is the CCC of each target over the concatenation of all annotated frames, and the mean over the
targets.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from preprocessing.errors import InputError
from rcma.config import TARGETS, Target
from rcma.metrics import ccc, pcc, rmse

_ROUNDING = 2e-6
"""Predictions in files have six decimals."""
CONFIDENCE = 0.95
"""Coverage of the bootstrap intervals."""
MIN_VIDEOS_FOR_INTERVALS = 20
"""With fewer videos, intervals are much too narrow: on three kinds of synthetic data, 95 % intervals contained the true
score in 62 to 84 % of samples of 10 videos, 76 to 93 % of 20, 90 to 95 % of 76."""


@dataclass(frozen=True)
class Measures:
    """Scores of one target, or their mean over the targets; NaN where undefined."""

    ccc: float
    """In [-1,1]."""
    pcc: float
    """In [-1,1]."""
    rmse: float
    """>= 0, in the unit of the labels, which lie in [-1,1]."""


@dataclass(frozen=True)
class VideoScores:
    """Scores of one video."""

    video_id: str
    n_predicted: int
    """Rows of the prediction."""
    n_annotation_rows: int
    """Rows of the annotation, with or without a label."""
    n_not_annotated: int
    """Rows of the annotation without a label: -5 in the challenge's files."""
    n_compared: int
    """Annotated frames within both."""
    by_target: Mapping[Target, Measures]
    """NaN where undefined: constant labels or predictions, fewer than two labels, a missing prediction."""

    @property
    def mean_ccc(self) -> float:
        """Mean CCC of the targets that have one; NaN if none has."""
        defined = [measures.ccc for measures in self.by_target.values() if not math.isnan(measures.ccc)]
        return float(np.mean(defined)) if defined else math.nan


@dataclass(frozen=True)
class Intervals:
    """Percentile bootstrap intervals of CCC over videos."""

    ends: Mapping[str, tuple[float, float]]
    """Lower and upper end for each target and ``mean``; NaN where a resample has no CCC."""
    n_resamples: int
    seed: int


@dataclass(frozen=True)
class Scores:
    """Scores of a set of videos."""

    by_target: Mapping[Target, Measures]
    """Over the concatenation of all annotated frames."""
    mean: Measures
    """Mean over the targets; NaN if one of them is NaN."""
    intervals: Intervals | None
    """None without resampling, or with fewer than :data:`MIN_VIDEOS_FOR_INTERVALS` annotated videos."""
    videos: tuple[VideoScores, ...]
    """Videos with both predictions and annotations, sorted by name."""
    warnings: tuple[str, ...]

    @property
    def ccc(self) -> dict[Target, float]:
        """CCC of each target, in [-1,1]; NaN where undefined."""
        return {target: measures.ccc for target, measures in self.by_target.items()}

    @property
    def n_frames(self) -> int:
        """Annotated frames compared."""
        return sum(video.n_compared for video in self.videos)

    @property
    def n_not_annotated(self) -> int:
        """Rows of the annotations without a label."""
        return sum(video.n_not_annotated for video in self.videos)


@dataclass(frozen=True)
class Disagreement:
    """How well the disagreement of several models predicts the error of their mean, for one target."""

    n_frames: int
    """Frames with a label and with predictions of two models or more."""
    spearman: float
    """Rank correlation of the models' standard deviation with the absolute error, in [-1,1]; NaN if either is constant.
    """
    all: Measures
    """Over these frames."""
    least: Measures
    """Over the half of these frames on which the models disagree least."""


def evaluate(
    predictions: Mapping[str, NDArray[np.floating]],
    annotations: Mapping[str, NDArray[np.floating]],
    *,
    targets: Sequence[Target] = TARGETS,
    n_resamples: int = 0,
    seed: int = 0,
) -> Scores:
    """Compare predictions with annotations.

    The intervals show how much the score depends on the choice of videos. They do not cover the variation between
    training runs, treat videos as independent, which two videos of one person are not, and are somewhat too narrow
    for a few dozen videos, see :data:`MIN_VIDEOS_FOR_INTERVALS`.

    Args:
        predictions: (n,n_targets) in [-1,1] for each video_id; NaN where not predicted.
        annotations: (n,n_targets) likewise, NaN where not annotated. If the lengths of a video differ, the frames that
            both have are compared, with a warning.
        targets: names of the columns.
        n_resamples: number of bootstrap samples of the videos, sorted by name; 0: no intervals.
        seed: of the bootstrap.

    Raises:
        InputError: no video has both.
    """
    common = sorted(predictions.keys() & annotations.keys())
    if not common:
        raise InputError(
            f"predictions ({_some(predictions)}) and annotations ({_some(annotations)}) have no video in common; "
            "their names must be equal"
        )
    predicted, annotated = zip(*(_overlap(predictions[name], annotations[name]) for name in common), strict=True)
    by_target = _measure(np.concatenate(predicted), np.concatenate(annotated), targets)
    means = (float(np.mean(values)) for values in zip(*map(astuple, by_target.values()), strict=True))
    return Scores(
        by_target=by_target,
        mean=Measures(*means),
        intervals=_intervals(predicted, annotated, targets, n_resamples=n_resamples, seed=seed),
        videos=tuple(_score_video(name, predictions[name], annotations[name], targets) for name in common),
        warnings=_warnings(predictions, annotations),
    )


def compare_disagreement(
    predictions: Mapping[str, NDArray[np.floating]],
    annotations: Mapping[str, NDArray[np.floating]],
    spreads: Mapping[str, tuple[NDArray[np.floating], NDArray[np.floating]]],
    *,
    targets: Sequence[Target] = TARGETS,
) -> tuple[dict[Target, Disagreement], tuple[str, ...]]:
    """Compare the disagreement of several models with the error of their mean, over the frames of all videos.

    Args:
        predictions: see :func:`evaluate`.
        annotations: see :func:`evaluate`.
        spreads: mean of the models and their standard deviation, both (n,n_targets), of each video.
        targets: names of the columns.

    Returns:
        The comparison for each target that has such frames; and a warning for each video that is left out because its
        predictions are not the mean in ``spreads``.
    """
    from scipy.stats import spearmanr  # takes a while to import; comes with scikit-learn

    parts, warnings = [np.empty((3, 0, len(targets)))], []
    for video_id in sorted(predictions.keys() & annotations.keys() & spreads.keys()):
        predicted, annotated = predictions[video_id], annotations[video_id]
        mean, spread = spreads[video_id]
        n = min(len(predicted), len(annotated), len(mean))
        if not np.allclose(mean[:n], predicted[:n], atol=_ROUNDING, rtol=0.0, equal_nan=True):
            warnings.append(f"{video_id}: the table has other predictions; the disagreement of its models is left out")
            continue
        parts.append(np.stack([predicted[:n], annotated[:n], spread[:n]]))  # (3,n,n_targets)
    columns = np.concatenate(parts, axis=1)
    compared: dict[Target, Disagreement] = {}
    for k, target in enumerate(targets):
        predicted, annotated, spread = columns[:, np.isfinite(columns[..., k]).all(axis=0), k].astype(np.float64)
        if not len(spread):
            continue
        error = np.abs(predicted - annotated)
        varies = np.ptp(error) > 0 and np.ptp(spread) > 0
        least = np.argsort(spread, kind="stable")[: (len(spread) + 1) // 2]
        compared[target] = Disagreement(
            n_frames=len(spread),
            spearman=float(spearmanr(spread, error).statistic) if varies else math.nan,
            all=_measure_target(predicted, annotated),
            least=_measure_target(predicted[least], annotated[least]),
        )
    return compared, tuple(warnings)


def as_json(scores: Scores, disagreement: Mapping[Target, Disagreement] | None = None) -> dict[str, Any]:
    """Scores as in ``scores.json``; null stands for NaN, which JSON does not have.

    Returns:
        Each target and ``mean``: CCC. ``pcc`` and ``rmse``: an object with the same keys. ``ccc_interval``: null, or
        [lower, upper] under the same keys, with ``confidence``, ``n_resamples`` and ``seed``. ``n_videos``,
        ``n_frames`` (annotated frames compared), ``n_not_annotated`` (rows with -5). ``warnings``: lines of text.
        ``videos``: for each video ``video``, ``n_predicted``, ``n_annotation_rows``, ``n_not_annotated``,
        ``n_compared``, and under each target ``ccc``, ``pcc``, ``rmse``. ``disagreement``, if given: for each target
        ``n_frames``, ``spearman``, and ``ccc``, ``pcc``, ``rmse`` under ``all`` and ``least``.
    """
    measures = {**scores.by_target, "mean": scores.mean}
    interval: dict[str, Any] | None = None
    if scores.intervals is not None:
        drawn = {"n_resamples": scores.intervals.n_resamples, "seed": scores.intervals.seed}
        interval = {**scores.intervals.ends, "confidence": CONFIDENCE, **drawn}
    videos = []
    for video in scores.videos:
        values = asdict(video)
        by_target = values.pop("by_target")
        videos.append({"video": values.pop("video_id"), **values, **by_target})
    content = {
        **{name: one.ccc for name, one in measures.items()},
        "pcc": {name: one.pcc for name, one in measures.items()},
        "rmse": {name: one.rmse for name, one in measures.items()},
        "ccc_interval": interval,
        "n_videos": len(scores.videos),
        "n_frames": scores.n_frames,
        "n_not_annotated": scores.n_not_annotated,
        "warnings": list(scores.warnings),
        "videos": videos,
    }
    if disagreement is not None:
        content["disagreement"] = {target: asdict(one) for target, one in disagreement.items()}
    with_null: dict[str, Any] = json.loads(json.dumps(content), parse_constant=lambda _: None)
    return with_null


def resampled_ccc(
    predicted: Sequence[NDArray[np.floating]], annotated: Sequence[NDArray[np.floating]], *, draws: NDArray[np.integer]
) -> NDArray[np.float64]:
    """CCC over the concatenation of the videos of each draw, without concatenating them.

    The moments in CCC follow from sums over frames, and the sums of a draw are the sums of its videos' sums.

    Args:
        predicted: (n,K) for each of V videos.
        annotated: (n,K) likewise, NaN where not annotated.
        draws: (R,D) integers in [0,V): the videos of each of R draws, with repetition.

    Returns:
        (R,K); NaN where :func:`rcma.metrics.ccc` is.
    """
    # Sums of squares about an origin near the mean do not lose digits.
    x_origin, y_origin = _origin(predicted), _origin(annotated)
    sums, extremes = [], []
    # A missing or infinite prediction makes the sums of its video, and so the CCC of each draw with it, NaN.
    with np.errstate(divide="ignore", invalid="ignore"):
        for x, y in zip(predicted, annotated, strict=True):
            labelled = ~np.isnan(y)
            extremes.append([np.where(labelled, v, -np.inf).max(axis=0, initial=-np.inf) for v in (x, -x, y, -y)])
            x, y = np.where(labelled, x - x_origin, 0.0), np.where(labelled, y - y_origin, 0.0)
            sums.append([values.sum(axis=0) for values in (labelled, x, y, x**2, y**2, x * y)])
        n, *of_draw = np.moveaxis(np.array(sums)[draws].sum(axis=1), 1, 0)  # (6,R,K)
        x_mean, y_mean, xx, yy, xy = (values / n for values in of_draw)
        shift = (x_mean - y_mean) + (x_origin - y_origin)
        result = 2.0 * (xy - x_mean * y_mean) / (xx - x_mean**2 + yy - y_mean**2 + shift**2)
    # Sums are rounded, so they do not show whether all values are the same.
    x_max, minus_x_min, y_max, minus_y_min = np.moveaxis(np.array(extremes)[draws].max(axis=1), 1, 0)  # (4,R,K)
    constant = (x_max <= -minus_x_min) | (y_max <= -minus_y_min)
    return np.where(constant, np.nan, result)


def _origin(values: Sequence[NDArray[np.floating]]) -> NDArray[np.float64]:
    """(K,) means of all finite values in float64, 0 where there is none."""
    finite = np.ma.masked_invalid(np.concatenate(values).astype(np.float64))
    return np.asarray(finite.mean(axis=0).filled(0.0))


def _intervals(
    predicted: Sequence[NDArray[np.floating]],
    annotated: Sequence[NDArray[np.floating]],
    targets: Sequence[Target],
    *,
    n_resamples: int,
    seed: int,
) -> Intervals | None:
    kept = [k for k, labels in enumerate(annotated) if _has_label(labels).any()]
    if n_resamples == 0 or len(kept) < MIN_VIDEOS_FOR_INTERVALS:
        return None
    draws = np.random.default_rng(seed).integers(len(kept), size=(n_resamples, len(kept)))
    values = resampled_ccc([predicted[k] for k in kept], [annotated[k] for k in kept], draws=draws)
    tail = (1 - CONFIDENCE) / 2
    ends = np.quantile(np.column_stack([values, values.mean(axis=1)]), [tail, 1 - tail], axis=0)
    pairs = ((float(low), float(high)) for low, high in ends.T)
    return Intervals(dict(zip([*targets, "mean"], pairs, strict=True)), n_resamples=n_resamples, seed=seed)


def _overlap(
    predicted: NDArray[np.floating], annotated: NDArray[np.floating]
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    n = min(len(predicted), len(annotated))
    return predicted[:n], annotated[:n]


def _has_label(labels: NDArray[np.floating]) -> NDArray[np.bool_]:
    """(n,) whether a frame has a label for at least one target."""
    return ~np.isnan(labels).all(axis=1)


def _warnings(
    predictions: Mapping[str, NDArray[np.floating]], annotations: Mapping[str, NDArray[np.floating]]
) -> tuple[str, ...]:
    warnings = [f"{name}: no predictions; not compared" for name in sorted(annotations.keys() - predictions.keys())]
    warnings += [f"{name}: no annotation; not compared" for name in sorted(predictions.keys() - annotations.keys())]
    for name in sorted(predictions.keys() & annotations.keys()):
        predicted, annotated = _overlap(predictions[name], annotations[name])
        n_predicted, n_annotated, n = len(predictions[name]), len(annotations[name]), len(predicted)
        if n_predicted != n_annotated:
            warnings.append(f"{name}: {n_predicted} predictions, {n_annotated} annotated rows; compared over {n}")
        gaps = (np.isnan(predicted) & ~np.isnan(annotated)).any(axis=1)
        if gaps.any():
            warnings.append(f"{name}: {gaps.sum()} annotated frames have no prediction: CCC is undefined")
    return tuple(warnings)


def _score_video(
    video_id: str, predictions: NDArray[np.floating], annotation: NDArray[np.floating], targets: Sequence[Target]
) -> VideoScores:
    predicted, annotated = _overlap(predictions, annotation)
    return VideoScores(
        video_id=video_id,
        n_predicted=len(predictions),
        n_annotation_rows=len(annotation),
        n_not_annotated=int(np.isnan(annotation).all(axis=1).sum()),
        n_compared=int(_has_label(annotated).sum()),
        by_target=_measure(predicted, annotated, targets),
    )


def _measure(
    predicted: NDArray[np.floating], annotated: NDArray[np.floating], targets: Sequence[Target]
) -> dict[Target, Measures]:
    columns = zip(targets, predicted.T, annotated.T, strict=True)
    return {target: _measure_target(x, y) for target, x, y in columns}


def _measure_target(predicted: NDArray[np.floating], annotated: NDArray[np.floating]) -> Measures:
    return Measures(ccc=ccc(predicted, annotated), pcc=pcc(predicted, annotated), rmse=rmse(predicted, annotated))


def _some(names: Mapping[str, object]) -> str:
    shown = ", ".join(sorted(names)[:3])
    return f"{shown}, ..." if len(names) > 3 else shown or "none"
