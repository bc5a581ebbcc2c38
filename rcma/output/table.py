"""One table for all videos with a row for each frame: CSV, or Parquet for many videos.

Its columns are those of :meth:`rcma.prediction.Prediction.to_table`. In CSV, numbers have six decimals, missing ones
are empty cells, and whether a frame had a modality is 1 or 0.
"""

from __future__ import annotations

import csv
from collections import defaultdict
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
Append = Callable[[Prediction], None]

TABLE = "frames"
"""Name of the table's file, without its ending."""
_SPREADS_OF_EXPERTS = tuple(f"{target}_spread" for target in TARGETS)
_NO_VIDEO = Prediction("", np.zeros(0), np.zeros((0, 0), np.float32), present={}, targets=())


@contextmanager
def open_table(path: Path, kind: TableKind) -> Iterator[Append]:
    """Give a function that appends a video's rows; the file is there when the block ends, or not at all.

    All videos have the columns of the first one.

    Raises:
        InputError: Parquet without the package that writes it, or a file is there that this program did not write.
    """
    with replace_own(path) as new, (_open_csv if kind == "csv" else _open_parquet)(new) as append:
        yield append


@contextmanager
def _open_csv(path: Path) -> Iterator[Append]:
    # Without newline="" every row would end twice on Windows.
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")

        def append(prediction: Prediction) -> None:
            """Write the rows of a video, after the header if they are the first."""
            table = prediction.to_table()
            if file.tell() == 0:
                writer.writerow(table)
            writer.writerows(zip(*(map(_cell, column) for column in table.values()), strict=True))

        yield append
        if file.tell() == 0:
            append(_NO_VIDEO)


def _cell(value: Any) -> str:
    if value is None or value != value:  # NaN
        return ""
    if isinstance(value, np.bool_):
        return str(int(value))
    return f"{value:.6f}" if isinstance(value, np.floating) else str(value)


@contextmanager
def _open_parquet(path: Path) -> Iterator[Append]:
    pa, pq = _pyarrow("--table parquet")
    with ExitStack() as stack:
        writers: list[Any] = []

        def append(prediction: Prediction) -> None:
            """Write the rows of a video."""
            # from_pandas: NaN is a missing value. An array of None says nothing of its type.
            arrays = {
                name: pa.array(column, type=pa.bool_() if name in MODALITIES else None, from_pandas=True)
                for name, column in prediction.to_table().items()
            }
            table = pa.table(arrays)
            if not writers:
                writers.append(stack.enter_context(pq.ParquetWriter(path, table.schema)))
            writers[0].write_table(table)

        yield append
        if not writers:
            append(_NO_VIDEO)


def _pyarrow(what: str) -> tuple[Any, Any]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise InputError(f'{what}: pyarrow is not installed; pip install "rcma[parquet]"') from None
    return pa, pq


@dataclass(frozen=True)
class PredictedFrames:
    """The predictions in a table, by video."""

    targets: tuple[Target, ...]
    time_s: Mapping[str, NDArray[np.float64]]
    """(T,) of each video."""
    values: Mapping[str, NDArray[np.float32]]
    """(T,n_targets) of each video, NaN where there is none."""
    spreads: Mapping[str, NDArray[np.float32]]
    """(T,n_targets) standard deviation of several models, NaN where there is none; empty where one model predicted."""


def read_frames(folder: Path) -> PredictedFrames | None:
    """Read predictions, and how far several models disagree, from the table in a folder.

    Returns:
        None if there is no table, or only that of another program.

    Raises:
        InputError: the table is damaged, or the package that reads Parquet is not installed.
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
    """Outputs of public models for a video of T frames, NaN where they have none."""

    time_s: NDArray[np.float64]
    """(T,) presentation times."""
    values: NDArray[np.float32]
    """(T,n) outputs."""
    fused: NDArray[np.float32]
    """(T,2) valence and arousal as they were predicted."""


def read_experts(path: Path) -> tuple[tuple[str, ...], dict[str, SaidByExperts]]:
    """Read the outputs of public models from a table, or from the one in a folder.

    Returns:
        Names of the n output columns, and the outputs by video.

    Raises:
        InputError: there is no such table, it is damaged, or no public models predicted it.
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
    # pyarrow's ArrowInvalid is a ValueError.
    except (OSError, ValueError, IndexError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as rcma-predict's table: {error}") from None


def _header(path: Path) -> list[str]:
    with _table_errors(path):
        if path.suffix == ".parquet":
            return list(_pyarrow(path.name)[1].read_schema(path).names)
        with path.open(encoding="utf-8", newline="") as file:
            return next(csv.reader(file), [])


def _read_numbers(path: Path, names: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """(T,n) of each video, the columns of these names; NaN where a cell is empty."""
    wanted = ["video", *names]
    with _table_errors(path):
        if path.suffix == ".parquet":
            rows = list(zip(*_pyarrow(path.name)[1].read_table(path, columns=wanted).to_pydict().values(), strict=True))
        else:
            with path.open(encoding="utf-8", newline="") as file:
                reader = csv.reader(file)
                header = next(reader, [])
                places = [header.index(name) for name in wanted]
                rows = [tuple(row[place] for place in places) for row in reader if row]
        numbers = [[np.nan if cell in (None, "") else float(cell) for cell in row[1:]] for row in rows]
    parts: dict[str, list[list[float]]] = defaultdict(list)
    for (video, *_), row in zip(rows, numbers, strict=True):
        parts[video].append(row)
    return {video: np.array(part, np.float64) for video, part in sorted(parts.items())}
