"""The prediction of one video, frame by frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from preprocessing.errors import InputError
from rcma.abaw import write_per_video
from rcma.config import MODALITIES, TARGETS, Modality, Target

FIRST_COLUMNS = ("video", "frame", "time_s")
"""First columns of a table of predictions: video_id, frame counted from 1, presentation time in seconds."""


@dataclass(frozen=True)
class Prediction:
    """Targets such as valence and arousal of a video of T decoded frames."""

    video_id: str
    time_s: NDArray[np.float64]
    """(T,) presentation time of each frame, seconds."""
    values: NDArray[np.float32]
    """(T,n_targets) in [-1,1], a column for each of ``targets``; NaN where nothing is predicted."""
    present: Mapping[Modality, NDArray[np.bool_]]
    """(T,) whether each frame had the modality, for those that the model uses."""
    targets: tuple[Target, ...] = TARGETS
    spread: NDArray[np.float32] | None = None
    """(T,n_targets) sample standard deviation of several models' predictions, >= 0; for public models the weighted one
    of :func:`rcma.experts.fuse`. It is not a probability: the truth may lie far outside. NaN for a target that fewer
    than two models predict; None if that holds for all."""
    changes: Mapping[Modality, NDArray[np.float32]] = field(default_factory=dict)
    """(T,S) of each modality: the norm of the change of its features in each of S fusion steps, over their norm before
    the step. Empty unless requested, and for a model without fusion steps."""
    experts: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    """(T,n) outputs of each public model, by its name: the targets, then further ones; NaN where it has none. Neither
    smoothed nor filled. Empty for RCMA."""
    outputs: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Names of these outputs: the targets that the model predicts, then the further ones."""

    @property
    def valence(self) -> NDArray[np.float32]:
        """(T,) in [-1,1]; raises InputError where the model does not predict it."""
        return self.select(("valence",)).values[:, 0]

    @property
    def arousal(self) -> NDArray[np.float32]:
        """(T,) in [-1,1]; raises InputError where the model does not predict it."""
        return self.select(("arousal",)).values[:, 0]

    def select(self, targets: Sequence[Target]) -> Prediction:
        """Return the prediction of these targets only, in this order.

        Raises:
            InputError: one of them is not predicted.
        """
        for target in targets:
            if target not in self.targets:
                raise InputError(f"{self.video_id}: {target} is not predicted, only {', '.join(self.targets)}")
        columns = [self.targets.index(target) for target in targets]
        spread = None if self.spread is None else self.spread[:, columns]
        return replace(self, targets=tuple(targets), values=self.values[:, columns], spread=spread)

    def to_table(self) -> dict[str, NDArray[Any]]:
        """Return the columns of ``frames.csv`` by name, in its order, with T rows.

        ``video``, ``frame`` (int32, counted from 1), ``time_s`` (float64), each target (float32), whether the frame had
        ``face``, ``audio`` and ``text`` (bool; None where the model does not use it), and ``TARGET_sd`` (float32) of
        several models. Public models add ``TARGET_spread`` and :meth:`columns_of_experts`. Missing numbers are NaN.
        """
        n = len(self.time_s)
        table: dict[str, NDArray[Any]] = {
            "video": np.full(n, self.video_id),
            "frame": np.arange(1, n + 1, dtype=np.int32),
            "time_s": self.time_s,
        }
        table |= dict(zip(self.targets, self.values.T, strict=True))
        table |= {m: self.present.get(m, np.full(n, None)) for m in MODALITIES}
        if self.spread is not None:
            ending = "spread" if self.experts else "sd"
            table |= {f"{target}_{ending}": self.spread[:, k] for k, target in enumerate(self.targets)}
        return table | self.columns_of_experts()

    def columns_of_experts(self) -> dict[str, NDArray[np.float32]]:
        """Return (T,) of each output of each public model, by the name of its column, such as ``words_valence``."""
        columns: dict[str, NDArray[np.float32]] = {}
        for name, outputs in self.outputs.items():
            places = [*self.targets, *(output for output in outputs if output not in self.targets)]
            columns |= {f"{name}_{output}": self.experts[name][:, places.index(output)] for output in outputs}
        return columns

    def save_abaw(self, path: Path | str) -> None:
        """Write valence and arousal in the ABAW challenge's format for one video: a header, then a line for each frame.

        Args:
            path: ``VIDEO_ID.txt``; a file that this program wrote is replaced.

        Raises:
            InputError: valence or arousal is not predicted or has gaps, or another file is at ``path``.
        """
        path = Path(path)
        if path.suffix != ".txt":
            raise InputError(f"{path}: files of the ABAW challenge end in .txt")
        values = self.select(TARGETS).values
        if np.isnan(values).any():
            raise InputError(f"{path}: the file needs a number for each frame; predict with fill nearest or neutral")
        write_per_video(path.parent, path.stem, values)
