"""Turns videos into feature folders: one by one in this process, or many in worker processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from preprocessing.media import decode_first_sound, picture_size
from preprocessing.names import video_id_of
from preprocessing.run.one_video import Pipeline
from preprocessing.run.plan import Job, plan_job
from preprocessing.run.processes import LocalWorker
from preprocessing.run.ray_engine import run_on_ray
from preprocessing.run.video_worker import Outcome, describe_features, failed, process_job, try_job
from preprocessing.run.workers import Status, distribute

_MOST_WORKERS = 8
"""By default: each takes up to 2 GB of memory."""


@dataclass(frozen=True)
class Engine:
    """Where many videos are processed."""

    kind: Literal["local", "ray"] = "local"
    workers: int | None = None
    """Videos processed at the same time; None: as many as fit."""
    ray_address: str | None = None
    gpus_per_worker: float = 0.25
    """Share of a GPU that Ray reserves for a worker; used only with ``--device cuda``."""


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
        if not isinstance(config, PreprocessConfig):
            config = change_settings(PreprocessConfig(), config or {})
        self.config: PreprocessConfig = config
        self.device = resolve_device(device)
        self._transcripts = None if transcripts is None else Path(transcripts)
        self._pipeline: Pipeline | None = None
        self._one_at_a_time = Lock()

    def __call__(self, video: Path | str, out: Path | str, *, overwrite: bool = False) -> list[Features]:
        """Process one video, unless its features exist already.

        Args:
            video: a video file.
            out: folder that receives a folder of features for each subject, named after the video.
            overwrite: do it again even if its features exist; see :meth:`plan`.

        Returns:
            Features of each subject: one, or with ``faces.subjects=all`` one for each lasting person.

        Raises:
            InputError: the video cannot be decoded, a model is not available, or the features would replace something
                that they must not.
            OSError: a file cannot be read or written.
        """
        path, out = Path(video), Path(out)
        make_room(out)
        out.mkdir(parents=True, exist_ok=True)
        with self._one_at_a_time:
            if self._pipeline is None:
                self._pipeline = Pipeline(self.config, device=self.device, transcripts=self._transcripts)
            outcome = process_job(self._pipeline, Job(Source(video_id_of(path), path), out, overwrite=overwrite))
        return [load_features(out / name) for name in outcome.folders]

    def many(
        self, sources: Sequence[Source], out: Path, *, overwrite: bool = False, engine: Engine | None = None
    ) -> Iterator[Outcome]:
        """Process videos in worker processes; yields each outcome, failures included, when it is known.

        For the arguments and exceptions see :func:`preprocessing.inputs.collect_sources`, :meth:`plan` and :meth:`run`.
        """
        make_room(out)
        finished, jobs = self.plan(sources, out, overwrite=overwrite)
        yield from finished
        yield from self.run(jobs, engine=engine)

    def plan(self, sources: Sequence[Source], out: Path, *, overwrite: bool = False) -> tuple[list[Outcome], list[Job]]:
        """Find the videos that have to be processed. Nothing is written.

        Features are used as they are if they were made from the same file with the same settings. Otherwise, only the
        stages that the changed settings affect are done again.

        Args:
            sources: the videos.
            out: folder of the features.
            overwrite: do all again, and replace features of another file of the same name.

        Returns:
            Outcomes of the videos that need no work, of sources with a problem, and of videos whose features would
            replace something that they must not; jobs for the others.
        """
        finished, jobs = [], []
        for source in sources:
            if source.problem:
                finished.append(Outcome(source.video_id, done=False, problem=source.problem))
                continue
            try:
                job = plan_job(source, out, self.config, self._transcripts, overwrite)
                if job.stages:
                    jobs.append(job)
                else:
                    finished.append(describe_features(job, job.kept, skipped=True))
            except (InputError, OSError) as error:
                finished.append(failed(Job(source, out), error))
        return finished, jobs

    def run(
        self, jobs: Sequence[Job], *, engine: Engine | None = None, status: Status = lambda _: None
    ) -> Iterator[Outcome]:
        """Do jobs in worker processes; yields each outcome when it is known. Every engine gives the same features.

        Args:
            jobs: see :meth:`plan`.
            engine: None: this machine.
            status: called with each :class:`preprocessing.run.video_worker.Report`.

        Raises:
            InputError: a model, the transcript folder or the engine is not available.
            OSError: the folder for the features cannot be made.
        """
        engine = engine or Engine()
        for out in {job.out for job in jobs}:
            out.mkdir(parents=True, exist_ok=True)
        # Ray's workers start in folders of their own, in which relative paths mean nothing.
        setup = partial(_set_up, self.config, self.device, self._transcripts, Path.cwd())
        if engine.kind == "ray":
            results = run_on_ray(
                jobs,
                setup,
                n_workers=engine.workers,
                address=engine.ray_address,
                gpus_per_worker=engine.gpus_per_worker if self.device == "cuda" else 0.0,
                status=status,
            )
        else:
            n_workers = engine.workers or _default_workers(len(jobs), self.device)
            results = distribute(jobs, partial(LocalWorker, setup), n_workers=n_workers, status=status)
        for job, outcome in results:
            yield failed(job, outcome) if isinstance(outcome, InputError) else outcome
        for out in {job.out for job in jobs}:
            # Of workers that died on a video.
            remove_left_overs(out)

    def inspect(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, str | InputError]]:
        """Open videos and decode their beginning.

        In worker processes: a file may crash the decoder right away.

        Returns:
            With each job the size of the upright picture, such as ``1280x720``, or why the video cannot be used.
        """
        n_workers = _default_workers(len(jobs), "cpu")
        make_worker = partial(LocalWorker, partial(_set_up_inspection, self.config.streams))
        return distribute(jobs, make_worker, n_workers=n_workers)


def make_room(out: Path) -> None:
    """Remove what processes that died left in a folder of features; raises InputError if it is a file."""
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: is a file; give a folder")
    remove_left_overs(out)


def _set_up(config: PreprocessConfig, device: str, transcripts: Path | None, folder: Path) -> Callable[..., Outcome]:
    """Load the models of a worker process; relative paths count from ``folder``, which every Ray node needs."""
    os.chdir(folder)
    return partial(try_job, Pipeline(config, device=device, transcripts=transcripts))


def _set_up_inspection(streams: Sequence[int]) -> Callable[..., str]:
    def inspect(job: Job, *, status: Status) -> str:
        width, height = picture_size(job.source.path, streams=streams)
        decode_first_sound(job.source.path, streams=streams)
        return f"{width}x{height}"

    return inspect


def _default_workers(n_jobs: int, device: str) -> int:
    """One worker for each two cores, at most 8 and at most one for each video; one where they would share a GPU."""
    if device == "cuda":
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores // 2, _MOST_WORKERS, n_jobs))
