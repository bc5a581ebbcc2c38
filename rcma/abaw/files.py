"""Files of the ABAW valence-arousal track: annotations, submissions, the organisers' sample file.

Annotation and per-video prediction: first line ``valence,arousal``, then one line for each frame. Single file
(editions 5, 6, 8 and later): first line ``image_location,valence,arousal``, then ``<video>/00001.jpg,<v>,<a>``, frames
counted from 1. Source: https://affective-behavior-analysis-in-the-wild.github.io
"""

from __future__ import annotations

import csv
import math
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from preprocessing.errors import InputError
from preprocessing.files import replace_own
from preprocessing.names import as_video_id, by_video_id, video_id_of
from preprocessing.text import read_text

Split = Literal["train", "validation", "test"]

SPLIT_FOLDERS: dict[Split, str] = {"train": "Train_Set", "validation": "Validation_Set", "test": "Test_Set"}
_CHALLENGE_FOLDER = "VA_Estimation_Challenge"

PER_VIDEO_HEADER = "valence,arousal"
SINGLE_FILE_HEADER = "image_location,valence,arousal"
NOT_ANNOTATED = -5.0

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

_LOCATION = re.compile(r"(?P<video>.+)/(?P<frame>\d+)\.\w+")


class Location(NamedTuple):
    """One row of the organisers' sample file."""

    text: str
    """As it stands in the file, for example ``video7/00001.jpg``."""
    video_id: str
    frame: int
    """Counted from 1."""


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
    candidates = [annotations / name, annotations / _CHALLENGE_FOLDER / name]
    for folder in candidates:
        if folder.is_dir():
            return find_annotations(folder)
    state = "holds neither of" if annotations.is_dir() else "no such folder; it should hold one of"
    raise InputError(f"{annotations}: {state} {name}/, {_CHALLENGE_FOLDER}/{name}/ with one <video_id>.txt per video")


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
    return _read_per_video(path, not_annotated=NOT_ANNOTATED)


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
        return _read_single_file(path) if _is_single_file(path) else {video_id_of(path): _read_per_video(path)}
    files = find_annotations(path)
    single = [file for file in files.values() if _is_single_file(file)]
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
    rows = _all_rows(predictions) if template is None else fill_template(template, predictions)
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
    for number, line in _lines(path):
        text = line.split(",")[0].strip()
        if number == 1 and _normal(text) == _normal(SINGLE_FILE_HEADER.split(",")[0]):
            continue
        location = _parse_location(text, where=f"{path}, line {number}")
        if location.frame in seen[location.video_id]:
            raise InputError(f"{path}, line {number}: {text} is there twice; each row may be there once")
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
    last = {video_id: len(values) - 1 for video_id, values in predictions.items()}
    return ((row.text, *_pair(predictions[row.video_id][min(row.frame - 1, last[row.video_id])])) for row in template)


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


def _all_rows(predictions: Mapping[str, NDArray[np.floating]]) -> Iterator[tuple[str, float, float]]:
    for video_id, values in predictions.items():
        for frame, value in enumerate(values, start=1):
            yield (f"{video_id}/{frame:05d}.jpg", *_pair(value))


def _pair(row: NDArray[np.floating]) -> tuple[float, float]:
    return float(row[0]), float(row[1])


def _check_predictions(video_id: str, predictions: NDArray[np.floating]) -> None:
    if predictions.ndim != 2 or predictions.shape[1] != 2:
        raise ValueError(f"{video_id}: predictions of shape {predictions.shape}, but (frames, 2) is right")
    if not np.all(np.abs(predictions) <= 1.0):  # NaN fails this too
        raise ValueError(f"{video_id}: predictions that are no number in [-1,1]")


def _read_per_video(path: Path, *, not_annotated: float | None = None) -> NDArray[np.float32]:
    rows: list[tuple[float, float]] = []
    for number, line in _lines(path):
        if number == 1:
            _check_header(path, line, PER_VIDEO_HEADER)
            continue
        where = f"{path}, line {number}"
        cells = line.split(",")
        if len(cells) != 2:
            raise InputError(f"{where}: {len(cells)} column(s), but two are right: {PER_VIDEO_HEADER}")
        rows.append(_parse_values(cells, where=where, not_annotated=not_annotated))
    if not rows:
        raise InputError(f"{path}: no rows after the header; expected one line per frame")
    return np.array(rows, dtype=np.float32)


def _read_single_file(path: Path) -> dict[str, NDArray[np.float32]]:
    rows: dict[str, dict[int, tuple[float, float]]] = defaultdict(dict)
    for number, line in _lines(path):
        if number == 1:
            _check_header(path, line, SINGLE_FILE_HEADER)
            continue
        where = f"{path}, line {number}"
        cells = line.split(",")
        if len(cells) != 3:
            raise InputError(f"{where}: {len(cells)} column(s), but three are right: {SINGLE_FILE_HEADER}")
        location = _parse_location(cells[0].strip(), where=where)
        if location.frame in rows[location.video_id]:
            raise InputError(f"{where}: {location.text} is there twice; each row may be there once")
        rows[location.video_id][location.frame] = _parse_values(cells[1:], where=where)
    if not rows:
        raise InputError(f"{path}: no rows after the header")
    predictions = {}
    for video_id, values in rows.items():
        predictions[video_id] = np.full((max(values), 2), np.nan, dtype=np.float32)
        predictions[video_id][np.fromiter(values, dtype=np.int64) - 1] = list(values.values())
    return predictions


def _is_single_file(path: Path) -> bool:
    return _normal(read_text(path).partition("\n")[0]) == _normal(SINGLE_FILE_HEADER)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number (from 1) and content of each line; blank lines may only come at the end, or frames would slip."""
    blank = 0
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            blank = blank or number
        elif blank:
            raise InputError(f"{path}, line {blank}: blank; each line belongs to one frame, only the last may be blank")
        else:
            yield number, line.strip()


def _check_header(path: Path, line: str, header: str) -> None:
    if _normal(line) != _normal(header):
        raise InputError(f"{path}, line 1: {line[:60]!r} instead of the header {header}")


def _normal(header: str) -> str:
    """A header without what programs vary: letter case, spaces, underscores."""
    return re.sub(r"[\s_]", "", header.lower())


def _parse_values(cells: Sequence[str], *, where: str, not_annotated: float | None = None) -> tuple[float, float]:
    try:
        valence, arousal = float(cells[0]), float(cells[1])
    except ValueError:
        raise InputError(f"{where}: {','.join(cells)[:60]!r} is not two numbers") from None
    if not_annotated is not None and not_annotated in (valence, arousal):
        return math.nan, math.nan
    for value in (valence, arousal):
        if not -1.0 <= value <= 1.0:
            allowed = "in [-1, 1]" if not_annotated is None else f"in [-1, 1], or {not_annotated:g} where not annotated"
            raise InputError(f"{where}: {value:g} is out of range; values are {allowed}")
    return valence, arousal


def _parse_location(text: str, *, where: str) -> Location:
    match = _LOCATION.fullmatch(text)
    if match is None or int(match["frame"]) < 1:
        raise InputError(f"{where}: {text[:80]!r} does not name a frame; expected <video>/00001.jpg, counted from 1")
    return Location(text, as_video_id(match["video"]), int(match["frame"]))
