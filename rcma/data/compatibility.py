"""Checks that features match: those of one training, and those of a prediction with those of the training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from preprocessing.config import PreprocessConfig, change_settings, flatten
from preprocessing.errors import InputError
from rcma.config import FaceSource, Modality, ModelSettings
from rcma.data.tables import some

_SETTINGS_OF: Mapping[Modality, tuple[str, ...]] = {
    "face": ("faces.size", "faces.margin", "faces.alignment"),
    "text": ("words.model",),
}
"""Preprocessing settings that must match, because otherwise a network sees other crops or other word vectors than in
training. The log-mel has no settings; models that need the waveform request it; any recogniser may supply the words."""

_PROVIDED_GEOMETRY = {"faces.alignment": "similarity", "faces.margin": 0.0}
"""How detected faces are cropped like provided ones.

The organisers of Aff-Wild2 describe ``cropped_aligned`` as faces of 112x112 pixels, aligned by a similarity transform
of five landmarks. ``faces.alignment=similarity`` does the same with ArcFace's template for 112x112 pixels, scaled to
the size of the crop (:func:`preprocessing.faces.align_face`). Their detector is another one, so the crops are similar,
not identical.
"""


def face_source(meta: Mapping[str, Any]) -> FaceSource:
    """Whether the faces of a feature folder were detected, or provided (``rcma-preprocess --cropped-aligned``)."""
    return "detected" if meta.get("provided_faces") is None else "provided"


def _flat_settings(settings: Mapping[str, Any], source: FaceSource | None) -> dict[str, Any]:
    """Settings by dotted key; provided faces always have :data:`_PROVIDED_GEOMETRY`."""
    return flatten(dict(settings)) | (_PROVIDED_GEOMETRY if source == "provided" else {})


def settings_for_raw_videos(preprocessing: PreprocessConfig, source: FaceSource | None) -> PreprocessConfig:
    """Settings that give a raw video features like those of the training.

    For a model that was trained on provided faces, faces are detected and cropped in the same geometry; otherwise such
    a model would be useless outside of the challenge.
    """
    # Which streams to read depends on the file.
    changes: dict[str, Any] = {"streams": ()}
    if source == "provided":
        geometry = {key.removeprefix("faces."): value for key, value in _PROVIDED_GEOMETRY.items()}
        changes["faces"] = preprocessing.faces.model_copy(update=geometry)
    return preprocessing.model_copy(update=changes)


def fixed_settings(model: ModelSettings) -> list[str]:
    """Keys of :func:`settings_for_raw_videos` that must keep their value for a model."""
    return [*_settings_of(model), *(["audio.waveform"] if model.audio_input == "waveform" else [])]


def _settings_of(model: ModelSettings) -> list[str]:
    """Settings that must match, of the modalities in use that were not made elsewhere."""
    modalities = [m for m in _SETTINGS_OF if model.uses(m) and m not in model.vector_modalities]
    return [key for m in modalities for key in _SETTINGS_OF[m]]


def change_raw_video_settings(
    preprocessing: PreprocessConfig, settings: Mapping[str, Any], *, fixed: Iterable[str]
) -> PreprocessConfig:
    """Change settings by dotted key, but refuse to change those that are ``fixed``.

    Raises:
        InputError: one of ``fixed`` would change, or see :func:`preprocessing.config.change_settings`.
    """
    changed = change_settings(preprocessing, settings)
    before, after = (flatten(config.model_dump(mode="json")) for config in (preprocessing, changed))
    for key in fixed:
        if after[key] != before[key]:
            raise InputError(
                f"{key}={after[key]}: the model was trained on features with {key}={before[key]} and accepts no "
                "others; leave it out"
            )
    return changed


def check_alike(described: Sequence[tuple[Path, Mapping[str, Any]]]) -> FaceSource:
    """Refuse to train on features that were made in different ways; returns the source of all faces.

    Args:
        described: feature folders, each with the content of its ``meta.json``; at least one.

    Raises:
        InputError: naming the setting and the folders.
    """
    by_source: dict[FaceSource, list[str]] = {"detected": [], "provided": []}
    for folder, meta in described:
        by_source[face_source(meta)].append(folder.name)
    if all(by_source.values()):
        raise InputError(
            f"{described[0][0].parent}: some features have provided faces (--cropped-aligned), others detected ones; "
            f"preprocess them alike. Provided: {some(by_source['provided'])}; detected: {some(by_source['detected'])}"
        )
    first_folder, first = described[0]
    source = face_source(first)
    wanted = _flat_settings(first["settings"], source)
    # With different recognisers, their mistakes would tell one video from another.
    keys = [*_SETTINGS_OF["face"], *_SETTINGS_OF["text"], "speech.model"]
    for folder, meta in described:
        given = _flat_settings(meta["settings"], source)
        for key in keys:
            if given.get(key) != wanted.get(key):
                raise InputError(
                    f"{first_folder} was made with {key} {wanted.get(key)!r}, {folder} with {given.get(key)!r}; "
                    "preprocess them alike"
                )
    return source


def check_like_training(
    video_id: str,
    meta: Mapping[str, Any],
    *,
    preprocessing: PreprocessConfig,
    source: FaceSource | None,
    model: ModelSettings,
) -> None:
    """Refuse features that were not made like those of the training.

    Args:
        video_id: of the features.
        meta: content of their ``meta.json``.
        preprocessing: settings of the training features.
        source: of the training features' faces; None, if not recorded, accepts any.
        model: settings of modalities that it does not use, or whose features come from other tools, need not match.

    Raises:
        InputError: naming the video, the setting and both values.
    """
    given_source = None if source is None else face_source(meta)
    given = _flat_settings(meta["settings"], given_source)
    wanted = _flat_settings(preprocessing.model_dump(mode="json"), source)
    key = next((key for key in _settings_of(model) if given.get(key) != wanted[key]), None)
    if key is None:
        return
    made, trained = f"{key} {given.get(key)!r}", f"{key} {wanted[key]!r}"
    if given_source == source or key not in _PROVIDED_GEOMETRY:
        problem = f"its features were made with {made}, but the model was trained on {trained}"
        advice = f"with --set {key}={wanted[key]}"
    elif source == "provided":
        geometry = " ".join(f"--set {name}={value}" for name, value in _PROVIDED_GEOMETRY.items())
        problem = f"its faces were detected and cropped with {made}, but the model was trained on provided faces"
        advice = f"with --cropped-aligned, or with {geometry}"
    else:
        problem = f"its faces were provided, but the model was trained on detected faces with {trained}"
        advice = "without --cropped-aligned"
    raise InputError(f"{video_id}: {problem}; preprocess it {advice}")


def other_source(videos: Sequence[str], source: FaceSource) -> str:
    """Remark on videos whose faces have another source than the training's, in the same geometry."""
    if source == "provided":
        return (
            f"{some(videos)}: the model was trained on provided faces (--cropped-aligned); here faces are detected and "
            "aligned to ArcFace's five landmarks, which gives similar crops, not identical ones"
        )
    return f"{some(videos)}: provided faces (--cropped-aligned), but the model was trained on detected and aligned ones"
