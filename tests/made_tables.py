"""Made-up recordings as tables: labels as several data sets have them, and features on clocks of their own."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

LENGTH_S = 12.0
VIDEOS = tuple(f"talk_{letter}" for letter in "abcdef")
TARGETS = ("valence", "arousal", "liking")


def value(video: str, target: str, time_s: NDArray[np.float64]) -> NDArray[np.float64]:
    """The label at some times: a slow wave, in [-0.8,0.8]."""
    number = VIDEOS.index(video)
    period_s, phase = 5.0 + TARGETS.index(target) + 0.3 * number, 1.7 * number
    return 0.8 * np.sin(2 * np.pi * time_s / period_s + phase)


def write_rows(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]], *, separator: str = ",") -> None:
    """Write a table; numbers with six decimals."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = [[f"{cell:.6f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    path.write_text("\n".join(separator.join(row) for row in [list(header), *text]) + "\n", encoding="utf-8")


def write_avec(folder: Path) -> None:
    """``name;timestamp;arousal;valence;liking`` ten times a second, as AVEC and SEWA have it."""
    time_s = np.arange(int(LENGTH_S * 10)) / 10
    for video in VIDEOS:
        columns = [value(video, target, time_s) for target in ("arousal", "valence", "liking")]
        rows = [[f"'{video}'", float(t), *map(float, values)] for t, *values in zip(time_s, *columns, strict=True)]
        write_rows(folder / f"{video}.csv", ["name", "timestamp", "arousal", "valence", "liking"], rows, separator=";")


def write_recola(folder: Path) -> None:
    """A folder for each target, a column for each rater, decimal commas, as RECOLA's ratings are exported."""
    time_s = np.arange(int(LENGTH_S * 25)) / 25
    for video in VIDEOS:
        for target in TARGETS:
            wave = value(video, target, time_s)
            columns = [time_s, wave + 0.1, wave - 0.1, wave]
            path = folder / target / f"{video}.csv"
            write_rows(path, ["time", "FM1 ", "FM2 ", "FF3"], np.column_stack(columns).tolist(), separator=";")
            path.write_text("\ufeff" + path.read_text().replace(".", ","), encoding="utf-8")


def write_muse(folder: Path) -> None:
    """``timestamp,value,segment_id`` in milliseconds, four times a second, in two segments, as MuSe has it."""
    time_ms = np.concatenate([np.arange(0, 5001, 250), np.arange(7000, 12000, 250)])
    for video in VIDEOS:
        for target in TARGETS:
            values = value(video, target, time_ms / 1000)
            rows = [[int(t), float(v), 1 + (t >= 7000)] for t, v in zip(time_ms, values, strict=True)]
            write_rows(folder / target / f"{video}.csv", ["timestamp", "value", "segment_id"], rows)


def write_carma(folder: Path) -> None:
    """A file of CARMA for each rater and target, with its preamble, from -100 to 100 once a second."""
    time_s = np.arange(LENGTH_S)
    for video in VIDEOS:
        for target in TARGETS:
            for rater, shift in (("anna", 10.0), ("bob", -10.0)):
                rows = [
                    [float(t), float(v)]
                    for t, v in zip(time_s, 100 * value(video, target, time_s) + shift, strict=True)
                ]
                path = folder / f"{video}_{target}_{rater}.csv"
                write_rows(path, ["Second", "Rating"], [["%%%%%%", "%%%%%%"], *rows])
                path.write_text(f"Time of Rating,01-Jan-2020\nMultimedia File,{video}.mp4\n" + path.read_text())


def write_omg(folder: Path) -> None:
    """One table of utterances for all videos, as OMG-Emotion has it; each label is that of the utterance's middle."""
    edges = np.arange(0.0, LENGTH_S + 1, 0.75)
    rows = [
        [
            video,
            f"utterance_{k}.mp4",
            float(start),
            float(end),
            *(float(value(video, t, (start + end) / 2)) for t in TARGETS),
        ]
        for video in VIDEOS
        for k, (start, end) in enumerate(itertools.pairwise(edges))
    ]
    write_rows(folder / "labels.csv", ["video", "utterance", "start", "end", *TARGETS], rows)


Layout = tuple[Callable[[Path], None], str, list[str], float]
LAYOUTS: dict[str, Layout] = {
    "avec": (write_avec, "", [], 0.01),
    "recola": (write_recola, "", ["--raters", "ewe"], 0.05),
    "muse": (write_muse, "", [], 0.02),
    "carma": (write_carma, "", ["--scale", "-100", "100"], 0.2),
    "omg": (write_omg, "labels.csv", [], 0.5),
}
"""What writes it, what to name below the folder, options of the commands, and how far labels may be off between their
own samples."""


def write_features(root: Path) -> None:
    """A face table at 12.5 Hz and a voice table at 40 Hz for each video, which show the labels under noise."""
    random = np.random.default_rng(0)
    for video in VIDEOS:
        for folder, rate, separator in (("picture", 12.5, ","), ("voice", 40.0, "\t")):
            time_s = 0.02 + np.arange(int(LENGTH_S * rate)) / rate
            columns = [value(video, target, time_s) + random.normal(0, 0.1, len(time_s)) for target in TARGETS]
            path = root / folder / f"{video}.{'csv' if separator == ',' else 'tsv'}"
            rows = np.column_stack([time_s, *columns]).tolist()
            write_rows(path, ["frameTime", "f0", "f1", "f2"], rows, separator=separator)
