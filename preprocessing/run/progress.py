"""How far a batch of videos is: bars with speed and time left on a terminal, one plain line a video elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from preprocessing.console import error_console, print_failure, print_table
from preprocessing.inputs import Source
from preprocessing.run.preprocessor import Engine, Preprocessor, make_room
from preprocessing.run.video_worker import Outcome, Report

_LONGEST_NAME = 30
"""Characters of a video's name on its bar."""


def preprocess_with_progress(
    preprocessor: Preprocessor,
    sources: Sequence[Source],
    out: Path,
    *,
    overwrite: bool = False,
    engine: Engine | None = None,
    on_failure: Callable[[str], object] = print_failure,
) -> list[Outcome]:
    """As :meth:`preprocessing.run.Preprocessor.many`, with a display of progress on stderr and a closing table.

    Args:
        preprocessor: its settings are used.
        sources: the videos.
        out: folder of the features.
        overwrite: see there.
        engine: see there.
        on_failure: called with one line for each video that fails: of those that are refused before the work begins,
            of the others after the table.

    Returns:
        What became of each video, in the order of ``sources``.

    Raises:
        InputError: see there.
        OSError: see there.
    """
    make_room(out)
    outcomes, jobs = preprocessor.plan(sources, out, overwrite=overwrite)
    n_skipped = sum(outcome.done for outcome in outcomes)
    if n_skipped:
        print(f"already done: {n_skipped} of {len(sources)} videos", file=sys.stderr)
    for outcome in outcomes:
        if not outcome.done:
            on_failure(outcome.problem)
    worked_on = []
    with BatchProgress({job.source.video_id: job.size for job in jobs}) as progress:
        for outcome in preprocessor.run(jobs, engine=engine, status=progress.report):
            progress.finished(outcome)
            worked_on.append(outcome)
    order = {source.video_id: position for position, source in enumerate(sources)}
    outcomes = sorted([*outcomes, *worked_on], key=lambda outcome: order[outcome.video_id])
    _print_closing_table(outcomes, out)
    for outcome in sorted(worked_on, key=lambda outcome: order[outcome.video_id]):
        if not outcome.done:
            on_failure(outcome.problem)
    return outcomes


class BatchProgress:
    """Shows a batch; time left is reckoned in bytes of video, because videos differ in length."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        """Prepare for videos, given by video_id and size in bytes."""
        self._sizes = {video_id: max(1, size) for video_id, size in sizes.items()}
        self._begin = time.monotonic()
        self._n_finished = 0
        self._bytes_finished = 0
        self._frames_finished = 0
        self._running: dict[str, Report] = {}
        self._tasks: dict[str, TaskID] = {}
        self._console = error_console()
        self._bars: Progress | None = None
        if self._console.is_terminal and sizes:
            self._bars = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TaskProgressColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[detail]}", markup=False),
                console=self._console,
                transient=True,
            )
            self._all = self._bars.add_task("all videos", total=1.0, detail="loading models")

    def __enter__(self) -> BatchProgress:
        """Start the bars."""
        if self._bars:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the bars."""
        if self._bars:
            self._bars.stop()

    def report(self, line: str) -> None:
        """Take a worker's word on the video it is at; see :class:`preprocessing.run.Report`."""
        if not self._bars:
            return
        report = Report.from_text(line)
        self._running[report.video_id] = report
        if report.video_id not in self._tasks:
            name = report.video_id
            short = name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 3] + "..."
            self._tasks[name] = self._bars.add_task(short, total=1.0, detail="")
        self._bars.update(self._tasks[report.video_id], completed=report.share, detail=report.text)
        self._update_all()

    def finished(self, outcome: Outcome) -> None:
        """Say how one video went."""
        self._n_finished += 1
        self._bytes_finished += self._sizes[outcome.video_id]
        self._frames_finished += outcome.n_frames
        self._running.pop(outcome.video_id, None)
        left = f"; {_duration(self._left_s())} left" if self._n_finished < len(self._sizes) else ""
        line = f"[{self._n_finished}/{len(self._sizes)}] {_line(outcome)}{left}"
        self._console.print(Text(line), soft_wrap=True)
        if self._bars:
            if outcome.video_id in self._tasks:
                self._bars.remove_task(self._tasks.pop(outcome.video_id))
            self._update_all()

    def _share(self) -> float:
        """Of all work, 0 to 1."""
        running = sum(self._sizes[report.video_id] * report.share for report in self._running.values())
        return min(1.0, (self._bytes_finished + running) / sum(self._sizes.values()))

    def _left_s(self) -> float:
        share = self._share()
        return (time.monotonic() - self._begin) * (1 - share) / share if share > 0 else float("inf")

    def _update_all(self) -> None:
        assert self._bars is not None
        frames = self._frames_finished + sum(report.n_frames for report in self._running.values())
        speed = frames / (time.monotonic() - self._begin)
        detail = f"{self._n_finished}/{len(self._sizes)} videos, {speed:.0f} frames/s, {_duration(self._left_s())} left"
        self._bars.update(self._all, completed=self._share(), detail=detail)


def _print_closing_table(outcomes: Sequence[Outcome], out: Path) -> None:
    rows = []
    for outcome in outcomes:
        if outcome.done:
            cells = [str(outcome.n_frames), f"{outcome.face_share:.0%}", str(outcome.n_words), outcome.language]
            seconds = "" if outcome.skipped else f"{outcome.seconds:.1f}"
            remarks = "; ".join((*(["already done"] if outcome.skipped else []), *outcome.warnings))
            rows.append([outcome.video_id, *cells, seconds, remarks])
        else:
            rows.append([outcome.video_id, "", "", "", "", f"{outcome.seconds:.1f}", f"FAILED: {outcome.problem}"])
    columns = ["video", "frames", "faces", "words", "language", "seconds", "remarks"]
    n_failed = sum(not outcome.done for outcome in outcomes)
    title = f"{len(outcomes) - n_failed} of {len(outcomes)} videos are in {out}"
    print_table(title + (f"; {n_failed} failed" if n_failed else ""), columns, rows)


def _line(outcome: Outcome) -> str:
    if not outcome.done:
        return f"{outcome.video_id}: failed"
    if outcome.skipped:
        return f"{outcome.video_id}: done by another run"
    speed = f", {outcome.duration_s / outcome.seconds:.1f} times real time" if outcome.seconds > 0 else ""
    words = f"{outcome.n_frames} frames, {outcome.n_words} words"
    return f"{outcome.video_id}: {words}, {outcome.seconds:.1f} s{speed}"


def _duration(seconds: float) -> str:
    """A few characters, such as 45 s, 12 min, 3 h 20 min."""
    if seconds == float("inf"):
        return "? s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
