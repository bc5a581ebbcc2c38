"""Trained models from the features of a video to one prediction, and what features they can take."""

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
from rcma.prediction.sliding_window import predict_video, predictions_and_changes, split_changes

FindRecording = Callable[[], Path]
"""Gives the recording that features were made from; raises InputError where it is not available."""

_PUBLISHED_ALIGNMENT: Alignment = "start"


class Checkpoints:
    """Trained models whose predictions are averaged; models of different targets complete each other."""

    name = ""
    """How predictions are called that are not RCMA's."""
    missing: Sequence[str] = ()

    def __init__(self, models: Sequence[RCMA], *, changes: bool = False) -> None:
        """Take models on the devices where they are.

        Args:
            models: at least one, from :func:`rcma.load_model` or :func:`rcma.published.load`; put into evaluation mode.
            changes: measure how far each fusion step moves its features, see :attr:`Prediction.changes`.
        """
        self.models = tuple(model.eval() for model in models)
        of_models = dict.fromkeys(target for model in self.models for target in model.settings.targets)
        first = [target for target in TARGETS if target in of_models]
        self.targets: tuple[Target, ...] = (*first, *(target for target in of_models if target not in first))
        """All that any of the models predicts; valence and arousal first."""
        self._changes = changes
        # Of several models, they are rebuilt for each video: kept, each would take .8 GB.
        self._optimised: list[dict[str, Embed] | None] = [None] * len(self.models)
        if len(self.models) == 1:
            self._optimised = [optimised_backbones(self.models[0])]

    def describe(self) -> list[str]:
        """Nothing: the runs say how the models were trained."""
        return []

    def preprocessing(self) -> PreprocessConfig:
        """Settings that give raw videos features as those of the training; the default ones for a published model.

        See :func:`rcma.data.settings_for_raw_videos`. Of several models, those of one that needs the waveform, if there
        is one; the others are checked against the features.
        """
        return settings_for_raw_videos(*_training_features(max(self.models, key=_needs_waveform)))

    @property
    def fixed_settings(self) -> tuple[str, ...]:
        """Keys of :meth:`preprocessing` that must stay as they are."""
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
        """At most one line for each source of the training's faces, where those of videos have another source.

        Args:
            sources: of the faces of each video, by video_id; of features that :meth:`check` lets pass.
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
            Values are the mean over the models that predict a target; the spread is over the same models. Modalities
            are those that any of the models uses. Changes are the mean over the models that refine the same modalities
            in as many steps as the first one.

        Raises:
            InputError: the features are not like those of the training, or the model gives no numbers for them.
        """
        self.check(features)
        of_models = [self._run(model, features, kept) for model, kept in zip(self.models, self._optimised, strict=True)]
        columns = np.full((len(of_models), features.n_frames, len(self.targets)), np.nan, np.float32)
        for number, (model, (values, _)) in enumerate(zip(self.models, of_models, strict=True)):
            columns[number][:, [self.targets.index(target) for target in model.settings.targets]] = values
        mean, spread = _mean_and_spread(columns)
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
            changes=self._mean_changes([changes for _, changes in of_models]),
        )

    def _run(
        self, model: RCMA, features: Features, optimised: Mapping[str, Embed] | None
    ) -> tuple[NDArray[np.float32], dict[Modality, NDArray[np.float32]]]:
        """Predictions (T,n_targets) of one model, and :attr:`Prediction.changes`."""
        hop, audio_alignment, label_delay_s = _windowing(model)
        columns = predict_video(
            model,
            features,
            hop=hop,
            audio_alignment=audio_alignment,
            label_delay_s=label_delay_s,
            optimised=optimised,
            run=predictions_and_changes if self._changes else None,
        )
        values = columns[:, : len(model.settings.targets)]
        if not np.isfinite(values).all():
            raise InputError(
                f"{features.video_id}: the model gives no numbers for it; its features or the model's weights hold NaN"
            )
        return values, split_changes(model, columns) if self._changes else {}

    def _mean_changes(
        self, changes: Sequence[Mapping[Modality, NDArray[np.float32]]]
    ) -> dict[Modality, NDArray[np.float32]]:
        first = self.models[0]
        alike = [
            moved
            for model, moved in zip(self.models, changes, strict=True)
            if model.modalities == first.modalities and model.fusion.depth == first.fusion.depth
        ]
        return {m: np.mean([moved[m] for moved in alike], axis=0, dtype=np.float32) for m in changes[0]}


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


def _needs_waveform(model: RCMA) -> bool:
    return model.settings.audio_input == "waveform"


def _windowing(model: RCMA) -> tuple[int, Alignment, float]:
    """Hop in frames, alignment of the sound and label delay in seconds that a model was trained with."""
    if isinstance(model, TrainedRCMA):
        data = model.config.data
        return data.hop, data.audio_alignment, data.label_delay_s
    # Published: windows of 300 frames every 200.
    return max(1, model.settings.length * 2 // 3), _PUBLISHED_ALIGNMENT, 0.0
