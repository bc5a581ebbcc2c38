"""Videos or their features to valence and arousal for each frame, by RCMA or by public models."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

from preprocessing.device import resolve_device
from preprocessing.errors import InputError
from preprocessing.features import Features, RecordingFinder, load_features
from preprocessing.inputs import Inputs, sort_inputs
from preprocessing.run import Engine, Preprocessor, preprocess_with_progress
from preprocessing.threads import n_cores
from rcma.config import Target
from rcma.data import change_raw_video_settings, face_source
from rcma.experts import PublicModels
from rcma.model import RCMA, load_model
from rcma.prediction import Checkpoints, FillKind, FindRecording, Prediction, SmoothKind, finish

log = logging.getLogger("rcma")

Checkpoint = str | Path | RCMA
Models = Checkpoints | PublicModels


@dataclass(frozen=True)
class PreparedVideo:
    """A video with features that the models can use."""

    video_id: str
    folder: Path
    """Of its features."""
    n_frames: int
    find_recording: FindRecording


class Predictor:
    """Predicts valence and arousal, or other targets of a model, for each decoded frame of videos.

    Models are loaded once. Threads may share a Predictor; they take turns where raw videos are preprocessed.

    >>> predictor = Predictor("run")
    >>> prediction = predictor("talk.mp4")
    """

    def __init__(
        self,
        checkpoint: Checkpoint | Sequence[Checkpoint] | None = None,
        *,
        device: str = "auto",
        settings: Mapping[str, Any] | None = None,
        fill: FillKind = "nearest",
        smooth: tuple[SmoothKind, float] | None = None,
        changes: bool = False,
        calibration: Path | str | None = None,
    ) -> None:
        """Load the models.

        Args:
            checkpoint: a run folder, its ``best.safetensors``, a name on the Hugging Face Hub, or a model, which stays
                on its device; predictions of several are averaged. None: the public models that are on this machine,
                which are not RCMA.
            device: ``cpu``, ``cuda`` or ``auto``, which takes a GPU if there is one.
            settings: changes of the preprocessing of raw videos by dotted key, such as ``{"speech.language": "en"}``;
                without, they are preprocessed as in training.
            fill: values where nothing is predicted, see :func:`rcma.prediction.finish`.
            smooth: kind and extent in seconds, such as ``("median", 0.5)``; see there.
            changes: also measure how far each fusion step moves its features, see :attr:`Prediction.changes`.
            calibration: file of ``rcma-calibrate``, which fits the public models to labels; not with a checkpoint.

        Raises:
            InputError: a checkpoint cannot be loaded, a setting is unknown or must agree with the training.
            ValueError: an unknown kind of ``fill`` or ``smooth``.
        """
        if fill not in get_args(FillKind):
            raise ValueError(f"fill must be one of {', '.join(get_args(FillKind))}, given: {fill}")
        if smooth is not None and (smooth[0] not in get_args(SmoothKind) or not smooth[1] > 0):
            raise ValueError(f"smooth must be a kind ({', '.join(get_args(SmoothKind))}) and seconds, given: {smooth}")
        device = resolve_device(device)
        self._finish = partial(finish, fill=fill, smoothing=smooth)
        if checkpoint is not None and calibration is not None:
            raise InputError("--calibration: is for the public models; leave it out with --checkpoint")
        self.models: Models = (
            PublicModels(calibration=calibration) if checkpoint is None else _load(checkpoint, device, changes=changes)
        )
        self.preprocessing = change_raw_video_settings(
            self.models.preprocessing(), settings or {}, fixed=self.models.fixed_settings
        )
        self._preprocessor = Preprocessor(self.preprocessing, device=device)

    @property
    def targets(self) -> tuple[Target, ...]:
        """What is predicted, such as ``("valence", "arousal")``."""
        return self.models.targets

    def __call__(self, video: Path | str | Features | PreparedVideo) -> Prediction:
        """Predict every frame of one video.

        Args:
            video: a video file, which is preprocessed first and leaves no features behind; a feature folder; features;
                or one of :meth:`prepare`.

        Returns:
            Smoothed and filled as requested.

        Raises:
            InputError: there is no such video or feature folder, it cannot be used, or the features were made with
                other settings than those the model was trained on.
        """
        if isinstance(video, PreparedVideo):
            return self._predict(load_features(video.folder), video.find_recording)
        find_recording: FindRecording | None = None
        with tempfile.TemporaryDirectory() as temporary:
            if isinstance(video, Features):
                features = video
            elif (path := Path(video)).is_dir():
                features = load_features(path)
            elif path.exists():
                # Of several people, should the settings ask for all, the first.
                features = self._preprocessor(path, temporary)[0]
                find_recording = partial(Path, path)
            else:
                raise InputError(f"{path}: no such video or feature folder")
            self.models.check(features)
            for remark in self.models.remarks({features.video_id: face_source(features.meta)}):
                log.warning(remark)
            return self._predict(features, find_recording or partial(RecordingFinder().find, features.meta))

    def prepare(
        self,
        inputs: Inputs | Sequence[Path | str],
        *,
        features: Path | str,
        workers: int | None = None,
        progress: bool = False,
        on_failure: Callable[[object], object] = log.error,
    ) -> list[PreparedVideo]:
        """Preprocess raw videos in worker processes and check the features of all videos.

        Args:
            inputs: video files, folders of them, ``.txt`` files with one path per line, feature folders and folders of
                them, mixed.
            features: folder for the features of raw videos; those that are there already are used.
            workers: raw videos at the same time; None: one for two cores, at most 8.
            progress: show progress on stderr, and a closing table on stdout.
            on_failure: called with one line for each video that fails and is left out.

        Returns:
            The videos that :meth:`predict_many` can predict; a raw video may give several, one for each person.

        Raises:
            InputError: no input can be used, two would have the same video_id, or a model of the preprocessing is not
                available.
        """
        if not isinstance(inputs, Inputs):
            inputs = sort_inputs([Path(given) for given in inputs])
        finder, out, engine = RecordingFinder(), Path(features), Engine(workers=workers)
        given: dict[Path, Path | None] = dict.fromkeys(inputs.folders)
        if inputs.sources:
            if progress:
                outcomes = preprocess_with_progress(
                    self._preprocessor, inputs.sources, out, engine=engine, on_failure=on_failure
                )
            else:
                outcomes = list(self._preprocessor.many(inputs.sources, out, engine=engine))
                for failed in (outcome for outcome in outcomes if not outcome.done):
                    on_failure(failed.problem)
            path_of = {source.video_id: source.path for source in inputs.sources}
            given |= {out / name: path_of[outcome.video_id] for outcome in outcomes for name in outcome.folders}
        videos, sources = [], {}
        for folder, recording in given.items():
            try:
                # Not kept open: thousands of memory-mapped videos would exhaust the open files a process may have.
                opened = load_features(folder)
                self.models.check(opened)
            except InputError as error:
                on_failure(error)
                continue
            find = partial(finder.find, {"source": opened.meta.get("source")}, given=recording)
            videos.append(PreparedVideo(opened.video_id, folder, opened.n_frames, find))
            sources[opened.video_id] = face_source(opened.meta)
        for remark in self.models.remarks(sources):
            log.warning(remark)
        return videos

    def predict_many(
        self,
        videos: Iterable[PreparedVideo],
        *,
        status: Callable[[str], object] = lambda _: None,
        on_failure: Callable[[object], object] = log.error,
    ) -> Iterator[tuple[PreparedVideo, Prediction]]:
        """Predict videos of :meth:`prepare` one by one.

        Args:
            videos: see above.
            status: called with the video_id of each video when its turn comes.
            on_failure: called with one line for each video that fails and is left out.
        """
        for video in videos:
            status(video.video_id)
            try:
                prediction = self(video)
            except InputError as error:
                on_failure(error)
                continue
            yield video, prediction

    def _predict(self, features: Features, find_recording: FindRecording) -> Prediction:
        # In a new thread, before anything is computed: the number of cores decides the last digits.
        n_cores()
        return self._finish(self.models.predict(features, find_recording))


def _load(checkpoint: Checkpoint | Sequence[Checkpoint], device: str, *, changes: bool) -> Checkpoints:
    names = [checkpoint] if isinstance(checkpoint, Checkpoint) else checkpoint
    models = [name if isinstance(name, RCMA) else load_model(name).to(device) for name in names]
    if not models:
        raise ValueError("no checkpoint given; None stands for the public models")
    return Checkpoints(models, changes=changes)
