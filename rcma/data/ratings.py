"""The ratings in one table, for each target and rater, and how raters are combined."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from preprocessing.errors import InputError
from rcma.config import LabelSettings, Target
from rcma.data.tables import Table, column_of, some
from rcma.data.times import Times, find_unit, plain, read_times, usual_step
from rcma.metrics import pcc

MAX_GAP = 5.0
"""Consecutive samples further apart than this many usual steps (the median) have no label between them."""
VIDEO_NAMES = ("video", "video_id", "name", "file", "filename")
"""Usual names of the column with the video of each row."""
_RATER_NAMES = ("rater", "rater_id", "annotator", "annotator_id", "participant", "participant_id")
_VALUE_NAMES = ("value", "values", "rating", "ratings", "annotation", "label")
_NOT_RATINGS = (*VIDEO_NAMES, *_RATER_NAMES, "segment_id", "frame", "id")
_SUMMARIES = ("mean", "median", "ewe", "gs", "sd", "std", "spread")
"""Endings of ``valence_mean`` and the like, which are not a rater's columns."""
_ROLES = ("time", "start", "end", "video", "rater")
_TOLERANCE_S = 1e-6


class Rating(NamedTuple):
    """Labels of one rater: samples, interpolated linearly, or intervals with a constant label each."""

    times: Times
    """Of N >= 2 samples, or N intervals."""
    values: NDArray[np.float64]
    """(N,) labels, NaN where there is none."""

    def at(self, wanted_s: NDArray[np.float64]) -> NDArray[np.float64]:
        """Labels (n,) at these times (n,) in seconds; NaN where there is none."""
        return self._interpolate(wanted_s) if self.times.are_samples else self._average(wanted_s)

    def _interpolate(self, wanted_s: NDArray[np.float64]) -> NDArray[np.float64]:
        time_s, values = self.times.start_s, self.values
        inside = (wanted_s >= time_s[0] - _TOLERANCE_S) & (wanted_s <= time_s[-1] + _TOLERANCE_S)
        before = np.clip(np.searchsorted(time_s, wanted_s, side="right") - 1, 0, len(time_s) - 2)
        step = time_s[before + 1] - time_s[before]
        share = np.clip((wanted_s - time_s[before]) / step, 0.0, 1.0)
        found = (1 - share) * values[before] + share * values[before + 1]
        found[step > MAX_GAP * usual_step(time_s)] = np.nan
        # At a sample, the neighbour does not count: it may be far away or have no label.
        at_sample = np.minimum(wanted_s - time_s[before], time_s[before + 1] - wanted_s) <= _TOLERANCE_S
        nearest = np.where(share < 0.5, values[before], values[before + 1])
        return np.where(inside, np.where(at_sample, nearest, found), np.nan)

    def _average(self, wanted_s: NDArray[np.float64]) -> NDArray[np.float64]:
        """The mean of the intervals that contain a time."""
        total, count = np.zeros(len(wanted_s)), np.zeros(len(wanted_s))
        for first_s, last_s, value in zip(self.times.start_s, self.times.end_s, self.values, strict=True):
            if not np.isnan(value):
                within = (wanted_s >= first_s - _TOLERANCE_S) & (wanted_s < last_s - _TOLERANCE_S)
                total[within] += value
                count[within] += 1
        return np.where(count > 0, total / np.maximum(count, 1), np.nan)


Ratings = dict[Target, list[Rating]]
"""Labels of each rater, for each target."""


def read_ratings(
    table: Table, targets: Sequence[Target], settings: LabelSettings, *, of_file: Target | None
) -> Ratings:
    """Read the ratings of the wanted targets in one table; ``of_file`` is the target of the whole file, if any.

    Raises:
        InputError: no target has a column, or a row cannot be used; the message names the line.
    """
    unknown = [name for name in settings.columns if name not in (*_ROLES, *targets)]
    if unknown:
        raise InputError(f"columns: {unknown[0]} is none of {', '.join(_ROLES)} and no target ({', '.join(targets)})")
    unit = find_unit(table, settings.columns, settings.unit)
    ratings: Ratings = defaultdict(list)
    for rows in table.groups(find_column(table, "rater", _RATER_NAMES, settings)).values():
        times = read_times(rows, settings.columns, unit)
        columns = [
            (target, place)
            for target in (targets if of_file is None else [of_file])
            for place in _columns_of(rows, target, settings, times, of_file=of_file is not None)
        ]
        if not columns:
            raise InputError(
                f"{table.where()}: no column of {' or '.join(targets)}; there are {some(table.header)}; "
                f"say which with columns: {targets[0]}=NAME"
            )
        values = _scaled(rows, [place for _, place in columns], settings.scale)
        keep = _without_repetitions(rows, times, values)
        kept = times._replace(start_s=times.start_s[keep], end_s=times.end_s[keep])
        for (target, _), own in zip(columns, values[keep].T, strict=True):
            ratings[target].append(Rating(kept, own))
    return ratings


def _columns_of(table: Table, target: Target, settings: LabelSettings, times: Times, *, of_file: bool) -> list[int]:
    """Columns of a target, one for each rater; of any name if the whole file is about the target."""
    names = [plain(name) for name in table.header]
    if target in settings.columns:
        pattern = settings.columns[target].strip().lower()
        matching = [place for place, name in enumerate(table.header) if fnmatchcase(name.lower(), pattern)]
        return matching or [column_of(table, pattern)]  # which raises and lists the columns
    if target in names:
        return [column_of(table, table.header[names.index(target)])]
    endings = [name.removeprefix(f"{target}_") for name in names]
    matching = [k for k, name in enumerate(names) if endings[k] != name and endings[k] not in _SUMMARIES]
    if matching or not of_file:
        return matching
    others = [k for k, name in enumerate(names) if k not in times.columns and name not in _NOT_RATINGS]
    return [k for k in others if names[k] in _VALUE_NAMES] or others


def _scaled(table: Table, places: Sequence[int], scale: tuple[float, float]) -> NDArray[np.float64]:
    """Labels (N,len(places)) mapped from the raters' scale to [-1,1]."""
    values, (low, high) = table.numbers(places), scale
    outside = (values < low - _TOLERANCE_S) | (values > high + _TOLERANCE_S)

    def problem(row: int) -> str:
        place = int(np.argmax(outside[row]))
        found = f"{table.header[places[place]]} is {values[row, place]:g}"
        return f"{found}, outside of the scale {low:g} to {high:g}; give the scale that the raters had"

    table.refuse(outside.any(axis=1), problem)
    return np.clip(2 * (values - low) / (high - low) - 1, -1.0, 1.0)


def _without_repetitions(table: Table, times: Times, values: NDArray[np.float64]) -> NDArray[np.intp]:
    """Rows except those with the time and the labels of the row before."""
    span = np.column_stack([times.start_s, times.end_s])
    same_time = np.append(False, (span[1:] == span[:-1]).all(axis=1))
    same_values = np.append(False, np.equal(np.nan_to_num(values[1:], nan=9), np.nan_to_num(values[:-1], nan=9)).all(1))
    table.refuse(
        same_time & ~same_values,
        lambda row: f"another label for the time of the row before, {times.start_s[row]:g} s; keep one",
    )
    keep = np.flatnonzero(~same_time)
    if times.are_samples and len(keep) < 2:
        raise InputError(f"{table.where(0)}: one sample is not a curve; give two or more, or a start and an end")
    return keep


def find_column(table: Table, role: str, names: Sequence[str], settings: LabelSettings) -> int | None:
    """Index of the column that the settings name for a role, or of the first with a usual name; None if there is none.

    Raises:
        InputError: no column, or more than one, has the name in the settings.
    """
    if role in settings.columns:
        return column_of(table, settings.columns[role])
    header = [plain(name) for name in table.header]
    return next((header.index(name) for name in names if name in header), None)


def combine(
    ratings: Sequence[Rating], wanted_s: NDArray[np.float64], how: Literal["mean", "ewe"]
) -> tuple[NDArray[np.float64], bool]:
    """Combine the labels of several raters at some times (n,); see :mod:`rcma.data.labels` for the equations.

    Returns:
        Labels (n,), NaN where there is none; and whether any rater agrees with the others: if not, all weights are 1.
    """
    weights = np.ones(len(ratings))
    if how == "ewe" and len(ratings) > 1:
        times = np.unique(np.concatenate([(own.start_s + own.end_s) / 2 for own, _ in ratings]))
        weights = rater_agreement(np.stack([rating.at(times) for rating in ratings]))
    labels = np.stack([rating.at(wanted_s) for rating in ratings])
    agree = bool(weights.any())
    return _weighted_mean(labels, weights if agree else weights + 1), agree


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


def _weighted_mean(ratings: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,) mean over the raters (K,N) who have a label; NaN where none has."""
    known = np.isfinite(ratings) * weights[:, None]
    total = known.sum(axis=0)
    return np.where(total > 0, (np.nan_to_num(ratings) * known).sum(axis=0) / np.where(total > 0, total, 1.0), np.nan)
