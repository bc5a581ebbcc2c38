"""Worker processes that do one job after another; a job that crashes its process takes no other job along.

:func:`distribute` hands out the jobs of every engine. The processes of this machine are in
:mod:`preprocessing.processes`, those of a Ray cluster in :mod:`preprocessing.ray_engine`; :class:`JobLoop` is what runs
in each of them.
"""

from __future__ import annotations

import logging
import pickle
import time
import traceback
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from preprocessing.errors import InputError

log = logging.getLogger("rcma.preprocessing")

LONGEST_SILENCE_S = 3600.0
"""A job whose worker has reported nothing for so long is given up. Some stages report nothing while they work: reading
the sound and the checksum of the largest recordings takes many minutes."""

_POLL_S = 0.1
"""How often workers are asked for their status."""

Status = Callable[[str], None]
"""Receives a short text that says how far a job is."""

Job = TypeVar("Job")
Result = TypeVar("Result")
Job_contra = TypeVar("Job_contra", contravariant=True)
Result_co = TypeVar("Result_co", covariant=True)


class Worker(Protocol[Job_contra, Result_co]):
    """What ``setup`` makes, once in each worker process."""

    def __call__(self, job: Job_contra, *, status: Status) -> Result_co:
        """Do one job; ``status`` never blocks, and may lose what it is told."""
        ...


@dataclass(frozen=True)
class Lost:
    """Takes the place of a result: the job raised an exception, crashed its process twice, or got stuck."""

    reason: str
    """One line for people."""


@dataclass(frozen=True)
class _SetupFailed:
    """Takes the place of a result: ``setup`` raised an exception."""

    reason: str
    traceback: str


class JobLoop:
    """The worker's side: makes the worker, then does one job after another; answers in pickled bytes."""

    def __init__(self, setup: Callable[[], Worker[Any, Any]], report: Status) -> None:
        """Prepare; ``report`` sends a text to the calling process."""
        self._setup, self._report = setup, report
        self._worker: Worker[Any, Any] | None = None

    def do(self, job: bytes | None) -> bytes:
        """Do one job, or make the worker; every exception becomes part of the answer."""
        try:
            if self._worker is None:
                self._worker = self._setup()
        except Exception as error:
            reason = (
                str(error) if isinstance(error, InputError) else f"a worker cannot be set up: {_in_one_line(error)}"
            )
            return pickle.dumps(_SetupFailed(reason, traceback.format_exc()))
        try:
            result = None if job is None else self._worker(pickle.loads(job), status=self._report)
            return pickle.dumps(result)
        except Exception as error:
            log.debug("traceback of the error of a job", exc_info=True)
            return pickle.dumps(Lost(_in_one_line(error)))


class WorkerProcess(Protocol):
    """One worker process as the calling process sees it, whatever the engine."""

    def submit(self, job: bytes | None) -> Future[bytes]:
        """Let :class:`JobLoop` do a job, or for None make the worker; not before the last one is done."""

    def read_reports(self) -> Sequence[str]:
        """What has been reported since the last call."""

    def explain(self, future: Future[bytes]) -> str:
        """How the process ended that did not give the result; raises InputError where no other would do better."""

    def stop(self) -> None:
        """End the process, whatever it does; returns when it has ended."""


def distribute(
    jobs: Iterable[Job],
    start: Callable[[], WorkerProcess],
    *,
    n_workers: int,
    status: Status,
    longest_silence_s: float,
) -> Generator[tuple[Job, Any]]:
    """Do ``jobs`` in worker processes; yields each result, or :class:`Lost`, when it is known.

    Each process gets the next job when it is free. The job of a process that dies is tried once more in another one.
    Closing the iterator ends the processes.

    Args:
        jobs: handed out in this order, each taken from the iterable only when a worker is free; pickled.
        start: starts a worker process.
        n_workers: how many processes at most.
        status: receives, between the results, what the workers report.
        longest_silence_s: a job is given up when its worker, once set up, reports nothing for so long.

    Raises:
        InputError: ``setup`` raises an exception, or every worker dies in it; this ends everything.
    """
    if n_workers < 1:
        raise ValueError(f"{n_workers} workers do no jobs")
    tasks = (_Task(job, pickle.dumps(job)) for job in jobs)
    crashed: list[_Task] = []
    free: list[WorkerProcess] = []
    running: dict[Future[bytes], _Task] = {}
    was_set_up = False
    try:
        while True:
            while len(running) < n_workers and (task := crashed.pop() if crashed else next(tasks, None)) is not None:
                future = task.begin(free.pop()) if free else task.set_up(start())
                running[future] = task
            if not running:
                return
            if len(running) < n_workers:
                # No jobs are left for these; on Ray, processes that wait for a place may need theirs.
                _stop(free)
                free.clear()
            wait(running, timeout=_POLL_S, return_when=FIRST_COMPLETED)
            for task in running.values():
                task.pass_on_reports(status)
            settled = [future for future in running if future.done() or running[future].is_stuck(longest_silence_s)]
            for future in settled:
                task = running[future]
                if _succeeded(future):
                    result = _open_answer(future.result())
                    del running[future]
                    if task.is_begun:
                        free.append(task.process)
                        yield task.job, result
                    else:
                        was_set_up = True
                        running[task.begin(task.process)] = task
                    continue
                del running[future]
                is_stuck = not future.done()
                task.process.stop()
                if is_stuck:
                    yield task.job, Lost(f"stuck: no progress for {longest_silence_s / 60:.0f} minutes")
                elif not task.died_before(future):
                    crashed.append(task)
                elif was_set_up:
                    yield task.job, Lost(f"the worker process died twice ({task.death})")
                else:
                    raise InputError(f"worker processes die before they are set up ({task.death})")
    finally:
        _stop([*free, *(task.process for task in running.values())])


@dataclass
class _Task:
    """A job, and the process that does it."""

    job: Any
    pickled: bytes
    process: WorkerProcess = field(init=False)
    last_report_s: float | None = None
    """By the monotonic clock, from the beginning of the job; None while the process is set up."""
    death: str = ""
    """How the last process that did the job died, if one did."""

    def set_up(self, process: WorkerProcess) -> Future[bytes]:
        """Prepare a new process."""
        self.process, self.last_report_s = process, None
        return process.submit(None)

    def begin(self, process: WorkerProcess) -> Future[bytes]:
        """Give the job to a process that is set up."""
        self.process, self.last_report_s = process, time.monotonic()
        return process.submit(self.pickled)

    @property
    def is_begun(self) -> bool:
        return self.last_report_s is not None

    def pass_on_reports(self, status: Status) -> None:
        for text in self.process.read_reports():
            status(text)
            if self.is_begun:
                self.last_report_s = time.monotonic()

    def is_stuck(self, longest_silence_s: float) -> bool:
        return self.last_report_s is not None and time.monotonic() - self.last_report_s > longest_silence_s

    def died_before(self, future: Future[bytes]) -> bool:
        """Note how the process died; whether it is the second one."""
        is_second = bool(self.death)
        self.death = self.process.explain(future)
        log.debug("a worker process died on %s: %s", self.job, self.death)
        return is_second


def _succeeded(future: Future[bytes]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


def _stop(processes: Sequence[WorkerProcess]) -> None:
    # At the same time: each may take seconds to clean up.
    with ThreadPoolExecutor(max(1, len(processes))) as threads:
        list(threads.map(lambda process: process.stop(), processes))


def _open_answer(answer: bytes) -> Any:
    result = pickle.loads(answer)
    if isinstance(result, _SetupFailed):
        log.debug("in the worker process: %s", result.traceback)
        raise InputError(result.reason)
    return result


def _in_one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
