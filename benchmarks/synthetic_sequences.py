"""Synthetic sequences with a known structure, for the study of fusions.

Valence and arousal are smooth random signals. The face shows valence and is occluded for a while, the voice shows
arousal in strong noise, words show valence in sparse bursts. In a third of the sequences the sign of the facial cue is
flipped, which the face alone cannot show; the voice has the sign, in noise, and words let one guess it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rcma.config import MODALITIES, Modality

LENGTH = 64
"""Frames of a sequence."""
WIDTHS: dict[Modality, int] = {"face": 64, "audio": 64, "text": 16}
"""Widths of the embeddings: those of the small backbones, and short word vectors."""
N_NUISANCES = 2
"""Smooth signals in each modality that are independent of the targets."""
SMOOTHING_FRAMES = 6.0
"""Standard deviation of the window that smooths the signals."""
SHARE_FLIPPED = 1 / 3
"""Of the sequences, whose facial cue has the other sign."""


@dataclass(frozen=True)
class Sequences:
    """One split of N synthetic sequences."""

    embeddings: dict[Modality, NDArray[np.float32]]
    """(N,L,width); NaN where the mask is False."""
    masks: dict[Modality, NDArray[np.bool_]]
    """(N,L), True where the modality is there."""
    labels: NDArray[np.float32]
    """(N,L,2), valence and arousal in [-1,1]."""
    flipped: NDArray[np.bool_]
    """(N,), True where the face's cue has the other sign."""

    def batch(self, index: slice | Tensor = slice(None), *, missing: Sequence[Modality] = ()) -> dict[str, Tensor]:
        """A batch for :class:`rcma.model.RCMA`, with ``labels``; ``missing`` modalities are masked everywhere."""
        labels = torch.from_numpy(self.labels)[index]
        batch = {"labels": labels, "frame_mask": torch.ones(labels.shape[:2], dtype=torch.bool)}
        for m in MODALITIES:
            batch[m] = torch.from_numpy(self.embeddings[m])[index]
            mask = torch.from_numpy(self.masks[m])[index]
            batch[f"{m}_mask"] = torch.zeros_like(mask) if m in missing else mask
        return batch


def generate(seed: int, sizes: Mapping[str, int]) -> dict[str, Sequences]:
    """Generate splits of these sizes; they have the mixing of signals into embeddings in common, and nothing else."""
    rng = np.random.default_rng(seed)
    cues: dict[Modality, int] = {"face": 1, "audio": 2, "text": 1}
    mixing = {m: rng.normal(size=(cues[m] + N_NUISANCES, WIDTHS[m])) / math.sqrt(cues[m] + N_NUISANCES) for m in cues}
    return {split: _generate_split(rng, n, mixing) for split, n in sizes.items()}


def _generate_split(rng: np.random.Generator, n: int, mixing: Mapping[Modality, NDArray[np.float64]]) -> Sequences:
    valence, arousal = np.tanh(_smooth(rng, n)), np.tanh(_smooth(rng, n))  # (N,L)
    flipped = rng.random(n) < SHARE_FLIPPED  # (N,)
    sign = np.where(flipped, -1.0, 1.0)[:, None]  # (N,1)
    # What each modality shows, before it is mixed with the nuisances.
    cues: dict[Modality, list[NDArray[np.float64]]] = {
        "face": [sign * valence + 0.5 * rng.normal(size=(n, LENGTH)) + 0.2 * _smooth(rng, n)],
        "audio": [
            arousal + 1.0 * rng.normal(size=(n, LENGTH)) + 0.3 * _smooth(rng, n),
            1.5 * sign + 0.7 * rng.normal(size=(n, LENGTH)),
        ],
        "text": [valence + 0.4 * rng.normal(size=(n, LENGTH))],
    }
    masks: dict[Modality, NDArray[np.bool_]] = {
        "face": ~_stretches(rng, n, count=1, lengths=(8, 24)),
        "audio": np.ones((n, LENGTH), np.bool_),
        "text": _stretches(rng, n, count=3, lengths=(2, 6)),
    }
    embeddings: dict[Modality, NDArray[np.float32]] = {}
    for m in MODALITIES:
        signals = np.stack([*cues[m], *(_smooth(rng, n) for _ in range(N_NUISANCES))], axis=-1)  # (N,L,k)
        mixed = signals @ mixing[m] + 0.3 * rng.normal(size=(n, LENGTH, WIDTHS[m]))
        embeddings[m] = np.where(masks[m][..., None], mixed, np.nan).astype(np.float32)
    return Sequences(embeddings, masks, np.stack([valence, arousal], axis=-1).astype(np.float32), flipped)


def _smooth(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
    """Smooth Gaussian signals of unit variance, (n,L)."""
    reach = math.ceil(3 * SMOOTHING_FRAMES)
    window = np.exp(-0.5 * (np.arange(-reach, reach + 1) / SMOOTHING_FRAMES) ** 2)
    noise = rng.normal(size=(n, LENGTH + 2 * reach))
    return np.lib.stride_tricks.sliding_window_view(noise, len(window), axis=1) @ (window / np.linalg.norm(window))


def _stretches(rng: np.random.Generator, n: int, *, count: int, lengths: tuple[int, int]) -> NDArray[np.bool_]:
    """(n,L), True in ``count`` stretches of random place and length (both ends included); they may overlap."""
    size = rng.integers(lengths[0], lengths[1] + 1, size=(n, count, 1))
    begin = (rng.random((n, count, 1)) * (LENGTH - size + 1)).astype(int)
    frame = np.arange(LENGTH)
    return np.asarray(((frame >= begin) & (frame < begin + size)).any(axis=1))
