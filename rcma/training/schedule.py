"""Learning rate, gradual unfreezing and the end of training, as functions of the validation scores so far.

There is no state to save: a resumed training reads the scores and gets the same plan.

``plateau`` is the published schedule (praveena2j/RJCMA on sucv/ABAW3), with a linear warm-up instead of a saw-tooth.
Training is a sequence of rounds, one for each group of backbone layers, see :meth:`rcma.model.RCMA.unfreeze`; the first
group is trained from the first epoch. In each round:

- the rate rises linearly and reaches ``learning_rate`` in the last of ``warmup_epochs``;
- after the warm-up, more than ``plateau_patience`` epochs in a row without a better score multiply the rate by
  ``plateau_factor``;
- when the rate falls below ``min_learning_rate``, the round ends: the next group is unfrozen, and the next round starts
  from the best weights with a new optimizer; after the last group, training ends;
- ``early_stopping`` epochs in a row without a better score end training; epochs of a warm-up do not count, and each
  round counts from zero.

A better score is one above the best of all rounds; NaN is never better.

``cosine`` has one warm-up, then half a cosine from ``learning_rate`` to ``min_learning_rate`` at the last epoch; groups
are unfrozen at equal distances along it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rcma.config import TrainSettings

Ending = Literal["early stopping", "rate spent"]


@dataclass(frozen=True)
class EpochPlan:
    """Settings of the next epoch."""

    learning_rate: float
    n_unfrozen: int
    """Groups of backbone layers that are trained, from the top."""
    ending: Ending | None = None
    """Why training ends instead; None: it does not, as far as the scores go."""


def plan_epoch(settings: TrainSettings, scores: Sequence[float], *, n_groups: int) -> EpochPlan:
    """Plan the next epoch.

    Args:
        settings: the recipe; only ``cosine`` depends on ``epochs``.
        scores: validation scores of all epochs before, in order; higher is better.
        n_groups: groups of backbone layers that can be unfrozen.
    """
    if settings.schedule == "cosine":
        return _plan_cosine(settings, scores, n_groups)
    return _plan_plateau(settings, scores, n_groups)


def _plan_plateau(settings: TrainSettings, scores: Sequence[float], n_groups: int) -> EpochPlan:
    rate, n_unfrozen, round_start = settings.learning_rate, min(1, n_groups), 0
    best, n_waited, n_worse = -math.inf, 0, 0
    for epoch, score in enumerate(scores):
        if score > best:
            best, n_waited, n_worse = score, 0, 0
        elif epoch - round_start >= settings.warmup_epochs:
            n_waited, n_worse = n_waited + 1, n_worse + 1
        if n_worse >= settings.early_stopping:
            return EpochPlan(rate, n_unfrozen, "early stopping")
        if n_waited > settings.plateau_patience:
            rate, n_waited = rate * settings.plateau_factor, 0
            if not _is_below(rate, settings):
                continue
            if n_unfrozen == n_groups:
                return EpochPlan(rate, n_unfrozen, "rate spent")
            rate, n_unfrozen, round_start, n_worse = settings.learning_rate, n_unfrozen + 1, epoch + 1, 0
    n_done = len(scores) - round_start
    if n_done < settings.warmup_epochs:
        rate = settings.learning_rate * (n_done + 1) / settings.warmup_epochs
    return EpochPlan(rate, n_unfrozen)


def _plan_cosine(settings: TrainSettings, scores: Sequence[float], n_groups: int) -> EpochPlan:
    warmup, epoch = settings.warmup_epochs, len(scores)

    def share(epoch: int) -> float:
        return min(max((epoch - warmup) / max(1, settings.epochs - warmup), 0.0), 1.0)

    unfrozen = [min(n_groups, 1 + math.floor(share(e) * n_groups)) for e in range(epoch + 1)]
    counted_from = max(unfrozen.index(unfrozen[epoch]), warmup, best_epoch(scores) + 1 if scores else 0)
    if epoch < warmup:
        rate = settings.learning_rate * (epoch + 1) / warmup
    else:
        least = min(settings.learning_rate, settings.min_learning_rate)
        rate = least + (settings.learning_rate - least) * (1 + math.cos(math.pi * share(epoch))) / 2
    is_over = epoch - counted_from >= settings.early_stopping
    return EpochPlan(rate, unfrozen[epoch], "early stopping" if is_over else None)


def _is_below(rate: float, settings: TrainSettings) -> bool:
    """Whether a rate is below the minimum by more than a rounding error: 1e-5 * 0.1**3 is above 1e-8."""
    least = min(settings.learning_rate, settings.min_learning_rate)
    return rate < least and not math.isclose(rate, least, rel_tol=1e-9)


def best_epoch(scores: Sequence[float]) -> int:
    """Index of the first of the best scores; 0 when all are NaN."""
    ranked = [-math.inf if math.isnan(score) else score for score in scores]
    return ranked.index(max(ranked))
