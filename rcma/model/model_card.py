"""The model card: the README.md that goes with a model, written from its own configuration and scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import SerializerFunctionWrapHandler, model_serializer, model_validator

from preprocessing.config import PreprocessConfig, Settings
from rcma import __version__
from rcma.config import TARGETS, AudioBackbone, FaceBackbone, TrainConfig
from rcma.model.fusion import n_steps
from rcma.model.network import head_kind

if TYPE_CHECKING:
    from huggingface_hub import ModelCard, ModelCardData

_TEMPLATE = Path(__file__).with_name("model_card.md")
_TAGS = (
    "valence-arousal",
    "emotion-recognition",
    "affective-computing",
    "multimodal",
    "video",
    # The Hub takes these as a sign that from_pretrained works.
    "model_hub_mixin",
    "pytorch_model_hub_mixin",
)
_OWN_FOLDERS = ("features", "annotations", "embeddings")
"""Settings of ``data`` that mean nothing on another machine."""


class ValidationScores(Settings):
    """Scores of the weights on the validation videos; training writes them as scores.json."""

    split: str
    best_epoch: int
    """The epoch, from 1, whose weights were kept."""
    epochs: int
    """Number of epochs run."""
    ccc: dict[str, float | None]
    """Of each target, and ``mean``, in [-1,1]; None where undefined. scores.json has a key ``NAME_ccc`` for each."""
    n_videos: int
    n_frames: int
    """Annotated frames of the videos."""

    @model_validator(mode="before")
    @classmethod
    def _gather_ccc(cls, tree: Any) -> Any:
        if not isinstance(tree, dict) or "ccc" in tree:
            return tree
        ccc = {name.removesuffix("_ccc"): value for name, value in tree.items() if name.endswith("_ccc")}
        return {name: value for name, value in tree.items() if not name.endswith("_ccc")} | {"ccc": ccc}

    @model_serializer(mode="wrap")
    def _spread_ccc(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        tree = dump(self)
        return tree | {f"{name}_ccc": value for name, value in tree.pop("ccc").items()}


def model_card(
    config: TrainConfig,
    *,
    scores: ValidationScores | None,
    versions: Mapping[str, str],
    n_parameters: int,
    name: str | None = None,
    license: str | None = None,
    dataset: str | None = None,
) -> ModelCard:
    """Describe a trained model, with figures from the arguments only.

    Args:
        config: settings of the training, without paths; see :func:`rcma.model.hub.shareable`.
        scores: None if unknown; the card then says that the model was not evaluated.
        versions: versions of the packages used in training, by package.
        n_parameters: number of parameters, trainable and frozen.
        name: title, one line; None: made from kind, modalities and targets.
        license: the Hub's identifier of the weights' licence, such as ``cc-by-nc-4.0``.
        dataset: the Hub's identifier of the training data.

    Returns:
        The card with the Hub's metadata block; ``str()`` gives the text of README.md.

    Source: https://huggingface.co/docs/hub/model-cards
    """
    from huggingface_hub import ModelCard

    model, preprocessing = config.model, config.preprocessing or PreprocessConfig()
    targets, modalities = _and(model.targets), _and(model.modalities)
    if name is None:
        values = f"{targets} from {modalities}"
        name = f"{model.fusion.kind.upper()}: {values}" if len(model.modalities) > 1 else values.capitalize()
    return ModelCard.from_template(
        _card_data(config, scores, name=name, license=license, dataset=dataset),
        template_path=str(_TEMPLATE),
        model=model,
        name=name,
        targets=targets,
        modalities=modalities,
        preprocessing_models=(preprocessing.speech.model, preprocessing.words.model),
        source="features/my_video" if model.vector_modalities else "my_video.mp4",
        vector_files=_and([f"`{m}_vectors.npy`" for m in model.vector_modalities]),
        missing_targets=_and([target for target in TARGETS if target not in model.targets]),
        rows=list(_model_rows(config, n_parameters)),
        scores=scores,
        fold=_fold(config),
        data_set=dataset or "a data set that was not named",
        face_source=config.face_source,
        settings=_settings(config),
        versions=", ".join(f"{package} {version}" for package, version in versions.items()),
        rcma_version=__version__,
        date=datetime.now(UTC).date(),
    )


def _card_data(
    config: TrainConfig, scores: ValidationScores | None, *, name: str, license: str | None, dataset: str | None
) -> ModelCardData:
    from huggingface_hub import EvalResult, ModelCardData

    preprocessing = config.preprocessing or PreprocessConfig()
    results = []
    if scores is not None:
        results = [
            EvalResult(
                task_type="valence-arousal-estimation",
                task_name="Valence and arousal for each frame of a video",
                dataset_type=dataset or "unknown",
                dataset_name=f"{dataset or 'unknown'}, {_fold(config)}",
                dataset_split=scores.split,
                metric_type="ccc",
                metric_name=f"CCC {target}",
                metric_value=round(value, 4),
            )
            for target, value in scores.ccc.items()
            if value is not None
        ]
    return ModelCardData(
        # No pipeline tag: the Hub has no task with values for each frame of a video.
        library_name="rcma",
        tags=list(_TAGS),
        language=preprocessing.speech.language if config.model.uses("text") else None,
        license=license,
        datasets=[dataset] if dataset else None,
        metrics=["ccc"],
        model_name=name,
        eval_results=results or None,
    )


def _model_rows(config: TrainConfig, n_parameters: int) -> Iterator[tuple[str, str]]:
    model, words = config.model, (config.preprocessing or PreprocessConfig()).words
    yield "input", _and(model.modalities)
    if model.uses("face"):
        yield "face encoder", _encoder(model.face)
    if model.uses("audio"):
        yield "audio encoder", _encoder(model.audio)
    if model.uses("text", kind="features"):
        yield "text", f"{model.text_width} columns of imported features"
    elif model.uses("text"):
        yield "words", f"vectors of {model.text_width} values from `{words.model}`"
    for m in model.modalities:
        yield f"temporal network, {m}", f"channels {', '.join(map(str, getattr(model.tcn, m)))}"
    if len(model.modalities) > 1:
        steps = n_steps(model.fusion)
        refinement = f", {steps} step{'' if steps == 1 else 's'}, time {model.fusion.time}"
        yield "fusion", f"`{model.fusion.kind}`{refinement if steps else ''}"
    yield "head", head_kind(model)
    yield "window", f"{model.length} frames, a new one every {config.data.hop}; predictions of overlaps are averaged"
    yield "output", f"{', '.join(model.targets)}, one row for each frame"
    yield "parameters", f"{n_parameters:,}"


def _encoder(settings: FaceBackbone | AudioBackbone) -> str:
    if settings.kind == "features":
        return f"none: {settings.width} columns of imported features"
    if settings.hf is not None:
        start = f"pretrained `{settings.hf}`"
    elif settings.pretrained is not None:
        start = f"started from `{settings.pretrained.name}`"
    else:
        start = "started from random values"
    return f"`{settings.kind}`, {start}, {'frozen' if settings.frozen else 'trained'}"


def _settings(config: TrainConfig) -> str:
    tree = config.model_dump(mode="json")
    tree["data"] = {key: value for key, value in tree["data"].items() if key not in _OWN_FOLDERS}
    for m in ("face", "audio"):
        # Hundreds of lines, which config.json has as well.
        tree["model"][m].pop("hf_config")
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, default_flow_style=None)


def _fold(config: TrainConfig) -> str:
    data = config.data
    return "the official split" if data.fold == 0 else f"fold {data.fold}, {data.folds} folds"


def _and(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))
