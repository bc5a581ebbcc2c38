"""Labels of any source, as values at the times of a video's frames; NaN where there is none.

Two kinds of source:

- an ABAW annotation folder: valence and arousal of each frame (:mod:`rcma.abaw`);
- tables with times of their own (CSV, TSV): a folder with a file for each video, or one file with a column ``video``.

Tables. A row is a sample at a ``time``, or an utterance from ``start`` to ``end``. Samples are interpolated linearly by
time. There is no label before the first sample and after the last, beside an empty cell, and between two samples more
than five usual steps apart (:data:`rcma.data.ratings.MAX_GAP`). The label of an utterance is constant; where utterances
overlap, it is their mean. Columns are found by their names, see :class:`rcma.config.LabelSettings`.

Files. ``VIDEO.csv``, or several for one video: ``VIDEO_RATER.csv``, ``RATER/VIDEO.csv``, ``TARGET/VIDEO.csv``, and both
together; a folder or a part of a name that is a target's stands for it, every other one for a rater. Folders named
Train_Set and Validation_Set are the official split.

Raters. Columns ``valence_R1``, ``valence_R2``, ...; a column ``rater``; files of their own; or, in the file of a
target, all columns. Each is interpolated separately; then they are combined, over those who have a label there:

    mean:  y(t) = sum_k x_k(t) / K
    ewe:   y(t) = sum_k r_k x_k(t) / sum_k r_k,    r_k = max(0, PCC(x_k, mean of the others))

the evaluator-weighted estimator (Grimm and Kroschel, ASRU 2005), r_k over all times of all raters of that video.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

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
from rcma.data.tables import TABLE_SUFFIXES, Table, read_table, some_names
from rcma.data.times import WANTED, find_unit, has_times

_MOST_BEYOND_S = 1.0
"""Labels that continue for longer than this after the video's end, or cover less than half of it, give a warning."""


def _no_op(_: str) -> None:
    """Stands for a listener that nobody gave."""


class Labels(Protocol):
    """Labels of many videos."""

    @property
    def videos(self) -> tuple[str, ...]:
        """video_id of each video that has labels, sorted."""

    @property
    def split(self) -> Mapping[str, Split]:
        """Official split of each video; empty where the source has none."""

    def at(
        self,
        video_id: str,
        time_s: NDArray[np.float64],
        targets: Sequence[Target],
        *,
        delay_s: float = 0.0,
        on_warning: Callable[[str], None] = _no_op,
    ) -> NDArray[np.float32]:
        """Labels of a video's frames.

        Args:
            video_id: one of ``videos``.
            time_s: (T,) rising times of all its decoded frames, seconds.
            targets: which labels.
            delay_s: the label of a frame is the one that raters gave that much later.
            on_warning: called with a line where frames and labels do not fit together.

        Returns:
            float32 (T,len(targets)) in [-1,1]; NaN where there is none.

        Raises:
            InputError: the labels are damaged, or none of the targets is among them; file and line are named.
        """


def open_labels(annotations: Path, settings: LabelSettings | None = None, *, video_ids: Collection[str] = ()) -> Labels:
    """Find the labels at a path; each file is read when its video is requested.

    Args:
        annotations: an ABAW annotation folder, a folder of tables, or one table of all videos.
        settings: how tables are read.
        video_ids: known videos, by which ``VIDEO_RATER.csv`` is told from a video of that name.

    Raises:
        InputError: nothing there, or two files for one video.
    """
    settings = LabelSettings() if settings is None else settings
    if not (annotations.is_dir() or holds_tables(annotations)):
        raise InputError(f"{annotations}: no such folder of annotations, and no table of labels (.csv, .tsv)")
    if not holds_tables(annotations):
        return _AbawLabels(annotations)
    if annotations.is_file():
        return _open_table(annotations, settings)
    return _TableLabels(*_sort_tables(annotations, sorted(_tables_below(annotations)), video_ids), settings)


def holds_tables(annotations: Path) -> bool:
    """Whether labels are tables; else they are ABAW files, or there are none."""
    if annotations.is_file():
        return annotations.suffix.lower() in TABLE_SUFFIXES
    return annotations.is_dir() and bool(_tables_below(annotations)) and not _holds_abaw_files(annotations)


def labels_at(
    time_s: NDArray[np.float64], wanted_s: NDArray[np.float64], values: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Values of the frames nearest to other times.

    Args:
        time_s: (T,) times of the frames, rising.
        wanted_s: (n,) times to look at.
        values: (T,K).

    Returns:
        (n,K); NaN where a time lies outside the video by more than half the mean distance of two frames.
    """
    middles = (time_s[1:] + time_s[:-1]) / 2
    found = values[np.searchsorted(middles, wanted_s)]
    slack = (time_s[-1] - time_s[0]) / max(len(time_s) - 1, 1) / 2
    outside = (wanted_s > time_s[-1] + slack) | (wanted_s < time_s[0] - slack)
    return np.where(outside[:, None], np.float32(np.nan), found)


class _AbawLabels:
    """Valence and arousal of each frame, -5 where there is none."""

    def __init__(self, annotations: Path) -> None:
        self._files: dict[str, Path] = {}
        self.split: dict[str, Split] = {}
        if not _split_folders(annotations):
            self._files = find_annotations(annotations)
            return
        for split in ("train", "validation"):
            found = find_split(annotations, split)
            _refuse_both_splits(annotations, self._files.keys() & found.keys())
            self._files |= found
            self.split |= dict.fromkeys(found, split)

    @property
    def videos(self) -> tuple[str, ...]:
        return tuple(sorted(self._files))

    def at(
        self,
        video_id: str,
        time_s: NDArray[np.float64],
        targets: Sequence[Target],
        *,
        delay_s: float = 0.0,
        on_warning: Callable[[str], None] = _no_op,
    ) -> NDArray[np.float32]:
        path, n_frames = self._files[video_id], len(time_s)
        annotation = read_annotation(path)
        if len(annotation) != n_frames:
            done = "surplus rows are left out" if len(annotation) > n_frames else "the last frames have no label"
            on_warning(f"{path}: {len(annotation)} rows for {n_frames} decoded frames: {done}")
        labels = np.full((n_frames, len(targets)), np.nan, np.float32)
        known = annotation[:n_frames]
        for k, target in enumerate(targets):
            if target in TARGETS:
                labels[: len(known), k] = known[:, TARGETS.index(target)]
        if not set(targets) & set(TARGETS):
            raise InputError(f"{path}, line 1: ABAW files hold {PER_VIDEO_HEADER}, not {', '.join(targets)}")
        return labels_at(time_s, time_s + delay_s, labels) if delay_s else labels


class _File(NamedTuple):
    """One table of a video's labels."""

    path: Path
    parts: tuple[str, ...]
    """Folders that it is in, and parts of its name after that of the video: a target or a rater each."""
    table: Table | None = None
    """Its rows, where they have been read already."""


class _TableLabels:
    """Labels in tables, one or several for each video."""

    def __init__(
        self, files: Mapping[str, Sequence[_File]], split: Mapping[str, Split], settings: LabelSettings
    ) -> None:
        self._files, self.split, self._settings = files, split, settings
        depth = max(len(file.parts) for group in files.values() for file in group)
        self._parts = [
            {file.parts[level].lower() for group in files.values() for file in group if level < len(file.parts)}
            for level in range(depth)
        ]
        """Names at each level of folders."""

    @property
    def videos(self) -> tuple[str, ...]:
        return tuple(sorted(self._files))

    def at(
        self,
        video_id: str,
        time_s: NDArray[np.float64],
        targets: Sequence[Target],
        *,
        delay_s: float = 0.0,
        on_warning: Callable[[str], None] = _no_op,
    ) -> NDArray[np.float32]:
        files = self._files[video_id]
        ratings = self._read(files, targets)
        where = files[0].path
        if not ratings:
            raise InputError(f"{where}: no labels of {', '.join(targets)} for {video_id}")
        wanted_s = time_s + delay_s
        _check_overlap(where, ratings, wanted_s, on_warning)
        labels = np.full((len(time_s), len(targets)), np.nan, np.float32)
        for k, target in enumerate(targets):
            if target in ratings:
                nobody = f"{where}: no rater of {target} agrees with the others; their plain mean is taken"
                labels[:, k] = combine(
                    list(ratings[target].values()),
                    wanted_s,
                    self._settings.raters,
                    on_disagreement=partial(on_warning, nobody),
                )
        return labels

    def _read(self, files: Sequence[_File], targets: Sequence[Target]) -> Ratings:
        ratings: Ratings = {}
        levels_of_targets = {level for level, names in enumerate(self._parts) if names & set(targets)}
        for path, parts, known in files:
            named = [part.lower() for level, part in enumerate(parts) if level in levels_of_targets]
            if set(named) - set(targets):
                continue  # labels of something that was not requested
            raters = [part for level, part in enumerate(parts) if level not in levels_of_targets]
            table = _read(path, self._settings) if known is None else known
            for target, curves in read_ratings(
                table, targets, self._settings, of_file=named[0] if named else None
            ).items():
                for rater, curve in curves.items():
                    ratings.setdefault(target, {})["/".join([*raters, rater])] = curve
        return ratings


def _read(path: Path, settings: LabelSettings) -> Table:
    return read_table(path, lambda header: has_times(header, settings.columns), wanted=WANTED)


def _open_table(path: Path, settings: LabelSettings) -> _TableLabels:
    """One table of all videos, by its column ``video``."""
    table = _read(path, settings)
    unit = find_unit(table, settings.columns, settings.unit)
    column = find_column(table, "video", VIDEO_NAMES, settings)
    if column is None:
        raise InputError(
            f"{table.where()}: a column video is needed, which says whose labels a row has; "
            f"there are {some_names(table.header)}"
        )
    files: dict[str, list[_File]] = {}
    for text, rows in table.groups(column).items():
        if not text:
            raise InputError(f"{rows.where(0)}: no video; each row needs one")
        video_id = as_video_id(Path(text).stem if Path(text).suffix.lower() in MEDIA_SUFFIXES else text)
        if video_id in files:
            raise InputError(f"{rows.where(0)}: {text} and another name both stand for {video_id}; spell them alike")
        files[video_id] = [_File(path, (), rows)]
    return _TableLabels(files, {}, settings.model_copy(update={"unit": unit}))


def _sort_tables(
    folder: Path, paths: Sequence[Path], video_ids: Collection[str]
) -> tuple[dict[str, list[_File]], dict[str, Split]]:
    """Tables in a folder, by video, and their official split."""
    files: dict[str, list[_File]] = {}
    split: dict[str, Split] = {}
    split_of = {name.lower(): split for split, name in SPLIT_FOLDERS.items()}
    # A video with a file of its own name has no VIDEO_RATER.csv beside it: that is another video.
    with_suffix = set(video_ids) - {video_id_of(path) for path in paths}
    for path in paths:
        stem = video_id_of(path)
        video_id = max((known for known in with_suffix if stem.startswith(f"{known}_")), key=len, default=stem)
        video_id = stem if stem in video_ids else video_id
        folders = path.relative_to(folder).parts[:-1]
        suffix = stem.removeprefix(video_id).split("_")[1:]
        parts = (*(name for name in folders if name.lower() not in split_of), *suffix)
        files.setdefault(video_id, []).append(_File(path, parts))
        for name in folders:
            own = split_of.get(name.lower())
            if own is not None and split.setdefault(video_id, own) != own:
                _refuse_both_splits(folder, [video_id])
    for video_id, group in files.items():
        by_parts = {file.parts: file for file in group}
        if len(by_parts) < len(group):
            refuse_shared_ids((" ".join((video_id, *file.parts)), file.path) for file in group)
        if len(group) > 1 and () in by_parts:
            other = next(file for file in group if file.parts)
            raise InputError(
                f"{by_parts[()].path} and {other.path} are both labels of {video_id}; "
                "keep one, or name the rater of each: VIDEO_RATER.csv or RATER/VIDEO.csv"
            )
    return files, split


def _check_overlap(
    where: Path, ratings: Ratings, wanted_s: NDArray[np.float64], on_warning: Callable[[str], None]
) -> None:
    curves = [curve for of_target in ratings.values() for curve in of_target.values()]
    start_s, end_s = min(curve.start_s for curve in curves), max(curve.end_s for curve in curves)
    first_s, last_s = float(wanted_s[0]), float(wanted_s[-1])
    labelled = f"labels from {start_s:g} to {end_s:g} s, the video from {first_s:g} to {last_s:g} s"
    if start_s > last_s or end_s < first_s:
        raise InputError(f"{where}: {labelled}: nothing in common; are the times in another unit (unit: s or ms)?")
    if end_s > last_s + _MOST_BEYOND_S or min(end_s, last_s) - max(start_s, first_s) < (last_s - first_s) / 2:
        on_warning(f"{where}: {labelled}")


def _tables_below(folder: Path) -> list[Path]:
    return [
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in TABLE_SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]


def _split_folders(annotations: Path) -> list[Path]:
    """Folders of splits, where ABAW has them."""
    names = SPLIT_FOLDERS.values()
    return [
        path for name in names for path in (annotations / name, annotations / CHALLENGE_FOLDER / name) if path.is_dir()
    ]


def _holds_abaw_files(annotations: Path) -> bool:
    """Whether there is a text file with the header of ABAW annotations, where those are looked for."""
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
