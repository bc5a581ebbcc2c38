"""One tidy table for all videos, one row a frame: CSV for everything, Parquet for much.

Its columns are those of :meth:`rcma.prediction.Prediction.to_table`. In CSV, numbers have six decimals, what is missing
is an empty cell, and whether a frame had a modality is 1 or 0.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from preprocessing.errors import InputError
from preprocessing.files import replace_own
from rcma.config import MODALITIES, TARGETS
from rcma.prediction import FIRST_COLUMNS, Prediction

TableKind = Literal["csv", "parquet"]

TABLE = "frames"
"""Name of the table's file, without its ending."""
SPREADS = tuple(f"{target}_sd" for target in TARGETS)


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


def read_spreads(folder: Path) -> dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Read what several models predicted, and how far they disagree, from the table in a folder.

    Returns:
        (T,2) valence and arousal, and (T,2) their standard deviations, of each video; NaN where there is none. Empty
        where there is no table, or none of several models.

    Raises:
        InputError: the table is damaged, or Parquet and the package that reads it is not installed.
    """
    names = ["video", *TARGETS, *SPREADS]
    for path, read in ((folder / f"{TABLE}.csv", _read_csv), (folder / f"{TABLE}.parquet", _read_parquet)):
        if path.is_file():
            try:
                columns = read(path, names)
                if not columns["video"]:
                    return {}
                numbers = np.array([[_number(cell) for cell in columns[name]] for name in names[1:]], np.float32)
            except KeyError:
                return {}
            except (OSError, ValueError, IndexError, csv.Error) as error:
                raise InputError(f"{path}: cannot be read as rcma-predict's table: {error}") from None
            videos, of_rows = np.unique(np.array(columns["video"], dtype=str), return_inverse=True)
            order = np.argsort(of_rows, kind="stable")
            parts = np.split(numbers[:, order], np.cumsum(np.bincount(of_rows))[:-1], axis=1)
            n = len(TARGETS)
            return {str(name): (part[:n].T, part[n:].T) for name, part in zip(videos, parts, strict=True)}
    return {}


def _read_csv(path: Path, names: list[str]) -> dict[str, list[Any]]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.reader(file)
        header = next(rows, [])
        if not set(names) <= set(header):
            raise KeyError
        places = [header.index(name) for name in names]
        cells = [[row[place] for place in places] for row in rows if row]
    return {name: [row[k] for row in cells] for k, name in enumerate(names)}


def _read_parquet(path: Path, names: list[str]) -> dict[str, list[Any]]:
    pa, pq = _pyarrow(path.name)
    try:
        schema = pq.read_schema(path)
        if not set(names) <= set(schema.names):
            raise KeyError
        return dict(pq.read_table(path, columns=names).to_pydict())
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
