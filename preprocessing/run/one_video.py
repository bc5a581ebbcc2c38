"""One video through all stages: pictures on one thread, sound and words on another, then one folder for each person.

Networks run on one thread each, whatever the machine has: their results stay the same to the last digit, and other
processes do not slow them down (OpenMP's threads wait for each other by spinning).
"""

from __future__ import annotations

import importlib.metadata
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from threading import Event
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from preprocessing.config import PreprocessConfig
from preprocessing.errors import InputError
from preprocessing.faces import FaceDetector, Faces, describe_provided, follow_faces, read_provided
from preprocessing.features import Features, FeatureWriter, Word, frame_word, load_features
from preprocessing.files import sha256, whole_or_nothing
from preprocessing.inputs import Source
from preprocessing.media import (
    HOP_LENGTH,
    MEL_RATE,
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
from preprocessing.run.plan import STAGES, Stage, refuse_foreign
from preprocessing.speech import SpeechRecogniser, Transcript, WordEncoder, find_transcript, read_transcript
from preprocessing.threads import one_core

Progress = Callable[[Stage, float, int], None]
"""Called with a stage, the share of it that is done (0 to 1), and the number of frames seen so far."""

_FRAMES_AT_ONCE = 256
"""Crops read and written at a time."""
_MEL_ROWS_AT_ONCE = 60 * MEL_RATE
"""Rows of kept log-mel, and the sound under them, read and written at a time."""
_PROGRESS_FRAMES = 25
"""Frames from one report to the next."""


@dataclass(frozen=True)
class _Pictures:
    """What the frames of a video gave."""

    time_s: NDArray[np.float64]
    subjects: dict[str, Faces]
    """By the name of the feature folder."""
    meta: dict[str, Any]
    warnings: list[str]


@dataclass(frozen=True)
class _Sound:
    """What the sound of a video gave."""

    n_mel_rows: int
    mel_blocks: Callable[[], Iterator[NDArray[np.float16]]]
    waveform_blocks: Callable[[], Iterator[NDArray[np.float16]]] | None
    """None: it is not to be stored."""
    words: tuple[Word, ...]
    word_vectors: NDArray[np.float16]
    meta: dict[str, Any]
    warnings: dict[str, list[str]]


class _StoppedError(Exception):
    """The other thread has failed: what this one does is no longer needed."""


@dataclass
class _Stopwatch:
    """Seconds spent in each stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: Stage) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - begin, 3)


class Pipeline:
    """The models of all stages, loaded once; then one call for each video."""

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
        self.config = config
        self._transcripts = transcripts
        self._detector = FaceDetector(config.faces, device=device)
        recognise = transcripts is None and config.speech.backend != "none"
        self._recogniser = SpeechRecogniser(config.speech, device=device) if recognise else None
        # Without a source of words there is nothing to encode, and no encoder is requested.
        self._encoder = WordEncoder(config.words, device=device) if recognise or transcripts is not None else None

    def process(
        self,
        source: Source,
        out: Path,
        *,
        stages: Sequence[Stage] = STAGES,
        kept: Sequence[str] = (),
        overwrite: bool = False,
        progress: Progress = lambda *_: None,
    ) -> list[str]:
        """Turn one video into feature folders, one for each subject, each written whole or not at all.

        Args:
            source: the video.
            out: where its feature folders go.
            stages: what is to be done; the rest is taken over from the folders ``kept``.
            kept: names of the video's feature folders that are there already.
            overwrite: see :func:`refuse_foreign`.
            progress: called as the work proceeds.

        Returns:
            Names of the feature folders.

        Raises:
            InputError: the file is not a video that can be decoded, its transcript or faces cannot be read, or what is
                in the place of a feature folder must not be replaced.
            OSError: a file cannot be read or written.
        """
        if source.provided_faces == {}:
            raise InputError(f"{source.path}: --cropped-aligned has no folder of faces for it")
        before = _stat(source.path)
        old = {name: load_features(out / name) for name in kept} if set(stages) != set(STAGES) else {}
        watch = _Stopwatch(dict(next(iter(old.values())).meta["seconds"]) if old else {})
        with ExitStack() as stack, one_core():
            crops = stack.enter_context(tempfile.TemporaryFile(dir=out))
            pictures, sound = self._perceive(source, stages, old, crops, out, watch, progress)
            description = _describe_source(source.path)
            if _stat(source.path) != before:
                raise InputError(f"{source.path}: changed while it was read; run the command again")
            meta = {
                "source": description,
                "subjects": list(pictures.subjects),
                **pictures.meta,
                **sound.meta,
                "settings": self.config.model_dump(mode="json"),
                "software": _software_versions(),
                "warnings": {"faces": pictures.warnings, **sound.warnings},
                "seconds": watch.seconds,
            }
            check = partial(refuse_foreign, source=source, overwrite=overwrite)
            # All before the first is written.
            for name in pictures.subjects:
                check(out / name)
            for name, faces in pictures.subjects.items():
                provided = (source.provided_faces or {}).get(name)
                description_of_faces = (
                    describe_provided(provided, first_image=source.first_image) if provided is not None else None
                )
                with whole_or_nothing(out / name, check=check) as partial_folder:
                    _write(
                        partial_folder, pictures.time_s, faces, sound, {**meta, "provided_faces": description_of_faces}
                    )
        return list(pictures.subjects)

    def _perceive(
        self,
        source: Source,
        stages: Sequence[Stage],
        old: dict[str, Features],
        crops: IO[bytes],
        scratch: Path,
        watch: _Stopwatch,
        progress: Progress,
    ) -> tuple[_Pictures, _Sound]:
        """Pictures on a thread of their own, sound on this one."""
        if "faces" not in stages:
            pictures = _kept_pictures(old)
            return pictures, self._hear(source, pictures.meta["start_s"], None, stages, old, scratch, watch, progress)
        stop = Event()
        with Video(source.path, streams=self.config.streams) as video, ThreadPoolExecutor(1, "pictures") as pool:
            seeing = pool.submit(self._see, source, video, crops, watch, progress, stop)
            try:
                sound = self._hear(source, video.start_s, video.clock, stages, old, scratch, watch, progress)
                pictures = seeing.result()
            except BaseException:
                stop.set()
                raise
        return pictures, sound

    def _see(
        self, source: Source, video: Video, crops: IO[bytes], watch: _Stopwatch, progress: Progress, stop: Event
    ) -> _Pictures:
        settings = self.config.faces
        times: list[float] = []
        frames = _watched(video, times, progress, stop)
        warnings: list[str] = []
        with watch.stage("faces"), one_core():
            if source.provided_faces is None:
                people = follow_faces(frames, self._detector, settings, crops)
                subjects = _name_subjects(source.video_id, people)
            else:
                for _ in frames:
                    pass
                subjects = {}
                for name, folder in source.provided_faces.items():
                    subjects[name], remarks = read_provided(
                        folder, n_frames=len(times), size=settings.size, store=crops, first_image=source.first_image
                    )
                    warnings += [f"{name}: {remark}" for remark in remarks]
        progress("faces", 1.0, len(times))
        time_s = np.asarray(times, dtype=np.float64)
        meta = {
            "frame_rate": _mean_rate(time_s),
            "n_frames": len(time_s),
            "width": video.width,
            "height": video.height,
            "start_s": video.start_s,
            "clock_resets": video.resets,
        }
        return _Pictures(time_s, subjects, meta, [*video.warnings, *warnings])

    def _hear(
        self,
        source: Source,
        origin_s: float,
        clock: RecordingClock | None,
        stages: Sequence[Stage],
        old: dict[str, Features],
        scratch: Path,
        watch: _Stopwatch,
        progress: Progress,
    ) -> _Sound:
        first_old = next(iter(old.values()), None)
        warnings: dict[str, list[str]] = {}
        audio = None
        if "audio" in stages or "speech" in stages:
            with watch.stage("audio"):
                audio = read_audio(
                    source.path,
                    origin_s=origin_s,
                    streams=self.config.streams,
                    clock=clock,
                    scratch=scratch,
                )
            warnings["audio"] = list(audio.warnings) if audio is not None else []
            described, n_rows = _describe_audio(audio), 0 if audio is None else n_log_mel_rows(audio)
            mel = _blocks_of(log_mel_blocks, audio)
            waveform = _blocks_of(waveform_blocks, audio) if self.config.audio.waveform else None
        else:
            assert first_old is not None
            warnings["audio"] = first_old.meta["warnings"]["audio"]
            described, n_rows = first_old.meta["audio"], len(first_old.log_mel)
            mel = partial(_blocks, first_old.log_mel, _MEL_ROWS_AT_ONCE)
            kept = first_old.waveform
            waveform = None if kept is None else partial(_blocks, kept, HOP_LENGTH * _MEL_ROWS_AT_ONCE)
        if "speech" in stages:
            with watch.stage("speech"):
                transcript, origin = self._transcribe(audio, source.video_id, origin_s=origin_s, progress=progress)
            # What words.json says and what frame_word.npy says must be the same to the last digit.
            words = tuple(replace(w, start_s=round(w.start_s, 3), end_s=round(w.end_s, 3)) for w in transcript.words)
            language, warnings["speech"] = transcript.language, list(transcript.warnings)
        else:
            assert first_old is not None
            words, language, origin = first_old.words, first_old.meta["language"], first_old.meta["transcript"]
            warnings["speech"] = first_old.meta["warnings"]["speech"]
        progress("speech", 1.0, 0)
        if "words" in stages:
            with watch.stage("words"):
                vectors = self._encode([word.text for word in words])
        else:
            assert first_old is not None
            vectors = np.asarray(first_old.word_vectors)
        meta = {"audio": described, "language": language, "transcript": origin}
        return _Sound(n_rows, mel, waveform, words, vectors, meta, warnings)

    def _transcribe(
        self, audio: Audio | None, video_id: str, *, origin_s: float, progress: Progress
    ) -> tuple[Transcript, Any]:
        if self._transcripts is not None:
            path = find_transcript(self._transcripts, video_id, language=self.config.speech.language)
            if path is None:
                missing = f"no transcript for {video_id!r} in {self._transcripts}: no words"
                return Transcript(words=(), language=None, warnings=(missing,)), None
            return read_transcript(path, offset_s=-origin_s), _describe_source(path)
        if self._recogniser is None or audio is None:
            return Transcript(words=(), language=None), None
        return self._recogniser.transcribe(audio, progress=lambda share: progress("speech", share, 0)), None

    def _encode(self, words: list[str]) -> NDArray[np.float16]:
        if self._encoder is None:
            return np.zeros((0, 0), dtype=np.float16)
        return self._encoder.encode(words)


def _write(folder: Path, time_s: NDArray[np.float64], faces: Faces, sound: _Sound, meta: dict[str, Any]) -> None:
    writer = FeatureWriter(folder)
    writer.write_array("time_s", time_s)
    n_frames, size = len(time_s), meta["settings"]["faces"]["size"]
    starts = range(0, n_frames, _FRAMES_AT_ONCE)
    blocks = (faces.read_crops(first, min(first + _FRAMES_AT_ONCE, n_frames)) for first in starts)
    writer.write_rows("faces", (n_frames, size, size, 3), blocks)
    writer.write_array("face_box", faces.boxes)
    writer.write_array("face_score", faces.scores)
    writer.write_rows("log_mel", (sound.n_mel_rows, N_MELS), sound.mel_blocks())
    if sound.waveform_blocks is not None:
        writer.write_rows("waveform", (sound.n_mel_rows * HOP_LENGTH,), sound.waveform_blocks())
    writer.write_array("word_vectors", sound.word_vectors)
    starts_s, ends_s = (np.array([getattr(word, edge) for word in sound.words]) for edge in ("start_s", "end_s"))
    writer.write_array("frame_word", frame_word(starts_s, ends_s, time_s))
    writer.write_words(sound.words)
    writer.write_meta(meta)


def _kept_pictures(old: dict[str, Features]) -> _Pictures:
    first = next(iter(old.values()))
    subjects = {
        name: Faces(np.asarray(features.face_box), np.asarray(features.face_score), partial(_slice, features.faces))
        for name, features in old.items()
    }
    keys = ("frame_rate", "n_frames", "width", "height", "start_s", "clock_resets")
    return _Pictures(
        np.asarray(first.time_s), subjects, {key: first.meta[key] for key in keys}, first.meta["warnings"]["faces"]
    )


def _slice(array: NDArray[Any], first: int, stop: int) -> NDArray[Any]:
    return np.asarray(array[first:stop])


def _blocks(array: NDArray[Any], n_rows: int) -> Iterator[NDArray[Any]]:
    for first in range(0, len(array), n_rows):
        yield np.asarray(array[first : first + n_rows])


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


def _watched(video: Video, times: list[float], progress: Progress, stop: Event) -> Iterator[Frame]:
    """Frames of a video, whose times are noted."""
    for frame in video.frames():
        times.append(frame.time_s)
        if len(times) % _PROGRESS_FRAMES == 0:
            if stop.is_set():
                raise _StoppedError
            progress("faces", video.share_read, len(times))
        yield frame


def _mean_rate(time_s: NDArray[np.float64]) -> float | None:
    span = float(time_s[-1] - time_s[0])
    return round((len(time_s) - 1) / span, 6) if span > 0 else None


def _blocks_of(
    make: Callable[[Audio], Iterator[NDArray[np.float16]]], audio: Audio | None
) -> Callable[[], Iterator[NDArray[np.float16]]]:
    return partial(make, audio) if audio is not None else lambda: iter(())


def _describe_audio(audio: Audio | None) -> dict[str, Any]:
    if audio is None:
        return {"present": False, "start_s": None, "duration_s": None}
    return {
        "present": True,
        "start_s": round(audio.start_s, 6),
        "duration_s": round(len(audio.samples) / SAMPLE_RATE, 6),
    }


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
