"""What a worker process does: one video after another, whatever becomes of each."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from preprocessing.config import PreprocessConfig
from preprocessing.errors import DISK_FULL, InputError
from preprocessing.features import load_features
from preprocessing.files import lock
from preprocessing.media import decode_first_sound, picture_size
from preprocessing.run.one_video import Pipeline
from preprocessing.run.plan import Job, Stage, plan_one
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
class Look:
    """What the beginning of a video shows."""

    picture: str = ""
    """Width and height of the upright picture, such as 1280x720."""
    problem: str = ""
    """One line: why the video cannot be done."""


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


class VideoWorker:
    """The models of all stages in memory; does one video after another."""

    def __init__(self, config: PreprocessConfig, device: str, transcripts: Path | None) -> None:
        """Load the models, see :class:`preprocessing.run.one_video.Pipeline`."""
        self._config, self._transcripts = config, transcripts
        self._pipeline = Pipeline(config, device=device, transcripts=transcripts)

    def __call__(self, job: Job, *, status: Status) -> Outcome:
        """Process one video; whatever goes wrong with it becomes part of its outcome."""
        begin = time.perf_counter()
        path = job.source.path
        try:
            return self.process(job, status=status)
        except InputError as error:
            problem = str(error)
        except OSError as error:
            problem = describe_os_error(error, job)
        except Exception as error:
            # One video must never stop the others, whatever its bytes do to the libraries.
            problem = f"{path}: {type(error).__name__}: {' '.join(str(error).split())}"
        log.debug("traceback of the failure of %s", path, exc_info=True)
        return Outcome(job.source.video_id, done=False, problem=problem, seconds=time.perf_counter() - begin)

    def process(self, job: Job, *, status: Status = lambda _: None) -> Outcome:
        """Process one video.

        If another run works on the same video in the same folder, this one waits, and takes over what the other did.

        Raises:
            InputError: see :meth:`preprocessing.run.one_video.Pipeline.process`.
            OSError: see there.
        """
        begin = time.perf_counter()
        video_id = job.source.video_id
        waiting = Report(video_id, "waiting for another run", 0.0, 0).to_text()
        with lock(job.out, video_id, on_wait=lambda: status(waiting)):
            # Again: hours may have gone by, and another run may have done it.
            job = plan_one(job.source, job.out, self._config, self._transcripts, job.overwrite)
            if not job.stages:
                return describe_features(video_id, job.out, job.kept, skipped=True)
            names = self._pipeline.process(
                job.source,
                job.out,
                stages=job.stages,
                kept=job.kept,
                overwrite=job.overwrite,
                progress=_Teller(job, status),
            )
        notes = [job.reason] if job.reason else []
        return describe_features(video_id, job.out, names, notes=notes, seconds=time.perf_counter() - begin)


class VideoInspector:
    """Opens one video after another, and decodes its beginning."""

    def __init__(self, streams: Sequence[int]) -> None:
        """Look at these streams of each file; see :class:`preprocessing.config.PreprocessConfig`."""
        self._streams = streams

    def __call__(self, job: Job, *, status: Status) -> Look:
        """Open one video."""
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


def describe_os_error(error: OSError, job: Job) -> str:
    """One line on what the system refused."""
    path, reason = job.source.path, error.strerror or str(error)
    if error.errno in DISK_FULL:
        return f"{path}: its features cannot be written to {job.out}: {reason}; make room and run the command again"
    where = f"{error.filename}: " if error.filename and str(error.filename) != str(path) else ""
    return f"{path}: {where}{reason}"


def describe_features(
    video_id: str,
    out: Path,
    names: Sequence[str],
    *,
    skipped: bool = False,
    notes: Sequence[str] = (),
    seconds: float = 0.0,
) -> Outcome:
    """The outcome of a video whose feature folders are there."""
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
