"""One tidy table for all videos, one row a frame: CSV for everything, Parquet for much.

Columns: ``video``; ``frame``, counted from 1 as in the challenge's files; ``time_s``, presentation time in seconds;
``valence`` and ``arousal`` in [-1,1], empty where there is none; ``face``, ``audio``, ``text``: whether the frame had
it, 1 or 0 in CSV, and empty where the model does not use it.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from preprocessing.errors import InputError
from preprocessing.files import replace_own
from rcma.config import MODALITIES, TARGETS
from rcma.prediction import Prediction

TableKind = Literal["csv", "parquet"]


@contextmanager
def open_table(path: Path, kind: TableKind) -> Iterator[Callable[[Prediction], None]]:
    """Give a function that appends a video's rows; the file is there when the block ends, or not at all.

    Raises:
        InputError: Parquet without the package that writes it, or a file is there that this program did not write.
    """
    with replace_own(path) as new:
        if kind == "csv":
            # Without newline="" every row would end twice on Windows.
            with new.open("w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(["video", "frame", "time_s", *TARGETS, *MODALITIES])
                yield lambda prediction: writer.writerows(_csv_rows(prediction))
        else:
            with _open_parquet(new) as write:
                yield write


def _csv_rows(prediction: Prediction) -> Iterator[list[str]]:
    not_used = [""] * len(prediction.time_s)
    columns = [
        [f"{time:.6f}" for time in prediction.time_s],
        *([_decimal(value) for value in values] for values in prediction.values.T),
        *(not_used if mask is None else [str(int(there)) for there in mask] for mask in _masks(prediction)),
    ]
    for frame, cells in enumerate(zip(*columns, strict=True), start=1):
        yield [prediction.video_id, str(frame), *cells]


def _decimal(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.6f}"


def _masks(prediction: Prediction) -> list[NDArray[np.bool_] | None]:
    return [prediction.present.get(m) for m in MODALITIES]


@contextmanager
def _open_parquet(path: Path) -> Iterator[Callable[[Prediction], None]]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise InputError('--table parquet: pyarrow is not installed; pip install "rcma[parquet]"') from None
    fields: list[tuple[str, Any]] = [
        ("video", pa.string()),
        ("frame", pa.int32()),
        ("time_s", pa.float64()),
        *((target, pa.float32()) for target in TARGETS),
        *((m, pa.bool_()) for m in MODALITIES),
    ]
    schema = pa.schema(fields)
    with pq.ParquetWriter(path, schema) as writer:

        def write(prediction: Prediction) -> None:
            n = len(prediction.time_s)
            columns = [
                [prediction.video_id] * n,
                np.arange(1, n + 1, dtype=np.int32),
                prediction.time_s,
                *prediction.values.T,
                *(mask if mask is not None else pa.nulls(n, pa.bool_()) for mask in _masks(prediction)),
            ]
            # from_pandas: NaN is no value, not a number of its own.
            arrays = [
                column if isinstance(column, pa.Array) else pa.array(column, type=kind, from_pandas=True)
                for column, (_, kind) in zip(columns, fields, strict=True)
            ]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))

        yield write
