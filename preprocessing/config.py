"""Typed settings, read from YAML and ``--set key=value``; an unknown key names the nearest right one."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from preprocessing.errors import InputError

PACKAGED = "packaged"
"""Name of the models that the ``offline-models`` extra brings: Whisper base for faster-whisper; all-MiniLM-L6-v2."""


class Settings(BaseModel):
    """Base of every settings class: frozen, and closed to keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


S = TypeVar("S", bound=Settings)


class FaceSettings(Settings):
    """How the main subject's face is found and stored."""

    size: Annotated[int, Field(ge=16, le=512)] = 48
    """Side of the stored crop, in pixels."""
    margin: Annotated[float, Field(ge=0.0, le=1.0)] = 0.1
    """Added to each side of the square around the detected box, as a fraction of its side."""
    detection_side: Annotated[int, Field(ge=64)] = 480
    """Longer side, in pixels, of the reduced picture that the detector sees; smaller frames are not enlarged."""
    detect_every_s: Annotated[float, Field(ge=0.0)] = 1.0
    """Longest time between two searches of the whole picture while faces are followed."""
    follow_every_s: Annotated[float, Field(ge=0.0)] = 0.2
    """Longest time between two looks at a known face, whose box is interpolated in between; when both are 0, every
    frame is searched."""
    min_score: Annotated[float, Field(ge=0.0, le=1.0)] = 0.9
    """Least detector score of a face."""
    alignment: Literal["box", "similarity"] = "box"
    """``box``: an upright cut around the detected box; ``similarity``: turned and scaled by the five landmarks."""
    subjects: Literal["main", "all"] = "main"
    """``main``: the most important person; ``all``: features of their own for each person seen for long."""
    min_track_s: Annotated[float, Field(ge=0.0)] = 0.4
    """A face seen for less than this is taken for a false alarm (unless the whole video is shorter)."""


class AudioSettings(Settings):
    """What of the sound is stored."""

    waveform: bool = False
    """Store the 16 kHz waveform beside the log-mel: speech encoders, model.audio.kind hf, need it."""


class SpeechSettings(Settings):
    """How words and their times are recognised."""

    backend: Literal["openai-whisper", "faster-whisper", "none"] = "openai-whisper"
    """``faster-whisper`` where ``model`` is ``packaged`` and no backend is given."""
    model: str = "base"
    """A Whisper model: a path, ``packaged`` (the ``offline-models`` extra), or a name to download."""
    language: str | None = None
    """ISO 639-1 code such as ``en``; detected in each video when not given."""
    vad_threshold: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    """Least probability of speech of silero-vad."""

    @model_validator(mode="before")
    @classmethod
    def _choose_the_backend_of_the_packaged_model(cls, given: Any) -> Any:
        # So that the settings that are recorded say which library ran.
        if isinstance(given, dict) and given.get("model") == PACKAGED:
            return {"backend": "faster-whisper"} | given
        return given


class WordSettings(Settings):
    """How words become vectors."""

    model: str = "bert-base-uncased"
    """A BERT-like encoder: a path, ``packaged`` (the ``offline-models`` extra), or a Hugging Face name."""


class PreprocessConfig(Settings):
    """Everything that decides the contents of a feature folder."""

    streams: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Numbers, in the file, of the video and the audio stream to use; without, the default ones."""

    faces: FaceSettings = FaceSettings()
    audio: AudioSettings = AudioSettings()
    speech: SpeechSettings = SpeechSettings()
    words: WordSettings = WordSettings()


def load_config(cls: type[S], path: Path | None, overrides: Sequence[str] = ()) -> S:
    """Read ``path`` (YAML; None for the defaults), apply ``key=value`` overrides, check all of it.

    Args:
        cls: the settings class to build.
        path: a YAML file, or None.
        overrides: strings such as ``"faces.size=64"``; the value is read as YAML.

    Raises:
        InputError: no such file, not YAML, an unknown key (the nearest right one is named), a value of a wrong type
            or outside its range.
    """
    tree: dict[str, Any] = {}
    if path is not None:
        tree = _read_yaml(path)
    for override in overrides:
        _change(tree, *parse_override(override))
    return build_config(cls, tree, source=str(path) if path is not None else "--set")


def change_settings(config: S, settings: Mapping[str, Any]) -> S:
    """Settings of which some are changed.

    Args:
        config: left as it is.
        settings: new values by dotted key, such as ``{"faces.size": 64}``.

    Raises:
        InputError: see :func:`load_config`.
    """
    tree = config.model_dump()
    if settings.get("speech.model") == PACKAGED:
        # Its backend is chosen anew, unless one is given.
        tree.get("speech", {}).pop("backend", None)
    for key, value in settings.items():
        _change(tree, key, value)
    return build_config(type(config), tree, source="settings")


def build_config(cls: type[S], tree: dict[str, Any], *, source: str) -> S:
    """Check a nested dictionary against a settings class; ``source`` names it in the message.

    Raises:
        InputError: see :func:`load_config`.
    """
    try:
        return cls.model_validate(tree)
    except ValidationError as error:
        problems = error.errors()
        # An unknown key first: a misspelt key often causes the other messages.
        first = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
        raise InputError(f"{source}: {_describe(cls, first)}") from None


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: no such configuration file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as a configuration file: {error}") from None
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        where = " ".join(str(error).split())
        raise InputError(f"{path}: not valid YAML: {where}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise InputError(f"{path}: a configuration is a mapping of keys to values, not a {type(tree).__name__}")
    return tree


def parse_override(text: str) -> tuple[str, Any]:
    """Key and value of ``key=value``; the value is read as YAML.

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
    """All dotted keys of a settings class, those of nested settings included."""
    keys = []
    for name, field in cls.model_fields.items():
        keys.append(prefix + name)
        for nested in _settings_in(field.annotation):
            keys += known_keys(nested, f"{prefix}{name}.")
    return keys


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level of dotted keys."""
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
