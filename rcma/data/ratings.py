"""The labels in one table: a curve, or utterances, for each target and rater; and what raters say together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from preprocessing.errors import InputError
from rcma.config import LabelSettings, Target
from rcma.data.tables import Table, column_of, some_names
from rcma.data.times import Times, find_unit, plain, read_times, usual_step
from rcma.metrics import pcc

MAX_GAP = 5.0
"""Samples further apart than so many usual steps (the median) have a gap between them."""
VIDEO_NAMES = ("video", "video_id", "name", "file", "filename")
"""Usual names of the column that says whose labels a row has."""
_RATER_NAMES = ("rater", "rater_id", "annotator", "annotator_id", "participant", "participant_id")
_VALUE_NAMES = ("value", "values", "rating", "ratings", "annotation", "label")
_NO_RATERS = (*VIDEO_NAMES, *_RATER_NAMES, "segment_id", "frame", "id")
_SUMMARIES = ("mean", "median", "ewe", "gs", "sd", "std", "spread")
"""What follows a target's name in columns that are no rater's."""
_ROLES = ("time", "start", "end", "video", "rater")
_ROUNDING_S = 1e-6


class Curve:
    """Samples of one rater, interpolated between them."""

    def __init__(self, time_s: NDArray[np.float64], values: NDArray[np.float64]) -> None:
        """Take N >= 2 samples: rising times (N,) in seconds, and labels (N,), NaN where there is none."""
        self._time_s, self._values = time_s, values
        self.moments = time_s
        self.start_s, self.end_s = float(time_s[0]), float(time_s[-1])

    def at(self, wanted_s: NDArray[np.float64]) -> NDArray[np.float64]:
        """Labels at some times (n,), NaN where there is none."""
        time_s, values = self._time_s, self._values
        inside = (wanted_s >= self.start_s - _ROUNDING_S) & (wanted_s <= self.end_s + _ROUNDING_S)
        before = np.clip(np.searchsorted(time_s, wanted_s, side="right") - 1, 0, len(time_s) - 2)
        step = time_s[before + 1] - time_s[before]
        share = np.clip((wanted_s - time_s[before]) / step, 0.0, 1.0)
        found = (1 - share) * values[before] + share * values[before + 1]
        found[step > MAX_GAP * usual_step(time_s)] = np.nan
        # On a sample, its neighbour does not matter, which may be far away or have no label.
        on_sample = np.minimum(wanted_s - time_s[before], time_s[before + 1] - wanted_s) <= _ROUNDING_S
        nearest = np.where(share < 0.5, values[before], values[before + 1])
        return np.where(inside, np.where(on_sample, nearest, found), np.nan)


class Utterances:
    """Labels of one rater, each constant over a stretch; their mean where stretches overlap."""

    def __init__(self, start_s: NDArray[np.float64], end_s: NDArray[np.float64], values: NDArray[np.float64]) -> None:
        """Take N stretches: starts and ends (N,) in seconds, and labels (N,), NaN where there is none."""
        self._stretches = list(zip(start_s, end_s, values, strict=True))
        self.moments = (start_s + end_s) / 2
        self.start_s, self.end_s = float(start_s.min()), float(end_s.max())

    def at(self, wanted_s: NDArray[np.float64]) -> NDArray[np.float64]:
        """Labels at some times (n,), NaN where there is none."""
        total, count = np.zeros(len(wanted_s)), np.zeros(len(wanted_s))
        for start_s, end_s, value in self._stretches:
            if not np.isnan(value):
                within = (wanted_s >= start_s - _ROUNDING_S) & (wanted_s < end_s - _ROUNDING_S)
                total[within] += value
                count[within] += 1
        return np.where(count > 0, total / np.maximum(count, 1), np.nan)


Ratings = dict[Target, dict[str, "Curve | Utterances"]]
"""Labels of each rater, for each target."""


def read_ratings(
    table: Table, targets: Sequence[Target], settings: LabelSettings, *, of_file: Target | None
) -> Ratings:
    """Labels of each target and rater in one table.

    Args:
        table: the table.
        targets: whose columns are looked for.
        settings: how they are found.
        of_file: the target that the file's folder or name stands for, if any.

    Raises:
        InputError: no column of a target, or something in the rows cannot be used; the line is named.
    """
    unknown = [name for name in settings.columns if name not in (*_ROLES, *targets)]
    if unknown:
        raise InputError(f"columns: {unknown[0]} is none of {', '.join(_ROLES)} and no target ({', '.join(targets)})")
    unit = find_unit(table, settings.columns, settings.unit)
    ratings: Ratings = {}
    for rater, rows in table.groups(find_column(table, "rater", _RATER_NAMES, settings)).items():
        times = read_times(rows, settings.columns, unit)
        columns = _find_values(rows, targets, settings, times, of_file)
        if not columns:
            raise InputError(
                f"{table.where()}: no column of {' or '.join(targets)}; there are {some_names(table.header)}; "
                f"say which with columns: {targets[0]}=NAME"
            )
        places = [place for found in columns.values() for place in found]
        values = _scaled(rows, places, settings.scale)
        keep = _unrepeated(rows, times, values)
        for target, found in columns.items():
            for place in found:
                own = values[keep, places.index(place)]
                name = "/".join(filter(None, (rater, table.header[place] if len(found) > 1 else "")))
                ratings.setdefault(target, {})[name] = (
                    Curve(times.start_s[keep], own)
                    if times.end_s is None
                    else Utterances(times.start_s[keep], times.end_s[keep], own)
                )
    return ratings


def _find_values(
    table: Table, targets: Sequence[Target], settings: LabelSettings, times: Times, of_file: Target | None
) -> dict[Target, list[int]]:
    """Columns of each target, one for each rater; those of one target only where the file stands for it."""
    names = [plain(name) for name in table.header]
    found: dict[Target, list[int]] = {}
    for target in targets if of_file is None else [of_file]:
        if target in settings.columns:
            pattern = settings.columns[target].strip().lower()
            matching = [place for place, name in enumerate(table.header) if fnmatchcase(name.lower(), pattern)]
            if not matching:
                column_of(table, pattern)  # says what is there
        elif target in names:
            matching = [column_of(table, table.header[names.index(target)])]
        else:
            matching = [
                place
                for place, name in enumerate(names)
                if name.startswith(f"{target}_") and name.removeprefix(f"{target}_") not in _SUMMARIES
            ]
            if not matching and of_file is not None:
                others = [p for p, name in enumerate(names) if p not in times.columns and name not in _NO_RATERS]
                matching = [place for place in others if names[place] in _VALUE_NAMES] or others
        if matching:
            found[target] = matching
    return found


def _scaled(table: Table, places: Sequence[int], scale: tuple[float, float]) -> NDArray[np.float64]:
    """Labels (N,len(places)) mapped to [-1,1]."""
    values, (low, high) = table.numbers(places), scale
    outside = (values < low - _ROUNDING_S) | (values > high + _ROUNDING_S)
    if outside.any():
        row, place = np.argwhere(outside)[0]
        raise InputError(
            f"{table.where(row)}: {table.header[places[place]]} is {values[row, place]:g}, outside of the scale "
            f"{low:g} to {high:g}; give the scale that the raters had"
        )
    return np.clip(2 * (values - low) / (high - low) - 1, -1.0, 1.0)


def _unrepeated(table: Table, times: Times, values: NDArray[np.float64]) -> NDArray[np.intp]:
    """Rows without those that repeat the one before, time and labels."""
    span = times.start_s[:, None] if times.end_s is None else np.column_stack([times.start_s, times.end_s])
    same_time = np.append(False, (span[1:] == span[:-1]).all(axis=1))
    same_values = np.append(False, np.equal(np.nan_to_num(values[1:], nan=9), np.nan_to_num(values[:-1], nan=9)).all(1))
    if (same_time & ~same_values).any():
        row = int(np.flatnonzero(same_time & ~same_values)[0])
        raise InputError(
            f"{table.where(row)}: another label for the time of the row before, {times.start_s[row]:g} s; keep one"
        )
    keep = np.flatnonzero(~same_time)
    if times.end_s is None and len(keep) < 2:
        raise InputError(f"{table.where(0)}: one sample is no curve; give two or more, or a start and an end")
    return keep


def _weighted_mean(ratings: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,) mean of the raters (K,N) who have a label; NaN where none has."""
    there = np.isfinite(ratings) * weights[:, None]
    total = there.sum(axis=0)
    return np.where(total > 0, (np.nan_to_num(ratings) * there).sum(axis=0) / np.where(total > 0, total, 1.0), np.nan)


def find_column(table: Table, role: str, names: Sequence[str], settings: LabelSettings) -> int | None:
    """Place of the column of a role: the one that the settings name, or the first with a usual name; None without.

    Raises:
        InputError: there is no column, or there are two, of the name in the settings.
    """
    if role in settings.columns:
        return column_of(table, settings.columns[role])
    header = [plain(name) for name in table.header]
    return next((header.index(name) for name in names if name in header), None)


def combine(
    curves: Sequence[Curve | Utterances],
    wanted_s: NDArray[np.float64],
    how: Literal["mean", "ewe"],
    *,
    on_disagreement: Callable[[], None],
) -> NDArray[np.float64]:
    """Labels that several raters gave together at some times (n,); see :mod:`rcma.data.labels` for the equations.

    ``on_disagreement`` is called where no rater agrees with the others, and the plain mean is taken.
    """
    weights = np.ones(len(curves))
    if how == "ewe" and len(curves) > 1:
        moments = np.unique(np.concatenate([curve.moments for curve in curves]))
        agreement = rater_agreement(np.stack([curve.at(moments) for curve in curves]))
        if agreement.any():
            weights = agreement
        else:
            on_disagreement()
    return _weighted_mean(np.stack([curve.at(wanted_s) for curve in curves]), weights)


def rater_agreement(ratings: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights r_k of the evaluator-weighted estimator, see :mod:`rcma.data.labels`.

    Args:
        ratings: (K,N) labels of K raters at the same N times, NaN where there is none.

    Returns:
        (K,) in [0,1]; 0 where a rater's correlation with the mean of the others is negative or undefined.
    """
    agreement = np.zeros(len(ratings))
    for k, own in enumerate(ratings):
        others = np.delete(ratings, k, axis=0)
        mean = _weighted_mean(others, np.ones(len(others)))
        both = np.isfinite(own) & np.isfinite(mean)
        agreement[k] = max(0.0, float(np.nan_to_num(pcc(own[both], mean[both]))))
    return agreement
