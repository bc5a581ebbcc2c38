"""Predictions without a training run, by public models of one modality each and late fusion.

To add an expert, write a function that returns an :class:`Expert`, or raises InputError with how to get its model, and
add it to :data:`_LOADERS`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from preprocessing.config import PACKAGED, PreprocessConfig, SpeechSettings, WordSettings
from preprocessing.errors import InputError, describe_os_error
from preprocessing.features import Features
from preprocessing.media import Samples, Video, read_audio
from preprocessing.speech import detect_speech, has_packaged_whisper
from rcma.config import TARGETS, FaceSource, Modality, Target
from rcma.experts.audeering import AudeeringExpert
from rcma.experts.calibrate import Calibration, load_calibration
from rcma.experts.face import EMOTIONS, FaceExpert
from rcma.experts.fuse import fuse
from rcma.experts.registry import Entry, FaceEntry, entries, packaged
from rcma.experts.voice import at_frames, measure_voice, vocal_activation
from rcma.experts.words import TextAffect, sentence_values
from rcma.prediction import FindRecording, Prediction

log = logging.getLogger("rcma")

NOT_RCMA = "public models, not RCMA"
"""Name of their predictions wherever they are shown."""

Values = Callable[[Features, FindRecording], NDArray[np.float32]]
"""Returns (T,2+n) valence and arousal at each frame in [-1,1], then n details; NaN where a model has no value. Raises
InputError for a video that the model cannot judge at all."""


@dataclass(frozen=True)
class Expert:
    """A model of one modality."""

    entry: Entry
    targets: tuple[Target, ...]
    values: Values
    details: tuple[str, ...] = ()
    """Names of its further outputs, which only a calibration uses."""

    @property
    def name(self) -> str:
        """First part of the names of its columns in the table."""
        return self.entry.name


class PublicModels:
    """The experts that are available on this machine."""

    name = NOT_RCMA
    targets = TARGETS
    fixed_settings: tuple[str, ...] = ()
    """Keys of :meth:`preprocessing` that must not change: none, features of any settings will do."""

    def __init__(self, *, calibration: Path | str | None = None) -> None:
        """Load the experts; nothing is downloaded.

        Args:
            calibration: file of ``rcma-calibrate`` that turns their outputs into valence and arousal; None: their
                weighted mean.

        Raises:
            InputError: the calibration cannot be used, or needs a model that is not on this machine.
        """
        self.experts: list[Expert] = []
        self.missing: list[str] = []
        """A line on how to get each expert that is not available."""
        for name, load in _LOADERS.items():
            try:
                self.experts.append(load())
            except InputError as error:
                self.missing.append(f"{name}: {error}")
            except OSError as error:
                self.missing.append(f"{name}: {describe_os_error(error)}")
        self._calibration = None if calibration is None else self._load_calibration(Path(calibration))

    @property
    def columns(self) -> dict[str, tuple[str, ...]]:
        """Outputs of each expert, by its name: the targets that it predicts, then its details."""
        return {expert.name: (*expert.targets, *expert.details) for expert in self.experts}

    def describe(self) -> list[str]:
        """Return lines with the training, scores and licence of each expert and of the whole."""
        return [
            *(str(expert.entry) for expert in self.experts),
            str(self._calibration or "Together, as their weighted mean, they were not measured on people."),
            "A value holds for a sentence, or for some seconds of the voice, not for a single frame.",
        ]

    def preprocessing(self) -> PreprocessConfig:
        """Return settings for raw videos: the defaults, with packaged models, to avoid downloads.

        Without an expert of words, no speech is recognised.
        """
        if not any(expert.entry.modality == "text" for expert in self.experts):
            return PreprocessConfig(speech=SpeechSettings(backend="none"))
        speech = {"model": PACKAGED} if has_packaged_whisper() else {}
        return PreprocessConfig(speech=SpeechSettings.model_validate(speech), words=WordSettings(model=PACKAGED))

    def check(self, features: Features) -> None:
        """Accept all features: an expert that cannot judge a video gives a warning later."""

    def remarks(self, sources: Mapping[str, FaceSource]) -> Sequence[str]:
        """Return no remarks about videos together."""
        return ()

    def predict(self, features: Features, find_recording: FindRecording) -> Prediction:
        """Predict every frame of a video; only experts that need more than the features look for its recording.

        Returns:
            Values are the weighted mean of the experts, see :func:`.fuse.fuse`, or the result of the calibration; NaN
            where there is none. The spread is that of the experts. A modality is present where one of its experts has a
            value. An expert that cannot judge the video is NaN, with a warning.
        """
        values = {expert.name: self._ask(expert, features, find_recording) for expert in self.experts}
        of_targets = {name: given[:, : len(TARGETS)] for name, given in values.items()}
        modalities = {expert.name: expert.entry.modality for expert in self.experts}
        fused, spread = fuse(of_targets, modalities)
        present: dict[Modality, NDArray[np.bool_]] = {}
        for name, modality in modalities.items():
            has_value = np.isfinite(of_targets[name]).any(axis=1)
            present[modality] = has_value | present.get(modality, np.zeros_like(has_value))
        prediction = Prediction(
            video_id=features.video_id,
            time_s=np.array(features.time_s),
            values=fused,
            present=present,
            spread=spread,
            experts=values,
            outputs=self.columns,
        )
        if self._calibration is not None:
            columns = prediction.columns_of_experts()
            inputs = np.stack([columns[name] for name in self._calibration.description.columns], axis=1)
            prediction = replace(prediction, values=self._calibration(inputs))
        for target, column in zip(TARGETS, prediction.values.T, strict=True):
            if np.isnan(column).all():
                log.warning(f"{features.video_id}: no public model gives {target} for any of its frames")
        return prediction

    @staticmethod
    def _ask(expert: Expert, features: Features, find_recording: FindRecording) -> NDArray[np.float32]:
        try:
            return expert.values(features, find_recording)
        except InputError as error:
            log.warning(f"{features.video_id}: {expert.name}: no values: {error}")
            return np.full((features.n_frames, len(TARGETS) + len(expert.details)), np.nan, np.float32)

    def _load_calibration(self, path: Path) -> Calibration:
        calibration = load_calibration(path)
        here = {f"{name}_{output}" for name, outputs in self.columns.items() for output in outputs}
        if missing := [name for name in calibration.description.columns if name not in here]:
            models = [name for name in calibration.models if name not in self.columns] or missing
            raise InputError(
                f"{path}: was fitted with {', '.join(models)}, which cannot be used on this machine (it has "
                f"{', '.join(self.columns)}); rcma-models list shows how to get it, or calibrate again"
            )
        if unused := [name for name in self.columns if name not in calibration.models]:
            log.warning(f"{path}: was fitted without {', '.join(unused)}, which takes no part in valence and arousal")
        return calibration


def _load_face() -> Expert:
    known = [entry for entry in entries().values() if isinstance(entry, FaceEntry)]
    for entry in known:
        try:
            face = FaceExpert(entry.locate(), entry)
            break
        except InputError as error:
            if entry.is_here():
                log.warning("%s", error)
    else:
        raise InputError(known[0].how_to_get())

    def values(features: Features, find_recording: FindRecording) -> NDArray[np.float32]:
        return face(find_recording(), features)

    # Under its own name, so that a calibration is not used with another face model.
    return Expert(entry, TARGETS, values, details=tuple(f"logit_{emotion}" for emotion in EMOTIONS))


def _load_words() -> Expert:
    affect = TextAffect()

    def values(features: Features, _: FindRecording) -> NDArray[np.float32]:
        language = features.meta.get("language")
        if features.words and language not in (None, "en"):
            raise InputError(f"its words are in language {language!r}, and the model knows English")
        return sentence_values(affect, features.words, features.time_s)

    return Expert(packaged()["words"], TARGETS, values)


def _load_voice() -> Expert:
    def values(features: Features, find_recording: FindRecording) -> NDArray[np.float32]:
        samples, start_s, speech = _listen(features, find_recording)
        centres_s, activation = vocal_activation(measure_voice(samples, start_s, features.log_mel), speech)
        arousal = at_frames(centres_s, activation, features.time_s)
        return np.stack([np.full_like(arousal, np.nan), arousal], axis=1).astype(np.float32)

    return Expert(packaged()["voice_relative"], ("arousal",), values)


def _load_audeering() -> Expert:
    entry = entries()["audeering"]
    voice = AudeeringExpert(entry.locate())

    def values(features: Features, find_recording: FindRecording) -> NDArray[np.float32]:
        return voice(*_listen(features, find_recording), features.time_s)

    return Expert(entry, TARGETS, values)


_LOADERS: Mapping[str, Callable[[], Expert]] = {
    "face": _load_face,
    "words": _load_words,
    "voice_relative": _load_voice,
    "audeering": _load_audeering,
}
"""Each loads an expert, or raises InputError with how to get its model."""


def _listen(features: Features, find_recording: FindRecording) -> tuple[Samples, float, list[tuple[float, float]]]:
    """Return the sound of a video, stored with its features or read from its recording, and where somebody speaks.

    Returns:
        (N,) float32 mono at 16 kHz, N = 0 without sound; the time of the first sample, and (start, end) of each stretch
        of speech, in seconds on the video's clock.
    """
    settings = features.meta["settings"]
    samples: Samples = np.zeros(0, np.float32)
    start_s = 0.0
    if features.waveform is not None:
        samples = np.nan_to_num(np.asarray(features.waveform, np.float32))
    elif len(features.log_mel):
        path, streams = find_recording(), settings.get("streams", ())
        with Video(path, streams=streams) as video:
            audio = read_audio(path, origin_s=video.start_s, streams=streams, clock=video.clock)
        if audio is not None:
            samples, start_s = audio.samples, audio.start_s
    threshold = settings.get("speech", {}).get("vad_threshold", SpeechSettings().vad_threshold)
    return samples, start_s, [(start_s + first, start_s + last) for first, last in detect_speech(samples, threshold)]
