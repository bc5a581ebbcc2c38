"""One way in: videos to feature folders, one by one in this process, or many in worker processes."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, Literal

from preprocessing.config import PreprocessConfig, change_settings
from preprocessing.device import resolve_device
from preprocessing.errors import InputError
from preprocessing.features import Features, load_features
from preprocessing.files import remove_left_overs
from preprocessing.inputs import Source
from preprocessing.names import video_id_of
from preprocessing.run.plan import Job, plan_one
from preprocessing.run.processes import run_on_processes
from preprocessing.run.ray_engine import run_on_ray
from preprocessing.run.video_worker import (
    Look,
    Outcome,
    VideoInspector,
    VideoWorker,
    describe_features,
    describe_os_error,
)
from preprocessing.run.workers import Lost, Status

_MOST_WORKERS = 8
"""More have to be requested: each takes up to 2 GB of memory."""


@dataclass(frozen=True)
class Engine:
    """Where many videos are processed."""

    kind: Literal["local", "ray"] = "local"
    workers: int | None = None
    """Videos that are worked on at the same time; None: as many as fit."""
    ray_address: str | None = None
    gpus_per_worker: float = 0.25
    """Share of a GPU that Ray reserves for a worker; counts only for ``--device cuda``."""


class Preprocessor:
    """Turns videos into feature folders.

    A call processes one video in this process; the models are loaded at the first call and kept. Threads that share a
    Preprocessor take turns. :meth:`many` processes many videos in worker processes, which load models of their own.
    """

    def __init__(
        self,
        config: PreprocessConfig | Mapping[str, Any] | None = None,
        *,
        device: str = "auto",
        transcripts: Path | str | None = None,
    ) -> None:
        """Prepare; no model is loaded yet.

        Args:
            config: settings of every stage; a mapping such as ``{"speech.language": "en"}`` changes the default ones.
            device: ``cpu``, ``cuda`` or ``auto``, which takes a GPU if there is one.
            transcripts: folder of files that replace speech recognition, see :mod:`preprocessing.speech.transcripts`.

        Raises:
            InputError: there is no such setting, or its value is not allowed; ``cuda`` without a GPU.
        """
        changed = config if isinstance(config, PreprocessConfig) else change_settings(PreprocessConfig(), config or {})
        self.config: PreprocessConfig = changed
        self.device = resolve_device(device)
        self._transcripts = None if transcripts is None else Path(transcripts)
        self._worker: VideoWorker | None = None
        self._one_at_a_time = Lock()

    def __call__(self, video: Path | str, out: Path | str, *, overwrite: bool = False) -> list[Features]:
        """Process one video, unless its features are there already.

        Args:
            video: a video file.
            out: folder that receives a folder of features for each subject, named after the video.
            overwrite: do it again even if its features are there; see :meth:`plan`.

        Returns:
            Features of each subject: one, or with ``faces.subjects=all`` one for each lasting person.

        Raises:
            InputError: the video cannot be decoded, a model is not available, or something else is in the place of its
                features.
            OSError: a file cannot be read or written.
        """
        path, out = Path(video), Path(out)
        make_room(out)
        out.mkdir(parents=True, exist_ok=True)
        with self._one_at_a_time:
            if self._worker is None:
                self._worker = VideoWorker(self.config, self.device, self._transcripts)
            outcome = self._worker.process(Job(Source(video_id_of(path), path), out, overwrite=overwrite))
        return [load_features(out / name) for name in outcome.folders]

    def many(
        self, sources: Sequence[Source], out: Path, *, overwrite: bool = False, engine: Engine | None = None
    ) -> Iterator[Outcome]:
        """Process videos in worker processes; yields each outcome when it is known, failures among them.

        Args:
            sources: see :func:`preprocessing.inputs.collect_sources`.
            out: see :meth:`__call__`.
            overwrite: see :meth:`plan`.
            engine: see :meth:`run`.

        Raises:
            InputError: the request as a whole cannot be carried out; see :meth:`run`.
            OSError: see :meth:`run`.
        """
        make_room(out)
        finished, jobs = self.plan(sources, out, overwrite=overwrite)
        yield from finished
        yield from self.run(jobs, engine=engine)

    def plan(self, sources: Sequence[Source], out: Path, *, overwrite: bool = False) -> tuple[list[Outcome], list[Job]]:
        """Tell videos whose features are there, made from the same file with the same settings, from those to be done.

        Of the latter, only the stages that changed settings touch are done again. Nothing is written.

        Args:
            sources: the videos.
            out: folder of the features.
            overwrite: do all again, and replace features of another file of the same name.

        Returns:
            Outcomes of the former, of sources with a problem, and of videos whose features would have to replace
            something that they must not; jobs for the others.
        """
        finished, jobs = [], []
        for source in sources:
            if source.problem:
                finished.append(Outcome(source.video_id, done=False, problem=source.problem))
                continue
            try:
                job = plan_one(source, out, self.config, self._transcripts, overwrite)
                if job.stages:
                    jobs.append(job)
                else:
                    finished.append(describe_features(source.video_id, out, job.kept, skipped=True))
            except InputError as error:
                finished.append(Outcome(source.video_id, done=False, problem=str(error)))
            except OSError as error:
                problem = describe_os_error(error, Job(source, out))
                finished.append(Outcome(source.video_id, done=False, problem=problem))
        return finished, jobs

    def run(
        self, jobs: Sequence[Job], *, engine: Engine | None = None, status: Status = lambda _: None
    ) -> Iterator[Outcome]:
        """Do jobs in worker processes; yields each outcome when it is known. No engine changes a byte of the features.

        Args:
            jobs: see :meth:`plan`.
            engine: None: this machine.
            status: called with :class:`preprocessing.run.video_worker.Report` lines.

        Raises:
            InputError: a model is not available, the transcript folder does not exist, or the engine is not there.
            OSError: the folder for the features cannot be made.
        """
        engine = engine or Engine()
        for out in {job.out for job in jobs}:
            out.mkdir(parents=True, exist_ok=True)
        # Ray's workers start in folders of their own, in which relative paths mean nothing.
        setup = partial(_set_up, self.config, self.device, self._transcripts, Path.cwd())
        if engine.kind == "ray":
            gpus = engine.gpus_per_worker if self.device == "cuda" else 0.0
            results = run_on_ray(
                jobs,
                setup,
                n_workers=engine.workers,
                address=engine.ray_address,
                # Pictures and sound of a video each keep a core busy.
                cpus_per_worker=2,
                gpus_per_worker=gpus,
                status=status,
            )
        else:
            n_workers = engine.workers or _default_workers(len(jobs), self.device)
            results = run_on_processes(jobs, setup, n_workers=n_workers, status=status)
        for job, outcome in results:
            if isinstance(outcome, Lost):
                outcome = Outcome(job.source.video_id, done=False, problem=f"{job.source.path}: {outcome.reason}")
            yield outcome
        for out in {job.out for job in jobs}:
            # Of workers that died on a video.
            remove_left_overs(out)

    def look_into(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Look]]:
        """Open videos and decode their beginning, in worker processes: a file may crash the decoder right away."""
        n_workers = _default_workers(len(jobs), "cpu")
        setup = partial(VideoInspector, self.config.streams)
        for job, look in run_on_processes(jobs, setup, n_workers=n_workers):
            yield job, Look(problem=f"{job.source.path}: {look.reason}") if isinstance(look, Lost) else look


def make_room(out: Path) -> None:
    """Remove what processes that died left in a folder of features; raises InputError if it is a file."""
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: is a file; give a folder")
    remove_left_overs(out)


def _set_up(config: PreprocessConfig, device: str, transcripts: Path | None, folder: Path) -> VideoWorker:
    """Make the worker of a process; relative paths count from ``folder``."""
    try:
        os.chdir(folder)
    except OSError as error:
        raise InputError(f"{folder}: {error.strerror} on {platform.node()}; workers need the same folders") from None
    return VideoWorker(config, device, transcripts)


def _default_workers(n_jobs: int, device: str) -> int:
    """One worker for each two cores, at most 8 and at most one for each video; one where they would share a GPU."""
    if device == "cuda":
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores // 2, _MOST_WORKERS, n_jobs))
