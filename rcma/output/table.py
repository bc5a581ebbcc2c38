"""One tidy table for all videos, one row a frame: CSV for everything, Parquet for much.

Columns: ``video``; ``frame``, counted from 1 as in the challenge's files; ``time_s``, presentation time in seconds;
``valence`` and ``arousal`` in [-1,1], empty where there is none; ``face``, ``audio``, ``text``: whether the frame had
it, 1 or 0 in CSV, and empty where the model does not use it. Where several models predicted, ``valence_sd`` and
``arousal_sd``: the standard deviation of their predictions, see :attr:`rcma.prediction.postprocess.Prediction.spread`.

Where public models predicted: ``valence_spread`` and ``arousal_spread``, the weighted standard deviation of their
values, empty where fewer than two have one; and what each says by itself, such as ``words_valence``, ``words_arousal``
and ``voice_arousal``, empty where it says nothing.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from preprocessing.errors import InputError
from preprocessing.files import replace_own
from rcma.config import MODALITIES, TARGETS
from rcma.prediction import Prediction

TableKind = Literal["csv", "parquet"]
Experts = Mapping[str, Sequence[str]]
"""Of each public model, by its name: the targets that it gives, then its further outputs, which are the last columns of
its values."""

TABLE = "frames"
"""Name of the table's file, without its ending."""
SPREADS = tuple(f"{target}_sd" for target in TARGETS)
_SPREADS_OF_EXPERTS = tuple(f"{target}_spread" for target in TARGETS)
_COLUMNS = ("video", "frame", "time_s", *TARGETS, *MODALITIES)


@contextmanager
def open_table(
    path: Path, kind: TableKind, *, experts: Experts = MappingProxyType({})
) -> Iterator[Callable[[Prediction], None]]:
    """Give a function that appends a video's rows; the file is there when the block ends, or not at all.

    Whether there are columns for the spread of several models, the first video decides.

    Args:
        path: of the table.
        kind: of file.
        experts: outputs of each public model that predicts; none for RCMA.

    Raises:
        InputError: Parquet without the package that writes it, or a file is there that this program did not write.
    """
    with replace_own(path) as new, (_open_csv if kind == "csv" else _open_parquet)(new, experts) as append:
        yield append


def read_spreads(folder: Path) -> dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Read what several models predicted, and how far they disagree, from the table in a folder.

    Returns:
        (T,2) valence and arousal, and (T,2) their standard deviations, of each video; NaN where there is none. Empty
        where there is no table, or none of several models.

    Raises:
        InputError: the table is damaged, or Parquet and the package that reads it is not installed.
    """
    n = len(TARGETS)
    for path in _tables(folder):
        names = [*TARGETS, *SPREADS]
        if set(names) <= set(_header(path)):
            return {video: (part[:, :n], part[:, n:]) for video, part in _read_numbers(path, names).items()}
        return {}
    return {}


def read_experts(path: Path) -> tuple[tuple[str, ...], dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]]:
    """Read what public models said from a table, or from the one in a folder.

    Returns:
        Names of the n columns of the models; and of each video (T,n) what they said, and (T,2) valence and arousal as
        they were predicted; NaN where there is nothing.

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
    videos = {video: (part[:, n:], part[:, :n]) for video, part in _read_numbers(found, [*TARGETS, *names]).items()}
    return tuple(names), videos


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


def _read_numbers(path: Path, names: Sequence[str]) -> dict[str, NDArray[np.float32]]:
    """(T,n) of each video, the columns of these names; NaN where a cell is empty."""
    wanted = ["video", *names]
    with _table_errors(path):
        columns = (_read_parquet if path.suffix == ".parquet" else _read_csv)(path, wanted)
        if not columns["video"]:
            return {}
        numbers = np.array([[_number(cell) for cell in columns[name]] for name in names], np.float32)
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


@contextmanager
def _open_csv(path: Path, experts: Experts) -> Iterator[Callable[[Prediction], None]]:
    # Without newline="" every row would end twice on Windows.
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        header: list[str] = []

        def append(prediction: Prediction) -> None:
            if not header:
                header.extend(_columns(prediction, experts))
                writer.writerow(header)
            writer.writerows(_csv_rows(prediction, experts))

        yield append
        if not header:
            writer.writerow([*_COLUMNS, *_columns_of_experts(experts)])


def _columns(prediction: Prediction, experts: Experts) -> tuple[str, ...]:
    of_several = SPREADS if prediction.spread is not None and not experts else ()
    return (*_COLUMNS, *of_several, *_columns_of_experts(experts))


def _columns_of_experts(experts: Experts) -> tuple[str, ...]:
    own = [f"{name}_{target}" for name, targets in experts.items() for target in targets]
    return (*_SPREADS_OF_EXPERTS, *own) if experts else ()


def _csv_rows(prediction: Prediction, experts: Experts) -> Iterator[list[str]]:
    not_used = [""] * len(prediction.time_s)
    columns = [
        [f"{time:.6f}" for time in prediction.time_s],
        *([_decimal(value) for value in values] for values in prediction.values.T),
        *(not_used if mask is None else [str(int(there)) for there in mask] for mask in _masks(prediction)),
        *([_decimal(value) for value in values] for values in _spreads(prediction, experts)),
    ]
    for frame, cells in enumerate(zip(*columns, strict=True), start=1):
        yield [prediction.video_id, str(frame), *cells]


def _decimal(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.6f}"


def _masks(prediction: Prediction) -> list[NDArray[np.bool_] | None]:
    return [prediction.present.get(m) for m in MODALITIES]


def _spreads(prediction: Prediction, experts: Experts) -> list[NDArray[np.float32]]:
    """The spread, and what each expert says by itself."""
    spread = [] if prediction.spread is None else list(prediction.spread.T)
    own = [
        prediction.experts[name][:, TARGETS.index(column) if column in TARGETS else k - len(columns)]
        for name, columns in experts.items()
        for k, column in enumerate(columns)
    ]
    return [*spread, *own]


def _pyarrow(what: str) -> tuple[Any, Any]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise InputError(f'{what}: pyarrow is not installed; pip install "rcma[parquet]"') from None
    return pa, pq


@contextmanager
def _open_parquet(path: Path, experts: Experts) -> Iterator[Callable[[Prediction], None]]:
    pa, pq = _pyarrow("--table parquet")
    kinds = {
        "video": pa.string(),
        "frame": pa.int32(),
        "time_s": pa.float64(),
        **dict.fromkeys((*TARGETS, *SPREADS, *_columns_of_experts(experts)), pa.float32()),
        **dict.fromkeys(MODALITIES, pa.bool_()),
    }

    def schema_of(columns: tuple[str, ...]) -> Any:
        return pa.schema([(name, kinds[name]) for name in columns])

    with ExitStack() as stack:
        writers: list[Any] = []

        def append(prediction: Prediction) -> None:
            schema = schema_of(_columns(prediction, experts))
            if not writers:
                writers.append(stack.enter_context(pq.ParquetWriter(path, schema)))
            n = len(prediction.time_s)
            columns = [
                [prediction.video_id] * n,
                np.arange(1, n + 1, dtype=np.int32),
                prediction.time_s,
                *prediction.values.T,
                *(mask if mask is not None else pa.nulls(n, pa.bool_()) for mask in _masks(prediction)),
                *_spreads(prediction, experts),
            ]
            # from_pandas: NaN is no value, not a number of its own.
            arrays = [
                column if isinstance(column, pa.Array) else pa.array(column, type=kind, from_pandas=True)
                for column, kind in zip(columns, schema.types, strict=True)
            ]
            writers[0].write_table(pa.Table.from_arrays(arrays, schema=schema))

        yield append
        if not writers:
            stack.enter_context(pq.ParquetWriter(path, schema_of((*_COLUMNS, *_columns_of_experts(experts)))))
