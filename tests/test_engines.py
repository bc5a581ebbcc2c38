from __future__ import annotations

import math
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from preprocessing.engines import Lost, run_on_processes, run_on_ray, workers_on_node
from preprocessing.errors import InputError


class Square:
    """Says what it does, and in which process."""

    def __call__(self, job, *, status):
        status(f"squaring {job}")
        return job**2, os.getpid()


class Dies:
    """Is killed by some jobs, each time or only the first."""

    def __init__(self, fatal: set[int], folder: Path, *, once: bool):
        self.fatal, self.folder, self.once = fatal, folder, once

    def __call__(self, job, *, status):
        marker = self.folder / str(job)
        if job in self.fatal and not (self.once and marker.exists()):
            with marker.open("a") as file:
                file.write("x")
            os.kill(os.getpid(), signal.SIGKILL)
        return job**2


class Meets:
    """The first job ends only after the last has begun; says in which order jobs began."""

    def __init__(self, folder: Path, last: int):
        self.folder, self.last = folder, last

    def __call__(self, job, *, status):
        began = time.monotonic()
        (self.folder / str(job)).touch()
        while job == 0 and time.monotonic() < began + 10:
            if (self.folder / str(self.last)).exists():
                break
            time.sleep(0.01)
        return began, (self.folder / str(self.last)).exists()


class Sleeps:
    """Job 0 is quick; the others sleep, and say how they ended."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __call__(self, job, *, status):
        if job == 0:
            while not (self.folder / "pid-1").exists():
                time.sleep(0.01)
            return job
        try:
            # The file has its name only once it is whole: whoever waits for it reads it, and may stop this job at once.
            written = self.folder / f"unnamed-{job}"
            written.write_text(str(os.getpid()))
            written.rename(self.folder / f"pid-{job}")
            time.sleep(60)
        finally:
            (self.folder / f"cleaned-{job}").touch()
        return job


class OfTwoParts(Exception):
    """Is pickled well, and cannot be read back."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


class Raises:
    def __init__(self, error: Exception | None = None):
        self.error = error

    def __call__(self, job, *, status):
        if job == 1:
            raise self.error or OfTwoParts("this", "that")
        return job


class Returns:
    """Its results are whatever ``make`` makes of the job."""

    def __init__(self, make: Callable[[Any], Any]):
        self.make = make

    def __call__(self, job, *, status):
        return self.make(job)


class SquareAndPause(Square):
    """Leaves time for what it said to arrive."""

    def __call__(self, job, *, status):
        result = super().__call__(job, status=status)
        time.sleep(0.5)
        return result


class Chatters:
    """Says more than anybody takes."""

    N = 1_000

    def __init__(self, folder: Path):
        self.folder = folder

    def __call__(self, job, *, status):
        if job == 1:
            for number in range(self.N):
                status(f"{number} " + "bla " * 100)
            (self.folder / "said all").touch()
        return job


def refuse():
    raise InputError("models/none: no such model")


def make_lambda(job):
    return lambda: job


def end_by_signal(number, job):
    os.kill(os.getpid(), number)


def exit_at_once(code, job):
    os._exit(code)


def sleep_until_interrupted(folder):
    """Main function of a process that gets Ctrl-C."""
    try:
        list(run_on_processes([1, 2], partial(Sleeps, Path(folder)), n_workers=2, status=lambda _: None))
    except KeyboardInterrupt:
        sys.exit(130)


def appears(path: Path) -> bool:
    return holds(path.exists)


def vanishes(process: int) -> bool:
    return holds(lambda: not Path(f"/proc/{process}").exists())


def holds(condition: Callable[[], bool], *, within_s: float = 10.0) -> bool:
    end = time.monotonic() + within_s
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A Ray cluster of one node with 2 CPUs, of which this process is no part yet."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        # Workers on Ray are not told where pytest found this file.
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    yield cluster
    import ray

    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def connected(cluster: Any) -> None:
    import ray

    if not ray.is_initialized():
        ray.init(address=cluster.address, log_to_driver=False)


@pytest.fixture
def unconnected(cluster: Any) -> Any:
    import ray

    ray.shutdown()
    return cluster


on_ray = partial(run_on_ray, address=None, cpus_per_worker=0.5, gpus_per_worker=0)


@pytest.fixture(params=["processes", "ray"])
def run(request: pytest.FixtureRequest) -> Callable[..., Iterator[tuple[Any, Any]]]:
    """Either engine, called the same way."""
    engine = run_on_processes
    if request.param == "ray":
        request.getfixturevalue("connected")
        engine = on_ray
    return partial(engine, status=lambda _: None)


def test_all_jobs_are_done_by_as_many_processes_as_wanted(run):
    outcomes = dict(run(range(6), Square, n_workers=2))
    assert {job: square for job, (square, _) in outcomes.items()} == {job: job**2 for job in range(6)}
    processes = {process for _, process in outcomes.values()}
    assert len(processes) == 2 and os.getpid() not in processes


def test_jobs_are_handed_out_in_order_to_whoever_is_free(run, tmp_path):
    outcomes = dict(run(range(6), partial(Meets, tmp_path, 5), n_workers=2))
    begun = [outcomes[job][0] for job in range(1, 6)]
    assert begun == sorted(begun)
    assert outcomes[0][1], "the last job waited behind the first"


def test_more_workers_than_jobs(run):
    assert [(job, square) for job, (square, _) in run([3], Square, n_workers=2)] == [(3, 9)]


def test_without_jobs_nothing_is_started(run):
    assert list(run([], refuse, n_workers=2)) == []


def test_error_of_setup_reaches_the_caller_as_it_is(run):
    with pytest.raises(InputError) as caught:
        list(run(range(3), refuse, n_workers=2))
    assert type(caught.value) is InputError and str(caught.value) == "models/none: no such model"


def test_error_of_the_worker_reaches_the_caller_with_its_traceback(run):
    with pytest.raises(KeyError) as caught:
        list(run(range(3), partial(Raises, KeyError("missing")), n_workers=1))
    assert type(caught.value) is KeyError and caught.value.args == ("missing",)
    assert "in __call__" in "".join(caught.value.__notes__)


def test_what_cannot_be_pickled_is_an_error_and_no_death():
    run = partial(run_on_processes, status=lambda _: None)
    with pytest.raises(RuntimeError, match="OfTwoParts: this and that"):
        list(run(range(3), Raises, n_workers=1))
    with pytest.raises(Exception, match="make_lambda"):
        list(run(range(3), partial(Returns, make_lambda), n_workers=1))


def test_job_of_a_killed_worker_is_done_by_another(run, tmp_path):
    outcomes = dict(run(range(5), partial(Dies, {0, 3}, tmp_path, once=True), n_workers=2))
    assert outcomes == {job: job**2 for job in range(5)}
    assert {path.name for path in tmp_path.iterdir()} == {"0", "3"}


def test_job_that_kills_two_workers_is_lost_and_the_others_are_done(run, tmp_path):
    outcomes = dict(run(range(4), partial(Dies, {1}, tmp_path, once=False), n_workers=1))
    lost = outcomes.pop(1)
    assert isinstance(lost, Lost)
    assert re.fullmatch(r"the worker process died twice \(killed .*; out of memory\?\)", lost.reason)
    assert (tmp_path / "1").read_text() == "xx"
    assert outcomes == {0: 0, 2: 4, 3: 9}


def test_signal_and_exit_code_are_told(tmp_path):
    run = partial(run_on_processes, ["job"], n_workers=1, status=lambda _: None)
    reasons = [
        next(run(partial(Returns, partial(call, *arguments))))[1].reason
        for call, arguments in ((end_by_signal, (9,)), (end_by_signal, (11,)), (exit_at_once, (3,)))
    ]
    assert reasons == [
        "the worker process died twice (killed by signal 9; out of memory?)",
        "the worker process died twice (killed by signal 11)",
        "the worker process died twice (exit code 3)",
    ]


def test_status_reaches_the_caller(run):
    told = []
    list(run([1, 2], SquareAndPause, n_workers=1, status=told.append))
    # On Ray, what is said last may come too late.
    assert told in (["squaring 1", "squaring 2"], ["squaring 1"])


def test_status_that_nobody_takes_is_dropped_and_stops_nobody(run, tmp_path):
    told = []
    outcomes = run([0, 1], partial(Chatters, tmp_path), n_workers=1, status=told.append)
    assert next(outcomes) == (0, 0)
    assert appears(tmp_path / "said all"), "the worker waits for somebody to take its status"
    assert list(outcomes) == [(1, 1)]
    assert len(told) < Chatters.N


def test_stopping_early_ends_every_worker(run, tmp_path):
    outcomes = run(range(4), partial(Sleeps, tmp_path), n_workers=2)
    assert next(outcomes) == (0, 0)
    assert appears(tmp_path / "pid-2")
    begin = time.monotonic()
    outcomes.close()
    assert time.monotonic() - begin < 10
    processes = [int((tmp_path / f"pid-{job}").read_text()) for job in (1, 2)]
    assert all(vanishes(process) for process in processes)
    assert not (tmp_path / "pid-3").exists()
    if run.func is run_on_processes:
        assert all((tmp_path / f"cleaned-{job}").exists() for job in (1, 2))
        assert not multiprocessing.active_children()


def interruptible() -> None:
    """Shells start background jobs with Ctrl-C ignored, and so would be what the tests start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("whole_group", [True, False])
def test_interrupt_ends_every_worker_quietly(tmp_path, whole_group):
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import test_engines\n"
        "if __name__ == '__main__': test_engines.sleep_until_interrupted(sys.argv[2])\n"
    )
    (tmp_path / "main.py").write_text(program)
    command = [sys.executable, str(tmp_path / "main.py"), str(Path(__file__).parent), str(tmp_path)]
    with subprocess.Popen(
        command, start_new_session=True, stderr=subprocess.PIPE, text=True, preexec_fn=interruptible
    ) as parent:
        assert appears(tmp_path / "pid-1") and appears(tmp_path / "pid-2")
        (os.killpg if whole_group else os.kill)(parent.pid, signal.SIGINT)
        _, errors = parent.communicate(timeout=20)
    assert (parent.returncode, errors) == (130, "")
    assert all((tmp_path / f"cleaned-{job}").exists() for job in (1, 2))
    assert all(vanishes(int((tmp_path / f"pid-{job}").read_text())) for job in (1, 2))


def test_workers_here_inherit_the_environment(monkeypatch):
    monkeypatch.setenv("RCMA_TEST_ENGINES", "inherited")
    outcomes = run_on_processes(["RCMA_TEST_ENGINES"], partial(Returns, os.getenv), n_workers=1, status=lambda _: None)
    assert list(outcomes) == [("RCMA_TEST_ENGINES", "inherited")]


def test_a_cluster_is_joined_filled_and_left(unconnected, tmp_path):
    import ray

    run = partial(on_ray, range(3), partial(Meets, tmp_path, 1), address=unconnected.address, cpus_per_worker=1)
    outcomes = dict(run(n_workers=None, status=lambda _: None))
    assert sorted(outcomes) == [0, 1, 2]
    assert outcomes[0][1], "two workers have room, and job 0 did not meet job 1"
    assert not ray.is_initialized()


def test_no_more_workers_than_the_cluster_has_room_for(connected, caplog):
    # A third would wait for a place without end.
    outcomes = list(on_ray(range(3), Square, n_workers=3, cpus_per_worker=1, status=lambda _: None))
    assert sorted(job for job, _ in outcomes) == [0, 1, 2]
    assert caplog.messages == ["the Ray cluster has room for 2 workers at the same time, not 3"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cpus_per_worker": 3}, "3 CPUs and 0 GPUs; the cluster has 1 nodes, of 2 CPUs and 0 GPUs"),
        ({"gpus_per_worker": 0.5}, "0.5 CPUs and 0.5 GPUs; the cluster has 1 nodes"),
        ({"gpus_per_worker": 1.5}, "1.5 GPUs for each worker: Ray gives a whole number"),
    ],
)
def test_workers_that_fit_nowhere_are_refused(connected, options, message):
    with pytest.raises(InputError, match=f"^--engine ray: .*{message}"):
        list(on_ray(range(3), Square, n_workers=2, status=lambda _: None, **options))


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nonsense"])
def test_wrong_address_is_one_line(unconnected, address):
    begin = time.monotonic()
    with pytest.raises(InputError, match=f"^--ray-address {address}: .+$"):
        list(on_ray(range(3), Square, n_workers=2, address=address, status=lambda _: None))
    assert time.monotonic() - begin < 15


def test_without_ray_one_line_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r'pip install "rcma\[ray\]"'):
        list(on_ray([1], Square, n_workers=1, status=lambda _: None))


def test_node_that_cannot_import_the_project_is_named_as_the_cause(connected, tmp_path, monkeypatch):
    (tmp_path / "only_here.py").write_text("def setup(): ...")
    monkeypatch.syspath_prepend(tmp_path)
    import only_here

    with pytest.raises(InputError, match=r"^--engine ray: .* No module named 'only_here'$"):
        list(on_ray([1], only_here.setup, n_workers=1, status=lambda _: None))


@pytest.mark.parametrize(
    ("node", "cpus", "gpus", "room"),
    [
        ({"CPU": 8.0}, 1, 0, 8),
        ({"CPU": 8.0}, 3, 0, 2),
        ({"CPU": 8.0}, 0.1, 0, 80),
        ({"CPU": 8.0}, 1, 0.5, 0),
        ({"CPU": 8.0, "GPU": 2.0}, 1, 0.5, 4),
        ({"CPU": 8.0, "GPU": 2.0}, 1, 0.4, 4),  # 5 shares of 0.4 do not lie on 2 GPUs
        ({"CPU": 8.0, "GPU": 2.0}, 4, 0.1, 2),
        ({"CPU": 8.0, "GPU": 5.0}, 0, 2, 2),
        ({"CPU": 8.0}, 0, 0, math.inf),
    ],
)
def test_room_on_a_node(node, cpus, gpus, room):
    assert workers_on_node(node, cpus=cpus, gpus=gpus) == room
