"""Trained models on disk.

A model is a run folder (``config.yaml``, ``best.safetensors``), a folder in the layout of the Hugging Face Hub
(``config.json``, ``model.safetensors``, ``README.md``), a single ``.safetensors`` file with its configuration as
metadata, or a name on the Hub. None of them is ever unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import ModelCard, PyTorchModelHubMixin
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from preprocessing.config import build_config
from preprocessing.errors import InputError
from preprocessing.files import replace_when_whole, whole_or_nothing
from rcma import __version__
from rcma.config import TrainConfig
from rcma.model.hub import (
    BEST_FILE,
    CARD_FILE,
    CONFIG_FILE,
    HUB_CONFIG_FILE,
    HUB_NAME,
    HUB_WEIGHTS_FILE,
    SCORES_FILE,
    Description,
    describe,
    download,
    read_json,
    shareable,
)
from rcma.model.model_card import ValidationScores, model_card
from rcma.model.network import RCMA
from rcma.model.weight_files import check_entries, first_line

_RUN = (CONFIG_FILE, BEST_FILE)
_HUB = (HUB_CONFIG_FILE, HUB_WEIGHTS_FILE)
_METADATA_KEY = "rcma"
"""The only key: safetensors writes several keys in random order, and equal trainings should give equal files."""


class TrainedRCMA(RCMA, PyTorchModelHubMixin):
    """An RCMA with its training configuration, which can be shared.

    The Hub's mixin provides ``save_pretrained(folder)`` and ``push_to_hub("org/model")``; both accept
    ``model_card_kwargs``, which are passed to :meth:`generate_model_card`.
    """

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(config.model)
        self.config = config
        self.scores: ValidationScores | None = None
        self.versions: dict[str, str] = {}
        """Versions of the packages used in training, if known."""

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, *, revision: str | None = None, **options: Any
    ) -> TrainedRCMA:
        """Load a model from the Hugging Face Hub, or from a folder, on the CPU and in evaluation mode.

        Args:
            pretrained_model_name_or_path: ``org/model`` on the Hub, or a folder as :func:`load_model` takes it.
            revision: branch, tag or commit; None: the newest.
            options: of :func:`huggingface_hub.snapshot_download`, such as ``token`` or ``cache_dir``.

        Raises:
            InputError: see :func:`load_model`.
        """
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            folder = download(str(pretrained_model_name_or_path), revision=revision, **options)
        return _load_folder(folder)

    def generate_model_card(
        self, *, name: str | None = None, license: str | None = None, dataset: str | None = None
    ) -> ModelCard:
        """Describe this model, see :func:`rcma.model.model_card.model_card`."""
        return model_card(
            shareable(self.config),
            scores=self.scores,
            versions=self.versions,
            n_parameters=sum(parameter.numel() for parameter in self.parameters()),
            name=name,
            license=license,
            dataset=dataset,
        )

    def _save_pretrained(self, save_directory: Path) -> None:
        """Write weights and configuration; the mixin writes the card."""
        description = Description(versions=self.versions, scores=self.scores, config=shareable(self.config))
        _write_weights(save_directory / HUB_WEIGHTS_FILE, self.state_dict(), description)
        with replace_when_whole(save_directory / HUB_CONFIG_FILE) as partial:
            partial.write_text(description.model_dump_json(indent=1) + "\n", encoding="utf-8")


def save_config(run: Path, config: TrainConfig) -> None:
    """Write the resolved configuration into a run folder."""
    with replace_when_whole(run / CONFIG_FILE) as partial:
        text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        partial.write_text(text, encoding="utf-8")


def load_run_config(run: Path) -> TrainConfig:
    """Read the resolved configuration of a run folder.

    Raises:
        InputError: no such file, or it does not fit this version's settings.
    """
    path = run / CONFIG_FILE
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; {run} should be a folder that rcma-train wrote") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: cannot be read as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise InputError(f"{path}: not a configuration; {run} should be a folder that rcma-train wrote")
    return build_config(TrainConfig, tree, source=str(path))


def save_weights(run: Path, weights: Mapping[str, Tensor]) -> None:
    """Write ``best.safetensors`` beside ``config.yaml``, with the shareable configuration as metadata.

    Raises:
        InputError: the configuration cannot be read; see :func:`load_run_config`.
    """
    versions = {"rcma": __version__, "torch": torch.__version__}
    description = Description(versions=versions, scores=None, config=shareable(load_run_config(run)))
    _write_weights(run / BEST_FILE, weights, description)


def save_model_card(run: Path) -> None:
    """Write the README.md of a run folder.

    Raises:
        InputError: see :func:`load_model`.
    """
    card = load_model(run).generate_model_card()
    with replace_when_whole(run / CARD_FILE) as partial:
        partial.write_text(str(card), encoding="utf-8")


def export_model(
    model: TrainedRCMA,
    folder: Path,
    *,
    name: str | None = None,
    license: str | None = None,
    dataset: str | None = None,
) -> None:
    """Write a model in the layout of the Hugging Face Hub, whole or not at all, and verify it by loading it.

    Args:
        model: from :func:`load_model`.
        folder: must be new or empty.
        name, license, dataset: for the model card, see :func:`rcma.model.model_card.model_card`.

    Raises:
        InputError: the folder is in use, or the loaded weights differ from the written ones.
        OSError: the folder cannot be written.
    """
    with whole_or_nothing(folder.absolute(), check=_refuse_used_folder) as partial:
        model.save_pretrained(partial, model_card_kwargs={"name": name, "license": license, "dataset": dataset})
        written, known = load_model(partial).state_dict(), model.state_dict()
        if not all(torch.equal(written[entry], known[entry].cpu()) for entry in known):
            raise InputError(f"{folder}: other weights are read than were written; nothing was kept; check the disk")


def _refuse_used_folder(folder: Path) -> None:
    if folder.is_symlink() or (folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))):
        raise InputError(f"{folder}: already exists and is not empty; give a new or an empty folder")


def is_run(path: Path) -> bool:
    """Whether :func:`load_model` can read what is at a path."""
    return path.suffix == ".safetensors" if path.is_file() else _holds(path, _RUN) or _holds(path, _HUB)


def load_model(name: str | Path) -> TrainedRCMA:
    """Load a trained model, on the CPU and in evaluation mode.

    Args:
        name: a path: a run folder of ``rcma-train``, a folder of ``rcma-export``, or a ``.safetensors`` file from one
            of them. If nothing is there: ``org/model`` or ``org/model@revision`` on the Hugging Face Hub; without a
            network, or with HF_HUB_OFFLINE=1, a model downloaded before.

    Raises:
        InputError: the model is not available, files are missing or damaged, or the weights do not fit the
            configuration.
    """
    path = Path(name)
    if path.is_dir():
        return _load_folder(path)
    if path.is_file():
        return _load_file(path)
    repository, _, revision = str(name).partition("@")
    if not HUB_NAME.fullmatch(repository):
        raise InputError(
            f"{name}: no such run folder or .safetensors file, and no name on the Hugging Face Hub (org/model); "
            "rcma-train --out makes a run folder"
        )
    return TrainedRCMA.from_pretrained(repository, revision=revision or None)


def _holds(folder: Path, files: tuple[str, ...]) -> bool:
    return all((folder / file).is_file() for file in files)


def _load_folder(folder: Path) -> TrainedRCMA:
    if _holds(folder, _RUN):
        config, weights = load_run_config(folder), folder / BEST_FILE
        # The configuration in the metadata lacks the paths; the versions are nowhere else.
        known = _read_metadata(weights)
        versions = known.versions if known is not None else {}
        description = Description(versions=versions, scores=_load_scores(folder), config=config)
        return _build(description, weights, source=folder / CONFIG_FILE)
    if _holds(folder, _HUB):
        path = folder / HUB_CONFIG_FILE
        return _build(describe(read_json(path), path), folder / HUB_WEIGHTS_FILE, source=path)
    missing = [file for file in _RUN if not (folder / file).is_file()]
    raise InputError(
        f"{folder}: no run folder of rcma-train: {', '.join(missing)} missing (of rcma-export: {', '.join(_HUB)})"
    )


def _load_file(path: Path) -> TrainedRCMA:
    if path.suffix != ".safetensors":
        raise InputError(f"{path}: a model is a run folder, a .safetensors file, or a name on the Hugging Face Hub")
    description = _read_metadata(path)
    if description is None:
        raise InputError(
            f"{path}: its metadata hold no configuration of rcma; give the run folder, with its {CONFIG_FILE}"
        )
    return _build(description, path, source=path)


def _build(description: Description, path: Path, *, source: Path) -> TrainedRCMA:
    """The model of a description, which comes from ``source``, with the weights at ``path``."""
    try:
        model = TrainedRCMA(description.config)
    except (TypeError, ValueError) as error:  # transformers rejects an encoder's configuration
        raise InputError(f"{source}: no network can be built from it: {first_line(error)}") from None
    weights = load_weights(path)
    wanted = {name: value.shape for name, value in model.state_dict().items()}
    check_entries(weights, wanted, source=f"{path} does not fit {source.name}")
    model.load_state_dict(weights)
    model.scores, model.versions = description.scores, dict(description.versions)
    model.eval()
    return model


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read a ``.safetensors`` file to the CPU.

    Raises:
        InputError: the file is missing or damaged.
    """
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from None


def _write_weights(path: Path, weights: Mapping[str, Tensor], description: Description) -> None:
    # Copies: safetensors refuses tensors that share memory.
    copies = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in weights.items()}
    with replace_when_whole(path) as partial:
        # Not save_file: only the owner may read its files.
        partial.write_bytes(save(copies, metadata={_METADATA_KEY: description.model_dump_json()}))


def _read_metadata(path: Path) -> Description | None:
    """The description stored with the weights, if any."""
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_METADATA_KEY)
        return None if text is None else describe(json.loads(text), path)
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise _damaged(path, error) from None


def _load_scores(run: Path) -> ValidationScores | None:
    """Scores of a run folder; None before its training has ended."""
    path = run / SCORES_FILE
    return build_config(ValidationScores, read_json(path), source=str(path)) if path.is_file() else None


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(f"{path}: damaged: {first_line(error)}; train again or copy it again")
