"""Whether a submission to the ABAW valence-arousal track would be accepted: every problem in one pass."""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from preprocessing.errors import InputError
from preprocessing.names import by_video_id, video_id_of
from rcma.abaw.files import read_template
from rcma.abaw.rows import (
    COLUMNS,
    PER_VIDEO_HEADER,
    SINGLE_FILE_HEADER,
    Location,
    Problem,
    Report,
    Row,
    Severity,
    is_single_file,
    parse_location,
    parse_rows,
    shown,
    stream_lines,
)

MAX_CONSTANT_FRAMES = 25
"""A video of more frames, one second at a usual rate, whose valence or arousal never changes has not been predicted."""

_N_PLACES_SHOWN = 3
_N_VIDEOS_SHOWN = 5


@dataclass
class Finding:
    """All problems of one kind."""

    what: str
    severity: Severity
    count: int = 0
    places: list[str] = field(default_factory=list)
    """The first ones, and an ellipsis if there are more."""

    @property
    def details(self) -> str:
        """The first places."""
        return "; ".join(self.places)

    def __str__(self) -> str:
        """One line."""
        return f"{self.what}: {self.count} ({self.details})"


@dataclass(frozen=True)
class SubmissionReport:
    """What was found in a submission."""

    n_rows: int
    """Lines with something in them, headers left out."""
    n_videos: int
    problems: tuple[Finding, ...]
    """Why it would be rejected; empty: it is right."""
    remarks: tuple[Finding, ...]
    """Worth a look, but no reason to reject it."""


def check_submission(path: Path, *, template: Path | None = None) -> SubmissionReport:
    """Look for everything for which a submission may be rejected.

    A submission is one file for all videos (editions 5, 6, 8, 9, 10) or a folder with one ``<video>.txt`` for each
    (editions 2, 3). These are problems:

    - another header, a byte order mark, blank lines before the last row, a last line that is cut off, no rows;
    - another number of columns; values that are missing, not a number, NaN, infinite or outside [-1, 1], -5 included;
    - rows that name no frame, and duplicate rows;
    - valence or arousal that is the same in all rows of the submission, or in all rows of a video of more than
      :data:`MAX_CONSTANT_FRAMES` rows;
    - with a template, for one file: rows that are missing, not requested, spelled differently or out of order; for a
      folder: videos that are missing or not requested, and another number of rows than the video's last frame;
    - without a template, for one file: rows that are not spelled like ``video7/00001.jpg``.

    These are remarks only: a header in other letter case, Windows line ends, blank lines after the last row, no line
    end after it, shorter videos that are constant, other files in the folder. Scientific notation and spaces around
    values are right. A row with a problem is not reported as missing too.

    Args:
        path: the file or folder.
        template: the organisers' sample file, see :func:`rcma.abaw.read_template`; without it, coverage and order are
            not checked.

    Raises:
        InputError: the submission or the template cannot be read; the folder holds no ``.txt``, or one for all videos.
    """
    asked = None if template is None else read_template(template)
    return _check_folder(path, asked) if path.is_dir() else _check_single_file(path, asked)


def _check_single_file(path: Path, template: Sequence[Location] | None) -> SubmissionReport:
    findings = _Findings()
    report = findings.of_file(path)
    spelling: dict[str, dict[int, str]] = defaultdict(dict)
    for wanted in template or ():
        spelling[wanted.video_id][wanted.frame] = wanted.text
    line_of: dict[str, int] = {}  # in the file's order
    values: dict[str, array[float]] = defaultdict(lambda: array("d"))
    n_rows = 0
    for row in parse_rows(stream_lines(path), SINGLE_FILE_HEADER, report):
        n_rows += 1
        # Of a line with another number of columns, only an exact name is certain.
        certain = len(row.cells) == 1 + len(COLUMNS)
        name = _name_row(row, spelling if template is not None else None, report if certain else lambda problem: None)
        if name is None or not (certain or name == row.cells[0]):
            continue
        if name in line_of:
            details = f"{shown(row.cells[0])}, first in line {line_of[name]}"
            report(Problem("error", "duplicate row", row.line, details))
            continue
        line_of[name] = row.line
        if row.values is not None:
            values[name.rpartition("/")[0]].extend(row.values)
    if template is not None:
        _compare_rows(line_of, template, findings)
    _report_constant(values, findings)
    return findings.summary(n_rows, len({name.rpartition("/")[0] for name in line_of}))


def _name_row(row: Row, spelling: Mapping[str, Mapping[int, str]] | None, report: Report) -> str | None:
    """How a row must be spelled, by the template or like ``video7/00001.jpg``; None if it is not wanted."""
    written = row.cells[0]
    location = parse_location(written.strip(" \t\"'"))
    if location is None:
        report(Problem("refused", "row that names no frame", row.line, shown(written)))
        return None
    if spelling is None:
        video = location.text[: max(map(location.text.rfind, "/\\"))]
        right, example = f"{video}/{location.frame:05d}.jpg", "video7/00001.jpg"
    elif location.frame in (frames := spelling.get(location.video_id, {})):
        right, example = frames[location.frame], "the sample"
    else:
        what = "frame not in the sample" if frames else "row of a video not in the sample"
        report(Problem("refused", what, row.line, shown(written)))
        return None
    if right != written:
        details = f"{shown(written)} instead of {right}"
        report(Problem("refused", f"row not spelled like {example}", row.line, details))
    return right


def _compare_rows(line_of: Mapping[str, int], template: Sequence[Location], findings: _Findings) -> None:
    """Report rows of the template that are missing or out of order."""
    missing = Counter(wanted.video_id for wanted in template if wanted.text not in line_of)
    if missing:
        asked = Counter(wanted.video_id for wanted in template)
        first = next(wanted.text for wanted in template if wanted.text not in line_of)
        videos = [
            f"{video}: all {n}" if n == asked[video] else f"{video}: {n} of {asked[video]}"
            for video, n in missing.items()
        ]
        more = f", and {len(videos) - _N_VIDEOS_SHOWN} more videos" if len(videos) > _N_VIDEOS_SHOWN else ""
        where = f"first {first}; {', '.join(videos[:_N_VIDEOS_SHOWN])}{more}"
        findings.add("error", "missing row", where, count=missing.total())
    # Missing rows do not put the others out of order.
    expected = (wanted.text for wanted in template if wanted.text in line_of)
    moved = [(name, right) for name, right in zip(line_of, expected, strict=True) if name != right]
    if moved:
        name, right = moved[0]
        where = f"from line {line_of[name]}: {name} where the sample has {right}"
        findings.add("error", "row out of order", where, count=len(moved))


def _check_folder(folder: Path, template: Sequence[Location] | None) -> SubmissionReport:
    entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    files = by_video_id((video_id_of(path), path) for path in entries if path.suffix == ".txt" and path.is_file())
    if not files:
        raise InputError(f"{folder}: no .txt files in it; expected one <video>.txt per video, or give a single file")
    findings = _Findings()
    n_rows = Counter(dict.fromkeys(files, 0))
    values: dict[str, array[float]] = defaultdict(lambda: array("d"))
    for video_id, file in files.items():
        if is_single_file(file):
            raise InputError(f"{folder}: {file.name} in it holds all videos; give that file, or a folder without it")
        report = findings.of_file(file, prefix=f"{file.name}, ")
        for row in parse_rows(stream_lines(file), PER_VIDEO_HEADER, report):
            n_rows[video_id] += 1
            if row.values is not None:
                values[video_id].extend(row.values)
    if template is not None:
        _compare_lengths(n_rows, template, findings)
    for path in entries:
        if path not in files.values():
            findings.add("remark", "ignored in the folder", path.name)
    _report_constant(values, findings)
    return findings.summary(n_rows.total(), len(files))


def _compare_lengths(n_rows: Mapping[str, int], template: Sequence[Location], findings: _Findings) -> None:
    last: dict[str, int] = {}
    for location in template:
        last[location.video_id] = max(location.frame, last.get(location.video_id, 0))
    for video_id in sorted(last.keys() - n_rows.keys()):
        findings.add("error", "missing video", video_id)
    for video_id in sorted(n_rows.keys() - last.keys()):
        findings.add("error", "video not in the sample", video_id)
    for video_id in sorted(n_rows.keys() & last.keys()):
        if n_rows[video_id] != last[video_id]:
            where = f"{video_id}: {n_rows[video_id]} rows, {last[video_id]} frames"
            findings.add("error", "wrong number of rows", where)


def _report_constant(values: Mapping[str, array[float]], findings: _Findings) -> None:
    """Report valence or arousal that never changes.

    Args:
        values: valence and arousal in turn, row after row of each video.
        findings: where to report.
    """
    for k, target in enumerate(COLUMNS):
        traces = {video: np.frombuffer(pairs)[k :: len(COLUMNS)] for video, pairs in values.items()}
        constant = {video: trace for video, trace in traces.items() if (trace == trace[0]).all()}
        n_rows = sum(map(len, traces.values()))
        if n_rows > 1 and len(constant) == len(traces) and len({trace[0] for trace in constant.values()}) == 1:
            value = next(iter(constant.values()))[0]
            findings.add("error", f"constant {target} in all rows", f"{value:g}", count=n_rows)
            continue
        for video, trace in constant.items():
            where = f"{video}: {trace[0]:g} in all {len(trace)} rows"
            if len(trace) > MAX_CONSTANT_FRAMES:
                findings.add("error", f"video of constant {target}", where)
            elif len(trace) > 1:
                findings.add("remark", f"short video of constant {target}", where)


class _Findings:
    """Findings by kind, in the order in which the kinds are first met; only the places that are shown are kept."""

    def __init__(self) -> None:
        self._by_kind: dict[str, Finding] = {}

    def add(self, severity: Severity, what: str, place: str, *, count: int = 1) -> None:
        """Count one place, at which there may be several."""
        finding = self._by_kind.setdefault(what, Finding(what, severity))
        finding.count += count
        if len(finding.places) <= _N_PLACES_SHOWN:
            finding.places.append(place if len(finding.places) < _N_PLACES_SHOWN else "...")

    def of_file(self, path: Path, *, prefix: str = "") -> Report:
        """Takes the problems of a file; ``prefix`` stands before the number of a line."""

        def report(problem: Problem) -> None:
            place = path.name if problem.line is None else f"{prefix}line {problem.line}"
            place += f": {problem.details}" if problem.details else ""
            self.add(problem.severity, problem.what, place, count=problem.n)

        return report

    def summary(self, n_rows: int, n_videos: int) -> SubmissionReport:
        """All kinds, remarks apart."""
        found = self._by_kind.values()
        problems = tuple(finding for finding in found if finding.severity != "remark")
        return SubmissionReport(n_rows, n_videos, problems, tuple(one for one in found if one.severity == "remark"))
