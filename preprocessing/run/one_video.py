"""One video through all stages: pictures on one thread, sound and words on another, then one folder for each person.

Networks run on one thread each, whatever the machine has: their results stay the same to the last digit, and other
processes do not slow them down (OpenMP's threads wait for each other by spinning).
"""

from __future__ import annotations

import importlib.metadata
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Event
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from preprocessing.config import PreprocessConfig
from preprocessing.errors import InputError
from preprocessing.faces import FaceDetector, Faces, follow_faces, read_provided
from preprocessing.features import Features, FeatureWriter, Word, frame_word, load_features
from preprocessing.files import sha256, whole_or_nothing
from preprocessing.media import (
    HOP_LENGTH,
    N_MELS,
    SAMPLE_RATE,
    Audio,
    Frame,
    RecordingClock,
    Video,
    log_mel_blocks,
    n_log_mel_rows,
    read_audio,
    waveform_blocks,
)
from preprocessing.run.plan import STAGES, Job, Stage, describe_faces, refuse_foreign
from preprocessing.speech import SpeechRecogniser, Transcript, WordEncoder, find_transcript, read_transcript
from preprocessing.threads import one_core

Progress = Callable[[Stage, float, int], None]
"""Called with a stage, the share of it that is done (0 to 1), and the number of frames seen so far."""

_FRAMES_AT_ONCE = 256
"""Crops read and written at a time."""
_PROGRESS_FRAMES = 25
"""Frames from one report to the next."""

_FILES: dict[Stage, tuple[str, ...]] = {
    "faces": ("time_s.npy", "faces.npy", "face_box.npy", "face_score.npy"),
    "audio": ("log_mel.npy", "waveform.npy"),
    "speech": ("words.json",),
    "words": ("word_vectors.npy",),
}
"""Files of a feature folder by the stage that makes them; ``frame_word.npy`` depends on two stages."""
_META: dict[Stage, tuple[str, ...]] = {
    "faces": ("frame_rate", "n_frames", "width", "height", "start_s", "clock_resets"),
    "audio": ("audio",),
    "speech": ("language", "transcript"),
    "words": (),
}
"""Entries of ``meta.json`` by stage."""


@dataclass(frozen=True)
class _Result:
    """Result of one stage, done now or taken over from an existing feature folder."""

    meta: dict[str, Any]
    write: Callable[[Path, str], None]
    """Writes the files of the stage into a folder, for the subject of a name."""
    warnings: Sequence[str] = ()


class Pipeline:
    """The models of all stages, loaded once for any number of videos."""

    def __init__(self, config: PreprocessConfig, *, device: str, transcripts: Path | None = None) -> None:
        """Load the models that ``config`` names.

        Args:
            config: settings of every stage.
            device: ``cpu`` or ``cuda``.
            transcripts: folder of files that replace speech recognition, see :mod:`preprocessing.speech.transcripts`.

        Raises:
            InputError: a model is not available, or the transcript folder does not exist.
        """
        if transcripts is not None and not transcripts.is_dir():
            raise InputError(f"--transcripts {transcripts}: no such folder")
        self.config, self.transcripts = config, transcripts
        self.detector = FaceDetector(config.faces, device=device)
        recognise = transcripts is None and config.speech.backend != "none"
        self.recogniser = SpeechRecogniser(config.speech, device=device) if recognise else None
        # Without a source of words there is nothing to encode, and no encoder is requested.
        self.encoder = WordEncoder(config.words, device=device) if recognise or transcripts is not None else None

    def process(self, job: Job, *, progress: Progress = lambda *_: None) -> list[str]:
        """Turn one video into feature folders, one for each subject, each written whole or not at all.

        Args:
            job: see :func:`preprocessing.run.plan.plan_job`.
            progress: called as the work proceeds.

        Returns:
            Names of the feature folders.

        Raises:
            InputError: the file is not a video that can be decoded, its transcript or faces cannot be read, or a
                feature folder would replace something that it must not.
            OSError: a file cannot be read or written.
        """
        source = job.source
        if source.provided_faces == {}:
            raise InputError(f"{source.path}: --cropped-aligned has no folder of faces for it")
        before = _stat(source.path)
        work = _Work(self, job, progress)
        with tempfile.TemporaryFile(dir=job.out) as crops, one_core():
            work.run(crops)
            description = _describe_source(source.path)
            if _stat(source.path) != before:
                raise InputError(f"{source.path}: changed while it was read; run the command again")
            results = [work.results[stage] for stage in STAGES]
            meta = {"source": description, "subjects": work.subjects}
            for result in results:
                meta |= result.meta
            meta |= {
                "settings": self.config.model_dump(mode="json"),
                "software": _software_versions(),
                "warnings": {stage: list(work.results[stage].warnings) for stage in STAGES if stage != "words"},
                "seconds": work.seconds,
            }
            starts_s, ends_s = np.array([w.start_s for w in work.words]), np.array([w.end_s for w in work.words])
            words_at_frames = frame_word(starts_s, ends_s, work.time_s)
            check = partial(refuse_foreign, source=source, overwrite=job.overwrite)
            # All before the first is written.
            for name in work.subjects:
                check(job.out / name)
            for name in work.subjects:
                with whole_or_nothing(job.out / name, check=check) as folder:
                    for result in results:
                        result.write(folder, name)
                    writer = FeatureWriter(folder)
                    writer.write_array("frame_word", words_at_frames)
                    writer.write_meta({**meta, "provided_faces": describe_faces(source, name)})
        return work.subjects


class _Work:
    """The stages of one video."""

    def __init__(self, models: Pipeline, job: Job, progress: Progress) -> None:
        self._models, self._config, self._source, self._job = models, models.config, job.source, job
        self._progress = progress
        self._has_failed = Event()
        self.results: dict[Stage, _Result] = {}
        self.seconds: dict[str, float] = {}
        self.subjects: list[str] = []
        """Names of the feature folders."""
        self.time_s: NDArray[np.float64]
        self.words: tuple[Word, ...]
        if job.kept:
            self._take_over(load_features(job.out / job.kept[0]))

    def _take_over(self, features: Features) -> None:
        """Use what is known already for the stages that are not to be done."""
        self.subjects, self.time_s, self.words = list(self._job.kept), features.time_s, features.words
        self.seconds = dict(features.meta["seconds"])
        for stage in STAGES:
            # Speech recognition needs the sound.
            if stage not in self._job.stages and (stage != "audio" or "speech" not in self._job.stages):
                meta = {key: features.meta[key] for key in _META[stage]}
                copy = partial(self._copy_files, stage)
                self.results[stage] = _Result(meta, copy, features.meta["warnings"].get(stage, ()))

    def _copy_files(self, stage: Stage, folder: Path, name: str) -> None:
        # All but the faces are the same for all subjects.
        existing = self._job.out / (name if stage == "faces" else self._job.kept[0])
        for file in _FILES[stage]:
            if (existing / file).exists():
                shutil.copyfile(existing / file, folder / file)

    @contextmanager
    def _timed(self, stage: Stage) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.seconds[stage] = round(time.perf_counter() - begin, 3)

    def run(self, crops: IO[bytes]) -> None:
        """Do the stages: pictures on a thread of their own, sound and words on this one."""
        if "faces" in self.results:
            self._hear(self.results["faces"].meta["start_s"], None)
            return
        with (
            Video(self._source.path, streams=self._config.streams) as video,
            ThreadPoolExecutor(1, "pictures") as thread,
        ):
            seeing = thread.submit(self._see, video, crops)
            try:
                self._hear(video.start_s, video.clock)
                seeing.result()
            except BaseException:
                self._has_failed.set()
                raise

    def _see(self, video: Video, crops: IO[bytes]) -> None:
        source, times = self._source, list[float]()
        frames = self._timed_frames(video, times)
        warnings: list[str] = []
        with self._timed("faces"), one_core():
            if source.provided_faces is None:
                people = follow_faces(frames, self._models.detector, self._config.faces, crops)
                faces = _name_subjects(source.video_id, people)
            else:
                for _ in frames:
                    pass
                faces = {}
                for name, folder in source.provided_faces.items():
                    faces[name], remarks = read_provided(
                        folder,
                        n_frames=len(times),
                        size=self._config.faces.size,
                        store=crops,
                        first_image=source.first_image,
                    )
                    warnings += [f"{name}: {remark}" for remark in remarks]
        self._progress("faces", 1.0, len(times))
        self.time_s, self.subjects = np.asarray(times, dtype=np.float64), list(faces)
        meta = {
            "frame_rate": _mean_rate(self.time_s),
            "n_frames": len(times),
            "width": video.width,
            "height": video.height,
            "start_s": video.start_s,
            "clock_resets": video.resets,
        }

        def write(folder: Path, name: str) -> None:
            writer, size, n_frames = FeatureWriter(folder), self._config.faces.size, len(times)
            writer.write_array("time_s", self.time_s)
            starts = range(0, n_frames, _FRAMES_AT_ONCE)
            blocks = (faces[name].read_crops(start, min(start + _FRAMES_AT_ONCE, n_frames)) for start in starts)
            writer.write_rows("faces", (n_frames, size, size, 3), blocks)
            writer.write_array("face_box", faces[name].boxes)
            writer.write_array("face_score", faces[name].scores)

        self.results["faces"] = _Result(meta, write, [*video.warnings, *warnings])

    def _timed_frames(self, video: Video, times: list[float]) -> Iterator[Frame]:
        """Frames of a video, whose times are appended to ``times``."""
        for frame in video.frames():
            times.append(frame.time_s)
            if len(times) % _PROGRESS_FRAMES == 0:
                if self._has_failed.is_set():
                    raise CancelledError
                self._progress("faces", video.share_read, len(times))
            yield frame

    def _hear(self, origin_s: float, clock: RecordingClock | None) -> None:
        audio = None
        if "audio" not in self.results:
            with self._timed("audio"):
                audio = read_audio(
                    self._source.path,
                    origin_s=origin_s,
                    streams=self._config.streams,
                    clock=clock,
                    scratch=self._job.out,
                )
            write = partial(_write_sound, audio, self._config.audio.waveform)
            self.results["audio"] = _Result({"audio": _describe_audio(audio)}, write, audio.warnings if audio else ())
        if "speech" not in self.results:
            with self._timed("speech"):
                transcript, file = self._transcribe(audio, origin_s=origin_s)
            # The times in words.json and those behind frame_word.npy must be the same to the last digit.
            words = tuple(replace(w, start_s=round(w.start_s, 3), end_s=round(w.end_s, 3)) for w in transcript.words)
            self.words = words
            self.results["speech"] = _Result(
                {"language": transcript.language, "transcript": file},
                lambda folder, _: FeatureWriter(folder).write_words(words),
                transcript.warnings,
            )
        self._progress("speech", 1.0, 0)
        if "words" not in self.results:
            with self._timed("words"):
                vectors = self._encode([word.text for word in self.words])
            self.results["words"] = _Result(
                {}, lambda folder, _: FeatureWriter(folder).write_array("word_vectors", vectors)
            )

    def _transcribe(self, audio: Audio | None, *, origin_s: float) -> tuple[Transcript, dict[str, Any] | None]:
        """Words, and the description of the file that they come from."""
        folder, video_id = self._models.transcripts, self._source.video_id
        if folder is not None:
            path = find_transcript(folder, video_id, language=self._config.speech.language)
            if path is None:
                missing = f"no transcript for {video_id!r} in {folder}: no words"
                return Transcript(words=(), language=None, warnings=(missing,)), None
            return read_transcript(path, offset_s=-origin_s), _describe_source(path)
        if self._models.recogniser is None or audio is None:
            return Transcript(words=(), language=None), None
        transcript = self._models.recogniser.transcribe(
            audio, progress=lambda share: self._progress("speech", share, 0)
        )
        return transcript, None

    def _encode(self, words: list[str]) -> NDArray[np.float16]:
        if self._models.encoder is None:
            return np.zeros((0, 0), dtype=np.float16)
        return self._models.encoder.encode(words)


def _describe_audio(audio: Audio | None) -> dict[str, Any]:
    if audio is None:
        return {"present": False, "start_s": None, "duration_s": None}
    return {
        "present": True,
        "start_s": round(audio.start_s, 6),
        "duration_s": round(len(audio.samples) / SAMPLE_RATE, 6),
    }


def _write_sound(audio: Audio | None, waveform: bool, folder: Path, _: str) -> None:
    writer = FeatureWriter(folder)
    n_rows = 0 if audio is None else n_log_mel_rows(audio)
    writer.write_rows("log_mel", (n_rows, N_MELS), [] if audio is None else log_mel_blocks(audio))
    if waveform:
        writer.write_rows("waveform", (n_rows * HOP_LENGTH,), [] if audio is None else waveform_blocks(audio))


def _name_subjects(video_id: str, people: Sequence[Faces]) -> dict[str, Faces]:
    """Names of feature folders, as Aff-Wild2 names them where two people sit side by side."""
    if len(people) == 2:
        boxes = [np.nanmedian(faces.boxes, axis=0) for faces in people]
        centres = [(box[0] + box[2]) / 2 for box in boxes]
        widths = [box[2] - box[0] for box in boxes]
        if abs(centres[0] - centres[1]) >= 0.5 * max(widths):
            left, right = sorted((0, 1), key=lambda k: centres[k])
            return {f"{video_id}_left": people[left], f"{video_id}_right": people[right]}
    if len(people) == 1:
        return {video_id: people[0]}
    return {f"{video_id}_{number}": faces for number, faces in enumerate(people, start=1)}


def _mean_rate(time_s: NDArray[np.float64]) -> float | None:
    span = float(time_s[-1] - time_s[0])
    return round((len(time_s) - 1) / span, 6) if span > 0 else None


def _stat(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    return status.st_size, status.st_mtime_ns


def _describe_source(path: Path) -> dict[str, Any]:
    size, modified_ns = _stat(path)
    return {"path": str(path.absolute()), "size": size, "modified_ns": modified_ns, "sha256": sha256(path)}


def _software_versions() -> dict[str, str]:
    packages = ("torch", "facenet-pytorch", "openai-whisper", "faster-whisper", "silero-vad", "transformers", "av")
    versions = {}
    for package in packages:
        # An extra that is not installed took no part.
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions
