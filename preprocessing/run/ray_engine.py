"""Worker processes of a Ray cluster, one actor each."""

from __future__ import annotations

import logging
import math
import os
import socket
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from preprocessing.errors import InputError
from preprocessing.run.workers import LONGEST_SILENCE_S, Job, JobLoop, Lost, Result, Status, Worker, distribute

log = logging.getLogger("rcma.preprocessing")

_PATIENCE_S = 10.0
"""How long a cluster may take to answer."""
_MOST_REPORTS = 100
"""Kept by a worker until they are requested; older ones are dropped."""


def run_on_ray(
    jobs: Sequence[Job],
    setup: Callable[[], Worker[Job, Result]],
    *,
    n_workers: int | None,
    address: str | None,
    cpus_per_worker: float,
    gpus_per_worker: float,
    status: Status = lambda _: None,
    longest_silence_s: float = LONGEST_SILENCE_S,
) -> Iterator[tuple[Job, Result | Lost]]:
    """Do ``jobs`` in actors of a Ray cluster; yields each result when it is known.

    As :func:`preprocessing.run.run_on_processes`, but the workers are killed without time to clean up. Every node
    must have this project installed, and see the files that the jobs name under the same paths.

    Args:
        jobs: see :func:`preprocessing.run.distribute`; so are ``status`` and ``longest_silence_s``.
        setup: see :func:`preprocessing.run.processes.run_on_processes`.
        n_workers: how many actors at most; never more than fit onto the cluster, which is also the default.
        address: ``host:port`` of a cluster that this machine is a node of. None: what ``RAY_ADDRESS`` says, or the
            cluster that runs on this machine, or else one that is started here and ended afterwards. Not used where
            this process is connected already.
        cpus_per_worker: CPUs that Ray reserves for each actor.
        gpus_per_worker: GPUs that Ray reserves for each actor; below 1, several actors share one.

    Raises:
        InputError: Ray is not installed, does not answer, has no node with room for one worker, or has a node on
            which this project cannot be imported; or as :func:`preprocessing.run.distribute`.
    """
    if not jobs:
        return
    ray = _import_ray()
    connect = not ray.is_initialized()
    if connect:
        _connect(ray, address)
    try:
        size = {"cpus": cpus_per_worker, "gpus": gpus_per_worker}
        room = _room(ray, **size)
        if n_workers is not None and n_workers > room:
            log.warning("the Ray cluster has room for %d workers at the same time, not %d", room, n_workers)
        # Without end where workers reserve nothing.
        n_workers = int(min(room, len(jobs), n_workers or len(jobs)))
        # Two threads: one does the jobs, the other answers for the reports.
        actor_class = ray.remote(num_cpus=cpus_per_worker, num_gpus=gpus_per_worker, max_restarts=0, max_concurrency=2)(
            _Actor
        )

        def start() -> _RayProcess:
            # A node may have died: what fits nowhere any more would be waited for without end.
            _room(ray, **size)
            return _RayProcess(ray, actor_class.remote(setup))

        yield from distribute(jobs, start, n_workers=n_workers, status=status, longest_silence_s=longest_silence_s)
    finally:
        if connect:
            ray.shutdown()


def _import_ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # What Ray's daemons have to say of a dead worker, or of one that was stopped before it was up, is long, and is
    # said by our own code.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
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


def _room(ray: Any, *, cpus: float, gpus: float) -> float:
    """How many workers fit onto the cluster as it is now, what others reserve included."""
    wanted = _describe_size(cpus, gpus)
    if min(cpus, gpus) < 0 or (gpus > 1 and gpus % 1):
        share = "a whole number of GPUs, or a share of one between 0 and 1"
        raise InputError(f"--engine ray: {wanted} for each worker: Ray gives {share}")
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = sum(workers_on_node(node, cpus=cpus, gpus=gpus) for node in nodes)
    if not room:
        sizes = sorted({(node.get("CPU", 0), node.get("GPU", 0)) for node in nodes}, reverse=True)
        raise InputError(
            f"--engine ray: no node has room for a worker with {wanted}; the cluster "
            f"has {len(nodes)} nodes, of {' or '.join(_describe_size(*size) for size in sizes)}"
        )
    return room


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


class _RayProcess:
    """An actor as the calling process sees it."""

    def __init__(self, ray: Any, actor: Any) -> None:
        self._ray, self._actor = ray, actor
        self._reports: Future[list[str]] | None = None

    def submit(self, job: bytes | None) -> Future[bytes]:
        # What is still on its way belongs to the last job.
        self._reports = None
        future: Future[bytes] = self._actor.do.remote(job).future()
        return future

    def read_reports(self) -> list[str]:
        if self._reports is None:
            self._reports = self._actor.read_reports.remote().future()
        if not self._reports.done():
            return []
        reports, self._reports = self._reports, None
        # Whatever is wrong with the actor, the future of its job tells.
        return reports.result() if reports.exception() is None else []

    def explain(self, future: Future[bytes]) -> str:
        error = future.exception()
        errors, text = self._ray.exceptions, str(error)
        log.debug("%s", text)
        # What setup and worker raise comes as an answer: these come from before.
        if isinstance(error, errors.RayTaskError) or "creation task" in text:
            cause = text.strip().splitlines()[-1]
            raise InputError(
                f"--engine ray: a node cannot run this project; the same version on every node? {cause}"
            ) from None
        if isinstance(error, errors.OutOfMemoryError):
            return "ended by Ray: its node ran out of memory"
        return "its node died" if "node has died" in text else "killed or crashed; out of memory?"

    def stop(self) -> None:
        self._ray.kill(self._actor)


class _Actor:
    """What runs in the worker process."""

    def __init__(self, setup: Callable[[], Worker[Any, Any]]) -> None:
        self._reports: deque[str] = deque(maxlen=_MOST_REPORTS)
        self._loop = JobLoop(setup, self._reports.append)

    def do(self, job: bytes | None) -> bytes:
        self._reports.clear()
        return self._loop.do(job)

    def read_reports(self) -> list[str]:
        """What has been reported since the last call."""
        return [self._reports.popleft() for _ in range(len(self._reports))]
