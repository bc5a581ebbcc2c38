"""Training windows as a PyTorch dataset, and the batches that several processes share."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from preprocessing.features import Alignment
from rcma.config import ModelSettings
from rcma.data.embeddings import Embeddings
from rcma.data.videos import Video
from rcma.data.windows import cut_window, face_side, windows

EMPTY_WINDOW = -1
"""Index of a window that is all padding."""


class WindowDataset(Dataset[dict[str, Tensor]]):
    """Training windows with a random crop and flip, the same for all frames of a window.

    Item i depends on (seed, epoch, i) alone: neither on the order of reading nor on the number of workers. Windows in
    which no target has two labels are left out.

    Each item is the result of :func:`cut_window` with ``labels`` float32 (L,n_targets), NaN where there is none, and
    ``window`` int64 (), the item's index.
    """

    def __init__(
        self,
        videos: Sequence[Video],
        *,
        model: ModelSettings,
        hop: int,
        audio_alignment: Alignment,
        seed: int,
        modality_dropout: float = 0.0,
        embeddings: Embeddings | None = None,
    ) -> None:
        """Find the windows of the model's length; nothing is read yet."""
        self._model, self._audio_alignment = model, audio_alignment
        self._modality_dropout, self._embeddings = modality_dropout, embeddings
        self.seed, self.epoch = seed, 0
        self._places = [
            (video, start)
            for video in videos
            for start in windows(len(video.labels), model.length, hop)
            if (np.isfinite(video.labels[start : start + model.length]).sum(axis=0) >= 2).any()
        ]

    def __len__(self) -> int:
        """Number of windows."""
        return len(self._places)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Read one window; :data:`EMPTY_WINDOW` is all padding, without labels."""
        if index == EMPTY_WINDOW:
            padding = {name: torch.zeros_like(value) for name, value in self[0].items()}
            return padding | {"labels": torch.full_like(padding["labels"], torch.nan), "window": torch.tensor(index)}
        video, start = self._places[index]
        features = video.features()
        random = np.random.default_rng((self.seed, self.epoch, index))
        size = features.faces.shape[1]
        top, left = random.integers(0, size - face_side(size) + 1, size=2).tolist()
        flip = bool(random.random() < 0.5)
        embedded = None
        if self._embeddings is not None:
            embedded = self._embeddings.read(video.video_id, int(random.integers(self._embeddings.n_views)))
        length = self._model.length
        item = cut_window(
            features,
            start,
            model=self._model,
            length=length,
            audio_alignment=self._audio_alignment,
            crop=(top, left),
            flip=flip,
            embeddings=embedded,
        )
        if self._modality_dropout:
            masks = {f"{m}_mask": item[f"{m}_mask"] for m in self._model.modalities}
            item |= drop_modalities(masks, self._modality_dropout, random)
        labels = torch.full((length, video.labels.shape[1]), torch.nan)
        known = video.labels[start : start + length]
        labels[: len(known)] = torch.from_numpy(known)
        return {**item, "labels": labels, "window": torch.tensor(index)}

    # Not named set_epoch: Accelerate calls a method of that name with its own count, which starts again on resuming.
    def start_epoch(self, epoch: int) -> None:
        """Draw other crops and flips and another order from now on."""
        self.epoch = epoch

    def name(self, index: int) -> str:
        """Video and first frame of a window, for messages."""
        if index == EMPTY_WINDOW:
            return "nothing"
        video, start = self._places[index]
        return f"{video.video_id} from frame {start}"


def drop_modalities(masks: Mapping[str, Tensor], probability: float, random: np.random.Generator) -> dict[str, Tensor]:
    """Drop whole modalities of a window, each with the given probability, but never all of them.

    Returns:
        The masks (L,) of each modality, all False for one that is dropped. How many random numbers are drawn does not
        depend on the probability.
    """
    dropped = random.random(len(masks)) < probability
    spared = random.integers(len(masks))
    if dropped.all():
        dropped[spared] = False
    return {name: mask & (not gone) for (name, mask), gone in zip(masks.items(), dropped, strict=True)}


class SharedBatches(Sampler[list[int]]):
    """All windows of a dataset in batches that several processes share; their order depends on (seed, epoch) alone.

    Whatever their number, the processes together see the same batches. Where the last batch has fewer windows than
    there are processes, the others get :data:`EMPTY_WINDOW`.
    """

    def __init__(self, dataset: WindowDataset, batch_size: int, *, process: int = 0, n_processes: int = 1) -> None:
        """Divide batches of ``batch_size`` windows among ``n_processes``; this is number ``process``, from 0."""
        self._dataset, self._batch_size = dataset, batch_size
        self._process, self._n_processes = process, n_processes
        self.n_done = 0
        """Batches at the start of the epoch to skip, because they are done."""

    def __len__(self) -> int:
        """Number of batches, including those to skip."""
        return math.ceil(len(self._dataset) / self._batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        """Indices of the windows of this process in each batch."""
        random = np.random.default_rng((self._dataset.seed, self._dataset.epoch))
        order = random.permutation(len(self._dataset)).tolist()
        for first in range(self.n_done * self._batch_size, len(order), self._batch_size):
            batch = order[first : first + self._batch_size]
            yield batch[self._process :: self._n_processes] or [EMPTY_WINDOW]
