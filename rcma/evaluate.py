"""The challenge's score: CCC of each target over the concatenation of all annotated frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from preprocessing.errors import InputError
from rcma.config import TARGETS, Target
from rcma.metrics import ccc


@dataclass(frozen=True)
class Scores:
    """What predictions are worth."""

    valence: float
    """CCC in [-1,1]; NaN where it is undefined."""
    arousal: float
    mean: float
    """Mean over the targets asked for; NaN if one of them is NaN."""
    n_videos: int
    """Videos with both predictions and annotations."""
    n_frames: int
    """Annotated frames among them."""
    warnings: tuple[str, ...] = ()


def evaluate(
    predictions: Mapping[str, NDArray[np.floating]],
    annotations: Mapping[str, NDArray[np.floating]],
    *,
    targets: Sequence[Target] = TARGETS,
) -> Scores:
    """Compare predictions with annotations.

    Args:
        predictions: (n,2) valence and arousal in [-1,1] for each video_id; NaN where not predicted.
        annotations: (n,2) likewise, NaN where not annotated. Where the two differ in length, the frames that both have
            are compared and a warning gives the two counts.
        targets: what ``mean`` is taken over.

    Raises:
        InputError: no video has both.
    """
    common = sorted(predictions.keys() & annotations.keys())
    if not common:
        raise InputError(
            f"predictions ({_some(predictions)}) and annotations ({_some(annotations)}) have no video in common; "
            "their names must be equal"
        )
    warnings = [f"{video_id}: no predictions; not compared" for video_id in sorted(annotations.keys() - set(common))]
    warnings += [f"{video_id}: no annotation; not compared" for video_id in sorted(predictions.keys() - set(common))]
    predicted, annotated = [], []
    for video_id in common:
        n_predicted, n_annotated = len(predictions[video_id]), len(annotations[video_id])
        n = min(n_predicted, n_annotated)
        if n_predicted != n_annotated:
            warnings.append(f"{video_id}: {n_predicted} predictions, {n_annotated} annotated rows; compared over {n}")
        predicted.append(predictions[video_id][:n])
        annotated.append(annotations[video_id][:n])
        columns = [TARGETS.index(target) for target in targets]
        gaps = (np.isnan(predicted[-1]) & ~np.isnan(annotated[-1]))[:, columns].any(axis=1)
        if gaps.any():
            warnings.append(f"{video_id}: {gaps.sum()} annotated frames have no prediction: CCC is undefined")
    all_predicted, all_annotated = np.concatenate(predicted), np.concatenate(annotated)
    values = {target: ccc(all_predicted[:, k], all_annotated[:, k]) for k, target in enumerate(TARGETS)}
    return Scores(
        valence=values["valence"],
        arousal=values["arousal"],
        mean=float(np.mean([values[target] for target in targets])),
        n_videos=len(common),
        n_frames=int((~np.isnan(all_annotated)).any(axis=1).sum()),
        warnings=tuple(warnings),
    )


def _some(names: Mapping[str, object]) -> str:
    shown = ", ".join(sorted(names)[:3])
    return f"{shown}, ..." if len(names) > 3 else shown or "none"
