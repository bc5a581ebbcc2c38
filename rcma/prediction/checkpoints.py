"""Predictions of trained models, and the features that they accept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from preprocessing.config import PreprocessConfig
from preprocessing.errors import InputError
from preprocessing.features import Alignment, Features
from rcma.config import TARGETS, FaceSource, Modality, Target
from rcma.data import (
    check_features,
    check_like_training,
    fixed_settings,
    other_source,
    settings_for_raw_videos,
)
from rcma.fast_cpu import Embed, optimised_backbones
from rcma.model import RCMA, TrainedRCMA
from rcma.prediction.postprocess import present_modalities
from rcma.prediction.prediction import Prediction
from rcma.prediction.sliding_window import predict_video, split_changes

FindRecording = Callable[[], Path]
"""Returns the recording from which features were made; raises InputError if it is not available."""

_PUBLISHED_ALIGNMENT: Alignment = "start"


class Checkpoints:
    """Trained models whose predictions are averaged, for each target over the models that predict it."""

    name = ""
    """Shown with predictions that are not RCMA's."""
    missing: Sequence[str] = ()
    """Models that are not on this machine, a line each."""

    def __init__(self, models: Sequence[RCMA], *, changes: bool = False) -> None:
        """Prepare models, which stay on their devices.

        Args:
            models: at least one, from :func:`rcma.load_model` or :func:`rcma.published.load`; put into evaluation mode.
            changes: measure how far each fusion step moves its features, see :attr:`Prediction.changes`.
        """
        self.models = tuple(model.eval() for model in models)
        of_models = dict.fromkeys(target for model in self.models for target in model.settings.targets)
        first = [target for target in TARGETS if target in of_models]
        self.targets: tuple[Target, ...] = tuple(dict.fromkeys([*first, *of_models]))
        """All targets of the models, valence and arousal first."""
        self._changes = changes
        # Those of several models are rebuilt for each video: each would take .8 GB.
        self._optimised: list[dict[str, Embed] | None] = [None] * len(self.models)
        if len(self.models) == 1:
            self._optimised = [optimised_backbones(self.models[0])]

    def describe(self) -> list[str]:
        """No lines: the runs hold how the models were trained."""
        return []

    def preprocessing(self) -> PreprocessConfig:
        """Settings for raw videos that give features like those of the training, see
        :func:`rcma.data.settings_for_raw_videos`; the default ones for a published model.
        """
        # One that needs the waveform, if any; the others are checked against the features.
        model = max(self.models, key=lambda model: model.settings.audio_input == "waveform")
        return settings_for_raw_videos(*_training_features(model))

    @property
    def fixed_settings(self) -> tuple[str, ...]:
        """Keys of :meth:`preprocessing` that must not be changed."""
        return tuple(dict.fromkeys(key for model in self.models for key in fixed_settings(model.settings)))

    def check(self, features: Features) -> None:
        """Refuse features that are not like those the models were trained on.

        Raises:
            InputError: naming the video, what differs and both values.
        """
        for model in self.models:
            preprocessing, source = _training_features(model)
            check_like_training(
                features.video_id, features.meta, preprocessing=preprocessing, source=source, model=model.settings
            )
            check_features(model.settings, features)

    def remarks(self, sources: Mapping[str, FaceSource]) -> Iterator[str]:
        """Warnings about videos whose faces come from another source than those of the training.

        Args:
            sources: of the faces of each video, by video_id.
        """
        for source in sorted({source for _, source in map(_training_features, self.models) if source is not None}):
            others = [name for name, given in sources.items() if given != source]
            if others:
                yield other_source(others, source)

    def predict(self, features: Features, find_recording: FindRecording | None = None) -> Prediction:
        """Predict every frame of one video.

        Args:
            features: of the video.
            find_recording: not needed; features are enough.

        Returns:
            Values and spread are over the models that predict a target, modalities those that any of the models uses.
            Changes are the mean over the models with the modalities and the number of steps of the first one.

        Raises:
            InputError: the features are not like those of the training, or the model gives no numbers for them.
        """
        self.check(features)
        values = np.full((len(self.models), features.n_frames, len(self.targets)), np.nan, np.float32)
        changes: list[dict[Modality, NDArray[np.float32]]] = []
        for number, (model, optimised) in enumerate(zip(self.models, self._optimised, strict=True)):
            hop, audio_alignment, label_delay_s = _windowing(model)
            columns = predict_video(
                model,
                features,
                hop=hop,
                audio_alignment=audio_alignment,
                label_delay_s=label_delay_s,
                optimised=optimised,
                changes=self._changes,
            )
            targets = model.settings.targets
            if not np.isfinite(columns[:, : len(targets)]).all():
                raise InputError(
                    f"{features.video_id}: the model gives no numbers for it; its features or the model's weights hold "
                    "NaN"
                )
            values[number][:, [self.targets.index(target) for target in targets]] = columns[:, : len(targets)]
            first = self.models[0]
            if self._changes and (model.modalities, model.fusion.depth) == (first.modalities, first.fusion.depth):
                changes.append(split_changes(model, columns))
        mean, spread = _mean_and_spread(values)
        present = present_modalities(
            features,
            audio_alignment=_windowing(self.models[0])[1],
            vectors={m for model in self.models for m in model.settings.vector_modalities},
        )
        used = {m for model in self.models for m in model.modalities}
        return Prediction(
            video_id=features.video_id,
            time_s=np.asarray(features.time_s),
            values=mean,
            present={m: there for m, there in present.items() if m in used},
            targets=self.targets,
            spread=spread,
            changes={
                m: np.mean([moved[m] for moved in changes], axis=0, dtype=np.float32)
                for m in (changes[0] if changes else ())
            },
        )


def _mean_and_spread(columns: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """Mean (T,n) and standard deviation of models (models,T,n), of which NaN take no part."""
    known = ~np.isnan(columns)
    n_known = known.sum(axis=0)  # (T,n)
    with np.errstate(invalid="ignore"):
        mean = np.where(known, columns, 0.0).sum(axis=0) / n_known
    spread = None
    if (n_known > 1).any():
        squares = np.where(known, columns - mean, 0.0) ** 2
        deviation = np.sqrt(squares.sum(axis=0) / np.maximum(n_known - 1, 1))
        spread = np.where(n_known > 1, deviation, np.nan).astype(np.float32)
    return mean.astype(np.float32), spread


def _training_features(model: RCMA) -> tuple[PreprocessConfig, FaceSource | None]:
    """Settings of the features that a model was trained on, and the source of their faces, None if not recorded."""
    if isinstance(model, TrainedRCMA) and model.config.preprocessing is not None:
        return model.config.preprocessing, model.config.face_source
    return PreprocessConfig(), None


def _windowing(model: RCMA) -> tuple[int, Alignment, float]:
    """Hop in frames, alignment of the sound and label delay in seconds that a model was trained with."""
    if isinstance(model, TrainedRCMA):
        data = model.config.data
        return data.hop, data.audio_alignment, data.label_delay_s
    # Published: windows of 300 frames every 200.
    return max(1, model.settings.length * 2 // 3), _PUBLISHED_ALIGNMENT, 0.0
