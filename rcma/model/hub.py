"""Models on the Hugging Face Hub: downloads, and configurations without anything private."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import HfApi, errors, snapshot_download

from preprocessing.config import Settings, build_config
from preprocessing.errors import InputError
from rcma import __version__
from rcma.config import TrainConfig
from rcma.model.model_card import ValidationScores
from rcma.model.weight_files import first_line

CONFIG_FILE = "config.yaml"
BEST_FILE = "best.safetensors"
SCORES_FILE = "scores.json"
CARD_FILE = "README.md"
HUB_CONFIG_FILE = "config.json"
HUB_WEIGHTS_FILE = "model.safetensors"
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")

_TIMEOUT_S = 10.0


class Description(Settings):
    """Everything about shared weights: ``config.json`` of the Hub's layout, and the metadata of the weights."""

    library_name: Literal["rcma"] = "rcma"
    versions: dict[str, str]
    """Versions of the packages used in training; empty if unknown."""
    scores: ValidationScores | None
    config: TrainConfig
    """Without private paths, see :func:`shareable`."""


def describe(tree: Any, path: Path) -> Description:
    """Check a description that comes from ``path``.

    Raises:
        InputError: it does not describe a model of this version of rcma.
    """
    if not isinstance(tree, dict) or tree.get("library_name") != "rcma":
        raise InputError(f"{path}: not the configuration of a model of rcma")
    try:
        return build_config(Description, tree, source=str(path))
    except InputError as error:
        raise InputError(f"{error} (versions: {tree.get('versions')}; this is rcma {__version__})") from None


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        InputError: the file cannot be read, or holds something else.
    """
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON: {first_line(error)}") from None
    if not isinstance(tree, dict):
        raise InputError(f"{path}: not a JSON object")
    return tree


def download(name: str, *, revision: str | None, **options: Any) -> Path:
    """Download the files of a model; if the Hub does not answer, use those of an earlier download.

    Args:
        name: ``org/model``.
        revision: branch, tag or commit; None: the newest.
        options: of :func:`huggingface_hub.snapshot_download`.

    Returns:
        The folder with the files.

    Raises:
        InputError: the model is not available, or not one of rcma.
    """
    no_answer: Exception | None = None
    if not options.get("local_files_only"):
        try:
            # snapshot_download sends the same request, but without a timeout.
            HfApi(token=options.get("token")).model_info(name, revision=revision, timeout=_TIMEOUT_S)
        except Exception as error:  # the Hub's client raises errors of three libraries
            if options.get("force_download"):
                raise _not_available(name, revision, error) from error
            no_answer, options = error, options | {"local_files_only": True}
    settings = [HUB_CONFIG_FILE, CONFIG_FILE, SCORES_FILE]
    try:
        # Settings first, so that large weights of another library are not downloaded in vain.
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=settings, **options))
        if (folder / HUB_CONFIG_FILE).is_file():
            describe(read_json(folder / HUB_CONFIG_FILE), folder / HUB_CONFIG_FILE)
        # The folder has the commit's name, so the weights are of the same commit.
        files = [*settings, HUB_WEIGHTS_FILE, BEST_FILE]
        return Path(snapshot_download(name, revision=folder.name, allow_patterns=files, **options))
    except InputError:
        raise
    except Exception as error:
        raise _not_available(name, revision, no_answer or error) from error


def _not_available(name: str, revision: str | None, error: Exception) -> InputError:
    # The first lines of the Hub's errors are "401 Client Error" and the like.
    reasons = {
        errors.GatedRepoError: f"ask for access on https://huggingface.co/{name}, then `hf auth login`",
        errors.RepositoryNotFoundError: "there is none of that name, or it is private: `hf auth login`",
        errors.RevisionNotFoundError: f"it has no revision {revision!r}",
        errors.OfflineModeIsEnabled: "it was not downloaded before, and HF_HUB_OFFLINE is set",
    }
    reason = next((text for kind, text in reasons.items() if isinstance(error, kind)), first_line(error))
    return InputError(f"{name}: no such path here, and no such model on the Hugging Face Hub ({reason})")


def shareable(config: TrainConfig) -> TrainConfig:
    """Remove what is private in a configuration, or means nothing on another machine.

    ``data.features`` and ``data.annotations`` become ``features`` and ``annotations``, ``data.embeddings`` None,
    ``train.workers`` 0. Of every other path only the last part remains; names on a hub are kept. So the ``words.model``
    ``/data/encoders/bert`` becomes ``bert``: whoever preprocesses videos for the model puts the encoder there.
    """
    tree = _last_parts(config.model_dump())
    tree["data"] |= {"features": "features", "annotations": "annotations", "embeddings": None}
    tree["train"]["workers"] = 0
    for m in ("face", "audio"):
        # transformers writes the encoder's folder here.
        (tree["model"][m]["hf_config"] or {}).pop("_name_or_path", None)
    return TrainConfig.model_validate(tree)


def _last_parts(value: Any) -> Any:
    """Reduce each path in nested settings to its last part."""
    if isinstance(value, dict):
        return {key: _last_parts(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_last_parts(inner) for inner in value]
    is_path = isinstance(value, Path) or (
        isinstance(value, str)
        and ("/" in value or "\\" in value)
        and (not HUB_NAME.fullmatch(value) or Path(value).exists())
    )
    return re.split(r"[/\\]", str(value).rstrip("/\\"))[-1] if is_path else value
