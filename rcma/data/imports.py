"""Import features from other tools: from tables with their own times to one vector for each frame and modality.

A table has a row of numbers for each time (CSV, TSV, Parquet with a column of times, or with ``start`` and ``end``), or
at a fixed rate, row k at k / rate seconds (``.npy``). Where a row has an empty cell, or a column ``success`` of 0 as
OpenFace writes it, the modality is missing.

How rows are matched to frames:

- rows closer together than frames: the mean of the rows in the frame's interval, which ends halfway to its neighbours;
- other rows: the row nearest in time, if it is at most half a usual step (the median) of the table away;
- rows from ``start`` to ``end``: the row whose interval contains the frame; of several, the one that started last.

Frames without a row are NaN.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from preprocessing.config import PreprocessConfig
from preprocessing.errors import InputError
from preprocessing.features import features_from_vectors, load_meta, own_source, save_features
from preprocessing.files import sha256
from preprocessing.inputs import collect_sources
from preprocessing.media import Video
from preprocessing.names import as_video_id, by_video_id, video_id_of
from rcma.config import Modality
from rcma.data.tables import TABLE_SUFFIXES, Table, some
from rcma.data.times import Times, Unit, plain, read_timed_table, read_times, usual_step

_SUFFIXES = (*TABLE_SUFFIXES, ".parquet", ".npy")
_IDENTIFIERS = ("name", "video", "video_id", "file", "filename", "frame", "segment_id", "speaker", "face_id")
_QUALITY = ("success", "confidence")
_TOLERANCE_S = 1e-6
_DENSER = 0.99
"""Rows are closer together than frames if their usual step is below this fraction of that of the frames."""


@dataclass(frozen=True)
class FeatureTable:
    """N rows of d numbers of one video."""

    path: Path
    times: Times
    columns: tuple[str, ...]
    """Names of the d columns."""
    values: NDArray[np.float32]
    """(N,d); rows with a NaN are all NaN: the modality is missing."""

    def __post_init__(self) -> None:
        """Fill rows that have a NaN with NaN."""
        self.values[np.isnan(self.values).any(axis=1)] = np.nan

    def describe(self) -> dict[str, Any]:
        """Entry of ``meta.json`` about the table."""
        path, columns = str(self.path.absolute()), list(self.columns)
        return {"path": path, "sha256": sha256(self.path), "unit": self.times.unit, "columns": columns}


class FeatureSource:
    """The output of one feature extractor: a table for each video, all with the same columns."""

    def __init__(self, text: str, *, columns: Mapping[str, str], unit: Unit) -> None:
        """Find the tables.

        Args:
            text: a folder with a table for each video, or one table; ``@HZ`` after it is the rate of ``.npy`` files.
            columns: names of the columns ``time``, or ``start`` and ``end``.
            unit: of their times, see :func:`rcma.data.times.read_times`.

        Raises:
            InputError: no such folder, no tables in it, two for one video, or a missing rate.
        """
        self.path, self._rate = _split_rate(text)
        self._columns, self._unit = columns, unit
        self._last: tuple[Path, FeatureTable] | None = None
        if self.path.is_file():
            found = [self.path]
        else:
            paths = sorted(self.path.iterdir())
            found = [p for p in paths if p.suffix.lower() in _SUFFIXES and not p.name.startswith(".") and p.is_file()]
        if not found:
            raise InputError(f"{self.path}: no tables in it ({', '.join(_SUFFIXES)})")
        arrays = [path for path in found if path.suffix.lower() == ".npy"]
        if arrays and self._rate is None:
            raise InputError(f"{arrays[0]}: has no times; give the rate of its rows: {self.path}@25")
        self.files = by_video_id((video_id_of(path), path) for path in found)

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Columns that every table must have: those of the first table that can be read.

        Raises:
            InputError: no table can be read; this is the problem of the last one.
        """
        *others, last = self.files.values()
        for path in others:
            with suppress(InputError):
                return self._read(path).columns
        return self._read(last).columns

    def read(self, video_id: str) -> FeatureTable:
        """Read the table of a video.

        Raises:
            InputError: the table cannot be used or has other columns than the others; the message names the line.
        """
        table = self._read(self.files[video_id])
        if table.columns != self.columns:
            pairs = itertools.zip_longest(table.columns, self.columns, fillvalue="nothing")
            given, wanted = next(pair for pair in pairs if pair[0] != pair[1])
            raise InputError(
                f"{table.path}, line 1: columns differ from those of other tables of {self.path}: "
                f"{given!r} where they have {wanted!r}"
            )
        return table

    def _read(self, path: Path) -> FeatureTable:
        # The first table is read for its columns, and then for its rows.
        if self._last is None or self._last[0] != path:
            self._last = path, self._parse(path)
        return self._last[1]

    def _parse(self, path: Path) -> FeatureTable:
        if path.suffix.lower() == ".npy":
            assert self._rate is not None
            return _read_array(path, self._rate)
        is_parquet = path.suffix.lower() == ".parquet"
        table = _read_parquet(path) if is_parquet else read_timed_table(path, self._columns)
        return _to_features(table, self._columns, self._unit)


class Clock:
    """Times of a video's frames: those of a recording, those of a feature folder, or a fixed rate."""

    def __init__(self, *, rate: float | None = None, like: Path | None = None) -> None:
        """Take a rate in Hz, or a path.

        Args:
            rate: frame k is at k / rate seconds, up to the last row of the tables.
            like: recordings, or a folder of feature folders, with the names of the tables.

        Raises:
            InputError: nothing is there, or two recordings have the same name.
        """
        self._rate = rate
        self._recordings: dict[str, Path] = {}
        self._folders: dict[str, Path] = {}
        if like is not None:
            if not like.exists():
                raise InputError(f"{like}: no such recordings or feature folders")
            folders = [path.parent for path in sorted(like.glob("*/meta.json"))]
            self._folders = by_video_id((as_video_id(folder.name), folder) for folder in folders)
            if not folders:
                self._recordings = {source.video_id: source.path for source in collect_sources([like])}

    def frames_of(self, video_id: str, last_s: float) -> tuple[NDArray[np.float64], dict[str, Any]]:
        """Times of the frames (T,), and the entries of ``meta.json`` about the recording.

        Raises:
            InputError: there is no recording or feature folder with this name, or it cannot be read.
        """
        source: dict[str, Any] = {"path": "", "size": 0, "modified_ns": 0, "sha256": ""}
        if self._rate is not None:
            return np.arange(int(last_s * self._rate + 1e-3) + 1) / self._rate, {"source": source}
        if video_id in self._folders:
            folder = self._folders[video_id]
            meta = load_meta(folder)
            known: dict[str, Any] = {key: meta[key] for key in ("source", "width", "height") if key in meta}
            time_s: NDArray[np.float64] = np.load(folder / "time_s.npy")
            return time_s, known
        if video_id not in self._recordings:
            raise InputError(f"{video_id}: --clock has no recording or feature folder of this name")
        path = self._recordings[video_id]
        with Video(path) as video:
            time_s = np.array([frame.time_s for frame in video.frames()])
            size = {"width": video.width, "height": video.height}
        status = path.stat()
        source = {"path": str(path.absolute()), "size": status.st_size, "modified_ns": status.st_mtime_ns}
        return time_s, {"source": {**source, "sha256": sha256(path)}, **size}


def import_video(
    video_id: str, sources: Mapping[Modality, Sequence[FeatureSource]], clock: Clock, folder: Path
) -> list[str]:
    """Write the feature folder of one video; a folder that an earlier import wrote is replaced.

    Args:
        video_id: of the tables.
        sources: of each modality; their columns are put side by side.
        clock: times of the frames.
        folder: the feature folder.

    Returns:
        A line for each modality: how its rows were matched to frames, and how many frames have it.

    Raises:
        InputError: a table cannot be used, a modality has only some of its tables, or something else is at ``folder``.
    """
    made_from = own_source(folder)
    if made_from is not None and "tables" not in made_from:
        raise InputError(f"{folder}: features that rcma-preprocess made are not replaced; give another --out")
    tables = {m: _read_tables(video_id, of_modality, m) for m, of_modality in sources.items()}
    last_s = max(float(table.times.end_s.max()) for found in tables.values() for table in found)
    time_s, known = clock.frames_of(video_id, last_s)
    vectors: dict[str, NDArray[np.float32]] = {}
    described: dict[str, list[dict[str, Any]]] = {}
    lines = []
    for m, found in tables.items():
        width = sum(len(source.columns) for source in sources[m])
        rows, how = np.full((len(time_s), width), np.nan, np.float32), "no table"
        if found:
            placed = [place_on_frames(table.times, table.values, time_s) for table in found]
            rows = np.concatenate([values for values, _ in placed], axis=1)
            rows[np.isnan(rows).any(axis=1)] = np.nan
            how = ", ".join(dict.fromkeys(how for _, how in placed))
            if np.isnan(rows).all():
                raise InputError(
                    f"{found[0].path}: no row of {m} at the time of a frame; are the times in another unit?"
                )
        vectors[m] = rows
        described[m] = [{**table.describe(), "placed": how} for table in found]
        lines.append(f"{m} {width} columns in {np.isfinite(rows[:, 0]).sum()} of {len(time_s)} frames ({how})")
    meta = {
        **known,
        # Next to the recording, if there is one: the features were made from the tables.
        "source": {**known["source"], "tables": described},
        "subjects": [],
        "n_frames": len(time_s),
        "frame_rate": 1 / usual_step(time_s) if len(time_s) > 1 else 0.0,
        "audio": {"present": False, "start_s": None, "duration_s": None},
        "language": None,
        "settings": PreprocessConfig().model_dump(mode="json"),
        "warnings": {},
    }
    save_features(folder, features_from_vectors(video_id, meta, time_s, vectors))
    return lines


def _read_tables(video_id: str, sources: Sequence[FeatureSource], m: Modality) -> list[FeatureTable]:
    """Tables of one modality of a video, all or none."""
    missing = [source for source in sources if video_id not in source.files]
    if missing and len(missing) < len(sources):
        raise InputError(f"{missing[0].path}: no table of {video_id}, which has others of {m}")
    return [] if missing else [source.read(video_id) for source in sources]


def place_on_frames(
    times: Times, values: NDArray[np.float32], time_s: NDArray[np.float64]
) -> tuple[NDArray[np.float32], str]:
    """Match the rows of a table to the frames of a video; see :mod:`rcma.data.imports` for the rules.

    Args:
        times: of the N rows.
        values: (N,d); rows are finite or all NaN.
        time_s: (T,) increasing times of the frames.

    Returns:
        float32 (T,d), NaN where there is no row; and the rule used, for people.
    """
    start_s, end_s, *_ = times
    found = np.full((len(time_s), values.shape[1]), np.nan, np.float32)
    if not times.are_samples:
        row = np.searchsorted(start_s - _TOLERANCE_S, time_s, side="right") - 1
        within = (row >= 0) & (time_s < end_s[row] - _TOLERANCE_S)
        found[within] = values[row[within]]
        return found, "by start and end"
    step, frame_step = usual_step(start_s), usual_step(time_s)
    if 0 < step < _DENSER * frame_step:
        known = np.isfinite(values[:, 0])
        rows = values[known].astype(np.float64)
        middles = (time_s[1:] + time_s[:-1]) / 2
        edges = np.concatenate([[time_s[0] - frame_step / 2], middles, [time_s[-1] + frame_step / 2]])
        ends = np.searchsorted(start_s[known], edges - _TOLERANCE_S)
        sums = np.concatenate([np.zeros((1, rows.shape[1])), np.cumsum(rows, axis=0)])
        count = np.diff(ends)
        found[count > 0] = (np.diff(sums[ends], axis=0)[count > 0] / count[count > 0, None]).astype(np.float32)
        return found, "mean of the rows in each frame's interval"
    within_s = (step or frame_step) / 2
    row = np.searchsorted((start_s[1:] + start_s[:-1]) / 2, time_s)
    near = np.abs(start_s[row] - time_s) <= within_s + _TOLERANCE_S
    found[near] = values[row[near]]
    return found, f"nearest row within {within_s:.3g} s"


def _to_features(table: Table, columns: Mapping[str, str], unit: Unit) -> FeatureTable:
    times = read_times(table, columns, unit)
    names = [plain(name) for name in table.header]
    places = [k for k, name in enumerate(names) if k not in times.columns and name not in (*_IDENTIFIERS, *_QUALITY)]
    if not places:
        raise InputError(f"{table.where()}: no columns of features beside {some(table.header)}")
    values = table.numbers(places).astype(np.float32)
    if "success" in names:
        values[table.numbers([names.index("success")])[:, 0] == 0] = np.nan
    table.refuse(
        np.append(False, np.diff(times.start_s) == 0) & times.are_samples,
        lambda row: f"a second row for the time {times.start_s[row]:g} s; keep one",
    )
    found = tuple(table.header[place] for place in places)
    return FeatureTable(table.path, times, found, values)


def _split_rate(text: str) -> tuple[Path, float | None]:
    """Path and rate in Hz of ``PATH@HZ``; None for a path alone."""
    if Path(text).exists():
        return Path(text), None
    path, _, number = text.rpartition("@")
    with suppress(ValueError):
        rate = float(number)
        if 0.0 < rate < np.inf and path and Path(path).exists():
            return Path(path), rate
    raise InputError(f"{text}: no such folder of tables")


def _read_array(path: Path, rate: float) -> FeatureTable:
    try:
        values = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"{path}: cannot be read as an array: {' '.join(str(error).split())}") from None
    is_table = isinstance(values, np.ndarray) and values.ndim == 2 and np.issubdtype(values.dtype, np.number)
    if not is_table or not values.size:
        raise InputError(f"{path}: should hold an array of numbers with two dimensions, rows and columns")
    infinite = np.flatnonzero(np.isinf(values).any(axis=1))
    if len(infinite):
        raise InputError(f"{path}, row {infinite[0]}: holds an infinite value")
    time_s = np.arange(len(values)) / rate
    times = Times(time_s, time_s, (), f"{rate:g} Hz")
    return FeatureTable(path, times, tuple(map(str, range(values.shape[1]))), values.astype(np.float32))


def _read_parquet(path: Path) -> Table:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise InputError(f'{path}: pyarrow is not installed; pip install "rcma[parquet]"') from None
    try:
        content = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: cannot be read as Parquet: {' '.join(str(error).split())}") from None
    columns = [["" if cell is None else str(cell) for cell in column.to_pylist()] for column in content.columns]
    rows = [list(row) for row in zip(*columns, strict=True)]
    if not rows:
        raise InputError(f"{path}: no rows in it")
    # Line numbers as in a text file, where the header is the first line.
    return Table(path, tuple(content.column_names), 1, rows, range(2, len(rows) + 2))
