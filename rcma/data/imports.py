"""Features made elsewhere: from tables on clocks of their own to feature folders with one vector a frame and modality.

A table has a row of numbers for each time (CSV, TSV, Parquet with a column of times, or with ``start`` and ``end``), or
at a fixed rate, row k at k / rate seconds (``.npy``). Where a row has an empty cell, or a column ``success`` of 0 as
OpenFace writes it, the modality is not there.

How rows get to frames:

- rows closer together than frames: the mean of those in the frame's interval, which reaches halfway to its neighbours;
- other rows: the row nearest in time, if it is at most half a usual step (the median) of the table away;
- rows from ``start`` to ``end``: the row of the stretch that the frame is in, the one that started last.

Frames without a row are NaN.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from rcma.data.tables import TABLE_SUFFIXES, Table, read_table, some_names
from rcma.data.times import WANTED, Unit, find_unit, has_times, plain, read_times, usual_step

SUFFIXES = (*TABLE_SUFFIXES, ".parquet", ".npy")
_NO_FEATURES = ("name", "video", "video_id", "file", "filename", "frame", "segment_id", "speaker", "face_id")
"""Columns that say what a row belongs to."""
_QUALITY = ("success", "confidence")
"""Columns that say how good a row is."""
_ROUNDING_S = 1e-6
_DENSER = 0.99
"""Rows are closer together than frames if their usual step is below this share of that of the frames."""


@dataclass(frozen=True)
class FeatureTable:
    """N rows of d numbers of one video."""

    start_s: NDArray[np.float64]
    """(N,) times of the rows, rising."""
    end_s: NDArray[np.float64] | None
    """(N,) ends of stretches; None where rows are moments."""
    values: NDArray[np.float32]
    """(N,d); NaN as a whole where the modality is not there."""
    columns: tuple[str, ...]
    """Names of the d columns."""
    unit: str
    """Of the times in the file: ``s``, ``ms``, or a rate in Hz."""

    @property
    def last_s(self) -> float:
        """Time of the last row."""
        return float(self.start_s[-1] if self.end_s is None else self.end_s.max())


class FeatureSource:
    """What one system gives: a table for each video, all with the same columns."""

    def __init__(self, text: str, *, columns: Mapping[str, str], unit: Unit) -> None:
        """Find the tables.

        Args:
            text: a folder with a table for each video, or one table; ``@HZ`` after it is the rate of ``.npy`` files.
            columns: names of the columns ``time``, or ``start`` and ``end``.
            unit: of their times, see :func:`rcma.data.times.find_unit`.

        Raises:
            InputError: no such folder, no tables in it, two for one video, or a rate is missing.
        """
        path, _, rate = text.rpartition("@") if not Path(text).exists() else (text, "", "")
        self.path, self._columns, self._unit = Path(path), columns, unit
        self._last: tuple[Path, FeatureTable] | None = None
        self._rate = _parse_rate(text, rate) if rate or not path else None
        if self.path.is_file():
            found = [self.path]
        elif self.path.is_dir():
            found = sorted(path for path in self.path.iterdir() if path.suffix.lower() in SUFFIXES)
            found = [path for path in found if not path.name.startswith(".") and path.is_file()]
        else:
            raise InputError(f"{text}: no such folder of tables")
        if not found:
            raise InputError(f"{self.path}: no tables in it ({', '.join(SUFFIXES)})")
        if self._rate is None and (arrays := [path for path in found if path.suffix.lower() == ".npy"]):
            raise InputError(f"{arrays[0]}: has no times; give the rate of its rows: {self.path}@25")
        self.files = by_video_id((video_id_of(path), path) for path in found)

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Columns that every table must have: those of the first one that can be read.

        Raises:
            InputError: no table can be read.
        """
        problem = InputError(f"{self.path}: no tables")
        for path in self.files.values():
            try:
                return self._read(path).columns
            except InputError as error:
                problem = error
        raise problem

    def read(self, video_id: str) -> FeatureTable:
        """Table of a video.

        Raises:
            InputError: something in it cannot be used, named with its line, or its columns are not those of the others.
        """
        path = self.files[video_id]
        table = self._read(path)
        if table.columns != self.columns:
            difference = _difference(table.columns, self.columns)
            raise InputError(f"{path}, line 1: columns differ from those of other tables of {self.path}: {difference}")
        return table

    def describe(self, video_id: str, table: FeatureTable) -> dict[str, Any]:
        """What ``meta.json`` says of a table that was read."""
        path = self.files[video_id]
        columns = list(table.columns)
        return {"path": str(path.absolute()), "sha256": sha256(path), "unit": table.unit, "columns": columns}

    def _read(self, path: Path) -> FeatureTable:
        # The first table is read for its columns, and then for its rows.
        if self._last is None or self._last[0] != path:
            self._last = path, self._parse(path)
        return self._last[1]

    def _parse(self, path: Path) -> FeatureTable:
        if path.suffix.lower() == ".npy":
            assert self._rate is not None
            return _read_array(path, self._rate)
        table = _read_parquet(path) if path.suffix.lower() == ".parquet" else None
        if table is None:
            table = read_table(path, lambda header: has_times(header, self._columns), wanted=WANTED)
        return _to_features(table, self._columns, self._unit)


class Clock:
    """Times of a video's frames: those of a recording, those of a feature folder, or a fixed rate."""

    def __init__(self, *, rate: float | None = None, like: Path | None = None) -> None:
        """Take a rate in Hz, or a path.

        Args:
            rate: frame k is at k / rate seconds, up to the last row of the tables.
            like: recordings, or a folder of feature folders, with the names of the tables.

        Raises:
            InputError: nothing there, or two recordings of one name.
        """
        self._rate = rate
        self._folders: dict[str, Path] = {}
        self._recordings: dict[str, Path] = {}
        if like is not None and not like.exists():
            raise InputError(f"{like}: no such recordings or feature folders")
        if like is not None and like.is_dir() and any(like.glob("*/meta.json")):
            folders = (path.parent for path in sorted(like.glob("*/meta.json")))
            self._folders = by_video_id((as_video_id(folder.name), folder) for folder in folders)
        elif like is not None:
            self._recordings = {source.video_id: source.path for source in collect_sources([like])}

    def frames_of(self, video_id: str, last_s: float) -> tuple[NDArray[np.float64], dict[str, Any]]:
        """Times of the frames (T,), and what is known of the recording.

        Raises:
            InputError: there is no recording or feature folder of that name, or it cannot be read.
        """
        nothing = {"path": "", "size": 0, "modified_ns": 0, "sha256": ""}
        if self._rate is not None:
            return np.arange(int(last_s * self._rate + 1e-3) + 1) / self._rate, {"source": nothing}
        if video_id in self._folders:
            folder = self._folders[video_id]
            meta = load_meta(folder)
            known: dict[str, Any] = {key: meta[key] for key in ("source", "width", "height") if key in meta}
            return np.load(folder / "time_s.npy").astype(np.float64), known
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
    """Write the feature folder of one video; one that an earlier import wrote is replaced.

    Args:
        video_id: of the tables.
        sources: of each modality; their columns are put side by side.
        clock: times of the frames.
        folder: where the features go.

    Returns:
        A line for each modality: how its rows got to the frames, and how many frames have it.

    Raises:
        InputError: a table cannot be used, or a modality has some of its tables and lacks others, or something else is
            at ``folder``.
    """
    _refuse_what_was_not_imported(folder)
    tables = {m: _read_tables(video_id, of_modality, m) for m, of_modality in sources.items()}
    last_s = max(table.last_s for of_modality in tables.values() for table in of_modality)
    time_s, known = clock.frames_of(video_id, last_s)
    vectors: dict[str, NDArray[np.float32]] = {}
    described: dict[str, list[dict[str, Any]]] = {}
    lines = []
    for modality, of_modality in sources.items():
        width = sum(len(source.columns) for source in of_modality)
        rows, how = np.full((len(time_s), width), np.nan, np.float32), "no table"
        if tables[modality]:
            placed = [place_on_frames(table, time_s) for table in tables[modality]]
            rows = np.concatenate([values for values, _ in placed], axis=1)
            rows[np.isnan(rows).any(axis=1)] = np.nan
            how = ", ".join(dict.fromkeys(how for _, how in placed))
            if np.isnan(rows).all():
                path = of_modality[0].files[video_id]
                raise InputError(f"{path}: no row of {modality} at the time of a frame; are the times in another unit?")
        vectors[modality] = rows
        described[modality] = [
            {**source.describe(video_id, table), "placed": how}
            for source, table in zip(of_modality, tables[modality], strict=False)
        ]
        n_there = int(np.isfinite(rows[:, 0]).sum())
        lines.append(f"{modality} {width} columns in {n_there} of {len(time_s)} frames ({how})")
    meta = {
        **known,
        # Beside the recording, if there is one: the tables are what the features were made from.
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


def _read_tables(video_id: str, sources: Sequence[FeatureSource], modality: Modality) -> list[FeatureTable]:
    """Tables of one modality of a video, all or none."""
    missing = [source for source in sources if video_id not in source.files]
    if missing and len(missing) < len(sources):
        raise InputError(f"{missing[0].path}: no table of {video_id}, which has others of {modality}")
    return [] if missing else [source.read(video_id) for source in sources]


def place_on_frames(table: FeatureTable, time_s: NDArray[np.float64]) -> tuple[NDArray[np.float32], str]:
    """Values of a table at the frames of a video, see :mod:`rcma.data.imports`.

    Args:
        table: N rows of d columns.
        time_s: (T,) times of the frames, rising.

    Returns:
        float32 (T,d), NaN where there is none; and how it was done, for people.
    """
    found = np.full((len(time_s), table.values.shape[1]), np.nan, np.float32)
    if table.end_s is not None:
        row = np.searchsorted(table.start_s - _ROUNDING_S, time_s, side="right") - 1
        within = (row >= 0) & (time_s < table.end_s[row] - _ROUNDING_S)
        found[within] = table.values[row[within]]
        return found, "by start and end"
    step, frame_step = usual_step(table.start_s), usual_step(time_s)
    if 0 < step < _DENSER * frame_step:
        there = np.isfinite(table.values[:, 0])
        rows = table.values[there].astype(np.float64)
        middles = (time_s[1:] + time_s[:-1]) / 2
        edges = np.concatenate([[time_s[0] - frame_step / 2], middles, [time_s[-1] + frame_step / 2]])
        ends = np.searchsorted(table.start_s[there], edges - _ROUNDING_S)
        sums = np.concatenate([np.zeros((1, rows.shape[1])), np.cumsum(rows, axis=0)])
        count = np.diff(ends)
        found[count > 0] = (np.diff(sums[ends], axis=0)[count > 0] / count[count > 0, None]).astype(np.float32)
        return found, "mean of the rows in each frame's interval"
    within_s = max(step, frame_step if step == 0 else 0.0) / 2
    row = np.searchsorted((table.start_s[1:] + table.start_s[:-1]) / 2, time_s)
    near = np.abs(table.start_s[row] - time_s) <= within_s + _ROUNDING_S
    found[near] = table.values[row[near]]
    return found, f"nearest row within {within_s:.3g} s"


def _to_features(table: Table, columns: Mapping[str, str], unit: Unit) -> FeatureTable:
    times = read_times(table, columns, unit)
    names = [plain(name) for name in table.header]
    places = [
        place
        for place, name in enumerate(names)
        if place not in times.columns and name not in (*_NO_FEATURES, *_QUALITY)
    ]
    if not places:
        raise InputError(f"{table.where()}: no columns of features beside {some_names(table.header)}")
    values = table.numbers(places).astype(np.float32)
    if "success" in names:
        values[table.numbers([names.index("success")])[:, 0] == 0] = np.nan
    values[np.isnan(values).any(axis=1)] = np.nan
    repeated = np.flatnonzero(np.diff(times.start_s) == 0)
    if times.end_s is None and len(repeated):
        row = int(repeated[0]) + 1
        raise InputError(f"{table.where(row)}: a second row for the time {times.start_s[row]:g} s; keep one")
    found = tuple(table.header[place] for place in places)
    return FeatureTable(times.start_s, times.end_s, values, found, find_unit(table, columns, unit))


def _read_array(path: Path, rate: float) -> FeatureTable:
    try:
        values = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"{path}: cannot be read as an array: {' '.join(str(error).split())}") from None
    if not isinstance(values, np.ndarray) or values.ndim != 2 or not np.issubdtype(values.dtype, np.number):
        raise InputError(f"{path}: should hold an array of numbers with two dimensions, rows and columns")
    if not values.size:
        raise InputError(f"{path}: is empty")
    if np.isinf(values).any():
        raise InputError(f"{path}, row {int(np.argwhere(np.isinf(values))[0][0])}: holds an infinite value")
    values = values.astype(np.float32)
    values[np.isnan(values).any(axis=1)] = np.nan
    names = tuple(map(str, range(values.shape[1])))
    return FeatureTable(np.arange(len(values)) / rate, None, values, names, f"{rate:g} Hz")


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
    if not content.num_rows:
        raise InputError(f"{path}: no rows in it")
    columns = [["" if cell is None else str(cell) for cell in column.to_pylist()] for column in content.columns]
    rows = [list(row) for row in zip(*columns, strict=True)]
    # Lines as if the header were the first, as in a text file.
    return Table(path, tuple(content.column_names), 1, rows, range(2, len(rows) + 2))


def _parse_rate(text: str, rate: str) -> float:
    try:
        number = float(rate)
    except ValueError:
        number = 0.0
    if not 0.0 < number < np.inf:
        raise InputError(f"{text}: no such folder of tables")
    return number


def _difference(given: Sequence[str], wanted: Sequence[str]) -> str:
    if len(given) != len(wanted):
        return f"{len(given)}, not {len(wanted)}"
    place = next(k for k, (one, other) in enumerate(zip(given, wanted, strict=True)) if one != other)
    return f"{given[place]!r} where they have {wanted[place]!r}"


def _refuse_what_was_not_imported(folder: Path) -> None:
    made_from = own_source(folder)
    if made_from is not None and "tables" not in made_from:
        raise InputError(
            f"{folder}: features that rcma-preprocess made, and not replaced by imported ones; give another --out"
        )
