"""Fits public models to a few labelled videos: a ridge regression for each target over the outputs of the models.

The inputs are the columns that ``rcma-predict`` writes for each model, such as ``words_valence``, standardised over the
frames that have them. Where a model has no value, its columns are zero and an indicator of each is one, so that absence
has a weight of its own. Because frames of a video resemble each other, everything is cross-validated over videos, and
the strength of the regression is chosen inside the training part of each fold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from preprocessing.config import Settings
from preprocessing.errors import InputError
from preprocessing.files import replace_own
from rcma import __version__
from rcma.config import TARGETS, Target
from rcma.metrics import ccc

LEAST_VIDEOS = 3
"""With two videos, nothing could be chosen without the video that it is tested on."""
_OUTER_FOLDS, _INNER_FOLDS = 10, 5
"""At most; with fewer videos, each is held out alone."""
_STRENGTHS = np.logspace(-4, 2, 7)
"""Penalties on the squared weights, in units of the number of frames."""
_METADATA_KEY = "rcma"


@dataclass(frozen=True)
class LabelledVideo:
    """Outputs of public models for T frames of a video, and its labels."""

    video_id: str
    values: NDArray[np.float32]
    """(T,n) a column for each output of a model; NaN where it has no value."""
    fused: NDArray[np.float32]
    """(T,2) prediction without calibration; NaN where there is none."""
    labels: NDArray[np.float32]
    """(T,2) valence and arousal in [-1,1]; NaN where not annotated."""


class TargetScore(Settings):
    """Data and scores of the calibration of a target."""

    n_videos: int
    n_frames: int
    """Labelled frames with an output of a model."""
    n_folds: int
    strength: float
    """Chosen penalty, in units of the number of frames."""
    ccc_before: float | None
    """Of the prediction without calibration over these frames; None where undefined."""
    ccc_after: float | None
    """Of the calibrated one, each video predicted by a regression fitted without it."""


class Description(Settings):
    """Metadata of the file of weights."""

    library_name: str = "rcma-calibration"
    version: str
    """Of this package."""
    columns: tuple[str, ...]
    """Outputs of public models in the order of the weights."""
    scores: dict[Target, TargetScore]


@dataclass(frozen=True)
class Calibration:
    """Valence and arousal from n outputs x of public models: constant + sum of (offset + weight * x) of known x."""

    description: Description
    weights: NDArray[np.float64]
    """(2,n)"""
    offsets: NDArray[np.float64]
    """(2,n)"""
    constants: NDArray[np.float64]
    """(2,)"""

    def __call__(self, values: NDArray[np.floating]) -> NDArray[np.float32]:
        """(T,n) outputs, in the order of ``description.columns``, to (T,2) in [-1,1]; NaN where none has a value."""
        return _apply(values, self.weights, self.offsets, self.constants).astype(np.float32)

    @property
    def models(self) -> list[str]:
        """Names of the public models whose outputs are needed."""
        endings = tuple(f"_{target}" for target in TARGETS)
        return sorted({c.rpartition("_")[0] for c in self.description.columns if c.endswith(endings)})

    def __str__(self) -> str:
        """Return models and scores in one line."""
        scores = "; ".join(
            f"{target}: CCC {_decimal(s.ccc_before)} before, {_decimal(s.ccc_after)} after, on held-out videos "
            f"({s.n_videos} videos, {s.n_frames} frames, {s.n_folds} folds)"
            for target, s in self.description.scores.items()
        )
        return f"Calibrated by a ridge regression over {', '.join(self.models)}. {scores}."


def _decimal(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


def fit_calibration(videos: Sequence[LabelledVideo], columns: Sequence[str]) -> Calibration:
    """Fit a ridge regression for each target.

    Args:
        videos: with labels.
        columns: names of the n outputs. An output without values at labelled frames is left out.

    Raises:
        InputError: fewer than three videos have labelled frames with an output of a model.
    """
    values = np.concatenate([video.values for video in videos]).astype(np.float64)  # (N,n)
    fused, labels = (np.concatenate([getattr(v, name) for v in videos]) for name in ("fused", "labels"))  # (N,2)
    groups = np.repeat(np.arange(len(videos)), [len(video.values) for video in videos])
    usable = np.isfinite(values).any(axis=1, keepdims=True) & np.isfinite(fused) & np.isfinite(labels)  # (N,2)
    known = np.isfinite(values[usable.any(axis=1)]).any(axis=0)
    values = values[:, known]
    fits, scores = [], {}
    for k, target in enumerate(TARGETS):
        rows = usable[:, k]
        x, y, of_rows = values[rows], labels[rows, k].astype(np.float64), groups[rows]
        n_videos = len(np.unique(of_rows))
        if n_videos < LEAST_VIDEOS:
            raise InputError(
                f"{target}: {n_videos} videos have labelled frames with an output of a public model; "
                f"at least {LEAST_VIDEOS} are needed, one of which is held out at a time"
            )
        n_folds = min(_OUTER_FOLDS, n_videos)
        *fit, strength = _fit(x, y, of_rows)
        fits.append(fit)
        before, after = float(ccc(fused[rows, k], y)), float(ccc(_predict_held_out(x, y, of_rows, n_folds), y))
        scores[target] = TargetScore(
            n_videos=n_videos,
            n_frames=len(y),
            n_folds=n_folds,
            strength=strength,
            ccc_before=before if np.isfinite(before) else None,
            ccc_after=after if np.isfinite(after) else None,
        )
    kept = tuple(name for name, is_known in zip(columns, known, strict=True) if is_known)
    weights, offsets, constants = (np.concatenate(parts) for parts in zip(*fits, strict=True))
    return Calibration(Description(version=__version__, columns=kept, scores=scores), weights, offsets, constants)


def _predict_held_out(
    x: NDArray[np.float64], y: NDArray[np.float64], groups: NDArray[np.intp], n_folds: int
) -> NDArray[np.float64]:
    """(N,) each video predicted by a regression fitted without it."""
    from sklearn.model_selection import GroupKFold

    predicted = np.empty(len(y))
    for train, test in GroupKFold(n_folds).split(x, y, groups):
        *fit, _ = _fit(x[train], y[train], groups[train])
        predicted[test] = _apply(x[test], *fit)[:, 0]
    return predicted


def _fit(
    x: NDArray[np.float64], y: NDArray[np.float64], groups: NDArray[np.intp]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], float]:
    """Fit (N,n) to (N,): weights (1,n), offsets (1,n), constant (1,), and the strength.

    The strength is the one with the least squared error on videos that are held out in turn.
    """
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import GroupKFold

    there = np.isfinite(x)
    n = np.maximum(there.sum(axis=0), 1)
    mean = np.where(there, x, 0.0).sum(axis=0) / n
    std = np.sqrt((np.where(there, x - mean, 0.0) ** 2).sum(axis=0) / n)
    std[std == 0.0] = 1.0
    features = np.concatenate([np.where(there, (x - mean) / std, 0.0), ~there], axis=1)  # (N,2n)
    errors = np.zeros(len(_STRENGTHS))
    folds = GroupKFold(min(_INNER_FOLDS, len(np.unique(groups))))
    for train, test in folds.split(features, y, groups):
        copies = np.tile(y[train, None], len(_STRENGTHS))  # one for each strength
        ridges = Ridge(alpha=_STRENGTHS * len(train)).fit(features[train], copies)
        errors += ((ridges.predict(features[test]) - y[test, None]) ** 2).sum(axis=0)
    strength = float(_STRENGTHS[errors.argmin()])
    ridge = Ridge(alpha=strength * len(y)).fit(features, y)
    of_values, of_missing = np.split(ridge.coef_, 2)
    # The weights include the standardisation; the effect of a missing value becomes an offset of the present ones.
    weights = of_values / std
    offsets = -weights * mean - of_missing
    return weights[None], offsets[None], np.array([ridge.intercept_ + of_missing.sum()]), strength


def _apply(
    values: NDArray[np.floating],
    weights: NDArray[np.float64],
    offsets: NDArray[np.float64],
    constants: NDArray[np.float64],
) -> NDArray[np.float64]:
    """See :class:`Calibration`: (T,n) and (k,n), (k,n), (k,) to (T,k)."""
    there = np.isfinite(values)
    given = np.where(there, values, 0.0).astype(np.float64)
    predicted = np.clip(constants + there @ offsets.T + given @ weights.T, -1.0, 1.0)
    return np.where(there.any(axis=1, keepdims=True), predicted, np.nan)


def save_calibration(calibration: Calibration, path: Path) -> None:
    """Write the weights as a safetensors file, with their description as metadata.

    Raises:
        InputError: another file is in its place.
    """
    arrays = {name: np.ascontiguousarray(getattr(calibration, name)) for name in ("weights", "offsets", "constants")}
    with replace_own(path) as new:
        new.write_bytes(save(arrays, metadata={_METADATA_KEY: calibration.description.model_dump_json()}))


def load_calibration(path: Path) -> Calibration:
    """Read a file of :func:`save_calibration`.

    Raises:
        InputError: there is no such file, or it is another file, or damaged.
    """
    try:
        with safe_open(path, framework="np") as file:
            description = Description.model_validate_json((file.metadata() or {})[_METADATA_KEY])
            arrays = {name: file.get_tensor(name) for name in ("weights", "offsets", "constants")}
    except FileNotFoundError:
        raise InputError(f"{path}: no such calibration; rcma-calibrate makes one") from None
    except (SafetensorError, OSError, KeyError, ValueError):
        raise InputError(f"{path}: not a calibration of rcma-calibrate, or damaged; make it again") from None
    n = len(description.columns)
    shapes = {"weights": (2, n), "offsets": (2, n), "constants": (2,)}
    if any(arrays[name].shape != shape or not np.isfinite(arrays[name]).all() for name, shape in shapes.items()):
        raise InputError(f"{path}: its weights do not fit its {n} columns; make it again with rcma-calibrate")
    return Calibration(description, **arrays)
