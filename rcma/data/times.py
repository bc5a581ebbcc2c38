"""Times in tables: their columns, their unit, and whether they rise."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from preprocessing.errors import InputError
from rcma.data.tables import Table, column_of

Unit = Literal["auto", "s", "ms"]

_MS, _S = "ms|msec|msecs|millis|millisecond|milliseconds", "s|sec|secs|second|seconds"
_NAMES = {
    "time": "time|times|timestamp|timestamps|time_stamp|frametime|frame_time|videotime|video_time|t",
    "start": "start|starts|start_time|starttime|begin|begin_time|onset|onset_time",
    "end": "end|ends|end_time|endtime|stop|stop_time|offset|offset_time",
}
_PATTERNS = {
    "time": re.compile(
        rf"(?:(?:{_NAMES['time']})(?:_(?:(?P<ms>{_MS})|(?P<s>{_S})))?|(?P<only_ms>{_MS}|jstime)|(?P<only_s>{_S}))"
    ),
    "start": re.compile(rf"(?:{_NAMES['start']})(?:_(?:(?P<ms>{_MS})|(?P<s>{_S})))?"),
    "end": re.compile(rf"(?:{_NAMES['end']})(?:_(?:(?P<ms>{_MS})|(?P<s>{_S})))?"),
}
_LEAST_MS_STEP = 10.0
"""Smallest usual step of whole numbers that are taken for milliseconds: 100 Hz. Samples 10 s apart are no curve."""
_LEAST_MS_STRETCH = 100.0
"""Likewise for the usual length of a stretch, from start to end."""
WANTED = "a column of times (time, timestamp, time_ms, ..., or start and end)"


class Times(NamedTuple):
    """When the N rows of a table are, in seconds."""

    start_s: NDArray[np.float64]
    """(N,) rising; where there are no stretches, the moments of the samples."""
    end_s: NDArray[np.float64] | None
    """(N,) ends of stretches; None for samples."""
    columns: tuple[int, ...]
    """Where they are in the table: time, or start and end."""


def plain(name: str) -> str:
    """Name of a column in lower case, with ``_`` for everything that is no letter or digit: ``Time [ms]``, time_ms."""
    return re.sub(r"[\W_]+", "_", name.lower()).strip("_")


def has_times(header: Sequence[str], columns: Mapping[str, str]) -> bool:
    """Whether a header has columns of times, by their usual names or by those in ``columns``."""
    names = [name.lower() for name in header]
    found = {
        kind: columns[kind].strip().lower() in names
        if kind in columns
        else any(pattern.fullmatch(plain(name)) for name in names)
        for kind, pattern in _PATTERNS.items()
    }
    return len(header) > 1 and (found["time"] or (found["start"] and found["end"]))


def read_times(table: Table, columns: Mapping[str, str], unit: Unit) -> Times:
    """Read the times of a table's rows.

    Args:
        table: the table.
        columns: names of the columns ``time``, or ``start`` and ``end``, where they are not the usual ones.
        unit: of the times; see :func:`find_unit`.

    Raises:
        InputError: a column is missing or there twice, or a time is missing or no number, earlier than the one before,
            or a stretch does not end after its start; the line is named.
    """
    places, values = _read_columns(table, columns)
    start, end = values[:, 0], values[:, -1]
    falls = np.flatnonzero(np.diff(start) < 0)
    if len(falls):
        row = int(falls[0]) + 1
        raise InputError(f"{table.where(row)}: time {start[row]:g} after {start[row - 1]:g}; sort the rows by time")
    if len(places) == 2 and (end <= start).any():
        row = int(np.flatnonzero(end <= start)[0])
        raise InputError(f"{table.where(row)}: from {start[row]:g} to {end[row]:g}; the end must come after the start")
    factor = 1000.0 if find_unit(table, columns, unit) == "ms" else 1.0
    return Times(start / factor, end / factor if len(places) == 2 else None, places)


def find_unit(table: Table, columns: Mapping[str, str], unit: Unit) -> Literal["s", "ms"]:
    """Unit of a table's times.

    With ``auto``, what the column's name says; else milliseconds if all times are whole numbers and their usual step is
    10 or more (of stretches: their usual length is 100 or more); else seconds.

    Raises:
        InputError: see :func:`read_times`.
    """
    if unit != "auto":
        return unit
    places, values = _read_columns(table, columns)
    for pattern in _PATTERNS.values():
        if match := pattern.fullmatch(plain(table.header[places[0]])):
            groups = match.groupdict()
            if groups["ms"] or groups.get("only_ms"):
                return "ms"
            if groups["s"] or groups.get("only_s"):
                return "s"
    if not (values == np.round(values)).all():
        return "s"
    if len(places) == 2:
        return "ms" if float(np.median(values[:, 1] - values[:, 0])) >= _LEAST_MS_STRETCH else "s"
    return "ms" if usual_step(np.unique(values)) >= _LEAST_MS_STEP else "s"


def usual_step(time_s: NDArray[np.float64]) -> float:
    """Median distance of two neighbours, in seconds; 0 for fewer than two."""
    steps = np.diff(time_s)
    return float(np.median(steps)) if len(steps) else 0.0


def _read_columns(table: Table, columns: Mapping[str, str]) -> tuple[tuple[int, ...], NDArray[np.float64]]:
    """Places of the columns of times, and the times (N,1) or (N,2) in the unit of the table."""
    places = _find_columns(table, columns)
    values = table.numbers(places)
    if np.isnan(values).any():
        row = int(np.argwhere(np.isnan(values))[0][0])
        raise InputError(f"{table.where(row)}: no time; each row needs one")
    return places, values


def _find_columns(table: Table, columns: Mapping[str, str]) -> tuple[int, ...]:
    places: dict[str, int] = {}
    for kind, pattern in _PATTERNS.items():
        if kind in columns:
            places[kind] = column_of(table, columns[kind])
            continue
        found = [place for place, name in enumerate(table.header) if pattern.fullmatch(plain(name))]
        if len(found) > 1:
            names = " and ".join(repr(table.header[place]) for place in found)
            raise InputError(f"{table.where()}: {names} could both be the column {kind}; say which: {kind}=NAME")
        if found:
            places[kind] = found[0]
    if {"start", "end"} <= places.keys():
        return places["start"], places["end"]
    return (places["time"],)
