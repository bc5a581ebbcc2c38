"""What training starts from: resolved settings, the model with its normalisation, and the windows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator

from preprocessing.errors import InputError
from rcma.config import Modality, ModelSettings, OnnxSettings, TrainConfig
from rcma.data import Embeddings, TrainingData, check_features, embed_videos, fit_normalisation
from rcma.model import TrainedRCMA, describe_onnx, speech_config, vision_config
from rcma.training.run_folder import TrainingState


def resolve_config(config: TrainConfig, data: TrainingData) -> TrainConfig:
    """Fill in the settings that follow from the features and the encoders.

    Raises:
        InputError: the features contradict the settings, or an encoder cannot be read.
    """
    model = _with_widths(config.model, data)
    for video in (*data.train, *data.validation):
        check_features(model, video.features())
    if model.uses("face", kind="hf"):
        model = model.with_backbone("face", hf_config=vision_config(str(model.face.hf)))
    if model.uses("face", kind="onnx"):
        assert model.face.pretrained is not None  # the settings refuse it
        described = describe_onnx(model.face.onnx or OnnxSettings(), model.face.pretrained)
        model = model.with_backbone("face", onnx=described)
    if model.uses("audio", kind="hf"):
        model = model.with_backbone("audio", hf_config=speech_config(str(model.audio.hf)))
    changes: dict[str, Any] = {"model": model}
    if set(model.modalities) != set(model.vector_modalities):  # preprocessing made some of the input
        changes |= {"preprocessing": data.preprocessing, "face_source": data.face_source}
    return config.model_copy(update=changes)


def _with_widths(model: ModelSettings, data: TrainingData) -> ModelSettings:
    widths: dict[Modality, int] = {}
    for m in model.vector_modalities:
        if m not in data.vector_widths:
            raise InputError(f"model.{m}.kind is features, but not all feature folders hold {m}_vectors.npy")
        widths[m] = data.vector_widths[m]
    if model.uses("text", kind="words"):
        # Without a single word, any width will do: no vector is ever read.
        widths["text"] = data.text_width or model.text_width or 1
    for m, known in widths.items():
        if model.width_of_input(m) not in (None, known):
            key = "text_width" if m == "text" else f"{m}.width"
            raise InputError(
                f"model.{key} is {model.width_of_input(m)}, but the features have {known} columns; leave it out"
            )
    return model.with_widths(widths)


def build_model(config: TrainConfig, data: TrainingData, state: TrainingState | None) -> TrainedRCMA:
    """The model of a state; or a new one with pretrained backbones, normalised for the training videos."""
    torch.manual_seed(config.train.seed)
    model = TrainedRCMA(config)
    if state is not None:
        model.load_state_dict(state.model)
        return model
    model.load_backbones()
    model.set_normalisation(*fit_normalisation(data.train, config.model))
    return model


def store_embeddings(
    config: TrainConfig,
    data: TrainingData,
    model: TrainedRCMA,
    accelerator: Accelerator,
    on_status: Callable[[str], None],
) -> Embeddings | None:
    """Store the outputs of frozen backbones, if ``data.embeddings`` asks for it; the processes share the work."""
    if config.data.embeddings is None:
        return None
    videos = (*data.train, *data.validation)
    embeddings = embed_videos(
        config.data.embeddings,
        model.to(accelerator.device),
        videos,
        n_views=config.data.augmentations,
        audio_alignment=config.data.audio_alignment,
        first=len(videos) * accelerator.process_index // accelerator.num_processes,
        on_video=lambda done, total: on_status(f"outputs of frozen backbones, video {done} of {total}"),
    )
    # Each process has gone through all videos, so nobody waits here long enough for a collective call to time out.
    accelerator.wait_for_everyone()
    return embeddings
