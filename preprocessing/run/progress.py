"""Progress of a batch of videos: bars with speed and time left on a terminal, one plain line a video elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path

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
    """Process videos as :meth:`Preprocessor.many` does, with progress on stderr and a closing table on stdout.

    For the other arguments and the exceptions see there.

    Args:
        on_failure: called with one line for each video that fails: of those that are refused before the work begins,
            of the others after the table.

    Returns:
        The outcome of each video, in the order of ``sources``.
    """
    make_room(out)
    planned, jobs = preprocessor.plan(sources, out, overwrite=overwrite)
    n_skipped = sum(outcome.done for outcome in planned)
    if n_skipped:
        print(f"already done: {n_skipped} of {len(sources)} videos", file=sys.stderr)
    outcomes = {outcome.video_id: outcome for outcome in planned}
    for outcome in planned:
        if not outcome.done:
            on_failure(outcome.problem)
    with _BatchProgress({job.source.video_id: job.size for job in jobs}) as progress:
        for outcome in preprocessor.run(jobs, engine=engine, status=progress.report):
            progress.finished(outcome)
            outcomes[outcome.video_id] = outcome
    ordered = [outcomes[source.video_id] for source in sources]
    _print_closing_table(ordered, out)
    for outcome in ordered:
        if not outcome.done and outcome not in planned:
            on_failure(outcome.problem)
    return ordered


def print_plan(preprocessor: Preprocessor, sources: Sequence[Source], out: Path, *, overwrite: bool) -> list[str]:
    """Print what would be done, and open the videos to see whether it can be; returns the problems, one line each."""
    planned, jobs = preprocessor.plan(sources, out, overwrite=overwrite)
    outcomes = {outcome.video_id: outcome for outcome in planned}
    found = {job.source.video_id: (job, picture) for job, picture in preprocessor.inspect(jobs)}
    rows, problems = [], []
    for source in sources:
        size, picture = "", ""
        if source.video_id in found:
            job, result = found[source.video_id]
            size, todo = f"{job.size / 1e6:.1f}", job.reason or "all stages"
            problem = str(result) if isinstance(result, Exception) else ""
            picture = "" if problem else str(result)
        else:
            todo, problem = "nothing: already done", outcomes[source.video_id].problem
        if problem:
            todo = f"CANNOT BE DONE: {problem}"
            problems.append(problem)
        rows.append([source.video_id, str(source.path), size, picture, todo])
    n_bytes, n_done = sum(job.size for job in jobs), sum(outcome.done for outcome in planned)
    title = f"{len(jobs)} of {len(sources)} videos to do, {n_bytes / 1e6:.1f} MB; {n_done} already in {out}"
    print_table(title, ["video", "file", "MB", "picture", "to do"], rows)
    return problems


class _BatchProgress:
    """Shows a batch; time left is estimated from bytes of video, because videos differ in length."""

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
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[detail]}", markup=False),
            console=self._console,
            transient=True,
            disable=not (self._console.is_terminal and sizes),
        )
        self._all = self._bars.add_task("all videos", total=sum(self._sizes.values()), detail="loading models")

    def __enter__(self) -> _BatchProgress:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def report(self, report: Report) -> None:
        """Show the progress of one video."""
        name = report.video_id
        self._running[name] = report
        if name not in self._tasks:
            short = name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 3] + "..."
            self._tasks[name] = self._bars.add_task(short, total=1.0, detail="")
        self._bars.update(self._tasks[name], completed=report.share, detail=report.text)
        self._update_all()

    def finished(self, outcome: Outcome) -> None:
        """Print the outcome of one video."""
        self._n_finished += 1
        self._bytes_finished += self._sizes[outcome.video_id]
        self._frames_finished += outcome.n_frames
        self._running.pop(outcome.video_id, None)
        left = f"; {self._left()} left" if self._n_finished < len(self._sizes) else ""
        line = f"[{self._n_finished}/{len(self._sizes)}] {_line(outcome)}{left}"
        self._console.print(Text(line), soft_wrap=True)
        if outcome.video_id in self._tasks:
            self._bars.remove_task(self._tasks.pop(outcome.video_id))
        self._update_all()

    def _bytes_done(self) -> float:
        running = (self._sizes[report.video_id] * report.share for report in self._running.values())
        return self._bytes_finished + sum(running)

    def _left(self) -> str:
        done = self._bytes_done()
        if not done:
            return "?"
        left_s = (time.monotonic() - self._begin) * (sum(self._sizes.values()) / done - 1)
        return str(timedelta(seconds=round(left_s)))

    def _update_all(self) -> None:
        frames = self._frames_finished + sum(report.n_frames for report in self._running.values())
        speed = frames / (time.monotonic() - self._begin)
        detail = f"{self._n_finished}/{len(self._sizes)} videos, {speed:.0f} frames/s, {self._left()} left"
        self._bars.update(self._all, completed=self._bytes_done(), detail=detail)


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
