"""Whether a submission to the ABAW valence-arousal track would be accepted: all that is wrong with it, in one go.

Its formats are those of :mod:`.files`, whose readers stop at the first mistake. Here every line is looked at, and
what is found is grouped by kind, counted, and shown by its first places.
"""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from preprocessing.errors import InputError
from preprocessing.names import as_video_id, by_video_id, video_id_of
from rcma.abaw.files import NOT_ANNOTATED, PER_VIDEO_HEADER, SINGLE_FILE_HEADER, Location, read_template
from rcma.config import TARGETS

MAX_CONSTANT_FRAMES = 25
"""A video of more frames, one second at a usual rate, whose valence or arousal never changes has not been predicted."""

_N_PLACES_SHOWN = 3
_N_VIDEOS_SHOWN = 5
_N_CHARACTERS_SHOWN = 60

_NUMBER = re.compile(r"[ \t]*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?[ \t]*")
"""Stricter than float(), which also takes 0_1 and the digits of other scripts: not every program does."""
_MEANT = re.compile(r"(?P<video>.+)[/\\](?P<frame>[0-9]{1,9})(\.\w+)?")
"""What a row may mean that is not spelled as it should be."""


@dataclass(frozen=True)
class Finding:
    """All places at which one kind of thing was found."""

    what: str
    count: int
    details: str
    """The first places."""

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
    - another number of columns; values that are missing, no numbers, nan, infinite or outside [-1, 1], -5 included;
    - rows that name no frame, or are there twice;
    - valence or arousal that is the same in all rows of the submission, or in all rows of a video of more than
      :data:`MAX_CONSTANT_FRAMES` rows;
    - with a template, for one file: rows that are missing, not asked for, spelled otherwise or in another order; for a
      folder: videos that are missing or not asked for, and another number of rows than the video's last frame;
    - without a template, for one file: rows that are not spelled like ``video7/00001.jpg``.

    These are remarks only: a header in other letter case, Windows line ends, blank lines after the last row, no line
    end after it, shorter videos that are constant, other files in the folder. Scientific notation and spaces around
    values are right. A row with a mistake in it is there: it is not reported as missing too.

    Args:
        path: the file or folder.
        template: the organisers' sample file, see :func:`rcma.abaw.read_template`; without it, coverage and order are
            not checked.

    Raises:
        InputError: the submission or the template cannot be read; the folder holds no ``.txt``, or one for all videos.
    """
    asked = None if template is None else read_template(template)
    if path.is_dir():
        return _check_folder(path, asked)
    rows = _Rows(asked)
    del asked  # of a million rows, some hundred MB
    return _check_single_file(path, rows)


def _check_single_file(path: Path, rows: _Rows) -> SubmissionReport:
    notes, traces = _Notes(), _Traces()
    n_rows = 0
    for line in _rows_of(path, SINGLE_FILE_HEADER, notes):
        n_rows += 1
        cells = line.text.split(",")
        name = cells[0] if cells[0] in rows else None
        values = None
        if _has_form(line, cells, 3, notes):
            name = name or rows.interpret(cells[0], line, notes)
            values = _parse(cells[1:], line, notes)
        if name is not None and rows.mark(name, line, notes) and values is not None:
            traces.add(name.rpartition("/")[0], values)
    rows.report(notes)
    traces.report(notes)
    return SubmissionReport(n_rows, rows.count_videos(), notes.problems.listed(), notes.remarks.listed())


def _check_folder(folder: Path, template: Sequence[Location] | None) -> SubmissionReport:
    entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    files = by_video_id((video_id_of(path), path) for path in entries if path.suffix == ".txt" and path.is_file())
    if not files:
        raise InputError(f"{folder}: no .txt files in it; expected one <video>.txt per video, or give a single file")
    notes, traces = _Notes(), _Traces()
    n_rows = {}
    for video_id, file in files.items():
        first = next(_lines_of(file, _Notes(), prefix=""), None)
        if first is not None and first.text.lower() == SINGLE_FILE_HEADER:
            raise InputError(f"{folder}: {file.name} in it holds all videos; give that file, or a folder without it")
        n_rows[video_id] = 0
        for line in _rows_of(file, PER_VIDEO_HEADER, notes, prefix=f"{file.name}, "):
            n_rows[video_id] += 1
            cells = line.text.split(",")
            values = _parse(cells, line, notes) if _has_form(line, cells, 2, notes) else None
            if values is not None:
                traces.add(video_id, values)
    if template is not None:
        _compare_lengths(n_rows, template, notes)
    for path in entries:
        if path not in files.values():
            notes.remarks.add("not looked at in the folder", path.name)
    traces.report(notes)
    return SubmissionReport(sum(n_rows.values()), len(files), notes.problems.listed(), notes.remarks.listed())


def _compare_lengths(n_rows: Mapping[str, int], template: Sequence[Location], notes: _Notes) -> None:
    last: dict[str, int] = {}
    for location in template:
        last[location.video_id] = max(location.frame, last.get(location.video_id, 0))
    for video_id in sorted(last.keys() - n_rows.keys()):
        notes.problems.add("videos missing", video_id)
    for video_id in sorted(n_rows.keys() - last.keys()):
        notes.problems.add("videos that the sample does not have", video_id)
    for video_id in sorted(n_rows.keys() & last.keys()):
        if n_rows[video_id] != last[video_id]:
            where = f"{video_id}: {n_rows[video_id]} rows, {last[video_id]} frames"
            notes.problems.add("videos whose rows are not as many as the sample's frames", where)


@dataclass
class _Findings:
    """Places by kind, in the order in which the kinds are first met; only as many as are shown are kept."""

    counts: Counter[str] = field(default_factory=Counter)
    places: dict[str, list[str]] = field(default_factory=dict)

    def add(self, what: str, place: str, *, count: int = 1) -> None:
        """Note one place, at which there may be several."""
        self.counts[what] += count
        kept = self.places.setdefault(what, [])
        if len(kept) <= _N_PLACES_SHOWN:
            kept.append(place if len(kept) < _N_PLACES_SHOWN else "...")

    def listed(self) -> tuple[Finding, ...]:
        """All kinds."""
        return tuple(Finding(what, count, "; ".join(self.places[what])) for what, count in self.counts.items())


@dataclass(frozen=True)
class _Notes:
    problems: _Findings = field(default_factory=_Findings)
    remarks: _Findings = field(default_factory=_Findings)


class _Line(NamedTuple):
    """One line that is not blank."""

    number: int
    text: str
    """Without its end."""
    ended: bool
    """Whether it had an end."""
    prefix: str
    """Names the file, if there are several."""

    @property
    def where(self) -> str:
        """Made only when it is asked for: most lines are right."""
        return f"{self.prefix}line {self.number}"


def _rows_of(path: Path, header: str, notes: _Notes, *, prefix: str = "") -> Iterator[_Line]:
    """Lines after the header; a first line that is a row already is one of them."""
    n_lines = n_rows = 0
    for n_lines, line in enumerate(_lines_of(path, notes, prefix=prefix), start=1):
        if n_lines > 1 or not _is_header(line, header, notes):
            n_rows += 1
            yield line
    if n_rows == 0:
        notes.problems.add("no rows" if n_lines else "empty file", path.name)


def _is_header(line: _Line, header: str, notes: _Notes) -> bool:
    """Whether the first line is a header, right or wrong, and not a row."""
    if line.text == header:
        return True
    if line.text.lower() == header:
        notes.remarks.add("header in other letter case", f"{line.where}: {_shown(line.text)} instead of {header}")
        return True
    is_row = _NUMBER.fullmatch(line.text.rpartition(",")[2]) is not None
    what = "no header" if is_row else "wrong header"
    notes.problems.add(what, f"{line.where}: {_shown(line.text)}, but {header} is right")
    return not is_row


def _lines_of(path: Path, notes: _Notes, *, prefix: str) -> Iterator[_Line]:
    blank_since = n_blank = n_windows_ends = number = 0
    line = ""
    try:
        # Not utf-8-sig, and no translation of line ends: both are looked for. Broken bytes fail as names or values.
        with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
            for number, line in enumerate(file, start=1):
                if number == 1 and line.startswith("\ufeff"):
                    notes.problems.add("byte order mark, which becomes part of the header", f"{prefix}line 1")
                    line = line[1:]
                text = line.removesuffix("\n").removesuffix("\r")
                n_windows_ends += line.endswith("\r\n")
                if not text.strip():
                    blank_since = blank_since or number
                    n_blank += 1
                    continue
                if n_blank:
                    notes.problems.add("blank lines", f"{prefix}line {blank_since}", count=n_blank)
                    blank_since = n_blank = 0
                yield _Line(number, text, line.endswith("\n"), prefix)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    if n_windows_ends:
        notes.remarks.add("Windows line ends", path.name, count=n_windows_ends)
    if n_blank:
        notes.remarks.add("blank lines after the last row", f"{prefix}line {blank_since}", count=n_blank)
    if line and not line.endswith("\n"):
        notes.remarks.add("no line end after the last line", f"{prefix}line {number}")


def _has_form(line: _Line, cells: Sequence[str], n_columns: int, notes: _Notes) -> bool:
    if not line.ended and (len(cells) < n_columns or not cells[-1].strip(" +-.")):
        notes.problems.add("last line is cut off", f"{line.where}: {_shown(line.text)}")
        return False
    if len(cells) != n_columns:
        notes.problems.add(f"lines of another form than {n_columns} columns", f"{line.where}: {_shown(line.text)}")
        return False
    return True


def _parse(cells: Sequence[str], line: _Line, notes: _Notes) -> tuple[float, ...] | None:
    """Valence and arousal; None if one of them cannot be used."""
    problems = notes.problems
    values = []
    for cell in cells:
        if _NUMBER.fullmatch(cell):
            value = float(cell)
            if -1.0 <= value <= 1.0:
                values.append(value)
            elif value == NOT_ANNOTATED:
                problems.add(f"values of {value:g}, which marks frames without annotation", line.where)
            else:
                problems.add("values outside [-1, 1]", f"{line.where}: {_shown(cell)}")
        elif not cell.strip():
            problems.add("values missing", line.where)
        elif cell.strip(" +-").lower() in ("nan", "inf", "infinity"):
            problems.add("values that are nan or infinite", f"{line.where}: {_shown(cell)}")
        else:
            problems.add("values that are no numbers", f"{line.where}: {_shown(cell)}")
    return tuple(values) if len(values) == len(TARGETS) else None


class _Rows:
    """Which rows are wanted, and which were there, in which line.

    Millions of rows must fit: for each, one string and three integers are kept.
    """

    def __init__(self, template: Sequence[Location] | None) -> None:
        self._has_template = template is not None
        # Places in the template; without one, in the order in which rows are met.
        self._position_of = {row.text: position for position, row in enumerate(template or ())}
        self._n_asked = Counter(row.video_id for row in template or ())
        self._line_of = array("q", bytes(8 * len(self._position_of)))  # 0: not there
        self._order = array("q")
        self._spelling_of: dict[tuple[str, int], str] = {}

    def __contains__(self, name: str) -> bool:
        """Whether a row is spelled exactly like a known one."""
        return name in self._position_of

    def interpret(self, name: str, line: _Line, notes: _Notes) -> str | None:
        """Right spelling of a row that is not known as it stands, None if it has none; says what is wrong with it."""
        meant = _MEANT.fullmatch(name.strip(" \t\"'"))
        if meant is None or int(meant["frame"]) == 0:
            notes.problems.add("rows that name no frame", f"{line.where}: {_shown(name)}")
            return None
        video, frame = meant["video"], int(meant["frame"])
        right = self._spelling(video, frame)
        if right is None:
            what = "frames" if as_video_id(video) in self._n_asked else "rows of videos"
            notes.problems.add(f"{what} that the sample does not have", f"{line.where}: {_shown(name)}")
            return None
        if right != name:
            what = "rows spelled otherwise than " + ("in the sample" if self._has_template else "video7/00001.jpg")
            notes.problems.add(what, f"{line.where}: {_shown(name)} instead of {right}")
        if right not in self._position_of:
            self._position_of[right] = len(self._line_of)
            self._line_of.append(0)
        return right

    def _spelling(self, video: str, frame: int) -> str | None:
        """How a row must be spelled; None if the template does not have it."""
        if not self._has_template:
            return f"{video}/{frame:05d}.jpg"
        if not self._spelling_of:
            for name in self._position_of:
                known, _, image = name.rpartition("/")
                self._spelling_of[as_video_id(known), int(image.partition(".")[0])] = name
        return self._spelling_of.get((as_video_id(video), frame))

    def mark(self, name: str, line: _Line, notes: _Notes) -> bool:
        """Note that a known row is there; false, and a problem, if it was before."""
        position = self._position_of[name]
        before = self._line_of[position]
        if before:
            notes.problems.add(
                "rows that are there already", f"{line.where}, first in line {before}: {_shown(line.text)}"
            )
            return False
        self._line_of[position] = line.number
        self._order.append(position)
        return True

    def count_videos(self) -> int:
        """Videos with rows that could be told."""
        there = (name for name, position in self._position_of.items() if self._line_of[position])
        return len({name.rpartition("/")[0] for name in there})

    def report(self, notes: _Notes) -> None:
        """What only shows at the end: rows that are missing or stand elsewhere."""
        if self._has_template:
            self._report_missing(notes)
            self._report_order(notes)

    def _report_missing(self, notes: _Notes) -> None:
        missing = [name for name, position in self._position_of.items() if not self._line_of[position]]
        if not missing:
            return
        videos = []
        for video, n in Counter(name.rpartition("/")[0] for name in missing).items():
            asked = self._n_asked[as_video_id(video)]
            videos.append(f"{video}: all {n}" if n == asked else f"{video}: {n} of {asked}")
        more = f", and {len(videos) - _N_VIDEOS_SHOWN} more videos" if len(videos) > _N_VIDEOS_SHOWN else ""
        where = f"first {missing[0]}; {', '.join(videos[:_N_VIDEOS_SHOWN])}{more}"
        notes.problems.add("rows missing", where, count=len(missing))

    def _report_order(self, notes: _Notes) -> None:
        there = np.array(self._order)
        wanted = np.sort(there)  # rows that are missing do not put the others out of order
        elsewhere = np.flatnonzero(there != wanted)
        if len(elsewhere):
            names = list(self._position_of)
            is_there, is_wanted = there[elsewhere[0]], wanted[elsewhere[0]]
            where = f"from line {self._line_of[is_there]}: {names[is_there]} where the sample has {names[is_wanted]}"
            notes.problems.add("rows in another order than the sample's", where, count=len(elsewhere))


@dataclass(slots=True)
class _Trace:
    first: tuple[float, ...]
    n: int
    varies: list[bool]


class _Traces:
    """Whether the values of each video ever change."""

    def __init__(self) -> None:
        self._of: dict[str, _Trace] = {}

    def add(self, video: str, values: tuple[float, ...]) -> None:
        """Take in one row."""
        trace = self._of.get(video)
        if trace is None:
            trace = self._of[video] = _Trace(values, 0, [False] * len(values))
        trace.n += 1
        for k, value in enumerate(values):
            if value != trace.first[k]:
                trace.varies[k] = True

    def report(self, notes: _Notes) -> None:
        """What never changes."""
        n_rows = sum(trace.n for trace in self._of.values())
        for k, target in enumerate(TARGETS):
            constant = {video: trace for video, trace in self._of.items() if not trace.varies[k]}
            values = {trace.first[k] for trace in constant.values()}
            if len(constant) == len(self._of) and len(values) == 1 and n_rows > 1:
                notes.problems.add(f"constant {target} in all rows", f"{values.pop():g}", count=n_rows)
                continue
            for video, trace in constant.items():
                where = f"{video}: {trace.first[k]:g} in all {trace.n} rows"
                if trace.n > MAX_CONSTANT_FRAMES:
                    notes.problems.add(f"videos of constant {target}", where)
                elif trace.n > 1:
                    notes.remarks.add(f"short videos of constant {target}", where)


def _shown(text: str) -> str:
    return repr(text if len(text) <= _N_CHARACTERS_SHOWN else f"{text[:_N_CHARACTERS_SHOWN]}...")
