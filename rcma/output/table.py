"""One tidy table for all videos, one row a frame: CSV for everything, Parquet for much.

Its columns are those of :meth:`rcma.prediction.Prediction.to_table`. In CSV, numbers have six decimals, what is missing
is an empty cell, and whether a frame had a modality is 1 or 0.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from preprocessing.errors import InputError
from preprocessing.files import replace_own
from rcma.config import MODALITIES, TARGETS, Target
from rcma.prediction import FIRST_COLUMNS, Prediction

TableKind = Literal["csv", "parquet"]

TABLE = "frames"
"""Name of the table's file, without its ending."""
_SPREADS_OF_EXPERTS = tuple(f"{target}_spread" for target in TARGETS)


@contextmanager
def open_table(path: Path, kind: TableKind) -> Iterator[Callable[[Prediction], None]]:
    """Give a function that appends a video's rows; the file is there when the block ends, or not at all.

    All videos have the columns of the first one. Without any video, there are those that every table has.

    Args:
        path: of the table.
        kind: of file.

    Raises:
        InputError: Parquet without the package that writes it, or a file is there that this program did not write.
    """
    with replace_own(path) as new, (_open_csv if kind == "csv" else _open_parquet)(new) as append:
        yield append


@dataclass(frozen=True)
class PredictedFrames:
    """What a table says of the predictions, by video."""

    targets: tuple[Target, ...]
    time_s: Mapping[str, NDArray[np.float64]]
    """(T,) of each video."""
    values: Mapping[str, NDArray[np.float32]]
    """(T,n_targets) of each video, NaN where there is none."""
    spreads: Mapping[str, NDArray[np.float32]]
    """(T,n_targets) standard deviation of several models, NaN where there is none; empty where one model predicted."""


def read_frames(folder: Path) -> PredictedFrames | None:
    """Read predictions, their times, and how far several models disagree, from the table in a folder.

    Returns:
        None where there is no table, or another program's.

    Raises:
        InputError: the table is damaged, or Parquet and the package that reads it is not installed.
    """
    path = next(_tables(folder), None)
    if path is None:
        return None
    header, n_first = _header(path), len(FIRST_COLUMNS)
    if tuple(header[:n_first]) != FIRST_COLUMNS or MODALITIES[0] not in header:
        return None
    targets = tuple(header[n_first : header.index(MODALITIES[0])])
    spreads = [name for name in (f"{target}_sd" for target in targets) if name in header]
    parts = _read_numbers(path, ["time_s", *targets, *spreads])
    n = len(targets)
    return PredictedFrames(
        targets=targets,
        time_s={video: part[:, 0] for video, part in parts.items()},
        values={video: part[:, 1 : n + 1].astype(np.float32) for video, part in parts.items()},
        spreads={video: part[:, n + 1 :].astype(np.float32) for video, part in parts.items() if spreads},
    )


class SaidByExperts(NamedTuple):
    """What public models said of a video of T frames."""

    time_s: NDArray[np.float64]
    """(T,) presentation times."""
    values: NDArray[np.float32]
    """(T,n) what each said, NaN where it said nothing."""
    fused: NDArray[np.float32]
    """(T,2) valence and arousal as they were predicted, NaN where nothing was."""


def read_experts(path: Path) -> tuple[tuple[str, ...], dict[str, SaidByExperts]]:
    """Read what public models said from a table, or from the one in a folder.

    Returns:
        Names of the n columns of the models; and what they said of each video.

    Raises:
        InputError: there is no such table, or it is damaged, or no public models predicted.
    """
    found = next(_tables(path), None) if path.is_dir() else path
    if found is None or not found.is_file():
        raise InputError(f"{path}: no {TABLE}.csv or {TABLE}.parquet; rcma-predict writes one unless --table none")
    header = _header(found)
    if not {*TARGETS, *_SPREADS_OF_EXPERTS} <= set(header):
        raise InputError(f"{found}: no public models predicted it; run rcma-predict without --checkpoint")
    names = header[header.index(_SPREADS_OF_EXPERTS[-1]) + 1 :]
    n = len(TARGETS)
    parts = _read_numbers(found, ["time_s", *TARGETS, *names])
    return tuple(names), {
        video: SaidByExperts(part[:, 0], part[:, n + 1 :].astype(np.float32), part[:, 1 : n + 1].astype(np.float32))
        for video, part in parts.items()
    }


def _tables(folder: Path) -> Iterator[Path]:
    yield from (path for ending in ("csv", "parquet") if (path := folder / f"{TABLE}.{ending}").is_file())


@contextmanager
def _table_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, IndexError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as rcma-predict's table: {error}") from None


def _header(path: Path) -> list[str]:
    with _table_errors(path):
        if path.suffix == ".parquet":
            return list(_reading_parquet(path, lambda pq: pq.read_schema(path)).names)
        with path.open(encoding="utf-8", newline="") as file:
            return next(csv.reader(file), [])


def _read_numbers(path: Path, names: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """(T,n) of each video, the columns of these names; NaN where a cell is empty."""
    wanted = ["video", *names]
    with _table_errors(path):
        columns = (_read_parquet if path.suffix == ".parquet" else _read_csv)(path, wanted)
        if not columns["video"]:
            return {}
        numbers = np.array([[_number(cell) for cell in columns[name]] for name in names], np.float64)
    videos, of_rows = np.unique(np.array(columns["video"], dtype=str), return_inverse=True)
    order = np.argsort(of_rows, kind="stable")
    parts = np.split(numbers[:, order].T, np.cumsum(np.bincount(of_rows))[:-1])
    return {str(name): part for name, part in zip(videos, parts, strict=True)}


def _read_csv(path: Path, names: Sequence[str]) -> dict[str, list[Any]]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.reader(file)
        header = next(rows, [])
        places = [header.index(name) for name in names]
        cells = [[row[place] for place in places] for row in rows if row]
    return {name: [row[k] for row in cells] for k, name in enumerate(names)}


def _read_parquet(path: Path, names: Sequence[str]) -> dict[str, list[Any]]:
    return dict(_reading_parquet(path, lambda pq: pq.read_table(path, columns=list(names))).to_pydict())


def _reading_parquet(path: Path, read: Callable[[Any], Any]) -> Any:
    pa, pq = _pyarrow(path.name)
    try:
        return read(pq)
    except pa.ArrowInvalid as error:
        raise ValueError(str(error)) from None


def _number(cell: str | float | None) -> float:
    return float(cell) if cell not in (None, "") else np.nan


def _pyarrow(what: str) -> tuple[Any, Any]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise InputError(f'{what}: pyarrow is not installed; pip install "rcma[parquet]"') from None
    return pa, pq


@contextmanager
def _open_csv(path: Path) -> Iterator[Callable[[Prediction], None]]:
    # Without newline="" every row would end twice on Windows.
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        is_new = True

        def append(prediction: Prediction) -> None:
            nonlocal is_new
            table = prediction.to_table()
            if is_new:
                writer.writerow(table)
                is_new = False
            writer.writerows(zip(*(map(_cell, column) for column in table.values()), strict=True))

        yield append
        if is_new:
            writer.writerow([*FIRST_COLUMNS, *MODALITIES])


def _cell(value: Any) -> str:
    if value is None or value != value:  # NaN
        return ""
    if isinstance(value, np.bool_):
        return str(int(value))
    return f"{value:.6f}" if isinstance(value, np.floating) else str(value)


@contextmanager
def _open_parquet(path: Path) -> Iterator[Callable[[Prediction], None]]:
    pa, pq = _pyarrow("--table parquet")
    with ExitStack() as stack:
        writers: list[Any] = []

        def append(prediction: Prediction) -> None:
            columns = prediction.to_table()
            # from_pandas: NaN is no value, not a number of its own. An array of None says nothing of its type.
            arrays = {
                name: pa.array(column, type=pa.bool_() if name in MODALITIES else None, from_pandas=True)
                for name, column in columns.items()
            }
            table = pa.table(arrays)
            if not writers:
                writers.append(stack.enter_context(pq.ParquetWriter(path, table.schema)))
            writers[0].write_table(table)

        yield append
        if not writers:
            kinds = (pa.string(), pa.int32(), pa.float64(), *[pa.bool_()] * len(MODALITIES))
            schema = pa.schema(zip((*FIRST_COLUMNS, *MODALITIES), kinds, strict=True))
            stack.enter_context(pq.ParquetWriter(path, schema))
