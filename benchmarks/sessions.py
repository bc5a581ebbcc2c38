"""Recordings of the study on real labels: tables with one row per time, conversations, folds."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from preprocessing.errors import InputError
from preprocessing.features import features_from_vectors, save_features
from rcma.data import Video, labels_at
from rcma.metrics import ccc

TARGETS = ("arousal", "valence")
PAIRS = (
    ("Devel_DE_01", "Devel_DE_12"),
    ("Devel_DE_09", "Devel_DE_14"),
    ("Devel_DE_02", "Devel_DE_05"),
    ("Devel_DE_04", "Devel_DE_06"),
    ("Devel_DE_10", "Devel_DE_11"),
    ("Devel_HU_09", "Devel_HU_12"),
    ("Devel_HU_06", "Devel_HU_11"),
    ("Devel_HU_07", "Devel_HU_13"),
    ("Devel_HU_03", "Devel_HU_05"),
    ("Devel_HU_04", "Devel_HU_10"),
)
"""Sessions that are the two ends of one conversation; any other session is a conversation by itself."""
N_FOLDS = 5
ROWS_TOGETHER = 2
"""Rows that are averaged into one: 5 per second are enough for labels this smooth, in a third of the time."""
SIDE_ROWS = 12
"""Rows to each side, about 2.5 s, over which ridge regression gets the mean of every column."""

Predictions = dict[str, NDArray[np.float32]]
"""(T,2) of each session."""


@dataclass(frozen=True)
class Session:
    """One recording."""

    name: str
    conversation: str
    videos: Mapping[str, Video]
    """Feature folder and labels (T,2) of each view of the features: plain, picture twice, look-ahead."""
    untrained: NDArray[np.float32]
    """(T,2) mean of the predictions of all systems."""

    @property
    def labels(self) -> NDArray[np.float32]:
        """(T,2) of TARGETS; NaN where there is none."""
        return self.videos["plain"].labels


def read_sessions(path: Path, folder: Path) -> list[Session]:
    """Read all sessions of PATH and write their features into ``folder``.

    Raises:
        InputError: a file is missing or cannot be read.
    """
    sources = sorted(entry for entry in path.iterdir() if entry.is_dir() and entry.name != "labels")
    pictures = [source for source in sources if source.name.startswith("visual")]
    voices = [source for source in sources if source not in pictures]
    if not pictures or not voices:
        raise InputError(f"{path}: one folder named visual-*, and one of another name, are needed")
    names = sorted(file.stem for file in pictures[0].glob("*.csv"))
    return [_read_session(path, name, pictures, voices, folder) for name in names]


def _read_session(path: Path, name: str, pictures: Sequence[Path], voices: Sequence[Path], folder: Path) -> Session:
    tables = {source: _read_table(source / f"{name}.csv") for source in (*pictures, *voices)}
    n = min(len(table) for table in tables.values())
    time_s = tables[pictures[0]][:n, 0]
    face, audio = (
        np.concatenate([tables[source][:n, 1:] for source in kind], axis=1).astype(np.float32)
        for kind in (pictures, voices)
    )
    labels = np.full((n, len(TARGETS)), np.nan, np.float32)
    if (path / "labels" / f"{name}.csv").exists():
        given = _read_table(path / "labels" / f"{name}.csv")
        labels = labels_at(given[:, 0], time_s, given[:, 1 : 1 + len(TARGETS)].astype(np.float32))
    views = {
        "plain": {"face": face, "audio": audio},
        "picture twice": {"face": face, "audio": face},
        "look-ahead": {"face": with_means_of_sides(face), "audio": with_means_of_sides(audio)},
    }
    for view, vectors in views.items():
        save_features(folder / view / name, features_from_vectors(name, _meta(path, n), time_s, vectors))
    return Session(
        name,
        conversation=next(("+".join(pair) for pair in PAIRS if name in pair), name),
        videos={view: Video(folder / view / name, labels) for view in views},
        untrained=np.mean([table[:n, 1 : 1 + len(TARGETS)] for table in tables.values()], axis=0, dtype=np.float32),
    )


def _read_table(path: Path) -> NDArray[np.float64]:
    """(T,4): seconds, arousal, valence, liking; means of ROWS_TOGETHER rows."""
    columns = ("timestamp", *TARGETS, "liking")
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [[float(row[name]) for name in columns] for row in csv.DictReader(file, delimiter=";")]
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise InputError(f"{path}: columns {', '.join(columns)}, separated by ;, are needed: {error}") from None
    n = len(rows) // ROWS_TOGETHER
    return np.array(rows[: n * ROWS_TOGETHER]).reshape(n, ROWS_TOGETHER, len(columns)).mean(axis=1)


def _meta(path: Path, n_frames: int) -> dict[str, Any]:
    source = {"path": path.name, "size": 0, "modified_ns": 0, "sha256": ""}
    return {"source": source, "n_frames": n_frames, "subjects": [], "settings": {}, "audio": {}, "warnings": {}}


def with_means_of_sides(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """(T,d) to (T,3d): each column, its mean over the rows before and over the rows after; fewer at the ends."""
    total = np.concatenate([np.zeros((1, x.shape[1])), np.cumsum(x, axis=0, dtype=np.float64)])  # (T+1,d)
    t, n = np.arange(len(x)), len(x)

    def mean(first: NDArray[np.int64], end: NDArray[np.int64]) -> NDArray[np.float64]:
        return np.asarray((total[end] - total[first]) / (end - first)[:, None])

    before = mean(np.maximum(t - SIDE_ROWS, 0), t + 1)
    after = mean(t, np.minimum(t + SIDE_ROWS + 1, n))
    return np.concatenate([x, before, after], axis=1).astype(np.float32)


@dataclass(frozen=True)
class Fold:
    """Sessions to fit on, to choose on, and to predict."""

    name: str
    train: Sequence[Session]
    validation: Sequence[Session]
    test: Sequence[Session]


def divide(sessions: Sequence[Session]) -> list[Fold]:
    """Make five folds that test on every fifth conversation and validate on the test conversations of the next fold."""
    given = {s.conversation for s in sessions}
    # In the order of PAIRS every fold gets both languages.
    order = [name for pair in PAIRS if (name := "+".join(pair)) in given]
    order += sorted(given - set(order))
    if len(order) < N_FOLDS:
        raise InputError(f"{len(order)} conversations cannot be divided into {N_FOLDS} folds")
    parts = [set(order[k::N_FOLDS]) for k in range(N_FOLDS)]
    return [
        Fold(
            f"fold {k + 1}",
            train=[s for s in sessions if s.conversation not in held_out | chosen_on],
            validation=[s for s in sessions if s.conversation in chosen_on],
            test=[s for s in sessions if s.conversation in held_out],
        )
        for k, (held_out, chosen_on) in enumerate(zip(parts, parts[1:] + parts[:1], strict=True))
    ]


def held_out_fold(sessions: Sequence[Session], others: Sequence[Session]) -> Fold:
    """Make one fold that tests on ``others`` and validates on the last fifth of the conversations."""
    last = divide(sessions)[-1]
    return Fold("held out", [*last.train, *last.validation], last.test, others)


def score(predictions: Predictions, sessions: Sequence[Session]) -> float:
    """CCC over the rows of all sessions, mean over the targets."""
    predicted = np.concatenate([predictions[s.name] for s in sessions])
    labels = np.concatenate([s.labels for s in sessions])
    return float(np.mean([ccc(predicted[:, k], labels[:, k]) for k in range(len(TARGETS))]))


def write_predictions(
    folder: Path, predictions: Mapping[str, Sequence[Predictions]], sessions: Sequence[Session]
) -> None:
    """Write a CSV file for each session, with a column for each system and target: the mean over its seeds."""
    folder.mkdir(parents=True, exist_ok=True)
    for session in sessions:
        columns = {
            f"{name}: {target}": np.mean([of_seed[session.name][:, k] for of_seed in seeds], axis=0)
            for name, seeds in predictions.items()
            for k, target in enumerate(TARGETS)
        }
        time_s = session.videos["plain"].features().time_s
        table = np.column_stack([time_s, *columns.values()])
        with (folder / f"{session.name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["time_s", *columns])
            writer.writerows([[f"{value:.4f}" for value in row] for row in table])
