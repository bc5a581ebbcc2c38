"""The parser of the challenge's files: readers stop at its first error, the check of a submission collects them all."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from preprocessing.errors import InputError
from preprocessing.names import as_video_id

COLUMNS = ("valence", "arousal")
PER_VIDEO_HEADER = "valence,arousal"
SINGLE_FILE_HEADER = "image_location,valence,arousal"
NOT_ANNOTATED = -5.0

_NUMBER = re.compile(r"[ \t]*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?[ \t]*")
"""Stricter than float(), which also takes 0_1 and the digits of other scripts: not every program does."""
_LOCATION = re.compile(r"(?P<video>.+)[/\\](?P<frame>[0-9]{1,9})(\.\w+)?")
_N_CHARACTERS_SHOWN = 60

Severity = Literal["remark", "refused", "error"]
"""Accepted though unusual; refused by the challenge, but its meaning is clear; cannot be read."""


class Problem(NamedTuple):
    """Something found in a file."""

    severity: Severity
    what: str
    """The kind, in the singular; the check counts the problems of each."""
    line: int | None = None
    """Counted from 1; None: the file as a whole."""
    details: str = ""
    n: int = 1


Report = Callable[[Problem], None]
"""Takes each problem as it is found."""


class Row(NamedTuple):
    """One line after the header."""

    line: int
    cells: Sequence[str]
    values: tuple[float, float] | None
    """Valence and arousal; None where there was an error in the line."""


class Location(NamedTuple):
    """One row of the organisers' sample file."""

    text: str
    """As it stands in the file, for example ``video7/00001.jpg``."""
    video_id: str
    frame: int
    """Counted from 1."""


def raise_errors(path: Path) -> Report:
    """A report that raises InputError at the first error; other problems do not matter to a reader."""

    def report(problem: Problem) -> None:
        if problem.severity == "error":
            line = "" if problem.line is None else f", line {problem.line}"
            raise InputError(f"{path}{line}: {problem.what}" + (f": {problem.details}" if problem.details else ""))

    return report


def stream_lines(path: Path) -> Iterator[str]:
    """Lines with their ends, which the check looks at; bytes that are not UTF-8 become neither a name nor a value.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
            yield from file
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None


def parse_rows(lines: Iterable[str], header: str, report: Report, *, annotation: bool = False) -> Iterator[Row]:
    """Rows of a file.

    Args:
        lines: of the file, with their line feeds.
        header: the right one; its columns end with valence and arousal.
        report: takes each problem.
        annotation: allow -5; both values of such a row are NaN.
    """
    n_columns = header.count(",") + 1
    number = n_rows = 0
    for number, line in parse_lines(lines, report):
        text = line.removesuffix("\n")
        if number == 1 and _is_header(text, header, report):
            continue
        n_rows += 1
        cells = text.split(",")
        values = None
        if text == line and (len(cells) < n_columns or not cells[-1].strip(" +-.")):
            report(Problem("error", "last line is cut off", number, shown(text)))
        elif len(cells) != n_columns:
            report(Problem("error", f"number of columns other than {n_columns}", number, shown(text)))
        else:
            values = _parse_values(cells[-2:], number, report, annotation=annotation)
        yield Row(number, cells, values)
    if n_rows == 0:
        report(Problem("error", "no rows" if number else "empty file"))


def parse_lines(lines: Iterable[str], report: Report) -> Iterator[tuple[int, str]]:
    r"""Number and text, with ``\n``, of each line; blank ones may only come at the end, or frames would shift."""
    blank_since = n_blank = n_windows_ends = number = 0
    line = ""
    for number, line in enumerate(lines, start=1):
        if number == 1 and line.startswith("\ufeff"):
            report(Problem("refused", "byte order mark, which becomes part of the header", 1))
            line = line[1:]
        if not line.strip():
            blank_since = blank_since or number
            n_blank += 1
        elif n_blank:
            report(Problem("error", "blank line before the last row", blank_since, n=n_blank))
            blank_since = n_blank = 0
        if line.endswith("\r\n"):
            n_windows_ends += 1
            line = line[:-2] + "\n"
        if not n_blank:
            yield number, line
    if n_windows_ends:
        report(Problem("remark", "Windows line ends", n=n_windows_ends))
    if n_blank:
        report(Problem("remark", "blank line after the last row", blank_since, n=n_blank))
    if line and not line.endswith("\n"):
        report(Problem("remark", "no line end after the last line", number))


def parse_location(text: str) -> Location | None:
    """Video and frame that a row names, None if it names none."""
    match = _LOCATION.fullmatch(text)
    if match is None or int(match["frame"]) == 0:
        return None
    return Location(text, as_video_id(match["video"]), int(match["frame"]))


def is_single_file(path: Path) -> bool:
    """Whether a file has the header of one that holds all videos."""
    return _normalise(next(stream_lines(path), "").partition("\r")[0]) == _normalise(SINGLE_FILE_HEADER)


def names_rows(text: str) -> bool:
    """Whether a text is the header of the column that names the rows."""
    return _normalise(text) == _normalise(SINGLE_FILE_HEADER.partition(",")[0])


def shown(text: str) -> str:
    """The beginning of a text, quoted."""
    return repr(text if len(text) <= _N_CHARACTERS_SHOWN else f"{text[:_N_CHARACTERS_SHOWN]}...")


def _is_header(text: str, header: str, report: Report) -> bool:
    """Whether the first line is a header, right or wrong, and not a row."""
    if text == header:
        return True
    details = f"{shown(text)}, expected {header}"
    if text.lower() == header:
        report(Problem("remark", "header in other letter case", 1, details))
        return True
    is_row = _NUMBER.fullmatch(text.rpartition(",")[2]) is not None
    severity: Severity = "refused" if _normalise(text) == _normalise(header) else "error"
    report(Problem(severity, "no header" if is_row else "wrong header", 1, details))
    return not is_row


def _normalise(header: str) -> str:
    """A header without what programs vary: letter case, spaces, underscores, a byte order mark."""
    return re.sub(r"[\s_\ufeff]", "", header.lower())


def _parse_values(cells: Sequence[str], line: int, report: Report, *, annotation: bool) -> tuple[float, float] | None:
    values = []
    for cell in cells:
        if _NUMBER.fullmatch(cell):
            value = float(cell)
            if -1.0 <= value <= 1.0:
                values.append(value)
            elif value != NOT_ANNOTATED:
                report(Problem("error", "value outside [-1, 1]", line, shown(cell)))
            elif annotation:
                values.append(math.nan)
            else:
                report(Problem("error", "value of -5, which marks a frame without annotation", line))
        elif not cell.strip():
            report(Problem("error", "missing value", line))
        elif cell.strip(" +-").lower() in ("nan", "inf", "infinity"):
            report(Problem("error", "value that is NaN or infinite", line, shown(cell)))
        else:
            report(Problem("error", "value that is not a number", line, shown(cell)))
    if len(values) != len(COLUMNS):
        return None
    valence, arousal = values
    return (math.nan, math.nan) if math.isnan(valence + arousal) else (valence, arousal)
