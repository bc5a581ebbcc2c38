"""Trained models on disk: run folders with all that an exact resume needs, and what can be shared of them.

A model comes from a run folder (``config.yaml``, ``best.safetensors``), from a folder in the layout of the Hugging Face
Hub (``config.json``, ``model.safetensors``, ``README.md``), from a ``.safetensors`` file alone, which holds its
configuration as metadata, or from the Hub by name. None of them is ever unpickled.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from huggingface_hub import HfApi, ModelCard, PyTorchModelHubMixin, errors, snapshot_download
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from preprocessing.config import Settings, build_config
from preprocessing.errors import InputError
from preprocessing.files import replace_when_whole, whole_or_nothing
from rcma import __version__
from rcma.config import TrainConfig
from rcma.model.backbones import check_entries
from rcma.model.model_card import ValidationScores, model_card
from rcma.model.network import RCMA

CONFIG_FILE = "config.yaml"
BEST_FILE = "best.safetensors"
STATE_FILE = "last/state.pt"
SCORES_FILE = "scores.json"
CARD_FILE = "README.md"
HUB_CONFIG_FILE = "config.json"
HUB_WEIGHTS_FILE = "model.safetensors"

METADATA_KEY = "rcma"
"""The only key of the metadata: safetensors writes several in an order that changes from file to file, and equal
trainings should give equal files."""

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_HUB_TIMEOUT_S = 10.0
"""Longest silence of the Hub before it is given up."""


class Description(Settings):
    """What goes with weights that are shared: ``config.json`` of the Hub's layout, and the metadata of the weights."""

    library_name: Literal["rcma"] = "rcma"
    versions: dict[str, str]
    """Of the packages the model was trained with; empty where nobody recorded them."""
    scores: ValidationScores | None
    config: TrainConfig
    """Without paths, see :func:`shareable`."""


class TrainedRCMA(RCMA, PyTorchModelHubMixin):
    """An RCMA that knows how it was trained, and can be shared.

    Of the Hub's mixin it has ``save_pretrained(folder)`` and ``push_to_hub("org/model")``; both take
    ``model_card_kwargs``, which are those of :meth:`generate_model_card`.
    """

    def __init__(self, config: TrainConfig) -> None:
        """Build the network of ``config.model``, with random weights."""
        super().__init__(config.model)
        self.config = config
        self.scores: ValidationScores | None = None
        """On the validation videos, where they are known."""
        self.versions: dict[str, str] = {}
        """Of the packages it was trained with, where they are known."""

    @classmethod
    def from_pretrained(  # type: ignore[override]  # what a model is built from lies beside its weights, not in arguments
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
    ) -> TrainedRCMA:
        """Load a model from the Hugging Face Hub, or from a folder, on the CPU and in evaluation mode.

        Args:
            pretrained_model_name_or_path: ``org/model`` on the Hub, or a folder as :func:`load_model` takes it.
            revision: branch, tag or commit; None for the newest.
            token: for private repositories; None takes that of ``hf auth login``.
            cache_dir: where downloads are kept; None for the Hub's usual place.
            force_download: download what is there already once more.
            local_files_only: use what was downloaded before and ask no network.

        Raises:
            InputError: see :func:`load_model`.
        """
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            folder = _fetch(
                str(pretrained_model_name_or_path),
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
            )
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


@dataclass(frozen=True)
class TrainingState:
    """All that an exact resume after any saved step needs; random numbers are redrawn in each step."""

    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    rows: list[dict[str, Any]]
    """The rows of log.csv so far, one for each finished epoch."""
    average: dict[str, Tensor] | None = None
    """Moving average of the weights, if there is one."""
    n_batches: int = 0
    """Batches that are done of the epoch after the last finished one."""
    sums: tuple[float, float] = (0.0, 0.0)
    """Over these batches: losses, and the number of values of 1 - CCC in them."""


def save_config(run: Path, config: TrainConfig) -> None:
    """Write the resolved configuration into a run folder."""
    with replace_when_whole(run / CONFIG_FILE) as partial:
        text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        partial.write_text(text, encoding="utf-8")


def is_run(path: Path) -> bool:
    """Whether there is something at a path that :func:`load_model` can read."""
    return path.suffix == ".safetensors" if path.is_file() else _is_run_folder(path) or _is_hub_folder(path)


def shareable(config: TrainConfig) -> TrainConfig:
    """The configuration without what means something on the machine of the training alone, and is private.

    ``data.features`` and ``data.annotations`` become ``features`` and ``annotations``, ``data.embeddings`` None,
    ``train.workers`` 0. Every other path keeps its last part alone: of a weight file that is its name. Names on a hub
    stay. So a ``words.model`` from ``/data/encoders/bert`` becomes ``bert``: who preprocesses videos for the model puts
    the encoder there.
    """
    tree = _last_parts(config.model_dump())
    tree["data"] |= {"features": "features", "annotations": "annotations", "embeddings": None}
    tree["train"]["workers"] = 0
    for m in ("face", "audio"):
        # Where transformers found an encoder.
        (tree["model"][m]["hf_config"] or {}).pop("_name_or_path", None)
    return TrainConfig.model_validate(tree)


def _last_parts(value: Any) -> Any:
    """Nested settings, each path in them cut down to its last part."""
    if isinstance(value, dict):
        return {key: _last_parts(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_last_parts(inner) for inner in value]
    is_path = isinstance(value, Path) or (
        isinstance(value, str)
        and ("/" in value or "\\" in value)
        and (not _HUB_NAME.fullmatch(value) or Path(value).exists())
    )
    return re.split(r"[/\\]", str(value).rstrip("/\\"))[-1] if is_path else value


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


def load_scores(run: Path) -> ValidationScores | None:
    """Read the validation scores of a run folder; None when its training has not ended.

    Raises:
        InputError: scores.json is not what rcma-train writes.
    """
    path = run / SCORES_FILE
    if not path.is_file():
        return None
    tree = _read_json(path)
    return build_config(
        ValidationScores,
        {key: value for key, value in tree.items() if key in ValidationScores.model_fields or key.endswith("_ccc")},
        source=f"{path} (rcma-train writes it; a run without it counts as not evaluated)",
    )


def save_weights(run: Path, weights: Mapping[str, Tensor]) -> None:
    """Write ``best.safetensors`` beside ``config.yaml``, which goes into its metadata without its paths.

    Raises:
        InputError: there is no configuration; see :func:`load_run_config`.
    """
    versions = {"rcma": __version__, "torch": torch.__version__}
    _write_weights(
        run / BEST_FILE, weights, Description(versions=versions, scores=None, config=shareable(load_run_config(run)))
    )


def save_model_card(run: Path) -> None:
    """Write the README.md of a run folder, from its configuration, its scores and its weights.

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
    """Write a model in the layout of the Hugging Face Hub, whole or not at all, and load it again to be sure.

    Args:
        model: from :func:`load_model`.
        folder: must be empty or not there.
        name, license, dataset: for the model card, see :func:`rcma.model.model_card.model_card`.

    Raises:
        InputError: the folder is in use, or what was written is not what is read again.
        OSError: it cannot be written.
    """
    with whole_or_nothing(folder.absolute(), check=refuse_used_folder) as partial:
        model.save_pretrained(partial, model_card_kwargs={"name": name, "license": license, "dataset": dataset})
        written, known = load_model(partial).state_dict(), model.state_dict()
        if not all(torch.equal(written[entry], known[entry].cpu()) for entry in known):
            raise InputError(f"{folder}: other weights are read than were written; nothing was kept; check the disk")


def refuse_used_folder(folder: Path) -> None:
    """Raise InputError unless nothing, or an empty folder, is at ``folder``."""
    if os.path.lexists(folder) and (folder.is_symlink() or not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: is there already; give a new folder, or an empty one")


def load_model(name: str | Path) -> TrainedRCMA:
    """Load a trained model, on the CPU and in evaluation mode.

    Args:
        name: what is there at this path: a run folder of ``rcma-train``, a folder in the Hub's layout as
            ``rcma-export`` writes it, or a ``.safetensors`` file out of one of them. Where nothing is: ``org/model`` on
            the Hugging Face Hub, ``org/model@revision`` for a branch, tag or commit; what was downloaded before is used
            without a network (HF_HUB_OFFLINE=1 asks none).

    Raises:
        InputError: there is no such model, it is not available, files are missing or damaged, or the weights do not fit
            the configuration.
    """
    path = Path(name)
    if path.is_dir():
        return _load_folder(path)
    if path.is_file():
        return _load_file(path)
    repository, _, revision = str(name).partition("@")
    if not _HUB_NAME.fullmatch(repository):
        raise InputError(
            f"{name}: no such run folder or .safetensors file, and no name on the Hugging Face Hub (org/model); "
            "rcma-train --out makes a run folder"
        )
    return TrainedRCMA.from_pretrained(repository, revision=revision or None)


def _is_run_folder(folder: Path) -> bool:
    return (folder / CONFIG_FILE).is_file() and (folder / BEST_FILE).is_file()


def _is_hub_folder(folder: Path) -> bool:
    return (folder / HUB_CONFIG_FILE).is_file() and (folder / HUB_WEIGHTS_FILE).is_file()


def _load_folder(folder: Path) -> TrainedRCMA:
    if _is_hub_folder(folder) and not _is_run_folder(folder):
        path = folder / HUB_CONFIG_FILE
        return _build(_describe(_read_json(path), path), folder / HUB_WEIGHTS_FILE, config_path=path)
    missing = [file for file in (CONFIG_FILE, BEST_FILE) if not (folder / file).is_file()]
    if missing:
        raise InputError(
            f"{folder}: no run folder of rcma-train: {', '.join(missing)} missing "
            f"(of rcma-export: {HUB_CONFIG_FILE}, {HUB_WEIGHTS_FILE})"
        )
    # The run's own configuration, paths and all; only the versions are known by the weights alone.
    config, path = load_run_config(folder), folder / BEST_FILE
    known = _read_metadata(path)
    description = Description(versions=known.versions if known else {}, scores=load_scores(folder), config=config)
    return _build(description, path, config_path=folder / CONFIG_FILE)


def _load_file(path: Path) -> TrainedRCMA:
    if path.suffix != ".safetensors":
        raise InputError(f"{path}: a model is a run folder, a .safetensors file, or a name on the Hugging Face Hub")
    description = _read_metadata(path)
    if description is None:
        raise InputError(
            f"{path}: its metadata hold no configuration of rcma; give the run folder, with its {CONFIG_FILE}"
        )
    return _build(description, path, config_path=path)


def _build(description: Description, path: Path, *, config_path: Path) -> TrainedRCMA:
    """The network of a description with the weights at ``path``."""
    try:
        model = TrainedRCMA(description.config)
    except (TypeError, ValueError) as error:  # an encoder's own configuration, which is not ours to check
        raise InputError(f"{config_path}: no network can be built of it: {_first_line(error)}") from None
    weights = load_weights(path)
    wanted = {name: value.shape for name, value in model.state_dict().items()}
    check_entries(weights, wanted, source=f"{path} does not fit {config_path.name}")
    model.load_state_dict(weights)
    model.scores, model.versions = description.scores, dict(description.versions)
    model.eval()
    return model


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read a ``.safetensors`` file of this version, on the CPU.

    Raises:
        InputError: there is none, it is damaged, or an earlier version wrote it.
    """
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from None
    _refuse_earlier_version(weights, path)
    return weights


def _refuse_earlier_version(weights: Mapping[str, Tensor], path: Path) -> None:
    # Words were standardised dimension by dimension, and were zeros after that where none is spoken.
    if "text_mean" in weights and weights["text_mean"].ndim == 1:
        raise InputError(
            f"{path}: written by an earlier version, which standardised word vectors in another way; train again"
        )


def _write_weights(path: Path, weights: Mapping[str, Tensor], description: Description) -> None:
    # Copies: safetensors refuses tensors that share memory.
    copies = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in weights.items()}
    with replace_when_whole(path) as partial:
        # Not save_file: its files can be read by their owner only.
        partial.write_bytes(save(copies, metadata={METADATA_KEY: description.model_dump_json()}))


def _read_metadata(path: Path) -> Description | None:
    """What goes with the weights; None where it was not stored with them."""
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(METADATA_KEY)
        return None if text is None else _describe(json.loads(text), path)
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise _damaged(path, error) from None


def _describe(tree: Any, path: Path) -> Description:
    """Check what stands at ``path``."""
    if not isinstance(tree, dict) or tree.get("library_name") != "rcma":
        raise InputError(f"{path}: not the configuration of a model of rcma")
    versions = tree.get("versions")
    version = versions.get("rcma", __version__) if isinstance(versions, dict) else __version__
    source = str(path) if version == __version__ else f"{path} (of rcma {version}, this is {__version__})"
    return build_config(Description, tree, source=source)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON: {_first_line(error)}") from None
    if not isinstance(tree, dict):
        raise InputError(f"{path}: holds no settings")
    return tree


def _fetch(
    name: str,
    *,
    revision: str | None,
    token: str | bool | None,
    cache_dir: str | Path | None,
    force_download: bool,
    local_files_only: bool,
) -> Path:
    """Folder with the files of a model on the Hub, of what was downloaded before where the Hub does not answer."""

    def download(files: list[str], commit: str | None) -> Path:
        folder = snapshot_download(
            name,
            revision=commit,
            allow_patterns=files,
            token=token,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
        )
        return Path(folder)

    no_answer: Exception | None = None
    # The hub's client raises errors of three libraries.
    try:
        if not local_files_only:
            # snapshot_download asks the same first, but waits for an answer without end.
            HfApi(token=token).model_info(name, revision=revision, timeout=_HUB_TIMEOUT_S)
    except Exception as error:
        if force_download:
            raise _not_fetched(name, revision, error) from error
        no_answer, local_files_only = error, True
    try:
        # Settings come first, so that no other library's weights are downloaded in vain.
        settings = [HUB_CONFIG_FILE, CONFIG_FILE, SCORES_FILE]
        folder = download(settings, revision)
        if (folder / HUB_CONFIG_FILE).is_file():
            _describe(_read_json(folder / HUB_CONFIG_FILE), folder / HUB_CONFIG_FILE)
        # The folder is named after the commit: weights of the same one.
        return download([*settings, HUB_WEIGHTS_FILE, BEST_FILE], folder.name)
    except InputError:
        raise
    except Exception as error:
        raise _not_fetched(name, revision, no_answer or error) from error


def _not_fetched(name: str, revision: str | None, error: Exception) -> InputError:
    # The first lines of these are "401 Client Error" and the like.
    if isinstance(error, errors.GatedRepoError):
        reason = f"ask for access on https://huggingface.co/{name}, then `hf auth login`"
    elif isinstance(error, errors.RepositoryNotFoundError):
        reason = "there is none of that name, or it is private: `hf auth login`"
    elif isinstance(error, errors.RevisionNotFoundError):
        reason = f"it has no revision {revision!r}"
    elif isinstance(error, errors.OfflineModeIsEnabled):
        reason = "it was not downloaded before, and HF_HUB_OFFLINE is set"
    else:
        reason = _first_line(error)
    return InputError(f"{name}: no such path here, and no such model on the Hugging Face Hub ({reason})")


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(f"{path}: damaged: {_first_line(error)}; train again or copy it again")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".;: ") if lines else type(error).__name__


def save_state(run: Path, state: TrainingState) -> None:
    """Write ``last/``, whole or not at all."""
    with replace_when_whole(run / STATE_FILE) as partial:
        # Not asdict, which would copy every tensor.
        content = {field.name: getattr(state, field.name) for field in fields(state)}
        buffer = io.BytesIO()
        torch.save(content, buffer)
        # Not by torch.save, which says nothing of a full disk but "iostream error".
        partial.write_bytes(buffer.getbuffer())


def load_state(run: Path) -> TrainingState | None:
    """Read ``last/``, tensors on the CPU; None when nothing was saved.

    Raises:
        InputError: the file is damaged, or an earlier version wrote it.
    """
    path = run / STATE_FILE
    if not path.exists():
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        _refuse_earlier_version(content["model"], path)
        return TrainingState(**content)
    except InputError:
        raise
    except Exception as error:  # torch.load raises whatever the damaged byte leads to
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: damaged: {reason}; train again in another folder") from None
