"""Labels at the times of a video's frames, from ABAW files or from tables; NaN where there is none.

ABAW files have valence and arousal of each frame (:mod:`rcma.abaw`). Tables have their own times: a row is a sample
at a ``time``, or an utterance from ``start`` to ``end``; docs/own-labels.md shows the layouts. Samples are interpolated
linearly. There is no label before the first sample and after the last, beside an empty cell, and between two samples
more than five usual steps apart (:data:`rcma.data.ratings.MAX_GAP`). The label of an utterance is constant; where
utterances overlap, it is their mean.

A video has a table ``VIDEO.csv``, rows in a table of all videos, or several tables: ``VIDEO_RATER.csv``,
``RATER/VIDEO.csv``, ``TARGET/VIDEO.csv`` or both together. A folder, or a part of a name, that equals a target stands
for that target, any other for a rater. Folders named Train_Set and Validation_Set are the official split.

Each rater is interpolated separately; then those who have a label at a time are combined:

    mean:  y(t) = sum_k x_k(t) / K
    ewe:   y(t) = sum_k r_k x_k(t) / sum_k r_k,    r_k = max(0, PCC(x_k, mean of the others))

the evaluator-weighted estimator (Grimm and Kroschel, ASRU 2005), r_k over the times of all raters of that video.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from preprocessing.errors import InputError
from preprocessing.inputs import MEDIA_SUFFIXES
from preprocessing.names import as_video_id, refuse_shared_ids, video_id_of
from rcma.abaw import (
    CHALLENGE_FOLDER,
    PER_VIDEO_HEADER,
    SPLIT_FOLDERS,
    Split,
    find_annotations,
    find_split,
    read_annotation,
)
from rcma.config import TARGETS, LabelSettings, Target
from rcma.data.ratings import VIDEO_NAMES, Ratings, combine, find_column, read_ratings
from rcma.data.tables import TABLE_SUFFIXES, Table, some
from rcma.data.times import find_unit, read_timed_table

_MAX_BEYOND_S = 1.0
"""Labels that continue for longer than this after the video's end, or cover less than half of it, give a warning."""

OnWarning = Callable[[str], None]
_ReadLabels = Callable[[NDArray[np.float64], Sequence[Target], float, OnWarning], NDArray[np.float32]]


@dataclass(frozen=True)
class Labels:
    """Labels of many videos; the files of a video are read when its labels are requested."""

    readers: Mapping[str, _ReadLabels]
    """Reads the labels of each video_id; see :meth:`at`."""
    split: Mapping[str, Split]
    """Official split of each video; empty where the source has none."""

    @property
    def videos(self) -> tuple[str, ...]:
        """video_id of each video that has labels, sorted."""
        return tuple(sorted(self.readers))

    def at(
        self,
        video_id: str,
        time_s: NDArray[np.float64],
        targets: Sequence[Target],
        *,
        delay_s: float = 0.0,
        on_warning: OnWarning = lambda _: None,
    ) -> NDArray[np.float32]:
        """Read the labels of a video's frames.

        Args:
            video_id: one of ``videos``.
            time_s: (T,) increasing times of all decoded frames, seconds.
            targets: names of the wanted labels.
            delay_s: reaction time of the raters: a frame gets the label given this many seconds later.
            on_warning: called with one line where frames and labels do not fit together.

        Returns:
            float32 (T,len(targets)) in [-1,1]; NaN where there is none.

        Raises:
            InputError: the labels are damaged or hold none of the targets; the message names file and line.
        """
        return self.readers[video_id](time_s, targets, delay_s, on_warning)


def open_labels(annotations: Path, settings: LabelSettings | None = None, *, video_ids: Collection[str] = ()) -> Labels:
    """Find the labels at a path.

    Args:
        annotations: an ABAW annotation folder, a folder of tables, or one table of all videos.
        settings: how tables are read.
        video_ids: known videos, which tell whether ``VIDEO_RATER.csv`` is a rater's file or a video of that name.

    Raises:
        InputError: there are no labels, or two files for one video.
    """
    settings = LabelSettings() if settings is None else settings
    if not holds_tables(annotations):
        return _open_abaw(annotations)
    return (
        _open_table(annotations, settings) if annotations.is_file() else _open_folder(annotations, settings, video_ids)
    )


def holds_tables(annotations: Path) -> bool:
    """Whether the labels are tables; otherwise they are ABAW files, or there are none."""
    if annotations.is_file():
        return annotations.suffix.lower() in TABLE_SUFFIXES
    return annotations.is_dir() and bool(_tables_below(annotations)) and not _holds_abaw_files(annotations)


def labels_at(
    time_s: NDArray[np.float64], wanted_s: NDArray[np.float64], values: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Look up the values of the frames nearest to other times.

    Args:
        time_s: (T,) increasing times of the frames.
        wanted_s: (n,) other times.
        values: (T,K).

    Returns:
        (n,K); NaN where a time lies outside the video by more than half the mean distance of two frames.
    """
    middles = (time_s[1:] + time_s[:-1]) / 2
    found = values[np.searchsorted(middles, wanted_s)]
    slack = (time_s[-1] - time_s[0]) / max(len(time_s) - 1, 1) / 2
    outside = (wanted_s > time_s[-1] + slack) | (wanted_s < time_s[0] - slack)
    return np.where(outside[:, None], np.float32(np.nan), found)


# ABAW files.


def _open_abaw(annotations: Path) -> Labels:
    if not annotations.is_dir():
        raise InputError(f"{annotations}: no such folder of annotations, and no table of labels (.csv, .tsv)")
    split: dict[str, Split] = {}
    if _split_folders(annotations):
        train, validation = find_split(annotations, "train"), find_split(annotations, "validation")
        _refuse_both_splits(annotations, train.keys() & validation.keys())
        files = train | validation
        split |= dict.fromkeys(train, "train")
        split |= dict.fromkeys(validation, "validation")
    else:
        files = find_annotations(annotations)
    return Labels({video_id: partial(_read_abaw, path) for video_id, path in files.items()}, split)


def _read_abaw(
    path: Path, time_s: NDArray[np.float64], targets: Sequence[Target], delay_s: float, on_warning: OnWarning
) -> NDArray[np.float32]:
    if not set(targets) & set(TARGETS):
        raise InputError(f"{path}, line 1: ABAW files hold {PER_VIDEO_HEADER}, not {', '.join(targets)}")
    annotation, n_frames = read_annotation(path), len(time_s)
    if len(annotation) != n_frames:
        effect = "surplus rows are left out" if len(annotation) > n_frames else "the last frames have no label"
        on_warning(f"{path}: {len(annotation)} rows for {n_frames} decoded frames: {effect}")
    labels = np.full((n_frames, len(targets)), np.nan, np.float32)
    known = annotation[:n_frames]
    for k, target in enumerate(targets):
        if target in TARGETS:
            labels[: len(known), k] = known[:, TARGETS.index(target)]
    return labels_at(time_s, time_s + delay_s, labels) if delay_s else labels


def _split_folders(annotations: Path) -> list[Path]:
    parents = (annotations, annotations / CHALLENGE_FOLDER)
    return [parent / name for parent in parents for name in SPLIT_FOLDERS.values() if (parent / name).is_dir()]


def _holds_abaw_files(annotations: Path) -> bool:
    """Whether there is a text file with the header of ABAW annotations."""
    folders = (annotations, *_split_folders(annotations))
    for path in (path for folder in folders for path in sorted(folder.glob("*.txt"))):
        with path.open(encoding="utf-8", errors="replace") as file:
            if file.readline().strip().lower().replace(" ", "") == PER_VIDEO_HEADER:
                return True
    return False


def _refuse_both_splits(annotations: Path, video_ids: Collection[str]) -> None:
    if video_ids:
        both = ", ".join(sorted(video_ids))
        raise InputError(f"{annotations}: {both} in Train_Set and in Validation_Set; keep each video in one")


# Tables.


class _LabelFile(NamedTuple):
    """One table of a video's labels."""

    path: Path
    parts: tuple[str, ...]
    """Its targets and raters: the folders above it, and the parts of its name after the video's."""
    table: Table | None = None
    """Its rows, if they have been read already."""


def _open_table(path: Path, settings: LabelSettings) -> Labels:
    """Labels of all videos in one table with a column ``video``."""
    table = read_timed_table(path, settings.columns)
    unit = find_unit(table, settings.columns, settings.unit)
    column = find_column(table, "video", VIDEO_NAMES, settings)
    if column is None:
        raise InputError(
            f"{table.where()}: a column video is needed, which names the video of each row; "
            f"there are {some(table.header)}"
        )
    files: dict[str, list[_LabelFile]] = {}
    for text, rows in table.groups(column).items():
        if not text:
            raise InputError(f"{rows.where(0)}: no video; each row needs one")
        video_id = as_video_id(Path(text).stem if Path(text).suffix.lower() in MEDIA_SUFFIXES else text)
        if video_id in files:
            raise InputError(f"{rows.where(0)}: {text} and another name both stand for {video_id}; spell them alike")
        files[video_id] = [_LabelFile(path, (), rows)]
    return _labels_of_tables(files, {}, settings.model_copy(update={"unit": unit}))


def _open_folder(folder: Path, settings: LabelSettings, video_ids: Collection[str]) -> Labels:
    """Labels in a folder with one or several tables for each video."""
    files: dict[str, list[_LabelFile]] = {}
    split: dict[str, Split] = {}
    split_of = {name.lower(): split for split, name in SPLIT_FOLDERS.items()}
    paths = sorted(_tables_below(folder))
    # A video with a file of its own name has no VIDEO_RATER.csv beside it: that is another video.
    with_raters = set(video_ids) - {video_id_of(path) for path in paths}
    for path in paths:
        stem = video_id_of(path)
        prefixes = () if stem in video_ids else (known for known in with_raters if stem.startswith(f"{known}_"))
        video_id = max(prefixes, key=len, default=stem)
        folders = path.relative_to(folder).parts[:-1]
        suffix = stem.removeprefix(video_id).split("_")[1:]
        parts = tuple(name for name in (*folders, *suffix) if name.lower() not in split_of)
        files.setdefault(video_id, []).append(_LabelFile(path, parts))
        for own in (split_of[name.lower()] for name in folders if name.lower() in split_of):
            if split.setdefault(video_id, own) != own:
                _refuse_both_splits(folder, [video_id])
    for video_id, group in files.items():
        refuse_shared_ids((" ".join((video_id, *file.parts)), file.path) for file in group)
        alone = [file.path for file in group if not file.parts]
        if alone and len(group) > 1:
            other = next(file.path for file in group if file.parts)
            raise InputError(
                f"{alone[0]} and {other} are both labels of {video_id}; "
                "keep one, or name the rater of each: VIDEO_RATER.csv or RATER/VIDEO.csv"
            )
    return _labels_of_tables(files, split, settings)


def _tables_below(folder: Path) -> list[Path]:
    return [
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in TABLE_SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]


def _labels_of_tables(
    files: Mapping[str, Sequence[_LabelFile]], split: Mapping[str, Split], settings: LabelSettings
) -> Labels:
    levels = zip_longest(*(file.parts for group in files.values() for file in group))
    names_at_levels = [{name.lower() for name in names if name is not None} for names in levels]
    readers = {video_id: partial(_read_tables, group, names_at_levels, settings) for video_id, group in files.items()}
    return Labels(readers, split)


def _read_tables(
    files: Sequence[_LabelFile],
    names_at_levels: Sequence[Set[str]],
    settings: LabelSettings,
    time_s: NDArray[np.float64],
    targets: Sequence[Target],
    delay_s: float,
    on_warning: OnWarning,
) -> NDArray[np.float32]:
    ratings: Ratings = defaultdict(list)
    for path, parts, known in files:
        # A name is a target's if the same level of folders holds a wanted target.
        levels = zip(parts, names_at_levels, strict=False)
        named = [part.lower() for part, names in levels if not names.isdisjoint(targets)]
        if not set(named) <= set(targets):
            continue
        table = read_timed_table(path, settings.columns) if known is None else known
        of_file = named[0] if named else None
        for target, of_raters in read_ratings(table, targets, settings, of_file=of_file).items():
            ratings[target] += of_raters
    where = files[0].path
    if not ratings:
        raise InputError(f"{where}: no labels of {', '.join(targets)}")
    wanted_s = time_s + delay_s
    _check_overlap(where, ratings, wanted_s, on_warning)
    labels = np.full((len(time_s), len(targets)), np.nan, np.float32)
    for k, target in enumerate(targets):
        if target in ratings:
            labels[:, k], agree = combine(ratings[target], wanted_s, settings.raters)
            if not agree:
                on_warning(f"{where}: no rater of {target} agrees with the others; the plain mean is used")
    return labels


def _check_overlap(where: Path, ratings: Ratings, wanted_s: NDArray[np.float64], on_warning: OnWarning) -> None:
    times = [rating.times for of_raters in ratings.values() for rating in of_raters]
    start_s = min(float(of_rater.start_s.min()) for of_rater in times)
    end_s = max(float(of_rater.end_s.max()) for of_rater in times)
    first_s, last_s = float(wanted_s[0]), float(wanted_s[-1])
    labelled = f"labels from {start_s:g} to {end_s:g} s, the video from {first_s:g} to {last_s:g} s"
    if start_s > last_s or end_s < first_s:
        raise InputError(f"{where}: {labelled}: nothing in common; are the times in another unit (unit: s or ms)?")
    if end_s > last_s + _MAX_BEYOND_S or min(end_s, last_s) - max(start_s, first_s) < (last_s - first_s) / 2:
        on_warning(f"{where}: {labelled}")
