"""From features, or a raw video, to one prediction per frame: windows, model, average where windows overlap."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from preprocessing.align import Alignment
from preprocessing.config import PreprocessConfig, flatten
from preprocessing.errors import InputError
from preprocessing.store import Features, load_features
from rcma.checkpoint import TrainedRCMA
from rcma.config import TARGETS, Modality
from rcma.data import check_face_size, check_sound, cut_window, labels_at, windows
from rcma.model import RCMA

_SETTINGS_OF_FEATURES = ("faces.size", "faces.margin", "faces.alignment", "words.model")
"""Preprocessing settings that must be those of the training features."""
_PUBLISHED_ALIGNMENT: Alignment = "start"


def predict(model: RCMA, video_or_features: Path | str | Features) -> NDArray[np.float32]:
    """Predict every frame of one video.

    Args:
        model: from :func:`rcma.load_model`, or :func:`rcma.published.load`; it runs on the device where it is.
        video_or_features: features, a feature folder, or a video file; a video is preprocessed first, with the settings
            of the model's training features (the published ones for a published model).

    Returns:
        float32 (T,n_targets) in [-1,1], T the number of decoded frames; column k is ``model.settings.targets[k]``.

    Raises:
        InputError: there is no such video or feature folder, it cannot be used, or the features were made with other
            settings than those the model was trained on.
    """
    if isinstance(video_or_features, Features):
        return _predict_features(model, video_or_features)
    path = Path(video_or_features)
    if path.is_dir():
        return _predict_features(model, load_features(path))
    if not path.exists():
        raise InputError(f"{path}: no such video or feature folder")
    # Imported here: a model that only sees feature folders needs neither FFmpeg nor the recognisers.
    from preprocessing.inputs import Source
    from preprocessing.pipeline import Preprocessor

    preprocessor = Preprocessor(preprocessing_of(model), device=_device(model).type)
    with tempfile.TemporaryDirectory() as temporary:
        # Of several people, should the settings ask for all, the first.
        name = preprocessor.process(Source(path.stem, path), Path(temporary))[0]
        return _predict_features(model, load_features(Path(temporary) / name))


def preprocessing_of(model: RCMA) -> PreprocessConfig:
    """Settings to preprocess videos with for this model; the published ones for a model without a run."""
    if isinstance(model, TrainedRCMA) and model.config.preprocessing is not None:
        # Which stream of a file to take is a matter of that file.
        return model.config.preprocessing.model_copy(update={"streams": ()})
    return PreprocessConfig()


def check_features(model: RCMA, features: Features) -> None:
    """Refuse features that are not like those the model was trained on.

    Raises:
        InputError: naming the video, the setting and both values.
    """
    given, wanted = flatten(features.meta["settings"]), flatten(preprocessing_of(model).model_dump(mode="json"))
    for key in _SETTINGS_OF_FEATURES:
        if given.get(key) != wanted[key]:
            raise InputError(
                f"{features.video_id}: its features were made with {key} {given.get(key)!r}, but the model was trained "
                f"on {wanted[key]!r}; preprocess it with --set {key}={wanted[key]}"
            )
    width = features.word_vectors.shape[1]
    if len(features.words) and width != model.settings.text_width:
        raise InputError(
            f"{features.video_id}: its word vectors have width {width}, but the model takes "
            f"{model.settings.text_width}; preprocess it with the words.model of the training features"
        )
    check_face_size(model.settings, features.faces.shape[1])
    check_sound(model.settings, features)


def predict_video(
    model: RCMA,
    features: Features,
    *,
    hop: int,
    audio_alignment: Alignment,
    label_delay_s: float = 0.0,
    embeddings: Mapping[Modality, NDArray[np.float16]] | None = None,
    batch_size: int = 4,
) -> NDArray[np.float32]:
    """Predict every frame, with windows of the model's length; memory does not grow with the video.

    Args:
        model: runs on the device where it is, in evaluation mode; its mode is restored.
        features: a video of T frames; see :func:`check_features`.
        hop: frames between the starts of two windows; a frame in several windows gets the mean of their predictions.
        audio_alignment: as in training.
        label_delay_s: as in training: predictions are given that much later; the first one stands before.
        embeddings: what the backbones say of the video, (T,d) of each modality, where it is known already.
        batch_size: windows that are in memory at once.

    Returns:
        float32 (T,n_targets) in [-1,1].
    """
    settings = model.settings
    assert settings.text_width is not None  # RCMA refuses to be built without
    length, n_frames = settings.length, features.n_frames
    starts = windows(n_frames, length, hop)
    total = np.zeros((n_frames, len(settings.targets)))
    count = np.zeros((n_frames, 1))
    was_training = model.training
    model.eval()
    try:
        for first in range(0, len(starts), batch_size):
            group = starts[first : first + batch_size]
            cut = [
                cut_window(
                    features,
                    start,
                    length=length,
                    text_width=settings.text_width,
                    audio_alignment=audio_alignment,
                    audio=settings.audio_input,
                    embeddings=embeddings,
                )
                for start in group
            ]
            batch = {name: torch.stack([window[name] for window in cut]).to(_device(model)) for name in cut[0]}
            with torch.inference_mode():
                output = model(batch).float().cpu().numpy()  # (b,L,n_targets)
            for start, prediction in zip(group, output, strict=True):
                frames = slice(start, min(start + length, n_frames))
                total[frames] += prediction[: frames.stop - frames.start]
                count[frames] += 1
    finally:
        model.train(was_training)
    prediction = (total / count).astype(np.float32)
    if label_delay_s:
        time_s = np.asarray(features.time_s)
        prediction = labels_at(time_s, np.maximum(time_s - label_delay_s, time_s[0]), prediction)
    return prediction


def to_abaw_columns(model: RCMA, prediction: NDArray[np.float32]) -> NDArray[np.float32]:
    """(T,n_targets) of a model to (T,2) valence and arousal, NaN where the model does not predict one of them."""
    columns = np.full((len(prediction), len(TARGETS)), np.nan, np.float32)
    columns[:, [TARGETS.index(target) for target in model.settings.targets]] = prediction
    return columns


def predict_average(models: Sequence[RCMA], features: Features) -> NDArray[np.float32]:
    """Mean of what several models predict for each frame; models of one target each complete each other.

    Args:
        models: see :func:`predict`.
        features: see :func:`predict`.

    Returns:
        float32 (T,2) valence and arousal in [-1,1]; NaN for a target that none of the models predicts.

    Raises:
        InputError: see :func:`predict`.
    """
    predictions = np.stack([to_abaw_columns(model, predict(model, features)) for model in models])
    known = ~np.isnan(predictions)
    total = np.where(known, predictions, 0.0).sum(axis=0)
    with np.errstate(invalid="ignore"):
        return np.asarray(total / known.sum(axis=0), dtype=np.float32)


def require_both_targets(models: Sequence[RCMA]) -> None:
    """Refuse models whose predictions cannot fill an ABAW file.

    Raises:
        InputError: none of them predicts one of the targets.
    """
    predicted = {target for model in models for target in model.settings.targets}
    missing = [target for target in TARGETS if target not in predicted]
    if missing:
        raise InputError(
            f"model.targets: no model given predicts {missing[0]}, but an ABAW file needs both columns; "
            "train with model.targets=[valence,arousal], or give a model of each target"
        )


def _predict_features(model: RCMA, features: Features) -> NDArray[np.float32]:
    check_features(model, features)
    # Published: windows of 300 frames every 200.
    hop, audio_alignment, label_delay_s = max(1, model.settings.length * 2 // 3), _PUBLISHED_ALIGNMENT, 0.0
    if isinstance(model, TrainedRCMA):
        data = model.config.data
        hop, audio_alignment, label_delay_s = data.hop, data.audio_alignment, data.label_delay_s
    prediction = predict_video(model, features, hop=hop, audio_alignment=audio_alignment, label_delay_s=label_delay_s)
    if not np.isfinite(prediction).all():
        raise InputError(
            f"{features.video_id}: the model gives no numbers for it; its features or the model's weights hold NaN"
        )
    return prediction


def _device(model: RCMA) -> torch.device:
    return next(model.parameters()).device
