"""Which features may be mixed: in one training, and those of a prediction with those of the training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from preprocessing.config import PreprocessConfig, change_settings, flatten
from preprocessing.errors import InputError
from rcma.config import FaceSource, Modality, ModelSettings

_SETTINGS_OF: Mapping[Modality, tuple[str, ...]] = {
    "face": ("faces.size", "faces.margin", "faces.alignment"),
    "text": ("words.model",),
}
SETTINGS_THAT_MUST_MATCH = tuple(key for keys in _SETTINGS_OF.values() for key in keys)
"""Preprocessing settings without which a network sees other crops or other word vectors than it was trained on. The
log-mel has no settings; the waveform is requested by the models that need it; words may come from any recogniser."""
SETTINGS_THAT_MUST_MATCH_IN_TRAINING = (*SETTINGS_THAT_MUST_MATCH, "speech.model")
"""One recogniser for all training videos: otherwise its mistakes would tell one video from another."""

PROVIDED_GEOMETRY = {"faces.alignment": "similarity", "faces.margin": 0.0}
"""How detected faces are cropped as provided ones are.

The organisers of Aff-Wild2 describe ``cropped_aligned`` as faces of 112x112 pixels, aligned by a similarity transform
of five landmarks. ``faces.alignment=similarity`` does the same with ArcFace's template for 112x112 pixels, scaled to
the size of the crop (:func:`preprocessing.faces.align_face`). Their detector is another one, so the crops are alike,
not the same.
"""

_NAMES_SHOWN = 10


def face_source(meta: Mapping[str, Any]) -> FaceSource:
    """Whether the faces of a feature folder were detected, or provided (``rcma-preprocess --cropped-aligned``)."""
    return "detected" if meta.get("provided_faces") is None else "provided"


def matching_settings(
    settings: Mapping[str, Any], source: FaceSource | None, *, keys: Sequence[str] = SETTINGS_THAT_MUST_MATCH
) -> dict[str, Any]:
    """The settings that must match, by dotted key.

    Args:
        settings: those of preprocessing, nested as in ``meta.json``.
        source: of the faces. The geometry of provided faces is :data:`PROVIDED_GEOMETRY`, whatever the settings say.
        keys: which settings.
    """
    flat = flatten(dict(settings)) | (PROVIDED_GEOMETRY if source == "provided" else {})
    return {key: flat.get(key) for key in keys}


def settings_for_raw_videos(preprocessing: PreprocessConfig, source: FaceSource | None) -> PreprocessConfig:
    """Settings by which a raw video gets features like those of the training.

    A model that was trained on provided faces gets detected faces in the same geometry, see :data:`PROVIDED_GEOMETRY`:
    refusing every video without provided faces would leave such a model useless outside of the challenge.

    Args:
        preprocessing: settings of the training features.
        source: of the training features' faces; None where nobody recorded it.
    """
    # Which stream of a file to take is a matter of that file.
    changes: dict[str, Any] = {"streams": ()}
    if source == "provided":
        geometry = {key.removeprefix("faces."): value for key, value in PROVIDED_GEOMETRY.items()}
        changes["faces"] = preprocessing.faces.model_copy(update=geometry)
    return preprocessing.model_copy(update=changes)


def fixed_settings(model: ModelSettings) -> list[str]:
    """Keys of :func:`settings_for_raw_videos` of which a model cannot take another value."""
    return [*_settings_seen_by(model), *(["audio.waveform"] if model.audio_input == "waveform" else [])]


def _settings_seen_by(model: ModelSettings) -> list[str]:
    """Those that must match, of the modalities that a model uses and does not take from features made elsewhere."""
    made_here = [m for m in _SETTINGS_OF if model.uses(m) and m not in model.vector_modalities]
    return [key for m in made_here for key in _SETTINGS_OF[m]]


def change_raw_video_settings(
    preprocessing: PreprocessConfig, settings: Mapping[str, Any], *, fixed: Iterable[str]
) -> PreprocessConfig:
    """Change settings for raw videos where the features stay like those of the training.

    Args:
        preprocessing: see :func:`settings_for_raw_videos`.
        settings: new values by dotted key.
        fixed: keys that must keep their value.

    Raises:
        InputError: one of ``fixed`` would get another value, or see :func:`preprocessing.config.change_settings`.
    """
    changed = change_settings(preprocessing, settings)
    was, now = (flatten(config.model_dump(mode="json")) for config in (preprocessing, changed))
    for key in fixed:
        if now[key] != was[key]:
            raise InputError(
                f"{key}={now[key]}: the model was trained on features with {key}={was[key]}, and takes no others; "
                "leave it out"
            )
    return changed


def check_alike(described: Sequence[tuple[Path, Mapping[str, Any]]]) -> FaceSource:
    """Refuse to train on features that were made in different ways.

    Args:
        described: at least one feature folder with the content of its ``meta.json``.

    Returns:
        The source of all faces.

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
    (first_folder, first), *others = described
    source = face_source(first)
    wanted = matching_settings(first["settings"], source, keys=SETTINGS_THAT_MUST_MATCH_IN_TRAINING)
    for folder, meta in others:
        given = matching_settings(meta["settings"], source, keys=SETTINGS_THAT_MUST_MATCH_IN_TRAINING)
        for key, value in given.items():
            if value != wanted[key]:
                raise InputError(
                    f"{first_folder} was made with {key} {wanted[key]!r}, {folder} with {value!r}; "
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
        video_id: whose features.
        meta: content of their ``meta.json``.
        preprocessing: settings of the training features.
        source: of the training features' faces; None where nobody recorded it: any source is accepted then.
        model: of a modality that it does not use, or takes from features made elsewhere, nothing needs to match.

    Raises:
        InputError: naming the video, what differs, and both values.
    """
    given_source = None if source is None else face_source(meta)
    given = matching_settings(meta["settings"], given_source)
    wanted = matching_settings(preprocessing.model_dump(mode="json"), source)
    different = [key for key in _settings_seen_by(model) if given[key] != wanted[key]]
    if not different:
        return
    key = different[0]
    if given_source == source or key not in PROVIDED_GEOMETRY:
        raise InputError(
            f"{video_id}: its features were made with {key} {given[key]!r}, but the model was trained on "
            f"{wanted[key]!r}; preprocess it with --set {key}={wanted[key]}"
        )
    if source == "provided":
        settings = " ".join(f"--set {name}={value}" for name, value in PROVIDED_GEOMETRY.items())
        raise InputError(
            f"{video_id}: its faces were detected and cut with {key} {given[key]!r}, but the model was trained on "
            f"provided faces; preprocess it with --cropped-aligned, or with {settings}"
        )
    raise InputError(
        f"{video_id}: its faces were provided (--cropped-aligned), but the model was trained on detected faces with "
        f"{key} {wanted[key]!r}; preprocess it without --cropped-aligned"
    )


def other_source(videos: Sequence[str], source: FaceSource) -> str:
    """Remarks about videos whose faces are of another source than the training's, in the same geometry."""
    if source == "provided":
        return (
            f"{some(videos)}: the model was trained on provided faces (--cropped-aligned); here faces are detected and "
            "aligned to ArcFace's five landmarks, as Aff-Wild2's are, which gives like crops, not the same ones"
        )
    return f"{some(videos)}: provided faces (--cropped-aligned), but the model was trained on detected and aligned ones"


def some(names: Sequence[str]) -> str:
    """The first names, and how many there are beside them."""
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
