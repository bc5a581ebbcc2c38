"""Paired comparisons of systems that predict the same recordings: the uncertainty of differences of CCC.

The unit is a conversation: rows of one are far from independent, and so are its two ends. A system has the predictions
of one or several seeds.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rcma.evaluate import resampled_ccc

N_RESAMPLES = 2000
CONFIDENCE = 0.95
MAX_EXACT = 12
"""Largest number of conversations for which all ways to exchange predictions are tried."""

Units = Sequence[NDArray[np.float32]]
"""(n,K) of each conversation."""


@dataclass(frozen=True)
class Difference:
    """Difference of two systems' CCC, pooled over all rows, mean over targets and seeds; ends of its interval."""

    mean: float
    low: float
    high: float

    @property
    def significant(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


def pooled_ccc(seeds: Sequence[Units], labels: Units, draws: NDArray[np.integer] | None = None) -> NDArray[np.float64]:
    """CCC over the rows of the drawn conversations, (S,R,K).

    Args:
        seeds: predictions of each of S seeds.
        labels: NaN where there is none.
        draws: (R,C) indices of conversations; None: each once.
    """
    draws = np.arange(len(labels))[None] if draws is None else draws
    return np.stack([resampled_ccc(units, labels, draws=draws) for units in seeds])


def bootstrap(seeds: Sequence[Units], labels: Units, *, seed: int = 0) -> NDArray[np.float64]:
    """Mean CCC over targets, (S,R) for each seed and resample; all systems get the same resamples of conversations."""
    draws = np.random.default_rng(seed).integers(len(labels), size=(N_RESAMPLES, len(labels)))
    return np.asarray(pooled_ccc(seeds, labels, draws).mean(axis=2))


def compare(
    one: Sequence[Units], other: Sequence[Units], labels: Units, *, resampled: tuple[NDArray[np.float64], ...]
) -> Difference:
    """Difference of two systems with a percentile interval; they share resampled conversations, but not seeds.

    Args:
        one: predictions of each seed.
        other: likewise.
        labels: NaN where there is none.
        resampled: :func:`bootstrap` of ``one`` and of ``other``.
    """
    random = np.random.default_rng(1)
    means = []
    for values in resampled:
        n_seeds, n_resamples = values.shape
        chosen = random.integers(n_seeds, size=(n_seeds, n_resamples))
        means.append(np.take_along_axis(values, chosen, axis=0).mean(axis=0))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means[0] - means[1], [tail, 1 - tail])
    difference = pooled_ccc(one, labels).mean() - pooled_ccc(other, labels).mean()
    return Difference(float(difference), float(low), float(high))


def sign_flip_test(one: Sequence[Units], other: Sequence[Units], labels: Units) -> float:
    """Two-sided p of the hypothesis that the two systems are exchangeable in every conversation.

    Predictions of whole conversations are exchanged in all seeds at once (both systems need equally many): in all 2^C
    ways, or in random ones with more than MAX_EXACT conversations. p is the share of the ways whose difference is at
    least as large as the one found.
    """
    n = len(labels)
    if n <= MAX_EXACT:
        ways = np.array(list(itertools.product((0, 1), repeat=n)))  # (2^C,C), the first exchanges nothing
    else:
        ways = np.random.default_rng(0).integers(2, size=(2**MAX_EXACT, n))
        ways[0] = 0
    both = [[*a, *b] for a, b in zip(one, other, strict=True)]
    twice = [*labels, *labels]
    first = pooled_ccc(both, twice, np.arange(n) + ways * n).mean(axis=(0, 2))
    second = pooled_ccc(both, twice, np.arange(n) + (1 - ways) * n).mean(axis=(0, 2))
    differences = np.abs(first - second)
    return float(np.mean(differences >= differences[0] - 1e-12))
