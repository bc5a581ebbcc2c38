"""Valence and arousal of people without a training run: public models of one modality each, fused late.

To add an expert, write a function that returns an :class:`Expert`, or raises InputError with how to get its model, and
add it to :data:`_LOADERS`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from preprocessing.config import PACKAGED, PreprocessConfig, SpeechSettings, WordSettings
from preprocessing.errors import InputError
from preprocessing.features import Features
from preprocessing.media import Samples, Video, read_audio
from preprocessing.speech import detect_speech, has_packaged_whisper
from rcma.config import TARGETS, FaceSource, Modality, Target
from rcma.experts.audeering import AudeeringExpert
from rcma.experts.face import FaceExpert
from rcma.experts.fuse import fuse
from rcma.experts.registry import FaceEntry, VoiceEntry, available, entries, find_entry, find_file, how_to_get
from rcma.experts.voice import WINDOW_S, measure_voice, vocal_activation
from rcma.experts.words import LICENCE, TextAffect, sentence_values
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
    """(T,2) valence and arousal at each frame in [-1,1]; NaN where it says nothing. Raises InputError where it cannot
    judge the video at all."""
    what: str
    """What the values are, in a few words."""
    trained_on: str
    scores: str
    licence: str

    def __str__(self) -> str:
        """All of it in one line."""
        return (
            f"{self.name}: {self.what}. Trained on: {self.trained_on}. Scores: {self.scores}. Licence: {self.licence}."
        )


class PublicModels:
    """The experts that can be had on this machine, together."""

    name = NOT_RCMA
    targets = TARGETS
    fixed_settings: tuple[str, ...] = ()
    """Keys of :meth:`preprocessing` that must stay as they are: none, the experts take features of any settings."""

    def __init__(self) -> None:
        """Load them; nothing is downloaded."""
        experts, missing = [], []
        for name, load in _LOADERS.items():
            try:
                experts.append(load())
            except InputError as error:
                missing.append(f"{name}: {error}")
        self.experts: tuple[Expert, ...] = tuple(experts)
        self.missing: tuple[str, ...] = tuple(missing)
        """A line for each that is not there, with how to get it."""

    def describe(self) -> list[str]:
        """Lines that say which experts there are, with their training, scores and licences, and what they rest on."""
        return [
            *(str(expert) for expert in self.experts),
            "Together, as their weighted mean, they were not measured on people. A value holds for a sentence, or for "
            "some seconds of the voice, not for a single frame.",
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
        """What is to be said of videos together: nothing."""
        return ()

    def predict(self, features: Features, find_recording: FindRecording) -> Prediction:
        """Predict every frame from features.

        Args:
            features: a video of T frames.
            find_recording: see :data:`FindRecording`; called only by experts that need more than the features.

        Returns:
            Values are the weighted mean of the experts that have one, see :func:`.fuse.fuse`; NaN where none has. A
            modality is present where one of its experts has a value. An expert that cannot judge the video is all NaN,
            and a warning says why.
        """
        values = {expert.name: self._ask(expert, features, find_recording) for expert in self.experts}
        fused, spread = fuse(values, {expert.name: expert.modality for expert in self.experts})
        present: dict[Modality, NDArray[np.bool_]] = {}
        for expert in self.experts:
            said = np.isfinite(values[expert.name]).any(axis=1)
            present[expert.modality] = said | present.get(expert.modality, np.zeros_like(said))
        for target, column in zip(TARGETS, fused.T, strict=True):
            if np.isnan(column).all():
                log.warning(f"{features.video_id}: no public model gives {target} for any of its frames")
        return Prediction(
            video_id=features.video_id,
            time_s=np.array(features.time_s),
            values=fused,
            present=present,
            spread=spread,
            experts=values,
            outputs={expert.name: expert.targets for expert in self.experts},
        )

    @staticmethod
    def _ask(expert: Expert, features: Features, find_recording: FindRecording) -> NDArray[np.float32]:
        try:
            return expert.values(features, find_recording)
        except InputError as error:
            log.warning(f"{features.video_id}: {expert.name}: nothing said: {error}")
            return np.full((features.n_frames, len(TARGETS)), np.nan, np.float32)


def _load_words() -> Expert:
    affect = TextAffect()

    def values(features: Features, _: FindRecording) -> NDArray[np.float32]:
        language = features.meta.get("language")
        if features.words and language not in (None, "en"):
            raise InputError(f"its words are in language {language!r}, and the model knows English")
        return sentence_values(affect, features.words, features.time_s)

    return Expert(
        name="words",
        modality="text",
        targets=TARGETS,
        values=values,
        what="valence and arousal of each English sentence, a small network on all-MiniLM-L6-v2",
        trained_on="EmoBank (written English, rated by readers)",
        scores="EmoBank development r .702 valence, .556 arousal (ours); OMG-Emotion transcripts, not trained there: "
        "r .265, .029 (ours)",
        licence=f"{LICENCE}; MiniLM Apache-2.0",
    )


def _load_voice() -> Expert:
    return Expert(
        name="voice",
        modality="audio",
        targets=("arousal",),
        values=_voice_values,
        what="arousal from pitch, brightness and level, relative to the recording: 0 is its own median",
        trained_on="nothing, it is a formula",
        scores="acted speech (EMO-DB, RAVDESS), high against low arousal: AUC .92 to .99 (ours); not measured on "
        "speech that is not acted",
        licence="that of this project",
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
    return _fetched_expert("face", entry, lambda features, find: expert(find(), features)[0])


def _load_audeering() -> Expert:
    name = "audeering"
    entry, folder = find_entry(name), find_file(name)
    if folder is None:
        raise InputError(how_to_get(name))
    expert = AudeeringExpert(folder)

    def values(features: Features, find_recording: FindRecording) -> NDArray[np.float32]:
        samples, start_s = read_sound(features, find_recording)
        return expert(samples, start_s, _speech(features, samples, start_s), features.time_s)

    return _fetched_expert(name, entry, values)


def _fetched_expert(
    name: str, entry: FaceEntry | VoiceEntry, values: Callable[[Features, FindRecording], NDArray[np.float32]]
) -> Expert:
    return Expert(
        name=name,
        modality=entry.modality,
        targets=TARGETS,
        values=values,
        what=f"valence and arousal by {entry.name}",
        trained_on=entry.trained_on,
        scores=entry.scores,
        licence=f"code {entry.code_licence}; weights {entry.weights_licence}",
    )


_LOADERS: Mapping[str, Callable[[], Expert]] = {
    "face": _load_face,
    "words": _load_words,
    "voice": _load_voice,
    "audeering": _load_audeering,
}
"""Each loads an expert, or raises InputError with how to get it."""


def read_sound(features: Features, find_recording: FindRecording) -> tuple[Samples, float]:
    """Sound of a video: stored with the features, or else read from the recording.

    Returns:
        (N,) float32 mono at 16 kHz, and the time of the first sample on the video's clock, seconds. N is 0 where the
        video has no sound.

    Raises:
        InputError: it is not stored, and the recording cannot be had or read.
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
