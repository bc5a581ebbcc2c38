"""Many videos: what is there already, what has to be done, and who does it."""

from __future__ import annotations

import json
import logging
import os
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import numpy as np

from preprocessing.config import PreprocessConfig
from preprocessing.errors import DISK_FULL, InputError
from preprocessing.features import load_features
from preprocessing.files import lock
from preprocessing.inputs import Source
from preprocessing.media import decode_first_sound, picture_size
from preprocessing.run.one_video import (
    STAGES,
    Preprocessor,
    Stage,
    changed_stages,
    kept_folders,
    refuse_foreign_before_work,
)
from preprocessing.run.processes import run_on_processes
from preprocessing.run.ray_engine import run_on_ray
from preprocessing.run.workers import Lost, Status

log = logging.getLogger("rcma.preprocessing")

_MOST_WORKERS = 8
"""More have to be asked for: each takes up to 2 GB of memory."""


@dataclass(frozen=True)
class Outcome:
    """What became of one video."""

    video_id: str
    done: bool
    """False when it failed."""
    problem: str = ""
    """One line: why it failed."""
    skipped: bool = False
    """Its features were already there, made from the same file with the same settings."""
    folders: tuple[str, ...] = ()
    """Names of its feature folders, one for each subject."""
    n_frames: int = 0
    duration_s: float = 0.0
    """From the first frame to the last."""
    face_share: float = 0.0
    """Share of frames with a face, 0 to 1; of the first subject."""
    n_words: int = 0
    language: str = ""
    seconds: float = 0.0
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Job:
    """One video to be processed, and what of it; everything a worker process needs to know."""

    source: Source
    out: Path
    stages: tuple[Stage, ...] = STAGES
    """What is to be done."""
    kept: tuple[str, ...] = ()
    """Feature folders that are there; what is not to be done is taken from them."""
    reason: str = ""
    """Why features that are already there do not serve."""
    overwrite: bool = False
    """Do it even if its features are there; see also :func:`preprocessing.run.refuse_foreign`."""

    @property
    def size(self) -> int:
        """Bytes of the video; 0 when it is not there."""
        try:
            return self.source.path.stat().st_size
        except OSError:
            return 0


@dataclass(frozen=True)
class Look:
    """What the beginning of a video shows."""

    picture: str = ""
    """Width and height of the upright picture, such as 1280x720."""
    problem: str = ""
    """One line: why the video cannot be done."""


@dataclass(frozen=True)
class Engine:
    """Where the work is done."""

    kind: Literal["local", "ray"] = "local"
    workers: int | None = None
    """Videos that are worked on at the same time; None: as many as fit."""
    ray_address: str | None = None
    gpus_per_worker: float = 0.25
    """Share of a GPU that Ray reserves for a worker; counts only for ``--device cuda``."""


@dataclass(frozen=True)
class Report:
    """How far the work on one video is, as it travels from a worker to the one who shows it."""

    video_id: str
    text: str
    """The stages and how far they are."""
    share: float
    """Of the video's work that is done, 0 to 1."""
    n_frames: int
    """Frames seen so far."""

    def to_text(self) -> str:
        """One line."""
        return json.dumps([self.video_id, self.text, self.share, self.n_frames])

    @classmethod
    def from_text(cls, text: str) -> Report:
        """The reverse of :meth:`to_text`."""
        return cls(*json.loads(text))


def plan(
    sources: Sequence[Source],
    out: Path,
    config: PreprocessConfig,
    *,
    transcripts: Path | None = None,
    overwrite: bool = False,
) -> tuple[list[Outcome], list[Job]]:
    """Tell videos whose features are there, made from the same file with the same settings, from those to be done.

    Of the latter, only the stages that changed settings touch are done again. Nothing is written.

    Returns:
        Outcomes of the former, of sources with a problem, and of videos whose features would have to replace something
        that they must not; jobs for the others.
    """
    finished, jobs = [], []
    for source in sources:
        if source.problem:
            finished.append(Outcome(source.video_id, done=False, problem=source.problem))
            continue
        try:
            job = _plan_one(source, out, config, transcripts, overwrite)
            if job.stages:
                jobs.append(job)
            else:
                finished.append(_describe(source.video_id, out, job.kept, skipped=True))
        except InputError as error:
            finished.append(Outcome(source.video_id, done=False, problem=str(error)))
        except OSError as error:
            problem = _describe_os_error(error, Job(source, out))
            finished.append(Outcome(source.video_id, done=False, problem=problem))
    return finished, jobs


def run(
    jobs: Sequence[Job],
    config: PreprocessConfig,
    *,
    device: str,
    transcripts: Path | None = None,
    engine: Engine | None = None,
    status: Status = lambda _: None,
) -> Iterator[Outcome]:
    """Process videos; yields each outcome when it is known. No engine changes a byte of the features.

    Args:
        jobs: see :func:`plan`.
        config: settings of every stage.
        device: ``cpu`` or ``cuda``.
        transcripts: see :class:`preprocessing.run.Preprocessor`.
        engine: None: this machine.
        status: is told :class:`Report` lines.

    Raises:
        InputError: a model cannot be had, the transcript folder does not exist, or the engine is not there.
        OSError: the folder for the features cannot be made.
    """
    engine = engine or Engine()
    for out in {job.out for job in jobs}:
        out.mkdir(parents=True, exist_ok=True)
    # Ray's workers start in folders of their own, in which relative paths mean nothing.
    setup = partial(VideoWorker, config, device, transcripts, Path.cwd())
    if engine.kind == "ray":
        gpus = engine.gpus_per_worker if device == "cuda" else 0.0
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
        n_workers = engine.workers or default_workers(len(jobs), device)
        results = run_on_processes(jobs, setup, n_workers=n_workers, status=status)
    for job, outcome in results:
        if isinstance(outcome, Lost):
            outcome = Outcome(job.source.video_id, done=False, problem=f"{job.source.path}: {outcome.reason}")
        yield outcome


def look_into(jobs: Sequence[Job], config: PreprocessConfig) -> Iterator[tuple[Job, Look]]:
    """Open videos and decode their beginning, in worker processes: a file may crash the decoder right away."""
    n_workers = default_workers(len(jobs), "cpu")
    for job, look in run_on_processes(jobs, partial(_Inspector, config.streams), n_workers=n_workers):
        yield job, Look(problem=f"{job.source.path}: {look.reason}") if isinstance(look, Lost) else look


def default_workers(n_jobs: int, device: str) -> int:
    """One worker for each two cores, at most 8 and at most one for each video; one where they would share a GPU."""
    if device == "cuda":
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores // 2, _MOST_WORKERS, n_jobs))


class VideoWorker:
    """Models in memory; does one video after another, whatever becomes of each."""

    def __init__(self, config: PreprocessConfig, device: str, transcripts: Path | None, folder: Path) -> None:
        """Load the models; relative paths count from ``folder``.

        Raises:
            InputError: the folder is not there on this machine; or see :class:`preprocessing.run.Preprocessor`.
        """
        try:
            os.chdir(folder)
        except OSError as error:
            raise InputError(
                f"{folder}: {error.strerror} on {platform.node()}; workers need the same folders"
            ) from None
        self._config, self._transcripts = config, transcripts
        self._preprocessor = Preprocessor(config, device=device, transcripts=transcripts)

    def __call__(self, job: Job, *, status: Status) -> Outcome:
        """Process one video; whatever goes wrong with it becomes part of its outcome.

        If another run works on the same video in the same folder, this one waits, and takes over what the other did.
        """
        begin = time.perf_counter()
        path, video_id = job.source.path, job.source.video_id
        waiting = Report(video_id, "waiting for another run", 0.0, 0).to_text()
        try:
            with lock(job.out, video_id, on_wait=lambda: status(waiting)):
                # Again: hours may have gone by, and another run may have done it.
                job = _plan_one(job.source, job.out, self._config, self._transcripts, job.overwrite)
                if not job.stages:
                    return _describe(video_id, job.out, job.kept, skipped=True)
                names = self._preprocessor.process(
                    job.source,
                    job.out,
                    stages=job.stages,
                    kept=job.kept,
                    overwrite=job.overwrite,
                    progress=_Teller(job, status),
                )
            notes = [job.reason] if job.reason else []
            return _describe(video_id, job.out, names, notes=notes, seconds=time.perf_counter() - begin)
        except InputError as error:
            problem = str(error)
        except OSError as error:
            problem = _describe_os_error(error, job)
        except Exception as error:
            # One video must never stop the others, whatever its bytes do to the libraries.
            problem = f"{path}: {type(error).__name__}: {' '.join(str(error).split())}"
        log.debug("traceback of the failure of %s", path, exc_info=True)
        return Outcome(job.source.video_id, done=False, problem=problem, seconds=time.perf_counter() - begin)


class _Inspector:
    """Looks into one video after another."""

    def __init__(self, streams: Sequence[int]) -> None:
        self._streams = streams

    def __call__(self, job: Job, *, status: Status) -> Look:
        try:
            width, height = picture_size(job.source.path, streams=self._streams)
            decode_first_sound(job.source.path, streams=self._streams)
        except InputError as error:
            return Look(problem=str(error))
        return Look(f"{width}x{height}")


class _Teller:
    """Puts the progress of the stages, which run side by side, into one line."""

    def __init__(self, job: Job, status: Status) -> None:
        self._video_id, self._status = job.source.video_id, status
        long_ones: tuple[Stage, ...] = ("faces", "speech")
        self._shares: dict[Stage, float] = {stage: 0.0 for stage in long_ones if stage in job.stages}
        self._n_frames = 0
        self._one_at_a_time = Lock()

    def __call__(self, stage: Stage, share: float, n_frames: int) -> None:
        with self._one_at_a_time:
            if stage in self._shares:
                self._shares[stage] = share
            self._n_frames = max(self._n_frames, n_frames)
            text = ", ".join(f"{stage} {share:.0%}" for stage, share in self._shares.items()) or "words"
            done = sum(self._shares.values()) / len(self._shares) if self._shares else 0.0
            self._status(Report(self._video_id, text, done, self._n_frames).to_text())


def _plan_one(source: Source, out: Path, config: PreprocessConfig, transcripts: Path | None, overwrite: bool) -> Job:
    """What is to be done for a video; without stages, nothing.

    Raises:
        InputError: its features would have to replace something that they must not.
        OSError: the video cannot be read.
    """
    job = Job(source, out, overwrite=True) if overwrite else _plan_stages(source, out, config, transcripts)
    # A file that is not there is named when its turn comes.
    if job.stages and source.path.exists():
        refuse_foreign_before_work(out, source, config, overwrite=overwrite)
    return job


def _plan_stages(source: Source, out: Path, config: PreprocessConfig, transcripts: Path | None) -> Job:
    try:
        kept = kept_folders(out, source, config)
        changed: dict[Stage, str] = {}
        for name in kept:
            changed |= changed_stages(out / name, source, config, transcripts)
    except (InputError, OSError, KeyError) as error:
        return Job(source, out, reason=f"all stages done again: {error}")
    if not kept:
        return Job(source, out)
    stages = tuple(stage for stage in STAGES if stage in changed)
    reason = f"done again: {', '.join(stages)} ({'; '.join(dict.fromkeys(changed.values()))})" if stages else ""
    return Job(source, out, stages, tuple(kept), reason)


def _describe_os_error(error: OSError, job: Job) -> str:
    """One line on what the system refused."""
    path, reason = job.source.path, error.strerror or str(error)
    if error.errno in DISK_FULL:
        return f"{path}: its features cannot be written to {job.out}: {reason}; make room and run the command again"
    where = f"{error.filename}: " if error.filename and str(error.filename) != str(path) else ""
    return f"{path}: {where}{reason}"


def _describe(
    video_id: str,
    out: Path,
    names: Sequence[str],
    *,
    skipped: bool = False,
    notes: Sequence[str] = (),
    seconds: float = 0.0,
) -> Outcome:
    features = load_features(out / names[0])
    remarks: dict[str, Any] = features.meta["warnings"]
    people = [f"people: {', '.join(names)}"] if list(names) != [video_id] else []
    return Outcome(
        video_id=video_id,
        done=True,
        skipped=skipped,
        folders=tuple(names),
        n_frames=features.n_frames,
        duration_s=float(features.time_s[-1]),
        face_share=float(np.isfinite(features.face_score).mean()),
        n_words=len(features.words),
        language=features.meta["language"] or "",
        seconds=seconds,
        warnings=(*notes, *people, *(remark for stage in remarks.values() for remark in stage)),
    )
