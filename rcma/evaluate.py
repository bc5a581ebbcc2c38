"""What predictions are worth.

The challenge's score is the CCC of each target over the concatenation of all annotated frames, and their mean
(:func:`evaluate`, quick: training asks for it after every epoch). :func:`evaluate_in_detail` adds PCC, RMSE, every
video by itself, and intervals: how much the score would move with another choice of videos.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass

import numpy as np
from numpy.typing import NDArray

from preprocessing.errors import InputError
from rcma.config import TARGETS, Target
from rcma.metrics import ccc, pcc, rmse

_ROUNDING = 2e-6
"""Predictions in files have six decimals."""
CONFIDENCE = 0.95
"""Share of the resamples that an interval covers."""
MIN_VIDEOS_FOR_INTERVALS = 20
"""Of fewer videos there are no intervals, which would be too narrow to be believed: on made data of three kinds, 95 %
intervals held the true score in 62 to 84 % of samples of 10 videos, 76 to 93 % of 20, 90 to 95 % of 76."""


@dataclass(frozen=True)
class Scores:
    """What predictions are worth."""

    ccc: Mapping[Target, float]
    """CCC of each target, in [-1,1]; NaN where it is undefined."""
    mean: float
    """Mean over the targets; NaN if one of them is NaN."""
    n_videos: int
    """Videos with both predictions and annotations."""
    n_frames: int
    """Annotated frames among them."""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Measures:
    """One target, or the mean of all; NaN where undefined."""

    ccc: float
    """In [-1,1]."""
    pcc: float
    """In [-1,1]."""
    rmse: float
    """>= 0, in the unit of the labels, which lie in [-1,1]."""


@dataclass(frozen=True)
class VideoScores:
    """One video."""

    video_id: str
    n_predicted: int
    """Rows of the prediction."""
    n_annotation_rows: int
    """Rows of the annotation, those without a label included."""
    n_not_annotated: int
    """Rows of the annotation without a label: -5 in the challenge's files."""
    n_compared: int
    """Annotated frames that lie within both."""
    by_target: Mapping[Target, Measures]
    """NaN where undefined: constant labels or predictions, fewer than two labels, a prediction that is not there."""

    @property
    def mean_ccc(self) -> float:
        """Mean CCC of the targets that have one; NaN if none has."""
        defined = [measures.ccc for measures in self.by_target.values() if not math.isnan(measures.ccc)]
        return float(np.mean(defined)) if defined else math.nan


@dataclass(frozen=True)
class Intervals:
    """Percentile bootstrap intervals of CCC over videos: lower and upper end; NaN where a resample has no CCC."""

    by_target: Mapping[Target, tuple[float, float]]
    mean: tuple[float, float]
    n_resamples: int
    seed: int


@dataclass(frozen=True)
class DetailedScores:
    """The challenge's score and what lies behind it."""

    by_target: Mapping[Target, Measures]
    """Over the concatenation of all annotated frames."""
    mean: Measures
    """Mean of the targets."""
    intervals: Intervals | None
    """None with fewer than :data:`MIN_VIDEOS_FOR_INTERVALS` videos that have annotated frames."""
    videos: tuple[VideoScores, ...]
    """Videos with both predictions and annotations, by name."""
    warnings: tuple[str, ...]

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
    """How well the disagreement of several models ranks the errors of their mean, for one target."""

    n_frames: int
    """Frames with a label and with predictions of two models or more."""
    spearman: float
    """Rank correlation of the models' standard deviation with the absolute error, in [-1,1]: 1 where they disagree the
    more, the larger the error; 0 where the one says nothing of the other. NaN where one of them does not vary."""
    all: Measures
    """Over these frames."""
    least: Measures
    """Over the half of them on which the models disagree least."""


@dataclass(frozen=True)
class _Pair:
    """Predictions and annotations (n,n_targets) of one video, over the frames that both have."""

    video_id: str
    n_predicted: int
    annotation: NDArray[np.floating]
    """All its rows."""
    predicted: NDArray[np.floating]
    annotated: NDArray[np.floating]

    @property
    def labelled(self) -> NDArray[np.bool_]:
        """(n,) frames with a label for at least one target."""
        return ~np.isnan(self.annotated).all(axis=1)


def evaluate(
    predictions: Mapping[str, NDArray[np.floating]],
    annotations: Mapping[str, NDArray[np.floating]],
    *,
    targets: Sequence[Target] = TARGETS,
) -> Scores:
    """Compare predictions with annotations.

    Args:
        predictions: (n,n_targets) in [-1,1] for each video_id; NaN where not predicted.
        annotations: (n,n_targets) likewise, NaN where not annotated. Where the two differ in length, the frames that
            both have are compared and a warning gives the two counts.
        targets: names of the columns.

    Raises:
        InputError: no video has both.
    """
    pairs = _pair_up(predictions, annotations)
    predicted, annotated = _concatenate(pairs)
    values = {target: ccc(predicted[:, k], annotated[:, k]) for k, target in enumerate(targets)}
    return Scores(
        ccc=values,
        mean=float(np.mean(list(values.values()))),
        n_videos=len(pairs),
        n_frames=int(sum(pair.labelled.sum() for pair in pairs)),
        warnings=_warnings(predictions, annotations, pairs),
    )


def evaluate_in_detail(
    predictions: Mapping[str, NDArray[np.floating]],
    annotations: Mapping[str, NDArray[np.floating]],
    *,
    targets: Sequence[Target] = TARGETS,
    n_resamples: int = 1000,
    seed: int = 0,
) -> DetailedScores:
    """Compare predictions with annotations: all of :func:`evaluate`, PCC, RMSE, each video, intervals over videos.

    The intervals tell how far the score depends on which videos are in the set. They say nothing of another training
    run, take videos as independent of each other, which two videos of one person are not, and are somewhat too narrow
    for a few dozen videos, see :data:`MIN_VIDEOS_FOR_INTERVALS`.

    Args:
        predictions: see :func:`evaluate`.
        annotations: see :func:`evaluate`.
        targets: names of the columns.
        n_resamples: how many sets of videos are drawn with replacement, each as large as the one given.
        seed: of the draws; videos are drawn by their place in the sorted list of names.

    Raises:
        InputError: no video has both.
    """
    pairs = _pair_up(predictions, annotations)
    by_target = _measure(*_concatenate(pairs), targets)
    means = (float(np.mean(values)) for values in zip(*map(astuple, by_target.values()), strict=True))
    return DetailedScores(
        by_target=by_target,
        mean=Measures(*means),
        intervals=_intervals(pairs, targets, n_resamples=n_resamples, seed=seed),
        videos=tuple(_score_video(pair, targets) for pair in pairs),
        warnings=_warnings(predictions, annotations, pairs),
    )


def compare_disagreement(
    predictions: Mapping[str, NDArray[np.floating]],
    annotations: Mapping[str, NDArray[np.floating]],
    spreads: Mapping[str, tuple[NDArray[np.floating], NDArray[np.floating]]],
    *,
    targets: Sequence[Target] = TARGETS,
) -> tuple[dict[Target, Disagreement], tuple[str, ...]]:
    """Compare how far models disagree with how far their mean is off, over the frames of all videos.

    Args:
        predictions: see :func:`evaluate`.
        annotations: see :func:`evaluate`.
        spreads: the predictions once more, and their standard deviations, (n,n_targets) both, of each video.
        targets: names of the columns.

    Returns:
        Of each target that has such frames; and warnings, one line for each video whose predictions are not those that
        the standard deviations belong to, which are left out.
    """
    from scipy.stats import spearmanr  # takes a while to import; comes with scikit-learn

    parts, warnings = [], []
    for video_id in sorted(predictions.keys() & annotations.keys() & spreads.keys()):
        predicted, annotated = predictions[video_id], annotations[video_id]
        values, spread = spreads[video_id]
        n = min(len(predicted), len(annotated), len(values))
        if not np.allclose(values[:n], predicted[:n], atol=_ROUNDING, rtol=0.0, equal_nan=True):
            warnings.append(f"{video_id}: the table holds other predictions; its models' disagreement is left out")
            continue
        parts.append(np.stack([predicted[:n], annotated[:n], spread[:n]]))  # (3,n,n_targets)
    compared: dict[Target, Disagreement] = {}
    columns = np.concatenate(parts, axis=1) if parts else np.empty((3, 0, len(targets)))
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


def disagreement_as_json(compared: Mapping[Target, Disagreement]) -> dict[str, object]:
    """For each target ``n_frames``, ``spearman``, and ``ccc``, ``pcc``, ``rmse`` under ``all`` and ``least``."""
    return {
        target: {
            "n_frames": one.n_frames,
            "spearman": _or_null(one.spearman),
            **{part: _measures_as_json(measures) for part, measures in (("all", one.all), ("least", one.least))},
        }
        for target, one in compared.items()
    }


def as_json(scores: DetailedScores) -> dict[str, object]:
    """Scores as JSON can hold them: what is undefined is null, not NaN.

    Returns:
        The targets and ``mean``: CCC; ``pcc``, ``rmse``: an object each with the same keys; ``ccc_interval``: null, or
        [lower, upper] under the same keys, with ``confidence``, ``n_resamples`` and
        ``seed``; ``n_videos``, ``n_frames`` (annotated frames compared), ``n_not_annotated`` (rows with -5);
        ``warnings``: lines of text; ``videos``: a list with, for each video, ``video``, ``n_predicted``,
        ``n_annotation_rows``, ``n_not_annotated``, ``n_compared``, and under each target ``ccc``, ``pcc``, ``rmse``.
    """
    whole = {**scores.by_target, "mean": scores.mean}
    content: dict[str, object] = {name: _or_null(measures.ccc) for name, measures in whole.items()}
    content["pcc"] = {name: _or_null(measures.pcc) for name, measures in whole.items()}
    content["rmse"] = {name: _or_null(measures.rmse) for name, measures in whole.items()}
    content["ccc_interval"] = None
    if scores.intervals is not None:
        intervals = {**scores.intervals.by_target, "mean": scores.intervals.mean}
        ends = {name: [_or_null(end) for end in interval] for name, interval in intervals.items()}
        drawn = {"n_resamples": scores.intervals.n_resamples, "seed": scores.intervals.seed}
        content["ccc_interval"] = {**ends, "confidence": CONFIDENCE, **drawn}
    content |= {"n_videos": len(scores.videos), "n_frames": scores.n_frames}
    content |= {"n_not_annotated": scores.n_not_annotated, "warnings": list(scores.warnings)}
    content["videos"] = [_video_as_json(video) for video in scores.videos]
    return content


def resampled_ccc(
    predicted: Sequence[NDArray[np.floating]], annotated: Sequence[NDArray[np.floating]], *, draws: NDArray[np.integer]
) -> NDArray[np.float64]:
    """CCC over the concatenation of the videos of each draw, without concatenating them.

    CCC needs no more of a video than its number of labels, sums, sums of squares and of products: those of a draw are
    the sums of its videos'. They are taken about the mean over all videos, so that their differences keep their digits.

    Args:
        predicted: (n,K) for each of V videos.
        annotated: (n,K) likewise, NaN where not annotated.
        draws: (R,D) integers in [0,V): the videos of each of R draws; a video may be there several times.

    Returns:
        (R,K); NaN where :func:`rcma.metrics.ccc` is.
    """
    n_draws, n_videos = len(draws), len(predicted)
    times = np.zeros((n_draws, n_videos))
    np.add.at(times, (np.arange(n_draws)[:, None], draws), 1.0)
    columns = range(predicted[0].shape[1])
    return np.stack(
        [_ccc_of_sums([p[:, k] for p in predicted], [a[:, k] for a in annotated], times) for k in columns], axis=1
    )


def _ccc_of_sums(
    predicted: Sequence[NDArray[np.floating]], annotated: Sequence[NDArray[np.floating]], times: NDArray[np.float64]
) -> NDArray[np.float64]:
    """CCC (R,) of one target when each of V videos is there ``times`` (R,V) times."""
    labelled = [~np.isnan(y) for y in annotated]
    x = [p[kept].astype(np.float64) for p, kept in zip(predicted, labelled, strict=True)]
    y = [a[kept].astype(np.float64) for a, kept in zip(annotated, labelled, strict=True)]
    unusable = np.array([not (np.isfinite(a).all() and np.isfinite(b).all()) for a, b in zip(x, y, strict=True)])
    x, y = ([np.where(np.isfinite(values), values, 0.0) for values in side] for side in (x, y))
    x_origin, y_origin = (float(np.concatenate(v).mean()) if any(map(len, v)) else 0.0 for v in (x, y))
    sums = np.array(
        [
            [len(a), a.sum(), b.sum(), (a**2).sum(), (b**2).sum(), (a * b).sum()]
            for a, b in ((a - x_origin, b - y_origin) for a, b in zip(x, y, strict=True))
        ]
    )  # (V,6)
    with np.errstate(divide="ignore", invalid="ignore"):
        n, *of_draw = (times @ sums).T
        x_mean, y_mean, xx, yy, xy = (values / n for values in of_draw)
        shift = (x_mean - y_mean) + (x_origin - y_origin)
        result = 2.0 * (xy - x_mean * y_mean) / (xx - x_mean**2 + yy - y_mean**2 + shift**2)
    says_nothing = (n < 2) | (times[:, unusable].sum(axis=1) > 0) | _constant(x, times) | _constant(y, times)
    return np.where(says_nothing, np.nan, result)


def _constant(values: Sequence[NDArray[np.float64]], times: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(R,) draws in which all values are the same; not seen from their sums, which are rounded."""
    highest = np.array([v.max(initial=-np.inf) for v in values])
    lowest = np.array([v.min(initial=np.inf) for v in values])
    drawn = times > 0
    return np.where(drawn, highest, -np.inf).max(axis=1) <= np.where(drawn, lowest, np.inf).min(axis=1)


def _intervals(pairs: Sequence[_Pair], targets: Sequence[Target], *, n_resamples: int, seed: int) -> Intervals | None:
    pairs = [pair for pair in pairs if pair.labelled.any()]
    if len(pairs) < MIN_VIDEOS_FOR_INTERVALS:
        return None
    draws = np.random.default_rng(seed).integers(len(pairs), size=(n_resamples, len(pairs)))
    values = resampled_ccc([pair.predicted for pair in pairs], [pair.annotated for pair in pairs], draws=draws)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.column_stack([values, values.mean(axis=1)]), [tail, 1 - tail], axis=0)
    *of_targets, mean = ((float(a), float(b)) for a, b in zip(low, high, strict=True))
    return Intervals(dict(zip(targets, of_targets, strict=True)), mean, n_resamples=n_resamples, seed=seed)


def _pair_up(
    predictions: Mapping[str, NDArray[np.floating]], annotations: Mapping[str, NDArray[np.floating]]
) -> list[_Pair]:
    common = sorted(predictions.keys() & annotations.keys())
    if not common:
        raise InputError(
            f"predictions ({_some(predictions)}) and annotations ({_some(annotations)}) have no video in common; "
            "their names must be equal"
        )
    pairs = []
    for video_id in common:
        predicted, annotation = predictions[video_id], annotations[video_id]
        n = min(len(predicted), len(annotation))
        pairs.append(_Pair(video_id, len(predicted), annotation, predicted[:n], annotation[:n]))
    return pairs


def _concatenate(pairs: Sequence[_Pair]) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    return np.concatenate([pair.predicted for pair in pairs]), np.concatenate([pair.annotated for pair in pairs])


def _warnings(
    predictions: Mapping[str, object],
    annotations: Mapping[str, object],
    pairs: Sequence[_Pair],
) -> tuple[str, ...]:
    warnings = [f"{name}: no predictions; not compared" for name in sorted(annotations.keys() - predictions.keys())]
    warnings += [f"{name}: no annotation; not compared" for name in sorted(predictions.keys() - annotations.keys())]
    for pair in pairs:
        n_predicted, n_annotated = pair.n_predicted, len(pair.annotation)
        if n_predicted != n_annotated:
            n = len(pair.annotated)
            warnings.append(
                f"{pair.video_id}: {n_predicted} predictions, {n_annotated} annotated rows; compared over {n}"
            )
        gaps = (np.isnan(pair.predicted) & ~np.isnan(pair.annotated)).any(axis=1)
        if gaps.any():
            warnings.append(f"{pair.video_id}: {gaps.sum()} annotated frames have no prediction: CCC is undefined")
    return tuple(warnings)


def _score_video(pair: _Pair, targets: Sequence[Target]) -> VideoScores:
    return VideoScores(
        video_id=pair.video_id,
        n_predicted=pair.n_predicted,
        n_annotation_rows=len(pair.annotation),
        n_not_annotated=int(np.isnan(pair.annotation).all(axis=1).sum()),
        n_compared=int(pair.labelled.sum()),
        by_target=_measure(pair.predicted, pair.annotated, targets),
    )


def _measure(
    predicted: NDArray[np.floating], annotated: NDArray[np.floating], targets: Sequence[Target]
) -> dict[Target, Measures]:
    columns = zip(targets, predicted.T, annotated.T, strict=True)
    return {target: _measure_target(x, y) for target, x, y in columns}


def _measure_target(predicted: NDArray[np.floating], annotated: NDArray[np.floating]) -> Measures:
    return Measures(ccc=ccc(predicted, annotated), pcc=pcc(predicted, annotated), rmse=rmse(predicted, annotated))


def _video_as_json(video: VideoScores) -> dict[str, object]:
    content: dict[str, object] = {"video": video.video_id}
    for name in ("n_predicted", "n_annotation_rows", "n_not_annotated", "n_compared"):
        content[name] = getattr(video, name)
    return content | {target: _measures_as_json(measures) for target, measures in video.by_target.items()}


def _measures_as_json(measures: Measures) -> dict[str, float | None]:
    return {name: _or_null(value) for name, value in asdict(measures).items()}


def _or_null(value: float) -> float | None:
    return None if math.isnan(value) else value


def _some(names: Mapping[str, object]) -> str:
    shown = ", ".join(sorted(names)[:3])
    return f"{shown}, ..." if len(names) > 3 else shown or "none"
