"""From features, or a raw video, to one prediction per frame: windows, model, average where windows overlap."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from preprocessing.config import PreprocessConfig
from preprocessing.errors import InputError
from preprocessing.features import Alignment, Features, load_features
from rcma.config import TARGETS, FaceSource, Modality
from rcma.data import (
    check_face_size,
    check_like_training,
    check_sound,
    cut_window,
    labels_at,
    other_source,
    settings_for_raw_videos,
    windows,
)
from rcma.fast_cpu import Embed, optimised_backbones
from rcma.model import RCMA, Fusion, TrainedRCMA
from rcma.prediction.postprocess import Prediction, present_modalities

log = logging.getLogger("rcma")

_PUBLISHED_ALIGNMENT: Alignment = "start"
_FRAMES_AT_ONCE = 256
"""Frames whose crops and log-mel patches are in memory at once."""


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
        return _predict_features(model, video_or_features)[0]
    path = Path(video_or_features)
    if path.is_dir():
        return _predict_features(model, load_features(path))[0]
    if not path.exists():
        raise InputError(f"{path}: no such video or feature folder")
    with preprocessed(path, preprocessing_of(model), device=_device(model).type) as features:
        for remark in faces_from_elsewhere([model], {features.video_id: "detected"}):
            log.warning(remark)
        return _predict_features(model, features)[0]


@contextmanager
def preprocessed(video: Path, config: PreprocessConfig, *, device: str) -> Iterator[Features]:
    """Features of a video, which are gone when the block ends.

    Raises:
        InputError: the video cannot be used.
    """
    # Imported here: a model that only sees feature folders needs neither FFmpeg nor the recognisers.
    from preprocessing.inputs import Source
    from preprocessing.names import video_id_of
    from preprocessing.run import Preprocessor

    preprocessor = Preprocessor(config, device=device)
    with tempfile.TemporaryDirectory() as temporary:
        # Of several people, should the settings ask for all, the first.
        name = preprocessor.process(Source(video_id_of(video), video), Path(temporary))[0]
        yield load_features(Path(temporary) / name)


def predict_frames(
    models: Sequence[RCMA], features: Features, *, optimised: Sequence[Mapping[str, Embed]] | None = None
) -> Prediction:
    """Predict every frame of one video with several models, whose predictions are averaged.

    Args:
        models: at least one, see :func:`predict`; models of one target each complete each other.
        features: see :func:`predict`.
        optimised: :func:`rcma.fast_cpu.optimised_backbones` of each model, kept from one video to the next; None:
            made for this one, which takes about a second with published layer sizes.

    Returns:
        Values are the mean over the models that predict a target; NaN for a target that none of them predicts. The
        spread is over the same models.
        Modalities are those that any of the models uses. Changes are the mean over the models that refine the same
        modalities in as many steps as the first one.

    Raises:
        InputError: see :func:`predict`.
    """
    forms: Sequence[Mapping[str, Embed] | None] = optimised or [None] * len(models)
    of_models = [_predict_features(model, features, kept) for model, kept in zip(models, forms, strict=True)]
    predictions, changes = zip(*of_models, strict=True)
    columns = np.stack([to_abaw_columns(model, values) for model, values in zip(models, predictions, strict=True)])
    known = ~np.isnan(columns)
    with np.errstate(invalid="ignore"):
        values = np.where(known, columns, 0.0).sum(axis=0) / known.sum(axis=0)
    by_several = known.sum(axis=0) > 1  # (T,2)
    spread = None
    if by_several.any():
        squares = np.where(known, columns - values, 0.0) ** 2
        n_free = np.maximum(known.sum(axis=0) - 1, 1)
        spread = np.where(by_several, np.sqrt(squares.sum(axis=0) / n_free), np.nan).astype(np.float32)
    _, audio_alignment, _ = _windowing(models[0])
    present = present_modalities(features, audio_alignment=audio_alignment)
    used = {m for model in models for m in model.modalities}
    first = models[0]
    alike = [
        moved
        for model, moved in zip(models, changes, strict=True)
        if model.modalities == first.modalities and model.fusion.depth == first.fusion.depth
    ]
    return Prediction(
        video_id=features.video_id,
        time_s=np.asarray(features.time_s),
        values=values.astype(np.float32),
        present={m: there for m, there in present.items() if m in used},
        changes={m: np.mean([moved[m] for moved in alike], axis=0, dtype=np.float32) for m in changes[0]},
        spread=spread,
    )


def preprocessing_of(model: RCMA) -> PreprocessConfig:
    """Settings to preprocess videos with for this model; the published ones for a model without a run.

    They give features as those of the training, see :func:`rcma.data.compatibility.settings_for_raw_videos`.
    """
    return settings_for_raw_videos(*_training_features(model))


def _training_features(model: RCMA) -> tuple[PreprocessConfig, FaceSource | None]:
    """Settings of the features that a model was trained on, and the source of their faces, None if not recorded."""
    if isinstance(model, TrainedRCMA) and model.config.preprocessing is not None:
        return model.config.preprocessing, model.config.face_source
    return PreprocessConfig(), None


def check_features(model: RCMA, features: Features) -> None:
    """Refuse features that are not like those the model was trained on.

    Raises:
        InputError: naming the video, what differs and both values.
    """
    preprocessing, source = _training_features(model)
    check_like_training(features.video_id, features.meta, preprocessing=preprocessing, source=source)
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
    prediction, _ = _predict_and_watch(
        model,
        features,
        hop=hop,
        audio_alignment=audio_alignment,
        label_delay_s=label_delay_s,
        embeddings=embeddings,
        batch_size=batch_size,
    )
    return prediction


def _predict_and_watch(
    model: RCMA,
    features: Features,
    *,
    hop: int,
    audio_alignment: Alignment,
    label_delay_s: float,
    embeddings: Mapping[Modality, NDArray[np.float16]] | None = None,
    optimised: Mapping[str, Embed] | None = None,
    batch_size: int = 4,
) -> tuple[NDArray[np.float32], dict[Modality, NDArray[np.float32]]]:
    """What :func:`predict_video` returns, and :attr:`Prediction.changes`."""
    length, n_frames, n_targets = model.settings.length, features.n_frames, len(model.settings.targets)
    starts = windows(n_frames, length, hop)
    n_columns = n_targets + len(model.modalities) * model.fusion.depth
    total, count = np.zeros((n_frames, n_columns)), np.zeros((n_frames, 1))
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            stretches = _embed_stretches(
                model, features, audio_alignment=audio_alignment, embeddings=embeddings, optimised=optimised
            )
            of_starts = _cut_windows(stretches, starts, length=length)
            for first in range(0, len(starts), batch_size):
                group = starts[first : first + batch_size]
                cut = [next(of_starts) for _ in group]
                output = _run_windows(model, {name: torch.stack([window[name] for window in cut]) for name in cut[0]})
                for start, columns in zip(group, output, strict=True):
                    frames = slice(start, min(start + length, n_frames))
                    total[frames] += columns[: frames.stop - frames.start]
                    count[frames] += 1
    finally:
        model.train(was_training)
    mean = (total / count).astype(np.float32)  # (T,n_targets+M*S)
    if label_delay_s:
        time_s = np.asarray(features.time_s)
        mean = labels_at(time_s, np.maximum(time_s - label_delay_s, time_s[0]), mean)
    changes = np.split(mean[:, n_targets:], len(model.modalities), axis=1) if model.fusion.depth else []
    return mean[:, :n_targets], dict(zip(model.modalities, changes, strict=False))


def _embed_stretches(
    model: RCMA,
    features: Features,
    *,
    audio_alignment: Alignment,
    embeddings: Mapping[Modality, NDArray[np.float16]] | None,
    optimised: Mapping[str, Embed] | None,
) -> Iterator[dict[str, Tensor]]:
    """A video in stretches of some hundred frames, each as a batch of :meth:`RCMA.forward` without its dimension B;
    crops and log-mel have become embeddings, so that a frame in several windows goes through the backbones once.
    """
    assert model.settings.text_width is not None  # RCMA refuses to be built without
    if optimised is None:
        optimised = optimised_backbones(model) if embeddings is None else {}
    needed = {"frame_mask", *model.modalities, *(f"{m}_mask" for m in model.modalities)}
    for start in range(0, features.n_frames, _FRAMES_AT_ONCE):
        cut = cut_window(
            features,
            start,
            length=min(_FRAMES_AT_ONCE, features.n_frames - start),
            text_width=model.settings.text_width,
            audio_alignment=audio_alignment,
            audio=model.settings.audio_input,
            embeddings=embeddings,
        )
        stretch = {name: value.to(_device(model)) for name, value in cut.items() if name in needed}
        for m in model.backbone:
            stretch[m] = model.embed(
                m,  # type: ignore[arg-type]
                stretch[m][None],
                stretch[f"{m}_mask"][None],
                backbone=optimised.get(m),
            )[0]
        yield stretch


def _cut_windows(
    stretches: Iterator[dict[str, Tensor]], starts: Sequence[int], *, length: int
) -> Iterator[dict[str, Tensor]]:
    """Windows (L,...) of consecutive stretches, zeros beyond the end; frames that no later window needs are dropped."""
    first, frames = 0, next(stretches)
    for start in starts:
        frames = {name: value[start - first :] for name, value in frames.items()}
        first = start
        while len(frames["frame_mask"]) < length and (more := next(stretches, None)) is not None:
            frames = {name: torch.cat([value, more[name]]) for name, value in frames.items()}
        missing = max(0, length - len(frames["frame_mask"]))
        padded = {name: (0, 0) * (value.ndim - 1) + (0, missing) for name, value in frames.items()}
        yield {name: F.pad(value[:length], padded[name]) for name, value in frames.items()}


def _run_windows(model: RCMA, batch: Mapping[str, Tensor]) -> NDArray[np.float32]:
    """Predictions, then the changes of each modality in each step: (B,L,n_targets+M*S)."""
    with _watch_steps(model.fusion) as changes:
        output = model(batch)
    columns = [output, *torch.stack(changes, dim=-1).unbind(dim=2)] if changes else [output]
    return np.asarray(torch.cat(columns, dim=-1).float().cpu().numpy())


@contextmanager
def _watch_steps(fusion: Fusion) -> Iterator[list[Tensor]]:
    """Gives a list to which each step that is run appends how far it moved its features: (B,L,M), relative."""
    changes: list[Tensor] = []

    def note(_step: nn.Module, given: tuple[Any, ...], refined: Mapping[Modality, Tensor]) -> None:
        before = given[0]
        moved = [(refined[m] - before[m]).norm(dim=-1) / before[m].norm(dim=-1) for m in before]
        changes.append(torch.stack(moved, dim=-1))

    handles = [step.register_forward_hook(note) for step in fusion.steps]
    try:
        yield changes
    finally:
        for handle in handles:
            handle.remove()


def to_abaw_columns(model: RCMA, prediction: NDArray[np.float32]) -> NDArray[np.float32]:
    """(T,n_targets) of a model to (T,2) valence and arousal, NaN where the model does not predict one of them."""
    columns = np.full((len(prediction), len(TARGETS)), np.nan, np.float32)
    columns[:, [TARGETS.index(target) for target in model.settings.targets]] = prediction
    return columns


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


def faces_from_elsewhere(models: Sequence[RCMA], videos: Mapping[str, FaceSource]) -> Iterator[str]:
    """What is to be said where faces are provided and the training's were detected, or the other way round.

    Args:
        models: see :func:`predict`.
        videos: source of the faces of each video, by name; features that :func:`check_features` let pass.

    Yields:
        At most one line for each source that models were trained on.
    """
    for source in sorted({source for _, source in map(_training_features, models) if source is not None}):
        others = [name for name, given in videos.items() if given != source]
        if others:
            yield other_source(others, source)


def _predict_features(
    model: RCMA, features: Features, optimised: Mapping[str, Embed] | None = None
) -> tuple[NDArray[np.float32], dict[Modality, NDArray[np.float32]]]:
    """Predictions (T,n_targets), and :attr:`Prediction.changes`."""
    check_features(model, features)
    hop, audio_alignment, label_delay_s = _windowing(model)
    prediction, changes = _predict_and_watch(
        model, features, hop=hop, audio_alignment=audio_alignment, label_delay_s=label_delay_s, optimised=optimised
    )
    if not np.isfinite(prediction).all():
        raise InputError(
            f"{features.video_id}: the model gives no numbers for it; its features or the model's weights hold NaN"
        )
    return prediction, changes


def _windowing(model: RCMA) -> tuple[int, Alignment, float]:
    """Hop in frames, alignment of the sound and label delay in seconds that a model was trained with."""
    if isinstance(model, TrainedRCMA):
        data = model.config.data
        return data.hop, data.audio_alignment, data.label_delay_s
    # Published: windows of 300 frames every 200.
    return max(1, model.settings.length * 2 // 3), _PUBLISHED_ALIGNMENT, 0.0


def _device(model: RCMA) -> torch.device:
    return next(model.parameters()).device
