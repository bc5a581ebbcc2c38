"""The run folder: written while training goes on, and read to resume exactly.

``last/state.pt`` is all that a resume after any saved step needs; random numbers are drawn anew in each step.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from preprocessing.config import flatten
from preprocessing.errors import InputError
from preprocessing.files import replace_when_whole
from rcma.config import Target, TrainConfig
from rcma.data import TrainingData
from rcma.model import (
    SCORES_FILE,
    ValidationScores,
    first_line,
    load_run_config,
    save_config,
    save_model_card,
    save_weights,
)
from rcma.training.schedule import Ending, best_epoch

LOG_FILE = "log.csv"
STATE_FILE = "last/state.pt"
DATA_FILE = "last/data.json"
"""Videos of the training and validation splits, with a hash of each video's labels."""
_MAY_CHANGE = ("train.epochs", "train.workers", "train.save_every")
"""Settings that may differ when a run is resumed: they change no batch and no weight of an epoch."""


@dataclass(frozen=True)
class EpochRow:
    """One row of log.csv."""

    epoch: int
    """Counted from 1."""
    unfrozen_groups: int
    """Groups of backbone layers that were trained, see :mod:`rcma.training.schedule`."""
    learning_rate: float
    train_loss: float
    """Mean of 1 - CCC over the windows and targets of the epoch."""
    ccc: Mapping[Target, float]
    """CCC of each target on the validation split; NaN where undefined. log.csv has a column ``TARGET_ccc`` for each."""
    mean_ccc: float
    seconds: float

    def columns(self) -> dict[str, float]:
        """Values by column of log.csv."""
        columns: dict[str, Any] = {}
        for name, value in asdict(self).items():
            columns |= {f"{target}_ccc": ccc for target, ccc in value.items()} if name == "ccc" else {name: value}
        return columns


@dataclass(frozen=True)
class TrainingResult:
    """How training ended."""

    best: EpochRow
    """The epoch whose weights are in best.safetensors."""
    epochs: int
    """Epochs run, those before a resume included."""
    ending: Ending | None
    """Why training ended before ``train.epochs``; None: it did not."""
    n_videos: int
    """Validation videos."""
    n_frames: int
    """Annotated frames of the validation videos."""


@dataclass(frozen=True)
class TrainingState:
    """Everything that changes during training."""

    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    rows: list[dict[str, Any]]
    """An :class:`EpochRow` for each finished epoch."""
    average: dict[str, Tensor] | None = None
    """Moving average of the weights (``train.ema``)."""
    n_batches: int = 0
    """Finished batches of the epoch in progress."""
    sums: tuple[float, float] = (0.0, 0.0)
    """Sum of 1 - CCC over these batches, and the number of its terms."""


def open_run(run: Path, config: TrainConfig, data: TrainingData, *, resume: bool) -> TrainingState | None:
    """Check a run folder before training; returns the state to resume from, if any.

    Raises:
        InputError: the folder is in use, or its run began with other settings or data.
    """
    if run.exists() and not run.is_dir():
        raise InputError(f"--out {run}: a file; give a folder")
    if not run.exists() or not any(run.iterdir()):
        return None
    if not resume:
        raise InputError(f"--out {run}: holds a run already; add --resume to continue it, or give another folder")
    before, now = flatten(load_run_config(run).model_dump(mode="json")), flatten(config.model_dump(mode="json"))
    # The cosine schedule depends on the number of epochs.
    free = [key for key in _MAY_CHANGE if key != "train.epochs" or config.train.schedule != "cosine"]
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key) and key not in free:
            raise InputError(
                f"{key}: {run} began with {before.get(key)!r}, now it is {now.get(key)!r}; "
                f"only {', '.join(free)} may change on --resume"
            )
    _refuse_other_data(run, data)
    return load_state(run)


def _hash_labels(data: TrainingData) -> dict[str, dict[str, str]]:
    """Hash of each video's labels, by split; it also depends on the number of frames."""
    return {
        split: {video.video_id: hashlib.sha256(video.labels.tobytes()).hexdigest()[:16] for video in videos}
        for split, videos in (("training", data.train), ("validation", data.validation))
    }


def _refuse_other_data(run: Path, data: TrainingData) -> None:
    path = run / DATA_FILE
    if not path.exists():
        return  # killed before it was written
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        splits = [(split, known[split], now) for split, now in _hash_labels(data).items()]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{path}: damaged; train again in another folder") from None
    for split, before, now in splits:
        for video in sorted(before.keys() | now.keys()):
            if before.get(video) != now.get(video):
                change = "is new" if video not in before else "is gone" if video not in now else "has other labels"
                raise InputError(
                    f"{run} began with other data: {video} of the {split} videos {change}; "
                    "resume with the same data, or train in another folder"
                )


def save_state(run: Path, state: TrainingState) -> None:
    """Write ``last/state.pt``, whole or not at all."""
    # Not asdict, which copies every tensor.
    content = {field.name: getattr(state, field.name) for field in fields(state)}
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with replace_when_whole(run / STATE_FILE) as partial:
        # Not by torch.save: its error for a full disk is just "iostream error".
        partial.write_bytes(buffer.getbuffer())


def load_state(run: Path) -> TrainingState | None:
    """Read ``last/state.pt`` to the CPU; None when nothing was saved.

    Raises:
        InputError: the file is damaged.
    """
    path = run / STATE_FILE
    if not path.exists():
        return None
    try:
        return TrainingState(**torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # torch.load raises whatever the damaged byte leads to
        raise InputError(f"{path}: damaged: {first_line(error)}; train again in another folder") from None


class RunWriter:
    """Writes the files of a run, each of them whole or not at all."""

    def __init__(self, run: Path, config: TrainConfig, data: TrainingData, rows: Sequence[EpochRow]) -> None:
        """Write the configuration, the data's hashes and the rows of earlier epochs."""
        self._run, self._targets = run, config.model.targets
        save_config(run, config)
        with replace_when_whole(run / DATA_FILE) as partial:
            partial.write_text(json.dumps(_hash_labels(data), indent=1) + "\n", encoding="utf-8")
        self._write_log(rows)
        self._board: Any = None
        with suppress(ImportError):  # the extra "tensorboard" is not installed
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(run), purge_step=len(rows) + 1)

    def finish_epoch(self, rows: Sequence[EpochRow], weights: Mapping[str, Tensor], state: TrainingState) -> None:
        """Save the state after an epoch, and the validated weights if they are the best so far."""
        # Before best.safetensors: an epoch that is run again may begin with the best weights before it.
        save_state(self._run, state)
        self.save_if_best(rows, weights)
        self._write_log(rows)
        if self._board is not None:
            for name, value in rows[-1].columns().items():
                self._board.add_scalar(name, value, rows[-1].epoch)
            self._board.flush()

    def save_if_best(self, rows: Sequence[EpochRow], weights: Mapping[str, Tensor]) -> None:
        """Save the weights of the last epoch if it is the best one."""
        if best_epoch([row.mean_ccc for row in rows]) == len(rows) - 1:
            save_weights(self._run, weights)

    def finish(self, result: TrainingResult) -> None:
        """Write scores.json and the model card, and close the TensorBoard events."""
        ccc = {**result.best.ccc, "mean": result.best.mean_ccc}
        scores = ValidationScores(
            split="validation",
            best_epoch=result.best.epoch,
            epochs=result.epochs,
            # JSON has no NaN.
            ccc={name: None if math.isnan(value) else value for name, value in ccc.items()},
            n_videos=result.n_videos,
            n_frames=result.n_frames,
        )
        with replace_when_whole(self._run / SCORES_FILE) as partial:
            partial.write_text(scores.model_dump_json(indent=1) + "\n", encoding="utf-8")
        save_model_card(self._run)
        if self._board is not None:
            self._board.close()

    def _write_log(self, rows: Sequence[EpochRow]) -> None:
        empty = EpochRow(0, 0, 0.0, 0.0, dict.fromkeys(self._targets, 0.0), 0.0, 0.0)
        with replace_when_whole(self._run / LOG_FILE) as partial, partial.open("w", newline="") as file:
            table = csv.DictWriter(file, empty.columns(), lineterminator="\n")
            table.writeheader()
            table.writerows(row.columns() for row in rows)
