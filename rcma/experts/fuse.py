"""Late fusion of experts: at each frame, the weighted mean of those that have a value."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from rcma.config import TARGETS, Modality, Target

WEIGHTS: Mapping[Modality, Mapping[Target, float]] = {
    # Without training there, EmotiEffLib reaches a CCC of about .41 and .24 on Aff-Wild2.
    "face": {"valence": 0.4, "arousal": 0.25},
    # On OMG-Emotion's transcripts, without training there, r is .265 and .029: words say little about arousal.
    "text": {"valence": 0.25, "arousal": 0.05},
    # Valence: audEERING's model reaches .638, but on its own corpus and over whole utterances, so it counts less than
    # the words. Arousal: r of vocal activation is .71 to .83 on acted speech; half of that, because other speech was
    # not measured.
    "audio": {"valence": 0.2, "arousal": 0.35},
}
"""Weight of an expert for a target by its modality: about its correlation with raters on recordings that it was not
trained on. They are fixed because fitting them needs labels of people like those in the videos."""


def fuse(
    values: Mapping[str, NDArray[np.floating]], modalities: Mapping[str, Modality]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Fuse the values of experts.

    Args:
        values: (T,2) valence and arousal of each expert, by name; NaN where it has none. At least one expert.
        modalities: of each expert.

    Returns:
        The weighted mean (T,2), NaN where no expert has a value; and the spread (T,2), the weighted standard deviation
        sqrt(sum w (x - mean)^2 / sum w), NaN where fewer than two have one.
    """
    given = np.stack([np.asarray(values[name], np.float64) for name in values])  # (E,T,2)
    weights = np.array([[WEIGHTS[modalities[name]][target] for target in TARGETS] for name in values])  # (E,2)
    there = ~np.isnan(given)
    weight = np.where(there, weights[:, None], 0.0)
    given = np.where(there, given, 0.0)
    total = weight.sum(axis=0)
    with np.errstate(invalid="ignore"):
        mean = (weight * given).sum(axis=0) / total
        spread = np.sqrt((weight * (given - mean) ** 2).sum(axis=0) / total)
    spread[there.sum(axis=0) < 2] = np.nan
    return mean.astype(np.float32), spread.astype(np.float32)
