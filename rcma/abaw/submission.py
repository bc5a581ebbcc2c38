"""Check whether a submission to the ABAW valence-arousal track would be accepted: every problem in one pass."""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from preprocessing.errors import InputError
from preprocessing.names import by_video_id, video_id_of
from rcma.abaw.reader import (
    PER_VIDEO_HEADER,
    SINGLE_FILE_HEADER,
    Location,
    Report,
    Severity,
    is_single_file,
    parse_location,
    parse_rows,
    quote,
    read_template,
    stream_lines,
)

MAX_CONSTANT_FRAMES = 25
"""A longer video (one second at a usual rate) whose valence or arousal never changes has not been predicted."""

_N_PLACES_SHOWN = 3
_N_VIDEOS_SHOWN = 5


@dataclass
class Finding:
    """All problems of one kind."""

    kind: str
    severity: Severity
    count: int = 0
    places: list[str] = field(default_factory=list)
    """The first ones, and an ellipsis if there are more."""

    def __str__(self) -> str:
        """One line."""
        return f"{self.kind}: {self.count} ({'; '.join(self.places)})"


@dataclass
class SubmissionReport:
    """Result of the check of a submission."""

    n_rows: int = 0
    """Lines that are not blank, without headers."""
    n_videos: int = 0
    findings: dict[str, Finding] = field(default_factory=dict)
    """By kind, in the order in which they were found; only the places that are shown are kept."""

    @property
    def problems(self) -> list[Finding]:
        """Why the submission would be rejected; empty if it would be accepted."""
        return [finding for finding in self.findings.values() if finding.severity != "remark"]

    @property
    def remarks(self) -> list[Finding]:
        """What is unusual, but no reason to reject it."""
        return [finding for finding in self.findings.values() if finding.severity == "remark"]

    def add(self, severity: Severity, kind: str, place: str, *, count: int = 1) -> None:
        """Count a problem and keep its place if it is one of the first."""
        finding = self.findings.setdefault(kind, Finding(kind, severity))
        finding.count += count
        if len(finding.places) <= _N_PLACES_SHOWN:
            finding.places.append(place if len(finding.places) < _N_PLACES_SHOWN else "...")

    def of_file(self, path: Path, *, prefix: str = "") -> Report:
        """Make a callback that adds the problems of a file; ``prefix`` precedes the number of a line."""

        def report(severity: Severity, kind: str, line: int | None = None, details: str = "") -> None:
            place = path.name if line is None else f"{prefix}line {line}"
            self.add(severity, kind, f"{place}: {details}" if details else place)

        return report


def check_submission(path: Path, *, template: Path | None = None) -> SubmissionReport:
    """Look for everything for which a submission may be rejected.

    - As in reading: the header, the number of columns, values that are not in [-1, 1], blank lines, a cut-off line.
    - Byte order mark, rows that name no frame, duplicate rows, valence or arousal that never changes in the whole
      submission or in a video of more than :data:`MAX_CONSTANT_FRAMES` rows.
    - One file against a template: rows that are missing, not requested, spelled differently or out of order. A row
      with another problem is not reported as missing too. Without a template: the spelling ``video7/00001.jpg``.
    - A folder against a template: videos that are missing or not requested, or have another number of rows.

    Args:
        path: one file for all videos (editions 5 and later), or a folder with one ``<video>.txt`` for each (2 and 3).
        template: the organisers' sample file, see :func:`rcma.abaw.read_template`; without it, coverage and order are
            not checked.

    Raises:
        InputError: the submission or the template cannot be read; the folder has no ``.txt``, or a single file.
    """
    locations = None if template is None else read_template(template)
    return _check_folder(path, locations) if path.is_dir() else _check_single_file(path, locations)


def _check_single_file(path: Path, template: Sequence[Location] | None) -> SubmissionReport:
    result = SubmissionReport()
    report = result.of_file(path)
    spelling = None if template is None else _spelling(template)
    exact = {wanted.text for wanted in template or ()}
    line_of: dict[str, int] = {}  # in the file's order
    values: dict[str, array[float]] = defaultdict(lambda: array("d"))
    for row in parse_rows(_lines(path, result), SINGLE_FILE_HEADER, report):
        result.n_rows += 1
        written = row.cells[0]
        # Nearly all of a million rows are spelled exactly.
        name, problem = (written, "") if written in exact else _name_row(written, spelling)
        # A line with another number of columns has been reported; only an exact name in it can be trusted.
        certain = len(row.cells) == SINGLE_FILE_HEADER.count(",") + 1
        if problem and certain:
            details = f"{quote(written)} instead of {name}" if name else quote(written)
            report("refused", problem, row.line, details)
        if name is None or (problem and not certain):
            continue
        if name in line_of:
            report("error", "duplicate row", row.line, f"{quote(written)}, first in line {line_of[name]}")
            continue
        line_of[name] = row.line
        if row.values is not None:
            values[name.rpartition("/")[0]].extend(row.values)
    if template is not None:
        _compare_rows(line_of, template, result)
    _report_constant(values, result)
    result.n_videos = len({name.rpartition("/")[0] for name in line_of})
    return result


def _check_folder(folder: Path, template: Sequence[Location] | None) -> SubmissionReport:
    entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    files = by_video_id((video_id_of(path), path) for path in entries if path.suffix == ".txt" and path.is_file())
    if not files:
        raise InputError(f"{folder}: no .txt files in it; expected one <video>.txt per video, or give a single file")
    result = SubmissionReport(n_videos=len(files))
    n_rows = dict.fromkeys(files, 0)
    values: dict[str, array[float]] = defaultdict(lambda: array("d"))
    for video_id, file in files.items():
        if is_single_file(file):
            raise InputError(f"{folder}: {file.name} in it holds all videos; give that file, or a folder without it")
        report = result.of_file(file, prefix=f"{file.name}, ")
        for row in parse_rows(_lines(file, result, prefix=f"{file.name}, "), PER_VIDEO_HEADER, report):
            n_rows[video_id] += 1
            if row.values is not None:
                values[video_id].extend(row.values)
    if template is not None:
        _compare_lengths(n_rows, template, result)
    for path in entries:
        if path not in files.values():
            result.add("remark", "ignored in the folder", path.name)
    _report_constant(values, result)
    result.n_rows = sum(n_rows.values())
    return result


def _lines(path: Path, result: SubmissionReport, *, prefix: str = "") -> Iterator[str]:
    r"""Lines that end with ``\n``; a byte order mark and unusual line ends are reported."""
    number, line, n_windows_ends = 0, "\n", 0
    for number, line in enumerate(stream_lines(path), start=1):
        if number == 1 and line.startswith("\ufeff"):
            result.add("refused", "byte order mark, which becomes part of the header", f"{prefix}line 1")
            line = line[1:]
        if line.endswith("\r\n"):
            n_windows_ends += 1
            line = line[:-2] + "\n"
        yield line
    if n_windows_ends:
        result.add("remark", "Windows line ends", path.name, count=n_windows_ends)
    if not line.endswith("\n"):
        result.add("remark", "no line end after the last line", f"{prefix}line {number}")


def _spelling(template: Sequence[Location]) -> dict[str, dict[int, str]]:
    """Names of rows as the template has them, by video_id and frame."""
    spelling: dict[str, dict[int, str]] = defaultdict(dict)
    for location in template:
        spelling[location.video_id][location.frame] = location.text
    return spelling


def _name_row(written: str, spelling: Mapping[str, Mapping[int, str]] | None) -> tuple[str | None, str]:
    """Find the right spelling of a row's name, in the template or like ``video7/00001.jpg``.

    Returns:
        The right name, None if the row is not wanted; and the problem with ``written``, empty if there is none.
    """
    location = parse_location(written.strip(" \t\"'"))
    if location is None:
        return None, "row that names no frame"
    if spelling is None:
        video = location.text[: max(map(location.text.rfind, "/\\"))]
        right, example = f"{video}/{location.frame:05d}.jpg", "video7/00001.jpg"
    elif location.frame in (frames := spelling.get(location.video_id, {})):
        right, example = frames[location.frame], "the sample"
    else:
        return None, "frame not in the sample" if frames else "row of a video not in the sample"
    return right, "" if right == written else f"row not spelled like {example}"


def _compare_rows(line_of: Mapping[str, int], template: Sequence[Location], result: SubmissionReport) -> None:
    """Report rows of the template that are missing or out of order."""
    missing = [wanted for wanted in template if wanted.text not in line_of]
    if missing:
        n_wanted = Counter(wanted.video_id for wanted in template)
        videos = [
            f"{video}: all {n}" if n == n_wanted[video] else f"{video}: {n} of {n_wanted[video]}"
            for video, n in Counter(wanted.video_id for wanted in missing).items()
        ]
        more = f", and {len(videos) - _N_VIDEOS_SHOWN} more videos" if len(videos) > _N_VIDEOS_SHOWN else ""
        where = f"first {missing[0].text}; {', '.join(videos[:_N_VIDEOS_SHOWN])}{more}"
        result.add("error", "missing row", where, count=len(missing))
    # Missing rows do not put the others out of order.
    expected = (wanted.text for wanted in template if wanted.text in line_of)
    moved = [(name, right) for name, right in zip(line_of, expected, strict=True) if name != right]
    if moved:
        name, right = moved[0]
        where = f"from line {line_of[name]}: {name} where the sample has {right}"
        result.add("error", "row out of order", where, count=len(moved))


def _compare_lengths(n_rows: Mapping[str, int], template: Sequence[Location], result: SubmissionReport) -> None:
    n_frames: dict[str, int] = {}
    for location in template:
        n_frames[location.video_id] = max(location.frame, n_frames.get(location.video_id, 0))
    for video_id in sorted(n_frames.keys() | n_rows.keys()):
        if video_id not in n_rows:
            result.add("error", "missing video", video_id)
        elif video_id not in n_frames:
            result.add("error", "video not in the sample", video_id)
        elif n_rows[video_id] != n_frames[video_id]:
            where = f"{video_id}: {n_rows[video_id]} rows, {n_frames[video_id]} frames"
            result.add("error", "wrong number of rows", where)


def _report_constant(values: Mapping[str, array[float]], result: SubmissionReport) -> None:
    """Report valence or arousal that never changes.

    Args:
        values: valence and arousal in turn, row after row of each video.
        result: where to report.
    """
    for k, target in enumerate(("valence", "arousal")):
        traces = {video: np.frombuffer(pairs)[k::2] for video, pairs in values.items()}
        n_rows = sum(map(len, traces.values()))
        if n_rows > 1 and len(everything := np.unique(np.concatenate(list(traces.values())))) == 1:
            result.add("error", f"constant {target} in all rows", f"{everything[0]:g}", count=n_rows)
            continue
        for video, trace in traces.items():
            if len(trace) > 1 and (trace == trace[0]).all():
                too_long = len(trace) > MAX_CONSTANT_FRAMES
                kind = f"video of constant {target}" if too_long else f"short video of constant {target}"
                result.add("error" if too_long else "remark", kind, f"{video}: {trace[0]:g} in all {len(trace)} rows")
