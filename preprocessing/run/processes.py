"""Worker processes of this machine."""

from __future__ import annotations

import logging
import math
import os
import pickle
import select
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, wait
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection
from threading import Event, Thread
from typing import Any, NoReturn

from pebble import ProcessExpired, ProcessPool

from preprocessing.console import set_up_logging
from preprocessing.errors import InputError
from preprocessing.run.workers import (
    LONGEST_SILENCE_S,
    POLL_S,
    DiedError,
    DiedInSetupError,
    Setup,
    SetupError,
    Status,
    try_twice,
)

log = logging.getLogger("rcma.preprocessing")

_SET_UP = "a worker cannot be set up"
_PATIENCE_S = 5.0
"""How long a worker may take to clean up after its parent is gone."""


@contextmanager
def separate_process(*, status: Status = lambda _: None) -> Iterator[Callable[..., Any]]:
    """Give a function that runs functions in another process, which is started at the first call.

    ``call(name, function, *arguments)`` returns ``function(*arguments, status=...)``. It raises InputError where the
    function does. Where the function raises another exception or crashes its process twice, the message of the
    InputError begins with ``name``, which says what the function works on.
    """
    worker, any_done = LocalWorker(_set_up_calls, status, Event()), Event()

    def call(name: object, function: Callable[..., Any], *arguments: object) -> Any:
        result = try_twice(worker, str(name), partial(function, *arguments), any_done)
        if isinstance(result, InputError):
            raise result
        return result

    try:
        yield call
    finally:
        worker.stop()


def _set_up_calls() -> Callable[..., Any]:
    return lambda function, *, status: function(status=status)


class LocalWorker:
    """A worker in a spawned process, which ends by ``SystemExit``, so that it cleans up, however this process ends."""

    def __init__(
        self, setup: Setup, status: Status, stopping: Event, *, longest_silence_s: float = LONGEST_SILENCE_S
    ) -> None:
        """Prepare; for the arguments see :func:`preprocessing.run.workers.distribute`. No process is started yet."""
        self._setup, self._status, self._stopping = setup, status, stopping
        self._longest_silence_s = longest_silence_s
        self._pool: ProcessPool | None = None
        self._reports: Connection

    def do(self, name: str, job: Any) -> Any:
        """See :class:`preprocessing.run.workers.Worker`."""
        if self._pool is None:
            try:
                self._wait(_SET_UP, self._start(), math.inf)
            except InputError as error:
                raise SetupError(str(error)) from None
            except DiedError as error:
                raise DiedInSetupError(str(error)) from None
        assert self._pool is not None
        future: Future[Any] = self._pool.schedule(_call, args=(name, _do, job))
        return self._wait(name, future, self._longest_silence_s)

    def stop(self) -> None:
        """End the process, whatever it does; returns when it has ended."""
        if self._pool is not None:
            self._pool.stop()
            self._pool.join()
            self._pool = None
            self._reports.close()

    def _start(self) -> Future[Any]:
        # fork would be faster, but a forked child must not touch CUDA, and inherits locks of other threads.
        context = get_context("spawn")
        self._reports, sender = context.Pipe(duplex=False)
        # A pool of one: a process that is killed holds no lock that others wait for.
        self._pool = ProcessPool(1, initializer=_begin, initargs=(sender, log.getEffectiveLevel()), context=context)
        # Ctrl-C goes to all processes of a terminal; a child that is just starting would print a traceback. What is
        # blocked here stays blocked in the child, and is delivered to this process afterwards.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            future: Future[Any] = self._pool.schedule(_call, args=(_SET_UP, _set_up, self._setup))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        # Without this end of the pipe, Pebble cannot start another process in place of this one. So a job fails even if
        # its process ends with exit code 0, after which Pebble would wait for the result.
        sender.close()
        return future

    def _wait(self, name: str, future: Future[Any], longest_silence_s: float) -> Any:
        heard_s, done = time.monotonic(), False
        while not done:
            done = bool(wait([future], timeout=POLL_S).done)
            with suppress(EOFError):
                while self._reports.poll():
                    self._status(self._reports.recv())
                    heard_s = time.monotonic()
            if self._stopping.is_set():
                raise CancelledError
            if time.monotonic() - heard_s > longest_silence_s:
                self.stop()
                raise InputError(f"{name}: stuck: no progress for {longest_silence_s / 60:.0f} minutes")
        error = future.exception()
        if error is not None:
            self.stop()
            raise DiedError(_explain(error))
        result = future.result()
        if isinstance(result, InputError):
            raise result
        return result


def _explain(error: BaseException) -> str:
    if not isinstance(error, ProcessExpired):
        return f"it ended early: {type(error).__name__}"
    code = error.exitcode
    if code >= 0:
        return f"exit code {code}"
    memory = "; out of memory?" if code == -signal.SIGKILL else ""
    return f"killed by signal {-code}, {signal.strsignal(-code)}{memory}"


# The rest runs in the worker process.

_work: Callable[..., Any]
_report: Status


def _begin(sender: Connection, log_level: int) -> None:
    global _report
    Thread(target=_end_with_parent, daemon=True).start()
    set_up_logging(log_level)
    os.set_blocking(sender.fileno(), False)
    _report = partial(_send, sender)


def _set_up(setup: Setup) -> None:
    global _work
    _work = setup()


def _do(job: Any) -> Any:
    return _work(job, status=_report)


def _call(name: str, function: Callable[[Any], Any], argument: Any) -> Any:
    """Call a function; exceptions, which may be impossible to pickle, become an InputError in place of the result."""
    # By an exception, so that what is half-written is removed; but not between two calls, where the interpreter would
    # print it.
    before = signal.signal(signal.SIGTERM, _exit_by_signal)
    try:
        return function(argument)
    except InputError as error:
        return error
    except SystemExit as exit:
        # Pebble would take it for the result.
        os._exit(exit.code if isinstance(exit.code, int) else 1)
    except Exception as error:
        log.debug("traceback of an error in a worker process", exc_info=True)
        return InputError(f"{name}: {type(error).__name__}: {' '.join(str(error).split())}")
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


def _send(sender: Connection, report: Any) -> None:
    # Up to this length a pipe takes all or nothing: a process that is killed leaves no half of a message, and where
    # nobody reads, the report is lost and nobody waits.
    if len(pickle.dumps(report)) < select.PIPE_BUF - 8:
        with suppress(OSError):
            sender.send(report)
