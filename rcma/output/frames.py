"""What rcma-predict's table holds, read again: predictions with their times, and how far several models disagree."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from preprocessing.errors import InputError
from rcma.config import MODALITIES, Target

TABLES = ("frames.csv", "frames.parquet")
_BEFORE_TARGETS = ("video", "frame", "time_s")


@dataclass(frozen=True)
class PredictedFrames:
    """Rows of the table, by video."""

    targets: tuple[Target, ...]
    time_s: dict[str, NDArray[np.float64]]
    """(T,) of each video."""
    values: dict[str, NDArray[np.float32]]
    """(T,n_targets) of each video, NaN where there is none."""
    spreads: dict[str, NDArray[np.float32]]
    """(T,n_targets) standard deviation of several models, NaN where there is none; empty where the table has none."""


def read_frames(folder: Path) -> PredictedFrames | None:
    """Read the table that rcma-predict wrote into a folder; None where there is none.

    Raises:
        InputError: it is damaged, or Parquet and the package that reads it is not installed.
    """
    for name, read in zip(TABLES, (_read_csv, _read_parquet), strict=True):
        path = folder / name
        if path.is_file():
            try:
                return _frames_of(*read(path))
            except (OSError, ValueError, IndexError, csv.Error) as error:
                raise InputError(f"{path}: cannot be read as rcma-predict's table: {error}") from None
    return None


def _frames_of(header: Sequence[str], columns: Sequence[Sequence[Any]]) -> PredictedFrames:
    if tuple(header[:3]) != _BEFORE_TARGETS or MODALITIES[0] not in header:
        raise ValueError(f"its columns are {', '.join(header)[:80]}")
    targets = tuple(header[3 : header.index(MODALITIES[0])])
    spreads = [f"{target}_sd" for target in targets]
    has_spreads = set(spreads) <= set(header)
    wanted = ["time_s", *targets, *(spreads if has_spreads else ())]
    numbers = np.array([[_number(cell) for cell in columns[header.index(name)]] for name in wanted], np.float64)
    videos, of_rows = np.unique(np.array(columns[0], dtype=str), return_inverse=True)
    order = np.argsort(of_rows, kind="stable")
    parts = np.split(numbers[:, order], np.cumsum(np.bincount(of_rows))[:-1], axis=1) if len(videos) else []
    by_video = dict(zip(map(str, videos), parts, strict=True))
    n = len(targets)
    return PredictedFrames(
        targets=targets,
        time_s={name: part[0] for name, part in by_video.items()},
        values={name: part[1 : n + 1].T.astype(np.float32) for name, part in by_video.items()},
        spreads={name: part[n + 1 :].T.astype(np.float32) for name, part in by_video.items() if has_spreads},
    )


def _read_csv(path: Path) -> tuple[list[str], list[list[Any]]]:
    with path.open(encoding="utf-8", newline="") as file:
        header, *rows = [row for row in csv.reader(file) if row]
    return header, [[row[place] for row in rows] for place in range(len(header))]


def _read_parquet(path: Path) -> tuple[list[str], list[list[Any]]]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise InputError(f'{path}: pyarrow is not installed; pip install "rcma[parquet]"') from None
    try:
        content = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise ValueError(str(error)) from None
    return list(content.column_names), [column.to_pylist() for column in content.columns]


def _number(cell: str | float | None) -> float:
    return float(cell) if cell not in (None, "") else np.nan
