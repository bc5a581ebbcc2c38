"""A model over windows of one video: each frame gets the mean over the windows that contain it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from threading import get_ident
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from preprocessing.features import Alignment, Features
from rcma.config import Modality
from rcma.data import cut_window, labels_at, overlap_average, windows
from rcma.fast_cpu import Embed, optimised_backbones
from rcma.model import RCMA

_FRAMES_AT_ONCE = 256
"""Frames whose crops and log-mel patches are in memory at once."""


def predict_video(
    model: RCMA,
    features: Features,
    *,
    hop: int,
    audio_alignment: Alignment,
    label_delay_s: float = 0.0,
    embeddings: Mapping[Modality, NDArray[np.float16]] | None = None,
    optimised: Mapping[str, Embed] | None = None,
    batch_size: int = 4,
    changes: bool = False,
) -> NDArray[np.float32]:
    """Predict every frame, with windows of the model's length; memory does not grow with the video.

    Args:
        model: runs on its device, in evaluation mode; its mode is restored.
        features: a video of T frames that the model can take, see :meth:`rcma.prediction.Checkpoints.check`.
        hop: frames between the starts of two windows; a frame in several windows gets the mean of their predictions.
        audio_alignment: as in training.
        label_delay_s: as in training: predictions are given that much later; the first one stands before.
        embeddings: output of the backbones for the video, (T,d) of each modality, if it is already known.
        optimised: :func:`rcma.fast_cpu.optimised_backbones` of the model, kept between videos; None: made for this
            video, which takes about a second with published layer sizes.
        batch_size: windows in memory at once.
        changes: append the columns that :func:`split_changes` reads.

    Returns:
        float32 (T,n_targets) in [-1,1]; with ``changes``, M * S columns more for M modalities and S fusion steps.
    """
    length, n_frames = model.settings.length, features.n_frames
    starts = windows(n_frames, length, hop)
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            stretches = _embed_stretches(
                model, features, audio_alignment=audio_alignment, embeddings=embeddings, optimised=optimised
            )
            of_starts = _cut_windows(stretches, starts, length=length)
            batches = iter(lambda: [*islice(of_starts, batch_size)], [])
            columns = (_run(model, batch, changes=changes) for batch in batches)
            mean = overlap_average(starts, (of_window for batch in columns for of_window in batch), n_frames)
    finally:
        model.train(was_training)
    if label_delay_s:
        time_s = np.asarray(features.time_s)
        mean = labels_at(time_s, np.maximum(time_s - label_delay_s, time_s[0]), mean)
    return mean


def split_changes(model: RCMA, columns: NDArray[np.float32]) -> dict[Modality, NDArray[np.float32]]:
    """:attr:`rcma.prediction.Prediction.changes` from the columns of :func:`predict_video`."""
    if not model.fusion.depth:
        return {}
    parts = np.split(columns[:, len(model.settings.targets) :], len(model.modalities), axis=1)
    return dict(zip(model.modalities, parts, strict=True))


def _run(model: RCMA, windows: Sequence[Mapping[str, Tensor]], *, changes: bool) -> NDArray[np.float32]:
    """Columns (B,L,C) of windows."""
    batch = {name: torch.stack([window[name] for window in windows]) for name in windows[0]}
    with _watch_steps(model.fusion.steps if changes else ()) as moved:
        columns: Tensor = model(batch)
    if moved:
        columns = torch.cat([columns, *torch.stack(moved, dim=-1).unbind(dim=2)], dim=-1)
    return np.asarray(columns.float().cpu().numpy())


def _embed_stretches(
    model: RCMA,
    features: Features,
    *,
    audio_alignment: Alignment,
    embeddings: Mapping[Modality, NDArray[np.float16]] | None,
    optimised: Mapping[str, Embed] | None,
) -> Iterator[dict[str, Tensor]]:
    """The inputs of :meth:`RCMA.forward`, without the dimension B, of some hundred frames at a time.

    Crops and log-mel have become embeddings: a frame in several windows goes through the backbones once.
    """
    if optimised is None:
        optimised = optimised_backbones(model) if embeddings is None else {}
    device = next(model.parameters()).device
    for start in range(0, features.n_frames, _FRAMES_AT_ONCE):
        cut = cut_window(
            features,
            start,
            model=model.settings,
            length=min(_FRAMES_AT_ONCE, features.n_frames - start),
            audio_alignment=audio_alignment,
            embeddings=embeddings,
        )
        stretch = {name: value.to(device) for name, value in cut.items()}
        for m in model.backbone:
            raw, mask = stretch[m][None], stretch[f"{m}_mask"][None]
            stretch[m] = model.embed(m, raw, mask, backbone=optimised.get(m))[0]  # type: ignore[arg-type]
        yield stretch


def _cut_windows(
    stretches: Iterator[dict[str, Tensor]], starts: Sequence[int], *, length: int
) -> Iterator[dict[str, Tensor]]:
    """Windows (L,...) of consecutive stretches, zeros beyond the end; frames that no later window needs are dropped."""
    first, frames = 0, next(stretches)
    for start in starts:
        frames = {name: value[start - first :] for name, value in frames.items()}
        first = start
        while len(frames["frame_mask"]) < length and (more := next(stretches, None)) is not None:
            frames = {name: torch.cat([value, more[name]]) for name, value in frames.items()}
        missing = max(0, length - len(frames["frame_mask"]))
        padded = {name: (0, 0) * (value.ndim - 1) + (0, missing) for name, value in frames.items()}
        yield {name: F.pad(value[:length], padded[name]) for name, value in frames.items()}


@contextmanager
def _watch_steps(steps: Iterable[nn.Module]) -> Iterator[list[Tensor]]:
    """Give a list to which each step that this thread runs appends the relative change of its features, (B,L,M)."""
    changes: list[Tensor] = []
    thread = get_ident()

    def note(_step: nn.Module, given: tuple[Any, ...], refined: Mapping[Modality, Tensor]) -> None:
        """Hook of a step."""
        if get_ident() == thread:
            before = given[0]
            moved = [(refined[m] - before[m]).norm(dim=-1) / before[m].norm(dim=-1) for m in before]
            changes.append(torch.stack(moved, dim=-1))

    handles = [step.register_forward_hook(note) for step in steps]
    try:
        yield changes
    finally:
        for handle in handles:
            handle.remove()
