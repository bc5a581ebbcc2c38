"""Guarantees of both engines: every job is done or lost by itself, whatever it does to its process."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from preprocessing.errors import InputError
from preprocessing.run.processes import LocalWorker, separate_process
from preprocessing.run.ray_engine import places_on_node, run_on_ray
from preprocessing.run.workers import distribute


def run_on_processes(jobs, setup, *, n_workers, status=lambda _: None, **options):
    return distribute(jobs, partial(LocalWorker, setup, **options), n_workers=n_workers, status=status)


class Square:
    """Says in which process it is."""

    def __call__(self, job, *, status):
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
        while job == 0 and time.monotonic() < began + 120:
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
            while not all((self.folder / f"pid-{other}").exists() for other in (1, 2)):
                time.sleep(0.01)
            return job
        try:
            # The file has its name only once it is whole: whoever waits for it reads it, and may stop this job at once.
            written = self.folder / f"unnamed-{job}"
            written.write_text(str(os.getpid()))
            written.rename(self.folder / f"pid-{job}")
            time.sleep(60)
            (self.folder / f"slept-{job}").touch()
        finally:
            (self.folder / f"cleaned-{job}").touch()
        return job


class EndsSlowly:
    """Registers something for the end of its process that takes a while, as PyTorch does."""

    def __call__(self, job, *, status):
        atexit.register(time.sleep, 2.0)
        return job


class OfTwoParts(Exception):
    """Is pickled well, and cannot be read back."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


class Obeys:
    """Does what its job, a function with arguments, says."""

    def __call__(self, job, *, status):
        function, *arguments = job
        return function(*arguments)


class ReportsUntilHeard:
    """Reports until somebody says that it has been heard: what is reported may be lost."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __call__(self, job, *, status):
        return holds(lambda: status(f"at {job}") or (self.folder / str(job)).exists(), within_s=30)


class Falters:
    """Jobs named ``stuck`` hang; others report for longer than a job may be silent."""

    def __call__(self, job, *, status):
        status("begun")
        if job == "stuck":
            time.sleep(600)
        for _ in range(job):
            time.sleep(0.2)
            status("going on")
        return job


class Chatters:
    """Job 0 ends when job 1 has begun, which then says much when nobody listens any more."""

    N = 1_000

    def __init__(self, folder: Path):
        self.folder = folder

    def __call__(self, job, *, status):
        if job == 0:
            assert appears(self.folder / "begun")
        else:
            (self.folder / "begun").touch()
            assert appears(self.folder / "nobody listens")
            for number in range(self.N):
                status(f"{number} " + "bla " * 100)
            (self.folder / "said all").touch()
        return job


def refuse():
    raise InputError("models/none: no such model")


def refuse_by_bug():
    return {}["no such key"]


def setup_dies():
    os.abort()


def make_bytes(n):
    return b"x" * n


def raise_two_parts():
    raise OfTwoParts("this", "that")


def raise_local():
    class LocalError(Exception): ...

    raise LocalError("of a class that has no place")


def end_by_signal(number):
    os.kill(os.getpid(), number)


def call_with_status(function, *, status):
    return function()


def sleep_until_interrupted(folder):
    """Main function of a process that gets Ctrl-C."""
    try:
        list(run_on_processes([1, 2], partial(Sleeps, Path(folder)), n_workers=2))
    except KeyboardInterrupt:
        sys.exit(130)


def appears(path: Path) -> bool:
    return holds(path.exists)


def vanishes(process: int) -> bool:
    return holds(lambda: not Path(f"/proc/{process}").exists())


def holds(condition: Callable[[], bool], *, within_s: float = 120.0) -> bool:
    end = time.monotonic() + within_s
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A Ray cluster of one node with room for 3 workers, of which this process is no part yet."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        # Workers on Ray are not told where pytest found this file.
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 6, "include_dashboard": False})
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


on_ray = partial(run_on_ray, address=None, gpus_per_worker=0)


@pytest.fixture(params=["processes", pytest.param("ray", marks=pytest.mark.slow)])
def run(request: pytest.FixtureRequest) -> Callable[..., Iterator[tuple[Any, Any]]]:
    """Either engine, called the same way."""
    if request.param == "processes":
        return run_on_processes
    request.getfixturevalue("connected")
    return on_ray


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
    assert str(caught.value) == "models/none: no such model"
    assert not multiprocessing.active_children()


def test_other_errors_of_setup_are_one_line_for_the_whole_request(run):
    with pytest.raises(InputError) as caught:
        list(run(range(3), refuse_by_bug, n_workers=2))
    assert "KeyError" in str(caught.value) and "no such key" in str(caught.value)


def test_setup_that_kills_every_process_is_one_error(run):
    with pytest.raises(InputError):
        list(run(range(3), setup_dies, n_workers=1))


def test_whatever_a_job_does_the_others_are_done(run):
    """Exceptions that cannot be pickled or read back, and large results."""
    bad = {(raise_two_parts,): "this and that", (raise_local,): "LocalError", (refuse,): "models/none"}
    good = {(make_bytes, 10_000_000): b"x" * 10_000_000, (abs, -1): 1}
    outcomes = dict(run([*bad, *good], Obeys, n_workers=1))
    for job, named in bad.items():
        assert isinstance(outcomes[job], InputError)
        assert named in str(outcomes[job]) and "\n" not in str(outcomes[job])
    assert {job: outcomes[job] for job in good} == good


def test_job_of_a_killed_worker_is_done_by_another(run, tmp_path):
    outcomes = dict(run(range(5), partial(Dies, {0, 3}, tmp_path, once=True), n_workers=2))
    assert outcomes == {job: job**2 for job in range(5)}
    assert {path.name for path in tmp_path.iterdir()} == {"0", "3"}


@pytest.mark.parametrize("n_workers", [1, 2])
def test_job_that_kills_two_workers_is_lost_and_the_others_are_done(run, tmp_path, n_workers):
    outcomes = dict(run(range(4), partial(Dies, {1}, tmp_path, once=False), n_workers=n_workers))
    assert isinstance(outcomes.pop(1), InputError)
    assert (tmp_path / "1").read_text() == "xx"
    assert outcomes == {0: 0, 2: 4, 3: 9}


@pytest.mark.slow
def test_signal_and_exit_code_are_told(run):
    told = {
        (os.abort,): f"signal {signal.SIGABRT:d}",
        (end_by_signal, signal.SIGKILL): f"signal {signal.SIGKILL:d}",
        (os._exit, 0): "ended early",
        (sys.exit, 3): "exit code 3",
    }
    outcomes = dict(run([*told, (abs, -1)], Obeys, n_workers=2))
    assert outcomes.pop((abs, -1)) == 1
    assert {job for job, lost in outcomes.items() if told[job] in str(lost)} == set(told)


@pytest.mark.slow
def test_job_that_is_stuck_is_given_up_and_the_others_are_done(run):
    """Jobs that take long, but report, are not stuck."""
    outcomes = dict(run(["stuck", 1, 20], Falters, n_workers=1, longest_silence_s=3.0))
    assert isinstance(outcomes.pop("stuck"), InputError)
    assert outcomes == {1: 1, 20: 20}


def test_status_reaches_the_caller(run, tmp_path):
    told = []

    def hear(text):
        told.append(text)
        (tmp_path / text.removeprefix("at ")).touch()

    outcomes = dict(run([1, 2], partial(ReportsUntilHeard, tmp_path), n_workers=1, status=hear))
    assert outcomes == {1: True, 2: True}
    assert set(told) == {"at 1", "at 2"}


def test_status_that_nobody_takes_stops_nobody(run, tmp_path):
    outcomes = run([0, 1], partial(Chatters, tmp_path), n_workers=2, status=lambda _: None)
    assert next(outcomes) == (0, 0)
    (tmp_path / "nobody listens").touch()
    assert appears(tmp_path / "said all"), "the worker waits for somebody to take its status"
    assert list(outcomes) == [(1, 1)]


def test_hundreds_of_jobs_leave_nothing_open():
    def n_open():
        return len(list(Path("/proc/self/fd").iterdir()))

    list(run_on_processes(range(2), Square, n_workers=2))
    before = n_open(), threading.active_count()
    assert len(list(run_on_processes(range(300), Square, n_workers=2))) == 300
    assert (n_open(), threading.active_count()) == before


def test_workers_that_end_slowly_end_quietly(capfd):
    assert [job for job, _ in run_on_processes([1, 2], EndsSlowly, n_workers=2)] in ([1, 2], [2, 1])
    assert capfd.readouterr() == ("", "")


def test_functions_are_called_in_another_process():
    told = []
    with separate_process(status=told.append) as call:
        process = call("a.mp4", call_with_status, os.getpid)
        assert process != os.getpid()
        with pytest.raises(InputError, match=rf"^b\.mp4: .*signal {signal.SIGABRT:d}"):
            call("b.mp4", call_with_status, os.abort)
        with pytest.raises(InputError, match=r"^models/none: no such model$"):
            call("c.mp4", call_with_status, refuse)
        with pytest.raises(InputError, match=r"^d\.mp4: KeyError"):
            call("d.mp4", call_with_status, refuse_by_bug)
        assert call("e.mp4", call_with_status, os.getpid) not in (process, os.getpid())
    assert not multiprocessing.active_children()


def test_stopping_early_ends_every_worker(run, tmp_path):
    outcomes = run(range(10), partial(Sleeps, tmp_path), n_workers=3)
    assert next(outcomes) == (0, 0)
    assert appears(tmp_path / "pid-2")
    outcomes.close()
    assert not list(tmp_path.glob("slept-*")), "the workers were waited for"
    begun = {path.name.removeprefix("pid-"): int(path.read_text()) for path in tmp_path.glob("pid-*")}
    assert {"1", "2"} <= begun.keys() <= {"1", "2", "3"}
    assert all(vanishes(process) for process in begun.values())
    if run is run_on_processes:
        assert all((tmp_path / f"cleaned-{job}").exists() for job in begun)
        assert not multiprocessing.active_children()


def interruptible() -> None:
    """Signals that background jobs of a shell, and what nohup starts, ignore reach what the tests start."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture
def sleeping(tmp_path: Path) -> Iterator[subprocess.Popen]:
    """A program whose two workers sleep."""
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
        yield parent


@pytest.mark.slow
@pytest.mark.parametrize("whole_group", [True, False])
def test_interrupt_ends_every_worker_quietly(sleeping, tmp_path, whole_group):
    (os.killpg if whole_group else os.kill)(sleeping.pid, signal.SIGINT)
    _, errors = sleeping.communicate(timeout=600)
    assert (sleeping.returncode, errors) == (130, "")
    assert all((tmp_path / f"cleaned-{job}").exists() for job in (1, 2))
    assert all(vanishes(int((tmp_path / f"pid-{job}").read_text())) for job in (1, 2))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_workers_of_a_parent_that_is_killed_clean_up_and_end(sleeping, tmp_path, number):
    os.kill(sleeping.pid, number)
    _, errors = sleeping.communicate(timeout=20)
    assert sleeping.returncode == -number
    assert "Traceback" not in errors
    assert all(appears(tmp_path / f"cleaned-{job}") for job in (1, 2))
    assert all(vanishes(int((tmp_path / f"pid-{job}").read_text())) for job in (1, 2))


def test_workers_here_inherit_the_environment(monkeypatch):
    monkeypatch.setenv("RCMA_TEST_ENGINES", "inherited")
    job = os.getenv, "RCMA_TEST_ENGINES"
    assert dict(run_on_processes([job], Obeys, n_workers=1)) == {job: "inherited"}


@pytest.mark.slow
def test_a_cluster_is_joined_filled_and_left(unconnected, tmp_path):
    import ray

    run = partial(on_ray, range(3), partial(Meets, tmp_path, 1), address=unconnected.address)
    outcomes = dict(run(n_workers=None))
    assert sorted(outcomes) == [0, 1, 2]
    assert outcomes[0][1], "three workers have room, and job 0 did not meet job 1"
    assert not ray.is_initialized()


@pytest.mark.slow
def test_no_more_workers_than_the_cluster_has_room_for(connected, caplog):
    # A fourth would wait for a place without end.
    outcomes = list(on_ray(range(4), Square, n_workers=4))
    assert sorted(job for job, _ in outcomes) == [0, 1, 2, 3]
    assert caplog.messages == ["the Ray cluster has room for 3 workers at the same time, not 4"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gpus_per_worker": 0.5}, "2 CPUs and 0.5 GPUs; the cluster has 1 nodes, of 6 CPUs and 0 GPUs"),
        ({"gpus_per_worker": 1.5}, "1.5 GPUs for each worker: Ray gives a whole number"),
    ],
)
def test_workers_that_fit_nowhere_are_refused(connected, options, message):
    with pytest.raises(InputError, match=f"^--engine ray: .*{message}"):
        list(on_ray(range(3), Square, n_workers=2, **options))


@pytest.mark.slow
@pytest.mark.parametrize("address", ["127.0.0.1:1", "nonsense"])
def test_wrong_address_is_one_line(unconnected, address):
    with pytest.raises(InputError, match=f"^--ray-address {address}: .+$"):
        list(on_ray(range(3), Square, n_workers=2, address=address))


def test_without_ray_one_line_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r'pip install "rcma\[ray\]"'):
        list(on_ray([1], Square, n_workers=1))


@pytest.mark.slow
def test_node_that_cannot_import_the_project_is_named_as_the_cause(connected, tmp_path, monkeypatch):
    (tmp_path / "only_here.py").write_text("def setup(): ...")
    monkeypatch.syspath_prepend(tmp_path)
    import only_here

    with pytest.raises(InputError, match=r"^--engine ray: .* No module named 'only_here'$"):
        list(on_ray([1], only_here.setup, n_workers=1))


@pytest.mark.parametrize(
    ("node", "gpus", "places"),
    [
        ({"CPU": 8.0}, 0, 4),
        ({"CPU": 7.0}, 0, 3),
        ({"CPU": 1.0}, 0, 0),
        ({"CPU": 8.0}, 0.5, 0),
        ({"CPU": 32.0, "GPU": 2.0}, 0.5, 4),
        ({"CPU": 32.0, "GPU": 2.0}, 0.4, 4),  # 5 shares of 0.4 do not lie on 2 GPUs
        ({"CPU": 64.0, "GPU": 2.0}, 0.1, 20),
        ({"CPU": 8.0, "GPU": 2.0}, 0.1, 4),
        ({"CPU": 32.0, "GPU": 5.0}, 2, 2),
        ({"GPU": 5.0}, 2, 0),
    ],
)
def test_places_on_a_node(node, gpus, places):
    assert places_on_node(node, gpus) == places
