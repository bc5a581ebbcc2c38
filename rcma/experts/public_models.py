"""Valence and arousal of people without a training run: public models of one modality each, fused late.

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
from preprocessing.errors import InputError
from preprocessing.features import Features
from preprocessing.media import Samples, Video, read_audio
from preprocessing.speech import detect_speech, has_packaged_whisper
from rcma.config import TARGETS, FaceSource, Modality, Target
from rcma.experts.audeering import AudeeringExpert
from rcma.experts.calibrate import Calibration, load_calibration
from rcma.experts.face import EMOTIONS, FaceExpert
from rcma.experts.fuse import fuse
from rcma.experts.registry import (
    FaceEntry,
    VoiceEntry,
    available,
    entries,
    find_entry,
    find_file,
    how_to_get,
    packaged,
)
from rcma.experts.voice import WINDOW_S, measure_voice, vocal_activation
from rcma.experts.words import TextAffect, sentence_values
from rcma.prediction import FindRecording, Prediction

log = logging.getLogger("rcma")

NOT_RCMA = "public models, not RCMA"
"""How their predictions are called wherever they are shown."""


@dataclass(frozen=True)
class Expert:
    """A model of one modality."""

    name: str
    """Begins the names of its columns in the table."""
    modality: Modality
    targets: tuple[Target, ...]
    """What it gives values for."""
    values: Callable[[Features, FindRecording], NDArray[np.float32]]
    """(T,2+n) valence and arousal at each frame in [-1,1], then the n details; NaN where it says nothing. Raises
    InputError where it cannot judge the video at all."""
    what: str
    """What the values are, in a few words."""
    trained_on: str
    scores: str
    licence: str
    details: tuple[str, ...] = ()
    """Names of its further outputs, which only a calibration uses."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """What the table has a column for."""
        return (*self.targets, *self.details)

    def __str__(self) -> str:
        """All of it in one line."""
        return (
            f"{self.name}: {self.what}. Trained on: {self.trained_on}. Scores: {self.scores}. Licence: {self.licence}."
        )


class PublicModels:
    """The experts that are available on this machine, together."""

    name = NOT_RCMA
    targets = TARGETS
    fixed_settings: tuple[str, ...] = ()
    """Keys of :meth:`preprocessing` that must stay as they are: none, the experts take features of any settings."""

    def __init__(self, *, calibration: Path | str | None = None) -> None:
        """Load them; nothing is downloaded.

        Args:
            calibration: file of ``rcma-calibrate`` that turns what they say into valence and arousal; None: their
                weighted mean.

        Raises:
            InputError: the calibration cannot be used, or needs a model that is not on this machine.
        """
        experts, missing = [], []
        for name, load in _LOADERS.items():
            try:
                experts.append(load())
            except InputError as error:
                missing.append(f"{name}: {error}")
        self.experts: tuple[Expert, ...] = tuple(experts)
        self.missing: tuple[str, ...] = tuple(missing)
        """A line for each that is not there, with how to get it."""
        self._calibration = None if calibration is None else self._load_calibration(Path(calibration))

    @property
    def columns(self) -> dict[str, tuple[str, ...]]:
        """Outputs of each expert, by name: the targets that it gives, then its details."""
        return {expert.name: expert.outputs for expert in self.experts}

    def describe(self) -> list[str]:
        """Lines that say which experts there are, with their training, scores and licences, and what they rest on."""
        return [
            *(str(expert) for expert in self.experts),
            str(self._calibration or "Together, as their weighted mean, they were not measured on people."),
            "A value holds for a sentence, or for some seconds of the voice, not for a single frame.",
        ]

    def preprocessing(self) -> PreprocessConfig:
        """Settings to preprocess raw videos with: the default ones, except that nothing is downloaded if it can be
        avoided: speech and words get the packaged models, and where no expert reads words, none are recognised."""
        if not any(expert.modality == "text" for expert in self.experts):
            return PreprocessConfig(speech=SpeechSettings(backend="none"))
        packaged = {"model": PACKAGED}
        speech = SpeechSettings.model_validate(packaged) if has_packaged_whisper() else SpeechSettings()
        return PreprocessConfig(speech=speech, words=WordSettings(model=PACKAGED))

    def check(self, features: Features) -> None:
        """Nothing is refused: an expert that cannot judge a video says so when it is asked."""

    def remarks(self, sources: Mapping[str, FaceSource]) -> Sequence[str]:
        """No remarks about videos together."""
        return ()

    def predict(self, features: Features, find_recording: FindRecording) -> Prediction:
        """Predict every frame from features.

        Args:
            features: a video of T frames.
            find_recording: see :data:`FindRecording`; called only by experts that need more than the features.

        Returns:
            Values are the weighted mean of the experts that have one, see :func:`.fuse.fuse`, or what the calibration
            makes of their outputs; NaN where none has. The spread is that of the experts in both cases. A modality is
            present where one of its experts has a value. An expert that cannot judge the video is all NaN, and a
            warning says why.
        """
        values = {expert.name: self._ask(expert, features, find_recording) for expert in self.experts}
        of_targets = {name: given[:, : len(TARGETS)] for name, given in values.items()}
        fused, spread = fuse(of_targets, {expert.name: expert.modality for expert in self.experts})
        present: dict[Modality, NDArray[np.bool_]] = {}
        for expert in self.experts:
            speaks = np.isfinite(of_targets[expert.name]).any(axis=1)
            present[expert.modality] = speaks | present.get(expert.modality, np.zeros_like(speaks))
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
            said = prediction.columns_of_experts()
            inputs = np.stack([said[name] for name in self._calibration.description.columns], axis=1)
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
            log.warning(f"{features.video_id}: {expert.name}: nothing said: {error}")
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


def _load_words() -> Expert:
    affect = TextAffect()

    def values(features: Features, _: FindRecording) -> NDArray[np.float32]:
        language = features.meta.get("language")
        if features.words and language not in (None, "en"):
            raise InputError(f"its words are in language {language!r}, and the model knows English")
        return sentence_values(affect, features.words, features.time_s)

    return _packaged_expert("words", TARGETS, values)


def _load_voice() -> Expert:
    return _packaged_expert("voice_relative", ("arousal",), _voice_values)


def _packaged_expert(
    name: str, targets: tuple[Target, ...], values: Callable[[Features, FindRecording], NDArray[np.float32]]
) -> Expert:
    entry = packaged()[name]
    return Expert(
        name=name,
        modality=entry.modality,
        targets=targets,
        values=values,
        what=entry.what,
        trained_on=entry.trained_on,
        scores=entry.scores,
        licence=entry.weights_licence,
    )


def _load_face() -> Expert:
    known = [entry for entry in entries().values() if isinstance(entry, FaceEntry)]
    usable = available()
    entry = next((entry for entry in known if entry.name in usable), None)
    if entry is None:
        raise InputError(how_to_get(known[0].name))
    path = find_file(entry.name)
    assert path is not None
    expert = FaceExpert(path, entry)

    def values(features: Features, find_recording: FindRecording) -> NDArray[np.float32]:
        return np.concatenate(expert(find_recording(), features), axis=1)

    # Under its own name, so that a calibration is not used with another face model.
    return _fetched_expert(entry, values, details=tuple(f"logit_{emotion}" for emotion in EMOTIONS))


def _load_audeering() -> Expert:
    name = "audeering"
    entry, folder = find_entry(name), find_file(name)
    if folder is None:
        raise InputError(how_to_get(name))
    expert = AudeeringExpert(folder)

    def values(features: Features, find_recording: FindRecording) -> NDArray[np.float32]:
        samples, start_s = read_sound(features, find_recording)
        return expert(samples, start_s, _speech(features, samples, start_s), features.time_s)

    return _fetched_expert(entry, values)


def _fetched_expert(
    entry: FaceEntry | VoiceEntry,
    values: Callable[[Features, FindRecording], NDArray[np.float32]],
    *,
    details: tuple[str, ...] = (),
) -> Expert:
    return Expert(
        name=entry.name,
        modality=entry.modality,
        targets=TARGETS,
        values=values,
        what=f"valence and arousal of {'faces' if entry.modality == 'face' else 'voices'}",
        details=details,
        trained_on=entry.trained_on,
        scores=entry.scores,
        licence=f"code {entry.code_licence}; weights {entry.weights_licence}",
    )


_LOADERS: Mapping[str, Callable[[], Expert]] = {
    "face": _load_face,
    "words": _load_words,
    "voice_relative": _load_voice,
    "audeering": _load_audeering,
}
"""Each loads an expert, or raises InputError with how to get it."""


def read_sound(features: Features, find_recording: FindRecording) -> tuple[Samples, float]:
    """Sound of a video: stored with the features, or else read from the recording.

    Returns:
        (N,) float32 mono at 16 kHz, and the time of the first sample on the video's clock, seconds. N is 0 where the
        video has no sound.

    Raises:
        InputError: it is not stored, and the recording is not available or unreadable.
    """
    if not len(features.log_mel):
        return np.zeros(0, np.float32), 0.0
    if features.waveform is not None:
        return np.nan_to_num(np.asarray(features.waveform, np.float32)), 0.0
    path = find_recording()
    streams = features.meta["settings"].get("streams", ())
    with Video(path, streams=streams) as video:
        audio = read_audio(path, origin_s=video.start_s, streams=streams, clock=video.clock)
    return (np.zeros(0, np.float32), 0.0) if audio is None else (audio.samples, audio.start_s)


def _voice_values(features: Features, find_recording: FindRecording) -> NDArray[np.float32]:
    values = np.full((features.n_frames, len(TARGETS)), np.nan, np.float32)
    samples, start_s = read_sound(features, find_recording)
    if not len(samples):
        return values
    speech = _speech(features, samples, start_s)
    centres_s, activation = vocal_activation(measure_voice(samples, start_s, features.log_mel), speech)
    values[:, TARGETS.index("arousal")] = at_frames(centres_s, activation, features.time_s)
    return values


def _speech(features: Features, samples: Samples, start_s: float) -> list[tuple[float, float]]:
    """(start, end) of speech on the video's clock, seconds."""
    threshold = features.meta["settings"].get("speech", {}).get("vad_threshold", SpeechSettings().vad_threshold)
    return [(start_s + first, start_s + last) for first, last in detect_speech(samples, threshold)]


def at_frames(
    centres_s: NDArray[np.float64], values: NDArray[np.float64], time_s: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Values of windows (K,) at frames (T,): interpolated, NaN where the nearest window has none or does not reach.

    Args:
        centres_s: (K,) of the windows, seconds, rising.
        values: (K,), NaN where a window has none.
        time_s: (T,) seconds.
    """
    valid = np.isfinite(values)
    if not valid.any():
        return np.full(len(time_s), np.nan)
    nearest = np.searchsorted((centres_s[1:] + centres_s[:-1]) / 2, time_s)
    reached = valid[nearest] & (np.abs(time_s - centres_s[nearest]) <= WINDOW_S / 2)
    return np.where(reached, np.interp(time_s, centres_s[valid], values[valid]), np.nan)
