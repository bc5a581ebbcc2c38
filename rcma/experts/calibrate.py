"""Fit public models to a few labelled videos: per target a ridge regression over what the models say.

A frame's features are the columns that ``rcma-predict`` writes of each model, such as ``words_valence``, standardised
over the frames that have them. Where a model says nothing, its columns are zero and an indicator of each is one, so
that its absence has a weight of its own. Frames of a video resemble each other: everything is cross-validated over
videos, the strength of the regression inside of the training part of each fold.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from preprocessing.config import Settings
from preprocessing.errors import InputError
from preprocessing.files import replace_own
from rcma import __version__
from rcma.config import TARGETS, Target
from rcma.metrics import ccc

LEAST_VIDEOS = 3
"""With two, nothing could be chosen without the video that it is tested on."""
_OUTER_FOLDS, _INNER_FOLDS = 10, 5
"""At most; with fewer videos, each is held out alone."""
_STRENGTHS = np.logspace(-4, 2, 7)
"""Penalties on the squared weights, in units of the number of frames."""
_METADATA_KEY = "rcma"


@dataclass(frozen=True)
class LabelledVideo:
    """What public models said of a video, and its labels, for T frames."""

    video_id: str
    values: NDArray[np.float32]
    """(T,n) a column of each output of a model; NaN where it says nothing."""
    fused: NDArray[np.float32]
    """(T,2) what was predicted without calibration; NaN where nothing was."""
    labels: NDArray[np.float32]
    """(T,2) valence and arousal in [-1,1]; NaN where not annotated."""


class TargetScore(Settings):
    """What the calibration of a target rests on."""

    n_videos: int
    n_frames: int
    """Labelled frames of them at which a model says something."""
    n_folds: int
    strength: float
    """Chosen penalty, in units of the number of frames."""
    ccc_before: float | None
    """Of the fused prediction, over these frames; None where undefined."""
    ccc_after: float | None
    """Of the calibrated one, each video predicted by a regression that was fitted without it."""


class Description(Settings):
    """What goes with the weights, as metadata of their file."""

    library_name: str = "rcma-calibration"
    version: str
    """Of this package."""
    columns: tuple[str, ...]
    """Outputs of public models in the order of the weights."""
    scores: dict[Target, TargetScore]


@dataclass(frozen=True)
class Calibration:
    """Valence and arousal from n outputs x of public models: a constant, plus offset + weight * x of each known one."""

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
        """What it rests on, in one line."""
        scores = self.description.scores
        rests = "; ".join(
            f"{target}: CCC {_decimal(s.ccc_before)} before, {_decimal(s.ccc_after)} after, on held-out videos "
            f"({s.n_videos} videos, {s.n_frames} frames, {s.n_folds} folds)"
            for target, s in scores.items()
        )
        return f"Calibrated by a ridge regression over {', '.join(self.models)}. {rests}."


def fit_calibration(videos: Sequence[LabelledVideo], columns: Sequence[str]) -> Calibration:
    """Fit a ridge regression for each target.

    Args:
        videos: with labels.
        columns: names of the n outputs. One that no labelled frame has is left out of the calibration.

    Raises:
        InputError: fewer than three videos have labelled frames of a target at which a model says something.
    """
    values = np.concatenate([video.values for video in videos]).astype(np.float64)  # (N,n)
    fused, labels = (np.concatenate([getattr(v, name) for v in videos]) for name in ("fused", "labels"))  # (N,2)
    groups = np.repeat(np.arange(len(videos)), [len(video.values) for video in videos])
    usable = np.isfinite(values).any(axis=1, keepdims=True) & np.isfinite(fused) & np.isfinite(labels)  # (N,2)
    for target, rows in zip(TARGETS, usable.T, strict=True):
        n_videos = len(np.unique(groups[rows]))
        if n_videos < LEAST_VIDEOS:
            raise InputError(
                f"{target}: {n_videos} videos have labelled frames at which a public model says something; "
                f"at least {LEAST_VIDEOS} are needed, one of which is held out at a time"
            )
    known = np.isfinite(values[usable.any(axis=1)]).any(axis=0)
    values = values[:, known]
    fits, scores = [], {}
    for k, target in enumerate(TARGETS):
        rows = usable[:, k]
        x, y, of_rows = values[rows], labels[rows, k].astype(np.float64), groups[rows]
        held_out, n_folds = _predict_held_out(x, y, of_rows)
        fit = _fit(x, y, of_rows)
        fits.append(fit)
        scores[target] = TargetScore(
            n_videos=len(np.unique(of_rows)),
            n_frames=len(y),
            n_folds=n_folds,
            strength=fit.strength,
            ccc_before=_or_none(ccc(fused[rows, k], y)),
            ccc_after=_or_none(ccc(held_out, y)),
        )
    kept = tuple(name for name, is_known in zip(columns, known, strict=True) if is_known)
    return Calibration(
        Description(version=__version__, columns=kept, scores=scores),
        weights=np.stack([fit.weights for fit in fits]),
        offsets=np.stack([fit.offsets for fit in fits]),
        constants=np.array([fit.constant for fit in fits]),
    )


@dataclass(frozen=True)
class _Fit:
    weights: NDArray[np.float64]
    offsets: NDArray[np.float64]
    constant: float
    strength: float


def _predict_held_out(
    x: NDArray[np.float64], y: NDArray[np.float64], groups: NDArray[np.intp]
) -> tuple[NDArray[np.float64], int]:
    """(N,) each video predicted by a regression that has not seen it; and the number of folds."""
    from sklearn.model_selection import GroupKFold

    n_folds = min(_OUTER_FOLDS, len(np.unique(groups)))
    predicted = np.empty(len(y))
    for train, test in GroupKFold(n_folds).split(x, y, groups):
        fit = _fit(x[train], y[train], groups[train])
        predicted[test] = _apply(x[test], fit.weights[None], fit.offsets[None], np.array([fit.constant]))[:, 0]
    return predicted, n_folds


def _fit(x: NDArray[np.float64], y: NDArray[np.float64], groups: NDArray[np.intp]) -> _Fit:
    """Fit (N,n) to (N,), with the strength that has the least squared error on videos left out in turn."""
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
    # Standardising goes into the weights, and what a missing value adds becomes what a present one does not.
    weights = of_values / std
    return _Fit(weights, -weights * mean - of_missing, float(ridge.intercept_ + of_missing.sum()), strength)


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
    """Write the weights, with their description as metadata, as a safetensors file.

    Raises:
        InputError: a file is there that this program did not write.
    """
    arrays = {name: np.ascontiguousarray(getattr(calibration, name)) for name in ("weights", "offsets", "constants")}
    with replace_own(path) as new:
        new.write_bytes(save(arrays, metadata={_METADATA_KEY: calibration.description.model_dump_json()}))


def load_calibration(path: Path) -> Calibration:
    """Read what :func:`save_calibration` wrote.

    Raises:
        InputError: there is no such file, or it is another one, or damaged.
    """
    try:
        with safe_open(path, framework="np") as file:
            description = Description.model_validate(json.loads((file.metadata() or {})[_METADATA_KEY]))
            arrays = {name: file.get_tensor(name) for name in ("weights", "offsets", "constants")}
    except FileNotFoundError:
        raise InputError(f"{path}: no such calibration; rcma-calibrate makes one") from None
    except (SafetensorError, OSError, KeyError, ValueError, ValidationError):
        raise InputError(f"{path}: not a calibration of rcma-calibrate, or damaged; make it again") from None
    n = len(description.columns)
    shapes = {"weights": (2, n), "offsets": (2, n), "constants": (2,)}
    if any(arrays[name].shape != shape or not np.isfinite(arrays[name]).all() for name, shape in shapes.items()):
        raise InputError(f"{path}: its weights do not fit its {n} columns; make it again with rcma-calibrate")
    return Calibration(description, **arrays)


def _or_none(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _decimal(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"
