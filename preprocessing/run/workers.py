"""Hands out jobs to workers, and tries a job once more when it takes its worker with it.

Workers of this machine are in :mod:`.processes`, those of a Ray cluster in :mod:`.ray_engine`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Sequence
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any, Protocol, TypeVar

from preprocessing.errors import InputError

log = logging.getLogger("rcma.preprocessing")

LONGEST_SILENCE_S = 3600.0
"""A job that reports nothing for so long is given up. Some stages report nothing while they work: reading the sound and
the checksum of the largest recordings takes many minutes."""
POLL_S = 0.1
"""How often reports are read."""

Status = Callable[[Any], None]
"""Receives small objects that say how far a job is. Never blocks; a report may be lost."""
Setup = Callable[[], Callable[..., Any]]
"""Called once in each worker process; returns a function that does one job: ``do(job, status=status)``."""
Job = TypeVar("Job")


class SetupError(InputError):
    """No worker can be set up: this ends everything."""


class DiedError(Exception):
    """A worker process ended before its job was done; the message says how."""


class DiedInSetupError(DiedError):
    """A worker process ended in ``setup``."""


class Worker(Protocol):
    """A worker process, as the calling process sees it."""

    def do(self, name: str, job: Any) -> Any:
        """Do one job, in a new process if there is none; raises InputError, or one of the errors above.

        ``name`` names the job in messages.
        """

    def stop(self) -> None:
        """End the process, whatever it does; returns when it has ended."""


def distribute(
    jobs: Sequence[Job],
    make_worker: Callable[[Status, Event], Worker],
    *,
    n_workers: int,
    status: Status = lambda _: None,
) -> Generator[tuple[Job, Any]]:
    """Do ``jobs`` on workers; yields each result, or an InputError in its place, when it is known.

    Each worker gets the next job when it is free. Closing the iterator ends the processes.

    Args:
        jobs: handed out in this order; pickled. ``str(job)`` names one in messages.
        make_worker: its arguments are a function for reports, and an event upon which :meth:`Worker.do` raises
            CancelledError.
        n_workers: how many workers at most.
        status: receives, between the results, what the workers report.

    Raises:
        SetupError: ``setup`` raises an exception, or no process survives it.
    """
    if not jobs:
        return
    waiting = iter(list(jobs))  # whose next() threads may share
    events: SimpleQueue[tuple[str, Any]] = SimpleQueue()
    stopping, any_done = Event(), Event()

    def work() -> None:
        worker = make_worker(lambda report: events.put(("report", report)), stopping)
        try:
            for job in waiting:
                events.put(("result", (job, try_twice(worker, str(job), job, any_done))))
        except Exception as error:
            events.put(("error", error))
        finally:
            # At once: on Ray, workers that wait for a place may need this one's.
            worker.stop()

    # Daemons: an iterator that was left open does not keep the interpreter from ending.
    threads = [Thread(target=work, daemon=True) for _ in range(max(1, min(n_workers, len(jobs))))]
    for thread in threads:
        thread.start()
    n_left = len(jobs)
    try:
        while n_left:
            kind, value = events.get()
            if kind == "report":
                status(value)
            elif kind == "error":
                raise value
            else:
                n_left -= 1
                yield value
    finally:
        stopping.set()
        for thread in threads:
            thread.join()


def try_twice(worker: Worker, name: str, job: Any, any_done: Event) -> Any:
    """Do a job, once more if its process dies; returns its result, or an InputError that says why there is none.

    Raises:
        SetupError: ``setup`` raises an exception, or two processes die in it and ``any_done`` was never set.
    """
    for _ in range(2):
        try:
            result = worker.do(name, job)
        except SetupError:
            raise
        except InputError as error:
            result = error
        except DiedError as error:
            log.debug("a worker process died on %s: %s", name, error)
            death = error
            continue
        any_done.set()
        return result
    if isinstance(death, DiedInSetupError) and not any_done.is_set():
        raise SetupError(f"worker processes die before they are set up ({death})")
    return InputError(f"{name}: the worker process died twice ({death})")
