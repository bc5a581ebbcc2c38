"""The times of a table's rows: their columns and their unit."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from preprocessing.errors import InputError
from rcma.data.tables import Table, column_of, read_table, some

Unit = Literal["auto", "s", "ms"]

_UNITS: dict[str, Unit] = {
    **dict.fromkeys(("ms", "msec", "msecs", "millis", "millisecond", "milliseconds", "jstime"), "ms"),
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), "s"),
}
_NAMES: dict[str, tuple[str, ...]] = {
    "time": (
        *("time", "times", "timestamp", "timestamps", "time_stamp", "frametime", "frame_time"),
        *("videotime", "video_time", "t", *_UNITS),
    ),
    "start": ("start", "starts", "start_time", "starttime", "begin", "begin_time", "onset", "onset_time"),
    "end": ("end", "ends", "end_time", "endtime", "stop", "stop_time", "offset", "offset_time"),
}
"""Usual names of the columns of times; they may be followed by a unit."""
_MIN_MS_STEP = 10.0
"""Whole numbers are milliseconds from this usual step on, which is 100 Hz: samples 10 s apart do not make a curve."""
_MIN_MS_LENGTH = 100.0
"""Likewise for the usual length from start to end."""
_WANTED = "a column of times (time, timestamp, time_ms, ..., or start and end)"


class Times(NamedTuple):
    """Times of the N rows of a table."""

    start_s: NDArray[np.float64]
    """(N,) times of samples, or starts of intervals; they never decrease."""
    end_s: NDArray[np.float64]
    """(N,) ends of intervals; the same as ``start_s`` for samples."""
    columns: tuple[int, ...]
    """Indices of the columns that hold them: two for intervals."""
    unit: str
    """Unit in the file: ``s``, ``ms``, or a rate in Hz."""

    @property
    def are_samples(self) -> bool:
        """Whether the rows are samples, and not intervals."""
        return len(self.columns) < 2


def plain(name: str) -> str:
    """Name of a column in lower case, words separated by ``_``: ``Time [ms]`` becomes ``time_ms``."""
    return re.sub(r"[\W_]+", "_", name.lower()).strip("_")


def read_timed_table(path: Path, columns: Mapping[str, str]) -> Table:
    """Read a text table that has columns of times, with their usual names or those in ``columns``.

    Raises:
        InputError: see :func:`rcma.data.tables.read_table`.
    """

    def is_header(header: Sequence[str]) -> bool:
        found = _find_columns(header, columns)
        return len(header) > 1 and bool(found["time"] or (found["start"] and found["end"]))

    return read_table(path, is_header, wanted=_WANTED)


def read_times(table: Table, columns: Mapping[str, str], unit: Unit) -> Times:
    """Read the times of a table's rows.

    Args:
        table: the table.
        columns: names of the columns ``time``, or ``start`` and ``end``, where they are not the usual ones.
        unit: of the times. ``auto``: the unit in the column's name; else milliseconds if all times are whole numbers
            and their usual step is at least 10 (intervals: their usual length is at least 100); else seconds.

    Raises:
        InputError: a column is missing or ambiguous, a time is missing, not a number or earlier than the one before, or
            an interval does not end after its start; the message names the line.
    """
    places, values = _read_columns(table, columns)
    start, end = values[:, 0], values[:, -1]
    falls = np.append(False, np.diff(start) < 0)
    table.refuse(falls, lambda row: f"time {start[row]:g} after {start[row - 1]:g}; sort the rows by time")
    table.refuse(
        (len(places) == 2) & (end <= start),
        lambda row: f"from {start[row]:g} to {end[row]:g}; the end must come after the start",
    )
    unit = _guess_unit(table, places, values) if unit == "auto" else unit
    factor = 1000.0 if unit == "ms" else 1.0
    return Times(start / factor, end / factor, places, unit)


def find_unit(table: Table, columns: Mapping[str, str], unit: Unit) -> Unit:
    """Unit of a table's times; see :func:`read_times`."""
    return _guess_unit(table, *_read_columns(table, columns)) if unit == "auto" else unit


def usual_step(time_s: NDArray[np.float64]) -> float:
    """Median difference of consecutive times; 0 for fewer than two."""
    return float(np.median(np.diff(time_s))) if len(time_s) > 1 else 0.0


def _read_columns(table: Table, columns: Mapping[str, str]) -> tuple[tuple[int, ...], NDArray[np.float64]]:
    """Indices of the columns of times, and the times (N,1) or (N,2) in the unit of the table."""
    found = _find_columns(table.header, columns)
    for kind, places in found.items():
        if kind in columns:
            column_of(table, columns[kind])  # raises unless there is exactly one
        elif len(places) > 1:
            names = " and ".join(repr(table.header[place]) for place in places)
            raise InputError(f"{table.where()}: {names} could both be the column {kind}; say which: {kind}=NAME")
    places = [*found["start"], *found["end"]] if found["start"] and found["end"] else found["time"]
    if not places:
        raise InputError(f"{table.where()}: {_WANTED} is needed; there are {some(table.header)}")
    values = table.numbers(places)
    table.refuse(np.isnan(values).any(axis=1), lambda row: "no time; each row needs one")
    return tuple(places), values


def _find_columns(header: Sequence[str], columns: Mapping[str, str]) -> dict[str, list[int]]:
    """Indices of the columns that could hold each kind of time."""

    def matches(name: str, kind: str) -> bool:
        if kind in columns:
            return name.lower() == columns[kind].strip().lower()
        stem, _, last = plain(name).rpartition("_")
        return plain(name) in _NAMES[kind] or (stem in _NAMES[kind] and last in _UNITS)

    return {kind: [place for place, name in enumerate(header) if matches(name, kind)] for kind in _NAMES}


def _guess_unit(table: Table, places: Sequence[int], values: NDArray[np.float64]) -> Unit:
    """Unit of times (N,1) or (N,2)."""
    last = plain(table.header[places[0]]).rpartition("_")[2]
    if last in _UNITS:
        return _UNITS[last]
    is_ms = bool((values == np.round(values)).all())
    if len(places) == 2:
        is_ms &= float(np.median(values[:, 1] - values[:, 0])) >= _MIN_MS_LENGTH
    else:
        is_ms &= usual_step(np.unique(values)) >= _MIN_MS_STEP
    return "ms" if is_ms else "s"
