"""Typed settings, read from YAML and ``--set key=value``; an unknown key names the nearest right one."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from preprocessing.errors import InputError
from preprocessing.text import read_text

PACKAGED = "packaged"
"""Name of the models that the ``offline-models`` extra brings: Whisper base for faster-whisper; all-MiniLM-L6-v2."""


class Settings(BaseModel):
    """Base of every settings class: immutable, and refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


S = TypeVar("S", bound=Settings)


class FaceSettings(Settings):
    """How faces are found and stored."""

    size: Annotated[int, Field(ge=16, le=512)] = 48
    """Side of the stored crop, in pixels."""
    margin: Annotated[float, Field(ge=0.0, le=1.0)] = 0.1
    """Added to each side of the square around the detected box, as a fraction of its side."""
    detection_side: Annotated[int, Field(ge=64)] = 480
    """Longer side, in pixels, of the reduced frame for the detector; smaller frames are not enlarged."""
    detect_every_s: Annotated[float, Field(ge=0.0)] = 1.0
    """Longest time between two detections in the whole frame while faces are tracked."""
    follow_every_s: Annotated[float, Field(ge=0.0)] = 0.2
    """Longest time between two detections of a tracked face, whose box is interpolated in between; if both are 0, faces
    are detected in every frame."""
    min_score: Annotated[float, Field(ge=0.0, le=1.0)] = 0.9
    """Lowest detector score of a face."""
    alignment: Literal["box", "similarity"] = "box"
    """``box``: an upright cut around the detected box; ``similarity``: turned and scaled by the five landmarks."""
    subjects: Literal["main", "all"] = "main"
    """``main``: the most important person; ``all``: separate features for each person who is seen for long."""
    min_track_s: Annotated[float, Field(ge=0.0)] = 0.4
    """Faces seen for less time are ignored as false detections, unless the whole video is shorter."""


class AudioSettings(Settings):
    """How sound is stored."""

    waveform: bool = False
    """Store the 16 kHz waveform beside the log-mel; speech encoders (``model.audio.kind=hf``) need it."""


class SpeechSettings(Settings):
    """How speech is recognised."""

    backend: Literal["openai-whisper", "faster-whisper", "none"] = "openai-whisper"
    """``faster-whisper`` where ``model`` is ``packaged`` and no backend is given."""
    model: str = "base"
    """A Whisper model: a path, ``packaged`` (the ``offline-models`` extra), or a name to download."""
    language: str | None = None
    """ISO 639-1 code such as ``en``; detected in each video when not given."""
    vad_threshold: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    """Lowest probability of speech from silero-vad."""

    @model_validator(mode="before")
    @classmethod
    def _choose_the_backend_of_the_packaged_model(cls, given: Any) -> Any:
        # Here, so that the recorded settings name the library that ran.
        if isinstance(given, dict) and given.get("model") == PACKAGED:
            return {"backend": "faster-whisper"} | given
        return given


class WordSettings(Settings):
    """How words are encoded as vectors."""

    model: str = "bert-base-uncased"
    """A BERT-like encoder: a path, ``packaged`` (the ``offline-models`` extra), or a Hugging Face name."""


class PreprocessConfig(Settings):
    """All settings that change the contents of a feature folder."""

    streams: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Numbers, in the file, of the video and the audio stream to use; empty: the default ones."""

    faces: FaceSettings = FaceSettings()
    audio: AudioSettings = AudioSettings()
    speech: SpeechSettings = SpeechSettings()
    words: WordSettings = WordSettings()


def load_config(cls: type[S], path: Path | None, overrides: Sequence[str] = ()) -> S:
    """Read settings from a YAML file, apply ``key=value`` overrides and check all of them.

    Args:
        cls: the settings class to build.
        path: None for the defaults.
        overrides: such as ``"faces.size=64"``; the value is read as YAML.

    Raises:
        InputError: the file cannot be read or is no YAML; a key is unknown (the nearest known one is named); a value
            has a wrong type or is out of range.
    """
    tree = {} if path is None else _read_yaml(path)
    for override in overrides:
        _change(tree, *parse_override(override))
    return build_config(cls, tree, source=str(path) if path is not None else "--set")


def change_settings(config: S, settings: Mapping[str, Any]) -> S:
    """Return a copy of ``config`` with some settings changed.

    Args:
        config: is not changed.
        settings: new values by dotted key, such as ``{"faces.size": 64}``.

    Raises:
        InputError: see :func:`load_config`.
    """
    tree = config.model_dump()
    if settings.get("speech.model") == PACKAGED:
        # Its own backend is the default then.
        tree.get("speech", {}).pop("backend", None)
    for key, value in settings.items():
        _change(tree, key, value)
    return build_config(type(config), tree, source="settings")


def build_config(cls: type[S], tree: dict[str, Any], *, source: str) -> S:
    """Build settings from a nested dictionary; ``source`` names it in messages.

    Raises:
        InputError: see :func:`load_config`.
    """
    try:
        return cls.model_validate(tree)
    except ValidationError as error:
        problems = error.errors()
        # An unknown key first: a misspelt key often causes the other problems.
        first = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
        raise InputError(f"{source}: {_describe(cls, first)}") from None


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise InputError(f"{path}: no such configuration file")
    try:
        tree = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict | None):
        raise InputError(f"{path}: a configuration is a mapping of keys to values, not a {type(tree).__name__}")
    return tree or {}


def parse_override(text: str) -> tuple[str, Any]:
    """Split ``key=value``; the value is read as YAML.

    Raises:
        InputError: there is no key, or no ``=``.
    """
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise InputError(f"--set {text}: write key=value, for example faces.size=48")
    try:
        return key.strip(), yaml.safe_load(value)
    except yaml.YAMLError:
        return key.strip(), value


def _change(tree: dict[str, Any], key: str, value: Any) -> None:
    """Put a value at a dotted key of nested dictionaries."""
    *parents, leaf = key.split(".")
    node = tree
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise InputError(f"{key}={value}: {parent} has no keys below it")
        node = child
    node[leaf] = value


def _describe(cls: type[Settings], problem: Any) -> str:
    location = [str(part) for part in problem["loc"]]
    key = ".".join(location)
    if problem["type"] != "extra_forbidden":
        given = problem.get("input")
        shown = f" (given: {given!r})" if isinstance(given, str | int | float | bool | None) else ""
        return f"{key}: {problem['msg']}{shown}"
    known = sorted(known_keys(cls))
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
    return f"unknown key {key!r}; the nearest known key is {near[0]!r}"


def known_keys(cls: type[Settings], prefix: str = "") -> list[str]:
    """All dotted keys of a settings class, including those of nested settings."""
    keys = []
    for name, field in cls.model_fields.items():
        keys.append(prefix + name)
        for nested in _settings_in(field.annotation):
            keys += known_keys(nested, f"{prefix}{name}.")
    return keys


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn nested settings into one level of dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def _settings_in(annotation: Any) -> list[type[Settings]]:
    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, Settings) else []
    return [cls for part in getattr(annotation, "__args__", ()) for cls in _settings_in(part)]
