"""Which videos are for training and which for validation: the official split, or one of five folds."""

from __future__ import annotations

import itertools
import re
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Literal

from sklearn.model_selection import GroupKFold

from preprocessing.errors import InputError
from preprocessing.names import as_video_id
from rcma.abaw import Split
from rcma.data.compatibility import some
from rcma.data.labels import Labels
from rcma.data.tables import read_table
from rcma.data.times import plain

N_FOLDS = 5
"""Beside the official split."""

Folds = Literal["published", "subject-disjoint"]
_SPLITS: dict[str, Split] = {
    **dict.fromkeys(("train", "training", "train_set"), "train"),
    **dict.fromkeys(("validation", "val", "valid", "dev", "devel", "development", "validation_set"), "validation"),
    **dict.fromkeys(("test", "test_set"), "test"),
}
"""What a table of splits may say."""


def official_split(labels: Labels, table: Path | None) -> dict[str, Split]:
    """Split of each video; empty where there is none.

    Args:
        labels: which know the folders that they were found in.
        table: CSV file with columns ``video`` and ``split``, which is asked first.

    Raises:
        InputError: the table cannot be used, or says something else than train, validation and test; with its line.
    """
    if table is None:
        return dict(labels.split)
    return {
        video_id: _SPLITS[name.lower()]
        for video_id, name in _read_column(table, "split", known=_SPLITS).items()
        if name.lower() in _SPLITS
    }


def split_videos(
    labels: Labels,
    annotations: Path,
    *,
    fold: int,
    folds: Folds = "published",
    subjects: Path | None = None,
    split: Path | None = None,
) -> tuple[list[str], list[str], list[str]]:
    """Training and validation videos of a fold, and warnings; see :func:`divide`.

    Labels without an official split have no fold 0, and folds 1 to 5 are subject-disjoint.

    Args:
        labels: of all videos.
        annotations: where they are, for messages.
        fold: 0 to 5.
        folds: how folds 1 to 5 are made.
        subjects: for subject-disjoint folds.
        split: table of the official split; None: that of the labels.

    Raises:
        InputError: there is no official split for fold 0, or see :func:`divide`.
    """
    of_videos = official_split(labels, split)
    warnings = []
    if not of_videos:
        if fold == 0:
            raise InputError(
                f"{annotations}: no official split: neither folders Train_Set and Validation_Set, nor data.split; "
                "set data.fold to 1 to 5, or give one"
            )
        train, validation, folds = list(labels.videos), [], "subject-disjoint"
    else:
        train, validation = (
            [video for video in labels.videos if of_videos.get(video) == name] for name in ("train", "validation")
        )
        if without := [video for video in labels.videos if video not in of_videos]:
            warnings.append(f"data.split: {split} names no split for {some(without)}: not used")
        for name, videos in (("train", train), ("validation", validation)):
            if not videos and fold == 0:
                raise InputError(f"{annotations}: no video of the {name} split")
    *both, more = divide(train, validation, fold=fold, folds=folds, subjects=subjects)
    return both[0], both[1], [*warnings, *more]


def divide(
    train: Sequence[str],
    validation: Sequence[str],
    *,
    fold: int,
    folds: Folds = "published",
    subjects: Path | None = None,
) -> tuple[list[str], list[str], list[str]]:
    """Training and validation videos of a fold, and warnings.

    Fold 0 is the official split. The published folds 1 to 5 are those of the authors' code: the official training
    videos in sorted order make five contiguous blocks; fold 1 validates on the last block, fold 5 on the first, and the
    other blocks and the official validation videos are for training. The 356 videos of Aff-Wild2 give blocks of 71, 71,
    71, 71 and 72. ``VIDEO_left`` and ``VIDEO_right`` are neighbours in that order; a boundary between them moves before
    both, with a warning. Subject-disjoint folds 1 to 5 divide all videos into five parts (scikit-learn's GroupKFold),
    no subject in two of them.

    Args:
        train: videos of the official training split.
        validation: of the official validation split.
        fold: 0 to 5.
        folds: how folds 1 to 5 are made.
        subjects: CSV file with columns ``video`` and ``subject``; None: people in one raw video are one subject.

    Raises:
        InputError: there are too few videos or subjects, or ``subjects`` cannot be used.
    """
    if fold == 0:
        return list(train), list(validation), []
    everything = [*train, *validation]
    warnings: list[str] = []
    if folds == "published":
        blocks, warnings = _contiguous_blocks(sorted(train))
        # The authors roll (block 1, ..., block 5, official validation) by the number of the fold; the last is held out.
        held_out = set(blocks[N_FOLDS - fold])
    else:
        names = sorted(everything)
        groups = _subjects_of(names, subjects)
        if len(set(groups)) < N_FOLDS:
            raise InputError(f"data.folds: {len(set(groups))} subjects cannot be divided into {N_FOLDS} folds")
        parts = list(GroupKFold(N_FOLDS).split(names, groups=groups))
        held_out = {names[index] for index in parts[fold - 1][1]}
    return (
        [name for name in everything if name not in held_out],
        [name for name in everything if name in held_out],
        warnings,
    )


def _contiguous_blocks(names: Sequence[str]) -> tuple[list[Sequence[str]], list[str]]:
    """Five blocks of sorted names, as equal as can be, and warnings where people of one raw video are kept together."""
    if len(names) < N_FOLDS:
        raise InputError(f"data.fold: {len(names)} videos of Train_Set cannot be divided into {N_FOLDS} parts")
    raw_videos = [re.sub(r"_(left|right)$", "", name) for name in names]
    edges, warnings = [0], []
    for number in range(1, N_FOLDS):
        edge = wanted = number * len(names) // N_FOLDS
        while edge > edges[-1] and raw_videos[edge - 1] == raw_videos[edge]:
            edge -= 1
        if edge != wanted:
            warnings.append(
                f"data.fold: {names[wanted - 1]} and {names[wanted]} stay in one part, so parts {number} and "
                f"{number + 1} are not exactly the published ones"
            )
        edges.append(edge)
    edges.append(len(names))
    return [names[start:end] for start, end in itertools.pairwise(edges)], warnings


def _subjects_of(videos: Sequence[str], table: Path | None) -> list[str]:
    if table is None:
        return [re.sub(r"_(left|right|\d)$", "", video) for video in videos]
    subject_of = _read_column(table, "subject")
    missing = [video for video in videos if not subject_of.get(video)]
    if missing:
        raise InputError(f"data.subjects: {table} names no subject for {some(missing)}")
    return [subject_of[video] for video in videos]


def _read_column(path: Path, key: str, *, known: Container[str] | None = None) -> dict[str, str]:
    """What a table says of each video in the column ``key``."""

    def names(header: Sequence[str]) -> list[str]:
        return [plain(name).removesuffix("_id") for name in header]

    setting = {"subject": "data.subjects", "split": "data.split"}[key]
    try:
        table = read_table(path, lambda header: {"video", key} <= set(names(header)), wanted=f"columns video and {key}")
        video, wanted = (names(table.header).index(name) for name in ("video", key))
        found: dict[str, str] = {}
        for row, (video_id, text) in enumerate(zip(table.texts(video), table.texts(wanted), strict=True)):
            if known is not None and text and text.lower() not in known:
                raise InputError(f"{table.where(row)}: {key} {text!r}; train, validation or test is right")
            if found.setdefault(as_video_id(video_id), text) != text:
                raise InputError(f"{table.where(row)}: {video_id} has a second {key}, {text}")
    except InputError as error:
        raise InputError(f"{setting}: {error}") from None
    return found
