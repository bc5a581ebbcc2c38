"""CCC, its loss, PCC and RMSE: the formula, an independent implementation, and every undefined case."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import audmetric
import numpy as np
import pytest
import scipy.stats
import torch

from rcma.metrics import ccc, ccc_loss, pcc, rmse


def exact_ccc(x: list[int], y: list[int]) -> Fraction:
    """The definition, sum by sum, in rational numbers."""
    n = len(x)
    mean_x, mean_y = Fraction(sum(x), n), Fraction(sum(y), n)
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / n
    variance_x = sum((a - mean_x) ** 2 for a in x) / n
    variance_y = sum((b - mean_y) ** 2 for b in y) / n
    return 2 * covariance / (variance_x + variance_y + (mean_x - mean_y) ** 2)


@pytest.mark.parametrize("n", [2, 3, 10, 1000])
def test_ccc_equals_the_definition(n: int) -> None:
    rng = np.random.default_rng(n)
    x, y = rng.integers(-1000, 1000, n), rng.integers(-1000, 1000, n)
    assert ccc(x, y) == pytest.approx(float(exact_ccc(x.tolist(), y.tolist())), abs=1e-14)


@pytest.mark.parametrize("seed", range(5))
def test_ccc_equals_audmetric(seed: int) -> None:
    rng = np.random.default_rng(seed)
    y = rng.uniform(-1, 1, 500)
    x = 0.6 * y + rng.normal(0.1, 0.3, 500)
    assert ccc(x, y) == pytest.approx(audmetric.concordance_cc(y, x), abs=1e-9)


def test_ccc_of_a_known_pair() -> None:
    assert ccc([0, 1, 1], [0, 1, 2]) == pytest.approx(2 / 3)


def test_ccc_properties() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=300), rng.normal(size=300)
    order = rng.permutation(300)
    assert ccc(y, y) == pytest.approx(1.0, abs=1e-15)
    assert ccc(-y + 2 * y.mean(), y) == pytest.approx(-1.0)
    assert ccc(x, y) == pytest.approx(ccc(y, x)) == pytest.approx(ccc(x[order], y[order]))
    assert ccc(3 * x + 1, 3 * y + 1) == pytest.approx(ccc(x, y))
    assert ccc(y + 0.5, y) < 1 and ccc(0.5 * y, y) < 1, "unlike correlation, shift and scale cost"
    assert ccc(0.5 * (y - y.mean()), y - y.mean()) == pytest.approx(2 * 0.5 / (1 + 0.25))


def test_ccc_does_not_lose_digits_at_large_offsets() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 100, 200), rng.integers(0, 100, 200)
    assert ccc(x + 1e9, y + 1e9) == pytest.approx(ccc(x, y), abs=1e-9)


def test_unlabelled_positions_do_not_count() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=50), rng.normal(size=50)
    kept = rng.random(50) < 0.7
    labels = np.where(kept, y, np.nan)
    predictions = np.where(kept, x, np.nan)  # whatever lies there
    for measure in (ccc, pcc, rmse):
        assert measure(predictions, labels) == measure(x[kept], y[kept])


@pytest.mark.parametrize(
    ("x", "y"),
    [
        ([], []),
        ([1.0], [1.0]),
        ([1.0, 2.0], [1.0, math.nan]),
        ([1.0, 2.0], [math.nan, math.nan]),
        ([0.1, 0.1, 0.1], [0.1, 0.1, 0.1]),
        ([0.1, 0.1, 0.1], [0.3, 0.2, 0.1]),
        ([0.3, 0.2, 0.1], [0.1, 0.1, 0.1]),
        ([0.3, 0.2, 0.5], [0.1, 0.1, math.nan]),
        ([math.nan, 0.2, 0.1], [0.1, 0.2, 0.3]),
        ([math.inf, 0.2, 0.1], [0.1, 0.2, 0.3]),
    ],
)
@pytest.mark.filterwarnings("error")
def test_ccc_is_nan_where_it_is_undefined(x: list[float], y: list[float]) -> None:
    assert math.isnan(ccc(x, y))
    assert math.isnan(pcc(x, y))


@pytest.mark.parametrize("seed", range(3))
def test_pcc_and_rmse_equal_independent_ones(seed: int) -> None:
    rng = np.random.default_rng(seed)
    y = rng.uniform(-1, 1, 500)
    x = 0.6 * y + rng.normal(0.1, 0.3, 500)
    assert pcc(x, y) == pytest.approx(scipy.stats.pearsonr(x, y).statistic, abs=1e-12)
    assert pcc(x, y) == pytest.approx(audmetric.pearson_cc(y, x), abs=1e-12)
    squared = sum((a - b) ** 2 for a, b in zip(x, y, strict=True))
    assert rmse(x, y) == pytest.approx(math.sqrt(squared / 500), abs=1e-12)
    assert rmse(x, y) == pytest.approx(math.sqrt(audmetric.mean_squared_error(y, x)), abs=1e-12)


def test_pcc_bounds_ccc_and_ignores_shift_and_scale() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=300), rng.normal(size=300)
    assert pcc(3 * x + 1, y) == pytest.approx(pcc(x, y)) == pytest.approx(pcc(y, x)) == pytest.approx(-pcc(-x, y))
    assert pcc(3 * y + 1, y) == pytest.approx(1.0) and pcc(3 * y + 1, y) <= 1.0
    assert abs(ccc(x, y)) <= abs(pcc(x, y))


def test_rmse_properties() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=300), rng.normal(size=300)
    assert rmse(y, y) == 0.0
    assert rmse(y + 0.25, y) == pytest.approx(0.25), "a shift by itself"
    assert rmse(3 * x, 3 * y) == pytest.approx(3 * rmse(x, y))
    assert rmse([0.5, 0.5], [0.5, 0.5]) == 0.0 and rmse([0.5], [0.25]) == 0.25, "constants have an error too"


@pytest.mark.parametrize(("x", "y"), [([], []), ([1.0], [math.nan]), ([math.nan, 0], [0, 0]), ([math.inf, 0], [0, 0])])
@pytest.mark.filterwarnings("error")
def test_rmse_is_nan_where_there_is_no_label_or_no_prediction(x: list[float], y: list[float]) -> None:
    assert math.isnan(rmse(x, y))


@pytest.mark.parametrize("measure", [ccc, pcc, rmse])
@pytest.mark.parametrize(("x", "y"), [([1, 2], [1, 2, 3]), ([[1, 2]], [[1, 2]]), (1.0, 1.0)])
def test_other_shapes_are_rejected(measure: Callable[[object, object], float], x: object, y: object) -> None:
    with pytest.raises(ValueError, match="equal length"):
        measure(x, y)


def random_windows(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Predictions and labels, (3,40,2) float64, a third of the labels missing."""
    rng = torch.Generator().manual_seed(seed)
    prediction = torch.rand((3, 40, 2), generator=rng, dtype=torch.float64) * 2 - 1
    labels = torch.rand((3, 40, 2), generator=rng, dtype=torch.float64) * 2 - 1
    labels[torch.rand(labels.shape, generator=rng) < 1 / 3] = torch.nan
    return prediction.requires_grad_(), labels


def test_loss_is_the_mean_of_one_minus_ccc() -> None:
    prediction, labels = random_windows()
    expected = [
        1 - ccc(prediction[b, :, k].detach().numpy(), labels[b, :, k].numpy()) for b in range(3) for k in range(2)
    ]
    assert ccc_loss(prediction, labels).item() == pytest.approx(np.mean(expected), abs=1e-12)
    assert ccc_loss(prediction.float(), labels.float()).item() == pytest.approx(np.mean(expected), abs=1e-6)


def test_loss_has_the_right_gradient() -> None:
    prediction, labels = random_windows()
    labels[1, :, 0] = 0.25  # one window with constant labels
    assert torch.autograd.gradcheck(lambda x: ccc_loss(x, labels), (prediction,))


def test_loss_of_a_perfect_prediction_is_exactly_zero() -> None:
    _, labels = random_windows()
    prediction = labels.nan_to_num(7.0).requires_grad_()
    loss = ccc_loss(prediction, labels)
    loss.backward()
    assert loss.item() == 0.0
    assert not prediction.grad.any()


def test_what_lies_at_unlabelled_frames_changes_neither_loss_nor_gradient() -> None:
    prediction, labels = random_windows()
    other = prediction.detach().clone()
    other[labels.isnan()] = torch.nan
    other.requires_grad_()
    loss, same = ccc_loss(prediction, labels), ccc_loss(other, labels)
    loss.backward()
    same.backward()
    assert loss.item() == same.item()
    assert torch.equal(prediction.grad, other.grad)
    assert not prediction.grad[labels.isnan()].any()


def test_constant_labels_pull_the_prediction_towards_them() -> None:
    labels = torch.full((1, 20, 1), 0.3)
    prediction = torch.linspace(-0.5, 0.5, 20).reshape(1, 20, 1).requires_grad_()
    loss = ccc_loss(prediction, labels)
    loss.backward()
    assert loss.item() == pytest.approx(((prediction - labels) ** 2).mean().item())
    assert ccc_loss(prediction.detach() - 0.1 * prediction.grad, labels) < loss
    assert torch.equal(torch.sign(prediction.grad), torch.sign(prediction.detach() - labels))


@pytest.mark.parametrize(("x", "y"), [(0.1, 0.1), (0.1, 0.7), (-1.0, 1.0)])
def test_two_constants_give_a_finite_loss_and_gradient(x: float, y: float) -> None:
    prediction = torch.full((2, 30, 1), x, requires_grad=True)
    loss = ccc_loss(prediction, torch.full((2, 30, 1), y))
    loss.backward()
    assert loss.item() == pytest.approx((x - y) ** 2, abs=1e-6)
    assert torch.isfinite(prediction.grad).all()
    assert bool(prediction.grad.any()) == (x != y)


def test_nearly_constant_labels_keep_loss_and_gradient_finite() -> None:
    labels = torch.full((1, 300, 1), 0.1)
    labels[0, 0, 0] = labels[0, 0, 0].nextafter(torch.tensor(1.0))
    for prediction in (labels.clone(), torch.full((1, 300, 1), 0.1), torch.rand((1, 300, 1))):
        prediction.requires_grad_()
        loss = ccc_loss(prediction, labels)
        loss.backward()
        assert 0 <= loss.item() <= 2.001
        assert torch.isfinite(prediction.grad).all()


def test_windows_without_two_labels_are_left_out() -> None:
    prediction, labels = random_windows()
    labels[1] = torch.nan
    labels[2, 1:, 0] = torch.nan
    labels[2, 0, 0] = 0.5
    kept = [(0, 0), (0, 1), (2, 1)]
    expected = [1 - ccc(prediction[b, :, k].detach().numpy(), labels[b, :, k].numpy()) for b, k in kept]
    loss = ccc_loss(prediction, labels)
    loss.backward()
    assert loss.item() == pytest.approx(np.mean(expected), abs=1e-12)
    assert not prediction.grad[1].any() and not prediction.grad[2, :, 0].any()


def test_without_labels_the_loss_is_zero_and_attached() -> None:
    prediction = torch.rand((2, 10, 2), requires_grad=True)
    loss = ccc_loss(prediction, torch.full((2, 10, 2), torch.nan))
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(prediction.grad, torch.zeros_like(prediction))


def test_half_precision_is_computed_in_single() -> None:
    prediction, labels = random_windows()
    loss = ccc_loss(prediction.to(torch.bfloat16), labels.float())
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(ccc_loss(prediction, labels).item(), abs=5e-3)


@pytest.mark.parametrize("shapes", [((2, 5), (2, 5)), ((2, 5, 1), (2, 5, 2))])
def test_loss_rejects_other_shapes(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match=r"\(B,L,K\)"):
        ccc_loss(torch.zeros(shapes[0]), torch.zeros(shapes[1]))
