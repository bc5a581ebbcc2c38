"""Workers that do one job after another, each in a process of its own: on this machine, or on a Ray cluster."""

from __future__ import annotations

import logging
import math
import os
import pickle
import select
import signal
import socket
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for_connections
from typing import Any, Generic, NoReturn, Protocol, TypeVar

from preprocessing.errors import InputError

log = logging.getLogger("rcma.preprocessing")

_PATIENCE_S = 10.0
"""How long a worker process may take to clean up before it is killed, and a cluster to answer."""

_POLL_S = 0.2
"""How often Ray's workers are asked for their status."""

_LONGEST_STATUS = 1000
"""Characters; short enough never to block a connection that takes anything at all."""

Status = Callable[[str], None]
"""Is told in a few words what is being done now."""

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
    """What comes instead of a result when the worker process died on a job, and another one as well."""

    reason: str
    """One line for people."""


def run_on_processes(
    jobs: Sequence[Job], setup: Callable[[], Worker[Job, Result]], *, n_workers: int, status: Status
) -> Iterator[tuple[Job, Result | Lost]]:
    """Do ``jobs`` in spawned processes of this machine; yields each result when it is known.

    Each worker gets the next job when it is free. The job of a process that dies is tried once more in a new one.
    Closing the iterator, and Ctrl-C, end the workers by ``SystemExit``, so that they clean up.

    Args:
        jobs: handed out in this order; they and their results are pickled.
        setup: makes the worker; called in each process, so it must be picklable.
        n_workers: how many processes at most.
        status: is told, between the results, what the workers say.

    Raises:
        Exception: whatever ``setup`` or the worker raises, as it is; it ends everything.
    """
    # fork would be quicker to start, but a forked child must not touch CUDA, and inherits locks of other threads.
    return _work_through(jobs, n_workers, partial(_Process, setup), partial(_wait_for_process, status))


def run_on_ray(
    jobs: Sequence[Job],
    setup: Callable[[], Worker[Job, Result]],
    *,
    n_workers: int | None,
    address: str | None,
    cpus_per_worker: float,
    gpus_per_worker: float,
    status: Status,
) -> Iterator[tuple[Job, Result | Lost]]:
    """Do ``jobs`` in actors of a Ray cluster; yields each result when it is known.

    As :func:`run_on_processes`, but closing the iterator kills the workers without giving them time to clean up. Every
    node must have this project installed, and see the files that the jobs name under the same paths.

    Args:
        jobs: see :func:`run_on_processes`.
        setup: see :func:`run_on_processes`.
        n_workers: how many actors at most; never more than fit onto the cluster, which is also the default.
        address: ``host:port`` of a cluster that this machine is a node of. None: what ``RAY_ADDRESS`` says, or the
            cluster that runs on this machine, or else one that is started here and ended afterwards. Not used where
            this process is connected already.
        cpus_per_worker: CPUs that Ray reserves for each actor.
        gpus_per_worker: GPUs that Ray reserves for each actor; below 1, several actors share one.
        status: see :func:`run_on_processes`.

    Raises:
        InputError: Ray is not installed, does not answer, has no node with room for one worker, or has a node on
            which this project cannot be imported.
        Exception: see :func:`run_on_processes`.
    """
    if not jobs:
        return
    ray = _import_ray()
    connect = not ray.is_initialized()
    if connect:
        _connect(ray, address)
    try:
        crew = _RayCrew(ray, setup, cpus=cpus_per_worker, gpus=gpus_per_worker, status=status)
        room = crew.room()
        if n_workers is not None and n_workers > room:
            log.warning("the Ray cluster has room for %d workers at the same time, not %d", room, n_workers)
        wanted = room if n_workers is None else min(n_workers, room)
        # An infinite room is that of workers that reserve nothing.
        yield from _work_through(jobs, int(min(wanted, len(jobs))), crew.hire, crew.wait)
    finally:
        if connect:
            ray.shutdown()


class _DiedError(Exception):
    """The worker process is gone; says how."""


@dataclass(frozen=True)
class _Raised:
    """Instead of a result: what ``setup`` or the worker raised."""

    error: Exception


class _Member(Protocol[Job_contra, Result_co]):
    """One worker process as seen from here, whatever the engine."""

    def give(self, job: Job_contra) -> None:
        """Let it begin with a job."""

    def result(self) -> Result_co:
        """Of the job that it has ended; raises _DiedError, or what was raised there."""

    def stop(self) -> None:
        """Ask it to end, whatever it does, without waiting for that."""

    def join(self) -> None:
        """Wait until it has ended."""


M = TypeVar("M", bound=_Member[Any, Any])


def _work_through(
    jobs: Sequence[Job], n_workers: int, hire: Callable[[], M], wait: Callable[[Sequence[M]], M]
) -> Iterator[tuple[Job, Any]]:
    """The loop of both engines; ``wait`` returns one of the given members as soon as it has ended its job."""
    if n_workers < 1:
        raise ValueError(f"{n_workers} workers do no jobs")
    waiting = deque((job, False) for job in jobs)
    hired: list[M] = []
    free: list[M] = []
    busy: dict[M, tuple[Job, bool]] = {}
    outcome: tuple[Job, Any] | None = None
    try:
        while True:
            while waiting and len(busy) < n_workers:
                if not free:
                    free.append(hire())
                    hired.append(free[-1])
                job, again = waiting.popleft()
                free[-1].give(job)
                busy[free.pop()] = job, again
            # There is nothing left for these; on Ray, members that still wait for a place may need theirs.
            while free:
                free.pop().stop()
            if outcome is not None:
                yield outcome
                outcome = None
            if not busy:
                return
            member = wait(list(busy))
            job, again = busy.pop(member)
            try:
                outcome = job, member.result()
                free.append(member)
            except _DiedError as died:
                member.stop()
                log.debug("a worker process died on %s: %s", job, died)
                if again:
                    outcome = job, Lost(f"the worker process died twice ({died})")
                else:
                    waiting.appendleft((job, True))
    finally:
        for member in hired:
            member.stop()
        for member in hired:
            member.join()


class _Desk(Generic[Job, Result]):
    """The worker's side of both engines: makes the worker at the first job, and answers in bytes."""

    def __init__(self, setup: Callable[[], Worker[Job, Result]]) -> None:
        self._setup = setup
        self._worker: Worker[Job, Result] | None = None

    def answer(self, job: Job, status: Status) -> bytes:
        try:
            if self._worker is None:
                self._worker = self._setup()
            return pickle.dumps(self._worker(job, status=status))
        except Exception as error:
            return _pickle_error(error, note=f"In the worker process:\n{traceback.format_exc()}")


def _pickle_error(error: Exception, *, note: str) -> bytes:
    error.add_note(note)
    try:
        answer = pickle.dumps(_Raised(error))
        # Exceptions with arguments of their own are often pickled well and cannot be read back.
        pickle.loads(answer)
    except Exception:
        substitute = RuntimeError(f"{type(error).__name__}: {error}")
        substitute.add_note(note)
        answer = pickle.dumps(_Raised(substitute))
    return answer


def _open_answer(answer: bytes) -> Any:
    result = pickle.loads(answer)
    if isinstance(result, _Raised):
        raise result.error
    return result


class _Process(Generic[Job, Result]):
    """A worker in a process of this machine.

    A pipe of its own, rather than a queue for all: a process that is killed leaves no lock behind, and the end of its
    pipe says at once whose job was lost.
    """

    def __init__(self, setup: Callable[[], Worker[Job, Result]]) -> None:
        context = get_context("spawn")
        self.connection, theirs = context.Pipe()
        # daemon: ended with this process even where nobody closes the iterator.
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        self._answer: bytes | None = None
        # Not an argument of the process: reading it imports what the worker needs, and until _serve is reached, Ctrl-C
        # would print a traceback.
        self._send(setup)

    def give(self, job: Job) -> None:
        self._send(job)

    def _send(self, message: object) -> None:
        # To one that has died: the answer will tell.
        with suppress(OSError):
            self.connection.send(message)

    def has_ended_job(self, status: Status) -> bool:
        """Take in the next thing that it says."""
        try:
            message = self.connection.recv()
        except (EOFError, OSError):
            message = None
        if isinstance(message, str):
            status(message)
            return False
        self._answer = message
        return True

    def result(self) -> Result:
        if self._answer is None:
            self.join()
            raise _DiedError(_describe_exit(self._process.exitcode))
        result: Result = _open_answer(self._answer)
        return result

    def stop(self) -> None:
        self._process.terminate()

    def join(self) -> None:
        self._process.join(_PATIENCE_S)
        self._process.kill()
        self._process.join()
        self.connection.close()


def _wait_for_process(status: Status, members: Sequence[_Process[Any, Any]]) -> _Process[Any, Any]:
    by_connection = {member.connection: member for member in members}
    while True:
        for connection in wait_for_connections(list(by_connection)):
            member = by_connection[connection]  # type: ignore[index]
            if member.has_ended_job(status):
                return member


def _describe_exit(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exit code {code}"
    return f"killed by signal {-code}" + ("; out of memory?" if -code == signal.SIGKILL else "")


def _serve(connection: Connection) -> None:
    """Main function of a worker process."""
    # Ctrl-C goes to all processes of a terminal; that the work ends is said by the parent alone, once.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _exit_by_signal)
    status = partial(_tell, connection)
    # The other end is gone where the parent has been killed.
    with suppress(EOFError, OSError):
        desk: _Desk[Any, Any] = _Desk(connection.recv())
        while True:
            connection.send(desk.answer(connection.recv(), status))


def _exit_by_signal(number: int, frame: object) -> NoReturn:
    sys.exit(128 + number)


def _tell(connection: Connection, text: str) -> None:
    # Where nobody reads, it is lost.
    with suppress(OSError, ValueError):
        if select.select([], [connection], [], 0)[1]:
            connection.send(text[:_LONGEST_STATUS])


def _import_ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # What the node's daemon has to say of a dead worker is long, goes to stdout, and is said by our own code.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    # Likewise that a worker was stopped before it was up.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        import ray
    except ImportError:
        raise InputError('--engine ray: Ray is not installed; pip install "rcma[ray]"') from None
    return ray


def _connect(ray: Any, address: str | None) -> None:
    given = address or os.environ.get("RAY_ADDRESS")
    named = f"--ray-address {address}" if address else f"RAY_ADDRESS {given}" if given else "--engine ray"
    # Ray itself would try for two minutes, and then end the process.
    host, _, port = (given or "").removeprefix("ray://").rpartition(":")
    if port.isdigit():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE_S).close()
        except (OSError, OverflowError) as error:
            raise InputError(f"{named}: no Ray cluster answers there: {error}") from None
    try:
        ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (Exception, SystemExit) as error:
        raise InputError(f"{named}: cannot be used: {' '.join(str(error).split())}") from None


class _RayCrew(Generic[Job, Result]):
    """What the workers on Ray have in common."""

    def __init__(
        self, ray: Any, setup: Callable[[], Worker[Job, Result]], *, cpus: float, gpus: float, status: Status
    ) -> None:
        self._ray, self._setup, self._status = ray, setup, status
        self._cpus, self._gpus = cpus, gpus
        if min(cpus, gpus) < 0 or (gpus > 1 and gpus % 1):
            wanted = "a whole number of GPUs, or a share of one between 0 and 1"
            raise InputError(f"--engine ray: {_describe_size(cpus, gpus)} for each worker: Ray gives {wanted}")
        self._actor_class = ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=0)(_Actor)
        # A worker whose words are not taken up fast enough gets an error here, and does not gather them.
        self._board = ray.remote(num_cpus=0, max_pending_calls=100)(_Board).remote()
        self._news: Any = None

    def room(self) -> float:
        """How many workers fit onto the cluster as it is now, what others reserve included."""
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        room = sum(workers_on_node(node, cpus=self._cpus, gpus=self._gpus) for node in nodes)
        if room:
            return room
        sizes = sorted({(node.get("CPU", 0), node.get("GPU", 0)) for node in nodes}, reverse=True)
        raise InputError(
            f"--engine ray: no node has room for a worker with {_describe_size(self._cpus, self._gpus)}; the cluster "
            f"has {len(nodes)} nodes, of {' or '.join(_describe_size(*size) for size in sizes)}"
        )

    def hire(self) -> _RayMember[Job, Result]:
        # A node may have died: what fits nowhere any more would be waited for without end.
        self.room()
        return _RayMember(self._ray, self._actor_class.remote(self._setup, self._board))

    def wait(self, members: Sequence[_RayMember[Any, Any]]) -> _RayMember[Any, Any]:
        by_reference = {member.reference: member for member in members}
        while True:
            ready, _ = self._ray.wait(list(by_reference), num_returns=1, timeout=_POLL_S)
            self._pass_on_status()
            if ready:
                return by_reference[ready[0]]

    def _pass_on_status(self) -> None:
        if self._news is None:
            self._news = self._board.take.remote()
        if not self._ray.wait([self._news], timeout=0)[0]:
            return
        texts: list[str] = []
        with suppress(self._ray.exceptions.RayError):
            texts = self._ray.get(self._news)
        self._news = None
        for text in texts:
            self._status(text)


def workers_on_node(resources: Mapping[str, float], *, cpus: float, gpus: float) -> float:
    """How many workers that reserve so many CPUs and GPUs fit onto a node; infinite for those that reserve nothing."""
    # Tenths do not add up to whole numbers.
    almost = 1e-6
    by_cpus = math.floor(resources.get("CPU", 0) / cpus + almost) if cpus else math.inf
    if not gpus:
        return by_cpus
    n_gpus = resources.get("GPU", 0)
    # A worker's share lies on one GPU.
    by_gpus = math.floor(n_gpus) * math.floor(1 / gpus + almost) if gpus < 1 else math.floor(n_gpus / gpus)
    return min(by_cpus, by_gpus)


def _describe_size(cpus: float, gpus: float) -> str:
    return f"{cpus:g} CPUs and {gpus:g} GPUs"


class _RayMember(Generic[Job, Result]):
    """A worker in a Ray actor."""

    def __init__(self, ray: Any, actor: Any) -> None:
        self._ray, self._actor = ray, actor
        self.reference: Any = None

    def give(self, job: Job) -> None:
        self.reference = self._actor.do.remote(job)

    def result(self) -> Result:
        errors = self._ray.exceptions
        try:
            answer = self._ray.get(self.reference)
        except errors.RayTaskError as error:
            # What worker and setup raise comes as an answer.
            raise _not_installed(error) from None
        except errors.OutOfMemoryError:
            raise _DiedError("ended by Ray: its node ran out of memory") from None
        except errors.RayError as error:
            text = str(error)
            log.debug("%s", text)
            if "creation task" in text:
                raise _not_installed(error) from None
            raise _DiedError(
                "its node died" if "node has died" in text else "killed or crashed; out of memory?"
            ) from None
        result: Result = _open_answer(answer)
        return result

    def stop(self) -> None:
        self._ray.kill(self._actor)

    def join(self) -> None:
        """The cluster sees to that."""


def _not_installed(error: Exception) -> InputError:
    last_line = str(error).strip().splitlines()[-1]
    return InputError(f"--engine ray: a node cannot run this project; the same version on every node? {last_line}")


class _Actor(Generic[Job, Result]):
    """Main class of a worker process on Ray."""

    def __init__(self, setup: Callable[[], Worker[Job, Result]], board: Any) -> None:
        self._desk = _Desk(setup)
        self._board = board

    def do(self, job: Job) -> bytes:
        return self._desk.answer(job, self._tell)

    def _tell(self, text: str) -> None:
        # Nothing that is wrong with the board, or with the network, may disturb the work.
        with suppress(Exception):
            self._board.put.remote(text[:_LONGEST_STATUS])


class _Board:
    """Where workers on Ray put what they are doing, for the caller to take."""

    def __init__(self) -> None:
        self._texts: deque[str] = deque(maxlen=100)

    def put(self, text: str) -> None:
        self._texts.append(text)

    def take(self) -> list[str]:
        texts = list(self._texts)
        self._texts.clear()
        return texts
