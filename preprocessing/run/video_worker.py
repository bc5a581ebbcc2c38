"""Processes one video in a worker process, and describes the outcome."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock

import numpy as np

from preprocessing.errors import DISK_FULL, InputError
from preprocessing.features import load_features
from preprocessing.files import lock
from preprocessing.run.one_video import Pipeline
from preprocessing.run.plan import Job, Stage, plan_job
from preprocessing.run.workers import Status

log = logging.getLogger("rcma.preprocessing")


@dataclass(frozen=True)
class Outcome:
    """What became of one video."""

    video_id: str
    done: bool
    """False when it failed."""
    problem: str = ""
    """One line: why it failed."""
    skipped: bool = False
    """Its features existed already, made from the same file with the same settings."""
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
class Report:
    """Progress of one video, sent by the worker."""

    video_id: str
    text: str
    """The stages and the share of each that is done."""
    share: float = 0.0
    """Of the video's work that is done, 0 to 1."""
    n_frames: int = 0
    """Frames seen so far."""


def try_job(pipeline: Pipeline, job: Job, *, status: Status) -> Outcome:
    """Process one video; its errors become part of the outcome."""
    begin = time.perf_counter()
    try:
        return process_job(pipeline, job, status=status)
    except (InputError, OSError) as error:
        log.debug("traceback of the failure of %s", job, exc_info=True)
        return failed(job, error, seconds=time.perf_counter() - begin)


def process_job(pipeline: Pipeline, job: Job, *, status: Status = lambda _: None) -> Outcome:
    """Process one video.

    If another run works on the same video in the same folder, this one waits, and uses the other's result.

    Raises:
        InputError: see :meth:`preprocessing.run.one_video.Pipeline.process`.
        OSError: see there.
    """
    begin = time.perf_counter()
    video_id = job.source.video_id
    with lock(job.out, video_id, on_wait=lambda: status(Report(video_id, "waiting for another run"))):
        # Again: hours may have gone by, and another run may have done it.
        job = plan_job(job.source, job.out, pipeline.config, pipeline.transcripts, job.overwrite)
        if not job.stages:
            return describe_features(job, job.kept, skipped=True)
        names = pipeline.process(job, progress=_reporter(job, status))
    return describe_features(job, names, seconds=time.perf_counter() - begin)


def _reporter(job: Job, status: Status) -> Callable[[Stage, float, int], None]:
    """Combine the progress of the stages, which run side by side on two threads."""
    long_stages: tuple[Stage, ...] = ("faces", "speech")
    shares = {stage: 0.0 for stage in long_stages if stage in job.stages}
    n_seen, one_at_a_time = 0, Lock()

    def report(stage: Stage, share: float, n_frames: int) -> None:
        nonlocal n_seen
        with one_at_a_time:
            if stage in shares:
                shares[stage] = share
            n_seen = max(n_seen, n_frames)
            text = ", ".join(f"{stage} {share:.0%}" for stage, share in shares.items()) or "words"
            status(Report(job.source.video_id, text, sum(shares.values()) / max(1, len(shares)), n_seen))

    return report


def failed(job: Job, error: InputError | OSError, *, seconds: float = 0.0) -> Outcome:
    """Describe the failure of a video."""
    problem = str(error)
    if isinstance(error, OSError):
        reason = error.strerror or problem
        if error.errno in DISK_FULL:
            reason = f"its features cannot be written to {job.out}: {reason}; make room and run the command again"
        elif error.filename and str(error.filename) != str(job):
            reason = f"{error.filename}: {reason}"
        problem = f"{job}: {reason}"
    return Outcome(job.source.video_id, done=False, problem=problem, seconds=seconds)


def describe_features(job: Job, names: Sequence[str], *, skipped: bool = False, seconds: float = 0.0) -> Outcome:
    """Describe a video whose feature folders exist."""
    features = load_features(job.out / names[0])
    remarks = [job.reason] if job.reason else []
    if list(names) != [job.source.video_id]:
        remarks.append(f"people: {', '.join(names)}")
    for warnings in features.meta["warnings"].values():
        remarks += warnings
    return Outcome(
        video_id=job.source.video_id,
        done=True,
        skipped=skipped,
        folders=tuple(names),
        n_frames=features.n_frames,
        duration_s=float(features.time_s[-1]),
        face_share=float(np.isfinite(features.face_score).mean()),
        n_words=len(features.words),
        language=features.meta["language"] or "",
        seconds=seconds,
        warnings=tuple(remarks),
    )
