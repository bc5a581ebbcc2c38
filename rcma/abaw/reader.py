"""Read the files of the ABAW valence-arousal track: annotations, predictions, the organisers' sample file.

Annotation, or predictions of one video: first line ``valence,arousal``, then one line for each frame. Predictions in a
single file (editions 5 and later): first line ``image_location,valence,arousal``, then ``<video>/00001.jpg,<v>,<a>``,
frames counted from 1. Source: https://affective-behavior-analysis-in-the-wild.github.io

:func:`parse_rows` reads every line of all of them. Readers stop at its first error; the check of a submission collects
them all.
"""

from __future__ import annotations

import io
import math
import re
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from preprocessing.errors import InputError
from preprocessing.names import as_video_id, by_video_id, video_id_of
from preprocessing.text import read_text

Split = Literal["train", "validation", "test"]

SPLIT_FOLDERS: dict[Split, str] = {"train": "Train_Set", "validation": "Validation_Set", "test": "Test_Set"}
CHALLENGE_FOLDER = "VA_Estimation_Challenge"
PER_VIDEO_HEADER = "valence,arousal"
SINGLE_FILE_HEADER = "image_location,valence,arousal"
NOT_ANNOTATED = -5.0

_NUMBER = re.compile(r"[ \t]*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?[ \t]*")
"""Stricter than float(), which also takes 0_1 and the digits of other scripts: not every program does."""
_LOCATION = re.compile(r"(?P<video>.+)[/\\](?P<frame>[0-9]{1,9})(\.\w+)?")
_N_CHARACTERS_SHOWN = 60

Severity = Literal["remark", "refused", "error"]
"""Accepted though unusual; refused by the challenge, but unambiguous; unreadable."""


class Report(Protocol):
    """Callback for each problem in a file."""

    def __call__(self, severity: Severity, kind: str, line: int | None = None, details: str = "") -> None:
        """Take a problem of the kind ``kind``; lines are counted from 1, None is the file as a whole."""


class Row(NamedTuple):
    """A line after the header."""

    line: int
    cells: Sequence[str]
    values: tuple[float, float] | None
    """Valence and arousal; None where there was an error in the line."""


class Location(NamedTuple):
    """The frame that a row of a single file or of the sample file is about."""

    text: str
    """As in the file, for example ``video7/00001.jpg``."""
    video_id: str
    frame: int
    """Counted from 1."""


def find_split(annotations: Path, split: Split) -> dict[str, Path]:
    """Find the annotation files of one split, sorted by video_id.

    Args:
        annotations: a folder with ``Train_Set``, ``Validation_Set`` (and ``Test_Set``), or with a subfolder
            ``VA_Estimation_Challenge`` that has them.
        split: which of them.

    Raises:
        InputError: the folder does not exist, does not hold the split, or the split is empty.
    """
    name = SPLIT_FOLDERS[split]
    for folder in (annotations / name, annotations / CHALLENGE_FOLDER / name):
        if folder.is_dir():
            return find_annotations(folder)
    state = "holds neither of" if annotations.is_dir() else "no such folder; it should hold one of"
    raise InputError(f"{annotations}: {state} {name}/, {CHALLENGE_FOLDER}/{name}/ with one <video_id>.txt per video")


def find_annotations(folder: Path) -> dict[str, Path]:
    """Find all ``<video_id>.txt`` of a folder, sorted by video_id; hidden files are ignored.

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
        InputError: the file cannot be read, its header is wrong, or a line does not have two values in [-1,1] (or
            -5); the line is named.
    """
    return _read_per_video(path, annotation=True)


def read_predictions(path: Path) -> dict[str, NDArray[np.float32]]:
    """Read predictions in either format.

    Args:
        path: a folder of ``<video_id>.txt`` files, a folder with one single-file prediction, or that file itself.

    Returns:
        float32 (n,2) for each video_id: valence and arousal in [-1,1]; NaN for frames that a single file leaves out.

    Raises:
        InputError: no predictions there, or a wrong line, which is named.
    """
    if not path.exists():
        raise InputError(f"{path}: no such predictions; give a folder of <video_id>.txt files or a single file")
    files = {video_id_of(path): path} if path.is_file() else find_annotations(path)
    single = [file for file in files.values() if is_single_file(file)]
    if not single:
        return {video_id: _read_per_video(file) for video_id, file in files.items()}
    if len(files) > 1:
        raise InputError(f"{path}: {single[0].name} holds all videos, but there are other .txt files; keep one kind")
    return _read_single_file(single[0])


def read_template(path: Path) -> list[Location]:
    """Read the organisers' sample file, which lists the rows of a submission in their order.

    The header and the value columns are optional.

    Raises:
        InputError: the file cannot be read, is empty, names a row twice, or a line names no
            ``<video>/<frame>.jpg``; the line is named.
    """
    locations: list[Location] = []
    seen: dict[str, set[int]] = defaultdict(set)
    for number, line in _number_lines(_lines(path), raise_errors(path)):
        text = line.partition(",")[0].strip()
        if number == 1 and _normalise(text) == _normalise(SINGLE_FILE_HEADER.partition(",")[0]):
            continue
        location = _require_location(path, number, text, seen)
        seen[location.video_id].add(location.frame)
        locations.append(location)
    if not locations:
        raise InputError(f"{path}: no rows in it; expected lines such as video7/00001.jpg")
    return locations


def is_single_file(path: Path) -> bool:
    """Whether a file has the header of a single file for all videos."""
    header = next(stream_lines(path), "").partition("\r")[0]
    return _normalise(header) == _normalise(SINGLE_FILE_HEADER)


def stream_lines(path: Path) -> Iterator[str]:
    """Read a file line by line, line ends included; bytes that are not UTF-8 become neither a name nor a value.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
            yield from file
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None


def raise_errors(path: Path) -> Report:
    """Make a callback that raises InputError at the first error and ignores other problems."""

    def report(severity: Severity, kind: str, line: int | None = None, details: str = "") -> None:
        if severity == "error":
            where = "" if line is None else f", line {line}"
            raise InputError(f"{path}{where}: {kind}" + (f": {details}" if details else ""))

    return report


def parse_rows(lines: Iterable[str], header: str, report: Report, *, annotation: bool = False) -> Iterator[Row]:
    r"""Parse the lines of an annotation or of predictions.

    Args:
        lines: of the file, each with its ``\n``.
        header: expected in the first line; its last two columns are valence and arousal.
        report: takes each problem.
        annotation: allow -5; both values of such a row are NaN.
    """
    n_columns = header.count(",") + 1
    number = n_rows = 0
    for number, line in _number_lines(lines, report):
        text = line.removesuffix("\n")
        if number == 1 and _is_header(text, header, report):
            continue
        n_rows += 1
        cells = text.split(",")
        values = None
        if text == line and (len(cells) < n_columns or not cells[-1].strip(" +-.")):
            report("error", "last line is cut off", number, quote(text))
        elif len(cells) != n_columns:
            report("error", f"number of columns other than {n_columns}", number, quote(text))
        else:
            values = _parse_values(cells[-2:], number, report, annotation=annotation)
        yield Row(number, cells, values)
    if n_rows == 0:
        report("error", "no rows" if number else "empty file")


def parse_location(text: str) -> Location | None:
    """Parse ``video7/00001.jpg``; None if the text does not name a frame."""
    match = _LOCATION.fullmatch(text)
    if match is None or int(match["frame"]) == 0:
        return None
    return Location(text, as_video_id(match["video"]), int(match["frame"]))


def quote(text: str) -> str:
    """Quote the beginning of a text."""
    return repr(text if len(text) <= _N_CHARACTERS_SHOWN else f"{text[:_N_CHARACTERS_SHOWN]}...")


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


def _number_lines(lines: Iterable[str], report: Report) -> Iterator[tuple[int, str]]:
    """Count lines from 1; blank ones may only come at the end, or frames would shift."""
    blank: list[int] = []
    for number, line in enumerate(lines, start=1):
        if line.isspace():
            blank.append(number)
            continue
        for place in blank:
            report("error", "blank line before the last row", place)
        blank.clear()
        yield number, line
    for number in blank:
        report("remark", "blank line after the last row", number)


def _require_location(path: Path, line: int, text: str, seen: Mapping[str, Container[int]]) -> Location:
    location = parse_location(text)
    if location is None:
        raise InputError(
            f"{path}, line {line}: {quote(text)} names no frame; expected <video>/00001.jpg, counted from 1"
        )
    if location.frame in seen[location.video_id]:
        raise InputError(f"{path}, line {line}: duplicate row {quote(text)}; each frame may have one")
    return location


def _is_header(text: str, header: str, report: Report) -> bool:
    """Whether the first line is a header, right or wrong, and not a row."""
    if text == header:
        return True
    details = f"{quote(text)}, expected {header}"
    if text.lower() == header:
        report("remark", "header in other letter case", 1, details)
        return True
    is_row = _NUMBER.fullmatch(text.rpartition(",")[2]) is not None
    severity: Severity = "refused" if _normalise(text) == _normalise(header) else "error"
    report(severity, "no header" if is_row else "wrong header", 1, details)
    return not is_row


def _normalise(header: str) -> str:
    """Remove differences between programs: letter case, spaces, underscores, a byte order mark."""
    return re.sub(r"[\s_\ufeff]", "", header.lower())


def _parse_values(cells: Sequence[str], line: int, report: Report, *, annotation: bool) -> tuple[float, float] | None:
    values = []
    for cell in cells:
        if _NUMBER.fullmatch(cell):
            value = float(cell)
            if -1.0 <= value <= 1.0:
                values.append(value)
            elif value != NOT_ANNOTATED:
                report("error", "value outside [-1, 1]", line, quote(cell))
            elif annotation:
                values.append(math.nan)
            else:
                report("error", "value of -5, which marks a frame without annotation", line)
        elif not cell.strip():
            report("error", "missing value", line)
        elif cell.strip(" +-").lower() in ("nan", "inf", "infinity"):
            report("error", "value that is NaN or infinite", line, quote(cell))
        else:
            report("error", "value that is not a number", line, quote(cell))
    if len(values) < len(cells):
        return None
    valence, arousal = values
    return (math.nan, math.nan) if math.isnan(valence + arousal) else (valence, arousal)
