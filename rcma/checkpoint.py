"""The run folder: ``config.yaml``, ``best.safetensors``, and ``last/`` with all that an exact resume needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from preprocessing.config import build_config
from preprocessing.errors import InputError
from rcma.backbones import check_entries
from rcma.config import TrainConfig
from rcma.files import replace_when_whole
from rcma.model import RCMA

CONFIG_FILE = "config.yaml"
BEST_FILE = "best.safetensors"
STATE_FILE = "last/state.pt"


class TrainedRCMA(RCMA):
    """An RCMA that knows how it was trained."""

    def __init__(self, config: TrainConfig) -> None:
        """Build the network of ``config.model``, with random weights."""
        super().__init__(config.model)
        self.config = config


@dataclass(frozen=True)
class TrainingState:
    """All that an exact resume after any saved step needs; random numbers are drawn anew in each step."""

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
    """Whether a path is a run folder with a trained model."""
    return (path / CONFIG_FILE).is_file() and (path / BEST_FILE).is_file()


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
    """Write ``best.safetensors``."""
    # Copies: safetensors refuses tensors that share memory.
    copies = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in weights.items()}
    with replace_when_whole(run / BEST_FILE) as partial:
        # Not save_file: its files can be read by their owner only.
        partial.write_bytes(save(copies, metadata={"format": "pt"}))


def load_model(run: str | Path) -> TrainedRCMA:
    """Load the best model of a run folder, on the CPU and in evaluation mode.

    Args:
        run: folder with ``config.yaml`` and ``best.safetensors``, as ``rcma-train`` writes it.

    Raises:
        InputError: files are missing or damaged, or the weights do not fit the configuration.
    """
    run = Path(run)
    if not run.is_dir():
        raise InputError(f"{run}: no such run folder; rcma-train --out makes it")
    missing = [name for name in (CONFIG_FILE, BEST_FILE) if not (run / name).is_file()]
    if missing:
        raise InputError(f"{run}: no run folder of rcma-train: {', '.join(missing)} missing")
    config = load_run_config(run)
    if config.model.text_width is None:
        raise InputError(f"{run / CONFIG_FILE}: model.text_width is not set; rcma-train writes it")
    model = TrainedRCMA(config)
    path = run / BEST_FILE
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: damaged: {error}; train again or copy it again") from None
    wanted = {name: value.shape for name, value in model.state_dict().items()}
    check_entries(weights, wanted, source=f"{path} does not fit {CONFIG_FILE}")
    model.load_state_dict(weights)
    return model.eval()


def save_state(run: Path, state: TrainingState) -> None:
    """Write ``last/``, whole or not at all."""
    with replace_when_whole(run / STATE_FILE) as partial:
        # Not asdict, which would copy every tensor.
        content = {field.name: getattr(state, field.name) for field in fields(state)}
        torch.save(content, partial)


def load_state(run: Path) -> TrainingState | None:
    """Read ``last/``, tensors on the CPU; None when nothing was saved.

    Raises:
        InputError: the file is damaged.
    """
    path = run / STATE_FILE
    if not path.exists():
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        return TrainingState(**content)
    except Exception as error:  # torch.load raises whatever the damaged byte leads to
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: damaged: {reason}; train again in another folder") from None
