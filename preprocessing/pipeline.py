"""One video through all stages, and many videos through one pipeline after another."""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from preprocessing.align import frame_word
from preprocessing.audio import N_MELS, SAMPLE_RATE, log_mel_on_clock
from preprocessing.config import PreprocessConfig, flatten
from preprocessing.errors import InputError
from preprocessing.faces import FaceDetector, find_faces
from preprocessing.inputs import Source
from preprocessing.speech import SpeechRecogniser, Transcript
from preprocessing.store import Features, load_features, save_features
from preprocessing.transcripts import find_transcript, read_transcript
from preprocessing.video import Audio, Frame, Video, read_audio
from preprocessing.words import WordEncoder

log = logging.getLogger("rcma.preprocessing")

_THREADS = 4
"""More hardly speed up networks as small as these."""

Status = Callable[[str], None]
"""Is told in a few words what is being done now."""


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
    n_frames: int = 0
    face_share: float = 0.0
    """Share of frames with a face, 0 to 1."""
    n_words: int = 0
    language: str = ""
    seconds: float = 0.0
    warnings: tuple[str, ...] = ()


@dataclass
class _Stopwatch:
    """Seconds spent in each stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - begin, 3)


class Preprocessor:
    """All models of the pipeline, loaded once; then one call for each video."""

    def __init__(self, config: PreprocessConfig, *, device: str, transcripts: Path | None = None) -> None:
        """Load the models that ``config`` names.

        Args:
            config: settings of every stage.
            device: ``cpu`` or ``cuda``.
            transcripts: folder of ``<video_id>.srt``, ``.vtt`` or ``.json`` files that replace speech recognition.

        Raises:
            InputError: a model cannot be had, or the transcript folder does not exist.
        """
        if transcripts is not None and not transcripts.is_dir():
            raise InputError(f"--transcripts {transcripts}: no such folder")
        self.config = config
        self._transcripts = transcripts
        self._detector = FaceDetector(config.faces, device=device)
        recognise = transcripts is None and config.speech.backend != "none"
        self._recogniser = SpeechRecogniser(config.speech, device=device) if recognise else None
        # Without a source of words there is nothing to encode, and no encoder is asked for.
        self._encoder = WordEncoder(config.words, device=device) if recognise or transcripts is not None else None

    def process(self, path: Path, folder: Path, *, status: Status = lambda _: None) -> Features:
        """Turn one video into a feature folder, written whole or not at all.

        Args:
            path: the video file.
            folder: where its features go; its name is the video_id.
            status: is told what is being done.

        Raises:
            InputError: the file is not a video that can be decoded, or its transcript cannot be read.
        """
        watch = _Stopwatch()
        warnings: list[str] = []
        with Video(path) as video:
            times: list[float] = []
            with watch.stage("faces"):
                status("faces")
                faces = find_faces(_noting_times(video.frames(), times, status), self._detector, self.config.faces)
            warnings += video.warnings
            if not times:
                raise InputError(f"{path}: not one frame could be decoded; is the file damaged?")
            time_s = np.asarray(times, dtype=np.float64)
            with watch.stage("audio"):
                status("audio")
                audio = read_audio(path, origin_s=video.start_s)
                log_mel = _log_mel(audio)
            with watch.stage("speech"):
                status("speech")
                transcript, transcript_source = self._transcribe(audio, folder.name, origin_s=video.start_s)
            warnings += (*(audio.warnings if audio is not None else ()), *transcript.warnings)
            # What words.json says and what frame_word.npy says must be the same to the last digit.
            words = tuple(
                replace(word, start_s=round(word.start_s, 3), end_s=round(word.end_s, 3)) for word in transcript.words
            )
            with watch.stage("words"):
                status("words")
                vectors = self._encode([word.text for word in words])
            features = Features(
                video_id=folder.name,
                meta={
                    "source": _describe_source(path),
                    "frame_rate": _mean_rate(time_s),
                    "n_frames": len(time_s),
                    "width": video.width,
                    "height": video.height,
                    "start_s": video.start_s,
                    "audio": _describe_audio(audio),
                    "language": transcript.language,
                    "transcript": transcript_source,
                    "settings": self.config.model_dump(mode="json"),
                    "software": _software_versions(),
                    "warnings": warnings,
                    "seconds": watch.seconds,
                },
                time_s=time_s,
                faces=faces.crops,
                face_box=faces.boxes,
                face_score=faces.scores,
                log_mel=log_mel,
                words=words,
                word_vectors=vectors,
                frame_word=frame_word(
                    np.array([word.start_s for word in words], dtype=np.float64),
                    np.array([word.end_s for word in words], dtype=np.float64),
                    time_s,
                ),
            )
        save_features(folder, features)
        return features

    def _transcribe(self, audio: Audio | None, video_id: str, *, origin_s: float) -> tuple[Transcript, Any]:
        if self._transcripts is not None:
            path = find_transcript(self._transcripts, video_id)
            if path is None:
                missing = f"no transcript for {video_id!r} in {self._transcripts}: no words"
                return Transcript(words=(), language=None, warnings=(missing,)), None
            return read_transcript(path, offset_s=-origin_s), _describe_source(path)
        if self._recogniser is None or audio is None:
            return Transcript(words=(), language=None), None
        return self._recogniser.transcribe(audio), None

    def _encode(self, words: list[str]) -> NDArray[np.float16]:
        if self._encoder is None:
            return np.zeros((0, 0), dtype=np.float16)
        return self._encoder.encode(words)


@dataclass(frozen=True)
class _Job:
    """One video to be processed; everything a worker process needs to know of it."""

    source: Source
    folder: Path
    """Where its features go."""
    reason: str | None
    """Why features that are already there do not serve; None where there are none, or all are to be done again."""


def preprocess_many(
    sources: list[Source],
    out: Path,
    config: PreprocessConfig,
    *,
    device: str,
    transcripts: Path | None = None,
    overwrite: bool = False,
    workers: int = 1,
    status: Status = lambda _: None,
) -> Iterator[Outcome]:
    """Process many videos, in this process or in ``workers`` others; yields each outcome when it is known.

    Videos whose features are there, made from the same file with the same settings, come first and cost nothing. How
    many workers there are changes no byte of the features.

    Raises:
        InputError: a model cannot be had, the transcript folder does not exist, or ``out`` cannot be written to.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {out}: cannot be made: {error.strerror}") from None
    jobs = []
    for source in sources:
        folder = out / source.video_id
        reason = _reason_to_redo(folder, source, config, transcripts) if folder.exists() and not overwrite else None
        if folder.exists() and not overwrite and reason is None:
            yield _describe_outcome(load_features(folder), skipped=True)
        else:
            jobs.append(_Job(source, folder, reason))
    if not jobs:
        return
    if workers == 1:
        status("loading models")
        with _fixed_threads():
            preprocessor = Preprocessor(config, device=device, transcripts=transcripts)
            for job in jobs:
                yield _process_job(preprocessor, job, status=partial(_named_status, status, job.source.video_id))
        return
    # spawn: a forked child must not touch CUDA, and inherits locks of the parent's threads.
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(_work, job, config, device, transcripts) for job in jobs]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _process_job(preprocessor: Preprocessor, job: _Job, *, status: Status = lambda _: None) -> Outcome:
    """Process one video of many: whatever goes wrong with it becomes part of its outcome."""
    begin = time.perf_counter()
    path = job.source.path
    try:
        features = preprocessor.process(path, job.folder, status=status)
        notes = [] if job.reason is None else [f"done again: {job.reason}"]
        return _describe_outcome(features, notes=notes, seconds=time.perf_counter() - begin)
    except InputError as error:
        problem = str(error)
    except Exception as error:
        # One video must never stop the others, whatever its bytes do to the libraries.
        problem = f"{path}: {type(error).__name__}: {' '.join(str(error).split())}"
    log.debug("traceback of the failure of %s", path, exc_info=True)
    return Outcome(job.source.video_id, done=False, problem=problem, seconds=time.perf_counter() - begin)


def _named_status(status: Status, video_id: str, text: str) -> None:
    status(f"{video_id}: {text}")


@contextmanager
def _fixed_threads() -> Iterator[None]:
    """Let networks use the same number of threads whatever else runs: it decides the last digits of their results."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(min(_THREADS, before))
    try:
        yield
    finally:
        torch.set_num_threads(before)


_preprocessor_of_this_worker: Preprocessor | None = None


def _work(job: _Job, config: PreprocessConfig, device: str, transcripts: Path | None) -> Outcome:
    global _preprocessor_of_this_worker
    with _fixed_threads():
        if _preprocessor_of_this_worker is None:
            _preprocessor_of_this_worker = Preprocessor(config, device=device, transcripts=transcripts)
        return _process_job(_preprocessor_of_this_worker, job)


def _reason_to_redo(folder: Path, source: Source, config: PreprocessConfig, transcripts: Path | None) -> str | None:
    """Say why features that are already there do not serve; None when they do."""
    try:
        meta = load_features(folder).meta
        then, now = flatten(meta["settings"]), flatten(config.model_dump(mode="json"))
        changed = [f"{key} was {then.get(key)!r}, is {now[key]!r}" for key in now if then.get(key) != now[key]]
        if changed:
            return "; ".join(changed)
        # Where what they were made from is gone, the features are whole all the same.
        if source.path.exists() and not _is_same_file(source.path, meta["source"]):
            return f"{source.path} is not the file that the features were made from"
        transcript = find_transcript(transcripts, source.video_id) if transcripts is not None else None
        known = meta["transcript"]
        if (transcript is None) != (known is None) or (transcript and not _is_same_file(transcript, known)):
            return "its transcript has changed"
    except (InputError, OSError, KeyError) as error:
        return str(error)
    return None


def _describe_outcome(
    features: Features, *, skipped: bool = False, notes: list[str] | None = None, seconds: float = 0.0
) -> Outcome:
    with_face = np.isfinite(features.face_score)
    return Outcome(
        video_id=features.video_id,
        done=True,
        skipped=skipped,
        n_frames=features.n_frames,
        face_share=float(with_face.mean()),
        n_words=len(features.words),
        language=features.meta["language"] or "",
        seconds=seconds,
        warnings=(*(notes or []), *features.meta["warnings"]),
    )


def _noting_times(frames: Iterator[Frame], times: list[float], status: Status) -> Iterator[Frame]:
    for frame in frames:
        times.append(frame.time_s)
        if len(times) % 100 == 0:
            status(f"faces, frame {len(times)}")
        yield frame


def _mean_rate(time_s: NDArray[np.float64]) -> float | None:
    span = float(time_s[-1] - time_s[0])
    return round((len(time_s) - 1) / span, 6) if span > 0 else None


def _log_mel(audio: Audio | None) -> NDArray[np.float16]:
    if audio is None:
        return np.zeros((0, N_MELS), dtype=np.float16)
    return log_mel_on_clock(audio)


def _describe_audio(audio: Audio | None) -> dict[str, Any]:
    if audio is None:
        return {"present": False, "start_s": None, "duration_s": None}
    return {
        "present": True,
        "start_s": round(audio.start_s, 6),
        "duration_s": round(len(audio.samples) / SAMPLE_RATE, 6),
    }


def _describe_source(path: Path) -> dict[str, Any]:
    status = path.stat()
    return {"path": str(path), "size": status.st_size, "modified_ns": status.st_mtime_ns, "sha256": _sha256(path)}


def _is_same_file(path: Path, description: dict[str, Any]) -> bool:
    status = path.stat()
    if status.st_size != description["size"]:
        return False
    # Reading terabytes again only to see that nothing changed would cost hours: the time of change comes first.
    return status.st_mtime_ns == description["modified_ns"] or _sha256(path) == description["sha256"]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _software_versions() -> dict[str, str]:
    packages = ("torch", "facenet-pytorch", "openai-whisper", "faster-whisper", "silero-vad", "transformers", "av")
    versions = {}
    for package in packages:
        # An extra that is not installed took no part.
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions
