"""The published schedule, and others, from nothing but the scores."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch

from rcma.config import TrainSettings
from rcma.training.schedule import EpochPlan, best_epoch, plan_epoch

NAN = math.nan


def plans(settings: TrainSettings, scores: Sequence[float], *, n_groups: int = 0) -> Iterator[EpochPlan]:
    """The plan of each epoch, the last of which may be that there is none."""
    for n_done in range(len(scores) + 1):
        plan = plan_epoch(settings, scores[:n_done], n_groups=n_groups)
        yield plan
        if plan.ending is not None:
            return


def test_groups_are_unfrozen_when_the_authors_code_does_so() -> None:
    """Scores that rise for six epochs: groups in epochs 1, 31 and 60, and no epoch 89."""
    scores = [0.1, 0.2, 0.3, 0.4, 0.5] + [0.6] * 95
    seen = list(plans(TrainSettings(), scores, n_groups=3))
    begins = [1 + next(e for e, plan in enumerate(seen) if plan.n_unfrozen == group) for group in (1, 2, 3)]
    assert begins == [1, 31, 60]
    assert len(seen) == 89
    assert seen[-1].ending == "rate spent"
    assert {plan.ending for plan in seen[:-1]} == {None}

    rates = [plan.learning_rate for plan in seen]
    for begin, end in ((0, 30), (30, 59), (59, 88)):
        warmup, after = rates[begin : begin + 5], rates[begin + 5 : end]
        assert warmup == pytest.approx([2e-6, 4e-6, 6e-6, 8e-6, 1e-5])
        n_first = 7 if begin == 0 else 6  # the sixth epoch still had a better score
        assert after == pytest.approx([1e-5] * n_first + [1e-6] * 6 + [1e-7] * 6 + [1e-8] * 6)


def test_no_group_is_skipped_by_rounding() -> None:
    """1e-5 * 0.1**3 is not quite 1e-8, on either side of it, whatever the rates are."""
    for rate, factor, n_steps in itertools.product((1e-5, 3e-4, 0.07), (0.1, 0.3, 0.7), (1, 2, 3, 7)):
        for least in (rate * factor**n_steps, math.prod([rate] + [factor] * n_steps)):
            settings = TrainSettings(
                learning_rate=rate, min_learning_rate=least, plateau_factor=factor, plateau_patience=0, warmup_epochs=0
            )
            seen = list(plans(settings, [0.5] + [0.0] * 40))
            assert len(seen) == n_steps + 3  # the first score, a step for each other one, and one to fall below
            assert seen[-1].ending == "rate spent"


def test_a_later_round_needs_scores_above_those_of_all_rounds() -> None:
    settings = TrainSettings(
        learning_rate=1.0, min_learning_rate=0.5, plateau_factor=0.1, plateau_patience=1, warmup_epochs=2
    )
    seen = list(plans(settings, [0.5, 0.6, 0.1, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6], n_groups=2))
    assert [plan.n_unfrozen for plan in seen] == [1, 1, 1, 1, 2, 2, 2, 2, 2]
    assert [plan.learning_rate for plan in seen[:8]] == pytest.approx([0.5, 1, 1, 1, 0.5, 1, 1, 1])
    assert seen[-1].ending == "rate spent"
    better = list(plans(settings, [0.5, 0.6, 0.1, 0.1, 0.7, 0.3, 0.4, 0.8, 0.1], n_groups=2))
    assert {plan.ending for plan in better} == {None}


def test_warmup_does_not_count_towards_early_stopping() -> None:
    settings = TrainSettings(early_stopping=10, warmup_epochs=5, plateau_patience=100)
    assert len(list(plans(settings, [0.5] * 90))) == 1 + 5 + 10
    assert len(list(plans(settings, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6] + [0.0] * 90))) == 1 + 6 + 10
    assert len(list(plans(settings, [NAN] * 90))) == 1 + 5 + 10
    last = list(plans(settings, [0.5] * 90, n_groups=3))[-1]
    assert (last.ending, last.n_unfrozen) == ("early stopping", 1)


def test_a_new_group_resets_early_stopping() -> None:
    settings = TrainSettings(
        learning_rate=1.0, min_learning_rate=0.5, plateau_patience=3, warmup_epochs=1, early_stopping=5
    )
    seen = list(plans(settings, [0.5] * 90, n_groups=3))
    assert [1 + [plan.n_unfrozen for plan in seen].index(group) for group in (1, 2, 3)] == [1, 6, 11]
    assert (len(seen), seen[-1].ending) == (16, "rate spent")


def test_rate_rises_to_its_value_and_falls_on_plateaus() -> None:
    settings = TrainSettings(
        learning_rate=1.0, warmup_epochs=4, plateau_patience=2, plateau_factor=0.1, min_learning_rate=0.03
    )
    scores = [0.5, 0.1, 0.1, 0.1, 0.6, 0.6, NAN, 0.1, 0.1, 0.7, 0.1, 0.1, 0.1, 0.1]
    seen = list(plans(settings, scores))
    # Better at the fifth and tenth; three worse ones in a row lower the rate for the epoch after them.
    rates = [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 0.1, 0.1, 0.1, 0.1, 0.1]
    assert [plan.learning_rate for plan in seen[:-1]] == pytest.approx(rates)
    assert seen[-1].ending == "rate spent"
    assert plan_epoch(TrainSettings(warmup_epochs=0, learning_rate=0.5), [], n_groups=0).learning_rate == 0.5


def test_without_warmup_and_unfreezing_it_is_pytorchs_plateau() -> None:
    random = np.random.default_rng(0)
    for patience, factor in ((0, 0.5), (2, 0.1), (5, 0.3)):
        scores = random.random(60).round(1).tolist()
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
        reference = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, mode="max", factor=factor, patience=patience, threshold=0.0, eps=0.0
        )
        settings = TrainSettings(
            learning_rate=0.1,
            min_learning_rate=0.0,
            warmup_epochs=0,
            plateau_patience=patience,
            plateau_factor=factor,
            early_stopping=1000,
        )
        for n_done, score in enumerate(scores):
            rate = plan_epoch(settings, scores[:n_done], n_groups=0).learning_rate
            assert rate == pytest.approx(optimizer.param_groups[0]["lr"])
            reference.step(score)


def test_cosine_goes_from_the_rate_to_the_least_one() -> None:
    settings = TrainSettings(schedule="cosine", epochs=11, warmup_epochs=1, learning_rate=0.1, min_learning_rate=0.001)
    rates = [plan_epoch(settings, [0.0] * n, n_groups=0).learning_rate for n in range(11)]
    assert rates[0] == rates[1] == 0.1
    assert rates[6] == pytest.approx((0.1 + 0.001) / 2)
    assert rates[10] == pytest.approx(0.001 + 0.099 * (1 + math.cos(math.pi * 0.9)) / 2)
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[1:]))


def test_cosine_unfreezes_groups_at_equal_distances() -> None:
    settings = TrainSettings(schedule="cosine", epochs=32, warmup_epochs=2, early_stopping=11)
    seen = list(plans(settings, [0.5] * 31, n_groups=3))
    assert [1 + [plan.n_unfrozen for plan in seen].index(group) for group in (1, 2, 3)] == [1, 13, 23]
    assert {plan.ending for plan in seen} == {None}
    shorter = settings.model_copy(update={"early_stopping": 9})
    last = list(plans(shorter, [0.5] * 31, n_groups=3))[-1]
    assert (last.ending, last.n_unfrozen) == ("early stopping", 1)


def test_best_epoch_is_the_first_of_the_best_and_nan_is_worst() -> None:
    series = ([NAN, NAN], [NAN, -0.5], [0.2, NAN, 0.3, 0.3], [-1.0])
    assert [best_epoch(scores) for scores in series] == [0, 1, 2, 0]
