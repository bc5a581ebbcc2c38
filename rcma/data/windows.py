"""Windows of L frames: where they start, the tensors of one, and the average of predictions where they overlap."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from preprocessing.errors import InputError
from preprocessing.features import Alignment, Features, cut_patches, patch_start
from preprocessing.media import HOP_LENGTH
from rcma.config import Modality, ModelSettings
from rcma.model import IR50

_CROP_OF_FACE = (5, 6)
"""The network sees this fraction of the stored face's side: 40 of 48 pixels, as published."""

_Cut = tuple[NDArray[np.float32], NDArray[np.bool_]]
"""Values of n frames, and whether each frame has them."""


def windows(n_frames: int, length: int, hop: int) -> list[int]:
    """First frames of the windows that cover a video.

    Args:
        n_frames: T, at least 1.
        length: L, frames in a window.
        hop: frames between two starts, from 1 to ``length``.

    Returns:
        Increasing starts; the last window ends with the video. When T < L, one window at 0, longer than the video.

    Raises:
        ValueError: a number is outside its range.
    """
    if n_frames < 1 or not 1 <= hop <= length:
        raise ValueError(f"{n_frames} frames, windows of {length}, hop {hop}: 1 <= hop <= length is right")
    last = max(0, n_frames - length)
    return [*range(0, last, hop), last]


def overlap_average(
    starts: Sequence[int], predictions: Iterable[NDArray[np.floating]], n_frames: int
) -> NDArray[np.float32]:
    """Average the predictions of overlapping windows frame by frame.

    Args:
        starts: first frame of each window, as :func:`windows` gives them; at least one.
        predictions: (L,K) of each window, taken one by one; rows beyond the end of the video are padding.
        n_frames: T.

    Returns:
        float32 (T,K); NaN at a frame that no window covers.

    Raises:
        ValueError: there is no window, or not one prediction for each.
    """
    total: NDArray[np.float64] | None = None
    count = np.zeros((n_frames, 1))
    for start, values in zip(starts, predictions, strict=True):
        if total is None:
            total = np.zeros((n_frames, values.shape[1]))
        own = total[start : start + len(values)]
        own += values[: len(own)]
        count[start : start + len(values)] += 1
    if total is None:
        raise ValueError("no windows: there is nothing to average")
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0).astype(np.float32)


def face_side(size: int) -> int:
    """Side in pixels of the crop that the network sees, for a stored face of ``size`` pixels."""
    shown, of = _CROP_OF_FACE
    return size * shown // of


def check_features(model: ModelSettings, features: Features) -> None:
    """Refuse features that lack what a model takes, or have another size or width.

    Raises:
        InputError: naming the video and what the model takes.
    """
    name, size = features.video_id, features.faces.shape[1]
    side, kind = face_side(size), model.face.kind
    if model.uses("face") and kind != "features" and not size:
        raise InputError(f"{name}: its features hold no faces, which model.face.kind {kind} takes")
    # Other encoders resize their pictures themselves.
    sides = {"ir50": (side == IR50.side, IR50.side), "small": (side > 0 and side % 8 == 0, "multiples of 8")}
    fits, wanted = sides.get(kind, (True, ""))
    if model.uses("face") and not fits:
        problem = f"faces.size: {size} gives crops of {side} pixels, but model.face.kind {kind} takes {wanted}"
        raise InputError(f"{name}: {problem}; use 48")
    if model.audio_input == "waveform" and features.waveform is None:
        raise InputError(f"{name}: its features hold no waveform; preprocess it with --set audio.waveform=true")
    width = features.word_vectors.shape[1]
    if model.uses("text", kind="words") and len(features.words) and width != model.text_width:
        raise InputError(
            f"{name}: its word vectors have width {width}, but the model takes {model.text_width}; "
            "preprocess it with the words.model of the training features"
        )
    for m in model.vector_modalities:
        if m not in features.vectors:
            raise InputError(f"{name}: its features hold no {m}_vectors.npy, which model.{m}.kind features takes")
        width, wanted_width = features.vectors[m].shape[1], model.width_of_input(m)
        if width != wanted_width:
            raise InputError(f"{name}: {m}_vectors.npy has {width} columns, but the model takes {wanted_width}")


def cut_window(
    features: Features,
    start: int,
    *,
    model: ModelSettings,
    length: int,
    audio_alignment: Alignment,
    crop: tuple[int, int] | None = None,
    flip: bool = False,
    embeddings: Mapping[Modality, NDArray[np.float16]] | None = None,
) -> dict[str, Tensor]:
    """Cut one window of L frames out of a video of T frames; frames beyond its end are padding.

    Args:
        features: the video, see :func:`check_features`.
        start: first frame, below T.
        model: its modalities are cut; a video without words may have vectors of any width.
        length: L; need not be the model's.
        audio_alignment: see :func:`preprocessing.features.patch_start`.
        crop: upper and left edge in pixels of the part of the stored face to take; None for the centre.
        flip: mirror the faces.
        embeddings: (T,d) of face and audio, which replace crops and log-mel; NaN where the modality is missing.

    Returns:
        For each modality of the model, float32: ``face`` (L,3,s,s) in [-1,1], s = 40 for stored faces of 48; ``audio``
        (L,96,64) log-mel, or the (L,96,160) samples of the same rows; ``text`` (L,D); (L,width) of features made
        elsewhere; zeros where the modality is missing. ``face_mask``, ``audio_mask``, ``text_mask`` bool (L,), True
        where the modality is present; ``frame_mask`` bool (L,), False in padding.
    """
    frames = slice(start, min(start + length, features.n_frames))
    window = {"frame_mask": _pad(np.ones(frames.stop - start, np.bool_), length)}
    for m in model.modalities:
        if m in model.vector_modalities:
            cut = _cut_rows(features.vectors[m][frames])
        elif m == "text":
            cut = _cut_words(features, frames, width=model.text_width or 1)
        elif embeddings is not None:
            cut = _cut_rows(embeddings[m][frames])
        elif m == "face":
            cut = _cut_faces(features, frames, crop=crop, flip=flip)
        else:
            rows = features.log_mel
            if model.audio_input == "waveform":
                assert features.waveform is not None  # see check_features
                rows = features.waveform.reshape(-1, HOP_LENGTH)  # (M,160), the samples of each row of log-mel
            cut = cut_patches(rows, patch_start(features.time_s[frames], audio_alignment))
        window[m], window[f"{m}_mask"] = (_pad(array, length) for array in cut)
    return window


def _cut_faces(features: Features, frames: slice, *, crop: tuple[int, int] | None, flip: bool) -> _Cut:
    size = features.faces.shape[1]
    side = face_side(size)
    top, left = crop if crop is not None else ((size - side) // 2, (size - side) // 2)
    pixels = features.faces[frames, top : top + side, left : left + side]  # (n,s,s,3)
    if flip:
        pixels = pixels[:, :, ::-1]
    face = np.asarray((pixels.transpose(0, 3, 1, 2) / np.float32(255.0) - 0.5) / 0.5, np.float32)
    # Not by the box: that of a provided face is not known.
    mask = np.isfinite(features.face_score[frames])
    face[~mask] = 0.0
    return face, mask


def _cut_words(features: Features, frames: slice, *, width: int) -> _Cut:
    word = features.frame_word[frames]
    mask = word >= 0
    text = np.zeros((len(word), width), np.float32)
    if mask.any():
        text[mask] = features.word_vectors[word[mask]]
    return text, mask


def _cut_rows(rows: NDArray[np.floating]) -> _Cut:
    """Embeddings or features from other tools (n,d), whose rows are all NaN where the modality is missing."""
    return np.nan_to_num(rows.astype(np.float32), copy=False), ~np.isnan(rows[:, 0])


def _pad(array: NDArray[Any], length: int) -> Tensor:
    """A contiguous tensor of ``length`` rows, zeros after those of the array."""
    if len(array) < length:
        padding = np.zeros((length - len(array), *array.shape[1:]), array.dtype)
        array = np.concatenate([array, padding])
    return torch.from_numpy(np.ascontiguousarray(array))
