"""Worker processes of this machine."""

from __future__ import annotations

import logging
import os
import pickle
import select
import signal
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, wait
from contextlib import closing, contextmanager, suppress
from functools import partial
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection
from threading import Thread
from typing import Any, NoReturn

from pebble import ProcessExpired, ProcessPool

from preprocessing.console import set_up_logging
from preprocessing.errors import InputError
from preprocessing.run.workers import LONGEST_SILENCE_S, Job, JobLoop, Lost, Result, Status, Worker, distribute

log = logging.getLogger("rcma.preprocessing")

_PATIENCE_S = 5.0
"""How long a worker may take to clean up after its parent is gone."""


def run_on_processes(
    jobs: Iterable[Job],
    setup: Callable[[], Worker[Job, Result]],
    *,
    n_workers: int,
    status: Status = lambda _: None,
    longest_silence_s: float = LONGEST_SILENCE_S,
) -> Generator[tuple[Job, Result | Lost]]:
    """Do ``jobs`` in spawned processes of this machine; yields each result when it is known.

    Closing the iterator, Ctrl-C, and the end of this process, however it ends, end the workers by ``SystemExit``, so
    that they clean up. ``setup`` makes the worker; it is pickled, and called once in each process. For the other
    arguments and the exceptions see :func:`preprocessing.run.distribute`.
    """
    start = partial(_PebbleProcess, pickle.dumps(setup))
    return distribute(jobs, start, n_workers=n_workers, status=status, longest_silence_s=longest_silence_s)


@contextmanager
def separate_process(*, status: Status = lambda _: None) -> Iterator[Callable[..., Any]]:
    """Give a function that runs functions in another process, which is started at the first call.

    ``call(name, function, *arguments)`` returns ``function(*arguments, status=...)``. It raises InputError where the
    function does; where the function raises another exception or crashes its process, the InputError begins with
    ``name``, which says what the function works on.
    """
    requests: deque[partial[Any]] = deque()
    # Endless; a request is taken only when the last one has been answered.
    results = run_on_processes(iter(requests.popleft, None), _Caller, n_workers=1, status=status)

    def call(name: object, function: Callable[..., Any], *arguments: object) -> Any:
        requests.append(partial(function, *arguments))
        _, result = next(results)
        if isinstance(result, Lost):
            raise InputError(f"{name}: {result.reason}")
        if isinstance(result, InputError):
            raise result
        return result

    with closing(results):
        yield call


class _Caller:
    """The worker of :func:`separate_process`."""

    def __call__(self, job: partial[Any], *, status: Status) -> Any:
        try:
            return job(status=status)
        except InputError as error:
            return error


class _PebbleProcess:
    """One worker process: a pool of one, so that a process that is killed holds no lock that others wait for."""

    def __init__(self, setup: bytes) -> None:
        # fork would be faster to start, but a forked child must not touch CUDA, and inherits locks of other threads.
        context = get_context("spawn")
        self._reports, self._sender = context.Pipe(duplex=False)
        self._pool = ProcessPool(
            max_workers=1, initializer=_begin, initargs=(setup, self._sender, log.getEffectiveLevel()), context=context
        )
        self._pid: int | None = None
        self._future: Future[bytes]

    def submit(self, job: bytes | None) -> Future[bytes]:
        # Ctrl-C goes to all processes of a terminal; a child that is just starting would print a traceback. What is
        # blocked here stays blocked in the child, and is delivered to this process afterwards.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._future = self._pool.schedule(_do, args=(job,))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return self._future

    def read_reports(self) -> list[str]:
        texts = []
        while self._reports.poll():
            report = self._reports.recv()
            if isinstance(report, str):
                texts.append(report)
            elif self._pid is None:
                # A second one is of the process that Pebble has started in place of the first.
                self._pid = report
        self._fail_if_gone()
        return texts

    def _fail_if_gone(self) -> None:
        """Pebble takes the end of a process with exit code 0 for no failure, and would wait for its result."""
        if self._pid is not None and not _is_running(self._pid) and not wait([self._future], timeout=1.0).done:
            self._future.cancel()

    def explain(self, future: Future[bytes]) -> str:
        error = ProcessExpired("cancelled", code=0) if future.cancelled() else future.exception()
        if not isinstance(error, ProcessExpired):
            return f"it could not be started: {type(error).__name__}"
        code = error.exitcode
        if code >= 0:
            return f"exit code {code}"
        memory = "; out of memory?" if code == -signal.SIGKILL else ""
        return f"killed by signal {-code}, {signal.strsignal(-code)}{memory}"

    def stop(self) -> None:
        self._pool.stop()
        self._pool.join()
        self._reports.close()
        self._sender.close()


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


# What follows runs in the worker process.

_loop: JobLoop


def _begin(setup: bytes, sender: Connection, log_level: int) -> None:
    global _loop
    Thread(target=_end_with_parent, daemon=True).start()
    set_up_logging(log_level)
    os.set_blocking(sender.fileno(), False)
    # Unpickling may import much, and fail: within the first job, whose answer tells.
    _loop = JobLoop(lambda: pickle.loads(setup)(), partial(_send, sender))
    sender.send(os.getpid())


def _do(job: bytes | None) -> bytes:
    # While a job is done, by an exception, so that what is half-written is removed.
    before = signal.signal(signal.SIGTERM, _exit_by_signal)
    try:
        return _loop.do(job)
    except SystemExit as exit:
        # Pebble would take it for the result of the job.
        os._exit(exit.code if isinstance(exit.code, int) else 1)
    finally:
        signal.signal(signal.SIGTERM, before)


def _exit_by_signal(number: int, frame: object) -> NoReturn:
    raise SystemExit(128 + number)


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_PATIENCE_S)
    os._exit(1)


def _send(sender: Connection, text: str) -> None:
    # Up to this length a pipe takes all or nothing: a process that is killed leaves no half of a message, and where
    # nobody reads, the text is lost and nobody waits.
    if len(pickle.dumps(text)) < select.PIPE_BUF - 8:
        with suppress(OSError):
            sender.send(text)
