"""Workers on the nodes of a Ray cluster: an actor each, with a worker process of its node below it."""

from __future__ import annotations

import logging
import math
import os
import socket
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from functools import partial
from threading import Event
from typing import Any

from preprocessing.errors import InputError
from preprocessing.run.processes import LocalWorker
from preprocessing.run.workers import LONGEST_SILENCE_S, POLL_S, DiedError, Job, Setup, SetupError, Status, distribute

log = logging.getLogger("rcma.preprocessing")

_CPUS_PER_WORKER = 2
"""Pictures and sound of a video each keep a core busy."""
_PATIENCE_S = 10.0
"""How long a cluster may take to answer."""
_MOST_REPORTS = 100
"""Kept by an actor until they are read; older ones are dropped."""


def run_on_ray(
    jobs: Sequence[Job],
    setup: Setup,
    *,
    n_workers: int | None,
    address: str | None,
    gpus_per_worker: float,
    status: Status = lambda _: None,
    longest_silence_s: float = LONGEST_SILENCE_S,
) -> Iterator[tuple[Job, Any]]:
    """Do ``jobs`` on a Ray cluster; see :func:`preprocessing.run.workers.distribute`.

    Every node must have this project installed, and see the files that the jobs name under the same paths.

    Args:
        jobs: see there; so is ``status``.
        setup: see :data:`preprocessing.run.workers.Setup`.
        n_workers: how many workers at most; never more than fit onto the cluster, which is also the default.
        address: ``host:port`` of a cluster that this machine is a node of. None: the one that ``RAY_ADDRESS`` names,
            or the one that runs on this machine, or else one that is started here and ended afterwards. Ignored where
            this process is connected already.
        gpus_per_worker: GPUs that Ray reserves for each worker; below 1, several workers share one.
        longest_silence_s: a job that reports nothing for so long is given up.

    Raises:
        InputError: Ray is not installed, does not answer, has no node with room for one worker, or has a node on
            which this project cannot be imported; or see there.
    """
    if not jobs:
        return
    ray = _import_ray()
    connect = not ray.is_initialized()
    if connect:
        _connect(ray, address)
    try:
        n_places = _count_places(ray, gpus_per_worker)
        if n_workers is not None and n_workers > n_places:
            log.warning("the Ray cluster has room for %d workers at the same time, not %d", n_places, n_workers)
        # Two threads: one does the jobs, the other answers for the reports.
        options = {"num_cpus": _CPUS_PER_WORKER, "num_gpus": gpus_per_worker, "max_restarts": 0, "max_concurrency": 2}
        actor_class = ray.remote(**options)(_Actor)

        def start() -> Any:
            # A node may have died: Ray would wait without end for a place that the cluster does not have any more.
            _count_places(ray, gpus_per_worker)
            return actor_class.remote(setup, longest_silence_s)

        make_worker = partial(_RayWorker, ray, start)
        yield from distribute(jobs, make_worker, n_workers=min(n_places, n_workers or n_places), status=status)
    finally:
        if connect:
            ray.shutdown()


def _import_ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's daemons write much about a worker that died or was stopped; our own code does it in one line.
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


def _count_places(ray: Any, gpus: float) -> int:
    """How many workers fit onto the nodes that are up now, if nobody else reserved anything."""
    wanted = _describe_size(_CPUS_PER_WORKER, gpus)
    if gpus < 0 or (gpus > 1 and gpus % 1):
        share = "a whole number of GPUs, or a share of one between 0 and 1"
        raise SetupError(f"--engine ray: {wanted} for each worker: Ray gives {share}")
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    n_places = sum(places_on_node(node, gpus) for node in nodes)
    if not n_places:
        sizes = sorted({(node.get("CPU", 0), node.get("GPU", 0)) for node in nodes}, reverse=True)
        raise SetupError(
            f"--engine ray: no node has room for a worker with {wanted}; the cluster "
            f"has {len(nodes)} nodes, of {' or '.join(_describe_size(*size) for size in sizes)}"
        )
    return n_places


def places_on_node(resources: Mapping[str, float], gpus: float) -> int:
    """How many workers that reserve so many GPUs each fit onto a node."""
    places = int(resources.get("CPU", 0) // _CPUS_PER_WORKER)
    if not gpus:
        return places
    n_gpus = resources.get("GPU", 0)
    # A share lies on one GPU; tenths do not add up to whole numbers.
    by_gpus = math.floor(n_gpus) * math.floor(1 / gpus + 1e-6) if gpus < 1 else math.floor(n_gpus / gpus)
    return min(places, by_gpus)


def _describe_size(cpus: float, gpus: float) -> str:
    return f"{cpus:g} CPUs and {gpus:g} GPUs"


class _RayWorker:
    """A worker on some node of the cluster."""

    def __init__(self, ray: Any, start: Callable[[], Any], status: Status, stopping: Event) -> None:
        self._ray, self._start, self._status, self._stopping = ray, start, status, stopping
        self._actor: Any = None

    def do(self, name: str, job: Any) -> Any:
        """See :class:`preprocessing.run.workers.Worker`."""
        if self._actor is None:
            self._actor = self._start()
        try:
            result = self._wait(self._actor.do.remote(name, job))
        except self._ray.exceptions.RayError as error:
            self.stop()
            log.debug("%s", error)
            # Exceptions of the worker process come as results. These are older: the actor cannot be made.
            if isinstance(error, self._ray.exceptions.RayTaskError) or "creation task" in str(error):
                cause = str(error).strip().splitlines()[-1]
                raise SetupError(
                    f"--engine ray: a node cannot run this project; the same version on every node? {cause}"
                ) from None
            raise DiedError("its node died or ran out of memory") from None
        if isinstance(result, Exception):
            raise result
        return result

    def _wait(self, answer: Any) -> Any:
        reports = None
        while not self._ray.wait([answer], timeout=POLL_S)[0]:
            if self._stopping.is_set():
                raise CancelledError
            reports = reports or self._actor.read_reports.remote()
            if self._ray.wait([reports], timeout=0)[0]:
                for report in self._ray.get(reports):
                    self._status(report)
                reports = None
        return self._ray.get(answer)

    def stop(self) -> None:
        """Kill the actor and its worker process, without time to clean up."""
        if self._actor is not None:
            self._ray.kill(self._actor)
            self._actor = None


class _Actor:
    """Runs on a node of the cluster."""

    def __init__(self, setup: Setup, longest_silence_s: float) -> None:
        self._reports: deque[Any] = deque(maxlen=_MOST_REPORTS)
        self._worker = LocalWorker(setup, self._reports.append, Event(), longest_silence_s=longest_silence_s)

    def do(self, name: str, job: Any) -> Any:
        """Do one job; exceptions are returned, because Ray would change their class."""
        self._reports.clear()
        try:
            return self._worker.do(name, job)
        except (InputError, DiedError) as error:
            return error

    def read_reports(self) -> list[Any]:
        """Return what has been reported since the last call."""
        return [self._reports.popleft() for _ in range(len(self._reports))]
