"""Files of the ABAW valence-arousal track: annotations, submissions, the organisers' sample file.

Annotation and per-video prediction: first line ``valence,arousal``, then one line for each frame. Single file
(editions 5, 6, 8 and later): first line ``image_location,valence,arousal``, then ``<video>/00001.jpg,<v>,<a>``, frames
counted from 1. Source: https://affective-behavior-analysis-in-the-wild.github.io
"""

from __future__ import annotations

import csv
import io
import os
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from preprocessing.errors import InputError
from preprocessing.files import replace_own
from preprocessing.names import by_video_id, video_id_of
from preprocessing.text import read_text
from rcma.abaw.rows import (
    PER_VIDEO_HEADER,
    SINGLE_FILE_HEADER,
    Location,
    is_single_file,
    names_rows,
    parse_lines,
    parse_location,
    parse_rows,
    raise_errors,
    shown,
)

Split = Literal["train", "validation", "test"]

SPLIT_FOLDERS: dict[Split, str] = {"train": "Train_Set", "validation": "Validation_Set", "test": "Test_Set"}
CHALLENGE_FOLDER = "VA_Estimation_Challenge"

Format = Literal["per-video", "single-file"]

EDITIONS: dict[int, Format] = {
    2: "per-video",
    3: "per-video",
    5: "single-file",
    6: "single-file",
    8: "single-file",
    9: "single-file",
    10: "single-file",
}
"""What each edition with a valence-arousal track takes; the others had none, or one inside a multi-task set."""

_REPEATABLE = 0.01
"""Share of a video's rows that may lie beyond its last decoded frame: programs disagree by a frame or two."""

_LONGEST_NAME = 255
"""Bytes that file systems allow for the name of a file."""


def find_split(annotations: Path, split: Split) -> dict[str, Path]:
    """Annotation files of one split.

    Args:
        annotations: a folder that holds ``Train_Set``, ``Validation_Set`` (and ``Test_Set``), itself or in its
            subfolder ``VA_Estimation_Challenge``.
        split: which of them.

    Returns:
        Path of the annotation for each video_id, sorted by video_id.

    Raises:
        InputError: the folder does not exist, does not hold the split, or the split is empty.
    """
    name = SPLIT_FOLDERS[split]
    candidates = [annotations / name, annotations / CHALLENGE_FOLDER / name]
    for folder in candidates:
        if folder.is_dir():
            return find_annotations(folder)
    state = "holds neither of" if annotations.is_dir() else "no such folder; it should hold one of"
    raise InputError(f"{annotations}: {state} {name}/, {CHALLENGE_FOLDER}/{name}/ with one <video_id>.txt per video")


def find_annotations(folder: Path) -> dict[str, Path]:
    """All ``<video_id>.txt`` of a folder, sorted by video_id; hidden files are passed over.

    Raises:
        InputError: no such folder, no such file in it, or two of the same video_id.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of annotations")
    paths = [path for path in folder.iterdir() if path.suffix.lower() == ".txt" and not path.name.startswith(".")]
    if not paths:
        raise InputError(f"{folder}: no annotations in it; expected one <video_id>.txt per video")
    return dict(sorted(by_video_id((video_id_of(path), path) for path in sorted(paths)).items()))


def read_annotation(path: Path) -> NDArray[np.float32]:
    """Read the annotation of one video.

    Returns:
        float32 (n,2): valence and arousal in [-1,1] of each frame; NaN in both columns where either is -5.

    Raises:
        InputError: the file cannot be read, its header is another one, or a line does not hold two values in [-1,1]
            (or -5); the line is named.
    """
    return _read_per_video(path, annotation=True)


def read_predictions(path: Path) -> dict[str, NDArray[np.float32]]:
    """Read predictions in either format.

    Args:
        path: a folder of ``<video_id>.txt`` files, a folder with one single-file prediction, or that file itself.

    Returns:
        float32 (n,2) for each video_id: valence and arousal in [-1,1]; NaN for frames that a single file leaves out.

    Raises:
        InputError: nothing there, or a line that is not right; the line is named.
    """
    if not path.exists():
        raise InputError(f"{path}: no such predictions; give a folder of <video_id>.txt files or a single file")
    if path.is_file():
        return _read_single_file(path) if is_single_file(path) else {video_id_of(path): _read_per_video(path)}
    files = find_annotations(path)
    single = [file for file in files.values() if is_single_file(file)]
    if not single:
        return {video_id: _read_per_video(file) for video_id, file in files.items()}
    if len(files) > 1:
        raise InputError(f"{path}: {single[0].name} holds all videos, but there are other .txt files; keep one kind")
    return _read_single_file(single[0])


def require_writable_ids(video_ids: Iterable[str], format: Format | None, *, has_template: bool = False) -> None:
    """Raise InputError for identifiers that the challenge's files cannot hold; all are named.

    Args:
        video_ids: of the videos to be written.
        format: that of the files; None: none are written.
        has_template: whether a single file gets the rows of a template, which names its videos itself.
    """
    if format == "per-video":
        wrong = [name for name in video_ids if len(os.fsencode(f"{name}.txt")) > _LONGEST_NAME]
        why = f"too long for the name of a file, {_LONGEST_NAME} bytes with .txt"
    else:
        wrong = [name for name in video_ids if format == "single-file" and not has_template and not _fits_a_row(name)]
        why = "a comma, or a quotation mark or space at its beginning, would break the rows of a single file"
    if wrong:
        raise InputError(f"{', '.join(map(repr, wrong))}: {why}; rename the video, or choose another --format")


def _fits_a_row(video_id: str) -> bool:
    """Whether a row reads the same for all: programs that cut at commas, those that know quotes, those that strip."""
    row = [f"{video_id}/00001.jpg", "0", "0"]
    line = ",".join(row)
    return line.strip().splitlines() == [line] and line.split(",") == row == next(csv.reader([line]))


def per_video_file(folder: Path, video_id: str) -> Path:
    """Where the predictions of a video are."""
    return folder / f"{video_id}.txt"


def write_per_video(folder: Path, video_id: str, predictions: NDArray[np.floating]) -> None:
    """Write ``<video_id>.txt``: the header, then one line per frame with six decimals.

    Args:
        folder: made when missing.
        video_id: name of the file.
        predictions: (T,2) valence and arousal in [-1,1], one row for each decoded frame.

    Raises:
        InputError: a file of that name is there that this program did not write, such as an annotation.
        ValueError: another shape, or values that are no number in [-1,1].
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
        template: rows to write, in their order (:func:`read_template`); None writes every frame of every video.

    Raises:
        InputError: the template names videos or frames that have no prediction, or a video_id cannot be in such a
            file, all of which are named; or a file is there that this program did not write.
        ValueError: another shape, or values that are no number in [-1,1].
    """
    for video_id, values in predictions.items():
        _check_predictions(video_id, values)
    require_writable_ids(predictions, "single-file", has_template=template is not None)
    rows = _rows(_every_frame(predictions), predictions) if template is None else fill_template(template, predictions)
    _write_lines(path, SINGLE_FILE_HEADER, (f"{location},{v:.6f},{a:.6f}\n" for location, v, a in rows))


def read_template(path: Path) -> list[Location]:
    """Read the organisers' sample file: which rows a submission must hold, in which order.

    The header and the value columns may be there or not.

    Raises:
        InputError: the file cannot be read, is empty, names a row twice, or a line names no
            ``<video>/<frame>.jpg``; the line is named.
    """
    locations: list[Location] = []
    seen: dict[str, set[int]] = defaultdict(set)
    for number, line in parse_lines(_lines(path), raise_errors(path)):
        text = line.partition(",")[0].strip()
        if number == 1 and names_rows(text):
            continue
        location = _require_location(path, number, text, seen)
        seen[location.video_id].add(location.frame)
        locations.append(location)
    if not locations:
        raise InputError(f"{path}: no rows in it; expected lines such as video7/00001.jpg")
    return locations


def fill_template(
    template: Sequence[Location], predictions: Mapping[str, NDArray[np.floating]]
) -> Iterator[tuple[str, float, float]]:
    """Give the template's rows in its order, each with its prediction; see :func:`reconcile` for rows beyond the last.

    Returns:
        Location as the template writes it, valence and arousal in [-1,1].

    Raises:
        InputError: videos without predictions, or with too few frames for what the template asks; all are named.
    """
    reconcile(template, {video_id: len(values) for video_id, values in predictions.items()})
    return _rows(template, predictions)


def reconcile(template: Sequence[Location], n_frames: Mapping[str, int]) -> list[str]:
    """Compare what is predicted with the rows of the template.

    Frames that the template does not ask for are left out. Rows beyond a video's last decoded frame repeat its last
    prediction, if they are at most 1 % of the video's rows.

    Args:
        template: see :func:`read_template`.
        n_frames: how many frames of each video_id are predicted.

    Returns:
        One line for each video whose frames are not exactly the template's, saying what is done about it.

    Raises:
        InputError: see :func:`fill_template`.
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
    not_asked = sorted(n_frames.keys() - rows.keys())
    remarks += [f"{video_id}: not in the sample: left out" for video_id in not_asked]
    return remarks


def _write_lines(path: Path, header: str, lines: Iterable[str]) -> None:
    with replace_own(path) as new, new.open("w", encoding="utf-8", newline="\n") as file:
        file.write(header + "\n")
        file.writelines(lines)


def _every_frame(predictions: Mapping[str, NDArray[np.floating]]) -> Iterator[Location]:
    for video_id, values in predictions.items():
        yield from (Location(f"{video_id}/{k:05d}.jpg", video_id, k) for k in range(1, len(values) + 1))


def _rows(
    locations: Iterable[Location], predictions: Mapping[str, NDArray[np.floating]]
) -> Iterator[tuple[str, float, float]]:
    for location in locations:
        values = predictions[location.video_id]
        valence, arousal = values[min(location.frame, len(values)) - 1]
        yield location.text, float(valence), float(arousal)


def _check_predictions(video_id: str, predictions: NDArray[np.floating]) -> None:
    if predictions.ndim != 2 or predictions.shape[1] != 2:
        raise ValueError(f"{video_id}: predictions of shape {predictions.shape}, but (frames, 2) is right")
    if not np.all(np.abs(predictions) <= 1.0):  # NaN fails this too
        raise ValueError(f"{video_id}: predictions that are no number in [-1,1]")


def _read_per_video(path: Path, *, annotation: bool = False) -> NDArray[np.float32]:
    rows = parse_rows(_lines(path), PER_VIDEO_HEADER, raise_errors(path), annotation=annotation)
    return np.array([row.values for row in rows], dtype=np.float32)


def _read_single_file(path: Path) -> dict[str, NDArray[np.float32]]:
    rows: dict[str, dict[int, tuple[float, float] | None]] = defaultdict(dict)
    for row in parse_rows(_lines(path), SINGLE_FILE_HEADER, raise_errors(path)):
        location = _require_location(path, row.line, row.cells[0].strip(), rows)
        rows[location.video_id][location.frame] = row.values
    predictions = {}
    for video_id, values in rows.items():
        predictions[video_id] = np.full((max(values), 2), np.nan, dtype=np.float32)
        predictions[video_id][np.fromiter(values, dtype=np.int64) - 1] = list(values.values())
    return predictions


def _lines(path: Path) -> Iterable[str]:
    return io.StringIO(read_text(path), newline="\n")


def _require_location(path: Path, line: int, text: str, seen: Mapping[str, Container[int]]) -> Location:
    """The frame that a row names, which must be one that was not there before."""
    location = parse_location(text)
    if location is None:
        raise InputError(
            f"{path}, line {line}: {shown(text)} names no frame; expected <video>/00001.jpg, counted from 1"
        )
    if location.frame in seen[location.video_id]:
        raise InputError(f"{path}, line {line}: duplicate row {shown(text)}; each frame may have one")
    return location
