"""Write predictions as the ABAW valence-arousal track takes them; see :mod:`rcma.abaw.reader` for the formats."""

from __future__ import annotations

import csv
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from preprocessing.errors import InputError
from preprocessing.files import replace_own
from rcma.abaw.reader import PER_VIDEO_HEADER, SINGLE_FILE_HEADER, Location

Format = Literal["per-video", "single-file"]

EDITIONS: dict[int, Format] = {
    **dict.fromkeys((2, 3), "per-video"),
    **dict.fromkeys((5, 6, 8, 9, 10), "single-file"),
}
"""Format of each edition with a valence-arousal track; the others had none, or one inside a multi-task set."""

_REPEATABLE = 0.01
"""Share of a video's rows that may lie beyond its last decoded frame: programs disagree by a frame or two."""

_LONGEST_NAME = 255
"""Bytes that file systems allow for the name of a file."""


def per_video_file(folder: Path, video_id: str) -> Path:
    """Path of the predictions of a video."""
    return folder / f"{video_id}.txt"


def write_per_video(folder: Path, video_id: str, predictions: NDArray[np.floating]) -> None:
    """Write ``<video_id>.txt``: the header, then one line per frame with six decimals.

    Args:
        folder: created if missing.
        video_id: name of the file.
        predictions: (T,2) valence and arousal in [-1,1], one row for each decoded frame.

    Raises:
        InputError: a file of that name exists that this program did not write, such as an annotation.
        ValueError: another shape, or values that are not numbers in [-1,1].
    """
    _check_predictions(video_id, predictions)
    rows = (f"{valence:.6f},{arousal:.6f}\n" for valence, arousal in predictions)
    _write_lines(per_video_file(folder, video_id), PER_VIDEO_HEADER, rows)


def write_single_file(
    path: Path, predictions: Mapping[str, NDArray[np.floating]], *, template: Sequence[Location] | None = None
) -> None:
    """Write one file for all videos: the header, then one line per frame with six decimals.

    Args:
        path: the file.
        predictions: (T,2) valence and arousal in [-1,1] for each video_id.
        template: rows to write, in their order (:func:`rcma.abaw.read_template`), see :func:`reconcile`; None writes
            every frame of every video.

    Raises:
        InputError: the template is not covered, a video_id cannot be in such a file, or a file exists that this
            program did not write.
        ValueError: another shape, or values that are not numbers in [-1,1].
    """
    for video_id, values in predictions.items():
        _check_predictions(video_id, values)
    require_writable_ids(predictions, "single-file", has_template=template is not None)
    locations: Iterable[Location]
    if template is None:
        locations = (
            Location(f"{video_id}/{frame:05d}.jpg", video_id, frame)
            for video_id, values in predictions.items()
            for frame in range(1, len(values) + 1)
        )
    else:
        reconcile(template, {video_id: len(values) for video_id, values in predictions.items()})
        locations = template
    _write_lines(path, SINGLE_FILE_HEADER, (_row(location, predictions) for location in locations))


def reconcile(template: Sequence[Location], n_frames: Mapping[str, int]) -> list[str]:
    """Compare predictions with the rows of the template.

    Frames that the template does not list are left out. Rows beyond a video's last decoded frame repeat its last
    prediction, if they are at most 1 % of the video's rows.

    Args:
        template: see :func:`rcma.abaw.read_template`.
        n_frames: number of predicted frames of each video_id.

    Returns:
        One line for each video whose frames are not exactly the template's: how the difference is resolved.

    Raises:
        InputError: videos without predictions, or with too few frames for the template; all are named.
    """
    rows: dict[str, list[int]] = defaultdict(list)
    for location in template:
        rows[location.video_id].append(location.frame)
    problems, remarks = [], []
    for video_id, frames in rows.items():
        n, last = n_frames.get(video_id, 0), max(frames)
        beyond = sum(frame > n for frame in frames)
        if video_id not in n_frames:
            problems.append(f"{video_id}: no predictions")
        elif n == 0 or beyond > _REPEATABLE * len(frames):
            problems.append(f"{video_id}: {n} frames predicted, {last} needed")
        elif beyond:
            remarks.append(f"{video_id}: {n} frames, the sample asks for {last}: the last prediction is repeated")
        elif n > len(frames):
            remarks.append(
                f"{video_id}: {n} frames, the sample asks for {len(frames)} of them: {n - len(frames)} left out"
            )
    if problems:
        raise InputError(f"the sample file asks for rows that are not predicted: {'; '.join(problems)}")
    return remarks + [f"{video_id}: not in the sample: left out" for video_id in sorted(n_frames.keys() - rows.keys())]


def require_writable_ids(video_ids: Iterable[str], format: Format | None, *, has_template: bool = False) -> None:
    """Raise InputError for identifiers that the challenge's files cannot hold; all are named.

    Args:
        video_ids: of the videos to be written.
        format: of the files; None: none are written.
        has_template: whether a template names the rows of the single file.
    """
    wrong: list[str] = []
    if format == "per-video":
        wrong = [name for name in video_ids if len(os.fsencode(f"{name}.txt")) > _LONGEST_NAME]
        why = f"too long for the name of a file, {_LONGEST_NAME} bytes with .txt"
    elif format == "single-file" and not has_template:
        wrong = [name for name in video_ids if not _fits_a_row(name)]
        why = "a comma, or a quotation mark or space at its beginning, would break the rows of a single file"
    if wrong:
        raise InputError(f"{', '.join(map(repr, wrong))}: {why}; rename the video, or choose another --format")


def _fits_a_row(video_id: str) -> bool:
    """Whether programs that split at commas, that know quotes, and that strip lines all read the row alike."""
    row = [f"{video_id}/00001.jpg", "0", "0"]
    line = ",".join(row)
    return line.strip().splitlines() == [line] and line.split(",") == row == next(csv.reader([line]))


def _check_predictions(video_id: str, predictions: NDArray[np.floating]) -> None:
    if predictions.ndim != 2 or predictions.shape[1] != 2:
        raise ValueError(f"{video_id}: predictions must have the shape (frames, 2), given: {predictions.shape}")
    if not np.all(np.abs(predictions) <= 1.0):  # NaN fails this too
        raise ValueError(f"{video_id}: predictions must be numbers in [-1,1]")


def _row(location: Location, predictions: Mapping[str, NDArray[np.floating]]) -> str:
    values = predictions[location.video_id]
    valence, arousal = values[min(location.frame, len(values)) - 1]
    return f"{location.text},{valence:.6f},{arousal:.6f}\n"


def _write_lines(path: Path, header: str, lines: Iterable[str]) -> None:
    with replace_own(path) as new, new.open("w", encoding="utf-8", newline="\n") as file:
        file.write(header + "\n")
        file.writelines(lines)
