"""Training and validation videos: the official split, or one of five folds."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from preprocessing.errors import InputError
from preprocessing.names import as_video_id
from rcma.abaw import Split
from rcma.config import DataSettings
from rcma.data.labels import Labels
from rcma.data.tables import read_table, some
from rcma.data.times import plain

N_FOLDS = 5
"""Folds 1 to 5; fold 0 is the official split."""

_SPLITS: dict[str, Split] = {
    **dict.fromkeys(("train", "training", "train_set"), "train"),
    **dict.fromkeys(("validation", "val", "valid", "dev", "devel", "development", "validation_set"), "validation"),
    **dict.fromkeys(("test", "test_set"), "test"),
}
"""Names of the splits in tables."""


def official_split(labels: Labels, table: Path | None) -> dict[str, Split]:
    """Split of each video, from a table with columns ``video`` and ``split`` if given, else from the labels' folders.

    Raises:
        InputError: the table cannot be used, or names another split than train, validation and test; with its line.
    """
    if table is None:
        return dict(labels.split)
    names = _read_column(table, "split")
    return {video_id: _SPLITS[name.lower()] for video_id, name in names.items() if name}


def split_videos(labels: Labels, settings: DataSettings) -> tuple[list[str], list[str], list[str]]:
    """Training and validation videos of the fold in the settings, and warnings; see :func:`divide`.

    Labels without an official split have no fold 0, and their folds 1 to 5 are subject-disjoint.

    Raises:
        InputError: there is no official split for fold 0, or see :func:`divide`.
    """
    split_of, fold = official_split(labels, settings.split), settings.fold
    if not split_of:
        if fold == 0:
            raise InputError(
                f"{settings.annotations}: no official split: neither folders Train_Set and Validation_Set, nor "
                "data.split; set data.fold to 1 to 5, or give one"
            )
        return divide(labels.videos, [], fold=fold, folds="subject-disjoint", subjects=settings.subjects)
    train, validation = (
        [video for video in labels.videos if split_of.get(video) == name] for name in ("train", "validation")
    )
    for name, videos in (("train", train), ("validation", validation)):
        if not videos and fold == 0:
            raise InputError(f"{settings.annotations}: no video of the {name} split")
    divided = divide(train, validation, fold=fold, folds=settings.folds, subjects=settings.subjects)
    without = [video for video in labels.videos if video not in split_of]
    if without:
        divided[2].insert(0, f"data.split: {settings.split} names no split for {some(without)}: not used")
    return divided


def divide(
    train: Sequence[str],
    validation: Sequence[str],
    *,
    fold: int,
    folds: Literal["published", "subject-disjoint"] = "published",
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
        validation: videos of the official validation split.
        fold: 0 to 5.
        folds: how folds 1 to 5 are made.
        subjects: CSV file with columns ``video`` and ``subject``; None: the people in one raw video are one subject.

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
        from sklearn.model_selection import GroupKFold

        names = sorted(everything)
        groups = _subjects_of(names, subjects)
        if len(set(groups)) < N_FOLDS:
            raise InputError(f"data.folds: {len(set(groups))} subjects cannot be divided into {N_FOLDS} folds")
        parts = list(GroupKFold(N_FOLDS).split(names, groups=groups))
        held_out = {names[index] for index in parts[fold - 1][1]}
    training = [name for name in everything if name not in held_out]
    return training, [name for name in everything if name in held_out], warnings


def _contiguous_blocks(names: Sequence[str]) -> tuple[list[Sequence[str]], list[str]]:
    """Five nearly equal blocks of sorted names, and warnings where a boundary moved to keep a raw video together."""
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
    return [names[start:end] for start, end in itertools.pairwise([*edges, len(names)])], warnings


def _subjects_of(videos: Sequence[str], table: Path | None) -> list[str]:
    if table is None:
        return [re.sub(r"_(left|right|\d)$", "", video) for video in videos]
    subject_of = _read_column(table, "subject")
    missing = [video for video in videos if not subject_of.get(video)]
    if missing:
        raise InputError(f"data.subjects: {table} names no subject for {some(missing)}")
    return [subject_of[video] for video in videos]


def _read_column(path: Path, key: Literal["split", "subject"]) -> dict[str, str]:
    """The text of each video in the column ``key`` of a table."""

    def names(header: Sequence[str]) -> list[str]:
        return [plain(name).removesuffix("_id") for name in header]

    found: dict[str, str] = {}
    try:
        table = read_table(path, lambda header: {"video", key} <= set(names(header)), wanted=f"columns video and {key}")
        columns = (table.texts(names(table.header).index(name)) for name in ("video", key))
        for row, (video_id, text) in enumerate(zip(*columns, strict=True)):
            if key == "split" and text and text.lower() not in _SPLITS:
                raise InputError(f"{table.where(row)}: split {text!r}; expected train, validation or test")
            if found.setdefault(as_video_id(video_id), text) != text:
                raise InputError(f"{table.where(row)}: {video_id} has a second {key}, {text}")
    except InputError as error:
        setting = {"split": "data.split", "subject": "data.subjects"}[key]
        raise InputError(f"{setting}: {error}") from None
    return found
